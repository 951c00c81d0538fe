//! Stopping, recovering and giving memory back.
//!
//! The one rule: memory that an engine was told to read or write is given back only after the
//! engine was *proved* stopped, by the HALT bit after RUN was taken away, or by the owner, who
//! has reset the function. Where neither is possible the caller is told what is still at risk.

use crate::channel::{Channel, ErrorHead, State};
use crate::clock::Deadline;
use crate::cookie::Cookie;
use crate::descriptor::{CommandWord, DESCRIPTOR_LEN_BYTES, Descriptor};
use crate::error::{BringUpError, Failure, Fault, NotStopped};
use crate::io::{Clock, RegisterIo, RingMemory};
use crate::regs::{ALL_ONES, Interrupts, QueueControl, Register};
use crate::ring::HeadPosition;

/// What became of the descriptors that were outstanding when a channel was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Terminated {
    /// The first descriptor that was dropped; all before it are retired. Equal to the next cookie
    /// if none was. The destination of this one may have been written in part, those of the
    /// later ones have not been touched.
    pub first_dropped: Cookie,
    /// How many were dropped, from `first_dropped` on.
    pub dropped: u64,
    /// Descriptors retired by this call because the engine had completed them before it stopped.
    pub retired: u64,
    /// The descriptor at which the engine had stopped with an error, if it had. It counts as
    /// dropped too.
    pub failure: Option<Failure>,
}

/// How the owner proves that a function can touch no memory any more.
///
/// Made by whoever has done it: a function-level reset was completed, or bus mastering was
/// disabled and pending transactions drained, or the device was removed from the machine. That a
/// function reads all ones is none of these: it may answer again with its engine where it was.
#[derive(Debug)]
pub struct FunctionQuiesced(());

impl FunctionQuiesced {
    /// States that the function can touch no memory until it is brought up again.
    ///
    /// This is the owner's word, on which memory is given back. It is a constructor with a name
    /// rather than a flag so that it can be found in a review.
    #[must_use]
    pub const fn by_owner() -> Self {
        Self(())
    }
}

/// What a stop came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The engine stands still; head and status are final.
    Stands,
    /// The function was reset: nothing of it works, and its registers say nothing of what it did.
    Reset,
}

impl<R: RegisterIo, M: RingMemory> Channel<R, M> {
    /// Takes RUN away and waits until the engine says that it has halted. Work stays where it is;
    /// [`resume`](Self::resume) goes on with it.
    ///
    /// # Errors
    ///
    /// [`NotStopped`] if the engine had not halted by the deadline. The channel is paused all the
    /// same: nothing more is started, and the call can be repeated. A function that turns out to
    /// have been reset does stand still; its channel has [`Fault::Reset`] then.
    pub fn pause<C: Clock + ?Sized>(
        &mut self,
        clock: &C,
        deadline: Deadline,
    ) -> Result<(), NotStopped> {
        if self.state == State::Running {
            self.state = State::Paused;
        }
        if self.halt(clock, deadline)? == Stop::Reset {
            self.set_fault(Fault::Reset);
        }
        Ok(())
    }

    /// Lets a paused channel go on. No effect on one that runs or has a fault.
    pub fn resume(&mut self) {
        if self.state == State::Paused {
            self.state = State::Running;
            self.idle_polls = 0;
            if self.ring.in_flight() > 0 {
                self.start_if_standing();
            }
        }
    }

    /// Stops the engine and forgets everything outstanding, issued or not. After it the memory of
    /// all cookies is the caller's again, and the channel is ready for new work, whatever fault
    /// it had.
    ///
    /// # Errors
    ///
    /// [`NotStopped`] if the engine was not proved stopped by the deadline: everything is still
    /// outstanding and still the engine's. Reset the function, then call
    /// [`recover`](Self::recover).
    pub fn terminate<C: Clock + ?Sized>(
        &mut self,
        clock: &C,
        deadline: Deadline,
    ) -> Result<Terminated, NotStopped> {
        if self.halt(clock, deadline)? == Stop::Reset {
            return Ok(self.terminate_after_reset());
        }
        // The engine stands still, so whatever head says is final.
        let interrupts = self.regs.read(Register::InterruptStatus);
        let status = self.regs.read(Register::Status);
        let head = self.regs.read(Register::Head);
        let failed = interrupts != ALL_ONES && interrupts & Interrupts::ERROR.bits() != 0;
        let passed = match self.locate(head) {
            HeadPosition::Advanced(count) => count,
            // Nothing is known of what was done, so nothing is claimed.
            HeadPosition::Garbage => 0,
        };
        let retired = match (failed, self.error_head) {
            (false, _) | (true, ErrorHead::AtFailing) => passed,
            (true, ErrorHead::PastFailing) => passed.saturating_sub(1),
        };
        // An error without a descriptor that could have failed: none of them is claimed.
        let unattributed = failed && retired >= self.ring.in_flight();
        let retired = if unattributed { 0 } else { retired };
        self.ring.retire(retired);
        self.stats.completed = self.stats.completed.wrapping_add(retired);
        let first_dropped = self.ring.oldest();
        let failure = (failed && !unattributed && self.ring.in_flight() > 0).then(|| Failure {
            cookie: first_dropped,
            code: crate::error_code::ErrorCode::from_status(status),
        });
        let dropped = self.forget_outstanding();
        if let Err(e) = self.program() {
            // It did stop before.
            self.set_fault(Fault::of_bring_up(e));
        }
        Ok(Terminated {
            first_dropped,
            dropped,
            retired,
            failure,
        })
    }

