//! Cookies: names of submitted descriptors.

use core::fmt;

/// Names one descriptor of one channel, from `submit` to its completion.
///
/// A cookie is the descriptor's place in the channel's whole history, counted in 64 bits. Two
/// descriptors are never confused after the ring wrapped: at one per nanosecond the count repeats
/// after 584 years. Cookies of one channel are consecutive and complete in order; cookies of
/// different channels have nothing to do with each other.
///
/// The default is number 0, the first one of a channel that replaces no other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Cookie(u64);

impl Cookie {
    /// The cookie with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number; free-running, wraps at 2^64.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The cookie `count` descriptors later.
    #[must_use]
    pub const fn after(self, count: u64) -> Self {
        Self(self.0.wrapping_add(count))
    }

    /// How many descriptors later `self` was submitted than `earlier`; wraps with the count, so
    /// it is only meaningful if `earlier` is the earlier one.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.wrapping_sub(earlier.0)
    }

    /// Whether `self` was submitted before `other`.
    ///
    /// Right across the wrap of the 64-bit count for cookies less than 2^63 apart.
    #[must_use]
    pub const fn is_before(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i64) < 0
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cookie({})", self.0)
    }
}

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        let old = Cookie::new(u64::MAX - 1);
        let new = old.after(5);
        assert_eq!(new.number(), 3);
        assert!(old.is_before(new) && !new.is_before(old) && !new.is_before(new));
        assert_eq!(new.since(old), 5);
    }
}
