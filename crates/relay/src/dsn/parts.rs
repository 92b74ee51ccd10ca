//! The three parts of a notification: words for people, fields for machines (RFC 3464), and the original. What others wrote comes in
//! as text or bytes of any kind and goes out as words within lines; no part of it is believed to be a line.

use super::{HEADER_BYTES_MAX, Kind, LastWord, Notice, Report};
use crate::trace::name;
use restante_envelope::{EnhancedStatus, ForwardPath, OriginalRecipient, Recipient, Reply, text::is_harmless};

/// RFC 5322 section 2.1.1: lines should be no longer than this, without CRLF.
const LINE_BYTES_GOOD: usize = 78;
/// RFC 5322 section 2.1.1: and must be no longer than this, without CRLF.
const LINE_BYTES_MAX: usize = 998;
/// A longer word is cut in two, so that each fits in a line with what stands before it. Links in refusals are shorter, and stay whole.
const WORD_BYTES_MAX: usize = 900;

/// The notification's subject.
pub(super) fn subject(kind: Kind) -> &'static str {
    match kind {
        Kind::Failed => "Your message could not be delivered",
        Kind::Expired => "Your message could not be delivered in time",
        Kind::Delayed { .. } => "Your message is delayed, and is still being tried",
        Kind::Relayed => "Your message was handed on",
    }
}

/// The first part.
pub(super) fn for_people(notice: &Notice<'_>, told: &[(&Recipient, &Report<'_>)], whole: bool, utf8: bool) -> String {
    let accepted = notice.accepted_at.to_rfc5322();
    let (what, next) = match notice.kind {
        Kind::Failed => ("It could not be delivered to:", "It will not be tried again.".to_owned()),
        Kind::Expired => (
            "It could not be delivered in the time for which this server tries, to:",
            "It will not be tried again.".to_owned(),
        ),
        Kind::Delayed { until } => {
            let until = until.to_rfc5322();
            let next = format!(
                "You need not send it again: this server goes on trying until {until}. \
                 If it has not been delivered by then, it is given up."
            );
            ("It has not been delivered so far to:", next)
        }
        Kind::Relayed => (
            "It was handed to the next mail server for:",
            "That server does not report deliveries. You will hear nothing more of them from here.".to_owned(),
        ),
    };
    let attached = if whole { "The message is attached." } else { "The header of the message is attached." };
    let mut text = String::new();
    paragraph(&mut text, "", &format!("This is the mail server {}.", name(notice.hostname)));
    text.push_str("\r\n");
    paragraph(&mut text, "", &format!("On {accepted} it took a message from you. {what}"));
    for (recipient, report) in told {
        text.push_str("\r\n");
        wrap(&mut text, "", "", &[&format!("<{}>", shown(recipient.forward_path.as_str(), utf8))]);
        let original = recipient.dsn.original.as_ref().and_then(addressed);
        if let Some(original) = original.filter(|it| !it.eq_ignore_ascii_case(recipient.forward_path.as_str())) {
            wrap(&mut text, "    ", "    ", &["You had written to", &format!("<{}>", shown(&original, utf8))]);
        }
        paragraph(&mut text, "    ", &why(report, utf8));
    }
    text.push_str("\r\n");
    paragraph(&mut text, "", &next);
    paragraph(&mut text, "", attached);
    text
}

/// What the other server said, or what we found.
fn why(report: &Report<'_>, utf8: bool) -> String {
    let server = report.remote.map(|remote| format!("The server {}", name(remote)));
    match (report.last_word, server) {
        (LastWord::Reply(reply), server) => {
            format!("{} said: {}", server.as_deref().unwrap_or("The other server"), said(reply, utf8))
        }
        (LastWord::Own(words), Some(server)) => format!("{server} was tried: {}", plain(words, utf8)),
        (LastWord::Own(words), None) => plain(words, utf8),
        (LastWord::None, Some(server)) => format!("{server} was tried."),
        (LastWord::None, None) => String::new(),
    }
}

