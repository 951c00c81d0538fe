//! A channel, and what owners of work have to know of each other's use of it.

use core::fmt;

use super::ownership::{Cause, Ownership};

use crate::cookie::Cookie;
use crate::copy_channel::{ChannelLimits, CopyChannel, CopyFailure, CopyProgress, Health};

/// Stops in a row, without [`GOOD_AGAIN`] good descriptors in between, after which a channel is
/// taken out. Twice may be an accident of the memory that was copied.
pub(super) const MAX_STOPS: u32 = 3;

/// Descriptors after which a channel that was stopped by force is as good as any other.
const GOOD_AGAIN: u64 = 1024;

/// Failed descriptors in a row after which a channel is taken out: something is wrong with it and
/// not with the memory.
const MAX_ERRORS_IN_A_ROW: u32 = 16;

/// Losses that a channel remembers until their owners have taken note. While only the last place is
/// left, nobody polls the channel, and an engine behind a failure goes on waiting. Every waiting
/// owner takes its own losses out each time it polls.
const LOG_SLOTS: usize = 9;

/// Most losses that one look tells: one for each place of the log, and one for a channel that is
/// out of service.
pub type Losses = heapless::Vec<super::ownership::Loss, { LOG_SLOTS + 1 }>;

/// Whether a channel takes part.
///
/// The set is closed: owners of memory decide by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceState {
    /// In service.
    Active,
    /// Taken out; its engine is known to have stopped.
    Retired,
    /// Taken out, and its engine may still write: see
    /// [`Channels::confirm_stopped`](crate::Channels::confirm_stopped).
    Unproven,
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "in service",
            Self::Retired => "out of service",
            Self::Unproven => "out of service, and its engine may still write",
        })
    }
}

/// What a shared channel did for all owners. All counts wrap at 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SharedStats {
    /// Descriptors given to the channel.
    pub submitted: u64,
    /// Descriptors that are over, failed ones included.
    pub completed: u64,
    /// Descriptors that the engine failed.
    pub errors: u64,
    /// Descriptors that were dropped because the engine had to be stopped.
    pub dropped: u64,
    /// Bytes of submitted descriptors.
    pub bytes: u64,
    /// Folio parts that needed no descriptor of their own, because they continue another one.
    pub coalesced: u64,
    /// Times that the doorbell was rung.
    pub doorbells: u64,
    /// Calls of the interrupt entry point.
    pub interrupts: u64,
    /// Looks at the engine by waiting owners.
    pub polls: u64,
    /// Times that the engine was stopped by force.
    pub stops: u64,
    /// Times that it stood still for too long.
    pub hangs: u64,
}

/// A channel and what owners of work have to know of each other's use of it. Lives inside the lock.
#[derive(Debug)]
pub struct SharedChannel<C> {
    pub(super) channel: Option<C>,
    pub(super) service: ServiceState,
    pub(super) books: Ownership<LOG_SLOTS>,
    /// How often the engine has begun again, each time with another oldest descriptor.
    begun_again: u32,
    /// The oldest descriptor that it began again with, the last time; one that is over if it never
    /// did.
    begun_again_at: Cookie,
    /// Whether something was prepared that the engine was not told of.
    pub(super) unrung: bool,
    pub(super) stops: u32,
    pub(super) good: u64,
    pub(super) errors_in_a_row: u32,
    pub(super) stats: SharedStats,
    pub(super) limits: ChannelLimits,
}

impl<C: CopyChannel> SharedChannel<C> {
    /// Takes a channel in. It must be idle.
    pub fn new(channel: C) -> Self {
        let limits = channel.limits().whole_units();
        let next = channel.next_cookie();
        Self {
            channel: Some(channel),
            service: ServiceState::Active,
            books: Ownership::new(next),
            begun_again: 0,
            begun_again_at: Cookie::new(next.number().wrapping_sub(1)),
            unrung: false,
            stops: 0,
            good: 0,
            errors_in_a_row: 0,
            stats: SharedStats::default(),
            limits,
        }
    }

