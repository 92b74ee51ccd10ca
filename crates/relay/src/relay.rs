//! The live relay: owns the ledger, decides what is attempted and what is probed, one action at a time.
//!
//! Sans-IO: after every call, call [`Relay::poll`] until it gives nothing, then wait for [`Relay::poll_timeout`] or the
//! next report. It never decides what a reply means (see [`judge`](crate::judge)), and never changes the ledger but by
//! a fact that is already durable.

use crate::health::{CLOCK_STEP_BACK, Change, ConnectionTrouble, Health};
use crate::load::Loads;
use crate::schedule::{Place, Schedule};
use crate::status::{Event, RouteStatus, StateView, TransactionState};
use crate::{RouteSettings, Routes, backoff};
use restante_envelope::{RouteName, Timestamp, TransactionId};
use restante_ledger::{
    Base, Cause, Fact, Ledger, Outcome, Position, RecipientEntry, RecipientIndex, RecipientState, RouteIndex,
    Transaction,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Broken connections in a row under one transaction after which it still keeps its turn. More cannot be told from a
/// message that breaks the connection by itself (too large for the path, deadly to a filter); without a wait that one
/// would be first in line for ever and let nobody pass.
const BROKEN_IN_TURN_MAX: u16 = 2;

/// Why a route is suspect right after its next hops were changed.
const NEW_PRIMARY: &str = "its primary is another one now, and not probed yet";

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Offer a transaction to a route's primary. Ends with an `Attempted` fact for at least one of `recipients`, or
    /// with [`Relay::attempt_failed`] or [`Relay::attempt_outdated`].
    Attempt {
        /// The transaction.
        id: TransactionId,
        /// The route.
        route: RouteName,
        /// Where its `Accepted` record is.
        position: Position,
        /// Those of the route that are due; never empty.
        recipients: Vec<RecipientIndex>,
        /// Counted from 1, for the log.
        attempt: u16,
    },
    /// See whether a route's primary takes mail. Ends with [`Relay::probe_ended`].
    Probe {
        /// The route.
        route: RouteName,
    },
}

/// What an operator wants tried now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flush {
    /// Everything.
    All,
    /// A route's transactions.
    Route(RouteName),
    /// One transaction, on all its routes.
    Transaction(TransactionId),
}

/// The schedule of all routes. See the module's head for how it is driven.
#[derive(Debug)]
pub struct Relay {
    ledger: Ledger,
    lanes: Vec<Lane>,
    by_name: BTreeMap<RouteName, usize>,
    /// The lane of each of the ledger's routes.
    by_ledger: Vec<usize>,
    /// When each lane wants to be looked at, sorted; one entry at most for each, the same as its `wake`.
    wakes: Vec<(Timestamp, usize)>,
    /// The lanes of the configured routes, in the configuration's order.
    configured: Vec<usize>,
    events: Vec<Event>,
    loads: Loads,
    seed: u64,
    polled_at: Timestamp,
}

/// All that belongs to one route.
#[derive(Debug)]
struct Lane {
    name: RouteName,
    /// None: the route is not configured (any more), and its mail waits.
    max_active: Option<usize>,
    /// As configured, to see when they become others.
    next_hops: Vec<String>,
    health: Health,
    schedule: Schedule,
    wake: Option<Timestamp>,
}

impl Lane {
    fn place(&mut self, id: TransactionId, content_len: u64, place: Place) {
        let place = match place {
            Place::Deferred(_) if self.max_active.is_none() => Place::Due,
            place => place,
        };
        self.schedule.place(id, content_len, place);
    }

    fn may_attempt(&self) -> bool {
        self.health.is_up()
            && self.schedule.has_due()
            && self.max_active.is_some_and(|max| self.schedule.active() < max)
    }

    fn trouble(&mut self, why: &str, now: Timestamp, events: &mut Vec<Event>) {
        if self.health.trouble(why, now).is_some() {
            events.push(Event::PrimarySuspect { route: self.name.clone(), why: why.into() });
        }
    }

    /// Notes when this, lane number `number`, wants to be looked at.
    fn rewake(&mut self, number: usize, wakes: &mut Vec<(Timestamp, usize)>) {
        let wake = self.next_wake();
        if wake == self.wake {
            return;
        }
        if let Some(at) = std::mem::replace(&mut self.wake, wake) {
            wakes.retain(|wake| *wake != (at, number));
        }
        if let Some(at) = wake {
            wakes.insert(wakes.partition_point(|wake| *wake < (at, number)), (at, number));
        }
    }

