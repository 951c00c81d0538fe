//! Who keeps an engine from writing to memory that is not its own any more: our migrator, and an
//! IOMMU if the migrator was wrong.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::kshim::{
    OFFLOADING, QUARANTINED, RING, TIMEOUT, expect_none_held, expect_rings_mapped,
    hide_transactions, start, stop_after_faults,
};
use super::kshim_load::{NTH, STRUCK};
use super::mover::{PROGRAM_LIMIT, get, mover, run, set};
use super::{BOTH, Check, DEBUG, FAST, Suite};
use crate::machine::{Guest, Iommu, Options};

/// Two functions, and the means to have our module believe what is not so.
fn stale(iommu: Iommu) -> Options {
    Options {
        devices: 2,
        // All of it will be filled.
        node_memory_mib: 320,
        iommu,
        append: "iommu.strict=1".into(),
        modules: vec!["kshim", "testfail"],
        ..Options::default()
    }
}

pub(super) const SUITES: &[Suite] = &[
    Suite {
        name: "kshim-stale-writes",
        about: "an engine that writes to memory that was given back",
        kernels: DEBUG,
        machine: || stale(Iommu::None),
        checks: &[
            Check::new("ours", |guest| stale_ours(guest, Stuck::NoReset)),
            Check::new("lost-reset", |guest| stale_ours(guest, Stuck::LostReset)),
            Check::spoiling("broken-on-purpose", stale_seen),
        ],
    },
    Suite {
        name: "kshim-stale-writes-intel",
        about: "Intel's IOMMU keeps an engine from memory that was given back",
        kernels: BOTH,
        machine: || stale(Iommu::Intel),
        checks: &[
            Check::new("ours", |guest| stale_ours(guest, Stuck::NoReset)),
            Check::new("lost-reset", |guest| stale_ours(guest, Stuck::LostReset)).quick(FAST),
            Check::spoiling("broken-on-purpose", stale_blocked).quick(FAST),
        ],
    },
    Suite {
        name: "kshim-absent",
        about: "a function that does not answer for a while, and then goes on where it was",
        kernels: BOTH,
        machine: || stale(Iommu::None),
        checks: &[Check::new("and-back", absent).quick(FAST)],
    },
    Suite {
        name: "kshim-absent-intel",
        about: "a channel that was given up while its function did not answer",
        kernels: BOTH,
        // Where the ring and what is held are mapped, what stays of them can be seen.
        machine: || stale(Iommu::Intel),
        checks: &[Check::new("given-up", given_up).quick(FAST)],
    },
];

/// Fills what is free of a node with bytes that are nothing's pattern: memory that was freed
/// comes into use, and the kernel looks at what it filled it with.
fn fill(guest: &mut Guest, node: usize) -> Result<()> {
    // So much stays free that nobody has to be killed.
    const LEFT_MIB: u64 = 40;
    let text = guest.ok(&format!(
        "sed -n 's/.*MemFree: *\\([0-9]*\\) kB/\\1/p' /sys/devices/system/node/node{node}/meminfo"
    ))?;
    let free = text.trim().parse::<u64>().context("MemFree")? / 1024;
    let count = free.saturating_sub(LEFT_MIB);
    ensure!(count > 0, "node {node} has {free} MiB free");
    guest.ok_within(
        &format!(
            "mkdir -p /fill{node} && mount -t tmpfs -o size=100%,mpol=bind:{node} none \
             /fill{node} && dd if=/dev/urandom of=/megabyte bs=1M count=1 2> /dev/null && \
             for i in $(seq {count}); do cat /megabyte || exit 1; done > /fill{node}/f"
        ),
        PROGRAM_LIMIT,
    )?;
    Ok(())
}

/// What an engine did once it came to life again.
struct Late {
    written: u64,
    refused: u64,
}

impl Late {
    /// It tried, and nothing came of it.
    fn expect_harmless(&self) -> Result<()> {
        ensure!(
            self.written == 0 && self.refused > 0,
            "{} bytes written, {} descriptors refused",
            self.written,
            self.refused
        );
        Ok(())
    }
}

