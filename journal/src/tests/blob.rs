//! Large messages, in blobs: each way in which one can be cut short, go missing or rot, and what it may cost.

use super::*;
use crate::storage::Storage;
use crate::{Blob, DamageKind, DirStorage, Orphan, PIECE_BYTES, remove_blob};
use proptest::prelude::*;

const NAME: BlobName = BlobName::from_bits(0x00ab_cdef_0123_4567_89ab_cdef_0123_4567);

/// Bytes of which no two pieces are the same.
fn body(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect()
}

fn blob(storage: &SimStorage, name: BlobName, content: &[u8]) -> Blob {
    let mut writer = BlobWriter::create(storage, name).unwrap();
    writer.write(content).unwrap();
    writer.finish().unwrap()
}

/// A journal with one large message between two small ones, whose large one is proven, or not; its place.
fn one_large(content: &[u8], is_proven: bool) -> (SimStorage, restante_ledger::Position) {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    let (envelope, trace) = envelope(1);
    let large = Prepared::accepted_in_blob(&envelope, &trace, &blob(&storage, NAME, content), None);
    for record in [message(b"a\r\n", 1), large, message(b"b\r\n", 1)] {
        writer.stage(&record, now()).unwrap();
    }
    let position = writer.commit(now()).unwrap().receipts()[1].position();
    if is_proven {
        writer.close().unwrap();
    }
    (storage, position)
}

fn kinds(replay: &Replay) -> Vec<DamageKind> {
    replay.report.damage.iter().map(|place| place.kind).collect()
}

fn files(orphans: &[Orphan]) -> Vec<&str> {
    orphans.iter().map(|orphan| orphan.file.as_str()).collect()
}

