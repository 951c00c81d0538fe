//! Debian's own kernels, unchanged: the device `/dev/ptdma_move` moves batches of small folios.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::kshim::{
    ALL, BYTES, FAILURES, MIGRATED, PARAMETERS, QUARANTINED, TIMEOUT, all_by_device, all_running,
    expect_none_held, sum_of,
};
use super::mover::{Load, PROGRAM_LIMIT, Report, get, mover, run, set, wait_to_grow, wait_until};
use super::stock_debian::{disable, enable, sees_a_wrong_byte};
use super::{ALL_PACKAGED, Check, DEBIAN, DEBIAN_612, Suite};
use crate::kernel::Variant;
use crate::machine::{Guest, Options};

/// Small folios of which a mover has eight windows of the device, to and fro.
const SMALL: u64 = 4;
const MOVES: &str = "--call device --bytes 16M --rounds 4";
const WRITTEN: &str = "--call device --bytes 16M --rounds 4 --writers 1";
/// Pages of a window: one batch.
const WINDOW_PAGES: u64 = 512;

pub(super) const SUITES: &[Suite] = &[
    Suite {
        name: "stock-debian-device",
        about: "Debian's own kernels move batches of small folios by engines, through the device",
        kernels: ALL_PACKAGED,
        machine: || Options {
            devices: 4,
            append: "hugepages=8".into(),
            modules: vec!["kshim"],
            ..Options::default()
        },
        checks: &[
            Check::new("moves", moves).quick(DEBIAN_612),
            Check::new("kinds", kinds).quick(DEBIAN_612),
            Check::new("writers-and-movers", writers_and_movers),
            Check::new("failed-descriptors", failed_descriptors).quick(DEBIAN_612),
            Check::new("hangs", hangs),
            Check::new("quarantine", quarantine).quick(DEBIAN_612),
            Check::new("killed-in-flight", killed_in_flight),
            Check::new("poison-in-flight", poison_in_flight),
            Check::new("wrong-byte-is-seen", wrong_byte_is_seen),
            Check::new("functions-come-and-go", functions_come_and_go),
            Check::new("beside-the-livepatch", beside_the_livepatch),
            Check::new("command", command),
        ],
    },
    Suite {
        name: "stock-debian-swap",
        about: "pages that are being written to swap, and pages of the swap cache, by the device",
        // The other kernels pack the disk's driver.
        kernels: DEBIAN,
        machine: || Options {
            devices: 2,
            slow_disk: true,
            modules: vec!["kshim"],
            ..Options::default()
        },
        checks: &[Check::new("writeback", writeback)],
    },
];

fn start(guest: &mut Guest) -> Result<()> {
    guest.ok("modprobe ptdma_migrator selftest=1 && modprobe ptdma_move")?;
    guest.server()?.reset_counters()?;
    Ok(())
}

/// Gives everything back.
fn end(guest: &mut Guest) -> Result<()> {
    expect_none_held(guest)?;
    guest.ok("rmmod ptdma_move && rmmod ptdma_migrator")?;
    guest.expect_clean_dmesg()
}

/// What the device says of all that a program had it move, in bytes.
fn fate(report: &Report, name: &str) -> Result<u64> {
    report.number(&format!("/fates/{name}"))
}

/// Moves small folios, all of them by engines, each with about as much as the others: scattered
/// folios are cut where one ends.
fn move_all(guest: &mut Guest) -> Result<u64> {
    let report = run(guest, &mover(SMALL, MOVES, &ALL))?;
    let each = guest.server()?.counters_by_device()?;
    let asked = report.number("/bytes")? * report.number("/rounds")?;
    let share = asked / each.len() as u64;
    let least = share - share / 16;
    ensure!(
        each.iter().all(|counters| counters.bytes >= least),
        "not {least} bytes each: {each:?}"
    );
    let (engines, cpu) = (fate(&report, "by_engines")?, fate(&report, "by_cpu")?);
    // A page that was busy for a moment moves by the next call, and alone is no batch.
    ensure!(
        engines + cpu == asked && cpu <= asked / 64,
        "{engines} bytes by engines and {cpu} by the CPU of {asked}: {report:?}"
    );
    let counters = guest.server()?.reset_counters()?;
    ensure!(
        counters.bytes == report.counter(BYTES)?
            && counters.bytes == engines
            && counters.errors == 0
            && report.counter(FAILURES)? == 0,
        "the devices copied {} bytes, with {} errors: {report:?}",
        counters.bytes,
        counters.errors
    );
    report.folios_moved()
}

