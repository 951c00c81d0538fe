//! Our migrator when what it asks the kernel for is refused: memory, interrupts, mappings.
//!
//! `testfail` refuses one call of the module after the other.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::kshim::{
    ALL, FAILURES, MIGRATED, PARAMETERS, TIMEOUT, all_by_device, start, stop, stop_after_faults,
};
use super::mover::{PROGRAM_LIMIT, get, mover, run, set};
use super::{Check, DEBUG, FAST, Suite};
use crate::machine::{Guest, Iommu, Options};

pub(super) const NTH: &str = "/sys/module/testfail/parameters/nth";
const EVERY: &str = "/sys/module/testfail/parameters/every";
pub(super) const STRUCK: &str = "/sys/module/testfail/parameters/struck";
const LAST: &str = "/sys/module/testfail/parameters/last";

/// `modprobe` of busybox tries twice, in two ways.
const MODULE: &str = "/lib/modules/$(uname -r)/ptdma_migrator.ko";

pub(super) const SUITES: &[Suite] = &[
    Suite {
        name: "kshim-refused",
        about: "our migrator when memory, interrupts or mappings are refused",
        kernels: FAST,
        machine: || Options {
            devices: 2,
            modules: vec!["kshim", "testfail"],
            ..Options::default()
        },
        checks: &[
            Check::new("at-load", at_load).quick(FAST),
            Check::new("in-self-test", in_self_test),
            Check::new("mappings", mappings).quick(FAST),
        ],
    },
    Suite {
        name: "kshim-refused-iova",
        about: "our migrator behind an IOMMU that refuses mappings",
        kernels: FAST,
        machine: || Options {
            devices: 2,
            iommu: Iommu::Intel,
            modules: vec!["kshim", "testfail"],
            ..Options::default()
        },
        checks: &[Check::new("mappings", mappings_translated)],
    },
    Suite {
        name: "kshim-leaks",
        about: "our migrator's memory, by the kernel's search for what nobody points to",
        kernels: DEBUG,
        machine: || Options {
            devices: 2,
            append: "kmemleak=on".into(),
            modules: vec!["kshim", "testfail"],
            ..Options::default()
        },
        checks: &[
            Check::new("refused-loads", |guest| leaks_of(guest, at_load)),
            Check::new("batches", |guest| leaks_of(guest, batches)),
            Check::spoiling("broken-on-purpose", leak_seen),
        ],
    },
];

/// What loading calls that may be refused, and where: each must have been seen to be refused.
const AT_LOAD: [&str; 11] = [
    "__kvmalloc_node_noprof in ptdma_init+",
    "__kvmalloc_node_noprof in ptdma_batch_alloc+",
    "devm_kmalloc in ptdma_probe+",
    "pcim_enable_device in ptdma_probe+",
    "pcim_iomap_region in ptdma_probe+",
    "dma_set_mask in ptdma_probe+",
    "pci_alloc_irq_vectors in ptdma_",
    "request_threaded_irq in ptdma_",
    "alloc_pages_node_noprof in ptdma_ring_map",
    "dma_map_phys in ptdma_ring_map",
    "migrate_offload_register in ptdma_migrator_start+",
];

/// Functions that are bound; 0 if the module is not there.
fn bound(guest: &mut Guest) -> Result<usize> {
    let text = guest.ok("ls -d /sys/bus/pci/drivers/ptdma_migrator/0* 2> /dev/null | wc -l")?;
    text.trim().parse().context("wc -l")
}

/// Unloads the module, if it is there, and looks at what it must not leave behind.
fn unload(guest: &mut Guest) -> Result<()> {
    guest.ok(&format!(
        "if [ -e {PARAMETERS} ]; then echo 0 > {PARAMETERS}/offloading && \
         rmmod ptdma_migrator; fi && ! grep ptdma_migrator /proc/iomem /proc/modules"
    ))?;
    let migrator = guest.ok("cat /sys/kernel/mm/migrate_offload/migrator")?;
    ensure!(migrator.trim() == "none", "{migrator} is registered");
    expect_released(guest)
}

/// A function that is bound to no driver has no interrupt, and is no bus master.
fn expect_released(guest: &mut Guest) -> Result<()> {
    for function in guest.functions()? {
        let device = format!("/sys/bus/pci/devices/{function}");
        // An interrupt of ours has the name of its function.
        let text = guest.ok(&format!(
            "if [ ! -e {device}/driver ]; then grep {function} /proc/interrupts; \
             ls -d {device}/msi_irqs 2> /dev/null; \
             [ $(($(od -An -tu1 -j4 -N1 {device}/config) & 4)) = 0 ] || echo is a bus master; \
             fi; true"
        ))?;
        ensure!(text.is_empty(), "{function}, which nobody has: {text}");
    }
    Ok(())
}

