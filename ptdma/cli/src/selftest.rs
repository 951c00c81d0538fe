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
    let written = std::fs::write(root.path(&file), "1").map_err(|error| error.raw_os_error());
    match written {
        Err(Some(libc::EACCES | libc::EPERM)) => anyhow::bail!("run this as root"),
        Err(Some(libc::ENODEV)) => anyhow::bail!("no channel is in service: see `ptdma status`"),
        // The file says which channel has failed.
        Ok(()) | Err(_) => {}
    }
    let text = root
        .text(&file)
        .with_context(|| format!("cannot read /{file}"))?;
    let channels: Vec<&str> = text.lines().collect();
    let passed = written.is_ok()
        && !channels.is_empty()
        && channels.iter().all(|line| line.ends_with("passed"));
    if json {
        say::print_json(&Told { passed, channels })?;
    } else {
        say::print(&text)?;
    }
    Ok(passed)
}
