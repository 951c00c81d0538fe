//! What `rust-toolchain.toml` asks for, and whether the compiler at hand has it.
//!
//! A toolchain that lacks a component or a target builds this harness all the same. The module,
//! the UEFI program or the bare guest then fail to build, after kernels were built for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::paths;

/// The source of `core`: the kernel module builds it anew, with the kernel's flags.
pub(crate) const SOURCE: Part<'static> = Part::Component("rust-src");
/// The bare guest's target.
pub(crate) const BARE: Part<'static> = Part::Target("x86_64-unknown-none");
/// The UEFI program's target.
pub(crate) const UEFI: Part<'static> = Part::Target("x86_64-unknown-uefi");
/// The kernel module that is partly Rust, by its name in `image::MODULES`.
const RUST_MODULE: &str = "kshim";

/// A part of a toolchain, by the name that `rust-toolchain.toml` and rustup have for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    Component(&'a str),
    Target(&'a str),
}

impl Part<'_> {
    /// The name alone.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Component(name) | Self::Target(name) => name,
        }
    }

    /// The command that adds it to the toolchain of this tree.
    pub(crate) fn fix(&self) -> String {
        match self {
            Self::Component(name) => format!("rustup component add {name}"),
            Self::Target(name) => format!("rustup target add {name}"),
        }
    }

    /// Looks for it in a toolchain's folder. Files are looked for, and not rustup's records,
    /// because a toolchain need not come from rustup.
    fn is_in(&self, sysroot: &Path) -> bool {
        let rustlib = sysroot.join("lib/rustlib");
        match self {
            Self::Component("rust-src") => {
                rustlib.join("src/rust/library/core/src/lib.rs").is_file()
            }
            Self::Component("rustfmt") => ["rustfmt", "cargo-fmt"]
                .iter()
                .all(|name| has_program(sysroot, name)),
            Self::Component("clippy") => ["clippy-driver", "cargo-clippy"]
                .iter()
                .all(|name| has_program(sysroot, name)),
            // Of any other component rustup's record is all there is to look at.
            Self::Component(name) => {
                let record = fs::read_to_string(rustlib.join("components")).unwrap_or_default();
                record.lines().any(|line| {
                    line.strip_prefix(name)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
                })
            }
            Self::Target(name) => has_core(&rustlib.join(name).join("lib")),
        }
    }
}

fn has_program(sysroot: &Path, name: &str) -> bool {
    sysroot.join("bin").join(name).is_file()
}

/// Whether a target's libraries have a compiled `core`.
fn has_core(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libcore-") && name.ends_with(".rlib")
        })
    })
}

/// What `rust-toolchain.toml` pins.
#[derive(Debug, Deserialize)]
pub(crate) struct Pinned {
    pub(crate) channel: String,
    #[serde(default)]
    components: Vec<String>,
    #[serde(default)]
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct File {
    toolchain: Pinned,
}

impl Pinned {
    /// Reads the file of this tree.
    ///
    /// # Errors
    /// The file cannot be read, or pins no channel.
    pub(crate) fn read() -> Result<Self> {
        let path = paths::workspace().join("rust-toolchain.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} pins no toolchain", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        Ok(toml::from_str::<File>(text)?.toolchain)
    }

    fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let components = self.components.iter().map(|name| Part::Component(name));
        let targets = self.targets.iter().map(|name| Part::Target(name));
        components.chain(targets)
    }
}

/// The compiler that builds this tree.
#[derive(Debug)]
pub(crate) struct Toolchain {
    sysroot: PathBuf,
    /// Its version without the words around it, `1.95.0`.
    pub(crate) version: String,
}

impl Toolchain {
    /// Asks the compiler that cargo takes in this tree.
    ///
    /// # Errors
    /// There is no `rustc`, or it does not answer.
    pub(crate) fn find() -> Result<Self> {
        let sysroot = ask(&["--print", "sysroot"])?;
        let version = ask(&["--version"])?;
        let number = version.split_whitespace().nth(1).unwrap_or(&version);
        Ok(Self {
            sysroot: PathBuf::from(sysroot),
            version: number.to_owned(),
        })
    }

    /// What is pinned and missing.
    pub(crate) fn missing<'a>(&self, pinned: &'a Pinned) -> Vec<Part<'a>> {
        pinned
            .parts()
            .filter(|part| !part.is_in(&self.sysroot))
            .collect()
    }
}

