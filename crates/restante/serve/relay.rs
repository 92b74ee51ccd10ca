//! The relay's task: the one owner of the relay. Facts and reports go in, attempts and probes come out, one at a time.

use super::attempt::Job;
use super::choose::{Choice, Which, choose};
use super::clerk::{Decision, Decisions};
use super::couriers::{self, Office, Report};
use super::desk::{Assignment, Desk};
use super::index::IndexHandle;
use super::journal::Recorded;
use super::log::{Line, LogHandle};
use super::metrics::Metrics;
use crate::clock;
use restante_courier::Target;
use restante_envelope::{RouteName, Timestamp, TransactionId};
use restante_ledger::{
    Action as Operation, Balance, Base, Fact, Ledger, Past, Position, RecipientEntry, RecipientState, Served, Standing,
    Transaction,
};
use restante_relay::{Action, Event, Flush, MAX_CONNECTIONS_DEFAULT, Relay, RouteState, RouteStatus, Routes};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Batches of facts and reports on their way here. The journal's thread waits when this is full: the relay never waits
/// for the journal, so they cannot wait for one another.
pub(crate) const QUEUE: usize = 256;

/// Messages that get a `waiting` line when a primary goes down. One that flaps with a million messages due must not bury
/// the log; its line tells how many there are.
const WAITING_NAMED_MAX: usize = 1_000;

/// Whether there is room again on a full disk.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How often the relay is told that time passes.
const TICK: Duration = Duration::from_secs(60);

/// A question, or an order of an operator.
pub(crate) enum Request {
    /// How do the routes stand?
    Routes(oneshot::Sender<Vec<RouteStatus>>),
    /// Which transactions are being delivered now?
    Active(oneshot::Sender<Vec<(TransactionId, RouteName)>>),
    /// Try now.
    Flush(Flush, oneshot::Sender<usize>),
    /// Which of these would the action change, and where are their records?
    Choose(Which, Operation, oneshot::Sender<Choice>),
    /// Go by these routes from now on.
    SetRoutes(Arc<Routes>, NextHops, oneshot::Sender<()>),
    /// Begin no attempt until the other end is gone.
    Rest(oneshot::Receiver<()>),
    /// Which segments may leave if settled mail is kept for `retain`, and the newest is not younger than `age`?
    Leaving { retain: Duration, age: Duration, answer: oneshot::Sender<Leaving> },
    /// Which messages in the segments before this one are to be settled? Some of them, if they are many.
    Stragglers { first: u64, answer: oneshot::Sender<Vec<Straggler>> },
    /// What will be known of those segments when they have left? None if they cannot.
    BaseAt { first: u64, answer: oneshot::Sender<Option<Base>> },
    /// What the last daemon, this one or a reload of it, recorded of itself.
    Served(oneshot::Sender<Option<Served>>),
    /// How do these stand, as far as they are not wholly sent? And all together?
    Find(Vec<TransactionId>, oneshot::Sender<(HashMap<TransactionId, Transaction>, Balance)>),
    /// They have.
    Left { base: Base, answer: oneshot::Sender<()> },
}

/// What may be done about old segments.
pub(crate) struct Leaving {
    /// Those before this one may leave, once their stragglers were written again.
    pub(crate) first: Option<u64>,
    /// The newest one is old, and holds something.
    pub(crate) is_old: bool,
}

/// A message that is to be settled in a segment that is to leave.
pub(crate) struct Straggler {
    pub(crate) id: TransactionId,
    pub(crate) position: Position,
    pub(crate) content_len: u64,
    pub(crate) recipients: Vec<Standing>,
    /// An attempt is under way.
    pub(crate) is_active: bool,
}

/// The segment that is written now, as far as its facts tell.
#[derive(Clone, Copy)]
pub(crate) struct Newest {
    number: u64,
    since: Timestamp,
    /// Of more than the start of a daemon.
    holds_something: bool,
}

impl Newest {
    pub(crate) fn new(end: Option<Position>) -> Self {
        Self { number: end.map_or(0, |end| end.segment), since: clock::now(), holds_something: false }
    }

    /// Whether it is the first of a segment.
    fn take(&mut self, position: Position, fact: &Fact, now: Timestamp) -> bool {
        let is_first = position.segment > self.number;
        if is_first {
            *self = Self { number: position.segment, since: now, holds_something: false };
        }
        self.holds_something |= !matches!(fact, Fact::Served(_) | Fact::Watched(_));
        is_first
    }
}