    /// When [`Relay::look`] has something to do here. It must leave this later than `now`, or `poll` would not end.
    fn next_wake(&self) -> Option<Timestamp> {
        self.max_active?;
        let now = self.may_attempt().then(Timestamp::default);
        [now, self.health.next_probe(), self.schedule.next_wake()].into_iter().flatten().min()
    }
}

impl Relay {
    /// Schedules everything that `ledger` has pending. No primary is taken to be up: each is probed at once.
    pub fn new(routes: Arc<Routes>, ledger: Ledger, seed: u64, now: Timestamp) -> Self {
        let mut relay = Self {
            ledger,
            lanes: Vec::new(),
            by_name: BTreeMap::new(),
            by_ledger: Vec::new(),
            wakes: Vec::new(),
            configured: Vec::new(),
            events: Vec::new(),
            loads: Loads::default(),
            seed,
            polled_at: now,
        };
        relay.configured = routes.iter().map(|route| relay.add_lane(&route.name, Some(route), now)).collect();
        relay.learn_routes(now);
        relay.schedule_ledger(|_| true);
        (0..relay.lanes.len()).for_each(|lane| relay.rewake(lane));
        relay
    }

    /// How much waits on each route: to be looked at from elsewhere.
    pub fn loads(&self) -> &Loads {
        &self.loads
    }

    fn add_lane(&mut self, name: &RouteName, settings: Option<&RouteSettings>, now: Timestamp) -> usize {
        self.lanes.push(Lane {
            name: name.clone(),
            max_active: settings.map(RouteSettings::max_active),
            next_hops: settings.map(|route| route.next_hops.clone()).unwrap_or_default(),
            health: if settings.is_some() { Health::unknown(now) } else { Health::not_configured(name, now) },
            schedule: Schedule::counted(self.loads.of(name)),
            wake: None,
        });
        self.by_name.insert(name.clone(), self.lanes.len() - 1);
        self.lanes.len() - 1
    }

    /// Puts what is pending on these lanes where the ledger says.
    fn schedule_ledger(&mut self, concerns: impl Fn(usize) -> bool) {
        for (id, transaction) in self.ledger.iter() {
            for (route, place) in places(transaction) {
                let number = self.by_ledger.get(usize::from(route)).copied().filter(|number| concerns(*number));
                if let Some(lane) = number.and_then(|number| self.lanes.get_mut(number)) {
                    lane.place(id, transaction.content_len, place);
                }
            }
        }
    }

    /// Goes by other routes from now on. Mail of a route that is gone waits, as at a start without it, and goes on when
    /// the route comes back. A route with other next hops than before is probed afresh, at once: the end of a probe that
    /// began before must not be reported any more. Attempts under way end as they began, and those that fail on next hops
    /// of before are reported with [`Relay::attempt_outdated`].
    pub fn set_routes(&mut self, routes: &Routes, now: Timestamp) {
        let before = std::mem::take(&mut self.configured);
        // Leaves or comes: what its mail waits for is another thing from now on.
        let mut moved: BTreeSet<usize> = before.iter().copied().collect();
        for route in routes.iter() {
            let known = self.by_name.get(&route.name).copied();
            let number = known.unwrap_or_else(|| self.add_lane(&route.name, Some(route), now));
            self.configured.push(number);
            let was_configured = moved.remove(&number);
            let Some(lane) = self.lanes.get_mut(number) else { continue };
            if !was_configured {
                lane.health = Health::unknown(now);
                moved.insert(number);
            } else if lane.next_hops != route.next_hops {
                let was_up = lane.health.is_up();
                lane.health = Health::unknown(now);
                lane.health.reason = NEW_PRIMARY.into();
                self.events.extend(
                    was_up.then(|| Event::PrimarySuspect { route: lane.name.clone(), why: NEW_PRIMARY.into() }),
                );
            }
            lane.max_active = Some(route.max_active());
            lane.next_hops.clone_from(&route.next_hops);
        }
        for number in moved.iter().filter(|number| before.contains(number) && !self.configured.contains(number)) {
            let Some(lane) = self.lanes.get_mut(*number) else { continue };
            lane.max_active = None;
            lane.health = Health::not_configured(&lane.name, now);
            lane.schedule.forgive_all();
            if lane.schedule.counts().pending() > 0 {
                self.events.push(Event::PrimaryDown { route: lane.name.clone(), why: lane.health.reason.clone() });
            }
        }
        self.schedule_ledger(|lane| moved.contains(&lane));
        (0..self.lanes.len()).for_each(|lane| self.rewake(lane));
    }

