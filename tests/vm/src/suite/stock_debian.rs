//! Debian's own kernels, unchanged: the livepatch leads migration to our module.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::kshim::{
    ALL, BYTES, FAILURES, MIGRATED, QUARANTINED, TIMEOUT, all_by_device, all_running,
    expect_none_held, expect_woken, sum_of,
};
use super::mover::{Load, PROGRAM_LIMIT, get, mover, run, set, wait_to_grow, wait_until};
use super::{Check, DEBIAN_612, PACKAGED, Suite};
use crate::machine::{Guest, Options};

const LIVEPATCHES: &str = "/sys/kernel/livepatch";
const OURS: &str = "ptdma_livepatch";
const DECLINED: &str = "/sys/module/ptdma_migrator/parameters/batches_declined";

/// A livepatch waits for each task to leave the function; one may be at a batch that times out.
const TRANSITION_LIMIT: Duration = Duration::from_secs(60);

/// Huge folios of which a mover has 16, to and fro.
const HUGE: u64 = 2048;
const MOVES: &str = "--bytes 32M --rounds 4";

/// Of those folios four functions meet enough descriptors: four for each folio.
const WRITTEN: &str = "--bytes 32M --rounds 4 --writers 1";

pub(super) const SUITES: &[Suite] = &[Suite {
    name: "stock-debian",
    about: "Debian's own kernels move huge folios by engines, through the livepatch",
    kernels: PACKAGED,
    machine: || Options {
        devices: 4,
        append: "hugepages=32".into(),
        modules: vec!["kshim"],
        ..Options::default()
    },
    checks: &[
        Check::new("sizes", sizes).quick(DEBIAN_612),
        Check::new("callers", callers).quick(DEBIAN_612),
        Check::new("writers-and-movers", writers_and_movers),
        Check::new("failed-descriptors", failed_descriptors).quick(DEBIAN_612),
        Check::new("hangs", hangs),
        Check::new("quarantine", quarantine).quick(DEBIAN_612),
        Check::new("wrong-byte-is-seen", wrong_byte_is_seen),
        Check::new("unload-under-load", unload_under_load),
        Check::new("command", command).quick(DEBIAN_612),
    ],
}];

/// Loads the module, and then the livepatch; both are at work on return.
fn start(guest: &mut Guest) -> Result<()> {
    guest.ok("modprobe ptdma_migrator selftest=1")?;
    enable(guest)?;
    guest.server()?.reset_counters()?;
    Ok(())
}

pub(crate) fn enable(guest: &mut Guest) -> Result<()> {
    enable_livepatch(guest, OURS)
}

pub(crate) fn disable(guest: &mut Guest) -> Result<()> {
    disable_livepatch(guest, OURS)
}

/// Loads a livepatch, which is in force on return.
pub(super) fn enable_livepatch(guest: &mut Guest, module: &str) -> Result<()> {
    let folder = format!("{LIVEPATCHES}/{module}");
    guest
        .ok_within(
            &format!(
                "modprobe {module} && until [ $(cat {folder}/transition) = 0 ]; do sleep 0.05; done"
            ),
            TRANSITION_LIMIT,
        )
        .map(drop)
        .context("the livepatch does not come into force")
}

/// Disables and removes a livepatch.
pub(super) fn disable_livepatch(guest: &mut Guest, module: &str) -> Result<()> {
    let folder = format!("{LIVEPATCHES}/{module}");
    guest
        .ok_within(
            &format!(
                "echo 0 > {folder}/enabled && while [ -e {folder} ]; do sleep 0.05; done; \
                 until rmmod {module} 2> /dev/null; do sleep 0.05; done"
            ),
            TRANSITION_LIMIT,
        )
        .map(drop)
        .context("the livepatch does not go")
}

/// Gives everything back.
fn end(guest: &mut Guest) -> Result<()> {
    disable(guest)?;
    expect_none_held(guest)?;
    guest.ok("rmmod ptdma_migrator")?;
    guest.expect_clean_dmesg()
}

