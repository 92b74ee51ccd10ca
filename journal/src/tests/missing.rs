//! Segments that vanished (case K) and segments that were cut (case N): what is left is whole, what is not is counted.

use super::fixtures::{Told, frames};
use super::*;
use crate::frame::Kind;
use crate::header::file_name;
use crate::storage::Storage;
use crate::{DamageKind, Report};
use std::collections::BTreeSet;

const SEGMENTS: u64 = 5;

/// What stands in one segment.
struct Part {
    /// Messages, with where each frame ends.
    mail: BTreeMap<TransactionId, u64>,
    recipients: u64,
    len: usize,
}

/// Five segments: the second and the fourth were left by a kill, the last is sealed or not. Messages are settled in the segment
/// behind theirs.
fn journal(is_closed: bool) -> (SimStorage, Vec<Part>) {
    let storage = SimStorage::default();
    let mut unsettled = Vec::new();
    for segment in 1..=SEGMENTS {
        let mut writer = open(&storage).unwrap();
        assert_eq!(writer.segment_number(), segment);
        for batch in 0..3 {
            for n in 0..2 {
                let n = segment as usize * 7 + batch * 2 + n;
                writer.stage(&message(&content(n), 1 + n % 3), now()).unwrap();
            }
            if let Some(id) = unsettled.pop() {
                writer.stage(&sent(id), now()).unwrap();
            }
            let durable = writer.commit(now()).unwrap();
            if batch == 1 {
                unsettled.push(durable.receipts()[0].id());
            }
        }
        if segment % 2 == 1 && (segment < SEGMENTS || is_closed) {
            writer.close().unwrap();
        }
    }
    let parts = (1..=SEGMENTS).map(|segment| {
        let bytes = storage.bytes(&file_name(segment));
        let mail: Vec<_> = frames(&bytes).into_iter().filter(|frame| frame.kind == Kind::Accepted).collect();
        let recipients = mail.iter().map(|frame| u64::from(frame.recipients)).sum();
        let mail = mail.iter().map(|frame| (frame.id, frame.padding_offset())).collect();
        Part { mail, recipients, len: bytes.len() }
    });
    let parts = parts.collect();
    (storage, parts)
}

fn read(storage: &SimStorage, depth: Depth) -> (Told, Report) {
    let mut told = Told::default();
    let replay = replay(storage, depth, &mut told).unwrap();
    assert!(told.ledger.balance().is_even());
    (told, replay.report)
}

/// The next daemon finds the same, says so as loudly, and its mail is counted beside what is missing.
fn assert_same_after_a_start(storage: &SimStorage, what: &str) {
    let before = read(storage, Depth::Everything).0.ledger.balance();
    let mut writer = open(storage).unwrap();
    writer.stage(&message(b"new\r\n", 1), now()).unwrap();
    writer.commit(now()).unwrap();
    drop(writer);
    let (told, report) = read(storage, Depth::Everything);
    let after = told.ledger.balance();
    assert_eq!(report.state(), State::Damaged, "{what}: after a start");
    assert_eq!((after.accepted, after.quarantined), (before.accepted + 1, before.quarantined), "{what}: after a start");
    assert_eq!((after.pending, after.sent), (before.pending + 1, before.sent), "{what}: after a start");
}

#[test]
fn segments_that_vanished_first_in_between_and_several_at_once_are_counted() {
    let (whole, parts) = journal(true);
    let (all, report) = read(&whole, Depth::Everything);
    assert_eq!((report.state(), all.ledger.balance().quarantined), (State::Clean, 0));
    assert!(all.ledger.balance().sent > 2);
    // That the last one is gone cannot be told; it stays.
    for gone in 1..1_u32 << (SEGMENTS - 1) {
        let is_gone = |segment: u64| gone & 1 << (segment - 1) != 0;
        let storage = whole.fork();
        (1..SEGMENTS).filter(|segment| is_gone(*segment)).for_each(|n| storage.remove(&file_name(n)).unwrap());
        let what = format!("without {:?}", (1..SEGMENTS).filter(|segment| is_gone(*segment)).collect::<Vec<_>>());
        let (mut left, mut missing) = (BTreeSet::new(), 0);
        for (segment, part) in (1..).zip(&parts) {
            if is_gone(segment) { missing += part.recipients } else { left.extend(part.mail.keys()) }
        }
        for depth in [Depth::Records, Depth::Everything] {
            let (told, report) = read(&storage, depth);
            let balance = told.ledger.balance();
            assert_eq!(balance.transactions, all.ledger.balance().transactions, "{what}");
            assert_eq!(balance.accepted, all.ledger.balance().accepted, "{what}");
            assert_eq!(balance.quarantined, missing, "{what}");
            assert_eq!(told.intact.iter().collect::<BTreeSet<_>>(), left.iter().collect(), "{what}");
            assert_eq!(told.lost, [], "{what}");
            let holes: Vec<_> = (1..SEGMENTS).filter(|n| is_gone(*n) && !(*n > 1 && is_gone(n - 1))).collect();
            let named = report.damage.iter().filter(|damage| damage.kind == DamageKind::MissingSegment);
            assert_eq!(named.map(|damage| damage.segment).collect::<Vec<_>>(), holes, "{what}");
        }
        assert_same_after_a_start(&storage, &what);
    }
}

