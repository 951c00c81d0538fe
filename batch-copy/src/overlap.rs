//! Do the folios of a batch overlap each other?

use core::cell::Cell;

use crate::folio::Folio;
use crate::survey::BadInput;

/// How to find out whether the folios of a batch overlap each other.
///
/// That each folio's own source and destination do not overlap is always checked. A destination
/// that overlaps any other source or destination makes the result depend on the order of the
/// copies, which a batch does not have. (Sources may overlap each other.)
#[derive(Debug)]
#[non_exhaustive]
pub enum OverlapCheck<'a> {
    /// The caller knows that they do not: each folio is allocated memory of its own, as in a
    /// kernel's migration. Costs nothing.
    CallerKnows,
    /// Sorts in memory of the caller, two intervals per folio: n log n steps.
    Sorted(&'a mut [Interval]),
    /// Compares every pair: n * n steps, no memory.
    Pairwise,
}

/// Scratch memory of [`OverlapCheck::Sorted`]: one source or destination.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interval {
    start: u64,
    end: u64,
    folio: usize,
    written: bool,
}

impl OverlapCheck<'_> {
    /// Checks a batch that [`Survey::of`](crate::Survey::of) has found sound.
    ///
    /// # Errors
    ///
    /// [`BadInput::Overlap`] for a pair that overlaps, [`BadInput::ScratchTooSmall`].
    pub fn check<I>(self, folios: I) -> Result<(), BadInput>
    where
        I: Iterator<Item = Folio> + Clone,
    {
        match self {
            Self::CallerKnows => Ok(()),
            Self::Sorted(scratch) => sorted(folios, scratch),
            Self::Pairwise => pairwise(folios),
        }
    }
}

fn source(folio: &Folio, index: usize) -> Interval {
    Interval {
        start: folio.src.get(),
        end: folio.src.get().saturating_add(folio.len_bytes),
        folio: index,
        written: false,
    }
}

fn destination(folio: &Folio, index: usize) -> Interval {
    Interval {
        start: folio.dst.get(),
        end: folio.dst.get().saturating_add(folio.len_bytes),
        folio: index,
        written: true,
    }
}

/// The complaint about two intervals, if they may not be in one batch.
fn clash(a: &Interval, b: &Interval) -> Result<(), BadInput> {
    if a.start < b.end && b.start < a.end && (a.written || b.written) {
        let (writer, other) = if a.written { (a, b) } else { (b, a) };
        return Err(BadInput::Overlap {
            folio: writer.folio,
            other: other.folio,
        });
    }
    Ok(())
}

fn pairwise<I>(folios: I) -> Result<(), BadInput>
where
    I: Iterator<Item = Folio> + Clone,
{
    let mut rest = folios.enumerate();
    while let Some((index, folio)) = rest.next() {
        let (src, dst) = (source(&folio, index), destination(&folio, index));
        clash(&dst, &src)?;
        for (other_index, other) in rest.clone() {
            let other_dst = destination(&other, other_index);
            clash(&dst, &other_dst)?;
            clash(&dst, &source(&other, other_index))?;
            clash(&src, &other_dst)?;
        }
    }
    Ok(())
}

fn sorted<I>(folios: I, scratch: &mut [Interval]) -> Result<(), BadInput>
where
    I: Iterator<Item = Folio>,
{
    let room = scratch.len();
    let mut used: usize = 0;
    let mut slots = scratch.iter_mut();
    for (index, folio) in folios.enumerate() {
        let (Some(a), Some(b)) = (slots.next(), slots.next()) else {
            return Err(BadInput::ScratchTooSmall { room });
        };
        *a = source(&folio, index);
        *b = destination(&folio, index);
        used = used.saturating_add(2);
    }
    let Some(intervals) = scratch.get_mut(..used) else {
        return Err(BadInput::ScratchTooSmall { room });
    };
    sort_by_start(intervals);
    // Of all intervals that began so far: the one that reaches furthest, and the written one that
    // does. An interval overlaps an earlier one if and only if it begins before that one's end.
    let mut furthest: Option<Interval> = None;
    let mut furthest_written: Option<Interval> = None;
    for interval in intervals.iter() {
        if let Some(earlier) = &furthest_written {
            clash(earlier, interval)?;
        }
        if let Some(earlier) = &furthest {
            clash(earlier, interval)?;
        }
        let beyond = |far: &Option<Interval>| far.is_none_or(|far| far.end < interval.end);
        if beyond(&furthest) {
            furthest = Some(*interval);
        }
        if interval.written && beyond(&furthest_written) {
            furthest_written = Some(*interval);
        }
    }
    Ok(())
}

