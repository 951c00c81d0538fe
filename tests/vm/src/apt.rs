//! A private apt: packages of a newer Debian, taken from this machine's own mirror,
//! without root and without touching the machine's package state.
//!
//! The machine's apt configuration stays in force (proxies, time-outs), only the
//! state, the lists and the sources are replaced. apt checks every signature and hash.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::step::{self, Step};

/// The release that packages QEMU >= 10.1 and the kernel source (in its backports).
pub(crate) const RELEASE: &str = "trixie";
/// The release whose own kernel is the oldest that this tree works on, 6.1.
pub(crate) const STOCK_RELEASE: &str = "bookworm";
/// Names a mirror when the machine's apt has none for Debian.
pub(crate) const MIRROR_VARIABLE: &str = "PTDMA_DEBIAN_MIRROR";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Package lists are ten MiB.
const UPDATE_LIMIT: Duration = Duration::from_secs(180);
/// The largest download, the kernel source, is 170 MiB.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(900);
const UNPACK_LIMIT: Duration = Duration::from_secs(120);

/// Neither a package nor a list can be had: the caller may skip loudly.
#[derive(Debug)]
pub(crate) struct Unreachable(String);

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no Debian mirror can be reached: {}", self.0)
    }
}

impl std::error::Error for Unreachable {}

/// The mirror does not have a package any more, or not yet: the caller may skip loudly.
#[derive(Debug)]
pub(crate) struct Gone(pub(crate) String);

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the mirror has no package {}", self.0)
    }
}

impl std::error::Error for Gone {}

/// A private apt state with the lists of one release.
pub(crate) struct Apt {
    config: PathBuf,
    log: PathBuf,
    folder: PathBuf,
}

/// What a private state is for.
struct Purpose<'a> {
    /// Its folder in the cache.
    folder: &'static str,
    release: &'a str,
    /// Added to the release's name, one archive each.
    archives: &'static [&'static str],
    /// The list of packages that count as installed.
    status: Option<&'static str>,
}

impl Apt {
    /// Opens a state for [`RELEASE`] with its backports, in which nothing counts as
    /// installed: a closure is complete down to the C library.
    ///
    /// # Errors
    /// [`Unreachable`] when no mirror is known or none answers.
    pub(crate) fn open() -> Result<Self> {
        Self::open_for(&Purpose {
            folder: "apt",
            release: RELEASE,
            archives: &["", "-updates", "-backports"],
            status: None,
        })
    }

    /// Opens a state for the machine's own release, in which its own packages count as
    /// installed.
    ///
    /// # Errors
    /// As [`Apt::open`].
    pub(crate) fn open_own() -> Result<Self> {
        Self::open_for(&Purpose {
            folder: "apt-own",
            release: &own_release(),
            archives: &["", "-updates"],
            status: Some("/var/lib/dpkg/status"),
        })
    }

    /// Opens a state for [`STOCK_RELEASE`], in which nothing counts as installed.
    ///
    /// # Errors
    /// As [`Apt::open`].
    pub(crate) fn open_stock() -> Result<Self> {
        Self::open_for(&Purpose {
            folder: "apt-stock",
            release: STOCK_RELEASE,
            archives: &["", "-updates"],
            status: None,
        })
    }

    /// Opens a state for the security archive of [`STOCK_RELEASE`], which has newer kernels,
    /// built by the release's compiler. Nothing counts as installed.
    ///
    /// # Errors
    /// As [`Apt::open`].
    pub(crate) fn open_stock_security() -> Result<Self> {
        Self::open_at(
            security(mirrors()),
            &Purpose {
                folder: "apt-stock-security",
                release: STOCK_RELEASE,
                archives: &["-security"],
                status: None,
            },
        )
    }

    fn open_for(purpose: &Purpose<'_>) -> Result<Self> {
        Self::open_at(mirrors(), purpose)
    }

