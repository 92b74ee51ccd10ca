//! Delivers once more what was delivered: one message after the other, each reply made durable before the next is offered.
//! For the daemon and for the command beside a dead one; who records, and what is chosen, is theirs.
//!
//! Nothing is written before a message is offered: only a death between the primary's reply and the record (one message, one
//! sync) has it offered again by whoever goes on. A record of the intent would cost a sync each, and tell no more: whoever
//! reads it does not know either whether the primary took the message. It is the same promise as that of a first delivery.

use crate::clock;
use crate::serve::attempt::{self, Job, Message, Tried};
use restante_courier::{Connection, Settings, Target};
use restante_envelope::{Reply, TransactionId};
use restante_journal::{DirStorage, Reader};
use restante_ledger::{Accepted, Attempted, Cause, NextHop, Outcome, Position, RecipientIndex, Replayed};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Messages in a row under which the connection broke: then it is not the messages.
const BROKEN_IN_A_ROW_MAX: u32 = 3;
/// Offers of one message: the second on a new connection, where the first broke before the primary could have taken it.
const TRIES: u32 = 2;
/// Recipients named in one account; the counts tell of all.
const NAMED_MAX: usize = 20;

/// Whoever delivers a list stops after this, for whoever waits to tell how far it is, and to hear Ctrl-C: a slow primary takes
/// seconds for each message.
pub(crate) const TURN: Duration = Duration::from_secs(1);

/// By whose order.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) job: u64,
    pub(crate) actor: String,
    pub(crate) reason: String,
}

/// A message on one of its routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) id: TransactionId,
    pub(crate) position: Position,
    /// Those that had been sent, and have not been replayed.
    pub(crate) recipients: Vec<RecipientIndex>,
    /// Which of the primaries.
    pub(crate) primary: usize,
}

/// What a few messages came to, in recipients.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Messages that had their turn: the first so many of those that were given.
    pub(crate) tried: u64,
    /// Messages of which something is recorded now.
    pub(crate) moved: u64,
    pub(crate) taken: u64,
    pub(crate) refused: u64,
    /// Refused for now, or the connection broke before the primary could have taken them.
    pub(crate) later: u64,
    /// The connection broke behind the final dot.
    pub(crate) in_doubt: u64,
    /// The bytes are damaged, or have left the journal.
    pub(crate) unreadable: u64,
    /// Who was refused, and why.
    pub(crate) named: Vec<String>,
    /// Primaries that nothing more is to be offered now, and why.
    pub(crate) left: Vec<(usize, String)>,
    /// The place of the last record.
    pub(crate) end: Option<Position>,
    /// Why the rest was not tried.
    pub(crate) stopped: Option<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.tried += other.tried;
        self.moved += other.moved;
        self.taken += other.taken;
        self.refused += other.refused;
        self.later += other.later;
        self.in_doubt += other.in_doubt;
        self.unreadable += other.unreadable;
        self.left.extend(other.left);
        self.end = self.end.max(other.end);
        self.stopped = self.stopped.take().or(other.stopped);
        let room = NAMED_MAX.saturating_sub(self.named.len());
        self.named.extend(other.named.into_iter().take(room));
    }

    pub(crate) fn to_json(&self) -> Value {
        let left: Vec<Value> = self.left.iter().map(|(primary, why)| json!([primary, why])).collect();
        json!({"type": "replay", "tried": self.tried, "moved": self.moved, "taken": self.taken, "refused": self.refused, "later": self.later,
            "in_doubt": self.in_doubt, "unreadable": self.unreadable, "named": self.named, "left": left,
            "end": self.end.map(|end| end.to_string()), "stopped": self.stopped})
    }

    /// What another process tells of itself; what is missing is nothing.
    pub(crate) fn from_json(value: &Value) -> Self {
        let number = |key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let list = |key: &str| value.get(key).and_then(Value::as_array).into_iter().flatten();
        let left = |pair: &Value| {
            let primary = usize::try_from(pair.get(0)?.as_u64()?).ok()?;
            Some((primary, text(pair.get(1)?)?))
        };
        Self {
            tried: number("tried"),
            moved: number("moved"),
            taken: number("taken"),
            refused: number("refused"),
            later: number("later"),
            in_doubt: number("in_doubt"),
            unreadable: number("unreadable"),
            named: list("named").filter_map(text).collect(),
            left: list("left").filter_map(left).collect(),
            end: value.get("end").and_then(Value::as_str).and_then(position),
            stopped: value.get("stopped").and_then(text),
        }
    }
}

