//! A submitted scatter-gather list, until it is done.

use heapless::Vec;

use super::SgEntry;
use super::cut::{Cut, Piece};
use crate::cookie::Cookie;
use crate::error::Fault;
use crate::error_code::ErrorCode;

/// How a part of a ticket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartEnd {
    /// Everything retired or reported.
    Finished,
}

/// One channel's share of a ticket.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) channel: usize,
    pub(crate) share: usize,
    pub(crate) first: Cookie,
    pub(crate) count: u64,
    /// How often the channel had been stopped when this was submitted, see `member.rs`.
    pub(crate) epoch: u32,
    /// Pieces up to which everything was told that there is to tell: failures come in order.
    pub(crate) told: u64,
    /// Pieces that never reached the ring, counted from the end.
    pub(crate) unsubmitted: u64,
    pub(crate) end: Option<PartEnd>,
}

impl Part {
    pub(crate) fn reserved(channel: usize, share: usize, count: u64) -> Self {
        Self {
            channel,
            share,
            first: Cookie::new(0),
            count,
            epoch: 0,
            told: 0,
            unsubmitted: 0,
            end: None,
        }
    }

    /// Which of the part's pieces a cookie is, if it is one.
    pub(crate) fn ordinal(&self, cookie: Cookie) -> Option<u64> {
        let ordinal = cookie.since(self.first);
        (ordinal < self.submitted()).then_some(ordinal)
    }

    pub(crate) fn submitted(&self) -> u64 {
        self.count.saturating_sub(self.unsubmitted)
    }
}

/// A scatter-gather list that was submitted to a group.
///
/// It borrows nothing: the memory that it stands for is named by bus addresses, and is the
/// engines' until [`ChannelGroup::poll`](super::ChannelGroup::poll) says that the ticket is done.
#[derive(Debug)]
#[must_use = "the engines own the list's memory until the ticket is done"]
pub struct Ticket<const N: usize> {
    cut: Cut,
    /// Of the list that was submitted.
    fingerprint: u64,
    parts: Vec<Part, N>,
}

/// Where a ticket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Status {
    /// No engine will touch the list's memory any more. Everything was copied that was not
    /// reported as failed.
    Done,
    /// Engines are at work.
    Pending,
    /// A channel is out of order and has part of the list. Engines may be at work.
    Faulted {
        /// The channel's index in the group.
        channel: usize,
        /// What is wrong with it.
        fault: Fault,
    },
}

impl Status {
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Faulted { .. }, _) | (_, Self::Done) => self,
            (_, Self::Faulted { .. } | Self::Pending) => other,
        }
    }
}

/// A piece of a list that was not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceFailure {
    /// The channel's index in the group.
    pub channel: usize,
    /// Which share of the list it is of.
    pub(crate) share: usize,
    /// Which piece of the share.
    pub(crate) ordinal: u64,
    /// What the engine says, or `None` if the piece was dropped, or never submitted, because its
    /// channel was stopped.
    pub code: Option<ErrorCode>,
}

impl<const N: usize> Ticket<N> {
    pub(crate) fn new(cut: Cut, fingerprint: u64) -> Self {
        Self {
            cut,
            fingerprint,
            parts: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, part: Part) {
        // Cannot overflow: a cut has at most as many shares as there are channels, N.
        let _ = self.parts.push(part);
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter()
    }

    pub(crate) fn parts_mut(&mut self) -> impl Iterator<Item = &mut Part> {
        self.parts.iter_mut()
    }

    /// Descriptors that the list was cut into.
    #[must_use]
    pub fn descriptors(&self) -> u64 {
        self.parts()
            .fold(0, |sum, part| sum.saturating_add(part.count))
    }

    /// Channels that the list was spread over.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.parts.len()
    }

    /// Indices of the channels that are not done with their share.
    pub fn unfinished(&self) -> impl Iterator<Item = usize> {
        self.parts()
            .filter(|part| part.end.is_none())
            .map(|part| part.channel)
    }

    /// What the failed piece was to copy. `list` is the list that was submitted; `None` if it is
    /// another.
    #[must_use]
    pub fn piece(&self, list: &[SgEntry], failure: &PieceFailure) -> Option<Piece> {
        if super::fingerprint(list) != self.fingerprint {
            return None;
        }
        let ordinal = usize::try_from(failure.ordinal).ok()?;
        self.cut.pieces(list, failure.share).nth(ordinal)
    }
}
