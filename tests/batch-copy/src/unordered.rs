//! An engine that is no PTDMA: a function with several work queues, whose descriptors end in any
//! order, each with a status of its own.
//!
//! Such engines exist, and the channel trait asks that descriptors end in order. The channel of such
//! an engine keeps the statuses and answers with the oldest descriptor that is not over. Engines
//! that end in order pay nothing for that.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use batch_copy::{
    ChannelLimits, CopyChannel, CopyFailure, CopyProgress, Health, PrepError, Segment, Stopped,
};
use ptdma::{Cookie, DmaAddr};
use ptdma_model::{BusMemory, BusSpace};

/// Longest copy of one descriptor, in bytes. No power of two: nobody is to rely on one.
pub const MAX_LEN_BYTES: u64 = 3_000_000;

/// Descriptors of a queue that the engine has begun at once, and ends in any order.
const WIDTH: usize = 4;

/// The status of a descriptor that met an address without memory.
pub const PAGE_FAULT: u8 = 3;

/// The status of a descriptor that failed because [`Function::fail_every`] says so.
pub const HARDWARE_ERROR: u8 = 9;

/// A descriptor and what became of it.
#[derive(Debug)]
struct Record {
    copy: Segment,
    issued: bool,
    /// `None`: not over.
    status: Option<Result<(), u8>>,
}

/// A queue of descriptors, oldest first, and where its engine is.
#[derive(Debug, Default)]
struct Queue {
    records: VecDeque<Record>,
    /// The oldest of the records.
    first: Cookie,
    /// The queue stands when it has ended so many more.
    hangs_after: Option<u64>,
    /// What the engine had begun when it was told to stop: it ends those before it stands.
    begun: Vec<Segment>,
    /// The engine was told to stop, and had begun something.
    stopping: bool,
}

#[derive(Debug)]
struct Shared {
    bus: BusSpace,
    queues: Vec<Queue>,
    /// Chooses what ends next.
    random: u64,
    /// A stop lets the engine end what it has begun.
    slow_stop: bool,
    /// Each so many descriptors fail, and copy nothing; 0: none.
    fail_every: u64,
    /// Descriptors that ended.
    ended: u64,
    /// Of these, descriptors that failed.
    failed: u64,
    /// Descriptors that ended before one that was issued earlier.
    overtakings: u64,
}

impl Shared {
    fn random(&mut self, below: usize) -> usize {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % below.max(1)
    }

    /// One descriptor of one queue ends.
    fn step(&mut self, number: usize) {
        let choice = self.random(WIDTH);
        let Some(queue) = self.queues.get_mut(number) else {
            return;
        };
        if let Some(copy) = queue.begun.pop() {
            // Nobody is told what became of it.
            let _ = self.bus.copy(copy.src, copy.dst, copy.len_bytes);
            return;
        }
        if queue.stopping || queue.hangs_after == Some(0) {
            return;
        }
        let open: Vec<usize> = (0..queue.records.len())
            .filter(|&index| {
                let record = &queue.records[index];
                record.issued && record.status.is_none()
            })
            .take(WIDTH)
            .collect();
        let Some(&index) = open.get(choice % open.len().max(1)) else {
            return;
        };
        let record = &mut queue.records[index];
        let copy = record.copy;
        self.ended += 1;
        let done = if self.fail_every != 0 && self.ended.is_multiple_of(self.fail_every) {
            Err(HARDWARE_ERROR)
        } else {
            let done = self.bus.copy(copy.src, copy.dst, copy.len_bytes);
            done.map_err(|_| PAGE_FAULT)
        };
        self.failed += u64::from(done.is_err());
        record.status = Some(done);
        self.overtakings += u64::from(open.first() != Some(&index));
        if let Some(left) = &mut queue.hangs_after {
            *left -= 1;
        }
    }
}

/// The function: one domain of addresses, and queues that stop by themselves but are reset together.
#[derive(Clone, Debug)]
pub struct Function(Arc<Mutex<Shared>>);

