//! The reader of single records: what it gives to a courier, to the index and to the log, and what it must not give.

use super::*;
use crate::storage::{DirStorage, SegmentFile, Storage};
use crate::{PIECE_BYTES, Receipt};

/// These records in a journal of their own, as they were committed.
fn journal<S: Storage + Clone>(storage: &S, records: &[Prepared]) -> Vec<Receipt> {
    let replay = replay(storage, Depth::Records, &mut Ledger::new()).unwrap();
    let mut writer = Writer::open(storage.clone(), Options::default(), &replay, None, SEED, now()).unwrap();
    records.iter().for_each(|record| writer.stage(record, now()).unwrap());
    writer.commit(now()).unwrap().receipts().to_vec()
}

fn alter(storage: &SimStorage, at: u64) {
    storage.alter(&crate::header::file_name(1), |bytes| bytes[at as usize] ^= 1);
}

/// Where a record's envelope ends, as its header says.
fn meta_end(storage: &SimStorage, receipt: &Receipt) -> u64 {
    let at = receipt.position().offset;
    let bytes = storage.bytes(&crate::header::file_name(1));
    let len = u32::from_le_bytes(bytes[at as usize + 48..at as usize + 52].try_into().unwrap());
    at + 64 + u64::from(len)
}

#[test]
fn what_is_at_hand_is_the_whole_record_checked_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let storage = DirStorage::open(directory.path()).unwrap();
    let mut blob = BlobWriter::create(&storage, BlobName::from_bits(1)).unwrap();
    blob.write(b"large\r\n").unwrap();
    let (many, trace) = envelope(1);
    let large = Prepared::accepted_in_blob(&many, &trace, &blob.finish().unwrap(), None);
    let small = vec![b'x'; 2000];
    let receipts = journal(&storage, &[message(&small, 1), message(&small, 100), large]);
    let places: Vec<_> = receipts.iter().map(Receipt::position).collect();
    let mut reader = Reader::new(storage.clone());
    assert!(reader.message_at_hand(places[0], 2000).is_none(), "its segment is not open");
    let fact = reader.record(places[0]).unwrap().fact;
    if storage.open(&crate::header::file_name(1)).unwrap().read_at_hand(0, &mut [0]).is_some() {
        let stored = reader.message_at_hand(places[0], 2000).unwrap();
        assert!(stored.fact == fact && stored.content.read_all().unwrap() == small);
    }
    assert!(reader.message_at_hand(places[0], 100).is_none(), "longer than was told");
    assert!(reader.message_at_hand(places[1], 2000).is_none(), "an envelope for a crowd");
    assert!(reader.message_at_hand(places[2], 7).is_none(), "in a blob");
    assert!(reader.message_at_hand(places[0], usize::MAX).is_none());
    let elsewhere = restante_ledger::Position { offset: places[0].offset + 8, ..places[0] };
    assert!(reader.message_at_hand(elsewhere, 2000).is_none(), "no record stands there");
    let segment = directory.path().join(crate::header::file_name(1));
    let good = std::fs::read(&segment).unwrap();
    for at in [3, 20, 64 + 10, 1000] {
        let mut bytes = good.clone();
        bytes[places[0].offset as usize + at] ^= 1;
        std::fs::write(&segment, &bytes).unwrap();
        assert!(reader.message_at_hand(places[0], 2000).is_none(), "byte {at} is wrong");
    }
}

#[test]
fn a_frame_within_a_message_is_no_record() {
    let directory = tempfile::tempdir().unwrap();
    let storage = DirStorage::open(directory.path()).unwrap();
    let replay = replay(&storage, Depth::Records, &mut Ledger::new()).unwrap();
    let mut writer = Writer::open(storage.clone(), Options::default(), &replay, None, SEED, now()).unwrap();
    let mut commit = |content: &[u8]| {
        writer.stage(&message(content, 1), now()).unwrap();
        writer.commit(now()).unwrap().receipts()[0].position()
    };
    let first = commit(b"a\r\n");
    let frame = std::fs::read(directory.path().join(crate::header::file_name(1))).unwrap()[first.offset as usize..]
        [..200]
        .to_vec();
    let second = commit(&frame);
    let segment = std::fs::read(directory.path().join(crate::header::file_name(1))).unwrap();
    let inner = (second.offset as usize + 64..).find(|at| segment[*at..].starts_with(&frame)).unwrap();
    let inner = restante_ledger::Position { offset: inner as u64, ..second };
    let mut reader = Reader::new(storage);
    assert!(reader.record(first).is_ok() && reader.record(inner).is_err());
    assert!(reader.message_at_hand(inner, 3).is_none());
}

