//! A machine that runs one program without an operating system.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::groups::{Group, describe};
use crate::qemu::Qemu;
use crate::run_dir::SocketDir;
use crate::server::Server;
use crate::step;

/// Pause between two reads of the serial line.
const LOOK: Duration = Duration::from_millis(20);
/// The socket of the serial line.
const LINE: &str = "serial.sock";
/// Bus numbers of the two expander bridges: apart from each other and from the root's own.
const EXPANDERS: [usize; 2] = [32, 80];

/// Kinds of engine that the model has a name for, all but `no_reset`, which cannot come back after a
/// hang, and those that a machine of 16 functions has no room for.
pub(super) const KINDS: [&str; 13] = [
    "today",
    "lenient",
    "sibling",
    "linux_only",
    "dpdk",
    "stopper",
    "deaf",
    "silent",
    "lagging",
    "slow_halt",
    "past",
    "flushed",
    "forgetful",
];

/// Makes function `i` one of kind `i`.
pub(super) fn of_all_kinds(server: &mut Server) -> Result<()> {
    let mut kinds = KINDS.iter().enumerate();
    kinds.try_for_each(|(device, kind)| server.machine(Some(device), kind))
}

/// An emulator with its device server; dropping it ends both.
#[derive(Debug)]
pub(super) struct Machine {
    // Dropped first: the emulator, then the server, then the sockets.
    emulator: Group,
    server: Option<Server>,
    sockets: SocketDir,
    serial: PathBuf,
    /// How much of the serial line's text [`Machine::next_line`] has read.
    seen: usize,
    /// The other end of the serial line, once something was sent.
    line: Option<UnixStream>,
}

/// What a machine is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) functions: usize,
    pub(super) processors: usize,
    pub(super) memory_mib: usize,
    /// Arguments for the device server.
    pub(super) server: Vec<String>,
    /// Arguments for the emulator: what it starts.
    pub(super) program: Vec<OsString>,
}

impl Machine {
    /// Starts the device server; `prepare` may set faults; then starts the emulator.
    pub(super) fn start(
        parts: &Parts,
        logs: &Path,
        prepare: impl FnOnce(&mut Server) -> Result<()>,
    ) -> Result<Self> {
        let sockets = SocketDir::new()?;
        let mut server = None;
        if parts.functions > 0 {
            let log = logs.join("server.log");
            let folder = sockets.path();
            let started = Server::start(folder, parts.functions, false, &[], &parts.server, &log)?;
            prepare(server.insert(started))?;
        }
        let serial = logs.join("serial.log");
        fs::write(&serial, "")?;
        let log = fs::File::create(logs.join("qemu.log"))?;
        let mut command = Qemu::get()?.command();
        command
            .args(arguments(parts, &serial))
            .current_dir(sockets.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        fs::write(logs.join("qemu.command"), format!("{command:?}\n"))?;
        let emulator = Group::spawn(&mut command)?;
        Ok(Self {
            emulator,
            server,
            sockets,
            serial,
            seen: 0,
            line: None,
        })
    }

    pub(super) fn server(&mut self) -> Result<&mut Server> {
        let server = self.server.as_mut();
        server.context("this machine has no PTDMA function")
    }

    /// What the serial line has, without the escape sequences of a terminal.
    pub(super) fn text(&self) -> Result<String> {
        Ok(plain(&String::from_utf8_lossy(&fs::read(&self.serial)?)))
    }

    /// Sends a line to the program.
    pub(super) fn send(&mut self, text: &str) -> Result<()> {
        let stream = match self.line.take() {
            Some(stream) => stream,
            None => {
                let stream = UnixStream::connect(self.sockets.path().join(LINE))
                    .context("the machine's serial line")?;
                // What the program says is read from the log; here it only must not pile up.
                let mut heard = stream.try_clone()?;
                std::thread::spawn(move || std::io::copy(&mut heard, &mut std::io::sink()));
                stream
            }
        };
        writeln!(self.line.insert(stream), "{text}")?;
        Ok(())
    }

    /// Waits for the next whole line that begins with `mark`, behind those that were read.
    pub(super) fn next_line(&mut self, mark: &str, limit: Duration) -> Result<String> {
        let (mut start, mut end) = (0, 0);
        let seen = self.seen;
        self.wait_until(limit, mark, |text| {
            let found = find_line(text.get(seen..).unwrap_or_default(), mark);
            (start, end) = found.map_or((0, 0), |(start, end)| (seen + start, seen + end));
            found.is_some()
        })
        .map(|text| {
            self.seen = end;
            text[start..end].trim_end().to_owned()
        })
    }

    /// Waits for the emulator's end and returns its exit status.
    pub(super) fn wait_for_end(&mut self, limit: Duration) -> Result<i32> {
        let status = self.emulator.wait(limit)?;
        let status = status.with_context(|| format!("it goes on after {} s", limit.as_secs()))?;
        status.code().with_context(|| describe(status))
    }

    /// Waits for a whole line that begins with `mark`, and returns all text up to its end.
    pub(super) fn wait_for(&mut self, mark: &str, limit: Duration) -> Result<String> {
        let mut end = 0;
        self.wait_until(limit, mark, |text| {
            let found = find_line(text, mark);
            end = found.map_or(0, |(_, end)| end);
            found.is_some()
        })
        .map(|text| text[..end].to_owned())
    }

    /// Waits until the serial line's text is as wanted.
    fn wait_until(
        &mut self,
        limit: Duration,
        mark: &str,
        mut is_there: impl FnMut(&str) -> bool,
    ) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            // Asked before the look, which has all last words then.
            let ended = self.emulator.ended()?;
            let text = self.text()?;
            if is_there(&text) {
                return Ok(text);
            }
            if let Some(status) = ended {
                anyhow::bail!("the emulator: {}\n{}", describe(status), last_lines(&text));
            }
            ensure!(
                Instant::now() < deadline,
                "no line begins with `{mark}` within {} s\n{}",
                limit.as_secs(),
                last_lines(&text)
            );
            std::thread::sleep(LOOK);
        }
    }
}

