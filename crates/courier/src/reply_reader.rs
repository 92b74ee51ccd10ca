//! Cuts what a server sends into replies (RFC 5321 section 4.2), verbatim. No I/O, no judgement of the codes.
//!
//! Lenient where nothing can go wrong by it (bytes outside UTF-8, lines that end in a bare LF, no text behind the
//! code); refuses whatever would leave in doubt which reply belongs to which command.

use restante_envelope::{EnhancedStatus, Reply};
use std::mem;

/// RFC 5321 section 4.5.3.1.5 allows 512, refusals that explain themselves exceed it. Bounds our memory.
const LINE_BYTES_MAX: usize = 4_096;
/// No known server comes near; bounds our memory and the time a hostile one can take.
const LINES_MAX: usize = 100;
/// How much of a line that is no reply is shown.
const EXCERPT_CHARS: usize = 80;

/// Why bytes are not a reply. The stream behind is not to be trusted any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the server sent a reply line of more than {LINE_BYTES_MAX} bytes")]
    LineTooLong,
    #[error("the server sent a reply of more than {LINES_MAX} lines")]
    TooManyLines,
    #[error("the server sent one reply with two codes, {0} and {1}")]
    CodesDiffer(u16, u16),
    #[error("the server sent what is not an SMTP reply: {0:?}")]
    NotAReply(String),
}

/// A reply as it came: the lines' text behind code and separator, bytes outside UTF-8 replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VerbatimReply {
    pub(crate) code: u16,
    pub(crate) lines: Vec<String>,
}

impl VerbatimReply {
    /// The reply with its enhanced code taken from the text, where it agrees with the code (RFC 2034 section 4).
    pub(crate) fn to_reply(&self) -> Reply {
        let first = self.lines.first().map_or("", String::as_str);
        let enhanced = EnhancedStatus::split(first).0.filter(|e| u16::from(e.class) == self.code / 100);
        let text_of = |line| match EnhancedStatus::split(line) {
            (Some(code), rest) if Some(code) == enhanced => rest,
            _ => line,
        };
        let text: Vec<&str> = self.lines.iter().map(|line| text_of(line)).collect();
        Reply::new(self.code, enhanced, &text.join("\n"))
    }
}

/// The bytes read and not yet used, and the reply that is growing.
#[derive(Debug, Default)]
pub(crate) struct ReplyReader {
    unread: Vec<u8>,
    partial: Option<VerbatimReply>,
}

impl ReplyReader {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// Whether anything stands behind the last reply taken.
    pub(crate) fn has_more(&self) -> bool {
        !self.unread.is_empty() || self.partial.is_some()
    }

    /// The next complete reply; none until more bytes are fed. Not to be called again after an error.
    pub(crate) fn next_reply(&mut self) -> Result<Option<VerbatimReply>, Malformed> {
        loop {
            let end = self.unread.iter().position(|b| *b == b'\n');
            if end.unwrap_or(self.unread.len()) >= LINE_BYTES_MAX {
                return Err(Malformed::LineTooLong);
            }
            let Some(end) = end else { return Ok(None) };
            let rest = self.unread.split_off(end + 1);
            let line = mem::replace(&mut self.unread, rest);
            if let Some(reply) = self.take_line(without_line_end(&line))? {
                return Ok(Some(reply));
            }
        }
    }

    fn take_line(&mut self, line: &[u8]) -> Result<Option<VerbatimReply>, Malformed> {
        let (code, is_last, text) = split_line(line).ok_or_else(|| Malformed::NotAReply(excerpt(line)))?;
        let mut reply = self.partial.take().unwrap_or(VerbatimReply { code, lines: Vec::new() });
        if reply.code != code {
            return Err(Malformed::CodesDiffer(reply.code, code));
        }
        if reply.lines.len() == LINES_MAX {
            return Err(Malformed::TooManyLines);
        }
        reply.lines.push(String::from_utf8_lossy(text).into_owned());
        if is_last {
            return Ok(Some(reply));
        }
        self.partial = Some(reply);
        Ok(None)
    }
}

