//! Kernel modules: the kernel's own, and those of this tree built against it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::kernel::{self, Kernel, VARIANTS, Variant};
use crate::key::{Key, files_below};
use crate::step::{self, Step};
use crate::{groups, paths, tools};

/// A module with Rust in it builds `core`: minutes on a busy machine.
const BUILD_LIMIT: Duration = Duration::from_secs(900);
/// Part of every key: change it when the recipe below changes what comes out.
const RECIPE: &str = "module-4";
/// What an old sparse does not know of newer kernels.
const SPARSE_HEADER: &str = include_str!("../../../../kshim/scripts/sparse.h");

/// A module of this tree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Module {
    /// What tests call it.
    pub(crate) name: &'static str,
    /// The folder whose Makefile builds it with `make KDIR=...`, from the root.
    folder: &'static str,
    /// Everything that the build reads, from the root.
    inputs: &'static [&'static str],
    /// Its Makefile takes `MO=` for a folder to build in, and leaves the tree clean. For a
    /// module that needs the whole workspace.
    in_place: bool,
    /// The kernels that it works on.
    pub(crate) kernels: &'static [Variant],
    /// The kernel's source has most of it.
    driver: Option<Driver>,
}

/// A driver of the kernel with patches that the kernel is built without.
#[derive(Debug, Clone, Copy)]
struct Driver {
    /// Where it is in the kernel's source. The module's folder has the files that build it there.
    folder: &'static str,
    /// What its files include, by their own paths.
    includes: &'static [&'static str],
    /// The folder of the patches, from the root.
    series: &'static str,
}

/// The kernels with our patches.
const BUILT: &[Variant] = &[Variant::Fast, Variant::Debug];

/// The modules that [`crate::machine::Options::modules`] may name.
pub(crate) const MODULES: &[Module] = &[
    Module {
        name: "dcbm",
        folder: "tests/modules/dcbm",
        inputs: &["tests/modules/dcbm"],
        in_place: false,
        kernels: BUILT,
        driver: None,
    },
    Module {
        name: "testmig",
        folder: "tests/modules/testmig",
        inputs: &["tests/modules/testmig"],
        in_place: false,
        kernels: BUILT,
        driver: None,
    },
    Module {
        name: "testtier",
        folder: "tests/modules/testtier",
        inputs: &["tests/modules/testtier"],
        in_place: false,
        kernels: BUILT,
        driver: None,
    },
    Module {
        name: "testdma",
        folder: "tests/modules/testdma",
        inputs: &["tests/modules/testdma"],
        in_place: false,
        kernels: BUILT,
        driver: None,
    },
    Module {
        name: "ptdma_fixed",
        folder: "tests/modules/ptdma_fixed",
        inputs: &["tests/modules/ptdma_fixed", "kshim/patches/stock-ptdma"],
        in_place: false,
        kernels: BUILT,
        driver: Some(Driver {
            folder: "drivers/dma/amd/ptdma",
            includes: &[
                "drivers/dma/amd/ae4dma",
                "drivers/dma/dmaengine.h",
                "drivers/dma/virt-dma.h",
            ],
            series: "kshim/patches/stock-ptdma",
        }),
    },
    Module {
        name: "testfail",
        folder: "tests/modules/testfail",
        inputs: &["tests/modules/testfail"],
        in_place: false,
        kernels: BUILT,
        driver: None,
    },
    Module {
        name: "testklp",
        folder: "tests/modules/testklp",
        inputs: &["tests/modules/testklp"],
        in_place: false,
        // It is of use where migration calls folio_mc_copy(), and nothing but a livepatch is ours.
        kernels: &[Variant::Debian612, Variant::Debian73],
        driver: None,
    },
    Module {
        name: "kshim",
        folder: "kshim",
        inputs: &[
            "kshim",
            "ptdma",
            "batch-copy",
            "Cargo.toml",
            "Cargo.lock",
            "rust-toolchain.toml",
        ],
        in_place: true,
        kernels: &VARIANTS,
        driver: None,
    },
];

