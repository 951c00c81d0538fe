//! Instructions of a program, counted by valgrind: the same in each run, on any machine.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// Whether [`callgrind`] can be had here.
#[must_use]
pub fn has_callgrind() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok()
}

/// Instructions of a whole run of this program with these arguments.
///
/// # Errors
/// Valgrind is not there, or the run failed.
pub fn callgrind(args: &[String]) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(args)
        .output()
        .context("starting valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("valgrind failed:\n{text}");
    }
    let count = text
        .lines()
        .find_map(|line| line.split("Collected :").nth(1))
        .context("callgrind printed no count")?;
    Ok(count.trim().parse()?)
}
