//! The channels that all batches share.

mod look;
mod ownership;
mod port;
mod slot;
mod submit;

use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use heapless::Vec;
use ptdma::Lock;

use crate::channel::{CopyChannel, Limits, PrepError, Prepared, Segment};
use crate::stats::{ChannelStats, Totals};

use port::MAX_STOPS;
use slot::{SharedLimits, Slot};

pub(crate) use look::{Glance, Look, Motion, Sight, Watch};
pub(crate) use ownership::{Cause, Loss, Share};
pub(crate) use port::Losses;
pub use port::{Port, Service};
pub(crate) use submit::{Accepted, Announce};

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
    /// How many channels are in service: changed with the channel's lock held, read without.
    active: AtomicUsize,
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
            active: AtomicUsize::new(0),
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
                    self.active.fetch_add(1, Ordering::Relaxed);
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
        self.active.load(Ordering::Relaxed)
    }

    /// The interrupt handler's entry point: call it for every interrupt of channel `number`, then
    /// wake whoever waits. It acknowledges the interrupt and records what the engine has done, so
    /// that waiters need not ask. Takes the channel's lock. `now_ns` is for the channel; batches go by
    /// clocks of their own.
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
            Service::Retired if port.books.held() != 0 => Err(NotIdle::Held {
                descriptors: port.books.held(),
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
            let limits = channel.limits().whole_units();
            slot.limits.set(limits);
            self.uses(number, limits);
            let stats = port.stats;
            *port = Port::new(channel);
            port.stats = stats;
            if !slot.active.swap(true, Ordering::Relaxed) {
                self.active.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
    }

    fn with<T>(&self, number: usize, f: impl FnOnce(&mut Port<C>) -> T) -> Option<T> {
        self.slots.get(number).map(|slot| {
            slot.port.with(|port| {
                let result = f(port);
                if port.service != Service::Active {
                    self.falls_out(slot);
                }
                result
            })
        })
    }

    /// A channel is not in service. Its lock is held.
    #[cold]
    fn falls_out(&self, slot: &Slot<L>) {
        if slot.active.swap(false, Ordering::Relaxed) {
            self.active.fetch_sub(1, Ordering::Relaxed);
        }
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
        // Usually all of them are.
        let all = self.active() == used.len();
        let mut next = first;
        for _ in 0..used.len() {
            let number = next;
            next = next.wrapping_add(1);
            if next == used.len() {
                next = 0;
            }
            if all || used.get(number).is_some_and(Slot::is_active) {
                let _ = choice.push(number);
            }
        }
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
        watch: Watch<'_, &mut Share>,
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
            port.books.let_go(descriptors);
        });
    }

    /// Stops the engine of a channel that has work; `blame` it if it did not move.
    pub(crate) fn stop(&self, number: usize, now_ns: u64, blame: bool) {
        self.with(number, |port| {
            if port.books.in_flight() != 0 {
                port.stop(now_ns, blame);
            }
        });
    }

    /// Takes a share back whose owner cannot wait for it any more: its channel is stopped if the
    /// share is not over. Returns whether the engine may still write what is in it.
    #[cold]
    pub(crate) fn abandon(&self, number: usize, share: &mut Share, now_ns: u64) -> bool {
        self.with(number, |port| {
            if !port.books.is_over(share) && port.service == Service::Active {
                port.stop(now_ns, false);
            }
            // Whatever its owner was told: it did not get to deal with it.
            let unproven = port.service == Service::Unproven && !port.books.is_over(share);
            port.books.claim(share, port.fate_in_flight(), |_| {});
            port.books.let_go(share.count());
            unproven
        })
        .unwrap_or(false)
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

    /// [`submit`](Self::submit) for one copy, the doorbell included; its descriptor.
    /// `None` if it was not accepted: `submit` says why.
    #[inline]
    pub(crate) fn submit_one(
        &self,
        number: usize,
        now_ns: u64,
        copy: Segment,
        interrupt: bool,
    ) -> Option<Share> {
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
    ///
    /// `watch` is asked for with the lock held, and `bytes` after it: nothing has to be kept over
    /// taking it.
    #[inline]
    pub(crate) fn glance<'s>(
        &self,
        number: usize,
        ask: bool,
        watch: impl FnOnce() -> Watch<'s, &'s Share>,
        bytes: impl FnOnce() -> u64,
    ) -> Glance {
        let Some(slot) = self.slots.get(number) else {
            return Glance::Unusual;
        };
        let glance = slot.port.with(|port| port.glance(&mut watch(), ask));
        if glance == Glance::Over {
            slot.load_bytes.fetch_sub(bytes(), Ordering::Relaxed);
        }
        glance
    }

    /// Whether none of these channels has anything to do, as far as is known without a lock.
    #[inline(never)]
    pub(crate) fn are_idle(&self, numbers: &[usize]) -> bool {
        let mut slots = numbers.iter().map(|&number| self.slots.get(number));
        slots.all(|slot| slot.is_none_or(|slot| slot.load_bytes.load(Ordering::Relaxed) == 0))
    }

    /// Rings the doorbell for what was prepared without. Returns `false` if there was nothing:
    /// another batch has rung, and its interrupt says nothing about this one's work.
    pub(crate) fn ring(&self, number: usize, interrupt: bool) -> bool {
        self.with(number, |port| match (&mut port.channel, port.service) {
            (Some(channel), Service::Active) if port.unrung => {
                channel.issue_pending(interrupt);
                port.unrung = false;
                port.stats.doorbells = port.stats.doorbells.wrapping_add(1);
                true
            }
            _ => false,
        })
        .unwrap_or(false)
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
