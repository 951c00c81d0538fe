//! `cargo vm build` and `cargo vm path`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};

use crate::apt;
use crate::cli::Place;
use crate::image::MODULES;
use crate::kernel::{self, Kernel, VARIANTS, Variant};
use crate::qemu::Qemu;
use crate::step::{self, Step};
use crate::{groups, image, paths, toolchain};

const SERVER_LIMIT: Duration = Duration::from_secs(600);

/// Makes everything ready and says what there is.
pub(crate) fn run(only: Option<Variant>, update: bool) -> Result<bool> {
    let modules: Vec<&str> = MODULES.iter().map(|module| module.name).collect();
    toolchain::require_for_modules(&modules)?;
    if update {
        kernel::forget_source()?;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let qemu = Qemu::get()?;
    table.add_row([
        "emulator".to_owned(),
        qemu.version().to_owned(),
        qemu.program().display().to_string(),
    ]);
    if paths::workspace().join("tests/server").is_dir() {
        server()?;
    }
    let mut kernels = Vec::new();
    for variant in VARIANTS {
        if only.is_some_and(|only| only != variant) {
            continue;
        }
        let kernel = match Kernel::get(variant) {
            Err(error) if only.is_none() && error.is::<apt::Gone>() => {
                eprintln!("SKIPPED: kernel {variant}: {error:#}");
                continue;
            }
            kernel => kernel?,
        };
        table.add_row([
            format!("kernel {variant}"),
            format!(
                "{} (source {}, {} patches)",
                kernel.release(),
                kernel.source_version(),
                kernel.patches().len()
            ),
            kernel.image().display().to_string(),
        ]);
        kernels.push((variant, kernel));
    }
    // After the kernels: a module that does not compile must not keep them back.
    for (variant, kernel) in &kernels {
        for module in MODULES {
            if !module.kernels.contains(variant) {
                continue;
            }
            let built = image::build_module(module.name, kernel)?;
            let files: Vec<String> = built
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            table.add_row([
                format!("module {} ({variant})", module.name),
                String::new(),
                files.join(" "),
            ]);
        }
    }
    println!("{table}");
    Ok(true)
}

/// Makes ready what every machine needs, so that a missing network is told before anything
/// runs: the emulator, kernels, the guest's programs, the device server.
///
/// Fetching waits for the network and compiling for the processors: they go on side by side.
pub(crate) fn prepare(kernels: &[Variant], with_server: bool) -> Result<()> {
    let fetched = std::thread::scope(|scope| {
        let fetching = scope.spawn(|| -> Result<()> {
            Qemu::get()?;
            for variant in kernels {
                if Kernel::find(*variant)?.is_some() {
                    continue;
                }
                if variant.is_packaged() {
                    Kernel::get(*variant)?;
                } else {
                    kernel::fetch_source()?;
                }
            }
            Ok(())
        });
        let compiled = image::build_programs().and_then(|()| match with_server {
            true => server(),
            false => Ok(()),
        });
        match fetching.join() {
            // What cannot be fetched is the reason that is told.
            Ok(fetched) => fetched.and(compiled),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    fetched?;
    for variant in kernels {
        Kernel::get(*variant)?;
    }
    Ok(())
}

/// Builds the device server beside this program.
pub(crate) fn server() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let log = paths::cache_dir("guest")?.join("server-cargo.log");
    let _ = fs::remove_file(&log);
    let mut command = groups::bound_command(cargo);
    command
        .args(["build", "--release", "--quiet", "--package", "ptdma-server"])
        .current_dir(paths::workspace());
    let bar = step::spinner("device server");
    let result = Step::new("device server (cargo)", SERVER_LIMIT, &log).run(&mut command);
    bar.finish_and_clear();
    result
}

/// Builds what the command line names and returns its path.
pub(crate) fn place(what: Place) -> Result<PathBuf> {
    match what {
        Place::Cache => paths::cache(),
        Place::KernelSource => kernel::source_tree(),
        Place::KernelFast => Ok(Kernel::get(Variant::Fast)?.headers()),
        Place::KernelDebug => Ok(Kernel::get(Variant::Debug)?.headers()),
        Place::Qemu => Ok(Qemu::get()?.program().to_path_buf()),
    }
}

/// Turns names from the command line into names of the table.
pub(crate) fn module_names(names: &[String]) -> Result<Vec<&'static str>> {
    let known = || {
        MODULES
            .iter()
            .map(|module| module.name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    names
        .iter()
        .map(|name| {
            MODULES
                .iter()
                .find(|module| module.name == name)
                .map(|module| module.name)
                .with_context(|| format!("no module is called {name}; there are: {}", known()))
        })
        .collect()
}
