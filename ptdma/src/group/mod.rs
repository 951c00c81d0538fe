//! Many channels as one: a scatter-gather list spread over all of them.
//!
//! The list is cut into one window of consecutive bytes per channel, equal to within a page, so
//! that all engines finish together whatever the entries' sizes: one long entry is shared by all
//! channels, many short ones are dealt out by bytes and not by number. The cut is a function of
//! the list's lengths alone; no plan is stored, and what a failed descriptor was to copy is found
//! by cutting again.
//!
//! Any number of CPUs may use a group at once. Each channel has its own [`Lock`]; only one is
//! held at a time.

mod cut;
mod member;
mod ticket;

use core::fmt;

use heapless::Vec;

use crate::addr::{DmaAddr, DmaRange};
use crate::channel::Channel;
use crate::clock::Deadline;
use crate::error::{Fault, NotStopped};
use crate::io::{Clock, RegisterIo, RingMemory};
use crate::lifecycle::{FunctionQuiesced, Terminated};
use crate::lock::Lock;
use crate::request::{Notify, RequestError};
use crate::stats::Stats;

use cut::Cut;
pub use cut::{PAGE_LEN_BYTES, Piece};
pub use member::Member;
use member::{News, PartState};
use ticket::{Part, PartEnd};
pub use ticket::{PieceFailure, Status, Ticket};

/// Channels of a group unless the const parameter says otherwise: the number of PTDMA functions
/// of the two-socket Zen 3 machine of the published tables.
pub const DEFAULT_CHANNELS: usize = 16;

/// One entry of a scatter-gather list: `len_bytes` bytes from `src` to `dst`.
///
/// Unlike a single descriptor an entry may be of any length; it is cut as needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SgEntry {
    /// Where the bytes are.
    pub src: DmaAddr,
    /// Where they go.
    pub dst: DmaAddr,
    /// How many, at least 1.
    pub len_bytes: u64,
}

/// Why a scatter-gather list was not submitted. Nothing of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupError {
    /// The list has no entries.
    EmptyList,
    /// An entry is not acceptable.
    Entry {
        /// Its index in the list.
        index: usize,
        /// What is wrong with it.
        error: RequestError,
    },
    /// The lengths add up to more than 2^64.
    TooLong,
    /// The group has no channel that works.
    NoChannel,
    /// A channel's share needs more descriptors than its ring can ever hold: use a longer ring or
    /// a shorter list.
    TooManyDescriptors {
        /// The channel's index in the group.
        channel: usize,
        /// Descriptors needed.
        needed: u64,
        /// Descriptors that its ring holds.
        capacity: usize,
    },
    /// A channel has no room at the moment: poll, then try again.
    Busy {
        /// The channel's index in the group.
        channel: usize,
        /// Descriptors needed.
        needed: u64,
        /// Slots free.
        free: usize,
    },
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyList => f.write_str("the scatter-gather list is empty"),
            Self::Entry { index, error } => write!(f, "entry {index}: {error}"),
            Self::TooLong => f.write_str("the scatter-gather list is over 2^64 bytes long"),
            Self::NoChannel => f.write_str("no channel of the group works"),
            Self::TooManyDescriptors {
                channel,
                needed,
                capacity,
            } => write!(
                f,
                "channel {channel} would need {needed} descriptors, its ring holds {capacity}"
            ),
            Self::Busy {
                channel,
                needed,
                free,
            } => write!(
                f,
                "channel {channel} needs {needed} descriptors, {free} slots are free"
            ),
        }
    }
}

impl core::error::Error for GroupError {}

/// Why a wait for a ticket ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupWaitError {
    /// The deadline passed. The channels named by [`Ticket::unfinished`] are still at it.
    TimedOut,
    /// A channel is out of order; the ticket's work on the others goes on.
    Faulted {
        /// The channel's index in the group.
        channel: usize,
        /// What is wrong with it.
        fault: Fault,
    },
}

impl fmt::Display for GroupWaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("timed out"),
            Self::Faulted { channel, fault } => write!(f, "channel {channel}: {fault}"),
        }
    }
}

impl core::error::Error for GroupWaitError {}

/// Up to `N` channels that share the work of scatter-gather lists.
///
/// `L` is the lock around each channel: [`spin::Mutex`] unless the platform brings its own. All
/// use of the channels goes through the group.
pub struct ChannelGroup<R, M, L = spin::Mutex<Member<R, M>>, const N: usize = DEFAULT_CHANNELS> {
    members: Vec<L, N>,
    channel: core::marker::PhantomData<fn() -> (R, M)>,
}

impl<R, M, L, const N: usize> Default for ChannelGroup<R, M, L, N> {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            channel: core::marker::PhantomData,
        }
    }
}

