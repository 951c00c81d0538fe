//! The guest's migration programs, as the suites call them.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::machine::{Guest, Job};

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

/// Movers at work beside a check.
///
/// They end when the check has seen what it wants to see: on a busy host, and under the debug
/// kernel, nobody can say how much happens in a second.
#[derive(Debug)]
#[must_use = "movers that nobody ends go on"]
pub(crate) struct Load(Job);

impl Load {
    /// They end by themselves after this, so that a check that has failed leaves none behind.
    const LIMIT: Duration = Duration::from_secs(300);
    /// They end once this file exists.
    const OVER: &str = "/tmp/load-is-over";

    /// Starts `mover` with folios of a size, more arguments and counter files. One at a time.
    pub(crate) fn start(
        guest: &mut Guest,
        folio_kib: u64,
        more: &str,
        counters: &[&str],
    ) -> Result<Self> {
        guest.ok(&format!("rm -f {}", Self::OVER))?;
        let more = format!(
            "{more} --for-ms {} --until {}",
            Self::LIMIT.as_millis(),
            Self::OVER
        );
        let job = guest.start(&mover(folio_kib, &more, counters), 2 * Self::LIMIT)?;
        Ok(Self(job))
    }

    /// Has them end. They have compared every byte by then.
    pub(crate) fn end(self, guest: &mut Guest) -> Result<Report> {
        guest.ok(&format!("touch {}", Self::OVER))?;
        let text = guest.wait_ok(&self.0)?;
        parse("mover", &text)
    }
}

/// Waits until a counter file of the guest shows more than it does now. For one that goes on
/// growing: what has grown for the last time before this begins is waited for in vain.
pub(crate) fn wait_to_grow(guest: &mut Guest, file: &str) -> Result<()> {
    let now = get(guest, file)?;
    wait_until(guest, file, &format!("-gt {now}"))
}

/// Waits until a counter file of the guest's passes the shell's test, such as `-eq 0`.
pub(crate) fn wait_until(guest: &mut Guest, file: &str, test: &str) -> Result<()> {
    let condition = format!("until [ $(cat {file}) {test} ]; do sleep 0.1; done");
    guest
        .ok_within(&condition, PROGRAM_LIMIT)
        .map(drop)
        .with_context(|| format!("{file} does not become {test}"))
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
