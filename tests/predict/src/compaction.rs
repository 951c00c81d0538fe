//! The compaction experiment: batches of 32 base pages on one CPU, idle or shared with a hog.
//!
//! What a batch costs beside its copy is published: the kernel's share of the run without offload,
//! less the CPU's copy, and the kernel's share of the run with offload, in which submitting,
//! interrupts and waking are contained. The published driver's copy is simulated on one channel:
//! the share of idle time that was published fits one channel and not two.

use serde::Serialize;

use crate::assumptions::Assumptions;
use crate::costs::{Costs, Hypothesis};
use crate::published::{CompactionRun, FolioSize, MACHINE_CHANNELS, TABLES};
use crate::strategy::{Choice, Load, Ours, published_copy};
use crate::table::Range;

/// A batch: the pages that compaction moves at once (`COMPACT_CLUSTER_MAX`).
const BATCH: Load = Load {
    folio: FolioSize::BASE,
    count: 32,
};

/// Who copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Who {
    /// The CPU.
    Cpu,
    /// The published driver.
    Dcbm,
    /// Ours as its policy decides, which wants the shortest time.
    Ours,
    /// Ours, always with engines and asleep meanwhile: what a policy would choose that knows of
    /// somebody who can use the CPU.
    OursAsleep,
}

impl Who {
    const ALL: [Self; 4] = [Self::Cpu, Self::Dcbm, Self::Ours, Self::OursAsleep];

    /// A word for tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Dcbm => "dcbm",
            Self::Ours => "ours",
            Self::OursAsleep => "ours, asleep",
        }
    }
}

/// One predicted run beside the published one.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Who copies.
    pub who: Who,
    /// Whether a hog shares the CPU.
    pub busy: bool,
    /// What is done with a batch, in words.
    pub does: String,
    /// Published wall time, ms.
    pub published_wall_ms: Option<f64>,
    /// Predicted wall time, ms.
    pub wall_ms: Range,
    /// Published share of the CPU that is idle or the hog's, %.
    pub published_freed_pct: Option<f64>,
    /// The same, predicted.
    pub freed_pct: Range,
    /// Published loops of the hog, in billions.
    pub published_hog: Option<f64>,
    /// The same, predicted.
    pub hog: Option<Range>,
}

/// One batch on the CPU of the experiment.
#[derive(Clone, Copy, Debug)]
struct Batch {
    busy_ns: f64,
    asleep_ns: f64,
}

impl Batch {
    fn wall(self, hog: bool) -> f64 {
        // A hog has half of the CPU while both can run, and all of it while the mover sleeps.
        let busy = if hog { 2.0 } else { 1.0 } * self.busy_ns;
        busy + self.asleep_ns
    }
}

fn published(mode: &str) -> Option<&'static CompactionRun> {
    TABLES.compaction.iter().find(|r| r.mode == mode)
}

fn batches(run: &CompactionRun) -> f64 {
    run.migrated / BATCH.count as f64
}

/// The experiment without copies.
struct Bench<'a> {
    costs: &'a Costs,
    /// A whole batch by the CPU, ns.
    cpu_ns: f64,
    /// The CPU's part of a batch with offload, ns.
    offload_ns: f64,
    /// Batches of the run.
    batches: f64,
}

impl<'a> Bench<'a> {
    fn new(costs: &'a Costs) -> Option<Self> {
        let (cpu, dcbm) = (published("cpu-idle")?, published("dcbm-idle")?);
        Some(Self {
            costs,
            cpu_ns: cpu.wall_ms * 1e6 / batches(cpu),
            offload_ns: dcbm.wall_ms * 1e6 * dcbm.sys_pct / 100.0 / batches(dcbm),
            batches: batches(cpu),
        })
    }

    fn batch(&self, who: Who, hypothesis: Hypothesis) -> (String, Batch) {
        let ours = Ours {
            costs: self.costs,
            hypothesis,
            channels: MACHINE_CHANNELS,
            hybrid: false,
        };
        let cpu = Batch {
            busy_ns: self.cpu_ns,
            asleep_ns: 0.0,
        };
        let asleep = |asleep_ns| Batch {
            busy_ns: self.offload_ns,
            asleep_ns,
        };
        match who {
            Who::Cpu => ("copies".to_owned(), cpu),
            Who::Dcbm => {
                let copy = published_copy(self.costs, hypothesis, BATCH, 1);
                ("1 channel, sleeps".to_owned(), asleep(copy))
            }
            Who::Ours => match ours.choose(BATCH, false) {
                Choice { channels: 0, .. } => ("leaves it to the CPU".to_owned(), cpu),
                choice => {
                    let copied = ours.copy(BATCH, choice);
                    let batch = Batch {
                        busy_ns: self.offload_ns + copied.cpu_ns,
                        asleep_ns: copied.wall_ns - copied.cpu_ns,
                    };
                    let verb = if choice.polls { "polls" } else { "sleeps" };
                    (format!("{} channels, {verb}", choice.channels), batch)
                }
            },
            Who::OursAsleep => {
                let choice = Choice {
                    polls: false,
                    ..ours.fastest(BATCH)
                };
                // Waking is latency here: the CPU's work for it is in the published share.
                let copy = ours.copy(BATCH, choice).wall_ns;
                (
                    format!("{} channels, sleeps", choice.channels),
                    asleep(copy),
                )
            }
        }
    }
}

/// All runs.
#[must_use]
pub fn runs(assumed: &Assumptions) -> Vec<Run> {
    let Some(bench) = Bench::new(&assumed.costs) else {
        return Vec::new();
    };
    // Loops of the hog in a millisecond of its own.
    let per_ms = published("cpu-busy").map_or(0.0, |r| {
        r.hog_iterations.unwrap_or(0.0) / (r.wall_ms * r.user_pct / 100.0)
    });
    let mut runs = Vec::new();
    for busy in [false, true] {
        for who in Who::ALL {
            let hypotheses = assumed.hypotheses.iter();
            let each: Vec<_> = hypotheses.map(|&h| bench.batch(who, h)).collect();
            let range = |f: &dyn Fn(&Batch) -> f64| Range::of(each.iter().map(|(_, b)| f(b)));
            let hog = |b: &Batch| (b.wall(true) - b.busy_ns) * bench.batches / 1e6 * per_ms / 1e9;
            let mut words: Vec<_> = each.iter().map(|(does, _)| does.clone()).collect();
            words.dedup();
            let mode = format!("{}-{}", who.name(), if busy { "busy" } else { "idle" });
            let known = published(&mode);
            runs.push(Run {
                who,
                busy,
                does: words.join(" / "),
                published_wall_ms: known.map(|r| r.wall_ms),
                wall_ms: range(&|b| b.wall(busy) * bench.batches / 1e6),
                published_freed_pct: known.map(|r| r.idle_pct + r.user_pct),
                freed_pct: range(&|b| 100.0 * (1.0 - b.busy_ns / b.wall(busy))),
                published_hog: known.and_then(|r| r.hog_iterations).map(|n| n / 1e9),
                hog: busy.then(|| range(&hog)),
            });
        }
    }
    runs
}
