//! Backlogs handed to servers of many tempers, in virtual time: the relay, a desk with its connections, and a server that counts.

use crate::tests::facts::{accepted_for, attempted, deferred, held, id, ms, name, operated, place, routes, sent};
use crate::{Action, ConnectionTrouble, Event, Relay, RouteSettings, RouteState, Routes};
use restante_envelope::TransactionId;
use restante_ledger::{Action as Operation, Fact, Ledger, Outcome};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// From MAIL to the reply to the content.
const TAKES_MS: u64 = 10;
const MINUTE_MS: u64 = 60_000;

/// What the server does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Temper {
    Takes,
    Refuses,
    Greylists,
    /// Says nothing for ten minutes, then takes it.
    Hangs,
}

/// A virtual mail server, and how it was treated.
struct Server {
    connections_max: usize,
    per_minute: Option<u64>,
    /// Until then it puts everything off.
    busy_until: u64,
    /// By the local part and the time.
    temper: fn(&str, u64) -> Temper,
    /// As Postfix counts: from the first message on, a minute at a time.
    window: (u64, u64),
    refused_connections: Vec<u64>,
    pushed_back: Vec<u64>,
    taken: Vec<(u64, TransactionId)>,
    refused: Vec<(u64, TransactionId)>,
    open_max: usize,
}

impl Server {
    fn new(temper: fn(&str, u64) -> Temper) -> Self {
        Self {
            connections_max: 100,
            per_minute: None,
            busy_until: 0,
            temper,
            window: (0, 0),
            refused_connections: Vec::new(),
            pushed_back: Vec::new(),
            taken: Vec::new(),
            refused: Vec::new(),
            open_max: 0,
        }
    }

    fn is_over(&mut self, now: u64) -> bool {
        if now < self.busy_until {
            return true;
        }
        let Some(most) = self.per_minute else { return false };
        if now >= self.window.0 + MINUTE_MS {
            self.window = (now, 0);
        }
        self.window.1 += 1;
        self.window.1 > most
    }

    fn taken_in(&self, from_ms: u64, to_ms: u64) -> usize {
        self.taken.iter().filter(|(at, _)| (from_ms..to_ms).contains(at)).count()
    }
}

struct Drain {
    relay: Relay,
    server: Server,
    /// The local part of each message's recipient.
    mailboxes: BTreeMap<TransactionId, String>,
    facts: u64,
    now: u64,
    waiting: VecDeque<TransactionId>,
    allowed: usize,
    open: usize,
    busy: usize,
    ends: BTreeMap<(u64, TransactionId), Option<Temper>>,
    tried: BTreeSet<TransactionId>,
    events: Vec<(u64, Event)>,
    probe_at: Option<u64>,
    bounced: u64,
}

impl Drain {
    /// A backlog of messages for these local parts, and a server that comes up at time 0. It took mail for `known` before.
    fn new(server: Server, known: &[&str], backlog: impl Iterator<Item = String>) -> Self {
        let settings = RouteSettings { attempts_ahead: 60, ..routes(&[("a", 20, 0)]).get(&name("a")).unwrap().clone() };
        let routes = Arc::new(Routes::new(vec![settings]).unwrap());
        let mut drain = Self {
            relay: Relay::new(routes, Ledger::new(), 7, ms(0)),
            server,
            mailboxes: BTreeMap::new(),
            facts: 0,
            now: 0,
            waiting: VecDeque::new(),
            allowed: 0,
            open: 0,
            busy: 0,
            ends: BTreeMap::new(),
            tried: BTreeSet::new(),
            events: Vec::new(),
            probe_at: None,
            bounced: 0,
        };
        for (n, local) in (1..).zip(known) {
            drain.apply(&accepted_for(local, n, &["a"], 0, None));
            drain.apply(&attempted(id(n), 0, vec![(0, sent())]));
        }
        drain.relay.take_events();
        for (n, local) in (1_000_000..).zip(backlog) {
            drain.accept(n, &local);
        }
        drain
    }

    fn accept(&mut self, n: u128, local: &str) {
        self.apply(&accepted_for(local, n, &["a"], self.now, None));
        self.mailboxes.insert(id(n), local.to_owned());
    }

    fn apply(&mut self, fact: &Fact) {
        self.facts += 1;
        self.relay.apply(place(self.facts), fact, ms(self.now));
    }

