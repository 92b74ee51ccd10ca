//! What is wrong with a configuration, and how it is shown: every error at once, each with its place.
//!
//! Renders text; prints nothing, reads no file and decides nothing.

use restante_envelope::text::is_harmless;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many errors one run shows: enough for a bad evening, few enough not to bury the first under a wrong file.
const SHOWN_ERRORS_MAX: usize = 50;
/// Keys are short words: more than two slips is another word.
const NEAREST_KEY_EDITS_MAX: usize = 2;
/// What a refused configuration leaves behind: nothing.
const NOTHING_STARTED: &str = "nothing was started, no port is open";

/// A text that errors point into: the configuration, or a recipients file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    path: PathBuf,
    text: Arc<str>,
}

impl Source {
    /// The text that was read from `path`.
    pub(super) fn new(path: &Path, text: &str) -> Self {
        Self { path: path.to_path_buf(), text: text.into() }
    }

    /// The number of the line, from 1, that holds the byte at `offset`.
    pub(super) fn line_number(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|b| *b == b'\n').count()
    }

    /// The line that holds the byte at `offset`, and where it starts.
    fn line(&self, offset: usize) -> (usize, &str) {
        let start = self.text.get(..offset).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
        let line = self.text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        (start, line)
    }
}

/// One error in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Diagnostic {
    pub(super) source: Source,
    /// Bytes of the source.
    pub(super) span: Range<usize>,
    /// What is wrong.
    pub(super) message: String,
    /// What to do about it; stands behind the caret. May be empty.
    pub(super) help: String,
}

/// Why there is no configuration to start with, by whose fault it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// The command line is wrong.
    Flags(Vec<String>),
    /// The file is wrong; in the order of the file.
    File(Vec<Diagnostic>),
    /// The file cannot be read.
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// No file was named, no route was given, and no file is at the usual places.
    NoFile {
        /// Where one was looked for.
        tried: Vec<PathBuf>,
    },
}

impl Invalid {
    /// The process's exit code: 2 for a bad command line, 6 for a bad or missing file.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Flags(_) => 2,
            Self::File(_) | Self::Unreadable { .. } | Self::NoFile { .. } => 6,
        }
    }

    /// The errors as objects, for scripts.
    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        let message = |message: &str| serde_json::json!({"message": message});
        match self {
            Self::Flags(errors) => errors.iter().map(|error| message(error)).collect(),
            Self::File(errors) => errors.iter().map(Diagnostic::json).collect(),
            Self::Unreadable { path, why } => vec![message(&format!("cannot read {}: {why}", path.display()))],
            Self::NoFile { tried } => {
                let tried: Vec<_> = tried.iter().map(|path| path.display().to_string()).collect();
                vec![message(&format!("there is no {}", tried.join(", no ")))]
            }
        }
    }

    /// What to print on standard error; ends in a line end. No control character of a file gets through.
    pub(crate) fn render(&self, color: bool) -> String {
        self.render_with(color, NOTHING_STARTED)
    }

    /// The same, with other words for what is left behind.
    pub(crate) fn render_with(&self, color: bool, left_behind: &str) -> String {
        let paint = Paint { color };
        match self {
            Self::Flags(errors) => several(errors, left_behind, |out, error| out.push_str(&paint.error(error))),
            Self::File(errors) => several(errors, left_behind, |out, error| error.render(paint, out)),
            Self::Unreadable { path, why } => {
                format!("{}{left_behind}\n", paint.error(&format!("cannot read {}: {why}", path.display())))
            }
            Self::NoFile { tried } => {
                let tried: Vec<_> = tried.iter().map(|path| path.display().to_string()).collect();
                format!(
                    "{}  without a file:  restante serve --route example.com=mail.example.com\n  \
                     with one:        restante init mx2.example.net --domain example.com --primary mail.example.com\n\
                     {left_behind}\n",
                    paint.error(&format!("no configuration: no --config, no --route, and no {}", tried.join(", no ")))
                )
            }
        }
    }
}

impl Diagnostic {
    /// On one line, for a log: `FILE:LINE: what (what to do)`.
    pub(crate) fn line(&self) -> String {
        let help = if self.help.is_empty() { String::new() } else { format!(" ({})", self.help) };
        let number = self.source.line_number(self.span.start);
        printable(&format!("{}:{number}: {}{help}", self.source.path.display(), self.message))
    }

    /// As an object, for scripts.
    pub(crate) fn json(&self) -> serde_json::Value {
        let (start, line) = self.source.line(self.span.start);
        let before = line.get(..self.span.start.saturating_sub(start)).unwrap_or(line);
        serde_json::json!({
            "message": self.message,
            "file": self.source.path,
            "line": self.source.line_number(self.span.start),
            "column": before.chars().count() + 1,
            "help": self.help,
        })
    }

