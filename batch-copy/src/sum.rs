//! How much of the stream something is, and which part of it.

/// Parts of the stream, added up: their bytes, and a digest of where they lie.
///
/// The digest of a part is the difference of two scrambled numbers, one for its end and one for
/// its beginning. Of parts that cover a stretch once each, without gaps, all but the stretch's own
/// ends cancel out. A part that is counted twice and another one that is missing do not, though
/// they may be equally long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) bytes: u64,
    digest: u64,
}

impl Sum {
    pub(crate) const NOTHING: Self = Self {
        bytes: 0,
        digest: 0,
    };

    /// The stream from `start` to `end`.
    #[inline(always)]
    pub(crate) const fn of(start: u64, end: u64) -> Self {
        Self {
            bytes: end.wrapping_sub(start),
            digest: scrambled(end).wrapping_sub(scrambled(start)),
        }
    }

    #[inline(always)]
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.wrapping_add(other.bytes),
            digest: self.digest.wrapping_add(other.digest),
        }
    }

    #[inline(always)]
    pub(crate) const fn minus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.wrapping_sub(other.bytes),
            digest: self.digest.wrapping_sub(other.digest),
        }
    }
}

/// Stretches, added up. Those that follow each other cost next to nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Covered {
    sum: Sum,
    /// The last ones, which are one stretch, and not in the sum yet.
    start: u64,
    end: u64,
}

impl Covered {
    pub(crate) const NOTHING: Self = Self {
        sum: Sum::NOTHING,
        start: 0,
        end: 0,
    };

    /// Adds the stream from `start` to `end` without `left_out`.
    #[inline(always)]
    pub(crate) const fn add(&mut self, start: u64, end: u64, left_out: Sum) {
        if left_out.bytes != 0 {
            self.sum = self.sum.minus(left_out);
        }
        if end == self.start {
            self.start = start;
        } else if start == self.end {
            self.end = end;
        } else {
            self.sum = self.sum();
            self.start = start;
            self.end = end;
        }
    }

    /// All of it.
    #[inline(always)]
    pub(crate) const fn sum(&self) -> Sum {
        self.sum.plus(Sum::of(self.start, self.end))
    }
}

/// A number for a place, so that differences of such numbers do not meet by accident.
#[inline(always)]
const fn scrambled(position: u64) -> u64 {
    /// 2^64 divided by the golden ratio, made odd: neighbours end up far apart.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let spread = position.wrapping_mul(SPREAD);
    // Squaring what was folded leaves nothing linear.
    let folded = spread ^ (spread >> 32);
    folded.wrapping_mul(folded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_cover_all_once_come_to_the_whole() {
        let whole = Sum::of(0, 1 << 40);
        let parts = [(4096, 8192), (0, 4096), (8192, 1 << 40)];
        let sum = |parts: &[(u64, u64)]| {
            let parts = parts.iter().map(|&(start, end)| Sum::of(start, end));
            parts.fold(Sum::NOTHING, Sum::plus)
        };
        assert_eq!(sum(&parts), whole);
        assert_eq!(whole.minus(sum(&parts[..2])), Sum::of(8192, 1 << 40));
    }

    /// Pages and huge pages, one of them counted twice and another one not at all.
    #[test]
    fn a_part_too_much_does_not_stand_for_one_too_few() {
        for len in [1, 64, 4096, 2 << 20] {
            let part = |index: u64| Sum::of(index * len, (index + 1) * len);
            for twice in 0..300 {
                for never in (0..300).filter(|never| *never != twice) {
                    assert_ne!(part(twice), part(never), "{len}: {twice} for {never}");
                }
            }
        }
    }
}
