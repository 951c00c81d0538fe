//! What happened, for people and for machines.

use std::fmt::Write;
use std::io::IsTerminal;

use batch_copy::{Outcome, Report as BatchReport};
use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use ptdma::Clock;
use ptdma_model::Counters;
use serde::Serialize;

use crate::cli::Args;
use crate::machine::Machine;
use crate::waiting::Nanos;

/// Folios that the table of noteworthy ones lists; JSON has more.
const MAX_LISTED: usize = 20;

/// A folio that an engine did not copy in the ordinary way.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FolioEvent {
    /// Which window of the data.
    pub(crate) window: u64,
    /// Which folio of the window.
    pub(crate) folio: usize,
    /// Its length.
    pub(crate) len_bytes: usize,
    /// What was reported.
    pub(crate) outcome: String,
    /// Whether every byte is there.
    pub(crate) bytes_equal: bool,
}

/// Counts that grow while the job runs.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Tally {
    /// Bytes of input.
    pub(crate) input_bytes: u64,
    /// Folios.
    pub(crate) folios: u64,
    /// Folios copied by engines alone.
    pub(crate) folios_dma: u64,
    /// Folios copied with the help of the CPU.
    pub(crate) folios_cpu: u64,
    /// Folios that were not copied, and reported so.
    pub(crate) folios_left: u64,
    /// Folios that were reported copied but differ.
    pub(crate) folios_wrong: u64,
    /// Bytes that engines copied.
    pub(crate) dma_bytes: u64,
    /// Bytes that the CPU copied.
    pub(crate) cpu_bytes: u64,
    /// Batches.
    pub(crate) batches: u64,
    /// Batches left to the CPU by the policy.
    pub(crate) batches_declined: u64,
    /// Descriptors submitted.
    pub(crate) descriptors: u64,
    /// Folio parts that needed no descriptor of their own.
    pub(crate) coalesced: u64,
    /// Doorbells.
    pub(crate) doorbells: u64,
    /// Descriptors that engines failed.
    pub(crate) errors: u64,
    /// Bytes moved to other channels because theirs stopped.
    pub(crate) moved_bytes: u64,
    /// Functions reset because their engine did not stop.
    pub(crate) resets: u64,
    /// Folios that are not plain engine copies.
    pub(crate) events: Vec<FolioEvent>,
}

impl Tally {
    /// Adds a batch.
    pub(crate) fn add_batch(&mut self, report: &BatchReport, declined: bool, resets: u64) {
        self.batches += 1;
        self.batches_declined += u64::from(declined);
        self.dma_bytes += report.dma_bytes;
        self.cpu_bytes += report.cpu_bytes;
        self.descriptors += report.descriptors;
        self.coalesced += report.coalesced;
        self.doorbells += report.doorbells;
        self.errors += report.errors;
        self.moved_bytes += report.moved_bytes;
        self.resets += resets;
    }

    /// Adds a folio that was compared.
    pub(crate) fn add_folio(&mut self, outcome: Outcome, equal: bool, _len_bytes: u64) {
        self.folios += 1;
        match outcome {
            Outcome::Dma => self.folios_dma += 1,
            Outcome::Cpu => self.folios_cpu += 1,
            Outcome::Failed(_) | Outcome::NotAttempted(_) => self.folios_left += 1,
        }
        self.folios_wrong += u64::from(outcome.is_copied() && !equal);
    }
}

/// One channel's counts, from the device's side.
#[derive(Debug, Serialize)]
struct ChannelRow {
    channel: usize,
    service: String,
    #[serde(flatten)]
    counters: Counters,
}

/// The result.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    verified: bool,
    channels: Vec<ChannelRow>,
    sum: Counters,
    #[serde(flatten)]
    tally: Tally,
    seconds: f64,
    /// Engines and memory are emulated: no measure of hardware.
    emulated: bool,
    faults: Vec<String>,
}

impl Report {
    /// Collects it.
    pub(crate) fn new(args: &Args, machine: &Machine, tally: Tally, clock: Nanos) -> Self {
        let mut sum = Counters::default();
        let mut channels = Vec::new();
        for (channel, model) in machine.models.iter().enumerate() {
            let counters = model.counters();
            sum += counters;
            let service = machine
                .channels
                .service(channel)
                .map_or("absent".to_owned(), |s| format!("{s:?}").to_lowercase());
            channels.push(ChannelRow {
                channel,
                service,
                counters,
            });
        }
        Self {
            verified: tally.folios_wrong == 0 && tally.folios_left == 0,
            channels,
            sum,
            tally,
            seconds: clock.now() as f64 / 1e9,
            emulated: true,
            faults: args.fault.iter().map(|spec| spec.text.clone()).collect(),
        }
    }

