//! The queue, driven by hand: one step at a time, each bounded.

use ptdma::descriptor::{CommandWord, DESCRIPTOR_LEN_BYTES};
use ptdma::regs::{ALL_ONES, Interrupts, QueueControl, Register};
use ptdma::{Clock, Descriptor, DmaAddr, RegisterIo, RingMemory};

use crate::halt::{Event, Hypotheses};
use crate::platform::Platform;
use crate::report::Stop;

/// How long nothing has to happen before it counts as nothing: 50 ms. The longest copy takes
/// 250 us at the slowest rate that was published. An emulated engine is a thread, which may wait
/// for its turn.
pub const SILENCE_NS: u64 = 50_000_000;
/// How long what must happen may take: 3 s, for an emulated engine on a busy machine.
pub(crate) const LIMIT_NS: u64 = 3_000_000_000;
/// How many looks in a row find a register as it was before it counts as settled: 64, as the
/// driver's own.
pub(crate) const REST_LOOKS: u32 = 64;
/// How many looks at a HALT of 1 it takes to believe that it stays: HALT may be late. Longer than
/// the longest delay of the device model, 400 reads.
const LATE_LOOKS: u32 = 1_000;
/// Entries of the ring that steps use: Linux's.
pub(crate) const ENTRIES: usize = 32;
/// Polls after which each wait ends, if the clock stands still: minutes.
const MOST_POLLS: u32 = 1 << 28;

/// How a wait for the engine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// Head is at the tail, and no error is pending.
    Drained,
    /// An error is pending.
    Failed,
    /// Neither in time.
    Nothing,
}

/// A queue on the first [`ENTRIES`] entries of the platform's ring.
pub(crate) struct Queue<'p, P: Platform> {
    pub(crate) p: &'p mut P,
    pub(crate) halts: Hypotheses,
    low: u32,
    control: QueueControl,
    pub(crate) entries: usize,
    slot: usize,
}

impl<'p, P: Platform> Queue<'p, P> {
    /// Programs the queue; its engine stands.
    pub(crate) fn set_up(p: &'p mut P, halts: Hypotheses, entries: usize) -> Result<Self, Stop> {
        let base = {
            let (_, ring) = p.parts();
            ring.base()
        };
        let entries = entries.max(2).next_power_of_two();
        let control = QueueControl::empty()
            .with_size(entries.trailing_zeros())
            .with_base_high(base.high());
        let mut queue = Self {
            p,
            halts,
            low: base.low(),
            control,
            entries,
            slot: 0,
        };
        queue.halts.lose_track();
        queue.write(Register::InterruptEnable, Interrupts::ERROR.bits());
        queue.write(Register::Control, control.bits());
        queue.clear_status();
        queue.point_to_slot();
        match queue.read(Register::Head) {
            ALL_ONES => Err(Stop::Gone),
            head if head == queue.low => Ok(queue),
            _ => Err(Stop::NotStopped),
        }
    }

    pub(crate) fn read(&self, register: Register) -> u32 {
        self.p.regs().read(register)
    }

    pub(crate) fn write(&self, register: Register, value: u32) {
        self.p.regs().write(register, value);
    }

    pub(crate) fn now(&self) -> u64 {
        self.p.clock().now()
    }

    pub(crate) fn clear_status(&self) {
        self.write(Register::InterruptStatus, Interrupts::KNOWN.bits());
    }

    pub(crate) fn interrupts(&self) -> Interrupts {
        Interrupts::from_bits_retain(self.read(Register::InterruptStatus))
    }

    fn error_pending(&self) -> bool {
        let status = self.read(Register::InterruptStatus);
        status != ALL_ONES && status & Interrupts::ERROR.bits() != 0
    }

    /// The register value of a slot, counted from slot 0 of the ring on.
    pub(crate) fn address_of(&self, slot: usize) -> u32 {
        let slot = slot & self.entries.wrapping_sub(1);
        self.low
            .wrapping_add((slot as u32).wrapping_mul(DESCRIPTOR_LEN_BYTES as u32))
    }

    /// The next slot to be filled.
    pub(crate) fn next_slot(&self) -> usize {
        self.slot
    }

    /// The slot that head is at, counted from `from` on; `None` if it is no slot of the ring.
    pub(crate) fn head_from(&self, from: usize) -> Option<usize> {
        let offset = self.read(Register::Head).wrapping_sub(self.low) as usize;
        if !offset.is_multiple_of(DESCRIPTOR_LEN_BYTES) {
            return None;
        }
        let slot = offset / DESCRIPTOR_LEN_BYTES;
        (slot < self.entries).then(|| slot.wrapping_sub(from) & self.entries.wrapping_sub(1))
    }

    /// Fills the next slot.
    pub(crate) fn put(&mut self, command: CommandWord, src: DmaAddr, dst: DmaAddr, len: u32) {
        let slot = self.slot;
        let (_, ring) = self.p.parts();
        ring.store(slot, &Descriptor::copy(command, src, dst, len));
        self.slot = slot.wrapping_add(1) & self.entries.wrapping_sub(1);
    }

