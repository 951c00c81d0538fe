//! `cargo vm patches`: each patch of the series by itself.
//!
//! A reviewer applies one patch after the other and wants each to stand on its own: it
//! applies without fuzz, builds without a warning with the option on and off, leaves the
//! code with the option off as it was, is refused by 32-bit, and pleases checkpatch. The
//! kernels of the guest tests are built from the whole series and show none of this.
//!
//! The series for Linux's `ptdma` driver is checked too, as far as that goes for a driver. No
//! kernel is built with it.

mod objects;
mod report;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;

use super::source::Source;
use super::{Variant, config, make, patches, patches_in};
use crate::step::{self, Step};
use crate::{paths, tools};
use objects::Objects;
use report::{Row, Verdict};

/// The option that the first patch adds.
const OPTION: &str = "CONFIG_MIGRATION_COPY_OFFLOAD";
/// All of `mm/` and the tools that come before it: three minutes on two idle processors.
const BUILD_LIMIT: Duration = Duration::from_secs(40 * 60);
const CONFIGURE_LIMIT: Duration = Duration::from_secs(180);
const STYLE_LIMIT: Duration = Duration::from_secs(120);
/// The patches of Linux's own driver.
const DRIVER_SERIES: &str = "kshim/patches/stock-ptdma";
/// That driver and the one that shares its code.
const DRIVERS: &[&str] = &["drivers/dma/amd/ptdma/", "drivers/dma/amd/ae4dma/"];
/// Who sends that series signs it. And checkpatch knows no commit outside of a git tree.
const DRIVER_STYLE: &[&str] = &["--no-signoff", "--ignore=UNKNOWN_COMMIT_ID"];

/// A 32-bit kernel that migrates, and is asked for the option.
const NARROW: &str = "\
# CONFIG_64BIT is not set
CONFIG_SMP=y
CONFIG_COMPACTION=y
CONFIG_MIGRATION=y
CONFIG_TRANSPARENT_HUGEPAGE=y
CONFIG_SYSFS=y
CONFIG_MIGRATION_COPY_OFFLOAD=y
";

/// What to check.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Compile only the files of mm/ that the patches change, instead of all of mm/
    #[arg(long)]
    quick: bool,
    /// Fetch and unpack the source package anew, instead of taking the patches off a copy
    #[arg(long)]
    fresh: bool,
    /// Only this series
    #[arg(long)]
    series: Option<Series>,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

/// What patches belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Series {
    /// Batch copy in page migration
    Mm,
    /// Fixes for Linux's own driver
    Ptdma,
}

/// The three configurations that everything is built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    Off,
    On,
    Narrow,
}

impl Setting {
    const ALL: [Self; 3] = [Self::Off, Self::On, Self::Narrow];

    fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Narrow => "i386",
        }
    }

    fn arch(self) -> &'static str {
        match self {
            Self::Off | Self::On => "ARCH=x86_64",
            Self::Narrow => "ARCH=i386",
        }
    }

    fn fragment(self) -> Result<String> {
        // The last line about an option wins.
        Ok(match self {
            Self::Off => format!(
                "{}# {OPTION} is not set\n",
                config::fragment(Variant::Fast)?.replace(&format!("{OPTION}=y\n"), "")
            ),
            Self::On => format!("{}{OPTION}=y\n", config::fragment(Variant::Fast)?),
            Self::Narrow => NARROW.into(),
        })
    }
}

/// What one build showed.
struct Built {
    /// Warnings about files that the series changes.
    warnings: Vec<String>,
    /// The configuration has the option.
    has_option: bool,
    objects: Objects,
}

/// Builds each patch and prints what was found; `false` if something is wrong.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let patches = patches()?;
    let fixes = patches_in(&paths::workspace().join(DRIVER_SERIES))?;
    for (series, folder) in [(&patches, "kshim/patches"), (&fixes, DRIVER_SERIES)] {
        if series.is_empty() {
            bail!("{folder} has no patches");
        }
    }
    let source = Source::get()?;
    let twin = {
        let _lock = source.lock()?;
        source.twin(arguments.fresh)?
    };
    let _lock = twin.lock()?;
    let asked = |series| arguments.series.is_none_or(|only| only == series);
    let work = |patches: &[PathBuf]| -> Result<Work<'_>> {
        Ok(Work {
            touched: touched(patches)?,
            quick: arguments.quick,
            twin: &twin,
        })
    };
    for setting in Setting::ALL {
        let _ = fs::remove_file(work(&[])?.log(setting));
    }
    let mut rows = Vec::new();
    if asked(Series::Mm) {
        rows.extend(work(&patches)?.rows(&patches)?);
    }
    if asked(Series::Ptdma) {
        rows.extend(work(&fixes)?.driver_rows(&fixes)?);
    }
    report::print(&rows, arguments.json)
}

