//! This crate beside the published strategy: `cargo bench -p batch-copy-tests --bench compare`
//! (add `-- --json` for machines, `-- --write` to put the table into the document of results,
//! `-- --check` to compare it with that).
//!
//! The same folio lists on the same device model. Register accesses, doorbells and interrupts are
//! counted by the model, every byte is verified; allocations by the allocator; instructions by
//! callgrind on a function of plain memory whose engine is infinitely fast, as the difference of
//! two runs of different length, so that only the batches count. All counts are the same on every
//! run. See `batch_copy_tests::published` for what the other strategy is.

use std::path::Path;

use anyhow::{Context, ensure};
use batch_copy::{Batch, Host, Options, Outcome, OverlapCheck, Policy, Totals};
use batch_copy_tests::contest::{Contest, ENTRIES, Strategy};
use batch_copy_tests::memory::Memory;
use batch_copy_tests::published::{self, STOCK_ENTRIES, StockQueue};
use batch_copy_tests::rig::{MAX_CHANNELS, Rig, Setup};
use batch_copy_tests::workload::{WORKLOADS, Workload};
use ptdma_model::{BusRing, Counters, Forks, Model, ModelConfig};
use ptdma_results::{DOCUMENT, Mode, callgrind, has_callgrind, publish};
use serde::Serialize;

/// Batches of the longer run under callgrind; the shorter one has half.
const BATCHES: u64 = 40;

/// Declined batches of the longer run.
const DECLINES: u64 = 2000;

/// A migration reason of the kernel: memory compaction.
const COMPACTION: u32 = 0;

/// Most instructions per scattered 4 KiB folio, for plan, submit and complete. On one channel 84
/// are spent polled and 95 by interrupt, on sixteen 95 and 97.
const MOST_PER_FOLIO: f64 = 97.0;

/// Most instructions for one 2 MiB folio on sixteen channels, for plan, submit and complete: some
/// 430 for each channel, of which a third is the descriptor and its doorbell and a third the look
/// at the head, and 900 for the batch. A CPU copies such a folio with a hundred times as many as a
/// kernel may spend on all of this, so what is spent here must stay a fraction of that. 8000 is the
/// aim, and some 8170 are spent. A folio that is not aligned to its size takes the long way of each
/// copy's check, and 1100 more.
const MOST_PER_STRIPED_FOLIO: f64 = 8300.0;

/// Most MMIO accesses for 512 scattered folios on sixteen channels, whose engines are known to go on
/// by the tail and to keep the head at a failure, as the sibling's do: tail and head of each, one
/// interrupt status, and a few looks for interrupts that the batch before did not wait for.
const MOST_ACCESSES: u64 = 40;
/// The same for engines that need RUN: control is read before, and written around each tail, so that
/// RUN is off while the tail moves.
const MOST_ACCESSES_BY_RUN: u64 = 81;

/// Most instructions for declining a batch.
const MOST_PER_DECLINE: f64 = 50.0;

#[derive(Serialize)]
struct Figures {
    batches: Vec<Row>,
    decline_instructions: Option<f64>,
    accesses_by_run: u64,
}

