//! The channels that all batches share.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use heapless::Vec;
use ptdma::{Cookie, Lock};

use crate::channel::{
    CopyChannel, Failure, Health, Limits, PrepError, Prepared, Progress, Segment,
};
use crate::stats::{ChannelStats, Totals};

/// Losses that a channel remembers until their owners have taken note. While it is full the
/// channel is not looked at, so that an engine that waits behind a failure goes on waiting; every
/// waiting batch takes its own out each time it looks.
const LOG_SLOTS: usize = 8;

/// Stops in a row, without [`GOOD_AGAIN`] good descriptors in between, after which a channel is
/// taken out. Twice may be an accident of the memory that was copied.
const MAX_STOPS: u32 = 3;

/// Descriptors after which a channel that was stopped by force is as good as any other.
const GOOD_AGAIN: u64 = 1024;

/// Failed descriptors in a row after which a channel is taken out: something is wrong with it and
/// not with the memory.
const MAX_ERRORS_IN_A_ROW: u32 = 16;

/// At most one loss for each entry of the log, and one for a channel that is out of service.
pub(crate) type Losses = Vec<Loss, { LOG_SLOTS + 1 }>;

/// What happened to descriptors that were not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The engine failed it; raw code.
    Failed(u8),
    /// It was dropped when the engine was stopped; it may be copied again by anybody.
    Dropped,
    /// The engine was not proven to have stopped.
    Unproven,
}

/// Descriptors `first..end` were not copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loss {
    pub(crate) first: Cookie,
    pub(crate) end: Cookie,
    pub(crate) cause: Cause,
}

#[derive(Clone, Copy, Debug)]
struct LogEntry {
    loss: Loss,
    /// Descriptors whose owners have not taken note.
    unclaimed: u64,
}

/// Whether a channel takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// In service.
    Active,
    /// Taken out; its engine is known to have stopped.
    Retired,
    /// Taken out, and its engine may still write: see [`Engines::confirm_stopped`].
    Unproven,
}

/// A channel and what batches have to know of each other's use of it. Lives inside the lock.
#[derive(Debug)]
pub struct Port<C> {
    channel: Option<C>,
    service: Service,
    /// All descriptors before this one are over.
    done_before: Cookie,
    /// What the next descriptor will be called.
    next: Cookie,
    log: Vec<LogEntry, LOG_SLOTS>,
    /// Descriptors that belong to some batch that has not let go of them.
    held: u64,
    /// When the engine was last seen to move, or was given work after a pause.
    moved_ns: u64,
    stops: u32,
    good: u64,
    errors_in_a_row: u32,
    stats: ChannelStats,
    limits: Limits,
}

impl<C: CopyChannel> Port<C> {
    /// Takes a channel in. It must be idle.
    pub fn new(channel: C) -> Self {
        let limits = channel.limits();
        let next = channel.next_cookie();
        Self {
            channel: Some(channel),
            service: Service::Active,
            done_before: next,
            next,
            log: Vec::new(),
            held: 0,
            moved_ns: 0,
            stops: 0,
            good: 0,
            errors_in_a_row: 0,
            stats: ChannelStats::default(),
            limits,
        }
    }

    /// A place for a channel that is not there yet: [`Engines::put`] fills it. For owners whose
    /// channels come and go, and are called by numbers that they choose.
    #[must_use]
    pub fn vacant() -> Self {
        let first = Cookie::new(0);
        Self {
            channel: None,
            service: Service::Retired,
            done_before: first,
            next: first,
            log: Vec::new(),
            held: 0,
            moved_ns: 0,
            stops: 0,
            good: 0,
            errors_in_a_row: 0,
            stats: ChannelStats::default(),
            limits: Limits {
                max_len_bytes: 0,
                align_bytes: 1,
                node: None,
                ring_slots: 0,
            },
        }
    }

    fn in_flight(&self) -> u64 {
        self.next.since(self.done_before)
    }

    /// Has the channel look at its engine.
    #[inline]
    fn poll(&mut self, now_ns: u64) {
        self.stats.polls = self.stats.polls.wrapping_add(1);
        self.ask(now_ns, C::poll);
    }

