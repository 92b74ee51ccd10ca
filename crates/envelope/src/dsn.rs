//! What a sender asks of delivery status notifications (RFC 3461): checked, and kept as it was written, so that it goes on as
//! it came. Sends none.

use crate::text::is_harmless;
use std::fmt;

/// RFC 3461 section 4.4.
const ENVID_BYTES_MAX: usize = 100;
/// RFC 3461 section 4.2.
const ORCPT_BYTES_MAX: usize = 500;
/// RFC 3463 knows three; this is room for what is yet to be registered.
const ADDRESS_TYPE_BYTES_MAX: usize = 32;

/// A value is none that RFC 3461 allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed value of {0}")]
pub struct DsnError(pub &'static str);

/// RET: how much of the message comes back with a failure (section 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ret {
    /// All of it.
    Full,
    /// Its header alone.
    Headers,
}

impl Ret {
    /// `FULL` or `HDRS`, in any case.
    pub fn parse(value: &str) -> Result<Self, DsnError> {
        match value.to_ascii_uppercase().as_str() {
            "FULL" => Ok(Self::Full),
            "HDRS" => Ok(Self::Headers),
            _ => Err(DsnError("RET")),
        }
    }

    /// As the command has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Headers => "HDRS",
        }
    }
}

/// ENVID: the sender's own name of the message (section 4.4), in xtext as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvelopeId(Box<str>);

impl EnvelopeId {
    /// Checks xtext of up to 100 octets; what it encodes is printable ASCII.
    pub fn parse(value: &str) -> Result<Self, DsnError> {
        let fits = (1..=ENVID_BYTES_MAX).contains(&value.len()) && is_xtext(value);
        if fits { Ok(Self(value.into())) } else { Err(DsnError("ENVID")) }
    }

    /// From what it stands for, as a queue of another server has it.
    pub fn from_text(text: &str) -> Result<Self, DsnError> {
        Self::parse(&encoded(text))
    }

    /// Still in xtext.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// NOTIFY: what the sender wants to hear of a recipient (section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notify {
    /// Nothing, whatever happens.
    Never,
    /// Of these events; at least one.
    On {
        /// It was delivered.
        success: bool,
        /// It will not be.
        failure: bool,
        /// It has not been so far.
        delay: bool,
    },
}

impl Notify {
    /// `NEVER`, or a list of `SUCCESS`, `FAILURE` and `DELAY`, in any case.
    pub fn parse(value: &str) -> Result<Self, DsnError> {
        if value.eq_ignore_ascii_case("NEVER") {
            return Ok(Self::Never);
        }
        let (mut success, mut failure, mut delay) = (false, false, false);
        for event in value.split(',') {
            match event.to_ascii_uppercase().as_str() {
                "SUCCESS" => success = true,
                "FAILURE" => failure = true,
                "DELAY" => delay = true,
                _ => return Err(DsnError("NOTIFY")),
            }
        }
        Ok(Self::On { success, failure, delay })
    }

    /// A number for the journal: 1 never, or the sum of 2 success, 4 failure, 8 delay.
    pub fn bits(self) -> u8 {
        match self {
            Self::Never => 1,
            Self::On { success, failure, delay } => {
                u8::from(success) << 1 | u8::from(failure) << 2 | u8::from(delay) << 3
            }
        }
    }

    /// The other way; none for a number that is none.
    pub fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            1 => Some(Self::Never),
            2..=14 if bits & 1 == 0 => {
                Some(Self::On { success: bits & 2 != 0, failure: bits & 4 != 0, delay: bits & 8 != 0 })
            }
            _ => None,
        }
    }
}

/// As the command has it.
impl fmt::Display for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::On { success, failure, delay } = *self else { return f.write_str("NEVER") };
        let words = [(success, "SUCCESS"), (failure, "FAILURE"), (delay, "DELAY")];
        let words: Vec<&str> = words.into_iter().filter(|(wanted, _)| *wanted).map(|(_, word)| word).collect();
        f.write_str(&words.join(","))
    }
}

/// ORCPT: to whom the sender had addressed it (section 4.2; for `utf-8` RFC 6533 section 3), as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginalRecipient(Box<str>);

