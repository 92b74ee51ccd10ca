//! Summaries: a start that reads them knows what one knows that reads the segments, whatever became of either.

use super::fixtures::frames;
use super::leave::{Keeper, Promised};
use super::*;
use crate::header::file_name;
use crate::storage::Storage as _;
use crate::summary::{parse_summary_name, summary_name};
use crate::{scrub, summarize, unsummarized};
use restante_ledger::{Replayed, Served};

/// A journal from which segments have left, with a large message carried, with all summaries.
fn summed() -> SimStorage {
    let storage = SimStorage::default();
    let mut keeper = Keeper::start(&storage).unwrap();
    let mut promised = Promised::default();
    for round in 0..5 {
        keeper.round(round, &mut promised).unwrap();
    }
    keeper.writer.close().unwrap();
    history(&storage, 40);
    // The next process ends in a crash.
    let mut writer = open(&storage).unwrap();
    writer.stage(&message(b"the last\r\n", 2), now()).unwrap();
    writer.commit(now()).unwrap();
    for number in unsummarized(&storage).unwrap() {
        assert!(summarize(&storage, number).unwrap(), "{number}");
    }
    storage
}

fn summaries(storage: &SimStorage) -> Vec<u64> {
    storage.files().iter().filter_map(|name| parse_summary_name(name)).collect()
}

/// A start, and whether it read summaries: with those, what rotted in the segments goes unnoticed.
fn believes(storage: &SimStorage, number: u64) -> bool {
    let rotten = storage.fork();
    rotten.alter(&file_name(number), |bytes| {
        bytes[4096..].fill(0xEE);
    });
    let mut ledger = Ledger::new();
    start(&rotten, &mut ledger).unwrap().report.state() == State::Clean
}

#[test]
fn a_start_reads_the_summary_and_not_the_segment() {
    let storage = summed();
    let numbers = summaries(&storage);
    assert!(numbers.len() > 3 && numbers[0] > 1, "{numbers:?}");
    assert!(numbers.iter().all(|number| believes(&storage, *number)));
    begin(&storage);
    assert_eq!(unsummarized(&storage).unwrap(), [0; 0]);
}

#[test]
fn a_spoilt_summary_is_as_good_as_none() {
    let storage = summed();
    let number = summaries(&storage)[1];
    let name = summary_name(number);
    let whole = storage.bytes(&name);
    for at in 0..whole.len() {
        let spoilt = storage.fork();
        spoilt.alter(&name, |bytes| bytes[at] ^= 0x20);
        begin(&spoilt);
        assert!(!believes(&spoilt, number), "byte {at}");
        spoilt.alter(&name, |bytes| bytes.truncate(at));
        begin(&spoilt);
        assert!(!believes(&spoilt, number), "{at} bytes");
    }
}

#[test]
fn a_summary_is_of_one_segment_as_it_stood() {
    let storage = summed();
    let [one, other] = [summaries(&storage)[0], summaries(&storage)[1]];
    let swapped = storage.fork();
    swapped.alter(&summary_name(one), |bytes| *bytes = storage.bytes(&summary_name(other)));
    begin(&swapped);
    assert!(!believes(&swapped, one));
    let cut = storage.fork();
    cut.alter(&file_name(one), |bytes| bytes.truncate(bytes.len() - 40));
    let mut ledger = Ledger::new();
    assert_eq!(start(&cut, &mut ledger).unwrap().report.state(), State::Damaged);
    let no_page = storage.fork();
    no_page.alter(&file_name(one), |bytes| bytes[..4096].fill(0));
    assert_eq!(start(&no_page, &mut Ledger::new()).unwrap().report.state(), State::Damaged);
    // The segment behind it tells where it ends.
    let alone = storage.fork();
    alone.alter(&file_name(other), |bytes| bytes[..5000].fill(0));
    let (mut begun, mut known) = (Ledger::new(), Ledger::new());
    let states = [start(&alone, &mut begun), replay(&alone, Depth::Records, &mut known)];
    assert!(states.into_iter().all(|read| read.unwrap().report.state() == State::Damaged));
    assert_eq!(begun.balance(), known.balance());
}

