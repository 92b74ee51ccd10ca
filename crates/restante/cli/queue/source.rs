//! Where a listing gets its rows from: the index, if it is at the end of the journal; else the journal itself, read into an
//! index that goes with the command. Both give the same rows, and neither needs a daemon.

use crate::cli::journal;
use crate::cli::output::Output;
use crate::serve::index::{self as kept, APPLY_FACTS};
use anyhow::Context as _;
use restante_envelope::TransactionId;
use restante_index::{Change, Event, Index, IndexError, Keep, Row, Selector};
use restante_journal::{Depth, DirStorage, Reader, Sink, replay, replay_from};
use restante_ledger::{Accepted, Base, Carried, Fact, Position};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Rows at once: a few MiB at worst, and short enough a read that the daemon's next write does not wait for it.
const PAGE_ROWS: usize = 500;
/// A running daemon's index is at most some 250 ms behind the journal, the time in which it gathers facts. Whoever waits
/// longer had better read the journal.
const PATIENCE: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Rows, in the order of their identifiers.
pub(crate) struct Source {
    storage: DirStorage,
    path: PathBuf,
    selector: Selector,
    summaries: bool,
    output: Output,
    index: Index,
    is_fold: bool,
    reader: Reader<DirStorage>,
    after: Option<TransactionId>,
}

impl Source {
    /// The transactions of the journal in `data` that `selector` takes. Without `summaries` those may be missing.
    pub(crate) fn open(data: &Path, selector: Selector, summaries: bool, output: Output) -> anyhow::Result<Self> {
        let storage = journal::open(data)?;
        let path = data.join(kept::NAME);
        let (index, is_fold) = match current(&path, &storage) {
            Ok(index) => (index, false),
            Err(why) => (fold(&storage, &selector, why, output)?, true),
        };
        let reader = Reader::new(storage.clone());
        Ok(Self { storage, path, selector, summaries, output, index, is_fold, reader, after: None })
    }

    /// The journal the rows are of.
    pub(crate) fn storage(&self) -> &DirStorage {
        &self.storage
    }

    /// The next rows; none if there are no more.
    pub(crate) fn next_page(&mut self) -> anyhow::Result<Vec<Row>> {
        let mut page = match self.index.select(&self.selector, self.after, PAGE_ROWS) {
            Err(error) if !self.is_fold => {
                self.index = fold(&self.storage, &self.selector, error.to_string(), self.output)?;
                self.is_fold = true;
                self.index.select(&self.selector, self.after, PAGE_ROWS)
            }
            read => read,
        }
        .with_context(|| format!("cannot list what was read from {}", self.path.display()))?;
        self.after = page.last().map(|row| row.id).or(self.after);
        if self.is_fold && self.summaries {
            for row in &mut page {
                row.summary = kept::summary(&mut self.reader, row.position, row.id).unwrap_or_default();
            }
        }
        Ok(page)
    }
}

