//! How far the delivery log has followed the journal, and the lines that a crash kept from it.
//!
//! The cursor is saved after the lines in front of it are on stable storage, so an event may be logged twice and is
//! never missing. It is one small file beside the log; without it the whole journal is told again.

use super::log::{Line, Range, files};
use restante_envelope::TransactionId;
use restante_journal::{Depth, DirStorage, Reader, Sink, Start};
use restante_ledger::{Accepted, Base, Carried, Fact, Gist, Ledger, Position};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;

/// The file.
const NAME: &str = "cursor";

/// The saved place.
pub(crate) struct Cursor {
    path: PathBuf,
    file: File,
    saved: Option<Position>,
}

impl Cursor {
    /// Opens the cursor of the log in `directory`; one that cannot be read is none.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join(NAME);
        let file = open(&path)?;
        let mut text = [0; 64];
        let n = file.read_at(&mut text, 0)?;
        let saved = text.get(..n).and_then(|text| std::str::from_utf8(text).ok()).and_then(parse);
        Ok(Self { path, file, saved })
    }

    /// Where the log has come to.
    pub(crate) fn saved(&self) -> Option<Position> {
        self.saved
    }

    /// Forgets a place that this journal has not come to, since it was emptied, or restored without the log: what
    /// happens next would stand in front of that place, and a crash would lose lines without a word.
    pub(crate) fn forget_beyond(&mut self, end: Option<Position>) {
        if self.saved > end {
            tracing::warn!("the delivery log is ahead of the journal, which is another one: all of it is told again");
            self.saved = None;
        }
    }

    /// Writes the file anew if somebody removed it, or the directory.
    pub(crate) fn restore(&mut self) -> io::Result<()> {
        if files::stands(&self.file, &self.path) {
            return Ok(());
        }
        self.path.parent().map_or(Ok(()), files::make_directory)?;
        self.file = open(&self.path)?;
        self.file.set_len(0)?;
        self.saved.map_or(Ok(()), |place| self.save(place))
    }

    /// Saves a later place.
    pub(crate) fn save(&mut self, place: Position) -> io::Result<()> {
        // Two fields of 20 digits: the same length each time, so that a write replaces all of the one before.
        let text = format!("{:020} {:020}\n", place.segment, place.offset);
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.saved = Some(place);
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)
}

fn parse(text: &str) -> Option<Position> {
    let (segment, offset) = text.strip_suffix('\n')?.split_once(' ')?;
    Some(Position { segment: segment.parse().ok()?, offset: offset.parse().ok()? })
}

/// The ledger of a start, the place of the last fact that the log tells of, and the last place of all.
#[derive(Default)]
pub(crate) struct Boot {
    pub(crate) ledger: Ledger,
    pub(crate) last: Option<Position>,
    pub(crate) end: Option<Position>,
}

impl Sink for Boot {
    fn fact(&mut self, position: Position, fact: &Fact) {
        if !matches!(fact, Fact::Served(_) | Fact::Watched(_) | Fact::Carried(_)) {
            self.last = Some(position);
        }
        self.end = Some(position);
        Sink::fact(&mut self.ledger, position, fact);
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        self.end = Some(position);
        self.ledger.damaged(position, accepted);
    }
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        self.end = Some(position);
        self.ledger.lost(position, id, recipients);
    }
    fn unnamed(&mut self, segment: u64, transactions: u64, recipients: u64) {
        self.ledger.unnamed(segment, transactions, recipients);
    }
    fn damaged_carried(&mut self, position: Position, carried: &Carried) {
        self.end = Some(position);
        self.ledger.damaged_carried(position, carried);
    }
    fn begins_after(&mut self, base: &Base) {
        self.ledger.begins_after(base);
    }
}

impl Start for Boot {
    fn gist(&mut self, position: Position, gist: &Gist) {
        if !matches!(gist, Gist::Served(_) | Gist::Carried { .. }) {
            self.last = Some(position);
        }
        self.end = Some(position);
        self.ledger.gist(position, gist);
    }
}

/// What the log's thread hears of the past.
pub(crate) enum Told {
    Line(Line),
    /// That was all.
    All,
}

