//! One line of the delivery log: which fields each event has. Knows no file and no thread.

use super::Range;
use restante_envelope::{RouteName, Timestamp, TransactionId};
use restante_ledger::{Accepted, Attempted, Cause, Fact, Outcome, Position};
use restante_relay::Event;
use restante_smtp::{Counts, RefusedCommand};
use serde_json::{Map, Value};
use std::net::SocketAddr;

/// Recipients named in one line; the count tells how many there are.
const RECIPIENTS_NAMED_MAX: usize = 10;

/// One event, and the fact it tells of.
pub(crate) struct Line {
    pub(super) fields: Map<String, Value>,
    /// Of the fact; none for what is in no journal.
    pub(super) position: Option<Position>,
    /// More lines of the same fact follow: the cursor moves over it with the last one.
    pub(super) continues: bool,
}

impl Line {
    fn new(event: &str, at: Timestamp) -> Self {
        let mut line = Map::new();
        line.insert("type".into(), "log".into());
        line.insert("ts".into(), at.to_string().into());
        line.insert("ev".into(), event.into());
        Self { fields: line, position: None, continues: false }
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

    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(key.into(), value.into());
        self
    }

    fn with_client(self, client: SocketAddr, session: u64) -> Self {
        self.with("sid", format!("{session:x}")).with("client_ip", client.ip().to_string())
    }

    pub(crate) fn connect(client: SocketAddr, session: u64) -> Self {
        Self::new("connect", crate::clock::now()).with_client(client, session)
    }

    pub(crate) fn disconnect(client: SocketAddr, session: u64, counts: &Counts, why: Option<String>) -> Self {
        let line = Self::new("disconnect", crate::clock::now())
            .with_client(client, session)
            .with("accepted", counts.accepted)
            .with("refused", counts.refused)
            .with("size", counts.bytes);
        why.into_iter().fold(line, |line, why| line.with("why", why))
    }

    pub(crate) fn rejected(client: SocketAddr, session: u64, refusal: &RefusedCommand) -> Self {
        let mut line = Self::new("rejected", crate::clock::now())
            .with_client(client, session)
            .with("stage", refusal.stage.as_str())
            .with_reply(&refusal.reply);
        for (key, value) in [("helo", &refusal.helo), ("from", &refusal.reverse_path), ("to", &refusal.forward_path)] {
            if let Some(value) = value {
                line = line.with(key, value.as_str());
            }
        }
        line
    }

    pub(crate) fn accepted(accepted: &Accepted) -> Self {
        let named = accepted.envelope.recipients.iter().take(RECIPIENTS_NAMED_MAX);
        let to: Vec<_> = named.map(|r| r.forward_path.as_str()).collect();
        let mut routes: Vec<_> = accepted.envelope.recipients.iter().map(|r| r.route.as_str()).collect();
        routes.sort_unstable();
        routes.dedup();
        let line = Self::new("accepted", accepted.trace.received_at)
            .with("id", accepted.id.to_string())
            .with_client(accepted.trace.client, accepted.trace.session)
            .with("helo", accepted.trace.helo.as_str())
            .with("route", routes.join(","))
            .with("from", accepted.envelope.reverse_path.as_str())
            .with("to", to.join(","))
            .with("nrcpt", accepted.envelope.recipients.len())
            .with("size", accepted.content_len)
            .with("status", "accepted");
        let line = accepted.trace.tls.iter().fold(line, |line, tls| line.with("tls", tls.as_str()));
        accepted.hold.iter().fold(line, |line, why| line.with("status", "hold").with("why", why.as_str()))
    }