    /// Gives every route of the ledger its lane. The ledger numbers them as they come and never anew.
    fn learn_routes(&mut self, now: Timestamp) {
        while let Ok(index) = RouteIndex::try_from(self.by_ledger.len()) {
            let Some(name) = self.ledger.route(index).cloned() else { break };
            let lane = self.by_name.get(&name).copied().unwrap_or_else(|| self.add_lane(&name, None, now));
            self.by_ledger.push(lane);
        }
    }

    /// Takes a durable fact. An `Attempted` one ends the active attempt of its transaction on the route of each
    /// recipient it names.
    pub fn apply(&mut self, position: Position, fact: &Fact, now: Timestamp) {
        let Some(id) = fact.transaction() else {
            self.ledger.apply(position, fact);
            return;
        };
        let sent = self.ledger.apply(position, fact);
        self.learn_routes(now);
        let Some(transaction) = sent.as_ref().or_else(|| self.ledger.get(id)) else { return };
        if let Fact::Attempted(attempted) = fact {
            for (index, outcome) in &attempted.results {
                let recipient = transaction.recipients.get(usize::from(*index));
                let number = recipient.and_then(|r| self.by_ledger.get(usize::from(r.route)));
                let Some(lane) = number.and_then(|number| self.lanes.get_mut(*number)) else { continue };
                lane.schedule.recorded(id);
                if let Outcome::Deferred { cause: Cause::Connection(why) | Cause::InDoubt(why), .. } = outcome {
                    lane.trouble(why, now, &mut self.events);
                }
            }
        }
        for (route, place) in places(transaction) {
            let Some(number) = self.by_ledger.get(usize::from(route)).copied() else { continue };
            let Some(lane) = self.lanes.get_mut(number) else { continue };
            if matches!(fact, Fact::Operated(_)) {
                lane.schedule.forgive(id);
            }
            lane.place(id, transaction.content_len, place);
            lane.rewake(number, &mut self.wakes);
        }
    }

    /// The next thing to do, if there is one.
    pub fn poll(&mut self, now: Timestamp) -> Option<Action> {
        // Deadlines are wall-clock time: a clock set back by a day must not delay a probe by a day.
        if self.polled_at.since(now) > CLOCK_STEP_BACK {
            for lane in 0..self.lanes.len() {
                self.probe_now(lane, now);
            }
        }
        self.polled_at = now;
        loop {
            let (_, lane) = self.wakes.first().copied().filter(|(at, _)| *at <= now)?;
            let action = self.look(lane, now);
            self.rewake(lane);
            if action.is_some() {
                return action;
            }
        }
    }

    fn look(&mut self, number: usize, now: Timestamp) -> Option<Action> {
        let lane = self.lanes.get_mut(number)?;
        lane.schedule.wake(now);
        if lane.health.next_probe().is_some_and(|at| at <= now) {
            lane.health.probe_begins(self.seed ^ number as u64, now);
            return Some(Action::Probe { route: lane.name.clone() });
        }
        if !lane.may_attempt() {
            return None;
        }
        let id = lane.schedule.begin()?;
        let Some(transaction) = self.ledger.get(id) else {
            // Not reached: every lane is told when a transaction leaves the ledger. If it were, forgetting is right.
            lane.schedule.recorded(id);
            lane.schedule.place(id, 0, Place::Settled);
            return None;
        };
        let recipients = due_recipients(&self.by_ledger, transaction, number, lane.schedule.is_flushed(id), now);
        let attempts = |index: &RecipientIndex| transaction.recipients.get(usize::from(*index)).map(|r| r.attempts);
        let attempt = recipients.iter().filter_map(attempts).max().unwrap_or(0).saturating_add(1);
        Some(Action::Attempt { id, route: lane.name.clone(), position: transaction.position, recipients, attempt })
    }

