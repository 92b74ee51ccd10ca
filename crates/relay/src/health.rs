//! One primary's health: when it is probed, and what a probe or a broken connection says of it. Knows no message.
//!
//! | state | what leads there | what leads on |
//! |---|---|---|
//! | **suspect** | the start; a connection that broke while *up* | a probe that fails: *down*; enough probes that succeed: *up* |
//! | **down** | a probe that fails | enough probes that succeed: *up* |
//! | **up** | enough probes that succeed | a connection that breaks: *suspect* |
//!
//! So it takes two signs to call a primary that was up down. Enough is one probe; one more for each time that the primary broke
//! within a minute of coming up, three at most: one that flaps is not knocked over again each time it gets to its feet. A
//! primary that is up and has a backlog is shown as *recovering* until that is gone (`lane.rs`).

use crate::jitter;
use crate::status::RouteState;
use restante_envelope::{RouteName, Timestamp};
use std::fmt;
use std::time::Duration;

/// After one broken connection: long enough for a mail server's restart, too short to be noticed. Not shorter, for a
/// primary that takes probes and breaks under mail has no other rest: each probe that succeeds lets all attempts go.
const PROBE_SUSPECT_MS: u64 = 1_000;
/// Up to the first hour of an outage the interval is this part of its age: a restart that takes four seconds is noticed
/// in a quarter of one, a reboot in two.
const PROBE_PER_AGE: u64 = 16;
/// The shortest interval. Only a primary that is not there at all is asked so often, and only for four seconds.
const PROBE_MIN_MS: u64 = 250;
/// The longest interval in the first hour. A connection every two seconds costs nobody anything.
const PROBE_EARLY_MS: u64 = 2_000;
/// A probe that takes longer than this to fail met a server that is there and struggles, or a path that is slow: it has
/// two seconds to itself. A refusal by a machine without a mail server comes at once.
const PROBE_FAST_MS: u64 = 100;
/// How long an outage counts as young: reboots and upgrades are over by then.
const EARLY_SECS: u64 = 3_600;
/// Later: an outage of hours is noticed 15 s late at most, and a log of refused connections stays readable.
const PROBE_LATE_MS: u64 = 15_000;
/// A primary that breaks within this time of coming up has flapped.
const FLAP_SECS: u64 = 60;
/// Probes beyond the first that one that flaps must answer in a row. More would keep mail waiting for a primary whose only
/// fault is one deadly message.
const FLAPS_MAX: u32 = 2;
/// Between two probes of which both must succeed.
const PROBE_AGAIN_MS: u64 = 1_000;
/// So that many routes to one machine do not knock at once.
const PROBE_JITTER_PERCENT: u64 = 25;
/// A clock that stepped back by more than this would delay a probe noticeably.
pub(crate) const CLOCK_STEP_BACK: Duration = Duration::from_millis(PROBE_LATE_MS);

/// Why an attempt ended without anything to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionTrouble {
    /// No connection could be made: refused, no answer, no greeting, no TLS. No message had a part in it.
    NotMade(String),
    /// The server answered and wants no other connection now (RFC 5321 section 3.1: 421 or 554, or none taken), while
    /// so many others to it were open.
    Refused {
        /// What it said.
        why: String,
        /// Of ours, besides this one.
        open: usize,
    },
    /// The connection ended by itself after MAIL was sent and before the final dot was.
    Broke(String),
    /// The server said 421 after MAIL, or refused MAIL for now and for no fault of the message: it asks for a slower pace.
    PushedBack(String),
}

impl fmt::Display for ConnectionTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::NotMade(why) | Self::Refused { why, .. } | Self::Broke(why) | Self::PushedBack(why)) = self;
        f.write_str(why)
    }
}

/// What a report changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Up { down_for: Option<Duration> },
    Suspect,
    Down,
}

#[derive(Debug)]
pub(crate) struct Health {
    pub(crate) state: RouteState,
    pub(crate) since: Timestamp,
    pub(crate) reason: String,
    /// First sign of the trouble that is going on.
    trouble_began: Timestamp,
    next_probe: Timestamp,
    /// When the probe began that is under way.
    probing: Option<Timestamp>,
    /// Probes so far: each draws its own jitter.
    probes: u64,
    /// Of the last ones, how many in a row succeeded.
    succeeded: u32,
    up_since: Option<Timestamp>,
    /// Times in a row that it broke soon after coming up.
    flaps: u32,
}