    /// A place for a channel that is not there yet: [`Channels::put`](crate::Channels::put) fills it.
    /// For owners whose channels come and go, and are called by numbers that they choose.
    #[must_use]
    pub fn vacant() -> Self {
        Self {
            channel: None,
            service: ServiceState::Retired,
            books: Ownership::new(Cookie::new(0)),
            begun_again: 0,
            begun_again_at: Cookie::new(u64::MAX),
            unrung: false,
            stops: 0,
            good: 0,
            errors_in_a_row: 0,
            stats: SharedStats::default(),
            limits: ChannelLimits {
                max_len_bytes: 0,
                align_bytes: 1,
                node: None,
                ring_slots: 0,
                port: None,
            },
        }
    }

    /// Has the channel look at its engine.
    #[inline(always)]
    pub(super) fn poll(&mut self, now_ns: u64) {
        self.stats.polls = self.stats.polls.wrapping_add(1);
        if self.service == ServiceState::Active
            && self.books.has_room()
            && let Some(channel) = &mut self.channel
            && let Some(done_before) = channel.poll_head(now_ns)
        {
            self.absorb(CopyProgress::up_to(done_before), now_ns);
        } else {
            self.poll_further(now_ns);
        }
    }

    /// [`poll`](Self::poll) of a channel that [is well](Self::is_well); whether it still is.
    #[inline(always)]
    pub(super) fn poll_well(&mut self, now_ns: u64) -> bool {
        self.stats.polls = self.stats.polls.wrapping_add(1);
        if let Some(channel) = &mut self.channel
            && let Some(done_before) = channel.poll_head(now_ns)
        {
            let over = done_before.since(self.books.done_before());
            if over <= self.books.in_flight() {
                if over != 0 {
                    self.advance(over, over);
                }
                return true;
            }
            self.absorb_trouble(CopyProgress::up_to(done_before), false, now_ns);
        } else {
            self.poll_further(now_ns);
        }
        self.is_well()
    }

    /// The engine is looked at where there may be more to say than how far it is.
    #[inline(never)]
    fn poll_further(&mut self, now_ns: u64) {
        self.ask(now_ns, C::poll);
    }

    /// Asks the channel for news, unless there would be no room for bad ones.
    #[inline(always)]
    pub(super) fn ask(&mut self, now_ns: u64, how: impl FnOnce(&mut C, u64) -> CopyProgress) {
        if self.service != ServiceState::Active || !self.books.has_room() {
            return;
        }
        let Some(channel) = &mut self.channel else {
            return;
        };
        let progress = how(channel, now_ns);
        self.absorb(progress, now_ns);
    }

    /// Takes note of what a channel answered.
    #[inline(always)]
    fn absorb(&mut self, progress: CopyProgress, now_ns: u64) {
        let over = progress.done_before.since(self.books.done_before());
        // A channel must not take back what it said, nor finish what it was not given.
        let known = over <= self.books.in_flight();
        let usual = progress.failure.is_none() && !progress.begun_again;
        if !known || !usual || progress.health != Health::Alive {
            self.absorb_trouble(progress, known, now_ns);
        } else if over != 0 {
            self.advance(over, over);
        }
    }

    /// Notes that `over` descriptors more are over, `good` of which were copied.
    #[inline(always)]
    fn advance(&mut self, over: u64, good: u64) {
        self.books.advance(over);
        self.stats.completed = self.stats.completed.wrapping_add(over);
        if good != 0 {
            self.errors_in_a_row = 0;
            if self.stops != 0 {
                self.earn(over);
            }
        }
    }

    /// A channel that was stopped by force has copied so many descriptors more.
    #[cold]
    fn earn(&mut self, over: u64) {
        self.good = self.good.saturating_add(over);
        if self.good >= GOOD_AGAIN {
            self.stops = 0;
        }
    }

