//! What a channel does for its user, on every kind of engine: order, wrap, full rings, stops.

use ptdma::regs::{Interrupts, QueueControl, Register};
use ptdma::{
    Channel, ChannelConfig, ErrorHead, Fault, Notify, RegisterIo, Signalling, SubmitError,
};
use ptdma_model::{Fault as Injected, FaultKind};
use ptdma_tests::rig::{Rig, Setup};

#[test]
fn bursts_complete_in_order_across_many_wraps() {
    for setup in Setup::all() {
        for first_cookie in [0, u64::MAX - 20] {
            let setup = Setup {
                first_cookie,
                ..setup
            };
            let mut rig = Rig::new(setup);
            for round in 0..60 {
                let burst = round % rig.channel.capacity() + 1;
                let cookies = rig.burst(burst, Notify::Silent);
                for cookie in &cookies {
                    assert!(rig.pair(*cookie).untouched());
                }
                assert_eq!(rig.drain(), []);
                for cookie in cookies {
                    assert!(rig.pair(cookie).copied(), "{setup:?} {cookie}");
                }
            }
            let stats = rig.channel.stats();
            assert_eq!(stats.completed, stats.submitted);
            assert_eq!(rig.model.counters().doorbells, 60);
            assert_eq!(stats.restarts, 0);
        }
    }
}

#[test]
fn a_full_ring_refuses_and_takes_again_what_was_retired() {
    let mut rig = Rig::new(Setup::default());
    let cookies = rig.burst(7, Notify::Silent);
    assert_eq!(rig.channel.burst_capacity(), 0);
    assert_eq!(
        rig.submit(Notify::Silent),
        Err(SubmitError::RingFull { capacity: 7 })
    );
    rig.model.step();
    rig.model.step();
    let progress = rig.channel.poll().unwrap();
    assert_eq!((progress.retired, progress.done_before), (2, cookies[2]));
    assert_eq!(rig.channel.burst_capacity(), 2);
    rig.burst(2, Notify::Silent);
    rig.drain();
    assert!(rig.pairs.iter().all(|pair| pair.copied()));
}

#[test]
fn refilling_a_running_engine_never_lets_it_stop() {
    for setup in Setup::all() {
        let mut rig = Rig::new(setup);
        rig.burst(7, Notify::Silent);
        for _ in 0..500 {
            rig.model.step();
            if rig.channel.poll().unwrap().retired > 0 {
                rig.burst(1, Notify::Silent);
            }
        }
        assert_eq!(rig.model.counters().drained, 0);
        rig.drain();
        assert!(rig.pairs.iter().all(|pair| pair.copied()));
    }
}

/// The engine drains exactly between the tail write and the RUN write, before both, after both.
#[test]
fn no_interleaving_of_doorbell_and_drain_loses_work() {
    for setup in Setup::all() {
        for steps_before in 0..3 {
            for auto_step in [0, 1, 2] {
                let mut rig = Rig::new(Setup { auto_step, ..setup });
                rig.burst(2, Notify::Silent);
                for _ in 0..steps_before {
                    rig.model.step();
                }
                rig.burst(3, Notify::Silent);
                rig.drain();
                assert!(rig.pairs.iter().all(|pair| pair.copied()));
                assert_eq!(rig.channel.stats().restarts, 0);
            }
        }
    }
}

#[test]
fn interrupts_come_only_where_asked() {
    for lenient in [false, true] {
        let mut rig = Rig::new(Setup {
            lenient,
            signalling: Signalling::Interrupts,
            entries: 64,
            ..Setup::default()
        });
        let line = rig.model.interrupt_line();
        rig.burst(31, Notify::Silent);
        rig.model.run(100);
        assert_eq!(line.count(), 0);
        rig.burst(31, Notify::Interrupt);
        rig.model.run(100);
        assert_eq!(line.count(), 1);
        let progress = rig.channel.handle_interrupt().unwrap();
        assert_eq!(progress.retired, 62);
        assert!(rig.pairs.iter().all(|pair| pair.copied()));
        // Marks inside a burst.
        for i in 0..20 {
            let notify = if i % 5 == 4 {
                Notify::Interrupt
            } else {
                Notify::Silent
            };
            rig.submit(notify).unwrap();
        }
        rig.channel.issue_pending(Notify::Silent);
        let mut retired = Vec::new();
        for _ in 0..20 {
            let before = line.count();
            rig.model.step();
            if line.count() > before {
                retired.push(rig.channel.handle_interrupt().unwrap().retired);
            }
        }
        assert_eq!(retired, [5, 5, 5, 5]);
    }
}

