//! Finding out what the engine has done: polls, the interrupt entry point, failed descriptors.
//!
//! Completion is in order and read off one register, the head. There is no per-descriptor status
//! in memory, so everything unusual is noticed by the head not moving:
//!
//! - Every poll makes exactly one read. Most read the head. While the head stands still, the 8th,
//!   16th, 32nd ... poll reads the interrupt status instead (was there an error?), the 12th,
//!   24th, 48th ... the control register (has the engine halted?), and the 20th, 40th, 80th ...
//!   the tail (has the doorbell arrived?). A long copy thus costs nothing, and a failure is found
//!   within twice the time that it was looked for already.
//! - The interrupt entry point clears everything but ERROR *before* it reads the head: what
//!   completes after the clear raises anew, what completed before is in the head.

use crate::channel::{Channel, ErrorHead, HALT_POLLS, State, stands};
use crate::cookie::Cookie;
use crate::error::{Anomaly, Failure, Fault};
use crate::error_code::ErrorCode;
use crate::io::{RegisterIo, RingMemory};
use crate::regs::{ALL_ONES, Interrupts, QueueControl, Register};
use crate::ring::HeadPosition;

/// First poll without progress that looks for an error instead of the head. Small enough to
/// notice a failure in a microsecond, large enough that a short copy is never disturbed.
const FIRST_ERROR_CHECK: u32 = 8;
/// First poll without progress that looks whether the engine has halted: between the error checks.
const FIRST_HALT_CHECK: u32 = 12;
/// First poll without progress that looks whether the tail holds what was written: a function
/// that was out of reach for a moment (a link that retrained) has lost the doorbell. Last, because
/// it is the rarest.
const FIRST_DOORBELL_CHECK: u32 = 20;
/// The doubling ends here: from then on every so many polls look for an error, and as many for a
/// halt. 4096 polls are some 0.5 ms on hardware.
const CHECK_INTERVAL: u32 = 4096;
/// How often in a row a halted engine is started again without progress before that is a fault.
/// One restart covers a RUN write that the engine missed; three leave no doubt.
const MAX_RESTARTS: u32 = 3;

/// What the driver clears in the interrupt entry point: all but ERROR, which is needed to know
/// that the queue stands at a failed descriptor.
const CLEAR_EARLY: Interrupts = Interrupts::COMPLETION
    .union(Interrupts::STOPPED)
    .union(Interrupts::EMPTY);

/// What one poll or interrupt found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Progress {
    /// All cookies before this one are retired: copied, unless a [`failure`](Self::failure) (of
    /// this or an earlier call) names them.
    pub done_before: Cookie,
    /// How many were retired by this call, a failed one included.
    pub retired: u64,
    /// The one descriptor that failed, if any; it counts as retired. At most one per call: the
    /// engine stands still at a failed descriptor until this call has skipped it.
    pub failure: Option<Failure>,
    /// Something unusual that was got over.
    pub anomaly: Option<Anomaly>,
}

/// What a no-progress poll reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Head,
    Errors,
    Halt,
    Doorbell,
}

/// Which register the poll after `idle_polls` polls without progress reads.
fn look(idle_polls: u32) -> Look {
    let doubling = |first: u32| {
        idle_polls
            .checked_div(first)
            .is_some_and(u32::is_power_of_two)
    };
    if idle_polls < FIRST_ERROR_CHECK {
        Look::Head
    } else if idle_polls >= CHECK_INTERVAL {
        match idle_polls % CHECK_INTERVAL {
            0 => Look::Errors,
            r if r == CHECK_INTERVAL / 2 => Look::Halt,
            r if r == CHECK_INTERVAL / 4 => Look::Doorbell,
            _ => Look::Head,
        }
    } else if idle_polls.is_multiple_of(FIRST_HALT_CHECK) && doubling(FIRST_HALT_CHECK) {
        Look::Halt
    } else if idle_polls.is_multiple_of(FIRST_DOORBELL_CHECK) && doubling(FIRST_DOORBELL_CHECK) {
        Look::Doorbell
    } else if idle_polls.is_power_of_two() {
        Look::Errors
    } else {
        Look::Head
    }
}

