//! How far the delivery log has followed the journal, and the lines that a crash kept from it.
//!
//! The cursor is saved after the lines in front of it are on stable storage, so an event may be logged twice and is
//! never missing. It is one small file beside the log; without it the whole journal is told again.

use super::log::{Line, Patient};
use restante_envelope::TransactionId;
use restante_journal::{Depth, DirStorage, Reader, Sink};
use restante_ledger::{Accepted, Fact, Ledger, Position};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The file.
const NAME: &str = "cursor";

/// The saved place.
pub(crate) struct Cursor {
    file: File,
    saved: Option<Position>,
}

impl Cursor {
    /// Opens the cursor of the log in `directory`; one that cannot be read is none.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join(NAME);
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut text = [0; 64];
        let n = file.read_at(&mut text, 0)?;
        let saved = text.get(..n).and_then(|text| std::str::from_utf8(text).ok()).and_then(parse);
        Ok(Self { file, saved })
    }

    /// Where the log has come to.
    pub(crate) fn saved(&self) -> Option<Position> {
        self.saved
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
        if !matches!(fact, Fact::Served(_)) {
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
    fn unnamed(&mut self, transactions: u64, recipients: u64) {
        self.ledger.unnamed(transactions, recipients);
    }
}

/// Tells the log every fact behind `after` and in front of segment `until`, which the running daemon tells itself.
/// Reads the journal a second time, on a thread of its own: the start does not wait for the log.
pub(crate) fn catch_up(storage: &DirStorage, after: Option<Position>, until: u64, lines: &Patient) {
    let mut teller = Teller { boot: Boot::default(), reader: Reader::new(storage.clone()), after, until, lines };
    match restante_journal::replay(storage, Depth::Records, &mut teller) {
        Ok(_) => lines.caught_up(),
        // The cursor stays: the next start tries again.
        Err(error) => tracing::warn!("the delivery log could not be completed from the journal: {error}"),
    }
}

struct Teller<'a> {
    boot: Boot,
    reader: Reader<DirStorage>,
    after: Option<Position>,
    until: u64,
    lines: &'a Patient,
}

impl Teller<'_> {
    /// The message that a fact is about.
    fn about(&mut self, id: TransactionId) -> Option<Accepted> {
        let position = self.boot.ledger.get(id)?.position;
        self.reader.accepted(position, id).ok()
    }
}

impl Sink for Teller<'_> {
    fn fact(&mut self, position: Position, fact: &Fact) {
        if position.segment >= self.until {
            return;
        }
        if self.after.is_none_or(|after| position > after) {
            let lines = match fact {
                Fact::Accepted(accepted) => vec![Line::accepted(accepted)],
                Fact::Attempted(attempted) => {
                    self.about(attempted.id).map(|about| Line::attempted(attempted, &about)).unwrap_or_default()
                }
                Fact::Operated(operated) => {
                    self.about(operated.id).map(|about| Line::operated(operated, &about)).unwrap_or_default()
                }
                Fact::Served(_) => Vec::new(),
            };
            for line in lines {
                self.lines.write(line.at(position));
            }
        }
        self.boot.fact(position, fact);
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        self.boot.damaged(position, accepted);
    }
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        self.boot.lost(position, id, recipients);
    }
    fn unnamed(&mut self, transactions: u64, recipients: u64) {
        self.boot.unnamed(transactions, recipients);
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