    /// When to call [`Self::poll`] again, unless something is reported before. May be in the past.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.wakes.first().map(|(at, _)| *at)
    }

    fn rewake(&mut self, number: usize) {
        if let Some(lane) = self.lanes.get_mut(number) {
            lane.rewake(number, &mut self.wakes);
        }
    }

    /// An attempt ended and nothing was recorded. The transaction is due again in its turn, and the primary is suspect.
    /// One under which the connection broke three times in a row waits, so that others pass. Without effect if there
    /// is no such attempt.
    pub fn attempt_failed(&mut self, id: TransactionId, route: &RouteName, why: ConnectionTrouble, now: Timestamp) {
        let Some(number) = self.by_name.get(route).copied() else { return };
        let Some(lane) = self.lanes.get_mut(number) else { return };
        if !lane.schedule.unrecorded(id) {
            return;
        }
        // Without the route nobody would wake it from its wait.
        if matches!(why, ConnectionTrouble::Broke(_)) && lane.max_active.is_some() {
            let times = lane.schedule.broke(id);
            if times > BROKEN_IN_TURN_MAX {
                lane.schedule.wait_until(id, now + backoff(times - BROKEN_IN_TURN_MAX, id, self.seed));
            }
        }
        lane.trouble(&why.to_string(), now, &mut self.events);
        self.replace(number, id);
    }

    /// As [`Self::attempt_failed`], of an attempt on next hops that the route has no more, or of one that never had a
    /// connection: neither the primary of now nor the message is to blame, so the transaction is due again in its turn,
    /// and nothing else changes.
    pub fn attempt_outdated(&mut self, id: TransactionId, route: &RouteName) {
        let Some(number) = self.by_name.get(route).copied() else { return };
        if self.lanes.get_mut(number).is_some_and(|lane| lane.schedule.unrecorded(id)) {
            self.replace(number, id);
        }
    }

    /// Puts a transaction whose attempt is over back where the ledger says.
    fn replace(&mut self, number: usize, id: TransactionId) {
        let Some(lane) = self.lanes.get_mut(number) else { return };
        if let Some(transaction) = self.ledger.get(id)
            && let Some(place) = place_on(&self.by_ledger, transaction, number)
        {
            lane.place(id, transaction.content_len, place);
        }
        lane.rewake(number, &mut self.wakes);
    }

    /// The probe of a route's primary ended. Without effect if none was under way.
    pub fn probe_ended(&mut self, route: &RouteName, result: Result<(), String>, now: Timestamp) {
        let Some(number) = self.by_name.get(route).copied() else { return };
        let Some(lane) = self.lanes.get_mut(number) else { return };
        let route = lane.name.clone();
        match lane.health.probe_ended(result, now) {
            Some(Change::Up { down_for }) => self.events.push(Event::PrimaryUp { route, down_for }),
            Some(Change::Down) => self.events.push(Event::PrimaryDown { route, why: lane.health.reason.clone() }),
            Some(Change::Suspect) | None => {}
        }
        self.rewake(number);
    }

    /// Makes deferred transactions due now, and probes at once where the primary is not known to be up. Returns how
    /// many transactions that concerns, those already due or active included; one on two routes counts twice. Those on
    /// hold, and those whose route is not configured, are not concerned.
    pub fn flush(&mut self, which: Flush, now: Timestamp) -> usize {
        let (numbers, only): (Vec<usize>, _) = match which {
            Flush::All => ((0..self.lanes.len()).collect(), None),
            Flush::Route(name) => (self.by_name.get(&name).copied().into_iter().collect(), None),
            Flush::Transaction(id) => (self.lanes_of(id), Some(id)),
        };
        let mut concerned = 0;
        for number in numbers {
            let Some(lane) = self.lanes.get_mut(number).filter(|lane| lane.max_active.is_some()) else { continue };
            let found = match only {
                Some(id) => usize::from(lane.schedule.flush(id)),
                None => lane.schedule.flush_all(),
            };
            concerned += found;
            if found > 0 || only.is_none() {
                self.probe_now(number, now);
            }
            self.rewake(number);
        }
        concerned
    }

    fn probe_now(&mut self, number: usize, now: Timestamp) {
        if let Some(lane) = self.lanes.get_mut(number) {
            lane.health.probe_now(now);
        }
        self.rewake(number);
    }

    /// The segments before `base.first` have left the journal. Nothing in them was to be settled.
    pub fn segments_left(&mut self, base: &Base) {
        self.ledger.segments_left(base);
    }

    /// What the facts so far say.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The changes of primaries' states since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// How every route stands: the configured ones in their order, then others that still have pending mail.
    pub fn route_status(&self, now: Timestamp) -> Vec<RouteStatus> {
        let others = self.lanes.iter().filter(|lane| lane.max_active.is_none() && lane.schedule.counts().pending() > 0);
        let status = |lane: &Lane| {
            let oldest = lane.schedule.oldest().and_then(|id| self.ledger.get(id)).map(|t| t.accepted_at);
            let next_probe = lane.max_active.and(lane.health.next_probe()).map(|at| at.max(now));
            let counts = lane.schedule.counts();
            RouteStatus {
                name: lane.name.clone(),
                next_hops: lane.next_hops.clone(),
                state: lane.health.state,
                since: lane.health.since,
                reason: lane.health.reason.clone(),
                pending: counts.pending(),
                bytes: lane.schedule.bytes(),
                oldest,
                eta: None,
                next_probe,
                counts,
            }
        };
        self.configured.iter().filter_map(|number| self.lanes.get(*number)).chain(others).map(status).collect()
    }

    /// Why nothing is sent on a route now; none if it is up or unknown.
    pub fn down_because(&self, route: &RouteName) -> Option<&str> {
        let lane = self.by_name.get(route).and_then(|number| self.lanes.get(*number))?;
        (!lane.health.is_up()).then_some(lane.health.reason.as_str())
    }

    /// What is being delivered now, and where; at most [`RouteSettings::max_active`] a route.
    pub fn active(&self) -> Vec<(TransactionId, RouteName)> {
        self.lanes.iter().flat_map(|lane| lane.schedule.active_ids().map(|id| (id, lane.name.clone()))).collect()
    }

    /// How a transaction stands on a route, and what happens next; none if nothing of it is pending there.
    pub fn transaction_state(&self, id: TransactionId, route: &RouteName) -> Option<StateView> {
        let lane = self.by_name.get(route).and_then(|number| self.lanes.get(*number))?;
        let state = lane.schedule.state(id)?;
        let next_at = lane.schedule.due_at(id);
        let next = match (state, next_at) {
            (TransactionState::Active, _) => "being delivered now".into(),
            (TransactionState::Hold, _) => "never by itself: on hold".into(),
            (TransactionState::Deferred, Some(at)) if lane.health.is_up() => format!("retry at {at}"),
            (TransactionState::Deferred, Some(at)) => format!("retry at {at}, if {route} is up by then"),
            _ if lane.max_active.is_none() => format!("never by itself: {}", lane.health.reason),
            _ if lane.health.is_up() => "as soon as a connection is free".into(),
            _ => format!("when {route} is up"),
        };
        Some(StateView { state, next, next_at })
    }

    fn lanes_of(&self, id: TransactionId) -> Vec<usize> {
        let routes = self.ledger.get(id).into_iter().flat_map(places);
        routes.filter_map(|(route, _)| self.by_ledger.get(usize::from(route)).copied()).collect()
    }
}

