//! Properties of the plan: every byte once, balance, limits.
#![allow(missing_docs)]

use batch_copy::{Bounds, CutRules, Folio, Plan, Stretch, Survey, pieces};
use proptest::prelude::*;
use ptdma::DmaAddr;

const LANES: usize = 16;

fn bounds(rules: &CutRules) -> Bounds {
    let mut bounds = Bounds::default();
    bounds.addr_limit = DmaAddr::LIMIT;
    bounds.align_bytes = 1;
    bounds.max_folios = 1 << 20;
    bounds.min_part_bytes = rules.min_part_bytes;
    bounds.parts_enough = 256;
    bounds
}

fn plan(folios: &[Folio], channels: usize, rules: &CutRules) -> (Survey, Plan<LANES>) {
    let survey = Survey::of(folios, &bounds(rules)).expect("sound list");
    let plan = Plan::new(folios, &survey, survey.bytes, channels, rules);
    (survey, plan)
}

/// Folios of the given sizes; `true` glues a folio to the one before it on both sides.
fn layout(sizes: &[(u64, bool)]) -> Vec<Folio> {
    let (mut src, mut dst) = (0x1000_0000_u64, 0x80_0000_0000_u64);
    sizes
        .iter()
        .map(|&(len, glued)| {
            if !glued {
                src += 0x10_0000;
                dst += 0x20_0000;
            }
            let folio = Folio::new(DmaAddr::new(src), DmaAddr::new(dst), len);
            src += len;
            dst += len;
            folio
        })
        .collect()
}

fn loads(plan: &Plan<LANES>) -> Vec<u64> {
    plan.stretches().map(Stretch::len_bytes).collect()
}

fn worst_to_mean(plan: &Plan<LANES>, channels: usize) -> f64 {
    let loads = loads(plan);
    let worst = *loads.iter().max().expect("not empty") as f64;
    worst * channels as f64 / loads.iter().sum::<u64>() as f64
}

#[test]
fn one_huge_folio_uses_all_channels_evenly() {
    for len in [2 << 20, 32 << 20, 1 << 30] {
        for channels in 1..=LANES {
            let (_, plan) = plan(&layout(&[(len, false)]), channels, &CutRules::default());
            let loads = loads(&plan);
            assert_eq!(loads.len(), channels);
            let (min, max) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
            assert!((max - min) * 100 < *min, "{len} over {channels}: {loads:?}");
        }
    }
}

#[test]
fn contiguous_base_pages_become_one_part_per_channel() {
    let folios = layout(&vec![(4096, true); 512]);
    let (survey, plan) = plan(&folios, 16, &CutRules::default());
    assert_eq!(survey.parts, 32);
    assert_eq!(loads(&plan), vec![128 << 10; 16]);
}

#[test]
fn scattered_base_pages_are_dealt_out_whole() {
    let folios = layout(&vec![(4096, false); 512]);
    let (_, plan) = plan(&folios, 16, &CutRules::default());
    assert_eq!(loads(&plan), vec![32 * 4096; 16]);
}

#[test]
fn short_runs_use_fewer_channels() {
    let parts = |len| loads(&plan(&layout(&[(len, false)]), 16, &CutRules::default()).1);
    assert_eq!(parts(4096), vec![4096]);
    assert_eq!(parts(100 << 10), vec![100 << 10]);
    assert_eq!(parts(128 << 10), vec![64 << 10; 2]);
    assert_eq!(parts(256 << 10), vec![64 << 10; 4]);
}