impl Driver {
    /// Copies the driver to `into`, patches it and adds what builds it; returns its folder there.
    fn prepare(&self, makefiles: &Path, into: &Path) -> Result<PathBuf> {
        let paths: Vec<&str> = [self.folder]
            .into_iter()
            .chain(self.includes.iter().copied())
            .collect();
        let folder = kernel::patched_excerpt(&paths, self.series, into)?.join(self.folder);
        mirror(makefiles, &folder)?;
        Ok(folder)
    }
}

/// The kernel's own modules.
pub(super) fn stock(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    objects(&kernel.modules())
}

/// Builds a module of this tree, or takes it from the cache; returns its `.ko` files.
pub(crate) fn build(name: &str, kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let module = MODULES
        .iter()
        .find(|module| module.name == name)
        .with_context(|| format!("no module is called {name}"))?;
    let root = paths::workspace();
    let sparse = tools::find_program("sparse");
    let mut key = Key::new(RECIPE);
    key.text(kernel.key()).text(module.folder);
    // What was built unchecked is built again once it can be checked.
    key.text(if sparse.is_some() { "checked" } else { "" });
    for input in module.inputs {
        let path = root.join(input);
        if path.is_dir() {
            key.text(input).tree(&path)?;
        } else if path.is_file() {
            key.text(input).file(&path)?;
        }
    }
    let work = paths::make_dir("modules")?;
    let folder = work.join(key.finish());
    if folder.join("done").is_file() {
        return objects(&folder);
    }
    let _lock = step::lock(&work.join("lock"))?;

    let usable_tree = || match paths::fits_make(&root) {
        true => Ok(root.clone()),
        false => copy_of_tree(&root, &work),
    };
    // The tree stays clean: a copy is built, or a folder for the output is given.
    let (source, output) = if module.in_place && kernel.is_packaged() {
        // Kernels before 6.13 build modules only where their sources are.
        let place = work.join(format!("stock-{}", kernel.key()));
        let source = packaged_source(&usable_tree()?.join(module.folder), &work, &place)?;
        (source.clone(), source)
    } else if module.in_place {
        let tree = usable_tree()?;
        // One for each tree: cargo tells crates apart by where they are in their tree, and whether
        // they have changed by times, so that in a shared folder it takes another tree's.
        let place = Key::new(kernel.key())
            .text(&tree.to_string_lossy())
            .finish();
        let output = work.join(format!("out-{name}-{place}"));
        fs::create_dir_all(&output)?;
        (tree.join(module.folder), output)
    } else {
        let copy = work.join(format!("src-{name}"));
        for input in module.inputs {
            mirror(&root.join(input), &copy.join(input))?;
        }
        let mut source = copy.join(module.folder);
        if let Some(driver) = &module.driver {
            source = driver.prepare(&source, &copy.join("kernel"))?;
        }
        (source.clone(), source)
    };
    for old in objects(&output)? {
        fs::remove_file(old)?;
    }
    fs::create_dir_all(&folder)?;
    let log = folder.join("log");
    let bar = step::spinner(&format!("module {name}"));
    let mut command = groups::bound_command("make");
    command
        .arg("-C")
        .arg(&source)
        .arg(format!("KDIR={}", kernel.headers().display()))
        .env("LC_ALL", "C")
        .env_remove("MAKEFLAGS")
        .env_remove("ARCH")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    if module.in_place && source != output {
        command.arg(format!("MO={}", output.display()));
    }
    command.arg("W=1");
    if let Some(compiler) = kernel.compiler() {
        command.arg(format!("CC={}", compiler.display()));
    }
    if kernel.is_packaged() {
        // What these ask of a machine that installs them: pahole, dpkg-dev.
        command.args([
            "CONFIG_DEBUG_INFO_BTF_MODULES=",
            "DEB_BUILD_ARCH=amd64",
            "DEB_HOST_ARCH=amd64",
        ]);
    }
    // Sparse is for the newest kernel's headers: older ones have complaints of their own.
    match sparse.filter(|_| !kernel.is_packaged()) {
        Some(sparse) => {
            let header = work.join("sparse.h");
            if fs::read_to_string(&header).ok().as_deref() != Some(SPARSE_HEADER) {
                fs::write(&header, SPARSE_HEADER)?;
            }
            let checker = format!("{} -include {}", sparse.display(), header.display());
            command.args(["C=2", &format!("CHECK={checker}")]);
        }
        None if kernel.is_packaged() => {}
        None => eprintln!("SKIPPED: sparse is not installed: module {name} is not checked with it"),
    }
    tools::equip(&mut command)?;
    let what = format!("module {name}");
    let mut complaints = Vec::new();
    Step::new(&what, BUILD_LIMIT, &log).run_lines(&mut command, |line| {
        if is_complaint(line) {
            complaints.push(line.to_owned());
        }
    })?;
    bar.finish_and_clear();
    if !complaints.is_empty() {
        // Or the next make finds them up to date, and is silent.
        forget_objects(&output)?;
        bail!(
            "{what} does not build in silence:\n{}",
            complaints.join("\n")
        );
    }
    let built = objects(&output)?;
    if built.is_empty() {
        bail!("{what}: make left no .ko in {}", output.display());
    }
    for object in &built {
        let file = object.file_name().context("a module without a name")?;
        fs::copy(object, folder.join(file))?;
    }
    fs::write(folder.join("done"), "")?;
    objects(&folder)
}

