//! Who owns which descriptors of a ring, and what became of them.
//!
//! A ring has several owners at a time: lists or batches on several CPUs. The engine works it off in
//! order, whoever the descriptors belong to, and one stop drops what all of them have left. No
//! memory is kept for each descriptor, only bounds and a short log of losses.
//!
//! # The invariant
//!
//! 1. The [`Share`]s of a ring are disjoint, and every descriptor that was issued is in one. A
//!    share cannot be copied: it has one owner, and is given back once.
//! 2. The fate of a descriptor is known if and only if it is before [`done_before`]; then it never
//!    changes. The log only names descriptors whose fate is known, each at most once.
//! 3. A share knows up to where its losses were told, never over `done_before`. Each loss is told
//!    once: when `told` passes it. What a ring learns later is never before `told`.
//! 4. An entry of the log counts the descriptors whose owners were not told yet. It goes when
//!    there are none, so no loss is forgotten before its owner has heard of it.
//!
//! So a descriptor that was dropped is claimed exactly once, by its owner, and not before its fate
//! is known. When a share is over and was told, what was not told of it was copied. The test at the
//! end of this file goes through every order of events on a small ring.
//!
//! [`done_before`]: Ownership::done_before

use core::fmt;

use heapless::Vec;

use crate::cookie::Cookie;

/// What happened to descriptors that were not copied.
///
/// The set is closed: an owner reports a loss, copies it again, or keeps its memory out of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub enum Cause {
    /// The engine failed it; raw code.
    Failed(u8),
    /// The descriptor was dropped when the engine was stopped; anybody may copy it again.
    Dropped,
    /// The engine was not proven to have stopped.
    Unproven,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(code) => write!(f, "failed by the engine with code {code}"),
            Self::Dropped => f.write_str("dropped when its channel stopped"),
            Self::Unproven => f.write_str("dropped, and its engine may still write"),
        }
    }
}

/// Descriptors `first..end` were not copied.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
#[non_exhaustive]
pub struct Loss {
    /// The first of them.
    pub first: Cookie,
    /// The one behind the last of them.
    pub end: Cookie,
    /// What happened to them.
    pub cause: Cause,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, end, cause } = self;
        write!(f, "descriptors {first} to before {end}: {cause}")
    }
}

/// A loss, until its owners were told.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
struct Entry {
    first: Cookie,
    end: Cookie,
    /// Descriptors whose owners were not told. In range: no more than a ring has.
    untold: u32,
    // Beside the number, not in a `Loss`: a ring has several entries, and each is smaller so.
    cause: Cause,
}

impl Entry {
    const fn of(loss: Loss) -> Self {
        let Loss { first, end, cause } = loss;
        Self {
            first,
            end,
            untold: end.since(first) as u32,
            cause,
        }
    }
}

/// Descriptors of one owner that follow each other in a ring.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
pub struct Share {
    first: Cookie,
    count: u32,
    /// Of so many, from the first one on, the owner was told what it lost.
    told: u32,
    epoch: u32,
}

impl Share {
    /// No descriptors.
    #[inline]
    pub const fn empty() -> Self {
        Self {
            first: Cookie::new(0),
            count: 0,
            told: 0,
            epoch: 0,
        }
    }

    /// How many there are.
    #[inline]
    pub const fn count(&self) -> u64 {
        self.count as u64
    }

    #[inline(always)]
    const fn end(&self) -> Cookie {
        self.first.after(self.count as u64)
    }

    #[inline]
    const fn told(&self) -> Cookie {
        self.first.after(self.told as u64)
    }

    /// The owner is told of everything before this one, which is not before `told`.
    #[inline]
    const fn tell(&mut self, known: Cookie) {
        // No more than there are.
        self.told = known.since(self.first) as u32;
    }

    /// Whether its owner was not told of anything yet.
    #[inline]
    pub const fn is_untold(&self) -> bool {
        self.told == 0
    }

    /// How many of its own descriptors are before this one.
    #[inline]
    pub const fn index_of(&self, cookie: Cookie) -> u64 {
        cookie.since(self.first)
    }

