//! The driver on every kind of engine: each pair of answers to what nobody outside AMD knows, and
//! each machine with a name.
//!
//! On each of them, told nothing, the driver finds out what it can, copies under faults, and every
//! byte is compared with what it said. What was given back is overwritten by its owner at once: an
//! engine that writes it again is seen.

use std::collections::BTreeMap;

use ptdma::{
    Channel, ChannelConfig, Cookie, Deadline, ErrorHead, Failure, Notify, Restart, Signalling,
};
use ptdma_model::fault::StallFor;
use ptdma_model::forks::{self, Forks, RingLimit};
use ptdma_model::{
    Access, BusBuffer, BusRing, BusSpace, Fault as Injected, FaultKind, Model, ModelConfig, Timing,
    Trigger,
};
use ptdma_tests::rig::quiesced;

const LEN_BYTES: usize = 32;
/// Twice what the limited engines walk.
const ENTRIES: usize = 64;
/// Every so many copies meet an error each time that they are tried.
const BAD_EVERY: u64 = 11;
/// What an owner writes to memory that it was given back.
const OWNED: [u8; LEN_BYTES] = [0xaa; LEN_BYTES];

struct Copy {
    src: BusBuffer,
    dst: BusBuffer,
    bad: bool,
}

struct Machine {
    forks: Forks,
    bus: BusSpace,
    model: Model,
    channel: Channel<Model, BusRing>,
    copies: BTreeMap<u64, Copy>,
    /// Of what was retired, dropped, or given up: the owner has it.
    owned: Vec<BusBuffer>,
    failures: u64,
    random: u64,
}

fn machines() -> Vec<Forks> {
    let named = Forks::MACHINES.iter().map(|machine| machine.forks);
    named.chain(Forks::covering()).collect()
}

