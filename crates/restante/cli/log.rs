//! `restante log`: prints the delivery log, and waits for more if asked to. Reads the files alone; needs no daemon.

mod life;
mod scan;
mod select;
mod tail;

use super::args::{Cli, Log};
use super::exit;
use super::journal;
use super::log_line::{printable, render};
use super::output::{Output, escaped};
use anyhow::Context as _;
use jiff::tz::TimeZone;
use select::Selection;
use serde_json::{Map, Value};
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;
use tail::{Days, Tail};
use tokio::signal::unix::{SignalKind, signal};

/// How often a log that is followed is looked at: quick for an eye, nothing for a disk.
const POLL: Duration = Duration::from_millis(200);

pub(crate) fn run(cli: &Cli, args: &Log, output: Output) -> anyhow::Result<u8> {
    let dir = match journal::data_dir(cli, output) {
        Ok(dir) => dir,
        Err(code) => return Ok(code),
    };
    journal::open(&dir)?;
    let directory = dir.join("log");
    if !directory.exists() && !args.follow {
        output.note(&format!("there is no delivery log in {} yet", directory.display()));
    }
    let stdout = io::stdout();
    let look = Look { json: output.json, to_terminal: stdout.is_terminal(), zone: TimeZone::system() };
    let mut out = BufWriter::new(stdout.lock());
    let note = |text: &str| output.note(&format!("restante: {text}"));
    let printed = match args.around {
        Some(id) => life::print(&directory, id, &look, &mut out, note),
        None if args.follow => follow(&directory, &Selection::new(args), &look, &mut out, note),
        None => print_all(&directory, &Selection::new(args), &look, &mut out, note),
    };
    match printed {
        // Whoever reads the other end of the pipe has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(exit::DONE),
        printed => printed.with_context(|| format!("cannot print the log in {}", directory.display())),
    }
}

fn print_all(
    directory: &Path,
    selection: &Selection,
    look: &Look,
    out: &mut impl Write,
    note: impl Fn(&str),
) -> io::Result<u8> {
    let mut tail = Tail::all(directory, selection.days());
    let mut matched = 0;
    let each = |(text, lines): (Vec<u8>, u64)| {
        out.write_all(&text)?;
        matched += lines;
        Ok(ControlFlow::Continue(()))
    };
    scan::scan(&mut tail, |text| look.selected(text, selection), each, &note)?;
    out.flush()?;
    if matched == 0 && !selection.is_all() {
        note("nothing in the delivery log fits");
        return Ok(exit::NOTHING_MATCHED);
    }
    Ok(exit::DONE)
}

fn follow(
    directory: &Path,
    selection: &Selection,
    look: &Look,
    out: &mut impl Write,
    note: impl Fn(&str),
) -> io::Result<u8> {
    // Whoever follows wants what happens from now on, with the day so far; whoever looks for something, all of it.
    let mut tail = if selection.is_all() { Tail::current(directory)? } else { Tail::all(directory, selection.days()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        loop {
            let pause = match tail.next()? {
                Some(piece) => {
                    let (text, damage) = piece.text();
                    damage.or_else(|| tail.damage()).iter().for_each(|what| note(what));
                    out.write_all(&look.selected(&text, selection).0)?;
                    Duration::ZERO
                }
                None => {
                    out.flush()?;
                    POLL
                }
            };
            tokio::select! {
                biased;
                _ = interrupt.recv() => {
                    out.flush()?;
                    return Ok(exit::INTERRUPTED);
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    })
}

/// How lines are shown.
struct Look {
    json: bool,
    to_terminal: bool,
    zone: TimeZone,
}

impl Look {
    /// The lines of `text` that are wanted, as they are shown, and how many there are.
    fn selected(&self, text: &[u8], selection: &Selection) -> (Vec<u8>, u64) {
        let (mut out, mut lines) = (String::new(), 0);
        for line in selection.candidates(text) {
            let text = String::from_utf8_lossy(line);
            let text = text.trim_end_matches(['\r', '\n']);
            match serde_json::from_str::<Map<String, Value>>(text) {
                Ok(record) if selection.fits(&record) => self.record(text, &record, &mut out),
                // What is no record has no place among JSON objects, and fits nothing.
                Err(_) if !text.is_empty() && !self.json && selection.is_all() => {
                    out.push_str(&printable(text));
                    out.push('\n');
                }
                _ => continue,
            }
            lines += 1;
        }
        (out.into_bytes(), lines)
    }

    fn record(&self, text: &str, record: &Map<String, Value>, out: &mut String) {
        if !self.json {
            out.push_str(&render(record, &self.zone));
        } else if self.to_terminal {
            out.push_str(&escaped(text));
        } else {
            out.push_str(text);
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::Command;
    use super::super::journal::testing::command_line;
    use super::*;

    const ID: &str = "01JD9QK3T2E8V5W6X7Y8Z9ABCD";

    fn selection(line: &str) -> Selection {
        let Command::Log(args) = command_line(Path::new("x"), line).command else { panic!("log") };
        Selection::new(&args)
    }

    fn printed(json: bool, to_terminal: bool, line: &str, lines: &[&[u8]]) -> String {
        let look = Look { json, to_terminal, zone: TimeZone::UTC };
        String::from_utf8(look.selected(&lines.join(&b'\n'), &selection(line)).0).unwrap()
    }

    #[test]
    fn what_is_no_record_is_shown_and_steers_no_terminal() {
        let lines: &[&[u8]] = &[b"\x1b[2Jboo\xff", b"", b"[1]", b"{\"ev\":\"log_gap\",\"why\":\"x\\u001b[2J\"}"];
        assert_eq!(printed(false, true, "log", lines), "?[2Jboo\u{fffd}\n[1]\nlog gap: x?[2J\n");
        assert_eq!(printed(true, true, "log", lines), "{\"ev\":\"log_gap\",\"why\":\"x\\u001b[2J\"}\n");
        // U+009B starts an escape sequence just as well, and JSON does not escape it.
        let line = "{\"ev\":\"x\",\"why\":\"\u{9b}2J\"}";
        assert_eq!(printed(true, true, "log", &[line.as_bytes()]), "{\"ev\":\"x\",\"why\":\"\\u009b2J\"}\n");
        assert_eq!(printed(true, false, "log", &[line.as_bytes()]), format!("{line}\n"));
    }

    #[test]
    fn a_filter_shows_its_transactions_alone() {
        let mine = format!("{{\"ev\":\"sent\",\"id\":\"{ID}\"}}");
        let lines: &[&[u8]] = &[mine.as_bytes(), b"{\"ev\":\"connect\"}", b"junk", b"{\"ev\":\"sent\",\"id\":\"x\"}"];
        assert_eq!(printed(true, false, &format!("log --id {ID}"), lines), format!("{mine}\n"));
        assert_eq!(printed(true, false, "log", lines).lines().count(), 3);
    }

    #[test]
    fn an_empty_log_is_no_failure_and_a_selector_that_matched_nothing_is() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("log")).unwrap();
        let look = Look { json: true, to_terminal: false, zone: TimeZone::UTC };
        let print = |line: &str| {
            print_all(&directory.path().join("log"), &selection(line), &look, &mut Vec::new(), |_| {}).unwrap()
        };
        assert_eq!((print("log"), print("log --text x"), print("log --since 1d")), (0, 4, 4));
    }
}