    /// Asks the channel for news, unless there would be no room for bad ones.
    #[inline(always)]
    fn ask(&mut self, now_ns: u64, how: impl FnOnce(&mut C, u64) -> Progress) {
        if self.service != Service::Active || self.log.is_full() {
            return;
        }
        let Some(channel) = &mut self.channel else {
            return;
        };
        let progress = how(channel, now_ns);
        self.absorb(progress, now_ns);
    }

    /// Takes note of what a channel answered.
    #[inline(always)]
    fn absorb(&mut self, progress: Progress, now_ns: u64) {
        let over = progress.done_before.since(self.done_before);
        // A channel must not take back what it said, nor finish what it was not given.
        let known = over <= self.in_flight();
        if !known || progress.failure.is_some() || progress.health != Health::Alive {
            self.absorb_trouble(progress, known, now_ns);
        } else if over != 0 {
            self.advance(over, over, now_ns);
        }
    }

    /// Notes that `over` descriptors more are over, `good` of which were copied.
    #[inline(always)]
    fn advance(&mut self, over: u64, good: u64, now_ns: u64) {
        self.done_before = self.done_before.after(over);
        self.moved_ns = now_ns;
        self.stats.completed = self.stats.completed.wrapping_add(over);
        if good != 0 {
            self.errors_in_a_row = 0;
            self.good = self.good.saturating_add(over);
            if self.good >= GOOD_AGAIN {
                self.stops = 0;
            }
        }
    }

    #[cold]
    fn absorb_trouble(&mut self, progress: Progress, known: bool, now_ns: u64) {
        let honest = progress.failure.is_none_or(|failure| {
            !failure.cookie.is_before(self.done_before)
                && failure.cookie.is_before(progress.done_before)
        });
        if !known || !honest {
            self.stop(now_ns, true);
            return;
        }
        let over = progress.done_before.since(self.done_before);
        if over != 0 {
            let failed = u64::from(progress.failure.is_some());
            self.advance(over, over.saturating_sub(failed), now_ns);
        }
        if let Some(Failure { cookie, code }) = progress.failure {
            self.stats.errors = self.stats.errors.wrapping_add(1);
            self.errors_in_a_row = self.errors_in_a_row.saturating_add(1);
            let loss = Loss {
                first: cookie,
                end: cookie.after(1),
                cause: Cause::Failed(code),
            };
            // There is room: looked at before the channel was asked.
            let _ = self.log.push(LogEntry { loss, unclaimed: 1 });
            if self.errors_in_a_row >= MAX_ERRORS_IN_A_ROW {
                self.stops = MAX_STOPS;
                self.stop(now_ns, true);
            }
        }
        if progress.health == Health::Faulted && self.service == Service::Active {
            self.stop(now_ns, true);
        }
    }

    /// Stops the engine. What it had is lost; owners find out when they look.
    #[cold]
    fn stop(&mut self, now_ns: u64, blame: bool) {
        let Some(channel) = &mut self.channel else {
            return;
        };
        if self.service != Service::Active {
            return;
        }
        self.stats.stops = self.stats.stops.wrapping_add(1);
        if blame {
            self.stops = self.stops.saturating_add(1);
            self.good = 0;
        }
        let stopped = channel.terminate(now_ns);
        // Only as far as it makes sense is the channel believed.
        if !stopped.done_before.is_before(self.done_before)
            && !self.next.is_before(stopped.done_before)
        {
            let over = stopped.done_before.since(self.done_before);
            self.stats.completed = self.stats.completed.wrapping_add(over);
            self.done_before = stopped.done_before;
        }
        let dropped = self.in_flight();
        self.stats.dropped = self.stats.dropped.wrapping_add(dropped);
        if !stopped.proven {
            self.service = Service::Unproven;
            return;
        }
        if stopped.health == Health::Faulted || self.stops > MAX_STOPS {
            self.service = Service::Retired;
            return;
        }
        if dropped == 0 {
            return;
        }
        let loss = Loss {
            first: self.done_before,
            end: self.next,
            cause: Cause::Dropped,
        };
        let entry = LogEntry {
            loss,
            unclaimed: dropped,
        };
        if self.log.push(entry).is_err() {
            // A retired channel needs no entry: everything from `done_before` on is lost.
            self.service = Service::Retired;
            return;
        }
        self.done_before = self.next;
        self.moved_ns = now_ns;
    }

