//! The query index, kept up to date by a thread of its own: durable facts wait in a bounded place until there are enough of
//! them for a transaction of SQLite's, and whatever did not fit in there is read from the journal again.
//!
//! Mail never waits for it and never looks at it. Whatever happens to the file, it is begun anew; whatever happens to the
//! disk, it lags, says so once, and catches up.

mod desk;

pub(crate) use self::desk::IndexHandle;
use self::desk::{Batch, Desk, GATHER, Next};
use restante_envelope::TransactionId;
use restante_index::{Change, Event, HEAD_BYTES_MAX, Index, IndexError, Origin, Summary};
use restante_journal::{Depth, DirStorage, Reader, Report, Sink, replay_from};
use restante_ledger::{Accepted, Base, Carried, Fact, Position};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The file, in the data directory.
pub(crate) const NAME: &str = "index.sqlite";
/// What SQLite puts beside it.
const BESIDE: [&str; 4] = ["", "-journal", "-wal", "-shm"];
/// Facts in one transaction of SQLite's when the journal is read: as many as are held in memory then.
pub(crate) const APPLY_FACTS: usize = 1_000;
/// How much of a message is read for its headers: all of nearly everybody's.
const HEAD_BYTES: usize = 4 << 10;
/// After a full disk or the like.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Names the time since the machine was started.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// What an index of this journal is made from. Damage that is found later makes another journal of it.
pub(crate) fn origin(journal: u128, report: &Report) -> Origin {
    let mut hasher = DefaultHasher::new();
    format!("{:?}", report.damage).hash(&mut hasher);
    let damage = if report.damage.is_empty() { String::new() } else { format!("{:016x}", hasher.finish()) };
    Origin { journal, damage }
}

/// Starts the thread; it ends when the handle is dropped. `end` is the last fact in the journal now.
pub(crate) fn start(
    data_dir: &Path,
    storage: DirStorage,
    origin: Origin,
    end: Option<Position>,
) -> io::Result<(IndexHandle, std::thread::JoinHandle<()>)> {
    let desk = Arc::new(Desk::new(end));
    let reader = Reader::new(storage.clone());
    let path = data_dir.join(NAME);
    let boot = boot();
    let keeper = Keeper { path, storage, origin, boot, desk: desk.clone(), reader, open: None, quiet_until: None };
    let thread = std::thread::Builder::new().name("index".into()).spawn(move || keeper.run())?;
    Ok((IndexHandle(desk), thread))
}

/// The name of the time since the machine was started; empty if it cannot be told.
pub(crate) fn boot() -> String {
    std::fs::read_to_string(BOOT).unwrap_or_default()
}

/// Whether the process that noted this name in its index still runs.
pub(crate) fn is_running(keeper: &str) -> bool {
    let pid = keeper.split(' ').next().and_then(|pid| pid.parse().ok());
    pid.and_then(process).is_some_and(|name| name == keeper)
}

/// A process's name: its number, and when it was started, for numbers come again. None if it cannot be told.
fn process(pid: u32) -> Option<String> {
    /// Field 22 of proc_pid_stat(5), counted from the one behind the parenthesis.
    const START_TIME: usize = 19;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let start = stat.rsplit_once(") ")?.1.split(' ').nth(START_TIME)?;
    Some(format!("{pid} {start}"))
}

/// What the headers of message `id` at `position` say; none if they cannot be read. The content is not checked for it: a
/// subject is there to be looked at, and a whole message read again for each would cost more than all the rest of the index.
pub(crate) fn summary(reader: &mut Reader<DirStorage>, position: Position, id: TransactionId) -> Option<Summary> {
    let head = reader.head(position, id, HEAD_BYTES).ok()?;
    if let Some(summary) = Summary::of_head(&head) {
        return Some(summary);
    }
    Some(Summary::of(&reader.head(position, id, HEAD_BYTES_MAX).ok()?))
}

struct Keeper {
    path: PathBuf,
    storage: DirStorage,
    origin: Origin,
    boot: String,
    desk: Arc<Desk>,
    reader: Reader<DirStorage>,
    open: Option<Open>,
    /// There was trouble, and it has been said: nothing is tried before then.
    quiet_until: Option<Instant>,
}

