//! From a stretch of the stream to descriptors: map, then merge what turned out contiguous.

use heapless::Vec;

use crate::channel::Segment;
use crate::cursor::Cursor;
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

/// A descriptor to be, and where in the stream it ends (it begins where the one before ended, or
/// behind a refused part).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) segment: Segment,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Descriptors that were gathered at once.
pub(crate) type Chunk = Vec<Gathered, CHUNK>;

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

/// Gathers up to `most` descriptors from `cursor` on, up to `end`, into the empty `chunk`.
/// Also returns of how many parts of folios they consist.
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
) -> (Ended, u64)
where
    S: FolioSource + ?Sized,
    M: Mapper,
{
    let most = most.min(CHUNK);
    let mut open = Gathered::default();
    let mut closed: usize = 0;
    let mut pieces: u64 = 0;
    let ended = loop {
        let Some(piece) = cursor.piece(end) else {
            break Ended::AtEnd;
        };
        let position = cursor.position();
        if !refused.is_empty()
            && let Some(skip) = refused
                .iter()
                .find(|part| part.start <= position && position < part.end)
        {
            cursor.advance(piece.len_bytes.min(skip.end.saturating_sub(position)));
            continue;
        }
        let mapped = match mapper.map(target.channel, &piece) {
            // A mapper that answers for no bytes would have us ask for ever.
            Ok(Segment { len_bytes: 0, .. }) | Err(MapError) => {
                break Ended::Refused(Stretch {
                    start: position,
                    end: position.saturating_add(piece.len_bytes),
                });
            }
            Ok(mapped) => mapped,
        };
        let segment = &mut open.segment;
        let room = target.max_len_bytes.wrapping_sub(segment.len_bytes);
        let len_bytes = mapped.len_bytes.min(piece.len_bytes);
        // `end` tells a merge across a refused part, whose neighbours may look contiguous.
        let merges = position == open.end
            && mapped.src.get() == segment.src.get().wrapping_add(segment.len_bytes)
            && mapped.dst.get() == segment.dst.get().wrapping_add(segment.len_bytes)
            && segment.len_bytes != 0
            && room != 0;
        let taken = if merges {
            let taken = len_bytes.min(room);
            segment.len_bytes = segment.len_bytes.wrapping_add(taken);
            open.end = open.end.wrapping_add(taken);
            taken
        } else {
            if segment.len_bytes != 0 {
                // `closed < most <= CHUNK`, so there is room.
                let _ = chunk.push(open);
                closed = closed.wrapping_add(1);
                open.segment.len_bytes = 0;
            }
            if closed >= most {
                break Ended::Enough;
            }
            let taken = len_bytes.min(target.max_len_bytes.max(1));
            open = Gathered {
                segment: Segment {
                    src: mapped.src,
                    dst: mapped.dst,
                    len_bytes: taken,
                },
                start: position,
                end: position.wrapping_add(taken),
            };
            taken
        };
        pieces = pieces.wrapping_add(1);
        cursor.advance(taken);
    };
    if open.segment.len_bytes != 0 {
        let _ = chunk.push(open);
    }
    (ended, pieces)
}
