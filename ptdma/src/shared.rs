//! Channels that several owners of work share, on any number of CPUs.
//!
//! [`Channels`] is what most callers need. The rest of this module is for those who plan work
//! themselves, as `batch-copy` does. They submit chunks of descriptors, keep the [`Share`] that
//! each one returns, and poll until it is over.
//!
//! # Owners of shares
//!
//! - A [`Share`] is given back once, to the channel that issued it. A [`poll`](Channels::poll) that
//!   finds it over without losses takes it, and so does [`abandon`](Channels::abandon).
//!   [`let_go`](Channels::let_go) takes it after its losses were dealt with.
//! - What a share copies belongs to the engine until it is over and no [`Loss`] of it is
//!   [unproven](Cause::Unproven).
//! - The bytes of what was submitted count as the channel's load until they are
//!   [taken off](Channels::sub_load).

mod member;
mod ownership;
mod pick;
mod poll;
mod slot;
mod submit;

use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use heapless::Vec;

use crate::copy_channel::{ChannelLimits, CopyChannel, PrepError, Prepared, Segment};
use crate::lock::{DefaultLock, Lock};

use member::MAX_STOPS;
use slot::{ChannelSlot, SharedLimits, bit};

pub use member::{Losses, ServiceState, SharedChannel, SharedStats};
pub use ownership::{Cause, Loss, Share};
pub use poll::{Motion, PollKind, Reaped, ShareStatus, Watch};
pub use submit::{Accepted, Announce};

/// A channel cannot be taken out yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotIdle {
    /// There is no channel with this number, or it was taken out before.
    Absent,
    /// The channel is in service: [`Channels::retire`] it first.
    InService,
    /// The channel's engine may still write: [`Channels::confirm_stopped`] first.
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
                "owners have yet to take note of {descriptors} descriptors: try again"
            ),
        }
    }
}

impl core::error::Error for NotIdle {}

/// Up to `N` channels, shared by any number of owners of work on any number of CPUs.
///
/// `L` is the lock around each channel: a spin lock on bare metal, the kernel's own in a kernel. One
/// lock is held at a time.
#[derive(Debug)]
pub struct Channels<C, L = DefaultLock<SharedChannel<C>>, const N: usize = 16> {
    slots: Vec<ChannelSlot<L>, N>,
    /// One past the highest number that was ever in service: places behind it need no look.
    used: AtomicUsize,
    /// How many channels are in service: changed with the channel's lock held, read without.
    active: AtomicUsize,
    /// The strictest alignment of all channels that were ever in service.
    align_bytes: AtomicU64,
    next_start: AtomicUsize,
    channel: PhantomData<fn() -> C>,
}

/// The numbers of channels, in the order in which an owner of work shall use them.
pub type Choice<const N: usize> = Vec<usize, N>;

impl<C: CopyChannel, L: Lock<SharedChannel<C>>, const N: usize> Default for Channels<C, L, N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(feature = "spin")]
impl<C: CopyChannel, const N: usize> Channels<C, spin::Mutex<SharedChannel<C>>, N> {
    /// Adds a channel, behind a lock of its own; returns its number.
    ///
    /// # Errors
    ///
    /// Gives it back if there are `N` already.
    pub fn add_channel(&mut self, channel: C) -> Result<usize, C> {
        let number = self.slots.len();
        if number >= N {
            return Err(channel);
        }
        // There is room.
        let _ = self.add(spin::Mutex::new(SharedChannel::new(channel)));
        Ok(number)
    }

    /// Gives all channels back, in the order of their numbers, those out of service too; `None`
    /// for one that was [taken](Self::take) away.
    ///
    /// The engine of one that is [`Unproven`](ServiceState::Unproven) may still write.
    pub fn into_channels(self) -> impl Iterator<Item = Option<C>> {
        let slots = self.slots.into_iter();
        slots.map(|slot| slot.channel.into_inner().channel)
    }
}

