//! The database: opened and checked, fed with facts, its cursor moved with them.

use crate::error::IndexError;
use crate::fold::Fold;
use crate::summary::Summary;
use restante_envelope::TransactionId;
use restante_ledger::{Accepted, Carried, Fact, Position};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, TransactionBehavior, params};
use std::path::Path;
use std::time::Duration;

/// Changed with every change of the tables, or of what stands in them: an index of another version is made anew.
const VERSION: i64 = 5;
/// `RSTI`, so that nobody's other database is taken for ours.
const APPLICATION: i64 = 0x5253_5449;
/// A commit, or a page that is read, is over in less; longer, and the reader had better read the journal.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);
/// Pages in memory, in KiB: the upper levels of the trees of a million messages, and what one transaction touches. The rest is in the
/// memory of the system, a read away, and not in ours until the end of days.
const CACHE_KIB: u32 = 512;
/// The same of an index that is made for one command.
const TEMPORARY_CACHE_KIB: u32 = 64 << 10;

const SCHEMA: &str = "
    CREATE TABLE meta (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        journal BLOB NOT NULL, damage TEXT NOT NULL, complete INTEGER NOT NULL,
        synced INTEGER NOT NULL, boot TEXT NOT NULL, keeper TEXT NOT NULL,
        segment INTEGER, offset INTEGER
    ) STRICT;
    CREATE TABLE transactions (
        n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,
        segment INTEGER NOT NULL, offset INTEGER NOT NULL,
        accepted_at INTEGER NOT NULL, size INTEGER NOT NULL,
        sender TEXT, client TEXT, helo TEXT, tls TEXT, hold TEXT,
        subject TEXT, header_from TEXT, message_id TEXT,
        pending INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX unsettled ON transactions (id) WHERE pending > 0;
    CREATE TABLE recipients (
        n INTEGER NOT NULL, nth INTEGER NOT NULL,
        addr TEXT, domain TEXT, route TEXT,
        state TEXT NOT NULL, next_at INTEGER, last_reply TEXT, reason TEXT, attempts INTEGER NOT NULL, changed_at INTEGER NOT NULL,
        PRIMARY KEY (n, nth)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX given_up ON recipients (n) WHERE state IN ('bounced', 'removed');
";

/// Which journal an index is of, and what was known to be damaged in it: where either differs, the facts differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The journal's 128 bits.
    pub journal: u128,
    /// Names the damage found at the last start; any text.
    pub damage: String,
}

/// What the index remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Every message.
    All,
    /// Every message that is not wholly sent, as the ledger does.
    Unsent,
}

/// Something that a replay of the journal tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An intact record.
    Fact(Fact),
    /// A message whose content is damaged.
    Damaged(Accepted),
    /// A message written again, whose content is wrong where it stands now.
    DamagedCarried(Carried),
    /// A message of which only the name and the number of recipients are known.
    Lost {
        /// Its name.
        id: TransactionId,
        /// How many it was for.
        recipients: u16,
    },
}

/// An event at its place in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub position: Position,
    /// What.
    pub event: Event,
    /// What the headers of an accepted message say, where they could be read.
    pub summary: Option<Summary>,
}

/// An index, open.
#[derive(Debug)]
pub struct Index {
    pub(crate) connection: Connection,
    keep: Keep,
}

