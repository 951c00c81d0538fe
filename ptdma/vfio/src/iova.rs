//! Bus addresses of a space: which there are, and which are taken.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use ptdma::DmaAddr;

/// The engine keeps 32 bits of a ring's addresses in its head and tail: in a ring at a multiple of
/// this, 4 GiB, slot 0 is also what these registers read after a reset.
const RING_STRIDE: u64 = 1 << 32;

/// Nothing is placed below, 1 MiB: a bus address of 0 or near it is a mistake, and fails.
const LOWEST: u64 = 1 << 20;

/// What an allocation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Any memory.
    Data,
    /// A ring of descriptors.
    Ring,
}

/// The bus addresses of a space.
#[derive(Debug)]
pub(crate) struct BusAddresses {
    /// What the IOMMU can translate and the engine reach: first and last byte.
    usable: Vec<RangeInclusive<u64>>,
    /// First byte and length of what is taken.
    taken: BTreeMap<u64, u64>,
}

impl BusAddresses {
    pub(crate) fn new(ranges: impl IntoIterator<Item = RangeInclusive<u64>>) -> Self {
        let mut usable: Vec<_> = ranges
            .into_iter()
            .map(|range| (*range.start()).max(LOWEST)..=(*range.end()).min(DmaAddr::LIMIT - 1))
            .filter(|range| !range.is_empty())
            .collect();
        usable.sort_by_key(|range| *range.start());
        Self {
            usable,
            taken: BTreeMap::new(),
        }
    }

    /// Takes the lowest free stretch of `len_bytes` that begins at a multiple of `align_bytes`, a
    /// power of two.
    pub(crate) fn take(&mut self, len_bytes: u64, align_bytes: u64, what: Use) -> Option<u64> {
        for range in &self.usable {
            let mut at = *range.start();
            loop {
                at = at.checked_next_multiple_of(align_bytes)?;
                if what == Use::Ring && at.is_multiple_of(RING_STRIDE) {
                    at = at.checked_add(align_bytes)?;
                }
                let last = at.checked_add(len_bytes.checked_sub(1)?)?;
                if last > *range.end() {
                    break;
                }
                // The last piece that begins at or before the end of this stretch is the only one
                // that can be in the way first.
                match self.taken.range(..=last).next_back() {
                    Some((start, len)) if start.checked_add(*len)? > at => {
                        at = start.checked_add(*len)?;
                    }
                    _ => {
                        self.taken.insert(at, len_bytes);
                        return Some(at);
                    }
                }
            }
        }
        None
    }

    /// Takes `len_bytes` at `start`, if that is free and can be mapped.
    pub(crate) fn take_at(&mut self, start: u64, len_bytes: u64) -> Option<u64> {
        let last = start.checked_add(len_bytes.checked_sub(1)?)?;
        let usable = |range: &RangeInclusive<u64>| *range.start() <= start && last <= *range.end();
        let free = match self.taken.range(..=last).next_back() {
            Some((taken, len)) => taken.checked_add(*len)? <= start,
            None => true,
        };
        (free && self.usable.iter().any(usable)).then(|| {
            self.taken.insert(start, len_bytes);
            start
        })
    }

    /// Gives back what was taken at `start`.
    pub(crate) fn give_back(&mut self, start: u64) {
        self.taken.remove(&start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_window_of_interrupts_is_left_out() {
        let mut all = BusAddresses::new([0..=0xfedf_ffff, 0xfef0_0000..=u64::MAX]);
        let most = 0xfee0_0000 - MIB;
        assert_eq!(all.take(most, 4096, Use::Data), Some(MIB));
        assert_eq!(all.take(4096, 4096, Use::Data), Some(0xfef0_0000));
        // 48 bits are the engine's limit, whatever the IOMMU can do.
        assert_eq!(all.take(DmaAddr::LIMIT, 4096, Use::Data), None);
    }

    #[test]
    fn a_place_of_ones_choice_is_had_once_and_where_it_can_be_mapped() {
        let mut all = BusAddresses::new([0..=0xfedf_ffff, 0xfef0_0000..=u64::MAX]);
        let boundary = 1 << 32;
        assert_eq!(all.take_at(boundary - 4096, 8192), Some(boundary - 4096));
        for start in [
            boundary - 8192 + 1,
            boundary - 4096,
            boundary,
            boundary + 4095,
        ] {
            assert_eq!(all.take_at(start, 8192), None, "{start:#x}");
        }
        assert_eq!(all.take_at(boundary + 4096, 8192), Some(boundary + 4096));
        assert_eq!(all.take_at(0xfedf_f000, 8192), None, "a window in its way");
        assert_eq!(all.take_at(u64::MAX, 2), None);
        all.give_back(boundary - 4096);
        assert_eq!(all.take_at(boundary - 4096, 8192), Some(boundary - 4096));
    }

    #[test]
    fn what_is_given_back_is_taken_again_and_nothing_overlaps() {
        let mut all = BusAddresses::new([0..=u64::MAX]);
        let mut pieces = Vec::new();
        for n in 1..200_u64 {
            let len = (n * 7 % 13 + 1) * 4096;
            let align = 4096 << (n % 10);
            let at = all.take(len, align, Use::Data).expect("plenty is free");
            assert_eq!(at % align, 0);
            pieces.push((at, len));
            if n % 3 == 0 {
                let (at, _) = pieces.remove((n as usize * 5) % pieces.len());
                all.give_back(at);
            }
            for (i, (a, a_len)) in pieces.iter().enumerate() {
                for (b, b_len) in &pieces[i + 1..] {
                    assert!(a + a_len <= *b || b + b_len <= *a, "{pieces:x?}");
                }
            }
        }
    }

    #[test]
    fn a_ring_never_lies_at_a_multiple_of_4_gib() {
        let mut all = BusAddresses::new([RING_STRIDE..=2 * RING_STRIDE]);
        assert_eq!(all.take(16384, 16384, Use::Ring), Some(RING_STRIDE + 16384));
        assert_eq!(all.take(16384, 16384, Use::Data), Some(RING_STRIDE));
    }

    #[test]
    fn no_room_is_no_address() {
        let mut all = BusAddresses::new([0..=2 * MIB - 1]);
        assert_eq!(all.take(2 * MIB, 4096, Use::Data), None);
        assert_eq!(all.take(0, 4096, Use::Data), None);
        assert_eq!(all.take(MIB, MIB, Use::Data), Some(MIB));
        assert_eq!(all.take(4096, 4096, Use::Data), None);
    }
}
