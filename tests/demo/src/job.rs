//! The job: the data window by window, batches from several threads, every byte compared.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use anyhow::{Context, bail};
use batch_copy::{
    Batch, CostModel, CpuCopier, CpuCopyError, Folio, Host, Options, Outcome, OverlapCheck, Piece,
    Policy,
};
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use ptdma::DmaAddr;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::cli::{Args, PolicyName};
use crate::layout::{self, Placed};
use crate::machine::{MAX_CHANNELS, Machine, Reset};
use crate::report::{FolioEvent, Report, Tally};
use crate::waiting::{AnyWait, Nanos, serve_interrupts};

/// Data moved at a time: bounds the demo's memory (three times this) whatever the file's size.
const WINDOW_LEN_BYTES: usize = 256 << 20;

/// Not-quite-ordinary folios that are kept for the report; the rest is counted.
const MAX_EVENTS: usize = 10_000;

/// How long an engine may not move before it is given up: long against any scheduling delay of
/// an engine thread, short for a person.
const HANG_NS: u64 = 2_000_000_000;

/// Why an input is none: the context of such errors.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadInput(String);

/// Where the data comes from.
enum Data {
    File(File),
    Generated { rng: Box<SmallRng>, left: usize },
}

impl Data {
    /// The next window; empty at the end.
    fn next(&mut self, window: usize) -> anyhow::Result<Vec<u8>> {
        let mut data = Vec::new();
        match self {
            Self::File(file) => {
                file.take(window as u64)
                    .read_to_end(&mut data)
                    .context(BadInput("reading the input".to_owned()))?;
            }
            Self::Generated { rng, left } => {
                data.resize(window.min(*left), 0);
                rng.fill_bytes(&mut data);
                *left -= data.len();
            }
        }
        Ok(data)
    }
}

/// The CPU, for its share and for repairs.
struct Cpu<'m> {
    machine: &'m Machine,
    buffer: Vec<u8>,
}

impl CpuCopier for Cpu<'_> {
    fn copy(&mut self, piece: &Piece) -> Result<(), CpuCopyError> {
        let offset = |base: DmaAddr, at: DmaAddr| {
            usize::try_from(at.get().checked_sub(base.get()).ok_or(CpuCopyError)?)
                .map_err(|_| CpuCopyError)
        };
        let len = usize::try_from(piece.len_bytes).map_err(|_| CpuCopyError)?;
        self.buffer.resize(len, 0);
        let src = offset(self.machine.src.addr(), piece.src)?;
        let dst = offset(self.machine.dst.addr(), piece.dst)?;
        self.machine
            .src
            .read(src, &mut self.buffer)
            .map_err(|_| CpuCopyError)?;
        self.machine
            .dst
            .write(dst, &self.buffer)
            .map_err(|_| CpuCopyError)
    }
}

/// Runs it all.
pub(crate) fn run(args: &Args) -> anyhow::Result<Report> {
    let (mut data, total) = match &args.input {
        Some(path) => {
            let file = File::open(path)
                .with_context(|| BadInput(format!("opening {}", path.display())))?;
            let len = file.metadata().map_or(0, |m| m.len());
            (Data::File(file), len)
        }
        None => {
            let rng = Box::new(SmallRng::seed_from_u64(1));
            let left = args.size;
            (Data::Generated { rng, left }, left as u64)
        }
    };
    let window = usize::try_from(total)
        .unwrap_or(usize::MAX)
        .clamp(1, WINDOW_LEN_BYTES)
        .next_multiple_of(2 << 20);
    let clock = Nanos(Instant::now());
    let (sender, raised) = mpsc::channel();
    let machine = Machine::new(args, window, &sender)?;
    drop(sender);
    let bar = progress_bar(args, total);
    let tally = Mutex::new(Tally::default());

    let shared = &machine;
    std::thread::scope(|scope| -> anyhow::Result<()> {
        scope.spawn(move || serve_interrupts(shared, clock, &raised));
        let result = windows(args, &machine, clock, &mut data, window, &bar, &tally);
        machine.disconnect_interrupts();
        result
    })?;
    bar.finish_and_clear();
    let tally = tally.into_inner();
    if tally.input_bytes == 0 {
        bail!(BadInput("the input is empty: nothing to move".to_owned()));
    }
    Ok(Report::new(args, &machine, tally, clock))
}

fn progress_bar(args: &Args, total: u64) -> ProgressBar {
    if args.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "{bar:40} {bytes:>12} of {total_bytes}  {elapsed_precise}  {msg}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total)
        .with_style(style)
        .with_message("moving")
}

fn windows(
    args: &Args,
    machine: &Machine,
    clock: Nanos,
    data: &mut Data,
    window: usize,
    bar: &ProgressBar,
    tally: &Mutex<Tally>,
) -> anyhow::Result<()> {
    for number in 0_u64.. {
        let mut bytes = data.next(window)?;
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        let folios = layout::place(args, len, number);
        bytes.resize(len.next_multiple_of(crate::cli::PAGE_LEN_BYTES), 0);
        // Anything left from the window before must not pass for a copy.
        let blank = vec![0x5a; window];
        machine
            .dst
            .write(0, &blank)
            .context("clearing the destination")?;
        for folio in &folios {
            let from = &bytes[folio.data_offset..folio.data_offset + folio.len_bytes];
            machine
                .src
                .write(folio.src_offset, from)
                .context("laying out the source")?;
        }
        let outcomes = move_window(args, machine, clock, &folios, bar, tally)?;
        verify(machine, &bytes, len, &folios, &outcomes, number, tally)?;
    }
    Ok(())
}