/// Moves huge folios, all of them by engines.
fn move_huge(guest: &mut Guest, more: &str) -> Result<u64> {
    let report = run(guest, &mover(HUGE, more, &ALL))?;
    all_by_device(guest, &report)?;
    report.folios_moved()
}

/// Huge folios go by engines, and by them only while the livepatch is there. Small folios, and
/// those of shared memory, meet nothing of ours.
fn sizes(guest: &mut Guest) -> Result<String> {
    guest.ok("modprobe ptdma_migrator selftest=1")?;
    run(guest, &mover(HUGE, MOVES, &[]))?;
    ensure!(get(guest, MIGRATED)? == 0, "who has led the kernel here?");

    start(guest)?;
    let moved = move_huge(guest, MOVES)?;
    move_huge_by_all(guest)?;
    for more in [
        "--folio 4K --bytes 8M --rounds 2",
        "--folio 2048K --kind shmem --bytes 8M --rounds 2",
    ] {
        let command = format!("mover {more} --counter {MIGRATED} --counter {DECLINED}");
        let report = run(guest, &command)?;
        ensure!(
            report.counter(MIGRATED)? == 0 && report.counter(DECLINED)? == 0,
            "`{command}` came to the module: {report:?}"
        );
    }
    move_huge(guest, "--kind hugetlb --bytes 16M --rounds 4")?;
    expect_woken(guest)?;
    end(guest)?;
    run(guest, &mover(HUGE, MOVES, &[]))?;
    Ok(format!(
        "{}: {moved} huge folios by engines",
        guest.release()
    ))
}

/// Each folio is cut into equal parts for all functions.
fn move_huge_by_all(guest: &mut Guest) -> Result<()> {
    let report = run(guest, &mover(HUGE, MOVES, &ALL))?;
    let each = guest.server()?.counters_by_device()?;
    let share = report.counter(BYTES)? / each.len() as u64;
    ensure!(
        each.iter().all(|counters| counters.bytes == share),
        "not {share} bytes each: {each:?}"
    );
    all_by_device(guest, &report)
}

/// `move_pages(2)` is in every other check; these are the other ways to migrate huge folios.
fn callers(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    for call in ["migrate_pages", "mbind"] {
        move_huge(guest, &format!("--call {call} {MOVES}"))?;
    }
    guest.ok("mount -t debugfs none /sys/kernel/debug 2> /dev/null; true")?;
    let report = run(
        guest,
        &format!("balancer --bytes-mib 32 --folio-kib {HUGE} --counter {MIGRATED}"),
    )?;
    let balanced = report.number("/counter")?;
    ensure!(balanced > 0, "balancing did not use engines: {report:?}");
    end(guest)?;
    Ok(format!("{balanced} folios by balancing"))
}

/// Several movers of the same memory, and threads that write to it.
fn writers_and_movers(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    let mut writes = 0;
    for more in ["--movers 2", "--movers 4 --overlap"] {
        let more = format!("{MOVES} --writers 2 {more}");
        let report = run(guest, &mover(HUGE, &more, &[MIGRATED]))?;
        ensure!(report.counter(MIGRATED)? > 0, "{report:?}");
        writes += report.number("/writes")?;
    }
    ensure!(writes > 0, "the writers wrote nothing");
    end(guest)?;
    Ok(format!("{writes} writes"))
}