/// Small folios go by engines in batches, a window each; a few pages are left to the CPU.
fn moves(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    let batches = format!("{PARAMETERS}/batches");
    let before = get(guest, &batches)?;
    let moved = move_all(guest)?;
    let batches = get(guest, &batches)? - before;
    ensure!(
        batches == moved / WINDOW_PAGES,
        "{moved} folios made {batches} batches"
    );
    let report = run(
        guest,
        &mover(SMALL, "--call device --bytes 16K --rounds 4", &ALL),
    )?;
    ensure!(
        report.counter(MIGRATED)? == 0 && fate(&report, "by_cpu")? == 4 * (16 << 10),
        "four pages are worth a batch? {report:?}"
    );
    guest.server()?.reset_counters()?;
    // Huge folios are split on demand, and go by engines, too.
    let report = run(guest, &mover(2048, "--call device --bytes 8M", &ALL))?;
    all_by_device(guest, &report)?;
    end(guest)?;
    Ok(format!(
        "{}: {moved} folios in {batches} batches",
        guest.release()
    ))
}

/// Each kind of memory has its answer, and so has who may not move it. Without a function in
/// service, answers are the same.
fn kinds(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    let keeps_huge = match guest.options().kernel {
        Variant::Debian73 => "--keeps-huge",
        _ => "",
    };
    let report = run(guest, &format!("kinds {keeps_huge}"))?;
    let by_engines = get(guest, MIGRATED)?;
    ensure!(by_engines > 0, "engines have moved nothing");
    let tests = report.number("/tests")?;
    set(guest, &format!("{PARAMETERS}/min_batch_kb"), "1048576")?;
    run(guest, "kinds small pinned shared-by-fork signals")?;
    ensure!(get(guest, MIGRATED)? == by_engines, "engines are off");
    end(guest)?;
    Ok(format!("{tests} kinds"))
}

/// Several movers of the same memory, which find each other's pages locked, and writers.
fn writers_and_movers(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    let (mut writes, mut busy) = (0, 0);
    for more in ["--movers 2", "--movers 4 --overlap"] {
        let more = format!("{MOVES} --writers 2 {more}");
        let report = run(guest, &mover(SMALL, &more, &[MIGRATED]))?;
        ensure!(report.counter(MIGRATED)? > 0, "{report:?}");
        writes += report.number("/writes")?;
        busy += fate(&report, "busy")?;
    }
    ensure!(writes > 0, "the writers wrote nothing");
    ensure!(busy > 0, "no mover met pages that another one had locked");
    end(guest)?;
    Ok(format!("{writes} writes, {busy} bytes found busy"))
}

/// What a failed descriptor was for, the CPU copies; nothing else.
fn failed_descriptors(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    for offset in [5, 6] {
        let fault = json!({
            "trigger": {"every": {"n": 16, "offset": offset}},
            "kind": {"error": {"code": 19}},
        });
        guest.server()?.fault(None, &fault)?;
    }
    let report = run(guest, &mover(SMALL, WRITTEN, &ALL))?;
    let seen = guest.server()?.counters()?;
    let (engines, cpu) = (fate(&report, "by_engines")?, fate(&report, "by_cpu")?);
    let asked = report.number("/bytes")? * report.number("/rounds")?;
    ensure!(
        seen.errors > 0 && engines + cpu == asked && cpu > 0 && cpu < asked / 4,
        "{} errors, {engines} bytes by engines, {cpu} by the CPU of {asked}",
        seen.errors
    );
    guest.server()?.clear_faults(None)?;
    guest.server()?.reset_counters()?;
    move_all(guest)?;
    end(guest)?;
    Ok(format!(
        "{} errors, {cpu} of {asked} bytes by the CPU",
        seen.errors
    ))
}

