//! A list of copies, spread over shared channels, with a result for each entry.
//!
//! [`ListCopy`] cuts a list into one window of consecutive bytes per channel, equal to within a
//! page. All engines finish together, whatever the lengths of the entries. The cut depends on the
//! lengths alone. No plan is stored: what a lost descriptor was to copy is found by cutting again.
//!
//! The list may be longer than the rings. Each [`poll`](ListCopy::poll) refills what has become
//! free. Any number of CPUs may copy lists over the same [`Channels`] at once.
//!
//! Work of a channel that stops is not moved to other channels. Its entries are reported, and the
//! caller submits them again or copies them itself.

mod cut;

use core::fmt;

use heapless::Vec;

use crate::addr::DmaRange;
use crate::clock::Deadline;
use crate::copy_channel::{CopyChannel, PrepError, Segment};
use crate::io::Clock;
use crate::lock::{DefaultLock, Lock};
use crate::request::{Notify, RequestError};
use crate::shared::{
    Announce, Cause, Channels, Choice, Loss, Losses, Motion, PollKind, Share, SharedChannel, Watch,
};

pub use cut::PAGE_LEN_BYTES;
use cut::{Cut, Pieces, Position};

/// Most descriptors that are put into a ring under one lock, so that no other owner waits long.
const CHUNK: usize = 32;

/// Descriptors after which a burst is not continued. A lost descriptor is traced by walking its
/// burst again, which takes some 10 us for this many.
const BURST_MAX: u64 = 4096;

/// What became of one entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryResult {
    /// The result is not known yet.
    Pending(SoFar),
    /// Every byte was copied.
    Copied,
    /// The engine failed a descriptor of it, with this raw code. The memory is the caller's again;
    /// parts of the destination may have been written.
    Failed(u8),
    /// A channel can never do this copy: address, length or alignment are not for it. The memory
    /// is the caller's again; parts of the destination may have been written.
    Rejected,
    /// The entry's channel stopped before all of it was copied. The memory is the caller's again;
    /// parts of the destination may have been written.
    Dropped,
    /// The entry's channel was not proved to have stopped: an engine may still read the source and
    /// write the destination. The memory is the caller's again after a reset of the channel's
    /// function.
    Unproven,
}

impl EntryResult {
    /// Whether every byte was copied.
    #[must_use]
    pub const fn is_copied(self) -> bool {
        matches!(self, Self::Copied)
    }

    /// Whether no engine reads or writes the entry's memory any more.
    #[must_use]
    pub const fn is_free(self) -> bool {
        !matches!(self, Self::Pending(_) | Self::Unproven)
    }

    const fn settled(self) -> Self {
        match self {
            Self::Pending(SoFar(Trouble::None)) => Self::Copied,
            Self::Pending(SoFar(Trouble::Dropped)) => Self::Dropped,
            Self::Pending(SoFar(Trouble::Rejected)) => Self::Rejected,
            Self::Pending(SoFar(Trouble::Failed(code))) => Self::Failed(code),
            Self::Pending(SoFar(Trouble::Unproven)) => Self::Unproven,
            settled => settled,
        }
    }

    /// Notes what befell a part of the entry; the worst is kept, and of the same the first.
    fn note(&mut self, trouble: Trouble) {
        if let Self::Pending(SoFar(so_far)) = self
            && so_far.rank() < trouble.rank()
        {
            *so_far = trouble;
        }
    }
}

impl Default for EntryResult {
    fn default() -> Self {
        Self::Pending(SoFar(Trouble::None))
    }
}

impl fmt::Display for EntryResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending(_) => f.write_str("not over"),
            Self::Copied => f.write_str("copied"),
            Self::Failed(code) => Cause::Failed(*code).fmt(f),
            Self::Rejected => f.write_str("not possible for its channel"),
            Self::Dropped => Cause::Dropped.fmt(f),
            Self::Unproven => Cause::Unproven.fmt(f),
        }
    }
}

/// What is known of an entry of which parts are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoFar(Trouble);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    Dropped,
    Rejected,
    Failed(u8),
    Unproven,
}

impl Trouble {
    const fn rank(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Dropped => 1,
            Self::Rejected => 2,
            Self::Failed(_) => 3,
            Self::Unproven => 4,
        }
    }
}

impl From<Cause> for Trouble {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Failed(code) => Self::Failed(code),
            Cause::Dropped => Self::Dropped,
            Cause::Unproven => Self::Unproven,
        }
    }
}

