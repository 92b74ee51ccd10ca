//! What commands print: data on standard output, everything else on standard error. A closed pipe is no error; any other
//! failure of standard output is remembered, and `main` makes it the end of the command.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::OnceLock;

/// What first went wrong with standard output.
static LOST: OnceLock<String> = OnceLock::new();

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

    /// Writes bytes as they are.
    pub(crate) fn bytes(self, bytes: &[u8]) {
        remember(io::stdout().lock().write_all(bytes));
    }

    /// Prints one JSON object as a line of data.
    pub(crate) fn object(self, object: &serde_json::Value) {
        self.line(&object.to_string());
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

fn remember(written: io::Result<()>) {
    match written {
        // Whoever reads the other end of a pipe may have seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            // The first one tells it; the others follow from it.
            let _later = LOST.set(error.to_string());
        }
        Ok(()) | Err(_) => {}
    }
}
