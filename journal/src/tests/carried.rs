//! Messages written again, and what operators did: whatever state a recipient is in, it is in that state when the record is all
//! that is left.

use super::leave::Keeper;
use super::*;
use crate::carry::{self, Cargo};
use crate::codec::Take;
use crate::frame::{FrameHeader, Kind};
use crate::header::{file_name, parse_file_name};
use crate::storage::Storage as _;
use crate::{CarriedBlobs, Sink, remove_left, remove_summary, replay_from, scrub, summarize};
use proptest::prelude::*;
use restante_ledger::{
    Accepted, Action, Base, Carried, Operated, Past, Position, RecipientState, ReplayMark, Standing,
};

fn standings() -> impl Strategy<Value = Vec<Standing>> {
    let state = prop_oneof![
        Just(RecipientState::Due),
        any::<u64>().prop_map(|ms| RecipientState::Deferred(Timestamp::from_unix_ms(ms))),
        Just(RecipientState::Hold),
        Just(RecipientState::Sent),
        Just(RecipientState::Bounced),
        Just(RecipientState::Removed),
        Just(RecipientState::Quarantined),
    ];
    let standing = (any::<u16>(), state, ".{0,20}", past()).prop_map(|(attempts, state, why, past)| {
        let past = if state == RecipientState::Sent { past } else { Past::default() };
        Standing { attempts, state, why, past }
    });
    proptest::collection::vec(standing, 1..9)
}

fn past() -> impl Strategy<Value = Past> {
    let mark = (any::<u64>(), any::<bool>()).prop_map(|(job, taken)| ReplayMark { job, taken });
    let sent_at = proptest::option::of((1..u64::MAX).prop_map(Timestamp::from_unix_ms));
    (sent_at, proptest::collection::vec(mark, 0..3)).prop_map(|(sent_at, replays)| Past { sent_at, replays })
}

fn accepted(n: u128, recipients: usize, hold: bool, content: &[u8]) -> Accepted {
    let (envelope, trace) = envelope(recipients);
    let (hold, content_len) = (hold.then(|| "loop".to_owned()), content.len() as u64);
    Accepted { id: TransactionId::from_bits(n), envelope, trace, content_len, hold }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn a_message_of_another_journal_stands_here_as_it_stood_there(
        standings in standings(), id in 1u128.., hold in any::<bool>(), size in 0usize..2000, is_large in any::<bool>(),
    ) {
        let (storage, content) = (SimStorage::default(), vec![b'x'; size]);
        let mut writer = open(&storage).unwrap();
        let accepted = accepted(id, standings.len(), hold, &content);
        let cargo = if is_large {
            let mut blob = BlobWriter::create(&storage, BlobName::from_bits(9)).unwrap();
            blob.write(&content).unwrap();
            Cargo::in_blob(accepted.clone(), &blob.finish().unwrap())
        } else {
            Cargo::in_record(accepted.clone(), content.clone())
        };
        prop_assert_eq!(cargo.accepted(), &accepted);
        let (record, carried) = Prepared::carried(cargo, standings.clone());
        prop_assert_eq!((&carried.accepted, &carried.recipients), (&accepted, &standings));
        writer.stage(&record, now()).unwrap();
        let position = writer.commit(now()).unwrap().receipts()[0].position();
        writer.close().unwrap();
        let read = facts_from(&storage, 0);
        prop_assert_eq!(read, vec![(position, Fact::Carried(carried))]);
        let stored = Reader::new(storage.clone()).message(position).unwrap();
        prop_assert_eq!(stored.fact, Fact::Accepted(accepted));
        prop_assert_eq!(stored.content.read_all().unwrap(), content);
        let (replay, ledger) = fold(&storage, Depth::Everything);
        prop_assert_eq!(replay.report.state(), State::Clean);
        if let Some(told) = ledger.get(TransactionId::from_bits(id)) {
            let told: Vec<_> = told.recipients.iter().map(|entry| (entry.attempts, entry.state)).collect();
            prop_assert_eq!(told, standings.iter().map(|told| (told.attempts, told.state)).collect::<Vec<_>>());
        } else {
            prop_assert!(standings.iter().all(|told| told.state == RecipientState::Sent));
        }
    }
}

