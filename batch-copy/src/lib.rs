//! wip
#![no_std]
#![forbid(unsafe_code)]
#[cfg(test)]
extern crate std;
pub mod batch;
pub mod channel;
pub mod cpu;
mod cursor;
pub mod engines;
pub mod folio;
mod gather;
pub mod host;
mod lane;
pub mod map;
pub mod overlap;
pub mod plan;
pub mod policy;
pub mod queue;
pub mod reason;
pub mod source;
pub mod stats;
pub mod survey;
pub mod wait;
pub use channel::*;
pub use folio::*;
pub use gather::CHUNK;
pub use map::*;
pub use overlap::{Interval, OverlapCheck};
pub use plan::*;
pub use ptdma::{Cookie, Lock};
pub use source::*;
pub use survey::*;

pub use engines::{Engines, NotIdle, Port, Service};
pub use host::*;
pub use stats::*;
pub use wait::*;
pub const CPU_CHUNK_BYTES: u64 = 64 << 10;
pub use cpu::*;
pub use policy::*;
pub use queue::*;
pub use reason::*;
