//! What commands print: data on standard output, everything else on standard error. A closed pipe is no error; any other
//! failure of standard output is remembered, and `main` makes it the end of the command.

use restante_envelope::text::is_harmless;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// What first went wrong with standard output.
static LOST: OnceLock<String> = OnceLock::new();
/// Whether nobody reads standard output any more.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// How a command may print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// One JSON object per line.
    pub(crate) json: bool,
    /// No boxes, no symbols, no redrawing.
    pub(crate) plain: bool,
    /// Colour is wanted and the terminal can show it.
    pub(crate) color: bool,
}

impl Output {
    pub(crate) fn new(json: bool, plain: bool, no_color: bool) -> Self {
        let forbidden = no_color || plain || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { json, plain, color: !forbidden && !dumb && io::stderr().is_terminal() }
    }

    /// Prints one line of data.
    pub(crate) fn line(self, text: &str) {
        remember(writeln!(io::stdout().lock(), "{text}"));
    }

    /// Whether whoever read the other end of the pipe has gone: what is printed now is for nobody.
    pub(crate) fn is_closed(self) -> bool {
        CLOSED.load(Ordering::Relaxed)
    }

    /// Writes bytes as they are.
    pub(crate) fn bytes(self, bytes: &[u8]) {
        remember(io::stdout().lock().write_all(bytes));
    }

    /// Prints one JSON object as a line of data.
    pub(crate) fn object(self, object: &serde_json::Value) {
        self.line(&escaped(&object.to_string()));
    }

    /// Flushes; why not all data got out, if so.
    pub(crate) fn lost(self) -> Option<&'static str> {
        remember(io::stdout().flush());
        LOST.get().map(String::as_str)
    }

    /// Says something to the person, not to the pipe.
    pub(crate) fn note(self, text: &str) {
        let _closed = writeln!(io::stderr().lock(), "{text}");
    }
}

/// The same JSON, a line of it, with escapes for what would steer a terminal or hide there: serde_json escapes only what is
/// below U+0020, so that raw there it stands between tokens.
pub(crate) fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            c if is_harmless(c) => out.push(c),
            '\0'..' ' => out.push(' '),
            c => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out += &format!("\\u{unit:04x}")),
        }
    }
    out
}

/// Bytes of a stranger's as a terminal may see them: `?` for what is no text, steers or hides; ends of lines and tabs stay.
#[derive(Debug, Default)]
pub(crate) struct MadeSafe {
    /// The beginning of a character whose end was not in the last piece.
    begun: Vec<u8>,
}

impl MadeSafe {
    /// The next piece.
    pub(crate) fn piece(&mut self, bytes: &[u8]) -> String {
        let bytes = [self.begun.as_slice(), bytes].concat();
        self.begun.clear();
        let mut out = String::with_capacity(bytes.len());
        for (at, chunk) in bytes.utf8_chunks().map(|chunk| (chunk.invalid().as_ptr_range().end, chunk)) {
            let kept = |c: char| if is_harmless(c) || matches!(c, '\r' | '\n' | '\t') { c } else { '?' };
            out.extend(chunk.valid().chars().map(kept));
            let is_begun = std::str::from_utf8(chunk.invalid()).is_err_and(|error| error.error_len().is_none());
            if is_begun && at == bytes.as_ptr_range().end {
                self.begun = chunk.invalid().to_vec();
            } else if !chunk.invalid().is_empty() {
                out.push('?');
            }
        }
        out
    }

    /// What is left at the end.
    pub(crate) fn end(self) -> &'static str {
        if self.begun.is_empty() { "" } else { "?" }
    }
}

fn remember(written: io::Result<()>) {
    match written {
        // Whoever reads the other end of a pipe may have seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => CLOSED.store(true, Ordering::Relaxed),
        Err(error) => {
            // The first one tells it; the others follow from it.
            let _later = LOST.set(error.to_string());
        }
        Ok(()) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn json_keeps_its_value_and_steers_no_terminal() {
        let text = "\0\x1b]0;x\x07\x7f\u{9b}2J\u{202e}\u{2066}\u{e0041} ok \"é😀\\";
        let line = escaped(&json!({ text: [text] }).to_string());
        assert!(line.contains("\\u009b2J\\u202e\\u2066\\udb40\\udc41 ok") && line.contains("é😀"), "{line}");
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), json!({ text: [text] }));
        assert_eq!(escaped("{\t\"a\":\r1}"), "{ \"a\": 1}");
    }

    proptest! {
        #[test]
        fn no_json_says_anything_else_when_it_is_escaped(text: String, key: String) {
            let (value, mut object) = (Value::from(text), serde_json::Map::new());
            object.insert(key, value);
            let line = escaped(&serde_json::to_string(&object).unwrap());
            prop_assert!(line.chars().all(is_harmless), "{line:?}");
            prop_assert_eq!(serde_json::from_str::<serde_json::Map<_, _>>(&line).unwrap(), object);
        }

        #[test]
        fn content_in_pieces_cannot_steer_a_terminal_and_a_character_cut_in_two_is_one(
            bytes: Vec<u8>, text: String, piece_bytes in 1usize..5,
        ) {
            let shown = |bytes: &[u8], piece_bytes: usize| {
                let mut safe = MadeSafe::default();
                let mut out: String = bytes.chunks(piece_bytes).map(|piece| safe.piece(piece)).collect();
                out += safe.end();
                out
            };
            for bytes in [bytes, text.clone().into_bytes()] {
                let out = shown(&bytes, piece_bytes);
                prop_assert!(out.chars().all(|c| is_harmless(c) || "\r\n\t".contains(c)), "{out:?}");
                prop_assert_eq!(out, shown(&bytes, bytes.len().max(1)));
            }
            prop_assert_eq!(shown(text.as_bytes(), piece_bytes).chars().count(), text.chars().count());
        }
    }

    #[test]
    fn ordinary_content_is_shown_as_it_is_and_sequences_are_not() {
        let mut safe = MadeSafe::default();
        let text = "Subject: Grüße\r\n\tfolded\n\u{1b}[2J\u{9b}2J\u{7}\u{202e}\0".as_bytes();
        assert_eq!(safe.piece(text), "Subject: Grüße\r\n\tfolded\n?[2J?2J???");
        assert_eq!(
            (safe.piece(b"\xff\xc3"), safe.piece(b"("), safe.piece(b"\xe2\x82")),
            ("?".into(), "?(".into(), "".into())
        );
        assert_eq!(safe.end(), "?");
    }
}
