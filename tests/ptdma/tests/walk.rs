//! The walk over the ring, by which its length is found out: at every pace of the engine, and when
//! the engine hangs in it.

use std::cell::Cell;

use ptdma::io::RegisterIo;
use ptdma::regs::Register;
use ptdma::{Channel, ChannelConfig, Deadline, ProbeError};
use ptdma_model::fault::StallFor;
use ptdma_model::forks::{Forks, Machine, RingLimit};
use ptdma_model::{
    BusRing, BusSpace, Fault as Injected, FaultKind, Model, ModelConfig, StepOutcome, Timing,
    Trigger,
};

/// Longer than every wait of the test, in model time: the engine never ends by itself.
const STALL_STEPS: u64 = 60_000;
/// One millisecond, for waits that are to fail.
const LIMIT_NS: u64 = 1_000_000;

/// A function of that kind, whose engine makes a step with each read, and its channel.
fn brought_up(machine: &Machine) -> (Model, Channel<Model, BusRing>) {
    let bus = BusSpace::new();
    let config = ModelConfig {
        forks: machine.forks,
        timing: Timing {
            read_ns: 100,
            write_ns: 10,
            ..Timing::default()
        },
        auto_step: 1,
    };
    let model = Model::new(config, bus.clone());
    let ring = BusRing::new(&bus, 64).unwrap();
    match Channel::bring_up(model.clone(), ring, ChannelConfig::default()) {
        Ok(channel) => (model, channel),
        Err((e, ..)) => panic!("{}: {e}", machine.name),
    }
}

#[test]
fn memory_is_not_given_back_while_a_walk_hangs() {
    let mut given_back = 0;
    let mut kept = 0;
    for machine in Forks::MACHINES {
        // The first two copies are found out with; the walk has the others.
        for nth in 0..8 {
            let (model, mut channel) = brought_up(machine);
            model.inject(Injected::new(
                Trigger::At(nth),
                FaultKind::Stall {
                    duration: StallFor::Steps(STALL_STEPS),
                    haltable: false,
                },
            ));
            let _ = channel.find_out(&model, Deadline::after(&model, LIMIT_NS));
            let down = channel.shutdown(&model, Deadline::after(&model, LIMIT_NS));
            if down.is_ok() {
                given_back += 1;
                let next = model.step();
                assert_ne!(next, StepOutcome::Stalled, "{} {nth}", machine.name);
            } else {
                kept += 1;
            }
        }
    }
    // Both ends are reached: most stalls are met, and machines with a short ring meet fewer.
    assert!(kept > 40, "{kept} kept, {given_back} given back");
}

/// How far the engine comes between two reads of the driver.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// So many steps before each read, and one more before every second: an engine that makes whole
    /// rounds from look to look cannot be seen to move.
    Steps(u64),
    /// One step before every so many reads.
    Reads(u64),
}

/// Registers of a function whose engine has a pace, and may stand just where the tail is put.
struct Paced<'m> {
    model: &'m Model,
    pace: Pace,
    /// Before a tail is written, the engine goes on until its head is there, if it gets there.
    meets_tail: bool,
    reads: Cell<u64>,
}

impl RegisterIo for Paced<'_> {
    fn read(&self, register: Register) -> u32 {
        self.reads.set(self.reads.get() + 1);
        match self.pace {
            Pace::Steps(steps) => {
                self.model.run(steps + self.reads.get() % 2);
            }
            Pace::Reads(reads) if self.reads.get().is_multiple_of(reads) => {
                self.model.step();
            }
            Pace::Reads(_) => {}
        }
        self.model.read(register)
    }

    fn write(&self, register: Register, value: u32) {
        if self.meets_tail && register == Register::Tail {
            for _ in 0..2 * MEMORY_ENTRIES {
                if self.model.read(Register::Head) == value {
                    break;
                }
                self.model.step();
            }
        }
        self.model.write(register, value);
    }
}

