//! The machine of the benchmark.

use super::MODULES;
use crate::machine::Options;

/// Room for the kernel and the image beside what is moved.
const BASE_MIB: u64 = 384;

/// One processor that counts instructions, on one of two nodes; the other has memory
/// only, like a memory expander.
pub(super) fn options(channels: usize, moved_mib: u64, compacted_mib: u64) -> Options {
    Options {
        devices: channels,
        cpus: 1,
        // 2^0: one instruction is one nanosecond of the guest's time.
        icount: Some(0),
        node_memory_mib: BASE_MIB + moved_mib.max(compacted_mib * 3 / 4),
        modules: MODULES.to_vec(),
        ..Options::default()
    }
}
