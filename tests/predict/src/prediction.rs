//! All predictions together.

use serde::Serialize;

use crate::assumptions::Assumptions;
use crate::compaction;
use crate::latency::{self, Latency};
use crate::movers;
use crate::published::Source;
use crate::table::{self, Row};

/// The version of `predict.json`.
pub const SCHEMA: &str = "ptdma-predict/1";

/// Everything that is predicted, and from what.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// That this is no measurement, in a word.
    pub kind: &'static str,
    /// What it starts from.
    pub assumptions: Assumptions,
    /// By number of channels.
    pub channels: Vec<Row>,
    /// The two sizes of version 3.
    pub more_sizes: Vec<Row>,
    /// By number of folios.
    pub folio_count: Vec<Row>,
    /// Latency by size of the call.
    pub latency: Vec<Latency>,
    /// Several movers.
    pub movers: Vec<movers::Row>,
    /// Compaction.
    pub compaction: Vec<compaction::Run>,
}

impl Prediction {
    /// Steps that [`of`](Self::of) reports.
    pub const STEPS: usize = 3
        + latency::FOLIOS.len() * latency::CHANNELS.len()
        + movers::Mix::BOTH.len() * movers::MOVERS.len()
        + 1;

    /// Predicts everything. `step` is called before each step.
    #[must_use]
    pub fn of(assumptions: Assumptions, step: &dyn Fn()) -> Self {
        let rows = |source| {
            step();
            table::rows(&assumptions, source)
        };
        let channels = rows(Source::Channels);
        let more_sizes = rows(Source::MoreSizes);
        let folio_count = rows(Source::FolioCount);
        let latency = latency::curve(&assumptions, step);
        let movers = movers::rows(&assumptions, step);
        step();
        let compaction = compaction::runs(&assumptions);
        Self {
            schema: SCHEMA,
            kind: "predicted",
            assumptions,
            channels,
            more_sizes,
            folio_count,
            latency,
            movers,
            compaction,
        }
    }

    /// Every cell.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        let rows = self.channels.iter().chain(&self.more_sizes);
        rows.chain(&self.folio_count)
    }

    /// The cells in which the model misses.
    pub fn misses(&self) -> impl Iterator<Item = &Row> {
        self.rows().filter(|r| r.miss.is_some())
    }
}
