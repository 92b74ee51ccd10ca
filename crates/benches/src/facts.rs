//! Facts as the daemon records them: a message from one client to one recipient, and what the primary said to it.

use restante_envelope::{
    BodyType, EnhancedStatus, Envelope, ForwardPath, Protocol, Recipient, Reply, ReversePath, RouteName, Timestamp,
    Trace, TransactionId,
};
use restante_ledger::{Accepted, Attempted, Cause, Fact, NextHop, Outcome, Position, Timings};

/// When the first message is accepted: Sunday, 22 November 2026.
pub(crate) const BEGIN_MS: u64 = 1_795_359_200_000;
/// Bytes of content of every message.
pub(crate) const CONTENT_BYTES: u64 = 4_096;
/// Of the one route.
pub(crate) const ROUTE: &str = "office";

/// `ms` after the first message.
pub(crate) fn at(ms: u64) -> Timestamp {
    Timestamp::from_unix_ms(BEGIN_MS + ms)
}

/// The `n`th message's: one a millisecond, and low bits that look drawn.
pub(crate) fn id(n: u64) -> TransactionId {
    let low = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    TransactionId::from_bits((u128::from(BEGIN_MS + n) << 80) | u128::from(low))
}

/// Where the `n`th record stands.
pub(crate) fn position(n: u64) -> Position {
    Position { segment: 1 + n / 15_000, offset: 4_096 + (n % 15_000) * (CONTENT_BYTES + 320) }
}

/// One recipient, 8-bit content.
pub(crate) fn envelope() -> Envelope {
    let forward_path = ForwardPath::parse("box@example.test").unwrap();
    Envelope::new(
        ReversePath::parse("sender@example.net").unwrap(),
        vec![Recipient::new(forward_path, RouteName::new(ROUTE))],
        BodyType::EightBitMime,
    )
}

/// Over TLS, `ms` after the first message.
pub(crate) fn trace(ms: u64) -> Trace {
    Trace {
        client: "192.0.2.1:41234".parse().unwrap(),
        helo: "mail.example.net".into(),
        protocol: Protocol::Esmtps,
        tls: Some("TLSv1.3 TLS_AES_256_GCM_SHA384".into()),
        session: 4_711,
        received_at: at(ms),
    }
}

/// The `n`th message is accepted.
pub(crate) fn accepted(n: u64) -> Fact {
    let (envelope, trace) = (envelope(), trace(n));
    Fact::Accepted(Accepted { id: id(n), envelope, trace, content_len: CONTENT_BYTES, hold: None })
}

fn attempted(n: u64, outcome: Outcome) -> Fact {
    let (host, tls) = ("mail.example.test".into(), Some("TLSv1.3 TLS_AES_256_GCM_SHA384".into()));
    Fact::Attempted(Attempted {
        id: id(n),
        at: at(n),
        next_hop: Some(NextHop { host, ip: "192.0.2.10".parse().unwrap(), port: 25, tls }),
        timings: Timings { before_queue_ms: 2, in_queue_ms: 40, connect_ms: 3, transfer_ms: 5 },
        results: vec![(0, outcome)],
    })
}

/// The primary took the `n`th message.
pub(crate) fn sent(n: u64) -> Fact {
    let queued = Reply::new(250, Some(EnhancedStatus::new(2, 0, 0)), "Ok: queued as 4bXk2T1cZ9z3tQ");
    attempted(n, Outcome::Sent(queued))
}

/// The primary said a 4xx to the `n`th message; it is tried again `next_ms` after the first message.
pub(crate) fn deferred(n: u64, next_ms: u64) -> Fact {
    let greylisted = Reply::new(450, Some(EnhancedStatus::new(4, 2, 0)), "box@example.test: greylisted, try later");
    attempted(n, Outcome::Deferred { cause: Cause::Reply(greylisted), next_at: at(next_ms) })
}
