//! What is other in a new configuration than in the one in force, in words. Compares; changes nothing.

use crate::config::{Config, Limits, Route, duration_text, quota_text, size_text};
use crate::routing;
use restante_relay::{DomainPattern, Floor};
use std::fmt::Display;

/// `1 recipient`, `214 recipients`, `any recipient`
pub(super) fn count(route: &Route) -> String {
    match route.recipients.as_ref().map(Vec::len) {
        None => "any recipient".to_owned(),
        Some(1) => "1 recipient".to_owned(),
        Some(n) => format!("{n} recipients"),
    }
}

/// What takes effect at once, but for the certificate: whether that is another one, its content says.
pub(super) fn in_words(old: &Config, new: &Config) -> Vec<String> {
    let mut changes = Vec::new();
    for route in &new.routes {
        match old.routes.iter().find(|before| before.name == route.name) {
            Some(before) => changes.extend(of_route(before, route)),
            None => {
                let (domains, primary) = (joined(&route.domains), whereto(route));
                changes.push(format!("route {}: new, {domains} to {primary}, {}", route.name, count(route)));
            }
        }
    }
    for route in old.routes.iter().filter(|route| new.routes.iter().all(|kept| kept.name != route.name)) {
        let name = &route.name;
        changes.push(format!("route {name}: removed; what is pending for it waits until it is back"));
    }
    changes.extend(limits(&old.limits, &new.limits));
    changes
}

fn of_route(old: &Route, new: &Route) -> Vec<String> {
    let name = &new.name;
    let mut changes = Vec::new();
    if old.primary != new.primary {
        changes.push(format!("route {name}: primary {} -> {}", whereto(old), whereto(new)));
    }
    let only_in = |these: &Route, those: &Route| -> Vec<DomainPattern> {
        these.domains.iter().filter(|domain| !those.domains.contains(domain)).cloned().collect()
    };
    for (verb, domains) in [("takes mail for", only_in(new, old)), ("takes no more mail for", only_in(old, new))] {
        if !domains.is_empty() {
            changes.push(format!("route {name}: {verb} {}", joined(&domains)));
        }
    }
    changes.extend(recipients(old, new));
    if old.quota != new.quota {
        let text = |route: &Route| route.quota.map_or_else(|| "default".to_owned(), quota_text);
        changes.push(format!("route {name}: quota {} -> {}", text(old), text(new)));
    }
    changes
}

fn whereto(route: &Route) -> String {
    joined(&routing::targets(route))
}

/// How a route's recipients changed, if they did.
pub(super) fn recipients(old: &Route, new: &Route) -> Option<String> {
    let sorted = |route: &Route| {
        let mut list = route.recipients.clone();
        list.iter_mut().flatten().for_each(|address| address.make_ascii_lowercase());
        list.iter_mut().for_each(|list| list.sort_unstable());
        list
    };
    (sorted(old) != sorted(new)).then(|| {
        let was = if count(old) == count(new) { "others".to_owned() } else { number(old) };
        format!("route {}: {} (was {was})", new.name, count(new))
    })
}

fn number(route: &Route) -> String {
    route.recipients.as_ref().map_or_else(|| "any".to_owned(), |list| list.len().to_string())
}

fn floor(floor: Floor) -> String {
    let percent = floor.percent.map(|percent| format!("{percent}%"));
    let parts: Vec<String> = floor.bytes.map(size_text).into_iter().chain(percent).collect();
    if parts.is_empty() { "default".to_owned() } else { parts.join(" or ") }
}

fn limits(old: &Limits, new: &Limits) -> Vec<String> {
    let one = |key: &str, old: String, new: String| (old != new).then(|| format!("{key}: {old} -> {new}"));
    let number = |key: &str, of: fn(&Limits) -> u32| one(key, of(old).to_string(), of(new).to_string());
    [
        number("max_connections", |limits| limits.max_connections),
        number("per_client_connections", |limits| limits.per_client_connections),
        number("per_network_connections", |limits| limits.per_network_connections),
        number("connections_per_minute", |limits| limits.connections_per_minute),
        number("messages_per_minute", |limits| limits.messages_per_minute),
        one("min_free", floor(old.floor), floor(new.floor)),
        one("exempt", joined(&old.exempt), joined(&new.exempt)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What takes effect at the next start, with both values.
pub(super) fn after_restart(old: &Config, new: &Config) -> Vec<String> {
    let http = |config: &Config| config.admin_http.map_or_else(|| "none".to_owned(), |address| address.to_string());
    let servers = |config: &Config| match config.dns_servers.as_slice() {
        [] => "the system's".to_owned(),
        servers => joined(servers),
    };
    let log = |config: &Config| format!("{}, {}", size_text(config.log.max_bytes), duration_text(config.log.keep));
    let keys = [
        ("hostname", old.hostname.clone(), new.hostname.clone()),
        ("[journal] dir", old.data_dir.display().to_string(), new.data_dir.display().to_string()),
        ("[journal] retain", duration_text(old.retain), duration_text(new.retain)),
        ("[smtp] listen", joined(&old.listen), joined(&new.listen)),
        ("[smtp] max_message_size", size_text(old.max_message_bytes), size_text(new.max_message_bytes)),
        ("[smtp] bare_line_ends", old.bare_line_ends.as_str().into(), new.bare_line_ends.as_str().into()),
        ("[smtp] proxy", joined(&old.trusted.proxy), joined(&new.trusted.proxy)),
        ("[smtp] xclient", joined(&old.trusted.xclient), joined(&new.trusted.xclient)),
        ("[admin] http", http(old), http(new)),
        ("[log]", log(old), log(new)),
        ("[dns] servers", servers(old), servers(new)),
    ];
    let changed = keys.into_iter().filter(|(_, old, new)| old != new);
    changed.map(|(key, old, new)| format!("{key} ({old} -> {new})")).collect()
}

fn joined<T: Display>(list: &[T]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
