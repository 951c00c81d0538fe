//! Lists of copies over shared channels: spread, refilled, shared between threads, with faults.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ptdma::{
    Channel, ChannelConfig, ChannelLimits, Channels, Clock, Cookie, CopyChannel, CopyProgress,
    Deadline, DmaAddr, EntryResult, ErrorHead, ListCopy, ListError, ListStatus, Notify, PrepError,
    Prepared, PtdmaQueue, RequestError, Restart, Segment, ServiceState, Signalling, Stopped,
};
use ptdma_model::fault::StallFor;
use ptdma_model::{
    Access, BusBuffer, BusRing, BusSpace, EngineThread, Fault as Injected, FaultKind, Model,
    ModelConfig, Trigger,
};

const PAGE: usize = 4096;

/// How long an engine may stand still, in microseconds: far more than any of these takes, on a
/// machine however busy.
const PATIENT: u64 = 10_000_000;

/// How often to poll where a clock stands still.
const POLLS: u32 = 100_000;

struct RealTime(Instant);

impl Clock for RealTime {
    fn now(&self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }
}

fn clock() -> RealTime {
    RealTime(Instant::now())
}

/// A queue that may behave in ways of its own.
struct Queue {
    inner: PtdmaQueue<Model, BusRing>,
    habit: Habit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Habit {
    Good,
    /// Refuses every copy to such an address.
    Refuses(DmaAddr),
    /// Takes nothing at all.
    Broken,
    /// Counts a byte too many.
    Miscounts,
    /// Accepts more than it was offered, by its own account.
    Boasts,
}

impl CopyChannel for Queue {
    fn limits(&self) -> ChannelLimits {
        self.inner.limits()
    }
    fn next_cookie(&self) -> Cookie {
        self.inner.next_cookie()
    }
    fn free_slots(&self) -> usize {
        self.inner.free_slots()
    }
    fn prep(&mut self, copy: Segment, interrupt: bool) -> Result<Cookie, PrepError> {
        match self.habit {
            Habit::Refuses(dst) if dst == copy.dst => Err(PrepError::Rejected),
            Habit::Broken => Err(PrepError::Faulted),
            _ => self.inner.prep(copy, interrupt),
        }
    }
    fn prep_all(&mut self, copies: impl Iterator<Item = Segment>, mark: Option<usize>) -> Prepared {
        let mut prepared = Prepared::default();
        for copy in copies {
            match self.prep(copy, mark == Some(prepared.count)) {
                Ok(cookie) => {
                    prepared.first.get_or_insert(cookie);
                    prepared.count += 1;
                    prepared.bytes += copy.len_bytes;
                }
                Err(error) => {
                    prepared.error = Some(error);
                    break;
                }
            }
        }
        match self.habit {
            Habit::Miscounts => prepared.bytes += 1,
            Habit::Boasts => prepared.count += 1,
            _ => {}
        }
        prepared
    }
    fn issue_pending(&mut self, interrupt: bool) {
        self.inner.issue_pending(interrupt);
    }
    fn poll(&mut self, now_ns: u64) -> CopyProgress {
        self.inner.poll(now_ns)
    }
    fn interrupt(&mut self, now_ns: u64) -> CopyProgress {
        self.inner.interrupt(now_ns)
    }
    fn overdue(&mut self, now_ns: u64) -> CopyProgress {
        self.inner.overdue(now_ns)
    }
    fn terminate(&mut self, now_ns: u64) -> Stopped {
        self.inner.terminate(now_ns)
    }
}

struct Bed {
    bus: BusSpace,
    models: Vec<Model>,
    channels: Channels<Queue>,
}

fn bed(channels: usize, entries: usize, config: ModelConfig, signalling: Signalling) -> Bed {
    habitual(&vec![Habit::Good; channels], entries, config, signalling)
}

fn habitual(habits: &[Habit], entries: usize, config: ModelConfig, signalling: Signalling) -> Bed {
    let bus = BusSpace::new();
    let mut models = Vec::new();
    let mut channels = Channels::new();
    for &habit in habits {
        let model = Model::new(config, bus.clone());
        let ring = BusRing::new(&bus, entries).unwrap();
        let mut config = ChannelConfig::default();
        config.signalling = signalling;
        // Faults are counted by descriptors, and what is run again counts too.
        config.error_head = ErrorHead::AtFailing;
        config.restart = Restart::ByRun;
        let Ok(channel) = Channel::bring_up(model.clone(), ring, config) else {
            panic!("not brought up")
        };
        let _ = model.take_counters();
        // An engine that hangs for good is given up after some polls.
        let inner = PtdmaQueue::new(channel, None).with_stop_polls(100);
        assert!(channels.add_channel(Queue { inner, habit }).is_ok());
        models.push(model);
    }
    Bed {
        bus,
        models,
        channels,
    }
}

fn polled(channels: usize) -> Bed {
    bed(channels, 64, stepping(), Signalling::Polled)
}

fn stepping() -> ModelConfig {
    ModelConfig {
        auto_step: 1,
        ..ModelConfig::default()
    }
}

/// Buffers of these lengths, sources filled, and the list that copies them.
struct Job {
    src: Vec<BusBuffer>,
    dst: Vec<BusBuffer>,
    list: Vec<Segment>,
    results: Vec<EntryResult>,
}

fn job(bus: &BusSpace, lens: &[usize], seed: u8) -> Job {
    let mut job = Job {
        src: Vec::new(),
        dst: Vec::new(),
        list: Vec::new(),
        // Of an earlier list: none of these may be left.
        results: vec![EntryResult::Copied; lens.len()],
    };
    for (n, len) in lens.iter().enumerate() {
        let src = bus.alloc(*len, 4096, Access::ReadWrite).unwrap();
        let dst = bus.alloc(*len, 4096, Access::ReadWrite).unwrap();
        let fill: Vec<u8> = (0..*len)
            .map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ n).wrapping_add(usize::from(seed)) as u8 | 1)
            .collect();
        src.write(0, &fill).unwrap();
        job.list.push(Segment {
            src: src.addr(),
            dst: dst.addr(),
            len_bytes: *len as u64,
        });
        job.src.push(src);
        job.dst.push(dst);
    }
    job
}

