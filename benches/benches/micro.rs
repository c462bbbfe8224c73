//! The rows of `benches micro` one by one, by criterion: its statistics, and a comparison with the last run.
//!
//! `cargo bench -p benches`, or for some rows `cargo bench -p benches -- yield`. Runtimes do not take turns here, as they do
//! there: what happens on the machine meanwhile falls on one of them.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn rows(criterion: &mut Criterion) {
    for (row, operations) in benches::micro_rows() {
        let mut group = criterion.benchmark_group(row);
        group.sample_size(10).throughput(Throughput::Elements(operations));
        for runtime in ["gopark", "tokio", "smol"] {
            group.bench_function(runtime, |bencher| bencher.iter_custom(|times| benches::play(runtime, row, times)));
        }
        group.finish();
    }
}

criterion_group!(benches, rows);
criterion_main!(benches);