    /// Whether `next` can [become](Self::join) a part of this one: it follows, and the ring was not
    /// stopped in between. A stop drops the rest of a share. What comes after it in the ring must
    /// not be mixed up with what was dropped.
    #[inline]
    pub const fn is_continued_by(&self, next: &Self) -> bool {
        next.first.since(self.end()) == 0
            && self.epoch == next.epoch
            && self.count.checked_add(next.count).is_some()
    }

    /// Takes the descriptors of a share in that [continues](Self::is_continued_by) this one.
    #[inline]
    pub const fn join(&mut self, next: Self) {
        // It was looked at whether it fits.
        self.count = self.count.wrapping_add(next.count);
    }
}

/// A ring's books about its owners; `LOG` is how many losses it remembers, of which the last one
/// is kept for a stop.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
pub(super) struct Ownership<const LOG: usize> {
    /// All descriptors before this one are over.
    done_before: Cookie,
    /// What the next descriptor will be called.
    next: Cookie,
    log: Vec<Entry, LOG>,
    /// Descriptors in shares that were not given back.
    held: u64,
    /// Stops so far that dropped anything.
    epoch: u32,
}

impl<const LOG: usize> Ownership<LOG> {
    /// A ring without descriptors; `next` is what the first one will be called.
    pub(super) const fn new(next: Cookie) -> Self {
        Self {
            done_before: next,
            next,
            log: Vec::new(),
            held: 0,
            epoch: 0,
        }
    }

    /// All descriptors before this one are over.
    #[inline(always)]
    pub(super) const fn done_before(&self) -> Cookie {
        self.done_before
    }

    /// What the next descriptor will be called.
    #[inline(always)]
    pub(super) const fn next(&self) -> Cookie {
        self.next
    }

    /// Descriptors whose fate is not known.
    #[inline(always)]
    pub(super) const fn in_flight(&self) -> u64 {
        self.next.since(self.done_before)
    }

    /// Descriptors in shares that were not given back.
    pub(super) const fn held(&self) -> u64 {
        self.held
    }

    /// Whether there is no loss that an owner was not told of.
    #[inline(always)]
    pub(super) fn is_quiet(&self) -> bool {
        self.log.is_empty()
    }

    /// Whether a failure would find room. If not, the engine must not be asked: it waits behind a
    /// failure until somebody takes note.
    #[inline(always)]
    pub(super) fn has_room(&self) -> bool {
        self.log.len().saturating_add(1) < LOG
    }

    /// Hands the next `count` descriptors to the caller.
    #[inline(always)]
    pub(super) const fn issue(&mut self, count: u32) -> Share {
        let first = self.next;
        self.next = first.after(count as u64);
        self.held = self.held.wrapping_add(count as u64);
        Share {
            first,
            count,
            told: 0,
            epoch: self.epoch,
        }
    }

    /// Notes that the next `over` descriptors, which must be [in flight](Self::in_flight), are
    /// over. What failed of them is noted [next](Self::note_failure), before any owner looks.
    #[inline(always)]
    pub(super) const fn advance(&mut self, over: u64) {
        self.done_before = self.done_before.after(over);
    }

    /// Notes that a descriptor failed that is over since the last look.
    ///
    /// There must be [room](Self::has_room).
    pub(super) fn note_failure(&mut self, cookie: Cookie, code: u8) {
        let loss = Loss {
            first: cookie,
            end: cookie.after(1),
            cause: Cause::Failed(code),
        };
        let _ = self.log.push(Entry::of(loss));
    }

    /// Notes that the ring was stopped: the next `over` descriptors were finished before that, the
    /// rest of what was in flight was dropped. Returns how many are taken for dropped.
    pub(super) fn note_stop(&mut self, over: u64) -> u64 {
        if self.in_flight() == 0 {
            return 0;
        }
        if self.log.is_full() {
            // Only a stop takes the last place. There was no room since then, so the engine was
            // not asked, and what that stop dropped ends at `done_before`. What was finished in
            // the meantime counts as dropped too: it is copied once more.
            let dropped = self.in_flight();
            self.epoch = self.epoch.wrapping_add(1);
            let mut entries = self.log.iter_mut();
            if let Some(newest) =
                entries.find(|entry| entry.cause == Cause::Dropped && entry.end == self.done_before)
            {
                newest.end = self.next;
                newest.untold = newest.untold.saturating_add(dropped as u32);
            }
            self.done_before = self.next;
            return dropped;
        }
        self.advance(over);
        let dropped = self.in_flight();
        if dropped != 0 {
            let loss = Loss {
                first: self.done_before,
                end: self.next,
                cause: Cause::Dropped,
            };
            let _ = self.log.push(Entry::of(loss));
            self.epoch = self.epoch.wrapping_add(1);
            self.done_before = self.next;
        }
        dropped
    }

