//! What happened to a transaction, read from the journal: each attempt, and what operators did.

use super::entry::addr;
use restante_envelope::{Reply, ReplyClass, TransactionId};
use restante_index::{RecipientRow, Row};
use restante_journal::{Depth, DirStorage, ReplayError, Sink, replay_from};
use restante_ledger::{
    Accepted, Action, Attempted, Base, Carried, Fact, Operated, Outcome, Position, RecipientIndex, Replayed,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};

/// Steps shown of each: the last ones. A message that was refused for five days has about as many.
const STEPS_MAX: usize = 200;

/// One attempt or operation.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Attempted(Attempted),
    Operated(Operated),
    Replayed(Replayed),
}

/// The steps of each transaction, in the order of the journal.
pub(super) struct Histories(BTreeMap<TransactionId, VecDeque<Step>>);

impl Histories {
    /// Of the transactions in `rows`.
    pub(super) fn read(storage: &DirStorage, rows: &[Row]) -> Result<Self, ReplayError> {
        let mut histories = Self(rows.iter().map(|row| (row.id, VecDeque::new())).collect());
        if let Some(first) = rows.iter().map(|row| row.position.segment).min() {
            replay_from(storage, first, Depth::Records, &mut histories)?;
        }
        Ok(histories)
    }

    pub(super) fn of(&self, id: TransactionId) -> impl Iterator<Item = &Step> {
        self.0.get(&id).into_iter().flatten()
    }
}

impl Sink for Histories {
    fn fact(&mut self, _: Position, fact: &Fact) {
        let Some(steps) = fact.transaction().and_then(|id| self.0.get_mut(&id)) else { return };
        let step = match fact {
            Fact::Attempted(attempted) => Step::Attempted(attempted.clone()),
            Fact::Operated(operated) => Step::Operated(operated.clone()),
            Fact::Replayed(replayed) => Step::Replayed(replayed.clone()),
            Fact::Accepted(_) | Fact::Served(_) | Fact::Watched(_) | Fact::Carried(_) => return,
        };
        if steps.len() == STEPS_MAX {
            steps.pop_front();
        }
        steps.push_back(step);
    }
    fn damaged(&mut self, _: Position, _: &Accepted) {}
    fn lost(&mut self, _: Position, _: TransactionId, _: u16) {}
    fn unnamed(&mut self, _: u64, _: u64, _: u64) {}
    fn damaged_carried(&mut self, _: Position, _: &Carried) {}
    fn begins_after(&mut self, _: &Base) {}
}

impl Step {
    pub(super) fn to_json(&self, row: &Row) -> Value {
        match self {
            Self::Attempted(attempted) => {
                let result = |(index, outcome): &(RecipientIndex, Outcome)| {
                    let (status, words) = result(outcome);
                    json!({"addr": name(row, *index), "status": status, "reply": words})
                };
                let results: Vec<Value> = attempted.results.iter().map(result).collect();
                json!({"at": attempted.at.to_string(), "ev": "attempted",
                    "relay": attempted.next_hop.as_ref().map(ToString::to_string), "results": results})
            }
            Self::Operated(operated) => {
                let to: Vec<&str> = operated.recipients.iter().map(|index| name(row, *index)).collect();
                json!({"at": operated.at.to_string(), "ev": verb(operated.action), "to": to,
                    "actor": operated.actor, "reason": operated.reason})
            }
            Self::Replayed(replayed) => {
                let result = |(index, reply): &(RecipientIndex, Reply)| json!({"addr": name(row, *index), "status": replayed_as(reply), "reply": reply.to_string()});
                let results: Vec<Value> = replayed.results.iter().map(result).collect();
                json!({"at": replayed.at.to_string(), "ev": "replayed", "job": format!("{:016x}", replayed.job),
                    "relay": replayed.next_hop.as_ref().map(ToString::to_string), "results": results,
                    "actor": replayed.actor, "reason": replayed.reason})
            }
        }
    }

    /// One line for each recipient.
    pub(super) fn in_words(&self, row: &Row) -> Vec<String> {
        match self {
            Self::Attempted(attempted) => {
                let by = attempted.next_hop.as_ref().map_or("here".to_owned(), ToString::to_string);
                let line = |(index, outcome): &(RecipientIndex, Outcome)| {
                    let (status, words) = result(outcome);
                    format!("{}  {status}  <{}>  {by}: {words}", attempted.at, name(row, *index))
                };
                attempted.results.iter().map(line).collect()
            }
            Self::Operated(operated) => {
                let (at, verb) = (operated.at, verb(operated.action));
                let to: Vec<String> = operated.recipients.iter().map(|i| format!("<{}>", name(row, *i))).collect();
                vec![format!("{at}  {verb}  {}  by {}: {}", to.join(", "), operated.actor, operated.reason)]
            }
            Self::Replayed(replayed) => {
                let by = replayed.next_hop.as_ref().map_or("?".to_owned(), ToString::to_string);
                let order = format!("by {}: {}", replayed.actor, replayed.reason);
                let line = |(index, reply): &(RecipientIndex, Reply)| {
                    let (status, to) = (replayed_as(reply), name(row, *index));
                    format!("{}  {status}  <{to}>  {by}: {reply}  ({order})", replayed.at)
                };
                replayed.results.iter().map(line).collect()
            }
        }
    }
}

fn name(row: &Row, index: RecipientIndex) -> &str {
    row.recipients.get(usize::from(index)).map_or("?", |to: &RecipientRow| addr(to))
}

fn verb(action: Action) -> &'static str {
    match action {
        Action::Hold => "held",
        Action::Release => "released",
        Action::Bounce | Action::Settle => "bounced",
        Action::Expire => "expired",
        Action::Remove => "removed",
        Action::Undo => "undone",
    }
}

fn replayed_as(reply: &Reply) -> &'static str {
    if reply.class() == ReplyClass::Positive { "replayed" } else { "replay refused" }
}

fn result(outcome: &Outcome) -> (&'static str, String) {
    match outcome {
        Outcome::Sent(reply) => ("sent", reply.to_string()),
        Outcome::Deferred { cause, .. } => ("deferred", cause.to_string()),
        Outcome::Held(cause) => ("hold", cause.to_string()),
        Outcome::Quarantined(cause) => ("quarantined", cause.to_string()),
    }
}