impl Machine {
    fn new(forks: Forks, signalling: Signalling) -> Self {
        let bus = BusSpace::new();
        let config = ModelConfig {
            forks,
            timing: Timing {
                read_ns: 100,
                write_ns: 10,
                ..Timing::default()
            },
            auto_step: 1,
        };
        let model = Model::new(config, bus.clone());
        let ring = BusRing::new(&bus, ENTRIES).unwrap();
        let mut config = ChannelConfig::default();
        config.signalling = signalling;
        let channel = match Channel::bring_up(model.clone(), ring, config) {
            Ok(channel) => channel,
            Err((e, ..)) => panic!("{forks}: {e}"),
        };
        Self {
            forks,
            bus,
            model,
            channel,
            copies: BTreeMap::new(),
            owned: Vec::new(),
            failures: 0,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    fn found_out(forks: Forks, signalling: Signalling) -> Self {
        let mut machine = Self::new(forks, signalling);
        let found = machine.channel.find_out(&machine.model, machine.deadline());
        assert!(found.is_ok(), "{forks}: {found:?}");
        machine
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(&self.model, 10_000_000)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn submit(&mut self) {
        let number = self.channel.next_cookie().number();
        let src = self.bus.alloc(LEN_BYTES, 4, Access::ReadOnly).unwrap();
        let dst = self.bus.alloc(LEN_BYTES, 4, Access::ReadWrite).unwrap();
        let fill: Vec<u8> = (0..LEN_BYTES)
            .map(|i| (number as usize * 7 + i) as u8 | 1)
            .collect();
        src.write(0, &fill).unwrap();
        let bad = number.is_multiple_of(BAD_EVERY);
        if bad {
            let start = dst.addr().get();
            let trigger = Trigger::Touches {
                start,
                len_bytes: 1,
            };
            let kind = FaultKind::PartialWrite {
                len_bytes: 5,
                code: 38,
            };
            self.model.inject(Injected::new(trigger, kind));
        }
        let request = self
            .channel
            .prep_copy(src.addr(), dst.addr(), LEN_BYTES as u64)
            .unwrap();
        let cookie = self.channel.submit(&request, Notify::Silent).unwrap();
        assert_eq!(cookie.number(), number);
        self.copies.insert(number, Copy { src, dst, bad });
    }

    /// The owner has it again, and writes to it.
    fn give_back(&mut self, copy: Copy) {
        copy.dst.write(0, &OWNED).unwrap();
        self.owned.push(copy.dst);
    }

    fn take(&mut self, done_before: Cookie, failure: Option<Failure>) {
        let failed = failure.map(|failure| failure.cookie.number());
        while let Some(entry) = self.copies.first_entry() {
            let number = *entry.key();
            if !Cookie::new(number).is_before(done_before) {
                break;
            }
            let copy = entry.remove();
            if failed == Some(number) {
                self.failures += 1;
            } else {
                assert!(!copy.bad, "{}: {number} cannot be good", self.forks);
                assert_eq!(
                    copy.src.to_vec(),
                    copy.dst.to_vec(),
                    "{}: {number} is not there",
                    self.forks
                );
            }
            self.give_back(copy);
        }
    }

    fn look(&mut self) {
        let progress = match self.below(8) {
            0 => self.channel.handle_interrupt(),
            1 => self.channel.check_lost_interrupt(),
            2 | 3 => {
                if let Some(done_before) = self.channel.poll_head() {
                    self.take(done_before, None);
                    return;
                }
                self.channel.poll()
            }
            _ => self.channel.poll(),
        };
        match progress {
            Ok(progress) => self.take(progress.done_before, progress.failure),
            Err(fault) => panic!("{}: {fault}", self.forks),
        }
    }

    /// Copies in bursts, some of them behind others that are under way.
    fn work(&mut self, bursts: usize) {
        for _ in 0..bursts {
            let room = self.channel.burst_capacity() as u64;
            if room > 0 {
                let count = self.below(room) + 1;
                for _ in 0..count {
                    self.submit();
                }
                let notify = match self.below(2) {
                    0 => Notify::Silent,
                    _ => Notify::Interrupt,
                };
                self.channel.issue_pending(notify);
            }
            for _ in 0..self.below(30) {
                self.look();
            }
        }
    }

    fn drain(&mut self) {
        for _ in 0..50_000 {
            if self.channel.outstanding() == 0 {
                assert!(self.copies.is_empty());
                return;
            }
            self.look();
        }
        panic!("{}: {} copies never came", self.forks, self.copies.len());
    }

    /// Whatever the engine may still do, it leaves what is not its own.
    fn expect_owners(&self) {
        for _ in 0..1000 {
            self.model.step();
        }
        for dst in &self.owned {
            assert_eq!(dst.to_vec(), OWNED, "{}: written again", self.forks);
        }
    }
}

fn both() -> [Signalling; 2] {
    [Signalling::Polled, Signalling::Interrupts]
}

/// The wait for an engine that goes on by the tail takes longer than a copy may on a machine with
/// slow registers. Those that need RUN are not dead for that.
#[test]
fn slow_registers_make_no_engine_a_dead_one() {
    // 250 looks of two reads; a copy takes a few.
    const SHORT_NS: u64 = 50_000;
    for forks in machines() {
        let mut machine = Machine::new(forks, Signalling::Polled);
        let deadline = Deadline::after(&machine.model, SHORT_NS);
        let found = machine.channel.find_out(&machine.model, deadline);
        let by_run = forks.restart == forks::Restart::Run;
        assert!(
            found.is_ok_and(|t| by_run == (t.restart == Restart::ByRun)),
            "{forks}: {found:?}"
        );
    }
}

#[test]
fn what_can_be_known_is_found_out() {
    for forks in machines() {
        let machine = Machine::found_out(forks, Signalling::Polled);
        let traits = machine.channel.traits();
        let restart = match forks.restart {
            forks::Restart::Run => Restart::ByRun,
            forks::Restart::Tail => Restart::ByTail,
        };
        assert_eq!(traits.restart, restart, "{forks}: {traits}");
        let entries = match forks.ring {
            RingLimit::No => ENTRIES,
            RingLimit::ReadsBack(log2) | RingLimit::Wraps(log2) => 1 << log2,
        };
        assert_eq!(
            usize::from(traits.ring_entries),
            entries,
            "{forks}: {traits}"
        );
        assert_eq!(machine.channel.capacity(), entries - 1);
        assert_eq!(traits.error_head, ErrorHead::Unknown);
        assert_eq!(machine.channel.stats().submitted, 0);
    }
}

#[test]
fn every_byte_is_right_and_no_channel_is_lost() {
    for forks in machines() {
        for signalling in both() {
            for found_out in [false, true] {
                let mut machine = if found_out {
                    Machine::found_out(forks, signalling)
                } else if forks.ring == RingLimit::No {
                    Machine::new(forks, signalling)
                } else {
                    // Nobody has looked, so nobody can know.
                    continue;
                };
                // By chance, too: what fails once may be good the next time.
                machine.model.inject(Injected::new(
                    Trigger::Every { n: 17, offset: 5 },
                    FaultKind::Error { code: 19 },
                ));
                machine.work(60);
                machine.drain();
                machine.expect_owners();
                assert!(machine.failures > 20, "{forks}: {}", machine.failures);
                let stats = machine.channel.stats();
                assert_eq!(stats.completed + stats.failed, stats.submitted, "{forks}");
                let learned = machine.channel.error_head() == ErrorHead::AtFailing;
                assert_eq!(learned, forks.error_head == forks::ErrorHead::At, "{forks}");
            }
        }
    }
}

/// Stopped anywhere in its work, and in a descriptor that does not end: what counts as copied is,
/// what was dropped is not written later, and what cannot be proved is not given back.
#[test]
fn a_stop_claims_and_gives_back_only_what_is_certain() {
    let mut proved = 0;
    for forks in machines() {
        for steps in [0, 1, 3, 7] {
            for stalled in [false, true] {
                let mut machine = Machine::found_out(forks, Signalling::Polled);
                machine.work(3);
                machine.drain();
                if stalled {
                    let duration = StallFor::Ever;
                    let haltable = false;
                    machine
                        .model
                        .inject(Injected::at(2, FaultKind::Stall { duration, haltable }));
                }
                for _ in 0..5 {
                    machine.submit();
                }
                machine.channel.issue_pending(Notify::Silent);
                for _ in 0..steps {
                    machine.model.step();
                }
                let deadline = Deadline::after(&machine.model, 300_000);
                match machine.channel.terminate(&machine.model, deadline) {
                    Ok(terminated) => {
                        proved += 1;
                        machine.take(terminated.first_dropped, None);
                    }
                    Err(_) => {
                        assert_eq!(machine.channel.outstanding() as usize, machine.copies.len());
                        machine.model.clear_faults();
                        if !machine.model.function_reset() {
                            continue;
                        }
                        for _ in 0..500 {
                            let _version = machine.model.read_word(0x10);
                        }
                        if !machine.model.answers() {
                            continue;
                        }
                        let _ = machine.channel.recover(quiesced()).unwrap();
                    }
                }
                while let Some((_, copy)) = machine.copies.pop_first() {
                    machine.give_back(copy);
                }
                machine.expect_owners();
                machine.model.clear_faults();
                machine.work(5);
                machine.drain();
                machine.expect_owners();
            }
        }
    }
    assert!(proved > 100, "{proved}");
}

/// What an error leaves of the driver's own copies is dropped, and the books balance all the time.
#[test]
fn copies_of_a_search_that_failed_are_accounted_for() {
    // A hanging engine is waited for until then: 2000 looks.
    let deadline = |machine: &Machine| Deadline::after(&machine.model, 200_000);
    let mut left = 0;
    for forks in machines() {
        for nth in 0..8 {
            let mut machine = Machine::new(forks, Signalling::Polled);
            let duration = StallFor::Ever;
            let haltable = true;
            let stall = FaultKind::Stall { duration, haltable };
            machine.model.inject(Injected::at(nth, stall));
            let found = machine.channel.find_out(&machine.model, deadline(&machine));
            let balance = |channel: &Channel<Model, BusRing>| {
                let stats = channel.stats();
                let over = stats.completed + stats.failed + stats.dropped;
                let outstanding = channel.outstanding();
                assert_eq!(over + outstanding, stats.submitted, "{forks} {nth}");
                outstanding
            };
            let outstanding = balance(&machine.channel);
            left += outstanding;
            assert!(found.is_err() || outstanding == 0, "{forks} {nth}");
            if machine
                .channel
                .terminate(&machine.model, deadline(&machine))
                .is_ok()
            {
                assert_eq!(balance(&machine.channel), 0);
                assert_eq!(machine.channel.stats().dropped, outstanding);
            }
        }
    }
    assert!(left > 0);
}

/// A channel at work is not asked, and goes on with the ring that it has.
#[test]
fn a_channel_at_work_keeps_its_ring() {
    let mut machine = Machine::found_out(Forks::SIBLING, Signalling::Polled);
    machine.submit();
    let found = machine.channel.find_out(&machine.model, machine.deadline());
    assert_eq!(found, Err(ptdma::ProbeError::NotIdle));
    assert!(
        machine
            .channel
            .terminate(&machine.model, machine.deadline())
            .is_ok()
    );
    assert_eq!(machine.channel.capacity(), ENTRIES - 1);
}

/// The driver takes an error off the status to find out whether the engine still runs behind it. If
/// that finds nothing, the error is still one: a stop claims nothing that the head has passed.
#[test]
fn an_error_that_was_cleared_in_vain_stays_one() {
    let forks = Forks {
        halt: forks::Halt::OnStop,
        error_head: forks::ErrorHead::Tail,
        ..Forks::TODAY
    };
    let mut machine = Machine::found_out(forks, Signalling::Polled);
    let mut pairs = Vec::new();
    let mut submit = |machine: &mut Machine, kind: Option<FaultKind>| {
        let src = machine.bus.alloc(LEN_BYTES, 4, Access::ReadOnly).unwrap();
        let dst = machine.bus.alloc(LEN_BYTES, 4, Access::ReadWrite).unwrap();
        src.write(0, &[0x5a; LEN_BYTES]).unwrap();
        if let Some(kind) = kind {
            let start = dst.addr().get();
            let trigger = Trigger::Touches {
                start,
                len_bytes: 1,
            };
            machine.model.inject(Injected::new(trigger, kind));
        }
        let request = machine
            .channel
            .prep_copy(src.addr(), dst.addr(), LEN_BYTES as u64)
            .unwrap();
        machine.channel.submit(&request, Notify::Silent).unwrap();
        pairs.push(dst);
    };
    // Drained, and nobody looked: whether the engine stands is not known when RUN is written next.
    submit(&mut machine, None);
    machine.channel.issue_pending(Notify::Silent);
    machine.model.run(10);
    submit(&mut machine, Some(FaultKind::Error { code: 19 }));
    submit(&mut machine, None);
    submit(&mut machine, None);
    machine.channel.issue_pending(Notify::Silent);
    machine.model.run(10);
    // The head is at the old tail now. Behind it one is copied, and the next hangs.
    submit(&mut machine, None);
    let stall = FaultKind::Stall {
        duration: StallFor::Ever,
        haltable: true,
    };
    submit(&mut machine, Some(stall));
    machine.channel.issue_pending(Notify::Silent);
    let first = machine.channel.done_before();
    let fault = loop {
        if let Err(fault) = machine.channel.poll() {
            break fault;
        }
    };
    assert!(matches!(fault, ptdma::Fault::WillNotHalt { .. }), "{fault}");
    let terminated = machine
        .channel
        .terminate(&machine.model, machine.deadline())
        .unwrap();
    let claimed = terminated.first_dropped.since(first);
    for dst in pairs.iter().take(claimed as usize) {
        assert_eq!(dst.to_vec(), [0x5a; LEN_BYTES], "claimed, and not copied");
    }
    assert_eq!(terminated.failure, None, "which one failed is not known");
}
