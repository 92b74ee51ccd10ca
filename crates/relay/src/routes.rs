//! The route table and admission: is this recipient ours, and which route takes it?
//!
//! Built once from the configuration and then only read, so every session shares it. It never looks anything up
//! elsewhere, and no table lets mail for strangers through: a domain that is not listed, or below a listed `*.`, is not ours.

use crate::DomainPattern;
use restante_envelope::{DomainName, ForwardPath, RouteName};
use std::collections::BTreeMap;
use std::time::Duration;

/// Attempts at once to one route when nothing is configured. Postfix's `default_destination_concurrency_limit`: what
/// a mail server expects of one peer.
pub const MAX_CONNECTIONS_DEFAULT: usize = 20;

/// Attempts handed out beyond those that have a connection, when the caller can use them: one for each connection, as
/// the next message's MAIL, RCPT and DATA travel behind the final dot of the one before (RFC 2920).
pub const ATTEMPTS_AHEAD_DEFAULT: usize = MAX_CONNECTIONS_DEFAULT;

/// One route, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSettings {
    /// Its name, unlike any other's.
    pub name: RouteName,
    /// The domains it takes mail for; at least one.
    pub domains: Vec<DomainPattern>,
    /// Where its mail goes, to be shown: next hops in order of preference, each `host:port`; or in words whose MX is
    /// followed.
    pub next_hops: Vec<String>,
    /// The addresses that exist, in any order; none: take any.
    pub recipients: Option<Vec<String>>,
    /// Connections at once; at least one. See [`MAX_CONNECTIONS_DEFAULT`].
    pub max_connections: usize,
    /// Attempts that may be under way beyond that, each waiting for its turn on a connection; which of them has one is
    /// not decided here. 0 if a connection takes its next message only when it is done with the one before. See
    /// [`ATTEMPTS_AHEAD_DEFAULT`].
    pub attempts_ahead: usize,
    /// Messages a minute that are never exceeded, if it is limited by configuration.
    pub per_minute: Option<u32>,
    /// How long a message may wait while the primary can be reached. See [`crate::EXPIRE_DEFAULT`].
    pub expire: Duration,
    /// How long it may wait at all. See [`crate::EXPIRE_CAP_DEFAULT`].
    pub expire_cap: Duration,
}

impl RouteSettings {
    /// Attempts at once.
    pub fn max_active(&self) -> usize {
        self.max_connections.saturating_add(self.attempts_ahead)
    }
}

/// What is wrong with a list of routes. The fault is the configuration's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// There is none at all.
    #[error("no route: there is no domain to take mail for")]
    NoRoute,
    /// A route without a domain would never be used.
    #[error("route {0} has no domain")]
    NoDomain(RouteName),
    /// A route without a connection would never deliver.
    #[error("route {0} may use no connection; at least 1 is needed")]
    NoConnection(RouteName),
    /// Two routes have the same name.
    #[error("there are two routes named {0}")]
    SameName(RouteName),
    /// A domain is listed twice, in two routes or in one.
    #[error("domain {domain} is listed twice: in route {first} and in route {second}")]
    SameDomain {
        /// The domain, or the wildcard.
        domain: DomainPattern,
        /// The route that lists it first.
        first: RouteName,
        /// The route that lists it again.
        second: RouteName,
    },
}

/// Whether we take mail for a recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admit {
    /// Yes, and this route takes it.
    Accept(RouteName),
    /// Its domain is not ours (an address literal never is): 550 5.7.1.
    NotOurs,
    /// Its domain is ours, but the address does not exist: 550 5.1.1.
    UnknownRecipient,
    /// Its domain is ours, but the local part asks the primary to send the mail on elsewhere: 550 5.7.1.
    SenderSpecifiedRoute,
}

/// All routes. Never empty.
#[derive(Debug, Clone)]
pub struct Routes {
    routes: Vec<RouteSettings>,
    exact: BTreeMap<Box<str>, usize>,
    /// By the domain above all that are meant.
    below: BTreeMap<Box<str>, usize>,
}

