//! `ptdma`: what the engines of this machine do, and memory moved by them.
//!
//! Everything is read from sysfs and procfs, and done by system calls that every kernel has. So the
//! command works with whatever leads memory to the engines: the livepatch, the device, or the patched
//! kernel.
//! `ptdma probe` drives engines by itself, through VFIO, and needs neither.

mod bench;
mod counts;
mod device;
mod manual;
mod migrate;
mod probe;
mod ranges;
mod say;
mod selftest;
mod status;
mod syscalls;
mod sysfs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ptdma_probe::Consent;
use ptdma_vfio::PciAddress;

use ranges::Range;
use sysfs::Root;

/// AMD PTDMA engines and page migration
#[derive(Debug, Parser)]
#[command(name = "ptdma", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object for machines
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Functions, channels, counts, what is off and why, and the next step
    Status,
    /// Move the anonymous memory of a process to a node
    Move {
        /// The process
        pid: u32,
        /// The node to move to
        #[arg(long)]
        to: u32,
        /// Only these addresses, in hexadecimal, as in /proc/PID/maps; may be given again
        #[arg(long = "range", value_name = "START-END")]
        ranges: Vec<Range>,
        /// Also pages that other processes map (as root)
        #[arg(long)]
        shared: bool,
    },
    /// Move memory of this program to and fro, by the engines and by the CPU, and check every byte
    Bench {
        /// Memory to move, in MiB
        #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
        mib: u32,
        /// The node to begin on
        #[arg(long, default_value_t = 0)]
        from: u32,
        /// The other node
        #[arg(long, default_value_t = 1)]
        to: u32,
        /// Moves to the other node and back
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
        rounds: u32,
        /// In pages of 4 KiB: by the device, or by the migrator of a patched kernel
        #[arg(long)]
        small: bool,
    },
    /// Copy and compare through each channel by itself (as root)
    Selftest,
    /// Ask every engine what no public source says, and measure it, by VFIO (as root)
    Probe {
        /// Functions, such as 0000:21:00.2; all of the machine if none is named
        addresses: Vec<PciAddress>,
        /// Take functions from their drivers, and give them back at the end
        #[arg(long)]
        take: bool,
        /// Also try a reset, and a descriptor for an unknown engine: a function that does not come
        /// back from its reset is lost until the power goes off
        #[arg(long)]
        reset: bool,
        /// Length of the source and of each function's target, in MiB: the longest copy that is tried
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=1024))]
        buffer_mib: u32,
    },
    /// Print the manual page
    #[command(hide = true)]
    Manual,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let root = Root::real();
    let done = match arguments.command {
        Command::Status => status::run(&root, arguments.json),
        Command::Move {
            pid,
            to,
            ranges,
            shared,
        } => {
            let job = migrate::Job {
                pid,
                to,
                ranges,
                shared,
            };
            migrate::run(&root, &job, arguments.json)
        }
        Command::Bench {
            mib,
            from,
            to,
            rounds,
            small,
        } => {
            let plan = bench::Plan {
                mib,
                from,
                to,
                rounds,
                small,
            };
            bench::run(&root, &plan, arguments.json)
        }
        Command::Selftest => selftest::run(&root, arguments.json),
        Command::Probe {
            addresses,
            take,
            reset,
            buffer_mib,
        } => {
            let plan = probe::Plan {
                addresses,
                take,
                buffer_mib,
                consent: Consent { reset },
            };
            probe::run(&plan, arguments.json)
        }
        Command::Manual => manual::run(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Whoever reads has seen enough: `ptdma status | head -n 1`.
        Err(error) if say::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ptdma: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
