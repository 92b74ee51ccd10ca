//! `restante journal stats`: how much the journal holds, of what, for whom, and since when. With a daemon or without.
//!
//! Reads all records but no content: what rotted in one is for `verify` to find.

use super::args::Cli;
use super::log_line::printable;
use super::output::Output;
use super::queue::Live;
use super::{exit, journal, words};
use crate::{clock, config};
use restante_envelope::{RouteName, Timestamp, TransactionId};
use restante_journal::{Depth, DirStorage, SegmentEntry, Sink, State, Storage as _, replay, segments};
use restante_ledger::{Accepted, Base, Carried, Fact, Ledger, Position, RecipientState, Transaction};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// In the order in which they are shown.
const STATES: [&str; 8] = ["waiting", "deferred", "hold", "sent", "bounced", "expired", "removed", "quarantined"];

/// Messages, a part of which is on a route.
#[derive(Debug, Default)]
struct OfRoute {
    pending: u64,
    pending_bytes: u64,
    settled: u64,
    settled_bytes: u64,
}

#[derive(Default)]
struct Tally {
    messages: u64,
    pending: u64,
    bytes: u64,
    recipients: BTreeMap<&'static str, u64>,
    routes: BTreeMap<String, OfRoute>,
    accepted: Option<(Timestamp, Timestamp)>,
}

impl Tally {
    fn count(&mut self, transaction: &Transaction, name: impl Fn(restante_ledger::RouteIndex) -> Option<RouteName>) {
        self.messages += 1;
        self.pending += u64::from(!transaction.is_settled());
        self.bytes += transaction.content_len;
        let at = transaction.accepted_at;
        let (oldest, newest) = self.accepted.unwrap_or((at, at));
        self.accepted = Some((oldest.min(at), newest.max(at)));
        let mut of_route: BTreeMap<_, bool> = BTreeMap::new();
        for entry in &transaction.recipients {
            *self.recipients.entry(word(entry.state)).or_default() += 1;
            *of_route.entry(entry.route).or_default() |= !entry.state.is_settled();
        }
        for (route, is_pending) in of_route {
            let name = name(route).map_or_else(|| "?".to_owned(), |name| name.as_str().to_owned());
            let route = self.routes.entry(name).or_default();
            let (messages, bytes) = match is_pending {
                true => (&mut route.pending, &mut route.pending_bytes),
                false => (&mut route.settled, &mut route.settled_bytes),
            };
            *messages += 1;
            *bytes += transaction.content_len;
        }
    }
}

/// The word of every listing; what is due waits.
pub(super) fn word(state: RecipientState) -> &'static str {
    match state {
        RecipientState::Due => "waiting",
        RecipientState::Deferred(_) => "deferred",
        RecipientState::Hold | RecipientState::Refused => "hold",
        RecipientState::Sent => "sent",
        RecipientState::Bounced => "bounced",
        RecipientState::Expired => "expired",
        RecipientState::Removed => "removed",
        RecipientState::Quarantined => "quarantined",
    }
}

/// The fold, and what it forgets: messages that were sent to all.
#[derive(Default)]
struct Counted {
    ledger: Ledger,
    tally: Tally,
}

impl Sink for Counted {
    fn fact(&mut self, position: Position, fact: &Fact) {
        if let Some(sent) = self.ledger.apply(position, fact) {
            self.tally.count(&sent, |route| self.ledger.route(route).cloned());
        }
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        self.ledger.apply_damaged(position, accepted);
    }
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        self.ledger.apply_lost(position, id, recipients);
    }
    fn damaged_carried(&mut self, position: Position, carried: &Carried) {
        self.ledger.apply_damaged_carried(position, carried);
    }
    fn unnamed(&mut self, segment: u64, transactions: u64, recipients: u64) {
        self.ledger.apply_unnamed(segment, transactions, recipients);
    }
    fn begins_after(&mut self, base: &Base) {
        self.ledger.apply_base(base);
    }
}