fn without_line_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// `250-text`, `250 text` or `250` -> code, whether it is the last line, text.
fn split_line(line: &[u8]) -> Option<(u16, bool, &[u8])> {
    let (code, rest) = line.split_at_checked(3)?;
    let code = match code {
        [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9'] => std::str::from_utf8(code).ok()?.parse().ok()?,
        _ => return None,
    };
    match rest {
        [] => Some((code, true, rest)),
        [b' ', text @ ..] => Some((code, true, text)),
        [b'-', text @ ..] => Some((code, false, text)),
        _ => None,
    }
}

fn excerpt(line: &[u8]) -> String {
    String::from_utf8_lossy(line).chars().take(EXCERPT_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(bytes: &[u8]) -> Result<Vec<VerbatimReply>, Malformed> {
        let mut reader = ReplyReader::default();
        reader.feed(bytes);
        std::iter::from_fn(|| reader.next_reply().transpose()).collect()
    }

    fn reply(bytes: &[u8]) -> Reply {
        all(bytes).unwrap()[0].to_reply()
    }

    #[test]
    fn the_lines_of_a_reply_stay_apart_and_its_enhanced_code_is_not_repeated() {
        let reply = reply(b"550-5.1.1 no such user\r\n550-ask\r\n550 5.1.1 postmaster\r\n");
        assert_eq!(reply.enhanced(), Some(EnhancedStatus::new(5, 1, 1)));
        assert_eq!(reply.text(), "no such user\nask\npostmaster");
    }

    #[test]
    fn a_code_that_contradicts_the_reply_is_only_text() {
        assert_eq!(reply(b"250 5.0.0 is our version\r\n").enhanced(), None);
        assert_eq!(reply(b"250 5.0.0 is our version\r\n").text(), "5.0.0 is our version");
    }

    #[test]
    fn odd_replies_of_real_servers_are_read() {
        assert_eq!(reply(b"250\r\n").text(), "");
        assert_eq!(reply(b"571 go away\n").code(), 571);
        assert_eq!(reply(b"550 caf\xe9\r\n").text(), "caf\u{fffd}");
        assert_eq!(reply(b"250- \r\n250 \r\n").text(), " \n");
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for bytes in [&b"hello\r\n"[..], b"25\r\n", b"2500 x\r\n", b"150 x\r\n", b"600 x\r\n", b"25a x\r\n", b"\r\n"] {
            assert!(matches!(all(bytes), Err(Malformed::NotAReply(_))), "{bytes:?}");
        }
        assert_eq!(all(b"250-a\r\n550 b\r\n"), Err(Malformed::CodesDiffer(250, 550)));
    }

    #[test]
    fn a_server_cannot_make_us_keep_endless_replies() {
        assert_eq!(all(&[b'2'; LINE_BYTES_MAX]), Err(Malformed::LineTooLong));
        assert_eq!(all(&b"250-x\r\n".repeat(LINES_MAX + 1)), Err(Malformed::TooManyLines));
        let longest = [b"250 ".as_slice(), &vec![b'x'; LINE_BYTES_MAX - 6], b"\r\n"].concat();
        assert_eq!(all(&longest).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn the_cut_of_the_stream_changes_nothing(
            bytes in "((250|550)[- ]?[a-z.é]{0,5}(\r\n|\n)?){0,6}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let bytes = bytes.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let (mut reader, mut from, mut got) = (ReplyReader::default(), 0, Ok(Vec::new()));
            'feed: for cut in cuts {
                reader.feed(&bytes[from..cut]);
                from = cut;
                while let Some(next) = reader.next_reply().transpose() {
                    match next {
                        Ok(reply) => got.as_mut().unwrap().push(reply),
                        Err(error) => { got = Err(error); break 'feed; }
                    }
                }
            }
            prop_assert_eq!(got, all(bytes));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = all(&bytes);
        }
    }
}
