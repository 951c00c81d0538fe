//! Every fault of the device model, at the first, a middle and the last descriptor of a channel,
//! on 1, 4 and 16 channels, polled and interrupt driven, strict and lenient engines: what is in
//! memory is what was reported, and nobody writes afterwards.
#![allow(missing_docs)]

use batch_copy::{
    FailReason, Host, Options, Outcome, Piece, Report, Rescue, ServiceState, SkipReason,
};
use batch_copy_tests::memory::{Layout, Memory};
use batch_copy_tests::rig::{Rig, Setup};
use ptdma::Signalling;
use ptdma_model::fault::StallFor;
use ptdma_model::{Fault, FaultKind, Forks, ModelConfig, Side, Trigger};

/// Folios per channel: with the ring's 15 slots each ring is refilled.
const PER_CHANNEL: usize = 24;

/// The last resort of these tests: a function reset, where the machine has one.
struct Reset<'a> {
    rig: &'a Rig,
    works: bool,
    asked: usize,
    quarantined: Vec<Piece>,
}

impl Rescue for Reset<'_> {
    fn prove_stopped(&mut self, channel: usize) -> bool {
        self.asked += 1;
        self.works && self.rig.models[channel].function_reset()
    }

    fn quarantined(&mut self, _channel: usize, piece: &Piece) {
        self.quarantined.push(*piece);
    }
}

struct Case {
    channels: usize,
    signalling: Signalling,
    lenient: bool,
    rescue: bool,
    repair: bool,
}

impl Case {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for channels in [1, 4, 16] {
            for signalling in [Signalling::Polled, Signalling::Interrupts] {
                for lenient in [false, true] {
                    for rescue in [false, true] {
                        let repair = rescue && lenient;
                        all.push(Self {
                            channels,
                            signalling,
                            lenient,
                            rescue,
                            repair,
                        });
                    }
                }
            }
        }
        all
    }
}

struct Run {
    report: Report,
    outcomes: Vec<Outcome>,
    quarantined: Vec<Piece>,
    asked: usize,
}

/// Runs a batch with `faults` in the last channel's function, and checks what must hold whatever
/// happens.
fn run(case: &Case, faults: &[Fault]) -> (Rig, Memory, Run) {
    let rig = Rig::new(Setup {
        channels: case.channels,
        entries: 16,
        signalling: case.signalling,
        model: ModelConfig {
            forks: if case.lenient {
                Forks::LENIENT
            } else {
                Forks::TODAY
            },
            ..ModelConfig::default()
        },
        ..Setup::default()
    });
    let memory = Memory::new(
        &rig.bus,
        &vec![4096; PER_CHANNEL * case.channels],
        Layout::Scattered,
        9,
    );
    let victim = rig.models.last().unwrap();
    for fault in faults {
        victim.inject(fault.clone());
    }
    let mut host = Host::new(rig.stepping())
        .with_cpu(memory.cpu())
        .with_rescue(Reset {
            rig: &rig,
            works: case.rescue,
            asked: 0,
            quarantined: Vec::new(),
        });
    host.wait.steps = 3;
    let mut options = Options::default();
    options.budget_ns = 3_000_000_000;
    options.hang_ns = 1_000_000;
    options.grace_ns = 100_000;
    options.repair = case.repair;
    let (report, outcomes) = rig.run(&memory, &options, &mut host);
    assert_eq!(report.unaccounted_bytes, 0, "{report:?}");
    assert!(!report.late, "{report:?}");
    let left = outcomes.iter().filter(|o| !o.is_copied()).count();
    assert_eq!((report.folios_left, report.folios), (left, outcomes.len()));
    // Nobody writes any more, whatever becomes of the function, except where it is said.
    let before = memory.snapshot();
    rig.models.iter().for_each(ptdma_model::Model::clear_faults);
    for model in &rig.models {
        model.run(10_000);
    }
    let after = memory.snapshot();
    let base = memory.folios[0].dst.get() - 65;
    for (index, (folio, outcome)) in memory.folios.iter().zip(&outcomes).enumerate() {
        let start = (folio.dst.get() - base) as usize;
        let range = start..start + folio.len_bytes as usize;
        if !outcome.is_quarantined() {
            assert_eq!(
                before[range.clone()],
                after[range],
                "late write to folio {index}"
            );
        }
    }
    memory.verify(&outcomes).unwrap();
    let (asked, quarantined) = (host.rescue.asked, host.rescue.quarantined);
    let quarantined_bytes: u64 = quarantined.iter().map(|piece| piece.len_bytes).sum();
    assert_eq!(quarantined_bytes, report.quarantined_bytes);
    for piece in &quarantined {
        assert!(outcomes[piece.folio].is_quarantined());
    }
    (
        rig,
        memory,
        Run {
            report,
            outcomes,
            quarantined,
            asked,
        },
    )
}