/// The index, and its file as we left it.
struct Open {
    index: Index,
    file: FileStamp,
    cursor: Option<Position>,
    is_complete: bool,
}

impl Keeper {
    fn run(mut self) {
        self.look();
        let mut ripe = Instant::now();
        loop {
            match self.desk.next(ripe) {
                Next::Batch(batch) => {
                    self.take(batch);
                    ripe = Instant::now() + GATHER;
                }
                Next::Look => self.look(),
                Next::Close => break,
            }
        }
        if let Some(open) = self.open.take().filter(|open| open.file == FileStamp::of(&self.path)) {
            // What fails here costs no more than the time to make it anew.
            let _unsynced = open.index.close();
        }
    }

    /// The file must still be ours, and at the end of the journal.
    fn look(&mut self) {
        if !self.is_quiet() {
            let end = self.end();
            self.attempt(|keeper| keeper.follow(end));
        }
    }

    fn take(&mut self, batch: Batch) {
        if self.is_quiet() {
            return;
        }
        self.attempt(|keeper| {
            if batch.after > keeper.open_index()?.cursor {
                return keeper.follow(batch.facts.last().map(|(last, _)| *last));
            }
            let changes: Vec<Change> = batch
                .facts
                .into_iter()
                .map(|(position, fact)| change(&mut keeper.reader, position, Event::Fact(fact)))
                .collect();
            keeper.apply(&changes)?;
            match batch.left {
                Some(first) => keeper.forget(first),
                None => Ok(()),
            }
        });
    }

    /// The last fact that is durable.
    fn end(&self) -> Option<Position> {
        self.desk.waiting().end
    }

    fn is_quiet(&self) -> bool {
        self.quiet_until.is_some_and(|until| Instant::now() < until)
    }

    /// Does it; an index that turns out to be of no use is begun anew, and the journal read from its start.
    fn attempt(&mut self, work: impl FnOnce(&mut Self) -> Result<(), IndexError>) {
        let done = match work(self) {
            Err(IndexError::Unusable(why)) => {
                tracing::warn!("the query index is of no use ({why}): it is made anew from the journal");
                let end = self.end();
                self.discard().and_then(|()| self.follow(end))
            }
            done => done,
        };
        match (done, self.quiet_until.is_some()) {
            (Ok(()), true) => {
                tracing::info!("the query index is up to date again");
                self.quiet_until = None;
            }
            (Ok(()), false) => {}
            (Err(error), was_said) => {
                if !was_said {
                    tracing::warn!("{error}; listings read the journal until it can be. Mail is not concerned");
                }
                self.open = None;
                self.quiet_until = Some(Instant::now() + TRY_AGAIN_AFTER);
            }
        }
    }

    fn open_index(&mut self) -> Result<&mut Open, IndexError> {
        if self.open.as_ref().is_some_and(|open| open.file != FileStamp::of(&self.path)) {
            return Err(IndexError::Unusable("its file was removed or changed by somebody else".into()));
        }
        if self.open.is_none() {
            let mut index = Index::open(&self.path, &self.origin, &self.boot)?;
            index.set_keeper(&process(std::process::id()).unwrap_or_default())?;
            let (cursor, is_complete) = (index.cursor()?, index.is_complete()?);
            self.open = Some(Open { index, file: FileStamp::of(&self.path), cursor, is_complete });
        }
        self.open.as_mut().ok_or_else(|| IndexError::Unavailable("it is not open".into()))
    }

