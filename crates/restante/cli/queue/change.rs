//! `queue flush|hold|release`: orders to the daemon. What it cannot select by itself is resolved here to identifiers first.

use super::entry::{Among, Entry, all_entries};
use super::live::Live;
use super::source::Source;
use crate::cli::args::{Cli, Daemon, Flush, Operation};
use crate::cli::client::{Client, NoAnswer};
use crate::cli::output::Output;
use crate::cli::select::Selector;
use crate::cli::{exit, journal};
use crate::clock;
use hyper::Method;
use restante_envelope::TransactionId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Identifiers in one request: 27 KiB of a request line that may have 64.
const IDS_IN_REQUEST_MAX: usize = 1_000;

pub(super) fn flush(cli: &Cli, order: &Flush, output: Output) -> anyhow::Result<u8> {
    let change = Change { verb: "flush", more: String::new(), daemon: &order.daemon };
    change.run(cli, &order.chosen.selector, output, |n| format!("{n} to be tried now"))
}

pub(super) fn operate(
    cli: &Cli,
    order: &Operation,
    verb: &'static str,
    output: Output,
    words: impl Fn(u64) -> String,
) -> anyhow::Result<u8> {
    Change { verb, more: signed(&order.reason), daemon: &order.daemon }.run(cli, &order.chosen.selector, output, words)
}

/// By whom, and why.
pub(super) fn signed(reason: &str) -> String {
    format!("&actor={}&reason={}", percent_encoded(&actor()), percent_encoded(reason))
}

/// Whom the system says we are.
pub(crate) fn actor() -> String {
    let user = std::env::var("USER").ok().filter(|user| !user.is_empty());
    user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

struct Change<'a> {
    verb: &'static str,
    /// The rest of the query.
    more: String,
    daemon: &'a Daemon,
}

impl Change<'_> {
    fn run(&self, cli: &Cli, selector: &Selector, output: Output, words: impl Fn(u64) -> String) -> anyhow::Result<u8> {
        let queries = match direct(selector) {
            Some(query) => vec![query],
            None => match journal::data_dir(cli, output) {
                Ok(data) => resolved(&chosen(cli, &data, selector, Among::Pending, output)?),
                Err(code) => return Ok(code),
            },
        };
        let (mut matched, mut failed) = (0, None);
        for query in &queries {
            match self.ask(cli, query) {
                Ok(n) => matched += n,
                Err(no) => {
                    failed = Some(no);
                    break;
                }
            }
        }
        if let Some(no) = failed {
            output.note(&format!("restante: {}", no.why));
            if matched > 0 {
                output.note(&format!("restante: {} before that; run the command again", words(matched)));
            }
            return Ok(if matched > 0 { exit::PARTLY } else { no.code });
        }
        if output.json {
            output.object(&json!({"type": self.verb, "matched": matched}));
        } else {
            output.line(&words(matched));
        }
        Ok(if matched == 0 && !selector.all { exit::NOTHING_MATCHED } else { exit::DONE })
    }

    fn ask(&self, cli: &Cli, query: &str) -> Result<u64, NoAnswer> {
        let client = Client::new(cli, self.daemon.admin.as_ref())?;
        let answer = client.ask(Method::POST, &format!("/api/v1/queue/{}?{query}{}", self.verb, self.more))?;
        Ok(answer.get("matched").and_then(Value::as_u64).unwrap_or(0))
    }
}

/// As the daemon selects by itself, if it can. Names of routes have no characters that need an escape.
pub(super) fn direct(selector: &Selector) -> Option<String> {
    match (selector.ids.as_slice(), selector.routes.as_slice()) {
        _ if selector.needs_rows() => None,
        ([], []) => selector.all.then(|| "all".to_owned()),
        ([], routes) => Some(format!("route={}", routes.join(","))),
        (ids, []) if ids.len() <= IDS_IN_REQUEST_MAX => Some(format!("id={}", joined(ids))),
        _ => None,
    }
}

/// The transactions meant, by route: one with recipients on two may be meant on one of them alone.
pub(super) type ByRoute = BTreeMap<String, Vec<TransactionId>>;

/// What the selector takes.
pub(super) fn chosen(
    cli: &Cli,
    data: &Path,
    selector: &Selector,
    among: Among,
    output: Output,
) -> anyhow::Result<ByRoute> {
    let now = clock::now();
    let mut source = Source::open(data, among.query(selector, now), selector.text.is_some(), output)?;
    let live = Live::ask(cli);
    let mut chosen = ByRoute::new();
    loop {
        let page = source.next_page()?;
        if page.is_empty() {
            return Ok(chosen);
        }
        for row in &page {
            let is_chosen = |entry: &&Entry<'_>| among.takes(entry) && selector.matches(entry, now);
            for entry in all_entries(row, &live).iter().filter(is_chosen) {
                chosen.entry(entry.route.to_owned()).or_default().push(row.id);
            }
        }
    }
}

fn resolved(chosen: &ByRoute) -> Vec<String> {
    let requests = |(route, ids): (&String, &Vec<TransactionId>)| -> Vec<String> {
        ids.chunks(IDS_IN_REQUEST_MAX).map(|ids| format!("id={}&route={route}", joined(ids))).collect()
    };
    chosen.iter().flat_map(requests).collect()
}

fn joined(ids: &[TransactionId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

pub(crate) fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => out.push(char::from(byte)),
            _ => out += &format!("%{byte:02X}"),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_in_any_words_survives_the_query() {
        assert_eq!(percent_encoded("a&b=c é\n"), "a%26b%3Dc%20%C3%A9%0A");
        let selector = Selector { routes: vec!["a".into(), "b.test".into()], ..Selector::default() };
        assert_eq!(direct(&selector).as_deref(), Some("route=a,b.test"));
    }

    #[test]
    fn two_conditions_are_never_taken_for_one() {
        let id = TransactionId::from_bits(1);
        let both = Selector { ids: vec![id], routes: vec!["a".into()], ..Selector::default() };
        assert_eq!(direct(&both), None);
        let narrowed = Selector { ids: vec![id], larger: Some(1), ..Selector::default() };
        assert_eq!(direct(&narrowed), None);
        assert_eq!(direct(&Selector::default()), None);
        assert_eq!(direct(&Selector { all: true, ..Selector::default() }).as_deref(), Some("all"));
    }

    #[test]
    fn many_are_asked_for_in_several_requests_each_for_its_route() {
        let ids: Vec<_> = (0..2_500).map(TransactionId::from_bits).collect();
        let chosen = ByRoute::from([("a.test".to_owned(), ids), ("c".to_owned(), vec![TransactionId::from_bits(1)])]);
        let requests = resolved(&chosen);
        assert_eq!(requests.len(), 4);
        assert!(requests.iter().all(|query| query.len() < 40_000));
        assert!(requests[2].ends_with("&route=a.test") && requests[2].matches(',').count() == 499);
        assert_eq!(requests[3], "id=00000000000000000000000001&route=c");
    }
}
