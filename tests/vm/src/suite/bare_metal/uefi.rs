//! `ptdma.efi` under OVMF, from a USB stick.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ptdma_model::Forks;
use ptdma_probe::{Consent, Question};
use ptdma_probe_tests::{Judged, Words, judge};
use serde_json::json;

use super::Check;
use super::machine::{KINDS, Machine, Parts, cargo, of_all_kinds, target};
use super::ovmf::Ovmf;
use crate::server::Server;
use crate::suite::selection::Set;

/// The firmware takes 3 to 5 seconds to the program, the program as many and two more for the probe
/// of each function; others may be building.
const LIMIT: Duration = Duration::from_secs(300);
/// Begins the last line of the program.
const VERDICT: &str = "PTDMA ";

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "uefi/all-in-order",
        about: "ptdma.efi starts from a USB stick, finds four functions behind two root bridges and compares every byte",
        set: Set::Quick,
        run: all_in_order,
    },
    Check {
        name: "uefi/faults",
        about: "functions that fail descriptors, hang, vanish or lie are survived and shown",
        set: Set::Quick,
        run: faults,
    },
    Check {
        name: "uefi/sixteen-functions",
        about: "as many functions as a two-socket machine has",
        set: Set::Rest,
        run: sixteen,
    },
    Check {
        name: "uefi/kinds-of-engine",
        about: "a function of every kind of engine that the model has a name for, and what the program finds of each",
        set: Set::Rest,
        run: kinds,
    },
    Check {
        name: "uefi/probe",
        about: "what the program's probe says of each of those kinds is how it was set",
        set: Set::Rest,
        run: probe,
    },
    Check {
        name: "uefi/no-help",
        about: "a function that cannot be reset stays off the bus, its memory is kept; one that never starts is told",
        set: Set::Rest,
        run: no_help,
    },
    Check {
        name: "uefi/no-function",
        about: "a machine without one is told so",
        set: Set::Rest,
        run: none,
    },
];

/// Builds the program and fetches the firmware.
pub(super) fn prepare() -> Result<()> {
    Ovmf::get()?;
    cargo("ptdma.efi", &["efi", "--quiet", "--locked"])
}

fn program() -> Result<PathBuf> {
    Ok(target()?.join("x86_64-unknown-uefi/release/ptdma.efi"))
}

/// A row of the program's table of functions.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    function: String,
    bridge: u32,
    descriptors: u64,
    errors: u64,
    verdict: String,
}

/// What the program has shown.
struct Shown {
    machine: Machine,
    rows: Vec<Row>,
    /// The last lines, from [`VERDICT`] on.
    verdict: String,
    text: String,
}

/// Starts the program from a stick and reads what it shows.
fn show(
    functions: usize,
    logs: &Path,
    prepare: impl FnOnce(&mut Server) -> Result<()>,
) -> Result<Shown> {
    let ovmf = Ovmf::get()?;
    let stick = logs.join("stick");
    fs::create_dir_all(stick.join("EFI/BOOT"))?;
    let name = program()?;
    fs::copy(&name, stick.join("EFI/BOOT/BOOTX64.EFI"))
        .with_context(|| format!("{}", name.display()))?;
    let variables = logs.join("variables.fd");
    fs::copy(ovmf.variables(), &variables)?;
    let drive = |text: &str, path: &Path| {
        let mut drive = std::ffi::OsString::from(text);
        drive.push(path);
        drive
    };
    let parts = Parts {
        functions,
        processors: 2,
        memory_mib: 512,
        server: Vec::new(),
        program: vec![
            "-drive".into(),
            drive("if=pflash,format=raw,readonly=on,file=", &ovmf.code()),
            "-drive".into(),
            drive("if=pflash,format=raw,file=", &variables),
            "-device".into(),
            "qemu-xhci,bus=pcie.0".into(),
            "-drive".into(),
            drive("if=none,id=stick,format=raw,file=fat:rw:", &stick),
            "-device".into(),
            "usb-storage,drive=stick,bootindex=0".into(),
        ],
    };
    let mut machine = Machine::start(&parts, logs, prepare)?;
    machine.wait_for(VERDICT, LIMIT)?;
    let text = machine.wait_for("Any key", LIMIT)?;
    let (shown, verdict) = text.rsplit_once(VERDICT).context("there is no verdict")?;
    let rows = rows(shown)?;
    Ok(Shown {
        rows,
        verdict: verdict.to_owned(),
        machine,
        text,
    })
}

