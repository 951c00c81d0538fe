//! Every fault of the device model: reported as what it is, and got over.
//!
//! After each test every byte is compared with what was reported: a retired copy without a
//! failure is there, a dropped one is not claimed.

use ptdma::{
    Anomaly, BringUpError, Channel, ChannelConfig, DmaAddr, ErrorHead, Failure, Fault, KnownError,
    Notify, RingError, Signalling,
};
use ptdma_model::fault::StallFor;
use ptdma_model::{
    Access, BusRing, BusSpace, Fault as Injected, FaultKind, Model, ModelConfig, Side, Trigger,
};
use ptdma_tests::rig::{Rig, Setup, quiesced};

const BURST: usize = 7;

/// Runs the rig dry and checks that exactly the copies in `failed` are missing, each reported
/// once with its code.
fn expect_failures(rig: &mut Rig, expected: &[(usize, u8)]) {
    let failures: Vec<Failure> = rig.drain().iter().filter_map(|p| p.failure).collect();
    let found: Vec<(usize, u8)> = failures
        .iter()
        .map(|f| (f.cookie.number() as usize, f.code.raw()))
        .collect();
    assert_eq!(found, expected);
    for (i, pair) in rig.pairs.iter().enumerate() {
        let failed = expected.iter().any(|(index, _)| *index == i);
        assert_eq!(pair.copied(), !failed, "copy {i}");
    }
    let stats = rig.channel.stats();
    assert_eq!(stats.failed, expected.len() as u64);
    assert_eq!(stats.completed + stats.failed, stats.submitted);
    assert_eq!(rig.channel.fault(), None);
}

#[test]
fn a_failure_at_every_index_leaves_the_rest_completed() {
    for setup in Setup::all() {
        for index in 0..BURST {
            for code in [1, 19, 38, 63] {
                let mut rig = Rig::new(setup);
                rig.model
                    .inject(Injected::at(index as u64, FaultKind::Error { code }));
                rig.burst(BURST, Notify::Silent);
                expect_failures(&mut rig, &[(index, code)]);
            }
        }
    }
}

#[test]
fn a_failure_found_by_interrupt_costs_no_poll() {
    for index in 0..BURST {
        let mut rig = Rig::new(Setup {
            signalling: Signalling::Interrupts,
            ..Setup::default()
        });
        let line = rig.model.interrupt_line();
        rig.model
            .inject(Injected::at(index as u64, FaultKind::Error { code: 20 }));
        rig.burst(BURST, Notify::Interrupt);
        let mut failures = Vec::new();
        for expected in 1..=2 {
            rig.model.run(100);
            if line.count() < expected {
                break;
            }
            let progress = rig.channel.handle_interrupt().unwrap();
            failures.extend(progress.failure);
        }
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].cookie.number(), index as u64);
        assert_eq!(rig.channel.outstanding(), 0);
        let copied = rig.pairs.iter().filter(|p| p.copied()).count();
        assert_eq!(copied, BURST - 1);
    }
}

#[test]
fn every_descriptor_may_fail() {
    for setup in Setup::all() {
        let mut rig = Rig::new(setup);
        rig.model.inject(Injected::new(
            Trigger::Always,
            FaultKind::Error { code: 41 },
        ));
        rig.burst(BURST, Notify::Silent);
        let all: Vec<(usize, u8)> = (0..BURST).map(|i| (i, 41)).collect();
        expect_failures(&mut rig, &all);
    }
}

#[test]
fn a_partial_write_is_a_failure() {
    for setup in Setup::all() {
        let mut rig = Rig::new(setup);
        let kind = FaultKind::PartialWrite {
            len_bytes: 40,
            code: 38,
        };
        rig.model.inject(Injected::at(3, kind));
        rig.burst(BURST, Notify::Silent);
        expect_failures(&mut rig, &[(3, 38)]);
        assert!(!rig.pairs[3].untouched());
    }
}

