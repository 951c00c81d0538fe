//! `cargo vm bench`: what moving pages costs, by count.
//!
//! The published tables (folio size x channels, number of 2 MiB folios, compaction)
//! scaled down to an emulated processor. The emulator counts instructions as time, and
//! the device counts accesses, interrupts and descriptors: those figures are exact and
//! comparable. Throughput is printed too, and means nothing: the processor is emulated
//! and the device is native.

pub(crate) mod demo;
mod machine;
mod measure;
mod report;
mod trace;

use std::path::Path;

use anyhow::{Context, Result, bail};

pub(crate) use measure::Migrator;

use crate::kernel::{Kernel, Variant};
use crate::machine::Guest;
use crate::{build, run_dir, step};
use measure::{Cell, Compaction};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Bytes moved per cell, MiB
    #[arg(long, default_value_t = 8)]
    mib: u64,
    /// Folio sizes, KiB
    #[arg(long, value_delimiter = ',', default_value = "4,16,64,256,1024,2048")]
    folios: Vec<u64>,
    /// Numbers of channels
    #[arg(long, value_delimiter = ',', default_value = "1,4,16")]
    channels: Vec<usize>,
    /// Numbers of 2 MiB folios moved at once
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64")]
    huge: Vec<u64>,
    /// Who copies
    #[arg(long, value_delimiter = ',', default_value = "cpu,dcbm,ptdma")]
    migrators: Vec<Migrator>,
    /// Base pages of a batch (the kernel's default is one 2 MiB folio)
    #[arg(long, default_value_t = 512)]
    batch_pages: u64,
    /// Memory that the compaction experiment fragments, MiB (0: leave it out)
    #[arg(long, default_value_t = 200)]
    compact_mib: u64,
    /// Set a parameter of our module, e.g. poll_us=0 (may be repeated)
    #[arg(long = "set", value_name = "NAME=VALUE")]
    parameters: Vec<String>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

/// Everything that one run measured.
#[derive(Debug, serde::Serialize)]
struct Results {
    /// How the figures came about, for whoever finds the JSON alone.
    conditions: String,
    kernel: String,
    batch_pages: u64,
    /// Parameters of our module that differ from its defaults.
    parameters: Vec<String>,
    /// Table 1: folio size by channels.
    sizes: Vec<Cell>,
    /// Table 2: number of 2 MiB folios, on the largest number of channels.
    huge: Vec<Cell>,
    compaction: Vec<Compaction>,
}

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let channels = arguments.channels.iter().copied().max().unwrap_or(0);
    if !(1..=16).contains(&channels) || arguments.channels.contains(&0) {
        bail!("--channels takes numbers from 1 to 16");
    }
    if arguments
        .folios
        .iter()
        .any(|kib| !kib.is_power_of_two() || !(4..=2048).contains(kib))
    {
        bail!("--folios takes powers of two from 4 to 2048");
    }
    let kernel = Kernel::get(Variant::Fast)?;
    build::server()?;
    let logs = run_dir::logs()?;
    let results = measure_all(arguments, channels, kernel.release(), &logs)
        .with_context(|| format!("logs: {}", logs.display()))?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        report::print(&results);
    }
    let _ = std::fs::remove_dir_all(&logs);
    Ok(true)
}

fn measure_all(
    arguments: &Arguments,
    channels: usize,
    release: &str,
    logs: &Path,
) -> Result<Results> {
    // (who, channels) of every row
    let rows: Vec<(Migrator, usize)> = arguments
        .migrators
        .iter()
        .flat_map(|&migrator| match migrator {
            Migrator::Cpu => vec![(migrator, 0)],
            _ => arguments.channels.iter().map(|&n| (migrator, n)).collect(),
        })
        .collect();
    let cells = rows.len() * arguments.folios.len()
        + arguments.migrators.len() * arguments.huge.len()
        + 2 * arguments.migrators.len() * usize::from(arguments.compact_mib > 0);
    let bar = step::bar("benchmark", cells as u64);

    let largest = arguments.huge.iter().copied().max().unwrap_or(0) * 2;
    let options = machine::options(channels, arguments.mib.max(largest), arguments.compact_mib);
    let mut guest = Guest::boot(options, logs)?;
    let mut results = Results {
        conditions: report::CONDITIONS.into(),
        kernel: release.into(),
        batch_pages: arguments.batch_pages,
        parameters: arguments.parameters.clone(),
        sizes: Vec::new(),
        huge: Vec::new(),
        compaction: Vec::new(),
    };
    guest.ok(&format!(
        "echo {} > /sys/kernel/mm/migrate_offload/max_batch_pages",
        arguments.batch_pages
    ))?;
    if arguments.compact_mib > 0 {
        // The first one finds memory as the boot left it, and has less to do.
        measure::compaction(&mut guest, Migrator::Cpu, arguments.compact_mib, false)?;
    }
    for (migrator, channels) in rows {
        migrator.start(&mut guest, channels, &arguments.parameters)?;
        for &kib in &arguments.folios {
            bar.set_message(format!("{migrator}, {channels} channels, {kib} KiB"));
            let count = (arguments.mib << 10) / kib;
            let cell = measure::folios(&mut guest, migrator, channels, kib, count)?;
            results.sizes.push(cell);
            bar.inc(1);
        }
        migrator.stop(&mut guest)?;
    }
    for &migrator in &arguments.migrators {
        migrator.start(&mut guest, channels, &arguments.parameters)?;
        let channels = if migrator == Migrator::Cpu {
            0
        } else {
            channels
        };
        for &count in &arguments.huge {
            bar.set_message(format!("{migrator}, {count} huge folios"));
            let cell = measure::folios(&mut guest, migrator, channels, 2048, count)?;
            results.huge.push(cell);
            bar.inc(1);
        }
        if arguments.compact_mib > 0 {
            for busy in [false, true] {
                bar.set_message(format!("{migrator}, compaction"));
                let row = measure::compaction(&mut guest, migrator, arguments.compact_mib, busy)?;
                results.compaction.push(row);
                bar.inc(1);
            }
        }
        migrator.stop(&mut guest)?;
    }
    bar.finish_and_clear();
    guest.expect_clean_dmesg()?;
    Ok(results)
}
