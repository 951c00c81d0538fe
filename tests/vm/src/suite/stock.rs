//! The unmodified Linux driver judges the device model.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{BOTH, Check, Suite};
use crate::machine::{Guest, Options};

/// Verified copies of each channel (the number that was asked for).
const COPIES: u64 = 3000;
/// Emulated, a copy takes about a millisecond; 48,000 of them are wanted at most.
const DMATEST_LIMIT: Duration = Duration::from_secs(240);

pub(super) const SUITES: &[Suite] = &[Suite {
    name: "stock-1",
    about: "stock ptdma on one function: copies, cost, reload, errors, server killed",
    kernels: BOTH,
    machine: || Options {
        devices: 1,
        ..Options::default()
    },
    checks: &[
        Check::new("binds", binds),
        Check::new("dmatest", dmatest_all),
    ],
}];

fn binds(guest: &mut Guest) -> Result<String> {
    let wanted = guest.options().devices;
    guest.ok("modprobe ptdma")?;
    let channels = channels(guest)?;
    ensure!(
        channels.len() == wanted,
        "{} channels of {wanted}: {channels:?}",
        channels.len()
    );
    Ok(format!("{wanted} channel(s)"))
}

/// The names of the DMA channels, as dmatest wants them.
fn channels(guest: &mut Guest) -> Result<Vec<String>> {
    let text = guest.ok("ls /sys/class/dma")?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

fn dmatest_all(guest: &mut Guest) -> Result<String> {
    guest.ok("modprobe dmatest")?;
    guest.server()?.reset_counters()?;
    let text = guest.ok_within(
        &format!(
            "cd /sys/module/dmatest/parameters; echo {COPIES} > iterations; echo 5000 > timeout; \
             echo 16384 > test_buf_size; for c in $(ls /sys/class/dma); do echo $c > channel; done; \
             echo 1 > wait; echo 1 > run; cat wait; dmesg | grep dmatest: | tail -40"
        ),
        DMATEST_LIMIT,
    )?;
    let counters = guest.server()?.counters()?;
    Ok(format!("{counters:?} {text}"))
}
