//! The dmaengine migrator on the unmodified `ptdma` driver: what our module is
//! compared with.

use anyhow::{Result, ensure};
use serde_json::json;

use super::mover::{
    FOLIO_KIB, Load, PROGRAM_LIMIT, Report, get, mover, refuses, run, set, wait_until,
};
use super::workload::{self, Workload};
use super::{BOTH, Check, FAST, Suite};
use crate::machine::{Guest, Iommu, Options, Output};

const OFFLOADING: &str = "/sys/kernel/dcbm/offloading";
const CHANNELS: &str = "/sys/kernel/dcbm/nr_dma_chan";
const MIGRATED: &str = "/sys/kernel/dcbm/folios_migrated";
const FAILURES: &str = "/sys/kernel/dcbm/folios_failures";
const ABANDONED: &str = "/sys/kernel/dcbm/channels_abandoned";
const TIMEOUT: &str = "/sys/kernel/dcbm/timeout_ms";
const REASONS: &str = "/sys/kernel/dcbm/reason_mask";
const MAX_BATCH: &str = "/sys/kernel/mm/migrate_offload/max_batch_pages";

pub(super) const SUITES: &[Suite] = &[
    Suite {
        name: "dcbm",
        about: "the dmaengine migrator on four functions: every size, faults, removal",
        kernels: BOTH,
        machine: || Options {
            devices: 4,
            // Half of each node is movable, so that memory blocks can go offline.
            append: "kernelcore=50%".into(),
            modules: vec!["dcbm"],
            ..Options::default()
        },
        checks: &[
            Check::new("controls", controls).quick(BOTH),
            Check::new("every-size", every_size).quick(FAST),
            Check::new("reasons", reasons).quick(FAST),
            Check::new("writers-and-movers", |guest| {
                active(guest, workload::writers_and_movers)
            })
            .quick(FAST),
            Check::new("migrate-pages-and-mbind", |guest| {
                active(guest, workload::calls)
            }),
            Check::new("unmapped-file-systems", |guest| {
                active(guest, workload::files)
            }),
            Check::new("compaction", |guest| active(guest, workload::compaction)),
            Check::new("numa-balancing", |guest| active(guest, workload::balancing)),
            Check::new("hot-unplug", |guest| active(guest, workload::hot_unplug)),
            Check::new("slow-engine", slow_engine),
            Check::new("stalled-engine", stalled_engine),
            Check::new("module-removal", module_removal),
            Check::new("swallowed-errors", swallowed_errors).quick(FAST),
        ],
    },
    Suite {
        name: "dcbm-intel-iommu",
        about: "the dmaengine migrator behind Intel's IOMMU",
        kernels: BOTH,
        machine: || Options {
            devices: 2,
            iommu: Iommu::Intel,
            modules: vec!["dcbm"],
            ..Options::default()
        },
        checks: &[Check::new("every-size", every_size).quick(FAST)],
    },
    Suite {
        name: "dcbm-amd-iommu",
        about: "the dmaengine migrator behind AMD's IOMMU, in mappings below 2 MiB",
        kernels: FAST,
        machine: || Options {
            devices: 2,
            iommu: Iommu::Amd,
            modules: vec!["dcbm"],
            ..Options::default()
        },
        checks: &[Check::new("every-size", every_size_in_small_mappings).quick(FAST)],
    },
];

fn start(guest: &mut Guest, channels: usize) -> Result<()> {
    guest.ok("modprobe ptdma")?;
    offload(guest, channels)
}

/// [`start`] with the driver that is loaded.
fn offload(guest: &mut Guest, channels: usize) -> Result<()> {
    guest.ok("modprobe dcbm")?;
    set(guest, OFFLOADING, "0")?;
    set(guest, CHANNELS, &channels.to_string())?;
    set(guest, OFFLOADING, "1")?;
    guest.server()?.reset_counters()?;
    Ok(())
}

