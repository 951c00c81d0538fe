//! placeholder
#![no_std]
#![deny(missing_docs, clippy::undocumented_unsafe_blocks)]
pub mod addr;
pub mod descriptor;
mod error_code;
pub mod io;
pub mod regs;
pub use addr::{DmaAddr, DmaRange, RangeError};
pub use descriptor::Descriptor;
pub use error_code::{ErrorCode, KnownError};
