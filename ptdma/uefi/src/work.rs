//! Work for engines, in which every byte can be told right from wrong.
//!
//! A source holds bytes that follow from their place and a seed. The destination holds, before
//! the copy, the inverse of each byte that is to come, and other bytes in the gaps between: a byte
//! that was not copied, copied to the wrong place, or copied over a gap is found.

use core::ops::Range;
use core::ptr::NonNull;

/// Memory that engines read and write while this program looks on: bytes, not a slice.
#[derive(Clone, Copy, Debug)]
pub struct Arena {
    start: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: one thread at a time uses the memory (constructor's contract), whichever it is.
unsafe impl Send for Arena {}

impl Arena {
    /// Takes `len_bytes` bytes at `start`.
    ///
    /// # Safety
    ///
    /// The memory is 8-byte aligned and stays valid for reads and writes as long as a copy of the
    /// value is used. Nobody has a Rust reference into it, and one thread at a time uses it. Engines
    /// may write to it at any time.
    #[must_use]
    pub const unsafe fn new(start: NonNull<u8>, len_bytes: usize) -> Self {
        Self { start, len_bytes }
    }

    /// Its first `len_bytes` bytes, or all of it.
    #[must_use]
    pub const fn first(mut self, len_bytes: usize) -> Self {
        if len_bytes < self.len_bytes {
            self.len_bytes = len_bytes;
        }
        self
    }

    /// Bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Where it begins.
    #[must_use]
    pub const fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Reads bytes from an offset on. Those behind the end read 0.
    pub fn read(&self, at: usize, into: &mut [u8]) {
        for (chunk, at) in into.chunks_mut(WORD).zip((at..).step_by(WORD)) {
            match self.get_word(at) {
                Some(word) => chunk
                    .iter_mut()
                    .zip(word.to_le_bytes())
                    .for_each(|(to, from)| *to = from),
                None => (at..)
                    .zip(chunk.iter_mut())
                    .for_each(|(at, to)| *to = self.get(at)),
            }
        }
    }

    /// Writes bytes from an offset on. Those behind the end are dropped.
    pub fn write(&self, at: usize, from: &[u8]) {
        for (chunk, at) in from.chunks(WORD).zip((at..).step_by(WORD)) {
            let whole = <[u8; WORD]>::try_from(chunk).ok();
            let written = whole.and_then(|bytes| self.set_word(at, u64::from_le_bytes(bytes)));
            if written.is_none() {
                (at..).zip(chunk).for_each(|(at, byte)| self.set(at, *byte));
            }
        }
    }

    /// One byte; 0 behind the end.
    fn get(&self, at: usize) -> u8 {
        if at >= self.len_bytes {
            return 0;
        }
        // SAFETY: `at` is within the memory that the constructor was promised.
        let byte = unsafe { self.start.add(at) };
        // SAFETY: valid for reads, by the same promise; volatile, because engines write it.
        unsafe { byte.read_volatile() }
    }

    fn set(&self, at: usize, value: u8) {
        if at >= self.len_bytes {
            return;
        }
        // SAFETY: `at` is within the memory that the constructor was promised.
        let byte = unsafe { self.start.add(at) };
        // SAFETY: valid for writes, by the same promise; volatile, because engines read it.
        unsafe { byte.write_volatile(value) }
    }

    /// The aligned word that holds 8 bytes from `at` on; `None` if there is none.
    fn word(&self, at: usize) -> Option<NonNull<u64>> {
        if !at.is_multiple_of(WORD) || at.checked_add(WORD)? > self.len_bytes {
            return None;
        }
        // SAFETY: `at` is within the memory that the constructor was promised.
        Some(unsafe { self.start.add(at) }.cast())
    }

    fn get_word(&self, at: usize) -> Option<u64> {
        let word = self.word(at)?;
        // SAFETY: a whole word of the memory, aligned because the memory is; as in `get`.
        Some(unsafe { word.read_volatile() })
    }

    fn set_word(&self, at: usize, value: u64) -> Option<()> {
        let word = self.word(at)?;
        // SAFETY: a whole word of the memory, aligned because the memory is; as in `set`.
        unsafe { word.write_volatile(value) }
        Some(())
    }
}

/// Bytes that are handled at once where both sides are aligned.
const WORD: usize = 8;

/// A copy: where from and where to in their arenas, and how many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// First byte in the source.
    pub src: usize,
    /// First byte in the destination.
    pub dst: usize,
    /// How many bytes, not zero.
    pub len_bytes: usize,
}

/// What kind of copies there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Pages of 4 KiB, each from one place to another.
    Pages,
    /// Lengths and addresses that are multiples of nothing.
    Odd,
    /// 1 MiB in one piece for each channel.
    Large,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pages, Self::Odd, Self::Large];

    /// Name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pages => "pages",
            Self::Odd => "odd lengths",
            Self::Large => "large",
        }
    }

    /// Copies for each channel. Cut into equal parts, they take fewer than 31 descriptors of each:
    /// what the shortest ring in use (Linux's, 32 entries) holds.
    #[must_use]
    pub const fn copies(self) -> usize {
        match self {
            Self::Pages => 24,
            // Their lengths repeat after eight copies.
            Self::Odd => 16,
            Self::Large => 1,
        }
    }

    /// Largest length of either arena for a number of channels, in bytes.
    #[must_use]
    pub const fn arena_len_bytes(self, channels: usize) -> usize {
        channels * self.copies() * (self.longest() + 2 * GAP)
    }

    const fn longest(self) -> usize {
        match self {
            Self::Pages => 4096,
            Self::Odd => 5000,
            Self::Large => 1 << 20,
        }
    }

    fn len_bytes(self, number: usize) -> usize {
        /// Around the sizes of a bus word, a cache line and a page, on either side.
        const ODD: [usize; 8] = [1, 4095, 63, 4097, 65, 3000, 7, 5000];
        match self {
            Self::Pages | Self::Large => self.longest(),
            Self::Odd => ODD[number % ODD.len()],
        }
    }
}

