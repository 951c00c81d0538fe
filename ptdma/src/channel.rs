//! One command queue: bring-up, submission, the doorbell.
//!
//! Completion is in `completion.rs`, stopping and recovery in `lifecycle.rs`.

use core::fmt;

use crate::addr::DmaAddr;
use crate::cookie::Cookie;
use crate::error::{BringUpError, Fault, SubmitError};
use crate::io::{RegisterIo, RingMemory};
use crate::regs::{
    ALL_ONES, ClockGate, Config, Interrupts, QUEUE_PRIORITY_DEFAULT, QueueControl, Register,
    Version,
};
use crate::request::{CopyRequest, Limits, Notify, RequestError};
use crate::ring::Ring;
use crate::stats::Stats;
use crate::traits::{EngineTraits, Restart};

/// How the owner learns of completions.
///
/// The function's own enable register has ERROR on in both cases. What an engine does with an error
/// whose interrupt is off is not known. An error that is not latched would be a copy that never
/// was.
///
/// The set is closed: an owner polls or is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Signalling {
    /// The owner polls. MSI-X and MSI are off, and bit 10 of the command register is set (INTx
    /// off). An owner who leaves them on takes a message for each error and ignores it.
    #[default]
    Polled,
    /// Descriptors that ask for it interrupt, and so do errors.
    Interrupts,
}

/// Where the head register points after a descriptor failed.
///
/// Nobody has seen it on silicon. The manual of the sibling, CCP version 5, says *at the failing
/// descriptor*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ErrorHead {
    /// The place is not known. Every look that finds progress also reads the interrupt status
    /// before it believes the head, and a register that a reset would have cleared.
    ///
    /// After an error, the engine runs again what is not known to be good, one descriptor at a
    /// time. The next error is then of that one descriptor, wherever the head is.
    ///
    /// A lone descriptor that failed and has the head at its own slot proves
    /// [`AtFailing`](Self::AtFailing), which is kept.
    #[default]
    Unknown,
    /// At the failing descriptor; completion then needs nothing but the head register.
    AtFailing,
    /// One past the failing descriptor. Nothing that the engine does proves this, so it takes an
    /// owner who knows.
    PastFailing,
}

impl fmt::Display for ErrorHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "head after an error not known",
            Self::AtFailing => "head stays at a failure",
            Self::PastFailing => "head passes a failure",
        })
    }
}

/// How a channel is set up.
///
/// ```
/// use ptdma::{ChannelConfig, Signalling};
/// let mut config = ChannelConfig::default();
/// config.signalling = Signalling::Interrupts;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ChannelConfig {
    /// How completions are signalled.
    pub signalling: Signalling,
    /// What one descriptor may ask for.
    pub limits: Limits,
    /// Where the engine's head stays on an error, if the owner knows.
    pub error_head: ErrorHead,
    /// What sets the drained queue going again, if the owner knows.
    pub restart: Restart,
    /// Cookie of the first descriptor. A channel that replaces another (after a function reset,
    /// say) goes on where that one ended, so that no cookie ever names two descriptors.
    pub first_cookie: Cookie,
}

/// An answer of [`Channel::submit_all`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Submitted {
    /// Cookie of the first copy; those of the others follow it.
    pub first: Cookie,
    /// How many copies were submitted.
    pub count: usize,
    /// Bytes of those.
    pub bytes: u64,
    /// Why the next one was not, or would not be.
    pub error: Option<SubmitError>,
}

impl Submitted {
    /// Says why a copy is refused: apart, so that those that are in order carry nothing along.
    #[cold]
    #[inline(never)]
    fn refuse(&mut self, src: DmaAddr, dst: DmaAddr, len_bytes: u64, limits: Limits) {
        let refused = CopyRequest::new(src, dst, len_bytes, limits).err();
        self.error = refused.map(SubmitError::Request);
    }
}

/// Whether the channel takes and runs work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    Paused,
    Faulted(Fault),
}

