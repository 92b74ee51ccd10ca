//! Copies made of a journal at work: at every moment a journal, and in the end the same one, whatever is cut short and whatever
//! leaves meanwhile.

use super::leave::{Keeper, Promised, check};
use super::*;
use crate::header::{PAGE_BYTES, Page, SegmentHeader, file_name, parse_file_name};
use crate::storage::{SegmentFile as _, Storage as _};
use crate::{BackupError, Copied, backup, have_a_common_past};
use std::cell::{Cell, RefCell};

fn copied(source: &SimStorage, copy: &SimStorage, is_live: bool) -> Copied {
    copy.revive();
    backup(source, copy, is_live, |_| {}).unwrap()
}

/// What the copy says is what the source says.
fn assert_same(source: &SimStorage, copy: &SimStorage) {
    let (ours, ledger) = fold(source, Depth::Everything);
    let (theirs, copied) = fold(copy, Depth::Everything);
    assert_eq!((theirs.report.state(), &theirs.orphans), (State::Clean, &vec![]), "{:?}", theirs.report);
    assert_eq!((copied.balance(), theirs.base, theirs.segments), (ledger.balance(), ours.base, ours.segments));
    assert_eq!(
        copied.iter().map(|(id, _)| id).collect::<Vec<_>>(),
        ledger.iter().map(|(id, _)| id).collect::<Vec<_>>()
    );
}

fn blobs(storage: &SimStorage) -> Vec<String> {
    storage.files().into_iter().filter(|name| name.starts_with("blob/")).collect()
}

#[test]
fn a_copy_follows_a_journal_at_work_and_holds_no_more_than_it() {
    let (source, copy) = (SimStorage::default(), SimStorage::default());
    let (mut keeper, mut promised) = (Keeper::start(&source).unwrap(), Promised::default());
    let mut carried_on = 0;
    for round in 0..9 {
        keeper.round(round, &mut promised).unwrap();
        let first = copied(&source, &copy, true);
        carried_on += first.segments_there;
        assert!(first.segments > 0);
        assert_same(&source, &copy);
        check(&copy, &promised);
        assert_eq!(blobs(&copy), blobs(&source), "round {round}");
        let again = copied(&source, &copy, true);
        assert_eq!((again.segments, again.segment_bytes, again.blobs), (0, 0, 0), "nothing is new");
        assert_eq!(again.segments_there, first.segments + first.segments_there);
    }
    assert!(carried_on > 0 && fold(&copy, Depth::Records).0.base.first > 1);
    // A daemon on the copy delivers what is pending, and is a daemon like any other.
    let elsewhere = copy.fork();
    let mut other = Keeper::start(&elsewhere).unwrap();
    let mut more =
        Promised { pending: promised.pending.clone(), settled: promised.settled.clone(), ..Promised::default() };
    other.round(20, &mut more).unwrap();
    check(&elsewhere, &more);
    // Its copy is its own now.
    let refused = backup(&source, &elsewhere, true, |_| {}).unwrap_err();
    assert!(matches!(refused, BackupError::Diverged { .. }), "{refused}");
}

/// The states of a journal between any two of its writes, with what was promised until then.
fn moments(rounds: usize, each: impl Fn(u64, &SimStorage, &Promised)) {
    let calls = {
        let source = SimStorage::default();
        let (mut keeper, mut promised) = (Keeper::start(&source).unwrap(), Promised::default());
        (0..rounds).for_each(|round| keeper.round(round, &mut promised).unwrap());
        source.calls()
    };
    for call in 1..=calls {
        let source = SimStorage::default();
        source.die_at(call);
        let mut promised = Promised::default();
        if let Ok(mut keeper) = Keeper::start(&source) {
            let _died = (0..rounds).try_for_each(|round| keeper.round(round, &mut promised));
        }
        each(call, &source.fork(), &promised);
    }
}

