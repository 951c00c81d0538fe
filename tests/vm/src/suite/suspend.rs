//! The machine suspends with movers at work, and our migrator goes on afterwards. It halts, and the
//! engines stand still.
//!
//! Suspended to idle, the machine is woken by its second serial port: the emulated clock raises
//! its alarm only from sleeping states of the firmware.
//!
//! After resuming nobody can reach the agent: the guest's driver asks for the state of its serial
//! port before it has given the device a buffer to answer in (Linux 7.3, `virtcons_restore()`), so
//! the port stays closed. A script does the work instead, and reports by the kernel's log.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::kshim::{LOAD, MIGRATED, QUARANTINED, TIMEOUT, start};
use super::mover::{self, Load, Report, get, parse, set, wait_to_grow};
use crate::kernel::Variant;
use crate::machine::Guest;

const SCRIPT: &str = include_str!("suspend.sh");
/// What the script's last line begins with.
const END: &str = "ptdma-suspend: end ";
/// How long the machine sleeps: enough to see that the functions are left alone.
const SLEEP: Duration = Duration::from_secs(1);
/// What the script takes is seconds; it waits for a minute when nothing moves.
const LIMIT: Duration = Duration::from_secs(180);
/// Pause between two questions to the emulator whether the machine has suspended.
const POLL: Duration = Duration::from_millis(50);
/// Of the mover after resuming: all of 8 MiB in 4 KiB folios, twice.
const FOLIOS: u64 = 2 * 2048;

/// What suspending is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// To idle: processors wait for an interrupt. Devices keep their state.
    Idle,
    /// To RAM: the firmware takes over, and the machine is reset but for its memory.
    Ram,
}

impl How {
    const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Ram => "ram",
        }
    }

    const fn times(self) -> usize {
        match self {
            // A channel that came up once may not come up again.
            Self::Idle => 3,
            // The second time (Linux 7.3.4 on QEMU 11.1) the emulator does not suspend, and the
            // kernel goes on at once. Seen with functions present; why is not known.
            Self::Ram => 1,
        }
    }
}

/// Waits until the machine has suspended, sees that it stands still and that the functions were
/// taken out of use, but for those `left_on`, and wakes it. The one that `may_reset` may be on: its
/// work item may or may not have come to it before.
fn sleep_and_wake(
    guest: &mut Guest,
    how: How,
    may_reset: Option<usize>,
    left_on: &[usize],
) -> Result<()> {
    match how {
        How::Idle => {
            // The last that the kernel says before its processors wait.
            guest.wait_for_console("PM: suspend-to-idle", LIMIT)?;
        }
        How::Ram => {
            let deadline = Instant::now() + guest.scaled(LIMIT);
            while guest.qmp("query-status", json!({}))?["status"] != "suspended" {
                ensure!(Instant::now() < deadline, "the machine does not suspend");
                std::thread::sleep(POLL);
            }
        }
    }
    let mut on = guest.server()?.programmed()?;
    on.retain(|function| Some(*function) != may_reset);
    ensure!(
        on == left_on,
        "while the machine is suspended the queues of functions {on:?} are on, not {left_on:?}"
    );
    let before = guest.server()?.counters()?;
    std::thread::sleep(SLEEP);
    let after = guest.server()?.counters()?;
    ensure!(
        before == after,
        "the functions are used while the machine is suspended: {before:?}, {after:?}"
    );
    match how {
        How::Idle => guest.send_line("wake"),
        How::Ram => guest.qmp("system_wakeup", json!({})).map(drop),
    }
}

/// Waits for the script's word `mark`; if it fails, its last line says why.
fn awake_until(guest: &mut Guest, mark: &str) -> Result<()> {
    match guest.wait_for_console(mark, LIMIT) {
        Ok(_) => Ok(()),
        Err(error) => match guest.wait_for_console(END, Duration::ZERO) {
            Ok(end) => bail!("{end}"),
            Err(_) => Err(error),
        },
    }
}