/// One PTDMA command queue and the ring that feeds it.
///
/// The life cycle has the words of dmaengine. [`bring_up`](Self::bring_up) begins it. Any number of
/// [`submit`](Self::submit) follow, a cookie each, then one [`issue_pending`](Self::issue_pending),
/// the doorbell. [`poll`](Self::poll) or [`handle_interrupt`](Self::handle_interrupt) say what is
/// done. [`shutdown`](Self::shutdown) ends it.
///
/// A channel that is dropped without a successful shutdown forgets (leaks) its ring memory: the
/// engine may still fetch from it.
pub struct Channel<R, M> {
    pub(crate) regs: R,
    pub(crate) ring: Ring<M>,
    pub(crate) state: State,
    /// `submitted` is kept as what the next cookie's number lacks to it: cookies count the rest.
    pub(crate) stats: Stats,
    /// Polls in a row without progress, see `completion.rs`.
    pub(crate) idle_polls: u32,
    /// What starts the engine: SIZE, the ring's high half, and RUN.
    pub(crate) run: u32,
    pub(crate) limits: Limits,
    /// Descriptors, from the oldest on, that are run one at a time, see `failure.rs`.
    pub(crate) replay_left: u16,
    /// Restarts in a row without progress.
    pub(crate) restarts: u8,
    pub(crate) signalling: Signalling,
    pub(crate) traits: EngineTraits,
    /// Whether RUN was written since the registers were programmed: before that the engine cannot
    /// be in this ring.
    pub(crate) started: bool,
    /// Whether RUN was taken away after it was written last.
    pub(crate) run_taken: bool,
    /// Whether HALT has read 0 since RUN was written last. Before that, a 1 may be an old one.
    pub(crate) halt_fell: bool,
    /// Whether RUN has read 1 since it was written last. Before that, a 0 may be what it always
    /// reads.
    pub(crate) run_seen: bool,
    /// Whether RUN was written to an engine that may have been at work: it may have failed just
    /// before, and gone on. Until the interrupt status was seen without an error, an error need
    /// not mean that the engine stands.
    pub(crate) raced: bool,
    /// Whether the driver has cleared an error of which it does not know yet what failed. What the
    /// engine was given counts as copied only after it was run again.
    pub(crate) unsettled: bool,
    /// Whether the interrupt enable register reads back.
    pub(crate) enable_reads: bool,
    /// Whether RUN is set in an engine that goes on by the tail alone.
    pub(crate) armed: bool,
    /// Whether the head alone does not say what was copied.
    pub(crate) cautious: bool,
    /// Whether the walk over the ring has begun and was not watched to its end. The channel then
    /// uses no more of the ring than what is proven.
    pub(crate) unwalked: bool,
    /// Whether the engine was set walking over slots that count as nobody's, and was not seen to
    /// arrive.
    pub(crate) walking: bool,
}

// What the channel holds besides its ring memory must stay small: issue and design budget 1 KiB,
// and a machine has up to 64 functions.
const _: () = assert!(core::mem::size_of::<Channel<usize, [usize; 4]>>() <= 256);

/// How often bring-up and error recovery look whether the engine has halted before they give up.
///
/// Halting takes as long as the descriptor in work: 144 us for 2 MiB at 14.6 GB/s. An engine that
/// reported an error has none in work. A look is two reads of registers, each a round trip of 100
/// ns to about a microsecond. The bound is thus 300 us to 3 ms. More would only keep interrupts
/// off: the interrupt entry point waits here too. The value bounds steps without a caller's clock,
/// and is not tuned. An engine that needs longer has a fault, and [`Channel::terminate`] goes on
/// with the time that its caller gives.
pub(crate) const HALT_LOOKS: u32 = 1_500;

/// How many looks in a row find the head at one slot before the engine counts as at rest. The bound
/// serves engines that cannot prove with HALT that they stand. The looks alone prove nothing. The
/// engine has reported an error besides, behind which it does not go on (the sibling's manual), or
/// says HALT while RUN is off.
///
/// What this covers is the delay with which a head or a HALT follows what the engine does: some
/// microseconds. 64 looks of two reads each are 12 us at the least, and 64 us or more on most
/// machines.
pub(crate) const REST_LOOKS: u32 = 64;

pub(crate) fn has_halted(control: u32) -> bool {
    control & QueueControl::HALT.bits() != 0
}

pub(crate) fn has_run(control: u32) -> bool {
    control & QueueControl::RUN.bits() != 0
}