/// The sources that our Debian package brings, copied to `place`: what DKMS builds on a machine
/// without Rust.
fn packaged_source(module: &Path, work: &Path, place: &Path) -> Result<PathBuf> {
    // One for each tree, as for the output of a module above.
    let key = Key::new("package").text(&module.to_string_lossy()).finish();
    let output = work.join(format!("package-{key}"));
    fs::create_dir_all(&output)?;
    let bar = step::spinner("package: Rust library");
    let mut command = groups::bound_command("make");
    command
        .arg("-C")
        .arg(module.join("package"))
        .arg("source")
        .arg(format!("OUT={}", output.display()))
        .env_remove("MAKEFLAGS");
    tools::equip(&mut command)?;
    Step::new("package", BUILD_LIMIT, &output.join("log")).run(&mut command)?;
    bar.finish_and_clear();
    let mut found = fs::read_dir(&output)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.join("dkms.conf").is_file());
    let source = found.next().context("the package has no sources")?;
    match fs::remove_dir_all(place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    mirror(&source, place)?;
    Ok(place.to_path_buf())
}

/// Whether a line of make's output is a complaint about what is built: by the compilers, sparse,
/// objtool or modpost. Make itself warns of clocks, and Kbuild of a compiler that is newer than
/// the kernel, and of tools that the build does not use.
fn is_complaint(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    let complains = ["warning:", "error:", "specified, but sparse"]
        .iter()
        .any(|word| line.contains(word));
    let by_make = line.starts_with("make:") || line.starts_with("make[");
    let known = ["the compiler differs", "pahole version differs"];
    complains && !by_make && !known.iter().any(|words| line.contains(words))
}

/// Removes the objects directly in a folder.
fn forget_objects(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "o") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// The `.ko` files directly in a folder, sorted.
fn objects(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "ko"))
        .collect();
    found.sort();
    Ok(found)
}

/// The whole tree, without what was built from it, where make can take its path.
fn copy_of_tree(root: &Path, work: &Path) -> Result<PathBuf> {
    let copy = work.join("tree");
    mirror(root, &copy)?;
    for file in files_below(&copy)? {
        if !root.join(file.strip_prefix(&copy)?).is_file() {
            fs::remove_file(file)?;
        }
    }
    Ok(copy)
}

