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

/// Removes the oldest runs; their names sort by time.
fn prune(runs: &Path) -> Result<()> {
    let mut found: Vec<PathBuf> = fs::read_dir(runs)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    found.sort();
    let surplus = found.len().saturating_sub(KEPT_RUNS);
    for old in found.into_iter().take(surplus) {
        let _ = fs::remove_dir_all(old);
    }
    Ok(())
}
