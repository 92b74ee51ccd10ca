//! The files of the log one after the other, whatever they are called by now: piece by piece, each line once.
//!
//! A file that was put aside keeps its place by its key, plain or compressed; the current one becomes the first file
//! behind those that were put aside before it was opened. Parses no line.

use crate::serve::log::CURRENT;
use crate::serve::log::compress::{FRAME_TEXT_BYTES_MAX, frame_len, frame_text};
use crate::serve::log::files::{Aside, Key, aside};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use zstd::zstd_safe::get_frame_content_size;

/// Read at once; between two of these an interrupt is heard.
const PIECE_BYTES: u64 = 1 << 20;
/// A line of ours has at most some kilobytes. What goes on longer is no log, and is shown in pieces.
pub(super) const LINE_BYTES_MAX: usize = 1 << 20;
/// A compressed file that is larger is read in one go, by one thread: it is none of ours.
const COMPRESSED_BYTES_MAX: u64 = 256 << 20;
/// The first bytes of a frame; RFC 8878, section 3.1.1.
const FRAME_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// Which files can have what is looked for. Days as RFC 3339 writes them.
#[derive(Debug, Clone, Default)]
pub(super) struct Days {
    pub(super) since: Option<String>,
    pub(super) until: Option<String>,
}

impl Days {
    /// A line may stand in the file of the next day: it waited for the disk at midnight. One that was told later still is
    /// named by the file.
    fn may_have(&self, key: &Key, file: &Aside) -> bool {
        let day_before = || {
            let day: Option<jiff::civil::Date> = key.day.parse().ok();
            day.and_then(|day| day.yesterday().ok()).map(|day| day.to_string()).unwrap_or_default()
        };
        // Nobody has looked into a plain one.
        let is_compressed = file.compressed.is_some() && file.plain.is_none();
        let oldest = || file.since.clone().unwrap_or_else(day_before);
        self.since.as_ref().is_none_or(|since| key.day >= *since || key.day.is_empty())
            && self.until.as_ref().is_none_or(|until| !is_compressed || oldest() <= *until)
    }
}

/// Some whole lines.
pub(super) enum Piece {
    Text(Vec<u8>),
    /// Compressed; from this file.
    Frame(Vec<u8>, PathBuf),
}

impl Piece {
    /// The lines, and what is wrong with them.
    pub(super) fn text(self) -> (Vec<u8>, Option<String>) {
        match self {
            Self::Text(text) => (text, None),
            Self::Frame(frame, path) => {
                let (text, damage) = frame_text(&frame);
                (text, damage.map(|why| damaged(&path, &why)))
            }
        }
    }
}

fn damaged(path: &Path, why: &io::Error) -> String {
    format!("{} is damaged, lines are missing here: {why}", path.display())
}

pub(super) struct Tail {
    directory: PathBuf,
    days: Days,
    /// Done with this one, and all before it.
    done: Option<Key>,
    open: Option<Open>,
    /// What is wrong with a file that is read in one go.
    damage: Option<String>,
}

struct Open {
    /// None: the current one.
    key: Option<Key>,
    source: Source,
    /// The beginning of a line whose end is not read yet.
    partial: Vec<u8>,
}

enum Source {
    Plain(File),
    Frames { path: PathBuf, bytes: Vec<u8>, at: usize },
    Stream { path: PathBuf, text: Box<dyn Read + Send> },
}

impl Tail {
    /// From the oldest file that can have what is looked for.
    pub(super) fn all(directory: &Path, days: Days) -> Self {
        Self { directory: directory.to_owned(), days, done: None, open: None, damage: None }
    }

    /// From the current file.
    pub(super) fn current(directory: &Path) -> io::Result<Self> {
        let done = aside(directory)?.into_keys().next_back();
        Ok(Self { done, ..Self::all(directory, Days::default()) })
    }

    /// The next lines; None if there are no more at the moment.
    pub(super) fn next(&mut self) -> io::Result<Option<Piece>> {
        loop {
            if self.open.is_none() && !self.open_next()? {
                return Ok(None);
            }
            let Some(open) = &mut self.open else { return Ok(None) };
            if let Some(piece) = open.read(&mut self.damage)? {
                return Ok(Some(piece));
            }
            if let Some(key) = open.key.take() {
                self.done = Some(key);
            } else {
                let Some(key) = first_behind(&aside(&self.directory)?, self.done.as_ref()) else { return Ok(None) };
                // It was put aside: it gets no more, but may have got some since we looked.
                if let Some(piece) = open.read(&mut self.damage)? {
                    return Ok(Some(piece));
                }
                // Unless it was removed already, and this is another.
                if follows(self.done.as_ref(), &key) {
                    self.done = Some(key);
                }
            }
            let rest = self.finish();
            self.open = None;
            if rest.is_some() {
                return Ok(rest);
            }
        }
    }

    /// A last line without an end.
    pub(super) fn finish(&mut self) -> Option<Piece> {
        let rest = std::mem::take(&mut self.open.as_mut()?.partial);
        (!rest.is_empty()).then_some(Piece::Text(rest))
    }

