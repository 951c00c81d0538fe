//! Bytes that several threads may touch at once, without `unsafe`.
//!
//! A region is made of 64-bit atomic words accessed with relaxed ordering: a race between an
//! engine and a test mixes data, as on a real bus, and is not undefined behaviour. Ordering comes
//! from the lock around the device's registers. Whole words move at memory speed; bytes at the
//! ragged ends are merged with compare-and-swap, so that a neighbour's bytes in the same word are
//! never written back stale.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const WORD: usize = size_of::<u64>();

pub(crate) struct Region {
    words: Box<[AtomicU64]>,
    len_bytes: usize,
}

impl Region {
    pub(crate) fn zeroed(len_bytes: usize) -> Self {
        let words = (0..len_bytes.div_ceil(WORD))
            .map(|_| AtomicU64::new(0))
            .collect();
        Self { words, len_bytes }
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Fills `buf` from `offset`; the caller has checked the range.
    pub(crate) fn load(&self, offset: usize, buf: &mut [u8]) {
        let (head, rest) = buf.split_at_mut(ragged(offset, buf.len()));
        self.load_within_word(offset, head);
        let mut word = (offset + head.len()) / WORD;
        let mut chunks = rest.chunks_exact_mut(WORD);
        for chunk in &mut chunks {
            chunk.copy_from_slice(&self.words[word].load(Relaxed).to_ne_bytes());
            word += 1;
        }
        self.load_within_word(word * WORD, chunks.into_remainder());
    }

    /// Stores `data` at `offset`; the caller has checked the range.
    pub(crate) fn store(&self, offset: usize, data: &[u8]) {
        let (head, rest) = data.split_at(ragged(offset, data.len()));
        self.store_within_word(offset, head);
        let mut word = (offset + head.len()) / WORD;
        let (chunks, tail) = rest.as_chunks::<WORD>();
        for chunk in chunks {
            self.words[word].store(u64::from_ne_bytes(*chunk), Relaxed);
            word += 1;
        }
        self.store_within_word(word * WORD, tail);
    }

    /// Copies to another region; the caller has checked both ranges, which do not overlap.
    pub(crate) fn copy_to(&self, offset: usize, to: &Self, to_offset: usize, len: usize) {
        if offset % WORD == to_offset % WORD {
            let head = ragged(offset, len);
            let words = (len - head) / WORD;
            let tail = head + words * WORD;
            self.bounce(offset, to, to_offset, head);
            let src = &self.words[(offset + head) / WORD..][..words];
            let dst = &to.words[(to_offset + head) / WORD..][..words];
            for (s, d) in src.iter().zip(dst) {
                d.store(s.load(Relaxed), Relaxed);
            }
            self.bounce(offset + tail, to, to_offset + tail, len - tail);
        } else {
            self.bounce(offset, to, to_offset, len);
        }
    }

    fn bounce(&self, offset: usize, to: &Self, to_offset: usize, len: usize) {
        let mut buffer = [0; 4096];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(buffer.len());
            self.load(offset + done, &mut buffer[..step]);
            to.store(to_offset + done, &buffer[..step]);
            done += step;
        }
    }

    fn load_within_word(&self, offset: usize, buf: &mut [u8]) {
        if buf.is_empty() {
            return;
        }
        let bytes = self.words[offset / WORD].load(Relaxed).to_ne_bytes();
        buf.copy_from_slice(&bytes[offset % WORD..][..buf.len()]);
    }

    fn store_within_word(&self, offset: usize, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let word = &self.words[offset / WORD];
        let merge = |old: u64| {
            let mut bytes = old.to_ne_bytes();
            bytes[offset % WORD..][..data.len()].copy_from_slice(data);
            u64::from_ne_bytes(bytes)
        };
        let mut old = word.load(Relaxed);
        while let Err(now) = word.compare_exchange_weak(old, merge(old), Relaxed, Relaxed) {
            old = now;
        }
    }
}

/// Bytes from `offset` to the next word boundary, at most `len`.
fn ragged(offset: usize, len: usize) -> usize {
    (offset.next_multiple_of(WORD) - offset).min(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alignment_and_short_length_round_trips_without_touching_neighbours() {
        let data: Vec<u8> = (1..=40).collect();
        for offset in 0..17 {
            for len in 0..data.len() {
                let region = Region::zeroed(64);
                region.store(0, &[0xee; 64]);
                region.store(offset, &data[..len]);
                let mut all = [0; 64];
                region.load(0, &mut all);
                assert_eq!(&all[offset..offset + len], &data[..len]);
                assert!(all[..offset].iter().all(|&b| b == 0xee));
                assert!(all[offset + len..].iter().all(|&b| b == 0xee));
                let mut part = vec![0; len];
                region.load(offset, &mut part);
                assert_eq!(part, &data[..len]);
            }
        }
    }

    #[test]
    fn copies_at_every_pair_of_alignments() {
        let src = Region::zeroed(64);
        let data: Vec<u8> = (100..164).collect();
        src.store(0, &data);
        for from in 0..9 {
            for to in 0..9 {
                for len in [0, 1, 7, 8, 9, 31, 50] {
                    let dst = Region::zeroed(64);
                    src.copy_to(from, &dst, to, len);
                    let mut got = [0; 64];
                    dst.load(0, &mut got);
                    assert_eq!(&got[to..to + len], &data[from..from + len]);
                    assert!(got[..to].iter().chain(&got[to + len..]).all(|&b| b == 0));
                }
            }
        }
    }
}
