//! Batches, channels, engines and owners in an order that the fuzzer chooses: the schedule fuzzer of
//! `tests/batch-copy`, steered by coverage.
//!
//! The first byte says whether the engines are the fuzzer's own or functions of the device model;
//! the others decide every turn, every fault, every list of folios, every answer of a mapper.
#![no_main]

use batch_copy_tests::schedule::{Mode, Tally, run_seed};
use libfuzzer_sys::fuzz_target;
use ptdma_model::tape;

fuzz_target!(|data: &[u8]| {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let mode = if first & 1 == 0 {
        Mode::Engines
    } else {
        Mode::Functions
    };
    // The seed decides what the tape is too short for, and how many lanes a batch has.
    let seed = u64::from(first >> 1);
    if let Err(why) = tape::play(rest, || run_seed(mode, seed, &mut Tally::default())) {
        panic!("{mode:?}, seed {seed}: {why}");
    }
});