    /// Until nothing is pending, or this time.
    fn run_until(&mut self, end: u64) -> &mut Self {
        while self.now < end && self.relay.ledger().balance().pending > 0 {
            while let Some(action) = self.relay.poll(ms(self.now)) {
                self.act(action);
            }
            self.events.extend(self.relay.take_events().into_iter().map(|event| (self.now, event)));
            if self.relay.ledger().balance().pending == 0 {
                break;
            }
            let wake = self.relay.poll_timeout().map(|at| at.unix_ms());
            assert!(wake.is_none_or(|at| at > self.now), "poll_timeout at {wake:?} asks for what poll did not do");
            let ends = self.ends.first_key_value().map(|((at, _), _)| *at);
            let next = [wake, ends, self.probe_at].into_iter().flatten().min();
            let Some(next) = next else {
                let status = &self.relay.route_status(ms(self.now))[0];
                assert_eq!(status.counts.hold, status.pending, "nothing will move it: {status:?}");
                break;
            };
            assert!(next < 100 * 3_600_000, "{:?}", self.relay.route_status(ms(self.now)));
            self.now = next.min(end);
            self.pass();
        }
        self.events.extend(self.relay.take_events().into_iter().map(|event| (self.now, event)));
        self
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Watch(watched) => self.apply(&Fact::Watched(watched)),
            Action::Expire { id, .. } => panic!("{id} is given up"),
            Action::Probe { .. } => self.probe_at = Some(self.now + 5),
            Action::Settle { id, recipients, .. } => {
                self.bounced += recipients.len() as u64;
                self.apply(&operated(id, Operation::Settle, recipients));
            }
            Action::Attempt { id, connections, .. } => {
                self.tried.insert(id);
                self.allowed = connections;
                self.waiting.push_back(id);
                self.give();
            }
        }
    }

    /// As a desk and its couriers do.
    fn give(&mut self) {
        while !self.waiting.is_empty() && (self.busy < self.open || self.open < self.allowed) {
            let Some(id) = self.waiting.pop_front() else { return };
            if self.busy == self.open {
                if self.open >= self.server.connections_max {
                    self.server.refused_connections.push(self.now);
                    self.allowed = self.open;
                    let (why, open) = ("421 too many".to_owned(), self.open);
                    self.relay.attempt_failed(id, &name("a"), ConnectionTrouble::Refused { why, open }, ms(self.now));
                    continue;
                }
                self.open += 1;
                self.server.open_max = self.server.open_max.max(self.open);
            }
            self.busy += 1;
            let temper = (!self.server.is_over(self.now)).then(|| (self.server.temper)(&self.mailboxes[&id], self.now));
            let takes = match temper {
                Some(Temper::Hangs) => 10 * MINUTE_MS,
                Some(_) => TAKES_MS,
                None => 1,
            };
            self.ends.insert((self.now + takes, id), temper);
        }
    }

    fn pass(&mut self) {
        if self.probe_at.is_some_and(|at| at <= self.now) {
            self.probe_at = None;
            self.relay.probe_ended(&name("a"), Ok(()), ms(self.now));
        }
        while let Some(((at, id), temper)) = self.ends.pop_first() {
            if at > self.now {
                self.ends.insert((at, id), temper);
                break;
            }
            self.busy -= 1;
            match temper {
                None => {
                    self.server.pushed_back.push(self.now);
                    let why = ConnectionTrouble::PushedBack("450 4.7.1 too much mail".into());
                    self.relay.attempt_failed(id, &name("a"), why, ms(self.now));
                }
                Some(temper) => {
                    let outcome = self.outcome(id, temper);
                    self.apply(&attempted(id, self.now, vec![(0, outcome)]));
                }
            }
            self.give();
        }
    }

    fn outcome(&mut self, id: TransactionId, temper: Temper) -> Outcome {
        match temper {
            Temper::Takes | Temper::Hangs => {
                self.server.taken.push((self.now, id));
                sent()
            }
            Temper::Refuses => {
                self.server.refused.push((self.now, id));
                held()
            }
            Temper::Greylists => deferred(self.now + 60_000),
        }
    }

    fn state(&self) -> RouteState {
        self.relay.route_status(ms(self.now))[0].state
    }

    fn count(&self, event: &str) -> usize {
        self.events.iter().filter(|(_, e)| e.name() == event).count()
    }

    /// Nothing is pending, and each is taken once.
    fn all_taken(&self) -> bool {
        let ids: BTreeSet<_> = self.server.taken.iter().map(|(_, id)| id).collect();
        ids.len() == self.server.taken.len() && ids.len() == self.mailboxes.len()
    }
}