#[test]
fn a_blob_that_is_gone_is_found_though_its_segment_is_not_read() {
    let storage = summed();
    for blob in storage.files().into_iter().filter(|name| name.starts_with("blob/")) {
        let without = storage.fork();
        without.remove(&blob).unwrap();
        let (mut begun, mut known) = (Ledger::new(), Ledger::new());
        let state = start(&without, &mut begun).unwrap().report.state();
        let whole = replay(&without, Depth::Records, &mut known).unwrap();
        assert_eq!((state, begun.balance()), (whole.report.state(), known.balance()), "{blob}");
    }
}

#[test]
fn what_is_not_as_written_is_not_summed_up_and_the_last_segment_neither() {
    let storage = SimStorage::default();
    history(&storage, 40);
    let last = unsummarized(&storage).unwrap().len() as u64 + 1;
    assert!(!summarize(&storage, last).unwrap());
    let spoilt = storage.fork();
    spoilt.alter(&file_name(1), |bytes| bytes[4096 + 100] ^= 1);
    assert!(!summarize(&spoilt, 1).unwrap());
    assert!(summarize(&spoilt, 2).unwrap());
    assert_eq!(summaries(&spoilt), [2]);
    // Those of segments that are gone go, too.
    spoilt.remove(&file_name(2)).unwrap();
    assert!(!unsummarized(&spoilt).unwrap().contains(&2));
    assert_eq!(summaries(&spoilt), [0; 0]);
}

#[test]
fn a_summary_that_says_less_than_its_segment_is_found_by_the_scrub() {
    let storage = summed();
    let scrubbed = || scrub(&storage, |_| true, |_| {}).unwrap().wrong_summaries;
    assert_eq!(scrubbed(), [0; 0]);
    let number = summaries(&storage)[0];
    storage.alter(&summary_name(number), crate::summary::forget_last);
    assert!(believes(&storage, number), "forged well");
    assert_eq!(scrubbed(), [number]);
}

#[test]
fn a_segment_that_lost_a_whole_batch_is_not_summed_up_and_its_summary_is_not_blamed() {
    let storage = SimStorage::default();
    history(&storage, 40);
    assert!(summarize(&storage, 1).unwrap());
    // The records with the mark that names them: what is missing has no name.
    storage.alter(&file_name(1), |bytes| {
        let end = frames(bytes).into_iter().find(|frame| frame.kind == crate::Kind::Mark).unwrap().end();
        bytes[4096..end as usize].fill(0xEE);
    });
    let (mut found, mut ledger) = (Vec::new(), Ledger::new());
    let scrubbed = scrub(&storage, |_| true, |damage| found.push(damage.kind)).unwrap();
    assert!(found.contains(&crate::DamageKind::Unnamed) && scrubbed.wrong_summaries.is_empty(), "{found:?}");
    assert!(!summarize(&storage, 1).unwrap());
    // With the old one gone, a start tells it.
    crate::remove_summary(&storage, 1).unwrap();
    assert_eq!(start(&storage, &mut ledger).unwrap().report.state(), State::Damaged);
    assert!(ledger.balance().quarantined > 0);
}

#[test]
fn the_routes_of_the_last_daemon_are_known_and_a_replayed_message_stays_sent_though_their_segment_is_not_read() {
    let storage = SimStorage::default();
    let served = Served { hostname: "mx1.test".into(), ..Served::default() };
    let mut writer = open(&storage).unwrap();
    writer.stage(&message(b"m\r\n", 1), now()).unwrap();
    let (id, position) = {
        let receipt = writer.commit(now()).unwrap().receipts()[0];
        (receipt.id(), receipt.position())
    };
    let (actor, reason, results) = ("a".to_owned(), "r".to_owned(), Vec::new());
    let replayed = Fact::Replayed(Replayed { id, at: now(), position, job: 1, actor, reason, next_hop: None, results });
    for record in
        [sent(id), Prepared::fact(&replayed, Vec::new()), Prepared::fact(&Fact::Served(served.clone()), Vec::new())]
    {
        writer.stage(&record, now()).unwrap();
    }
    writer.commit(now()).unwrap();
    writer.close().unwrap();
    open(&storage).unwrap().close().unwrap();
    assert!(summarize(&storage, 1).unwrap() && believes(&storage, 1));
    let mut ledger = Ledger::new();
    start(&storage, &mut ledger).unwrap();
    assert_eq!((ledger.served(), ledger.balance().sent, ledger.balance().pending), (Some(&served), 1, 0));
}
