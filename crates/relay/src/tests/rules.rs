//! Each rule of the schedule, named by what would go wrong without it.

use crate::tests::facts::{
    accepted, accepted_for, attempted, deferred, held, id, ms, name, operated, place, routes, sent,
};
use crate::{Action, ConnectionTrouble, Event, Flush, Relay, RouteSettings, RouteState, Routes, TransactionState};
use restante_envelope::Timestamp;
use restante_ledger::{Action as Operation, Cause, Fact, Ledger, Outcome};
use std::sync::Arc;
use std::time::Duration;

/// A relay under test, and a count of facts for their positions.
struct Bench {
    relay: Relay,
    facts: u64,
}

impl Bench {
    fn new(list: &[(&str, usize, u32)]) -> Self {
        Self { relay: Relay::new(routes(list), Ledger::new(), 7, ms(0)), facts: 0 }
    }

    /// One route `a`, found up at time 0, that has taken mail for somebody else, so much that it may have all connections.
    fn up(max_connections: usize) -> Self {
        let mut bench = Self::new(&[("a", max_connections, 0)]);
        assert_eq!(bench.polled(0), ["probe a"]);
        bench.relay.probe_ended(&name("a"), Ok(()), ms(0));
        bench.warm(0);
        bench
    }

    fn warm(&mut self, now: u64) {
        for n in 1_000_000..1_000_030 {
            self.apply(&accepted_for("somebody", n, &["a"], 0, None), now);
            self.apply(&attempted(id(n), now, vec![(0, sent())]), now);
        }
        self.relay.take_events();
    }

    fn apply(&mut self, fact: &Fact, now: u64) {
        self.facts += 1;
        self.relay.apply(place(self.facts), fact, ms(now));
    }

    /// All actions at `now`, as `probe ROUTE` and `ID ROUTE [RECIPIENTS] #ATTEMPT`.
    fn polled(&mut self, now: u64) -> Vec<String> {
        let mut actions = Vec::new();
        while let Some(action) = self.relay.poll(ms(now)) {
            actions.push(match action {
                Action::Probe { route } => format!("probe {route}"),
                Action::Attempt { id, route, recipients, attempt, .. } => {
                    format!("{} {route} {recipients:?} #{attempt}", id.to_bits())
                }
                // Tested in `lifetimes`.
                Action::Watch(_) => continue,
                Action::Expire { id, .. } => format!("expire {}", id.to_bits()),
                Action::Settle { id, recipients, reason, .. } => {
                    format!("settle {} {recipients:?}: {reason}", id.to_bits())
                }
            });
        }
        actions
    }

    fn broke(&mut self, n: u128, now: u64) {
        self.relay.attempt_failed(id(n), &name("a"), ConnectionTrouble::Broke("reset".into()), ms(now));
    }

    fn probe(&mut self, result: Result<(), &str>, now: u64) {
        self.relay.probe_ended(&name("a"), result.map_err(Into::into), ms(now));
    }

    /// Answers probes from now on until they are enough; returns when they were.
    fn up_again(&mut self, mut now: u64) -> u64 {
        loop {
            self.probe(Ok(()), now);
            let Some(next) = self.relay.route_status(ms(now))[0].next_probe else { return now };
            now = next.unix_ms();
            assert_eq!(self.polled(now), ["probe a"]);
        }
    }

    fn state(&self, n: u128, route: &str) -> Option<(TransactionState, String)> {
        self.relay.transaction_state(id(n), &name(route)).map(|view| (view.state, view.next))
    }

    fn counts(&self) -> [u64; 4] {
        let counts = self.relay.route_status(ms(0))[0].counts;
        [counts.active, counts.deferred, counts.waiting, counts.hold]
    }
}

#[test]
fn nothing_is_sent_before_the_primary_is_known_to_be_up() {
    let mut bench = Bench::new(&[("a", 2, 0)]);
    bench.apply(&accepted(1, &["a"], 0, None), 0);
    assert_eq!(bench.polled(0), ["probe a"]);
    assert_eq!(bench.polled(60_000), [""; 0], "one probe is enough");
    assert_eq!(bench.relay.poll_timeout(), None);
    bench.probe(Ok(()), 60_000);
    assert_eq!(bench.polled(60_000), ["1 a [0] #1"]);
    assert_eq!(bench.relay.take_events(), [Event::PrimaryRecovering { route: name("a"), down_for: None }]);
}