fn positions() -> [u64; 3] {
    [0, PER_CHANNEL as u64 / 2, PER_CHANNEL as u64 - 1]
}

#[test]
fn a_failed_descriptor_costs_exactly_its_folio() {
    let kinds = [
        (FaultKind::Error { code: 19 }, 19),
        (FaultKind::Error { code: 63 }, 63),
        (
            FaultKind::PartialWrite {
                len_bytes: 100,
                code: 38,
            },
            38,
        ),
    ];
    for case in Case::all() {
        for (kind, code) in &kinds {
            for at in positions() {
                let (_, _, run) = run(&case, &[Fault::at(at, kind.clone())]);
                let other: Vec<&Outcome> = run
                    .outcomes
                    .iter()
                    .filter(|o| **o != Outcome::Dma)
                    .collect();
                let expected = if case.repair {
                    Outcome::Cpu
                } else {
                    Outcome::Failed(FailReason::Engine(*code))
                };
                assert_eq!(other, [&expected], "{kind:?} at {at}");
                assert_eq!(run.report.errors, 1);
            }
        }
    }
}

#[test]
fn unmapped_memory_fails_with_the_engines_code() {
    for case in Case::all() {
        for side in [Side::Source, Side::Destination] {
            for at in positions() {
                let (_, _, run) = run(&case, &[Fault::at(at, FaultKind::Unmapped { side })]);
                let copied = run.outcomes.iter().filter(|o| **o == Outcome::Dma).count();
                assert_eq!(copied, run.outcomes.len() - 1);
                assert_eq!(run.report.is_complete(), case.repair);
            }
        }
    }
}

#[test]
fn what_passes_costs_nothing() {
    let kinds = [
        FaultKind::LostInterrupt,
        FaultKind::SpuriousInterrupt,
        FaultKind::Delay { ns: 1000 },
        FaultKind::Stall {
            duration: StallFor::Steps(20),
            haltable: true,
        },
        FaultKind::Stall {
            duration: StallFor::Steps(20),
            haltable: false,
        },
    ];
    for case in Case::all() {
        for kind in &kinds {
            for at in positions() {
                let (_, _, run) = run(&case, &[Fault::at(at, kind.clone())]);
                assert!(
                    run.outcomes.iter().all(|o| *o == Outcome::Dma),
                    "{kind:?} at {at}"
                );
                assert_eq!(run.asked, 0);
            }
        }
        let every = Fault::new(Trigger::Always, FaultKind::LostInterrupt);
        assert!(run(&case, &[every]).2.report.is_complete());
    }
}

#[test]
fn an_engine_that_hangs_and_can_be_stopped_loses_nothing() {
    let stall = FaultKind::Stall {
        duration: StallFor::Ever,
        haltable: true,
    };
    for case in Case::all() {
        for at in positions() {
            let (rig, _, run) = run(&case, &[Fault::at(at, stall.clone())]);
            assert!(
                run.outcomes.iter().all(|o| *o == Outcome::Dma),
                "at {at}: {:?}",
                run.report
            );
            assert!(run.report.moved_bytes > 0);
            let stats = rig.channels.channel_stats(case.channels - 1).unwrap();
            assert!(stats.hangs + stats.stops > 0);
            // Once may happen to anybody.
            assert_eq!(
                rig.channels.service(case.channels - 1),
                Some(ServiceState::Active)
            );
        }
    }
}

#[test]
fn an_engine_that_always_hangs_is_taken_out() {
    let stall = FaultKind::Stall {
        duration: StallFor::Ever,
        haltable: true,
    };
    for case in Case::all() {
        let (rig, _, run) = run(&case, &[Fault::new(Trigger::Always, stall.clone())]);
        if case.channels == 1 {
            assert_eq!(rig.channels.service(0), Some(ServiceState::Retired));
        } else {
            // The others did its work meanwhile; it was not tried again.
            let stats = rig.channels.channel_stats(case.channels - 1).unwrap();
            assert_eq!(stats.stops, 1);
        }
        if case.channels > 1 || case.repair {
            assert!(run.report.is_complete(), "{:?}", run.report);
        } else {
            assert!(
                run.outcomes
                    .iter()
                    .all(|o| *o == Outcome::NotAttempted(SkipReason::NoChannel))
            );
        }
    }
}

