//! Tables for people.

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};

use super::Results;
use super::measure::{Cell, Migrator};

/// Said beside every table.
pub(super) const CONDITIONS: &str = "Linux under an emulated processor that counts instructions \
     (a `rep movs` counts one for each byte or word that it moves); the device is a model. Counts \
     are exact and comparable; throughput is emulated and not comparable. Every byte was compared.";

type Figure = fn(&Cell) -> String;

/// The figures of table 1 and 2, one table each.
const FIGURES: &[(&str, Figure)] = &[
    (
        "guest instructions per folio in move_pages, all of it",
        |cell| format!("{:.0}", cell.instructions_per_folio),
    ),
    ("guest instructions per folio in the copy", |cell| {
        cell.copy_instructions_per_folio
            .map_or_else(|| "?".into(), |count| format!("{count:.0}"))
    }),
    ("MMIO accesses per folio", |cell| {
        small(cell.reads_per_folio + cell.writes_per_folio)
    }),
    ("interrupts per folio", |cell| {
        small(cell.interrupts_per_folio)
    }),
    ("descriptors per folio", |cell| {
        small(cell.descriptors_per_folio)
    }),
    ("folios that the migrator copied, percent", |cell| {
        format!(
            "{:.0}",
            100.0 * cell.by_device as f64 / cell.folios.max(1) as f64
        )
    }),
    ("emulated MB/s, not comparable", |cell| {
        format!("{:.0}", cell.emulated_mb_per_s)
    }),
];

/// Prints everything.
pub(super) fn print(results: &Results) {
    println!(
        "{CONDITIONS}\nkernel {}, batches of {} pages\n",
        results.kernel, results.batch_pages
    );
    for (title, figure) in FIGURES {
        println!("Table 1, by folio size: {title}");
        println!(
            "{}\n",
            grid(&results.sizes, "KiB", |cell| cell.folio_kib, *figure)
        );
    }
    ratio("Table 1, by folio size", &results.sizes, "KiB", |cell| {
        cell.folio_kib
    });
    for (title, figure) in FIGURES {
        println!("Table 2, by number of 2 MiB folios: {title}");
        println!(
            "{}\n",
            grid(&results.huge, "folios", |cell| cell.at_once, *figure)
        );
    }
    ratio(
        "Table 2, by number of 2 MiB folios",
        &results.huge,
        "folios",
        |cell| cell.at_once,
    );
    if !results.compaction.is_empty() {
        println!("Compaction");
        println!("{}", compaction(results));
    }
    if !results.targets.is_empty() {
        println!("Targets, by instructions in the copy");
    }
    for target in &results.targets {
        println!("{target}");
    }
}

/// Prints what the copies cost beside the CPU's own, if that was measured.
fn ratio(table: &str, cells: &[Cell], unit: &str, column: fn(&Cell) -> u64) {
    if cells.iter().any(|cell| cell.migrator == Migrator::Cpu) {
        println!("{table}: instructions in the copy, as a share of the CPU's own");
        println!(
            "{}\n",
            grid(cells, unit, column, |cell| share_of_cpu(cells, cell))
        );
    }
}

/// What the copy costs beside the CPU's copy of as many folios of this size: `1/72`.
fn share_of_cpu(cells: &[Cell], cell: &Cell) -> String {
    let baseline = cells.iter().find(|other| {
        other.migrator == Migrator::Cpu
            && other.folio_kib == cell.folio_kib
            && other.folios == cell.folios
    });
    let cpu = baseline.and_then(|cpu| cpu.copy_instructions_per_folio);
    match (cpu, cell.copy_instructions_per_folio) {
        (Some(cpu), Some(count)) if count > 0.0 => {
            let times = cpu / count;
            format!("1/{times:.*}", usize::from(times < 10.0))
        }
        (Some(_), None) => "?".into(),
        _ => String::new(),
    }
}