#[test]
fn mail_goes_in_order_of_acceptance_and_within_the_limit() {
    let mut bench = Bench::up(2);
    for n in [3, 1, 2] {
        bench.apply(&accepted(n, &["a"], 0, None), 0);
    }
    assert_eq!(bench.polled(0), ["1 a [0] #1", "2 a [0] #1"]);
    assert_eq!(bench.relay.poll_timeout(), None, "no slot is free: nothing to wake for");
    bench.apply(&attempted(id(2), 5, vec![(0, sent())]), 5);
    assert_eq!(bench.relay.poll_timeout(), Some(Timestamp::default()));
    assert_eq!(bench.polled(5), ["3 a [0] #1"]);
}

#[test]
fn a_connection_has_its_next_message_at_hand_and_no_more_than_that() {
    let settings = RouteSettings { attempts_ahead: 1, ..routes(&[("a", 2, 0)]).get(&name("a")).unwrap().clone() };
    let routes = Arc::new(Routes::new(vec![settings]).unwrap());
    let mut bench = Bench { relay: Relay::new(routes, Ledger::new(), 7, ms(0)), facts: 0 };
    for n in 1..=5 {
        bench.apply(&accepted(n, &["a"], 0, None), 0);
    }
    bench.polled(0);
    bench.probe(Ok(()), 0);
    bench.warm(0);
    assert_eq!(bench.polled(0), ["1 a [0] #1", "2 a [0] #1", "3 a [0] #1"]);
    // The third never got a connection: it keeps its turn, however often.
    for _ in 0..9 {
        bench.relay.attempt_outdated(id(3), &name("a"));
        assert_eq!(bench.polled(0), ["3 a [0] #1"]);
    }
    bench.apply(&attempted(id(1), 5, vec![(0, sent())]), 5);
    assert_eq!(bench.polled(5), ["4 a [0] #1"]);
}

#[test]
fn recipients_on_two_routes_do_not_wait_for_each_other() {
    let mut bench = Bench::new(&[("a", 1, 0), ("b", 1, 0)]);
    bench.apply(&accepted(1, &["a", "b", "a"], 0, None), 0);
    assert_eq!(bench.polled(0), ["probe a", "probe b"]);
    bench.relay.probe_ended(&name("b"), Ok(()), ms(0));
    assert_eq!(bench.polled(0), ["1 b [1] #1"]);
    assert_eq!(bench.state(1, "a"), Some((TransactionState::Waiting, "when a is up".into())));
    bench.probe(Ok(()), 1);
    assert_eq!(bench.polled(1), ["1 a [0, 2] #1"]);
    bench.apply(&attempted(id(1), 2, vec![(1, sent())]), 2);
    assert_eq!(bench.state(1, "a"), Some((TransactionState::Active, "being delivered now".into())));
    assert_eq!(bench.state(1, "b"), None);
    assert_eq!(bench.polled(2), [""; 0]);
    bench.apply(&attempted(id(1), 3, vec![(0, sent()), (2, sent())]), 3);
    assert!(bench.relay.route_status(ms(3)).iter().all(|s| (s.pending, s.bytes, s.oldest) == (0, 0, None)));
}

#[test]
fn a_deferred_recipient_is_tried_when_due_and_alone() {
    let mut bench = Bench::up(1);
    bench.apply(&accepted(1, &["a", "a", "a"], 0, None), 0);
    assert_eq!(bench.polled(0), ["1 a [0, 1, 2] #1"]);
    bench.apply(&attempted(id(1), 1, vec![(0, sent()), (1, deferred(60_000)), (2, deferred(70_000))]), 1);
    assert_eq!(bench.relay.poll_timeout(), Some(ms(60_000)));
    assert_eq!(bench.state(1, "a"), Some((TransactionState::Deferred, "retry at 1970-01-01T00:01:00.000Z".into())));
    assert_eq!(bench.polled(59_999), [""; 0]);
    assert_eq!(bench.polled(60_000), ["1 a [1] #2"]);
    bench.apply(&attempted(id(1), 60_001, vec![(1, sent())]), 60_001);
    assert_eq!(bench.polled(70_000), ["1 a [2] #2"]);
}