impl<R: RegisterIo, M: RingMemory> Channel<R, M> {
    /// Brings the function's queue up on `memory` and makes it ready for work.
    ///
    /// The order of register writes is the one that Linux uses on silicon. A queue that a
    /// previous owner left running is halted first.
    ///
    /// # Errors
    ///
    /// [`BringUpError`], with registers and memory given back. The engine was not told of that
    /// memory, or was never set running on it.
    pub fn bring_up(
        regs: R,
        memory: M,
        config: ChannelConfig,
    ) -> Result<Self, (BringUpError, R, M)> {
        let ring = match Ring::new(memory, config.first_cookie) {
            Ok(ring) => ring,
            Err((e, memory)) => return Err((BringUpError::Ring(e), regs, memory)),
        };
        let entries = ring.entries() as u16;
        let mut channel = Self {
            regs,
            ring,
            state: State::Running,
            stats: Stats {
                submitted: config.first_cookie.number().wrapping_neg(),
                ..Stats::default()
            },
            idle_polls: 0,
            run: 0,
            limits: config.limits,
            replay_left: 0,
            restarts: 0,
            signalling: config.signalling,
            traits: EngineTraits {
                restart: config.restart,
                error_head: config.error_head,
                ring_entries: entries,
                memory_entries: entries,
                ..EngineTraits::default()
            },
            started: false,
            run_taken: false,
            halt_fell: false,
            run_seen: false,
            raced: false,
            unsettled: false,
            enable_reads: false,
            armed: false,
            cautious: false,
            unwalked: false,
            walking: false,
        };
        match channel.take_over() {
            Ok(()) => Ok(channel),
            Err(e) => {
                let Self { regs, ring, .. } = channel;
                Err((e, regs, ring.into_memory()))
            }
        }
    }

    /// Makes sure of the engine and programs it. Also the way back after a reset.
    pub(crate) fn take_over(&mut self) -> Result<(), BringUpError> {
        if self.regs.read(Register::Version) == ALL_ONES {
            return Err(BringUpError::DeviceGone);
        }
        self.stop_previous_owner()?;
        self.program()
    }

    /// Programs every register for the ring as it stands. The engine was proved to stand.
    pub(crate) fn program(&mut self) -> Result<(), BringUpError> {
        let regs = &self.regs;
        regs.write(Register::Config, Config::VHB_ENABLE.bits());
        regs.write(Register::QueuePriority, QUEUE_PRIORITY_DEFAULT);
        regs.write(Register::CommandTimeout, 0);
        let gate = ClockGate::DYNAMIC | ClockGate::ON_OFF_DELAY;
        regs.write(Register::ClockGate, gate.bits());
        regs.write(Register::RequestId, 0);
        regs.write(Register::InterruptEnable, 0);
        regs.write(Register::Control, 0);
        // Linux reads both before it clears the interrupt status, to let go of stale values.
        let _ = regs.read(Register::QueueInterruptStatus);
        let _ = regs.read(Register::Status);
        regs.write(Register::InterruptStatus, Interrupts::KNOWN.bits());

        if self.unwalked {
            self.unwalked = false;
            self.shorten(crate::find_out::PROVEN_ENTRIES);
        }
        self.program_ring()?;
        self.enable_interrupts()?;
        self.state = State::Running;
        Ok(())
    }

    /// Tells the queue of the ring, whose counters say that nothing is outstanding. RUN is off
    /// before and after.
    pub(crate) fn program_ring(&mut self) -> Result<(), BringUpError> {
        let next = self.ring.next_register_value();
        self.run = QueueControl::RUN
            .with_size(self.ring.log2_entries())
            .with_base_high(self.ring.base_high())
            .bits();
        let regs = &self.regs;
        let size = QueueControl::empty().with_size(self.ring.log2_entries());
        regs.write(Register::Control, size.bits());
        regs.write(Register::Tail, next);
        regs.write(Register::Head, next);
        regs.write(Register::Control, self.run & !QueueControl::RUN.bits());
        // A function that does not hold its head would make every completion a guess. One that does
        // not hold the ring's fields would always look as if it had been reset.
        self.accepts(Register::Head, next)?;
        self.accepts_size()?;
        self.idle_polls = 0;
        self.restarts = 0;
        self.replay_left = 0;
        self.started = false;
        self.walking = false;
        self.run_taken = false;
        self.halt_fell = false;
        self.run_seen = false;
        self.raced = false;
        self.unsettled = false;
        self.armed = false;
        self.set_caution();
        Ok(())
    }

