//! From a route, as it is configured or recorded, to where its mail goes; and whether that would be round in circles.
//!
//! Decides nothing about mail. What DNS trouble hides is no reason to refuse a route: it is told, and seen at run time again.

use crate::config::{Config, HostPort, Route};
use restante_courier::{Dns, Ourselves, Settings, Target, leads_only_to_us};
use restante_ledger::RouteRecord;
use restante_relay::DomainPattern;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// All look-ups of a start, or of a reload, together. Senders wait behind the ports that are not open yet, and what the DNS
/// does not tell by then it tells the first probe.
const CHECK_PATIENCE: Duration = Duration::from_secs(3);
/// Each name that is looked up as the system does has a thread that waits for it.
const LOOKS_AT_ONCE: usize = 16;
/// With the DNS down there is one for each route; what they say is much the same.
const DOUBTS_TOLD_MAX: usize = 5;
/// In front of the domains, where a target is one word of a list.
const MX_OF: &str = "mx=";

/// Where a route's mail goes, in order: the servers that it names, else whoever the MX records of its domains prefer over us.
///
/// Of `*.example.com` those of example.com are followed: which names there are below it, nobody knows before mail comes, and
/// all connections of a route lead to one primary.
pub(crate) fn targets(route: &Route) -> Vec<Target> {
    follow_or(route.primary.iter().map(target).collect(), route.domains.iter())
}

/// As [`targets`], of a route that a daemon recorded (FORMAT.md 4.4). What cannot be read is left out.
pub(crate) fn recorded(route: &RouteRecord) -> Vec<Target> {
    let named = route.primary.iter().filter_map(|address| address.parse::<HostPort>().ok());
    let domains: Vec<DomainPattern> =
        route.domains.iter().filter_map(|domain| DomainPattern::parse(domain).ok()).collect();
    match route.primary.is_empty() {
        true => follow_or(Vec::new(), domains.iter()),
        false => named.map(|address| target(&address)).collect(),
    }
}

fn follow_or<'d>(named: Vec<Target>, domains: impl Iterator<Item = &'d DomainPattern>) -> Vec<Target> {
    if !named.is_empty() {
        return named;
    }
    let mut followed: Vec<String> = Vec::new();
    for domain in domains.map(|domain| domain.name().as_str()) {
        if followed.iter().all(|other| other != domain) {
            followed.push(domain.to_owned());
        }
    }
    if followed.is_empty() { Vec::new() } else { vec![Target::MxOf(followed)] }
}

/// A server that somebody named.
pub(crate) fn target(address: &HostPort) -> Target {
    Target::Host { host: address.host.clone(), port: address.port }
}

/// For people: `mail.example.com:25`, `MX of example.com`, one each.
pub(crate) fn shown(targets: &[Target]) -> Vec<String> {
    let each = |target: &Target| match target {
        Target::Host { .. } => vec![target.to_string()],
        Target::MxOf(domains) => domains.iter().map(|domain| format!("MX of {domain}")).collect(),
    };
    targets.iter().flat_map(each).collect()
}

/// As one word, for [`from_word`].
pub(crate) fn word(target: &Target) -> String {
    match target {
        Target::Host { .. } => target.to_string(),
        Target::MxOf(domains) => format!("{MX_OF}{}", domains.join(",")),
    }
}

/// What [`word`] wrote.
pub(crate) fn from_word(word: &str) -> Option<Target> {
    match word.strip_prefix(MX_OF) {
        None => word.parse().ok().map(|address| target(&address)),
        Some(domains) => {
            let domains = domains.split(',').map(|domain| restante_envelope::DomainName::parse(domain).ok());
            let domains: Option<Vec<_>> = domains.map(|domain| domain.map(|domain| domain.to_string())).collect();
            domains.map(Target::MxOf)
        }
    }
}

/// How couriers connect, by `config`, where we listen on `listen`.
pub(crate) fn courier_settings(config: &Config, listen: Vec<SocketAddr>, seed: u64) -> Settings {
    Settings {
        dns: Dns::new(config.dns_servers.clone(), seed),
        ourselves: Ourselves { listen },
        ..Settings::new(config.hostname.clone())
    }
}

