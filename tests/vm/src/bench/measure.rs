//! One cell at a time.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use super::trace;
use crate::machine::Guest;
use crate::suite::mover::{self, Report};

/// How often the bytes of a cell are moved; the first time finds cold code.
pub(super) const TIMES: u64 = 4;

/// How a cell moves its folios [`TIMES`] times: (folios at once, rounds to and fro).
///
/// The kernel splits a large folio below 2 MiB that migrates again: it was mapped by
/// pages, and counts as partly mapped since. Of those, there are more instead.
pub(super) fn folios_and_rounds(folio_kib: u64, count: u64) -> (u64, u64) {
    match folio_kib {
        4 | 2048 => (count, TIMES),
        _ => (count * TIMES, 1),
    }
}
/// Compaction moves about half of the pages; far below this part of them, it has found no
/// free ones.
const FAIR_PART: u64 = 16;
/// One cell, on an emulated processor that somebody else keeps busy.
const CELL_LIMIT: Duration = Duration::from_secs(300);

/// Who copies the folios of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Migrator {
    /// The kernel, folio by folio.
    Cpu,
    /// The dmaengine migrator on the stock driver.
    Dcbm,
    /// Ours.
    Ptdma,
}

impl fmt::Display for Migrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Dcbm => "dcbm",
            Self::Ptdma => "ptdma",
        })
    }
}

/// The control files of a migrator, which have the same names in both.
struct Controls {
    modules: &'static str,
    folder: &'static str,
}

impl Migrator {
    fn controls(self) -> Option<Controls> {
        match self {
            Self::Cpu => None,
            Self::Dcbm => Some(Controls {
                modules: "modprobe ptdma && modprobe dcbm",
                folder: "/sys/kernel/dcbm",
            }),
            // It copies whatever it is given, also what its cost model would leave to
            // the CPU: every cell is to be measured.
            Self::Ptdma => Some(Controls {
                modules: "modprobe ptdma_migrator && \
                          echo 4 > /sys/module/ptdma_migrator/parameters/min_batch_kb",
                folder: "/sys/module/ptdma_migrator/parameters",
            }),
        }
    }

    /// Loads the modules and makes this one the kernel's migrator.
    pub(super) fn start(
        self,
        guest: &mut Guest,
        channels: usize,
        parameters: &[String],
    ) -> Result<()> {
        let Some(Controls { modules, folder }) = self.controls() else {
            return Ok(());
        };
        guest.ok(modules)?;
        if self == Self::Ptdma {
            for parameter in parameters {
                let (name, value) = parameter
                    .split_once('=')
                    .with_context(|| format!("--set {parameter} is not NAME=VALUE"))?;
                guest.ok(&format!("echo {value} > {folder}/{name}"))?;
            }
        }
        guest.ok(&format!(
            "echo {channels} > {folder}/nr_dma_chan && echo 1 > {folder}/offloading"
        ))?;
        Ok(())
    }

    /// Unregisters and unloads, so that the next one gets the functions.
    pub(super) fn stop(self, guest: &mut Guest) -> Result<()> {
        if let Some(Controls { folder, .. }) = self.controls() {
            guest.ok(&format!("echo 0 > {folder}/offloading"))?;
        }
        match self {
            Self::Cpu => {}
            Self::Dcbm => drop(guest.ok("rmmod dcbm && rmmod ptdma")?),
            Self::Ptdma => drop(guest.ok("rmmod ptdma_migrator")?),
        }
        Ok(())
    }

    /// The function that copies.
    pub(super) fn copy_function(self) -> &'static str {
        match self {
            Self::Cpu => "folio_mc_copy",
            Self::Dcbm => "dcbm_offload_copy",
            Self::Ptdma => "ptdma_copy_batch",
        }
    }

    pub(super) fn migrated_file(self) -> Option<String> {
        self.controls()
            .map(|controls| format!("{}/folios_migrated", controls.folder))
    }
}

/// What moving folios of one size cost.
#[derive(Debug, Serialize)]
pub(super) struct Cell {
    pub(super) migrator: Migrator,
    pub(super) channels: usize,
    pub(super) folio_kib: u64,
    /// Folios that one call moved.
    pub(super) at_once: u64,
    /// Folios that moved, all rounds together; every byte of them was compared.
    pub(super) folios: u64,
    /// Of those, how many the migrator copied.
    pub(super) by_device: u64,
    /// Instructions of the guest's processor in `move_pages`, interrupts included.
    pub(super) instructions_per_folio: f64,
    /// Of those, in the copy: `folio_mc_copy` of the kernel, or the migrator's
    /// own; interrupts included. Nothing if it cannot be told.
    pub(super) copy_instructions_per_folio: Option<f64>,
    pub(super) reads_per_folio: f64,
    pub(super) writes_per_folio: f64,
    pub(super) interrupts_per_folio: f64,
    pub(super) descriptors_per_folio: f64,
    /// Channels that copied anything; each batch takes its own, at most as many as were
    /// asked for.
    pub(super) channels_used: usize,
    /// The largest share of a channel over the mean share.
    pub(super) imbalance: f64,
    pub(super) verified_bytes: u64,
    /// Emulated, not comparable with anything.
    pub(super) emulated_mb_per_s: f64,
}