type Running<'a> = ListCopy<'a, Queue>;

impl Job {
    fn start<'a>(&'a mut self, bed: &'a Bed, notify: Notify, hang: u64) -> Running<'a> {
        ListCopy::start(
            &bed.channels,
            &self.list,
            &mut self.results,
            notify,
            hang,
            0,
        )
        .unwrap()
    }

    fn run(&mut self, bed: &Bed) {
        let clock = clock();
        let mut copy = self.start(bed, Notify::Silent, PATIENT);
        copy.wait(&clock, Deadline::after(&clock, PATIENT), || {})
            .unwrap();
    }

    /// Every entry has a result, and the bytes of those that were copied are there. Returns how
    /// many were not.
    fn check(&self) -> usize {
        for (n, result) in self.results.iter().enumerate() {
            assert!(!matches!(result, EntryResult::Pending(_)), "entry {n}");
            if result.is_copied() {
                assert_eq!(self.src[n].to_vec(), self.dst[n].to_vec(), "entry {n}");
            }
        }
        self.results.iter().filter(|r| !r.is_copied()).count()
    }

    fn count(&self, result: EntryResult) -> usize {
        self.results.iter().filter(|r| **r == result).count()
    }
}

const FOR_EVER: FaultKind = FaultKind::Stall {
    duration: StallFor::Ever,
    haltable: true,
};

#[test]
fn one_huge_page_is_shared_by_sixteen_channels() {
    let bed = polled(16);
    let mut job = job(&bed.bus, &[2 << 20], 1);
    job.run(&bed);
    assert_eq!(job.check(), 0);
    for (number, model) in bed.models.iter().enumerate() {
        let counters = model.counters();
        assert_eq!(counters.bytes, (2 << 20) / 16);
        assert_eq!(counters.doorbells, 1);
        assert_eq!(bed.channels.channel_stats(number).unwrap().submitted, 1);
        assert_eq!(bed.channels.load_bytes(number), 0);
    }
}

#[test]
fn every_number_of_channels_copies_every_shape() {
    for channels in [1, 2, 3, 7, 16] {
        let bed = polled(channels);
        for (seed, lens) in [
            &[1][..],
            &[PAGE; 5],
            &[PAGE; 61],
            &[3, PAGE, 65_536, 17, 1 << 20, 2 * PAGE + 1],
            &[5 << 20],
        ]
        .iter()
        .enumerate()
        {
            let mut job = job(&bed.bus, lens, seed as u8);
            job.run(&bed);
            assert_eq!(job.check(), 0, "{channels} channels, {lens:?}");
        }
    }
}

