//! What the kernel does for this library: the imports, behind safe functions.
//!
//! On the host, for tests, `host.rs` takes the kernel's place.

use core::cell::UnsafeCell;
use core::ptr::NonNull;

use crate::abi::{Batch, Event, LockKind, Piece, RawLock, Segment};

#[cfg(target_os = "none")]
mod imports {
    use super::{Batch, Event, LockKind, Piece, RawLock, Segment};

    unsafe extern "C" {
        pub(super) fn ptdma_k_lock_init(lock: *mut RawLock, kind: LockKind);
        pub(super) fn ptdma_k_lock(lock: *mut RawLock) -> u64;
        pub(super) fn ptdma_k_unlock(lock: *mut RawLock, flags: u64);
        pub(super) safe fn ptdma_k_now_ns() -> u64;
        pub(super) fn ptdma_k_wait(
            batch: *mut Batch,
            chan: u32,
            spin_ns: u64,
            timeout_ns: u64,
        ) -> bool;
        pub(super) safe fn ptdma_k_nap(ns: u64);
        pub(super) safe fn ptdma_k_yield();
        pub(super) safe fn ptdma_k_master_on(chan: u32);
        pub(super) fn ptdma_k_prove_stopped(batch: *mut Batch, chan: u32) -> bool;
        pub(super) fn ptdma_k_map(
            batch: *mut Batch,
            chan: u32,
            pieces: *const Piece,
            segments: *mut Segment,
            nr: u32,
        ) -> u32;
        pub(super) fn ptdma_k_cpu_copy(dst: u64, src: u64, len: u64) -> i32;
        pub(super) safe fn ptdma_k_report(chan: u32, event: Event, code: u64);
    }
}

#[cfg(not(target_os = "none"))]
use crate::host as imports;

/// A lock of the kernel's that owns what it protects: taken with interrupts off, seen by lockdep.
#[derive(Debug)]
pub(crate) struct KernelLock<T> {
    raw: UnsafeCell<RawLock>,
    value: UnsafeCell<T>,
}

// SAFETY: the kernel's spin lock in `raw` lets one CPU at a time at `value`.
unsafe impl<T: Send> Sync for KernelLock<T> {}

impl<T> KernelLock<T> {
    /// A lock around `value`, not held. The kernel's lock may be moved while nobody holds it or
    /// waits for it: there are no pointers in it.
    pub(crate) fn new(kind: LockKind, value: T) -> Self {
        let lock = Self {
            raw: UnsafeCell::new(RawLock::default()),
            value: UnsafeCell::new(value),
        };
        // SAFETY: room for a lock, and ours alone.
        unsafe { imports::ptdma_k_lock_init(lock.raw.get(), kind) };
        lock
    }

    /// Runs `f` with the value, and the lock held.
    #[inline]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: `new` has made the lock.
        let flags = unsafe { imports::ptdma_k_lock(self.raw.get()) };
        // SAFETY: the lock is held, so this is the only reference.
        let result = f(unsafe { &mut *self.value.get() });
        // SAFETY: taken above. Nothing unwinds here, so it is never left held.
        unsafe { imports::ptdma_k_unlock(self.raw.get(), flags) };
        result
    }
}

impl<T> ptdma::Lock<T> for KernelLock<T> {
    #[inline]
    fn with<U>(&self, f: impl FnOnce(&mut T) -> U) -> U {
        Self::with(self, f)
    }
}

/// The clock: nanoseconds, monotonic.
#[inline]
pub(crate) fn now_ns() -> u64 {
    imports::ptdma_k_now_ns()
}

/// Lets others run for whom this CPU is wanted. Process context, no lock held.
pub(crate) fn yield_now() {
    imports::ptdma_k_yield();
}

/// Makes a function a bus master, whose engine stands.
pub(crate) fn master_on(chan: usize) {
    imports::ptdma_k_master_on(chan as u32);
}

/// Tells the kernel's log and tracepoints.
#[cold]
pub(crate) fn report(chan: usize, event: Event, code: u64) {
    imports::ptdma_k_report(chan as u32, event, code);
}

/// The batch for which this library was called, and what its caller does for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchContext(NonNull<Batch>);

impl BatchContext {
    /// # Safety
    ///
    /// `batch` is the caller's batch, which is good for the imports as long as the context and
    /// its copies live. They stay on this thread.
    pub(crate) unsafe fn new(batch: NonNull<Batch>) -> Self {
        Self(batch)
    }

    /// Waits until the channel has interrupted since the last call, or the time is over: first
    /// spins, then sleeps. Whether it has.
    pub(crate) fn wait(&mut self, chan: usize, spin_ns: u64, timeout_ns: u64) -> bool {
        // SAFETY: the batch is good (constructor); no lock is held, as `KernelLock::with` never
        // leads here.
        unsafe { imports::ptdma_k_wait(self.0.as_ptr(), chan as u32, spin_ns, timeout_ns) }
    }

    /// Sleeps, whatever happens meanwhile.
    pub(crate) fn nap(&mut self, ns: u64) {
        imports::ptdma_k_nap(ns);
    }

    /// Maps parts of folios for a channel, from the first one on. How many it mapped.
    #[inline]
    pub(crate) fn map(
        &mut self,
        chan: usize,
        pieces: &[Piece],
        segments: &mut [batch_copy::Segment],
    ) -> usize {
        let nr = pieces.len().min(segments.len());
        let (from, to) = (pieces.as_ptr(), segments.as_mut_ptr().cast::<Segment>());
        // SAFETY: the batch is good (constructor); `nr` pieces are there to be read, and as many
        // segments to be written, for the call. Both types of segment are numbers in the same
        // places (`abi.rs`).
        let mapped =
            unsafe { imports::ptdma_k_map(self.0.as_ptr(), chan as u32, from, to, nr as u32) };
        nr.min(mapped as usize)
    }

    /// Copies a part of a folio of this batch with the CPU. Whether it could.
    pub(crate) fn cpu_copy(&mut self, piece: &Piece) -> bool {
        // SAFETY: the addresses are those of folios of this batch, which its owner has given to
        // this library, and no engine writes to this part.
        unsafe { imports::ptdma_k_cpu_copy(piece.dst, piece.src, piece.len) == 0 }
    }

    /// Cuts the channel's function off from memory. Whether it is certain that it is.
    pub(crate) fn prove_stopped(&mut self, chan: usize) -> bool {
        // SAFETY: the batch is good (constructor); no lock is held.
        unsafe { imports::ptdma_k_prove_stopped(self.0.as_ptr(), chan as u32) }
    }
}
