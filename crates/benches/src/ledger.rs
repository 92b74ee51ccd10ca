//! The fold: what a start does for each record, and the running daemon for each that it writes.

use crate::facts;
use criterion::{BatchSize, BenchmarkId, Criterion, SamplingMode, Throughput};
use restante_ledger::{Fact, Ledger};
use std::hint::black_box;

/// Messages in a fold.
const MESSAGES: u64 = 10_000;

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ledger: fold");
    group.sample_size(20).sampling_mode(SamplingMode::Flat);
    // All are pending before the first is sent, as after an outage.
    let accepted: Vec<Fact> = (0..MESSAGES).map(facts::accepted).collect();
    let sent: Vec<Fact> = (0..MESSAGES).map(facts::sent).collect();
    let deferred: Vec<Fact> = (0..MESSAGES).map(|n| facts::deferred(n, n + 600_000)).collect();
    let full = fold(Ledger::new(), 0, &accepted);
    let folds = [
        ("accepted, 10,000 in a row", Ledger::new(), &accepted),
        ("deferred, of 10,000 pending", full.clone(), &deferred),
        ("sent, of 10,000 pending", full, &sent),
    ];
    for (name, before, facts) in folds {
        group.throughput(Throughput::Elements(facts.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            let first = if before.iter().next().is_some() { MESSAGES } else { 0 };
            bencher.iter_batched(|| before.clone(), |ledger| fold(ledger, first, facts), BatchSize::LargeInput);
        });
    }
    group.finish();
}

fn fold(mut ledger: Ledger, first: u64, facts: &[Fact]) -> Ledger {
    for (n, fact) in (first..).zip(facts) {
        ledger.apply(facts::position(n), black_box(fact));
    }
    assert_eq!(ledger.without_effect(), 0);
    ledger
}