/// Where a transaction belongs, on each route that has one of its recipients.
fn places(transaction: &Transaction) -> impl Iterator<Item = (RouteIndex, Place)> {
    let recipients = &transaction.recipients;
    // The first recipient of a route speaks for all of them.
    let speaks = |(nth, recipient): &(usize, &RecipientEntry)| {
        recipients.iter().take(*nth).all(|earlier| earlier.route != recipient.route)
    };
    recipients.iter().enumerate().filter(speaks).filter_map(move |(nth, speaker)| {
        let on_route = recipients.iter().skip(nth).filter(|recipient| recipient.route == speaker.route);
        on_route.map(|recipient| Place::from(recipient.state)).min().map(|place| (speaker.route, place))
    })
}

/// Where a transaction belongs on this lane, if it has a recipient there.
fn place_on(by_ledger: &[usize], transaction: &Transaction, lane: usize) -> Option<Place> {
    let here = |recipient: &&RecipientEntry| by_ledger.get(usize::from(recipient.route)) == Some(&lane);
    transaction.recipients.iter().filter(here).map(|recipient| Place::from(recipient.state)).min()
}

/// The recipients of a lane to be tried together; not empty if the transaction is due there.
fn due_recipients(
    by_ledger: &[usize],
    transaction: &Transaction,
    lane: usize,
    flushed: bool,
    now: Timestamp,
) -> Vec<RecipientIndex> {
    let until = match place_on(by_ledger, transaction, lane) {
        _ if flushed => Timestamp::from_unix_ms(u64::MAX),
        // It was woken at this time, wherever the clock stepped since.
        Some(Place::Deferred(at)) => at.max(now),
        _ => now,
    };
    let is_due = |recipient: &RecipientEntry| {
        by_ledger.get(usize::from(recipient.route)) == Some(&lane)
            && match recipient.state {
                RecipientState::Due => true,
                RecipientState::Deferred(at) => at <= until,
                _ => false,
            }
    };
    let indexed = transaction.recipients.iter().enumerate();
    indexed.filter(|(_, r)| is_due(r)).filter_map(|(index, _)| RecipientIndex::try_from(index).ok()).collect()
}
