//! How long anybody waits for our migrator when engines stand still: reclaim, compaction, a call
//! of `move_pages`, a touch of a page, a reset of another function.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::kshim::{ALL, MIGRATED, QUARANTINED, SMALLEST, TIMEOUT, start, sum_of};
use super::mover::{PROGRAM_LIMIT, Report, get, mover, run, set, wait_until};
use super::{BOTH, Check, FAST, Suite};
use crate::machine::{Guest, Options};

const EVENTS: &str = "/sys/kernel/tracing/events/ptdma_migrator";
const TRACE: &str = "/sys/kernel/tracing/trace";
/// The least that a batch may take here, and what is set.
const TIMEOUT_MS: u64 = 300;
/// What a batch may take beyond its time. A few milliseconds are for proofs that its engines have
/// stopped; the rest is for an emulated processor that others keep from running.
const BEYOND_MS: u64 = 100;
/// What a task may wait: for a batch that ends by its time, for another one that it meets when it
/// tries again, and for the move of all folios of both.
const WAIT_MS: u64 = 3 * (TIMEOUT_MS + BEYOND_MS);

pub(super) const SUITES: &[Suite] = &[
    Suite {
        name: "kshim-tiers",
        about: "engines that stand still while a node's memory runs out",
        // The debug kernel leaves 128 MiB of such a node.
        kernels: FAST,
        machine: || Options {
            devices: 8,
            memory_only_node: true,
            // Less than the program wants, and enough of the slower one to take it.
            node_memory_mib: 320,
            modules: vec!["kshim", "testtier"],
            ..Options::default()
        },
        checks: &[
            Check::new("demotion", demotion).quick(FAST),
            Check::new("compaction", compaction).quick(FAST),
        ],
    },
    Suite {
        name: "kshim-hang",
        about: "sixteen engines that stand still at once",
        kernels: BOTH,
        machine: || Options {
            devices: 16,
            modules: vec!["kshim"],
            ..Options::default()
        },
        checks: &[Check::new("all-at-once", all_at_once).quick(FAST)],
    },
    Suite {
        name: "kshim-lost-reset",
        about: "functions that do not come back from their reset",
        kernels: BOTH,
        machine: || Options {
            devices: 4,
            machines: vec!["sibling", "sibling", "one_way", "one_way"],
            modules: vec!["kshim"],
            ..Options::default()
        },
        checks: &[
            Check::spoiling("nobody-waits", lost_reset).quick(FAST),
            Check::spoiling("unloading-ends", lost_reset_and_unload).only_fast(),
        ],
    },
];

/// An engine that stands still, whatever is done to it short of a reset.
fn stall(trigger: Value) -> Value {
    json!({"trigger": trigger, "kind": {"stall": {"for": "ever", "haltable": false}}})
}

/// The kernel reports who sleeps without being interruptible for longer than a task may wait.
fn watch_for_hung_tasks(guest: &mut Guest) -> Result<()> {
    let seconds = guest.scaled(Duration::from_millis(WAIT_MS)).as_secs() + 1;
    guest.ok(&format!(
        "echo 1 > /proc/sys/kernel/hung_task_check_interval_secs && \
         echo {seconds} > /proc/sys/kernel/hung_task_timeout_secs && \
         echo -1 > /proc/sys/kernel/hung_task_warnings"
    ))?;
    Ok(())
}

fn wait_limit(guest: &Guest) -> u64 {
    guest
        .scaled(Duration::from_millis(WAIT_MS))
        .as_micros()
        .try_into()
        .unwrap_or(u64::MAX)
}

/// Nothing that the program timed took longer than a task may wait.
fn expect_short(guest: &Guest, what: &str, longest_us: u64) -> Result<()> {
    let limit = wait_limit(guest);
    ensure!(
        longest_us <= limit,
        "{what} took {longest_us} us, {limit} us are allowed"
    );
    Ok(())
}

/// The times of the batches in the trace, in microseconds: each begins and ends on one task.
fn batch_times_us(trace: &str) -> Result<Vec<u64>> {
    let mut began: Vec<(String, u64)> = Vec::new();
    let mut times = Vec::new();
    for line in trace.lines() {
        let (start, end) = (
            line.contains(" ptdma_batch_start:"),
            line.contains(" ptdma_batch_end:"),
        );
        if !start && !end {
            continue;
        }
        // `          mover-123     [001] .....    12.345678: ptdma_batch_start: ...`
        let (task, rest) = line.split_once('[').context(line.to_owned())?;
        let (head, _) = rest.split_once(": ptdma_batch_").context(line.to_owned())?;
        let time = head.split_whitespace().last().context(line.to_owned())?;
        let (seconds, micros) = time.split_once('.').context(line.to_owned())?;
        let now = seconds.parse::<u64>()? * 1_000_000 + micros.parse::<u64>()?;
        let task = task.trim().to_owned();
        if start {
            began.push((task, now));
        } else if let Some(at) = began.iter().position(|(other, _)| *other == task) {
            times.push(now - began.swap_remove(at).1);
        }
    }
    Ok(times)
}

