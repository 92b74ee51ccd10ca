//! What was delivered when, and what this replay has done of it already, as the journal tells. Reads; decides by what was asked
//! for, and by nothing else.

use super::args::{Range, Replay};
use crate::cli::queue::Entry;
use crate::cli::select::Selector;
use crate::replay::Item;
use crate::serve::index;
use restante_envelope::{ReplyClass, RouteName, Timestamp, TransactionId};
use restante_index::{RecipientRow, Row, Summary};
use restante_journal::{DirStorage, Reader, Sink};
use restante_ledger::{
    Accepted, Base, Carried, Fact, Ledger, Outcome, Position, RecipientIndex, RecipientState, Served,
};
use std::collections::{BTreeSet, HashMap};

/// A message of the journal.
struct Told {
    position: Position,
    accepted_at: Timestamp,
    bytes: u64,
    /// Its bytes are as they were written, as far as a start looks.
    is_whole: bool,
    /// Of each recipient, into the names.
    routes: Box<[u16]>,
    /// When each was delivered that was.
    sent: Vec<(RecipientIndex, Timestamp)>,
}

/// Everything that was delivered.
#[derive(Default)]
pub(super) struct Past {
    job: u64,
    range: Range,
    retries_refused: bool,
    messages: HashMap<TransactionId, Told>,
    routes: Vec<RouteName>,
    /// What this replay has settled.
    done: BTreeSet<(TransactionId, RecipientIndex)>,
    /// Those of them that the primary refused for good, the last time that they were offered.
    refused: BTreeSet<(TransactionId, RecipientIndex)>,
    /// When they were delivered of whom nothing else is there; or not yet, if their message was written again.
    gone: HashMap<(TransactionId, RecipientIndex), Timestamp>,
    /// The first time that a record of the journal tells, if segments left before it.
    begins: Option<Timestamp>,
    has_left: bool,
    pub(super) served: Option<Served>,
    /// Where the journal ended.
    pub(super) end: Option<Position>,
}

/// One message on one of its routes, to be replayed.
pub(super) struct Planned {
    pub(super) item: Item,
    pub(super) delivered_at: Timestamp,
    pub(super) bytes: u64,
}

/// What was asked for.
#[derive(Default)]
pub(super) struct Choice {
    /// By when they were delivered.
    pub(super) planned: Vec<Planned>,
    /// The route of each item's primary.
    pub(super) routes: Vec<RouteName>,
    /// Of all, with what is done already.
    pub(super) messages: u64,
    pub(super) recipients: u64,
    pub(super) bytes: u64,
    /// Recipients that are done already.
    pub(super) resumed: u64,
    /// Of these, those that the primary refused for good.
    pub(super) refused_before: u64,
    /// Recipients of messages that are damaged.
    pub(super) unreadable: u64,
    /// Recipients of messages that have left the journal, or whose records are unreadable.
    pub(super) gone: u64,
    /// What was delivered before this instant may have left.
    pub(super) begins: Option<Timestamp>,
}

impl Past {
    pub(super) fn new(args: &Replay) -> Self {
        Self { job: args.job(), range: args.range(), retries_refused: args.retry_refused, ..Self::default() }
    }

    fn met(&mut self, position: Position, at: Timestamp) {
        self.end = self.end.max(Some(position));
        self.begins.get_or_insert(at);
    }

    fn insert(&mut self, position: Position, accepted: &Accepted, is_whole: bool) -> &mut Told {
        let routes = accepted.envelope.recipients.iter().map(|to| self.route(&to.route)).collect();
        self.messages.entry(accepted.id).or_insert_with(|| Told {
            position,
            accepted_at: accepted.trace.received_at,
            bytes: accepted.content_len,
            is_whole,
            routes,
            sent: Vec::new(),
        })
    }

    fn route(&mut self, name: &RouteName) -> u16 {
        let known = self.routes.iter().position(|known| known == name);
        let index = known.unwrap_or_else(|| {
            self.routes.push(name.clone());
            self.routes.len() - 1
        });
        u16::try_from(index).unwrap_or(u16::MAX)
    }

