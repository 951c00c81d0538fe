//! `ptdma-server`: see `README.md` beside the crate.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};

use anyhow::Context;
use clap::Parser;
use ptdma_model::{Fault, Forks, ModelConfig, Timing};
use ptdma_server::control::{Control, Quit};
use ptdma_server::server::{Report, Server, ServerConfig};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Serves emulated PTDMA functions (PCI 1022:1498) over vfio-user.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Folder of the sockets, ptdma<i>.sock; made if it is missing
    #[arg(long, value_name = "DIR")]
    socket_dir: PathBuf,
    /// Number of functions
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=16))]
    devices: u64,
    /// Number of the first function
    #[arg(long, value_name = "I", default_value_t = 0)]
    first_index: usize,
    /// Control socket: one JSON request a line
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Also write the final JSON to this file
    #[arg(long, value_name = "PATH")]
    stats: Option<PathBuf>,
    /// What kind of engine: a name and what differs from it, "sibling,halt=never" say
    #[arg(long, value_name = "MACHINE", default_value_t = Forks::TODAY)]
    machine: Forks,
    /// Nanoseconds that the engine takes for each descriptor
    #[arg(long, value_name = "NS", default_value_t = 0)]
    setup_ns: u64,
    /// Bytes that the engine moves in a second; 0 for no limit
    #[arg(long, value_name = "B", default_value_t = 0)]
    bytes_per_second: u64,
    /// A fault for all functions from the start, as JSON; may be repeated
    #[arg(long = "fault", value_name = "JSON", value_parser = parse_fault)]
    faults: Vec<Fault>,
    /// End when standard input closes
    #[arg(long)]
    exit_with_stdin: bool,
}

fn parse_fault(text: &str) -> Result<Fault, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    // Bad arguments end here, with exit code 2.
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Nobody may be there to read why.
            let _closed = writeln!(std::io::stderr(), "ptdma-server: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let server = Arc::new(Server::start(&ServerConfig {
        socket_dir: args.socket_dir.clone(),
        functions: usize::try_from(args.devices).context("number of devices")?,
        first_index: args.first_index,
        model: ModelConfig {
            forks: args.machine,
            timing: Timing {
                setup_ns: args.setup_ns,
                bytes_per_second: args.bytes_per_second,
                ..Timing::default()
            },
            ..ModelConfig::default()
        },
    })?);
    for function in server.functions() {
        for fault in &args.faults {
            function.model().inject(fault.clone());
        }
    }
    let (quit, ended) = mpsc::channel();
    watch_signals(quit.clone())?;
    if args.exit_with_stdin {
        watch_stdin(quit.clone())?;
    }
    let control = match &args.control {
        Some(path) => Some(Control::start(path, Arc::clone(&server), quit)?),
        None => None,
    };
    print_line(&json!({
        "event": "ready",
        "sockets": server.sockets().collect::<Vec<_>>(),
        "control": args.control,
    }))?;
    // The signal thread keeps a sender, so this waits for a reason.
    let reason = ended.recv().context("waiting for the end")?;
    log::info!("ending: {reason:?}");
    server.stop();
    drop(control);
    finish(args, &server.report())
}

fn finish(args: &Args, report: &Report) -> anyhow::Result<()> {
    let text = json!({"event": "final", "devices": report.devices, "sum": report.sum});
    // A reader that has gone must not keep the file from being written.
    let printed = print_line(&text);
    if let Some(path) = &args.stats {
        std::fs::write(path, format!("{text}\n"))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    printed
}

fn print_line(value: &serde_json::Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}").context("writing to standard output")?;
    out.flush().context("writing to standard output")
}

fn watch_signals(quit: Sender<Quit>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("watching signals")?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for _signal in signals.forever() {
                // The receiver is gone only while the process ends.
                let _ending = quit.send(Quit::Signal);
            }
        })
        .context("watching signals")?;
    Ok(())
}

fn watch_stdin(quit: Sender<Quit>) -> anyhow::Result<()> {
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let mut buffer = [0; 256];
            // An error is an end as well.
            while matches!(std::io::stdin().read(&mut buffer), Ok(1..)) {}
            let _ending = quit.send(Quit::Stdin);
        })
        .context("watching standard input")?;
    Ok(())
}