    /// Whether a register holds what was just written to it.
    fn accepts(&self, register: Register, wrote: u32) -> Result<(), BringUpError> {
        match self.regs.read(register) {
            reads if reads == wrote => Ok(()),
            ALL_ONES if self.regs.read(Register::Version) == ALL_ONES => {
                Err(BringUpError::DeviceGone)
            }
            reads => Err(BringUpError::NotAccepted {
                offset: register.offset(),
                wrote,
                reads,
            }),
        }
    }

    /// Whether control holds the ring's fields. A function that takes shorter rings only may say
    /// so there: then the ring is one of those.
    fn accepts_size(&mut self) -> Result<(), BringUpError> {
        let wrote = self.run & !QueueControl::RUN.bits();
        let reads = self.regs.read(Register::Control);
        if self.knows_ring(reads) {
            return Ok(());
        }
        let reads_back = QueueControl::from_bits_retain(reads);
        let entries = usize::try_from(reads_back.entries()).unwrap_or(usize::MAX);
        let is_shorter = reads != ALL_ONES
            && reads_back.base_high() == self.ring.base_high()
            && entries < self.ring.entries();
        if is_shorter && self.shorten(entries) {
            return self.program_ring();
        }
        match reads {
            ALL_ONES => Err(BringUpError::DeviceGone),
            _ => Err(BringUpError::NotAccepted {
                offset: Register::Control.offset(),
                wrote,
                reads,
            }),
        }
    }

    /// Uses the first entries of the ring only; with nothing outstanding. False if that cannot be.
    pub(crate) fn shorten(&mut self, entries: usize) -> bool {
        let before = self.ring.entries();
        self.ring.shorten(entries);
        self.traits.ring_entries = self.ring.entries() as u16;
        self.ring.entries() < before
    }

    /// Writes control with RUN.
    #[inline]
    pub(crate) fn start(&mut self) {
        self.started = true;
        self.run_taken = false;
        self.halt_fell = false;
        self.run_seen = false;
        self.armed = self.traits.restart == Restart::ByTail;
        self.regs.write(Register::Control, self.run);
    }

    /// Writes control without RUN.
    pub(crate) fn take_run(&mut self) {
        self.run_taken = true;
        self.armed = false;
        self.regs
            .write(Register::Control, self.run & !QueueControl::RUN.bits());
    }

    /// Reads control, and notes whether HALT has fallen and RUN can be read.
    pub(crate) fn read_control(&mut self) -> u32 {
        let control = self.regs.read(Register::Control);
        if control != ALL_ONES {
            self.halt_fell |= !has_halted(control);
            self.run_seen |= has_run(control);
        }
        control
    }

    /// Whether the engine took RUN away itself, which it does when it has stopped.
    pub(crate) fn has_stopped(&self, control: u32) -> bool {
        self.run_seen && !self.run_taken && !has_run(control)
    }

    /// Decides whether the head alone says what was copied.
    pub(crate) fn set_caution(&mut self) {
        self.cautious =
            self.traits.error_head != ErrorHead::AtFailing || self.replay_left > 0 || self.raced;
    }

    /// Switches the channel's interrupts on. A register that does not read back is taken for one
    /// that never does, unless the function is out of reach.
    pub(crate) fn enable_interrupts(&mut self) -> Result<(), BringUpError> {
        // Not STOPPED and EMPTY: an engine that halts when it has drained would raise one more
        // interrupt for every burst.
        let enable = match self.signalling {
            Signalling::Polled => Interrupts::ERROR,
            Signalling::Interrupts => Interrupts::COMPLETION | Interrupts::ERROR,
        };
        self.regs.write(Register::InterruptEnable, enable.bits());
        match self.regs.read(Register::InterruptEnable) {
            ALL_ONES => Err(BringUpError::DeviceGone),
            reads => {
                self.enable_reads = reads == enable.bits();
                Ok(())
            }
        }
    }

