//! How much memory a pending message costs, as the operating system counts it: the allocator's overhead is in it. A process of
//! its own with one test, so that nobody else's memory is counted.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use restante_envelope::{
    BodyType, DomainName, Envelope, ForwardPath, Protocol, Recipient, Reply, ReversePath, RouteName, Timestamp, Trace,
    TransactionId,
};
use restante_ledger::{Accepted, Attempted, Cause, Fact, Ledger, Outcome, Position, Timings};
use restante_relay::{Action, Relay, RouteSettings, Routes};
use std::sync::Arc;

/// What the ledger and the schedule may take of the 300 bytes that the whole process has for a pending message.
const BYTES_PER_MESSAGE_MAX: u64 = 200;
/// Between these two numbers of messages it is measured: what is there anyway does not count.
const FEW: u128 = 20_000;
const MANY: u128 = 200_000;

fn now() -> Timestamp {
    Timestamp::from_unix_ms(1_795_359_200_000)
}

/// As the daemon's: milliseconds in front, in order.
fn id(n: u128) -> TransactionId {
    TransactionId::from_bits((u128::from(now().unix_ms()) << 80) + (n << 8))
}

fn position(n: u128) -> Position {
    Position { segment: 1, offset: u64::try_from(n).unwrap() * 1_000 }
}

fn accepted(n: u128) -> Fact {
    Fact::Accepted(Accepted {
        id: id(n),
        envelope: Envelope::new(
            ReversePath::null(),
            vec![Recipient::new(ForwardPath::parse("r@a.test").unwrap(), RouteName::new("a"))],
            BodyType::SevenBit,
        ),
        trace: Trace {
            client: "192.0.2.1:4000".parse().unwrap(),
            helo: "c.test".into(),
            protocol: Protocol::Esmtp,
            tls: None,
            session: 1,
            received_at: now(),
        },
        content_len: 100,
        hold: None,
    })
}

fn attempted(id: TransactionId, outcome: Outcome) -> Fact {
    let timings = Timings::default();
    Fact::Attempted(Attempted { id, at: now(), next_hop: None, timings, results: vec![(0, outcome)] })
}

fn sent() -> Outcome {
    Outcome::Sent(Reply::new(250, None, "ok"))
}

/// Deferred until a time that differs from message to message, as the backoff's jitter makes it.
fn deferred(n: u128) -> Outcome {
    let next_at = 3_600_000 + u64::try_from(n * 7_919 % 720_000).unwrap();
    let cause = Cause::Reply(Reply::new(450, None, "later"));
    Outcome::Deferred { cause, next_at: Timestamp::from_unix_ms(now().unix_ms() + next_at) }
}

fn relay() -> Relay {
    let route = RouteSettings {
        name: RouteName::new("a"),
        domains: vec![DomainName::parse("a.test").unwrap().into()],
        next_hops: Vec::new(),
        recipients: None,
        max_connections: 20,
        attempts_ahead: 20,
        per_minute: None,
        expire: restante_relay::EXPIRE_DEFAULT,
        expire_cap: restante_relay::EXPIRE_CAP_DEFAULT,
    };
    Relay::new(Arc::new(Routes::new(vec![route]).unwrap()), Ledger::new(), 7, now())
}

fn primary_is_up(relay: &mut Relay) {
    assert!(matches!(relay.poll(now()), Some(Action::Probe { .. })));
    relay.probe_ended(&RouteName::new("a"), Ok(()), now());
}

/// Tries what is due until nothing is.
fn deliver(relay: &mut Relay, outcome: impl Fn() -> Outcome) {
    while let Some(Action::Attempt { id, .. }) = relay.poll(now()) {
        relay.apply(position(0), &attempted(id, outcome()), now());
    }
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1_024
}

/// Accepts messages; returns bytes for each of those from `FEW` to `MANY`.
fn cost(relay: &mut Relay, mut accept: impl FnMut(&mut Relay, u128)) -> u64 {
    (0..FEW).for_each(|n| accept(relay, n));
    let before = resident();
    (FEW..MANY).for_each(|n| accept(relay, n));
    resident().saturating_sub(before) / u64::try_from(MANY - FEW).unwrap()
}

#[test]
fn a_backlog_is_small_whatever_it_waits_for_and_its_memory_is_used_again() {
    let mut down = relay();
    let waiting = cost(&mut down, |relay, n| relay.apply(position(n), &accepted(n), now()));
    assert!(waiting <= BYTES_PER_MESSAGE_MAX, "a waiting message takes {waiting} bytes");

    let mut up = relay();
    primary_is_up(&mut up);
    let deferred = cost(&mut up, |relay, n| {
        relay.apply(position(n), &accepted(n), now());
        deliver(relay, || deferred(n));
    });
    assert!(deferred <= BYTES_PER_MESSAGE_MAX, "a deferred message takes {deferred} bytes");

    // All but one in a hundred are sent, in another order than they came; those that stay are everywhere among them.
    for n in (0..MANY).filter(|n| n % 100 != 7) {
        up.apply(position(n), &attempted(id(n * 7_919 % MANY), sent()), now());
    }
    assert_eq!(up.ledger().balance().pending, 2_000);
    let before = resident();
    (MANY..2 * MANY).for_each(|n| up.apply(position(n), &accepted(n), now()));
    let again = resident().saturating_sub(before) / u64::try_from(MANY).unwrap();
    assert!(again <= waiting / 2, "of {waiting} bytes for a message, {again} were not to be had from those that went");
}
