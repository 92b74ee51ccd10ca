//! Lists of recipients: the addresses of a route, and the files they stand in.
//!
//! Takes no list in part: one bad line, and the whole file is not taken. A list that is shorter by a slip would refuse
//! mail for good.

use super::Route;
use super::diagnostic::{Diagnostic, Source};
use super::file::read_bounded;
use super::fingerprint::Fingerprint;
use restante_envelope::ForwardPath;
use restante_relay::DomainPattern;
use std::path::{Path, PathBuf};

/// About half a million addresses: a university with its aliases.
const RECIPIENTS_FILE_BYTES_MAX: u64 = 16 << 20;
/// A file of the wrong kind is wrong on every line; the first few show what it is.
const BAD_LINES_SHOWN_MAX: usize = 10;

/// An element of `recipients`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listed {
    /// An address.
    Address(String),
    /// A file with one address a line, and what it looked like before it was read; none: it could not be looked at.
    File(PathBuf, Option<Fingerprint>),
}

/// Why a file gives no list.
pub(super) enum NoList {
    /// What the system says.
    Unreadable(String),
    /// Lines that are no address of the route.
    Bad {
        /// The first of them.
        shown: Vec<Diagnostic>,
        /// How many there are besides.
        more: usize,
    },
}

/// Reads a route's lists again because the files `changed` did: the route with what they say now.
///
/// # Errors
/// In a sentence: the first thing that is wrong. A changed file that has no address any more is among it: it is a failed
/// export more often than a wish, and mail to everybody in it would be refused for good.
pub(crate) fn read(route: &Route, changed: &[PathBuf]) -> Result<Route, String> {
    let (mut recipients, mut read) = (Vec::new(), Vec::new());
    let mut emptied = None;
    for listed in &route.listed {
        let path = match listed {
            Listed::Address(address) => {
                recipients.push(address.clone());
                read.push(listed.clone());
                continue;
            }
            Listed::File(path, _) => path,
        };
        let seen = Fingerprint::of(path);
        match file(path, &route.domains) {
            Ok(addresses) if addresses.is_empty() && changed.contains(path) => emptied = emptied.or(Some(path)),
            Ok(addresses) => recipients.extend(addresses),
            Err(NoList::Unreadable(why)) => return Err(format!("cannot read {}: {why}", path.display())),
            Err(NoList::Bad { shown, more }) => {
                let others = (shown.len() + more).saturating_sub(1);
                let others = if others == 0 { String::new() } else { format!(", and {others} more bad lines") };
                return Err(shown.first().map(Diagnostic::line).unwrap_or_default() + &others);
            }
        }
        read.push(Listed::File(path.clone(), seen));
    }
    if let Some(path) = emptied {
        // A reload takes an empty file beside other addresses, and no list that is empty as a whole.
        let meant = if recipients.is_empty() {
            "a route that takes no mail is removed from the configuration instead"
        } else {
            "if that is meant, run `restante reload`"
        };
        return Err(format!("{} has no address any more; {meant}", path.display()));
    }
    Ok(Route { recipients: Some(recipients), listed: read, ..route.clone() })
}

/// One address a line, with `#` comments.
pub(super) fn file(path: &Path, domains: &[DomainPattern]) -> Result<Vec<String>, NoList> {
    let text = read_bounded(path, RECIPIENTS_FILE_BYTES_MAX).map_err(|why| NoList::Unreadable(why.to_string()))?;
    let source = Source::new(path, &text);
    let (mut addresses, mut shown) = (Vec::new(), Vec::new());
    let (mut start, mut bad_lines) = (0, 0_usize);
    for line in text.split_inclusive('\n') {
        let entry = without_comment(line);
        let at = start + (line.len() - line.trim_start().len());
        start += line.len();
        if entry.is_empty() {
            continue;
        }
        match address(entry, domains) {
            Ok(address) => addresses.push(address),
            Err((message, help)) => {
                bad_lines += 1;
                if bad_lines <= BAD_LINES_SHOWN_MAX {
                    shown.push(Diagnostic { source: source.clone(), span: at..at + entry.len(), message, help });
                }
            }
        }
    }
    if bad_lines == 0 { Ok(addresses) } else { Err(NoList::Bad { more: bad_lines - shown.len(), shown }) }
}

/// `#` starts a comment at the start of a line or behind white space; elsewhere it may be part of an address.
fn without_comment(line: &str) -> &str {
    let comment = line.char_indices().find(|(at, c)| {
        *c == '#' && line.get(..*at).is_some_and(|before| before.is_empty() || before.ends_with([' ', '\t']))
    });
    comment.and_then(|(at, _)| line.get(..at)).unwrap_or(line).trim()
}

/// Checks an address of `recipients`; what is wrong comes as message and help.
pub(super) fn address(text: &str, domains: &[DomainPattern]) -> Result<String, (String, String)> {
    let help = "such as info@example.com; a file is named \"file:PATH\"";
    let path =
        ForwardPath::parse_utf8(text).map_err(|why| (format!("`{text}` is no recipient: {why}"), help.to_owned()))?;
    let ours = path.domain_ascii().is_some_and(|domain| domains.iter().any(|ours| ours.takes(&domain)));
    // Without a good domain in the route, the domains are what is wrong.
    if ours || domains.is_empty() {
        Ok(path.as_str().to_owned())
    } else {
        Err((format!("`{text}` is in no domain of this route"), "move it, or add its domain".to_owned()))
    }
}
