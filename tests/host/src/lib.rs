//! Shared parts of the host tests.

#![forbid(unsafe_code)]

pub mod recorder;
pub mod rig;
