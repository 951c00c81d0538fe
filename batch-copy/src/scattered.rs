//! The usual folio of a batch: one descriptor, as it is.
//!
//! Nothing has to be mapped for it, it is whole, within the limit, and the folio behind it does
//! not continue it. Such folios go from the caller's list to the ring in one tight loop.

use ptdma::{BOUNDARY_LEN_BYTES, DmaAddr};

use crate::folio::Folio;
use crate::source::FolioSource;
use ptdma::Segment;

/// Up to `most` folios from `first` on that are descriptors as they are. Ends before the first one
/// that is not, and before the last one of the batch, which nothing is behind.
#[inline(always)]
pub(crate) fn scattered<S: FolioSource + ?Sized>(
    source: &S,
    first: usize,
    most: usize,
    max_len_bytes: u64,
) -> impl Iterator<Item = Segment> + use<'_, S> {
    let folios = source.range(first, most);
    let behind = source.range(first.wrapping_add(1), most);
    folios.zip(behind).map_while(move |(folio, next)| {
        is_descriptor(&folio, &next, max_len_bytes).then_some(Segment {
            src: folio.src,
            dst: folio.dst,
            len_bytes: folio.len_bytes,
        })
    })
}

/// Whether there is any from `first` on.
#[inline(always)]
pub(crate) fn is_scattered<S: FolioSource + ?Sized>(
    source: &S,
    first: usize,
    max_len_bytes: u64,
) -> bool {
    let pair = source.folio(first).zip(source.folio(first.wrapping_add(1)));
    pair.is_some_and(|(folio, next)| {
        is_descriptor(&folio, &next, max_len_bytes)
            && !crosses_boundary(folio.src, folio.dst, folio.len_bytes)
    })
}

/// Looks at sources only: where just those go on, it is left to the thorough walk to find out.
#[inline(always)]
const fn is_descriptor(folio: &Folio, next: &Folio, max_len_bytes: u64) -> bool {
    let continued = folio.src.get().wrapping_add(folio.len_bytes) == next.src.get();
    // A length of zero is over every limit here.
    !continued && folio.len_bytes.wrapping_sub(1) < max_len_bytes
}

/// Whether a copy crosses a multiple of 4 GiB on either side. No folio does that is aligned to its
/// size, so this is not looked at for each: the channel takes no such copy.
pub(crate) fn crosses_boundary(src: DmaAddr, dst: DmaAddr, len_bytes: u64) -> bool {
    let span = len_bytes.wrapping_sub(1);
    let crossed = |start: u64| -> u64 { (start ^ start.wrapping_add(span)) / BOUNDARY_LEN_BYTES };
    crossed(src.get()) | crossed(dst.get()) != 0
}
