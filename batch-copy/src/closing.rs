//! One interrupt for a batch instead of one for each of its lanes.
//!
//! An interrupt costs a processor more than all of a lane's descriptors. A batch is over only when
//! its last lane is. The lane that should finish last interrupts for all. The heads of the others
//! are read then, one register each. A lane that turns out to be slower is looked at again after a
//! moment, see [`WaitFor::announced`](crate::WaitFor::announced).
//!
//! Nothing depends on the guess being right, nor on the interrupt. A quiet lane that fails a
//! descriptor still raises the error interrupt, which does not hang on the descriptor's flag. A
//! lane whose error interrupt is lost is found when its head is read. A lost closing interrupt is
//! overdue after a while, and all lanes are polled.

/// A lane whose work is within this part of the largest may be the last one to finish.
const NEAR: u64 = 16;

/// Which of the lanes should finish last, given the bytes that each channel has before it. It is
/// the one with most, and of several with about as much the one that gets its work last. `None` if
/// there are none.
pub(crate) fn closing(
    mut ahead_bytes: impl ExactSizeIterator<Item = u64> + DoubleEndedIterator + Clone,
) -> Option<usize> {
    let most = ahead_bytes.clone().max()?;
    ahead_bytes.rposition(|bytes| is_near(bytes, most))
}

/// Whether a lane with so many bytes before it may be the last to finish, where no other has more
/// than `most`.
#[inline]
pub(crate) const fn is_near(bytes: u64, most: u64) -> bool {
    bytes >= most.saturating_sub(most / NEAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u64]) -> Option<usize> {
        closing(bytes.iter().copied())
    }

    #[test]
    fn the_last_of_equals_closes() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[0]), Some(0));
        assert_eq!(of(&[5, 5, 5]), Some(2));
        // Balanced but for a page.
        assert_eq!(of(&[135_168, 131_072, 131_072]), Some(2));
    }

    #[test]
    fn a_lane_with_much_more_closes_wherever_it_is() {
        assert_eq!(of(&[2 << 20, 4096, 4096]), Some(0));
        assert_eq!(of(&[4096, u64::MAX, 4096]), Some(1));
    }
}
