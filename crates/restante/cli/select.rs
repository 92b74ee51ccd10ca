//! Which transactions: the selectors, the same for every command, and what they match.
//!
//! Pure: knows neither the journal nor the index. Conditions of one kind are alternatives; those of different kinds must all hold.

use super::log_line::addresses;
use super::queue::Entry;
use super::when;
use crate::clock;
use crate::config::{Network, duration, size};
use clap::Args;
use clap::builder::PossibleValuesParser;
use jiff::tz::TimeZone;
use restante_envelope::{Timestamp, TransactionId};
use restante_index::Row;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// What a transaction is that is not settled, then what an operator made of one; then what only `journal` shows.
const STATES: [&str; 9] =
    ["active", "deferred", "waiting", "hold", "removed", "bounced", "expired", "sent", "quarantined"];
/// What `undo` takes up again, and no listing shows that was not asked for it.
const GIVEN_UP: [&str; 2] = ["removed", "bounced"];
/// The names of all arguments below, for whoever requires one of them.
pub(crate) const ARGUMENTS: [&str; 13] =
    ["ids", "routes", "domains", "from", "to", "clients", "states", "since", "until", "older", "larger", "text", "all"];

/// Which transactions.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which (of one kind: any of them; of different kinds: all of them)")]
pub(crate) struct Selector {
    /// The transaction with this ID; this and most of the others may be repeated
    #[arg(long = "id", value_name = "ID")]
    pub(crate) ids: Vec<TransactionId>,
    /// Those of this route
    #[arg(long = "route", value_name = "NAME", value_parser = route)]
    pub(crate) routes: Vec<String>,
    /// With a recipient in this domain
    #[arg(long = "domain", value_name = "DOMAIN")]
    pub(crate) domains: Vec<String>,
    /// From this address; without an @: with this in the address. <> is the null reverse-path
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(crate) from: Vec<Address>,
    /// To this address; without an @: with this in the address
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(crate) to: Vec<Address>,
    /// From the client with this IP address, or in this block such as 192.0.2.0/24
    #[arg(long = "client", value_name = "IP[/BITS]")]
    pub(crate) clients: Vec<Network>,
    /// In this state
    #[arg(long = "state", value_name = "STATE", value_parser = PossibleValuesParser::new(STATES))]
    pub(crate) states: Vec<String>,
    /// Accepted then or later: 90m or 3d ago, 2026-11-22, "2026-11-22 15:00", 2026-11-22T15:00:00Z
    #[arg(long, value_name = "TIME", value_parser = instant)]
    pub(crate) since: Option<Timestamp>,
    /// Accepted before
    #[arg(long, value_name = "TIME", value_parser = instant)]
    pub(crate) until: Option<Timestamp>,
    /// Accepted longer ago than this, such as 12h or 7d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) older: Option<Duration>,
    /// With more content than this, such as 10MiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) larger: Option<u64>,
    /// With this in the subject, the header From, the Message-ID, an address, the last reply or the reason
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: Option<String>,
    /// All of them
    #[arg(long, conflicts_with_all = &ARGUMENTS[..12])]
    pub(crate) all: bool,
}

/// Which transactions, where a slip would change something: nothing is not everything.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(ARGUMENTS))]
pub(crate) struct Chosen {
    #[command(flatten)]
    pub(crate) selector: Selector,
}

impl Selector {
    /// Whether it narrows anything.
    pub(crate) fn narrows(&self) -> bool {
        !self.ids.is_empty() || !self.routes.is_empty() || self.needs_rows()
    }

    /// Whether more than the identifier and the route must be known of a transaction.
    pub(crate) fn needs_rows(&self) -> bool {
        let counts = [self.domains.len(), self.from.len(), self.to.len(), self.states.len(), self.clients.len()];
        let since = self.since.or(self.until).is_some() || self.older.is_some();
        counts.iter().any(|count| *count > 0) || since || self.larger.is_some() || self.text.is_some()
    }

    /// Whether it asks for what was removed or bounced.
    pub(crate) fn wants_given_up(&self) -> bool {
        self.states.iter().any(|state| GIVEN_UP.contains(&&**state))
    }