impl Function {
    /// A function with `queues` queues. `seed` decides what ends when.
    #[must_use]
    pub fn new(bus: &BusSpace, queues: usize, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            bus: bus.clone(),
            queues: (0..queues).map(|_| Queue::default()).collect(),
            random: seed,
            slow_stop: false,
            fail_every: 0,
            ended: 0,
            failed: 0,
            overtakings: 0,
        })))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().expect("no test panics in here")
    }

    /// The channel of a queue, with a ring of `slots` descriptors.
    #[must_use]
    pub fn channel(&self, queue: usize, slots: usize, node: Option<u16>) -> Unordered {
        Unordered {
            function: self.clone(),
            queue,
            slots,
            node,
        }
    }

    /// Each queue ends one descriptor.
    pub fn step(&self) {
        let mut shared = self.shared();
        for number in 0..shared.queues.len() {
            shared.step(number);
        }
    }

    /// A queue hangs when it has ended `more` further descriptors.
    ///
    /// # Panics
    ///
    /// If there is no such queue.
    pub fn hang(&self, queue: usize, more: u64) {
        let mut shared = self.shared();
        shared.queues[queue].hangs_after = Some(more);
    }

    /// From now on a stop takes time: the engine ends what it has begun, and only then it stands.
    pub fn stop_slowly(&self) {
        self.shared().slow_stop = true;
    }

    /// Waits until a queue that was told to stop stands. What a driver sleeps for.
    ///
    /// # Panics
    ///
    /// If there is no such queue.
    pub fn drain(&self, queue: usize) {
        let mut shared = self.shared();
        while !shared.queues[queue].begun.is_empty() {
            shared.step(queue);
        }
    }

    /// Each `count`th descriptor fails from now on, and copies nothing; 0: none.
    pub fn fail_every(&self, count: u64) {
        self.shared().fail_every = count;
    }

    /// Descriptors that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.shared().failed
    }

    /// Descriptors that ended before one that was issued earlier.
    #[must_use]
    pub fn overtakings(&self) -> u64 {
        self.shared().overtakings
    }
}

/// One queue of a [`Function`], as a channel.
#[derive(Debug)]
pub struct Unordered {
    function: Function,
    queue: usize,
    slots: usize,
    node: Option<u16>,
}

impl Unordered {
    fn with<R>(&self, f: impl FnOnce(&mut Queue) -> R) -> R {
        let mut shared = self.function.shared();
        f(&mut shared.queues[self.queue])
    }
}

impl CopyChannel for Unordered {
    fn limits(&self) -> ChannelLimits {
        let mut limits = ChannelLimits::new(MAX_LEN_BYTES, self.slots);
        limits.node = self.node;
        limits
    }

    fn next_cookie(&self) -> Cookie {
        self.with(|queue| queue.first.after(queue.records.len() as u64))
    }

    fn free_slots(&self) -> usize {
        self.with(|queue| self.slots - queue.records.len())
    }

    fn prep(&mut self, copy: Segment, _interrupt: bool) -> Result<Cookie, PrepError> {
        let ends = |at: DmaAddr| at.get().checked_add(copy.len_bytes).is_some();
        if copy.len_bytes == 0
            || copy.len_bytes > MAX_LEN_BYTES
            || !ends(copy.src)
            || !ends(copy.dst)
        {
            return Err(PrepError::Rejected);
        }
        if self.free_slots() == 0 {
            return Err(PrepError::Full);
        }
        let cookie = self.next_cookie();
        self.with(|queue| {
            queue.records.push_back(Record {
                copy,
                issued: false,
                status: None,
            });
        });
        Ok(cookie)
    }

    fn issue_pending(&mut self, _interrupt: bool) {
        self.with(|queue| {
            queue
                .records
                .iter_mut()
                .for_each(|record| record.issued = true);
        });
    }

    /// Goes over the oldest descriptors that have ended, up to the first failure.
    fn poll(&mut self, _now_ns: u64) -> CopyProgress {
        self.with(|queue| {
            let mut failure = None;
            while failure.is_none()
                && let Some(status) = queue.records.front().and_then(|record| record.status)
            {
                let _ = queue.records.pop_front();
                failure = status.err().map(|code| CopyFailure {
                    cookie: queue.first,
                    code,
                });
                queue.first = queue.first.after(1);
            }
            CopyProgress {
                done_before: queue.first,
                failure,
                begun_again: false,
                health: if queue.stopping {
                    Health::Faulted
                } else {
                    Health::Alive
                },
            }
        })
    }

    /// What has ended behind a descriptor that has not is dropped too.
    fn terminate(&mut self, _now_ns: u64) -> Stopped {
        let slow = self.function.shared().slow_stop;
        self.with(|queue| {
            let done_before = queue.first;
            queue.first = queue.first.after(queue.records.len() as u64);
            let dropped = queue.records.drain(..);
            let open = dropped.filter(|record| record.issued && record.status.is_none());
            let begun: Vec<Segment> = open.take(WIDTH).map(|record| record.copy).collect();
            if slow && !begun.is_empty() {
                queue.begun = begun;
                queue.stopping = true;
            } else if queue.begun.is_empty() {
                queue.stopping = false;
                queue.hangs_after = None;
            }
            let stands = queue.begun.is_empty();
            Stopped {
                done_before,
                proven: stands,
                health: if stands {
                    Health::Alive
                } else {
                    Health::Faulted
                },
            }
        })
    }
}
