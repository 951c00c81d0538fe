//! `cargo vm bench`: what moving pages costs, by count.
//!
//! The published tables (folio size x channels, number of 2 MiB folios, compaction)
//! scaled down to an emulated processor. The emulator counts instructions as time, and
//! the device counts accesses, interrupts and descriptors: those figures are exact and
//! comparable. Throughput is printed too, and means nothing: the processor is emulated
//! and the device is native.

pub(crate) mod demo;
pub(crate) mod demo_stock;
mod machine;
mod measure;
mod report;
mod targets;
mod trace;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;

pub(crate) use measure::Migrator;

use crate::kernel::{Kernel, Variant};
use crate::machine::Guest;
use crate::{build, run_dir, step, toolchain};
use measure::{Cell, Compaction};
use targets::Target;

/// The modules of the migrators that are compared, as `image::MODULES` names them.
const MODULES: &[&str] = &["dcbm", "kshim"];

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Memory of each cell, MiB; it is moved four times [default: 8, --short: 4]
    #[arg(long)]
    mib: Option<u64>,
    /// Folio sizes, KiB [default: 4,16,64,256,1024,2048, --short: 4,64,2048]
    #[arg(long, value_delimiter = ',')]
    folios: Option<Vec<u64>>,
    /// Numbers of channels [default: 1,4,16, --short: 1,16]
    #[arg(long, value_delimiter = ',')]
    channels: Option<Vec<usize>>,
    /// Numbers of 2 MiB folios moved at once [default: 1,4,16,64, --short: 1,8]
    #[arg(long, value_delimiter = ',')]
    huge: Option<Vec<u64>>,
    /// Who copies
    #[arg(long, value_delimiter = ',', default_value = "cpu,dcbm,ptdma")]
    migrators: Vec<Migrator>,
    /// Base pages of a batch (the kernel's default is one 2 MiB folio)
    #[arg(long, default_value_t = 512)]
    batch_pages: u64,
    /// Memory that the compaction experiment fragments, MiB (0: leave it out) [default: 200,
    /// --short: 96]
    #[arg(long)]
    compact_mib: Option<u64>,
    /// Fewer and smaller cells, where no other sizes are given
    #[arg(long)]
    short: bool,
    /// Set a parameter of our module, e.g. poll_us=0 (may be repeated)
    #[arg(long = "set", value_name = "NAME=VALUE")]
    parameters: Vec<String>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

/// What is measured, once it is decided.
struct Sizes {
    mib: u64,
    folios: Vec<u64>,
    channels: Vec<usize>,
    huge: Vec<u64>,
    compact_mib: u64,
}

impl Sizes {
    fn of(arguments: &Arguments) -> Result<Self> {
        let preset = if arguments.short {
            Self {
                mib: 4,
                folios: vec![4, 64, 2048],
                channels: vec![1, 16],
                huge: vec![1, 8],
                compact_mib: 96,
            }
        } else {
            Self {
                mib: 8,
                folios: vec![4, 16, 64, 256, 1024, 2048],
                channels: vec![1, 4, 16],
                huge: vec![1, 4, 16, 64],
                compact_mib: 200,
            }
        };
        let sizes = Self {
            mib: arguments.mib.unwrap_or(preset.mib),
            folios: arguments.folios.clone().unwrap_or(preset.folios),
            channels: arguments.channels.clone().unwrap_or(preset.channels),
            huge: arguments.huge.clone().unwrap_or(preset.huge),
            compact_mib: arguments.compact_mib.unwrap_or(preset.compact_mib),
        };
        if sizes.channels.iter().any(|n| !(1..=16).contains(n)) {
            bail!("--channels takes numbers from 1 to 16");
        }
        if sizes
            .folios
            .iter()
            .any(|kib| !kib.is_power_of_two() || !(4..=2048).contains(kib) || *kib == 8)
        {
            bail!("--folios takes 4, and powers of two from 16 to 2048: the kernel has no others");
        }
        if !(2..=1024).contains(&sizes.mib) {
            bail!("--mib takes 2 to 1024: a cell has one folio of 2 MiB at least");
        }
        Ok(sizes)
    }

    /// Channels that the machine has to have.
    fn most_channels(&self) -> usize {
        self.channels.iter().copied().max().unwrap_or(1)
    }
}

