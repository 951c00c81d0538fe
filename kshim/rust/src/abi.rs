//! The types that C and Rust share. `include/ptdma_kshim.h` is made from them, see
//! `tests/header.rs`.

use core::mem::offset_of;

/// Channels that a system can have: PTDMA functions that are bound at once.
pub const MAX_CHANNELS: usize = 64;
/// Folios of one round, at the most: what the kernel migrates at once unless its limit was raised.
pub const MAX_ROUND_FOLIOS: usize = 512;
/// Bytes of a descriptor in the ring.
pub const DESCRIPTOR_BYTES: usize = ptdma::descriptor::DESCRIPTOR_LEN_BYTES;
/// Bytes of BAR 2 that hold the registers.
pub const BAR_BYTES: usize = ptdma::regs::BAR_LEN_BYTES;

/// Kinds of [`Event`].
pub const EVENTS: usize = 9;

/// A folio to copy.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Folio {
    /// Physical address of the source.
    pub src: u64,
    /// Physical address of the destination.
    pub dst: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A part of a folio that is about to be given to a channel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Piece {
    /// Physical address of the source.
    pub src: u64,
    /// Physical address of the destination.
    pub dst: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where in the folio the part begins, in bytes.
    pub offset: u64,
    /// Index of the folio in its round.
    pub folio: u32,
}

/// A part of a folio as a channel sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment {
    /// Bus address of the source.
    pub src: u64,
    /// Bus address of the destination.
    pub dst: u64,
    /// Length in bytes.
    pub len: u64,
}

// C writes them where this library reads them.
const _: () = {
    type Ours = batch_copy::Segment;
    assert!(
        size_of::<Segment>() == size_of::<Ours>() && align_of::<Segment>() == align_of::<Ours>()
    );
    assert!(offset_of!(Segment, src) == offset_of!(Ours, src));
    assert!(offset_of!(Segment, dst) == offset_of!(Ours, dst));
    assert!(offset_of!(Segment, len) == offset_of!(Ours, len_bytes));
};

/// What became of a folio.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody tried: every byte is left to the caller.
    NotAttempted = 0,
    /// Copied by engines, every byte.
    Dma = 1,
    /// Copied, every byte, some of them by the CPU.
    Cpu = 2,
    /// Tried and failed. Nobody writes to it any more.
    Failed = 3,
    /// An engine that was not proved stopped may still write to it.
    Quarantined = 4,
}

/// What became of a round.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundResult {
    /// Folios copied by engines.
    pub by_dma: u32,
    /// Folios copied with the CPU's help.
    pub by_cpu: u32,
    /// Folios that failed.
    pub failed: u32,
    /// Folios that nobody tried.
    pub not_attempted: u32,
    /// Channels that were given work.
    pub channels: u32,
    /// Descriptors that it took.
    pub descriptors: u32,
    /// Channels (a bit each) that were not proved stopped, and may still write to the round.
    pub unproven: u64,
    /// Channels (a bit each) that are up but not in service.
    pub out_of_service: u64,
}

/// A round to run.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// The folios.
    pub folios: *const Folio,
    /// An [`Outcome`] for each folio; written.
    pub outcomes: *mut u8,
    /// How many.
    pub nr: u32,
    /// The one channel to use; negative: as many as are worth it.
    pub only: i32,
    /// NUMA node of the sources, or -1.
    pub src_node: i32,
    /// NUMA node of the destinations, or -1.
    pub dst_node: i32,
    /// Not 0: whoever migrates may sleep.
    pub may_sleep: u32,
    /// Not 0: the CPU copies the parts that engines fail to copy. Otherwise the whole folio is left.
    pub repair: u32,
}

/// What can be set.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Channels that one batch uses, as far as there are so many; 0 lets the cost model decide.
    pub nr_dma_chan: u32,
    /// Descriptors of each ring, a power of two.
    pub ring_entries: u32,
    /// Batches of less than this many KiB are left to the CPU; 0 lets the cost model decide.
    pub min_batch_kb: u32,
    /// Shortest part that a folio is cut into, in KiB.
    pub stripe_kb: u32,
    /// How long a batch spins before it sleeps, in microseconds.
    pub poll_us: u32,
    /// How long a batch may take, in milliseconds.
    pub timeout_ms: u32,
    /// Share of a batch that the CPU copies while it would wait, in percent.
    pub hybrid_percent: u32,
}

