//! Channels by port: functions that hang in pairs.

use anyhow::{Result, ensure};

use super::kshim::{ALL, CHANNELS, all_by_device, start, stop};
use super::mover::{mover, run, set};
use super::{Check, FAST, Suite};
use crate::machine::{Guest, Options};

/// Root complexes, one for each node, and functions: two on each.
const PORTS: usize = 4;
const DEVICES: usize = 2 * PORTS;

pub(super) const SUITES: &[Suite] = &[Suite {
    name: "kshim-ports",
    about: "our migrator on functions that share ports in pairs",
    kernels: FAST,
    machine: || Options {
        devices: DEVICES,
        nodes: PORTS,
        cpus: PORTS,
        node_memory_mib: 384,
        modules: vec!["kshim"],
        ..Options::default()
    },
    checks: &[Check::new("one-of-each-port", one_of_each_port).quick(FAST)],
}];

/// A batch of one huge folio goes to one channel of each port, where four channels are asked for and
/// where the cost model decides. Channels near the two nodes alone would be four of two ports.
fn one_of_each_port(guest: &mut Guest) -> Result<String> {
    start(guest, PORTS)?;
    let mut ports = Vec::new();
    for index in 0..DEVICES {
        let address = guest.options().address_of(index);
        let port = guest.ok(&format!("cat /sys/bus/pci/devices/{address}/ptdma/port"))?;
        ports.push(port.trim().to_owned());
    }
    for (index, port) in ports.iter().enumerate() {
        let same: Vec<usize> = (0..DEVICES).filter(|&n| &ports[n] == port).collect();
        // The nodes take turns.
        let pair = [index % PORTS, index % PORTS + PORTS];
        ensure!(
            same == pair,
            "function {index} shares its port with {same:?}: {ports:?}"
        );
    }
    let mut note = Vec::new();
    for channels in [PORTS, 0] {
        set(guest, CHANNELS, &channels.to_string())?;
        guest.server()?.reset_counters()?;
        let report = run(guest, &mover(2048, "--bytes 2M --rounds 32", &ALL))?;
        let each = guest.server()?.counters_by_device()?;
        let by_port: Vec<u64> = (0..PORTS)
            .map(|port| each[port].bytes + each[port + PORTS].bytes)
            .collect();
        let (least, most) = (by_port.iter().min(), by_port.iter().max());
        let (least, most) = (least.copied().unwrap_or(0), most.copied().unwrap_or(0));
        // What the kernel has split and tried again is less than a folio.
        ensure!(
            least > 0 && most - least <= most / 50 + 4096,
            "with nr_dma_chan {channels}, bytes by port: {by_port:?}"
        );
        let folios = report.folios_moved()?;
        let descriptors: u64 = each.iter().map(|c| c.descriptors).sum();
        ensure!(
            descriptors >= folios * PORTS as u64 && descriptors < folios * (PORTS as u64 + 1),
            "with nr_dma_chan {channels}, {descriptors} descriptors for {folios} folios"
        );
        all_by_device(guest, &report)?;
        note.push(format!("{least} to {most} bytes a port"));
    }
    stop(guest)?;
    Ok(note.join("; "))
}
