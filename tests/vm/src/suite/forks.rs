//! Sixteen engines, each of another kind: every answer that silicon may have to what nobody has
//! told us is the answer of one of them.
//!
//! Our module binds each, finds out what it is like, and copies with it while descriptors fail.
//! The stock driver and `dmatest` are the control: what they accept may exist.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ptdma_model::Forks;
use ptdma_model::forks::{ErrorHead, Halt, JobStatus, Machine, Restart, RingLimit};
use serde_json::json;

use super::kshim::{ALL, FAILURES, MIGRATED, PARAMETERS, start, stop_after_faults, sum_of};
use super::mover::{mover, run};
use super::{BOTH, Check, FAST, Suite};
use crate::machine::{Guest, Options};

/// Of so many descriptors of each engine one fails: no divisor of any ring, so that each slot
/// has its turn.
const FAILS_EACH: u64 = 17;
/// Input DMA 0, AXI slave error.
const ERROR_CODE: u64 = 19;
/// Copies of each channel by the stock driver.
const STOCK_COPIES: u64 = 50;
const STOCK_LIMIT: Duration = Duration::from_secs(120);

pub(super) const SUITES: &[Suite] = &[
    Suite {
        name: "forks",
        about: "sixteen engines, each of another kind: found out, and used",
        kernels: BOTH,
        machine: || all(vec!["kshim"]),
        checks: &[
            Check::new("found-out", found_out).quick(FAST),
            Check::new("failing", failing).quick(FAST),
            Check::new("lost-interrupts", nothing_overdue).quick(FAST),
        ],
    },
    Suite {
        name: "forks-stock",
        about: "which of them the stock driver accepts",
        kernels: FAST,
        machine: || all(Vec::new()),
        checks: &[Check::new("dmatest", stock)],
    },
];

/// All machines but the one that every other suite has.
fn machines() -> impl Iterator<Item = &'static Machine> {
    Forks::MACHINES
        .iter()
        .filter(|machine| machine.name != "today")
}

fn all(modules: Vec<&'static str>) -> Options {
    Options {
        devices: machines().count(),
        machines: machines().map(|machine| machine.name).collect(),
        modules,
        ..Options::default()
    }
}

fn of_function(guest: &mut Guest, index: usize, file: &str) -> Result<String> {
    let address = guest.options().address_of(index);
    let text = guest.ok(&format!("cat /sys/bus/pci/devices/{address}/ptdma/{file}"))?;
    Ok(text.trim().to_owned())
}

/// What the module says of an engine must be what the engine was set to. What it does not know is
/// no mistake, but for how the engine goes on and how long its ring is: both decide how it is used.
fn judge(machine: &Machine, said: &str) -> Result<()> {
    let forks = machine.forks;
    let restart = match forks.restart {
        Restart::Tail => "goes on by the tail",
        Restart::Run => "needs RUN for each burst",
    };
    ensure!(said.contains(restart), "`{restart}` is not said");
    let ring = said
        .split_once("ring ")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .context("no ring is told of")?;
    let ring: u64 = ring.parse().with_context(|| ring.to_owned())?;
    match forks.ring {
        RingLimit::No => ensure!(ring > 32, "a ring of {ring}"),
        RingLimit::ReadsBack(log2) | RingLimit::Wraps(log2) => {
            ensure!(ring == 1 << log2, "a ring of {ring}, not {}", 1 << log2);
        }
    }
    for (wrong, never) in [
        ("error at the failure", forks.error_head != ErrorHead::At),
        (
            "error behind the failure",
            forks.error_head == ErrorHead::At,
        ),
        ("job field 1", forks.job_status == JobStatus::Absent),
        (
            "drained 1",
            matches!(forks.halt, Halt::Never | Halt::OnError),
        ),
        ("at rest 1", forks.halt == Halt::Never),
        ("stopped 1", forks.halt == Halt::Never),
    ] {
        // RUN has a word of its own about a drained ring, behind a comma.
        let said = said.split(", RUN").next().unwrap_or(said);
        ensure!(!(never && said.contains(wrong)), "`{wrong}` is said");
    }
    Ok(())
}

