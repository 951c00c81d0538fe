//! Scatter-gather lists over many channels: spread, shared between threads, with faults.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ptdma::group::{ChannelGroup, GroupWaitError, PieceFailure, SgEntry, Status};
use ptdma::{
    Channel, ChannelConfig, Clock, Deadline, DmaAddr, ErrorHead, Fault, GroupError, Notify,
    RequestError, Restart, Signalling, Ticket,
};
use ptdma_host_tests::rig::quiesced;
use ptdma_model::fault::StallFor;
use ptdma_model::{
    Access, BusBuffer, BusRing, BusSpace, EngineThread, Fault as Injected, FaultKind, Model,
    ModelConfig, Trigger,
};

const PAGE: usize = 4096;

struct RealTime(Instant);

impl Clock for RealTime {
    fn now(&self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }
}

fn clock() -> RealTime {
    RealTime(Instant::now())
}

/// Ten seconds: far more than any of these takes, on a machine however busy.
fn patient(clock: &RealTime) -> Deadline {
    Deadline::after(clock, 10_000_000)
}

struct Bed {
    bus: BusSpace,
    models: Vec<Model>,
    group: ChannelGroup<Model, BusRing>,
}

fn bed(channels: usize, entries: usize, config: ModelConfig, signalling: Signalling) -> Bed {
    let bus = BusSpace::new();
    let mut models = Vec::new();
    let mut group = ChannelGroup::new();
    for _ in 0..channels {
        let model = Model::new(config, bus.clone());
        let ring = BusRing::new(&bus, entries).unwrap();
        let config = ChannelConfig {
            signalling,
            // Faults are counted by descriptors, and what is run again counts too.
            error_head: ErrorHead::AtFailing,
            restart: Restart::ByRun,
            ..ChannelConfig::default()
        };
        let Ok(channel) = Channel::bring_up(model.clone(), ring, config) else {
            panic!("not brought up")
        };
        let _ = model.take_counters();
        assert!(group.add(channel).is_ok());
        models.push(model);
    }
    Bed { bus, models, group }
}

fn polled(channels: usize) -> Bed {
    let config = ModelConfig {
        auto_step: 1,
        ..ModelConfig::default()
    };
    bed(channels, 64, config, Signalling::Polled)
}

/// Buffers of these lengths, sources filled, and the list that copies them.
struct Job {
    src: Vec<BusBuffer>,
    dst: Vec<BusBuffer>,
    list: Vec<SgEntry>,
}

fn job(bus: &BusSpace, lens: &[usize], seed: u8) -> Job {
    let mut job = Job {
        src: Vec::new(),
        dst: Vec::new(),
        list: Vec::new(),
    };
    for (n, len) in lens.iter().enumerate() {
        let src = bus.alloc(*len, 4096, Access::ReadWrite).unwrap();
        let dst = bus.alloc(*len, 4096, Access::ReadWrite).unwrap();
        let fill: Vec<u8> = (0..*len)
            .map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ n).wrapping_add(usize::from(seed)) as u8 | 1)
            .collect();
        src.write(0, &fill).unwrap();
        job.list.push(SgEntry {
            src: src.addr(),
            dst: dst.addr(),
            len_bytes: *len as u64,
        });
        job.src.push(src);
        job.dst.push(dst);
    }
    job
}

impl Job {
    fn copied(&self) -> bool {
        self.src
            .iter()
            .zip(&self.dst)
            .all(|(s, d)| s.to_vec() == d.to_vec())
    }

    /// Everything is there, except for the pieces that were reported.
    fn check<const N: usize>(&self, ticket: &Ticket<N>, failures: &[PieceFailure]) {
        for (n, (src, dst)) in self.src.iter().zip(&self.dst).enumerate() {
            let (mut src, mut dst) = (src.to_vec(), dst.to_vec());
            for failure in failures {
                let piece = ticket.piece(&self.list, failure).unwrap();
                if piece.entry == n {
                    let range = piece.offset_bytes as usize
                        ..piece.offset_bytes as usize + piece.len_bytes as usize;
                    src[range.clone()].fill(0);
                    dst[range].fill(0);
                }
            }
            assert_eq!(src, dst, "entry {n}");
        }
    }
}

