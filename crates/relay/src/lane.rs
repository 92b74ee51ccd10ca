//! All that belongs to one route: its mail, its primary's health, whether that is believed, and how fast it is given mail. Knows
//! the ledger only as it is shown.

use crate::RouteSettings;
use crate::breaker::{Breaker, Canary, Finding, Signs};
use crate::health::{Change, ConnectionTrouble, Health};
use crate::load::Load;
use crate::pace::Pace;
use crate::schedule::{Place, Schedule};
use crate::status::{Event, RouteState};
use restante_envelope::{RouteName, Timestamp, TransactionId};
use restante_ledger::{Mailbox, RecipientIndex};
use std::collections::BTreeSet;
use std::time::Duration;

/// A mailbox has this part of what is under way while others wait: a flood leaves three quarters to them.
const SHARES: usize = 4;
/// How many of the oldest are looked at for a canary that the primary should know.
const CANARY_LOOK_MAX: usize = 256;
/// While a primary has tripped its breaker, the canaries go round so many of those it refused: one mailbox may be gone indeed.
const CANARY_ROUND: usize = 8;

/// What is not answered for this long gets company on another connection: the message itself may be what hangs, in a filter.
const PATIENCE: Duration = Duration::from_secs(5);
/// At most so much of it. A server on which four messages hang is slow.
const COMPANY_MAX: u32 = 3;

/// What a lane needs to know of a message.
pub(crate) trait Messages {
    /// Whose it is: of several, its first recipient on this route.
    fn mailbox(&self, id: TransactionId) -> Mailbox;
    /// Whether the primary took mail for that mailbox before.
    fn is_known(&self, id: TransactionId) -> bool;
}

#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) name: RouteName,
    /// None: the route is not configured (any more), and its mail waits.
    pub(crate) limits: Option<Limits>,
    /// As configured, to see when they become others.
    pub(crate) next_hops: Vec<String>,
    pub(crate) health: Health,
    pub(crate) schedule: Schedule,
    pub(crate) breaker: Breaker,
    pub(crate) pace: Pace,
    /// Under way to a primary of before.
    outdated: BTreeSet<TransactionId>,
    /// When an attempt ended, or one began while none was under way.
    heard_at: Timestamp,
    drain: Option<Drain>,
    /// What the primary said when it asked for a slower pace, or turned a connection away.
    asked: Option<String>,
    /// Its state as it was written down last.
    pub(crate) noted: Option<RouteState>,
    /// Messages that will be given up within two days.
    pub(crate) expiring: u64,
    pub(crate) warned_at: Option<Timestamp>,
    wake: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    connections: usize,
    attempts_ahead: usize,
    per_minute: Option<u32>,
    pub(crate) expire: Duration,
    pub(crate) expire_cap: Duration,
}

impl From<&RouteSettings> for Limits {
    fn from(route: &RouteSettings) -> Self {
        let RouteSettings { max_connections: connections, attempts_ahead, per_minute, expire, expire_cap, .. } = *route;
        Self { connections, attempts_ahead, per_minute, expire, expire_cap }
    }
}

/// A backlog on its way out, since the primary came up.
#[derive(Debug)]
struct Drain {
    began: Timestamp,
    down_for: Option<Duration>,
    /// When it began.
    messages: u64,
    answered: u64,
    /// It took one.
    is_believed: bool,
}

impl Lane {
    pub(crate) fn new(name: &RouteName, settings: Option<&RouteSettings>, load: Load, now: Timestamp) -> Self {
        let limits = settings.map(Limits::from);
        Self {
            name: name.clone(),
            limits,
            next_hops: settings.map(|route| route.next_hops.clone()).unwrap_or_default(),
            health: if settings.is_some() { Health::unknown(now) } else { Health::not_configured(name, now) },
            schedule: Schedule::counted(load),
            breaker: Breaker::new(now),
            pace: Pace::new(limits.map_or(1, |l| l.connections), limits.and_then(|l| l.per_minute), now),
            outdated: BTreeSet::new(),
            heard_at: now,
            drain: None,
            asked: None,
            noted: None,
            expiring: 0,
            warned_at: None,
            wake: None,
        }
    }

    pub(crate) fn is_configured(&self) -> bool {
        self.limits.is_some()
    }

