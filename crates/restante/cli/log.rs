//! `restante log`: prints the delivery log, and waits for more if asked to. Reads the files alone; needs no daemon.

use super::args::{Cli, Log};
use super::exit;
use super::journal;
use super::log_line::{printable, render};
use super::output::Output;
use crate::serve::log::{CURRENT, files};
use anyhow::Context as _;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Read as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How often a log that is followed is looked at: quick for an eye, nothing for a disk.
const POLL: Duration = Duration::from_millis(200);
/// Read at once; between two of these an interrupt is heard.
const CHUNK_BYTES: usize = 256 << 10;
/// A line of ours has at most some kilobytes. What goes on longer is no log, and is shown in pieces.
const LINE_BYTES_MAX: usize = 1 << 20;

pub(crate) fn run(cli: &Cli, args: &Log, output: Output) -> anyhow::Result<u8> {
    let dir = match journal::data_dir(cli, output) {
        Ok(dir) => dir,
        Err(code) => return Ok(code),
    };
    journal::open(&dir)?;
    let directory = dir.join("log");
    if !directory.exists() && !args.follow {
        output.note(&format!("there is no delivery log in {} yet", directory.display()));
        return Ok(exit::DONE);
    }
    let ids = args.ids.iter().map(ToString::to_string).collect();
    // Whoever follows wants what happens from now on, with the day so far; whoever looks for a message, all of it.
    let from_start = !args.follow || !args.ids.is_empty();
    let mut tail = Tail { directory, file: None, partial: Vec::new(), from_start };
    let stdout = io::stdout();
    let (json, to_terminal, zone) = (output.json, stdout.is_terminal(), TimeZone::system());
    let mut printer = Printer { out: BufWriter::new(stdout.lock()), ids, json, to_terminal, zone };
    let printed = if args.follow { follow(&mut tail, &mut printer) } else { print_all(&mut tail, &mut printer) };
    match printed {
        // Whoever reads the other end of the pipe has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(exit::DONE),
        printed => printed.with_context(|| format!("cannot print the log in {}", tail.directory.display())),
    }
}

fn print_all<W: Write>(tail: &mut Tail, printer: &mut Printer<W>) -> io::Result<u8> {
    while tail.step(|line| printer.line(line))? {}
    tail.finish(|line| printer.line(line))?;
    printer.out.flush()?;
    Ok(exit::DONE)
}

fn follow<W: Write>(tail: &mut Tail, printer: &mut Printer<W>) -> io::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        loop {
            let pause = if tail.step(|line| printer.line(line))? {
                Duration::ZERO
            } else {
                printer.out.flush()?;
                POLL
            };
            tokio::select! {
                biased;
                _ = interrupt.recv() => {
                    printer.out.flush()?;
                    return Ok(exit::INTERRUPTED);
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    })
}

/// The files of the log one after the other, whatever they are called by now.
struct Tail {
    directory: PathBuf,
    file: Option<(File, u64)>,
    /// The beginning of a line whose end is not written yet.
    partial: Vec<u8>,
    /// Whether to begin with the oldest file; else with the current one.
    from_start: bool,
}

