//! How fast a primary is given mail: how many connections, and how many messages a second. Grows while the primary is content,
//! shrinks when it is not (additive increase, multiplicative decrease; Chiu and Jain 1989). Knows no message; whether a refusal
//! is believed is the breaker's business.
//!
//! **Connections.** One when the primary comes up, doubled with each round of answers up to the threshold, and beyond it one
//! more every ten seconds, up to the ceiling. The threshold is half of what was open when a connection broke. A connection that is
//! refused while others work (Postfix's `smtpd_client_connection_count_limit`) sets both to those that work; the next try to
//! have one more comes later each time. No growth while a round's answers take twice as long as the fastest round's.
//!
//! **Rate.**
//!
//! | | message sent | the primary asks for a slower pace (4xx to MAIL, 421) | time |
//! |---|---|---|---|
//! | **free** | at once | paused | - |
//! | **paused** | none | ignored: it was under way | the pause is over: testing |
//! | **testing** | one | paused, twice as long, at most 15 s | - |
//! | **limited** | as the rate lets it | paused, 1 s | each 10 s: the rate grows by 5 %, after a minute by 25 %; above 1,000/s: free |
//!
//! A first test that is answered leads to *free*: it was a moment's trouble. A later one leads to *limited*: the rate is what the
//! primary took from the last such moment to this, pauses included, while mail was waiting. So where it counts messages a minute
//! (`smtpd_client_message_rate_limit`), the rate finds that number. Where it took next to nothing since, it was in trouble, and
//! nothing is known of a rate: *free* again, with one connection at first. Coming up after an outage leads to *free*.

use restante_envelope::Timestamp;
use std::time::Duration;

/// A connection more than the threshold is tried after this.
const GROW_EVERY_SECS: u64 = 10;
/// And after this, when the primary keeps to its number: one refused connection in ten minutes bothers nobody.
const GROW_EVERY_MAX_SECS: u64 = 600;
/// Growth waits while answers take this many times the fastest round's, and longer by this.
const SLOWER_FACTOR: u64 = 2;
const SLOWER_MS: u64 = 250;
/// The first pause. Shorter ones would be noticed by nobody.
const PAUSE_FIRST_MS: u64 = 1_000;
/// The longest: a window of a minute is over at most a quarter late.
const PAUSE_MAX_MS: u64 = 15_000;
/// How often a limited rate grows.
const RATE_GROWS_EVERY_SECS: u64 = 10;
/// The small step, for a rate that was just found, and the large one, for one that has held for six small ones.
const RATE_STEP_PERCENT: u64 = 5;
const RATE_STEP_LATER_PERCENT: u64 = 25;
const SMALL_STEPS: u32 = 6;
/// Millimessages a second. Less than six a minute is nobody's limit, but trouble that passes; above the most, no limit was ever
/// met.
const RATE_MIN_MILLI: u64 = 100;
const RATE_FREE_MILLI: u64 = 1_000_000;
/// For how long the speed of the drain is measured, in slots of a second.
const SPEED_SECS: u64 = 15;
const SPEED_SLOTS: usize = 15;

#[derive(Debug)]
pub(crate) struct Pace {
    ceiling: usize,
    connections: usize,
    threshold: usize,
    grown_at: Timestamp,
    grow_every: Duration,
    round: Round,
    /// Mean of the fastest round, in milliseconds.
    best_ms: Option<u64>,
    flow: Flow,
    /// Found by the primary's refusals: millimessages a second.
    found_milli: Option<u64>,
    /// As configured.
    fixed_milli: Option<u64>,
    bucket: Bucket,
    epoch: Epoch,
    speed: Speed,
}

#[derive(Debug, Default)]
struct Round {
    answers: usize,
    took_ms: u64,
}

#[derive(Debug)]
enum Flow {
    Free,
    Paused { until: Timestamp, pause: Duration },
    Testing { pause: Duration },
    Limited { steps: u32, stepped_at: Timestamp },
}

