//! The guest without an operating system (`tests/bare`).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Check;
use super::machine::{KINDS, Machine, Parts, cargo, of_all_kinds, target};
use crate::server::Server;
use crate::suite::selection::Set;

/// The guest is there after a second; others may be building.
const BOOT: Duration = Duration::from_secs(60);
/// A run takes tens of milliseconds; one in which engines hang takes up to 10 s, the batches' own
/// limit.
const RUN: Duration = Duration::from_secs(90);
/// What the guest writes to QEMU's exit device, twice and one more.
const GOOD: i32 = 33;
const BAD: i32 = 35;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "bare/two-processors",
        about: "two processors run batches on the same four channels, polled and by interrupt",
        set: Set::Quick,
        run: two_processors,
    },
    Check {
        name: "bare/twenty-faults",
        about: "twenty faults of the device are survived, and every byte is right or its folio is named",
        set: Set::Quick,
        run: twenty_faults,
    },
    Check {
        name: "bare/sixteen-channels",
        about: "four processors run batches on sixteen channels",
        set: Set::Rest,
        run: sixteen_channels,
    },
    Check {
        name: "bare/kinds-of-engine",
        about: "a channel of every kind of engine that the model has a name for, on the same batches",
        set: Set::Rest,
        run: kinds,
    },
];

/// Builds the guest.
pub(super) fn prepare() -> Result<()> {
    let words = "build --quiet --locked --release --package ptdma-bare --features guest \
                 --target x86_64-unknown-none";
    cargo("bare guest", &words.split_whitespace().collect::<Vec<_>>())
}

/// A guest that takes commands.
struct Guest(Machine);

impl Guest {
    fn boot(logs: &Path, functions: usize, processors: usize) -> Result<Self> {
        Self::boot_with(logs, functions, processors, |_| Ok(()))
    }

    fn boot_with(
        logs: &Path,
        functions: usize,
        processors: usize,
        prepare: impl FnOnce(&mut Server) -> Result<()>,
    ) -> Result<Self> {
        let program = target()?.join("x86_64-unknown-none/release/ptdma-bare");
        let parts = Parts {
            functions,
            processors,
            memory_mib: 512,
            server: Vec::new(),
            program: vec![
                "-kernel".into(),
                program.into(),
                "-device".into(),
                "isa-debug-exit,iobase=0xf4,iosize=0x04".into(),
            ],
        };
        let mut guest = Self(Machine::start(&parts, logs, prepare)?);
        let ready = guest.0.next_line("ready ", BOOT)?;
        let wanted = format!("ready processors={processors} functions={functions}");
        ensure!(ready == wanted, "{ready}");
        Ok(guest)
    }

    /// Has all processors copy so many rounds of three lists.
    fn run(&mut self, way: &str, rounds: u32) -> Result<Told> {
        self.0.send(&format!("{way} {rounds}"))?;
        let line = self.0.next_line("result ", RUN)?;
        let told = Told(line);
        let parts = ["copied", "failed", "skipped", "quarantined"];
        let sum = parts
            .iter()
            .map(|name| told.get(name))
            .sum::<Result<u64>>()?;
        ensure!(sum == told.get("folios")?, "lost count: {}", told.0);
        ensure!(
            told.get("stray")? == 0 && told.get("refused")? == 0,
            "{}",
            told.0
        );
        Ok(told)
    }

    /// Brings what is out of service back; returns the channels in service.
    fn revive(&mut self) -> Result<u64> {
        self.0.send("revive")?;
        Told(self.0.next_line("revived ", RUN)?).get("active")
    }

    /// Ends the guest, which must find that all was good, or bad.
    fn end(&mut self, good: bool) -> Result<String> {
        self.0.send("end")?;
        let verdict = self.0.next_line("verdict ", RUN)?;
        let status = self.0.wait_for_end(BOOT)?;
        let (word, expected) = if good { ("good", GOOD) } else { ("bad", BAD) };
        ensure!(
            verdict.starts_with(&format!("verdict {word}:")) && status == expected,
            "exit status {status}: {verdict}"
        );
        let programmed = self.0.server()?.programmed()?;
        ensure!(programmed.is_empty(), "left set up: {programmed:?}");
        Ok(verdict)
    }
}

/// A line of the guest's with `name=number` in it.
#[derive(Debug)]
struct Told(String);

impl Told {
    fn get(&self, name: &str) -> Result<u64> {
        self.0
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .and_then(|number| number.parse().ok())
            .with_context(|| format!("no {name} in: {}", self.0))
    }

    /// Every folio was copied by engines, every byte of it.
    fn all_copied(&self) -> Result<bool> {
        Ok(self.get("copied")? == self.get("folios")? && self.get("wrong")? == 0)
    }
}

