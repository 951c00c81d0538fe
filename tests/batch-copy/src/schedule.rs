//! A schedule fuzzer: batches, engines and owners of channels take turns in an order that a seed
//! chooses, and every turn ends at a callback.
//!
//! Whatever a batch calls (its clock, its wait, its mapper, the list of folios, the CPU's copy,
//! the last resort, a channel's lock) may hand the turn to somebody else. Everybody runs on one
//! thread, as a coroutine, so that a turn costs some nanoseconds and a seed is all that it takes
//! to see a failure again.
//!
//! There are two modes. In one the engines are the fuzzer's own, which misbehave in ways of which
//! the driver's channels protect a batch. In the other they are functions of the device model, of
//! all kinds, with the driver's own channels on them; a step of an engine comes with every access
//! to a register, and now and then a reset that nobody tells of.
//!
//! Rings are tiny, engines fail, hang and forget, mappers refuse, owners take channels away and
//! put them back. Every byte is compared, and whoever writes to memory that was given back is
//! caught in the act.

mod coroutine;
mod engine;
mod function;
mod hardware;
mod hosts;
mod run;
mod world;

pub use run::{Mode, Tally, run_seed};
