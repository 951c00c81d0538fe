//! The control socket: one JSON object a line in, one a line out. `README.md` has the protocol.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use anyhow::Context;
use ptdma_model::{Fault, FaultId, Forks};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::function::Function;
use crate::server::{self, Server, SocketFile};

/// Longest request line: far more than a fault needs.
const MAX_LINE_LEN_BYTES: u64 = 64 << 10;

/// Why the server is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quit {
    /// Asked on the control socket.
    Command,
    /// A signal.
    Signal,
    /// Standard input closed.
    Stdin,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    Counters,
    ResetCounters,
    Inject {
        device: Option<usize>,
        fault: Fault,
    },
    Clear {
        device: Option<usize>,
        id: Option<FaultId>,
    },
    Faults,
    Machine {
        device: Option<usize>,
        machine: Forks,
    },
    Machines,
    Quit,
}

#[derive(Debug, Serialize)]
struct Placed {
    device: usize,
    id: FaultId,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<Fault>,
}

/// Listens on the control socket until the process ends.
#[derive(Debug)]
pub struct Control {
    /// Removes its file when dropped.
    _socket: SocketFile,
}

impl Control {
    /// Makes the socket and answers on it from a thread.
    ///
    /// # Errors
    ///
    /// If the socket is in use or cannot be made.
    pub fn start(path: &Path, server: Arc<Server>, quit: Sender<Quit>) -> anyhow::Result<Self> {
        let (listener, socket) = server::bind(path)?;
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                for stream in listener.incoming() {
                    let stream = match stream {
                        Ok(stream) => stream,
                        Err(e) => {
                            log::warn!("control: accept: {e}");
                            continue;
                        }
                    };
                    let (server, quit) = (Arc::clone(&server), quit.clone());
                    let spawned = std::thread::Builder::new()
                        .name("control-client".to_owned())
                        .spawn(move || {
                            if let Err(e) = serve(&stream, &server, &quit) {
                                log::warn!("control: {e}");
                            }
                        });
                    if let Err(e) = spawned {
                        log::warn!("control: {e}");
                    }
                }
            })
            .context("starting a thread")?;
        Ok(Self { _socket: socket })
    }
}

fn serve(stream: &UnixStream, server: &Server, quit: &Sender<Quit>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = Read::take(&mut reader, MAX_LINE_LEN_BYTES);
        if limited.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        // What follows an endless line is not the beginning of another: hang up.
        let too_long = limited.limit() == 0 && !line.ends_with(b"\n");
        if line.trim_ascii().is_empty() && !too_long {
            continue;
        }
        let (reply, ends) = if too_long {
            let why = format!("bad request: longer than {MAX_LINE_LEN_BYTES} bytes");
            (Err(why), false)
        } else {
            answer(server, &line)
        };
        let mut text = match reply {
            Ok(value) => json!({ "ok": value }),
            Err(why) => json!({ "error": why }),
        }
        .to_string();
        text.push('\n');
        writer.write_all(text.as_bytes())?;
        if too_long {
            return Ok(());
        }
        if ends {
            // Nobody listens if the server is ending already.
            let _ending = quit.send(Quit::Command);
        }
    }
}

/// The reply to one line, a request in JSON, and whether it asks for the end.
///
/// # Errors
///
/// In the reply, in words, if the line is no request or asks for what is not there.
pub fn answer(server: &Server, line: &[u8]) -> (Result<Value, String>, bool) {
    match serde_json::from_slice::<Request>(line) {
        Err(e) => (Err(format!("bad request: {e}")), false),
        Ok(Request::Quit) => {
            server.stop();
            (to_value(&server.report()), true)
        }
        Ok(request) => (perform(server, request), false),
    }
}

fn perform(server: &Server, request: Request) -> Result<Value, String> {
    match request {
        Request::Counters | Request::Quit => to_value(&server.report()),
        Request::ResetCounters => to_value(&server.take_report()),
        Request::Inject { device, fault } => {
            let placed: Vec<Placed> = chosen(server, device)?
                .map(|f| Placed {
                    device: f.index(),
                    id: f.model().inject(fault.clone()),
                    fault: None,
                })
                .collect();
            Ok(json!({ "faults": placed }))
        }
        Request::Clear { device, id } => {
            for function in chosen(server, device)? {
                match id {
                    Some(id) => function.model().remove_fault(id),
                    None => function.model().clear_faults(),
                }
            }
            Ok(json!({}))
        }
        Request::Machine { device, machine } => {
            for function in chosen(server, device)? {
                function.set_machine(machine);
            }
            Ok(json!({}))
        }
        Request::Machines => {
            let named: Vec<Value> = Forks::MACHINES
                .iter()
                .map(|m| json!({ "name": m.name, "about": m.about }))
                .collect();
            let questions: Vec<Value> = Forks::QUESTIONS
                .iter()
                .map(|q| json!({ "question": q.key, "answers": q.answers }))
                .collect();
            Ok(json!({ "machines": named, "questions": questions }))
        }
        Request::Faults => {
            let mut placed = Vec::new();
            for function in server.functions() {
                for (id, fault) in function.model().faults() {
                    placed.push(Placed {
                        device: function.index(),
                        id,
                        fault: Some(fault),
                    });
                }
            }
            Ok(json!({ "faults": placed }))
        }
    }
}

/// The functions that a request is about: one, or all.
fn chosen(
    server: &Server,
    device: Option<usize>,
) -> Result<impl Iterator<Item = &Arc<Function>>, String> {
    let fits = move |f: &&Arc<Function>| device.is_none_or(|index| f.index() == index);
    match device {
        Some(index) if !server.functions().iter().any(|f| f.index() == index) => {
            Err(format!("there is no device {index}"))
        }
        _ => Ok(server.functions().iter().filter(fits)),
    }
}

fn to_value(value: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|e| e.to_string())
}
