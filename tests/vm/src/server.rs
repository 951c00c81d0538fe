//! The device server: PTDMA functions over vfio-user, and the socket that controls them.
//!
//! `tests/server/README.md` has the protocol.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::ops::AddAssign;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::groups::{Group, bound_command, describe};

/// The server answers at once, or is stuck.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const START_LIMIT: Duration = Duration::from_secs(20);
const PROGRAM: &str = "ptdma-server";

/// What the device model has counted; see `ptdma_model::Counters`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Counters {
    /// Register reads.
    pub(crate) mmio_reads: u64,
    /// Register writes.
    pub(crate) mmio_writes: u64,
    /// Accesses to offsets where nothing is known to be.
    pub(crate) unknown_accesses: u64,
    /// Tail writes.
    pub(crate) doorbells: u64,
    /// Descriptors that completed.
    pub(crate) descriptors: u64,
    /// Bytes of descriptors that completed.
    pub(crate) bytes: u64,
    /// Descriptors that failed.
    pub(crate) errors: u64,
    /// Interrupt messages sent.
    pub(crate) interrupts: u64,
    /// Interrupt messages lost to a fault.
    pub(crate) interrupts_lost: u64,
    /// Faults that have struck.
    pub(crate) faults: u64,
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.mmio_reads += other.mmio_reads;
        self.mmio_writes += other.mmio_writes;
        self.unknown_accesses += other.unknown_accesses;
        self.doorbells += other.doorbells;
        self.descriptors += other.descriptors;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.interrupts += other.interrupts;
        self.interrupts_lost += other.interrupts_lost;
        self.faults += other.faults;
    }
}

impl Counters {
    /// A count per completed or failed descriptor.
    pub(crate) fn per_descriptor(&self, count: u64) -> f64 {
        count as f64 / (self.descriptors + self.errors).max(1) as f64
    }
}

/// The part of a device's entry in the reply to `counters` that is used here.
#[derive(Deserialize)]
struct Device {
    index: usize,
    programmed: bool,
    bus_master: bool,
    mapped_bytes: u64,
    counters: Counters,
}

/// One server process.
#[derive(Debug)]
struct Process {
    group: Group,
    control: BufReader<UnixStream>,
    /// Functions `first..first + count`.
    first: usize,
    count: usize,
}

/// The servers of one machine: one process for all functions, or one for each.
#[derive(Debug)]
pub(crate) struct Server {
    processes: Vec<Process>,
}

impl Server {
    /// Starts serving `devices` functions with sockets in `folder`, and waits until
    /// all listen.
    ///
    /// With `separate`, each function has a process of its own, so that one can be
    /// killed alone. So has each with `machines`, which take turns if there are fewer.
    pub(crate) fn start(
        folder: &Path,
        devices: usize,
        separate: bool,
        machines: &[&str],
        arguments: &[String],
        log: &Path,
    ) -> Result<Self> {
        let log = File::create(log)?;
        let shares: Vec<(usize, usize)> = if separate || !machines.is_empty() {
            (0..devices).map(|index| (index, 1)).collect()
        } else {
            vec![(0, devices)]
        };
        let processes = shares
            .into_iter()
            .map(|(first, count)| {
                let mut arguments = arguments.to_vec();
                if let Some(machine) = machines.iter().cycle().nth(first) {
                    arguments.extend(["--machine".to_owned(), (*machine).to_owned()]);
                }
                Process::start(folder, first, count, &arguments, &log)
            })
            .collect::<Result<_>>()?;
        Ok(Self { processes })
    }

    /// Counts of each function, by index, since the start or the last reset.
    ///
    /// # Errors
    /// A function's process has been killed, or does not answer.
    pub(crate) fn counters_by_device(&mut self) -> Result<Vec<Counters>> {
        self.collect(&json!({"cmd": "counters"}))
    }

    /// Counts of all functions together.
    pub(crate) fn counters(&mut self) -> Result<Counters> {
        Ok(sum(&self.counters_by_device()?))
    }

    /// The functions whose queue is set up: it has a ring, runs, or may interrupt.
    pub(crate) fn programmed(&mut self) -> Result<Vec<usize>> {
        let devices = self.devices(&json!({"cmd": "counters"}))?;
        let programmed = devices.into_iter().filter(|device| device.programmed);
        Ok(programmed.map(|device| device.index).collect())
    }

    /// The functions that may read and write memory at all.
    pub(crate) fn bus_masters(&mut self) -> Result<Vec<usize>> {
        let devices = self.devices(&json!({"cmd": "counters"}))?;
        let masters = devices.into_iter().filter(|device| device.bus_master);
        Ok(masters.map(|device| device.index).collect())
    }

    /// How much of the guest's memory each function can reach, by index: all of it, or behind an
    /// IOMMU what is mapped for it.
    pub(crate) fn mapped_bytes(&mut self) -> Result<Vec<u64>> {
        let devices = self.devices(&json!({"cmd": "counters"}))?;
        Ok(devices
            .into_iter()
            .map(|device| device.mapped_bytes)
            .collect())
    }

    /// Sets all counts to zero and returns what they were, together.
    pub(crate) fn reset_counters(&mut self) -> Result<Counters> {
        Ok(sum(&self.collect(&json!({"cmd": "reset_counters"}))?))
    }

    /// Injects a fault into one function, or into all; `fault` is a `FAULT` of the
    /// protocol, e.g. `json!({"trigger": {"at": 3}, "kind": {"error": {"code": 19}}})`.
    pub(crate) fn fault(&mut self, device: Option<usize>, fault: &Value) -> Result<()> {
        self.send(device, json!({"cmd": "inject", "fault": fault}))
    }

