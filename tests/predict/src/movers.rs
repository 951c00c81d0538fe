//! Several movers at once, each on a CPU of its own, over the same channels.
//!
//! A mover does everything but the copy of a batch, then has the batch copied, then goes on with
//! the next one. Ours admits by budget: a large batch waits until its channels have room, a
//! small one goes to the CPU if the queue in front of it would take longer. How the published driver
//! shares its channels is not published; here batches queue at each channel and nobody waits for a
//! lock.

use std::collections::VecDeque;

use serde::Serialize;

use crate::assumptions::Assumptions;
use crate::costs::{Costs, Hypothesis, PIECE_BYTES, Path};
use crate::published::{FolioSize, MACHINE_CHANNELS};
use crate::sim::Sim;
use crate::strategy::{Choice, Load, Ours, Place, by_port, ports, published_submit};
use crate::table::Range;

/// Movers of the rows.
pub const MOVERS: [usize; 5] = [1, 2, 4, 8, 16];

/// Length in bytes from which a batch waits for room. The CPU copies a smaller one sooner.
const WAITS_FROM_BYTES: u64 = 8 << 20;

/// Bytes that may wait at a channel before large batches wait outside: two batches of 32 MiB over
/// sixteen channels, so that a channel never runs dry between two.
const BUDGET_BYTES: u64 = 4 << 20;

/// Model time of a run: some fifty batches of 32 MiB for each of sixteen movers.
const RUN_NS: f64 = 200e6;

/// What sixteen CPUs copy together at most, GB/s. Version 3 of the series published 35.89 GB/s of
/// `move_pages` at 2 MiB with sixteen threads; without S this is left.
const CPUS_GB_PER_S: f64 = 45.7;

/// What movers move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mix {
    /// 16 folios of 2 MiB, over and over.
    Huge,
    /// Large and small batches of large and small folios in turn.
    Mixed,
}

impl Mix {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Huge, Self::Mixed];

    fn loads(self) -> &'static [Load] {
        const fn load(folio: FolioSize, count: u64) -> Load {
            Load { folio, count }
        }
        const MIXED: [Load; 6] = [
            load(FolioSize::HUGE, 16),
            load(FolioSize::MIDDLE, 64),
            load(FolioSize::BASE, 512),
            load(FolioSize::HUGE, 1),
            load(FolioSize::MIDDLE, 256),
            load(FolioSize::BASE, 32),
        ];
        match self {
            Self::Huge => &MIXED[..1],
            Self::Mixed => &MIXED,
        }
    }

    /// A word for tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Huge => "2M",
            Self::Mixed => "mixed",
        }
    }

    /// What engines and ports make of these bytes at most, GB/s.
    fn limit(self, costs: &Costs, hypothesis: Hypothesis) -> f64 {
        let ports = (MACHINE_CHANNELS / 2) as f64 * costs.port_gb_per_s;
        let (mut bytes, mut ns) = (0.0, 0.0);
        for load in self.loads() {
            let piece = costs.piece(hypothesis, Path::FullRing, load.folio, PIECE_BYTES);
            let engines = MACHINE_CHANNELS as f64 * PIECE_BYTES as f64 / piece;
            bytes += load.bytes() as f64;
            ns += load.bytes() as f64 / engines.min(ports);
        }
        bytes / ns
    }

    /// What movers make of these bytes with CPUs alone, GB/s.
    fn cpus(self, costs: &Costs, movers: usize) -> f64 {
        let (mut bytes, mut ns) = (0.0, 0.0);
        for load in self.loads() {
            bytes += load.bytes() as f64;
            ns += load.count as f64 * costs.cpu_folio(load.folio);
        }
        (movers as f64 * bytes / ns).min(CPUS_GB_PER_S)
    }
}

/// What came of a run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Run {
    /// Under which hypothesis.
    pub hypothesis: Hypothesis,
    /// All movers together, GB/s.
    pub gb_per_s: f64,
    /// The slowest mover's bytes in parts of an equal share.
    pub fairness: f64,
    /// Batches.
    pub batches: u64,
    /// Of which the policy left to the CPU for their size.
    pub declined: u64,
    /// Of which went to the CPU as the channels were busy.
    pub busy: u64,
    /// Of which waited for room.
    pub waited: u64,
    /// Locks taken for each batch that engines copied: one for a burst, one to collect a channel.
    pub locks: f64,
    /// The published driver, GB/s.
    pub published_gb_per_s: f64,
    /// What engines and ports allow, GB/s.
    pub limit_gb_per_s: f64,
}

