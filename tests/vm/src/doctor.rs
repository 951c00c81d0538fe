//! `cargo vm doctor`: what this machine has and lacks.

use anyhow::Result;
use comfy_table::{Table, presets};

use crate::kernel::{Kernel, VARIANTS, Variant};
use crate::machine::kvm_obstacle;
use crate::qemu::{self, Qemu};
use crate::toolchain::{Pinned, Toolchain};
use crate::{paths, tools};

/// A kernel's build folders, sources and results together.
const DISK_NEEDED_MIB: u64 = 12 << 10;
/// One machine with 16 devices, and a compiler or two.
const MEMORY_NEEDED_MIB: u64 = 3 << 10;

/// One line of the report.
struct Line {
    what: String,
    state: State,
    found: String,
    fix: String,
}

#[derive(PartialEq)]
enum State {
    Good,
    /// Not there, and `cargo vm build` makes it.
    WillBuild,
    /// Not there, and one check is left out for want of it.
    LeftOut,
    Bad,
}

/// Prints the report; `false` if the user has to do something.
pub(crate) fn run() -> Result<bool> {
    let mut lines = toolchain();
    lines.extend(packages());
    lines.extend(checkers());
    lines.push(emulator());
    lines.push(mirror());
    lines.push(acceleration());
    for variant in VARIANTS {
        lines.push(kernel(variant));
    }
    lines.push(disk()?);
    lines.push(memory());

    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["", "what", "found", "what to do"]);
    for line in &lines {
        let mark = match line.state {
            State::Good => "ok",
            State::WillBuild | State::LeftOut => "-",
            State::Bad => "LACKS",
        };
        table.add_row([mark, &line.what, &line.found, &line.fix]);
    }
    println!("{table}");
    let good = lines.iter().all(|line| line.state != State::Bad);
    if good {
        println!("ready: `cargo vm test`");
    }
    Ok(good)
}

/// The pinned version, and each component and target that is pinned with it.
fn toolchain() -> Vec<Line> {
    let what = || "Rust toolchain".to_owned();
    let (pinned, toolchain) = match (Pinned::read(), Toolchain::find()) {
        (Ok(pinned), Ok(toolchain)) => (pinned, toolchain),
        (Err(error), _) | (_, Err(error)) => {
            return vec![Line {
                what: what(),
                state: State::Bad,
                found: format!("{error:#}"),
                fix: "install rustup (https://rustup.rs) and run it in this tree: rustup show"
                    .into(),
            }];
        }
    };
    let right = toolchain.version == pinned.channel;
    let mut lines = vec![Line {
        what: what(),
        state: if right { State::Good } else { State::Bad },
        found: toolchain.version.clone(),
        fix: if right {
            String::new()
        } else {
            format!("rustup toolchain install {}", pinned.channel)
        },
    }];
    lines.extend(toolchain.missing(&pinned).iter().map(|part| Line {
        what: part.name().to_owned(),
        state: State::Bad,
        found: "not in the toolchain".into(),
        fix: format!("{} (in this tree)", part.fix()),
    }));
    lines
}

fn checkers() -> Vec<Line> {
    tools::missing_checkers()
        .into_iter()
        .map(|(package, left_out)| Line {
            what: format!("package {package}"),
            state: State::LeftOut,
            found: format!("not installed: {left_out}"),
            fix: format!("apt-get install --no-install-recommends {package} (as root)"),
        })
        .collect()
}

fn packages() -> Vec<Line> {
    let missing = tools::missing();
    if missing.is_empty() {
        return vec![Line {
            what: "build tools".into(),
            state: State::Good,
            found: "all there".into(),
            fix: String::new(),
        }];
    }
    missing
        .into_iter()
        .map(|(package, private)| {
            let install = format!("apt-get install --no-install-recommends {package} (as root)");
            Line {
                what: format!("package {package}"),
                state: if private {
                    State::WillBuild
                } else {
                    State::Bad
                },
                found: "not installed".into(),
                fix: if private {
                    format!("{install}, or cargo vm build (unpacks it privately)")
                } else {
                    install
                },
            }
        })
        .collect()
}

