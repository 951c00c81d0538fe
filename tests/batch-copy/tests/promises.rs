//! What the documentation promises, one promise at a time, with lists, mappers, clocks and
//! engines that make it hard to keep.
#![allow(missing_docs)]

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

use batch_copy::{
    BadInput, Batch, Bounds, CHUNK, CPU_CHUNK_BYTES, Channels, CpuChannel, CpuCopier, CpuCopyError,
    CutRules, FailReason, Folio, FolioFn, FolioSource, Host, MapError, Mapper, Options, Outcome,
    OverlapCheck, Piece, Plan, Report, Rescue, Segment, ServiceState, SharedChannel, SkipReason,
    Survey, Wait, WaitFor, Wake,
};
use batch_copy_tests::puppet::{Act, Puppet, Puppets};
use ptdma::DmaAddr;

const UNMAPPED: Outcome = Outcome::NotAttempted(SkipReason::Unmapped);
const UNACCOUNTED: Outcome = Outcome::Failed(FailReason::Unaccounted);

/// Folios that are no neighbours.
fn apart(first: u64, count: u64, len_bytes: u64) -> Vec<Folio> {
    let at = |n: u64| DmaAddr::new(n * 4 * len_bytes);
    (first..first + count)
        .map(|n| Folio::new(at(n), DmaAddr::new(at(n).get() + (1 << 40)), len_bytes))
        .collect()
}

/// Folios that follow each other on both sides.
fn in_a_row(count: u64, len_bytes: u64) -> Vec<Folio> {
    (0..count)
        .map(|n| {
            let (src, dst) = (n * len_bytes, (1 << 40) + n * len_bytes);
            Folio::new(DmaAddr::new(src), DmaAddr::new(dst), len_bytes)
        })
        .collect()
}

/// Each wait takes 1 ms and calls `f`.
struct Turn<'a, F> {
    now_ns: &'a Cell<u64>,
    interrupts: bool,
    f: F,
}

fn turn<F: FnMut(&WaitFor)>(now_ns: &Cell<u64>, f: F) -> Turn<'_, F> {
    Turn {
        now_ns,
        interrupts: false,
        f,
    }
}

impl<F: FnMut(&WaitFor)> Wait for Turn<'_, F> {
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }
    fn wants_interrupts(&self) -> bool {
        self.interrupts
    }
    fn wait(&mut self, wait: &WaitFor) -> Wake {
        self.now_ns.set(self.now_ns.get() + 1_000_000);
        (self.f)(wait);
        Wake::Poll
    }
}

/// Maps nothing, unless `f` says otherwise.
struct Maps<F>(F);

impl<F: FnMut(usize, &Piece) -> Option<Result<Segment, MapError>>> Mapper for Maps<F> {
    fn map(&mut self, channel: usize, piece: &Piece) -> Result<Segment, MapError> {
        (self.0)(channel, piece).unwrap_or(Ok(Segment {
            src: piece.src,
            dst: piece.dst,
            len_bytes: piece.len_bytes,
        }))
    }
}

struct Cpu<F>(F);

impl<F: FnMut(&Piece)> CpuCopier for Cpu<F> {
    fn copy(&mut self, piece: &Piece) -> Result<(), CpuCopyError> {
        (self.0)(piece);
        Ok(())
    }
}

fn run<S, W, M, K, R, const N: usize>(
    channels: &Puppets<N>,
    source: &S,
    options: &Options,
    host: &mut Host<W, M, K, R>,
) -> (Report, Vec<Outcome>)
where
    S: FolioSource + ?Sized,
    W: Wait,
    M: Mapper,
    K: CpuCopier,
    R: Rescue,
{
    let count = source.folios().count();
    let mut outcomes = vec![Outcome::Dma; count];
    let check = OverlapCheck::CallerKnows;
    let report = Batch::<N>::new()
        .run(channels, source, check, options, host, &mut outcomes)
        .expect("a sound batch");
    (report, outcomes)
}

/// Engines copy whatever they are given.
fn willing(puppet: &Puppet) {
    puppet.strings.borrow_mut().acts.extend([Act::Copy; 1000]);
}

