//! Random operations on a channel, a modelled engine with random faults, and a reference that
//! knows nothing but what it was told: no copy is ever claimed that is not there, none is lost,
//! none is touched after it was given back.

use std::collections::BTreeMap;

use proptest::prelude::*;
use ptdma::{Cookie, Failure, Notify, Progress, Signalling};
use ptdma_model::fault::StallFor;
use ptdma_model::{Fault as Injected, FaultKind};
use ptdma_tests::rig::{Rig, Setup, quiesced};

/// Cases, at least what the project asks of CI. `PROPTEST_CASES` raises it.
const CASES: u32 = 10_000;

#[derive(Clone, Debug)]
enum Op {
    Submit(usize),
    Issue(bool),
    Step(usize),
    Poll(usize),
    Interrupt,
    Overdue,
    Pause,
    Resume,
    Terminate,
    Reset,
    Fault(u64, FaultKind),
    ClearFaults,
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![
        4 => (0..64_u8).prop_map(|code| FaultKind::Error { code }),
        2 => (0..80_u64, 0..64_u8)
            .prop_map(|(len_bytes, code)| FaultKind::PartialWrite { len_bytes, code }),
        2 => any::<bool>().prop_map(|haltable| FaultKind::Stall {
            duration: StallFor::Ever,
            haltable,
        }),
        2 => (1..40_u64).prop_map(|n| FaultKind::Stall {
            duration: StallFor::Steps(n),
            haltable: true,
        }),
        1 => Just(FaultKind::LostInterrupt),
        1 => Just(FaultKind::SpuriousInterrupt),
        1 => (0..3_u64).prop_map(|reads| FaultKind::AllOnes { reads: Some(reads) }),
        1 => Just(FaultKind::AllOnes { reads: None }),
        1 => any::<u32>().prop_map(|value| FaultKind::HeadGarbage {
            value,
            reads: Some(1),
        }),
        1 => Just(FaultKind::IgnoreHalt),
    ];
    prop_oneof![
        8 => (1..8_usize).prop_map(Op::Submit),
        8 => any::<bool>().prop_map(Op::Issue),
        8 => (1..10_usize).prop_map(Op::Step),
        8 => (1..20_usize).prop_map(Op::Poll),
        4 => Just(Op::Interrupt),
        2 => Just(Op::Overdue),
        2 => Just(Op::Pause),
        2 => Just(Op::Resume),
        2 => Just(Op::Terminate),
        1 => Just(Op::Reset),
        4 => (0..10_u64, kind).prop_map(|(at, kind)| Op::Fault(at, kind)),
        1 => Just(Op::ClearFaults),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    (
        1..6_u32,
        any::<[bool; 4]>(),
        prop_oneof![Just(0_u64), Just(u64::MAX - 10)],
        0..3_u32,
    )
        .prop_map(
            |(log2, [lenient, sticky_status, past, interrupts], first, auto)| Setup {
                entries: 1 << log2,
                lenient,
                sticky_status,
                head_past_error: past,
                told: true,
                signalling: if interrupts {
                    Signalling::Interrupts
                } else {
                    Signalling::Polled
                },
                auto_step: auto,
                first_cookie: first,
            },
        )
}

/// What the reference believes of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Outstanding,
    Copied,
    Failed,
    Dropped,
}

struct Reference {
    fates: BTreeMap<u64, Fate>,
    /// Number of the first copy that is not retired.
    frontier: u64,
}

impl Reference {
    fn outstanding(&self) -> u64 {
        self.fates
            .values()
            .filter(|f| **f == Fate::Outstanding)
            .count() as u64
    }

    fn number(rig: &Rig, cookie: Cookie) -> u64 {
        cookie.since(rig.first)
    }

    fn settle(&mut self, number: u64, fate: Fate) {
        let old = self.fates.insert(number, fate);
        assert_eq!(old, Some(Fate::Outstanding), "copy {number} settled twice");
    }

    fn retire(&mut self, rig: &Rig, done_before: Cookie, failure: Option<Failure>, retired: u64) {
        let end = Self::number(rig, done_before);
        assert_eq!(
            end - self.frontier,
            retired,
            "retired in order, all counted"
        );
        for number in self.frontier..end {
            let failed = failure.is_some_and(|f| Self::number(rig, f.cookie) == number);
            self.settle(number, if failed { Fate::Failed } else { Fate::Copied });
        }
        if let Some(failure) = failure {
            let number = Self::number(rig, failure.cookie);
            assert_eq!(self.fates[&number], Fate::Failed, "failure out of order");
        }
        self.frontier = end;
    }

    fn progress(&mut self, rig: &Rig, progress: Progress) {
        self.retire(
            rig,
            progress.done_before,
            progress.failure,
            progress.retired,
        );
    }

    fn terminated(&mut self, rig: &Rig, terminated: ptdma::Terminated) {
        self.retire(rig, terminated.first_dropped, None, terminated.retired);
        for number in self.frontier..self.frontier + terminated.dropped {
            self.settle(number, Fate::Dropped);
        }
        self.frontier += terminated.dropped;
        assert_eq!(self.outstanding(), 0, "nothing stays outstanding");
    }