/// Each is bound, passes the self-test, and is known for what it is.
fn found_out(guest: &mut Guest) -> Result<String> {
    guest.ok("modprobe ptdma_migrator selftest=1")?;
    let text = guest.ok(&format!("cat {PARAMETERS}/selftest"))?;
    let passed = text.matches("passed").count();
    ensure!(passed == machines().count(), "{passed} passed: {text}");
    let mut wrong = Vec::new();
    for (index, machine) in machines().enumerate() {
        let state = of_function(guest, index, "state")?;
        ensure!(state == "running", "{}: {state}", machine.name);
        let said = of_function(guest, index, "engine")?;
        if let Err(error) = judge(machine, &said) {
            wrong.push(format!(
                "{} ({}): {error}: {said}",
                machine.name, machine.forks
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    guest.ok("rmmod ptdma_migrator")?;
    guest.expect_clean_dmesg()?;
    Ok(format!("{passed} kinds"))
}

/// Every seventeenth descriptor fails. Every byte is right all the same, no channel is lost, and
/// each engine has copied and failed.
fn failing(guest: &mut Guest) -> Result<String> {
    let devices = guest.options().devices;
    start(guest, devices)?;
    let fault = json!({
        "trigger": {"every": {"n": FAILS_EACH, "offset": 5}},
        "kind": {"error": {"code": ERROR_CODE}},
    });
    guest.server()?.fault(None, &fault)?;
    let mut failures = 0;
    for (size, more) in [
        (4, "--bytes 16M --rounds 6 --writers 1 --movers 2"),
        (64, "--bytes 16M --rounds 6 --writers 1"),
        (2048, "--bytes 16M --rounds 4 --movers 2"),
    ] {
        let report = run(guest, &mover(size, more, &ALL))?;
        ensure!(report.counter(MIGRATED)? > 0, "{size} KiB: {report:?}");
        failures += report.counter(FAILURES)?;
    }
    let seen = guest.server()?.counters_by_device()?;
    guest.server()?.clear_faults(None)?;
    let mut idle = Vec::new();
    for (machine, seen) in machines().zip(&seen) {
        if seen.bytes == 0 || seen.errors == 0 {
            idle.push(format!(
                "{}: {} bytes, {} errors",
                machine.name, seen.bytes, seen.errors
            ));
        }
    }
    ensure!(idle.is_empty(), "{}", idle.join("\n"));
    ensure!(failures > 0, "no folio was left to the CPU: {seen:?}");

    let mut down = Vec::new();
    for (index, machine) in machines().enumerate() {
        let state = of_function(guest, index, "state")?;
        if state != "running" {
            down.push(format!("{}: {state}", machine.name));
        }
    }
    ensure!(down.is_empty(), "{}", down.join("\n"));
    guest.server()?.reset_counters()?;
    let report = run(guest, &mover(4, "--bytes 16M --rounds 2", &ALL))?;
    let each = guest.server()?.counters_by_device()?;
    ensure!(
        each.iter().all(|one| one.bytes > 0) && report.counter(FAILURES)? == 0,
        "a channel is out of use: {each:?} {report:?}"
    );
    let errors: u64 = seen.iter().map(|one| one.errors).sum();
    stop_after_faults(guest)?;
    Ok(format!(
        "{errors} descriptors failed, {failures} folios by the CPU"
    ))
}

/// Nobody waits for an interrupt in vain, on the likeliest silicon least of all.
fn nothing_overdue(guest: &mut Guest) -> Result<String> {
    // A busy host keeps an engine, or the interrupt, from running in time now and then.
    const LATE: u64 = 3;
    let devices = guest.options().devices;
    start(guest, devices)?;
    let fault = json!({
        "trigger": {"every": {"n": FAILS_EACH, "offset": 5}},
        "kind": {"error": {"code": ERROR_CODE}},
    });
    for fails in [false, true] {
        if fails {
            guest.server()?.fault(None, &fault)?;
        }
        run(guest, &mover(4, "--bytes 8M --rounds 6 --movers 2", &ALL))?;
    }
    guest.server()?.clear_faults(None)?;
    let (sleeps, overdue) = (sum_of(guest, "sleeps")?, sum_of(guest, "overdue_waits")?);
    let mut lost = Vec::new();
    for (index, machine) in machines().enumerate() {
        let count = of_function(guest, index, "lost_interrupts")?;
        let count: u64 = count.parse().context(count.clone())?;
        ensure!(
            machine.name != "sibling" || count <= LATE,
            "{count} interrupts of the sibling were lost"
        );
        if count > 0 {
            lost.push(format!("{} {count}", machine.name));
        }
    }
    ensure!(
        overdue <= sleeps / 10 + LATE * devices as u64,
        "{overdue} of {sleeps} sleeps were not ended by an interrupt"
    );
    stop_after_faults(guest)?;
    Ok(format!(
        "{overdue} of {sleeps} waits overdue; lost interrupts: {}",
        lost.join(", ")
    ))
}

/// Each channel's summary of dmatest, by the channel's name: tests and failures.
fn summaries(log: &str) -> BTreeMap<String, (u64, u64)> {
    log.lines()
        .filter_map(|line| {
            // `dmatest: dma0chan0-copy0: summary 50 tests, 0 failures 812.21 iops ...`
            // A thread's name ends after 15 characters: `dma10chan0-copy: summary`.
            let (thread, rest) = line.split_once(": summary ")?;
            let (channel, _) = thread.rsplit(' ').next()?.split_once("-copy")?;
            let mut words = rest.split_whitespace();
            let tests = words.next()?.parse().ok()?;
            let failures = words.nth(1)?.parse().ok()?;
            Some((channel.to_owned(), (tests, failures)))
        })
        .collect()
}

fn stock(guest: &mut Guest) -> Result<String> {
    guest.ok("modprobe ptdma")?;
    let names = guest.ok("for c in /sys/class/dma/*; do \
         echo $(basename $c) $(basename $(readlink -f $c/device)); done")?;
    guest.ok("dmesg -c > /dev/null")?;
    guest.ok_within(
        &format!(
            "modprobe dmatest iterations={STOCK_COPIES} test_buf_size=4096 timeout=2000 run=1 \
             && cat /sys/module/dmatest/parameters/wait > /dev/null"
        ),
        STOCK_LIMIT,
    )?;
    let log = guest.ok("dmesg | grep dmatest:")?;
    let summaries = summaries(&log);
    let mut refused = Vec::new();
    for (index, machine) in machines().enumerate() {
        let address = guest.options().address_of(index);
        let result = names
            .lines()
            .find_map(|line| line.strip_suffix(&format!(" {address}")))
            .and_then(|channel| summaries.get(channel));
        if result != Some(&(STOCK_COPIES, 0)) {
            refused.push(format!("{}: {result:?}", machine.name));
        }
    }
    ensure!(refused.is_empty(), "{}\n{log}", refused.join("\n"));
    guest.ok("rmmod dmatest && rmmod ptdma")?;
    guest.expect_clean_dmesg()?;
    Ok(format!("{} kinds", summaries.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(name: &str) -> &'static Machine {
        machines().find(|one| one.name == name).expect("a machine")
    }

    #[test]
    fn there_are_sixteen_kinds() {
        assert_eq!(machines().count(), 16);
    }

    #[test]
    fn what_is_said_is_judged() {
        let said = "goes on by the tail, head after an error not known, ring 1024 of 1024, HALT 1 \
                    at rest 1 drained 1 stopped 0 cleared by a write, RUN 1 drained, job field 1";
        assert!(judge(machine("sibling"), said).is_ok());
        for other in ["dpdk", "short_ring", "silent"] {
            assert!(judge(machine(other), said).is_err(), "{other}");
        }
        let wrong = said.replace("error not known", "error behind the failure");
        assert!(judge(machine("sibling"), &wrong).is_err());
    }

    #[test]
    fn channels_of_dmatest_are_told_apart() {
        let log = "[1.0] dmatest: dma0chan0-copy0: summary 50 tests, 0 failures 8.2 iops 6 KB/s (0)\n\
                   [1.0] dmatest: dma10chan0-copy: summary 50 tests, 2 failures 8.2 iops 6 KB/s (0)\n";
        let found = summaries(log);
        assert_eq!(found.get("dma0chan0"), Some(&(50, 0)));
        assert_eq!(found.get("dma10chan0"), Some(&(50, 2)));
    }
}
