//! The unmodified Linux driver judges the device model.
//!
//! Nobody here wrote `ptdma` or `dmatest`. What they find right about the emulated
//! function is evidence, and what the driver costs per descriptor is the baseline.
//!
//! On the debug kernel KASAN finds a use after free in the stock driver, seen with this
//! model: `pt_dma_start_desc` (inlined in `pt_cmd_callback`) stores a result in the
//! descriptor after it rang the doorbell, and the interrupt on the other processor may
//! have completed and freed it by then. That kind of report from that function of that module is
//! let pass, and no other; hundreds were seen in the runs of dmatest on 1 to 16 channels.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{BOTH, Check, FAST, Suite};
use crate::kernel::Variant;
use crate::machine::{Guest, Iommu, Options};
use crate::server::Counters;

/// Verified copies of each channel: what was asked for.
const COPIES: u64 = 3000;
/// The same on the debug kernel, where a copy takes about 8 ms, up to four channels; more
/// channels share four times that.
const COPIES_DEBUG: u64 = 1000;
/// Enough to see that a channel works.
const FEW_COPIES: u64 = 50;
/// dmatest fills and compares its buffers byte by byte, which is what takes the time
/// on an emulated processor; up to this many bytes are copied.
const BUFFER_BYTES: u64 = 4096;
/// 48,000 copies take about a minute on an idle machine.
const DMATEST_LIMIT: Duration = Duration::from_secs(300);
/// The error that is injected: input DMA 0, AXI slave error. The driver's table of
/// names has 26 entries and is indexed by the code, so larger codes are not for it.
const ERROR_CODE: u64 = 19;

pub(super) const SUITES: &[Suite] = &[
    Suite {
        name: "stock-1",
        about: "one function: copies, their cost, reload, reset, errors",
        kernels: BOTH,
        machine: || machine(1),
        checks: &[
            Check::new("ae4dma-leaves-it-alone", ae4dma).quick(BOTH),
            Check::new("binds", binds).quick(BOTH),
            Check::new("dmatest", dmatest_all).quick(FAST),
            Check::new("cost-per-descriptor", cost).quick(BOTH),
            Check::new("reload", reload).quick(FAST),
            Check::new("function-reset", function_reset).quick(BOTH),
            Check::new("error-is-logged", error_is_logged).quick(BOTH),
            Check::new("error-is-reported-as-success", error_is_swallowed).quick(BOTH),
        ],
    },
    Suite {
        name: "stock-lost",
        about: "the device of a busy channel is lost; the guest lives",
        // Error code 63 reads beyond the stock driver's table of names.
        kernels: FAST,
        machine: || machine(1),
        checks: &[Check::spoiling("server-killed", server_killed).quick(FAST)],
    },
    Suite {
        name: "stock-4",
        about: "four functions on chosen nodes; one is removed, one is killed",
        kernels: BOTH,
        machine: || Options {
            device_nodes: vec![1, 0, 0, 1],
            separate_servers: true,
            ..machine(4)
        },
        checks: &[
            Check::new("binds", binds).quick(FAST),
            Check::new("nodes", nodes).quick(FAST),
            Check::new("dmatest", dmatest_all).quick(FAST),
            Check::new("removed-and-back", removed).quick(FAST),
            // As in stock-lost.
            Check::spoiling("one-killed", one_killed)
                .only_fast()
                .quick(FAST),
        ],
    },
    Suite {
        name: "stock-16",
        about: "sixteen functions at once",
        kernels: BOTH,
        machine: || machine(16),
        checks: &[
            Check::new("binds", binds).quick(FAST),
            Check::new("nodes", nodes).quick(FAST),
            Check::new("dmatest", dmatest_all).quick(FAST),
        ],
    },
    Suite {
        name: "stock-intel-iommu",
        about: "behind Intel's IOMMU in translated mode",
        kernels: BOTH,
        machine: || Options {
            iommu: Iommu::Intel,
            ..machine(2)
        },
        checks: &[
            Check::new("binds", binds).quick(FAST),
            Check::new("translated", translated).quick(FAST),
            Check::new("dmatest", dmatest_all).quick(FAST),
        ],
    },
    Suite {
        name: "stock-amd-iommu",
        about: "behind AMD's IOMMU in translated mode",
        kernels: BOTH,
        machine: || Options {
            iommu: Iommu::Amd,
            ..machine(2)
        },
        checks: &[
            Check::new("binds", binds).quick(FAST),
            Check::new("translated", translated).quick(FAST),
            Check::new("dmatest", dmatest_all).quick(FAST),
        ],
    },
];

