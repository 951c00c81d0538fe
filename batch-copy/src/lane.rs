//! One channel's share of a batch, and what of it is in the ring.

use crate::cursor::Place;
use crate::gather::{Digest, Walked};
use crate::sum::Sum;
use ptdma::shared::{Cause, Motion, Share};

/// Descriptors after which a burst is not continued. Tracing a failed descriptor back to its bytes
/// walks its burst again: some 40 us for so many, whatever the length of the batch. A ring of 512
/// is refilled eight times before it pauses for a burst to end.
const BURST_MAX: u64 = 4096;

/// What descriptors of one batch copy that follow each other in a ring and in the stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Where in the stream they begin.
    pub(crate) start: Place,
    /// Where in the stream they end.
    pub(crate) end_position: u64,
    /// What of that they do not copy: it was refused before, or was accounted for as lost.
    pub(crate) left_out: Sum,
    /// A second walk has to come to the same.
    pub(crate) digest: Digest,
}

impl Span {
    /// Of descriptors that a walk from `start` came to.
    #[inline(always)]
    pub(crate) const fn of(start: Place, walked: &Walked) -> Self {
        Self {
            start,
            end_position: walked.place.position,
            left_out: walked.left_out,
            digest: walked.digest,
        }
    }

    /// Bytes that they copy.
    #[inline]
    pub(crate) const fn bytes(&self) -> u64 {
        let all = self.end_position.wrapping_sub(self.start.position);
        all.wrapping_sub(self.left_out.bytes)
    }
}

/// Such descriptors, and what became of them so far.
#[derive(Debug)]
pub(crate) struct Burst {
    /// The descriptors.
    pub(crate) share: Share,
    /// What they copy.
    pub(crate) span: Span,
    /// Nobody knows which bytes its descriptors copy: it counts as lost as a whole, in this way,
    /// as soon as it is over.
    pub(crate) doubt: Option<Doubt>,
}

/// What becomes of a burst that a second walk did not find again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// The channel took other copies than the mapper names now.
    Unmapped,
    /// A loss in it could not be traced back to its bytes.
    Lost {
        /// Why it was lost.
        cause: Cause,
        /// Whether its engine may still write.
        unproven: bool,
    },
}

impl Burst {
    /// Descriptors that were accepted a moment ago.
    #[inline(always)]
    pub(crate) const fn new(share: Share, span: Span) -> Self {
        Self {
            share,
            span,
            doubt: None,
        }
    }

    fn is_continued_by(&self, next: &Self) -> bool {
        self.share.is_continued_by(&next.share)
            && self.span.end_position == next.span.start.position
            && self.share.is_untold()
            && self.doubt.is_none()
            && self.share.count() < BURST_MAX
    }
}

/// Bursts of one batch in one ring at the same time. A chunk of another batch in between breaks a
/// burst in two. Less of this batch is in the ring then, and the engine works on the other one.
#[derive(Debug)]
pub(crate) struct Bursts {
    running: Option<Burst>,
    /// Only if one is running.
    waiting: Option<Burst>,
}

impl Bursts {
    const fn new() -> Self {
        Self {
            running: None,
            waiting: None,
        }
    }

    const fn of(burst: Burst) -> Self {
        Self {
            running: Some(burst),
            waiting: None,
        }
    }

    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.running.is_none()
    }

    /// The oldest, if it is the only one.
    #[inline]
    pub(crate) const fn only(&self) -> Option<&Burst> {
        match self.waiting {
            None => self.running.as_ref(),
            Some(_) => None,
        }
    }

    #[inline]
    pub(crate) const fn is_full(&self) -> bool {
        self.waiting.is_some()
    }

    /// The oldest.
    #[inline]
    pub(crate) const fn front(&self) -> Option<&Burst> {
        self.running.as_ref()
    }

    #[inline]
    pub(crate) const fn front_mut(&mut self) -> Option<&mut Burst> {
        self.running.as_mut()
    }

    /// Lets go of the only one.
    #[inline]
    pub(crate) const fn pop_only(&mut self) {
        self.running = None;
    }

    /// Lets go of the oldest.
    #[inline]
    pub(crate) const fn pop_front(&mut self) -> Option<Burst> {
        let over = self.running.take();
        self.running = self.waiting.take();
        over
    }

    /// Adds descriptors that were accepted: to the newest burst if they continue it (not over the
    /// lane's `seam`), else as a new one. The caller has made sure that there is room for a new
    /// one.
    #[inline]
    pub(crate) fn add(&mut self, burst: Burst, seam: u64) {
        if let Some(newest) = self.waiting.as_mut().or(self.running.as_mut()) {
            if burst.span.start.position != seam && newest.is_continued_by(&burst) {
                newest.share.join(burst.share);
                let (span, more) = (&mut newest.span, burst.span);
                span.end_position = more.end_position;
                span.left_out = span.left_out.plus(more.left_out);
                span.digest = span.digest.plus(more.digest);
            } else {
                self.waiting = Some(burst);
            }
        } else {
            self.running = Some(burst);
        }
    }
}