#[test]
fn a_copy_made_at_any_moment_of_a_journal_at_work_is_clean_and_holds_what_was_promised() {
    let copy = SimStorage::default();
    moments(3, |call, source, promised| {
        // Each time anew, and on top of the one before.
        for copy in [&SimStorage::default(), &copy] {
            // What a batch names that was not finished is not the same the next time.
            let is_first = copied_or_diverged(source, copy);
            if !is_first {
                continue;
            }
            let (replay, _) = fold(copy, Depth::Everything);
            assert_eq!(replay.report.state(), State::Clean, "call {call}: {:?}", replay.report);
            check(copy, promised);
        }
    });
}

/// False if the copy is none of this run.
fn copied_or_diverged(source: &SimStorage, copy: &SimStorage) -> bool {
    copy.revive();
    match backup(source, copy, true, |_| {}) {
        Ok(_) => true,
        Err(BackupError::Foreign | BackupError::Diverged { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

/// A journal, a copy of it as it was earlier, and what was pending and settled then and now. Rounds of even numbers let segments go.
fn earlier_and_now(before: &[usize], after: &[usize]) -> (SimStorage, SimStorage, Vec<TransactionId>, Promised) {
    let (source, early) = (SimStorage::default(), SimStorage::default());
    let (mut keeper, mut promised) = (Keeper::start(&source).unwrap(), Promised::default());
    before.iter().for_each(|round| keeper.round(*round, &mut promised).unwrap());
    copied(&source, &early, true);
    let pending = promised.pending.keys().copied().collect();
    after.iter().for_each(|round| keeper.round(*round, &mut promised).unwrap());
    (source, early, pending, promised)
}

#[test]
fn a_copy_cut_short_at_any_call_is_a_journal_and_is_finished_by_the_next() {
    let (mut calls_in_all, mut half_named) = (0, 0);
    let (source, apart, apart_pending, promised) = earlier_and_now(&[0, 1], &[2, 3]);
    let (grown, early, early_pending, all) = earlier_and_now(&[0, 1], &[3, 5]);
    for (source, from, pending, promised, is_apart) in [
        (&source, &SimStorage::default(), vec![], &promised, true),
        (&source, &apart, apart_pending, &promised, true),
        (&grown, &early, early_pending, &all, false),
        (&grown, &SimStorage::default(), vec![], &all, false),
    ] {
        let calls = {
            let (copy, before) = (from.fork(), from.fork().calls());
            copied(source, &copy, true);
            copy.calls() - before
        };
        calls_in_all += calls;
        for call in 1..=calls {
            let copy = from.fork();
            copy.die_at(call);
            assert!(backup(source, &copy, true, |_| {}).is_err());
            for seed in 0..2 {
                let cut = copy.power_cut(seed);
                let (replay, ledger) = fold(&cut, Depth::Everything);
                // Where segments left before they were copied, the others get their names one by one.
                half_named += u32::from(is_apart && replay.report.state() == State::Damaged);
                assert!(is_apart || replay.report.state() == State::Clean, "call {call}: {:?}", replay.report);
                // Nothing that was in the copy leaves it before what came after is there.
                let gone = |id: &&TransactionId| ledger.get(**id).is_none() && !promised.settled.contains(id);
                assert_eq!(pending.iter().find(gone), None, "call {call}");
                copied(source, &cut, true);
                assert_same(source, &cut);
            }
        }
    }
    assert!(half_named > 0 && u64::from(half_named) < calls_in_all / 4, "{half_named} of {calls_in_all}");
}

#[test]
fn segments_that_leave_while_they_are_copied_lead_to_the_next_listing() {
    let (source, copy) = (SimStorage::default(), SimStorage::default());
    let mut keeper = Keeper::start(&source).unwrap();
    let promised = RefCell::new(Promised::default());
    keeper.round(1, &mut promised.borrow_mut()).unwrap();
    let (keeper, round) = (RefCell::new(keeper), Cell::new(2));
    for _ in 0..8 {
        let until = round.get() + 2;
        let step = |_| {
            if round.get() < until {
                round.set(round.get() + 1);
                keeper.borrow_mut().round(round.get(), &mut promised.borrow_mut()).unwrap();
            }
        };
        backup(&source, &copy, true, step).unwrap();
        assert_eq!(round.get(), until, "it was at work meanwhile");
        let (replay, _) = fold(&copy, Depth::Everything);
        assert_eq!(replay.report.state(), State::Clean, "{:?}", replay.report);
    }
    copied(&source, &copy, true);
    assert_same(&source, &copy);
    check(&copy, &promised.borrow());
}

#[test]
fn a_dead_journal_is_copied_with_its_torn_end_and_damage_stays_what_it_is() {
    let (source, copy) = (SimStorage::default(), SimStorage::default());
    let mut keeper = Keeper::start(&source).unwrap();
    keeper.round(1, &mut Promised::default()).unwrap();
    let newest = file_name(keeper.writer.segment_number());
    drop(keeper);
    source.alter(&newest, |bytes| bytes.extend([0xA5; 333]));
    copied(&source, &copy, false);
    let (replay, ledger) = fold(&copy, Depth::Everything);
    assert_eq!((replay.report.state(), ledger.balance()), (State::Torn, fold(&source, Depth::Records).1.balance()));
    assert_eq!(copied(&source, &copy, false).segments, 0);
    // Dealt with, and so the next start's copy is clean. What rots later costs the source, and not the copy.
    let mut keeper = Keeper::start(&source).unwrap();
    keeper.round(2, &mut Promised::default()).unwrap();
    copied(&source, &copy, true);
    assert_same(&source, &copy);
    let rotten = source.fork();
    let blob = blobs(&rotten)[1].clone();
    rotten.remove(&blob).unwrap();
    rotten.alter(&file_name(1), |bytes| bytes[PAGE_BYTES + 100] ^= 1);
    copied(&rotten, &copy, true);
    assert_same(&source, &copy);
    // A copy made of it now has what there is.
    let late = SimStorage::default();
    assert_eq!(copied(&rotten, &late, true).blobs_missing, 1);
    let (ours, theirs) = (fold(&rotten, Depth::Everything), fold(&late, Depth::Everything));
    assert_eq!((theirs.0.report, theirs.1.balance()), (ours.0.report, ours.1.balance()));
}

#[test]
fn another_journal_is_never_written_over() {
    let (source, copy) = (SimStorage::default(), SimStorage::default());
    let (mut keeper, mut promised) = (Keeper::start(&source).unwrap(), Promised::default());
    keeper.round(1, &mut promised).unwrap();
    let (replay, ledger) = fold(&copy, Depth::Records);
    let seed = Seed { journal: 43, ..SEED };
    Writer::open(copy.clone(), SMALL, &replay, ledger.largest_id(), seed, now()).unwrap().close().unwrap();
    let (calls, refused) = (copy.calls(), backup(&source, &copy, true, |_| {}).unwrap_err());
    assert!(matches!(refused, BackupError::Foreign), "{refused}");
    assert_eq!(copy.calls(), calls);
    // One with the same past that was served since, whose source has let go of all that could be compared.
    let served = SimStorage::default();
    copied(&source, &served, true);
    Keeper::start(&served).unwrap();
    (2..12).for_each(|round| keeper.round(round, &mut promised).unwrap());
    let lowest = source.list().unwrap().iter().filter_map(|name| parse_file_name(name)).min();
    let own = served.list().unwrap().iter().filter_map(|name| parse_file_name(name)).max();
    assert!(lowest > own, "{lowest:?} {own:?}");
    let refused = backup(&source, &served, true, |_| {}).unwrap_err();
    assert!(matches!(refused, BackupError::Diverged { .. }), "{refused}");
}

#[test]
fn the_segment_being_written_is_copied_to_its_last_mark_and_never_shorter_than_it_was_made() {
    let (source, copy) = (SimStorage::default(), SimStorage::default());
    let mut writer = open(&source).unwrap();
    writer.stage(&message(b"m\r\n", 1), now()).unwrap();
    writer.commit(now()).unwrap();
    let name = file_name(1);
    // In flight: it has a frame, and no mark yet.
    let mut flying = source.open(&name).unwrap();
    let end = copied(&source, &copy, true).end.unwrap().offset;
    flying.write_at(end, &[0xA5; 100]).unwrap();
    assert_eq!(copied(&source, &copy, true).segments, 0);
    let bytes = copy.bytes(&name);
    let Page::Intact(header) = SegmentHeader::decode(&bytes[..PAGE_BYTES]) else { panic!("no header") };
    assert_eq!(bytes.len(), header.made_bytes as usize);
    assert!(bytes[end as usize..].iter().all(|byte| *byte == 0));
    assert_eq!(fold(&copy, Depth::Everything).0.report.state(), State::Clean);
}

/// A journal with one message, a batch on top of it that a full disk may take back, and the bytes before that came.
fn about_to_be_taken_back(record: impl Fn(&SimStorage) -> Vec<Prepared>) -> (SimStorage, Vec<u8>) {
    let source = SimStorage::default();
    let mut writer = open(&source).unwrap();
    writer.stage(&message(&content(1), 1), now()).unwrap();
    writer.commit(now()).unwrap();
    let before = source.bytes(&file_name(1));
    record(&source).iter().for_each(|record| writer.stage(record, now()).unwrap());
    writer.commit(now()).unwrap();
    (source, before)
}

#[test]
fn a_batch_that_is_half_taken_back_while_it_is_copied_is_looked_at_again() {
    let (source, before) = about_to_be_taken_back(|_| vec![message(&content(2), 1), message(&content(3), 1)]);
    let name = file_name(1);
    let whole = source.bytes(&name);
    let last = fixtures::frames(&whole).into_iter().rfind(|frame| frame.kind == crate::Kind::Accepted).unwrap();
    for at in [last.offset, last.meta_offset(), last.content_offset()] {
        for after in [&before, &whole] {
            let (source, copy, pieces) = (source.fork(), SimStorage::default(), Cell::new(0));
            let step = |_| {
                pieces.set(pieces.get() + 1);
                match pieces.get() {
                    1 => source.alter(&name, |bytes| bytes[at as usize + 2] ^= 4),
                    _ => source.alter(&name, |bytes| bytes.clone_from(after)),
                }
            };
            backup(&source, &copy, true, step).unwrap();
            assert_same(&source, &copy);
        }
        // It stays so: it has rotted, and is copied as it is.
        let (rotten, copy) = (source.fork(), SimStorage::default());
        rotten.alter(&name, |bytes| bytes[at as usize + 2] ^= 4);
        copied(&rotten, &copy, true);
        let [ours, theirs] = [&rotten, &copy].map(|storage| fold(storage, Depth::Everything).0.report);
        assert!(theirs.state() != State::Clean && theirs == ours, "{theirs:?}");
    }
}

#[test]
fn a_large_message_taken_back_while_it_is_copied_is_not_in_the_copy() {
    let (source, before) = about_to_be_taken_back(|source| {
        [b"one\r\n", b"two\r\n"].map(|content| large(source, content, 1).unwrap()).into()
    });
    let (copy, pieces) = (SimStorage::default(), Cell::new(0));
    let step = |_| {
        pieces.set(pieces.get() + 1);
        // The segment is copied, and with the first blob the other one goes.
        if pieces.get() == 2 {
            source.alter(&file_name(1), |bytes| bytes.clone_from(&before));
            source.remove(blobs(&source).last().unwrap()).unwrap();
        }
    };
    let done = backup(&source, &copy, true, step).unwrap();
    assert_eq!(done.blobs_missing, 0);
    assert_eq!(fold(&copy, Depth::Everything).1.balance().accepted, 1);
}

#[test]
fn a_batch_that_was_copied_and_then_taken_back_leaves_the_copy_with_the_next() {
    let (source, before) = about_to_be_taken_back(|_| vec![message(&content(2), 1)]);
    let copy = SimStorage::default();
    copied(&source, &copy, true);
    source.alter(&file_name(1), |bytes| bytes.clone_from(&before));
    copied(&source, &copy, true);
    assert_same(&source, &copy);
}

#[test]
fn an_empty_source_costs_the_copy_nothing() {
    let (source, copy) = (SimStorage::default(), SimStorage::default());
    let (mut keeper, mut promised) = (Keeper::start(&source).unwrap(), Promised::default());
    (0..3).for_each(|round| keeper.round(round, &mut promised).unwrap());
    copied(&source, &copy, true);
    let (files, calls) = (copy.files(), copy.calls());
    // Somebody mounted nothing there.
    let done = backup(&SimStorage::default(), &copy, false, |_| {}).unwrap();
    assert_eq!((done, copy.files(), copy.calls()), (Copied::default(), files, calls));
    let names: Vec<_> = source.list().unwrap().into_iter().filter(|name| parse_file_name(name).is_some()).collect();
    // With one header lost, the others say whose it is.
    let one = source.fork();
    one.alter(&names[0], |bytes| bytes[..PAGE_BYTES].fill(0));
    let other = SimStorage::default();
    let (replay, ledger) = fold(&other, Depth::Records);
    let seed = Seed { journal: 43, ..SEED };
    Writer::open(other.clone(), SMALL, &replay, ledger.largest_id(), seed, now()).unwrap().close().unwrap();
    other.rename(&file_name(1), &names[0]).unwrap();
    assert!(matches!(backup(&one, &other, true, |_| {}), Err(BackupError::Foreign)));
}

#[test]
fn what_has_left_stays_in_a_copy_that_may_have_lost_the_record_that_names_its_blob() {
    let (source, copy) = (SimStorage::default(), SimStorage::default());
    let (mut keeper, mut promised) = (Keeper::start(&source).unwrap(), Promised::default());
    keeper.round(1, &mut promised).unwrap();
    let first = source.bytes(&file_name(1));
    (2..8).for_each(|round| keeper.round(round, &mut promised).unwrap());
    copied(&source, &copy, true);
    // It was cut short before it removed the last of what left.
    drop(copy.create(&file_name(1)).unwrap());
    copy.alter(&file_name(1), |bytes| *bytes = first);
    drop(copy.create("blob/0123456789abcdef0123456789abcdef").unwrap());
    let (whole, rotten) = (copy.fork(), copy);
    let removed = copied(&source, &whole, true).removed;
    assert_eq!((removed.segments, removed.blobs), (1, 1));
    let kept = fold(&source, Depth::Records).0.base.first;
    rotten.alter(&file_name(kept), |bytes| bytes[PAGE_BYTES + 100] ^= 1);
    let files = rotten.files();
    assert_eq!(copied(&source, &rotten, true).removed, Default::default());
    assert_eq!(rotten.files(), files);
}

#[test]
fn two_journals_have_a_common_past_if_they_have_a_segment_in_common_and_not_if_they_have_a_name_in_common() {
    let journal = |seed: Seed, before: &SimStorage| {
        let storage = before.fork();
        let (replay, ledger) = fold(&storage, Depth::Records);
        let mut writer = Writer::open(storage.clone(), SMALL, &replay, ledger.largest_id(), seed, now()).unwrap();
        writer.stage(&message(&content(3), 1), now()).unwrap();
        writer.commit(now()).unwrap();
        writer.close().unwrap();
        storage
    };
    let nothing = SimStorage::default();
    let past = journal(SEED, &nothing);
    // Each went on by itself.
    let [one, other] = [SEED, Seed { tags: 9, ..SEED }].map(|seed| journal(seed, &past));
    assert_eq!(one.files(), other.files());
    assert!(have_a_common_past(&one, &other).unwrap() && have_a_common_past(&one, &past).unwrap());
    // The past has left one of them.
    other.remove(&file_name(1)).unwrap();
    assert!(!have_a_common_past(&one, &other).unwrap() && !have_a_common_past(&other, &one).unwrap());
    // The tags are the same, and the journals are not; and of a lost header nobody knows.
    let stranger = journal(Seed { journal: 43, ..SEED }, &nothing);
    assert!(!have_a_common_past(&past, &stranger).unwrap() && !have_a_common_past(&past, &nothing).unwrap());
    let pageless = past.fork();
    pageless.alter(&file_name(1), |bytes| bytes[..PAGE_BYTES].fill(0));
    assert!(!have_a_common_past(&pageless, &past.fork()).unwrap());
}
