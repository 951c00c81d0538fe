//! What the predicted table has to say.
#![forbid(unsafe_code)]

use clap::Parser;
use ptdma_predict::published::{FOLIO_LEN_BYTES, ONE_FOLIO};
use ptdma_predict::{Assumptions, column, one_folio};

#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    assumed: Assumptions,
}

fn assumed(arguments: &[&str]) -> Assumptions {
    let arguments = [&["test", "--batch-bytes", "4194304"], arguments].concat();
    Defaults::try_parse_from(arguments).unwrap().assumed
}

#[test]
fn no_cell_loses_whatever_a_descriptor_costs() {
    for descriptor_ns in ["100", "500", "5000"] {
        let assumed = assumed(&["--descriptor-ns", descriptor_ns]);
        for size in 0..4 {
            for cell in column(&assumed, size).unwrap() {
                assert!(cell.keeps_up(), "{descriptor_ns} ns: {cell:?}");
            }
        }
    }
}

#[test]
fn mapping_that_is_too_dear_is_seen_and_left_to_the_cpu() {
    let assumed = assumed(&["--map-ns", "400"]);
    for cell in column(&assumed, 0).unwrap() {
        assert!((cell.ours / cell.cpu - 1.0).abs() < 0.01, "{cell:?}");
    }
}

#[test]
fn the_method_finds_the_published_cells_again() {
    // One number is fitted per folio size; the 1M column's published error bars are half of its
    // values, and at 4K the engines do not decide.
    let assumed = Defaults::try_parse_from(["test"]).unwrap().assumed;
    let mut errors = Vec::new();
    for size in [1, 2, 3, 5] {
        // Only the modelled part, which needs no simulation, so the real batch size is cheap.
        for cell in ptdma_predict::modelled(&assumed, size) {
            errors.push((cell.1 / cell.0 - 1.0).abs());
        }
    }
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    assert!(mean < 0.15, "{mean} {errors:?}");
}

#[test]
fn one_folio_gains_from_many_channels() {
    let assumed = assumed(&[]);
    let (one, many) = (
        one_folio(&assumed, 1).unwrap(),
        one_folio(&assumed, 16).unwrap(),
    );
    assert!(
        one >= ONE_FOLIO.1 && many > 1.3 * ONE_FOLIO.0,
        "{one} {many}"
    );
}

#[test]
fn predictions_are_the_same_every_time() {
    let assumed = assumed(&[]);
    let once = column(&assumed, FOLIO_LEN_BYTES.len() - 1).unwrap();
    let again = column(&assumed, FOLIO_LEN_BYTES.len() - 1).unwrap();
    for (a, b) in once.iter().zip(&again) {
        assert!(a.ours.to_bits() == b.ours.to_bits() && a.hybrid.to_bits() == b.hybrid.to_bits());
    }
}
