//! Host time of batches, both strategies in one run: `cargo bench -p batch-copy-tests --bench
//! timing`, some twenty seconds.
//!
//! On functions of plain memory whose engine is infinitely fast, so this is the CPU's part alone.
//! Times of this machine are of no interest; what is, is the ratio that the last lines state.
//! The published strategy's locks, wake-ups and slab allocations are left out of its model, which
//! flatters it. Counts, which are the same on every run, are the other benchmark's.

use std::cell::Cell;
use std::time::{Duration, Instant};

use batch_copy_tests::contest::{Contest, Strategy};
use batch_copy_tests::workload::WORKLOADS;
use criterion::{BenchmarkId, Criterion, Throughput};

/// Which workloads, by their place in the list: 512 x 4K scattered, 32 x 4K, 1 x 2M, mixed.
const CHOSEN: [usize; 4] = [0, 2, 3, 5];

fn main() {
    // Short: the fastest of many samples is what counts, and it is found at once.
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(400))
        .sample_size(20)
        .without_plots()
        .configure_from_args();
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "folios",
        "channels",
        "published : polled",
        "published : interrupts",
    ]);
    for workload in CHOSEN.iter().filter_map(|&index| WORKLOADS.get(index)) {
        let mut group = criterion.benchmark_group(workload.name);
        group.throughput(Throughput::Elements(workload.lens().len() as u64));
        for channels in [1, 16] {
            let fastest = Strategy::ALL.map(|strategy| {
                let fastest = Cell::new(f64::INFINITY);
                let mut contest = Contest::new(strategy, workload, channels);
                group.bench_function(BenchmarkId::new(strategy.name(), channels), |b| {
                    b.iter_custom(|times| {
                        let start = Instant::now();
                        for _ in 0..times {
                            assert!(
                                matches!(contest.run(), Ok(true)),
                                "not everything was copied"
                            );
                        }
                        let took = start.elapsed();
                        let each = took.as_secs_f64() / times.max(1) as f64;
                        fastest.set(fastest.get().min(each));
                        took
                    });
                });
                fastest.get()
            });
            let [published, polled, interrupts] = fastest;
            // Whatever a filter on the command line left out was not measured.
            let ratio = |ours: f64| {
                let ratio = published / ours;
                if ratio.is_finite() && ratio > 0.0 {
                    format!("{ratio:.1}")
                } else {
                    "-".to_owned()
                }
            };
            table.add_row([
                workload.name.to_owned(),
                channels.to_string(),
                ratio(polled),
                ratio(interrupts),
            ]);
        }
        group.finish();
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    println!("\nHost time, published strategy to ours (fastest sample of each):\n{table}");
    criterion.final_summary();
}
