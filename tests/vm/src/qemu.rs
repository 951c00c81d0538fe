//! The emulator: found on the machine, or unpacked privately from Debian.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{self, Apt};
use crate::{groups, paths, step};

/// The first release with a vfio-user client.
const OLDEST: (u32, u32) = (10, 1);
/// Names an emulator to use instead of looking for one.
pub(crate) const VARIABLE: &str = "PTDMA_QEMU";
const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// Debian's folder for the libraries of this architecture.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// An emulator that can be started.
#[derive(Debug, Clone)]
pub(crate) struct Qemu {
    program: PathBuf,
    /// The root of a private unpacking, whose own loader and libraries are used.
    prefix: Option<PathBuf>,
    version: String,
}

impl Qemu {
    /// Looks without fetching anything: the named one, the machine's, an unpacked one.
    pub(crate) fn find() -> Result<Option<Self>> {
        if let Some(named) = std::env::var_os(VARIABLE) {
            let found = Self::on_machine(PathBuf::from(named))
                .with_context(|| format!("{VARIABLE} does not name a usable emulator"))?;
            return Ok(Some(found));
        }
        if let Ok(program) = which::which(PROGRAM)
            && let Ok(found) = Self::on_machine(program)
        {
            return Ok(Some(found));
        }
        let Ok(name) = fs::read_to_string(paths::make_dir("qemu")?.join("current")) else {
            return Ok(None);
        };
        let prefix = paths::make_dir("qemu")?.join(name.trim());
        Ok(Self::in_prefix(prefix).ok())
    }

    /// Finds one or unpacks one.
    pub(crate) fn get() -> Result<Self> {
        if let Some(found) = Self::find()? {
            return Ok(found);
        }
        let folder = paths::make_dir("qemu")?;
        let _lock = step::lock(&folder.join("lock"))?;
        if let Some(found) = Self::find()? {
            return Ok(found);
        }
        let apt = Apt::open()?;
        let version = apt
            .candidate(PACKAGE)?
            .with_context(|| format!("the mirror has no package {PACKAGE}"))?;
        let packages = apt.download_closure(PACKAGE, &version)?;
        let name = paths::file_name(&version);
        let unpacked = tempfile::tempdir_in(&folder)?;
        apt::unpack(&packages, unpacked.path(), &folder.join("unpack.log"))?;
        let prefix = folder.join(&name);
        let _ = fs::remove_dir_all(&prefix);
        fs::rename(unpacked.keep(), &prefix)?;
        let found = Self::in_prefix(prefix)?;
        fs::write(folder.join("current"), name)?;
        for package in packages {
            let _ = fs::remove_file(package);
        }
        Ok(found)
    }

    fn on_machine(program: PathBuf) -> Result<Self> {
        Self {
            program,
            prefix: None,
            version: String::new(),
        }
        .checked()
    }

    fn in_prefix(prefix: PathBuf) -> Result<Self> {
        Self {
            program: prefix.join("usr/bin").join(PROGRAM),
            prefix: Some(prefix),
            version: String::new(),
        }
        .checked()
    }

    fn checked(mut self) -> Result<Self> {
        let text = step::output(self.command().arg("--version"))?;
        let version = parse_version(&text)
            .with_context(|| format!("{} has no version", self.program.display()))?;
        if (version.0, version.1) < OLDEST {
            bail!(
                "{} is {}.{}, older than {}.{}",
                self.program.display(),
                version.0,
                version.1,
                OLDEST.0,
                OLDEST.1
            );
        }
        self.version = format!("{}.{}.{}", version.0, version.1, version.2);
        let devices = step::output(self.command().args(["-device", "help"]))?;
        if !devices.contains("\"vfio-user-pci\"") {
            bail!("{} was built without vfio-user-pci", self.program.display());
        }
        Ok(self)
    }

    /// The emulator's release.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Where it is.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The private unpacking, if it is one.
    pub(crate) fn prefix(&self) -> Option<&Path> {
        self.prefix.as_deref()
    }

    /// The start of a command line, bound to the life of the calling thread.
    pub(crate) fn command(&self) -> Command {
        let Some(prefix) = &self.prefix else {
            return groups::bound_command(&self.program);
        };
        let mut command = groups::bound_command(prefix.join("usr/lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(prefix.join(LIBRARIES))
            .arg(&self.program);
        for folder in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(prefix.join(folder));
        }
        command.env("QEMU_MODULE_DIR", prefix.join(LIBRARIES).join("qemu"));
        command
    }
}

/// "QEMU emulator version 11.1.3 (Debian ...)" -> (11, 1, 3)
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let (_, rest) = text.split_once("version ")?;
    let number = rest.split_whitespace().next()?;
    let mut parts = number.split('.').map(|part| part.parse().ok());
    Some((
        parts.next()??,
        parts.next()??,
        parts.next().flatten().unwrap_or(0),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(
            parse_version("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)\nCopyright"),
            Some((11, 1, 3))
        );
        assert_eq!(
            parse_version("QEMU emulator version 10.2"),
            Some((10, 2, 0))
        );
        assert_eq!(parse_version("not an emulator"), None);
        assert!((9, 2) < OLDEST && (10, 1) >= OLDEST && (11, 0) >= OLDEST);
    }
}
