//! Frames the content: finds its end after DATA and undoes dot-stuffing (RFC 5321 section 4.5.2), mends its line ends, at any cut of
//! the input and without copying what is right already. Ends at CRLF.CRLF and at nothing else: every laxer reading of the end lets a
//! sender smuggle a second message past a server that reads more strictly. Stores nothing, judges no size.
//!
//! A CR without LF or an LF without CR is where servers disagree, and smuggling feeds on that (CVE-2023-51764 to -51766). Two ways
//! out: refuse such content, or hand on content that can be read in one way only. Both are to be had. What is handed on has no
//! bare CR and no bare LF, in either case: an LF alone becomes CRLF, CRs in front of a line end belong to it and go, and any other run
//! of CRs becomes a space, which joins no words and ends no header. Dots are undone behind a CRLF of the sender's alone: behind
//! anything else no sender by the book has stuffed one. So whoever is behind us finds dots only where our courier stuffs them again.

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
    /// CRs within a line, all held back.
    Cr,
    /// LF without CR: a line's end for whoever reads the content, not for who looks for dots.
    BareLf,
}

/// How far a content has come.
#[derive(Debug)]
pub(crate) struct Framing {
    at: At,
    /// Dots are stuffed, and CRLF.CRLF is the end: after DATA, not after BDAT.
    has_dots: bool,
    /// A CR without LF or an LF without CR was seen, and mended.
    pub(crate) has_bare_cr_or_lf: bool,
}

impl Framing {
    /// After DATA.
    pub(crate) fn dotted() -> Self {
        Self { at: At::LineStart, has_dots: true, has_bare_cr_or_lf: false }
    }

    /// After BDAT: who counts the octets knows where the end is.
    pub(crate) fn counted() -> Self {
        Self { has_dots: false, ..Self::dotted() }
    }

    /// Reads on; `content` gets what is unstuffed and mended, in the longest slices that the input allows. Returns how many bytes
    /// belong to the content or its end, and whether that was the end.
    pub(crate) fn receive(&mut self, input: &[u8], mut content: impl FnMut(&[u8])) -> (usize, bool) {
        let mut hand_over = |slice: Option<&[u8]>| {
            if let Some(slice @ [_, ..]) = slice {
                content(slice);
            }
        };
        // Where the run begins that is not handed over yet, the next byte to look at, and the CR in the run, if it may stay.
        let (mut run, mut next, mut cr) = (0, 0, None);
        while let Some(&byte) = input.get(next) {
            let is_bare = match (self.at, byte) {
                (At::Cr | At::DotCr, b'\n') => false,
                (At::Cr | At::DotCr, _) | (_, b'\n') => true,
                _ => false,
            };
            self.has_bare_cr_or_lf |= is_bare;
            self.at = match (self.at, byte) {
                (At::LineStart, b'.') if self.has_dots => {
                    hand_over(input.get(run..next));
                    run = next + 1;
                    At::Dot
                }
                (At::DotCr, b'\n') => return (next + 1, true),
                (At::Dot, b'\r') => {
                    run = next + 1;
                    At::DotCr
                }
                (At::Cr, b'\n') => {
                    // The usual end of a line stays in the run.
                    if cr.take().is_none() {
                        hand_over(Some(b"\r\n"));
                        run = next + 1;
                    }
                    At::LineStart
                }
                (At::Cr | At::DotCr, b'\r') => {
                    if let Some(at) = cr.take() {
                        hand_over(input.get(run..at));
                    }
                    run = next + 1;
                    At::Cr
                }
                (At::Cr | At::DotCr, _) => {
                    if let Some(at) = cr.take() {
                        hand_over(input.get(run..at));
                    }
                    hand_over(Some(b" "));
                    run = next;
                    At::Text
                }
                (_, b'\n') => {
                    hand_over(input.get(run..next));
                    hand_over(Some(b"\r\n"));
                    run = next + 1;
                    At::BareLf
                }
                (_, b'\r') => {
                    cr = Some(next);
                    At::Cr
                }
                _ => At::Text,
            };
            next += 1;
            if self.at == At::Text {
                // Most of all bytes are passed over here, not one by one.
                let rest = input.get(next..).unwrap_or_default();
                next += memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
            }
        }
        // A CR waits for the byte behind it.
        hand_over(input.get(run..cr.unwrap_or(input.len())));
        (input.len(), false)
    }

