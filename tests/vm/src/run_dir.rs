//! Where one run keeps its sockets and its logs.
//!
//! Sockets live in a short folder of their own, because a socket's path must fit in
//! 108 bytes; logs live in the cache, and stay when something fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::paths;

/// Room for a file name of ours behind the folder in a `sockaddr_un`.
const SOCKET_FOLDER_LIMIT: usize = 80;
/// Logs of that many failed runs are kept.
const KEPT_RUNS: usize = 20;

static SOCKETS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A folder for sockets, removed with the value or by an interrupt.
#[derive(Debug)]
pub(crate) struct SocketDir(TempDir);

impl SocketDir {
    pub(crate) fn new() -> Result<Self> {
        let builder = || {
            let mut builder = tempfile::Builder::new();
            builder.prefix("ptdma-");
            builder
        };
        let mut folder = builder().tempdir().context("no temporary folder")?;
        if folder.path().as_os_str().len() > SOCKET_FOLDER_LIMIT {
            folder = builder().tempdir_in("/tmp")?;
        }
        SOCKETS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(folder.path().to_path_buf());
        Ok(Self(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        SOCKETS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|path| path != self.0.path());
    }
}

/// Removes the socket folders of this process, which is about to exit.
pub(crate) fn remove_current() {
    for path in SOCKETS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .drain(..)
    {
        let _ = fs::remove_dir_all(path);
    }
}

/// The folder for the logs of this run of the harness.
pub(crate) fn logs() -> Result<PathBuf> {
    let runs = paths::cache_dir("runs")?;
    prune(&runs)?;
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let folder = runs.join(format!("{seconds}-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Removes the oldest runs that are over; their names sort by time.
///
/// One that is not, a soak of hours beside many short runs, would lose its logs and fail.
fn prune(runs: &Path) -> Result<()> {
    let mut found: Vec<PathBuf> = fs::read_dir(runs)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| is_over(path))
        .collect();
    found.sort();
    let surplus = found.len().saturating_sub(KEPT_RUNS);
    for old in found.into_iter().take(surplus) {
        let _ = fs::remove_dir_all(old);
    }
    Ok(())
}

/// Whether the process whose run this is has ended, by the number at the end of its name. A number
/// that was given to another process meanwhile only keeps a run for longer.
fn is_over(run: &Path) -> bool {
    let name = run.file_name().and_then(|name| name.to_str());
    let Some((_, process)) = name.and_then(|name| name.rsplit_once('-')) else {
        return true;
    };
    !Path::new("/proc").join(process).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_runs_go_but_not_those_under_way() {
        let runs = tempfile::tempdir().unwrap();
        // Above every process number that Linux gives.
        let over = |n: usize| runs.path().join(format!("{}-9999999", 1000 + n));
        let under_way = runs.path().join(format!("1-{}", std::process::id()));
        fs::create_dir(&under_way).unwrap();
        for n in 0..KEPT_RUNS + 3 {
            fs::create_dir(over(n)).unwrap();
        }
        prune(runs.path()).unwrap();
        assert!(under_way.exists());
        assert_eq!(
            (0..KEPT_RUNS + 3)
                .map(|n| over(n).exists())
                .collect::<Vec<_>>(),
            (0..KEPT_RUNS + 3).map(|n| n >= 3).collect::<Vec<_>>()
        );
    }
}
