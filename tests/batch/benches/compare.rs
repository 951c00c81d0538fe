//! This crate beside the published strategy: `cargo bench -p ptdma-batch-tests --bench compare`
//! (add `-- --json` for machines).
//!
//! The same folio lists on the same device model. Register accesses, doorbells and interrupts are
//! counted by the model, every byte is verified; allocations by the allocator; instructions by
//! callgrind on a function of plain memory whose engine is infinitely fast, as the difference of
//! two runs of different length, so that only the batches count. All counts are the same on every
//! run. See `ptdma_batch_tests::published` for what the other strategy is.

use std::process::Command;

use anyhow::{Context, bail, ensure};
use batch_copy::{
    Batch, Engines, Host, Options, Outcome, OverlapCheck, Port, PtdmaQueue, Report, Wait, WaitFor,
    Wake,
};
use ptdma::{Channel, ChannelConfig, Signalling};
use ptdma_batch_tests::memory::Memory;
use ptdma_batch_tests::plain::{PlainRegisters, PlainRing};
use ptdma_batch_tests::published::{self, STOCK_ENTRIES, StockQueue};
use ptdma_batch_tests::rig::{MAX_CHANNELS, Rig, Setup};
use ptdma_batch_tests::workload::{WORKLOADS, Workload};
use ptdma_model::{BusRing, Counters, Model, ModelConfig};
use serde::Serialize;

/// Ring entries on our side: a usual batch is one burst.
const ENTRIES: usize = 512;

/// Batches of the longer run under callgrind; the shorter one has half.
const BATCHES: u64 = 40;

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Strategy {
    Published,
    Polled,
    Interrupts,
}

const STRATEGIES: [(Strategy, &str); 3] = [
    (Strategy::Published, "published"),
    (Strategy::Polled, "polled"),
    (Strategy::Interrupts, "interrupts"),
];