/// What is read from segment `first` on.
fn facts_from(storage: &SimStorage, first: u64) -> Vec<(Position, Fact)> {
    let mut facts = Facts::default();
    let replay = replay_from(storage, first, Depth::Everything, &mut facts).unwrap();
    assert_eq!(replay.report.state(), State::Clean, "from {first}: {:?}", replay.report);
    facts.0
}

#[derive(Default)]
struct Facts(Vec<(Position, Fact)>);

impl Sink for Facts {
    fn fact(&mut self, position: Position, fact: &Fact) {
        self.0.push((position, fact.clone()));
    }
    fn damaged(&mut self, position: Position, _: &Accepted) {
        panic!("damaged at {position}");
    }
    fn lost(&mut self, position: Position, _: TransactionId, _: u16) {
        panic!("lost at {position}");
    }
    fn damaged_carried(&mut self, position: Position, _: &Carried) {
        panic!("damaged at {position}");
    }
    fn unnamed(&mut self, segment: u64, _: u64, _: u64) {
        panic!("missing in {segment}");
    }
    fn begins_after(&mut self, _: &Base) {}
}

#[test]
fn whoever_reads_on_from_a_segment_misses_nothing_and_finds_no_damage_in_front() {
    let storage = SimStorage::default();
    let (mut keeper, mut promised) = (Keeper::start(&storage).unwrap(), Default::default());
    (0..6).for_each(|round| keeper.round(round, &mut promised).unwrap());
    keeper.writer.close().unwrap();
    history(&storage, 20);
    let all = facts_from(&storage, 0);
    let (lowest, highest) = (all[0].0.segment, all[all.len() - 1].0.segment);
    assert!(lowest > 1 && highest > lowest + 2, "{lowest} {highest}");
    for first in 0..highest + 2 {
        let behind: Vec<_> = all.iter().filter(|(position, _)| position.segment >= first).cloned().collect();
        assert_eq!(facts_from(&storage, first), behind, "from {first}");
    }
}

#[test]
fn what_an_operator_did_is_what_is_read_whatever_it_was() {
    for action in [Action::Hold, Action::Release, Action::Bounce, Action::Remove, Action::Undo] {
        let storage = SimStorage::default();
        let mut writer = open(&storage).unwrap();
        writer.stage(&message(b"m\r\n", 2), now()).unwrap();
        let id = writer.commit(now()).unwrap().receipts()[0].id();
        let (actor, reason) = ("root".to_owned(), "why".to_owned());
        let fact = Fact::Operated(Operated { id, at: now(), action, recipients: vec![1], actor, reason });
        writer.stage(&Prepared::fact(&fact, Vec::new()), now()).unwrap();
        let position = writer.commit(now()).unwrap().receipts()[0].position();
        let mut reader = Reader::new(storage);
        assert_eq!(reader.record(position).unwrap().fact, fact);
        // It is no message, and nothing to be written again.
        assert!(matches!(reader.to_carry(position), Err(ReadError::Damaged { .. })));
    }
}

#[test]
fn a_carried_message_that_says_less_of_its_recipients_than_it_has_is_malformed() {
    let standing = |n| Standing { attempts: n, state: RecipientState::Hold, why: String::new(), past: Past::default() };
    for (told, is_right) in [(1, false), (2, true), (3, false)] {
        let (record, carried) = Prepared::carried(
            Cargo::in_record(accepted(5, 2, false, b""), Vec::new()),
            (0..told).map(standing).collect(),
        );
        let read = carry::decode(&mut Take(&record.meta), carried.accepted.id, 0, false);
        assert_eq!(read.is_ok(), is_right, "{told} of 2");
    }
}

