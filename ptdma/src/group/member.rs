//! One channel of a group, with what its users must learn of each other.

use heapless::{Deque, Vec};

use super::GroupError;
use super::cut::Pieces;
use super::ticket::{Part, PieceFailure};
use crate::channel::Channel;
use crate::clock::Deadline;
use crate::completion::Progress;
use crate::cookie::Cookie;
use crate::error::{Anomaly, BringUpError, Failure, Fault, NotStopped, SubmitError};
use crate::io::{Clock, RegisterIo, RingMemory};
use crate::lifecycle::{FunctionQuiesced, Terminated};
use crate::request::{CopyRequest, Notify};

/// Failures that a channel keeps until their tickets ask. While it is full the channel is not
/// polled, so that the engine stands at the next failed descriptor instead of one getting lost;
/// each ticket's next poll makes room. 16 entries are 256 bytes.
const FAILURE_LOG: usize = 16;

/// Stops that a channel remembers, for tickets that have not polled since. One older than that
/// is told that all of its share was dropped, which is safe.
const STOP_LOG: usize = 4;

/// One stop of a channel: everything from `first_dropped` on that had been submitted was dropped.
#[derive(Clone, Copy, Debug)]
struct Stop {
    epoch: u32,
    first_dropped: Cookie,
}

/// Where a ticket's part stands.
pub(crate) enum PartState {
    Finished,
    Pending,
    Faulted(Fault),
}

/// A channel in a group: what a [`Lock`](crate::Lock) of the platform's is put around.
pub struct Member<R, M> {
    channel: Channel<R, M>,
    reserved: u64,
    failures: Vec<Failure, FAILURE_LOG>,
    epoch: u32,
    stops: Deque<Stop, STOP_LOG>,
}

impl<R: RegisterIo, M: RingMemory> Member<R, M> {
    /// Wraps a channel for a group.
    #[must_use]
    pub fn new(channel: Channel<R, M>) -> Self {
        Self {
            channel,
            reserved: 0,
            failures: Vec::new(),
            epoch: 0,
            stops: Deque::new(),
        }
    }

    /// Unwraps it, for shutting it down.
    #[must_use]
    pub fn into_channel(self) -> Channel<R, M> {
        self.channel
    }

    pub(crate) fn channel(&self) -> &Channel<R, M> {
        &self.channel
    }

    pub(crate) fn channel_mut(&mut self) -> &mut Channel<R, M> {
        &mut self.channel
    }

    /// Sets `needed` slots aside.
    pub(crate) fn reserve(&mut self, channel: usize, needed: u64) -> Result<(), GroupError> {
        let capacity = self.channel.capacity();
        if needed > capacity as u64 {
            return Err(GroupError::TooManyDescriptors {
                channel,
                needed,
                capacity,
            });
        }
        let free = (self.channel.burst_capacity() as u64).saturating_sub(self.reserved);
        if needed > free {
            return Err(GroupError::Busy {
                channel,
                needed,
                free: free as usize,
            });
        }
        self.reserved = self.reserved.saturating_add(needed);
        Ok(())
    }

    pub(crate) fn release(&mut self, count: u64) {
        self.reserved = self.reserved.saturating_sub(count);
    }

    /// Submits a part's pieces into the slots reserved for it, and rings the doorbell once.
    pub(crate) fn fill(&mut self, part: &mut Part, pieces: Pieces<'_>, notify: Notify) {
        self.release(part.count);
        part.first = self.channel.next_cookie();
        part.epoch = self.epoch;
        let limits = self.channel.limits();
        let mut submitted = 0_u64;
        for piece in pieces {
            let done = CopyRequest::new(piece.src, piece.dst, u64::from(piece.len_bytes), limits)
                .map_err(SubmitError::from)
                .and_then(|request| self.channel.submit(&request, Notify::Silent));
            if done.is_err() {
                // A fault since the room was reserved (requests and room were checked before).
                // What is missing is reported by the poll.
                break;
            }
            submitted = submitted.saturating_add(1);
        }
        part.unsubmitted = part.count.saturating_sub(submitted);
        self.channel.issue_pending(notify);
    }

