//! What our series mends in Linux's `ptdma` driver.
//!
//! Each check has the unmodified driver (`ptdma`) show the bug, and the driver with the series of
//! `kshim/patches/stock-ptdma` (`ptdma_fixed`) show none, in the same guest.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::dcbm;
use super::stock::{Summary, dmatest, passes};
use super::{BOTH, Check, DEBUG, FAST, Suite};
use crate::kernel::Variant;
use crate::machine::{Guest, Options};

/// Input DMA 0, AXI slave error: a failed read.
const READ_ERROR: u8 = 19;
/// Output DMA 0, AXI slave error: a failed write.
const WRITE_ERROR: u8 = 38;
/// No engine's: the driver has no name for it.
const NAMELESS_ERROR: u8 = 63;
/// Of these, every tenth fails.
const COPIES: u64 = 100;
/// Copies whose status each processor asks for all the time. Without the patch, 86 of 2000 were
/// reported before they were done.
const POLLED_COPIES: u64 = 500;
/// As many as the unmodified driver needs to be seen on the debug kernel: hundreds of reports.
const WATCHED_COPIES: u64 = 1000;
/// When the client loses patience.
const PATIENCE_MS: u64 = 100;
/// How long a slow engine takes: longer than that, on a busy machine too.
const SLOW_MS: u64 = 1500;
/// How long the check watches reclaimed memory: until after the slow engine's end.
const HOLD_MS: u64 = 3000;
/// The time that the fixed driver gives an engine that does not stop, as in the patch.
const STOP_MS: u64 = 5000;

pub(super) const SUITES: &[Suite] = &[
    Suite {
        name: "stock-fixed",
        about: "Linux's driver with and without our series: errors, termination",
        kernels: BOTH,
        machine,
        checks: &[
            Check::new("copies-and-cost", copies_and_cost),
            Check::new("errors-are-reported", errors_are_reported).quick(FAST),
            Check::new("migration-with-errors", migration),
            Check::new("error-names", error_names),
            Check::new("slow-engine-terminated", slow_engine),
            Check::new("paused-engine-terminated", paused_engine),
            Check::new("hanging-engine-terminated", hanging_engine),
        ],
    },
    Suite {
        name: "stock-fixed-races",
        about: "Linux's driver with and without our series: use after free",
        // The unmodified driver's is seen by KASAN only.
        kernels: DEBUG,
        machine,
        checks: &[
            Check::new("use-after-free", use_after_free),
            Check::spoiling("polled-beside-interrupts", polled),
        ],
    },
];

fn machine() -> Options {
    Options {
        modules: vec!["ptdma_fixed", "testdma", "dcbm"],
        // What is worse for the fix: an engine off the bus waits, and goes on when it is back.
        machines: vec!["today,bus_master=holds"],
        ..Options::default()
    }
}

/// The driver, unmodified or with the series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    Stock,
    Fixed,
}

impl Driver {
    /// Gives it the function.
    fn load(self, guest: &mut Guest) -> Result<()> {
        let module = match self {
            Self::Stock => "ptdma",
            Self::Fixed => "ptdma_fixed",
        };
        guest.ok(
            "for m in testdma dmatest ptdma ptdma_fixed; do rmmod $m 2> /dev/null; done; true",
        )?;
        guest.ok(&format!(
            "modprobe {module} && test -d /sys/module/{module}"
        ))?;
        guest.server()?.clear_faults(None)?;
        guest.server()?.reset_counters()?;
        Ok(())
    }
}

/// What the module `testdma` has seen.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    good: u64,
    read_failed: u64,
    write_failed: u64,
    aborted: u64,
    early: u64,
    twice: u64,
    status_failed: u64,
    timed_out: u64,
    refused: u64,
    terminated_ms: u64,
    late: u64,
    late_callbacks: u64,
}

const LIMIT: Duration = Duration::from_secs(60);
const LOAD: &str = "rmmod testdma 2> /dev/null; modprobe testdma";
const READ: &str = "cd /sys/module/testdma/parameters && grep . *";

fn testdma(guest: &mut Guest, parameters: &str) -> Result<Seen> {
    seen(&guest.ok_within(&format!("{LOAD} {parameters} && {READ}"), LIMIT)?)
}