    /// Hands over what `first..end`, which belongs to the caller, has lost.
    fn claim(&mut self, first: Cookie, end: Cookie, losses: &mut Losses) {
        let mut index = 0;
        while let Some(entry) = self.log.get_mut(index) {
            let from = later(entry.loss.first, first);
            let to = earlier(entry.loss.end, end);
            if from.is_before(to) {
                let mine = Loss {
                    first: from,
                    end: to,
                    cause: entry.loss.cause,
                };
                // One for each entry and one more: there is room.
                let _ = losses.push(mine);
                entry.unclaimed = entry.unclaimed.saturating_sub(to.since(from));
                if entry.unclaimed == 0 {
                    self.log.swap_remove(index);
                    continue;
                }
            }
            index = index.wrapping_add(1);
        }
        if self.service != Service::Active {
            let from = later(self.done_before, first);
            if from.is_before(end) {
                let cause = match self.service {
                    Service::Unproven => Cause::Unproven,
                    Service::Active | Service::Retired => Cause::Dropped,
                };
                let _ = losses.push(Loss {
                    first: from,
                    end,
                    cause,
                });
            }
        }
    }
}

fn later(a: Cookie, b: Cookie) -> Cookie {
    if a.is_before(b) { b } else { a }
}

fn earlier(a: Cookie, b: Cookie) -> Cookie {
    if a.is_before(b) { a } else { b }
}

/// How to look at a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// At what is known: no hardware, unless that is so old that the engine seems to hang.
    Known,
    /// Poll it.
    Poll,
    /// Its interrupt is overdue.
    Overdue,
}

/// What is looked at: descriptors of one owner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    pub(crate) first: Cookie,
    /// One past the last.
    pub(crate) end: Cookie,
    pub(crate) now_ns: u64,
    /// How long the engine may stand still.
    pub(crate) hang_ns: u64,
}

/// What a look found out for the owner of some descriptors.
#[derive(Debug)]
pub(crate) struct Sight {
    /// Whether all of them are over. If nothing was lost, they are not held any more.
    pub(crate) over: bool,
    pub(crate) free_slots: usize,
    pub(crate) active: bool,
}

/// What a glance at a channel tells the owner of some descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Glance {
    /// All of them are over, none was lost, and they are not held any more.
    Over,
    /// Not all of them are over, as far as is known.
    NotYet,
    /// That takes a [`look`](Engines::look).
    Unusual,
}

/// What became of a chunk of descriptors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    pub(crate) first: Cookie,
    /// So many were accepted, from the first of the chunk on.
    pub(crate) count: usize,
    /// Bytes of those.
    pub(crate) bytes: u64,
    /// Why the next one was not.
    pub(crate) error: Option<PrepError>,
    pub(crate) rang: bool,
}

impl Accepted {
    /// Nothing, and why.
    pub(crate) const fn nothing(error: Option<PrepError>) -> Self {
        Self {
            first: Cookie::new(0),
            count: 0,
            bytes: 0,
            error,
            rang: false,
        }
    }
}

/// How what was prepared is to be announced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Announce {
    /// Ring the doorbell.
    pub(crate) ring: bool,
    /// The last descriptor shall interrupt.
    pub(crate) interrupt: bool,
    /// Copies that were offered to the channel.
    pub(crate) offered: usize,
    /// Parts of folios that have no copy of their own.
    pub(crate) coalesced: u64,
}

impl<C: CopyChannel> Port<C> {
    /// Looks at the channel on behalf of the owner of `first..end`.
    fn look(&mut self, watch: &Watch, look: Look, losses: &mut Losses) -> Sight {
        let Watch {
            first,
            end,
            now_ns,
            hang_ns,
        } = *watch;
        if self.done_before.is_before(end) {
            match look {
                // What is known may be old: between interrupts nobody looks.
                Look::Known if !self.stands(now_ns, hang_ns) => {}
                Look::Known | Look::Poll => self.poll(now_ns),
                Look::Overdue => {
                    self.stats.polls = self.stats.polls.wrapping_add(1);
                    self.ask(now_ns, C::overdue);
                }
            }
            if self.stands(now_ns, hang_ns) {
                self.stats.hangs = self.stats.hangs.wrapping_add(1);
                self.stop(now_ns, true);
            }
        }
        if !self.log.is_empty() || self.service != Service::Active {
            self.claim(first, end, losses);
        }
        let active = self.service == Service::Active;
        let over = !self.done_before.is_before(end) || !active;
        // What was lost is still being dealt with: see `let_go`.
        if over && losses.is_empty() {
            self.held = self.held.saturating_sub(end.since(first));
        }
        Sight {
            over,
            free_slots: self.free_slots(),
            active,
        }
    }

