//! Counts.

/// What one channel did for all batches. All counts wrap at 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ChannelStats {
    /// Descriptors given to the channel.
    pub submitted: u64,
    /// Descriptors that are over, failed ones included.
    pub completed: u64,
    /// Descriptors that the engine failed.
    pub errors: u64,
    /// Descriptors that were dropped because the engine had to be stopped.
    pub dropped: u64,
    /// Bytes of submitted descriptors.
    pub bytes: u64,
    /// Folio parts that needed no descriptor of their own, because they continue another one.
    pub coalesced: u64,
    /// Times that the doorbell was rung.
    pub doorbells: u64,
    /// Calls of the interrupt entry point.
    pub interrupts: u64,
    /// Looks at the engine by waiting batches.
    pub polls: u64,
    /// Times that the engine was stopped by force.
    pub stops: u64,
    /// Times that it stood still for too long.
    pub hangs: u64,
}

/// What all batches of an [`Engines`](crate::Engines) came to. All counts wrap at 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Totals {
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
    /// Bytes that went missing in the books, or are in there twice; all bytes of the batch if the
    /// sum is right and the parts are not. 0, see
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
