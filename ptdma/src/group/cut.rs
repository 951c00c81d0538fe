//! Cutting a scatter-gather list into equal windows.

use super::SgEntry;
use crate::addr::DmaAddr;
use crate::request::BOUNDARY_LEN_BYTES;

/// Windows are cut at multiples of this many bytes from the start of the list: 4 KiB, a base
/// page, so that the parts of page-sized entries stay whole pages. Channels' loads differ by at
/// most this much.
pub const PAGE_LEN_BYTES: u64 = 4096;

/// A part of one entry, copied by one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index of the entry in the list.
    pub entry: usize,
    /// Where in the entry the piece starts, in bytes.
    pub offset_bytes: u64,
    /// Where its bytes are.
    pub src: DmaAddr,
    /// Where they go.
    pub dst: DmaAddr,
    /// How many.
    pub len_bytes: u32,
}

/// How a list of some length is cut. A function of three numbers: cutting again gives the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    total_bytes: u64,
    shares: usize,
    max_len_bytes: u32,
}

impl Cut {
    /// A cut of `total_bytes` (at least 1) for up to `channels` channels, or `None` for none. A
    /// list of fewer pages than channels uses as many as it has pages.
    pub(crate) fn new(total_bytes: u64, channels: usize, max_len_bytes: u32) -> Option<Self> {
        if channels == 0 || total_bytes == 0 || max_len_bytes == 0 {
            return None;
        }
        let pages = total_bytes.div_ceil(PAGE_LEN_BYTES);
        Some(Self {
            total_bytes,
            shares: usize::try_from(pages).map_or(channels, |pages| pages.min(channels)),
            max_len_bytes,
        })
    }

    pub(crate) fn shares(&self) -> usize {
        self.shares
    }

    /// Where in the list's bytes window `share` starts; `share == shares` is the end of the list.
    fn boundary(&self, share: usize) -> u64 {
        let pages = u128::from(self.total_bytes.div_ceil(PAGE_LEN_BYTES));
        let pages_before = pages
            .saturating_mul(share as u128)
            .checked_div(self.shares as u128)
            .unwrap_or(pages);
        let bytes = pages_before.saturating_mul(u128::from(PAGE_LEN_BYTES));
        u64::try_from(bytes).map_or(self.total_bytes, |bytes| bytes.min(self.total_bytes))
    }

    /// The pieces of window `share`, in order.
    pub(crate) fn pieces<'l>(&self, list: &'l [SgEntry], share: usize) -> Pieces<'l> {
        let mut pieces = Pieces {
            entries: list.iter().enumerate(),
            current: None,
            left_bytes: self
                .boundary(share.saturating_add(1))
                .saturating_sub(self.boundary(share)),
            max_len_bytes: self.max_len_bytes,
        };
        pieces.skip_bytes(self.boundary(share));
        pieces
    }
}

/// Iterates over the pieces of a window.
#[derive(Clone, Debug)]
pub(crate) struct Pieces<'l> {
    entries: core::iter::Enumerate<core::slice::Iter<'l, SgEntry>>,
    /// The entry in work: index, entry, bytes of it that are behind.
    current: Option<(usize, &'l SgEntry, u64)>,
    left_bytes: u64,
    max_len_bytes: u32,
}

impl Pieces<'_> {
    fn skip_bytes(&mut self, mut skip: u64) {
        for (index, entry) in self.entries.by_ref() {
            if skip < entry.len_bytes {
                self.current = Some((index, entry, skip));
                return;
            }
            skip = skip.wrapping_sub(entry.len_bytes);
        }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        if self.left_bytes == 0 {
            return None;
        }
        let (entry_index, entry, offset_bytes) = match self.current {
            Some(current) => current,
            None => {
                let (index, entry) = self.entries.next()?;
                (index, entry, 0)
            }
        };
        let rest = entry.len_bytes.saturating_sub(offset_bytes);
        // The whole entry was checked to lie within 48 bits.
        let src = entry.src.checked_add(offset_bytes)?;
        let dst = entry.dst.checked_add(offset_bytes)?;
        let len = rest
            .min(self.left_bytes)
            .min(u64::from(self.max_len_bytes))
            .min(to_boundary(src))
            .min(to_boundary(dst));
        self.left_bytes = self.left_bytes.saturating_sub(len);
        let behind = offset_bytes.saturating_add(len);
        self.current = (behind < entry.len_bytes).then_some((entry_index, entry, behind));
        Some(Piece {
            entry: entry_index,
            offset_bytes,
            src,
            dst,
            len_bytes: u32::try_from(len).ok()?,
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

    fn list(lens: &[u64]) -> Vec<SgEntry> {
        let mut at = 0x10_0000;
        lens.iter()
            .map(|len| {
                at += 0x1_0000_0000;
                SgEntry {
                    src: DmaAddr::new(at),
                    dst: DmaAddr::new(at + 0x8000_0000),
                    len_bytes: *len,
                }
            })
            .collect()
    }

    /// Every byte of every entry exactly once, in order, loads within a page.
    fn check(lens: &[u64], channels: usize, max_len: u32) -> Vec<usize> {
        let entries = list(lens);
        let total = lens.iter().sum();
        let cut = Cut::new(total, channels, max_len).unwrap();
        let mut at = (0_usize, 0_u64);
        let mut loads = Vec::new();
        let mut counts = Vec::new();
        for share in 0..cut.shares() {
            let mut load = 0;
            let mut count = 0;
            for piece in cut.pieces(&entries, share) {
                if at.1 == entries[at.0].len_bytes {
                    at = (at.0 + 1, 0);
                }
                assert_eq!((piece.entry, piece.offset_bytes), at);
                assert_eq!(piece.src.get(), entries[at.0].src.get() + at.1);
                assert_eq!(piece.dst.get(), entries[at.0].dst.get() + at.1);
                assert!(piece.len_bytes > 0 && piece.len_bytes <= max_len);
                at.1 += u64::from(piece.len_bytes);
                load += u64::from(piece.len_bytes);
                count += 1;
            }
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
        let entries = [SgEntry {
            src: DmaAddr::new((1 << 32) - 0x3000),
            dst: DmaAddr::new((5 << 32) - 0x1000),
            len_bytes: 0x8000,
        }];
        let cut = Cut::new(0x8000, 1, 2 << 20).unwrap();
        let lens: Vec<u32> = cut
            .pieces(&entries, 0)
            .map(|piece| piece.len_bytes)
            .collect();
        assert_eq!(lens, [0x1000, 0x2000, 0x5000]);
    }

    #[test]
    fn odd_lists_are_covered() {
        check(&[1], 16, 4096);
        check(&[4095, 1, 4097, 70_000, 3, 2 << 20], 7, 65_536);
        check(&[1 << 30, 5], 16, 1 << 20);
        check(&[100; 1000], 3, 64);
    }
}