/// One row.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What is moved.
    pub mix: Mix,
    /// By how many.
    pub movers: usize,
    /// CPUs alone, GB/s.
    pub cpu_gb_per_s: f64,
    /// Ours and the published driver, by hypothesis.
    pub runs: Vec<Run>,
}

impl Row {
    /// A number over all hypotheses.
    pub fn range(&self, of: impl Fn(&Run) -> f64) -> Range {
        Range::of(self.runs.iter().map(of))
    }
}

#[derive(Clone, Copy)]
enum Phase {
    /// Everything but the copy, until then.
    Work(f64),
    /// The CPU copies, until then.
    Copy(f64),
    /// Descriptors that the engines have of it.
    Engines(usize, Choice),
    /// It waits for room.
    Outside,
}

struct Mover {
    phase: Phase,
    next: usize,
    bytes: u64,
}

struct Crowd<'a> {
    ours: Ours<'a>,
    published: bool,
    mix: Mix,
    sim: Sim,
    movers: Vec<Mover>,
    outside: VecDeque<usize>,
    first: usize,
    batches: u64,
    declined: u64,
    busy: u64,
    waited: u64,
    locks: usize,
    offloaded: u64,
}

impl Crowd<'_> {
    fn load(&self, mover: usize) -> Load {
        let loads = self.mix.loads();
        loads[self.movers[mover].next % loads.len()]
    }

    fn begin(&mut self, mover: usize, now: f64) {
        let load = self.load(mover);
        let other = load.count as f64 * self.ours.costs.other(load.folio);
        self.movers[mover].phase = Phase::Work(now + other);
    }

    fn end(&mut self, mover: usize, now: f64) {
        let bytes = self.load(mover).bytes();
        self.batches += 1;
        let it = &mut self.movers[mover];
        it.bytes += bytes;
        it.next += 1;
        self.begin(mover, now);
    }

    fn by_cpu(&mut self, mover: usize, now: f64) {
        let ns = self.ours.costs.cpu_copy(self.load(mover).bytes());
        self.movers[mover].phase = Phase::Copy(now + ns);
    }

    /// Bytes that wait at the fullest of the channels that a batch would take.
    fn ahead(&self, channels: usize) -> u64 {
        let order = by_port();
        let waiting: Vec<u64> = self.sim.waiting().collect();
        let engines = order.iter().cycle().skip(self.first).take(channels);
        engines.map(|&e| waiting[e]).max().unwrap_or(0)
    }

    /// The copy of a mover's batch is due.
    fn copy(&mut self, mover: usize, now: f64) {
        let load = self.load(mover);
        if self.published {
            let descriptors = self.publish(load, mover, now);
            let choice = Choice::declined(self.ours.costs, load);
            self.movers[mover].phase = Phase::Engines(descriptors, choice);
            return;
        }
        let choice = self.ours.choose(load, false);
        if choice.channels == 0 {
            self.declined += 1;
            self.by_cpu(mover, now);
            return;
        }
        let ahead = self.ahead(choice.channels);
        if load.bytes() >= WAITS_FROM_BYTES {
            if ahead >= BUDGET_BYTES || !self.outside.is_empty() {
                self.waited += 1;
                self.outside.push_back(mover);
                self.movers[mover].phase = Phase::Outside;
                return;
            }
        } else {
            // What lies ahead is taken to move as fast as a channel of a shared port does.
            let queue = 2.0 * ahead as f64 / self.ours.costs.port_gb_per_s;
            if choice.expected_ns + queue > self.ours.costs.cpu_copy(load.bytes()) {
                self.busy += 1;
                self.by_cpu(mover, now);
                return;
            }
        }
        self.submit(mover, choice, now);
    }

    fn publish(&mut self, load: Load, tag: usize, now: f64) -> usize {
        let Ours {
            costs, hypothesis, ..
        } = self.ours;
        let sim = &mut self.sim;
        published_submit(sim, costs, hypothesis, load, MACHINE_CHANNELS, now, tag)
    }

    fn submit(&mut self, mover: usize, choice: Choice, now: f64) {
        let load = self.load(mover);
        let place = Place {
            first: self.first,
            tag: mover,
        };
        let done = self.ours.submit(&mut self.sim, load, choice, now, place);
        self.first = (self.first + choice.channels) % MACHINE_CHANNELS;
        self.locks += done.bursts + choice.channels;
        self.offloaded += 1;
        self.movers[mover].phase = Phase::Engines(done.descriptors, choice);
    }

    fn admit(&mut self, now: f64) {
        while let Some(&mover) = self.outside.front() {
            let choice = self.ours.choose(self.load(mover), false);
            if self.ahead(choice.channels) >= BUDGET_BYTES {
                return;
            }
            self.outside.pop_front();
            self.submit(mover, choice, now);
        }
    }

    /// The next mover whose own work ends, and when.
    fn next(&self) -> Option<(f64, usize)> {
        let each = self.movers.iter().enumerate();
        each.filter_map(|(index, m)| match m.phase {
            Phase::Work(at) | Phase::Copy(at) => Some((at, index)),
            Phase::Engines(..) | Phase::Outside => None,
        })
        .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
    }

    fn run(&mut self) {
        for mover in 0..self.movers.len() {
            self.begin(mover, 0.0);
        }
        loop {
            let engines = self.sim.next_ns().unwrap_or(f64::INFINITY);
            let (own, mover) = self.next().unwrap_or((f64::INFINITY, 0));
            if engines.min(own) > RUN_NS {
                return;
            }
            if own < engines {
                self.sim.advance(own);
                match self.movers[mover].phase {
                    Phase::Work(_) => self.copy(mover, own),
                    _ => self.end(mover, own),
                }
                continue;
            }
            let Some(ended) = self.sim.step() else {
                continue;
            };
            if let Phase::Engines(left, choice) = &mut self.movers[ended.tag].phase {
                *left -= 1;
                if *left == 0 {
                    let end = if self.published {
                        0.0
                    } else {
                        self.ours.ending(*choice)
                    };
                    // Bytes count when the mover goes on: as if the CPU had copied until then.
                    self.movers[ended.tag].phase = Phase::Copy(ended.at_ns + end);
                }
            }
            self.admit(ended.at_ns);
        }
    }
}

