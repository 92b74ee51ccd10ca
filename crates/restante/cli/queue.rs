//! `restante queue`: lists pending transactions from the journal; changes go through the daemon.

use super::args::{Cli, Flush, Operation, Queue, Selector};
use super::client::{Client, NoAnswer};
use super::log_line::printable;
use super::output::Output;
use super::{exit, journal, words};
use crate::clock;
use hyper::Method;
use restante_envelope::{RouteName, TransactionId};
use restante_journal::{Depth, DirStorage, Reader};
use restante_ledger::{Accepted, Cause, Fact, Ledger, Outcome, RecipientState, Transaction};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};

pub(crate) fn run(cli: &Cli, queue: &Queue, output: Output) -> anyhow::Result<u8> {
    match queue {
        Queue::Ls(selector) => list(cli, selector, output),
        Queue::Flush(order) => Ok(flush(cli, order, output)),
        Queue::Hold(order) => Ok(operate(cli, order, "hold", output, |n| format!("{n} on hold"))),
        Queue::Release(order) => Ok(operate(cli, order, "release", output, |n| format!("{n} released"))),
    }
}

fn flush(cli: &Cli, order: &Flush, output: Output) -> u8 {
    let query = query(&order.chosen.selector);
    let asked = Client::new(cli, order.daemon.admin.as_ref())
        .and_then(|client| client.ask(Method::POST, &format!("/api/v1/queue/flush?{query}")));
    changed(asked, &order.chosen.selector, output, |n| format!("{n} to be tried now"))
}

fn operate(cli: &Cli, order: &Operation, verb: &str, output: Output, words: impl Fn(u64) -> String) -> u8 {
    let actor = std::env::var("USER").ok().filter(|user| !user.is_empty());
    let actor = actor.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    let query = format!(
        "{}&actor={}&reason={}",
        query(&order.chosen.selector),
        percent_encoded(&actor),
        percent_encoded(&order.reason)
    );
    let asked = Client::new(cli, order.daemon.admin.as_ref())
        .and_then(|client| client.ask(Method::POST, &format!("/api/v1/queue/{verb}?{query}")));
    changed(asked, &order.chosen.selector, output, words)
}

fn changed(asked: Result<Value, NoAnswer>, selector: &Selector, output: Output, words: impl Fn(u64) -> String) -> u8 {
    match asked {
        Ok(answer) => {
            let matched = answer.get("matched").and_then(Value::as_u64).unwrap_or(0);
            if output.json {
                output.object(&answer);
            } else {
                output.line(&words(matched));
            }
            if matched == 0 && !selector.all { exit::NOTHING_MATCHED } else { exit::DONE }
        }
        Err(no) => {
            output.note(&format!("restante: {}", no.why));
            no.code
        }
    }
}

fn query(selector: &Selector) -> String {
    if selector.all {
        return "all".into();
    }
    if !selector.ids.is_empty() {
        let ids: Vec<String> = selector.ids.iter().map(ToString::to_string).collect();
        return format!("id={}", ids.join(","));
    }
    let routes: Vec<String> = selector.routes.iter().map(|route| percent_encoded(route)).collect();
    format!("route={}", routes.join(","))
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => out.push(char::from(byte)),
            _ => out += &format!("%{byte:02X}"),
        }
        out
    })
}

fn list(cli: &Cli, selector: &Selector, output: Output) -> anyhow::Result<u8> {
    let data = match journal::data_dir(cli, output) {
        Ok(data) => data,
        Err(code) => return Ok(code),
    };
    let storage = journal::open(&data)?;
    let mut ledger = Ledger::new();
    restante_journal::replay(&storage, Depth::Records, &mut ledger)?;
    let live = Live::ask(cli);
    let mut reader = Reader::new(storage);
    let (mut shown, mut on_hold) = (0, 0);
    for (id, transaction) in ledger.iter() {
        if transaction.is_settled() || (!selector.ids.is_empty() && !selector.ids.contains(&id)) {
            continue;
        }
        for entry in entries(id, transaction, &ledger, &mut reader, &live) {
            if !selector.routes.is_empty() && !selector.routes.contains(&entry.route) {
                continue;
            }
            if shown == 0 && !output.json {
                output.line(&format!("{:26}  {:>9}  {:>10}  {:8}  FROM -> TO  (next)", "ID", "AGE", "SIZE", "STATE"));
            }
            shown += 1;
            on_hold += u64::from(entry.state == "hold");
            if output.json { output.object(&entry.to_json()) } else { output.line(&entry.in_words()) }
        }
    }
    if !output.json {
        let hold = if on_hold > 0 { format!("; {on_hold} on hold will not move by themselves") } else { String::new() };
        output.line(&format!("{shown} pending{hold}"));
    }
    let selected = !selector.ids.is_empty() || !selector.routes.is_empty();
    Ok(if shown == 0 && selected { exit::NOTHING_MATCHED } else { exit::DONE })
}

