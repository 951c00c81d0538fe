//! What the layers above need of a copy engine.

use core::fmt;

use crate::addr::DmaAddr;
use crate::cookie::Cookie;

/// One contiguous copy, in the bus addresses of the channel that does it.
///
/// The fields are closed: a copy is a source, a destination and a length. Their order is that of C,
/// so that a mapper written in C can fill them in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
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
#[non_exhaustive]
pub struct ChannelLimits {
    /// Longest copy of one descriptor, in bytes.
    pub max_len_bytes: u64,
    /// Required alignment of source, destination and length: a power of two, 1 for none.
    pub align_bytes: u64,
    /// NUMA node of the channel, if known.
    pub node: Option<u16>,
    /// Descriptors that fit into an empty ring.
    pub ring_slots: usize,
    /// What it shares its way to memory with: channels of the same number are behind one PCI Express
    /// port, and its bandwidth is theirs together. `None` if not known: a port of its own. A hint
    /// for the choice of channels; a wrong one costs speed.
    pub port: Option<u32>,
}

impl ChannelLimits {
    /// Limits of a channel without alignment, on no known node and port.
    #[must_use]
    #[inline]
    pub const fn new(max_len_bytes: u64, ring_slots: usize) -> Self {
        Self {
            max_len_bytes,
            align_bytes: 1,
            node: None,
            ring_slots,
            port: None,
        }
    }

    /// The same with a longest copy that is a multiple of the alignment: behind one that is not,
    /// nothing could begin.
    pub(crate) const fn whole_units(self) -> Self {
        let over = match self.max_len_bytes.checked_rem(self.align_bytes) {
            Some(over) => over,
            None => 0,
        };
        Self {
            max_len_bytes: self.max_len_bytes.saturating_sub(over),
            ..self
        }
    }
}

/// Why a descriptor was not accepted.
///
/// The set is closed: a caller tries the copy later, gives the copy up, or gives the channel up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrepError {
    /// The ring is full; later it may not be.
    Full,
    /// The channel can never do this copy (address, length or alignment).
    Rejected,
    /// The channel does not work.
    Faulted,
}

impl fmt::Display for PrepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the ring is full",
            Self::Rejected => {
                "the channel cannot do this copy: address, length or alignment is out of its limits"
            }
            Self::Faulted => "the channel has a fault",
        })
    }
}

impl core::error::Error for PrepError {}

/// An answer of [`CopyChannel::prep_all`].
///
/// The fields are closed: an implementer of [`CopyChannel`] answers each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Prepared {
    /// The first one accepted; those of the others follow it.
    pub first: Option<Cookie>,
    /// How many were accepted.
    pub count: usize,
    /// Bytes of those, exactly: the caller goes on behind them.
    pub bytes: u64,
    /// Why the one behind them was not, if there was one.
    pub error: Option<PrepError>,
}

/// An answer of [`CopyChannel::poll`] and its kin.
///
/// The fields are closed: an implementer of [`CopyChannel`] answers each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyProgress {
    /// Every descriptor before this one is over: copied, or reported as failed by this or an
    /// earlier answer. Never goes back.
    pub done_before: Cookie,
    /// A descriptor that failed, at most one per answer; before `done_before`, never told twice.
    pub failure: Option<CopyFailure>,
    /// Whether the engine was set going again with descriptors that are not over: to find one that
    /// failed, or because it stood. Nothing more is over yet, but it has time again.
    pub begun_again: bool,
    /// Whether the channel can go on.
    pub health: Health,
}

impl CopyProgress {
    /// All before `done_before` is over, and none of it failed that was not reported before.
    #[inline]
    pub(crate) const fn up_to(done_before: Cookie) -> Self {
        Self {
            done_before,
            failure: None,
            begun_again: false,
            health: Health::Alive,
        }
    }
}

/// A failed descriptor.
///
/// The fields are closed: an implementer of [`CopyChannel`] answers each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyFailure {
    /// Which.
    pub cookie: Cookie,
    /// The engine's raw error code.
    pub code: u8,
}

impl fmt::Display for CopyFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "descriptor {} failed with code {}",
            self.cookie, self.code
        )
    }
}

impl core::error::Error for CopyFailure {}

/// Whether a channel works.
///
/// The set is closed: a channel takes work or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// The channel takes and does work.
    Alive,
    /// The channel does no work, and reports nothing any more for what it still has.
    /// [`CopyChannel::terminate`] says whether that can still be written, and whether the channel
    /// works again afterwards.
    Faulted,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alive => "the channel works",
            Self::Faulted => "the channel has a fault",
        })
    }
}