    /// Brings the channel up again after the owner has reset the function, or otherwise made sure
    /// that it cannot touch memory. Everything outstanding is dropped; none of it is claimed to
    /// have been copied. Cookies go on counting.
    ///
    /// # Errors
    ///
    /// [`BringUpError`] if the function does not answer as it should. The descriptors are dropped
    /// all the same (`Err` carries them too): on the owner's word, no engine touches them.
    pub fn recover(
        &mut self,
        _proof: FunctionQuiesced,
    ) -> Result<Terminated, (BringUpError, Terminated)> {
        let first_dropped = self.ring.oldest();
        let dropped = self.forget_outstanding();
        let terminated = Terminated {
            first_dropped,
            dropped,
            retired: 0,
            failure: None,
        };
        match self.take_over() {
            Ok(()) => Ok(terminated),
            Err(e) => {
                self.set_fault(Fault::of_bring_up(e));
                Err((e, terminated))
            }
        }
    }

    /// Tears the channel down: interrupts off, engine proved stopped, registers and ring memory
    /// given back. Outstanding work is dropped, as by [`terminate`](Self::terminate).
    ///
    /// # Errors
    ///
    /// The channel comes back, with [`NotStopped`], if the engine was not proved stopped by the
    /// deadline. Dropping it then leaks the ring memory, which is what is safe; to get the memory
    /// back, reset the function and call [`shutdown_quiesced`](Self::shutdown_quiesced).
    // The channel itself has to come back on failure: its memory must not be lost silently.
    #[allow(clippy::result_large_err)]
    pub fn shutdown<C: Clock + ?Sized>(
        mut self,
        clock: &C,
        deadline: Deadline,
    ) -> Result<(R, M, Terminated), (NotStopped, Self)> {
        self.regs.write(Register::InterruptEnable, 0);
        // `terminate` programs the queue anew on success; the last writes here undo it.
        match self.terminate(clock, deadline) {
            Ok(terminated) => {
                self.regs.write(Register::InterruptEnable, 0);
                self.regs.write(Register::Control, 0);
                let Self { regs, ring, .. } = self;
                Ok((regs, ring.into_memory(), terminated))
            }
            Err(e) => {
                self.enable_interrupts();
                Err((e, self))
            }
        }
    }

    /// Tears the channel down on the owner's word that the function can touch no memory (it was
    /// reset, cut off, or removed). No register is accessed.
    pub fn shutdown_quiesced(mut self, _proof: FunctionQuiesced) -> (R, M, Terminated) {
        let first_dropped = self.ring.oldest();
        let dropped = self.forget_outstanding();
        let terminated = Terminated {
            first_dropped,
            dropped,
            retired: 0,
            failure: None,
        };
        let Self { regs, ring, .. } = self;
        (regs, ring.into_memory(), terminated)
    }

    /// Finds out where this engine's head stays on an error, and sets the channel accordingly:
    /// runs one descriptor for an engine number that no function has (error 1, illegal engine).
    ///
    /// What it names is a slot of the ring to read and another one, unused, to write: an engine
    /// that runs it all the same, or that takes a field differently than is known, does no harm.
    /// (A length of zero would be refused too, or be taken for the longest one.)
    ///
    /// For bring-up on a machine where it has not been tried. The channel must be idle.
    ///
    /// # Errors
    ///
    /// [`ProbeError`]: the channel was not idle, or the engine did not refuse the descriptor in
    /// time. It is terminated then, and set to the cautious [`ErrorHead::PastFailing`].
    pub fn probe_error_head<C: Clock + ?Sized>(
        &mut self,
        clock: &C,
        mut deadline: Deadline,
    ) -> Result<ErrorHead, ProbeError> {
        if let State::Faulted(fault) = self.state {
            return Err(ProbeError::Faulted(fault));
        }
        if self.outstanding() != 0 || self.state != State::Running {
            return Err(ProbeError::NotIdle);
        }
        let (own, unused) = self.ring.two_slots();
        let refused = Descriptor::copy(
            CommandWord::COPY | CommandWord::ENGINE,
            own,
            unused,
            DESCRIPTOR_LEN_BYTES as u32,
        );
        let halt_deadline = deadline;
        if self.ring.fill(refused).is_none() {
            return Err(ProbeError::NotIdle);
        }
        self.stats.submitted = self.stats.submitted.wrapping_add(1);
        let at = self.ring.oldest_register_value();
        let past = self.ring.issue();
        self.regs.write(Register::Tail, past);
        self.start();
        let found = self
            .await_refusal(at, past, clock, &mut deadline)
            .map_err(ProbeError::Faulted)?;
        self.error_head = found.unwrap_or(ErrorHead::PastFailing);
        match self.terminate(clock, halt_deadline) {
            Ok(_) => found.ok_or(ProbeError::NotRefused),
            Err(e) => Err(ProbeError::NotStopped(e)),
        }
    }

