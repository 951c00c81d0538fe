//! Which checks to run.

use std::fmt;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use super::{Check, SUITES, Suite, bare_metal};
use crate::kernel::{VARIANTS, Variant};

/// The sets that checks are divided into. Each check on each kernel is of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Set {
    /// Every day: the stock driver, and the core of each of our parts.
    Quick,
    /// What takes longer.
    Rest,
    /// Minutes to hours each, run when asked for.
    Soak,
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Quick => "quick",
            Self::Rest => "rest",
            Self::Soak => "soak",
        })
    }
}

/// What the command line can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The everyday set: under ten minutes on two idle processors
    Quick,
    /// What the everyday set leaves out
    Rest,
    /// Both
    All,
}

/// Which checks to run.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    /// `suite/check@kernel` must contain one of these; none: any name will do.
    pub(crate) filter: Vec<String>,
    /// Only this kernel.
    pub(crate) kernel: Option<Variant>,
    /// Without it: the everyday set, or everything that a filter matches.
    pub(crate) part: Option<Part>,
    /// The long runs too.
    pub(crate) soak: bool,
}

impl Selection {
    pub(super) fn takes(&self, name: &str, set: Set) -> bool {
        let part = self.part.unwrap_or(if self.filter.is_empty() {
            Part::Quick
        } else {
            Part::All
        });
        let asked = match set {
            Set::Quick => part != Part::Rest,
            Set::Rest => part != Part::Quick,
            Set::Soak => self.soak,
        };
        let mut filters = self.filter.iter();
        asked && (self.filter.is_empty() || filters.any(|filter| name.contains(filter)))
    }
}

/// A check on one kernel.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) check: &'static Check,
    /// `suite/check@kernel`.
    pub(super) name: String,
    pub(super) set: Set,
}

/// A suite on one kernel with the checks that were selected.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) suite: &'static Suite,
    pub(super) kernel: Variant,
    pub(super) checks: Vec<Entry>,
}

impl Check {
    fn set(&self, kernel: Variant) -> Set {
        if self.soak {
            Set::Soak
        } else if self.quick.contains(&kernel) {
            Set::Quick
        } else {
            Set::Rest
        }
    }
}

/// The selected checks, in the order in which they run.
pub(super) fn select(selection: &Selection) -> Vec<Plan> {
    let mut plans = Vec::new();
    // All suites on the fast kernel come first: they are the quickest to fail.
    for kernel in VARIANTS {
        if selection.kernel.is_some_and(|only| only != kernel) {
            continue;
        }
        for suite in SUITES.iter().copied().flatten() {
            if !suite.kernels.contains(&kernel) {
                continue;
            }
            let checks: Vec<Entry> = suite
                .checks
                .iter()
                .filter(|check| kernel != Variant::Debug || !check.fast_only)
                .map(|check| Entry {
                    check,
                    name: format!("{}/{}@{kernel}", suite.name, check.name),
                    set: check.set(kernel),
                })
                .filter(|entry| selection.takes(&entry.name, entry.set))
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

/// One line of `--list --json`.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    set: Set,
    kernel: Variant,
    about: &'a str,
}

/// Prints the selected names with their sets.
pub(crate) fn list(selection: &Selection, json: bool) -> Result<()> {
    let plans = select(selection);
    let bare = bare_metal::select(selection);
    if json {
        let mut lines: Vec<serde_json::Value> =
            bare.iter().map(|c| bare_metal::listed(c)).collect();
        let listed: Vec<Listed> = plans
            .iter()
            .flat_map(|plan| {
                plan.checks.iter().map(|entry| Listed {
                    name: &entry.name,
                    set: entry.set,
                    kernel: plan.kernel,
                    about: plan.suite.about,
                })
            })
            .collect();
        for line in &listed {
            lines.push(serde_json::to_value(line)?);
        }
        println!("{}", serde_json::to_string_pretty(&lines)?);
        return Ok(());
    }
    bare_metal::list(&bare);
    for plan in &plans {
        println!("{}: {}", plan.suite.name, plan.suite.about);
        for entry in &plan.checks {
            println!("    {:<5}  {}", entry.set, entry.name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(filter: &str) -> Selection {
        Selection {
            filter: filter.split_whitespace().map(str::to_owned).collect(),
            kernel: None,
            part: None,
            soak: false,
        }
    }

    fn names(selection: &Selection) -> Vec<String> {
        let mut names: Vec<String> = select(selection)
            .into_iter()
            .flat_map(|plan| plan.checks.into_iter().map(|entry| entry.name))
            .collect();
        names.sort();
        names
    }

    fn part(part: Part) -> Selection {
        Selection {
            part: Some(part),
            ..selection("")
        }
    }

    #[test]
    fn names_are_unique_and_filters_narrow() {
        let all = names(&Selection {
            soak: true,
            ..part(Part::All)
        });
        let mut once = all.clone();
        once.dedup();
        assert_eq!(all, once, "two checks have one name");
        assert_eq!(
            names(&selection("machine/boot@fast")),
            ["machine/boot@fast"]
        );
        assert!(select(&selection("no-such-check")).is_empty());
        assert_eq!(
            names(&selection(
                "machine/boot@fast machine/boot@debug no-such-check"
            ))
            .len(),
            2,
            "any of several"
        );
    }

    #[test]
    fn quick_and_rest_are_all_and_nothing_is_in_both() {
        let quick = names(&part(Part::Quick));
        let rest = names(&part(Part::Rest));
        assert!(!rest.iter().any(|name| quick.contains(name)));
        let mut both = [quick.clone(), rest].concat();
        both.sort();
        assert_eq!(both, names(&part(Part::All)));
        assert_eq!(quick, names(&selection("")), "the everyday set by itself");
    }

    #[test]
    fn the_everyday_set_has_something_of_each_part_on_both_kernels() {
        let quick = names(&selection(""));
        for suite in ["machine/", "stock-1/", "migration/", "dcbm/", "kshim/"] {
            for kernel in ["@fast", "@debug"] {
                assert!(
                    quick
                        .iter()
                        .any(|name| name.starts_with(suite) && name.ends_with(kernel)),
                    "{suite} {kernel}"
                );
            }
        }
        // The stock driver is the judge: all of it on the fast kernel, every day.
        let stock: Vec<String> = names(&selection("stock-"))
            .into_iter()
            .filter(|name| name.ends_with("@fast") && !name.starts_with("stock-fixed/"))
            .collect();
        assert!(stock.iter().all(|name| quick.contains(name)), "{stock:?}");
    }

    #[test]
    fn a_kernel_can_be_chosen_and_long_runs_are_left_out() {
        let only = Selection {
            kernel: Some(Variant::Debug),
            ..selection("/")
        };
        assert!(names(&only).iter().all(|name| name.ends_with("@debug")));
        let sets = |selection: &Selection| -> Vec<Set> {
            select(selection)
                .iter()
                .flat_map(|plan| plan.checks.iter().map(|entry| entry.set))
                .collect()
        };
        assert!(!sets(&selection("/")).contains(&Set::Soak));
        assert!(
            sets(&Selection {
                soak: true,
                ..selection("")
            })
            .contains(&Set::Soak)
        );
    }

    #[test]
    fn what_is_quick_on_a_kernel_runs_on_it() {
        for suite in SUITES.iter().copied().flatten() {
            for check in suite.checks {
                assert!(
                    check
                        .quick
                        .iter()
                        .all(|kernel| suite.kernels.contains(kernel)
                            && (*kernel == Variant::Fast || !check.fast_only)),
                    "{}/{}",
                    suite.name,
                    check.name
                );
            }
        }
    }
}
