//! `ptdma probe` on eight engines, each of another kind: what it says of each is compared with how
//! the device server set it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ptdma_model::Forks;
use ptdma_model::forks::Machine;
use ptdma_probe::{Consent, Question, SCHEMA};
use ptdma_probe_tests::{Judged, Words, judge};
use serde_json::Value;

use super::{Check, DEBIAN, Suite};
use crate::machine::{Guest, Iommu, Options};

/// Short buffers: each page that is mapped for eight emulated functions is a message to each.
const PROBE: &str = "ptdma probe --take --buffer-mib 2";
/// Entries of the ring that the command gives the engines.
const ENTRIES: u64 = 8192;
/// Each of eight functions takes a second or two, on an emulated processor that others share.
const LIMIT: Duration = Duration::from_secs(300);

pub(super) const SUITES: &[Suite] = &[Suite {
    name: "probe",
    about: "`ptdma probe` says of eight engines, each of another kind, what they are",
    kernels: DEBIAN,
    machine: || Options {
        devices: machines().count(),
        machines: machines().map(|machine| machine.name).collect(),
        iommu: Iommu::Intel,
        ..Options::default()
    },
    checks: &[
        Check::new("answers", answers).quick(DEBIAN),
        Check::new("table", table),
        Check::new("interrupted", interrupted),
        // The kernel waits a minute for the one that does not come back.
        Check::spoiling("with-resets", with_resets),
    ],
}];

/// Kinds of engine that differ much: between them most answers to most questions. The host tests of
/// `tests/probe` have all of them.
const KINDS: [&str; 8] = [
    "linux_only",
    "dpdk",
    "stopper",
    "deaf",
    "lagging",
    "past",
    "one_way",
    "short_ring",
];

/// The machines of these kinds, in the model's order.
fn machines() -> impl Iterator<Item = &'static Machine> {
    Forks::MACHINES
        .iter()
        .filter(|machine| KINDS.contains(&machine.name))
}

fn modules(guest: &mut Guest) -> Result<()> {
    guest.ok("modprobe vfio_iommu_type1 && modprobe vfio-pci")?;
    Ok(())
}

/// One answer of a report.
fn words(function: &Value, question: Question) -> Words {
    let answer = &function["answers"][question.key()];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let left = match (&answer["is"], &answer["among"]) {
        (Value::String(one), _) => vec![one.clone()],
        (_, Value::Array(several)) => several.iter().map(text).collect(),
        _ => Vec::new(),
    };
    Words {
        left,
        unknown: answer["unknown"].as_str().map(str::to_owned),
    }
}

/// Compares a whole report with the machines.
fn compare(guest: &Guest, report: &Value, consent: Consent) -> Result<Judged> {
    ensure!(
        report["schema"] == SCHEMA,
        "the schema is another: {report}"
    );
    let functions = report["functions"].as_array().context("no functions")?;
    ensure!(functions.len() == machines().count(), "{report}");
    let mut sum = Judged::default();
    for (index, machine) in machines().enumerate() {
        let address = guest.options().address_of(index);
        let function = functions
            .iter()
            .find(|function| function["address"] == address.as_str())
            .with_context(|| format!("{address} is not told of"))?;
        let judged = judge(machine.forks, consent, true, ENTRIES, |question| {
            words(function, question)
        });
        let mut wrong = judged.wrong;
        for (key, right) in [
            ("plain", "completes"),
            ("alignment", "works"),
            ("boundary", "works"),
            ("arrival", "there"),
            ("behind", "waits"),
            ("rearm", "comes"),
        ] {
            let said = &function["answers"][key]["is"];
            if said != right {
                wrong.push(format!("{key}: {}", function["answers"][key]));
            }
        }
        let lost = consent.reset && machine.name == "one_way";
        if function["stop"].is_null() == lost || function["wrong_copies"] != 0 {
            wrong.push(format!("{}", function["stop"]));
        }
        for cost in ["read_ns", "write_ns", "lone_copy_ns", "interrupt_ns"] {
            if function["measured"][cost]
                .as_f64()
                .is_none_or(|ns| ns <= 0.0)
            {
                wrong.push(format!("{cost}: {}", function["measured"][cost]));
            }
        }
        let named = |what: &String| format!("{} ({}): {what}", machine.name, machine.forks);
        sum.wrong.extend(wrong.iter().map(named));
        sum.exact += judged.exact;
        sum.among += judged.among;
        sum.unknown += judged.unknown;
    }
    ensure!(sum.wrong.is_empty(), "{}", sum.wrong.join("\n"));
    Ok(sum)
}