    /// Where the head is, at the slot `at` or `past` it, once the engine has refused the one
    /// descriptor that it was given; nothing if it has not by the deadline.
    fn await_refusal<C: Clock + ?Sized>(
        &mut self,
        at: u32,
        past: u32,
        clock: &C,
        deadline: &mut Deadline,
    ) -> Result<Option<ErrorHead>, Fault> {
        loop {
            // Asked before the look, so that there is a last look after the deadline: whoever
            // looks may not have run for all of the time.
            let last = deadline.expired(clock);
            let raw = self.regs.read(Register::InterruptStatus);
            if raw == ALL_ONES {
                return Err(self.set_fault(Fault::DeviceGone));
            }
            let interrupts = Interrupts::from_bits_retain(raw);
            if interrupts.contains(Interrupts::ERROR) {
                break;
            }
            // An engine that ran it and stopped behind it: there is nothing to wait for.
            let ran =
                interrupts.contains(Interrupts::STOPPED) && self.regs.read(Register::Head) == past;
            if last || ran {
                return Ok(None);
            }
        }
        // The head may move after the error is shown. What counts is where it comes to rest.
        match self.await_halt() {
            Ok(()) => {}
            Err(ALL_ONES) => return Err(self.set_fault(Fault::DeviceGone)),
            Err(_) => return Ok(None),
        }
        match self.regs.read(Register::Head) {
            head if head == at => Ok(Some(ErrorHead::AtFailing)),
            head if head == past => Ok(Some(ErrorHead::PastFailing)),
            raw => Err(self.set_fault(Fault::BadHead { raw })),
        }
    }

    /// What was in the engine is lost, and how far it was before the reset is not known.
    #[cold]
    fn terminate_after_reset(&mut self) -> Terminated {
        let first_dropped = self.ring.oldest();
        let dropped = self.forget_outstanding();
        if let Err(e) = self.program() {
            self.set_fault(Fault::of_bring_up(e));
        }
        Terminated {
            first_dropped,
            dropped,
            retired: 0,
            failure: None,
        }
    }

    fn forget_outstanding(&mut self) -> u64 {
        let dropped = self.ring.drop_outstanding();
        self.stats.dropped = self.stats.dropped.wrapping_add(dropped);
        dropped
    }

    /// Takes RUN away and waits for HALT.
    fn halt<C: Clock + ?Sized>(
        &mut self,
        clock: &C,
        mut deadline: Deadline,
    ) -> Result<Stop, NotStopped> {
        // Before it is written: the write would give back what a reset has taken, and the head
        // of a function that was reset would count as progress.
        let control = self.regs.read(Register::Control);
        if control != ALL_ONES && !self.knows_ring(control) {
            return Ok(Stop::Reset);
        }
        let stop = self.run & !QueueControl::RUN.bits();
        self.regs.write(Register::Control, stop);
        loop {
            let control = self.regs.read(Register::Control);
            if control == ALL_ONES {
                self.set_fault(Fault::DeviceGone);
                return Err(self.not_stopped(control));
            }
            let control = QueueControl::from_bits_retain(control);
            let halted =
                control.contains(QueueControl::HALT) && !control.contains(QueueControl::RUN);
            // An engine that was never started, or whose head was seen at the end of all its
            // work, has nothing left to touch; it need not say HALT.
            if halted || !self.started || self.ring.in_flight() == 0 {
                return Ok(Stop::Stands);
            }
            if deadline.expired(clock) {
                return Err(self.not_stopped(control.bits()));
            }
        }
    }

    fn not_stopped(&self, control: u32) -> NotStopped {
        NotStopped {
            control,
            first: self.ring.oldest(),
            count: self.outstanding(),
        }
    }
}

/// Why [`Channel::probe_error_head`] found nothing out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProbeError {
    /// Work is outstanding, or the channel is paused.
    NotIdle,
    /// The engine completed a descriptor that it should refuse, or took too long over it.
    NotRefused,
    /// The channel has a fault.
    Faulted(Fault),
    /// The engine could not be stopped afterwards.
    NotStopped(NotStopped),
}

impl core::fmt::Display for ProbeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotIdle => f.write_str("the channel is not idle"),
            Self::NotRefused => f.write_str(
                "the engine did not refuse a descriptor for an engine that there is not",
            ),
            Self::Faulted(fault) => fault.fmt(f),
            Self::NotStopped(e) => e.fmt(f),
        }
    }
}

impl core::error::Error for ProbeError {}
