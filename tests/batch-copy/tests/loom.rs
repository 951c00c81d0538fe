//! Two batches, an interrupt handler and an owner that takes the channel away, in every order
//! that matters: no completion, failure or loss is missed or taken twice, and nothing is left
//! behind. The batches run the real executor on locks that loom watches.
#![allow(missing_docs)]

use std::collections::VecDeque;

use batch_copy::{
    Batch, ChannelLimits, Channels, CopyChannel, CopyFailure, CopyProgress, FailReason, Folio,
    Health, Host, Options, Outcome, OverlapCheck, PrepError, Segment, SharedChannel, Stopped, Wait,
    WaitFor, Wake,
};
use loom::sync::{Arc, Mutex};
use loom::thread;
use ptdma::{Cookie, DmaAddr, Lock};

/// Source addresses at and over this fail.
const BAD: u64 = 1 << 40;
const BAD_CODE: u8 = 19;

/// Finishes one descriptor with every look.
struct Scripted {
    ring: VecDeque<Segment>,
    issued: usize,
    done: u64,
    slots: usize,
}

impl Scripted {
    fn new(slots: usize) -> Self {
        Self {
            ring: VecDeque::new(),
            issued: 0,
            done: 0,
            slots,
        }
    }
}

impl CopyChannel for Scripted {
    fn limits(&self) -> ChannelLimits {
        ChannelLimits::new(1 << 20, self.slots)
    }
    fn next_cookie(&self) -> Cookie {
        Cookie::new(self.done + self.ring.len() as u64)
    }
    fn free_slots(&self) -> usize {
        self.slots - self.ring.len()
    }
    fn prep(&mut self, copy: Segment, _interrupt: bool) -> Result<Cookie, PrepError> {
        if self.free_slots() == 0 {
            return Err(PrepError::Full);
        }
        let cookie = self.next_cookie();
        self.ring.push_back(copy);
        Ok(cookie)
    }
    fn issue_pending(&mut self, _interrupt: bool) {
        self.issued = self.ring.len();
    }
    fn poll(&mut self, _now_ns: u64) -> CopyProgress {
        let mut failure = None;
        if self.issued > 0
            && let Some(copy) = self.ring.pop_front()
        {
            self.issued -= 1;
            if copy.src.get() >= BAD {
                failure = Some(CopyFailure {
                    cookie: Cookie::new(self.done),
                    code: BAD_CODE,
                });
            }
            self.done += 1;
        }
        CopyProgress {
            done_before: Cookie::new(self.done),
            failure,
            begun_again: false,
            health: Health::Alive,
        }
    }
    fn terminate(&mut self, _now_ns: u64) -> Stopped {
        let done_before = Cookie::new(self.done);
        self.done += self.ring.len() as u64;
        self.ring.clear();
        self.issued = 0;
        Stopped {
            done_before,
            proven: true,
            health: Health::Alive,
        }
    }
}

/// loom's mutex, as the lock of a channel.
struct Watched<T>(Mutex<T>);

impl<T> Lock<T> for Watched<T> {
    fn with<U>(&self, f: impl FnOnce(&mut T) -> U) -> U {
        f(&mut self.0.lock().unwrap())
    }
}

type Shared = Channels<Scripted, Watched<SharedChannel<Scripted>>, 2>;

/// Lets others run, then asks the engine.
struct Yield;

impl Wait for Yield {
    fn now_ns(&self) -> u64 {
        0
    }
    fn wants_interrupts(&self) -> bool {
        false
    }
    fn wait(&mut self, _wait: &WaitFor) -> Wake {
        thread::yield_now();
        Wake::Poll
    }
}

fn channels(count: usize, slots: usize) -> Arc<Shared> {
    let mut channels = Shared::new();
    for _ in 0..count {
        let port = SharedChannel::new(Scripted::new(slots));
        assert!(channels.add(Watched(Mutex::new(port))).is_ok());
    }
    Arc::new(channels)
}

fn batch(channels: &Shared, folios: &[Folio]) -> Vec<Outcome> {
    let mut outcomes = vec![Outcome::Dma; folios.len()];
    let report = Batch::<2>::new()
        .run(
            channels,
            folios,
            OverlapCheck::CallerKnows,
            &Options::default(),
            &mut Host::new(Yield),
            &mut outcomes,
        )
        .unwrap();
    assert_eq!(report.unaccounted_bytes, 0);
    outcomes
}

fn folios(first: u64, count: u64, bad: Option<u64>) -> Vec<Folio> {
    (0..count)
        .map(|n| {
            let at = 0x10_0000 * (first + 2 * n);
            let src = if bad == Some(n) { BAD + at } else { at };
            Folio::new(DmaAddr::new(src), DmaAddr::new(at + 0x8_0000_0000), 4096)
        })
        .collect()
}

fn explore(f: impl Fn() + Sync + Send + 'static) {
    // Every interleaving: no bound on forced switches.
    let builder = loom::model::Builder::new();
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&runs);
    builder.check(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        f();
    });
    let runs = runs.load(std::sync::atomic::Ordering::Relaxed);
    println!("{runs} interleavings");
    assert!(runs > 20, "only {runs} interleavings: loom sees no choice");
}

#[test]
fn two_batches_share_a_channel_and_each_gets_its_own_failure() {
    explore(|| {
        let channels = channels(1, 4);
        let other = Arc::clone(&channels);
        let there = thread::spawn(move || batch(&other, &folios(1, 2, Some(1))));
        let here = batch(&channels, &folios(100, 2, Some(0)));
        let there = there.join().unwrap();
        let failed = Outcome::Failed(FailReason::Engine(BAD_CODE));
        assert_eq!(here, [failed, Outcome::Dma]);
        assert_eq!(there, [Outcome::Dma, failed]);
        // Nothing is left behind: the channel can be taken away at once.
        channels.retire(0, 0);
        assert!(channels.take(0).is_ok());
    });
}

#[test]
fn a_ring_too_small_for_both_serves_both() {
    explore(|| {
        let channels = channels(1, 1);
        let other = Arc::clone(&channels);
        let there = thread::spawn(move || batch(&other, &folios(1, 2, None)));
        assert_eq!(batch(&channels, &folios(100, 1, None)), [Outcome::Dma]);
        assert_eq!(there.join().unwrap(), [Outcome::Dma; 2]);
        assert_eq!(channels.channel_stats(0).unwrap().completed, 3);
    });
}

#[test]
fn an_interrupt_that_finds_a_failure_leaves_it_to_its_owner() {
    explore(|| {
        let channels = channels(1, 4);
        let handler = Arc::clone(&channels);
        let interrupts = thread::spawn(move || {
            handler.interrupt(0, 0);
            handler.interrupt(0, 0);
        });
        let failed = Outcome::Failed(FailReason::Engine(BAD_CODE));
        assert_eq!(
            batch(&channels, &folios(1, 2, Some(0))),
            [failed, Outcome::Dma]
        );
        interrupts.join().unwrap();
        channels.retire(0, 0);
        assert!(channels.take(0).is_ok());
    });
}

#[test]
fn a_channel_that_is_taken_away_loses_nothing() {
    explore(|| {
        let channels = channels(2, 2);
        let owner = Arc::clone(&channels);
        let remove = thread::spawn(move || assert!(owner.retire(0, 0)));
        // The other channel takes over, whatever the first one was at.
        assert_eq!(batch(&channels, &folios(1, 8, None)), [Outcome::Dma; 8]);
        remove.join().unwrap();
        assert!(channels.take(0).is_ok());
    });
}