    /// What was wrong with a file since this was asked last.
    pub(super) fn damage(&mut self) -> Option<String> {
        self.damage.take()
    }

    fn open_next(&mut self) -> io::Result<bool> {
        'listed: loop {
            let listed = aside(&self.directory)?;
            for (key, file) in listed.range((after(self.done.as_ref()), Bound::Unbounded)) {
                if self.days.may_have(key, file) {
                    // Gone: compressed in between, or removed. The next look tells which.
                    let Some(source) = open_aside(file)? else { continue 'listed };
                    self.open = Some(Open { key: Some(key.clone()), source, partial: Vec::new() });
                    return Ok(true);
                }
                self.done = Some(key.clone());
            }
            let Some(file) = open_if_there(&self.directory.join(CURRENT))? else {
                // Put aside between the two looks: then the next one is made with the next line.
                return Ok(false);
            };
            if first_behind(&aside(&self.directory)?, self.done.as_ref()).is_none() {
                self.open = Some(Open { key: None, source: Source::Plain(file), partial: Vec::new() });
                return Ok(true);
            }
        }
    }
}

fn after(done: Option<&Key>) -> Bound<&Key> {
    done.map_or(Bound::Unbounded, Bound::Excluded)
}

fn first_behind(listed: &BTreeMap<Key, Aside>, done: Option<&Key>) -> Option<Key> {
    listed.range((after(done), Bound::Unbounded)).next().map(|(key, _)| key.clone())
}

/// Whether nothing can have been put aside between the two.
fn follows(done: Option<&Key>, key: &Key) -> bool {
    key.number == done.filter(|done| done.day == key.day).map_or(1, |done| done.number.saturating_add(1))
}

fn open_aside(file: &Aside) -> io::Result<Option<Source>> {
    if let Some(plain) = &file.plain
        && let Some(file) = open_if_there(plain)?
    {
        return Ok(Some(Source::Plain(file)));
    }
    let Some(path) = &file.compressed else { return Ok(None) };
    let Some(mut file) = open_if_there(path)? else { return Ok(None) };
    let path = path.clone();
    if file.metadata()?.len() > COMPRESSED_BYTES_MAX {
        return Ok(Some(Source::Stream { path, text: Box::new(zstd::stream::read::Decoder::new(file)?) }));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Some(Source::Frames { path, bytes, at: 0 }))
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Open {
    fn read(&mut self, damage: &mut Option<String>) -> io::Result<Option<Piece>> {
        if let Source::Frames { path, bytes, at } = &mut self.source {
            let rest = bytes.get(*at..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(None);
            }
            let whole = frame_len(rest);
            let text_bytes = get_frame_content_size(rest).ok().flatten();
            if whole.is_none() || text_bytes.is_some_and(|n| n <= FRAME_TEXT_BYTES_MAX as u64) {
                let frame = rest.get(..whole.unwrap_or_else(|| next_frame(rest))).unwrap_or(rest);
                *at += frame.len();
                return Ok(Some(Piece::Frame(frame.to_vec(), path.clone())));
            }
            // Made by another hand, in one large frame.
            let text = Box::new(zstd::stream::read::Decoder::new(Cursor::new(bytes.split_off(*at)))?);
            self.source = Source::Stream { path: std::mem::take(path), text };
        }
        self.read_text(damage)
    }

    fn read_text(&mut self, damage: &mut Option<String>) -> io::Result<Option<Piece>> {
        loop {
            let had = self.partial.len();
            let read = match &mut self.source {
                Source::Plain(file) => file.take(PIECE_BYTES).read_to_end(&mut self.partial)?,
                Source::Stream { path, text } => {
                    if let Err(error) = text.take(PIECE_BYTES).read_to_end(&mut self.partial) {
                        *damage = Some(damaged(path, &error));
                        self.source = Source::Frames { path: PathBuf::new(), bytes: Vec::new(), at: 0 };
                    }
                    self.partial.len() - had
                }
                Source::Frames { .. } => 0,
            };
            let new = self.partial.get(had..).unwrap_or_default();
            if let Some(end) = memchr::memrchr(b'\n', new).map(|at| had + at + 1) {
                let rest = self.partial.split_off(end);
                return Ok(Some(Piece::Text(std::mem::replace(&mut self.partial, rest))));
            }
            if self.partial.len() > LINE_BYTES_MAX {
                return Ok(Some(Piece::Text(std::mem::take(&mut self.partial))));
            }
            if read == 0 {
                return Ok(None);
            }
        }
    }
}

/// Where the next frame begins behind one that is damaged.
fn next_frame(rest: &[u8]) -> usize {
    let behind = rest.get(FRAME_MAGIC.len()..).unwrap_or_default();
    memchr::memmem::find(behind, &FRAME_MAGIC).map_or(rest.len(), |at| at + FRAME_MAGIC.len())
}

#[cfg(test)]
mod tests;
