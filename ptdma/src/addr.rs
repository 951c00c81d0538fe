//! Bus addresses, as the engine sees them.

use core::fmt;

/// Width of a PTDMA bus address in bits.
///
/// Source: the descriptor has 32 low and 16 high address bits, and Linux sets a 48-bit DMA mask
/// for the function.
pub const DMA_ADDR_BITS: u32 = 48;

/// An address on the device's bus: what an IOMMU or a host bridge translates, never a pointer.
///
/// The value is any `u64`. [`DmaRange::new`] checks whether the engine can reach it. A mapping
/// layer's address can thus be carried around before its use is known. Zero is an ordinary address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct DmaAddr(u64);

impl DmaAddr {
    /// One past the highest address that the engine can reach: 2^48.
    pub const LIMIT: u64 = 1 << DMA_ADDR_BITS;

    /// Wraps a raw bus address.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw bus address.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Bits 31:0, as descriptors and the head and tail registers hold them.
    #[must_use]
    pub const fn low(self) -> u32 {
        // Truncation is the meaning of "low half".
        self.0 as u32
    }

    /// Bits 47:32, as descriptors and the control register hold them.
    #[must_use]
    pub const fn high(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// The address `len_bytes` further on, or `None` if that passes 2^64.
    #[must_use]
    pub const fn checked_add(self, len_bytes: u64) -> Option<Self> {
        match self.0.checked_add(len_bytes) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }

    /// Whether the address is a multiple of `align_bytes`, a power of two.
    #[must_use]
    pub const fn is_aligned_to(self, align_bytes: u64) -> bool {
        self.0 & align_bytes.wrapping_sub(1) == 0
    }
}

impl fmt::Debug for DmaAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaAddr({:#x})", self.0)
    }
}

impl fmt::Display for DmaAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::LowerHex for DmaAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// A non-empty stretch of bus memory that the engine can address from end to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DmaRange {
    start: DmaAddr,
    len_bytes: u64,
}

/// Why a stretch of bus memory cannot be given to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RangeError {
    /// The length is zero.
    Empty {
        /// Where the empty range was to start.
        start: DmaAddr,
    },
    /// The start is at or over 2^48.
    StartTooHigh {
        /// The address that is out of reach.
        start: DmaAddr,
    },
    /// The range starts in reach but its end passes 2^48 or wraps around 2^64.
    EndTooHigh {
        /// Where the range starts.
        start: DmaAddr,
        /// How long it was to be.
        len_bytes: u64,
    },
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty { start } => write!(f, "zero length at {start}"),
            Self::StartTooHigh { start } => {
                write!(f, "address {start} is over {DMA_ADDR_BITS} bits")
            }
            Self::EndTooHigh { start, len_bytes } => write!(
                f,
                "{len_bytes:#x} bytes at {start} end over {DMA_ADDR_BITS} bits"
            ),
        }
    }
}

impl core::error::Error for RangeError {}

impl DmaRange {
    /// Checks a stretch of bus memory.
    ///
    /// # Errors
    ///
    /// [`RangeError`] if the range is empty, starts over 48 bits, or ends over 48 bits (which
    /// includes wrapping around 2^64).
    #[inline]
    pub const fn new(start: DmaAddr, len_bytes: u64) -> Result<Self, RangeError> {
        if len_bytes == 0 {
            return Err(RangeError::Empty { start });
        }
        if start.get() >= DmaAddr::LIMIT {
            return Err(RangeError::StartTooHigh { start });
        }
        match start.get().checked_add(len_bytes) {
            Some(end) if end <= DmaAddr::LIMIT => Ok(Self { start, len_bytes }),
            _ => Err(RangeError::EndTooHigh { start, len_bytes }),
        }
    }

    /// First byte.
    #[must_use]
    pub const fn start(self) -> DmaAddr {
        self.start
    }

    /// Length, at least 1.
    #[must_use]
    pub const fn len_bytes(self) -> u64 {
        self.len_bytes
    }

    /// One past the last byte; at most 2^48, so the sum cannot overflow.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start.get().saturating_add(self.len_bytes)
    }

    /// Whether the two ranges share a byte.
    #[must_use]
    #[inline]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.get() < other.end() && other.start.get() < self.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_make_the_whole() {
        let a = DmaAddr::new(0x1234_5678_9abc);
        assert_eq!(a.low(), 0x5678_9abc);
        assert_eq!(a.high(), 0x1234);
        assert!(a.is_aligned_to(4) && !a.is_aligned_to(8));
    }

    #[test]
    fn range_limits() {
        let top = DmaAddr::new(DmaAddr::LIMIT - 1);
        assert!(DmaRange::new(top, 1).is_ok());
        assert_eq!(
            DmaRange::new(top, 2),
            Err(RangeError::EndTooHigh {
                start: top,
                len_bytes: 2
            })
        );
        let over = DmaAddr::new(DmaAddr::LIMIT);
        assert_eq!(
            DmaRange::new(over, 1),
            Err(RangeError::StartTooHigh { start: over })
        );
        let low = DmaAddr::new(1);
        assert_eq!(
            DmaRange::new(low, u64::MAX),
            Err(RangeError::EndTooHigh {
                start: low,
                len_bytes: u64::MAX
            })
        );
        assert_eq!(DmaRange::new(low, 0), Err(RangeError::Empty { start: low }));
    }

    #[test]
    fn overlap_is_strict() {
        let r = |s, l| DmaRange::new(DmaAddr::new(s), l).unwrap();
        assert!(!r(0, 10).overlaps(r(10, 10)));
        assert!(r(0, 11).overlaps(r(10, 10)));
        assert!(r(12, 1).overlaps(r(10, 10)));
        assert!(!r(20, 1).overlaps(r(10, 10)));
    }
}
