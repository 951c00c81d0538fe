//! The first look at a batch: is it sound, and how much work is it?

use core::fmt;

use heapless::Vec;
use ptdma::DmaAddr;

use crate::folio::Folio;
use crate::plan::CutRules;
use crate::source::FolioSource;

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
        /// The folio's index.
        folio: usize,
    },
    /// Source or destination ends over the limit of addresses (or wraps around).
    OutOfRange {
        /// The folio's index.
        folio: usize,
        /// The start of the part that is out of range.
        addr: DmaAddr,
        /// The folio's length in bytes.
        len_bytes: u64,
    },
    /// Source, destination or length is not aligned as the channels need it.
    Misaligned {
        /// The folio's index.
        folio: usize,
        /// The alignment in bytes.
        align_bytes: u64,
    },
    /// The alignment that the [rules](crate::CutRules::align_bytes) or a channel ask for is no
    /// power of two.
    OddAlignment {
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
            Self::OddAlignment { align_bytes } => {
                write!(f, "an alignment of {align_bytes} bytes is no power of two")
            }
            Self::Overlap { folio, other } if folio == other => {
                write!(f, "folio {folio}: source and destination overlap")
            }
            Self::Overlap { folio, other } => {
                write!(f, "the destination of folio {folio} overlaps folio {other}")
            }
            Self::TooManyBytes => {
                write!(
                    f,
                    "more than the {MAX_BATCH_BYTES:#x} bytes that a batch can have"
                )
            }
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
#[non_exhaustive]
pub struct Bounds {
    /// One past the highest address that is allowed.
    pub addr_limit: u64,
    /// Alignment of addresses and lengths: a power of two.
    pub align_bytes: u64,
    /// Most folios.
    pub max_folios: usize,
    /// Shortest part that a run is cut into, in bytes; see [`CutRules`](crate::CutRules).
    pub min_part_bytes: u64,
    /// Parts that are enough: as many as there are channels.
    pub parts_enough: u64,
}

/// Everything that PTDMA can reach, without alignment and with all parts counted.
impl Default for Bounds {
    fn default() -> Self {
        Self {
            addr_limit: DmaAddr::LIMIT,
            align_bytes: 1,
            max_folios: usize::MAX,
            min_part_bytes: CutRules::default().min_part_bytes,
            parts_enough: u64::MAX,
        }
    }
}

/// Places of the batch that a survey remembers. In a usual batch of 512 folios the next one is at
/// most 32 steps away, which the few cuts of a plan can afford. Eight batches in flight stay within
/// 64 KiB.
const LANDMARKS: usize = 16;

/// Folios between two landmarks at first, so that 512 folios need none twice; doubled whenever
/// all are used up.
const FIRST_STRIDE: usize = 32;

/// Longest stride: so few folios of at most 2^48 bytes that their sum does not wrap before it is
/// looked at. Batches of more than two million folios have no landmarks in their rear part.
const MAX_STRIDE: usize = 1 << 15;

/// How much work a batch is.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Survey {
    /// Folios.
    pub folios: usize,
    /// Bytes of all folios.
    pub bytes: u64,
    /// Parts that the batch can be cut into without going below the shortest part: more channels
    /// than this are of no use. Folios that follow each other on both sides count as one run; a
    /// run is one part, or as many as its length allows. Not counted any further than [`Bounds::parts_enough`].
    pub parts: u64,
    /// Bytes before folio `n * stride`.
    landmarks: Vec<u64, LANDMARKS>,
    stride: usize,
}

impl Survey {
    /// Walks the batch once and checks every folio for itself. Whether folios overlap each other
    /// is another question, see [`OverlapCheck`](crate::OverlapCheck).
    ///
    /// # Errors
    ///
    /// [`BadInput`] about the first folio that is not in order.
    #[inline]
    pub fn of<S: FolioSource + ?Sized>(source: &S, bounds: &Bounds) -> Result<Self, BadInput> {
        let mut survey = Self::new();
        survey.take(source, bounds)?;
        Ok(survey)
    }

    /// The survey of nothing yet.
    pub(crate) const fn new() -> Self {
        Self {
            folios: 0,
            bytes: 0,
            parts: 0,
            landmarks: Vec::new(),
            stride: FIRST_STRIDE,
        }
    }

