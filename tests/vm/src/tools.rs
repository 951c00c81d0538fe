//! Build tools of the kernel: the machine's, or its own release's unpacked privately.
//!
//! A user without root gets what is missing this way; a compiler with a C library is
//! the only thing that must be there already, and who builds Rust has one.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::apt::{self, Apt};
use crate::key::Key;
use crate::{paths, step};

/// How the presence of a package is seen.
enum Sign {
    /// A program of this name.
    Program(&'static str),
    /// A C header that the compiler finds.
    Header(&'static str),
    /// Perl with the modules that the kernel's checkpatch loads: `perl-base` alone has not all.
    CheckpatchPerl,
}

/// A Debian package and what is used of it.
struct Tool {
    package: &'static str,
    sign: Sign,
}

const TOOLS: &[Tool] = &[
    program("bc", "bc"),
    program("bison", "bison"),
    program("flex", "flex"),
    program("kmod", "depmod"),
    Tool {
        package: "libelf-dev",
        sign: Sign::Header("gelf.h"),
    },
    // For the kernel's own tests of migration.
    Tool {
        package: "libnuma-dev",
        sign: Sign::Header("numa.h"),
    },
    program("make", "make"),
    program("patch", "patch"),
    program("xz-utils", "xz"),
];

/// What cannot be unpacked privately.
const COMPILER: &[Tool] = &[
    program("gcc", "gcc"),
    Tool {
        package: "libc6-dev",
        sign: Sign::Header("stdio.h"),
    },
];

/// What some check needs, and what is left out without it. Nothing else fails.
const CHECKERS: &[(Tool, &str)] = &[
    (
        program("sparse", "sparse"),
        "kernel modules are built without sparse's checks",
    ),
    (
        Tool {
            package: "perl",
            sign: Sign::CheckpatchPerl,
        },
        "`cargo vm patches` leaves checkpatch out",
    ),
    (
        program("python3", "python3"),
        "`cargo vm patches` leaves kernel-doc comments unchecked",
    ),
    (
        program("valgrind", "valgrind"),
        "`cargo bench` counts no instructions on the host",
    ),
];

/// Debian packages to install on a machine where one is root; CI installs these. The
/// static busybox is for the guest, the keyring for apt to check what it fetches.
pub(crate) const PACKAGES: &[&str] = &[
    "bc",
    "bison",
    "busybox-static",
    "debian-archive-keyring",
    "flex",
    "gcc",
    "kmod",
    "libc6-dev",
    "libelf-dev",
    "libnuma-dev",
    "make",
    "patch",
    "perl",
    "python3",
    "sparse",
    "valgrind",
    "xz-utils",
];

const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Where a package has its programs.
const PROGRAMS: &[&str] = &["usr/bin", "usr/sbin", "bin", "sbin"];

const fn program(package: &'static str, name: &'static str) -> Tool {
    Tool {
        package,
        sign: Sign::Program(name),
    }
}

impl Tool {
    fn present(&self) -> bool {
        match self.sign {
            Sign::Program(name) => find_program(name).is_some(),
            Sign::Header(name) => has_header(name),
            Sign::CheckpatchPerl => perl_takes_checkpatch(),
        }
    }
}

/// Packages whose tools the machine lacks: (package, can be unpacked privately).
pub(crate) fn missing() -> Vec<(&'static str, bool)> {
    let lacks = |tools: &'static [Tool], private: bool| {
        tools
            .iter()
            .filter(|tool| !tool.present())
            .map(move |tool| (tool.package, private))
    };
    lacks(COMPILER, false).chain(lacks(TOOLS, true)).collect()
}

/// Packages of checkers that the machine lacks: (package, what is left out without it).
pub(crate) fn missing_checkers() -> Vec<(&'static str, &'static str)> {
    CHECKERS
        .iter()
        .filter(|(tool, _)| !tool.present())
        .map(|(tool, left_out)| (tool.package, *left_out))
        .collect()
}

/// Gives a command the private tools, if any are needed.
///
/// # Errors
/// There is no compiler, or what is missing cannot be fetched.
pub(crate) fn equip(command: &mut Command) -> Result<()> {
    let Some(prefix) = prefix()? else {
        return Ok(());
    };
    let before = |name: &str, folders: &[&str]| -> OsString {
        let mut value = OsString::new();
        for folder in folders {
            value.push(prefix.join(folder));
            value.push(":");
        }
        // An empty last part would mean the current folder.
        match env::var_os(name).filter(|old| !old.is_empty()) {
            Some(old) => value.push(old),
            None => value.push(prefix),
        }
        value
    };
    command
        .env("PATH", before("PATH", PROGRAMS))
        .env(
            "C_INCLUDE_PATH",
            before(
                "C_INCLUDE_PATH",
                &["usr/include", "usr/include/x86_64-linux-gnu"],
            ),
        )
        .env("LIBRARY_PATH", before("LIBRARY_PATH", &[LIBRARIES]))
        .env(
            "LD_LIBRARY_PATH",
            before("LD_LIBRARY_PATH", &[LIBRARIES, "lib/x86_64-linux-gnu"]),
        );
    // These know their own files by an absolute path.
    if prefix.join("usr/share/bison").is_dir() {
        command.env("BISON_PKGDATADIR", prefix.join("usr/share/bison"));
    }
    if prefix.join("usr/bin/m4").is_file() {
        command.env("M4", prefix.join("usr/bin/m4"));
    }
    Ok(())
}

/// The private tools, unpacked when needed; `None` when the machine has all.
fn prefix() -> Result<Option<&'static Path>> {
    static PREFIX: OnceLock<Option<PathBuf>> = OnceLock::new();
    if let Some(known) = PREFIX.get() {
        return Ok(known.as_deref());
    }
    let missing = missing();
    if let Some((package, _)) = missing.iter().find(|(_, private)| !private) {
        bail!("a C compiler is needed: install the package {package} (`cargo vm doctor`)");
    }
    let found = if missing.is_empty() {
        None
    } else {
        let packages: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
        Some(unpack(&packages)?)
    };
    Ok(PREFIX.get_or_init(|| found).as_deref())
}

