//! The daemon's process in small: what starts it and the group commit, as `serve/mod.rs` and `serve/journal.rs` have them,
//! without threads. Everything in it is gone after a crash.

use crate::Broken;
use crate::intake::{Conversation, remove_blob_of};
use crate::seam::Seam;
use restante_envelope::{Timestamp, TransactionId};
use restante_journal::{
    CommitError, Damage, Depth, Options, Prepared, Reader, Receipt, Replay, Report, Seed, Sink, Writer, remove_parts,
    replay, set_aside, set_orphans_aside,
};
use restante_ledger::{Accepted, Base, Carried, Fact, Ledger, Position, RouteRecord, Served};
use restante_relay::Relay;
use std::collections::{BTreeMap, VecDeque};

/// Records in line; the daemon takes 4,096. Few, so that it is met.
pub(crate) const LINE_RECORDS_MAX: usize = 4;

/// Who waits for a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// A client, by its number and its connection.
    Client(usize, u32),
    /// An attempt's outcome: nobody, but it must not be dropped.
    Settlement,
    Nobody,
}

/// A record on its way to stable storage.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) record: Prepared,
    pub(crate) fact: Fact,
    pub(crate) waits: Waits,
}

/// What runs between a start and a crash.
pub(crate) struct Process {
    pub(crate) writer: Writer<Seam>,
    pub(crate) reader: Reader<Seam>,
    pub(crate) relay: Relay,
    pub(crate) line: VecDeque<Entry>,
    pub(crate) conversations: BTreeMap<usize, Conversation>,
    /// Outcomes that a full disk or a full line refused; offered again.
    pub(crate) refused: Vec<Entry>,
    /// Whether somebody is on the way to the line already.
    pub(crate) commit_is_due: bool,
}

/// What a replay tells, kept for the rules beside the fold of the daemon.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) ledger: Ledger,
    pub(crate) facts: BTreeMap<Position, Fact>,
    /// Nothing from here on is told: the naive recovery.
    stops_at: Option<(u64, u64)>,
}

impl Found {
    fn hears(&self, position: Position) -> bool {
        self.stops_at.is_none_or(|stop| (position.segment, position.offset) < stop)
    }
}

impl Sink for Found {
    fn fact(&mut self, position: Position, fact: &Fact) {
        if self.hears(position) {
            self.ledger.fact(position, fact);
            self.facts.insert(position, fact.clone());
        }
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        self.ledger.damaged(position, accepted);
    }
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        self.ledger.lost(position, id, recipients);
    }
    fn unnamed(&mut self, segment: u64, transactions: u64, recipients: u64) {
        self.ledger.unnamed(segment, transactions, recipients);
    }
    fn damaged_carried(&mut self, position: Position, carried: &Carried) {
        self.ledger.damaged_carried(position, carried);
    }
    fn begins_after(&mut self, base: &Base) {
        self.ledger.begins_after(base);
    }
}

/// Reads the journal as a start does.
pub(crate) fn read(storage: &Seam, depth: Depth) -> Result<(Found, Replay), String> {
    let mut found = Found::default();
    if storage.broken == Broken::StopsAtFirstBadFrame {
        let report = replay(storage, depth, &mut Ledger::new()).map_err(|error| error.to_string())?.report;
        found.stops_at = first_bad(&report);
    }
    let replay = replay(storage, depth, &mut found).map_err(|error| error.to_string())?;
    Ok((found, replay))
}

fn first_bad(report: &Report) -> Option<(u64, u64)> {
    let place = |damage: &Damage| (damage.segment, damage.offset);
    report.damage.iter().chain(&report.torn).filter(|damage| damage.offset > 0).map(place).min()
}

/// What a start did, up to where it can be served.
pub(crate) struct Started {
    pub(crate) writer: Writer<Seam>,
    pub(crate) served: (Fact, Option<Receipt>),
}

/// Goes on where `replay` ended.
pub(crate) fn open_writer(
    storage: &Seam,
    options: Options,
    replay: &Replay,
    ledger: &Ledger,
    seed: Seed,
    now: Timestamp,
) -> Result<Writer<Seam>, CommitError> {
    Writer::open(storage.clone(), options, replay, ledger.largest_id(), seed, now)
}

