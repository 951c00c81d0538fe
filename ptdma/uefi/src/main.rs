//! `ptdma.efi`: finds the PTDMA functions of a machine, has all of them copy, compares every byte.
//!
//! `README.md` says how it is built and started, and what it touches.

#![no_std]
#![no_main]

extern crate alloc;

mod bench;
mod firmware;
mod probe;
mod report;

use uefi::prelude::*;
use uefi::{boot, println};

use bench::Bench;

#[entry]
fn main() -> Status {
    // The firmware would start anew after five minutes. Without it somebody may read the screen
    // for as long as they like; a firmware that has no such timer says so, which is as good.
    let _ = boot::set_watchdog_timer(0, 0x1_0000, None);
    println!();
    println!("PTDMA: every engine of this machine copies memory, and every byte is compared.");
    let machine = match firmware::Machine::find() {
        Ok(machine) => machine,
        Err(error) => {
            println!("The firmware names no PCI root bridge: {error}.");
            return report::end(false, "nothing was tried");
        }
    };
    println!(
        "{} PTDMA function(s) (PCI 1022:1498) on {} root bridge(s).",
        machine.functions.len(),
        machine.bridges()
    );
    if machine.functions.is_empty() {
        return report::end(false, "nothing was tried: there is no function to try");
    }
    let mut bench = Bench::new(machine);
    bench.bring_up();
    bench.run();
    bench.shut_down();
    report::table(&bench);
    bench.kept += probe::run(&bench.machine, &bench.in_order(), bench.ticks);
    let (good, text) = report::verdict(&bench);
    report::end(good, &text)
}