fn backlog(messages: usize) -> impl Iterator<Item = String> {
    (0..messages).map(|n| format!("user{}", n % 50))
}

#[test]
fn a_healthy_primary_is_given_more_and_more_and_a_canary_first() {
    let mut drain = Drain::new(Server::new(|_, _| Temper::Takes), &[], backlog(10_000));
    drain.run_until(MINUTE_MS);
    assert!(drain.all_taken() && drain.server.refused_connections.is_empty());
    let canary = drain.server.taken[0].0;
    assert!(drain.server.taken[1..].iter().all(|(at, _)| *at >= canary + TAKES_MS), "more than the canary went first");
    assert_eq!((drain.server.open_max, drain.state()), (20, RouteState::Up));
    let told: Vec<_> = drain.events.iter().map(|(_, event)| event.name()).collect();
    assert_eq!(told, ["primary_recovering", "drain_started", "drain_finished", "primary_up"]);
    // Twenty connections at 10 ms each take 2,000 a second.
    assert!(drain.now < 6_000, "{} ms", drain.now);
}

#[test]
fn a_primary_that_takes_five_connections_and_six_hundred_a_minute_is_given_about_that() {
    let mut server = Server::new(|_, _| Temper::Takes);
    (server.connections_max, server.per_minute) = (5, Some(600));
    let mut drain = Drain::new(server, &[], backlog(6_000));
    drain.run_until(30 * MINUTE_MS);
    assert!(drain.all_taken());
    let minutes: Vec<_> = (0..10).map(|n| drain.server.taken_in(n * MINUTE_MS, (n + 1) * MINUTE_MS)).collect();
    println!(
        "taken in each minute: {minutes:?}; {} ms; pushed back {}, connections refused {}",
        drain.now,
        drain.server.pushed_back.len(),
        drain.server.refused_connections.len()
    );
    assert!(minutes[3..9].iter().all(|taken| (480..=640).contains(taken)), "{minutes:?}");
    assert!(drain.now < 12 * MINUTE_MS, "{} ms", drain.now);
    // It is not knocked at all the time: a few while its number is found, then one in a while.
    assert!(drain.server.refused_connections.len() <= 30, "{:?}", drain.server.refused_connections);
    assert!(drain.server.pushed_back.len() <= 120, "{:?}", drain.server.pushed_back);
    assert!(drain.relay.ledger().balance().bounced == 0 && drain.bounced == 0);
}

#[test]
fn a_fixed_rate_is_never_exceeded() {
    let server = Server::new(|_, _| Temper::Takes);
    let mut drain = Drain::new(server, &[], backlog(500));
    let settings = routes(&[("a", 20, 0)]).get(&name("a")).unwrap().clone();
    let limited = Routes::new(vec![RouteSettings { per_minute: Some(120), ..settings }]).unwrap();
    drain.relay.set_routes(&limited, ms(0));
    drain.run_until(10 * MINUTE_MS);
    assert!(drain.all_taken());
    for minute in 0..4 {
        let taken = drain.server.taken_in(minute * MINUTE_MS, (minute + 1) * MINUTE_MS);
        assert!((115..=125).contains(&taken), "{taken} in minute {minute}");
    }
}

/// Empty tables for ten minutes.
fn half_restored(_: &str, now: u64) -> Temper {
    if now < 10 * MINUTE_MS { Temper::Refuses } else { Temper::Takes }
}

#[test]
fn a_half_restored_primary_bounces_nothing_and_all_arrives_when_it_is_repaired() {
    for known in [&[][..], &["user3", "user4"]] {
        let mut drain = Drain::new(Server::new(half_restored), known, backlog(1_000));
        drain.run_until(10 * MINUTE_MS);
        assert!(drain.tried.len() <= 21, "{} messages were tried", drain.tried.len());
        assert_eq!((drain.state(), drain.bounced, drain.count("breaker")), (RouteState::Recovering, 0, 1));
        let status = &drain.relay.route_status(ms(drain.now))[0];
        assert!(status.reason.starts_with("primary refuses known recipients"), "{}", status.reason);
        assert!(drain.server.refused.len() <= 21 + 20, "{} refusals in ten minutes", drain.server.refused.len());
        drain.run_until(20 * MINUTE_MS);
        assert!(drain.all_taken(), "{:?}", drain.relay.route_status(ms(drain.now)));
        assert_eq!((drain.bounced, drain.state(), drain.count("breaker")), (0, RouteState::Up, 2));
    }
}

