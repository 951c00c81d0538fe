//! All channels and the settings: what the module has one of.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use batch_copy::{Channels, NotIdle, Policy, ServiceState, SharedChannel};
use ptdma::{CoherentRing, Cookie, EngineTraits, ErrorHead, FunctionQuiesced, Mmio, Restart, Seen};

use crate::abi::{
    ChannelService, ChannelSetup, ChannelStats, DESCRIPTOR_BYTES, Engine, EngineErrorHead,
    EngineRestart, Event, LockKind, MAX_CHANNELS, Settings,
};
use crate::batch;
use crate::channel::{self, KernelQueue, bus};
use crate::errno;
use crate::kernel::{self, KernelLock};

pub(crate) type SystemChannels =
    Channels<KernelQueue, KernelLock<SharedChannel<KernelQueue>>, MAX_CHANNELS>;

/// Counts of a queue, which begin anew when it comes up.
#[derive(Clone, Copy, Debug, Default)]
struct EngineCounts {
    spurious_interrupts: u64,
    lost_interrupts: u64,
    replays: u64,
    restarts: u64,
}

impl EngineCounts {
    fn of(channel: &mut KernelQueue) -> Self {
        let stats = channel.channel().stats();
        Self {
            spurious_interrupts: stats.spurious_interrupts,
            lost_interrupts: stats.lost_interrupts,
            replays: stats.replays,
            restarts: stats.restarts,
        }
    }

    fn plus(self, more: Self) -> Self {
        Self {
            spurious_interrupts: self
                .spurious_interrupts
                .wrapping_add(more.spurious_interrupts),
            lost_interrupts: self.lost_interrupts.wrapping_add(more.lost_interrupts),
            replays: self.replays.wrapping_add(more.replays),
            restarts: self.restarts.wrapping_add(more.restarts),
        }
    }
}

/// The bit of a channel in a set of channels.
fn bit(number: usize) -> u64 {
    // Below MAX_CHANNELS, which is 64.
    1_u64.checked_shl(number as u32).unwrap_or(0)
}

/// What is known of a channel number beside its engine.
#[derive(Clone, Copy, Debug, Default)]
struct Seat {
    /// What the channels' statistics said when the function was bound.
    zero: batch_copy::SharedStats,
    /// What the queues before this one have counted since then.
    before: EngineCounts,
    /// Where the next channel with this number begins to count: no cookie ever names two
    /// descriptors.
    next_cookie: u64,
}

/// All channels and the settings.
pub struct System {
    settings: KernelLock<(Settings, Policy)>,
    seats: [KernelLock<Seat>; MAX_CHANNELS],
    channels: SystemChannels,
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
        let initial = (
            Settings::default(),
            batch::policy(&Settings::default(), 0, 0),
        );
        // SAFETY: `at` is valid (caller).
        let settings = unsafe { &raw mut (*at).settings };
        // SAFETY: within `*at`.
        unsafe { settings.write(KernelLock::new(LockKind::Settings, initial)) };
        // SAFETY: `at` is valid (caller).
        let seats = unsafe { &raw mut (*at).seats }.cast::<KernelLock<Seat>>();
        for number in 0..MAX_CHANNELS {
            // SAFETY: `number` is below the array's length.
            let seat = unsafe { seats.add(number) };
            // SAFETY: within `*at`.
            unsafe { seat.write(KernelLock::new(LockKind::Seat, Seat::default())) };
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
        let channels = unsafe { &raw mut (*at).channels };
        // SAFETY: within `*at`. A constant with nothing in it, so nothing large is moved.
        unsafe { channels.write(const { Channels::new() }) };
        // SAFETY: initialised just above, and nobody else knows of it yet.
        let channels = unsafe { &mut *channels };
        for _ in 0..MAX_CHANNELS {
            // There is room for as many.
            let _ = channels.add(KernelLock::new(LockKind::Port, SharedChannel::vacant()));
        }
    }

    pub(crate) fn channels(&self) -> &SystemChannels {
        &self.channels
    }

    pub(crate) fn settings(&self) -> Settings {
        self.settings.with(|(settings, _)| *settings)
    }