fn two_processors(logs: &Path) -> Result<String> {
    let mut guest = Guest::boot(logs, 4, 2)?;
    let polled = guest.run("polled", 4)?;
    ensure!(polled.all_copied()?, "{polled:?}");
    let slept = guest.run("interrupts", 4)?;
    ensure!(slept.all_copied()?, "{slept:?}");
    ensure!(slept.get("interrupts")? > 0, "{slept:?}");
    let by_device = guest.0.server()?.counters_by_device()?;
    ensure!(
        by_device
            .iter()
            .all(|one| one.descriptors > 20 && one.errors == 0),
        "{by_device:?}"
    );
    // An interrupt for each descriptor: handlers take the locks that batches hold all the time.
    let storm = json!({"trigger": "always", "kind": "spurious_interrupt"});
    guest.0.server()?.fault(None, &storm)?;
    let stormy = guest.run("interrupts", 4)?;
    ensure!(stormy.all_copied()?, "{stormy:?}");
    ensure!(stormy.get("interrupts")? > 50, "{stormy:?}");
    guest.0.server()?.clear_faults(None)?;
    guest.end(true)?;
    Ok(format!(
        "{} + {} descriptors, {} interrupts, {} in a storm",
        polled.get("descriptors")?,
        slept.get("descriptors")?,
        slept.get("interrupts")?,
        stormy.get("interrupts")?
    ))
}

fn sixteen_channels(logs: &Path) -> Result<String> {
    let mut guest = Guest::boot(logs, 16, 4)?;
    let mut descriptors = 0;
    for way in ["polled", "interrupts"] {
        let told = guest.run(way, 2)?;
        ensure!(told.all_copied()?, "{told:?}");
        descriptors += told.get("descriptors")?;
    }
    guest.end(true)?;
    Ok(format!("{descriptors} descriptors"))
}

/// Functions of every kind that the model has a name for, on the same batches, and failing.
fn kinds(logs: &Path) -> Result<String> {
    let mut guest = Guest::boot_with(logs, KINDS.len(), 2, of_all_kinds)?;
    let mut failed = 0;
    for way in [POLLED, INTERRUPTS] {
        let told = guest.run(way, 1)?;
        ensure!(told.all_copied()?, "{told:?}");
        let fault = json!({"trigger": {"every": {"n": 4}}, "kind": {"error": {"code": 19}}});
        guest.0.server()?.fault(None, &fault)?;
        let told = guest.run(way, 1)?;
        ensure!(
            told.get("wrong")? == 0 && told.get("failed")? > 0,
            "{told:?}"
        );
        failed += told.get("failed")?;
        guest.0.server()?.clear_faults(None)?;
        let active = guest.revive()?;
        ensure!(active == KINDS.len() as u64, "{active} channels are left");
    }
    guest.end(true)?;
    Ok(format!(
        "{} kinds, {failed} folios failed and named",
        KINDS.len()
    ))
}

/// What a run with a fault must come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Every folio is copied all the same.
    Copied,
    /// Some folios fail, and are named; all others are copied.
    Named,
    /// Nothing can be copied, and every folio is named.
    Nothing,
    /// A byte is wrong, and no driver can know: the guest's own check must find it.
    Wrong,
}

const POLLED: &str = "polled";
const INTERRUPTS: &str = "interrupts";

/// A fault, or some that strike together.
struct Fault {
    name: &'static str,
    /// How batches wait.
    way: &'static str,
    /// Which function; none: all.
    device: Option<usize>,
    what: Vec<Value>,
    expected: Expected,
}

