//! From a stretch of the stream to descriptors: map, then merge what turned out contiguous.

use heapless::Vec;
use ptdma::DmaAddr;

use crate::channel::Segment;
use crate::cursor::{Cursor, Place};
use crate::map::{MapError, Mapper};
use crate::plan::Stretch;
use crate::source::FolioSource;

/// Most descriptors that are prepared while a channel's lock is held: about a microsecond, so
/// that neither interrupts nor other CPUs wait for the whole of a long batch.
pub const CHUNK: usize = 32;

/// Parts of one batch that no engine can be given, at most. Beyond that the rest of the stretch
/// that met the last one is left out too.
pub(crate) const REFUSED_MAX: usize = 16;

/// The parts of a batch that no engine can be given (not mapped, rejected).
pub(crate) type Refused = Vec<Stretch, REFUSED_MAX>;

/// Descriptors that were gathered at once.
#[derive(Debug)]
pub(crate) struct Chunk {
    items: [Segment; CHUNK],
    len: usize,
}

impl Chunk {
    pub(crate) const fn new() -> Self {
        Self {
            items: [Segment {
                src: DmaAddr::new(0),
                dst: DmaAddr::new(0),
                len_bytes: 0,
            }; CHUNK],
            len: 0,
        }
    }

    pub(crate) fn as_slice(&self) -> &[Segment] {
        self.items.get(..self.len).unwrap_or_default()
    }
}

impl Default for Chunk {
    fn default() -> Self {
        Self::new()
    }
}

/// A sum over the places in the stream where descriptors begin. Two walks that come to the same
/// sum, the same number and the same end have found the same descriptors; it does not matter in
/// which chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digest(u64);

impl Digest {
    #[inline(always)]
    const fn add_start(&mut self, position: u64) {
        // Squared, so that two places that moved in opposite directions do not cancel out.
        self.0 = self.0.wrapping_add(position.wrapping_mul(position));
    }

    #[inline]
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
}

/// Why gathering ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The stretch is exhausted.
    AtEnd,
    /// As many descriptors as were asked for.
    Enough,
    /// The mapper refused this part of the stream, which was not known before. The cursor stands
    /// before it.
    Refused(Stretch),
}

/// The channel that descriptors are gathered for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) channel: usize,
    pub(crate) max_len_bytes: u64,
}

/// A walk that gathers descriptors, one with each [`next`](Iterator::next).
///
/// Every descriptor is as long as contiguity and the channel's limit allow, wherever the walk
/// began, so that a second walk over the same bytes finds the same descriptors.
pub(crate) struct Gather<'a, S: ?Sized, M> {
    at: Cursor<'a, S>,
    begin: Place,
    end: u64,
    target: Target,
    mapper: &'a mut M,
    refused: &'a Refused,
    has_refused: bool,
    /// What the mapper said about the current piece, if it was asked and the answer not used.
    ahead: Option<Segment>,
    skipped_bytes: u64,
    refuses: Option<Stretch>,
    digest: Digest,
}

