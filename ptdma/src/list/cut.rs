//! Cutting a list into equal windows, and windows into pieces that descriptors can copy.

use crate::addr::DmaAddr;
use crate::copy_channel::Segment;
use crate::request::BOUNDARY_LEN_BYTES;

/// Windows are cut at multiples of this many bytes from the start of the list. 4 KiB is a base
/// page: the parts of page-sized entries stay whole pages. Channels' loads differ by at most this
/// much, or by the strictest alignment of the channels if that is more.
pub const PAGE_LEN_BYTES: u64 = 4096;

/// A place in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// Index of the entry.
    pub(super) entry: usize,
    /// Bytes of the entry before the place; fewer than the entry has.
    pub(super) offset_bytes: u64,
}

impl Position {
    pub(super) const START: Self = Self {
        entry: 0,
        offset_bytes: 0,
    };

    /// The place `bytes` bytes further on.
    pub(super) fn skip(self, list: &[Segment], bytes: u64) -> Self {
        let mut left = bytes.saturating_add(self.offset_bytes);
        let mut place = Self {
            entry: self.entry,
            offset_bytes: 0,
        };
        for entry in list.iter().skip(self.entry) {
            if left < entry.len_bytes {
                break;
            }
            left = left.saturating_sub(entry.len_bytes);
            place.entry = place.entry.saturating_add(1);
        }
        place.offset_bytes = left;
        place
    }
}

/// A part of one entry, copied by one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) entry: usize,
    pub(super) copy: Segment,
}

/// How a list of some length is cut. A function of three numbers: cutting again gives the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    total_bytes: u64,
    windows: usize,
    unit_bytes: u64,
}

impl Cut {
    /// A cut of `total_bytes` (at least 1) for up to `channels` channels, or `None` for none. A
    /// list of fewer pages than channels uses as many as it has pages.
    pub(super) fn new(total_bytes: u64, channels: usize, align_bytes: u64) -> Option<Self> {
        let unit_bytes = align_bytes.max(PAGE_LEN_BYTES);
        let units = total_bytes.div_ceil(unit_bytes);
        let windows = usize::try_from(units).map_or(channels, |units| units.min(channels));
        (windows != 0).then_some(Self {
            total_bytes,
            windows,
            unit_bytes,
        })
    }

    pub(super) const fn windows(&self) -> usize {
        self.windows
    }

    /// Where in the list's bytes a window starts; behind the last one, the end of the list.
    fn boundary(&self, window: usize) -> u64 {
        let units = u128::from(self.total_bytes.div_ceil(self.unit_bytes));
        let units_before = units
            .saturating_mul(window as u128)
            .checked_div(self.windows as u128)
            .unwrap_or(units);
        let bytes = units_before.saturating_mul(u128::from(self.unit_bytes));
        u64::try_from(bytes).map_or(self.total_bytes, |bytes| bytes.min(self.total_bytes))
    }

    /// How long a window is.
    pub(super) fn window_bytes(&self, window: usize) -> u64 {
        let end = self.boundary(window.saturating_add(1));
        end.saturating_sub(self.boundary(window))
    }
}

/// Iterates over the pieces of a window.
#[derive(Clone, Debug)]
pub(super) struct Pieces<'l> {
    list: &'l [Segment],
    next: Position,
    left_bytes: u64,
    max_len_bytes: u64,
}

impl<'l> Pieces<'l> {
    /// The pieces of the `left_bytes` bytes from `next` on.
    pub(super) const fn new(
        list: &'l [Segment],
        next: Position,
        left_bytes: u64,
        max_len_bytes: u64,
    ) -> Self {
        Self {
            list,
            next,
            left_bytes,
            max_len_bytes,
        }
    }

    /// Where the next piece begins.
    pub(super) const fn position(&self) -> Position {
        self.next
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        if self.left_bytes == 0 {
            return None;
        }
        let Position {
            entry: index,
            offset_bytes,
        } = self.next;
        let entry = self.list.get(index)?;
        // The whole entry was checked to lie within 48 bits.
        let src = entry.src.checked_add(offset_bytes)?;
        let dst = entry.dst.checked_add(offset_bytes)?;
        let len_bytes = entry
            .len_bytes
            .saturating_sub(offset_bytes)
            .min(self.left_bytes)
            .min(self.max_len_bytes)
            .min(to_boundary(src))
            .min(to_boundary(dst));
        self.left_bytes = self.left_bytes.saturating_sub(len_bytes);
        let behind = offset_bytes.saturating_add(len_bytes);
        self.next = if behind < entry.len_bytes {
            Position {
                entry: index,
                offset_bytes: behind,
            }
        } else {
            Position {
                entry: index.saturating_add(1),
                offset_bytes: 0,
            }
        };
        Some(Piece {
            entry: index,
            copy: Segment {
                src,
                dst,
                len_bytes,
            },
        })
    }
}

