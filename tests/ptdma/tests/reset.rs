//! Resets that nobody told the driver of, and engines that a previous owner could not stop.
//!
//! A reset zeroes head, tail and control. The head is then memory that is not ours: no ring begins
//! at a multiple of 4 GiB. Work that the reset took is lost, and the engine must not be set going
//! there.

use std::cell::Cell;

use ptdma::regs::{QueueControl, Register};
use ptdma::{
    BringUpError, Channel, ChannelConfig, Cookie, Deadline, DmaAddr, ErrorHead, Fault, Notify,
    Progress, RegisterIo, Restart,
};
use ptdma_model::fault::StallFor;
use ptdma_model::forks::{self, Forks, Late, Span};
use ptdma_model::{
    Access, BusBuffer, BusRing, BusSpace, Fault as Injected, FaultKind, Model, ModelConfig, Timing,
};

const ENTRIES: usize = 4;
const LEN_BYTES: usize = 64;
/// A ring that is far from where a reset leaves the head, and one that ends just there.
const BASES: [u64; 2] = [(1 << 32) + 0x1000, (1 << 33) - (ENTRIES as u64 * 32)];

struct Machine {
    bus: BusSpace,
    model: Model,
    channel: Channel<Model, BusRing>,
    destinations: Vec<BusBuffer>,
}

impl Machine {
    fn new(base: u64) -> Self {
        let bus = BusSpace::new();
        let memory = bus
            .map_at(DmaAddr::new(base), ENTRIES * 32, Access::ReadOnly)
            .unwrap();
        let config = ModelConfig {
            timing: Timing {
                read_ns: 100,
                ..Timing::default()
            },
            ..ModelConfig::default()
        };
        let model = Model::new(config, bus.clone());
        let ring = BusRing::in_buffer(memory, ENTRIES);
        let Ok(channel) = Channel::bring_up(model.clone(), ring, ChannelConfig::default()) else {
            panic!("bring-up failed")
        };
        Self {
            bus,
            model,
            channel,
            destinations: Vec::new(),
        }
    }

    /// Submits and issues copies of nines.
    fn submit(&mut self, count: usize) {
        for _ in 0..count {
            let src = self.bus.alloc(LEN_BYTES, 4, Access::ReadOnly).unwrap();
            src.write(0, &[9; LEN_BYTES]).unwrap();
            let dst = self.bus.alloc(LEN_BYTES, 4, Access::ReadWrite).unwrap();
            let request = self
                .channel
                .prep_copy(src.addr(), dst.addr(), LEN_BYTES as u64)
                .unwrap();
            self.channel.submit(&request, Notify::Silent).unwrap();
            self.destinations.push(dst);
        }
        self.channel.issue_pending(Notify::Silent);
    }

    /// Copies that are over, and whose memory has an owner who writes sevens.
    fn done(&mut self, count: usize) {
        self.submit(count);
        self.model.run(100);
        assert_eq!(self.channel.poll().unwrap().retired, count as u64);
        for destination in &self.destinations {
            assert_eq!(destination.to_vec(), [9; LEN_BYTES]);
            destination.write(0, &[7; LEN_BYTES]).unwrap();
        }
    }

    /// Lets everything happen that will, and checks that the first `count` owners have their
    /// bytes.
    fn expect_owners(&self, count: usize) {
        self.model.run(100);
        for destination in &self.destinations[..count] {
            assert_eq!(destination.to_vec(), [7; LEN_BYTES], "written again");
        }
    }

    fn poll_until_fault(&mut self) -> Fault {
        for _ in 0..10_000 {
            self.model.step();
            match self.channel.poll() {
                Ok(progress) => assert_eq!(progress.retired, 0),
                Err(fault) => return fault,
            }
        }
        panic!("a channel that does nothing had no fault");
    }

    /// Works again, on cookies that go on.
    fn expect_service(&mut self) {
        let before = self.destinations.len();
        self.submit(2);
        self.model.run(100);
        assert_eq!(self.channel.poll().unwrap().retired, 2);
        for destination in &self.destinations[before..] {
            assert_eq!(destination.to_vec(), [9; LEN_BYTES]);
        }
    }
}

