//! What the published tables would be with this crate, by a timing model fitted to them.
//!
//! The tables are the mission's: `move_pages` throughput on a two-socket Zen 3 machine with 16
//! PTDMA functions. A cell is taken apart into set-up (everything that is not copying: unmapping,
//! moving, system call) and copying. The set-up of a row is the *largest* with which the model is
//! nowhere slower than what was measured, so that what the measured strategy achieved is never
//! doubted. Copying is then done by this crate's policy and planner, on engines as the default
//! cost model has them.
//!
//! This is a prediction and no measurement. `cargo test -p batch-copy-tests --test predict --
//! --nocapture` prints it.
#![allow(missing_docs)]

use batch_copy::{
    Bounds, CostModel, CutRules, Decision, Folio, Plan, Policy, Stretch, Survey, pieces,
};
use ptdma::DmaAddr;

const SIZES: [(&str, u64); 6] = [
    ("4K", 4 << 10),
    ("16K", 16 << 10),
    ("64K", 64 << 10),
    ("256K", 256 << 10),
    ("1M", 1 << 20),
    ("2M", 2 << 20),
];

/// GB/s of the kernel without offload.
const BASELINE: [f64; 6] = [3.55, 5.66, 6.16, 7.12, 6.93, 10.88];

/// Channels, and GB/s of the published migrator with them.
const PUBLISHED: [(usize, [f64; 6]); 6] = [
    (1, [2.63, 2.92, 3.16, 4.75, 7.38, 12.64]),
    (2, [3.20, 4.68, 5.16, 7.42, 8.05, 14.40]),
    (4, [3.78, 6.45, 7.36, 9.70, 11.68, 27.16]),
    (8, [4.32, 8.20, 9.45, 12.99, 13.18, 46.17]),
    (12, [4.35, 8.80, 11.65, 15.46, 14.69, 60.89]),
    (16, [4.40, 9.25, 11.02, 13.56, 18.04, 66.86]),
];

/// Folios of 2 MiB moved at once with one channel; GB/s of the baseline and of the migrator.
const BY_COUNT: [(usize, f64, f64); 10] = [
    (1, 7.34, 6.17),
    (8, 8.27, 8.85),
    (16, 7.56, 9.12),
    (32, 8.39, 11.73),
    (64, 9.37, 12.18),
    (256, 10.58, 12.50),
    (512, 10.78, 12.68),
    (1024, 10.77, 12.76),
    (2048, 10.87, 12.81),
    (8192, 10.84, 12.82),
];

/// A batch of the first table: where the second one levels off, 64 folios of 2 MiB.
const BATCH_BYTES: u64 = 128 << 20;

fn ns_at(bytes: u64, gb_per_s: f64) -> f64 {
    bytes as f64 / gb_per_s
}

fn scale(bytes: u64, ns_per_mib: u64) -> f64 {
    bytes as f64 * ns_per_mib as f64 / f64::from(1 << 20)
}

fn folios(count: u64, len: u64) -> Vec<Folio> {
    let at = |base: u64, n: u64| DmaAddr::new(base + n * (len + 4096));
    (0..count)
        .map(|n| Folio::new(at(0x1000, n), at(1 << 46, n), len))
        .collect()
}

