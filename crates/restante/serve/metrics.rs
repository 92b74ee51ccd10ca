//! Counters, and the Prometheus page. No address ever becomes a label; every series exists from the start.

use super::space::OnDisk;
use restante_envelope::{ReplyClass, RouteName};
use restante_ledger::{Action, Fact, Outcome};
use restante_relay::RouteStatus;
use restante_smtp::{Counts, RefusedCommand, RefusedConnection};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Everything counted.
#[derive(Default)]
pub(crate) struct Metrics {
    connections_open: AtomicU64,
    connections_total: AtomicU64,
    connections_refused: [AtomicU64; RefusedConnection::ALL.len()],
    connections_sent_off: AtomicU64,
    commands_refused: AtomicU64,
    received_bytes: AtomicU64,
    local_trouble: AtomicU64,
    log_dropped: AtomicU64,
    scrub_bytes: AtomicU64,
    scrub_passes: AtomicU64,
    scrub_damage: AtomicU64,
    /// Sessions of clients, by [`TLS_VERSIONS`].
    tls_started: [AtomicU64; 2],
    tls_failed: AtomicU64,
    /// By [`ACTIONS`].
    operations: [AtomicU64; ACTIONS.len()],
    /// Counted by the relay's task alone, read by the page.
    by_route: Mutex<BTreeMap<RouteName, ByRoute>>,
}

#[derive(Default, Clone, Copy)]
struct ByRoute {
    accepted: u64,
    sent: u64,
    deferred: u64,
    hold: u64,
    bounced: u64,
    expired: u64,
    quarantined: u64,
    /// Taken once more, and refused.
    replayed: [u64; 2],
}

const TLS_VERSIONS: [&str; 2] = ["TLSv1.2", "TLSv1.3"];
const ACTIONS: [(Action, &str); 7] = [
    (Action::Hold, "hold"),
    (Action::Release, "release"),
    (Action::Bounce, "bounce"),
    (Action::Settle, "settle"),
    (Action::Expire, "expire"),
    (Action::Remove, "remove"),
    (Action::Undo, "undo"),
];
const STATES: [&str; 4] = ["active", "deferred", "hold", "waiting"];

impl Metrics {
    /// With the series of these routes.
    pub(crate) fn new(routes: impl Iterator<Item = RouteName>) -> Self {
        let by_route = Mutex::new(routes.map(|name| (name, ByRoute::default())).collect());
        Self { by_route, ..Self::default() }
    }

    /// From now on with the series of these routes, too. A counter that was shown stays.
    pub(crate) fn add_routes(&self, routes: impl Iterator<Item = RouteName>) {
        let Ok(mut by_route) = self.by_route.lock() else { return };
        for route in routes {
            by_route.entry(route).or_default();
        }
    }