impl OriginalRecipient {
    /// Checks `addr-type;address` of up to 500 octets. Not whether it is one that anybody has.
    pub fn parse(value: &str) -> Result<Self, DsnError> {
        let malformed = DsnError("ORCPT");
        let (kind, address) = value.split_once(';').ok_or(malformed)?;
        let is_kind = (1..=ADDRESS_TYPE_BYTES_MAX).contains(&kind.len())
            && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let is_address = match kind.eq_ignore_ascii_case("utf-8") {
            true => is_utf8_xtext(address),
            false => is_xtext_of_utf8(address),
        };
        let fits = value.len() <= ORCPT_BYTES_MAX && is_kind && !address.is_empty() && is_address;
        if fits { Ok(Self(value.into())) } else { Err(malformed) }
    }

    /// From type and address as they are, as a queue of another server has them.
    pub fn from_text(text: &str) -> Result<Self, DsnError> {
        let (kind, address) = text.split_once(';').ok_or(DsnError("ORCPT"))?;
        if !kind.eq_ignore_ascii_case("utf-8") {
            return Self::parse(&format!("{kind};{}", encoded(address)));
        }
        let is_plain = |c: char| c.is_ascii_graphic() && !matches!(c, '\\' | '+' | '=');
        let escaped = address.chars().fold(String::new(), |text, c| match is_plain(c) {
            true => text + c.encode_utf8(&mut [0; 4]),
            // RFC 6533 section 3: so it may be given to any server.
            false => text + &format!("\\x{{{:02X}}}", u32::from(c)),
        });
        Self::parse(&format!("{kind};{escaped}"))
    }

    /// Type and address, still encoded.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is asked for the message as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DsnRequest {
    /// RET, if it was given.
    pub ret: Option<Ret>,
    /// ENVID, if it was given.
    pub envid: Option<EnvelopeId>,
}

/// What is asked for one recipient.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecipientDsn {
    /// NOTIFY, if it was given.
    pub notify: Option<Notify>,
    /// ORCPT, if it was given.
    pub original: Option<OriginalRecipient>,
}

/// `xchar` and `+XX` (RFC 3461 section 4), decoded; none if it is no xtext.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut decoded) = (text.bytes(), Vec::with_capacity(text.len()));
    while let Some(b) = bytes.next() {
        let hex = |b: Option<u8>| match b {
            Some(b @ b'0'..=b'9') => Some(b - b'0'),
            Some(b @ b'A'..=b'F') => Some(b - b'A' + 10),
            _ => None,
        };
        decoded.push(match b {
            b'+' => hex(bytes.next())? << 4 | hex(bytes.next())?,
            b'=' => return None,
            b'!'..=b'~' => b,
            _ => return None,
        });
    }
    Some(decoded)
}

/// Nothing but printable ASCII is encoded in it: what is decoded goes into the header of a notification.
fn is_xtext(text: &str) -> bool {
    decoded(text).is_some_and(|bytes| bytes.iter().all(|b| (b' '..=b'~').contains(b)))
}

/// The same, or UTF-8: Postfix sends `rfc822;j+C3+B6rg@..` of its own accord with mail for a UTF-8 address.
fn is_xtext_of_utf8(text: &str) -> bool {
    let text = decoded(text).and_then(|bytes| String::from_utf8(bytes).ok());
    text.is_some_and(|text| text.chars().all(is_harmless))
}

/// Any text as xtext, for who has it decoded.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut xtext, b| {
        match b {
            b'+' | b'=' => xtext.push_str(if b == b'+' { "+2B" } else { "+3D" }),
            b'!'..=b'~' => xtext.push(char::from(b)),
            _ => xtext.push_str(&format!("+{b:02X}")),
        }
        xtext
    })
}

