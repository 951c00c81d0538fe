//! All channels and the settings: what the module has one of.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use batch_copy::{Engines, NotIdle, Policy, Port, Service};
use ptdma::{CoherentRing, Cookie, ErrorHead, FunctionQuiesced, Mmio};

use crate::abi::{
    ChannelSetup, ChannelState, ChannelStats, DESCRIPTOR_BYTES, Event, MAX_CHANNELS, Settings,
};
use crate::batch;
use crate::channel::{self, KernelQueue, bus};
use crate::comeback::Comeback;
use crate::errno;
use crate::kernel::{self, BatchContext, KernelLock};

pub(crate) type SystemEngines = Engines<KernelQueue, KernelLock<Port<KernelQueue>>, MAX_CHANNELS>;

/// What is known of a channel number beside its engine.
#[derive(Clone, Copy, Debug, Default)]
struct Seat {
    comeback: Comeback,
    /// Where the next channel with this number begins to count: no cookie ever names two
    /// descriptors.
    next_cookie: u64,
}

/// All channels and the settings.
pub struct System {
    settings: KernelLock<(Settings, Policy)>,
    seats: [KernelLock<Seat>; MAX_CHANNELS],
    engines: SystemEngines,
    /// Numbers that have a function, a bit each: what a batch has to look at.
    present: AtomicU64,
    /// [`Policy::min_batch_bytes`], where every batch can see it at no cost.
    min_bytes: AtomicU64,
}

impl System {
    /// Makes a system in place: it is too large for a kernel stack.
    ///
    /// # Safety
    ///
    /// `at` is valid for writes and aligned.
    pub(crate) unsafe fn init(at: *mut Self) {
        let initial = (Settings::default(), batch::policy(&Settings::default(), 0));
        // SAFETY: `at` is valid (caller).
        let settings = unsafe { &raw mut (*at).settings };
        // SAFETY: within `*at`.
        unsafe { settings.write(KernelLock::new(initial)) };
        // SAFETY: `at` is valid (caller).
        let seats = unsafe { &raw mut (*at).seats }.cast::<KernelLock<Seat>>();
        for number in 0..MAX_CHANNELS {
            // SAFETY: `number` is below the array's length.
            let seat = unsafe { seats.add(number) };
            // SAFETY: within `*at`.
            unsafe { seat.write(KernelLock::new(Seat::default())) };
        }
        // SAFETY: `at` is valid (caller).
        let present = unsafe { &raw mut (*at).present };
        // SAFETY: within `*at`.
        unsafe { present.write(AtomicU64::new(0)) };
        // SAFETY: `at` is valid (caller).
        let min_bytes = unsafe { &raw mut (*at).min_bytes };
        // SAFETY: within `*at`. Nothing is worth an engine while there is none.
        unsafe { min_bytes.write(AtomicU64::new(u64::MAX)) };
        // SAFETY: `at` is valid (caller).
        let engines = unsafe { &raw mut (*at).engines };
        // SAFETY: within `*at`. A constant with nothing in it, so nothing large is moved.
        unsafe { engines.write(const { Engines::new() }) };
        // SAFETY: initialised just above, and nobody else knows of it yet.
        let engines = unsafe { &mut *engines };
        for _ in 0..MAX_CHANNELS {
            // There is room for as many.
            let _ = engines.add(KernelLock::new(Port::vacant()));
        }
    }

    pub(crate) fn engines(&self) -> &SystemEngines {
        &self.engines
    }

    pub(crate) fn settings(&self) -> Settings {
        self.settings.with(|(settings, _)| *settings)
    }

    /// Runs `f` with the settings, and what they and the number of channels make of batches: they
    /// are too much to be copied for each batch.
    pub(crate) fn with_settings<R>(&self, f: impl FnOnce(&Settings, &Policy) -> R) -> R {
        self.settings.with(|(settings, policy)| f(settings, policy))
    }

