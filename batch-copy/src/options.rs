//! How a batch is to be run.

use ptdma::DmaAddr;

use crate::plan::CutRules;

/// How a batch is to be run.
///
/// ```
/// use batch_copy::Options;
/// let mut options = Options::default();
/// options.channels = 4;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Most channels to use; see [`Policy`](crate::Policy).
    pub channels: usize,
    /// The one channel to use, to test it for example.
    pub only: Option<usize>,
    /// How to cut.
    pub rules: CutRules,
    /// NUMA node of the destinations, if they are on one.
    pub dst_node: Option<u16>,
    /// NUMA node of the sources, if they are on one.
    pub src_node: Option<u16>,
    /// Time for the whole batch. Then nothing new is begun, and what was not is left to the
    /// caller.
    pub budget_ns: u64,
    /// Time after that for what engines are at. Then they are stopped.
    pub grace_ns: u64,
    /// How long an engine may have work and not move before it is stopped and its work given to
    /// others. Must exceed the time for the longest descriptor.
    pub hang_ns: u64,
    /// One past the highest address that a folio may have: 2^48 for what PTDMA can reach without
    /// translation.
    pub addr_limit: u64,
    /// Bytes that the CPU copies itself while engines copy the rest; needs a
    /// [`CpuCopier`](crate::CpuCopier). See [`Policy`](crate::Policy).
    pub cpu_share_bytes: u64,
    /// Whether the CPU copies what engines failed, were not given, or did not get to for want of
    /// a channel; needs a [`CpuCopier`](crate::CpuCopier). Otherwise that is left to the caller.
    pub repair: bool,
    /// Whether the lane that should finish last interrupts for all of them, if the wait wants
    /// interrupts at all. Otherwise each lane does.
    pub one_interrupt: bool,
    /// Time that one channel takes for 1 MiB, to know when looking is worth it. 0: not known.
    pub engine_ns_per_mib: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            channels: usize::MAX,
            only: None,
            rules: CutRules::default(),
            dst_node: None,
            src_node: None,
            // 10 s is what the published migrator waits for a batch.
            budget_ns: 10_000_000_000,
            // The longest descriptor, 2 MiB, takes 144 us on a channel of 14.6 GB/s; a ring of
            // 512 of them 74 ms.
            grace_ns: 100_000_000,
            hang_ns: 1_000_000_000,
            addr_limit: DmaAddr::LIMIT,
            cpu_share_bytes: 0,
            repair: false,
            one_interrupt: true,
            engine_ns_per_mib: 0,
        }
    }
}
