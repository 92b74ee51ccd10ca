//! What was said and done, kept outside the simulated process, and the rules that hold it against what a replay finds.
//! Folds the facts by a model of its own, much simpler than the ledger, and shares no code with it.

use crate::client::{self, Promise};
use crate::{Failure, Rule};
use restante_envelope::{Timestamp, TransactionId};
use restante_journal::{Report, State};
use restante_ledger::{Accepted, Action, Balance, Cause, Fact, Ledger, Outcome, Position, RecipientIndex};
use std::collections::{BTreeMap, BTreeSet};

/// One content that a client sent, from its first byte to its last.
#[derive(Debug)]
struct Transmission {
    content: Vec<u8>,
    /// What the client was told: the name of the message, and whom it is for.
    promise: Option<(TransactionId, Vec<String>)>,
    /// Whom a primary has taken it for.
    delivered: BTreeSet<String>,
}

/// A recipient, as the model sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Waiting,
    Frozen,
    /// By the primary, which is not believed yet.
    Refused,
    Sent,
    Bounced,
    Damaged,
}

/// A message, as the model sees it.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) position: Position,
    pub(crate) recipients: Vec<(String, Standing)>,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct History {
    transmissions: BTreeMap<u32, Transmission>,
    /// What is durable, in the order of the journal.
    pub(crate) facts: BTreeMap<Position, Fact>,
    /// Accepted once, and lost to bytes that were spoiled.
    lost: BTreeMap<Position, Accepted>,
    /// Written by a commit that failed: the next start may find it or not.
    pub(crate) in_flight: Vec<Fact>,
    /// The same, of which a start then said that it is torn and counts no more.
    forgiven: Vec<Fact>,
    /// Where some of those came back.
    returned: BTreeSet<Position>,
    pub(crate) messages: BTreeMap<TransactionId, Message>,
    /// Bytes of segments that the disk spoiled.
    pub(crate) spoiled: BTreeSet<(u64, u64)>,
    /// Messages whose blob the disk spoiled.
    pub(crate) spoiled_blobs: BTreeSet<Position>,
}

fn broken(rule: Rule, what: String) -> Failure {
    Failure { rule, what }
}

impl History {
    /// A client begins to send a content; returns its token.
    pub(crate) fn transmit(&mut self, body: &dyn Fn(u32) -> Vec<u8>) -> u32 {
        let token = u32::try_from(self.transmissions.len()).unwrap_or(u32::MAX);
        let transmission = Transmission { content: body(token), promise: None, delivered: BTreeSet::new() };
        self.transmissions.insert(token, transmission);
        token
    }

    /// A client heard a 250.
    pub(crate) fn promised(&mut self, promise: Promise) -> Result<(), Failure> {
        let Promise { id, token, recipients } = promise;
        if self.transmissions.values().any(|t| t.promise.as_ref().is_some_and(|(known, _)| *known == id)) {
            return Err(broken(Rule::Promise, format!("{id} was told to two clients")));
        }
        let Some(transmission) = self.transmissions.get_mut(&token) else { return Ok(()) };
        transmission.promise = Some((id, recipients));
        self.check_promise(token)
    }

    /// Whether what was promised stands in the durable facts, or where the disk spoiled them.
    fn check_promise(&self, token: u32) -> Result<(), Failure> {
        let Some(Transmission { promise: Some((id, recipients)), .. }) = self.transmissions.get(&token) else {
            return Ok(());
        };
        let same = |message: &Message| message.recipients.iter().map(|(path, _)| path).eq(recipients);
        if !self.messages.get(id).is_some_and(same) {
            return Err(broken(
                Rule::Promise,
                format!("the client heard 250 for {id} to {recipients:?}: it is not there"),
            ));
        }
        Ok(())
    }

    /// A commit returned: this is durable.
    pub(crate) fn durable(&mut self, position: Position, fact: Fact) -> Result<(), Failure> {
        self.fold(position, &fact)?;
        self.facts.insert(position, fact);
        Ok(())
    }