/// What can go wrong, twenty times.
fn faults() -> Vec<Fault> {
    use Expected::{Copied, Named, Nothing, Wrong};
    let mut faults = Vec::new();
    let mut fault = |name, way, device, what: &[Value], expected| {
        faults.push(Fault {
            name,
            way,
            device,
            what: what.to_vec(),
            expected,
        });
    };
    let at = |at: u64, kind: Value| json!({"trigger": {"at": at}, "kind": kind});
    let always = |kind: Value| json!({"trigger": "always", "kind": kind});
    let every = |n: u64, kind: Value| json!({"trigger": {"every": {"n": n}}, "kind": kind});
    let error = |code: u8| json!({"error": {"code": code}});
    let stall = |haltable: bool| json!({"stall": {"for": "ever", "haltable": haltable}});
    let ignore_halt = json!({"trigger": "now", "kind": "ignore_halt"});
    let partial = json!({"partial_write": {"len_bytes": 1, "code": 38}});
    let unmapped = |side: &str| json!({"unmapped": {"side": side}});
    let garbage = json!({"head_garbage": {"value": 0xdead_beef_u32, "reads": 3}});
    let gone = json!({"all_ones": {}});

    // Run again, alone, it does not fail.
    fault("one error", POLLED, Some(0), &[at(5, error(19))], Copied);
    fault(
        "one error, asleep",
        INTERRUPTS,
        Some(1),
        &[at(5, error(41))],
        Copied,
    );
    fault(
        "an error without a code",
        POLLED,
        Some(2),
        &[every(3, error(0))],
        Named,
    );
    fault(
        "errors on all functions",
        INTERRUPTS,
        None,
        &[every(5, error(63))],
        Named,
    );
    fault(
        "nothing but errors",
        POLLED,
        None,
        &[always(error(11))],
        Nothing,
    );
    fault(
        "a partial write",
        POLLED,
        Some(3),
        &[every(3, partial)],
        Named,
    );
    fault(
        "a source not mapped",
        INTERRUPTS,
        Some(0),
        &[every(3, unmapped("source"))],
        Named,
    );
    fault(
        "a destination not mapped",
        POLLED,
        Some(0),
        &[every(3, unmapped("destination"))],
        Named,
    );
    let short = json!({"stall": {"for": {"micros": 20_000}}});
    fault(
        "a short stall",
        INTERRUPTS,
        Some(1),
        &[at(6, short)],
        Copied,
    );
    let slow = every(4, json!({"delay": {"ns": 2_000_000}}));
    fault("a slow engine", POLLED, Some(2), &[slow], Copied);
    fault(
        "a hang that halts",
        POLLED,
        Some(1),
        &[at(6, stall(true))],
        Copied,
    );
    fault(
        "a hang that needs a reset",
        INTERRUPTS,
        Some(2),
        &[at(6, stall(false))],
        Copied,
    );
    let deaf = [ignore_halt.clone(), at(6, stall(true))];
    fault(
        "a hang, and halts are ignored",
        POLLED,
        Some(3),
        &deaf,
        Copied,
    );
    let hangs = [at(6, stall(false))];
    fault("all functions hang", INTERRUPTS, None, &hangs, Named);
    let lost = always(json!("lost_interrupt"));
    fault("all interrupts lost", INTERRUPTS, None, &[lost], Copied);
    let spurious = every(3, json!("spurious_interrupt"));
    fault("spurious interrupts", INTERRUPTS, None, &[spurious], Copied);
    let away = at(4, json!({"all_ones": {"reads": 4}}));
    fault("absent for a while", POLLED, Some(0), &[away], Copied);
    fault("absent", INTERRUPTS, Some(1), &[at(8, gone)], Named);
    fault(
        "a head that is no slot",
        POLLED,
        Some(2),
        &[at(4, garbage)],
        Copied,
    );
    let lie = at(4, json!("silent_corruption"));
    fault("a lie", POLLED, Some(3), &[lie], Wrong);
    faults
}

fn twenty_faults(logs: &Path) -> Result<String> {
    const CHANNELS: u64 = 4;
    let mut guest = Guest::boot(logs, CHANNELS as usize, 2)?;
    let faults = faults();
    let mut lies = 0;
    for fault in &faults {
        let name = fault.name;
        strike(&mut guest, fault).with_context(|| format!("{name}: {:?}", fault.what))?;
        lies += u64::from(fault.expected == Expected::Wrong);
        // What was lost comes back, and all of it works.
        guest.0.server()?.clear_faults(None)?;
        let active = guest.revive()?;
        ensure!(active == CHANNELS, "{active} channels after {name}");
        let after = guest.run(fault.way, 1)?;
        ensure!(after.all_copied()?, "after {name}: {after:?}");
    }
    // The guest counts the byte that was wrong on purpose.
    guest.end(lies == 0)?;
    Ok(format!("{} faults", faults.len()))
}

fn strike(guest: &mut Guest, fault: &Fault) -> Result<()> {
    let before = guest.0.server()?.counters()?.faults;
    for what in &fault.what {
        guest.0.server()?.fault(fault.device, what)?;
    }
    let told = guest.run(fault.way, 1)?;
    let struck = guest.0.server()?.counters()?.faults - before;
    let wanted = fault.what.len() as u64;
    ensure!(struck >= wanted, "{struck} of {wanted} struck: {told:?}");
    let wrong = told.get("wrong")?;
    let lost = told.get("folios")? - told.get("copied")?;
    let as_expected = match fault.expected {
        Expected::Copied => lost == 0 && wrong == 0,
        Expected::Named => lost > 0 && told.get("copied")? > 0 && wrong == 0,
        Expected::Nothing => told.get("copied")? == 0 && wrong == 0,
        Expected::Wrong => lost == 0 && wrong == 1,
    };
    ensure!(as_expected, "{:?} was expected: {told:?}", fault.expected);
    Ok(())
}