/// Bytes that stay free between two copies at the least: what is written past an end is found.
const GAP: usize = 4096;

/// Lays out the copies of a kind for a number of channels: in order in the destination, shuffled in
/// the source. Uses the beginning of `room` and returns it.
#[must_use]
pub fn lay_out(kind: Kind, channels: usize, room: &mut [Copy]) -> &[Copy] {
    let count = (channels * kind.copies()).min(room.len());
    let copies = &mut room[..count];
    let slot = kind.longest() + 2 * GAP;
    // A step that has no divisor in common with the count visits every slot once.
    let step = (count * 3 / 5..count)
        .find(|step| divisor(*step, count) == 1)
        .unwrap_or(1);
    for (number, copy) in copies.iter_mut().enumerate() {
        let odd = kind == Kind::Odd;
        let from = (number * step + 1) % count.max(1);
        // Pages stay aligned; odd ones begin anywhere in their slots.
        let nudge = |factor: usize| if odd { number * factor % GAP } else { 0 };
        *copy = Copy {
            src: from * slot + nudge(733),
            dst: number * slot + nudge(1021),
            len_bytes: kind.len_bytes(number),
        };
    }
    copies
}

const fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}

/// Eight bytes of a pattern, by the number of their word: the finalizer of `SplitMix64` (Steele,
/// Lea, Flood 2014; public domain).
const fn mix(seed: u64, word: usize) -> u64 {
    let mut z = seed
        .wrapping_add(word as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn byte(seed: u64, at: usize) -> u8 {
    mix(seed, at / WORD).to_le_bytes()[at % WORD]
}

/// Source, destination, and what is to be copied between them.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// Where the bytes are.
    pub source: Arena,
    /// Where they go.
    pub destination: Arena,
    /// The copies, in order of their destinations, which do not overlap.
    pub copies: &'a [Copy],
    /// Makes this work different from others on the same memory.
    pub seed: u64,
}

/// What was found in a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Bytes that are what they should be.
    pub right: u64,
    /// Bytes of copies that are not.
    pub wrong: u64,
    /// Bytes that are not what they should be, of copies that are known to have failed.
    pub excused: u64,
    /// Bytes outside of all copies, or of the source, that somebody has changed.
    pub stray: u64,
    /// The first wrong or stray byte: where it is in the destination, or in the source behind it.
    pub first: Option<usize>,
}

