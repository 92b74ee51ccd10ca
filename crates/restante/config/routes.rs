//! The `[[route]]`s: whose mail we take, and where it goes.
//!
//! Refuses whatever would make an open relay, lose mail or send it round in circles; asks no DNS.

use super::Route;
use super::address::{self, HostPort};
use super::file::ROOT;
use super::fingerprint::Fingerprint;
use super::recipients::{self, Listed, NoList};
use super::units;
use super::walk::{Keys, Walk};
use restante_relay::{DomainPattern, PatternError};
use restante_relay::{EXPIRE_CAP_DEFAULT, EXPIRE_DEFAULT, MAX_CONNECTIONS_DEFAULT};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::time::Duration;
use toml::de::DeTable;

/// A route's name is a label of metrics and a word of the command line; as long as a domain may be.
const NAME_BYTES_MAX: usize = 255;

const ROUTE: Keys = Keys {
    title: "[[route]]",
    known: &["name", "domains", "primary", "recipients", "quota", "expire", "expire_cap", "drain"],
    reserved: &["accept", "retry", "probe", "tls", "hold", "maintenance", "notify", "xclient", "bounce"],
};

const DRAIN: Keys = Keys { title: "`drain`", known: &["connections", "per_minute"], reserved: &[] };
/// Shorter than an hour would give mail up for a restart of a mail server that went wrong; longer than what is remembered of
/// primaries cannot be counted.
const LIFETIME: RangeInclusive<Duration> = Duration::from_secs(3_600)..=Duration::from_secs(90 * 86_400);
/// What a mail server expects of one peer; see [`MAX_CONNECTIONS_DEFAULT`].
const CONNECTIONS: RangeInclusive<u32> = 1..=20;
const PER_MINUTE: RangeInclusive<u32> = 1..=1_000_000;

/// What a route must not lead back to.
pub(super) struct Ourselves<'a> {
    pub(super) hostname: &'a str,
    pub(super) listen: &'a [SocketAddr],
    /// The flags bring routes of their own.
    pub(super) routes_may_be_missing: bool,
}

/// A domain that we take mail for, or `*.` in front of one: all below it.
pub(crate) fn domain(text: &str) -> Result<DomainPattern, String> {
    match DomainPattern::parse(text) {
        Ok(domain) if address::looks_like_ipv4(domain.name()) => Err(format!("`{text}` is an address, not a domain")),
        Ok(domain) => Ok(domain),
        Err(PatternError::Everybody) => Err("`*` would take mail for everybody: name the domains".to_owned()),
        Err(PatternError::TopLevel) => {
            Err(format!("`{text}` would take mail for a whole top-level domain: name the domains below it"))
        }
        Err(PatternError::Name(_)) if text.is_empty() => Err("a domain is missing".to_owned()),
        Err(PatternError::Name(_)) if text.contains('*') => {
            Err(format!("`{text}` is no pattern: a star stands alone in front, such as *.example.com"))
        }
        Err(PatternError::Name(_)) => Err(format!("`{text}` is not a domain name")),
    }
}

/// All routes of the file that are right; the others are noted.
pub(super) fn check(walk: &mut Walk, root: &DeTable<'_>, base: &Path, ourselves: &Ourselves<'_>) -> Vec<Route> {
    let Some(value) = root.get("route") else {
        if !ourselves.routes_may_be_missing {
            let help = "add a [[route]] with `domains` and `primary`: whose mail is it, and whereto?";
            walk.missing(root, &ROOT, "route", 0..0, help);
        }
        return Vec::new();
    };
    let tables: Option<Vec<_>> = value.get_ref().as_array().and_then(|array| {
        array.iter().map(|element| element.get_ref().as_table().map(|table| (element.span(), table))).collect()
    });
    let Some(tables) = tables.filter(|tables| !tables.is_empty()) else {
        walk.error(value.span(), "bad `route`", "each route starts with a line [[route]], in two brackets");
        return Vec::new();
    };
    let mut reader = Reader { walk, base, ourselves, domains: BTreeMap::new(), names: BTreeMap::new() };
    tables.into_iter().filter_map(|(header, table)| reader.route(header, table)).collect()
}

struct Reader<'a> {
    walk: &'a mut Walk,
    base: &'a Path,
    ourselves: &'a Ourselves<'a>,
    /// With the line that has it.
    domains: BTreeMap<DomainPattern, usize>,
    names: BTreeMap<String, usize>,
}

