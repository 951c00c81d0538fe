//! One command queue: bring-up, submission, the doorbell.
//!
//! Completion is in `completion.rs`, stopping and recovery in `lifecycle.rs`.

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

/// How the owner learns of completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Signalling {
    /// By polling; the function's interrupts stay off.
    #[default]
    Polled,
    /// By interrupts on the descriptors that ask for one, and on errors.
    Interrupts,
}

/// Where the head register points after a descriptor failed.
///
/// That it stays *at* the failing descriptor is inferred from Linux's recovery and has been seen
/// on an emulated device only. [`Channel::probe_error_head`] finds out on the machine at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ErrorHead {
    /// At the failing descriptor; completion then needs nothing but the head register.
    #[default]
    AtFailing,
    /// One past the failing descriptor, or not known. Every poll that finds progress then also
    /// reads the interrupt status before it believes it.
    PastFailing,
}

/// How a channel is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ChannelConfig {
    /// How completions are signalled.
    pub signalling: Signalling,
    /// What one descriptor may ask for.
    pub limits: Limits,
    /// Where the engine's head stays on an error.
    pub error_head: ErrorHead,
    /// Cookie of the first descriptor. A channel that replaces another (after a function reset,
    /// say) goes on where that one ended, so that no cookie ever names two descriptors.
    pub first_cookie: CookieStart,
}

/// An answer of [`Channel::submit_all`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// The first cookie of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieStart(pub Cookie);