impl Work<'_> {
    /// Writes source and destination.
    pub fn prepare(&self) {
        self.each_source(|at, value, word| {
            if word {
                let _ = self.source.set_word(at, value);
            } else {
                self.source.set(at, value as u8);
            }
        });
        self.each_destination(|at, value, word, copied| {
            let value = if copied { !value } else { value };
            if word {
                let _ = self.destination.set_word(at, value);
            } else {
                self.destination.set(at, value as u8);
            }
        });
    }

    /// Looks at every byte of both. Those of `excused`, which are ranges of the destination, may be
    /// anything; the ranges are sorted.
    #[must_use]
    pub fn check(&self, excused: &mut [Range<usize>]) -> Found {
        let mut found = Found::default();
        excused.sort_unstable_by_key(|range| range.start);
        let mut ahead = excused.iter().peekable();
        // Asked in order of `at`.
        let mut is_excused = |at: usize| {
            while ahead.next_if(|range| range.end <= at).is_some() {}
            ahead.peek().is_some_and(|range| range.contains(&at))
        };
        self.each_destination(|at, value, word, copied| {
            let len = if word { WORD } else { 1 };
            if word && self.destination.get_word(at) == Some(value) {
                found.right += WORD as u64;
                return;
            }
            for (offset, value) in value.to_le_bytes().into_iter().take(len).enumerate() {
                let at = at + offset;
                if self.destination.get(at) == value {
                    found.right += 1;
                } else if copied && is_excused(at) {
                    found.excused += 1;
                } else {
                    found.first = found.first.or(Some(at));
                    if copied {
                        found.wrong += 1;
                    } else {
                        found.stray += 1;
                    }
                }
            }
        });
        self.each_source(|at, value, word| {
            let len = if word { WORD } else { 1 };
            if word && self.source.get_word(at) == Some(value) {
                return;
            }
            for (offset, value) in value.to_le_bytes().into_iter().take(len).enumerate() {
                if self.source.get(at + offset) != value {
                    found.stray += 1;
                    let behind = self.destination.len_bytes() + at + offset;
                    found.first = found.first.or(Some(behind));
                }
            }
        });
        found
    }

    /// All of the source: place, value, and whether it is a word.
    fn each_source(&self, mut each: impl FnMut(usize, u64, bool)) {
        let len = self.source.len_bytes();
        for at in (0..len).step_by(WORD) {
            if at + WORD <= len {
                each(at, mix(self.seed, at / WORD), true);
            } else {
                (at..len).for_each(|at| each(at, u64::from(byte(self.seed, at)), false));
            }
        }
    }

    /// All of the destination, in order: place, what it holds once all is copied, whether that is
    /// a word, and whether it is of a copy.
    fn each_destination(&self, mut each: impl FnMut(usize, u64, bool, bool)) {
        let len = self.destination.len_bytes();
        let mut at = 0;
        for copy in self.copies {
            let end = (copy.dst + copy.len_bytes).min(len);
            Self::stretch(at..copy.dst.min(len), !self.seed, 0, |at, value, word| {
                each(at, value, word, false);
            });
            let shift = copy.src.wrapping_sub(copy.dst);
            Self::stretch(
                copy.dst.min(len)..end,
                self.seed,
                shift,
                |at, value, word| {
                    each(at, value, word, true);
                },
            );
            at = end;
        }
        Self::stretch(at..len, !self.seed, 0, |at, value, word| {
            each(at, value, word, false);
        });
    }

    /// A stretch of the destination whose bytes are those of a pattern `shift` bytes further on.
    fn stretch(
        range: Range<usize>,
        seed: u64,
        shift: usize,
        mut each: impl FnMut(usize, u64, bool),
    ) {
        let mut at = range.start;
        while at < range.end {
            let from = at.wrapping_add(shift);
            let aligned = at.is_multiple_of(WORD) && from.is_multiple_of(WORD);
            if aligned && range.end - at >= WORD {
                each(at, mix(seed, from / WORD), true);
                at += WORD;
            } else {
                each(at, u64::from(byte(seed, from)), false);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// Memory of a test, as words so that it is aligned.
    fn arena(memory: &mut Vec<u64>, len_bytes: usize) -> Arena {
        *memory = vec![0; len_bytes.div_ceil(8)];
        let start = NonNull::new(memory.as_mut_ptr()).unwrap().cast();
        // SAFETY: the vector is that long, aligned, and used through the arena only.
        unsafe { Arena::new(start, len_bytes) }
    }

    fn run(kind: Kind, channels: usize, test: impl FnOnce(&Work<'_>)) {
        let mut room = [Copy::default(); 512];
        let copies = lay_out(kind, channels, &mut room);
        let len = kind.arena_len_bytes(channels);
        let (mut from, mut to) = (Vec::new(), Vec::new());
        let work = Work {
            source: arena(&mut from, len),
            destination: arena(&mut to, len),
            copies,
            seed: 7,
        };
        work.prepare();
        test(&work);
    }

    fn copy(work: &Work<'_>, copy: &Copy) {
        for offset in 0..copy.len_bytes {
            work.destination
                .set(copy.dst + offset, work.source.get(copy.src + offset));
        }
    }

    #[test]
    fn bytes_are_where_they_were_written() {
        let mut memory = Vec::new();
        let arena = arena(&mut memory, 64);
        for at in 0..24 {
            for len in 0..24 {
                arena.write(0, &[0xee; 64]);
                let bytes: Vec<u8> = (1..=len as u8).collect();
                arena.write(at, &bytes);
                let mut all = [0; 64];
                arena.read(0, &mut all);
                assert_eq!(all[at..at + len], bytes[..]);
                assert!(all[..at].iter().all(|byte| *byte == 0xee));
                assert!(all[at + len..].iter().all(|byte| *byte == 0xee));
                let mut part = vec![0; len];
                arena.read(at, &mut part);
                assert_eq!(part, bytes);
            }
        }
        let mut behind = [1; 16];
        arena.read(56, &mut behind);
        assert_eq!(behind[8..], [0; 8]);
        arena.write(60, &[2; 16]);
    }

    #[test]
    fn copies_lie_apart_and_in_their_arenas() {
        for kind in Kind::ALL {
            for channels in [1, 2, 3, 7, 16] {
                let mut room = [Copy::default(); 512];
                let copies = lay_out(kind, channels, &mut room);
                assert_eq!(copies.len(), channels * kind.copies());
                let mut sources: Vec<_> = copies.iter().map(|c| (c.src, c.len_bytes)).collect();
                sources.sort_unstable();
                let targets: Vec<_> = copies.iter().map(|c| (c.dst, c.len_bytes)).collect();
                for side in [sources, targets] {
                    for pair in side.windows(2) {
                        assert!(pair[0].0 + pair[0].1 < pair[1].0, "{kind:?} {pair:?}");
                    }
                    let (start, len) = side[side.len() - 1];
                    assert!(start + len <= kind.arena_len_bytes(channels));
                }
                let moved = copies.iter().any(|c| c.src != c.dst);
                assert!(moved || copies.len() == 1);
            }
        }
    }

    #[test]
    fn a_whole_copy_is_right_and_nothing_else_is() {
        for kind in Kind::ALL {
            run(kind, 3, |work| {
                let total: usize = work.copies.iter().map(|c| c.len_bytes).sum();
                let before = work.check(&mut []);
                assert_eq!((before.wrong, before.stray), (total as u64, 0), "{kind:?}");
                assert_eq!(before.first, Some(work.copies[0].dst));
                for one in work.copies {
                    copy(work, one);
                }
                let after = work.check(&mut []);
                let all = work.destination.len_bytes() as u64;
                assert_eq!(
                    after,
                    Found {
                        right: all,
                        ..Found::default()
                    },
                    "{kind:?}"
                );
            });
        }
    }

    #[test]
    fn one_byte_is_found_wherever_it_is() {
        run(Kind::Odd, 1, |work| {
            for one in work.copies {
                copy(work, one);
            }
            let flip = |arena: Arena, at: usize| arena.set(at, !arena.get(at));
            let last = work.copies[5];
            let places = [
                (work.destination, last.dst, 1, 0),
                (work.destination, last.dst + last.len_bytes - 1, 1, 0),
                (work.destination, last.dst + last.len_bytes, 0, 1),
                (work.destination, last.dst - 1, 0, 1),
                (work.destination, work.destination.len_bytes() - 1, 0, 1),
                (work.source, 12, 0, 1),
            ];
            for (arena, at, wrong, stray) in places {
                flip(arena, at);
                let found = work.check(&mut []);
                assert_eq!((found.wrong, found.stray), (wrong, stray), "{at}");
                flip(arena, at);
            }
            assert_eq!(work.check(&mut []).first, None);
        });
    }

    #[test]
    fn a_failed_copy_is_excused_and_its_neighbours_are_not() {
        run(Kind::Odd, 1, |work| {
            for one in work.copies {
                copy(work, one);
            }
            let failed = work.copies[3];
            let mut range = failed.dst..failed.dst + failed.len_bytes;
            for at in range.clone() {
                work.destination.set(at, !work.destination.get(at));
            }
            let end = range.end;
            let excused = core::slice::from_mut(&mut range);
            let found = work.check(excused);
            assert_eq!((found.wrong, found.stray), (0, 0));
            assert_eq!(found.excused, failed.len_bytes as u64);
            work.destination.set(end, !work.destination.get(end));
            assert_eq!(work.check(excused).stray, 1);
            assert!(work.check(&mut []).wrong > 3000);
        });
    }
}