#[test]
fn a_burst_costs_what_was_promised() {
    for (entries, burst) in [(32, 31), (512, 511)] {
        let mut polled = Rig::new(Setup {
            entries,
            ..Setup::default()
        });
        polled.burst(burst, Notify::Silent);
        polled.model.run(10_000);
        assert_eq!(polled.channel.poll().unwrap().retired, burst as u64);
        assert_eq!(polled.model.counters().mmio(), 4);
        assert_eq!(polled.model.counters().interrupts, 0);

        let mut driven = Rig::new(Setup {
            entries,
            signalling: Signalling::Interrupts,
            ..Setup::default()
        });
        driven.burst(burst, Notify::Interrupt);
        driven.model.run(10_000);
        assert_eq!(
            driven.channel.handle_interrupt().unwrap().retired,
            burst as u64
        );
        assert_eq!(driven.model.counters().mmio(), 5);
        assert_eq!(driven.model.counters().interrupts, 1);
    }
}

#[test]
fn pause_holds_the_work_and_resume_goes_on() {
    for setup in Setup::all() {
        let mut rig = Rig::new(setup);
        let cookies = rig.burst(5, Notify::Silent);
        rig.model.step();
        rig.model.step();
        rig.channel.pause(&rig.model, rig.deadline()).unwrap();
        assert_eq!(rig.model.run(100), 0, "a paused engine must not move");
        assert_eq!(rig.channel.poll().unwrap().done_before, cookies[2]);
        assert!(rig.pair(cookies[2]).untouched());
        // Work may be added meanwhile; it waits too.
        rig.burst(1, Notify::Silent);
        assert_eq!(rig.model.run(100), 0);
        for _ in 0..200 {
            assert_eq!(rig.channel.poll().unwrap().retired, 0);
        }
        rig.channel.resume();
        assert_eq!(rig.drain(), []);
        assert!(rig.pairs.iter().all(|pair| pair.copied()));
    }
}

#[test]
fn terminate_gives_back_exactly_what_was_not_done() {
    for setup in Setup::all() {
        for done in 0..=5 {
            let mut rig = Rig::new(setup);
            let cookies = rig.burst(5, Notify::Silent);
            let unissued = rig.submit(Notify::Silent).unwrap();
            for _ in 0..done {
                rig.model.step();
            }
            let terminated = rig.channel.terminate(&rig.model, rig.deadline()).unwrap();
            assert_eq!(terminated.retired, done as u64);
            assert_eq!(terminated.dropped, 6 - done as u64);
            assert_eq!(terminated.failure, None);
            assert_eq!(rig.channel.outstanding(), 0);
            for (i, cookie) in cookies.iter().enumerate() {
                assert_eq!(rig.pair(*cookie).copied(), i < done);
                assert_eq!(rig.pair(*cookie).untouched(), i >= done);
            }
            rig.model.run(100);
            assert!(rig.pair(unissued).untouched());
            // Ready for new work at once.
            let again = rig.burst(7, Notify::Silent);
            assert_eq!(rig.drain(), []);
            assert!(again.iter().all(|cookie| rig.pair(*cookie).copied()));
        }
    }
}

#[test]
fn shutdown_gives_the_ring_back_and_it_can_be_brought_up_again() {
    for setup in Setup::all() {
        let mut rig = Rig::new(setup);
        rig.burst(4, Notify::Silent);
        rig.model.step();
        let deadline = rig.deadline();
        let Rig { model, channel, .. } = rig;
        let Ok((regs, ring, terminated)) = channel.shutdown(&model, deadline) else {
            panic!("not stopped")
        };
        assert_eq!((terminated.retired, terminated.dropped), (1, 3));
        assert_eq!(model.run(100), 0);
        assert!(Channel::bring_up(regs, ring, ChannelConfig::default()).is_ok());
    }
}

