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

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

/// Exit code if bytes differ or were lost, and if nobody could be told.
const DIFFERENT: u8 = 1;
/// Exit code for an input that cannot be read or is empty: clap's own for bad arguments.
const BAD_INPUT: u8 = 2;
/// Exit code if the machine could not be set up: nothing was moved.
const NOT_RUN: u8 = 3;

fn main() -> ExitCode {
    let args = cli::Args::parse();
    if let Err(e) = args.check() {
        e.exit();
    }
    let report = match job::run(&args) {
        Ok(report) => report,
        Err(e) => {
            let bad_input = e.downcast_ref::<job::BadInput>().is_some();
            return fail(&e, if bad_input { BAD_INPUT } else { NOT_RUN });
        }
    };
    let text = if args.json {
        report.to_json()
    } else {
        report.to_text()
    };
    match text.and_then(|text| print(&text)) {
        Err(e) => fail(&e, DIFFERENT),
        Ok(()) if report.verified() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::from(DIFFERENT),
    }
}

/// Writes to standard output. A reader that has gone away has seen enough.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush());
    match written {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("writing the result"),
    }
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    // Nobody may be there to read why.
    let _closed = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::from(code)
}