    fn fold(&mut self, position: Position, fact: &Fact) -> Result<(), Failure> {
        match fact {
            Fact::Accepted(accepted) => {
                if let Some((last, _)) = self.messages.last_key_value().filter(|(last, _)| **last >= accepted.id) {
                    return Err(broken(Rule::Facts, format!("{} comes after {last}", accepted.id)));
                }
                let standing = if accepted.hold.is_some() { Standing::Frozen } else { Standing::Waiting };
                self.insert(position, accepted, standing);
            }
            Fact::Attempted(attempted) => {
                for (index, outcome) in &attempted.results {
                    let standing = match outcome {
                        Outcome::Sent(_) => Standing::Sent,
                        Outcome::Held(Cause::Reply(_) | Cause::Content(_)) => Standing::Refused,
                        Outcome::Held(_) => Standing::Frozen,
                        Outcome::Quarantined(_) => Standing::Damaged,
                        Outcome::Deferred { .. } => Standing::Waiting,
                    };
                    self.set(attempted.id, *index, |was| match was {
                        Standing::Frozen if matches!(standing, Standing::Waiting | Standing::Refused) => {
                            Standing::Frozen
                        }
                        Standing::Damaged | Standing::Bounced if standing != Standing::Sent => was,
                        Standing::Sent => Standing::Sent,
                        _ => standing,
                    });
                }
            }
            Fact::Operated(operated) => {
                for index in &operated.recipients {
                    self.set(operated.id, *index, |was| match (was, operated.action) {
                        (Standing::Bounced, Action::Undo) => Standing::Waiting,
                        (Standing::Sent | Standing::Damaged | Standing::Bounced, _) | (_, Action::Undo) => was,
                        (Standing::Refused, Action::Settle) => Standing::Bounced,
                        (_, Action::Settle) => was,
                        (_, Action::Hold) => Standing::Frozen,
                        _ => Standing::Waiting,
                    });
                }
            }
            Fact::Served(_) | Fact::Watched(_) | Fact::Carried(_) | Fact::Replayed(_) => {}
        }
        Ok(())
    }

    fn insert(&mut self, position: Position, accepted: &Accepted, standing: Standing) {
        let paths = accepted.envelope.recipients.iter().map(|r| (r.forward_path.as_str().to_owned(), standing));
        self.messages.insert(accepted.id, Message { position, recipients: paths.collect() });
    }

    fn set(&mut self, id: TransactionId, index: RecipientIndex, change: impl Fn(Standing) -> Standing) {
        let message = self.messages.get_mut(&id);
        if let Some((_, standing)) = message.and_then(|m| m.recipients.get_mut(usize::from(index))) {
            *standing = change(*standing);
        }
    }

    /// Whether the disk spoiled the record at `position`, or what reaches from there to the next.
    fn is_spoiled(&self, position: Position) -> bool {
        let next = self.facts.range(position..).map(|(next, _)| *next).find(|next| *next != position);
        let end = next.filter(|next| next.segment == position.segment).map_or(u64::MAX, |next| next.offset);
        self.spoiled.range((position.segment, position.offset)..(position.segment, end)).next().is_some()
    }

    /// Its record, or its blob: that it cannot be read may be recorded, and that record may rot in its turn.
    fn is_message_spoiled(&self, position: Position) -> bool {
        self.is_spoiled(position) || self.spoiled_blobs.contains(&position)
    }

    /// What a start said of torn bytes stands in the first frame of the next segment. If that one rots, they are taken for
    /// bytes that count: a message that nobody was promised may come back, with content that fails its checksum.
    fn is_succession_spoiled(&self) -> bool {
        self.spoiled.iter().any(|(_, offset)| (4096..4096 + 512).contains(offset))
    }

    /// A start succeeded: what it did not find, or found torn, is gone for good.
    pub(crate) fn started(&mut self) {
        self.forgiven.append(&mut self.in_flight);
    }

