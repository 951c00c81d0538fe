//! The controls of our migrator: each refuses what is out of its range, and acts at once. What it
//! says about itself: counts of each channel, and trace events.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::kshim::{
    ALL, BYTES, CHANNELS, FAILURES, MIGRATED, OFFLOADING, PARAMETERS, RING, SMALLEST, TIMEOUT,
    all_by_device, expect_woken, start, stop, stop_after_faults, sum_of,
};
use super::mover::{get, mover, refuses, run, set};
use crate::machine::Guest;

const STRIPE: &str = "/sys/module/ptdma_migrator/parameters/stripe_kb";
const POLL: &str = "/sys/module/ptdma_migrator/parameters/poll_us";
const HYBRID: &str = "/sys/module/ptdma_migrator/parameters/hybrid_percent";
const ACTIVE: &str = "/sys/kernel/mm/migrate_offload/migrator";
const EVENTS: &str = "/sys/kernel/tracing/events/ptdma_migrator";
const TRACE: &str = "/sys/kernel/tracing/trace";

/// Each control, its bounds, and what it must refuse.
const RANGES: [(&str, &[&str], &[&str]); 7] = [
    ("nr_dma_chan", &["0", "64"], &["65", "-1", "x", ""]),
    (
        "ring_entries",
        &["32", "8192"],
        &["0", "16", "31", "1000", "16384"],
    ),
    ("stripe_kb", &["4", "2048"], &["0", "3", "2049"]),
    ("poll_us", &["0", "10000"], &["10001", "-1"]),
    ("timeout_ms", &["10", "60000"], &["0", "9", "60001"]),
    ("hybrid_percent", &["0", "50"], &["51", "-1"]),
    ("min_batch_kb", &["0", "1048576"], &["1048577", "-1"]),
];

/// Bounds are taken and kept; what lies beyond is refused, and changes nothing.
pub(super) fn ranges(guest: &mut Guest) -> Result<String> {
    start(guest, 64)?;
    // What is promised for sixteen channels.
    let bytes = get(guest, &format!("{PARAMETERS}/memory_bytes"))?;
    ensure!(bytes < 2 << 20, "rings, pools and state take {bytes} bytes");
    for (name, good, bad) in RANGES {
        let file = format!("{PARAMETERS}/{name}");
        let before = get(guest, &file)?;
        for value in bad {
            refuses(guest, &file, value)?;
            ensure!(get(guest, &file)? == before, "{name} changed by {value}");
        }
        for value in good {
            set(guest, &file, value)?;
            ensure!(get(guest, &file)?.to_string() == *value, "{name}: {value}");
        }
        set(guest, &file, &before.to_string())?;
    }
    for (name, value) in [
        ("offloading", "7"),
        ("reason_mask", "whim"),
        ("reason_mask", "0xffffffff"),
        ("selftest", "whim"),
    ] {
        refuses(guest, &format!("{PARAMETERS}/{name}"), value)?;
    }
    for counter in ALL {
        let out = guest.sh(&format!("test -w {counter} && echo 0 > {counter}"))?;
        ensure!(out.code != 0, "{counter} can be written");
    }
    let name = guest.ok(&format!("cat {ACTIVE}"))?;
    ensure!(name.trim() == "ptdma_migrator", "{name}");
    let out = guest.sh("rmmod ptdma_migrator")?;
    ensure!(out.code != 0, "removed while registered");
    stop(guest)?;
    guest.ok("rmmod ptdma_migrator")?;
    // On the command line too.
    for wrong in ["nr_dma_chan=65", "ring_entries=33", "reason_mask=whim"] {
        let out = guest.sh(&format!("modprobe ptdma_migrator {wrong}"))?;
        ensure!(out.code != 0, "loaded with {wrong}");
    }
    guest.ok("modprobe ptdma_migrator ring_entries=64 poll_us=3")?;
    let (ring, poll) = (get(guest, RING)?, get(guest, POLL)?);
    ensure!((ring, poll) == (64, 3), "{ring} {poll}");
    guest.ok("rmmod ptdma_migrator")?;
    Ok(format!("{} controls", RANGES.len()))
}

/// Channels that copied for one folio of 2 MiB.
fn channels_used(guest: &mut Guest) -> Result<usize> {
    guest.server()?.reset_counters()?;
    let report = run(guest, &mover(2048, "--bytes 2M", &ALL))?;
    let each = guest.server()?.counters_by_device()?;
    all_by_device(guest, &report)?;
    Ok(each.iter().filter(|counters| counters.bytes > 0).count())
}

/// The size of a function's ring, as the engine has been told.
fn ring_of(guest: &mut Guest, index: usize) -> Result<u64> {
    let address = guest.options().address_of(index);
    // BAR 2 is the third line; the control register is at 0x1000, and its bits 7:3 are the
    // logarithm of the entries, less one.
    let text = guest.ok(&format!(
        "set -- $(sed -n 3p /sys/bus/pci/devices/{address}/resource); \
         devmem $(($1 + 0x1000)) 32"
    ))?;
    let control = u64::from_str_radix(text.trim().trim_start_matches("0x"), 16)
        .with_context(|| format!("control register: {text}"))?;
    Ok(1 << ((control >> 3 & 0x1f) + 1))
}

