//! `ptdma selftest`: the module's own test of each channel.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::counts::PARAMETERS;
use crate::say;
use crate::sysfs::Root;

#[derive(Serialize)]
struct Told<'a> {
    passed: bool,
    channels: Vec<&'a str>,
}

/// Tests, and tells. False if a channel failed.
pub(crate) fn run(root: &Root, json: bool) -> Result<bool> {
    let file = format!("{PARAMETERS}/selftest");
    if !root.has(&file) {
        anyhow::bail!("the module ptdma_migrator is not loaded: modprobe ptdma_migrator");
    }
    // The file says what has failed; that something has is told by both.
    let written = root.write(&file, "1");
    let text = root
        .text(&file)
        .with_context(|| format!("cannot read /{file}"))?;
    if text.is_empty() {
        written.context("run this as root")?;
    }
    let channels: Vec<&str> = text.lines().collect();
    let passed = !channels.is_empty() && channels.iter().all(|line| line.ends_with("passed"));
    if json {
        say::print_json(&Told { passed, channels })?;
    } else {
        say::print(&text)?;
    }
    Ok(passed)
}
