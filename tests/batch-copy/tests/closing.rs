//! One interrupt for a batch: lanes that finish in any order, lost interrupts, a lane that is
//! slower than the one that spoke for it, and every kind of failure on lanes that say nothing.
#![allow(missing_docs)]

use std::cell::Cell;

use batch_copy::{FailReason, Host, Options, Outcome, Report, Wait, WaitFor, Wake};
use batch_copy_tests::memory::{Layout, Memory};
use batch_copy_tests::rig::{Rig, Setup};
use ptdma::Signalling;
use ptdma_model::fault::StallFor;
use ptdma_model::{Fault, FaultKind, Trigger};

const CHANNELS: usize = 4;
/// Fits into the rings: nothing is refilled.
const PER_CHANNEL: usize = 8;
const STEP_NS: u64 = 1_000;
/// What a sleeper waits before it thinks that an interrupt is lost.
const OVERDUE_NS: u64 = 50_000;
/// No test needs more waits than this.
const MOST_WAITS: u32 = 2_000;

/// Wakes nobody but for a reason: an interrupt, or the end of a sleep. Functions make their steps
/// in a given order, one function each time.
struct Ordered<'a> {
    rig: &'a Rig,
    order: Vec<usize>,
    /// Steps of a function when it is its turn.
    steps: u64,
    now_ns: Cell<u64>,
    waits: u32,
    /// Waits for a channel that was not going to interrupt.
    unannounced: u32,
}

impl<'a> Ordered<'a> {
    fn new(rig: &'a Rig, order: &[usize], steps: u64) -> Self {
        Self {
            rig,
            order: order.to_vec(),
            steps,
            now_ns: Cell::new(0),
            waits: 0,
            unannounced: 0,
        }
    }
}

impl Wait for Ordered<'_> {
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn wants_interrupts(&self) -> bool {
        true
    }

    fn wait(&mut self, wait: &WaitFor) -> Wake {
        self.waits += 1;
        assert!(self.waits < MOST_WAITS, "waits without end");
        let since = self.now_ns.get();
        let until = since.saturating_add(OVERDUE_NS).min(wait.latest_ns);
        loop {
            let turn = (self.now_ns.get() / STEP_NS) as usize;
            self.now_ns.set(self.now_ns.get() + STEP_NS);
            let model = self.order[turn % self.order.len()];
            self.rig.models[model].run(self.steps);
            let interrupted = self.rig.deliver(self.now_ns.get());
            if !wait.announced {
                self.unannounced += 1;
                return Wake::Poll;
            }
            if interrupted {
                return Wake::Interrupted;
            }
            if self.now_ns.get() >= until {
                return Wake::Overdue;
            }
        }
    }
}

fn rig() -> (Rig, Memory) {
    let rig = Rig::new(Setup {
        channels: CHANNELS,
        entries: 32,
        signalling: Signalling::Interrupts,
        ..Setup::default()
    });
    let memory = Memory::new(
        &rig.bus,
        &vec![4096; PER_CHANNEL * CHANNELS],
        Layout::Scattered,
        5,
    );
    (rig, memory)
}

struct Run {
    report: Report,
    outcomes: Vec<Outcome>,
    waits: u32,
    unannounced: u32,
}

fn run(rig: &Rig, memory: &Memory, order: &[usize], steps: u64, options: &Options) -> Run {
    let mut host = Host::new(Ordered::new(rig, order, steps));
    let (report, outcomes) = rig.run(memory, options, &mut host);
    assert_eq!(report.unaccounted_bytes, 0, "{report:?}");
    assert!(!report.late, "{report:?}");
    Run {
        report,
        outcomes,
        waits: host.wait.waits,
        unannounced: host.wait.unannounced,
    }
}

fn options() -> Options {
    let mut options = Options::default();
    options.hang_ns = 1_000_000;
    options.grace_ns = 100_000;
    options
}

fn interrupts(rig: &Rig) -> u64 {
    rig.counters().interrupts
}

fn orders() -> Vec<Vec<usize>> {
    let mut all = Vec::new();
    for a in 0..CHANNELS {
        for b in (0..CHANNELS).filter(|b| *b != a) {
            for c in (0..CHANNELS).filter(|c| *c != a && *c != b) {
                let d = (0..CHANNELS).sum::<usize>() - a - b - c;
                all.push(vec![a, b, c, d]);
            }
        }
    }
    all
}

/// The lane that interrupts in a batch on a fresh rig: the one that is submitted last.
const CLOSING: usize = CHANNELS - 1;

