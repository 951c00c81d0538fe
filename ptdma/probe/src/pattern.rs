//! Bytes in which each place can be told from every other one.

use crate::platform::Platform;

/// Bytes that are written and compared at once.
const PIECE_LEN_BYTES: usize = 256;
/// A word of the pattern.
const WORD: usize = 8;

/// The finalizer of `SplitMix64` (Steele, Lea, Flood 2014; public domain).
const fn mix(seed: u64, word: u64) -> u64 {
    let mut z = seed.wrapping_add(word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The byte of a pattern at an offset.
pub(crate) fn byte(seed: u64, at: u64) -> u8 {
    let word = mix(seed, at / WORD as u64).to_le_bytes();
    word.get(at as usize % WORD).copied().unwrap_or(0)
}

fn each_piece(from: u64, to: u64, mut f: impl FnMut(u64, &mut [u8]) -> bool) -> bool {
    let mut buffer = [0; PIECE_LEN_BYTES];
    let mut at = from;
    while at < to {
        let len = (to - at).min(PIECE_LEN_BYTES as u64);
        let (piece, _) = buffer.split_at_mut(len as usize);
        if !f(at, piece) {
            return false;
        }
        at = at.saturating_add(len);
    }
    true
}

/// Writes the pattern from offset `at` on, or its inverse, word by word.
fn fill(piece: &mut [u8], seed: u64, at: u64, invert: bool) {
    let skip = at as usize % WORD;
    let mut words = (at / WORD as u64..).map(|number| {
        let word = mix(seed, number);
        let word = if invert { !word } else { word };
        word.to_le_bytes()
    });
    let (head, rest) = piece.split_at_mut(piece.len().min((WORD - skip) % WORD));
    if !head.is_empty()
        && let Some(word) = words.next()
    {
        let part = word.iter().skip(skip);
        head.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
    }
    for (chunk, word) in rest.chunks_mut(WORD).zip(words) {
        chunk.iter_mut().zip(word).for_each(|(to, from)| *to = from);
    }
}

/// Fills the source up to `len_bytes`.
pub(crate) fn fill_source<P: Platform>(p: &mut P, seed: u64, len_bytes: u64) {
    each_piece(0, len_bytes, |at, piece| {
        fill(piece, seed, at, false);
        p.write_source(at, piece);
        true
    });
}

/// Fills a range of the target with what no copy of the source brings: the inverse of what a copy
/// from `from` on would.
pub(crate) fn spoil_target<P: Platform>(p: &mut P, seed: u64, to: u64, from: u64, len_bytes: u64) {
    each_piece(0, len_bytes, |at, piece| {
        fill(piece, seed, from.saturating_add(at), true);
        p.write_target(to.saturating_add(at), piece);
        true
    });
}

/// Whether the target has at `to` what the source has at `from`.
pub(crate) fn has_arrived<P: Platform>(
    p: &P,
    seed: u64,
    to: u64,
    from: u64,
    len_bytes: u64,
) -> bool {
    compare(p, seed, to, from, len_bytes, false)
}

/// Whether the target is as [`spoil_target`] has left it.
pub(crate) fn is_untouched<P: Platform>(
    p: &P,
    seed: u64,
    to: u64,
    from: u64,
    len_bytes: u64,
) -> bool {
    compare(p, seed, to, from, len_bytes, true)
}

fn compare<P: Platform>(
    p: &P,
    seed: u64,
    to: u64,
    from: u64,
    len_bytes: u64,
    invert: bool,
) -> bool {
    let mut wanted = [0; PIECE_LEN_BYTES];
    each_piece(0, len_bytes, |at, piece| {
        p.read_target(to.saturating_add(at), piece);
        let (wanted, _) = wanted.split_at_mut(piece.len());
        fill(wanted, seed, from.saturating_add(at), invert);
        wanted == piece
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_at_any_offset_has_the_bytes_of_the_pattern() {
        for at in 0..20_u64 {
            for len in 0..20_usize {
                let mut piece = [0; 20];
                let (piece, _) = piece.split_at_mut(len);
                fill(piece, 7, at, false);
                let wanted = (at..).map(|at| byte(7, at));
                assert!(piece.iter().copied().zip(wanted).all(|(is, it)| is == it));
                let mut inverse = [0; 20];
                let (inverse, _) = inverse.split_at_mut(len);
                fill(inverse, 7, at, true);
                assert!(piece.iter().zip(inverse.iter()).all(|(a, b)| *a == !*b));
            }
        }
    }
}