/// Runs the script; functions are told by their index. Those `watched` are in its report, and
/// the one that `may_reset` can be reset from the first time of suspending on. The queues of
/// those `left_on` stay as they are while the machine is suspended.
fn run(
    guest: &mut Guest,
    how: How,
    watched: &[usize],
    may_reset: Option<usize>,
    left_on: &[usize],
) -> Result<Report> {
    let times = how.times();
    let address = |function: &usize| guest.options().address_of(*function);
    let addresses: Vec<String> = watched.iter().map(address).collect();
    let reset_address = may_reset.as_ref().map(address).unwrap_or_default();
    let command = format!(
        "HOW={} TIMES={times} WATCHED='{}' MAY_RESET={reset_address}\n{SCRIPT}",
        how.name(),
        addresses.join(" ")
    );
    // Its answer does not arrive.
    let _lost = guest.start(&command, LIMIT)?;
    for time in 1..=times {
        let ready = format!("about to suspend {time} of {times}");
        awake_until(guest, &ready)?;
        // What comes next is not to be taken for what was there already.
        guest.expect_clean_console()?;
        guest.send_line("suspend")?;
        sleep_and_wake(guest, how, may_reset, left_on)?;
    }
    let end = guest.wait_for_console(END, LIMIT)?;
    if let Some(why) = end.strip_prefix("failed: ") {
        bail!("{why}");
    }
    let report = parse("suspend.sh", &end).context("the script's last line")?;
    ensure!(
        report.number("/slept")? == times as u64,
        "the machine did not suspend {times} times: {report:?}"
    );
    Ok(report)
}

/// To idle and back, see [`healthy`].
pub(super) fn to_idle(guest: &mut Guest) -> Result<String> {
    healthy(guest, How::Idle)
}

/// To RAM and back, see [`healthy`]: the functions have lost their registers meanwhile.
pub(super) fn to_ram(guest: &mut Guest) -> Result<String> {
    healthy(guest, How::Ram)
}

/// All functions are in use after each resume.
fn healthy(guest: &mut Guest, how: How) -> Result<String> {
    let devices = guest.options().devices;
    start(guest, devices)?;
    if guest.options().kernel == Variant::Debug {
        // On a busy host a batch was seen to take longer than the two seconds that it has by itself.
        set(guest, TIMEOUT, "20000")?;
    }
    let refused = guest.server()?.counters()?.errors;
    let report = run(guest, how, &[], None, &[])?;
    let refused = guest.server()?.counters()?.errors - refused;
    if how == How::Idle {
        for time in 0..how.times() {
            ensure!(
                report.number(&format!("/woken/{time}"))? == 1,
                "not woken by the serial port: {report:?}"
            );
        }
    }
    ensure!(
        report.number("/passed")? == devices as u64 && report.number("/after")? >= FOLIOS,
        "not all as before: {report:?}"
    );
    ensure!(
        report.number("/quarantined")? == 0,
        "folios are in quarantine: {report:?}"
    );
    // Suspending and resuming took the channels down and up, not recovery; and no bring-up has its
    // engine refuse a descriptor.
    ensure!(
        report.number("/recoveries")? == 0 && refused == 0,
        "{refused} descriptors failed: {report:?}"
    );
    guest.expect_clean_console()?;
    let times = how.times();
    Ok(format!("{times} times, {devices} channels"))
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
    super::kshim::hide_transactions(guest, "")?;
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

    let watched = [RESET, UNSTOPPABLE];
    let report = run(guest, How::Idle, &watched, Some(RESET), &[UNSTOPPABLE])?;
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
    // The memory stays where it is, the mappings go with the function.
    guest.expect_clean_console()?;
    Ok(format!(
        "{} channels left, {first} of {both} folios out of quarantine",
        devices - 1
    ))
}

/// The machine halts, as it does before the next kernel is started by kexec, with movers at work:
/// no engine is left running, whose memory would be the next kernel's.
pub(super) fn shutdown(guest: &mut Guest) -> Result<String> {
    let devices = guest.options().devices;
    start(guest, devices)?;
    let _never = Load::start(guest, 4, LOAD, &[])?;
    wait_to_grow(guest, MIGRATED)?;
    let on = guest.server()?.programmed()?;
    let copied = guest.server()?.counters()?.bytes;
    ensure!(
        on.len() == devices && copied > 0,
        "before the machine halts the queues of {on:?} are on, {copied} bytes copied"
    );
    let _never = guest.start("halt -f", LIMIT)?;
    guest.wait_for_console("reboot: System halted", LIMIT)?;
    let on = guest.server()?.programmed()?;
    ensure!(
        on.is_empty(),
        "the machine has halted, and the queues of functions {on:?} are on"
    );
    guest.expect_clean_console()?;
    Ok(format!("{devices} channels"))
}
