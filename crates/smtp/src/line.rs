//! Cuts the peer's bytes into command lines. Ends a line at CRLF only, keeps no more than one line's worth, and knows
//! nothing of what a line says.

use memchr::memchr;
use std::borrow::Cow;

/// RFC 5321 section 4.5.3.1.4 allows 512 octets, CRLF included, and section 4.1.1.11 more for each extension's
/// parameters. This is room for all that exist.
const LINE_BYTES_MAX: usize = 2_048;
/// How much of an over-long line is skipped before the peer is taken for no SMTP client: no honest mistake is longer.
const SKIPPED_BYTES_MAX: usize = 65_536;

/// What is wrong with a line as a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LineError {
    #[error("line too long")]
    TooLong {
        /// What it begins with, in upper case: what follows a BDAT or a DATA, however malformed, is no command.
        verb: [u8; 4],
    },
    #[error("line far too long")]
    Endless,
    #[error("bare <LF> received; lines must end in <CR><LF>")]
    BareLf,
    #[error("bare <CR> received; lines must end in <CR><LF>")]
    BareCr,
}

/// A line without its CRLF, borrowed from the input where it came in one piece.
pub(crate) type Line<'i> = Result<Cow<'i, [u8]>, LineError>;

/// The beginning of a line whose end has not come yet.
#[derive(Debug, Default)]
pub(crate) struct LineReader {
    partial: Vec<u8>,
    /// Of a line that is over-long already: how it begins, and how many of its bytes are dropped.
    skipped: Option<([u8; 4], usize)>,
}

impl LineReader {
    /// Consumes input up to and including the first line end: how many bytes, and the line if it is complete.
    pub(crate) fn read<'i>(&mut self, input: &'i [u8]) -> (usize, Option<Line<'i>>) {
        let Some(lf) = memchr(b'\n', input) else { return (input.len(), self.keep(input)) };
        let (head, consumed) = (input.get(..lf).unwrap_or_default(), lf + 1);
        if let Some((verb, _)) = self.skipped.take() {
            return (consumed, Some(Err(LineError::TooLong { verb })));
        }
        if self.partial.len() + consumed > LINE_BYTES_MAX {
            let verb = verb(&std::mem::take(&mut self.partial), input);
            return (consumed, Some(Err(LineError::TooLong { verb })));
        }
        let line = if self.partial.is_empty() {
            Cow::Borrowed(head)
        } else {
            self.partial.extend_from_slice(head);
            Cow::Owned(std::mem::take(&mut self.partial))
        };
        (consumed, Some(without_cr(line)))
    }

    /// Keeps, or skips, input that holds no line end.
    fn keep(&mut self, input: &[u8]) -> Option<Line<'static>> {
        if self.skipped.is_none() && self.partial.len() + input.len() < LINE_BYTES_MAX {
            self.partial.extend_from_slice(input);
            return None;
        }
        let (verb, before) = self.skipped.unwrap_or_else(|| (verb(&self.partial, input), self.partial.len()));
        self.partial = Vec::new();
        let skipped = before.saturating_add(input.len());
        self.skipped = Some((verb, skipped));
        (skipped > SKIPPED_BYTES_MAX).then_some(Err(LineError::Endless))
    }
}

/// The first bytes of a line that came in two pieces.
fn verb(head: &[u8], tail: &[u8]) -> [u8; 4] {
    let mut verb = [0; 4];
    verb.iter_mut().zip(head.iter().chain(tail)).for_each(|(to, from)| *to = from.to_ascii_uppercase());
    verb
}

fn without_cr(mut line: Cow<'_, [u8]>) -> Line<'_> {
    if line.last() != Some(&b'\r') {
        return Err(LineError::BareLf);
    }
    match &mut line {
        Cow::Borrowed(bytes) => *bytes = bytes.split_last().map_or(&[], |(_, rest)| rest),
        Cow::Owned(bytes) => drop(bytes.pop()),
    }
    if memchr(b'\r', &line).is_some() { Err(LineError::BareCr) } else { Ok(line) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All lines of `input`, fed in pieces of `step` bytes.
    fn lines(input: &[u8], step: usize) -> Vec<Result<Vec<u8>, LineError>> {
        let (mut reader, mut found) = (LineReader::default(), Vec::new());
        for mut piece in input.chunks(step) {
            while !piece.is_empty() {
                let (consumed, line) = reader.read(piece);
                found.extend(line.map(|l| l.map(Cow::into_owned)));
                assert!(reader.partial.len() < LINE_BYTES_MAX);
                piece = &piece[consumed..];
            }
        }
        found
    }

    #[test]
    fn a_line_that_never_ends_is_not_kept() {
        for step in [1, 2_047, 2_048, 4_096] {
            let fits = [&[b'x'; 2_046][..], b"\r\nQUIT\r\n"].concat();
            assert_eq!(lines(&fits, step), [Ok(vec![b'x'; 2_046]), Ok(b"QUIT".to_vec())], "{step}");
            let long = [&[b'x'; 2_047][..], b"\r\nQUIT\r\n"].concat();
            let too_long = LineError::TooLong { verb: *b"XXXX" };
            assert_eq!(lines(&long, step), [Err(too_long), Ok(b"QUIT".to_vec())], "{step}");
        }
        assert_eq!(lines(&[b'x'; 65_537], 65_537), [Err(LineError::Endless)]);
        assert_eq!(lines(&[b'x'; 65_536], 1), []);
    }

    #[test]
    fn only_crlf_ends_a_line() {
        assert_eq!(lines(b"NOOP\nQUIT\r\n", 1), [Err(LineError::BareLf), Ok(b"QUIT".to_vec())]);
        assert_eq!(
            lines(b"NOOP\rRSET\r\n\n\r\r\n", 1),
            [Err(LineError::BareCr), Err(LineError::BareLf), Err(LineError::BareCr)]
        );
    }

    proptest! {
        #[test]
        fn a_cut_input_gives_the_same_lines(input in "[ab\r\n]{0,40}", step in 1_usize..40) {
            prop_assert_eq!(lines(input.as_bytes(), step), lines(input.as_bytes(), 1));
        }
    }
}
