//! Counts.

use core::sync::atomic::{AtomicU64, Ordering};

/// Counts what batches came to, on any number of CPUs; for the caller of
/// [`Batch::run`](crate::Batch::run) to keep. All counts wrap at 2^64.
#[derive(Debug, Default)]
pub struct Totals {
    batches: AtomicU64,
    declined: AtomicU64,
    folios_dma: AtomicU64,
    folios_cpu: AtomicU64,
    fallbacks: AtomicU64,
}

impl Totals {
    /// No batches yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            batches: AtomicU64::new(0),
            declined: AtomicU64::new(0),
            folios_dma: AtomicU64::new(0),
            folios_cpu: AtomicU64::new(0),
            fallbacks: AtomicU64::new(0),
        }
    }

    /// Counts a batch that was run.
    pub fn count(&self, report: &Report) {
        let add = |count: &AtomicU64, folios: usize| {
            count.fetch_add(folios as u64, Ordering::Relaxed);
        };
        add(&self.batches, 1);
        add(&self.folios_dma, report.folios_dma);
        add(&self.folios_cpu, report.folios_cpu);
        add(&self.fallbacks, report.folios_left);
    }

    /// Counts a batch of `folios` folios that was not run because the policy left it to the CPU.
    #[inline]
    pub fn count_declined(&self, folios: usize) {
        self.declined.fetch_add(1, Ordering::Relaxed);
        self.fallbacks.fetch_add(folios as u64, Ordering::Relaxed);
    }

    /// The counts now.
    #[must_use]
    pub fn get(&self) -> TotalsNow {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        TotalsNow {
            batches: get(&self.batches),
            declined: get(&self.declined),
            folios_dma: get(&self.folios_dma),
            folios_cpu: get(&self.folios_cpu),
            fallbacks: get(&self.fallbacks),
        }
    }
}

/// What [`Totals`] have counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TotalsNow {
    /// Batches that were run.
    pub batches: u64,
    /// Batches that the policy left to the CPU.
    pub declined: u64,
    /// Folios copied by engines.
    pub folios_dma: u64,
    /// Folios copied with the help of the CPU.
    pub folios_cpu: u64,
    /// Folios that failed or were not attempted: left to the caller's own copy.
    pub fallbacks: u64,
}

/// What became of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Report {
    /// Folios of the batch.
    pub folios: usize,
    /// Bytes of the batch: the sum of the five below, if none are unaccounted for.
    pub bytes: u64,
    /// Bytes that engines copied.
    pub dma_bytes: u64,
    /// Bytes that the CPU copied.
    pub cpu_bytes: u64,
    /// Bytes that were tried and failed.
    pub failed_bytes: u64,
    /// Bytes that no engine could be given or that time did not suffice for.
    pub skipped_bytes: u64,
    /// Bytes that an engine may still write. See
    /// [`Rescue::quarantined`](crate::Rescue::quarantined).
    pub quarantined_bytes: u64,
    /// Bytes that went missing in the books, or are in there twice. They are all bytes of the batch
    /// if the sum is right and the parts are not. 0, see
    /// [`Unaccounted`](crate::FailReason::Unaccounted).
    pub unaccounted_bytes: u64,
    /// Folios whose outcome is `Dma`.
    pub folios_dma: usize,
    /// Folios whose outcome is `Cpu`.
    pub folios_cpu: usize,
    /// Folios that were not copied.
    pub folios_left: usize,
    /// Channels that were given work.
    pub channels: usize,
    /// Descriptors submitted.
    pub descriptors: u64,
    /// Folio parts that needed no descriptor of their own.
    pub coalesced: u64,
    /// Doorbells rung.
    pub doorbells: u64,
    /// Descriptors that an engine failed.
    pub errors: u64,
    /// Bytes that were moved to another channel because theirs stopped.
    pub moved_bytes: u64,
    /// Times that the batch waited.
    pub waits: u64,
    /// Whether the deadline passed before all was done.
    pub late: bool,
}

impl Report {
    /// Whether every byte of the batch was copied.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.unaccounted_bytes == 0 && self.dma_bytes.wrapping_add(self.cpu_bytes) == self.bytes
    }
}