    fn check(&self, rig: &Rig) {
        assert_eq!(rig.channel.outstanding(), self.outstanding());
        for (number, fate) in &self.fates {
            let pair = &rig.pairs[*number as usize];
            if *fate == Fate::Copied {
                assert!(pair.copied(), "copy {number} was claimed");
            }
        }
    }
}

/// Destinations of dropped copies are the user's again: scribble on them, and look later whether
/// the engine has.
fn scribble(rig: &Rig, reference: &Reference, marked: &mut Vec<u64>) {
    for (number, fate) in &reference.fates {
        if *fate == Fate::Dropped && !marked.contains(number) {
            let dst = &rig.pairs[*number as usize].dst;
            dst.write(0, &vec![0; dst.len_bytes()]).unwrap();
            marked.push(*number);
        }
    }
}

fn run(setup: Setup, ops: Vec<Op>) {
    let mut rig = Rig::new(setup);
    let mut reference = Reference {
        fates: BTreeMap::new(),
        frontier: 0,
    };
    let mut scribbled = Vec::new();
    for op in ops {
        match op {
            Op::Submit(count) => {
                for _ in 0..count {
                    let number = rig.pairs.len() as u64;
                    if rig.submit(Notify::Silent).is_ok() {
                        reference.fates.insert(number, Fate::Outstanding);
                    }
                }
            }
            Op::Issue(notify) => rig.channel.issue_pending(if notify {
                Notify::Interrupt
            } else {
                Notify::Silent
            }),
            Op::Step(count) => {
                for _ in 0..count {
                    rig.model.step();
                }
            }
            Op::Poll(count) => {
                for _ in 0..count {
                    let before = rig.model.counters().mmio();
                    let Ok(progress) = rig.channel.poll() else {
                        break;
                    };
                    if progress.failure.is_none() && progress.anomaly.is_none() {
                        let cost = rig.model.counters().mmio() - before;
                        // One, or four for the whole picture. Where descriptors are run one at a
                        // time, a good one takes up to three, and four more hand out the next.
                        assert!(cost <= 7, "{cost} accesses for an uneventful poll");
                    }
                    reference.progress(&rig, progress);
                }
            }
            Op::Interrupt => {
                if let Ok(progress) = rig.channel.handle_interrupt() {
                    reference.progress(&rig, progress);
                }
            }
            Op::Overdue => {
                if let Ok(progress) = rig.channel.check_lost_interrupt() {
                    reference.progress(&rig, progress);
                }
            }
            Op::Pause => {
                let _ = rig.channel.pause(&rig.model, rig.deadline());
            }
            Op::Resume => rig.channel.resume(),
            Op::Terminate => {
                if let Ok(terminated) = rig.channel.terminate(&rig.model, rig.deadline()) {
                    reference.terminated(&rig, terminated);
                }
            }
            Op::Reset => {
                if rig.model.function_reset() {
                    match rig.channel.recover(quiesced()) {
                        Ok(terminated) | Err((_, terminated)) => {
                            reference.terminated(&rig, terminated);
                        }
                    }
                }
            }
            Op::Fault(at, kind) => {
                rig.model.inject(Injected::at(at, kind));
            }
            Op::ClearFaults => rig.model.clear_faults(),
        }
        reference.check(&rig);
        scribble(&rig, &reference, &mut scribbled);
    }

    // Whatever state that has led to, there is a way back to work.
    rig.model.clear_faults();
    if rig.channel.fault().is_some() {
        assert!(rig.model.function_reset());
        match rig.channel.recover(quiesced()) {
            Ok(terminated) => reference.terminated(&rig, terminated),
            Err((e, _)) => panic!("a healthy function was not brought up: {e}"),
        }
    }
    rig.channel.resume();
    rig.channel.issue_pending(Notify::Silent);
    for _ in 0..5_000 {
        rig.model.step();
        match rig.channel.poll() {
            Ok(progress) => reference.progress(&rig, progress),
            Err(fault) => panic!("a healthy engine was found faulty: {fault}"),
        }
        if rig.channel.outstanding() == 0 {
            break;
        }
    }
    assert_eq!(rig.channel.outstanding(), 0, "work was lost");
    reference.check(&rig);
    for number in scribbled {
        assert!(
            rig.pairs[number as usize].untouched(),
            "copy {number} was written after it had been given back"
        );
    }
    let stats = rig.channel.stats();
    assert_eq!(
        stats.completed + stats.failed + stats.dropped,
        stats.submitted
    );
    let count = |fate| reference.fates.values().filter(|f| **f == fate).count() as u64;
    assert_eq!(stats.completed, count(Fate::Copied));
    assert_eq!(stats.failed, count(Fate::Failed));
    assert_eq!(stats.dropped, count(Fate::Dropped));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(CASES),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_copy_is_lost_or_made_up(setup in setup(), ops in prop::collection::vec(op(), 1..40)) {
        run(setup, ops);
    }
}
