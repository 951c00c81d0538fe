//! PTDMA engines from user space, by VFIO, on a stock Linux kernel.
//!
//! A program opens functions by their PCI address, maps memory for them, and has lists of ranges
//! copied by all of them at once, polled or asleep, from any number of threads:
//!
//! ```no_run
//! use ptdma_vfio::{CopyRange, Memory, Mover, Waiting};
//!
//! # fn main() -> Result<(), ptdma_vfio::Error> {
//! let mover = Mover::open(&["0000:21:00.2".parse()?, "0000:22:00.2".parse()?])?;
//! let from = mover.space().map(Memory::anonymous(1 << 20)?)?;
//! let to = mover.space().map(Memory::memfd("copy", 1 << 20)?)?;
//! from.write(0, b"some data")?;
//! let list = [
//!     CopyRange::new(&from, 0, &to, 0x8000, 0x1000)?,
//!     CopyRange::new(&from, 0x4000, &to, 0, 100)?,
//! ];
//! let copied = mover.copy(&list, Waiting::Asleep)?;
//! assert!(copied.is_complete(), "{:?}", copied.outcomes);
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! - **A range is only reported as copied if every byte of it was**: what `batch-copy` promises.
//! - **An unmap is a proof.** Once [`Mapping::unmap`] returns, no engine can read or write the
//!   memory, whatever it was told and whatever state it is in: the IOMMU refuses it.
//! - **The safe interface cannot corrupt memory.** Engines reach what is mapped in their
//!   [`Space`], and nothing else. That is [`Memory`], whose bytes this process reaches by atomic
//!   accesses only. Memory that the process has already takes an `unsafe` function,
//!   [`Memory::of_process`], which says what has to be kept.
//! - **A process that ends, by SIGKILL too, leaves nothing running**: the kernel resets its
//!   functions, takes bus mastering away and unmaps.
//! - **Every wait is bounded**, no function panics, and each [`Error`] says what to do.
//!
//! # What it needs
//!
//! An IOMMU that is switched on, the modules vfio-pci and vfio_iommu_type1, and the functions in
//! the hands of vfio-pci ([`take`]). Then no root: whoever owns `/dev/vfio/GROUP` may use them, up
//! to `RLIMIT_MEMLOCK` bytes of mapped memory.
//!
//! # Features
//!
//! `vm-memory` maps the memory of a guest (`GuestMemoryMmap` of rust-vmm) as it is: see
//! [`Space::map_for`] and, with the feature, `Space::map_guest`.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
// No panicking path, checked: what could panic is not even written.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::todo,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

mod address;
mod error;
mod function;
#[cfg(feature = "vm-memory")]
mod guest;
mod hardware;
mod ioctl;
mod iova;
mod list;
mod memory;
mod mover;
mod space;
mod sysfs;
mod time;

pub use address::PciAddress;
pub use error::Error;
pub use function::{Function, FunctionHandle, VfioChannel};
#[cfg(feature = "vm-memory")]
pub use guest::GuestMapping;
pub use hardware::{Bar, Ring};
pub use list::{Copied, CopyRange};
pub use memory::{HUGE_PAGE_LEN_BYTES, Memory, PAGE_LEN_BYTES};
pub use mover::{ChannelState, MAX_CHANNELS, Mover, Setup, Waiting};
pub use space::{Access, Mapping, Space, UnmapError};
pub use sysfs::{Candidate, ResetResult, ResetsOff, give_back, list, take};
pub use time::{Monotonic, ThreadLock};

pub use batch_copy::{FailReason, Options, Outcome, Report, SkipReason};
