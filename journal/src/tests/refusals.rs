//! What a journal may hold that this version must not read, what it must skip, and disks that change or go away under a reader.

use super::*;
use crate::frame::{FLAG_BLOB, FrameHeader, HEADER_BYTES};
use crate::header::file_name;
use crate::record::decode_frame;
use crate::storage::Storage;
use crate::{Damage, ReplayError, Sink, scrub};
use restante_ledger::{Accepted, Base, Carried, Position};

/// A fold that does something at the first fact.
struct Interrupted<F> {
    ledger: Ledger,
    then: Option<F>,
}

impl<F: FnOnce()> Sink for Interrupted<F> {
    fn fact(&mut self, position: Position, fact: &Fact) {
        if let Some(then) = self.then.take() {
            then();
        }
        self.ledger.fact(position, fact);
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        self.ledger.damaged(position, accepted);
    }
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        self.ledger.lost(position, id, recipients);
    }
    fn damaged_carried(&mut self, position: Position, carried: &Carried) {
        self.ledger.damaged_carried(position, carried);
    }
    fn unnamed(&mut self, segment: u64, transactions: u64, recipients: u64) {
        self.ledger.unnamed(segment, transactions, recipients);
    }
    fn begins_after(&mut self, base: &Base) {
        self.ledger.begins_after(base);
    }
}

fn interrupted(storage: &SimStorage, then: impl FnOnce()) -> (Replay, Ledger) {
    let mut sink = Interrupted { ledger: Ledger::new(), then: Some(then) };
    let replay = replay(storage, Depth::Everything, &mut sink).unwrap();
    assert!(sink.then.is_none(), "there was no fact");
    (replay, sink.ledger)
}

/// A journal of these contents in one segment, each proven.
fn proven(contents: &[Vec<u8>]) -> (SimStorage, Vec<Position>) {
    let storage = SimStorage::default();
    let (replay, _) = fold(&storage, Depth::Records);
    let mut writer = Writer::open(storage.clone(), Options::default(), &replay, None, SEED, now()).unwrap();
    let mut positions = Vec::new();
    for content in contents {
        writer.stage(&message(content, 1), now()).unwrap();
        positions.push(writer.commit(now()).unwrap().receipts()[0].position());
    }
    writer.prove_last_batch().unwrap();
    (storage, positions)
}

/// Alters the header of the frame at `position` so that its checksum holds.
fn forge(storage: &SimStorage, position: Position, change: impl FnOnce(&mut [u8])) {
    storage.alter(&file_name(position.segment), |bytes| {
        let header = &mut bytes[position.offset as usize..][..HEADER_BYTES];
        change(header);
        let crc = crc32c::crc32c(&header[8..]).to_le_bytes();
        header[4..8].copy_from_slice(&crc);
    });
}

#[test]
fn a_frame_of_a_later_kind_is_skipped_if_it_says_so_and_refused_if_not() {
    let (storage, positions) = proven(&[content(1), content(2), content(3)]);
    forge(&storage, positions[1], |header| (header[8], header[9]) = (99, 1));
    let (replayed, ledger) = fold(&storage, Depth::Everything);
    // The marks count a message that is none any more; what is behind it is read.
    assert!(replayed.segments == 1 && ledger.iter().any(|(_, t)| t.position == positions[2]));
    forge(&storage, positions[1], |header| header[9] = 0);
    let refused = replay(&storage, Depth::Records, &mut Ledger::new()).unwrap_err();
    assert!(matches!(refused, ReplayError::UnknownKind { kind: 99, .. }), "{refused}");
}

#[test]
fn a_message_has_a_blob_only_with_a_table_for_it() {
    let accepted = message(b"", 1);
    let empty_blob = [0; 24];
    let decodes = |record: &Prepared, flags, content_len| {
        let meta = [record.meta.as_slice(), &empty_blob].concat();
        let (kind, id, recipients) = (record.kind, TransactionId::from_bits(1), 0);
        let (tag, sequence, offset, meta_len, meta_crc, content_crc) = (0, 1, 4096, 0, 0, 0);
        #[rustfmt::skip]
        let header = FrameHeader { kind, flags, recipients, tag, sequence, offset, id, meta_len, meta_crc, content_len, content_crc };
        decode_frame(&header, &meta).is_ok()
    };
    assert!(decodes(&accepted, FLAG_BLOB, 0) && !decodes(&accepted, FLAG_BLOB, 4));
}

#[test]
fn a_segment_of_a_later_format_is_refused_by_all_who_read() {
    let storage = SimStorage::default();
    history(&storage, 12);
    let position = fold(&storage, Depth::Records).1.iter().next().unwrap().1.position;
    storage.alter(&file_name(position.segment), |bytes| {
        bytes[8..12].copy_from_slice(&[3, 0, 3, 0]);
        seal_header(&mut bytes[..FORMAT_2_BYTES]);
    });
    let refused = replay(&storage, Depth::Records, &mut Ledger::new()).unwrap_err();
    assert!(matches!(refused, ReplayError::TooNew { format: 3, .. }), "{refused}");
    assert!(matches!(Reader::new(storage.clone()).message(position), Err(ReadError::Damaged { .. })));
    let scrubbed = scrub(&storage, |_| true, |damage| panic!("{damage:?}")).unwrap();
    assert!(matches!(scrubbed.unreadable[..], [ReplayError::TooNew { .. }, ..]) && !scrubbed.stopped);
}

