//! Batches on an engine that is no PTDMA: descriptors end in any order, several channels belong to
//! one function, and a stop takes time.
#![allow(missing_docs)]

use std::cell::Cell;
use std::collections::BTreeMap;

use batch_copy::{
    Batch, Channels, Host, MapError, Mapper, Options, Outcome, OverlapCheck, Piece, Report, Rescue,
    Segment, SharedChannel, Wait, WaitFor, Wake,
};
use batch_copy_tests::memory::{Layout, Memory};
use batch_copy_tests::unordered::{Function, Unordered};
use proptest::prelude::*;
use ptdma_model::BusSpace;

/// Queues of each function.
const QUEUES: usize = 2;
/// Functions of the machine.
const FUNCTIONS: usize = 2;
/// Channels of the machine.
const CHANNELS: usize = QUEUES * FUNCTIONS;
/// Steps in which every engine does all that it will ever do.
const FOR_EVER: usize = 1000;

type Lock = spin::Mutex<SharedChannel<Unordered>>;

/// Time passes while the engines work.
struct Stepping<'a> {
    functions: &'a [Function],
    now_ns: Cell<u64>,
}

impl Wait for Stepping<'_> {
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn wants_interrupts(&self) -> bool {
        false
    }

    fn wait(&mut self, _wait: &WaitFor) -> Wake {
        self.functions.iter().for_each(Function::step);
        self.now_ns.set(self.now_ns.get() + 1000);
        Wake::Poll
    }
}

/// Each function has a domain of addresses: a part is mapped once for all of its channels.
#[derive(Default)]
struct Domains {
    mapped: BTreeMap<(usize, u64), usize>,
    /// Parts that were mapped already when another channel of the function asked.
    shared: usize,
    /// Parts that the domain of another function has.
    elsewhere: usize,
    /// The channel that asked first.
    asked: BTreeMap<(usize, u64), usize>,
}

impl Mapper for Domains {
    fn map(&mut self, channel: usize, piece: &Piece) -> Result<Segment, MapError> {
        let (key, function) = ((piece.folio, piece.offset_bytes), channel / QUEUES);
        if *self.mapped.entry(key).or_insert(function) != function {
            self.elsewhere += 1;
            return Err(MapError);
        }
        self.shared += usize::from(*self.asked.entry(key).or_insert(channel) != channel);
        Ok(Segment {
            src: piece.src,
            dst: piece.dst,
            len_bytes: piece.len_bytes,
        })
    }
}

/// Sleeps until the queue stands, if it can be made to.
struct Drain<'a> {
    functions: &'a [Function],
    can: bool,
    asked: usize,
    quarantined_bytes: u64,
}

impl Rescue for Drain<'_> {
    fn prove_stopped(&mut self, channel: usize) -> bool {
        self.asked += 1;
        if self.can {
            self.functions[channel / QUEUES].drain(channel % QUEUES);
        }
        self.can
    }

    fn quarantined(&mut self, _channel: usize, piece: &Piece) {
        self.quarantined_bytes += piece.len_bytes;
    }
}

struct Machine {
    bus: BusSpace,
    functions: Vec<Function>,
    channels: Channels<Unordered, Lock, CHANNELS>,
}

impl Machine {
    fn new(slots: usize, seed: u64) -> Self {
        let bus = BusSpace::new();
        let functions: Vec<Function> = (0..FUNCTIONS)
            .map(|number| Function::new(&bus, QUEUES, seed + number as u64))
            .collect();
        let mut channels = Channels::new();
        for (number, function) in functions.iter().enumerate() {
            for queue in 0..QUEUES {
                let channel = function.channel(queue, slots, Some(number as u16));
                let lock = spin::Mutex::new(SharedChannel::new(channel));
                assert!(channels.add(lock).is_ok(), "room for {CHANNELS}");
            }
        }
        Self {
            bus,
            functions,
            channels,
        }
    }

    fn run<'a>(
        &'a self,
        memory: &Memory,
        options: &Options,
        can_drain: bool,
    ) -> (Report, Vec<Outcome>, Domains, Drain<'a>) {
        let wait = Stepping {
            functions: &self.functions,
            now_ns: Cell::new(0),
        };
        let rescue = Drain {
            functions: &self.functions,
            can: can_drain,
            asked: 0,
            quarantined_bytes: 0,
        };
        let mut host = Host::new(wait)
            .with_mapper(Domains::default())
            .with_rescue(rescue);
        let mut outcomes = vec![Outcome::Dma; memory.folios.len()];
        let report = Batch::<CHANNELS>::new()
            .run(
                &self.channels,
                &memory.folios[..],
                OverlapCheck::CallerKnows,
                options,
                &mut host,
                &mut outcomes,
            )
            .expect("a sound batch");
        assert_eq!(report.unaccounted_bytes, 0, "{report:?}");
        memory.verify(&outcomes).expect("as reported");
        (report, outcomes, host.mapper, host.rescue)
    }

    fn step_for_ever(&self) {
        for _ in 0..FOR_EVER {
            self.functions.iter().for_each(Function::step);
        }
    }

    fn failed(&self) -> u64 {
        self.functions.iter().map(Function::failed).sum()
    }

    fn overtakings(&self) -> u64 {
        self.functions.iter().map(Function::overtakings).sum()
    }
}