/// How it comes that an engine is not stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stuck {
    /// The kernel knows no way to reset the function.
    NoReset,
    /// It has told the function to reset itself, and nothing came of it.
    LostReset,
    /// The module is made to believe that the engine was stopped: then it gives the memory back.
    Believed,
}

/// An engine stands still in the middle of a batch and cannot be stopped. The program ends, the
/// memory is free if the module has given it back, and the engine goes on.
fn late_write(guest: &mut Guest, how: Stuck) -> Result<Late> {
    start(guest, 2)?;
    set(guest, TIMEOUT, "300")?;
    let stuck = guest.options().address_of(1);
    match how {
        Stuck::NoReset => {
            guest.ok(&format!("echo > /sys/bus/pci/devices/{stuck}/reset_method"))?;
            hide_transactions(guest, "")?;
        }
        Stuck::LostReset => hide_transactions(guest, ",pcie_reset_flr")?,
        Stuck::Believed => {
            // Nor may the work item look at the engine, which it would reset.
            guest.ok(&format!(
                "modprobe testfail functions=ptdma_k_prove_stopped,queue_delayed_work_on every=1 && \
                 echo 1 > {NTH}"
            ))?;
        }
    }
    let stall = json!({
        "trigger": {"at": 0},
        "kind": {"stall": {"for": "ever", "haltable": false}},
    });
    guest.server()?.fault(Some(1), &stall)?;
    // Half a folio each. A batch that is not to migrate is tried again by the program. Not of
    // 2 MiB: processors keep freed ones on lists of their own, where small pages do not get them.
    run(guest, &mover(1024, "--bytes 4M", &[]))?;
    let held = get(guest, QUARANTINED)?;
    let lies = get(guest, STRUCK)?;
    ensure!(lies > 0, "the module called nothing that fails, {how:?}");
    ensure!(
        (held == 0) == (how == Stuck::Believed),
        "{held} folios are in quarantine, {how:?}"
    );
    // It is not asked to copy any more: what is written from here on is late.
    set(guest, OFFLOADING, "0")?;
    // Other bytes than those of free memory are where the engine will read.
    fill(guest, 0)?;
    guest.server()?.reset_counters()?;
    guest.server()?.clear_faults(None)?;
    guest.ok("sleep 1")?;
    let seen = guest.server()?.counters_by_device()?;
    let seen = seen.get(1).context("the second function")?;
    let late = Late {
        written: seen.bytes,
        refused: seen.errors,
    };
    fill(guest, 1)?;
    guest.ok("umount /fill0 /fill1 && rmdir /fill0 /fill1")?;
    Ok(late)
}

/// Our module does not give the memory back, and has taken the function off the bus: what the
/// engine wants to write goes nowhere, IOMMU or not.
fn stale_ours(guest: &mut Guest, how: Stuck) -> Result<String> {
    let late = late_write(guest, how)?;
    late.expect_harmless()?;
    guest.expect_clean_dmesg()?;
    let stuck = guest.options().address_of(1);
    guest.ok(&format!(
        "[ ! -d /sys/module/testfail ] || rmmod testfail; \
         echo default > /sys/bus/pci/devices/{stuck}/reset_method && \
         echo 1 > /sys/bus/pci/devices/{stuck}/reset"
    ))?;
    stop_after_faults(guest)?;
    Ok(format!("{} descriptors refused", late.refused))
}

/// How the kernel reports a free page that is not as it was left.
const POISONED: &str = "pagealloc: memory corruption";

/// Without an IOMMU the engine of a module that was wrong writes to free memory, and the debug
/// kernel says so: the report that all other checks look for is one that can be had.
fn stale_seen(guest: &mut Guest) -> Result<String> {
    let late = late_write(guest, Stuck::Believed)?;
    ensure!(late.written > 0, "the engine wrote nothing");
    guest.wait_for_console(POISONED, Duration::from_secs(10))?;
    // And that is what fails a check which does not expect it.
    ensure!(
        guest.expect_clean_dmesg().is_err(),
        "a report of the kernel's does not fail a check"
    );
    Ok(format!(
        "{} KiB written to free memory, reported",
        late.written >> 10
    ))
}

