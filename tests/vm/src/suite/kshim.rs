//! Our migrator: every size, every fault of the device, removal, reset, suspend.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::kshim_load::NTH;
use super::mover::{
    FOLIO_KIB, Load, PROGRAM_LIMIT, Report, get, mover, parse, run, set, wait_to_grow, wait_until,
};
use super::workload::{self, Workload};
use super::{BOTH, Check, FAST, Suite, kshim_busy, kshim_controls, suspend};
use crate::machine::{Guest, Iommu, Options};

pub(super) const PARAMETERS: &str = "/sys/module/ptdma_migrator/parameters";
pub(super) const OFFLOADING: &str = "/sys/module/ptdma_migrator/parameters/offloading";
pub(super) const CHANNELS: &str = "/sys/module/ptdma_migrator/parameters/nr_dma_chan";
const REASONS: &str = "/sys/module/ptdma_migrator/parameters/reason_mask";
pub(super) const SMALLEST: &str = "/sys/module/ptdma_migrator/parameters/min_batch_kb";
pub(super) const RING: &str = "/sys/module/ptdma_migrator/parameters/ring_entries";
pub(super) const TIMEOUT: &str = "/sys/module/ptdma_migrator/parameters/timeout_ms";
pub(super) const MIGRATED: &str = "/sys/module/ptdma_migrator/parameters/folios_migrated";
pub(super) const FAILURES: &str = "/sys/module/ptdma_migrator/parameters/folios_failures";
pub(super) const BYTES: &str = "/sys/module/ptdma_migrator/parameters/bytes_migrated";
pub(super) const QUARANTINED: &str = "/sys/module/ptdma_migrator/parameters/folios_quarantined";

/// Movers beside which something happens.
pub(super) const LOAD: &str = "--bytes 8M --movers 2 --writers 1";

const TRACE: &str = "/sys/kernel/tracing/trace";

/// The counters that a check of every byte takes.
pub(super) const ALL: [&str; 3] = [MIGRATED, FAILURES, BYTES];

pub(super) const SUITES: &[Suite] = &[
    Suite {
        name: "kshim",
        about: "our migrator on sixteen functions: every size, every fault, removal, reset, suspend",
        kernels: BOTH,
        machine: || Options {
            devices: 16,
            modules: vec!["kshim", "testfail"],
            ..Options::default()
        },
        checks: &[
            Check::new("self-test", self_test).quick(BOTH),
            Check::new("controls", kshim_controls::ranges).quick(BOTH),
            Check::new("controls-act", kshim_controls::act).quick(FAST),
            Check::new("statistics", kshim_controls::statistics).quick(FAST),
            Check::new("every-size", every_size).quick(FAST),
            Check::new("one-huge-folio", one_huge_folio).quick(FAST),
            Check::new("reasons", reasons).quick(FAST),
            Check::new("writers-and-movers", |guest| {
                active(guest, workload::writers_and_movers)
            })
            .quick(FAST),
            Check::new("failed-descriptors", failed_descriptors).quick(FAST),
            Check::new("faults", faults).quick(FAST),
            Check::new("hangs", hangs).quick(FAST),
            Check::new("quarantine", quarantine),
            Check::new("reset-and-rebind", reset_and_rebind),
            Check::new("module-removal", module_removal).quick(FAST),
            Check::new("all-batches", kshim_busy::all_batches),
            // The debug kernel is too slow to have all batches in flight when the engine stops.
            Check::new("all-in-quarantine", kshim_busy::all_in_quarantine).only_fast(),
            Check::new("two-minutes", two_minutes),
            Check::spoiling("suspend-to-idle", suspend::to_idle).quick(FAST),
            Check::spoiling("suspend-to-ram", suspend::to_ram),
            Check::spoiling("suspend-hung", suspend::hung),
            Check::spoiling("shutdown", suspend::shutdown),
            Check::soak("load-1000-times", load_1000_times),
            Check::soak("two-hours", two_hours),
        ],
    },
    Suite {
        name: "kshim-migrations",
        about: "our migrator under every way in which the kernel migrates",
        kernels: BOTH,
        machine: || Options {
            devices: 4,
            // Half of each node is movable, so that memory blocks can go offline.
            append: "kernelcore=50%".into(),
            modules: vec!["kshim"],
            ..Options::default()
        },
        checks: &[
            Check::new("migrate-pages-and-mbind", |guest| {
                active(guest, workload::calls)
            })
            .quick(FAST),
            Check::new("unmapped-file-systems", |guest| {
                active(guest, workload::files)
            }),
            Check::new("compaction", |guest| active(guest, workload::compaction)).quick(FAST),
            Check::new("numa-balancing", |guest| active(guest, workload::balancing)).quick(FAST),
            Check::new("hot-unplug", |guest| active(guest, workload::hot_unplug)).quick(FAST),
        ],
    },
    Suite {
        name: "kshim-removal",
        about: "devices that vanish under load: unplugged, killed, all of them",
        kernels: BOTH,
        machine: || Options {
            devices: 16,
            separate_servers: true,
            modules: vec!["kshim", "testfail"],
            ..Options::default()
        },
        checks: &[
            Check::new("unplug", unplug),
            Check::new("bus-errors", bus_errors),
            Check::spoiling("kill-one", kill_one).quick(FAST),
            Check::spoiling("kill-and-pull", kill_and_pull),
            Check::spoiling("kill-all", kill_all),
        ],
    },
    Suite {
        name: "kshim-intel-iommu",
        about: "our migrator behind Intel's IOMMU",
        kernels: BOTH,
        machine: || Options {
            devices: 4,
            iommu: Iommu::Intel,
            modules: vec!["kshim"],
            ..Options::default()
        },
        checks: &[
            Check::new("self-test", self_test).quick(FAST),
            Check::new("every-size", every_size),
            Check::new("contiguous", contiguous).quick(FAST),
            Check::new("failed-descriptors", failed_descriptors),
        ],
    },
    Suite {
        name: "kshim-amd-iommu",
        about: "our migrator behind AMD's IOMMU",
        kernels: FAST,
        machine: || Options {
            devices: 4,
            iommu: Iommu::Amd,
            modules: vec!["kshim"],
            ..Options::default()
        },
        checks: &[
            Check::new("self-test", self_test).quick(FAST),
            Check::new("every-size", every_size),
            Check::new("contiguous", contiguous).quick(FAST),
        ],
    },
];

