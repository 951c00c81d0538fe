//! The machine itself: boots in time, has its nodes, answers, and is seen to fail.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{BOTH, Check, Suite};
use crate::machine::{Guest, Options};

/// What a user waits for a shell on the fast kernel.
const BOOT_GOAL: Duration = Duration::from_secs(10);

pub(super) const SUITES: &[Suite] = &[Suite {
    name: "machine",
    about: "boots in time with two nodes; commands, time limits and kernel reports work",
    kernels: BOTH,
    machine: || Options {
        devices: 0,
        ..Options::default()
    },
    checks: &[
        Check::new("boot", boot).quick(BOTH),
        Check::new("nodes", nodes).quick(BOTH),
        Check::new("commands", commands).quick(BOTH),
        Check::new("modules", modules).quick(BOTH),
        Check::spoiling("reports-are-seen", reports).quick(BOTH),
    ],
}];

fn boot(guest: &mut Guest) -> Result<String> {
    let took = guest.booted_after();
    let goal = guest.scaled(BOOT_GOAL);
    ensure!(took < goal, "user space after {took:.1?}, goal {goal:?}");
    guest.expect_clean_dmesg()?;
    Ok(format!(
        "{} in {:.1} s",
        guest.release(),
        took.as_secs_f64()
    ))
}

fn nodes(guest: &mut Guest) -> Result<String> {
    let online = guest.ok("cat /sys/devices/system/node/online")?;
    ensure!(online.trim() == "0-1", "nodes {online}");
    let mut sizes = Vec::new();
    for node in 0..2 {
        let cpus = guest.ok(&format!("cat /sys/devices/system/node/node{node}/cpulist"))?;
        ensure!(
            cpus.trim() == node.to_string(),
            "processors of node {node}: {cpus}"
        );
        let text = guest.ok(&format!(
            "awk '/MemTotal/ {{ print $4 }}' /sys/devices/system/node/node{node}/meminfo"
        ))?;
        let kib: u64 = text.trim().parse()?;
        ensure!(kib > 256 << 10, "node {node} has only {kib} KiB");
        sizes.push(kib >> 10);
    }
    Ok(format!("{} + {} MiB", sizes[0], sizes[1]))
}

fn commands(guest: &mut Guest) -> Result<String> {
    let out = guest.sh("echo out; echo err >&2; exit 3")?;
    ensure!(out.code == 3 && out.text == "out\nerr\n", "{out:?}");
    let out = guest.sh("kill -9 $$")?;
    ensure!(out.code == 128 + 9, "{out:?}");

    let began = Instant::now();
    let out = guest.sh_within("sleep 1000", Duration::from_secs(1))?;
    ensure!(out.timed_out && out.code == 124, "{out:?}");
    ensure!(began.elapsed() < guest.scaled(Duration::from_secs(10)));

    // Commands run side by side, and a job can be killed.
    let job = guest.start("echo begun; sleep 1000", Duration::from_secs(30))?;
    guest.ok("until pidof sleep; do sleep 0.1; done")?;
    guest.kill(&job)?;
    let out = guest.wait(&job)?;
    ensure!(out.code == 128 + 9 && out.text == "begun\n", "{out:?}");
    Ok(String::new())
}

fn modules(guest: &mut Guest) -> Result<String> {
    guest.ok("modprobe ptdma && modprobe dmatest && modprobe uio_pci_generic")?;
    guest.ok("rmmod uio_pci_generic dmatest ptdma")?;
    guest.expect_clean_dmesg()?;
    Ok(String::new())
}

/// A report of the kernel must fail the check that calls for a clean log.
fn reports(guest: &mut Guest) -> Result<String> {
    guest.expect_clean_dmesg()?;
    guest.ok("echo 'BUG: made up by the test' > /dev/kmsg")?;
    let seen = guest.expect_clean_dmesg();
    ensure!(seen.is_err(), "a report in the log went unnoticed");
    guest.expect_clean_dmesg_but(&["made up by the test"])?;
    Ok(String::new())
}