    /// Whether the fates of a share are all known.
    #[inline(always)]
    pub(super) const fn is_over(&self, share: &Share) -> bool {
        !self.done_before.is_before(share.end())
    }

    /// Tells the owner of a share what it lost and was not told of. `closed`: what becomes of
    /// everything in flight, if the ring goes on no more.
    pub(super) fn claim(
        &mut self,
        share: &mut Share,
        closed: Option<Cause>,
        mut tell: impl FnMut(Loss),
    ) {
        let known = earlier(share.end(), self.done_before);
        if share.told().is_before(known) {
            let told = share.told();
            self.log.retain_mut(|entry| {
                let first = later(entry.first, told);
                let end = earlier(entry.end, known);
                if first.is_before(end) {
                    tell(Loss {
                        first,
                        end,
                        cause: entry.cause,
                    });
                    entry.untold = entry.untold.saturating_sub(end.since(first) as u32);
                }
                entry.untold != 0
            });
            share.tell(known);
        }
        if let Some(cause) = closed
            && share.told().is_before(share.end())
        {
            tell(Loss {
                first: share.told(),
                end: share.end(),
                cause,
            });
            share.tell(share.end());
        }
    }

    /// Takes a share back, given its length: its owner has dealt with everything that it was told.
    #[inline(always)]
    pub(super) const fn let_go(&mut self, count: u64) {
        self.held = self.held.saturating_sub(count);
    }
}

#[inline]
fn later(a: Cookie, b: Cookie) -> Cookie {
    if a.is_before(b) { b } else { a }
}