/// The rear of a folio is refused on the channel that it was cut for. Then the folio goes to
/// another channel as a whole, which could map all of it.
#[test]
fn what_was_refused_once_is_accounted_for_once() {
    for by_all in [false, true] {
        let puppets = [Puppet::new(8), Puppet::new(8)];
        let channels = Puppet::channels::<2>(&puppets);
        let folios = [apart(0, 1, 128 << 10), apart(8, 1, 64 << 10)].concat();
        let now_ns = Cell::new(0);
        let wait = turn(&now_ns, |_| willing(&puppets[0]));
        let mapper = Maps(|channel: usize, piece: &Piece| {
            let end = piece.offset_bytes + piece.len_bytes;
            let rear = piece.folio == 0 && end > 96 << 10;
            if channel == 1 && rear {
                // Both channels lose what they have, in the same turn.
                channels.retire(1, 0);
                puppets[0].strings.borrow_mut().faulted = true;
                channels.interrupt(0, 0);
            }
            (rear && (by_all || channel == 1)).then_some(Err(MapError))
        });
        let mut host = Host::new(wait).with_mapper(mapper);
        let mut options = Options::default();
        options.rules.min_part_bytes = 4096;
        options.rules.align_bytes = 64;
        let (report, outcomes) = run(&channels, &folios[..], &options, &mut host);
        assert_eq!(outcomes, [UNMAPPED, Outcome::Dma], "{report:?}");
        assert_eq!(report.skipped_bytes, 32 << 10, "{report:?}");
        assert_eq!((report.dma_bytes, report.unaccounted_bytes), (160 << 10, 0));
        assert!(!report.is_complete());
    }
}

/// Two batches, the clock of one of which began 100 s before that of the other.
#[test]
fn each_batch_may_have_its_own_clock() {
    let puppet = Puppet::new(8);
    let channels = Puppet::channels::<2>(std::slice::from_ref(&puppet));
    let (early, late) = (Cell::new(1_000_000_000), Cell::new(101_000_000_000));
    let (mine, others) = (apart(0, 2, 4096), apart(100, 2, 4096));
    let options = Options::default();
    let nested = Cell::new(false);
    let wait = turn(&early, |_| {
        if !nested.replace(true) {
            let turns = Cell::new(0);
            let wait = turn(&late, |_| {
                turns.set(turns.get() + 1);
                if turns.get() > 3 {
                    willing(&puppet);
                }
            });
            let (report, _) = run(&channels, &others[..], &options, &mut Host::new(wait));
            assert!(report.is_complete(), "{report:?}");
        }
    });
    let (report, _) = run(&channels, &mine[..], &options, &mut Host::new(wait));
    assert!(report.is_complete(), "{report:?}");
    let stats = channels.channel_stats(0).expect("it is there");
    assert_eq!((stats.hangs, stats.stops), (0, 0), "{stats:?}");
}

/// Looks are as far apart as an engine may stand still. The engine begins again with each
/// descriptor before it copies it, or with the first one for ever.
#[test]
fn an_engine_that_begins_again_moves_once() {
    for for_ever in [false, true] {
        let puppet = Puppet::new(8);
        let channels = Puppet::channels::<1>(std::slice::from_ref(&puppet));
        let folios = apart(0, 4, 4096);
        let now_ns = Cell::new(0);
        let turns = Cell::new(0);
        let wait = turn(&now_ns, |_| {
            turns.set(turns.get() + 1);
            let copies = !for_ever && turns.get() % 2 == 0;
            let act = if copies { Act::Copy } else { Act::BeginAgain };
            puppet.strings.borrow_mut().acts.push_back(act);
        });
        let mut options = Options::default();
        options.hang_ns = 1_000_000;
        let (report, _) = run(&channels, &folios[..], &options, &mut Host::new(wait));
        let stats = channels.channel_stats(0).expect("it is there");
        assert_eq!(report.is_complete(), !for_ever, "{report:?}");
        assert_eq!(stats.hangs != 0, for_ever, "{stats:?}");
        let gone = channels.service(0) != Some(ServiceState::Active);
        assert_eq!(gone, for_ever, "{report:?}");
    }
}

