//! The first look at a batch: is it sound, and how much work is it?

use core::fmt;

use ptdma::DmaAddr;

use crate::folio::Folio;

/// Longest batch in bytes: 2^56, so that shares of it can be computed for 128 channels without
/// overflow. Far over the 2^48 bytes that an engine can address.
pub const MAX_BATCH_BYTES: u64 = 1 << 56;

/// A batch cannot be run as it was given. Nothing was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadInput {
    /// There is no channel at all, and none was ever there.
    NoChannels,
    /// The slice for outcomes is shorter than the batch.
    TooManyFolios {
        /// Outcomes that the slice holds.
        room: usize,
    },
    /// A folio of no bytes.
    EmptyFolio {
        /// Its index.
        folio: usize,
    },
    /// Source or destination ends over the limit of addresses (or wraps around).
    OutOfRange {
        /// Its index.
        folio: usize,
        /// The start of the part that is out of range.
        addr: DmaAddr,
        /// Its length in bytes.
        len_bytes: u64,
    },
    /// Source, destination or length is not aligned as the channels need it.
    Misaligned {
        /// Its index.
        folio: usize,
        /// The alignment in bytes.
        align_bytes: u64,
    },
    /// The destination of one folio overlaps the source or the destination of the other one, or
    /// its own source if both are the same folio.
    Overlap {
        /// The folio that is written.
        folio: usize,
        /// The folio that it overlaps.
        other: usize,
    },
    /// All folios together are over [`MAX_BATCH_BYTES`].
    TooManyBytes,
    /// The scratch memory for the overlap check holds fewer than two intervals per folio.
    ScratchTooSmall {
        /// Intervals that it holds.
        room: usize,
    },
}

impl fmt::Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoChannels => f.write_str("no channels: add one before running a batch"),
            Self::TooManyFolios { room } => {
                write!(
                    f,
                    "more folios than the {room} that outcomes were reserved for"
                )
            }
            Self::EmptyFolio { folio } => write!(f, "folio {folio} has no bytes"),
            Self::OutOfRange {
                folio,
                addr,
                len_bytes,
            } => write!(
                f,
                "folio {folio}: {len_bytes:#x} bytes at {addr} end out of range"
            ),
            Self::Misaligned { folio, align_bytes } => {
                write!(f, "folio {folio} is not aligned to {align_bytes} bytes")
            }
            Self::Overlap { folio, other } if folio == other => {
                write!(f, "folio {folio}: source and destination overlap")
            }
            Self::Overlap { folio, other } => {
                write!(f, "the destination of folio {folio} overlaps folio {other}")
            }
            Self::TooManyBytes => f.write_str("more bytes than a batch can have"),
            Self::ScratchTooSmall { room } => write!(
                f,
                "scratch memory for {room} intervals, but two per folio are needed"
            ),
        }
    }
}

impl core::error::Error for BadInput {}

/// What a folio is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// One past the highest address that is allowed.
    pub addr_limit: u64,
    /// Alignment of addresses and lengths: a power of two.
    pub align_bytes: u64,
    /// Most folios.
    pub max_folios: usize,
    /// Shortest part that a run is cut into, in bytes; see [`CutRules`](crate::CutRules).
    pub min_part_bytes: u64,
}

/// How much work a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Survey {
    /// Folios.
    pub folios: usize,
    /// Bytes of all folios.
    pub bytes: u64,
    /// Runs: folios that follow each other on both sides count as one.
    pub runs: u64,
    /// Parts that the runs can be cut into without going below the shortest part: more channels
    /// than this are of no use.
    pub parts: u64,
}

impl Survey {
    /// Walks the batch once and checks every folio for itself. Whether folios overlap each other
    /// is another question, see [`OverlapCheck`](crate::OverlapCheck).
    ///
    /// # Errors
    ///
    /// [`BadInput`] about the first folio that is not in order.
    #[inline]
    pub fn of(folios: impl Iterator<Item = Folio>, bounds: &Bounds) -> Result<Self, BadInput> {
        let align_mask = bounds.align_bytes.wrapping_sub(1);
        let twice_min_part = bounds.min_part_bytes.max(1).saturating_mul(2);
        let parts_of = |run_bytes: u64| match run_bytes {
            0 => 0,
            short if short < twice_min_part => 1,
            long => long / bounds.min_part_bytes.max(1),
        };
        let mut survey = Self::default();
        let (mut next_src, mut next_dst, mut run_bytes) = (0, 0, 0);
        for folio in folios {
            let (src, dst, len) = (folio.src.get(), folio.dst.get(), folio.len_bytes);
            // The highest start that still ends in range; wraps to something huge (and is then
            // caught by the second test) if the folio is longer than everything.
            let last_start = bounds.addr_limit.wrapping_sub(len);
            let sound = len.wrapping_sub(1) < bounds.addr_limit
                && src <= last_start
                && dst <= last_start
                && (src | dst | len) & align_mask == 0
                && src.wrapping_sub(dst) >= len
                && dst.wrapping_sub(src) >= len
                && survey.folios < bounds.max_folios;
            if !sound {
                return Err(complaint(&folio, survey.folios, bounds));
            }
            if src != next_src || dst != next_dst || run_bytes == 0 {
                survey.parts = survey.parts.wrapping_add(parts_of(run_bytes));
                survey.runs = survey.runs.wrapping_add(1);
                run_bytes = 0;
            }
            // None of these can overflow: the folio ends below 2^64, and a batch of 2^56 bytes is
            // refused below before sums of it are used.
            next_src = src.wrapping_add(len);
            next_dst = dst.wrapping_add(len);
            run_bytes = run_bytes.saturating_add(len);
            survey.bytes = survey.bytes.saturating_add(len);
            survey.folios = survey.folios.wrapping_add(1);
        }
        survey.parts = survey.parts.wrapping_add(parts_of(run_bytes));
        if survey.bytes > MAX_BATCH_BYTES {
            return Err(BadInput::TooManyBytes);
        }
        Ok(survey)
    }
}

/// Says what is wrong with a folio that did not pass.
#[cold]
fn complaint(folio: &Folio, index: usize, bounds: &Bounds) -> BadInput {
    let len_bytes = folio.len_bytes;
    let out_of_range = |addr: DmaAddr| match addr.get().checked_add(len_bytes) {
        Some(end) => end > bounds.addr_limit,
        None => true,
    };
    if index >= bounds.max_folios {
        BadInput::TooManyFolios {
            room: bounds.max_folios,
        }
    } else if len_bytes == 0 {
        BadInput::EmptyFolio { folio: index }
    } else if let Some(addr) = [folio.src, folio.dst]
        .into_iter()
        .find(|&addr| out_of_range(addr))
    {
        BadInput::OutOfRange {
            folio: index,
            addr,
            len_bytes,
        }
    } else if (folio.src.get() | folio.dst.get() | len_bytes) & bounds.align_bytes.wrapping_sub(1)
        != 0
    {
        BadInput::Misaligned {
            folio: index,
            align_bytes: bounds.align_bytes,
        }
    } else {
        BadInput::Overlap {
            folio: index,
            other: index,
        }
    }
}