/// What was taken since the primary let mail through, while mail was waiting.
#[derive(Debug, Clone, Copy)]
struct Epoch {
    taken: u64,
    busy_ms: u64,
    seen_at: Timestamp,
    /// More was waiting then.
    is_busy: bool,
}

impl Epoch {
    fn new(now: Timestamp) -> Self {
        Self { taken: 0, busy_ms: 0, seen_at: now, is_busy: true }
    }

    /// Something was heard, and more is waiting or not.
    fn pass(&mut self, is_busy: bool, now: Timestamp) {
        if self.is_busy {
            let elapsed_ms = u64::try_from(now.since(self.seen_at).as_millis()).unwrap_or(u64::MAX);
            self.busy_ms = self.busy_ms.saturating_add(elapsed_ms);
        }
        (self.seen_at, self.is_busy) = (now, is_busy);
    }
}

/// Tokens in thousandths of a message, so that nothing is lost by rounding.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    milli: u64,
    at: Timestamp,
}

/// From fewer messages no rate can be told.
const TAKEN_MIN: u64 = 5;
/// A threshold below this would make a primary that broke once a slow one for minutes.
const THRESHOLD_MIN: usize = 4;
/// A message.
const TOKEN_MILLI: u64 = 1_000;

impl Bucket {
    /// With what came since. A second's worth is the most, and one message the least that is the most.
    fn filled(self, rate_milli: u64, now: Timestamp) -> Self {
        let elapsed_ms = u64::try_from(now.since(self.at).as_millis()).unwrap_or(u64::MAX);
        let come = rate_milli.saturating_mul(elapsed_ms) / 1_000;
        if come == 0 && self.at <= now {
            return self;
        }
        Self { milli: self.milli.saturating_add(come).min(rate_milli.max(TOKEN_MILLI)), at: now }
    }

    /// When there is a token.
    fn ready_at(self, rate_milli: u64) -> Timestamp {
        let missing = TOKEN_MILLI.saturating_sub(self.milli);
        self.at + Duration::from_millis(missing.saturating_mul(1_000).div_ceil(rate_milli.max(1)))
    }
}

impl Pace {
    /// Nothing is known of the primary. `per_minute`: messages, never exceeded; `ceiling`: connections.
    pub(crate) fn new(ceiling: usize, per_minute: Option<u32>, now: Timestamp) -> Self {
        let ceiling = ceiling.max(1);
        Self {
            ceiling,
            connections: 1,
            threshold: ceiling,
            grown_at: now,
            grow_every: Duration::from_secs(GROW_EVERY_SECS),
            round: Round::default(),
            best_ms: None,
            flow: Flow::Free,
            found_milli: None,
            fixed_milli: per_minute.map(|n| (u64::from(n) * 1_000 / 60).max(1)),
            bucket: Bucket { milli: TOKEN_MILLI, at: now },
            epoch: Epoch::new(now),
            speed: Speed::default(),
        }
    }

    /// Other limits from now on; what was found stays.
    pub(crate) fn set_limits(&mut self, ceiling: usize, per_minute: Option<u32>) {
        let ceiling = ceiling.max(1);
        if ceiling != self.ceiling {
            (self.ceiling, self.threshold) = (ceiling, ceiling);
            self.connections = self.connections.min(ceiling);
        }
        self.fixed_milli = per_minute.map(|n| (u64::from(n) * 1_000 / 60).max(1));
    }

    /// Connections that may be open now.
    pub(crate) fn connections(&self) -> usize {
        self.connections
    }

    /// Millimessages a second that it is held to.
    pub(crate) fn limit_milli(&self) -> Option<u64> {
        self.found_milli.into_iter().chain(self.fixed_milli).min()
    }

    /// Millimessages a second that were answered of late.
    pub(crate) fn speed_milli(&self, now: Timestamp) -> Option<u64> {
        self.speed.milli(now)
    }

    /// Whether it asked for a slower pace, and is given one.
    pub(crate) fn is_slowed(&self) -> bool {
        !matches!(self.flow, Flow::Free)
    }

