//! Short ways to write facts and routes.

use crate::{RouteSettings, Routes};
use restante_envelope::{
    BodyType, DomainName, Envelope, ForwardPath, Protocol, Recipient, Reply, ReversePath, RouteName, Timestamp, Trace,
    TransactionId,
};
use restante_ledger::{Accepted, Action, Attempted, Cause, Fact, Operated, Outcome, Position, RecipientIndex, Timings};
use std::sync::Arc;

pub(crate) fn id(n: u128) -> TransactionId {
    TransactionId::from_bits(n)
}

pub(crate) fn ms(ms: u64) -> Timestamp {
    Timestamp::from_unix_ms(ms)
}

pub(crate) fn name(route: &str) -> RouteName {
    RouteName::new(route)
}

/// By name, connections, and a number in the name of its next hop.
pub(crate) fn routes(list: &[(&str, usize, u32)]) -> Arc<Routes> {
    let settings = |(route, max_connections, n): &(&str, usize, u32)| RouteSettings {
        name: name(route),
        domains: vec![DomainName::parse(&format!("{route}.test")).unwrap().into()],
        next_hops: vec![format!("mail{n}.{route}.test:25")],
        recipients: None,
        max_connections: *max_connections,
        attempts_ahead: 0,
        per_minute: None,
        expire: crate::EXPIRE_DEFAULT,
        expire_cap: crate::EXPIRE_CAP_DEFAULT,
    };
    Arc::new(Routes::new(list.iter().map(settings).collect()).unwrap())
}

/// A message of 100 bytes with one recipient on each of `routes`, always the same.
pub(crate) fn accepted(n: u128, routes: &[&str], at: u64, hold: Option<&str>) -> Fact {
    accepted_for("r", n, routes, at, hold)
}

/// The same for this mailbox.
pub(crate) fn accepted_for(local: &str, n: u128, routes: &[&str], at: u64, hold: Option<&str>) -> Fact {
    let path = |route: &str| ForwardPath::parse(&format!("{local}@{route}.test")).unwrap();
    let recipient = |route: &&str| Recipient::new(path(route), name(route));
    Fact::Accepted(Accepted {
        id: id(n),
        envelope: Envelope::new(ReversePath::null(), routes.iter().map(recipient).collect(), BodyType::SevenBit),
        trace: Trace {
            client: "192.0.2.1:4000".parse().unwrap(),
            helo: "c.test".into(),
            protocol: Protocol::Esmtp,
            tls: None,
            session: 1,
            received_at: ms(at),
        },
        content_len: 100,
        hold: hold.map(Into::into),
    })
}

pub(crate) fn attempted(id: TransactionId, at: u64, results: Vec<(RecipientIndex, Outcome)>) -> Fact {
    Fact::Attempted(Attempted { id, at: ms(at), next_hop: None, timings: Timings::default(), results })
}

pub(crate) fn operated(id: TransactionId, action: Action, recipients: Vec<RecipientIndex>) -> Fact {
    let (actor, reason) = ("op".into(), "test".into());
    Fact::Operated(Operated { id, at: ms(0), action, recipients, actor, reason })
}

pub(crate) fn sent() -> Outcome {
    Outcome::Sent(Reply::new(250, None, "ok"))
}

pub(crate) fn deferred(next_at: u64) -> Outcome {
    Outcome::Deferred { cause: Cause::Reply(Reply::new(450, None, "later")), next_at: ms(next_at) }
}

pub(crate) fn held() -> Outcome {
    Outcome::Held(Cause::Reply(Reply::new(550, None, "no")))
}

pub(crate) fn place(n: u64) -> Position {
    Position { segment: 1, offset: n }
}