#[derive(Serialize)]
struct Row {
    workload: &'static str,
    channels: usize,
    strategy: &'static str,
    channels_used: usize,
    descriptors: u64,
    doorbells: u64,
    mmio_reads: u64,
    mmio_writes: u64,
    interrupts: u64,
    allocations: u64,
    instructions_per_folio: Option<f64>,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, strategy, workload, channels, batches] = args.as_slice()
        && mode == "--workload"
    {
        let strategy = Strategy::ALL.into_iter().find(|one| one.name() == strategy);
        let workload = WORKLOADS.get(workload.parse::<usize>()?);
        let (strategy, workload) = strategy.zip(workload).context("unknown workload")?;
        return on_plain_memory(strategy, workload, channels.parse()?, batches.parse()?);
    }
    if let [mode, times] = args.as_slice()
        && mode == "--decline"
    {
        return declines(times.parse()?);
    }
    let valgrind = has_callgrind();
    let mut rows = Vec::new();
    for (index, workload) in WORKLOADS.iter().enumerate() {
        for channels in [1, 4, 16] {
            for strategy in Strategy::ALL {
                let (counters, channels_used) =
                    on_model(Forks::SIBLING, strategy, workload, channels)?;
                let allocations = allocations(strategy, workload, channels)?;
                let instructions_per_folio = if valgrind {
                    let batch = instructions(strategy, index, channels)?;
                    Some(batch / workload.lens().len() as f64)
                } else {
                    None
                };
                rows.push(Row {
                    workload: workload.name,
                    channels,
                    strategy: strategy.name(),
                    channels_used,
                    descriptors: counters.descriptors,
                    doorbells: counters.doorbells,
                    mmio_reads: counters.mmio_reads,
                    mmio_writes: counters.mmio_writes,
                    interrupts: counters.interrupts,
                    allocations,
                    instructions_per_folio,
                });
            }
        }
    }
    let figures = Figures {
        batches: rows,
        decline_instructions: valgrind.then(decline_instructions).transpose()?,
        accesses_by_run: accesses_by_run()?,
    };
    let text = text(&figures);
    if args.iter().any(|arg| arg == "--json") {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print!("{text}");
    }
    check(&figures)?;
    if !valgrind {
        eprintln!(
            "SKIPPED: instructions were not counted: install valgrind (apt install valgrind)"
        );
        return Ok(());
    }
    publish(Path::new(DOCUMENT), "batches", &text, Mode::of(&args))
}

/// What the project promises about these figures.
fn check(figures: &Figures) -> anyhow::Result<()> {
    if let Some(count) = figures.decline_instructions {
        ensure!(
            count < MOST_PER_DECLINE,
            "declining a batch: {count:.1} instructions, under {MOST_PER_DECLINE} wanted"
        );
    }
    ensure!(
        figures.accesses_by_run <= MOST_ACCESSES_BY_RUN,
        "{} accesses on an engine that needs RUN, at most {MOST_ACCESSES_BY_RUN} wanted",
        figures.accesses_by_run
    );
    for row in figures
        .batches
        .iter()
        .filter(|row| row.strategy != Strategy::Published.name())
    {
        let (what, mmio) = (row.workload, row.mmio_reads + row.mmio_writes);
        ensure!(
            row.allocations == 0,
            "{what}: {} allocations",
            row.allocations
        );
        if let Some(count) = row.instructions_per_folio
            && what == "512 x 4K scattered"
        {
            ensure!(
                count <= MOST_PER_FOLIO,
                "{what}, {} channels, {}: {count:.1} instructions per folio, at most \
                 {MOST_PER_FOLIO} wanted",
                row.channels,
                row.strategy
            );
        }
        if let Some(count) = row.instructions_per_folio
            && (what, row.channels) == ("1 x 2M", 16)
        {
            ensure!(
                count <= MOST_PER_STRIPED_FOLIO,
                "{what}, 16 channels, {}: {count:.1} instructions, at most \
                 {MOST_PER_STRIPED_FOLIO} wanted",
                row.strategy
            );
        }
        // What is within the rings takes one doorbell for each channel.
        if row.descriptors <= ((ENTRIES - 1) * row.channels) as u64 {
            ensure!(
                row.doorbells <= row.channels as u64,
                "{what}, {} channels: {} doorbells",
                row.channels,
                row.doorbells
            );
        }
        if row.channels != 16 {
            continue;
        }
        match what {
            "512 x 4K scattered" => {
                ensure!(
                    mmio <= MOST_ACCESSES,
                    "{what}: {mmio} accesses, at most {MOST_ACCESSES} wanted"
                );
                ensure!(
                    row.interrupts <= 16,
                    "{what}: {} interrupts",
                    row.interrupts
                );
            }
            "512 x 4K contiguous" => {
                ensure!(
                    row.descriptors == 16,
                    "{what}: {} descriptors",
                    row.descriptors
                );
            }
            "1 x 2M" => ensure!(
                row.channels_used == 16,
                "{what}: {} channels",
                row.channels_used
            ),
            _ => {}
        }
    }
    Ok(())
}