    /// Where the record of an attempt has left before such records kept its time, when the message came counts.
    fn carried(&mut self, position: Position, carried: &Carried, is_whole: bool) {
        let id = carried.accepted.id;
        let sent = (0..).zip(&carried.recipients).filter(|(_, standing)| standing.state == RecipientState::Sent);
        let known: Vec<_> = sent.clone().map(|(index, _)| self.gone.remove(&(id, index))).collect();
        let told = self.insert(position, &carried.accepted, is_whole);
        if is_whole {
            (told.position, told.is_whole) = (position, true);
        }
        for ((index, standing), since) in sent.clone().zip(known) {
            told.delivered(index, standing.past.sent_at.or(since).unwrap_or(told.accepted_at));
        }
        for (index, standing) in sent {
            standing.past.replays.iter().for_each(|mark| self.settled(mark.job, (id, index), mark.taken));
        }
    }

    fn settled(&mut self, job: u64, recipient: (TransactionId, RecipientIndex), taken: bool) {
        if job == self.job {
            self.done.insert(recipient);
            if taken {
                self.refused.remove(&recipient)
            } else {
                self.refused.insert(recipient)
            };
        }
    }

    /// What `args` ask for, in the order of its delivery.
    pub(super) fn choose(self, storage: &DirStorage, args: &Replay, selector: &Selector, now: Timestamp) -> Choice {
        let is_gone = |id, at| self.range.contains(at) && (!selector.narrows() || args.names(id));
        let mut choice = Choice {
            gone: self.gone.iter().filter(|((id, _), at)| is_gone(*id, **at)).count() as u64,
            begins: Some(self.begins.unwrap_or(now))
                .filter(|begins| self.has_left && args.range().since.is_none_or(|since| since < *begins)),
            refused_before: if args.retry_refused { 0 } else { self.refused.len() as u64 },
            ..Choice::default()
        };
        let mut reader = Reader::new(storage.clone());
        for (id, told) in &self.messages {
            let mut by_route: HashMap<u16, Vec<(RecipientIndex, Timestamp)>> = HashMap::new();
            for (index, at) in told.sent.iter().filter(|(_, at)| self.range.contains(*at)) {
                let route = told.routes.get(usize::from(*index)).copied().unwrap_or(u16::MAX);
                by_route.entry(route).or_default().push((*index, *at));
            }
            let row = (!by_route.is_empty() && selector.narrows()).then(|| row(&mut reader, *id, told, selector));
            let mut is_chosen = false;
            for (route, mut sent) in by_route {
                let Some(name) = self.routes.get(usize::from(route)) else { continue };
                sent.retain(|(index, _)| row.as_ref().is_none_or(|row| is_meant(row, name, *index, selector, now)));
                is_chosen |= !sent.is_empty();
                self.plan(&mut choice, (*id, told), name, &sent);
            }
            choice.messages += u64::from(is_chosen);
        }
        choice.planned.sort_unstable_by_key(|planned| (planned.delivered_at, planned.item.id, planned.item.primary));
        choice
    }

    fn is_done(&self, recipient: (TransactionId, RecipientIndex)) -> bool {
        self.done.contains(&recipient) && !(self.retries_refused && self.refused.contains(&recipient))
    }

    fn plan(
        &self,
        choice: &mut Choice,
        (id, told): (TransactionId, &Told),
        route: &RouteName,
        sent: &[(RecipientIndex, Timestamp)],
    ) {
        let Some(delivered_at) = sent.iter().map(|(_, at)| *at).max() else { return };
        choice.recipients += sent.len() as u64;
        choice.bytes += told.bytes;
        let mut left: Vec<RecipientIndex> =
            sent.iter().map(|(index, _)| *index).filter(|index| !self.is_done((id, *index))).collect();
        left.sort_unstable();
        choice.resumed += (sent.len() - left.len()) as u64;
        if left.is_empty() {
            return;
        }
        if !told.is_whole {
            choice.unreadable += left.len() as u64;
            return;
        }
        let known = choice.routes.iter().position(|known| known == route);
        let primary = known.unwrap_or_else(|| {
            choice.routes.push(route.clone());
            choice.routes.len() - 1
        });
        let item = Item { id, position: told.position, recipients: left, primary };
        choice.planned.push(Planned { item, delivered_at, bytes: told.bytes });
    }
}

impl Told {
    /// What is sent stays so: only the first record of it counts.
    fn delivered(&mut self, index: RecipientIndex, at: Timestamp) {
        if self.sent.iter().all(|(known, _)| *known != index) {
            self.sent.push((index, at));
        }
    }
}