#[test]
fn an_operator_need_not_wait_for_the_next_canary() {
    let mut drain = Drain::new(Server::new(half_restored), &[], backlog(100));
    drain.run_until(10 * MINUTE_MS);
    let tried = drain.server.refused.last().unwrap().1;
    drain.apply(&operated(tried, Operation::Release, vec![0]));
    drain.run_until(10 * MINUTE_MS + 1_000);
    assert!(drain.all_taken(), "{:?}", drain.relay.route_status(ms(drain.now)));
}

#[test]
fn a_backlog_that_is_mostly_spam_drains_to_the_end_and_delays_nobody() {
    let spam = |n: usize| if n % 5 < 2 { format!("user{}", n % 10) } else { format!("nobody{n}") };
    let server = || Server::new(|local, _| if local.starts_with("user") { Temper::Takes } else { Temper::Refuses });
    for known in [&[][..], &["user0", "user1", "user5"]] {
        let mut drain = Drain::new(server(), known, (0..5_000).map(spam));
        drain.run_until(5 * MINUTE_MS);
        let balance = drain.relay.ledger().balance();
        assert_eq!((balance.pending, balance.bounced, drain.bounced), (0, 3_000, 3_000));
        assert_eq!((drain.count("breaker"), drain.server.taken.len()), (0, 2_000));
        // The last refusals wait for a minute; nothing else does.
        let last = drain.server.taken.last().unwrap().0;
        assert!(last < 10_000 && drain.now < last + MINUTE_MS + 1_000, "{last} and {} ms", drain.now);
    }
}

#[test]
fn one_deleted_mailbox_does_not_stop_the_mail_of_the_others() {
    let server = Server::new(|local, _| if local == "user7" { Temper::Refuses } else { Temper::Takes });
    let known: Vec<_> = backlog(50).collect();
    let known: Vec<_> = known.iter().map(String::as_str).collect();
    let mut drain = Drain::new(server, &known, backlog(2_000));
    drain.run_until(MINUTE_MS);
    let balance = drain.relay.ledger().balance();
    // Its mail waits for somebody's word: the primary took mail for it before.
    assert_eq!((balance.pending, balance.bounced, drain.count("breaker")), (40, 0, 0));
    assert!(drain.server.refused.len() <= 45, "it is asked {} times", drain.server.refused.len());
}

#[test]
fn a_primary_that_loses_its_tables_in_the_middle_bounces_nothing() {
    let server =
        Server::new(|_, now| if (300..5 * MINUTE_MS).contains(&now) { Temper::Refuses } else { Temper::Takes });
    let mut drain = Drain::new(server, &[], backlog(5_000));
    drain.run_until(5 * MINUTE_MS);
    assert_eq!((drain.bounced, drain.count("breaker")), (0, 1));
    // What was under way when it happened, and canaries.
    assert!(drain.server.refused.len() <= 80 + 20, "{}", drain.server.refused.len());
    drain.run_until(10 * MINUTE_MS);
    assert!(drain.all_taken() && drain.bounced == 0, "{:?}", drain.relay.route_status(ms(drain.now)));
}

#[test]
fn a_greylisting_primary_is_waited_for_and_bothered_once_a_message() {
    let server = Server::new(|_, now| if now < 90_000 { Temper::Greylists } else { Temper::Takes });
    let mut drain = Drain::new(server, &[], backlog(1_000));
    drain.run_until(10 * MINUTE_MS);
    assert!(drain.all_taken() && drain.count("breaker") == 0);
    assert!(drain.now < 5 * MINUTE_MS, "{} ms", drain.now);
}

#[test]
fn a_flood_for_one_mailbox_leaves_the_others_their_turn() {
    let flood = (0..4_000).map(|_| "list".to_owned()).chain((0..200).map(|n| format!("user{n}")));
    let mut drain = Drain::new(Server::new(|_, _| Temper::Takes), &[], flood);
    drain.run_until(MINUTE_MS);
    assert!(drain.all_taken());
    let is_other = |(_, taken): &&(u64, TransactionId)| *taken >= id(1_004_000);
    let last_other = drain.server.taken.iter().filter(is_other).map(|(at, _)| *at).max().unwrap();
    let end = drain.now;
    assert!(last_other * 4 < end, "the last of the others after {last_other} ms of {end}");
}