/// Where each route's mail goes.
pub(crate) type NextHops = HashMap<RouteName, Arc<[Target]>>;

/// What the task is made of.
pub(crate) struct RelayTask {
    pub(crate) relay: Relay,
    pub(crate) office: Arc<Office>,
    pub(crate) desks: HashMap<RouteName, Arc<Desk>>,
    pub(crate) facts: mpsc::Receiver<Vec<Recorded>>,
    pub(crate) reports: mpsc::Receiver<Report>,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) log: LogHandle,
    pub(crate) index: IndexHandle,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) newest: Newest,
    pub(crate) decisions: Decisions,
    /// While the other end is there, no attempt begins.
    pub(crate) rest: Option<oneshot::Receiver<()>>,
}

/// The desk of a route whose mail goes to these.
pub(crate) fn desk((route, next_hops): (RouteName, Arc<[Target]>)) -> (RouteName, Arc<Desk>) {
    (route.clone(), Desk::new(route, next_hops, MAX_CONNECTIONS_DEFAULT))
}

impl RelayTask {
    /// Runs until the journal's thread has ended: what it still makes durable is still logged.
    pub(crate) async fn run(mut self) {
        let mut stopping = self.stopping.clone();
        let mut stopped = false;
        let mut minutes = tokio::time::interval(TICK);
        minutes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.tell_unconfigured();
        loop {
            // What is sent while that cannot be recorded is sent again after the next start.
            let is_stuck = self.office.settlements.are_stuck();
            let may_act = !stopped && self.rest.is_none() && !is_stuck;
            if may_act {
                self.act();
            }
            let next = match is_stuck {
                true => Some(clock::now() + LOOK_AGAIN),
                false => self.relay.poll_timeout().filter(|_| may_act),
            };
            tokio::select! {
                batch = self.facts.recv() => match batch {
                    Some(batch) => self.take_facts(batch),
                    None => return,
                },
                Some(report) = self.reports.recv() => self.take_report(report),
                Some(request) = self.requests.recv() => self.answer(request),
                _ = stopping.wait_for(|stop| *stop), if !stopped => {
                    stopped = true;
                    let open: Vec<_> = self.desks.values().cloned().collect();
                    open.iter().for_each(|desk| self.close(desk));
                }
                _ = rested(&mut self.rest) => self.rest = None,
                _ = minutes.tick() => self.relay.tick(clock::now()),
                () = super::session::until(next) => {}
            }
        }
    }

    /// Does everything that is due now.
    fn act(&mut self) {
        while let Some(action) = self.relay.poll(clock::now()) {
            match action {
                Action::Settle { id, position, recipients, reason } => {
                    self.decide(id, position, Operation::Settle, recipients, reason);
                }
                Action::Expire { id, position, recipients, reason } => {
                    self.decide(id, position, Operation::Expire, recipients, reason);
                }
                Action::Watch(watched) => drop(self.decisions.send(Decision::Watch(watched))),
                Action::Attempt { id, route, position, recipients, attempt, connections } => {
                    let content_len = self.relay.ledger().get(id).map_or(0, |t| t.content_len);
                    let job = Job { id, position, recipients, attempt };
                    let desk = self.desk(route);
                    if let Some((seat, first)) = desk.give(Assignment { job, content_len }, connections) {
                        tokio::spawn(couriers::run(desk, self.office.clone(), seat, first));
                    }
                }
                Action::Probe { route } => {
                    tokio::spawn(couriers::probe(self.desk(route), self.office.clone()));
                }
            }
        }
        for event in self.relay.take_events() {
            announce(&event);
            let line = Line::primary(&event, clock::now());
            match &event {
                Event::PrimaryDown { route, why } | Event::BreakerTripped { route, why } => {
                    self.log_waiting(line, route, why);
                }
                // For the operator; the delivery log tells what happened.
                Event::Expiring { .. } | Event::SlowedDown { .. } => {}
                _ => self.log.write(line),
            }
        }
    }

    fn decide(&self, id: TransactionId, at: Position, action: Operation, recipients: Vec<u16>, reason: String) {
        let _stopping = self.decisions.send(Decision::Operate { id, position: at, action, recipients, reason });
    }

    fn desk(&mut self, route: RouteName) -> Arc<Desk> {
        // Only configured routes have anything to do, and each of those has a desk.
        let new = |route: &RouteName| desk((route.clone(), Arc::from([]))).1;
        self.desks.entry(route).or_insert_with_key(new).clone()
    }