    /// The lines of a fact. Without the message it is about they say what is known: nothing that happened goes untold.
    pub(crate) fn of(fact: &Fact, about: Option<&Accepted>) -> Vec<Self> {
        match fact {
            Fact::Accepted(accepted) => vec![Self::accepted(accepted)],
            Fact::Attempted(attempted) => Self::attempted(attempted, about),
            Fact::Operated(operated) => Self::operated(operated, about),
            Fact::Served(_) => Vec::new(),
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
        let mut line = Self::new(event, attempted.at).with("id", attempted.id.to_string()).with_recipient(about, index);
        if let Some(about) = about {
            line = line.with("from", about.envelope.reverse_path.as_str()).with("size", about.content_len);
        }
        let t = &attempted.timings;
        let seconds = |ms: u64| ms as f64 / 1000.0;
        let before = u64::from(t.before_queue_ms);
        let delays = [before, t.in_queue_ms, u64::from(t.connect_ms), u64::from(t.transfer_ms)];
        line = line
            .with("delay_s", seconds(delays.iter().sum()))
            .with("delays", Value::from_iter(delays.map(seconds)))
            .with("status", status);
        if let Some(hop) = &attempted.next_hop {
            line = line
                .with("relay_host", hop.host.as_str())
                .with("relay_ip", hop.ip.to_string())
                .with("relay_port", hop.port);
            line = hop.tls.iter().fold(line, |line, tls| line.with("tls", tls.as_str()));
        }
        match outcome {
            Outcome::Sent(reply) => line.with_reply(reply),
            Outcome::Deferred { cause, next_at } => line.with("next_at", next_at.to_string()).with_cause(cause),
            Outcome::Held(cause) | Outcome::Quarantined(cause) => line.with_cause(cause),
        }
    }

    fn with_recipient(self, about: Option<&Accepted>, index: u16) -> Self {
        match about.and_then(|about| about.envelope.recipients.get(usize::from(index))) {
            Some(to) => self.with("route", to.route.as_str()).with("to", to.forward_path.as_str()),
            None => self,
        }
    }

    fn with_cause(self, cause: &Cause) -> Self {
        match cause {
            Cause::Reply(reply) => self.with_reply(reply),
            other => self.with("why", other.to_string()),
        }
    }

    fn with_reply(self, reply: &restante_envelope::Reply) -> Self {
        let line = self.with("code", reply.code()).with("reply", reply.to_string());
        match reply.enhanced() {
            Some(enhanced) => line.with("dsn", enhanced.to_string()),
            None => line,
        }
    }

    /// A transaction begins to wait: its primary is down.
    pub(crate) fn waiting(id: TransactionId, route: &RouteName, why: &str) -> Self {
        Self::new("waiting", crate::clock::now())
            .with("id", id.to_string())
            .with("route", route.as_str())
            .with("status", "waiting")
            .with("why", why)
    }

    /// One line for each recipient; of a message whose envelope cannot be read, without addresses.
    pub(crate) fn operated(operated: &restante_ledger::Operated, about: Option<&Accepted>) -> Vec<Self> {
        let (event, status) = match operated.action {
            restante_ledger::Action::Hold => ("held", "hold"),
            restante_ledger::Action::Release => ("released", "released"),
        };
        let line = |index: &u16| {
            Self::new(event, operated.at)
                .with("id", operated.id.to_string())
                .with_recipient(about, *index)
                .with("status", status)
                .with("actor", operated.actor.as_str())
                .with("reason", operated.reason.as_str())
        };
        Self::together(operated.recipients.iter().map(line).collect())
    }

    pub(crate) fn primary(event: &Event, at: Timestamp) -> Self {
        let line = Self::new(event.name(), at);
        match event {
            Event::PrimaryUp { route, down_for } => {
                let line = line.with("route", route.as_str());
                down_for.iter().fold(line, |line, down| line.with("down_s", down.as_secs()))
            }
            Event::PrimarySuspect { route, why } | Event::PrimaryDown { route, why } => {
                line.with("route", route.as_str()).with("why", why.as_str())
            }
        }
    }

    /// With the number of messages that wait.
    pub(crate) fn pending(self, messages: u64) -> Self {
        self.with("pending", messages)
    }

    pub(crate) fn recovered(at: Timestamp, state: &str, pending: u64) -> Self {
        Self::new("recovered", at).with("status", state).pending(pending)
    }
}
