//! What the kernel module spends on a base page: `cargo bench -p ptdma-kshim-tests --bench module`
//! (add `-- --write` to put the table into the document of results, `-- --check` to compare it
//! with that).
//!
//! The module's Rust runs on a stand-in for the kernel, whose mapping is an addition, and on
//! functions of plain memory whose engine is infinitely fast. Instructions are counted by callgrind,
//! the stand-in's among them, as the difference of two runs of different length, so that only the
//! rounds count. Calls of C are counted by the stand-in. Both are the same on every run.

use std::path::Path;

use anyhow::ensure;
use ptdma_kshim::abi::{MAX_ROUND_FOLIOS, RoundResult};
use ptdma_kshim::host::Calls;
use ptdma_kshim_tests::Machine;
use ptdma_results::{DOCUMENT, Mode, callgrind, has_callgrind, publish};

/// Rounds of the longer run under callgrind; the shorter one has half.
const ROUNDS: u64 = 40;

/// Channels and folios of each case: a full round, and what compaction moves at once.
const CASES: [(u32, usize); 5] = [
    (1, MAX_ROUND_FOLIOS),
    (4, MAX_ROUND_FOLIOS),
    (16, MAX_ROUND_FOLIOS),
    (1, 32),
    (16, 32),
];

/// Most instructions for a base page of a full round, from C's list to C's outcome.
/// On one channel 157 are spent, on sixteen 178.
const MOST_PER_FOLIO: f64 = 190.0;

/// Most calls of C for a full round on sixteen channels. A channel is mapped for once, and locked to
/// submit and to retire: 80 calls. The rest is for the round.
const MOST_CALLS: u64 = 99;

struct Row {
    channels: u32,
    folios: usize,
    calls: Calls,
    instructions: Option<f64>,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, channels, folios, rounds] = args.as_slice()
        && mode == "--workload"
    {
        return workload(channels.parse()?, folios.parse()?, rounds.parse()?);
    }
    let valgrind = has_callgrind();
    let mut rows = Vec::new();
    for (channels, folios) in CASES {
        let instructions = valgrind
            .then(|| instructions(channels, folios))
            .transpose()?;
        rows.push(Row {
            channels,
            folios,
            calls: calls(channels, folios)?,
            instructions,
        });
    }
    let table = table(&rows);
    println!("{table}");
    for row in rows.iter().filter(|row| row.folios == MAX_ROUND_FOLIOS) {
        if let Some(count) = row.instructions {
            let each = count / row.folios as f64;
            ensure!(
                each <= MOST_PER_FOLIO,
                "{} channels: {each:.1} instructions per folio, at most {MOST_PER_FOLIO} wanted",
                row.channels
            );
        }
        ensure!(
            row.channels != 16 || row.calls.total() <= MOST_CALLS,
            "{}, at most {MOST_CALLS} wanted",
            row.calls
        );
    }
    if !valgrind {
        eprintln!(
            "SKIPPED: instructions were not counted: install valgrind (apt install valgrind)"
        );
        return Ok(());
    }
    publish(Path::new(DOCUMENT), "module", &table, Mode::of(&args))
}

fn table(rows: &[Row]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "folios",
        "channels",
        "calls of C",
        "of these to map",
        "locks",
        "instructions/folio",
    ]);
    for row in rows {
        let each = row.instructions.map(|count| count / row.folios as f64);
        table.add_row([
            format!("{} x 4K scattered", row.folios),
            row.channels.to_string(),
            row.calls.total().to_string(),
            row.calls.of("map").to_string(),
            row.calls.of("lock").to_string(),
            each.map_or("-".to_owned(), |n| format!("{n:.1}")),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    table.to_string()
}

fn ensure_all(folios: usize, (rc, result): (i32, RoundResult)) -> anyhow::Result<()> {
    ensure!(
        rc == 0 && result.by_dma as usize == folios,
        "not everything was copied: {rc}, {result:?}"
    );
    Ok(())
}

/// What callgrind watches.
#[inline(never)]
fn workload(channels: u32, folios: usize, rounds: u64) -> anyhow::Result<()> {
    let mut machine = Machine::new(channels, folios, false);
    for _ in 0..rounds {
        ensure_all(folios, machine.round())?;
    }
    Ok(())
}

/// Calls of C in the third round: as in use, this is not the first one.
fn calls(channels: u32, folios: usize) -> anyhow::Result<Calls> {
    let mut machine = Machine::new(channels, folios, false);
    for _ in 0..2 {
        ensure_all(folios, machine.round())?;
    }
    let _before = Calls::take();
    ensure_all(folios, machine.round())?;
    Ok(Calls::take())
}

/// Instructions of one round.
fn instructions(channels: u32, folios: usize) -> anyhow::Result<f64> {
    let run = |rounds: u64| -> anyhow::Result<u64> {
        let numbers = [channels.to_string(), folios.to_string(), rounds.to_string()];
        let args: Vec<String> = ["--workload".to_owned()]
            .into_iter()
            .chain(numbers)
            .collect();
        callgrind(&args)
    };
    let (long, short) = (run(ROUNDS)?, run(ROUNDS / 2)?);
    Ok((long - short) as f64 / (ROUNDS - ROUNDS / 2) as f64)
}