    /// Bytes below which a batch is left to the CPU.
    pub(crate) fn min_bytes(&self) -> u64 {
        self.min_bytes.load(Ordering::Relaxed)
    }

    /// Settings or channels have changed.
    fn update_policy(&self) {
        let channels = self.present.load(Ordering::Relaxed).count_ones() as usize;
        let policy = batch::policy(&self.settings(), channels);
        self.settings.with(|(_, kept)| *kept = policy);
        let min_bytes = if channels == 0 {
            u64::MAX
        } else {
            policy.min_batch_bytes
        };
        self.min_bytes.store(min_bytes, Ordering::Relaxed);
    }

    /// Takes valid settings.
    pub(crate) fn set(&self, new: &Settings) -> i32 {
        if !new.is_valid() {
            return -errno::EINVAL;
        }
        self.settings.with(|(settings, _)| *settings = *new);
        self.update_policy();
        0
    }

    fn set_present(&self, number: usize, present: bool) {
        // Below MAX_CHANNELS, which is 64.
        let bit = 1_u64.checked_shl(number as u32).unwrap_or(0);
        if present {
            self.present.fetch_or(bit, Ordering::Relaxed);
        } else {
            self.present.fetch_and(!bit, Ordering::Relaxed);
        }
        self.update_policy();
    }

    fn with_seat<R: Default>(&self, number: usize, f: impl FnOnce(&mut Seat) -> R) -> R {
        self.seats
            .get(number)
            .map(|seat| seat.with(f))
            .unwrap_or_default()
    }

    /// Brings a channel up under a number that no channel has.
    ///
    /// # Safety
    ///
    /// What [`Mmio::new`] and [`CoherentRing::new`] want of the addresses in `setup`, until the
    /// channel is down or forgotten. No batch is in flight.
    pub(crate) unsafe fn channel_up(&self, number: usize, setup: &ChannelSetup) -> i32 {
        let (Some(bar), Some(memory)) = (NonNull::new(setup.bar), NonNull::new(setup.ring)) else {
            return -errno::EINVAL;
        };
        // SAFETY: the caller's promise.
        let registers = unsafe { Mmio::new(bar) };
        let entries = setup.ring_entries as usize;
        let needed = u64::from(setup.ring_entries).saturating_mul(DESCRIPTOR_BYTES as u64);
        if needed > setup.ring_bytes {
            return -errno::EINVAL;
        }
        // SAFETY: the caller's promise; the memory holds as many, as was just seen.
        let ring = unsafe { CoherentRing::new(memory, bus(setup.ring_dma), entries) };
        let first = Cookie::new(self.with_seat(number, |seat| seat.next_cookie));
        match channel::bring_up(number, registers, ring, setup, first) {
            Ok(channel) => match self.engines.put(number, channel) {
                Ok(()) => {
                    self.with_seat(number, |seat| seat.comeback.arrived());
                    self.set_present(number, true);
                    0
                }
                Err(channel) => {
                    channel::shut_down(number, channel);
                    -errno::EBUSY
                }
            },
            Err(e) => errno::of_bring_up(e),
        }
    }

    /// Stops a channel for good. Whether its engine is proved stopped; its place is empty then.
    /// No batch is in flight.
    pub(crate) fn channel_down(&self, number: usize) -> bool {
        if !self.engines.retire(number, kernel::now_ns()) {
            return false;
        }
        self.leave(number, true)
    }

    /// Drops a channel without touching its registers. No batch is in flight.
    pub(crate) fn channel_forget(&self, number: usize) {
        self.engines.retire(number, kernel::now_ns());
        self.engines.confirm_stopped(number);
        self.leave(number, false);
    }

    fn leave(&self, number: usize, shut_down: bool) -> bool {
        self.set_present(number, false);
        let channel = match self.engines.take(number) {
            Ok(channel) => channel,
            Err(NotIdle::Absent) => {
                self.with_seat(number, |seat| seat.comeback = Comeback::default());
                return true;
            }
            Err(_) => return false,
        };
        let next = batch_copy::CopyChannel::next_cookie(&channel).number();
        self.with_seat(number, |seat| {
            seat.next_cookie = next;
            seat.comeback = Comeback::default();
        });
        if shut_down {
            channel::shut_down(number, channel);
        }
        true
    }