    /// Whether one more may be sent while `active` are under way that do not seem to hang.
    pub(crate) fn may_begin(&self, active: usize, now: Timestamp) -> bool {
        match self.flow {
            Flow::Paused { until, .. } => active == 0 && until <= now,
            Flow::Testing { .. } => active == 0,
            Flow::Free | Flow::Limited { .. } => self.token_at(now).is_none_or(|at| at <= now),
        }
    }

    /// When [`Self::may_begin`] says something else, if nothing is heard before; none: now.
    pub(crate) fn next_wake(&self, active: usize, now: Timestamp) -> Option<Timestamp> {
        match self.flow {
            Flow::Paused { until, .. } => (active == 0).then_some(until),
            Flow::Testing { .. } => None,
            Flow::Free | Flow::Limited { .. } => self.token_at(now),
        }
    }

    fn token_at(&self, now: Timestamp) -> Option<Timestamp> {
        self.limit_milli().map(|milli| self.bucket.filled(milli, now).ready_at(milli))
    }

    /// One that was begun was not sent.
    pub(crate) fn untold(&mut self) {
        self.bucket.milli += TOKEN_MILLI;
    }

    /// One is sent.
    pub(crate) fn begins(&mut self, now: Timestamp) {
        if let Flow::Paused { pause, .. } = self.flow {
            self.flow = Flow::Testing { pause };
        }
        if let Some(milli) = self.limit_milli() {
            let filled = self.bucket.filled(milli, now);
            self.bucket = Bucket { milli: filled.milli.saturating_sub(TOKEN_MILLI), ..filled };
        }
    }

    /// The primary answered a message, and not by asking for a slower pace. `took_ms`: from MAIL to its last reply.
    /// `is_busy`: more is waiting.
    pub(crate) fn answered(&mut self, took_ms: u32, is_busy: bool, now: Timestamp) {
        self.speed.count(now);
        self.epoch.taken += u64::from(self.epoch.is_busy);
        self.epoch.pass(is_busy, now);
        match self.flow {
            Flow::Testing { pause } if pause <= Duration::from_millis(PAUSE_FIRST_MS) => {
                self.flow = self.flow_of_limit(now)
            }
            Flow::Testing { .. } => self.found(now),
            Flow::Limited { steps, stepped_at } => self.step(steps, stepped_at, now),
            Flow::Free | Flow::Paused { .. } => {}
        }
        self.round.answers += 1;
        self.round.took_ms = self.round.took_ms.saturating_add(u64::from(took_ms));
        if self.round.answers >= self.connections {
            self.round_ended(now);
        }
    }

    fn round_ended(&mut self, now: Timestamp) {
        let Round { answers, took_ms } = std::mem::take(&mut self.round);
        let mean = took_ms / (answers as u64).max(1);
        let best = self.best_ms.map_or(mean, |best| best.min(mean));
        self.best_ms = Some(best);
        if mean > best.saturating_mul(SLOWER_FACTOR).saturating_add(SLOWER_MS) {
            return;
        }
        if self.connections < self.threshold {
            self.connections = (self.connections * 2).min(self.threshold);
            self.grown_at = now;
        } else if self.connections < self.ceiling && now.since(self.grown_at) >= self.grow_every {
            self.connections += 1;
            self.threshold = self.connections;
            self.grown_at = now;
        }
    }

    /// The primary asks for a slower pace.
    pub(crate) fn pushed_back(&mut self, now: Timestamp) {
        let pause = match self.flow {
            Flow::Paused { .. } => return,
            Flow::Testing { pause } => (pause * 2).min(Duration::from_millis(PAUSE_MAX_MS)),
            Flow::Free | Flow::Limited { .. } => Duration::from_millis(PAUSE_FIRST_MS),
        };
        self.epoch.pass(true, now);
        self.flow = Flow::Paused { until: now + pause, pause };
    }

