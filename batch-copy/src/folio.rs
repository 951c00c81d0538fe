//! What goes in and what comes out: folios and their outcomes.

use core::fmt;

use ptdma::{DmaAddr, DmaRange};

/// One folio to copy: so many bytes from here to there.
///
/// The addresses are the caller's: physical addresses in a kernel, bus addresses where nobody
/// translates. What a channel is given is what the caller's [`Mapper`](crate::Mapper) makes of
/// them, see there.
///
/// The fields are closed: a folio is a source, a destination and a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Folio {
    /// First byte of the source.
    pub src: DmaAddr,
    /// First byte of the destination.
    pub dst: DmaAddr,
    /// Bytes to copy; not zero. Any length is allowed, folios of a kernel are powers of two.
    pub len_bytes: u64,
}

impl Folio {
    /// A folio of `len_bytes` bytes at `src`, to be copied to `dst`. Checked when a batch is run.
    #[must_use]
    #[inline]
    pub const fn new(src: DmaAddr, dst: DmaAddr, len_bytes: u64) -> Self {
        Self {
            src,
            dst,
            len_bytes,
        }
    }

    /// Whether `next` continues this folio on both sides.
    #[inline]
    pub(crate) const fn is_followed_by(&self, next: &Self) -> bool {
        let len = self.len_bytes;
        self.src.get().wrapping_add(len) == next.src.get()
            && self.dst.get().wrapping_add(len) == next.dst.get()
    }

    /// A folio from two ranges, for callers whose source and destination are described apart.
    ///
    /// # Errors
    ///
    /// [`LengthMismatch`] if the ranges differ in length.
    pub const fn from_ranges(src: DmaRange, dst: DmaRange) -> Result<Self, LengthMismatch> {
        if src.len_bytes() != dst.len_bytes() {
            return Err(LengthMismatch {
                src_len_bytes: src.len_bytes(),
                dst_len_bytes: dst.len_bytes(),
            });
        }
        Ok(Self::new(src.start(), dst.start(), src.len_bytes()))
    }
}

/// Source and destination of a folio differ in length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LengthMismatch {
    /// Length of the source in bytes.
    pub src_len_bytes: u64,
    /// Length of the destination in bytes.
    pub dst_len_bytes: u64,
}

impl fmt::Display for LengthMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "source has {:#x} bytes, destination {:#x}",
            self.src_len_bytes, self.dst_len_bytes
        )
    }
}

impl core::error::Error for LengthMismatch {}

/// What happened to one folio.
///
/// The set is closed: what will grow are the reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Copied, every byte of it, by engines.
    Dma,
    /// Copied, every byte of it, at least a part by the CPU.
    Cpu,
    /// Not copied: at least a part of it was tried and failed. Nobody writes to it any more,
    /// unless the reason is [`FailReason::Quarantined`].
    Failed(FailReason),
    /// Not copied, or not wholly, for want of an engine, a mapping or time. Nobody writes to it
    /// any more.
    NotAttempted(SkipReason),
}

impl Outcome {
    /// Whether every byte of the folio was copied.
    #[must_use]
    pub const fn is_copied(self) -> bool {
        matches!(self, Self::Dma | Self::Cpu)
    }

    /// Whether an engine may still write to the destination or read from the source: the memory
    /// must not be given to anybody else.
    #[must_use]
    pub const fn is_quarantined(self) -> bool {
        matches!(self, Self::Failed(FailReason::Quarantined))
    }

    /// How much an outcome outweighs another one for the same folio, parts of which fared
    /// differently.
    const fn rank(self) -> u8 {
        match self {
            Self::Failed(FailReason::Unaccounted) => 0,
            Self::Dma => 1,
            Self::Cpu => 2,
            Self::NotAttempted(_) => 3,
            Self::Failed(FailReason::Quarantined) => 5,
            Self::Failed(_) => 4,
        }
    }

    /// The worse of two outcomes of parts of one folio.
    #[must_use]
    pub(crate) const fn worse(self, other: Self) -> Self {
        if other.rank() > self.rank() {
            other
        } else {
            self
        }
    }
}

/// Why a folio was tried and not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailReason {
    /// The engine reported an error for a descriptor; its raw code.
    Engine(u8),
    /// The CPU's copy failed, for example on poisoned memory.
    CpuCopy,
    /// The engine could not be proven to have stopped. It may still read the source and write the
    /// destination: both have to stay out of use until the function was reset.
    Quarantined,
    /// The books did not balance at the end of the batch, so nothing is claimed for this folio.
    /// Only a broken caller (an iterator whose clones differ) or a bug can cause it.
    Unaccounted,
}

/// Why a folio was not tried, or not to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// No live channel was left, and no CPU copy was allowed.
    NoChannel,
    /// The mapper refused a part of it.
    Unmapped,
    /// The channel refused a part of it: the mapped address or length is out of its limits.
    Rejected,
    /// The batch's deadline passed first.
    Deadline,
    /// The policy left the batch to the CPU.
    Declined,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dma => f.write_str("copied by DMA"),
            Self::Cpu => f.write_str("copied by the CPU"),
            Self::Failed(reason) => write!(f, "failed: {reason}"),
            Self::NotAttempted(reason) => write!(f, "not attempted: {reason}"),
        }
    }
}

impl fmt::Display for FailReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Engine(code) => write!(f, "engine error {code}"),
            Self::CpuCopy => f.write_str("CPU copy"),
            Self::Quarantined => f.write_str("quarantined, the engine may still write to it"),
            Self::Unaccounted => f.write_str("unaccounted"),
        }
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoChannel => "no channel",
            Self::Unmapped => "not mapped",
            Self::Rejected => "outside the channel's limits",
            Self::Deadline => "deadline",
            Self::Declined => "declined",
        })
    }
}
