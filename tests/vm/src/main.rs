//! `cargo vm`: real Linux on the emulated device.
//!
//! The harness finds or unpacks an emulator, builds the guest's kernels and image,
//! boots machines whose PTDMA functions are served by `ptdma-server`, and runs the
//! guest tests. `tests/vm/README.md` says how to use it and how to add a test.

#![forbid(unsafe_code)]

// First, for its macros.
#[macro_use]
mod say;

mod apt;
mod bench;
mod build;
mod clean;
mod cli;
mod doctor;
mod groups;
mod image;
mod kernel;
mod key;
mod machine;
mod paths;
mod qemu;
mod run_dir;
mod server;
mod shell;
mod step;
mod suite;
mod toolchain;
mod tools;

use std::process::ExitCode;

use clap::Parser;

/// Exit status when what is needed can neither be found nor fetched: nothing was
/// tested, which is neither a success nor a failure (automake's code for a skip).
const NOTHING_TESTED: u8 = 77;

fn main() -> ExitCode {
    let command = cli::Cli::parse();
    let result = groups::install_interrupt_handler().and_then(|()| cli::dispatch(command));
    if let Some(error) = say::lost() {
        eprintln!("cargo vm: standard output: {error}");
        return ExitCode::FAILURE;
    }
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            if let Some(reason) = error.downcast_ref::<apt::Unreachable>() {
                let line = reason.to_string();
                let line = line.lines().next().unwrap_or_default();
                eprintln!(
                    "cargo vm: skipped, nothing was tested: {line} (and the cache has no copy)"
                );
                return ExitCode::from(NOTHING_TESTED);
            }
            eprintln!("cargo vm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
