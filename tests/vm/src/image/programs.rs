//! The guest's programs, built static: the agent and Rust programs of the crate
//! `tests/guest`, and one C program for each file of `tests/guest/programs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::key::Key;
use crate::step::{self, Step};
use crate::{groups, paths};

const BUILD_LIMIT: Duration = Duration::from_secs(300);
const COMPILE_LIMIT: Duration = Duration::from_secs(60);
const PACKAGE: &str = "ptdma-guest";
/// The command of people who use the engines.
const COMMAND: &str = "ptdma-cli";
const AGENT: &str = "ptdma-guest-agent";
/// The host's own target: naming it keeps build scripts and static programs apart.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Part of the key of C programs.
const FLAGS: &[&str] = &[
    "-std=gnu11",
    "-O2",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-static",
    "-pthread",
];

/// What was built.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) agent: PathBuf,
    pub(super) others: Vec<PathBuf>,
}

/// Builds all of them, or finds that they are as they should be; once in a run.
pub(super) fn build() -> Result<Programs> {
    static BUILT: Mutex<Option<Programs>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = built.as_ref() {
        return Ok(known.clone());
    }
    let bar = step::spinner("guest programs");
    let programs = build_all();
    bar.finish_and_clear();
    Ok(built.insert(programs?).clone())
}

fn build_all() -> Result<Programs> {
    let mut others = rust()?;
    let agent = others
        .iter()
        .position(|path| path.file_name().is_some_and(|name| name == AGENT))
        .map(|index| others.swap_remove(index))
        .with_context(|| format!("cargo built no {AGENT}"))?;
    others.extend(c()?);
    Ok(Programs { agent, others })
}

/// Builds every binary of the guest crate, and the command.
fn rust() -> Result<Vec<PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let log = paths::cache_dir("guest")?.join("cargo.log");
    let _ = fs::remove_file(&log);
    let mut command = groups::bound_command(cargo);
    command
        .args(["build", "--release", "--quiet", "--locked"])
        .args(["--package", PACKAGE, "--package", COMMAND])
        .args(["--bins", "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics"])
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
        // Set by the cargo that runs this harness, and meant for its crate.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(paths::workspace());
    let mut built = Vec::new();
    Step::new("guest programs (cargo)", BUILD_LIMIT, &log).run_lines(&mut command, |line| {
        built.extend(executable(line));
    })?;
    Ok(built)
}

/// The program named by one of cargo's JSON messages.
fn executable(line: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(PathBuf::from(message.get("executable")?.as_str()?))
}

/// What the C programs include from outside of their folder.
const SHARED_HEADER: &str = "kshim/include/ptdma_move.h";

/// Compiles `tests/guest/programs/*.c`, each to a program of its name; headers beside
/// them are shared.
fn c() -> Result<Vec<PathBuf>> {
    let folder = paths::workspace().join("tests/guest/programs");
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut common = Key::new("guest-c");
    for flag in FLAGS {
        common.text(flag);
    }
    common.file(&paths::workspace().join(SHARED_HEADER))?;
    let mut sources = Vec::new();
    for path in crate::key::files_below(&folder)? {
        match path.extension().and_then(|end| end.to_str()) {
            Some("c") => sources.push(path),
            Some("h") => {
                common.file(&path)?;
            }
            _ => {}
        }
    }
    sources
        .iter()
        .map(|source| compile(source, common.clone()))
        .collect()
}

fn compile(source: &Path, mut key: Key) -> Result<PathBuf> {
    key.file(source)?;
    let stem = source.file_stem().context("a source without a name")?;
    let folder = paths::cache_dir("guest")?.join(key.finish());
    let program = folder.join(stem);
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(&folder)?;
    let staged = folder.join(format!("new-{}", std::process::id()));
    let mut command = Command::new("gcc");
    command
        .args(FLAGS)
        .arg("-o")
        .arg(&staged)
        .arg(source)
        .current_dir(&folder);
    let what = format!("compile {}", stem.to_string_lossy());
    Step::new(&what, COMPILE_LIMIT, &folder.join("log")).run(&mut command)?;
    ensure!(
        staged.is_file(),
        "gcc made no program of {}",
        source.display()
    );
    fs::rename(staged, &program)?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_says_what_it_built() {
        let line = r#"{"reason":"compiler-artifact","executable":"/t/release/agent"}"#;
        assert_eq!(executable(line), Some(PathBuf::from("/t/release/agent")));
        let line = r#"{"reason":"compiler-artifact","executable":null}"#;
        assert_eq!(executable(line), None);
        assert_eq!(executable("warning: text"), None);
    }
}