fn stop(guest: &mut Guest) -> Result<()> {
    set(guest, OFFLOADING, "0")?;
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

/// Every folio that moved was copied by the device, and nothing else was.
fn all_by_device(guest: &mut Guest, report: &Report) -> Result<()> {
    let moved = report.folios_moved()?;
    let (migrated, failures) = (report.counter(MIGRATED)?, report.counter(FAILURES)?);
    let counters = guest.server()?.reset_counters()?;
    let bytes = migrated * report.number("/folio_bytes")?;
    ensure!(
        failures == 0 && migrated >= moved,
        "{moved} folios moved, {migrated} by the device, {failures} failures"
    );
    ensure!(
        counters.bytes == bytes && counters.errors == 0,
        "the devices copied {} bytes of {bytes}, with {} errors",
        counters.bytes,
        counters.errors
    );
    Ok(())
}

fn controls(guest: &mut Guest) -> Result<String> {
    guest.ok("modprobe dcbm")?;
    // There is no channel yet.
    refuses(guest, OFFLOADING, "1")?;
    guest.ok("modprobe ptdma")?;
    for (file, value) in [
        (CHANNELS, "0"),
        (CHANNELS, "33"),
        (CHANNELS, "x"),
        (OFFLOADING, "7"),
        (TIMEOUT, "0"),
        (TIMEOUT, "10001"),
        (REASONS, "whim"),
    ] {
        refuses(guest, file, value)?;
    }
    start(guest, 4)?;
    let name = guest.ok("cat /sys/kernel/mm/migrate_offload/migrator")?;
    ensure!(name.trim() == "dcbm", "{name}");
    let out = guest.sh("rmmod dcbm")?;
    ensure!(out.code != 0, "dcbm was removed while registered");
    let out = guest.sh("rmmod ptdma")?;
    ensure!(out.code != 0, "ptdma was removed while in use");
    stop(guest)?;
    guest.ok("rmmod dcbm && rmmod ptdma")?;
    guest.expect_clean_dmesg()?;
    Ok(String::new())
}

fn every_size(guest: &mut Guest) -> Result<String> {
    let mut folios = 0;
    for channels in [1, guest.options().devices] {
        folios += every_size_by(guest, channels)?;
    }
    Ok(format!("{folios} folios"))
}

/// Moves folios of all sizes on a number of channels, and returns how many folios it moved.
fn every_size_by(guest: &mut Guest, channels: usize) -> Result<u64> {
    let mut folios = 0;
    start(guest, channels)?;
    for size in FOLIO_KIB {
        for kind in ["anon", "shmem"] {
            // One round: in the next, folios of a few pages would be split.
            let more = format!("--kind {kind} --bytes 8M --rounds 1");
            let report = run(guest, &mover(size, &more, &[MIGRATED, FAILURES]))?;
            all_by_device(guest, &report)?;
            folios += report.folios_moved()?;
        }
    }
    stop(guest)?;
    Ok(folios)
}

/// As [`every_size`], with no scatter table as long as one page table of the IOMMU.
///
/// Where a mapping of small pages covers all of a page table (2 MiB), unmapping frees the
/// table, and QEMU's model of AMD's IOMMU stops at an assertion (`mapped->size >
/// target.size` in `amdvi_notify_iommu`, seen with 11.1): it walks the new tables, takes
/// what is absent for one page of 2 MiB, and finds a page of 4 KiB in its books. A batch of
/// 512 pages on one channel is such a mapping. Our own module maps by windows of 128 KiB.
fn every_size_in_small_mappings(guest: &mut Guest) -> Result<String> {
    let devices = guest.options().devices;
    ensure!(devices > 1, "a batch has to be divided");
    let mut folios = every_size_by(guest, devices)?;
    set(guest, MAX_BATCH, "256")?;
    folios += every_size_by(guest, 1)?;
    set(guest, MAX_BATCH, "0")?;
    Ok(format!("{folios} folios"))
}

/// Each descriptor takes a while; nothing runs out of time.
fn slow_engine(guest: &mut Guest) -> Result<String> {
    start(guest, 4)?;
    let slow = json!({"trigger": "always", "kind": {"delay": {"ns": 500_000}}});
    guest.server()?.fault(None, &slow)?;
    let report = run(
        guest,
        &mover(
            4,
            "--bytes 8M --rounds 2 --writers 2",
            &[MIGRATED, FAILURES],
        ),
    )?;
    guest.server()?.clear_faults(None)?;
    all_by_device(guest, &report)?;
    stop(guest)?;
    Ok(String::new())
}

/// A channel that does not answer is set aside with what it may still write to, and
/// comes back when it does answer.
fn stalled_engine(guest: &mut Guest) -> Result<String> {
    start(guest, 4)?;
    set(guest, TIMEOUT, "300")?;
    let stall =
        json!({"trigger": {"at": 5}, "kind": {"stall": {"for": "ever", "haltable": false}}});
    guest.server()?.fault(Some(0), &stall)?;
    let report = run(
        guest,
        &mover(
            4,
            "--bytes 4M --rounds 4 --writers 1",
            &[MIGRATED, FAILURES],
        ),
    )?;
    ensure!(
        report.counter(FAILURES)? > 0 && report.counter(MIGRATED)? > 0,
        "{report:?}"
    );
    let aside = get(guest, ABANDONED)?;
    ensure!(aside == 1, "{aside} channels were set aside");
    // The engine goes on, and writes what it was told to write long ago.
    let load = Load::start(guest, 4, "--bytes 8M --movers 2", &[])?;
    guest.server()?.clear_faults(None)?;
    wait_until(guest, ABANDONED, "-eq 0")?;
    load.end(guest)?;
    set(guest, TIMEOUT, "10000")?;
    stop(guest)?;
    guest.ok("rmmod dcbm")?;
    Ok(String::new())
}

fn module_removal(guest: &mut Guest) -> Result<String> {
    guest.ok("modprobe ptdma; rmmod dcbm 2> /dev/null; true")?;
    workload::removals(
        guest,
        MIGRATED,
        &format!("modprobe dcbm && echo 4 > {CHANNELS} && echo 1 > {OFFLOADING}"),
        &format!("echo 0 > {OFFLOADING} && rmmod dcbm"),
    )
}

/// What came of a migration on engines that fail one descriptor in a hundred.
pub(super) struct WithErrors {
    /// Descriptors that failed.
    pub(super) errors: u64,
    /// Folios that the migrator counted as failed.
    pub(super) failures: u64,
    /// What the program said that compares its memory.
    pub(super) program: Output,
}

/// Migrates with the driver that is loaded, on engines that fail now and then.
pub(super) fn with_errors(guest: &mut Guest, channels: usize) -> Result<WithErrors> {
    offload(guest, channels)?;
    let fault = json!({
        "trigger": {"every": {"n": 100, "offset": 50}},
        "kind": {"error": {"code": 19}},
    });
    guest.server()?.fault(None, &fault)?;
    let counted_before = get(guest, FAILURES)?;
    let program = guest.sh_within(
        &mover(4, "--bytes 4M --rounds 1", &[MIGRATED, FAILURES]),
        PROGRAM_LIMIT,
    )?;
    guest.server()?.clear_faults(None)?;
    let errors = guest.server()?.counters()?.errors;
    let failures = get(guest, FAILURES)? - counted_before;
    ensure!(errors > 0, "no descriptor failed");
    stop(guest)?;
    Ok(WithErrors {
        errors,
        failures,
        program,
    })
}

/// The stock driver reports failed descriptors as copied. This is what it costs, and
/// why a migrator has to look at the hardware; should the driver be mended, this check
/// says so.
fn swallowed_errors(guest: &mut Guest) -> Result<String> {
    guest.ok("modprobe ptdma")?;
    let WithErrors {
        errors,
        failures,
        program,
    } = with_errors(guest, 4)?;
    ensure!(
        program.code == 1 && program.text.contains("FAIL: after the moves: page"),
        "the stock driver has learnt to report errors: {}",
        program.text
    );
    Ok(format!(
        "{errors} failed descriptors, {failures} failures counted, memory wrong"
    ))
}