/// The list has fewer folios than at first.
#[test]
fn a_list_that_gets_shorter_ends_the_batch_and_claims_nothing() {
    let puppet = Puppet::new(4);
    let channels = Puppet::channels::<1>(std::slice::from_ref(&puppet));
    let folios = apart(0, 8, 4096);
    let shorter = Cell::new(false);
    let list = FolioFn(|index: usize| {
        let end = if shorter.get() { 5 } else { 8 };
        folios.get(index).filter(|_| index < end).copied()
    });
    let now_ns = Cell::new(0);
    let wait = turn(&now_ns, |_| {
        shorter.set(true);
        let acts = &mut puppet.strings.borrow_mut().acts;
        acts.extend([Act::Fail(19), Act::Copy, Act::Copy, Act::Copy, Act::Copy]);
    });
    let copied = Cell::new(0);
    let mut host = Host::new(wait).with_cpu(Cpu(|_: &Piece| copied.set(copied.get() + 1)));
    let mut options = Options::default();
    options.repair = true;
    let (report, outcomes) = run(&channels, &list, &options, &mut host);
    assert!(copied.get() != 0, "the CPU repaired what failed");
    assert_eq!(outcomes, [UNACCOUNTED; 8], "{report:?}");
    assert_eq!(report.unaccounted_bytes, 3 * 4096, "{report:?}");
}

/// At first the second folio is far away, and the channel cannot reach it; asked again, the mapper
/// says that all are one run.
#[test]
fn a_mapper_that_takes_a_refusal_back_is_not_believed() {
    let puppet = Puppet::new(16);
    willing(&puppet);
    let channels = Puppet::channels::<1>(std::slice::from_ref(&puppet));
    let folios = in_a_row(8, 4096);
    let asked = Cell::new(false);
    let mapper = Maps(|_: usize, piece: &Piece| {
        (piece.folio == 1 && !asked.replace(true)).then_some(Ok(Segment {
            src: DmaAddr::new(1 << 50),
            dst: piece.dst,
            len_bytes: piece.len_bytes,
        }))
    });
    let now_ns = Cell::new(0);
    let mut host = Host::new(turn(&now_ns, |_| ())).with_mapper(mapper);
    let (report, outcomes) = run(&channels, &folios[..], &Options::default(), &mut host);
    assert_eq!(puppet.strings.borrow().copied.len(), 1);
    assert_eq!(outcomes, [UNMAPPED; 8], "{report:?}");
    assert_eq!(report.unaccounted_bytes, 0, "{report:?}");
}

/// One descriptor of eight folios fails; asked again, the mapper refuses all but the first.
#[test]
fn a_second_walk_that_ends_early_is_not_believed() {
    let puppet = Puppet::new(16);
    let strings = &puppet.strings;
    strings.borrow_mut().acts.push_back(Act::Fail(7));
    let channels = Puppet::channels::<1>(std::slice::from_ref(&puppet));
    let folios = in_a_row(8, 4096);
    let mapper = Maps(|_: usize, piece: &Piece| {
        let failed = strings.try_borrow().is_ok_and(|s| s.acts.is_empty());
        (failed && piece.folio != 0).then_some(Err(MapError))
    });
    let now_ns = Cell::new(0);
    let mut host = Host::new(turn(&now_ns, |_| ())).with_mapper(mapper);
    let (report, outcomes) = run(&channels, &folios[..], &Options::default(), &mut host);
    assert_eq!(outcomes, [Outcome::Failed(FailReason::Engine(7)); 8]);
    assert_eq!(report.unaccounted_bytes, 0, "{report:?}");
}

#[test]
fn a_longest_copy_that_is_no_multiple_of_the_alignment_is_rounded() {
    let mut puppet = Puppet::new(16);
    puppet.limits.max_len_bytes = 50_001;
    puppet.limits.align_bytes = 4;
    willing(&puppet);
    let channels = Puppet::channels::<1>(std::slice::from_ref(&puppet));
    let now_ns = Cell::new(0);
    let folios = apart(0, 3, 300_000);
    let mut host = Host::new(turn(&now_ns, |_| ()));
    let (report, outcomes) = run(&channels, &folios[..], &Options::default(), &mut host);
    assert_eq!(outcomes, [Outcome::Dma; 3], "{report:?}");
}

/// Two MiB fail, and the CPU takes 0.1 ms for each of 32 chunks.
#[test]
fn repairs_end_with_the_deadline() {
    let puppet = Puppet::new(16);
    puppet.strings.borrow_mut().acts.push_back(Act::Fail(7));
    let channels = Puppet::channels::<1>(std::slice::from_ref(&puppet));
    let now_ns = Cell::new(0);
    let folios = apart(0, 1, 2 << 20);
    let chunks = Cell::new(0);
    let mut host = Host::new(turn(&now_ns, |_| ())).with_cpu(Cpu(|_: &Piece| {
        chunks.set(chunks.get() + 1);
        now_ns.set(now_ns.get() + 100_000);
    }));
    let mut options = Options::default();
    options.repair = true;
    options.budget_ns = 1_250_000;
    let (report, outcomes) = run(&channels, &folios[..], &options, &mut host);
    assert_eq!(outcomes, [Outcome::Failed(FailReason::Engine(7))]);
    assert!(
        report.late && (1..=13).contains(&chunks.get()),
        "{chunks:?}"
    );
    assert_eq!(report.cpu_bytes, chunks.get() * CPU_CHUNK_BYTES);
    assert_eq!(report.unaccounted_bytes, 0);
}