/// Of a folio of which descriptors fail, the CPU copies their part, and nothing else.
fn failed_descriptors(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    // Twice in a row: the first one shows where the head stays, or is healed by a replay.
    for offset in [5, 6] {
        let fault = json!({
            "trigger": {"every": {"n": 16, "offset": offset}},
            "kind": {"error": {"code": 19}},
        });
        guest.server()?.fault(None, &fault)?;
    }
    let report = run(guest, &mover(HUGE, WRITTEN, &ALL))?;
    let seen = guest.server()?.counters()?;
    let (bytes, failures) = (report.counter(BYTES)?, report.counter(FAILURES)?);
    let repaired = bytes.saturating_sub(seen.bytes);
    ensure!(
        seen.errors > 0 && failures == 0 && report.counter(MIGRATED)? >= report.folios_moved()?,
        "{} errors: {report:?}",
        seen.errors
    );
    ensure!(
        repaired > 0 && repaired < bytes / 4,
        "the CPU has copied {repaired} of {bytes} bytes, after {} errors",
        seen.errors
    );
    guest.server()?.clear_faults(None)?;
    guest.server()?.reset_counters()?;
    move_huge(guest, MOVES)?;
    end(guest)?;
    Ok(format!(
        "{} errors, {repaired} of {bytes} bytes by the CPU",
        seen.errors
    ))
}

/// An engine stands still for good: it is stopped, its folio goes by the CPU, it comes back.
fn hangs(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    set(guest, TIMEOUT, "300")?;
    for haltable in [true, false] {
        let stall = json!({
            "trigger": {"at": 3},
            "kind": {"stall": {"for": "ever", "haltable": haltable}},
        });
        guest.server()?.fault(Some(2), &stall)?;
        let report = run(guest, &mover(HUGE, WRITTEN, &ALL))?;
        ensure!(report.counter(MIGRATED)? > 0, "{report:?}");
        guest.server()?.clear_faults(None)?;
        all_running(guest)?;
        guest.server()?.reset_counters()?;
        move_huge_by_all(guest)?;
    }
    let hangs = sum_of(guest, "hangs")?;
    ensure!(hangs >= 2, "{hangs} hangs");
    end(guest)?;
    Ok(format!("{hangs} hangs"))
}

/// A function falls silent in the middle of a copy. The folio's migration fails, the kernel undoes
/// it and does it again with another destination; the first one is used by nobody until the engine
/// is proved stopped.
fn quarantine(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    set(guest, TIMEOUT, "300")?;
    guest.server()?.fault(
        Some(2),
        &json!({"trigger": {"at": 3}, "kind": {"all_ones": {}}}),
    )?;
    run(guest, &mover(HUGE, WRITTEN, &[MIGRATED]))?;
    let held = get(guest, QUARANTINED)?;
    ensure!(held > 0, "nothing is in quarantine");
    // The engine wakes up and writes: to pages that nobody has.
    guest.server()?.clear_faults(None)?;
    wait_until(guest, QUARANTINED, "-eq 0")?;
    all_running(guest)?;
    guest.server()?.reset_counters()?;
    move_huge_by_all(guest)?;
    end(guest)?;
    Ok(format!("{held} folios held, and given back"))
}

/// Runs movers while a function writes one wrong byte, which they must see.
pub(super) fn sees_a_wrong_byte(guest: &mut Guest, movers: &str) -> Result<()> {
    guest.server()?.fault(
        Some(1),
        &json!({"trigger": {"at": 0}, "kind": "silent_corruption"}),
    )?;
    let out = guest.sh(movers)?;
    guest.server()?.clear_faults(None)?;
    ensure!(
        out.code != 0 && out.text.contains("FAIL"),
        "a wrong byte was not seen: {}",
        out.text
    );
    Ok(())
}

/// The movers see one wrong byte, so what they find right was right: nobody has copied again.
fn wrong_byte_is_seen(guest: &mut Guest) -> Result<String> {
    start(guest)?;
    sees_a_wrong_byte(guest, &mover(HUGE, MOVES, &[]))?;
    end(guest)?;
    Ok(String::new())
}

