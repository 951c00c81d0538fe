//! The functions that the C of the module calls.
//!
//! `system` is the memory that [`ptdma_rs_system_init`] was given, in all of them.

use core::ptr::NonNull;

use ptdma::Mmio;

use crate::abi::{
    Batch, ChannelService, ChannelSetup, ChannelStats, Engine, MAX_CHANNELS, MAX_ROUND_FOLIOS,
    Round, RoundResult, Settings,
};
use crate::batch::{self, Outcomes, Scratch};
use crate::channel;
use crate::errno;
use crate::kernel::{self, BatchContext};
use crate::system::System;

/// Bytes of memory that a system takes, aligned to 64.
#[unsafe(no_mangle)]
pub extern "C" fn ptdma_rs_system_bytes() -> usize {
    size_of::<System>()
}

/// Makes a system, with no channel and the default settings.
///
/// # Safety
///
/// `system` has room for [`ptdma_rs_system_bytes`], is aligned to 64 and stays where it is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptdma_rs_system_init(system: *mut System) {
    // SAFETY: the caller's promise.
    unsafe { System::init(system) };
}

/// Bytes of memory that a batch in flight takes for this library, aligned to 64.
#[unsafe(no_mangle)]
pub extern "C" fn ptdma_rs_scratch_bytes() -> usize {
    size_of::<Scratch>()
}

/// Makes working memory for batches, one at a time.
///
/// # Safety
///
/// `scratch` has room for [`ptdma_rs_scratch_bytes`] and is aligned to 64.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptdma_rs_scratch_init(scratch: *mut Scratch) {
    // SAFETY: the caller's promise.
    unsafe { Scratch::init(scratch) };
}

/// Writes the default settings.
#[unsafe(no_mangle)]
pub extern "C" fn ptdma_rs_settings_default(settings: &mut Settings) {
    *settings = Settings::default();
}

/// Whether settings could be taken: 0 or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn ptdma_rs_settings_check(settings: &Settings) -> i32 {
    if settings.is_valid() {
        0
    } else {
        -errno::EINVAL
    }
}

/// Takes settings: 0 or -EINVAL. Batches in flight go on with the old ones; ring_entries is for
/// channels that come up later.
#[unsafe(no_mangle)]
pub extern "C" fn ptdma_rs_settings_set(system: &System, settings: &Settings) -> i32 {
    system.set(settings)
}

/// Reads the settings.
#[unsafe(no_mangle)]
pub extern "C" fn ptdma_rs_settings_get(system: &System, settings: &mut Settings) {
    *settings = system.settings();
}

/// Brings a channel up: 0 or a negative error number. -EBUSY: the engine is still at a previous
/// owner's work and does not stop, a reset of the function helps. -ETIMEDOUT: it has seen the ring
/// and does not stop; so does a reset.
///
/// The function need not be a bus master; it is made one once its engine is seen to stand.
///
/// # Safety
///
/// The memory in `setup` is the channel's until it is down or forgotten, mapped as
/// `ptdma_channel_setup` says. No channel of that number is up.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptdma_rs_channel_up(
    system: &System,
    chan: u32,
    setup: &ChannelSetup,
) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { system.channel_up(chan as usize, setup) }
}

/// Stops a channel for good: 0, or -EBUSY if its engine was not proved stopped. No batch is in
/// flight.
#[unsafe(no_mangle)]
pub extern "C" fn ptdma_rs_channel_down(system: &System, chan: u32) -> i32 {
    if system.channel_down(chan as usize) {
        0
    } else {
        -errno::EBUSY
    }
}

/// Drops a channel; its number is free again. To be called after [`ptdma_rs_channel_down`],
/// when its memory is not given back or the function was proved stopped. No batch is in flight.
#[unsafe(no_mangle)]
pub extern "C" fn ptdma_rs_channel_forget(system: &System, chan: u32) {
    system.channel_forget(chan as usize);
}