impl Health {
    /// Nothing is known yet: probed at once.
    pub(crate) fn unknown(now: Timestamp) -> Self {
        Self {
            state: RouteState::Suspect,
            since: now,
            reason: "not probed yet".into(),
            trouble_began: now,
            next_probe: now,
            probing: None,
            probes: 0,
            succeeded: 0,
            up_since: None,
            flaps: 0,
        }
    }

    /// Never probed: nobody knows where.
    pub(crate) fn not_configured(route: &RouteName, now: Timestamp) -> Self {
        Self { state: RouteState::Down, reason: format!("route {route} is not configured"), ..Self::unknown(now) }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state == RouteState::Up
    }

    /// When the next probe is due; none while the primary is up or a probe is under way.
    pub(crate) fn next_probe(&self) -> Option<Timestamp> {
        (!self.is_up() && self.probing.is_none()).then_some(self.next_probe)
    }

    /// Probes as soon as possible.
    pub(crate) fn probe_now(&mut self, now: Timestamp) {
        self.next_probe = now;
    }

    /// A probe begins. The next is timed from here, not from its end, so that one which hangs until its time is out
    /// does not stretch the interval further.
    pub(crate) fn probe_begins(&mut self, salt: u64, now: Timestamp) {
        self.probing = Some(now);
        self.probes += 1;
        let draw = jitter::draw(salt, 0, self.probes);
        self.next_probe = now + jitter::spread(self.interval(now), PROBE_JITTER_PERCENT, draw);
    }

