//! Where things are: the tree, the cache, and a build folder without spaces.

use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::key::Key;

/// Names the cache folder; wins over `XDG_CACHE_HOME`.
pub(crate) const CACHE_VARIABLE: &str = "PTDMA_CACHE";

/// The root of the source tree that this harness was built from.
pub(crate) fn workspace() -> PathBuf {
    // tests/vm is two levels below the root.
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest
        .ancestors()
        .nth(2)
        .unwrap_or(manifest)
        .to_path_buf()
}

/// This crate's folder in the tree.
pub(crate) fn harness() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Everything derived is below this folder, and may be deleted at any time.
pub(crate) fn cache() -> Result<PathBuf> {
    let named = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let root = named(CACHE_VARIABLE)
        .or_else(|| named("XDG_CACHE_HOME").map(|base| base.join("ptdma")))
        .or_else(|| named("HOME").map(|home| home.join(".cache/ptdma")))
        .with_context(|| format!("none of {CACHE_VARIABLE}, XDG_CACHE_HOME and HOME names an absolute folder: set {CACHE_VARIABLE}"))?;
    fs::create_dir_all(&root)
        .with_context(|| format!("cannot create the cache folder {}", root.display()))?;
    Ok(root)
}

/// A folder of the cache, created when missing.
pub(crate) fn cache_dir(name: impl AsRef<Path>) -> Result<PathBuf> {
    let path = cache()?.join(name);
    fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

/// A folder for builds driven by make, which splits paths at spaces and colons, and for programs
/// whose libraries are found through a path, which is split at colons.
///
/// This is a part of the cache, unless the cache's own path has such characters:
/// then it is a private folder under `/var/tmp`, named after the cache's path.
pub(crate) fn make_dir(name: &str) -> Result<PathBuf> {
    let path = make_root()?.join(name);
    fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

/// The folder that [`make_dir`]'s are in: the cache, or the private one.
pub(crate) fn make_root() -> Result<PathBuf> {
    let cache = cache()?;
    if fits_make(&cache) {
        return Ok(cache);
    }
    let mut key = Key::new("make-root");
    key.text(&cache.to_string_lossy());
    let uid = rustix::process::getuid().as_raw();
    let root = PathBuf::from(format!("/var/tmp/ptdma-{uid}-{}", key.finish()));
    fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    let meta = fs::symlink_metadata(&root)?;
    ensure!(
        meta.is_dir() && meta.uid() == uid,
        "{} belongs to somebody else: set {CACHE_VARIABLE} to a folder without spaces",
        root.display()
    );
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700))?;
    Ok(root)
}

/// Whether make takes this path as one word.
pub(crate) fn fits_make(path: &Path) -> bool {
    path.to_str().is_some_and(|text| {
        !text
            .chars()
            .any(|c| c.is_whitespace() || ":#$%\\'\"".contains(c))
    })
}

/// A version as a file name: Debian's has colons and tildes.
pub(crate) fn file_name(version: &str) -> String {
    version
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "+-._".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_become_file_names() {
        assert_eq!(file_name("1:11.1.3+ds-1~bpo13+1"), "1_11.1.3+ds-1_bpo13+1");
        assert_eq!(file_name("../x"), ".._x");
    }

    #[test]
    fn make_cannot_take_spaces_or_colons() {
        assert!(fits_make(Path::new("/home/user/.cache/ptdma")));
        assert!(!fits_make(Path::new("/home/a user/.cache/ptdma")));
        assert!(!fits_make(Path::new("/mnt/c:/cache")));
    }

    #[test]
    fn the_workspace_holds_this_crate() {
        assert!(workspace().join("tests/vm/Cargo.toml").is_file());
    }
}