/// Brings a channel back that is up but not in service, with the ring that it has. 0; -EAGAIN:
/// batches have yet to take note of what it lost; -ENODEV: it is not up; another negative error
/// number: it does not come up.
///
/// # Safety
///
/// The function was cut off from memory or reset, or the channel's service is `Stopped`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptdma_rs_channel_revive(system: &System, chan: u32) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { system.revive(chan as usize) }
}

/// Whether batches use a channel.
#[unsafe(no_mangle)]
pub extern "C" fn ptdma_rs_channel_service(system: &System, chan: u32) -> ChannelService {
    system.service(chan as usize)
}

/// Tells what the engine of a channel has shown of itself. False if the channel is not up.
#[unsafe(no_mangle)]
pub extern "C" fn ptdma_rs_channel_engine(system: &System, chan: u32, engine: &mut Engine) -> bool {
    let found = system.engine(chan as usize);
    *engine = found.unwrap_or_default();
    found.is_some()
}

/// Whether the queue behind a BAR has lost what every channel sets up, as by a reset.
///
/// # Safety
///
/// `bar` is BAR 2, mapped uncached, at least [`BAR_BYTES`](crate::abi::BAR_BYTES).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptdma_rs_was_reset(bar: *mut u8) -> bool {
    // SAFETY: the caller's promise.
    NonNull::new(bar).is_some_and(|bar| channel::was_reset(&unsafe { Mmio::new(bar) }))
}

/// Reads the counts of a channel.
#[unsafe(no_mangle)]
pub extern "C" fn ptdma_rs_channel_stats(system: &System, chan: u32, stats: &mut ChannelStats) {
    *stats = system.stats(chan as usize);
}

/// The interrupt of a channel. Whether the channel is in service after it. Any context.
#[unsafe(no_mangle)]
pub extern "C" fn ptdma_rs_interrupt(system: &System, chan: u32) -> bool {
    let channels = system.channels();
    channels.interrupt(chan as usize, kernel::now_ns());
    channels.is_active(chan as usize)
}

/// Bytes below which a batch is left to the CPU; all of them if no channel is in service.
#[unsafe(no_mangle)]
pub extern "C" fn ptdma_rs_min_bytes(system: &System) -> u64 {
    system.min_bytes()
}

/// Copies the folios of a round: 0, or a negative error number if nothing was tried, and no
/// outcome was written. Otherwise one is written for every folio.
///
/// # Safety
///
/// - `batch` is good for the `ptdma_k_` functions. `scratch` was made by
///   [`ptdma_rs_scratch_init`], and is used for one batch at a time.
/// - `folios` and `outcomes` of `round` have `nr` entries.
/// - The folios are the caller's, and nobody else reads or writes the destinations.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptdma_rs_batch_run(
    system: &System,
    batch: *mut Batch,
    scratch: *mut Scratch,
    round: &Round,
    result: &mut RoundResult,
) -> i32 {
    let nr = round.nr as usize;
    *result = RoundResult::default();
    let Some(batch) = NonNull::new(batch) else {
        return -errno::EINVAL;
    };
    if nr == 0 || nr > MAX_ROUND_FOLIOS || round.folios.is_null() || round.outcomes.is_null() {
        return -errno::EINVAL;
    }
    // SAFETY: the caller's promise.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else {
        return -errno::EINVAL;
    };
    // SAFETY: not null, and `nr` entries by the caller's promise.
    let folios = unsafe { core::slice::from_raw_parts(round.folios, nr) };
    // SAFETY: as above; any byte is a valid `u8`.
    let outcomes = Outcomes(unsafe { core::slice::from_raw_parts_mut(round.outcomes, nr) });
    // SAFETY: the caller's promise.
    let context = unsafe { BatchContext::new(batch) };
    let rc = batch::run(system, context, round, folios, scratch, outcomes, result);
    result.out_of_service = system.out_of_service();
    rc
}

const _: () = assert!(MAX_CHANNELS <= 64, "a set of channels is a u64");