/// Why a list was not started. Nothing of it was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListError {
    /// The list has no entries.
    Empty,
    /// There is not one result for each entry.
    Results {
        /// Entries of the list.
        entries: usize,
        /// Results for it.
        results: usize,
    },
    /// An entry is not acceptable.
    Entry {
        /// The entry's index in the list.
        index: usize,
        /// What is wrong with it.
        error: RequestError,
    },
    /// The lengths add up to 2^64 or more.
    TooLong,
    /// No channel is in service.
    NoChannel,
}

impl fmt::Display for ListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the list has no entries"),
            Self::Results { entries, results } => {
                write!(f, "{results} results for {entries} entries")
            }
            Self::Entry { index, error } => write!(f, "entry {index}: {error}"),
            Self::TooLong => f.write_str("the list is 2^64 bytes long or longer"),
            Self::NoChannel => f.write_str("no channel is in service"),
        }
    }
}

impl core::error::Error for ListError {}

/// The deadline of a [`wait`](ListCopy::wait) passed. Engines may be at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListTimedOut;

impl fmt::Display for ListTimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the deadline passed before the list was copied")
    }
}

impl core::error::Error for ListTimedOut {}

/// Where a list stands.
///
/// The set is closed: what became of entries is in their results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum ListStatus {
    /// Every entry has its result.
    Done,
    /// Engines are at work.
    Pending,
}

impl fmt::Display for ListStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Pending => "under way",
        })
    }
}

/// Descriptors that follow each other in a ring and in the list.
#[derive(Debug)]
struct Burst {
    share: Share,
    start: Position,
    end: Position,
    bytes: u64,
}

/// One channel's window of the list.
#[derive(Debug)]
struct Lane {
    channel: usize,
    max_len_bytes: u64,
    ring_slots: usize,
    /// What was not submitted yet begins here.
    next: Position,
    /// Bytes that were not submitted yet.
    rest_bytes: u64,
    running: Option<Burst>,
    /// Only if one is running.
    waiting: Option<Burst>,
    motion: Motion,
}

impl Lane {
    const fn is_done(&self) -> bool {
        self.rest_bytes == 0 && self.running.is_none()
    }
}

/// A list of copies on its way through channels.
///
/// It borrows the results until it is dropped, so nobody reads them before they are known. A
/// `ListCopy` that is dropped before it is done stops the channels that have work of it. One that
/// is forgotten leaves its results [pending](EntryResult::Pending): the memory stays the engines'.
/// Its channels keep the losses of a forgotten list, and wait for their owner once the log is full.
///
/// ```
/// use ptdma::list::{EntryResult, ListCopy, ListStatus};
/// use ptdma::{Channels, Clock, CopyChannel, Notify, Segment};
/// # fn example<C: CopyChannel>(
/// #     channels: &Channels<C>, list: &[Segment; 3], clock: &impl Clock, hang: u64, end: u64,
/// # ) -> bool {
/// let mut results = [EntryResult::default(); 3];
/// let Ok(mut copy) = ListCopy::start(channels, list, &mut results, Notify::Silent, hang, clock.now()) else {
///     return false;
/// };
/// // The ring may be full of descriptors of an owner who never comes back: that is no hang.
/// while copy.poll(clock.now()) == ListStatus::Pending && clock.now() < end {
///     core::hint::spin_loop();
/// }
/// // Stops the channels if it is not done.
/// drop(copy);
/// results.iter().all(|result| result.is_copied())
/// # }
/// ```
#[must_use = "dropped before it is done, it stops the channels"]
pub struct ListCopy<
    'a,
    C: CopyChannel,
    L: Lock<SharedChannel<C>> = DefaultLock<SharedChannel<C>>,
    const N: usize = 16,
> {
    channels: &'a Channels<C, L, N>,
    list: &'a [Segment],
    results: &'a mut [EntryResult],
    lanes: Vec<Lane, N>,
    interrupts: bool,
    hang: u64,
    now: u64,
    settled: bool,
}

impl<C: CopyChannel, L: Lock<SharedChannel<C>>, const N: usize> fmt::Debug
    for ListCopy<'_, C, L, N>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListCopy")
            .field("lanes", &self.lanes)
            .finish_non_exhaustive()
    }
}

