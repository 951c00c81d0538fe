//! From a stretch of the stream to descriptors: map, then merge what turned out contiguous.

use heapless::Vec;

use crate::channel::Segment;
use crate::cursor::Cursor;
use crate::map::{MapError, Mapper, Piece};
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

/// A descriptor to be, and where in the stream it ends.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) segment: Segment,
    pub(crate) end: u64,
}

impl Gathered {
    /// The bytes of the stream that it copies: no descriptor reaches across a refused part.
    pub(crate) const fn stretch(&self) -> Stretch {
        Stretch {
            start: self.end.saturating_sub(self.segment.len_bytes),
            end: self.end,
        }
    }
}

/// Descriptors that were gathered at once.
pub(crate) type Chunk = Vec<Gathered, CHUNK>;

/// A sum over the ends of descriptors. Two walks that come to the same sum, the same number and
/// the same last end have found the same descriptors; it does not matter in which chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digest(u64);

impl Digest {
    #[inline(always)]
    pub(crate) const fn add_end(&mut self, end: u64) {
        // Squared, so that two ends that moved in opposite directions do not cancel out.
        self.0 = self.0.wrapping_add(end.wrapping_mul(end));
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

/// What gathering came to, besides the chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Harvest {
    pub(crate) ended: Ended,
    /// Of so many parts of folios do the descriptors consist.
    pub(crate) pieces: u64,
    /// What they copy.
    pub(crate) bytes: u64,
    pub(crate) digest: Digest,
}

/// The channel that descriptors are gathered for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) channel: usize,
    pub(crate) max_len_bytes: u64,
}

/// Gathers up to `most` descriptors from `cursor` on, up to `end`, into `chunk`.
///
/// Every descriptor is as long as contiguity and the channel's limit allow, wherever the walk
/// began, so that a second walk over the same bytes finds the same descriptors.
#[inline]
pub(crate) fn gather<S, M>(
    cursor: &mut Cursor<'_, S>,
    end: u64,
    most: usize,
    target: Target,
    mapper: &mut M,
    refused: &Refused,
    chunk: &mut Chunk,
) -> Harvest
where
    S: FolioSource + ?Sized,
    M: Mapper,
{
    chunk.clear();
    let max_len_bytes = target.max_len_bytes.max(1);
    // A copy that lives in registers.
    let mut at = cursor.clone();
    let begin = at.place();
    let mut skipped_bytes: u64 = 0;
    let mut digest = Digest::default();
    let check_refused = !refused.is_empty();
    // Where the newest descriptor could be continued, on both sides, and how far; no room means
    // that there is none, or that it must not be.
    let (mut next_src, mut next_dst, mut room) = (0, 0, 0);
    let mut last_end = 0;
    let ended = loop {
        let Some(piece) = at.piece(end) else {
            break Ended::AtEnd;
        };
        if check_refused && let Some(skip) = find_refused(refused, at.position()) {
            let to = skip.end.saturating_sub(at.position());
            let len_bytes = piece.len_bytes.min(to);
            skipped_bytes = skipped_bytes.wrapping_add(len_bytes);
            at.advance(len_bytes);
            room = 0;
            continue;
        }
        let Some(mapped) = map(mapper, target.channel, &piece) else {
            break Ended::Refused(Stretch {
                start: at.position(),
                end: at.position().saturating_add(piece.len_bytes),
            });
        };
        let (src, dst) = (mapped.src.get(), mapped.dst.get());
        let len_bytes;
        if src == next_src && dst == next_dst && room != 0 {
            len_bytes = mapped.len_bytes.min(room);
            room = room.wrapping_sub(len_bytes);
            if let Some(newest) = chunk.last_mut() {
                newest.segment.len_bytes = newest.segment.len_bytes.wrapping_add(len_bytes);
                newest.end = newest.end.wrapping_add(len_bytes);
            }
        } else {
            if chunk.len() >= most {
                break Ended::Enough;
            }
            len_bytes = mapped.len_bytes.min(max_len_bytes);
            let opened = Gathered {
                segment: Segment {
                    src: mapped.src,
                    dst: mapped.dst,
                    len_bytes,
                },
                end: at.position().wrapping_add(len_bytes),
            };
            if chunk.push(opened).is_err() {
                break Ended::Enough;
            }
            // The one before is complete; before the first this adds nothing.
            digest.add_end(last_end);
            room = max_len_bytes.wrapping_sub(len_bytes);
        }
        next_src = src.wrapping_add(len_bytes);
        next_dst = dst.wrapping_add(len_bytes);
        at.advance(len_bytes);
        last_end = at.position();
    };
    digest.add_end(last_end);
    let stop = at.place();
    let pieces = stop.folio.wrapping_sub(begin.folio) as u64;
    let harvest = Harvest {
        ended,
        pieces: pieces.wrapping_add(u64::from(stop.offset_bytes != 0)),
        bytes: stop
            .position
            .wrapping_sub(begin.position)
            .wrapping_sub(skipped_bytes),
        digest,
    };
    *cursor = at;
    harvest
}

/// What of a piece can be one copy, if it can be mapped at all.
#[inline(always)]
fn map<M: Mapper>(mapper: &mut M, channel: usize, piece: &Piece) -> Option<Segment> {
    match mapper.map(channel, piece) {
        // A mapper that answers for no bytes would have us ask for ever.
        Ok(Segment { len_bytes: 0, .. }) | Err(MapError) => None,
        Ok(mapped) => Some(Segment {
            len_bytes: mapped.len_bytes.min(piece.len_bytes),
            ..mapped
        }),
    }
}

#[cold]
fn find_refused(refused: &Refused, position: u64) -> Option<Stretch> {
    let mut parts = refused.iter();
    let found = parts.find(|part| part.start <= position && position < part.end);
    found.copied()
}