    /// Halts an engine that somebody else left running (a previous kernel, firmware).
    ///
    /// What RUN reads says nothing: whoever gave up on stopping that engine has taken RUN away,
    /// and the engine may still be in a descriptor. A drained queue is at rest. Any other has to
    /// say HALT, with RUN taken away, and its head has to stay where it is.
    fn stop_previous_owner(&self) -> Result<(), BringUpError> {
        let regs = &self.regs;
        let control = regs.read(Register::Control);
        let mut head = regs.read(Register::Head);
        if head == regs.read(Register::Tail) {
            return Ok(());
        }
        let stop = QueueControl::from_bits_retain(control).difference(QueueControl::RUN);
        regs.write(Register::Control, stop.bits());
        let mut at_rest = 0_u32;
        for _ in 0..HALT_LOOKS {
            let raw = regs.read(Register::Control);
            if raw == ALL_ONES {
                return Err(BringUpError::DeviceGone);
            }
            let now = regs.read(Register::Head);
            at_rest = if has_halted(raw) && now == head {
                at_rest.saturating_add(1)
            } else {
                0
            };
            head = now;
            if at_rest >= REST_LOOKS {
                return Ok(());
            }
        }
        let control = regs.read(Register::Control);
        Err(BringUpError::StillRunning { control })
    }

    /// Whether a value of the control register holds what the queue was programmed with. It does
    /// not after a reset, which leaves zeros.
    pub(crate) fn knows_ring(&self, control: u32) -> bool {
        let fields = QueueControl::SIZE.union(QueueControl::BASE_HIGH).bits();
        (control ^ self.run) & fields == 0
    }

    /// Checks a copy against this channel's limits: the first step, `prep_dma_memcpy` in
    /// dmaengine's words. Has no effect on the channel.
    ///
    /// # Errors
    ///
    /// [`RequestError`], naming the value that is wrong.
    #[inline]
    pub fn prep_copy(
        &self,
        src: DmaAddr,
        dst: DmaAddr,
        len_bytes: u64,
    ) -> Result<CopyRequest, RequestError> {
        CopyRequest::new(src, dst, len_bytes, self.limits)
    }

    /// Puts a checked copy into the next slot of the ring. The engine does not see it before
    /// [`issue_pending`](Self::issue_pending).
    ///
    /// From here until the cookie is retired, or the channel was proved stopped, source and
    /// destination belong to the engine.
    ///
    /// # Errors
    ///
    /// [`SubmitError`]; nothing was changed. A request that was checked against wider limits than
    /// this channel's is refused here.
    #[inline]
    pub fn submit(&mut self, request: &CopyRequest, notify: Notify) -> Result<Cookie, SubmitError> {
        if let State::Faulted(fault) = self.state {
            return Err(SubmitError::Faulted(fault));
        }
        let len_bytes = request.len_bytes();
        if len_bytes > self.limits.max_len_bytes() {
            return Err(SubmitError::Request(RequestError::TooLong {
                len_bytes: u64::from(len_bytes),
                max_len_bytes: self.limits.max_len_bytes(),
            }));
        }
        match self.ring.fill(request.descriptor(notify)) {
            Some(cookie) => {
                self.stats.submitted_bytes = self
                    .stats
                    .submitted_bytes
                    .wrapping_add(u64::from(len_bytes));
                Ok(cookie)
            }
            None => Err(SubmitError::RingFull {
                capacity: self.ring.capacity(),
            }),
        }
    }

