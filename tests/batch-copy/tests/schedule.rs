//! Every batch keeps its word, in whatever order batches, engines and owners take their turns.
//!
//! `PTDMA_FUZZ_SECONDS=60 cargo test --release -p batch-copy-tests --test schedule -- --nocapture`
//! runs each of the two modes for half a minute; 3 seconds each is the default.
//! `PTDMA_FUZZ_EVENTS` ends it after so many events instead, `PTDMA_FUZZ_START` says with which
//! seed it begins. A seed that fails is printed: `PTDMA_FUZZ_SEED` runs it again, and with
//! `PTDMA_FUZZ_TRACE` says what happened; the name of the test chooses the mode.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use batch_copy_tests::schedule::{Mode, Tally, run_seed};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn one(mode: Mode, seed: u64, tally: &mut Tally) {
    if let Err(what) = run_seed(mode, seed, tally) {
        panic!("{mode:?}, seed {seed}: {what}\nagain: PTDMA_FUZZ_SEED={seed}\n{tally:?}");
    }
}

#[test]
fn batches_keep_their_word_in_every_order() {
    many(Mode::Engines);
}

#[test]
fn batches_keep_their_word_on_channels_of_the_driver() {
    many(Mode::Functions);
}

/// As many seeds as there is time for: each mode has half of it.
fn many(mode: Mode) {
    let mut tally = Tally::default();
    if let Some(seed) = setting("PTDMA_FUZZ_SEED") {
        one(mode, seed, &mut tally);
        println!("{mode:?}, seed {seed}: {tally:?}");
        return;
    }
    let first = setting("PTDMA_FUZZ_START").unwrap_or_else(|| {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed();
        now.map_or(0, |since| since.as_secs() << 16)
    });
    let events = setting("PTDMA_FUZZ_EVENTS").unwrap_or(u64::MAX);
    let seconds = match setting("PTDMA_FUZZ_SECONDS") {
        Some(seconds) => seconds.div_ceil(2),
        None if events != u64::MAX => u64::MAX,
        None => 3,
    };
    let begun = Instant::now();
    let mut told = begun;
    // With `PTDMA_FUZZ_ALL` it goes on after a failure, and counts what there is of each kind.
    let all = std::env::var_os("PTDMA_FUZZ_ALL").is_some();
    let mut kinds = BTreeMap::<String, (u64, u64)>::new();
    let mut seed = first;
    while tally.events < events && begun.elapsed().as_secs() < seconds {
        if all {
            if let Err(what) = run_seed(mode, seed, &mut tally) {
                let kind = what.lines().next().unwrap_or_default();
                let words = kind.split_whitespace();
                let kind: Vec<_> = words
                    .filter(|w| !w.contains(|c: char| c.is_ascii_digit()))
                    .collect();
                let kind = kind.join(" ");
                kinds.entry(kind).or_insert((0, seed)).0 += 1;
            }
        } else {
            one(mode, seed, &mut tally);
        }
        seed += 1;
        if told.elapsed() > Duration::from_secs(60) {
            told = Instant::now();
            println!(
                "{mode:?}, seeds {first}..{seed} in {:?}: {tally:?}",
                begun.elapsed()
            );
        }
    }
    println!(
        "{mode:?}, seeds {first}..{seed} in {:?}: {tally:?}",
        begun.elapsed()
    );
    assert!(kinds.is_empty(), "how often, and a seed: {kinds:#?}");
    assert!(tally.folios_dma > 0 && tally.stops > 0, "{tally:?}");
}
