//! The program itself: command line, control socket, ends.
#![forbid(unsafe_code)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use common::{Guest, LIMIT, RAM_AT, until};
use serde_json::{Value, json};
use tempfile::TempDir;

const SRC: u64 = RAM_AT + 0x1_0000;
const DST: u64 = RAM_AT + 0x10_0000;

/// A server process; killed when dropped.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    dir: TempDir,
}

impl Process {
    fn start(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let process = Self::start_in(dir, arguments);
        assert!(process.1["event"] == "ready", "{}", process.1);
        process.0
    }

    fn start_in(dir: TempDir, arguments: &[&str]) -> (Self, Value) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ptdma-server"))
            .arg("--socket-dir")
            .arg(dir.path())
            .arg("--control")
            .arg(dir.path().join("control.sock"))
            .args(arguments)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut process = Self {
            child,
            stdin,
            stdout,
            dir,
        };
        let ready = process.line();
        (process, ready)
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or(Value::Null)
    }

    fn socket(&self, n: usize) -> PathBuf {
        self.dir.path().join(format!("ptdma{n}.sock"))
    }

    fn control(&self) -> Control {
        Control::connect(&self.dir.path().join("control.sock"))
    }

    fn exit_code(&mut self) -> Option<i32> {
        let mut status = None;
        until("end of the server", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already in most tests.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

struct Control {
    stream: BufReader<UnixStream>,
}

impl Control {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    fn raw(&mut self, request: &str) -> Value {
        writeln!(self.stream.get_mut(), "{request}").unwrap();
        self.reply()
    }

    fn reply(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, request: &Value) -> Value {
        let reply = self.raw(&request.to_string());
        assert!(reply.get("error").is_none(), "{request}: {reply}");
        reply["ok"].clone()
    }
}

#[test]
fn counters_and_faults_while_it_runs() {
    let stats = tempfile::NamedTempFile::new().unwrap();
    let mut process = Process::start(&[
        "--devices",
        "3",
        "--first-index",
        "5",
        "--stats",
        stats.path().to_str().unwrap(),
    ]);
    let mut control = process.control();
    let mut guest = Guest::new(&process.socket(6));
    assert_eq!(guest.copy(SRC, DST, 4096), 0);
    let counters = control.ask(&json!({"cmd": "counters"}));
    assert_eq!(counters["sum"]["descriptors"], 1);
    assert_eq!(counters["devices"][1]["index"], 6);
    assert_eq!(counters["devices"][1]["connected"], true);
    assert_eq!(counters["devices"][1]["maps"], 1);
    assert_eq!(counters["devices"][1]["counters"]["bytes"], 4096);
    assert_eq!(counters["devices"][0]["connected"], false);

    let error = json!({"trigger": {"at": 1}, "kind": {"error": {"code": 19}}});
    let placed = control.ask(&json!({"cmd": "inject", "device": 6, "fault": error}));
    assert_eq!(placed["faults"], json!([{"device": 6, "id": 0}]));
    let listed = control.ask(&json!({"cmd": "faults"}));
    assert_eq!(
        listed["faults"][0]["fault"]["kind"],
        json!({"error": {"code": 19}})
    );
    assert_eq!(guest.copy(SRC, DST, 64), 0);
    assert_eq!(guest.copy(SRC, DST, 64), 19);
    assert_eq!(guest.copy(SRC, DST, 64), 0);

    let always = json!({"trigger": "always", "kind": {"error": {"code": 43}}});
    let placed = control.ask(&json!({"cmd": "inject", "fault": always}));
    assert_eq!(placed["faults"].as_array().unwrap().len(), 3);
    assert_eq!(guest.copy(SRC, DST, 64), 43);
    control.ask(&json!({"cmd": "clear", "device": 6, "id": 1}));
    assert_eq!(guest.copy(SRC, DST, 64), 0);
    assert_eq!(
        control.ask(&json!({"cmd": "faults"}))["faults"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    control.ask(&json!({"cmd": "clear"}));
    assert_eq!(control.ask(&json!({"cmd": "faults"}))["faults"], json!([]));

    let before = control.ask(&json!({"cmd": "reset_counters"}));
    assert_eq!(before["sum"]["descriptors"], 4);
    assert_eq!(before["sum"]["errors"], 2);
    let after = process.control().ask(&json!({"cmd": "counters"}));
    assert_eq!(after["sum"]["descriptors"], 0);
    assert_eq!(guest.copy(SRC, DST, 64), 0);

    let last = control.ask(&json!({"cmd": "quit"}));
    assert_eq!(last["sum"]["descriptors"], 1);
    let printed = process.line();
    assert_eq!(printed["event"], "final");
    assert_eq!(printed["sum"], last["sum"]);
    assert_eq!(process.exit_code(), Some(0));
    let written: Value =
        serde_json::from_str(&std::fs::read_to_string(stats.path()).unwrap()).unwrap();
    assert_eq!(written, printed);
    let left: Vec<_> = std::fs::read_dir(process.dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn bad_requests_get_a_reason_and_the_connection_goes_on() {
    let process = Process::start(&[]);
    let mut control = process.control();
    for bad in [
        "nonsense",
        "[]",
        r#"{"cmd":"fly"}"#,
        r#"{"cmd":"inject"}"#,
        r#"{"cmd":"inject","device":9,"fault":{"trigger":"now","kind":"ignore_halt"}}"#,
        r#"{"cmd":"inject","fault":{"trigger":"now","kind":{"error":{"code":300}}}}"#,
        r#"{"cmd":"clear","device":1}"#,
    ] {
        let reply = control.raw(bad);
        assert!(reply["error"].is_string(), "{bad}: {reply}");
    }
    control.ask(&json!({"cmd": "counters"}));
}

#[test]
fn noise_on_the_control_socket_is_refused_and_an_endless_line_ends_it() {
    let process = Process::start(&[]);
    let mut control = process.control();
    for noise in [&b"\xff\xfe{\"cmd\":\"quit\"}\n"[..], b"\0\0\0\n", b"[1,2\n"] {
        control.stream.get_mut().write_all(noise).unwrap();
        assert!(control.reply()["error"].is_string(), "{noise:?}");
    }
    assert!(control.ask(&json!({"cmd": "counters"})).is_object());

    // Its end looks like a request, and must not be taken for one.
    let mut endless = vec![b' '; 64 << 10];
    endless.extend(b"{\"cmd\":\"quit\"}\n");
    // The server may hang up before it has read all.
    let _written = control.stream.get_mut().write_all(&endless);
    assert!(control.reply()["error"].is_string());
    let mut rest = Vec::new();
    let _reset = control.stream.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{rest:?}");
    let mut again = process.control();
    assert!(again.ask(&json!({"cmd": "counters"})).is_object());
}

#[test]
fn faults_and_engine_from_the_command_line() {
    let process = Process::start(&[
        "--machine",
        "lenient,code=kept",
        "--fault",
        r#"{"trigger":{"at":0},"kind":{"error":{"code":9}}}"#,
    ]);
    let mut guest = Guest::new(&process.socket(0));
    assert_eq!(guest.copy(SRC, DST, 64), 9);
    // Lenient: RUN stays set when the ring is drained. Sticky: the old code is still there.
    guest.start(SRC, DST, 64);
    let head = ptdma::regs::Register::Head;
    until("copy", || {
        guest.read(head) == guest.read(ptdma::regs::Register::Tail)
    });
    assert_eq!(guest.read(ptdma::regs::Register::Control) & 3, 1);
    assert_eq!(guest.read(ptdma::regs::Register::Status), 9);
}

#[test]
fn machines_from_the_command_line_and_for_one_function() {
    let process = Process::start(&["--devices", "2", "--machine", "sibling,halt=never"]);
    let mut control = process.control();
    let machine = |control: &mut Control, index: usize| {
        control.ask(&json!({"cmd": "counters"}))["devices"][index]["machine"].clone()
    };
    assert_eq!(machine(&mut control, 0), "sibling,halt=never");
    let mut guest = Guest::new(&process.socket(1));
    let capabilities = |guest: &mut Guest| {
        let mut word = [0; 4];
        guest
            .client
            .region_read(common::CONFIG, 0x44, &mut word)
            .unwrap();
        u32::from_le_bytes(word)
    };
    let control_bits = |guest: &mut Guest| guest.read(ptdma::regs::Register::Control) & 3;
    assert_eq!(capabilities(&mut guest) >> 28 & 1, 1);
    assert_eq!(control_bits(&mut guest), 0);
    control.ask(&json!({"cmd": "machine", "device": 1, "machine": "today,reset=absent"}));
    assert_eq!(machine(&mut control, 0), "sibling,halt=never");
    assert_eq!(machine(&mut control, 1), "today,reset=absent");
    assert_eq!(capabilities(&mut guest) >> 28 & 1, 0);
    assert_eq!(control_bits(&mut guest), 2);
    assert_eq!(guest.copy(SRC, DST, 64), 0);
    // The bit that asks for a reset does nothing.
    guest
        .client
        .region_write(common::CONFIG, 0x49, &[0x80])
        .unwrap();
    assert_ne!(guest.read(ptdma::regs::Register::Head), 0);
    // For all functions.
    control.ask(&json!({"cmd": "machine", "machine": "stopper"}));
    assert_eq!(machine(&mut control, 0), "stopper");
    assert_eq!(machine(&mut control, 1), "stopper");
    for bad in [
        json!({"cmd": "machine", "machine": "nobody"}),
        json!({"cmd": "machine", "machine": "today", "device": 7}),
        json!({"cmd": "machine"}),
    ] {
        assert!(control.raw(&bad.to_string())["error"].is_string(), "{bad}");
    }
    let known = control.ask(&json!({"cmd": "machines"}));
    let names = known["machines"].as_array().unwrap();
    assert!(names.iter().any(|m| m["name"] == "linux_only"));
    assert!(known["questions"].as_array().unwrap().len() >= 15);
}

#[test]
fn every_way_to_end_is_orderly() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let mut process = Process::start(&[]);
        let _guest = Guest::new(&process.socket(0));
        process.signal(signal);
        assert_eq!(process.line()["event"], "final");
        assert_eq!(process.exit_code(), Some(0));
    }
    let mut process = Process::start(&["--exit-with-stdin"]);
    process.stdin = None;
    assert_eq!(process.line()["event"], "final");
    assert_eq!(process.exit_code(), Some(0));
}

#[test]
fn a_stalled_engine_does_not_keep_the_server_from_ending() {
    let mut process = Process::start(&[
        "--setup-ns",
        "3600000000000",
        "--fault",
        r#"{"trigger":{"at":0},"kind":{"stall":{"for":"ever"}}}"#,
    ]);
    let mut guest = Guest::new(&process.socket(0));
    guest.start(SRC, DST, 64);
    let mut control = process.control();
    control.ask(&json!({"cmd": "clear"}));
    control.ask(&json!({"cmd": "quit"}));
    assert_eq!(process.exit_code(), Some(0));
}

#[test]
fn a_killed_server_can_be_replaced_and_a_live_one_cannot() {
    let mut first = Process::start(&[]);
    first.signal(rustix::process::Signal::KILL);
    assert_eq!(first.exit_code(), None);
    assert!(first.socket(0).exists());
    let dir = std::mem::replace(&mut first.dir, tempfile::tempdir().unwrap());
    let (second, ready) = Process::start_in(dir, &[]);
    assert_eq!(ready["event"], "ready");
    let output = Command::new(env!("CARGO_BIN_EXE_ptdma-server"))
        .arg("--socket-dir")
        .arg(second.dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(why.contains("in use"), "{why}");
    let mut guest = Guest::new(&second.socket(0));
    assert_eq!(guest.copy(SRC, DST, 64), 0);
}

#[test]
fn what_is_no_socket_of_its_own_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let notes = dir.path().join("notes.txt");
    std::fs::write(&notes, "precious").unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&notes, &link).unwrap();
    let in_the_way = dir.path().join("sockets/ptdma0.sock");
    for (control, devices) in [(&notes, "1"), (&link, "1"), (&notes, "2")] {
        let output = Command::new(env!("CARGO_BIN_EXE_ptdma-server"))
            .arg("--socket-dir")
            .arg(dir.path().join("sockets"))
            .args(["--devices", devices])
            .arg("--control")
            .arg(control)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(why.contains("exists and is no socket"), "{why}");
        assert_eq!(std::fs::read(&notes).unwrap(), b"precious");
        assert!(link.is_symlink());
        // What was made before the error is gone again.
        assert!(!in_the_way.exists());
    }
    std::fs::write(&in_the_way, "precious").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ptdma-server"))
        .arg("--socket-dir")
        .arg(dir.path().join("sockets"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(std::fs::read(&in_the_way).unwrap(), b"precious");

    // At the end, too: another file may have taken the place.
    let mut process = Process::start(&[]);
    let socket = process.socket(0);
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "precious").unwrap();
    process.control().ask(&json!({"cmd": "quit"}));
    assert_eq!(process.exit_code(), Some(0));
    assert_eq!(std::fs::read(&socket).unwrap(), b"precious");
}

#[test]
fn nobody_to_write_to_is_an_error_and_no_panic() {
    let full = || {
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let taken = dir.path().join("taken");
    std::fs::write(&taken, "").unwrap();
    let server = |control: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ptdma-server"));
        command
            .arg("--socket-dir")
            .arg(dir.path())
            .arg("--control")
            .arg(control)
            .stdin(Stdio::null());
        command
    };
    // The line that says that it is ready cannot be written.
    let status = server(&dir.path().join("c"))
        .stdout(full())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
    // Neither can the error.
    let status = server(&taken).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn bad_arguments_are_exit_code_2() {
    for arguments in [
        &["--devices", "2"][..],
        &["--socket-dir", "x", "--devices", "0"],
        &["--socket-dir", "x", "--devices", "17"],
        &["--socket-dir", "x", "--fault", "{}"],
        &["--socket-dir", "x", "--machine", "nobody"],
        &["--socket-dir", "x", "--colour"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_ptdma-server"))
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}
