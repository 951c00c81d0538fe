//! A place in the byte stream that a batch is.
//!
//! A batch is thought of as one stream: the bytes of its folios, end to end. A place in it is a
//! clone of the caller's iterator and what is left of the folio that the place is in, so no array
//! proportional to the batch is needed.

use ptdma::DmaAddr;

use crate::folio::Folio;
use crate::map::Piece;

/// A place in the stream.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<I> {
    /// Folios behind the current one.
    behind: I,
    /// What is left of the current folio; a length of zero is the end of the stream.
    left: Folio,
    /// Index of the current folio.
    index: usize,
    /// Bytes of the current folio that lie before this place.
    offset_bytes: u64,
    /// Bytes of the stream that lie before this place.
    position: u64,
}

impl<I: Iterator<Item = Folio>> Cursor<I> {
    /// The beginning of the stream.
    #[inline]
    pub(crate) fn new(mut folios: I) -> Self {
        let left = folios.next().unwrap_or_default();
        Self {
            behind: folios,
            left,
            index: 0,
            offset_bytes: 0,
            position: 0,
        }
    }

    /// Bytes of the stream before this place.
    #[inline]
    pub(crate) const fn position(&self) -> u64 {
        self.position
    }

    /// What is left of the current folio, but at most up to `end` in the stream. `None` there.
    #[inline]
    pub(crate) fn piece(&self, end: u64) -> Option<Piece> {
        let len_bytes = end.saturating_sub(self.position).min(self.left.len_bytes);
        (len_bytes != 0).then_some(Piece {
            folio: self.index,
            offset_bytes: self.offset_bytes,
            src: self.left.src,
            dst: self.left.dst,
            len_bytes,
        })
    }

    /// Goes on by `len_bytes`, at most to the end of the current folio.
    #[inline]
    pub(crate) fn advance(&mut self, len_bytes: u64) {
        let left_bytes = self.left.len_bytes.wrapping_sub(len_bytes);
        self.position = self.position.wrapping_add(len_bytes);
        if left_bytes == 0 {
            self.left = self.behind.next().unwrap_or_default();
            self.index = self.index.wrapping_add(1);
            self.offset_bytes = 0;
        } else {
            // Addresses were checked not to wrap before the batch began.
            self.left = Folio::new(
                DmaAddr::new(self.left.src.get().wrapping_add(len_bytes)),
                DmaAddr::new(self.left.dst.get().wrapping_add(len_bytes)),
                left_bytes,
            );
            self.offset_bytes = self.offset_bytes.wrapping_add(len_bytes);
        }
    }

    /// Goes on to `position`, or to the end of the stream.
    pub(crate) fn seek_forward(&mut self, position: u64) {
        while let Some(piece) = self.piece(position) {
            self.advance(piece.len_bytes);
        }
    }
}
