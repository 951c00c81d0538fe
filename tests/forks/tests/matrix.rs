//! The matrix: every kind of engine, every scenario, rings of several lengths, both ways of
//! signalling.
//!
//! One case alone: `FORKS_CASE="channel Slow 2 Polled Nothing 1 sibling" cargo test -p ptdma-forks-tests
//! one_case`. `FORKS_ONLY=Slow` runs the cases whose text has that word, `FORKS_SEEDS=5` tries five
//! seeds instead of one.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

use ptdma::Signalling;
use ptdma_forks_tests::{
    Case, Failed, Knowledge, Scenario, Verdict, batch, channel, check, machines,
};
use ptdma_model::Forks;
use ptdma_model::forks::sensible_pairs;

/// Cases that are known to fail, one a line, with the reason above them.
const EXPECTED: &str = include_str!("expected-failures.txt");

/// Failures that are shown; more of them say nothing new.
const MAX_SHOWN: usize = 3000;

/// Seeds in turn: a prime number of them, so that no scenario has the same one on all machines.
const SEEDS: u64 = 61;

/// How often each case runs, each time with another seed.
fn repeats() -> u64 {
    let more = std::env::var("FORKS_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok());
    more.unwrap_or(1)
}

/// What a part of the matrix came to.
struct Tally {
    /// First word of its cases.
    subject: &'static str,
    start: Instant,
    only: Option<String>,
    /// Cases so far, without the repeats.
    number: u64,
    cases: usize,
    failed: Vec<Failed>,
}

impl Tally {
    fn new(subject: &'static str) -> Self {
        // A panic is a failure of its case, and told there.
        std::panic::set_hook(Box::new(|_| {}));
        Self {
            subject,
            start: Instant::now(),
            only: std::env::var("FORKS_ONLY").ok(),
            number: 0,
            cases: 0,
            failed: Vec::new(),
        }
    }

    /// Runs a case with as many seeds as are asked for.
    fn run<S: Scenario>(&mut self, case: Case<S>, run: impl Fn(&Case<S>) -> Verdict) {
        self.number += 1;
        for repeat in 0..repeats() {
            let seed = 1 + self.number % SEEDS + repeat * SEEDS;
            let case = Case { seed, ..case };
            let text = case.to_string();
            if self.only.as_ref().is_none_or(|only| text.contains(only)) {
                self.cases += 1;
                self.failed.extend(check(&text, || run(&case)).err());
            }
        }
    }

    /// Failures that nobody expects, and cases that were expected to fail and hold.
    fn surprises(&self) -> Vec<String> {
        let expected: BTreeSet<&str> = EXPECTED
            .lines()
            .filter(|line| line.split(' ').next() == Some(self.subject))
            .collect();
        let new = self
            .failed
            .iter()
            .filter(|failed| !expected.contains(failed.case.as_str()));
        let mut surprises: Vec<String> = new.map(ToString::to_string).collect();
        if self.only.is_none() && repeats() == 1 {
            let found: BTreeSet<&str> = self.failed.iter().map(|f| f.case.as_str()).collect();
            let holds = expected.difference(&found);
            surprises.extend(holds.map(|case| format!("{case}: expected to fail, and holds")));
        }
        surprises
    }

    fn finish(self) {
        drop(std::panic::take_hook());
        let surprises = self.surprises();
        let mut text = String::new();
        for line in surprises.iter().take(MAX_SHOWN) {
            let _infallible = writeln!(text, "{line}");
        }
        let machines = machines().len();
        let _infallible = writeln!(
            text,
            "{}: {machines} machines ({} of them cover {} pairs of answers), {} cases, {} failed, {} of them unexpected, {:.1} s",
            self.subject,
            Forks::covering().len(),
            sensible_pairs(),
            self.cases,
            self.failed.len(),
            surprises.len(),
            self.start.elapsed().as_secs_f64(),
        );
        // Past the capture of the test harness, which shows nothing of a test that passes.
        let _closed = std::io::stderr().write_all(text.as_bytes());
        assert!(surprises.is_empty(), "{text}");
    }
}

/// Rings with what the driver knows: the shortest ones, the stock driver's, and where the driver
/// finds out how long it may be one that is too long for an engine with a limit.
const RINGS: [(usize, Knowledge); 6] = [
    (2, Knowledge::Nothing),
    (4, Knowledge::Nothing),
    (32, Knowledge::Nothing),
    (4, Knowledge::FoundOut),
    (32, Knowledge::FoundOut),
    (64, Knowledge::FoundOut),
];

/// Every scenario on every machine, with every ring and both ways of signalling.
fn everything<S: Scenario>(tally: &mut Tally, run: impl Fn(&Case<S>) -> Verdict) {
    for forks in machines() {
        for &scenario in S::ALL {
            for (entries, knowledge) in RINGS {
                for signalling in [Signalling::Polled, Signalling::Interrupts] {
                    let case = Case {
                        forks,
                        scenario,
                        entries,
                        signalling,
                        knowledge,
                        seed: 0,
                    };
                    tally.run(case, &run);
                }
            }
        }
    }
}

#[test]
fn channels() {
    let mut tally = Tally::new(channel::Scenario::SUBJECT);
    everything(&mut tally, channel::run);
    // As long a ring as a whole batch needs.
    for forks in machines() {
        for scenario in [channel::Scenario::Bursts, channel::Scenario::SeveralFail] {
            let case = Case {
                forks,
                scenario,
                entries: 4096,
                signalling: Signalling::Polled,
                knowledge: Knowledge::FoundOut,
                seed: 0,
            };
            tally.run(case, channel::run);
        }
    }
    tally.finish();
}

#[test]
fn batches() {
    let mut tally = Tally::new(batch::Scenario::SUBJECT);
    everything(&mut tally, batch::run);
    tally.finish();
}

/// The case of `FORKS_CASE`, by itself and with its panic.
#[test]
fn one_case() {
    let Ok(text) = std::env::var("FORKS_CASE") else {
        return;
    };
    let verdict = match text.split_whitespace().next() {
        Some("batch") => text.parse().and_then(|case| batch::run(&case)),
        _ => text.parse().and_then(|case| channel::run(&case)),
    };
    assert_eq!(verdict, Ok(()), "{text}");
}
