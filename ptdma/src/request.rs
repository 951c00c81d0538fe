//! Copies that have been checked and may go to a ring.

use core::fmt;

use crate::addr::{DMA_ADDR_BITS, DmaAddr, DmaRange, RangeError};
use crate::descriptor::{CommandWord, Descriptor};

/// Longest copy given to one descriptor unless the owner says otherwise: 2 MiB.
///
/// The length word takes 4 GiB - 1. The longest copies known to have run on silicon are the 2 MiB
/// folios of the published `move_pages` tables. At 2 MiB a descriptor's fixed cost is under one
/// percent of its copy time, so longer ones gain nothing.
pub const DEFAULT_MAX_LEN_BYTES: u32 = 2 << 20;

/// No source and no destination of one descriptor crosses a multiple of this many bytes, 4 GiB,
/// unless the owner says otherwise.
///
/// Linux cuts segments there for every device that does not ask for more, so no driver is known to
/// have made silicon cross one.
pub const BOUNDARY_LEN_BYTES: u64 = 1 << 32;

// The bits above an address's place between two boundaries are those of a mask.
const _: () = assert!(BOUNDARY_LEN_BYTES.is_power_of_two());

/// What a channel accepts in one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    max_len_bytes: u32,
    /// Bits of two addresses that differ if a boundary lies between them; none if a copy may
    /// cross one.
    boundary: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_len_bytes: DEFAULT_MAX_LEN_BYTES,
            boundary: Self::BOUNDARY,
        }
    }
}

impl Limits {
    const BOUNDARY: u64 = BOUNDARY_LEN_BYTES.wrapping_neg();

    /// Limits with another longest copy; 0 is taken as 1.
    #[must_use]
    pub const fn with_max_len_bytes(max_len_bytes: u32) -> Self {
        Self {
            max_len_bytes: if max_len_bytes == 0 { 1 } else { max_len_bytes },
            boundary: Self::BOUNDARY,
        }
    }

    /// The same limits, with copies across multiples of [`BOUNDARY_LEN_BYTES`]: for an owner who
    /// knows that the engine does those.
    #[must_use]
    pub const fn crossing_boundaries(self) -> Self {
        Self {
            boundary: 0,
            ..self
        }
    }

    /// Whether a copy may cross a multiple of [`BOUNDARY_LEN_BYTES`].
    #[must_use]
    pub const fn may_cross(self) -> bool {
        self.boundary == 0
    }

    /// Longest copy in bytes, at least 1.
    #[must_use]
    pub const fn max_len_bytes(self) -> u32 {
        self.max_len_bytes
    }
}

/// Why a copy was refused before it reached a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestError {
    /// The source range is empty or out of the engine's reach.
    Source(RangeError),
    /// The destination range is empty or out of the engine's reach.
    Destination(RangeError),
    /// The ranges share a byte; in which order the engine copies is not known.
    Overlap {
        /// Start of the source.
        src: DmaAddr,
        /// Start of the destination.
        dst: DmaAddr,
        /// Length of both.
        len_bytes: u64,
    },
    /// Source or destination crosses a multiple of [`BOUNDARY_LEN_BYTES`]: cut it there.
    Boundary {
        /// Start of the source.
        src: DmaAddr,
        /// Start of the destination.
        dst: DmaAddr,
        /// Length of both.
        len_bytes: u64,
    },
    /// Longer than one descriptor may be.
    TooLong {
        /// The length asked for.
        len_bytes: u64,
        /// The longest that the channel takes.
        max_len_bytes: u32,
    },
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(e) => write!(f, "source: {e}"),
            Self::Destination(e) => write!(f, "destination: {e}"),
            Self::Overlap {
                src,
                dst,
                len_bytes,
            } => write!(
                f,
                "source {src} and destination {dst} overlap ({len_bytes:#x} bytes)"
            ),
            Self::Boundary {
                src,
                dst,
                len_bytes,
            } => write!(
                f,
                "source {src} or destination {dst} crosses a multiple of 4 GiB ({len_bytes:#x} bytes)"
            ),
            Self::TooLong {
                len_bytes,
                max_len_bytes,
            } => write!(
                f,
                "{len_bytes:#x} bytes are over the limit of {max_len_bytes:#x} per descriptor"
            ),
        }
    }
}

