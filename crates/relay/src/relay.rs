//! The live relay: owns the ledger, decides what is attempted and what is probed, one action at a time.
//!
//! Sans-IO: after every call, call [`Relay::poll`] until it gives nothing, then wait for [`Relay::poll_timeout`] or the
//! next report. It never decides what a reply means (see [`judge`](crate::judge)), and never changes the ledger but by
//! a fact that is already durable.

use crate::health::{CLOCK_STEP_BACK, ConnectionTrouble, Health};
use crate::lane::Lane;
use crate::load::Loads;
use crate::schedule::Place;
use crate::status::{Event, RouteStatus, StateView, TransactionState};
use crate::view::{View, due_recipients, place_on, places, signs};
use crate::{RouteSettings, Routes, backoff};
use restante_envelope::{RouteName, Timestamp, TransactionId};
use restante_ledger::{
    Action as Operation, Base, Cause, Fact, Ledger, Outcome, Position, RecipientIndex, RecipientState, RouteIndex,
    Watched,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Broken connections in a row under one transaction after which it still keeps its turn. More cannot be told from a
/// message that breaks the connection by itself (too large for the path, deadly to a filter); without a wait that one
/// would be first in line for ever and let nobody pass.
const BROKEN_IN_TURN_MAX: u16 = 2;

/// A message that is put off by a busy server again and again lets others pass for so long: most likely it has no part in it.
const PUT_OFF_BRIEFLY: Duration = Duration::from_secs(15);
/// If it is put off so often, it may be its sender that the server does not like.
const PUT_OFF_BRIEFLY_MAX: u16 = 50;

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
        /// Connections to the primary that may be open now, this one's included.
        connections: usize,
    },
    /// Write down that the primary is believed to refuse a recipient: an `Operated` fact with the action `Settle`.
    Settle {
        /// The transaction.
        id: TransactionId,
        /// Where its `Accepted` record is.
        position: Position,
        /// Those that it refused with the same words; never empty.
        recipients: Vec<RecipientIndex>,
        /// What it said.
        reason: String,
    },
    /// Write down that a message had its time: an `Operated` fact with the action `Expire`.
    Expire {
        /// The transaction.
        id: TransactionId,
        /// Where its `Accepted` record is.
        position: Position,
        /// Never empty.
        recipients: Vec<RecipientIndex>,
        /// In words.
        reason: String,
    },
    /// Write down how a primary stands: a `Watched` fact.
    Watch(Watched),
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
    pub(crate) ledger: Ledger,
    pub(crate) lanes: Vec<Lane>,
    by_name: BTreeMap<RouteName, usize>,
    /// The lane of each of the ledger's routes.
    pub(crate) by_ledger: Vec<usize>,
    /// When each lane wants to be looked at, sorted; one entry at most for each, the same as its `wake`.
    wakes: Vec<(Timestamp, usize)>,
    /// The lanes of the configured routes, in the configuration's order.
    configured: Vec<usize>,
    pub(crate) events: Vec<Event>,
    /// How many of them had been told when the states were last written down.
    pub(crate) events_noted: usize,
    pub(crate) ticked_at: Option<Timestamp>,
    /// To be done next.
    pub(crate) queued: VecDeque<Action>,
    /// To be written down, by transaction.
    settled: VecDeque<(TransactionId, RecipientIndex, String)>,
    loads: Loads,
    seed: u64,
    polled_at: Timestamp,
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
            events_noted: 0,
            ticked_at: None,
            queued: VecDeque::new(),
            settled: VecDeque::new(),
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
        self.lanes.push(Lane::new(name, settings, self.loads.of(name), now));
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
            let is_another = lane.next_hops != route.next_hops;
            lane.set(route);
            if !was_configured {
                lane.begin_anew(Health::unknown(now), now);
                moved.insert(number);
            } else if is_another {
                let was_up = lane.health.is_up();
                lane.begin_anew(Health::unknown(now), now);
                lane.health.reason = NEW_PRIMARY.into();
                self.events.extend(
                    was_up.then(|| Event::PrimarySuspect { route: lane.name.clone(), why: NEW_PRIMARY.into() }),
                );
            }
        }
        for number in moved.iter().filter(|number| before.contains(number) && !self.configured.contains(number)) {
            let Some(lane) = self.lanes.get_mut(*number) else { continue };
            lane.limits = None;
            lane.begin_anew(Health::not_configured(&lane.name, now), now);
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
        let mut heard =
            if let Fact::Attempted(attempted) = fact { signs(&self.ledger, attempted) } else { BTreeMap::new() };
        let sent = self.ledger.apply(position, fact);
        self.learn_routes(now);
        let Some(transaction) = sent.as_ref().or_else(|| self.ledger.get(id)) else { return };
        if let Fact::Attempted(attempted) = fact {
            for (index, outcome) in &attempted.results {
                let recipient = transaction.recipients.get(usize::from(*index));
                let number = recipient.and_then(|r| self.by_ledger.get(usize::from(r.route)));
                let Some(lane) = number.and_then(|number| self.lanes.get_mut(*number)) else { continue };
                if let Some(signs) = recipient.and_then(|r| heard.get_mut(&r.route)) {
                    signs.is_retried |= lane.schedule.is_retried(id);
                }
                lane.schedule.recorded(id);
                lane.ended(id, now);
                if let Outcome::Deferred { cause: Cause::Connection(why) | Cause::InDoubt(why), .. } = outcome {
                    lane.trouble(why, now, &mut self.events);
                }
            }
        }
        let took_ms = if let Fact::Attempted(attempted) = fact { attempted.timings.transfer_ms } else { 0 };
        for (route, place) in places(transaction) {
            let Some(number) = self.by_ledger.get(usize::from(route)).copied() else { continue };
            let Some(lane) = self.lanes.get_mut(number) else { continue };
            if let Fact::Operated(operated) = fact {
                lane.schedule.forgive(id);
                if operated.action == Operation::Release {
                    lane.breaker.release(now);
                }
            }
            lane.place(id, transaction.content_len, place);
            match (heard.remove(&route), fact) {
                (Some(signs), _) => {
                    self.settled.extend(lane.answered(id, signs, took_ms, now, &mut self.events));
                }
                (None, Fact::Attempted(_)) => lane.untold(now),
                (None, _) => {}
            }
            lane.settle_drain(now, &mut self.events);
            lane.rewake(number, &mut self.wakes, now);
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
            self.note_changes(now);
            if let Some(action) = self.queued.pop_front().or_else(|| self.next_settled()) {
                return Some(action);
            }
            let (_, lane) = self.wakes.first().copied().filter(|(at, _)| *at <= now)?;
            let action = self.look(lane, now);
            self.rewake(lane);
            if action.is_some() {
                return action;
            }
        }
    }

    /// Of what the primary is believed to have refused: the recipients of one message that it refused with the same words.
    fn next_settled(&mut self) -> Option<Action> {
        while let Some((id, index, reason)) = self.settled.pop_front() {
            let mut recipients = vec![index];
            while let Some((_, index, _)) = self.settled.pop_front_if(|(next, _, why)| *next == id && *why == reason) {
                recipients.push(index);
            }
            let Some(transaction) = self.ledger.get(id) else { continue };
            let state = |index: &RecipientIndex| transaction.recipients.get(usize::from(*index)).map(|r| r.state);
            recipients.retain(|index| state(index) == Some(RecipientState::Refused));
            if !recipients.is_empty() {
                return Some(Action::Settle { id, position: transaction.position, recipients, reason });
            }
        }
        None
    }

    fn look(&mut self, number: usize, now: Timestamp) -> Option<Action> {
        let lane = self.lanes.get_mut(number)?;
        lane.schedule.wake(now);
        lane.retry_quiet(now);
        if lane.health.next_probe().is_some_and(|at| at <= now) {
            lane.health.probe_begins(self.seed ^ number as u64, now);
            return Some(Action::Probe { route: lane.name.clone() });
        }
        let id = lane.begin(&View { ledger: &self.ledger, by_ledger: &self.by_ledger, number }, now)?;
        let Some(transaction) = self.ledger.get(id) else {
            // Not reached: every lane is told when a transaction leaves the ledger. If it were, forgetting is right.
            lane.schedule.recorded(id);
            lane.schedule.place(id, 0, Place::Settled);
            return None;
        };
        let (flushed, retried) = (lane.schedule.is_flushed(id), lane.schedule.is_retried(id));
        let recipients = due_recipients(&self.by_ledger, transaction, number, (flushed, retried), now);
        let attempts = |index: &RecipientIndex| transaction.recipients.get(usize::from(*index)).map(|r| r.attempts);
        let attempt = recipients.iter().filter_map(attempts).max().unwrap_or(0).saturating_add(1);
        let (route, connections) = (lane.name.clone(), lane.connections(now));
        Some(Action::Attempt { id, route, position: transaction.position, recipients, attempt, connections })
    }

    /// When to call [`Self::poll`] again, unless something is reported before. May be in the past.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let settled = (!self.settled.is_empty() || !self.queued.is_empty()).then(Timestamp::default);
        settled.or(self.wakes.first().map(|(at, _)| *at))
    }

    fn rewake(&mut self, number: usize) {
        if let Some(lane) = self.lanes.get_mut(number) {
            lane.rewake(number, &mut self.wakes, self.polled_at);
        }
    }

    /// An attempt ended and nothing was recorded. The transaction is due again in its turn, and the primary is suspect, unless
    /// it only has enough to do. One under which the connection broke three times in a row, or that was put off so often,
    /// waits, so that others pass. Without effect if there is no such attempt.
    pub fn attempt_failed(&mut self, id: TransactionId, route: &RouteName, why: ConnectionTrouble, now: Timestamp) {
        let Some(number) = self.by_name.get(route).copied() else { return };
        let Some(lane) = self.lanes.get_mut(number) else { return };
        if !lane.schedule.unrecorded(id) {
            return;
        }
        lane.ended(id, now);
        // Without the route nobody would wake it from its wait.
        if matches!(why, ConnectionTrouble::Broke(_) | ConnectionTrouble::PushedBack(_)) && lane.is_configured() {
            let times = lane.schedule.broke(id);
            let is_put_off = matches!(why, ConnectionTrouble::PushedBack(_));
            let in_turn = if is_put_off { PUT_OFF_BRIEFLY_MAX } else { BROKEN_IN_TURN_MAX };
            if times > in_turn {
                lane.schedule.wait_until(id, now + backoff(times - in_turn, id, self.seed));
            } else if times > BROKEN_IN_TURN_MAX {
                lane.schedule.wait_until(id, now + PUT_OFF_BRIEFLY);
            }
        }
        if !lane.is_busy(&why, now, &mut self.events) {
            lane.trouble(&why.to_string(), now, &mut self.events);
        }
        self.replace(number, id);
    }

    /// As [`Self::attempt_failed`], of an attempt on next hops that the route has no more, or of one that never had a
    /// connection: neither the primary of now nor the message is to blame, so the transaction is due again in its turn,
    /// and nothing else changes.
    pub fn attempt_outdated(&mut self, id: TransactionId, route: &RouteName) {
        let Some(number) = self.by_name.get(route).copied() else { return };
        if let Some(lane) = self.lanes.get_mut(number).filter(|lane| lane.schedule.is_active(id)) {
            lane.schedule.unrecorded(id);
            lane.ended(id, self.polled_at);
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
        lane.rewake(number, &mut self.wakes, self.polled_at);
    }

    /// The probe of a route's primary ended. Without effect if none was under way.
    pub fn probe_ended(&mut self, route: &RouteName, result: Result<(), String>, now: Timestamp) {
        let Some(number) = self.by_name.get(route).copied() else { return };
        let Some(lane) = self.lanes.get_mut(number) else { return };
        lane.probed(result, now, &mut self.events);
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
            let Some(lane) = self.lanes.get_mut(number).filter(|lane| lane.is_configured()) else { continue };
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
            lane.breaker.release(now);
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
        self.events_noted = 0;
        std::mem::take(&mut self.events)
    }

    /// How every route stands: the configured ones in their order, then others that still have pending mail.
    pub fn route_status(&self, now: Timestamp) -> Vec<RouteStatus> {
        let others = self.lanes.iter().filter(|lane| !lane.is_configured() && lane.schedule.counts().pending() > 0);
        let status = |lane: &Lane| {
            let oldest = lane.schedule.oldest().and_then(|id| self.ledger.get(id)).map(|t| t.accepted_at);
            let next_probe = lane.health.next_probe().filter(|_| lane.is_configured()).map(|at| at.max(now));
            let counts = lane.schedule.counts();
            RouteStatus {
                name: lane.name.clone(),
                next_hops: lane.next_hops.clone(),
                state: lane.state(),
                since: lane.since(),
                reason: lane.reason().to_owned(),
                connections: lane.pace.connections(),
                limit_milli: lane.pace.limit_milli(),
                speed_milli: lane.pace.speed_milli(now),
                is_tripped: lane.breaker.tripped().is_some(),
                pending: counts.pending(),
                bytes: lane.schedule.bytes(),
                oldest,
                eta: lane.eta(now),
                expiring: lane.expiring,
                next_probe,
                counts,
            }
        };
        self.configured.iter().filter_map(|number| self.lanes.get(*number)).chain(others).map(status).collect()
    }

    /// Why nothing is sent on a route now; none if mail flows or the route is unknown.
    pub fn down_because(&self, route: &RouteName) -> Option<&str> {
        let lane = self.by_name.get(route).and_then(|number| self.lanes.get(*number))?;
        let is_tripped = lane.breaker.tripped().is_some();
        (is_tripped || !lane.health.is_up()).then_some(lane.reason())
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
            (TransactionState::Hold, _) if lane.schedule.is_refused(id) => match lane.breaker.tripped() {
                Some((why, _)) => format!("when {route} takes a canary again: {why}"),
                None => format!("tried once more when {route} takes other mail"),
            },
            (TransactionState::Hold, _) => "never by itself: on hold".into(),
            (TransactionState::Deferred, Some(at)) if lane.health.is_up() => format!("retry at {at}"),
            (TransactionState::Deferred, Some(at)) => format!("retry at {at}, if {route} is up by then"),
            _ if !lane.is_configured() => format!("never by itself: {}", lane.health.reason),
            _ if lane.breaker.tripped().is_some() => format!("when {route} takes a canary again: {}", lane.reason()),
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