#[test]
fn unmapped_memory_is_a_failure_with_the_sides_code() {
    for (side, codes) in [
        (
            Side::Source,
            [KnownError::Input0SlaveError, KnownError::Input0DecodeError],
        ),
        (
            Side::Destination,
            [
                KnownError::Output0SlaveError,
                KnownError::Output0DecodeError,
            ],
        ),
    ] {
        let mut rig = Rig::new(Setup::default());
        rig.burst(2, Notify::Silent);
        rig.model.run(10);
        rig.drain();
        // A real hole in the bus, not an injected code.
        let cookie = rig.submit(Notify::Silent).unwrap();
        let pair = rig.pair(cookie);
        let hole = match side {
            Side::Source => pair.src.addr(),
            Side::Destination => pair.dst.addr(),
        };
        rig.bus.unmap(hole).unwrap();
        rig.channel.issue_pending(Notify::Silent);
        rig.burst(1, Notify::Silent);
        let failures: Vec<Failure> = rig.drain().iter().filter_map(|p| p.failure).collect();
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].cookie, cookie);
        let known = failures[0].code.known().unwrap();
        assert!(codes.contains(&known), "{side:?}: {known:?}");
        assert!(rig.pairs[3].copied());
    }
}

#[test]
fn a_hang_ends_at_the_deadline_and_terminate_recovers() {
    for setup in Setup::all() {
        let mut rig = Rig::new(setup);
        let stall = FaultKind::Stall {
            duration: StallFor::Ever,
            haltable: true,
        };
        rig.model.inject(Injected::at(2, stall));
        let cookies = rig.burst(BURST, Notify::Silent);
        rig.model.run(100);
        let deadline = rig.deadline();
        let last = cookies[BURST - 1];
        let waited =
            rig.channel
                .wait_for(last, &rig.model, deadline, || {}, |_| panic!("no failure"));
        assert!(
            matches!(waited, Err(ptdma::WaitError::TimedOut { oldest, .. })
            if oldest == cookies[2])
        );
        let terminated = rig.channel.terminate(&rig.model, rig.deadline()).unwrap();
        assert_eq!(terminated.first_dropped, cookies[2]);
        assert_eq!(terminated.dropped, 5);
        rig.model.clear_faults();
        rig.burst(3, Notify::Silent);
        rig.drain();
        for (i, pair) in rig.pairs.iter().enumerate() {
            assert_eq!(pair.copied(), !(2..BURST).contains(&i), "copy {i}");
        }
    }
}

/// An engine that neither completes nor halts: nothing is given back until the function was reset.
#[test]
fn an_engine_that_does_not_halt_keeps_its_memory() {
    for setup in Setup::all() {
        for kind in [
            FaultKind::Stall {
                duration: StallFor::Ever,
                haltable: false,
            },
            FaultKind::IgnoreHalt,
        ] {
            let mut rig = Rig::new(setup);
            rig.model.inject(Injected::at(1, kind.clone()));
            let cookies = rig.burst(BURST, Notify::Silent);
            rig.model.step();
            rig.model.step();
            let error = rig
                .channel
                .terminate(&rig.model, rig.deadline())
                .unwrap_err();
            assert_eq!(error.first.number() + error.count, BURST as u64);
            assert_eq!(rig.channel.outstanding(), error.count);
            // It did well not to claim them: the engine is still at it.
            rig.model.clear_faults();
            rig.model.run(100);
            let _ = rig.channel.poll();
            let before = rig.channel.outstanding();
            assert!(rig.model.function_reset());
            let terminated = rig.channel.recover(quiesced()).unwrap();
            assert_eq!(terminated.dropped, before);
            assert_eq!(terminated.retired, 0, "nothing is claimed after a reset");
            let again = rig.burst(2, Notify::Silent);
            rig.drain();
            assert!(again.iter().all(|c| rig.pair(*c).copied()), "{kind:?}");
            assert!(again[0].since(cookies[0]) >= BURST as u64);
        }
    }
}

#[test]
fn shutdown_of_an_engine_that_does_not_halt_keeps_the_ring() {
    let mut rig = Rig::new(Setup::default());
    rig.model.inject(Injected::at(
        0,
        FaultKind::Stall {
            duration: StallFor::Ever,
            haltable: false,
        },
    ));
    rig.burst(2, Notify::Silent);
    rig.model.step();
    let deadline = rig.deadline();
    let Rig { model, channel, .. } = rig;
    let Err((not_stopped, channel)) = channel.shutdown(&model, deadline) else {
        panic!("gave the ring back while the engine may read it")
    };
    assert_eq!(not_stopped.count, 2);
    assert!(model.function_reset());
    let (_, _, terminated) = channel.shutdown_quiesced(quiesced());
    assert_eq!((terminated.retired, terminated.dropped), (0, 2));
}

