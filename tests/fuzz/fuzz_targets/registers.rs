//! The driver on a device whose every register reads as the fuzzer says.
//!
//! No such device can be copied with, so nothing is asked of bytes. What must hold: no panic, a bound
//! on the register accesses of each call, no store outside of the ring, no descriptor that writes
//! where nobody asked for a copy, and books that balance.
#![no_main]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use ptdma::descriptor::{CommandWord, DESCRIPTOR_LEN_BYTES, Descriptor};
use ptdma::regs::Register;
use ptdma::{
    Channel, ChannelConfig, Clock, Deadline, DmaAddr, ErrorHead, FunctionQuiesced, Notify,
    RegisterIo, Restart, RingMemory, Signalling,
};

/// Register accesses that one call may take. The longest loop without a deadline, `MAX_POLLS` looks
/// of a few reads each, takes less.
const MOST_ACCESSES: u64 = 2_000_000;
/// Ticks of a deadline, in register accesses.
const TICKS: u64 = 2_000;
/// Bus address of the ring: aligned for each length, and no multiple of 4 GiB.
const RING: u64 = 0x1_0010_0000;
/// Bus address of the first source; destinations lie 4 GiB above.
const SOURCES: u64 = 0x20_0000_0000;
/// Distance of two sources.
const APART: u64 = 0x1_0000;

/// The fuzzer's bytes, taken from the front.
struct Bytes<'a>(Cell<&'a [u8]>);

impl Bytes<'_> {
    fn next(&self) -> u8 {
        match self.0.get().split_first() {
            Some((&byte, rest)) => {
                self.0.set(rest);
                byte
            }
            None => 0,
        }
    }

    fn word(&self) -> u32 {
        u32::from_le_bytes([self.next(), self.next(), self.next(), self.next()])
    }

    fn is_empty(&self) -> bool {
        self.0.get().is_empty()
    }
}

struct Device<'a> {
    bytes: Rc<Bytes<'a>>,
    written: RefCell<HashMap<Register, u32>>,
    entries: u32,
    accesses: Cell<u64>,
}

impl Device<'_> {
    /// Begins to count the accesses of a call.
    fn call(&self) {
        self.accesses.set(0);
    }

    fn count(&self) {
        let accesses = self.accesses.get() + 1;
        self.accesses.set(accesses);
        assert!(accesses < MOST_ACCESSES, "a call without a bound");
    }
}

impl RegisterIo for &Device<'_> {
    fn read(&self, register: Register) -> u32 {
        self.count();
        let written = || self.written.borrow().get(&register).copied();
        // What a device would say, more often than what none would.
        match self.bytes.next() {
            0..0x60 => written().unwrap_or(0),
            0x60..0xa0 => {
                let slot = u32::from(self.bytes.next()) % self.entries;
                RING as u32 + slot * DESCRIPTOR_LEN_BYTES as u32
            }
            0xa0..0xb0 => written().unwrap_or(0) ^ 1 << (self.bytes.next() % 32),
            0xb0..0xc0 => 1 << (self.bytes.next() % 32),
            0xc0..0xe0 => u32::from(self.bytes.next()),
            0xe0..0xf0 => u32::MAX,
            _ => self.bytes.word(),
        }
    }

    fn write(&self, register: Register, value: u32) {
        self.count();
        self.written.borrow_mut().insert(register, value);
    }
}

impl Clock for Device<'_> {
    fn now(&self) -> u64 {
        self.accesses.get()
    }
}

struct Memory {
    entries: usize,
    copies: Rc<Cell<u64>>,
}

impl RingMemory for Memory {
    fn base(&self) -> DmaAddr {
        DmaAddr::new(RING)
    }
    fn entries(&self) -> usize {
        self.entries
    }
    fn store(&mut self, slot: usize, descriptor: &Descriptor) {
        assert!(slot < self.entries, "a store outside of the ring");
        let dst = descriptor.dst().get();
        let ring = RING..RING + (self.entries * DESCRIPTOR_LEN_BYTES) as u64;
        let asked = destination(0)..destination(self.copies.get());
        assert!(
            ring.contains(&dst) || asked.contains(&dst),
            "a descriptor that writes at {dst:#x}"
        );
    }
    fn store_command(&mut self, slot: usize, _command: CommandWord) {
        assert!(slot < self.entries, "a store outside of the ring");
    }
    fn publish(&mut self) {}
}

fn source(number: u64) -> u64 {
    SOURCES + number * APART
}

fn destination(number: u64) -> u64 {
    source(number) + (1 << 32)
}

fn notify(byte: u8) -> Notify {
    if byte & 1 == 0 {
        Notify::Silent
    } else {
        Notify::Interrupt
    }
}

/// The word that nobody writes to the ring any more.
fn quiesced() -> FunctionQuiesced {
    // SAFETY: the device is made of numbers and reaches no memory.
    unsafe { FunctionQuiesced::by_owner() }
}

fuzz_target!(|data: &[u8]| {
    let bytes = Rc::new(Bytes(Cell::new(data)));
    let entries = 2_usize << (bytes.next() % 8);
    let config = bytes.next();
    let device = Device {
        bytes: Rc::clone(&bytes),
        written: RefCell::default(),
        entries: entries as u32,
        accesses: Cell::new(0),
    };
    let copies = Rc::new(Cell::new(0));
    let memory = Memory {
        entries,
        copies: Rc::clone(&copies),
    };
    let choice = config;
    let mut config = ChannelConfig::default();
    config.signalling = if choice & 1 == 0 {
        Signalling::Polled
    } else {
        Signalling::Interrupts
    };
    config.error_head = [
        ErrorHead::Unknown,
        ErrorHead::AtFailing,
        ErrorHead::PastFailing,
    ][usize::from(choice >> 1) % 3];
    config.restart =
        [Restart::Unknown, Restart::ByTail, Restart::ByRun][usize::from(choice >> 4) % 3];
    let Ok(mut channel) = Channel::bring_up(&device, memory, config) else {
        return;
    };
    let mut done_before = channel.done_before();
    while !bytes.is_empty() {
        device.call();
        let deadline = Deadline::after(&device, TICKS);
        match bytes.next() % 13 {
            0 | 1 => {
                for _ in 0..bytes.next() % 16 {
                    let number = copies.get();
                    let (src, dst) = (source(number), destination(number));
                    let request =
                        channel.prep_copy(DmaAddr::new(src), DmaAddr::new(dst), APART - 1);
                    copies.set(number + 1);
                    let _full = channel.submit(&request.expect("a copy like any"), Notify::Silent);
                }
            }
            2 | 3 => channel.issue_pending(notify(bytes.next())),
            4 | 5 => drop(channel.poll()),
            6 => drop(channel.handle_interrupt()),
            7 => drop(channel.check_lost_interrupt()),
            8 => drop(channel.pause(&device, deadline)),
            9 => channel.resume(),
            10 => drop(channel.terminate(&device, deadline)),
            11 => drop(channel.recover(quiesced())),
            _ => drop(channel.find_out(&device, deadline)),
        }
        let now_done = channel.done_before();
        assert!(
            now_done.since(done_before) <= u64::from(u32::MAX),
            "done_before went back"
        );
        done_before = now_done;
        let stats = channel.stats();
        let over = stats.completed + stats.failed + stats.dropped;
        assert_eq!(over + channel.outstanding(), stats.submitted, "{stats:?}");
    }
});
