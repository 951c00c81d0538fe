//! Failed descriptors: which one it was, and how the others go on.
//!
//! ERROR in the interrupt status is the only proof of a failure. Its absence is the only proof that
//! what the head has passed is good. The error code is for people. What the head says after an
//! error depends on the engine, see [`ErrorHead`]. Where that is not known, the driver runs again
//! everything that is not known to be good, one descriptor at a time. Its memory is still the
//! engine's, so running it again harms nobody.

use crate::channel::{Channel, ErrorHead, HALT_LOOKS, REST_LOOKS, State, has_halted, has_run};
use crate::completion::Progress;
use crate::error::{Anomaly, Failure, Fault};
use crate::error_code::ErrorCode;
use crate::io::{RegisterIo, RingMemory};
use crate::regs::{ALL_ONES, Interrupts, Register};
use crate::ring::HeadPosition;
use crate::traits::{Restart, Seen};

impl<R: RegisterIo, M: RingMemory> Channel<R, M> {
    /// Whether the engine has reported an error that is not settled. If not, none was skipped either.
    pub(crate) fn error_pending(&mut self) -> Result<bool, Fault> {
        let raw = self.regs.read(Register::InterruptStatus);
        if raw == ALL_ONES {
            return Err(self.set_fault(Fault::DeviceGone));
        }
        let reported = Interrupts::from_bits_retain(raw).contains(Interrupts::ERROR);
        let failed = reported || self.unsettled;
        if !failed && self.raced {
            self.raced = false;
            self.set_caution();
        }
        Ok(failed)
    }

    /// Whether the engine has reported an error of what its head has passed. Clear, it says that
    /// all of that is copied.
    ///
    /// A reset clears the status, and switches off what latches it. So a register is read last that
    /// shows a reset.
    #[inline(never)]
    pub(crate) fn failed_behind_head(&mut self) -> Result<bool, Fault> {
        if self.error_pending()? {
            return Ok(true);
        }
        self.still_programmed().map(|()| false)
    }

    /// Makes sure that the function was not reset since it was programmed.
    ///
    /// The interrupt enable register shows that for good, where it reads back: control is written
    /// again for each burst, which hides a reset just before.
    fn still_programmed(&mut self) -> Result<(), Fault> {
        let (raw, holds) = if self.enable_reads {
            let raw = self.regs.read(Register::InterruptEnable);
            let enabled = Interrupts::from_bits_retain(raw);
            (raw, enabled.contains(Interrupts::ERROR))
        } else {
            let raw = self.read_control();
            (raw, self.knows_ring(raw))
        };
        match raw {
            ALL_ONES => Err(self.set_fault(Fault::DeviceGone)),
            _ if holds => Ok(()),
            _ => Err(self.set_fault(Fault::Reset)),
        }
    }

    fn error_code(&mut self) -> Result<ErrorCode, Fault> {
        match self.regs.read(Register::Status) {
            ALL_ONES => Err(self.set_fault(Fault::DeviceGone)),
            status => {
                self.note_job_status(status);
                Ok(ErrorCode::from_status(status))
            }
        }
    }

    /// Notes whether the status register has the sibling's job field.
    pub(crate) fn note_job_status(&mut self, status: u32) {
        const JOB: u32 = 0b111 << 7;
        if self.traits.job_status != Seen::Yes {
            self.traits.job_status = Seen::of(status & JOB != 0);
        }
    }

    /// The engine reported an error: finds the descriptor, skips it, lets the rest go on.
    #[cold]
    pub(crate) fn take_failure(&mut self) -> Result<Progress, Fault> {
        // Before RUN is written or control is: either may clear the code.
        let code = self.error_code()?;
        self.come_to_rest(code)?;
        // The engine stands still: the head is final.
        let head = self.regs.read(Register::Head);
        let HeadPosition::Advanced(passed) = self.ring.locate(head) else {
            return Err(self.bad_head(head));
        };
        let Some(good) = self.good_before_failure(passed) else {
            return self.replay();
        };
        if self.ring.handed_out() == 1 && passed == 0 && self.head_stays_at(head) {
            // Nothing else can have failed, and the head is at it.
            self.traits.error_head = ErrorHead::AtFailing;
        }
        self.retire_completed(good);
        let failure = self.skip_oldest(code);
        Ok(self.progress(good.wrapping_add(1), Some(failure), None))
    }

