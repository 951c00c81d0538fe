//! Page migration with and without a migrator: the kernel patches.
//!
//! The migrator is `testmig`, which copies with the processor and does on demand what
//! none should do. Whatever it does, each program below checks every byte.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::mover::{
    FOLIO_KIB, Load, PROGRAM_LIMIT, get, mover, parse, refuses, run, set, wait_to_grow,
};
use super::workload::{self, Workload};
use super::{BOTH, Check, FAST, Suite};
use crate::machine::{Guest, Options};

const MODE: &str = "/sys/kernel/testmig/mode";
const ACTIVE: &str = "/sys/kernel/testmig/active";
const CALLS: &str = "/sys/kernel/testmig/calls";
const FOLIOS: &str = "/sys/kernel/testmig/folios";
pub(super) const COPIED: &str = "/sys/kernel/testmig/copied";
const ASKED: &str = "/sys/kernel/testmig/asked";
const ASYNC: &str = "/sys/kernel/testmig/async";
const POISONED: &str = "/sys/kernel/testmig/poisoned";
const LAST_REASON: &str = "/sys/kernel/testmig/last_reason";
const ALL_REASONS: &str = "/sys/module/testmig/parameters/all_reasons";
const OLD_CALL: &str = "/sys/module/testmig/parameters/old_call";
const DELAY: &str = "/sys/kernel/testmig/delay_ms";
const CHURN: &str = "/sys/kernel/testmig/churn";
const RULES: &str = "/sys/kernel/testmig/rules";
const MIGRATOR: &str = "/sys/kernel/mm/migrate_offload/migrator";
const MAX_BATCH: &str = "/sys/kernel/mm/migrate_offload/max_batch_pages";

/// Registrations while folios migrate.
const CHURNS: u64 = 1000;
/// They and the mover beside them: testmig waits for up to a second for every eighth.
const CHURN_LIMIT: Duration = Duration::from_secs(330);

pub(super) const SUITES: &[Suite] = &[MISBEHAVING];

const MISBEHAVING: Suite = Suite {
    name: "migration",
    about: "batch copy in page migration, with a migrator that misbehaves on demand",
    kernels: BOTH,
    machine: || Options {
        devices: 0,
        // Half of each node is movable, so that memory blocks can go offline.
        append: "kernelcore=50%".into(),
        modules: vec!["testmig"],
        ..Options::default()
    },
    checks: &[
        Check::new("without-migrator", without_migrator),
        Check::new("rules-of-registration", rules).quick(BOTH),
        Check::new("every-size-and-kind", every_size_and_kind).quick(FAST),
        Check::new("hugetlb-is-left-alone", hugetlb),
        Check::new("unmapped-file-systems", |guest| {
            active(guest, workload::files)
        }),
        Check::new("refuses", refuses_batches).quick(FAST),
        Check::new("declines-fails-lies", declines_fails_lies).quick(FAST),
        Check::new("half-of-the-folios", half).quick(BOTH),
        Check::new("mode-and-reason", mode_and_reason).quick(FAST),
        Check::new("returns-late", late),
        Check::new("writes-after-return", abandons),
        Check::new("pinned-pages", pinned).quick(BOTH),
        Check::new("writers-and-movers", writers_and_movers).quick(FAST),
        Check::new("migrate-pages-and-mbind", |guest| {
            active(guest, workload::calls)
        })
        .quick(FAST),
        Check::new("batch-size", batch_size).quick(FAST),
        Check::new("compaction", |guest| active(guest, workload::compaction)),
        Check::new("numa-balancing", |guest| active(guest, workload::balancing)).quick(FAST),
        Check::new("hot-unplug", |guest| active(guest, workload::hot_unplug)).quick(FAST),
        // After hot-unplug: a block with pages that are marked does not go online again.
        Check::new("poisoned-after-the-copy", poisoned).quick(BOTH),
        Check::new("memory-fails-in-a-batch", memory_fails).quick(FAST),
        Check::new("soft-offline", soft_offline).quick(FAST),
        Check::new("registration-churn", churn),
        Check::new("module-removal", removal),
        Check::soak("long-mix", long_mix),
    ],
};

