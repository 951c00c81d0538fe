//! The firmware: Debian's package `ovmf`, found on the machine or unpacked privately.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::apt::{self, Apt};
use crate::{paths, step};

const PACKAGE: &str = "ovmf";
/// Where the package keeps its files.
const FOLDER: &str = "usr/share/OVMF";
/// Code, and the variables that a machine takes a copy of. Without secure boot: the program is
/// not signed.
const CODE: &str = "OVMF_CODE_4M.fd";
const VARIABLES: &str = "OVMF_VARS_4M.fd";

/// Firmware that a machine can start in.
#[derive(Debug)]
pub(super) struct Ovmf {
    folder: PathBuf,
}

impl Ovmf {
    pub(super) fn code(&self) -> PathBuf {
        self.folder.join(CODE)
    }

    pub(super) fn variables(&self) -> PathBuf {
        self.folder.join(VARIABLES)
    }

    fn in_folder(folder: PathBuf) -> Option<Self> {
        let found = Self { folder };
        (found.code().is_file() && found.variables().is_file()).then_some(found)
    }

    fn find() -> Result<Option<Self>> {
        if let Some(found) = Self::in_folder(PathBuf::from("/").join(FOLDER)) {
            return Ok(Some(found));
        }
        let cache = paths::make_dir(PACKAGE)?;
        let Ok(name) = fs::read_to_string(cache.join("current")) else {
            return Ok(None);
        };
        Ok(Self::in_folder(cache.join(name.trim()).join(FOLDER)))
    }

    /// Finds it or unpacks it.
    pub(super) fn get() -> Result<Self> {
        if let Some(found) = Self::find()? {
            return Ok(found);
        }
        let cache = paths::make_dir(PACKAGE)?;
        let _lock = step::lock(&cache.join("lock"))?;
        if let Some(found) = Self::find()? {
            return Ok(found);
        }
        let apt = Apt::open()?;
        let version = apt
            .candidate(PACKAGE)?
            .with_context(|| format!("the mirror has no package {PACKAGE}"))?;
        let package = apt.download(PACKAGE, &version)?;
        let name = paths::file_name(&version);
        let into = cache.join(&name);
        apt::unpack(&[package], &into, &cache.join("unpack.log"))?;
        ensure!(
            Self::in_folder(into.join(FOLDER)).is_some(),
            "the package {PACKAGE} {version} has no {FOLDER}/{CODE}"
        );
        fs::write(cache.join("current"), name)?;
        Self::find()?.context("the firmware was unpacked and is not there")
    }
}
