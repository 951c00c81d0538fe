//! Who copies a batch, and how long that takes: the CPU, the published driver, and ours.

use serde::Serialize;

use crate::costs::{Costs, Hypothesis, PIECE_BYTES, Path};
use crate::published::{FolioSize, MACHINE_CHANNELS, TABLE_BYTES};
use crate::sim::{Job, Sim};

/// Engines of one port: two functions on adjacent buses of a root complex.
const ENGINES_PER_PORT: usize = 2;

/// Shortest part of a folio that is worth a channel: shorter ones are what an IOMMU merges anyway.
const MIN_PART_BYTES: u64 = PIECE_BYTES;

/// Descriptors that the CPU prepares before it rings a doorbell and goes to the next channel, so
/// that the last channel need not wait for the whole of a large batch.
const BURST: u64 = 32;

/// A wait that is expected to be shorter is polled: sleeping and waking costs a quarter of it.
const POLL_BELOW_NS: f64 = 20_000.0;

/// Engines have to win by one part in this many of their own time, as the policy of `batch-copy`
/// has it: a tie is no reason to involve a device.
const MARGIN: f64 = 8.0;

/// Batches of a call: what the published kernel's raised limit lets through at once.
pub const PUBLISHED_BATCH_BYTES: u64 = TABLE_BYTES;

/// What the stock kernel lets through at once: 512 base pages.
pub const STOCK_BATCH_BYTES: u64 = 2 << 20;

/// The port of each engine, in PCI order: neighbours share one.
#[must_use]
pub fn ports() -> [usize; MACHINE_CHANNELS] {
    std::array::from_fn(|engine| engine / ENGINES_PER_PORT)
}

/// The order in which ours takes channels: one of each port, then the other one of each.
#[must_use]
pub fn by_port() -> [usize; MACHINE_CHANNELS] {
    let ports = MACHINE_CHANNELS / ENGINES_PER_PORT;
    std::array::from_fn(|n| (n % ports) * ENGINES_PER_PORT + n / ports)
}

/// Folios of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Their size.
    pub folio: FolioSize,
    /// How many.
    pub count: u64,
}

impl Load {
    /// All bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.folio.bytes() * self.count
    }

    /// Bytes of the longest descriptor: a folio, or the small ones that an IOMMU makes contiguous
    /// up to 64 KiB.
    fn unit(self) -> u64 {
        self.folio.bytes().max(PIECE_BYTES)
    }

    /// The batches of a call, for a largest batch in bytes.
    pub fn batches(self, batch_bytes: u64) -> impl Iterator<Item = Self> {
        let each = (batch_bytes / self.folio.bytes()).max(1);
        let batch = move |n| Self {
            count: each.min(self.count - n * each),
            ..self
        };
        (0..self.count.div_ceil(each)).map(batch)
    }
}

/// The published driver's copy of one batch, ns: folios dealt out by count to channels in PCI
/// order, one descriptor in flight for each.
#[must_use]
pub fn published_copy(costs: &Costs, hypothesis: Hypothesis, load: Load, channels: usize) -> f64 {
    let mut sim = Sim::new(&ports()[..channels], costs.port_gb_per_s);
    published_submit(&mut sim, costs, hypothesis, load, channels, 0.0, 0);
    sim.drain()
}

/// Hands a batch to channels as the published driver does. Returns how many descriptors it is.
pub fn published_submit(
    sim: &mut Sim,
    costs: &Costs,
    hypothesis: Hypothesis,
    load: Load,
    channels: usize,
    now: f64,
    tag: usize,
) -> usize {
    let mut descriptors = 0;
    for channel in 0..channels as u64 {
        let (each, more) = (load.count / channels as u64, load.count % channels as u64);
        let bytes = (each + u64::from(channel < more)) * load.folio.bytes();
        for piece in pieces(0, bytes, load.unit()) {
            descriptors += 1;
            let job = Job {
                bytes: piece,
                lead_ns: costs.round_trip_ns,
                piece_ns: costs.piece(hypothesis, Path::RoundTrips, load.folio, PIECE_BYTES),
                ready_ns: now,
                tag,
            };
            sim.submit(channel as usize, job);
        }
    }
    descriptors
}

