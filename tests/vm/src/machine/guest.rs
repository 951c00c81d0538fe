//! A booted machine.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ptdma_guest::protocol::{Reply, Request};
use serde_json::Value;

use super::agent::{Agent, Job};
use super::command_line::{Options, SLOW_DISK, SLOW_DISK_BYTES};
use super::kernel_log::splats;
use super::qmp::Qmp;
use super::{Accel, accel};
use crate::groups::{Group, describe};
use crate::image::Image;
use crate::kernel::{Kernel, Variant};
use crate::qemu::Qemu;
use crate::run_dir::SocketDir;
use crate::server::Server;

/// Two seconds on an idle machine; others may be building on this one.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// For a command that names no limit of its own.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long a power-off may take before the machine is killed.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(10);
/// What the checks of the debug kernel cost in run time, with a margin.
const DEBUG_FACTOR: u32 = 5;
/// Writes that are under way are read by the server within this time; a millisecond
/// is usual.
const DRAIN: Duration = Duration::from_millis(200);
/// The console's thread is a few milliseconds behind; a busy host makes it seconds.
const CONSOLE_LIMIT: Duration = Duration::from_secs(20);
const CONSOLE_POLL: Duration = Duration::from_millis(5);

/// What a command printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    /// Exit status; 124 after a time-out, 128 + n after signal n.
    pub(crate) code: i32,
    /// Standard output and standard error, as they came.
    pub(crate) text: String,
    /// The time limit ended it.
    pub(crate) timed_out: bool,
}

/// A booted machine with its device server; dropping it kills both.
#[derive(Debug)]
pub(crate) struct Guest {
    // Dropped first: the emulator, then the server, then the sockets.
    agent: Agent,
    qmp: Option<Qmp>,
    /// The other end of the guest's second serial port, once it was used.
    line: Option<UnixStream>,
    emulator: Group,
    server: Option<Server>,
    sockets: SocketDir,
    options: Options,
    logs: PathBuf,
    release: String,
    booted_after: Duration,
    /// Length of the kernel log that has been judged already, bytes.
    judged: usize,
    /// Marks that have been put into the kernel's log.
    marks: u64,
    /// The longest that a load of the long runs is kept up.
    longest_soak: Option<Duration>,
}

impl Guest {
    /// Boots a machine; its logs go to `logs`.
    ///
    /// Builds what is missing first: the emulator, the kernel, the image.
    pub(crate) fn boot(options: Options, logs: &Path) -> Result<Self> {
        let qemu = Qemu::get()?;
        let accel = accel::choose(&qemu, |accel| {
            let probe = Options {
                devices: 0,
                ..Options::default()
            };
            Self::boot_with(&qemu, accel, probe, &logs.join("kvm-probe")).map(drop)
        });
        Self::boot_with(&qemu, accel, options, logs)
    }

    fn boot_with(qemu: &Qemu, accel: Accel, options: Options, logs: &Path) -> Result<Self> {
        let accel = if options.icount.is_some() {
            Accel::Tcg
        } else {
            accel
        };
        fs::create_dir_all(logs)?;
        let kernel = Kernel::get(options.kernel)?;
        let sockets = SocketDir::new()?;
        let image = Image::build(
            &kernel,
            &options.modules,
            options.selftests,
            &sockets.path().join("image"),
        )?;
        let server = if options.devices > 0 {
            let log = logs.join("server.log");
            Some(Server::start(
                sockets.path(),
                options.devices,
                options.separate_servers,
                &options.machines,
                &options.server,
                &log,
            )?)
        } else {
            None
        };

        let listener = UnixListener::bind(sockets.path().join("agent.sock"))?;
        let console = logs.join("console.log");
        fs::write(&console, "")?;
        symlink(&console, sockets.path().join("console.log"))?;
        if options.slow_disk {
            fs::File::create(sockets.path().join(SLOW_DISK))?.set_len(SLOW_DISK_BYTES)?;
        }
        let log = fs::File::create(logs.join("qemu.log"))?;
        let mut command = qemu.command();
        command
            .args(options.arguments(accel, &kernel.image(), image.path()))
            .current_dir(sockets.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        fs::write(logs.join("qemu.command"), format!("{command:?}\n"))?;
        let began = Instant::now();
        let mut emulator = Group::spawn(&mut command)?;
        let limit = scale(options.kernel, BOOT_LIMIT);
        let (agent, release, _) = Agent::accept(&listener, limit, || match emulator.ended()? {
            None => Ok(()),
            Some(status) => bail!("the emulator: {}", describe(status)),
        })
        .with_context(|| {
            format!(
                "the guest did not boot\n{}\n{}",
                tail(&logs.join("qemu.log"), 5),
                tail(&console, 10)
            )
        })?;
        Ok(Self {
            agent,
            qmp: None,
            line: None,
            emulator,
            server,
            sockets,
            options,
            logs: logs.to_path_buf(),
            release,
            booted_after: began.elapsed(),
            judged: 0,
            marks: 0,
            longest_soak: None,
        })
    }

    /// What this machine was asked to be.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// Has the loads of the long runs be kept up for this time at most.
    pub(crate) fn limit_soak(&mut self, longest: Option<Duration>) {
        self.longest_soak = longest;
    }

    /// How long to keep up a load that should last `whole`: less if a shorter run was asked for.
    pub(crate) fn soak_time(&self, whole: Duration) -> Duration {
        self.longest_soak
            .map_or(whole, |longest| longest.min(whole))
    }

    /// `uname -r`.
    pub(crate) fn release(&self) -> &str {
        &self.release
    }

    /// From the start of the emulator to the first word from user space.
    pub(crate) fn booted_after(&self) -> Duration {
        self.booted_after
    }

    /// The folder with the machine's logs.
    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }

