//! Bounded waiting.

use crate::io::Clock;

/// Polls after which a wait ends even if the clock stands still: 2^30.
///
/// One poll is one uncached read, some 100 ns or more on hardware, so this is minutes: far over
/// any sensible deadline, yet an end.
pub const MAX_POLLS: u32 = 1 << 30;

/// The end of a wait: a time by a caller-supplied clock and, in case that clock stands still, a
/// number of polls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    start: u64,
    ticks: u64,
    polls_left: u32,
}

impl Deadline {
    /// A deadline `ticks` of `clock`'s own unit from now.
    #[must_use]
    pub fn after<C: Clock + ?Sized>(clock: &C, ticks: u64) -> Self {
        Self {
            start: clock.now(),
            ticks,
            polls_left: MAX_POLLS,
        }
    }

    /// The same deadline, ending after `polls` polls at the latest.
    #[must_use]
    pub const fn with_poll_limit(self, polls: u32) -> Self {
        Self {
            polls_left: polls,
            ..self
        }
    }

    /// A deadline of the same length, from now on.
    #[must_use]
    pub fn again<C: Clock + ?Sized>(self, clock: &C) -> Self {
        Self {
            start: clock.now(),
            polls_left: MAX_POLLS,
            ..self
        }
    }

    /// Counts a poll; true once the wait is over.
    pub fn expired<C: Clock + ?Sized>(&mut self, clock: &C) -> bool {
        match self.polls_left.checked_sub(1) {
            None => true,
            Some(left) => {
                self.polls_left = left;
                // Differences survive a wrap of the clock.
                clock.now().wrapping_sub(self.start) >= self.ticks
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    struct Ticks(Cell<u64>, u64);
    impl Clock for Ticks {
        fn now(&self) -> u64 {
            self.0.replace(self.0.get().wrapping_add(self.1))
        }
    }

    #[test]
    fn ends_across_the_wrap_of_the_clock() {
        let clock = Ticks(Cell::new(u64::MAX - 3), 1);
        let mut deadline = Deadline::after(&clock, 10);
        let polls = (0..100).take_while(|_| !deadline.expired(&clock)).count();
        assert_eq!(polls, 9);
    }

    #[test]
    fn ends_with_a_clock_that_stands_still() {
        let clock = Ticks(Cell::new(7), 0);
        let mut deadline = Deadline::after(&clock, 1).with_poll_limit(50);
        let polls = (0..1000).take_while(|_| !deadline.expired(&clock)).count();
        assert_eq!(polls, 50);
    }
}