#[test]
fn an_engine_that_cannot_be_stopped_is_reset_or_its_memory_quarantined() {
    let kinds = [
        vec![FaultKind::Stall {
            duration: StallFor::Ever,
            haltable: false,
        }],
        vec![
            FaultKind::IgnoreHalt,
            FaultKind::Stall {
                duration: StallFor::Ever,
                haltable: true,
            },
        ],
    ];
    for case in Case::all() {
        for kinds in &kinds {
            for at in positions() {
                let faults: Vec<Fault> = kinds
                    .iter()
                    .map(|kind| Fault::at(at, kind.clone()))
                    .collect();
                let (rig, _, run) = run(&case, &faults);
                let victim = case.channels - 1;
                assert!(run.asked > 0, "{kinds:?} at {at}: {:?}", run.report);
                if case.rescue {
                    assert!(run.quarantined.is_empty());
                    assert_eq!(rig.channels.service(victim), Some(ServiceState::Retired));
                    if case.channels > 1 || case.repair {
                        assert!(run.report.is_complete(), "{:?}", run.report);
                    }
                } else {
                    assert_eq!(rig.channels.service(victim), Some(ServiceState::Unproven));
                    // The folio it hangs at, and those behind it in the ring; what it had
                    // finished was copied, what was not in the ring was moved.
                    assert!(!run.quarantined.is_empty());
                    assert!(run.quarantined.len() <= 15);
                    if case.channels > 1 {
                        let rest = run.outcomes.iter().filter(|o| !o.is_quarantined());
                        assert!(rest.clone().all(|o| *o == Outcome::Dma));
                    }
                }
            }
        }
    }
}

#[test]
fn a_function_that_is_gone_is_taken_out() {
    for case in Case::all() {
        for at in positions() {
            // It answers again only when the test is over: no reset helps.
            let (rig, _, run) = run(&case, &[Fault::at(at, FaultKind::AllOnes { reads: None })]);
            assert_ne!(
                rig.channels.service(case.channels - 1),
                Some(ServiceState::Active)
            );
            assert!(!run.quarantined.is_empty());
            if case.channels > 1 {
                let rest = run.outcomes.iter().filter(|o| !o.is_quarantined());
                assert!(rest.clone().all(|o| *o == Outcome::Dma));
            }
        }
    }
}

#[test]
fn a_head_that_makes_no_sense_claims_nothing() {
    for case in Case::all() {
        for at in positions() {
            for value in [0, 3, 0x7777_7777] {
                for reads in [Some(1), Some(5), None] {
                    let kind = FaultKind::HeadGarbage { value, reads };
                    let (_, _, run) = run(&case, &[Fault::at(at, kind)]);
                    let fine = |o: &&Outcome| **o == Outcome::Dma;
                    if case.channels > 1 {
                        assert!(run.outcomes.iter().all(|o| fine(&o) || o.is_quarantined()));
                    }
                }
            }
        }
    }
}

#[test]
fn errors_of_every_descriptor_take_the_channel_out_and_spare_the_rest() {
    for case in Case::all() {
        let kind = FaultKind::Error { code: 41 };
        let (rig, _, run) = run(&case, &[Fault::new(Trigger::Always, kind)]);
        let failed = run
            .outcomes
            .iter()
            .filter(|o| **o == Outcome::Failed(FailReason::Engine(41)))
            .count();
        assert_ne!(
            rig.channels.service(case.channels - 1),
            Some(ServiceState::Active)
        );
        if case.repair {
            assert!(run.report.is_complete());
        } else if case.channels > 1 {
            assert_eq!(failed, 16);
            let rest = run.outcomes.len() - failed;
            assert_eq!(
                run.outcomes.iter().filter(|o| **o == Outcome::Dma).count(),
                rest
            );
        }
    }
}

#[test]
fn one_percent_errors_lose_one_percent() {
    for case in Case::all() {
        let chance = Trigger::Chance {
            per_million: 50_000,
            seed: 4,
        };
        let (_, _, run) = run(&case, &[Fault::new(chance, FaultKind::Error { code: 20 })]);
        let failed = run.outcomes.iter().filter(|o| !o.is_copied()).count();
        if case.repair {
            assert_eq!(failed, 0);
        } else {
            assert_eq!(failed as u64, run.report.errors);
        }
    }
}

/// The waiter sleeps longer than an engine may stand still, and finds an error. The channel then
/// runs its descriptors one by one, each with the next look.
#[test]
fn an_engine_that_runs_its_descriptors_again_does_not_hang() {
    for signalling in [Signalling::Polled, Signalling::Interrupts] {
        let mut forks = Forks::TODAY;
        forks.error_head = ptdma_model::forks::ErrorHead::Tail;
        let model = ModelConfig {
            forks,
            ..ModelConfig::default()
        };
        let rig = Rig::new(Setup {
            signalling,
            entries: 16,
            model,
            ..Setup::default()
        });
        let memory = Memory::new(&rig.bus, &[4096; 12], Layout::Scattered, 5);
        rig.models[0].inject(Fault::at(5, FaultKind::Error { code: 19 }));
        let mut host = Host::new(rig.stepping());
        host.wait.round_ns = 3_000_000;
        let mut options = Options::default();
        options.hang_ns = 2_000_000;
        let (report, _) = rig.run(&memory, &options, &mut host);
        assert!(report.is_complete(), "{report:?}");
        let stats = rig.channels.channel_stats(0).unwrap();
        assert_eq!((stats.hangs, stats.stops), (0, 0), "{stats:?}");
    }
}