impl Index {
    /// Opens the index at `path` for writing; makes it if there is none. Checks the structure of all of it. `boot` names the
    /// time since the machine was started.
    ///
    /// No sync while it is in use: they would make the journal's wait. A process that is killed harms nothing. A power cut
    /// may mix old pages with new ones, so an index of another `boot` that was not closed is of no use. No write-ahead log:
    /// its shared memory is a mapped file, and whoever truncates that kills the daemon by a SIGBUS.
    pub fn open(path: &Path, origin: &Origin, boot: &str) -> Result<Self, IndexError> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        if pages > 0 {
            check(&connection)?;
        }
        connection.execute_batch(&format!(
            "PRAGMA journal_mode = TRUNCATE; PRAGMA cache_size = -{CACHE_KIB}; PRAGMA temp_store = MEMORY;"
        ))?;
        let mut index = Self { connection, keep: Keep::All };
        if pages == 0 {
            index.create(origin)?;
        } else if index.origin()? != *origin {
            return Err(IndexError::Unusable("it is of another journal, or of another state of its damage".into()));
        } else {
            index.require_survival(boot)?;
        }
        index.connection.execute_batch("PRAGMA synchronous = FULL")?;
        index.connection.execute("UPDATE meta SET synced = 0, boot = ? WHERE synced OR boot <> ?1", params![boot])?;
        index.connection.execute_batch("PRAGMA synchronous = OFF")?;
        Ok(index)
    }

    /// Puts all of it on stable storage: the next boot may use it.
    pub fn close(self) -> Result<(), IndexError> {
        self.connection.execute_batch("PRAGMA synchronous = FULL; UPDATE meta SET synced = 1")?;
        Ok(self.connection.close().map_err(|(_, error)| error)?)
    }

    /// Notes who has opened it, and so checked it, for [`Self::open_read_only`]. `keeper` names a process as long as the
    /// machine runs.
    pub fn set_keeper(&mut self, keeper: &str) -> Result<(), IndexError> {
        self.connection.execute("UPDATE meta SET keeper = ?1 WHERE keeper <> ?1", params![keeper])?;
        Ok(())
    }

    fn require_survival(&self, boot: &str) -> Result<(), IndexError> {
        let survived = "SELECT synced OR (boot = ? AND boot <> '') FROM meta";
        if self.connection.query_row(survived, params![boot], |row| row.get(0))? {
            return Ok(());
        }
        Err(IndexError::Unusable("the machine went down while it was in use".into()))
    }

    /// Opens the index at `path`, which must be there, for [`Self::select`] alone, if it survived as for [`Self::open`]. Its
    /// structure is checked, unless `is_running` says of the keeper that has it open that it watches over it.
    pub fn open_read_only(path: &Path, boot: &str, is_running: impl FnOnce(&str) -> bool) -> Result<Self, IndexError> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.execute_batch(&format!("PRAGMA query_only = ON; PRAGMA cache_size = -{CACHE_KIB};"))?;
        check_version(&connection)?;
        let index = Self { connection, keep: Keep::All };
        let claim = "SELECT keeper FROM meta WHERE NOT synced AND keeper <> ''";
        let keeper: Option<String> = index.connection.query_row(claim, [], |row| row.get(0)).optional()?;
        if !keeper.is_some_and(|keeper| is_running(&keeper)) {
            check(&index.connection)?;
        }
        index.require_survival(boot)?;
        Ok(index)
    }

    /// An index that goes with the value: in memory as far as that is little, else in a file without a name.
    pub fn temporary(keep: Keep) -> Result<Self, IndexError> {
        let connection = Connection::open("")?;
        connection.execute_batch(&format!(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{TEMPORARY_CACHE_KIB};"
        ))?;
        let mut index = Self { connection, keep };
        index.create(&Origin { journal: 0, damage: String::new() })?;
        Ok(index)
    }

    fn create(&mut self, origin: &Origin) -> Result<(), IndexError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(SCHEMA)?;
        transaction.execute(
            "INSERT INTO meta (one, journal, damage, complete, synced, boot, keeper) VALUES (1, ?, ?, 0, 0, '', '')",
            params![origin.journal.to_be_bytes(), origin.damage],
        )?;
        transaction
            .execute_batch(&format!("PRAGMA user_version = {VERSION}; PRAGMA application_id = {APPLICATION};"))?;
        Ok(transaction.commit()?)
    }

    /// What the index was made from.
    pub fn origin(&self) -> Result<Origin, IndexError> {
        let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, [u8; 16]>(0)?, row.get(1)?));
        let (journal, damage) = self.connection.query_row("SELECT journal, damage FROM meta", [], read)?;
        Ok(Origin { journal: u128::from_be_bytes(journal), damage })
    }

    /// The place of the last event applied; all in front of it have been.
    pub fn cursor(&self) -> Result<Option<Position>, IndexError> {
        read_cursor(&self.connection)
    }

    /// Whether it has once been at the end of the journal: before that it is being made.
    pub fn is_complete(&self) -> Result<bool, IndexError> {
        Ok(self.connection.query_row("SELECT complete FROM meta", [], |row| row.get(0))?)
    }

    /// Forgets messages whose records stand in the segments before `first`, which have left the journal.
    pub fn forget_before(&mut self, first: u64) -> Result<(), IndexError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let first = first.cast_signed();
        transaction.execute(
            "DELETE FROM recipients WHERE n IN (SELECT n FROM transactions WHERE segment < ?)",
            params![first],
        )?;
        transaction.execute("DELETE FROM transactions WHERE segment < ?", params![first])?;
        Ok(transaction.commit()?)
    }

    /// Notes that the end of the journal is reached.
    pub fn set_complete(&mut self) -> Result<(), IndexError> {
        self.connection.execute("UPDATE meta SET complete = 1 WHERE complete = 0", [])?;
        Ok(())
    }

    /// Applies events in the order of the journal, and moves the cursor: all of them, or none. What stands at or in front
    /// of the cursor has been applied and is left out.
    pub fn apply(&mut self, batch: &[Change]) -> Result<(), IndexError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let before = read_cursor(&transaction)?;
        let mut cursor = before;
        let mut fold = Fold::new(&transaction, self.keep)?;
        for change in batch {
            if cursor.is_none_or(|cursor| change.position > cursor) {
                fold.apply(change)?;
                cursor = Some(change.position);
            }
        }
        fold.store()?;
        if let Some(cursor) = cursor.filter(|_| cursor != before) {
            transaction
                .prepare_cached("UPDATE meta SET segment = ?, offset = ?")?
                .execute(params![cursor.segment.cast_signed(), cursor.offset.cast_signed()])?;
        }
        Ok(transaction.commit()?)
    }
}

/// Only the structure: an index over everything in it would take as long as to make it anew.
fn check(connection: &Connection) -> Result<(), IndexError> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(IndexError::Unusable(verdict));
    }
    check_version(connection)
}

fn check_version(connection: &Connection) -> Result<(), IndexError> {
    let number = |pragma: &str| connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0));
    match (number("application_id")?, number("user_version")?) {
        (APPLICATION, VERSION) => Ok(()),
        (APPLICATION, other) => Err(IndexError::Unusable(format!("version {other}, ours is {VERSION}"))),
        _ => Err(IndexError::Unusable("it is no index of ours".into())),
    }
}

fn read_cursor(connection: &Connection) -> Result<Option<Position>, IndexError> {
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?));
    let found = connection.prepare_cached("SELECT segment, offset FROM meta")?.query_row([], read)?;
    let (Some(segment), Some(offset)) = found else { return Ok(None) };
    Ok(Some(Position { segment: segment.cast_unsigned(), offset: offset.cast_unsigned() }))
}