/// Loads the migrator and registers it in a mode.
pub(super) fn activate(guest: &mut Guest, mode: &str) -> Result<()> {
    guest.ok("[ -d /sys/kernel/testmig ] || modprobe testmig")?;
    set(guest, MODE, mode)?;
    set(guest, DELAY, "20")?;
    set(guest, ACTIVE, "1")
}

pub(super) fn deactivate(guest: &mut Guest) -> Result<()> {
    set(guest, ACTIVE, "0")?;
    let name = guest.ok(&format!("cat {MIGRATOR}"))?;
    ensure!(name.trim() == "none", "{name} is registered");
    guest.expect_clean_dmesg()
}

/// A workload with the migrator copying all of it.
fn active(guest: &mut Guest, workload: Workload) -> Result<String> {
    activate(guest, "copy")?;
    let note = workload(guest, COPIED)?;
    deactivate(guest)?;
    Ok(note)
}

fn without_migrator(guest: &mut Guest) -> Result<String> {
    let mut folios = 0;
    for size in FOLIO_KIB {
        for kind in ["anon", "shmem"] {
            let report = run(
                guest,
                &mover(size, &format!("--kind {kind} --bytes 8M --rounds 2"), &[]),
            )?;
            folios += report.folios_moved()?;
        }
    }
    guest.expect_clean_dmesg()?;
    Ok(format!("{folios} folios"))
}

fn rules(guest: &mut Guest) -> Result<String> {
    guest.ok("modprobe testmig")?;
    let said = guest.ok(&format!(
        "cat {RULES}; dmesg | grep 'testmig: .* expected' || true"
    ))?;
    ensure!(said.trim() == "ok", "{said}");
    set(guest, ACTIVE, "1")?;
    let name = guest.ok(&format!("cat {MIGRATOR}"))?;
    ensure!(name.trim() == "testmig", "{name}");
    deactivate(guest)?;
    Ok(String::new())
}

/// Everything that is anonymous, or mapped shmem, is copied by the migrator, once.
fn every_size_and_kind(guest: &mut Guest) -> Result<String> {
    activate(guest, "copy")?;
    let mut folios = 0;
    for size in FOLIO_KIB {
        for kind in ["anon", "shmem"] {
            let more = format!("--kind {kind} --bytes 8M --rounds 3");
            let report = run(guest, &mover(size, &more, &[FOLIOS, COPIED]))?;
            let moved = report.folios_moved()?;
            let copied = report.counter(COPIED)?;
            ensure!(
                copied >= moved && report.counter(FOLIOS)? == copied,
                "{kind}, {size} KiB: {moved} folios moved, {copied} copied: {report:?}"
            );
            folios += moved;
        }
    }
    deactivate(guest)?;
    Ok(format!("{folios} folios"))
}

/// A private flag of hugetlb folios is the same bit as the mark of a copied folio.
fn hugetlb(guest: &mut Guest) -> Result<String> {
    activate(guest, "copy")?;
    guest.ok("echo 8 > /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages")?;
    let report = run(
        guest,
        &mover(2048, "--kind hugetlb --bytes 8M --rounds 4", &[FOLIOS]),
    )?;
    guest.ok("echo 0 > /proc/sys/vm/nr_hugepages")?;
    let seen = report.counter(FOLIOS)?;
    ensure!(seen == 0, "{seen} hugetlb folios were offered");
    deactivate(guest)?;
    Ok(format!("{} folios", report.folios_moved()?))
}

fn refuses_batches(guest: &mut Guest) -> Result<String> {
    activate(guest, "refuse")?;
    let report = run(guest, &mover(4, "--bytes 8M --rounds 2", &[CALLS, ASKED]))?;
    ensure!(
        report.counter(CALLS)? == 0 && report.counter(ASKED)? > 0,
        "{report:?}"
    );
    // Once for each batch, of which there are 4 in each round; retries may add some.
    let asked = report.counter(ASKED)?;
    ensure!(
        asked < report.folios_moved()? / 64,
        "asked {asked} times for {} folios",
        report.folios_moved()?
    );
    deactivate(guest)?;
    Ok(format!("asked {asked} times"))
}