#[test]
fn a_recipient_left_out_of_the_record_is_due_again() {
    let mut bench = Bench::up(1);
    bench.apply(&accepted(1, &["a", "a"], 0, None), 0);
    bench.polled(0);
    bench.apply(&attempted(id(1), 1, vec![(0, sent())]), 1);
    assert_eq!(bench.polled(1), ["1 a [1] #1"]);
}

#[test]
fn one_broken_connection_stops_all_attempts_until_a_probe_succeeds() {
    let mut bench = Bench::up(2);
    for n in 1..=3 {
        bench.apply(&accepted(n, &["a"], 0, None), 0);
    }
    bench.polled(0);
    bench.broke(1, 100);
    bench.broke(2, 200);
    assert_eq!(bench.relay.take_events(), [Event::PrimarySuspect { route: name("a"), why: "reset".into() }]);
    assert_eq!(bench.polled(200), [""; 0]);
    assert_eq!(bench.relay.poll_timeout(), Some(ms(1_100)));
    assert_eq!(bench.polled(1_100), ["probe a"]);
    bench.probe(Err("refused"), 1_100);
    let status = &bench.relay.route_status(ms(1_200))[0];
    assert_eq!((status.state, status.reason.as_str(), status.since), (RouteState::Down, "refused", ms(1_100)));
    assert_eq!(bench.relay.take_events(), [Event::PrimaryDown { route: name("a"), why: "refused".into() }]);
    let next = bench.relay.poll_timeout().unwrap();
    assert!((ms(1_280)..=ms(1_420)).contains(&next), "{next}");
    assert_eq!(bench.polled(next.unix_ms()), ["probe a"]);
    let up = bench.up_again(4_100);
    let down_for = Some(Duration::from_millis(up - 100));
    assert_eq!(bench.relay.take_events(), [Event::PrimaryRecovering { route: name("a"), down_for }]);
    assert_eq!(bench.polled(up), ["1 a [0] #1"], "in turn, as if nothing had been tried, and one as a canary");
    bench.apply(&attempted(id(1), up, vec![(0, sent())]), up);
    assert_eq!(bench.relay.take_events(), [Event::DrainStarted { route: name("a"), messages: 3 }]);
    assert_eq!(bench.polled(up), ["2 a [0] #1", "3 a [0] #1"]);
    for n in 2..=3 {
        bench.apply(&attempted(id(n), up + 9, vec![(0, sent())]), up + 9);
    }
    let route = || name("a");
    let finished = Event::DrainFinished { route: route(), messages: 3, took: Duration::from_millis(9) };
    assert_eq!(bench.relay.take_events(), [finished, Event::PrimaryUp { route: route(), down_for }]);
}

#[test]
fn an_answer_lost_after_the_final_dot_makes_the_primary_suspect() {
    let mut bench = Bench::up(1);
    bench.apply(&accepted(1, &["a"], 0, None), 0);
    bench.polled(0);
    let in_doubt = Outcome::Deferred { cause: Cause::InDoubt("reset".into()), next_at: ms(60_000) };
    bench.apply(&attempted(id(1), 10, vec![(0, in_doubt)]), 10);
    assert_eq!(bench.relay.route_status(ms(10))[0].state, RouteState::Suspect);
    assert_eq!(bench.polled(1_010), ["probe a"]);
}