    /// What [`look`](Self::look) comes to where nothing is amiss; `ask` says whether to poll.
    #[inline]
    fn glance(&mut self, watch: &Watch, ask: bool) -> Glance {
        if !self.is_well() {
            return Glance::Unusual;
        }
        if self.done_before.is_before(watch.end) {
            if ask {
                self.poll(watch.now_ns);
                if !self.is_well() {
                    return Glance::Unusual;
                }
            }
            if self.done_before.is_before(watch.end) {
                return if self.stands(watch.now_ns, watch.hang_ns) {
                    Glance::Unusual
                } else {
                    Glance::NotYet
                };
            }
        }
        self.held = self.held.saturating_sub(watch.end.since(watch.first));
        Glance::Over
    }

    /// Whether it is in service, and nobody's descriptors were lost.
    #[inline]
    fn is_well(&self) -> bool {
        self.service == Service::Active && self.log.is_empty()
    }

    /// Whether the engine has work and has not been seen to move for `hang_ns`.
    fn stands(&self, now_ns: u64, hang_ns: u64) -> bool {
        self.service == Service::Active
            && self.in_flight() != 0
            && now_ns.saturating_sub(self.moved_ns) >= hang_ns
            && !self.log.is_full()
    }

    fn free_slots(&self) -> usize {
        match (&self.channel, self.service) {
            (Some(channel), Service::Active) => channel.free_slots(),
            _ => 0,
        }
    }

    /// Has copies prepared and makes them known.
    #[inline]
    fn submit(
        &mut self,
        now_ns: u64,
        prepare: impl FnOnce(&mut C) -> (Prepared, Announce),
    ) -> Accepted {
        let mut accepted = Accepted {
            first: self.next,
            count: 0,
            bytes: 0,
            error: Some(PrepError::Faulted),
            rang: false,
        };
        let (Some(channel), Service::Active) = (&mut self.channel, self.service) else {
            return accepted;
        };
        if self.done_before == self.next {
            self.moved_ns = now_ns;
        }
        let (prepared, announce) = prepare(channel);
        accepted.error = prepared.error;
        // Cookies that are not the next ones would make every later report a guess; what has them
        // is not known to any batch, so it must not run.
        let known = prepared.count == 0 || prepared.first == Some(self.next);
        if !known {
            accepted.error = Some(PrepError::Faulted);
        } else {
            let count = prepared.count as u64;
            accepted.count = prepared.count;
            accepted.bytes = prepared.bytes;
            self.next = self.next.after(count);
            self.held = self.held.wrapping_add(count);
            let stats = &mut self.stats;
            stats.submitted = stats.submitted.wrapping_add(count);
            stats.bytes = stats.bytes.wrapping_add(prepared.bytes);
            if accepted.count == announce.offered {
                stats.coalesced = stats.coalesced.wrapping_add(announce.coalesced);
            }
        }
        // What was accepted has to run, too, if not all of it was.
        if known && (announce.ring || accepted.error.is_some()) {
            channel.issue_pending(announce.interrupt || accepted.error.is_some());
            accepted.rang = accepted.count != 0;
            self.stats.doorbells = self.stats.doorbells.wrapping_add(1);
        }
        if accepted.error == Some(PrepError::Faulted) {
            self.stop(now_ns, true);
        }
        accepted
    }
}

impl<C: CopyChannel> Port<C> {
    /// [`submit`](Self::submit) for one copy, announced at once. `None` if it was not accepted;
    /// then nothing of it is known to the engine.
    #[inline]
    fn submit_one(&mut self, now_ns: u64, copy: Segment, interrupt: bool) -> Option<Cookie> {
        let (Some(channel), Service::Active) = (&mut self.channel, self.service) else {
            return None;
        };
        if copy.len_bytes > self.limits.max_len_bytes {
            return None;
        }
        let first = self.next;
        let cookie = channel.prep(copy, interrupt).ok()?;
        if cookie != first {
            // As in `submit`: it must not run.
            self.stop(now_ns, true);
            return None;
        }
        channel.issue_pending(false);
        if self.done_before == first {
            self.moved_ns = now_ns;
        }
        self.next = first.after(1);
        self.held = self.held.wrapping_add(1);
        let stats = &mut self.stats;
        stats.submitted = stats.submitted.wrapping_add(1);
        stats.bytes = stats.bytes.wrapping_add(copy.len_bytes);
        stats.doorbells = stats.doorbells.wrapping_add(1);
        Some(first)
    }
}

