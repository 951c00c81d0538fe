//! One channel's share of a batch, and what of it is in the ring.

use heapless::Deque;
use ptdma::Cookie;

use crate::cursor::Place;
use crate::gather::Digest;

/// Bursts of one batch in one ring at the same time: one runs, one waits. A chunk of another batch
/// in between breaks a burst in two; then less of this batch is in the ring, and the engine works
/// on the other one.
pub(crate) const BURSTS: usize = 2;

/// Descriptors of one batch that follow each other in a ring and in the stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Burst {
    /// First descriptor.
    pub(crate) first: Cookie,
    /// One past the last descriptor.
    pub(crate) end: Cookie,
    /// Where in the stream they begin.
    pub(crate) start: Place,
    /// Where in the stream they end.
    pub(crate) end_position: u64,
    /// What they copy.
    pub(crate) bytes: u64,
    /// What of it was accounted for as lost.
    pub(crate) lost_bytes: u64,
    /// A second walk has to come to the same.
    pub(crate) digest: Digest,
}

/// A stretch of the stream on its way through one channel.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    pub(crate) channel: usize,
    /// Whether the channel was found to be out of service.
    pub(crate) dead: bool,
    /// Whether the channel had to be stopped during this batch: others are preferred from then on.
    pub(crate) suspect: bool,
    /// What was not submitted yet begins here ...
    pub(crate) next: Place,
    /// ... and ends here.
    pub(crate) end: u64,
    /// Submitted and not over.
    pub(crate) bursts: Deque<Burst, BURSTS>,
    /// When the newest burst should be over.
    pub(crate) expected_ns: u64,
}

impl Lane {
    pub(crate) const fn new(channel: usize, next: Place, end: u64) -> Self {
        Self {
            channel,
            dead: false,
            suspect: false,
            next,
            end,
            bursts: Deque::new(),
            expected_ns: 0,
        }
    }

    /// Bytes that were not submitted yet.
    #[inline]
    pub(crate) const fn rest(&self) -> u64 {
        self.end.saturating_sub(self.next.position)
    }

    /// Adds descriptors that were accepted: to the newest burst if they continue it, else as a new
    /// one, for which the caller has made sure that there is room.
    #[inline]
    pub(crate) fn add(&mut self, burst: Burst) {
        if let Some(newest) = self.bursts.back_mut()
            && newest.end == burst.first
            && newest.end_position == burst.start.position
            && newest.lost_bytes == 0
        {
            newest.end = burst.end;
            newest.end_position = burst.end_position;
            newest.bytes = newest.bytes.wrapping_add(burst.bytes);
            newest.digest = newest.digest.plus(burst.digest);
            return;
        }
        let _ = self.bursts.push_back(burst);
    }
}