/// Runs cargo for a program that is not for this machine.
pub(super) fn cargo(name: &str, words: &[&str]) -> Result<()> {
    /// A cold build of all crates that such a program has, beside other builds.
    const LIMIT: Duration = Duration::from_secs(600);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let log = crate::paths::cache_dir("guest")?.join(format!("{name}-cargo.log"));
    let _ = fs::remove_file(&log);
    let mut command = crate::groups::bound_command(cargo);
    command.args(words).current_dir(crate::paths::workspace());
    let bar = step::spinner(name);
    let result = step::Step::new(&format!("{name} (cargo)"), LIMIT, &log).run(&mut command);
    bar.finish_and_clear();
    result
}

/// The folder that cargo builds into, which this program is in.
pub(super) fn target() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().and_then(Path::parent);
    Ok(folder
        .context("this program is in no folder")?
        .to_path_buf())
}

fn arguments(parts: &Parts, serial: &Path) -> Vec<OsString> {
    let mut out: Vec<OsString> = Vec::new();
    let mut arg = |words: &[&str]| out.extend(words.iter().map(OsString::from));
    arg(&["-nodefaults", "-no-user-config", "-no-reboot"]);
    arg(&["-display", "none", "-name", "ptdma-bare"]);
    arg(&["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]);
    arg(&["-smp", &parts.processors.to_string()]);
    // The device server maps the memory from this descriptor.
    let memory = parts.memory_mib;
    arg(&["-m", &format!("{memory}M")]);
    arg(&[
        "-object",
        &format!("memory-backend-memfd,id=mem,size={memory}M,share=on"),
    ]);
    arg(&["-machine", "q35,memory-backend=mem"]);
    for (number, bus) in EXPANDERS.iter().enumerate() {
        arg(&[
            "-device",
            &format!("pxb-pcie,id=pxb{number},bus=pcie.0,bus_nr={bus}"),
        ]);
    }
    for index in 0..parts.functions {
        let bridge = index % EXPANDERS.len();
        // No I/O window: many of them would use up the port space.
        arg(&[
            "-device",
            &format!(
                "pcie-root-port,id=port{index},bus=pxb{bridge},chassis={0},slot={0},io-reserve=0",
                index + 1
            ),
        ]);
        let device = serde_json::json!({
            "driver": "vfio-user-pci",
            "id": format!("ptdma{index}"),
            "bus": format!("port{index}"),
            "socket": {"type": "unix", "path": format!("ptdma{index}.sock")},
        });
        arg(&["-device", &device.to_string()]);
    }
    out.push("-chardev".into());
    let line = format!("socket,id=serial,path={LINE},server=on,wait=off,logfile=");
    let mut chardev = OsString::from(line);
    chardev.push(serial);
    out.push(chardev);
    out.extend(["-serial".into(), "chardev:serial".into()]);
    out.extend(parts.program.iter().cloned());
    out
}

/// Where the first whole line that begins with `mark` begins and ends.
fn find_line(text: &str, mark: &str) -> Option<(usize, usize)> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let end = start + line.len();
        if line.starts_with(mark) && line.ends_with('\n') {
            return Some((start, end));
        }
        start = end;
    }
    None
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// Text without escape sequences and carriage returns.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\u{1b}' => {
                // ESC [ parameters, then a letter; ESC and one letter otherwise.
                if letters.next() == Some('[') {
                    letters.by_ref().find(char::is_ascii_alphabetic);
                }
            }
            '\r' => {}
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminals_text_becomes_plain() {
        assert_eq!(plain("\u{1b}[2J\u{1b}[01;01Ha\r\n\u{1b}=b"), "a\nb");
    }

    #[test]
    fn a_line_counts_when_it_is_whole() {
        assert_eq!(find_line("x\nPTDMA O", "PTDMA "), None);
        assert_eq!(find_line("x\nPTDMA OK\ny", "PTDMA "), Some((2, 11)));
        assert_eq!(find_line("x PTDMA OK\n", "PTDMA "), None);
    }
}
