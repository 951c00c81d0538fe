//! `cargo vm demo`: a live process's memory moved between nodes while it writes to it, by the CPU,
//! by the dmaengine migrator and by ours, every byte compared.

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};

use super::MODULES;
use super::measure::{self, Migrator};
use crate::kernel::{Kernel, Variant};
use crate::machine::{Guest, Options};
use crate::suite::mover;
use crate::{build, run_dir, step, toolchain};

/// PTDMA functions: as many as the machine of the published tables has.
const CHANNELS: usize = 16;
/// Memory that moves at once: a few batches of the kernel's default size.
const AT_ONCE_KIB: u64 = 16 << 10;
/// Threads that write to the pages while they move.
const WRITERS: u64 = 2;
/// Smallest, middle and largest folio of the published tables, in KiB.
const FOLIO_KIB: [u64; 3] = [4, 64, 2048];

/// Runs it; an error unless every byte was where it had to be.
pub(crate) fn run() -> Result<bool> {
    toolchain::require_for_modules(MODULES)?;
    Kernel::get(Variant::Fast)?;
    build::server()?;
    let logs = run_dir::logs()?;
    let table = moves(&logs).with_context(|| format!("logs: {}", logs.display()))?;
    println!(
        "{CHANNELS} channels, {} MiB moved for each line by move_pages(2) while {WRITERS} threads \
         write to it",
        (AT_ONCE_KIB * measure::TIMES) >> 10
    );
    println!("{table}");
    println!(
        "counts of the devices; the processor is emulated and the devices are a model, so there \
         is no throughput to speak of (`cargo vm bench` counts instructions)"
    );
    println!("VERIFIED: every byte, every node and every write");
    let _ = std::fs::remove_dir_all(&logs);
    Ok(true)
}

fn moves(logs: &std::path::Path) -> Result<Table> {
    let migrators = [Migrator::Cpu, Migrator::Dcbm, Migrator::Ptdma];
    let bar = step::bar("demo", (migrators.len() * FOLIO_KIB.len()) as u64);
    let mut guest = Guest::boot(
        Options {
            devices: CHANNELS,
            node_memory_mib: 640,
            modules: MODULES.to_vec(),
            ..Options::default()
        },
        logs,
    )?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "copied by",
        "folio KiB",
        "folios moved",
        "by engines",
        "writes meanwhile",
        "MMIO per folio",
        "interrupts per folio",
        "channels used",
    ]);
    for migrator in migrators {
        migrator.start(&mut guest, CHANNELS, &[])?;
        for kib in FOLIO_KIB {
            bar.set_message(format!("{migrator}, {kib} KiB"));
            let migrated = migrator.migrated_file();
            let files: Vec<&str> = migrated.iter().map(String::as_str).collect();
            let (folios, rounds) = measure::folios_and_rounds(kib, AT_ONCE_KIB / kib);
            let command = mover::mover(
                kib,
                &format!(
                    "--bytes {}K --rounds {rounds} --writers {WRITERS}",
                    folios * kib
                ),
                &files,
            );
            guest.server()?.reset_counters()?;
            let report = measure::run(&mut guest, &command)?;
            let counters = guest.server()?.counters()?;
            let used = guest
                .server()?
                .counters_by_device()?
                .iter()
                .filter(|device| device.bytes > 0)
                .count();
            let moved = report.folios_moved()?.max(1);
            let by_engines = match &migrated {
                Some(file) => report.counter(file)?,
                None => 0,
            };
            let per = |count: u64| format!("{:.3}", count as f64 / moved as f64);
            table.add_row([
                migrator.to_string(),
                kib.to_string(),
                moved.to_string(),
                by_engines.to_string(),
                report.number("/writes")?.to_string(),
                per(counters.mmio_reads + counters.mmio_writes),
                per(counters.interrupts),
                used.to_string(),
            ]);
            bar.inc(1);
        }
        migrator.stop(&mut guest)?;
    }
    bar.finish_and_clear();
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    Ok(table)
}