#[test]
fn a_message_that_hangs_holds_up_nobody_however_the_primary_is_treated() {
    let temper = |local: &str, _| if local == "slow" { Temper::Hangs } else { Temper::Takes };
    for per_minute in [None, Some(60)] {
        let mut server = Server::new(temper);
        server.per_minute = per_minute;
        let messages = ["slow".to_owned()].into_iter().chain(backlog(100));
        let mut drain = Drain::new(server, &[], messages);
        drain.run_until(9 * MINUTE_MS);
        let left = drain.relay.ledger().balance().pending;
        assert_eq!((left, drain.server.taken.len()), (1, 100), "{per_minute:?}: {:?}", drain.server.pushed_back);
    }
}

#[test]
fn a_primary_that_was_busy_for_a_while_is_given_all_when_it_is_not() {
    for busy_until in [5_000, 30_000, 10 * MINUTE_MS] {
        let mut server = Server::new(|_, _| Temper::Takes);
        server.busy_until = busy_until;
        let mut drain = Drain::new(server, &[], backlog(5_000));
        drain.run_until(busy_until + MINUTE_MS);
        let asked = drain.server.pushed_back.len();
        assert!(drain.all_taken(), "{busy_until}: {:?}", drain.relay.route_status(ms(drain.now)));
        // Not sooner than a pause is over, and it is not asked all the time.
        assert!(drain.now < busy_until + 25_000, "{busy_until}: {} ms", drain.now);
        assert!(asked <= 20 + usize::try_from(busy_until / 10_000).unwrap(), "{busy_until}: asked {asked} times");
    }
}

#[test]
fn what_a_broken_primary_refused_is_not_bounced_by_what_a_repaired_one_takes() {
    // Fifteen refusals while it proves itself, or one message taken first; repaired without going away.
    for first_taken in [false, true] {
        let mut drain = Drain::new(Server::new(|_, _| Temper::Takes), &[], std::iter::empty());
        drain.accept(1_000_000, "first");
        if first_taken {
            drain.run_until(1_000);
        }
        drain.server.temper = |_, now| if now < 40 * MINUTE_MS { Temper::Refuses } else { Temper::Takes };
        (1..=15).for_each(|n| drain.accept(1_000_000 + n, &format!("user{n}")));
        drain.run_until(40 * MINUTE_MS);
        assert_eq!(drain.bounced, 0, "{first_taken}");
        drain.now = 40 * MINUTE_MS;
        drain.accept(2_000_000, "somebody");
        drain.run_until(50 * MINUTE_MS);
        assert!(
            drain.all_taken() && drain.bounced == 0,
            "{first_taken}: {:?}",
            drain.relay.route_status(ms(drain.now))
        );
    }
}

#[test]
fn tables_that_come_back_by_half_bounce_nobody_they_knew() {
    let temper: fn(&str, u64) -> Temper = |local, now| {
        let is_even = local.trim_start_matches("user").parse::<u32>().is_ok_and(|n| n % 2 == 0);
        if is_even || now > 30 * MINUTE_MS { Temper::Takes } else { Temper::Refuses }
    };
    let known: Vec<_> = backlog(50).collect();
    let known: Vec<_> = known.iter().map(String::as_str).collect();
    let mut drain = Drain::new(Server::new(temper), &known, backlog(400));
    drain.run_until(30 * MINUTE_MS);
    assert!(drain.count("breaker") > 0 && drain.bounced == 0, "{} bounced", drain.bounced);
}

#[test]
fn what_is_all_there_is_is_tried_again_though_no_other_mail_comes() {
    let temper: fn(&str, u64) -> Temper = |_, now| if now < 3 * MINUTE_MS { Temper::Refuses } else { Temper::Takes };
    let mut drain = Drain::new(Server::new(temper), &[], backlog(3));
    drain.run_until(20 * MINUTE_MS);
    assert!(drain.all_taken() && drain.bounced == 0, "{:?}", drain.relay.route_status(ms(drain.now)));
    // And where it never existed, nobody raises an alarm over it, or asks all the time.
    let mut drain = Drain::new(Server::new(|_, _| Temper::Refuses), &[], backlog(3));
    drain.run_until(6 * 60 * MINUTE_MS);
    assert_eq!((drain.count("breaker"), drain.bounced), (0, 0));
    assert!(drain.server.refused.len() <= 80, "asked {} times in six hours", drain.server.refused.len());
}