impl core::error::Error for RequestError {}

/// A copy of system memory that has been checked. Its ranges are not empty, end within 48 bits, and
/// do not overlap. Neither crosses a multiple of 4 GiB, nor is longer than one descriptor may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRequest {
    src: DmaAddr,
    dst: DmaAddr,
    len_bytes: u32,
}

impl CopyRequest {
    /// Checks a copy of `len_bytes` bytes from `src` to `dst`.
    ///
    /// # Errors
    ///
    /// [`RequestError`], naming the value that is wrong.
    #[inline]
    pub const fn new(
        src: DmaAddr,
        dst: DmaAddr,
        len_bytes: u64,
        limits: Limits,
    ) -> Result<Self, RequestError> {
        // The usual copy, with few instructions: of a power of two, both sides aligned to it. Two
        // such blocks are one or apart, and none crosses a boundary of a longer one.
        let span = len_bytes.wrapping_sub(1);
        let aligned = (src.get() | dst.get() | len_bytes) & span == 0;
        let in_reach = (src.get() | dst.get()) >> DMA_ADDR_BITS == 0;
        if aligned && in_reach && src.get() != dst.get() && span < limits.max_len_bytes as u64 {
            return Ok(Self {
                src,
                dst,
                // In range: at most a u32 was allowed.
                len_bytes: len_bytes as u32,
            });
        }
        Self::one_by_one(src, dst, len_bytes, limits)
    }

    /// Any copy: the checks one after the other, each with its error.
    #[cold]
    #[inline(never)]
    const fn one_by_one(
        src: DmaAddr,
        dst: DmaAddr,
        len_bytes: u64,
        limits: Limits,
    ) -> Result<Self, RequestError> {
        let source = match DmaRange::new(src, len_bytes) {
            Ok(range) => range,
            Err(e) => return Err(RequestError::Source(e)),
        };
        let destination = match DmaRange::new(dst, len_bytes) {
            Ok(range) => range,
            Err(e) => return Err(RequestError::Destination(e)),
        };
        if len_bytes > limits.max_len_bytes as u64 {
            return Err(RequestError::TooLong {
                len_bytes,
                max_len_bytes: limits.max_len_bytes,
            });
        }
        if source.overlaps(destination) {
            return Err(RequestError::Overlap {
                src,
                dst,
                len_bytes,
            });
        }
        let span = len_bytes.wrapping_sub(1);
        let crossed =
            (src.get() ^ src.get().wrapping_add(span)) | (dst.get() ^ dst.get().wrapping_add(span));
        if crossed & limits.boundary != 0 {
            return Err(RequestError::Boundary {
                src,
                dst,
                len_bytes,
            });
        }
        Ok(Self {
            src,
            dst,
            // In range: at most a u32 was allowed.
            len_bytes: len_bytes as u32,
        })
    }

    /// Source address.
    #[must_use]
    pub const fn src(&self) -> DmaAddr {
        self.src
    }

    /// Destination address.
    #[must_use]
    pub const fn dst(&self) -> DmaAddr {
        self.dst
    }

    /// Length, at least 1.
    #[must_use]
    pub const fn len_bytes(&self) -> u32 {
        self.len_bytes
    }

    #[inline]
    pub(crate) const fn descriptor(&self, notify: Notify) -> Descriptor {
        let command = match notify {
            Notify::Silent => CommandWord::COPY,
            Notify::Interrupt => CommandWord::COPY_IOC,
        };
        Descriptor::of_checked(command, self.src, self.dst, self.len_bytes)
    }
}