    /// Runs `f` with the settings, and the policy that they and the number of channels make. Both
    /// are too much to be copied for each batch.
    pub(crate) fn with_settings<R>(&self, f: impl FnOnce(&Settings, &Policy) -> R) -> R {
        self.settings.with(|(settings, policy)| f(settings, policy))
    }

    /// Bytes below which a batch is left to the CPU.
    pub(crate) fn min_bytes(&self) -> u64 {
        if self.channels.active() == 0 {
            return u64::MAX;
        }
        self.min_bytes.load(Ordering::Relaxed)
    }

    /// Settings or channels have changed.
    fn update_policy(&self) {
        let channels = self.present.load(Ordering::Relaxed).count_ones() as usize;
        let policy = batch::policy(&self.settings(), channels, self.channels.ports());
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
        if present {
            self.present.fetch_or(bit(number), Ordering::Relaxed);
        } else {
            self.present.fetch_and(!bit(number), Ordering::Relaxed);
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
            Ok(channel) => match self.channels.put(number, channel) {
                Ok(()) => {
                    if setup.fresh != 0 {
                        let zero = self.channels.channel_stats(number).unwrap_or_default();
                        self.with_seat(number, |seat| {
                            seat.zero = zero;
                            seat.before = EngineCounts::default();
                        });
                    }
                    self.set_present(number, true);
                    0
                }
                Err(channel) => {
                    channel::shut_down(number, channel);
                    -errno::EBUSY
                }
            },
            Err(rc) => rc,
        }
    }

    /// Stops a channel for good. Whether its engine is proved stopped; its place is empty then.
    /// No batch is in flight.
    pub(crate) fn channel_down(&self, number: usize) -> bool {
        if !self.channels.retire(number, kernel::now_ns()) {
            return false;
        }
        self.leave(number, true)
    }

    /// Drops a channel without touching its registers. No batch is in flight.
    pub(crate) fn channel_forget(&self, number: usize) {
        self.channels.retire(number, kernel::now_ns());
        self.channels.confirm_stopped(number);
        self.leave(number, false);
    }

    fn leave(&self, number: usize, shut_down: bool) -> bool {
        self.set_present(number, false);
        let mut channel = match self.channels.take(number) {
            Ok(channel) => channel,
            Err(NotIdle::Absent) => return true,
            Err(_) => return false,
        };
        let next = batch_copy::CopyChannel::next_cookie(&channel).number();
        let counts = EngineCounts::of(&mut channel);
        self.with_seat(number, |seat| {
            seat.next_cookie = next;
            seat.before = seat.before.plus(counts);
        });
        if shut_down {
            channel::shut_down(number, channel);
        }
        true
    }

    /// Channels that are up but not in service, a bit each.
    pub(crate) fn out_of_service(&self) -> u64 {
        let present = self.present.load(Ordering::Relaxed);
        if self.channels.active() >= present.count_ones() as usize {
            return 0;
        }
        let (mut rest, mut found) = (present, 0_u64);
        while rest != 0 {
            let bit = rest & rest.wrapping_neg();
            rest &= !bit;
            if !self.channels.is_active(bit.trailing_zeros() as usize) {
                found |= bit;
            }
        }
        found
    }

    /// Whether batches use a channel.
    pub(crate) fn service(&self, number: usize) -> ChannelService {
        if self.present.load(Ordering::Relaxed) & bit(number) == 0 {
            return ChannelService::Absent;
        }
        match self.channels.service(number) {
            Some(ServiceState::Active) => ChannelService::Active,
            Some(ServiceState::Retired) => ChannelService::Stopped,
            Some(ServiceState::Unproven) => ChannelService::Unproven,
            None => ChannelService::Absent,
        }
    }