    /// After a crash or a stop: holds what a replay found against what is known, and goes on from there.
    pub(crate) fn check_replay(
        &mut self,
        found: &BTreeMap<Position, Fact>,
        ledger: &Ledger,
        report: &Report,
    ) -> Result<(), Failure> {
        for (position, fact) in self.check_found(found, report)? {
            let was_in_flight = self.in_flight.iter().any(|written| is_same(written, &fact));
            match fact {
                Fact::Accepted(accepted) if !found.contains_key(&position) => {
                    self.lost.insert(position, accepted);
                }
                _ if found.contains_key(&position) && !was_in_flight => {
                    self.returned.insert(position);
                }
                _ => {}
            }
        }
        self.adopt(found)?;
        self.check_balance(ledger)
    }

    /// Holds what was found against what is known. Returns in what they differ, for good reason: what is not found stood
    /// where the disk spoiled something, and what is found and not known was in flight.
    pub(crate) fn check_found(
        &self,
        found: &BTreeMap<Position, Fact>,
        report: &Report,
    ) -> Result<Vec<(Position, Fact)>, Failure> {
        let is_damaged = report.state() == State::Damaged;
        let mut differ = Vec::new();
        for (position, fact) in self.facts.iter().filter(|(at, fact)| found.get(at) != Some(fact)) {
            if !is_damaged || !(self.is_message_spoiled(*position) || self.returned.contains(position)) {
                let rule = match fact {
                    Fact::Accepted(accepted) if self.is_promised(accepted.id) => Rule::Promise,
                    Fact::Attempted(_) => Rule::Settlement,
                    _ => Rule::Facts,
                };
                return Err(broken(rule, format!("it was durable and is not found at {position}: {fact:?}")));
            }
            differ.push((*position, fact.clone()));
        }
        for (position, fact) in found.iter().filter(|(at, _)| !self.facts.contains_key(at)) {
            let mut known = self.in_flight.iter().chain(self.forgiven.iter().filter(|_| self.is_succession_spoiled()));
            if !known.any(|written| is_same(written, fact)) {
                return Err(broken(Rule::Facts, format!("nobody wrote what is found at {position}: {fact:?}")));
            }
            differ.push((*position, fact.clone()));
        }
        if self.is_whole() && is_damaged {
            return Err(broken(Rule::Damage, format!("nothing was spoiled, and yet: {:?}", report.damage)));
        }
        Ok(differ)
    }

    /// Whether the disk spoiled nothing.
    pub(crate) fn is_whole(&self) -> bool {
        self.spoiled.is_empty() && self.spoiled_blobs.is_empty()
    }

    /// A live ledger and a replayed one say the same of each message that no damage concerns.
    pub(crate) fn check_beside_damage(
        &self,
        live: &Ledger,
        replayed: &Ledger,
        differ: &[(Position, Fact)],
    ) -> Result<(), Failure> {
        let lost = self.lost.values().map(|accepted| accepted.id);
        let damaged: BTreeSet<_> = lost.chain(differ.iter().filter_map(|(_, fact)| fact.transaction())).collect();
        let is_back = |id: &TransactionId| self.is_succession_spoiled() && !self.messages.contains_key(id);
        let ids = live.iter().chain(replayed.iter()).map(|(id, _)| id);
        for id in ids.filter(|id| !damaged.contains(id) && !is_back(id)) {
            let (live, replayed) = (told(live, id), told(replayed, id));
            if live != replayed {
                let what = format!("{id}, which is not damaged\nlive: {live:?}\nreplayed: {replayed:?}");
                return Err(broken(Rule::Ledger, what));
            }
        }
        Ok(())
    }

    /// Goes on with what was found.
    fn adopt(&mut self, found: &BTreeMap<Position, Fact>) -> Result<(), Failure> {
        self.facts = found.clone();
        self.messages.clear();
        for (position, fact) in found {
            self.fold(*position, fact)?;
        }
        for (position, accepted) in self.lost.clone() {
            self.insert(position, &accepted, Standing::Damaged);
        }
        for token in self.transmissions.keys() {
            self.check_promise(*token)?;
        }
        self.check_contents()
    }