    /// In the shape compilers use: message, place, line, caret.
    fn render(&self, paint: Paint, out: &mut String) {
        let (start, line) = self.source.line(self.span.start);
        let before = line.get(..self.span.start.saturating_sub(start)).unwrap_or(line);
        let marked = line.get(before.len()..(self.span.end.saturating_sub(start)).min(line.len())).unwrap_or_default();
        let number = self.source.line_number(self.span.start).to_string();
        let (indent, gutter) = (before.chars().count(), " ".repeat(number.len()));
        let carets = "^".repeat(marked.chars().count().max(1));
        let space = if self.help.is_empty() { "" } else { " " };
        out.push_str(&paint.error(&self.message));
        let place = format!("{}:{number}:{}", self.source.path.display(), indent + 1);
        let _ = writeln!(out, "  {} {}", paint.blue("-->"), printable(&place));
        let _ = writeln!(out, "  {} {}", paint.blue(&format!("{number} |")), printable(line));
        let pointer = paint.red(&format!("{carets}{space}{}", printable(&self.help)));
        let _ = writeln!(out, "  {} {}{pointer}", paint.blue(&format!("{gutter} |")), " ".repeat(indent));
    }
}

/// All errors and the last line.
fn several<T>(errors: &[T], left_behind: &str, mut one: impl FnMut(&mut String, &T)) -> String {
    let mut out = String::new();
    for error in errors.iter().take(SHOWN_ERRORS_MAX) {
        one(&mut out, error);
    }
    if errors.len() > SHOWN_ERRORS_MAX {
        let _ = writeln!(out, "... and {} more", errors.len() - SHOWN_ERRORS_MAX);
    }
    let plural = if errors.len() == 1 { "" } else { "s" };
    let _ = writeln!(out, "{} error{plural}; {left_behind}", errors.len());
    out
}

/// Colour, where it is wanted. The text alone says everything.
#[derive(Clone, Copy)]
struct Paint {
    color: bool,
}

impl Paint {
    fn error(self, message: &str) -> String {
        format!("{} {}\n", self.red("error:"), printable(message))
    }

    fn red(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    fn blue(self, text: &str) -> String {
        self.wrap("34", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// One character for one, so that the caret stays under what it points at.
fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\t' => ' ',
        c if !is_harmless(c) => '?',
        c => c,
    };
    text.chars().map(shown).collect()
}

/// The known word that `word` probably meant.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|candidate| (edits(&word, candidate), candidate))
        // A word of three letters that shares one with a key is no slip.
        .filter(|(edits, candidate)| *edits <= NEAREST_KEY_EDITS_MAX && 2 * edits < candidate.len())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn one word into the other.
fn edits(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let cell = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX / 2);
    let mut before = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let replaced = cell(&above, j) + usize::from(a != b);
            let mut least = replaced.min(cell(&above, j + 1) + 1).min(cell(&row, j) + 1);
            let neighbours = |word: &[char], at: usize| Some((*word.get(at.checked_sub(1)?)?, *word.get(at)?));
            if let (Some((a1, a2)), Some((b1, b2))) = (neighbours(&from, i), neighbours(&to, j))
                && (a1, a2) == (b2, b1)
            {
                least = least.min(cell(&before, j - 1) + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnostic(text: &str, span: Range<usize>) -> Diagnostic {
        let source = Source::new(Path::new("restante.toml"), text);
        Diagnostic { source, span, message: "unknown key `domain` in [[route]]".into(), help: "did you mean?".into() }
    }

    #[test]
    fn an_error_points_at_its_line_and_column() {
        let shown = Invalid::File(vec![diagnostic("a = 1\n  b\u{e9} = 2\n", 8..11)]).render(false);
        let expected = "\
error: unknown key `domain` in [[route]]
  --> restante.toml:2:3
  2 |   b\u{e9} = 2
    |   ^^ did you mean?
1 error; nothing was started, no port is open
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_span_at_the_end_or_outside_never_panics() {
        for span in [0..0, 5..5, 5..99, 6..6, 50..60] {
            assert!(Invalid::File(vec![diagnostic("a = 1\n", span)]).render(true).contains('^'));
        }
    }

    #[test]
    fn escape_sequences_of_a_file_do_not_reach_the_terminal() {
        let shown = Invalid::File(vec![diagnostic("\t\x1b[2J = 1", 0..1)]).render(false);
        assert!(!shown.contains('\x1b') && !shown.contains('\t'), "{shown:?}");
    }

    #[test]
    fn a_thousand_errors_are_counted_and_not_all_printed() {
        let shown = Invalid::Flags(vec!["x".into(); 1_000]).render(false);
        assert!(shown.ends_with("... and 950 more\n1000 errors; nothing was started, no port is open\n"), "{shown}");
    }

    #[test]
    fn a_slip_finds_its_key_and_another_word_does_not() {
        let keys = ["name", "domains", "primary", "recipients", "max_message_size"];
        for (slip, key) in [
            ("domain", Some("domains")),
            ("Primary", Some("primary")),
            ("pirmary", Some("primary")),
            ("max-message-size", Some("max_message_size")),
            ("nam", Some("name")),
            ("naem", Some("name")),
            ("spool", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(slip, keys), key, "{slip}");
        }
    }
}
