//! The compiler of a kernel that is newer than this machine's, unpacked beside its headers.
//!
//! Debian builds its newest kernels with the compiler of a newer release, whose programs need that
//! release's C library. So each of them is started by that library's own loader, by a script in its
//! place.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::key::files_below;

/// Below the root of the packages.
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// The scripts that stand for the compiler and for what it starts itself.
const SCRIPTS: &str = "wrap";
/// Of the suffixes by which a package has one program for each architecture, those of this one. The
/// program without suffix chooses among them by its own place, which the loader hides.
const OWN: [&str; 2] = [".real-x86", ".real-lsb-64"];
/// What a program is called that has a script in its place.
const MOVED: &str = ".elf";

/// The compiler among the headers of a kernel, if they brought one.
pub(super) fn find(root: &Path) -> Option<PathBuf> {
    let script = root.join(SCRIPTS).join("gcc");
    script.is_file().then_some(script)
}

/// Makes the programs of an unpacked root start where it will be, `place`; `gcc` is the compiler's
/// name there, as in `gcc-14`.
pub(super) fn wrap(root: &Path, place: &Path, gcc: &str) -> Result<()> {
    ensure!(
        root.join(LOADER).is_file(),
        "the compiler's packages bring no loader"
    );
    let (_, number) = gcc
        .rsplit_once('-')
        .context("a compiler without a number")?;
    let scripts = root.join(SCRIPTS);
    fs::create_dir_all(&scripts)?;
    let first = format!("usr/libexec/gcc/x86_64-linux-gnu/{number}/cc1");
    script(&scripts.join("cc1"), place, &first, "")?;
    let driver = format!("usr/bin/x86_64-linux-gnu-{gcc}");
    let ours = format!("-B{}/ ", place.join(SCRIPTS).display());
    script(&scripts.join("gcc"), place, &driver, &ours)?;
    for program in [&first, &driver] {
        ensure!(
            root.join(program).is_file(),
            "the packages bring no {program}"
        );
    }

    let mut wrapped = 0;
    for folder in fs::read_dir(root.join("usr/lib"))? {
        let folder = folder?;
        if !folder
            .file_name()
            .to_string_lossy()
            .starts_with("linux-kbuild-")
        {
            continue;
        }
        for program in files_below(&folder.path())? {
            let name = program.to_string_lossy().into_owned();
            if name.contains(".real-") || !is_program(&program)? {
                continue;
            }
            let moved = PathBuf::from(format!("{name}{MOVED}"));
            fs::rename(&program, &moved)?;
            let mut own = OWN.iter().map(|own| PathBuf::from(format!("{name}{own}")));
            let real = own.find(|own| own.is_file()).unwrap_or(moved);
            let real = real.strip_prefix(root)?.to_string_lossy().into_owned();
            script(&program, place, &real, "")?;
            wrapped += 1;
        }
    }
    ensure!(wrapped > 0, "the headers bring no programs");
    Ok(())
}

/// A script that starts a program of the root by the root's loader.
fn script(at: &Path, place: &Path, program: &str, arguments: &str) -> Result<()> {
    let text = format!(
        "#!/bin/sh\nexec {} --library-path {} {} {arguments}\"$@\"\n",
        place.join(LOADER).display(),
        place.join(LIBRARIES).display(),
        place.join(program).display()
    );
    fs::write(at, text).with_context(|| format!("cannot write {}", at.display()))?;
    fs::set_permissions(at, Permissions::from_mode(0o755))?;
    Ok(())
}

/// Whether a file is a program: it may be executed, and is no script.
fn is_program(path: &Path) -> Result<bool> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o100 == 0 {
        return Ok(false);
    }
    Ok(fs::read(path)?.starts_with(b"\x7fELF"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_a_root_get_scripts_and_nothing_else_does() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let root = folder.path();
        let kbuild = "usr/lib/linux-kbuild-7.3/scripts";
        let put = |name: &str, text: &str, mode: u32| -> Result<()> {
            let path = root.join(name);
            fs::create_dir_all(path.parent().context("no folder")?)?;
            fs::write(&path, text)?;
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
            Ok(())
        };
        assert!(wrap(root, root, "gcc-14").is_err(), "no loader");
        put(LOADER, "", 0o755)?;
        put("usr/libexec/gcc/x86_64-linux-gnu/14/cc1", "", 0o755)?;
        put("usr/bin/x86_64-linux-gnu-gcc-14", "", 0o755)?;
        for name in [
            "fixdep",
            "modpost",
            "modpost.real-lsb-64",
            "modpost.real-msb-64",
        ] {
            put(&format!("{kbuild}/{name}"), "\x7fELF", 0o755)?;
        }
        put(&format!("{kbuild}/headers.sh"), "#!/bin/sh\n", 0o755)?;
        put(&format!("{kbuild}/data"), "\x7fELF", 0o644)?;
        assert!(find(root).is_none());
        wrap(root, Path::new("/there"), "gcc-14")?;
        assert_eq!(find(root), Some(root.join("wrap/gcc")));
        let text = |name: &str| fs::read_to_string(root.join(kbuild).join(name));
        assert!(text("fixdep")?.contains("/there/usr/lib/linux-kbuild-7.3/scripts/fixdep.elf"));
        assert!(text("modpost")?.contains("scripts/modpost.real-lsb-64 \"$@\""));
        assert_eq!(text("modpost.real-msb-64")?, "\x7fELF");
        assert_eq!(text("headers.sh")?, "#!/bin/sh\n");
        assert_eq!(text("data")?, "\x7fELF");
        Ok(())
    }
}
