//! What a mapper is asked about at once, and its answers until they are used.

use ptdma::Segment;

use crate::cursor::{Cursor, Place};
use crate::folio::Folio;
use crate::gather::{Refused, find_refused, next_refused};
use crate::map::Piece;
use crate::scattered::crosses_boundary;
use crate::source::FolioSource;

/// The pieces from a place in the stream on, for as many descriptors as they may become.
///
/// A mapping for a channel that the channel is never given may keep another channel from the
/// piece. So nobody asks about more than the channel will be offered, if it takes it.
pub(crate) struct Ahead<'a, S: ?Sized> {
    at: Cursor<'a, S>,
    end: u64,
    refused: &'a Refused,
    max_len_bytes: u64,
    /// Descriptors that are wanted yet.
    wanted: u64,
    /// The piece before this one fills a descriptor, so that no piece continues it.
    full: bool,
    asked: usize,
}

impl<'a, S: FolioSource + ?Sized> Ahead<'a, S> {
    /// The pieces from `at` on, to `end` in the stream or to the next part that was refused.
    /// Enough for `wanted` descriptors of at most `max_len_bytes`, which is not zero.
    #[inline(always)]
    pub(crate) const fn new(
        at: Cursor<'a, S>,
        end: u64,
        refused: &'a Refused,
        max_len_bytes: u64,
        wanted: u64,
    ) -> Self {
        Self {
            at,
            end,
            refused,
            max_len_bytes,
            wanted,
            full: false,
            asked: 0,
        }
    }

    /// Pieces that were named so far.
    #[inline(always)]
    pub(crate) const fn asked(&self) -> usize {
        self.asked
    }

    /// Where the next part begins that was refused before, here or further on.
    #[inline(always)]
    fn end(&self) -> u64 {
        if self.refused.is_empty() {
            return self.end;
        }
        let position = self.at.position();
        match find_refused(self.refused, position) {
            Some(_) => position,
            None => self.end.min(next_refused(self.refused, position)),
        }
    }
}

impl<S: FolioSource + ?Sized> Iterator for Ahead<'_, S> {
    type Item = Piece;

    #[inline(always)]
    fn next(&mut self) -> Option<Piece> {
        let piece = self.at.piece(self.end())?;
        // The last one is there to continue the one before it.
        if self.wanted == 0 || (self.wanted == 1 && self.full) {
            return None;
        }
        self.full = piece.len_bytes >= self.max_len_bytes;
        // Descriptors of a long piece would be written over the answers behind it.
        self.wanted = if piece.len_bytes > self.max_len_bytes {
            0
        } else {
            self.wanted.wrapping_sub(1)
        };
        self.asked = self.asked.wrapping_add(1);
        self.at.advance(piece.len_bytes);
        Some(piece)
    }
}

/// Folios from the beginning of one on that are a descriptor each, if none goes on in the next.
#[derive(Clone, Copy)]
pub(crate) struct Whole {
    /// Where the stream ends: the last piece is cut there.
    pub(crate) end: u64,
    /// Pieces are shorter than the longest descriptor, so that the next one may go on in it, and
    /// is asked about with it.
    pub(crate) max_len_bytes: u64,
}

impl Whole {
    /// At most `most` of them, as pieces, from `begin` on, which is where a folio begins.
    #[inline(always)]
    pub(crate) fn pieces<S: FolioSource + ?Sized>(
        self,
        source: &S,
        begin: Place,
        most: usize,
    ) -> impl Iterator<Item = Piece> + use<'_, S> {
        let Self { end, max_len_bytes } = self;
        let mut rest = end.saturating_sub(begin.position);
        let mut index = begin.folio;
        source.range(begin.folio, most).map_while(move |folio| {
            let len_bytes = folio.len_bytes.min(rest);
            let piece = Piece {
                folio: index,
                offset_bytes: 0,
                src: folio.src,
                dst: folio.dst,
                len_bytes,
            };
            rest = rest.wrapping_sub(len_bytes);
            index = index.wrapping_add(1);
            // A length of zero is over every limit here: the end, or a folio that nobody allows.
            (len_bytes.wrapping_sub(1) < max_len_bytes.wrapping_sub(1)).then_some(piece)
        })
    }
}

/// Answers of a mapper, and the descriptors that are made of them, in one buffer: descriptors from
/// its beginning on, behind them the answers that were not used yet.
pub(crate) struct Answers<'c> {
    items: &'c mut [Segment],
    /// Descriptors.
    written: usize,
    /// The answers, in order: the first not used, and the end.
    next: usize,
    end: usize,
}

impl<'c> Answers<'c> {
    /// No descriptor, no answer.
    #[inline(always)]
    pub(crate) const fn new(items: &'c mut [Segment]) -> Self {
        Self {
            items,
            written: 0,
            next: 0,
            end: 0,
        }
    }

    /// Descriptors so far.
    #[inline(always)]
    pub(crate) const fn written(&self) -> usize {
        self.written
    }

    /// Adds a descriptor.
    #[inline(always)]
    pub(crate) fn write(&mut self, descriptor: Segment) {
        if self.written == self.next {
            // One answer has become two descriptors. The mapper says the rest again.
            self.forget();
        }
        if let Some(place) = self.items.get_mut(self.written) {
            *place = descriptor;
            self.written = self.written.wrapping_add(1);
        }
    }

    /// The next answer.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<Segment> {
        let answer = self.items.get(self.next..self.end)?.first().copied()?;
        self.next = self.next.wrapping_add(1);
        Some(answer)
    }

    /// Makes descriptors of the first answers, in place: of those that are for the whole of their
    /// folio in `folios`, and do not go on in the next answer. Nothing was written or used before.
    /// Returns how many, and their bytes.
    #[inline(always)]
    pub(crate) fn as_they_are(&mut self, folios: impl Iterator<Item = Folio>) -> (usize, u64) {
        let answers = self.items.get(self.next..self.end).unwrap_or_default();
        let behind = answers.get(1..).unwrap_or_default();
        let (mut count, mut len_bytes) = (0_usize, 0_u64);
        for ((answer, next), folio) in answers.iter().zip(behind).zip(folios) {
            let goes_on = answer.src.get().wrapping_add(answer.len_bytes) == next.src.get();
            if goes_on
                || answer.len_bytes != folio.len_bytes
                || crosses_boundary(answer.src, answer.dst, answer.len_bytes)
            {
                // The thorough walk finds out whether the other side goes on too.
                break;
            }
            count = count.wrapping_add(1);
            len_bytes = len_bytes.wrapping_add(answer.len_bytes);
        }
        self.written = self.written.wrapping_add(count);
        self.next = self.next.wrapping_add(count);
        (count, len_bytes)
    }

    /// Forgets what was not used.
    #[inline(always)]
    pub(crate) const fn forget(&mut self) {
        self.end = self.next;
    }

    /// Room for answers, if there are none; `begun` if a descriptor is being made that was not
    /// added yet, whose place is not taken. At least one.
    #[inline(always)]
    pub(crate) fn slots(&mut self, begun: bool) -> &mut [Segment] {
        let first = self.written.wrapping_add(usize::from(begun));
        self.next = first.min(self.items.len().saturating_sub(1));
        self.end = self.next;
        self.items.get_mut(self.next..).unwrap_or_default()
    }

    /// So many answers are in the room that [`slots`](Self::slots) gave.
    #[inline(always)]
    pub(crate) fn came(&mut self, count: usize) {
        let room = self.items.len().saturating_sub(self.next);
        self.end = self.next.wrapping_add(count.min(room));
    }
}