/// A channel with what is asked about it without its lock.
#[derive(Debug)]
struct Slot<L> {
    port: L,
    limits: SharedLimits,
    /// Bytes that batches have given to the channel and not got back. A hint.
    load_bytes: AtomicU64,
    /// A hint: the truth is behind the lock.
    active: AtomicBool,
}

/// A channel's limits, read without its lock.
#[derive(Debug)]
struct SharedLimits {
    max_len_bytes: AtomicU64,
    align_bytes: AtomicU64,
    /// [`NO_NODE`] if not known.
    node: AtomicU32,
    ring_slots: AtomicUsize,
}

/// Larger than any node number.
const NO_NODE: u32 = u32::MAX;

impl SharedLimits {
    fn new(limits: Limits) -> Self {
        Self {
            max_len_bytes: AtomicU64::new(limits.max_len_bytes),
            align_bytes: AtomicU64::new(limits.align_bytes),
            node: AtomicU32::new(limits.node.map_or(NO_NODE, u32::from)),
            ring_slots: AtomicUsize::new(limits.ring_slots),
        }
    }

    fn set(&self, limits: Limits) {
        let node = limits.node.map_or(NO_NODE, u32::from);
        self.max_len_bytes
            .store(limits.max_len_bytes, Ordering::Relaxed);
        self.align_bytes
            .store(limits.align_bytes, Ordering::Relaxed);
        self.node.store(node, Ordering::Relaxed);
        self.ring_slots.store(limits.ring_slots, Ordering::Relaxed);
    }

    fn get(&self) -> Limits {
        Limits {
            max_len_bytes: self.max_len_bytes.load(Ordering::Relaxed),
            align_bytes: self.align_bytes.load(Ordering::Relaxed),
            node: u16::try_from(self.node.load(Ordering::Relaxed)).ok(),
            ring_slots: self.ring_slots.load(Ordering::Relaxed),
        }
    }
}

/// A channel cannot be taken out yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotIdle {
    /// There is no channel with this number, or it was taken out before.
    Absent,
    /// It is in service: [`Engines::retire`] it first.
    InService,
    /// Its engine may still write: [`Engines::confirm_stopped`] first.
    Unproven,
    /// Batches have yet to take note of what became of this many descriptors. They do so on
    /// their own, soon.
    Held {
        /// How many.
        descriptors: u64,
    },
}

impl core::fmt::Display for NotIdle {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Absent => f.write_str("there is no such channel"),
            Self::InService => f.write_str("the channel is in service: retire it first"),
            Self::Unproven => {
                f.write_str("the engine may still write: reset the function, then confirm it")
            }
            Self::Held { descriptors } => write!(
                f,
                "batches have yet to take note of {descriptors} descriptors: try again"
            ),
        }
    }
}

impl core::error::Error for NotIdle {}

/// Up to `N` channels, shared by any number of batches on any number of CPUs.
///
/// `L` is the lock around each channel: [`spin::Mutex`] on bare metal, the kernel's own in a
/// kernel. One lock is held at a time, for at most [`CHUNK`](crate::CHUNK) descriptors.
#[derive(Debug)]
pub struct Engines<C, L, const N: usize> {
    slots: Vec<Slot<L>, N>,
    /// One past the highest number that was ever in service: places behind it need no look.
    used: AtomicUsize,
    /// The strictest alignment of all channels that were ever in service.
    align_bytes: AtomicU64,
    next_start: AtomicUsize,
    totals: AtomicTotals,
    channel: PhantomData<fn() -> C>,
}

#[derive(Debug)]
struct AtomicTotals {
    batches: AtomicU64,
    declined: AtomicU64,
    folios_dma: AtomicU64,
    folios_cpu: AtomicU64,
    fallbacks: AtomicU64,
}

/// The numbers of channels, in the order in which a batch shall use them.
pub(crate) type Choice<const N: usize> = Vec<usize, N>;

