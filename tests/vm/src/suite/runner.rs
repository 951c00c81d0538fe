//! Boots the machines and runs the selected checks on them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use indicatif::ProgressBar;

use super::Check;
use super::bare_metal;
use super::report::{self, Outcome};
use super::selection::{Entry, Plan, Selection, select};
use crate::kernel::{Kernel, VARIANTS, Variant};
use crate::machine::{Guest, Options};
use crate::{apt, build, run_dir, step, toolchain};

/// How a run is made.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner {
    /// How often the checks that fail are run again.
    pub(crate) retry: u32,
    /// Print the results as JSON.
    pub(crate) json: bool,
    /// Begin no check after this time.
    pub(crate) within: Option<Duration>,
    /// The longest that a load of the long runs is kept up; none: as each wants it.
    pub(crate) longest_soak: Option<Duration>,
}

/// Runs the selected checks; returns whether all passed, be it in a repetition.
pub(crate) fn run(selection: &Selection, manner: Manner) -> Result<bool> {
    let mut plans = select(selection);
    let bare = bare_metal::select(selection);
    if plans.is_empty() && bare.is_empty() {
        bail!("no check matches; `cargo vm test --set all --soak --list` names them");
    }
    leave_out_packaged(&mut plans, bare.is_empty())?;
    let modules: Vec<&str> = plans
        .iter()
        .flat_map(|plan| (plan.suite.machine)().modules)
        .collect();
    let mut parts = toolchain::parts_for_modules(&modules).to_vec();
    parts.extend(bare_metal::toolchain_parts(&bare));
    toolchain::require(&parts)?;
    let mut kernels: Vec<Variant> = plans.iter().map(|plan| plan.kernel).collect();
    kernels.dedup();
    let with_server = plans.iter().any(|plan| (plan.suite.machine)().devices > 0);
    bare_metal::prepare(&bare)?;
    if !plans.is_empty() {
        build::prepare(&kernels, with_server)?;
    }
    let logs = run_dir::logs()?;
    let began = Instant::now();
    let deadline = manner.within.map(|limit| began + limit);
    let mut outcomes = bare_metal::round(&bare, &logs, deadline, manner.retry);
    outcomes.extend(round(&plans, &logs.join("1"), deadline, manner));
    for again in 0..manner.retry {
        let failed = failed(&plans, &outcomes);
        if failed.is_empty() {
            break;
        }
        let count: usize = failed.iter().map(|plan| plan.checks.len()).sum();
        eprintln!("\nREPEATING the {count} check(s) that failed, each on a machine of its own:");
        for repeated in round(&failed, &logs.join((again + 2).to_string()), None, manner) {
            if let Some(first) = outcomes.iter_mut().find(|one| one.name == repeated.name) {
                first.repeated(repeated);
            }
        }
    }
    report::print(&outcomes, began.elapsed().as_secs_f64(), manner.json)?;
    let left_out: Vec<&str> = plans
        .iter()
        .flat_map(|plan| &plan.checks)
        .map(|entry| entry.name.as_str())
        .chain(bare.iter().map(|check| check.name))
        .filter(|name| !outcomes.iter().any(|outcome| outcome.name == *name))
        .collect();
    if !left_out.is_empty() {
        eprintln!(
            "SKIPPED, the time was over: {} check(s): {}",
            left_out.len(),
            left_out.join(" ")
        );
    }
    if outcomes.is_empty() {
        bail!("the time was over before any check began");
    }
    let passed = outcomes.iter().all(|outcome| outcome.passed);
    if passed && !outcomes.iter().any(|outcome| outcome.flaky) {
        let _ = std::fs::remove_dir_all(&logs);
    } else {
        eprintln!("logs: {}", logs.display());
    }
    Ok(passed)
}