impl<R: RegisterIo, M: RingMemory> Channel<R, M> {
    /// Looks once what the engine has done.
    ///
    /// No MMIO if nothing is in flight, else exactly one read; only a failure, a halt, or a head
    /// that makes no sense costs more. Does not wait. Right in either
    /// [`Signalling`](crate::Signalling).
    ///
    /// # Errors
    ///
    /// [`Fault`] if the channel is out of order. What was outstanding stays so, its memory still
    /// belongs to the engine, and every call fails the same way until
    /// [`terminate`](Self::terminate) or a function reset. A call that retires something and then
    /// meets a fault reports what it retired, and leaves the fault to the next call.
    #[inline]
    pub fn poll(&mut self) -> Result<Progress, Fault> {
        if let State::Faulted(fault) = self.state {
            return Err(fault);
        }
        if self.ring.in_flight() == 0 {
            return Ok(self.progress(0, None, None));
        }
        if self.idle_polls < FIRST_ERROR_CHECK {
            let retired = self.retire_to_head()?;
            return Ok(self.progress(retired, None, None));
        }
        self.poll_again()
    }

    /// A [`poll`](Self::poll) for the usual case: what it would find out is no more than how far
    /// the engine is, which is the answer's [`done_before`](Progress::done_before). `None` if there
    /// is more to it: then nothing is lost by it, and `poll` says what.
    ///
    /// The same one read as `poll`'s, at most.
    #[inline]
    pub fn poll_head(&mut self) -> Option<Cookie> {
        if matches!(self.state, State::Faulted(_))
            || self.idle_polls >= FIRST_ERROR_CHECK
            || self.error_head == ErrorHead::PastFailing
            || self.ring.in_flight() == 0
        {
            return None;
        }
        let head = self.regs.read(Register::Head);
        match self.locate(head) {
            HeadPosition::Advanced(0) => self.idle_polls = self.idle_polls.saturating_add(1),
            HeadPosition::Advanced(count) => self.passed(count),
            HeadPosition::Garbage => {
                // The channel is out of order now: poll says so, and reads nothing.
                let _ = self.bad_head(head);
                return None;
            }
        }
        Some(self.ring.oldest())
    }

    /// A [`poll`](Self::poll) after several without progress.
    #[inline(never)]
    fn poll_again(&mut self) -> Result<Progress, Fault> {
        match look(self.idle_polls) {
            Look::Head => {
                let retired = self.retire_to_head()?;
                Ok(self.progress(retired, None, None))
            }
            Look::Errors => self.look_for_error(),
            Look::Halt => self.look_for_halt(),
            Look::Doorbell => self.look_for_doorbell(),
        }
    }

    /// The interrupt handler's entry point: call it once for every interrupt of the function, in
    /// whatever context the platform delivers it.
    ///
    /// Two MMIO accesses if everything issued is done (a write that clears the status, a read of
    /// the head), one more if work remains. Does not wait, except for a bounded number of reads
    /// while an engine that reported an error comes to a halt.
    ///
    /// # Errors
    ///
    /// [`Fault`], as [`poll`](Self::poll).
    pub fn handle_interrupt(&mut self) -> Result<Progress, Fault> {
        self.stats.interrupts = self.stats.interrupts.wrapping_add(1);
        let progress = self.service()?;
        if progress.retired == 0 && progress.failure.is_none() && progress.anomaly.is_none() {
            self.stats.spurious_interrupts = self.stats.spurious_interrupts.wrapping_add(1);
            return Ok(Progress {
                anomaly: Some(Anomaly::SpuriousInterrupt),
                ..progress
            });
        }
        Ok(progress)
    }

