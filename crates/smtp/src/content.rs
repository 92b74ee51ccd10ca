//! Frames the content after DATA: finds its end and undoes dot-stuffing (RFC 5321 section 4.5.2), at any cut of the
//! input and without copying. Ends at CRLF.CRLF and at nothing else: every laxer reading of the end lets a sender
//! smuggle a second message past a server that reads more strictly. Stores nothing, judges no size.

use memchr::memchr2;

/// What the byte before the next one was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// CRLF, or there was none.
    LineStart,
    /// The dot at the start of a line: stuffing, or the end begins.
    Dot,
    /// CR behind such a dot. It is held back: with an LF it belongs to the end.
    DotCr,
    /// Within a line.
    Text,
    /// CR within a line.
    Cr,
}

/// How far a content has come.
#[derive(Debug)]
pub(crate) struct Framing {
    at: At,
    /// A CR without LF or an LF without CR was seen. Such content ends like any other, and is refused there: where
    /// its lines end is for each server to guess, and a guess is what smuggling feeds on.
    pub(crate) has_bare_cr_or_lf: bool,
}

impl Framing {
    pub(crate) fn new() -> Self {
        Self { at: At::LineStart, has_bare_cr_or_lf: false }
    }

    /// Reads on; `content` gets what is unstuffed, in the longest slices that the input allows. Returns how many bytes
    /// belong to the content or its end, and whether that was the end.
    pub(crate) fn receive(&mut self, input: &[u8], mut content: impl FnMut(&[u8])) -> (usize, bool) {
        let mut hand_over = |slice: Option<&[u8]>| {
            if let Some(slice @ [_, ..]) = slice {
                content(slice);
            }
        };
        // Where the run begins that is not handed over yet, and the next byte to look at.
        let (mut run, mut next) = (0, 0);
        while let Some(&byte) = input.get(next) {
            if self.at == At::DotCr && byte != b'\n' && next == 0 {
                // The CR was held back at the end of the last input, and is content after all.
                hand_over(Some(b"\r"));
            }
            self.at = match (self.at, byte) {
                (At::LineStart, b'.') => {
                    hand_over(input.get(run..next));
                    run = next + 1;
                    At::Dot
                }
                (At::Dot, b'\r') => At::DotCr,
                (At::DotCr, b'\n') => return (next + 1, true),
                (At::Cr, b'\n') => At::LineStart,
                (at, _) => {
                    self.has_bare_cr_or_lf |= byte == b'\n' || matches!(at, At::Cr | At::DotCr);
                    if byte == b'\r' { At::Cr } else { At::Text }
                }
            };
            next += 1;
            if self.at == At::Text {
                // Most of all bytes are passed over here, not one by one.
                let rest = input.get(next..).unwrap_or_default();
                next += memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
            }
        }
        if self.at != At::DotCr {
            hand_over(input.get(run..));
        }
        (input.len(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Consumed bytes, whether it ended, whether it is malformed, what was handed over.
    type Seen = (usize, bool, bool, Vec<u8>);

    fn in_pieces<'i>(pieces: impl IntoIterator<Item = &'i [u8]>) -> Seen {
        let (mut framing, mut consumed, mut content) = (Framing::new(), 0, Vec::new());
        for piece in pieces {
            let (bytes, ended) = framing.receive(piece, |slice| {
                assert!(!slice.is_empty());
                content.extend_from_slice(slice);
            });
            consumed += bytes;
            if ended {
                return (consumed, true, framing.has_bare_cr_or_lf, content);
            }
            assert_eq!(bytes, piece.len());
        }
        (consumed, false, framing.has_bare_cr_or_lf, content)
    }

    /// The same by splitting at CRLF, with everything in memory. What is left over after the last CRLF is not compared.
    fn naive(input: &[u8]) -> Seen {
        let text = std::str::from_utf8(input).unwrap();
        let (mut consumed, mut content, mut bare) = (0, Vec::new(), false);
        let mut lines: Vec<&str> = text.split("\r\n").collect();
        let unfinished = lines.pop().unwrap();
        for line in lines {
            consumed += line.len() + 2;
            if line == "." {
                return (consumed, true, bare, content);
            }
            bare |= line.contains(['\r', '\n']);
            content.extend_from_slice(line.strip_prefix('.').unwrap_or(line).as_bytes());
            content.extend_from_slice(b"\r\n");
        }
        (consumed + unfinished.len(), false, bare, content)
    }

    /// Dot-stuffing as a sender does it.
    fn stuffed(content: &str) -> String {
        let stuff = |line: &str| if line.starts_with('.') { format!(".{line}") } else { line.to_owned() };
        content.split_inclusive("\r\n").map(stuff).collect::<String>() + ".\r\n"
    }

    #[test]
    fn nothing_but_crlf_dot_crlf_ends_the_content() {
        for not_the_end in [
            "\n.\n",
            "\r\n.\n",
            "\n.\r\n",
            "\r.\r",
            "\r\n.\r",
            "\r\n.\r\r\n",
            "\r.\r\n",
            "\r\n..\r\n",
            "\r\n\0.\r\n",
            "\r\n.\0\r\n",
            "\r\n. \r\n",
            "\n\n.\r\n",
            "\r\n\r.\r\n",
        ] {
            let input = format!("a{not_the_end}MAIL FROM:<x@y>\r\n");
            let (_, ended, _, _) = in_pieces([input.as_bytes()]);
            assert!(!ended, "{not_the_end:?}");
            let (_, ended, _, _) = in_pieces(input.as_bytes().chunks(1));
            assert!(!ended, "{not_the_end:?} byte by byte");
        }
    }

    #[test]
    fn an_empty_message_ends_at_once() {
        assert_eq!(in_pieces([&b".\r\nQUIT\r\n"[..]]), (3, true, false, vec![]));
        assert_eq!(in_pieces(b".\r\nQUIT\r\n".chunks(1)), (3, true, false, vec![]));
    }

    #[test]
    fn ordinary_text_is_handed_over_in_one_slice() {
        let text = "a line of text, another\r\n\r\nand a dot . within\r\n".repeat(100);
        let mut slices = Vec::new();
        Framing::new().receive(text.as_bytes(), |slice| slices.push(slice.to_vec()));
        assert_eq!(slices, [text.into_bytes()]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn a_cut_at_any_byte_changes_nothing(input in "[a.\r\n]{0,24}(\r\n\\.\r\n)?[a.\r\n]{0,6}", step in 1_usize..8) {
            let input = input.as_bytes();
            let whole = in_pieces([input]);
            for cut in 0..=input.len() {
                let (head, tail) = input.split_at(cut);
                prop_assert_eq!(&in_pieces([head, tail]), &whole, "cut at {}", cut);
            }
            prop_assert_eq!(&in_pieces(input.chunks(step)), &whole);
        }

        #[test]
        fn content_is_what_a_naive_reader_finds(input in "[a.\r\n]{0,24}(\r\n\\.\r\n)?[a.\r\n]{0,6}") {
            let (consumed, ended, bare, content) = in_pieces([input.as_bytes()]);
            let expected = naive(input.as_bytes());
            prop_assert_eq!((consumed, ended), (expected.0, expected.1));
            // A line that has not ended may already be known to be malformed, and is handed over as it comes.
            prop_assert!(content.starts_with(&expected.3));
            if ended {
                prop_assert_eq!((bare, content), (expected.2, expected.3));
            }
        }

        #[test]
        fn what_a_sender_stuffs_comes_out_unchanged(lines in proptest::collection::vec("[a.]{0,5}", 0..8), step in 1_usize..9) {
            let content: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            let wire = stuffed(&content);
            let seen = in_pieces(wire.as_bytes().chunks(step));
            prop_assert_eq!(seen, (wire.len(), true, false, content.into_bytes()));
        }
    }
}
