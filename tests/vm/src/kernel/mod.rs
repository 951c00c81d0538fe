//! The guest's kernels: Debian's source, our patches, our configuration.
//!
//! One source tree is patched and built in place, so that a changed patch rebuilds
//! what it touches; finished kernels are copied out under a content key and never
//! change after that.

mod compiler;
mod config;
mod debian;
pub(crate) mod series;
mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub(crate) use config::{VARIANTS, Variant};
use source::Source;

use crate::key::Key;
use crate::step::{self, Step};
use crate::{groups, paths, tools};

/// Part of every key: change it when the recipe below changes what comes out.
const RECIPE: &str = "kernel-1";
/// A debug kernel takes about eleven minutes on two idle cores; they may be very busy.
const BUILD_LIMIT: Duration = Duration::from_secs(120 * 60);
const INSTALL_LIMIT: Duration = Duration::from_secs(300);
/// Lines that make prints for a whole build, until a build here has counted them.
const USUAL_STEPS: u64 = 2600;

/// A finished kernel in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    folder: PathBuf,
    key: String,
    info: Info,
}

/// What is recorded beside a finished kernel.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Info {
    /// `uname -r`.
    release: String,
    /// The version of the source package.
    source: String,
    /// The patches that were applied, in order.
    patches: Vec<String>,
    variant: Variant,
}

impl Kernel {
    /// The kernel for the tree as it is now, if the cache has it.
    pub(crate) fn find(variant: Variant) -> Result<Option<Self>> {
        if variant.is_packaged() {
            return debian::find(variant);
        }
        let Some(source) = Source::find()? else {
            return Ok(None);
        };
        Self::load(&key(&source, variant)?)
    }

    /// Takes the kernel from the cache, or builds it (or unpacks it, if it is Debian's).
    pub(crate) fn get(variant: Variant) -> Result<Self> {
        if variant.is_packaged() {
            return debian::get(variant);
        }
        if let Some(found) = Self::find(variant)? {
            return Ok(found);
        }
        let source = Source::get()?;
        let _lock = source.lock()?;
        let key = key(&source, variant)?;
        if let Some(found) = Self::load(&key)? {
            return Ok(found);
        }
        build(&source, variant, &key)?;
        Self::load(&key)?.context("the kernel that was just built is gone")
    }

    fn load(key: &str) -> Result<Option<Self>> {
        let folder = outputs()?.join(key);
        let Ok(text) = fs::read_to_string(folder.join("info.json")) else {
            return Ok(None);
        };
        Ok(Some(Self {
            folder,
            key: key.to_owned(),
            info: serde_json::from_str(&text)?,
        }))
    }

    /// The bootable image.
    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join("bzImage")
    }

    /// The folder with this kernel's own modules (`*.ko`, flat).
    pub(crate) fn modules(&self) -> PathBuf {
        self.folder.join("modules")
    }

    /// What `make -C <this> M=<module>` needs.
    pub(crate) fn headers(&self) -> PathBuf {
        self.folder.join("headers")
    }

    /// The compiler for its modules, if it brought one.
    pub(crate) fn compiler(&self) -> Option<PathBuf> {
        compiler::find(&self.folder.join("build"))
    }

    /// `uname -r`.
    pub(crate) fn release(&self) -> &str {
        &self.info.release
    }

    /// The version of the source package.
    pub(crate) fn source_version(&self) -> &str {
        &self.info.source
    }

    /// The patches it was built with.
    pub(crate) fn patches(&self) -> &[String] {
        &self.info.patches
    }

    /// Whether Debian built it.
    pub(crate) fn is_packaged(&self) -> bool {
        self.info.variant.is_packaged()
    }

    /// The content key.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }
}

/// The unpacked source tree, whatever patches it has just now: for what they do not
/// touch, as `tools/testing/selftests`. Does not wait for a kernel that is being built.
pub(crate) fn unpacked_tree() -> Result<PathBuf> {
    Ok(Source::get()?.tree().to_path_buf())
}

/// Fetches and unpacks the source, if it is not there.
pub(crate) fn fetch_source() -> Result<()> {
    Source::get().map(drop)
}

/// The unpacked, patched source tree.
pub(crate) fn source_tree() -> Result<PathBuf> {
    let source = Source::get()?;
    let _lock = source.lock()?;
    source.patch(&patches()?)?;
    Ok(source.tree().to_path_buf())
}

/// Forgets which source was chosen, so that the next build takes the newest.
pub(crate) fn forget_source() -> Result<()> {
    source::forget()
}

/// Copies files and folders of the source to `folder`, with the patches of `series` applied;
/// returns the tree there. No kernel that is built has these patches.
pub(crate) fn patched_excerpt(paths: &[&str], series: &str, folder: &Path) -> Result<PathBuf> {
    let excerpt = Source::get()?.excerpt(paths, folder)?;
    excerpt.patch(&patches_in(&paths::workspace().join(series))?)?;
    Ok(excerpt.tree().to_path_buf())
}