    /// What waits there is due again.
    fn close(&mut self, desk: &Desk) {
        for Assignment { job, .. } in desk.close() {
            self.relay.attempt_outdated(job.id, &desk.route);
        }
    }

    fn take_facts(&mut self, batch: Vec<Recorded>) {
        let now = clock::now();
        let (mut told, mut lines) = (Vec::with_capacity(batch.len()), Vec::new());
        for Recorded { position, fact, about, claim } in batch {
            self.relay.apply(position, &fact, now);
            // Counted now.
            drop(claim);
            if self.newest.take(position, &fact, now) {
                self.relay.note_states_again();
            }
            if let Fact::Operated(operated) = &fact
                && !matches!(operated.action, Operation::Release | Operation::Undo)
            {
                self.take_back(operated.id);
            }
            let recipients = about.as_ref().map(|a| a.envelope.recipients.as_slice()).unwrap_or_default();
            self.metrics.fact(&fact, |index| recipients.get(usize::from(index)).map(|r| &r.route));
            // The log's cursor passes every fact: one that is not told here is never told.
            lines.extend(Line::of(&fact, about.as_deref()).into_iter().map(|line| line.at(position)));
            if let Fact::Accepted(accepted) = &fact {
                lines.extend(self.waiting_lines(accepted.id, &accepted.envelope.recipients));
            }
            told.push((position, fact));
        }
        self.log.write_all(lines);
        self.index.take(told);
    }

    /// A hold, or a removal, is for what waits for a connection, too.
    fn take_back(&mut self, id: TransactionId) {
        for desk in self.desks.values().filter(|desk| desk.take_back(id)) {
            self.relay.attempt_outdated(id, &desk.route);
        }
    }

    fn waiting_lines(&self, id: TransactionId, recipients: &[restante_envelope::Recipient]) -> Vec<Line> {
        let mut routes: Vec<&RouteName> = recipients.iter().map(|r| &r.route).collect();
        routes.sort();
        routes.dedup();
        let is_down = |route: &RouteName| self.relay.down_because(route).map(|why| Line::waiting(id, route, why));
        routes.into_iter().filter_map(is_down).collect()
    }

    /// Everything due on a route that has just gone down begins to wait.
    fn log_waiting(&self, down: Line, route: &RouteName, why: &str) {
        let (named, pending) = due_on(self.relay.ledger(), route);
        self.log.write(down.pending(pending));
        self.log.write_all(named.into_iter().map(|id| Line::waiting(id, route, why)).collect());
    }

    fn take_report(&mut self, report: Report) {
        match report {
            // A primary of before that hangs for a minute says nothing of the one of now.
            Report::Failed { desk, id, .. } if !self.is_of_now(&desk) => self.relay.attempt_outdated(id, &desk.route),
            Report::Failed { desk, id, why } => self.relay.attempt_failed(id, &desk.route, why, clock::now()),
            Report::Returned { desk, id } => self.relay.attempt_outdated(id, &desk.route),
            Report::Probed { desk, result } => {
                // What a primary of before answered says nothing of the one of now.
                if self.is_of_now(&desk) {
                    self.relay.probe_ended(&desk.route, result, clock::now());
                }
            }
        }
    }

    /// Whether it leads to the route's next hops of now: the same desk, not the same addresses. A route that was gone
    /// meanwhile begins afresh.
    fn is_of_now(&self, desk: &Arc<Desk>) -> bool {
        self.desks.get(&desk.route).is_some_and(|now| Arc::ptr_eq(now, desk))
    }

    fn set_routes(&mut self, routes: &Routes, next_hops: NextHops) {
        let mut before = std::mem::take(&mut self.desks);
        for (route, hops) in next_hops {
            let kept = before.remove(&route);
            match kept {
                Some(desk) if desk.next_hops == hops => self.desks.insert(route, desk),
                other => {
                    before.extend(other.map(|desk| (route.clone(), desk)));
                    self.desks.extend([desk((route, hops))]);
                    None
                }
            };
        }
        before.values().for_each(|desk| self.close(desk));
        self.relay.set_routes(routes, clock::now());
        self.tell_unconfigured();
    }

    /// Mail whose route the configuration does not have waits for ever, unless somebody is told.
    fn tell_unconfigured(&self) {
        let routes = self.relay.route_status(clock::now());
        for RouteStatus { name, pending, .. } in routes.iter().filter(|route| !self.desks.contains_key(&route.name)) {
            let s = if *pending == 1 { " waits" } else { "s wait" };
            tracing::warn!(
                "route {name} is not configured, and {pending} message{s} for it: they go on when a route has that name again"
            );
        }
    }