fn emulator() -> Line {
    let what = "emulator".to_owned();
    match Qemu::find() {
        Ok(Some(qemu)) => Line {
            what,
            state: State::Good,
            found: format!(
                "QEMU {} ({})",
                qemu.version(),
                if qemu.prefix().is_some() {
                    "unpacked privately"
                } else {
                    "of this machine"
                }
            ),
            fix: String::new(),
        },
        Ok(None) => Line {
            what,
            state: State::WillBuild,
            found: "none with vfio-user (QEMU >= 10.1)".into(),
            fix: "cargo vm build (unpacks one privately, no root needed)".into(),
        },
        Err(error) => Line {
            what,
            state: State::Bad,
            found: error.to_string(),
            fix: format!("unset {} or name QEMU >= 10.1 with it", qemu::VARIABLE),
        },
    }
}

fn mirror() -> Line {
    let known = crate::apt::knows_a_mirror();
    Line {
        what: "Debian mirror".into(),
        state: if known { State::Good } else { State::Bad },
        found: if known {
            "from this machine's apt".into()
        } else {
            "apt names none".into()
        },
        fix: if known {
            String::new()
        } else {
            format!("set {} to one", crate::apt::MIRROR_VARIABLE)
        },
    }
}

fn acceleration() -> Line {
    let obstacle = kvm_obstacle();
    Line {
        what: "acceleration".into(),
        // Emulation serves every test: nothing has to be done.
        state: State::Good,
        found: match obstacle {
            None => "/dev/kvm is there; the first boot finds out whether it works".into(),
            Some(reason) => format!("emulation (TCG): {reason}"),
        },
        fix: String::new(),
    }
}

fn kernel(variant: Variant) -> Line {
    let what = format!("kernel ({variant})");
    match Kernel::find(variant) {
        Ok(Some(kernel)) => Line {
            what,
            state: State::Good,
            found: format!(
                "{} of source {}, {} patches",
                kernel.release(),
                kernel.source_version(),
                kernel.patches().len()
            ),
            fix: String::new(),
        },
        Ok(None) => Line {
            what,
            state: State::WillBuild,
            found: match variant.is_packaged() {
                true => "not unpacked".into(),
                false => "not built, or the patches or the configuration changed".into(),
            },
            fix: match variant {
                Variant::Debian => format!("cargo vm build --kernel {variant} (90 MB to fetch)"),
                Variant::Debian612 => {
                    format!("cargo vm build --kernel {variant} (125 MB to fetch)")
                }
                Variant::Debian73 => {
                    format!("cargo vm build --kernel {variant} (85 MB to fetch)")
                }
                _ => format!("cargo vm build --kernel {variant} (about ten minutes on two cores)"),
            },
        },
        Err(error) => Line {
            what,
            state: State::Bad,
            found: error.to_string(),
            fix: "cargo vm clean".into(),
        },
    }
}

fn disk() -> Result<Line> {
    let cache = paths::cache()?;
    let stat = rustix::fs::statvfs(&cache)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize) >> 20;
    let built = Kernel::find(Variant::Debug).is_ok_and(|kernel| kernel.is_some());
    let good = free >= DISK_NEEDED_MIB || built;
    Ok(Line {
        what: "disk".into(),
        state: if good { State::Good } else { State::Bad },
        found: format!("{free} MiB free at {}", cache.display()),
        fix: if good {
            String::new()
        } else {
            format!(
                "free {DISK_NEEDED_MIB} MiB, or set {} to a folder that has them",
                paths::CACHE_VARIABLE
            )
        },
    })
}

fn memory() -> Line {
    let available = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find(|line| line.starts_with("MemAvailable:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .map(|kib| kib >> 10);
    match available {
        Some(mib) if mib < MEMORY_NEEDED_MIB => Line {
            what: "memory".into(),
            state: State::Bad,
            found: format!("{mib} MiB available"),
            fix: format!("close something: {MEMORY_NEEDED_MIB} MiB are needed"),
        },
        _ => Line {
            what: "memory".into(),
            state: State::Good,
            found: available.map_or("unknown".into(), |mib| format!("{mib} MiB available")),
            fix: String::new(),
        },
    }
}