#[test]
fn cuts_inside_folios_are_aligned_from_their_beginning() {
    let mut state = 1_u64;
    let mut next = |bound: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % bound
    };
    let mut inside = 0;
    for _ in 0..3000 {
        let (mut src, mut dst) = (0, 1 << 40);
        let folios: Vec<Folio> = (0..1 + next(40))
            .map(|_| {
                let len = 1 + next(60_000);
                let apart = if next(5) == 0 { 64 } else { 0 };
                let folio = Folio::new(DmaAddr::new(src), DmaAddr::new(dst), len);
                src += len + apart;
                dst += len + apart;
                folio
            })
            .collect();
        let mut rules = CutRules::default();
        rules.min_part_bytes = 4096 + next(60_000);
        rules.align_bytes = 64;
        let mut bounds = Bounds::default();
        bounds.addr_limit = 1 << 48;
        bounds.align_bytes = 1;
        bounds.max_folios = 64;
        bounds.min_part_bytes = rules.min_part_bytes;
        bounds.parts_enough = 16;
        let survey = Survey::of(&folios[..], &bounds).expect("sound");
        let plan = Plan::<16>::new(&folios[..], &survey, survey.bytes, 16, &rules);
        for stretch in plan.stretches() {
            let mut start = 0;
            for folio in &folios {
                let end = start + folio.len_bytes;
                if start < stretch.end && stretch.end < end {
                    inside += 1;
                    let offset = stretch.end - start;
                    assert!(offset.is_multiple_of(64), "{offset} in {folio:?}");
                }
                start = end;
            }
        }
    }
    assert!(inside > 1000, "{inside}");
}

struct Quarantine<'a>(&'a RefCell<Vec<Piece>>);

impl Rescue for Quarantine<'_> {
    fn prove_stopped(&mut self, _channel: usize) -> bool {
        false
    }
    fn quarantined(&mut self, _channel: usize, piece: &Piece) {
        self.0.borrow_mut().push(*piece);
    }
}

/// The mapper panics at the second chunk, with the first one in the ring.
#[test]
fn a_panic_leaves_no_engine_writing_and_nothing_held() {
    for stops in [true, false] {
        let puppet = Puppet::new(4 * CHUNK);
        puppet.strings.borrow_mut().stops = stops;
        let channels = Puppet::channels::<1>(std::slice::from_ref(&puppet));
        let folios = apart(0, 2 * CHUNK as u64, 4096);
        let now_ns = Cell::new(0);
        let mapper = Maps(|_: usize, piece: &Piece| {
            assert!(piece.folio < CHUNK + 4, "as it has to be");
            None
        });
        let named = RefCell::default();
        let wait = turn(&now_ns, |_| ());
        let mut host = Host::new(wait)
            .with_mapper(mapper)
            .with_rescue(Quarantine(&named));
        let options = Options::default();
        let ended = catch_unwind(AssertUnwindSafe(|| {
            run(&channels, &folios[..], &options, &mut host)
        }));
        assert!(ended.is_err());
        if stops {
            assert!(puppet.strings.borrow().ring.is_empty());
            assert_eq!(channels.service(0), Some(ServiceState::Active));
            channels.retire(0, 0);
        } else {
            assert_eq!(puppet.strings.borrow().ring.len(), CHUNK);
            let named: Vec<usize> = named.borrow().iter().map(|piece| piece.folio).collect();
            assert_eq!(named, (0..CHUNK).collect::<Vec<_>>());
            channels.confirm_stopped(0);
        }
        assert!(channels.take(0).is_ok(), "nothing is held");
    }
}

