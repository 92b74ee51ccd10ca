//! The journal over disks that are none: composing a record (encode, checksums), staging and committing, scanning.

use crate::disk::Disk;
use crate::facts::{self, CONTENT_BYTES};
use crate::mail;
use criterion::{BatchSize, BenchmarkId, Criterion, SamplingMode, Throughput};
use restante_envelope::TransactionId;
use restante_journal::{Depth, Options, Prepared, Replay, Seed, Sink, Writer, replay};
use restante_ledger::{Accepted, Base, Carried, Fact, Position};
use std::hint::black_box;

/// Messages in the journal that is scanned: with 4 KiB each, 17 MB.
const SCANNED_MESSAGES: u64 = 4_000;
/// Messages a sync, where that journal is written.
const SCANNED_BATCH: u64 = 10;

pub(crate) fn bench(criterion: &mut Criterion) {
    prepare(criterion);
    commit(criterion);
    scan(criterion);
}

fn message(content: Vec<u8>) -> Prepared {
    Prepared::accepted(&facts::envelope(), &facts::trace(0), content, None)
}

fn writer(disk: Disk) -> Writer<Disk> {
    let seed = Seed { journal: 42, entropy: 7, tags: 8 };
    Writer::open(disk, Options::default(), &Replay::default(), None, seed, facts::at(0)).unwrap()
}

/// What a session's task does before it hands the message to the journal's thread.
fn prepare(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("journal: compose a record");
    let (envelope, trace) = (facts::envelope(), facts::trace(0));
    for kib in [4, 64] {
        let content = mail::text(kib << 10);
        group.throughput(Throughput::Bytes(content.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{kib} KiB")), |bencher| {
            bencher.iter_batched(
                || content.clone(),
                |content| Prepared::accepted(black_box(&envelope), black_box(&trace), content, None),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

/// What the journal's thread does for a batch: all but the write and the sync.
fn commit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("journal: stage and commit");
    for (batch, kib) in [(1, 4), (10, 4), (100, 4), (10, 64)] {
        let message = message(mail::text(kib << 10));
        let mut writer = writer(Disk::forgetful());
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::from_parameter(format!("{batch} x {kib} KiB")), |bencher| {
            bencher.iter(|| {
                for _ in 0..batch {
                    writer.stage(black_box(&message), facts::at(1)).unwrap();
                }
                let durable = writer.commit(facts::at(1)).unwrap();
                assert_eq!(durable.receipts().len() as u64, batch);
                durable
            });
        });
    }
    group.finish();
}

/// Every fact is looked at and counted, none is kept.
#[derive(Default)]
struct Look {
    facts: u64,
}

impl Sink for Look {
    fn fact(&mut self, position: Position, fact: &Fact) {
        black_box((position, fact));
        self.facts += 1;
    }
    fn damaged(&mut self, _: Position, _: &Accepted) {
        panic!("a bench reads no damaged journal");
    }
    fn lost(&mut self, _: Position, _: TransactionId, _: u16) {
        panic!("a bench reads no damaged journal");
    }
    fn unnamed(&mut self, _: u64, _: u64, _: u64) {
        panic!("a bench reads no damaged journal");
    }
    fn damaged_carried(&mut self, _: Position, _: &Carried) {}
    fn begins_after(&mut self, _: &Base) {}
}

/// What a start and `verify` do before the fold; only `verify` checks the contents. Bytes are those of the segments, either way.
fn scan(criterion: &mut Criterion) {
    let disk = Disk::in_memory();
    let content = mail::text(usize::try_from(CONTENT_BYTES).unwrap());
    let mut writer = writer(disk.clone());
    for n in 0..SCANNED_MESSAGES / SCANNED_BATCH {
        for _ in 0..SCANNED_BATCH {
            writer.stage(&message(content.clone()), facts::at(n)).unwrap();
        }
        writer.commit(facts::at(n)).unwrap();
    }
    writer.close().unwrap();
    let scan = |depth| {
        let mut look = Look::default();
        let replay = replay(&disk, depth, &mut look).unwrap();
        assert_eq!(look.facts, SCANNED_MESSAGES);
        replay
    };
    let bytes = scan(Depth::Everything).bytes;
    let mut group = criterion.benchmark_group("journal: scan");
    group.throughput(Throughput::Bytes(bytes)).sample_size(20).sampling_mode(SamplingMode::Flat);
    for (name, depth) in [("start", Depth::Records), ("verify", Depth::Everything)] {
        group.bench_function(BenchmarkId::from_parameter(format!("{name}, 4,000 x 4 KiB")), |bencher| {
            bencher.iter(|| scan(depth));
        });
    }
    group.finish();
}
