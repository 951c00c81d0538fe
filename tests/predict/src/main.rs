//! `cargo run --release -p ptdma-predict -- --out DIR`: tables and pictures.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use ptdma_predict::assumptions::Assumptions;
use ptdma_predict::prediction::Prediction;
use ptdma_predict::{fit, picture, text};

/// Predicts move_pages, latency, several movers and compaction on real engines, from a model that
/// is fitted to the published tables. Writes tables.txt, predict.json and pictures.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where tables and pictures go
    #[arg(long, value_name = "DIR", default_value = "target/predict")]
    out: PathBuf,
    /// Print JSON in place of tables
    #[arg(long)]
    json: bool,
    /// Take measured values in place of assumptions (README: the format)
    #[arg(long, value_name = "FILE")]
    measured: Option<PathBuf>,
    /// Another value for one cost: `descriptor_ns=100`, `other_ns.2M=9000`
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Fit the costs to the published tables, print them as data/fitted.json has them, and end
    #[arg(long)]
    fit: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            // Standard error may be closed, too.
            let _ = writeln!(io::stderr(), "ptdma-predict: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The reader of the output has closed it.
fn is_broken_pipe(e: &anyhow::Error) -> bool {
    let mut causes = e.chain();
    causes.any(|c| {
        let io = c.downcast_ref::<io::Error>();
        io.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    // Colour is for terminals: anything else gets the bare text.
    let mut out = anstream::stdout().lock();
    if arguments.fit {
        writeln!(out, "{}", serde_json::to_string_pretty(&fit::fit())?)?;
        return Ok(());
    }
    let mut assumed = Assumptions::default();
    if let Some(path) = &arguments.measured {
        let name = path.display();
        let report = fs::read_to_string(path).with_context(|| format!("{name}"))?;
        assumed
            .measure(&report)
            .with_context(|| format!("{name}"))?;
    }
    for one in &arguments.set {
        assumed.set(one)?;
    }
    let all = predict(assumed)?;
    let dir = &arguments.out;
    let cannot = || format!("cannot write to {}", dir.display());
    fs::create_dir_all(dir).with_context(cannot)?;
    let json = format!("{:#}\n", serde_json::to_value(&all)?);
    fs::write(dir.join("predict.json"), &json).with_context(cannot)?;
    let mut plain = anstream::StripStream::new(fs::File::create(dir.join("tables.txt"))?);
    text::write(&mut plain, &all).with_context(cannot)?;
    let pictures = picture::all(&all)?;
    for picture in &pictures {
        fs::write(dir.join(picture.name), &picture.svg).with_context(cannot)?;
    }
    if arguments.json {
        out.write_all(json.as_bytes())?;
    } else {
        text::write(&mut out, &all)?;
        let names: Vec<_> = pictures.iter().map(|p| p.name).collect();
        writeln!(
            out,
            "{}: tables.txt, predict.json, {}",
            dir.display(),
            names.join(", ")
        )?;
    }
    out.flush()?;
    Ok(())
}

/// Predicts, with a bar on a terminal.
fn predict(assumed: Assumptions) -> anyhow::Result<Prediction> {
    let bar = ProgressBar::new(Prediction::STEPS as u64).with_style(ProgressStyle::with_template(
        "{elapsed_precise} [{bar:40}] {pos}/{len} predicting",
    )?);
    let all = Prediction::of(assumed, &|| bar.inc(1));
    bar.finish_and_clear();
    Ok(all)
}