fn wait(bed: &Bed, ticket: &mut Ticket<16>) -> Vec<PieceFailure> {
    let clock = clock();
    let mut failures = Vec::new();
    bed.group
        .wait(ticket, &clock, patient(&clock), || {}, |f| failures.push(f))
        .unwrap();
    failures
}

#[test]
fn one_huge_page_is_shared_by_sixteen_channels() {
    let bed = polled(16);
    let job = job(&bed.bus, &[2 << 20], 1);
    let mut ticket = bed.group.submit(&job.list, Notify::Silent).unwrap();
    assert_eq!((ticket.channels(), ticket.descriptors()), (16, 16));
    assert_eq!(wait(&bed, &mut ticket), []);
    assert!(job.copied());
    for model in &bed.models {
        let counters = model.counters();
        assert_eq!(counters.bytes, (2 << 20) / 16);
        assert_eq!(counters.doorbells, 1);
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
            let job = job(&bed.bus, lens, seed as u8);
            let mut ticket = bed.group.submit(&job.list, Notify::Silent).unwrap();
            assert_eq!(wait(&bed, &mut ticket), []);
            assert!(job.copied(), "{channels} channels, {lens:?}");
        }
    }
}

#[test]
fn nothing_is_half_submitted() {
    let bed = polled(4);
    let good = SgEntry {
        src: DmaAddr::new(0x10_0000),
        dst: DmaAddr::new(0x20_0000),
        len_bytes: 4096,
    };
    let bad = |change: fn(&mut SgEntry)| {
        let mut entry = good;
        change(&mut entry);
        let result = bed.group.submit(&[good, good, entry], Notify::Silent);
        match result {
            Err(GroupError::Entry { index: 2, error }) => error,
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
    assert_eq!(
        bed.group.submit(&[], Notify::Silent).err(),
        Some(GroupError::EmptyList)
    );
    // Too much for the rings, for ever.
    let many = vec![good; 4 * 64];
    assert!(matches!(
        bed.group.submit(&many, Notify::Silent),
        Err(GroupError::TooManyDescriptors {
            needed: 64,
            capacity: 63,
            ..
        })
    ));
    for model in &bed.models {
        assert_eq!(model.counters().mmio(), 0);
    }
    // Too much for now: the last channel is full, the others must be as they were.
    let job = job(&bed.bus, &[PAGE; 4 * 40], 0);
    let mut first = bed.group.submit(&job.list, Notify::Silent).unwrap();
    let again = bed.group.submit(&job.list, Notify::Silent);
    assert!(matches!(again, Err(GroupError::Busy { free: 23, .. })));
    for model in &bed.models {
        assert_eq!(model.counters().doorbells, 1);
    }
    assert_eq!(wait(&bed, &mut first), []);
    let mut second = bed.group.submit(&job.list, Notify::Silent).unwrap();
    assert_eq!(wait(&bed, &mut second), []);
    assert!(job.copied());
    let none = ChannelGroup::<Model, BusRing>::new();
    assert_eq!(
        none.submit(&[good], Notify::Silent).err(),
        Some(GroupError::NoChannel)
    );
}

#[test]
fn failures_find_their_ticket_and_their_bytes() {
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
    // Several tickets in flight at once, polled in turns.
    let jobs: Vec<Job> = (0..3).map(|n| job(&bed.bus, &[PAGE; 60], n)).collect();
    let mut tickets: Vec<Ticket<16>> = jobs
        .iter()
        .map(|job| bed.group.submit(&job.list, Notify::Silent).unwrap())
        .collect();
    let mut failures = vec![Vec::new(); 3];
    for _ in 0..100_000 {
        let mut pending = false;
        for (ticket, failures) in tickets.iter_mut().zip(&mut failures) {
            pending |= bed.group.poll(ticket, |f| failures.push(f)) != Status::Done;
        }
        if !pending {
            break;
        }
    }
    let mut total = 0;
    for ((job, ticket), failures) in jobs.iter().zip(&tickets).zip(&failures) {
        assert_eq!(ticket.unfinished().count(), 0);
        assert!(failures.iter().all(|f| f.code.unwrap().raw() == 39));
        job.check(ticket, failures);
        total += failures.len() as u64;
    }
    let errors: u64 = bed.models.iter().map(|m| m.counters().errors).sum();
    assert_eq!(total, errors);
    assert!(total >= 36);
}

#[test]
fn a_full_failure_log_delays_but_loses_nothing() {
    let bed = polled(1);
    bed.models[0].inject(Injected::new(
        Trigger::Always,
        FaultKind::Error { code: 20 },
    ));
    let jobs: Vec<Job> = (0..2).map(|n| job(&bed.bus, &[PAGE; 30], n)).collect();
    let mut first = bed.group.submit(&jobs[0].list, Notify::Silent).unwrap();
    let mut second = bed.group.submit(&jobs[1].list, Notify::Silent).unwrap();
    // The second alone cannot get on: it would have to remember the first one's failures.
    let mut late = Vec::new();
    for _ in 0..10_000 {
        assert_eq!(
            bed.group.poll(&mut second, |f| late.push(f)),
            Status::Pending
        );
    }
    assert_eq!(late, []);
    let early = wait(&bed, &mut first);
    assert_eq!(early.len(), 30);
    late.extend(wait(&bed, &mut second));
    assert_eq!(late.len(), 30);
    jobs[0].check(&first, &early);
    jobs[1].check(&second, &late);
}

#[test]
fn a_hanging_channel_is_terminated_and_both_tickets_learn() {
    let bed = polled(2);
    bed.models[1].inject(Injected::at(
        3,
        FaultKind::Stall {
            duration: StallFor::Ever,
            haltable: true,
        },
    ));
    let jobs: Vec<Job> = (0..2).map(|n| job(&bed.bus, &[PAGE; 10], n)).collect();
    let mut first = bed.group.submit(&jobs[0].list, Notify::Silent).unwrap();
    let mut second = bed.group.submit(&jobs[1].list, Notify::Silent).unwrap();
    let clock = clock();
    // Long for the channel that works, on a machine however busy.
    let short = Deadline::after(&clock, 500_000);
    let mut failures = Vec::new();
    let error = bed
        .group
        .wait(&mut first, &clock, short, || {}, |f| failures.push(f))
        .unwrap_err();
    assert_eq!(error, GroupWaitError::TimedOut);
    assert_eq!(first.unfinished().collect::<Vec<_>>(), [1]);
    let terminated = bed
        .group
        .terminate(1, &clock, patient(&clock))
        .unwrap()
        .unwrap();
    assert_eq!(terminated.dropped, 7);
    failures.extend(wait(&bed, &mut first));
    assert_eq!(failures.len(), 2);
    assert!(failures.iter().all(|f| f.code.is_none()));
    jobs[0].check(&first, &failures);
    let failures = wait(&bed, &mut second);
    assert_eq!(failures.len(), 5);
    jobs[1].check(&second, &failures);
    // The channel works again.
    bed.models[1].clear_faults();
    let again = job(&bed.bus, &[2 << 20], 9);
    let mut ticket = bed.group.submit(&again.list, Notify::Silent).unwrap();
    assert_eq!(wait(&bed, &mut ticket), []);
    assert!(again.copied());
}

#[test]
fn a_dead_channel_is_left_out() {
    let bed = polled(4);
    let before = job(&bed.bus, &[PAGE; 40], 0);
    let mut ticket = bed.group.submit(&before.list, Notify::Silent).unwrap();
    bed.models[2].inject(Injected::now(FaultKind::AllOnes { reads: None }));
    let clock = clock();
    let error = bed
        .group
        .wait(&mut ticket, &clock, patient(&clock), || {}, |_| {})
        .unwrap_err();
    assert_eq!(
        error,
        GroupWaitError::Faulted {
            channel: 2,
            fault: Fault::DeviceGone
        }
    );
    let after = job(&bed.bus, &[1 << 20], 1);
    let mut second = bed.group.submit(&after.list, Notify::Silent).unwrap();
    assert_eq!(second.channels(), 3);
    assert_eq!(wait(&bed, &mut second), []);
    assert!(after.copied());
    // The ticket is not done while the dead channel may still write.
    let ticket = bed.group.abandon(ticket).unwrap_err();
    let proof = quiesced();
    assert!(bed.group.recover(2, proof).unwrap().is_err());
    let mut ticket = ticket;
    let failures = wait(&bed, &mut ticket);
    assert_eq!(failures.len(), 10, "all that was on the dead channel");
    before.check(&ticket, &failures);
}

#[test]
fn interrupts_alone_carry_a_ticket() {
    let bed = bed(4, 64, ModelConfig::default(), Signalling::Interrupts);
    let lines: Vec<_> = bed.models.iter().map(Model::interrupt_line).collect();
    let job = job(&bed.bus, &[PAGE; 200], 0);
    let mut ticket = bed.group.submit(&job.list, Notify::Interrupt).unwrap();
    for (channel, line) in lines.iter().enumerate() {
        bed.models[channel].run(1000);
        assert_eq!(line.count(), 1);
        bed.group.handle_interrupt(channel).unwrap();
    }
    let reads = |bed: &Bed| -> u64 { bed.models.iter().map(|m| m.counters().mmio_reads).sum() };
    let before = reads(&bed);
    assert_eq!(
        bed.group.poll(&mut ticket, |_| panic!("no failure")),
        Status::Done
    );
    assert_eq!(reads(&bed), before, "the interrupts had said it all");
    assert!(job.copied());
}

#[test]
fn lost_interrupts_are_found() {
    let bed = bed(2, 64, ModelConfig::default(), Signalling::Interrupts);
    bed.models[0].inject(Injected::new(Trigger::Always, FaultKind::LostInterrupt));
    let job = job(&bed.bus, &[PAGE; 20], 0);
    let mut ticket = bed.group.submit(&job.list, Notify::Interrupt).unwrap();
    for model in &bed.models {
        model.run(1000);
    }
    bed.group.handle_interrupt(1).unwrap();
    assert_eq!(bed.group.check_lost_interrupts(&ticket), 1);
    assert_eq!(bed.group.poll(&mut ticket, |_| {}), Status::Done);
    assert!(job.copied());
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
                let mut done = 0;
                while done < 12 {
                    let job = job(&bed.bus, &[PAGE, 3 * PAGE, 65_536, 100, PAGE], thread);
                    let mut ticket = match bed.group.submit(&job.list, Notify::Silent) {
                        Ok(ticket) => ticket,
                        Err(GroupError::Busy { .. }) => {
                            std::thread::yield_now();
                            continue;
                        }
                        Err(e) => panic!("{e}"),
                    };
                    let mut failures = Vec::new();
                    let deadline = patient(&clock);
                    bed.group
                        .wait(&mut ticket, &clock, deadline, std::thread::yield_now, |f| {
                            failures.push(f)
                        })
                        .unwrap();
                    job.check(&ticket, &failures);
                    reported.fetch_add(failures.len() as u64, Ordering::Relaxed);
                    done += 1;
                }
            });
        }
    });
    let errors: u64 = bed.models.iter().map(|m| m.counters().errors).sum();
    // A failure that RUN may have gone over is run again, and is good then.
    let replays: u64 = (0..bed.models.len())
        .filter_map(|channel| bed.group.stats(channel))
        .map(|stats| stats.replays)
        .sum();
    assert_eq!(reported.load(Ordering::Relaxed) + replays, errors);
    assert!(errors > 0, "nothing was injected");
}

