//! Who observes a queue hears of everything that goes wrong with it, and of nothing else.
#![allow(missing_docs)]

use std::cell::RefCell;
use std::rc::Rc;

use batch_copy::{CopyChannel, Observer, PtdmaQueue, Segment};
use batch_copy_tests::memory::{Layout, Memory};
use ptdma::{
    Channel, ChannelConfig, Clock, Cookie, ErrorHead, Fault, NotStopped, Progress, Terminated,
};
use ptdma_model::fault::StallFor;
use ptdma_model::{BusRing, BusSpace, Fault as Injected, FaultKind, Model, ModelConfig};

/// Descriptors of each test.
const COPIES: usize = 4;
/// Steps after which the engine has had time for all of them.
const STEPS: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Failed { nth: u64, code: u8 },
    Faulted(Fault),
    Terminated { dropped: u64 },
    NotStopped { left: u64 },
}

#[derive(Clone, Default)]
struct Notes(Rc<RefCell<Vec<Heard>>>);

impl Notes {
    fn take(&self) -> Vec<Heard> {
        self.0.take()
    }
    fn add(&self, heard: Heard) {
        self.0.borrow_mut().push(heard);
    }
}

impl Observer for Notes {
    fn noticed(&self, progress: &Progress) {
        let failure = progress.failure.expect("no test here makes an anomaly");
        self.add(Heard::Failed {
            nth: failure.cookie.number() - Cookie::default().number(),
            code: failure.code.raw(),
        });
    }
    fn faulted(&self, fault: Fault) {
        self.add(Heard::Faulted(fault));
    }
    fn terminated(&self, terminated: &Terminated) {
        self.add(Heard::Terminated {
            dropped: terminated.dropped,
        });
    }
    fn not_stopped(&self, not_stopped: &NotStopped) {
        self.add(Heard::NotStopped {
            left: not_stopped.count,
        });
    }
}

/// A clock of which each look takes a tick.
#[derive(Clone, Default)]
struct Looks(Rc<RefCell<u64>>);

impl Clock for Looks {
    fn now(&self) -> u64 {
        *self.0.borrow_mut() += 1;
        *self.0.borrow()
    }
}

type Queue = PtdmaQueue<Model, BusRing, Looks, Notes>;

/// Ticks that a queue gets to stop.
const STOP_TICKS: u64 = 50;

/// A queue with copies under way, the second of which meets `fault`.
fn under_way(fault: Option<FaultKind>) -> (Model, Queue, Looks, Notes) {
    let bus = BusSpace::new();
    let memory = Memory::new(&bus, &[4096; COPIES], Layout::Scattered, 3);
    let model = Model::new(ModelConfig::default(), bus.clone());
    let ring = BusRing::new(&bus, 8).expect("a ring fits on the bus");
    let mut config = ChannelConfig::default();
    config.error_head = ErrorHead::AtFailing;
    let Ok(channel) = Channel::bring_up(model.clone(), ring, config) else {
        panic!("bring-up")
    };
    let (clock, notes) = (Looks::default(), Notes::default());
    let mut queue = PtdmaQueue::new(channel, None)
        .with_clock(clock.clone(), STOP_TICKS)
        .with_observer(notes.clone());
    if let Some(kind) = fault {
        model.inject(Injected::at(1, kind));
    }
    for folio in &memory.folios {
        let copy = Segment {
            src: folio.src,
            dst: folio.dst,
            len_bytes: folio.len_bytes,
        };
        queue.prep(copy, false).expect("room in the ring");
    }
    queue.issue_pending(false);
    model.run(STEPS);
    (model, queue, clock, notes)
}

#[test]
fn nothing_is_heard_of_copies_that_arrive() {
    let (_model, mut queue, _, notes) = under_way(None);
    let end = queue.next_cookie();
    assert_eq!(queue.poll(0).done_before, end);
    assert_eq!(notes.take(), []);
}

#[test]
fn a_failed_descriptor_is_heard_of_once() {
    let (model, mut queue, _, notes) = under_way(Some(FaultKind::Error { code: 19 }));
    let end = queue.next_cookie();
    let mut looks = 0;
    while queue.poll(0).done_before != end {
        model.run(STEPS);
        looks += 1;
        assert!(looks < 100, "the queue does not go on");
    }
    assert_eq!(notes.take(), [Heard::Failed { nth: 1, code: 19 }]);
}

#[test]
fn a_function_that_is_gone_is_heard_of() {
    let (_model, mut queue, _, notes) = under_way(Some(FaultKind::AllOnes { reads: None }));
    queue.poll(0);
    assert_eq!(notes.take(), [Heard::Faulted(Fault::DeviceGone)]);
    assert!(!queue.terminate(0).proven);
    assert!(matches!(
        notes.take()[..],
        [Heard::NotStopped { left: 1.. }]
    ));
}

#[test]
fn what_is_dropped_is_heard_of() {
    let stall = FaultKind::Stall {
        duration: StallFor::Ever,
        haltable: true,
    };
    let (_model, mut queue, _, notes) = under_way(Some(stall));
    assert!(queue.terminate(0).proven);
    assert_eq!(
        notes.take(),
        [Heard::Terminated {
            dropped: COPIES as u64 - 1
        }]
    );
}

#[test]
fn an_engine_that_does_not_stop_is_given_up_by_the_clock() {
    let stall = FaultKind::Stall {
        duration: StallFor::Ever,
        haltable: false,
    };
    let (_model, mut queue, clock, notes) = under_way(Some(stall));
    let before = clock.now();
    assert!(!queue.terminate(0).proven);
    // Nobody has looked since the first one arrived, and now it is not known.
    let left = COPIES as u64;
    assert_eq!(notes.take(), [Heard::NotStopped { left }]);
    let took = clock.now() - before;
    assert!((STOP_TICKS..STOP_TICKS + 5).contains(&took), "{took}");
}
