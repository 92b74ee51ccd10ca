//! How a route's primary stood, and for how long it could be reached: the five-day clock of a message runs in that time alone.
//! Times are those of the wall's clock. Where it was wrong, less counts than was: nothing is given up too early.

use restante_envelope::{RouteName, Timestamp};
use std::time::Duration;

/// Spans that are remembered of a route. A primary that comes and goes more often has the shortest of them forgotten.
const SPANS_MAX: usize = 64;
/// Spans that ended longer ago are forgotten: no message is kept that long.
const SPAN_AGE_MAX: Duration = Duration::from_secs(90 * 86_400);

/// How a primary stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrimaryState {
    /// It takes mail.
    Up,
    /// Nobody knows.
    Suspect,
    /// It takes none.
    Down,
    /// It takes mail, and a backlog is on its way, or it is not trusted.
    Recovering,
    /// An operator said that it takes none for a while.
    Maintenance,
}

impl PrimaryState {
    /// Whether a message could be handed to it.
    pub fn is_reachable(self) -> bool {
        matches!(self, Self::Up | Self::Recovering)
    }
}

/// From when to when it could be reached.
pub type Span = (Timestamp, Timestamp);

/// How a primary stands from now on, and how it stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Whose.
    pub route: RouteName,
    /// Since when.
    pub at: Timestamp,
    /// From then on.
    pub state: PrimaryState,
    /// In words; empty if it just takes mail.
    pub why: String,
    /// When it could be reached before that, in order, without overlaps.
    pub up: Vec<Span>,
}

/// What is known of one primary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    up: Vec<Span>,
    open: Option<Timestamp>,
}

impl Watch {
    pub(crate) fn apply(&mut self, watched: &Watched) {
        self.up = union(watched.up.clone(), watched.at);
        self.open = watched.state.is_reachable().then_some(watched.at);
    }

    /// The daemon that watched it is gone, and was there until `last` at least.
    pub(crate) fn ended(&mut self, last: Timestamp) {
        self.up = self.spans_until(last);
        self.open = None;
    }

    /// When it could be reached, up to `end`.
    pub fn spans_until(&self, end: Timestamp) -> Vec<Span> {
        let open = self.open.filter(|from| *from < end).map(|from| (from, end));
        union(self.up.iter().copied().chain(open).collect(), end)
    }

    /// The latest time from which on it could be reached for so long, up to `now`; none if it never could.
    pub fn cutoff(&self, now: Timestamp, need: Duration) -> Option<Timestamp> {
        let mut missing = need;
        for (from, to) in self.spans_until(now).into_iter().rev() {
            let length = to.since(from);
            if length >= missing {
                let back_ms = u64::try_from(missing.as_millis()).unwrap_or(u64::MAX);
                return Some(Timestamp::from_unix_ms(to.unix_ms().saturating_sub(back_ms)));
            }
            missing -= length;
        }
        None
    }

    /// For how long it could be reached between these.
    pub fn reachable(&self, from: Timestamp, to: Timestamp) -> Duration {
        let within = |(begin, end): Span| end.min(to).since(begin.max(from));
        self.spans_until(to).into_iter().map(within).sum()
    }
}

/// In order, without overlaps: a clock that was set back passes the same time twice, and it counts once.
fn union(mut spans: Vec<Span>, now: Timestamp) -> Vec<Span> {
    spans.sort_unstable();
    let mut joined: Vec<Span> = Vec::with_capacity(spans.len());
    for (from, to) in spans {
        match joined.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ if from < to && now.since(to) <= SPAN_AGE_MAX => joined.push((from, to)),
            _ => {}
        }
    }
    while joined.len() > SPANS_MAX {
        let shortest = joined.iter().enumerate().min_by_key(|(_, (from, to))| to.since(*from)).map(|(place, _)| place);
        shortest.map(|place| joined.remove(place));
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hours(n: u64) -> Timestamp {
        Timestamp::from_unix_ms(n * 3_600_000)
    }

    fn watched(at: u64, state: PrimaryState, up: Vec<Span>) -> Watched {
        Watched { route: RouteName::new("office"), at: hours(at), state, why: String::new(), up }
    }

    #[test]
    fn the_clock_of_a_message_stands_still_while_the_primary_is_away() {
        let mut watch = Watch::default();
        watch.apply(&watched(10, PrimaryState::Up, Vec::new()));
        assert_eq!(watch.reachable(hours(0), hours(15)), Duration::from_secs(5 * 3_600));
        watch.apply(&watched(20, PrimaryState::Down, watch.spans_until(hours(20))));
        watch.apply(&watched(230, PrimaryState::Recovering, watch.spans_until(hours(230))));
        assert_eq!(watch.reachable(hours(12), hours(232)), Duration::from_secs(10 * 3_600));
        // Nobody watched it while the daemon was not there.
        watch.ended(hours(233));
        assert_eq!(watch.reachable(hours(0), hours(500)), Duration::from_secs(13 * 3_600));
    }

    proptest! {
        #[test]
        fn whatever_the_clock_did_no_time_counts_twice(spans in proptest::collection::vec((0u64..500, 0u64..500), 0..200)) {
            let mut watch = Watch::default();
            let up = spans.iter().map(|(a, b)| (hours(*a), hours(*b))).collect();
            watch.apply(&watched(500, PrimaryState::Down, up));
            let reachable = watch.reachable(hours(0), hours(500));
            let hour = |n: &u64| spans.iter().any(|(from, to)| from <= n && n < to);
            let counted = (0..500u64).filter(hour).count() as u64;
            prop_assert!(reachable <= Duration::from_secs(counted * 3_600));
            prop_assert!(watch.spans_until(hours(500)).len() <= SPANS_MAX);
            for need in [0, 1, 7, 100] {
                let need = Duration::from_secs(need * 3_600);
                match watch.cutoff(hours(500), need) {
                    Some(at) => prop_assert_eq!(watch.reachable(at, hours(500)), need),
                    None => prop_assert!(reachable < need || reachable.is_zero()),
                }
            }
            if spans.len() <= SPANS_MAX {
                prop_assert_eq!(reachable, Duration::from_secs(counted * 3_600));
            }
        }
    }
}
