//! What the passing of days does, with a clock that is set, a daemon that is killed, and primaries that stay away: nothing is given up
//! early, nothing is sent twice, and in the end nothing is kept for ever.

use crate::tests::facts::{accepted, attempted, deferred, id, ms, name, operated, place, routes, sent};
use crate::{Action, Event, Relay, RouteState};
use restante_envelope::TransactionId;
use restante_ledger::{Action as Operation, Fact, Ledger};
use std::collections::BTreeSet;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
/// Some time after 1970.
const START_MS: u64 = 20_000 * DAY_MS;

/// One route, minute by minute.
struct Life {
    relay: Relay,
    facts: Vec<Fact>,
    /// As the wall's clock has it; and as it is.
    wall: u64,
    time: u64,
    /// The primary answers probes, and takes mail or puts it off.
    is_there: bool,
    takes: bool,
    sent: BTreeSet<TransactionId>,
    expired: Vec<(TransactionId, u64)>,
    warned: usize,
}

impl Life {
    fn new() -> Self {
        let relay = Relay::new(routes(&[("a", 5, 0)]), Ledger::new(), 7, ms(START_MS));
        let (facts, sent, expired) = (Vec::new(), BTreeSet::new(), Vec::new());
        Self { relay, facts, wall: START_MS, time: 0, is_there: true, takes: true, sent, expired, warned: 0 }
    }

    fn apply(&mut self, fact: Fact) {
        self.relay.apply(place(self.facts.len() as u64 + 1), &fact, ms(self.wall));
        self.facts.push(fact);
    }

    fn accept(&mut self, n: u128) {
        self.apply(accepted(n, &["a"], self.wall, None));
    }

    /// The daemon dies and starts again at once, or after so long.
    fn restart(&mut self, away_ms: u64) {
        let mut ledger = Ledger::new();
        for (n, fact) in (1..).zip(&self.facts) {
            ledger.apply(place(n), fact);
        }
        (self.wall, self.time) = (self.wall + away_ms, self.time + away_ms);
        self.relay = Relay::new(routes(&[("a", 5, 0)]), ledger, 7, ms(self.wall));
        let served = restante_ledger::Served { at: ms(self.wall), ..Default::default() };
        self.apply(Fact::Served(served));
    }

    fn run(&mut self, for_ms: u64) {
        let end = self.time + for_ms;
        while self.time < end {
            self.act();
            self.relay.tick(ms(self.wall));
            self.act();
            (self.wall, self.time) = (self.wall + MINUTE_MS, self.time + MINUTE_MS);
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.relay.poll(ms(self.wall)) {
            match action {
                Action::Probe { route } => {
                    let result = if self.is_there { Ok(()) } else { Err("refused".into()) };
                    self.relay.probe_ended(&route, result, ms(self.wall));
                }
                Action::Attempt { id, recipients, .. } if self.is_there => {
                    let outcome = if self.takes { sent() } else { deferred(self.wall + HOUR_MS) };
                    if self.takes {
                        assert!(self.sent.insert(id), "{id} is sent twice");
                    }
                    let results = recipients.into_iter().map(|index| (index, outcome.clone())).collect();
                    self.apply(attempted(id, self.wall, results));
                }
                Action::Attempt { id, route, .. } => {
                    let why = crate::ConnectionTrouble::NotMade("refused".into());
                    self.relay.attempt_failed(id, &route, why, ms(self.wall));
                }
                Action::Watch(watched) => self.apply(Fact::Watched(watched)),
                Action::Expire { id, recipients, .. } => {
                    self.expired.push((id, self.time));
                    self.apply(operated(id, Operation::Expire, recipients));
                }
                Action::Settle { id, .. } => panic!("{id} is bounced"),
            }
        }
        self.warned += self.relay.take_events().iter().filter(|e| matches!(e, Event::Expiring { .. })).count();
    }
}

#[test]
fn an_outage_of_nine_days_gives_nothing_up_and_a_cap_of_thirty_does() {
    let mut life = Life::new();
    life.run(HOUR_MS);
    life.is_there = false;
    (1..=50).for_each(|n| life.accept(n));
    life.run(9 * DAY_MS);
    assert_eq!((life.expired.len(), life.warned), (0, 0), "the five-day clock ran in an outage");
    life.is_there = true;
    life.run(HOUR_MS);
    assert_eq!((life.sent.len(), life.relay.route_status(ms(life.wall))[0].state), (50, RouteState::Up));
    life.is_there = false;
    (51..=60).for_each(|n| life.accept(n));
    life.run(29 * DAY_MS);
    assert_eq!(life.expired.len(), 0);
    assert!(life.warned > 0, "nobody was warned");
    life.run(2 * DAY_MS);
    assert_eq!(life.expired.len(), 10);
}

#[test]
fn what_the_primary_puts_off_is_given_up_after_five_days_in_which_it_could_be_reached() {
    let mut life = Life::new();
    life.run(HOUR_MS);
    life.takes = false;
    life.accept(1);
    // Two days, then three of an outage, then the rest.
    life.run(2 * DAY_MS);
    life.is_there = false;
    life.run(3 * DAY_MS);
    life.is_there = true;
    life.run(2 * DAY_MS);
    assert_eq!(life.expired, [], "{:?}", life.relay.ledger().watch(&name("a")));
    life.run(DAY_MS + 2 * HOUR_MS);
    let after = life.expired[0].1;
    assert!((8 * DAY_MS..8 * DAY_MS + 3 * HOUR_MS).contains(&after), "after {} h", after / HOUR_MS);
    // It can be had back, as what was removed.
    life.takes = true;
    life.apply(operated(id(1), Operation::Undo, vec![0]));
    life.run(HOUR_MS);
    assert_eq!(life.sent.len(), 1);
}

#[test]
fn a_clock_that_jumps_by_a_day_either_way_gives_nothing_up_early() {
    for jumps in [[true, false], [false, true], [true, true]] {
        let mut life = Life::new();
        life.run(HOUR_MS);
        life.takes = false;
        life.accept(1);
        life.run(2 * DAY_MS);
        for forward in jumps {
            life.wall = if forward { life.wall + DAY_MS } else { life.wall - DAY_MS };
            life.run(DAY_MS);
        }
        life.run(DAY_MS / 2);
        assert_eq!(life.expired, [], "{jumps:?}: given up after four and a half days");
        life.run(5 * DAY_MS);
        assert_eq!(life.expired.len(), 1, "{jumps:?}: kept for ever");
    }
}

#[test]
fn days_in_which_nobody_watched_do_not_count() {
    let mut life = Life::new();
    life.run(HOUR_MS);
    life.takes = false;
    life.accept(1);
    life.run(3 * DAY_MS);
    // The machine is off for four days; then it is killed every few hours.
    life.restart(4 * DAY_MS);
    life.run(HOUR_MS);
    assert_eq!(life.expired, []);
    for _ in 0..5 {
        life.restart(0);
        life.run(6 * HOUR_MS);
    }
    assert_eq!(life.expired, [], "{:?}", life.relay.ledger().watch(&name("a")));
    life.run(2 * DAY_MS);
    assert_eq!(life.expired.len(), 1);
}

#[test]
fn mail_on_hold_has_no_clock() {
    let mut life = Life::new();
    life.run(HOUR_MS);
    life.apply(accepted(1, &["a"], life.wall, Some("a loop")));
    life.run(40 * DAY_MS);
    assert_eq!((life.expired.len(), life.relay.ledger().balance().pending), (0, 1));
}