    fn answer(&mut self, request: Request) {
        // What was durable before the question is part of the answer.
        for _ in 0..QUEUE {
            let Ok(batch) = self.facts.try_recv() else { break };
            self.take_facts(batch);
        }
        // Whoever asked may have gone; that changes nothing here.
        match request {
            Request::Routes(answer) => drop(answer.send(self.relay.route_status(clock::now()))),
            Request::Active(answer) => drop(answer.send(self.relay.active())),
            Request::Flush(which, answer) => drop(answer.send(self.relay.flush(which, clock::now()))),
            Request::SetRoutes(routes, next_hops, answer) => {
                self.set_routes(&routes, next_hops);
                let _gone = answer.send(());
            }
            Request::Choose(which, action, answer) => drop(answer.send(self.choose(&which, action))),
            Request::Served(answer) => drop(answer.send(self.relay.ledger().served().cloned())),
            Request::Rest(rest) => self.rest = Some(rest),
            Request::Leaving { retain, age, answer } => {
                let (now, newest) = (clock::now(), self.newest);
                let first = self.relay.ledger().leaving(newest.number, retain, now);
                let is_old = now.since(newest.since) >= age;
                let first = first.filter(|_| is_old);
                let _gone = answer.send(Leaving { first, is_old: is_old && newest.holds_something });
            }
            Request::Stragglers { first, answer } => drop(answer.send(self.stragglers(first))),
            Request::BaseAt { first, answer } => drop(answer.send(base_at(&self.relay, first))),
            Request::Find(ids, answer) => {
                let ledger = self.relay.ledger();
                let found = ids.into_iter().filter_map(|id| Some((id, ledger.get(id)?.clone()))).collect();
                let _gone = answer.send((found, ledger.balance()));
            }
            Request::Left { base, answer } => {
                self.relay.segments_left(&base);
                self.index.left(base.first);
                let _gone = answer.send(());
            }
        }
    }

    fn stragglers(&self, first: u64) -> Vec<Straggler> {
        let active: HashSet<TransactionId> = self.relay.active().into_iter().map(|(id, _)| id).collect();
        let ledger = self.relay.ledger();
        let standing = |entry: &RecipientEntry| Standing {
            attempts: entry.attempts,
            state: entry.state,
            why: String::new(),
            past: Past::default(),
        };
        let straggler = |id: TransactionId| {
            let transaction = ledger.get(id)?;
            let recipients = transaction.recipients.iter().map(standing).collect();
            let (position, content_len) = (transaction.position, transaction.content_len);
            Some(Straggler { id, position, content_len, recipients, is_active: active.contains(&id) })
        };
        ledger.stragglers(first).into_iter().filter_map(straggler).collect()
    }

    fn choose(&self, which: &Which, action: Operation) -> Choice {
        let active = self.relay.active().into_iter().map(|(id, _)| id).collect();
        choose(self.relay.ledger(), which, action, &active)
    }
}

/// What was removed while it is being delivered is settled, but may turn out to be sent: its segment stays until then.
fn base_at(relay: &Relay, first: u64) -> Option<Base> {
    let ledger = relay.ledger();
    let is_there = |id: TransactionId| ledger.get(id).is_some_and(|t| t.position.segment < first);
    let is_delivering = relay.active().into_iter().any(|(id, _)| is_there(id));
    if is_delivering { None } else { ledger.base_at(first) }
}

/// Returns when the other end is gone; never if there is none.
async fn rested(rest: &mut Option<oneshot::Receiver<()>>) {
    match rest {
        Some(rest) => drop(rest.await),
        None => std::future::pending().await,
    }
}

/// The first messages due on a route, and how many there are.
fn due_on(ledger: &Ledger, route: &RouteName) -> (Vec<TransactionId>, u64) {
    let (mut named, mut pending) = (Vec::new(), 0);
    let Some(index) = ledger.find_route(route) else { return (named, pending) };
    for (id, transaction) in ledger.iter() {
        if transaction.recipients.iter().any(|r| r.route == index && r.state == RecipientState::Due) {
            pending += 1;
            if named.len() < WAITING_NAMED_MAX {
                named.push(id);
            }
        }
    }
    (named, pending)
}