    /// Every message that was accepted is what a client sent, and each transmission became one message at most.
    fn check_contents(&self) -> Result<(), Failure> {
        let lengths: BTreeSet<u64> = self.transmissions.values().map(|t| t.content.len() as u64).collect();
        let accepted = self.facts.values().filter_map(|fact| match fact {
            Fact::Accepted(accepted) => Some(accepted),
            _ => None,
        });
        let mut count = 0;
        for accepted in accepted {
            count += 1;
            if !lengths.contains(&accepted.content_len) {
                return Err(broken(Rule::Content, format!("{} has a length that nobody sent", accepted.id)));
            }
        }
        if count > self.transmissions.len() {
            return Err(broken(Rule::Content, "more messages than were sent".into()));
        }
        Ok(())
    }

    fn is_promised(&self, id: TransactionId) -> bool {
        self.transmissions.values().any(|t| t.promise.as_ref().is_some_and(|(known, _)| *known == id))
    }

    /// The account of the ledger against the model's.
    pub(crate) fn check_balance(&self, ledger: &Ledger) -> Result<(), Failure> {
        let balance = ledger.balance();
        let mut model = Balance { transactions: self.messages.len() as u64, ..Balance::default() };
        for (_, standing) in self.messages.values().flat_map(|message| &message.recipients) {
            model.accepted += 1;
            *(match standing {
                Standing::Waiting | Standing::Frozen | Standing::Refused => &mut model.pending,
                Standing::Bounced => &mut model.bounced,
                Standing::Sent => &mut model.sent,
                Standing::Damaged => &mut model.quarantined,
            }) += 1;
        }
        // A message that nothing but a count remembers cannot be told to have been sent before; and a torn one may be back.
        let back = match self.is_succession_spoiled() {
            true => self.forgiven.iter().filter(|fact| matches!(fact, Fact::Accepted(_))).count() as u64,
            false => 0,
        };
        let same = if self.lost.is_empty() && back == 0 {
            balance == model
        } else {
            let more = balance.transactions.checked_sub(model.transactions);
            let same = balance.accepted == model.accepted || more.is_some_and(|more| more > 0);
            more.is_some_and(|more| more <= back) && same && balance.is_even()
        };
        if same {
            Ok(())
        } else {
            Err(broken(Rule::Balance, format!("the ledger says {balance:?}, the model {model:?}")))
        }
    }

    /// What was read of a message is what its client sent. Returns which transmission it is.
    pub(crate) fn check_content(&self, id: TransactionId, content: &[u8]) -> Result<u32, Failure> {
        let token = client::token(content);
        let sent = token.and_then(|token| self.transmissions.get(&token));
        let is_other = |t: &Transmission| t.promise.as_ref().is_some_and(|(promised, _)| *promised != id);
        match (token, sent) {
            (Some(token), Some(sent)) if sent.content == content && !is_other(sent) => Ok(token),
            _ => Err(broken(Rule::Content, format!("{id} is not what was sent: {}", String::from_utf8_lossy(content)))),
        }
    }

    /// An attempt begins: nobody settled or frozen may be among its recipients.
    pub(crate) fn check_attempt(&self, id: TransactionId, recipients: &[RecipientIndex]) -> Result<(), Failure> {
        let message = self.messages.get(&id);
        for index in recipients {
            match message.and_then(|m| m.recipients.get(usize::from(*index))) {
                Some((_, Standing::Waiting | Standing::Refused)) => {}
                other => {
                    return Err(broken(Rule::Attempt, format!("{id} recipient {index} is tried, and is {other:?}")));
                }
            }
        }
        Ok(())
    }

    /// A message that could not be read: only what the disk spoiled may be.
    pub(crate) fn check_unreadable(&self, id: TransactionId, position: Position, why: &str) -> Result<(), Failure> {
        if self.is_message_spoiled(position) || self.returned.contains(&position) {
            return Ok(());
        }
        Err(broken(Rule::Content, format!("{id} cannot be read at {position}, and nothing was spoiled there: {why}")))
    }

