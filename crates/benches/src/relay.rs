//! The schedule of one route with 10,000 and 100,000 messages pending, which each round leaves as many as there were.

use crate::facts::{self, ROUTE};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use restante_envelope::{DomainName, RouteName};
use restante_ledger::{Fact, Ledger};
use restante_relay::{Action, MAX_CONNECTIONS_DEFAULT, Relay, RouteSettings, Routes};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Messages between two looks at the clock.
const ROUND: u64 = 500;

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("relay: apply and poll");
    group.throughput(Throughput::Elements(1)).sample_size(20);
    for pending in [10_000, 100_000] {
        let name = if pending == 10_000 { "10,000 pending" } else { "100,000 pending" };
        accept_while_down(&mut group, name, pending);
        drain(&mut group, name, pending);
        defer(&mut group, name, pending);
    }
    group.finish();
}

/// One route, everything in `ledger` scheduled, the primary probed with this result.
fn relay(ledger: Ledger, probe: Result<(), String>) -> Relay {
    let settings = RouteSettings {
        name: RouteName::new(ROUTE),
        domains: vec![DomainName::parse("example.test").unwrap().into()],
        next_hops: vec!["mail.example.test:25".into()],
        recipients: None,
        max_connections: MAX_CONNECTIONS_DEFAULT,
        attempts_ahead: 0,
        per_minute: None,
        expire: restante_relay::EXPIRE_DEFAULT,
        expire_cap: restante_relay::EXPIRE_CAP_DEFAULT,
    };
    let routes = Arc::new(Routes::new(vec![settings]).unwrap());
    let mut relay = Relay::new(routes, ledger, 7, facts::at(0));
    assert!(matches!(relay.poll(facts::at(0)), Some(Action::Probe { .. })));
    relay.probe_ended(&RouteName::new(ROUTE), probe, facts::at(0));
    relay
}

/// A ledger with these messages pending.
fn ledger(pending: u64, after: impl Fn(u64) -> Option<Fact>) -> Ledger {
    let mut ledger = Ledger::new();
    for n in 0..pending {
        ledger.apply(facts::position(n), &facts::accepted(n));
        if let Some(fact) = after(n) {
            ledger.apply(facts::position(n), &fact);
        }
    }
    ledger
}

/// Times `round` for as many messages as criterion asks for; `before` gives it what it needs, and its time does not count.
fn rounds<T>(iterations: u64, mut before: impl FnMut(u64) -> T, mut round: impl FnMut(&T)) -> Duration {
    let (mut left, mut took) = (iterations, Duration::ZERO);
    while left > 0 {
        let messages = left.min(ROUND);
        let input = before(messages);
        let began = Instant::now();
        round(&input);
        took += began.elapsed();
        left -= messages;
    }
    took
}

/// What M1 of the peers' benchmark asks of the relay: mail is accepted, and nothing can be done for it.
fn accept_while_down(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, pending: u64) {
    group.bench_function(BenchmarkId::new("accepted, primary down", name), |bencher| {
        let mut relay = relay(ledger(pending, |_| None), Err("connection refused".into()));
        let next = std::cell::Cell::new(pending);
        bencher.iter_custom(|iterations| {
            let relay = std::cell::RefCell::new(&mut relay);
            rounds(
                iterations,
                |messages| {
                    let mut relay = relay.borrow_mut();
                    // Out go those of the round before, so that there are never many more than at first.
                    let first = next.get();
                    (first.saturating_sub(ROUND).max(pending)..first)
                        .for_each(|n| relay.apply(facts::position(n), &facts::sent(n), facts::at(1)));
                    next.set(first + messages);
                    (first..first + messages).map(facts::accepted).collect::<Vec<Fact>>()
                },
                |accepted| {
                    let mut relay = relay.borrow_mut();
                    for (n, fact) in (0..).zip(accepted) {
                        relay.apply(facts::position(n), black_box(fact), facts::at(1));
                        assert!(relay.poll(facts::at(1)).is_none());
                    }
                    assert!(relay.ledger().get(facts::id(next.get() - 1)).is_some(), "the last one is pending");
                },
            )
        });
        black_box(&relay);
    });
}

/// An outage is over: the oldest is handed over, and another one comes in.
fn drain(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, pending: u64) {
    group.bench_function(BenchmarkId::new("waiting: attempted, sent, one more accepted", name), |bencher| {
        let mut relay = relay(ledger(pending, |_| None), Ok(()));
        let mut oldest = 0;
        bencher.iter_custom(|iterations| {
            let before = |messages| {
                let first = oldest;
                oldest += messages;
                (first..oldest)
                    .map(|n| (facts::id(n), facts::sent(n), facts::accepted(n + pending)))
                    .collect::<Vec<_>>()
            };
            rounds(iterations, before, |messages| {
                for (n, (id, sent, accepted)) in (0..).zip(messages) {
                    attempts(&mut relay, *id, 1);
                    relay.apply(facts::position(n), black_box(sent), facts::at(1));
                    relay.apply(facts::position(n), black_box(accepted), facts::at(1));
                }
            })
        });
        black_box(&relay);
    });
}

/// All are deferred, each for another millisecond; the first is tried and deferred behind the last.
fn defer(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, pending: u64) {
    group.bench_function(BenchmarkId::new("deferred: woken, attempted, deferred again", name), |bencher| {
        let deferred = ledger(pending, |n| Some(facts::deferred(n, n)));
        let (mut relay, mut turn) = (relay(deferred, Ok(())), 0);
        bencher.iter_custom(|iterations| {
            let before = |messages| {
                let first = turn;
                turn += messages;
                let again =
                    |turn: u64| (turn, facts::id(turn % pending), facts::deferred(turn % pending, turn + pending));
                (first..turn).map(again).collect::<Vec<_>>()
            };
            rounds(iterations, before, |messages| {
                for (turn, id, again) in messages {
                    attempts(&mut relay, *id, *turn);
                    relay.apply(facts::position(*turn), black_box(again), facts::at(*turn));
                }
            })
        });
        black_box(&relay);
    });
}

/// The relay names this transaction as the next to be tried.
fn attempts(relay: &mut Relay, expected: restante_envelope::TransactionId, now_ms: u64) {
    match relay.poll(facts::at(now_ms)) {
        Some(Action::Attempt { id, .. }) => assert_eq!(id, expected),
        other => panic!("expected an attempt of {expected}: {other:?}"),
    }
}