    /// Goes by these settings from now on.
    pub(crate) fn set(&mut self, route: &RouteSettings) {
        let limits = Limits::from(route);
        self.limits = Some(limits);
        self.pace.set_limits(limits.connections, limits.per_minute);
        self.next_hops.clone_from(&route.next_hops);
    }

    /// Its primary is another one, or it has none any more: nothing that was found is true of it.
    pub(crate) fn begin_anew(&mut self, health: Health, now: Timestamp) {
        let limits = self.limits;
        self.health = health;
        self.drain = None;
        self.outdated = self.schedule.active_ids().collect();
        self.breaker = Breaker::new(now);
        self.pace = Pace::new(limits.map_or(1, |l| l.connections), limits.and_then(|l| l.per_minute), now);
    }

    pub(crate) fn place(&mut self, id: TransactionId, content_len: u64, place: Place) {
        let place = match place {
            Place::Deferred(_) if self.limits.is_none() => Place::Due,
            place => place,
        };
        self.schedule.place(id, content_len, place);
    }

    /// As every listing has it.
    pub(crate) fn state(&self) -> RouteState {
        match self.health.state {
            RouteState::Up if self.drain.is_some() || self.breaker.tripped().is_some() => RouteState::Recovering,
            state => state,
        }
    }

    /// Since when it is in that state.
    pub(crate) fn since(&self) -> Timestamp {
        self.breaker.tripped().filter(|_| self.health.is_up()).map_or(self.health.since, |(_, since)| since)
    }

    /// Why mail does not just flow; empty if it does.
    pub(crate) fn reason(&self) -> &str {
        match self.breaker.tripped() {
            Some((why, _)) if self.health.is_up() => why,
            None if self.health.is_up() && self.pace.is_slowed() => self.asked.as_deref().unwrap_or_default(),
            _ => &self.health.reason,
        }
    }

    /// Messages that may be under way now.
    fn attempts_max(&self, now: Timestamp) -> usize {
        let Some(limits) = self.limits else { return 0 };
        let connections = self.connections(now).min(limits.connections);
        connections + limits.attempts_ahead * connections / limits.connections.max(1)
    }

    /// Messages under way to the primary of now.
    fn active(&self) -> usize {
        self.schedule.active().saturating_sub(self.outdated.len())
    }

    /// An attempt is over.
    pub(crate) fn ended(&mut self, id: TransactionId, now: Timestamp) {
        self.outdated.remove(&id);
        self.heard_at = now;
    }

    /// Attempts that seem to hang.
    fn slow(&self, now: Timestamp) -> usize {
        let waits = now.since(self.heard_at).as_secs() / PATIENCE.as_secs();
        usize::try_from(waits.min(COMPANY_MAX.into())).unwrap_or(0).min(self.active())
    }

    /// Connections that may be open now.
    pub(crate) fn connections(&self, now: Timestamp) -> usize {
        self.pace.connections().max(1 + self.slow(now))
    }

    fn has_candidate(&self, now: Timestamp) -> bool {
        self.schedule.has_due() || (self.breaker.canary().is_some() && self.refused_canary(now).is_some())
    }

    /// The oldest of those that it refused, and not since it came up.
    fn refused_canary(&self, now: Timestamp) -> Option<TransactionId> {
        match self.breaker.canary()? {
            Canary::Refused(_) | Canary::Untried => self.schedule.refused().next(),
            Canary::Next if self.breaker.stale_at().is_some_and(|at| at <= now) => self.schedule.refused().next(),
            Canary::Next => self.schedule.refused().find(|id| !self.breaker.has_just_refused(*id)),
        }
    }

    fn may_attempt(&self, now: Timestamp) -> bool {
        let active = self.active();
        self.health.is_up()
            && active < self.attempts_max(now)
            && self.has_candidate(now)
            && self.breaker.may_begin(active.saturating_sub(self.slow(now)), now)
            && self.pace.may_begin(active.saturating_sub(self.slow(now)), now)
    }

