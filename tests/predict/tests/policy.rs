//! That the policy of `batch-copy`, which the kernel module decides by, loses in no published cell.
//!
//! The policy has its default costs: it knows neither which hypothesis holds, nor S, nor what an IOMMU
//! merges. What comes of its decision is simulated at the costs of the fit.
#![forbid(unsafe_code)]

use batch_copy::{CostModel, Decision, Policy};
use ptdma_predict::costs::{Costs, Hypothesis};
use ptdma_predict::published::{Cell, FolioSize, MACHINE_CHANNELS, Source, TABLES};
use ptdma_predict::strategy::{Load, Ours, offload_call, ports, published_call};

/// What the policy does with a call on up to so many channels; 0: left to the CPU.
fn decide(load: Load, most: usize) -> usize {
    let mut model = CostModel::default();
    model.ports = 1 + ports().into_iter().max().unwrap() as u64;
    let policy = Policy::new(model, most);
    match policy.decide(load.count as usize, load.bytes(), MACHINE_CHANNELS) {
        Decision::Decline => 0,
        Decision::Engines { channels, .. } => channels,
    }
}

/// GB/s of a call that the policy decides about; `cpu` is what the CPU makes of it.
fn ours(costs: &Costs, hypothesis: Hypothesis, load: Load, most: usize, cpu: f64) -> f64 {
    let channels = decide(load, most);
    if channels == 0 {
        return cpu;
    }
    let ours = Ours {
        costs,
        hypothesis,
        channels: most,
        hybrid: false,
    };
    let copy_ns = ours.copy(load, ours.on(channels, load)).wall_ns;
    load.bytes() as f64 / offload_call(costs, load, copy_ns)
}

fn load(cell: &Cell) -> Load {
    Load {
        folio: cell.folio,
        count: cell.folios,
    }
}

/// The CPU's number beside a cell.
fn cpu_beside(cell: &Cell) -> f64 {
    let mut cells = TABLES.cpu.iter();
    let same =
        |c: &&Cell| c.source == cell.source && c.folio == cell.folio && c.folios == cell.folios;
    cells.find(same).expect("each cell has one").gb_per_s
}

#[test]
fn no_published_cell_is_lost_under_either_hypothesis() {
    let costs = Costs::default();
    let mut accepted = 0;
    for cell in &TABLES.cells {
        let (load, cpu) = (load(cell), cpu_beside(cell));
        for hypothesis in Hypothesis::BOTH {
            let ours = ours(&costs, hypothesis, load, cell.channels, cpu);
            let ns = published_call(&costs, hypothesis, load, cell.channels);
            let published = load.bytes() as f64 / ns;
            println!(
                "{} x {}, {} channels, {}: CPU {cpu:.2}, published {published:.2}, ours {ours:.2} on {}",
                cell.folios,
                cell.folio,
                cell.channels,
                hypothesis.name(),
                decide(load, cell.channels)
            );
            assert!(
                ours >= 0.999 * cpu.max(published),
                "{} x {}, {} channels, {}: {ours:.2} of {cpu:.2} and {published:.2}",
                cell.folios,
                cell.folio,
                cell.channels,
                hypothesis.name()
            );
            accepted += usize::from(decide(load, cell.channels) != 0);
        }
    }
    // It is no answer to leave all of it to the CPU.
    assert!(accepted * 4 > TABLES.cells.len() * 2 * 3, "{accepted}");
}

#[test]
fn ports_give_what_was_asked_for() {
    let costs = Costs::default();
    for (channels, factor) in [(2, 1.55), (4, 1.4), (8, 1.3)] {
        let mut cells = TABLES.of(Source::Channels);
        let cell = cells
            .find(|c| c.channels == channels && c.folio == FolioSize::HUGE)
            .unwrap();
        for hypothesis in Hypothesis::BOTH {
            let ours = ours(&costs, hypothesis, load(cell), channels, cpu_beside(cell));
            let gain = ours / cell.gb_per_s;
            assert!(gain >= factor, "{channels} channels: {gain:.2}");
        }
    }
}

#[test]
fn one_huge_folio_goes_to_one_channel_of_each_port() {
    let one = Load {
        folio: FolioSize::HUGE,
        count: 1,
    };
    for (most, expected) in [(2, 2), (4, 4), (8, 8), (12, 8), (16, 8)] {
        assert_eq!(decide(one, most), expected, "of {most}");
    }
}