/// Reads the table of functions, each column where its heading says that it is.
fn rows(text: &str) -> Result<Vec<Row>> {
    let mut lines = text
        .lines()
        .skip_while(|line| !line.starts_with("function "));
    let Some(head) = lines.next() else {
        return Ok(Vec::new());
    };
    // A heading of numbers ends where they end, one of words begins where they begin.
    let end_of = |name: &str| head.find(name).map(|at| at + name.len());
    let (Some(bridge), Some(ring), Some(descriptors), Some(errors), Some(verdict)) = (
        end_of("bridge"),
        end_of("ring"),
        end_of("descriptors"),
        end_of("errors"),
        head.find("verdict"),
    ) else {
        anyhow::bail!("a heading is missing: {head}");
    };
    let between = |line: &str, from: usize, to: usize| -> Result<u64> {
        let cell = line
            .get(from..to)
            .with_context(|| format!("too short: {line}"))?;
        cell.trim()
            .parse()
            .with_context(|| format!("no number: `{cell}` in {line}"))
    };
    let bytes = end_of("bytes").context("a heading is missing: bytes")?;
    lines
        .take_while(|line| line.starts_with("0000:"))
        .map(|line| {
            ensure!(line.len() < 80, "the console breaks this line: {line}");
            Ok(Row {
                function: line.get(..12).unwrap_or_default().to_owned(),
                bridge: between(line, 12, bridge)? as u32,
                descriptors: between(line, ring, descriptors)?,
                errors: between(line, bytes, errors)?,
                verdict: line.get(verdict..).unwrap_or_default().to_owned(),
            })
        })
        .collect()
}

fn in_order(functions: usize, logs: &Path) -> Result<Shown> {
    let mut shown = show(functions, logs, |_| Ok(()))?;
    ensure!(shown.rows.len() == functions, "{}", shown.text);
    ensure!(
        shown
            .rows
            .iter()
            .all(|row| row.verdict == "right" && row.errors == 0),
        "{}",
        shown.text
    );
    let bridges = |wanted: u32| shown.rows.iter().filter(|row| row.bridge == wanted).count();
    let first = shown.rows.first().map_or(0, |row| row.bridge);
    ensure!(
        bridges(first) == functions.div_ceil(2),
        "one root bridge: {}",
        shown.text
    );
    let expected = format!("OK: {functions} of {functions} function(s) are in order; 0 wrong");
    ensure!(shown.verdict.starts_with(&expected), "{}", shown.text);
    // What the devices have counted is what the program says.
    let counted = shown.machine.server()?.counters_by_device()?;
    let told: u64 = shown.rows.iter().map(|row| row.descriptors).sum();
    let done: u64 = counted.iter().map(|one| one.descriptors).sum();
    ensure!(told <= done, "{told} descriptors told, {done} counted");
    ensure!(
        counted.iter().all(|one| one.descriptors > 200),
        "{counted:?}"
    );
    let programmed = shown.machine.server()?.programmed()?;
    ensure!(programmed.is_empty(), "left set up: {programmed:?}");
    Ok(shown)
}

fn all_in_order(logs: &Path) -> Result<String> {
    let shown = in_order(4, logs)?;
    let told: u64 = shown.rows.iter().map(|row| row.descriptors).sum();
    Ok(format!("{told} descriptors"))
}

fn sixteen(logs: &Path) -> Result<String> {
    let shown = in_order(16, logs)?;
    let told: u64 = shown.rows.iter().map(|row| row.descriptors).sum();
    Ok(format!("{told} descriptors"))
}

fn none(logs: &Path) -> Result<String> {
    let shown = show(0, logs, |_| Ok(()))?;
    ensure!(shown.rows.is_empty(), "{}", shown.text);
    ensure!(
        shown.verdict.starts_with("NOT OK: nothing was tried"),
        "{}",
        shown.text
    );
    Ok(String::new())
}

