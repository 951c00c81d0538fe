//! The guest's shell and tools, from the distribution.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::apt::{self, Apt};
use crate::{paths, step};

const PACKAGE: &str = "busybox-static";

/// The machine's static busybox, or one unpacked privately.
pub(super) fn get() -> Result<PathBuf> {
    if let Ok(path) = which::which("busybox")
        && is_static(&path)
    {
        return Ok(path);
    }
    let folder = paths::cache_dir("busybox")?;
    let _lock = step::lock(&folder.join("lock"))?;
    let program = folder.join("root/usr/bin/busybox");
    if is_static(&program) {
        return Ok(program);
    }
    let apt = Apt::open()?;
    let version = apt
        .candidate(PACKAGE)?
        .with_context(|| format!("the mirror has no package {PACKAGE}"))?;
    let package = apt.download(PACKAGE, &version)?;
    apt::unpack(&[package], &folder.join("root"), &folder.join("unpack.log"))?;
    ensure!(
        is_static(&program),
        "{PACKAGE} {version} has no static program at {}",
        program.display()
    );
    Ok(program)
}

/// Whether a program runs without a loader, i.e. in an image without libraries.
fn is_static(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| interpreter_segments(&bytes) == Some(0))
}

/// The number of PT_INTERP segments of a 64-bit little-endian ELF file.
fn interpreter_segments(elf: &[u8]) -> Option<usize> {
    // Offsets and values of the ELF-64 specification.
    const MAGIC: &[u8] = b"\x7fELF\x02\x01";
    const PT_INTERP: u32 = 3;
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    if !elf.starts_with(MAGIC) {
        return None;
    }
    let table = usize::try_from(number(0x20, 8)?).ok()?;
    let size = usize::try_from(number(0x36, 2)?).ok()?;
    let count = usize::try_from(number(0x38, 2)?).ok()?;
    let mut found = 0;
    for index in 0..count {
        let kind = number(table.checked_add(index.checked_mul(size)?)?, 4)?;
        if kind == u64::from(PT_INTERP) {
            found += 1;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_this_machine_has_a_loader_and_noise_is_no_program() {
        let test_binary = std::env::current_exe().expect("a test binary");
        let bytes = fs::read(test_binary).expect("readable");
        assert_eq!(interpreter_segments(&bytes), Some(1));
        assert_eq!(interpreter_segments(b"#!/bin/sh\n"), None);
        assert_eq!(interpreter_segments(b"\x7fELF\x02\x01\x01"), None);
    }
}