    /// A time limit for this machine's kernel: longer on the debug kernel.
    pub(crate) fn scaled(&self, limit: Duration) -> Duration {
        scale(self.options.kernel, limit)
    }

    /// Runs a shell command within the usual limit (a minute, scaled).
    ///
    /// # Errors
    /// The guest is gone or hangs. A bad exit status is not an error here.
    pub(crate) fn sh(&mut self, command: &str) -> Result<Output> {
        self.sh_within(command, COMMAND_LIMIT)
    }

    /// Runs a shell command within a limit, which is scaled on the debug kernel.
    pub(crate) fn sh_within(&mut self, command: &str, limit: Duration) -> Result<Output> {
        let job = self.start(command, limit)?;
        self.wait(&job)
    }

    /// Runs a shell command that must succeed, and returns what it printed.
    pub(crate) fn ok(&mut self, command: &str) -> Result<String> {
        self.ok_within(command, COMMAND_LIMIT)
    }

    /// [`Guest::ok`] with a limit, which is scaled on the debug kernel.
    pub(crate) fn ok_within(&mut self, command: &str, limit: Duration) -> Result<String> {
        let out = self.sh_within(command, limit)?;
        succeeded(command, out)
    }

    /// Starts a command and lets it run; collect it with [`Guest::wait`].
    pub(crate) fn start(&mut self, command: &str, limit: Duration) -> Result<Job> {
        let limit = self.scaled(limit);
        self.transcript(&format!("$ {command}\n"));
        self.agent.start(command, limit)
    }

    /// Waits for a started command.
    pub(crate) fn wait(&mut self, job: &Job) -> Result<Output> {
        match job.wait()? {
            Reply::Done {
                code,
                output,
                timed_out,
                ..
            } => {
                self.transcript(&format!("{output}[{}: exit status {code}]\n", job.command));
                Ok(Output {
                    code,
                    text: output,
                    timed_out,
                })
            }
            Reply::Refused { reason, .. } => {
                bail!("the guest cannot run `{}`: {reason}", job.command)
            }
            Reply::Hello { .. } => bail!("the guest has started again"),
        }
    }

    /// Waits for a started command that must succeed.
    pub(crate) fn wait_ok(&mut self, job: &Job) -> Result<String> {
        let out = self.wait(job)?;
        succeeded(&job.command, out)
    }

    /// Kills a started command with its children; it must still be waited for.
    pub(crate) fn kill(&mut self, job: &Job) -> Result<()> {
        self.agent.send(&Request::Kill { id: job.id })
    }

    /// The kernel's log since boot, read through the agent.
    pub(crate) fn kernel_log(&mut self) -> Result<String> {
        self.ok("dmesg")
    }

    /// Fails if the kernel has reported anything wrong since the last call.
    pub(crate) fn expect_clean_dmesg(&mut self) -> Result<()> {
        self.expect_clean_dmesg_but(&[])
    }