/// Bytes from an address to the next one that no descriptor crosses.
fn to_boundary(addr: DmaAddr) -> u64 {
    BOUNDARY_LEN_BYTES.wrapping_sub(addr.get() % BOUNDARY_LEN_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn list(lens: &[u64]) -> Vec<Segment> {
        let mut at = 0x10_0000;
        lens.iter()
            .map(|len| {
                at += 0x1_0000_0000;
                Segment {
                    src: DmaAddr::new(at),
                    dst: DmaAddr::new(at + 0x8000_0000),
                    len_bytes: *len,
                }
            })
            .collect()
    }

    /// Every byte of every entry exactly once, in order, loads within a page.
    fn check(lens: &[u64], channels: usize, max_len: u64) -> Vec<usize> {
        let entries = list(lens);
        let total = lens.iter().sum();
        let cut = Cut::new(total, channels, 1).unwrap();
        let mut at = (0_usize, 0_u64);
        let mut loads = Vec::new();
        let mut counts = Vec::new();
        let mut next = Position::START;
        for window in 0..cut.windows() {
            let mut load = 0;
            let mut count = 0;
            let bytes = cut.window_bytes(window);
            let mut pieces = Pieces::new(&entries, next, bytes, max_len);
            for piece in pieces.by_ref() {
                if at.1 == entries[at.0].len_bytes {
                    at = (at.0 + 1, 0);
                }
                assert_eq!(piece.entry, at.0);
                assert_eq!(piece.copy.src.get(), entries[at.0].src.get() + at.1);
                assert_eq!(piece.copy.dst.get(), entries[at.0].dst.get() + at.1);
                assert!(piece.copy.len_bytes > 0 && piece.copy.len_bytes <= max_len);
                at.1 += piece.copy.len_bytes;
                load += piece.copy.len_bytes;
                count += 1;
            }
            assert_eq!(pieces.position(), next.skip(&entries, bytes));
            next = pieces.position();
            loads.push(load);
            counts.push(count);
        }
        assert_eq!(
            at,
            (entries.len() - 1, entries[entries.len() - 1].len_bytes)
        );
        assert_eq!(loads.iter().sum::<u64>(), total);
        let (min, max) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
        assert!(max - min <= 2 * PAGE_LEN_BYTES, "{loads:?}");
        counts
    }

    #[test]
    fn one_huge_page_uses_every_channel_equally() {
        assert_eq!(check(&[2 << 20], 16, 2 << 20), [1; 16]);
    }

    #[test]
    fn small_pages_are_dealt_by_bytes() {
        assert_eq!(check(&[4096; 512], 16, 2 << 20), [32; 16]);
        assert_eq!(check(&[4096; 3], 16, 2 << 20), [1; 3]);
    }

    #[test]
    fn pieces_end_at_multiples_of_4_gib() {
        let entries = [Segment {
            src: DmaAddr::new((1 << 32) - 0x3000),
            dst: DmaAddr::new((5 << 32) - 0x1000),
            len_bytes: 0x8000,
        }];
        let pieces = Pieces::new(&entries, Position::START, 0x8000, 2 << 20);
        let lens: Vec<u64> = pieces.map(|piece| piece.copy.len_bytes).collect();
        assert_eq!(lens, [0x1000, 0x2000, 0x5000]);
    }

    #[test]
    fn odd_lists_are_covered() {
        check(&[1], 16, 4096);
        check(&[4095, 1, 4097, 70_000, 3, 2 << 20], 7, 65_536);
        check(&[1 << 30, 5], 16, 1 << 20);
        check(&[100; 1000], 3, 64);
    }

    #[test]
    fn windows_keep_the_alignment_of_the_channels() {
        let cut = Cut::new(10 << 16, 3, 1 << 16).unwrap();
        let windows: Vec<u64> = (0..3).map(|window| cut.window_bytes(window)).collect();
        assert_eq!(windows, [3 << 16, 3 << 16, 4 << 16]);
        assert!(Cut::new(1, 0, 1).is_none());
    }
}