    /// As far as the index can narrow it; [`Self::matches`] does the rest.
    pub(crate) fn query(&self, now: Timestamp) -> restante_index::Selector {
        restante_index::Selector {
            ids: self.ids.clone(),
            routes: self.routes.clone(),
            domains: self.domains.iter().map(|domain| domain.to_ascii_lowercase()).collect(),
            since: self.since,
            until: [self.until, self.before(now)].into_iter().flatten().min(),
            larger_bytes: self.larger,
            pending: self.states.is_empty() || self.states.iter().any(|state| !GIVEN_UP.contains(&&**state)),
            given_up: self.wants_given_up(),
        }
    }

    fn before(&self, now: Timestamp) -> Option<Timestamp> {
        let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.older.map(|age| Timestamp::from_unix_ms(now.unix_ms().saturating_sub(ms(age))))
    }

    /// Whether a transaction, on one of its routes, is meant.
    pub(crate) fn matches(&self, entry: &Entry<'_>, now: Timestamp) -> bool {
        let row = entry.row;
        let to = || entry.recipients.iter().filter_map(|to| to.addr.as_deref());
        let domain = |wanted: &String| {
            to().any(|addr| addr.rsplit_once('@').is_some_and(|(_, domain)| domain.eq_ignore_ascii_case(wanted)))
        };
        any(&self.ids, |id| *id == row.id)
            && any(&self.routes, |route| route == entry.route)
            && any(&self.domains, domain)
            && any(&self.from, |wanted| row.from.as_deref().is_some_and(|from| wanted.is_in(from)))
            && any(&self.to, |wanted| to().any(|addr| wanted.is_in(addr)))
            && any(&self.clients, |block| client(row).is_some_and(|client| block.contains(client.ip())))
            && any(&self.states, |state| state == entry.state || entry.was(state))
            && self.since.is_none_or(|since| row.accepted_at >= since)
            && self.until.is_none_or(|until| row.accepted_at < until)
            && self.before(now).is_none_or(|before| row.accepted_at < before)
            && self.larger.is_none_or(|bytes| row.size > bytes)
            && self.text.as_ref().is_none_or(|text| mentions(entry, text))
    }
}

fn any<T>(wanted: &[T], holds: impl FnMut(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(holds)
}

fn client(row: &Row) -> Option<SocketAddr> {
    row.client.as_ref()?.parse().ok()
}

/// Case counts for nobody who searches.
fn contains(text: &str, wanted: &str) -> bool {
    text.to_lowercase().contains(&wanted.to_lowercase())
}

fn mentions(entry: &Entry<'_>, wanted: &str) -> bool {
    let (row, summary) = (entry.row, &entry.row.summary);
    let of_message = [&row.from, &summary.subject, &summary.from, &summary.message_id];
    let of_recipients = entry.recipients.iter().flat_map(|to| [&to.addr, &to.last_reply, &to.reason]);
    of_message.into_iter().chain(of_recipients).flatten().any(|text| contains(text, wanted))
}

/// A whole address, or a part of one; in small letters.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    Whole(String),
    Part(String),
}

impl Address {
    /// In `list`: one address, or several with commas between.
    pub(crate) fn is_in(&self, list: &str) -> bool {
        let list = list.to_lowercase();
        match self {
            Self::Whole(address) => list == *address || addresses(&list).contains(&address.as_str()),
            Self::Part(part) => list.contains(part),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(address) => write!(f, "<{address}>"),
            Self::Part(part) => f.write_str(part),
        }
    }
}

/// Without the angle brackets that people copy along; the null reverse-path is then empty, and an address too.
pub(crate) fn address(text: &str) -> Result<Address, String> {
    let inner = text.strip_prefix('<').and_then(|text| text.strip_suffix('>'));
    let bare = inner.unwrap_or(text).to_lowercase();
    match bare.as_str() {
        "" if inner.is_none() => Err("an address, a part of one, or <>".to_owned()),
        whole if whole.is_empty() || whole.contains('@') => Ok(Address::Whole(bare)),
        _ => Ok(Address::Part(bare)),
    }
}

/// As the configuration takes them: so they need no escapes in a request, and a comma stands between two.
pub(crate) fn route(text: &str) -> Result<String, String> {
    let is_of_name = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if text.is_empty() || !text.bytes().all(is_of_name) {
        return Err("a route's name has letters, digits, `.`, `-` and `_`; repeat --route for more".to_owned());
    }
    Ok(text.to_owned())
}

