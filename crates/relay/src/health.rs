//! One primary's health: when it is probed, and what a probe or a broken connection says of it. Knows no message.
//!
//! ```text
//! start -> suspect --probe ok--> up --a connection breaks--> suspect --probe fails--> down --probe ok--> up
//! ```

use crate::jitter;
use crate::status::RouteState;
use restante_envelope::{RouteName, Timestamp};
use std::fmt;
use std::time::Duration;

/// After one broken connection: long enough for a mail server's reload, too short to be noticed.
const PROBE_SUSPECT_MS: u64 = 1_000;
/// In the first hour of an outage, so that mail flows seconds after a reboot. A connection every two seconds costs
/// nobody anything.
const PROBE_EARLY_MS: u64 = 2_000;
/// How long an outage counts as young: reboots and upgrades are over by then.
const EARLY_SECS: u64 = 3_600;
/// Later: an outage of hours is noticed 15 s late at most, and a log of refused connections stays readable.
const PROBE_LATE_MS: u64 = 15_000;
/// So that many routes to one machine do not knock at once.
const PROBE_JITTER_PERCENT: u64 = 25;
/// A clock that stepped back by more than this would delay a probe noticeably.
pub(crate) const CLOCK_STEP_BACK: Duration = Duration::from_millis(PROBE_LATE_MS);

/// Why an attempt ended without anything to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionTrouble {
    /// No connection could be made: refused, no answer, no greeting, no TLS. No message had a part in it.
    NotMade(String),
    /// The connection ended, by itself or by a 421, after MAIL was sent and before the final dot was.
    Broke(String),
}

impl fmt::Display for ConnectionTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::NotMade(why) | Self::Broke(why)) = self;
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
    probing: bool,
    /// Probes so far: each draws its own jitter.
    probes: u64,
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
            probing: false,
            probes: 0,
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
        (!self.is_up() && !self.probing).then_some(self.next_probe)
    }

    /// Probes as soon as possible.
    pub(crate) fn probe_now(&mut self, now: Timestamp) {
        self.next_probe = now;
    }

    /// A probe begins. The next is timed from here, not from its end, so that one which hangs until its time is out
    /// does not stretch the interval further.
    pub(crate) fn probe_begins(&mut self, salt: u64, now: Timestamp) {
        let young = now.since(self.trouble_began) < Duration::from_secs(EARLY_SECS);
        let interval = Duration::from_millis(if young { PROBE_EARLY_MS } else { PROBE_LATE_MS });
        self.probing = true;
        self.probes += 1;
        let draw = jitter::draw(salt, 0, self.probes);
        self.next_probe = now + jitter::spread(interval, PROBE_JITTER_PERCENT, draw);
    }

    pub(crate) fn probe_ended(&mut self, result: Result<(), String>, now: Timestamp) -> Option<Change> {
        if !std::mem::take(&mut self.probing) {
            return None;
        }
        match result {
            Ok(()) => {
                let was_down = self.state == RouteState::Down;
                self.enter(RouteState::Up, String::new(), now);
                Some(Change::Up { down_for: was_down.then(|| now.since(self.trouble_began)) })
            }
            Err(why) if self.state == RouteState::Down => {
                self.reason = why;
                None
            }
            Err(why) => {
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

    /// Probes fail from 0 on; the instants of all probes until `end_ms`.
    fn failing_probes(salt: u64, end_ms: u64) -> Vec<u64> {
        let mut health = Health::unknown(ms(0));
        let mut instants = Vec::new();
        while let Some(at) = health.next_probe().filter(|at| *at <= ms(end_ms)) {
            instants.push(at.unix_ms());
            health.probe_begins(salt, at);
            health.probe_ended(refused(), at);
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
            let instants = failing_probes(salt, 7_200_000);
            for pair in instants.windows(2) {
                let allowed = if pair[0] < 3_600_000 { 1_500..=2_500 } else { 11_250..=18_750 };
                assert!(allowed.contains(&(pair[1] - pair[0])), "salt {salt}: {pair:?}");
            }
        }
        assert_ne!(failing_probes(1, 60_000), failing_probes(2, 60_000));
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
        health.probe_begins(1, ms(8_000));
        assert_eq!(health.probe_ended(Ok(()), ms(8_000)), Some(Change::Up { down_for: Some(Duration::from_secs(3)) }));
    }

    #[test]
    fn a_report_without_a_probe_changes_nothing() {
        let mut health = Health::unknown(ms(0));
        assert_eq!(health.probe_ended(Ok(()), ms(1)), None);
        assert!(!health.is_up());
    }
}