impl Sink for Past {
    fn fact(&mut self, position: Position, fact: &Fact) {
        match fact {
            Fact::Accepted(accepted) => {
                self.met(position, accepted.trace.received_at);
                self.insert(position, accepted, true);
            }
            Fact::Attempted(attempted) => {
                self.met(position, attempted.at);
                for (index, outcome) in &attempted.results {
                    match self.messages.get_mut(&attempted.id) {
                        _ if !matches!(outcome, Outcome::Sent(_)) => {}
                        Some(told) => told.delivered(*index, attempted.at),
                        None => _ = self.gone.entry((attempted.id, *index)).or_insert(attempted.at),
                    }
                }
            }
            Fact::Carried(carried) => {
                // It is older than the segment it is in.
                self.end = self.end.max(Some(position));
                self.carried(position, carried, true);
            }
            Fact::Replayed(replayed) => {
                self.met(position, replayed.at);
                for (index, reply) in &replayed.results {
                    self.settled(replayed.job, (replayed.id, *index), reply.class() == ReplyClass::Positive);
                }
            }
            Fact::Served(served) => {
                // Written again in later segments, with the time of the start: it tells nothing of what is still there.
                self.end = self.end.max(Some(position));
                self.served = Some(served.clone());
            }
            Fact::Operated(operated) => self.met(position, operated.at),
            Fact::Watched(watched) => self.met(position, watched.at),
        }
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        self.end = self.end.max(Some(position));
        self.insert(position, accepted, false);
    }
    fn lost(&mut self, position: Position, _: TransactionId, _: u16) {
        self.end = self.end.max(Some(position));
    }
    fn unnamed(&mut self, _: u64, _: u64, _: u64) {}
    fn damaged_carried(&mut self, position: Position, carried: &Carried) {
        self.end = self.end.max(Some(position));
        self.carried(position, carried, false);
    }
    fn begins_after(&mut self, base: &Base) {
        self.has_left = base.first > 1;
    }
}

/// The ledger too: whoever writes needs it.
pub(super) struct Both {
    pub(super) past: Past,
    pub(super) ledger: Ledger,
}

impl Sink for Both {
    fn fact(&mut self, position: Position, fact: &Fact) {
        self.past.fact(position, fact);
        self.ledger.fact(position, fact);
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        self.past.damaged(position, accepted);
        self.ledger.damaged(position, accepted);
    }
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        self.past.lost(position, id, recipients);
        self.ledger.lost(position, id, recipients);
    }
    fn unnamed(&mut self, segment: u64, transactions: u64, recipients: u64) {
        self.ledger.unnamed(segment, transactions, recipients);
    }
    fn damaged_carried(&mut self, position: Position, carried: &Carried) {
        self.past.damaged_carried(position, carried);
        self.ledger.damaged_carried(position, carried);
    }
    fn begins_after(&mut self, base: &Base) {
        self.past.begins_after(base);
        self.ledger.begins_after(base);
    }
}

/// The message as a listing has it. What cannot be read matches by its name and route alone.
fn row(reader: &mut Reader<DirStorage>, id: TransactionId, told: &Told, selector: &Selector) -> Row {
    let accepted = selector.needs_rows().then(|| reader.accepted(told.position, id).ok()).flatten();
    let summary = selector.text.as_ref().and_then(|_| index::summary(reader, told.position, id));
    let trace = accepted.as_ref().map(|accepted| &accepted.trace);
    let recipients = told.routes.iter().enumerate().map(|(nth, _)| RecipientRow {
        addr: accepted.as_ref().and_then(|a| Some(a.envelope.recipients.get(nth)?.forward_path.as_str().to_owned())),
        route: None,
        state: RecipientState::Sent,
        last_reply: None,
        reason: None,
        attempts: 0,
        changed_at: told.accepted_at,
    });
    Row {
        id,
        position: told.position,
        accepted_at: told.accepted_at,
        size: told.bytes,
        from: accepted.as_ref().map(|accepted| accepted.envelope.reverse_path.as_str().to_owned()),
        client: trace.map(|trace| trace.client.to_string()),
        helo: trace.map(|trace| trace.helo.clone()),
        tls: None,
        hold: None,
        summary: summary.unwrap_or(Summary { subject: None, from: None, message_id: None }),
        recipients: recipients.collect(),
    }
}

/// Each recipient by itself: who asks for one of them does not mean the others of the same message.
fn is_meant(row: &Row, route: &RouteName, index: RecipientIndex, selector: &Selector, now: Timestamp) -> bool {
    let recipients = row.recipients.get(usize::from(index)).into_iter().collect();
    let route = route.as_str();
    let entry = Entry { row, route, state: "sent", next: String::new(), active: false, tripped: None, recipients };
    selector.matches(&entry, now)
}