#[inline]
fn earlier(a: Cookie, b: Cookie) -> Cookie {
    if a.is_before(b) { a } else { b }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::vec::Vec as StdVec;

    use super::*;

    /// What is true of a descriptor, whatever the books say.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    enum Fate {
        InFlight,
        Copied,
        Lost(Cause),
        /// The owner was told.
        Told,
    }

    /// Cookies begin just before they wrap.
    const FIRST: u64 = u64::MAX - 2;

    #[derive(Clone, PartialEq, Eq, Hash)]
    struct State {
        books: Ownership<3>,
        fates: StdVec<Fate>,
        /// Of each owner, the shares that it has not given back.
        owners: StdVec<StdVec<Share>>,
        closed: Option<Cause>,
    }

    fn index(cookie: Cookie) -> usize {
        usize::try_from(cookie.since(Cookie::new(FIRST))).expect("small")
    }

    impl State {
        fn new(owners: usize) -> Self {
            Self {
                books: Ownership::new(Cookie::new(FIRST)),
                fates: StdVec::new(),
                owners: std::vec![StdVec::new(); owners],
                closed: None,
            }
        }

        fn in_flight(&self) -> Option<usize> {
            self.fates.iter().position(|fate| *fate == Fate::InFlight)
        }

        fn submit(&mut self, owner: usize, count: u32) {
            let share = self.books.issue(count);
            self.fates.resize(index(share.end()), Fate::InFlight);
            let shares = &mut self.owners[owner];
            match shares.last_mut() {
                Some(last) if last.is_continued_by(&share) => last.join(share),
                _ => shares.push(share),
            }
        }

        fn finish(&mut self, failed: bool) {
            let first = self.in_flight().expect("something is");
            self.books.advance(1);
            self.fates[first] = Fate::Copied;
            if failed {
                let cause = Cause::Failed(first as u8);
                self.fates[first] = Fate::Lost(cause);
                let cookie = Cookie::new(FIRST.wrapping_add(first as u64));
                self.books.note_failure(cookie, first as u8);
            }
        }

        /// A stop; `over` descriptors turn out to have been finished.
        fn stop(&mut self, over: u64) {
            let in_flight = self.books.in_flight();
            let dropped = self.books.note_stop(over);
            assert!(dropped == in_flight - over || dropped == in_flight);
            let mut copied = in_flight - dropped;
            for fate in &mut self.fates {
                if *fate == Fate::InFlight {
                    *fate = if copied == 0 {
                        Fate::Lost(Cause::Dropped)
                    } else {
                        Fate::Copied
                    };
                    copied = copied.saturating_sub(1);
                }
            }
        }

        /// The owner looks at its oldest share: it is told what it lost and does not know, and
        /// nothing else.
        fn look(&mut self, owner: usize) {
            let Some(mut share) = self.owners[owner].first().cloned() else {
                return;
            };
            let closed = self.closed;
            let (books, fates) = (&mut self.books, &mut self.fates);
            let all = index(share.first)..index(share.end());
            books.claim(&mut share, closed, |loss| {
                let told = index(loss.first)..index(loss.end);
                assert!(
                    all.start <= told.start && told.end <= all.end,
                    "not its own"
                );
                for fate in &mut fates[told] {
                    match *fate {
                        Fate::Lost(cause) => assert_eq!(cause, loss.cause),
                        Fate::InFlight => assert_eq!(closed, Some(loss.cause)),
                        other => panic!("{other:?}, and is claimed: {loss:?}"),
                    }
                    *fate = Fate::Told;
                }
            });
            let over = books.is_over(&share) || closed.is_some();
            for fate in &fates[all.clone()] {
                let lost = matches!(fate, Fate::Lost(_));
                assert!(!lost, "{fate:?}, and its owner not told");
                let known = matches!(fate, Fate::Copied | Fate::Told);
                assert!(known || !over, "{fate:?}, and taken for over");
            }
            if over {
                self.books.let_go(share.count());
                self.owners[owner].remove(0);
                // Nobody asks any more: what it was makes no difference.
                self.fates[all].fill(Fate::Told);
            } else {
                self.owners[owner][0] = share;
            }
        }

        /// What has to be so at all times.
        fn check(&self) {
            let owned: u64 = self.owners.iter().flatten().map(Share::count).sum();
            assert_eq!(self.books.held(), owned);
            let untold = |fate: &&Fate| matches!(fate, Fate::Lost(_));
            assert_eq!(
                self.books.is_quiet(),
                !self.fates.iter().any(|fate| untold(&fate)),
                "an entry without a loss, or a loss without an entry"
            );
        }

        fn followers(&self, most: usize) -> StdVec<Self> {
            let mut all = StdVec::new();
            let mut try_one = |f: &dyn Fn(&mut Self)| {
                let mut next = self.clone();
                f(&mut next);
                next.check();
                all.push(next);
            };
            for owner in 0..self.owners.len() {
                try_one(&|state| state.look(owner));
                for count in 1..=2 {
                    let fits = self.fates.len() + count as usize <= most;
                    if fits && self.closed.is_none() && self.owners[owner].len() < 2 {
                        try_one(&|state| state.submit(owner, count));
                    }
                }
            }
            if self.closed.is_some() {
                return all;
            }
            for cause in [Cause::Dropped, Cause::Unproven] {
                try_one(&|state| state.closed = Some(cause));
            }
            for over in 0..=self.books.in_flight() {
                try_one(&|state| state.stop(over));
            }
            if self.in_flight().is_some() && self.books.has_room() {
                try_one(&|state| state.finish(false));
                try_one(&|state| state.finish(true));
            }
            all
        }
    }

    /// Goes through every state that `owners` owners can get a ring into with `most` descriptors.
    fn explore(owners: usize, most: usize) -> usize {
        let mut seen = HashSet::new();
        let mut left = std::vec![State::new(owners)];
        while let Some(state) = left.pop() {
            if seen.insert(state.clone()) {
                left.extend(state.followers(most));
            }
        }
        seen.len()
    }

    #[test]
    fn every_order_of_events_tells_each_loss_once() {
        for (owners, most) in [(1, 6), (2, 5), (3, 4)] {
            let states = explore(owners, most);
            std::println!("{owners} owners, {most} descriptors: {states} states");
            assert!(states > 1000, "{states}");
        }
    }
}