/// Behind an IOMMU the same module does no harm: the engine's descriptor fails.
fn stale_blocked(guest: &mut Guest) -> Result<String> {
    let late = late_write(guest, Stuck::Believed)?;
    late.expect_harmless()?;
    guest.expect_clean_dmesg()?;
    Ok(format!("{} descriptors refused", late.refused))
}

/// A function whose registers and configuration space read all ones, as one does that was pulled;
/// but it comes back, and its engine goes on. So not to answer proves nothing: the memory is held
/// until the function answers and can be reset, which is tried time and again.
fn absent(guest: &mut Guest) -> Result<String> {
    start(guest, 2)?;
    set(guest, TIMEOUT, "300")?;
    guest.server()?.fault(
        Some(1),
        &json!({"trigger": {"at": 0}, "kind": {"all_ones": {}}}),
    )?;
    run(guest, &mover(1024, "--bytes 4M", &[]))?;
    let held = get(guest, QUARANTINED)?;
    // Nobody asks for a copy while the function comes back.
    set(guest, OFFLOADING, "0")?;
    guest.server()?.reset_counters()?;
    guest.server()?.clear_faults(None)?;
    guest.ok("sleep 1")?;
    let seen = guest.server()?.counters_by_device()?;
    let late = seen.get(1).context("the second function")?.bytes;
    ensure!(
        late > 0,
        "the engine did not go on where it was, so nothing was tried: {seen:?}"
    );
    ensure!(
        held > 0,
        "{late} bytes were written to memory that had been given back"
    );
    set(guest, OFFLOADING, "1")?;
    // The wait before a channel is tried again grows from a tenth of a second.
    guest.ok("sleep 1")?;
    run(guest, &mover(4, "--bytes 4M", &[]))?;
    expect_none_held(guest)?;
    guest.server()?.reset_counters()?;
    run(guest, &mover(4, "--bytes 8M --rounds 2", &[]))?;
    let each = guest.server()?.counters_by_device()?;
    ensure!(
        each.iter().all(|counters| counters.bytes > 0),
        "a channel is out of use: {each:?}"
    );
    // Memory that was freed comes into use, and the kernel looks at it.
    fill(guest, 1)?;
    guest.ok("umount /fill1 && rmdir /fill1")?;
    stop_after_faults(guest)?;
    Ok(format!(
        "{held} folios held while {} KiB were written to them",
        late >> 10
    ))
}

/// A function does not answer while its channel is taken down, for another ring size: the ring
/// and what a batch gave it stay as they are. Once it answers again, a reset by the user brings
/// the channel back, and so does taking the function from the driver and giving it back: nothing
/// is left behind.
fn given_up(guest: &mut Guest) -> Result<String> {
    let lost = guest.options().address_of(1);
    let mut all_held = 0;
    start(guest, 2)?;
    set(guest, TIMEOUT, "300")?;
    let ways = [
        ("256", format!("echo 1 > /sys/bus/pci/devices/{lost}/reset")),
        (
            "128",
            format!(
                "cd /sys/bus/pci/drivers/ptdma_migrator && echo {lost} > unbind && \
                 [ $(cat {QUARANTINED}) = 0 ] && echo {lost} > bind"
            ),
        ),
    ];
    for (entries, way) in ways {
        guest.server()?.fault(
            Some(1),
            &json!({"trigger": {"at": 0}, "kind": {"all_ones": {}}}),
        )?;
        run(guest, &mover(1024, "--bytes 4M", &[]))?;
        let held = get(guest, QUARANTINED)?;
        ensure!(held > 0, "nothing is in quarantine");
        all_held += held;
        let out = guest.sh(&format!("echo {entries} > {RING}"))?;
        ensure!(out.code != 0, "the channel came back without its function");
        guest.server()?.clear_faults(None)?;
        guest.ok(&way)?;
        expect_none_held(guest)?;
        expect_rings_mapped(guest)?;
        guest.server()?.reset_counters()?;
        run(guest, &mover(4, "--bytes 8M --rounds 2", &[]))?;
        let each = guest.server()?.counters_by_device()?;
        ensure!(
            each.iter().all(|counters| counters.bytes > 0),
            "a channel is out of use: {each:?}"
        );
    }
    stop_after_faults(guest)?;
    Ok(format!("{all_held} folios held, and given back"))
}