    pub(crate) fn poll_part(
        &mut self,
        part: &mut Part,
        on_failure: &mut impl FnMut(PieceFailure),
    ) -> PartState {
        let failure = |ordinal, code| PieceFailure {
            channel: part.channel,
            share: part.share,
            ordinal,
            code,
        };
        // The log may be what keeps the channel from being polled: make room first.
        self.take_failures(part, on_failure);
        let mut fault = None;
        if part.epoch == self.epoch && !self.retired(part) && !self.failures.is_full() {
            match self.channel.poll() {
                Ok(progress) => {
                    self.log(progress);
                    self.take_failures(part, on_failure);
                }
                Err(e) => fault = Some(e),
            }
        }
        let first_dropped = self.first_dropped_since(part);
        if first_dropped.is_none() && !self.retired(part) {
            return fault.map_or(PartState::Pending, PartState::Faulted);
        }
        // The ordinals from the first dropped on were dropped, or retired before the stop.
        if let Some(first_dropped) = first_dropped {
            let kept = if first_dropped.is_before(part.first) {
                0
            } else {
                first_dropped.since(part.first).min(part.submitted())
            };
            for ordinal in kept..part.submitted() {
                on_failure(failure(ordinal, None));
            }
        }
        for ordinal in part.submitted()..part.count {
            on_failure(failure(ordinal, None));
        }
        PartState::Finished
    }

    fn retired(&self, part: &Part) -> bool {
        part.submitted() == 0
            || !self
                .channel
                .done_before()
                .is_before(part.first.after(part.submitted()))
    }

    /// If the channel was stopped since the part was submitted, the first cookie that was dropped.
    fn first_dropped_since(&self, part: &Part) -> Option<Cookie> {
        if part.epoch == self.epoch {
            return None;
        }
        let stop = self
            .stops
            .iter()
            .find(|stop| stop.epoch == part.epoch)
            .map(|stop| stop.first_dropped);
        Some(stop.unwrap_or(part.first))
    }

    /// Hands out and forgets the logged failures of a part.
    fn take_failures(&mut self, part: &Part, on_failure: &mut impl FnMut(PieceFailure)) {
        self.failures.retain(|logged| {
            let Some(ordinal) = part.ordinal(logged.cookie) else {
                return true;
            };
            on_failure(PieceFailure {
                channel: part.channel,
                share: part.share,
                ordinal,
                code: Some(logged.code),
            });
            false
        });
    }

    fn log(&mut self, progress: Progress) {
        if let Some(failure) = progress.failure {
            // Room was made sure of before the channel was asked.
            let _ = self.failures.push(failure);
        }
    }

    pub(crate) fn handle_interrupt(&mut self) -> Result<(), Fault> {
        if self.failures.is_full() {
            return Ok(());
        }
        let progress = self.channel.handle_interrupt()?;
        self.log(progress);
        Ok(())
    }

    pub(crate) fn check_lost_interrupt(&mut self) -> bool {
        if self.failures.is_full() {
            return false;
        }
        let Ok(progress) = self.channel.check_lost_interrupt() else {
            return false;
        };
        self.log(progress);
        progress.anomaly == Some(Anomaly::LostInterrupt)
    }

    pub(crate) fn terminate<C: Clock + ?Sized>(
        &mut self,
        clock: &C,
        deadline: Deadline,
    ) -> Result<Terminated, NotStopped> {
        let terminated = self.channel.terminate(clock, deadline)?;
        self.stopped(&terminated);
        Ok(terminated)
    }

    pub(crate) fn recover(&mut self, proof: FunctionQuiesced) -> Result<Terminated, BringUpError> {
        match self.channel.recover(proof) {
            Ok(terminated) => {
                self.stopped(&terminated);
                Ok(terminated)
            }
            Err((e, terminated)) => {
                self.stopped(&terminated);
                Err(e)
            }
        }
    }

    fn stopped(&mut self, terminated: &Terminated) {
        if self.stops.is_full() {
            let _ = self.stops.pop_front();
        }
        let _ = self.stops.push_back(Stop {
            epoch: self.epoch,
            first_dropped: terminated.first_dropped,
        });
        self.epoch = self.epoch.wrapping_add(1);
    }
}
