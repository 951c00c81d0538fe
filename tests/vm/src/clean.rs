//! `cargo vm clean`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::kernel::{Kernel, VARIANTS};
use crate::paths;

/// What this harness makes in the cache folder; others may use it too.
const FOLDERS: &[&str] = &[
    "apt",
    "apt-own",
    "apt-stock",
    "busybox",
    "guest",
    "kernel",
    "kvm",
    "modules",
    "qemu",
    "runs",
    "selftests",
    "tools",
];

/// Removes everything, or only what nothing uses any more.
pub(crate) fn run(outdated: bool) -> Result<bool> {
    let cache = paths::cache()?;
    if outdated {
        let mut used = Vec::new();
        for variant in VARIANTS {
            if let Some(kernel) = Kernel::find(variant)? {
                used.push(kernel.key().to_owned());
            }
        }
        let out = paths::make_dir("kernel")?.join("out");
        for entry in fs::read_dir(&out).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !used.contains(&name) && entry.path().is_dir() {
                remove(&entry.path())?;
            }
        }
        remove(&cache.join("runs"))?;
        return Ok(true);
    }
    // Outside the cache, if the cache's path has spaces.
    let outside = paths::make_root()?;
    for name in FOLDERS {
        remove(&cache.join(name))?;
        remove(&outside.join(name))?;
    }
    if outside != cache {
        remove(&outside)?;
    }
    Ok(true)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => {
            println!("removed {}", path.display());
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}
