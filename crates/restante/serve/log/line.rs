//! One line of the delivery log: which fields each event has. Knows no file and no thread.

use super::Range;
use crate::cli::output;
use restante_envelope::{Recipient, Reply, ReplyClass, RouteName, Timestamp, TransactionId};
use restante_ledger::{Accepted, Attempted, Cause, Fact, NextHop, Outcome, Position, Replayed};
use restante_relay::Event;
use restante_smtp::{Counts, RefusedCommand};
use std::fmt::Display;
use std::io::Write as _;
use std::net::SocketAddr;

/// Recipients named in one line; the count tells how many there are.
const RECIPIENTS_NAMED_MAX: usize = 10;
/// Most lines are shorter: their buffer is made once.
const LINE_BYTES: usize = 384;

/// One event, and the fact it tells of. Rendered where it is made: a map of strings for each line was the greater part of all
/// that this program allocated.
pub(crate) struct Line {
    /// A JSON object, open for the writer's `node`.
    pub(super) text: Vec<u8>,
    pub(super) at: Timestamp,
    /// Of the fact; none for what is in no journal.
    pub(super) position: Option<Position>,
    /// More lines of the same fact follow: the cursor moves over it with the last one.
    pub(super) continues: bool,
}

impl Line {
    fn new(event: &str, at: Timestamp) -> Self {
        let mut text = Vec::with_capacity(LINE_BYTES);
        text.extend_from_slice(b"{\"type\":\"log\"");
        Self { text, at, position: None, continues: false }.plain("ts", at).word("ev", event)
    }

    fn key(&mut self, key: &str) {
        self.text.extend_from_slice(b",\"");
        self.text.extend_from_slice(key.as_bytes());
        self.text.extend_from_slice(b"\":");
    }

    /// Any text.
    fn with(mut self, key: &str, value: &str) -> Self {
        self.key(key);
        if value.bytes().all(|byte| byte < 0x7f) {
            // A string into memory: nothing that could fail.
            let _infallible = serde_json::to_writer(&mut self.text, value);
        } else {
            // The file itself is tailed on terminals, too.
            self.text.extend_from_slice(output::escaped(&serde_json::Value::from(value).to_string()).as_bytes());
        }
        self
    }

    /// A text of letters, digits and marks that JSON gives no meaning to.
    fn plain(mut self, key: &str, value: impl Display) -> Self {
        self.key(key);
        let _infallible = write!(self.text, "\"{value}\"");
        self
    }

    /// As [`Self::plain`], without the formatter.
    fn word(mut self, key: &str, value: &str) -> Self {
        self.key(key);
        self.text.push(b'"');
        self.text.extend_from_slice(value.as_bytes());
        self.text.push(b'"');
        self
    }

    fn number(mut self, key: &str, value: impl Into<u64>) -> Self {
        self.key(key);
        let _infallible = serde_json::to_writer(&mut self.text, &value.into());
        self
    }

