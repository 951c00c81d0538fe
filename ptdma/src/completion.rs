//! Finding out what the engine has done: polls and the interrupt entry point.
//!
//! Completion is in order and read off one register, the head. There is no per-descriptor status
//! in memory, so everything unusual is noticed by the head not moving:
//!
//! - A poll reads the head. A poll that finds progress also reads the interrupt status, unless the
//!   engine is known to keep its head at a failed descriptor. Without an error, what the head has
//!   passed is copied. In this order, for what fails after the head was read is not of it. A third
//!   read makes sure that no reset has cleared the status in between.
//! - While the head stands still, the 8th, 16th, 32nd ... poll reads control, head, interrupt
//!   status and tail together. The whole picture shows an error, a reset, an engine that stands, or
//!   a doorbell that never arrived. A long copy thus costs next to nothing, and a failure is found
//!   within twice the time that it was looked for already.
//! - The interrupt entry point clears everything but ERROR *before* it reads the head. What
//!   completes after the clear raises anew; what completed before is in the head.

use crate::channel::{Channel, State, has_halted, has_run};
use crate::cookie::Cookie;
use crate::error::{Anomaly, Failure, Fault};
use crate::io::{RegisterIo, RingMemory};
use crate::regs::{ALL_ONES, Interrupts, Register};
use crate::ring::HeadPosition;
use crate::traits::Restart;

/// First poll without progress that reads more than the head. Small enough to notice a failure in
/// a microsecond, large enough that a short copy is never disturbed.
const FIRST_DIAGNOSIS: u32 = 8;
/// The doubling ends here: from then on one poll of so many reads more than the head. 4096 polls
/// are some 0.5 ms on hardware.
const DIAGNOSIS_INTERVAL: u32 = 4096;
/// Polls without progress before an engine that says HALT, and was not seen to fall out of it, is
/// taken to stand. Until then it may be starting: 256 polls are 25 us at the least.
const SLOW_START: u32 = 256;
/// How often in a row a halted engine is started again without progress before that is a fault.
/// One restart covers a RUN write that the engine missed; three leave no doubt.
const MAX_RESTARTS: u8 = 3;

/// What the driver clears in the interrupt entry point: all but ERROR, which is needed to know
/// that the queue stands at a failed descriptor.
const CLEAR_EARLY: Interrupts = Interrupts::COMPLETION
    .union(Interrupts::STOPPED)
    .union(Interrupts::EMPTY);

/// What one poll or interrupt found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
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

/// Whether the poll after `idle_polls` polls without progress looks at the whole picture.
fn is_diagnosis(idle_polls: u32) -> bool {
    if idle_polls >= DIAGNOSIS_INTERVAL {
        idle_polls.is_multiple_of(DIAGNOSIS_INTERVAL)
    } else {
        idle_polls >= FIRST_DIAGNOSIS && idle_polls.is_power_of_two()
    }
}