impl Routes {
    /// Checks `routes`. The first one also takes mail to the bare `postmaster`.
    pub fn new(mut routes: Vec<RouteSettings>) -> Result<Self, RouteError> {
        if routes.is_empty() {
            return Err(RouteError::NoRoute);
        }
        let mut names = BTreeMap::new();
        let mut owners: BTreeMap<DomainPattern, (usize, RouteName)> = BTreeMap::new();
        for (index, route) in routes.iter_mut().enumerate() {
            let name = &route.name;
            if names.insert(name.clone(), index).is_some() {
                return Err(RouteError::SameName(name.clone()));
            }
            if route.domains.is_empty() {
                return Err(RouteError::NoDomain(name.clone()));
            }
            if route.max_connections == 0 {
                return Err(RouteError::NoConnection(name.clone()));
            }
            for domain in &route.domains {
                if let Some((_, first)) = owners.insert(domain.clone(), (index, name.clone())) {
                    return Err(RouteError::SameDomain { domain: domain.clone(), first, second: name.clone() });
                }
            }
            // Sorted, so that admission finds an address among a hundred thousand by halving.
            if let Some(known) = &mut route.recipients {
                known.iter_mut().for_each(canonicalize);
                known.sort_unstable();
                known.dedup();
            }
        }
        let (mut exact, mut below) = (BTreeMap::new(), BTreeMap::new());
        for (domain, (index, _)) in owners {
            let table = if matches!(domain, DomainPattern::Exact(_)) { &mut exact } else { &mut below };
            table.insert(domain.name().as_str().into(), index);
        }
        Ok(Self { routes, exact, below })
    }

    /// The route that takes this domain's mail.
    pub fn of_domain(&self, domain: &DomainName) -> Option<&RouteName> {
        self.taking(domain.as_str()).map(|route| &route.name)
    }

    /// By the most specific entry: the domain itself, else the longest wildcard above it. A domain has 128 labels at most
    /// (RFC 1035 section 2.3.4), so as many looks do.
    fn taking(&self, domain: &str) -> Option<&RouteSettings> {
        let mut found = self.exact.get(domain);
        let mut above = domain.split_once('.').filter(|_| !self.below.is_empty());
        while let (None, Some((_, name))) = (found, above) {
            found = self.below.get(name);
            above = name.split_once('.');
        }
        found.and_then(|index| self.routes.get(*index))
    }

    /// Whether we take mail for `path`. The domain must be listed or below a listed `*.`, in any case; where the route
    /// lists its recipients, the whole address must be, but for the mailbox `postmaster` (RFC 5321 section 4.5.1).
    pub fn admit(&self, path: &ForwardPath) -> Admit {
        let Some(domain) = path.domain() else {
            // The bare `postmaster`: there is no other path without a domain.
            return self.routes.first().map_or(Admit::NotOurs, |route| Admit::Accept(route.name.clone()));
        };
        let ours = DomainName::parse(domain).ok();
        let Some(route) = ours.and_then(|domain| self.taking(domain.as_str())) else { return Admit::NotOurs };
        if path.has_sender_specified_route() {
            return Admit::SenderSpecifiedRoute;
        }
        let unknown = route.recipients.as_ref().is_some_and(|known| known.binary_search(&path.canonical()).is_err());
        if unknown && !path.is_postmaster() { Admit::UnknownRecipient } else { Admit::Accept(route.name.clone()) }
    }

    /// The routes, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &RouteSettings> {
        self.routes.iter()
    }

    /// The route with this name.
    pub fn get(&self, name: &RouteName) -> Option<&RouteSettings> {
        self.routes.iter().find(|route| route.name == *name)
    }
}