fn declines_fails_lies(guest: &mut Guest) -> Result<String> {
    for mode in ["decline", "fail", "lie"] {
        activate(guest, mode)?;
        for size in [4, 64, 2048] {
            let report = run(
                guest,
                &mover(size, "--bytes 8M --rounds 3", &[CALLS, COPIED]),
            )?;
            ensure!(
                report.counter(CALLS)? > 0 && report.counter(COPIED)? == 0,
                "{mode}: {report:?}"
            );
        }
        deactivate(guest)?;
    }
    Ok(String::new())
}

fn half(guest: &mut Guest) -> Result<String> {
    activate(guest, "half")?;
    for size in [4, 16, 256, 1024] {
        let report = run(
            guest,
            &mover(size, "--bytes 8M --rounds 3", &[FOLIOS, COPIED]),
        )?;
        let (folios, copied) = (report.counter(FOLIOS)?, report.counter(COPIED)?);
        ensure!(
            copied > 0 && copied < folios && report.folios_moved()? <= folios,
            "{size} KiB: {copied} of {folios}"
        );
    }
    deactivate(guest)?;
    Ok(String::new())
}

/// Sources that are found to be bad between the copy and the move: what was copied from them is
/// rubbish here, and must not be believed.
fn poisoned(guest: &mut Guest) -> Result<String> {
    activate(guest, "poison")?;
    let mut all = 0;
    for size in [4, 64, 2048] {
        let report = run(
            guest,
            &mover(
                size,
                "--bytes 8M --rounds 2 --writers 1",
                &[POISONED, COPIED],
            ),
        )?;
        let (poisoned, copied) = (report.counter(POISONED)?, report.counter(COPIED)?);
        // A batch of 2 MiB folios is a single folio, and each first one of a batch is poisoned.
        ensure!(
            poisoned > 0 && (copied > poisoned || size == 2048),
            "{size} KiB: {report:?}"
        );
        all += poisoned;
    }
    deactivate(guest)?;
    Ok(format!("{all} folios"))
}

/// The kernel's own handling of memory that fails, in the middle of a batch. It gets hold of no
/// page that is isolated, so a mark is all that comes of it; every byte must be right.
fn memory_fails(guest: &mut Guest) -> Result<String> {
    activate(guest, "late")?;
    // Long enough to be found in.
    set(guest, DELAY, "100")?;
    let report = run(
        guest,
        &format!("poisoner --how hard --pages 4 --batches {CALLS} --counter {COPIED}"),
    )?;
    let (marked, taken) = (report.number("/marked")?, report.number("/taken")?);
    ensure!(marked > 0 && report.number("/counter")? > 0, "{report:?}");
    deactivate(guest)?;
    Ok(format!(
        "{marked} pages marked in a batch, {taken} taken out of use"
    ))
}

/// Memory that is about to fail is copied by the processor, unless somebody asks for more.
fn soft_offline(guest: &mut Guest) -> Result<String> {
    let mut copied = Vec::new();
    guest.ok("[ -d /sys/kernel/testmig ] || modprobe testmig")?;
    for all in ["0", "1"] {
        set(guest, ALL_REASONS, all)?;
        activate(guest, "copy")?;
        let report = run(
            guest,
            &format!("poisoner --how soft --pages 4 --counter {CALLS}"),
        )?;
        let moved = report.number("/moved")?;
        ensure!(moved == 4, "{moved} pages were moved: {report:?}");
        copied.push(report.number("/counter")?);
        deactivate(guest)?;
    }
    set(guest, ALL_REASONS, "0")?;
    ensure!(
        copied[0] == 0 && copied[1] >= 4,
        "{copied:?} batches by default, and for all reasons"
    );
    Ok(String::new())
}

/// The migrator is told what the caller of `migrate_pages()` said, not what the core does inside.
fn mode_and_reason(guest: &mut Guest) -> Result<String> {
    activate(guest, "copy")?;
    let report = run(guest, &mover(4, "--bytes 4M", &[CALLS, ASYNC]))?;
    let reason = guest.ok(&format!("cat {LAST_REASON}"))?;
    ensure!(
        report.counter(CALLS)? > 0
            && report.counter(ASYNC)? == 0
            && reason.trim() == "syscall_or_cpuset",
        "move_pages: {reason} {report:?}"
    );
    let before = get(guest, ASYNC)?;
    workload::balancing(guest, COPIED)?;
    let balanced = get(guest, ASYNC)? - before;
    let reason = guest.ok(&format!("cat {LAST_REASON}"))?;
    ensure!(
        balanced > 0 && reason.trim() == "numa_misplaced",
        "NUMA balancing: {balanced} batches that must not sleep, {reason}"
    );
    deactivate(guest)?;

    // One who takes two lists is not told.
    set(guest, OLD_CALL, "1")?;
    activate(guest, "copy")?;
    let report = run(guest, &mover(4, "--bytes 4M --rounds 2", &[COPIED]))?;
    let reason = guest.ok(&format!("cat {LAST_REASON}"))?;
    deactivate(guest)?;
    set(guest, OLD_CALL, "0")?;
    ensure!(
        report.counter(COPIED)? >= report.folios_moved()? && reason.trim() == "none",
        "by two lists: {reason} {report:?}"
    );
    Ok(format!("{balanced} batches that must not sleep"))
}