    /// A primary took it.
    pub(crate) fn delivered(&mut self, token: u32, id: TransactionId, index: RecipientIndex) {
        let path =
            self.messages.get(&id).and_then(|m| m.recipients.get(usize::from(index))).map(|(path, _)| path.clone());
        if let Some(transmission) = self.transmissions.get_mut(&token) {
            transmission.delivered.extend(path);
        }
    }

    /// At the very end: whatever was promised was handed over, or the disk spoiled it.
    pub(crate) fn check_delivery(&self) -> Result<(), Failure> {
        for transmission in self.transmissions.values() {
            let Some((id, recipients)) = &transmission.promise else { continue };
            let Some(message) = self.messages.get(id) else { continue };
            let is_damaged = message.recipients.iter().any(|(_, standing)| *standing == Standing::Damaged);
            let is_spoiled = is_damaged || self.is_message_spoiled(message.position);
            if !is_spoiled && recipients.iter().any(|path| !transmission.delivered.contains(path)) {
                let delivered = &transmission.delivered;
                return Err(broken(
                    Rule::Delivery,
                    format!("{id}: promised to {recipients:?}, taken for {delivered:?}"),
                ));
            }
        }
        Ok(())
    }

    /// Whether nothing is left to be done for anybody. What the disk spoiled need not get anywhere.
    pub(crate) fn is_settled(&self) -> bool {
        let is_open = |(_, standing): &(String, Standing)| {
            // What was bounced is undone in the calm: a primary may have refused by a whim of the seed's.
            matches!(standing, Standing::Waiting | Standing::Frozen | Standing::Refused | Standing::Bounced)
        };
        let open = self.messages.values().filter(|message| message.recipients.iter().any(is_open));
        open.into_iter().all(|message| self.is_message_spoiled(message.position))
    }

    /// Messages that clients were promised.
    pub(crate) fn promises(&self) -> u64 {
        self.transmissions.values().filter(|t| t.promise.is_some()).count() as u64
    }
}

/// The live ledger and the one of a replay say the same. `served` is told to no live one, and counts of what had no effect
/// are no state.
pub(crate) fn check_same(live: &Ledger, replayed: &Ledger) -> Result<(), Failure> {
    let route = |ledger: &Ledger, index| ledger.route(index).cloned();
    let same = live.iter().eq(replayed.iter())
        && live.balance() == replayed.balance()
        && live.largest_id() == replayed.largest_id()
        && (0..8).all(|index| route(live, index) == route(replayed, index));
    let told = |ledger: &Ledger| format!("{:?} {:?}", ledger.balance(), ledger.iter().collect::<Vec<_>>());
    if same {
        return Ok(());
    }
    Err(broken(Rule::Ledger, format!("live: {}\nreplayed: {}", told(live), told(replayed))))
}

/// What a ledger says of a message. The number of a route comes from the first record that names it, which may be lost.
fn told(ledger: &Ledger, id: TransactionId) -> Option<impl PartialEq + std::fmt::Debug> {
    let transaction = ledger.get(id)?;
    let recipients = transaction.recipients.iter().map(|r| (ledger.route(r.route).cloned(), r.attempts, r.state));
    Some((transaction.position, transaction.accepted_at, transaction.content_len, recipients.collect::<Vec<_>>()))
}

/// Whether a fact found is one that was written, whose place and identifier the writer gave it.
fn is_same(written: &Fact, found: &Fact) -> bool {
    match (written, found) {
        (Fact::Accepted(written), Fact::Accepted(found)) => {
            let id = found.id;
            Accepted { id, ..written.clone() } == *found
        }
        _ => written == found,
    }
}

/// Milliseconds of the simulated world's first instant.
pub(crate) const BEGIN: u64 = 1_795_359_200_118;

/// The instant `ms` after the first.
pub(crate) fn instant(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(BEGIN.saturating_add_signed(ms))
}