#[test]
fn a_stall_that_ends_is_only_slow() {
    for setup in Setup::all() {
        let mut rig = Rig::new(setup);
        let stall = FaultKind::Stall {
            duration: StallFor::Steps(500),
            haltable: false,
        };
        rig.model.inject(Injected::at(4, stall));
        rig.burst(BURST, Notify::Silent);
        expect_failures(&mut rig, &[]);
        assert_eq!(rig.channel.stats().restarts, 0);
    }
}

#[test]
fn a_lost_interrupt_is_found_and_the_next_one_comes() {
    for lenient in [false, true] {
        let mut rig = Rig::new(Setup {
            lenient,
            signalling: Signalling::Interrupts,
            ..Setup::default()
        });
        let line = rig.model.interrupt_line();
        rig.model
            .inject(Injected::new(Trigger::At(4), FaultKind::LostInterrupt));
        rig.burst(5, Notify::Interrupt);
        rig.model.run(100);
        assert_eq!(line.count(), 0);
        let progress = rig.channel.check_lost_interrupt().unwrap();
        assert_eq!(progress.anomaly, Some(Anomaly::LostInterrupt));
        assert_eq!(progress.retired, 5);
        assert_eq!(rig.channel.stats().lost_interrupts, 1);
        rig.burst(5, Notify::Interrupt);
        rig.model.run(100);
        assert_eq!(line.count(), 1, "the status was left set");
        let progress = rig.channel.handle_interrupt().unwrap();
        assert_eq!((progress.retired, progress.anomaly), (5, None));
    }
}

#[test]
fn asking_early_for_a_lost_interrupt_is_harmless() {
    let mut rig = Rig::new(Setup {
        signalling: Signalling::Interrupts,
        ..Setup::default()
    });
    rig.burst(3, Notify::Interrupt);
    for _ in 0..50 {
        let progress = rig.channel.check_lost_interrupt().unwrap();
        assert_eq!((progress.retired, progress.anomaly), (0, None));
    }
    rig.model.run(10);
    assert_eq!(rig.channel.handle_interrupt().unwrap().retired, 3);
    assert_eq!(rig.channel.stats().restarts, 0);
}

#[test]
fn spurious_interrupts_are_counted_and_change_nothing() {
    let mut rig = Rig::new(Setup {
        signalling: Signalling::Interrupts,
        ..Setup::default()
    });
    let line = rig.model.interrupt_line();
    rig.model
        .inject(Injected::new(Trigger::At(0), FaultKind::SpuriousInterrupt));
    rig.burst(3, Notify::Interrupt);
    // The message comes before anything is done.
    let idle = rig.channel.handle_interrupt().unwrap();
    assert_eq!(idle.anomaly, Some(Anomaly::SpuriousInterrupt));
    rig.model.run(100);
    assert_eq!(line.count(), 2);
    assert_eq!(rig.channel.handle_interrupt().unwrap().retired, 3);
    let late = rig.channel.handle_interrupt().unwrap();
    assert_eq!(late.anomaly, Some(Anomaly::SpuriousInterrupt));
    assert_eq!(rig.channel.stats().spurious_interrupts, 2);
}