impl<C: CopyChannel, L: Lock<SharedChannel<C>>, const N: usize> Channels<C, L, N> {
    /// No channels yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slots: Vec::new(),
            used: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            align_bytes: AtomicU64::new(1),
            next_start: AtomicUsize::new(0),
            channel: PhantomData,
        }
    }

    /// Adds a channel, as `lock(channel)` with a [`SharedChannel::new`]; returns its number.
    ///
    /// # Errors
    ///
    /// Gives it back if there are `N` already.
    pub fn add(&mut self, channel: L) -> Result<usize, L> {
        let number = self.slots.len();
        let (limits, service) = channel.with(|shared| (shared.limits, shared.service));
        let slot = ChannelSlot {
            channel,
            limits: SharedLimits::new(limits),
            load_bytes: AtomicU64::new(0),
            active: AtomicBool::new(service == ServiceState::Active),
            peers: AtomicU64::new(bit(number)),
        };
        match self.slots.push(slot) {
            Ok(()) => {
                self.find_peers(number);
                if service == ServiceState::Active {
                    self.uses(number, limits);
                    self.active.fetch_add(1, Ordering::Relaxed);
                }
                Ok(number)
            }
            Err(slot) => Err(slot.channel),
        }
    }

    fn uses(&self, number: usize, limits: ChannelLimits) {
        let end = number.saturating_add(1);
        self.used.fetch_max(end, Ordering::Relaxed);
        self.align_bytes
            .fetch_max(limits.align_bytes, Ordering::Relaxed);
    }

    /// A channel has come to a place: notes who is behind the same port.
    fn find_peers(&self, number: usize) {
        let port = self.slots.get(number).and_then(|slot| slot.limits.port());
        let own = bit(number);
        let mut peers = own;
        for (other, slot) in self.slots.iter().enumerate() {
            if other == number {
                continue;
            }
            if port.is_some() && slot.limits.port() == port {
                slot.peers.fetch_or(own, Ordering::Relaxed);
                peers |= bit(other);
            } else {
                slot.peers.fetch_and(!own, Ordering::Relaxed);
            }
        }
        if let Some(slot) = self.slots.get(number) {
            slot.peers.store(peers, Ordering::Relaxed);
        }
    }

    /// Ports that the channels in service are behind. A channel whose port is not known has one of
    /// its own.
    #[must_use]
    pub fn ports(&self) -> usize {
        let active = self.used().iter().enumerate();
        let active = active.filter(|(_, slot)| slot.is_active());
        let set = active.clone().fold(0, |set, (number, _)| set | bit(number));
        // The first one of each port.
        let firsts = active.filter(|(number, slot)| {
            let before = bit(*number).wrapping_sub(1);
            bit(*number) == 0 || slot.peers() & set & before == 0
        });
        firsts.count()
    }

    /// The places in which a channel was ever in service.
    fn used(&self) -> &[ChannelSlot<L>] {
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
    /// that waiters need not ask. Takes the channel's lock. `now_ns` is for the channel; owners go by
    /// clocks of their own.
    pub fn interrupt(&self, number: usize, now_ns: u64) {
        self.with(number, |shared| {
            shared.stats.interrupts = shared.stats.interrupts.wrapping_add(1);
            shared.ask(now_ns, C::interrupt);
        });
    }

    /// Whether a channel takes part; `None` if there is none with this number.
    #[must_use]
    pub fn service(&self, number: usize) -> Option<ServiceState> {
        self.with(number, |shared| shared.service)
    }

    /// What a channel did; `None` if there is none with this number.
    #[must_use]
    pub fn channel_stats(&self, number: usize) -> Option<SharedStats> {
        self.with(number, |shared| shared.stats)
    }

    /// Runs `f` with the channel itself, for what only its owner knows how to do (statistics,
    /// power management). `f` must not submit or complete anything.
    pub fn with_channel<T>(&self, number: usize, f: impl FnOnce(&mut C) -> T) -> Option<T> {
        self.with(number, |shared| shared.channel.as_mut().map(f))
            .flatten()
    }

    /// Takes a channel out of service: stops its engine; owners of work move what it had to others.
    /// Returns whether the engine is known to have stopped. For hot removal, power management and
    /// unloading.
    pub fn retire(&self, number: usize, now_ns: u64) -> bool {
        self.with(number, |shared| {
            shared.stops = MAX_STOPS;
            shared.stop(now_ns, true);
            shared.service == ServiceState::Retired
        })
        .unwrap_or(true)
    }

    /// States that the engine of a channel can no longer reach memory, because its function was
    /// reset, cut off or removed. Batches that wait for it then have the work done by others.
    pub fn confirm_stopped(&self, number: usize) {
        self.with(number, |shared| {
            if shared.service == ServiceState::Unproven {
                shared.service = ServiceState::Retired;
            }
        });
    }

    /// Takes a channel that is out of service away.
    ///
    /// # Errors
    ///
    /// [`NotIdle`]: not yet.
    pub fn take(&self, number: usize) -> Result<C, NotIdle> {
        self.with(number, |shared| match shared.service {
            ServiceState::Active => Err(NotIdle::InService),
            ServiceState::Unproven => Err(NotIdle::Unproven),
            ServiceState::Retired if shared.books.held() != 0 => Err(NotIdle::Held {
                descriptors: shared.books.held(),
            }),
            ServiceState::Retired => shared.channel.take().ok_or(NotIdle::Absent),
        })
        .unwrap_or(Err(NotIdle::Absent))
    }

    /// Puts a channel in the place of one that was [taken](Self::take) away, and into service.
    /// Statistics go on counting. If its limits differ from those of the one before, no work may
    /// be under way: its owners read them more than once.
    ///
    /// # Errors
    ///
    /// Gives the channel back if the place is not empty.
    pub fn put(&self, number: usize, channel: C) -> Result<(), C> {
        let Some(slot) = self.slots.get(number) else {
            return Err(channel);
        };
        slot.channel.with(|shared| {
            if shared.channel.is_some() {
                return Err(channel);
            }
            let limits = channel.limits().whole_units();
            slot.limits.set(limits);
            self.find_peers(number);
            self.uses(number, limits);
            let stats = shared.stats;
            *shared = SharedChannel::new(channel);
            shared.stats = stats;
            if !slot.active.swap(true, Ordering::Relaxed) {
                self.active.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
    }

    fn with<T>(&self, number: usize, f: impl FnOnce(&mut SharedChannel<C>) -> T) -> Option<T> {
        self.slots.get(number).map(|slot| {
            slot.channel.with(|shared| {
                let result = f(shared);
                if shared.service != ServiceState::Active {
                    self.falls_out(slot);
                }
                result
            })
        })
    }

    /// A channel is not in service. Its lock is held.
    #[cold]
    fn falls_out(&self, slot: &ChannelSlot<L>) {
        if slot.active.swap(false, Ordering::Relaxed) {
            self.active.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// What a channel can do; `None` if there is none with this number. Takes no lock.
    #[must_use]
    pub fn limits(&self, number: usize) -> Option<ChannelLimits> {
        self.slots.get(number).map(|slot| slot.limits.get())
    }

    /// The strictest alignment of all channels.
    pub fn align_bytes(&self) -> u64 {
        self.align_bytes.load(Ordering::Relaxed)
    }

    /// Whether a channel takes part, as far as is known without its lock.
    #[must_use]
    pub fn is_active(&self, number: usize) -> bool {
        self.slots.get(number).is_some_and(ChannelSlot::is_active)
    }

    /// Chooses up to `most` channels: one of each [port](ChannelLimits::port) first, then the second
    /// one of each, and so on. Among those, channels near the destination come first, then those
    /// near the source, then the least loaded. Writes cross the fabric at a higher price than reads.
    /// Each call starts with another one, so that owners that begin together do not queue up at the
    /// same lock.
    pub fn choose(
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
            if used.get(only).is_some_and(ChannelSlot::is_active) {
                let _ = choice.push(only);
            }
            return;
        }
        if most < self.active() {
            pick::pick(used, first, most, (dst_node, src_node), choice);
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
            if all || used.get(number).is_some_and(ChannelSlot::is_active) {
                let _ = choice.push(number);
            }
        }
        // One may have come back meanwhile.
        choice.truncate(most);
    }

    /// Polls a channel for the owner of a share. `losses` gets what the owner was not told of yet;
    /// it must be empty. `None` if there is no such channel.
    pub fn poll(
        &self,
        number: usize,
        watch: Watch<'_, &mut Share>,
        look: PollKind,
        losses: &mut Losses,
    ) -> Option<ShareStatus> {
        self.with(number, |shared| shared.poll_share(watch, look, losses))
    }

    /// Descriptors that a channel would take now. Takes its lock.
    #[must_use]
    pub fn free_slots(&self, number: usize) -> usize {
        self.with(number, |shared| shared.free_slots()).unwrap_or(0)
    }

    /// Lets go of descriptors that are over, once it is settled what becomes of those that were
    /// lost. Until then the channel cannot be taken away.
    pub fn let_go(&self, number: usize, descriptors: u64) {
        self.with(number, |shared| {
            shared.books.let_go(descriptors);
        });
    }

    /// Stops the engine of a channel that has work; `blame` it if it did not move.
    pub fn stop(&self, number: usize, now_ns: u64, blame: bool) {
        self.with(number, |shared| {
            if shared.books.in_flight() != 0 {
                shared.stop(now_ns, blame);
            }
        });
    }

    /// Takes a share back whose owner cannot wait for it any more: its channel is stopped if the
    /// share is not over. Returns whether the engine may still write what is in it.
    #[cold]
    pub fn abandon(&self, number: usize, share: &mut Share, now_ns: u64) -> bool {
        self.with(number, |shared| {
            if !shared.books.is_over(share) && shared.service == ServiceState::Active {
                shared.stop(now_ns, false);
            }
            // Whatever its owner was told: it did not get to deal with it.
            let unproven = shared.service == ServiceState::Unproven && !shared.books.is_over(share);
            shared.books.claim(share, shared.fate_in_flight(), |_| {});
            shared.books.let_go(share.count());
            unproven
        })
        .unwrap_or(false)
    }

    /// Has descriptors prepared, with the channel's lock held.
    #[inline]
    pub fn submit(
        &self,
        number: usize,
        now_ns: u64,
        prepare: impl FnOnce(&mut C) -> (Prepared, Announce),
    ) -> Accepted {
        let Some(slot) = self.slots.get(number) else {
            return Accepted::nothing(Some(PrepError::Faulted));
        };
        let accepted = slot.channel.with(|shared| shared.submit(now_ns, prepare));
        slot.load_bytes.fetch_add(accepted.bytes, Ordering::Relaxed);
        accepted
    }

    /// [`submit`](Self::submit) for one copy, the doorbell included; its descriptor.
    /// `None` if it was not accepted: `submit` says why.
    #[inline]
    pub fn submit_one(
        &self,
        number: usize,
        now_ns: u64,
        copy: Segment,
        interrupt: bool,
    ) -> Option<Share> {
        let slot = self.slots.get(number)?;
        let accepted = slot
            .channel
            .with(|shared| shared.submit_one(now_ns, copy, interrupt));
        if accepted.is_some() {
            slot.load_bytes.fetch_add(copy.len_bytes, Ordering::Relaxed);
        }
        accepted
    }

    /// [`poll`](Self::poll) for the usual case, in which the answer is yes or not yet; with `ask`,
    /// the channel is polled. What is over is taken off the channel's load: `bytes`.
    ///
    /// `watch` is asked for with the lock held, and `bytes` after it: nothing has to be kept over
    /// taking it.
    #[inline]
    pub fn try_reap<'s>(
        &self,
        number: usize,
        ask: bool,
        watch: impl FnOnce() -> Watch<'s, &'s Share>,
        bytes: impl FnOnce() -> u64,
    ) -> Reaped {
        let Some(slot) = self.slots.get(number) else {
            return Reaped::Unusual;
        };
        let reaped = slot
            .channel
            .with(|shared| shared.try_reap(&mut watch(), ask));
        if reaped == Reaped::All {
            slot.load_bytes.fetch_sub(bytes(), Ordering::Relaxed);
        }
        reaped
    }

    /// Whether none of these channels has anything to do, as far as is known without a lock.
    #[inline(never)]
    pub fn are_idle(&self, numbers: &[usize]) -> bool {
        let mut slots = numbers.iter().map(|&number| self.slots.get(number));
        slots.all(|slot| slot.is_none_or(|slot| slot.load_bytes.load(Ordering::Relaxed) == 0))
    }

    /// Rings the doorbell for what was prepared without. Returns `false` if there was nothing:
    /// another owner has rung, and its interrupt says nothing about this one's work.
    pub fn ring(&self, number: usize, interrupt: bool) -> bool {
        self.with(number, |shared| {
            match (&mut shared.channel, shared.service) {
                (Some(channel), ServiceState::Active) if shared.unrung => {
                    channel.issue_pending(interrupt);
                    shared.unrung = false;
                    shared.stats.doorbells = shared.stats.doorbells.wrapping_add(1);
                    true
                }
                _ => false,
            }
        })
        .unwrap_or(false)
    }

    /// Bytes that owners have given to a channel and not got back. A hint.
    pub fn load_bytes(&self, number: usize) -> u64 {
        self.slots
            .get(number)
            .map_or(0, |slot| slot.load_bytes.load(Ordering::Relaxed))
    }

    /// Takes bytes off the load of a channel.
    pub fn sub_load(&self, number: usize, bytes: u64) {
        if let Some(slot) = self.slots.get(number) {
            slot.load_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}
