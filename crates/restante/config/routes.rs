//! The `[[route]]`s: whose mail we take, and where it goes.
//!
//! Refuses whatever would make an open relay, lose mail or send it round in circles; asks no DNS.

use super::Route;
use super::address::{self, HostPort};
use super::diagnostic::{Diagnostic, Source};
use super::file::{ROOT, read_bounded};
use super::walk::{Keys, Text, Walk};
use restante_envelope::{DomainName, ForwardPath};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use toml::de::DeTable;

/// About half a million addresses: a university with its aliases.
const RECIPIENTS_FILE_BYTES_MAX: u64 = 16 << 20;
/// A file of the wrong kind is wrong on every line; the first few show what it is.
const BAD_LINES_SHOWN_MAX: usize = 10;
/// A route's name is a label of metrics and a word of the command line; as long as a domain may be.
const NAME_BYTES_MAX: usize = 255;

const ROUTE: Keys = Keys {
    title: "[[route]]",
    known: &["name", "domains", "primary", "recipients"],
    reserved: &[
        "accept",
        "expire",
        "expire_cap",
        "retry",
        "probe",
        "drain",
        "tls",
        "hold",
        "maintenance",
        "notify",
        "xclient",
        "bounce",
    ],
};

/// What a route must not lead back to.
pub(super) struct Ourselves<'a> {
    pub(super) hostname: &'a str,
    pub(super) listen: &'a [SocketAddr],
    /// The flags bring routes of their own.
    pub(super) routes_may_be_missing: bool,
}

/// A domain that we take mail for.
pub(super) fn domain(text: &str) -> Result<DomainName, String> {
    match DomainName::parse(text) {
        Ok(name) if address::looks_like_ipv4(&name) => Err(format!("`{text}` is an address, not a domain")),
        Ok(name) => Ok(name),
        Err(_) if text == "*" => Err("`*` would take mail for everybody: name the domains".to_owned()),
        Err(_) if text.starts_with("*.") => Err(format!("`{text}` is a pattern: name each subdomain")),
        Err(_) if text.is_empty() => Err("a domain is missing".to_owned()),
        Err(_) => Err(format!("`{text}` is not a domain name")),
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
    domains: BTreeMap<DomainName, usize>,
    names: BTreeMap<String, usize>,
}

impl Reader<'_> {
    fn route(&mut self, header: Range<usize>, table: &DeTable<'_>) -> Option<Route> {
        self.walk.check_keys(table, &ROUTE);
        let domains = self.domains(&header, table);
        let primary = self.primary(&header, table);
        let name = self.name(header, table, domains.first());
        let recipients = self.recipients(table, &domains);
        let complete = !domains.is_empty() && !primary.is_empty();
        name.filter(|_| complete).map(|name| Route { name, domains, primary, recipients })
    }

    fn name(&mut self, header: Range<usize>, table: &DeTable<'_>, first_domain: Option<&DomainName>) -> Option<String> {
        let (name, span) = if table.contains_key("name") {
            self.walk.string(table, "name", "office")?
        } else {
            (first_domain?.as_str(), header)
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

    fn domains(&mut self, header: &Range<usize>, table: &DeTable<'_>) -> Vec<DomainName> {
        let mut domains = Vec::new();
        for (text, span) in self.filled_list(header, table, "domains", "example.com", "whose mail is it?") {
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

    fn primary(&mut self, header: &Range<usize>, table: &DeTable<'_>) -> Vec<HostPort> {
        let mut primary = Vec::new();
        let help = "following MX is not there yet: name the primary";
        for (text, span) in self.filled_list(header, table, "primary", "mail.example.com:25", help) {
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

    /// A list that must be there and not be empty.
    fn filled_list<'t>(
        &mut self,
        header: &Range<usize>,
        table: &'t DeTable<'t>,
        key: &str,
        example: &str,
        help: &str,
    ) -> Vec<Text<'t>> {
        if !table.contains_key(key) {
            self.walk.missing(table, &ROUTE, key, header.clone(), help);
        }
        self.walk.check_not_empty(table, key, help);
        self.walk.strings(table, key, example).unwrap_or_default()
    }

    fn recipients(&mut self, table: &DeTable<'_>, domains: &[DomainName]) -> Option<Vec<String>> {
        let errors_before = self.walk.errors();
        let texts = self.walk.strings(table, "recipients", "info@example.com")?;
        let mut recipients = Vec::new();
        for (text, span) in texts {
            if let Some(path) = text.strip_prefix("file:") {
                self.recipients_file(&self.base.join(path), span, domains, &mut recipients);
            } else {
                match address(text, domains) {
                    Ok(address) => recipients.push(address),
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
        Some(recipients)
    }

    /// One address a line, with `#` comments.
    fn recipients_file(&mut self, path: &Path, named: Range<usize>, domains: &[DomainName], out: &mut Vec<String>) {
        let text = match read_bounded(path, RECIPIENTS_FILE_BYTES_MAX) {
            Ok(text) => text,
            Err(why) => {
                self.walk.error(named, format!("cannot read the recipients file {}", path.display()), why.to_string());
                return;
            }
        };
        let source = Source::new(path, &text);
        let (mut start, mut bad_lines) = (0, 0_usize);
        for line in text.split_inclusive('\n') {
            let entry = without_comment(line);
            let at = start + (line.len() - line.trim_start().len());
            start += line.len();
            if entry.is_empty() {
                continue;
            }
            let (message, help) = match address(entry, domains) {
                Ok(address) => {
                    out.push(address);
                    continue;
                }
                Err(why) => why,
            };
            bad_lines += 1;
            if bad_lines <= BAD_LINES_SHOWN_MAX {
                let span = at..at + entry.len();
                self.walk.error_in(named.start, Diagnostic { source: source.clone(), span, message, help });
            }
        }
        if bad_lines > BAD_LINES_SHOWN_MAX {
            let more = bad_lines - BAD_LINES_SHOWN_MAX;
            self.walk.error(named, format!("{more} more bad lines in {}", path.display()), "one address a line");
        }
    }
}

/// `#` starts a comment at the start of a line or behind white space; elsewhere it may be part of an address.
fn without_comment(line: &str) -> &str {
    let comment = line.char_indices().find(|(at, c)| {
        *c == '#' && line.get(..*at).is_some_and(|before| before.is_empty() || before.ends_with([' ', '\t']))
    });
    comment.and_then(|(at, _)| line.get(..at)).unwrap_or(line).trim()
}

/// Checks an address of `recipients`; what is wrong comes as message and help.
fn address(text: &str, domains: &[DomainName]) -> Result<String, (String, String)> {
    let help = "such as info@example.com; a file is named \"file:PATH\"";
    let path = ForwardPath::parse(text).map_err(|why| (format!("`{text}` is no recipient: {why}"), help.to_owned()))?;
    let ours =
        path.domain().is_some_and(|domain| domains.iter().any(|ours| ours.as_str().eq_ignore_ascii_case(domain)));
    // Without a good domain in the route, the domains are what is wrong.
    if ours || domains.is_empty() {
        Ok(path.as_str().to_owned())
    } else {
        Err((format!("`{text}` is in no domain of this route"), "move it, or add its domain".to_owned()))
    }
}