/// Reads lines like `good:100`.
fn seen(text: &str) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut read = 0;
    for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let field = match name {
            "good" => &mut seen.good,
            "read_failed" => &mut seen.read_failed,
            "write_failed" => &mut seen.write_failed,
            "aborted" => &mut seen.aborted,
            "early" => &mut seen.early,
            "twice" => &mut seen.twice,
            "status_failed" => &mut seen.status_failed,
            "timed_out" => &mut seen.timed_out,
            "refused" => &mut seen.refused,
            "terminated_ms" => &mut seen.terminated_ms,
            "late" => &mut seen.late,
            "late_callbacks" => &mut seen.late_callbacks,
            _ => continue,
        };
        *field = value.trim().parse()?;
        read += 1;
    }
    ensure!(read == 12, "testdma's parameters: {text}");
    Ok(seen)
}

/// The fixed driver copies, and costs what the unmodified one costs.
fn copies_and_cost(guest: &mut Guest) -> Result<String> {
    let mut costs = Vec::new();
    for driver in [Driver::Stock, Driver::Fixed] {
        driver.load(guest)?;
        let counters = passes(guest, COPIES)?;
        let per = |count| counters.per_descriptor(count);
        costs.push([
            per(counters.mmio_reads),
            per(counters.mmio_writes),
            per(counters.interrupts),
        ]);
    }
    let [stock, fixed] = costs.as_slice() else {
        bail!("two drivers, {} costs", costs.len());
    };
    // A status question that comes a moment early or late costs or saves a read. Terminating and
    // releasing the channel reads the head, which is a few among a hundred copies.
    let same = |place: usize| {
        stock
            .get(place)
            .zip(fixed.get(place))
            .is_some_and(|(stock, fixed)| (stock - fixed).abs() < 0.5)
    };
    let text =
        format!("per descriptor: stock {stock:.2?}, fixed {fixed:.2?} (reads, writes, interrupts)");
    ensure!((0..3).all(same), "{text}");
    Ok(text)
}

fn every_tenth(code: u8) -> Value {
    json!({"trigger": {"every": {"n": 10, "offset": 5}}, "kind": {"error": {"code": code}}})
}

/// Each failed descriptor is reported, by callback and by status, and the others are not.
fn errors_are_reported(guest: &mut Guest) -> Result<String> {
    let failed = COPIES / 10;
    let mut reported = Vec::new();
    for driver in [Driver::Stock, Driver::Fixed] {
        driver.load(guest)?;
        guest.server()?.fault(Some(0), &every_tenth(READ_ERROR))?;
        let (summary, log) = dmatest(guest, COPIES, "noverify=1")?;
        reported.push(summary.failures);
        let wanted = Summary {
            threads: 1,
            tests: COPIES,
            failures: if driver == Driver::Fixed { failed } else { 0 },
        };
        ensure!(summary == wanted, "{driver:?}: {summary:?}\n{log}");

        for code in [READ_ERROR, WRITE_ERROR, 1] {
            if driver == Driver::Stock && code == WRITE_ERROR {
                // The unmodified driver looks its name up beyond the table.
                continue;
            }
            guest.server()?.clear_faults(None)?;
            guest.server()?.reset_counters()?;
            guest.server()?.fault(Some(0), &every_tenth(code))?;
            let seen = testdma(guest, &format!("copies={COPIES}"))?;
            let counters = guest.server()?.counters()?;
            ensure!(
                counters.errors == failed && counters.descriptors == COPIES - failed,
                "the device saw {counters:?}"
            );
            let wanted = match driver {
                Driver::Stock => Seen {
                    good: COPIES,
                    early: failed,
                    ..Seen::default()
                },
                Driver::Fixed => {
                    let of = |kind| if kind == code { failed } else { 0 };
                    Seen {
                        good: COPIES - failed,
                        status_failed: failed,
                        read_failed: of(READ_ERROR),
                        write_failed: of(WRITE_ERROR),
                        aborted: of(1),
                        ..Seen::default()
                    }
                }
            };
            ensure!(seen == wanted, "{driver:?}, code {code}: {seen:?}");
        }
    }
    guest.server()?.clear_faults(None)?;
    Ok(format!("of {failed} errors: stock, fixed {reported:?}"))
}

/// Memory stays right when it migrates by engines that fail, since the migrator learns of it. With
/// the unmodified driver it does not, see `dcbm/swallowed-errors`.
fn migration(guest: &mut Guest) -> Result<String> {
    Driver::Fixed.load(guest)?;
    let seen = dcbm::with_errors(guest, guest.options().devices)?;
    ensure!(
        seen.program.code == 0 && seen.failures >= seen.errors,
        "{} descriptors failed, {} failures counted: {}",
        seen.errors,
        seen.failures,
        seen.program.text
    );
    guest.ok("rmmod dcbm")?;
    Ok(format!(
        "{} failed descriptors, {} failures counted, memory right",
        seen.errors, seen.failures
    ))
}

