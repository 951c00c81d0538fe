//! One channel of a group, with what its users must learn of each other.

use core::ops::Range;

use heapless::{Deque, Vec};

use super::GroupError;
use super::cut::Pieces;
use super::ticket::{Part, PieceFailure};
use crate::channel::Channel;
use crate::clock::Deadline;
use crate::completion::Progress;
use crate::cookie::Cookie;
use crate::error::{Anomaly, BringUpError, Failure, Fault, NotStopped, SubmitError};
use crate::error_code::ErrorCode;
use crate::io::{Clock, RegisterIo, RingMemory};
use crate::lifecycle::{FunctionQuiesced, Terminated};
use crate::request::{CopyRequest, Notify};

/// Failures that a channel keeps until their tickets ask. While it is full the channel is not
/// polled, so that the engine stands at the next failed descriptor instead of one getting lost;
/// each ticket's next poll makes room. 16 entries are 256 bytes.
const FAILURE_LOG: usize = 16;

/// How often a channel may be asked in vain, for want of room in its log, before it takes the
/// tickets that have not asked meanwhile to be forgotten: then their failures leave the log, and a
/// ticket that asks after all is told of more failures than there were, never of fewer. Whoever
/// waits for a ticket polls it far more often; 20,000 polls are 2 ms at the very least.
const PATIENCE: u32 = 20_000;

/// Stops that a channel remembers, for tickets that have not polled since. One older than that
/// is told that all of its share was dropped, which is safe.
const STOP_LOG: usize = 4;

/// One stop of a channel: everything from `first_dropped` on that had been submitted was dropped.
#[derive(Clone, Copy, Debug)]
struct Stop {
    epoch: u32,
    first_dropped: Cookie,
}

/// What a look at a channel has to tell a ticket, by the pieces of its part. Kept until the
/// channel's lock is free again: the owner's closure may use the group.
#[derive(Default)]
pub(crate) struct News {
    /// Failures that left the log before they were told, and what lies between them.
    untold: Range<u64>,
    /// Failures, with their codes. A look finds one, on top of those in the log.
    failed: Vec<(u64, ErrorCode), { FAILURE_LOG + 1 }>,
    /// Dropped, or never submitted.
    lost: Range<u64>,
}

impl News {
    /// Tells it.
    pub(crate) fn tell(self, part: &Part, on_failure: &mut impl FnMut(PieceFailure)) {
        let failure = |ordinal, code| PieceFailure {
            channel: part.channel,
            share: part.share,
            ordinal,
            code,
        };
        for ordinal in self.untold {
            on_failure(failure(ordinal, None));
        }
        for (ordinal, code) in self.failed {
            on_failure(failure(ordinal, Some(code)));
        }
        for ordinal in self.lost {
            on_failure(failure(ordinal, None));
        }
    }
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
    /// Polls in a row that the full log has kept from the channel.
    blocked: u32,
    /// From the first to behind the last descriptor whose failure has left the log untold.
    untold: Option<(Cookie, Cookie)>,
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
            blocked: 0,
            untold: None,
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

    /// Looks at the channel for a part. What there is to tell goes to `news`, each failure once.
    pub(crate) fn poll_part(&mut self, part: &mut Part, news: &mut News) -> PartState {
        // The log may be what keeps the channel from being polled: make room first.
        self.take_failures(part, news);
        let mut fault = None;
        if part.epoch == self.epoch && !self.retired(part) && self.has_room() {
            match self.channel.poll() {
                Ok(progress) => {
                    self.log(progress);
                    self.take_failures(part, news);
                }
                Err(e) => fault = Some(e),
            }
        }
        let first_dropped = self.first_dropped_since(part);
        if first_dropped.is_none() && !self.retired(part) {
            return fault.map_or(PartState::Pending, PartState::Faulted);
        }
        // The ordinals from the first dropped on were dropped, or retired before the stop. What
        // was told before is before those.
        let submitted = part.submitted();
        let kept = match first_dropped {
            None => submitted,
            Some(cookie) if cookie.is_before(part.first) => 0,
            Some(cookie) => cookie.since(part.first).min(submitted),
        };
        let from = kept.max(part.told);
        news.lost = from.min(part.count)..part.count;
        part.told = part.count;
        PartState::Finished
    }

    /// Whether the log has room for one more failure. After a long time without, it is made.
    fn has_room(&mut self) -> bool {
        if !self.failures.is_full() {
            self.blocked = 0;
            return true;
        }
        self.blocked = self.blocked.saturating_add(1);
        if self.blocked < PATIENCE {
            return false;
        }
        self.blocked = 0;
        if let (Some(oldest), Some(newest)) = (self.failures.first(), self.failures.last()) {
            let from = self.untold.map_or(oldest.cookie, |(from, _)| from);
            self.untold = Some((from, newest.cookie.after(1)));
        }
        self.failures.clear();
        true
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

    /// Hands out and forgets the logged failures of a part. Those that left the log untold come
    /// first: they are older.
    fn take_failures(&mut self, part: &mut Part, news: &mut News) {
        if let Some((from, to)) = self.untold {
            let end = part.first.after(part.submitted());
            let behind = |cookie: Cookie| match cookie.is_before(part.first) {
                true => 0,
                false => cookie.since(part.first).min(part.submitted()),
            };
            if from.is_before(end) && part.first.is_before(to) {
                let first = behind(from).max(part.told);
                let last = behind(to).max(first);
                if first < last {
                    news.untold = first..last;
                    part.told = last;
                }
            }
        }
        self.failures.retain(|logged| {
            let Some(ordinal) = part.ordinal(logged.cookie) else {
                return true;
            };
            // The log holds as many as the news at the most, and the news of one look at a channel
            // are at most one more.
            let _ = news.failed.push((ordinal, logged.code));
            part.told = part.told.max(ordinal.saturating_add(1));
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
        if !self.has_room() {
            return Ok(());
        }
        let progress = self.channel.handle_interrupt()?;
        self.log(progress);
        Ok(())
    }

    pub(crate) fn check_lost_interrupt(&mut self) -> bool {
        if !self.has_room() {
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
