//! Driver for AMD PTDMA (pass-through DMA) command queues, PCI 1022:1498.
//!
//! A PTDMA function copies memory by itself: software fills a ring with 32-byte descriptors and
//! moves a tail pointer. This crate keeps that ring full. A burst of descriptors, however many,
//! costs one fence and one tail write. An engine that needs RUN takes a read and a write of control
//! besides. Finding out that the burst is done costs one register read, or two. Nothing is
//! allocated, nothing is global, and every wait is bounded.
//!
//! # Layers
//!
//! | module | what it is |
//! |---|---|
//! | [`regs`], [`descriptor`], [`addr`] | the hardware's language, shared with the device model |
//! | [`io`] | the seam: registers, ring memory and clock as traits |
//! | [`mmio`], [`ring_memory`] | the seam's hardware side; all `unsafe` of the crate is there |
//! | [`Channel`] | one queue: bring-up, submission, completion, recovery, tear-down |
//! | [`CopyChannel`] | what a channel promises, whatever its engine is; [`PtdmaQueue`] promises it |
//! | [`Channels`], [`shared`] | channels that many CPUs share |
//! | [`list`] | lists of copies spread over shared channels, with a result for each entry |
//!
//! # Contract
//!
//! **Who owns what.** From [`Channel::submit`] on, source and destination of a copy belong to the
//! engine. Neither may be freed or reused, nor the destination read, before the cookie is retired
//! or dropped. [`poll`](Channel::poll) and its relatives retire; [`terminate`](Channel::terminate),
//! [`recover`](Channel::recover) and [`shutdown`](Channel::shutdown) drop. An error from any of
//! these gives nothing back. The crate deals in bus addresses, so the borrow checker cannot see
//! this; whoever made the registers has promised it ([`Mmio::new`]). The ring's memory belongs to
//! the channel and comes back from a successful shutdown only; a dropped channel leaks it on
//! purpose.
//!
//! **What is guaranteed.** A retired cookie was copied unless a [`Failure`] names it. Failures
//! are reported exactly once. The descriptors behind a failed one are executed as if nothing had
//! happened. Cookies complete in order and never repeat.
//!
//! **Memory ordering.** Descriptors are visible to the engine before the doorbell
//! ([`RingMemory::publish`] and [`RegisterIo::write`]). Copied data is visible to the CPU that has
//! seen the head pass it ([`RegisterIo::read`]). Data that the CPU wrote before `submit` is visible
//! to the engine under the same rule, on coherent machines, which all PTDMA machines are.
//!
//! **Threads.** A channel takes `&mut self` for everything that changes it. Share it behind a lock
//! of the platform's ([`Lock`]), which keeps the interrupt handler off the CPU that holds it.
//! `Channel` is [`Send`] if its registers and memory are.
//!
//! **Time.** [`poll`](Channel::poll) and [`handle_interrupt`](Channel::handle_interrupt) do not
//! wait, except for a bounded number of reads while a failed engine comes to rest. What waits takes a [`Deadline`] on the caller's [`Clock`], and ends after a number of
//! polls even if that clock stands still.
//!
//! **Panics.** None: no function of this crate panics, whatever the device does.
//!
//! **Errors.** A copy that cannot be asked for: [`RequestError`]. A descriptor that failed:
//! [`Failure`]. Something odd that was got over: [`Anomaly`]. A channel out of order: [`Fault`],
//! recovered by `terminate`, or by a function reset and `recover`. An engine that cannot be proved
//! stopped: [`NotStopped`], which says what it may still touch.
//!
//! # Features
//!
//! `spin`, on by default, brings a spin lock for shared channels that name no lock. A platform that
//! has a [`Lock`] of its own says `default-features = false`.
//!
//! # Firmware: one channel, polled
//!
//! ```no_run
//! use core::ptr::NonNull;
//! use ptdma::{Channel, ChannelConfig, Clock, CoherentRing, Deadline, DmaAddr, Mmio, Notify};
//!
//! struct Tsc;
//! impl Clock for Tsc {
//!     fn now(&self) -> u64 {
//!         // SAFETY: every CPU of a PTDMA machine has a time stamp counter.
//!         unsafe { core::arch::x86_64::_rdtsc() }
//!     }
//! }
//!
//! # fn example(bar2: NonNull<u8>, ring: NonNull<u8>) -> Result<(), &'static str> {
//! // SAFETY: `bar2` maps the function's BAR 2 uncached, nobody else drives it, and what is copied
//! // below is ours and unused meanwhile.
//! let regs = unsafe { Mmio::new(bar2) };
//! // SAFETY: 32 * 32 bytes at `ring`, ours alone, identity mapped for the device.
//! let memory = unsafe { CoherentRing::new(ring, DmaAddr::new(0x10_0000), 32) };
//! let mut channel = Channel::bring_up(regs, memory, ChannelConfig::default())
//!     .map_err(|_| "no PTDMA here")?;
//! let traits = channel.find_out(&Tsc, Deadline::after(&Tsc, 1_000_000_000));
//! traits.map_err(|_| "its engine does nothing")?;
//!
//! // Two copies, one doorbell.
//! let a = channel.prep_copy(DmaAddr::new(0x20_0000), DmaAddr::new(0x40_0000), 4096);
//! let b = channel.prep_copy(DmaAddr::new(0x30_0000), DmaAddr::new(0x50_0000), 2 << 20);
//! let mut last = None;
//! for request in [a, b] {
//!     let request = request.map_err(|_| "bad address")?;
//!     last = channel.submit(&request, Notify::Silent).ok();
//! }
//! channel.issue_pending(Notify::Silent);
//!
//! let mut failed = 0;
//! if let Some(last) = last {
//!     let deadline = Deadline::after(&Tsc, 1_000_000_000);
//!     channel
//!         .wait_for(last, &Tsc, deadline, core::hint::spin_loop, |_failure| failed += 1)
//!         .map_err(|_| "engine hangs: its memory is still its own")?;
//! }
//!
//! let deadline = Deadline::after(&Tsc, 1_000_000_000);
//! if channel.shutdown(&Tsc, deadline).is_err() {
//!     // The ring was leaked: the engine may still be reading it.
//!     return Err("engine does not stop");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Interrupt driven
//!
//! ```
//! use ptdma::{Anomaly, Channel, Fault, Notify, RegisterIo, RingMemory};
//! # use ptdma::CopyRequest;
//!
//! /// Fills the ring and asks for one interrupt at the end.
//! fn start<R: RegisterIo, M: RingMemory>(channel: &mut Channel<R, M>, work: &[CopyRequest]) {
//!     for request in work.iter().take(channel.burst_capacity()) {
//!         if channel.submit(request, Notify::Silent).is_err() {
//!             break;
//!         }
//!     }
//!     channel.issue_pending(Notify::Interrupt);
//! }
//!
//! /// The function's interrupt handler.
//! fn on_interrupt<R: RegisterIo, M: RingMemory>(channel: &mut Channel<R, M>) -> Result<(), Fault> {
//!     let progress = channel.handle_interrupt()?;
//!     if let Some(failure) = progress.failure {
//!         // Name the copy that failed; the others go on.
//!         let _ = failure.cookie;
//!     }
//!     Ok(())
//! }
//!
//! /// When an interrupt is overdue.
//! fn on_timeout<R: RegisterIo, M: RingMemory>(channel: &mut Channel<R, M>) -> Result<bool, Fault> {
//!     let progress = channel.check_lost_interrupt()?;
//!     Ok(progress.anomaly == Some(Anomaly::LostInterrupt))
//! }
//! ```
//!
//! # Many channels, many CPUs
//!
//! ```
//! use ptdma::{Channels, Clock, CopyChannel, Deadline, EntryResult, ListCopy, Notify, Segment};
//!
//! /// Copies a list with all channels, and says what became of each entry. Any number of CPUs
//! /// may call it at the same time.
//! fn copy<C: CopyChannel>(
//!     channels: &Channels<C>,
//!     list: &[Segment],
//!     results: &mut [EntryResult],
//!     clock: &impl Clock,
//! ) -> Result<(), &'static str> {
//!     // An engine that does not move for this long, in the unit of the clock, is stopped.
//!     let hang = 100_000_000;
//!     let mut copy = ListCopy::start(channels, list, results, Notify::Silent, hang, clock.now())
//!         .map_err(|_| "not started")?;
//!     let deadline = Deadline::after(clock, 1_000_000_000);
//!     if copy.wait(clock, deadline, core::hint::spin_loop).is_err() {
//!         copy.stop(clock.now());
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # What is known of the hardware, and how
//!
//! `HARDWARE.md` beside this crate lists facts, their sources, and the questions that no public
//! source answers. The driver is right on each answer; a wrong guess costs accesses, or a copy that
//! is made twice. [`Channel::find_out`] has an engine show what can be shown by harmless copies,
//! [`EngineTraits`] is what it has shown.
//!
//! What is left to believe, because nothing that a driver can do would prove it:
//!
//! - A head that has passed a descriptor, without an error in the interrupt status read after it,
//!   means that the descriptor was copied. DPDK completes by the head alone.
//! - An error is latched, while its interrupt is enabled at the device, no later than the head
//!   moves past what failed.
//! - An engine that has reported an error does not go on by itself (the manual of the sibling).
//! - HALT, if it has fallen since RUN was written and reads 1 after RUN was taken away, means that
//!   the engine has stopped.