#[test]
fn what_a_reset_took_is_dropped_and_never_claimed() {
    for base in BASES {
        for done in 0..ENTRIES {
            for polled in [false, true] {
                let mut machine = Machine::new(base);
                machine.done(done);
                machine.submit(3);
                assert!(machine.model.function_reset());
                if polled {
                    assert!(machine.channel.poll().is_err(), "{base:#x}");
                }
                let deadline = ptdma::Deadline::after(&machine.model, 1_000_000);
                let terminated = machine.channel.terminate(&machine.model, deadline).unwrap();
                assert_eq!(
                    (terminated.retired, terminated.dropped),
                    (0, 3),
                    "{base:#x} {done}"
                );
                assert_eq!(terminated.first_dropped, Cookie::new(done as u64));
                machine.expect_owners(done);
                machine.expect_service();
            }
        }
    }
}

#[test]
fn a_pause_after_a_reset_claims_nothing() {
    for base in BASES {
        let mut machine = Machine::new(base);
        machine.done(1);
        machine.submit(3);
        assert!(machine.model.function_reset());
        let deadline = ptdma::Deadline::after(&machine.model, 1_000_000);
        let _ = machine.channel.pause(&machine.model, deadline);
        assert_eq!(machine.channel.poll(), Err(Fault::Reset));
        machine.channel.resume();
        machine.expect_owners(1);
        assert_eq!(machine.channel.outstanding(), 3);
    }
}

#[test]
fn new_work_does_not_set_a_function_going_that_was_reset() {
    for base in BASES {
        for in_flight in [false, true] {
            let mut machine = Machine::new(base);
            machine.done(2);
            if in_flight {
                machine.submit(1);
            }
            assert!(machine.model.function_reset());
            machine.submit(1);
            machine.expect_owners(2);
            assert_eq!(machine.model.counters().errors, 0, "it was set going");
            let fault = machine.poll_until_fault();
            assert_eq!(fault, Fault::Reset, "{base:#x} {in_flight}");
            machine.expect_owners(2);
            let deadline = ptdma::Deadline::after(&machine.model, 1_000_000);
            let terminated = machine.channel.terminate(&machine.model, deadline).unwrap();
            assert_eq!(terminated.retired, 0);
            machine.expect_service();
        }
    }
}

#[test]
fn a_lost_doorbell_is_not_what_a_reset_is() {
    for base in BASES {
        for polls in 0..50 {
            let mut machine = Machine::new(base);
            machine.done(2);
            machine.model.inject(Injected::at(
                0,
                FaultKind::Stall {
                    duration: StallFor::Ever,
                    haltable: false,
                },
            ));
            machine.submit(1);
            for _ in 0..polls {
                machine.model.step();
                assert_eq!(machine.channel.poll().unwrap().retired, 0);
            }
            assert!(machine.model.function_reset());
            machine.poll_until_fault();
            machine.expect_owners(2);
            assert_eq!(machine.model.counters().errors, 0, "it was set going");
        }
    }
}

/// Registers of a function that says what the test wants of its control register.
struct Reading<'m>(&'m Model, u32);

impl RegisterIo for Reading<'_> {
    fn read(&self, register: Register) -> u32 {
        let value = self.0.read(register);
        match register {
            Register::Control => value & !self.1,
            _ => value,
        }
    }

    fn write(&self, register: Register, value: u32) {
        self.0.write(register, value);
    }
}

