//! The query index, kept up to date by a thread of its own: durable facts come over a bounded channel, and whatever did not
//! fit into it is read from the journal again.
//!
//! Mail never waits for it and never looks at it. Whatever happens to the file, it is begun anew; whatever happens to the
//! disk, it lags, says so once, and catches up.

use restante_envelope::TransactionId;
use restante_index::{Change, Event, Index, IndexError, Origin, Summary};
use restante_journal::{Depth, DirStorage, Reader, Report, Sink, replay_from};
use restante_ledger::{Accepted, Fact, Position};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The file, in the data directory.
pub(crate) const NAME: &str = "index.sqlite";
/// What SQLite puts beside it.
const BESIDE: [&str; 4] = ["", "-journal", "-wal", "-shm"];
/// Batches of the journal's thread on their way here: some seconds of a busy server, at 1 KiB a fact 64 MiB at worst.
const QUEUE_BATCHES: usize = 64;
/// Facts in one transaction of SQLite's: enough that its commit costs nothing, few enough to hold in memory.
pub(crate) const APPLY_FACTS: usize = 1_000;
/// How often the file is looked at while nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a full disk or the like.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Names the time since the machine was started.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Facts, one behind the other.
struct Batch {
    /// The last one handed over before these, even if it found no room.
    after: Option<Position>,
    facts: Vec<(Position, Fact)>,
}

/// The way to the thread. Never waits.
pub(crate) struct IndexHandle {
    batches: SyncSender<Batch>,
    /// The last fact that is durable.
    end: watch::Sender<Option<Position>>,
}

impl IndexHandle {
    /// Hands facts over, in the order of the journal. What finds no room is read from the journal later.
    pub(crate) fn take(&self, facts: Vec<(Position, Fact)>) {
        let Some((last, _)) = facts.last() else { return };
        let after = self.end.send_replace(Some(*last));
        let _no_room = self.batches.try_send(Batch { after, facts });
    }
}

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
    let (batches, receiver) = sync_channel(QUEUE_BATCHES);
    let (sender, end) = watch::channel(end);
    let reader = Reader::new(storage.clone());
    let path = data_dir.join(NAME);
    let boot = boot();
    let keeper = Keeper { path, storage, origin, boot, end, reader, open: None, quiet_until: None };
    let thread = std::thread::Builder::new().name("index".into()).spawn(move || keeper.run(&receiver))?;
    Ok((IndexHandle { batches, end: sender }, thread))
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

/// What the headers of the message at `position` say; none if they cannot be read.
pub(crate) fn summary(reader: &mut Reader<DirStorage>, position: Position, id: TransactionId) -> Option<Summary> {
    let mut stored = reader.message(position).ok()?;
    let is_it = matches!(&stored.fact, Fact::Accepted(accepted) if accepted.id == id);
    // The first piece of a large one: more than all headers.
    let head = stored.content.next_chunk().ok()?.unwrap_or_default();
    is_it.then(|| Summary::of(&head))
}

struct Keeper {
    path: PathBuf,
    storage: DirStorage,
    origin: Origin,
    boot: String,
    end: watch::Receiver<Option<Position>>,
    reader: Reader<DirStorage>,
    open: Option<Open>,
    /// There was trouble, and it has been said: nothing is tried before then.
    quiet_until: Option<Instant>,
}

/// The index, and its file as we left it.
struct Open {
    index: Index,
    file: FileStamp,
}

