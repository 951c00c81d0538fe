//! The kernel's source: fetched from Debian, unpacked once, patched in place.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Variant;
use crate::apt::Apt;
use crate::key::files_below;
use crate::step::{self, Step};
use crate::{groups, paths, tools};

/// The series that the patches are written for.
const SERIES: &str = "7.3";
const PREFIX: &str = "linux-source-";
/// 170 MiB of xz; about 20 s on an idle machine.
const UNPACK_LIMIT: Duration = Duration::from_secs(600);
const PATCH_LIMIT: Duration = Duration::from_secs(60);

/// An unpacked source tree.
pub(super) struct Source {
    /// Holds the tree, the build folders and the copies of applied patches.
    folder: PathBuf,
    tree: PathBuf,
    version: String,
}

/// Names the chosen source; removing it makes the next build choose again.
fn chosen() -> Result<PathBuf> {
    Ok(paths::make_dir("kernel")?.join("source-version"))
}

pub(super) fn forget() -> Result<()> {
    match fs::remove_file(chosen()?) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

impl Source {
    /// The source that was chosen before, if its tree is still there.
    pub(super) fn find() -> Result<Option<Self>> {
        let Ok(version) = fs::read_to_string(chosen()?) else {
            return Ok(None);
        };
        Self::open(version.trim())
    }

    fn open(version: &str) -> Result<Option<Self>> {
        let folder = folder_of(version)?;
        if !folder.join("unpacked").is_file() {
            return Ok(None);
        }
        let tree = fs::read_dir(&folder)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
            });
        Ok(tree.map(|tree| Self {
            folder,
            tree,
            version: version.to_owned(),
        }))
    }

    /// Finds the source or fetches it.
    pub(super) fn get() -> Result<Self> {
        if let Some(found) = Self::find()? {
            return Ok(found);
        }
        let _lock = step::lock(&paths::make_dir("kernel")?.join("fetch.lock"))?;
        if let Some(found) = Self::find()? {
            return Ok(found);
        }
        let apt = Apt::open()?;
        let names = apt.names(PREFIX)?;
        let package = choose(&names)
            .with_context(|| format!("the mirror has no package {PREFIX}{SERIES} or newer"))?;
        let version = apt
            .candidate(&package)?
            .with_context(|| format!("the mirror has no version of {package}"))?;
        if Self::open(&version)?.is_none() {
            let archive = apt.download(&package, &version)?;
            unpack(&archive, &folder_of(&version)?)?;
            let _ = fs::remove_file(archive);
        }
        if package != format!("{PREFIX}{SERIES}") {
            eprintln!("note: {PREFIX}{SERIES} is gone from the mirror, using {package} {version}");
        }
        fs::write(chosen()?, &version)?;
        Self::find()?.context("the kernel source that was just unpacked is gone")
    }

    pub(super) fn tree(&self) -> &Path {
        &self.tree
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// One at a time may patch and build.
    pub(super) fn lock(&self) -> Result<File> {
        step::lock(&self.folder.join("lock"))
    }

    /// What the tree and its builds are in.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A second tree without patches, to apply them one by one in: the first has kernels built
    /// from it. Files are shared until a patch replaces them; with `fresh` the package is
    /// fetched and unpacked again instead. Hold the lock.
    pub(super) fn twin(&self, fresh: bool) -> Result<Self> {
        let folder = self.folder.join("series");
        let name = self.tree.file_name().context("a tree without a name")?;
        let twin = Self {
            tree: folder.join(name),
            folder,
            version: self.version.clone(),
        };
        let whole = twin.folder.join("unpacked");
        if fresh {
            let apt = Apt::open()?;
            let archive = apt.download(&name.to_string_lossy(), &self.version)?;
            unpack(&archive, &twin.folder)?;
            let _ = fs::remove_file(archive);
        } else if !whole.is_file() {
            let _ = fs::remove_dir_all(&twin.folder);
            fs::create_dir_all(&twin.folder)?;
            let bar = step::spinner("a second source tree");
            let mut command = groups::bound_command("cp");
            command
                .args(["--archive", "--link"])
                .arg(&self.tree)
                .arg(&twin.tree);
            let log = twin.folder.join("copy.log");
            Step::new("copy of the source", UNPACK_LIMIT, &log).run(&mut command)?;
            let applied = self.folder.join("applied");
            if applied.is_dir() {
                let mut command = groups::bound_command("cp");
                command
                    .arg("--archive")
                    .arg(&applied)
                    .arg(twin.folder.join("applied"));
                Step::new("copy of the patches", PATCH_LIMIT, &log).run(&mut command)?;
            }
            fs::write(&whole, "")?;
            bar.finish_and_clear();
        }
        twin.patch(&[])?;
        Ok(twin)
    }

    /// A tree of these files and folders alone, without patches, anew; its folder is `folder`.
    pub(super) fn excerpt(&self, paths: &[&str], folder: &Path) -> Result<Self> {
        let _ = fs::remove_dir_all(folder);
        let excerpt = Self {
            folder: folder.to_path_buf(),
            tree: folder.join("linux"),
            version: self.version.clone(),
        };
        for path in paths {
            let from = self.tree.join(path);
            let files = if from.is_dir() {
                files_below(&from)?
            } else {
                vec![from]
            };
            for file in files {
                let to = excerpt.tree.join(file.strip_prefix(&self.tree)?);
                if let Some(parent) = to.parent() {
                    fs::create_dir_all(parent)?;
                }
                fs::copy(&file, &to).with_context(|| format!("copy {}", file.display()))?;
            }
        }
        Ok(excerpt)
    }

    pub(super) fn build_folder(&self, variant: Variant) -> Result<PathBuf> {
        let path = self.folder.join(format!("build-{variant}"));
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Brings the tree from whatever series it has to this one, touching only what
    /// the two series touch.
    pub(super) fn patch(&self, wanted: &[PathBuf]) -> Result<()> {
        let log = self.folder.join("patch.log");
        let applied = self.folder.join("applied");
        fs::create_dir_all(&applied)?;
        let mut have: Vec<PathBuf> = fs::read_dir(&applied)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .collect();
        have.sort();
        let mut same = 0;
        while let (Some(old), Some(new)) = (have.get(same), wanted.get(same)) {
            if fs::read(old)? != fs::read(new)? {
                break;
            }
            same += 1;
        }
        for old in have.drain(same..).rev() {
            self.run_patch(&old, true, &log)?;
            fs::remove_file(old)?;
        }
        for (index, new) in wanted.iter().enumerate().skip(same) {
            self.run_patch(new, false, &log)?;
            // Numbered, because the order is what has to be undone.
            fs::copy(new, applied.join(format!("{index:04}.patch")))?;
        }
        Ok(())
    }

    fn run_patch(&self, file: &Path, reverse: bool, log: &Path) -> Result<()> {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        // All or nothing: a patch that fails half way would spoil the tree.
        for dry in [true, false] {
            let mut command = Command::new("patch");
            command
                .args(["--strip=1", "--batch", "--no-backup-if-mismatch"])
                .args(["--reject-file=-", "--fuzz=0"])
                .arg(if reverse { "--reverse" } else { "--forward" });
            if dry {
                command.arg("--dry-run");
            }
            command.arg("--input").arg(file).current_dir(&self.tree);
            tools::equip(&mut command)?;
            Step::new("patch", PATCH_LIMIT, log)
                .run(&mut command)
                .with_context(|| {
                    format!(
                        "{name} does not {} the source {}",
                        if reverse { "come off" } else { "apply to" },
                        self.version
                    )
                })?;
        }
        Ok(())
    }
}

fn folder_of(version: &str) -> Result<PathBuf> {
    Ok(paths::make_dir("kernel")?
        .join("work")
        .join(paths::file_name(version)))
}

/// The package's tarball, unpacked in one pass without the space of the archive.
fn unpack(package: &Path, folder: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    let bar = step::spinner("unpack the kernel source");
    let mut command = groups::bound_command("sh");
    command
        .args([
            "-c",
            "set -e; dpkg-deb --fsys-tarfile \"$1\" | \
             tar --extract --to-stdout --wildcards './usr/src/linux-source-*.tar.xz' | \
             xz --decompress --stdout --threads=0 | tar --extract --directory \"$2\"",
            "unpack",
        ])
        .arg(package)
        .arg(folder);
    tools::equip(&mut command)?;
    Step::new(
        "unpack the kernel source",
        UNPACK_LIMIT,
        &folder.join("unpack.log"),
    )
    .run(&mut command)?;
    bar.finish_and_clear();
    let complete = fs::read_dir(folder)?
        .filter_map(|entry| entry.ok())
        .any(|entry| entry.path().join("mm/migrate.c").is_file());
    if !complete {
        bail!("{} does not hold a kernel source", package.display());
    }
    fs::write(folder.join("unpacked"), "")?;
    Ok(())
}

/// The series that the patches are for, else the nearest newer one, else the newest.
fn choose(names: &[String]) -> Option<String> {
    let mut found: Vec<(u32, u32, &String)> = names
        .iter()
        .filter_map(|name| {
            let (major, minor) = name.strip_prefix(PREFIX)?.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?, name))
        })
        .collect();
    found.sort();
    let (major, minor) = SERIES.split_once('.')?;
    let wanted: (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    found
        .iter()
        .find(|(major, minor, _)| (*major, *minor) >= wanted)
        .or(found.last())
        .map(|(_, _, name)| (*name).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wanted_series_or_the_nearest_is_chosen() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            choose(&names(&[
                "linux-source-6.12",
                "linux-source-7.3",
                "linux-source-7.10",
                "linux-source"
            ]))
            .as_deref(),
            Some("linux-source-7.3")
        );
        assert_eq!(
            choose(&names(&["linux-source-7.12", "linux-source-7.4"])).as_deref(),
            Some("linux-source-7.4")
        );
        assert_eq!(
            choose(&names(&["linux-source-6.12"])).as_deref(),
            Some("linux-source-6.12")
        );
        assert_eq!(choose(&names(&["linux-source"])), None);
    }

    #[test]
    fn a_twin_shares_files_but_no_patches() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let tree = folder.path().join("linux-source-0");
        fs::create_dir(&tree)?;
        fs::write(tree.join("f"), "a\nb\nc\n")?;
        let source = Source {
            folder: folder.path().to_path_buf(),
            tree: tree.clone(),
            version: "0".into(),
        };
        let patch = folder.path().join("1.patch");
        let text = "--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n a\n-b\n+x\n c\n";
        fs::write(&patch, text)?;
        source.patch(std::slice::from_ref(&patch))?;
        let twin = source.twin(false)?;
        let text = |source: &Source| fs::read_to_string(source.tree().join("f"));
        assert_eq!(text(&source)?, "a\nx\nc\n", "the first keeps its patches");
        assert_eq!(text(&twin)?, "a\nb\nc\n");
        twin.patch(&[patch])?;
        let twin = source.twin(false)?;
        source.patch(&[])?;
        assert_eq!(
            (text(&source)?, text(&twin)?),
            ("a\nb\nc\n".into(), "a\nb\nc\n".into())
        );
        Ok(())
    }

    #[test]
    fn an_excerpt_is_patched_and_the_tree_is_not() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let tree = folder.path().join("linux-source-0");
        fs::create_dir_all(tree.join("d/e"))?;
        fs::write(tree.join("d/f"), "a\nb\nc\n")?;
        fs::write(tree.join("d/e/g"), "g")?;
        fs::write(tree.join("h"), "h")?;
        let source = Source {
            folder: folder.path().to_path_buf(),
            tree: tree.clone(),
            version: "0".into(),
        };
        let patch = folder.path().join("1.patch");
        fs::write(
            &patch,
            "--- a/d/f\n+++ b/d/f\n@@ -1,3 +1,3 @@\n a\n-b\n+x\n c\n",
        )?;
        // The second has nothing of the first.
        for paths in [&["d", "h"][..], &["d/f"]] {
            let excerpt = source.excerpt(paths, &folder.path().join("out"))?;
            excerpt.patch(std::slice::from_ref(&patch))?;
            let has = |name: &str| excerpt.tree().join(name).is_file();
            assert_eq!(
                (has("d/e/g"), has("h")),
                (paths.len() == 2, paths.len() == 2)
            );
            assert_eq!(fs::read_to_string(excerpt.tree().join("d/f"))?, "a\nx\nc\n");
        }
        assert_eq!(fs::read_to_string(tree.join("d/f"))?, "a\nb\nc\n");
        Ok(())
    }

    #[test]
    fn a_series_is_exchanged_and_a_bad_patch_changes_nothing() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let tree = folder.path().join("linux-source-0");
        fs::create_dir(&tree)?;
        fs::write(tree.join("f"), "a\nb\nc\n")?;
        let source = Source {
            folder: folder.path().to_path_buf(),
            tree: tree.clone(),
            version: "0".into(),
        };
        let patch = |name: &str, old: &str, new: &str| -> Result<PathBuf> {
            let path = folder.path().join(name);
            let text = format!("--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n a\n-{old}\n+{new}\n c\n");
            fs::write(&path, text)?;
            Ok(path)
        };
        let first = patch("1.patch", "b", "x")?;
        let second = patch("2.patch", "x", "y")?;
        let other = patch("3.patch", "x", "z")?;
        let bad = patch("4.patch", "q", "r")?;
        let content = || fs::read_to_string(tree.join("f"));

        source.patch(&[first.clone(), second])?;
        assert_eq!(content()?, "a\ny\nc\n");
        source.patch(&[first.clone(), other])?;
        assert_eq!(content()?, "a\nz\nc\n");
        assert!(source.patch(&[first, bad]).is_err());
        assert_eq!(content()?, "a\nx\nc\n", "what applied stays recorded");
        source.patch(&[])?;
        assert_eq!(content()?, "a\nb\nc\n");
        Ok(())
    }
}