/// The owner before had given up: RUN is gone, the engine is still in its descriptor.
#[test]
fn a_queue_that_nobody_could_stop_is_not_taken_over() {
    for never_halts in [false, true] {
        let mut machine = Machine::new(BASES[0]);
        let duration = StallFor::Ever;
        let haltable = false;
        machine
            .model
            .inject(Injected::at(0, FaultKind::Stall { duration, haltable }));
        machine.submit(2);
        machine.model.step();
        let deadline = ptdma::Deadline::after(&machine.model, 10_000);
        assert!(machine.channel.terminate(&machine.model, deadline).is_err());
        let Machine {
            bus,
            model,
            channel,
            destinations,
        } = machine;
        drop(channel);
        let hidden = match never_halts {
            true => QueueControl::HALT.bits(),
            false => 0,
        };
        let bring_up = || {
            let ring = BusRing::new(&bus, 8).unwrap();
            Channel::bring_up(Reading(&model, hidden), ring, ChannelConfig::default())
        };
        let Err((error, ..)) = bring_up() else {
            panic!("taken over while its engine is at work")
        };
        assert!(
            matches!(error, BringUpError::StillRunning { .. }),
            "{error}"
        );
        model.clear_faults();
        model.run(100);
        // It was at work, and has written. It is at rest now, before the second descriptor.
        assert_eq!(destinations[0].to_vec(), [9; LEN_BYTES]);
        assert_eq!(bring_up().is_ok(), !never_halts);
        assert!(model.function_reset());
        assert!(bring_up().is_ok());
        assert_eq!(destinations[1].to_vec(), [0; LEN_BYTES]);
    }
}

/// Before which accesses a function may be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// Writes of control: after the driver has looked, and before it gives back what a reset takes.
    Control,
    /// All.
    Any,
}

/// Registers of a function that is reset just before a certain access.
struct ResetBefore<'m> {
    model: &'m Model,
    before: Before,
    left: &'m Cell<Option<u32>>,
}

impl ResetBefore<'_> {
    fn count(&self, is_control_write: bool) {
        if (is_control_write || self.before == Before::Any)
            && let Some(left) = self.left.get()
        {
            self.left.set(left.checked_sub(1));
            if left == 0 {
                // It is no bus master from then on, as after every reset.
                self.model.power_cycle();
                self.model.set_bus_master(false);
            }
        }
    }
}

impl RegisterIo for ResetBefore<'_> {
    fn read(&self, register: Register) -> u32 {
        self.model.step();
        self.count(false);
        self.model.read(register)
    }

    fn write(&self, register: Register, value: u32) {
        self.count(register == Register::Control);
        self.model.write(register, value);
    }
}

/// What the owner does with the channel, on whose engine three copies are.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Terminate,
    Pause,
    Failure,
    Doorbell,
}

