//! Two journals made one: what another journal knows and this one does not, message by message. The same identifier is one
//! message, and the settled state wins. Decides; whoever asked writes.
//!
//! What is new is written as *carried*: one record with the content and how each recipient stands, so that no crash leaves a
//! message without its settlements, which would send it again. *Accepted* with its attempts behind it was the other way; it
//! would be counted in the header's totals, but it is more than one record.

use crate::clock;
use restante_envelope::{EnhancedStatus, Reply, TransactionId};
use restante_journal::{
    BlobError, BlobName, BlobWriter, Cargo, Depth, DirStorage, Prepared, ReadError, Reader, Replay, ReplayError, Sink,
    State, replay,
};
use restante_ledger::{
    Accepted, Action, Attempted, Base, Carried, Deliveries, Fact, Ledger, Operated, Outcome, Position, RecipientIndex,
    RecipientState, Standing, Timings, Transaction,
};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::{fmt, io};

/// Who settles what another journal says is settled.
const ACTOR: &str = "recover --from";

/// All messages of a journal, those too that were sent to all their recipients.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    pub(crate) ledger: Ledger,
    sent: BTreeMap<TransactionId, Transaction>,
    /// The last word on recipients that are not sent.
    whys: HashMap<TransactionId, BTreeMap<RecipientIndex, String>>,
    /// For replays here: what was sent there was sent then.
    deliveries: Deliveries,
}

impl Messages {
    fn iter(&self) -> impl Iterator<Item = (TransactionId, &Transaction)> {
        self.ledger.iter().chain(self.sent.iter().map(|(id, transaction)| (*id, transaction)))
    }

    fn get(&self, id: TransactionId) -> Option<&Transaction> {
        self.ledger.get(id).or_else(|| self.sent.get(&id))
    }

    fn why(&self, id: TransactionId, index: RecipientIndex) -> String {
        self.whys.get(&id).and_then(|whys| whys.get(&index)).cloned().unwrap_or_default()
    }

    fn note(&mut self, id: TransactionId, index: RecipientIndex, why: String) {
        self.whys.entry(id).or_default().insert(index, why);
    }
}

impl Sink for Messages {
    fn fact(&mut self, position: Position, fact: &Fact) {
        self.deliveries.apply(fact);
        match fact {
            Fact::Attempted(attempted) => {
                for (index, outcome) in &attempted.results {
                    if let Outcome::Deferred { cause, .. } | Outcome::Held(cause) | Outcome::Quarantined(cause) =
                        outcome
                    {
                        self.note(attempted.id, *index, cause.to_string());
                    }
                }
            }
            Fact::Operated(operated) if operated.action != Action::Release => {
                operated.recipients.iter().for_each(|index| self.note(operated.id, *index, operated.reason.clone()));
            }
            Fact::Carried(carried) => {
                for (index, standing) in (0..).zip(&carried.recipients).filter(|(_, told)| !told.why.is_empty()) {
                    self.note(carried.accepted.id, index, standing.why.clone());
                }
            }
            _ => {}
        }
        if let Some(transaction) = self.ledger.apply(position, fact)
            && let Fact::Attempted(attempted) = fact
        {
            self.whys.remove(&attempted.id);
            self.sent.insert(attempted.id, transaction);
        }
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        self.ledger.damaged(position, accepted);
    }
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        self.ledger.lost(position, id, recipients);
    }
    fn damaged_carried(&mut self, position: Position, carried: &Carried) {
        self.deliveries.apply_carried(carried);
        self.ledger.damaged_carried(position, carried);
    }
    fn unnamed(&mut self, segment: u64, transactions: u64, recipients: u64) {
        self.ledger.unnamed(segment, transactions, recipients);
    }
    fn begins_after(&mut self, base: &Base) {
        self.ledger.begins_after(base);
    }
}

/// Another journal, read to its last byte.
pub(crate) struct Source {
    pub(crate) dir: PathBuf,
    pub(crate) storage: DirStorage,
    pub(crate) messages: Messages,
    pub(crate) replay: Replay,
}

/// Why another journal was not read.
#[derive(Debug)]
pub(crate) enum Unread {
    Locked(PathBuf),
    Same(PathBuf),
    Open(PathBuf, io::Error),
    Read(PathBuf, ReplayError),
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked(dir) => write!(f, "a daemon runs on {}: stop it, or merge a backup of it", dir.display()),
            Self::Same(dir) => write!(f, "{} is the journal itself", dir.display()),
            Self::Open(dir, error) => write!(f, "cannot open {}: {error}", dir.display()),
            Self::Read(dir, error) => write!(f, "in {}: {error}", dir.display()),
        }
    }
}

impl std::error::Error for Unread {}

