//! The guest's migration programs, as the suites call them.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::machine::Guest;

/// A program that fills, moves and checks some ten MiB takes a few seconds of an
/// emulated processor; others may be building beside it.
pub(crate) const PROGRAM_LIMIT: Duration = Duration::from_secs(120);

/// The folio sizes of the published tables, in KiB.
pub(crate) const FOLIO_KIB: [u64; 6] = [4, 16, 64, 256, 1024, 2048];

/// What a program printed: one JSON object.
#[derive(Debug)]
pub(crate) struct Report(Value);

impl Report {
    /// A number somewhere in the object, by JSON pointer.
    pub(crate) fn number(&self, pointer: &str) -> Result<u64> {
        self.0
            .pointer(pointer)
            .and_then(Value::as_u64)
            .with_context(|| format!("no number at {pointer} in {}", self.0))
    }

    /// By how much a counter file grew while the pages were moved.
    pub(crate) fn counter(&self, path: &str) -> Result<u64> {
        self.0
            .get("counters")
            .and_then(|counters| counters.get(path))
            .and_then(Value::as_u64)
            .with_context(|| format!("no counter {path} in {}", self.0))
    }

    /// Migrations that the program saw to have happened, in folios.
    pub(crate) fn folios_moved(&self) -> Result<u64> {
        self.number("/folios_moved")
    }
}

/// Runs a program that must succeed.
pub(crate) fn run(guest: &mut Guest, command: &str) -> Result<Report> {
    let text = guest.ok_within(command, PROGRAM_LIMIT)?;
    parse(command, &text)
}

/// The program's object is the last line that looks like one.
pub(crate) fn parse(command: &str, text: &str) -> Result<Report> {
    let Some(line) = text.lines().rev().find(|line| line.starts_with('{')) else {
        bail!("`{command}` printed no result: {text}");
    };
    let value = serde_json::from_str(line).with_context(|| format!("`{command}`: {line}"))?;
    Ok(Report(value))
}

/// `mover` for folios of a size, with more arguments and counter files.
pub(crate) fn mover(folio_kib: u64, more: &str, counters: &[&str]) -> String {
    let mut command = format!("mover --folio {folio_kib}K {more}");
    for counter in counters {
        command.push_str(" --counter ");
        command.push_str(counter);
    }
    command
}

/// Writes a control file of the guest.
pub(crate) fn set(guest: &mut Guest, file: &str, value: &str) -> Result<()> {
    guest.ok(&format!("echo {value} > {file}")).map(drop)
}

/// Reads a number from a control file of the guest.
pub(crate) fn get(guest: &mut Guest, file: &str) -> Result<u64> {
    let text = guest.ok(&format!("cat {file}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("{file} holds {text}"))
}

/// A control file must refuse a value.
pub(crate) fn refuses(guest: &mut Guest, file: &str, value: &str) -> Result<()> {
    let out = guest.sh(&format!("echo {value} > {file}"))?;
    ensure!(out.code != 0, "{file} takes {value}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_found_among_other_lines() -> Result<()> {
        let text = "warning\n{\"folios_moved\":3,\"counters\":{\"/a/b\":2}}\n";
        let report = parse("mover", text)?;
        assert_eq!(report.folios_moved()?, 3);
        assert_eq!(report.counter("/a/b")?, 2);
        assert!(report.counter("/a/c").is_err());
        assert!(parse("mover", "killed").is_err());
        Ok(())
    }
}