impl<'a, C: CopyChannel, L: Lock<SharedChannel<C>>, const N: usize> ListCopy<'a, C, L, N> {
    /// Spreads `list` over all channels in service, and starts them.
    ///
    /// Every entry is checked before the first descriptor is written. With [`Notify::Interrupt`]
    /// each doorbell asks for one interrupt, at the end of what it announces. The handler calls
    /// [`Channels::interrupt`], then the owner of the list [polls](Self::poll). A channel that has
    /// work and does not move for `hang` is stopped. `hang` and `now` are in the unit of the
    /// caller's clock.
    ///
    /// The entries' memory belongs to the engines until their results say otherwise. Whether
    /// entries overlap each other is not checked.
    ///
    /// # Errors
    ///
    /// [`ListError`]; nothing was submitted, and the results are as they were.
    pub fn start(
        channels: &'a Channels<C, L, N>,
        list: &'a [Segment],
        results: &'a mut [EntryResult],
        notify: Notify,
        hang: u64,
        now: u64,
    ) -> Result<Self, ListError> {
        let total_bytes = check(list)?;
        if list.len() != results.len() {
            return Err(ListError::Results {
                entries: list.len(),
                results: results.len(),
            });
        }
        let mut choice = Choice::new();
        channels.choose(N, None, None, None, &mut choice);
        let Some(cut) = Cut::new(total_bytes, choice.len(), channels.align_bytes()) else {
            return Err(ListError::NoChannel);
        };
        results.fill(EntryResult::default());
        let mut copy = Self {
            channels,
            list,
            results,
            lanes: Vec::new(),
            interrupts: notify == Notify::Interrupt,
            hang,
            now,
            settled: false,
        };
        let mut next = Position::START;
        for (window, &channel) in choice.iter().take(cut.windows()).enumerate() {
            let bytes = cut.window_bytes(window);
            let limits = channels.limits(channel);
            let lane = Lane {
                channel,
                max_len_bytes: limits.map_or(1, |limits| limits.max_len_bytes.max(1)),
                ring_slots: limits.map_or(0, |limits| limits.ring_slots),
                next,
                rest_bytes: bytes,
                running: None,
                waiting: None,
                motion: Motion::since(now),
            };
            next = next.skip(list, bytes);
            // There is room: a cut has at most as many windows as there are channels.
            let _ = copy.lanes.push(lane);
        }
        for index in 0..copy.lanes.len() {
            copy.refill(index, None);
        }
        Ok(copy)
    }

    /// Looks once at every channel that has work of the list, and refills its ring. At most one
    /// register is read for each channel, and none of a channel whose interrupt has told all.
    pub fn poll(&mut self, now: u64) -> ListStatus {
        self.poll_as(PollKind::Poll, now)
    }

    /// Does the same because an interrupt is overdue: it may have been lost.
    pub fn poll_overdue(&mut self, now: u64) -> ListStatus {
        self.poll_as(PollKind::Overdue, now)
    }

    fn poll_as(&mut self, kind: PollKind, now: u64) -> ListStatus {
        self.now = now;
        for index in 0..self.lanes.len() {
            let free_slots = self.reap(index, kind);
            self.refill(index, free_slots);
        }
        self.status()
    }

    fn status(&mut self) -> ListStatus {
        if !self.lanes.iter().all(Lane::is_done) {
            return ListStatus::Pending;
        }
        if !self.settled {
            self.settled = true;
            for result in self.results.iter_mut() {
                *result = result.settled();
            }
        }
        ListStatus::Done
    }

    /// Polls until every entry has its result; calls `relax` in between. The clock is the one
    /// whose unit [`start`](Self::start) was given.
    ///
    /// # Errors
    ///
    /// [`ListTimedOut`]: wait again, or [`stop`](Self::stop).
    pub fn wait<T: Clock + ?Sized>(
        &mut self,
        clock: &T,
        mut deadline: Deadline,
        mut relax: impl FnMut(),
    ) -> Result<(), ListTimedOut> {
        loop {
            if self.poll(clock.now()) == ListStatus::Done {
                return Ok(());
            }
            if deadline.expired(clock) {
                return Err(ListTimedOut);
            }
            relax();
        }
    }