fn sizes() -> impl Strategy<Value = Vec<(u64, bool)>> {
    let size = prop_oneof![
        6 => Just(4_u64 << 10), 2 => Just(16 << 10), 2 => Just(64 << 10),
        1 => Just(256 << 10), 1 => Just(1 << 20), 1 => Just(2 << 20),
        1 => 1_u64..300_000,
    ];
    prop::collection::vec((size, prop::bool::weighted(0.3)), 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn stretches_tile_the_stream(sizes in sizes(), channels in 1..=LANES, min_shift in 16..=18_u32) {
        let folios = layout(&sizes);
        let mut rules = CutRules::default();
        rules.min_part_bytes = 1 << min_shift;
        let (survey, plan) = plan(&folios, channels, &rules);
        let mut position = 0;
        for stretch in plan.stretches() {
            prop_assert_eq!(stretch.start, position);
            prop_assert!(stretch.end >= stretch.start);
            position = stretch.end;
        }
        prop_assert_eq!(position, survey.bytes);
        prop_assert_eq!(survey.bytes, folios.iter().map(|f| f.len_bytes).sum::<u64>());
        prop_assert!(plan.len() <= channels);
    }

    #[test]
    fn pieces_cover_every_byte_of_every_folio_once(sizes in sizes(), channels in 1..=LANES) {
        let folios = layout(&sizes);
        let (_, plan) = plan(&folios, channels, &CutRules::default());
        let mut covered = vec![0; folios.len()];
        for stretch in plan.stretches() {
            for piece in pieces(&folios[..], stretch) {
                let folio = folios[piece.folio];
                prop_assert_eq!(piece.offset_bytes, covered[piece.folio]);
                prop_assert_eq!(piece.src.get(), folio.src.get() + piece.offset_bytes);
                prop_assert_eq!(piece.dst.get(), folio.dst.get() + piece.offset_bytes);
                covered[piece.folio] += piece.len_bytes;
            }
        }
        for (folio, covered) in folios.iter().zip(covered) {
            prop_assert_eq!(folio.len_bytes, covered);
        }
    }

    /// Parts inside a run are at least the minimum, unless balance needed a shorter one: then the
    /// share of a channel is at least the minimum and the part no shorter than a base page.
    #[test]
    fn no_needlessly_short_parts(sizes in sizes(), channels in 1..=LANES) {
        let folios = layout(&sizes);
        let rules = CutRules::default();
        let (survey, plan) = plan(&folios, channels, &rules);
        let share = survey.bytes / plan.len() as u64;
        // Cuts that lie inside a run.
        let (mut runs, mut start, mut end) = (Vec::new(), 0, 0);
        for (index, folio) in folios.iter().enumerate() {
            if index > 0 && !sizes[index].1 {
                runs.push((start, end));
                start = end;
            }
            end += folio.len_bytes;
        }
        runs.push((start, end));
        for (start, end) in runs {
            let mut marks = vec![start];
            marks.extend(plan.stretches().map(|s| s.end).filter(|&e| start < e && e < end));
            marks.dedup();
            marks.push(end);
            if marks.len() == 2 { continue; }
            for pair in marks.windows(2) {
                let part = pair[1] - pair[0];
                let floor = if share >= rules.min_part_bytes { 4096 } else { rules.min_part_bytes };
                prop_assert!(part >= floor - 64, "part {part} in run {start}..{end}, share {share}");
                if share / 64 >= rules.min_part_bytes {
                    prop_assert!(part >= rules.min_part_bytes - 64);
                }
            }
        }
    }

    /// Mixed lists of 4K..2M folios: worst to mean under 1.05 once a share is 160 KiB or more
    /// (40 base pages, which cannot be divided).
    #[test]
    fn mixed_lists_are_balanced(
        sizes in prop::collection::vec(
            (prop::sample::select(vec![4_u64 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20]),
             prop::bool::weighted(0.2)), 64..512),
        channels in 2..=LANES,
    ) {
        let folios = layout(&sizes);
        let (survey, plan) = plan(&folios, channels, &CutRules::default());
        prop_assume!(survey.bytes / channels as u64 >= 200 << 10);
        let ratio = worst_to_mean(&plan, channels);
        prop_assert!(ratio < 1.05, "{ratio} {:?}", loads(&plan));
    }
}