#[test]
fn the_record_of_a_blob_is_what_the_format_says() {
    let content = body(PIECE_BYTES + 3);
    let (storage, position) = one_large(&content, false);
    assert_eq!(storage.bytes("blob/00abcdef0123456789abcdef01234567"), content);
    let segment = storage.bytes(&crate::header::file_name(1));
    let at = position.offset as usize;
    let mut meta = 1_795_359_200_118_u64.to_le_bytes().to_vec();
    meta.extend([0, 1, 4, 192, 0, 2, 1, 0xa0, 0x0f, 1, 0, 0, 0, 0, 0, 0, 0]);
    meta.extend(*b"\x06\0c.test\x08\0a@b.test\0\0\0\0");
    meta.extend(*b"\x01\0\x0c\0example.test\x01\0\0\0\x0f\0r0@example.test");
    meta.extend([0, 0xab, 0xcd, 0xef, 1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 0x23, 0x45, 0x67]);
    meta.extend([3, 0, 4, 0, 0, 0, 0, 0]);
    let table = [&content[..PIECE_BYTES], &content[PIECE_BYTES..]].map(|piece| crc32c::crc32c(piece).to_le_bytes());
    let table = table.concat();
    let mut fields = vec![1, 2, 1, 0];
    fields.extend(&segment[12..16]);
    fields.extend(2_u64.to_le_bytes());
    fields.extend(position.offset.to_le_bytes());
    fields.extend(&segment[at + 32..at + 48]);
    for part in [&meta, &table] {
        fields.extend((part.len() as u32).to_le_bytes());
        fields.extend(crc32c::crc32c(part).to_le_bytes());
    }
    let expected = [b"RJF1".as_slice(), &crc32c::crc32c(&fields).to_le_bytes(), &fields, &meta, &table].concat();
    assert_eq!(segment[at..at + expected.len()], expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_blob_written_in_any_pieces_is_read_back(
        len in prop_oneof![0..1000usize, PIECE_BYTES - 2..PIECE_BYTES + 3, 2 * PIECE_BYTES..3 * PIECE_BYTES],
        step in prop_oneof![1000..9000usize, Just(PIECE_BYTES), Just(usize::MAX >> 1)],
        flip in any::<usize>(),
    ) {
        let (storage, content) = (SimStorage::default(), body(len));
        let mut writer = open(&storage).unwrap();
        let mut blob = BlobWriter::create(&storage, NAME).unwrap();
        content.chunks(step).for_each(|piece| blob.write(piece).unwrap());
        let (envelope, trace) = envelope(2);
        let blob = blob.finish().unwrap();
        prop_assert_eq!(blob.bytes(), len as u64);
        writer.stage(&Prepared::accepted_in_blob(&envelope, &trace, &blob, None), now()).unwrap();
        let position = writer.commit(now()).unwrap().receipts()[0].position();
        writer.close().unwrap();
        for depth in [Depth::Records, Depth::Everything] {
            let (replay, ledger) = fold(&storage, depth);
            prop_assert_eq!(replay.report.state(), State::Clean);
            prop_assert_eq!((replay.blobs, replay.blob_bytes, replay.orphans.len()), (1, len as u64, 0));
            prop_assert_eq!(ledger.iter().next().unwrap().1.content_len, len as u64);
        }
        let mut reader = Reader::new(storage.clone());
        let mut stored = reader.message(position).unwrap().content;
        prop_assert_eq!(stored.len(), len as u64);
        let mut read = Vec::new();
        while let Some(piece) = stored.next_chunk().unwrap() {
            prop_assert!(!piece.is_empty() && piece.len() <= PIECE_BYTES);
            read.extend(piece);
        }
        prop_assert!(read == content);
        // What is wrong with a piece is known before a byte of it is given away.
        if len > 0 {
            let at = flip % len;
            storage.alter(&NAME.file(), |bytes| bytes[at] ^= 1);
            let mut stored = reader.message(position).unwrap().content;
            let good = (0..at / PIECE_BYTES).map(|_| stored.next_chunk().unwrap().unwrap()).collect::<Vec<_>>().concat();
            prop_assert!(good == content[..good.len()]);
            for _ in 0..2 {
                let is_damaged = matches!(stored.next_chunk(), Err(ReadError::Damaged { .. }));
                prop_assert!(is_damaged);
            }
        }
    }
}

#[test]
fn a_blob_that_is_missing_short_long_or_rotten_costs_its_message_proven_or_not() {
    let content = body(PIECE_BYTES + 900);
    let alter = |change: fn(&mut Vec<u8>)| move |s: &SimStorage| s.alter(&NAME.file(), change);
    type Spoil = Box<dyn Fn(&SimStorage)>;
    let cases: [(Spoil, DamageKind, u64, bool); 6] = [
        (Box::new(|s| s.remove(&NAME.file()).unwrap()), DamageKind::BlobMissing, content.len() as u64, true),
        (Box::new(alter(|bytes| bytes.truncate(PIECE_BYTES + 1))), DamageKind::Blob, 900, true),
        (Box::new(alter(|bytes| bytes.clear())), DamageKind::Blob, content.len() as u64, true),
        (Box::new(alter(|bytes| bytes.push(b'x'))), DamageKind::Blob, 1, true),
        (Box::new(alter(|bytes| bytes[7] ^= 1)), DamageKind::Blob, PIECE_BYTES as u64, false),
        (
            Box::new(|s| s.make_unreadable(&NAME.file(), 0..PIECE_BYTES as u64)),
            DamageKind::Blob,
            PIECE_BYTES as u64,
            false,
        ),
    ];
    for (spoil, kind, bytes, is_seen_at_a_start) in &cases {
        for is_proven in [true, false] {
            let (storage, position) = one_large(&content, is_proven);
            spoil(&storage);
            let (replay, ledger) = fold(&storage, Depth::Everything);
            assert_eq!(kinds(&replay), [*kind], "proven: {is_proven}");
            let place = &replay.report.damage[0];
            assert_eq!((place.segment, place.offset, place.blob), (1, position.offset, Some(NAME)));
            assert_eq!(place.ids.len(), 1);
            assert!(if *is_seen_at_a_start { place.bytes > 0 } else { place.bytes == *bytes }, "{kind:?} {place:?}");
            let balance = ledger.balance();
            assert_eq!((balance.accepted, balance.quarantined, balance.pending), (3, 1, 2));
            let (at_start, _) = fold(&storage, Depth::Records);
            assert_eq!(at_start.report.state() == State::Damaged, *is_seen_at_a_start, "{kind:?}");
            let read = Reader::new(storage.clone()).message(position).and_then(|stored| stored.content.read_all());
            assert!(read.is_err());
            // It stays reported over a restart, and what is left of it stays where it is.
            let before = storage.files().contains(&NAME.file());
            open(&storage).unwrap().close().unwrap();
            assert_eq!(storage.files().contains(&NAME.file()), before);
            assert!(!storage.files().iter().any(|name| name.starts_with("torn/")));
            let (replay, again) = fold(&storage, Depth::Everything);
            assert_eq!((kinds(&replay), again.balance()), (vec![*kind], balance));
        }
    }
}

#[test]
fn a_table_that_rots_is_damage_where_it_was_proven_and_torn_where_not() {
    let content = body(500);
    for is_proven in [true, false] {
        let (storage, position) = one_large(&content, is_proven);
        let table = crc32c::crc32c(&content).to_le_bytes();
        storage.alter(&crate::header::file_name(1), |bytes| {
            let at = position.offset as usize
                + bytes[position.offset as usize..].windows(4).position(|w| w == table).unwrap();
            bytes[at] ^= 1;
        });
        let (replay, ledger) = fold(&storage, Depth::Everything);
        let read = Reader::new(storage.clone()).message(position);
        assert!(matches!(read, Err(ReadError::Damaged { what: "content", .. })));
        open(&storage).unwrap().close().unwrap();
        if is_proven {
            assert_eq!((kinds(&replay), ledger.balance().quarantined), (vec![DamageKind::Content], 1));
            assert!(replay.orphans.is_empty() && storage.files().contains(&NAME.file()), "a person may look at it");
        } else {
            assert_eq!((replay.report.state(), ledger.balance().accepted), (State::Torn, 2));
            assert_eq!(files(&replay.orphans), [NAME.file()]);
            let (replay, _) = fold(&storage, Depth::Everything);
            assert_eq!((replay.report.state(), replay.orphans.len()), (State::Clean, 0));
        }
    }
}

/// A journal with an orphan, a part, and a file of somebody else.
fn with_orphans() -> (SimStorage, [BlobName; 2]) {
    let (storage, _) = one_large(b"large\r\n", true);
    let [orphan, part] = [BlobName::from_bits(1), BlobName::from_bits(2)];
    blob(&storage, orphan, b"whole\r\n");
    std::mem::forget(BlobWriter::create(&storage, part).unwrap());
    storage.create("blob/readme").unwrap();
    (storage, [orphan, part])
}

#[test]
fn a_whole_orphan_may_be_all_that_is_left_of_a_promise_and_is_set_aside() {
    let (storage, [orphan, part]) = with_orphans();
    let (replay, _) = fold(&storage, Depth::Records);
    assert_eq!(replay.report.state(), State::Clean, "orphans are no damage");
    assert_eq!(files(&replay.orphans), [orphan.file(), part.part_file()]);
    assert_eq!(replay.orphans.iter().map(|o| (o.bytes, o.whole)).collect::<Vec<_>>(), [(7, true), (0, false)]);
    let aside = format!("torn/{orphan}.blob");
    assert_eq!(set_orphans_aside(&storage, &replay).unwrap(), std::slice::from_ref(&aside));
    assert_eq!(files(&remove_parts(&storage, &replay).unwrap()), [part.part_file()]);
    assert_eq!(storage.bytes(&aside), b"whole\r\n");
    // A second process that had read the same finds them gone, and does not stumble.
    assert_eq!(set_orphans_aside(&storage, &replay).unwrap(), [""; 0]);
    assert_eq!(remove_parts(&storage, &replay).unwrap().len(), 1);
    assert!(fold(&storage, Depth::Everything).0.orphans.is_empty());
    assert!(storage.files().contains(&"blob/readme".to_owned()));
    // What was set aside is never written over.
    blob(&storage, orphan, b"another\r\n");
    let (replay, _) = fold(&storage, Depth::Records);
    assert_eq!(set_orphans_aside(&storage, &replay).unwrap(), [format!("torn/{orphan}-2.blob")]);
    assert_eq!(storage.bytes(&aside), b"whole\r\n");
}

#[test]
fn acknowledged_mail_on_a_disk_without_its_last_segment_is_not_deleted() {
    let content = body(PIECE_BYTES + 9);
    let (storage, _) = one_large(&content, true);
    let mut writer = open(&storage).unwrap();
    let (second, (envelope, trace)) = (BlobName::from_bits(9), envelope(1));
    let record = Prepared::accepted_in_blob(&envelope, &trace, &blob(&storage, second, &content), None);
    writer.stage(&record, now()).unwrap();
    writer.commit(now()).unwrap();
    drop(writer);
    storage.remove(&crate::header::file_name(2)).unwrap();
    for seed in 0..32 {
        let disk = storage.fork();
        disk.sync_directory().unwrap();
        open(&disk).unwrap().close().unwrap();
        let cut = disk.power_cut(seed);
        open(&cut).unwrap().close().unwrap();
        assert!(cut.bytes(&format!("torn/{second}.blob")) == content, "seed {seed}");
        let (replay, _) = fold(&cut, Depth::Everything);
        assert_eq!((replay.report.state(), replay.orphans.len()), (State::Clean, 0), "seed {seed}");
    }
}

#[test]
fn a_journal_that_may_have_lost_their_records_keeps_whole_orphans() {
    let (storage, [orphan, part]) = with_orphans();
    storage.alter(&crate::header::file_name(1), |bytes| bytes[4096 + 70] ^= 1);
    let (replay, _) = fold(&storage, Depth::Records);
    assert_eq!(replay.report.state(), State::Damaged);
    assert_eq!(set_orphans_aside(&storage, &replay).unwrap(), [""; 0]);
    assert_eq!(files(&remove_parts(&storage, &replay).unwrap()), [part.part_file()]);
    // All segments are gone: nothing vouches for anything.
    let (storage, _) = with_orphans();
    storage.remove(&crate::header::file_name(1)).unwrap();
    let (replay, _) = fold(&storage, Depth::Records);
    assert_eq!((replay.report.state(), replay.orphans.len()), (State::Clean, 3));
    assert_eq!(set_orphans_aside(&storage, &replay).unwrap(), [""; 0]);
    assert_eq!(files(&remove_parts(&storage, &replay).unwrap()), [part.part_file()]);
    assert!(storage.files().contains(&orphan.file()) && storage.files().contains(&NAME.file()));
}

#[test]
fn an_error_at_any_call_of_a_blob_costs_that_message_alone() {
    let content = body(3000);
    for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
        for call in 1.. {
            let storage = SimStorage::default();
            let mut writer = open(&storage).unwrap();
            storage.fail_call(call, kind);
            let large = large(&storage, &content, 1);
            let is_over = large.is_ok();
            if is_over {
                assert!(call > 10, "create, eight writes, sync, rename and sync were each tried");
            }
            if let Err(BlobError::Directory(_)) = large {
                // The last call of them: the entries of others are in doubt, too.
                assert!(matches!(writer.stage(&message(b"small\r\n", 1), now()), Err(CommitError::Failed(_))));
                writer = open(&storage).unwrap();
            }
            storage.fail_call(0, kind);
            writer.stage(&message(b"small\r\n", 1), now()).unwrap();
            writer.commit(now()).unwrap();
            let again = super::large(&storage, &content, 1).unwrap();
            writer.stage(&again, now()).unwrap();
            writer.commit(now()).unwrap();
            writer.close().unwrap();
            let (replay, ledger) = fold(&storage, Depth::Everything);
            assert_eq!((replay.report.state(), ledger.balance().accepted), (State::Clean, 2), "call {call}");
            assert_eq!(replay.orphans.len(), usize::from(is_over), "call {call}: nothing of it is left");
            if is_over {
                break;
            }
        }
    }
}