/// Errors are logged by their own names.
fn error_names(guest: &mut Guest) -> Result<String> {
    let mut logged = Vec::new();
    for (driver, code, name) in [
        (Driver::Stock, READ_ERROR, "ERR 27: 0x1B Reserved"),
        (Driver::Fixed, READ_ERROR, "ERR 19: IDMA0_AXI_SLVERR"),
        (Driver::Fixed, WRITE_ERROR, "ERR 38: ODMA0_AXI_SLVERR"),
        (Driver::Fixed, NAMELESS_ERROR, "unknown"),
        // An error all the same, though the code says none.
        (Driver::Fixed, 0, "unknown"),
    ] {
        driver.load(guest)?;
        guest.ok("dmesg -c > /dev/null")?;
        let fault = json!({"trigger": {"at": 3}, "kind": {"error": {"code": code}}});
        guest.server()?.fault(Some(0), &fault)?;
        let seen = testdma(guest, "copies=8")?;
        let log = guest.ok("dmesg")?;
        let line = format!("PTDMA error: {name} (0x{code:x})");
        ensure!(log.contains(&line), "{driver:?}: no `{line}` in\n{log}");
        ensure!(
            seen.good == if driver == Driver::Fixed { 7 } else { 8 },
            "{driver:?}, code {code}: {seen:?}"
        );
        logged.push(format!("{code}: {name}"));
    }
    guest.server()?.clear_faults(None)?;
    Ok(logged.join(", "))
}

fn stall(duration: &Value, haltable: bool) -> Value {
    json!({"trigger": {"at": 0}, "kind": {"stall": {"for": duration, "haltable": haltable}}})
}

fn terminating(more: &str) -> String {
    format!("terminate_ms={PATIENCE_MS} hold_ms={HOLD_MS} {more}")
}

/// A copy that takes too long is over when termination returns.
fn slow_engine(guest: &mut Guest) -> Result<String> {
    let slow = stall(&json!({"micros": SLOW_MS * 1000}), false);
    let mut late = Vec::new();
    // The unmodified driver does not survive the interrupt of a copy that it has terminated.
    for (driver, interrupt) in [
        (Driver::Stock, false),
        (Driver::Fixed, false),
        (Driver::Fixed, true),
    ] {
        driver.load(guest)?;
        guest.server()?.fault(Some(0), &slow)?;
        let switch = u8::from(interrupt);
        let seen = testdma(guest, &terminating(&format!("interrupt={switch}")))?;
        late.push(format!("{driver:?} {}", seen.late));
        let counters = guest.server()?.counters()?;
        ensure!(
            counters.descriptors == 1,
            "{driver:?}: the engine has not come to its end: {counters:?}"
        );
        match driver {
            Driver::Stock => ensure!(seen.late > 0, "{driver:?}: {seen:?}"),
            Driver::Fixed => {
                ensure!(
                    seen.late == 0 && seen.late_callbacks == 0 && seen.refused == 0,
                    "{driver:?}, interrupt {interrupt}: {seen:?}"
                );
                // Nothing of it is left for the next ones.
                let seen = testdma(guest, "copies=64 depth=8")?;
                ensure!(seen.good == 64 && seen.early == 0, "afterwards: {seen:?}");
            }
        }
    }
    Ok(format!("bytes written late: {}", late.join(", ")))
}

/// Termination gets an engine to its end that was paused before it began.
fn paused_engine(guest: &mut Guest) -> Result<String> {
    Driver::Fixed.load(guest)?;
    guest
        .server()?
        .fault(Some(0), &stall(&json!("ever"), true))?;
    let seen = testdma(guest, &terminating("pause=1"))?;
    ensure!(
        seen.late == 0 && seen.late_callbacks == 0 && seen.terminated_ms < STOP_MS,
        "{seen:?}"
    );
    let seen = testdma(guest, "copies=8")?;
    ensure!(seen.good == 8 && seen.early == 0, "afterwards: {seen:?}");
    Ok(String::new())
}