fn trace_batches(guest: &mut Guest) -> Result<()> {
    guest.ok(&format!(
        "for e in start end; do echo 1 > {EVENTS}/ptdma_batch_$e/enable || exit 1; done; \
         echo > {TRACE}"
    ))?;
    Ok(())
}

/// No batch took longer than its time and a bit; returns the longest, in milliseconds.
fn expect_batches_in_time(guest: &mut Guest) -> Result<u64> {
    let text = guest.ok(&format!(
        "grep -E ' ptdma_batch_(start|end):' {TRACE}; true"
    ))?;
    let longest = batch_times_us(&text)?.into_iter().max().unwrap_or(0) / 1000;
    // The time limit is the module's own, on either kernel.
    let beyond = guest.scaled(Duration::from_millis(BEYOND_MS)).as_millis();
    ensure!(
        u128::from(longest) <= u128::from(TIMEOUT_MS) + beyond,
        "a batch took {longest} ms, and {TIMEOUT_MS} ms are its time"
    );
    Ok(longest)
}

/// Runs a program under memory pressure without and with engines that stand still.
fn under_pressure(
    guest: &mut Guest,
    command: &str,
    expect: fn(&Report) -> Result<String>,
) -> Result<String> {
    start(guest, guest.options().devices)?;
    set(guest, TIMEOUT, &TIMEOUT_MS.to_string())?;
    watch_for_hung_tasks(guest)?;
    trace_batches(guest)?;
    let mut notes = Vec::new();
    for stalls in [false, true] {
        if stalls {
            // One after the other, as the work comes to them.
            for device in 0..guest.options().devices {
                let first = 3 * u64::try_from(device)?;
                guest
                    .server()?
                    .fault(Some(device), &stall(json!({"at": first})))?;
            }
        }
        let report = run(guest, command)?;
        let seen = guest.server()?.reset_counters()?;
        ensure!(
            !stalls || seen.faults > 0,
            "no engine stood still: {seen:?} {report:?}"
        );
        let longest = report.number("/longest_us")?;
        expect_short(guest, "a touch", longest)?;
        let batch = expect_batches_in_time(guest)?;
        notes.push(format!(
            "{} with {} stalls: longest touch {} ms, longest batch {batch} ms",
            expect(&report)?,
            seen.faults,
            longest / 1000
        ));
    }
    guest.server()?.clear_faults(None)?;
    guest.expect_clean_dmesg()?;
    // Each comes back, and what was held is given back.
    wait_until(guest, QUARANTINED, "-eq 0")?;
    guest
        .ok("echo 0 > /sys/module/ptdma_migrator/parameters/offloading && rmmod ptdma_migrator")?;
    guest.expect_clean_dmesg()?;
    Ok(notes.join("; "))
}

/// More memory than the fast node has: kswapd moves what is old to the slower node.
fn demotion(guest: &mut Guest) -> Result<String> {
    guest.ok("modprobe testtier node=1 && echo 1 > /sys/kernel/mm/numa/demotion_enabled")?;
    under_pressure(
        guest,
        &format!("presser --bytes-mib 320 --counter {MIGRATED}"),
        |report| {
            let demoted = report.number("/pgdemote_kswapd")? + report.number("/pgdemote_direct")?;
            ensure!(demoted > 0, "nothing was demoted: {report:?}");
            Ok(format!(
                "{demoted} pages demoted, {} copied by engines",
                report.number("/counter")?
            ))
        },
    )
}

/// Faults of huge pages where no huge page is free.
fn compaction(guest: &mut Guest) -> Result<String> {
    under_pressure(
        guest,
        &format!("compactor --bytes-mib 96 --huge-mib 24 --counter {MIGRATED}"),
        |report| {
            let stalls = report.number("/vmstat/compact_stall")?;
            ensure!(stalls > 0, "nobody compacted: {report:?}");
            Ok(format!(
                "{stalls} faults compacted, {} folios copied by engines",
                report.counter(MIGRATED)?
            ))
        },
    )
}

/// All engines stop for good in the middle of one batch, and heed nothing. The batch ends by its
/// time all the same, the channels come back later.
fn all_at_once(guest: &mut Guest) -> Result<String> {
    start(guest, 16)?;
    set(guest, TIMEOUT, &TIMEOUT_MS.to_string())?;
    watch_for_hung_tasks(guest)?;
    trace_batches(guest)?;
    guest.server()?.fault(None, &stall(json!({"at": 2})))?;
    guest
        .server()?
        .fault(None, &json!({"trigger": "now", "kind": "ignore_halt"}))?;
    let report = run(
        guest,
        &mover(
            4,
            "--bytes 16M --rounds 2 --writers 1 --overlap --timed",
            &ALL,
        ),
    )?;
    let stuck = guest.server()?.counters_by_device()?;
    let stuck = stuck.iter().filter(|one| one.faults > 0).count();
    ensure!(stuck == 16, "{stuck} of 16 engines stood still: {report:?}");
    let batch = expect_batches_in_time(guest)?;
    let write = report.number("/longest_write_us")?;
    expect_short(guest, "a write", write)?;
    guest.expect_clean_dmesg()?;

    guest.server()?.clear_faults(None)?;
    wait_until(guest, QUARANTINED, "-eq 0")?;
    expect_all_copy(guest)?;
    guest
        .ok("echo 0 > /sys/module/ptdma_migrator/parameters/offloading && rmmod ptdma_migrator")?;
    guest.expect_clean_dmesg()?;
    Ok(format!(
        "longest batch {batch} ms, longest write {} ms",
        write / 1000
    ))
}

