//! The machine suspends to idle with movers at work, and our migrator goes on afterwards.
//!
//! It is the kernel's own rehearsal (`/sys/power/pm_test`): all that suspending does to tasks
//! and devices, a second of standing still, and back. Nothing would wake the machine in earnest:
//! the emulated clock raises its alarm only from sleeping states of the firmware.
//!
//! After resuming nobody can reach the agent: the guest's driver asks for the state of its serial
//! port before it has given the device a buffer to answer in (Linux 7.3, `virtcons_restore()`), so
//! the port stays closed. A script does the work instead, and reports by the kernel's log.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::kshim::{QUARANTINED, TIMEOUT, start};
use super::mover::{self, Report, get, parse, set};
use crate::machine::Guest;

const SCRIPT: &str = include_str!("suspend.sh");
/// What the script's last line begins with.
const END: &str = "ptdma-suspend: end ";
/// One second is the least that the rehearsal stands still.
const DELAY: Duration = Duration::from_secs(1);
/// A channel that came up once may not come up again.
const TIMES: usize = 3;
/// What the script takes is seconds; it waits for a minute when nothing moves.
const LIMIT: Duration = Duration::from_secs(180);
/// Of the mover after resuming: all of 8 MiB in 4 KiB folios, twice.
const FOLIOS: u64 = 2 * 2048;

/// Runs the script; functions are told by their index. Those `watched` are in its report, and
/// the one that `may_reset` can be reset from the first time of suspending on.
fn run(guest: &mut Guest, watched: &[usize], may_reset: Option<usize>) -> Result<Report> {
    let address = |function: &usize| guest.options().address_of(*function);
    let addresses: Vec<String> = watched.iter().map(address).collect();
    let may_reset = may_reset.as_ref().map(address).unwrap_or_default();
    let command = format!(
        "TIMES={TIMES} DELAY={} WATCHED='{}' MAY_RESET={may_reset}\n{SCRIPT}",
        DELAY.as_secs(),
        addresses.join(" ")
    );
    // Its answer does not arrive.
    let _lost = guest.start(&command, LIMIT)?;
    let end = guest.wait_for_console(END, LIMIT)?;
    if let Some(why) = end.strip_prefix("failed: ") {
        bail!("{why}");
    }
    let report = parse("suspend.sh", &end).context("the script's last line")?;
    ensure!(
        report.number("/slept")? == TIMES as u64,
        "the machine did not suspend {TIMES} times: {report:?}"
    );
    Ok(report)
}

/// All functions are in use after each resume.
pub(super) fn healthy(guest: &mut Guest) -> Result<String> {
    let devices = guest.options().devices;
    start(guest, devices)?;
    let report = run(guest, &[], None)?;
    ensure!(
        report.number("/passed")? == devices as u64 && report.number("/after")? >= FOLIOS,
        "not all as before: {report:?}"
    );
    ensure!(
        report.number("/quarantined")? == 0,
        "folios are in quarantine: {report:?}"
    );
    guest.expect_clean_console()?;
    Ok(format!("{TIMES} times, {devices} channels"))
}

/// Two engines hang, and neither can be halted or reset: what they may write to is in quarantine.
/// By the time of suspending one of them can be reset: that gives its folios back, and resuming
/// the channel. The other must be kept off the bus for good, with its folios.
///
/// A function that does not answer at all cannot be shown: QEMU 11.1 aborts (an assertion in
/// `memory_region_del_subregion`) when such a vfio-user device is suspended.
pub(super) fn hung(guest: &mut Guest) -> Result<String> {
    const RESET: usize = 3;
    const UNSTOPPABLE: usize = 7;
    let devices = guest.options().devices;
    start(guest, devices)?;
    set(guest, TIMEOUT, "300")?;
    let stall = json!({
        "trigger": {"at": 5},
        "kind": {"stall": {"for": "ever", "haltable": false}},
    });
    let mut held = Vec::new();
    for function in [RESET, UNSTOPPABLE] {
        let address = guest.options().address_of(function);
        guest.ok(&format!(
            "echo > /sys/bus/pci/devices/{address}/reset_method"
        ))?;
        guest.server()?.fault(Some(function), &stall)?;
        mover::run(guest, &mover::mover(4, "--bytes 8M --rounds 3", &[]))?;
        held.push(get(guest, QUARANTINED)?);
    }
    let [first, both] = held[..] else {
        bail!("two functions hang");
    };
    ensure!(
        0 < first && first < both,
        "{first}, then {both} folios are in quarantine"
    );

    let report = run(guest, &[RESET, UNSTOPPABLE], Some(RESET))?;
    ensure!(
        report.number("/passed")? == devices as u64 - 1 && report.number("/after")? >= FOLIOS,
        "not all but one as before: {report:?}"
    );
    ensure!(
        report.number("/resets/0")? > 0 && report.number("/masters/0")? == 1,
        "the engine that could be reset is not back: {report:?}"
    );
    ensure!(
        report.number("/resets/1")? == 0 && report.number("/masters/1")? == 0,
        "an engine that was not proved stopped may use the bus: {report:?}"
    );
    ensure!(
        report.number("/quarantined")? == both - first,
        "of {both} folios in quarantine {first} can be given back: {report:?}"
    );
    // What the function that cannot be stopped may touch stays mapped, on purpose.
    let address = guest.options().address_of(UNSTOPPABLE);
    guest.expect_clean_console_but(&[
        "WARNING: kernel/dma/debug.c:* at dma_debug_device_change+",
        &format!(
            "DMA-API: pci {address}: device driver has pending DMA allocations while released"
        ),
    ])?;
    Ok(format!(
        "{} channels left, {first} of {both} folios out of quarantine",
        devices - 1
    ))
}