#[test]
fn every_folio_arrives_though_descriptors_overtake_each_other() {
    let machine = Machine::new(32, 1);
    let memory = Memory::new(&machine.bus, &[4096; 300], Layout::Scattered, 3);
    let (report, outcomes, ..) = machine.run(&memory, &Options::default(), true);
    assert_eq!(outcomes, [Outcome::Dma; 300], "{report:?}");
    assert_eq!(report.channels, CHANNELS);
    assert!(machine.overtakings() > 100, "the test is about these");
}

/// A queue hangs. Its function's other queue goes on with the same mappings; another function could
/// not.
#[test]
fn a_sibling_takes_over_what_is_mapped_already() {
    let machine = Machine::new(32, 2);
    let memory = Memory::new(&machine.bus, &[4096; 200], Layout::Scattered, 4);
    machine.functions[0].hang(0, 3);
    let mut options = Options::default();
    options.hang_ns = 50_000;
    let (report, outcomes, domains, _) = machine.run(&memory, &options, true);
    assert!(domains.shared > 0, "{report:?}");
    assert!(report.moved_bytes > 0, "{report:?}");
    let left = outcomes.iter().filter(|o| **o != Outcome::Dma).count();
    assert!(left <= domains.elsewhere, "{left} left: {report:?}");
}

/// The engine ends what it has begun after it was told to stop. Memory goes back to its owner only
/// when that is over: a driver sleeps for it, with no lock held.
#[test]
fn a_stop_that_takes_time_is_waited_for() {
    for can_drain in [false, true] {
        let machine = Machine::new(32, 5);
        machine.functions.iter().for_each(Function::stop_slowly);
        let memory = Memory::new(&machine.bus, &[4096; 100], Layout::Scattered, 5);
        machine.functions[1].hang(1, 2);
        let mut options = Options::default();
        options.hang_ns = 50_000;
        let (report, outcomes, _, rescue) = machine.run(&memory, &options, can_drain);
        assert!(rescue.asked > 0, "the test is about this: {report:?}");
        let quarantined: u64 = memory
            .folios
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| {
                **outcome == Outcome::Failed(batch_copy::FailReason::Quarantined)
            })
            .map(|(folio, _)| folio.len_bytes)
            .sum();
        assert_eq!(quarantined, rescue.quarantined_bytes);
        assert_eq!(quarantined != 0, !can_drain, "{report:?}");
        let before = memory.snapshot();
        machine.step_for_ever();
        // What may still be written was said to be.
        assert_eq!(memory.snapshot() == before, can_drain);
        memory.verify(&outcomes).expect("still as reported");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn nothing_is_lost_whatever_ends_when(
        lens in prop::collection::vec(prop_oneof![4 => Just(4096_usize), 1 => 1_usize..200_000], 1..120),
        layout in prop::sample::select(vec![Layout::Scattered, Layout::Contiguous, Layout::Runs(5)]),
        slots in prop::sample::select(vec![2_usize, 7, 64]),
        seed in any::<u64>(),
        hang in prop::option::of((0..CHANNELS, 0_u64..20)),
        slow_stop in any::<bool>(),
        can_drain in any::<bool>(),
        fail_every in prop::sample::select(vec![0_u64, 0, 2, 7, 50]),
    ) {
        let machine = Machine::new(slots, seed >> 1);
        let memory = Memory::new(&machine.bus, &lens, layout, seed);
        machine.functions.iter().for_each(|function| function.fail_every(fail_every));
        if slow_stop {
            machine.functions.iter().for_each(Function::stop_slowly);
        }
        if let Some((channel, more)) = hang {
            machine.functions[channel / QUEUES].hang(channel % QUEUES, more);
        }
        let mut options = Options::default();
        options.hang_ns = 50_000;
        let (report, outcomes, _, rescue) = machine.run(&memory, &options, can_drain);
        machine.step_for_ever();
        prop_assert!(memory.verify(&outcomes).is_ok());
        prop_assert!(hang.is_some() || fail_every != 0 || report.is_complete(), "{:?}", report);
        // A channel that fails too often is stopped, and some failures are dropped with it.
        prop_assert!(report.errors <= machine.failed(), "{:?}", report);
        prop_assert_eq!(report.quarantined_bytes, rescue.quarantined_bytes);
    }
}