    #[cold]
    fn absorb_trouble(&mut self, progress: CopyProgress, known: bool, now_ns: u64) {
        let honest = progress.failure.is_none_or(|failure| {
            !failure.cookie.is_before(self.books.done_before())
                && failure.cookie.is_before(progress.done_before)
        });
        if !known || !honest {
            self.stop(now_ns, true);
            return;
        }
        let over = progress.done_before.since(self.books.done_before());
        if over != 0 {
            let failed = u64::from(progress.failure.is_some());
            self.advance(over, over.saturating_sub(failed));
        }
        if let Some(CopyFailure { cookie, code }) = progress.failure {
            self.stats.errors = self.stats.errors.wrapping_add(1);
            self.errors_in_a_row = self.errors_in_a_row.saturating_add(1);
            // There is room: looked at before the channel was asked.
            self.books.note_failure(cookie, code);
            if self.errors_in_a_row >= MAX_ERRORS_IN_A_ROW {
                self.stops = MAX_STOPS;
                self.stop(now_ns, true);
            }
        }
        if progress.begun_again {
            self.begin_again();
        }
        if progress.health == Health::Faulted && self.service == ServiceState::Active {
            self.stop(now_ns, true);
        }
    }

    /// The engine has begun again with what is in flight. That counts once for each oldest
    /// descriptor: an engine that begins again with the same one for ever hangs.
    fn begin_again(&mut self) {
        let oldest = self.books.done_before();
        if self.begun_again_at != oldest {
            self.begun_again_at = oldest;
            self.begun_again = self.begun_again.wrapping_add(1);
        }
    }

    /// Changes whenever the engine moves: whenever a descriptor is over, and when it has begun
    /// again. Neither count goes back, so their sum stands still only if both do.
    pub(super) const fn moves(&self) -> u64 {
        let over = self.books.done_before().number();
        over.wrapping_add(self.begun_again as u64)
    }

    /// Stops the engine. What it had is lost; owners find out when they look.
    #[cold]
    pub(super) fn stop(&mut self, now_ns: u64, blame: bool) {
        let Some(channel) = &mut self.channel else {
            return;
        };
        if self.service != ServiceState::Active {
            return;
        }
        self.stats.stops = self.stats.stops.wrapping_add(1);
        if blame {
            self.stops = self.stops.saturating_add(1);
            self.good = 0;
        }
        let stopped = channel.terminate(now_ns);
        // Only as far as it makes sense is the channel believed.
        let over = stopped.done_before.since(self.books.done_before());
        let over = if over <= self.books.in_flight() {
            over
        } else {
            0
        };
        let all = self.books.in_flight();
        let goes_on = stopped.proven && stopped.health == Health::Alive && self.stops <= MAX_STOPS;
        let dropped = if goes_on {
            self.books.note_stop(over)
        } else {
            // What is left in flight is lost, as `fate_in_flight` says.
            self.books.advance(over);
            self.service = if stopped.proven {
                ServiceState::Retired
            } else {
                ServiceState::Unproven
            };
            self.books.in_flight()
        };
        self.stats.dropped = self.stats.dropped.wrapping_add(dropped);
        self.stats.completed = self
            .stats
            .completed
            .wrapping_add(all.saturating_sub(dropped));
    }

    /// What becomes of everything in flight; `None` in service, where the engine says so.
    pub(super) const fn fate_in_flight(&self) -> Option<Cause> {
        match self.service {
            ServiceState::Active => None,
            ServiceState::Retired => Some(Cause::Dropped),
            ServiceState::Unproven => Some(Cause::Unproven),
        }
    }

    pub(super) fn free_slots(&self) -> usize {
        match (&self.channel, self.service) {
            (Some(channel), ServiceState::Active) => channel.free_slots(),
            _ => 0,
        }
    }
}
