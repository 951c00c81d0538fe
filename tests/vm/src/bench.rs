//! The published tables, scaled down: what a migrator costs the guest and its devices.
//!
//! The devices are as fast as the host copies, the guest's processor is emulated: counts
//! can be compared with each other, throughput with nothing.

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::machine::{Guest, Options};
use crate::run_dir;
use crate::step;
use crate::suite::mover::{FOLIO_KIB, Report, mover, run, set};

const MAX_BATCH: &str = "/sys/kernel/mm/migrate_offload/max_batch_pages";
/// Folios of 2 MiB in the published table end at 8192; the guest has memory for these.
const FOLIO_COUNTS: [u64; 6] = [1, 2, 4, 8, 16, 32];
/// Huge pages asked for in the compaction experiment, MiB.
const COMPACTED_MIB: u64 = 32;
/// With `-icount shift=0` an instruction takes one nanosecond of the guest's time, so its
/// clocks of processor time count instructions.
const ICOUNT_SHIFT: u8 = 0;

/// Who copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Migrator {
    /// Nobody: the kernel, folio by folio.
    Cpu,
    /// The dmaengine migrator on the stock driver.
    Dcbm,
    /// The module of this tree.
    Ours,
}

impl Migrator {
    /// The name in the list of modules, the kernel modules to load, where its controls
    /// are.
    fn module(self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Self::Cpu => None,
            Self::Dcbm => Some(("dcbm", "ptdma dcbm", "/sys/kernel/dcbm")),
            Self::Ours => Some((
                "kshim",
                "ptdma_migrator",
                "/sys/module/ptdma_migrator/parameters",
            )),
        }
    }
}

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Who copies
    #[arg(long, value_delimiter = ',', default_value = "cpu,dcbm,ours")]
    migrator: Vec<Migrator>,
    /// Numbers of channels
    #[arg(long, value_delimiter = ',', default_value = "1,4,16")]
    channels: Vec<usize>,
    /// Bytes moved for each cell of the first table, MiB
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(2..=128))]
    mib: u64,
    /// Base pages in a batch (0: the kernel's default, 512)
    #[arg(long, default_value_t = 0)]
    batch_pages: u64,
    /// Do not count instructions: faster, and processor time is that of the host
    #[arg(long)]
    no_icount: bool,
    /// Only the first table
    #[arg(long)]
    short: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One measurement.
#[derive(Debug, Serialize)]
struct Cell {
    table: &'static str,
    migrator: Migrator,
    channels: usize,
    folio_kib: u64,
    folios: u64,
    bytes_verified: u64,
    /// Folios that the devices copied.
    by_device: u64,
    /// Instructions of the guest with icount, else nanoseconds.
    cpu_per_folio: f64,
    mmio_per_folio: f64,
    interrupts_per_folio: f64,
    descriptors: u64,
    device_bytes: u64,
    /// Emulated, not comparable with anything.
    emulated_mib_per_s: f64,
}

/// One run of the compaction experiment.
#[derive(Debug, Serialize)]
struct Compaction {
    migrator: Migrator,
    busy: bool,
    migrated_pages: u64,
    by_device: u64,
    wall_ms: f64,
    hog_turns: u64,
    user_ticks: u64,
    system_ticks: u64,
    idle_ticks: u64,
}

#[derive(Debug, Serialize)]
struct Results {
    cpu_unit: &'static str,
    note: &'static str,
    batch_pages: u64,
    cells: Vec<Cell>,
    compaction: Vec<Compaction>,
}

