//! What commands print: data on standard output, everything else on standard error. A closed pipe is no error.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

/// A script that gets an empty file and exit 0 would believe it.
static LOST: AtomicBool = AtomicBool::new(false);

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
        let written = writeln!(io::stdout().lock(), "{text}");
        match written {
            // Whoever reads the other end of a pipe may have seen enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => LOST.store(true, Ordering::Relaxed),
            Ok(()) | Err(_) => {}
        }
    }

    /// Whether some of what was printed did not arrive, and nobody closed the pipe: a full disk behind standard output.
    pub(crate) fn was_lost() -> bool {
        let flushed = io::stdout().lock().flush();
        LOST.load(Ordering::Relaxed) || flushed.is_err_and(|error| error.kind() != io::ErrorKind::BrokenPipe)
    }

    /// Prints one JSON object as a line of data.
    pub(crate) fn object(self, object: &serde_json::Value) {
        self.line(&object.to_string());
    }

    /// Says something to the person, not to the pipe.
    pub(crate) fn note(self, text: &str) {
        let _closed = writeln!(io::stderr().lock(), "{text}");
    }
}
