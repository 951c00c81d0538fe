//! Shared parts of the host tests.

#![deny(unsafe_code)]

pub mod fake_function;
pub mod recorder;
pub mod rig;
