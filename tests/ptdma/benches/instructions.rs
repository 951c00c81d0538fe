//! Instructions and register accesses per descriptor, counted: `cargo bench -p ptdma-tests
//! --bench instructions` (add `-- --json` for machines, `-- --write` to put the table into the
//! document of results, `-- --check` to compare it with that).
//!
//! The program runs itself under valgrind's callgrind, twice per case with different numbers of
//! bursts; the difference is the cost of the bursts alone. Register accesses are counted by the
//! device model. Both counts are the same on every run. What AMD's Linux driver costs for the same
//! is measured by `cargo vm test stock` and given here for comparison.

use std::path::Path;

use anyhow::ensure;
use ptdma::{Notify, Restart, Signalling};
use ptdma_results::{DOCUMENT, Mode, callgrind, has_callgrind, publish};
use ptdma_tests::fake_function::FakeFunction;
use ptdma_tests::rig::{Rig, Setup};
use serde::Serialize;

/// Bursts of the longer run; the shorter has half. Enough that rounding does not show.
const BURSTS: u64 = 200;

/// What the project wants of a descriptor's way through the driver, in instructions, in bursts that
/// hide the doorbell. 42 to 48 are spent, 7 of them by the benchmark itself.
const INSTRUCTIONS_TO_REACH: f64 = 50.0;

const CASES: [(&str, &str, usize, u64); 10] = [
    ("polled", "tail", 32, 1),
    ("polled", "tail", 32, 31),
    ("polled", "tail", 512, 511),
    ("polled", "RUN", 32, 1),
    ("polled", "RUN", 512, 511),
    ("interrupt", "tail", 32, 1),
    ("interrupt", "tail", 32, 31),
    ("interrupt", "tail", 512, 511),
    ("interrupt", "RUN", 32, 1),
    ("interrupt", "RUN", 512, 511),
];

#[derive(Serialize)]
struct Row {
    signalling: &'static str,
    restart: &'static str,
    ring_entries: usize,
    burst: u64,
    instructions_per_descriptor: Option<f64>,
    mmio_reads: u64,
    mmio_writes: u64,
    interrupts: u64,
    stock_mmio_reads: u64,
    stock_mmio_writes: u64,
    stock_interrupts: u64,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, signalling, restart, entries, burst, bursts] = args.as_slice()
        && mode == "--workload"
    {
        workload(
            signalling,
            restart,
            entries.parse()?,
            burst.parse()?,
            bursts.parse()?,
        );
        return Ok(());
    }
    let valgrind = has_callgrind();
    let mut rows = Vec::new();
    for (signalling, restart, ring_entries, burst) in CASES {
        let instructions_per_descriptor = if valgrind {
            let long = instructions((signalling, restart), ring_entries, burst, BURSTS)?;
            let short = instructions((signalling, restart), ring_entries, burst, BURSTS / 2)?;
            let descriptors = burst * (BURSTS - BURSTS / 2);
            Some((long - short) as f64 / descriptors as f64)
        } else {
            None
        };
        let counters = accesses(signalling, restart, ring_entries, burst);
        rows.push(Row {
            signalling,
            restart,
            ring_entries,
            burst,
            instructions_per_descriptor,
            mmio_reads: counters.mmio_reads,
            mmio_writes: counters.mmio_writes,
            interrupts: counters.interrupts,
            stock_mmio_reads: 3 * burst,
            stock_mmio_writes: 6 * burst,
            stock_interrupts: burst,
        });
    }
    if args.iter().any(|arg| arg == "--json") {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        println!(
            "{}",
            table(&rows, comfy_table::presets::UTF8_FULL_CONDENSED)
        );
    }
    for row in rows.iter().filter(|row| row.burst >= 31) {
        if let Some(count) = row.instructions_per_descriptor {
            ensure!(
                count <= INSTRUCTIONS_TO_REACH,
                "{count:.1} instructions per descriptor, at most {INSTRUCTIONS_TO_REACH} wanted"
            );
        }
        let accesses = row.mmio_reads + row.mmio_writes;
        // The tail and the head; control, read and twice written, around the tail, as RUN is off while
        // the tail moves; the status cleared.
        let by_run = if row.restart == "RUN" { 3 } else { 0 };
        let most = by_run + if row.signalling == "polled" { 2 } else { 3 };
        ensure!(
            accesses <= most,
            "{accesses} accesses, at most {most} wanted"
        );
    }
    if !valgrind {
        eprintln!(
            "SKIPPED: instructions were not counted: install valgrind (apt install valgrind)"
        );
        return Ok(());
    }
    let table = table(&rows, comfy_table::presets::ASCII_MARKDOWN).to_string();
    publish(Path::new(DOCUMENT), "burst", &table, Mode::of(&args))
}

