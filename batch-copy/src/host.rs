//! What a batch needs of its caller: time, translation, the CPU, and a last resort.

use core::fmt;

use crate::map::{Identity, Mapper, Piece};
use crate::wait::Wait;

/// The caller's side of a batch. Everything here is called without a lock held.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Host<W, M = Identity, K = NoCpu, R = NoRescue> {
    /// Clock and wait.
    pub wait: W,
    /// Translation to bus addresses.
    pub mapper: M,
    /// Copies by the CPU, for the share that it takes and for repairs.
    pub cpu: K,
    /// What to do about an engine that does not stop.
    pub rescue: R,
}

impl<W: Wait> Host<W> {
    /// A host that waits with `wait`, translates nothing, does not copy itself, and cannot stop
    /// an engine that does not stop by itself.
    pub const fn new(wait: W) -> Self {
        Self {
            wait,
            mapper: Identity,
            cpu: NoCpu,
            rescue: NoRescue,
        }
    }
}

impl<W, M, K, R> Host<W, M, K, R> {
    /// The same host with another mapper.
    pub fn with_mapper<M2: Mapper>(self, mapper: M2) -> Host<W, M2, K, R> {
        Host {
            wait: self.wait,
            mapper,
            cpu: self.cpu,
            rescue: self.rescue,
        }
    }

    /// The same host, able to copy with the CPU.
    pub fn with_cpu<K2: CpuCopier>(self, cpu: K2) -> Host<W, M, K2, R> {
        Host {
            wait: self.wait,
            mapper: self.mapper,
            cpu,
            rescue: self.rescue,
        }
    }

    /// The same host with a last resort.
    pub fn with_rescue<R2: Rescue>(self, rescue: R2) -> Host<W, M, K, R2> {
        Host {
            wait: self.wait,
            mapper: self.mapper,
            cpu: self.cpu,
            rescue,
        }
    }
}

/// A copy by the CPU was not possible, for example because it met poisoned memory.
///
/// The fields are closed: every [`CpuCopier`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuCopyError;

impl fmt::Display for CpuCopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the CPU could not copy this part of a folio")
    }
}

impl core::error::Error for CpuCopyError {}

/// Copies parts of folios with the CPU, in the caller's addresses.
pub trait CpuCopier {
    /// Whether it copies at all. Where this is `false`, nothing is left to it.
    const AVAILABLE: bool = true;

    /// Copies a part of a folio, at most [`CPU_CHUNK_BYTES`](crate::CPU_CHUNK_BYTES) long.
    ///
    /// # Errors
    ///
    /// [`CpuCopyError`] if the destination does not hold all of it now.
    fn copy(&mut self, piece: &Piece) -> Result<(), CpuCopyError>;
}

/// The CPU does not copy: what no engine copied is left to the caller.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCpu;

impl CpuCopier for NoCpu {
    const AVAILABLE: bool = false;

    fn copy(&mut self, _piece: &Piece) -> Result<(), CpuCopyError> {
        Err(CpuCopyError)
    }
}

impl<T: CpuCopier + ?Sized> CpuCopier for &mut T {
    fn copy(&mut self, piece: &Piece) -> Result<(), CpuCopyError> {
        (**self).copy(piece)
    }
}

/// The last resort about an engine that could not be proven to have stopped.
pub trait Rescue {
    /// Makes sure that channel number `channel` can neither read nor write memory any more: takes
    /// bus mastering away, resets the function. May sleep. Several batches may ask at once.
    ///
    /// A function that does not answer (all ones) cannot be told to stop, and is not proved to
    /// have. It may answer again, with its engine where it was.
    ///
    /// Returns whether that is certain now. If so, the folios concerned are copied by others; if
    /// not, they are quarantined.
    fn prove_stopped(&mut self, channel: usize) -> bool;

    /// Told of every part of a folio that an engine may still read (`piece.src`) and write
    /// (`piece.dst`) when the batch returns. The folio's outcome says so too.
    fn quarantined(&mut self, channel: usize, piece: &Piece);
}

/// No last resort.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRescue;

impl Rescue for NoRescue {
    fn prove_stopped(&mut self, _channel: usize) -> bool {
        false
    }
    fn quarantined(&mut self, _channel: usize, _piece: &Piece) {}
}

impl<T: Rescue + ?Sized> Rescue for &mut T {
    fn prove_stopped(&mut self, channel: usize) -> bool {
        (**self).prove_stopped(channel)
    }
    fn quarantined(&mut self, channel: usize, piece: &Piece) {
        (**self).quarantined(channel, piece);
    }
}
