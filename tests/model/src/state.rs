//! The registers and the queue as a state machine, without memory, threads or time.

use std::time::{Duration, Instant};

use ptdma::regs::{ALL_ONES, BAR_LEN_BYTES, Interrupts, QueueControl, Register, Version};
use ptdma::{ErrorCode, KnownError};

use crate::bus::Side;
use crate::counters::Counters;
use crate::decode::{Copy, Ring};
use crate::fault::{Armed, Fault, FaultId, FaultKind, StallFor, Trigger};
use crate::model::ModelConfig;

/// What [`Register::Version`] reads: one queue, version 5 as in the CCP of the same generation
/// (inferred; no driver looks).
const VERSION: Version = Version::from_raw((1 << 15) | 5);

/// How the faults that struck a descriptor change it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Strike {
    /// Fails with this code after moving so many bytes.
    pub(crate) failure: Option<(u8, u64)>,
    pub(crate) corrupt: bool,
    pub(crate) delay_ns: u64,
    lost_interrupt: bool,
}

#[derive(Clone, Copy, Debug)]
enum StallLeft {
    Ever,
    Steps(u64),
    Until(Instant),
}

#[derive(Clone, Copy, Debug)]
struct Stall {
    fault: FaultId,
    left: StallLeft,
    haltable: bool,
}

/// The descriptor that the engine has fetched and not finished.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    next_head: u32,
    pub(crate) copy: Result<Copy, KnownError>,
    pub(crate) strike: Strike,
    stall: Option<Stall>,
    head_written: bool,
}

/// How a descriptor ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    Done { len_bytes: u64 },
    Failed { code: u8, done_bytes: u64 },
}

/// What the engine has to do next.
pub(crate) enum Next {
    /// Nothing.
    Idle,
    /// The ring makes no sense.
    Broken(KnownError),
    /// Read the descriptor at head.
    Fetch { ring: Ring, head: u32 },
    /// Wait for the stall of the descriptor in flight.
    Stalled,
    /// Execute the descriptor in flight.
    Execute(InFlight),
}

#[derive(Debug)]
pub(crate) struct State {
    lenient: bool,
    sticky_status: bool,
    head_past_error: bool,
    /// Control without RUN and HALT.
    control: QueueControl,
    running: bool,
    tail: u32,
    head: u32,
    enable: Interrupts,
    status: Interrupts,
    error: u8,
    /// Registers that only keep what was written.
    plain: [u32; Register::ALL.len()],
    in_flight: Option<InFlight>,
    /// Whether a step is outside the lock, in bus memory.
    pub(crate) busy: bool,
    /// Bumped by everything that makes the work of a busy step void.
    pub(crate) generation: u64,
    /// Whether `status & enable` was non-zero when last looked at.
    line: bool,
    /// Messages to deliver once the lock is released.
    pub(crate) messages: u64,
    armed: Vec<Armed>,
    gone: Option<(FaultId, Option<u64>)>,
    head_garbage: Option<(FaultId, u32, Option<u64>)>,
    ignore_halt: Option<FaultId>,
    next_fault: u64,
    pub(crate) counters: Counters,
    pub(crate) virtual_ns: u64,
}