    /// It lets mail through again: what it took since the last such moment is what it takes.
    fn found(&mut self, now: Timestamp) {
        // The one that was answered just now belongs to the next.
        let taken = self.epoch.taken.saturating_sub(1);
        if taken < TAKEN_MIN {
            (self.epoch, self.flow) = (Epoch { taken: 1, ..Epoch::new(now) }, self.flow_of_limit(now));
            (self.connections, self.threshold, self.round) = (1, self.ceiling, Round::default());
            return;
        }
        let milli = taken.saturating_mul(1_000_000) / self.epoch.busy_ms.max(1_000);
        self.found_milli = Some(milli.clamp(RATE_MIN_MILLI, RATE_FREE_MILLI));
        self.epoch = Epoch { taken: 1, ..Epoch::new(now) };
        self.bucket = Bucket { milli: 0, at: now };
        self.flow = Flow::Limited { steps: 0, stepped_at: now };
    }

    /// As before the pause.
    fn flow_of_limit(&self, now: Timestamp) -> Flow {
        self.found_milli.map_or(Flow::Free, |_| Flow::Limited { steps: 0, stepped_at: now })
    }

    fn step(&mut self, steps: u32, stepped_at: Timestamp, now: Timestamp) {
        if now.since(stepped_at) < Duration::from_secs(RATE_GROWS_EVERY_SECS) {
            return;
        }
        let percent = if steps < SMALL_STEPS { RATE_STEP_PERCENT } else { RATE_STEP_LATER_PERCENT };
        let grown = self.found_milli.map(|milli| milli + (milli * percent / 100).max(1));
        self.found_milli = grown.filter(|milli| *milli < RATE_FREE_MILLI);
        self.flow = match self.found_milli {
            Some(_) => Flow::Limited { steps: steps.saturating_add(1), stepped_at: now },
            None => Flow::Free,
        };
    }

    /// A connection was refused while `open` others worked.
    pub(crate) fn refused_connection(&mut self, open: usize, now: Timestamp) {
        if self.grow_every < Duration::from_secs(GROW_EVERY_MAX_SECS) && open < self.connections {
            self.grow_every *= 2;
        }
        self.connections = self.connections.min(open.max(1));
        (self.threshold, self.grown_at, self.round) = (self.connections, now, Round::default());
    }

    /// A connection broke, or an answer did not come.
    pub(crate) fn broke(&mut self) {
        self.threshold = (self.connections / 2).max(THRESHOLD_MIN).min(self.ceiling);
    }

    /// The primary is up, and was not.
    pub(crate) fn came_up(&mut self, now: Timestamp) {
        (self.connections, self.round, self.best_ms) = (1, Round::default(), None);
        (self.grown_at, self.epoch) = (now, Epoch::new(now));
        (self.flow, self.found_milli) = (Flow::Free, None);
    }
}

/// Messages answered in each of the last seconds.
#[derive(Debug, Default)]
struct Speed {
    slots: [u32; SPEED_SLOTS],
    /// The second of the newest slot, and of the first message since there was none for long.
    newest: u64,
    first: u64,
}

impl Speed {
    fn count(&mut self, now: Timestamp) {
        let second = now.unix_ms() / 1_000;
        if second.abs_diff(self.newest) >= SPEED_SECS {
            *self = Self { first: second, newest: second, ..Self::default() };
        }
        for gone in self.newest + 1..=second {
            self.slot(gone, |slot| *slot = 0);
        }
        self.newest = self.newest.max(second);
        self.slot(second, |slot| *slot = slot.saturating_add(1));
    }

    fn slot(&mut self, second: u64, change: impl FnOnce(&mut u32)) {
        let place = usize::try_from(second % SPEED_SECS).unwrap_or(0);
        self.slots.get_mut(place).map(change).unwrap_or_default();
    }

    /// None if nothing was answered of late.
    fn milli(&self, now: Timestamp) -> Option<u64> {
        let second = now.unix_ms() / 1_000;
        if second.saturating_sub(self.newest) >= SPEED_SECS {
            return None;
        }
        let messages: u64 = self.slots.iter().map(|n| u64::from(*n)).sum();
        let seconds = (second.saturating_sub(self.first) + 1).clamp(1, SPEED_SECS);
        (messages > 0).then(|| messages * 1_000 / seconds)
    }
}
