//! Selects, runs and reports.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::ProgressBar;
use serde::Serialize;

use super::{Check, SUITES, Suite};
use crate::kernel::{Kernel, Variant};
use crate::machine::{Guest, Options};
use crate::{build, run_dir, step};

/// Which checks to run.
pub(crate) struct Selection {
    /// `suite/check@kernel` must contain this.
    pub(crate) filter: String,
    /// Only this kernel.
    pub(crate) kernel: Option<Variant>,
    /// The long runs too.
    pub(crate) soak: bool,
}

/// How one check went.
#[derive(Debug, Serialize)]
struct Outcome {
    name: String,
    passed: bool,
    seconds: f64,
    note: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<PathBuf>,
}

/// A suite on one kernel with the checks that were selected.
struct Plan {
    suite: &'static Suite,
    kernel: Variant,
    checks: Vec<&'static Check>,
}

impl Plan {
    fn name(&self, check: &Check) -> String {
        full_name(self.suite, self.kernel, check)
    }
}

fn full_name(suite: &Suite, kernel: Variant, check: &Check) -> String {
    format!("{}/{}@{kernel}", suite.name, check.name)
}

fn select(selection: &Selection) -> Vec<Plan> {
    let mut plans = Vec::new();
    // All suites on the fast kernel come first: they are the quickest to fail.
    for kernel in [Variant::Fast, Variant::Debug] {
        if selection.kernel.is_some_and(|only| only != kernel) {
            continue;
        }
        for suite in SUITES.iter().copied().flatten() {
            if !suite.kernels.contains(&kernel) {
                continue;
            }
            let checks: Vec<&Check> = suite
                .checks
                .iter()
                .filter(|check| selection.soak || !check.soak)
                .filter(|check| kernel == Variant::Fast || !check.fast_only)
                .filter(|check| full_name(suite, kernel, check).contains(&selection.filter))
                .collect();
            if !checks.is_empty() {
                plans.push(Plan {
                    suite,
                    kernel,
                    checks,
                });
            }
        }
    }
    plans
}

/// Prints the selected names.
pub(crate) fn list(selection: &Selection) {
    for plan in select(selection) {
        println!("{}: {}", plan.suite.name, plan.suite.about);
        for check in &plan.checks {
            println!("    {}", plan.name(check));
        }
    }
}

/// Runs the selected checks; returns whether all passed.
pub(crate) fn run(selection: &Selection, json: bool) -> Result<bool> {
    let plans = select(selection);
    if plans.is_empty() {
        bail!("no check matches; `cargo vm test --list` names them");
    }
    // Build before the first boot, so that a missing network is told before anything.
    for plan in &plans {
        Kernel::get(plan.kernel)?;
    }
    if plans.iter().any(|plan| (plan.suite.machine)().devices > 0) {
        build::server()?;
    }
    let logs = run_dir::logs()?;
    let total = plans.iter().map(|plan| plan.checks.len()).sum::<usize>();
    let bar = step::bar("guest tests", total as u64);
    let began = Instant::now();
    let mut outcomes = Vec::new();
    for plan in &plans {
        run_plan(plan, &logs, &bar, &mut outcomes);
    }
    bar.finish_and_clear();
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    if json {
        println!("{}", serde_json::to_string_pretty(&outcomes)?);
    } else {
        print(&outcomes);
        println!(
            "{} passed, {failed} failed in {:.0} s",
            outcomes.len() - failed,
            began.elapsed().as_secs_f64()
        );
    }
    if failed == 0 {
        let _ = std::fs::remove_dir_all(&logs);
    } else {
        eprintln!("logs: {}", logs.display());
    }
    Ok(failed == 0)
}

fn run_plan(plan: &Plan, logs: &Path, bar: &ProgressBar, outcomes: &mut Vec<Outcome>) {
    let mut machine: Option<Guest> = None;
    let mut boots = 0;
    let mut folder = logs.to_path_buf();
    let mut boot_error: Option<String> = None;
    for check in &plan.checks {
        let name = plan.name(check);
        bar.set_message(name.clone());
        let began = Instant::now();
        let result = match (machine.take(), &boot_error) {
            (Some(guest), _) => attempt(check, guest, &mut machine),
            (None, Some(error)) => Err(anyhow!("not run: {error}")),
            (None, None) => {
                boots += 1;
                let options = Options {
                    kernel: plan.kernel,
                    ..(plan.suite.machine)()
                };
                folder = logs.join(format!("{}@{}-{boots}", plan.suite.name, plan.kernel));
                match Guest::boot(options, &folder) {
                    Ok(guest) => attempt(check, guest, &mut machine),
                    Err(error) => {
                        boot_error = Some("the machine did not boot".into());
                        Err(error)
                    }
                }
            }
        };
        let outcome = Outcome {
            name,
            passed: result.is_ok(),
            seconds: began.elapsed().as_secs_f64(),
            logs: result.is_err().then(|| folder.clone()),
            note: result.unwrap_or_else(|error| format!("{error:#}")),
        };
        report(&outcome, bar);
        outcomes.push(outcome);
        bar.inc(1);
    }
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
    if result.is_ok() && !check.spoils {
        *back = Some(guest);
    }
    result
}

/// One line as each check ends: a log of CI has no progress bar.
fn report(outcome: &Outcome, bar: &ProgressBar) {
    let verdict = if outcome.passed { "ok  " } else { "FAIL" };
    let mut line = format!("{verdict} {:6.1} s  {}", outcome.seconds, outcome.name);
    if outcome.passed {
        if !outcome.note.is_empty() {
            line.push_str(&format!("  ({})", outcome.note));
        }
    } else {
        line.push_str(&format!("\n{}", outcome.note));
        if let Some(logs) = &outcome.logs {
            line.push_str(&format!("\n  logs: {}", logs.display()));
        }
    }
    bar.suspend(|| eprintln!("{line}"));
}

fn print(outcomes: &[Outcome]) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["check", "result", "s", "measured"]);
    for outcome in outcomes {
        let note = if outcome.passed {
            outcome.note.as_str()
        } else {
            outcome.note.lines().next().unwrap_or_default()
        };
        table.add_row([
            outcome.name.clone(),
            if outcome.passed { "ok" } else { "FAIL" }.into(),
            format!("{:.1}", outcome.seconds),
            note.to_owned(),
        ]);
    }
    println!("{table}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(filter: &str) -> Selection {
        Selection {
            filter: filter.into(),
            kernel: None,
            soak: false,
        }
    }

    #[test]
    fn names_are_unique_and_filters_narrow() {
        let all = select(&selection(""));
        let mut names: Vec<String> = all
            .iter()
            .flat_map(|plan| plan.checks.iter().map(|check| plan.name(check)))
            .collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(count, names.len(), "two checks have one name");
        let one = select(&selection("machine/boot@fast"));
        assert_eq!(one.len(), 1);
        assert_eq!(one[0].checks.len(), 1);
        assert!(select(&selection("no such check")).is_empty());
    }

    #[test]
    fn a_kernel_can_be_chosen_and_long_runs_are_left_out() {
        let only = Selection {
            kernel: Some(Variant::Debug),
            ..selection("")
        };
        assert!(
            select(&only)
                .iter()
                .all(|plan| plan.kernel == Variant::Debug)
        );
        assert!(
            select(&selection(""))
                .iter()
                .all(|plan| plan.checks.iter().all(|check| !check.soak))
        );
    }
}
