//! Kernel configurations: allnoconfig plus the fragments of this crate.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::make;
use super::source::Source;
use crate::paths;
use crate::step::Step;

const CONFIGURE_LIMIT: Duration = Duration::from_secs(180);

/// Which kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Variant {
    /// Boots in seconds; what is measured.
    Fast,
    /// KASAN, lockdep, DMA API debugging, DEBUG_VM.
    Debug,
    /// Debian's own 6.1, unchanged: no driver of the engines, and VFIO.
    Debian,
    /// Debian's 6.12 for the same release, unchanged.
    #[value(name = "debian-6.12")]
    #[serde(rename = "debian-6.12")]
    Debian612,
    /// Debian's 7.3 for the next release, unchanged.
    #[value(name = "debian-7.3")]
    #[serde(rename = "debian-7.3")]
    Debian73,
}

/// All of them, in the order in which suites run.
pub(crate) const VARIANTS: [Variant; 5] = [
    Variant::Fast,
    Variant::Debug,
    Variant::Debian,
    Variant::Debian612,
    Variant::Debian73,
];

impl Variant {
    /// Whether Debian built it, from its own source.
    pub(crate) fn is_packaged(self) -> bool {
        matches!(self, Self::Debian | Self::Debian612 | Self::Debian73)
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fast => "fast",
            Self::Debug => "debug",
            Self::Debian => "debian",
            Self::Debian612 => "debian-6.12",
            Self::Debian73 => "debian-7.3",
        })
    }
}

/// The lines that differ from allnoconfig.
pub(super) fn fragment(variant: Variant) -> Result<String> {
    let folder = paths::harness().join("kernel");
    let read = |name: &str| {
        fs::read_to_string(folder.join(name)).with_context(|| format!("cannot read {name}"))
    };
    let mut text = read("fast.config")?;
    if variant == Variant::Debug {
        text.push_str(&read("debug.config")?);
    }
    Ok(text)
}

/// Configures a build folder and checks that every line was taken.
pub(super) fn configure(source: &Source, variant: Variant, build: &Path, log: &Path) -> Result<()> {
    let fragment = fragment(variant)?;
    let file = build.join(".ptdma-fragment");
    if fs::read_to_string(&file).is_ok_and(|old| old == fragment) && build.join(".config").is_file()
    {
        return Ok(());
    }
    let staged = build.join(".ptdma-fragment.new");
    fs::write(&staged, &fragment)?;
    let mut command = make(source, build)?;
    command.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &staged);
    Step::new("kernel configuration", CONFIGURE_LIMIT, log).run(&mut command)?;
    let result = fs::read_to_string(build.join(".config"))?;
    let missing = missing(&fragment, &result);
    if !missing.is_empty() {
        bail!(
            "the kernel refuses these lines of its configuration (renamed, or a dependency is off): {}",
            missing.join(" ")
        );
    }
    fs::rename(staged, file)?;
    Ok(())
}

/// Options of the fragment that the finished configuration does not have; a later
/// line of the fragment wins over an earlier one.
fn missing(fragment: &str, config: &str) -> Vec<String> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for line in fragment.lines() {
        let Some((name, _)) = line.split_once('=') else {
            continue;
        };
        if !name.starts_with("CONFIG_") {
            continue;
        }
        wanted.retain(|(known, _)| *known != name);
        wanted.push((name, line));
    }
    wanted
        .into_iter()
        .filter(|(_, line)| !config.lines().any(|have| have == *line))
        .map(|(_, line)| line.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_option_is_noticed_and_an_overridden_one_is_not() {
        let fragment = "# CONFIG_A is a comment\nCONFIG_A=y\nCONFIG_V=\"fast\"\nCONFIG_B=m\nCONFIG_V=\"debug\"\n";
        let config = "CONFIG_A=y\nCONFIG_V=\"debug\"\n# CONFIG_B is not set\n";
        assert_eq!(missing(fragment, config), ["CONFIG_B=m"]);
    }

    #[test]
    fn the_debug_kernel_is_the_fast_one_with_more() -> Result<()> {
        let fast = fragment(Variant::Fast)?;
        let debug = fragment(Variant::Debug)?;
        assert!(debug.starts_with(&fast));
        assert!(debug.contains("CONFIG_KASAN=y") && !fast.contains("CONFIG_KASAN=y"));
        Ok(())
    }
}
