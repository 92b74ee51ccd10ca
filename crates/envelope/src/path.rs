//! Reverse-paths and forward-paths (RFC 5321 section 4.1.2), kept as the peer wrote them.
//!
//! What is stored is the text between `<` and `>` without a source route. It is printable, so it can go into a command line or a
//! header again without quoting anew. Addresses outside ASCII (RFC 6531 section 3.3) are taken only by `parse_utf8`: whoever
//! calls that knows that SMTPUTF8 was asked for.

use crate::text::is_harmless;
use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use std::borrow::Cow;
use std::fmt;

/// RFC 5321 section 4.5.3.1.3: a path is at most 256 octets, `<` and `>` included.
const PATH_BYTES_MAX: usize = 254;
/// RFC 5321 section 4.5.3.1.1.
const LOCAL_PART_BYTES_MAX: usize = 64;
/// RFC 5321 section 4.5.3.1.2.
const DOMAIN_BYTES_MAX: usize = 255;
/// RFC 1035 section 2.3.4.
const LABEL_BYTES_MAX: usize = 63;

/// Why a text is not a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// There is no `@`, and it is not `postmaster`.
    #[error("address has no domain")]
    NoDomain,
    /// Nothing before the `@`, or a character that needs quotes, or quotes that do not close.
    #[error("malformed local part")]
    LocalPart,
    /// The part after the `@` is neither a domain name nor an address literal.
    #[error("malformed domain")]
    Domain,
    /// Longer than RFC 5321 section 4.5.3.1 allows.
    #[error("address is too long")]
    TooLong,
    /// A character outside ASCII, without SMTPUTF8.
    #[error("address is not ASCII, and SMTPUTF8 was not asked for")]
    NotAscii,
    /// `<>` where a recipient is needed.
    #[error("the null reverse-path is no recipient")]
    Null,
}

/// A domain name in lower case, without a final dot, e.g. `example.com`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(Box<str>);

impl DomainName {
    /// Checks `text` by RFC 5321's `Domain`: labels of letters, digits, hyphens (and underscores, which exist in
    /// practice), none empty, none over 63 octets. One in another script becomes its A-labels (RFC 5890).
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let ascii = to_ascii(text).ok_or(PathError::Domain)?;
        if !is_domain_name(&ascii) {
            return Err(PathError::Domain);
        }
        Ok(Self(ascii.to_ascii_lowercase().into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Where failures are reported to: a mailbox, or nobody.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReversePath(Box<str>);

impl ReversePath {
    /// The null reverse-path `<>` of bounces.
    pub fn null() -> Self {
        Self("".into())
    }

    /// Checks the text between `<` and `>`; empty is the null reverse-path.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.is_ascii() { Self::parse_utf8(text) } else { Err(PathError::NotAscii) }
    }

    /// As [`Self::parse`], where SMTPUTF8 was asked for.
    pub fn parse_utf8(text: &str) -> Result<Self, PathError> {
        if text.is_empty() { Ok(Self::null()) } else { mailbox(text).map(|m| Self(m.into())) }
    }

    /// Whether this is `<>`.
    pub fn is_null(&self) -> bool {
        self.0.is_empty()
    }

    /// The text between `<` and `>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A recipient: a mailbox, or the bare `postmaster` of RFC 5321 section 4.5.1.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ForwardPath(Box<str>);

impl ForwardPath {
    /// Checks the text between `<` and `>`. A source route (RFC 5321 appendix C) is dropped.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.is_ascii() { Self::parse_utf8(text) } else { Err(PathError::NotAscii) }
    }

    /// As [`Self::parse`], where SMTPUTF8 was asked for.
    pub fn parse_utf8(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Null);
        }
        if text.eq_ignore_ascii_case("postmaster") {
            Ok(Self(text.into()))
        } else {
            mailbox(text).map(|m| Self(m.into()))
        }
    }