/// As [`ForwardPath::canonical`]; what is no address is nobody's.
fn canonicalize(address: &mut String) {
    match ForwardPath::parse_utf8(address) {
        Ok(path) if !address.is_ascii() || address.starts_with('"') => *address = path.canonical(),
        _ => address.make_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(name: &str, domains: &[&str], recipients: Option<&[&str]>) -> RouteSettings {
        RouteSettings {
            name: RouteName::new(name),
            domains: domains.iter().map(|d| DomainPattern::parse(d).unwrap()).collect(),
            next_hops: vec!["mail.test:25".into()],
            recipients: recipients.map(|r| r.iter().map(|a| (*a).to_string()).collect()),
            max_connections: MAX_CONNECTIONS_DEFAULT,
            attempts_ahead: 0,
            per_minute: None,
            expire: crate::EXPIRE_DEFAULT,
            expire_cap: crate::EXPIRE_CAP_DEFAULT,
        }
    }

    fn routes() -> Routes {
        Routes::new(vec![
            route("office", &["example.com", "example.org"], None),
            route("school", &["school.test"], Some(&["Zoe@school.test", "\"inf\\o\"@School.test"])),
        ])
        .unwrap()
    }

    fn admit(path: &str) -> Admit {
        routes().admit(&ForwardPath::parse(path).unwrap())
    }

    fn taken_by(name: &str) -> Admit {
        Admit::Accept(RouteName::new(name))
    }

    #[test]
    fn an_address_in_another_script_is_found_however_it_is_written() {
        let known = ["j\u{f6}rg@B\u{fc}cher.test", "\u{7528}@xn--bcher-kva.test"];
        let routes = Routes::new(vec![route("books", &["b\u{fc}cher.test"], Some(&known))]).unwrap();
        let admit = |path: &str| routes.admit(&ForwardPath::parse_utf8(path).unwrap());
        for path in [
            "j\u{f6}rg@b\u{fc}cher.test",
            "J\u{f6}RG@xn--BCHER-kva.test",
            "\u{7528}@B\u{dc}CHER.test",
            "postmaster@b\u{fc}cher.test",
        ] {
            assert_eq!(admit(path), taken_by("books"), "{path}");
        }
        assert_eq!(admit("jorg@b\u{fc}cher.test"), Admit::UnknownRecipient);
        assert_eq!(admit("j\u{f6}rg@bucher.test"), Admit::NotOurs);
    }

    #[test]
    fn mail_for_strangers_is_never_taken() {
        for path in [
            "a@other.test",
            "a@sub.example.com",
            "a@com",
            "a@example.com.other.test",
            "a@xexample.com",
            "a@[127.0.0.1]",
            "a@[IPv6:::1]",
            "a%example.com@other.test",
            "\"a@example.com\"@other.test",
            "postmaster@other.test",
        ] {
            assert_eq!(admit(path), Admit::NotOurs, "{path}");
        }
    }

    #[test]
    fn our_domain_is_ours_in_any_case() {
        assert_eq!(admit("Any.Body@EXAMPLE.Com"), taken_by("office"));
        assert_eq!(admit("@relay.test:a@example.org"), taken_by("office"));
    }

    #[test]
    fn a_local_part_cannot_route_through_our_primary() {
        for path in ["a%b.test@example.com", "b.test!a@example.com", "\"a@b.test\"@school.test"] {
            assert_eq!(admit(path), Admit::SenderSpecifiedRoute, "{path}");
        }
    }

    #[test]
    fn a_listed_route_takes_known_recipients_and_postmaster_alone() {
        assert_eq!(admit("INFO@school.TEST"), taken_by("school"));
        assert_eq!(admit("zoe@school.test"), taken_by("school"));
        assert_eq!(admit("Postmaster@school.test"), taken_by("school"));
        // RFC 5321 section 4.1.2: quotes make no other mailbox.
        for path in ["\"info\"@school.test", "\"i\\nfo\"@school.test", "\"postmaster\"@school.test"] {
            assert_eq!(admit(path), taken_by("school"), "{path}");
        }
        for path in ["inf@school.test", "info2@school.test", "\"in fo\"@school.test"] {
            assert_eq!(admit(path), Admit::UnknownRecipient, "{path}");
        }
    }

    #[test]
    fn bare_postmaster_has_a_route() {
        assert_eq!(admit("PostMaster"), taken_by("office"));
    }

    #[test]
    fn an_ambiguous_table_is_refused() {
        let error = |list: Vec<RouteSettings>| Routes::new(list).map(|_| ()).unwrap_err();
        let name = RouteName::new;
        assert_eq!(error(vec![]), RouteError::NoRoute);
        assert_eq!(error(vec![route("a", &[], None)]), RouteError::NoDomain(name("a")));
        assert_eq!(
            error(vec![route("a", &["a.test"], None), route("a", &["b.test"], None)]),
            RouteError::SameName(name("a"))
        );
        assert_eq!(
            error(vec![route("a", &["a.test"], None), route("b", &["A.test"], None)]),
            RouteError::SameDomain {
                domain: DomainPattern::parse("a.test").unwrap(),
                first: name("a"),
                second: name("b")
            }
        );
        let twice = RouteError::SameDomain {
            domain: DomainPattern::parse("*.a.test").unwrap(),
            first: name("a"),
            second: name("b"),
        };
        assert_eq!(error(vec![route("a", &["a.test", "*.a.test"], None), route("b", &["*.A.test"], None)]), twice);
        let none = RouteSettings { max_connections: 0, ..route("a", &["a.test"], None) };
        assert_eq!(error(vec![none]), RouteError::NoConnection(name("a")));
    }

    #[test]
    fn the_most_specific_entry_takes_the_mail() {
        let routes = Routes::new(vec![
            route("wide", &["*.example.com"], None),
            route("lab", &["*.lab.example.com", "lab.example.com"], None),
            route("one", &["one.lab.example.com"], Some(&["info@one.lab.example.com"])),
        ])
        .unwrap();
        let admit = |path: &str| routes.admit(&ForwardPath::parse(path).unwrap());
        for (path, name) in [
            ("a@sub.example.com", "wide"),
            ("a@deep.deep.deep.EXAMPLE.com", "wide"),
            ("a@lab.example.com", "lab"),
            ("a@two.lab.example.com", "lab"),
            ("a@below.one.lab.example.com", "lab"),
            ("info@one.lab.example.com", "one"),
        ] {
            assert_eq!(admit(path), taken_by(name), "{path}");
        }
        // A list of the most specific entry holds: nobody gets round it by the wildcard.
        assert_eq!(admit("other@one.lab.example.com"), Admit::UnknownRecipient);
        for path in ["a@example.com", "a@xexample.com", "a@sub.example.com.org", "a@com", "a@[127.0.0.1]"] {
            assert_eq!(admit(path), Admit::NotOurs, "{path}");
        }
        let longest = format!("a@{}example.com", "x.".repeat(120));
        assert_eq!(
            admit(&longest),
            if ForwardPath::parse(&longest).is_ok() { taken_by("wide") } else { Admit::NotOurs }
        );
    }

    /// All that is short and made of two labels in several depths, so that names, entries and wildcards meet often.
    const SHORT_NAME: &str = "([ab]\\.){0,3}[ab]\\.[ab]";

    proptest! {
        #[test]
        fn an_address_is_admitted_exactly_if_the_most_specific_entry_says_so(
            entries in prop::collection::btree_set((any::<bool>(), SHORT_NAME), 1..12),
            domain in SHORT_NAME,
        ) {
            let text = |(star, name): &(bool, String)| if *star { format!("*.{name}") } else { name.clone() };
            let settings = entries.iter().enumerate().map(|(n, entry)| route(&n.to_string(), &[&text(entry)], None));
            let routes = Routes::new(settings.collect()).unwrap();
            // Naively: of all entries that mean the domain, an exact one, else the longest.
            let means = |(star, name): &(bool, String)| match star {
                true => domain.ends_with(&format!(".{name}")),
                false => domain == *name,
            };
            let best = entries.iter().enumerate().filter(|(_, entry)| means(entry)).max_by_key(|(_, (star, name))| (!star, name.len()));
            let expected = best.map_or(Admit::NotOurs, |(n, _)| taken_by(&n.to_string()));
            prop_assert_eq!(routes.admit(&ForwardPath::parse(&format!("a@{domain}")).unwrap()), expected);
        }

        #[test]
        fn only_listed_domains_are_admitted(local in "[a-zA-Z.%!+]{1,12}", domain in "([a-z]{1,3}\\.){0,2}(example|school)\\.(com|test|org)") {
            if let Ok(path) = ForwardPath::parse(&format!("{local}@{domain}")) {
                let ours = ["example.com", "example.org", "school.test"].contains(&domain.as_str());
                let admit = routes().admit(&path);
                prop_assert_eq!(admit == Admit::NotOurs, !ours);
                if let Admit::Accept(route) = admit {
                    prop_assert!(!path.has_sender_specified_route());
                    prop_assert_eq!(route.as_str() == "school", domain == "school.test");
                }
            }
        }
    }
}