/// An engine stands still for good: it is stopped, the CPU copies its part, it comes back.
fn hangs(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    set(guest, TIMEOUT, "300")?;
    for haltable in [true, false] {
        let stall = json!({
            "trigger": {"at": 3},
            "kind": {"stall": {"for": "ever", "haltable": haltable}},
        });
        guest.server()?.fault(Some(2), &stall)?;
        let report = run(guest, &mover(SMALL, WRITTEN, &ALL))?;
        ensure!(fate(&report, "by_engines")? > 0, "{report:?}");
        guest.server()?.clear_faults(None)?;
        all_running(guest)?;
        guest.server()?.reset_counters()?;
        move_all(guest)?;
    }
    let hangs = sum_of(guest, "hangs")?;
    ensure!(hangs >= 2, "{hangs} hangs");
    end(guest)?;
    Ok(format!("{hangs} hangs"))
}

/// A function falls silent in the middle of a batch. Its pages stay where they are, and move by
/// another call; nobody uses their new places until the engine is proved stopped.
fn quarantine(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    set(guest, TIMEOUT, "300")?;
    guest.server()?.fault(
        Some(2),
        &json!({"trigger": {"at": 3}, "kind": {"all_ones": {}}}),
    )?;
    let report = run(guest, &mover(SMALL, WRITTEN, &[MIGRATED]))?;
    let held = get(guest, QUARANTINED)?;
    let told = fate(&report, "held")?;
    ensure!(
        held > 0 && told == held * SMALL * 1024,
        "{held} folios are in quarantine, and the device tells of {told} bytes"
    );
    // The engine wakes up and writes: to pages that nobody has.
    guest.server()?.clear_faults(None)?;
    wait_until(guest, QUARANTINED, "-eq 0")?;
    all_running(guest)?;
    guest.server()?.reset_counters()?;
    move_all(guest)?;
    end(guest)?;
    Ok(format!("{held} folios held, and given back"))
}

/// A process dies while an engine that stands still has its pages.
fn killed_in_flight(guest: &mut Guest) -> Result<String> {
    /// Twice the limit of a batch, below, and a busy host.
    const SOON: Duration = Duration::from_secs(20);
    start(guest)?;
    set(guest, TIMEOUT, "1000")?;
    let stall = json!({
        "trigger": {"every": {"n": 8, "offset": 3}},
        "kind": {"stall": {"for": "ever", "haltable": true}},
    });
    guest.server()?.fault(None, &stall)?;
    let job = guest.start(
        &mover(SMALL, "--call device --bytes 16M --for-ms 60000", &[]),
        PROGRAM_LIMIT,
    )?;
    wait_to_grow(guest, &format!("{PARAMETERS}/batches"))?;
    let soon = guest.scaled(SOON);
    guest.ok_within(
        "kill -9 $(pidof mover) && while pidof mover; do sleep 0.05; done",
        soon,
    )?;
    guest.wait(&job)?;
    guest.server()?.clear_faults(None)?;
    all_running(guest)?;
    guest.server()?.reset_counters()?;
    move_all(guest)?;
    end(guest)?;
    Ok(String::new())
}

/// Pages are declared bad while a batch copies them: the CPU copies those once more, by reads that
/// survive bad memory.
fn poison_in_flight(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    let batches = format!("{PARAMETERS}/batches");
    let report = run(
        guest,
        &format!("poisoner --how hard --device --pages 4 --batches {batches} --counter {MIGRATED}"),
    )?;
    ensure!(report.number("/counter")? > 0, "{report:?}");
    let unreadable = report.number("/unreadable")?;
    end(guest)?;
    Ok(format!("{unreadable} pages cannot be read"))
}

/// The movers see one wrong byte, so what they find right was right.
fn wrong_byte_is_seen(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    sees_a_wrong_byte(guest, &mover(SMALL, MOVES, &[]))?;
    end(guest)?;
    Ok(String::new())
}

