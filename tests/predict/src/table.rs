//! The published tables, cell by cell: the published driver as the model has it, and ours.

use serde::Serialize;

use crate::assumptions::{Assumptions, Who};
use crate::costs::Hypothesis;
use crate::published::{Cell, FolioSize, Source, TABLES};
use crate::strategy::{Load, Ours, PUBLISHED_BATCH_BYTES, published_call};

/// The lowest and the highest of several predictions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Range {
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

impl Range {
    /// Of some values. Of none: nothing to infinity, upside down.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let none = Self {
            low: f64::INFINITY,
            high: f64::NEG_INFINITY,
        };
        values.into_iter().fold(none, |range, v| Self {
            low: range.low.min(v),
            high: range.high.max(v),
        })
    }

    /// Both ends times a factor.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self {
            low: self.low * factor,
            high: self.high * factor,
        }
    }

    /// "low..high", or one number if they print the same.
    #[must_use]
    pub fn show(self, digits: usize) -> String {
        let (low, high) = (
            format!("{:.digits$}", self.low),
            format!("{:.digits$}", self.high),
        );
        if low == high {
            low
        } else {
            format!("{low}..{high}")
        }
    }
}

/// Ours in one cell under one hypothesis.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct OursCell {
    /// Which one.
    pub hypothesis: Hypothesis,
    /// Channels that the policy takes; 0: left to the CPU.
    pub channels: usize,
    /// GB/s, engines alone.
    pub gb_per_s: f64,
    /// GB/s, with a share for the CPU.
    pub hybrid_gb_per_s: f64,
    /// The published driver in the same model, GB/s.
    pub modelled_gb_per_s: f64,
}

/// One cell, published and predicted. All in GB/s.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was published.
    #[serde(flatten)]
    pub published: Cell,
    /// The CPU alone, published.
    pub cpu: f64,
    /// The published driver in the model. Both hypotheses give the same.
    pub modelled: f64,
    /// Error of the model in parts of the published value.
    pub error: f64,
    /// Why it misses, if it is further off than the cell's tolerance.
    pub miss: Option<&'static str>,
    /// Ours, by hypothesis.
    pub ours: Vec<OursCell>,
    /// Measured: the published driver, ours.
    pub measured: (Option<f64>, Option<f64>),
}

impl Row {
    /// Ours over all hypotheses, engines alone.
    #[must_use]
    pub fn range(&self) -> Range {
        Range::of(self.ours.iter().map(|o| o.gb_per_s))
    }

    /// Ours with a share for the CPU.
    #[must_use]
    pub fn hybrid(&self) -> Range {
        Range::of(self.ours.iter().map(|o| o.hybrid_gb_per_s))
    }

    /// Ours from the published cell: the cell times what the model says ours gains. What the model
    /// is off in this cell so falls out. Where ours is left to the CPU: the CPU's cell. The outlier
    /// is no anchor: there it is [`range`](Self::range).
    #[must_use]
    pub fn anchored(&self) -> Range {
        if self.published.is_outlier() {
            return self.range();
        }
        Range::of(self.ours.iter().map(|o| {
            if o.channels == 0 {
                self.cpu
            } else {
                self.published.gb_per_s * o.gb_per_s / o.modelled_gb_per_s
            }
        }))
    }

    /// The better of CPU and published driver in the model.
    #[must_use]
    pub fn modelled_to_beat(&self) -> f64 {
        self.cpu.max(self.modelled)
    }

    /// The better of CPU and published driver, as published.
    #[must_use]
    pub fn to_beat(&self) -> f64 {
        self.cpu.max(self.published.gb_per_s)
    }

    /// What to call the cell.
    #[must_use]
    pub fn name(&self) -> String {
        let c = &self.published;
        match c.source {
            Source::FolioCount => format!("{} x {}, 1 channel", c.folios, c.folio),
            _ => format!(
                "{}, {} channel{}",
                c.folio,
                c.channels,
                if c.channels == 1 { "" } else { "s" }
            ),
        }
    }
}

/// The CPU's number beside this one, in the same table.
fn cpu_beside(assumed: &Assumptions, cell: &Cell) -> f64 {
    if let Some(measured) = assumed.measured(Who::Cpu, 0, cell.folio, cell.folios) {
        return measured;
    }
    if cell.source == Source::FolioCount {
        let mut cells = TABLES.cpu.iter();
        let same = |c: &&Cell| c.source == cell.source && c.folios == cell.folios;
        return cells.find(same).map_or(0.0, |c| c.gb_per_s);
    }
    let baseline = &assumed.costs.baseline_gb_per_s;
    baseline
        .get(&cell.folio.to_string())
        .copied()
        .unwrap_or_default()
}

/// Why a cell is off, where a reason is known.
fn reason(assumed: &Assumptions, cell: &Cell) -> &'static str {
    if cell.is_outlier() {
        "known outlier: versions 2, 3 and 5 of the series published 4.36, 4.78 and 4.62 here; no part of the fit"
    } else if assumed.machine.is_some() {
        "the costs were measured on another machine than the table"
    } else {
        "no reason is known"
    }
}

/// One cell.
#[must_use]
pub fn row(assumed: &Assumptions, cell: &Cell) -> Row {
    let costs = &assumed.costs;
    let load = Load {
        folio: cell.folio,
        count: cell.folios,
    };
    let rate = |ns: f64| load.bytes() as f64 / ns;
    let cpu = cpu_beside(assumed, cell);
    let one = |&hypothesis: &Hypothesis| {
        let by = |hybrid| {
            let ours = Ours {
                costs,
                hypothesis,
                channels: cell.channels,
                hybrid,
            };
            let (ns, choice) = ours.call(load, PUBLISHED_BATCH_BYTES);
            // What the CPU makes of a declined batch was published.
            let gb_per_s = if choice.channels == 0 { cpu } else { rate(ns) };
            (gb_per_s, choice.channels)
        };
        let (gb_per_s, channels) = by(false);
        OursCell {
            hypothesis,
            channels,
            gb_per_s,
            hybrid_gb_per_s: by(true).0,
            modelled_gb_per_s: rate(published_call(costs, hypothesis, load, cell.channels)),
        }
    };
    let ours: Vec<_> = assumed.hypotheses.iter().map(one).collect();
    let modelled = ours.first().map_or(0.0, |o| o.modelled_gb_per_s);
    let off = (modelled - cell.gb_per_s).abs() > cell.tolerance();
    let measured = |who| assumed.measured(who, cell.channels, cell.folio, cell.folios);
    Row {
        published: *cell,
        cpu,
        modelled,
        error: modelled / cell.gb_per_s - 1.0,
        miss: off.then(|| reason(assumed, cell)),
        ours,
        measured: (measured(Who::Published), measured(Who::Ours)),
    }
}

/// All cells of one table.
#[must_use]
pub fn rows(assumed: &Assumptions, source: Source) -> Vec<Row> {
    TABLES.of(source).map(|cell| row(assumed, cell)).collect()
}

/// The rows of one folio size.
pub fn column(rows: &[Row], folio: FolioSize) -> impl Iterator<Item = &Row> {
    rows.iter().filter(move |r| r.published.folio == folio)
}
