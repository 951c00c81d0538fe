//! The next descriptors of a lane, given to its channel.

use ptdma::Lock;

use crate::cursor::Place;
use crate::gather::{Chunk, Digest, Ended, Gather, Refused, Target, Walked};
use crate::lane::Lane;
use crate::map::Mapper;
use crate::scattered::{is_scattered, scattered};
use crate::source::FolioSource;
use crate::sum::Sum;
use ptdma::shared::{Accepted, Announce, Channels, SharedChannel};
use ptdma::{CopyChannel, PrepError};

/// How descriptors are to be given to a channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    /// At most so many.
    pub(crate) most: usize,
    /// None longer than this.
    pub(crate) max_len_bytes: u64,
    /// The one that interrupts, besides the last.
    pub(crate) mark: Option<usize>,
    /// With so many the ring is full: then, or at the end of the lane, the doorbell is rung.
    pub(crate) ring_at: usize,
    /// Whether the last one before a doorbell interrupts.
    pub(crate) interrupts: bool,
    /// Unless it is the last one before this place: another lane interrupts for its end.
    pub(crate) quiet_from: Option<u64>,
    pub(crate) now_ns: u64,
}

/// What the channel accepted, what of the stream was offered to it, and whether that is the same.
pub(crate) type Given = (Accepted, Walked, bool);

impl Order {
    const fn target(&self, lane: &Lane) -> Target {
        Target {
            channel: lane.channel,
            max_len_bytes: self.max_len_bytes,
        }
    }

    const fn announce(&self, walked: &Walked, offered: usize) -> Announce {
        let last = !matches!(walked.ended, Ended::Enough) || offered >= self.ring_at;
        let quiet = match self.quiet_from {
            Some(end) => walked.place.position >= end,
            None => false,
        };
        Announce {
            ring: last,
            interrupt: self.interrupts && last && !quiet,
            offered,
            coalesced: walked.pieces.saturating_sub(offered as u64),
        }
    }

    /// Whether what comes next in the lane is a folio that is a descriptor as it is.
    #[inline(always)]
    pub(crate) fn suits<S: FolioSource + ?Sized>(&self, source: &S, lane: &Lane) -> bool {
        lane.next.offset_bytes == 0
            && lane.next.folio < lane.whole_until
            && is_scattered(source, lane.next.folio, self.max_len_bytes)
    }

    /// Gives folios to the channel that are descriptors [as they are](Self::suits): from the
    /// caller's list to the ring without a stop. Only where nothing has to be mapped, and no part
    /// of the batch was refused.
    #[inline(always)]
    pub(crate) fn give_scattered<S, C, L, const N: usize>(
        &self,
        channels: &Channels<C, L, N>,
        source: &S,
        lane: &Lane,
    ) -> Given
    where
        S: FolioSource + ?Sized,
        C: CopyChannel,
        L: Lock<SharedChannel<C>>,
    {
        let begin = lane.next;
        let most = lane.whole_until.saturating_sub(begin.folio).min(self.most);
        let walked = |count: usize, bytes: u64| {
            let position = begin.position.wrapping_add(bytes);
            Walked {
                place: Place {
                    folio: begin.folio.wrapping_add(count),
                    offset_bytes: 0,
                    position,
                },
                ended: if position >= lane.end {
                    Ended::AtEnd
                } else {
                    Ended::Enough
                },
                pieces: count as u64,
                left_out: Sum::NOTHING,
                digest: Digest::of_folios(begin.folio, count),
            }
        };
        let mut found = walked(0, 0);
        let mut all = true;
        let accepted = channels.submit(lane.channel, self.now_ns, |channel| {
            let copies = scattered(source, begin.folio, most, self.max_len_bytes);
            let prepared = channel.prep_all(copies, self.mark);
            found = walked(prepared.count, prepared.bytes);
            let rejected = prepared.error == Some(PrepError::Rejected);
            // Nor does anybody believe in more than was offered.
            all = !rejected && prepared.count <= most;
            let refused = usize::from(rejected);
            let offered = prepared.count.wrapping_add(refused);
            (prepared, self.announce(&found, offered))
        });
        // A channel that miscounts its descriptors has none accepted.
        all &= accepted.count as u64 == found.pieces;
        (accepted, found, all)
    }

    /// Gathers descriptors and gives them to the channel.
    #[inline(always)]
    pub(crate) fn give_gathered<S, C, L, M, const N: usize>(
        &self,
        channels: &Channels<C, L, N>,
        source: &S,
        lane: &Lane,
        mapper: &mut M,
        refused: &Refused,
        chunk: &mut Chunk,
    ) -> Given
    where
        S: FolioSource + ?Sized,
        C: CopyChannel,
        L: Lock<SharedChannel<C>>,
        M: Mapper,
    {
        let mut gather = Gather::new(
            source,
            lane.next,
            (lane.end, lane.whole_until),
            self.target(lane),
            mapper,
            refused,
        );
        // The mapper may take its time: not with the lock held.
        gather.fill(chunk, self.most);
        let walked = gather.walked();
        let copies = chunk.as_slice();
        let offered = copies.len();
        let accepted = if offered == 0 {
            Accepted::nothing(None)
        } else {
            let announce = self.announce(&walked, offered);
            channels.submit(lane.channel, self.now_ns, |channel| {
                let prepared = channel.prep_all(copies.iter().copied(), self.mark);
                (prepared, announce)
            })
        };
        let all = accepted.count == offered;
        (accepted, walked, all)
    }
}