    /// Removes the files, after the last connection to them is closed.
    fn discard(&mut self) -> Result<(), IndexError> {
        self.open = None;
        for ending in BESIDE {
            match std::fs::remove_file(beside(&self.path, ending)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(IndexError::Unavailable(format!("{}: {error}", self.path.display())));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Reads the journal from the cursor to `end`.
    fn follow(&mut self, end: Option<Position>) -> Result<(), IndexError> {
        let open = self.open_index()?;
        let (cursor, is_complete) = (open.cursor, open.is_complete);
        if let Some(end) = end.filter(|end| Some(*end) > cursor) {
            let (storage, first) = (self.storage.clone(), cursor.map_or(0, |cursor| cursor.segment));
            let met = cursor.is_none();
            let mut feeder = Feeder { keeper: self, cursor, met, end, changes: Vec::new(), done: Ok(()) };
            let read = replay_from(&storage, first, Depth::Records, &mut feeder);
            feeder.flush();
            let (met, done) = (feeder.met, feeder.done);
            done?;
            read.map_err(|error| IndexError::Unavailable(error.to_string()))?;
            if !met {
                return Err(IndexError::Unusable("the journal is another one than it was made from".into()));
            }
        }
        if !is_complete {
            let open = self.open_index()?;
            open.index.set_complete()?;
            open.is_complete = true;
            self.written();
        }
        Ok(())
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), IndexError> {
        let open = self.open_index()?;
        open.index.apply(changes)?;
        open.cursor = open.cursor.max(changes.last().map(|change| change.position));
        self.written();
        Ok(())
    }

    /// What stands in the segments before `first` is not in the journal any more.
    fn forget(&mut self, first: u64) -> Result<(), IndexError> {
        self.open_index()?.index.forget_before(first)?;
        self.written();
        Ok(())
    }

    /// Remembers how we left the file.
    fn written(&mut self) {
        if let Some(open) = &mut self.open {
            open.file = FileStamp::of(&self.path);
        }
    }
}

fn change(reader: &mut Reader<DirStorage>, position: Position, event: Event) -> Change {
    let summary = match &event {
        Event::Fact(Fact::Accepted(accepted)) | Event::Damaged(accepted) => summary(reader, position, accepted.id),
        Event::Fact(Fact::Carried(carried)) | Event::DamagedCarried(carried) => {
            summary(reader, position, carried.accepted.id)
        }
        Event::Fact(_) | Event::Lost { .. } => None,
    };
    Change { position, event, summary }
}

/// Feeds the index from a replay. Behind `end` stands what may not be durable yet.
struct Feeder<'a> {
    keeper: &'a mut Keeper,
    cursor: Option<Position>,
    /// Whether something stands where the cursor is.
    met: bool,
    end: Position,
    changes: Vec<Change>,
    done: Result<(), IndexError>,
}

impl Feeder<'_> {
    fn event(&mut self, position: Position, event: impl FnOnce() -> Event) {
        self.met |= self.cursor == Some(position);
        if self.done.is_err() || self.cursor.is_some_and(|cursor| position <= cursor) || position > self.end {
            return;
        }
        self.changes.push(change(&mut self.keeper.reader, position, event()));
        if self.changes.len() >= APPLY_FACTS {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let changes = std::mem::take(&mut self.changes);
        if self.done.is_ok() && !changes.is_empty() && self.met {
            self.done = self.keeper.apply(&changes);
        }
    }
}

impl Sink for Feeder<'_> {
    fn fact(&mut self, position: Position, fact: &Fact) {
        self.event(position, || Event::Fact(fact.clone()));
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        self.event(position, || Event::Damaged(accepted.clone()));
    }
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        self.event(position, || Event::Lost { id, recipients });
    }
    fn unnamed(&mut self, _: u64, _: u64, _: u64) {}
    fn damaged_carried(&mut self, position: Position, carried: &Carried) {
        self.event(position, || Event::DamagedCarried(carried.clone()));
    }
    fn begins_after(&mut self, _: &Base) {}
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Device, inode, length, and when it was last written to; none if there is no file. And the bytes in the rollback journal
/// beside it, which is empty between our transactions. Only we write to them: another look is another hand. Never opens the file: closing it again would drop the locks that SQLite has on it.
#[derive(Debug, PartialEq, Eq)]
struct FileStamp(Option<[u64; 5]>, u64);

impl FileStamp {
    fn of(path: &Path) -> Self {
        let found = path.metadata().ok();
        let journal_bytes = beside(path, "-journal").metadata().map_or(0, |m| m.len());
        let stamp = |m: std::fs::Metadata| {
            [m.dev(), m.ino(), m.len(), m.mtime().cast_unsigned(), m.mtime_nsec().cast_unsigned()]
        };
        Self(found.map(stamp), journal_bytes)
    }
}

#[cfg(test)]
mod tests;