/// A ticket that is dropped, as safe code may do, leaves failures that nobody asks for.
#[test]
fn a_forgotten_ticket_stops_nobody_for_ever() {
    let bed = polled(1);
    bed.models[0].inject(Injected::new(Trigger::Always, FaultKind::Error { code: 20 }).times(20));
    let jobs: Vec<Job> = (0..3).map(|n| job(&bed.bus, &[PAGE; 20], n)).collect();
    drop(bed.group.submit(&jobs[0].list, Notify::Silent).unwrap());
    let mut second = bed.group.submit(&jobs[1].list, Notify::Silent).unwrap();
    let mut polls = 0;
    let mut failures = Vec::new();
    while bed.group.poll(&mut second, |f| failures.push(f)) != Status::Done {
        polls += 1;
        assert!(polls < 100_000, "stopped by a ticket that is gone");
    }
    assert_eq!(failures, []);
    jobs[1].check(&second, &failures);
    let mut third = bed.group.submit(&jobs[2].list, Notify::Silent).unwrap();
    let failures = wait(&bed, &mut third);
    assert_eq!(failures, []);
}

/// One that was only slow is told of every piece that failed, each once, and of some too many.
#[test]
fn a_ticket_that_was_taken_for_forgotten_is_told_too_much() {
    let bed = polled(1);
    bed.models[0].inject(
        Injected::new(
            Trigger::Every { n: 2, offset: 0 },
            FaultKind::Error { code: 20 },
        )
        .times(20),
    );
    // More failures than the log holds.
    let lens: [&[usize]; 2] = [&[PAGE; 40], &[PAGE; 20]];
    let jobs: Vec<Job> = (0..2)
        .map(|n| job(&bed.bus, lens[usize::from(n)], n))
        .collect();
    let mut first = bed.group.submit(&jobs[0].list, Notify::Silent).unwrap();
    let mut second = bed.group.submit(&jobs[1].list, Notify::Silent).unwrap();
    let mut polls = 0;
    while bed.group.poll(&mut second, |_| ()) != Status::Done {
        polls += 1;
        assert!(polls < 100_000);
    }
    let failures = wait(&bed, &mut first);
    let mut entries: Vec<usize> = failures
        .iter()
        .map(|failure| first.piece(&jobs[0].list, failure).unwrap().entry)
        .collect();
    let told = entries.len();
    entries.dedup();
    assert_eq!(entries.len(), told, "told twice");
    let failed: Vec<usize> = (0..40).filter(|entry| entry % 2 == 0).collect();
    assert!(
        failed.iter().all(|entry| entries.contains(entry)),
        "{entries:?}"
    );
}