    /// [`submit`](Self::submit) for many copies, each given as source, destination and length in
    /// bytes. Looking once at what is the same for all halves the instructions for each.
    ///
    /// Ends at the first copy that is refused, or when the ring is full. A copy for which there is
    /// no slot is not taken from `copies`. With a `mark`, the copy with that index interrupts on
    /// completion.
    #[inline]
    pub fn submit_all(
        &mut self,
        copies: impl Iterator<Item = (DmaAddr, DmaAddr, u64)>,
        mark: Option<usize>,
    ) -> Submitted {
        let mut submitted = Submitted {
            first: self.ring.next(),
            count: 0,
            bytes: 0,
            error: None,
        };
        if let State::Faulted(fault) = self.state {
            submitted.error = Some(SubmitError::Faulted(fault));
            return submitted;
        }
        let limits = self.limits;
        let mut bytes = 0_u64;
        let count = self.ring.fill_all(copies, |(src, dst, len_bytes)| {
            let Ok(request) = CopyRequest::new(src, dst, len_bytes, limits) else {
                submitted.refuse(src, dst, len_bytes, limits);
                return None;
            };
            bytes = bytes.wrapping_add(len_bytes);
            Some(request.descriptor(Notify::Silent))
        });
        if let Some(mark) = mark.filter(|&mark| mark < count) {
            self.ring.flag(submitted.first.after(mark as u64));
        }
        submitted.count = count;
        submitted.bytes = bytes;
        if submitted.error.is_none() && self.ring.free() == 0 {
            submitted.error = Some(SubmitError::RingFull {
                capacity: self.ring.capacity(),
            });
        }
        self.stats.submitted_bytes = self.stats.submitted_bytes.wrapping_add(bytes);
        submitted
    }

    /// Hands everything submitted to the engine, however many descriptors there are; nothing at
    /// all if there are none.
    ///
    /// With [`Notify::Interrupt`] the last of them interrupts when it completed, whatever it was
    /// submitted with.
    ///
    /// An engine that goes on by the tail alone ([`Restart::ByTail`]) costs one fence and one tail
    /// write. Any other engine halts when it has drained its queue, and needs RUN behind the tail.
    /// Control is read before: a function that was reset has its head at 0. Started there, it would
    /// run what is not ours, or what was done long ago. The channel has [`Fault::Reset`] then, and
    /// the function is left alone. RUN is taken away before the tail: an engine that went on by the
    /// tail after all could fail before RUN.
    ///
    /// If earlier work is still in flight, the driver reads the head instead. RUN follows only if
    /// the engine has drained and reports no error. The engine may stand at a descriptor whose
    /// failure nobody has seen. RUN would execute that descriptor again, or step over it, and the
    /// failure would be lost. The tail goes first then, so that an engine that drains in between
    /// finds either the new tail or RUN. An engine of which nothing is known gets 64 reads of its
    /// head before RUN is written. They may show that it is at the new work already.
    ///
    /// On a paused channel the tail is written and RUN is left to [`resume`](Self::resume). While
    /// descriptors are run one at a time after an error, new ones wait for that to end. On a
    /// faulted channel nothing happens: what was submitted stays outstanding until recovery.
    #[inline]
    pub fn issue_pending(&mut self, notify: Notify) {
        if self.ring.unissued() == 0 || matches!(self.state, State::Faulted(_)) {
            return;
        }
        if notify == Notify::Interrupt {
            self.ring.flag_newest();
        }
        if self.armed && self.replay_left == 0 {
            let tail = self.ring.issue();
            self.regs.write(Register::Tail, tail);
        } else {
            self.issue_by_run();
        }
        self.stats.doorbells = self.stats.doorbells.wrapping_add(1);
    }

    /// The doorbell of an engine that needs RUN, or is not known not to.
    fn issue_by_run(&mut self) {
        if self.replay_left > 0 {
            self.ring.issue_later();
        } else if self.ring.in_flight() == 0 {
            if let Some(control) = self.still_has_ring() {
                let tail = self.ring.issue();
                self.ring_idle(control, tail);
            }
        } else {
            self.issue_behind();
        }
    }

    /// What control reads, if the function has not been reset. Otherwise the channel has a fault.
    pub(crate) fn still_has_ring(&mut self) -> Option<u32> {
        let control = self.read_control();
        // All ones is a device that is gone, perhaps for a moment: the next polls see to that.
        if control != ALL_ONES && !self.knows_ring(control) {
            self.set_fault(Fault::Reset);
            return None;
        }
        Some(control)
    }

    /// Writes the tail, and RUN behind it, of an engine that has nothing to do and whose control
    /// has just been read.
    ///
    /// An engine that went on by the tail could fail before RUN arrives, which would set it going
    /// over the failure. So RUN is taken away before. That RUN reads 0 does not prove that the tail
    /// does nothing. Nor does it prove that the engine needs RUN: a slow one looks the same.
    pub(crate) fn ring_idle(&mut self, control: u32, tail: u32) {
        let runs = self.state == State::Running && control != ALL_ONES;
        let may_run = self.started && !self.run_taken;
        if runs && may_run {
            self.take_run();
        }
        self.regs.write(Register::Tail, tail);
        if runs {
            self.start();
        }
    }