#[derive(Serialize)]
struct Row {
    workload: &'static str,
    channels: usize,
    strategy: Strategy,
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
        let strategy = STRATEGIES.iter().find(|(_, name)| name == strategy);
        let workload = WORKLOADS.get(workload.parse::<usize>()?);
        let ((strategy, _), workload) = strategy.zip(workload).context("unknown workload")?;
        on_plain_memory(*strategy, workload, channels.parse()?, batches.parse()?)?;
        return Ok(());
    }
    let valgrind = Command::new("valgrind").arg("--version").output().is_ok();
    let mut rows = Vec::new();
    for (index, workload) in WORKLOADS.iter().enumerate() {
        for channels in [1, 4, 16] {
            for (strategy, name) in STRATEGIES {
                let (counters, channels_used) = on_model(strategy, workload, channels)?;
                let allocations = allocations(strategy, workload, channels)?;
                let instructions_per_folio = if valgrind {
                    let long = instructions(name, index, channels, BATCHES)?;
                    let short = instructions(name, index, channels, BATCHES / 2)?;
                    let folios = workload.lens().len() as u64 * (BATCHES - BATCHES / 2);
                    Some((long - short) as f64 / folios as f64)
                } else {
                    None
                };
                rows.push(Row {
                    workload: workload.name,
                    channels,
                    strategy,
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
    if args.iter().any(|arg| arg == "--json") {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(&rows);
    }
    if !valgrind {
        eprintln!(
            "SKIPPED: instructions were not counted: install valgrind (apt install valgrind)"
        );
    }
    check(&rows)
}

/// What the project promises about these figures.
fn check(rows: &[Row]) -> anyhow::Result<()> {
    for row in rows
        .iter()
        .filter(|row| row.strategy != Strategy::Published)
    {
        let (what, mmio) = (row.workload, row.mmio_reads + row.mmio_writes);
        ensure!(
            row.allocations == 0,
            "{what}: {} allocations",
            row.allocations
        );
        if row.channels != 16 {
            continue;
        }
        match what {
            "512 x 4K scattered" => {
                ensure!(mmio <= 64, "{what}: {mmio} accesses, at most 64 wanted");
                ensure!(
                    row.interrupts <= 16,
                    "{what}: {} interrupts",
                    row.interrupts
                );
                if let Some(count) = row.instructions_per_folio {
                    ensure!(count <= 180.0, "{what}: {count:.1} instructions per folio");
                }
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

fn print(rows: &[Row]) {
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
    for row in rows {
        table.add_row([
            row.workload.to_owned(),
            row.channels.to_string(),
            match row.strategy {
                Strategy::Published => "published".to_owned(),
                Strategy::Polled => "ours, polled".to_owned(),
                Strategy::Interrupts => "ours, interrupts".to_owned(),
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
    println!("{table}");
}

fn signalling(strategy: Strategy) -> Signalling {
    match strategy {
        Strategy::Polled => Signalling::Polled,
        Strategy::Published | Strategy::Interrupts => Signalling::Interrupts,
    }
}

/// One batch on the device model, every byte verified; what it counted, and channels with work.
fn on_model(
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
        signalling: signalling(strategy),
        ..Setup::default()
    });
    let memory = Memory::new(&rig.bus, &workload.lens(), workload.layout, 1);
    let mut outcomes = vec![Outcome::Dma; memory.folios.len()];
    let report = Batch::<MAX_CHANNELS>::new().run(
        &rig.engines,
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
    Ok((rig.counters(), used(&rig.models)))
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

type PlainQueue = PtdmaQueue<PlainRegisters, PlainRing>;
type PlainEngines = Engines<PlainQueue, spin::Mutex<Port<PlainQueue>>, MAX_CHANNELS>;

/// Plain functions are done when one looks.
struct Immediate<'a> {
    interrupts: bool,
    engines: &'a PlainEngines,
    registers: &'a [PlainRegisters],
}

impl Wait for Immediate<'_> {
    #[inline]
    fn now_ns(&self) -> u64 {
        0
    }

    fn wants_interrupts(&self) -> bool {
        self.interrupts
    }

    fn wait(&mut self, _wait: &WaitFor) -> Wake {
        if !self.interrupts {
            return Wake::Poll;
        }
        for (number, registers) in self.registers.iter().enumerate() {
            for _ in 0..registers.take_interrupts() {
                self.engines.interrupt(number, 0);
            }
        }
        Wake::Interrupted
    }
}

/// What allocations and instructions are counted of.
struct Plain {
    ours: PlainEngines,
    registers: Vec<PlainRegisters>,
    theirs: Vec<StockQueue<PlainRegisters, PlainRing>>,
    strategy: Strategy,
    batch: Batch<MAX_CHANNELS>,
    folios: Vec<batch_copy::Folio>,
    outcomes: Vec<Outcome>,
}

impl Plain {
    fn new(strategy: Strategy, workload: &Workload, channels: usize) -> anyhow::Result<Self> {
        let folios = workload.folios();
        let mut plain = Self {
            ours: Engines::new(),
            registers: Vec::new(),
            theirs: Vec::new(),
            strategy,
            batch: Batch::new(),
            outcomes: vec![Outcome::Dma; folios.len()],
            folios,
        };
        for _ in 0..channels {
            let registers = PlainRegisters::default();
            if strategy == Strategy::Published {
                let queue = StockQueue::new(registers.clone(), PlainRing::new(STOCK_ENTRIES));
                plain.theirs.push(queue);
            } else {
                let config = ChannelConfig {
                    signalling: signalling(strategy),
                    ..ChannelConfig::default()
                };
                let ring = PlainRing::new(ENTRIES);
                let channel = Channel::bring_up(registers.clone(), ring, config)
                    .map_err(|(error, ..)| error)?;
                let lock = spin::Mutex::new(Port::new(PtdmaQueue::new(channel, None)));
                ensure!(plain.ours.add(lock).is_ok(), "too many channels");
            }
            let _ = registers.take_interrupts();
            plain.registers.push(registers);
        }
        Ok(plain)
    }

    #[inline(never)]
    fn run(&mut self) -> anyhow::Result<()> {
        if self.strategy == Strategy::Published {
            let remaining = published::start(&self.theirs, &self.folios);
            while remaining.get() != 0 {
                for (queue, registers) in self.theirs.iter().zip(&self.registers) {
                    for _ in 0..registers.take_interrupts() {
                        queue.interrupt();
                    }
                }
            }
            return Ok(());
        }
        let mut host = Host::new(Immediate {
            interrupts: self.strategy == Strategy::Interrupts,
            engines: &self.ours,
            registers: &self.registers,
        });
        let report: Report = self.batch.run(
            &self.ours,
            &self.folios[..],
            OverlapCheck::CallerKnows,
            &Options::default(),
            &mut host,
            &mut self.outcomes,
        )?;
        ensure!(report.is_complete(), "not everything was copied");
        Ok(())
    }
}

fn on_plain_memory(
    strategy: Strategy,
    workload: &Workload,
    channels: usize,
    batches: u64,
) -> anyhow::Result<()> {
    let mut plain = Plain::new(strategy, workload, channels)?;
    for _ in 0..batches {
        plain.run()?;
    }
    Ok(())
}

/// Allocations of one batch, once everything is warm.
fn allocations(strategy: Strategy, workload: &Workload, channels: usize) -> anyhow::Result<u64> {
    let mut plain = Plain::new(strategy, workload, channels)?;
    plain.run()?;
    let mut result = Ok(());
    let info = allocation_counter::measure(|| result = plain.run());
    result?;
    Ok(info.count_total)
}

/// Instructions of a whole run of this program with that workload.
fn instructions(
    strategy: &str,
    workload: usize,
    channels: usize,
    batches: u64,
) -> anyhow::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["--workload", strategy])
        .args([
            workload.to_string(),
            channels.to_string(),
            batches.to_string(),
        ])
        .output()
        .context("starting valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("valgrind failed:\n{text}");
    }
    let count = text
        .lines()
        .find_map(|line| line.split("Collected :").nth(1))
        .context("callgrind printed no count")?;
    Ok(count.trim().parse()?)
}
