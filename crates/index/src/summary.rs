//! What a person knows a message by: its subject, its author, its Message-ID. Reads headers alone, of any bytes.
//!
//! Nothing is decided by it: these are the words of strangers, made harmless and cut.

use mail_parser::{Address, HeaderName, MessageParser};
use restante_envelope::text::is_harmless;

/// How much of a message's content is looked at. Headers are a few KiB; more than this is somebody's joke.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// A line of RFC 5322 has 998 characters at most; listings cut far earlier.
const FIELD_CHARS_MAX: usize = 500;

/// What the headers of a message say of it, decoded, without control characters, each at most 500 characters long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Subject.
    pub subject: Option<String>,
    /// From: `Name <address>`, the first of them if there are more.
    pub from: Option<String>,
    /// Message-ID, without the angle brackets.
    pub message_id: Option<String>,
}

impl Summary {
    /// Of the first bytes of a message's content (RFC 5322); what is behind [`HEAD_BYTES_MAX`] is not looked at.
    pub fn of(content: &[u8]) -> Self {
        Self::of_head(content).unwrap_or_else(|| {
            let head = content.get(..HEAD_BYTES_MAX).unwrap_or(content);
            // The parser wants to see the end of the headers.
            Self::parse(&[head, b"\r\n\r\n"].concat())
        })
    }

    /// The same, if the headers end in `head`: more of the content says no more of them.
    pub fn of_head(head: &[u8]) -> Option<Self> {
        let head = head.get(..HEAD_BYTES_MAX).unwrap_or(head);
        let mut end = 0;
        for line in head.split_inclusive(|byte| *byte == b'\n') {
            end += line.len();
            if matches!(line, b"\r\n" | b"\n") {
                return head.get(..end).map(Self::parse);
            }
        }
        None
    }

    fn parse(headers: &[u8]) -> Self {
        let parser = MessageParser::new()
            .header_text(HeaderName::Subject)
            .header_address(HeaderName::From)
            .header_id(HeaderName::MessageId)
            .default_header_ignore();
        let Some(message) = parser.parse_headers(headers) else { return Self::default() };
        Self {
            subject: message.subject().and_then(clean),
            from: message.from().and_then(author),
            message_id: message.message_id().and_then(clean),
        }
    }
}

fn author(address: &Address<'_>) -> Option<String> {
    let first = address.first()?;
    match (first.name().and_then(clean), first.address().and_then(clean)) {
        (Some(name), Some(address)) => clean(&format!("{name} <{address}>")),
        (name, address) => name.or(address),
    }
}

/// Without what steers a terminal or hides text; none if nothing is left.
fn clean(text: &str) -> Option<String> {
    let visible: String = text.chars().map(|c| if c == '\t' { ' ' } else { c }).filter(|c| is_harmless(*c)).collect();
    let cut: String = visible.trim().chars().take(FIELD_CHARS_MAX).collect();
    (!cut.is_empty()).then_some(cut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn summary(text: &str) -> (Option<String>, Option<String>, Option<String>) {
        let Summary { subject, from, message_id } = Summary::of(text.as_bytes());
        (subject, from, message_id)
    }

    fn some(text: &str) -> Option<String> {
        Some(text.into())
    }

    #[test]
    fn headers_are_decoded_and_unfolded() {
        assert_eq!(
            summary(
                "Received: from x\r\nFrom: =?utf-8?q?Zo=C3=AB?= <zoe@example.net>\r\n\
                 Subject: =?utf-8?b?R3LDvMOfZQ==?=\r\n from afar\r\nMessage-ID: <1@example.net>\r\n\r\nSubject: body\r\n"
            ),
            (some("Grüße from afar"), some("Zoë <zoe@example.net>"), some("1@example.net"))
        );
        assert_eq!(summary("From: a@b.test\n\nFrom: c@d.test"), (None, some("a@b.test"), None));
        assert_eq!(summary("Subject: only headers"), (some("only headers"), None, None));
    }

    #[test]
    fn a_message_without_headers_has_no_summary() {
        for text in ["", "\r\n", "\r\nSubject: body\r\n", "no header at all\r\n", ":\r\n\r\n"] {
            assert_eq!(summary(text), (None, None, None), "{text:?}");
        }
    }

    #[test]
    fn a_subject_cannot_steer_a_terminal() {
        let (subject, ..) = summary("Subject: =?utf-8?b?G1sySuKArmV2aWwHDQo=?= end\r\n\r\n");
        assert_eq!(subject, some("[2Jevil end"));
    }

    #[test]
    fn a_header_that_never_ends_is_cut() {
        let long = format!("Subject: {}", "é".repeat(HEAD_BYTES_MAX));
        assert_eq!(summary(&long).0.map(|subject| subject.chars().count()), Some(FIELD_CHARS_MAX));
        let late = format!("X: {}\r\nSubject: late\r\n\r\n", "y".repeat(HEAD_BYTES_MAX));
        assert_eq!(summary(&late).0, None);
    }

    #[test]
    fn a_head_that_was_cut_is_not_taken_for_the_headers() {
        let text = "X: y\r\nSubject: hello\r\n\r\nbody\r\n";
        let end = text.find("body").unwrap();
        for cut in 0..text.len() {
            let expected = (cut >= end).then(|| Summary::of(text.as_bytes()));
            assert_eq!(Summary::of_head(&text.as_bytes()[..cut]), expected, "{cut}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_say_more_than_it_may(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            field in prop::sample::select(vec!["Subject: ", "From: ", "Message-ID: ", "Subject: =?utf-8?q?", "From: =?x?b?", ""]),
        ) {
            let found = Summary::of(&[field.as_bytes(), &bytes].concat());
            for text in [found.subject, found.from, found.message_id].into_iter().flatten() {
                prop_assert!(!text.is_empty() && text.chars().count() <= FIELD_CHARS_MAX);
                prop_assert!(text.chars().all(is_harmless));
            }
        }
    }
}