    /// Stops the channels that have work of the list, and gives every entry its result. What other
    /// owners have on these channels is dropped too; their results say so.
    pub fn stop(&mut self, now: u64) {
        self.now = now;
        for index in 0..self.lanes.len() {
            self.reap(index, PollKind::Known);
            let Some(lane) = self.lanes.get(index) else {
                continue;
            };
            if lane.running.is_some() {
                self.channels.stop(lane.channel, now, false);
                self.reap(index, PollKind::Known);
            }
            self.drop_rest(index);
            self.abandon(index);
        }
        let _ = self.status();
    }

    /// Channels that the list was spread over.
    pub fn channels(&self) -> impl Iterator<Item = usize> {
        self.lanes.iter().map(|lane| lane.channel)
    }

    /// Channels that are not done with their part of the list.
    pub fn unfinished(&self) -> impl Iterator<Item = usize> {
        let unfinished = self.lanes.iter().filter(|lane| !lane.is_done());
        unfinished.map(|lane| lane.channel)
    }

    /// Takes note of what is over on a lane. Returns how many descriptors its ring would take, if
    /// that became known.
    fn reap(&mut self, index: usize, mut kind: PollKind) -> Option<usize> {
        let lane = self.lanes.get_mut(index)?;
        let mut free_slots = None;
        while let Some(burst) = &mut lane.running {
            let mut losses = Losses::new();
            let watch = Watch {
                share: &mut burst.share,
                motion: &mut lane.motion,
                now_ns: self.now,
                hang_ns: self.hang,
            };
            let status = self.channels.poll(lane.channel, watch, kind, &mut losses)?;
            kind = PollKind::Known;
            free_slots = Some(status.free_slots);
            for loss in &losses {
                note_loss(self.results, self.list, burst, lane.max_len_bytes, loss);
            }
            if !status.over {
                break;
            }
            if !losses.is_empty() {
                self.channels.let_go(lane.channel, burst.share.count());
            }
            self.channels.sub_load(lane.channel, burst.bytes);
            lane.running = lane.waiting.take();
        }
        free_slots
    }

    /// Puts what comes next on a lane into its ring: all that fits, once half of it is free.
    fn refill(&mut self, index: usize, free_slots: Option<usize>) {
        let Some(lane) = self.lanes.get_mut(index) else {
            return;
        };
        if lane.rest_bytes == 0 {
            return;
        }
        let mut free = match free_slots {
            Some(free) => free,
            None => self.channels.free_slots(lane.channel),
        };
        if !self.channels.is_active(lane.channel) {
            self.drop_rest(index);
            return;
        }
        let half = lane.ring_slots / 2;
        if lane.running.is_some() && free < half.max(1) {
            return;
        }
        let mut rang = true;
        while free != 0 && lane.rest_bytes != 0 && lane.waiting.is_none() {
            let most = free.min(CHUNK);
            let start = lane.next;
            let pieces = Pieces::new(self.list, start, lane.rest_bytes, lane.max_len_bytes);
            let interrupt = self.interrupts;
            let accepted = self.channels.submit(lane.channel, self.now, |channel| {
                let mut copies = pieces.clone().take(most).map(|piece| piece.copy);
                let prepared = channel.prep_all(&mut copies, None);
                let more = pieces.clone().nth(prepared.count).is_some();
                let announce = Announce {
                    ring: !more || prepared.count >= free,
                    interrupt,
                    offered: prepared.count,
                    coalesced: 0,
                };
                (prepared, announce)
            });
            let mut pieces = pieces;
            let copied = pieces.by_ref().take(accepted.count);
            let (count, bytes) = copied.fold((0_usize, 0_u64), |(count, bytes), piece| {
                let bytes = bytes.saturating_add(piece.copy.len_bytes);
                (count.saturating_add(1), bytes)
            });
            lane.next = pieces.position();
            lane.rest_bytes = lane.rest_bytes.saturating_sub(bytes);
            rang = accepted.rang || (rang && accepted.count == 0);
            free = free.saturating_sub(accepted.count);
            if accepted.count != 0 {
                let burst = Burst {
                    share: accepted.share,
                    start,
                    end: lane.next,
                    bytes: accepted.bytes,
                };
                // A channel that miscounts is not asked what its descriptors copy.
                let honest = accepted.bytes == bytes && accepted.count == count.min(most);
                add(lane, burst);
                if !honest {
                    self.distrust(index);
                    return;
                }
            }
            match accepted.error {
                None if accepted.count == 0 => break,
                None => {}
                Some(PrepError::Rejected) => {
                    // It stays a part of the entry's bytes, and is nobody's descriptor.
                    let mut behind =
                        Pieces::new(self.list, lane.next, lane.rest_bytes, lane.max_len_bytes);
                    let Some(piece) = behind.next() else { break };
                    if let Some(result) = self.results.get_mut(piece.entry) {
                        result.note(Trouble::Rejected);
                    }
                    lane.next = behind.position();
                    lane.rest_bytes = lane.rest_bytes.saturating_sub(piece.copy.len_bytes);
                }
                Some(PrepError::Full | PrepError::Faulted) => break,
            }
        }
        if !rang {
            let _ = self.channels.ring(lane.channel, self.interrupts);
        }
    }

