//! More migrations at once than our migrator has room for.

use anyhow::{Result, ensure};
use serde_json::json;

use super::kshim::{
    ALL, BYTES, EACH_FUNCTION, FAILURES, MIGRATED, OFFLOADING, PARAMETERS, QUARANTINED, TIMEOUT,
    hide_transactions, start, stop, stop_after_faults,
};
use super::mover::{get, mover, run, set};
use crate::machine::Guest;

/// `PTDMA_MAX_BATCHES` of `kshim/ptdma_migrator.h`.
const BATCHES: i64 = 8;
const EVENTS: &str = "/sys/kernel/tracing/events/ptdma_migrator";
const TRACE: &str = "/sys/kernel/tracing/trace";

/// The most batches that were in flight at once, by the events of their beginnings and ends.
fn most_at_once(trace: &str) -> i64 {
    let mut now = 0;
    let mut most = 0;
    for line in trace.lines() {
        if line.contains(" ptdma_batch_start:") {
            now += 1;
        } else if line.contains(" ptdma_batch_end:") {
            now -= 1;
        }
        most = most.max(now);
    }
    most
}

/// Sixteen movers at once on engines that take their time: eight batches are in flight, the
/// others are the CPU's at once, and every byte is right.
pub(super) fn all_batches(guest: &mut Guest) -> Result<String> {
    start(guest, 16)?;
    // Sixteen movers share the channels, and the engines are slow on purpose: on a busy host half a
    // millisecond for each descriptor was over before the ninth mover came.
    set(guest, TIMEOUT, "30000")?;
    let slow = json!({"trigger": "always", "kind": {"delay": {"ns": 2_000_000}}});
    guest.server()?.fault(None, &slow)?;
    let events = ["ptdma_batch_start", "ptdma_batch_end"];
    for event in events {
        guest.ok(&format!("echo 1 > {EVENTS}/{event}/enable"))?;
    }
    guest.ok(&format!("echo > {TRACE}"))?;
    let busy = format!("{PARAMETERS}/batches_busy");
    let before = get(guest, &busy)?;
    let report = run(
        guest,
        &mover(4, "--bytes 64M --movers 16 --rounds 2 --writers 1", &ALL),
    )?;
    for event in events {
        guest.ok(&format!("echo 0 > {EVENTS}/{event}/enable"))?;
    }
    guest.server()?.clear_faults(None)?;
    let declined = get(guest, &busy)? - before;
    let text = guest.ok(&format!("grep -E ' ptdma_batch_(start|end):' {TRACE}"))?;
    let most = most_at_once(&text);
    ensure!(
        most == BATCHES && declined > 0,
        "{most} batches at once, {declined} found no room: {report:?}"
    );
    // What found no room was never counted as accepted, let alone as copied.
    let (migrated, moved) = (report.counter(MIGRATED)?, report.folios_moved()?);
    ensure!(
        report.counter(FAILURES)? == 0
            && 0 < migrated
            && migrated < moved
            && report.counter(BYTES)? == guest.server()?.counters()?.bytes,
        "{migrated} of {moved} folios by the devices: {report:?}"
    );
    // Sleeps end by time here, as engines that are slow on purpose are not done when they should
    // be: the module's counts of that start anew.
    set(guest, OFFLOADING, "0")?;
    guest.ok("rmmod ptdma_migrator")?;
    // All of them are free again.
    let report = run_all_again(guest)?;
    Ok(format!(
        "{most} at once, {declined} batches left to the CPU, {migrated} of {moved} folios by the \
         devices; then {report} of {report}"
    ))
}

fn run_all_again(guest: &mut Guest) -> Result<u64> {
    start(guest, 16)?;
    let report = run(guest, &mover(4, "--bytes 8M --rounds 2", &ALL))?;
    super::kshim::all_by_device(guest, &report)?;
    stop(guest)?;
    report.folios_moved()
}

/// How many batches went into quarantine since boot.
fn quarantined_batches(guest: &mut Guest) -> Result<i64> {
    let log = guest.kernel_log()?;
    let lines = log.matches("that they may write to are in quarantine");
    Ok(i64::try_from(lines.count())?)
}

/// One engine that cannot be stopped takes all batches with it that are in flight. Others take
/// their places, and when it is proved stopped there are as many as before.
pub(super) fn all_in_quarantine(guest: &mut Guest) -> Result<String> {
    start(guest, 16)?;
    set(guest, TIMEOUT, "1000")?;
    let all = EACH_FUNCTION;
    guest.ok(&format!("{all} echo > $d/reset_method || exit 1; done"))?;
    hide_transactions(guest, "")?;
    // Slow enough that all batches have given the third function work when it stops.
    let slow = json!({"trigger": "always", "kind": {"delay": {"ns": 500_000}}});
    guest.server()?.fault(None, &slow)?;
    let stall = json!({
        "trigger": {"at": 200},
        "kind": {"stall": {"for": "ever", "haltable": false}},
    });
    guest.server()?.fault(Some(3), &stall)?;
    let before = quarantined_batches(guest)?;
    run(
        guest,
        &mover(
            4,
            "--bytes 64M --movers 16 --rounds 2 --writers 1",
            &[MIGRATED],
        ),
    )?;
    let held = get(guest, QUARANTINED)?;
    let batches = quarantined_batches(guest)? - before;
    ensure!(
        batches >= BATCHES / 2,
        "{batches} batches are in quarantine, with {held} folios"
    );
    guest.server()?.clear_faults(None)?;

    // As many as ever are at work, with the fifteen others.
    let report = run(
        guest,
        &mover(4, "--bytes 64M --movers 8 --rounds 1", &[MIGRATED]),
    )?;
    let (migrated, moved) = (report.counter(MIGRATED)?, report.folios_moved()?);
    ensure!(
        migrated >= moved,
        "{migrated} of {moved} folios by the devices, with {batches} batches in quarantine"
    );
    guest.ok(&format!(
        "rmmod testfail; {all} echo default > $d/reset_method || exit 1; \
         [ $(cat $d/ptdma/state) = running ] || echo 1 > $d/reset || exit 1; done"
    ))?;
    stop_after_faults(guest)?;
    let report = run_all_again(guest)?;
    Ok(format!(
        "{batches} batches with {held} folios held; then {report} of {report}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_batches_are_counted() {
        let trace = "a ptdma_batch_start: x\nb ptdma_batch_start: x\na ptdma_batch_end: x\n\
                     c ptdma_batch_start: x\nb ptdma_batch_end: x\nc ptdma_batch_end: x\n";
        assert_eq!(most_at_once(trace), 2);
    }
}