#[test]
fn a_directory_that_cannot_be_synced_takes_a_neighbour_s_promise_along() {
    let content = body(3000);
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    writer.stage(&large(&storage, b"kept\r\n", 1).unwrap(), now()).unwrap();
    let kept = writer.commit(now()).unwrap().receipts()[0].id();
    let [first, early, late] = [11, 12, 13].map(BlobName::from_bits);
    let begun = |name| {
        let mut writer = BlobWriter::create(&storage, name).unwrap();
        writer.write(&content).unwrap();
        writer
    };
    let (envelope, trace) = envelope(1);
    // One is whole and staged, one is still being written, when the sync for a third fails.
    let record = Prepared::accepted_in_blob(&envelope, &trace, &begun(early).finish().unwrap(), None);
    writer.stage(&record, now()).unwrap();
    let (first, late) = (begun(first), begun(late));
    storage.fail_call(3, ErrorKind::Other);
    assert!(matches!(first.finish(), Err(BlobError::Directory(_))));
    // The kernel would say that all is well to whoever asks now.
    assert!(matches!(late.finish(), Err(BlobError::Directory(_))));
    assert!(matches!(writer.commit(now()), Err(CommitError::Failed(_))), "its record came after the failed sync");
    assert!(matches!(writer.commit(now()), Err(CommitError::Poisoned(_))));
    assert!(writer.close().is_err());
    for seed in 0..32 {
        let cut = storage.power_cut(seed);
        open(&cut).unwrap().close().unwrap();
        let (replay, ledger) = fold(&cut, Depth::Everything);
        assert_ne!(replay.report.state(), State::Damaged, "seed {seed}: {:?}", replay.report);
        assert!(ledger.get(kept).is_some(), "seed {seed}");
    }
}