    /// What was not submitted of a lane is not going to be.
    fn drop_rest(&mut self, index: usize) {
        let Some(lane) = self.lanes.get_mut(index) else {
            return;
        };
        for piece in Pieces::new(self.list, lane.next, lane.rest_bytes, lane.max_len_bytes) {
            if let Some(result) = self.results.get_mut(piece.entry) {
                result.note(Trouble::Dropped);
            }
        }
        lane.rest_bytes = 0;
    }

    /// The channel of a lane has said what cannot be: it is stopped, and nothing that it has is
    /// taken for copied.
    #[cold]
    fn distrust(&mut self, index: usize) {
        self.abandon(index);
        self.drop_rest(index);
    }

    /// Takes a lane's descriptors back, whatever became of them.
    #[cold]
    fn abandon(&mut self, index: usize) {
        let Some(lane) = self.lanes.get_mut(index) else {
            return;
        };
        while let Some(mut burst) = lane.running.take() {
            lane.running = lane.waiting.take();
            let unproven = self
                .channels
                .abandon(lane.channel, &mut burst.share, self.now);
            self.channels.sub_load(lane.channel, burst.bytes);
            let loss = if unproven {
                Trouble::Unproven
            } else {
                Trouble::Dropped
            };
            // Which of its descriptors are over is not asked: it counts as lost as a whole.
            let partly = usize::from(burst.end.offset_bytes != 0);
            let entries = burst.end.entry.saturating_sub(burst.start.entry);
            let lost = self.results.iter_mut().skip(burst.start.entry);
            for result in lost.take(entries.saturating_add(partly)) {
                result.note(loss);
            }
        }
    }
}

impl<C: CopyChannel, L: Lock<SharedChannel<C>>, const N: usize> Drop for ListCopy<'_, C, L, N> {
    fn drop(&mut self) {
        if self.status() == ListStatus::Pending {
            self.stop(self.now);
        }
    }
}

/// Adds descriptors that were accepted: to the newest burst if they continue it, else as a new one,
/// for which there is room.
fn add(lane: &mut Lane, burst: Burst) {
    match lane.waiting.as_mut().or(lane.running.as_mut()) {
        None => lane.running = Some(burst),
        Some(newest)
            if newest.end == burst.start
                && newest.share.is_continued_by(&burst.share)
                && newest.share.is_untold()
                && newest.share.count() < BURST_MAX =>
        {
            newest.share.join(burst.share);
            newest.end = burst.end;
            newest.bytes = newest.bytes.saturating_add(burst.bytes);
        }
        Some(_) => lane.waiting = Some(burst),
    }
}

/// Marks the entries whose pieces were lost.
#[cold]
fn note_loss(
    results: &mut [EntryResult],
    list: &[Segment],
    burst: &Burst,
    max_len_bytes: u64,
    loss: &Loss,
) {
    let skip = usize::try_from(burst.share.index_of(loss.first)).unwrap_or(usize::MAX);
    let count = usize::try_from(loss.end.since(loss.first)).unwrap_or(usize::MAX);
    let pieces = Pieces::new(list, burst.start, burst.bytes, max_len_bytes);
    for piece in pieces.skip(skip).take(count) {
        if let Some(result) = results.get_mut(piece.entry) {
            result.note(loss.cause.into());
        }
    }
}

/// Checks every entry and adds up the lengths.
fn check(list: &[Segment]) -> Result<u64, ListError> {
    let mut total_bytes = 0_u64;
    for (index, entry) in list.iter().enumerate() {
        let at = |error| ListError::Entry { index, error };
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
            .ok_or(ListError::TooLong)?;
    }
    if total_bytes == 0 {
        return Err(ListError::Empty);
    }
    Ok(total_bytes)
}