    /// Brings a channel back whose engine touches no memory.
    ///
    /// # Safety
    ///
    /// The function was cut off from memory or reset, or the engine has shown that it stands.
    pub(crate) unsafe fn revive(&self, number: usize) -> i32 {
        self.channels.confirm_stopped(number);
        let mut channel = match self.channels.take(number) {
            Ok(channel) => channel,
            // Batches have yet to take note of what they lost.
            Err(NotIdle::Held { .. }) => return -errno::EAGAIN,
            Err(NotIdle::InService) => return 0,
            Err(_) => return -errno::ENODEV,
        };
        // SAFETY: the caller's promise.
        let proof = unsafe { FunctionQuiesced::by_owner() };
        let recovered = channel.channel().recover(proof);
        let works = recovered.is_ok();
        if !works {
            kernel::report(number, Event::Retired, 0);
        }
        let next = batch_copy::CopyChannel::next_cookie(&channel).number();
        self.with_seat(number, |seat| seat.next_cookie = next);
        // Its place was emptied above, and nobody else fills it.
        let _ = self.channels.put(number, channel);
        if works {
            kernel::report(number, Event::Revived, 0);
            return 0;
        }
        // Back in its place, but not in service: the fault that it has sees to that.
        self.channels.retire(number, kernel::now_ns());
        match recovered {
            Err((e, _)) => errno::of_bring_up(e),
            Ok(_) => 0,
        }
    }

    /// Counts of a channel since its function was bound.
    pub(crate) fn stats(&self, number: usize) -> ChannelStats {
        let seat = self.with_seat(number, |seat| *seat);
        let engine = self.channels.with_channel(number, |queue| {
            (EngineCounts::of(queue), queue.channel().error_head())
        });
        let head_stays = engine.is_some_and(|(_, head)| head == ErrorHead::AtFailing);
        let counts = engine.map_or(EngineCounts::default(), |(counts, _)| counts);
        let engine = seat.before.plus(counts);
        let shared = self.channels.channel_stats(number).unwrap_or_default();
        let since = |now: u64, zero: u64| now.wrapping_sub(zero);
        ChannelStats {
            head_stays: u64::from(head_stays),
            submitted: since(shared.submitted, seat.zero.submitted),
            submitted_bytes: since(shared.bytes, seat.zero.bytes),
            completed: since(shared.completed, seat.zero.completed),
            failed: since(shared.errors, seat.zero.errors),
            dropped: since(shared.dropped, seat.zero.dropped),
            coalesced: since(shared.coalesced, seat.zero.coalesced),
            doorbells: since(shared.doorbells, seat.zero.doorbells),
            interrupts: since(shared.interrupts, seat.zero.interrupts),
            polls: since(shared.polls, seat.zero.polls),
            spurious_interrupts: engine.spurious_interrupts,
            lost_interrupts: engine.lost_interrupts,
            replays: engine.replays,
            restarts: engine.restarts,
            stops: since(shared.stops, seat.zero.stops),
            hangs: since(shared.hangs, seat.zero.hangs),
        }
    }

    /// What the engine of a channel has shown of itself; `None` if there is no queue.
    pub(crate) fn engine(&self, number: usize) -> Option<Engine> {
        self.channels
            .with_channel(number, |queue| engine(queue.channel().traits()))
    }
}

const fn seen(seen: Seen) -> u8 {
    match seen {
        Seen::Unknown => b'?',
        Seen::No => b'0',
        Seen::Yes => b'1',
    }
}

fn engine(traits: EngineTraits) -> Engine {
    Engine {
        restart: match traits.restart {
            Restart::ByTail => EngineRestart::ByTail,
            Restart::ByRun => EngineRestart::ByRun,
            // C prints it, and has no word for others.
            _ => EngineRestart::Unknown,
        },
        error_head: match traits.error_head {
            ErrorHead::AtFailing => EngineErrorHead::AtFailing,
            ErrorHead::PastFailing => EngineErrorHead::PastFailing,
            _ => EngineErrorHead::Unknown,
        },
        ring_entries: traits.ring_entries,
        memory_entries: traits.memory_entries,
        halt_at_rest: seen(traits.halt_at_rest),
        halt_drained: seen(traits.halt_drained),
        halt_stopped: seen(traits.halt_stopped),
        halt_cleared_by_write: seen(traits.halt_cleared_by_write),
        run_drained: seen(traits.run_drained),
        job_status: seen(traits.job_status),
        failed_copies: traits.failed_copies,
    }
}