impl<R, M, const N: usize> ChannelGroup<R, M, spin::Mutex<Member<R, M>>, N>
where
    R: RegisterIo,
    M: RingMemory,
{
    /// Adds a channel under a spin lock and returns its index.
    ///
    /// # Errors
    ///
    /// The channel comes back if the group has `N` already.
    // The channel itself has to come back: its memory must not be lost silently.
    #[allow(clippy::result_large_err)]
    pub fn add(&mut self, channel: Channel<R, M>) -> Result<usize, Channel<R, M>> {
        self.add_locked(spin::Mutex::new(Member::new(channel)))
            .map_err(|lock| lock.into_inner().into_channel())
    }

    /// Takes the group apart, to shut its channels down one by one.
    pub fn into_channels(self) -> impl Iterator<Item = Channel<R, M>> {
        self.members
            .into_iter()
            .map(|lock| lock.into_inner().into_channel())
    }
}

impl<R, M, L, const N: usize> ChannelGroup<R, M, L, N>
where
    R: RegisterIo,
    M: RingMemory,
    L: Lock<Member<R, M>>,
{
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a channel under a lock of the platform's and returns its index.
    ///
    /// # Errors
    ///
    /// The lock comes back if the group has `N` channels already.
    pub fn add_locked(&mut self, member: L) -> Result<usize, L> {
        self.members.push(member)?;
        Ok(self.members.len().saturating_sub(1))
    }

    /// Number of channels.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Spreads `list` over all channels that work and starts them: one doorbell each. With
    /// [`Notify::Interrupt`] each interrupts once, when its share is done.
    ///
    /// Everything is checked, and room made sure of on every channel, before the first descriptor
    /// is written. Until the returned ticket is done, all memory of the list belongs to the
    /// engines.
    ///
    /// # Errors
    ///
    /// [`GroupError`]; nothing was submitted.
    pub fn submit(&self, list: &[SgEntry], notify: Notify) -> Result<Ticket<N>, GroupError> {
        let total_bytes = check(list)?;
        let mut working: Vec<usize, N> = Vec::new();
        let mut max_len_bytes = u32::MAX;
        for (index, member) in self.members.iter().enumerate() {
            let limits =
                member.with(|m| m.channel().fault().is_none().then(|| m.channel().limits()));
            if let Some(limits) = limits {
                max_len_bytes = max_len_bytes.min(limits.max_len_bytes());
                // Cannot overflow: there are at most N members.
                let _ = working.push(index);
            }
        }
        let Some(cut) = Cut::new(total_bytes, working.len(), max_len_bytes) else {
            return Err(GroupError::NoChannel);
        };
        let mut ticket = Ticket::new(cut, fingerprint(list));
        for (share, channel) in working.into_iter().take(cut.shares()).enumerate() {
            let needed = cut.pieces(list, share).count() as u64;
            let reserved = match self.members.get(channel) {
                Some(lock) => lock.with(|m| m.reserve(channel, needed)),
                None => Err(GroupError::NoChannel),
            };
            if let Err(e) = reserved {
                self.release(&ticket);
                return Err(e);
            }
            ticket.push(Part::reserved(channel, share, needed));
        }
        for part in ticket.parts_mut() {
            if let Some(lock) = self.members.get(part.channel) {
                let pieces = cut.pieces(list, part.share);
                lock.with(|m| m.fill(part, pieces, notify));
            }
        }
        Ok(ticket)
    }

    fn release(&self, ticket: &Ticket<N>) {
        for part in ticket.parts() {
            if let Some(lock) = self.members.get(part.channel) {
                lock.with(|m| m.release(part.count));
            }
        }
    }

    /// Looks once at every channel on which the ticket has work: at most one MMIO read each.
    ///
    /// Descriptors of this ticket that failed, or that were dropped when somebody terminated
    /// their channel, are handed to `on_failure`, once each, with no lock held. A ticket that is
    /// not polled while others are kept waiting by its failures, for thousands of their polls, is
    /// taken to be forgotten; if it is polled after all it is told of more failures than there
    /// were. A ticket of another group is not noticed, and means nothing here.
    pub fn poll(&self, ticket: &mut Ticket<N>, mut on_failure: impl FnMut(PieceFailure)) -> Status {
        let mut status = Status::Done;
        for part in ticket.parts_mut().filter(|part| part.end.is_none()) {
            let Some(lock) = self.members.get(part.channel) else {
                continue;
            };
            let mut news = News::default();
            let state = lock.with(|m| m.poll_part(part, &mut news));
            news.tell(part, &mut on_failure);
            match state {
                PartState::Finished => part.end = Some(PartEnd::Finished),
                PartState::Pending => status = status.and(Status::Pending),
                PartState::Faulted(fault) => {
                    status = status.and(Status::Faulted {
                        channel: part.channel,
                        fault,
                    });
                }
            }
        }
        status
    }

    /// Polls until the ticket is done. `relax` is called between rounds.
    ///
    /// # Errors
    ///
    /// [`GroupWaitError`]. On a fault the work on other channels may still be going on: terminate
    /// or recover the channel named, then wait again.
    pub fn wait<C: Clock + ?Sized>(
        &self,
        ticket: &mut Ticket<N>,
        clock: &C,
        mut deadline: Deadline,
        mut relax: impl FnMut(),
        mut on_failure: impl FnMut(PieceFailure),
    ) -> Result<(), GroupWaitError> {
        loop {
            match self.poll(ticket, &mut on_failure) {
                Status::Done => return Ok(()),
                Status::Faulted { channel, fault } => {
                    return Err(GroupWaitError::Faulted { channel, fault });
                }
                Status::Pending => {}
            }
            if deadline.expired(clock) {
                return Err(GroupWaitError::TimedOut);
            }
            relax();
        }
    }

    /// The interrupt entry point of one channel. What it finds is kept for the tickets' next
    /// [`poll`](Self::poll), which then needs no MMIO for what is done already.
    ///
    /// # Errors
    ///
    /// The channel's [`Fault`], if it has one. An index out of range has none and does nothing.
    pub fn handle_interrupt(&self, channel: usize) -> Result<(), Fault> {
        match self.members.get(channel) {
            Some(lock) => lock.with(Member::handle_interrupt),
            None => Ok(()),
        }
    }

    /// For a waiter whose interrupts are overdue, see
    /// [`Channel::check_lost_interrupt`]. Does so on every channel on which the ticket has work.
    ///
    /// Returns how many channels turned out to have lost an interrupt.
    pub fn check_lost_interrupts(&self, ticket: &Ticket<N>) -> usize {
        ticket
            .parts()
            .filter(|part| part.end.is_none())
            .filter_map(|part| self.members.get(part.channel))
            .filter(|lock| lock.with(Member::check_lost_interrupt))
            .count()
    }

    /// Stops one channel and drops everything outstanding on it, of whatever ticket; the tickets
    /// learn by their next poll. See [`Channel::terminate`].
    ///
    /// The channel's lock is held meanwhile, up to the deadline.
    ///
    /// # Errors
    ///
    /// [`NotStopped`] if the engine was not proved stopped. `None` if there is no such channel.
    pub fn terminate<C: Clock + ?Sized>(
        &self,
        channel: usize,
        clock: &C,
        deadline: Deadline,
    ) -> Option<Result<Terminated, NotStopped>> {
        let lock = self.members.get(channel)?;
        Some(lock.with(|m| m.terminate(clock, deadline)))
    }

    /// Brings one channel up again after its function was reset, see [`Channel::recover`].
    ///
    /// # Errors
    ///
    /// As [`Channel::recover`]. `None` if there is no such channel.
    pub fn recover(
        &self,
        channel: usize,
        proof: FunctionQuiesced,
    ) -> Option<Result<Terminated, crate::error::BringUpError>> {
        let lock = self.members.get(channel)?;
        Some(lock.with(|m| m.recover(proof)))
    }

    /// Forgets a ticket that is done, or whose channels were terminated, without asking what
    /// became of it; frees the room that its failures take. A ticket that is still pending is
    /// handed back: its memory belongs to the engines.
    ///
    /// # Errors
    ///
    /// The ticket, if it is not done.
    // The ticket has to come back, and it is as large as it is.
    #[allow(clippy::result_large_err)]
    pub fn abandon(&self, ticket: Ticket<N>) -> Result<(), Ticket<N>> {
        let mut ticket = ticket;
        match self.poll(&mut ticket, |_| {}) {
            Status::Done => Ok(()),
            Status::Pending | Status::Faulted { .. } => Err(ticket),
        }
    }

    /// Counts of one channel.
    #[must_use]
    pub fn stats(&self, channel: usize) -> Option<Stats> {
        Some(self.members.get(channel)?.with(|m| m.channel().stats()))
    }

    /// Runs `f` with one channel, under its lock, for what the group has no words for (a probe at
    /// bring-up, say). Nothing may be submitted, polled or terminated through it: the tickets
    /// would not learn.
    pub fn with_channel<U>(
        &self,
        channel: usize,
        f: impl FnOnce(&mut Channel<R, M>) -> U,
    ) -> Option<U> {
        Some(self.members.get(channel)?.with(|m| f(m.channel_mut())))
    }
}