impl<R: RegisterIo, M: RingMemory> Channel<R, M> {
    /// Looks once what the engine has done.
    ///
    /// A poll reads nothing if nothing is in flight, else one register. Progress takes three reads
    /// if the engine's [`ErrorHead`](crate::ErrorHead) is not known to be at a failing descriptor.
    /// The 8th, 16th, 32nd ... poll without progress makes four. Only a failure, a halt, or a head
    /// that makes no sense costs more. Right in either [`Signalling`](crate::Signalling).
    ///
    /// Does not wait, except for a bounded number of reads (3,000 at most, some milliseconds)
    /// while an engine that reported an error comes to rest.
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
        if self.idle_polls < FIRST_DIAGNOSIS {
            return self.look();
        }
        self.poll_again()
    }

    /// A [`poll`](Self::poll) for the usual case: what it would find out is no more than how far
    /// the engine is, which is the answer's [`done_before`](Progress::done_before). `None` if there
    /// is more to it: then nothing is lost by it, and `poll` says what.
    ///
    /// The same reads as `poll`'s, at most.
    #[inline]
    pub fn poll_head(&mut self) -> Option<Cookie> {
        if matches!(self.state, State::Faulted(_))
            || self.idle_polls >= FIRST_DIAGNOSIS
            || self.replay_left > 0
            || self.ring.in_flight() == 0
        {
            return None;
        }
        let head = self.regs.read(Register::Head);
        match self.ring.locate(head) {
            HeadPosition::Advanced(0) => self.idle_polls = self.idle_polls.saturating_add(1),
            HeadPosition::Advanced(count) => {
                // Nothing is retired yet, so poll finds the failure where it is.
                if self.cautious && self.failed_behind_head().ok()? {
                    return None;
                }
                self.passed(count);
            }
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
        if is_diagnosis(self.idle_polls) {
            self.diagnose()
        } else {
            self.look()
        }
    }

    /// Reads the head and retires what it has passed.
    #[inline]
    fn look(&mut self) -> Result<Progress, Fault> {
        let head = self.regs.read(Register::Head);
        match self.ring.locate(head) {
            HeadPosition::Advanced(0) => {
                self.idle_polls = self.idle_polls.saturating_add(1);
                Ok(self.progress(0, None, None))
            }
            HeadPosition::Advanced(count) if !self.cautious => {
                self.passed(count);
                Ok(self.progress(count, None, None))
            }
            HeadPosition::Advanced(count) => self.look_twice(count),
            HeadPosition::Garbage => Err(self.bad_head(head)),
        }
    }

    /// The head has passed `count` descriptors. They are good if there was no error.
    #[inline(never)]
    fn look_twice(&mut self, count: u64) -> Result<Progress, Fault> {
        if self.failed_behind_head()? {
            return self.take_failure();
        }
        self.passed_good(count)
    }

    /// The head has passed `count` descriptors, and there was no error.
    fn passed_good(&mut self, count: u64) -> Result<Progress, Fault> {
        self.passed(count);
        if self.replay_left > 0
            && let Err(fault) = self.replay_next()
        {
            return self.progress_before(fault, count);
        }
        Ok(self.progress(count, None, None))
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

    /// Does what an overdue interrupt would have done, for a waiter. The next interrupt becomes
    /// possible too: a status that stays set raises nothing.
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
        let nothing =
            progress.retired == 0 && progress.failure.is_none() && progress.anomaly.is_none();
        if nothing && self.ring.in_flight() > 0 {
            // Neither done nor failed: perhaps the engine has halted, or never heard the doorbell.
            // What is overdue has had its time to start.
            self.idle_polls = self.idle_polls.max(SLOW_START);
            return self.diagnose();
        }
        Ok(progress)
    }

    fn service(&mut self) -> Result<Progress, Fault> {
        if let State::Faulted(fault) = self.state {
            return Err(fault);
        }
        if self.ring.in_flight() == 0 {
            // Nothing is left that an error could be of, and one that stays raises nothing more.
            let all = Interrupts::KNOWN.bits();
            self.regs.write(Register::InterruptStatus, all);
            return Ok(self.progress(0, None, None));
        }
        self.regs
            .write(Register::InterruptStatus, CLEAR_EARLY.bits());
        let progress = self.look()?;
        let looked_twice = self.cautious && progress.retired > 0 || progress.failure.is_some();
        if self.ring.in_flight() == 0 || looked_twice || progress.anomaly.is_some() {
            return Ok(progress);
        }
        match self.error_pending() {
            Ok(true) => {}
            Ok(false) => return Ok(progress),
            Err(fault) => return self.progress_before(fault, progress.retired),
        }
        let retired = progress.retired;
        self.take_failure()
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
    pub(crate) fn progress(
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

    /// The head has passed `count` descriptors, none of which failed.
    #[inline]
    fn passed(&mut self, count: u64) {
        self.retire_completed(count);
        self.idle_polls = 0;
        self.restarts = 0;
    }

    pub(crate) fn retire_completed(&mut self, count: u64) {
        self.ring.retire(count);
        self.stats.completed = self.stats.completed.wrapping_add(count);
    }

    #[cold]
    pub(crate) fn bad_head(&mut self, raw: u32) -> Fault {
        if raw == ALL_ONES && self.regs.read(Register::Version) == ALL_ONES {
            return self.set_fault(Fault::DeviceGone);
        }
        self.set_fault(Fault::BadHead { raw })
    }

    /// Looks at control, head, interrupt status and tail together, after a while without progress.
    #[cold]
    fn diagnose(&mut self) -> Result<Progress, Fault> {
        let idle_polls = self.idle_polls;
        self.idle_polls = self.idle_polls.saturating_add(1);
        let Some(control) = self.still_has_ring() else {
            return Err(Fault::Reset);
        };
        if control == ALL_ONES {
            return Err(self.set_fault(Fault::DeviceGone));
        }
        let head = self.regs.read(Register::Head);
        if self.error_pending()? {
            return self.take_failure();
        }
        match self.ring.locate(head) {
            HeadPosition::Advanced(0) => {}
            HeadPosition::Advanced(count) if !self.cautious => return self.passed_good(count),
            HeadPosition::Advanced(count) => return self.look_twice(count),
            HeadPosition::Garbage => return Err(self.bad_head(head)),
        }
        let tail = self.regs.read(Register::Tail);
        if tail == ALL_ONES {
            return Err(self.bad_head(tail));
        }
        if self.state == State::Paused {
            return Ok(self.progress(0, None, None));
        }
        if tail != self.ring.handed_register_value() {
            // A function that was out of reach for a moment has lost the doorbell.
            return self.restart();
        }
        if self.has_stopped(control) || has_halted(control) && self.halt_fell {
            self.needs_run();
            return self.restart();
        }
        // Nobody knows what sets this engine going. It may have drained just before its new tail
        // came, and control need not show that.
        let may_stand =
            has_halted(control) || !has_run(control) || self.traits.restart == Restart::Unknown;
        if may_stand && idle_polls >= SLOW_START && self.restarts < MAX_RESTARTS {
            // Not certain, so it is no fault if it does not help.
            self.needs_run();
            return self.restart();
        }
        Ok(self.progress(0, None, None))
    }

    /// Rings the doorbell once more. A function that was out of reach for a moment has lost both
    /// the tail and RUN. An engine that stands at a failure is left standing.
    fn restart(&mut self) -> Result<Progress, Fault> {
        if self.restarts >= MAX_RESTARTS {
            let oldest = self.ring.oldest();
            return Err(self.set_fault(Fault::Halted { oldest }));
        }
        self.restarts = self.restarts.saturating_add(1);
        self.stats.restarts = self.stats.restarts.wrapping_add(1);
        self.regs
            .write(Register::Tail, self.ring.handed_register_value());
        self.start_again();
        match self.state {
            State::Faulted(fault) => Err(fault),
            _ => Ok(self.progress(0, None, Some(Anomaly::Restarted))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diagnoses_are_rare_and_never_stop() {
        let polls = if cfg!(miri) { 9_000 } else { 40_000 };
        let diagnoses: std::vec::Vec<u32> = (0..polls).filter(|n| is_diagnosis(*n)).collect();
        assert_eq!(diagnoses[..6], [8, 16, 32, 64, 128, 256]);
        for pair in diagnoses.windows(2) {
            assert!(pair[1] == 2 * pair[0] || pair[1] - pair[0] == DIAGNOSIS_INTERVAL);
        }
        assert!(*diagnoses.last().unwrap() > polls - 2 * DIAGNOSIS_INTERVAL);
        assert!(diagnoses.len() < 30);
    }
}