/// An engine that hangs is off the bus when termination returns: it does not write when it goes
/// on, nor when the function is bound again.
fn hanging_engine(guest: &mut Guest) -> Result<String> {
    let hangs = stall(&json!("ever"), false);
    let mut notes = Vec::new();
    for driver in [Driver::Stock, Driver::Fixed] {
        driver.load(guest)?;
        guest.server()?.fault(Some(0), &hangs)?;
        let parameters = terminating("interrupt=0");
        let job = guest.start(&format!("{LOAD} {parameters} && {READ}"), LIMIT)?;
        // The engine goes on while the client looks at its memory.
        match driver {
            Driver::Stock => std::thread::sleep(Duration::from_millis(10 * PATIENCE_MS)),
            Driver::Fixed => guest
                .wait_for_console("engine does not stop", Duration::from_millis(3 * STOP_MS))
                .map(drop)?,
        }
        guest.server()?.clear_faults(None)?;
        let text = guest.wait_ok(&job)?;
        let seen = seen(&text)?;
        notes.push(format!(
            "{driver:?}: {} bytes late, after {} ms",
            seen.late, seen.terminated_ms
        ));
        match driver {
            Driver::Stock => ensure!(seen.late > 0, "{driver:?}: {seen:?}"),
            Driver::Fixed => {
                ensure!(
                    seen.late == 0 && seen.terminated_ms >= STOP_MS,
                    "{driver:?}: {seen:?}"
                );
                let seen = testdma(guest, "copies=8")?;
                ensure!(
                    seen.refused == 1 && seen.good == 0,
                    "an engine that does not stop is used on: {seen:?}"
                );
                // The driver has the function reset when it leaves it: the engine does not go on
                // with the copy when the function is bound again.
                guest.ok("rmmod testdma && rmmod ptdma_fixed && modprobe ptdma_fixed")?;
                let counters = guest.server()?.counters()?;
                ensure!(
                    counters.descriptors == 0,
                    "the engine goes on with what it was given: {counters:?}"
                );
                passes(guest, COPIES)?;
            }
        }
    }
    Ok(notes.join(", "))
}

/// How many reports of its use after free the unmodified driver has caused.
fn reports(guest: &mut Guest) -> Result<u64> {
    let count = guest.ok("dmesg | grep -c 'KASAN: slab-use-after-free'; true")?;
    Ok(count.trim().parse()?)
}

/// The descriptor is left alone once the engine has it.
fn use_after_free(guest: &mut Guest) -> Result<String> {
    ensure!(guest.options().kernel == Variant::Debug);
    let mut found = Vec::new();
    for driver in [Driver::Stock, Driver::Fixed] {
        driver.load(guest)?;
        guest.ok("dmesg -c > /dev/null")?;
        // Lets the known report of the module `ptdma` pass, and none of `ptdma_fixed`.
        passes(guest, WATCHED_COPIES)?;
        found.push(reports(guest)?);
    }
    let text = format!("reports of {WATCHED_COPIES} copies: stock, fixed {found:?}");
    ensure!(
        matches!(found.as_slice(), [stock, 0] if *stock > 0),
        "{text}"
    );
    Ok(text)
}

/// A client that asks for the status while interrupts come completes nothing twice or early.
fn polled(guest: &mut Guest) -> Result<String> {
    let parameters = format!("copies={POLLED_COPIES} depth=8 poll=1");
    Driver::Fixed.load(guest)?;
    let fixed = testdma(guest, &parameters)?;
    ensure!(
        fixed
            == Seen {
                good: POLLED_COPIES,
                ..Seen::default()
            },
        "{fixed:?}"
    );
    guest.expect_clean_dmesg()?;
    Driver::Stock.load(guest)?;
    // It may not survive that.
    let stock = guest.sh_within(&format!("{LOAD} {parameters} && {READ}"), LIMIT);
    let said = match &stock {
        Ok(out) => format!("{:?}", seen(&out.text)),
        Err(error) => format!("{error:#}"),
    };
    let report = guest.first_report();
    ensure!(
        report.is_some() || !said.contains("early: 0, twice: 0"),
        "the unmodified driver completes each copy once: {said}"
    );
    Ok(format!("stock: {}", report.unwrap_or(said)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_testdma_saw_is_read() -> Result<()> {
        let text = "aborted:0\nbytes:4096\nearly:1\ngood:100\nlate:0\nlate_callbacks:0\n\
                    pause:N\nread_failed:0\nrefused:0\nstatus_failed:7\nterminated_ms:0\n\
                    timed_out:0\ntwice:0\nwrite_failed:0\n";
        assert_eq!(
            seen(text)?,
            Seen {
                early: 1,
                good: 100,
                status_failed: 7,
                ..Seen::default()
            }
        );
        assert!(seen("good:100\n").is_err(), "a module without the others");
        Ok(())
    }
}