pub(crate) fn run(cli: &Cli, output: Output) -> anyhow::Result<u8> {
    let data = match journal::data_dir(cli, output) {
        Ok(data) => data,
        Err(code) => return Ok(code),
    };
    let storage = journal::open(&data)?;
    let mut counted = Counted::default();
    let read = replay(&storage, Depth::Records, &mut counted)?;
    let Counted { ledger, mut tally } = counted;
    ledger.iter().for_each(|(_, transaction)| tally.count(transaction, |route| ledger.route(route).cloned()));
    // A running daemon knows how long it keeps mail; else the configuration says how long it would.
    let live = Live::ask(cli);
    let retain = live.retain.or_else(|| config::resolve(&cli.flags()).ok().map(|config| config.retain));
    let segments = segments(&storage)?;
    let newest = segments.last().map_or(0, |segment| segment.number);
    let ripe = retain.and_then(|retain| ledger.leaving(newest, retain, clock::now()));
    let mut object = files(&storage, &segments)?;
    let more = json!({
        "messages": tally.messages, "pending": tally.pending, "settled": tally.messages - tally.pending,
        "message_bytes": tally.bytes,
        "oldest_accepted_at": tally.accepted.map(|(oldest, _)| oldest.to_string()),
        "newest_accepted_at": tally.accepted.map(|(_, newest)| newest.to_string()),
        "recipients": STATES.iter().map(|state| ((*state).to_owned(), tally.recipients.get(state).copied().unwrap_or(0).into()))
            .collect::<Map<String, Value>>(),
        "routes": tally.routes.iter().map(|(name, route)| json!({"name": name, "pending": route.pending,
            "pending_bytes": route.pending_bytes, "settled": route.settled, "settled_bytes": route.settled_bytes}))
            .collect::<Vec<_>>(),
        "retain_s": retain.map(|retain| retain.as_secs()),
        "ripe_segments": ripe.map(|first| segments.iter().filter(|segment| segment.number < first).count()),
        "left": ledger.base().left.transactions,
        "damaged": read.report.state() == State::Damaged,
    });
    object.extend(more.as_object().cloned().unwrap_or_default());
    if output.json {
        output.object(&Value::Object(object));
    } else {
        in_words(&object).iter().for_each(|line| output.line(&printable(line)));
    }
    Ok(exit::DONE)
}

fn files(storage: &DirStorage, segments: &[SegmentEntry]) -> anyhow::Result<Map<String, Value>> {
    let blobs = storage.list_blobs()?;
    let bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let at = |segment: Option<&SegmentEntry>| segment.and_then(|segment| segment.created_at).map(|at| at.to_string());
    let object = json!({
        "type": "journal",
        "segments": segments.len(),
        "sealed": segments.iter().filter(|segment| segment.is_sealed).count(),
        "segment_bytes": bytes,
        "first_segment": segments.first().map(|segment| segment.number),
        "last_segment": segments.last().map(|segment| segment.number),
        "oldest_segment_at": at(segments.first()),
        "newest_segment_at": at(segments.last()),
        "blobs": blobs.len(),
        "blob_bytes": blobs.iter().map(|blob| blob.bytes).sum::<u64>(),
    });
    Ok(object.as_object().cloned().unwrap_or_default())
}

fn in_words(object: &Map<String, Value>) -> Vec<String> {
    let number = |key: &str| object.get(key).and_then(Value::as_u64).unwrap_or(0);
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or("-");
    let mut lines = vec![match number("segments") {
        0 => "segments    none".to_owned(),
        segments => format!(
            "segments    {segments} ({} sealed), {}, numbers {} to {}, from {} to {}",
            number("sealed"),
            words::bytes(number("segment_bytes")),
            number("first_segment"),
            number("last_segment"),
            text("oldest_segment_at"),
            text("newest_segment_at")
        ),
    }];
    lines.push(format!("blobs       {}, {}", number("blobs"), words::bytes(number("blob_bytes"))));
    lines.push(match number("messages") {
        0 => "messages    none".to_owned(),
        messages => format!(
            "messages    {messages}: {} pending, {} settled, {}; accepted from {} to {}",
            number("pending"),
            number("settled"),
            words::bytes(number("message_bytes")),
            text("oldest_accepted_at"),
            text("newest_accepted_at")
        ),
    });
    let states = object.get("recipients").and_then(Value::as_object).into_iter().flatten();
    let states: Vec<String> = states
        .filter(|(_, count)| count.as_u64() != Some(0))
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    lines.push(format!("recipients  {}", if states.is_empty() { "none".to_owned() } else { states.join(", ") }));
    for route in object.get("routes").and_then(Value::as_array).into_iter().flatten() {
        let number = |key: &str| route.get(key).and_then(Value::as_u64).unwrap_or(0);
        lines.push(format!(
            "route       {}: {} pending, {}; {} settled, {}",
            route.get("name").and_then(Value::as_str).unwrap_or("?"),
            number("pending"),
            words::bytes(number("pending_bytes")),
            number("settled"),
            words::bytes(number("settled_bytes"))
        ));
    }
    lines.push(match object.get("retain_s").and_then(Value::as_u64) {
        Some(retain) => format!(
            "retention   settled mail stays {}; {} segment(s) have had their time; {} message(s) have left",
            words::seconds(retain),
            number("ripe_segments"),
            number("left")
        ),
        None => format!("retention   no configuration tells; {} message(s) have left", number("left")),
    });
    if object.get("damaged").and_then(Value::as_bool) == Some(true) {
        lines.push("DAMAGED     see `restante verify`".to_owned());
    }
    lines
}
