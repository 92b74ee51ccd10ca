//! Segments that leave: what they held stays counted, what was not settled was carried forward, and no crash in between
//! costs a message, brings a settled one back, or leaves a blob that belongs to nobody.

use super::*;
use crate::frame::FrameHeader;
use crate::header::{file_name, parse_file_name};
use crate::storage::Storage as _;
use crate::{CarriedBlobs, remove_left, remove_summary, summarize, unsummarized};
use restante_ledger::{Action, Operated, Past, Standing};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);

fn later() -> Timestamp {
    now() + DAY
}

/// A daemon, as far as the journal is concerned: writes, folds what is durable, lets go of what had its time.
pub(super) struct Keeper {
    storage: SimStorage,
    pub(super) writer: Writer<SimStorage>,
    pub(super) ledger: Ledger,
    carried: CarriedBlobs,
}

impl Keeper {
    pub(super) fn start(storage: &SimStorage) -> Result<Self, CommitError> {
        storage.restart();
        sync_last_segment(storage).map_err(CommitError::Failed)?;
        let (replay, ledger) = begin(storage);
        set_aside(storage, &replay.report).map_err(CommitError::Failed)?;
        let mut carried = replay.carried_blobs.clone();
        let failed = |error: crate::ReplayError| CommitError::Failed(std::io::Error::other(error));
        remove_left(storage, replay.base.first, &mut carried).map_err(failed)?;
        set_orphans_aside(storage, &replay).map_err(CommitError::Failed)?;
        remove_parts(storage, &replay).map_err(CommitError::Failed)?;
        let writer = Writer::open(storage.clone(), SMALL, &replay, ledger.largest_id(), SEED, now())?;
        Ok(Self { storage: storage.clone(), writer, ledger, carried })
    }

    fn write(&mut self, records: &[(Prepared, Option<Fact>)]) -> Result<Vec<TransactionId>, CommitError> {
        for (record, _) in records {
            self.writer.stage(record, now())?;
        }
        let durable = self.writer.commit(now())?;
        let mut reader = Reader::new(self.storage.clone());
        for (receipt, (_, fact)) in durable.receipts().iter().zip(records) {
            let read = || reader.record(receipt.position()).unwrap().fact;
            self.ledger.apply(receipt.position(), &fact.clone().unwrap_or_else(read));
        }
        Ok(durable.receipts().iter().map(|receipt| receipt.id()).collect())
    }

    fn accept(&mut self, content: &[u8], is_large: bool) -> Result<TransactionId, CommitError> {
        let failed = |_| CommitError::Failed(ErrorKind::Other.into());
        let record = if is_large { large(&self.storage, content, 1).map_err(failed)? } else { message(content, 1) };
        Ok(self.write(&[(record, None)])?[0])
    }

    /// As the daemon does it: stragglers are written again, then the next segment says what left, then it goes.
    fn let_go(&mut self, at: Timestamp) -> Result<(), CommitError> {
        let newest = self.writer.segment_number();
        let Some(first) = self.ledger.leaving(newest, DAY / 2, at) else { return Ok(()) };
        for id in self.ledger.stragglers(first) {
            let transaction = self.ledger.get(id).unwrap().clone();
            let cargo = Reader::new(self.storage.clone()).to_carry(transaction.position).unwrap();
            let standing = |entry: &restante_ledger::RecipientEntry| Standing {
                attempts: entry.attempts,
                state: entry.state,
                why: "why".into(),
                past: Past::default(),
            };
            let (record, carried) = Prepared::carried(cargo, transaction.recipients.iter().map(standing).collect());
            let blob = record.blob();
            self.write(&[(record, Some(Fact::Carried(carried)))])?;
            let position = self.ledger.get(id).unwrap().position;
            assert_ne!(position, transaction.position);
            blob.into_iter().for_each(|blob| self.carried.note(blob, position.segment));
        }
        let base = self.ledger.base_at(first).expect("nothing there is to be settled any more");
        self.writer.turn(Some(base), now())?;
        self.ledger.segments_left(&base);
        let failed = |error: crate::ReplayError| CommitError::Failed(std::io::Error::other(error));
        remove_left(&self.storage, base.first, &mut self.carried).map_err(failed).map(drop)
    }

    /// Mail comes, most of what there was is settled, and segments leave.
    pub(super) fn round(&mut self, round: usize, promised: &mut Promised) -> Result<(), CommitError> {
        for n in 0..6 {
            let content = content(round * 7 + n);
            let id = self.accept(&content, n % 3 == 0)?;
            promised.pending.insert(id, content);
        }
        // The first of all stays for ever, and so does one large one; of the others most go.
        let done: Vec<_> = promised.pending.keys().copied().enumerate().filter(|(n, _)| n % 4 > 1).collect();
        for (n, id) in done {
            promised.in_doubt = vec![id];
            let (actor, reason) = ("a".to_owned(), "r".to_owned());
            let removed =
                Fact::Operated(Operated { id, at: now(), action: Action::Remove, recipients: vec![0], actor, reason });
            let record = if n % 2 == 0 { (sent(id), None) } else { (Prepared::fact(&removed, Vec::new()), None) };
            self.write(&[record])?;
            promised.in_doubt.clear();
            promised.pending.remove(&id);
            promised.settled.push(id);
        }
        self.let_go(if round.is_multiple_of(2) { later() } else { now() })?;
        // Two rounds of three, so that some segments have none. That it fails is nobody's trouble.
        if !round.is_multiple_of(3) {
            unsummarized(&self.storage).unwrap_or_default().into_iter().for_each(|n| drop(summarize(&self.storage, n)));
        }
        Ok(())
    }
}