    /// Publishes what was put and moves the tail.
    pub(crate) fn move_tail(&mut self) {
        let tail = self.address_of(self.slot);
        let (regs, ring) = self.p.parts();
        ring.publish();
        regs.write(Register::Tail, tail);
    }

    /// Writes RUN, with work in the ring.
    pub(crate) fn run(&mut self) {
        self.write(Register::Control, (self.control | QueueControl::RUN).bits());
        self.halts.follow(Event::Run { work: true });
    }

    /// Tail and RUN.
    pub(crate) fn go(&mut self) {
        self.move_tail();
        self.run();
    }

    /// Tail with RUN off, and then RUN: for work that may fail. An engine that goes on by the tail
    /// could fail before RUN is written, and RUN would send the engine past the failure.
    pub(crate) fn go_from_rest(&mut self) {
        self.stop_idle();
        self.go();
    }

    /// Takes RUN away from an engine that stands.
    pub(crate) fn stop_idle(&mut self) {
        self.write(Register::Control, self.control.bits());
        let work_left = self.read(Register::Head) != self.read(Register::Tail);
        self.halts.follow(Event::Stop { work_left });
    }

    /// Takes RUN away; the caller tells the hypotheses.
    pub(crate) fn write_stop(&self) {
        self.write(Register::Control, self.control.bits());
    }

    /// Waits until the engine has done what it was given, or failed.
    pub(crate) fn wait(&mut self, limit_ns: u64) -> Result<Came, Stop> {
        let tail = self.address_of(self.slot);
        let start = self.now();
        for _ in 0..MOST_POLLS {
            // Asked before the look, so that there is a last look after the time.
            let over = self.now().wrapping_sub(start) >= limit_ns;
            let head = self.read(Register::Head);
            if head == ALL_ONES && self.read(Register::Version) == ALL_ONES {
                return Err(Stop::Gone);
            }
            if self.error_pending() {
                self.settle_head();
                self.halts.follow(Event::Error);
                return Ok(Came::Failed);
            }
            if head == tail {
                self.halts.follow(Event::Drained);
                return Ok(Came::Drained);
            }
            if over {
                break;
            }
        }
        Ok(Came::Nothing)
    }

    /// Waits for work that the engine does whatever it is like.
    pub(crate) fn wait_drained(&mut self) -> Result<(), Stop> {
        match self.wait(LIMIT_NS)? {
            Came::Drained => Ok(()),
            Came::Failed => {
                self.recover();
                Err(Stop::NoStart)
            }
            Came::Nothing => Err(Stop::NotStopped),
        }
    }

    /// Looks until head stays where it is.
    pub(crate) fn settle_head(&self) {
        let mut last = self.read(Register::Head);
        let mut same = 0;
        for _ in 0..LATE_LOOKS {
            let head = self.read(Register::Head);
            same = if head == last { same + 1 } else { 0 };
            last = head;
            if same >= REST_LOOKS {
                break;
            }
        }
    }

    /// Whether head stays where it is for a time.
    pub(crate) fn head_rests(&self, time_ns: u64) -> bool {
        let head = self.read(Register::Head);
        let start = self.now();
        for _ in 0..MOST_POLLS {
            if self.read(Register::Head) != head {
                return false;
            }
            if self.now().wrapping_sub(start) >= time_ns {
                break;
            }
        }
        true
    }

    /// After an error, or with an engine that stands with work left: drops what is in the ring.
    pub(crate) fn recover(&mut self) {
        self.stop_idle();
        self.clear_status();
        self.slot = 0;
        self.point_to_slot();
    }

    fn point_to_slot(&self) {
        let at = self.address_of(self.slot);
        self.write(Register::Tail, at);
        self.write(Register::Head, at);
    }

    /// HALT and RUN of an engine that has nothing in work, once they have settled.
    pub(crate) fn look_at_control(&mut self) -> Result<bool, Stop> {
        let mut control = 0;
        let (mut ones, mut zeroes) = (0, 0);
        let start = self.now();
        while ones < LATE_LOOKS && zeroes < REST_LOOKS {
            control = self.read(Register::Control);
            if control == ALL_ONES {
                return Err(Stop::Gone);
            }
            if control & QueueControl::HALT.bits() != 0 {
                (ones, zeroes) = (ones + 1, 0);
            } else {
                (ones, zeroes) = (0, zeroes + 1);
            }
            if self.now().wrapping_sub(start) >= LIMIT_NS {
                break;
            }
        }
        let halt = control & QueueControl::HALT.bits() != 0;
        let run = control & QueueControl::RUN.bits() != 0;
        self.halts.look(halt, run);
        Ok(halt)
    }

    /// Source address at an offset.
    pub(crate) fn source(&self, at: u64) -> DmaAddr {
        DmaAddr::new(self.p.source().get().saturating_add(at))
    }

    /// Target address at an offset.
    pub(crate) fn target(&self, at: u64) -> DmaAddr {
        DmaAddr::new(self.p.target().get().saturating_add(at))
    }
}