/// The second part: message/delivery-status (RFC 3464 section 2.1), or with `utf8` its sister of RFC 6533 section 4.
pub(super) fn for_machines(notice: &Notice<'_>, told: &[(&Recipient, &Report<'_>)], utf8: bool) -> String {
    let mut fields = String::new();
    if let Some(envid) = &notice.envelope.dsn.envid {
        // Not folded: it may consist of spaces, and is 100 octets at most.
        fields.push_str(&format!("Original-Envelope-Id: {}\r\n", plain(&decoded(envid.as_str()), false)));
    }
    field(&mut fields, "Reporting-MTA", &["dns;", &name(notice.hostname)]);
    field(&mut fields, "Arrival-Date", &[&notice.accepted_at.to_rfc5322()]);
    for (recipient, report) in told {
        fields.push_str("\r\n");
        if let Some((kind, address)) = recipient.dsn.original.as_ref().and_then(|original| typed(original, utf8)) {
            field(&mut fields, "Original-Recipient", &[&format!("{kind};"), &address]);
        }
        let (kind, address) = final_recipient(&recipient.forward_path, utf8);
        field(&mut fields, "Final-Recipient", &[&format!("{kind};"), &address]);
        field(&mut fields, "Action", &[notice.kind.action()]);
        field(&mut fields, "Status", &[&status(notice.kind, report.last_word).to_string()]);
        if let Some(remote) = report.remote {
            field(&mut fields, "Remote-MTA", &["dns;", &name(remote)]);
        }
        // Registered are `smtp` and few others; RFC 3464 section 2.1.2 keeps `X-` for the rest.
        let diagnosis = match report.last_word {
            LastWord::Reply(reply) => Some(("smtp;", said(reply, utf8))),
            LastWord::Own(text) => Some(("X-Restante;", plain(text, utf8))),
            LastWord::None => None,
        };
        if let Some((kind, text)) = &diagnosis {
            let words: Vec<&str> = std::iter::once(*kind).chain(words(text)).collect();
            field(&mut fields, "Diagnostic-Code", &words);
        }
        if let Some(at) = report.last_attempt {
            field(&mut fields, "Last-Attempt-Date", &[&at.to_rfc5322()]);
        }
        if let Kind::Delayed { until } = notice.kind {
            field(&mut fields, "Will-Retry-Until", &[&until.to_rfc5322()]);
        }
    }
    fields
}

/// RFC 3463. The other server's own code where its class agrees with what the report says, as a peer may say `550 2.1.5`.
pub(super) fn status(kind: Kind, last_word: LastWord<'_>) -> EnhancedStatus {
    let LastWord::Reply(reply) = last_word else { return own_status(kind) };
    let class = u8::try_from(reply.code() / 100).unwrap_or(5);
    let agrees = |code: &EnhancedStatus| code.class == class;
    let enhanced = reply.enhanced().filter(agrees);
    match (kind, class) {
        // 4 too: an operator may give up what was refused for now, and RFC 3463 section 2 has that in a failure report.
        (Kind::Failed, 4 | 5) => enhanced.unwrap_or(EnhancedStatus::new(class, 0, 0)),
        // Without a code of its own 4.4.7 says more than 4.0.0.
        (Kind::Expired, 4 | 5) => enhanced.unwrap_or(own_status(kind)),
        // A refusal for good that is not believed yet is a delay, whatever it was called.
        (Kind::Delayed { .. }, 4 | 5) => enhanced.map_or(own_status(kind), |code| EnhancedStatus { class: 4, ..code }),
        (Kind::Relayed, 2) => enhanced.unwrap_or(own_status(kind)),
        _ => own_status(kind),
    }
}

fn own_status(kind: Kind) -> EnhancedStatus {
    match kind {
        Kind::Failed => EnhancedStatus::new(5, 0, 0),
        Kind::Expired => EnhancedStatus::new(4, 4, 7),
        Kind::Delayed { .. } => EnhancedStatus::new(4, 0, 0),
        Kind::Relayed => EnhancedStatus::new(2, 0, 0),
    }
}

/// The third part.
pub(super) struct Original {
    pub(super) content_type: &'static str,
    pub(super) bytes: Vec<u8>,
    pub(super) is_whole: bool,
}

impl Original {
    /// All of it, as it is; [`is_in_lines`].
    pub(super) fn whole(content: &[u8], smtputf8: bool) -> Self {
        let header = content.split(|b| *b == b'\n').take_while(|line| !matches!(*line, b"\r" | b"")).flatten();
        // RFC 6533 section 5: message/global where the header is of RFC 6532.
        let is_global = smtputf8 && header.into_iter().any(|b| !b.is_ascii());
        let content_type = if is_global { "message/global" } else { "message/rfc822" };
        Self { content_type, bytes: content.to_vec(), is_whole: true }
    }

