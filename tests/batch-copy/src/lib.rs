//! What the tests and benchmarks of `batch-copy` share.

#![deny(unsafe_code)]

pub mod contest;
pub mod memory;
pub mod plain;
pub mod published;
pub mod puppet;
pub mod rig;
pub mod schedule;
pub mod unordered;
pub mod workload;