fn crowd(ours: Ours<'_>, published: bool, mix: Mix, movers: usize) -> Crowd<'_> {
    let mover = |index| Mover {
        phase: Phase::Outside,
        // Movers begin at different places of the same sequence.
        next: index,
        bytes: 0,
    };
    let mut crowd = Crowd {
        ours,
        published,
        mix,
        sim: Sim::new(&ports(), ours.costs.port_gb_per_s),
        movers: (0..movers).map(mover).collect(),
        outside: VecDeque::new(),
        first: 0,
        batches: 0,
        declined: 0,
        busy: 0,
        waited: 0,
        locks: 0,
        offloaded: 0,
    };
    crowd.run();
    crowd
}

fn rate(crowd: &Crowd<'_>) -> f64 {
    crowd.movers.iter().map(|m| m.bytes as f64).sum::<f64>() / RUN_NS
}

/// So many movers of such a mix under one hypothesis.
#[must_use]
pub fn run(costs: &Costs, hypothesis: Hypothesis, mix: Mix, movers: usize) -> Run {
    let ours = Ours {
        costs,
        hypothesis,
        channels: MACHINE_CHANNELS,
        hybrid: false,
    };
    let crowd_of_ours = crowd(ours, false, mix, movers);
    let slowest = crowd_of_ours.movers.iter().map(|m| m.bytes).min();
    let gb_per_s = rate(&crowd_of_ours);
    let due = gb_per_s * RUN_NS / movers as f64;
    Run {
        hypothesis,
        gb_per_s,
        fairness: slowest.unwrap_or(0) as f64 / due,
        batches: crowd_of_ours.batches,
        declined: crowd_of_ours.declined,
        busy: crowd_of_ours.busy,
        waited: crowd_of_ours.waited,
        locks: crowd_of_ours.locks as f64 / crowd_of_ours.offloaded.max(1) as f64,
        published_gb_per_s: rate(&crowd(ours, true, mix, movers)),
        limit_gb_per_s: mix.limit(costs, hypothesis),
    }
}

/// All rows. `step` is called before each.
#[must_use]
pub fn rows(assumed: &Assumptions, step: &dyn Fn()) -> Vec<Row> {
    let mut rows = Vec::new();
    for mix in Mix::BOTH {
        for movers in MOVERS {
            step();
            let each = assumed.hypotheses.iter();
            rows.push(Row {
                mix,
                movers,
                cpu_gb_per_s: mix.cpus(&assumed.costs, movers),
                runs: each.map(|&h| run(&assumed.costs, h, mix, movers)).collect(),
            });
        }
    }
    rows
}
