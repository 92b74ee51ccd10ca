//! How far a long command is: a bar on a terminal, a line for every tenth or each minute elsewhere, nothing at all if it is
//! quick. With the time of the mail it has come to, where it goes along that.
//!
//! Speaks on standard error only; what it counts is the caller's.

use super::log_line::printable;
use super::output::Output;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::tz::TimeZone;
use restante_envelope::Timestamp;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

/// What ends sooner needs no bar.
const SILENT: Duration = Duration::from_secs(2);
/// Off a terminal nobody waits longer for a word, however long a tenth takes.
const WORD_EVERY: Duration = Duration::from_secs(60);

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
    told: Instant,
}

impl Progress {
    pub(crate) fn new(output: Output, what: &'static str, unit: Unit, total: u64) -> Self {
        let now = Instant::now();
        Self { output, what, unit, total, done: 0, started: now, bar: None, tenths_told: 0, told: now }
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
            if tenths > self.tenths_told || self.told.elapsed() >= WORD_EVERY {
                (self.tenths_told, self.told) = (tenths, Instant::now());
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

/// Where on the time axis of the mail a command is.
pub(crate) struct Axis {
    doing: &'static str,
    until: Option<Timestamp>,
    form: &'static str,
    zone: TimeZone,
}

impl Axis {
    /// From the first to the last, as far as they are known.
    pub(crate) fn new(doing: &'static str, ends: [Option<Timestamp>; 2]) -> Self {
        Self::in_zone(doing, ends, TimeZone::system())
    }

    fn in_zone(doing: &'static str, ends: [Option<Timestamp>; 2], zone: TimeZone) -> Self {
        let days = ends.map(|at| at.and_then(|at| zoned(at, &zone)).map(|zoned| zoned.date()));
        let is_one_day = days[0].is_some() && days[0] == days[1];
        let form = if is_one_day { "%H:%M" } else { "%Y-%m-%d %H:%M" };
        Self { doing, until: ends[1], form, zone }
    }

    /// `replaying 03:40 of 07:45`
    pub(crate) fn at(&self, at: Timestamp) -> String {
        let text = |at| zoned(at, &self.zone).map(|zoned| zoned.strftime(self.form).to_string()).unwrap_or_default();
        match self.until {
            Some(until) => format!("{} {} of {}", self.doing, text(at), text(until)),
            None => format!("{} {}", self.doing, text(at)),
        }
    }
}

fn zoned(at: Timestamp, zone: &TimeZone) -> Option<jiff::Zoned> {
    let at = jiff::Timestamp::from_millisecond(i64::try_from(at.unix_ms()).ok()?).ok()?;
    Some(at.to_zoned(zone.clone()))
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
    fn who_waits_is_told_which_mail_it_has_come_to() {
        let at = |minutes: u64| Timestamp::from_unix_ms((20_000 * 24 * 60 + minutes) * 60_000);
        let axis = |ends| Axis::in_zone("replaying", ends, TimeZone::UTC);
        assert_eq!(axis([Some(at(0)), Some(at(465))]).at(at(220)), "replaying 03:40 of 07:45");
        let two_days = axis([Some(at(0)), Some(at(24 * 60 + 465))]);
        assert_eq!(two_days.at(at(220)), "replaying 2024-10-04 03:40 of 2024-10-05 07:45");
        assert_eq!(axis([None, None]).at(at(220)), "replaying 2024-10-04 03:40");
    }

    #[test]
    fn a_tenth_that_takes_long_is_no_silence() {
        let output = Output { json: false, plain: true, color: false };
        let mut progress = Progress::new(output, "verify", Unit::Bytes, 1000);
        progress.started = Instant::now().checked_sub(WORD_EVERY).unwrap();
        progress.told = progress.started;
        progress.advance(1, "");
        assert!(progress.told > progress.started && progress.tenths_told == 0);
    }

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
