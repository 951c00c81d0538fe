//! Every kind of engine is told as it was set, and nothing is told of it that is not so.
#![forbid(unsafe_code)]

use ptdma_model::Forks;
use ptdma_model::forks::{EXCLUSIONS, Machine};
use ptdma_probe::{Answer, Consent, Question, Stop, probe, together};
use ptdma_probe_tests::{Bench, Judged, Words, judge};

const ENTRIES: u64 = 8192;
const ALL: Consent = Consent { reset: true };
const SAFE: Consent = Consent { reset: false };

/// Probes one kind; returns what is wrong.
fn ask(forks: Forks, consent: Consent) -> Judged {
    let mut bench = Bench::new(forks);
    let report = probe(&mut bench, consent);
    let mut judged = judge(forks, consent, true, ENTRIES, |q| report.answer(q).into());
    // What holds on every kind of the model.
    for (question, words) in [
        (Question::Plain, &["completes"][..]),
        (Question::Enable, &["reads_back"]),
        (Question::Rearm, &["comes"]),
        (Question::Longest, &["bytes:2097152"]),
        (Question::Alignment, &["works"]),
        (Question::Boundary, &["works"]),
        (Question::Arrival, &["there"]),
        (Question::Behind, &["waits"]),
        (Question::ErrorOrder, &["head_stays", "before"]),
    ] {
        let answer = report.answer(question).to_string();
        if !words.contains(&answer.as_str()) {
            judged.wrong.push(format!("{}: {answer}", question.key()));
        }
    }
    let lost = forks.answers().contains(&"lost".to_owned()) && consent.reset;
    let stop = lost.then_some(Stop::Lost);
    if report.stop != stop || report.wrong_copies > 0 {
        let said = format!("{:?}, {} wrong", report.stop, report.wrong_copies);
        judged.wrong.push(said);
    }
    if !lost && bench.model.programmed() {
        judged.wrong.push("the queue is left set up".into());
    }
    judged
}

fn all_right(machines: impl IntoIterator<Item = (String, Forks)>, consent: Consent) -> Judged {
    let mut sum = Judged::default();
    for (name, forks) in machines {
        let start = std::time::Instant::now();
        let judged = ask(forks, consent);
        println!("{name}: {:?}", start.elapsed());
        let wrong = judged.wrong.iter().map(|what| format!("{name}: {what}"));
        sum.wrong.extend(wrong);
        sum.exact += judged.exact;
        sum.among += judged.among;
        sum.unknown += judged.unknown;
    }
    assert!(sum.wrong.is_empty(), "\n{}", sum.wrong.join("\n"));
    sum
}

fn named(machine: &Machine) -> (String, Forks) {
    (machine.name.to_owned(), machine.forks)
}

#[test]
fn machines_with_a_name() {
    let sum = all_right(Forks::MACHINES.iter().map(named), ALL);
    println!("{sum:?}");
    // Of 15 questions of 17 machines most have one answer left.
    assert!(sum.exact > 17 * 13, "{sum:?}");
}

#[test]
fn without_consent_nothing_is_reset() {
    for machine in Forks::MACHINES {
        let mut bench = Bench::new(machine.forks);
        let report = probe(&mut bench, SAFE);
        assert_eq!(bench.model.counters().resets, 0, "{}", machine.name);
        assert_eq!(report.stop, None, "{}", machine.name);
        for question in [Question::Reset, Question::Engine] {
            assert!(matches!(report.answer(question), Answer::Unknown(_)));
        }
    }
}

#[test]
fn all_pairs_of_answers() {
    let machines = Forks::covering();
    let sum = all_right(machines.iter().map(|m| (m.to_string(), *m)), ALL);
    println!("{sum:?} of {} machines, {EXCLUSIONS:?}", machines.len());
}

#[test]
fn without_an_iommu_failures_are_unknown_and_the_rest_is_right() {
    for machine in Forks::MACHINES {
        let mut bench = Bench::new(machine.forks).without_iommu();
        let report = probe(&mut bench, SAFE);
        let judged = judge(machine.forks, SAFE, false, ENTRIES, |q| {
            Words::from(report.answer(q))
        });
        assert!(
            judged.wrong.is_empty(),
            "{}: {:?}",
            machine.name,
            judged.wrong
        );
    }
}

#[test]
fn functions_are_measured_together() {
    let kinds = ["today", "sibling", "linux_only"].map(|name| {
        let mut bench = Bench::new(name.parse().expect("a kind"));
        assert_eq!(probe(&mut bench, SAFE).stop, None);
        bench
    });
    let mut benches = Vec::from(kinds);
    let all = together(&mut benches, 64 << 10).expect("nothing is in the way");
    let one = together(&mut benches[..1], 64 << 10).expect("nothing is in the way");
    assert_eq!(all.bytes % (3 * 31 * (64 << 10)), 0);
    // The model's engines do not share a port.
    assert!(all.gb_per_s() > one.gb_per_s(), "{all:?} {one:?}");
}