#![no_std]
// Allowed where code touches hardware, and on the promise that an engine has stopped.
#![deny(unsafe_code)]
// No panicking path, checked: what could panic is not even written.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::todo,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]
#[cfg(test)]
extern crate std;
pub mod addr;
mod channel;
mod clock;
mod completion;
mod cookie;
mod copy_channel;
pub mod descriptor;
mod error;
mod error_code;
mod failure;
mod find_out;
pub mod io;
mod lifecycle;
pub mod list;
mod lock;
#[cfg(test)]
mod messages;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub mod mmio;
mod queue;
pub mod regs;
mod request;
mod ring;
#[allow(unsafe_code)]
pub mod ring_memory;
pub mod shared;
mod stats;
mod traits;
mod wait;
pub use addr::{DmaAddr, DmaRange, RangeError};
pub use channel::{Channel, ChannelConfig, ErrorHead, Signalling, Submitted};
pub use clock::{Deadline, MAX_POLLS};
pub use completion::Progress;
pub use cookie::Cookie;
pub use copy_channel::{
    ChannelLimits, CopyChannel, CopyFailure, CopyProgress, Health, PrepError, Prepared, Segment,
    Stopped,
};
pub use descriptor::Descriptor;
pub use error::{Anomaly, BringUpError, Failure, Fault, NotStopped, SubmitError};
pub use error_code::{ErrorCode, KnownError};
pub use find_out::ProbeError;
pub use io::{Clock, RegisterIo, RingMemory};
pub use lifecycle::{FunctionQuiesced, Terminated};
pub use list::{EntryResult, ListCopy, ListError, ListStatus, ListTimedOut};
pub use lock::{DefaultLock, Lock};
#[cfg(target_arch = "x86_64")]
pub use mmio::Mmio;
pub use queue::{NoClock, Observer, PtdmaQueue};
pub use request::{
    BOUNDARY_LEN_BYTES, CopyRequest, DEFAULT_MAX_LEN_BYTES, Limits, Notify, RequestError,
};
pub use ring::{MAX_ENTRIES, MIN_ENTRIES, RingError};
pub use ring_memory::CoherentRing;
pub use shared::{Channels, NotIdle, ServiceState, SharedChannel, SharedStats};
pub use stats::Stats;
pub use traits::{EngineTraits, Restart, Seen};
pub use wait::WaitError;