/// Heap sort: in place, and n log n at worst. The sorts of `core` link in a panic for comparisons
/// that are no order, and a kernel module links none.
fn sort_by_start(intervals: &mut [Interval]) {
    let cells = Cell::from_mut(intervals).as_slice_of_cells();
    let len = cells.len();
    for root in (0..len / 2).rev() {
        sift_down(cells, root, len);
    }
    for end in (1..len).rev() {
        if let (Some(first), Some(last)) = (cells.first(), cells.get(end)) {
            first.swap(last);
        }
        sift_down(cells, 0, end);
    }
}

fn sift_down(cells: &[Cell<Interval>], mut root: usize, len: usize) {
    let start_of = |index: usize| {
        if index < len {
            cells.get(index).map(|cell| cell.get().start)
        } else {
            None
        }
    };
    loop {
        let left = root.saturating_mul(2).saturating_add(1);
        let right = left.saturating_add(1);
        // `None`, no such child, sorts below every start.
        let child = if start_of(right) > start_of(left) {
            right
        } else {
            left
        };
        if start_of(child) <= start_of(root) {
            return;
        }
        if let (Some(a), Some(b)) = (cells.get(root), cells.get(child)) {
            a.swap(b);
        }
        root = child;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptdma::DmaAddr;

    fn folio(src: u64, dst: u64, len_bytes: u64) -> Folio {
        Folio::new(DmaAddr::new(src), DmaAddr::new(dst), len_bytes)
    }

    fn both(folios: &[Folio]) -> (bool, bool) {
        let mut scratch = [Interval::default(); 64];
        (
            OverlapCheck::Pairwise.check(folios.iter().copied()).is_ok(),
            OverlapCheck::Sorted(&mut scratch)
                .check(folios.iter().copied())
                .is_ok(),
        )
    }

    #[test]
    fn neighbours_may_touch_and_sources_may_overlap() {
        let fine = [folio(0, 100, 10), folio(10, 110, 10), folio(5, 200, 10)];
        assert_eq!(both(&fine), (true, true));
    }

    #[test]
    fn both_ways_find_the_same_clashes() {
        // A small space, so that about half of the lists clash.
        let mut state = 1_u64;
        let mut next = |bound: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % bound
        };
        let (mut clean, mut clashing) = (0, 0);
        for _ in 0..2000 {
            let list: [Folio; 6] =
                core::array::from_fn(|_| folio(next(2000), 2000 + next(2000), 1 + next(200)));
            let (pairwise, sorted) = both(&list);
            assert_eq!(pairwise, sorted, "{list:?}");
            if pairwise { clean += 1 } else { clashing += 1 }
        }
        assert!(clean > 100 && clashing > 100, "{clean} {clashing}");
    }

    #[test]
    fn long_interval_is_not_forgotten_behind_a_short_one() {
        // The long source of folio 0 spans both others; only folio 2's destination is inside it.
        let list = [
            folio(0, 10_000, 1000),
            folio(100, 20_000, 10),
            folio(30_000, 900, 10),
        ];
        assert_eq!(both(&list), (false, false));
    }

    #[test]
    fn too_little_scratch_is_said() {
        let mut scratch = [Interval::default(); 3];
        assert_eq!(
            OverlapCheck::Sorted(&mut scratch)
                .check([folio(0, 100, 1), folio(1, 101, 1)].into_iter()),
            Err(BadInput::ScratchTooSmall { room: 3 })
        );
    }
}
