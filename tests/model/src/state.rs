//! The registers and the queue as a state machine, without memory, threads or time.

use std::time::{Duration, Instant};

use ptdma::regs::{ALL_ONES, BAR_LEN_BYTES, Interrupts, QueueControl, Register, Version};
use ptdma::{ErrorCode, KnownError};

use crate::bus::Side;
use crate::counters::Counters;
use crate::decode::{Copy, Effect, Ring};
use crate::fault::{Armed, Fault, FaultId, FaultKind, StallFor, Trigger};
use crate::forks::{self, Forks};

/// What [`Register::Version`] reads: one queue, version 5 as in the CCP of the same generation
/// (inferred; no driver looks).
const VERSION: Version = Version::from_raw((1 << 15) | 5);

/// Stands for the reset among the causes of an absence, so that clearing the faults ends that, too.
const RESET: FaultId = FaultId(u64::MAX);
/// Stands for the descriptor itself among the causes of a stall.
const DESCRIPTOR: FaultId = FaultId(u64::MAX - 1);

/// The job status in bits 9:7 of the status register, where there is one.
const JOB_SHIFT: u32 = 7;
const JOB_IDLE: u32 = 0;
const JOB_WAITING: u32 = 1;
const JOB_ACTIVE: u32 = 2;
const JOB_ERROR: u32 = 4;
const JOB_HALTING: u32 = 5;

/// How long something lasts.
#[derive(Clone, Copy, Debug)]
enum Left {
    Ever,
    Reads(u64),
    Until(Instant),
}

impl Left {
    /// A time that is out of the clock's reach is for ever.
    fn of(span: forks::Span) -> Self {
        match span {
            forks::Span::Reads(n) => Self::Reads(u64::from(n)),
            forks::Span::Micros(us) => Instant::now()
                .checked_add(Duration::from_micros(u64::from(us)))
                .map_or(Self::Ever, Self::Until),
        }
    }

    fn is_over(self) -> bool {
        match self {
            Self::Ever => false,
            Self::Reads(left) => left == 0,
            Self::Until(end) => Instant::now() >= end,
        }
    }

    /// Counts one read.
    fn read(&mut self) {
        if let Self::Reads(left) = self {
            *left = left.saturating_sub(1);
        }
    }
}

/// How the faults that struck a descriptor change it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Strike {
    /// Fails with this code after moving this number of bytes.
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
    forks: Forks,
    /// Whether the function may use the bus.
    bus_master: bool,
    /// Control without RUN and HALT.
    control: QueueControl,
    /// Whether the engine walks the ring when there is work.
    running: bool,
    /// What RUN reads.
    run_reads: bool,
    /// HALT, where it is a latch that an event sets.
    halt_latch: bool,
    /// Whether a write of control has cleared HALT.
    halt_cleared: bool,
    /// Whether RUN was taken away from the engine while it was idle, and HALT does not tell.
    unread_stop: bool,
    /// Whether RUN was taken away while a descriptor was in the engine, which goes on.
    stop_asked: bool,
    /// For how long HALT still reads 1 after RUN was written.
    halt_late: Option<Left>,
    /// Whether the engine stands because of an error.
    failed: bool,
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
    /// Whether `status & enable` was non-zero at the last update.
    line: bool,
    /// Messages to deliver once the lock is released.
    pub(crate) messages: u64,
    armed: Vec<Armed>,
    gone: Option<(FaultId, Left)>,
    head_garbage: Option<(FaultId, u32, Option<u64>)>,
    ignore_halt: Option<FaultId>,
    next_fault: u64,
    pub(crate) counters: Counters,
    pub(crate) virtual_ns: u64,
}