/// Where the batches begin and end in the list of folios.
fn batches(args: &Args, folios: &[Placed]) -> Vec<std::ops::Range<usize>> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, folio) in folios.iter().enumerate() {
        if bytes + folio.len_bytes > args.batch && index > start {
            batches.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += folio.len_bytes;
    }
    batches.push(start..folios.len());
    batches
}

/// Moves all folios of a window, in batches, from several threads.
fn move_window(
    args: &Args,
    machine: &Machine,
    clock: Nanos,
    placed: &[Placed],
    bar: &ProgressBar,
    tally: &Mutex<Tally>,
) -> anyhow::Result<Vec<Outcome>> {
    let addr = |base: DmaAddr, offset: usize| {
        base.checked_add(offset as u64)
            .context("an address over 64 bits")
    };
    let folios = placed
        .iter()
        .map(|p| {
            Ok(Folio::new(
                addr(machine.src.addr(), p.src_offset)?,
                addr(machine.dst.addr(), p.dst_offset)?,
                p.len_bytes as u64,
            ))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let ranges = batches(args, placed);
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(vec![
        Outcome::NotAttempted(batch_copy::SkipReason::Declined);
        folios.len()
    ]);
    std::thread::scope(|scope| {
        let movers: Vec<_> = (0..args.batches)
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    let mut batch = Box::new(Batch::<MAX_CHANNELS>::new());
                    let mut results = Vec::new();
                    while let Some(range) = ranges.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let part = folios
                            .get(range.clone())
                            .context("a batch beyond the list")?;
                        results.clear();
                        results.resize(
                            part.len(),
                            Outcome::NotAttempted(batch_copy::SkipReason::Declined),
                        );
                        one_batch(args, machine, clock, &mut batch, part, &mut results, tally)?;
                        outcomes.lock()[range.clone()].copy_from_slice(&results);
                        bar.inc(part.iter().map(|f| f.len_bytes).sum());
                    }
                    Ok(())
                })
            })
            .collect();
        movers.into_iter().try_for_each(|mover| match mover.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(outcomes.into_inner())
}

/// How a batch is to be run, by the policy that was asked for; `None` leaves it to the CPU.
fn options(
    args: &Args,
    folios: usize,
    bytes: u64,
    active: usize,
    base: &Options,
) -> Option<Options> {
    let mut policy = Policy::new(CostModel::default(), usize::from(args.channels));
    match args.policy {
        PolicyName::Cpu => return None,
        PolicyName::Engines => {
            let mut options = *base;
            options.channels = usize::from(args.channels);
            return Some(options);
        }
        PolicyName::Auto => {}
        PolicyName::Hybrid => policy.hybrid = true,
    }
    policy.options(folios, bytes, active, base)
}

#[allow(clippy::too_many_arguments)]
fn one_batch(
    args: &Args,
    machine: &Machine,
    clock: Nanos,
    batch: &mut Batch<MAX_CHANNELS>,
    folios: &[Folio],
    outcomes: &mut [Outcome],
    tally: &Mutex<Tally>,
) -> anyhow::Result<()> {
    let cpu = Cpu {
        machine,
        buffer: Vec::new(),
    };
    let mut host = Host::new(AnyWait::new(args.wait, clock, &machine.bell))
        .with_cpu(cpu)
        .with_rescue(Reset {
            machine,
            quarantined: Vec::new(),
            resets: 0,
        });
    let bytes = folios.iter().map(|f| f.len_bytes).sum();
    let mut base = Options::default();
    base.repair = true;
    base.hang_ns = HANG_NS;
    base.dst_node = Some(1);
    base.src_node = Some(0);
    let active = machine.channels.active();
    let options = options(args, folios.len(), bytes, active, &base);
    let mut declined = false;
    let options = options.unwrap_or_else(|| {
        declined = true;
        // All of it is the CPU's share.
        base.cpu_share_bytes = bytes;
        base
    });
    let report = batch
        .run(
            &machine.channels,
            folios,
            OverlapCheck::CallerKnows,
            &options,
            &mut host,
            outcomes,
        )
        .map_err(|e| anyhow::anyhow!("a batch was refused: {e}"))?;
    tally
        .lock()
        .add_batch(&report, declined, host.rescue.resets);
    Ok(())
}

/// Compares every byte with what the outcomes say.
fn verify(
    machine: &Machine,
    bytes: &[u8],
    len: usize,
    folios: &[Placed],
    outcomes: &[Outcome],
    window: u64,
    tally: &Mutex<Tally>,
) -> anyhow::Result<()> {
    let mut tally = tally.lock();
    tally.input_bytes += len as u64;
    let mut arrived = Vec::new();
    for (index, (folio, outcome)) in folios.iter().zip(outcomes).enumerate() {
        arrived.resize(folio.len_bytes, 0);
        machine
            .dst
            .read(folio.dst_offset, &mut arrived)
            .context("reading the destination")?;
        let expected = &bytes[folio.data_offset..folio.data_offset + folio.len_bytes];
        let equal = arrived == expected;
        tally.add_folio(*outcome, equal, folio.len_bytes as u64);
        if (*outcome != Outcome::Dma || !equal) && tally.events.len() < MAX_EVENTS {
            tally.events.push(FolioEvent {
                window,
                folio: index,
                len_bytes: folio.len_bytes,
                outcome: outcome.to_string(),
                bytes_equal: equal,
            });
        }
    }
    Ok(())
}
