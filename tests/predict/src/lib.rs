//! What the published benchmark would show with this tree's driver: a prediction in virtual time.
//!
//! The real driver and executor run against the device model; clocks, register accesses, engines
//! and the fabric cost what the published tables and a few assumptions say. What the tables do not
//! tell is an assumption with an option of its own: above all what an engine needs per
//! descriptor when its ring is full, which nobody has published.
//!
//! `time per folio = everything but the copy (from the published CPU baseline)
//!                  + the copy (simulated)`
//!
//! What the prediction says by default: no cell is behind the better of the published two by more
//! than the spread of their runs, whether a descriptor costs 100 ns or 5 us. What it hangs on is
//! the cost of mapping: `--map-ns 300` loses the 4K cells (the policy then leaves them to the CPU).
//! At 1M and 2M with 16 channels the published numbers are at the fabric's limit, and so are these.
//!
//! As a check of the method the published migrator is predicted the same way, with one number per
//! folio size fitted to its one-channel cell, and compared with its other cells.
#![forbid(unsafe_code)]

mod machine;
pub mod published;

use batch_copy::CostModel;
use clap::Args;
use serde::Serialize;

pub use machine::{MAX_CHANNELS, Machine, Memory};
use published::{
    CHANNELS, CPU, CPU_BYTES_PER_SECOND, DCBM, DCBM_SPREAD, FOLIO_LEN_BYTES, other_ns,
};

/// What is assumed about the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Args)]
pub struct Assumptions {
    /// Nanoseconds that an engine needs per descriptor beside its bytes (unknown; below 5200,
    /// which was a whole round trip of a 4 KiB descriptor in the first version of the series)
    #[arg(long, value_name = "NS", default_value_t = 500)]
    pub descriptor_ns: u64,
    /// Bytes per second of one engine (slope of the published tables)
    #[arg(long, value_name = "B", default_value_t = 15_000_000_000)]
    pub engine_bytes_per_second: u64,
    /// Bytes per second of all engines together (where the published 2M row saturates)
    #[arg(long, value_name = "B", default_value_t = 80_000_000_000)]
    pub fabric_bytes_per_second: u64,
    /// Nanoseconds of a register read
    #[arg(long, value_name = "NS", default_value_t = 800)]
    pub read_ns: u64,
    /// Nanoseconds of a register write
    #[arg(long, value_name = "NS", default_value_t = 100)]
    pub write_ns: u64,
    /// Nanoseconds of the CPU per descriptor (100 instructions)
    #[arg(long, value_name = "NS", default_value_t = 35)]
    pub prepare_ns: u64,
    /// The engines' addresses are physical: scattered folios stay scattered. Otherwise an IOMMU
    /// maps a batch at contiguous addresses, as the published machine's did in pieces of 64 KiB
    #[arg(long)]
    pub untranslated: bool,
    /// Nanoseconds of the CPU to map and unmap one folio on both sides, where there is an IOMMU
    /// (at most 140: what the published 4K cell with 16 channels leaves for copy and mapping)
    #[arg(long, value_name = "NS", default_value_t = 100)]
    pub map_ns: u64,
    /// Bytes of one batch; at least one folio. The stock kernel batches 2 MiB; the published 2M
    /// row cannot be reached with less than 16 folios
    #[arg(long, value_name = "B", default_value_t = 32 << 20)]
    pub batch_bytes: u64,
}

impl Assumptions {
    /// The same in the words of the policy, as a calibration would find them.
    #[must_use]
    pub fn cost_model(&self) -> CostModel {
        let per_mib = |rate: u64| {
            ((1u64 << 20) * 1_000_000_000)
                .checked_div(rate)
                .unwrap_or(0)
        };
        CostModel {
            cpu_folio_ns: 0,
            cpu_ns_per_mib: per_mib(CPU_BYTES_PER_SECOND as u64),
            engine_batch_ns: 2 * self.read_ns,
            channel_ns: 2 * self.write_ns + self.read_ns,
            prepare_ns: self.prepare_ns + if self.untranslated { 0 } else { self.map_ns },
            // Where folios merge, a calibration finds what is left of it per folio.
            descriptor_ns: if self.untranslated {
                self.descriptor_ns
            } else {
                0
            },
            engine_ns_per_mib: per_mib(self.engine_bytes_per_second),
            fabric_ns_per_mib: per_mib(self.fabric_bytes_per_second),
        }
    }

    fn folios(&self, len_bytes: u64) -> usize {
        usize::try_from(self.batch_bytes / len_bytes).map_or(1, |n| n.max(1))
    }
}