/// The table, as Markdown.
fn text(figures: &Figures) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "folios",
        "channels",
        "strategy",
        "used",
        "descriptors",
        "doorbells",
        "MMIO r+w",
        "interrupts",
        "allocations",
        "instructions/folio",
    ]);
    for row in &figures.batches {
        table.add_row([
            row.workload.to_owned(),
            row.channels.to_string(),
            match row.strategy {
                "published" => row.strategy.to_owned(),
                ours => format!("ours, {ours}"),
            },
            row.channels_used.to_string(),
            row.descriptors.to_string(),
            row.doorbells.to_string(),
            format!("{}+{}", row.mmio_reads, row.mmio_writes),
            row.interrupts.to_string(),
            row.allocations.to_string(),
            row.instructions_per_folio
                .map_or("-".to_owned(), |n| format!("{n:.1}")),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    let mut text = format!(
        "{table}\n\nEngines that need RUN for each burst: {} MMIO accesses for 512 x 4K scattered \
         on 16 channels.\n",
        figures.accesses_by_run
    );
    if let Some(count) = figures.decline_instructions {
        text += &format!("\nDeclining a batch of one 4K folio: {count:.1} instructions.\n");
    }
    text
}

/// Accesses for 512 scattered folios on sixteen engines that go on by RUN alone.
fn accesses_by_run() -> anyhow::Result<u64> {
    let workload = WORKLOADS.iter().find(|w| w.name == "512 x 4K scattered");
    let workload = workload.context("the workload")?;
    let (counters, _) = on_model(Forks::TODAY, Strategy::Interrupts, workload, 16)?;
    Ok(counters.mmio_reads + counters.mmio_writes)
}

/// One batch on the device model, every byte verified; what it counted, and channels with work.
fn on_model(
    forks: Forks,
    strategy: Strategy,
    workload: &Workload,
    channels: usize,
) -> anyhow::Result<(Counters, usize)> {
    if strategy == Strategy::Published {
        return published_on_model(workload, channels);
    }
    let rig = Rig::new(Setup {
        channels,
        entries: ENTRIES,
        signalling: strategy.signalling(),
        model: ModelConfig {
            forks,
            ..ModelConfig::default()
        },
        find_out: true,
        ..Setup::default()
    });
    // As in use: this is not the first burst.
    let mut counted = None;
    for _ in 0..2 {
        for model in &rig.models {
            let _before = model.take_counters();
        }
        let memory = Memory::new(&rig.bus, &workload.lens(), workload.layout, 1);
        let mut outcomes = vec![Outcome::Dma; memory.folios.len()];
        let report = Batch::<MAX_CHANNELS>::new().run(
            &rig.channels,
            &memory.folios[..],
            OverlapCheck::CallerKnows,
            &Options::default(),
            &mut Host::new(rig.stepping()),
            &mut outcomes,
        )?;
        ensure!(
            report.is_complete(),
            "not everything was copied: {report:?}"
        );
        memory.verify(&outcomes).map_err(anyhow::Error::msg)?;
        counted = Some((rig.counters(), used(&rig.models)));
    }
    counted.context("two batches")
}

fn published_on_model(workload: &Workload, channels: usize) -> anyhow::Result<(Counters, usize)> {
    // The rig is only the bus here: the functions are driven by the other driver.
    let rig = Rig::new(Setup::default());
    let memory = Memory::new(&rig.bus, &workload.lens(), workload.layout, 1);
    let mut models = Vec::new();
    let mut lines = Vec::new();
    let mut queues = Vec::new();
    for _ in 0..channels {
        let model = Model::new(ModelConfig::default(), rig.bus.clone());
        lines.push(model.interrupt_line());
        queues.push(StockQueue::new(
            model.clone(),
            BusRing::new(&rig.bus, STOCK_ENTRIES)?,
        ));
        let _ = model.take_counters();
        models.push(model);
    }
    let remaining = published::start(&queues, &memory.folios);
    let mut handled = vec![0; channels];
    while remaining.get() != 0 {
        let mut any = false;
        for (index, model) in models.iter().enumerate() {
            model.step();
            let count = lines[index].count();
            for _ in handled[index]..count {
                queues[index].interrupt();
                any = true;
            }
            handled[index] = count;
        }
        ensure!(any, "the published strategy is stuck");
    }
    let outcomes = vec![Outcome::Dma; memory.folios.len()];
    memory.verify(&outcomes).map_err(anyhow::Error::msg)?;
    let mut sum = Counters::default();
    for model in &models {
        sum += model.counters();
    }
    Ok((sum, used(&models)))
}

fn used(models: &[Model]) -> usize {
    let with_work = models.iter().filter(|m| m.counters().descriptors != 0);
    with_work.count()
}

fn on_plain_memory(
    strategy: Strategy,
    workload: &Workload,
    channels: usize,
    batches: u64,
) -> anyhow::Result<()> {
    let mut contest = Contest::new(strategy, workload, channels);
    for _ in 0..batches {
        ensure!(contest.run()?, "not everything was copied");
    }
    Ok(())
}

/// What a caller does about a batch that is too small: asks the policy, and counts it.
#[inline(never)]
fn decline(policy: &Policy, totals: &Totals, folios: usize, bytes: u64) -> bool {
    let wanted = policy.should_batch(std::hint::black_box(COMPACTION));
    let base = Options::default();
    if wanted && policy.options(folios, bytes, MAX_CHANNELS, &base).is_some() {
        return false;
    }
    totals.count_declined(folios);
    true
}

fn declines(times: u64) -> anyhow::Result<()> {
    let policy = Policy::default();
    let totals = Totals::new();
    for _ in 0..times {
        let (folios, bytes) = std::hint::black_box((1, 4096));
        ensure!(decline(&policy, &totals, folios, bytes), "not declined");
    }
    ensure!(totals.get().declined == times, "not counted");
    Ok(())
}

/// Allocations of one batch, once everything is warm.
fn allocations(strategy: Strategy, workload: &Workload, channels: usize) -> anyhow::Result<u64> {
    let mut contest = Contest::new(strategy, workload, channels);
    ensure!(contest.run()?, "not everything was copied");
    let mut result = Ok(false);
    let info = allocation_counter::measure(|| result = contest.run());
    ensure!(result?, "not everything was copied");
    Ok(info.count_total)
}

/// Instructions of one batch.
fn instructions(strategy: Strategy, workload: usize, channels: usize) -> anyhow::Result<f64> {
    let run = |batches: u64| {
        let numbers = [
            workload.to_string(),
            channels.to_string(),
            batches.to_string(),
        ];
        let mut args = vec!["--workload".to_owned(), strategy.name().to_owned()];
        args.extend(numbers);
        callgrind(&args)
    };
    // The difference of two runs: only what every batch costs.
    let (long, short) = (run(BATCHES)?, run(BATCHES / 2)?);
    Ok((long - short) as f64 / (BATCHES - BATCHES / 2) as f64)
}

/// Instructions of declining one batch.
fn decline_instructions() -> anyhow::Result<f64> {
    let run = |times: u64| callgrind(&["--decline".to_owned(), times.to_string()]);
    let (long, short) = (run(DECLINES)?, run(DECLINES / 2)?);
    Ok((long - short) as f64 / (DECLINES - DECLINES / 2) as f64)
}
