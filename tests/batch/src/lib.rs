//! What the tests and benchmarks of `batch-copy` share.

#![forbid(unsafe_code)]

pub mod memory;
pub mod rig;