struct Work<'a> {
    twin: &'a Source,
    /// The C files and headers that the series changes.
    touched: Vec<String>,
    quick: bool,
}

impl Work<'_> {
    fn rows(&self, patches: &[PathBuf]) -> Result<Vec<Row>> {
        let steps = (patches.len() + 1) * Setting::ALL.len();
        let bar = step::bar("patches", steps as u64);
        let mut rows = Vec::new();
        let mut unpatched = None;
        let mut with_option = Vec::new();
        for number in 0..=patches.len() {
            let mut row = Row::new(number, "the source as it is");
            let applied = patches.get(..number).unwrap_or_default();
            if let Some(patch) = applied.last() {
                row.subject = subject(patch)?;
                row.style = self.style(patch, &[])?;
            }
            if let Err(error) = self.twin.patch(applied) {
                row.applies = Verdict::Bad(format!("{error:#}"));
                rows.push(row);
                break;
            }
            if number > 0 {
                row.applies = Verdict::Good(String::new());
            }
            for setting in Setting::ALL {
                bar.set_message(format!("patch {number}, {}", setting.name()));
                let built = self.build(setting, &bar);
                let verdict = judge(setting, number, &built);
                match setting {
                    Setting::Off => row.off = verdict,
                    Setting::On => row.on = verdict,
                    Setting::Narrow => row.narrow = verdict,
                }
                if let (Ok(built), Setting::Off) = (&built, setting)
                    && let Some(unpatched) = &unpatched
                {
                    let differ = built.objects.differing(unpatched);
                    let note = format!("{} objects", built.objects.len());
                    row.same = Verdict::nothing_in(&differ, note, "not the same code");
                }
                match (built, setting) {
                    (Ok(built), Setting::Off) if number == 0 => unpatched = Some(built.objects),
                    (Ok(built), Setting::On) => with_option.push((number, built.objects)),
                    _ => {}
                }
                bar.inc(1);
                if bar.is_hidden() {
                    eprintln!("patch {number}, {}: done", setting.name());
                }
            }
            rows.push(row);
        }
        // What a patch uses and only a later one defines shows when all are built.
        if let Some((_, last)) = with_option.last() {
            for (number, objects) in &with_option {
                let missing = objects.missing(last);
                if !missing.is_empty()
                    && let Some(row) = rows.get_mut(*number)
                {
                    row.on = Verdict::Bad(format!("does not link: {}", missing.join(" ")));
                }
            }
        }
        bar.finish_and_clear();
        Ok(rows)
    }

    /// The series for the driver, which has no option of its own and no 32-bit kernel.
    fn driver_rows(&self, patches: &[PathBuf]) -> Result<Vec<Row>> {
        let bar = step::bar("patches of the driver", patches.len() as u64);
        let mut rows = Vec::new();
        for (index, patch) in patches.iter().enumerate() {
            let number = index + 1;
            let mut row = Row::new(number, &subject(patch)?);
            row.style = self.style(patch, DRIVER_STYLE)?;
            match self.twin.patch(patches.get(..number).unwrap_or_default()) {
                Err(error) => row.applies = Verdict::Bad(format!("{error:#}")),
                Ok(()) => {
                    row.applies = Verdict::Good(String::new());
                    row.driver = match self.build_driver(&bar) {
                        Ok(warnings) => Verdict::nothing_in(&warnings, String::new(), "warnings"),
                        Err(error) => Verdict::Bad(format!("{error:#}")),
                    };
                }
            }
            let applied = matches!(row.applies, Verdict::Good(_));
            rows.push(row);
            bar.inc(1);
            if !applied {
                break;
            }
        }
        bar.finish_and_clear();
        Ok(rows)
    }

    /// Builds the drivers in the configuration of the fast kernel; returns warnings.
    fn build_driver(&self, bar: &ProgressBar) -> Result<Vec<String>> {
        let config = self.configure(Setting::Off)?;
        for option in ["CONFIG_AMD_PTDMA=m", "CONFIG_AMD_AE4DMA=m"] {
            ensure!(
                config.lines().any(|line| line == option),
                "the kernel's configuration lacks {option}"
            );
        }
        let targets: Vec<String> = DRIVERS.iter().map(|folder| (*folder).to_owned()).collect();
        self.compile(Setting::Off, targets, bar)
    }

    fn build_folder(&self, setting: Setting) -> PathBuf {
        self.twin.folder().join(format!("build-{}", setting.name()))
    }

    fn log(&self, setting: Setting) -> PathBuf {
        self.build_folder(setting).with_extension("log")
    }

    fn build(&self, setting: Setting, bar: &ProgressBar) -> Result<Built> {
        let build = self.build_folder(setting);
        // A later patch of an earlier run has left the objects of files that are not there yet.
        for file in &self.touched {
            if let Some(file) = file.strip_suffix(".c")
                && !self.twin.tree().join(format!("{file}.c")).is_file()
            {
                let _ = fs::remove_file(build.join(format!("{file}.o")));
            }
        }
        let config = self.configure(setting)?;
        let targets = if self.quick {
            self.targets(setting, &config)
        } else {
            vec!["mm/".to_owned()]
        };
        Ok(Built {
            warnings: self.compile(setting, targets, bar)?,
            has_option: config.lines().any(|line| line == format!("{OPTION}=y")),
            objects: Objects::read(&build, &objects_of(&build)?)?,
        })
    }

    /// Configures a build folder; returns the configuration.
    fn configure(&self, setting: Setting) -> Result<String> {
        let build = self.build_folder(setting);
        fs::create_dir_all(&build)?;
        let fragment = build.join(".ptdma-fragment");
        fs::write(&fragment, setting.fragment()?)?;
        let mut command = make(self.twin, &build)?;
        command
            .args([setting.arch(), "allnoconfig"])
            .env("KCONFIG_ALLCONFIG", &fragment);
        Step::new("kernel configuration", CONFIGURE_LIMIT, &self.log(setting)).run(&mut command)?;
        Ok(fs::read_to_string(build.join(".config"))?)
    }

    /// Builds targets; returns the warnings about files that the series changes.
    fn compile(
        &self,
        setting: Setting,
        targets: Vec<String>,
        bar: &ProgressBar,
    ) -> Result<Vec<String>> {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut command = make(self.twin, &self.build_folder(setting))?;
        // More warnings than usual, and the comments of documentation are checked too.
        command.args([setting.arch(), &format!("-j{jobs}"), "W=1"]);
        if tools::find_program("python3").is_none() {
            eprintln!("SKIPPED: kernel-doc comments are not checked: python3 is missing");
            command.arg("cmd_checkdoc=");
        }
        command.args(targets);
        let mut warnings = Vec::new();
        let what = bar.message();
        Step::new("kernel build", BUILD_LIMIT, &self.log(setting)).run_lines(
            &mut command,
            |line| {
                if let Some(object) = line.strip_prefix("  CC      ") {
                    bar.set_message(format!("{what}: {object}"));
                }
                if line.contains("arning:") && self.touched.iter().any(|file| line.contains(file)) {
                    warnings.push(line.to_owned());
                }
            },
        )?;
        Ok(warnings)
    }

    /// The objects of `mm/` whose sources the series changes, as far as there are any at
    /// this patch with this configuration.
    fn targets(&self, setting: Setting, config: &str) -> Vec<String> {
        let makefile = fs::read_to_string(self.twin.tree().join("mm/Makefile")).unwrap_or_default();
        self.touched
            .iter()
            .filter_map(|file| file.strip_suffix(".c"))
            .filter(|file| self.twin.tree().join(format!("{file}.c")).is_file())
            .map(|file| format!("{file}.o"))
            .filter(|object| {
                // One that depends on the option would be refused without it.
                let name = object.rsplit('/').next().unwrap_or_default();
                setting == Setting::On && config.contains(&format!("{OPTION}=y"))
                    || !makefile
                        .lines()
                        .any(|line| line.contains(OPTION) && line.contains(name))
            })
            .collect()
    }

    /// What checkpatch says, with `more` options.
    fn style(&self, patch: &Path, more: &[&str]) -> Result<Verdict> {
        let script = self.twin.tree().join("scripts/checkpatch.pl");
        if !tools::perl_takes_checkpatch() {
            return Ok(Verdict::Skipped("the package perl is missing".into()));
        }
        let mut command = Command::new("perl");
        command
            .arg(script)
            .args(["--strict", "--terse", "--no-summary", "--color=never"])
            .args(more)
            .arg(patch)
            .current_dir(self.twin.tree())
            .env("LC_ALL", "C");
        let mut said = Vec::new();
        let log = self.twin.folder().join("checkpatch.log");
        let ran = Step::new("checkpatch", STYLE_LIMIT, &log)
            .run_lines(&mut command, |line| said.push(line.to_owned()));
        let complaints: Vec<String> = said
            .into_iter()
            .filter(|line| {
                ["ERROR:", "WARNING:", "CHECK:"]
                    .iter()
                    .any(|kind| line.contains(kind))
            })
            .collect();
        match ran {
            Err(error) if complaints.is_empty() => Ok(Verdict::Bad(format!("{error:#}"))),
            _ => Ok(Verdict::nothing_in(
                &complaints,
                String::new(),
                "checkpatch",
            )),
        }
    }
}