#[test]
fn a_look_at_the_headers_gives_those_of_the_message_asked_for_and_no_others() {
    let storage = SimStorage::default();
    let body = content(20);
    let blob = large(&storage, &vec![b'y'; PIECE_BYTES + 9], 1).unwrap();
    let receipts = journal(&storage, &[message(&body, 1), message(&body, 900), blob, message(&body, 2)]);
    let mut reader = Reader::new(storage.clone());
    for receipt in [&receipts[0], &receipts[1], &receipts[3]] {
        for bytes in [0, 9, body.len(), usize::MAX] {
            let head = reader.head(receipt.position(), receipt.id(), bytes).unwrap();
            assert_eq!(head, body[..bytes.min(body.len())]);
        }
    }
    let head = reader.head(receipts[2].position(), receipts[2].id(), 9).unwrap();
    assert_eq!((head.len(), head[0]), (PIECE_BYTES, b'y'));
    let wrong = reader.head(receipts[0].position(), receipts[1].id(), 9);
    assert!(matches!(wrong, Err(ReadError::Damaged { what: "record header", .. })));
    // The file ends within what an envelope for a crowd leaves to be read.
    let end = meta_end(&storage, &receipts[1]) as usize + 5;
    storage.alter(&crate::header::file_name(1), |bytes| bytes.truncate(end));
    assert!(reader.head(receipts[1].position(), receipts[1].id(), 5).is_ok());
    let cut = reader.head(receipts[1].position(), receipts[1].id(), 6);
    assert!(matches!(cut, Err(ReadError::Damaged { what: "content", .. })));
}

#[test]
fn an_envelope_is_given_to_whom_it_belongs_and_not_if_it_rotted() {
    let storage = SimStorage::default();
    let mut receipts = journal(&storage, &[message(b"a\r\n", 1), message(b"b\r\n", 2)]);
    let settled = journal(&storage, &[sent(receipts[0].id())]);
    receipts.extend(settled);
    let mut reader = Reader::new(storage.clone());
    let accepted = reader.accepted(receipts[1].position(), receipts[1].id()).unwrap();
    assert_eq!((accepted.id, accepted.envelope.recipients.len()), (receipts[1].id(), 2));
    for (place, id) in [(0, 1), (2, 0)] {
        let other = reader.accepted(receipts[place].position(), receipts[id].id());
        assert!(matches!(other, Err(ReadError::Damaged { what: "another record stands there", .. })));
    }
    alter(&storage, meta_end(&storage, &receipts[1]) - 1);
    let rotted = reader.accepted(receipts[1].position(), receipts[1].id());
    assert!(matches!(rotted, Err(ReadError::Damaged { what: "envelope", .. })));
}

#[test]
fn a_long_content_comes_in_pieces_wherever_it_stands_and_an_empty_one_in_none() {
    let storage = SimStorage::default();
    let long: Vec<u8> = (0..PIECE_BYTES * 2 + 3).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
    let in_blob = large(&storage, &long, 1).unwrap();
    let receipts = journal(&storage, &[message(&long, 1), in_blob, message(b"", 1)]);
    let mut reader = Reader::new(storage.clone());
    for (nth, in_memory) in [(0, true), (1, false)] {
        let mut content = reader.message(receipts[nth].position()).unwrap().content;
        assert_eq!((content.len(), content.is_empty()), (long.len() as u64, false));
        let mut read = Vec::new();
        for len in [PIECE_BYTES, PIECE_BYTES, 3] {
            assert_eq!(content.is_in_memory(), in_memory);
            let piece = content.next_chunk().unwrap().unwrap();
            assert_eq!(piece.len(), len);
            read.extend(piece);
        }
        assert!(content.next_chunk().unwrap().is_none() && read == long);
    }
    let mut nothing = reader.message(receipts[2].position()).unwrap().content;
    assert!(nothing.is_empty() && nothing.next_chunk().unwrap().is_none());
}