/// Does it to a channel whose function is reset before the `nth` access of a kind from then on.
/// False if there were not so many.
fn disturbed(
    (forks, before): (Forks, Before),
    base: u64,
    deed: Deed,
    told: bool,
    done: usize,
    nth: u32,
) -> bool {
    let bus = BusSpace::new();
    let memory = bus
        .map_at(DmaAddr::new(base), ENTRIES * 32, Access::ReadOnly)
        .unwrap();
    let config = ModelConfig {
        forks,
        timing: Timing {
            read_ns: 100,
            ..Timing::default()
        },
        ..ModelConfig::default()
    };
    let model = Model::new(config, bus.clone());
    let left = Cell::new(None);
    let regs = ResetBefore {
        model: &model,
        before,
        left: &left,
    };
    let mut config = ChannelConfig::default();
    config.error_head = match told {
        true => ErrorHead::AtFailing,
        false => ErrorHead::Unknown,
    };
    config.restart = match told {
        true => Restart::ByRun,
        false => Restart::Unknown,
    };
    let ring = BusRing::in_buffer(memory, ENTRIES);
    let Ok(mut channel) = Channel::bring_up(regs, ring, config) else {
        panic!("bring-up failed")
    };
    let destinations: Vec<_> = (0..done + 5)
        .map(|_| bus.alloc(LEN_BYTES, 4, Access::ReadWrite).unwrap())
        .collect();
    let mut failed = Vec::new();
    let mut submitted = 0;
    let mut submit = |channel: &mut Channel<ResetBefore<'_>, BusRing>, count: usize| {
        for dst in &destinations[submitted..submitted + count] {
            let src = bus.alloc(LEN_BYTES, 4, Access::ReadOnly).unwrap();
            src.write(0, &[9; LEN_BYTES]).unwrap();
            let request = channel
                .prep_copy(src.addr(), dst.addr(), LEN_BYTES as u64)
                .unwrap();
            // A channel that is out of order takes none.
            let _ = channel.submit(&request, Notify::Silent);
        }
        submitted += count;
        channel.issue_pending(Notify::Silent);
    };
    let note = |progress: Result<Progress, Fault>, failed: &mut Vec<u64>| match progress {
        Ok(progress) => {
            failed.extend(progress.failure.map(|failure| failure.cookie.number()));
            true
        }
        Err(_) => false,
    };
    for _ in 0..done {
        submit(&mut channel, 1);
        while channel.outstanding() > 0 {
            assert!(channel.poll().is_ok());
        }
    }
    let deadline = || Deadline::after(&model, 100_000);
    if matches!(deed, Deed::Failure) {
        // The first copy is good, the second one fails, and fails again when it runs alone.
        for nth in 1..4 {
            model.inject(Injected::at(nth, FaultKind::Error { code: 19 }));
        }
    } else {
        let duration = StallFor::Steps(20);
        let haltable = false;
        model.inject(Injected::at(1, FaultKind::Stall { duration, haltable }));
    }
    let in_flight = match deed {
        Deed::Doorbell => 0,
        _ => 3,
    };
    submit(&mut channel, in_flight);
    left.set(Some(nth));
    let mut end = None;
    match deed {
        Deed::Terminate => {
            if let Ok(terminated) = channel.terminate(&model, deadline()) {
                failed.extend(terminated.failure.map(|failure| failure.cookie.number()));
                end = Some(terminated.first_dropped);
            }
        }
        Deed::Pause => {
            let _ = channel.pause(&model, deadline());
            let _ = channel.poll();
            channel.resume();
        }
        Deed::Failure => {}
        Deed::Doorbell => {
            submit(&mut channel, 1);
            submit(&mut channel, 2);
        }
    }
    if end.is_none() {
        for _ in 0..600 {
            if channel.outstanding() == 0 || !note(channel.poll(), &mut failed) {
                break;
            }
        }
    }
    let end = end.unwrap_or_else(|| channel.done_before()).number();
    for (number, destination) in destinations.iter().enumerate() {
        let number = number as u64;
        if number < end && !failed.contains(&number) {
            assert_eq!(
                destination.to_vec(),
                [9; LEN_BYTES],
                "claimed: {forks} {base:#x} {deed:?} {told} {done} {nth}, copy {number} of {end}"
            );
        }
    }
    left.get().is_none()
}

/// What a reset takes the driver gives back with its next write of control. No copy may be claimed
/// that was lost, and none that failed may count as another.
#[test]
fn a_reset_just_before_a_write_of_control_claims_nothing() {
    let mut resets = 0;
    for base in BASES {
        for deed in [Deed::Terminate, Deed::Pause, Deed::Failure, Deed::Doorbell] {
            for told in [false, true] {
                for done in 0..ENTRIES {
                    let kind = (Forks::TODAY, Before::Control);
                    let nth = (0..100).find(|nth| !disturbed(kind, base, deed, told, done, *nth));
                    resets += nth.expect("there is no end of writes");
                }
            }
        }
    }
    // A doorbell has one, a failure two.
    assert!(resets > 64, "{resets}");
}

/// A reset takes the error of a failed copy away, whose head may be past it.
#[test]
fn a_reset_before_any_access_claims_nothing() {
    let mut machines: Vec<Forks> = Forks::MACHINES.iter().map(|m| m.forks).collect();
    machines.extend(Forks::covering());
    // Beyond these the driver only waits.
    const MOST: u32 = 200;
    // What goes by real time would not be the same twice.
    machines.retain(|forks| !matches!(forks.late, Late::For(Span::Micros(_))));
    machines.retain(|forks| !matches!(forks.reset, forks::Reset::Away(Span::Micros(_))));
    let mut resets = 0;
    for forks in machines {
        for deed in [Deed::Terminate, Deed::Pause, Deed::Failure, Deed::Doorbell] {
            let kind = (forks, Before::Any);
            let reached = |nth: &u32| disturbed(kind, BASES[0], deed, false, 0, *nth);
            resets += (0..MOST).take_while(reached).count();
        }
    }
    assert!(resets > 5_000, "{resets}");
}
