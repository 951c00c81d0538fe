//! Cutting data into folios and laying them out in memory.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::cli::{Args, PAGE_LEN_BYTES, Scatter};

/// One folio of a window: where it is in the data, and where its source and destination lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Offset in the window's data.
    pub(crate) data_offset: usize,
    /// Offset in the source memory.
    pub(crate) src_offset: usize,
    /// Offset in the destination memory.
    pub(crate) dst_offset: usize,
    /// Bytes; a whole number of pages.
    pub(crate) len_bytes: usize,
}

/// Cuts `len_bytes` bytes, rounded up to whole pages, and places the parts. The same seed gives
/// the same layout.
pub(crate) fn place(args: &Args, len_bytes: usize, seed: u64) -> Vec<Placed> {
    let mut rng = StdRng::seed_from_u64(seed);
    let pages_end = len_bytes.next_multiple_of(PAGE_LEN_BYTES);
    let orders = (args.folio_size / PAGE_LEN_BYTES).trailing_zeros();
    let mut folios = Vec::new();
    let mut offset = 0;
    while offset < pages_end {
        let wanted = if args.mix {
            PAGE_LEN_BYTES << rng.random_range(0..=orders)
        } else {
            args.folio_size
        };
        // The rest may need smaller ones.
        let mut len = wanted;
        while len > pages_end - offset {
            len /= 2;
        }
        folios.push(Placed {
            data_offset: offset,
            src_offset: offset,
            dst_offset: offset,
            len_bytes: len,
        });
        offset += len;
    }
    if args.scatter == Scatter::Scattered {
        let mut order: Vec<usize> = (0..folios.len()).collect();
        order.shuffle(&mut rng);
        let mut at = 0;
        for &i in &order {
            folios[i].src_offset = at;
            at += folios[i].len_bytes;
        }
        order.shuffle(&mut rng);
        at = 0;
        for &i in &order {
            folios[i].dst_offset = at;
            at += folios[i].len_bytes;
        }
    }
    folios
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn check(words: &[&str], len: usize) -> Vec<Placed> {
        let args = Args::parse_from(std::iter::once(&"x").chain(words));
        let folios = place(&args, len, 3);
        let end = len.next_multiple_of(PAGE_LEN_BYTES);
        for key in [
            |f: &Placed| f.data_offset,
            |f: &Placed| f.src_offset,
            |f: &Placed| f.dst_offset,
        ] {
            let mut sorted = folios.clone();
            sorted.sort_by_key(key);
            let mut at = 0;
            for folio in sorted {
                assert_eq!(key(&folio), at);
                at += folio.len_bytes;
            }
            assert_eq!(at, end);
        }
        folios
    }

    #[test]
    fn everything_has_one_place() {
        assert_eq!(check(&[], 100_000).len(), 25);
        check(&["--folio-size", "2M", "--mix"], 10 << 20);
        check(
            &["--folio-size", "1M", "--scatter", "contiguous"],
            (3 << 20) + 5,
        );
        assert_eq!(check(&["--folio-size", "2M"], 1).len(), 1);
    }
}
