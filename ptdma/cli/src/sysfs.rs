//! Files of sysfs and procfs, below a root that tests replace.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where `/sys` and `/proc` are.
#[derive(Debug, Clone)]
pub(crate) struct Root(PathBuf);

impl Root {
    /// This machine's.
    pub(crate) fn real() -> Self {
        Self(PathBuf::from("/"))
    }

    /// A folder with files that look like them.
    #[cfg(test)]
    pub(crate) fn at(folder: &Path) -> Self {
        Self(folder.to_path_buf())
    }

    /// A path below the root.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.0.join(relative)
    }

    /// The trimmed text of a file, if it can be read.
    pub(crate) fn text(&self, relative: &str) -> Option<String> {
        text(&self.path(relative))
    }

    /// The number in a file, if there is one.
    pub(crate) fn number(&self, relative: &str) -> Option<u64> {
        self.text(relative)?.parse().ok()
    }

    /// Whether there is such a file or folder.
    pub(crate) fn has(&self, relative: &str) -> bool {
        self.path(relative).exists()
    }

    /// Writes a control file.
    pub(crate) fn write(&self, relative: &str, value: &str) -> Result<()> {
        let path = self.path(relative);
        fs::write(&path, value)
            .with_context(|| format!("cannot write {value} to {}", path.display()))
    }
}

/// The trimmed text of a file, if it can be read.
pub(crate) fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}