/// The program must be right on each kind, and find what decides how the driver works.
fn kinds(logs: &Path) -> Result<String> {
    let shown = show(KINDS.len(), logs, |server| {
        of_all_kinds(server)?;
        let ninth = json!({"every": {"n": 9, "offset": 8}});
        server.fault(
            None,
            &json!({"trigger": ninth, "kind": {"error": {"code": 19}}}),
        )
    })?;
    let text = &shown.text;
    ensure!(shown.rows.len() == KINDS.len(), "{text}");
    ensure!(
        shown
            .rows
            .iter()
            .all(|row| row.verdict == "failed some, rest right" && row.errors > 5),
        "{text}"
    );
    ensure!(shown.verdict.contains("; 0 wrong byte(s)"), "{text}");
    let engines = engines(text);
    for (function, words) in [
        (
            "today",
            "needs RUN for each burst, head stays at a failure, ring 128 of 128",
        ),
        (
            "sibling",
            "goes on by the tail, head stays at a failure, ring 128 of 128",
        ),
        (
            "linux_only",
            "needs RUN for each burst, head after an error not known, ring 32 of 128",
        ),
        (
            "past",
            "goes on by the tail, head after an error not known, ring 128 of 128",
        ),
    ] {
        let index = KINDS.iter().position(|kind| *kind == function);
        let address = address_of(index.context("no such kind")?);
        let told = engines.iter().find(|line| {
            line.split(": ")
                .next()
                .is_some_and(|head| head.contains(&address))
        });
        ensure!(
            told.is_some_and(|line| line.contains(words)),
            "{function} at {address}: {text}"
        );
    }
    Ok(format!("{} kinds", KINDS.len()))
}

