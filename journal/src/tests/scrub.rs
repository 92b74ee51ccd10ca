//! The scrub beside a writer: what it finds that a start does not, what it must not take for damage, and that it changes nothing.

use super::*;
use crate::{Damage, DamageKind, Scrubbed, scrub};
use std::cell::Cell;

fn pass(storage: &SimStorage) -> (Scrubbed, Vec<Damage>) {
    let mut found = Vec::new();
    let scrubbed = scrub(storage, |_| true, |damage| found.push(damage.clone())).unwrap();
    (scrubbed, found)
}

/// Some segments with blobs, and a writer at work on the newest.
fn at_work() -> (SimStorage, Writer<SimStorage>) {
    let storage = SimStorage::default();
    history(&storage, 14);
    let mut writer = open(&storage).unwrap();
    writer.stage(&message(b"in flight\r\n", 1), now()).unwrap();
    writer.commit(now()).unwrap();
    (storage, writer)
}

#[test]
fn a_flip_in_any_byte_that_nobody_writes_is_found_beside_a_writer_and_verify_agrees() {
    let (storage, _writer) = at_work();
    let names = storage.files();
    let newest = names.iter().rfind(|name| name.ends_with(".rj")).unwrap();
    let only_scrubbed = Cell::new(0);
    for name in names.iter().filter(|name| *name != newest) {
        for at in (0..storage.bytes(name).len()).step_by(101) {
            let storage = storage.fork();
            storage.alter(name, |bytes| bytes[at] ^= 0x10);
            let (scrubbed, found) = pass(&storage);
            assert!(!scrubbed.stopped && scrubbed.unreadable.is_empty());
            let (verified, _) = fold(&storage, Depth::Everything);
            assert_eq!(found, verified.report.damage, "{name} byte {at}");
            assert!(!found.is_empty(), "{name} byte {at}");
            let at_start = fold(&storage, Depth::Records).0.report.damage;
            only_scrubbed.set(only_scrubbed.get() + usize::from(at_start.is_empty()));
        }
    }
    assert!(only_scrubbed.get() > 50, "a start finds it all: {}", only_scrubbed.get());
}

#[test]
fn what_is_torn_or_in_flight_is_no_damage_to_it_and_nothing_is_written() {
    let storage = SimStorage::default();
    storage.fail_call(60, ErrorKind::Other);
    history(&storage, 12);
    let storage = storage.power_cut(3);
    let mut writer = open(&storage).unwrap();
    writer.stage(&message(b"a\r\n", 1), now()).unwrap();
    writer.commit(now()).unwrap();
    storage.alter(&crate::header::file_name(writer.segment_number()), |bytes| bytes[4100] ^= 1);
    let calls = storage.calls();
    let (scrubbed, found) = pass(&storage);
    assert!(scrubbed.segments > 0 && found.is_empty(), "{found:?}");
    assert_eq!(storage.calls(), calls, "it wrote, synced or renamed");
}

#[test]
fn a_stop_at_any_read_ends_it_at_once_and_is_no_damage() {
    let (storage, _writer) = at_work();
    let reads = Cell::new(0);
    scrub(
        &storage,
        |_| {
            reads.set(reads.get() + 1);
            true
        },
        |_| {},
    )
    .unwrap();
    for last in 0..reads.get() {
        let asked = Cell::new(0);
        let may_read = |_| {
            asked.set(asked.get() + 1);
            asked.get() <= last
        };
        let scrubbed = scrub(&storage, may_read, |damage| panic!("stop after {last} reads: {damage:?}")).unwrap();
        assert!(scrubbed.stopped && asked.get() == last + 1, "asked {} times after {last}", asked.get() - last);
    }
}

#[test]
fn a_bad_sector_and_a_blob_that_is_gone_are_found_and_the_rest_is_read() {
    use crate::storage::Storage;
    let (whole, _writer) = at_work();
    let bad = whole.fork();
    bad.make_unreadable(&crate::header::file_name(1), 4300..4400);
    let (scrubbed, found) = pass(&bad);
    assert!(scrubbed.segments > 1 && scrubbed.unreadable.is_empty());
    assert!(!found.is_empty() && found.iter().all(|place| place.segment == 1), "{found:?}");
    let gone = whole.fork();
    gone.remove(gone.files().iter().find(|name| name.starts_with("blob/")).unwrap()).unwrap();
    let (_, found) = pass(&gone);
    assert_eq!(found.iter().map(|place| place.kind).collect::<Vec<_>>(), [DamageKind::BlobMissing]);
}
