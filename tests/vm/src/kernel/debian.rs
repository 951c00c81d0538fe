//! A kernel as Debian ships it: unpacked from its package, not built and not changed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{Info, Kernel, Variant, compiler, outputs};
use crate::apt::{self, Apt};
use crate::step;

/// Part of every name: change it when what is kept changes.
const RECIPE: &str = "stock-2";

/// Kernels of one series, as they are packaged.
struct Series {
    /// `linux-image-6.1.0-57-amd64`: what stands before the number that grows.
    prefix: &'static str,
    /// What stands before the release, `6.1.0-57-amd64`.
    image: &'static str,
    /// And behind it: the flavour for PCs, signed.
    suffix: &'static str,
    /// The packages with what builds modules; `{}` is the release, `{common}` the same without
    /// its flavour.
    headers: [&'static str; 3],
    /// The package of the compiler that the machine may lack, with its name.
    compiler: Option<(&'static str, &'static str)>,
    /// Where the packages are.
    open: fn() -> Result<Apt>,
    /// Names the kernel that was unpacked, beside the finished kernels.
    current: &'static str,
    /// What the machine and its tests need of the 4,000 modules: the agent's line to the host,
    /// what hands functions to user space, a driver to take a function from, and a disk's.
    modules: &'static [&'static str],
}

/// The oldest kernel that this tree works on: the release's own.
const OLDEST: Series = Series {
    prefix: "linux-image-6.1.0-",
    image: "linux-image-",
    suffix: "-amd64",
    headers: [
        "linux-headers-{}",
        "linux-headers-{common}-common",
        "linux-kbuild-6.1",
    ],
    compiler: None,
    open: Apt::open_stock,
    current: "packaged-6.1",
    modules: &[
        "irqbypass",
        "uio",
        "uio_pci_generic",
        "vfio",
        "vfio-pci",
        "vfio-pci-core",
        "vfio_iommu_type1",
        "vfio_virqfd",
        "virtio",
        "virtio_blk",
        "virtio_console",
        "virtio_pci",
        "virtio_pci_legacy_dev",
        "virtio_pci_modern_dev",
        "virtio_ring",
    ],
};

/// The newer one of the same release, which its compiler has built. The agent's line is built in.
const NEWER: Series = Series {
    prefix: "linux-image-6.12.",
    image: "linux-image-",
    suffix: "+deb12-amd64",
    headers: [
        "linux-headers-{}",
        "linux-headers-{common}-common",
        "linux-kbuild-{common}",
    ],
    compiler: None,
    open: Apt::open_stock_security,
    current: "packaged-6.12",
    modules: &[],
};

/// The newest one, of the next release's backports: the series that the patches are for. The
/// package with the kernel itself is another one there.
const NEWEST: Series = Series {
    prefix: "linux-binary-7.3.",
    image: "linux-binary-",
    suffix: "+deb13-amd64",
    headers: [
        "linux-headers-{}",
        "linux-headers-{common}-common",
        "linux-kbuild-{common}",
    ],
    compiler: Some(("gcc-14-x86-64-linux-gnu", "gcc-14")),
    open: Apt::open,
    current: "packaged-7.3",
    modules: &[],
};

fn series(variant: Variant) -> Result<&'static Series> {
    match variant {
        Variant::Debian => Ok(&OLDEST),
        Variant::Debian612 => Ok(&NEWER),
        Variant::Debian73 => Ok(&NEWEST),
        Variant::Fast | Variant::Debug => bail!("the kernel {variant} is built, not packaged"),
    }
}

/// The kernel, if the cache has it.
pub(super) fn find(variant: Variant) -> Result<Option<Kernel>> {
    match fs::read_to_string(outputs()?.join(series(variant)?.current)) {
        // What another recipe has kept may lack something.
        Ok(key) if key.starts_with(RECIPE) => Kernel::load(key.trim()),
        _ => Ok(None),
    }
}

/// Takes the kernel from the cache, or fetches and unpacks it.
pub(super) fn get(variant: Variant) -> Result<Kernel> {
    if let Some(found) = find(variant)? {
        return Ok(found);
    }
    let series = series(variant)?;
    let out = outputs()?;
    let _lock = step::lock(&out.join("debian.lock"))?;
    if let Some(found) = find(variant)? {
        return Ok(found);
    }
    let apt = (series.open)()?;
    let names = apt.names(series.prefix)?;
    let package = newest(series, &names)
        .ok_or_else(|| apt::Gone(format!("{}*{}", series.prefix, series.suffix)))?;
    let release = package.trim_start_matches(series.image);
    let whole = tempfile::tempdir_in(&out)?;
    let log = out.join("debian-unpack.log");
    let version = fetch(&apt, package, &whole.path().join("image"), &log)?;
    for name in series.headers {
        let name = name
            .replace("{}", release)
            .replace("{common}", release.trim_end_matches("-amd64"));
        fetch(&apt, &name, &whole.path().join("build"), &log)?;
    }
    if let Some((package, _)) = series.compiler {
        let version = apt
            .candidate(package)?
            .ok_or_else(|| apt::Gone(package.to_owned()))?;
        let packages = apt.download_closure(package, &version)?;
        apt::unpack(&packages, &whole.path().join("build"), &log)?;
    }
    let bar = step::spinner(&format!("kernel ({variant})"));
    let staging = tempfile::tempdir_in(&out)?;
    let key = format!("{RECIPE}-{release}");
    let folder = out.join(&key);
    keep(series, whole.path(), release, staging.path(), &folder)
        .with_context(|| format!("{package} {version} is not as expected"))?;
    let info = Info {
        release: release.to_owned(),
        source: version,
        patches: Vec::new(),
        variant,
    };
    fs::write(
        staging.path().join("info.json"),
        serde_json::to_vec_pretty(&info)?,
    )?;
    let _ = fs::remove_dir_all(&folder);
    fs::rename(staging.keep(), folder)?;
    fs::write(out.join(series.current), &key)?;
    bar.finish_and_clear();
    find(variant)?.context("the kernel that was just unpacked is gone")
}

