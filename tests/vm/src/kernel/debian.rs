//! A kernel as Debian ships it: unpacked from its package, not built and not changed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Info, Kernel, Variant, outputs};
use crate::apt::{self, Apt};
use crate::step;

/// The packages of the release's own kernel are called so, with the number of their interface
/// and the flavour behind it. It is the oldest kernel that this tree is to work on.
const PREFIX: &str = "linux-image-6.1.0-";
const FLAVOUR: &str = "-amd64";

/// Names the kernel that was unpacked, beside the finished kernels.
const CURRENT: &str = "debian";

/// What the machine and its tests need of the 4,000 modules: the agent's line to the host, what
/// hands functions to user space, and a driver to take a function from.
const MODULES: &[&str] = &[
    "irqbypass",
    "uio",
    "uio_pci_generic",
    "vfio",
    "vfio-pci",
    "vfio-pci-core",
    "vfio_iommu_type1",
    "vfio_virqfd",
    "virtio",
    "virtio_console",
    "virtio_pci",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_ring",
];

/// The kernel, if the cache has it.
pub(super) fn find() -> Result<Option<Kernel>> {
    match fs::read_to_string(outputs()?.join(CURRENT)) {
        Ok(key) => Kernel::load(key.trim()),
        Err(_) => Ok(None),
    }
}

/// Takes the kernel from the cache, or fetches and unpacks it.
pub(super) fn get() -> Result<Kernel> {
    if let Some(found) = find()? {
        return Ok(found);
    }
    let out = outputs()?;
    let _lock = step::lock(&out.join("debian.lock"))?;
    if let Some(found) = find()? {
        return Ok(found);
    }
    let apt = Apt::open_stock()?;
    let names = apt.names(PREFIX)?;
    let package = newest(&names).context("the mirror has no kernel 6.1 of Debian")?;
    let version = apt
        .candidate(package)?
        .with_context(|| format!("the mirror has no package {package}"))?;
    let file = apt.download(package, &version)?;
    let whole = tempfile::tempdir_in(&out)?;
    apt::unpack(&[file], whole.path(), &out.join("debian-unpack.log"))?;
    let bar = step::spinner("kernel (debian)");
    let release = package.trim_start_matches("linux-image-");
    let staging = tempfile::tempdir_in(&out)?;
    keep(whole.path(), release, staging.path())
        .with_context(|| format!("{package} {version} is not as expected"))?;
    let info = Info {
        release: release.to_owned(),
        source: version,
        patches: Vec::new(),
        variant: Variant::Debian,
    };
    fs::write(
        staging.path().join("info.json"),
        serde_json::to_vec_pretty(&info)?,
    )?;
    let key = format!("debian-{release}");
    let folder = out.join(&key);
    let _ = fs::remove_dir_all(&folder);
    fs::rename(staging.keep(), folder)?;
    fs::write(out.join(CURRENT), &key)?;
    bar.finish_and_clear();
    find()?.context("the kernel that was just unpacked is gone")
}

/// The package of the newest interface: the flavour for PCs, signed.
fn newest(names: &[String]) -> Option<&str> {
    let number = |name: &str| -> Option<u32> {
        let rest = name.strip_prefix(PREFIX)?.strip_suffix(FLAVOUR)?;
        rest.parse().ok()
    };
    let numbered = names.iter().filter_map(|name| Some((number(name)?, name)));
    numbered.max().map(|(_, name)| name.as_str())
}

/// Moves what is needed from the whole package, a hundred times as large.
fn keep(whole: &Path, release: &str, into: &Path) -> Result<()> {
    fs::rename(
        whole.join(format!("boot/vmlinuz-{release}")),
        into.join("bzImage"),
    )?;
    fs::rename(
        whole.join(format!("boot/config-{release}")),
        into.join("config"),
    )?;
    let modules = into.join("modules");
    fs::create_dir_all(&modules)?;
    let folder = whole.join("lib/modules").join(release).join("kernel");
    let mut found = 0;
    for path in crate::key::files_below(&folder)? {
        if wanted(&path) {
            fs::rename(
                &path,
                modules.join(path.file_name().context("a module without a name")?),
            )?;
            found += 1;
        }
    }
    ensure!(
        found == MODULES.len(),
        "{found} of {} modules are there",
        MODULES.len()
    );
    Ok(())
}

fn wanted(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "ko")
        && path
            .file_stem()
            .and_then(|name| name.to_str())
            .is_some_and(|name| MODULES.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_plain_kernel_is_chosen() {
        let names: Vec<String> = [
            "linux-image-6.1.0-9-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-57-cloud-amd64",
            "linux-image-6.1.0-58-amd64-unsigned",
            "linux-image-6.1.0-59-amd64-dbg",
            "linux-image-6.1.0-60-rt-amd64",
        ]
        .map(str::to_owned)
        .into();
        assert_eq!(newest(&names), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(newest(&[]), None);
    }

    #[test]
    fn only_named_modules_are_kept() {
        for (path, expected) in [
            ("kernel/drivers/vfio/vfio.ko", true),
            ("kernel/drivers/vfio/mdev/mdev.ko", false),
            ("kernel/drivers/vfio/vfio.txt", false),
        ] {
            assert_eq!(wanted(Path::new(path)), expected, "{path}");
        }
    }
}