/// Descriptors of a stretch of bytes: none goes over a multiple of the unit.
fn pieces(from: u64, to: u64, unit: u64) -> impl Iterator<Item = u64> {
    let mut at = from;
    std::iter::from_fn(move || {
        let end = ((at / unit + 1) * unit).min(to);
        let bytes = end.checked_sub(at).filter(|&b| b != 0)?;
        at = end;
        Some(bytes)
    })
}

/// What ours does with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// How many channels, in the order of [`by_port`]; 0: left to the CPU.
    pub channels: usize,
    /// Bytes that the CPU copies meanwhile.
    pub cpu_share_bytes: u64,
    /// What the policy expects the copy to take, ns.
    pub expected_ns: f64,
    /// Whether the wait is polled.
    pub polls: bool,
}

impl Choice {
    /// The CPU copies.
    #[must_use]
    pub fn declined(costs: &Costs, load: Load) -> Self {
        Self {
            channels: 0,
            cpu_share_bytes: load.bytes(),
            expected_ns: costs.cpu_copy(load.bytes()),
            polls: false,
        }
    }
}

/// Ours: rings kept full, one channel of each port first, folios cut to as many channels as pay.
#[derive(Clone, Copy, Debug)]
pub struct Ours<'a> {
    /// What things cost.
    pub costs: &'a Costs,
    /// Under which hypothesis.
    pub hypothesis: Hypothesis,
    /// How many channels there are.
    pub channels: usize,
    /// Whether the CPU may copy a share of its own meanwhile.
    pub hybrid: bool,
}

/// Where a batch goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// The channel to begin with, in the order of [`by_port`].
    pub first: usize,
    /// The mark of its descriptors.
    pub tag: usize,
}

/// What was handed to engines.
#[derive(Clone, Copy, Debug)]
pub struct Submitted {
    /// When the CPU was done with it, ns.
    pub at_ns: f64,
    /// Descriptors.
    pub descriptors: usize,
    /// Bursts, each with a doorbell and under one lock.
    pub bursts: usize,
}

/// What a copy took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Copied {
    /// From the first store to the woken thread, ns.
    pub wall_ns: f64,
    /// Of which the CPU was busy, ns.
    pub cpu_ns: f64,
}