fn machine(devices: usize) -> Options {
    Options {
        devices,
        ..Options::default()
    }
}

/// What dmatest says of one run, over all channels.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) threads: u64,
    pub(super) tests: u64,
    pub(super) failures: u64,
}

/// Reads lines like
/// `dmatest: dma0chan0-copy0: summary 3000 tests, 0 failures 812.21 iops 1656 KB/s (0)`.
fn summary(log: &str) -> Summary {
    let mut total = Summary::default();
    for line in log.lines() {
        let Some((_, rest)) = line.split_once(": summary ") else {
            continue;
        };
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let mut parts = rest.split(',');
        let tests = parts
            .next()
            .and_then(|part| number(part.trim_end_matches("tests")));
        let failures = parts
            .next()
            .and_then(|part| part.split_whitespace().next())
            .and_then(number);
        if let (Some(tests), Some(failures)) = (tests, failures) {
            total.threads += 1;
            total.tests += tests;
            total.failures += failures;
        }
    }
    total
}

/// Runs dmatest on every channel, to its end; returns the sum and the log's lines.
pub(super) fn dmatest(guest: &mut Guest, copies: u64, more: &str) -> Result<(Summary, String)> {
    guest.ok("dmesg -c > /dev/null; rmmod dmatest 2> /dev/null; true")?;
    // Reading `wait` returns at the end of the test.
    guest.ok_within(
        &format!(
            "modprobe dmatest iterations={copies} test_buf_size={BUFFER_BYTES} timeout=5000 {more} run=1 \
             && cat /sys/module/dmatest/parameters/wait > /dev/null"
        ),
        DMATEST_LIMIT,
    )?;
    // Without the reports of the debug kernel, which are judged from the console.
    let log = guest.ok("dmesg | grep -e dmatest: -e 'ptdma 0'")?;
    guest.ok("rmmod dmatest")?;
    Ok((summary(&log), log))
}

/// Every channel copies and verifies, nothing fails.
pub(super) fn passes(guest: &mut Guest, copies: u64) -> Result<Counters> {
    let channels = channels(guest)?.len() as u64;
    guest.server()?.reset_counters()?;
    let (summary, log) = dmatest(guest, copies, "")?;
    let wanted = Summary {
        threads: channels,
        tests: channels * copies,
        failures: 0,
    };
    ensure!(
        summary == wanted,
        "dmatest: {summary:?}, wanted {wanted:?}\n{log}"
    );
    guest.expect_clean_dmesg()?;
    let counters = guest.server()?.counters()?;
    ensure!(
        counters.descriptors == wanted.tests && counters.errors == 0,
        "the device saw {counters:?}"
    );
    ensure!(
        counters.unknown_accesses == 0,
        "the driver touched registers that the model does not know: {counters:?}"
    );
    Ok(counters)
}

