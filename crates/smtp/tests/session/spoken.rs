//! How the model reads a line: by splitting and comparing, one command after the other. Judges syntax alone.

use restante_envelope::{BodyType, DomainName, EnvelopeId, Notify, OriginalRecipient, Ret};

/// A line as it is understood.
pub(crate) enum Parsed {
    Asked(Asked),
    /// Refused, and the session goes on.
    Malformed(&'static str),
    /// Octets in an address that are no text.
    NotText,
    /// Refused, and what follows cannot be told from commands.
    Fatal(&'static str),
}

pub(crate) enum Asked {
    Hello { name: String, is_esmtp: bool },
    Mail { path: String, size: u64, body: BodyType, smtputf8: bool, ret: Option<Ret>, envid: Option<EnvelopeId> },
    Rcpt { path: String, notify: Option<Notify>, orcpt: Option<OriginalRecipient> },
    Data,
    Bdat { bytes: u64, is_last: bool },
    Rset,
    Noop,
    Vrfy,
    Help,
    Quit,
    StartTls,
    Etrn(String),
    Xclient(String),
}

const LINE_BYTES: usize = 2_048;
const SYNTAX: Parsed = Parsed::Malformed("501 5.5.4");

fn begins(line: &[u8], with: &str) -> bool {
    line.len() >= with.len() && line[..with.len()].eq_ignore_ascii_case(with.as_bytes())
}

/// `line` ends with its LF.
pub(crate) fn read(line: &[u8]) -> Parsed {
    if line.len() > LINE_BYTES {
        return if begins(line, "BDAT") { Parsed::Fatal("500 5.5.2") } else { Parsed::Malformed("500 5.5.2") };
    }
    let Some(text) = line.strip_suffix(b"\r\n").filter(|text| !text.contains(&b'\r')) else {
        return Parsed::Fatal("500 5.5.2");
    };
    match command(text) {
        // There is a size that nobody knows.
        Parsed::Malformed(_) | Parsed::NotText if begins(text, "BDAT") => Parsed::Fatal("501 5.5.4"),
        parsed => parsed,
    }
}

fn command(line: &[u8]) -> Parsed {
    let has_path = begins(line, "MAIL ") || begins(line, "RCPT ");
    let text = match std::str::from_utf8(line) {
        _ if line.iter().any(|b| *b < 32 || *b == 127) => return Parsed::Malformed("500 5.5.2"),
        Err(_) if has_path => return Parsed::NotText,
        Ok(text) if text.is_ascii() || has_path || begins(line, "VRFY ") => text.trim_end_matches(' '),
        _ => return Parsed::Malformed("500 5.5.2"),
    };
    let verb = text.split(' ').next().unwrap_or_default().to_ascii_uppercase();
    let argument = text[verb.len()..].trim_matches(' ');
    let alone = |asked| if argument.is_empty() { Parsed::Asked(asked) } else { SYNTAX };
    match verb.as_str() {
        "EHLO" | "HELO" if is_name(argument) => {
            Parsed::Asked(Asked::Hello { name: argument.to_owned(), is_esmtp: verb == "EHLO" })
        }
        "EHLO" | "HELO" => SYNTAX,
        "MAIL" => mail(argument),
        "RCPT" => rcpt(argument),
        "DATA" => alone(Asked::Data),
        "RSET" => alone(Asked::Rset),
        "QUIT" => alone(Asked::Quit),
        "STARTTLS" => alone(Asked::StartTls),
        "NOOP" => Parsed::Asked(Asked::Noop),
        "HELP" => Parsed::Asked(Asked::Help),
        "VRFY" => {
            if argument.is_empty() {
                SYNTAX
            } else {
                Parsed::Asked(Asked::Vrfy)
            }
        }
        "ETRN" if argument.is_empty() || argument.contains(' ') => SYNTAX,
        "ETRN" => Parsed::Asked(Asked::Etrn(argument.to_owned())),
        "XCLIENT" => Parsed::Asked(Asked::Xclient(argument.to_owned())),
        "BDAT" => bdat(argument),
        "EXPN" | "AUTH" | "ATRN" | "TURN" | "SEND" | "SOML" | "SAML" | "BURL" => Parsed::Malformed("502 5.5.1"),
        "GET" | "POST" | "PUT" | "HEAD" | "CONNECT" | "OPTIONS" | "DELETE" | "PATCH" | "TRACE" | "PRI" => {
            Parsed::Fatal("554 5.5.1")
        }
        _ => Parsed::Malformed("500 5.5.1"),
    }
}

/// No spaces, no parentheses: it stands in our Received header.
fn is_name(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|b| (33..127).contains(&b) && b != b'(' && b != b')')
}

fn words(text: &str) -> Vec<&str> {
    text.split(' ').filter(|word| !word.is_empty()).collect()
}

/// A keyword in upper case, and its value.
type Parameter<'l> = (String, Option<&'l str>);

/// `FROM:<path> word word`
fn path<'l>(argument: &'l str, keyword: &str) -> Option<(&'l str, Vec<Parameter<'l>>)> {
    if !begins(argument.as_bytes(), keyword) {
        return None;
    }
    let rest = argument[keyword.len()..].trim_start_matches(' ').strip_prefix('<')?;
    let (mut is_quoted, mut skip) = (false, false);
    for (at, c) in rest.char_indices() {
        match c {
            _ if skip => skip = false,
            '\\' if is_quoted => skip = true,
            '"' => is_quoted = !is_quoted,
            '>' if !is_quoted => {
                let after = &rest[at + 1..];
                let word = |word: &'l str| match word.split_once('=') {
                    Some((keyword, value)) => (keyword.to_ascii_uppercase(), Some(value)),
                    None => (word.to_ascii_uppercase(), None),
                };
                let is_apart = after.is_empty() || after.starts_with(' ');
                return is_apart.then(|| (&rest[..at], words(after).into_iter().map(word).collect()));
            }
            _ => {}
        }
    }
    None
}

fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.bytes().fold(0_u64, |n, b| n.saturating_mul(10).saturating_add(u64::from(b - b'0'))))
}

fn mail(argument: &str) -> Parsed {
    let Some((path, parameters)) = path(argument, "FROM:") else { return SYNTAX };
    let (mut size, mut body, mut smtputf8, mut ret, mut envid) = (0, BodyType::SevenBit, false, None, None);
    for (keyword, value) in parameters {
        let text = value.unwrap_or_default();
        let is_fine = match (keyword.as_str(), value) {
            ("SIZE", _) => number(text).map(|n| size = n).is_some(),
            ("BODY", _) if text.eq_ignore_ascii_case("7BIT") => {
                body = BodyType::SevenBit;
                true
            }
            ("BODY", _) if text.eq_ignore_ascii_case("8BITMIME") => {
                body = BodyType::EightBitMime;
                true
            }
            ("BODY", _) if text.is_empty() => false,
            ("SMTPUTF8", None) => {
                smtputf8 = true;
                true
            }
            ("SMTPUTF8", Some(_)) => false,
            ("RET", _) => Ret::parse(text).is_ok_and(|given| ret.replace(given).is_none()),
            ("ENVID", _) => EnvelopeId::parse(text).is_ok_and(|given| envid.replace(given).is_none()),
            _ => return Parsed::Malformed("555 5.5.4"),
        };
        if !is_fine {
            return SYNTAX;
        }
    }
    Parsed::Asked(Asked::Mail { path: path.to_owned(), size, body, smtputf8, ret, envid })
}

fn rcpt(argument: &str) -> Parsed {
    let Some((path, parameters)) = path(argument, "TO:") else { return SYNTAX };
    let (mut notify, mut orcpt) = (None, None);
    for (keyword, value) in parameters {
        let text = value.unwrap_or_default();
        let is_fine = match keyword.as_str() {
            "NOTIFY" => Notify::parse(text).is_ok_and(|given| notify.replace(given).is_none()),
            "ORCPT" => OriginalRecipient::parse(text).is_ok_and(|given| orcpt.replace(given).is_none()),
            _ => return Parsed::Malformed("555 5.5.4"),
        };
        if !is_fine {
            return SYNTAX;
        }
    }
    Parsed::Asked(Asked::Rcpt { path: path.to_owned(), notify, orcpt })
}

fn bdat(argument: &str) -> Parsed {
    let words = words(argument);
    let is_last = match words[..] {
        [_] => false,
        [_, last] if last.eq_ignore_ascii_case("LAST") => true,
        _ => return SYNTAX,
    };
    number(words[0]).map_or(SYNTAX, |bytes| Parsed::Asked(Asked::Bdat { bytes, is_last }))
}

/// What a proxy says; of each attribute nothing, that it is not known, or what it is.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) addr: Option<Option<String>>,
    pub(crate) port: Option<Option<u16>>,
    pub(crate) helo: Option<String>,
    pub(crate) is_esmtp: bool,
}

pub(crate) fn xclient(argument: &str) -> Option<Told> {
    let (mut told, mut seen) = (Told::default(), Vec::new());
    for word in words(argument) {
        let (keyword, xtext) = word.split_once('=')?;
        let keyword = keyword.to_ascii_uppercase();
        let value = decoded(xtext)?;
        if value.is_empty() || value.len() > 255 || seen.contains(&keyword) {
            return None;
        }
        let known = !["[UNAVAILABLE]", "[TEMPUNAVAIL]"].contains(&value.to_ascii_uppercase().as_str());
        match keyword.as_str() {
            "NAME" if known && DomainName::parse(&value).is_err() => return None,
            "NAME" => {}
            "ADDR" => told.addr = Some(if known { Some(address(&value)?) } else { None }),
            "PORT" if known => told.port = Some(Some(u16::try_from(number(&value)?).ok()?)),
            "PORT" => told.port = Some(None),
            "PROTO" if known && value.eq_ignore_ascii_case("ESMTP") => told.is_esmtp = true,
            "PROTO" if known && !value.eq_ignore_ascii_case("SMTP") => return None,
            "PROTO" => {}
            "HELO" if known && is_name(&value) => told.helo = Some(value),
            "HELO" if known => return None,
            "HELO" => {}
            _ => return None,
        }
        seen.push(keyword);
    }
    (!seen.is_empty()).then_some(told)
}

fn address(text: &str) -> Option<String> {
    if begins(text.as_bytes(), "IPV6:") {
        let address: std::net::Ipv6Addr = text[5..].parse().ok()?;
        return Some(address.to_ipv4_mapped().map_or(address.to_string(), |v4| v4.to_string()));
    }
    text.parse::<std::net::Ipv4Addr>().ok().map(|v4| v4.to_string())
}

/// Out of xtext: `+` and two capital hex digits; printable, no `=`.
fn decoded(xtext: &str) -> Option<String> {
    let mut parts = xtext.split('+');
    let mut text = parts.next()?.to_owned();
    for part in parts {
        let digits = part.get(..2).filter(|digits| !digits.bytes().any(|b| b.is_ascii_lowercase() || b == b'+'))?;
        text.push(char::from(u8::from_str_radix(digits, 16).ok()?));
        text += &part[2..];
    }
    let is_fine = !xtext.contains('=') && text.chars().all(|c| c.is_ascii_graphic());
    is_fine.then_some(text)
}
