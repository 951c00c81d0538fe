//! Runs the host's commands.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ptdma_guest::PORT_NAME;
use ptdma_guest::protocol::{OUTPUT_LIMIT_BYTES, Reply, Request, TIMED_OUT_CODE};
use rustix::process::{Pid, Signal, kill_process_group};

/// How long to look for the serial port: its driver may probe after user space starts.
const PORT_WAIT: Duration = Duration::from_secs(20);
/// Between two looks at the port.
const PORT_POLL: Duration = Duration::from_millis(20);
/// How long a killed process group gets before the agent answers without it: a
/// process stuck in the kernel does not die, and the host must hear of that.
const KILL_GRACE: Duration = Duration::from_secs(3);
/// How long output is collected after the shell has ended. Whoever still holds the
/// pipe is a background process, which is the test's business.
const DRAIN_GRACE: Duration = Duration::from_millis(200);

type Running = Arc<Mutex<HashMap<u64, Pid>>>;

/// Serves the port until it closes.
pub(crate) fn run() -> io::Result<()> {
    let port = open_port()?;
    let writer = Arc::new(Mutex::new(port.try_clone()?));
    let running: Running = Arc::default();
    send(
        &writer,
        &Reply::Hello {
            release: read_trimmed("/proc/sys/kernel/osrelease"),
            uptime_ms: uptime_ms(),
        },
    )?;
    let mut reader = BufReader::new(port);
    let mut line = String::new();
    while next_line(&mut reader, &mut line, &running)? {
        match serde_json::from_str::<Request>(&line) {
            Ok(Request::Run {
                id,
                command,
                timeout_ms,
            }) => {
                let writer = Arc::clone(&writer);
                let running = Arc::clone(&running);
                thread::spawn(move || {
                    let limit = Duration::from_millis(timeout_ms);
                    let reply = execute(id, &command, limit, &running).unwrap_or_else(|error| {
                        Reply::Refused {
                            id,
                            reason: error.to_string(),
                        }
                    });
                    if let Err(error) = send(&writer, &reply) {
                        eprintln!("ptdma-guest-agent: reply {id} is lost: {error}");
                    }
                });
            }
            Ok(Request::Kill { id }) => {
                if let Some(&group) = locked(&running).get(&id) {
                    // It may have ended just now, which is what was asked for.
                    let _ = kill_process_group(group, Signal::KILL);
                }
            }
            Ok(Request::PowerOff) => {
                rustix::fs::sync();
                return Ok(());
            }
            Err(error) => send(
                &writer,
                &Reply::Refused {
                    id: 0,
                    reason: error.to_string(),
                },
            )?,
        }
    }
    Ok(())
}

/// Reads a request into `line`; `false` when the port is closed and no command runs any more.
///
/// Suspending the machine closes the port, and a command may be there to tell the rest.
fn next_line(reader: &mut impl BufRead, line: &mut String, running: &Running) -> io::Result<bool> {
    line.clear();
    while reader.read_line(line)? == 0 {
        if locked(running).is_empty() {
            return Ok(false);
        }
        thread::sleep(PORT_POLL);
    }
    Ok(true)
}

/// Runs one command to its end, its time limit or its kill.
fn execute(id: u64, command: &str, limit: Duration, running: &Running) -> io::Result<Reply> {
    let (mut reader, writer) = io::pipe()?;
    let mut child = Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin")
        .env("HOME", "/root")
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .spawn()?;
    let group = Pid::from_child(&child);
    locked(running).insert(id, group);

    let output: Arc<Mutex<(Vec<u8>, bool)>> = Arc::default();
    let (drained, all_read) = mpsc::channel::<()>();
    let collected = Arc::clone(&output);
    thread::spawn(move || {
        let mut buffer = [0_u8; 16 << 10];
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            let mut kept = locked(&collected);
            let room = OUTPUT_LIMIT_BYTES.saturating_sub(kept.0.len());
            kept.0.extend_from_slice(&buffer[..count.min(room)]);
            kept.1 |= count > room;
        }
        let _ = drained.send(());
    });

    let (ended, exit) = mpsc::channel();
    thread::spawn(move || {
        let _ = ended.send(child.wait());
    });
    let (code, timed_out) = match exit.recv_timeout(limit) {
        Ok(status) => (exit_code(status?), false),
        Err(RecvTimeoutError::Timeout) => {
            let _ = kill_process_group(group, Signal::KILL);
            let _ = exit.recv_timeout(KILL_GRACE);
            (TIMED_OUT_CODE, true)
        }
        Err(RecvTimeoutError::Disconnected) => {
            return Err(io::Error::other("the waiting thread died"));
        }
    };
    locked(running).remove(&id);
    let _ = all_read.recv_timeout(DRAIN_GRACE);
    let kept = locked(&output);
    Ok(Reply::Done {
        id,
        code,
        output: String::from_utf8_lossy(&kept.0).into_owned(),
        truncated: kept.1,
        timed_out,
    })
}

fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

fn send(writer: &Mutex<File>, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    locked(writer).write_all(&line)
}

fn open_port() -> io::Result<File> {
    let deadline = Instant::now() + PORT_WAIT;
    loop {
        if let Ok(ports) = fs::read_dir("/sys/class/virtio-ports") {
            for entry in ports.flatten() {
                if read_trimmed(entry.path().join("name")) == PORT_NAME {
                    let device = format!("/dev/{}", entry.file_name().to_string_lossy());
                    return OpenOptions::new().read(true).write(true).open(device);
                }
            }
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!(
                "no virtio serial port is named {PORT_NAME}"
            )));
        }
        thread::sleep(PORT_POLL);
    }
}

fn read_trimmed(path: impl AsRef<std::path::Path>) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

fn uptime_ms() -> u64 {
    read_trimmed("/proc/uptime")
        .split(' ')
        .next()
        .and_then(|seconds| seconds.parse::<f64>().ok())
        .map_or(0, |seconds| (seconds * 1000.0) as u64)
}

/// A panicking holder leaves data that is still whole (a map, a buffer): go on.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
