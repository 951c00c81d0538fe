//! The fit: costs from the published tables.
//!
//! The measure of a cell is the error of its predicted throughput in units of what it may be off
//! ([`Cell::tolerance`]); one is the bound. The outlier takes no part. The fit lowers the sum of
//! the eighth powers, which is next to the worst cell and yet smooth.
//!
//! 1. Four numbers shape the copy: engine, port, round trip and flat cost. For each try of them the
//!    best S of each folio size follows from its column alone, by a search on one line.
//! 2. The second table gives what a call costs, and how long it is cold, on both paths.
//! 3. Both are repeated, since a cold call is a part of the first table's cells too.
//!
//! Copies are simulated with few folios: time per folio is the same, and the fit takes seconds.

use crate::costs::{Costs, Hypothesis, PIECE_BYTES};
use crate::published::{Cell, FolioSize, PAGE_BYTES, Source, TABLES};
use crate::strategy::{Load, cpu_call, published_copy};

/// Folios, or merged descriptors, of a shortened copy: a multiple of each number of channels.
const SHORT: u64 = 96;

/// The power of the norm.
const POWER: i32 = 8;

/// How often the two steps are repeated. The third time changes nothing that shows.
const ROUNDS: usize = 3;

/// Copy time per folio of the published driver in a long run, ns.
fn copy_per_folio(costs: &Costs, cell: &Cell) -> f64 {
    let merged = (PIECE_BYTES / cell.folio.bytes()).max(1);
    let load = Load {
        folio: cell.folio,
        count: SHORT * merged,
    };
    // Both hypotheses cost the published driver the same.
    let copy = published_copy(costs, Hypothesis::Translation, load, cell.channels);
    copy / load.count as f64
}

/// The error of a time per folio, in units of the cell's tolerance.
fn error(cell: &Cell, folio_ns: f64) -> f64 {
    let predicted = cell.folio.bytes() as f64 / folio_ns;
    (predicted - cell.gb_per_s) / cell.tolerance()
}

fn norm(errors: impl Iterator<Item = f64>) -> f64 {
    errors.map(|e| e.powi(POWER)).sum()
}

/// The lowest point of a function with one valley, between two bounds.
fn valley(mut low: f64, mut high: f64, f: impl Fn(f64) -> f64) -> f64 {
    // 60 steps leave 2^-35 of the interval.
    for _ in 0..60 {
        let third = (high - low) / 3.0;
        if f(low + third) < f(high - third) {
            high -= third;
        } else {
            low += third;
        }
    }
    f64::midpoint(low, high)
}

/// Fits S of every size for these costs of a copy. Returns the norm over all cells.
fn fit_other(costs: &mut Costs) -> f64 {
    let mut total = 0.0;
    for folio in FolioSize::ALL {
        let column: Vec<_> = TABLES
            .cells
            .iter()
            .filter(|c| c.folio == folio && c.source != Source::FolioCount && !c.is_outlier())
            .map(|c| {
                let call = costs.call(false, c.folio.bytes() * c.folios) / c.folios as f64;
                (c, copy_per_folio(costs, c) + call)
            })
            .collect();
        let measure = |other: f64| norm(column.iter().map(|(c, ns)| error(c, ns + other)));
        let most = TABLES.cpu_of(folio).folio_ns();
        let other = valley(0.0, most, measure);
        costs.set_other(folio, other);
        total += measure(other);
    }
    total
}

/// The four numbers of a copy, by index.
fn set(costs: &mut Costs, index: usize, value: f64) {
    match index {
        0 => costs.engine_gb_per_s = value,
        1 => costs.port_gb_per_s = value,
        2 => costs.round_trip_ns = value,
        _ => {
            costs.piece_ns = value;
            costs.page_ns = value * PAGE_BYTES as f64 / PIECE_BYTES as f64;
        }
    }
}

fn get(costs: &Costs, index: usize) -> f64 {
    match index {
        0 => costs.engine_gb_per_s,
        1 => costs.port_gb_per_s,
        2 => costs.round_trip_ns,
        _ => costs.piece_ns,
    }
}