/// Loads the module again and again, and has one call more succeed each time, until none is
/// refused. Returns which were.
fn sweep(guest: &mut Guest, load: &str) -> Result<BTreeSet<String>> {
    let devices = guest.options().devices;
    // Beyond this something else is wrong.
    const MOST: usize = 1000;
    let mut refused = BTreeSet::new();
    for nth in 1..MOST {
        set(guest, NTH, &nth.to_string())?;
        let out = guest.sh(load)?;
        let struck = get(guest, STRUCK)?;
        let last = guest.ok(&format!("cat {LAST}"))?;
        set(guest, NTH, "0")?;
        let functions = bound(guest)?;
        let what = format!("call {nth} ({}): {}", last.trim(), out.text);
        if struck == 0 {
            ensure!(out.code == 0 && functions == devices, "{what}");
            let report = run(guest, &mover(4, "--bytes 4M", &ALL))?;
            ensure!(report.counter(MIGRATED)? >= 1024, "{what}: {report:?}");
            unload(guest)?;
            return Ok(refused);
        }
        refused.insert(last.trim().to_owned());
        if out.code == 0 {
            // Without one function, or all, and otherwise in order.
            ensure!(functions < devices, "{what}: nothing happened");
            expect_released(guest).with_context(|| what.clone())?;
            let report = run(guest, &mover(4, "--bytes 1M", &[MIGRATED]))?;
            ensure!(
                functions == 0 || report.counter(MIGRATED)? >= 256,
                "{what}: {functions} functions do not copy: {report:?}"
            );
        } else {
            let there = guest.sh("grep '^ptdma_migrator ' /proc/modules")?;
            ensure!(there.code != 0, "{what}: half loaded");
        }
        unload(guest)?;
    }
    anyhow::bail!("{MOST} calls, and still one is refused");
}

/// Each call of loading and binding that can fail does so once: the module is not there
/// then, or there without a function; nothing stays behind; the next time it loads.
fn at_load(guest: &mut Guest) -> Result<String> {
    guest.ok(
        "modprobe testfail functions=__kvmalloc_node_noprof,devm_kmalloc,pcim_enable_device,\
         pcim_iomap_region,dma_set_mask,alloc_pages_node_noprof,dma_map_phys,\
         pci_alloc_irq_vectors,request_threaded_irq,__pci_register_driver,\
         migrate_offload_register",
    )?;
    let load = &format!("loader {MODULE} 'min_batch_kb=4 offloading=1'");
    guest.ok(load)?;
    unload(guest)?;
    let refused = sweep(guest, load)?;
    for call in AT_LOAD {
        ensure!(
            refused.iter().any(|one| one.starts_with(call)),
            "{call} was not refused; these were: {refused:#?}"
        );
    }
    guest.ok("rmmod testfail")?;
    guest.expect_clean_dmesg()?;
    Ok(format!("at {} places", refused.len()))
}

/// No memory for the self-test: loading fails, as it was asked for a test, and nothing stays.
fn in_self_test(guest: &mut Guest) -> Result<String> {
    guest.ok("modprobe testfail functions=__kmalloc_cache_noprof,alloc_pages_node_noprof")?;
    let load = &format!("loader {MODULE} 'selftest=1 offloading=1'");
    let refused = sweep_test(guest, load)?;
    guest.ok("rmmod testfail")?;
    guest.expect_clean_dmesg()?;
    Ok(format!("at {refused} allocations"))
}

fn sweep_test(guest: &mut Guest, load: &str) -> Result<usize> {
    const STEP: usize = 31;
    /// Allocations of a channel's test.
    const EACH: usize = 195;
    let devices = guest.options().devices;
    let mut refused = 0;
    // Each function's ring is allocated before; without one the others are tested.
    for nth in (devices + 1..=devices + EACH * devices).step_by(STEP) {
        set(guest, NTH, &nth.to_string())?;
        let out = guest.sh(load)?;
        let struck = get(guest, STRUCK)?;
        set(guest, NTH, "0")?;
        ensure!(
            out.code != 0 && struck == 1 && bound(guest)? == 0,
            "allocation {nth}: loaded, {struck} refused: {}",
            out.text
        );
        unload(guest)?;
        refused += 1;
    }
    guest.ok(load)?;
    unload(guest)?;
    Ok(refused)
}