#[test]
fn a_sync_in_the_middle_that_failed_is_not_repeated_at_the_end() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    let mut broken = BlobWriter::create(&storage, NAME).unwrap();
    let piece = body(1 << 20);
    broken.write(&piece).unwrap();
    storage.fail_call(1, ErrorKind::Other);
    assert!(broken.write(&piece).is_err());
    assert!(broken.write(b"more").is_err());
    assert!(matches!(broken.finish(), Err(BlobError::File(_))));
    assert!(!storage.files().iter().any(|name| name.starts_with("blob/")));
    // Nobody else has a part in it.
    writer.stage(&message(b"small\r\n", 1), now()).unwrap();
    writer.commit(now()).unwrap();
}

#[test]
fn a_blob_dropped_half_written_leaves_nothing_and_a_name_is_never_written_over() {
    let storage = SimStorage::default();
    let mut writer = BlobWriter::create(&storage, NAME).unwrap();
    writer.write(b"half").unwrap();
    assert_eq!(storage.files(), [NAME.part_file()]);
    assert_eq!(BlobWriter::create(&storage, NAME).unwrap_err().kind(), ErrorKind::AlreadyExists);
    drop(writer);
    assert_eq!(storage.files(), [""; 0]);
    blob(&storage, NAME, b"whole");
    assert_eq!(BlobWriter::create(&storage, NAME).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!((storage.files(), storage.bytes(&NAME.file())), (vec![NAME.file()], b"whole".to_vec()));
}

#[test]
fn a_frame_that_a_full_disk_took_back_never_returns_to_name_a_removed_blob() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    let (envelope, trace) = envelope(1);
    let record = Prepared::accepted_in_blob(&envelope, &trace, &blob(&storage, NAME, b"large\r\n"), None);
    // What is filled ahead takes the frame; the room that must be kept behind it is not there.
    let used: usize = storage.files().iter().map(|name| storage.bytes(name).len()).sum();
    storage.set_room(Some(used));
    let filler = vec![b'x'; 700 << 10];
    writer.stage(&record, now()).unwrap();
    writer.stage(&message(&filler, 1), now()).unwrap();
    storage.write_back_next();
    assert!(matches!(writer.commit(now()), Err(CommitError::Full(_))));
    remove_blob(&storage, record.blob().unwrap()).unwrap();
    for seed in 0..32 {
        let cut = storage.power_cut(seed);
        let (replay, ledger) = fold(&cut, Depth::Everything);
        assert_ne!(replay.report.state(), State::Damaged, "seed {seed}: {:?}", replay.report);
        assert_eq!(ledger.balance().accepted, 0);
    }
}