/// The time that this crate takes to copy a batch, from what it really decides and plans.
fn ours_ns(count: u64, len: u64, channels: usize, model: &CostModel) -> f64 {
    let bytes = count * len;
    let mut policy = Policy::new(*model, channels);
    policy.hybrid = true;
    let (used, cpu_share) = match policy.decide(count as usize, bytes, channels) {
        Decision::Decline => return model.cpu_ns(count, bytes) as f64,
        Decision::Engines {
            channels,
            cpu_share_bytes,
            ..
        } => (channels, cpu_share_bytes),
    };
    let folios = folios(count, len);
    let mut rules = CutRules::default();
    rules.min_part_bytes = model.min_part_bytes();
    let mut bounds = Bounds::default();
    bounds.addr_limit = DmaAddr::LIMIT;
    bounds.align_bytes = 1;
    bounds.max_folios = folios.len();
    bounds.min_part_bytes = rules.min_part_bytes;
    bounds.parts_enough = 16;
    let survey = Survey::of(&folios[..], &bounds).unwrap();
    let plan = Plan::<16>::new(&folios[..], &survey, bytes - cpu_share, used, &rules);
    // The engine with the most to do, alone or in the crowd.
    let lane_ns = |stretch: Stretch| {
        let descriptors = pieces(&folios[..], stretch).count() as u64;
        (descriptors * model.descriptor_ns) as f64
            + scale(stretch.len_bytes(), model.engine_ns_per_mib)
    };
    let slowest = plan.stretches().map(lane_ns).fold(0.0, f64::max);
    let engines = slowest.max(scale(bytes - cpu_share, model.fabric_ns_per_mib));
    let busy = (used as u64 * model.channel_ns + count * model.prepare_ns) as f64;
    let cpu = scale(cpu_share, model.cpu_ns_per_mib);
    model.engine_batch_ns as f64 + busy + engines.max(cpu)
}

#[test]
fn no_cell_of_the_published_tables_is_lost() {
    let model = CostModel::default();
    println!(
        "{:>5} {:>8} {:>9} {:>9} {:>9}",
        "folio", "channels", "baseline", "published", "predicted"
    );
    for (row, (name, len)) in SIZES.into_iter().enumerate() {
        let measured = |cell: &(usize, [f64; 6])| ns_at(len, cell.1[row]);
        // One folio on one channel of the published strategy, from its two ends.
        let alone = (measured(&PUBLISHED[0]) - measured(&PUBLISHED[5])) * 16.0 / 15.0;
        let their_copy =
            |channels: usize| (alone / channels as f64).max(scale(len, model.fabric_ns_per_mib));
        let setup = PUBLISHED
            .iter()
            .map(|cell| measured(cell) - their_copy(cell.0))
            .fold(
                ns_at(len, BASELINE[row]) - scale(len, model.cpu_ns_per_mib),
                f64::min,
            );
        assert!(setup > 0.0);
        let count = BATCH_BYTES / len;
        for cell in &PUBLISHED {
            let copy = ours_ns(count, len, cell.0, &model) / count as f64;
            let predicted = len as f64 / (setup + copy);
            println!(
                "{name:>5} {:>8} {:>9.2} {:>9.2} {predicted:>9.2}",
                cell.0, BASELINE[row], cell.1[row]
            );
            assert!(
                predicted >= BASELINE[row] && predicted >= cell.1[row],
                "{name}, {} channels",
                cell.0
            );
        }
    }
}

#[test]
fn one_folio_or_many_with_one_channel_wins() {
    let model = CostModel::default();
    let len = 2 << 20;
    println!(
        "{:>6} {:>9} {:>9} {:>9}",
        "folios", "baseline", "published", "predicted"
    );
    for (count, baseline, published) in BY_COUNT {
        let bytes = count as u64 * len;
        let their_copy = scale(bytes, model.engine_ns_per_mib);
        let setup = (ns_at(bytes, baseline) - scale(bytes, model.cpu_ns_per_mib))
            .min(ns_at(bytes, published) - their_copy)
            .max(0.0);
        let predicted = bytes as f64 / (setup + ours_ns(count as u64, len, 1, &model));
        println!("{count:>6} {baseline:>9.2} {published:>9.2} {predicted:>9.2}");
        assert!(
            predicted >= baseline && predicted >= published,
            "{count} folios"
        );
    }
}

/// Compaction: 32 pages a batch, where the published migrator was 13 % slower than the CPU.
#[test]
fn a_compaction_batch_is_not_slower_than_the_cpu() {
    let model = CostModel::default();
    let (pages, bytes) = (32, 32 * 4096);
    assert!(ours_ns(pages, 4096, 16, &model) <= model.cpu_ns(pages, bytes) as f64);
}
