//! One bounded step of a build: a command with a log, a time limit and a progress bar.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::groups::{Group, describe};

/// All bars: steps that run side by side have a line each.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// How many lines of a failed step's log are shown beside its path.
const TAIL_LINES: usize = 15;

/// A command to run to its end.
pub(crate) struct Step<'a> {
    name: &'a str,
    limit: Duration,
    log: PathBuf,
}

impl<'a> Step<'a> {
    /// A step that is called `name` in messages, ends within `limit` and appends what
    /// it prints to `log`.
    pub(crate) fn new(name: &'a str, limit: Duration, log: &Path) -> Self {
        Self {
            name,
            limit,
            log: log.to_path_buf(),
        }
    }

    /// Runs the command.
    ///
    /// # Errors
    /// Not started, time over, or a bad exit status; the message has the end of the
    /// log and its path.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        self.run_lines(command, |_| {})
    }

    /// Runs the command, handing over each line it prints.
    pub(crate) fn run_lines(
        &self,
        command: &mut Command,
        mut each: impl FnMut(&str),
    ) -> Result<()> {
        if let Some(folder) = self.log.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        writeln!(log, "# {}: {command:?}", self.name)?;
        let (reader, writer) = std::io::pipe()?;
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let mut group = Group::spawn(command)?;
        // The command holds the write ends of the pipe; without this the reader
        // would never see its end.
        command.stdout(Stdio::null()).stderr(Stdio::null());

        let (lines, received) = mpsc::channel();
        let reading = thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n') {
                let Ok(line) = line else { break };
                if lines
                    .send(String::from_utf8_lossy(&line).into_owned())
                    .is_err()
                {
                    break;
                }
            }
        });
        let deadline = Instant::now() + self.limit;
        loop {
            match received.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    writeln!(log, "{line}")?;
                    each(&line);
                }
                Err(RecvTimeoutError::Timeout) => {
                    drop(group);
                    bail!(
                        "{}: not done after {} s\n{}",
                        self.name,
                        self.limit.as_secs(),
                        self.tail()
                    );
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let _ = reading.join();
        let left = deadline.saturating_duration_since(Instant::now());
        match group.wait(left)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("{}: {}\n{}", self.name, describe(status), self.tail()),
            None => bail!("{}: closed its output but goes on", self.name),
        }
    }

    fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(TAIL_LINES);
        let mut shown: String = lines[from..]
            .iter()
            .map(|line| format!("    {line}\n"))
            .collect();
        shown.push_str(&format!("  the whole log: {}", self.log.display()));
        shown
    }
}

/// Runs a short command and returns what it prints.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {shown}"))?;
    if !out.status.success() {
        bail!(
            "{shown}: {}: {}",
            describe(out.status),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    String::from_utf8(out.stdout).with_context(|| format!("{shown} did not print text"))
}

/// A bar over a known number of things; `indicatif` draws nothing when standard
/// error is not a terminal, so a plain line says what goes on there.
pub(crate) fn bar(what: &str, length: u64) -> ProgressBar {
    let bar = BARS.add(ProgressBar::new(length));
    // The template is a constant: should it not parse, the default style is as good.
    if let Ok(style) =
        ProgressStyle::with_template("{msg:<34} [{bar:28}] {percent:>3}% {elapsed:>4} (eta {eta})")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    start(&bar, what);
    bar
}

/// A spinner for work of unknown length.
pub(crate) fn spinner(what: &str) -> ProgressBar {
    let bar = BARS.add(ProgressBar::new_spinner());
    start(&bar, what);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn start(bar: &ProgressBar, what: &str) {
    if bar.is_hidden() {
        eprintln!("{what} ...");
    }
    bar.set_message(what.to_owned());
}

/// Holds a lock of the cache; the kernel drops it with the process.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        let waiting = spinner("waiting for another `cargo vm`");
        file.lock()?;
        waiting.finish_and_clear();
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(text: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        command
    }

    #[test]
    fn lines_are_logged_and_handed_over() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("a folder/log");
        let mut seen = Vec::new();
        Step::new("echo", Duration::from_secs(10), &log).run_lines(
            &mut shell("echo one; echo two >&2"),
            |line| {
                seen.push(line.to_owned());
            },
        )?;
        assert_eq!(seen, ["one", "two"]);
        assert!(fs::read_to_string(log)?.contains("two"));
        Ok(())
    }

    #[test]
    fn failures_show_the_log_and_hangs_end() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let error = Step::new("bad", Duration::from_secs(10), &log)
            .run(&mut shell("echo because; exit 3"))
            .expect_err("exit status 3");
        let text = error.to_string();
        assert!(
            text.contains("exit status 3") && text.contains("because"),
            "{text}"
        );

        let began = Instant::now();
        let error = Step::new("slow", Duration::from_millis(200), &log)
            .run(&mut shell("sleep 30"))
            .expect_err("time is over");
        assert!(error.to_string().contains("not done"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(10));
        Ok(())
    }
}