#[test]
fn segments_of_two_journals_in_one_directory_are_refused() {
    let (storage, other) = (SimStorage::default(), SimStorage::default());
    history(&storage, 12);
    let (replay, ledger) = fold(&other, Depth::Records);
    let seed = Seed { journal: 43, ..SEED };
    Writer::open(other.clone(), SMALL, &replay, ledger.largest_id(), seed, now()).unwrap().close().unwrap();
    assert_eq!(fold(&other, Depth::Records).0.journal(), Some(43));
    storage.alter(&file_name(2), |bytes| *bytes = other.bytes(&file_name(1)));
    let refused = crate::replay(&storage, Depth::Records, &mut Ledger::new()).unwrap_err();
    assert!(matches!(&refused, ReplayError::Foreign { file } if *file == file_name(2)), "{refused}");
}

#[test]
fn a_disk_that_gives_nothing_back_is_an_error_and_not_a_journal_full_of_damage() {
    let (storage, _) = proven(&[content(1)]);
    storage.make_unreadable(&file_name(1), 0..u64::MAX);
    let refused = replay(&storage, Depth::Records, &mut Ledger::new()).unwrap_err();
    assert!(matches!(refused, ReplayError::Io(_)), "{refused}");
    assert_eq!(storage.files(), [file_name(1)], "nothing is set aside, nothing is begun");
}

#[test]
fn a_blob_that_a_daemon_finishes_while_the_journal_is_read_is_not_missing() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    let large = large(&storage, b"large\r\n", 1).unwrap();
    let blob = large.blob().unwrap().file();
    for record in [message(b"a\r\n", 1), large] {
        writer.stage(&record, now()).unwrap();
    }
    writer.commit(now()).unwrap();
    for depth in [Depth::Records, Depth::Everything] {
        storage.rename(&blob, "blob/not yet").unwrap();
        let finish = || storage.rename("blob/not yet", &blob).unwrap();
        let mut sink = Interrupted { ledger: Ledger::new(), then: Some(finish) };
        let replay = replay(&storage, depth, &mut sink).unwrap();
        assert_eq!((replay.report.state(), sink.ledger.balance().pending), (State::Clean, 2), "{depth:?}");
    }
}

#[test]
fn an_orphan_that_cannot_be_moved_stays_and_is_said() {
    let (storage, _) = proven(&[content(1)]);
    let blob = large(&storage, b"nobody names it\r\n", 1).unwrap().blob().unwrap();
    let (replay, _) = fold(&storage, Depth::Records);
    storage.fail_call(1, ErrorKind::PermissionDenied);
    assert_eq!(set_orphans_aside(&storage, &replay).unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert!(storage.files().contains(&blob.file()));
}

#[test]
fn a_segment_cut_short_behind_the_length_that_the_next_one_tells_is_damaged() {
    // The first was left by a crash: it has no seal.
    let (storage, positions) = proven(&[content(1), content(2), content(3)]);
    open(&storage).unwrap().close().unwrap();
    let (_, whole) = fold(&storage, Depth::Everything);
    for len in [positions[1].offset, positions[2].offset, positions[2].offset + 70] {
        let cut = storage.fork();
        cut.alter(&file_name(1), |bytes| bytes.truncate(len as usize));
        for start in 0..2 {
            let (replay, ledger) = fold(&cut, Depth::Everything);
            let told = |place: &Damage| place.segment == 1 && place.offset + place.bytes > len;
            assert!(replay.report.damage.iter().any(told), "{len} bytes, {start} starts: {:?}", replay.report);
            assert_eq!(ledger.balance().accepted, whole.balance().accepted, "{len} bytes, {start} starts");
            open(&cut).unwrap().close().unwrap();
        }
    }
}

#[test]
fn a_segment_that_is_cut_while_it_is_read_does_not_keep_the_reader_for_ever() {
    // Longer than what is read at once, behind what is told first.
    let (storage, positions) = proven(&[content(1), content(2), vec![b'x'; 3 << 20], content(3)]);
    for len in [positions[2].offset + 1000, 1 << 20, 3 << 20] {
        let cut = storage.fork();
        let (replay, ledger) = interrupted(&cut, || cut.alter(&file_name(1), |bytes| bytes.truncate(len as usize)));
        assert_ne!(replay.report.state(), State::Clean, "{len}");
        assert!(ledger.balance().is_even());
    }
}

#[test]
fn a_segment_removed_while_it_is_scrubbed_is_no_finding() {
    let storage = SimStorage::default();
    history(&storage, 20);
    let last_but_one = storage.files().iter().filter(|name| name.ends_with(".rj")).count() as u64 - 1;
    let mut found: Vec<Damage> = Vec::new();
    let remove = |_| {
        let _gone_since_the_first_read = storage.remove(&file_name(2));
        true
    };
    let scrubbed = scrub(&storage, remove, |damage| found.push(damage.clone())).unwrap();
    assert!(scrubbed.unreadable.is_empty() && scrubbed.segments + 2 >= last_but_one, "{scrubbed:?}");
    // That numbers are missing is for who reads the whole journal.
    assert!(found.iter().all(|place| place.kind != crate::DamageKind::Frame), "{found:?}");
}

#[test]
fn a_file_with_the_largest_number_leaves_none_for_a_new_segment() {
    let storage = SimStorage::default();
    storage.create(&file_name(u64::MAX)).unwrap();
    let refused = open(&storage).map(drop).unwrap_err();
    assert!(matches!(&refused, CommitError::Failed(error) if error.to_string().contains("largest")), "{refused}");
}