/// What only a running daemon knows.
struct Live {
    running: bool,
    active: HashSet<(String, String)>,
    routes: HashMap<String, String>,
}

impl Live {
    fn ask(cli: &Cli) -> Self {
        let ask = |path: &str| Client::new(cli, None).and_then(|client| client.ask(Method::GET, path)).ok();
        let text = |object: &Value, key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let list = |answer: Option<Value>, key: &str| {
            answer.and_then(|a| a.get(key).and_then(Value::as_array).cloned()).unwrap_or_default()
        };
        let status = ask("/api/v1/status");
        let running = status.is_some();
        let routes = list(status, "routes").iter().map(|r| (text(r, "name"), text(r, "state"))).collect();
        let active = if running { list(ask("/api/v1/active"), "active") } else { Vec::new() };
        let active = active.iter().map(|a| (text(a, "id"), text(a, "route"))).collect();
        Self { running, active, routes }
    }
}

/// A transaction on one of its routes.
struct Entry {
    id: TransactionId,
    route: String,
    state: &'static str,
    next: String,
    from: String,
    size: u64,
    accepted_at: restante_envelope::Timestamp,
    to: Vec<Value>,
}

impl Entry {
    fn to_json(&self) -> Value {
        json!({"type": "transaction", "id": self.id.to_string(), "route": self.route, "state": self.state,
            "from": self.from, "size": self.size, "accepted_at": self.accepted_at.to_string(), "to": self.to,
            "next": self.next, "expires_at": null})
    }

    fn in_words(&self) -> String {
        let age = words::seconds(clock::now().since(self.accepted_at).as_secs());
        let mut line = format!(
            "{}  {age:>9}  {:>10}  {:8}  <{}> -> ",
            self.id,
            words::bytes(self.size),
            self.state,
            printable(&self.from)
        );
        let addresses: Vec<&str> = self.to.iter().filter_map(|to| to.get("addr")?.as_str()).collect();
        line += &printable(&format!("{}  ({})", addresses.join(", "), self.next));
        for to in &self.to {
            let why = to.get("reason").and_then(Value::as_str).or_else(|| to.get("last_reply")?.as_str());
            if let Some(why) = why {
                let addr = to.get("addr").and_then(Value::as_str).unwrap_or("?");
                line += &format!("\n{:28}{}", "", printable(&format!("{addr}: {why}")));
            }
        }
        line
    }
}

/// One entry for each route on which something is unsettled.
fn entries(
    id: TransactionId,
    transaction: &Transaction,
    ledger: &Ledger,
    reader: &mut Reader<DirStorage>,
    live: &Live,
) -> Vec<Entry> {
    let accepted = reader.accepted(transaction.position, id).ok();
    let changed = transaction.last_change.and_then(|position| reader.record(position).ok()).map(|stored| stored.fact);
    let mut routes: Vec<_> = transaction.recipients.iter().map(|r| r.route).collect();
    routes.sort_unstable();
    routes.dedup();
    let mut entries = Vec::new();
    for index in routes {
        let unsettled = |r: &restante_ledger::RecipientEntry| r.route == index && !r.state.is_settled();
        if !transaction.recipients.iter().any(unsettled) {
            continue;
        }
        let route = ledger.route(index).map_or("?", RouteName::as_str).to_owned();
        let active = live.active.contains(&(id.to_string(), route.clone()));
        let of_route = transaction.recipients.iter().enumerate().filter(|(_, r)| r.route == index);
        let to: Vec<Value> =
            of_route.map(|(n, r)| recipient_json(n, r.state, active, accepted.as_ref(), changed.as_ref())).collect();
        let (state, next) = state_and_next(transaction, index, active, &route, live);
        let from = accepted.as_ref().map_or("?", |a| a.envelope.reverse_path.as_str()).to_owned();
        let (size, accepted_at) = (transaction.content_len, transaction.accepted_at);
        entries.push(Entry { id, route, state, next, from, size, accepted_at, to });
    }
    entries
}

