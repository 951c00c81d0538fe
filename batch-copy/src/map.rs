//! From the caller's addresses to those of the channel that copies.

use core::fmt;

use ptdma::DmaAddr;

use ptdma::Segment;

use crate::gather::CHUNK;

/// Most pieces that a mapper is asked about at once: as many as a chunk may take descriptors, and
/// the one behind them, which may continue the last.
pub const MAP_CHUNK: usize = CHUNK + 1;

/// A part of one folio, in the caller's addresses, about to be given to a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index of the folio in the batch.
    pub folio: usize,
    /// Where in the folio the part begins, in bytes.
    pub offset_bytes: u64,
    /// First byte of the source.
    pub src: DmaAddr,
    /// First byte of the destination.
    pub dst: DmaAddr,
    /// Bytes, not zero.
    pub len_bytes: u64,
}

/// A part of a folio has no address on the channel's bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapError;

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this part of a folio has no address on the channel's bus")
    }
}

impl core::error::Error for MapError {}

/// Translates parts of folios to the bus addresses of the function that will copy them.
///
/// In a kernel every PCI function has an IOMMU domain of its own. A part can only be mapped once
/// the channel that copies it is known. The IOMMU may have merged source and destination
/// differently. `map` answers for as many bytes *from the beginning of the piece* as are contiguous
/// on **both** sides, and is asked again for the rest. Neighbours whose segments turn out contiguous
/// become one descriptor, so an answer folio by folio costs nothing. Scattered folios that were
/// mapped at one contiguous range of bus addresses become one copy.
///
/// # What an implementer promises
///
/// As long as the batch runs, the same question has the same answer. The answer for the rest of a
/// piece is the rest of the piece's answer. The executor asks again when it has to find out which
/// bytes a failed descriptor covered. If the answers then come to other descriptors, it notices by
/// their number, beginning and end. It reports all of them as lost, or as not mapped.
///
/// The executor calls a mapper without any lock held. Undoing the mapping is the caller's, after
/// the batch returned.
pub trait Mapper {
    /// Whether [`map`](Self::map) changes no address, like [`Identity`]'s: then it need not even
    /// be called.
    const TRIVIAL: bool = false;

    /// The contiguous beginning of `piece` as channel number `channel` sees it.
    ///
    /// # Errors
    ///
    /// [`MapError`]: the piece is not copied by an engine, everything else is.
    fn map(&mut self, channel: usize, piece: &Piece) -> Result<Segment, MapError>;

    /// Answers like [`map`](Self::map) for pieces that follow each other in the batch, from the
    /// first on, and returns the number of answers. For mappers to which a call is dear.
    ///
    /// `segments` has room for [`MAP_CHUNK`] answers at most. There may be more pieces than room,
    /// or fewer.
    ///
    /// The executor asks about a piece without an answer again. No answer at all means that `map`
    /// refuses the first piece. An answer for less than its piece ends the use of the answers: the
    /// executor asks about the rest of that piece first.
    fn map_chunk(
        &mut self,
        channel: usize,
        pieces: impl Iterator<Item = Piece>,
        segments: &mut [Segment],
    ) -> usize {
        let mut answered: usize = 0;
        for (segment, piece) in segments.iter_mut().zip(pieces) {
            let Ok(mapped) = self.map(channel, &piece) else {
                break;
            };
            *segment = mapped;
            answered = answered.wrapping_add(1);
            if mapped.len_bytes < piece.len_bytes {
                break;
            }
        }
        answered
    }
}

/// Addresses are the same on every side.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity;

impl Mapper for Identity {
    const TRIVIAL: bool = true;

    #[inline(always)]
    fn map(&mut self, _channel: usize, piece: &Piece) -> Result<Segment, MapError> {
        Ok(Segment {
            src: piece.src,
            dst: piece.dst,
            len_bytes: piece.len_bytes,
        })
    }
}