/// Tells the log every fact in `range`. Reads the journal once more, on a thread of its own: neither the start nor what
/// happens meanwhile waits for it. Ends early when nobody listens any more.
pub(crate) fn catch_up(storage: &DirStorage, range: Range, lines: &SyncSender<Told>) {
    let reader = Reader::new(storage.clone());
    let mut teller = Teller { boot: Boot::default(), reader, range, lines, is_heard: true, unread: 0 };
    match restante_journal::replay(storage, Depth::Records, &mut teller) {
        Ok(_) => {
            if teller.unread > 0 {
                tracing::warn!(
                    "{} records of the journal are in the delivery log without addresses: their envelopes are damaged",
                    teller.unread
                );
            }
            let _ended = lines.send(Told::All);
        }
        // The cursor stays: it is tried again.
        Err(error) => tracing::warn!("the delivery log could not be completed from the journal yet: {error}"),
    }
}

struct Teller<'a> {
    boot: Boot,
    reader: Reader<DirStorage>,
    range: Range,
    lines: &'a SyncSender<Told>,
    /// The log still takes lines; else the rest of the journal is passed over.
    is_heard: bool,
    /// Facts about messages whose envelope cannot be read.
    unread: u64,
}

impl Teller<'_> {
    fn is_wanted(&self, position: Position) -> bool {
        self.is_heard && self.range.contains(position)
    }

    fn tell(&mut self, position: Position, lines: Vec<Line>) {
        for line in lines {
            self.is_heard = self.is_heard && self.lines.send(Told::Line(line.at(position))).is_ok();
        }
    }

    /// The message that a fact is about.
    fn about(&mut self, id: TransactionId) -> Option<Accepted> {
        match self.boot.ledger.get(id).map(|transaction| transaction.position) {
            Some(position) => self.read(position, id),
            None => {
                self.unread += 1;
                None
            }
        }
    }

    fn read(&mut self, position: Position, id: TransactionId) -> Option<Accepted> {
        let about = self.reader.accepted(position, id).ok();
        self.unread += u64::from(about.is_none());
        about
    }
}

impl Sink for Teller<'_> {
    fn fact(&mut self, position: Position, fact: &Fact) {
        if self.is_wanted(position) {
            let about = match fact {
                Fact::Attempted(attempted) => self.about(attempted.id),
                Fact::Operated(operated) => self.about(operated.id),
                // What was sent is not in the ledger any more.
                Fact::Replayed(replayed) => self.read(replayed.position, replayed.id),
                Fact::Accepted(_) | Fact::Served(_) | Fact::Watched(_) | Fact::Carried(_) => None,
            };
            self.tell(position, Line::of(fact, about.as_ref()));
        }
        self.boot.fact(position, fact);
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        if self.is_wanted(position) {
            self.tell(position, vec![Line::accepted(accepted)]);
        }
        self.boot.damaged(position, accepted);
    }
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        self.boot.lost(position, id, recipients);
    }
    fn unnamed(&mut self, segment: u64, transactions: u64, recipients: u64) {
        self.boot.unnamed(segment, transactions, recipients);
    }
    fn damaged_carried(&mut self, position: Position, carried: &Carried) {
        self.boot.damaged_carried(position, carried);
    }
    fn begins_after(&mut self, base: &Base) {
        self.boot.begins_after(base);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_a_broken_one_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let place = |segment, offset| Position { segment, offset };
        let mut cursor = Cursor::open(directory.path()).unwrap();
        assert_eq!(cursor.saved(), None);
        cursor.save(place(9, u64::MAX)).unwrap();
        cursor.save(place(10, 4096)).unwrap();
        assert_eq!(Cursor::open(directory.path()).unwrap().saved(), Some(place(10, 4096)));
        for broken in ["", "1 2", "x y\n", "1\n", "99999999999999999999999 1\n"] {
            std::fs::write(directory.path().join(NAME), broken).unwrap();
            assert_eq!(Cursor::open(directory.path()).unwrap().saved(), None, "{broken:?}");
        }
    }
}
