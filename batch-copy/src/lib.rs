//! wip
#![no_std]
#![forbid(unsafe_code)]
pub mod channel;
mod cursor;
pub mod folio;
mod gather;
pub mod lock;
pub mod map;
pub mod overlap;
pub mod plan;
pub mod survey;
pub use channel::*;
pub use folio::*;
pub use gather::CHUNK;
pub use lock::Lock;
pub use map::*;
pub use overlap::{Interval, OverlapCheck};
pub use plan::*;
pub use survey::*;