/// Loads the module and has it copy every batch with `channels` channels, also those that the cost
/// model would leave to the CPU.
pub(super) fn start(guest: &mut Guest, channels: usize) -> Result<()> {
    guest.ok("modprobe ptdma_migrator")?;
    set(guest, SMALLEST, "4")?;
    set(guest, CHANNELS, &channels.to_string())?;
    set(guest, OFFLOADING, "1")?;
    guest.server()?.reset_counters()?;
    Ok(())
}

/// After work without faults: the interrupt's handler wakes those who wait for it. One who is not
/// woken goes on when its time is over, and only loses that time, so nothing else shows it.
pub(super) fn expect_woken(guest: &mut Guest) -> Result<()> {
    // A busy host may keep an engine, or the interrupt, from running in time.
    const LATE: u64 = 8;
    let (sleeps, overdue) = (sum_of(guest, "sleeps")?, sum_of(guest, "overdue_waits")?);
    ensure!(
        overdue <= sleeps / 2 + LATE,
        "{overdue} of {sleeps} sleeps were not ended by an interrupt"
    );
    Ok(())
}

/// Behind an IOMMU: so many bytes are mapped for each function, and no more. A mapping that is
/// forgotten harms nobody for days, as there are enough addresses, so nothing else shows it.
fn expect_mapped(guest: &mut Guest, wanted: u64) -> Result<()> {
    // Mappings may be forgotten in batches, for which the kernel takes hundredths of a second.
    const LIMIT: Duration = Duration::from_secs(5);
    if !is_translated(guest) {
        return Ok(());
    }
    let deadline = Instant::now() + guest.scaled(LIMIT);
    loop {
        let mapped = guest.server()?.mapped_bytes()?;
        if mapped.iter().all(|&bytes| bytes == wanted) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{mapped:?} bytes are mapped for the functions, not {wanted} each"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// With no batch in flight a function can reach its ring, and nothing else.
pub(super) fn expect_rings_mapped(guest: &mut Guest) -> Result<()> {
    const DESCRIPTOR_BYTES: u64 = 32;
    let entries = get(guest, RING)?;
    expect_mapped(guest, entries * DESCRIPTOR_BYTES)
}

pub(super) fn stop(guest: &mut Guest) -> Result<()> {
    expect_woken(guest)?;
    set(guest, OFFLOADING, "0")?;
    expect_rings_mapped(guest)?;
    guest.expect_clean_dmesg()
}

/// A workload with all channels.
fn active(guest: &mut Guest, workload: Workload) -> Result<String> {
    start(guest, guest.options().devices)?;
    let note = workload(guest, MIGRATED)?;
    stop(guest)?;
    Ok(note)
}

fn reasons(guest: &mut Guest) -> Result<String> {
    start(guest, 2)?;
    let note = workload::reasons(guest, MIGRATED, REASONS)?;
    stop(guest)?;
    Ok(note)
}

/// Folios in quarantine come out as soon as a work item has proved their engines stopped.
pub(super) fn expect_none_held(guest: &mut Guest) -> Result<()> {
    // A reset takes 0.1 s, by the PCI specification; sixteen functions share the work queue.
    const LIMIT: Duration = Duration::from_secs(10);
    let limit = guest.scaled(LIMIT);
    guest
        .ok_within(
            &format!("until [ $(cat {QUARANTINED}) = 0 ]; do sleep 0.05; done"),
            limit,
        )
        .map(drop)
        .context("folios are still in quarantine")
}

/// After faults: the module has complained, and gives everything back when it goes.
pub(super) fn stop_after_faults(guest: &mut Guest) -> Result<()> {
    guest.server()?.clear_faults(None)?;
    set(guest, OFFLOADING, "0")?;
    expect_none_held(guest)?;
    expect_rings_mapped(guest)?;
    guest.ok("rmmod ptdma_migrator")?;
    expect_mapped(guest, 0)?;
    guest.expect_clean_dmesg()
}

/// Every folio that moved was copied by the devices, and nothing else was.
pub(super) fn all_by_device(guest: &mut Guest, report: &Report) -> Result<()> {
    let moved = report.folios_moved()?;
    let (migrated, failures) = (report.counter(MIGRATED)?, report.counter(FAILURES)?);
    let counters = guest.server()?.reset_counters()?;
    // The kernel may have split folios between rounds, so their size says nothing.
    let bytes = report.counter(BYTES)?;
    let least = report.number("/bytes")? * report.number("/rounds")?;
    ensure!(
        failures == 0 && migrated >= moved && moved > 0,
        "{moved} folios moved, {migrated} by the devices, {failures} failures"
    );
    ensure!(
        counters.bytes == bytes && bytes >= least && counters.errors == 0,
        "the devices copied {} bytes of {bytes} (at least {least}), with {} errors",
        counters.bytes,
        counters.errors
    );
    Ok(())
}

fn self_test(guest: &mut Guest) -> Result<String> {
    guest.ok("modprobe ptdma_migrator selftest=1")?;
    let text = guest.ok(&format!("cat {PARAMETERS}/selftest"))?;
    let devices = guest.options().devices;
    let passed = text.lines().filter(|line| line.ends_with("passed")).count();
    ensure!(passed == devices, "{passed} of {devices} passed: {text}");

    // A device that copies wrongly is found out: otherwise the test would be none.
    guest.server()?.fault(
        Some(1),
        &json!({"trigger": {"at": 0}, "kind": "silent_corruption"}),
    )?;
    let out = guest.sh(&format!("echo 1 > {PARAMETERS}/selftest"))?;
    let text = guest.ok(&format!("cat {PARAMETERS}/selftest"))?;
    guest.server()?.clear_faults(None)?;
    ensure!(
        out.code != 0 && text.matches("copied bytes are wrong").count() == 1,
        "a wrong byte was not noticed: {text}"
    );
    guest.ok("rmmod ptdma_migrator")?;
    guest.expect_clean_dmesg()?;
    Ok(format!("{devices} channels"))
}

fn every_size(guest: &mut Guest) -> Result<String> {
    let devices = guest.options().devices;
    let mut folios = 0;
    for channels in [1, 2, 4, 8, 16] {
        if channels > devices {
            break;
        }
        start(guest, channels)?;
        for size in FOLIO_KIB {
            for kind in ["anon", "shmem"] {
                let more = format!("--kind {kind} --bytes 8M --rounds 2");
                let report = run(guest, &mover(size, &more, &ALL))?;
                all_by_device(guest, &report)?;
                folios += report.folios_moved()?;
            }
        }
        stop(guest)?;
    }
    Ok(format!("{folios} folios"))
}

/// One 2 MiB folio is cut into parts for all channels.
fn one_huge_folio(guest: &mut Guest) -> Result<String> {
    start(guest, 16)?;
    let report = run(guest, &mover(2048, "--bytes 2M --rounds 32", &ALL))?;
    let each = guest.server()?.counters_by_device()?;
    let (least, most) = (
        each.iter().map(|c| c.bytes).min().unwrap_or(0),
        each.iter().map(|c| c.bytes).max().unwrap_or(0),
    );
    ensure!(
        least > 0 && most - least <= most / 100 + 4096,
        "{least} to {most} bytes a channel: {report:?}"
    );
    all_by_device(guest, &report)?;
    stop(guest)?;
    Ok(format!("{least} to {most} bytes a channel"))
}

/// Behind an IOMMU, scattered pages are contiguous for the engine.
fn contiguous(guest: &mut Guest) -> Result<String> {
    start(guest, 4)?;
    let report = run(guest, &mover(4, "--bytes 8M", &ALL))?;
    let counters = guest.server()?.counters()?;
    let migrated = report.counter(MIGRATED)?;
    ensure!(
        counters.descriptors * 8 < migrated,
        "{} descriptors for {migrated} folios",
        counters.descriptors
    );
    all_by_device(guest, &report)?;
    stop(guest)?;
    Ok(format!(
        "{} descriptors for {migrated} folios",
        counters.descriptors
    ))
}

/// The faults with which the stock path corrupts user memory and reports success: here every
/// page arrives.
pub(super) fn failed_descriptors(guest: &mut Guest) -> Result<String> {
    start(guest, 16)?;
    // Twice in a row: until a lone failure has shown where the head stays, what was in flight is
    // done again after an error, and one that strikes by number does not strike the same descriptor
    // then. The second one strikes the first of those that are done again, alone.
    for offset in [50, 51] {
        let fault = json!({
            "trigger": {"every": {"n": 100, "offset": offset}},
            "kind": {"error": {"code": 19}},
        });
        // Enough for each channel to meet it.
        guest.server()?.fault(None, &fault)?;
    }
    let report = run(guest, &mover(4, "--bytes 16M --rounds 6", &ALL))?;
    let errors = guest.server()?.counters()?.errors;
    let (moved, failures) = (report.folios_moved()?, report.counter(FAILURES)?);
    let (failed, replays) = (sum_of(guest, "failed")?, sum_of(guest, "replays")?);
    ensure!(
        errors > 0 && errors == failed + replays,
        "{errors} errors of the devices, {failed} failed descriptors, {replays} replays"
    );
    ensure!(
        failures >= failed && failed > 0 && report.counter(MIGRATED)? + failures >= moved,
        "{failed} failed descriptors, {failures} failures: {report:?}"
    );
    stop_after_faults(guest)?;
    Ok(format!(
        "{errors} descriptors failed, all of {moved} folios moved intact"
    ))
}

/// A count of the channels, of all that are bound.
pub(super) fn sum_of(guest: &mut Guest, name: &str) -> Result<u64> {
    let text = guest.ok(&format!(
        "cat /sys/bus/pci/drivers/ptdma_migrator/0*/ptdma/{name}"
    ))?;
    text.lines()
        .map(|line| line.trim().parse::<u64>().context(name.to_owned()))
        .sum()
}

fn is_translated(guest: &Guest) -> bool {
    guest.options().iommu != Iommu::None
}

/// Every fault that the model has, while memory moves and is written.
pub(super) fn faults(guest: &mut Guest) -> Result<String> {
    let kinds: [(&str, Value); 10] = [
        ("error", json!({"error": {"code": 19}})),
        (
            "partial",
            json!({"partial_write": {"len_bytes": 512, "code": 38}}),
        ),
        ("no-source", json!({"unmapped": {"side": "source"}})),
        (
            "no-destination",
            json!({"unmapped": {"side": "destination"}}),
        ),
        ("delay", json!({"delay": {"ns": 2_000_000}})),
        (
            "stall",
            json!({"stall": {"for": {"micros": 20_000}, "haltable": true}}),
        ),
        ("lost-interrupt", json!("lost_interrupt")),
        ("spurious-interrupt", json!("spurious_interrupt")),
        ("all-ones", json!({"all_ones": {"reads": 3}})),
        (
            "bad-head",
            json!({"head_garbage": {"value": 0x1234_5678, "reads": 1}}),
        ),
    ];
    // An emulated IOMMU tells every device of every mapping, which takes a while; and it makes one
    // descriptor of what would be 32.
    let (more, every) = if is_translated(guest) {
        ("--bytes 4M --rounds 4 --writers 1 --movers 2", (8, 3))
    } else {
        ("--bytes 8M --rounds 4 --writers 1 --movers 2", (40, 9))
    };
    let mut table = Vec::new();
    for (name, kind) in kinds {
        start(guest, 16)?;
        set(guest, TIMEOUT, "400")?;
        let fails = matches!(name, "error" | "partial" | "no-source" | "no-destination");
        // Two in a row are one that finds nothing: a lone one often meets a descriptor's end.
        let often = name == "spurious-interrupt" && !is_translated(guest);
        let every = if often { (4, 1) } else { every };
        let at = |offset: u64| json!({"every": {"n": every.0, "offset": offset}});
        let triggers = match name {
            // One descriptor of a batch interrupts, which one in forty would hardly meet.
            "lost-interrupt" => vec![json!("always")],
            // Twice in a row, as for failed descriptors above.
            _ if fails => vec![at(every.1), at(every.1 + 1)],
            _ => vec![at(every.1)],
        };
        for trigger in triggers {
            let fault = json!({"trigger": trigger, "kind": kind});
            guest.server()?.fault(None, &fault)?;
        }
        let report = run(guest, &mover(4, more, &ALL))?;
        ensure!(report.counter(MIGRATED)? > 0, "{name}: {report:?}");
        let failures = report.counter(FAILURES)?;
        let seen = guest.server()?.counters()?;
        let spurious = sum_of(guest, "spurious_interrupts")?;
        // That the fault has struck, by what it did where that is sure to be counted. An interrupt
        // that means nothing is not known for one if a descriptor has ended before it is handled,
        // as all have where a lane is one or two.
        let struck = match name {
            _ if fails => seen.errors > 0 && failures > 0,
            "lost-interrupt" => seen.interrupts_lost > 0,
            "spurious-interrupt" if !is_translated(guest) => spurious > 0,
            _ => seen.faults > 0,
        };
        ensure!(struck, "{name}: nothing happened: {seen:?} {report:?}");
        table.push(format!("{name} {failures}"));
        stop_after_faults(guest)?;
    }
    Ok(table.join(", "))
}

/// An engine that stands still for good: halted if it can be, reset if not, and in use again.
pub(super) fn hangs(guest: &mut Guest) -> Result<String> {
    for (haltable, heeds_halt) in [(true, true), (true, false), (false, true)] {
        start(guest, 16)?;
        // Long enough for a busy host behind an emulated IOMMU to see an engine stand still before
        // the batch is out of time, which stops the engine as well but is no hang.
        set(
            guest,
            TIMEOUT,
            if is_translated(guest) { "1200" } else { "300" },
        )?;
        let stall = json!({
            "trigger": {"at": 5},
            "kind": {"stall": {"for": "ever", "haltable": haltable}},
        });
        guest.server()?.fault(Some(3), &stall)?;
        if !heeds_halt {
            let deaf = json!({"trigger": "now", "kind": "ignore_halt"});
            guest.server()?.fault(Some(3), &deaf)?;
        }
        let recoveries = "echo 1 > /sys/kernel/tracing/events/ptdma_migrator/ptdma_recovery/enable";
        guest.ok(&format!("{recoveries}; echo > {TRACE}"))?;
        let report = run(guest, &mover(4, "--bytes 8M --rounds 4 --writers 1", &ALL))?;
        ensure!(report.counter(MIGRATED)? > 0, "{report:?}");
        // Work items reset functions afterwards, and bring the channels back.
        all_running(guest)?;
        let hangs = sum_of(guest, "hangs")?;
        let resets = guest.ok(&format!("grep -c 'step=reset rc=0' {TRACE}; true"))?;
        let needed = !(haltable && heeds_halt);
        ensure!(
            hangs > 0 && (resets.trim() != "0") == needed,
            "{hangs} hangs, {resets} resets (haltable: {haltable}, heeds a halt: {heeds_halt})"
        );
        // It comes back: its function is asked for work again.
        guest.server()?.clear_faults(None)?;
        guest.server()?.reset_counters()?;
        run(guest, &mover(4, "--bytes 8M --rounds 2", &[]))?;
        let each = guest.server()?.counters_by_device()?;
        ensure!(
            each.iter().all(|counters| counters.bytes > 0),
            "a channel is out of use (haltable: {haltable}): {each:?}"
        );
        stop_after_faults(guest)?;
    }
    Ok(String::new())
}

/// For each function that is bound, as `$d` in a shell.
pub(super) const EACH_FUNCTION: &str = "for d in /sys/bus/pci/drivers/ptdma_migrator/0*; do";

/// Waits until all functions that are bound are in use: what is out of service comes back by
/// itself.
pub(super) fn all_running(guest: &mut Guest) -> Result<()> {
    guest.ok_within(
        &format!(
            "for i in $(seq 600); do out=; {EACH_FUNCTION} [ $(cat $d/ptdma/state) = running ] || \
             out=$d; done; [ \"$out\" ] || exit 0; sleep 0.1; done; echo $out; exit 1"
        ),
        PROGRAM_LIMIT,
    )?;
    Ok(())
}

/// No function tells our module whether it has transactions under way: that bus mastering is off is
/// no proof then.
pub(super) fn hide_transactions(guest: &mut Guest, more: &str) -> Result<()> {
    guest.ok(&format!(
        "modprobe testfail functions=pcie_capability_read_word{more} every=1 && echo 1 > {NTH}"
    ))?;
    Ok(())
}

/// An engine that can be stopped in no way: what it may still write to is used by nobody, until
/// it is proved stopped.
pub(super) fn quarantine(guest: &mut Guest) -> Result<String> {
    start(guest, 16)?;
    set(guest, TIMEOUT, "300")?;
    let all = EACH_FUNCTION;
    guest.ok(&format!("{all} echo > $d/reset_method || exit 1; done"))?;
    hide_transactions(guest, "")?;
    let stall = json!({
        "trigger": {"at": 5},
        "kind": {"stall": {"for": "ever", "haltable": false}},
    });
    guest.server()?.fault(Some(3), &stall)?;
    // The first batch does not move, which move_pages reports, and the program tries again.
    run(
        guest,
        &mover(4, "--bytes 8M --rounds 3 --writers 1", &[MIGRATED]),
    )?;
    let held = get(guest, QUARANTINED)?;
    ensure!(held > 0, "nothing is in quarantine");
    // The engine wakes up and writes: to pages that nobody has.
    guest.server()?.clear_faults(None)?;
    run(guest, &mover(4, "--bytes 8M --rounds 3", &[MIGRATED]))?;
    guest.ok(&format!(
        "rmmod testfail; {all} echo default > $d/reset_method || exit 1; \
         [ $(cat $d/ptdma/state) = running ] || echo 1 > $d/reset || exit 1; done"
    ))?;
    stop_after_faults(guest)?;
    Ok(format!("{held} folios held, and given back"))
}

fn unbind_loop(guest: &mut Guest) -> Result<String> {
    let functions = guest.functions()?;
    let first = functions.first().cloned().unwrap_or_default();
    let second = functions.get(1).cloned().unwrap_or_default();
    Ok(format!(
        "cd /sys/bus/pci/drivers/ptdma_migrator; for i in $(seq 10); do \
         echo {first} > unbind || exit 1; sleep 0.1; echo {first} > bind || exit 1; \
         if [ -e /sys/bus/pci/devices/{second}/reset ]; then \
           echo 1 > /sys/bus/pci/devices/{second}/reset || exit 1; fi; sleep 0.1; done"
    ))
}

/// Unbind, bind and function reset, again and again, under load.
fn reset_and_rebind(guest: &mut Guest) -> Result<String> {
    start(guest, 16)?;
    let load = Load::start(guest, 4, LOAD, &[])?;
    wait_to_grow(guest, MIGRATED)?;
    let script = unbind_loop(guest)?;
    guest.ok_within(&script, PROGRAM_LIMIT)?;
    load.end(guest)?;
    guest.server()?.reset_counters()?;
    run(guest, &mover(4, "--bytes 8M --rounds 2", &[]))?;
    let each = guest.server()?.counters_by_device()?;
    ensure!(each.iter().all(|c| c.bytes > 0), "{each:?}");
    set(guest, OFFLOADING, "0")?;
    guest.ok("rmmod ptdma_migrator")?;
    guest.expect_clean_dmesg()?;
    Ok("10 times".into())
}

fn module_removal(guest: &mut Guest) -> Result<String> {
    workload::removals(
        guest,
        MIGRATED,
        "modprobe ptdma_migrator offloading=1",
        &format!("echo 0 > {OFFLOADING} && rmmod ptdma_migrator"),
    )
}

fn load_1000_times(guest: &mut Guest) -> Result<String> {
    guest.ok_within(
        "for i in $(seq 1000); do modprobe ptdma_migrator || exit 1; \
         rmmod ptdma_migrator || exit 1; done",
        Duration::from_secs(1200),
    )?;
    guest.expect_clean_dmesg()?;
    Ok(String::new())
}

/// Movers and writers for so long, while two descriptors in two thousand fail.
fn soak(guest: &mut Guest, time: Duration) -> Result<String> {
    start(guest, 16)?;
    // Two in a row, as for failed descriptors above.
    for offset in [1000, 1001] {
        let fault = json!({
            "trigger": {"every": {"n": 2000, "offset": offset}},
            "kind": {"error": {"code": 19}},
        });
        guest.server()?.fault(None, &fault)?;
    }
    let more = format!(
        "--bytes 32M --for-ms {} --movers 2 --writers 2",
        time.as_millis()
    );
    let text = guest.ok_within(&mover(4, &more, &ALL), time + PROGRAM_LIMIT)?;
    let report = parse("mover", &text)?;
    let (moved, failures) = (report.folios_moved()?, report.counter(FAILURES)?);
    ensure!(report.counter(MIGRATED)? > 0 && failures > 0, "{report:?}");
    stop_after_faults(guest)?;
    let minutes = time.as_secs() / 60;
    Ok(format!(
        "{minutes} minutes: {moved} folios, {failures} of them failed first"
    ))
}

fn two_minutes(guest: &mut Guest) -> Result<String> {
    soak(guest, Duration::from_secs(120))
}

fn two_hours(guest: &mut Guest) -> Result<String> {
    let time = guest.soak_time(Duration::from_secs(2 * 3600));
    soak(guest, time)
}

/// Hot removal of two functions of sixteen under load, and their return.
fn unplug(guest: &mut Guest) -> Result<String> {
    start(guest, 16)?;
    let load = Load::start(guest, 4, LOAD, &[])?;
    wait_to_grow(guest, MIGRATED)?;
    const BOUND: &str = "ls -d /sys/bus/pci/drivers/ptdma_migrator/0* | wc -l";
    guest.unplug(15)?;
    guest.unplug(14)?;
    let left = guest.ok(BOUND)?;
    ensure!(left.trim() == "14", "{left} functions are bound");
    guest.replug()?;
    let left = guest.ok(BOUND)?;
    ensure!(left.trim() == "16", "{left} functions are bound again");
    load.end(guest)?;
    guest.server()?.reset_counters()?;
    run(guest, &mover(4, "--bytes 8M --rounds 2", &[]))?;
    let each = guest.server()?.counters_by_device()?;
    ensure!(each.iter().all(|c| c.bytes > 0), "{each:?}");
    set(guest, OFFLOADING, "0")?;
    guest.ok("rmmod ptdma_migrator")?;
    guest.expect_clean_dmesg()?;
    Ok(String::new())
}

/// The port of a function reports errors, again and again under load: the kernel has it taken out
/// of use, resets it, and has it taken into use again. No batch meets any of it.
fn bus_errors(guest: &mut Guest) -> Result<String> {
    const TIMES: usize = 5;
    start(guest, 16)?;
    guest.ok("modprobe testfail functions=request_threaded_irq")?;
    let recoveries = sum_of(guest, "recoveries")?;
    let load = Load::start(guest, 4, LOAD, &[MIGRATED, FAILURES])?;
    wait_to_grow(guest, MIGRATED)?;
    let addresses = [3, 9].map(|index| guest.options().address_of(index));
    guest.ok_within(
        &format!(
            "for i in $(seq {TIMES}); do for f in {}; do \
             echo $f > /sys/module/testfail/parameters/frozen || exit 1; sleep 0.1; done; done",
            addresses.join(" ")
        ),
        PROGRAM_LIMIT,
    )?;
    let report = load.end(guest)?;
    let recoveries = sum_of(guest, "recoveries")? - recoveries;
    let hangs = sum_of(guest, "hangs")?;
    ensure!(
        report.counter(FAILURES)? == 0 && recoveries == 0 && hangs == 0,
        "batches met it, {recoveries} recoveries, {hangs} hangs: {report:?}"
    );
    guest.ok("rmmod testfail")?;
    guest.server()?.reset_counters()?;
    let report = run(guest, &mover(4, "--bytes 8M --rounds 2", &ALL))?;
    let each = guest.server()?.counters_by_device()?;
    ensure!(
        each.iter().all(|c| c.bytes > 0),
        "a channel is out of use: {each:?}"
    );
    all_by_device(guest, &report)?;
    stop(guest)?;
    guest.ok("rmmod ptdma_migrator")?;
    Ok(format!("{} times", TIMES * addresses.len()))
}

/// What was given to a function that does not answer any more is held: nobody can say whether it
/// is gone.
fn expect_held(guest: &mut Guest) -> Result<u64> {
    let held = get(guest, QUARANTINED)?;
    ensure!(held > 0, "nothing is in quarantine");
    Ok(held)
}

/// The device process of one function dies: its registers read all ones.
pub(super) fn kill_one(guest: &mut Guest) -> Result<String> {
    start(guest, 16)?;
    let load = Load::start(guest, 4, LOAD, &[])?;
    wait_to_grow(guest, MIGRATED)?;
    guest.kill9(Some(5))?;
    wait_until(guest, QUARANTINED, "-gt 0")?;
    load.end(guest)?;
    let before = get(guest, MIGRATED)?;
    run(guest, &mover(4, "--bytes 4M", &[]))?;
    ensure!(get(guest, MIGRATED)? > before, "migration has stopped");
    let held = expect_held(guest)?;
    Ok(format!("{held} folios held"))
}

/// One dies, and then the kernel learns that it was pulled: that proves it stopped, and everything
/// is given back when it is removed.
fn kill_and_pull(guest: &mut Guest) -> Result<String> {
    let note = kill_one(guest)?;
    let address = guest.options().address_of(5);
    guest.ok(&format!(
        "modprobe testfail functions=request_threaded_irq && \
         echo {address} > /sys/module/testfail/parameters/unplugged && rmmod testfail"
    ))?;
    guest.unplug(5)?;
    let left = get(guest, QUARANTINED)?;
    ensure!(left == 0, "{left} folios are in quarantine still: {note}");
    run(guest, &mover(4, "--bytes 4M", &[]))?;
    set(guest, OFFLOADING, "0")?;
    guest.ok("rmmod ptdma_migrator")?;
    guest.expect_clean_dmesg()?;
    Ok(format!("{note}, and given back"))
}

/// All of them die: the CPU copies.
pub(super) fn kill_all(guest: &mut Guest) -> Result<String> {
    start(guest, 16)?;
    let load = Load::start(guest, 4, LOAD, &[])?;
    wait_to_grow(guest, MIGRATED)?;
    guest.kill9(None)?;
    wait_until(guest, QUARANTINED, "-gt 0")?;
    load.end(guest)?;
    run(guest, &mover(4, "--bytes 4M", &[]))?;
    let held = expect_held(guest)?;
    set(guest, OFFLOADING, "0")?;
    guest.ok("rmmod ptdma_migrator")?;
    // The memory stays where it is, the mappings go with the functions.
    guest.expect_clean_dmesg()?;
    Ok(format!("{held} folios held"))
}