#[test]
fn a_device_that_is_gone_is_named_wherever_it_is_noticed() {
    for setup in Setup::all() {
        type Call = fn(&mut Rig) -> Fault;
        let calls: [(&str, Call); 3] = [
            ("poll", |rig| rig.channel.poll().unwrap_err()),
            ("interrupt", |rig| {
                rig.channel.handle_interrupt().unwrap_err()
            }),
            ("overdue", |rig| {
                rig.channel.check_lost_interrupt().unwrap_err()
            }),
        ];
        for (name, call) in calls {
            let mut rig = Rig::new(setup);
            rig.burst(BURST, Notify::Silent);
            rig.model.step();
            rig.model
                .inject(Injected::now(FaultKind::AllOnes { reads: None }));
            assert_eq!(call(&mut rig), Fault::DeviceGone, "{name}");
            // It cannot be stopped, so nothing is given back.
            let error = rig
                .channel
                .terminate(&rig.model, rig.deadline())
                .unwrap_err();
            assert_eq!((error.control, error.count), (u32::MAX, BURST as u64));
            // The owner's word gives the memory back, but the function still does not answer.
            let (e, terminated) = rig.channel.recover(quiesced()).unwrap_err();
            assert_eq!(e, BringUpError::DeviceGone);
            assert_eq!((terminated.retired, terminated.dropped), (0, BURST as u64));
            // It comes back (a link that was down): reset, and on with it.
            rig.model.clear_faults();
            assert!(rig.model.function_reset());
            let _ = rig.channel.recover(quiesced()).unwrap();
            let again = rig.burst(3, Notify::Silent);
            rig.drain();
            assert!(again.iter().all(|c| rig.pair(*c).copied()));
        }
    }
}

#[test]
fn a_device_that_is_gone_for_any_single_read_is_noticed_or_harmless() {
    // One read of all ones, at every read that the channel makes.
    for setup in Setup::all() {
        for skip in 0..12 {
            let mut rig = Rig::new(setup);
            rig.model
                .inject(Injected::at(3, FaultKind::Error { code: 19 }));
            rig.burst(BURST, Notify::Silent);
            let mut polls = 0;
            let mut reads = 0;
            let fault = loop {
                rig.model.step();
                if reads >= skip {
                    rig.model
                        .inject(Injected::now(FaultKind::AllOnes { reads: Some(1) }));
                }
                match rig.channel.poll() {
                    Ok(_) if rig.channel.outstanding() == 0 => break None,
                    Ok(_) => {}
                    Err(fault) => break Some(fault),
                }
                reads = rig.model.counters().mmio_reads;
                polls += 1;
                assert!(polls < 10_000);
            };
            if fault.is_some() {
                rig.model.clear_faults();
                let retired_before = rig.channel.done_before().number();
                let _ = rig.channel.terminate(&rig.model, rig.deadline()).unwrap();
                for number in 0..retired_before as usize {
                    assert!(rig.pairs[number].copied() || number == 3);
                }
            }
        }
    }
}

#[test]
fn garbage_in_the_head_register_is_never_taken_for_progress() {
    for setup in Setup::all() {
        let good = Rig::new(setup).model;
        let base = ptdma::RegisterIo::read(&good, ptdma::regs::Register::Head);
        let capacity = 7_u32;
        // One byte off, one slot beyond what was issued, beyond the ring, far away.
        for value in [
            base + 1,
            base + 31,
            base + 32 * (capacity - 1),
            base + 32 * (capacity + 1),
            base.wrapping_sub(32),
            0,
            0xdead_beef,
        ] {
            let mut rig = Rig::new(setup);
            rig.burst(4, Notify::Silent);
            let kind = FaultKind::HeadGarbage {
                value,
                reads: Some(1),
            };
            rig.model.inject(Injected::now(kind));
            assert_eq!(
                rig.channel.poll(),
                Err(Fault::BadHead { raw: value }),
                "{value:#x}"
            );
            rig.model.run(100);
            // Halting is proof, and then the head is good again.
            let terminated = rig.channel.terminate(&rig.model, rig.deadline()).unwrap();
            assert_eq!((terminated.retired, terminated.dropped), (4, 0));
            rig.burst(4, Notify::Silent);
            rig.drain();
            assert!(rig.pairs.iter().all(|p| p.copied()));
        }
    }
}

#[test]
fn a_terminated_failure_is_named() {
    for setup in Setup::all() {
        let mut rig = Rig::new(setup);
        rig.model
            .inject(Injected::at(2, FaultKind::Error { code: 9 }));
        let cookies = rig.burst(5, Notify::Silent);
        rig.model.run(100);
        let terminated = rig.channel.terminate(&rig.model, rig.deadline()).unwrap();
        let failure = terminated.failure.unwrap();
        assert_eq!((failure.cookie, failure.code.raw()), (cookies[2], 9));
        assert_eq!((terminated.retired, terminated.dropped), (2, 3));
    }
}