/// Functions are unbound and bound while pages move. The module of the device stays while a file
/// of it is open, and the module below it stays while that one does.
fn functions_come_and_go(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    let more = "--call device --bytes 8M --movers 2 --writers 1";
    let load = Load::start(guest, SMALL, more, &[])?;
    wait_to_grow(guest, MIGRATED)?;
    for module in ["ptdma_move", "ptdma_migrator"] {
        let out = guest.sh(&format!("rmmod {module}"))?;
        ensure!(out.code != 0, "{module} goes while it is in use");
    }
    let functions = guest.functions()?;
    let driver = "/sys/bus/pci/drivers/ptdma_migrator";
    for function in &functions {
        guest.ok_within(&format!("echo {function} > {driver}/unbind"), PROGRAM_LIMIT)?;
        wait_to_grow(guest, MIGRATED)?;
        guest.ok_within(&format!("echo {function} > {driver}/bind"), PROGRAM_LIMIT)?;
    }
    // None at all: the CPU copies.
    for verb in ["unbind", "bind"] {
        for function in &functions {
            guest.ok_within(&format!("echo {function} > {driver}/{verb}"), PROGRAM_LIMIT)?;
        }
    }
    wait_to_grow(guest, MIGRATED)?;
    load.end(guest)?;
    let failures = get(guest, FAILURES)?;
    ensure!(failures == 0, "{failures} folios failed");
    guest.server()?.reset_counters()?;
    move_all(guest)?;
    end(guest)?;
    Ok(format!("{} functions", functions.len()))
}

/// A page under writeback stays, or the kernel would stop the machine; once it is written it moves
/// with its entry of the swap cache.
fn writeback(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    guest.ok("modprobe virtio_blk && until [ -b /dev/vda ]; do sleep 0.05; done")?;
    let report = run(guest, "kinds --swap /dev/vda writeback")?;
    ensure!(report.number("/tests")? == 1, "{report:?}");
    ensure!(get(guest, MIGRATED)? > 0, "engines have moved nothing");
    end(guest)?;
    Ok(String::new())
}

/// Both fronts at once, on the same memory and on different memory.
fn beside_the_livepatch(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    enable(guest)?;
    let load = Load::start(guest, 2048, "--bytes 16M --movers 2 --writers 1", &[])?;
    wait_to_grow(guest, MIGRATED)?;
    let report = run(guest, &mover(SMALL, WRITTEN, &[MIGRATED]))?;
    let engines = fate(&report, "by_engines")?;
    ensure!(engines > 0, "{report:?}");
    wait_to_grow(guest, MIGRATED)?;
    load.end(guest)?;
    disable(guest)?;
    end(guest)?;
    Ok(format!("{engines} bytes by the device"))
}

/// The command of the package moves small pages by the device: its own, and those of a process that
/// has the device open.
fn command(guest: &mut Guest) -> Result<String> {
    let json = |guest: &mut Guest, command: &str| -> Result<Value> {
        // Its stack and the like may stay where they are, which is exit status 1.
        let out = guest.sh(&format!("ptdma {command} --json"))?;
        serde_json::from_str(&out.text).with_context(|| out.text.clone())
    };
    start(guest)?;
    let status = json(guest, "status")?;
    ensure!(status["device"] == true, "{status}");
    let bench = json(guest, "bench --small --mib 16")?;
    let (cpu, engines) = (&bench[0], &bench[1]);
    ensure!(
        cpu["engine_bytes"] == 0
            && engines["engine_bytes"] == engines["moved_bytes"]
            && engines["moved_bytes"] == cpu["moved_bytes"],
        "{bench}"
    );
    let load = Load::start(
        guest,
        SMALL,
        "--call device --bytes 16M --writers 1 --overlap",
        &[],
    )?;
    wait_to_grow(guest, MIGRATED)?;
    guest.ok("kill -STOP $(pidof mover)")?;
    let mut moved = Vec::new();
    for node in [1, 0, 1] {
        let told = json(guest, &format!("move $(pidof mover) --to {node}"))?;
        moved.push((told["moved_bytes"].as_u64(), told["device_bytes"].as_u64()));
    }
    guest.ok("kill -CONT $(pidof mover)")?;
    load.end(guest)?;
    // Where it stood, nobody knows: the first move may find all of it there.
    const MEMORY: u64 = 16 << 20;
    ensure!(
        moved[1..].iter().all(|(all, by_device)| {
            all.is_some_and(|all| all >= MEMORY) && by_device.is_some_and(|some| some >= MEMORY)
        }),
        "not all of {MEMORY} bytes went by the device: {moved:?}"
    );
    end(guest)?;
    Ok(format!("{} bytes by engines", engines["engine_bytes"]))
}