    /// The text of the parts, with commas between them.
    fn list<'a>(mut self, key: &str, parts: impl Iterator<Item = &'a str>) -> Self {
        let mut joined = String::new();
        for part in parts {
            if !joined.is_empty() {
                joined.push(',');
            }
            joined.push_str(part);
        }
        self = self.with(key, &joined);
        self
    }

    /// The line of a fact at this position.
    pub(crate) fn at(mut self, position: Position) -> Self {
        self.position = Some(position);
        self
    }

    /// The fact it tells of, as a range.
    pub(super) fn range(&self) -> Option<Range> {
        self.position.map(|position| Range { first: position, last: position })
    }

    /// The lines of one fact.
    fn together(mut lines: Vec<Self>) -> Vec<Self> {
        if let Some((_last, others)) = lines.split_last_mut() {
            others.iter_mut().for_each(|line| line.continues = true);
        }
        lines
    }

    fn with_client(self, client: SocketAddr, session: u64) -> Self {
        self.plain("sid", format_args!("{session:x}")).plain("client_ip", client.ip())
    }

    pub(crate) fn connect(client: SocketAddr, session: u64) -> Self {
        Self::new("connect", crate::clock::now()).with_client(client, session)
    }

    /// Before there was a session.
    pub(crate) fn turned_away(client: SocketAddr, reply: &Reply) -> Self {
        Self::new("rejected", crate::clock::now()).with_client(client, 0).word("stage", "connect").with_reply(reply)
    }

    pub(crate) fn disconnect(client: SocketAddr, session: u64, counts: &Counts, why: Option<String>) -> Self {
        let line = Self::new("disconnect", crate::clock::now())
            .with_client(client, session)
            .number("accepted", counts.accepted)
            .number("refused", counts.refused)
            .number("size", counts.bytes);
        why.iter().fold(line, |line, why| line.with("why", why))
    }

    pub(crate) fn rejected(client: SocketAddr, session: u64, refusal: &RefusedCommand) -> Self {
        let mut line = Self::new("rejected", crate::clock::now())
            .with_client(client, session)
            .word("stage", refusal.stage.as_str())
            .with_reply(&refusal.reply);
        for (key, value) in [("helo", &refusal.helo), ("from", &refusal.reverse_path), ("to", &refusal.forward_path)] {
            if let Some(value) = value {
                line = line.with(key, value.as_str());
            }
        }
        line
    }

    pub(crate) fn accepted(accepted: &Accepted) -> Self {
        let Accepted { trace, envelope, .. } = accepted;
        let named = envelope.recipients.iter().take(RECIPIENTS_NAMED_MAX);
        let line = Self::new("accepted", trace.received_at)
            .plain("id", accepted.id)
            .with_client(trace.client, trace.session)
            .with("helo", &trace.helo)
            .list("route", routes(&envelope.recipients).into_iter())
            .with("from", envelope.reverse_path.as_str())
            .list("to", named.map(|r| r.forward_path.as_str()))
            .number("nrcpt", envelope.recipients.len() as u64)
            .number("size", accepted.content_len)
            .word("status", if accepted.hold.is_some() { "hold" } else { "accepted" });
        let line = trace.tls.iter().fold(line, |line, tls| line.with("tls", tls));
        accepted.hold.iter().fold(line, |line, why| line.with("why", why))
    }

    /// The lines of a fact. Without the message it is about they say what is known: nothing that happened goes untold.
    pub(crate) fn of(fact: &Fact, about: Option<&Accepted>) -> Vec<Self> {
        match fact {
            Fact::Accepted(accepted) => vec![Self::accepted(accepted)],
            Fact::Attempted(attempted) => Self::attempted(attempted, about),
            Fact::Operated(operated) => Self::operated(operated, about),
            Fact::Replayed(replayed) => Self::replayed(replayed, about),
            Fact::Served(_) | Fact::Watched(_) | Fact::Carried(_) => Vec::new(),
        }
    }

    /// One line for each recipient tried; of a message whose envelope cannot be read, without addresses.
    pub(crate) fn attempted(attempted: &Attempted, about: Option<&Accepted>) -> Vec<Self> {
        let result = |(index, outcome): &(u16, Outcome)| Self::result(attempted, about, *index, outcome);
        Self::together(attempted.results.iter().map(result).collect())
    }

    fn result(attempted: &Attempted, about: Option<&Accepted>, index: u16, outcome: &Outcome) -> Self {
        let (event, status) = match outcome {
            Outcome::Sent(_) => ("sent", "sent"),
            Outcome::Deferred { .. } => ("deferred", "deferred"),
            Outcome::Held(_) => ("held", "hold"),
            Outcome::Quarantined(_) => ("quarantined", "quarantined"),
        };
        let mut line = Self::new(event, attempted.at).plain("id", attempted.id).with_recipient(about, index);
        if let Some(about) = about {
            line = line.with("from", about.envelope.reverse_path.as_str()).number("size", about.content_len);
        }
        let t = &attempted.timings;
        let seconds = |ms: u64| ms as f64 / 1000.0;
        let before = u64::from(t.before_queue_ms);
        let delays = [before, t.in_queue_ms, u64::from(t.connect_ms), u64::from(t.transfer_ms)];
        for (key, value) in [("delay_s", &[seconds(delays.iter().sum())][..]), ("delays", &delays.map(seconds))] {
            line.key(key);
            let _infallible = match value {
                [one] => serde_json::to_writer(&mut line.text, one),
                all => serde_json::to_writer(&mut line.text, all),
            };
        }
        line = line.word("status", status);
        line = line.with_next_hop(attempted.next_hop.as_ref());
        match outcome {
            Outcome::Sent(reply) => line.with_reply(reply),
            Outcome::Deferred { cause, next_at } => line.plain("next_at", next_at).with_cause(cause),
            Outcome::Held(cause) | Outcome::Quarantined(cause) => line.with_cause(cause),
        }
    }

    fn with_recipient(self, about: Option<&Accepted>, index: u16) -> Self {
        match about.and_then(|about| about.envelope.recipients.get(usize::from(index))) {
            Some(to) => self.with("route", to.route.as_str()).with("to", to.forward_path.as_str()),
            None => self,
        }
    }

    fn with_next_hop(self, next_hop: Option<&NextHop>) -> Self {
        let Some(hop) = next_hop else { return self };
        let line = self.with("relay_host", &hop.host).plain("relay_ip", hop.ip).number("relay_port", hop.port);
        hop.tls.iter().fold(line, |line, tls| line.with("tls", tls))
    }

    fn with_cause(self, cause: &Cause) -> Self {
        match cause {
            Cause::Reply(reply) | Cause::Content(reply) => self.with_reply(reply),
            other => self.with("why", &other.to_string()),
        }
    }

    fn with_reply(self, reply: &Reply) -> Self {
        let line = self.number("code", reply.code()).with("reply", &reply.to_string());
        match reply.enhanced() {
            Some(enhanced) => line.plain("dsn", enhanced),
            None => line,
        }
    }

    /// A transaction begins to wait: its primary is down.
    pub(crate) fn waiting(id: TransactionId, route: &RouteName, why: &str) -> Self {
        Self::new("waiting", crate::clock::now())
            .plain("id", id)
            .with("route", route.as_str())
            .word("status", "waiting")
            .with("why", why)
    }

    /// One line for each recipient; of a message whose envelope cannot be read, without addresses.
    pub(crate) fn operated(operated: &restante_ledger::Operated, about: Option<&Accepted>) -> Vec<Self> {
        let (event, status) = match operated.action {
            restante_ledger::Action::Hold => ("held", "hold"),
            restante_ledger::Action::Release => ("released", "released"),
            restante_ledger::Action::Bounce | restante_ledger::Action::Settle => ("bounced", "bounced"),
            restante_ledger::Action::Expire => ("expired", "expired"),
            restante_ledger::Action::Remove => ("removed", "removed"),
            restante_ledger::Action::Undo => ("undone", "waiting"),
        };
        let line = |index: &u16| {
            Self::new(event, operated.at)
                .plain("id", operated.id)
                .with_recipient(about, *index)
                .word("status", status)
                .with("actor", &operated.actor)
                .with("reason", &operated.reason)
        };
        Self::together(operated.recipients.iter().map(line).collect())
    }

    /// One line for each recipient, as of an attempt; by whose order, and in which replay.
    pub(crate) fn replayed(replayed: &Replayed, about: Option<&Accepted>) -> Vec<Self> {
        let line = |(index, reply): &(u16, Reply)| {
            Self::new("replayed", replayed.at)
                .plain("id", replayed.id)
                .with_recipient(about, *index)
                .word("status", if reply.class() == ReplyClass::Positive { "replayed" } else { "refused" })
                .with_next_hop(replayed.next_hop.as_ref())
                .with_reply(reply)
                .plain("job", format_args!("{:016x}", replayed.job))
                .with("actor", &replayed.actor)
                .with("reason", &replayed.reason)
        };
        Self::together(replayed.results.iter().map(line).collect())
    }

    pub(crate) fn primary(event: &Event, at: Timestamp) -> Self {
        let line = Self::new(event.name(), at);
        match event {
            Event::PrimaryUp { route, down_for } | Event::PrimaryRecovering { route, down_for } => {
                let line = line.with("route", route.as_str());
                down_for.iter().fold(line, |line, down| line.number("down_s", down.as_secs()))
            }
            Event::PrimarySuspect { route, why }
            | Event::PrimaryDown { route, why }
            | Event::SlowedDown { route, why } => line.with("route", route.as_str()).with("why", why),
            Event::DrainStarted { route, messages } => line.with("route", route.as_str()).number("messages", *messages),
            Event::DrainFinished { route, messages, took } => {
                line.with("route", route.as_str()).number("messages", *messages).number("took_s", took.as_secs())
            }
            Event::BreakerTripped { route, why } => {
                line.with("route", route.as_str()).word("status", "tripped").with("why", why)
            }
            Event::Expiring { route, messages } => line.with("route", route.as_str()).number("messages", *messages),
            Event::BreakerReset { route } => line.with("route", route.as_str()).word("status", "reset"),
        }
    }

    /// With the number of messages that wait.
    pub(crate) fn pending(self, messages: u64) -> Self {
        self.number("pending", messages)
    }

    pub(crate) fn recovered(at: Timestamp, state: &str, pending: u64) -> Self {
        Self::new("recovered", at).word("status", state).pending(pending)
    }
}

/// Each of them once, in order.
fn routes(recipients: &[Recipient]) -> Vec<&str> {
    let mut routes: Vec<&str> = recipients.iter().map(|r| r.route.as_str()).collect();
    routes.sort_unstable();
    routes.dedup();
    routes
}