    /// Brings channels back that were taken out of service, if it is time to; asks for a new proof
    /// of those that were not proved stopped. For those who run batches, after a batch of which
    /// nothing is in doubt: what it has yet to put into quarantine would not be released by the
    /// proof. It takes a few dozen register accesses, or a reset.
    pub(crate) fn revive(&self, context: BatchContext) {
        let mut present = self.present.load(Ordering::Relaxed);
        if self.engines.active() >= present.count_ones() as usize {
            return;
        }
        while present != 0 {
            let number = present.trailing_zeros() as usize;
            present &= present.wrapping_sub(1);
            if !self.engines.is_active(number) {
                self.revive_one(number, context);
            }
        }
    }

    #[cold]
    fn revive_one(&self, number: usize, mut context: BatchContext) {
        let is_proved = match self.engines.service(number) {
            Some(Service::Retired) => true,
            Some(Service::Unproven) => false,
            _ => return,
        };
        let now_ns = kernel::now_ns();
        if !self.with_seat(number, |seat| seat.comeback.claim(now_ns)) {
            return;
        }
        if !is_proved {
            if !context.prove_stopped(number) {
                // It took a while.
                let now_ns = kernel::now_ns();
                self.with_seat(number, |seat| seat.comeback.doubted(now_ns));
                return;
            }
            self.engines.confirm_stopped(number);
        }
        let mut channel = match self.engines.take(number) {
            Ok(channel) => channel,
            Err(_) => {
                // Other batches have yet to take note of what they lost.
                self.with_seat(number, |seat| seat.comeback.put_off());
                return;
            }
        };
        // Retired is proved stopped: its engine has halted, or its function was reset.
        let works = channel
            .channel()
            .recover(FunctionQuiesced::by_owner())
            .is_ok();
        let next = batch_copy::CopyChannel::next_cookie(&channel).number();
        self.with_seat(number, |seat| {
            seat.next_cookie = next;
            seat.comeback.tried(now_ns, works);
        });
        if works {
            // Its place was emptied above, and nobody else fills it.
            let _ = self.engines.put(number, channel);
            kernel::report(number, Event::Revived, 0);
        } else {
            kernel::report(number, Event::Retired, 0);
        }
    }

    /// Counts of a channel.
    pub(crate) fn stats(&self, number: usize) -> ChannelStats {
        let seat = self.with_seat(number, |seat| *seat);
        let state = match self.engines.service(number) {
            _ if !seat.comeback.present => ChannelState::Down,
            Some(Service::Active) => ChannelState::Running,
            _ if seat.comeback.given_up => ChannelState::Retired,
            _ => ChannelState::Faulted,
        };
        let engine = self.engines.with_channel(number, |queue| {
            (queue.channel().stats(), queue.channel().error_head())
        });
        let head_stays = engine.is_some_and(|(_, head)| head == ErrorHead::AtFailing);
        let engine = engine.map(|(stats, _)| stats).unwrap_or_default();
        let shared = self.engines.channel_stats(number).unwrap_or_default();
        ChannelStats {
            state,
            head_stays: u32::from(head_stays),
            submitted: shared.submitted,
            submitted_bytes: shared.bytes,
            completed: shared.completed,
            failed: shared.errors,
            dropped: shared.dropped,
            coalesced: shared.coalesced,
            doorbells: shared.doorbells,
            interrupts: shared.interrupts,
            polls: shared.polls,
            spurious_interrupts: engine.spurious_interrupts,
            lost_interrupts: engine.lost_interrupts,
            restarts: engine.restarts,
            stops: shared.stops,
            hangs: shared.hangs,
        }
    }
}
