//! What the copy was to cost at most, and whether it does.

use std::fmt;

use serde::Serialize;

use super::measure::{Cell, Migrator};

/// Channels for which the targets hold.
const CHANNELS: usize = 16;

/// A target that this run has measured.
#[derive(Debug, Serialize)]
pub(super) struct Target {
    /// What was to be copied.
    work: String,
    /// Beside whom.
    beside: Migrator,
    /// So many times fewer instructions in the copy were wanted.
    wanted: f64,
    /// So many times fewer there are; nothing if it could not be told.
    times_fewer: Option<f64>,
    /// Instructions in the copy, per folio.
    copy_instructions_per_folio: Option<f64>,
    met: bool,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.met { "met   " } else { "MISSED" };
        write!(f, "{word}  {}: ", self.work)?;
        match (self.copy_instructions_per_folio, self.times_fewer) {
            (Some(count), Some(times)) => write!(
                f,
                "{count:.0} instructions in the copy, {times:.2} times fewer than {}",
                self.beside
            )?,
            _ => write!(f, "could not be told beside {}", self.beside)?,
        }
        write!(f, " (wanted: {})", self.wanted)
    }
}

/// The targets of these two tables; those of what was not measured are left out.
pub(super) fn targets(sizes: &[Cell], huge: &[Cell]) -> Vec<Target> {
    let one = huge.iter().filter(|cell| cell.at_once == 1);
    let mut out = Vec::new();
    for cell in sizes.iter().filter(|cell| cell.folio_kib == 2048) {
        let work = format!("{} folios of 2 MiB on {CHANNELS} channels", cell.at_once);
        out.extend(target(sizes, cell, work, Migrator::Cpu, 100.0));
    }
    for cell in one {
        let work = format!("one folio of 2 MiB on {CHANNELS} channels");
        out.extend(target(huge, cell, work, Migrator::Cpu, 100.0));
    }
    for cell in sizes.iter().filter(|cell| cell.folio_kib == 4) {
        for (beside, wanted) in [(Migrator::Cpu, 4.0), (Migrator::Dcbm, 3.0)] {
            let work = format!("folios of 4 KiB on {CHANNELS} channels");
            out.extend(target(sizes, cell, work, beside, wanted));
        }
    }
    out
}

fn target(
    cells: &[Cell],
    cell: &Cell,
    work: String,
    beside: Migrator,
    wanted: f64,
) -> Option<Target> {
    if cell.migrator != Migrator::Ptdma || cell.channels != CHANNELS {
        return None;
    }
    let other = cells.iter().find(|other| {
        other.migrator == beside
            && other.folio_kib == cell.folio_kib
            && other.folios == cell.folios
            && (beside == Migrator::Cpu || other.channels == cell.channels)
    })?;
    let count = cell.copy_instructions_per_folio;
    let times_fewer = match (other.copy_instructions_per_folio, count) {
        (Some(other), Some(count)) if count > 0.0 => Some(other / count),
        _ => None,
    };
    Some(Target {
        work,
        beside,
        wanted,
        times_fewer,
        copy_instructions_per_folio: count,
        met: times_fewer.is_some_and(|times| times >= wanted),
    })
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::cell;
    use super::*;

    fn costs(cell: Cell, count: Option<f64>) -> Cell {
        Cell {
            copy_instructions_per_folio: count,
            ..cell
        }
    }

    fn words(targets: &[Target]) -> Vec<bool> {
        targets.iter().map(|target| target.met).collect()
    }

    #[test]
    fn each_target_is_met_or_missed_by_its_own_figure() {
        let sizes = |huge, small| {
            [
                costs(cell(Migrator::Cpu, 0, 4), Some(4800.0)),
                costs(cell(Migrator::Cpu, 0, 2048), Some(2_000_000.0)),
                costs(cell(Migrator::Dcbm, 16, 4), Some(2100.0)),
                costs(cell(Migrator::Ptdma, 16, 2048), huge),
                costs(cell(Migrator::Ptdma, 16, 4), small),
                costs(cell(Migrator::Ptdma, 1, 4), Some(9999.0)),
            ]
        };
        let met = targets(&sizes(Some(20_000.0), Some(700.0)), &[]);
        assert_eq!(words(&met), [true, true, true]);
        let text = met[0].to_string();
        assert!(text.starts_with("met ") && text.contains("20000"), "{text}");
        let missed = targets(&sizes(Some(20_001.0), Some(701.0)), &[]);
        assert_eq!(words(&missed), [false, true, false]);
        assert!(missed[0].to_string().starts_with("MISSED"));
        let untold = targets(&sizes(None, Some(700.0)), &[]);
        assert_eq!(words(&untold), [false, true, true]);
        assert!(untold[0].to_string().contains("could not be told"));
    }

    #[test]
    fn what_was_not_measured_has_no_target() {
        let alone = [
            cell(Migrator::Ptdma, 16, 4),
            cell(Migrator::Ptdma, 16, 2048),
        ];
        assert!(targets(&alone, &[]).is_empty());
    }

    #[test]
    fn one_huge_folio_counts_and_several_do_not() {
        let table = |at_once| {
            [Migrator::Cpu, Migrator::Ptdma].map(|migrator| Cell {
                at_once,
                ..cell(migrator, 16, 2048)
            })
        };
        assert_eq!(targets(&[], &table(1)).len(), 1);
        assert_eq!(targets(&[], &table(4)).len(), 0);
    }
}
