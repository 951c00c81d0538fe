//! What a run found: a line as each check ends, a table or JSON at the end.

use std::path::PathBuf;

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::selection::Set;

/// How one check went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Outcome {
    /// `suite/check@kernel`.
    pub(super) name: String,
    pub(super) set: Set,
    /// The last attempt was good.
    pub(super) passed: bool,
    /// Good, but not at the first attempt.
    pub(super) flaky: bool,
    pub(super) attempts: u32,
    /// Of the last attempt, without the boot.
    pub(super) seconds: f64,
    /// What came before it: its machine's image, devices and boot, if it was the first there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) boot_seconds: Option<f64>,
    /// What was measured, or what went wrong, in the last attempt.
    pub(super) note: String,
    /// What went wrong before that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) earlier: Vec<String>,
    /// Of the last attempt that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) logs: Option<PathBuf>,
}

impl Outcome {
    /// What a repetition makes of a failure.
    pub(super) fn repeated(&mut self, again: Self) {
        let failure = std::mem::replace(&mut self.note, again.note);
        self.earlier.push(failure);
        self.passed = again.passed;
        self.flaky = again.passed;
        self.attempts += 1;
        self.seconds = again.seconds;
        self.boot_seconds = again.boot_seconds;
        self.logs = again.logs.or_else(|| self.logs.take());
    }

    fn verdict(&self) -> &'static str {
        match (self.passed, self.flaky) {
            (true, false) => "ok",
            (true, true) => "FLAKY",
            (false, _) => "FAIL",
        }
    }

    /// One line as the check ends: a log of CI has no progress bar.
    pub(super) fn line(&self) -> String {
        let mut line = format!("{:<5}{:6.1} s  {}", self.verdict(), self.seconds, self.name);
        if let Some(boot) = self.boot_seconds {
            line.push_str(&format!("  [boot {boot:.1} s]"));
        }
        if !self.passed {
            line.push_str(&format!("\n{}", self.note));
            if let Some(logs) = &self.logs {
                line.push_str(&format!("\n  logs: {}", logs.display()));
            }
        } else if !self.note.is_empty() {
            line.push_str(&format!("  ({})", self.note));
        }
        line
    }
}

/// Prints everything; the last line has the counts.
pub(super) fn print(outcomes: &[Outcome], seconds: f64, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(outcomes)?);
        eprintln!("{}", summary(outcomes, seconds));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["check", "result", "s", "measured"]);
    for outcome in outcomes {
        let failed = outcome.earlier.last().filter(|_| outcome.flaky);
        let note = match (outcome.passed, failed) {
            (true, None) => outcome.note.clone(),
            (true, Some(before)) => format!("first: {}", first_line(before)),
            (false, _) => first_line(&outcome.note).to_owned(),
        };
        table.add_row([
            outcome.name.clone(),
            outcome.verdict().into(),
            format!("{:.1}", outcome.seconds),
            note,
        ]);
    }
    println!("{table}");
    println!("{}", summary(outcomes, seconds));
    Ok(())
}

fn summary(outcomes: &[Outcome], seconds: f64) -> String {
    let passed = outcomes.iter().filter(|outcome| outcome.passed).count();
    let mut text = format!(
        "{passed} passed, {} failed in {seconds:.0} s",
        outcomes.len() - passed
    );
    let flaky: Vec<&str> = outcomes
        .iter()
        .filter(|outcome| outcome.flaky)
        .map(|outcome| outcome.name.as_str())
        .collect();
    if !flaky.is_empty() {
        text.push_str(&format!(
            "; {} FLAKY (passed only when repeated): {}",
            flaky.len(),
            flaky.join(" ")
        ));
    }
    text
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, passed: bool, note: &str) -> Outcome {
        Outcome {
            name: name.into(),
            set: Set::Quick,
            passed,
            flaky: false,
            attempts: 1,
            boot_seconds: None,
            seconds: 1.0,
            note: note.into(),
            earlier: Vec::new(),
            logs: (!passed).then(|| PathBuf::from("/logs").join(note)),
        }
    }

    #[test]
    fn a_check_that_passes_when_repeated_is_flaky_everywhere() -> Result<()> {
        let mut one = outcome("a/b@fast", false, "first");
        one.repeated(outcome("a/b@fast", true, "measured"));
        assert!(one.passed && one.flaky && one.attempts == 2);
        assert_eq!(one.logs, Some(PathBuf::from("/logs/first")), "kept");
        assert!(one.line().starts_with("FLAKY"));
        let text = summary(&[one.clone(), outcome("c/d@fast", true, "")], 9.0);
        assert_eq!(
            text,
            "2 passed, 0 failed in 9 s; 1 FLAKY (passed only when repeated): a/b@fast"
        );
        let json = serde_json::to_value(&one)?;
        assert_eq!(json["flaky"], true);
        assert_eq!(json["earlier"][0], "first");
        Ok(())
    }

    #[test]
    fn a_check_that_fails_again_has_failed() {
        let mut one = outcome("a/b@fast", false, "first");
        one.repeated(outcome("a/b@fast", false, "second"));
        assert!(!one.passed && !one.flaky);
        assert_eq!(one.logs, Some(PathBuf::from("/logs/second")));
        assert_eq!(summary(&[one], 9.0), "0 passed, 1 failed in 9 s");
    }
}