fn ask(words: &[&str]) -> Result<String> {
    // In the tree, where rustup reads which toolchain it has to be.
    let output = Command::new("rustc")
        .args(words)
        .current_dir(paths::workspace())
        .stdin(Stdio::null())
        .output()
        .context("rustc does not start")?;
    if !output.status.success() {
        bail!("rustc: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Refuses to begin what would fail for want of one of these parts.
///
/// # Errors
/// A part is missing; the error names it and the command that adds it.
pub(crate) fn require(parts: &[Part]) -> Result<()> {
    if parts.is_empty() {
        return Ok(());
    }
    refuse_without(&Toolchain::find()?.sysroot, parts)
}

fn refuse_without(sysroot: &Path, parts: &[Part]) -> Result<()> {
    let missing: Vec<&Part> = parts.iter().filter(|part| !part.is_in(sysroot)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|part| part.name()).collect();
    let fixes: Vec<String> = missing.iter().map(|part| part.fix()).collect();
    bail!(
        "the Rust toolchain at {} lacks {}; run in this tree: {}",
        sysroot.display(),
        names.join(" and "),
        fixes.join(" && ")
    )
}

/// What building these kernel modules needs of the toolchain.
pub(crate) fn parts_for_modules(modules: &[&str]) -> &'static [Part<'static>] {
    if modules.contains(&RUST_MODULE) {
        &[SOURCE]
    } else {
        &[]
    }
}

/// Refuses to begin what builds these kernel modules, if one of them cannot be built.
///
/// # Errors
/// As [`require`].
pub(crate) fn require_for_modules(modules: &[&str]) -> Result<()> {
    require(parts_for_modules(modules))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PINNED: &str = r#"
        [toolchain]
        channel = "1.95.0"
        components = ["rustfmt", "clippy", "rust-src", "miri"]
        targets = [
            "x86_64-unknown-none", # firmware
            "x86_64-unknown-uefi",
        ]
    "#;

    /// A toolchain's folder with everything that `PINNED` asks for.
    fn whole() -> Result<tempfile::TempDir> {
        let folder = tempfile::tempdir()?;
        for file in [
            "bin/rustfmt",
            "bin/cargo-fmt",
            "bin/clippy-driver",
            "bin/cargo-clippy",
            "lib/rustlib/src/rust/library/core/src/lib.rs",
            "lib/rustlib/x86_64-unknown-none/lib/libcore-1.rlib",
            "lib/rustlib/x86_64-unknown-uefi/lib/libcore-2.rlib",
        ] {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().context("a file without a folder")?)?;
            fs::write(path, "")?;
        }
        let record = "rustc-x86_64-unknown-linux-gnu\nmiri-preview-x86_64-unknown-linux-gnu\n";
        fs::write(folder.path().join("lib/rustlib/components"), record)?;
        Ok(folder)
    }

    fn missing_after(remove: &str) -> Result<Vec<String>> {
        let pinned = Pinned::parse(PINNED)?;
        let folder = whole()?;
        fs::remove_file(folder.path().join(remove))?;
        let toolchain = Toolchain {
            sysroot: folder.path().to_path_buf(),
            version: "1.95.0".into(),
        };
        Ok(toolchain.missing(&pinned).iter().map(Part::fix).collect())
    }

    #[test]
    fn a_whole_toolchain_lacks_nothing() -> Result<()> {
        let pinned = Pinned::parse(PINNED)?;
        assert_eq!(pinned.channel, "1.95.0");
        assert_eq!(pinned.parts().count(), 6);
        let folder = whole()?;
        let toolchain = Toolchain {
            sysroot: folder.path().to_path_buf(),
            version: "1.95.0".into(),
        };
        assert_eq!(toolchain.missing(&pinned), []);
        refuse_without(folder.path(), &[SOURCE, BARE, UEFI])
    }

    #[test]
    fn each_part_that_is_missing_is_noticed_with_its_fix() -> Result<()> {
        for (file, fix) in [
            ("bin/rustfmt", "rustup component add rustfmt"),
            ("bin/cargo-clippy", "rustup component add clippy"),
            (
                "lib/rustlib/src/rust/library/core/src/lib.rs",
                "rustup component add rust-src",
            ),
            (
                "lib/rustlib/x86_64-unknown-none/lib/libcore-1.rlib",
                "rustup target add x86_64-unknown-none",
            ),
            (
                "lib/rustlib/x86_64-unknown-uefi/lib/libcore-2.rlib",
                "rustup target add x86_64-unknown-uefi",
            ),
            ("lib/rustlib/components", "rustup component add miri"),
        ] {
            assert_eq!(missing_after(file)?, [fix], "{file}");
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_built_is_refused_with_the_command_that_helps() -> Result<()> {
        let folder = whole()?;
        fs::remove_dir_all(folder.path().join("lib/rustlib/src"))?;
        fs::remove_dir_all(folder.path().join("lib/rustlib/x86_64-unknown-uefi"))?;
        refuse_without(folder.path(), &[BARE])?;
        let refusal = refuse_without(folder.path(), &[SOURCE, BARE, UEFI])
            .expect_err("two parts are missing")
            .to_string();
        assert!(
            refusal.ends_with(
                "lacks rust-src and x86_64-unknown-uefi; run in this tree: \
                 rustup component add rust-src && rustup target add x86_64-unknown-uefi"
            ),
            "{refusal}"
        );
        Ok(())
    }

    #[test]
    fn only_the_rust_module_needs_the_source_of_core() {
        assert_eq!(parts_for_modules(&["dcbm", "testmig"]), []);
        assert_eq!(parts_for_modules(&["dcbm", "kshim"]), [SOURCE]);
        let known = crate::image::MODULES.iter().map(|module| module.name);
        assert!(known.into_iter().any(|name| name == RUST_MODULE));
    }

    #[test]
    fn this_trees_toolchain_is_pinned_with_all_that_is_required() -> Result<()> {
        let pinned = Pinned::read()?;
        for part in [SOURCE, BARE, UEFI] {
            assert!(pinned.parts().any(|one| one == part), "{}", part.name());
        }
        assert!(!Toolchain::find()?.version.is_empty());
        Ok(())
    }
}
