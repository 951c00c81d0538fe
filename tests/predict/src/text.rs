//! The predictions as text.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

use crate::assumptions::Assumptions;
use crate::costs::{ASSUMED, Origin};
use crate::latency::{self, Latency, Mover};
use crate::prediction::Prediction;
use crate::table::{Range, Row};

const HEAD: Style = Style::new().bold();
const MISS: Style = AnsiColor::Red.on_default();

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header.iter().copied());
    table
}

fn show(out: &mut impl Write, mut table: Table, left: usize) -> io::Result<()> {
    for (n, column) in table.column_iter_mut().enumerate() {
        if n >= left {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    writeln!(out, "{table}\n")
}

fn head(out: &mut impl Write, title: &str, text: &str) -> io::Result<()> {
    writeln!(out, "{HEAD}{title}{HEAD:#}\n{text}\n")
}

fn optional(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.digits$}"))
}

/// Everything.
///
/// # Errors
///
/// If it cannot be written.
pub fn write(out: &mut impl Write, all: &Prediction) -> io::Result<()> {
    assumptions(out, &all.assumptions)?;
    let of_hypotheses = "A range is what the two hypotheses about the flat cost say.";
    head(
        out,
        "1. By number of channels (predicted beside published)",
        &format!(
            "move_pages in GB/s, 1 GB in one call. model: the published driver, simulated. ours: predicted, engines alone;\n\
             0 channels in use means left to the CPU. anchored: the published cell times what the model says ours gains.\n\
             hybrid: the CPU copies a share meanwhile. {of_hypotheses}"
        ),
    )?;
    show(out, cells(&all.channels, all), 0)?;
    head(
        out,
        "1b. The two sizes of version 3 (predicted beside published)",
        "As above. Other kernel, same machine; no spread was published.",
    )?;
    show(out, cells(&all.more_sizes, all), 0)?;
    head(
        out,
        "2. By number of folios of 2 MiB, one channel (predicted beside published)",
        "As above. The first folios of a call cost more on both paths.",
    )?;
    show(out, cells(&all.folio_count, all), 0)?;
    misses(out, all)?;
    head(
        out,
        "3. Latency of a call (predicted)",
        &format!(
            "Microseconds from the start of a call to when the first folio, half of them, 99 % and all can be used.\n\
             One cold call, 16 channels; predict.json has 1 to 16. cpu: the stock kernel's batches of 2 MiB.\n\
             published, ours: batches of up to 1 GiB; ours/32M: batches of 32 MiB. {of_hypotheses}"
        ),
    )?;
    for folio in latency::FOLIOS {
        let rows = all
            .latency
            .iter()
            .filter(|l| l.folio == folio && l.channels == 16);
        show(out, latencies(&rows.collect::<Vec<_>>()), 0)?;
    }
    head(
        out,
        "3b. Latency of a call by number of channels (predicted)",
        "Microseconds until all folios can be used: published driver / ours.",
    )?;
    show(out, by_channels(all), 0)?;
    head(
        out,
        "4. Several movers, 16 channels (predicted)",
        &format!(
            "GB/s of all together. cpu: as many CPUs without engines, at most what sixteen threads were published to copy.\n\
             fairness: the slowest mover in parts of an equal share. limit: engines and ports; what CPUs copy comes on top.\n\
             The model charges ours with reads at doorbells and at the end and with a wake-up, the published driver with round trips alone.\n\
             Batches: by the policy to the CPU, to the CPU as channels were busy, and those that waited. {of_hypotheses}"
        ),
    )?;
    show(out, movers(all), 1)?;
    head(
        out,
        "5. Compaction on one CPU, batches of 32 pages (predicted beside published)",
        &format!(
            "Wall time in s; freed: share of the CPU that is idle or the hog's, %; hog: its loops in billions.\n{of_hypotheses}"
        ),
    )?;
    show(out, compaction(all), 3)
}

fn assumptions(out: &mut impl Write, assumed: &Assumptions) -> io::Result<()> {
    head(
        out,
        "PREDICTED: what this machine-independent model says, from these costs",
        "No number here was measured on an engine by this tree, but for those marked measured.",
    )?;
    if let Some(machine) = &assumed.machine {
        writeln!(out, "Measured values are from: {machine}\n")?;
    }
    let mut list = table(&["cost", "value", "origin"]);
    let Ok(Value::Object(costs)) = serde_json::to_value(&assumed.costs) else {
        return Ok(());
    };
    for (name, value) in &costs {
        let origin = match assumed.origins.get(name) {
            Some(Origin::Fitted) if name == "baseline_gb_per_s" => "published".to_owned(),
            Some(Origin::Fitted) => "fitted".to_owned(),
            Some(Origin::Measured) => "measured".to_owned(),
            Some(Origin::Assumed) | None => {
                let reason = ASSUMED.iter().find(|(other, _)| other == name);
                format!("ASSUMED: {}", reason.map_or("command line", |(_, r)| r))
            }
        };
        let value = match value {
            Value::Object(sizes) => {
                let mut sizes: Vec<_> = sizes.iter().collect();
                sizes.sort_by_key(|(size, _)| crate::published::FolioSize::parse(size));
                let each = sizes.iter().map(|(size, v)| format!("{size} {v}"));
                each.collect::<Vec<_>>().join(", ")
            }
            value => value.to_string(),
        };
        list.add_row([name.clone(), value, origin]);
    }
    show(out, list, 3)?;
    let hypotheses: Vec<_> = assumed.hypotheses.iter().map(|h| h.name()).collect();
    writeln!(
        out,
        "hypotheses about the flat cost below 2 MiB: {} (translation of each page; something that splits at 64 KiB)\n",
        hypotheses.join(", ")
    )
}

fn cells(rows: &[Row], all: &Prediction) -> Table {
    let measured = !all.assumptions.measured.is_empty();
    let mut header = vec![
        "folio",
        "folios",
        "channels",
        "cpu",
        "published",
        "model",
        "error",
        "ours",
        "in use",
        "anchored",
        "hybrid",
        "to the better",
    ];
    if measured {
        header.extend(["dcbm measured", "ours measured"]);
    }
    let mut list = table(&header);
    for row in rows {
        let cell = &row.published;
        let spread = cell.spread.map_or(String::new(), |s| format!(" +-{s:.2}"));
        let mark = if row.miss.is_some() { " MISS" } else { "" };
        let used = Range::of(row.ours.iter().map(|o| o.channels as f64));
        let mut line = vec![
            cell.folio.to_string(),
            cell.folios.to_string(),
            cell.channels.to_string(),
            format!("{:.2}", row.cpu),
            format!("{:.2}{spread}", cell.gb_per_s),
            format!("{:.2}", row.modelled),
            format!("{:+.1} %{mark}", 100.0 * row.error),
            row.range().show(2),
            used.show(0),
            row.anchored().show(2),
            row.hybrid().show(2),
            format!("{}x", row.range().times(1.0 / row.to_beat()).show(2)),
        ];
        if measured {
            line.extend([optional(row.measured.0, 2), optional(row.measured.1, 2)]);
        }
        list.add_row(line);
    }
    list
}

fn misses<W: Write>(out: &mut W, all: &Prediction) -> io::Result<()> {
    let (cells, misses) = (all.rows().count(), all.misses().count());
    writeln!(
        out,
        "{HEAD}The model hits {} of {cells} cells{HEAD:#} within a tenth or the published spread, whichever is larger.",
        cells - misses
    )?;
    for row in all.misses() {
        writeln!(
            out,
            "{MISS}MISS{MISS:#} {}: {:+.1} %: {}",
            row.name(),
            100.0 * row.error,
            row.miss.unwrap_or_default()
        )?;
    }
    let worst = all
        .rows()
        .filter(|r| r.miss.is_none())
        .max_by(|a, b| off(a).total_cmp(&off(b)));
    if let Some(row) = worst {
        writeln!(
            out,
            "Worst of the others: {}: {:+.1} % where {:.1} % are allowed.",
            row.name(),
            100.0 * row.error,
            100.0 * row.published.tolerance() / row.published.gb_per_s
        )?;
    }
    let behind = |what: &str, to_beat: fn(&Row) -> f64, out: &mut W| -> io::Result<()> {
        let rows = all.rows().filter(|r| r.range().low < 0.999 * to_beat(r));
        let names: Vec<_> = rows
            .map(|r| format!("{} ({:.2}x)", r.name(), r.range().low / to_beat(r)))
            .collect();
        let names = if names.is_empty() {
            "no cell".to_owned()
        } else {
            names.join("; ")
        };
        writeln!(out, "{what}: {names}.")
    };
    behind(
        "The lower end of ours is below CPU and published driver of the same model in",
        Row::modelled_to_beat,
        out,
    )?;
    behind(
        "It is below the published numbers themselves, of which the model is off by the errors above, in",
        Row::to_beat,
        out,
    )?;
    writeln!(out)
}

/// How far the model is off in parts of what is allowed.
fn off(row: &Row) -> f64 {
    (row.modelled - row.published.gb_per_s).abs() / row.published.tolerance()
}

/// One number of a call over all hypotheses.
fn over(rows: &[&Latency], folios: u64, mover: Mover, of: fn(&Latency) -> f64) -> Range {
    let same = rows
        .iter()
        .filter(|l| l.folios == folios && l.mover == mover);
    Range::of(same.map(|l| of(l)))
}

/// Three digits that matter.
fn short(range: Range) -> String {
    range.show(if range.high < 100.0 { 1 } else { 0 })
}

fn latencies(rows: &[&Latency]) -> Table {
    let mut list = table(&[
        "folio", "folios", "who", "in use", "first", "p50", "p99", "all",
    ]);
    for folios in latency::counts() {
        for mover in Mover::ALL {
            let Some(one) = rows.iter().find(|l| l.folios == folios && l.mover == mover) else {
                continue;
            };
            if mover == Mover::OursShort && folios * one.folio.bytes() <= latency::OUR_BATCH_BYTES {
                // The same as one batch of any size.
                continue;
            }
            list.add_row([
                one.folio.to_string(),
                folios.to_string(),
                mover.name().to_owned(),
                over(rows, folios, mover, |l| l.used as f64).show(0),
                short(over(rows, folios, mover, |l| l.first_us)),
                short(over(rows, folios, mover, |l| l.p50_us)),
                short(over(rows, folios, mover, |l| l.p99_us)),
                short(over(rows, folios, mover, |l| l.all_us)),
            ]);
        }
    }
    list
}

/// Sizes of the calls in the table by channels.
const SOME_COUNTS: [u64; 5] = [1, 16, 128, 1024, 8192];

fn by_channels(all: &Prediction) -> Table {
    let channels = latency::CHANNELS.map(|n| format!("{n} ch"));
    let header: Vec<_> = ["folio", "folios", "cpu"]
        .into_iter()
        .chain(channels.iter().map(String::as_str))
        .collect();
    let mut list = table(&header);
    for folio in latency::FOLIOS {
        for count in SOME_COUNTS {
            let rows = |channels| -> Vec<&Latency> {
                let here = |l: &&Latency| l.folio == folio && l.channels == channels;
                all.latency.iter().filter(here).collect()
            };
            let all_us = |channels, mover| short(over(&rows(channels), count, mover, |l| l.all_us));
            let mut line = vec![folio.to_string(), count.to_string(), all_us(1, Mover::Cpu)];
            line.extend(latency::CHANNELS.map(|n| {
                let (published, ours) = (all_us(n, Mover::Published), all_us(n, Mover::Ours));
                format!("{published} / {ours}")
            }));
            list.add_row(line);
        }
    }
    list
}

fn movers(all: &Prediction) -> Table {
    let mut list = table(&[
        "what",
        "movers",
        "cpu",
        "published",
        "ours",
        "limit",
        "fairness",
        "batches",
        "by policy",
        "busy",
        "waited",
        "locks a batch",
    ]);
    for row in &all.movers {
        list.add_row([
            row.mix.name().to_owned(),
            row.movers.to_string(),
            format!("{:.1}", row.cpu_gb_per_s),
            row.range(|r| r.published_gb_per_s).show(1),
            row.range(|r| r.gb_per_s).show(1),
            row.range(|r| r.limit_gb_per_s).show(1),
            row.range(|r| r.fairness).show(2),
            row.range(|r| r.batches as f64).show(0),
            row.range(|r| r.declined as f64).show(0),
            row.range(|r| r.busy as f64).show(0),
            row.range(|r| r.waited as f64).show(0),
            row.range(|r| r.locks).show(1),
        ]);
    }
    list
}

fn compaction(all: &Prediction) -> Table {
    let mut list = table(&[
        "machine",
        "who",
        "what it does",
        "published s",
        "predicted s",
        "published freed",
        "predicted freed",
        "published hog",
        "predicted hog",
    ]);
    for run in &all.compaction {
        list.add_row([
            if run.busy { "busy" } else { "idle" }.to_owned(),
            run.who.name().to_owned(),
            run.does.clone(),
            optional(run.published_wall_ms.map(|ms| ms / 1e3), 2),
            run.wall_ms.times(1e-3).show(2),
            optional(run.published_freed_pct, 1),
            run.freed_pct.show(1),
            optional(run.published_hog, 1),
            run.hog.map_or_else(|| "-".to_owned(), |h| h.show(1)),
        ]);
    }
    list
}
