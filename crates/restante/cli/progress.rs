//! How far a long command is: a bar on a terminal, a line for every tenth elsewhere, nothing at all if it is quick.
//!
//! Speaks on standard error only; what it counts is the caller's.

use super::log_line::printable;
use super::output::Output;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

/// What ends sooner needs no bar.
const SILENT: Duration = Duration::from_secs(2);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Messages,
}

/// A command under way. Whatever is drawn goes away when it is dropped.
pub(crate) struct Progress {
    output: Output,
    what: &'static str,
    unit: Unit,
    total: u64,
    done: u64,
    started: Instant,
    bar: Option<ProgressBar>,
    tenths_told: u64,
}

impl Progress {
    pub(crate) fn new(output: Output, what: &'static str, unit: Unit, total: u64) -> Self {
        Self { output, what, unit, total, done: 0, started: Instant::now(), bar: None, tenths_told: 0 }
    }

    /// `by` more is done; `where_we_are` is for the person who waits.
    pub(crate) fn advance(&mut self, by: u64, where_we_are: &str) {
        self.done = self.done.saturating_add(by);
        let where_we_are = &printable(where_we_are);
        if self.started.elapsed() < SILENT {
            return;
        }
        if self.output.plain || !io::stderr().is_terminal() {
            let tenths = self.done.saturating_mul(10) / self.total.max(1);
            if tenths > self.tenths_told {
                self.tenths_told = tenths;
                self.output.note(&self.in_words(where_we_are));
            }
            return;
        }
        let text = format!("{} {where_we_are}", self.counted());
        let (what, total) = (self.what, self.total);
        let bar = self.bar.get_or_insert_with(|| new_bar(what, total));
        bar.set_position(self.done.min(total));
        bar.set_message(text);
    }

    fn in_words(&self, where_we_are: &str) -> String {
        let percent = self.done.saturating_mul(100) / self.total.max(1);
        let comma = if where_we_are.is_empty() { "" } else { ", " };
        format!("{}: {} %, {}{comma}{where_we_are}", self.what, percent.min(100), self.counted())
    }

    fn counted(&self) -> String {
        match self.unit {
            Unit::Bytes => format!("{} of {}", HumanBytes(self.done), HumanBytes(self.total)),
            Unit::Messages => format!("{} of {} messages", self.done, self.total),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn new_bar(what: &'static str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {percent} % {msg}, {eta} left");
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.with_prefix(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_everything_is_no_more_than_everything() {
        let output = Output { json: false, plain: true, color: false };
        let mut progress = Progress::new(output, "verify", Unit::Bytes, 1000);
        progress.advance(400, "");
        assert_eq!(progress.in_words(""), "verify: 40 %, 400 B of 1000 B");
        // A live journal grows while it is read.
        progress.advance(u64::MAX, "");
        assert!(progress.in_words("").starts_with("verify: 100 %, "));
        let nothing = Progress::new(output, "deliver", Unit::Messages, 0);
        assert_eq!(nothing.in_words("accepted at noon"), "deliver: 0 %, 0 of 0 messages, accepted at noon");
    }
}
