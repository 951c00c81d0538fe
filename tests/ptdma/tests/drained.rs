//! Engines that drain just before their new tail comes, of which nobody knows what sets them going.

use std::cell::Cell;

use ptdma::io::RegisterIo;
use ptdma::regs::Register;
use ptdma::{Channel, ChannelConfig, Cookie, Deadline, Notify, Signalling};
use ptdma_model::fault::StallFor;
use ptdma_model::forks::Forks;
use ptdma_model::{
    Access, BusBuffer, BusRing, BusSpace, Fault as Injected, FaultKind, Model, ModelConfig, Timing,
    Trigger,
};

const LEN_BYTES: usize = 64;
/// Looks that are enough to notice that an engine stands, some times over.
const LOOKS: u32 = 2_000;

/// Registers of a function whose engine is through with its work just before a tail is written.
struct Drains<'m> {
    model: &'m Model,
    before_tail: &'m Cell<bool>,
    /// Whether the first look at the head behind that still finds it where it was.
    lags: bool,
    old_head: Cell<Option<u32>>,
}

impl RegisterIo for Drains<'_> {
    fn read(&self, register: Register) -> u32 {
        let value = self.model.read(register);
        match register {
            Register::Head => self.old_head.take().unwrap_or(value),
            _ => value,
        }
    }

    fn write(&self, register: Register, value: u32) {
        if register == Register::Tail && self.before_tail.get() {
            let head = self.model.read(Register::Head);
            self.old_head.set(self.lags.then_some(head));
            self.model.run(u64::MAX);
        }
        self.model.write(register, value);
    }
}

fn all_machines() -> impl Iterator<Item = Forks> {
    let named = Forks::MACHINES.iter().map(|machine| machine.forks);
    let deviations = Forks::LINUX_ONLY.deviations();
    named.chain(Forks::covering()).chain(deviations)
}

fn new_model(forks: Forks, bus: &BusSpace) -> Model {
    let config = ModelConfig {
        forks,
        timing: Timing {
            read_ns: 100,
            ..Timing::default()
        },
        ..ModelConfig::default()
    };
    Model::new(config, bus.clone())
}

/// Submits and issues a copy of nines; where they are to be.
fn copy<R: RegisterIo>(channel: &mut Channel<R, BusRing>, bus: &BusSpace) -> BusBuffer {
    let src = bus.alloc(LEN_BYTES, 4, Access::ReadOnly).unwrap();
    src.write(0, &[9; LEN_BYTES]).unwrap();
    let dst = bus.alloc(LEN_BYTES, 4, Access::ReadWrite).unwrap();
    let request = channel
        .prep_copy(src.addr(), dst.addr(), LEN_BYTES as u64)
        .unwrap();
    channel.submit(&request, Notify::Silent).unwrap();
    channel.issue_pending(Notify::Interrupt);
    dst
}

/// What is left of two copies after so many looks, the second of which was rung for as the engine
/// drained, and fails if `fails`.
fn left_over(forks: Forks, signalling: Signalling, lags: bool, fails: bool, looks: u32) -> u64 {
    let bus = BusSpace::new();
    let model = new_model(forks, &bus);
    let before_tail = Cell::new(false);
    let regs = Drains {
        model: &model,
        before_tail: &before_tail,
        lags,
        old_head: Cell::new(None),
    };
    let ring = BusRing::new(&bus, 4).unwrap();
    let mut config = ChannelConfig::default();
    config.signalling = signalling;
    let Ok(mut channel) = Channel::bring_up(regs, ring, config) else {
        panic!("{forks} is not brought up");
    };
    let mut copies = vec![copy(&mut channel, &bus)];
    before_tail.set(true);
    copies.push(copy(&mut channel, &bus));
    before_tail.set(false);
    if fails {
        let touches = Trigger::Touches {
            start: copies[1].addr().get(),
            len_bytes: LEN_BYTES as u64,
        };
        model.inject(Injected::new(touches, FaultKind::Error { code: 19 }));
    }
    for _ in 0..looks {
        model.step();
        let progress = match signalling {
            Signalling::Polled => channel.poll(),
            Signalling::Interrupts => channel.check_lost_interrupt(),
        };
        let progress = progress.unwrap_or_else(|fault| panic!("{forks}: {fault}"));
        if let Some(failure) = progress.failure {
            assert!(fails, "{forks}");
            assert_eq!(failure.cookie, Cookie::new(1), "{forks}");
            copies.truncate(1);
        }
    }
    assert_eq!(copies.len() == 1, fails, "{forks}");
    let left = channel.outstanding() as usize;
    for copy in &copies[..copies.len() - left] {
        assert_eq!(copy.to_vec(), [9; LEN_BYTES], "{forks}");
    }
    channel.outstanding()
}

/// RUN was written to an engine that nobody knew to stand. That is forgotten as soon as the status
/// is clean, or an engine without HALT could not be proved to stand at a failure after that.
#[test]
fn work_behind_work_that_just_ended_may_fail() {
    for forks in all_machines() {
        for signalling in [Signalling::Polled, Signalling::Interrupts] {
            let left = left_over(forks, signalling, false, true, LOOKS);
            assert_eq!(left, 0, "{forks} {signalling:?}");
        }
    }
}

#[test]
fn work_behind_work_that_just_ended_is_begun_at_once() {
    for forks in all_machines() {
        for signalling in [Signalling::Polled, Signalling::Interrupts] {
            let left = left_over(forks, signalling, false, false, 4);
            assert_eq!(left, 0, "{forks} {signalling:?}: stands");
        }
    }
}

/// The head follows the engine late: the doorbell finds nothing, so a later look has to.
#[test]
fn work_behind_work_that_just_ended_is_begun_at_last() {
    for forks in all_machines() {
        for signalling in [Signalling::Polled, Signalling::Interrupts] {
            let left = left_over(forks, signalling, true, false, LOOKS);
            assert_eq!(left, 0, "{forks} {signalling:?}: stands");
        }
    }
}

/// RUN does not get an engine out of a descriptor: it is written a few times, and no more.
#[test]
fn a_hang_stays_a_hang() {
    for forks in all_machines() {
        let bus = BusSpace::new();
        let model = new_model(forks, &bus);
        let ring = BusRing::new(&bus, 4).unwrap();
        let Ok(mut channel) = Channel::bring_up(model.clone(), ring, ChannelConfig::default())
        else {
            panic!("{forks} is not brought up");
        };
        let duration = StallFor::Ever;
        let haltable = false;
        model.inject(Injected::at(0, FaultKind::Stall { duration, haltable }));
        let _dst = copy(&mut channel, &bus);
        let _ = model.take_counters();
        for _ in 0..10 * LOOKS {
            model.step();
            // A fault is as good, where the engine seems to stand.
            if let Ok(progress) = channel.poll() {
                assert_eq!(progress.retired, 0, "{forks}");
            }
        }
        assert!(model.counters().run_writes <= 3, "{forks}");
        let deadline = Deadline::after(&model, 1_000_000);
        if let Ok(terminated) = channel.terminate(&model, deadline) {
            panic!("{forks}: {terminated:?}, and the engine is at work");
        }
    }
}
