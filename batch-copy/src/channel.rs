//! What a batch needs of a copy engine.

use ptdma::DmaAddr;

/// Names a descriptor of one channel: counts up from 1 by one per accepted descriptor, is never
/// used again. 0 is "none yet".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
#[repr(transparent)]
pub struct Cookie(pub u64);

/// One contiguous copy, in the bus addresses of the channel that does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Segment {
    /// First byte to read.
    pub src: DmaAddr,
    /// First byte to write.
    pub dst: DmaAddr,
    /// Bytes, not zero.
    pub len_bytes: u64,
}

/// What a channel can do; constant over its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest copy of one descriptor, in bytes.
    pub max_len_bytes: u64,
    /// Required alignment of source, destination and length: a power of two, 1 for none.
    pub align_bytes: u64,
    /// NUMA node of the channel, if known.
    pub node: Option<u16>,
    /// Descriptors that fit into an empty ring.
    pub ring_slots: usize,
}

/// Why a descriptor was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrepError {
    /// The ring is full; later it may not be.
    Full,
    /// This copy can never be done by this channel (address, length or alignment).
    Rejected,
    /// The channel is not in service.
    Dead,
}

/// An answer of [`CopyChannel::poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Every descriptor up to and including this one is over: copied, or reported as failed by
    /// this or an earlier poll.
    pub completed: Cookie,
    /// A descriptor that failed, at most one per poll; never above `completed`, never twice.
    pub failure: Option<Failure>,
    /// Whether the channel can go on.
    pub health: Health,
}

/// A failed descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub cookie: Cookie,
    /// The engine's raw error code.
    pub code: u8,
}

/// Whether a channel is in service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// In service.
    Alive,
    /// Out of service for good (gone, or beyond recovery). What was submitted above `completed`
    /// will not be reported any more; [`CopyChannel::terminate`] says if it can still be written.
    Dead,
}

/// An answer of [`CopyChannel::terminate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The last descriptor that certainly was copied, or was reported as failed before. What was
    /// submitted above it will never be started again by the channel.
    pub completed: Cookie,
    /// Whether it is certain that the engine neither reads nor writes any of it any more.
    pub proven: bool,
    /// Whether the channel takes work again.
    pub health: Health,
}

/// A copy engine with a ring of descriptors that it works off in order.
///
/// Everything is called with the channel's lock held, so nothing here may sleep; every call is
/// bounded in time. `ptdma` channels implement it, [`CpuChannel`](crate::CpuChannel) does, and so
/// can any engine that completes in order.
///
/// # What an implementer promises
///
/// - Cookies of consecutive accepted [`prep`](Self::prep)s are consecutive.
/// - Descriptors end in the order of their cookies.
/// - After a failure the channel goes on with the descriptor behind it, but not before the
///   [`poll`](Self::poll) that reports the failure: the caller only polls when it has room to
///   keep one, which is how no failure is ever lost.
pub trait CopyChannel {
    /// What the channel can do. Asked once.
    fn limits(&self) -> Limits;

    /// Descriptors that [`prep`](Self::prep) would accept now. Touches no hardware.
    fn free_slots(&self) -> usize;

    /// Puts a copy into the ring; with `interrupt`, the engine raises one when it is done. The
    /// engine does not start on it before [`issue_pending`](Self::issue_pending).
    ///
    /// # Errors
    ///
    /// [`PrepError`]; then nothing changed.
    fn prep(&mut self, copy: Segment, interrupt: bool) -> Result<Cookie, PrepError>;

    /// Rings the doorbell: the engine may work on everything that was prepared.
    fn issue_pending(&mut self);

    /// Asks the engine how far it is, and lets it go on behind a failed descriptor.
    /// `now_ns` is the time on the clock of the batch.
    fn poll(&mut self, now_ns: u64) -> Progress;

    /// Stops the engine and drops everything that it has not finished, other batches' work too.
    fn terminate(&mut self, now_ns: u64) -> Stopped;
}