/// A failure that was told is not told again as dropped, however often the channel was stopped.
#[test]
fn a_failure_is_told_once_over_any_number_of_stops() {
    for stops in 1..8 {
        let bed = polled(1);
        bed.models[0].inject(Injected::at(0, FaultKind::Error { code: 20 }));
        let stall = FaultKind::Stall {
            duration: StallFor::Ever,
            haltable: true,
        };
        bed.models[0].inject(Injected::at(2, stall));
        let job = job(&bed.bus, &[PAGE; 3], 1);
        let mut ticket = bed.group.submit(&job.list, Notify::Silent).unwrap();
        let mut entries = Vec::new();
        let poll = |ticket: &mut _, entries: &mut Vec<usize>| {
            let mut failures = Vec::new();
            let status = bed.group.poll(ticket, |f| failures.push(f));
            entries.extend(
                failures
                    .iter()
                    .map(|f| ticket.piece(&job.list, f).unwrap().entry),
            );
            status
        };
        for _ in 0..100 {
            assert_eq!(poll(&mut ticket, &mut entries), Status::Pending);
        }
        assert_eq!(entries, [0]);
        for _ in 0..stops {
            let clock = clock();
            let deadline = Deadline::after(&clock, 1_000_000);
            let _ = bed.group.terminate(0, &clock, deadline).unwrap().unwrap();
        }
        assert_eq!(poll(&mut ticket, &mut entries), Status::Done);
        let once: std::collections::BTreeSet<usize> = entries.iter().copied().collect();
        assert_eq!(once.len(), entries.len(), "{stops}: {entries:?}");
        assert!(once.contains(&2));
    }
}