    /// Whether the head is where it is for good, of an engine that stands. Looked at longer than
    /// elsewhere, for what is learned from it is believed ever after.
    pub(crate) fn head_stays_at(&self, head: u32) -> bool {
        self.traits.error_head == ErrorHead::AtFailing
            || (0..REST_LOOKS).all(|_| self.regs.read(Register::Head) == head)
    }

    /// How many descriptors are good before the one that failed, of the engine that stands with an
    /// error and has its head behind `passed`. Nothing if that cannot be known.
    pub(crate) fn good_before_failure(&self, passed: u64) -> Option<u64> {
        if self.ring.handed_out() == 1 && !self.raced {
            return Some(0);
        }
        match self.traits.error_head {
            _ if self.raced => None,
            ErrorHead::AtFailing => (passed < self.ring.handed_out()).then_some(passed),
            ErrorHead::PastFailing => passed.checked_sub(1),
            ErrorHead::Unknown => None,
        }
    }

    /// Takes RUN away from an engine that has reported an error, and makes sure, with a bounded
    /// number of reads, that it stands.
    ///
    /// Behind an error the engine does not go on by itself. HALT, if it says so, or a head that
    /// stays where it is, only shows that its registers have followed. An engine that RUN may have
    /// set going over the error has to prove more. A HALT that was seen to rise is a proof, and so
    /// is an empty queue, or another error. A HALT that reads 1 for longer than a late one lasts,
    /// which is microseconds, is one too. A head that does not move proves nothing there: the
    /// engine may hang.
    pub(crate) fn come_to_rest(&mut self, code: ErrorCode) -> Result<(), Fault> {
        // A paused channel starts nothing, not even for a proof.
        let may_start = self.raced && self.state == State::Running;
        match self.rests(self.raced)? || may_start && self.ends_race()? {
            true => Ok(()),
            false => Err(self.set_fault(Fault::WillNotHalt { code })),
        }
    }

    /// Whether an engine that RUN may have set going over an error has come to stand since.
    #[cold]
    fn ends_race(&mut self) -> Result<bool, Fault> {
        Ok(self.fails_again_or_drains()? && self.rests(false)?)
    }

