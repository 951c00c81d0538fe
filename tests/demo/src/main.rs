//! `cargo run --release`: a real file, laid out as folios, moved through emulated PTDMA channels
//! by the same crates that the kernel module links, and compared byte by byte.

#![forbid(unsafe_code)]

mod cli;
mod fault;
mod job;
mod layout;
mod machine;
mod report;
mod waiting;

use std::process::ExitCode;

use clap::Parser;

/// Exit code if bytes differ or were lost. clap exits with 2 for bad arguments.
const DIFFERENT: u8 = 1;

fn main() -> ExitCode {
    let args = cli::Args::parse();
    if let Err(e) = args.check() {
        e.exit();
    }
    let json = args.json;
    match job::run(&args) {
        Ok(report) => {
            if json {
                match report.to_json() {
                    Ok(text) => println!("{text}"),
                    Err(e) => {
                        eprintln!("error: {e:#}");
                        return ExitCode::FAILURE;
                    }
                }
            } else {
                report.print();
            }
            if report.verified() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(DIFFERENT)
            }
        }
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