/// About fifty lengths: evenly, and around where frames begin. Not where a second seal does: there we cut on a full disk.
fn lengths(bytes: &[u8]) -> BTreeSet<usize> {
    let seals = frames(bytes).into_iter().filter(|frame| frame.kind == Kind::Seal);
    let second = seals.map(|frame| frame.offset as usize).nth(1);
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let evenly = (0..20).map(|n| used * n / 20).chain([used, used + 1, (used + bytes.len()) / 2]);
    let frames = frames(bytes).into_iter().flat_map(|frame| [frame.offset as usize, frame.meta_offset() as usize]);
    let lengths = evenly.chain(frames.flat_map(|at| [at, at + 9]));
    lengths.filter(|len| *len < bytes.len() && Some(*len) != second).collect()
}

#[test]
fn a_segment_cut_at_any_length_keeps_what_stands_in_front_of_the_cut() {
    for is_closed in [true, false] {
        let (whole, parts) = journal(is_closed);
        let (all, _) = read(&whole, Depth::Everything);
        for segment in 1..=SEGMENTS {
            let lengths = lengths(&whole.bytes(&file_name(segment)));
            assert!(lengths.len() > 45, "{}", lengths.len());
            for (nth, len) in lengths.into_iter().enumerate() {
                let storage = whole.fork();
                storage.alter(&file_name(segment), |bytes| bytes.truncate(len));
                let what = format!(
                    "segment {segment} of {} bytes cut to {len}, closed: {is_closed}",
                    parts[segment as usize - 1].len
                );
                let (told, report) = read(&storage, Depth::Everything);
                assert_eq!(report.state(), State::Damaged, "{what}: {report:?}");
                let intact: BTreeSet<_> = told.intact.iter().collect();
                for (number, part) in (1..).zip(&parts) {
                    for (id, end) in &part.mail {
                        assert!(number == segment && *end > len as u64 || intact.contains(id), "{what}: {id} is lost");
                    }
                }
                let (balance, all) = (told.ledger.balance(), all.ledger.balance());
                if segment < SEGMENTS {
                    assert_eq!((balance.transactions, balance.accepted), (all.transactions, all.accepted), "{what}");
                } else {
                    assert!(balance.accepted <= all.accepted, "{what}");
                }
                // A start takes longer than a look.
                if nth % 3 == 0 {
                    assert_same_after_a_start(&storage, &what);
                }
            }
        }
    }
}

#[test]
fn the_segment_that_is_written_to_is_never_called_sealed_and_a_lost_page_hides_none() {
    let storage = SimStorage::default();
    history(&storage, 20);
    let _writer = open(&storage).unwrap();
    storage.alter(&file_name(1), |bytes| bytes[..4096].fill(0));
    let found = crate::segments(&storage).unwrap();
    assert!(found.len() > 3 && found.iter().zip(1..).all(|(segment, number)| segment.number == number), "{found:?}");
    let (last, before) = found.split_last().unwrap();
    assert!(!last.is_sealed && before.iter().all(|segment| segment.is_sealed), "{found:?}");
    assert!(found.iter().all(|segment| segment.bytes == storage.bytes(&file_name(segment.number)).len() as u64));
    assert_eq!((found[0].created_at, found[1].created_at), (None, Some(now())));
}
