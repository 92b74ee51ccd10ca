//! The query index in a file, opened as the daemon opens it (no sync while in use), and what it reads of a message's headers.
//! The index grows while it is measured, from empty to some ten thousand messages.

use crate::facts;
use crate::mail;
use criterion::{BatchSize, BenchmarkId, Criterion, SamplingMode, Throughput};
use restante_index::{Change, Event, Index, Origin, Selector, Summary};
use restante_ledger::Fact;
use std::hint::black_box;

pub(crate) fn bench(criterion: &mut Criterion) {
    summary(criterion);
    apply(criterion);
}

fn summary(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("index: read the headers");
    let content = mail::text(4 << 10);
    group.throughput(Throughput::Elements(1));
    group.bench_function("text, 4 KiB", |bencher| bencher.iter(|| Summary::of(black_box(&content))));
    group.finish();
}

fn change(record: u64, fact: Fact, summary: Option<&Summary>) -> Change {
    Change { position: facts::position(record), event: Event::Fact(fact), summary: summary.cloned() }
}

/// Throughput counts messages, each with one fact in the batch.
fn apply(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("index: apply");
    group.sample_size(20).sampling_mode(SamplingMode::Flat);
    let summary = Summary::of(&mail::text(4 << 10));
    for batch in [1_u64, 100, 1_000] {
        group.throughput(Throughput::Elements(batch));
        let name = if batch == 1_000 { "1,000 a batch".to_owned() } else { format!("{batch} a batch") };
        group.bench_function(BenchmarkId::new("accepted", &name), |bencher| {
            let (_directory, mut index) = index();
            let mut next = 0;
            let changes = || {
                let first = next;
                next += batch;
                (first..next).map(|n| change(n, facts::accepted(n), Some(&summary))).collect::<Vec<_>>()
            };
            bencher.iter_batched_ref(
                changes,
                |changes| index.apply(black_box(changes)).unwrap(),
                BatchSize::PerIteration,
            );
            assert_eq!(index.cursor().unwrap(), Some(facts::position(next - 1)));
        });
        group.bench_function(BenchmarkId::new("sent", &name), |bencher| {
            let (_directory, index) = index();
            let (index, mut next, mut record) = (std::cell::RefCell::new(index), 0, 0);
            let changes = || {
                let first = next;
                next += batch;
                let mut of = |fact: fn(u64) -> Fact, summary| {
                    let changes = (first..next).zip(record..).map(|(n, record)| change(record, fact(n), summary));
                    let changes: Vec<_> = changes.collect();
                    record += batch;
                    changes
                };
                index.borrow_mut().apply(&of(facts::accepted, Some(&summary))).unwrap();
                of(facts::sent, None)
            };
            let apply = |changes: &mut Vec<Change>| index.borrow_mut().apply(black_box(changes)).unwrap();
            bencher.iter_batched_ref(changes, apply, BatchSize::PerIteration);
            // What was passed over would have been quick.
            let pending = Selector { pending: true, ..Selector::default() };
            assert_eq!(index.borrow().cursor().unwrap(), Some(facts::position(record - 1)));
            assert!(index.borrow().select(&pending, None, 1).unwrap().is_empty(), "all are sent");
        });
    }
    group.finish();
}

/// An empty index in a directory that goes with the value.
fn index() -> (tempfile::TempDir, Index) {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin { journal: 42, damage: String::new() };
    let index = Index::open(&directory.path().join("index.sqlite"), &origin, "a boot").unwrap();
    (directory, index)
}