/// What it takes to bring a channel up.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ChannelSetup {
    /// BAR 2, mapped uncached, at least [`BAR_BYTES`].
    pub bar: *mut u8,
    /// Coherent memory for the ring.
    pub ring: *mut u8,
    /// Bus address of that memory, aligned to its size.
    pub ring_dma: u64,
    /// Size of that memory.
    pub ring_bytes: u64,
    /// Descriptors of the ring. A ring that does not fit into the memory is refused.
    pub ring_entries: u32,
    /// NUMA node of the function, or -1.
    pub node: i32,
    /// The same number for all functions that share a port, or -1 if that is not known.
    pub port: i32,
    /// Not 0: the function was bound just now, and its counts begin at 0.
    pub fresh: u32,
}

/// Whether batches use a channel.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelService {
    /// It is not up.
    Absent = 0,
    /// They do.
    Active = 1,
    /// They do not; its engine is proved stopped.
    Stopped = 2,
    /// They do not; its engine may still write.
    Unproven = 3,
}

/// Counts of a channel since its function was bound.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ChannelStats {
    /// 1 if the head is known to stay at a descriptor that failed.
    pub head_stays: u64,
    /// Descriptors put into the ring.
    pub submitted: u64,
    /// Bytes that those were to copy.
    pub submitted_bytes: u64,
    /// Descriptors that the engine completed.
    pub completed: u64,
    /// Descriptors that the engine failed.
    pub failed: u64,
    /// Descriptors that were taken back.
    pub dropped: u64,
    /// Folio parts that needed no descriptor of their own.
    pub coalesced: u64,
    /// Bursts handed to the engine.
    pub doorbells: u64,
    /// Interrupts.
    pub interrupts: u64,
    /// Looks at the engine by waiting batches.
    pub polls: u64,
    /// Interrupts without a cause.
    pub spurious_interrupts: u64,
    /// Completions whose interrupt never came.
    pub lost_interrupts: u64,
    /// Errors that did not say which descriptor had failed.
    pub replays: u64,
    /// Times that a halted engine was started again.
    pub restarts: u64,
    /// Times that the engine was stopped by force.
    pub stops: u64,
    /// Times that it stood still for too long.
    pub hangs: u64,
}

/// What sets a drained queue going again.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EngineRestart {
    /// Not known: the driver does what is right for both others.
    #[default]
    Unknown = 0,
    /// The tail alone.
    ByTail = 1,
    /// RUN, written behind the tail.
    ByRun = 2,
}

/// Where the head stays on an error.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EngineErrorHead {
    /// Not known: failures are found by doing copies again, one by one.
    #[default]
    Unknown = 0,
    /// At the descriptor that failed.
    AtFailing = 1,
    /// Behind it.
    PastFailing = 2,
}

/// What an engine has shown of itself. Bits are the characters `0`, `1`, and `?` for not looked at.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Engine {
    /// What sets a drained queue going again.
    pub restart: EngineRestart,
    /// Where the head stays on an error.
    pub error_head: EngineErrorHead,
    /// Entries of the ring that the engine walks.
    pub ring_entries: u16,
    /// Entries of the ring's memory.
    pub memory_entries: u16,
    /// HALT before RUN was written for the first time.
    pub halt_at_rest: u8,
    /// HALT of a drained queue, RUN written.
    pub halt_drained: u8,
    /// HALT of a drained queue, RUN taken away.
    pub halt_stopped: u8,
    /// Whether HALT, at 1, read 0 after control was written.
    pub halt_cleared_by_write: u8,
    /// RUN of a drained queue, as it reads back.
    pub run_drained: u8,
    /// Whether the job field of the status register was ever not zero.
    pub job_status: u8,
    /// Copies inside the ring that failed meanwhile.
    pub failed_copies: u8,
}

/// Things that tracepoints tell of.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A descriptor failed; the engine's error code.
    Error = 0,
    /// The channel is out of order.
    Fault = 1,
    /// A halted engine was started again.
    Restarted = 2,
    /// An interrupt did not come.
    LostInterrupt = 3,
    /// The engine was stopped; how many descriptors were taken back.
    Terminated = 4,
    /// The engine could not be proved stopped; its control register.
    NotStopped = 5,
    /// The channel is in use again.
    Revived = 6,
    /// The channel does not come up again; a reset may help.
    Retired = 7,
    /// At bring-up the engine did not start; its head register in the upper half, its tail register
    /// in the lower one.
    NothingMoves = 8,
}

const _: () = assert!(Event::NothingMoves as usize + 1 == EVENTS);

/// What a lock is for: each kind is a class of its own for lockdep.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// The settings.
    Settings = 0,
    /// What is known of a channel number.
    Seat = 1,
    /// A channel.
    Port = 2,
}

/// Room for a `spinlock_t` with all of its debugging.
#[repr(C)]
#[derive(Debug, Default)]
pub struct RawLock {
    /// Belongs to the kernel.
    pub words: [u64; 16],
}

/// A batch in flight, as C keeps it.
#[repr(C)]
#[derive(Debug)]
pub struct Batch {
    opaque: [u8; 0],
}
