//! The published numbers: `move_pages` throughput on a two-socket Zen 3 EPYC with 16 PTDMA
//! functions, 1 GB in all, from the cover letter of the migration offload series (v7.0-rc2).

/// Folio sizes of the columns, in bytes.
pub const FOLIO_LEN_BYTES: [u64; 6] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20];

/// The CPU alone, GB/s.
pub const CPU: [f64; 6] = [3.55, 5.66, 6.16, 7.12, 6.93, 10.88];

/// Numbers of channels of the rows.
pub const CHANNELS: [usize; 6] = [1, 2, 4, 8, 12, 16];

/// The published migrator over dmaengine, GB/s, by number of channels.
pub const DCBM: [[f64; 6]; 6] = [
    [2.63, 2.92, 3.16, 4.75, 7.38, 12.64],
    [3.20, 4.68, 5.16, 7.42, 8.05, 14.40],
    [3.78, 6.45, 7.36, 9.70, 11.68, 27.16],
    [4.32, 8.20, 9.45, 12.99, 13.18, 46.17],
    [4.35, 8.80, 11.65, 15.46, 14.69, 60.89],
    [4.40, 9.25, 11.02, 13.56, 18.04, 66.86],
];

/// How far the published runs of [`DCBM`] were apart, GB/s (+-).
pub const DCBM_SPREAD: [[f64; 6]; 6] = [
    [0.26, 0.09, 0.13, 0.70, 0.18, 0.07],
    [0.12, 0.17, 0.36, 1.00, 0.05, 0.10],
    [0.16, 0.06, 0.18, 0.11, 2.37, 0.20],
    [0.24, 0.45, 0.26, 2.87, 0.08, 0.67],
    [0.16, 0.09, 2.71, 4.95, 4.10, 0.68],
    [0.19, 0.13, 0.26, 0.15, 7.11, 0.81],
];

/// One folio of 2 MiB as a batch of its own (the second published table), GB/s: CPU, and the
/// migrator with one channel.
pub const ONE_FOLIO: (f64, f64) = (7.34, 6.17);

/// Copy rate of that CPU in bytes per second: what is left of the baseline at 2 MiB when its fixed
/// costs are taken away.
pub const CPU_BYTES_PER_SECOND: f64 = 11.2e9;

/// Nanoseconds that moving one folio takes beside the copy (unmap, allocate, move, remap): the
/// baseline less the copy.
#[must_use]
pub fn other_ns(len_bytes: u64, baseline_gb_per_s: f64) -> f64 {
    let len = len_bytes as f64;
    len / baseline_gb_per_s - len / CPU_BYTES_PER_SECOND * 1e9
}
