//! The driver on every kind of engine that the model can be: the fuzzer answers the open questions,
//! chooses what happens, and takes every decision that is left to chance.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ptdma::Signalling;
use ptdma_forks_tests::channel::{Case, Scenario, run};
use ptdma_forks_tests::{Knowledge, Scenario as _};
use ptdma_model::{Forks, tape};

/// As long as the matrix's: the shortest, the stock driver's, and one over its length.
const ENTRIES: [usize; 4] = [2, 4, 32, 64];

fuzz_target!(|data: &[u8]| {
    let (head, rest) = data.split_at(data.len().min(Forks::QUESTIONS.len() + 2));
    let mut head = head.iter().map(|byte| usize::from(*byte));
    let mut choose = || head.next().unwrap_or(0);
    let mut forks = Forks::TODAY;
    for question in Forks::QUESTIONS {
        let answer = question.answers[choose() % question.answers.len()];
        forks
            .set(question.key, answer)
            .expect("the table's own words");
    }
    if forks.objection().is_some() {
        return;
    }
    let scenario = Scenario::ALL[choose() % Scenario::ALL.len()];
    let set_up = choose();
    let entries = ENTRIES[set_up % ENTRIES.len()];
    let case = Case {
        forks,
        scenario,
        entries,
        signalling: if set_up & 0x10 == 0 {
            Signalling::Polled
        } else {
            Signalling::Interrupts
        },
        // A ring that may be too long is used whole only by who has found out.
        knowledge: if set_up & 0x20 == 0 && entries <= 32 {
            Knowledge::Nothing
        } else {
            Knowledge::FoundOut
        },
        seed: 1,
    };
    if let Err(why) = tape::play(rest, || run(&case)) {
        panic!("{case}: {why}");
    }
});