fn unpack(packages: &[&str]) -> Result<PathBuf> {
    let mut key = Key::new("tools-2");
    key.text(&apt::own_release());
    for package in packages {
        key.text(package);
    }
    // Not below the cache: the paths end up in variables that split at colons.
    let folder = paths::make_dir("tools")?;
    let prefix = folder.join(key.finish());
    if prefix.join("complete").is_file() {
        return Ok(prefix);
    }
    let _lock = step::lock(&folder.join("lock"))?;
    if prefix.join("complete").is_file() {
        return Ok(prefix);
    }
    let files = Apt::open_own()?.download_with_dependencies(packages)?;
    let _ = fs::remove_dir_all(&prefix);
    apt::unpack(&files, &prefix, &folder.join("unpack.log"))?;
    repair_links(&prefix.join(LIBRARIES))?;
    for folder in PROGRAMS {
        keep_links_inside(&prefix, &prefix.join(folder))?;
    }
    fs::write(prefix.join("complete"), "")?;
    Ok(prefix)
}

/// A development package's link to a library that the machine has already points into
/// the prefix, where nothing is: point it to the machine's.
fn repair_links(folder: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        let own = Path::new("/").join(LIBRARIES).join(&target);
        if !path.exists() && own.exists() {
            fs::remove_file(&path)?;
            symlink(&own, &path).with_context(|| format!("cannot link {}", path.display()))?;
        }
    }
    Ok(())
}

/// A program that is a link by an absolute path, as `depmod` is to `/bin/kmod`, is one of the
/// machine, which does not have it: point it to the one in the prefix.
fn keep_links_inside(prefix: &Path, folder: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        let Ok(target) = target.strip_prefix("/") else {
            continue;
        };
        let inside = prefix.join(target);
        if inside.exists() {
            fs::remove_file(&path)?;
            symlink(&inside, &path).with_context(|| format!("cannot link {}", path.display()))?;
        }
    }
    Ok(())
}

/// Some programs are in folders that only root's `PATH` has.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    which::which(name).ok().or_else(|| {
        ["/usr/sbin", "/sbin"]
            .iter()
            .map(|folder| Path::new(folder).join(name))
            .find(|path| path.is_file())
    })
}

/// Whether perl is there, with the modules that checkpatch loads.
pub(crate) fn perl_takes_checkpatch() -> bool {
    let perl = Command::new("perl")
        .args(["-MPOSIX", "-MTerm::ANSIColor", "-MEncode", "-e", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    perl.is_ok_and(|status| status.success())
}

fn has_header(name: &str) -> bool {
    let compiler = Command::new("gcc")
        .args(["-E", "-include", name, "-x", "c", "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    compiler.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_seen() {
        assert!(program("bash", "sh").present());
        assert!(!program("none", "no-such-program-here").present());
        assert!(!has_header("no/such/header.h"));
    }

    #[test]
    fn everything_needed_is_in_the_list_to_install() {
        let checkers = CHECKERS.iter().map(|(tool, _)| tool);
        for tool in TOOLS.iter().chain(COMPILER).chain(checkers) {
            assert!(PACKAGES.contains(&tool.package), "{}", tool.package);
        }
    }

    #[test]
    fn an_absolute_link_to_a_program_stays_inside() -> Result<()> {
        let prefix = tempfile::tempdir()?;
        let (bin, sbin) = (prefix.path().join("bin"), prefix.path().join("sbin"));
        fs::create_dir_all(&bin)?;
        fs::create_dir_all(&sbin)?;
        fs::write(bin.join("only-here"), "")?;
        symlink("/bin/only-here", sbin.join("tool"))?;
        symlink("/bin/sh", sbin.join("shell"))?;
        keep_links_inside(prefix.path(), &sbin)?;
        assert!(sbin.join("tool").exists());
        assert_eq!(fs::read_link(sbin.join("shell"))?, Path::new("/bin/sh"));
        keep_links_inside(prefix.path(), &prefix.path().join("missing"))?;
        Ok(())
    }

    #[test]
    fn a_dangling_link_finds_the_machines_library() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let link = folder.path().join("libx.so");
        symlink("libc.so.6", &link)?;
        repair_links(folder.path())?;
        assert_eq!(
            link.exists(),
            Path::new("/").join(LIBRARIES).join("libc.so.6").exists()
        );
        repair_links(&folder.path().join("missing"))?;
        Ok(())
    }
}