/// Mappings that are refused now and then, and all of them: the CPU copies those, every page
/// arrives, and the next batch is the engines' again.
fn refuse_mappings(guest: &mut Guest, functions: &str) -> Result<String> {
    guest.ok(&format!("modprobe testfail functions={functions}"))?;
    start(guest, 2)?;
    let mut table = Vec::new();
    for every in [61, 7, 1] {
        for size in [4, 2048] {
            set(guest, EVERY, &every.to_string())?;
            set(guest, NTH, "1")?;
            guest.server()?.reset_counters()?;
            let report = run(
                guest,
                &mover(size, "--bytes 8M --rounds 2 --writers 1", &ALL),
            )?;
            let struck = get(guest, STRUCK)?;
            set(guest, NTH, "0")?;
            let by_device = guest.server()?.reset_counters()?.bytes;
            let all = report.number("/bytes")? * report.number("/rounds")?;
            // A part that is refused may be mapped at the next attempt, or by another function, or
            // is copied by the CPU; the program has seen that every byte is right.
            ensure!(
                struck > 0 && by_device <= all && (every == 1) == (by_device == 0),
                "each {every}th of {size} KiB: {struck} refused, {by_device} of {all} bytes by the \
                 devices: {report:?}"
            );
            let (migrated, failures) = (report.counter(MIGRATED)?, report.counter(FAILURES)?);
            ensure!(migrated + failures >= report.folios_moved()?, "{report:?}");
            table.push(format!("{} MiB", by_device >> 20));
        }
    }
    let report = run(guest, &mover(4, "--bytes 4M", &ALL))?;
    all_by_device(guest, &report)?;
    stop(guest)?;
    guest.ok("rmmod ptdma_migrator && rmmod testfail")?;
    Ok(format!("of 16 MiB by the devices: {}", table.join(", ")))
}

fn mappings(guest: &mut Guest) -> Result<String> {
    refuse_mappings(guest, "dma_map_phys")
}

/// Windows that cannot be had, or not be filled.
fn mappings_translated(guest: &mut Guest) -> Result<String> {
    let mut notes = Vec::new();
    for functions in [
        "dma_iova_link,dma_map_phys",
        "dma_iova_sync,dma_map_phys",
        "dma_iova_try_alloc,dma_map_phys",
    ] {
        notes.push(refuse_mappings(guest, functions).context(functions)?);
    }
    Ok(notes.join("; "))
}

const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

/// What the kernel finds that nobody points to, and forgets it. It believes only what it finds
/// twice, of things older than five seconds.
fn unreferenced(guest: &mut Guest) -> Result<String> {
    guest.ok_within(
        &format!(
            "sleep 6; echo scan > {KMEMLEAK} && echo scan > {KMEMLEAK} && \
             cat {KMEMLEAK} && echo clear > {KMEMLEAK}"
        ),
        PROGRAM_LIMIT,
    )
}

/// A workload that begins and ends without the module, and leaves nothing behind.
fn leaks_of(guest: &mut Guest, workload: fn(&mut Guest) -> Result<String>) -> Result<String> {
    // What others have lost while booting.
    unreferenced(guest)?;
    let note = workload(guest)?;
    let lost = unreferenced(guest)?;
    ensure!(lost.is_empty(), "{lost}");
    Ok(note)
}

/// Batches that succeed, that fail, and that wait for an engine which can be stopped in no way.
fn batches(guest: &mut Guest) -> Result<String> {
    start(guest, 2)?;
    set(guest, TIMEOUT, "300")?;
    for kind in [
        json!({"error": {"code": 19}}),
        json!({"stall": {"for": "ever", "haltable": false}}),
    ] {
        let fault = json!({"trigger": {"at": 2}, "kind": kind});
        guest.server()?.fault(Some(1), &fault)?;
        run(guest, &mover(4, "--bytes 4M --rounds 2", &[]))?;
        guest.server()?.clear_faults(None)?;
    }
    stop_after_faults(guest)?;
    Ok(String::new())
}

/// When the module's own frees are left out, the kernel tells.
fn leak_seen(guest: &mut Guest) -> Result<String> {
    unreferenced(guest)?;
    guest.ok("modprobe ptdma_migrator && modprobe testfail functions=kvfree")?;
    set(guest, EVERY, "1")?;
    set(guest, NTH, "1")?;
    unload(guest)?;
    let left_out = get(guest, STRUCK)?;
    set(guest, NTH, "0")?;
    let lost = unreferenced(guest)?;
    let reports = lost.matches("unreferenced object").count();
    ensure!(
        left_out > 0 && reports > 0,
        "{left_out} frees left out: {lost}"
    );
    Ok(format!("{left_out} frees left out, {reports} reports"))
}