#[test]
fn a_message_that_breaks_every_connection_lets_others_pass() {
    let mut bench = Bench::up(1);
    bench.apply(&accepted(1, &["a"], 0, None), 0);
    bench.apply(&accepted(2, &["a"], 0, None), 0);
    let mut now = 0;
    for _ in 0..3 {
        assert_eq!(bench.polled(now), ["1 a [0] #1"]);
        bench.broke(1, now);
        now += 1_000;
        assert_eq!(bench.polled(now), ["probe a"]);
        now = bench.up_again(now);
    }
    assert_eq!(bench.polled(now), ["2 a [0] #1"]);
    bench.apply(&attempted(id(2), now, vec![(0, sent())]), now);
    assert_eq!(bench.state(1, "a").unwrap().0, TransactionState::Deferred);
    assert!((54_000..70_000).contains(&bench.relay.poll_timeout().unwrap().unix_ms()));
    assert_eq!(bench.relay.flush(Flush::All, ms(now)), 1);
    assert_eq!(bench.polled(now), ["1 a [0] #1"]);
}

#[test]
fn a_primary_that_is_not_there_is_no_messages_fault_however_often() {
    let mut bench = Bench::up(1);
    bench.apply(&accepted(1, &["a"], 0, None), 0);
    let mut now = 0;
    for _ in 0..100 {
        assert_eq!(bench.polled(now).last().unwrap(), "1 a [0] #1");
        bench.relay.attempt_failed(id(1), &name("a"), ConnectionTrouble::NotMade("refused".into()), ms(now));
        assert_eq!(bench.polled(now + 1_000), ["probe a"]);
        now = bench.up_again(now + 1_000);
    }
}

#[test]
fn a_late_report_of_an_attempt_already_over_changes_nothing() {
    let mut bench = Bench::up(1);
    bench.apply(&accepted(1, &["a"], 0, None), 0);
    bench.polled(0);
    bench.apply(&attempted(id(1), 1, vec![(0, deferred(60_000))]), 1);
    bench.broke(1, 2);
    bench.relay.attempt_failed(id(1), &name("x"), ConnectionTrouble::NotMade("?".into()), ms(2));
    assert_eq!(bench.relay.take_events(), []);
    assert_eq!((bench.polled(2), bench.counts()), (vec![], [0, 1, 0, 0]));
}

#[test]
fn mail_on_hold_never_moves_by_itself() {
    let mut bench = Bench::up(9);
    bench.apply(&accepted(1, &["a"], 0, Some("loop")), 0);
    bench.apply(&accepted(2, &["a"], 0, None), 0);
    bench.apply(&operated(id(2), Operation::Hold, vec![0]), 0);
    bench.apply(&accepted(3, &["a"], 0, None), 0);
    assert_eq!(bench.polled(0), ["3 a [0] #1"]);
    bench.apply(&attempted(id(3), 1, vec![(0, held())]), 1);
    assert_eq!((bench.relay.flush(Flush::All, ms(1)), bench.relay.flush(Flush::Transaction(id(1)), ms(1))), (0, 0));
    assert_eq!((bench.polled(1_000), bench.counts()), (vec![], [0, 0, 0, 3]));
    assert_eq!(bench.state(1, "a"), Some((TransactionState::Hold, "never by itself: on hold".into())));
    bench.apply(&operated(id(3), Operation::Release, vec![0]), 2);
    assert_eq!(bench.polled(2), ["3 a [0] #2"]);
}

#[test]
fn a_hold_during_an_attempt_is_no_second_attempt() {
    let mut bench = Bench::up(9);
    bench.apply(&accepted(1, &["a"], 0, None), 0);
    bench.polled(0);
    bench.apply(&operated(id(1), Operation::Hold, vec![0]), 1);
    bench.apply(&operated(id(1), Operation::Release, vec![0]), 2);
    assert_eq!((bench.polled(2), bench.counts()), (vec![], [1, 0, 0, 0]));
    bench.apply(&operated(id(1), Operation::Hold, vec![0]), 3);
    bench.broke(1, 4);
    assert_eq!((bench.polled(4), bench.counts()), (vec![], [0, 0, 0, 1]));
}