    pub(crate) fn connection_opened(&self) {
        self.connections_open.fetch_add(1, Ordering::Relaxed);
        self.connections_total.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn connection_closed(&self) {
        self.connections_open.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn connection_refused(&self, why: RefusedConnection) {
        for (_, count) in
            RefusedConnection::ALL.iter().zip(&self.connections_refused).filter(|(known, _)| **known == why)
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn connection_sent_off(&self) {
        self.connections_sent_off.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn connections(&self) -> u64 {
        self.connections_open.load(Ordering::Relaxed)
    }

    pub(crate) fn session_ended(&self, counts: &Counts) {
        self.received_bytes.fetch_add(counts.bytes, Ordering::Relaxed);
    }

    pub(crate) fn rejected(&self, _refusal: &RefusedCommand) {
        self.commands_refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused_for_trouble(&self) {
        self.local_trouble.fetch_add(1, Ordering::Relaxed);
    }

    /// A client's handshake succeeded, with one of [`TLS_VERSIONS`].
    pub(crate) fn tls_started(&self, version: &str) {
        for (_, sessions) in TLS_VERSIONS.iter().zip(&self.tls_started).filter(|(of, _)| **of == version) {
            sessions.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn tls_failed(&self) {
        self.tls_failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn log_dropped(&self, lines: u64) {
        self.log_dropped.fetch_add(lines, Ordering::Relaxed);
    }

    pub(crate) fn scrub_read(&self, bytes: u64) {
        self.scrub_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn scrub_passed(&self) {
        self.scrub_passes.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn scrub_damage(&self, places: usize) {
        self.scrub_damage.store(places as u64, Ordering::Relaxed);
    }

    /// Places of the journal that are not as written, as far as the start and the scrub have seen.
    pub(crate) fn damaged_places(&self) -> u64 {
        self.scrub_damage.load(Ordering::Relaxed)
    }

    /// Counts a durable fact. `route_of` tells the route of a recipient.
    pub(crate) fn fact<'a>(&self, fact: &Fact, route_of: impl Fn(u16) -> Option<&'a RouteName>) {
        let Ok(mut by_route) = self.by_route.lock() else { return };
        match fact {
            Fact::Accepted(accepted) => {
                let mut routes: Vec<_> = accepted.envelope.recipients.iter().map(|r| &r.route).collect();
                routes.sort();
                routes.dedup();
                for route in routes {
                    by_route.entry(route.clone()).or_default().accepted += 1;
                }
            }
            Fact::Attempted(attempted) => {
                for (recipient, outcome) in &attempted.results {
                    let Some(route) = route_of(*recipient) else { continue };
                    let counts = by_route.entry(route.clone()).or_default();
                    *match outcome {
                        Outcome::Sent(_) => &mut counts.sent,
                        Outcome::Deferred { .. } => &mut counts.deferred,
                        Outcome::Held(_) => &mut counts.hold,
                        Outcome::Quarantined(_) => &mut counts.quarantined,
                    } += 1;
                }
            }
            Fact::Operated(operated) => {
                // By rules of ours, of what the primary said or did not say.
                for index in &operated.recipients {
                    let Some(route) = route_of(*index) else { continue };
                    let counts = by_route.entry(route.clone()).or_default();
                    match operated.action {
                        Action::Settle => counts.bounced += 1,
                        Action::Expire => counts.expired += 1,
                        _ => {}
                    }
                }
                for (_, count) in ACTIONS.iter().zip(&self.operations).filter(|((of, _), _)| *of == operated.action) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            Fact::Replayed(replayed) => {
                for (recipient, reply) in &replayed.results {
                    let Some(route) = route_of(*recipient) else { continue };
                    let [taken, refused] = &mut by_route.entry(route.clone()).or_default().replayed;
                    *(if reply.class() == ReplyClass::Positive { taken } else { refused }) += 1;
                }
            }
            Fact::Served(_) | Fact::Watched(_) | Fact::Carried(_) => {}
        }
    }

    /// The page, in Prometheus' text format 0.0.4.
    pub(crate) fn render(&self, routes: &[RouteStatus], accepting: bool, room: &Room) -> String {
        let mut page = Page(String::new());
        page.head("restante_build_info", "gauge", "The running version.");
        page.line(&format!("restante_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1);
        page.head("restante_queue_messages", "gauge", "Transactions not settled.");
        for route in routes {
            let counts = [route.counts.active, route.counts.deferred, route.counts.hold, route.counts.waiting];
            for (state, count) in STATES.iter().zip(counts) {
                page.line(&format!("restante_queue_messages{{route=\"{}\",state=\"{state}\"}}", route.name), count);
            }
        }
        page.head("restante_queue_bytes", "gauge", "Bytes of content not settled.");
        for route in routes {
            page.line(&format!("restante_queue_bytes{{route=\"{}\"}}", route.name), route.bytes);
        }
        page.head("restante_primary_up", "gauge", "1 while the route's primary takes mail.");
        for route in routes {
            let up = u64::from(super::relay::is_up(route));
            page.line(&format!("restante_primary_up{{route=\"{}\"}}", route.name), up);
        }
        self.render_counters(&mut page);
        page.head("restante_accepting", "gauge", "1 while mail can be accepted.");
        page.line("restante_accepting", u64::from(accepting));
        page.head("restante_filesystem_free_bytes", "gauge", "Free on the journal's file system.");
        page.line("restante_filesystem_free_bytes", room.free_bytes);
        page.head("restante_filesystem_floor_bytes", "gauge", "What mail leaves free there.");
        page.line("restante_filesystem_floor_bytes", room.floor_bytes);
        let help = "Until the floor is reached at the rate of the last hour or day, the faster; +Inf if it is not getting less.";
        page.head("restante_filesystem_full_seconds", "gauge", help);
        page.number("restante_filesystem_full_seconds", room.gone_in.map(|left| left.as_secs()));
        page.head("restante_journal_bytes", "gauge", "What the journal takes on the disk, large messages included.");
        page.line("restante_journal_bytes", room.journal.bytes);
        page.head("restante_journal_segments", "gauge", "Segments of the journal.");
        page.line("restante_journal_segments", room.journal.segments);
        page.head("restante_route_quota_bytes", "gauge", "What a route may hold; +Inf without a limit.");
        for (route, quota) in routes.iter().zip(&room.quotas) {
            page.number(&format!("restante_route_quota_bytes{{route=\"{}\"}}", route.name), *quota);
        }
        page.0
    }

    fn render_counters(&self, page: &mut Page) {
        if let Ok(by_route) = self.by_route.lock() {
            page.head("restante_messages_accepted_total", "counter", "Messages answered with 250.");
            for (route, counts) in by_route.iter() {
                page.line(&format!("restante_messages_accepted_total{{route=\"{route}\"}}"), counts.accepted);
            }
            page.head(
                "restante_deliveries_total",
                "counter",
                "What became of recipients: outcomes of attempts, and refusals that were believed.",
            );
            for (route, c) in by_route.iter() {
                let settled = [("sent", c.sent), ("bounced", c.bounced), ("expired", c.expired)];
                let others = [("deferred", c.deferred), ("hold", c.hold), ("quarantined", c.quarantined)];
                for (status, n) in settled.into_iter().chain(others) {
                    page.line(&format!("restante_deliveries_total{{route=\"{route}\",status=\"{status}\"}}"), n);
                }
            }
            page.head("restante_replayed_total", "counter", "Recipients offered once more by a replay.");
            for (route, counts) in by_route.iter() {
                for (status, n) in ["replayed", "refused"].iter().zip(counts.replayed) {
                    page.line(&format!("restante_replayed_total{{route=\"{route}\",status=\"{status}\"}}"), n);
                }
            }
        }
        page.head("restante_operations_total", "counter", "What operators did to messages, or a rule, per message.");
        for ((_, action), count) in ACTIONS.iter().zip(&self.operations) {
            let series = format!("restante_operations_total{{action=\"{action}\"}}");
            page.line(&series, count.load(Ordering::Relaxed));
        }
        page.head("restante_smtp_connections_refused_total", "counter", "SMTP connections over a limit.");
        for (why, count) in RefusedConnection::ALL.iter().zip(&self.connections_refused) {
            let series = format!("restante_smtp_connections_refused_total{{reason=\"{}\"}}", why.as_str());
            page.line(&series, count.load(Ordering::Relaxed));
        }
        page.head("restante_tls_sessions_total", "counter", "Handshakes that succeeded.");
        for (version, sessions) in TLS_VERSIONS.iter().zip(&self.tls_started) {
            let series = format!("restante_tls_sessions_total{{direction=\"in\",version=\"{version}\"}}");
            page.line(&series, sessions.load(Ordering::Relaxed));
        }
        page.head("restante_tls_failures_total", "counter", "Handshakes that failed.");
        page.line("restante_tls_failures_total{direction=\"in\"}", self.tls_failed.load(Ordering::Relaxed));
        for (name, kind, help, value) in [
            ("restante_smtp_connections", "gauge", "SMTP connections open now.", &self.connections_open),
            ("restante_smtp_connections_total", "counter", "SMTP connections served.", &self.connections_total),
            (
                "restante_smtp_connections_sent_off_total",
                "counter",
                "SMTP connections that were silent and made way for others.",
                &self.connections_sent_off,
            ),
            ("restante_smtp_refused_total", "counter", "Commands and contents refused.", &self.commands_refused),
            ("restante_smtp_received_bytes_total", "counter", "Bytes of content received.", &self.received_bytes),
            (
                "restante_local_trouble_total",
                "counter",
                "Messages answered with 4xx for trouble of ours.",
                &self.local_trouble,
            ),
            ("restante_log_dropped_total", "counter", "Delivery log records that were not written.", &self.log_dropped),
            ("restante_journal_scrub_bytes_total", "counter", "Bytes of the journal read again.", &self.scrub_bytes),
            (
                "restante_journal_scrub_passes_total",
                "counter",
                "Times that all of the journal was read again.",
                &self.scrub_passes,
            ),
            (
                "restante_journal_scrub_damage",
                "gauge",
                "Places of the journal that are not as written, as far as is known.",
                &self.scrub_damage,
            ),
        ] {
            page.head(name, kind, help);
            page.line(name, value.load(Ordering::Relaxed));
        }
    }
}

/// Room on the disk, at this moment.
pub(crate) struct Room {
    pub(crate) free_bytes: u64,
    pub(crate) floor_bytes: u64,
    pub(crate) gone_in: Option<Duration>,
    pub(crate) journal: OnDisk,
    /// Of each route; none without a limit.
    pub(crate) quotas: Vec<Option<u64>>,
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _infallible = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// None is without end.
    fn number(&mut self, series: &str, value: Option<u64>) {
        let _infallible = match value {
            Some(value) => writeln!(self.0, "{series} {value}"),
            None => writeln!(self.0, "{series} +Inf"),
        };
    }

    fn line(&mut self, series: &str, value: u64) {
        let _infallible = writeln!(self.0, "{series} {value}");
    }
}