/// One cell of the prediction, all in GB/s.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cell {
    /// Folio size in bytes.
    pub folio_len_bytes: u64,
    /// Channels.
    pub channels: usize,
    /// Published: the CPU alone.
    pub cpu: f64,
    /// Published: the migrator over dmaengine.
    pub dcbm: f64,
    /// How far its published runs were apart (+-).
    pub dcbm_spread: f64,
    /// The same as this method has it, as a check.
    pub dcbm_modelled: f64,
    /// Predicted: this tree's executor, engines alone (or the CPU where the policy declines).
    pub ours: f64,
    /// Predicted: the CPU takes a share.
    pub hybrid: f64,
}

impl Cell {
    /// The better of the published two.
    #[must_use]
    pub fn to_beat(&self) -> f64 {
        self.cpu.max(self.dcbm)
    }

    /// Whether the prediction is at least the better of the published two, as far as these are
    /// known: within the spread of their runs, and a hundredth for what was fitted.
    #[must_use]
    pub fn keeps_up(&self) -> bool {
        let known = self.cpu.max(self.dcbm - self.dcbm_spread);
        self.ours.max(self.hybrid) >= 0.99 * known
    }
}

/// Predicts all cells for one folio size, by its index in [`FOLIO_LEN_BYTES`].
///
/// # Errors
///
/// If a simulated copy goes wrong.
pub fn column(assumed: &Assumptions, size: usize) -> anyhow::Result<Vec<Cell>> {
    let len = FOLIO_LEN_BYTES[size];
    let folios = assumed.folios(len);
    let other = other_ns(len, CPU[size]) * folios as f64;
    let bytes = (len * folios as u64) as f64;
    let gb_per_s = |copy_ns: f64| bytes / (other + copy_ns);
    let mut cells = Vec::new();
    for (row, &channels) in CHANNELS.iter().enumerate() {
        let simulate = |hybrid| -> anyhow::Result<f64> {
            let machine = Machine::new(assumed, channels, hybrid)?;
            let memory = machine.lay_out(len, folios)?;
            Ok(gb_per_s(machine.copy(&memory)? as f64))
        };
        cells.push(Cell {
            folio_len_bytes: len,
            channels,
            cpu: CPU[size],
            dcbm: DCBM[row][size],
            dcbm_spread: DCBM_SPREAD[row][size],
            dcbm_modelled: gb_per_s(dcbm_ns(assumed, size, channels)),
            ours: simulate(false)?,
            hybrid: simulate(true)?,
        });
    }
    Ok(cells)
}

/// The check of the method for one folio size: published and modelled cells of the published
/// migrator in GB/s, by number of channels.
#[must_use]
pub fn modelled(assumed: &Assumptions, size: usize) -> Vec<(f64, f64)> {
    let len = FOLIO_LEN_BYTES[size];
    let folios = assumed.folios(len);
    let other = other_ns(len, CPU[size]) * folios as f64;
    let bytes = (len * folios as u64) as f64;
    let rows = CHANNELS.iter().zip(DCBM);
    rows.map(|(&channels, published)| {
        let modelled = bytes / (other + dcbm_ns(assumed, size, channels));
        (published[size], modelled)
    })
    .collect()
}

/// One folio of 2 MiB alone, on so many channels: GB/s.
///
/// # Errors
///
/// If a simulated copy goes wrong.
pub fn one_folio(assumed: &Assumptions, channels: usize) -> anyhow::Result<f64> {
    let len = 2 << 20;
    let machine = Machine::new(assumed, channels, false)?;
    let memory = machine.lay_out(len, 1)?;
    let copy_ns = machine.copy(&memory)? as f64;
    // What this folio costs beside its copy is in the published number for one folio.
    Ok(len as f64 / (other_ns(len, published::ONE_FOLIO.0) + copy_ns))
}

/// The published strategy: folios dealt out to channels by count, one descriptor in flight for
/// each. The time of one folio comes from the cell with one channel.
fn dcbm_ns(assumed: &Assumptions, size: usize, channels: usize) -> f64 {
    let len = FOLIO_LEN_BYTES[size];
    let folios = assumed.folios(len);
    let one_ns = len as f64 / DCBM[0][size] - other_ns(len, CPU[size]);
    let rounds = folios.div_ceil(channels) as f64;
    let bytes = (len * folios as u64) as f64;
    let fabric_ns = bytes / assumed.fabric_bytes_per_second as f64 * 1e9;
    (rounds * one_ns).max(fabric_ns)
}
