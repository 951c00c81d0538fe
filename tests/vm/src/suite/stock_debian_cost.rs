//! Debian's own kernels, unchanged: what the livepatch costs those who gain nothing by it.

use anyhow::{Context, Result, ensure};

use super::mover::{mover, run};
use super::stock_debian::{disable, disable_livepatch, enable, enable_livepatch};
use super::{Check, DEBIAN_612, Suite};
use crate::machine::{Guest, Options};

/// Instructions of the guest that our own checks may take of a small folio's migration.
const OUR_SHARE: f64 = 20.0;
/// Of so many runs the shortest one counts: nothing makes a run shorter than it is.
const RUNS: usize = 3;

pub(super) const SUITES: &[Suite] = &[Suite {
    name: "stock-debian-cost",
    about: "what the livepatch costs small folios, in instructions",
    kernels: DEBIAN_612,
    machine: || Options {
        devices: 0,
        cpus: 1,
        // 2^0: one instruction is one nanosecond of the guest's time.
        icount: Some(0),
        modules: vec!["kshim", "testklp"],
        ..Options::default()
    },
    checks: &[Check::new("small-folios", small_folios)],
}];

/// Instructions for each small folio that moves to and fro, all of the kernel's work.
fn instructions(guest: &mut Guest) -> Result<f64> {
    let mut shortest: Option<f64> = None;
    for _ in 0..RUNS {
        let report = run(guest, &mover(4, "--count --bytes 16M --rounds 4", &[]))?;
        let each = report.number("/phase_ns/busy")? as f64 / report.folios_moved()? as f64;
        shortest = Some(shortest.map_or(each, |least| least.min(each)));
    }
    shortest.context("nothing was counted")
}

/// A livepatch that changes nothing shows what ftrace takes; the rest is ours.
fn small_folios(guest: &mut Guest) -> Result<String> {
    let none = instructions(guest)?;
    enable_livepatch(guest, "testklp")?;
    let any = instructions(guest)?;
    disable_livepatch(guest, "testklp")?;
    guest.ok("modprobe ptdma_migrator")?;
    enable(guest)?;
    let ours = instructions(guest)?;
    disable(guest)?;
    guest.ok("rmmod ptdma_migrator")?;
    let after = instructions(guest)?;
    let told = format!(
        "{none:.1} instructions, {any:.1} with a livepatch that changes nothing, {ours:.1} with \
         ours, {after:.1} without one again"
    );
    // If a livepatch cost nothing, it would not be there, or nothing was counted.
    ensure!(any - none > 1.0 && ours - none > 1.0, "{told}");
    ensure!(
        ours - any <= OUR_SHARE,
        "our checks take too many of: {told}"
    );
    Ok(told)
}