    /// [`Guest::expect_clean_dmesg`], allowing reports that contain one of `expected`.
    pub(crate) fn expect_clean_dmesg_but(&mut self, expected: &[&str]) -> Result<()> {
        let settled = self.settle_console();
        self.expect_clean_console_but(expected)?;
        // A machine that hangs or is gone is a failure too, but its last words say more.
        settled
    }

    /// [`Guest::expect_clean_dmesg`] for a machine whose agent is out of reach: judges what the
    /// console has. Wait for the last line of interest first, by [`Guest::wait_for_console`].
    pub(crate) fn expect_clean_console(&mut self) -> Result<()> {
        self.expect_clean_console_but(&[])
    }

    /// [`Guest::expect_clean_console`], allowing reports that contain one of `expected`.
    pub(crate) fn expect_clean_console_but(&mut self, expected: &[&str]) -> Result<()> {
        // The console's log also has what came before the ring buffer wrapped.
        let bytes = fs::read(self.logs.join("console.log"))?;
        let log = String::from_utf8_lossy(bytes.get(self.judged..).unwrap_or_default());
        let found = splats(&log, expected);
        if let Some(first) = found.first() {
            let from = log.find(first).unwrap_or(0);
            let excerpt: Vec<&str> = log[from..].lines().take(25).collect();
            bail!(
                "the kernel reports {} problem(s), the first:\n{}",
                found.len(),
                excerpt.join("\n")
            );
        }
        self.judged = bytes.len();
        Ok(())
    }

    /// Waits until the console's log has everything that the kernel has said so far: a thread
    /// of the guest's kernel writes it, some time after the message.
    fn settle_console(&mut self) -> Result<()> {
        self.marks += 1;
        let mark = format!("ptdma-vm: mark {}.", self.marks);
        self.ok(&format!("echo '{mark}' > /dev/kmsg"))?;
        self.wait_for_console(&mark, CONSOLE_LIMIT)
            .context("the guest's console is behind its kernel")?;
        Ok(())
    }

    /// Waits for a line on the console that holds `mark` and has not been judged yet; returns
    /// what follows the mark. The limit is scaled on the debug kernel.
    ///
    /// # Errors
    /// There is none within the limit, or the machine has ended without one.
    pub(crate) fn wait_for_console(&mut self, mark: &str, limit: Duration) -> Result<String> {
        let console = self.logs.join("console.log");
        let limit = self.scaled(limit);
        let deadline = Instant::now() + limit;
        loop {
            // Asked before the look at the log, which has all last words then.
            let alive = self.alive();
            let bytes = fs::read(&console)?;
            let new = String::from_utf8_lossy(bytes.get(self.judged..).unwrap_or_default());
            // The end of the line too: what follows the mark is of interest.
            if let Some((rest, _)) = new
                .split_once(mark)
                .and_then(|(_, after)| after.split_once('\n'))
            {
                return Ok(rest.trim_end().to_owned());
            }
            ensure!(
                alive,
                "the guest is gone, and its console does not say `{mark}`"
            );
            ensure!(
                Instant::now() < deadline,
                "the guest's console does not say `{mark}` within {} s",
                limit.as_secs()
            );
            std::thread::sleep(CONSOLE_POLL);
        }
    }

    /// What the kernel has reported since it was last judged, for a check that has failed.
    pub(crate) fn first_report(&self) -> Option<String> {
        let bytes = fs::read(self.logs.join("console.log")).ok()?;
        let log = String::from_utf8_lossy(bytes.get(self.judged..)?);
        splats(&log, &[]).first().map(|line| (*line).to_owned())
    }

    /// The device server.
    pub(crate) fn server(&mut self) -> Result<&mut Server> {
        self.server
            .as_mut()
            .context("this machine has no PTDMA function")
    }

    /// Whether the emulator is running.
    pub(crate) fn alive(&mut self) -> bool {
        matches!(self.emulator.ended(), Ok(None))
    }

    /// Executes a command of the emulator's control protocol.
    pub(crate) fn qmp(&mut self, command: &str, arguments: Value) -> Result<Value> {
        if self.qmp.is_none() {
            self.qmp = Some(Qmp::connect(&self.sockets.path().join("qmp.sock"))?);
        }
        match &mut self.qmp {
            Some(qmp) => qmp.execute(command, arguments),
            None => bail!("the emulator's control socket is gone"),
        }
    }

