//! What the engine asks of memory.

use ptdma::DmaAddr;

/// Bytes that the engine moves at a time where source and destination overlap.
///
/// A cache line: the natural burst of an engine on a coherent fabric (inferred). Copies that do
/// not overlap cannot tell.
pub const BURST_LEN_BYTES: usize = 64;

/// Why an access to the bus failed, and at which address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Nothing answers at the address.
    #[error("nothing is mapped at {addr}")]
    Unmapped {
        /// First address that failed.
        addr: DmaAddr,
    },
    /// Something is there, but it refuses this kind of access (a write to read-only memory, say).
    #[error("access refused at {addr}")]
    Refused {
        /// First address that failed.
        addr: DmaAddr,
    },
}

/// The side of a copy that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Reading.
    Source,
    /// Writing.
    Destination,
}

/// A copy that ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{side:?} failed after {done_bytes} bytes: {error}")]
pub struct CopyError {
    /// Which side failed.
    pub side: Side,
    /// Why.
    pub error: BusError,
    /// Bytes that had reached the destination.
    pub done_bytes: u64,
}

/// Memory behind bus addresses, as an engine reaches it.
///
/// Accesses come from engine threads while others use the same memory: an implementation is
/// thread safe, and a race with another user of the bytes may mix old and new data but nothing
/// worse, as on a real bus. While [`read`](Self::read), [`write`](Self::write) or
/// [`copy`](Self::copy) runs, a concurrent unmap waits.
pub trait BusMemory: Send + Sync {
    /// Reads `buf.len()` bytes at `addr`.
    ///
    /// # Errors
    ///
    /// [`BusError`] at the first address that cannot be read; `buf` is then partly filled.
    fn read(&self, addr: DmaAddr, buf: &mut [u8]) -> Result<(), BusError>;

    /// Writes `data` at `addr`.
    ///
    /// # Errors
    ///
    /// [`BusError`] at the first address that cannot be written; what lies before it is written.
    fn write(&self, addr: DmaAddr, data: &[u8]) -> Result<(), BusError>;

    /// Copies `len_bytes` from `src` to `dst` in ascending order; the two do not overlap.
    ///
    /// The default goes through a small buffer.
    ///
    /// # Errors
    ///
    /// [`CopyError`] with what was done; a destination may be partly written.
    fn copy(&self, src: DmaAddr, dst: DmaAddr, len_bytes: u64) -> Result<(), CopyError> {
        copy_by(self, src, dst, len_bytes, &mut [0; 4096])
    }
}

impl<T: BusMemory + ?Sized> BusMemory for std::sync::Arc<T> {
    fn read(&self, addr: DmaAddr, buf: &mut [u8]) -> Result<(), BusError> {
        (**self).read(addr, buf)
    }
    fn write(&self, addr: DmaAddr, data: &[u8]) -> Result<(), BusError> {
        (**self).write(addr, data)
    }
    fn copy(&self, src: DmaAddr, dst: DmaAddr, len_bytes: u64) -> Result<(), CopyError> {
        (**self).copy(src, dst, len_bytes)
    }
}

/// Copies through `buffer`, in ascending steps of its length (a burst if it is empty).
///
/// # Errors
///
/// As [`BusMemory::copy`].
pub fn copy_by<M: BusMemory + ?Sized>(
    memory: &M,
    src: DmaAddr,
    dst: DmaAddr,
    len_bytes: u64,
    buffer: &mut [u8],
) -> Result<(), CopyError> {
    if buffer.is_empty() {
        return copy_by(memory, src, dst, len_bytes, &mut [0; BURST_LEN_BYTES]);
    }
    let mut done = 0;
    while done < len_bytes {
        let step = usize::try_from(len_bytes - done)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let chunk = &mut buffer[..step];
        let fail = |side, error| CopyError {
            side,
            error,
            done_bytes: done,
        };
        memory
            .read(offset(src, done), chunk)
            .map_err(|e| fail(Side::Source, e))?;
        memory
            .write(offset(dst, done), chunk)
            .map_err(|e| fail(Side::Destination, e))?;
        done += step as u64;
    }
    Ok(())
}

/// `addr + by`, wrapping: callers have checked the range, and a wrapped address is unmapped.
pub(crate) fn offset(addr: DmaAddr, by: u64) -> DmaAddr {
    DmaAddr::new(addr.get().wrapping_add(by))
}