/// Downloads and unpacks the newest version of a package; returns that.
fn fetch(apt: &Apt, package: &str, into: &Path, log: &Path) -> Result<String> {
    let version = apt
        .candidate(package)?
        .ok_or_else(|| apt::Gone(package.to_owned()))?;
    let file = apt.download(package, &version)?;
    apt::unpack(&[file], into, log)?;
    Ok(version)
}

/// The package of the newest interface.
fn newest<'a>(series: &Series, names: &'a [String]) -> Option<&'a str> {
    let number = |name: &str| -> Option<u32> {
        let rest = name.strip_prefix(series.prefix)?;
        rest.strip_suffix(series.suffix)?.parse().ok()
    };
    let numbered = names.iter().filter_map(|name| Some((number(name)?, name)));
    numbered.max().map(|(_, name)| name.as_str())
}

/// Moves what is needed from the whole packages, a hundred times as large. `place` is where
/// `into` will be.
fn keep(series: &Series, whole: &Path, release: &str, into: &Path, place: &Path) -> Result<()> {
    let image = whole.join("image");
    let places = [
        format!("boot/vmlinuz-{release}"),
        format!("usr/lib/modules/{release}/vmlinuz"),
    ];
    let mut places = places.iter().map(|place| image.join(place));
    let kernel = places
        .find(|path| path.is_file())
        .context("the package brings no kernel")?;
    fs::rename(kernel, into.join("bzImage"))?;
    let headers = format!("build/usr/src/linux-headers-{release}");
    fs::copy(whole.join(&headers).join(".config"), into.join("config"))?;
    let modules = into.join("modules");
    fs::create_dir_all(&modules)?;
    let folder = image.join("lib/modules").join(release).join("kernel");
    let mut found = 0;
    let all = match series.modules.is_empty() {
        true => Vec::new(),
        false => crate::key::files_below(&folder)?,
    };
    for path in all {
        if wanted(series, &path) {
            fs::rename(
                &path,
                modules.join(path.file_name().context("a module without a name")?),
            )?;
            found += 1;
        }
    }
    ensure!(
        found == series.modules.len(),
        "{found} of {} modules are there",
        series.modules.len()
    );

    // The one path of the root that the packages know is in the Makefile.
    fs::rename(whole.join("build"), into.join("build"))?;
    if let Some((_, gcc)) = series.compiler {
        compiler::wrap(&into.join("build"), &place.join("build"), gcc)?;
    }
    let makefile = into.join(&headers).join("Makefile");
    let text = fs::read_to_string(&makefile)?;
    let root = place.join("build/usr/src/");
    fs::write(
        &makefile,
        text.replace("/usr/src/", &format!("{}/", root.display())),
    )?;
    symlink(headers, into.join("headers"))?;
    Ok(())
}

fn wanted(series: &Series, path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "ko")
        && path
            .file_stem()
            .and_then(|name| name.to_str())
            .is_some_and(|name| series.modules.contains(&name))
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
        assert_eq!(newest(&OLDEST, &names), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(newest(&OLDEST, &[]), None);
        let names: Vec<String> = [
            "linux-image-6.12.9+deb12-amd64",
            "linux-image-6.12.117+deb12-amd64",
            "linux-image-6.12.118+deb12-rt-amd64",
            "linux-image-6.12.119+deb12-amd64-unsigned",
            "linux-image-6.12.120+deb13-amd64",
        ]
        .map(str::to_owned)
        .into();
        assert_eq!(
            newest(&NEWER, &names),
            Some("linux-image-6.12.117+deb12-amd64")
        );
        let names: Vec<String> = [
            "linux-binary-7.3.4+deb13-amd64",
            "linux-binary-7.3.10+deb13-amd64",
            "linux-binary-7.3.11+deb13-cloud-amd64",
            "linux-binary-7.4.1+deb13-amd64",
        ]
        .map(str::to_owned)
        .into();
        assert_eq!(
            newest(&NEWEST, &names),
            Some("linux-binary-7.3.10+deb13-amd64")
        );
    }

    #[test]
    fn only_named_modules_are_kept() {
        for (path, expected) in [
            ("kernel/drivers/vfio/vfio.ko", true),
            ("kernel/drivers/vfio/mdev/mdev.ko", false),
            ("kernel/drivers/vfio/vfio.txt", false),
        ] {
            assert_eq!(wanted(&OLDEST, Path::new(path)), expected, "{path}");
        }
    }
}