/// A signal ends the probe between two functions. Each function has its driver, or none, and its
/// resets as before.
fn interrupted(guest: &mut Guest) -> Result<String> {
    const STATE: &str = "for d in /sys/bus/pci/devices/*; do \
        if [ \"$(cat $d/device)\" = 0x1498 ]; then \
        echo \"$d $(cat $d/reset_method) $(cat $d/driver_override) $(readlink $d/driver)\"; \
        fi; done";
    modules(guest)?;
    let before = guest.ok(STATE)?;
    let said = guest.ok_within(
        &format!(
            "{PROBE} >/probe.log 2>&1 & p=$!; \
             until ls /sys/bus/pci/drivers/vfio-pci | grep -q 0000:; do sleep 0.1; done; \
             kill -TERM $p; wait $p; echo \"status $?\"; cat /probe.log"
        ),
        LIMIT,
    )?;
    ensure!(
        said.contains("status 1") && said.contains("interrupted"),
        "{said}"
    );
    let after = guest.ok(STATE)?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(format!(
        "{} functions are as they were",
        before.lines().count()
    ))
}

fn told(sum: &Judged) -> String {
    format!(
        "{} answers exact, {} among several, {} not asked, none wrong",
        sum.exact, sum.among, sum.unknown
    )
}

/// Without consent nothing is reset: a function that would not come back is there afterwards.
fn answers(guest: &mut Guest) -> Result<String> {
    modules(guest)?;
    guest.server()?.reset_counters()?;
    // Functions that no driver has: taken for the time of the probe.
    let text = guest.ok_within(&format!("{PROBE} --json"), LIMIT)?;
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let consent = Consent { reset: false };
    let sum = compare(guest, &report, consent)?;
    let together = report["together"].as_array().context("nothing together")?;
    let pairs = together
        .iter()
        .filter(|one| {
            one["functions"]
                .as_array()
                .is_some_and(|all| all.len() == 2)
        })
        .count();
    ensure!(
        pairs == machines().count() && together.len() == pairs + 2,
        "two lengths of each pair, and of all: {together:?}"
    );
    ensure!(
        report["measured"]["schema"] == "ptdma-measured/1"
            && report["settings"]["ring_entries"] == 32,
        "{report}"
    );
    let bound = guest.ok("ptdma probe --help > /dev/null; ls /sys/bus/pci/drivers/vfio-pci")?;
    ensure!(!bound.contains("0000:"), "not given back: {bound}");
    Ok(told(&sum))
}

/// The report for people: columns line up, and a function that nobody has handed over is refused.
fn table(guest: &mut Guest) -> Result<String> {
    modules(guest)?;
    let address = guest.options().address_of(0);
    let refused = guest.sh(&format!("ptdma probe {address}"))?;
    ensure!(
        refused.code == 1 && refused.text.contains("--take"),
        "{}",
        refused.text
    );
    let text = guest.ok_within(&format!("{PROBE} {address}"), LIMIT)?;
    let column = |line: &str| line.find("  ").map(|at| line[at..].trim_start().len());
    let heading = text
        .lines()
        .find(|line| line.trim_start().starts_with("question"))
        .with_context(|| text.clone())?;
    let at = heading.find("answer").context("no answers")?;
    for question in Question::ALL {
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(question.text()))
            .with_context(|| format!("{} is not told: {text}", question.text()))?;
        let answer = line.get(at..).unwrap_or_default();
        let before = line.get(..at).unwrap_or_default();
        ensure!(
            before.ends_with(' ') && !answer.starts_with(' ') && column(line).is_some(),
            "out of line: {line}"
        );
    }
    ensure!(
        text.contains("read ns") && text.contains("2M GB/s"),
        "{text}"
    );
    Ok(String::new())
}

/// With consent, resets and unknown engines are told too. One function is lost by it.
fn with_resets(guest: &mut Guest) -> Result<String> {
    modules(guest)?;
    let all = guest.sh_within(&format!("{PROBE} --reset --json"), LIMIT)?;
    ensure!(all.code == 1, "a lost function is no success: {}", all.text);
    let json = all.text.find('{').and_then(|at| all.text.get(at..));
    let report: Value =
        serde_json::from_str(json.unwrap_or_default()).with_context(|| all.text.clone())?;
    let sum = compare(guest, &report, Consent { reset: true })?;
    Ok(told(&sum))
}
