//! The host's end of the conversation with the guest's agent.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ptdma_guest::protocol::{Reply, Request};

/// A reply that comes this much after the command's own limit means that the guest hangs.
const REPLY_GRACE: Duration = Duration::from_secs(30);
/// How often a wait looks at its other conditions.
const POLL: Duration = Duration::from_millis(20);

type Pending = Arc<Mutex<HashMap<u64, Sender<Reply>>>>;

/// A connected agent.
#[derive(Debug)]
pub(super) struct Agent {
    stream: UnixStream,
    pending: Pending,
    next: u64,
}

/// A command that runs in the guest.
#[derive(Debug)]
pub(crate) struct Job {
    pub(super) id: u64,
    pub(super) command: String,
    limit: Duration,
    reply: Receiver<Reply>,
}

impl Agent {
    /// Waits for the agent's first words.
    ///
    /// Calls `alive` while it waits; an error of `alive` ends the wait.
    pub(super) fn accept(
        listener: &UnixListener,
        limit: Duration,
        mut alive: impl FnMut() -> Result<()>,
    ) -> Result<(Self, String, Duration)> {
        let deadline = Instant::now() + limit;
        listener.set_nonblocking(true)?;
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            alive()?;
            if Instant::now() > deadline {
                bail!("the emulator did not connect within {} s", limit.as_secs());
            }
            thread::sleep(POLL);
        };
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(REPLY_GRACE))?;

        let pending: Pending = Arc::default();
        let (hello, greeted) = mpsc::channel();
        let reading = stream.try_clone()?;
        let table = Arc::clone(&pending);
        thread::spawn(move || {
            for line in BufReader::new(reading).lines() {
                let Ok(line) = line else { break };
                match serde_json::from_str::<Reply>(&line) {
                    Ok(Reply::Hello { release, uptime_ms }) => {
                        let _ = hello.send((release, uptime_ms));
                    }
                    Ok(reply @ (Reply::Done { id, .. } | Reply::Refused { id, .. })) => {
                        if let Some(waiting) = locked(&table).remove(&id) {
                            let _ = waiting.send(reply);
                        }
                    }
                    // Noise on the port: whoever waits runs into a time limit.
                    Err(_) => {}
                }
            }
            // Ends every wait for a reply: none will come.
            locked(&table).clear();
        });

        loop {
            match greeted.recv_timeout(POLL) {
                Ok((release, uptime_ms)) => {
                    let agent = Self {
                        stream,
                        pending,
                        next: 1,
                    };
                    return Ok((agent, release, Duration::from_millis(uptime_ms)));
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the agent has hung up"),
                Err(RecvTimeoutError::Timeout) => {}
            }
            alive()?;
            if Instant::now() > deadline {
                bail!("no user space within {} s", limit.as_secs());
            }
        }
    }

    /// Starts a command.
    pub(super) fn start(&mut self, command: &str, limit: Duration) -> Result<Job> {
        let id = self.next;
        self.next += 1;
        let (sender, reply) = mpsc::channel();
        locked(&self.pending).insert(id, sender);
        self.send(&Request::Run {
            id,
            command: command.to_owned(),
            timeout_ms: limit.as_millis().try_into().unwrap_or(u64::MAX),
        })?;
        Ok(Job {
            id,
            command: command.to_owned(),
            limit,
            reply,
        })
    }

    /// Sends a request that has no reply of its own.
    pub(super) fn send(&mut self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream
            .write_all(&line)
            .context("the guest's agent does not listen")
    }
}

impl Job {
    /// Waits for the end of the command, or of the machine.
    pub(super) fn wait(&self) -> Result<Reply> {
        match self.reply.recv_timeout(self.limit + REPLY_GRACE) {
            Ok(reply) => Ok(reply),
            Err(RecvTimeoutError::Timeout) => bail!(
                "the guest hangs: no answer {} s after `{}` was started",
                (self.limit + REPLY_GRACE).as_secs(),
                self.command
            ),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the guest is gone; `{}` was running", self.command)
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