/// Measures and prints.
pub(crate) fn run_all(arguments: &Arguments) -> Result<()> {
    let most = arguments.channels.iter().copied().max().unwrap_or(0);
    ensure!(
        (1..=16).contains(&most) && !arguments.channels.contains(&0),
        "--channels takes numbers from 1 to 16"
    );
    let logs = run_dir::logs()?;
    let mut modules = Vec::new();
    for migrator in &arguments.migrator {
        modules.extend(migrator.module().map(|(name, ..)| name));
    }
    let options = Options {
        devices: most,
        icount: (!arguments.no_icount).then_some(ICOUNT_SHIFT),
        modules,
        ..Options::default()
    };
    let mut results = Results {
        cpu_unit: if arguments.no_icount {
            "ns"
        } else {
            "instructions"
        },
        note: "emulated guest: counts are comparable, throughput is not; processor time is \
               that of the task that migrates, without interrupts",
        batch_pages: arguments.batch_pages,
        cells: Vec::new(),
        compaction: Vec::new(),
    };
    let bar = step::bar("benchmark", arguments.migrator.len() as u64);
    let mut guest = Guest::boot(options, &logs)?;
    set(&mut guest, MAX_BATCH, &arguments.batch_pages.to_string())?;
    for &migrator in &arguments.migrator {
        bar.set_message(format!("{migrator:?}"));
        measure(&mut guest, migrator, arguments, &mut results)?;
        bar.inc(1);
    }
    guest.expect_clean_dmesg()?;
    bar.finish_and_clear();
    drop(guest);
    let _ = std::fs::remove_dir_all(&logs);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        print(&results);
    }
    Ok(())
}

fn measure(
    guest: &mut Guest,
    migrator: Migrator,
    arguments: &Arguments,
    results: &mut Results,
) -> Result<()> {
    if let Some((_, modules, _)) = migrator.module() {
        guest.ok(&format!("for m in {modules}; do modprobe $m || exit; done"))?;
    }
    let channels: &[usize] = match migrator {
        Migrator::Cpu => &[0],
        Migrator::Dcbm | Migrator::Ours => &arguments.channels,
    };
    for &count in channels {
        switch(guest, migrator, count)?;
        for folio_kib in FOLIO_KIB {
            let folios = (arguments.mib << 10) / folio_kib;
            let cell = cell(guest, "folio size", migrator, count, folio_kib, folios)?;
            results.cells.push(cell);
        }
        if !arguments.short {
            for folios in FOLIO_COUNTS {
                let cell = cell(guest, "folio count", migrator, count, 2048, folios)?;
                results.cells.push(cell);
            }
        }
        switch(guest, migrator, 0)?;
    }
    if !arguments.short {
        let most = channels.iter().copied().max().unwrap_or(0);
        for busy in [false, true] {
            switch(guest, migrator, most)?;
            results.compaction.push(compaction(guest, migrator, busy)?);
            switch(guest, migrator, 0)?;
        }
    }
    if let Some((_, modules, _)) = migrator.module() {
        let reversed: Vec<&str> = modules.split(' ').rev().collect();
        guest.ok(&format!("rmmod {}", reversed.join(" ")))?;
    }
    Ok(())
}

/// Registers a migrator with so many channels; none unregisters it.
fn switch(guest: &mut Guest, migrator: Migrator, channels: usize) -> Result<()> {
    let Some((_, _, controls)) = migrator.module() else {
        return Ok(());
    };
    if channels == 0 {
        return set(guest, &format!("{controls}/offloading"), "0");
    }
    set(
        guest,
        &format!("{controls}/nr_dma_chan"),
        &channels.to_string(),
    )?;
    set(guest, &format!("{controls}/offloading"), "1")
}

/// The file that counts folios which devices have copied.
fn copied_file(migrator: Migrator) -> Option<String> {
    migrator
        .module()
        .map(|(_, _, controls)| format!("{controls}/folios_migrated"))
}

fn by_device(report: &Report, file: Option<&str>) -> Result<u64> {
    file.map_or(Ok(0), |file| report.counter(file))
}