/// As [`Position`] is written.
pub(crate) fn position(text: &str) -> Option<Position> {
    let (segment, offset) = text.split_once(':')?;
    Some(Position { segment: segment.parse().ok()?, offset: offset.parse().ok()? })
}

/// One message's part of the account, and what is to be recorded of it.
#[derive(Default)]
pub(crate) struct Offered {
    /// To be made durable before anything else is offered, and only then counted.
    pub(crate) fact: Option<Replayed>,
    pub(crate) about: Option<Arc<Accepted>>,
    pub(crate) tally: Tally,
}

struct Primary {
    next_hops: Vec<Target>,
    connection: Option<Connection>,
    broken_in_a_row: u32,
    is_left: bool,
}

/// The primaries of a replay, and the connections to them.
pub(crate) struct Round {
    order: Order,
    settings: Settings,
    reader: Reader<DirStorage>,
    primaries: Vec<Primary>,
    seed: u64,
}

impl Round {
    /// Of the journal in `storage`; connects as `settings` say.
    pub(crate) fn new(order: Order, settings: Settings, storage: DirStorage, primaries: Vec<Vec<Target>>) -> Self {
        let primary = |next_hops| Primary { next_hops, connection: None, broken_in_a_row: 0, is_left: false };
        Self {
            order,
            settings,
            reader: Reader::new(storage),
            primaries: primaries.into_iter().map(primary).collect(),
            seed: clock::entropy(),
        }
    }

    /// Offers one message; once more where the connection breaks before its content was out.
    pub(crate) async fn offer(&mut self, item: &Item) -> Offered {
        let mut offered = Offered { tally: Tally { tried: 1, ..Tally::default() }, ..Offered::default() };
        let recipients = item.recipients.len() as u64;
        let Some(primary) = self.primaries.get_mut(item.primary).filter(|primary| !primary.is_left) else {
            offered.tally.later = recipients;
            return offered;
        };
        let job = Job { id: item.id, position: item.position, recipients: item.recipients.clone(), attempt: 1 };
        let mut why = String::new();
        for _ in 0..TRIES {
            let read = attempt::blocking(|| attempt::read(&mut self.reader, &job, &self.settings.hostname));
            let Ok(message) = read else {
                offered.tally.unreadable = recipients;
                offered.tally.named.push(format!("{}: its bytes are damaged, or have left the journal", item.id));
                return offered;
            };
            let mut message = message.marked(&mark(self.order.job));
            let connection = match primary.connected(&self.settings).await {
                Ok(connection) => connection,
                Err(error) => {
                    offered.tally.later = recipients;
                    primary.leave(item.primary, error, &mut offered.tally);
                    return offered;
                }
            };
            let tried = attempt::attempt(connection, &job, &mut message, None, self.seed).await;
            match judged(&self.order, item, tried, &message) {
                Ok(judged) => {
                    primary.broken_in_a_row = if judged.tally.in_doubt > 0 { primary.broken_in_a_row + 1 } else { 0 };
                    offered = judged;
                    break;
                }
                Err(broke) => why = broke,
            }
            primary.connection = None;
        }
        if offered.fact.is_none() && offered.tally == (Tally { tried: 1, ..Tally::default() }) {
            offered.tally.later = recipients;
            offered.tally.named.push(format!("{}: {why}", item.id));
            primary.broken_in_a_row += 1;
        }
        if primary.broken_in_a_row >= BROKEN_IN_A_ROW_MAX {
            let why = format!("the connection broke under {BROKEN_IN_A_ROW_MAX} messages in a row: {why}");
            primary.leave(item.primary, why, &mut offered.tally);
        }
        offered
    }

    pub(crate) async fn quit(self) {
        for connection in self.primaries.into_iter().filter_map(|primary| primary.connection) {
            connection.quit().await;
        }
    }
}

