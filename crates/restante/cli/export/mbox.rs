//! One file with many messages, as mboxrd: a `From ` line in front of each, one more `>` in front of every line that looks like
//! one, an empty line behind. Lines end with LF. Undone, that gives every byte back; recipients have no place in it.

use restante_envelope::{ReversePath, Timestamp};

/// Of a line's start, so that it is known whether it must be quoted: longer runs of `>` there are nobody's quotes.
const START_BYTES_MAX: usize = 4_096;

/// A message on its way into an mbox.
#[derive(Debug, Default)]
pub(super) struct Mboxrd {
    /// The last line, as far as it has come.
    line: Vec<u8>,
    /// Its start is written already.
    is_begun: bool,
}

/// The line in front of a message.
pub(super) fn from_line(reverse_path: &ReversePath, at: Timestamp) -> String {
    // A quoted local part may have spaces, of which the line's readers know nothing.
    let sender = reverse_path.as_str().replace(' ', "_");
    let sender = if sender.is_empty() { "MAILER-DAEMON" } else { &sender };
    format!("From {sender} {}\n", at.to_asctime())
}

impl Mboxrd {
    /// The next piece of the content.
    pub(super) fn piece(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 64);
        let mut rest = bytes;
        while let Some((line, behind)) = memchr::memchr(b'\n', rest).and_then(|at| rest.split_at_checked(at + 1)) {
            self.line.extend_from_slice(line);
            self.write(&mut out);
            self.is_begun = false;
            rest = behind;
        }
        self.line.extend_from_slice(rest);
        if self.line.len() > START_BYTES_MAX {
            // The last byte may be the CR of its end.
            let last = self.line.pop();
            self.write(&mut out);
            self.is_begun = true;
            self.line.extend(last);
        }
        out
    }

    /// What is left, and the empty line.
    pub(super) fn end(mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.is_begun || !self.line.is_empty() {
            self.line.push(b'\n');
            self.write(&mut out);
        }
        out.push(b'\n');
        out
    }

    fn write(&mut self, out: &mut Vec<u8>) {
        let quotes = self.line.iter().take_while(|b| **b == b'>').count();
        if !self.is_begun && self.line.get(quotes..).is_some_and(|line| line.starts_with(b"From ")) {
            out.push(b'>');
        }
        match self.line.strip_suffix(b"\r\n") {
            Some(line) => {
                out.extend_from_slice(line);
                out.push(b'\n');
            }
            None => out.extend_from_slice(&self.line),
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quoted(content: &[u8], piece_bytes: usize) -> Vec<u8> {
        let mut mbox = Mboxrd::default();
        let mut out: Vec<u8> = content.chunks(piece_bytes).flat_map(|piece| mbox.piece(piece)).collect();
        out.extend(mbox.end());
        out
    }

    #[test]
    fn a_line_that_looks_like_the_next_message_is_quoted_and_a_bounce_has_a_sender() {
        let content = b"From a\r\n>From b\r\nFrom\r\n From c\r\nlast";
        assert_eq!(quoted(content, 3), b">From a\n>>From b\nFrom\n From c\nlast\n\n");
        let at = Timestamp::from_unix_ms(1_795_359_200_118);
        assert_eq!(from_line(&ReversePath::null(), at), "From MAILER-DAEMON Sun Nov 22 14:53:20 2026\n");
        let odd = ReversePath::parse("\"a b\"@c.test").unwrap();
        assert_eq!(from_line(&odd, at), "From \"a_b\"@c.test Sun Nov 22 14:53:20 2026\n");
    }

    proptest! {
        #[test]
        fn undone_it_gives_every_byte_back(
            lines in proptest::collection::vec("(>{0,3}From )?[a-z>F ]{0,9}|[>x]{5000}", 0..8), piece_bytes in 1usize..6_000,
        ) {
            let content: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            let out = String::from_utf8(quoted(content.as_bytes(), piece_bytes)).unwrap();
            prop_assert!(!out.starts_with("From ") && !out.contains("\nFrom "));
            let body = out.strip_suffix('\n').unwrap();
            let undo = |line: &str| match line.strip_prefix('>') {
                Some(less) if less.trim_start_matches('>').starts_with("From ") => format!("{less}\r\n"),
                _ => format!("{line}\r\n"),
            };
            prop_assert_eq!(body.lines().map(undo).collect::<String>(), content);
        }
    }
}