impl Tail {
    /// Reads on and hands over every whole line. False if there is no more at the moment.
    fn step(&mut self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<bool> {
        if self.file.is_none() {
            self.file = self.first()?;
        }
        if self.read_chunk(&mut each)? {
            return Ok(true);
        }
        let Some((_, inode)) = &self.file else { return Ok(false) };
        let Some(next) = self.after(*inode)? else { return Ok(false) };
        // The next file exists: the one we have gets no more, but may have got some since we looked.
        if self.read_chunk(&mut each)? {
            return Ok(true);
        }
        self.finish(each)?;
        self.file = Some(next);
        Ok(true)
    }

    /// Hands over a last line without an end.
    fn finish(&mut self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let rest = std::mem::take(&mut self.partial);
        if rest.is_empty() { Ok(()) } else { each(&rest) }
    }

    fn read_chunk(&mut self, each: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<bool> {
        let Some((file, _)) = &mut self.file else { return Ok(false) };
        let had = self.partial.len();
        let n = file.take(CHUNK_BYTES as u64).read_to_end(&mut self.partial)?;
        let Some(end) = self.partial.iter().skip(had).rposition(|b| *b == b'\n').map(|at| had + at) else {
            if self.partial.len() > LINE_BYTES_MAX {
                each(&std::mem::take(&mut self.partial))?;
            }
            return Ok(n > 0);
        };
        let rest = self.partial.split_off(end + 1);
        let mut whole = std::mem::replace(&mut self.partial, rest);
        whole.truncate(end);
        whole.split(|b| *b == b'\n').try_for_each(each)?;
        Ok(true)
    }

    fn listed(&self) -> io::Result<Vec<PathBuf>> {
        match files(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed,
        }
    }

    fn first(&self) -> io::Result<Option<(File, u64)>> {
        let listed = self.listed()?;
        let wanted = |path: &&PathBuf| self.from_start || path.ends_with(CURRENT);
        listed.iter().filter(wanted).find_map(|path| open(path).transpose()).transpose()
    }

    /// The file that came after the one with this inode; after one that is gone, the current one.
    fn after(&self, inode: u64) -> io::Result<Option<(File, u64)>> {
        let inode_of = |path: &PathBuf| path.metadata().map(|metadata| metadata.ino()).ok();
        let listed: Vec<_> = self.listed()?.into_iter().filter_map(|path| Some((inode_of(&path)?, path))).collect();
        let next = match listed.iter().position(|(other, _)| *other == inode) {
            Some(at) => listed.get(at + 1),
            None => listed.last(),
        };
        let Some((expected, path)) = next else { return Ok(None) };
        // Another one, if the name has gone to another file in between: then the next look finds both.
        Ok(open(path)?.filter(|(_, opened)| opened == expected))
    }
}

/// None if it was renamed or removed since it was listed; the next look finds it.
fn open(path: &Path) -> io::Result<Option<(File, u64)>> {
    match File::open(path) {
        Ok(file) => {
            let inode = file.metadata()?.ino();
            Ok(Some((file, inode)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

struct Printer<W: Write> {
    out: W,
    /// None: all.
    ids: BTreeSet<String>,
    json: bool,
    to_terminal: bool,
    zone: TimeZone,
}

impl<W: Write> Printer<W> {
    /// One line of the log. What is no record has no place among JSON objects.
    fn line(&mut self, bytes: &[u8]) -> io::Result<()> {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_end_matches(['\r', '\n']);
        let record: Option<Map<String, Value>> = serde_json::from_str(text).ok();
        let Some(record) = record else {
            if text.is_empty() || self.json || !self.ids.is_empty() {
                return Ok(());
            }
            return writeln!(self.out, "{}", printable(text));
        };
        let is_wanted = |id: &str| self.ids.contains(id);
        if !self.ids.is_empty() && !record.get("id").and_then(Value::as_str).is_some_and(is_wanted) {
            return Ok(());
        }
        if self.json {
            // As it is; only, what JSON does not escape and a terminal would obey stays away from one.
            if self.to_terminal { writeln!(self.out, "{}", printable(text)) } else { writeln!(self.out, "{text}") }
        } else {
            writeln!(self.out, "{}", render(&record, &self.zone))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01JD9QK3T2E8V5W6X7Y8Z9ABCD";

    fn tail(directory: &Path, from_start: bool) -> Tail {
        Tail { directory: directory.to_owned(), file: None, partial: Vec::new(), from_start }
    }

    fn append(directory: &Path, name: &str, text: &str) {
        let file = File::options().create(true).append(true).open(directory.join(name)).unwrap();
        { file }.write_all(text.as_bytes()).unwrap();
    }

    /// What the tail gives until there is no more.
    fn drain(tail: &mut Tail) -> Vec<String> {
        let mut lines = Vec::new();
        while tail
            .step(|line| {
                lines.push(String::from_utf8_lossy(line).into_owned());
                Ok(())
            })
            .unwrap()
        {}
        lines
    }

    #[test]
    fn the_oldest_file_comes_first() {
        let directory = tempfile::tempdir().unwrap();
        append(directory.path(), "delivery.jsonl", "4\n5");
        append(directory.path(), "delivery-2026-11-22-001.jsonl", "2\n");
        append(directory.path(), "delivery-2026-11-22-002.jsonl", "3\n");
        append(directory.path(), "delivery-2026-11-21-001.jsonl", "1\n");
        append(directory.path(), "other.txt", "x\n");
        let mut all = tail(directory.path(), true);
        assert_eq!(drain(&mut all), ["1", "2", "3", "4"]);
        let mut last = Vec::new();
        all.finish(|line| {
            last.extend_from_slice(line);
            Ok(())
        })
        .unwrap();
        assert_eq!(last, b"5");
        assert_eq!(drain(&mut tail(directory.path(), false)), ["4"]);
        assert_eq!(drain(&mut tail(&directory.path().join("nowhere"), true)), [""; 0]);
    }

    #[test]
    fn a_rotation_loses_no_line_and_shows_none_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let mut tail = tail(path, false);
        assert_eq!(drain(&mut tail), [""; 0]);
        append(path, CURRENT, "1\n2\nha");
        assert_eq!(drain(&mut tail), ["1", "2"]);
        append(path, CURRENT, "lf\n");
        // Two rotations between two looks, and a last line in the old file.
        append(path, CURRENT, "last\n");
        std::fs::rename(path.join(CURRENT), path.join("delivery-2026-11-21-001.jsonl")).unwrap();
        append(path, CURRENT, "3\n");
        std::fs::rename(path.join(CURRENT), path.join("delivery-2026-11-22-001.jsonl")).unwrap();
        append(path, CURRENT, "4\n");
        assert_eq!(drain(&mut tail), ["half", "last", "3", "4"]);
        append(path, CURRENT, "5\n");
        assert_eq!(drain(&mut tail), ["5"]);
    }

    #[test]
    fn a_line_without_end_does_not_eat_the_memory() {
        let directory = tempfile::tempdir().unwrap();
        append(directory.path(), CURRENT, &"x".repeat(3 * LINE_BYTES_MAX));
        let mut tail = tail(directory.path(), true);
        assert!(drain(&mut tail).len() >= 2);
        assert!(tail.partial.len() <= LINE_BYTES_MAX + CHUNK_BYTES);
    }

    fn printed(json: bool, to_terminal: bool, ids: &[&str], lines: &[&[u8]]) -> String {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let mut printer = Printer { out: Vec::new(), ids, json, to_terminal, zone: TimeZone::UTC };
        for line in lines {
            printer.line(line).unwrap();
        }
        String::from_utf8(printer.out).unwrap()
    }

    #[test]
    fn what_is_no_record_is_shown_and_steers_no_terminal() {
        let lines: &[&[u8]] = &[b"\x1b[2Jboo\xff", b"", b"[1]", b"{\"ev\":\"log_gap\",\"why\":\"x\\u001b[2J\"}"];
        assert_eq!(printed(false, true, &[], lines), "?[2Jboo\u{fffd}\n[1]\nlog gap: x?[2J\n");
        assert_eq!(printed(true, true, &[], lines), "{\"ev\":\"log_gap\",\"why\":\"x\\u001b[2J\"}\n");
        // U+009B starts an escape sequence just as well, and JSON does not escape it.
        let line = "{\"ev\":\"x\",\"why\":\"\u{9b}2J\"}";
        assert_eq!(printed(true, true, &[], &[line.as_bytes()]), "{\"ev\":\"x\",\"why\":\"?2J\"}\n");
        assert_eq!(printed(true, false, &[], &[line.as_bytes()]), format!("{line}\n"));
    }

    #[test]
    fn a_filter_shows_its_transactions_alone() {
        let mine = format!("{{\"ev\":\"sent\",\"id\":\"{ID}\"}}");
        let lines: &[&[u8]] = &[mine.as_bytes(), b"{\"ev\":\"connect\"}", b"junk", b"{\"ev\":\"sent\",\"id\":\"x\"}"];
        assert_eq!(printed(true, false, &[ID], lines), format!("{mine}\n"));
        assert_eq!(printed(true, false, &[], lines).lines().count(), 3);
    }
}