impl Source {
    /// Opens the journal in `dir`, which is not that in `into`, and which nobody writes.
    pub(crate) fn open(dir: &Path, into: &Path) -> Result<DirStorage, Unread> {
        let unopened = |error| Unread::Open(dir.to_owned(), error);
        let storage = DirStorage::open(dir).map_err(unopened)?;
        if dir.canonicalize().map_err(unopened)? == into.canonicalize().map_err(unopened)? {
            return Err(Unread::Same(dir.to_owned()));
        }
        match storage.is_locked().map_err(unopened)? {
            true => Err(Unread::Locked(dir.to_owned())),
            false => Ok(storage),
        }
    }

    /// Reads every byte of the journal in `dir`.
    pub(crate) fn read(dir: &Path, into: &Path) -> Result<Self, Unread> {
        let storage = Self::open(dir, into)?;
        let mut messages = Messages::default();
        let replay = replay(&storage, Depth::Everything, &mut messages);
        let replay = replay.map_err(|error| Unread::Read(dir.to_owned(), error))?;
        Ok(Self { dir: dir.to_owned(), storage, messages, replay })
    }

    pub(crate) fn state(&self) -> State {
        self.replay.report.state()
    }
}

/// What this journal knows, of what its ledger does not tell.
pub(crate) struct Past {
    /// Messages that were sent to all their recipients.
    sent: HashSet<TransactionId>,
    /// The first segment that counts here. What the other journal has in front of it has left here, settled: if the two
    /// have a past in common. If that cannot be seen, it is taken over: duplicates are possible, loss is not.
    first: u64,
}

impl Past {
    pub(crate) fn new(messages: Messages, base: &Base) -> (Ledger, Self) {
        let Messages { ledger, sent, .. } = messages;
        (ledger, Self { sent: sent.into_keys().collect(), first: base.first })
    }

    /// From now on.
    pub(crate) fn is_sent(&mut self, id: TransactionId) {
        self.sent.insert(id);
    }

    pub(crate) fn known<'k>(
        &self,
        ours: Option<&'k Transaction>,
        (id, position): (TransactionId, Position),
        is_common: bool,
    ) -> Known<'k> {
        match ours {
            Some(ours) => Known::Here(ours),
            None if self.sent.contains(&id) || (is_common && position.segment < self.first) => Known::Sent,
            None => Known::Nothing,
        }
    }
}

/// What is known here of a message of another journal.
pub(crate) enum Known<'a> {
    Nothing,
    /// It was settled, and nothing is to be done.
    Sent,
    Here(&'a Transaction),
}

/// What is to be done here.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// To be written here, content and all: it is not known, or only damaged.
    pub(crate) add: Vec<(TransactionId, Vec<Standing>)>,
    /// Of these, those that are known and damaged.
    pub(crate) mended: u64,
    /// Settled there, and not here.
    pub(crate) settle: Vec<Fact>,
    /// Damaged there, and not known here, or damaged too.
    pub(crate) quarantined: Vec<TransactionId>,
    /// With nothing to be done.
    pub(crate) known: u64,
}

