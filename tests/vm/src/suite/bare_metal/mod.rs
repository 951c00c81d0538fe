//! Programs that run without an operating system: the UEFI program and the bare guest.
//!
//! Each check is a machine of its own: a program, its device server, and a serial line that says
//! what became of it. No kernel is built for them, and they are of no kernel: their names are
//! `uefi/...` and `bare/...` alone.

mod bare;
mod machine;
mod ovmf;
mod uefi;

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use indicatif::ProgressBar;

use super::report::Outcome;
use super::selection::{Selection, Set};
use crate::kernel::Variant;
use crate::qemu::Qemu;
use crate::toolchain::{self, Part};
use crate::{build, step};

/// One named check.
#[derive(Debug)]
pub(super) struct Check {
    /// `uefi/...` or `bare/...`.
    pub(super) name: &'static str,
    /// What it shows, in one line.
    about: &'static str,
    set: Set,
    /// Boots, runs, looks; keeps its logs in the folder. Returns what was measured.
    run: fn(&Path) -> Result<String>,
}

/// What has checks, and how it is made ready.
struct Program {
    checks: &'static [Check],
    /// The target that it is built for.
    target: Part<'static>,
    /// Builds the program and fetches what it starts in.
    prepare: fn() -> Result<()>,
}

const PROGRAMS: &[Program] = &[
    Program {
        checks: uefi::CHECKS,
        target: toolchain::UEFI,
        prepare: uefi::prepare,
    },
    Program {
        checks: bare::CHECKS,
        target: toolchain::BARE,
        prepare: bare::prepare,
    },
];

/// The selected checks. A run on the debug kernel alone has none.
pub(super) fn select(selection: &Selection) -> Vec<&'static Check> {
    if selection.kernel == Some(Variant::Debug) {
        return Vec::new();
    }
    PROGRAMS
        .iter()
        .flat_map(|program| program.checks)
        .filter(|check| selection.takes(check.name, check.set))
        .collect()
}

/// Prints the selected names with their sets.
pub(super) fn list(checks: &[&Check]) {
    for check in checks {
        println!("{}: {}", check.name, check.about);
        println!("    {:<5}  {}", check.set, check.name);
    }
}

/// A line of the list as JSON.
pub(super) fn listed(check: &Check) -> serde_json::Value {
    serde_json::json!({
        "name": check.name,
        "set": check.set,
        "kernel": null,
        "about": check.about,
    })
}

/// The programs that have one of these checks.
fn programs(checks: &[&Check]) -> impl Iterator<Item = &'static Program> {
    let is_of = |check: &Check| checks.iter().any(|one| one.name == check.name);
    PROGRAMS
        .iter()
        .filter(move |program| program.checks.iter().any(is_of))
}

/// What the checks' programs need of the toolchain.
pub(super) fn toolchain_parts(checks: &[&Check]) -> impl Iterator<Item = Part<'static>> {
    programs(checks).map(|program| program.target)
}

/// Makes ready what the checks need, so that a missing network is told before anything runs.
pub(super) fn prepare(checks: &[&Check]) -> Result<()> {
    if checks.is_empty() {
        return Ok(());
    }
    Qemu::get()?;
    build::server()?;
    for program in programs(checks) {
        (program.prepare)()?;
    }
    Ok(())
}

/// Runs the checks, each up to `1 + retry` times.
pub(super) fn round(
    checks: &[&Check],
    logs: &Path,
    deadline: Option<Instant>,
    retry: u32,
) -> Vec<Outcome> {
    if checks.is_empty() {
        return Vec::new();
    }
    let bar = step::bar("programs without a system", checks.len() as u64);
    let mut outcomes = Vec::new();
    for check in checks {
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            break;
        }
        bar.set_message(check.name);
        let mut outcome = attempt(check, logs, 1, &bar);
        for again in 0..retry {
            if outcome.passed {
                break;
            }
            outcome.repeated(attempt(check, logs, again + 2, &bar));
        }
        outcomes.push(outcome);
        bar.inc(1);
    }
    bar.finish_and_clear();
    outcomes
}

fn attempt(check: &Check, logs: &Path, number: u32, bar: &ProgressBar) -> Outcome {
    let folder = logs
        .join(check.name.replace('/', "-"))
        .join(number.to_string());
    let began = Instant::now();
    let result = std::fs::create_dir_all(&folder)
        .map_err(Into::into)
        .and_then(|()| (check.run)(&folder));
    let outcome = Outcome {
        name: check.name.into(),
        set: check.set,
        passed: result.is_ok(),
        flaky: false,
        attempts: 1,
        boot_seconds: None,
        seconds: began.elapsed().as_secs_f64(),
        logs: result.is_err().then_some(folder),
        note: result.unwrap_or_else(|error| format!("{error:#}")),
        earlier: Vec::new(),
    };
    bar.suspend(|| eprintln!("{}", outcome.line()));
    outcome
}