    fn open_at(mirrors: Vec<String>, purpose: &Purpose<'_>) -> Result<Self> {
        let folder = paths::cache_dir(purpose.folder)?;
        let apt = Self {
            config: folder.join("apt.conf"),
            log: folder.join("apt.log"),
            folder,
        };
        let mut failures = Vec::new();
        for mirror in mirrors {
            apt.configure(&mirror, purpose)?;
            let bar = step::spinner("package lists");
            let mut command = apt.apt("apt-get");
            command.args(["-q", "-o", "APT::Update::Error-Mode=any", "update"]);
            let updated = Step::new("apt-get update", UPDATE_LIMIT, &apt.log).run(&mut command);
            bar.finish_and_clear();
            match updated {
                Ok(()) => return Ok(apt),
                Err(error) => failures.push(error.to_string()),
            }
        }
        let reason = failures.into_iter().next().unwrap_or_else(|| {
            format!("this machine's apt names none; set {MIRROR_VARIABLE} to one")
        });
        Err(Unreachable(reason).into())
    }

    /// The newest version of a package, backports first.
    pub(crate) fn candidate(&self, package: &str) -> Result<Option<String>> {
        let text = step::output(self.apt("apt-cache").args(["madison", package]))?;
        Ok(newest(&text))
    }

    /// The package names that begin with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let text = step::output(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Downloads one package file without what it depends on.
    pub(crate) fn download(&self, package: &str, version: &str) -> Result<PathBuf> {
        let folder = self.empty("single")?;
        let mut command = self.apt("apt-get");
        command
            .args([
                "-q",
                "-o",
                "APT::Status-Fd=1",
                "download",
                &format!("{package}={version}"),
            ])
            .current_dir(&folder);
        self.fetch(&format!("download {package}"), &mut command)?;
        debs(&folder)?
            .into_iter()
            .next()
            .with_context(|| format!("apt-get downloaded no file for {package}"))
    }

    /// Downloads a package with everything it depends on, backports first.
    pub(crate) fn download_closure(&self, package: &str, version: &str) -> Result<Vec<PathBuf>> {
        let release = format!("{RELEASE}-backports");
        let package = format!("{package}={version}");
        self.download_install(&["-t", &release, "install", &package])
    }

    /// Downloads packages with what they depend on and the machine lacks.
    pub(crate) fn download_with_dependencies(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let mut words = vec!["install"];
        words.extend(packages);
        self.download_install(&words)
    }

    fn download_install(&self, words: &[&str]) -> Result<Vec<PathBuf>> {
        let folder = self.empty("cache/archives")?;
        fs::create_dir_all(folder.join("partial"))?;
        let mut command = self.apt("apt-get");
        command.args(["-q", "--yes", "--download-only", "--no-install-recommends"]);
        command.args(["-o", "APT::Status-Fd=1"]).args(words);
        let what = words.last().copied().unwrap_or_default();
        let what = what.split('=').next().unwrap_or_default();
        self.fetch(&format!("download {what} and more"), &mut command)?;
        let found = debs(&folder)?;
        if found.is_empty() {
            bail!("apt-get downloaded nothing for {what}");
        }
        Ok(found)
    }

    fn fetch(&self, what: &str, command: &mut Command) -> Result<()> {
        let bar = step::bar(what, 100);
        let result = Step::new(what, DOWNLOAD_LIMIT, &self.log).run_lines(command, |line| {
            if let Some(percent) = percent(line) {
                bar.set_position(percent);
            }
        });
        bar.finish_and_clear();
        result
    }

    fn empty(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.config).env("LC_ALL", "C");
        command
    }

    fn configure(&self, mirror: &str, purpose: &Purpose<'_>) -> Result<()> {
        for name in ["lists/partial", "cache/archives/partial", "etc"] {
            fs::create_dir_all(self.folder.join(name))?;
        }
        let nothing = self.folder.join("status");
        fs::write(&nothing, "")?;
        let status = purpose.status.map_or(nothing, PathBuf::from);
        fs::write(
            self.folder.join("etc/sources.list"),
            sources(mirror, purpose.release, purpose.archives),
        )?;
        fs::write(&self.config, configuration(&self.folder, &status))?;
        Ok(())
    }
}