    /// The doorbell behind work that is in flight, of an engine that needs RUN, or is not known
    /// not to.
    fn issue_behind(&mut self) {
        let drained = self.ring.handed_register_value();
        if self.state == State::Running && self.traits.restart == Restart::Unknown {
            // Before the tail: an engine that has drained is one with nothing to do until then.
            let Some(control) = self.still_has_ring() else {
                return;
            };
            if self.regs.read(Register::Head) == drained && self.is_clean() {
                let tail = self.ring.issue();
                self.ring_idle(control, tail);
                return;
            }
        }
        let tail = self.ring.issue();
        self.regs.write(Register::Tail, tail);
        // An engine that is still in the old work when the tail has arrived goes on with the new.
        if self.state != State::Running
            || self.traits.restart == Restart::ByTail
            || self.regs.read(Register::Head) != drained
        {
            return;
        }
        // It may have drained just before, or be in the new work already. The latter shows soon,
        // and RUN is better not written then.
        if self.traits.restart == Restart::ByRun
            || (0..REST_LOOKS).all(|_| self.regs.read(Register::Head) == drained)
        {
            self.start_again();
        }
    }

    /// Whether the interrupt status is without an error, and the device there.
    fn is_clean(&self) -> bool {
        // All ones has the error bit set too.
        self.regs.read(Register::InterruptStatus) & Interrupts::ERROR.bits() == 0
    }

    /// Writes RUN to an engine that has work to do and reports no error. Where the driver cannot
    /// say that it stands, that is noted.
    pub(crate) fn start_again(&mut self) {
        let Some(control) = self.still_has_ring() else {
            return;
        };
        // Both are for the next poll to find.
        if control == ALL_ONES || !self.is_clean() {
            return;
        }
        // Not by RUN, which may read 0 in an engine that has just gone on by the tail.
        let stands = !self.started || self.run_taken && has_halted(control) && self.halt_fell;
        self.raced = !stands;
        self.set_caution();
        self.start();
        if self.raced {
            // Most often nothing has failed: then that is over, and an error is one to stand at. All
            // else is for the next poll to find.
            let _ = self.error_pending();
        }
    }

    /// Slots that [`submit`](Self::submit) can fill now.
    #[must_use]
    #[inline]
    pub fn burst_capacity(&self) -> usize {
        self.ring.free()
    }

    /// Most descriptors that can be outstanding: the ring's entries, as far as the engine walks
    /// them, less one.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.ring.capacity()
    }

    /// Descriptors submitted and not retired, whether issued or not.
    #[must_use]
    #[inline]
    pub fn outstanding(&self) -> u64 {
        self.ring.in_flight().wrapping_add(self.ring.unissued())
    }

    /// The cookie that the next submitted descriptor gets.
    #[must_use]
    #[inline]
    pub fn next_cookie(&self) -> Cookie {
        self.ring.next()
    }

    /// The oldest cookie that is not retired: all cookies before it are.
    #[must_use]
    #[inline]
    pub fn done_before(&self) -> Cookie {
        self.ring.oldest()
    }

    /// What the channel accepts in one descriptor.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// How completions are signalled.
    #[must_use]
    pub fn signalling(&self) -> Signalling {
        self.signalling
    }

    /// The fault that keeps the channel from working, if there is one.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        match self.state {
            State::Faulted(fault) => Some(fault),
            State::Running | State::Paused => None,
        }
    }

    /// Where the head is taken to stay on an error: what the configuration said, or what was found
    /// since.
    #[must_use]
    pub const fn error_head(&self) -> ErrorHead {
        self.traits.error_head
    }

    /// What the engine has shown of itself.
    #[must_use]
    pub const fn traits(&self) -> EngineTraits {
        self.traits
    }

    /// Counts since bring-up.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            submitted: self.ring.next().after(self.stats.submitted).number(),
            ..self.stats
        }
    }

    /// Version of the function; one MMIO read.
    #[must_use]
    pub fn version(&self) -> Version {
        Version::from_raw(self.regs.read(Register::Version))
    }
}