/// Each function copies, once its channel is back; that may be tenths of a second after its engine
/// has recovered.
fn expect_all_copy(guest: &mut Guest) -> Result<()> {
    const TRIES: usize = 40;
    let mut each = Vec::new();
    for _ in 0..TRIES {
        guest.server()?.reset_counters()?;
        run(guest, &mover(4, "--bytes 8M --rounds 2", &[]))?;
        each = guest.server()?.counters_by_device()?;
        if each.iter().all(|one| one.bytes > 0) {
            return Ok(());
        }
        guest.ok("sleep 0.25")?;
    }
    anyhow::bail!("a channel is out of use: {each:?}")
}

/// Two engines stop for good, and their functions do not come back from the reset. Who migrates,
/// who touches a page and who resets another function is not kept waiting for them.
fn lost_reset(guest: &mut Guest) -> Result<String> {
    // A reset takes a tenth of a second by itself, and the kernel looks for the function longer.
    const RESET: Duration = Duration::from_secs(3);
    start(guest, 4)?;
    // The kernel tries what did not move again, folio by folio: those are the CPU's.
    set(guest, SMALLEST, "0")?;
    set(guest, TIMEOUT, &TIMEOUT_MS.to_string())?;
    // Hung tasks are not watched for: the work item itself waits for a minute. Who else waits is timed.
    trace_batches(guest)?;
    for lost in [2, 3] {
        guest
            .server()?
            .fault(Some(lost), &stall(json!({"at": 2})))?;
    }
    let report = run(
        guest,
        &mover(
            4,
            "--bytes 16M --rounds 2 --writers 1 --overlap --timed",
            &ALL,
        ),
    )?;
    let batch = expect_batches_in_time(guest)?;
    let (write, call) = (
        report.number("/longest_write_us")?,
        report.number("/longest_call_us")?,
    );
    expect_short(guest, "a write", write)?;
    // A call moves 4096 pages, eight batches, two of which may meet the engines.
    expect_short(guest, "a call", call / 2)?;
    let hangs = sum_of(guest, "hangs")?;
    ensure!(hangs >= 2, "{hangs} engines hang");

    // Another function's reset, and the others' work, while the kernel waits for the lost ones.
    let other = guest.options().address_of(0);
    guest.ok_within(
        &format!("echo 1 > /sys/bus/pci/devices/{other}/reset"),
        RESET,
    )?;
    guest.server()?.reset_counters()?;
    let report = run(
        guest,
        &mover(4, "--bytes 8M --rounds 2 --writers 1 --timed", &ALL),
    )?;
    expect_short(guest, "a write", report.number("/longest_write_us")?)?;
    let each = guest.server()?.counters_by_device()?;
    let copies: Vec<bool> = each.iter().map(|one| one.bytes > 0).collect();
    ensure!(
        copies == [true, true, false, false],
        "{copies:?} of the functions copy: {report:?}"
    );
    let held = get(guest, QUARANTINED)?;
    guest.expect_clean_dmesg()?;
    Ok(format!(
        "longest batch {batch} ms, write {} ms, call {} ms; {held} folios held",
        write / 1000,
        call / 1000
    ))
}

/// The kernel gives a reset up after a minute. Who unloads the module waits for that, and no longer.
fn lost_reset_and_unload(guest: &mut Guest) -> Result<String> {
    let note = lost_reset(guest)?;
    guest.ok_within(
        "echo 0 > /sys/module/ptdma_migrator/parameters/offloading && rmmod ptdma_migrator",
        PROGRAM_LIMIT,
    )?;
    guest.expect_clean_dmesg()?;
    Ok(note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_timed_by_task() -> Result<()> {
        let trace = "  mover-12  [001] .....   1.000100: ptdma_batch_start: folios=1\n\
                     kswapd0-40 [000] .....   1.000200: ptdma_batch_start: folios=1\n\
                       mover-12  [000] .....   1.000350: ptdma_batch_end: folios=1\n\
                     kswapd0-40 [000] .....   2.000000: ptdma_batch_end: folios=1\n";
        assert_eq!(batch_times_us(trace)?, [250, 999_800]);
        Ok(())
    }
}