/// Everything that one run measured.
#[derive(Debug, serde::Serialize)]
struct Results {
    /// How the figures were measured, for readers of the JSON alone.
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
    /// What was wanted of what was measured, and whether it holds.
    targets: Vec<Target>,
}

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let sizes = Sizes::of(arguments)?;
    toolchain::require_for_modules(MODULES)?;
    let kernel = Kernel::get(Variant::Fast)?;
    build::server()?;
    let logs = run_dir::logs()?;
    let results = measure_all(arguments, &sizes, kernel.release(), &logs)
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
    sizes: &Sizes,
    release: &str,
    logs: &Path,
) -> Result<Results> {
    let channels = sizes.most_channels();
    // (who, channels) of every row
    let rows: Vec<(Migrator, usize)> = arguments
        .migrators
        .iter()
        .flat_map(|&migrator| match migrator {
            Migrator::Cpu => vec![(migrator, 0)],
            _ => sizes.channels.iter().map(|&n| (migrator, n)).collect(),
        })
        .collect();
    let cells = rows.len() * sizes.folios.len()
        + arguments.migrators.len() * sizes.huge.len()
        + 2 * arguments.migrators.len() * usize::from(sizes.compact_mib > 0);
    let bar = step::bar("benchmark", cells as u64);

    let largest = sizes.huge.iter().copied().max().unwrap_or(0) * 2;
    let most = largest.max(sizes.mib * measure::TIMES);
    let options = machine::options(channels, most, sizes.compact_mib);
    let mut guest = Guest::boot(options, logs)?;
    let mut results = Results {
        conditions: report::CONDITIONS.into(),
        kernel: release.into(),
        batch_pages: arguments.batch_pages,
        parameters: arguments.parameters.clone(),
        sizes: Vec::new(),
        huge: Vec::new(),
        compaction: Vec::new(),
        targets: Vec::new(),
    };
    guest.ok(&format!(
        "echo {} > /sys/kernel/mm/migrate_offload/max_batch_pages",
        arguments.batch_pages
    ))?;
    if sizes.compact_mib > 0 {
        // The first one finds memory as the boot left it, and has less to do.
        measure::compaction(&mut guest, Migrator::Cpu, sizes.compact_mib, false)?;
    }
    for (migrator, channels) in rows {
        let began = Instant::now();
        migrator.start(&mut guest, channels, &arguments.parameters)?;
        for &kib in &sizes.folios {
            bar.set_message(format!("{migrator}, {channels} channels, {kib} KiB"));
            let count = (sizes.mib << 10) / kib;
            let cell = measure::folios(&mut guest, migrator, channels, kib, count)?;
            results.sizes.push(cell);
            bar.inc(1);
        }
        say(
            &bar,
            &format!("table 1, {migrator}, {channels} channels"),
            began,
        );
        migrator.stop(&mut guest)?;
    }
    for &migrator in &arguments.migrators {
        let began = Instant::now();
        migrator.start(&mut guest, channels, &arguments.parameters)?;
        let channels = if migrator == Migrator::Cpu {
            0
        } else {
            channels
        };
        for &count in &sizes.huge {
            bar.set_message(format!("{migrator}, {count} huge folios"));
            let cell = measure::folios(&mut guest, migrator, channels, 2048, count)?;
            results.huge.push(cell);
            bar.inc(1);
        }
        if sizes.compact_mib > 0 {
            for busy in [false, true] {
                bar.set_message(format!("{migrator}, compaction"));
                let row = measure::compaction(&mut guest, migrator, sizes.compact_mib, busy)?;
                results.compaction.push(row);
                bar.inc(1);
            }
        }
        say(&bar, &format!("table 2 and compaction, {migrator}"), began);
        migrator.stop(&mut guest)?;
    }
    bar.finish_and_clear();
    results.targets = targets::targets(&results.sizes, &results.huge);
    guest.expect_clean_dmesg()?;
    Ok(results)
}

/// A line for each row that is done, where no bar is drawn: a log shows that it goes on.
fn say(bar: &ProgressBar, what: &str, began: Instant) {
    if bar.is_hidden() {
        eprintln!("{what}: {:.0} s", began.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn sizes(words: &[&str]) -> Result<Sizes> {
        let line = Line::try_parse_from([&["bench"], words].concat())?;
        Sizes::of(&line.arguments)
    }

    #[test]
    fn a_short_run_is_smaller_and_what_is_given_wins() -> Result<()> {
        let (long, short) = (sizes(&[])?, sizes(&["--short"])?);
        assert!(short.folios.len() < long.folios.len() && short.mib < long.mib);
        assert_eq!(long.most_channels(), 16);
        let own = sizes(&["--short", "--channels", "1,4", "--mib", "6"])?;
        assert_eq!((own.channels, own.mib), (vec![1, 4], 6));
        Ok(())
    }

    #[test]
    fn sizes_that_the_kernel_does_not_have_are_refused() {
        for words in [
            ["--folios", "8"],
            ["--folios", "12"],
            ["--folios", "4096"],
            ["--channels", "0"],
            ["--channels", "17"],
            ["--mib", "1"],
        ] {
            assert!(sizes(&words).is_err(), "{words:?}");
        }
    }
}