impl Keeper {
    fn run(mut self, batches: &Receiver<Batch>) {
        self.look();
        loop {
            match batches.recv_timeout(LOOK_EVERY) {
                Ok(batch) => self.take(gather(batch, batches)),
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Some(open) = self.open.take().filter(|open| open.file == FileStamp::of(&self.path)) {
            // What fails here costs no more than the time to make it anew.
            let _unsynced = open.index.close();
        }
    }

    /// The file must still be ours, and at the end of the journal.
    fn look(&mut self) {
        let end = *self.end.borrow();
        if !self.is_quiet() {
            self.attempt(|keeper| keeper.follow(end));
        }
    }

    fn take(&mut self, batch: Batch) {
        if self.is_quiet() {
            return;
        }
        self.attempt(|keeper| {
            let cursor = keeper.open_index()?.index.cursor()?;
            if batch.after > cursor {
                return keeper.follow(batch.facts.last().map(|(last, _)| *last));
            }
            let changes: Vec<Change> = batch
                .facts
                .into_iter()
                .map(|(position, fact)| change(&mut keeper.reader, position, Event::Fact(fact)))
                .collect();
            keeper.apply(&changes)
        });
    }

    fn is_quiet(&self) -> bool {
        self.quiet_until.is_some_and(|until| Instant::now() < until)
    }

    /// Does it; an index that turns out to be of no use is begun anew, and the journal read from its start.
    fn attempt(&mut self, work: impl FnOnce(&mut Self) -> Result<(), IndexError>) {
        let done = match work(self) {
            Err(IndexError::Unusable(why)) => {
                tracing::warn!("the query index is of no use ({why}): it is made anew from the journal");
                let end = *self.end.borrow();
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
            self.open = Some(Open { index, file: FileStamp::of(&self.path) });
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
        let cursor = self.open_index()?.index.cursor()?;
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
        let index = &mut self.open_index()?.index;
        if !index.is_complete()? {
            index.set_complete()?;
            self.written();
        }
        Ok(())
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), IndexError> {
        self.open_index()?.index.apply(changes)?;
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

/// With what came in the meantime, as far as it follows and one transaction takes it.
fn gather(mut batch: Batch, batches: &Receiver<Batch>) -> Batch {
    while batch.facts.len() < APPLY_FACTS {
        let Ok(more) = batches.try_recv() else { break };
        // One that found no room between the two: both are read from the journal, whose order tells.
        if more.after != batch.facts.last().map(|(last, _)| *last) {
            batch.after = more.after;
        }
        batch.facts.extend(more.facts);
    }
    batch
}

fn change(reader: &mut Reader<DirStorage>, position: Position, event: Event) -> Change {
    let summary = match &event {
        Event::Fact(Fact::Accepted(accepted)) => summary(reader, position, accepted.id),
        _ => None,
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
    fn unnamed(&mut self, _transactions: u64, _recipients: u64) {}
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
mod tests {
    use super::*;
    use crate::cli::journal::testing::{message, sent, write, writer};
    use restante_index::Selector;

    struct Fixture {
        directory: tempfile::TempDir,
        writer: restante_journal::Writer<DirStorage>,
        end: Option<Position>,
    }

    impl Fixture {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let writer = writer(directory.path());
            Self { directory, writer, end: None }
        }

        /// Writes messages, and tells what a relay would hand on.
        fn accept(&mut self, messages: usize) -> Vec<(Position, Fact)> {
            let body = b"Subject: one\r\n\r\nx";
            let records: Vec<_> = (0..messages).map(|_| message(body, &["a@example.test"], None)).collect();
            write(&mut self.writer, &records);
            let mut facts = Facts { after: self.end, facts: Vec::new() };
            let storage = DirStorage::open(self.directory.path()).unwrap();
            replay_from(&storage, 0, Depth::Records, &mut facts).unwrap();
            self.end = facts.facts.last().map(|(last, _)| *last).or(self.end);
            facts.facts
        }

        fn keeper(&self) -> (Keeper, watch::Sender<Option<Position>>) {
            let storage = DirStorage::open(self.directory.path()).unwrap();
            let (sender, end) = watch::channel(self.end);
            let (path, reader) = (self.directory.path().join(NAME), Reader::new(storage.clone()));
            let origin = origin(7, &Report::default());
            let boot = "boot".to_owned();
            (Keeper { path, storage, origin, boot, end, reader, open: None, quiet_until: None }, sender)
        }
    }

    #[derive(Default)]
    struct Facts {
        after: Option<Position>,
        facts: Vec<(Position, Fact)>,
    }

    impl Sink for Facts {
        fn fact(&mut self, position: Position, fact: &Fact) {
            if Some(position) > self.after {
                self.facts.push((position, fact.clone()));
            }
        }
        fn damaged(&mut self, _: Position, _: &Accepted) {}
        fn lost(&mut self, _: Position, _: TransactionId, _: u16) {}
        fn unnamed(&mut self, _: u64, _: u64) {}
    }

    fn rows(keeper: &mut Keeper) -> usize {
        let open = keeper.open.as_ref().unwrap();
        let rows = open.index.select(&Selector::default(), None, 100_000).unwrap();
        assert!(rows.iter().all(|row| row.summary.subject.as_deref() == Some("one")));
        rows.len()
    }

    #[test]
    fn what_found_no_room_in_the_channel_is_read_from_the_journal() {
        let mut fixture = Fixture::new();
        let (mut keeper, end) = fixture.keeper();
        keeper.look();
        let first = fixture.accept(2);
        let after_first = fixture.end;
        let dropped = fixture.accept(3);
        let after_dropped = fixture.end;
        let last = fixture.accept(1);
        assert_eq!((first.len(), dropped.len(), last.len()), (2, 3, 1));
        end.send_replace(fixture.end);
        keeper.take(Batch { after: None, facts: first });
        assert_eq!(rows(&mut keeper), 2);
        keeper.take(Batch { after: after_dropped, facts: last });
        assert_eq!(rows(&mut keeper), 6);
        keeper.take(Batch { after: after_first, facts: dropped });
        assert_eq!(rows(&mut keeper), 6);
    }

    #[test]
    fn a_gap_at_the_end_is_found_without_another_fact() {
        let mut fixture = Fixture::new();
        let (mut keeper, end) = fixture.keeper();
        keeper.look();
        fixture.accept(APPLY_FACTS + 3);
        end.send_replace(fixture.end);
        keeper.look();
        assert_eq!(rows(&mut keeper), APPLY_FACTS + 3);
        // What stands behind the last durable fact is not looked at.
        let id = write(&mut fixture.writer, &[message(b"x", &["a@example.test"], None)]).remove(0);
        write(&mut fixture.writer, &[sent(id, 0)]);
        keeper.look();
        assert_eq!(rows(&mut keeper), APPLY_FACTS + 3);
    }

    #[test]
    fn gathered_batches_keep_their_gap() {
        let mut fixture = Fixture::new();
        let batches: Vec<_> = (0..3).map(|_| (fixture.end, fixture.accept(1))).collect();
        let (sender, receiver) = sync_channel(3);
        let [first, _dropped, last] = batches.try_into().unwrap();
        sender.send(Batch { after: last.0, facts: last.1 }).unwrap();
        let batch = gather(Batch { after: first.0, facts: first.1 }, &receiver);
        let (mut keeper, _end) = fixture.keeper();
        keeper.take(batch);
        assert_eq!(rows(&mut keeper), 3);
    }

    #[test]
    fn a_file_that_another_hand_touched_is_begun_anew() {
        let mut fixture = Fixture::new();
        fixture.accept(5);
        let (mut keeper, _end) = fixture.keeper();
        keeper.look();
        let path = fixture.directory.path().join(NAME);
        let good = std::fs::read(&path).unwrap();
        let harm: [&dyn Fn(); 6] = [
            &|| std::fs::remove_file(&path).unwrap(),
            &|| std::fs::write(&path, [0xA5; 50_000]).unwrap(),
            &|| std::fs::write(&path, &good).unwrap(),
            &|| std::fs::write(&path, "").unwrap(),
            &|| std::fs::write(beside(&path, "-journal"), [0xA5; 50_000]).unwrap(),
            &|| BESIDE.iter().for_each(|ending| drop(std::fs::remove_file(beside(&path, ending)))),
        ];
        for (n, harm) in harm.iter().enumerate() {
            harm();
            keeper.look();
            assert_eq!(rows(&mut keeper), 5, "harm {n}");
            let reader = Index::open_read_only(&path, "boot", is_running).unwrap();
            assert_eq!((reader.cursor().unwrap(), reader.is_complete().unwrap()), (fixture.end, true), "harm {n}");
        }
    }

    #[test]
    fn an_index_of_another_journal_is_begun_anew() {
        let mut fixture = Fixture::new();
        fixture.accept(5);
        let (mut keeper, end) = fixture.keeper();
        keeper.look();
        drop(keeper);
        // The same journal as it was before: a backup brought back.
        let mut other = Fixture::new();
        other.accept(1);
        std::fs::copy(fixture.directory.path().join(NAME), other.directory.path().join(NAME)).unwrap();
        other.accept(7);
        let (mut keeper, _end) = other.keeper();
        keeper.look();
        assert_eq!(rows(&mut keeper), 8);
        drop(end);
    }

    #[test]
    fn a_process_of_the_same_number_is_not_taken_for_the_keeper() {
        let us = process(std::process::id()).unwrap();
        assert!(is_running(&us));
        for other in
            [format!("{us}0"), us.split(' ').next().unwrap().to_owned(), "1 x".into(), "0 0".into(), String::new()]
        {
            assert!(!is_running(&other), "{other:?}");
        }
    }

    #[test]
    fn what_cannot_be_removed_only_delays_the_index() {
        let mut fixture = Fixture::new();
        fixture.accept(2);
        let path = fixture.directory.path().join(NAME);
        std::fs::create_dir(&path).unwrap();
        let (mut keeper, _end) = fixture.keeper();
        keeper.look();
        assert!(keeper.open.is_none() && keeper.is_quiet());
        std::fs::remove_dir(&path).unwrap();
        keeper.quiet_until = Some(Instant::now());
        keeper.look();
        assert_eq!(rows(&mut keeper), 2);
    }
}