/// Moves `count` folios to and fro, and counts.
pub(super) fn folios(
    guest: &mut Guest,
    migrator: Migrator,
    channels: usize,
    folio_kib: u64,
    count: u64,
) -> Result<Cell> {
    let migrated = migrator.migrated_file();
    let files: Vec<&str> = migrated.iter().map(String::as_str).collect();
    let (at_once, rounds) = folios_and_rounds(folio_kib, count);
    let command = mover::mover(
        folio_kib,
        &format!("--count --bytes {}K --rounds {rounds}", at_once * folio_kib),
        &files,
    );
    let copying = trace::instructions(guest, migrator, &command)?;
    guest.server()?.reset_counters()?;
    let report = run(guest, &command)?;
    let each = guest.server()?.counters_by_device()?;
    let total = guest.server()?.counters()?;

    let moved = report.folios_moved()?;
    // More of them, if the kernel has split some: then this is not their size.
    ensure!(
        moved == at_once * rounds,
        "`{command}` moved {moved} folios instead of {}",
        at_once * rounds
    );
    let by_device = match &migrated {
        Some(file) => report.counter(file)?,
        None => 0,
    };
    let used = each.iter().filter(|counters| counters.bytes > 0).count();
    let most = each
        .iter()
        .map(|counters| counters.bytes)
        .max()
        .unwrap_or(0);
    let per = |count: u64| count as f64 / moved as f64;
    let bytes = moved * (folio_kib << 10);
    let move_ns = report.number("/phase_ns/move")?.max(1);
    Ok(Cell {
        migrator,
        channels,
        folio_kib,
        at_once,
        folios: moved,
        by_device,
        instructions_per_folio: per(report.number("/phase_ns/busy")?),
        copy_instructions_per_folio: copying.map(per),
        reads_per_folio: per(total.mmio_reads),
        writes_per_folio: per(total.mmio_writes),
        interrupts_per_folio: per(total.interrupts),
        descriptors_per_folio: per(total.descriptors),
        channels_used: used,
        imbalance: if total.bytes == 0 {
            0.0
        } else {
            (most * used as u64) as f64 / total.bytes as f64
        },
        verified_bytes: bytes,
        emulated_mb_per_s: bytes as f64 * 1000.0 / move_ns as f64,
    })
}

/// What compacting a fragmented node cost.
#[derive(Debug, Serialize)]
pub(super) struct Compaction {
    pub(super) migrator: Migrator,
    /// A thread that wants all of the processor runs beside it.
    pub(super) busy: bool,
    /// Pages that were left, every other one of the memory.
    pub(super) pages_fragmented: u64,
    /// Pages that compaction moved: at most half of those, since it moves from one end of the
    /// memory to the other.
    pub(super) pages_migrated: u64,
    /// Millions of instructions, without the thread beside it when there is none.
    pub(super) million_instructions: f64,
    /// Turns that the thread beside it got meanwhile, per page that was migrated.
    pub(super) hog_turns_per_page: f64,
    pub(super) descriptors: u64,
    pub(super) interrupts: u64,
}

/// Fragments memory and has it compacted.
pub(super) fn compaction(
    guest: &mut Guest,
    migrator: Migrator,
    mib: u64,
    busy: bool,
) -> Result<Compaction> {
    let command = format!(
        "compactor --bytes-mib {mib} {}",
        if busy { "--hog" } else { "--count" }
    );
    guest.server()?.reset_counters()?;
    let report = run(guest, &command)?;
    let total = guest.server()?.counters()?;
    let fragmented = report.number("/fragmented_pages")?;
    let pages = report.number("/vmstat/pgmigrate_success")?;
    ensure!(
        pages >= fragmented / FAIR_PART,
        "`{command}` moved only {pages} of {fragmented} pages: these would be the figures of \
         looking for work; fragment more (--compact-mib)"
    );
    let taken = report.number(if busy { "/wall_ns" } else { "/busy_ns" })? as f64 / 1e6;
    Ok(Compaction {
        migrator,
        busy,
        pages_fragmented: fragmented,
        pages_migrated: pages,
        million_instructions: taken,
        hog_turns_per_page: report.number("/hog_turns")? as f64 / pages.max(1) as f64,
        descriptors: total.descriptors,
        interrupts: total.interrupts,
    })
}

pub(super) fn run(guest: &mut Guest, command: &str) -> Result<Report> {
    let text = guest.ok_within(command, CELL_LIMIT)?;
    mover::parse(command, &text).context("the guest's program")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_moves_the_same_bytes_and_none_is_split_first() {
        for kib in mover::FOLIO_KIB {
            let (at_once, rounds) = folios_and_rounds(kib, 8);
            assert_eq!(at_once * rounds, 8 * TIMES, "{kib}");
            assert!(rounds == 1 || kib == 4 || kib == 2048, "{kib}");
        }
    }
}