    /// The text between `<` and `>`, in the case the peer wrote.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the last `@`, quotes included.
    pub fn local_part(&self) -> &str {
        self.0.rsplit_once('@').map_or(&*self.0, |(local, _)| local)
    }

    /// The part after the last `@`: a domain name or an address literal; none for the bare `postmaster`.
    pub fn domain(&self) -> Option<&str> {
        self.0.rsplit_once('@').map(|(_, domain)| domain)
    }

    /// The domain as the DNS and our routes have it: lower case, in A-labels; an address literal as it is.
    pub fn domain_ascii(&self) -> Option<Cow<'_, str>> {
        let domain = self.domain()?;
        // It was checked when the path was made.
        to_ascii(domain).map(|domain| match domain.bytes().any(|b| b.is_ascii_uppercase()) {
            true => Cow::Owned(domain.to_ascii_lowercase()),
            false => domain,
        })
    }

    /// In lower case, as far as that is ASCII, without quotes where none are needed, with the domain in A-labels: the same for all
    /// ways to write the address.
    pub fn canonical(&self) -> String {
        let local = plainest(self.local_part()).to_ascii_lowercase();
        self.domain_ascii().map_or(local.clone(), |domain| format!("{local}@{domain}"))
    }

    /// Whether this is the mailbox that RFC 5321 section 4.5.1 requires every domain to have.
    pub fn is_postmaster(&self) -> bool {
        plainest(self.local_part()).eq_ignore_ascii_case("postmaster")
    }

    /// Whether the local part asks the next server to route the mail elsewhere: `user%other`, `other!user`,
    /// `"user@other"`. A relay that trusts us would be abused through us.
    pub fn has_sender_specified_route(&self) -> bool {
        self.local_part().bytes().any(|b| matches!(b, b'%' | b'!' | b'@'))
    }
}

impl fmt::Display for ForwardPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Checks `[source-route ":"] local-part "@" domain` and returns it without the source route.
fn mailbox(text: &str) -> Result<&str, PathError> {
    let text = without_source_route(text)?;
    if text.len() > PATH_BYTES_MAX {
        return Err(PathError::TooLong);
    }
    let (local, domain) = text.rsplit_once('@').ok_or(PathError::NoDomain)?;
    if local.len() > LOCAL_PART_BYTES_MAX || domain.len() > DOMAIN_BYTES_MAX {
        return Err(PathError::TooLong);
    }
    if !is_dot_string(local) && !is_quoted_string(local) {
        return Err(PathError::LocalPart);
    }
    let is_domain = to_ascii(domain).is_some_and(|domain| is_domain_name(&domain)) || is_address_literal(domain);
    if is_domain { Ok(text) } else { Err(PathError::Domain) }
}

/// `@a.example,@b.example:user@c.example` -> `user@c.example`
fn without_source_route(text: &str) -> Result<&str, PathError> {
    if !text.starts_with('@') {
        return Ok(text);
    }
    let (route, rest) = text.split_once(':').ok_or(PathError::LocalPart)?;
    let well_formed = route.split(',').all(|hop| hop.strip_prefix('@').is_some_and(is_domain_name));
    if well_formed { Ok(rest) } else { Err(PathError::Domain) }
}

fn is_dot_string(local: &str) -> bool {
    let is_atext = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || is_utf8_non_ascii(c);
    // Empty atoms (`a..b`, `.a`, `a.`) break the RFC, but such mailboxes exist, in Japan by the million: they pass.
    local.chars().all(|c| is_atext(c) || c == '.') && local.chars().any(is_atext)
}

/// RFC 6531 section 3.3, less what nobody sees: an address is shown in logs and on terminals.
fn is_utf8_non_ascii(c: char) -> bool {
    !c.is_ascii() && is_harmless(c)
}