    /// For a waiter whose interrupt is overdue: does what the interrupt would have done, and
    /// makes the next one possible again (a status that stays set raises nothing).
    ///
    /// If work turns out to be done, [`Anomaly::LostInterrupt`] is reported and counted. That
    /// may also be an interrupt that is on its way; it will then be counted as spurious.
    ///
    /// # Errors
    ///
    /// [`Fault`], as [`poll`](Self::poll).
    pub fn check_lost_interrupt(&mut self) -> Result<Progress, Fault> {
        let progress = self.service()?;
        if progress.retired > 0 && progress.anomaly.is_none() {
            self.stats.lost_interrupts = self.stats.lost_interrupts.wrapping_add(1);
            return Ok(Progress {
                anomaly: Some(Anomaly::LostInterrupt),
                ..progress
            });
        }
        if progress.retired == 0 && self.ring.in_flight() > 0 {
            // Neither done nor failed: perhaps the engine has halted, or never heard the doorbell.
            let progress = self.look_for_halt()?;
            return match (progress.retired, progress.failure, progress.anomaly) {
                (0, None, None) => self.look_for_doorbell(),
                _ => Ok(progress),
            };
        }
        Ok(progress)
    }

    fn service(&mut self) -> Result<Progress, Fault> {
        if let State::Faulted(fault) = self.state {
            return Err(fault);
        }
        self.regs
            .write(Register::InterruptStatus, CLEAR_EARLY.bits());
        if self.ring.in_flight() == 0 {
            return Ok(self.progress(0, None, None));
        }
        let retired = self.retire_to_head()?;
        if self.ring.in_flight() == 0 {
            return Ok(self.progress(retired, None, None));
        }
        self.look_for_error()
            .map(|progress| Progress {
                retired: progress.retired.wrapping_add(retired),
                ..progress
            })
            .or_else(|fault| self.progress_before(fault, retired))
    }

    /// What a call returns that has retired something and then met a fault: the progress. The
    /// fault stays, and the next call reports it.
    fn progress_before(&self, fault: Fault, retired: u64) -> Result<Progress, Fault> {
        match retired {
            0 => Err(fault),
            _ => Ok(self.progress(retired, None, None)),
        }
    }

    #[inline]
    fn progress(
        &self,
        retired: u64,
        failure: Option<Failure>,
        anomaly: Option<Anomaly>,
    ) -> Progress {
        Progress {
            done_before: self.ring.oldest(),
            retired,
            failure,
            anomaly,
        }
    }

    pub(crate) fn set_fault(&mut self, fault: Fault) -> Fault {
        self.state = State::Faulted(fault);
        fault
    }

    /// Reads the head and retires what it has passed.
    #[inline]
    pub(crate) fn retire_to_head(&mut self) -> Result<u64, Fault> {
        let head = self.regs.read(Register::Head);
        match self.locate(head) {
            HeadPosition::Advanced(0) => {
                self.idle_polls = self.idle_polls.saturating_add(1);
                Ok(0)
            }
            HeadPosition::Advanced(count) => {
                if self.error_head == ErrorHead::PastFailing && self.error_pending()? {
                    // The last one passed is the one that failed.
                    let good = count.wrapping_sub(1);
                    self.retire_completed(good);
                    self.idle_polls = FIRST_ERROR_CHECK;
                    return Ok(good);
                }
                self.passed(count);
                Ok(count)
            }
            HeadPosition::Garbage => Err(self.bad_head(head)),
        }
    }

    /// What a head register value means.
    ///
    /// A function that was reset behind our back (by firmware, by its link) reads 0 as its head.
    /// For most rings that is no slot; for one that begins at a multiple of 4 GiB it is slot 0,
    /// and work would count as done that was lost. There the control register tells: it has
    /// forgotten where the ring is and how long.
    #[inline]
    pub(crate) fn locate(&self, head: u32) -> HeadPosition {
        if self.ring.is_slot_after_reset(head) && self.was_reset() {
            return HeadPosition::Garbage;
        }
        self.ring.locate(head)
    }

    /// Whether the control register has forgotten what the queue was programmed with.
    #[cold]
    fn was_reset(&self) -> bool {
        !self.knows_ring(self.regs.read(Register::Control))
    }

