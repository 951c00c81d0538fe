//! When the folios of a call can be used again: the first one, half of them, 99 %, and all.
//!
//! A folio is unusable from the start of the call on, as its caller waits, and until its page
//! table entry points to the copy. The kernel works in batches: it unmaps a whole batch, copies,
//! and then moves folio after folio. With offload the copy is one step for the batch; without, each
//! folio is copied when it is moved.

use serde::Serialize;

use crate::assumptions::Assumptions;
use crate::costs::{Costs, Hypothesis};
use crate::published::FolioSize;
use crate::strategy::{Load, Ours, PUBLISHED_BATCH_BYTES, STOCK_BATCH_BYTES, published_copy};

/// Sizes of the curve.
pub const FOLIOS: [FolioSize; 3] = [FolioSize::BASE, FolioSize::MIDDLE, FolioSize::HUGE];

/// Channels of the curve.
pub const CHANNELS: [usize; 5] = [1, 2, 4, 8, 16];

/// Batch sizes of the curve: powers of two up to this.
pub const MOST_FOLIOS: u64 = 8192;

/// The batch that ours would ask for: at 2 MiB it costs 8 % of throughput against batches of
/// 1 GiB, and the first folio of a large call waits for a ninth of the time.
pub const OUR_BATCH_BYTES: u64 = 32 << 20;

/// Who moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mover {
    /// The CPU, in batches of the stock kernel.
    Cpu,
    /// The published driver.
    Published,
    /// Ours in batches as the published driver's.
    Ours,
    /// Ours in batches of [`OUR_BATCH_BYTES`].
    OursShort,
}

impl Mover {
    /// All, in the order of tables.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Published, Self::Ours, Self::OursShort];

    /// A word for tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Published => "published",
            Self::Ours => "ours",
            Self::OursShort => "ours/32M",
        }
    }
}

/// One call.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Who.
    pub mover: Mover,
    /// Under which hypothesis.
    pub hypothesis: Hypothesis,
    /// Folio size.
    pub folio: FolioSize,
    /// Channels that there are.
    pub channels: usize,
    /// Folios of the call.
    pub folios: u64,
    /// Channels of the first batch; 0: the CPU copied.
    pub used: usize,
    /// When the first folio can be used, us.
    pub first_us: f64,
    /// When half of the folios can be used, us.
    pub p50_us: f64,
    /// When 99 % of the folios can be used, us.
    pub p99_us: f64,
    /// When all can, us: the latency of the call.
    pub all_us: f64,
}

/// Times of a call, batch after batch.
struct Clock {
    now_ns: f64,
    usable_ns: Vec<f64>,
    cold_bytes: u64,
}

impl Clock {
    /// A batch: all of it is unmapped, copied at once (or each folio for itself), then moved.
    fn batch(&mut self, costs: &Costs, batch: Load, other_ns: f64, at_once_ns: f64, each_ns: f64) {
        let (count, bytes) = (batch.count as f64, batch.bytes());
        let cold = costs.cold(self.cold_bytes + bytes) - costs.cold(self.cold_bytes);
        self.cold_bytes += bytes;
        self.now_ns += cold + count * other_ns * costs.before_share + at_once_ns;
        let after = each_ns + other_ns * (1.0 - costs.before_share);
        for _ in 0..batch.count {
            self.now_ns += after;
            self.usable_ns.push(self.now_ns);
        }
    }

    /// The time by which this share of the folios, in percent, can be used, in us.
    fn percent(&self, percent: usize) -> f64 {
        let n = self.usable_ns.len();
        let at = (n * percent).div_ceil(100).max(1) - 1;
        self.usable_ns.get(at).map_or(0.0, |ns| ns / 1_000.0)
    }
}

/// One call of `load` by `mover` with `channels` channels.
#[must_use]
pub fn one(
    costs: &Costs,
    mover: Mover,
    hypothesis: Hypothesis,
    load: Load,
    channels: usize,
) -> Latency {
    let ours = Ours {
        costs,
        hypothesis,
        channels,
        hybrid: false,
    };
    let limit = match mover {
        Mover::OursShort => OUR_BATCH_BYTES,
        _ => PUBLISHED_BATCH_BYTES,
    };
    let first = load.batches(limit).next().unwrap_or(load);
    let used = match mover {
        Mover::Cpu => 0,
        Mover::Published => channels,
        Mover::Ours | Mover::OursShort => ours.choose(first, true).channels,
    };
    let mut clock = Clock {
        now_ns: 0.0,
        usable_ns: Vec::new(),
        cold_bytes: 0,
    };
    if used == 0 {
        let copy = costs.cpu_copy(load.folio.bytes());
        let other = costs.cpu_folio(load.folio) - copy;
        clock.now_ns = costs.cpu_call_ns;
        for batch in load.batches(STOCK_BATCH_BYTES) {
            clock.batch(costs, batch, other, 0.0, copy);
        }
    } else {
        let other = costs.other(load.folio);
        clock.now_ns = costs.call_ns;
        // Equal batches take equal time.
        let mut known: Option<(Load, f64)> = None;
        for batch in load.batches(limit) {
            let copy = match known {
                Some((same, copy)) if same == batch => copy,
                _ if mover == Mover::Published => {
                    published_copy(costs, hypothesis, batch, channels)
                }
                _ => ours.copy(batch, ours.fastest(batch)).wall_ns,
            };
            known = Some((batch, copy));
            clock.batch(costs, batch, other, copy, 0.0);
        }
    }
    Latency {
        mover,
        hypothesis,
        folio: load.folio,
        channels,
        folios: load.count,
        used,
        first_us: clock.percent(0),
        p50_us: clock.percent(50),
        p99_us: clock.percent(99),
        all_us: clock.percent(100),
    }
}

/// Sizes of the calls.
pub fn counts() -> impl Iterator<Item = u64> {
    (0..=MOST_FOLIOS.ilog2()).map(|shift| 1 << shift)
}

/// The whole curve. `step` is called before each folio size and number of channels.
#[must_use]
pub fn curve(assumed: &Assumptions, step: &dyn Fn()) -> Vec<Latency> {
    let mut all = Vec::new();
    for folio in FOLIOS {
        for channels in CHANNELS {
            step();
            for count in counts() {
                for &hypothesis in &assumed.hypotheses {
                    let load = Load { folio, count };
                    let latency = |mover| one(&assumed.costs, mover, hypothesis, load, channels);
                    all.extend(Mover::ALL.map(latency));
                }
            }
        }
    }
    all
}