    /// Sets an engine going that may stand at an error or be at work behind it. False if neither an
    /// error nor the end of its work shows.
    ///
    /// RUN is written first, then the status is cleared. Behind an error that shows from then on
    /// the engine stands, as no RUN follows it. All that the engine was given is still the
    /// engine's, and is run again afterwards. An error between the two writes is lost: then it is
    /// tried again.
    #[cold]
    fn fails_again_or_drains(&mut self) -> Result<bool, Fault> {
        // With the looks of each, as long as `HALT_LOOKS`, and more often than chance loses errors.
        const TRIES: u32 = 24;
        for _ in 0..TRIES {
            match self.still_has_ring() {
                None => return Err(Fault::Reset),
                Some(ALL_ONES) => return Err(self.set_fault(Fault::DeviceGone)),
                Some(_) => {}
            }
            self.start();
            self.unsettled = true;
            self.regs
                .write(Register::InterruptStatus, Interrupts::KNOWN.bits());
            for _ in 0..REST_LOOKS {
                let status = self.regs.read(Register::InterruptStatus);
                if status == ALL_ONES {
                    return Err(self.set_fault(Fault::DeviceGone));
                }
                if status & Interrupts::ERROR.bits() != 0 {
                    self.stats.replays = self.stats.replays.wrapping_add(1);
                    self.still_programmed()?;
                    return Ok(true);
                }
                if self.regs.read(Register::Head) == self.ring.handed_register_value() {
                    self.still_programmed()?;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Takes RUN away and looks whether the engine stands; one that is `raced` has to prove more.
    fn rests(&mut self, raced: bool) -> Result<bool, Fault> {
        let Some(mut control) = self.still_has_ring() else {
            return Err(Fault::Reset);
        };
        let mut halted = false;
        let mut head = self.regs.read(Register::Head);
        let mut at_rest = 0_u32;
        let mut halt_stays = true;
        for _ in 0..HALT_LOOKS {
            if control == ALL_ONES {
                return Err(self.set_fault(Fault::DeviceGone));
            }
            if !self.knows_ring(control) {
                return Err(self.set_fault(Fault::Reset));
            }
            // Of what control was before RUN was taken away too: the write may clear HALT.
            halted |= has_halted(control) && (!raced || self.run_taken && self.halt_fell);
            if !self.run_taken || has_run(control) {
                // Also where that was tried before, and the write was lost.
                self.take_run();
            }
            let now = self.regs.read(Register::Head);
            at_rest = if now == head {
                at_rest.saturating_add(1)
            } else {
                0
            };
            head = now;
            let rested = if raced {
                head == self.ring.handed_register_value()
            } else {
                at_rest >= REST_LOOKS
            };
            if at_rest > 0 && (halted || rested) {
                return Ok(true);
            }
            halt_stays &= has_halted(control);
            control = self.read_control();
        }
        Ok(halt_stays && at_rest >= REST_LOOKS)
    }

    /// Runs everything again that the engine was given and that is not retired, one descriptor at
    /// a time. The engine stands.
    #[cold]
    fn replay(&mut self) -> Result<Progress, Fault> {
        if self.traits.error_head == ErrorHead::AtFailing && !self.raced {
            // It said that it had passed everything: that is not what it was taken for.
            self.traits.error_head = ErrorHead::Unknown;
        }
        // At most the ring's entries.
        self.replay_left = self.ring.handed_out() as u16;
        self.stats.replays = self.stats.replays.wrapping_add(1);
        self.ring.rewind();
        self.go_on_from_oldest()?;
        Ok(self.progress(0, None, Some(Anomaly::Replay)))
    }

    /// Skips the oldest descriptor, which failed, and lets the engine, which stands, go on behind
    /// it. A fault met there stays for the next call: the failure is told by this one alone.
    fn skip_oldest(&mut self, code: ErrorCode) -> Failure {
        let cookie = self.ring.oldest();
        self.ring.retire(1);
        self.replay_left = self.replay_left.saturating_sub(1);
        if self.traits.error_head == ErrorHead::AtFailing {
            // From here on the head names what fails.
            self.replay_left = 0;
        }
        self.stats.failed = self.stats.failed.wrapping_add(1);
        let _ = self.go_on_from_oldest();
        Failure { cookie, code }
    }

    /// Moves the head of the engine, which stands, to the oldest descriptor, forgets the error,
    /// and sets the engine going on what there is.
    fn go_on_from_oldest(&mut self) -> Result<(), Fault> {
        self.idle_polls = 0;
        self.restarts = 0;
        self.raced = false;
        self.set_caution();
        let tail = self.next_tail();
        let head = self.ring.oldest_register_value();
        self.regs.write(Register::Tail, tail);
        self.regs.write(Register::Head, head);
        // A function that was out of reach for a moment has its head at what is the owner's again.
        let reads = self.regs.read(Register::Head);
        if reads != head {
            let offset = Register::Head.offset();
            return Err(self.set_fault(Fault::NotAccepted { offset, reads }));
        }
        // Not before the head has moved: a clean status says that what the head passed is good.
        self.regs
            .write(Register::InterruptStatus, Interrupts::KNOWN.bits());
        self.unsettled = false;
        self.still_programmed()?;
        if self.ring.handed_out() > 0 && self.state == State::Running {
            self.start();
        }
        Ok(())
    }

    /// What the tail register has to hold: one more descriptor while they are run one at a time,
    /// else all.
    fn next_tail(&mut self) -> u32 {
        if self.replay_left > 0 {
            let interrupt = self.signalling == crate::Signalling::Interrupts;
            self.ring.hand_one(interrupt)
        } else {
            self.ring.hand_all()
        }
    }

    /// A descriptor that was run alone is good, and retired: hands out the next, or all others if
    /// it was the last of those.
    pub(crate) fn replay_next(&mut self) -> Result<(), Fault> {
        self.replay_left = self.replay_left.saturating_sub(1);
        self.set_caution();
        if self.ring.in_flight() == 0 {
            return Ok(());
        }
        if self.armed {
            let tail = self.next_tail();
            self.regs.write(Register::Tail, tail);
            return Ok(());
        }
        match self.still_has_ring() {
            Some(control) => {
                let tail = self.next_tail();
                self.ring_idle(control, tail);
                Ok(())
            }
            None => Err(Fault::Reset),
        }
    }

    /// The engine did not go on although its tail was right: it needs RUN after all.
    pub(crate) fn needs_run(&mut self) {
        if self.traits.restart == Restart::ByTail {
            self.traits.restart = Restart::ByRun;
            self.armed = false;
        }
    }
}