    /// The head has passed `count` descriptors, none of which failed.
    #[inline]
    fn passed(&mut self, count: u64) {
        self.retire_completed(count);
        self.idle_polls = 0;
        self.restarts = 0;
    }

    fn retire_completed(&mut self, count: u64) {
        self.ring.retire(count);
        self.stats.completed = self.stats.completed.wrapping_add(count);
    }

    #[cold]
    fn bad_head(&mut self, raw: u32) -> Fault {
        if raw == ALL_ONES && self.regs.read(Register::Version) == ALL_ONES {
            return self.set_fault(Fault::DeviceGone);
        }
        self.set_fault(Fault::BadHead { raw })
    }

    fn error_pending(&mut self) -> Result<bool, Fault> {
        let raw = self.regs.read(Register::InterruptStatus);
        if raw == ALL_ONES {
            return Err(self.set_fault(Fault::DeviceGone));
        }
        Ok(Interrupts::from_bits_retain(raw).contains(Interrupts::ERROR))
    }

    fn error_code(&mut self) -> Result<ErrorCode, Fault> {
        match self.regs.read(Register::Status) {
            ALL_ONES => Err(self.set_fault(Fault::DeviceGone)),
            status => Ok(ErrorCode::from_status(status)),
        }
    }

    #[cold]
    fn look_for_error(&mut self) -> Result<Progress, Fault> {
        self.idle_polls = self.idle_polls.saturating_add(1);
        if !self.error_pending()? {
            return Ok(self.progress(0, None, None));
        }
        self.take_failure()
    }

    /// The engine reported an error: finds the descriptor, skips it, lets the rest go on.
    fn take_failure(&mut self) -> Result<Progress, Fault> {
        let code = self.error_code()?;
        if let Err(control) = self.await_halt() {
            return Err(self.set_fault(if control == ALL_ONES {
                Fault::DeviceGone
            } else {
                Fault::WillNotHalt { code }
            }));
        }
        // The engine stands still: the head is final.
        let head = self.regs.read(Register::Head);
        let HeadPosition::Advanced(passed) = self.locate(head) else {
            return Err(self.bad_head(head));
        };
        let good = match self.error_head {
            ErrorHead::AtFailing => passed,
            ErrorHead::PastFailing => match passed.checked_sub(1) {
                Some(good) => good,
                None => return Err(self.set_fault(Fault::UnattributedError { code })),
            },
        };
        if good >= self.ring.in_flight() {
            // Nothing is left that could have failed; what the head passed just now cannot be
            // trusted, so it is not retired.
            return Err(self.set_fault(Fault::UnattributedError { code }));
        }
        self.retire_completed(good);
        let failure = self.skip_oldest(code);
        Ok(self.progress(good.wrapping_add(1), Some(failure), None))
    }

    /// Skips the descriptor at which the halted engine stands, and starts the engine again if
    /// there is more.
    fn skip_oldest(&mut self, code: ErrorCode) -> Failure {
        let cookie = self.ring.oldest();
        self.ring.retire(1);
        self.stats.failed = self.stats.failed.wrapping_add(1);
        self.idle_polls = 0;
        self.restarts = 0;
        self.regs
            .write(Register::InterruptStatus, Interrupts::KNOWN.bits());
        self.regs
            .write(Register::Head, self.ring.oldest_register_value());
        if self.ring.in_flight() > 0 && self.state == State::Running {
            self.start();
        }
        Failure { cookie, code }
    }

    /// Waits, a bounded number of reads, for an engine that has reported an error to be halted,
    /// telling it to if it is not. The error is the last control value read.
    pub(crate) fn await_halt(&self) -> Result<(), u32> {
        let mut control = self.regs.read(Register::Control);
        if control != ALL_ONES && control & QueueControl::HALT.bits() != 0 {
            return Ok(());
        }
        if control != ALL_ONES {
            let stop = self.run & !QueueControl::RUN.bits();
            self.regs.write(Register::Control, stop);
        }
        for _ in 0..HALT_POLLS {
            if control == ALL_ONES {
                return Err(control);
            }
            control = self.regs.read(Register::Control);
            if control != ALL_ONES && control & QueueControl::HALT.bits() != 0 {
                return Ok(());
            }
        }
        Err(control)
    }