/// Step one: a search along each of the four, with steps that shrink from 8 % to 0.1 %.
fn fit_copy(costs: &mut Costs) {
    let mut best = fit_other(costs);
    let mut step = 0.08;
    while step > 0.001 {
        let mut better = false;
        for index in 0..4 {
            for factor in [1.0 + step, 1.0 / (1.0 + step)] {
                let mut tried = costs.clone();
                set(&mut tried, index, get(costs, index) * factor);
                let measure = fit_other(&mut tried);
                if measure < best {
                    (*costs, best, better) = (tried, measure, true);
                }
            }
        }
        if !better {
            step /= 2.0;
        }
    }
}

/// Step two: the call, from the second table.
fn fit_call(costs: &mut Costs) {
    // The CPU's rate: what the baseline at 2 MiB leaves beside S.
    let huge = FolioSize::HUGE;
    let cell = TABLES.cpu_of(huge);
    costs.cpu_gb_per_s = huge.bytes() as f64 / (cell.folio_ns() - costs.other(huge));
    let rows: Vec<_> = TABLES
        .of(Source::FolioCount)
        .map(|c| (c, copy_per_folio(costs, c)))
        .collect();
    let offload = |costs: &Costs| {
        norm(rows.iter().map(|(c, copy)| {
            let call = costs.call(false, c.folio.bytes() * c.folios) / c.folios as f64;
            error(c, costs.other(huge) + copy + call)
        }))
    };
    let mut best = (f64::INFINITY, costs.clone());
    // Powers of two and what lies between them.
    for cold_mib in [8.0, 16.0, 24.0, 32.0, 40.0, 48.0, 64.0, 96.0, 128.0] {
        for cold_us in 0..60 {
            let mut tried = costs.clone();
            tried.cold_mib = cold_mib;
            tried.cold_ns_per_mib = f64::from(cold_us) * 1_000.0;
            tried.call_ns = valley(0.0, 400_000.0, |call_ns| {
                offload(&Costs {
                    call_ns,
                    ..tried.clone()
                })
            });
            let measure = offload(&tried);
            if measure < best.0 {
                best = (measure, tried);
            }
        }
    }
    *costs = best.1;
    // One folio alone says what a call costs the CPU, whose cold part is taken to be the same.
    let mut counts = TABLES.cpu.iter().filter(|c| c.source == Source::FolioCount);
    if let Some(one) = counts.find(|c| c.folios == 1) {
        costs.cpu_call_ns = valley(0.0, 400_000.0, |cpu_call_ns| {
            let tried = Costs {
                cpu_call_ns,
                ..costs.clone()
            };
            error(one, cpu_call(&tried, load(one))).abs()
        });
    }
}

const fn load(cell: &Cell) -> Load {
    Load {
        folio: cell.folio,
        count: cell.folios,
    }
}

/// Four significant digits: more would say more than the tables do.
fn rounded(value: f64) -> f64 {
    if value == 0.0 {
        return 0.0;
    }
    let digits = 10f64.powf(3.0 - value.abs().log10().floor());
    (value * digits).round() / digits
}

/// Fits everything that the tables tell.
#[must_use]
pub fn fit() -> Costs {
    let mut costs = Costs::start();
    for _ in 0..ROUNDS {
        fit_copy(&mut costs);
        fit_call(&mut costs);
    }
    fit_other(&mut costs);
    let numbers = [
        &mut costs.engine_gb_per_s,
        &mut costs.port_gb_per_s,
        &mut costs.round_trip_ns,
        &mut costs.page_ns,
        &mut costs.piece_ns,
        &mut costs.call_ns,
        &mut costs.cpu_call_ns,
        &mut costs.cpu_gb_per_s,
    ];
    for number in numbers.into_iter().chain(costs.other_ns.values_mut()) {
        *number = rounded(*number);
    }
    costs
}
