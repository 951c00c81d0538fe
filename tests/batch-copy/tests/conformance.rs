//! What `CopyChannel` promises, asked of every kind of channel: a PTDMA queue on the device
//! model, polled and by interrupt, the CPU, and an engine whose descriptors end in any order.
#![allow(missing_docs)]

use batch_copy::{
    CPU_CHUNK_BYTES, CopyChannel, CopyProgress, CpuChannel, Health, PrepError, PtdmaQueue, Segment,
};
use batch_copy_tests::memory::{Cpu, Layout, Memory};
use batch_copy_tests::unordered::Function;
use ptdma::{Channel, ChannelConfig, Cookie, DmaAddr, Signalling};
use ptdma_model::{BusRing, BusSpace, Model, ModelConfig};

/// Descriptors that fit into the rings that are tested.
const SLOTS: usize = 7;
/// Looks after which a channel has had time for anything.
const LOOKS: u64 = 400;
/// An address where there is no memory, on any bus here.
const NOWHERE: DmaAddr = DmaAddr::new(0x7fff_0000_0000);

/// A channel, what makes its engine go on, and how it is looked at.
struct Subject<'m, C> {
    channel: C,
    step: Box<dyn Fn() + 'm>,
    by_interrupt: bool,
}

impl<C: CopyChannel> Subject<'_, C> {
    fn look(&mut self, now_ns: u64) -> CopyProgress {
        (self.step)();
        if self.by_interrupt {
            self.channel.interrupt(now_ns)
        } else {
            self.channel.poll(now_ns)
        }
    }

    /// Looks until everything before `end` is over; returns the failures, and checks that progress
    /// never goes back and failures lie in what is over.
    fn run_to(&mut self, end: Cookie) -> Vec<Cookie> {
        let mut failed = Vec::new();
        let mut last: Option<Cookie> = None;
        for now_ns in 0..LOOKS {
            let progress = self.look(now_ns);
            assert_eq!(progress.health, Health::Alive);
            assert!(last.is_none_or(|last| !progress.done_before.is_before(last)));
            assert!(!end.is_before(progress.done_before), "more than there was");
            if let Some(failure) = progress.failure {
                assert!(failure.cookie.is_before(progress.done_before));
                assert!(
                    failed
                        .iter()
                        .all(|&told: &Cookie| told.is_before(failure.cookie))
                );
                failed.push(failure.cookie);
            }
            last = Some(progress.done_before);
            if progress.done_before == end {
                return failed;
            }
        }
        panic!("not over after {LOOKS} looks: {last:?} of {end:?}");
    }
}

fn segments(memory: &Memory) -> Vec<Segment> {
    let folios = memory.folios.iter();
    folios
        .map(|folio| Segment {
            src: folio.src,
            dst: folio.dst,
            len_bytes: folio.len_bytes,
        })
        .collect()
}

fn memory(bus: &BusSpace, folios: usize) -> Memory {
    Memory::new(bus, &vec![1000; folios], Layout::Scattered, 7)
}

/// Runs `test` with a new channel of each kind, and memory that it reaches.
fn with_each(folios: usize, test: &dyn Fn(&mut dyn AnySubject, &Memory)) {
    for signalling in [Signalling::Polled, Signalling::Interrupts] {
        let bus = BusSpace::new();
        let memory = memory(&bus, folios);
        let model = Model::new(ModelConfig::default(), bus.clone());
        let ring = BusRing::new(&bus, SLOTS + 1).unwrap();
        let mut config = ChannelConfig::default();
        config.signalling = signalling;
        let Ok(channel) = Channel::bring_up(model.clone(), ring, config) else {
            panic!("bring-up")
        };
        let mut subject = Subject {
            channel: PtdmaQueue::new(channel, Some(1)),
            step: Box::new(move || {
                model.run(3);
            }),
            by_interrupt: signalling == Signalling::Interrupts,
        };
        test(&mut subject, &memory);
    }
    let bus = BusSpace::new();
    let memory = memory(&bus, folios);
    let mut subject = Subject {
        channel: CpuChannel::<Cpu<'_>, SLOTS>::new(memory.cpu(), Some(1)),
        step: Box::new(|| {}),
        by_interrupt: false,
    };
    test(&mut subject, &memory);
    for seed in 0..20 {
        let bus = BusSpace::new();
        let memory = self::memory(&bus, folios);
        let function = Function::new(&bus, 2, seed);
        let mut subject = Subject {
            channel: function.channel(1, SLOTS, Some(1)),
            step: Box::new(move || function.step()),
            by_interrupt: false,
        };
        test(&mut subject, &memory);
    }
}