/// RFC 5321 section 4.1.2: all ways to quote a local part mean the same. This is the one that quotes least.
fn plainest(local: &str) -> Cow<'_, str> {
    let Some(inner) = local.strip_prefix('"').and_then(|l| l.strip_suffix('"')) else { return Cow::Borrowed(local) };
    let (mut plain, mut quoted, mut chars) = (String::new(), String::from('"'), inner.chars());
    while let Some(c) = chars.next() {
        let c = if c == '\\' { chars.next().unwrap_or(c) } else { c };
        plain.push(c);
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    Cow::Owned(if is_dot_string(&plain) { plain } else { quoted })
}

/// The domain in A-labels (RFC 5891); none if it has none. ASCII stays as it is.
fn to_ascii(domain: &str) -> Option<Cow<'_, str>> {
    if domain.is_ascii() {
        return Some(Cow::Borrowed(domain));
    }
    let (deny, hyphens, length) = (AsciiDenyList::STD3, Hyphens::CheckFirstLast, DnsLength::Verify);
    Uts46::new().to_ascii(domain.as_bytes(), deny, hyphens, length).ok()
}

fn is_quoted_string(local: &str) -> bool {
    let Some(inner) = local.strip_prefix('"').and_then(|l| l.strip_suffix('"')) else { return false };
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(' '..='~') => {}
                _ => return false,
            },
            '"' => return false,
            ' '..='~' => {}
            other if is_utf8_non_ascii(other) => {}
            _ => return false,
        }
    }
    true
}

fn is_domain_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.len() <= DOMAIN_BYTES_MAX && text.split('.').all(is_label)
}