    /// The header at the start of `head`, in lines that a message may have.
    pub(super) fn header(head: &[u8], smtputf8: bool) -> Self {
        let mut bytes = Vec::with_capacity(head.len());
        let mut rest = head;
        while !rest.is_empty() {
            let end = rest.iter().position(|b| *b == b'\n');
            if end.is_none() && head.len() >= HEADER_BYTES_MAX {
                // Cut by our limit: half a line tells nothing.
                break;
            }
            let (line, behind) = rest.split_at(end.unwrap_or(rest.len()));
            rest = behind.get(1..).unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                break;
            }
            let safe = |b: &u8| if b.is_ascii_control() && *b != b'\t' { b'?' } else { *b };
            bytes.extend(line.iter().take(LINE_BYTES_MAX).map(safe));
            bytes.extend_from_slice(b"\r\n");
        }
        let is_global = smtputf8 && !bytes.is_ascii() && std::str::from_utf8(&bytes).is_ok();
        let content_type = if is_global { "message/global-headers" } else { "text/rfc822-headers" };
        Self { content_type, bytes, is_whole: false }
    }
}

/// Whether it can stand in a message as one: in lines, and with a header that ends. Without an end, readers were seen to look for it
/// behind the boundary.
pub(super) fn is_message(content: &[u8]) -> bool {
    let ends = content.starts_with(b"\r\n") || content.windows(4).any(|bytes| bytes == b"\r\n\r\n");
    ends && is_in_lines(content)
}

/// Whether it consists of lines of a message (RFC 5321 section 2.3.8): CR and LF together alone, none too long, no NUL.
pub(super) fn is_in_lines(content: &[u8]) -> bool {
    let mut lines = content.split(|b| *b == b'\n').peekable();
    while let Some(line) = lines.next() {
        let text = line.strip_suffix(b"\r");
        // Behind the last LF there may be a line without an end, but no CR.
        let is_ended = text.is_some() == lines.peek().is_some();
        let text = text.unwrap_or(line);
        if !is_ended || text.len() > LINE_BYTES_MAX || text.iter().any(|b| matches!(b, b'\r' | b'\0')) {
            return false;
        }
    }
    true
}

/// Whether the header says that the message is itself a notification of delivery or of reading. Reports of other kinds, such as
/// those of abuse, are written by people and programs that may want to hear of a failure.
pub(super) fn is_report(head: &[u8]) -> bool {
    let header = String::from_utf8_lossy(head).to_ascii_lowercase();
    let mut lines = header.lines().take_while(|line| !line.is_empty());
    let field =
        |line: &str| line.split_once(':').filter(|(name, _)| name.trim_end() == "content-type").map(|f| f.1.to_owned());
    let Some(first) = lines.by_ref().find_map(field) else { return false };
    let value = lines.take_while(|line| line.starts_with([' ', '\t'])).fold(first, |value, line| value + line);
    let is_notification = |kind: &str| value.contains(kind);
    value.trim_start().starts_with("multipart/report")
        && (!is_notification("report-type")
            || is_notification("delivery-status")
            || is_notification("disposition-notification"))
}

/// A reply in one line.
fn said(reply: &Reply, utf8: bool) -> String {
    let enhanced = reply.enhanced().map(|code| format!("{code} ")).unwrap_or_default();
    plain(&format!("{} {enhanced}{}", reply.code(), reply.text()), utf8)
}

/// Words that may stand in a line: what is no visible character becomes a space or `?`, as does what is not ASCII without `utf8`.
fn plain(text: &str, utf8: bool) -> String {
    text.chars()
        .map(|c| match c {
            '\t' | '\r' | '\n' => ' ',
            ' '..='~' => c,
            _ if utf8 && !c.is_ascii() && is_harmless(c) => c,
            _ => '?',
        })
        .collect()
}

/// An address for people.
fn shown(address: &str, utf8: bool) -> String {
    match utf8 {
        true => plain(address, true),
        false => escaped(address, |c| (' '..='~').contains(&c)),
    }
}

/// What is not kept is written as RFC 6533 section 3 does.
fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut escaped, c| {
        if is_kept(c) {
            escaped.push(c);
        } else {
            escaped.push_str(&format!("\\x{{{:02X}}}", u32::from(c)));
        }
        escaped
    })
}

/// To whom the sender had written, if that is a mailbox.
fn addressed(original: &OriginalRecipient) -> Option<String> {
    let (kind, address) = original.as_str().split_once(';')?;
    match kind.to_ascii_lowercase().as_str() {
        "rfc822" => Some(decoded(address)),
        "utf-8" => Some(unescaped(address)),
        _ => None,
    }
    .filter(|address| !address.trim().is_empty() && address.len() <= WORD_BYTES_MAX)
    .filter(|address| shown(address, false).len() <= WORD_BYTES_MAX)
}

