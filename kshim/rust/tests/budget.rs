//! The memory that sixteen channels take, all told.

use ptdma_kshim::abi::{DESCRIPTOR_BYTES, Settings};
use ptdma_kshim::exports::{ptdma_rs_scratch_bytes, ptdma_rs_system_bytes};

/// `struct ptdma_batch` of C: 512 folios of 24 bytes, 1024 parts of 32, and small change;
/// `batch.c` refuses to compile if it is larger.
const C_BATCH_BYTES: usize = 52 << 10;
/// `PTDMA_MAX_BATCHES` of C.
const BATCHES: usize = 8;
const CHANNELS: usize = 16;

#[test]
fn rings_pools_and_state_of_sixteen_channels_stay_below_two_mib() {
    let rings = CHANNELS * Settings::default().ring_entries as usize * DESCRIPTOR_BYTES;
    let batches = BATCHES * (C_BATCH_BYTES + ptdma_rs_scratch_bytes());
    let all = rings + batches + ptdma_rs_system_bytes();
    println!(
        "rings {rings}, batches {batches} (scratch {}), system {}: {all} bytes",
        ptdma_rs_scratch_bytes(),
        ptdma_rs_system_bytes()
    );
    assert!(all < 2 << 20, "{all} bytes");
}