impl Default for CookieStart {
    fn default() -> Self {
        Self(Cookie::new(0))
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
/// Life cycle, in the words of dmaengine: [`bring_up`](Self::bring_up), then any number of
/// [`submit`](Self::submit) (a cookie each) followed by one
/// [`issue_pending`](Self::issue_pending) (the doorbell), then [`poll`](Self::poll) or
/// [`handle_interrupt`](Self::handle_interrupt) until done, and in the end
/// [`shutdown`](Self::shutdown).
///
/// A channel that is dropped without a successful shutdown forgets (leaks) its ring memory: the
/// engine may still fetch from it.
pub struct Channel<R, M> {
    pub(crate) regs: R,
    pub(crate) ring: Ring<M>,
    pub(crate) state: State,
    pub(crate) stats: Stats,
    /// Polls in a row without progress, see `completion.rs`.
    pub(crate) idle_polls: u32,
    /// Restarts in a row without progress.
    pub(crate) restarts: u32,
    /// Whether RUN was written since the registers were programmed: before that the engine cannot
    /// be in this ring.
    pub(crate) started: bool,
    /// What starts the engine: SIZE, the ring's high half, and RUN.
    pub(crate) run: u32,
    pub(crate) limits: Limits,
    pub(crate) signalling: Signalling,
    pub(crate) error_head: ErrorHead,
}

// What the channel holds besides its ring memory must stay small: issue and design budget 1 KiB,
// and a machine has up to 64 functions.
const _: () = assert!(core::mem::size_of::<Channel<usize, [usize; 4]>>() <= 256);

/// How often bring-up and error recovery look whether the engine has halted before they give up.
///
/// Halting takes as long as the descriptor in work: 2 MiB at 14.6 GB/s are 144 us, and an engine
/// that reported an error has none in work. A read of a register is a round trip to the device,
/// 100 ns at the very least and up to about a microsecond, so that this waits for 200 us to 2 ms.
/// More would only keep interrupts off: the interrupt entry point waits here too. It is a bound
/// for steps that have no caller-supplied clock at hand, not a tuned value; an engine that needs
/// longer is a fault, and [`Channel::terminate`] goes on with the time that its caller gives.
pub(crate) const HALT_POLLS: u32 = 2_000;

/// How often in a row a stranger's engine has to say HALT with its head at the same slot before
/// it is taken to be at rest.
///
/// An engine may still read HALT for some microseconds after RUN was written. 64 looks of two
/// reads each are 12 us at the least, and 64 us or more on most machines.
const REST_LOOKS: u32 = 64;

/// Whether a control value says that the engine does not walk the ring: it has halted, or it took
/// RUN away itself (which of the two silicon does after it drained is not documented).
pub(crate) fn stands(control: u32) -> bool {
    let control = QueueControl::from_bits_retain(control);
    control.contains(QueueControl::HALT) || !control.contains(QueueControl::RUN)
}

impl<R: RegisterIo, M: RingMemory> Channel<R, M> {
    /// Brings the function's queue up on `memory` and makes it ready for work.
    ///
    /// The order of register writes is the one that Linux uses on silicon. A queue that a
    /// previous owner left running is halted first.
    ///
    /// # Errors
    ///
    /// [`BringUpError`], with registers and memory given back: the engine has not been told of
    /// that memory, or was told and was never set running on it.
    pub fn bring_up(
        regs: R,
        memory: M,
        config: ChannelConfig,
    ) -> Result<Self, (BringUpError, R, M)> {
        let ring = match Ring::new(memory, config.first_cookie.0) {
            Ok(ring) => ring,
            Err((e, memory)) => return Err((BringUpError::Ring(e), regs, memory)),
        };
        let run = QueueControl::RUN
            .with_size(ring.log2_entries())
            .with_base_high(ring.base_high())
            .bits();
        let mut channel = Self {
            regs,
            ring,
            state: State::Running,
            stats: Stats::default(),
            idle_polls: 0,
            restarts: 0,
            started: false,
            run,
            limits: config.limits,
            signalling: config.signalling,
            error_head: config.error_head,
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

        let next = self.ring.next_register_value();
        let size = QueueControl::empty().with_size(self.ring.log2_entries());
        regs.write(Register::Control, size.bits());
        regs.write(Register::Tail, next);
        regs.write(Register::Head, next);
        regs.write(Register::Control, self.run & !QueueControl::RUN.bits());
        // The one read-back: a function that does not hold its head would make every completion
        // a guess.
        let reads = regs.read(Register::Head);
        if reads == ALL_ONES && regs.read(Register::Version) == ALL_ONES {
            return Err(BringUpError::DeviceGone);
        }
        if reads != next {
            return Err(BringUpError::NotAccepted {
                offset: Register::Head.offset(),
                wrote: next,
                reads,
            });
        }
        self.enable_interrupts();
        self.idle_polls = 0;
        self.restarts = 0;
        self.started = false;
        self.state = State::Running;
        Ok(())
    }

    /// Writes control with RUN.
    #[inline]
    pub(crate) fn start(&mut self) {
        self.started = true;
        self.regs.write(Register::Control, self.run);
    }

    pub(crate) fn enable_interrupts(&self) {
        if self.signalling == Signalling::Interrupts {
            // Not STOPPED and EMPTY: an engine that halts when it has drained would raise one
            // more interrupt for every burst.
            let enable = Interrupts::COMPLETION | Interrupts::ERROR;
            self.regs.write(Register::InterruptEnable, enable.bits());
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
        for _ in 0..HALT_POLLS {
            let raw = regs.read(Register::Control);
            if raw == ALL_ONES {
                return Err(BringUpError::DeviceGone);
            }
            let now = regs.read(Register::Head);
            let halted = raw & QueueControl::HALT.bits() != 0;
            at_rest = if halted && now == head {
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
                self.stats.submitted = self.stats.submitted.wrapping_add(1);
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
    /// bytes: what is the same for all is looked at once, which halves the instructions for each.
    ///
    /// Ends at the first that is refused, or when the ring is full; a copy for which there is no
    /// slot is not taken from `copies`. With a `mark`, the copy with that index interrupts on
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
        self.stats.submitted = self.stats.submitted.wrapping_add(count as u64);
        self.stats.submitted_bytes = self.stats.submitted_bytes.wrapping_add(bytes);
        submitted
    }

    /// Hands everything submitted to the engine: one fence, one tail write, one control write
    /// with RUN, however many descriptors there are; nothing at all if there are none.
    ///
    /// With [`Notify::Interrupt`] the last of them interrupts when it completed, whatever it was
    /// submitted with.
    ///
    /// RUN is written because an engine halts when it has drained its queue. Control is read
    /// before, for a function that was reset in the meantime has its head at 0: started there it
    /// would run what is not ours, or what was done long ago. The channel has [`Fault::Reset`]
    /// then, and the function is left alone.
    ///
    /// If earlier work is still in flight, RUN follows only if the engine stands: it may be
    /// standing at a descriptor that failed and that nobody has seen yet, and RUN would execute
    /// that one again, or step over it, and the failure would be lost. The tail goes first then,
    /// so that an engine that drains in between finds either the new tail or RUN.
    ///
    /// On a paused channel the tail is written and RUN is left to [`resume`](Self::resume). On a
    /// faulted one nothing happens: what was submitted stays outstanding until recovery.
    #[inline]
    pub fn issue_pending(&mut self, notify: Notify) {
        if self.ring.unissued() == 0 || matches!(self.state, State::Faulted(_)) {
            return;
        }
        if notify == Notify::Interrupt {
            self.ring.flag_newest();
        }
        if self.ring.in_flight() == 0 {
            self.issue_idle();
        } else {
            let tail = self.ring.issue();
            self.regs.write(Register::Tail, tail);
            if self.state == State::Running {
                self.start_if_standing();
            }
        }
        self.stats.doorbells = self.stats.doorbells.wrapping_add(1);
    }

    /// The doorbell of a queue that had nothing to do. Not of one that was reset.
    #[inline]
    fn issue_idle(&mut self) {
        let control = self.regs.read(Register::Control);
        // All ones is a device that is gone, perhaps for a moment: the next polls see to that.
        let answers = control != ALL_ONES;
        if answers && !self.knows_ring(control) {
            self.set_fault(Fault::Reset);
            return;
        }
        let tail = self.ring.issue();
        self.regs.write(Register::Tail, tail);
        if answers && self.state == State::Running {
            self.start();
        }
    }

    /// Starts an engine that stands, unless it stands at a failure, or the device is gone: both
    /// are for the next poll to find. Never one whose function was reset.
    pub(crate) fn start_if_standing(&mut self) {
        let control = self.regs.read(Register::Control);
        if control == ALL_ONES {
            return;
        }
        if !self.knows_ring(control) {
            self.set_fault(Fault::Reset);
            return;
        }
        if !stands(control) {
            return;
        }
        // All ones has the error bit set too.
        let interrupts = self.regs.read(Register::InterruptStatus);
        if interrupts & Interrupts::ERROR.bits() == 0 {
            self.start();
        }
    }

    /// Slots that [`submit`](Self::submit) can fill now.
    #[must_use]
    #[inline]
    pub fn burst_capacity(&self) -> usize {
        self.ring.free()
    }

    /// Most descriptors that can be outstanding: the ring's entries less one.
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

    /// Where the head is taken to stay on an error: what the configuration said, or what
    /// [`Channel::probe_error_head`] found.
    #[must_use]
    pub const fn error_head(&self) -> ErrorHead {
        self.error_head
    }

    /// Counts since bring-up.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Version of the function; one MMIO read.
    #[must_use]
    pub fn version(&self) -> Version {
        Version::from_raw(self.regs.read(Register::Version))
    }
}
