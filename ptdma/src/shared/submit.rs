//! Giving descriptors to a channel.

use super::member::{ServiceState, SharedChannel};
use super::ownership::Share;

use crate::copy_channel::{CopyChannel, PrepError, Prepared, Segment};

/// What became of a chunk of descriptors.
#[derive(Debug)]
#[non_exhaustive]
pub struct Accepted {
    /// Those that were accepted, from the first of the chunk on: the caller's own from now on.
    pub share: Share,
    /// How many.
    pub count: usize,
    /// Bytes of those.
    pub bytes: u64,
    /// Why the next one was not.
    pub error: Option<PrepError>,
    /// Whether the doorbell was rung for them.
    pub rang: bool,
}

impl Accepted {
    /// Nothing, and why.
    #[inline]
    pub const fn nothing(error: Option<PrepError>) -> Self {
        Self {
            share: Share::empty(),
            count: 0,
            bytes: 0,
            error,
            rang: false,
        }
    }
}

/// How what was prepared is to be announced.
///
/// The fields are closed: an owner states each of them.
#[derive(Clone, Copy, Debug)]
pub struct Announce {
    /// Ring the doorbell.
    pub ring: bool,
    /// The last descriptor shall interrupt.
    pub interrupt: bool,
    /// Copies that were offered to the channel.
    pub offered: usize,
    /// Parts of folios that have no copy of their own.
    pub coalesced: u64,
}

impl<C: CopyChannel> SharedChannel<C> {
    /// Has copies prepared and makes them known.
    #[inline]
    pub(super) fn submit(
        &mut self,
        now_ns: u64,
        prepare: impl FnOnce(&mut C) -> (Prepared, Announce),
    ) -> Accepted {
        let (Some(channel), ServiceState::Active) = (&mut self.channel, self.service) else {
            return Accepted::nothing(Some(PrepError::Faulted));
        };
        let (prepared, announce) = prepare(channel);
        // Cookies that are not the next ones would make every later report a guess. No owner knows
        // what has them, so it must not run.
        let known = prepared.count == 0 || prepared.first == Some(self.books.next());
        let count = match u32::try_from(prepared.count) {
            Ok(count) if known => count,
            _ => {
                self.stop(now_ns, true);
                return Accepted::nothing(Some(PrepError::Faulted));
            }
        };
        let stats = &mut self.stats;
        stats.submitted = stats.submitted.wrapping_add(u64::from(count));
        stats.bytes = stats.bytes.wrapping_add(prepared.bytes);
        if prepared.count == announce.offered {
            stats.coalesced = stats.coalesced.wrapping_add(announce.coalesced);
        }
        // What was accepted has to run, too, if not all of it was.
        let failed = prepared.error.is_some();
        let ring = announce.ring || failed;
        if ring {
            channel.issue_pending(announce.interrupt || failed);
            stats.doorbells = stats.doorbells.wrapping_add(1);
        }
        self.unrung = !ring && (self.unrung || count != 0);
        let share = self.books.issue(count);
        if prepared.error == Some(PrepError::Faulted) {
            self.stop(now_ns, true);
        }
        Accepted {
            share,
            count: prepared.count,
            bytes: prepared.bytes,
            error: prepared.error,
            rang: ring && count != 0,
        }
    }

    /// [`submit`](Self::submit) for one copy, announced at once. `None` if it was not accepted;
    /// then nothing of it is known to the engine.
    #[inline]
    pub(super) fn submit_one(
        &mut self,
        now_ns: u64,
        copy: Segment,
        interrupt: bool,
    ) -> Option<Share> {
        let (Some(channel), ServiceState::Active) = (&mut self.channel, self.service) else {
            return None;
        };
        if copy.len_bytes > self.limits.max_len_bytes {
            return None;
        }
        let first = self.books.next();
        let cookie = channel.prep(copy, interrupt).ok()?;
        if cookie != first {
            // As in `submit`: it must not run.
            self.stop(now_ns, true);
            return None;
        }
        channel.issue_pending(false);
        self.unrung = false;
        let stats = &mut self.stats;
        stats.submitted = stats.submitted.wrapping_add(1);
        stats.bytes = stats.bytes.wrapping_add(copy.len_bytes);
        stats.doorbells = stats.doorbells.wrapping_add(1);
        Some(self.books.issue(1))
    }
}