    /// Takes the message whose turn it is, if one may be sent now.
    pub(crate) fn begin(&mut self, messages: &impl Messages, now: Timestamp) -> Option<TransactionId> {
        if !self.may_attempt(now) {
            return None;
        }
        let id = match self.canary(messages, now) {
            Some(id) => {
                self.schedule.begin_this(id, messages.mailbox(id));
                id
            }
            None => {
                let share = (self.attempts_max(now) / SHARES).max(1);
                self.schedule.begin(share, |id| messages.mailbox(id))?
            }
        };
        if self.active() <= 1 {
            self.heard_at = now;
        }
        self.breaker.begins(now);
        self.pace.begins(now);
        Some(id)
    }

    fn canary(&self, messages: &impl Messages, now: Timestamp) -> Option<TransactionId> {
        let known_or_first = || {
            let oldest = self.schedule.oldest_due(CANARY_LOOK_MAX);
            oldest.iter().copied().find(|id| messages.is_known(*id)).or(oldest.first().copied())
        };
        match self.breaker.canary()? {
            Canary::Refused(n) => {
                let round: Vec<_> = self.schedule.refused().take(CANARY_ROUND).collect();
                let place = usize::try_from(n).unwrap_or(0) % round.len().max(1);
                round.get(place).copied().or_else(known_or_first)
            }
            Canary::Untried => known_or_first().or_else(|| self.refused_canary(now)),
            Canary::Next => known_or_first().or_else(|| self.refused_canary(now)),
        }
    }