impl State {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        Self {
            lenient: config.lenient,
            sticky_status: config.sticky_status,
            head_past_error: config.head_past_error,
            control: QueueControl::empty(),
            running: false,
            tail: 0,
            head: 0,
            enable: Interrupts::empty(),
            status: Interrupts::empty(),
            error: 0,
            plain: [0; Register::ALL.len()],
            in_flight: None,
            busy: false,
            generation: 0,
            line: false,
            messages: 0,
            armed: Vec::new(),
            gone: None,
            head_garbage: None,
            ignore_halt: None,
            next_fault: 0,
            counters: Counters::default(),
            virtual_ns: 0,
        }
    }

    /// Whether the function answers on the bus.
    pub(crate) fn answers(&self) -> bool {
        self.gone.is_none()
    }

    /// Whether the queue is set up: it has a ring, runs, or may interrupt.
    pub(crate) fn programmed(&self) -> bool {
        self.running || !self.control.is_empty() || !self.enable.is_empty()
    }

    // Registers.

    pub(crate) fn read(&mut self, offset: u64) -> u32 {
        self.counters.mmio_reads += 1;
        let register = register_at(offset);
        match register {
            Some(register) => self.counters.reads.add(register),
            None => self.counters.unknown_accesses += 1,
        }
        if self.miss() {
            return ALL_ONES;
        }
        register.map_or(0, |register| self.value_of(register))
    }

    /// Counts a read that is not answered; false if it is.
    pub(crate) fn miss(&mut self) -> bool {
        let Some((_, left)) = &mut self.gone else {
            return false;
        };
        if count_down(left) {
            self.gone = None;
        }
        true
    }

    fn value_of(&mut self, register: Register) -> u32 {
        match register {
            Register::Version => VERSION.raw(),
            Register::Control => {
                let mut value = self.control;
                value.set(QueueControl::RUN, self.running);
                value.set(QueueControl::HALT, self.halted());
                value.bits()
            }
            Register::Tail => self.tail,
            Register::Head => match &mut self.head_garbage {
                Some((_, value, left)) => {
                    let value = *value;
                    if count_down(left) {
                        self.head_garbage = None;
                    }
                    value
                }
                None => self.head,
            },
            Register::InterruptEnable => self.enable.bits(),
            // The per-queue copy at 0x1104 is taken to show the same bits (inferred).
            Register::InterruptStatus | Register::QueueInterruptStatus => self.status.bits(),
            Register::Status => u32::from(self.error),
            Register::IrqStatus => u32::from(self.line),
            Register::DmaStatus | Register::DmaReadStatus | Register::DmaWriteStatus => 0,
            other => plain_slot(other).map_or(0, |i| self.plain[i]),
        }
    }

    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        self.counters.mmio_writes += 1;
        let Some(register) = register_at(offset) else {
            self.counters.unknown_accesses += 1;
            return;
        };
        self.counters.writes.add(register);
        match register {
            Register::Tail => self.counters.doorbells += 1,
            Register::Control if value & QueueControl::RUN.bits() != 0 => {
                self.counters.run_writes += 1;
            }
            _ => {}
        }
        if !self.answers() {
            return;
        }
        match register {
            Register::Control => self.write_control(QueueControl::from_bits_retain(value)),
            Register::Tail => self.tail = value,
            Register::Head => {
                self.head = value;
                if let Some(in_flight) = &mut self.in_flight {
                    in_flight.head_written = true;
                }
            }
            Register::InterruptEnable => {
                self.enable = Interrupts::from_bits_retain(value) & Interrupts::KNOWN;
                self.update_line(false);
            }
            Register::InterruptStatus => {
                self.status &= !Interrupts::from_bits_retain(value);
                self.update_line(false);
            }
            Register::Version
            | Register::Status
            | Register::QueueInterruptStatus
            | Register::IrqStatus
            | Register::DmaStatus
            | Register::DmaReadStatus
            | Register::DmaWriteStatus => {}
            other => {
                if let Some(i) = plain_slot(other) {
                    self.plain[i] = value;
                }
            }
        }
    }

    fn write_control(&mut self, value: QueueControl) {
        let run = value.contains(QueueControl::RUN) && !value.contains(QueueControl::HALT);
        self.control = value & !(QueueControl::RUN | QueueControl::HALT);
        if run {
            if !self.sticky_status {
                self.error = 0;
            }
            // A strict engine that finds nothing to do is halted again at once.
            self.running = self.lenient || self.engaged() || self.head != self.tail;
        } else if self.running && self.ignore_halt.is_none() {
            self.running = false;
            if self
                .in_flight
                .and_then(|f| f.stall)
                .is_some_and(|s| s.haltable)
            {
                self.abandon();
            }
            if !self.engaged() && self.head != self.tail {
                self.latch(Interrupts::STOPPED, false);
            }
        }
    }

    /// The descriptor that has been fetched and not finished.
    pub(crate) fn in_flight(&self) -> Option<InFlight> {
        self.in_flight
    }

    /// Whether a descriptor is in the engine.
    fn engaged(&self) -> bool {
        self.in_flight.is_some() || self.busy
    }

    /// What HALT reads.
    fn halted(&self) -> bool {
        !self.running && !self.engaged()
    }

    fn latch(&mut self, bits: Interrupts, lost: bool) {
        self.status |= bits;
        self.update_line(lost);
    }

    fn update_line(&mut self, lost: bool) {
        let asserted = self.status.intersects(self.enable);
        if asserted && !self.line {
            if lost {
                self.counters.interrupts_lost += 1;
            } else {
                self.send();
            }
        }
        self.line = asserted;
    }

    fn send(&mut self) {
        self.counters.interrupts += 1;
        self.messages += 1;
    }

    /// Function-level reset: registers as after power-on, nothing in flight. Faults and counters
    /// stay. False, and nothing changes, if the function does not answer.
    pub(crate) fn reset(&mut self) -> bool {
        if !self.answers() {
            return false;
        }
        self.abandon();
        self.control = QueueControl::empty();
        self.running = false;
        (self.tail, self.head) = (0, 0);
        self.enable = Interrupts::empty();
        self.status = Interrupts::empty();
        self.error = 0;
        self.plain = [0; Register::ALL.len()];
        self.line = false;
        self.messages = 0;
        self.ignore_halt = None;
        self.head_garbage = None;
        self.counters.resets += 1;
        true
    }

    /// Drops the descriptor in flight, and makes a busy step's result void.
    fn abandon(&mut self) {
        self.in_flight = None;
        self.generation = self.generation.wrapping_add(1);
    }

    /// Makes a busy step's result void; its descriptor stays in flight.
    pub(crate) fn interrupt_step(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    // The queue.

    /// Decides what to do, and counts a stalled step.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        if self.busy || !self.answers() {
            return Next::Idle;
        }
        if let Some(in_flight) = &mut self.in_flight {
            let stalled = match &mut in_flight.stall {
                None => false,
                Some(stall) => match &mut stall.left {
                    StallLeft::Ever => true,
                    StallLeft::Until(end) => now < *end,
                    StallLeft::Steps(left) => {
                        let more = *left != 0;
                        *left = left.saturating_sub(1);
                        more
                    }
                },
            };
            if stalled {
                return Next::Stalled;
            }
            in_flight.stall = None;
            return Next::Execute(*in_flight);
        }
        if !self.running {
            return Next::Idle;
        }
        if self.head == self.tail {
            self.running = self.lenient;
            return Next::Idle;
        }
        match Ring::new(self.control, self.head, self.tail) {
            Ok(ring) => Next::Fetch {
                ring,
                head: self.head,
            },
            Err(code) => {
                self.fail(code as u8);
                Next::Broken(code)
            }
        }
    }

    /// Whether [`next`](Self::next) would find something to do now.
    pub(crate) fn has_work(&self) -> bool {
        !self.busy
            && self.answers()
            && (self.in_flight.is_some()
                || self.running && (!self.lenient || self.head != self.tail))
    }

    /// The descriptor at head has been read: faults strike, and it is in flight.
    pub(crate) fn start(
        &mut self,
        ring: Ring,
        head: u32,
        copy: Result<Copy, KnownError>,
        now: Instant,
    ) {
        let mut in_flight = InFlight {
            next_head: ring.next(head),
            copy,
            strike: Strike::default(),
            stall: None,
            // Software may have moved head while the descriptor was being read.
            head_written: self.head != head,
        };
        let sides = copy.map(|c| [c.src, c.dst]);
        let touched = sides.as_ref().map_or(&[][..], |s| s.as_slice());
        if copy.is_ok_and(|c| c.src.overlaps(c.dst)) {
            self.counters.overlaps += 1;
        }
        let mut armed = std::mem::take(&mut self.armed);
        for fault in armed
            .iter_mut()
            .filter_map(|a| a.fires(touched).then_some(a))
        {
            self.counters.faults += 1;
            self.strike(fault.id, &fault.fault.kind, Some(&mut in_flight), now);
        }
        self.armed = armed;
        self.in_flight = Some(in_flight);
    }

    fn strike(
        &mut self,
        id: FaultId,
        kind: &FaultKind,
        in_flight: Option<&mut InFlight>,
        now: Instant,
    ) {
        match *kind {
            FaultKind::AllOnes { reads } => self.gone = Some((id, reads)),
            FaultKind::HeadGarbage { value, reads } => {
                self.head_garbage = Some((id, value, reads));
            }
            FaultKind::IgnoreHalt => self.ignore_halt = Some(id),
            FaultKind::SpuriousInterrupt => {
                self.counters.interrupts_spurious += 1;
                self.send();
            }
            _ => {}
        }
        let Some(in_flight) = in_flight else { return };
        let strike = &mut in_flight.strike;
        match *kind {
            FaultKind::Error { code } => strike.failure = Some((code, 0)),
            FaultKind::PartialWrite { len_bytes, code } => {
                strike.failure = Some((code, len_bytes));
            }
            FaultKind::Unmapped { side } => {
                let code = match side {
                    Side::Source => KnownError::Input0DecodeError,
                    Side::Destination => KnownError::Output0DecodeError,
                };
                strike.failure = Some((code as u8, 0));
            }
            FaultKind::SilentCorruption => strike.corrupt = true,
            FaultKind::Delay { ns } => strike.delay_ns = strike.delay_ns.saturating_add(ns),
            FaultKind::LostInterrupt => strike.lost_interrupt = true,
            FaultKind::Stall { duration, haltable } => {
                let left = match duration {
                    StallFor::Ever => StallLeft::Ever,
                    StallFor::Steps(n) => StallLeft::Steps(n),
                    // A time that is out of the clock's reach is for ever.
                    StallFor::Micros(us) => now
                        .checked_add(Duration::from_micros(us))
                        .map_or(StallLeft::Ever, StallLeft::Until),
                };
                in_flight.stall = Some(Stall {
                    fault: id,
                    left,
                    haltable,
                });
            }
            _ => {}
        }
    }

    /// The descriptor in flight ended.
    pub(crate) fn finish(&mut self, ended: Ended, cost_ns: u64) {
        let Some(in_flight) = self.in_flight.take() else {
            return;
        };
        self.virtual_ns = self.virtual_ns.saturating_add(cost_ns);
        let len_bytes = match ended {
            Ended::Done { len_bytes } => len_bytes,
            Ended::Failed { code, done_bytes } => {
                self.counters.partial_bytes += done_bytes;
                if self.head_past_error && !in_flight.head_written {
                    self.head = in_flight.next_head;
                }
                self.fail(code);
                return;
            }
        };
        self.counters.descriptors += 1;
        self.counters.bytes += len_bytes;
        if !in_flight.head_written {
            self.head = in_flight.next_head;
        }
        let (interrupt, stop) = in_flight
            .copy
            .map_or((false, false), |c| (c.interrupt, c.stop));
        let mut bits = Interrupts::empty();
        bits.set(Interrupts::COMPLETION, interrupt);
        if self.head == self.tail {
            self.counters.drained += 1;
            bits |= Interrupts::EMPTY;
            if !self.lenient {
                self.running = false;
                bits |= Interrupts::STOPPED;
            }
        } else if !self.running {
            // A halt that was asked for during the descriptor.
            bits |= Interrupts::STOPPED;
        }
        if stop {
            self.running = false;
            bits |= Interrupts::STOPPED;
        }
        self.latch(bits, in_flight.strike.lost_interrupt);
    }

    fn fail(&mut self, code: u8) {
        // As the register would keep it.
        self.error = ErrorCode::from_status(u32::from(code)).raw();
        self.counters.errors += 1;
        self.running = false;
        self.latch(Interrupts::ERROR | Interrupts::STOPPED, false);
    }

    // Faults.

    pub(crate) fn inject(&mut self, fault: Fault, now: Instant) -> FaultId {
        let id = FaultId(self.next_fault);
        self.next_fault += 1;
        let device_wide = matches!(
            fault.kind,
            FaultKind::AllOnes { .. }
                | FaultKind::HeadGarbage { .. }
                | FaultKind::IgnoreHalt
                | FaultKind::SpuriousInterrupt
        );
        if fault.trigger == Trigger::Now && device_wide {
            self.counters.faults += 1;
            self.strike(id, &fault.kind, None, now);
        } else {
            self.armed.push(Armed::new(id, fault));
        }
        id
    }

    pub(crate) fn remove_faults(&mut self, which: impl Fn(FaultId) -> bool) {
        self.armed.retain(|a| !which(a.id));
        self.gone = self.gone.filter(|g| !which(g.0));
        self.head_garbage = self.head_garbage.filter(|g| !which(g.0));
        self.ignore_halt = self.ignore_halt.filter(|&id| !which(id));
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.stall = in_flight.stall.filter(|s| !which(s.fault));
        }
    }

    pub(crate) fn faults(&self) -> Vec<(FaultId, Fault)> {
        let armed = self.armed.iter();
        armed.map(|a| (a.id, a.fault.clone())).collect()
    }
}

fn register_at(offset: u64) -> Option<Register> {
    let offset = usize::try_from(offset).ok()?;
    // Cheap way out for a guest that sweeps the BAR.
    (offset < BAR_LEN_BYTES).then(|| Register::from_offset(offset))?
}

fn plain_slot(register: Register) -> Option<usize> {
    Register::ALL.iter().position(|&r| r == register)
}

/// Counts one use; true if it was the last.
fn count_down(left: &mut Option<u64>) -> bool {
    match left {
        None => false,
        Some(n) => {
            *n = n.saturating_sub(1);
            *n == 0
        }
    }
}