/// Unpacks package files into a folder, without root.
pub(crate) fn unpack(packages: &[PathBuf], into: &Path, log: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    let bar = step::bar("unpack", packages.len() as u64);
    for package in packages {
        let mut command = Command::new("dpkg-deb");
        command.arg("--extract").arg(package).arg(into);
        Step::new("unpack", UNPACK_LIMIT, log).run(&mut command)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Whether there is any mirror to try.
pub(crate) fn knows_a_mirror() -> bool {
    !mirrors().is_empty()
}

/// Mirrors of Debian proper that this machine's apt knows, likeliest first.
fn mirrors() -> Vec<String> {
    if let Ok(named) = std::env::var(MIRROR_VARIABLE) {
        return vec![named];
    }
    let targets = step::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(SITE)|$(RELEASE)|$(LABEL)",
        "Created-By: Packages",
    ]))
    .unwrap_or_default();
    rank(&targets, &own_release())
}

/// The security archives among sites, then where one is beside each of the others.
fn security(sites: Vec<String>) -> Vec<String> {
    const SUFFIX: &str = "-security";
    let (mut found, others): (Vec<String>, Vec<String>) =
        sites.into_iter().partition(|site| site.ends_with(SUFFIX));
    for site in others {
        let beside = format!("{}{SUFFIX}", site.trim_end_matches('/'));
        if !found.contains(&beside) {
            found.push(beside);
        }
    }
    found
}

/// The code name of the machine's release, "" when it has none.
pub(crate) fn own_release() -> String {
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    system
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .unwrap_or_default()
        .trim_matches('"')
        .to_owned()
}

/// Sites of `site|release|label` lines: those labelled Debian or serving the system's
/// own release come first, security archives (which lack other releases) last.
fn rank(targets: &str, codename: &str) -> Vec<String> {
    let mut sites: Vec<(u8, String)> = Vec::new();
    for line in targets.lines() {
        let mut fields = line.split('|');
        let (Some(site), Some(release)) = (fields.next(), fields.next()) else {
            continue;
        };
        let label = fields.next().unwrap_or_default();
        let security = release.contains("security") || site.ends_with("-security");
        let rank = match (security, label) {
            (true, _) => 2,
            (false, "Debian") => 0,
            (false, _) if release == codename || release == RELEASE => 0,
            (false, _) => 1,
        };
        match sites.iter_mut().find(|(_, known)| known == site) {
            Some(known) => known.0 = known.0.min(rank),
            None => sites.push((rank, site.to_owned())),
        }
    }
    sites.sort_by_key(|(rank, _)| *rank);
    sites.into_iter().map(|(_, site)| site).collect()
}

fn sources(mirror: &str, release: &str, archives: &[&str]) -> String {
    // Absent on other systems: apt then uses the keys it trusts anyway, or says so.
    let signed = if Path::new(KEYRING).is_file() {
        format!("[signed-by={KEYRING}] ")
    } else {
        String::new()
    };
    archives
        .iter()
        .map(|suffix| format!("deb {signed}{mirror} {release}{suffix} main\n"))
        .collect()
}