    /// Whether every byte arrived.
    pub(crate) fn verified(&self) -> bool {
        self.verified
    }

    /// As JSON.
    pub(crate) fn to_json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// As tables.
    pub(crate) fn to_text(&self) -> anyhow::Result<String> {
        let mut out = String::new();
        self.write(&mut out)?;
        Ok(out)
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{}", self.channel_table())?;
        let t = &self.tally;
        writeln!(
            out,
            "{} folios in {} batches: {} by DMA, {} with the CPU, {} not copied; \
             {} batches declined",
            t.folios, t.batches, t.folios_dma, t.folios_cpu, t.folios_left, t.batches_declined
        )?;
        writeln!(
            out,
            "{} descriptors ({} folio parts coalesced), {} doorbells, {:.3} MMIO accesses and \
             {:.4} interrupts per folio",
            t.descriptors,
            t.coalesced,
            t.doorbells,
            self.sum.mmio() as f64 / t.folios.max(1) as f64,
            self.sum.interrupts as f64 / t.folios.max(1) as f64,
        )?;
        if !self.faults.is_empty() {
            writeln!(
                out,
                "injected: {}; {} faults fired, {} descriptors failed, {} bytes moved to other \
                 channels, {} functions reset",
                self.faults.join(", "),
                self.sum.faults,
                t.errors,
                t.moved_bytes,
                t.resets
            )?;
            self.write_events(out)?;
        }
        writeln!(
            out,
            "{} bytes in {:.2} s (engines are emulated: no measure of hardware)",
            t.input_bytes, self.seconds
        )?;
        self.write_verdict(out)
    }

    fn write_verdict(&self, out: &mut String) -> std::fmt::Result {
        let color = std::io::stdout().is_terminal();
        let paint = |code: &str, text: &str| {
            if color {
                format!("\x1b[{code}m{text}\x1b[0m")
            } else {
                text.to_owned()
            }
        };
        if self.verified {
            writeln!(out, "{}: every byte is there", paint("32", "VERIFIED"))?;
        } else {
            writeln!(
                out,
                "{}: {} folios reported copied differ, {} were not copied",
                paint("31", "NOT VERIFIED"),
                self.tally.folios_wrong,
                self.tally.folios_left
            )?;
        }
        Ok(())
    }

    fn channel_table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header([
            "channel",
            "service",
            "descriptors",
            "doorbells",
            "MMIO reads",
            "MMIO writes",
            "interrupts",
            "errors",
            "bytes",
        ]);
        let cells = |name: String, service: &str, c: &Counters| {
            vec![
                Cell::new(name),
                if service == "active" || service.is_empty() {
                    Cell::new(service)
                } else {
                    Cell::new(service).fg(Color::Red)
                },
                Cell::new(c.descriptors),
                Cell::new(c.doorbells),
                Cell::new(c.mmio_reads),
                Cell::new(c.mmio_writes),
                Cell::new(c.interrupts),
                Cell::new(c.errors),
                Cell::new(c.bytes),
            ]
        };
        for row in &self.channels {
            table.add_row(cells(row.channel.to_string(), &row.service, &row.counters));
        }
        table.add_row(cells("all".to_owned(), "", &self.sum));
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn write_events(&self, out: &mut String) -> std::fmt::Result {
        let events = &self.tally.events;
        if events.is_empty() {
            writeln!(out, "all folios were copied by engines")?;
            return Ok(());
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["window", "folio", "bytes", "outcome", "bytes equal"]);
        for event in events.iter().take(MAX_LISTED) {
            table.add_row([
                event.window.to_string(),
                event.folio.to_string(),
                event.len_bytes.to_string(),
                event.outcome.clone(),
                event.bytes_equal.to_string(),
            ]);
        }
        writeln!(out, "{table}")?;
        if events.len() > MAX_LISTED {
            writeln!(
                out,
                "... and {} more (--json lists up to 10000)",
                events.len() - MAX_LISTED
            )?;
        }
        Ok(())
    }
}
