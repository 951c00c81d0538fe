//! Channels that are stopped while several batches have work on them.
#![allow(missing_docs)]

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use batch_copy::{
    Batch, CHUNK, Folio, Host, MapError, Mapper, Options, Outcome, OverlapCheck, Piece, Report,
    Segment, Wait, WaitFor, Wake,
};
use batch_copy_tests::puppet::{Act, Puppet, Puppets};
use ptdma::DmaAddr;

fn folios(first: u64, count: u64) -> Vec<Folio> {
    let at = |page: u64| DmaAddr::new(page << 12);
    (first..first + count)
        .map(|n| Folio::new(at(3 * n), at((1 << 20) + 5 * n), 4096))
        .collect()
}

fn run<W: Wait, M: Mapper, const N: usize>(
    channels: &Puppets<N>,
    folios: &[Folio],
    wait: W,
    mapper: M,
) -> (Report, Vec<Outcome>) {
    let mut outcomes = vec![Outcome::Dma; folios.len()];
    let report = Batch::<N>::new()
        .run(
            channels,
            folios,
            OverlapCheck::CallerKnows,
            &Options::default(),
            &mut Host::new(wait).with_mapper(mapper),
            &mut outcomes,
        )
        .expect("a sound batch");
    (report, outcomes)
}

/// Every destination that is reported as copied was copied, and how often each was.
fn verify(folios: &[Folio], outcomes: &[Outcome], copied: &[Segment]) {
    let arrived: HashSet<u64> = copied.iter().map(|copy| copy.dst.get()).collect();
    for (index, (folio, outcome)) in folios.iter().zip(outcomes).enumerate() {
        assert_eq!(
            outcome.is_copied(),
            arrived.contains(&folio.dst.get()),
            "folio {index} is reported as {outcome:?}"
        );
    }
}

/// Waits by calling `f`; each wait takes 1 ms.
struct Turn<'a, F>(&'a Cell<u64>, F);

impl<F: FnMut()> Wait for Turn<'_, F> {
    fn now_ns(&self) -> u64 {
        self.0.get()
    }
    fn wants_interrupts(&self) -> bool {
        false
    }
    fn wait(&mut self, _wait: &WaitFor) -> Wake {
        self.0.set(self.0.get() + 1_000_000);
        (self.1)();
        Wake::Poll
    }
}

/// Maps nothing, and calls `f` with the index of each folio.
struct Tell<F>(F);

impl<F: FnMut(usize)> Mapper for Tell<F> {
    fn map(&mut self, _channel: usize, piece: &Piece) -> Result<Segment, MapError> {
        (self.0)(piece.folio);
        Ok(Segment {
            src: piece.src,
            dst: piece.dst,
            len_bytes: piece.len_bytes,
        })
    }
}

/// One batch has two copies in the ring and sleeps. The channel is stopped between two chunks of
/// the other one: the copies of both batches are lost, and the first one must hear of its own,
/// however often the other one looks.
#[test]
fn a_stop_between_two_chunks_is_told_to_both_owners() {
    let puppet = Puppet::new(4 * CHUNK);
    let strings = &puppet.strings;
    let channels = Puppet::channels::<2>(std::slice::from_ref(&puppet));
    let (mine, others) = (folios(0, 2), folios(100, 2 * CHUNK as u64));
    let now_ns = Cell::new(0);
    let awake = Cell::new(false);
    let other = RefCell::new(None);
    let first = Turn(&now_ns, || {
        if awake.replace(true) {
            strings.borrow_mut().acts.extend([Act::Copy; 8]);
            return;
        }
        let stopped = Cell::new(false);
        let between = Tell(|folio| {
            // The first chunk was looked at up to the folio behind it.
            if folio == CHUNK + 1 && !stopped.replace(true) {
                strings.borrow_mut().faulted = true;
                channels.interrupt(0, 0);
            }
        });
        let turns = Cell::new(0);
        let second = Turn(&now_ns, || {
            turns.set(turns.get() + 1);
            // It looks a few times before anything moves.
            if turns.get() > 3 {
                strings.borrow_mut().acts.push_back(Act::Copy);
            }
        });
        *other.borrow_mut() = Some(run(&channels, &others, second, between));
    });
    let (report, outcomes) = run(&channels, &mine, first, batch_copy::Identity);
    let (other_report, other_outcomes) = other.into_inner().expect("it ran");
    let copied = &strings.borrow().copied.clone();
    verify(&mine, &outcomes, copied);
    verify(&others, &other_outcomes, copied);
    assert!(report.is_complete(), "{report:?}");
    assert!(other_report.is_complete(), "{other_report:?}");
    // It asked the engine, though somebody else had not heard of a loss.
    assert!(other_report.waits < 200, "{other_report:?}");
    // Nothing is copied that was not lost.
    assert_eq!(copied.len(), mine.len() + others.len());
    assert_eq!(other_report.moved_bytes, CHUNK as u64 * 4096);
    assert_eq!(channels.channel_stats(0).map(|stats| stats.stops), Some(1));
    channels.retire(0, 0);
    assert!(channels.take(0).is_ok());
}