    fn interval(&self, now: Timestamp) -> Duration {
        let age = now.since(self.trouble_began);
        if age >= Duration::from_secs(EARLY_SECS) {
            return Duration::from_millis(PROBE_LATE_MS);
        }
        let part_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX) / PROBE_PER_AGE;
        Duration::from_millis(part_ms.clamp(PROBE_MIN_MS, PROBE_EARLY_MS))
    }

    pub(crate) fn probe_ended(&mut self, result: Result<(), String>, now: Timestamp) -> Option<Change> {
        let began = self.probing.take()?;
        if result.is_err() && now.since(began) > Duration::from_millis(PROBE_FAST_MS) {
            self.next_probe = self.next_probe.max(began + Duration::from_millis(PROBE_EARLY_MS));
        }
        match result {
            Ok(()) if self.succeeded < self.flaps => {
                self.succeeded += 1;
                self.next_probe = now + Duration::from_millis(PROBE_AGAIN_MS);
                None
            }
            Ok(()) => {
                (self.succeeded, self.up_since) = (0, Some(now));
                let was_down = self.state == RouteState::Down;
                self.enter(RouteState::Up, String::new(), now);
                Some(Change::Up { down_for: was_down.then(|| now.since(self.trouble_began)) })
            }
            Err(why) if self.state == RouteState::Down => {
                (self.reason, self.succeeded) = (why, 0);
                None
            }
            Err(why) => {
                self.succeeded = 0;
                self.enter(RouteState::Down, why, now);
                Some(Change::Down)
            }
        }
    }

    /// A connection could not be made, or broke.
    pub(crate) fn trouble(&mut self, why: &str, now: Timestamp) -> Option<Change> {
        if !self.is_up() {
            return None;
        }
        let was_up_for = self.up_since.take().map_or(Duration::ZERO, |since| now.since(since));
        self.flaps = if was_up_for < Duration::from_secs(FLAP_SECS) { (self.flaps + 1).min(FLAPS_MAX) } else { 0 };
        self.enter(RouteState::Suspect, why.into(), now);
        self.trouble_began = now;
        self.next_probe = now + Duration::from_millis(PROBE_SUSPECT_MS);
        Some(Change::Suspect)
    }

    fn enter(&mut self, state: RouteState, reason: String, now: Timestamp) {
        (self.state, self.reason, self.since) = (state, reason, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Timestamp {
        Timestamp::from_unix_ms(ms)
    }

    fn refused() -> Result<(), String> {
        Err("refused".into())
    }

    /// Probes fail from 0 on, each after `took_ms`; the instants at which they begin, until `end_ms`.
    fn failing_probes(salt: u64, took_ms: u64, end_ms: u64) -> Vec<u64> {
        let mut health = Health::unknown(ms(0));
        let mut instants = Vec::new();
        let mut now = 0;
        while let Some(at) = health.next_probe().map(|at| at.unix_ms().max(now)).filter(|at| *at <= end_ms) {
            instants.push(at);
            health.probe_begins(salt, ms(at));
            now = at + took_ms;
            health.probe_ended(refused(), ms(now));
        }
        instants
    }

    #[test]
    fn the_start_is_not_taken_for_up() {
        let health = Health::unknown(ms(7));
        assert!(!health.is_up());
        assert_eq!(health.next_probe(), Some(ms(7)));
    }

    #[test]
    fn a_short_outage_is_watched_closely_and_a_long_one_calmly() {
        for salt in 0..20 {
            for pair in failing_probes(salt, 0, 7_200_000).windows(2) {
                let interval = if pair[0] < 3_600_000 { (pair[0] / 16).clamp(250, 2_000) } else { 15_000 };
                let allowed = interval * 3 / 4 - 1..=interval * 5 / 4 + 1;
                assert!(allowed.contains(&(pair[1] - pair[0])), "salt {salt}: {pair:?}");
            }
        }
        assert_ne!(failing_probes(1, 0, 60_000), failing_probes(2, 0, 60_000));
    }

    #[test]
    fn a_primary_that_struggles_is_left_in_peace_for_two_seconds() {
        for took in [PROBE_FAST_MS + 1, 1_000, 20_000] {
            for pair in failing_probes(3, took, 3_600_000).windows(2) {
                let allowed = took.max(2_000)..=took.max(2_500);
                assert!(allowed.contains(&(pair[1] - pair[0])), "{took}: {pair:?}");
            }
        }
    }

    #[test]
    fn two_probes_are_never_under_way() {
        let mut health = Health::unknown(ms(0));
        health.probe_begins(1, ms(0));
        assert_eq!(health.next_probe(), None);
        health.probe_now(ms(1));
        assert_eq!(health.next_probe(), None);
        // It hung for long: the next one follows at once.
        health.probe_ended(refused(), ms(30_000));
        assert!(health.next_probe().is_some_and(|at| at <= ms(30_000)));
    }

    #[test]
    fn one_broken_connection_is_suspicion_and_a_failed_probe_is_down() {
        let mut health = Health::unknown(ms(0));
        health.probe_begins(1, ms(0));
        assert_eq!(health.probe_ended(Ok(()), ms(10)), Some(Change::Up { down_for: None }));
        assert_eq!(health.next_probe(), None);
        assert_eq!(health.trouble("reset", ms(5_000)), Some(Change::Suspect));
        assert_eq!(health.trouble("reset again", ms(5_100)), None);
        assert_eq!((health.next_probe(), health.reason.as_str()), (Some(ms(6_000)), "reset"));
        health.probe_begins(1, ms(6_000));
        assert_eq!(health.probe_ended(refused(), ms(6_001)), Some(Change::Down));
        health.probe_begins(1, ms(70_000));
        // It had been up for five seconds: one probe is not enough.
        assert_eq!(health.probe_ended(Ok(()), ms(70_000)), None);
        assert_eq!(health.next_probe(), Some(ms(71_000)));
        health.probe_begins(1, ms(71_000));
        assert_eq!(
            health.probe_ended(Ok(()), ms(71_000)),
            Some(Change::Up { down_for: Some(Duration::from_secs(66)) })
        );
        // It held this time.
        assert_eq!(health.trouble("reset", ms(131_000)), Some(Change::Suspect));
        health.probe_begins(1, ms(132_000));
        assert!(matches!(health.probe_ended(Ok(()), ms(132_000)), Some(Change::Up { .. })));
    }

    #[test]
    fn a_report_without_a_probe_changes_nothing() {
        let mut health = Health::unknown(ms(0));
        assert_eq!(health.probe_ended(Ok(()), ms(1)), None);
        assert!(!health.is_up());
    }
}