#[test]
fn an_idle_channel_shuts_down_at_once() {
    let rig = Rig::new(Setup::default());
    let deadline = rig.deadline().with_poll_limit(0);
    let Rig { model, channel, .. } = rig;
    assert!(channel.shutdown(&model, deadline).is_ok());
}

#[test]
fn a_previous_owners_engine_is_halted_first() {
    let mut rig = Rig::new(Setup {
        auto_step: 1,
        ..Setup::default()
    });
    let cookies = rig.burst(7, Notify::Silent);
    // A new owner arrives while that engine is at work; the old channel is forgotten.
    let ring = ptdma_model::BusRing::new(&rig.bus, 16).unwrap();
    let config = ChannelConfig::default();
    let Ok(mut second) = Channel::bring_up(rig.model.clone(), ring, config) else {
        panic!("not brought up")
    };
    let done_then: Vec<bool> = cookies.iter().map(|c| rig.pair(*c).copied()).collect();
    assert!(!done_then[6], "the test came too late");
    let pair = &rig.pairs[0];
    let to = rig
        .bus
        .alloc(64, 64, ptdma_model::Access::ReadWrite)
        .unwrap();
    let request = second.prep_copy(pair.src.addr(), to.addr(), 64).unwrap();
    second.submit(&request, Notify::Silent).unwrap();
    second.issue_pending(Notify::Silent);
    rig.model.run(100);
    assert_eq!(second.poll().unwrap().retired, 1);
    assert_eq!(to.to_vec()[..], pair.src.to_vec()[..64]);
    let done_now: Vec<bool> = cookies.iter().map(|c| rig.pair(*c).copied()).collect();
    assert_eq!(done_then, done_now, "the old ring was walked on");
}

#[test]
fn the_probe_finds_where_the_head_stays() {
    for setup in Setup::all() {
        let mut rig = Rig::new(Setup {
            auto_step: 1,
            ..setup
        });
        let head = rig.channel.probe_error_head(&rig.model, rig.deadline());
        let expected = if setup.head_past_error {
            ErrorHead::PastFailing
        } else {
            ErrorHead::AtFailing
        };
        assert_eq!(head, Ok(expected));
        let cookies = {
            // The probe took two cookies.
            assert_eq!(rig.channel.next_cookie().number(), 2);
            let request = |rig: &mut Rig| {
                let src = rig
                    .bus
                    .alloc(64, 64, ptdma_model::Access::ReadWrite)
                    .unwrap();
                let dst = rig
                    .bus
                    .alloc(64, 64, ptdma_model::Access::ReadWrite)
                    .unwrap();
                src.write(0, &[7; 64]).unwrap();
                (
                    rig.channel.prep_copy(src.addr(), dst.addr(), 64).unwrap(),
                    dst,
                )
            };
            let (request, dst) = request(&mut rig);
            rig.channel.submit(&request, Notify::Silent).unwrap();
            rig.channel.issue_pending(Notify::Silent);
            rig.drain();
            dst.to_vec()
        };
        assert_eq!(cookies, [7; 64]);
    }
}

/// Registers of an engine that is not like the model's.
struct Odd {
    model: ptdma_model::Model,
    kind: Oddity,
    /// Reads of the control register since the error.
    looks: std::cell::Cell<u32>,
    first: std::cell::Cell<Option<u32>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Oddity {
    /// Shows its error a while before it halts, and its head is at the failed descriptor until
    /// then.
    HeadComesLate,
    /// Runs what it should refuse.
    RunsIt,
}

impl RegisterIo for Odd {
    fn read(&self, register: Register) -> u32 {
        let value = self.model.read(register);
        let failed = self.model.counters().errors > 0;
        match (self.kind, register) {
            (_, Register::Head) if self.first.get().is_none() => self.first.set(Some(value)),
            (Oddity::HeadComesLate, Register::Control) if failed => {
                self.looks.set(self.looks.get() + 1);
                if self.looks.get() < 5 {
                    return value & !QueueControl::HALT.bits() | QueueControl::RUN.bits();
                }
            }
            (Oddity::HeadComesLate, Register::Head) if failed && self.looks.get() < 5 => {
                return self.first.get().unwrap();
            }
            (Oddity::RunsIt, Register::InterruptStatus) => {
                return value & !Interrupts::ERROR.bits();
            }
            _ => {}
        }
        value
    }