/// The first of active, deferred, waiting, hold that any unsettled recipient has.
fn state_and_next(
    transaction: &Transaction,
    route: u16,
    active: bool,
    name: &str,
    live: &Live,
) -> (&'static str, String) {
    if active {
        return ("active", "being delivered now".into());
    }
    let states = || transaction.recipients.iter().filter(|r| r.route == route).map(|r| r.state);
    let deferred = states().filter_map(|s| if let RecipientState::Deferred(at) = s { Some(at) } else { None }).min();
    let unless_running = if live.running { "" } else { ", once the daemon runs" };
    if let Some(at) = deferred {
        return ("deferred", format!("retry at {at}{unless_running}"));
    }
    if states().any(|s| s == RecipientState::Due) {
        let next = match live.routes.get(name).map(String::as_str) {
            Some("up") => "as soon as a connection is free".into(),
            Some(_) => format!("when {name} is up"),
            None if live.running => format!("never by itself: route {name} is not configured"),
            None => "when the daemon runs".into(),
        };
        return ("waiting", next);
    }
    ("hold", "never by itself: on hold; `restante queue release`".into())
}

fn recipient_json(
    index: usize,
    state: RecipientState,
    active: bool,
    accepted: Option<&Accepted>,
    changed: Option<&Fact>,
) -> Value {
    let addr = accepted.and_then(|a| a.envelope.recipients.get(index)).map_or("?", |r| r.forward_path.as_str());
    let word = match state {
        RecipientState::Due if active => "active",
        RecipientState::Due => "waiting",
        RecipientState::Deferred(_) => "deferred",
        RecipientState::Hold => "hold",
        RecipientState::Sent => "sent",
        RecipientState::Quarantined => "quarantined",
    };
    let next_at = if let RecipientState::Deferred(at) = state { Some(at.to_string()) } else { None };
    let (reply, reason) = last_words(index, state, accepted, changed);
    json!({"addr": addr, "state": word, "last_reply": reply, "next_at": next_at, "reason": reason})
}

/// The remote reply, and why it is on hold or deferred, as the last record that changed the transaction tells it.
fn last_words(
    index: usize,
    state: RecipientState,
    accepted: Option<&Accepted>,
    changed: Option<&Fact>,
) -> (Option<String>, Option<String>) {
    let held = state == RecipientState::Hold;
    match changed {
        Some(Fact::Attempted(attempted)) => {
            let outcome = attempted.results.iter().find(|(n, _)| usize::from(*n) == index).map(|(_, outcome)| outcome);
            let cause = match outcome {
                Some(Outcome::Sent(reply)) => return (Some(reply.to_string()), None),
                Some(Outcome::Deferred { cause, .. } | Outcome::Held(cause) | Outcome::Quarantined(cause)) => cause,
                None => return (None, None),
            };
            match cause {
                Cause::Reply(reply) => (Some(reply.to_string()), held.then(|| reply.to_string())),
                other => (None, Some(other.to_string())),
            }
        }
        Some(Fact::Operated(operated)) if held => (None, Some(format!("{}: {}", operated.actor, operated.reason))),
        _ => (None, accepted.and_then(|a| a.hold.clone()).filter(|_| held)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        let entry = Entry {
            id: TransactionId::from_bits(1),
            route: "r".into(),
            state: "hold",
            next: "when \u{1b}[2J is up".into(),
            from: "a\u{202e}@b".into(),
            size: 1,
            accepted_at: clock::now(),
            to: vec![
                json!({"addr": "x\u{7}@y", "reason": "root: \u{1b}]0;title\u{7}\nforged line"}),
                json!({"addr": "z@y", "last_reply": "550 \r\u{9b}31m"}),
            ],
        };
        let text = entry.in_words();
        assert_eq!(text.lines().count(), 3, "{text:?}");
        assert!(!text.lines().any(|line| printable(line) != line), "{text:?}");
    }

    #[test]
    fn a_reason_in_any_words_survives_the_query() {
        assert_eq!(percent_encoded("a&b=c é\n"), "a%26b%3Dc%20%C3%A9%0A");
        let selector = Selector { ids: Vec::new(), routes: vec!["a".into(), "b&all".into()], all: false };
        assert_eq!(query(&selector), "route=a,b%26all");
    }
}