/// What one failure costs does not depend on the length of the batch.
#[test]
fn failures_in_a_long_batch_cost_what_they_do_in_a_short_one() {
    const FOLIOS: u64 = 40_000;
    let folios = apart(0, FOLIOS, 4096);
    let looked_up_with = |fail_each: u64| {
        let puppet = Puppet::new(64);
        let channels = Puppet::channels::<1>(std::slice::from_ref(&puppet));
        let looked_up = Cell::new(0_u64);
        let list = FolioFn(|index: usize| {
            looked_up.set(looked_up.get() + 1);
            folios.get(index).copied()
        });
        let now_ns = Cell::new(0);
        let mut over = 0;
        let wait = turn(&now_ns, |_| {
            let acts = &mut puppet.strings.borrow_mut().acts;
            for _ in 0..32 {
                over += 1;
                acts.push_back(if over % fail_each == 0 {
                    Act::Fail(1)
                } else {
                    Act::Copy
                });
            }
        });
        let mut options = Options::default();
        options.budget_ns = u64::MAX;
        let (report, _) = run(&channels, &list, &options, &mut Host::new(wait));
        (report.errors, looked_up.get())
    };
    let (none, without) = looked_up_with(u64::MAX);
    // Few, so that what lies between them is long.
    let (errors, with) = looked_up_with(9000);
    assert_eq!((none, errors), (0, 4));
    let each = with.saturating_sub(without) / errors;
    assert!(each < 6000, "{each} folios looked up for each failure");
}

/// Between a chunk and its doorbell another batch rings, and nothing is left to be rung for.
#[test]
fn nobody_waits_for_an_interrupt_that_was_not_asked_for() {
    let puppet = Puppet::new(4 * CHUNK);
    let channels = Puppet::channels::<1>(std::slice::from_ref(&puppet));
    let (mine, others) = (apart(0, 40, 4096), apart(1000, 1, 4096));
    let now_ns = Cell::new(0);
    let other_ran = Cell::new(false);
    let mapper = Maps(|_: usize, piece: &Piece| {
        if piece.folio > CHUNK && !other_ran.replace(true) {
            let wait = Turn {
                now_ns: &now_ns,
                interrupts: true,
                f: |_: &WaitFor| willing(&puppet),
            };
            let options = Options::default();
            run(&channels, &others[..], &options, &mut Host::new(wait));
            puppet.strings.borrow_mut().acts.clear();
        }
        (piece.folio >= CHUNK).then_some(Err(MapError))
    });
    let announced = RefCell::new(Vec::new());
    let wait = Turn {
        now_ns: &now_ns,
        interrupts: true,
        f: |wait: &WaitFor| {
            announced.borrow_mut().push(wait.announced);
            willing(&puppet);
        },
    };
    let mut host = Host::new(wait).with_mapper(mapper);
    let (report, _) = run(&channels, &mine[..], &Options::default(), &mut host);
    assert!(other_ran.get());
    assert_eq!(report.dma_bytes, CHUNK as u64 * 4096, "{report:?}");
    assert!(!announced.borrow().contains(&true), "{announced:?}");
}

/// More failures than fit, of which their owner has not heard; then another batch's deadline.
#[test]
fn a_full_log_takes_no_healthy_channel_out() {
    let puppet = Puppet::new(16);
    let channels = Puppet::channels::<1>(std::slice::from_ref(&puppet));
    let (mine, others) = (apart(0, 10, 4096), apart(100, 1, 4096));
    let now_ns = Cell::new(0);
    let nested = Cell::new(false);
    let wait = turn(&now_ns, |_| {
        if nested.replace(true) {
            willing(&puppet);
            return;
        }
        puppet.strings.borrow_mut().acts.extend([Act::Fail(3); 10]);
        let mut options = Options::default();
        options.budget_ns = 50_000_000;
        options.grace_ns = 1_000_000;
        let wait = turn(&now_ns, |_| ());
        let (report, outcomes) = run(&channels, &others[..], &options, &mut Host::new(wait));
        assert_eq!(outcomes, [Outcome::NotAttempted(SkipReason::Deadline)]);
        assert!(report.late);
    });
    let options = Options::default();
    let (report, outcomes) = run(&channels, &mine[..], &options, &mut Host::new(wait));
    assert_eq!(channels.service(0), Some(ServiceState::Active));
    let failed = Outcome::Failed(FailReason::Engine(3));
    assert_eq!(outcomes, [failed; 10], "{report:?}");
}