impl State {
    pub(crate) fn new(forks: Forks) -> Self {
        Self {
            forks,
            bus_master: true,
            control: QueueControl::empty(),
            running: false,
            run_reads: false,
            halt_latch: halts_after_power_on(forks),
            halt_cleared: false,
            unread_stop: false,
            stop_asked: false,
            halt_late: None,
            failed: false,
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
        self.gone.is_none_or(|(_, left)| left.is_over())
    }

    /// What kind of engine it is.
    pub(crate) fn forks(&self) -> Forks {
        self.forks
    }

    /// Makes it another kind of engine, from now on.
    pub(crate) fn set_forks(&mut self, forks: Forks) {
        self.forks = forks;
    }

    /// Whether the function may use the bus.
    pub(crate) fn bus_master(&self) -> bool {
        self.bus_master
    }

    pub(crate) fn set_bus_master(&mut self, on: bool) {
        self.bus_master = on;
        if !on {
            self.interrupt_step();
        }
    }

    /// Whether the engine waits until it may use the bus again.
    fn held(&self) -> bool {
        !self.bus_master && self.forks.bus_master == forks::BusMaster::Holds
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
        if self.answers() {
            self.gone = None;
            return false;
        }
        if let Some((_, left)) = &mut self.gone {
            left.read();
        }
        true
    }

    fn value_of(&mut self, register: Register) -> u32 {
        match register {
            Register::Version => VERSION.raw(),
            Register::Control => {
                let mut value = self.control;
                value.set(QueueControl::RUN, self.run_reads);
                value.set(QueueControl::HALT, self.read_halt());
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
            Register::Status => {
                let value = u32::from(self.error) | self.job_status() << JOB_SHIFT;
                if self.forks.error_code == forks::ErrorCode::ClearedByRead {
                    self.error = 0;
                }
                value
            }
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
        if let forks::RingLimit::ReadsBack(log2) = self.forks.ring
            && self.control.entries() > 1 << log2
        {
            self.control = self.control.with_size(u32::from(log2));
        }
        if self.forks.control_write == forks::ControlWrite::Clears {
            self.halt_cleared = true;
        }
        if run {
            self.write_run();
        } else if self.ignore_halt.is_none() {
            self.take_run_away();
        }
    }

    fn write_run(&mut self) {
        if self.forks.error_code == forks::ErrorCode::ClearedByRun {
            self.error = 0;
        }
        self.failed = false;
        self.unread_stop = false;
        self.stop_asked = false;
        self.halt_latch = false;
        self.running = true;
        self.run_reads = true;
        if let forks::Late::For(span) = self.forks.late {
            self.halt_late = Some(Left::of(span));
        }
        // An engine that needs RUN for every burst and finds nothing to do is halted at once.
        if self.forks.restart == forks::Restart::Run && !self.engaged() && self.head == self.tail {
            self.drained();
        }
    }

    fn take_run_away(&mut self) {
        let ran = self.run_reads || self.running;
        let walked = std::mem::replace(&mut self.running, false);
        self.run_reads = false;
        let stall = self.in_flight.and_then(|f| f.stall);
        if walked && stall.is_some_and(|s| s.haltable) {
            self.abandon();
        }
        if self.engaged() {
            self.stop_asked |= ran;
        } else if walked && self.head != self.tail {
            self.stands(forks::Halt::OnStop);
            self.latch(Interrupts::STOPPED, false);
        } else if ran {
            match self.forks.idle_stop {
                forks::IdleStop::Reads => self.stands(forks::Halt::OnStop),
                forks::IdleStop::Nothing => self.unread_stop |= walked,
            }
        }
    }

    /// The ring was drained: as far as the forks say so the engine halts.
    fn drained(&mut self) {
        if self.forks.restart == forks::Restart::Run {
            self.running = false;
        }
        if matches!(self.forks.run, forks::Run::Both | forks::Run::OnDrain) {
            self.run_reads = false;
        }
        self.stands(forks::Halt::OnDrain);
    }

    /// The engine stands still, for a reason: HALT as a latch tells of one of them.
    fn stands(&mut self, why: forks::Halt) {
        self.halt_cleared = false;
        self.unread_stop = false;
        if self.forks.halt == why {
            self.halt_latch = true;
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
    fn read_halt(&mut self) -> bool {
        let late = match &mut self.halt_late {
            Some(left) if !left.is_over() => {
                left.read();
                true
            }
            late => {
                *late = None;
                false
            }
        };
        let halts = match self.forks.halt {
            forks::Halt::Standing => !self.running && !self.engaged() && !self.unread_stop,
            forks::Halt::NotBusy => !self.busy_now(),
            forks::Halt::OnStop | forks::Halt::OnError | forks::Halt::OnDrain => self.halt_latch,
            forks::Halt::Never => return false,
        };
        late || halts && !self.halt_cleared
    }

    /// Whether there is a descriptor in the engine, or one that it is about to fetch.
    fn busy_now(&self) -> bool {
        self.engaged() || self.running && self.head != self.tail
    }

    /// What bits 9:7 of the status register read.
    fn job_status(&self) -> u32 {
        if self.forks.job_status == forks::JobStatus::Absent {
            return 0;
        }
        let stalled = self.in_flight.is_some_and(|f| f.stall.is_some());
        match (self.busy_now(), self.stop_asked) {
            (true, true) => JOB_HALTING,
            (true, false) if stalled || self.held() => JOB_WAITING,
            (true, false) => JOB_ACTIVE,
            (false, _) if self.failed => JOB_ERROR,
            (false, _) => JOB_IDLE,
        }
    }

    fn latch(&mut self, bits: Interrupts, lost: bool) {
        self.status |= match self.forks.latch {
            forks::Latch::Always => bits,
            forks::Latch::Enabled => bits & self.enable,
        };
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
    /// stay. False, and nothing changes, if the function does not answer or has no reset.
    pub(crate) fn reset(&mut self) -> bool {
        if !self.answers() || self.forks.reset == forks::Reset::Absent {
            return false;
        }
        self.power_on();
        self.gone = match self.forks.reset {
            forks::Reset::Works | forks::Reset::Absent => None,
            forks::Reset::Lost => Some((RESET, Left::Ever)),
            forks::Reset::Away(span) => Some((RESET, Left::of(span))),
        };
        true
    }

    /// As after power-on, but for faults and counters.
    pub(crate) fn power_on(&mut self) {
        self.abandon();
        self.control = QueueControl::empty();
        self.running = false;
        self.run_reads = false;
        self.halt_latch = halts_after_power_on(self.forks);
        self.halt_cleared = false;
        self.unread_stop = false;
        self.stop_asked = false;
        self.halt_late = None;
        self.failed = false;
        (self.tail, self.head) = (0, 0);
        self.enable = Interrupts::empty();
        self.status = Interrupts::empty();
        self.error = 0;
        self.plain = [0; Register::ALL.len()];
        self.line = false;
        self.messages = 0;
        self.ignore_halt = None;
        self.head_garbage = None;
        self.gone = self.gone.filter(|(why, _)| *why != RESET);
        self.counters.resets += 1;
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
        if self.busy || !self.answers() || self.held() {
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
            // Software has moved one of the two while the engine was to run.
            if self.forks.restart == forks::Restart::Run {
                self.drained();
            }
            return Next::Idle;
        }
        match Ring::new(self.control, self.head, self.tail, self.forks.ring) {
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
            && !self.held()
            && (self.in_flight.is_some()
                || self.running
                    && (self.forks.restart == forks::Restart::Run || self.head != self.tail))
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
        self.halt_latch = false;
        if self.running {
            // An engine that goes on by the tail shows that it runs.
            self.run_reads = true;
        }
        if copy.is_ok_and(|c| c.effect == Effect::Hangs) {
            in_flight.stall = Some(Stall {
                fault: DESCRIPTOR,
                left: StallLeft::Ever,
                haltable: false,
            });
        }
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
            FaultKind::AllOnes { reads } => {
                self.gone = Some((id, reads.map_or(Left::Ever, Left::Reads)));
            }
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
                if !in_flight.head_written {
                    self.head = match self.forks.error_head {
                        forks::ErrorHead::At => self.head,
                        forks::ErrorHead::Past => in_flight.next_head,
                        forks::ErrorHead::Tail => self.tail,
                    };
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
        let needs_eom = self.forks.completion == forks::Completion::IocEom;
        let (interrupt, stop) = in_flight.copy.map_or((false, false), |c| {
            (c.interrupt && (c.end || !needs_eom), c.stop)
        });
        let mut bits = Interrupts::empty();
        bits.set(Interrupts::COMPLETION, interrupt);
        if self.head == self.tail {
            self.counters.drained += 1;
            bits |= Interrupts::EMPTY;
            self.drained();
            bits.set(Interrupts::STOPPED, !self.running);
        } else if !self.running {
            // A halt that was asked for during the descriptor.
            bits |= Interrupts::STOPPED;
        }
        if stop {
            self.running = false;
            if matches!(self.forks.run, forks::Run::Both | forks::Run::OnDrain) {
                self.run_reads = false;
            }
            self.stands(forks::Halt::OnDrain);
            bits |= Interrupts::STOPPED;
        }
        self.end_stop();
        self.latch(bits, in_flight.strike.lost_interrupt);
    }

    /// A stop that was asked for during a descriptor has taken effect.
    fn end_stop(&mut self) {
        if std::mem::take(&mut self.stop_asked) {
            self.stands(forks::Halt::OnStop);
        }
    }

    fn fail(&mut self, code: u8) {
        // As the register would keep it.
        self.error = ErrorCode::from_status(u32::from(code)).raw();
        self.counters.errors += 1;
        self.running = false;
        self.failed = true;
        if matches!(self.forks.run, forks::Run::Both | forks::Run::OnError) {
            self.run_reads = false;
        }
        self.stands(forks::Halt::OnError);
        self.end_stop();
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
            // What the descriptor itself does is no fault to remove.
            let stays = |s: &Stall| s.fault == DESCRIPTOR || !which(s.fault);
            in_flight.stall = in_flight.stall.filter(stays);
        }
    }

    pub(crate) fn faults(&self) -> Vec<(FaultId, Fault)> {
        let armed = self.armed.iter();
        armed.map(|a| (a.id, a.fault.clone())).collect()
    }
}

/// Whether HALT, where it is a latch, reads 1 after power-on: software of CCP takes it to.
fn halts_after_power_on(forks: Forks) -> bool {
    matches!(forks.halt, forks::Halt::OnStop | forks::Halt::OnDrain)
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
