//! From a stretch of the stream to descriptors: map, then merge what turned out contiguous.

use heapless::Vec;
use ptdma::{BOUNDARY_LEN_BYTES, DmaAddr};

use crate::ahead::{Ahead, Answers, Whole};
use crate::cursor::{Cursor, Place};
use crate::map::{MAP_CHUNK, MapError, Mapper, Piece};
use crate::plan::Stretch;
use crate::scattered::{crosses_boundary, scattered};
use crate::source::FolioSource;
use crate::sum::Sum;
use ptdma::Segment;

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
    /// While descriptors are gathered, what the mapper has answered lies behind them.
    items: [Segment; MAP_CHUNK],
    len: usize,
}

impl Chunk {
    pub(crate) const fn new() -> Self {
        Self {
            items: [Segment {
                src: DmaAddr::new(0),
                dst: DmaAddr::new(0),
                len_bytes: 0,
            }; MAP_CHUNK],
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

/// A sum over the places in the batch where descriptors begin. Two walks that come to the same
/// sum, the same number and the same end have found the same descriptors; it does not matter in
/// which chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digest(u64);

impl Digest {
    /// A place weighs the difference of two cubes for its folio, and a square inside. Places that
    /// moved in opposite directions do not cancel out, and many folios need no loop.
    #[inline]
    pub(crate) const fn of_start(place: Place) -> Self {
        let offset = place.offset_bytes;
        let inside = offset.wrapping_mul(offset);
        // What `of_folios` comes to for one.
        let n = place.folio as u64;
        let weight = n.wrapping_mul(n.wrapping_add(1)).wrapping_mul(3);
        Self(weight.wrapping_add(1).wrapping_add(inside))
    }

    /// Of `count` whole folios.
    #[inline]
    pub(crate) const fn of_folios(first: usize, count: usize) -> Self {
        const fn cube(number: u64) -> u64 {
            number.wrapping_mul(number).wrapping_mul(number)
        }
        let first = first as u64;
        let end = first.wrapping_add(count as u64);
        Self(cube(end).wrapping_sub(cube(first)))
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

/// What a walk came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walked {
    /// Behind the last descriptor.
    pub(crate) place: Place,
    /// Why there was no further descriptor.
    pub(crate) ended: Ended,
    /// Of so many parts of folios do the descriptors consist.
    pub(crate) pieces: u64,
    /// What was left out on the way: refused before.
    pub(crate) left_out: Sum,
    pub(crate) digest: Digest,
}

/// The channel that descriptors are gathered for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) channel: usize,
    pub(crate) max_len_bytes: u64,
}

/// A walk that gathers descriptors, one with each [`next`](Iterator::next), which asks the mapper
/// about one piece at a time, or a [chunk](Self::fill) at once.
///
/// Every descriptor is as long as contiguity and the channel's limit allow, wherever the walk
/// began. A second walk over the same bytes thus finds the same descriptors.
pub(crate) struct Gather<'a, S: ?Sized, M> {
    at: Cursor<'a, S>,
    begin: Place,
    end: u64,
    /// Folios before this one end before that; see [`Lane::whole_until`](crate::lane::Lane).
    whole_until: usize,
    target: Target,
    mapper: &'a mut M,
    refused: &'a Refused,
    has_refused: bool,
    /// What the mapper said about the current piece, as far as it was not used.
    ahead: Option<Segment>,
    skipped: Sum,
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
        (end, whole_until): (u64, usize),
        target: Target,
        mapper: &'a mut M,
        refused: &'a Refused,
    ) -> Self {
        Self {
            at: Cursor::at(source, begin),
            begin,
            end,
            whole_until,
            target: Target {
                max_len_bytes: target.max_len_bytes.max(1),
                ..target
            },
            mapper,
            refused,
            has_refused: !refused.is_empty(),
            ahead: None,
            skipped: Sum::NOTHING,
            refuses: None,
            digest: Digest::default(),
        }
    }

    /// What the walk came to so far.
    #[inline(always)]
    pub(crate) const fn walked(&self) -> Walked {
        let place = self.at.place();
        let whole = place.folio.wrapping_sub(self.begin.folio) as u64;
        Walked {
            place,
            ended: match self.refuses {
                Some(stretch) => Ended::Refused(stretch),
                None if place.position >= self.end => Ended::AtEnd,
                None => Ended::Enough,
            },
            pieces: whole.wrapping_add((place.offset_bytes != 0) as u64),
            left_out: self.skipped,
            digest: self.digest,
        }
    }

    /// Gathers up to `most` descriptors into `chunk`.
    #[inline]
    pub(crate) fn fill(&mut self, chunk: &mut Chunk, most: usize) {
        chunk.len = 0;
        let most = most.min(CHUNK);
        if !M::TRIVIAL {
            // The mapper answers for one piece more: where it lies says where the last one ends.
            let mut answers = Answers::new(chunk.items.get_mut(..=most).unwrap_or_default());
            if !self.has_refused {
                self.fill_mapped(&mut answers);
            }
            while answers.written() < most
                && let Some(segment) = self.descriptor(&mut answers)
            {
                answers.write(segment);
            }
            chunk.len = answers.written();
            return;
        }
        while chunk.len < most {
            if !self.has_refused {
                self.fill_scattered(chunk, most);
            }
            let Some(place) = chunk
                .items
                .get_mut(..most)
                .and_then(|i| i.get_mut(chunk.len))
            else {
                break;
            };
            let mut none = [];
            let Some(segment) = self.descriptor(&mut Answers::new(&mut none)) else {
                break;
            };
            *place = segment;
            chunk.len = chunk.len.wrapping_add(1);
        }
    }

    /// What [`next`](Iterator::next) does, for folios that are descriptors as they are.
    #[inline(always)]
    fn fill_scattered(&mut self, chunk: &mut Chunk, most: usize) {
        let begin = self.at.place();
        if begin.offset_bytes != 0 {
            return;
        }
        let source = self.at.source();
        let places = chunk.items.get_mut(chunk.len..most).unwrap_or_default();
        let most = places
            .len()
            .min(self.whole_until.saturating_sub(begin.folio));
        let (mut position, mut count) = (begin.position, 0_usize);
        let copies = scattered(source, begin.folio, most, self.target.max_len_bytes);
        let copies =
            copies.take_while(|copy| !crosses_boundary(copy.src, copy.dst, copy.len_bytes));
        for (place, segment) in places.iter_mut().zip(copies) {
            *place = segment;
            position = position.wrapping_add(segment.len_bytes);
            count = count.wrapping_add(1);
        }
        chunk.len = chunk.len.wrapping_add(count);
        self.digest = self.digest.plus(Digest::of_folios(begin.folio, count));
        let place = Place {
            folio: begin.folio.wrapping_add(count),
            offset_bytes: 0,
            position,
        };
        self.at = Cursor::at(source, place);
    }

    /// What [`next`](Iterator::next) does, for folios whose answers are descriptors as they are.
    ///
    /// The last answer stays: where the folio behind it lies is not known here.
    #[inline(always)]
    fn fill_mapped(&mut self, answers: &mut Answers<'_>) {
        let begin = self.at.place();
        if begin.offset_bytes != 0 || self.ahead.is_some() {
            return;
        }
        let source = self.at.source();
        let slots = answers.slots(false);
        let whole = Whole {
            end: self.end,
            max_len_bytes: self.target.max_len_bytes,
        };
        if whole.pieces(source, begin, 1).next().is_none() {
            return;
        }
        let mut asked: usize = 0;
        let pieces = whole
            .pieces(source, begin, slots.len())
            .inspect(|_| asked = asked.wrapping_add(1));
        let answered = self.mapper.map_chunk(self.target.channel, pieces, slots);
        // Nobody believes in answers to what was not asked.
        answers.came(answered.min(asked));
        let (count, len_bytes) = answers.as_they_are(source.range(begin.folio, asked));
        self.digest = self.digest.plus(Digest::of_folios(begin.folio, count));
        let place = Place {
            folio: begin.folio.wrapping_add(count),
            offset_bytes: 0,
            position: begin.position.wrapping_add(len_bytes),
        };
        self.at = Cursor::at(source, place);
    }

    /// What is left of the folio that the walk is in, up to the next part that was refused before.
    #[inline(always)]
    fn piece(&self) -> Option<Piece> {
        if self.has_refused {
            self.at
                .piece(self.end.min(next_refused(self.refused, self.at.position())))
        } else {
            self.at.piece(self.end)
        }
    }

    /// What the channel can be given from here on; `None` at the end, or if the mapper refuses.
    /// Does not go on. `begun`: whether this may continue a descriptor.
    #[inline(always)]
    fn peek(&mut self, answers: &mut Answers<'_>, begun: bool) -> Option<Segment> {
        let piece = self.piece()?;
        if !M::TRIVIAL && self.ahead.is_some() {
            return self.ahead;
        }
        let mapped = if M::TRIVIAL {
            self.mapper.map(self.target.channel, &piece)
        } else {
            self.answer(answers, begun).ok_or(MapError)
        };
        let mapped = match mapped {
            // A mapper that answers for no bytes would have us ask for ever.
            Ok(Segment { len_bytes: 0, .. }) | Err(MapError) => {
                answers.forget();
                return None;
            }
            Ok(mapped) => Segment {
                len_bytes: mapped.len_bytes.min(piece.len_bytes),
                ..mapped
            },
        };
        if !M::TRIVIAL {
            if mapped.len_bytes < piece.len_bytes {
                // The rest of the piece comes before what they are about.
                answers.forget();
            }
            self.ahead = Some(mapped);
        }
        Some(mapped)
    }

    /// What the mapper says about the piece here, and maybe about those behind it.
    #[inline(always)]
    fn answer(&mut self, answers: &mut Answers<'_>, begun: bool) -> Option<Segment> {
        let known = answers.next();
        if known.is_some() {
            return known;
        }
        let slots = answers.slots(begun);
        let mut ahead = Ahead::new(
            self.at.clone(),
            self.end,
            self.refused,
            self.target.max_len_bytes,
            slots.len() as u64,
        );
        let answered = self
            .mapper
            .map_chunk(self.target.channel, ahead.by_ref(), slots);
        // Nobody believes in answers to what was not asked.
        answers.came(answered.min(ahead.asked()));
        answers.next()
    }

    /// Takes note of the part that could not be mapped, if that is why there was nothing.
    #[cold]
    fn note_refusal(&mut self) {
        if let Some(piece) = self.piece() {
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
            self.ahead = self.ahead.and_then(|known| behind(known, taken));
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
            let start = self.at.position();
            let skipped = Sum::of(start, start.wrapping_add(len_bytes));
            self.skipped = self.skipped.plus(skipped);
            self.take(len_bytes);
        }
    }

    /// The next descriptor. Takes from `answers` what the mapper says, and has it filled again.
    #[inline(always)]
    fn descriptor(&mut self, answers: &mut Answers<'_>) -> Option<Segment> {
        self.skip();
        let Some(mut segment) = self.peek(answers, false) else {
            self.note_refusal();
            return None;
        };
        self.digest = self.digest.plus(Digest::of_start(self.at.place()));
        // No descriptor crosses a multiple of 4 GiB on either side.
        let max = self
            .target
            .max_len_bytes
            .min(to_boundary(segment.src))
            .min(to_boundary(segment.dst));
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
            let Some(next) = self.peek(answers, true) else {
                break;
            };
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

impl<S, M> Iterator for Gather<'_, S, M>
where
    S: FolioSource + ?Sized,
    M: Mapper,
{
    type Item = Segment;

    // A function of its own: second walks are rare, and there are several places that walk.
    #[inline(never)]
    fn next(&mut self) -> Option<Segment> {
        self.descriptor(&mut Answers::new(&mut [Segment::default()]))
    }
}

/// A segment without its first `taken` bytes; `None` if nothing is left.
#[inline(always)]
fn behind(segment: Segment, taken: u64) -> Option<Segment> {
    let len_bytes = segment.len_bytes.checked_sub(taken)?;
    (len_bytes != 0).then_some(Segment {
        src: DmaAddr::new(segment.src.get().wrapping_add(taken)),
        dst: DmaAddr::new(segment.dst.get().wrapping_add(taken)),
        len_bytes,
    })
}

/// Bytes from an address to the next multiple of [`BOUNDARY_LEN_BYTES`].
#[inline(always)]
const fn to_boundary(addr: DmaAddr) -> u64 {
    BOUNDARY_LEN_BYTES.wrapping_sub(addr.get() % BOUNDARY_LEN_BYTES)
}

/// Where the next part behind `position` begins that was refused; the end of all streams if there
/// is none.
#[cold]
pub(crate) fn next_refused(refused: &Refused, position: u64) -> u64 {
    let starts = refused.iter().map(|part| part.start);
    let next = starts.filter(|start| *start > position).min();
    next.unwrap_or(u64::MAX)
}

pub(crate) fn find_refused(refused: &Refused, position: u64) -> Option<Stretch> {
    let mut parts = refused.iter();
    let found = parts.find(|part| part.start <= position && position < part.end);
    found.copied()
}