/// [`Subject`] of any channel; `prep_all` takes a generic iterator, which needs a list here.
trait AnySubject {
    fn channel(&mut self) -> &mut dyn AnyChannel;
    fn run_to(&mut self, end: Cookie) -> Vec<Cookie>;
    fn look(&mut self, now_ns: u64) -> CopyProgress;
}

impl<C: CopyChannel> AnySubject for Subject<'_, C> {
    fn channel(&mut self) -> &mut dyn AnyChannel {
        &mut self.channel
    }
    fn run_to(&mut self, end: Cookie) -> Vec<Cookie> {
        Subject::run_to(self, end)
    }
    fn look(&mut self, now_ns: u64) -> CopyProgress {
        Subject::look(self, now_ns)
    }
}

trait AnyChannel {
    fn free(&self) -> usize;
    fn next(&self) -> Cookie;
    fn prep(&mut self, copy: Segment) -> Result<Cookie, PrepError>;
    /// Also how many of the copies were taken from the list.
    fn prep_list(&mut self, copies: &[Segment]) -> (batch_copy::Prepared, usize);
    fn issue(&mut self);
    fn stop(&mut self) -> batch_copy::Stopped;
    fn slots(&self) -> (usize, Option<u16>);
}

impl<C: CopyChannel> AnyChannel for C {
    fn free(&self) -> usize {
        self.free_slots()
    }
    fn next(&self) -> Cookie {
        self.next_cookie()
    }
    fn prep(&mut self, copy: Segment) -> Result<Cookie, PrepError> {
        CopyChannel::prep(self, copy, false)
    }
    fn prep_list(&mut self, copies: &[Segment]) -> (batch_copy::Prepared, usize) {
        let mut taken = 0;
        let list = copies.iter().inspect(|_| taken += 1).copied();
        (self.prep_all(list, None), taken)
    }
    fn issue(&mut self) {
        self.issue_pending(true);
    }
    fn stop(&mut self) -> batch_copy::Stopped {
        self.terminate(0)
    }
    fn slots(&self) -> (usize, Option<u16>) {
        let limits = self.limits();
        assert!(limits.align_bytes.is_power_of_two() && limits.max_len_bytes >= CPU_CHUNK_BYTES);
        (limits.ring_slots, limits.node)
    }
}

#[test]
fn cookies_are_consecutive_and_slots_are_counted() {
    with_each(SLOTS + 1, &|subject, memory| {
        let channel = subject.channel();
        assert_eq!(channel.slots(), (SLOTS, Some(1)));
        let first = channel.next();
        let copies = segments(memory);
        for (n, copy) in copies.iter().take(SLOTS).enumerate() {
            assert_eq!(channel.free(), SLOTS - n);
            assert_eq!(channel.prep(*copy), Ok(first.after(n as u64)));
        }
        // Full: nothing changes, the next cookie neither.
        assert_eq!(channel.free(), 0);
        assert_eq!(channel.prep(copies[SLOTS]), Err(PrepError::Full));
        assert_eq!(channel.next(), first.after(SLOTS as u64));
        channel.issue();
        assert_eq!(subject.run_to(first.after(SLOTS as u64)), []);
        assert_eq!(subject.channel().free(), SLOTS);
        let mut expected = vec![true; SLOTS];
        expected.push(false);
        assert_eq!(memory.arrived(), expected);
    });
}

#[test]
fn nothing_starts_before_the_doorbell() {
    with_each(3, &|subject, memory| {
        let first = subject.channel().next();
        for copy in segments(memory) {
            subject.channel().prep(copy).unwrap();
        }
        for now_ns in 0..20 {
            assert_eq!(subject.look(now_ns).done_before, first);
        }
        assert_eq!(memory.arrived(), [false; 3]);
        subject.channel().issue();
        assert_eq!(subject.run_to(first.after(3)), []);
        assert_eq!(memory.arrived(), [true; 3]);
        // With nothing prepared a doorbell is nothing.
        subject.channel().issue();
        assert_eq!(subject.look(99).done_before, first.after(3));
    });
}