fn configuration(folder: &Path, status: &Path) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    let mut text = String::new();
    for (option, value) in [
        ("Dir::State", at("")),
        ("Dir::State::status", status.display().to_string()),
        ("Dir::State::lists", at("lists")),
        ("Dir::Cache", at("cache")),
        ("Dir::Cache::archives", at("cache/archives")),
        ("Dir::Etc::sourcelist", at("etc/sources.list")),
        ("Dir::Etc::sourceparts", "/dev/null".into()),
        ("Dir::Etc::preferences", "/dev/null".into()),
        ("Dir::Etc::preferencesparts", "/dev/null".into()),
        // The sandbox user could not write below a home folder.
        ("APT::Sandbox::User", String::new()),
        ("APT::Architecture", "amd64".into()),
        ("APT::Install-Recommends", "false".into()),
        ("Acquire::Languages", "none".into()),
        ("Acquire::Retries", "3".into()),
        ("Acquire::http::Timeout", "20".into()),
        ("Debug::NoLocking", "true".into()),
    ] {
        text.push_str(&format!("{option} \"{value}\";\n"));
    }
    // Hooks of the machine (container images delete downloaded packages in one)
    // are about its own state.
    for hook in [
        "APT::Update::Pre-Invoke",
        "APT::Update::Post-Invoke",
        "APT::Update::Post-Invoke-Success",
        "DPkg::Pre-Invoke",
        "DPkg::Post-Invoke",
        "DPkg::Pre-Install-Pkgs",
        "APT::Architectures",
    ] {
        text.push_str(&format!("#clear {hook};\n"));
    }
    text.push_str("APT::Architectures { \"amd64\"; };\n");
    text
}

/// The first version of `apt-cache madison`, which lists the newest first.
fn newest(madison: &str) -> Option<String> {
    madison
        .lines()
        .find_map(|line| line.split('|').nth(1))
        .map(|version| version.trim().to_owned())
        .filter(|version| !version.is_empty())
}

/// The percentage of a `dlstatus:item:percent:text` line of APT::Status-Fd.
fn percent(line: &str) -> Option<u64> {
    let rest = line.strip_prefix("dlstatus:")?;
    let value: f64 = rest.split(':').nth(1)?.parse().ok()?;
    Some(value.clamp(0.0, 100.0) as u64)
}

fn debs(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
        .collect();
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_own_mirror_comes_first_and_security_last() {
        let targets = "http://a.example/tool|stable|Tool\n\
                       http://b.example/debian-security|bookworm-security|Debian-Security\n\
                       http://c.example/debian|bookworm|\n\
                       http://c.example/debian|bookworm-updates|\n\
                       broken line\n";
        assert_eq!(
            rank(targets, "bookworm"),
            [
                "http://c.example/debian",
                "http://a.example/tool",
                "http://b.example/debian-security"
            ]
        );
        assert!(rank("", "bookworm").is_empty());
    }

    #[test]
    fn the_security_archive_is_one_of_the_sites_or_beside_one() {
        let sites = [
            "http://c.example/debian",
            "http://b.example/debian-security",
        ];
        assert_eq!(
            security(sites.map(str::to_owned).into()),
            [
                "http://b.example/debian-security",
                "http://c.example/debian-security"
            ]
        );
    }

    #[test]
    fn a_label_tells_when_the_release_is_called_stable() {
        let targets = "http://a.example/x|stable|Other\nhttp://b.example/y|stable|Debian\n";
        assert_eq!(rank(targets, "bookworm")[0], "http://b.example/y");
    }

    #[test]
    fn madison_and_status_lines_are_understood() {
        let text = " linux-source-7.3 | 7.3.4-1~bpo13+1 | http://c.example/debian x/main amd64 Packages\n \
                     linux-source-7.3 | 7.3.1-1 | http://c.example/debian y/main amd64 Packages\n";
        assert_eq!(newest(text).as_deref(), Some("7.3.4-1~bpo13+1"));
        assert_eq!(newest(""), None);
        assert_eq!(
            percent("dlstatus:1:42.7:Retrieving file 1 of 2 (1s remaining)"),
            Some(42)
        );
        assert_eq!(percent("Get:1 http://c.example/debian x InRelease"), None);
        assert_eq!(percent("dlstatus:1"), None);
    }

    #[test]
    fn paths_with_spaces_stay_one_value() {
        let text = configuration(Path::new("/a b/apt"), Path::new("/status"));
        assert!(
            text.contains("Dir::State::lists \"/a b/apt/lists\";"),
            "{text}"
        );
    }
}