impl Ours<'_> {
    fn piece_ns(&self, folio: FolioSize) -> f64 {
        self.costs
            .piece(self.hypothesis, Path::FullRing, folio, PIECE_BYTES)
    }

    /// What a channel takes for 64 KiB while `used` are at work, by its place in the order.
    fn paces(&self, used: usize, folio: FolioSize) -> Vec<f64> {
        let ports = MACHINE_CHANNELS / ENGINES_PER_PORT;
        let alone = self.piece_ns(folio);
        let half_a_port = ENGINES_PER_PORT as f64 * PIECE_BYTES as f64 / self.costs.port_gb_per_s;
        (0..used)
            .map(|n| {
                let shares = n % ports + ports < used || n >= ports;
                if shares {
                    alone.max(half_a_port)
                } else {
                    alone
                }
            })
            .collect()
    }

    /// Cuts the engines' bytes to equal parts, at whole multiples of 64 KiB.
    fn lanes(used: usize, bytes: u64) -> Vec<(u64, u64)> {
        let parts = bytes.div_ceil(MIN_PART_BYTES) as f64;
        let cut = |n: usize| {
            let part = (parts * n as f64 / used as f64).round() as u64;
            (part * MIN_PART_BYTES).min(bytes)
        };
        (0..used).map(|n| (cut(n), cut(n + 1))).collect()
    }

    /// A doorbell: a look whether the function still knows its ring, the tail, and RUN.
    const fn doorbell(&self) -> f64 {
        self.costs.read_ns + 2.0 * self.costs.write_ns
    }

    /// The CPU's time until the last doorbell.
    fn prepare(&self, used: usize, load: Load, bytes: u64) -> f64 {
        let descriptors = bytes.div_ceil(load.unit()).max(used as u64) as f64;
        let bursts = (descriptors / BURST as f64).max(used as f64);
        descriptors * self.costs.prepare_ns + bursts * self.doorbell()
    }

    /// The time of a copy on a number of channels as the policy sees it, in ns.
    fn expect(&self, used: usize, load: Load, cpu_share_bytes: u64) -> f64 {
        let bytes = load.bytes() - cpu_share_bytes;
        let paces = self.paces(used, load.folio);
        let slowest = Self::lanes(used, bytes)
            .into_iter()
            .zip(&paces)
            .map(|((from, to), pace)| {
                let bytes = (to - from) as f64;
                // No more than what lies on one channel is in the way of its bytes.
                bytes / PIECE_BYTES as f64 * pace
                    + (bytes / load.unit() as f64).ceil() * self.costs.descriptor_ns
            });
        let copy = slowest.fold(0.0, f64::max);
        // Preparing overlaps with copying but for the first burst of each channel.
        let prepare = self.prepare(used, load, bytes);
        let each = (bytes as f64 / load.unit() as f64 / used as f64).ceil();
        let burst = each.min(BURST as f64) * self.costs.prepare_ns + self.doorbell();
        let start = (used as f64 * burst).min(prepare);
        let wait = (start + copy).max(prepare);
        wait + self.end(used, wait - prepare < POLL_BELOW_NS)
    }

    /// From the last byte to going on: a look at each channel, after an interrupt if nobody polls.
    fn end(&self, used: usize, polls: bool) -> f64 {
        let look = used as f64 * self.costs.look_reads * self.costs.read_ns;
        if polls {
            look
        } else {
            look + self.costs.wake_ns
        }
    }

    /// The fastest way to copy a batch with engines.
    #[must_use]
    pub fn fastest(&self, load: Load) -> Choice {
        let parts = load.bytes().div_ceil(MIN_PART_BYTES);
        let most = (self.channels as u64).min(parts).max(1) as usize;
        let each = (2..=most).map(|used| self.on(used, load));
        let best = each.fold(self.on(1, load), |best, choice| {
            if choice.expected_ns < best.expected_ns {
                choice
            } else {
                best
            }
        });
        if !self.hybrid {
            return best;
        }
        let share = self.share(best.channels, load, best.expected_ns);
        self.with_share(best.channels, load, share)
    }

    /// A batch on a number of channels.
    #[must_use]
    pub fn on(&self, used: usize, load: Load) -> Choice {
        self.with_share(used, load, 0)
    }

    fn with_share(&self, used: usize, load: Load, share: u64) -> Choice {
        let expected_ns = self.expect(used, load, share);
        let prepare = self.prepare(used, load, load.bytes() - share);
        let look = self.end(used, true);
        Choice {
            channels: used,
            cpu_share_bytes: share,
            expected_ns,
            polls: expected_ns - look - prepare < POLL_BELOW_NS,
        }
    }

    /// Bytes that the CPU copies between its last doorbell and the engines' end.
    fn share(&self, used: usize, load: Load, alone_ns: f64) -> u64 {
        let free = alone_ns - self.prepare(used, load, load.bytes());
        let engines = load.bytes() as f64 / alone_ns;
        let rate = self.costs.cpu_gb_per_s;
        // Both end together: share / rate = free - share / engines.
        let share = free.max(0.0) / (1.0 / rate + 1.0 / engines);
        (share as u64 / MIN_PART_BYTES * MIN_PART_BYTES).min(load.bytes())
    }

    /// Whether engines are worth it, and how: the whole call is weighed against the CPU's.
    #[must_use]
    pub fn choose(&self, load: Load, cold: bool) -> Choice {
        let choice = self.fastest(load);
        let count = load.count as f64;
        let (offload_call, cpu_call) = if cold {
            (self.costs.call_ns, self.costs.cpu_call_ns)
        } else {
            (0.0, 0.0)
        };
        let margin = choice.expected_ns / MARGIN;
        let offload =
            offload_call + count * self.costs.other(load.folio) + choice.expected_ns + margin;
        let cpu = cpu_call + count * self.costs.cpu_folio(load.folio);
        if offload <= cpu {
            choice
        } else {
            Choice::declined(self.costs, load)
        }
    }

    /// Copies a batch as chosen, engines and CPU together, in the simulation.
    #[must_use]
    pub fn copy(&self, load: Load, choice: Choice) -> Copied {
        if choice.channels == 0 {
            let ns = self.costs.cpu_copy(load.bytes());
            return Copied {
                wall_ns: ns,
                cpu_ns: ns,
            };
        }
        let mut sim = Sim::new(&ports(), self.costs.port_gb_per_s);
        let submitted = self.submit(&mut sim, load, choice, 0.0, Place::default());
        let prepared = submitted.at_ns;
        let own = self.costs.cpu_copy(choice.cpu_share_bytes);
        let wait = sim.drain().max(prepared + own);
        let end = self.end(choice.channels, choice.polls);
        let polled = if choice.polls { wait - prepared } else { own };
        Copied {
            wall_ns: wait + end,
            cpu_ns: prepared + polled + end,
        }
    }

    /// From the end of the last descriptor until the mover goes on.
    #[must_use]
    pub fn ending(&self, choice: Choice) -> f64 {
        self.end(choice.channels, choice.polls)
    }

    /// Prepares a batch from `now` on, channel after channel in bursts. Returns what
    /// that came to.
    pub fn submit(
        &self,
        sim: &mut Sim,
        load: Load,
        choice: Choice,
        now: f64,
        place: Place,
    ) -> Submitted {
        let order = by_port();
        let engines = order.iter().cycle().skip(place.first);
        let bytes = load.bytes() - choice.cpu_share_bytes;
        let lanes = Self::lanes(choice.channels, bytes);
        let mut lists: Vec<_> = lanes
            .iter()
            .map(|&(from, to)| pieces(from, to, load.unit()).peekable())
            .collect();
        let mut done = Submitted {
            at_ns: now,
            descriptors: 0,
            bursts: 0,
        };
        while lists.iter_mut().any(|l| l.peek().is_some()) {
            for (list, &engine) in lists.iter_mut().zip(engines.clone()) {
                let burst: Vec<u64> = list.by_ref().take(BURST as usize).collect();
                if burst.is_empty() {
                    continue;
                }
                let prepare = burst.len() as f64 * self.costs.prepare_ns;
                done.at_ns += prepare + self.doorbell();
                done.bursts += 1;
                done.descriptors += burst.len();
                for bytes in burst {
                    sim.submit(
                        engine,
                        Job {
                            bytes,
                            lead_ns: self.costs.descriptor_ns,
                            piece_ns: self.piece_ns(load.folio),
                            ready_ns: done.at_ns,
                            tag: place.tag,
                        },
                    );
                }
            }
        }
        done
    }

    /// A whole call: ns, and what was chosen for its first batch.
    #[must_use]
    pub fn call(&self, load: Load, batch_bytes: u64) -> (f64, Choice) {
        let first = load.batches(batch_bytes).next().map_or(load, |batch| batch);
        let choice = self.choose(first, true);
        if choice.channels == 0 {
            return (cpu_call(self.costs, load), choice);
        }
        let mut copy = 0.0;
        for batch in load.batches(batch_bytes) {
            copy += self.copy(batch, self.fastest(batch)).wall_ns;
        }
        (offload_call(self.costs, load, copy), choice)
    }
}

/// A call on the CPU: the published baseline's path.
#[must_use]
pub fn cpu_call(costs: &Costs, load: Load) -> f64 {
    costs.call(true, load.bytes()) + load.count as f64 * costs.cpu_folio(load.folio)
}

/// A call whose copy takes so long.
#[must_use]
pub fn offload_call(costs: &Costs, load: Load, copy_ns: f64) -> f64 {
    costs.call(false, load.bytes()) + load.count as f64 * costs.other(load.folio) + copy_ns
}

/// A call of the published driver.
#[must_use]
pub fn published_call(costs: &Costs, hypothesis: Hypothesis, load: Load, channels: usize) -> f64 {
    let batches = load.batches(PUBLISHED_BATCH_BYTES);
    let copy = batches.map(|b| published_copy(costs, hypothesis, b, channels));
    offload_call(costs, load, copy.sum())
}