    /// Notes when this, lane number `number`, wants to be looked at.
    pub(crate) fn rewake(&mut self, number: usize, wakes: &mut Vec<(Timestamp, usize)>, now: Timestamp) {
        let wake = self.next_wake(now);
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

    /// When there is something to do here. After [`Self::begin`] gave nothing, this is later than `now`.
    fn next_wake(&self, now: Timestamp) -> Option<Timestamp> {
        self.limits?;
        let attempt = if self.may_attempt(now) { Some(Timestamp::default()) } else { self.next_attempt(now) };
        let others = [self.health.next_probe(), self.schedule.next_wake(), self.breaker.settles_at()];
        // What is in the past is part of `attempt`.
        let stale = self.breaker.stale_at().filter(|at| *at > now && self.health.is_up());
        others.into_iter().chain([attempt, stale]).flatten().min()
    }

    /// When one more seems to hang than `slow`, and that makes a difference.
    fn company_at(&self, slow: usize) -> Option<Timestamp> {
        let more = u32::try_from(slow).ok()? + 1;
        let is_narrow = self.pace.connections() <= slow + 1 && self.limits?.connections > slow + 1;
        let is_canary = self.breaker.canary().is_some() || self.pace.is_slowed();
        let helps = self.active() > slow && more <= COMPANY_MAX && (is_narrow || is_canary);
        helps.then(|| self.heard_at + PATIENCE * more)
    }

    /// When an attempt may begin that may not now, if nothing is heard before.
    fn next_attempt(&self, now: Timestamp) -> Option<Timestamp> {
        let active = self.active();
        if !self.health.is_up() || !self.has_candidate(now) {
            return None;
        }
        let mut at = now + Duration::from_millis(1);
        let slow = self.slow(now);
        let company = self.company_at(slow);
        if active >= self.attempts_max(now) {
            at = at.max(company?);
        }
        let heard = active.saturating_sub(slow);
        if !self.breaker.may_begin(heard, now) {
            at = at.max(self.breaker.next_wake(heard).or(company)?);
        }
        if !self.pace.may_begin(heard, now) {
            at = at.max(self.pace.next_wake(heard, now).or(company)?);
        }
        Some(at)
    }

    /// A connection failed.
    pub(crate) fn trouble(&mut self, why: &str, now: Timestamp, events: &mut Vec<Event>) {
        self.pace.broke();
        if self.health.trouble(why, now).is_some() {
            self.drain = None;
            events.push(Event::PrimarySuspect { route: self.name.clone(), why: why.into() });
        }
    }

    /// A connection was refused, or a message was not taken for what the server has to do besides: no sign that it is down, if
    /// others work. Returns whether that is so.
    pub(crate) fn is_busy(&mut self, why: &ConnectionTrouble, now: Timestamp, events: &mut Vec<Event>) -> bool {
        match why {
            ConnectionTrouble::PushedBack(said) => {
                if !self.pace.is_slowed() && self.health.is_up() {
                    events.push(Event::SlowedDown { route: self.name.clone(), why: said.clone() });
                }
                self.asked = Some(format!("it asks for a slower pace: {said}"));
                self.pace.pushed_back(now);
            }
            ConnectionTrouble::Refused { open, .. } if *open > 0 => self.pace.refused_connection(*open, now),
            _ => return false,
        }
        true
    }

    /// A probe ended.
    pub(crate) fn probed(&mut self, result: Result<(), String>, now: Timestamp, events: &mut Vec<Event>) {
        let route = self.name.clone();
        match self.health.probe_ended(result, now) {
            Some(Change::Up { down_for }) => {
                self.breaker.came_up(now);
                self.pace.came_up(now);
                if self.has_candidate(now) {
                    let messages = self.schedule.counts().waiting;
                    let (began, answered, is_believed) = (now, 0, false);
                    self.drain = Some(Drain { began, down_for, messages, answered, is_believed });
                    events.push(Event::PrimaryRecovering { route, down_for });
                } else {
                    events.push(Event::PrimaryUp { route, down_for });
                }
            }
            Some(Change::Down) => events.push(Event::PrimaryDown { route, why: self.health.reason.clone() }),
            Some(Change::Suspect) | None => {}
        }
    }

    /// The primary answered a message, and that is durable. Gives what it is believed to have refused for good.
    pub(crate) fn answered(
        &mut self,
        id: TransactionId,
        signs: Signs,
        took_ms: u32,
        now: Timestamp,
        events: &mut Vec<Event>,
    ) -> Vec<(TransactionId, RecipientIndex, String)> {
        self.pace.answered(took_ms, self.schedule.has_due(), now);
        let was_tripped = self.breaker.tripped().is_some();
        let finding = self.breaker.heard(id, signs, now);
        let route = self.name.clone();
        if let Some(drain) = &mut self.drain {
            drain.answered += 1;
            if self.breaker.is_believed() && !std::mem::replace(&mut drain.is_believed, true) {
                events.push(Event::DrainStarted { route: route.clone(), messages: drain.messages });
            }
        }
        match finding {
            Some(Finding::Tripped) => {
                let why = self.breaker.tripped().map(|(why, _)| why.to_owned()).unwrap_or_default();
                events.push(Event::BreakerTripped { route, why });
                Vec::new()
            }
            Some(Finding::Retry) => {
                self.schedule.retry_refused(|id| !self.breaker.kept().contains(&id));
                if was_tripped {
                    events.push(Event::BreakerReset { route });
                }
                Vec::new()
            }
            Some(Finding::Settle(refused)) => refused.into_iter().map(|(index, why)| (id, index, why)).collect(),
            None => Vec::new(),
        }
    }

    /// An attempt ended before the primary heard of it.
    pub(crate) fn untold(&mut self, now: Timestamp) {
        self.breaker.untold(now);
        self.pace.untold();
    }

    /// What it refused in a sane moment is tried once more.
    pub(crate) fn retry_quiet(&mut self, now: Timestamp) {
        if self.breaker.settles_at().is_some_and(|at| at <= now) {
            let quiet = self.breaker.take_quiet();
            self.schedule.retry_refused(|id| quiet.contains(&id));
        }
    }

    /// Whether the backlog is gone.
    pub(crate) fn settle_drain(&mut self, now: Timestamp, events: &mut Vec<Event>) {
        let is_over = !self.schedule.has_due()
            && self.drain.as_ref().is_some_and(|d| self.schedule.active() == 0 || d.answered >= d.messages)
            && self.breaker.tripped().is_none();
        if let Some(drain) = self.drain.take_if(|_| is_over) {
            let route = self.name.clone();
            if drain.is_believed {
                let (messages, took) = (drain.answered, now.since(drain.began));
                events.push(Event::DrainFinished { route: route.clone(), messages, took });
            }
            self.health.since = now;
            events.push(Event::PrimaryUp { route, down_for: drain.down_for });
        }
    }

    /// When the backlog will be gone, at the speed of the last seconds.
    pub(crate) fn eta(&self, now: Timestamp) -> Option<Duration> {
        let counts = self.schedule.counts();
        let left = counts.waiting + counts.active;
        let milli = self.pace.speed_milli(now).filter(|_| self.health.is_up() && left > 0)?;
        Some(Duration::from_millis(left.saturating_mul(1_000_000) / milli.max(1)))
    }
}
