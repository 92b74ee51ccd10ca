//! Which lines of the log are wanted: one of each kind of selector given.
//!
//! Looks for identifiers in the bytes before it parses anything: most lines of a log are not wanted.

use super::super::args::Log;
use super::super::select::Address;
use super::tail::Days;
use memchr::memmem::Finder;
use restante_envelope::{Timestamp, TransactionId};
use serde_json::{Map, Value};

/// What was asked for; all that is empty fits everything.
pub(super) struct Selection {
    ids: Vec<(String, Finder<'static>)>,
    to: Vec<Address>,
    from: Vec<Address>,
    routes: Vec<String>,
    since: Option<String>,
    until: Option<String>,
    /// In small letters.
    texts: Vec<String>,
    days: Days,
}

impl Selection {
    pub(super) fn new(args: &Log) -> Self {
        let ids: Vec<_> = args.ids.iter().map(|id| finder(&id.to_string())).collect();
        let day = |at: Option<Timestamp>| at.map(day_of);
        // Nothing was said of a transaction before it was accepted.
        let first = args.ids.iter().min().map(|id| earliest_day(*id));
        let days = Days { since: day(args.since).max(first), until: day(args.until) };
        Self {
            ids,
            to: args.to.clone(),
            from: args.from.clone(),
            routes: args.routes.iter().map(|name| name.to_lowercase()).collect(),
            since: args.since.map(|at| at.to_string()),
            until: args.until.map(|at| at.to_string()),
            texts: args.texts.iter().map(|text| text.to_lowercase()).collect(),
            days,
        }
    }

    /// Whether nothing was asked for.
    pub(super) fn is_all(&self) -> bool {
        let lists = [self.to.len(), self.from.len(), self.routes.len(), self.texts.len(), self.ids.len()];
        lists.iter().all(|len| *len == 0) && self.since.is_none() && self.until.is_none()
    }

    /// The days of the files that can have it.
    pub(super) fn days(&self) -> Days {
        self.days.clone()
    }

    /// The lines of `text` that may be wanted.
    pub(super) fn candidates<'t>(&self, text: &'t [u8]) -> Vec<&'t [u8]> {
        if self.ids.is_empty() {
            let text = text.strip_suffix(b"\n").unwrap_or(text);
            return text.split(|b| *b == b'\n').collect();
        }
        lines_with(text, self.ids.iter().map(|(_, finder)| finder))
    }

    /// Whether the record fits.
    pub(super) fn fits(&self, record: &Map<String, Value>) -> bool {
        let text = |key: &str| record.get(key).and_then(Value::as_str);
        let any = |key: &str, wanted: &[Address]| {
            wanted.is_empty() || text(key).is_some_and(|list| wanted.iter().any(|one| one.is_in(list)))
        };
        // Times of ours sort as text.
        let is_in_time = |ts: &str| {
            self.since.as_ref().is_none_or(|since| ts >= since.as_str())
                && self.until.as_ref().is_none_or(|until| ts <= until.as_str())
        };
        let is_of_route = |routes: &str| {
            routes.to_lowercase().split(',').any(|route| self.routes.iter().any(|wanted| wanted == route))
        };
        (self.ids.is_empty() || text("id").is_some_and(|id| self.ids.iter().any(|(wanted, _)| wanted == id)))
            && any("to", &self.to)
            && any("from", &self.from)
            && (self.routes.is_empty() || text("route").is_some_and(is_of_route))
            && (self.since.is_none() && self.until.is_none() || text("ts").is_some_and(is_in_time))
            && (self.texts.is_empty() || record.values().any(|value| self.has_text(value)))
    }

    fn has_text(&self, value: &Value) -> bool {
        let value = match value {
            Value::String(text) => text.to_lowercase(),
            other => other.to_string().to_lowercase(),
        };
        self.texts.iter().any(|text| value.contains(text))
    }
}

pub(super) fn finder(text: &str) -> (String, Finder<'static>) {
    (text.to_owned(), Finder::new(text).into_owned())
}

