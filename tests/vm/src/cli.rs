//! The command line.

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

use crate::kernel::{Variant, series};
use crate::machine::{Iommu, Options};
use crate::suite::{self, Manner, Part, Selection};
use crate::{bench, build, clean, doctor, shell, tools};

/// Real Linux on the emulated PTDMA device.
#[derive(Parser)]
#[command(name = "cargo vm", bin_name = "cargo vm", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Report what this machine has and lacks, with the fix for each line
    Doctor {
        /// Print only the names of the Debian packages that are needed
        #[arg(long)]
        packages: bool,
    },
    /// Find or fetch the emulator; build kernels, modules, programs
    Build {
        /// Only this kernel
        #[arg(long)]
        kernel: Option<Variant>,
        /// Look for a newer kernel source first
        #[arg(long)]
        update: bool,
    },
    /// Boot a machine and run shell commands in it
    Shell(ShellArguments),
    /// Run the guest tests
    Test {
        /// Only checks whose name (suite/check@kernel) contains one of these
        filter: Vec<String>,
        /// Only on this kernel
        #[arg(long)]
        kernel: Option<Variant>,
        /// Which set of checks [default: quick; with a filter: all]
        #[arg(long)]
        set: Option<Part>,
        /// Also run soaks
        #[arg(long)]
        soak: bool,
        /// Also run soaks, each for at most this many minutes
        #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..=120))]
        soak_minutes: Option<u64>,
        /// Repeat a failed check up to this often; one that then passes is reported as flaky
        #[arg(long, default_value_t = 0)]
        retry: u32,
        /// Start no check after this many minutes, and name those left out
        #[arg(long, value_name = "MINUTES")]
        within: Option<u64>,
        /// List the checks without running them
        #[arg(long)]
        list: bool,
        /// Print the results, or the names, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Measure what migration costs, by count, beside the CPU and the dmaengine migrator
    Bench(bench::Arguments),
    /// Move a process's memory while it writes to it, by all migrators, and check every byte
    Demo {
        /// On which kernels: those with our patches, or Debian's own as it is
        #[arg(value_enum, default_value_t)]
        on: DemoKernel,
    },
    /// Build each patch of the kernel series by itself, and check what it must not change
    Patches(series::Arguments),
    /// Print a path, for scripts (builds what is there first)
    Path {
        /// What to print the path of
        what: Place,
    },
    /// Remove this harness's files from the cache
    Clean {
        /// Only logs and outdated kernels, not what is in use
        #[arg(long)]
        outdated: bool,
    },
}

#[derive(clap::Args)]
struct ShellArguments {
    /// Which kernel
    #[arg(long, default_value = "fast")]
    kernel: Variant,
    /// PTDMA functions
    #[arg(long, default_value_t = 1)]
    devices: usize,
    /// The IOMMU in front of them
    #[arg(long, default_value = "none")]
    iommu: Iommu,
    /// Memory of each of the two nodes, MiB
    #[arg(long, default_value_t = 512)]
    memory: u64,
    /// A module of this tree to build and put into the image (may be repeated)
    #[arg(long)]
    module: Vec<String>,
    /// Also put the kernel's own tests of memory management into the image
    #[arg(long)]
    selftests: bool,
    /// Added to the kernel's command line
    #[arg(long, default_value = "")]
    append: String,
    /// Run this and exit with its status, instead of reading commands
    #[arg(long, short = 'c')]
    command: Option<String>,
}

/// What `cargo vm demo` runs on.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum DemoKernel {
    /// Linux 7.3 with our patches: batches of folios of every size
    #[default]
    Patched,
    /// Debian's 6.12: huge folios through the livepatch, small ones through the device
    Stock,
}

/// What `cargo vm path` can print.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Place {
    /// The cache folder
    Cache,
    /// The patched kernel source
    KernelSource,
    /// What `make -C ... M=...` needs for the fast kernel
    KernelFast,
    /// The same for the debug kernel
    KernelDebug,
    /// The emulator's program
    Qemu,
}

/// Does what was asked; `false` is a failure that has been reported already.
pub(crate) fn dispatch(cli: Cli) -> Result<bool> {
    match cli.command {
        Command::Doctor { packages: true } => {
            println!("{}", tools::PACKAGES.join(" "));
            Ok(true)
        }
        Command::Doctor { packages: false } => doctor::run(),
        Command::Build { kernel, update } => build::run(kernel, update),
        Command::Shell(arguments) => {
            let options = Options {
                kernel: arguments.kernel,
                devices: arguments.devices,
                iommu: arguments.iommu,
                node_memory_mib: arguments.memory,
                append: arguments.append,
                modules: build::module_names(&arguments.module)?,
                selftests: arguments.selftests,
                ..Options::default()
            };
            shell::run(options, arguments.command.as_deref())
        }
        Command::Test {
            filter,
            kernel,
            set,
            soak,
            soak_minutes,
            retry,
            within,
            list,
            json,
        } => {
            let selection = Selection {
                filter,
                kernel,
                part: set,
                soak: soak || soak_minutes.is_some(),
            };
            if list {
                suite::list(&selection, json)?;
                return Ok(true);
            }
            let minutes = |count| Duration::from_secs(60 * count);
            let manner = Manner {
                retry,
                json,
                within: within.map(minutes),
                longest_soak: soak_minutes.map(minutes),
            };
            suite::run(&selection, manner)
        }
        Command::Demo { on } => match on {
            DemoKernel::Patched => bench::demo::run(),
            DemoKernel::Stock => bench::demo_stock::run(),
        },
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Patches(arguments) => series::run(&arguments),
        Command::Path { what } => {
            println!("{}", build::place(what)?.display());
            Ok(true)
        }
        Command::Clean { outdated } => clean::run(outdated),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
