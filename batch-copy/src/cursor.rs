//! A place in the byte stream that a batch is.
//!
//! A batch is thought of as one stream: the bytes of its folios, end to end. A [`Place`] in it is
//! three numbers; a [`Cursor`] is a place with the folio it is in at hand.

use ptdma::DmaAddr;

use crate::folio::Folio;
use crate::map::Piece;
use crate::source::FolioSource;

/// A place in the stream, to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index of the folio that the next byte belongs to.
    pub(crate) folio: usize,
    /// Bytes of that folio that lie before this place.
    pub(crate) offset_bytes: u64,
    /// Bytes of the stream that lie before this place.
    pub(crate) position: u64,
}

/// A place in the stream, to be walked from.
#[derive(Debug)]
pub(crate) struct Cursor<'s, S: ?Sized> {
    source: &'s S,
    /// What is left of the current folio; a length of zero is the end of the stream.
    left: Folio,
    place: Place,
}

// Not derived: that would ask for sources that can be cloned.
impl<S: ?Sized> Clone for Cursor<'_, S> {
    #[inline]
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<'s, S: FolioSource + ?Sized> Cursor<'s, S> {
    /// The place where an earlier walk ended; the default is the beginning.
    #[inline]
    pub(crate) fn at(source: &'s S, place: Place) -> Self {
        let whole = source.folio(place.folio).unwrap_or_default();
        Self {
            source,
            left: behind(whole, place.offset_bytes),
            place,
        }
    }

    /// What is walked.
    #[inline(always)]
    pub(crate) const fn source(&self) -> &'s S {
        self.source
    }

    /// Where this is.
    #[inline]
    pub(crate) const fn place(&self) -> Place {
        self.place
    }

    /// Bytes of the stream before this place.
    #[inline]
    pub(crate) const fn position(&self) -> u64 {
        self.place.position
    }

    /// What is left of the current folio, but at most up to `end` in the stream. `None` there.
    #[inline(always)]
    pub(crate) fn piece(&self, end: u64) -> Option<Piece> {
        let len_bytes = end
            .saturating_sub(self.place.position)
            .min(self.left.len_bytes);
        (len_bytes != 0).then_some(Piece {
            folio: self.place.folio,
            offset_bytes: self.place.offset_bytes,
            src: self.left.src,
            dst: self.left.dst,
            len_bytes,
        })
    }

    /// Goes on by `len_bytes`, at most to the end of the current folio.
    #[inline(always)]
    pub(crate) fn advance(&mut self, len_bytes: u64) {
        let place = &mut self.place;
        place.position = place.position.wrapping_add(len_bytes);
        if len_bytes == self.left.len_bytes {
            place.folio = place.folio.wrapping_add(1);
            place.offset_bytes = 0;
            self.left = self.source.folio(place.folio).unwrap_or_default();
        } else {
            place.offset_bytes = place.offset_bytes.wrapping_add(len_bytes);
            self.left = behind(self.left, len_bytes);
        }
    }

    /// Goes on to `position`, or to the end of the stream.
    pub(crate) fn seek_forward(&mut self, position: u64) {
        while let Some(piece) = self.piece(position) {
            self.advance(piece.len_bytes);
        }
    }
}

/// A folio without its first `len_bytes` bytes. Addresses were checked not to wrap before the
/// batch began; a length over the folio's leaves nothing.
#[inline]
const fn behind(folio: Folio, len_bytes: u64) -> Folio {
    Folio::new(
        DmaAddr::new(folio.src.get().wrapping_add(len_bytes)),
        DmaAddr::new(folio.dst.get().wrapping_add(len_bytes)),
        folio.len_bytes.saturating_sub(len_bytes),
    )
}