    /// [`of`](Self::of) in place: it is large for a kernel's stack.
    pub(crate) fn take<S: FolioSource + ?Sized>(
        &mut self,
        source: &S,
        bounds: &Bounds,
    ) -> Result<(), BadInput> {
        let survey = self;
        survey.landmarks.clear();
        survey.stride = FIRST_STRIDE;
        let mut check = Check::default();
        let mut count: usize = 0;
        // Whatever is done here, and not for each folio, costs next to nothing.
        loop {
            // A sum over 2^56 is caught before it can wrap. Until then a stride adds at most 2^48
            // for each of its folios, or has collected a length that is too long.
            if check.bytes > MAX_BATCH_BYTES || count > bounds.max_folios || check.hopeless() {
                check.overlaps = true;
                break;
            }
            // No landmark behind the last folio: it would cost the others every second one.
            if count != 0 && source.folio(count).is_none() {
                break;
            }
            let most = survey.mark(count, check.bytes).wrapping_sub(count);
            let taken = check.folios(source.range(count, most));
            count = count.wrapping_add(taken);
            if taken < most {
                break;
            }
        }
        survey.folios = count;
        survey.bytes = check.bytes;
        survey.parts = count_parts(source, bounds);
        let sound = !check.overlaps
            && check.collected | check.spans < plain_limit(bounds.addr_limit)
            && check.collected & bounds.align_bytes.wrapping_sub(1) == 0
            && survey.folios <= bounds.max_folios
            && survey.bytes <= MAX_BATCH_BYTES;
        if !sound {
            complain(source.folios(), bounds)?;
        }
        Ok(())
    }

    /// Marks that `bytes` bytes lie before folio `count`; returns where to mark next.
    fn mark(&mut self, count: usize, bytes: u64) -> usize {
        if self.landmarks.is_full() {
            if self.stride >= MAX_STRIDE {
                return count.saturating_add(self.stride);
            }
            // Every other one has to do.
            let mut odd = false;
            self.landmarks.retain(|_| {
                odd = !odd;
                odd
            });
            self.stride = self.stride.saturating_mul(2);
        }
        // There is room, and they are full at an even number of old strides only.
        let _ = self.landmarks.push(bytes);
        count.saturating_add(self.stride)
    }

    /// The last landmark at or before `position`: its number, its folio, and the bytes before that.
    /// Looked for from number `from` on, which is known to be before `position`, or is 0.
    #[inline]
    pub(crate) fn landmark(&self, from: usize, position: u64) -> (usize, usize, u64) {
        let (mut number, mut bytes) = (from, self.landmarks.get(from).copied().unwrap_or(0));
        while let Some(&next) = self.landmarks.get(number.wrapping_add(1))
            && next <= position
        {
            number = number.wrapping_add(1);
            bytes = next;
        }
        (number, number.saturating_mul(self.stride), bytes)
    }
}

/// The highest power of two up to the limit, with which collected bits can be compared. It is 2^48
/// at most, so that sums do not wrap. What is over it is decided one by one.
const fn plain_limit(addr_limit: u64) -> u64 {
    match addr_limit.checked_ilog2() {
        Some(log2) if log2 < 48 => 1 << log2,
        Some(_) => 1 << 48,
        None => 0,
    }
}

/// What all folios are checked for, collected so that a sound batch costs one branch a folio.
#[derive(Default)]
struct Check {
    /// All bits of starts and ends. If all are aligned, so are lengths.
    collected: u64,
    /// All bits of lengths less one: a length of zero becomes all ones. If none of these and none
    /// of starts and ends is at or over the limit, nothing was out of range and no sum wrapped.
    spans: u64,
    bytes: u64,
    /// Whether a folio's source and destination overlap.
    overlaps: bool,
}