fn cell(
    guest: &mut Guest,
    table: &'static str,
    migrator: Migrator,
    channels: usize,
    folio_kib: u64,
    folios: u64,
) -> Result<Cell> {
    let file = copied_file(migrator);
    let counters: Vec<&str> = file.as_deref().into_iter().collect();
    guest.server()?.reset_counters()?;
    let bytes = (folios * folio_kib) << 10;
    let report = run(
        guest,
        &mover(folio_kib, &format!("--bytes {bytes}"), &counters),
    )?;
    let device = guest.server()?.reset_counters()?;
    let moved = report.folios_moved()?;
    if moved != folios {
        bail!("{moved} folios moved, expected {folios}");
    }
    let per = |count: u64| count as f64 / moved as f64;
    let move_ns = report.number("/phase_ns/move")?.max(1);
    Ok(Cell {
        table,
        migrator,
        channels,
        folio_kib,
        folios: moved,
        bytes_verified: report.number("/bytes")?,
        by_device: by_device(&report, file.as_deref())?,
        cpu_per_folio: per(report.number("/move_cpu_ns")?),
        mmio_per_folio: per(device.accesses()),
        interrupts_per_folio: per(device.interrupts),
        descriptors: device.descriptors,
        device_bytes: device.bytes,
        emulated_mib_per_s: bytes as f64 / f64::from(1 << 20) / (move_ns as f64 / 1e9),
    })
}

fn compaction(guest: &mut Guest, migrator: Migrator, busy: bool) -> Result<Compaction> {
    let file = copied_file(migrator);
    let mut command = format!("compactor --huge-mib {COMPACTED_MIB}");
    if busy {
        command.push_str(" --hog");
    }
    if let Some(file) = &file {
        command.push_str(&format!(" --counter {file}"));
    }
    let report = run(guest, &command)?;
    Ok(Compaction {
        migrator,
        busy,
        migrated_pages: report.number("/vmstat/pgmigrate_success")?,
        by_device: by_device(&report, file.as_deref())?,
        wall_ms: report.number("/wall_ns")? as f64 / 1e6,
        hog_turns: report.number("/hog_turns")?,
        user_ticks: report.number("/ticks/user")?,
        system_ticks: report.number("/ticks/system")?,
        idle_ticks: report.number("/ticks/idle")?,
    })
}

fn print(results: &Results) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "table",
        "migrator",
        "channels",
        "folio",
        "folios",
        "verified",
        "by device",
        &format!("{} / folio", results.cpu_unit),
        "MMIO / folio",
        "irq / folio",
        "descriptors",
        "emulated MiB/s",
    ]);
    for cell in &results.cells {
        table.add_row([
            cell.table.to_owned(),
            format!("{:?}", cell.migrator).to_lowercase(),
            cell.channels.to_string(),
            format!("{}K", cell.folio_kib),
            cell.folios.to_string(),
            format!("{} KiB", cell.bytes_verified >> 10),
            cell.by_device.to_string(),
            format!("{:.0}", cell.cpu_per_folio),
            format!("{:.3}", cell.mmio_per_folio),
            format!("{:.3}", cell.interrupts_per_folio),
            cell.descriptors.to_string(),
            format!("{:.0}", cell.emulated_mib_per_s),
        ]);
    }
    align(&mut table, 2);
    println!("{table}");
    if !results.compaction.is_empty() {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header([
            "compaction",
            "processor",
            "migrated",
            "by device",
            "wall, ms",
            "hog turns",
            "user",
            "system",
            "idle",
        ]);
        for row in &results.compaction {
            table.add_row([
                format!("{:?}", row.migrator).to_lowercase(),
                if row.busy { "busy" } else { "idle" }.to_owned(),
                row.migrated_pages.to_string(),
                row.by_device.to_string(),
                format!("{:.0}", row.wall_ms),
                row.hog_turns.to_string(),
                row.user_ticks.to_string(),
                row.system_ticks.to_string(),
                row.idle_ticks.to_string(),
            ]);
        }
        align(&mut table, 2);
        println!("{table}");
    }
    println!("{}", results.note);
}

/// Numbers to the right, from a column on.
fn align(table: &mut Table, from: usize) {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
