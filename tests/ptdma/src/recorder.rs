//! A mock of the registers that records every access, in order, and answers from a script.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use ptdma::descriptor::CommandWord;
use ptdma::regs::Register;
use ptdma::{Descriptor, DmaAddr, RegisterIo, RingMemory};

/// One thing that the driver did to the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Read a register.
    Read(Register),
    /// Wrote a register.
    Write(Register, u32),
    /// Stored a descriptor to a slot.
    Store(usize, Descriptor),
    /// Rewrote word 0 of a slot.
    StoreCommand(usize, CommandWord),
    /// Ordered its stores before the next register write.
    Publish,
}

impl Event {
    /// Whether it is an MMIO access.
    #[must_use]
    pub fn is_mmio(&self) -> bool {
        matches!(self, Self::Read(_) | Self::Write(..))
    }
}

#[derive(Debug, Default)]
struct Log {
    events: Vec<Event>,
    /// What a register holds: the last value written, unless the test sets another.
    values: HashMap<Register, u32>,
    /// Answers to coming reads, before the value counts.
    script: HashMap<Register, VecDeque<u32>>,
}

/// Registers and ring memory that record. Clones share one record.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    log: Rc<RefCell<Log>>,
}

impl Recorder {
    /// A function that answers with version 5 and one queue, all other registers zero.
    #[must_use]
    pub fn new() -> Self {
        let recorder = Self::default();
        recorder.set(Register::Version, (1 << 15) | 5);
        recorder
    }

    /// What happened since the last call.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.log.borrow_mut().events)
    }

    /// Makes a register hold a value.
    pub fn set(&self, register: Register, value: u32) {
        self.log.borrow_mut().values.insert(register, value);
    }

    /// Makes the next read of a register, after those scripted already, give a value once.
    pub fn script(&self, register: Register, value: u32) {
        let mut log = self.log.borrow_mut();
        log.script.entry(register).or_default().push_back(value);
    }

    /// Ring memory of the same record: `entries` slots at `base`.
    #[must_use]
    pub fn ring(&self, base: u64, entries: usize) -> RecordingRing {
        RecordingRing {
            log: Rc::clone(&self.log),
            base: DmaAddr::new(base),
            entries,
        }
    }
}

impl RegisterIo for Recorder {
    fn read(&self, register: Register) -> u32 {
        let mut log = self.log.borrow_mut();
        log.events.push(Event::Read(register));
        let scripted = log.script.get_mut(&register).and_then(VecDeque::pop_front);
        scripted.unwrap_or_else(|| log.values.get(&register).copied().unwrap_or(0))
    }

    fn write(&self, register: Register, value: u32) {
        let mut log = self.log.borrow_mut();
        log.events.push(Event::Write(register, value));
        // The interrupt status is the one register that does not hold what is written.
        let holds = match register {
            Register::InterruptStatus => log.values.get(&register).unwrap_or(&0) & !value,
            _ => value,
        };
        log.values.insert(register, holds);
    }
}

/// Ring memory that records.
#[derive(Debug)]
pub struct RecordingRing {
    log: Rc<RefCell<Log>>,
    base: DmaAddr,
    entries: usize,
}

impl RingMemory for RecordingRing {
    fn base(&self) -> DmaAddr {
        self.base
    }

    fn entries(&self) -> usize {
        self.entries
    }

    fn store(&mut self, slot: usize, descriptor: &Descriptor) {
        assert!(slot < self.entries, "slot {slot} of {}", self.entries);
        let event = Event::Store(slot, *descriptor);
        self.log.borrow_mut().events.push(event);
    }

    fn store_command(&mut self, slot: usize, command: CommandWord) {
        assert!(slot < self.entries, "slot {slot} of {}", self.entries);
        let event = Event::StoreCommand(slot, command);
        self.log.borrow_mut().events.push(event);
    }

    fn publish(&mut self) {
        self.log.borrow_mut().events.push(Event::Publish);
    }
}