/// A head of which nothing is known: what fails each time is named, and what failed by chance is
/// run again. Nothing is claimed that is not there.
#[test]
fn not_knowing_where_the_head_stays_never_claims_too_much() {
    for head_past_error in [false, true] {
        for index in 0..5 {
            for times in [1, u64::MAX] {
                let mut rig = Rig::new(Setup {
                    head_past_error,
                    told: false,
                    ..Setup::default()
                });
                let first = rig.submit(Notify::Silent).unwrap();
                let rest: Vec<_> = (1..5)
                    .map(|_| rig.submit(Notify::Silent).unwrap())
                    .collect();
                let all: Vec<_> = std::iter::once(first).chain(rest).collect();
                let start = rig.pair(all[index]).dst.addr().get();
                let trigger = Trigger::Touches {
                    start,
                    len_bytes: 1,
                };
                let kind = FaultKind::Error { code: 19 };
                rig.model.inject(Injected::new(trigger, kind).times(times));
                rig.channel.issue_pending(Notify::Silent);
                if times == 1 {
                    rig.drain();
                    // The last one is alone by then.
                    for (i, pair) in rig.pairs.iter().enumerate() {
                        assert_eq!(pair.copied(), i != 4 || index != 4);
                    }
                    assert_eq!(rig.channel.stats().failed, u64::from(index == 4));
                } else {
                    expect_failures(&mut rig, &[(index, 19)]);
                    let at = !head_past_error;
                    let learned = rig.channel.error_head() == ErrorHead::AtFailing;
                    assert_eq!(learned, at);
                }
            }
        }
    }
}

/// New work that arrives while the engine stands at a failure that nobody has seen: it must not
/// set the engine going over it.
#[test]
fn a_doorbell_does_not_run_over_an_unseen_failure() {
    for setup in Setup::all() {
        for resume in [false, true] {
            let mut rig = Rig::new(setup);
            rig.model
                .inject(Injected::at(1, FaultKind::Error { code: 22 }));
            rig.burst(3, Notify::Silent);
            rig.model.run(10);
            if resume {
                rig.channel.pause(&rig.model, rig.deadline()).unwrap();
                rig.channel.resume();
            }
            rig.burst(2, Notify::Silent);
            assert_eq!(rig.model.run(10), 0, "the engine was set going");
            expect_failures(&mut rig, &[(1, 22)]);
            assert_eq!(rig.model.counters().errors, 1, "it was executed again");
        }
    }
}

/// A reset that nobody told the driver of leaves 0 in head and tail. No slot of a ring has that
/// value: else all work before the slot would count as done.
#[test]
fn a_ring_with_a_slot_where_a_reset_leaves_the_head_is_refused() {
    for entries in [2, 4, 32] {
        let bus = BusSpace::new();
        let memory = bus
            .map_at(DmaAddr::new(1 << 32), entries * 32, Access::ReadOnly)
            .unwrap();
        let model = Model::new(ModelConfig::default(), bus.clone());
        let ring = BusRing::in_buffer(memory, entries);
        let channel = Channel::bring_up(model.clone(), ring, ChannelConfig::default());
        let Err((error, ..)) = channel else {
            panic!("{entries} entries there are accepted")
        };
        let base = DmaAddr::new(1 << 32);
        assert_eq!(error, BringUpError::Ring(RingError::LooksReset { base }));
        assert_eq!(model.counters().mmio_writes, 0, "the function was told");
    }
}

#[test]
fn a_reset_behind_the_drivers_back_completes_nothing() {
    // So far in the ring is the head when the function is reset; what is issued then wraps.
    for done in 1..4 {
        let mut rig = Rig::new(Setup {
            entries: 4,
            ..Setup::default()
        });
        rig.burst(done, Notify::Silent);
        rig.drain();
        rig.burst(3, Notify::Silent);
        assert!(rig.model.function_reset());
        assert_eq!(rig.channel.poll(), Err(Fault::BadHead { raw: 0 }), "{done}");
        assert_eq!(rig.channel.outstanding(), 3);
        let terminated = rig.channel.recover(quiesced()).unwrap();
        assert_eq!((terminated.retired, terminated.dropped), (0, 3));
        for _ in 0..8 {
            rig.burst(1, Notify::Silent);
            assert!(rig.drain().is_empty());
        }
    }
}
