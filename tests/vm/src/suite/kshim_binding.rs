//! Which functions our driver has: a list, those of the stock driver, 64; and what their DMA
//! mappings may do to it.

use anyhow::{Result, ensure};
use serde_json::json;

use super::kshim::{
    ALL, FAILURES, MIGRATED, PARAMETERS, all_by_device, start, stop, stop_after_faults,
};
use super::mover::{PROGRAM_LIMIT, mover, run, set};
use super::{BOTH, Check, FAST, Suite};
use crate::machine::{Guest, Options};

const OURS: &str = "ptdma_migrator";
const STOCK: &str = "ptdma";
/// As many as our driver takes.
const MOST: usize = 64;

pub(super) const SUITES: &[Suite] = &[
    Suite {
        name: "kshim-binding",
        about: "which functions our driver has: a list, and those of the stock driver",
        kernels: BOTH,
        machine: || Options {
            devices: 4,
            modules: vec!["kshim", "dcbm"],
            ..Options::default()
        },
        checks: &[
            Check::new("list-of-functions", list_of_functions).quick(FAST),
            Check::new("takeover", takeover).quick(FAST),
            Check::new("stock-corrupts-ours-does-not", same_faults).quick(FAST),
        ],
    },
    Suite {
        name: "kshim-64",
        about: "as many functions as our driver takes",
        kernels: FAST,
        machine: || Options {
            devices: MOST,
            separate_servers: true,
            modules: vec!["kshim"],
            ..Options::default()
        },
        checks: &[Check::new("all-copy", all_copy)],
    },
    Suite {
        name: "kshim-bounce",
        about: "functions whose memory the kernel bounces: left to the CPU",
        kernels: BOTH,
        machine: || Options {
            devices: 4,
            append: "swiotlb=force".into(),
            modules: vec!["kshim"],
            ..Options::default()
        },
        checks: &[Check::new("left-to-the-cpu", bounced).quick(FAST)],
    },
];

/// The driver that has each function; empty if none.
fn drivers(guest: &mut Guest) -> Result<Vec<String>> {
    (0..guest.options().devices)
        .map(|index| {
            let address = guest.options().address_of(index);
            let text = guest.ok(&format!(
                "basename $(readlink /sys/bus/pci/devices/{address}/driver) 2> /dev/null; true"
            ))?;
            Ok(text.trim().to_owned())
        })
        .collect()
}

fn expect_drivers(guest: &mut Guest, wanted: [&str; 4]) -> Result<()> {
    let found = drivers(guest)?;
    ensure!(found == wanted, "{found:?} instead of {wanted:?}");
    Ok(())
}

/// Only the functions that are named are bound, and they copy.
fn list_of_functions(guest: &mut Guest) -> Result<String> {
    let list = [1, 3].map(|index| guest.options().address_of(index));
    guest.ok(&format!("modprobe {OURS} functions={}", list.join(",")))?;
    expect_drivers(guest, ["", OURS, "", OURS])?;
    start(guest, 4)?;
    let report = run(guest, &mover(4, "--bytes 4M", &ALL))?;
    let each = guest.server()?.counters_by_device()?;
    let used: Vec<bool> = each.iter().map(|counters| counters.bytes > 0).collect();
    ensure!(used == [false, true, false, true], "{each:?}");
    all_by_device(guest, &report)?;
    stop(guest)?;
    guest.ok(&format!("rmmod {OURS}"))?;
    // One that is not there, or is no address, is not another.
    guest.ok(&format!("modprobe {OURS} functions=0000:21:00,whim"))?;
    expect_drivers(guest, ["", "", "", ""])?;
    guest.ok(&format!("rmmod {OURS}"))?;
    Ok(String::new())
}

/// As kshim/README.md has it: one function is taken from the stock driver at work, and given back.
fn takeover(guest: &mut Guest) -> Result<String> {
    guest.ok(&format!("modprobe {STOCK} && modprobe {OURS}"))?;
    expect_drivers(guest, [STOCK; 4])?;
    // The stock driver's other channels are in use meanwhile.
    guest.ok("modprobe dmatest iterations=0 timeout=5000 channel=dma1chan0 run=1")?;
    let function = guest.options().address_of(2);
    let device = format!("/sys/bus/pci/devices/{function}");
    guest.ok(&format!(
        "F={function}; echo {OURS} > {device}/driver_override && \
         echo $F > /sys/bus/pci/drivers/{STOCK}/unbind && echo $F > /sys/bus/pci/drivers_probe"
    ))?;
    expect_drivers(guest, [STOCK, STOCK, OURS, STOCK])?;
    set(guest, &format!("{PARAMETERS}/selftest"), "1")?;
    start(guest, 4)?;
    let report = run(guest, &mover(4, "--bytes 4M --writers 1", &ALL))?;
    let by_ours = guest.server()?.counters_by_device()?[2].bytes;
    let moved = report.folios_moved()?;
    ensure!(
        report.counter(MIGRATED)? >= moved && moved > 0 && by_ours >= 4 << 20,
        "{by_ours} bytes by the function that was taken: {report:?}"
    );
    stop(guest)?;
    guest.ok(&format!(
        "F={function}; echo > {device}/driver_override && \
         echo $F > /sys/bus/pci/drivers/{OURS}/unbind && echo $F > /sys/bus/pci/drivers_probe"
    ))?;
    expect_drivers(guest, [STOCK; 4])?;
    guest.ok(&format!("rmmod dmatest; rmmod {OURS} {STOCK}"))?;
    // All of them: the stock driver leaves first.
    guest.ok(&format!(
        "modprobe {STOCK} && modprobe -r {STOCK}; modprobe {OURS}"
    ))?;
    expect_drivers(guest, [OURS; 4])?;
    guest.ok(&format!("rmmod {OURS}"))?;
    Ok(String::new())
}

