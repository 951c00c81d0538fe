//! An engine that hangs while its ring is walked over keeps the ring's memory.

use ptdma::{Channel, ChannelConfig, Deadline};
use ptdma_model::fault::StallFor;
use ptdma_model::forks::Forks;
use ptdma_model::{
    BusRing, BusSpace, Fault as Injected, FaultKind, Model, ModelConfig, StepOutcome, Timing,
    Trigger,
};

/// Longer than every wait of the test, in model time: the engine never ends by itself.
const STALL_STEPS: u64 = 60_000;
/// One millisecond, for waits that are to fail.
const LIMIT_NS: u64 = 1_000_000;

#[test]
fn memory_is_not_given_back_while_a_walk_hangs() {
    let mut given_back = 0;
    let mut kept = 0;
    for machine in Forks::MACHINES {
        // The first two copies are found out with; the walk has the others.
        for nth in 0..8 {
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
            let channel = Channel::bring_up(model.clone(), ring, ChannelConfig::default());
            let Ok(mut channel) = channel else {
                panic!("{} is not brought up", machine.name);
            };
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
