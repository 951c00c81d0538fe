//! `cargo run --release -p ptdma-predict`: the predicted table.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use ptdma_predict::published::{FOLIO_LEN_BYTES, ONE_FOLIO};
use ptdma_predict::{Assumptions, Cell, MAX_CHANNELS, column, one_folio};
use serde_json::json;

/// Predicts the published move_pages table for this driver, from the published numbers and the
/// assumptions below: no measurement of hardware.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    assumed: Assumptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("ptdma-predict: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let assumed = &arguments.assumed;
    let mut cells = Vec::new();
    for size in 0..FOLIO_LEN_BYTES.len() {
        cells.extend(column(assumed, size)?);
    }
    let one = (one_folio(assumed, 1)?, one_folio(assumed, MAX_CHANNELS)?);
    if arguments.json {
        let all = json!({
            "kind": "prediction",
            "assumed": assumed,
            "cells": cells,
            "one_2m_folio": {
                "cpu": ONE_FOLIO.0, "dcbm": ONE_FOLIO.1,
                "ours_1_channel": one.0, "ours_16_channels": one.1,
            },
        });
        println!("{all:#}");
        return Ok(());
    }
    println!("move_pages throughput in GB/s. Published: cpu, dcbm. Predicted: the others.\n");
    println!("{}\n", table(&cells));
    let behind = cells.iter().filter(|c| !c.keeps_up()).count();
    println!(
        "{behind} of {} cells are behind the better of the published two by more than their spread",
        cells.len()
    );
    println!(
        "one 2 MiB folio: cpu {:.2}, dcbm {:.2}; predicted {:.2} with 1 channel, {:.2} with {MAX_CHANNELS}",
        ONE_FOLIO.0, ONE_FOLIO.1, one.0, one.1
    );
    println!("assumed: {}", serde_json::to_string(assumed)?);
    Ok(())
}

fn table(cells: &[Cell]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "folio",
        "channels",
        "cpu",
        "dcbm",
        "(as modelled)",
        "ours",
        "hybrid",
        "to the better of two",
    ]);
    for cell in cells {
        table.add_row([
            format!("{}K", cell.folio_len_bytes >> 10),
            cell.channels.to_string(),
            format!("{:.2}", cell.cpu),
            format!("{:.2} +-{:.2}", cell.dcbm, cell.dcbm_spread),
            format!("{:.2}", cell.dcbm_modelled),
            format!("{:.2}", cell.ours),
            format!("{:.2}", cell.hybrid),
            format!("{:.2}x", cell.ours / cell.to_beat()),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