#[test]
fn what_is_undone_while_it_is_still_being_delivered_is_no_second_attempt() {
    for action in [Operation::Remove, Operation::Bounce] {
        let mut bench = Bench::up(1);
        bench.apply(&accepted(1, &["a"], 0, None), 0);
        assert_eq!(bench.polled(0), ["1 a [0] #1"]);
        bench.apply(&operated(id(1), action, vec![0]), 1);
        bench.apply(&operated(id(1), Operation::Undo, vec![0]), 2);
        assert_eq!((bench.polled(2), bench.counts()), (Vec::new(), [1, 0, 0, 0]));
        bench.relay.attempt_outdated(id(1), &name("a"));
        assert_eq!(bench.polled(3), ["1 a [0] #1"]);
        // Removed, and not undone: gone with the end of the attempt, whatever that brought.
        bench.apply(&operated(id(1), action, vec![0]), 4);
        bench.apply(&attempted(id(1), 5, vec![(0, deferred(9))]), 5);
        assert_eq!((bench.polled(60_000), bench.counts()), (Vec::new(), [0; 4]));
        assert_eq!(bench.relay.route_status(ms(5))[0].bytes, 0);
        // Undone later: due at once, whatever it waited for.
        bench.apply(&operated(id(1), Operation::Undo, vec![0]), 60_000);
        assert_eq!(bench.relay.route_status(ms(5))[0].bytes, 100);
        assert_eq!(bench.polled(60_000), ["1 a [0] #1"]);
        // Removed at last, and the primary takes it all the same: it is sent.
        bench.apply(&operated(id(1), action, vec![0]), 60_001);
        bench.apply(&attempted(id(1), 60_002, vec![(0, sent())]), 60_002);
        let balance = bench.relay.ledger().balance();
        assert_eq!((balance.pending, balance.removed + balance.bounced, bench.counts()), (0, 0, [0; 4]));
    }
}

#[test]
fn damaged_mail_is_neither_tried_nor_counted_as_pending() {
    let mut ledger = Ledger::new();
    ledger.apply_lost(place(1), id(1), 2);
    let Fact::Accepted(damaged) = accepted(2, &["a"], 0, None) else { unreachable!() };
    ledger.apply_damaged(place(2), &damaged);
    let mut bench = Bench { relay: Relay::new(routes(&[("a", 1, 0)]), ledger, 7, ms(0)), facts: 2 };
    bench.polled(0);
    bench.probe(Ok(()), 0);
    assert_eq!((bench.polled(0), bench.counts(), bench.state(2, "a")), (vec![], [0; 4], None));
}

#[test]
fn flush_makes_deferred_mail_due_and_probes_a_primary_that_is_down() {
    let mut bench = Bench::up(9);
    for n in 1..=2 {
        bench.apply(&accepted(n, &["a", "a"], 0, None), 0);
    }
    bench.polled(0);
    for n in 1..=2 {
        bench.apply(&attempted(id(n), 1, vec![(0, deferred(60_000)), (1, deferred(90_000))]), 1);
    }
    assert_eq!(bench.relay.flush(Flush::Transaction(id(2)), ms(2)), 1);
    assert_eq!(bench.polled(2), ["2 a [0, 1] #2"], "all of it, whatever the times");
    bench.broke(2, 3);
    assert_eq!(bench.relay.flush(Flush::Route(name("a")), ms(4)), 2);
    assert_eq!(bench.polled(4), ["probe a"]);
    assert_eq!(bench.relay.flush(Flush::All, ms(5)), 2);
    assert_eq!(bench.polled(5), [""; 0], "one probe at a time");
    let up = bench.up_again(6);
    bench.warm(up);
    assert_eq!(bench.polled(up), ["1 a [0, 1] #2", "2 a [0, 1] #2"]);
    assert_eq!(bench.relay.flush(Flush::Route(name("x")), ms(7)), 0);
    // A flush is for once: the next refusal counts.
    bench.apply(&attempted(id(1), 8, vec![(0, deferred(60_000)), (1, deferred(90_000))]), 8);
    assert_eq!(bench.polled(8), [""; 0]);
}