    /// Makes the engine of one function, or of all, one of another kind; only while it is idle.
    pub(crate) fn machine(&mut self, device: Option<usize>, kind: &str) -> Result<()> {
        self.send(device, json!({"cmd": "machine", "machine": kind}))
    }

    /// Removes the faults of one function, or of all, and ends what they caused.
    pub(crate) fn clear_faults(&mut self, device: Option<usize>) -> Result<()> {
        self.send(device, json!({"cmd": "clear"}))
    }

    /// Ends every process as `kill -9` does; tests use `Guest::kill9`.
    pub(crate) fn kill9_all(&mut self) {
        for process in &mut self.processes {
            process.group.kill();
        }
    }

    /// Ends the process of one function; with a common process (see
    /// `Options::separate_servers`) that is all of them, and an error.
    pub(crate) fn kill9(&mut self, device: usize) -> Result<()> {
        let process = self.of(device)?;
        ensure!(
            process.count == 1,
            "function {device} shares its process; set Options::separate_servers"
        );
        process.group.kill();
        Ok(())
    }

    fn of(&mut self, device: usize) -> Result<&mut Process> {
        self.processes
            .iter_mut()
            .find(|process| (process.first..process.first + process.count).contains(&device))
            .with_context(|| format!("there is no function {device}"))
    }

    fn send(&mut self, device: Option<usize>, mut request: Value) -> Result<()> {
        match device {
            Some(device) => {
                request["device"] = json!(device);
                self.of(device)?.request(&request)?;
            }
            None => {
                for process in &mut self.processes {
                    process.request(&request)?;
                }
            }
        }
        Ok(())
    }

    fn collect(&mut self, request: &Value) -> Result<Vec<Counters>> {
        let devices = self.devices(request)?;
        Ok(devices.into_iter().map(|device| device.counters).collect())
    }

    fn devices(&mut self, request: &Value) -> Result<Vec<Device>> {
        let mut all = Vec::new();
        for process in &mut self.processes {
            let mut answer = process.request(request)?;
            let devices: Vec<Device> = serde_json::from_value(answer["devices"].take())
                .context("the device server's counters are not understood")?;
            all.extend(devices);
        }
        all.sort_by_key(|device| device.index);
        Ok(all)
    }
}

impl Process {
    fn start(
        folder: &Path,
        first: usize,
        count: usize,
        arguments: &[String],
        log: &File,
    ) -> Result<Self> {
        let control = folder.join(format!("control{first}.sock"));
        let mut command = bound_command(program()?);
        command
            .arg("--socket-dir")
            .arg(folder)
            .args(["--devices", &count.to_string()])
            .args(["--first-index", &first.to_string()])
            .arg("--control")
            .arg(&control)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?);
        let mut group = Group::spawn(&mut command)?;
        let deadline = Instant::now() + START_LIMIT;
        let listens = |index: usize| folder.join(format!("ptdma{index}.sock")).exists();
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&control)
                && (first..first + count).all(listens)
            {
                break stream;
            }
            if let Some(status) = group.ended()? {
                bail!("the device server: {}", describe(status));
            }
            ensure!(
                Instant::now() < deadline,
                "the device server does not listen after {} s",
                START_LIMIT.as_secs()
            );
            std::thread::sleep(Duration::from_millis(10));
        };
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        Ok(Self {
            group,
            control: BufReader::new(stream),
            first,
            count,
        })
    }

    /// Sends one request and returns what `ok` has in the reply.
    fn request(&mut self, request: &Value) -> Result<Value> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.control
            .get_mut()
            .write_all(&line)
            .context("the device server does not listen")?;
        let mut text = String::new();
        if self.control.read_line(&mut text)? == 0 {
            bail!("the device server has hung up");
        }
        let mut reply: Value = serde_json::from_str(&text)?;
        match reply.get_mut("ok") {
            Some(value) => Ok(value.take()),
            None => bail!("the device server refuses {request}: {}", text.trim()),
        }
    }
}

fn sum(counters: &[Counters]) -> Counters {
    let mut total = Counters::default();
    for one in counters {
        total += *one;
    }
    total
}

/// The server's program, beside this one: both are of the same workspace and profile.
fn program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("this program is in no folder")?;
    let program = folder.join(PROGRAM);
    ensure!(
        program.is_file(),
        "{} is missing: `cargo vm build` makes it",
        program.display()
    );
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_and_are_told_per_descriptor() {
        let one = Counters {
            mmio_reads: 8,
            mmio_writes: 12,
            descriptors: 1,
            errors: 1,
            ..Counters::default()
        };
        let both = sum(&[one, one]);
        assert_eq!((both.mmio_reads, both.mmio_writes), (16, 24));
        assert!((both.per_descriptor(both.mmio_reads) - 4.0).abs() < 1e-9);
        assert!(Counters::default().per_descriptor(7).is_finite());
    }

    #[test]
    fn the_reply_of_the_server_is_understood() -> Result<()> {
        let text = r#"{"index":3,"connected":true,"answers":true,"programmed":false,"bus_master":true,"maps":12,"mapped_bytes":1,
            "counters":{"mmio_reads":1,"mmio_writes":2,"reads":{"Head":1},"writes":{},
            "unknown_accesses":0,"doorbells":4,"run_writes":1,"descriptors":5,"bytes":6,
            "partial_bytes":0,"errors":7,"interrupts":8,"interrupts_lost":0,"faults":9}}"#;
        let device: Device = serde_json::from_str(text)?;
        assert_eq!((device.index, device.counters.errors), (3, 7));
        Ok(())
    }
}
