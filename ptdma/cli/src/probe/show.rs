//! The report for people.

use anyhow::Result;
use comfy_table::CellAlignment;
use ptdma_probe::{MEASURED_LENGTHS, Question, Rate};

use super::report::{Report, Told};
use crate::say;

/// Prints answers, once for all functions that are alike, then what was measured.
pub(super) fn print(report: &Report) -> Result<()> {
    let mut left: Vec<&Told> = report.functions.iter().collect();
    while let Some(first) = left.first().copied() {
        let alike: Vec<&str> = left
            .iter()
            .filter(|told| told.answers == first.answers && told.stop == first.stop)
            .map(|told| told.address.as_str())
            .collect();
        say::print(&alike.join(" "))?;
        let mut table = say::table(&["question", "answer"]);
        for question in Question::ALL {
            if let Some(answer) = first.answers.get(question.key()) {
                table.add_row([question.text().to_owned(), answer.to_string()]);
            }
        }
        say::print(&table.to_string())?;
        if let Some(why) = &first.stop {
            say::print(&format!("The probe ended early: {why}."))?;
        }
        say::print("")?;
        left.retain(|told| told.answers != first.answers || told.stop != first.stop);
    }
    costs(report)?;
    for told in report.functions.iter().filter(|told| told.wrong_copies > 0) {
        say::print(&format!(
            "{}: {} copies were WRONG though the engine told of no failure: do not use it",
            told.address, told.wrong_copies
        ))?;
    }
    if let Some(why) = report.together_stop {
        say::print(&format!("Not all could copy together: {why}."))?;
    }
    Ok(())
}

fn ns(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"))
}

fn gb_per_s(rate: Option<&Rate>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| format!("{:.2}", rate.gb_per_s()))
}

fn length(bytes: u32) -> String {
    match bytes >> 20 {
        0 => format!("{}K", bytes >> 10),
        mib => format!("{mib}M"),
    }
}

fn costs(report: &Report) -> Result<()> {
    let mut header: Vec<String> = ["function", "read ns", "write ns", "descriptor ns"]
        .into_iter()
        .chain(["copy ns", "interrupt ns"])
        .map(str::to_owned)
        .collect();
    header.extend(MEASURED_LENGTHS.map(|len| format!("{} GB/s", length(len))));
    let names: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = say::table(&names);
    for told in &report.functions {
        let m = &told.measured;
        let mut row = vec![
            told.address.clone(),
            ns(m.read_ns),
            ns(m.write_ns),
            ns(m.descriptor_ns),
            ns(m.lone_copy_ns),
            ns(m.interrupt_ns),
        ];
        row.extend(m.rates.iter().map(|rate| gb_per_s(rate.as_ref())));
        table.add_row(row);
    }
    right_align(&mut table);
    say::print(&table.to_string())?;
    if report.together.is_empty() {
        return Ok(());
    }
    let mut table = say::table(&["together", "functions", "length", "GB/s"]);
    for one in &report.together {
        let (first, last) = (one.functions.first(), one.functions.last());
        let name = |address: Option<&String>| address.map_or("", String::as_str).to_owned();
        table.add_row([
            format!("{} to {}", name(first), name(last)),
            one.functions.len().to_string(),
            length(one.rate.len_bytes),
            format!("{:.2}", one.rate.gb_per_s()),
        ]);
    }
    right_align(&mut table);
    say::print("")?;
    say::print(&table.to_string())
}

/// Numbers line up at their ends; the first column is a name.
fn right_align(table: &mut comfy_table::Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