/// One run in one guest, the same faults: by the stock driver user memory is wrong and nobody says
/// so, and by ours every page arrives.
fn same_faults(guest: &mut Guest) -> Result<String> {
    let fault = json!({
        "trigger": {"every": {"n": 100, "offset": 50}},
        "kind": {"error": {"code": 19}},
    });
    let command = mover(4, "--bytes 4M --rounds 4", &[]);
    guest.ok(&format!(
        "modprobe {STOCK} && modprobe dcbm && echo 4 > /sys/kernel/dcbm/nr_dma_chan && \
         echo 1 > /sys/kernel/dcbm/offloading"
    ))?;
    guest.server()?.reset_counters()?;
    guest.server()?.fault(None, &fault)?;
    let out = guest.sh_within(&command, PROGRAM_LIMIT)?;
    guest.server()?.clear_faults(None)?;
    let stock_errors = guest.server()?.counters()?.errors;
    let stock_failures = guest.ok("cat /sys/kernel/dcbm/folios_failures")?;
    ensure!(
        out.code == 1 && out.text.contains("FAIL: after the moves: page") && stock_errors > 0,
        "{stock_errors} errors, and the stock driver's memory is right: {}",
        out.text
    );
    guest.ok(&format!(
        "echo 0 > /sys/kernel/dcbm/offloading && rmmod dcbm && rmmod {STOCK}"
    ))?;

    start(guest, 4)?;
    // One descriptor for one folio, as there: what fails is the same.
    guest.server()?.fault(None, &fault)?;
    let mut errors = 0;
    // Ours needs fewer descriptors; it meets at least as many errors.
    for _ in 0..40 {
        run(guest, &command)?;
        errors = guest.server()?.counters()?.errors;
        if errors >= stock_errors {
            break;
        }
    }
    ensure!(
        errors >= stock_errors,
        "only {errors} errors of {stock_errors}"
    );
    stop_after_faults(guest)?;
    Ok(format!(
        "stock: {stock_errors} errors, {} failures counted, memory wrong; ours: {errors} errors, \
         memory right",
        stock_failures.trim()
    ))
}

fn all_copy(guest: &mut Guest) -> Result<String> {
    guest.ok(&format!("modprobe {OURS} selftest=1"))?;
    let text = guest.ok(&format!("cat {PARAMETERS}/selftest"))?;
    let passed = text.lines().filter(|line| line.ends_with("passed")).count();
    ensure!(passed == MOST, "{passed} of {MOST} passed: {text}");
    start(guest, MOST)?;
    set(guest, &format!("{PARAMETERS}/stripe_kb"), "4")?;
    let report = run(guest, &mover(2048, "--bytes 2M", &ALL))?;
    let each = guest.server()?.counters_by_device()?;
    let used = each.iter().filter(|counters| counters.bytes > 0).count();
    ensure!(used == MOST, "{used} of {MOST} channels copied one folio");
    all_by_device(guest, &report)?;
    let report = run(guest, &mover(4, "--bytes 8M --rounds 2 --writers 1", &ALL))?;
    ensure!(report.counter(FAILURES)? == 0, "{report:?}");
    stop(guest)?;
    guest.ok(&format!("rmmod {OURS}"))?;
    Ok(format!("{MOST} channels"))
}

/// No function is used whose memory the kernel copies itself; each says so, once.
fn bounced(guest: &mut Guest) -> Result<String> {
    start(guest, 4)?;
    let report = run(guest, &mover(4, "--bytes 8M --rounds 3 --writers 1", &ALL))?;
    let (copied, left) = (report.counter(MIGRATED)?, report.counter(FAILURES)?);
    ensure!(
        copied == 0 && left == 0,
        "batches were accepted: {report:?}"
    );
    let states =
        guest.ok("cat /sys/bus/pci/drivers/ptdma_migrator/0*/ptdma/state | sort | uniq -c")?;
    ensure!(
        states.split_whitespace().eq(["4", "bounces"]),
        "the states are {states}"
    );
    let said = guest.ok("dmesg | grep -c 'the kernel bounces what is mapped for it'; true")?;
    ensure!(said.trim() == "4", "{said} functions have said so");
    let used = guest.ok("cat /sys/kernel/debug/swiotlb/io_tlb_used")?;
    stop(guest)?;
    guest.ok(&format!("rmmod {OURS}"))?;
    ensure!(used.trim() == "0", "{used} slots of the buffer are in use");
    Ok("4 functions, none used".into())
}
