//! Bounds and full disks: what a batch may hold, and what becomes of mail when room is missing at any call.

use super::*;
use crate::header::file_name;
use restante_ledger::{Action, Base, Operated, Served};

/// A record that needs room and is no new mail.
fn hold(id: TransactionId) -> Prepared {
    let (actor, reason) = ("root".to_owned(), "x".repeat(3000));
    Prepared::fact(
        &Fact::Operated(Operated { id, at: now(), action: Action::Hold, recipients: vec![0], actor, reason }),
        Vec::new(),
    )
}

#[test]
fn a_batch_is_full_before_it_is_large() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    let served = Prepared::fact(&Fact::Served(Served::default()), Vec::new());
    for (record, most) in [(served, 1024), (message(&vec![b'x'; 1 << 20], 1), 8)] {
        let mut staged = 0;
        while writer.has_room() {
            writer.stage(&record, now()).unwrap();
            staged += 1;
        }
        assert_eq!(staged, most);
        assert_eq!(writer.commit(now()).unwrap().receipts().len(), most);
    }
    assert!(writer.has_room() && writer.failure().is_none());
    storage.fail_call(1, ErrorKind::Other);
    writer.stage(&message(b"a\r\n", 1), now()).unwrap();
    writer.commit(now()).unwrap_err();
    assert!(writer.failure().is_some());
}

#[test]
fn room_that_is_missing_at_any_call_costs_a_refusal_and_no_message() {
    let whole = SimStorage::default();
    history(&whole, 12);
    let mut refused = 0;
    for call in 1..=whole.calls() {
        let storage = SimStorage::default();
        storage.fail_call(call, ErrorKind::StorageFull);
        let mut promised = BTreeMap::new();
        // A start that found no room for a segment is a start; one that could not sync its directory is none.
        let Ok(mut writer) = open(&storage) else { continue };
        for n in 0..40 {
            let body = content(n * 7);
            let committed = writer.stage(&message(&body, 1), now()).and_then(|()| writer.commit(now()));
            match committed {
                Ok(durable) => _ = promised.insert(durable.receipts()[0].id(), body),
                Err(CommitError::Full(_)) => refused += 1,
                // A sync that finds no room has failed.
                Err(_) => break,
            }
        }
        let failed = writer.failure().is_some();
        let closed = writer.close();
        for storage in (0..3).map(|seed| storage.power_cut(seed)).chain([storage.clone()]) {
            let (replay, ledger) = fold(&storage, Depth::Everything);
            assert_ne!(replay.report.state(), State::Damaged, "call {call}: {:?}", replay.report);
            assert_kept(&storage, &ledger, &promised, &[]);
            assert!(failed || closed.is_err() || ledger.balance().accepted == promised.len() as u64, "call {call}");
        }
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn what_is_no_new_mail_has_the_disk_to_its_last_byte() {
    let storage = SimStorage::default();
    let (replay, _) = fold(&storage, Depth::Records);
    let mut writer = Writer::open(storage.clone(), Options::default(), &replay, None, SEED, now()).unwrap();
    writer.stage(&message(b"a\r\n", 1), now()).unwrap();
    let id = writer.commit(now()).unwrap().receipts()[0].id();
    let filled = storage.bytes(&file_name(1)).len();
    storage.set_room(Some(filled + 10_000));
    let mut held = 0;
    loop {
        writer.stage(&hold(id), now()).unwrap();
        match writer.commit(now()) {
            Ok(_) => held += 1,
            Err(CommitError::Full(_)) => break,
            Err(error) => panic!("{error}"),
        }
    }
    // Each record with its mark is 3 KiB and a bit.
    assert!(held * 3400 > filled && storage.bytes(&file_name(1)).len() > filled, "{held}");
    storage.set_room(None);
    writer.stage(&message(b"b\r\n", 1), now()).unwrap();
    writer.commit(now()).unwrap();
    let (replay, ledger) = fold(&storage, Depth::Everything);
    assert_eq!((replay.report.state(), ledger.balance().accepted), (State::Clean, 2));
}

#[test]
fn a_batch_that_cannot_be_taken_back_is_the_end_and_not_a_refusal() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    storage.set_room(Some(storage.used()));
    writer.stage(&message(&vec![b'x'; 2 << 20], 1), now()).unwrap();
    // The write that finds no room is the first call; to zero what it left is the second.
    storage.fail_call(2, ErrorKind::Other);
    assert!(matches!(writer.commit(now()), Err(CommitError::Failed(_))));
    assert!(matches!(writer.commit(now()), Err(CommitError::Poisoned(_))));
}

#[test]
fn a_segment_that_finds_no_room_at_any_call_is_made_when_there_is_some() {
    let whole = SimStorage::default();
    drop(open(&whole).unwrap());
    // The last call is the sync of the directory: that one has failed for good.
    for call in 1..whole.calls() {
        let storage = SimStorage::default();
        storage.fail_call(call, ErrorKind::StorageFull);
        let mut writer = open(&storage).unwrap();
        writer.stage(&message(b"a\r\n", 1), now()).unwrap();
        writer.commit(now()).unwrap();
        writer.close().unwrap();
        let (replay, ledger) = fold(&storage, Depth::Everything);
        assert_eq!((replay.report.state(), ledger.balance().accepted), (State::Clean, 1), "call {call}");
        assert_eq!(storage.files(), [file_name(1)], "call {call}");
    }
}

#[test]
fn a_turn_that_finds_no_room_or_records_that_wait_lets_nothing_go() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    writer.stage(&message(b"a\r\n", 1), now()).unwrap();
    let base = Base { first: 2, transactions: 7, ..Base::default() };
    assert!(matches!(writer.turn(Some(base), now()), Err(CommitError::Full(_))));
    // What was staged is as good as before.
    writer.commit(now()).unwrap();
    // No room for the seals; none for the next segment, in either size.
    storage.fail_call(1, ErrorKind::StorageFull);
    assert!(matches!(writer.turn(Some(base), now()), Err(CommitError::Full(_))));
    storage.set_room(Some(0));
    assert!(matches!(writer.turn(Some(base), now()), Err(CommitError::Full(_))));
    storage.set_room(None);
    assert_eq!(storage.files(), [file_name(1)]);
    writer.stage(&message(b"b\r\n", 1), now()).unwrap();
    writer.commit(now()).unwrap();
    writer.turn(None, now()).unwrap();
    writer.close().unwrap();
    let (replay, ledger) = fold(&storage, Depth::Everything);
    assert_eq!((replay.report.state(), replay.base, replay.segments), (State::Clean, Base::default(), 3));
    assert_eq!(ledger.balance().accepted, 2);
}

#[test]
fn a_stop_that_finds_no_room_for_its_seals_is_a_stop() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    writer.stage(&message(b"a\r\n", 1), now()).unwrap();
    writer.commit(now()).unwrap();
    storage.fail_call(1, ErrorKind::StorageFull);
    writer.close().unwrap();
    let (replay, ledger) = fold(&storage, Depth::Everything);
    assert_eq!((replay.report.state(), ledger.balance().accepted), (State::Clean, 1));
}