    fn write(&self, register: Register, value: u32) {
        self.model.write(register, value);
    }
}

fn odd(kind: Oddity) -> (Rig, Channel<Odd, ptdma_model::BusRing>) {
    // In both of them the head is past the descriptor in the end.
    let rig = Rig::new(Setup {
        auto_step: 1,
        head_past_error: true,
        ..Setup::default()
    });
    let registers = Odd {
        model: rig.model.clone(),
        kind,
        looks: std::cell::Cell::default(),
        first: std::cell::Cell::default(),
    };
    // An engine that runs one has its head at the tail: the model's, if there is one only.
    let entries = if kind == Oddity::RunsIt { 2 } else { 8 };
    let ring = ptdma_model::BusRing::new(&rig.bus, entries).unwrap();
    let Ok(channel) = Channel::bring_up(registers, ring, ChannelConfig::default()) else {
        panic!("not brought up")
    };
    (rig, channel)
}

/// Where it is when the error shows is not where it stays: believing that would make a copy of
/// what failed.
#[test]
fn the_probe_waits_until_the_head_has_come_to_rest() {
    let (rig, mut channel) = odd(Oddity::HeadComesLate);
    assert_eq!(
        channel.probe_error_head(&rig.model, rig.deadline()),
        Ok(ErrorHead::PastFailing)
    );
}

#[test]
fn the_probe_does_not_wait_for_an_engine_that_has_run_it() {
    let (rig, mut channel) = odd(Oddity::RunsIt);
    let before = rig.model.counters().mmio_reads;
    assert_eq!(
        channel.probe_error_head(&rig.model, rig.deadline()),
        Err(ptdma::ProbeError::NotRefused)
    );
    let reads = rig.model.counters().mmio_reads - before;
    assert!(reads < 20, "{reads} reads");
}

/// The one who probes may not have run for all of the time that the engine got.
#[test]
fn the_probe_looks_once_more_when_its_time_is_over() {
    let mut rig = Rig::new(Setup {
        auto_step: 1,
        ..Setup::default()
    });
    let over = rig.deadline().with_poll_limit(0);
    assert_eq!(
        rig.channel.probe_error_head(&rig.model, over),
        Ok(ErrorHead::AtFailing)
    );
}

#[test]
fn a_wait_that_times_out_loses_nothing() {
    let mut rig = Rig::new(Setup {
        auto_step: 1,
        ..Setup::default()
    });
    let stall = FaultKind::Stall {
        duration: ptdma_model::fault::StallFor::Steps(50),
        haltable: false,
    };
    rig.model.inject(Injected::at(2, stall));
    let cookies = rig.burst(5, Notify::Silent);
    let last = cookies[4];
    let short = rig.deadline().with_poll_limit(10);
    let error = rig
        .channel
        .wait_for(last, &rig.model, short, || {}, |_| panic!("no failure"))
        .unwrap_err();
    assert_eq!(
        error,
        ptdma::WaitError::TimedOut {
            oldest: cookies[2],
            outstanding: 3
        }
    );
    let long = rig.deadline();
    rig.channel
        .wait_for(last, &rig.model, long, || {}, |_| panic!("no failure"))
        .unwrap();
    assert!(rig.pairs.iter().all(|pair| pair.copied()));
}

#[test]
fn a_channel_with_a_fault_takes_no_work_and_touches_no_register() {
    let mut rig = Rig::new(Setup::default());
    rig.burst(1, Notify::Silent);
    let garbage = FaultKind::HeadGarbage {
        value: 0x1234_5678,
        reads: None,
    };
    rig.model.inject(Injected::now(garbage));
    let fault = rig.channel.poll().unwrap_err();
    assert_eq!(fault, Fault::BadHead { raw: 0x1234_5678 });
    let _ = rig.model.take_counters();
    assert_eq!(rig.submit(Notify::Silent), Err(SubmitError::Faulted(fault)));
    rig.channel.issue_pending(Notify::Silent);
    assert_eq!(rig.channel.poll(), Err(fault));
    assert_eq!(rig.channel.handle_interrupt(), Err(fault));
    assert_eq!(rig.model.counters().mmio(), 0);
}
