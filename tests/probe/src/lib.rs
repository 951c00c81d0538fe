//! The probe on every kind of engine that there may be. A function of the device model is the
//! platform; [`judge`] compares answers with how the function was set.
#![forbid(unsafe_code)]

mod judge;
mod platform;

pub use judge::{Judged, Words, judge};
pub use platform::Bench;