impl Reader<'_> {
    fn route(&mut self, header: Range<usize>, table: &DeTable<'_>) -> Option<Route> {
        self.walk.check_keys(table, &ROUTE);
        let domains = self.domains(&header, table);
        let primary = self.primary(table);
        let name = self.name(header, table, domains.first());
        let (recipients, listed) = self.recipients(table, &domains);
        let quota = self.walk.parsed(table, "quota", "10GiB", units::quota);
        // Without the key MX is followed; a key that names nobody is an error, noted already.
        let complete = !domains.is_empty() && primary.is_empty() != table.contains_key("primary");
        let (expire, expire_cap) = self.lifetime(table);
        let (connections, per_minute) = self.drain(table);
        let route = |name| Route {
            quota,
            expire,
            expire_cap,
            connections,
            per_minute,
            ..Route::new(name, domains, primary, recipients, listed)
        };
        name.filter(|_| complete).map(route)
    }

    fn lifetime(&mut self, table: &DeTable<'_>) -> (Duration, Duration) {
        let mut within = |key: &'static str, example: &str, default: Duration| {
            let long = |text: &str| match units::duration(text)? {
                time if LIFETIME.contains(&time) => Ok(time),
                _ => Err("from \"1h\" to \"90d\"".to_owned()),
            };
            self.walk.parsed(table, key, example, long).unwrap_or(default)
        };
        let expire = within("expire", "5d", EXPIRE_DEFAULT);
        let expire_cap = within("expire_cap", "30d", EXPIRE_CAP_DEFAULT.max(expire));
        if let Some(value) = table.get("expire_cap").filter(|_| expire_cap < expire) {
            let help = "it counts all the time, `expire` only that in which the primary can be reached";
            self.walk.error(value.span(), "`expire_cap` is less than `expire`", help);
        }
        (expire, expire_cap)
    }

    fn drain(&mut self, table: &DeTable<'_>) -> (usize, Option<u32>) {
        let Some(value) = table.get("drain") else { return (MAX_CONNECTIONS_DEFAULT, None) };
        let Some(drain) = value.get_ref().as_table() else {
            self.walk.error(value.span(), "bad `drain`", "such as drain = { connections = 5, per_minute = 600 }");
            return (MAX_CONNECTIONS_DEFAULT, None);
        };
        self.walk.check_keys(drain, &DRAIN);
        let connections = self.walk.whole_number(drain, "connections", CONNECTIONS);
        let connections = connections.and_then(|n| usize::try_from(n).ok()).unwrap_or(MAX_CONNECTIONS_DEFAULT);
        (connections, self.walk.whole_number(drain, "per_minute", PER_MINUTE))
    }

    fn name(
        &mut self,
        header: Range<usize>,
        table: &DeTable<'_>,
        first_domain: Option<&DomainPattern>,
    ) -> Option<String> {
        let (name, span) = if table.contains_key("name") {
            self.walk.string(table, "name", "office")?
        } else {
            (first_domain?.name().as_str(), header)
        };
        let label = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(label) {
            self.walk.error(span, "bad `name`", "letters, digits, `.`, `-` and `_`, such as \"office\"");
            return None;
        }
        let line = self.walk.line_number(span.start);
        if let Some(first) = self.names.get(name) {
            self.walk.error(
                span,
                format!("two routes have the name `{name}`"),
                format!("the first is on line {first}"),
            );
            return None;
        }
        self.names.insert(name.to_owned(), line);
        Some(name.to_owned())
    }

    fn domains(&mut self, header: &Range<usize>, table: &DeTable<'_>) -> Vec<DomainPattern> {
        let mut domains = Vec::new();
        let help = "whose mail is it?";
        if !table.contains_key("domains") {
            self.walk.missing(table, &ROUTE, "domains", header.clone(), help);
        }
        self.walk.check_not_empty(table, "domains", help);
        for (text, span) in self.walk.strings(table, "domains", "example.com").unwrap_or_default() {
            let name = match domain(text) {
                Ok(name) => name,
                Err(why) => {
                    self.walk.error(span, "bad domain", why);
                    continue;
                }
            };
            if let Some(first) = self.domains.get(&name) {
                self.walk.error(span, format!("the domain {name} is there twice"), format!("first on line {first}"));
                continue;
            }
            self.domains.insert(name.clone(), self.walk.line_number(span.start));
            domains.push(name);
        }
        domains
    }

    fn primary(&mut self, table: &DeTable<'_>) -> Vec<HostPort> {
        let mut primary = Vec::new();
        self.walk.check_not_empty(table, "primary", "name the primary, or leave it out to follow MX");
        for (text, span) in self.walk.strings(table, "primary", "mail.example.com:25").unwrap_or_default() {
            let next_hop = match text.parse::<HostPort>() {
                Ok(next_hop) => next_hop,
                Err(why) => {
                    self.walk.error(span, "bad address in `primary`", why.to_string());
                    continue;
                }
            };
            if let Some(ours) = next_hop.leads_back_to(self.ourselves.hostname, self.ourselves.listen) {
                self.walk.error(span, format!("the primary {next_hop} is ourselves"), format!("we listen on {ours}"));
                continue;
            }
            primary.push(next_hop);
        }
        primary
    }

    fn recipients(&mut self, table: &DeTable<'_>, domains: &[DomainPattern]) -> (Option<Vec<String>>, Vec<Listed>) {
        let errors_before = self.walk.errors();
        let Some(texts) = self.walk.strings(table, "recipients", "info@example.com") else { return (None, Vec::new()) };
        let (mut recipients, mut listed) = (Vec::new(), Vec::new());
        for (text, span) in texts {
            if let Some(path) = text.strip_prefix("file:") {
                let path = self.base.join(path);
                let seen = Fingerprint::of(&path);
                match recipients::file(&path, domains) {
                    Ok(addresses) => recipients.extend(addresses),
                    Err(NoList::Unreadable(why)) => {
                        self.walk.error(span, format!("cannot read the recipients file {}", path.display()), why);
                    }
                    Err(NoList::Bad { shown, more }) => {
                        shown.into_iter().for_each(|bad| self.walk.error_in(span.start, bad));
                        if more > 0 {
                            let message = format!("{more} more bad lines in {}", path.display());
                            self.walk.error(span, message, "one address a line");
                        }
                    }
                }
                listed.push(Listed::File(path, seen));
            } else {
                match recipients::address(text, domains) {
                    Ok(address) => {
                        recipients.push(address.clone());
                        listed.push(Listed::Address(address));
                    }
                    Err((message, help)) => self.walk.error(span, message, help),
                }
            }
        }
        // An emptied file must not turn into a refusal of all mail.
        let value = table.get("recipients").filter(|_| recipients.is_empty() && self.walk.errors() == errors_before);
        if let Some(value) = value {
            let help = "all mail would be refused; leave it out to take any";
            self.walk.error(value.span(), "no address in `recipients`", help);
        }
        (Some(recipients), listed)
    }
}
