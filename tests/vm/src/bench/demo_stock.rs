//! `cargo vm demo stock`: a process's memory moved between nodes while it writes to it, on Debian's
//! own kernel, by the CPU, through the livepatch and through the device, every byte compared.

use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};

use super::measure;
use crate::kernel::{Kernel, Variant};
use crate::machine::{Guest, Options};
use crate::suite::{mover, stock_debian};
use crate::{build, run_dir, step, toolchain};

const MODULES: &[&str] = &["kshim"];
/// PTDMA functions: as many as the machine of the published tables has.
const CHANNELS: usize = 16;
/// Threads that write to the pages while they move.
const WRITERS: u64 = 2;
const MIGRATED: &str = "/sys/module/ptdma_migrator/parameters/folios_migrated";

/// A line of the table.
struct Way {
    by: &'static str,
    folio_kib: u64,
    call: &'static str,
    engines: bool,
}

const fn way(by: &'static str, folio_kib: u64, call: &'static str, engines: bool) -> Way {
    Way {
        by,
        folio_kib,
        call,
        engines,
    }
}

const WAYS: [Way; 4] = [
    way("CPU", 2048, "move_pages", false),
    way("engines, livepatch", 2048, "move_pages", true),
    way("CPU", 4, "move_pages", false),
    way("engines, device", 4, "device", true),
];

/// Runs it; an error unless every byte was where it had to be.
pub(crate) fn run() -> Result<bool> {
    toolchain::require_for_modules(MODULES)?;
    let kernel = Kernel::get(Variant::Debian612)?;
    build::server()?;
    let logs = run_dir::logs()?;
    let table = moves(&logs).with_context(|| format!("logs: {}", logs.display()))?;
    println!(
        "Debian's kernel {}, {CHANNELS} emulated channels, 32 MiB moved to and fro twice for each \
         line while {WRITERS} threads write to it",
        kernel.release()
    );
    println!("{table}");
    println!(
        "counts of the devices; the processor is emulated and the devices are a model, so there \
         is no throughput to speak of"
    );
    println!("VERIFIED: every byte, every node and every write");
    let _ = std::fs::remove_dir_all(&logs);
    Ok(true)
}

fn moves(logs: &Path) -> Result<Table> {
    let bar = step::bar("demo", WAYS.len() as u64);
    let mut guest = Guest::boot(
        Options {
            kernel: Variant::Debian612,
            devices: CHANNELS,
            modules: MODULES.to_vec(),
            ..Options::default()
        },
        logs,
    )?;
    guest.ok("modprobe ptdma_migrator selftest=1 && modprobe ptdma_move")?;
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
    for way in WAYS {
        bar.set_message(format!("{}, {} KiB", way.by, way.folio_kib));
        let livepatch = way.engines && way.call == "move_pages";
        if livepatch {
            stock_debian::enable(&mut guest)?;
        }
        let command = mover::mover(
            way.folio_kib,
            &format!(
                "--call {} --bytes 32M --rounds 4 --writers {WRITERS}",
                way.call
            ),
            &[MIGRATED],
        );
        guest.server()?.reset_counters()?;
        let report = measure::run(&mut guest, &command)?;
        let counters = guest.server()?.counters()?;
        let each = guest.server()?.counters_by_device()?;
        let used = each.iter().filter(|device| device.bytes > 0).count();
        let moved = report.folios_moved()?.max(1);
        let per = |count: u64| format!("{:.3}", count as f64 / moved as f64);
        table.add_row([
            way.by.to_owned(),
            way.folio_kib.to_string(),
            moved.to_string(),
            report.counter(MIGRATED)?.to_string(),
            report.number("/writes")?.to_string(),
            per(counters.mmio_reads + counters.mmio_writes),
            per(counters.interrupts),
            used.to_string(),
        ]);
        if livepatch {
            stock_debian::disable(&mut guest)?;
        }
        bar.inc(1);
    }
    guest.ok("rmmod ptdma_move && rmmod ptdma_migrator")?;
    bar.finish_and_clear();
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    Ok(table)
}