fn judge(setting: Setting, number: usize, built: &Result<Built>) -> Verdict {
    let built = match built {
        Ok(built) => built,
        Err(error) => return Verdict::Bad(format!("{error:#}")),
    };
    let expected = setting == Setting::On && number > 0;
    if built.has_option != expected {
        return Verdict::Bad(if expected {
            format!("{OPTION} is not to be had")
        } else {
            format!("{OPTION} is on")
        });
    }
    Verdict::nothing_in(&built.warnings, String::new(), "warnings")
}

/// The objects below `mm/`, by their path.
fn objects_of(build: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![build.join("mm")];
    while let Some(folder) = folders.pop() {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("{} was not built", folder.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "o")
                && let Ok(name) = path.strip_prefix(build)
            {
                found.push(name.to_string_lossy().into_owned());
            }
        }
    }
    Ok(found)
}

/// The C files and headers that patches change.
fn touched(patches: &[PathBuf]) -> Result<Vec<String>> {
    let mut found = BTreeSet::new();
    for patch in patches {
        for line in fs::read_to_string(patch)?.lines() {
            if let Some(file) = line.strip_prefix("+++ b/")
                && (file.ends_with(".c") || file.ends_with(".h"))
            {
                found.insert(file.to_owned());
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// The subject of a patch, without its number.
fn subject(patch: &Path) -> Result<String> {
    let text = fs::read_to_string(patch)?;
    let mut lines = text
        .lines()
        .skip_while(|line| !line.starts_with("Subject: "));
    let first = lines.next().context("a patch without a subject")?;
    let mut subject = first
        .split_once("] ")
        .map_or(first, |(_, rest)| rest)
        .to_owned();
    for line in lines.take_while(|line| line.starts_with(' ')) {
        subject.push_str(line);
    }
    Ok(subject)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_differ_in_the_option() -> Result<()> {
        let on = Setting::On.fragment()?;
        let off = Setting::Off.fragment()?;
        assert!(on.ends_with(&format!("{OPTION}=y\n")));
        assert!(!off.contains(&format!("{OPTION}=y")));
        assert!(Setting::Narrow.fragment()?.contains(&format!("{OPTION}=y")));
        Ok(())
    }

    #[test]
    fn subjects_and_files_are_read_from_patches() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let patch = folder.path().join("1.patch");
        fs::write(
            &patch,
            "From: x\nSubject: [PATCH 1/5] mm: a\n batch\n\ntext\n--- a/mm/x.c\n+++ b/mm/x.c\n\
             --- a/MAINTAINERS\n+++ b/MAINTAINERS\n",
        )?;
        assert_eq!(subject(&patch)?, "mm: a batch");
        assert_eq!(touched(&[patch])?, ["mm/x.c"]);
        Ok(())
    }

    #[test]
    fn the_option_must_be_there_when_asked_for_and_not_on_32_bit() {
        let built = |has_option, warnings: &[&str]| {
            Ok(Built {
                warnings: warnings.iter().map(|text| (*text).to_owned()).collect(),
                has_option,
                objects: Objects::default(),
            })
        };
        let good = |verdict: Verdict| matches!(verdict, Verdict::Good(_));
        assert!(good(judge(Setting::On, 1, &built(true, &[]))));
        assert!(good(judge(Setting::On, 0, &built(false, &[]))));
        assert!(!good(judge(Setting::On, 1, &built(false, &[]))));
        assert!(!good(judge(Setting::Off, 1, &built(true, &[]))));
        assert!(!good(judge(Setting::Narrow, 5, &built(true, &[]))));
        assert!(!good(judge(
            Setting::On,
            1,
            &built(true, &["mm/x.c: warning: y"])
        )));
        assert!(!good(judge(Setting::On, 1, &Err(anyhow::anyhow!("make")))));
    }
}