#[test]
fn a_piece_of_another_list_is_none() {
    let bed = polled(1);
    bed.models[0].inject(Injected::at(0, FaultKind::Error { code: 20 }));
    let jobs: Vec<Job> = (0..2).map(|n| job(&bed.bus, &[PAGE; 3], n)).collect();
    let mut ticket = bed.group.submit(&jobs[0].list, Notify::Silent).unwrap();
    let failures = wait(&bed, &mut ticket);
    assert!(ticket.piece(&jobs[0].list, &failures[0]).is_some());
    assert!(ticket.piece(&jobs[1].list, &failures[0]).is_none());
    assert!(ticket.piece(&jobs[0].list[..2], &failures[0]).is_none());
}

/// The closure that hears of failures may use the group: no lock is held.
#[test]
fn who_hears_of_a_failure_may_ask_the_group() {
    let bed = polled(1);
    bed.models[0].inject(Injected::at(0, FaultKind::Error { code: 20 }));
    let job = job(&bed.bus, &[PAGE; 3], 1);
    let mut ticket = bed.group.submit(&job.list, Notify::Silent).unwrap();
    let mut heard = 0;
    for _ in 0..1000 {
        let status = bed.group.poll(&mut ticket, |failure| {
            heard += 1;
            assert_eq!(bed.group.stats(failure.channel).unwrap().failed, 1);
        });
        if status == Status::Done {
            break;
        }
    }
    assert_eq!(heard, 1);
}
