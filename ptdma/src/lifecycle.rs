//! Stopping, recovering and giving memory back.
//!
//! The one rule: memory goes back only after the engine that was told of it was *proved* stopped.
//! The HALT bit after RUN was taken away proves it, and so does the owner, who has reset the
//! function. Where neither is possible the caller is told what is still at risk.

use core::fmt;

use crate::channel::{Channel, REST_LOOKS, State, has_halted, has_run};
use crate::clock::Deadline;
use crate::cookie::Cookie;
use crate::error::{BringUpError, Failure, Fault, NotStopped};
use crate::io::{Clock, RegisterIo, RingMemory};
use crate::regs::{ALL_ONES, Interrupts, Register};
use crate::ring::HeadPosition;

/// What became of the descriptors that were outstanding when a channel was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub struct Terminated {
    /// The first descriptor that was dropped; all before it are retired. Equal to the next cookie
    /// if none was. Nothing is known of what was dropped: of each destination, none, some or all
    /// bytes may have been written.
    pub first_dropped: Cookie,
    /// How many were dropped, from `first_dropped` on.
    pub dropped: u64,
    /// Descriptors retired by this call because the engine had completed them before it stopped.
    pub retired: u64,
    /// The descriptor at which the engine had stopped with an error, if it had. It counts as
    /// dropped too.
    pub failure: Option<Failure>,
}

impl fmt::Display for Terminated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} descriptors retired, {} dropped from {} on",
            self.retired, self.dropped, self.first_dropped
        )?;
        match self.failure {
            Some(failure) => write!(f, "; {failure}"),
            None => Ok(()),
        }
    }
}

/// How the owner proves that a function can touch no memory any more.
///
/// The owner makes it after a completed function-level reset, after bus mastering was disabled and
/// pending transactions drained, or after the device was removed. That a function reads all ones is
/// none of these: it may answer again with its engine where it was.
#[derive(Debug)]
pub struct FunctionQuiesced(());

impl FunctionQuiesced {
    /// States that the function can touch no memory until it is brought up again.
    ///
    /// # Safety
    ///
    /// It is so, by one of the ways that the type names. On this word memory is given back: the
    /// ring's, and that of all copies that are outstanding.
    #[must_use]
    #[allow(unsafe_code)]
    pub const unsafe fn by_owner() -> Self {
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
                self.start_again();
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
        let failed = self.failed_behind_head();
        let status = self.regs.read(Register::Status);
        let head = self.regs.read(Register::Head);
        let passed = match self.ring.locate(head) {
            HeadPosition::Advanced(count) => count,
            // Nothing is known of what was done, so nothing is claimed.
            HeadPosition::Garbage => 0,
        };
        let good = match failed {
            Ok(false) => Some(passed),
            // An error of nobody knows which descriptor: none of them is claimed.
            Ok(true) => self.good_before_failure(passed),
            // It could not be asked.
            Err(_) => None,
        };
        let retired = good.unwrap_or(0);
        self.retire_completed(retired);
        let first_dropped = self.ring.oldest();
        let failure =
            (failed == Ok(true) && good.is_some() && self.ring.handed_out() > 0).then(|| Failure {
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
        // Not ERROR, without which nobody could tell a good descriptor from a failed one.
        self.regs
            .write(Register::InterruptEnable, Interrupts::ERROR.bits());
        // `terminate` programs the queue anew on success; the last writes here undo it.
        match self.terminate(clock, deadline) {
            Ok(terminated) => {
                self.regs.write(Register::InterruptEnable, 0);
                self.regs.write(Register::Control, 0);
                let Self { regs, ring, .. } = self;
                Ok((regs, ring.into_memory(), terminated))
            }
            Err(e) => {
                // Of no consequence: the channel did not stop, and ERROR stays on.
                let _ = self.enable_interrupts();
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

    /// Takes RUN away and waits for a proof that the engine stands.
    ///
    /// The proofs come in this order. The engine has nothing left to do, and its own head and tail
    /// say so. HALT has risen since RUN was written. The last one is an error that the engine has
    /// reported, with a head that stays where it is. That RUN reads 0 is no proof.
    fn halt<C: Clock + ?Sized>(
        &mut self,
        clock: &C,
        mut deadline: Deadline,
    ) -> Result<Stop, NotStopped> {
        // Before it is written: the write would give back what a reset has taken.
        let control = self.read_control();
        if control != ALL_ONES && !self.knows_ring(control) {
            return Ok(Stop::Reset);
        }
        self.take_run();
        loop {
            let control = self.read_control();
            if control == ALL_ONES {
                self.set_fault(Fault::DeviceGone);
                return Err(self.not_stopped(control));
            }
            if !self.knows_ring(control) {
                return Ok(Stop::Reset);
            }
            // An engine that was never started, or that has shown all of its work to be done, has
            // nothing left to touch. One that still shows RUN does not heed it: it may have gone on
            // from what it had before.
            if !self.started && !has_run(control) || self.ring.in_flight() == 0 && !self.walking {
                return Ok(Stop::Stands);
            }
            if has_halted(control) && self.halt_fell || self.is_drained() {
                return Ok(Stop::Stands);
            }
            let last = deadline.expired(clock);
            if self.has_failed_and_rests() {
                return Ok(Stop::Stands);
            }
            if last {
                return Err(self.not_stopped(control));
            }
        }
    }

    /// Whether the engine's own registers say that there is nothing left to do.
    fn is_drained(&self) -> bool {
        let read = || {
            let head = self.regs.read(Register::Head);
            (head, self.regs.read(Register::Tail))
        };
        let (head, tail) = read();
        // Twice: such a proof is not left to one read.
        head == tail && self.ring.slot_of(head).is_some() && read() == (head, tail)
    }

    /// Whether the engine has reported an error, and its head stays where it is.
    fn has_failed_and_rests(&mut self) -> bool {
        if self.raced || !matches!(self.error_pending(), Ok(true)) {
            return false;
        }
        let head = self.regs.read(Register::Head);
        (0..REST_LOOKS).all(|_| self.regs.read(Register::Head) == head)
    }

    fn not_stopped(&self, control: u32) -> NotStopped {
        NotStopped {
            control,
            first: self.ring.oldest(),
            count: self.outstanding(),
        }
    }
}