/// Deals with what is torn, and opens a new segment.
pub(crate) fn start(
    storage: &Seam,
    replay: &Replay,
    ledger: &Ledger,
    options: Options,
    seed: Seed,
    now: Timestamp,
) -> Result<Started, String> {
    set_aside(storage, &replay.report).map_err(|error| error.to_string())?;
    // What is in blob/ and belongs to no message costs room and nothing else.
    let _no_error_keeps_us_from_starting = set_orphans_aside(storage, replay).map(drop);
    let _nor_here = remove_parts(storage, replay).map(drop);
    let mut writer = open_writer(storage, options, replay, ledger, seed, now).map_err(|error| error.to_string())?;
    let fact = served(now);
    let recorded = writer.stage(&Prepared::fact(&fact, Vec::new()), now).and_then(|()| writer.commit(now));
    let receipt = match recorded {
        Ok(durable) => durable.receipts().last().copied(),
        Err(CommitError::Full(_)) => None,
        Err(error) => return Err(error.to_string()),
    };
    Ok(Started { writer, served: (fact, receipt) })
}

pub(crate) fn served(now: Timestamp) -> Fact {
    let route = |name: &str| RouteRecord {
        name: name.into(),
        domains: vec![format!("{name}.test")],
        primary: vec![format!("mail.{name}.test:25")],
    };
    Fact::Served(Served { at: now, hostname: "mx2.test".into(), routes: ["a", "b"].map(route).into() })
}

/// What became of one batch.
#[derive(Default)]
pub(crate) struct Batch {
    /// Durable, with its place.
    pub(crate) recorded: Vec<(Receipt, Entry)>,
    /// Met a full disk.
    pub(crate) full: Vec<Entry>,
    /// The journal failed under these: the next start may find them or not.
    pub(crate) failed: Vec<Entry>,
    /// It will never write again.
    pub(crate) is_over: bool,
}

impl Process {
    /// Everything in line, as far as one batch takes it.
    pub(crate) fn commit(&mut self, now: Timestamp) -> Batch {
        let (mut batch, mut outcome) = (Vec::new(), Ok(()));
        while outcome.is_ok() && self.writer.has_room() {
            let Some(entry) = self.line.pop_front() else { break };
            outcome = self.writer.stage(&entry.record, now);
            batch.push(entry);
        }
        let mut told = Batch::default();
        match outcome.and_then(|()| self.writer.commit(now)) {
            Ok(durable) => told.recorded = durable.receipts().iter().copied().zip(batch).collect(),
            Err(CommitError::Full(_)) => self.without_new_mail(batch, now, &mut told),
            Err(_) => told.failed = batch,
        }
        told.is_over = !told.failed.is_empty() || self.writer.failure().is_some();
        told
    }

    /// On a full disk: new mail is refused, and what settles pending mail is tried again by itself.
    fn without_new_mail(&mut self, batch: Vec<Entry>, now: Timestamp, told: &mut Batch) {
        let (mail, rest): (Vec<Entry>, Vec<Entry>) =
            batch.into_iter().partition(|entry| matches!(entry.fact, Fact::Accepted(_)));
        let mixed = !mail.is_empty();
        told.full = mail;
        if rest.is_empty() || !mixed {
            told.full.extend(rest);
            return;
        }
        let staged = rest.iter().try_for_each(|entry| self.writer.stage(&entry.record, now));
        match staged.and_then(|()| self.writer.commit(now)) {
            Ok(durable) => told.recorded = durable.receipts().iter().copied().zip(rest).collect(),
            Err(CommitError::Full(_)) => told.full.extend(rest),
            Err(_) => told.failed = rest,
        }
    }

    /// Lets a record into the line; gives it back if there are `most` in it.
    pub(crate) fn offer(&mut self, entry: Entry, most: usize) -> Option<Entry> {
        if self.line.len() >= most {
            return Some(entry);
        }
        self.line.push_back(entry);
        None
    }
}

/// A message that was refused for want of room, of the disk or the line.
pub(crate) fn forget(entry: &Entry, storage: &Seam) {
    remove_blob_of(&entry.record, storage);
}
