//! What the relay says of itself: events for the log, numbers for the metrics, words for a person.
//!
//! No address appears here.

use restante_envelope::{RouteName, Timestamp};
use std::time::Duration;

/// What we know of a route's primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteState {
    /// Its last probe succeeded and no connection broke since.
    Up,
    /// A connection broke, or it was not probed yet: nothing is sent until a probe tells.
    Suspect,
    /// A probe failed; or the route is not configured any more.
    Down,
    /// It takes mail again, and the backlog is on its way; or it refuses what it should take, and a canary is sent now and then.
    Recovering,
}

impl RouteState {
    /// The word used in every listing.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Recovering => "recovering",
        }
    }
}

/// A change of a primary's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It takes mail, and there is no backlog (any more).
    PrimaryUp {
        /// Its route.
        route: RouteName,
        /// How long it had been down, counted from the first sign of trouble; none if it was never found down.
        down_for: Option<Duration>,
    },
    /// A connection to it broke; a probe follows.
    PrimarySuspect {
        /// Its route.
        route: RouteName,
        /// What happened.
        why: String,
    },
    /// A probe of it failed; probes follow until one succeeds.
    PrimaryDown {
        /// Its route.
        route: RouteName,
        /// What happened.
        why: String,
    },
    /// It answers again, and there is a backlog: a canary goes first.
    PrimaryRecovering {
        /// Its route.
        route: RouteName,
        /// As of [`Event::PrimaryUp`].
        down_for: Option<Duration>,
    },
    /// It took the canary: the backlog follows.
    DrainStarted {
        /// Its route.
        route: RouteName,
        /// Messages that wait.
        messages: u64,
    },
    /// The backlog is gone.
    DrainFinished {
        /// Its route.
        route: RouteName,
        /// Messages that were answered meanwhile.
        messages: u64,
        /// How long it took, the canary included.
        took: Duration,
    },
    /// It refuses what it should take: nothing but canaries is sent.
    BreakerTripped {
        /// Its route.
        route: RouteName,
        /// In words.
        why: String,
    },
    /// It asks for a slower pace, and is given one.
    SlowedDown {
        /// Its route.
        route: RouteName,
        /// In its words.
        why: String,
    },
    /// Mail on this route will be given up soon.
    Expiring {
        /// The route.
        route: RouteName,
        /// Messages.
        messages: u64,
    },
    /// It took a canary: everything it refused is tried again.
    BreakerReset {
        /// Its route.
        route: RouteName,
    },
}

impl Event {
    /// The delivery log's `ev`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PrimaryUp { .. } => "primary_up",
            Self::PrimarySuspect { .. } => "primary_suspect",
            Self::PrimaryDown { .. } => "primary_down",
            Self::PrimaryRecovering { .. } => "primary_recovering",
            Self::DrainStarted { .. } => "drain_started",
            Self::DrainFinished { .. } => "drain_finished",
            Self::SlowedDown { .. } => "slowed_down",
            Self::Expiring { .. } => "expiring",
            Self::BreakerTripped { .. } | Self::BreakerReset { .. } => "breaker",
        }
    }
}

/// Transactions of a route by state. One with recipients on two routes counts on each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Being delivered now.
    pub active: u64,
    /// To be tried at a known time.
    pub deferred: u64,
    /// To be tried as soon as the primary takes mail and a connection is free.
    pub waiting: u64,
    /// Frozen.
    pub hold: u64,
}

impl Counts {
    /// All that are not settled.
    pub fn pending(&self) -> u64 {
        self.active + self.deferred + self.waiting + self.hold
    }
}

/// How a route stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteStatus {
    /// The route.
    pub name: RouteName,
    /// Where its mail goes, as in [`RouteSettings::next_hops`](crate::RouteSettings::next_hops).
    pub next_hops: Vec<String>,
    /// Its primary's state.
    pub state: RouteState,
    /// Since when.
    pub since: Timestamp,
    /// Why mail does not just flow; empty if it does.
    pub reason: String,
    /// It refuses what it should take: nothing but canaries is sent.
    pub is_tripped: bool,
    /// Connections that may be open now.
    pub connections: usize,
    /// Thousandths of a message a second: the rate that it is held to, if it is.
    pub limit_milli: Option<u64>,
    /// And what was answered of late.
    pub speed_milli: Option<u64>,
    /// Transactions with an unsettled recipient on this route, those on hold included.
    pub pending: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// When the oldest of them was accepted.
    pub oldest: Option<Timestamp>,
    /// When the backlog will be gone, where that can be told.
    pub eta: Option<Duration>,
    /// When the primary is probed next, unless it is up or a probe is under way.
    pub next_probe: Option<Timestamp>,
    /// Transactions that will be given up within two days, if nothing changes.
    pub expiring: u64,
    /// The transactions by state.
    pub counts: Counts,
}

/// The state of a transaction on one route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionState {
    /// Being delivered now.
    Active,
    /// Tried, refused for now.
    Deferred,
    /// Waits for the primary, or for its turn.
    Waiting,
    /// Frozen.
    Hold,
}

impl TransactionState {
    /// The word used in every listing.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Deferred => "deferred",
            Self::Waiting => "waiting",
            Self::Hold => "hold",
        }
    }
}

/// The state of a transaction on one route, and what happens next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateView {
    /// The state.
    pub state: TransactionState,
    /// What happens next and when, in words, e.g. `when office is up`.
    pub next: String,
    /// When, where a time is known.
    pub next_at: Option<Timestamp>,
}