impl<C: CopyChannel, L: Lock<Port<C>>, const N: usize> Default for Engines<C, L, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: CopyChannel, L: Lock<Port<C>>, const N: usize> Engines<C, L, N> {
    /// No channels yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slots: Vec::new(),
            used: AtomicUsize::new(0),
            align_bytes: AtomicU64::new(1),
            next_start: AtomicUsize::new(0),
            totals: AtomicTotals {
                batches: AtomicU64::new(0),
                declined: AtomicU64::new(0),
                folios_dma: AtomicU64::new(0),
                folios_cpu: AtomicU64::new(0),
                fallbacks: AtomicU64::new(0),
            },
            channel: PhantomData,
        }
    }

    /// Adds a channel, as `lock(port)` with a [`Port::new`]; returns its number.
    ///
    /// # Errors
    ///
    /// Gives it back if there are `N` already.
    pub fn add(&mut self, port: L) -> Result<usize, L> {
        let number = self.slots.len();
        let (limits, service) = port.with(|port| (port.limits, port.service));
        let slot = Slot {
            port,
            limits: SharedLimits::new(limits),
            load_bytes: AtomicU64::new(0),
            active: AtomicBool::new(service == Service::Active),
        };
        match self.slots.push(slot) {
            Ok(()) => {
                if service == Service::Active {
                    self.uses(number, limits);
                }
                Ok(number)
            }
            Err(slot) => Err(slot.port),
        }
    }

    fn uses(&self, number: usize, limits: Limits) {
        let end = number.saturating_add(1);
        self.used.fetch_max(end, Ordering::Relaxed);
        self.align_bytes
            .fetch_max(limits.align_bytes, Ordering::Relaxed);
    }

    /// The places in which a channel was ever in service.
    fn used(&self) -> &[Slot<L>] {
        let used = self.used.load(Ordering::Relaxed);
        self.slots.get(..used).unwrap_or_default()
    }

    /// How many channels were added, those out of service included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How many channels are in service.
    #[must_use]
    pub fn active(&self) -> usize {
        self.used().iter().filter(|slot| slot.is_active()).count()
    }

    /// The interrupt handler's entry point: call it for every interrupt of channel `number`, then
    /// wake whoever waits. It acknowledges the interrupt and records what the engine has done, so
    /// that waiters need not ask. Takes the channel's lock.
    pub fn interrupt(&self, number: usize, now_ns: u64) {
        self.with(number, |port| {
            port.stats.interrupts = port.stats.interrupts.wrapping_add(1);
            port.ask(now_ns, C::interrupt);
        });
    }

    /// Whether a channel takes part; `None` if there is none with this number.
    #[must_use]
    pub fn service(&self, number: usize) -> Option<Service> {
        self.with(number, |port| port.service)
    }

    /// What a channel did; `None` if there is none with this number.
    #[must_use]
    pub fn channel_stats(&self, number: usize) -> Option<ChannelStats> {
        self.with(number, |port| port.stats)
    }

    /// What all batches came to.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Totals {
            batches: get(&self.totals.batches),
            declined: get(&self.totals.declined),
            folios_dma: get(&self.totals.folios_dma),
            folios_cpu: get(&self.totals.folios_cpu),
            fallbacks: get(&self.totals.fallbacks),
        }
    }

    /// Runs `f` with the channel itself, for what only its owner knows how to do (statistics,
    /// power management). `f` must not submit or complete anything.
    pub fn with_channel<T>(&self, number: usize, f: impl FnOnce(&mut C) -> T) -> Option<T> {
        self.with(number, |port| port.channel.as_mut().map(f))
            .flatten()
    }

    /// Takes a channel out of service: stops its engine; batches move what it had to others.
    /// Returns whether the engine is known to have stopped. For hot removal, power management and
    /// unloading.
    pub fn retire(&self, number: usize, now_ns: u64) -> bool {
        self.with(number, |port| {
            port.stops = MAX_STOPS;
            port.stop(now_ns, true);
            port.service == Service::Retired
        })
        .unwrap_or(true)
    }

    /// States that the engine of a channel can no longer reach memory, because its function was
    /// reset, cut off or removed. Batches that wait for it then have the work done by others.
    pub fn confirm_stopped(&self, number: usize) {
        self.with(number, |port| {
            if port.service == Service::Unproven {
                port.service = Service::Retired;
            }
        });
    }

    /// Takes a channel that is out of service away.
    ///
    /// # Errors
    ///
    /// [`NotIdle`]: not yet.
    pub fn take(&self, number: usize) -> Result<C, NotIdle> {
        self.with(number, |port| match port.service {
            Service::Active => Err(NotIdle::InService),
            Service::Unproven => Err(NotIdle::Unproven),
            Service::Retired if port.held != 0 => Err(NotIdle::Held {
                descriptors: port.held,
            }),
            Service::Retired => port.channel.take().ok_or(NotIdle::Absent),
        })
        .unwrap_or(Err(NotIdle::Absent))
    }

    /// Puts a channel in the place of one that was [taken](Self::take) away, and into service.
    /// Statistics go on counting. If its limits differ from those of the one before, no batch may
    /// be running: batches read them more than once.
    ///
    /// # Errors
    ///
    /// Gives the channel back if the place is not empty.
    pub fn put(&self, number: usize, channel: C) -> Result<(), C> {
        let Some(slot) = self.slots.get(number) else {
            return Err(channel);
        };
        slot.port.with(|port| {
            if port.channel.is_some() {
                return Err(channel);
            }
            slot.limits.set(channel.limits());
            self.uses(number, channel.limits());
            let stats = port.stats;
            *port = Port::new(channel);
            port.stats = stats;
            slot.active.store(true, Ordering::Relaxed);
            Ok(())
        })
    }

    fn with<T>(&self, number: usize, f: impl FnOnce(&mut Port<C>) -> T) -> Option<T> {
        self.slots.get(number).map(|slot| {
            slot.port.with(|port| {
                let result = f(port);
                if port.service != Service::Active {
                    slot.active.store(false, Ordering::Relaxed);
                }
                result
            })
        })
    }

    pub(crate) fn limits(&self, number: usize) -> Option<Limits> {
        self.slots.get(number).map(|slot| slot.limits.get())
    }

    /// The strictest alignment of all channels.
    pub(crate) fn align_bytes(&self) -> u64 {
        self.align_bytes.load(Ordering::Relaxed)
    }

    /// Whether a channel takes part, as far as is known without its lock.
    #[must_use]
    pub fn is_active(&self, number: usize) -> bool {
        self.slots.get(number).is_some_and(Slot::is_active)
    }

    /// Chooses up to `most` channels: those near the destination first (writes cross the fabric
    /// at a higher price than reads), then those near the source, then the least loaded. Each
    /// batch starts with another one, so that batches that begin together do not queue up at the
    /// same lock.
    pub(crate) fn choose(
        &self,
        most: usize,
        dst_node: Option<u16>,
        src_node: Option<u16>,
        only: Option<usize>,
        choice: &mut Choice<N>,
    ) {
        choice.clear();
        let used = self.used();
        let start = self.next_start.fetch_add(1, Ordering::Relaxed);
        let first = start.checked_rem(used.len()).unwrap_or(0);
        if let Some(only) = only {
            if used.get(only).is_some_and(Slot::is_active) {
                let _ = choice.push(only);
            }
            return;
        }
        let mut take = |from: usize, slots: &[Slot<L>]| {
            for (number, slot) in (from..).zip(slots) {
                if slot.is_active() {
                    let _ = choice.push(number);
                }
            }
        };
        take(first, used.get(first..).unwrap_or_default());
        take(0, used.get(..first).unwrap_or_default());
        if most < choice.len() {
            let key = |number: &usize| self.slots.get(*number).map(|s| s.rank(dst_node, src_node));
            // Selection: `most` passes over few channels.
            let cells = core::cell::Cell::from_mut(choice.as_mut_slice()).as_slice_of_cells();
            for place in 0..most {
                let rest = cells.iter().skip(place);
                let best = rest.min_by_key(|cell| key(&cell.get()));
                if let (Some(best), Some(here)) = (best, cells.get(place)) {
                    here.swap(best);
                }
            }
            choice.truncate(most);
        }
    }

    pub(crate) fn look(
        &self,
        number: usize,
        watch: &Watch,
        look: Look,
        losses: &mut Losses,
    ) -> Option<Sight> {
        self.with(number, |port| port.look(watch, look, losses))
    }

    pub(crate) fn free_slots(&self, number: usize) -> usize {
        self.with(number, |port| port.free_slots()).unwrap_or(0)
    }

    /// Lets go of descriptors that are over, once it is settled what becomes of those that were
    /// lost. Until then the channel cannot be taken away.
    pub(crate) fn let_go(&self, number: usize, descriptors: u64) {
        self.with(number, |port| {
            port.held = port.held.saturating_sub(descriptors);
        });
    }

    pub(crate) fn stop(&self, number: usize, now_ns: u64, hang_ns: u64) {
        self.with(number, |port| {
            // An engine that was at work is not to blame for somebody's deadline.
            let stood_still = now_ns.saturating_sub(port.moved_ns) >= hang_ns;
            if port.in_flight() != 0 {
                port.stop(now_ns, stood_still);
            }
        });
    }

    /// Has descriptors prepared, with the channel's lock held.
    #[inline]
    pub(crate) fn submit(
        &self,
        number: usize,
        now_ns: u64,
        prepare: impl FnOnce(&mut C) -> (Prepared, Announce),
    ) -> Accepted {
        let Some(slot) = self.slots.get(number) else {
            return Accepted::nothing(Some(PrepError::Faulted));
        };
        let accepted = slot.port.with(|port| port.submit(now_ns, prepare));
        slot.load_bytes.fetch_add(accepted.bytes, Ordering::Relaxed);
        accepted
    }

    /// [`submit`](Self::submit) for one copy, the doorbell included; the cookie of its descriptor.
    /// `None` if it was not accepted: `submit` says why.
    #[inline]
    pub(crate) fn submit_one(
        &self,
        number: usize,
        now_ns: u64,
        copy: Segment,
        interrupt: bool,
    ) -> Option<Cookie> {
        let slot = self.slots.get(number)?;
        let accepted = slot
            .port
            .with(|port| port.submit_one(now_ns, copy, interrupt));
        if accepted.is_some() {
            slot.load_bytes.fetch_add(copy.len_bytes, Ordering::Relaxed);
        }
        accepted
    }

    /// [`look`](Self::look) for the usual case, in which the answer is yes or not yet; with `ask`,
    /// the channel is polled. What is over is taken off the channel's load: `bytes`.
    #[inline]
    pub(crate) fn glance(&self, number: usize, watch: &Watch, ask: bool, bytes: u64) -> Glance {
        let Some(slot) = self.slots.get(number) else {
            return Glance::Unusual;
        };
        let glance = slot.port.with(|port| port.glance(watch, ask));
        if glance == Glance::Over {
            slot.load_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        glance
    }

    /// Rings the doorbell for what was prepared without.
    pub(crate) fn ring(&self, number: usize, interrupt: bool) {
        self.with(number, |port| {
            if let (Some(channel), Service::Active) = (&mut port.channel, port.service) {
                channel.issue_pending(interrupt);
                port.stats.doorbells = port.stats.doorbells.wrapping_add(1);
            }
        });
    }

    /// Bytes that batches have given to a channel and not got back. A hint.
    pub(crate) fn load_bytes(&self, number: usize) -> u64 {
        self.slots
            .get(number)
            .map_or(0, |slot| slot.load_bytes.load(Ordering::Relaxed))
    }

    pub(crate) fn sub_load(&self, number: usize, bytes: u64) {
        if let Some(slot) = self.slots.get(number) {
            slot.load_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    pub(crate) fn count_batch(&self, dma: usize, cpu: usize, left: usize) {
        let totals = &self.totals;
        totals.batches.fetch_add(1, Ordering::Relaxed);
        totals.folios_dma.fetch_add(dma as u64, Ordering::Relaxed);
        totals.folios_cpu.fetch_add(cpu as u64, Ordering::Relaxed);
        totals.fallbacks.fetch_add(left as u64, Ordering::Relaxed);
    }

    /// Counts a batch of `folios` folios that was not run because the policy left it to the CPU.
    pub fn count_declined(&self, folios: usize) {
        self.totals.declined.fetch_add(1, Ordering::Relaxed);
        self.totals
            .fallbacks
            .fetch_add(folios as u64, Ordering::Relaxed);
    }
}

impl<L> Slot<L> {
    fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    fn rank(&self, dst_node: Option<u16>, src_node: Option<u16>) -> (u8, u64) {
        let node = self.limits.get().node;
        let distance = match node {
            Some(_) if node == dst_node => 0,
            Some(_) if node == src_node => 1,
            _ => 2,
        };
        (distance, self.load_bytes.load(Ordering::Relaxed))
    }
}