/// A row for each (migrator, channels), a column for each value of `column`.
fn grid(
    cells: &[Cell],
    unit: &str,
    column: fn(&Cell) -> u64,
    figure: impl Fn(&Cell) -> String,
) -> Table {
    let mut columns: Vec<u64> = cells.iter().map(column).collect();
    columns.sort_unstable();
    columns.dedup();
    let mut rows: Vec<String> = Vec::new();
    for cell in cells {
        let name = row_name(cell);
        if !rows.contains(&name) {
            rows.push(name);
        }
    }
    let mut table = new_table();
    let mut header = vec![String::new()];
    header.extend(columns.iter().map(|value| format!("{value} {unit}")));
    table.set_header(header);
    for row in rows {
        let mut line = vec![row.clone()];
        for value in &columns {
            let found = cells
                .iter()
                .find(|cell| row_name(cell) == row && column(cell) == *value);
            line.push(found.map_or_else(String::new, &figure));
        }
        table.add_row(line);
    }
    align(&mut table);
    table
}

fn row_name(cell: &Cell) -> String {
    match cell.channels {
        0 => cell.migrator.to_string(),
        1 => format!("{}, 1 channel", cell.migrator),
        n => format!("{}, {n} channels", cell.migrator),
    }
}

fn compaction(results: &Results) -> Table {
    let mut table = new_table();
    table.set_header([
        "",
        "beside it",
        "pages moved",
        "million instructions",
        "work of the other",
        "descriptors",
        "interrupts",
    ]);
    for row in &results.compaction {
        table.add_row([
            row.migrator.to_string(),
            if row.busy { "a busy thread" } else { "nothing" }.into(),
            format!("{} of {}", row.pages_migrated, row.pages_fragmented),
            format!("{:.1}", row.million_instructions),
            if row.busy {
                format!("{:.0} turns/page", row.hog_turns_per_page)
            } else {
                String::new()
            },
            row.descriptors.to_string(),
            row.interrupts.to_string(),
        ]);
    }
    align(&mut table);
    table
}

/// Many small tables of figures: no lines but under the header.
fn new_table() -> Table {
    let line = LineStyle::none().fill('─').junction('─');
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(line));
    table
}

fn align(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// Three figures, however small the value is.
fn small(value: f64) -> String {
    if value == 0.0 || value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn cell(migrator: Migrator, channels: usize, folio_kib: u64) -> Cell {
        Cell {
            migrator,
            channels,
            folio_kib,
            at_once: 2,
            folios: 8,
            by_device: 8,
            instructions_per_folio: 1234.5,
            copy_instructions_per_folio: Some(234.5),
            reads_per_folio: 3.0,
            writes_per_folio: 6.0,
            interrupts_per_folio: 0.03,
            descriptors_per_folio: 1.0,
            channels_used: channels,
            imbalance: 1.0,
            verified_bytes: 8 * (folio_kib << 10),
            emulated_mb_per_s: 1.0,
        }
    }

    #[test]
    fn a_grid_has_a_row_for_each_migrator_and_number_of_channels() {
        let cells = [
            cell(Migrator::Cpu, 0, 4),
            cell(Migrator::Cpu, 0, 2048),
            cell(Migrator::Ptdma, 16, 4),
        ];
        let text = grid(&cells, "KiB", |cell| cell.folio_kib, FIGURES[2].1).to_string();
        assert!(
            text.contains("2048 KiB") && text.contains("ptdma, 16 channels"),
            "{text}"
        );
        assert_eq!(text.matches("9.00").count(), 3, "{text}");
    }

    #[test]
    fn shares_are_of_the_same_work_by_the_cpu() {
        let mut cells = [
            cell(Migrator::Cpu, 0, 2048),
            cell(Migrator::Ptdma, 16, 2048),
            cell(Migrator::Ptdma, 16, 4),
        ];
        cells[0].copy_instructions_per_folio = Some(23450.0);
        assert_eq!(share_of_cpu(&cells, &cells[1]), "1/100");
        assert_eq!(share_of_cpu(&cells, &cells[0]), "1/1.0");
        assert_eq!(share_of_cpu(&cells, &cells[2]), "");
    }

    #[test]
    fn small_figures_keep_three_digits() {
        assert_eq!(small(0.0), "0");
        assert_eq!(small(0.031_25), "0.0312");
        assert_eq!(small(9.0), "9.00");
        assert_eq!(small(1234.5), "1234");
    }
}