#[test]
fn lanes_end_in_any_order_with_one_interrupt() {
    for order in orders() {
        // In one go, or bit by bit.
        for steps in [1000, 1] {
            let (rig, memory) = rig();
            let run = run(&rig, &memory, &order, steps, &options());
            assert!(run.outcomes.iter().all(|o| *o == Outcome::Dma));
            assert_eq!(interrupts(&rig), 1, "{order:?}");
            assert_eq!(run.report.channels, CHANNELS);
            let last = order.iter().position(|&lane| lane == CLOSING) == Some(CHANNELS - 1);
            if last && steps == 1000 {
                // Nobody was slower than the one that spoke for all.
                assert_eq!((run.waits, run.unannounced), (1, 0), "{order:?}");
                // Tail and control for each lane; one clears the interrupt. Control, to know that
                // the function was not reset, and the head of each.
                let counters = rig.counters();
                assert_eq!(counters.mmio_writes, 2 * CHANNELS as u64 + 1);
                assert_eq!(counters.mmio_reads, 2 * CHANNELS as u64);
            }
        }
    }
}

#[test]
fn each_lane_interrupts_where_that_is_wanted() {
    let (rig, memory) = rig();
    let mut options = options();
    options.one_interrupt = false;
    let run = run(&rig, &memory, &[0, 1, 2, 3], 1000, &options);
    assert!(run.outcomes.iter().all(|o| *o == Outcome::Dma));
    assert_eq!(interrupts(&rig), CHANNELS as u64);
    assert_eq!(run.unannounced, 0);
}

#[test]
fn a_lost_closing_interrupt_is_overdue_once() {
    let (rig, memory) = rig();
    rig.models[CLOSING].inject(Fault::new(Trigger::Always, FaultKind::LostInterrupt));
    let run = run(&rig, &memory, &[0, 1, 2, 3], 1000, &options());
    assert!(run.outcomes.iter().all(|o| *o == Outcome::Dma));
    assert_eq!(interrupts(&rig), 0);
    assert!(run.waits <= 2, "{}", run.waits);
}

#[test]
fn a_slow_lane_is_waited_for_in_short_steps() {
    for slow in 0..CLOSING {
        let (rig, memory) = rig();
        rig.models[slow].inject(Fault::at(
            PER_CHANNEL as u64 - 1,
            FaultKind::Stall {
                duration: StallFor::Steps(20),
                haltable: true,
            },
        ));
        let run = run(&rig, &memory, &[0, 1, 2, 3], 16, &options());
        assert!(run.outcomes.iter().all(|o| *o == Outcome::Dma));
        assert_eq!(interrupts(&rig), 1);
        assert!(run.unannounced > 0);
        assert_eq!(run.report.moved_bytes, 0);
    }
}

#[test]
fn an_error_on_a_quiet_lane_costs_its_folio() {
    for lane in 0..CHANNELS {
        for at in [0, PER_CHANNEL as u64 / 2, PER_CHANNEL as u64 - 1] {
            // The error's own interrupt may be lost, too.
            for lost in [false, true] {
                let (rig, memory) = rig();
                let model = &rig.models[lane];
                model.inject(Fault::at(at, FaultKind::Error { code: 19 }));
                if lost {
                    model.inject(Fault::new(Trigger::Always, FaultKind::LostInterrupt));
                }
                let run = run(&rig, &memory, &[0, 1, 2, 3], 1000, &options());
                let failed: Vec<_> = run
                    .outcomes
                    .iter()
                    .filter(|o| **o != Outcome::Dma)
                    .collect();
                assert_eq!(
                    failed,
                    [&Outcome::Failed(FailReason::Engine(19))],
                    "lane {lane} at {at}, lost {lost}"
                );
            }
        }
    }
}

#[test]
fn a_quiet_lane_that_hangs_is_stopped_and_its_work_moved() {
    for lane in 0..CHANNELS {
        let (rig, memory) = rig();
        rig.models[lane].inject(Fault::at(
            3,
            FaultKind::Stall {
                duration: StallFor::Ever,
                haltable: true,
            },
        ));
        let run = run(&rig, &memory, &[0, 1, 2, 3], 1000, &options());
        assert!(run.outcomes.iter().all(|o| *o == Outcome::Dma), "{lane}");
        assert!(run.report.moved_bytes != 0);
    }
}

#[test]
fn a_quiet_lane_whose_function_goes_away_is_done_without() {
    for lane in 0..CHANNELS {
        let (rig, memory) = rig();
        rig.models[lane].inject(Fault::at(3, FaultKind::AllOnes { reads: None }));
        let run = run(&rig, &memory, &[0, 1, 2, 3], 1000, &options());
        // No byte of it is claimed: `verify` has compared; the others' are all there.
        let copied = run.outcomes.iter().filter(|o| o.is_copied()).count();
        assert!(copied >= (CHANNELS - 1) * PER_CHANNEL, "{copied}");
        assert!(copied < CHANNELS * PER_CHANNEL, "{copied}");
    }
}