/// Numbers of one field of a kind of trace event, in the order of time.
fn traced(guest: &mut Guest, event: &str, field: &str) -> Result<Vec<u64>> {
    let text = guest.ok(&format!("grep ' {event}:' {TRACE}; true"))?;
    let field = format!(" {field}=");
    text.lines()
        .map(|line| {
            let (_, rest) = line.split_once(&field).context("a field is missing")?;
            let number = rest.split_whitespace().next().unwrap_or_default();
            number.parse().with_context(|| line.to_owned())
        })
        .collect()
}

/// Batches that slept, and all, of a mover whose batches are short.
fn sleeps(guest: &mut Guest, poll_us: u64) -> Result<(u64, usize)> {
    set(guest, POLL, &poll_us.to_string())?;
    guest.ok(&format!("echo > {TRACE}"))?;
    run(guest, &mover(4, "--bytes 64K --rounds 16", &ALL))?;
    let sleeps = traced(guest, "ptdma_batch_end", "sleeps")?;
    Ok((sleeps.iter().sum(), sleeps.len()))
}

/// Each control has its effect on the next batch.
pub(super) fn act(guest: &mut Guest) -> Result<String> {
    start(guest, 16)?;
    for (file, value, channels) in [
        (CHANNELS, "1", 1),
        (CHANNELS, "3", 3),
        (CHANNELS, "16", 16),
        (STRIPE, "2048", 1),
        (STRIPE, "512", 4),
        (STRIPE, "64", 16),
    ] {
        set(guest, file, value)?;
        let used = channels_used(guest)?;
        ensure!(used == channels, "{file} {value}: {used} channels");
    }

    for (entries, kib) in [(32, 4), (8192, 4), (1024, 2048)] {
        set(guest, RING, &entries.to_string())?;
        for index in [0, 15] {
            let ring = ring_of(guest, index)?;
            ensure!(ring == entries, "a ring of {ring} instead of {entries}");
        }
        // Bring-up has each engine fail once, to see where its head stays.
        guest.server()?.reset_counters()?;
        let report = run(guest, &mover(kib, "--bytes 8M", &ALL))?;
        all_by_device(guest, &report)?;
    }

    set(guest, SMALLEST, "1048576")?;
    let report = run(guest, &mover(4, "--bytes 4M", &[MIGRATED]))?;
    ensure!(report.counter(MIGRATED)? == 0, "{report:?}");
    // The cost model leaves a single page to the CPU, and a full batch to the engines.
    set(guest, SMALLEST, "0")?;
    let report = run(guest, &mover(4, "--bytes 4K", &[MIGRATED]))?;
    ensure!(report.counter(MIGRATED)? == 0, "{report:?}");
    let report = run(guest, &mover(4, "--bytes 4M", &[MIGRATED]))?;
    ensure!(report.counter(MIGRATED)? == 1024, "{report:?}");
    set(guest, SMALLEST, "4")?;

    set(guest, HYBRID, "25")?;
    guest.server()?.reset_counters()?;
    let report = run(guest, &mover(4, "--bytes 4M", &ALL))?;
    let by_device = guest.server()?.reset_counters()?.bytes;
    let all = report.counter(MIGRATED)? * 4096;
    ensure!(
        report.counter(FAILURES)? == 0 && by_device < all && by_device > all / 2,
        "{by_device} of {all} bytes by the devices: {report:?}"
    );
    set(guest, HYBRID, "0")?;

    // An engine that takes longer than the spinning may last; the cost model cannot know.
    guest.ok(&format!("echo 1 > {EVENTS}/ptdma_batch_end/enable"))?;
    let slow = json!({"trigger": "always", "kind": {"delay": {"ns": 1_000_000}}});
    guest.server()?.fault(None, &slow)?;
    let overdue = sum_of(guest, "overdue_waits")?;
    let (at_once, batches) = sleeps(guest, 0)?;
    let overdue = sum_of(guest, "overdue_waits")? - overdue;
    let (spinning, _) = sleeps(guest, 10_000)?;
    guest.server()?.clear_faults(None)?;
    set(guest, POLL, "10")?;
    ensure!(
        overdue * 2 <= at_once,
        "{overdue} of {at_once} sleeps were not ended by an interrupt"
    );
    ensure!(
        // A guest that was starved for a millisecond finds the engines done.
        at_once * 4 >= batches as u64 * 3 && spinning * 2 < at_once,
        "{at_once} sleeps of {batches} batches that do not spin, {spinning} of those that do"
    );

    // A batch waits for an engine that stands still for a second, or gives it up.
    let stall = json!({
        "trigger": "now",
        "kind": {"stall": {"for": {"micros": 1_000_000}, "haltable": true}},
    });
    for (timeout, fails) in [("60000", false), ("300", true)] {
        set(guest, TIMEOUT, timeout)?;
        guest.server()?.fault(Some(3), &stall)?;
        let report = run(guest, &mover(4, "--bytes 2M", &ALL))?;
        let failures = report.counter(FAILURES)?;
        ensure!(
            (failures > 0) == fails,
            "timeout_ms {timeout}: {failures} failures"
        );
        guest.server()?.clear_faults(None)?;
    }

    set(guest, OFFLOADING, "0")?;
    let name = guest.ok(&format!("cat {ACTIVE}"))?;
    ensure!(name.trim() == "none", "{name} is registered");
    let report = run(guest, &mover(4, "--bytes 4M", &[MIGRATED]))?;
    ensure!(report.counter(MIGRATED)? == 0, "{report:?}");
    guest.ok(&format!("echo 0 > {EVENTS}/enable; rmmod ptdma_migrator"))?;
    Ok(format!(
        "{at_once} sleeps of {batches} batches without spinning, {spinning} with"
    ))
}