/// Tells lists apart: FNV-1a over their numbers.
fn fingerprint(list: &[SgEntry]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let numbers = list
        .iter()
        .flat_map(|entry| [entry.src.get(), entry.dst.get(), entry.len_bytes]);
    numbers.fold(OFFSET, |sum, number| (sum ^ number).wrapping_mul(PRIME))
}

/// Checks every entry and adds up the lengths.
fn check(list: &[SgEntry]) -> Result<u64, GroupError> {
    let mut total_bytes = 0_u64;
    for (index, entry) in list.iter().enumerate() {
        let at = |error| GroupError::Entry { index, error };
        let src =
            DmaRange::new(entry.src, entry.len_bytes).map_err(|e| at(RequestError::Source(e)))?;
        let dst = DmaRange::new(entry.dst, entry.len_bytes)
            .map_err(|e| at(RequestError::Destination(e)))?;
        if src.overlaps(dst) {
            return Err(at(RequestError::Overlap {
                src: entry.src,
                dst: entry.dst,
                len_bytes: entry.len_bytes,
            }));
        }
        total_bytes = total_bytes
            .checked_add(entry.len_bytes)
            .ok_or(GroupError::TooLong)?;
    }
    if total_bytes == 0 {
        return Err(GroupError::EmptyList);
    }
    Ok(total_bytes)
}