/// The daemon's index, if it says what the journal says; else why not.
fn current(path: &Path, storage: &DirStorage) -> Result<Index, String> {
    if !path.exists() {
        return Err("there is no index yet".into());
    }
    let running = storage.is_locked().unwrap_or(false);
    let said = |error: IndexError| error.to_string();
    let index = Index::open_read_only(path, &kept::boot(), kept::is_running).map_err(said)?;
    if !index.is_complete().map_err(said)? {
        return Err("the index is being rebuilt".into());
    }
    let cursor = index.cursor().map_err(said)?;
    let mut tail = Tail { cursor, met: cursor.is_none(), behind: 0, end: cursor };
    let first = cursor.map_or(0, |cursor| cursor.segment);
    let read = replay_from(storage, first, Depth::Records, &mut tail).map_err(|error| error.to_string())?;
    if !tail.met || read.journal().is_some_and(|journal| index.origin().is_ok_and(|origin| origin.journal != journal)) {
        return Err("the index is of another journal".into());
    }
    let began = Instant::now();
    while index.cursor().map_err(said)? < tail.end {
        if !running || began.elapsed() > PATIENCE {
            return Err(format!("the index is {} facts behind the journal", tail.behind));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(index)
}

/// What stands behind the cursor.
struct Tail {
    cursor: Option<Position>,
    /// Whether something stands where the cursor is.
    met: bool,
    behind: u64,
    end: Option<Position>,
}

impl Tail {
    fn event(&mut self, position: Position) {
        self.met |= self.cursor == Some(position);
        if Some(position) > self.cursor {
            self.behind += 1;
            self.end = self.end.max(Some(position));
        }
    }
}

impl Sink for Tail {
    fn fact(&mut self, position: Position, _: &Fact) {
        self.event(position);
    }
    fn damaged(&mut self, position: Position, _: &Accepted) {
        self.event(position);
    }
    fn lost(&mut self, position: Position, _: TransactionId, _: u16) {
        self.event(position);
    }
    fn unnamed(&mut self, _: u64, _: u64, _: u64) {}
    fn damaged_carried(&mut self, position: Position, _: &Carried) {
        self.event(position);
    }
    fn begins_after(&mut self, _: &Base) {}
}

/// Reads the whole journal, and says why.
fn fold(storage: &DirStorage, selector: &Selector, why: String, output: Output) -> anyhow::Result<Index> {
    let keep = if selector.pending || selector.given_up { Keep::Unsent } else { Keep::All };
    let index = Index::temporary(keep).context("cannot make a table for the listing")?;
    let ids = selector.ids.iter().copied().collect();
    let mut fold = Fold { index, ids, changes: Vec::new(), done: Ok(()) };
    let read = replay(storage, Depth::Records, &mut fold)?;
    fold.flush();
    fold.done.context("cannot make a table for the listing")?;
    if read.segments > 0 {
        output.note(&format!("restante: {why}; the journal itself was read"));
    }
    Ok(fold.index)
}

/// An index fed from a replay.
struct Fold {
    index: Index,
    /// If there are any, the others are left out.
    ids: BTreeSet<TransactionId>,
    changes: Vec<Change>,
    done: Result<(), IndexError>,
}

impl Fold {
    fn event(&mut self, position: Position, id: TransactionId, event: impl FnOnce() -> Event) {
        if self.done.is_err() || !(self.ids.is_empty() || self.ids.contains(&id)) {
            return;
        }
        self.changes.push(Change { position, event: event(), summary: None });
        if self.changes.len() >= APPLY_FACTS {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let changes = std::mem::take(&mut self.changes);
        if self.done.is_ok() {
            self.done = self.index.apply(&changes);
        }
    }
}

impl Sink for Fold {
    fn fact(&mut self, position: Position, fact: &Fact) {
        if let Some(id) = fact.transaction() {
            self.event(position, id, || Event::Fact(fact.clone()));
        }
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        self.event(position, accepted.id, || Event::Damaged(accepted.clone()));
    }
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        self.event(position, id, || Event::Lost { id, recipients });
    }
    fn unnamed(&mut self, _: u64, _: u64, _: u64) {}
    fn damaged_carried(&mut self, position: Position, carried: &Carried) {
        self.event(position, carried.accepted.id, || Event::DamagedCarried(carried.clone()));
    }
    fn begins_after(&mut self, _: &Base) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::journal::testing::{OUTPUT, message, rot, sent, write, writer};
    use proptest::prelude::*;
    use restante_envelope::{Reply, Timestamp};
    use restante_journal::Prepared;
    use restante_ledger::{Action, Attempted, Cause, Operated, Outcome, Timings};

    /// What the daemon's thread makes of the journal in `data`.
    fn make_index(data: &Path) {
        let storage = DirStorage::open(data).unwrap();
        let mut tail = Tail { cursor: None, met: true, behind: 0, end: None };
        let read = replay(&storage, Depth::Records, &mut tail).unwrap();
        let origin = kept::origin(read.journal().unwrap_or(7), &read.report);
        let (handle, thread) = kept::start(data, storage, origin, tail.end).unwrap();
        drop(handle);
        thread.join().unwrap();
    }

    fn all(data: &Path, selector: &Selector) -> (Vec<Row>, bool) {
        let mut source = Source::open(data, selector.clone(), true, OUTPUT).unwrap();
        let mut rows = Vec::new();
        loop {
            let page = source.next_page().unwrap();
            if page.is_empty() {
                return (rows, source.is_fold);
            }
            rows.extend(page);
        }
    }

    fn attempted(id: TransactionId, index: u16, outcome: Outcome) -> Prepared {
        let (at, timings, results) = (Timestamp::from_unix_ms(7), Timings::default(), vec![(index, outcome)]);
        Prepared::fact(&Fact::Attempted(Attempted { id, at, next_hop: None, timings, results }), Vec::new())
    }

    fn operated(id: TransactionId, index: u16, action: Action) -> Prepared {
        let (actor, reason, at) = ("root".to_owned(), "why".to_owned(), Timestamp::from_unix_ms(8));
        let recipients = vec![index];
        Prepared::fact(&Fact::Operated(Operated { id, at, action, recipients, actor, reason }), Vec::new())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn with_and_without_the_index_the_answer_is_the_same(
            steps in proptest::collection::vec((0u8..11, 0usize..6, 0u16..2), 1..30),
            rotten in proptest::option::of(0usize..6),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let data = directory.path();
            let (mut journal, mut ids) = (writer(data), Vec::new());
            let content = |n: usize| format!("Subject: number {n}\r\n\r\nbody of {n}{}", "x".repeat(600)).into_bytes();
            for (kind, who, index) in steps {
                let Some(id) = ids.get(who).copied().filter(|_| kind > 1) else {
                    let hold = (kind == 1).then_some("mail loop");
                    ids.extend(write(&mut journal, &[message(&content(ids.len()), &["a@x.test", "b@y.test"], hold)]));
                    continue;
                };
                let reply = || Cause::Reply(Reply::new(451, None, "later"));
                let record = match kind {
                    2 => sent(id, index),
                    3 => attempted(id, index, Outcome::Deferred { cause: reply(), next_at: Timestamp::from_unix_ms(9) }),
                    4 => attempted(id, index, Outcome::Held(Cause::Local("bad".into()))),
                    5 => attempted(id, index, Outcome::Quarantined(Cause::Local("rot".into()))),
                    6 => operated(id, index, Action::Hold),
                    8 => operated(id, index, Action::Bounce),
                    9 => operated(id, index, Action::Remove),
                    10 => operated(id, index, Action::Undo),
                    _ => operated(id, index, Action::Release),
                };
                write(&mut journal, &[record]);
            }
            journal.close().unwrap();
            if let Some(n) = rotten.filter(|n| *n < ids.len()) {
                rot(data, &content(n));
            }
            make_index(data);
            let selectors = [
                Selector { pending: true, ..Selector::default() },
                Selector { ids: ids.clone(), ..Selector::default() },
                Selector { given_up: true, ..Selector::default() },
                Selector { pending: true, given_up: true, ..Selector::default() },
                Selector { routes: vec!["example.test".into()], pending: true, larger_bytes: Some(10), ..Selector::default() },
            ];
            let kept: Vec<_> = selectors.iter().map(|selector| all(data, selector)).collect();
            std::fs::remove_file(data.join(kept::NAME)).unwrap();
            for (selector, (rows, was_fold)) in selectors.iter().zip(kept) {
                prop_assert!(!was_fold);
                prop_assert_eq!((rows, true), all(data, selector));
            }
        }
    }

    #[test]
    fn an_index_that_a_power_cut_may_have_mixed_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path();
        write(&mut writer(data), &[message(b"x", &["a@x.test"], None)]);
        make_index(data);
        let path = data.join(kept::NAME);
        let origin = current(&path, &DirStorage::open(data).unwrap()).unwrap().origin().unwrap();
        // Used in another boot, and never closed.
        drop(Index::open(&path, &origin, "another boot").unwrap());
        let why = current(&path, &DirStorage::open(data).unwrap()).err();
        assert_eq!(why.as_deref(), Some("the index is of no use: the machine went down while it was in use"));
        let pending = Selector { pending: true, ..Selector::default() };
        let (rows, is_fold) = all(data, &pending);
        assert_eq!((rows.len(), is_fold), (1, true));
    }

    #[test]
    fn an_index_that_is_behind_or_of_another_journal_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path();
        let mut journal = writer(data);
        write(&mut journal, &[message(b"x", &["a@x.test"], None)]);
        make_index(data);
        let why = |data: &Path| current(&data.join(kept::NAME), &DirStorage::open(data).unwrap()).err();
        assert_eq!(why(data), None);
        write(&mut journal, &[message(b"y", &["a@x.test"], None), message(b"z", &["a@x.test"], None)]);
        assert_eq!(why(data).as_deref(), Some("the index is 2 facts behind the journal"));
        assert_eq!(all(data, &Selector::default()).0.len(), 3);
        let other = tempfile::tempdir().unwrap();
        write(&mut writer(other.path()), &[]);
        std::fs::copy(data.join(kept::NAME), other.path().join(kept::NAME)).unwrap();
        assert_eq!(why(other.path()).as_deref(), Some("the index is of another journal"));
        std::fs::write(data.join(kept::NAME), "garbage").unwrap();
        assert!(why(data).is_some());
        assert_eq!(all(data, &Selector::default()).0.len(), 3);
    }
}