/// One count of each function, in the order of the functions.
fn counts(guest: &mut Guest, name: &str) -> Result<Vec<u64>> {
    (0..guest.options().devices)
        .map(|index| {
            let address = guest.options().address_of(index);
            get(
                guest,
                &format!("/sys/bus/pci/devices/{address}/ptdma/{name}"),
            )
        })
        .collect()
}

/// What a channel counts is what its device has seen; events tell of batches, errors and recovery.
pub(super) fn statistics(guest: &mut Guest) -> Result<String> {
    start(guest, 16)?;
    let names = [
        "submitted_bytes",
        "completed",
        "doorbells",
        "interrupts",
        "failed",
    ];
    let read = |guest: &mut Guest| -> Result<Vec<Vec<u64>>> {
        names.iter().map(|name| counts(guest, name)).collect()
    };
    let before = read(guest)?;
    guest.server()?.reset_counters()?;
    let report = run(guest, &mover(64, "--bytes 8M --rounds 8", &ALL))?;
    let seen = guest.server()?.counters_by_device()?;
    let after = read(guest)?;
    let grown = |count: usize, function: usize| after[count][function] - before[count][function];
    for (function, seen) in seen.iter().enumerate() {
        let counted: Vec<u64> = (0..names.len()).map(|i| grown(i, function)).collect();
        let wanted = [
            seen.bytes,
            seen.descriptors,
            seen.doorbells,
            seen.interrupts,
            seen.errors,
        ];
        ensure!(
            counted == wanted,
            "function {function}, {names:?}: counted {counted:?}, the device saw {wanted:?}"
        );
    }
    expect_woken(guest)?;
    let bytes: u64 = seen.iter().map(|one| one.bytes).sum();
    ensure!(bytes == report.counter(BYTES)? && bytes > 0, "{report:?}");

    guest.ok(&format!("echo > {TRACE}; echo 1 > {EVENTS}/enable"))?;
    set(guest, TIMEOUT, "300")?;
    // The first error does not say which descriptor it is of. The second one is of a descriptor
    // that runs alone for that reason, and so is a failure.
    for at in [1, 2] {
        let failing: Value = json!({"trigger": {"at": at}, "kind": {"error": {"code": 19}}});
        guest.server()?.fault(Some(2), &failing)?;
    }
    let hanging = json!({
        "trigger": {"at": 1},
        "kind": {"stall": {"for": "ever", "haltable": false}},
    });
    guest.server()?.fault(Some(3), &hanging)?;
    let report = run(guest, &mover(4, "--bytes 8M --rounds 2", &ALL))?;
    guest.ok(&format!("echo 0 > {EVENTS}/enable"))?;
    let copied: u64 = traced(guest, "ptdma_batch_end", "copied")?.iter().sum();
    let began = traced(guest, "ptdma_batch_start", "folios")?.len();
    let ended = traced(guest, "ptdma_batch_end", "folios")?.len();
    let by_dma: u64 = traced(guest, "ptdma_round", "dma")?.iter().sum();
    ensure!(
        began == ended && copied == report.counter(MIGRATED)? && by_dma <= copied && by_dma > 0,
        "{began} batches began, {ended} ended, {copied} folios copied, {by_dma} by DMA: {report:?}"
    );
    for (index, event) in [
        (2, "event=error code=0x13"),
        (3, "event=not_stopped"),
        (3, "step=reset rc=0"),
        (3, "event=revived"),
    ] {
        let address = guest.options().address_of(index);
        let line = format!("chan=$(cat /sys/bus/pci/devices/{address}/ptdma/index) {event}");
        guest
            .ok(&format!("grep -q \"{line}\" {TRACE}"))
            .with_context(|| format!("no trace event {event} of function {index}"))?;
    }
    let (failed, hangs) = (counts(guest, "failed")?, counts(guest, "hangs")?);
    ensure!(
        failed[2] > after[4][2] && hangs[3] > 0,
        "failed {failed:?}, hangs {hangs:?}"
    );
    stop_after_faults(guest)?;
    Ok(format!("{began} batches traced"))
}