/// Brings a copy up to date, rewriting only what differs, so that make and cargo
/// rebuild only that.
fn mirror(from: &Path, to: &Path) -> Result<()> {
    if from.is_file() {
        return update(from, to);
    }
    if !from.is_dir() {
        return Ok(());
    }
    for file in files_below(from)? {
        let relative = file.strip_prefix(from)?;
        update(&file, &to.join(relative))?;
    }
    Ok(())
}

fn update(from: &Path, to: &Path) -> Result<()> {
    let content = fs::read(from)?;
    if fs::read(to).is_ok_and(|old| old == content) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(())
}

/// The files from which modprobe knows what depends on what.
pub(super) fn indices(modules: &[PathBuf], release: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let root = tempfile::tempdir()?;
    let folder = root.path().join("lib/modules").join(release);
    fs::create_dir_all(&folder)?;
    for module in modules {
        let name = module.file_name().context("a module without a name")?;
        symlink(fs::canonicalize(module)?, folder.join(name))?;
    }
    let mut command =
        Command::new(tools::find_program("depmod").unwrap_or_else(|| PathBuf::from("depmod")));
    command.arg("-b").arg(root.path()).arg(release);
    tools::equip(&mut command)?;
    step::output(&mut command)?;
    ["modules.dep", "modules.alias", "modules.symbols"]
        .into_iter()
        .map(|name| Ok((name.to_owned(), fs::read(folder.join(name))?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_module_of_the_tests_has_a_folder_of_its_name() -> Result<()> {
        let mut listed: Vec<&str> = Vec::new();
        for module in MODULES {
            let makefile = paths::workspace().join(module.folder).join("Makefile");
            assert!(makefile.is_file(), "{}", makefile.display());
            if let Some(folder) = module.folder.strip_prefix("tests/modules/") {
                assert_eq!(folder, module.name);
                listed.push(folder);
            }
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(paths::workspace().join("tests/modules"))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        listed.sort_unstable();
        found.sort_unstable();
        assert_eq!(listed, found);
        Ok(())
    }

    #[test]
    fn complaints_are_told_from_other_output() {
        for line in [
            "pci.c:12:5: warning: symbol 'x' was not declared. Should it be static?",
            "pci.c:12:5: error: bad constant expression",
            "x.o: warning: objtool: f+0x12: unreachable instruction",
            "WARNING: modpost: missing MODULE_DESCRIPTION() in x.o",
            "warning: unused variable: `x`",
            "Makefile:1311: C=2 specified, but sparse is not available or not up to date",
        ] {
            assert!(is_complaint(line), "{line}");
        }
        for line in [
            "  CC [M]  pci.o",
            "  CHECK   pci.c",
            "make[2]: warning: Clock skew detected.",
            "warning: the compiler differs from the one used to build the kernel",
        ] {
            assert!(!is_complaint(line), "{line}");
        }
    }

    #[test]
    fn a_mirror_rewrites_only_what_differs() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (from, to) = (folder.path().join("a b"), folder.path().join("c"));
        fs::create_dir_all(from.join("x"))?;
        fs::write(from.join("x/1"), "one")?;
        fs::write(from.join("2"), "two")?;
        mirror(&from, &to)?;
        let stamp = || fs::metadata(to.join("2")).and_then(|meta| meta.modified());
        let before = stamp()?;
        std::thread::sleep(Duration::from_millis(20));
        fs::write(from.join("x/1"), "uno")?;
        mirror(&from, &to)?;
        assert_eq!(fs::read_to_string(to.join("x/1"))?, "uno");
        assert_eq!(before, stamp()?);
        Ok(())
    }

    #[test]
    fn a_copy_of_the_tree_follows_it() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let root = folder.path().join("a b");
        fs::create_dir_all(root.join("x"))?;
        fs::write(root.join("x/old"), "1")?;
        let copy = copy_of_tree(&root, folder.path())?;
        assert!(copy.join("x/old").is_file());
        fs::rename(root.join("x/old"), root.join("x/new"))?;
        copy_of_tree(&root, folder.path())?;
        assert!(!copy.join("x/old").exists() && copy.join("x/new").is_file());
        Ok(())
    }
}