#[test]
fn on_a_real_directory_blobs_can_be_moved_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<BlobWriter<DirStorage>>();
    is_send::<crate::Content<<DirStorage as Storage>::File>>();
    let directory = tempfile::tempdir().unwrap();
    let storage = DirStorage::open(directory.path()).unwrap();
    assert_eq!(storage.list_blobs().unwrap(), []);
    let content = body(5 << 20);
    // Many first ones at once: none may stumble over another making the directory.
    let blobs = std::thread::scope(|scope| {
        let write = |n: u128| {
            let (storage, content) = (&storage, &content);
            scope.spawn(move || {
                let mut blob = BlobWriter::create(storage, BlobName::from_bits(n)).unwrap();
                content.chunks(70_000).for_each(|piece| blob.write(piece).unwrap());
                blob.finish().unwrap()
            })
        };
        let threads: Vec<_> = (0..4).map(write).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let replay = replay(&storage, Depth::Records, &mut Ledger::new()).unwrap();
    let mut writer = Writer::open(storage.clone(), Options::default(), &replay, None, SEED, now()).unwrap();
    let (envelope, trace) = envelope(1);
    for blob in &blobs {
        writer.stage(&Prepared::accepted_in_blob(&envelope, &trace, blob, None), now()).unwrap();
    }
    let receipts = writer.commit(now()).unwrap().receipts().to_vec();
    writer.close().unwrap();
    let mut reader = Reader::new(storage.clone());
    let stored = reader.message(receipts[3].position()).unwrap();
    assert!(stored.content.read_all().unwrap() == content);
    let mut ledger = Ledger::new();
    let replay = crate::replay(&storage, Depth::Everything, &mut ledger).unwrap();
    assert_eq!((replay.report.state(), replay.blobs, ledger.balance().pending), (State::Clean, 4, 4));
    assert_eq!(replay.orphans, []);
}