impl<'a, S, M> Gather<'a, S, M>
where
    S: FolioSource + ?Sized,
    M: Mapper,
{
    /// A walk from `begin` to `end` in the stream.
    #[inline(always)]
    pub(crate) fn new(
        source: &'a S,
        begin: Place,
        end: u64,
        target: Target,
        mapper: &'a mut M,
        refused: &'a Refused,
    ) -> Self {
        Self {
            at: Cursor::at(source, begin),
            begin,
            end,
            target: Target {
                max_len_bytes: target.max_len_bytes.max(1),
                ..target
            },
            mapper,
            refused,
            has_refused: !refused.is_empty(),
            ahead: None,
            skipped_bytes: 0,
            refuses: None,
            digest: Digest::default(),
        }
    }

    /// Where the walk stands: behind the last descriptor.
    #[inline(always)]
    pub(crate) const fn place(&self) -> Place {
        self.at.place()
    }

    /// Why there was no further descriptor.
    #[inline(always)]
    pub(crate) const fn ended(&self) -> Ended {
        match self.refuses {
            Some(stretch) => Ended::Refused(stretch),
            None if self.at.position() >= self.end => Ended::AtEnd,
            None => Ended::Enough,
        }
    }

    /// Of so many parts of folios do the descriptors consist.
    #[inline(always)]
    pub(crate) const fn pieces(&self) -> u64 {
        let whole = self.place().folio.wrapping_sub(self.begin.folio) as u64;
        whole.wrapping_add((self.place().offset_bytes != 0) as u64)
    }

    /// What the descriptors copy.
    #[inline(always)]
    pub(crate) const fn bytes(&self) -> u64 {
        self.at
            .position()
            .wrapping_sub(self.begin.position)
            .wrapping_sub(self.skipped_bytes)
    }

    #[inline(always)]
    pub(crate) const fn digest(&self) -> Digest {
        self.digest
    }

    /// Gathers up to `most` descriptors into `chunk`.
    #[inline]
    pub(crate) fn fill(&mut self, chunk: &mut Chunk, most: usize) {
        chunk.len = 0;
        let most = most.min(CHUNK);
        while chunk.len < most {
            if M::TRIVIAL && !self.has_refused {
                self.fill_scattered(chunk, most);
            }
            let Some(place) = chunk
                .items
                .get_mut(..most)
                .and_then(|i| i.get_mut(chunk.len))
            else {
                break;
            };
            let Some(segment) = self.next() else { break };
            *place = segment;
            chunk.len = chunk.len.wrapping_add(1);
        }
    }

    /// What [`next`](Iterator::next) does, in a tight loop, for as long as folios are whole
    /// descriptors: not contiguous with the next one, within the limit and the stretch.
    #[inline(always)]
    fn fill_scattered(&mut self, chunk: &mut Chunk, most: usize) {
        let max = self.target.max_len_bytes;
        // All of it lives in registers.
        let mut at = self.at.clone();
        let mut digest = self.digest;
        let mut room = self.end.saturating_sub(at.position());
        let mut filled: usize = 0;
        let places = chunk.items.get_mut(chunk.len..most).unwrap_or_default();
        for place in places {
            let this = at.left();
            let len_bytes = this.len_bytes;
            let next = at.next_folio();
            let contiguous = next.src.get() == this.src.get().wrapping_add(len_bytes);
            if contiguous || len_bytes > max || len_bytes > room || len_bytes == 0 {
                break;
            }
            *place = Segment {
                src: this.src,
                dst: this.dst,
                len_bytes,
            };
            digest.add_start(at.position());
            room = room.wrapping_sub(len_bytes);
            at.enter(next, len_bytes);
            filled = filled.wrapping_add(1);
        }
        chunk.len = chunk.len.wrapping_add(filled);
        self.at = at;
        self.digest = digest;
    }

    /// What the channel can be given from here on; `None` at the end, or if the mapper refuses.
    /// Does not go on.
    #[inline(always)]
    fn peek(&mut self) -> Option<Segment> {
        let piece = self.at.piece(self.end)?;
        if !M::TRIVIAL && self.ahead.is_some() {
            return self.ahead;
        }
        let mapped = match self.mapper.map(self.target.channel, &piece) {
            // A mapper that answers for no bytes would have us ask for ever.
            Ok(Segment { len_bytes: 0, .. }) | Err(MapError) => return None,
            Ok(mapped) => Segment {
                len_bytes: mapped.len_bytes.min(piece.len_bytes),
                ..mapped
            },
        };
        if !M::TRIVIAL {
            self.ahead = Some(mapped);
        }
        Some(mapped)
    }

    /// Takes note of the part that could not be mapped, if that is why there was nothing.
    #[cold]
    fn note_refusal(&mut self) {
        if let Some(piece) = self.at.piece(self.end) {
            let start = self.at.position();
            self.refuses = Some(Stretch {
                start,
                end: start.saturating_add(piece.len_bytes),
            });
        }
    }

    /// Goes on by `taken` bytes of what [`peek`](Self::peek) said.
    #[inline(always)]
    fn take(&mut self, taken: u64) {
        self.at.advance(taken);
        if !M::TRIVIAL {
            self.ahead = None;
        }
    }

    /// Whether the walk stands at a part that was refused before.
    #[inline(always)]
    fn at_refused(&self) -> bool {
        self.has_refused && find_refused(self.refused, self.at.position()).is_some()
    }

    /// Goes over parts that were refused before. Only before a descriptor begins, so that after
    /// one the walk stands at its end.
    #[inline(always)]
    fn skip(&mut self) {
        if self.has_refused {
            self.skip_refused();
        }
    }

    #[cold]
    fn skip_refused(&mut self) {
        while let Some(piece) = self.at.piece(self.end)
            && let Some(part) = find_refused(self.refused, self.at.position())
        {
            let to = part.end.saturating_sub(self.at.position());
            let len_bytes = piece.len_bytes.min(to);
            self.skipped_bytes = self.skipped_bytes.wrapping_add(len_bytes);
            self.take(len_bytes);
        }
    }
}

impl<S, M> Iterator for Gather<'_, S, M>
where
    S: FolioSource + ?Sized,
    M: Mapper,
{
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        self.skip();
        let Some(mut segment) = self.peek() else {
            self.note_refusal();
            return None;
        };
        self.digest.add_start(self.at.position());
        let max = self.target.max_len_bytes;
        segment.len_bytes = segment.len_bytes.min(max);
        self.take(segment.len_bytes);
        loop {
            let next_src = segment.src.get().wrapping_add(segment.len_bytes);
            let next_dst = segment.dst.get().wrapping_add(segment.len_bytes);
            // Neighbours across a refused part may look contiguous and are not.
            if segment.len_bytes >= max || self.at_refused() {
                break;
            }
            // If it is refused, that is for the next call to say.
            let Some(next) = self.peek() else { break };
            if next.src.get() != next_src || next.dst.get() != next_dst {
                break;
            }
            let taken = next.len_bytes.min(max.wrapping_sub(segment.len_bytes));
            segment.len_bytes = segment.len_bytes.wrapping_add(taken);
            self.take(taken);
        }
        Some(segment)
    }
}

fn find_refused(refused: &Refused, position: u64) -> Option<Stretch> {
    let mut parts = refused.iter();
    let found = parts.find(|part| part.start <= position && position < part.end);
    found.copied()
}