/// The lines that have one of the needles, in their order.
pub(super) fn lines_with<'t, 'f>(text: &'t [u8], needles: impl Iterator<Item = &'f Finder<'static>>) -> Vec<&'t [u8]> {
    let mut starts: Vec<usize> = Vec::new();
    for needle in needles {
        let line_start = |at| memchr::memrchr(b'\n', text.get(..at).unwrap_or_default()).map_or(0, |end| end + 1);
        starts.extend(needle.find_iter(text).map(line_start));
    }
    starts.sort_unstable();
    starts.dedup();
    let line = |start: usize| text.get(start..).and_then(|rest| rest.split(|b| *b == b'\n').next());
    starts.into_iter().filter_map(line).collect()
}

fn day_of(at: Timestamp) -> String {
    at.to_string().get(..10).unwrap_or_default().to_owned()
}

/// The day before the one in the identifier: a clock may step back, an identifier does not.
pub(super) fn earliest_day(id: TransactionId) -> String {
    const DAY_MS: u64 = 86_400_000;
    let accepted_ms = u64::try_from(id.to_bits() >> 80).unwrap_or(u64::MAX);
    day_of(Timestamp::from_unix_ms(accepted_ms.saturating_sub(DAY_MS)))
}

#[cfg(test)]
mod tests {
    use super::super::super::args::{Cli, Command};
    use super::*;
    use clap::Parser as _;

    const ID: &str = "01JD9QK3T2E8V5W6X7Y8Z9ABCD";

    pub(super) fn selection(line: &[&str]) -> Selection {
        let words = ["restante", "log"].iter().chain(line);
        let Command::Log(args) = Cli::try_parse_from(words).unwrap().command else { panic!("log") };
        Selection::new(&args)
    }

    #[test]
    fn a_selector_shows_its_lines_alone() {
        let record = serde_json::json!({"ts": "2026-11-22T14:53:20.118Z", "ev": "accepted", "id": ID, "route": "office,b.test",
            "to": "A@Example.com,b@other.test", "from": "", "size": 4711, "reply": "250 2.0.0 Queued as XyZ"});
        let record = record.as_object().unwrap();
        for fitting in [
            &[][..],
            &["--id", ID],
            &["--id", "01JD9QK3T2E8V5W6X7Y8Z9ABCE", "--id", ID],
            &["--to", "a@example.COM"],
            &["--to", "nobody@x.test", "--to", "<b@other.test>"],
            &["--to", "example.com"],
            &["--from", "<>"],
            &["--route", "B.test", "--route", "c"],
            &["--since", "2026-11-22T14:53:20.118Z", "--until", "2026-11-22T14:53:20.118Z"],
            &["--text", "queued AS"],
            &["--text", "nothing", "--text", "4711"],
        ] {
            assert!(selection(fitting).fits(record), "{fitting:?}");
        }
        for other in [
            &["--id", "01JD9QK3T2E8V5W6X7Y8Z9ABCE"][..],
            &["--to", "xa@example.com"],
            &["--to", "a@example.co"],
            &["--from", "a@example.com"],
            &["--from", "example"],
            &["--route", "off"],
            &["--since", "2026-11-22T14:53:20.119Z"],
            &["--until", "2026-11-22T14:53:20.117Z"],
            &["--text", "ts"],
            &["--to", "example.com", "--route", "c"],
        ] {
            assert!(!selection(other).fits(record), "{other:?}");
        }
        let nothing = Map::new();
        assert!(selection(&[]).fits(&nothing) && !selection(&["--until", "3d"]).fits(&nothing));
        assert!(selection(&[]).is_all() && !selection(&["--text", "x"]).is_all());
    }

    #[test]
    fn an_identifier_is_found_in_the_bytes() {
        let (_, needle) = finder("b");
        let lines = |text: &'static str| lines_with(text.as_bytes(), [&needle].into_iter());
        assert_eq!(lines("ab\nc\nbb\nxb"), [&b"ab"[..], b"bb", b"xb"]);
        assert_eq!(lines("a\n\n"), [&b""[..]; 0]);
        assert_eq!(earliest_day("01JD9QK3T2E8V5W6X7Y8Z9ABCD".parse().unwrap()), "2024-11-21");
    }
}
