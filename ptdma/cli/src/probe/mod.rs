//! `ptdma probe`: asks every engine what no public source says, and measures it, by VFIO.

mod function;
mod report;
mod show;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use ptdma_probe::{Consent, MEASURED_LENGTHS, Stop, together};
use ptdma_vfio::{Candidate, PciAddress, ResetsOff, Space};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use crate::say;
use function::{Opened, Shared};
use report::{Report, Together, Told};

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Functions; all of the machine if there are none.
    pub(crate) addresses: Vec<PciAddress>,
    /// Whether to take functions from their drivers, and to give them back.
    pub(crate) take: bool,
    /// Length of either buffer of a function.
    pub(crate) buffer_mib: u32,
    /// What may be done that a function may not survive.
    pub(crate) consent: Consent,
}

/// A function of the machine, with what is to be undone.
struct Chosen {
    candidate: Candidate,
    /// None on a kernel that cannot be kept from resetting.
    resets: Option<ResetsOff>,
    taken: bool,
}

/// Probes, and tells. False if a function did not answer all that was asked, or copied wrongly.
pub(crate) fn run(plan: &Plan, json: bool) -> Result<bool> {
    let stop = stop_on_signals()?;
    let mut chosen = choose(plan)?;
    let report = taken(&mut chosen, plan).and_then(|()| ask(&mut chosen, plan, &stop));
    // All functions are closed: their resets stay off until they have their drivers again.
    give_back(&chosen);
    let report = report?;
    if stop.load(Ordering::Relaxed) {
        anyhow::bail!("interrupted: the functions have their drivers and resets again");
    }
    if json {
        say::print_json(&report)?;
    } else {
        show::print(&report)?;
    }
    Ok(report.is_good())
}

/// A flag for signals that would end the program before it has undone what it did to the functions.
/// A second signal ends it nevertheless.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // What a shell says of a program that a signal has ended.
        let status = 128 + signal;
        flag::register_conditional_shutdown(signal, status, Arc::clone(&stop))
            .and_then(|_| flag::register(signal, Arc::clone(&stop)))
            .context("no signal can be waited for")?;
    }
    Ok(stop)
}

fn choose(plan: &Plan) -> Result<Vec<Chosen>> {
    let all = ptdma_vfio::list()?;
    let wanted = |candidate: &Candidate| {
        plan.addresses.is_empty() || plan.addresses.contains(&candidate.address)
    };
    for address in &plan.addresses {
        if !all.iter().any(|candidate| candidate.address == *address) {
            anyhow::bail!("{address} is no PTDMA function: see `lspci -d 1022:1498`");
        }
    }
    let found: Vec<_> = all.into_iter().filter(wanted).collect();
    if found.is_empty() {
        anyhow::bail!("this machine has no PTDMA function (PCI 1022:1498)");
    }
    Ok(found
        .into_iter()
        .map(|candidate| Chosen {
            candidate,
            resets: None,
            taken: false,
        })
        .collect())
}

/// Sees to it that vfio-pci has all of them, and that nobody resets them meanwhile.
fn taken(chosen: &mut [Chosen], plan: &Plan) -> Result<()> {
    for one in chosen {
        let address = one.candidate.address;
        if one.candidate.group.is_none() {
            return Err(ptdma_vfio::Error::NoIommu(address).into());
        }
        let free = one.candidate.driver.as_deref() == Some("vfio-pci");
        if !free && !plan.take {
            anyhow::bail!(
                "{address} belongs to {}: `ptdma probe --take` takes it and gives it back",
                one.candidate.driver.as_deref().unwrap_or("no driver")
            );
        }
        // Before anything opens it: opening resets, and the function may not come back.
        one.resets = match ResetsOff::new(address) {
            Ok(off) => Some(off),
            Err(error @ ptdma_vfio::Error::NoPermission { .. }) => {
                return Err(error).context("run this as root");
            }
            Err(error) => {
                eprintln!(
                    "ptdma: the kernel cannot be kept from resetting {address} when it is opened: {error}"
                );
                None
            }
        };
        if !free {
            ptdma_vfio::take(address)?;
            one.taken = true;
        }
    }
    Ok(())
}

fn give_back(chosen: &[Chosen]) {
    for one in chosen.iter().filter(|one| one.taken) {
        if let Err(error) = ptdma_vfio::give_back(one.candidate.address) {
            eprintln!("ptdma: {error}");
        }
    }
}

fn progress(count: usize) -> ProgressBar {
    let bar = ProgressBar::new(count as u64);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {wide_msg}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn ask(chosen: &mut [Chosen], plan: &Plan, stop: &AtomicBool) -> Result<Report> {
    let space = Space::new()?;
    let mut report = Report::new(chosen.iter().map(|one| &one.candidate));
    let bar = progress(chosen.len());
    let mut shared = None;
    let mut good: Vec<Opened> = Vec::new();
    for one in chosen.iter_mut() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let address = one.candidate.address;
        bar.set_message(format!("{address}: asking"));
        let room = u64::from(plan.buffer_mib) << 20;
        let opened = Opened::open(&space, address, one.resets.take(), &mut shared, room);
        let told = match opened {
            Ok(mut opened) => {
                let found = ptdma_probe::probe(&mut opened, plan.consent);
                // What does not stop is closed at once: the kernel unmaps its memory.
                if found.stop.is_none() {
                    good.push(opened);
                } else {
                    one.resets = opened.close();
                }
                Told::new(&one.candidate, &found)
            }
            Err(error) => Told::unopened(&one.candidate, &error),
        };
        report.functions.push(told);
        bar.inc(1);
    }
    bar.set_message("all together");
    if !stop.load(Ordering::Relaxed) {
        measure_together(&mut good, &mut report);
    }
    bar.finish_and_clear();
    for opened in good {
        let address = opened.address();
        let resets = opened.close();
        for one in chosen.iter_mut() {
            if one.candidate.address == address {
                one.resets = resets;
                break;
            }
        }
    }
    drop(shared);
    report.conclude();
    Ok(report)
}

/// Neighbours in pairs, then all: two functions of one port share what the port can do.
fn measure_together(good: &mut [Opened], report: &mut Report) {
    let lengths = [MEASURED_LENGTHS[2], MEASURED_LENGTHS[5]];
    let mut measure = |some: &mut [Opened]| -> Result<(), Stop> {
        for len in lengths {
            let rate = together(some, len)?;
            let functions = some.iter().map(|one| one.address().to_string()).collect();
            report.together.push(Together { functions, rate });
        }
        Ok(())
    };
    if good.len() < 2 {
        return;
    }
    let mut done = Ok(());
    for pair in good.chunks_exact_mut(2) {
        done = done.and_then(|()| measure(pair));
    }
    if good.len() > 2 {
        done = done.and_then(|()| measure(good));
    }
    report.together_stop = done.err().map(Stop::text);
}

/// Memory that all functions share, made with the first.
type SharedSlot = Option<std::rc::Rc<Shared>>;