fn table(rows: &[Row], style: comfy_table::TableStyle) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(style);
    table.set_header([
        "signalling",
        "goes on by",
        "ring",
        "burst",
        "instr/descr",
        "MMIO r+w",
        "irq",
        "stock MMIO r+w",
        "stock irq",
    ]);
    for row in rows {
        let instructions = row
            .instructions_per_descriptor
            .map_or("-".to_owned(), |n| format!("{n:.1}"));
        table.add_row([
            row.signalling.to_owned(),
            row.restart.to_owned(),
            row.ring_entries.to_string(),
            row.burst.to_string(),
            instructions,
            format!("{}+{}", row.mmio_reads, row.mmio_writes),
            row.interrupts.to_string(),
            format!("{}+{}", row.stock_mmio_reads, row.stock_mmio_writes),
            row.stock_interrupts.to_string(),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    table
}

fn signalling(name: &str) -> Signalling {
    match name {
        "polled" => Signalling::Polled,
        _ => Signalling::Interrupts,
    }
}

/// What callgrind watches.
#[inline(never)]
fn workload(name: &str, restart: &str, entries: usize, burst: u64, bursts: u64) {
    let restart = match restart {
        "RUN" => Restart::ByRun,
        _ => Restart::ByTail,
    };
    let mut function = FakeFunction::new(entries, signalling(name), restart);
    for _ in 0..bursts {
        match signalling(name) {
            Signalling::Polled => function.polled_burst(burst),
            Signalling::Interrupts => function.interrupt_burst(burst),
        }
    }
}

/// Instructions of a whole run of this program with that workload.
fn instructions(
    (name, restart): (&str, &str),
    entries: usize,
    burst: u64,
    bursts: u64,
) -> anyhow::Result<u64> {
    let mut args: Vec<String> = ["--workload", name, restart].map(str::to_owned).into();
    args.extend([entries.to_string(), burst.to_string(), bursts.to_string()]);
    callgrind(&args)
}

/// Register accesses and interrupts of one burst, counted by the device model.
fn accesses(name: &str, restart: &str, entries: usize, burst: u64) -> ptdma_model::Counters {
    let signalling = signalling(name);
    let mut rig = Rig::new(Setup {
        entries,
        signalling,
        lenient: restart != "RUN",
        ..Setup::default()
    });
    let notify = match signalling {
        Signalling::Polled => Notify::Silent,
        Signalling::Interrupts => Notify::Interrupt,
    };
    // The first burst of all starts an engine that goes on by the tail from then on.
    rig.burst(1, notify);
    rig.drain();
    let _ = rig.channel.handle_interrupt();
    let _first = rig.model.take_counters();
    rig.burst(burst as usize, notify);
    rig.model.run(u64::MAX);
    let progress = match signalling {
        Signalling::Polled => rig.channel.poll(),
        Signalling::Interrupts => rig.channel.handle_interrupt(),
    };
    assert_eq!(progress.map(|p| p.retired), Ok(burst));
    assert!(rig.pairs.iter().all(|pair| pair.copied()));
    rig.model.counters()
}
