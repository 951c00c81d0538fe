//! A schedule fuzzer: batches, engines and owners of channels take turns in an order that a seed
//! chooses, and every turn ends at a callback.
//!
//! Whatever a batch calls (its clock, its wait, its mapper, the list of folios, the CPU's copy,
//! the last resort, a channel's lock) may hand the turn to somebody else. Everybody runs on one
//! thread, as a coroutine, so that a turn costs some nanoseconds and a seed is all that it takes
//! to see a failure again.
//!
//! Rings are tiny, engines fail, hang and forget, mappers refuse, owners take channels away and
//! put them back. Every byte is compared, and whoever writes to memory that was given back is
//! caught in the act.

mod coroutine;
mod engine;
mod hosts;
mod run;
mod world;

pub use run::{Tally, run_seed};
