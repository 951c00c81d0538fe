//! Where a batch's folios come from.

use crate::folio::Folio;

/// An ordered list of folios that can be entered anywhere.
///
/// A batch is walked more than once: a look, the cuts, the descriptors, and again whatever went
/// wrong. Several places of it are in work at the same time. An index is all that a place needs, so
/// the state of a batch does not grow with it and borrows nothing. A slice is a source; so is
/// [`FolioFn`], for lists that are computed.
///
/// # What an implementer promises
///
/// The same index gives the same folio as long as the batch runs, and there are no gaps. (A
/// source that breaks this cannot corrupt memory that it did not name. If the books do not balance
/// for it, every folio that would be reported as copied is
/// [`Unaccounted`](crate::FailReason::Unaccounted) instead.)
pub trait FolioSource {
    /// Whether a folio is found by reading memory, with nothing called that could wait, lock, panic
    /// or come back into the batch. The batch then reads it with a channel's lock held, which saves
    /// a copy of each descriptor. Slices are so. Otherwise the list is never asked with a lock
    /// held.
    const IN_MEMORY: bool = false;

    /// The folio with this index, or `None` behind the last one.
    fn folio(&self, index: usize) -> Option<Folio>;

    /// All folios, in order.
    fn folios(&self) -> impl Iterator<Item = Folio> + Clone + '_ {
        Folios {
            source: self,
            next: 0,
        }
    }

    /// At most `most` folios from `first` on, in order. This is walked again and again: a list in
    /// which one index is not as good as the next implements it.
    #[inline]
    fn range(&self, first: usize, most: usize) -> impl Iterator<Item = Folio> + '_ {
        (first..first.saturating_add(most)).map_while(|index| self.folio(index))
    }
}

struct Folios<'a, S: ?Sized> {
    source: &'a S,
    next: usize,
}

// Not derived: that would ask for `S: Clone`.
impl<S: ?Sized> Clone for Folios<'_, S> {
    fn clone(&self) -> Self {
        Self {
            source: self.source,
            next: self.next,
        }
    }
}

impl<S: FolioSource + ?Sized> Iterator for Folios<'_, S> {
    type Item = Folio;

    #[inline]
    fn next(&mut self) -> Option<Folio> {
        let folio = self.source.folio(self.next)?;
        self.next = self.next.wrapping_add(1);
        Some(folio)
    }
}

impl FolioSource for [Folio] {
    const IN_MEMORY: bool = true;

    #[inline]
    fn folio(&self, index: usize) -> Option<Folio> {
        self.get(index).copied()
    }

    #[inline]
    fn folios(&self) -> impl Iterator<Item = Folio> + Clone + '_ {
        self.iter().copied()
    }

    #[inline]
    fn range(&self, first: usize, most: usize) -> impl Iterator<Item = Folio> + '_ {
        let rest = self.get(first..).unwrap_or_default();
        rest.get(..most).unwrap_or(rest).iter().copied()
    }
}

/// A list of folios that is computed: `FolioFn(f)`, where `f` gives the folio with an index.
#[derive(Clone, Copy, Debug)]
pub struct FolioFn<F>(pub F);

impl<F: Fn(usize) -> Option<Folio>> FolioSource for FolioFn<F> {
    #[inline]
    fn folio(&self, index: usize) -> Option<Folio> {
        (self.0)(index)
    }
}