/// Leaves the checks on a kernel of Debian's out, loudly, if that is neither in the cache nor to be
/// had, and others are left to run.
fn leave_out_packaged(plans: &mut Vec<Plan>, no_others: bool) -> Result<()> {
    for variant in VARIANTS {
        let on_it = |plan: &Plan| plan.kernel == variant;
        if !variant.is_packaged() || !plans.iter().any(on_it) {
            continue;
        }
        match Kernel::get(variant) {
            Ok(_) => {}
            Err(error)
                if (error.is::<apt::Unreachable>() || error.is::<apt::Gone>())
                    && !(no_others && plans.iter().all(on_it)) =>
            {
                eprintln!("SKIPPED: no check runs on the kernel {variant}: {error:#}");
                plans.retain(|plan| !on_it(plan));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What has failed, each check as a plan of its own, so that it has a machine of its own.
fn failed(plans: &[Plan], outcomes: &[Outcome]) -> Vec<Plan> {
    let failed = |entry: &&Entry| {
        outcomes
            .iter()
            .any(|outcome| !outcome.passed && outcome.name == entry.name)
    };
    plans
        .iter()
        .flat_map(|plan| {
            plan.checks.iter().filter(failed).map(|entry| Plan {
                checks: vec![entry.clone()],
                ..plan.clone()
            })
        })
        .collect()
}

/// Runs the plans once.
fn round(plans: &[Plan], logs: &Path, deadline: Option<Instant>, manner: Manner) -> Vec<Outcome> {
    let total: usize = plans.iter().map(|plan| plan.checks.len()).sum();
    let bar = step::bar("guest tests", total as u64);
    let outcomes = plans
        .iter()
        .flat_map(|plan| run_plan(plan, logs, &bar, deadline, manner))
        .collect();
    bar.finish_and_clear();
    outcomes
}

fn run_plan(
    plan: &Plan,
    logs: &Path,
    bar: &ProgressBar,
    deadline: Option<Instant>,
    manner: Manner,
) -> Vec<Outcome> {
    let mut machine: Option<Guest> = None;
    let mut boots = 0;
    let mut folder = logs.to_path_buf();
    let mut boot_failed = false;
    let mut outcomes = Vec::new();
    for entry in &plan.checks {
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            break;
        }
        bar.set_message(entry.name.clone());
        let mut began = Instant::now();
        let mut boot = None;
        let result = match machine.take() {
            Some(guest) => attempt(entry.check, guest, &mut machine),
            None if boot_failed => Err(anyhow!("not run: the machine did not boot")),
            None => {
                boots += 1;
                let options = Options {
                    kernel: plan.kernel,
                    ..(plan.suite.machine)()
                };
                folder = logs.join(format!("{}@{}-{boots}", plan.suite.name, plan.kernel));
                match Guest::boot(options, &folder) {
                    Ok(mut guest) => {
                        guest.limit_soak(manner.longest_soak);
                        boot = Some(began.elapsed().as_secs_f64());
                        began = Instant::now();
                        attempt(entry.check, guest, &mut machine)
                    }
                    Err(error) => {
                        boot_failed = true;
                        Err(error)
                    }
                }
            }
        };
        let outcome = Outcome {
            name: entry.name.clone(),
            set: entry.set,
            passed: result.is_ok(),
            flaky: false,
            attempts: 1,
            boot_seconds: boot,
            seconds: began.elapsed().as_secs_f64(),
            logs: result.is_err().then(|| folder.clone()),
            note: result.unwrap_or_else(|error| format!("{error:#}")),
            earlier: Vec::new(),
        };
        bar.suspend(|| eprintln!("{}", outcome.line()));
        outcomes.push(outcome);
        bar.inc(1);
    }
    outcomes
}

/// Runs one check; the machine is handed back when it can be used again.
fn attempt(check: &Check, mut guest: Guest, back: &mut Option<Guest>) -> Result<String> {
    // A check that panics fails like one that returns an error, and the others go on.
    let result = catch_unwind(AssertUnwindSafe(|| {
        let note = (check.run)(&mut guest)?;
        if !check.spoils {
            guest.expect_clean_dmesg()?;
        }
        Ok(note)
    }))
    .unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("the check panicked");
        Err(anyhow!("{text}"))
    });
    match &result {
        Ok(_) if !check.spoils => *back = Some(guest),
        Ok(_) => {}
        // Often the kernel knows why.
        Err(error) => {
            if let Some(report) = guest.first_report()
                && !error.to_string().contains(&report)
            {
                return result
                    .map_err(|error| anyhow!("{error:#}\nthe kernel's log has: {report}"));
            }
        }
    }
    result
}