/// An answer of [`CopyChannel::terminate`].
///
/// The fields are closed: an implementer of [`CopyChannel`] answers each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Every descriptor before this one certainly was copied, or was reported as failed. This one
    /// and all behind it were dropped: the channel will never report them.
    pub done_before: Cookie,
    /// Whether it is certain that the engine neither reads nor writes anything any more that was
    /// dropped.
    pub proven: bool,
    /// Whether the channel works again.
    pub health: Health,
}

/// A copy engine with a ring of descriptors that it works off in order.
///
/// Everything is called with the channel's lock held, so nothing here may sleep; every call is
/// bounded in time. [`PtdmaQueue`](crate::PtdmaQueue) implements it, the
/// `CpuChannel` of `batch-copy` does, and so can other engines.
///
/// The channel of an engine that ends descriptors in any order keeps their statuses. It answers with
/// the oldest descriptor that is not over, and with one failure at a time. Engines that end in order
/// pay nothing for those that do not.
///
/// Several channels may belong to one function. The mapper knows which, and maps memory once for all
/// of them. A stop that takes time is none of the channel's: `terminate` answers that nothing is
/// proven, and the batch asks its caller, who may sleep, for the proof.
///
/// # What an implementer promises
///
/// - Cookies of consecutive accepted [`prep`](Self::prep)s are consecutive, and none is ever
///   used again, also not after [`terminate`](Self::terminate).
/// - Descriptors are reported in the order of their cookies.
/// - No answer passes over a failure that is not reported: the next descriptor is over in a later
///   answer at the earliest. The caller only asks when it has room to keep one, so no failure is
///   ever lost.
pub trait CopyChannel {
    /// What the channel can do. Asked once.
    fn limits(&self) -> ChannelLimits;

    /// The cookie that the next accepted descriptor gets. Asked once, when nothing is outstanding.
    fn next_cookie(&self) -> Cookie;

    /// Descriptors that [`prep`](Self::prep) would accept now. Touches no hardware.
    fn free_slots(&self) -> usize;

    /// Puts a copy into the ring; with `interrupt`, the engine raises one when it is done (the
    /// refill mark of a long batch). The engine does not start on it before [`issue_pending`](Self::issue_pending).
    ///
    /// # Errors
    ///
    /// [`PrepError`]; then nothing changed.
    fn prep(&mut self, copy: Segment, interrupt: bool) -> Result<Cookie, PrepError>;

    /// Puts copies into the ring, until one is not accepted or the ring is full. With a `mark`,
    /// the one with that index raises an interrupt when it is done.
    ///
    /// What [`prep`](Self::prep) does one at a time; engines that can do better should.
    #[inline]
    fn prep_all(&mut self, copies: impl Iterator<Item = Segment>, mark: Option<usize>) -> Prepared {
        let mut prepared = Prepared::default();
        for copy in copies {
            match self.prep(copy, mark == Some(prepared.count)) {
                Ok(cookie) => {
                    prepared.first.get_or_insert(cookie);
                    prepared.count = prepared.count.wrapping_add(1);
                    prepared.bytes = prepared.bytes.wrapping_add(copy.len_bytes);
                }
                Err(error) => {
                    prepared.error = Some(error);
                    break;
                }
            }
        }
        prepared
    }

    /// Rings the doorbell: the engine may work on everything that was prepared. With
    /// `interrupt`, the newest of it raises one. Does nothing if nothing was prepared.
    fn issue_pending(&mut self, interrupt: bool);

    /// Looks how far the engine is, and lets it go on behind a failed descriptor. `now_ns` is the
    /// time on the clock of whoever looks; owners of work may have different ones.
    fn poll(&mut self, now_ns: u64) -> CopyProgress;

    /// What [`poll`](Self::poll) would answer, if that is no more than how far the engine is. All
    /// before the answer is over, no failure is unreported, and the channel works. `None` if there
    /// may be more to say; `poll` is asked then, and says it.
    ///
    /// For engines with a shorter way to that.
    #[inline]
    fn poll_head(&mut self, _now_ns: u64) -> Option<Cookie> {
        None
    }

    /// The interrupt handler's way to look: acknowledges the interrupt too.
    fn interrupt(&mut self, now_ns: u64) -> CopyProgress {
        self.poll(now_ns)
    }

    /// Looks because an interrupt is overdue: it may have been lost.
    fn overdue(&mut self, now_ns: u64) -> CopyProgress {
        self.poll(now_ns)
    }

    /// Stops the engine and drops everything that it has not finished, other owners' work too.
    /// Bounded: an engine that does not stop is reported as not proven.
    fn terminate(&mut self, now_ns: u64) -> Stopped;
}
