//! The guest's initramfs: busybox, the agent, modules, test programs.

mod busybox;
mod modules;
mod programs;
mod selftests;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use cpio::newc::{Builder, trailer};

pub(crate) use modules::{MODULES, build as build_module};

use crate::kernel::Kernel;
use crate::step;

/// Builds the guest's programs, which every image has.
pub(crate) fn build_programs() -> Result<()> {
    programs::build().map(drop)
}

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const PLAIN: u32 = 0o100_644;
const LINK: u32 = 0o120_777;

/// An initramfs on disk.
#[derive(Debug)]
pub(crate) struct Image {
    path: PathBuf,
}

impl Image {
    /// Builds the programs and the named modules of this tree and packs them, with the
    /// kernel's own tests of migration if they are asked for.
    pub(crate) fn build(
        kernel: &Kernel,
        modules: &[&str],
        selftests: bool,
        path: &Path,
    ) -> Result<Self> {
        let mut programs = programs::build()?;
        if selftests {
            programs.others.extend(selftests::build()?);
        }
        let busybox = busybox::get()?;
        let applets = step::output(Command::new(&busybox).arg("--list"))?;
        let mut modules_found = modules::stock(kernel)?;
        for name in modules {
            modules_found.extend(modules::build(name, kernel)?);
        }

        let mut archive = Archive::create(path)?;
        for folder in [
            "bin",
            "dev",
            "etc",
            "lib",
            "lib/modules",
            "mnt",
            "proc",
            "root",
            "run",
            "sys",
            "tmp",
            "usr",
            "var",
        ] {
            archive.folder(folder)?;
        }
        // One folder of programs under all the names that paths may use.
        for link in ["sbin", "usr/bin", "usr/sbin"] {
            archive.link(link, "/bin")?;
        }
        archive.file("bin/busybox", &fs::read(&busybox)?, EXECUTABLE)?;
        for applet in applets.lines().filter(|name| *name != "busybox") {
            archive.link(&format!("bin/{applet}"), "busybox")?;
        }
        archive.file("init", &fs::read(&programs.agent)?, EXECUTABLE)?;
        for program in &programs.others {
            archive.file(
                &format!("bin/{}", name_of(program)?),
                &fs::read(program)?,
                EXECUTABLE,
            )?;
        }

        let release = kernel.release();
        archive.folder(&format!("lib/modules/{release}"))?;
        archive.link("modules", &format!("/lib/modules/{release}"))?;
        for module in &modules_found {
            let name = name_of(module)?;
            archive.file(
                &format!("lib/modules/{release}/{name}"),
                &fs::read(module)?,
                PLAIN,
            )?;
        }
        for (name, content) in modules::indices(&modules_found, release)? {
            archive.file(&format!("lib/modules/{release}/{name}"), &content, PLAIN)?;
        }
        archive.finish()?;
        Ok(Self {
            path: path.to_path_buf(),
        })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn name_of(path: &Path) -> Result<String> {
    Ok(path
        .file_name()
        .with_context(|| format!("{} has no file name", path.display()))?
        .to_string_lossy()
        .into_owned())
}

/// A "newc" archive, which the kernel unpacks; not compressed, because an emulated
/// processor would take longer to unpack it than to copy it.
struct Archive {
    out: BufWriter<File>,
    inode: u32,
}

impl Archive {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path)
            .with_context(|| format!("cannot create the guest image {}", path.display()))?;
        Ok(Self {
            out: BufWriter::new(file),
            inode: 1,
        })
    }

    fn entry(&mut self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        let size = u32::try_from(content.len())
            .with_context(|| format!("{name} is too large for the guest image"))?;
        let mut writer = Builder::new(name)
            .mode(mode)
            .ino(self.inode)
            .nlink(1)
            .write(&mut self.out, size);
        writer.write_all(content)?;
        writer.finish()?;
        self.inode += 1;
        Ok(())
    }

    fn folder(&mut self, name: &str) -> Result<()> {
        self.entry(name, &[], DIRECTORY)
    }

    fn file(&mut self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        self.entry(name, content, mode)
    }

    fn link(&mut self, name: &str, target: &str) -> Result<()> {
        self.entry(name, target.as_bytes(), LINK)
    }

    fn finish(mut self) -> io::Result<()> {
        trailer(&mut self.out)?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_what_cpio_reads() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("image");
        let mut archive = Archive::create(&path)?;
        archive.folder("bin")?;
        archive.file("bin/a", b"content", EXECUTABLE)?;
        archive.link("bin/b", "a")?;
        archive.finish()?;

        let mut file = File::open(&path)?;
        let mut seen = Vec::new();
        loop {
            let reader = cpio::NewcReader::new(file)?;
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = Vec::new();
            file = reader.to_writer(&mut content)?;
            seen.push((name, mode, content));
        }
        assert_eq!(
            seen,
            [
                ("bin".to_owned(), DIRECTORY, vec![]),
                ("bin/a".to_owned(), EXECUTABLE, b"content".to_vec()),
                ("bin/b".to_owned(), LINK, b"a".to_vec()),
            ]
        );
        Ok(())
    }
}