    /// Looks whether the engine has halted with work to do.
    #[cold]
    fn look_for_halt(&mut self) -> Result<Progress, Fault> {
        self.idle_polls = self.idle_polls.saturating_add(1);
        let control = self.regs.read(Register::Control);
        if control == ALL_ONES {
            return Err(self.set_fault(Fault::DeviceGone));
        }
        if !self.knows_ring(control) {
            return Err(self.set_fault(Fault::Reset));
        }
        if !stands(control) || self.state == State::Paused {
            return Ok(self.progress(0, None, None));
        }
        // Halted. It may have drained the queue just before, or stand at a failure.
        if self.error_pending()? {
            return self.take_failure();
        }
        let retired = self.retire_to_head()?;
        if self.ring.in_flight() == 0 {
            return Ok(self.progress(retired, None, None));
        }
        let oldest = self.ring.oldest();
        if self.restarts >= MAX_RESTARTS {
            // A code without the interrupt bit: the engine may not latch that bit while the
            // interrupt is off. It has refused this descriptor, time and again.
            let code = match self.error_code() {
                Ok(code) => code,
                Err(fault) => return self.progress_before(fault, retired),
            };
            if code.raw() != 0 {
                let failure = self.skip_oldest(code);
                return Ok(self.progress(retired.wrapping_add(1), Some(failure), None));
            }
            let fault = self.set_fault(Fault::Halted { oldest });
            return self.progress_before(fault, retired);
        }
        self.restart(retired)
    }

    /// Looks whether the tail register holds what was written to it last.
    #[cold]
    fn look_for_doorbell(&mut self) -> Result<Progress, Fault> {
        self.idle_polls = self.idle_polls.saturating_add(1);
        let tail = self.regs.read(Register::Tail);
        if tail == ALL_ONES {
            return Err(self.bad_head(tail));
        }
        if tail == self.ring.issued_register_value() || self.state == State::Paused {
            return Ok(self.progress(0, None, None));
        }
        let oldest = self.ring.oldest();
        if self.restarts >= MAX_RESTARTS {
            return Err(self.set_fault(Fault::Halted { oldest }));
        }
        self.restart(0)
    }

    /// Rings the doorbell once more: the tail as well as RUN, for a function that was out of
    /// reach for a moment has lost both writes. An engine that stands at a failure is left
    /// standing.
    fn restart(&mut self, retired: u64) -> Result<Progress, Fault> {
        if self.was_reset() {
            let fault = self.set_fault(Fault::Reset);
            return self.progress_before(fault, retired);
        }
        self.restarts = self.restarts.saturating_add(1);
        self.stats.restarts = self.stats.restarts.wrapping_add(1);
        self.regs
            .write(Register::Tail, self.ring.issued_register_value());
        self.start_if_standing();
        Ok(self.progress(retired, None, Some(Anomaly::Restarted)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_rare_and_never_stop() {
        let at = |what| {
            (0..if cfg!(miri) { 9_000 } else { 40_000 })
                .filter(|n| look(*n) == what)
                .collect::<std::vec::Vec<u32>>()
        };
        let (errors, halts) = (at(Look::Errors), at(Look::Halt));
        let doorbells = at(Look::Doorbell);
        assert_eq!(errors[..6], [8, 16, 32, 64, 128, 256]);
        assert_eq!(halts[..6], [12, 24, 48, 96, 192, 384]);
        assert_eq!(doorbells[..6], [20, 40, 80, 160, 320, 640]);
        for checks in [&errors, &halts, &doorbells] {
            for pair in checks.windows(2) {
                assert!(pair[1] <= 2 * pair[0] || pair[1] - pair[0] <= CHECK_INTERVAL);
            }
            assert!(*checks.last().unwrap() > if cfg!(miri) { 4_000 } else { 35_000 });
            assert!(checks.len() < 30);
        }
    }
}