/// Our patches of the kernels that are built, in order.
fn patches() -> Result<Vec<PathBuf>> {
    patches_in(&paths::workspace().join("kshim/patches"))
}

/// The patches of a folder, without those of the folders in it, in order.
fn patches_in(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut found: Vec<PathBuf> = fs::read_dir(folder)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "patch"))
        .collect();
    found.sort();
    Ok(found)
}

fn outputs() -> Result<PathBuf> {
    let folder = paths::make_dir("kernel")?.join("out");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn key(source: &Source, variant: Variant) -> Result<String> {
    let mut key = Key::new(RECIPE);
    key.text(source.version());
    key.text(&config::fragment(variant)?);
    for patch in patches()? {
        key.file(&patch)?;
    }
    for tool in ["gcc", "ld"] {
        let version = step::output(Command::new(tool).arg("--version"))?;
        key.text(version.lines().next().unwrap_or_default());
    }
    Ok(key.finish())
}

/// make in a build folder of the source tree, with everything that would make two
/// builds of the same key differ pinned.
fn make(source: &Source, build: &Path) -> Result<Command> {
    let mut command = groups::bound_command("nice");
    command
        .args(["-n", "5", "make", "-C"])
        .arg(source.tree())
        .arg(format!("O={}", build.display()))
        .env("LC_ALL", "C")
        .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
        .env("KBUILD_BUILD_USER", "ptdma")
        .env("KBUILD_BUILD_HOST", "ptdma")
        // Flags of an outer make would change the build.
        .env_remove("MAKEFLAGS")
        .env_remove("ARCH");
    tools::equip(&mut command)?;
    Ok(command)
}

fn build(source: &Source, variant: Variant, key: &str) -> Result<()> {
    let patches = patches()?;
    source.patch(&patches)?;
    let build = source.build_folder(variant)?;
    let log = build.with_extension("log");
    let _ = fs::remove_file(&log);

    config::configure(source, variant, &build, &log)?;

    let counted = build.join(".ptdma-steps");
    let expected = fs::read_to_string(&counted)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(USUAL_STEPS);
    let bar = step::bar(&format!("kernel ({variant})"), expected);
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut command = make(source, &build)?;
    command
        .arg(format!("-j{jobs}"))
        .args(["bzImage", "modules"]);
    Step::new("kernel build", BUILD_LIMIT, &log).run_lines(&mut command, |line| {
        // "  CC      mm/migrate.o"
        if line.starts_with("  ") {
            bar.inc(1);
        }
    })?;
    // An incremental build says little about the next whole one.
    if bar.position() > USUAL_STEPS / 2 {
        fs::write(&counted, bar.position().to_string())?;
    }
    bar.finish_and_clear();

    let release = step::output(make(source, &build)?.args(["-s", "kernelrelease"]))?;
    let staging = tempfile::tempdir_in(outputs()?)?;
    install(source, &build, staging.path(), &log)?;
    let info = Info {
        release: release.trim().to_owned(),
        source: source.version().to_owned(),
        patches: patches
            .iter()
            .filter_map(|path| path.file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .collect(),
        variant,
    };
    fs::write(
        staging.path().join("info.json"),
        serde_json::to_vec_pretty(&info)?,
    )?;
    let folder = outputs()?.join(key);
    let _ = fs::remove_dir_all(&folder);
    fs::rename(staging.keep(), folder)?;
    Ok(())
}

/// Copies out what a finished kernel consists of.
fn install(source: &Source, build: &Path, into: &Path, log: &Path) -> Result<()> {
    let bar = step::spinner("kernel: image, modules, headers");
    for (from, to) in [
        ("arch/x86/boot/bzImage", "bzImage"),
        (".config", "config"),
        ("System.map", "System.map"),
    ] {
        fs::copy(build.join(from), into.join(to)).with_context(|| format!("copy {from}"))?;
    }
    let modules = into.join("modules");
    fs::create_dir_all(&modules)?;
    let order = fs::read_to_string(build.join("modules.order"))?;
    for object in order.lines() {
        let module = build.join(object).with_extension("ko");
        let name = module.file_name().context("a module without a name")?;
        fs::copy(&module, modules.join(name)).with_context(|| format!("copy {object}"))?;
    }
    let mut command = make(source, build)?;
    command.args(["-s", "run-command"]).arg(format!(
        "KBUILD_RUN_COMMAND=+$(srctree)/scripts/package/install-extmod-build {}",
        into.join("headers").display()
    ));
    Step::new("kernel headers", INSTALL_LIMIT, log).run(&mut command)?;
    fs::copy(build.join(".config"), into.join("headers/.config"))?;
    bar.finish_and_clear();
    Ok(())
}