#[test]
fn mail_of_a_route_that_left_the_configuration_is_kept_and_shown() {
    let mut ledger = Ledger::new();
    ledger.apply(place(1), &accepted(1, &["gone"], 5, None));
    ledger.apply(place(2), &attempted(id(1), 6, vec![(0, deferred(60_000))]));
    let mut bench = Bench { relay: Relay::new(routes(&[("a", 1, 0)]), ledger, 7, ms(0)), facts: 2 };
    assert_eq!(bench.polled(0), ["probe a"]);
    assert_eq!(bench.relay.flush(Flush::All, ms(0)), 0);
    assert_eq!((bench.polled(u64::MAX), bench.relay.poll_timeout()), (vec![], None));
    let status = &bench.relay.route_status(ms(0))[1];
    assert_eq!(
        (status.name.as_str(), status.state, status.pending, status.oldest),
        ("gone", RouteState::Down, 1, Some(ms(5)))
    );
    assert_eq!((status.reason.as_str(), status.next_probe), ("route gone is not configured", None));
    let why = "never by itself: route gone is not configured".into();
    assert_eq!(bench.state(1, "gone"), Some((TransactionState::Waiting, why)));
}

#[test]
fn a_clock_that_steps_back_stops_neither_probes_nor_mail() {
    let day = 86_400_000;
    let mut bench = Bench::new(&[("a", 1, 0)]);
    bench.polled(2 * day);
    bench.probe(Err("refused"), 2 * day);
    assert!(bench.relay.poll_timeout().unwrap() > ms(2 * day));
    assert_eq!(bench.polled(day), ["probe a"]);
    bench.probe(Ok(()), day);
    bench.apply(&accepted(1, &["a"], day, None), day);
    assert_eq!(bench.polled(day), ["1 a [0] #1"]);
    // Woken by the one clock, begun by the other: still a whole attempt.
    bench.apply(&attempted(id(1), day, vec![(0, deferred(day + 60_000))]), day);
    bench.apply(&accepted(2, &["a"], day, None), day);
    assert_eq!(bench.polled(day), ["2 a [0] #1"]);
    assert_eq!(bench.polled(day + 60_000), [""; 0]);
    bench.apply(&attempted(id(2), day, vec![(0, sent())]), day);
    assert_eq!(bench.polled(day), ["1 a [0] #2"]);
}

#[test]
fn a_restart_schedules_what_the_journal_says() {
    let mut ledger = Ledger::new();
    for n in 1..=4 {
        ledger.apply(place(n as u64), &accepted(n, &["a"], n as u64, None));
    }
    ledger.apply(place(5), &attempted(id(1), 5, vec![(0, sent())]));
    ledger.apply(place(6), &attempted(id(2), 6, vec![(0, deferred(60_000))]));
    ledger.apply(place(7), &operated(id(3), Operation::Hold, vec![0]));
    let mut bench = Bench { relay: Relay::new(routes(&[("a", 9, 0)]), ledger, 7, ms(10)), facts: 7 };
    let status = &bench.relay.route_status(ms(10))[0];
    assert_eq!((bench.counts(), status.bytes, status.oldest), ([0, 1, 1, 1], 300, Some(ms(2))));
    bench.polled(10);
    bench.probe(Ok(()), 10);
    bench.warm(10);
    assert_eq!((bench.polled(10), bench.polled(60_000)), (vec!["4 a [0] #1".into()], vec!["2 a [0] #2".into()]));
}

