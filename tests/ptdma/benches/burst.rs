//! Time of a burst through one channel, on plain memory: `cargo bench -p ptdma-tests --bench
//! burst`. For changes against each other; instructions are counted by the other benchmark.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ptdma::Signalling;
use ptdma_tests::fake_function::FakeFunction;

fn bursts(c: &mut Criterion) {
    let mut group = c.benchmark_group("burst");
    for (entries, burst) in [(32, 1), (32, 31), (512, 511), (8192, 8191)] {
        group.throughput(Throughput::Elements(burst));
        let mut polled = FakeFunction::new(entries, Signalling::Polled, ptdma::Restart::ByTail);
        group.bench_function(BenchmarkId::new("polled", burst), |b| {
            b.iter(|| polled.polled_burst(burst));
        });
        let mut driven = FakeFunction::new(entries, Signalling::Interrupts, ptdma::Restart::ByTail);
        group.bench_function(BenchmarkId::new("interrupt", burst), |b| {
            b.iter(|| driven.interrupt_burst(burst));
        });
    }
    group.finish();
}

criterion_group!(benches, bursts);
criterion_main!(benches);
