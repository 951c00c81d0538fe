//! Counts of what a channel did.

/// What a channel did since it was brought up. All counts wrap at 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Descriptors put into the ring.
    pub submitted: u64,
    /// Bytes that those descriptors were to copy.
    pub submitted_bytes: u64,
    /// Descriptors that the engine completed.
    pub completed: u64,
    /// Descriptors that the engine failed.
    pub failed: u64,
    /// Descriptors taken back by terminate or reset; completed, failed and dropped ones together
    /// are the submitted ones that are not outstanding.
    pub dropped: u64,
    /// Bursts handed to the engine: tail writes.
    pub doorbells: u64,
    /// Calls of the interrupt entry point.
    pub interrupts: u64,
    /// Interrupts without a cause.
    pub spurious_interrupts: u64,
    /// Completions whose interrupt never came.
    pub lost_interrupts: u64,
    /// Errors after which the head did not say which descriptor had failed.
    pub replays: u64,
    /// Times that a halted engine with work to do was started again.
    pub restarts: u64,
}