/// ORCPT as Original-Recipient has it: the type as it came, the address decoded (RFC 3461 section 6.3).
fn typed(original: &OriginalRecipient, utf8: bool) -> Option<(String, String)> {
    let (kind, address) = original.as_str().split_once(';')?;
    let is_utf8 = kind.eq_ignore_ascii_case("utf-8");
    let address = if is_utf8 { unescaped(address) } else { decoded(address) };
    if is_utf8 || kind.eq_ignore_ascii_case("rfc822") {
        typed_address(kind, &address, utf8)
    } else {
        let address = plain(&address, utf8).trim().to_owned();
        (!address.is_empty()).then(|| (kind.to_owned(), address))
    }
}

/// As the envelope has it. Where that has too much to escape for a line, its domain is in A-labels, which have nothing.
fn final_recipient(path: &ForwardPath, utf8: bool) -> (String, String) {
    typed_address("rfc822", path.as_str(), utf8)
        .or_else(|| typed_address("rfc822", &format!("{}@{}", path.local_part(), path.domain_ascii()?), utf8))
        .unwrap_or_else(|| ("rfc822".to_owned(), plain(path.as_str(), false)))
}

/// A mailbox of type `kind`, or `utf-8` where it is not ASCII (RFC 6533 section 3): as it is with `utf8`, otherwise escaped. None if
/// nothing is left, or if it is longer than any mailbox and would not fit in a line.
fn typed_address(kind: &str, address: &str, utf8: bool) -> Option<(String, String)> {
    let is_plain = address.is_ascii() && !kind.eq_ignore_ascii_case("utf-8");
    let address = match (is_plain, utf8) {
        (true, _) | (false, true) => plain(address, utf8).trim().to_owned(),
        (false, false) => escaped(address, |c| c.is_ascii_graphic() && !matches!(c, '\\' | '+' | '=')),
    };
    let kind = if is_plain { kind } else { "utf-8" };
    (1..=WORD_BYTES_MAX).contains(&address.len()).then(|| (kind.to_owned(), address))
}

/// Text from xtext (RFC 3461 section 4); the envelope checked it.
fn decoded(xtext: &str) -> String {
    let mut pieces = xtext.split('+');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let (hex, rest) = piece.split_at_checked(2).unwrap_or((piece, ""));
        bytes.push(u8::from_str_radix(hex, 16).unwrap_or(b'?'));
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Text from an address with `\x{HEX}` in it (RFC 6533 section 3); the envelope checked it.
fn unescaped(address: &str) -> String {
    let mut pieces = address.split("\\x{");
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (hex, rest) = piece.split_once('}').unwrap_or((piece, ""));
        text.push(u32::from_str_radix(hex, 16).ok().and_then(char::from_u32).unwrap_or('?'));
        text.push_str(rest);
    }
    text
}

/// One field, folded between `words`. A word may have spaces inside; it is not folded there.
fn field(fields: &mut String, name: &str, words: &[&str]) {
    wrap(fields, &format!("{name}: "), " ", words);
}

/// One paragraph of free text, indented; none if there are no words.
fn paragraph(text: &mut String, indent: &str, sentence: &str) {
    let words: Vec<&str> = words(sentence).collect();
    if !words.is_empty() {
        wrap(text, indent, indent, &words);
    }
}

/// Words, none too long for a line.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(' ').filter(|word| !word.is_empty()).flat_map(|mut word| {
        std::iter::from_fn(move || {
            let (piece, rest) = word.split_at_checked(word.floor_char_boundary(WORD_BYTES_MAX))?;
            word = rest;
            (!piece.is_empty()).then_some(piece)
        })
    })
}

/// Appends `first`, then `words` with spaces between, and CRLF. Lines after the first begin with `indent`.
fn wrap(text: &mut String, first: &str, indent: &str, words: &[&str]) {
    text.push_str(first);
    let mut column = first.len();
    for (nth, word) in words.iter().enumerate() {
        if nth > 0 && column + 1 + word.len() > LINE_BYTES_GOOD {
            text.push_str("\r\n");
            text.push_str(indent);
            column = indent.len();
        } else if nth > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += word.len();
    }
    text.push_str("\r\n");
}