pub(crate) fn instant(text: &str) -> Result<Timestamp, String> {
    when::instant(text, clock::now(), &TimeZone::system())
}

#[cfg(test)]
mod tests {
    use super::super::queue::testing::{live, row};
    use super::*;
    use clap::Parser;
    use restante_ledger::RecipientState;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        selector: Selector,
    }

    fn selector(line: &str) -> Selector {
        Line::try_parse_from(["ls"].into_iter().chain(line.split_whitespace())).unwrap().selector
    }

    #[test]
    fn each_selector_takes_what_it_says_and_nothing_else() {
        let now = Timestamp::from_unix_ms(10 * 86_400_000);
        let mut row = row(7, &["Ann@Example.Test", "bob@other.test"]);
        row.accepted_at = Timestamp::from_unix_ms(8 * 86_400_000);
        row.recipients[0].last_reply = Some("451 Greylisted".into());
        row.recipients[1].state = RecipientState::Hold;
        let live = live();
        let entries = super::super::queue::all_entries(&row, &live);
        assert_eq!(entries.iter().map(|e| e.route).collect::<Vec<_>>(), ["example.test", "other.test"]);
        let matched = |line: &str| {
            let selector = selector(line);
            let routes: Vec<_> = entries.iter().filter(|e| selector.matches(e, now)).map(|e| e.route).collect();
            routes.join(" ")
        };
        let both = "example.test other.test";
        for (line, routes) in [
            ("", both),
            ("--all", both),
            ("--id 00000000000000000000000007", both),
            ("--id 00000000000000000000000008", ""),
            ("--route other.test --route x", "other.test"),
            ("--domain EXAMPLE.test", "example.test"),
            ("--domain ample.test", ""),
            ("--from A@b.test", both),
            ("--from <a@B.test>", both),
            ("--from @b.test", ""),
            ("--from b.te", both),
            ("--from <>", ""),
            ("--to ann@example.test --to x@y", "example.test"),
            ("--to nn@example.test", ""),
            ("--to BOB", "other.test"),
            ("--client 192.0.2.0/24", both),
            ("--client 192.0.2.2 --client ::1", ""),
            ("--state hold", "other.test"),
            ("--state waiting --state deferred", "example.test"),
            ("--state active", ""),
            ("--state removed", ""),
            ("--since 1970-01-09T00:00:00Z", both),
            ("--since 1970-01-09T00:00:00.001Z", ""),
            ("--until 1970-01-09T00:00:00Z", ""),
            ("--until 1970-01-10T00:00:00Z", both),
            ("--older 47h", both),
            ("--older 2d", ""),
            ("--larger 1KB", both),
            ("--larger 1KiB", ""),
            ("--text HELLO", both),
            ("--text example.net", both),
            ("--text greylist", "example.test"),
            ("--text bob@", "other.test"),
            ("--text nothing", ""),
            ("--text hello --state hold --domain other.test", "other.test"),
            ("--text hello --state hold --domain example.test", ""),
        ] {
            assert_eq!(matched(line), routes, "{line}");
        }
    }

    #[test]
    fn the_index_never_narrows_more_than_the_match() {
        let now = Timestamp::from_unix_ms(10 * 86_400_000);
        let query = selector("--domain A.Test --until 1970-01-03T00:00:00Z --older 9d --larger 2MiB").query(now);
        assert_eq!(query.domains, ["a.test"]);
        assert_eq!((query.until, query.larger_bytes), (Some(Timestamp::from_unix_ms(86_400_000)), Some(2 << 20)));
        assert!(query.pending && query.ids.is_empty() && query.since.is_none());
        for (line, pending, given_up) in
            [("", true, false), ("--state removed", false, true), ("--state bounced --state hold", true, true)]
        {
            let query = selector(line).query(now);
            assert_eq!((query.pending, query.given_up), (pending, given_up), "{line}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for line in [
            "--state queued",
            "--since 7",
            "--older 7",
            "--larger 7",
            "--client x",
            "--id 7",
            "--all --to a",
            "--from=",
            "--route a,b",
            "--route b&all",
            "--route=",
        ] {
            assert!(Line::try_parse_from(["ls"].into_iter().chain(line.split_whitespace())).is_err(), "{line}");
        }
    }
}