/// As [`courier_settings`], for a command beside a dead daemon, `us` being what we call ourselves: nobody listens, but
/// the mail hosts at our addresses are us all the same.
pub(crate) fn without_daemon(config: Option<&Config>, us: String, seed: u64) -> Settings {
    let Some(config) = config else { return Settings { dns: Dns::new(Vec::new(), seed), ..Settings::new(us) } };
    // Port 0 is nobody's: what is named by an operator may be where the daemon was.
    let listen = config.listen.iter().map(|address| SocketAddr::new(address.ip(), 0)).collect();
    Settings { hostname: us, ..courier_settings(config, listen, seed) }
}

/// What was found out about routes before they are used, in sentences.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Their mail would surely come back to us.
    pub(crate) loops: Vec<String>,
    /// Nothing is known for sure: a name that is not found, DNS trouble.
    pub(crate) doubts: Vec<String>,
}

impl Checked {
    /// What is doubtful, as lines of the daemon's own log.
    pub(crate) fn tell_doubts(&self) {
        for why in self.doubts.iter().take(DOUBTS_TOLD_MAX) {
            tracing::warn!("{why}; the probes go on asking");
        }
        let more = self.doubts.len().saturating_sub(DOUBTS_TOLD_MAX);
        if more > 0 {
            tracing::warn!("nor is it known of {more} more primaries where they are");
        }
    }
}

/// Looks up where the mail of `routes` would go.
pub(crate) async fn check(routes: &[Route], settings: &Settings) -> Checked {
    let mut looks = JoinSet::new();
    let mut all: Vec<(String, Target)> = Vec::new();
    let mut known = HashSet::new();
    for route in routes {
        // Many routes may share a primary.
        let new = targets(route).into_iter().filter(|target| known.insert(target.clone()));
        all.extend(new.map(|target| (route.name.clone(), target)));
    }
    let (turns, deadline) = (Arc::new(Semaphore::new(LOOKS_AT_ONCE)), Instant::now() + CHECK_PATIENCE);
    for (nth, (route, target)) in all.into_iter().enumerate() {
        let (settings, turns) = (settings.clone(), turns.clone());
        looks.spawn(async move {
            let look = async {
                let _turn = turns.acquire().await;
                leads_only_to_us(&target, &settings).await
            };
            let found = timeout_at(deadline, look).await;
            (nth, route, target, found)
        });
    }
    let mut all = Vec::new();
    while let Some(look) = looks.join_next().await {
        all.extend(look.ok());
    }
    all.sort_by_key(|(nth, ..)| *nth);
    let mut checked = Checked::default();
    for (_, route, target, found) in all {
        match found {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(why))) => checked.loops.push(format!("route {route}: {why}")),
            Ok(Err(why)) => checked.doubts.push(format!("route {route}: {why}")),
            Err(_late) => {
                checked.doubts.push(format!("route {route}: the DNS did not tell in time where {target} leads"))
            }
        }
    }
    checked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(domains: &[&str], primary: &[&str]) -> RouteRecord {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        RouteRecord { name: "office".into(), domains: owned(domains), primary: owned(primary) }
    }

    #[test]
    fn a_recorded_route_that_followed_mx_still_does_when_the_configuration_is_lost() {
        let followed = recorded(&record(&["a.test", "*.a.test", "*.b.test"], &[]));
        assert_eq!(followed, [Target::MxOf(vec!["a.test".into(), "b.test".into()])]);
        assert_eq!(shown(&followed), ["MX of a.test", "MX of b.test"]);
        assert_eq!(shown(&recorded(&record(&["a.test"], &["h.test", "[::1]:26"]))), ["h.test:25", "[::1]:26"]);
        // A next hop that cannot be read is no reason to send mail elsewhere.
        assert_eq!(recorded(&record(&["a.test"], &["h:x"])), []);
        assert_eq!(recorded(&record(&[], &[])), []);
    }

    #[test]
    fn a_target_is_one_word_and_means_the_same_when_it_is_read() {
        let targets =
            [recorded(&record(&["a.test", "b.test"], &[])), recorded(&record(&["a.test"], &["[::1]:26", "h"]))];
        for target in targets.concat() {
            let word = word(&target);
            assert!(!word.contains(char::is_whitespace), "{word}");
            assert_eq!(from_word(&word), Some(target));
        }
        assert_eq!((from_word("mx="), from_word("mx=a..test"), from_word("h:0")), (None, None, None));
    }
}