impl Check {
    /// Looks at folios until they end or one overlaps itself; returns how many there were, unless
    /// one did.
    #[inline(always)]
    fn folios(&mut self, folios: impl Iterator<Item = Folio>) -> usize {
        let (mut collected, mut spans) = (self.collected, self.spans);
        let (mut bytes, mut count) = (self.bytes, 0_usize);
        // Whoever knows how many there are need not have them counted.
        let known = match folios.size_hint() {
            (least, Some(most)) if least == most => Some(most),
            _ => None,
        };
        for folio in folios {
            let (src, dst, len) = (folio.src.get(), folio.dst.get(), folio.len_bytes);
            let span = len.wrapping_sub(1);
            collected |= src | dst | src.wrapping_add(len) | dst.wrapping_add(len);
            spans |= span;
            // |src - dst| < len, in one comparison.
            if src.wrapping_sub(dst).wrapping_add(span) <= span.wrapping_mul(2) {
                self.overlaps = true;
                break;
            }
            bytes = bytes.wrapping_add(len);
            count = count.wrapping_add(1);
        }
        self.collected = collected;
        self.spans = spans;
        self.bytes = bytes;
        known.unwrap_or(count)
    }

    /// Whether there is no use in looking any further.
    fn hopeless(&self) -> bool {
        self.spans == u64::MAX || self.overlaps
    }
}

/// Counts the parts that a batch can be cut into, as far as it matters.
fn count_parts<S: FolioSource + ?Sized>(source: &S, bounds: &Bounds) -> u64 {
    let min_bytes = bounds.min_part_bytes.max(1);
    let parts_of = |run_bytes: u64| match run_bytes {
        0 => 0,
        short if short < min_bytes => 1,
        long => long.checked_div(min_bytes).unwrap_or(1),
    };
    let enough_bytes = min_bytes.saturating_mul(bounds.parts_enough);
    let (mut next_src, mut next_dst) = (0, 0);
    let (mut parts, mut run_bytes) = (0_u64, 0_u64);
    for folio in source.folios().take(bounds.max_folios) {
        let (src, dst) = (folio.src.get(), folio.dst.get());
        if src != next_src || dst != next_dst {
            parts = parts.saturating_add(parts_of(run_bytes));
            run_bytes = 0;
        }
        next_src = src.wrapping_add(folio.len_bytes);
        next_dst = dst.wrapping_add(folio.len_bytes);
        run_bytes = run_bytes.saturating_add(folio.len_bytes);
        if parts >= bounds.parts_enough || run_bytes >= enough_bytes {
            break;
        }
    }
    parts.saturating_add(parts_of(run_bytes))
}

/// Walks the batch again, exactly, and says what is wrong with the first folio that is not sound,
/// if any is. Addresses between the highest power of two and the limit are sound.
#[cold]
fn complain(folios: impl Iterator<Item = Folio>, bounds: &Bounds) -> Result<(), BadInput> {
    let mut bytes = 0_u64;
    for (index, folio) in folios.enumerate() {
        if let Some(error) = complaint(&folio, index, bounds) {
            return Err(error);
        }
        bytes = bytes.saturating_add(folio.len_bytes);
        if bytes > MAX_BATCH_BYTES {
            return Err(BadInput::TooManyBytes);
        }
    }
    Ok(())
}

/// Says what is wrong with a folio, if anything is.
fn complaint(folio: &Folio, index: usize, bounds: &Bounds) -> Option<BadInput> {
    let len_bytes = folio.len_bytes;
    let out_of_range = |addr: DmaAddr| match addr.get().checked_add(len_bytes) {
        Some(end) => end > bounds.addr_limit,
        None => true,
    };
    let (src, dst) = (folio.src.get(), folio.dst.get());
    if index >= bounds.max_folios {
        Some(BadInput::TooManyFolios {
            room: bounds.max_folios,
        })
    } else if len_bytes == 0 {
        Some(BadInput::EmptyFolio { folio: index })
    } else if let Some(addr) = [folio.src, folio.dst]
        .into_iter()
        .find(|&addr| out_of_range(addr))
    {
        Some(BadInput::OutOfRange {
            folio: index,
            addr,
            len_bytes,
        })
    } else if (src | dst | len_bytes) & bounds.align_bytes.wrapping_sub(1) != 0 {
        Some(BadInput::Misaligned {
            folio: index,
            align_bytes: bounds.align_bytes,
        })
    } else if src.abs_diff(dst) < len_bytes {
        Some(BadInput::Overlap {
            folio: index,
            other: index,
        })
    } else {
        None
    }
}
