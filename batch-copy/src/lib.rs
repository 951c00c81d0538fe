//! A list of folios becomes balanced work for every DMA channel, with an outcome per folio.
//!
//! `no_std`, no allocation, no unsafe code, no panicking path. It is made for page migration in a
//! kernel. It serves a hypervisor or firmware that moves memory with PTDMA as well, or with any
//! engine that has a [`CopyChannel`].
//!
//! ```
//! use batch_copy::{
//!     Batch, Channels, Clock, CpuChannel, CpuCopier, CpuCopyError, DmaAddr, Folio, Host, Options,
//!     Outcome, OverlapCheck, Piece, Polling,
//! };
//!
//! // Somebody who copies: here the CPU, which pretends.
//! struct Pretend;
//! impl CpuCopier for Pretend {
//!     fn copy(&mut self, _piece: &Piece) -> Result<(), CpuCopyError> {
//!         Ok(())
//!     }
//! }
//! struct Uptime(std::time::Instant);
//! impl Clock for Uptime {
//!     fn now(&self) -> u64 {
//!         self.0.elapsed().as_nanos() as u64
//!     }
//! }
//!
//! // Once: the channels, each behind a lock.
//! let mut channels: Channels<CpuChannel<Pretend, 64>> = Channels::new();
//! for _ in 0..4 {
//!     channels.add_channel(CpuChannel::new(Pretend, None)).map_err(|_| "too many")?;
//! }
//!
//! // For every batch, on any CPU:
//! let at = |page: u64| DmaAddr::new(page << 12);
//! let folios: Vec<_> = (0..64).map(|n| Folio::new(at(3 * n), at(1000 + 5 * n), 4096)).collect();
//! let mut outcomes = [Outcome::Dma; 64];
//! let mut host = Host::new(Polling(Uptime(std::time::Instant::now())));
//! let report = Batch::<16>::new().run(
//!     &channels,
//!     &folios[..],
//!     OverlapCheck::Pairwise,
//!     &Options::default(),
//!     &mut host,
//!     &mut outcomes,
//! )?;
//! assert!(report.is_complete() && outcomes.iter().all(|o| o.is_copied()));
//! assert_eq!(report.channels, 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How a batch goes
//!
//! 1. **Look** ([`Survey`]): every folio is checked, bytes and runs are counted. A batch that is
//!    not sound is refused whole, before anything was submitted.
//! 2. **Cut** ([`Plan`]): the batch is one stream of bytes, the folios end to end. Every channel
//!    gets one stretch of it, of equal length: all engines finish together, whatever the sizes of
//!    folios. Cuts are moved so that parts do not become too short. That also stripes a single
//!    folio over all channels.
//! 3. **Submit**: every lane walks its stretch. The caller's [`Mapper`] translates, neighbours
//!    that are contiguous on both sides become one descriptor, and a whole stretch is one burst
//!    with one doorbell. A ring that cannot hold it is refilled whenever half of it is free.
//! 4. **Watch**: by polling, by interrupts, or by both ([`Wait`]), with a deadline. Several batches
//!    on several CPUs share the channels. Each [`SharedChannel`] knows how far its engine is and
//!    which descriptors were lost. Each batch knows which descriptors are its own. An [`Observer`]
//!    hears of what goes wrong in a queue, for logs and traces.
//! 5. **Account**: a failed descriptor is traced back to its bytes by walking the same stretch
//!    again. Work of a channel that stopped moves to the others. At the end every byte is in
//!    exactly one book: copied by an engine, copied by the CPU, failed, skipped, or quarantined. If
//!    the books did not balance, nothing would be claimed.
//!
//! # What is promised
//!
//! - A folio is only reported as copied if every byte of it was.
//! - When [`Batch::run`] returns, no engine can write to any folio of the batch. The exception is a
//!   folio whose outcome says [`Quarantined`](FailReason::Quarantined); [`Rescue::quarantined`] was
//!   told which bytes.
//! - It returns in bounded time, also with engines that hang and clocks that stand still. Each
//!   batch may have a clock of its own.
//! - It holds one channel's lock at a time, for at most [`CHUNK`] descriptors or for stopping one
//!   engine. It holds none while it waits, maps, copies or asks the list of folios (unless that is
//!   [plain memory](FolioSource::IN_MEMORY)). What is a part of a channel is called with its lock
//!   held: an [`Observer`], and the copier of a [`CpuChannel`].
//! - A panic in something that it calls leaves no engine writing, except as above, and no
//!   descriptor held.
//!
//! # Features
//!
//! `spin`, on by default, brings a spin lock for shared channels that name no lock. A platform that
//! has a [`Lock`] of its own says `default-features = false`.
//!
//! # What is not checked
//!
//! Whether the caller's addresses are the ones it means; and, with
//! [`OverlapCheck::CallerKnows`], whether folios overlap each other.

#![no_std]
#![forbid(unsafe_code)]
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

mod ahead;
mod batch;
mod calibrate;
mod closing;
mod cpu;
mod cursor;
mod folio;
mod gather;
mod hand_out;
mod host;
mod lane;
mod map;
#[cfg(test)]
mod messages;
mod options;
mod orphans;
mod overlap;
mod plan;
mod policy;
mod reason;
mod scattered;
mod source;
mod stats;
mod sum;
mod survey;
mod wait;

pub use batch::{Batch, CPU_CHUNK_BYTES};
pub use calibrate::{CALIBRATION_BYTES, CalibrationError, calibrate};
pub use cpu::{CPU_COPY_FAILED, CpuChannel};
pub use folio::{FailReason, Folio, LengthMismatch, Outcome, SkipReason};
pub use gather::CHUNK;
pub use host::{CpuCopier, CpuCopyError, Host, NoCpu, NoRescue, Rescue};
pub use map::{Identity, MAP_CHUNK, MapError, Mapper, Piece};
pub use options::Options;
pub use overlap::{Interval, OverlapCheck};
pub use plan::{CutRules, Plan, Stretch, pieces};
pub use policy::{CostModel, Decision, Policy};
// The layer below, as far as batches are given to it.
pub use ptdma;
pub use ptdma::{
    ChannelLimits, Channels, Clock, CopyChannel, CopyFailure, CopyProgress, DefaultLock, DmaAddr,
    Health, Lock, NoClock, NotIdle, Observer, PrepError, Prepared, PtdmaQueue, Segment,
    ServiceState, SharedChannel, SharedStats, Stopped,
};
pub use reason::{Reasons, UnknownReason};
pub use source::{FolioFn, FolioSource};
pub use stats::{Report, Totals, TotalsNow};
pub use survey::{BadInput, Bounds, MAX_BATCH_BYTES, Survey};
pub use wait::{Naps, Polling, Sleeper, SpinThenSleep, Wait, WaitFor, Wake};
