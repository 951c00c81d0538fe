//! Lists of ranges to copy, and what became of them.

use batch_copy::{CpuCopier, CpuCopyError, Folio, Outcome, Piece, Report};

use crate::error::Error;
use crate::memory::Memory;
use crate::space::{Access, Mapping, Space};

/// One range to copy, from one mapping to another one, or within one mapping.
///
/// Any offset and any length will do. It borrows the mappings, so that neither can be unmapped
/// before the copy is over.
#[derive(Clone, Copy, Debug)]
pub struct CopyRange<'m> {
    from: &'m Mapping,
    from_offset: u64,
    to: &'m Mapping,
    to_offset: u64,
    len_bytes: u64,
}

impl<'m> CopyRange<'m> {
    /// A range of `len_bytes` bytes at `from_offset` of `from`, to be copied to `to_offset` of `to`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::OutOfBounds`]; [`Error::ReadOnly`] if engines may not write `to`.
    pub fn new(
        from: &'m Mapping,
        from_offset: u64,
        to: &'m Mapping,
        to_offset: u64,
        len_bytes: u64,
    ) -> Result<Self, Error> {
        if len_bytes == 0 {
            return Err(Error::Empty { what: "range" });
        }
        if to.access() != Access::ReadWrite {
            return Err(Error::ReadOnly);
        }
        for (mapping, offset) in [(from, from_offset), (to, to_offset)] {
            let size = mapping.len_bytes();
            if offset.checked_add(len_bytes).is_none_or(|end| end > size) {
                return Err(Error::OutOfBounds {
                    offset,
                    len_bytes,
                    size,
                });
            }
        }
        Ok(Self {
            from,
            from_offset,
            to,
            to_offset,
            len_bytes,
        })
    }

    /// Length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Whether engines of a space reach both ends.
    pub(crate) fn is_in(&self, space: &Space) -> bool {
        space.is(self.from.space()) && space.is(self.to.space())
    }

    /// The same in bus addresses.
    pub(crate) fn folio(&self) -> Folio {
        let at = |mapping: &Mapping, offset: u64| {
            // Within the mapping, whose end is no higher than 2^48.
            ptdma::DmaAddr::new(mapping.addr().get().saturating_add(offset))
        };
        Folio::new(
            at(self.from, self.from_offset),
            at(self.to, self.to_offset),
            self.len_bytes,
        )
    }
}

/// What became of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// What became of each range, by its index.
    pub outcomes: Vec<Outcome>,
    /// Sums.
    pub report: Report,
}

impl Copied {
    /// Whether every byte of every range was copied.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.report.is_complete() && self.outcomes.iter().all(|outcome| outcome.is_copied())
    }
}

/// Bytes that the CPU copies at once: on the stack, and in the first-level cache.
const CHUNK_LEN_BYTES: usize = 4096;

/// Copies parts of ranges with the CPU.
#[derive(Debug)]
pub(crate) struct ListCopier<'a>(pub(crate) &'a [CopyRange<'a>]);

impl CpuCopier for ListCopier<'_> {
    fn copy(&mut self, piece: &Piece) -> Result<(), CpuCopyError> {
        let range = self.0.get(piece.folio).ok_or(CpuCopyError)?;
        let end = piece.offset_bytes.checked_add(piece.len_bytes);
        if end.is_none_or(|end| end > range.len_bytes) {
            return Err(CpuCopyError);
        }
        let from = range.from_offset.saturating_add(piece.offset_bytes);
        let to = range.to_offset.saturating_add(piece.offset_bytes);
        copy_by_cpu(range.from, from, range.to, to, piece.len_bytes).map_err(|_| CpuCopyError)
    }
}

/// Copies bytes from one memory to another.
fn copy_by_cpu(
    from: &Memory,
    from_offset: u64,
    to: &Memory,
    to_offset: u64,
    len_bytes: u64,
) -> Result<(), Error> {
    let mut buffer = [0; CHUNK_LEN_BYTES];
    let mut done = 0;
    while done < len_bytes {
        let len = (len_bytes - done).min(CHUNK_LEN_BYTES as u64);
        let chunk = buffer.get_mut(..len as usize).unwrap_or_default();
        from.read(from_offset.saturating_add(done), chunk)?;
        to.write(to_offset.saturating_add(done), chunk)?;
        done += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_copies_any_offset_and_length() -> Result<(), Error> {
        let from = Memory::anonymous(4 * 4096)?;
        let to = Memory::anonymous(4 * 4096)?;
        let bytes: Vec<u8> = (0..4 * 4096_u32).map(|n| (n % 251) as u8).collect();
        from.write(0, &bytes)?;
        copy_by_cpu(&from, 3, &to, 4090, 9001)?;
        let mut all = vec![0; 4 * 4096];
        to.read(0, &mut all)?;
        let mut expected = vec![0; 4 * 4096];
        expected[4090..4090 + 9001].copy_from_slice(&bytes[3..3 + 9001]);
        assert!(all == expected);
        assert!(copy_by_cpu(&from, 4 * 4096 - 1, &to, 0, 2).is_err());
        Ok(())
    }
}
