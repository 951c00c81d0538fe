//! What every migrator has to carry: each way in which the kernel comes to migrate.
//!
//! The migrator is at work already, and says by a counter file how many folios it has
//! copied. Each workload checks every byte itself, and fails when the counter stands
//! still: then the CPU has copied, which proves nothing.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::mover::{Load, PROGRAM_LIMIT, mover, run, set};
use crate::machine::Guest;

/// One way of migrating; it gets the counter file.
pub(super) type Workload = fn(&mut Guest, &str) -> Result<String>;

/// `migrate_pages(2)` and `mbind(2)`, of small and of huge folios.
pub(super) fn calls(guest: &mut Guest, counter: &str) -> Result<String> {
    for call in ["migrate_pages", "mbind"] {
        for size in [4, 2048] {
            let more = format!("--call {call} --bytes 8M --rounds 2");
            let report = run(guest, &mover(size, &more, &[counter]))?;
            ensure!(report.counter(counter)? > 0, "{call}: {report:?}");
        }
    }
    Ok(String::new())
}

/// tmpfs migrates by the generic function, ext4 by one that guards buffers.
pub(super) fn files(guest: &mut Guest, counter: &str) -> Result<String> {
    const FILE: &str = "--kind file --bytes 8M --rounds 2";
    guest.ok("mkdir -p /tmp/tmpfs && mount -t tmpfs none /tmp/tmpfs")?;
    let more = format!("{FILE} --path /tmp/tmpfs/f");
    let report = run(guest, &mover(4, &more, &[counter]))?;
    guest.ok("umount /tmp/tmpfs")?;
    ensure!(
        report.counter(counter)? >= report.folios_moved()?,
        "tmpfs: {report:?}"
    );

    guest.ok(
        "dd if=/dev/zero of=/tmp/disk bs=1M count=48 2> /dev/null && mke2fs -F /tmp/disk && \
         mkdir -p /tmp/ext && losetup /dev/loop0 /tmp/disk && mount -t ext4 /dev/loop0 /tmp/ext",
    )?;
    let more = format!("{FILE} --path /tmp/ext/f");
    let report = run(guest, &mover(4, &more, &[counter]))?;
    guest.ok("umount /tmp/ext && losetup -d /dev/loop0 && rm /tmp/disk")?;
    Ok(format!(
        "ext: {} of {} copied in batches",
        report.counter(counter)?,
        report.folios_moved()?
    ))
}

/// By `/proc/sys/vm/compact_memory`, and by the faults of huge pages.
pub(super) fn compaction(guest: &mut Guest, counter: &str) -> Result<String> {
    let mut copied = 0;
    for how in ["--bytes-mib 64", "--bytes-mib 96 --huge-mib 24"] {
        let command = format!("compactor {how} --counter {counter}");
        let report = run(guest, &command)?;
        let by_migrator = report.counter(counter)?;
        ensure!(
            by_migrator > 0,
            "`{command}` did not use the migrator: {report:?}"
        );
        copied += by_migrator;
    }
    Ok(format!("{copied} folios"))
}

/// NUMA balancing.
pub(super) fn balancing(guest: &mut Guest, counter: &str) -> Result<String> {
    let report = run(
        guest,
        &format!("balancer --bytes-mib 8 --counter {counter}"),
    )?;
    ensure!(
        report.number("/counter")? > 0,
        "balancing did not use the migrator: {report:?}"
    );
    Ok(format!(
        "{} of {} pages",
        report.number("/moved_here")?,
        report.number("/pages")?
    ))
}

/// Memory blocks go offline; the machine needs `kernelcore=50%`.
pub(super) fn hot_unplug(guest: &mut Guest, counter: &str) -> Result<String> {
    let report = run(
        guest,
        &format!("offliner --bytes-mib 32 --counter {counter}"),
    )?;
    ensure!(
        report.number("/counter")? > 0,
        "hot-unplug did not use the migrator: {report:?}"
    );
    Ok(format!(
        "{} of {} blocks",
        report.number("/emptied")?,
        report.number("/blocks")?
    ))
}

/// Threads that write to the memory, and several that move it, some of them the same.
pub(super) fn writers_and_movers(guest: &mut Guest, counter: &str) -> Result<String> {
    let mut writes = 0;
    for (size, more) in [
        (4, "--writers 2 --movers 2 --rounds 6"),
        (4, "--writers 2 --movers 4 --overlap --rounds 4"),
        (64, "--writers 2 --movers 4 --overlap --rounds 6"),
        (2048, "--writers 2 --movers 2 --rounds 8 --kind shmem"),
    ] {
        let command = mover(size, &format!("--bytes 8M {more}"), &[counter]);
        let report = run(guest, &command)?;
        ensure!(report.counter(counter)? > 0, "{report:?}");
        writes += report.number("/writes")?;
    }
    ensure!(writes > 0, "the writers wrote nothing");
    Ok(format!("{writes} writes"))
}

/// Loads a migrator, lets it copy and removes it, again and again, while memory moves.
///
/// `load` and `unload` are shell commands, which find the number of the round in `$i`. A removal
/// waits, for a few seconds, until the counter has moved: under the debug kernel a batch takes its
/// time.
pub(super) fn removals(
    guest: &mut Guest,
    counter: &str,
    load: &str,
    unload: &str,
) -> Result<String> {
    const TIMES: u32 = 20;
    // Three seconds each on an idle host, of which two others may be taking half.
    const LIMIT: Duration = PROGRAM_LIMIT.saturating_mul(3);
    let movers = Load::start(guest, 4, "--bytes 4M --movers 2 --writers 1", &[])?;
    let text = guest.ok_within(
        &format!(
            "for i in $(seq {TIMES}); do {load} || exit 1; for j in $(seq 20); do sleep 0.1; \
             [ $(cat {counter}) != 0 ] && break; done; cat {counter}; {unload} || exit 1; done"
        ),
        LIMIT,
    )?;
    movers.end(guest)?;
    let met: u64 = text
        .lines()
        .filter_map(|line| line.parse::<u64>().ok())
        .sum();
    ensure!(met > 0, "no removal met a migration: {text}");
    guest.expect_clean_dmesg()?;
    Ok(format!("{TIMES} removals, {met} counted"))
}

/// Only those reasons for which it was asked, by the control file of its mask.
pub(super) fn reasons(guest: &mut Guest, counter: &str, mask: &str) -> Result<String> {
    for (names, folios) in [("compaction,demotion", 0), ("syscall_or_cpuset", 1024)] {
        set(guest, mask, names)?;
        let report = run(guest, &mover(4, "--bytes 4M", &[counter]))?;
        ensure!(report.counter(counter)? == folios, "{names}: {report:?}");
    }
    set(guest, mask, "all")?;
    Ok(String::new())
}