/// Writers wait for the folios of a batch meanwhile.
fn late(guest: &mut Guest) -> Result<String> {
    activate(guest, "late")?;
    set(guest, DELAY, "200")?;
    let report = run(
        guest,
        &mover(4, "--bytes 8M --rounds 2 --writers 2", &[COPIED]),
    )?;
    ensure!(report.counter(COPIED)? > 0, "{report:?}");
    // Unregistering waits for the one who is inside.
    let load = Load::start(guest, 4, "--bytes 8M --writers 1", &[])?;
    wait_to_grow(guest, CALLS)?;
    deactivate(guest)?;
    load.end(guest)?;
    Ok(String::new())
}

/// The destinations must neither be used nor freed while they may be written to.
fn abandons(guest: &mut Guest) -> Result<String> {
    activate(guest, "abandon")?;
    let report = run(
        guest,
        // Nothing moves; that is what --overlap lets happen.
        &mover(4, "--bytes 4M --rounds 1 --overlap --writers 1", &[CALLS]),
    )?;
    ensure!(report.counter(CALLS)? > 0, "{report:?}");
    run(
        guest,
        &mover(2048, "--bytes 4M --rounds 1 --overlap", &[CALLS]),
    )?;
    // Late writes hit destinations of a moment ago while others allocate and move.
    let job = guest.start(
        &mover(4, "--bytes 4M --for-ms 4000 --overlap --movers 2", &[]),
        PROGRAM_LIMIT,
    )?;
    for _ in 0..3 {
        set(guest, MODE, "copy")?;
        run(guest, &mover(4, "--bytes 8M --rounds 2 --overlap", &[]))?;
        set(guest, MODE, "abandon")?;
        guest.ok("sleep 0.3")?;
    }
    guest.wait_ok(&job)?;
    set(guest, MODE, "copy")?;
    run(guest, &mover(4, "--bytes 8M --rounds 2", &[]))?;
    deactivate(guest)?;
    guest.ok("rmmod testmig && modprobe testmig")?;
    Ok(String::new())
}

/// Extra references: such a folio is not copied in vain.
fn pinned(guest: &mut Guest) -> Result<String> {
    activate(guest, "copy")?;
    let report = run(
        guest,
        &mover(4, "--bytes 4M --rounds 1 --pinned 100", &[FOLIOS]),
    )?;
    let offered = report.counter(FOLIOS)?;
    ensure!(offered == 1024 - 100, "{offered} folios of 924: {report:?}");
    let report = run(
        guest,
        &mover(64, "--bytes 4M --rounds 1 --pinned 16", &[FOLIOS]),
    )?;
    let offered = report.counter(FOLIOS)?;
    ensure!(offered == 64 - 16, "{offered} folios of 48: {report:?}");
    deactivate(guest)?;
    Ok(String::new())
}

fn writers_and_movers(guest: &mut Guest) -> Result<String> {
    activate(guest, "copy")?;
    let note = workload::writers_and_movers(guest, COPIED)?;
    // Half of the folios are left to the processor while writers wait for them.
    set(guest, MODE, "half")?;
    run(
        guest,
        &mover(4, "--bytes 8M --writers 2 --movers 2 --rounds 4", &[]),
    )?;
    deactivate(guest)?;
    Ok(note)
}

