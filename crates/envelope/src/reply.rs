//! SMTP replies (RFC 5321 section 4.2) with their enhanced status codes (RFC 3463).

use std::fmt;

/// An enhanced status code, `class.subject.detail` (RFC 3463).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EnhancedStatus {
    /// 2 success, 4 persistent transient failure, 5 permanent failure.
    pub class: u8,
    /// What the code is about: 1 addressing, 2 mailbox, 3 system, 4 network, 5 protocol, 6 content, 7 policy.
    pub subject: u16,
    /// The detail within the subject.
    pub detail: u16,
}

impl EnhancedStatus {
    /// The code `class.subject.detail`.
    pub const fn new(class: u8, subject: u16, detail: u16) -> Self {
        Self { class, subject, detail }
    }

    /// Splits a reply text that starts with an enhanced code into code and rest.
    pub fn split(text: &str) -> (Option<Self>, &str) {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        match Self::parse(word) {
            Some(code) => (Some(code), rest),
            None => (None, text),
        }
    }

    fn parse(word: &str) -> Option<Self> {
        let mut parts = word.split('.');
        let class = parts.next().filter(|c| matches!(*c, "2" | "4" | "5"))?.parse().ok()?;
        let mut number = || {
            parts.next().filter(|d| (1..=3).contains(&d.len()) && d.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
        };
        let (subject, detail) = (number()?, number()?);
        parts.next().is_none().then_some(Self { class, subject, detail })
    }
}

impl fmt::Display for EnhancedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// What the first digit of a reply says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyClass {
    /// 2yz: done.
    Positive,
    /// 3yz: go on.
    Intermediate,
    /// 4yz: not now.
    Transient,
    /// 5yz: never.
    Permanent,
}

/// A reply as received from, or to be sent to, an SMTP peer.
///
/// The text is one line per element of a multi-line reply, joined with `\n`; it never holds other control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    code: u16,
    enhanced: Option<EnhancedStatus>,
    text: String,
}

/// Longest text kept of a reply, in bytes. RFC 5321 allows 512 a line; a multi-line refusal may explain itself at
/// some length, and more than this helps nobody and would fill the journal.
const TEXT_BYTES_MAX: usize = 2_048;

impl Reply {
    /// A reply of code 200 to 599. Control characters but `\n` become `?`, and an over-long text is cut.
    /// Another code is taken as 421: such a peer cannot be talked to.
    pub fn new(code: u16, enhanced: Option<EnhancedStatus>, text: &str) -> Self {
        let code = if (200..600).contains(&code) { code } else { 421 };
        let mut end = text.len().min(TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = text.get(..end).unwrap_or_default();
        let is_plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n'));
        let text = match is_plain {
            true => text.to_owned(),
            false => text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect(),
        };
        Self { code, enhanced, text }
    }

    /// The three-digit code.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The enhanced status code, where the peer gave one.
    pub fn enhanced(&self) -> Option<EnhancedStatus> {
        self.enhanced
    }

    /// The text behind the codes.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What the first digit says.
    pub fn class(&self) -> ReplyClass {
        match self.code {
            200..300 => ReplyClass::Positive,
            300..400 => ReplyClass::Intermediate,
            400..500 => ReplyClass::Transient,
            _ => ReplyClass::Permanent,
        }
    }

    /// Appends the reply as it goes over the wire, `CRLF` included; a text of several lines gives several.
    pub fn write_to(&self, wire: &mut Vec<u8>) {
        let mut lines = self.text.split('\n').peekable();
        while let Some(line) = lines.next() {
            write_number(wire, self.code);
            wire.push(if lines.peek().is_some() { b'-' } else { b' ' });
            if let Some(EnhancedStatus { class, subject, detail }) = self.enhanced {
                for (number, behind) in [(u16::from(class), b'.'), (subject, b'.'), (detail, b' ')] {
                    write_number(wire, number);
                    wire.push(behind);
                }
            }
            wire.extend_from_slice(line.as_bytes());
            wire.extend_from_slice(b"\r\n");
        }
    }
}

/// A reply is written for every command of every client: the formatter costs ten times as much.
fn write_number(wire: &mut Vec<u8>, number: u16) {
    if number >= 10 {
        write_number(wire, number / 10);
    }
    wire.push(b'0' + (number % 10) as u8);
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        if !self.text.is_empty() {
            write!(f, " {}", self.text.replace('\n', " "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(reply: &Reply) -> String {
        let mut out = Vec::new();
        reply.write_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn several_lines_carry_the_code_on_each() {
        let reply = Reply::new(550, Some(EnhancedStatus::new(5, 1, 1)), "no such user\nask postmaster");
        assert_eq!(wire(&reply), "550-5.1.1 no such user\r\n550 5.1.1 ask postmaster\r\n");
        assert_eq!(reply.to_string(), "550 5.1.1 no such user ask postmaster");
    }

    #[test]
    fn a_remote_text_cannot_smuggle_control_characters() {
        let reply = Reply::new(550, None, "bad\r\x1b[2Jthing");
        assert_eq!(reply.text(), "bad??[2Jthing");
        assert_eq!(Reply::new(42, None, "x").code(), 421);
        assert_eq!(Reply::new(250, None, &"é".repeat(5_000)).text().len(), TEXT_BYTES_MAX);
    }

    #[test]
    fn an_enhanced_code_is_told_from_ordinary_words() {
        assert_eq!(EnhancedStatus::split("2.0.0 Ok: queued"), (Some(EnhancedStatus::new(2, 0, 0)), "Ok: queued"));
        for text in ["Ok", "1.0.0 x", "2.0 x", "2.0.0.1 x", "2.0000.1 x", "5.x.1 y", ""] {
            assert_eq!(EnhancedStatus::split(text), (None, text));
        }
    }
}
