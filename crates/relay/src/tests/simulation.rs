//! A seeded simulation: two primaries that go away and come back, refuse, hang up and lose replies; an operator who
//! holds, releases, removes, undoes that, flushes and changes the routes; a daemon that is killed and starts again from its journal. Checked after every step.

use crate::tests::facts::{accepted, attempted, id, ms, name, operated, place, routes};
use crate::{
    Action, ConnectionTrouble, Event, Flush, Heard, Relay, RouteState, RouteStatus, Routes, TransactionState, Verdict,
    judge,
};
use restante_envelope::{Reply, RouteName, TransactionId};
use restante_ledger::{Action as Operation, Fact, Ledger, Outcome, RecipientIndex, RecipientState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const SEEDS: u64 = 300;
/// Until then everything may go wrong; then the primaries stay up and take all, and everything must get through.
const CALM_AT_MS: u64 = 2 * 3_600_000;
/// Virtual time by which all must be delivered: the longest wait is an hour.
const END_MS: u64 = CALM_AT_MS + 3 * 3_600_000;
/// How long a probe takes, by route: the second one's primary is slow to say no.
const PROBE_MS: [u64; ROUTES.len()] = [20, 150];
/// The rest after a broken connection, the longest wait of all for a primary that was away for a few seconds.
const SUSPECT_MS: u64 = 1_000;
const MESSAGES: u128 = 40;
const ROUTES: [&str; 2] = ["a", "b"];

enum Happening {
    Accept,
    Switch { route: usize },
    AttemptEnds { epoch: u32, id: TransactionId, route: usize, recipients: Vec<RecipientIndex>, era: u32 },
    ProbeEnds { epoch: u32, route: usize, generation: u32, ok: bool },
    Operate,
    Undo { who: TransactionId },
    Reload,
    Kill,
    MustHaveTried { route: usize, back_at: u64, operations: u32 },
    Calm,
}

/// A virtual mail server. `era` counts its comings and goings.
struct Primary {
    there: bool,
    era: u32,
    /// Whether its route is, and how often that or its next hops changed.
    configured: bool,
    generation: u32,
    max_connections: usize,
    last_attempt_at: Option<u64>,
    /// What the relay's events say.
    up: bool,
    trouble_since: u64,
    largest_first_tried: u128,
}

struct Simulation {
    seed: u64,
    drawn: u64,
    now: u64,
    routes: Arc<Routes>,
    relay: Relay,
    journal: Vec<Fact>,
    happenings: BTreeMap<(u64, u64), Happening>,
    primaries: Vec<Primary>,
    /// With how often the primary had been changed when each began.
    in_flight: BTreeMap<(TransactionId, usize), u32>,
    probing: BTreeSet<usize>,
    sent: BTreeSet<(TransactionId, RecipientIndex)>,
    tried: BTreeSet<(TransactionId, usize)>,
    ever_held: BTreeSet<TransactionId>,
    accepted: u128,
    /// How often the daemon started: reports from before a kill are lost.
    epoch: u32,
    operations: u32,
    calm: bool,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let limits = [1, 1 + (seed % 3) as usize];
        let routes = routes(&[(ROUTES[0], limits[0], 0), (ROUTES[1], limits[1], 0)]);
        let primary = |max_connections| Primary {
            there: seed.is_multiple_of(2),
            era: 0,
            configured: true,
            generation: 0,
            max_connections,
            last_attempt_at: None,
            up: false,
            trouble_since: 0,
            largest_first_tried: 0,
        };
        let mut simulation = Self {
            seed,
            drawn: 0,
            now: 0,
            relay: Relay::new(routes.clone(), Ledger::new(), seed, ms(0)),
            routes,
            journal: Vec::new(),
            happenings: BTreeMap::new(),
            primaries: limits.map(primary).into(),
            in_flight: BTreeMap::new(),
            probing: BTreeSet::new(),
            sent: BTreeSet::new(),
            tried: BTreeSet::new(),
            ever_held: BTreeSet::new(),
            accepted: 0,
            epoch: 0,
            operations: 0,
            calm: false,
        };
        simulation.later(1, Happening::Accept);
        simulation.later(CALM_AT_MS, Happening::Calm);
        for route in 0..ROUTES.len() {
            let wait = simulation.draw(60_000);
            simulation.later(wait, Happening::Switch { route });
        }
        for _ in 0..20 {
            let wait = simulation.draw(CALM_AT_MS);
            simulation.later(wait, Happening::Operate);
        }
        for _ in 0..2 {
            let wait = simulation.draw(CALM_AT_MS);
            simulation.later(wait, Happening::Kill);
        }
        for _ in 0..seed % 8 {
            let wait = simulation.draw(CALM_AT_MS);
            simulation.later(wait, Happening::Reload);
        }
        simulation
    }

    /// A number below `end`, the next of this seed's.
    fn draw(&mut self, end: u64) -> u64 {
        self.drawn += 1;
        let mut x = (self.seed << 32 | self.drawn).wrapping_mul(0x2545_f491_4f6c_dd1d);
        for shift in [29, 31, 32] {
            x = (x ^ (x >> shift)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        }
        (x >> 16) % end
    }

    fn later(&mut self, wait: u64, happening: Happening) {
        self.drawn += 1;
        self.happenings.insert((self.now + wait, self.drawn), happening);
    }

    fn run(mut self) {
        let mut steps = 0;
        while !(self.calm && self.relay.ledger().balance().pending == 0) {
            while let Some(action) = self.relay.poll(ms(self.now)) {
                self.act(action);
            }
            self.note_events();
            self.check();
            // Most steps are probes, and change no count.
            steps += 1;
            if steps % 8 == 0 {
                self.recount();
            }
            let wake = self.relay.poll_timeout().map(|at| at.unix_ms());
            assert!(wake.is_none_or(|at| at > self.now), "poll_timeout at {wake:?} asks for what poll did not do");
            let happens = self.happenings.first_key_value().map(|((at, _), _)| *at);
            self.now = [wake, happens].into_iter().flatten().min().expect("pending mail, and nothing will wake us");
            assert!(self.now < END_MS, "not delivered: {:?}", self.relay.route_status(ms(self.now)));
            if happens == Some(self.now) {
                let (_, happening) = self.happenings.pop_first().unwrap();
                self.happen(happening);
            }
        }
        self.recount();
        let balance = self.relay.ledger().balance();
        assert_eq!((balance.sent, balance.is_even()), (balance.accepted, true));
        assert_eq!(self.accepted, MESSAGES);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Probe { route } => {
                let route = index_of(&route);
                assert!(self.probing.insert(route), "two probes of one primary");
                let Primary { there: ok, generation, configured, .. } = self.primaries[route];
                assert!(configured, "a probe of a route that is not configured");
                let epoch = self.epoch;
                self.later(PROBE_MS[route], Happening::ProbeEnds { epoch, route, generation, ok });
            }
            Action::Watch(watched) => self.record(Fact::Watched(watched)),
            Action::Expire { id, .. } => panic!("{id} is given up"),
            Action::Settle { id, recipients, .. } => {
                self.ever_held.insert(id);
                self.record(operated(id, Operation::Settle, recipients));
            }
            Action::Attempt { id, route, position, recipients, .. } => {
                let route = index_of(&route);
                self.check_attempt(id, route, &recipients);
                assert_eq!(Some(position), self.relay.ledger().get(id).map(|t| t.position));
                let primary = &mut self.primaries[route];
                primary.last_attempt_at = Some(self.now);
                let (era, epoch) = (primary.era, self.epoch);
                let wait = 1 + self.draw(5_000);
                self.later(wait, Happening::AttemptEnds { epoch, id, route, recipients, era });
            }
        }
    }

    fn check_attempt(&mut self, id: TransactionId, route: usize, recipients: &[RecipientIndex]) {
        let ledger = self.relay.ledger();
        let transaction = ledger.get(id).expect("an attempt of a transaction that is settled");
        assert!(!recipients.is_empty());
        for recipient in recipients {
            let entry = transaction.recipients[usize::from(*recipient)];
            assert!(!self.sent.contains(&(id, *recipient)), "{id} {recipient} was sent before");
            let may_be = [RecipientState::Due, RecipientState::Refused].contains(&entry.state);
            assert!(may_be || matches!(entry.state, RecipientState::Deferred(_)), "{:?}", entry.state);
            assert_eq!(ledger.route(entry.route), Some(&name(ROUTES[route])));
        }
        let generation = self.primaries[route].generation;
        assert!(self.in_flight.insert((id, route), generation).is_none(), "two attempts of {id} at once");
        let active = self.in_flight.iter().filter(|((_, r), g)| *r == route && **g == generation).count();
        let primary = &mut self.primaries[route];
        assert!(primary.configured, "an attempt on a route that is not configured");
        assert!(active <= primary.max_connections, "more than {} connections", primary.max_connections);
        if self.tried.insert((id, route)) && !self.ever_held.contains(&id) {
            assert!(id.to_bits() > primary.largest_first_tried, "{id} was overtaken");
            primary.largest_first_tried = id.to_bits();
        }
    }

    fn note_events(&mut self) {
        for event in self.relay.take_events() {
            match event {
                Event::PrimaryUp { route, .. } | Event::PrimaryRecovering { route, .. } => {
                    self.primaries[index_of(&route)].up = true;
                }
                Event::DrainStarted { route, .. }
                | Event::DrainFinished { route, .. }
                | Event::BreakerTripped { route, .. }
                | Event::Expiring { route, .. }
                | Event::SlowedDown { route, .. }
                | Event::BreakerReset { route } => assert!(self.primaries[index_of(&route)].up),
                Event::PrimarySuspect { route, .. } => {
                    let primary = &mut self.primaries[index_of(&route)];
                    assert!(std::mem::take(&mut primary.up), "suspect, but was not up");
                    primary.trouble_since = self.now;
                }
                Event::PrimaryDown { route, .. } => assert!(!self.primaries[index_of(&route)].up),
            }
        }
    }

    /// No due mail, and no primary, is without something that will move it.
    fn check(&self) {
        for status in self.relay.route_status(ms(self.now)) {
            let route = index_of(&status.name);
            let primary = &self.primaries[route];
            if !primary.configured {
                assert_eq!((status.state, status.next_probe, status.counts.deferred), (RouteState::Down, None, 0));
                continue;
            }
            assert_eq!(matches!(status.state, RouteState::Up | RouteState::Recovering), primary.up);
            let moves = status.counts.active > 0 || self.relay.poll_timeout().is_some();
            assert!(status.counts.waiting == 0 || moves || !primary.up, "due mail, and nothing will move it");
            assert!(primary.up || self.probing.contains(&route) || status.next_probe.is_some(), "nobody probes");
        }
    }

    /// Counts everything anew, from the ledger and from what is in flight, and compares.
    fn recount(&self) {
        let ledger = self.relay.ledger();
        for (route, known) in ROUTES.iter().enumerate() {
            let number = ledger.find_route(&name(known));
            let (mut pending, mut oldest) = (0, None);
            let mut by_state = BTreeMap::new();
            for (id, transaction) in ledger.iter() {
                let on_route = transaction.recipients.iter().filter(|r| Some(r.route) == number);
                let open: Vec<_> = on_route.map(|r| r.state).filter(|state| !state.is_settled()).collect();
                let view = self.relay.transaction_state(id, &name(known));
                // What was removed while it is being delivered is active until that has ended.
                assert_eq!(view.is_some(), !open.is_empty() || self.in_flight.contains_key(&(id, route)));
                let Some(view) = view else { continue };
                pending += 1;
                oldest = oldest.or(Some(transaction.accepted_at));
                *by_state.entry(view.state.as_str()).or_insert(0) += 1;
                assert_eq!(view.state == TransactionState::Active, self.in_flight.contains_key(&(id, route)));
                let is_frozen =
                    |state: &RecipientState| matches!(state, RecipientState::Hold | RecipientState::Refused);
                let (frozen, held) = (open.iter().all(is_frozen), view.state == TransactionState::Hold);
                // What was refused may be tried again.
                let retried = open.contains(&RecipientState::Refused);
                assert!(view.state == TransactionState::Active || frozen == held || (frozen && retried));
            }
            let counted = ["active", "deferred", "waiting", "hold"].map(|s| by_state.get(s).copied().unwrap_or(0));
            let Some(status) = self.status(route) else {
                assert!(pending == 0 && !self.primaries[route].configured, "{known} is not shown");
                continue;
            };
            let counts = status.counts;
            assert_eq!(counted, [counts.active, counts.deferred, counts.waiting, counts.hold]);
            assert_eq!((status.pending, status.bytes, status.oldest), (pending, pending * 100, oldest));
        }
    }

    fn status(&self, route: usize) -> Option<RouteStatus> {
        self.relay.route_status(ms(self.now)).into_iter().find(|status| index_of(&status.name) == route)
    }

    fn record(&mut self, fact: Fact) {
        if let Fact::Attempted(attempted) = &fact {
            let sent = attempted.results.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Sent(_)));
            self.sent.extend(sent.map(|(recipient, _)| (attempted.id, *recipient)));
        }
        self.relay.apply(place(self.journal.len() as u64), &fact, ms(self.now));
        self.journal.push(fact);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Accept => self.accept(),
            Happening::Switch { route } => self.switch(route),
            Happening::AttemptEnds { epoch, id, route, recipients, era } if epoch == self.epoch => {
                self.attempt_ends(id, route, &recipients, era);
            }
            Happening::ProbeEnds { epoch, route, generation, ok }
                if epoch == self.epoch && generation == self.primaries[route].generation =>
            {
                self.probing.remove(&route);
                let result = if ok { Ok(()) } else { Err("refused".into()) };
                self.relay.probe_ended(&name(ROUTES[route]), result, ms(self.now));
            }
            Happening::AttemptEnds { .. } | Happening::ProbeEnds { .. } => {}
            Happening::Operate => self.operate(),
            Happening::Undo { who } => {
                self.operations += 1;
                self.record(operated(who, Operation::Undo, vec![0, 1, 2]));
            }
            Happening::Reload => self.reload(),
            Happening::Kill => self.kill(),
            Happening::MustHaveTried { route, back_at, operations } => {
                let tried = self.primaries[route].last_attempt_at.is_some_and(|at| at >= back_at);
                let steady = self.operations == operations && self.primaries[route].there;
                let status = self.relay.route_status(ms(self.now));
                assert!(tried || !steady, "{} was back at {back_at} ms and got nothing: {status:#?}", ROUTES[route]);
            }
            Happening::Calm => self.calm_down(),
        }
    }

    fn accept(&mut self) {
        self.accepted += 1;
        let to: &[&str] = match self.draw(10) {
            0..5 => &["a"],
            5..7 => &["b"],
            7 => &["a", "a", "a"],
            _ => &["b", "a", "b"],
        };
        let hold = (self.draw(20) == 0).then_some("looks odd");
        if hold.is_some() {
            self.ever_held.insert(id(self.accepted));
        }
        self.record(accepted(self.accepted, to, self.now, hold));
        if self.accepted < MESSAGES {
            let wait = 1 + self.draw(160_000);
            self.later(wait, Happening::Accept);
        }
    }

    fn switch(&mut self, route: usize) {
        if self.calm {
            return;
        }
        let primary = &mut self.primaries[route];
        (primary.there, primary.era) = (!primary.there, primary.era + 1);
        let there = primary.there;
        if there {
            self.expect_attempt(route);
        }
        let longest = match self.draw(20) {
            _ if there => 300_000,
            0..14 => 60_000,
            14..19 => 1_200_000,
            _ => 3 * 3_600_000,
        };
        let wait = 1 + self.draw(longest);
        self.later(wait, Happening::Switch { route });
    }

    /// A primary is back: if that is seen within the first hour and there is mail to send, it must be tried soon.
    fn expect_attempt(&mut self, route: usize) {
        let primary = &self.primaries[route];
        let Some(RouteStatus { counts, .. }) = self.status(route).filter(|_| primary.configured) else { return };
        let young = self.now - primary.trouble_since < 3_590_000;
        if !primary.up && young && counts.waiting > 0 && counts.active == 0 {
            let (back_at, operations) = (self.now, self.operations);
            // A sixteenth of the outage, but two seconds at the most, or always if it is slow; and a quarter of that as jitter.
            let age = self.now - self.primaries[route].trouble_since;
            let interval = if PROBE_MS[route] > 100 { 2_000 } else { (age / 16).clamp(250, 2_000) };
            // One that flapped must answer twice more.
            let again = 2 * (1_000 + PROBE_MS[route]);
            let noticed = SUSPECT_MS.max(interval * 5 / 4) + PROBE_MS[route] + again;
            self.later(noticed, Happening::MustHaveTried { route, back_at, operations });
        }
    }

    fn attempt_ends(&mut self, id: TransactionId, route: usize, recipients: &[RecipientIndex], era: u32) {
        self.in_flight.remove(&(id, route));
        let primary = &self.primaries[route];
        let interrupted = primary.era != era;
        // Odd eras and even ones alternate between there and gone; an interrupted one began in the other.
        if !interrupted && !primary.there {
            return self.fail(id, route, ConnectionTrouble::NotMade("refused".into()));
        }
        // A message that breaks every connection, as long as things go wrong at all.
        let deadly = !self.calm && id.to_bits() % 17 == 5;
        let heard_by_all = match self.draw(20) {
            _ if deadly => Some(Heard::Lost { why: "reset".into() }),
            0..10 if interrupted => Some(Heard::InDoubt { why: "reset".into() }),
            _ if interrupted => Some(Heard::Lost { why: "reset".into() }),
            _ if self.calm => Some(Heard::Replied(Reply::new(250, None, "ok"))),
            0 => Some(Heard::Lost { why: "reset".into() }),
            1 => Some(Heard::Replied(Reply::new(421, None, "closing"))),
            2 => Some(Heard::InDoubt { why: "timeout".into() }),
            _ => None,
        };
        let mut results = Vec::new();
        for recipient in recipients {
            let code = [250, 250, 250, 250, 250, 250, 251, 450, 354, 550][self.draw(10) as usize];
            let heard = heard_by_all.clone().unwrap_or_else(|| Heard::Replied(Reply::new(code, None, "said")));
            let attempts = self.relay.ledger().get(id).map_or(0, |t| t.recipients[usize::from(*recipient)].attempts);
            match judge(&heard, attempts, id, self.seed, ms(self.now)) {
                Verdict::Record(outcome) => results.push((*recipient, outcome)),
                Verdict::RetryUnrecorded => return self.fail(id, route, ConnectionTrouble::Broke("reset".into())),
                Verdict::SlowDown => return self.fail(id, route, ConnectionTrouble::PushedBack("busy".into())),
            }
        }
        if self.draw(10) == 0 {
            results.truncate(1);
        }
        if results.iter().any(|(_, outcome)| matches!(outcome, Outcome::Held(_))) {
            self.ever_held.insert(id);
        }
        self.record(attempted(id, self.now, results));
    }

    fn fail(&mut self, id: TransactionId, route: usize, why: ConnectionTrouble) {
        self.relay.attempt_failed(id, &name(ROUTES[route]), why, ms(self.now));
    }

    fn operate(&mut self) {
        self.operations += 1;
        let who = id(1 + u128::from(self.draw(MESSAGES as u64)));
        match self.draw(11) {
            0 | 1 => {
                self.ever_held.insert(who);
                self.record(operated(who, Operation::Hold, vec![0, 1]));
            }
            2 => self.record(operated(who, Operation::Release, vec![0, 1, 2])),
            action @ 6..9 => {
                self.ever_held.insert(who);
                self.record(operated(who, if action == 6 { Operation::Bounce } else { Operation::Remove }, vec![0, 2]));
                let wait = 1 + self.draw(4_000);
                self.later(wait, Happening::Undo { who });
            }
            3 => _ = self.relay.flush(Flush::Transaction(who), ms(self.now)),
            4 => _ = self.relay.flush(Flush::Route(name("a")), ms(self.now)),
            _ => _ = self.relay.flush(Flush::All, ms(self.now)),
        }
    }

    /// The operator changes which routes there are, in which order, whereto, and with how many connections.
    fn reload(&mut self) {
        if self.calm {
            return;
        }
        let kept = self.draw(4);
        self.set_routes(|route| kept == 3 || kept != route as u64);
    }

    fn set_routes(&mut self, keep: impl Fn(usize) -> bool) {
        self.operations += 1;
        for route in 0..ROUTES.len() {
            let (elsewhere, limit) = (self.draw(3) == 0, 1 + self.draw(3) as usize);
            let primary = &mut self.primaries[route];
            if primary.configured != keep(route) || elsewhere {
                primary.generation += 1;
                primary.trouble_since = self.now;
                self.probing.remove(&route);
            }
            // A new primary of an old route is told of by an event.
            primary.up &= primary.configured && keep(route);
            (primary.configured, primary.max_connections) = (keep(route), limit);
        }
        let mut list: Vec<_> = self.primaries.iter().zip(ROUTES).filter(|(p, _)| p.configured).collect();
        if self.operations.is_multiple_of(2) {
            list.reverse();
        }
        let list: Vec<_> = list.iter().map(|(p, route)| (*route, p.max_connections, p.generation)).collect();
        self.routes = routes(&list);
        self.relay.set_routes(&self.routes, ms(self.now));
        let shown: Vec<_> = self.relay.route_status(ms(self.now)).iter().map(|s| s.name.as_str().to_owned()).collect();
        assert!(list.iter().map(|(route, ..)| *route).eq(shown.iter().take(list.len()).map(String::as_str)));
    }

    /// The daemon dies with whatever it had in flight, and starts again from the journal.
    fn kill(&mut self) {
        let mut ledger = Ledger::new();
        for (n, fact) in self.journal.iter().enumerate() {
            ledger.apply(place(n as u64), fact);
        }
        self.relay = Relay::new(self.routes.clone(), ledger, self.seed, ms(self.now));
        self.epoch += 1;
        self.in_flight.clear();
        self.probing.clear();
        for primary in &mut self.primaries {
            (primary.up, primary.trouble_since) = (false, self.now);
        }
    }

    fn calm_down(&mut self) {
        self.calm = true;
        self.set_routes(|_| true);
        for primary in &mut self.primaries {
            primary.era += u32::from(!primary.there);
            primary.there = true;
        }
        let ids: Vec<_> = self.relay.ledger().iter().map(|(id, _)| id).collect();
        for id in ids {
            self.record(operated(id, Operation::Undo, vec![0, 1, 2]));
            self.record(operated(id, Operation::Release, vec![0, 1, 2]));
        }
    }
}

fn index_of(route: &RouteName) -> usize {
    ROUTES.iter().position(|known| *known == route.as_str()).expect("a route of ours")
}

#[test]
fn all_mail_gets_through_once_whatever_primaries_operators_and_restarts_do() {
    for seed in 0..SEEDS {
        let run = std::panic::AssertUnwindSafe(|| Simulation::new(seed).run());
        if let Err(panic) = std::panic::catch_unwind(run) {
            println!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