const MEMORY_ENTRIES: usize = 256;

/// Engines with a shorter ring than they are told of: all of them with the stock driver's, and those
/// with a name with others too.
fn wrapping_machines() -> Vec<(Forks, usize)> {
    let named = Forks::MACHINES.iter().map(|machine| machine.forks);
    let stock = named
        .clone()
        .chain(Forks::covering())
        .map(|forks| (forks, 5));
    let others = named.flat_map(|forks| [2, 7].map(|log2| (forks, log2)));
    stock
        .chain(others)
        .map(|(forks, log2)| {
            let ring = RingLimit::Wraps(log2);
            (Forks { ring, ..forks }, 1 << log2)
        })
        .collect()
}

/// What finding out came to, on an engine with that pace: the entries found.
fn find_out(
    forks: Forks,
    pace: Pace,
    meets_tail: bool,
    fault: Option<Injected>,
) -> Result<usize, ProbeError> {
    let bus = BusSpace::new();
    let config = ModelConfig {
        forks,
        timing: Timing {
            read_ns: 100,
            write_ns: 10,
            ..Timing::default()
        },
        auto_step: 0,
    };
    let model = Model::new(config, bus.clone());
    let ring = BusRing::new(&bus, MEMORY_ENTRIES).unwrap();
    let paced = Paced {
        model: &model,
        pace,
        meets_tail,
        reads: Cell::new(0),
    };
    let Ok(mut channel) = Channel::bring_up(paced, ring, ChannelConfig::default()) else {
        panic!("{forks} is not brought up");
    };
    if let Some(fault) = fault {
        model.inject(fault);
    }
    // One step in 70 reads of 100 ns: a round of 128 slots takes 1 ms.
    let found = channel.find_out(&model, Deadline::after(&model, 4 * LIMIT_NS))?;
    assert_eq!(model.run(10), 0, "{forks} {pace:?}: still walks");
    Ok(found.ring_entries.into())
}

#[test]
fn a_shorter_ring_is_found_at_every_pace() {
    let paces = [1, 2, 7, 31, 32, 33, 130].map(Pace::Steps);
    let slow = [2, 5, 70].map(Pace::Reads);
    for (forks, entries) in wrapping_machines() {
        for pace in paces.into_iter().chain(slow) {
            for meets_tail in [false, true] {
                let found = find_out(forks, pace, meets_tail, None);
                assert_eq!(found, Ok(entries), "{forks} {pace:?} {meets_tail}");
            }
        }
    }
}

/// RUN is written to an engine that may be at work: it may go on over a failure that nobody saw.
#[test]
fn a_failure_under_way_costs_another_walk() {
    for machine in Forks::MACHINES {
        let ring = RingLimit::Wraps(5);
        let forks = Forks {
            ring,
            ..machine.forks
        };
        for nth in 0..80 {
            let fault = Injected::at(nth, FaultKind::Error { code: 19 });
            let found = find_out(forks, Pace::Steps(1), true, Some(fault));
            assert_eq!(found, Ok(32), "{forks} {nth}");
        }
    }
}

/// Nobody knows how long a ring the engine walks if that could not be watched to the end.
#[test]
fn a_ring_that_was_not_walked_is_not_used_whole() {
    let mut failed = 0;
    for machine in Forks::MACHINES {
        for nth in 0..16 {
            let (model, mut channel) = brought_up(machine);
            model.inject(Injected::new(
                Trigger::At(nth),
                FaultKind::AllOnes { reads: Some(1) },
            ));
            let deadline = || Deadline::after(&model, LIMIT_NS);
            let found = channel.find_out(&model, deadline());
            if found.is_err() && channel.terminate(&model, deadline()).is_ok() {
                failed += 1;
                assert!(channel.capacity() < 32, "{} {nth}: {found:?}", machine.name);
            }
        }
    }
    assert!(failed > 16, "{failed}");
}