/// The livepatch comes and goes, and the module after it, while folios move and are written.
fn unload_under_load(guest: &mut Guest) -> Result<String> {
    const TIMES: u32 = 4;
    let load = Load::start(guest, HUGE, "--bytes 16M --movers 2 --writers 1", &[])?;
    let mut moved = 0;
    for _ in 0..TIMES {
        start(guest)?;
        wait_to_grow(guest, MIGRATED)?;
        // The livepatch uses the module.
        let out = guest.sh("rmmod ptdma_migrator")?;
        ensure!(out.code != 0, "the module goes while the livepatch uses it");
        disable(guest)?;
        moved += get(guest, MIGRATED)?;
        let failures = get(guest, FAILURES)?;
        ensure!(failures == 0, "{failures} folios failed");
        guest.ok_within("rmmod ptdma_migrator", PROGRAM_LIMIT)?;
    }
    load.end(guest)?;
    guest.expect_clean_dmesg()?;
    Ok(format!("{TIMES} times, {moved} folios by engines"))
}

/// The command of the package: what it says in each state, memory of another process, both ways of
/// copying.
fn command(guest: &mut Guest) -> Result<String> {
    let status = |guest: &mut Guest| -> Result<Value> {
        Ok(serde_json::from_str(&guest.ok("ptdma status --json")?)?)
    };
    let next = |status: &Value| status["next"].as_str().unwrap_or_default().to_owned();
    let before = status(guest)?;
    ensure!(
        next(&before).contains("not loaded")
            && before["functions"].as_array().map(Vec::len) == Some(guest.options().devices),
        "{before}"
    );
    let out = guest.sh("ptdma bench --mib 8")?;
    ensure!(out.code == 1, "measured without engines: {}", out.text);
    guest.ok("modprobe ptdma_migrator")?;
    guest.ok("ptdma selftest")?;
    let off = status(guest)?;
    ensure!(next(&off).contains("ptdma_livepatch"), "{off}");
    start(guest)?;
    let on = status(guest)?;
    ensure!(on["front"] == "livepatch" && on["next"].is_null(), "{on}");

    let bench: Value = serde_json::from_str(&guest.ok("ptdma bench --mib 32 --json")?)?;
    let (cpu, engines) = (&bench[0], &bench[1]);
    ensure!(
        cpu["engine_bytes"] == 0
            && engines["engine_bytes"] == engines["moved_bytes"]
            && engines["moved_bytes"] == cpu["moved_bytes"],
        "{bench}"
    );
    // Memory of another process, which stands meanwhile: it would move its memory itself.
    let load = Load::start(guest, HUGE, "--bytes 16M --writers 1 --overlap", &[])?;
    // It has to find its memory where it has put it, once.
    wait_to_grow(guest, MIGRATED)?;
    guest.ok("kill -STOP $(pidof mover)")?;
    let mut moved = Vec::new();
    for node in [1, 0, 1] {
        // Its stack and the like may stay where they are, which is exit status 1.
        let out = guest.sh(&format!("ptdma move $(pidof mover) --to {node} --json"))?;
        let told: Value = serde_json::from_str(&out.text).context(out.text.clone())?;
        moved.push((told["moved_bytes"].as_u64(), told["engine_bytes"].as_u64()));
    }
    guest.ok("kill -CONT $(pidof mover)")?;
    load.end(guest)?;
    // Where it stood, nobody knows: the first move may find all of it there.
    const MEMORY: u64 = 16 << 20;
    ensure!(
        moved[1..].iter().all(|(all, by_engines)| {
            all.is_some_and(|all| all >= MEMORY) && by_engines.is_some_and(|some| some >= MEMORY)
        }),
        "not all of {MEMORY} bytes went by engines: {moved:?}"
    );
    for (words, code) in [
        ("move 999999 --to 1", 1),
        ("move 1 --to 77", 1),
        ("move 1 --to 1 --range 5-6", 2),
        ("bench --from 1 --to 1", 1),
    ] {
        let out = guest.sh(&format!("ptdma {words}"))?;
        ensure!(
            out.code == code,
            "`ptdma {words}`: {} {}",
            out.code,
            out.text
        );
    }
    guest.ok("ptdma status | head -n 1")?;
    end(guest)?;
    Ok(format!("{} bytes by engines", engines["engine_bytes"]))
}