/// When `bytes` bytes should be over that are begun at `from_ns`.
#[inline]
pub(crate) const fn done_ns(from_ns: u64, bytes: u64, ns_per_mib: u64) -> u64 {
    from_ns.saturating_add(bytes.saturating_mul(ns_per_mib) >> 20)
}

/// A stretch of the stream on its way through one channel.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) channel: usize,
    /// Whether the channel was found to be out of service.
    pub(crate) dead: bool,
    /// Whether the channel had to be stopped during this batch: others are preferred from then on.
    pub(crate) suspect: bool,
    /// Where the stretch that it has now begins. What was submitted before may end there, but is
    /// not continued by it. A second walk over both would merge at the seam what was submitted as
    /// two descriptors.
    pub(crate) seam: u64,
    /// What was not submitted yet begins here ...
    pub(crate) next: Place,
    /// ... and ends here.
    pub(crate) end: u64,
    /// Folios before this one end before that, or at it. There may be more that do.
    pub(crate) whole_until: usize,
    /// Submitted and not over.
    pub(crate) bursts: Bursts,
    /// When the newest burst should be over.
    pub(crate) expected_ns: u64,
    /// How the channel was last seen to move.
    pub(crate) motion: Motion,
    /// Whether the end of the lane needs no interrupt, because that of another lane stands for
    /// all: see `closing.rs`.
    pub(crate) spoken_for: bool,
    /// Whether the newest burst ends without an interrupt for that reason.
    pub(crate) quiet: bool,
}

impl Lane {
    pub(crate) const fn new(channel: usize, next: Place, end: Place, now_ns: u64) -> Self {
        Self {
            channel,
            dead: false,
            suspect: false,
            seam: next.position,
            next,
            end: end.position,
            whole_until: end.folio,
            bursts: Bursts::new(),
            expected_ns: 0,
            motion: Motion::since(now_ns),
            spoken_for: false,
            quiet: false,
        }
    }

    /// A lane that `burst`, which was submitted a moment ago, is all of; it ends at `end`.
    #[inline]
    pub(crate) const fn handed_out_whole(
        channel: usize,
        burst: Burst,
        end: Place,
        spoken_for: bool,
        (now_ns, expected_ns): (u64, u64),
    ) -> Self {
        Self {
            seam: burst.span.start.position,
            bursts: Bursts::of(burst),
            expected_ns,
            spoken_for,
            quiet: spoken_for,
            ..Self::new(channel, end, end, now_ns)
        }
    }

    /// Bytes that were not submitted yet.
    #[inline]
    pub(crate) const fn rest(&self) -> u64 {
        self.end.saturating_sub(self.next.position)
    }

    /// Whether an interrupt is on its way from this lane.
    #[inline]
    pub(crate) const fn announced(&self) -> bool {
        !self.quiet && !self.bursts.is_empty()
    }

    /// Whether nothing of it is left, and nothing in flight.
    #[inline]
    pub(crate) const fn is_done(&self) -> bool {
        self.bursts.is_empty() && self.rest() == 0
    }

    /// So many bytes more are in the ring.
    #[inline]
    pub(crate) fn handed_out(&mut self, bytes: u64, now_ns: u64, ns_per_mib: u64) {
        self.expected_ns = done_ns(self.expected_ns.max(now_ns), bytes, ns_per_mib);
        // With more to come, it says when there is room.
        self.quiet = self.spoken_for && self.rest() == 0;
    }

    /// Ends at `end` from now on.
    pub(crate) const fn end_at(&mut self, end: Place) {
        self.end = end.position;
        self.whole_until = end.folio;
    }
}