fn announce(event: &Event) {
    match event {
        Event::PrimaryUp { route, down_for: Some(down) } => {
            tracing::info!("route {route}: the primary is up again after {} s", down.as_secs());
        }
        Event::PrimaryUp { route, down_for: None } => tracing::info!("route {route}: the primary is up"),
        Event::PrimarySuspect { route, why } => tracing::info!("route {route}: the primary may be down: {why}"),
        Event::PrimaryDown { route, why } => {
            tracing::warn!("route {route}: the primary is down, mail for it waits: {why}");
        }
        Event::PrimaryRecovering { route, down_for } => {
            let after = down_for.map_or(String::new(), |down| format!(" after {} s", down.as_secs()));
            tracing::info!("route {route}: the primary answers again{after}, a canary goes first");
        }
        Event::DrainStarted { route, messages } => {
            tracing::info!("route {route}: the primary took the canary, {messages} messages follow");
        }
        Event::DrainFinished { route, messages, took } => {
            tracing::info!("route {route}: the backlog is gone, {messages} messages in {} s", took.as_secs());
        }
        Event::BreakerTripped { route, why } => {
            tracing::error!(
                "route {route}: {why}: nothing more is sent but a canary now and then, and nothing is bounced; \
                 `restante queue release --route {route}` tries again at once"
            );
        }
        Event::SlowedDown { route, why } => {
            tracing::info!("route {route}: the primary asks for a slower pace, and is given one: {why}");
        }
        Event::Expiring { route, messages } => {
            tracing::warn!(
                "route {route}: {messages} messages will be given up within two days: `expire` of their route"
            );
        }
        Event::BreakerReset { route } => {
            tracing::info!("route {route}: the primary takes mail again, all that it refused is tried again");
        }
    }
}

/// Whether a route's primary takes mail, for a page that wants one word.
pub(crate) fn is_up(status: &RouteStatus) -> bool {
    matches!(status.state, RouteState::Up | RouteState::Recovering)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::journal::testing::{contents, message, write, writer};

    #[test]
    fn what_is_removed_while_it_is_being_delivered_keeps_its_segment_until_that_ends() {
        let directory = tempfile::tempdir().unwrap();
        let id = write(&mut writer(directory.path()), &[message(b"x", &["a@x.test"], None)])[0];
        let route = RouteName::new("example.test");
        let settings = restante_relay::RouteSettings {
            name: route.clone(),
            domains: vec![restante_envelope::DomainName::parse("x.test").unwrap().into()],
            next_hops: Vec::new(),
            recipients: None,
            max_connections: 1,
            attempts_ahead: 0,
            per_minute: None,
            expire: restante_relay::EXPIRE_DEFAULT,
            expire_cap: restante_relay::EXPIRE_CAP_DEFAULT,
        };
        let (routes, now) = (Arc::new(Routes::new(vec![settings]).unwrap()), clock::now());
        let mut relay = Relay::new(routes, contents(directory.path()).ledger, 7, now);
        assert!(std::iter::from_fn(|| relay.poll(now)).any(|action| matches!(action, Action::Probe { .. })));
        relay.probe_ended(&route, Ok(()), now);
        assert!(std::iter::from_fn(|| relay.poll(now)).any(|action| matches!(action, Action::Attempt { .. })));
        let (actor, reason, recipients) = ("a".to_owned(), "r".to_owned(), vec![0]);
        let operated = restante_ledger::Operated { id, at: now, action: Operation::Remove, recipients, actor, reason };
        relay.apply(Position { segment: 1, offset: 1 << 20 }, &Fact::Operated(operated), now);
        assert_eq!(base_at(&relay, 2), None);
        relay.attempt_outdated(id, &route);
        assert_eq!(base_at(&relay, 2).map(|base| base.left.removed), Some(1));
    }

    #[test]
    fn a_primary_that_flaps_does_not_bury_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(directory.path());
        let messages: Vec<_> = (0..=WAITING_NAMED_MAX).map(|_| message(b"x", &["a@x.test"], None)).collect();
        write(&mut writer, &messages);
        write(&mut writer, &[message(b"x", &["a@x.test"], Some("virus"))]);
        let ledger = contents(directory.path()).ledger;
        let (named, pending) = due_on(&ledger, &RouteName::new("example.test"));
        assert_eq!((named.len(), pending), (WAITING_NAMED_MAX, 1_001));
        assert_eq!(due_on(&ledger, &RouteName::new("other.test")), (Vec::new(), 0));
    }
}