fn channels(guest: &mut Guest) -> Result<Vec<String>> {
    let text = guest.ok("ls /sys/class/dma")?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

fn load(guest: &mut Guest) -> Result<()> {
    guest.ok("modprobe ptdma")?;
    Ok(())
}

fn error(trigger: Value) -> Value {
    json!({"trigger": trigger, "kind": {"error": {"code": ERROR_CODE}}})
}

/// The driver of the successor must not take the function.
fn ae4dma(guest: &mut Guest) -> Result<String> {
    guest.ok("modprobe ae4dma")?;
    let bound =
        |driver: &str| format!("ls -d /sys/bus/pci/drivers/{driver}/0000:* 2> /dev/null | wc -l");
    let taken = guest.ok(&bound("ae4dma"))?;
    ensure!(taken.trim() == "0", "ae4dma took {taken} function(s)");
    // It is built on ptdma, which is loaded by now and has what is its own.
    let taken = guest.ok(&bound("ptdma"))?;
    ensure!(
        taken.trim() == guest.options().devices.to_string(),
        "ptdma: {taken}"
    );
    passes(guest, FEW_COPIES)?;
    guest.ok("rmmod ae4dma && rmmod ptdma")?;
    Ok(String::new())
}

fn binds(guest: &mut Guest) -> Result<String> {
    let wanted = guest.options().devices;
    load(guest)?;
    let found = channels(guest)?.len();
    ensure!(found == wanted, "{found} channels of {wanted}");
    let bound = guest.ok("ls -d /sys/bus/pci/drivers/ptdma/0000:* | wc -l")?;
    ensure!(bound.trim() == wanted.to_string(), "bound: {bound}");
    Ok(format!("{found} channel(s)"))
}

fn dmatest_all(guest: &mut Guest) -> Result<String> {
    load(guest)?;
    let copies = match guest.options().kernel {
        Variant::Debug => {
            let channels = guest.options().devices.max(1) as u64;
            COPIES_DEBUG.min(4 * COPIES_DEBUG / channels)
        }
        _ => COPIES,
    };
    let counters = passes(guest, copies)?;
    Ok(format!(
        "{} copies, {:.1} MiB, 0 failures",
        counters.descriptors,
        counters.bytes as f64 / f64::from(1 << 20)
    ))
}

/// Four reads, six writes and one interrupt for each descriptor.
fn cost(guest: &mut Guest) -> Result<String> {
    load(guest)?;
    let counters = passes(guest, FEW_COPIES)?;
    let per = |count| counters.per_descriptor(count);
    let (reads, writes, interrupts) = (
        per(counters.mmio_reads),
        per(counters.mmio_writes),
        per(counters.interrupts),
    );
    let text =
        format!("per descriptor {reads:.2} reads, {writes:.2} writes, {interrupts:.2} interrupts");
    // A status question that comes a moment early or late costs or saves a read.
    ensure!((3.5..=4.5).contains(&reads), "{text}");
    ensure!((5.9..=6.1).contains(&writes), "{text}");
    ensure!((0.9..=1.1).contains(&interrupts), "{text}");
    Ok(text)
}

fn reload(guest: &mut Guest) -> Result<String> {
    let rounds = 5;
    for _ in 0..rounds {
        guest.ok("rmmod ptdma 2> /dev/null; true")?;
        ensure!(
            channels(guest)?.is_empty(),
            "channels of an unloaded driver"
        );
        load(guest)?;
        passes(guest, FEW_COPIES)?;
    }
    Ok(format!("{rounds} times"))
}

/// A function-level reset in between does not disturb the next driver.
fn function_reset(guest: &mut Guest) -> Result<String> {
    guest.ok("rmmod ptdma 2> /dev/null; true")?;
    for function in guest.functions()? {
        let methods = guest.ok(&format!("cat /sys/bus/pci/devices/{function}/reset_method"))?;
        ensure!(methods.contains("flr"), "reset methods: {methods}");
        guest.ok(&format!("echo 1 > /sys/bus/pci/devices/{function}/reset"))?;
    }
    load(guest)?;
    passes(guest, FEW_COPIES)?;
    Ok(String::new())
}

/// The right code is in the log, and the channel works on.
fn error_is_logged(guest: &mut Guest) -> Result<String> {
    load(guest)?;
    guest.server()?.reset_counters()?;
    guest.server()?.fault(Some(0), &error(json!({"at": 10})))?;
    let (summary, log) = dmatest(guest, FEW_COPIES, "")?;
    guest.server()?.clear_faults(None)?;
    let counters = guest.server()?.counters()?;
    ensure!(
        counters.errors == 1,
        "the device failed {} descriptors",
        counters.errors
    );
    let line = log
        .lines()
        .find(|line| line.contains("PTDMA error:"))
        .context("no error in the driver's log")?;
    ensure!(line.contains(&format!("(0x{ERROR_CODE:x})")), "{line}");
    ensure!(summary.failures == 1, "{summary:?}\n{log}");
    ensure!(
        log.contains("data error"),
        "dmatest compared and found nothing\n{log}"
    );
    guest.expect_clean_dmesg()?;
    passes(guest, FEW_COPIES)?;
    let text = line
        .split_once("PTDMA error: ")
        .map_or(line, |(_, text)| text);
    Ok(format!("code {ERROR_CODE}: \"{text}\""))
}

/// The stock driver completes a failed descriptor as if nothing had happened: a
/// caller that does not compare every byte never learns of it.
fn error_is_swallowed(guest: &mut Guest) -> Result<String> {
    load(guest)?;
    guest.server()?.reset_counters()?;
    guest
        .server()?
        .fault(Some(0), &error(json!({"every": {"n": 10, "offset": 5}})))?;
    let (summary, log) = dmatest(guest, 100, "noverify=1")?;
    guest.server()?.clear_faults(None)?;
    let counters = guest.server()?.counters()?;
    ensure!(
        counters.errors == 10 && counters.descriptors == 90,
        "the device saw {counters:?}"
    );
    ensure!(
        summary.tests == 100 && summary.failures == 0,
        "the stock driver has learned to report errors: {summary:?}\n{log}"
    );
    guest.expect_clean_dmesg()?;
    Ok(format!(
        "{} of {} descriptors failed in the device, {} reported",
        counters.errors, summary.tests, summary.failures
    ))
}

fn nodes(guest: &mut Guest) -> Result<String> {
    let options = guest.options().clone();
    let mut found = Vec::new();
    for index in 0..options.devices {
        let address = options.address_of(index);
        let text = guest.ok(&format!("cat /sys/bus/pci/devices/{address}/numa_node"))?;
        ensure!(
            text.trim() == options.node_of(index).to_string(),
            "function {index} at {address} is on node {text}"
        );
        found.push(text.trim().to_owned());
    }
    ensure!(guest.functions()?.len() == options.devices);
    Ok(found.join(" "))
}

fn translated(guest: &mut Guest) -> Result<String> {
    let mut kinds = Vec::new();
    for function in guest.functions()? {
        let kind = guest.ok(&format!(
            "cat /sys/bus/pci/devices/{function}/iommu_group/type"
        ))?;
        ensure!(
            kind.trim().starts_with("DMA"),
            "{function} is in mode {kind}, not translated"
        );
        kinds.push(kind.trim().to_owned());
    }
    ensure!(!kinds.is_empty());
    Ok(kinds.join(" "))
}

/// A function that leaves while its channel is idle goes away in order, the others
/// work on, and it works again when it comes back.
fn removed(guest: &mut Guest) -> Result<String> {
    load(guest)?;
    guest.unplug(3)?;
    let left = channels(guest)?.len();
    ensure!(left == 3, "{left} channels left of 3");
    passes(guest, FEW_COPIES)?;
    guest.replug()?;
    let back = channels(guest)?.len();
    ensure!(back == 4, "{back} channels of 4");
    passes(guest, FEW_COPIES)?;
    Ok(String::new())
}

/// One function's process is killed under load; the guest and the others live.
fn one_killed(guest: &mut Guest) -> Result<String> {
    load(guest)?;
    let before = channels(guest)?.len() as u64;
    guest.kill9(Some(0))?;
    // The dead function's thread runs into dmatest's time limit once, not for ever.
    guest.ok("dmesg -c > /dev/null; rmmod dmatest 2> /dev/null; true")?;
    guest.ok(
        "modprobe dmatest iterations=1 timeout=2000 test_buf_size=4096 run=1 \
         && cat /sys/module/dmatest/parameters/wait > /dev/null",
    )?;
    let log = guest.ok("dmesg")?;
    let summary = summary(&log);
    ensure!(
        summary.threads == before && summary.failures == 1,
        "of {before} channels one is dead: {summary:?}\n{log}"
    );
    ensure!(guest.alive(), "the emulator died with the device");
    Ok(format!(
        "{} of {before} channels work on",
        before - summary.failures
    ))
}

/// All functions' processes are killed in the middle of copies; the guest lives, and
/// registers read as all ones.
fn server_killed(guest: &mut Guest) -> Result<String> {
    load(guest)?;
    guest.ok("modprobe dmatest timeout=2000 test_buf_size=4096 run=1")?;
    guest.ok("sleep 1; cat /sys/module/dmatest/parameters/run")?;
    let busy = guest.server()?.counters()?;
    ensure!(busy.descriptors > 10, "no copies are under way: {busy:?}");
    guest.kill9(None)?;
    guest.ok("sleep 3")?;
    ensure!(guest.alive(), "the emulator died with the device");
    // After its time limit dmatest asks for the status; the driver takes all ones for
    // a completion, and reports success for a copy that no device made.
    let log = guest.kernel_log()?;
    ensure!(
        log.contains("test timed out") || log.contains("data error"),
        "no copy failed\n{log}"
    );
    let info = guest.ok("cat /sys/kernel/debug/dmaengine/*/info")?;
    // The version field is six bits of a register that reads as all ones.
    ensure!(info.contains("Version: 63"), "{info}");
    guest.ok("uname -a; free; ls /sys/bus/pci/devices")?;
    guest.expect_clean_dmesg()?;
    Ok(format!(
        "after {} copies; lost copies were {}",
        busy.descriptors,
        if log.contains("data error") {
            "reported as done"
        } else {
            "left hanging"
        }
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_added() {
        let log = "[1.0] dmatest: dma0chan0-copy0: summary 3000 tests, 0 failures 812.21 iops 1656 KB/s (0)\n\
                   [1.1] dmatest: Started 1 threads using dma0chan0\n\
                   [1.2] dmatest: dma1chan0-copy0: summary 3000 tests, 2 failures 1.00 iops 1 KB/s (0)\n";
        assert_eq!(
            summary(log),
            Summary {
                threads: 2,
                tests: 6000,
                failures: 2
            }
        );
        assert_eq!(summary(""), Summary::default());
    }
}