fn is_address_literal(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) else { return false };
    match inner.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => {
            inner.get(5..).is_some_and(|a| a.parse::<std::net::Ipv6Addr>().is_ok())
        }
        _ => inner.parse::<std::net::Ipv4Addr>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_that_exist_in_the_wild_pass_unaltered() {
        for text in [
            "a@example.com",
            "A.B+tag@EXAMPLE.com",
            "\"a b\"@x.test",
            "\"a\\\"b\"@x.test",
            "a..b@docomo.test",
            "u@[192.0.2.1]",
            "u@[IPv6:2001:db8::1]",
            "o'hara@x",
            "x@_dmarc.test",
        ] {
            assert_eq!(ForwardPath::parse(text).unwrap().as_str(), text);
        }
        assert_eq!(ForwardPath::parse("@a.test,@b.test:u@c.test").unwrap().as_str(), "u@c.test");
        assert_eq!(ForwardPath::parse("PostMaster").unwrap().domain(), None);
    }

    #[test]
    fn malformed_addresses_are_told_apart() {
        for (text, error) in [
            ("", PathError::Null),
            ("user", PathError::NoDomain),
            ("@x.test", PathError::LocalPart),
            ("a b@x.test", PathError::LocalPart),
            ("\"a@x.test", PathError::LocalPart),
            ("\"a\"b\"@x.test", PathError::LocalPart),
            ("a@x.test.", PathError::Domain),
            ("a@-x.test", PathError::Domain),
            ("a@x_.test>", PathError::Domain),
            ("a@[1.2.3]", PathError::Domain),
            ("a@", PathError::Domain),
            ("é@x.test", PathError::NotAscii),
            (&format!("{}@x.test", "a".repeat(65)), PathError::TooLong),
        ] {
            assert_eq!(ForwardPath::parse(text), Err(error), "{text}");
        }
        assert_eq!(ReversePath::parse("").unwrap(), ReversePath::null());
    }

    #[test]
    fn other_scripts_pass_only_where_they_were_asked_for_and_never_hide_anything() {
        for (text, ascii) in [
            ("j\u{f6}rg@b\u{fc}cher.test", "xn--bcher-kva.test"),
            ("\u{7528}\u{6237}@\u{4f8b}\u{3048}.test", "xn--r8jz45g.test"),
            ("\"j\u{f6} rg\"@X.test", "x.test"),
            ("a@B\u{dc}CHER.test", "xn--bcher-kva.test"),
        ] {
            assert_eq!(ForwardPath::parse(text), Err(PathError::NotAscii), "{text}");
            let path = ForwardPath::parse_utf8(text).unwrap();
            assert_eq!((path.as_str(), path.domain_ascii().as_deref()), (text, Some(ascii)));
            assert_eq!(ReversePath::parse_utf8(text).unwrap().as_str(), text);
        }
        assert_eq!(DomainName::parse("B\u{fc}cher.test").unwrap().as_str(), "xn--bcher-kva.test");
        for text in [
            "a\u{ad}b@x.test",
            "a\u{ffff}@x.test",
            "a\u{3164}@x.test",
            "a\u{202e}b@x.test",
            "a\u{85}b@x.test",
            "a\u{200b}@x.test",
            "\"\u{2028}\"@x.test",
            "\"\\\u{f6}\"@x.test",
        ] {
            assert_eq!(ForwardPath::parse_utf8(text), Err(PathError::LocalPart), "{text:?}");
        }
        for text in [
            "a@b\u{202e}c.test",
            "a@\u{f6}..test",
            "a@[\u{f6}]",
            "a@xn--\u{f6}.test",
            "a@-\u{f6}.test",
            "a@\u{301}\u{f6}.test",
        ] {
            assert_eq!(ForwardPath::parse_utf8(text), Err(PathError::Domain), "{text:?}");
        }
        assert_eq!(ForwardPath::parse_utf8(&format!("{}@x.test", "\u{f6}".repeat(33))), Err(PathError::TooLong));
    }

    #[test]
    fn quotes_do_not_make_another_mailbox() {
        for (text, canonical) in [
            ("\"Bob\"@x.test", "bob@x.test"),
            ("\"b\\ob\"@x.test", "bob@x.test"),
            ("\"b..ob\"@x.test", "b..ob@x.test"),
            ("\"b ob\"@x.test", "\"b ob\"@x.test"),
            ("\"b\\ \\ob\"@x.test", "\"b ob\"@x.test"),
            ("\"b\\\"\\\\\"@x.test", "\"b\\\"\\\\\"@x.test"),
            ("\"\"@x.test", "\"\"@x.test"),
        ] {
            let path = ForwardPath::parse(text).unwrap();
            assert_eq!((path.canonical().as_str(), path.as_str()), (canonical, text));
            assert_eq!(ForwardPath::parse(canonical).unwrap().canonical(), canonical);
        }
        assert!(ForwardPath::parse("\"Post\\master\"@x.test").unwrap().is_postmaster());
        assert!(!ForwardPath::parse("\"post master\"@x.test").unwrap().is_postmaster());
    }

    #[test]
    fn routing_hidden_in_a_local_part_is_seen() {
        for text in ["a%b.test@x.test", "b.test!a@x.test", "\"a@b.test\"@x.test"] {
            assert!(ForwardPath::parse(text).unwrap().has_sender_specified_route(), "{text}");
        }
        assert!(!ForwardPath::parse("a.b@x.test").unwrap().has_sender_specified_route());
    }

    proptest! {
        #[test]
        fn what_parses_is_safe_to_put_into_a_command(text in "\\PC{0,40}(@\\PC{0,40})?") {
            if let Ok(path) = ForwardPath::parse(&text) {
                prop_assert!(path.as_str().bytes().all(|b| (b' '..=b'~').contains(&b)));
                prop_assert_eq!(ForwardPath::parse(path.as_str()), Ok(path.clone()));
            }
            if let Ok(path) = ForwardPath::parse_utf8(&text) {
                prop_assert!(path.as_str().chars().all(is_harmless));
                prop_assert_eq!(ForwardPath::parse_utf8(path.as_str()), Ok(path.clone()));
                prop_assert!(path.domain_ascii().is_some_and(|domain| domain.is_ascii()) || path.domain().is_none());
            }
        }
    }
}