fn batch_size(guest: &mut Guest) -> Result<String> {
    activate(guest, "copy")?;
    let default = get(guest, MAX_BATCH)?;
    ensure!(default == 512, "the default is {default}");
    let more = "--bytes 16M --rounds 1";
    let small = run(guest, &mover(2048, more, &[CALLS]))?.counter(CALLS)?;
    set(guest, MAX_BATCH, "4096")?;
    let large = run(guest, &mover(2048, more, &[CALLS]))?.counter(CALLS)?;
    set(guest, MAX_BATCH, "1")?;
    let single = run(guest, &mover(4, "--bytes 1M --rounds 1", &[CALLS]))?.counter(CALLS)?;
    for bad in ["262145", "-1", "many"] {
        refuses(guest, MAX_BATCH, bad)?;
    }
    set(guest, MAX_BATCH, "0")?;
    ensure!(get(guest, MAX_BATCH)? == default);
    ensure!(
        small == 8 && large == 1 && single == 256,
        "{small}, {large} and {single} batches"
    );
    deactivate(guest)?;
    Ok(format!("8 folios in {small} batches or {large}"))
}

/// Registers and unregisters while folios migrate.
fn churn(guest: &mut Guest) -> Result<String> {
    guest.ok("[ -d /sys/kernel/testmig ] || modprobe testmig")?;
    set(guest, MODE, "copy")?;
    set(guest, ACTIVE, "0")?;
    // Short batches: many of them begin and end while one is registered.
    set(guest, MAX_BATCH, "16")?;
    let before = get(guest, CALLS)?;
    let load = Load::start(guest, 4, "--bytes 4M --movers 2 --writers 1", &[])?;
    guest.ok_within(&format!("sleep 0.5; echo {CHURNS} > {CHURN}"), CHURN_LIMIT)?;
    let calls = get(guest, CALLS)?.saturating_sub(before);
    let moved = load.end(guest)?.folios_moved()?;
    set(guest, MAX_BATCH, "0")?;
    ensure!(
        calls > 100 && moved > 0,
        "{calls} batches while registering, {moved} folios moved"
    );
    deactivate(guest)?;
    Ok(format!("{CHURNS} registrations, {calls} batches"))
}

fn removal(guest: &mut Guest) -> Result<String> {
    // Pinned: not while it is registered.
    activate(guest, "copy")?;
    let out = guest.sh("rmmod testmig")?;
    ensure!(out.code != 0, "a registered migrator was removed");
    deactivate(guest)?;
    guest.ok("rmmod testmig")?;

    // Without an owner: at any moment.
    let note = workload::removals(
        guest,
        CALLS,
        &format!(
            "modprobe testmig pin=0 && \
             echo $([ $((i % 2)) = 0 ] && echo late || echo copy) > {MODE} && echo 1 > {ACTIVE}"
        ),
        "rmmod testmig",
    )?;
    guest.ok("modprobe testmig")?;
    Ok(note)
}

/// Everything at once, for long.
fn long_mix(guest: &mut Guest) -> Result<String> {
    const LIMIT: Duration = Duration::from_secs(900);
    activate(guest, "copy")?;
    let jobs = [
        mover(4, "--bytes 8M --for-ms 300000 --movers 2 --writers 2", &[]),
        mover(
            64,
            "--bytes 8M --for-ms 300000 --movers 2 --writers 1 --overlap",
            &[],
        ),
        mover(
            2048,
            "--bytes 16M --for-ms 300000 --writers 1 --overlap",
            &[],
        ),
        mover(16, "--kind shmem --bytes 8M --for-ms 300000 --overlap", &[]),
    ]
    .iter()
    .map(|command| {
        let job = guest.start(command, LIMIT)?;
        // The size of folios is a setting of the whole machine: the next one changes it.
        guest.ok("sleep 5")?;
        Ok(job)
    })
    .collect::<Result<Vec<_>>>()?;
    let modes = [
        "half", "late", "fail", "copy", "lie", "decline", "refuse", "copy",
    ];
    for mode in modes.iter().cycle().take(250) {
        set(guest, MODE, mode)?;
        guest.ok("sleep 0.5; echo 1 > /proc/sys/vm/compact_memory")?;
    }
    set(guest, MODE, "copy")?;
    let mut moved = 0;
    for job in &jobs {
        let text = guest.wait_ok(job)?;
        moved += parse("mover", &text)?.folios_moved()?;
    }
    deactivate(guest)?;
    Ok(format!("{moved} folios"))
}
