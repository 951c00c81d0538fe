//! Process groups that must not outlive the harness.
//!
//! Every long-lived child leads a group of its own and is listed here until it has
//! been collected. Ctrl-C kills what is listed; a panic unwinds through [`Group`]'s
//! drop; and should the harness itself be killed, the kernel kills the children,
//! because they are started through `setpriv --pdeathsig`.

use std::ffi::OsStr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

static LIVE: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Exit status after Ctrl-C (or SIGTERM, SIGHUP), as shells have it (128 + SIGINT).
const INTERRUPTED_CODE: i32 = 130;

/// How often a bounded wait looks: short beside any step, no load.
const POLL: Duration = Duration::from_millis(10);

/// Kills all groups and exits when the user interrupts or terminates the harness.
pub(crate) fn install_interrupt_handler() -> Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            return;
        }
        kill_all();
        crate::run_dir::remove_current();
        eprintln!("interrupted: everything that was started has been stopped");
        std::process::exit(INTERRUPTED_CODE);
    })
    .context("cannot handle Ctrl-C")
}

/// Kills every listed group.
pub(crate) fn kill_all() {
    let live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    for &group in live.iter() {
        // A group that has just ended is what is wanted.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// A command that the kernel kills when the thread that started it ends.
pub(crate) fn bound_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A child that leads a process group; dropping it kills and collects the group.
#[derive(Debug)]
pub(crate) struct Group {
    child: Child,
    group: Pid,
    status: Option<ExitStatus>,
}

impl Group {
    /// Starts the command as the leader of a new group.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let program = format!("{command:?}");
        let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let group = Pid::from_child(&child);
        live.push(group);
        Ok(Self {
            child,
            group,
            status: None,
        })
    }

    /// The exit status, if the leader has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// Waits for the leader's end for at most `limit`; `None` when it goes on.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(POLL);
        }
    }

    /// Kills the group as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        let _ = kill_process_group(self.group, Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Also when the leader has ended: others of the group may go on.
        self.kill();
        if self.status.is_none() {
            let _ = self.child.wait();
        }
        let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|&group| group != self.group);
    }
}

/// "exit status 3", "killed by signal 9".
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_bounded_and_a_drop_kills_the_whole_group() -> Result<()> {
        let mut command = bound_command("sh");
        command.args(["-c", "sleep 60 & sleep 60"]);
        let mut group = Group::spawn(&mut command)?;
        let leader = group.group;
        assert!(group.wait(Duration::from_millis(50))?.is_none());
        drop(group);
        assert!(!LIVE.lock().expect("not poisoned").contains(&leader));
        // The orphan is collected by init; until then it is a dead member.
        let deadline = Instant::now() + Duration::from_secs(5);
        while rustix::process::test_kill_process_group(leader).is_ok() {
            assert!(Instant::now() < deadline, "the group is still there");
            thread::sleep(POLL);
        }
        Ok(())
    }
}