#[test]
fn a_copy_that_can_never_be_done_changes_nothing() {
    with_each(1, &|subject, memory| {
        let good = segments(memory)[0];
        let channel = subject.channel();
        let first = channel.next();
        let empty = Segment {
            len_bytes: 0,
            ..good
        };
        let wrapping = Segment {
            src: DmaAddr::new(u64::MAX - 10),
            ..good
        };
        for bad in [empty, wrapping] {
            assert_eq!(channel.prep(bad), Err(PrepError::Rejected));
            assert_eq!((channel.next(), channel.free()), (first, SLOTS));
        }
        // In a list everything before it is accepted, and counted exactly.
        let (prepared, taken) = channel.prep_list(&[good, empty, good]);
        assert_eq!((prepared.first, prepared.count), (Some(first), 1));
        assert_eq!((prepared.bytes, taken), (good.len_bytes, 2));
        assert_eq!(prepared.error, Some(PrepError::Rejected));
        channel.issue();
        assert_eq!(subject.run_to(first.after(1)), []);
    });
}

#[test]
fn a_list_fills_the_ring_and_no_more() {
    with_each(2 * SLOTS, &|subject, memory| {
        let copies = segments(memory);
        let first = subject.channel().next();
        let (prepared, _) = subject.channel().prep_list(&copies);
        assert_eq!((prepared.first, prepared.count), (Some(first), SLOTS));
        assert_eq!(prepared.bytes, SLOTS as u64 * 1000);
        assert_eq!(prepared.error, Some(PrepError::Full));
        subject.channel().issue();
        let end = first.after(SLOTS as u64);
        assert_eq!(subject.run_to(end), []);
        // The rest fits now, over the end of the ring.
        let (prepared, taken) = subject.channel().prep_list(&copies[SLOTS..]);
        assert_eq!((prepared.first, prepared.count), (Some(end), SLOTS));
        assert_eq!(taken, SLOTS);
        subject.channel().issue();
        assert_eq!(subject.run_to(end.after(SLOTS as u64)), []);
        assert_eq!(memory.arrived(), vec![true; 2 * SLOTS]);
    });
}

#[test]
fn each_failure_is_told_once_and_the_rest_is_copied() {
    for bad in [0, 3, SLOTS - 1] {
        with_each(SLOTS, &|subject, memory| {
            let mut copies = segments(memory);
            copies[bad].dst = NOWHERE;
            let first = subject.channel().next();
            assert_eq!(subject.channel().prep_list(&copies).0.count, SLOTS);
            subject.channel().issue();
            let failed = subject.run_to(first.after(SLOTS as u64));
            assert_eq!(failed, [first.after(bad as u64)]);
            for now_ns in 0..50 {
                assert_eq!(subject.look(now_ns).failure, None, "told twice");
            }
            let expected: Vec<bool> = (0..SLOTS).map(|n| n != bad).collect();
            assert_eq!(memory.arrived(), expected);
        });
    }
}

#[test]
fn all_may_fail() {
    with_each(SLOTS, &|subject, memory| {
        let mut copies = segments(memory);
        for copy in &mut copies {
            copy.src = NOWHERE;
        }
        let first = subject.channel().next();
        subject.channel().prep_list(&copies);
        subject.channel().issue();
        let failed = subject.run_to(first.after(SLOTS as u64));
        let all: Vec<Cookie> = (0..SLOTS as u64).map(|n| first.after(n)).collect();
        assert_eq!(failed, all);
        assert_eq!(memory.arrived(), [false; SLOTS]);
    });
}

#[test]
fn stopping_drops_what_is_not_over_and_uses_no_cookie_again() {
    for issued in [false, true] {
        with_each(SLOTS, &|subject, memory| {
            let copies = segments(memory);
            let first = subject.channel().next();
            subject.channel().prep_list(&copies);
            if issued {
                subject.channel().issue();
                let _some_of_it = subject.look(0);
            }
            let stopped = subject.channel().stop();
            assert!(stopped.proven);
            assert_eq!(stopped.health, Health::Alive);
            let over = stopped.done_before.since(first) as usize;
            assert!(over <= SLOTS && (issued || over == 0));
            // What it says is over has arrived, and nothing goes on.
            let there = memory.arrived();
            assert!(there.iter().take(over).all(|&copied| copied));
            for now_ns in 1..50 {
                let _nothing = subject.look(now_ns);
            }
            assert_eq!(memory.arrived(), there, "it went on");
            // It works again, under new cookies.
            let channel = subject.channel();
            assert_eq!(
                (channel.next(), channel.free()),
                (first.after(SLOTS as u64), SLOTS)
            );
            let (prepared, _) = channel.prep_list(&copies);
            assert_eq!(prepared.first, Some(first.after(SLOTS as u64)));
            channel.issue();
            assert_eq!(subject.run_to(first.after(2 * SLOTS as u64)), []);
            assert_eq!(memory.arrived(), [true; SLOTS]);
        });
    }
}