#[test]
fn a_past_of_a_recipient_that_was_not_sent_or_is_none_is_malformed_and_none_is_none() {
    let standing = |state| Standing { attempts: 1, state, why: String::new(), past: Past::default() };
    let cargo = Cargo::in_record(accepted(5, 2, false, b""), Vec::new());
    let (record, carried) =
        Prepared::carried(cargo, vec![standing(RecipientState::Due), standing(RecipientState::Sent)]);
    let read = |past: &[u8]| {
        let meta = [&record.meta[..], past].concat();
        carry::decode(&mut Take(&meta), carried.accepted.id, 0, false)
    };
    let past = |recipient: u8, taken: u8| {
        [&[1, 0, recipient, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 7][..], &[0; 7], &[taken]].concat()
    };
    assert_eq!(read(b"").unwrap(), carried);
    let told = read(&past(1, 1)).unwrap().recipients[1].past.clone();
    let replays = vec![ReplayMark { job: 7, taken: true }];
    assert_eq!(told, Past { sent_at: Some(Timestamp::from_unix_ms(9)), replays });
    for wrong in [past(0, 1), past(2, 1), past(1, 2), past(1, 1)[..17].to_vec(), vec![1]] {
        assert!(read(&wrong).is_err(), "{wrong:?}");
    }
    // What a later format adds behind it is ignored.
    assert!(read(&[past(1, 0), vec![9; 5]].concat()).is_ok());
}

/// A journal, and where the frame of a carried message with a blob stands.
fn with_a_carried_blob() -> (SimStorage, Position, FrameHeader, String) {
    let storage = SimStorage::default();
    let (mut keeper, mut promised) = (Keeper::start(&storage).unwrap(), Default::default());
    (0..3).for_each(|round| keeper.round(round, &mut promised).unwrap());
    keeper.writer.close().unwrap();
    let found = facts_from(&storage, 0).into_iter().find_map(|(position, fact)| {
        let bytes = storage.bytes(&file_name(position.segment));
        let header = FrameHeader::decode(&bytes[position.offset as usize..]).unwrap();
        let cargo = Reader::new(storage.clone()).to_carry(position).ok()?;
        let blob = cargo.blob.filter(|_| matches!(fact, Fact::Carried(_)))?;
        Some((position, header, blob.name.file()))
    });
    let (position, header, blob) = found.expect("one that stays is large");
    assert_eq!(header.kind, Kind::Carried);
    (storage, position, header, blob)
}

#[test]
fn a_removal_cut_short_behind_a_blob_of_a_carried_message_is_finished_by_the_next() {
    let (storage, position, _, blob) = with_a_carried_blob();
    // It is all that left, before the power went.
    storage.remove(&blob).unwrap();
    let first = position.segment + 1;
    let removed = remove_left(&storage, first, &mut CarriedBlobs::default()).unwrap();
    assert!(removed.segments > 0);
    assert!(storage.files().iter().filter_map(|name| parse_file_name(name)).all(|number| number >= first));
}

#[test]
fn a_segment_with_a_carried_message_whose_blob_is_gone_has_no_summary_and_no_wrong_one() {
    let (storage, position, ..) = with_a_carried_blob();
    history(&storage, 1);
    remove_summary(&storage, position.segment).unwrap();
    assert!(summarize(&storage, position.segment).unwrap());
    for blob in storage.files().into_iter().filter(|name| name.starts_with("blob/")) {
        let without = storage.fork();
        without.remove(&blob).unwrap();
        let mut found = Vec::new();
        let scrubbed = scrub(&without, |_| true, |damage| found.push(damage.segment)).unwrap();
        // The segments have rotted, not the summaries.
        assert_eq!(scrubbed.wrong_summaries, [0; 0], "{blob}");
        let numbers: Vec<u64> = without.files().iter().filter_map(|name| parse_file_name(name)).collect();
        for number in &numbers[..numbers.len() - 1] {
            assert_eq!(summarize(&without, *number).unwrap(), !found.contains(number), "{blob} {number}");
        }
    }
}