/// Rings are refilled when half of them is free: few doorbells, whatever the length.
#[test]
fn a_list_may_be_longer_than_the_rings() {
    let bed = bed(2, 32, stepping(), Signalling::Polled);
    let mut job = job(&bed.bus, &[512; 1000], 1);
    job.run(&bed);
    assert_eq!(job.check(), 0);
    for model in &bed.models {
        let counters = model.counters();
        assert!(counters.bytes >= 62 * 4096, "{counters:?}");
        assert!(counters.doorbells < 40, "{counters:?}");
    }
}

#[test]
fn nothing_is_half_submitted() {
    let bed = polled(4);
    let good = Segment {
        src: DmaAddr::new(0x10_0000),
        dst: DmaAddr::new(0x20_0000),
        len_bytes: 4096,
    };
    let start = |list: &[Segment], count: usize| {
        let mut results = vec![EntryResult::Rejected; count];
        let copy = ListCopy::start(
            &bed.channels,
            list,
            &mut results,
            Notify::Silent,
            PATIENT,
            0,
        );
        let error = copy.map(drop).unwrap_err();
        assert_eq!(results, vec![EntryResult::Rejected; count]);
        error
    };
    let bad = |change: fn(&mut Segment)| {
        let mut entry = good;
        change(&mut entry);
        match start(&[good, good, entry], 3) {
            ListError::Entry { index: 2, error } => error,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(bad(|e| e.len_bytes = 0), RequestError::Source(_)));
    assert!(matches!(
        bad(|e| e.src = DmaAddr::new(1 << 48)),
        RequestError::Source(_)
    ));
    assert!(matches!(
        bad(|e| e.dst = DmaAddr::new((1 << 48) - 1)),
        RequestError::Destination(_)
    ));
    assert!(matches!(
        bad(|e| e.len_bytes = u64::MAX),
        RequestError::Source(_)
    ));
    assert!(matches!(
        bad(|e| e.dst = DmaAddr::new(0x10_0800)),
        RequestError::Overlap { .. }
    ));
    assert_eq!(start(&[], 0), ListError::Empty);
    assert_eq!(
        start(&[good, good], 1),
        ListError::Results {
            entries: 2,
            results: 1
        }
    );
    for channel in 0..4 {
        assert!(bed.channels.retire(channel, 0));
    }
    let _: Vec<_> = bed.models.iter().map(Model::take_counters).collect();
    assert_eq!(start(&[good], 1), ListError::NoChannel);
    for model in &bed.models {
        assert_eq!(model.counters().mmio(), 0);
    }
}

#[test]
fn failures_find_their_list_and_their_entries() {
    let bed = polled(4);
    for model in &bed.models {
        model.inject(Injected::new(
            Trigger::Every { n: 5, offset: 2 },
            FaultKind::PartialWrite {
                len_bytes: 100,
                code: 39,
            },
        ));
    }
    // Several lists in flight at once, polled in turns.
    let mut jobs: Vec<Job> = (0..3).map(|n| job(&bed.bus, &[PAGE; 60], n)).collect();
    let mut copies: Vec<Running<'_>> = jobs
        .iter_mut()
        .map(|job| job.start(&bed, Notify::Silent, PATIENT))
        .collect();
    let mut done = 0;
    for _ in 0..POLLS {
        done = 0;
        for copy in &mut copies {
            done += usize::from(copy.poll(1) == ListStatus::Done);
        }
        if done == 3 {
            break;
        }
    }
    assert_eq!(done, 3);
    assert!(copies.iter().all(|copy| copy.unfinished().count() == 0));
    drop(copies);
    let mut total = 0;
    for job in &jobs {
        let failed = job.check();
        assert_eq!(job.count(EntryResult::Failed(39)), failed);
        total += failed as u64;
    }
    let errors: u64 = bed.models.iter().map(|m| m.counters().errors).sum();
    assert_eq!(total, errors);
    assert!(total >= 36);
}

/// An entry that is cut into pieces is copied if all of them are, and else has the worst result.
#[test]
fn one_failed_piece_fails_the_entry() {
    let bed = polled(4);
    bed.models[2].inject(Injected::at(0, FaultKind::Error { code: 20 }));
    let mut job = job(&bed.bus, &[PAGE, 1 << 20, PAGE], 1);
    job.run(&bed);
    let failed = EntryResult::Failed(20);
    assert_eq!(job.check(), 1);
    assert_eq!(job.results[1], failed);
    assert!(failed.is_free() && !failed.is_copied());
}

#[test]
fn a_full_failure_log_delays_but_loses_nothing() {
    let bed = polled(1);
    bed.models[0].inject(Injected::new(
        Trigger::Every { n: 2, offset: 0 },
        FaultKind::Error { code: 20 },
    ));
    let mut jobs: Vec<Job> = (0..2).map(|n| job(&bed.bus, &[PAGE; 30], n)).collect();
    let [first, second] = &mut jobs[..] else {
        unreachable!()
    };
    let mut early = first.start(&bed, Notify::Silent, PATIENT);
    let mut late = second.start(&bed, Notify::Silent, PATIENT);
    // The second alone cannot get on: it would have to remember the first one's failures.
    for _ in 0..10_000 {
        assert_eq!(late.poll(1), ListStatus::Pending);
    }
    let clock = clock();
    let deadline = Deadline::after(&clock, PATIENT);
    early.wait(&clock, deadline, || {}).unwrap();
    late.wait(&clock, deadline, || {}).unwrap();
    drop((early, late));
    for job in &jobs {
        assert_eq!(job.check(), 15);
        assert_eq!(job.count(EntryResult::Failed(20)), 15);
    }
}

/// A channel that hangs is stopped without being asked to; every list on it learns.
#[test]
fn a_hanging_channel_is_stopped_and_both_lists_learn() {
    let bed = polled(2);
    bed.models[1].inject(Injected::at(3, FOR_EVER));
    let mut jobs: Vec<Job> = (0..2).map(|n| job(&bed.bus, &[PAGE; 10], n)).collect();
    let [one, two] = &mut jobs[..] else {
        unreachable!()
    };
    let mut first = one.start(&bed, Notify::Silent, 1000);
    let mut second = two.start(&bed, Notify::Silent, 1000);
    for now in 0..1000 {
        assert_eq!(first.poll(now), ListStatus::Pending);
    }
    assert_eq!(first.unfinished().collect::<Vec<_>>(), [1]);
    let end = (1000..3000).find(|now| first.poll(*now) == ListStatus::Done);
    assert!(end.is_some(), "{first:?}");
    // The stop had dropped all of the second one's as well.
    assert!((0..POLLS).any(|_| second.poll(1) == ListStatus::Done));
    drop((first, second));
    assert_eq!((jobs[0].check(), jobs[1].check()), (2, 5));
    assert_eq!(jobs[0].count(EntryResult::Dropped), 2);
    assert_eq!(jobs[1].count(EntryResult::Dropped), 5);
    assert_eq!(bed.channels.channel_stats(1).unwrap().hangs, 1);
    // The channel works again.
    bed.models[1].clear_faults();
    let mut again = job(&bed.bus, &[2 << 20], 9);
    again.run(&bed);
    assert_eq!(again.check(), 0);
    assert_eq!(bed.channels.channel_stats(1).unwrap().dropped, 7);
}

/// The deadline of a wait stops nothing; `stop` does, and every entry has its result then.
#[test]
fn a_wait_ends_in_time_and_a_stop_ends_the_list() {
    let bed = polled(2);
    bed.models[1].inject(Injected::at(1, FOR_EVER));
    let mut job = job(&bed.bus, &[PAGE; 10], 1);
    let mut copy = job.start(&bed, Notify::Silent, u64::MAX);
    let clock = clock();
    let short = Deadline::after(&clock, PATIENT).with_poll_limit(1000);
    assert!(copy.wait(&clock, short, || {}).is_err());
    assert!(copy.wait(&clock, short, || {}).is_err());
    copy.stop(clock.now());
    assert_eq!(copy.poll(clock.now()), ListStatus::Done);
    assert_eq!(copy.channels().count(), 2);
    drop(copy);
    assert_eq!(job.check(), 4);
    assert_eq!(job.count(EntryResult::Dropped), 4);
    for (number, model) in bed.models.iter().enumerate() {
        model.clear_faults();
        assert_eq!(bed.channels.load_bytes(number), 0);
    }
    // Nothing that was dropped is written later.
    let before: Vec<Vec<u8>> = job.dst.iter().map(BusBuffer::to_vec).collect();
    let mut other = self::job(&bed.bus, &[PAGE; 40], 2);
    other.run(&bed);
    assert_eq!(other.check(), 0);
    let after: Vec<Vec<u8>> = job.dst.iter().map(BusBuffer::to_vec).collect();
    assert!(before == after);
}

/// A list that is dropped stops its channels; one that is forgotten says nothing.
#[test]
fn a_dropped_list_stops_and_a_forgotten_one_stays_pending() {
    let bed = polled(1);
    bed.models[0].inject(Injected::at(2, FOR_EVER));
    let mut jobs: Vec<Job> = (0..3).map(|n| job(&bed.bus, &[PAGE; 8], n)).collect();
    let mut copy = jobs[0].start(&bed, Notify::Silent, PATIENT);
    for _ in 0..100 {
        assert_eq!(copy.poll(1), ListStatus::Pending);
    }
    drop(copy);
    assert_eq!(jobs[0].check(), 6);
    assert!(jobs[0].results.iter().all(|result| result.is_free()));
    bed.models[0].clear_faults();
    jobs[1].run(&bed);
    assert_eq!(jobs[1].check(), 0);
    bed.models[0].inject(Injected::new(
        Trigger::Every { n: 2, offset: 0 },
        FaultKind::Error { code: 20 },
    ));
    let mut copy = jobs[2].start(&bed, Notify::Silent, PATIENT);
    for _ in 0..3 {
        assert_eq!(copy.poll(1), ListStatus::Pending);
    }
    std::mem::forget(copy);
    assert!(bed.models[0].counters().errors > 0);
    assert!(jobs[2].results.iter().all(|result| !result.is_free()));
    assert!(jobs[2].results.iter().all(|result| !result.is_copied()));
}

/// Failures that nobody asks for fill the log of a channel. Others still end when they want to.
#[test]
fn a_forgotten_list_keeps_nobody_for_ever() {
    let bed = polled(1);
    bed.models[0].inject(Injected::new(
        Trigger::Every { n: 2, offset: 0 },
        FaultKind::Error { code: 20 },
    ));
    let mut jobs: Vec<Job> = (0..2).map(|n| job(&bed.bus, &[PAGE; 20], n)).collect();
    std::mem::forget(jobs[0].start(&bed, Notify::Silent, PATIENT));
    let clock = clock();
    let mut copy = jobs[1].start(&bed, Notify::Silent, 1000);
    let limit = Deadline::after(&clock, PATIENT).with_poll_limit(POLLS);
    assert!(copy.wait(&clock, limit, || {}).is_err());
    copy.stop(clock.now());
    drop(copy);
    assert_eq!(jobs[1].check(), 20);
    assert!(jobs[1].results.iter().all(|result| result.is_free()));
}

#[test]
fn a_channel_that_is_gone_is_left_out_and_its_memory_is_not_free() {
    let bed = polled(4);
    let mut before = job(&bed.bus, &[PAGE; 40], 0);
    let mut copy = before.start(&bed, Notify::Silent, PATIENT);
    bed.models[2].inject(Injected::now(FaultKind::AllOnes { reads: None }));
    let clock = clock();
    let deadline = Deadline::after(&clock, PATIENT);
    copy.wait(&clock, deadline, || {}).unwrap();
    drop(copy);
    assert_eq!(bed.channels.service(2), Some(ServiceState::Unproven));
    assert_eq!(before.check(), 10);
    assert_eq!(before.count(EntryResult::Unproven), 10);
    assert!(!EntryResult::Unproven.is_free());
    let mut after = job(&bed.bus, &[1 << 20], 1);
    let copy = after.start(&bed, Notify::Silent, PATIENT);
    assert!(copy.channels().all(|channel| channel != 2));
    assert_eq!(copy.channels().count(), 3);
    drop(copy);
    after.run(&bed);
    assert_eq!(after.check(), 0);
}

/// An engine that does not stop: nothing that it had is free, whoever asks.
#[test]
fn what_an_engine_may_still_write_is_not_free() {
    let bed = polled(2);
    bed.models[0].inject(Injected::at(
        1,
        FaultKind::Stall {
            duration: StallFor::Ever,
            haltable: false,
        },
    ));
    let mut job = job(&bed.bus, &[PAGE; 10], 1);
    let mut copy = job.start(&bed, Notify::Silent, PATIENT);
    for _ in 0..100 {
        assert_eq!(copy.poll(1), ListStatus::Pending);
    }
    drop(copy);
    assert_eq!(bed.channels.service(0), Some(ServiceState::Unproven));
    assert_eq!(job.count(EntryResult::Unproven), 4, "{:?}", job.results);
    assert_eq!(job.check(), 4);
}

/// Its descriptors are taken back unasked, and its engine cannot be stopped.
#[test]
fn what_a_channel_that_miscounts_may_still_write_is_not_free() {
    let habits = [Habit::Miscounts, Habit::Good];
    let bed = habitual(&habits, 64, stepping(), Signalling::Polled);
    let duration = StallFor::Ever;
    let haltable = false;
    let stall = FaultKind::Stall { duration, haltable };
    bed.models[0].inject(Injected::at(0, stall));
    let mut job = job(&bed.bus, &[PAGE; 10], 1);
    job.run(&bed);
    assert_eq!(bed.channels.service(0), Some(ServiceState::Unproven));
    assert_eq!(job.count(EntryResult::Unproven), 5, "{:?}", job.results);
    assert!(job.results[..5].iter().all(|result| !result.is_free()));
    assert_eq!(job.check(), 5);
}

#[test]
fn a_channel_that_is_retired_in_the_middle_drops_its_part() {
    let bed = bed(3, 64, ModelConfig::default(), Signalling::Polled);
    let mut job = job(&bed.bus, &[PAGE; 300], 1);
    let mut copy = job.start(&bed, Notify::Silent, PATIENT);
    bed.models[1].run(10);
    assert_eq!(copy.poll(1), ListStatus::Pending);
    assert!(bed.channels.retire(1, 2));
    let mut status = ListStatus::Pending;
    for now in 3..1000 {
        bed.models.iter().for_each(|model| {
            model.run(100);
        });
        status = copy.poll(now);
        if status == ListStatus::Done {
            break;
        }
    }
    assert_eq!(status, ListStatus::Done);
    drop(copy);
    assert_eq!(job.check(), 90);
    assert_eq!(job.count(EntryResult::Dropped), 90);
    // Nothing is held any more: it can be taken out.
    assert!(bed.channels.take(1).is_ok());
}

#[test]
fn a_channel_that_refuses_fails_its_own_entries() {
    let bus_first = |habit: fn(DmaAddr) -> Habit| {
        let mut bed = habitual(&[Habit::Good; 2], 64, stepping(), Signalling::Polled);
        let job = job(&bed.bus, &[PAGE; 20], 1);
        let channels = std::mem::take(&mut bed.channels);
        for (number, queue) in channels.into_channels().flatten().enumerate() {
            let habit = if number == 0 {
                habit(job.list[3].dst)
            } else {
                Habit::Good
            };
            let queue = Queue { habit, ..queue };
            assert!(bed.channels.add_channel(queue).is_ok());
        }
        (bed, job)
    };
    let (bed, mut job) = bus_first(Habit::Refuses);
    job.run(&bed);
    // The others of its ring are copied.
    assert_eq!(job.check(), 1);
    assert_eq!(job.results[3], EntryResult::Rejected);
    assert_eq!(bed.channels.active(), 2);

    for habit in [|_| Habit::Broken, |_| Habit::Miscounts, |_| Habit::Boasts] {
        let (bed, mut job) = bus_first(habit);
        job.run(&bed);
        assert_eq!(job.check(), 10);
        assert_eq!(job.count(EntryResult::Dropped), 10);
        assert!(job.results[10..].iter().all(|result| result.is_copied()));
        assert_eq!(bed.channels.load_bytes(0), 0);
    }
}

#[test]
fn interrupts_alone_carry_a_list() {
    let bed = bed(4, 64, ModelConfig::default(), Signalling::Interrupts);
    let lines: Vec<_> = bed.models.iter().map(Model::interrupt_line).collect();
    let mut job = job(&bed.bus, &[PAGE; 200], 0);
    let mut copy = job.start(&bed, Notify::Interrupt, PATIENT);
    for (channel, line) in lines.iter().enumerate() {
        bed.models[channel].run(1000);
        assert_eq!(line.count(), 1);
        bed.channels.interrupt(channel, 1);
    }
    let reads = |bed: &Bed| -> u64 { bed.models.iter().map(|m| m.counters().mmio_reads).sum() };
    let before = reads(&bed);
    assert_eq!(copy.poll(1), ListStatus::Done);
    assert_eq!(reads(&bed), before, "the interrupts had said it all");
    drop(copy);
    assert_eq!(job.check(), 0);
}

#[test]
fn lost_interrupts_are_found() {
    let bed = bed(2, 64, ModelConfig::default(), Signalling::Interrupts);
    bed.models[0].inject(Injected::new(Trigger::Always, FaultKind::LostInterrupt));
    let mut job = job(&bed.bus, &[PAGE; 20], 0);
    let mut copy = job.start(&bed, Notify::Interrupt, PATIENT);
    for model in &bed.models {
        model.run(1000);
    }
    bed.channels.interrupt(1, 1);
    assert_eq!(copy.poll_overdue(1), ListStatus::Done);
    drop(copy);
    assert_eq!(job.check(), 0);
    let lost = |queue: &mut Queue| queue.inner.channel().stats().lost_interrupts;
    assert_eq!(bed.channels.with_channel(0, lost), Some(1));
}

/// Eight threads, sixteen engines, errors sprinkled in: every thread's bytes are its own.
#[test]
fn many_threads_share_the_channels() {
    let bed = bed(16, 64, ModelConfig::default(), Signalling::Polled);
    let _engines: Vec<EngineThread> = bed
        .models
        .iter()
        .map(|m| m.spawn_engine().unwrap())
        .collect();
    for (seed, model) in bed.models.iter().enumerate() {
        model.inject(Injected::new(
            Trigger::Chance {
                per_million: 20_000,
                seed: seed as u64,
            },
            FaultKind::Error { code: 19 },
        ));
    }
    let reported = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8_u8 {
            let (bed, reported) = (&bed, &reported);
            scope.spawn(move || {
                let clock = clock();
                // No entry is longer than a page, so that each failed piece is an entry.
                let lens: Vec<usize> = (0..40).map(|n| [PAGE, 100, 512, 3][n % 4]).collect();
                for _ in 0..12 {
                    let mut job = job(&bed.bus, &lens, thread);
                    let mut copy = job.start(bed, Notify::Silent, PATIENT);
                    let deadline = Deadline::after(&clock, PATIENT);
                    copy.wait(&clock, deadline, std::thread::yield_now).unwrap();
                    drop(copy);
                    let failed = job.check();
                    assert_eq!(failed, job.count(EntryResult::Failed(19)));
                    reported.fetch_add(failed as u64, Ordering::Relaxed);
                }
            });
        }
    });
    let errors: u64 = bed.models.iter().map(|m| m.counters().errors).sum();
    let stats = (0..bed.models.len()).filter_map(|channel| {
        let stats = |queue: &mut Queue| queue.inner.channel().stats();
        bed.channels.with_channel(channel, stats)
    });
    // A failure that RUN may have gone over is run again, and is good then. Two failed pieces of
    // one entry are one failed entry.
    let (failed, replays) = stats.fold((0, 0), |(failed, replays), stats| {
        (failed + stats.failed, replays + stats.replays)
    });
    assert_eq!(failed + replays, errors);
    let reported = reported.load(Ordering::Relaxed);
    assert!(
        reported <= failed && reported * 2 > failed,
        "{reported} of {failed}"
    );
    assert!(errors > 0, "nothing was injected");
}

/// A failure that was noted is not taken for dropped, however often the channel was stopped.
#[test]
fn a_failure_stays_one_over_any_number_of_stops() {
    for stops in 1..8 {
        let bed = polled(1);
        bed.models[0].inject(Injected::at(0, FaultKind::Error { code: 20 }));
        bed.models[0].inject(Injected::at(2, FOR_EVER));
        let mut jobs: Vec<Job> = (0..2).map(|n| job(&bed.bus, &[PAGE; 3], n)).collect();
        let [one, two] = &mut jobs[..] else {
            unreachable!()
        };
        let mut copy = one.start(&bed, Notify::Silent, PATIENT);
        for _ in 0..100 {
            assert_eq!(copy.poll(1), ListStatus::Pending);
        }
        for _ in 0..stops {
            // Has something to stop each time.
            drop(two.start(&bed, Notify::Silent, PATIENT));
        }
        assert_eq!(copy.poll(1), ListStatus::Done);
        drop(copy);
        assert_eq!(
            jobs[0].results,
            [
                EntryResult::Failed(20),
                EntryResult::Copied,
                EntryResult::Dropped
            ],
            "{stops}"
        );
        jobs[0].check();
    }
}