/// Answers by the function's address and the question's name.
type Answers = BTreeMap<(String, &'static str), Words>;

/// Reads what the probe has shown: functions that are alike, a table of answers, and why some are
/// unknown.
fn answers(text: &str) -> Result<Answers> {
    let mut all = Answers::new();
    let mut of: Vec<String> = Vec::new();
    let mut column = None;
    let mut unknown = String::new();
    let lines = text
        .lines()
        .skip_while(|line| !line.starts_with("probe of"));
    let mut in_names = false;
    // One line more, which ends the last of those that are wrapped.
    for line in lines.chain(std::iter::once("")) {
        let more = line.strip_prefix("  ");
        match more {
            Some(rest) if in_names => {
                of.extend(rest.split_whitespace().map(str::to_owned));
                continue;
            }
            Some(rest) if !unknown.is_empty() => {
                unknown.push(' ');
                unknown.push_str(rest);
                continue;
            }
            _ => {}
        }
        in_names = false;
        if let Some((keys, why)) = std::mem::take(&mut unknown).split_once(": ") {
            for question in Question::ALL
                .iter()
                .filter(|one| keys.split(' ').any(|key| key == one.key()))
            {
                for address in &of {
                    let words = Words {
                        left: Vec::new(),
                        unknown: Some(why.to_owned()),
                    };
                    all.insert((address.clone(), question.key()), words);
                }
            }
        }
        if let Some(names) = line.strip_prefix("probe of ") {
            of = names.split_whitespace().map(str::to_owned).collect();
            in_names = true;
        } else if line.starts_with("question") {
            column = line.find("answer");
        } else if let Some(rest) = line.strip_prefix("unknown ") {
            unknown = rest.to_owned();
        } else if let Some(column) = column {
            let (Some(asked), Some(answer)) = (line.get(..column), line.get(column..)) else {
                continue;
            };
            let Some(question) = Question::ALL
                .iter()
                .find(|one| one.text() == asked.trim_end())
            else {
                continue;
            };
            for address in &of {
                let left = answer.trim_end().split(" or ").map(str::to_owned).collect();
                let words = Words {
                    left,
                    unknown: None,
                };
                all.insert((address.clone(), question.key()), words);
            }
        }
    }
    ensure!(!all.is_empty(), "no answers: {text}");
    Ok(all)
}

/// The probe of functions of all kinds: none of its answers is wrong.
fn probe(logs: &Path) -> Result<String> {
    /// Entries of the ring that the program gives the engines.
    const ENTRIES: u64 = 8192;
    let shown = show(KINDS.len(), logs, of_all_kinds)?;
    let text = &shown.text;
    let answers = answers(text)?;
    let mut sum = Judged::default();
    for (index, kind) in KINDS.iter().enumerate() {
        let forks = Forks::named(kind).with_context(|| format!("no kind {kind}"))?;
        let address = address_of(index);
        let judged = judge(forks, Consent::default(), false, ENTRIES, |question| {
            let key = (address.clone(), question.key());
            answers.get(&key).cloned().unwrap_or_default()
        });
        sum.wrong
            .extend(judged.wrong.iter().map(|what| format!("{kind}: {what}")));
        sum.exact += judged.exact;
        sum.among += judged.among;
        sum.unknown += judged.unknown;
    }
    ensure!(sum.wrong.is_empty(), "{}\n{text}", sum.wrong.join("\n"));
    ensure!(text.contains(" together, copies of 2048 KiB: "), "{text}");
    Ok(format!(
        "{} answers exact, {} among several, {} not asked, none wrong",
        sum.exact, sum.among, sum.unknown
    ))
}

/// Where function `index` is: functions take turns on the two bridges.
fn address_of(index: usize) -> String {
    format!("0000:{:02x}:00.0", [0x21, 0x51][index % 2] + index / 2)
}

/// What the program tells of engines, each in one line.
fn engines(text: &str) -> Vec<String> {
    let mut engines: Vec<String> = Vec::new();
    for line in text
        .lines()
        .skip_while(|line| !line.starts_with("engine of "))
    {
        match (line.strip_prefix("  "), engines.last_mut()) {
            (Some(rest), Some(engine)) => engine.push_str(&format!(" {rest}")),
            _ if line.starts_with("engine of ") => engines.push(line.to_owned()),
            _ => break,
        }
    }
    engines
}

fn no_help(logs: &Path) -> Result<String> {
    let shown = show(2, logs, |server| {
        server.machine(Some(0), "no_reset")?;
        let stall = json!({"stall": {"for": "ever", "haltable": false}});
        server.fault(
            Some(0),
            &json!({"trigger": {"at": 90}, "kind": stall.clone()}),
        )?;
        // This one never does anything, and a reset does not help.
        server.fault(Some(1), &json!({"trigger": "always", "kind": stall}))
    })?;
    let text = &shown.text;
    let verdicts: Vec<&str> = shown.rows.iter().map(|row| row.verdict.as_str()).collect();
    ensure!(
        verdicts == ["no reset; off the bus; ~", "does not start"],
        "{text}"
    );
    ensure!(
        text.contains("bytes are kept from whatever starts next"),
        "{text}"
    );
    Ok(String::new())
}

/// Each function has a fault of its own; those beside it must not suffer.
fn faults(logs: &Path) -> Result<String> {
    /// Within the lists that a function copies alone.
    const ALONE: u64 = 20;
    /// Far enough that the function is at the lists of pages, with all others.
    const TOGETHER: u64 = 90;
    let mut shown = show(6, logs, |server| {
        for (function, at, kind) in [
            (
                2,
                TOGETHER,
                json!({"stall": {"for": "ever", "haltable": false}}),
            ),
            (3, TOGETHER, json!({"all_ones": {}})),
            (4, ALONE, json!("silent_corruption")),
            (0, TOGETHER, json!({"error": {"code": 20}})),
        ] {
            let fault = json!({"trigger": {"at": at}, "kind": kind});
            server.fault(Some(function), &fault)?;
        }
        let partial = json!({"partial_write": {"len_bytes": 1000, "code": 39}});
        for (function, kind) in [(1, json!({"error": {"code": 19}})), (5, partial)] {
            let ninth = json!({"every": {"n": 9, "offset": 8}});
            server.fault(Some(function), &json!({"trigger": ninth, "kind": kind}))?;
        }
        Ok(())
    })?;
    // Functions take turns on the two bridges, and the table is in order of their addresses.
    let wanted = [
        (0, "right"),
        (2, "hung; works after reset"),
        (4, "WRONG: 1 bytes"),
        (1, "failed some, rest right"),
        (3, "gone; memory kept"),
        (5, "failed some, rest right"),
    ];
    let counted = shown.machine.server()?.counters_by_device()?;
    ensure!(shown.rows.len() == wanted.len(), "{}", shown.text);
    for (row, (function, verdict)) in shown.rows.iter().zip(wanted) {
        ensure!(
            row.verdict == verdict,
            "function {function}: {}",
            shown.text
        );
        ensure!(
            row.errors <= counted[function].errors,
            "function {function} had {}: {}",
            counted[function].errors,
            shown.text
        );
    }
    let errors: Vec<u64> = shown.rows.iter().map(|row| row.errors).collect();
    ensure!(
        errors[0] == 0 && errors[3] > 10 && errors[5] > 10,
        "{}",
        shown.text
    );
    for line in [
        // What has failed once does not when it is run again, alone.
        "unclear errors of 0000:21:00.0: ",
        "first failure of 0000:51:00.0: error 19",
        "first failure of 0000:53:00.0: error 39",
        "NOT OK: 1 of 6 function(s) are in order; 1 wrong byte(s)",
        "bytes are kept from whatever starts next",
    ] {
        ensure!(
            shown.text.contains(line),
            "`{line}`: {:?} {}",
            counted[0],
            shown.text
        );
    }
    Ok(format!(
        "{} failed descriptors told",
        errors.iter().sum::<u64>()
    ))
}