/// What a history promised.
#[derive(Default)]
pub(super) struct Promised {
    pub(super) pending: BTreeMap<TransactionId, Vec<u8>>,
    pub(super) settled: Vec<TransactionId>,
    /// Asked for, and whether it is durable is not known.
    pub(super) in_doubt: Vec<TransactionId>,
}

fn run(storage: &SimStorage, rounds: usize) -> Result<Promised, Box<Promised>> {
    let mut promised = Promised::default();
    match try_run(storage, rounds, &mut promised) {
        Ok(()) => Ok(promised),
        Err(_) => Err(Box::new(promised)),
    }
}

fn try_run(storage: &SimStorage, rounds: usize, promised: &mut Promised) -> Result<(), CommitError> {
    let mut keeper = Keeper::start(storage)?;
    for round in 0..rounds {
        keeper.round(round, promised)?;
    }
    keeper.writer.close()
}

pub(super) fn check(storage: &SimStorage, promised: &Promised) -> Ledger {
    let (replay, ledger) = fold(storage, Depth::Everything);
    assert_ne!(replay.report.state(), State::Damaged, "{:?}", replay.report);
    let mut reader = Reader::new(storage.clone());
    for (id, content) in promised.pending.iter().filter(|(id, _)| !promised.in_doubt.contains(id)) {
        let transaction = ledger.get(*id).unwrap_or_else(|| panic!("{id} is gone"));
        assert!(!transaction.is_settled(), "{id} is settled");
        assert_eq!(&reader.message(transaction.position).unwrap().content.read_all().unwrap(), content);
    }
    for id in &promised.settled {
        assert!(ledger.get(*id).is_none_or(|t| t.is_settled()), "{id} would be delivered again");
    }
    let known = (promised.pending.len() + promised.settled.len()) as u64;
    let balance = ledger.balance();
    // One more may be durable, though nobody was told.
    assert!((known..=known + 1).contains(&balance.transactions), "{balance:?} {known}");
    assert_eq!(balance.quarantined, 0);
    ledger
}

#[test]
fn what_left_is_counted_and_what_is_pending_stays() {
    let storage = SimStorage::default();
    let promised = run(&storage, 8).ok().unwrap();
    let names = storage.list().unwrap();
    assert!(names.iter().all(|name| !name.ends_with("00001.rj")), "{names:?}");
    let ledger = check(&storage, &promised);
    assert_eq!(ledger.balance().transactions, 48);
    assert!(ledger.base().first > 1 && ledger.base().left.sent > 0 && ledger.base().left.removed > 0);
    let (replay, _) = fold(&storage, Depth::Everything);
    assert_eq!((replay.report.state(), replay.orphans.len()), (State::Clean, 0), "{:?}", replay.report);
    // And what a start finds is what the process knew.
    let keeper = Keeper::start(&storage).unwrap();
    assert_eq!(keeper.ledger.balance(), ledger.balance());
}

#[test]
fn a_power_cut_at_any_call_of_a_history_with_leaving_segments_costs_nothing() {
    let calls = {
        let storage = SimStorage::default();
        run(&storage, 4).ok().unwrap();
        storage.calls()
    };
    for call in 1..=calls {
        let storage = SimStorage::default();
        storage.die_at(call);
        let promised = run(&storage, 4).unwrap_or_else(|promised| *promised);
        for seed in 0..3 {
            let cut = storage.power_cut(seed);
            let ledger = check(&cut, &promised);
            let again = Keeper::start(&cut).unwrap();
            assert_eq!(again.ledger.balance(), ledger.balance(), "call {call} seed {seed}");
            again.writer.close().unwrap();
            check(&cut, &promised);
            let (replay, _) = fold(&cut, Depth::Everything);
            assert_eq!((replay.report.state(), replay.orphans), (State::Clean, vec![]), "call {call} seed {seed}");
        }
    }
}

/// Of format 2, with segments that have left: as it should be; with one that is dead and still there; with rot in the record of
/// a message that was carried, and in one copy of the newest header.
pub(super) fn fixtures() -> [(&'static str, SimStorage); 3] {
    let [left, before] = [3, 1].map(|rounds| {
        let storage = SimStorage::default();
        run(&storage, rounds).ok().unwrap();
        (1..99).for_each(|number| remove_summary(&storage, number).unwrap());
        storage
    });
    let dead = left.fork();
    let first = file_name(1);
    drop(dead.create(&first).unwrap());
    dead.alter(&first, |bytes| *bytes = before.bytes(&first));
    let rot = left.fork();
    let (_, ledger) = fold(&rot, Depth::Records);
    // The oldest that is pending was written again.
    let position = ledger.iter().find(|(_, t)| !t.is_settled()).unwrap().1.position;
    rot.alter(&file_name(position.segment), |bytes| {
        let header = FrameHeader::decode(&bytes[position.offset as usize..]).unwrap();
        assert_eq!(header.kind, crate::Kind::Carried);
        bytes[header.padding_offset() as usize - 3] ^= 4;
    });
    let newest = rot.list().unwrap().into_iter().filter(|name| parse_file_name(name).is_some()).max().unwrap();
    rot.alter(&newest, |bytes| bytes[110] ^= 4);
    [("left", left), ("left-dead", dead), ("left-rot", rot)]
}