/// Whether the engine raises an interrupt when it completed a descriptor.
///
/// The set is closed: a descriptor interrupts or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Notify {
    /// No interrupt: completion is found by polling, or with the interrupt of a later descriptor.
    #[default]
    Silent,
    /// An interrupt on completion, if the channel was brought up for interrupts.
    Interrupt,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(src: u64, dst: u64, len_bytes: u64) -> Result<CopyRequest, RequestError> {
        CopyRequest::new(
            DmaAddr::new(src),
            DmaAddr::new(dst),
            len_bytes,
            Limits::default(),
        )
    }

    #[test]
    fn each_bad_input_has_its_own_error() {
        let top = DmaAddr::LIMIT;
        assert!(matches!(
            request(0, 0x1000, 0),
            Err(RequestError::Source(RangeError::Empty { .. }))
        ));
        assert!(matches!(
            request(top, 0, 1),
            Err(RequestError::Source(RangeError::StartTooHigh { .. }))
        ));
        assert!(matches!(
            request(0, top - 1, 2),
            Err(RequestError::Destination(RangeError::EndTooHigh { .. }))
        ));
        assert!(matches!(
            request(u64::MAX, 0, 16),
            Err(RequestError::Source(RangeError::StartTooHigh { .. }))
        ));
        assert!(matches!(
            request(0, 0x800, 0x1000),
            Err(RequestError::Overlap { .. })
        ));
        assert!(matches!(
            request(0, 1 << 32, (2 << 20) + 1),
            Err(RequestError::TooLong { .. })
        ));
        for (src, dst) in [((1 << 32) - 8, 1 << 40), (1 << 40, (1 << 32) - 8)] {
            assert!(matches!(
                request(src, dst, 16),
                Err(RequestError::Boundary { .. })
            ));
            assert!(request(src, dst, 8).is_ok());
            let limits = Limits::default().crossing_boundaries();
            assert!(CopyRequest::new(DmaAddr::new(src), DmaAddr::new(dst), 16, limits).is_ok());
        }
        let ok = request(0, 1 << 32, 2 << 20).unwrap();
        assert_eq!(ok.len_bytes(), 2 << 20);
    }

    /// The short way and the ranges' own checks must agree, around every limit.
    #[test]
    fn accepted_is_what_the_ranges_accept() {
        let points = |around: u64| (0..5).map(move |i| around.wrapping_add(i).wrapping_sub(2));
        let mut values = std::vec::Vec::new();
        let all = [0, 1 << 48, 4096, 1 << 32, 1 << 47, 1 << 63];
        // Miri is slow, and looks for other mistakes.
        for &around in all.iter().take(if cfg!(miri) { 2 } else { 6 }) {
            values.extend(points(around));
        }
        let mut accepted = 0;
        for max in [1, 4096, u32::MAX] {
            for limits in [
                Limits::with_max_len_bytes(max),
                Limits::with_max_len_bytes(max).crossing_boundaries(),
            ] {
                for &src in &values {
                    for &dst in &values {
                        for &len in &values {
                            let ranges = DmaRange::new(DmaAddr::new(src), len)
                                .ok()
                                .zip(DmaRange::new(DmaAddr::new(dst), len).ok());
                            let crosses = |range: DmaRange| {
                                range.start().get() >> 32 != (range.end() - 1) >> 32
                            };
                            let fine = len <= u64::from(max)
                                && ranges.is_some_and(|(s, d)| {
                                    !s.overlaps(d)
                                        && (limits.may_cross() || !crosses(s) && !crosses(d))
                                });
                            let request =
                                CopyRequest::new(DmaAddr::new(src), DmaAddr::new(dst), len, limits);
                            assert_eq!(
                                request.is_ok(),
                                fine,
                                "{src:#x} {dst:#x} {len:#x} {max:#x}"
                            );
                            accepted += u32::from(fine);
                        }
                    }
                }
            }
        }
        assert!(accepted > 10);
    }

    #[test]
    fn the_length_word_is_the_last_limit() {
        let limits = Limits::with_max_len_bytes(u32::MAX);
        let far = DmaAddr::new(1 << 40);
        assert!(CopyRequest::new(DmaAddr::new(0), far, u64::from(u32::MAX), limits).is_ok());
        assert!(matches!(
            CopyRequest::new(DmaAddr::new(0), far, 1 << 32, limits),
            Err(RequestError::TooLong { .. })
        ));
        assert_eq!(Limits::with_max_len_bytes(0).max_len_bytes(), 1);
    }
}