impl Primary {
    /// The connection, a new one if there is none that can be used.
    async fn connected(&mut self, settings: &Settings) -> Result<&mut Connection, String> {
        let usable = self.connection.take().filter(Connection::is_usable);
        let usable = usable.and_then(|mut open| if open.peer_closed() { None } else { Some(open) });
        let open = match usable {
            Some(open) => open,
            None => connect_to_any(&self.next_hops, settings).await?,
        };
        Ok(self.connection.insert(open))
    }

    fn leave(&mut self, number: usize, why: String, tally: &mut Tally) {
        self.is_left = true;
        tally.left.push((number, why));
    }
}

/// To the first that takes it.
pub(crate) async fn connect_to_any(next_hops: &[Target], settings: &Settings) -> Result<Connection, String> {
    let mut why = "nobody recorded where its primary is: name it by --to".to_owned();
    for target in next_hops {
        match restante_courier::connect(target, settings).await {
            Ok(connection) => return Ok(connection),
            Err(error) => {
                let (error, target) = (error.to_string(), target.to_string());
                why = if error.contains(&target) { error } else { format!("{target}: {error}") };
            }
        }
    }
    Err(why)
}

/// The header that tells whoever reads the copy why there may be two.
fn mark(job: u64) -> String {
    format!("X-Restante-Replay: {job:016x}; {}", clock::now().to_rfc5322())
}

/// What the primary said, as a record and in counts. If it heard nothing of the message, why.
fn judged(order: &Order, item: &Item, tried: Tried, message: &Message) -> Result<Offered, String> {
    let Some(Attempted { at, next_hop, results, .. }) = tried.fact else {
        return Err(tried.broke.map_or_else(|| "the connection ended".to_owned(), |why| why.to_string()));
    };
    let mut offered = Offered { about: Some(message.accepted.clone()), ..Offered::default() };
    offered.tally.tried = 1;
    let tally = &mut offered.tally;
    let mut replies = Vec::new();
    for (index, outcome) in results {
        let (count, why): (&mut u64, &dyn std::fmt::Display) = match &outcome {
            Outcome::Sent(reply) => {
                replies.push((index, reply.clone()));
                tally.taken += 1;
                continue;
            }
            Outcome::Held(Cause::Reply(reply) | Cause::Content(reply)) => {
                replies.push((index, reply.clone()));
                (&mut tally.refused, reply)
            }
            Outcome::Deferred { cause: cause @ Cause::InDoubt(_), .. } => (&mut tally.in_doubt, cause),
            Outcome::Quarantined(cause) => (&mut tally.unreadable, cause),
            Outcome::Deferred { cause, .. } | Outcome::Held(cause) => (&mut tally.later, cause),
        };
        *count += 1;
        let to = message.accepted.envelope.recipients.get(usize::from(index));
        let to = to.map_or("?", |to| to.forward_path.as_str());
        tally.named.push(format!("{} to <{to}>: {why}", item.id));
    }
    tally.named.truncate(NAMED_MAX);
    offered.fact = (!replies.is_empty()).then(|| record(order, item, at, next_hop, replies));
    offered.tally.moved = u64::from(offered.fact.is_some());
    Ok(offered)
}

fn record(
    order: &Order,
    item: &Item,
    at: restante_envelope::Timestamp,
    next_hop: Option<NextHop>,
    results: Vec<(RecipientIndex, Reply)>,
) -> Replayed {
    let Order { job, actor, reason } = order.clone();
    Replayed { id: item.id, at, position: item.position, job, actor, reason, next_hop, results }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_arrives_as_it_was_sent() {
        let end = Some(Position { segment: 3, offset: 4096 });
        let left = vec![(1, "connection refused".to_owned())];
        let (named, stopped) = (vec!["x".to_owned()], Some("full".to_owned()));
        let tally = Tally {
            tried: 7,
            moved: 1,
            taken: 2,
            refused: 3,
            later: 4,
            in_doubt: 5,
            unreadable: 6,
            named,
            left,
            end,
            stopped,
        };
        assert_eq!(Tally::from_json(&tally.to_json()), tally);
        assert_eq!(Tally::from_json(&json!({"left": [[-1, "x"], 7], "end": "1"})), Tally::default());
        let mut sum = Tally::default();
        (0..9).for_each(|_| sum.add(tally.clone()));
        assert_eq!(sum.tried, 63);
        assert_eq!((sum.taken, sum.unreadable, sum.left.len(), sum.end), (18, 54, 9, end));
    }
}