#[test]
fn mail_of_a_route_that_is_removed_waits_and_goes_on_when_it_returns() {
    let mut bench = Bench::up(1);
    for n in 1..=3 {
        bench.apply(&accepted(n, &["a"], 0, None), 0);
    }
    assert_eq!(bench.polled(0), ["1 a [0] #1"]);
    bench.apply(&attempted(id(1), 1, vec![(0, deferred(60_000))]), 1);
    assert_eq!(bench.polled(1), ["2 a [0] #1"]);
    bench.relay.set_routes(&routes(&[("b", 1, 0)]), ms(2));
    let why = "route a is not configured";
    assert_eq!(bench.relay.take_events(), [Event::PrimaryDown { route: name("a"), why: why.into() }]);
    assert_eq!(bench.polled(2), ["probe b"]);
    let shown: Vec<_> = bench.relay.route_status(ms(2)).iter().map(|s| s.name.as_str().to_owned()).collect();
    assert_eq!(shown, ["b", "a"], "the configured ones first");
    // What is under way ends as it began; the rest waits, whatever its time.
    bench.broke(2, 3);
    for n in 1..=3 {
        assert_eq!(bench.state(n, "a"), Some((TransactionState::Waiting, format!("never by itself: {why}"))));
    }
    assert_eq!(bench.polled(u64::MAX), [""; 0]);
    bench.relay.set_routes(&routes(&[("a", 2, 0)]), ms(4));
    assert_eq!(bench.polled(4), ["probe a"]);
    bench.probe(Ok(()), 4);
    bench.warm(4);
    assert_eq!(bench.polled(4), ["2 a [0] #1", "3 a [0] #1"]);
    assert_eq!(bench.state(1, "a").unwrap().0, TransactionState::Deferred);
}

#[test]
fn a_new_primary_is_probed_before_it_gets_mail() {
    let mut bench = Bench::up(1);
    bench.apply(&accepted(1, &["a"], 0, None), 0);
    bench.relay.set_routes(&routes(&[("a", 1, 1)]), ms(5));
    assert!(matches!(&bench.relay.take_events()[..], [Event::PrimarySuspect { .. }]));
    assert_eq!(bench.polled(5), ["probe a"]);
    // The one under way asks the old one: it is as good as over.
    bench.relay.set_routes(&routes(&[("a", 1, 2)]), ms(6));
    assert_eq!(bench.polled(6), ["probe a"]);
    bench.probe(Ok(()), 7);
    assert_eq!(bench.polled(7), ["1 a [0] #1"]);
}

#[test]
fn a_dead_primary_of_before_puts_no_blame_on_the_new_one() {
    let mut bench = Bench::up(2);
    for n in 1..=3 {
        bench.apply(&accepted(n, &["a"], 0, None), 0);
    }
    assert_eq!(bench.polled(0), ["1 a [0] #1", "2 a [0] #1"]);
    bench.relay.set_routes(&routes(&[("a", 2, 1)]), ms(5));
    assert_eq!(bench.polled(5), ["probe a"]);
    bench.probe(Ok(()), 6);
    bench.relay.take_events();
    assert_eq!(bench.polled(6), ["3 a [0] #1"], "what hangs on the old one does not count");
    // Each gives its turn back, as often as it may happen.
    for _ in 0..2 {
        bench.relay.attempt_outdated(id(1), &name("a"));
    }
    bench.relay.attempt_outdated(id(2), &name("a"));
    assert_eq!((bench.relay.take_events(), bench.polled(7)), (vec![], vec![]), "the canary is under way");
    bench.apply(&attempted(id(3), 8, vec![(0, sent())]), 8);
    bench.relay.take_events();
    assert_eq!(bench.polled(60_000), ["1 a [0] #1", "2 a [0] #1"]);
    bench.relay.attempt_outdated(id(9), &name("a"));
    bench.relay.attempt_outdated(id(1), &name("x"));
    assert_eq!(bench.relay.route_status(ms(60_000))[0].state, RouteState::Recovering);
    assert_eq!(bench.counts(), [2, 0, 0, 0]);
}

#[test]
fn routes_that_stay_the_same_notice_nothing_of_a_reload() {
    let mut bench = Bench::up(1);
    for n in 1..=3 {
        bench.apply(&accepted(n, &["a"], 0, None), 0);
    }
    assert_eq!(bench.polled(0), ["1 a [0] #1"]);
    bench.relay.set_routes(&routes(&[("b", 1, 0), ("a", 2, 0)]), ms(1));
    assert_eq!(bench.relay.take_events(), []);
    assert_eq!(bench.polled(1), ["probe b"], "no probe of what is the same");
    bench.apply(&attempted(id(1), 2, vec![(0, sent())]), 2);
    assert_eq!(bench.polled(2), ["2 a [0] #1", "3 a [0] #1"], "a second connection");
}