/// `utf-8-addr-xtext` or `utf-8-addr-unitext`: characters as they are, or as `\x{HEX}`.
fn is_utf8_xtext(text: &str) -> bool {
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
        let shown = match c {
            '\\' => {
                let Some((hex, behind)) = rest.strip_prefix("x{").and_then(|hex| hex.split_once('}')) else {
                    return false;
                };
                rest = behind;
                let is_hex = (2..=6).contains(&hex.len())
                    && hex.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
                match u32::from_str_radix(hex, 16).ok().filter(|_| is_hex).and_then(char::from_u32) {
                    Some(shown) => shown,
                    None => return false,
                }
            }
            '+' | '=' => return false,
            '\0'..=' ' | '\x7f' => return false,
            other => other,
        };
        if !is_harmless(shown) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_would_forge_a_line_of_a_notification_is_refused() {
        for good in ["QQ314159", "a+20b", "+2B+3D", "!~"] {
            assert_eq!(EnvelopeId::parse(good).unwrap().as_str(), good);
        }
        let long = "x".repeat(101);
        for bad in ["", "a b", "a=b", "a+", "a+2", "a+2b", "a+0A", "a+0D", "a+7F", "a+FF", "é", long.as_str()] {
            assert_eq!(EnvelopeId::parse(bad), Err(DsnError("ENVID")), "{bad}");
        }
    }

    #[test]
    fn never_stands_alone() {
        for good in ["NEVER", "SUCCESS", "SUCCESS,FAILURE", "SUCCESS,FAILURE,DELAY", "DELAY"] {
            let notify = Notify::parse(&good.to_lowercase()).unwrap();
            assert_eq!((notify.to_string(), Notify::from_bits(notify.bits())), (good.to_owned(), Some(notify)));
        }
        for bad in ["", "NEVER,FAILURE", "FAILURE,NEVER", "SUCCESS,", ",", "ALWAYS", "SUCCESS FAILURE"] {
            assert_eq!(Notify::parse(bad), Err(DsnError("NOTIFY")), "{bad}");
        }
        assert_eq!(Notify::parse("delay,SUCCESS,delay").unwrap().to_string(), "SUCCESS,DELAY");
        assert!([0, 3, 5, 15, 16, 255].into_iter().all(|bits| Notify::from_bits(bits).is_none()));
        assert_eq!(["full", "HDRS"].map(|ret| Ret::parse(ret).unwrap().as_str()), ["FULL", "HDRS"]);
        assert_eq!(Ret::parse("HEADERS"), Err(DsnError("RET")));
    }

    #[test]
    fn an_original_recipient_is_kept_as_it_came() {
        let long = format!("rfc822;{}", "x".repeat(494));
        for good in [
            "rfc822;Bob@Example.COM",
            "RFC822;a+2Bb@x",
            // As Postfix has it.
            "rfc822;j+C3+B6rg@x.test",
            "x400;/c=us/".replace('=', "+3D").as_str(),
            "utf-8;j\\x{F6}rg@x.test",
            "UTF-8;j\u{f6}rg@x.test",
            "utf-8;a\\x{2B}b@x",
        ] {
            assert_eq!(OriginalRecipient::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "rfc822",
            "rfc822;",
            ";a@b",
            "rfc 822;a@b",
            "rfc822;a b",
            "rfc822;j\u{f6}rg@x",
            "rfc822;a+0Ab",
            "rfc822;a+7Fb",
            "rfc822;a+C2+85b",
            "rfc822;a+E2+80+AEb",
            "rfc822;a+C3",
            "utf-8;a\\b",
            "utf-8;\\x{A}",
            "utf-8;\\x{0A}",
            "utf-8;\\x{d6}",
            "utf-8;\\x{110000}",
            "utf-8;a+b",
            "utf-8;\u{202e}a",
            "utf-8;\\x{202E}",
            "utf-8;\u{85}",
            long.as_str(),
        ] {
            assert_eq!(OriginalRecipient::parse(bad), Err(DsnError("ORCPT")), "{bad}");
        }
    }

    #[test]
    fn what_a_queue_has_in_clear_is_encoded_for_a_command() {
        assert_eq!(EnvelopeId::from_text("q+1 =z").unwrap().as_str(), "q+2B1+20+3Dz");
        for (clear, xtext) in [
            ("rfc822;\"a b\"@x.test", "rfc822;\"a+20b\"@x.test"),
            ("rfc822;j\u{f6}rg@x.test", "rfc822;j+C3+B6rg@x.test"),
            ("utf-8;a+j\u{f6}\\rg@x.test", "utf-8;a\\x{2B}j\\x{F6}\\x{5C}rg@x.test"),
        ] {
            assert_eq!(OriginalRecipient::from_text(clear).unwrap().as_str(), xtext);
        }
        for bad in ["", "a@b", "rfc822;a\nb", "rfc822;a\u{202e}", "utf-8;a\u{85}"] {
            assert!(OriginalRecipient::from_text(bad).is_err() && EnvelopeId::from_text("a\rb").is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_is_one_word_of_a_command(text in "\\PC{0,30}|[a-z0-9;+=\\\\{}x-]{0,30}|utf-8;\\PC{0,20}") {
            let kept = [
                EnvelopeId::parse(&text).ok().map(|id| id.as_str().to_owned()),
                OriginalRecipient::parse(&text).ok().map(|to| to.as_str().to_owned()),
                Notify::parse(&text).ok().map(|notify| notify.to_string()),
            ];
            for word in kept.into_iter().flatten() {
                prop_assert!(!word.is_empty() && !word.contains(|c: char| c == ' ' || c == '=' || c.is_control()), "{:?}", word);
            }
        }
    }
}