    /// The content is over, by count. Its last line gets its end, if it has none.
    pub(crate) fn finish(&mut self, mut content: impl FnMut(&[u8])) {
        self.has_bare_cr_or_lf |= self.at == At::Cr;
        if !matches!(self.at, At::LineStart | At::BareLf) {
            content(b"\r\n");
        }
        self.at = At::LineStart;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Consumed bytes, whether it ended, whether it is malformed, what was handed over.
    type Seen = (usize, bool, bool, Vec<u8>);

    fn in_pieces<'i>(pieces: impl IntoIterator<Item = &'i [u8]>) -> Seen {
        let (mut framing, mut consumed, mut content) = (Framing::dotted(), 0, Vec::new());
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

    /// The same with everything in memory: lines by CRLF, dots, then the mending by plain replacement.
    fn naive(input: &[u8]) -> Seen {
        let text = std::str::from_utf8(input).unwrap();
        let (mut consumed, mut content, mut bare) = (0, String::new(), false);
        let mut lines: Vec<&str> = text.split("\r\n").collect();
        let unfinished = lines.pop().unwrap();
        for line in lines {
            consumed += line.len() + 2;
            if line == "." {
                return (consumed, true, bare, mended(&content).into_bytes());
            }
            bare |= line.contains(['\r', '\n']);
            content += line.strip_prefix('.').unwrap_or(line);
            content += "\r\n";
        }
        (consumed + unfinished.len(), false, bare, mended(&content).into_bytes())
    }

    /// Of whole lines.
    fn mended(text: &str) -> String {
        let mut text = text.to_owned();
        while text.contains("\r\r") {
            text = text.replace("\r\r", "\r");
        }
        text.replace("\r\n", "\n").replace('\r', " ").replace('\n', "\r\n")
    }

    /// All of it after BDAT, in pieces.
    fn counted<'i>(pieces: impl IntoIterator<Item = &'i [u8]>) -> (Vec<u8>, bool) {
        let (mut framing, mut content) = (Framing::counted(), Vec::new());
        for piece in pieces {
            assert_eq!(framing.receive(piece, |slice| content.extend_from_slice(slice)), (piece.len(), false));
        }
        framing.finish(|slice| content.extend_from_slice(slice));
        (content, framing.has_bare_cr_or_lf)
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
        Framing::dotted().receive(text.as_bytes(), |slice| slices.push(slice.to_vec()));
        assert_eq!(slices, [text.into_bytes()]);
    }

    #[test]
    fn line_ends_are_mended_as_the_page_says() {
        for (wire, content, bare) in [
            ("a\nb\r\n.\r\n", "a\r\nb\r\n", true),
            ("a\r\r\nb\r\n.\r\n", "a\r\nb\r\n", true),
            ("a\r\r\rb\r\n.\r\n", "a b\r\n", true),
            ("a\r\n.\rb\r\n.\r\n", "a\r\n b\r\n", true),
            ("a\r\n.\r\r\n.\r\n", "a\r\n\r\n", true),
            ("a\n.\nb\r\n.\r\n", "a\r\n.\r\nb\r\n", true),
            ("a\n..b\r\n.\r\n", "a\r\n..b\r\n", true),
            ("..\r\n...\r\n.\r\n", ".\r\n..\r\n", false),
            ("\n.\r\n.\r\n", "\r\n.\r\n", true),
        ] {
            let expected = (wire.len(), true, bare, content.as_bytes().to_vec());
            assert_eq!(in_pieces([wire.as_bytes()]), expected, "{wire:?}");
            assert_eq!(in_pieces(wire.as_bytes().chunks(1)), expected, "{wire:?}");
        }
        for (wire, content, bare) in [
            ("", "", false),
            ("a", "a\r\n", false),
            ("a\r\n", "a\r\n", false),
            ("a\n", "a\r\n", true),
            ("a\r", "a\r\n", true),
            (".\r\n.\r\n", ".\r\n.\r\n", false),
            ("a\n.\r\n", "a\r\n.\r\n", true),
        ] {
            assert_eq!(counted([wire.as_bytes()]), (content.as_bytes().to_vec(), bare), "{wire:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn counted_content_is_what_a_naive_reader_finds(input in "[a.\r\n]{0,30}", step in 1_usize..9) {
            let ended = if input.is_empty() || input.ends_with('\n') { input.clone() } else { format!("{input}\n") };
            let (content, bare) = counted(input.as_bytes().chunks(step));
            prop_assert_eq!(String::from_utf8(content).unwrap(), mended(&ended));
            prop_assert_eq!(bare, input.replace("\r\n", "").contains(['\r', '\n']));
        }

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
            // A line that has not ended may already be known to be malformed, and is handed over as it comes. Its end is not known.
            prop_assert!(content.starts_with(expected.3.strip_suffix(b"\r\n").unwrap_or(&expected.3)));
            if ended {
                prop_assert_eq!((bare, &content), (expected.2, &expected.3));
                let is_line = |line: &[u8]| line.ends_with(b"\r\n") && !line[..line.len() - 2].contains(&b'\r');
                prop_assert!(content.split_inclusive(|b| *b == b'\n').all(is_line));
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
