//! Bytes whose checksums are right and whose meaning is not, as a later version or a faulty program would leave them: they
//! are told, or refused, and never passed over. A reader in another language found each of these (`tests/reader.py`).

use super::*;
use crate::frame::{FrameHeader, HEADER_BYTES, Kind};
use crate::header::{PAGE_BYTES, file_name};
use crate::report::DamageKind;

/// Two batches of a message each, sealed.
fn journal() -> SimStorage {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    for _ in 0..2 {
        writer.stage(&message(b"a\r\n", 1), now()).unwrap();
        writer.commit(now()).unwrap();
    }
    writer.close().unwrap();
    storage
}

/// Changes the first frame of `kind` and makes its header's CRC right again.
fn forge(storage: &SimStorage, kind: Kind, change: impl Fn(&mut FrameHeader, &mut [u8])) -> u64 {
    let mut place = 0;
    storage.alter(&file_name(1), |bytes| {
        let header = |at: &usize| FrameHeader::decode(&bytes[*at..]).filter(|header| header.kind == kind);
        let at = (PAGE_BYTES..bytes.len()).step_by(8).find(|at| header(at).is_some()).unwrap();
        let mut forged = header(&at).unwrap();
        let body = at + HEADER_BYTES..forged.end() as usize;
        change(&mut forged, &mut bytes[body]);
        bytes[at..at + HEADER_BYTES].copy_from_slice(&forged.encode().0);
        place = at as u64;
    });
    place
}

fn damage(storage: &SimStorage) -> Vec<(u64, DamageKind)> {
    fold(storage, Depth::Everything).0.report.damage.iter().map(|d| (d.offset, d.kind)).collect()
}

#[test]
fn a_mark_or_seal_that_does_not_decode_is_told_as_any_other_record() {
    for kind in [Kind::Mark, Kind::Seal] {
        let storage = journal();
        let at = forge(&storage, kind, |header, meta| {
            (header.meta_len, header.meta_crc) = (8, crc32c::crc32c(&meta[..8]));
            header.content_len = 0;
        });
        assert!(damage(&storage).contains(&(at, DamageKind::Meta)), "{kind:?} {:?}", damage(&storage));
    }
}

#[test]
fn wrong_content_of_a_record_that_has_none_is_told_and_the_record_counts() {
    let storage = journal();
    let at = forge(&storage, Kind::Mark, |header, _| header.content_crc = 1);
    let meta = FrameHeader::decode(&storage.bytes(&file_name(1))[at as usize..]).unwrap().meta_len;
    assert_eq!(damage(&storage), [(at + HEADER_BYTES as u64 + u64::from(meta), DamageKind::Content)]);
}

#[test]
fn the_flag_of_a_blob_means_something_in_a_message_alone() {
    let storage = journal();
    let at = forge(&storage, Kind::Mark, |header, _| header.flags = 2);
    let refused = replay(&storage, Depth::Records, &mut Ledger::new());
    assert!(matches!(refused, Err(crate::ReplayError::UnknownKind { offset, kind: 16, .. }) if offset == at));
    // In a kind that may be skipped, flags are that kind's own.
    let storage = journal();
    forge(&storage, Kind::Mark, |header, _| (header.kind, header.flags) = (Kind::Unknown(99), 3));
    assert_eq!(damage(&storage), []);
}

#[test]
fn a_later_format_that_this_reader_may_read_is_no_damage() {
    let storage = journal();
    storage.alter(&file_name(1), |bytes| {
        for copy in [0, PAGE_BYTES / 2] {
            bytes[copy + 8] = 3;
            seal_header(&mut bytes[copy..copy + FORMAT_2_BYTES]);
        }
    });
    assert_eq!(fold(&storage, Depth::Everything).0.report.state(), State::Clean);
}

#[test]
fn a_count_that_cannot_be_true_does_not_forget_what_was_counted() {
    let storage = journal();
    let mut writer = open(&storage).unwrap();
    writer.stage(&message(b"b\r\n", 1), now()).unwrap();
    writer.commit(now()).unwrap();
    writer.close().unwrap();
    storage.alter(&file_name(2), |bytes| {
        for copy in [0, PAGE_BYTES / 2] {
            bytes[copy + 72..copy + 80].fill(0xFF);
            seal_header(&mut bytes[copy..copy + FORMAT_2_BYTES]);
        }
    });
    let (replay, ledger) = fold(&storage, Depth::Everything);
    assert_eq!((replay.report.damage, ledger.balance().accepted), (Vec::new(), 3), "nothing of it is missing");
}

#[test]
fn a_mark_names_nothing_outside_its_batch() {
    // The second mark names the first message, too, whose record has rotted: the first mark has named it already.
    let storage = journal();
    let mut marks = 0;
    storage.alter(&file_name(1), |bytes| {
        let frames: Vec<FrameHeader> =
            (PAGE_BYTES..bytes.len()).step_by(8).filter_map(|at| FrameHeader::decode(&bytes[at..])).collect();
        for mut mark in frames.iter().copied().filter(|frame| frame.kind == Kind::Mark) {
            let meta = mark.meta_offset() as usize..mark.content_offset() as usize;
            bytes[meta.start + 28 + 16..meta.start + 28 + 24].copy_from_slice(&(PAGE_BYTES as u64).to_le_bytes());
            mark.meta_crc = crc32c::crc32c(&bytes[meta]);
            bytes[mark.offset as usize..mark.meta_offset() as usize].copy_from_slice(&mark.encode().0);
            marks += 1;
            if marks == 2 {
                break;
            }
        }
        bytes[PAGE_BYTES] ^= 1;
    });
    let (replay, ledger) = fold(&storage, Depth::Everything);
    assert_eq!(replay.report.damage[0].ids.len(), 1, "{:?}", replay.report);
    assert_eq!((ledger.balance().accepted, ledger.balance().quarantined), (2, 1));
}