    /// Sends a line to the guest's second serial port (`/dev/ttyS1`), which wakes it if the port
    /// may do that: the way to reach a guest whose agent does not answer.
    pub(crate) fn send_line(&mut self, text: &str) -> Result<()> {
        let stream = match self.line.take() {
            Some(stream) => stream,
            None => UnixStream::connect(self.sockets.path().join("line.sock"))
                .context("the guest's second serial port")?,
        };
        self.transcript(&format!("[to ttyS1: {text}]\n"));
        let stream = self.line.insert(stream);
        stream.set_write_timeout(Some(COMMAND_LIMIT))?;
        writeln!(stream, "{text}")?;
        Ok(())
    }

    /// Ends the server process of one function (see [`Options::separate_servers`]), or
    /// of all, as `kill -9` does.
    ///
    /// The processors stand still meanwhile: QEMU 11.1 aborts (an assertion in
    /// `error_setv`) when its peer dies with a message unread, as happens in one of a
    /// few attempts under load. The guest sees its device die between two accesses; to
    /// have a descriptor in flight, inject a stall or a delay first.
    pub(crate) fn kill9(&mut self, device: Option<usize>) -> Result<()> {
        self.qmp("stop", serde_json::json!({}))?;
        std::thread::sleep(DRAIN);
        let server = self.server()?;
        match device {
            Some(device) => server.kill9(device)?,
            None => server.kill9_all(),
        }
        std::thread::sleep(DRAIN);
        self.qmp("cont", serde_json::json!({}))?;
        Ok(())
    }

    /// Removes function `index` from the guest, as the kernel does it when a device
    /// leaves its slot: the driver's `remove` runs, then the function is gone.
    ///
    /// Through sysfs, because QEMU 11.1 aborts (an assertion in
    /// `memory_region_del_subregion`) when a vfio-user device is really unplugged.
    pub(crate) fn unplug(&mut self, index: usize) -> Result<()> {
        let address = self.options.address_of(index);
        let path = format!("/sys/bus/pci/devices/{address}");
        self.ok(&format!("echo 1 > {path}/remove"))?;
        let out = self.sh(&format!("test -e {path}"))?;
        ensure!(
            out.code != 0,
            "function {index} is still there after its removal"
        );
        Ok(())
    }

    /// Brings back every function that was removed.
    pub(crate) fn replug(&mut self) -> Result<()> {
        self.ok("echo 1 > /sys/bus/pci/rescan")?;
        Ok(())
    }

    /// The PCI addresses of the PTDMA functions that the guest sees, in bus order.
    pub(crate) fn functions(&mut self) -> Result<Vec<String>> {
        let text = self.ok("cd /sys/bus/pci/devices && for d in *; do \
             [ \"$(cat $d/vendor):$(cat $d/device)\" = 0x1022:0x1498 ] && echo $d; done; true")?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Powers the machine off in order, and returns the server for its last words.
    pub(crate) fn shut_down(mut self) -> Result<Option<Server>> {
        self.agent.send(&Request::PowerOff)?;
        self.emulator
            .wait(scale(self.options.kernel, POWER_OFF_LIMIT))?
            .context("the guest does not power off")?;
        Ok(self.server.take())
    }

    /// A record of the conversation, to explain a failure.
    fn transcript(&self, text: &str) {
        let path = self.logs.join("commands.log");
        let written = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        if let Err(error) = written {
            eprintln!("cannot write {}: {error}", path.display());
        }
    }
}

fn succeeded(command: &str, out: Output) -> Result<String> {
    if out.timed_out {
        bail!(
            "`{command}` in the guest ran out of time; so far:\n{}",
            out.text
        );
    }
    if out.code != 0 {
        bail!(
            "`{command}` in the guest: exit status {}\n{}",
            out.code,
            out.text
        );
    }
    Ok(out.text)
}

fn scale(variant: Variant, limit: Duration) -> Duration {
    match variant {
        Variant::Debug => limit * DEBUG_FACTOR,
        _ => limit,
    }
}

/// The last lines of a log, indented; empty when there is none.
fn tail(path: &Path, count: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..]
        .iter()
        .map(|line| format!("    {line}\n"))
        .collect()
}