impl Source {
    /// These of its messages, each held against what is known here.
    pub(crate) fn plan<'k>(&self, ids: &[TransactionId], known: impl Fn(TransactionId, Position) -> Known<'k>) -> Plan {
        let mut plan = Plan::default();
        for (id, theirs) in ids.iter().filter_map(|id| Some((*id, self.messages.get(*id)?))) {
            self.compare(id, theirs, &known(id, theirs.position), &mut plan);
        }
        plan
    }

    /// In order of acceptance.
    pub(crate) fn ids(&self) -> Vec<TransactionId> {
        let mut ids: Vec<TransactionId> = self.messages.iter().map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    fn compare(&self, id: TransactionId, theirs: &Transaction, known: &Known<'_>, plan: &mut Plan) {
        let is_damaged = theirs.recipients.iter().any(|entry| entry.state == RecipientState::Quarantined);
        let ours = match known {
            Known::Nothing if is_damaged => return plan.quarantined.push(id),
            Known::Nothing => return plan.add.push((id, self.standings(id, theirs, None))),
            Known::Sent => None,
            Known::Here(ours) => Some(ours).filter(|ours| ours.recipients.len() == theirs.recipients.len()),
        };
        let Some(ours) = ours else {
            plan.known += 1;
            return;
        };
        let before = (plan.settle.len(), plan.add.len());
        let lost = |entry: &restante_ledger::RecipientEntry| entry.state == RecipientState::Quarantined;
        let mends = ours
            .recipients
            .iter()
            .zip(&theirs.recipients)
            .any(|(ours, theirs)| lost(ours) && !lost(theirs) && theirs.state != RecipientState::Sent);
        if mends && !is_damaged {
            plan.add.push((id, self.standings(id, theirs, Some(ours))));
            plan.mended += 1;
        } else if ours.recipients.iter().any(lost) && is_damaged {
            plan.quarantined.push(id);
        }
        self.settle(id, theirs, ours, plan);
        plan.known += u64::from(before == (plan.settle.len(), plan.add.len()));
    }

    /// How the recipients stand: as here, but for those that are damaged here.
    fn standings(&self, id: TransactionId, theirs: &Transaction, ours: Option<&Transaction>) -> Vec<Standing> {
        let standing = |(index, theirs): (RecipientIndex, &restante_ledger::RecipientEntry)| {
            let here = ours.and_then(|ours| ours.recipients.get(usize::from(index)));
            let entry = here.filter(|entry| entry.state != RecipientState::Quarantined).unwrap_or(theirs);
            let sent = Some(entry).filter(|entry| entry.state == RecipientState::Sent);
            Standing {
                attempts: entry.attempts,
                state: entry.state,
                why: self.messages.why(id, index),
                past: sent.map(|_| self.messages.deliveries.past(id, index)).unwrap_or_default(),
            }
        };
        (0..).zip(&theirs.recipients).map(standing).collect()
    }

    /// What they settled and we did not.
    fn settle(&self, id: TransactionId, theirs: &Transaction, ours: &Transaction, plan: &mut Plan) {
        let at = clock::now();
        let mut sent = Vec::new();
        let (mut bounced, mut expired, mut removed) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (ours, theirs)) in (0..).zip(ours.recipients.iter().zip(&theirs.recipients)) {
            match theirs.state {
                RecipientState::Sent if ours.state != RecipientState::Sent => sent.push(index),
                RecipientState::Bounced if !ours.state.is_settled() => bounced.push(index),
                RecipientState::Expired if !ours.state.is_settled() => expired.push(index),
                RecipientState::Removed if !ours.state.is_settled() => removed.push(index),
                _ => {}
            }
        }
        let said = format!("it was sent before, as the journal in {} says", self.dir.display());
        let reply = |index| (index, Outcome::Sent(Reply::new(250, Some(EnhancedStatus::new(2, 0, 0)), &said)));
        if !sent.is_empty() {
            let results = sent.into_iter().map(reply).collect();
            let attempted = Attempted { id, at, next_hop: None, timings: Timings::default(), results };
            plan.settle.push(Fact::Attempted(attempted));
        }
        let given_up = [(Action::Bounce, bounced), (Action::Expire, expired), (Action::Remove, removed)];
        for (action, recipients) in given_up {
            if let Some(first) = recipients.first() {
                let why = self.messages.why(id, *first);
                let reason = format!("so says the journal in {}: {why}", self.dir.display());
                let actor = ACTOR.to_owned();
                plan.settle.push(Fact::Operated(Operated { id, at, action, recipients, actor, reason }));
            }
        }
    }
}

/// Why a message was not taken over.
#[derive(Debug)]
pub(crate) enum Untaken {
    /// It is damaged, after all: that costs it alone.
    Read(ReadError),
    /// There is no room here, or no right.
    Write(BlobError),
}

impl From<ReadError> for Untaken {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<BlobError> for Untaken {
    fn from(error: BlobError) -> Self {
        Self::Write(error)
    }
}

impl Source {
    pub(crate) fn reader(&self) -> Reader<DirStorage> {
        Reader::new(self.storage.clone())
    }

    /// Reads and checks a message, and makes its record for the journal in `into`. A large one is copied there first.
    pub(crate) fn take(
        &self,
        reader: &mut Reader<DirStorage>,
        into: &DirStorage,
        (id, standings): (TransactionId, Vec<Standing>),
    ) -> Result<(Prepared, Fact), Untaken> {
        let unknown = Position { segment: 0, offset: 0 };
        let position = self.messages.get(id).map_or(unknown, |transaction| transaction.position);
        let stored = reader.message(position)?;
        let Fact::Accepted(accepted) = stored.fact else {
            return Err(ReadError::Damaged { position, what: "another record stands there" }.into());
        };
        if accepted.id != id || accepted.envelope.recipients.len() != standings.len() {
            return Err(ReadError::Damaged { position, what: "another message stands there" }.into());
        }
        let mut content = stored.content;
        let cargo = if content.is_in_memory() {
            Cargo::in_record(accepted, content.read_all()?)
        } else {
            // Under a name of its own: what has the same name here may be the damaged one.
            let mut blob =
                BlobWriter::create(into, BlobName::from_bits(clock::entropy128())).map_err(BlobError::File)?;
            while let Some(piece) = content.next_chunk()? {
                blob.write(&piece).map_err(BlobError::File)?;
            }
            Cargo::in_blob(accepted, &blob.finish()?)
        };
        let (record, carried) = Prepared::carried(cargo, standings);
        Ok((record, Fact::Carried(carried)))
    }
}