/// The one channel to use is out of service, another one is not.
#[test]
fn the_cpu_gives_nothing_to_a_channel_that_is_not_there() {
    let puppets = [Puppet::new(8), Puppet::new(8)];
    let channels = Puppet::channels::<2>(&puppets);
    channels.retire(0, 0);
    let folios = apart(0, 16, 64 << 10);
    let now_ns = Cell::new(0);
    let mut host = Host::new(turn(&now_ns, |_| ())).with_cpu(Cpu(|_: &Piece| ()));
    let mut options = Options::default();
    options.only = Some(0);
    options.cpu_share_bytes = 1 << 20;
    let (report, outcomes) = run(&channels, &folios[..], &options, &mut host);
    assert_eq!(outcomes, [Outcome::Cpu; 16], "{report:?}");
}

/// Nothing moves, not even the clock, and the wait would spin until a time that never comes.
#[test]
fn a_clock_that_stands_still_ends_a_batch_soon() {
    struct Still<'a>(&'a Cell<u64>);
    impl Wait for Still<'_> {
        fn now_ns(&self) -> u64 {
            5
        }
        fn wants_interrupts(&self) -> bool {
            false
        }
        fn wait(&mut self, wait: &WaitFor) -> Wake {
            if wait.expected_ns > 5 {
                self.0.set(self.0.get() + 1);
            }
            Wake::Poll
        }
    }
    let puppet = Puppet::new(8);
    let channels = Puppet::channels::<1>(std::slice::from_ref(&puppet));
    let folios = apart(0, 2, 4096);
    let spins = Cell::new(0);
    let mut options = Options::default();
    options.engine_ns_per_mib = 1 << 20;
    let mut host = Host::new(Still(&spins));
    let (report, outcomes) = run(&channels, &folios[..], &options, &mut host);
    assert_eq!(outcomes, [Outcome::NotAttempted(SkipReason::Deadline); 2]);
    assert!(report.late && report.waits < 1 << 22, "{report:?}");
    assert!(spins.get() < 5, "{spins:?}");
}

#[test]
fn an_alignment_that_is_no_power_of_two_is_refused() {
    let puppet = Puppet::new(8);
    let channels = Puppet::channels::<1>(std::slice::from_ref(&puppet));
    let folios = apart(0, 1, 4096);
    let mut options = Options::default();
    options.rules.min_part_bytes = 4096;
    options.rules.align_bytes = 48;
    let now_ns = Cell::new(0);
    let error = Batch::<1>::new().run(
        &channels,
        &folios[..],
        OverlapCheck::CallerKnows,
        &options,
        &mut Host::new(turn(&now_ns, |_| ())),
        &mut [Outcome::Dma],
    );
    assert_eq!(error, Err(BadInput::OddAlignment { align_bytes: 48 }));
}

/// A list that asks the channels for something would wait for itself if a lock were held.
#[test]
fn the_list_is_asked_without_a_lock() {
    let puppet = Puppet::new(8);
    willing(&puppet);
    let channels = Puppet::channels::<1>(std::slice::from_ref(&puppet));
    let folios = apart(0, 20, 4096);
    let list = FolioFn(|index: usize| {
        assert_eq!(channels.service(0), Some(ServiceState::Active));
        folios.get(index).copied()
    });
    let now_ns = Cell::new(0);
    let mut host = Host::new(turn(&now_ns, |_| ()));
    let (report, _) = run(&channels, &list, &Options::default(), &mut host);
    assert!(report.is_complete(), "{report:?}");
}

/// Each piece is copied with the channel's lock held.
#[test]
fn the_cpu_as_a_channel_copies_short_pieces() {
    struct Pieces(Vec<u64>);
    impl CpuCopier for Pieces {
        fn copy(&mut self, piece: &Piece) -> Result<(), CpuCopyError> {
            self.0.push(piece.len_bytes);
            Ok(())
        }
    }
    type Channel = CpuChannel<Pieces, 64>;
    let mut channels = Channels::<Channel, spin::Mutex<SharedChannel<Channel>>, 1>::new();
    let port = SharedChannel::new(CpuChannel::new(Pieces(Vec::new()), None));
    assert!(channels.add(spin::Mutex::new(port)).is_ok());
    let folios = apart(0, 2, 2 << 20);
    let now_ns = Cell::new(0);
    let mut outcomes = [UNACCOUNTED; 2];
    let report = Batch::<1>::new()
        .run(
            &channels,
            &folios[..],
            OverlapCheck::CallerKnows,
            &Options::default(),
            &mut Host::new(turn(&now_ns, |_| ())),
            &mut outcomes,
        )
        .expect("a sound batch");
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.descriptors, (4 << 20) / CPU_CHUNK_BYTES);
}
