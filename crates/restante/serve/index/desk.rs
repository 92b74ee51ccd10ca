//! Where facts wait for the index's thread: bounded, and nobody who leaves one there waits. Knows nothing of the index.

use restante_ledger::{Fact, Position};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// From one transaction of SQLite's to the next, if facts keep coming: a transaction's own work is that of dozens of facts.
/// A listing waits for twice as long before it reads the journal, and the first fact after a pause is not held back.
pub(super) const GATHER: Duration = Duration::from_millis(250);
/// Names in the facts (themselves, and their recipients) that are worth a transaction before its time.
const GATHER_NAMES: usize = 4_096;
/// Names that may wait here: over a second of 3,000 messages, each accepted and sent; at 500 bytes a name, 8 MiB.
pub(super) const WAITING_NAMES_MAX: usize = 16_384;
/// How often the file is looked at while nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Facts, one behind the other.
#[derive(Default)]
pub(super) struct Batch {
    /// The last one handed over before these, even if it found no room.
    pub(super) after: Option<Position>,
    pub(super) facts: Vec<(Position, Fact)>,
    /// As in [`GATHER_NAMES`].
    pub(super) names: usize,
    /// Behind all of these: the segments before this one have left the journal.
    pub(super) left: Option<u64>,
}

/// What the thread is told.
pub(super) struct Waiting {
    pub(super) batch: Batch,
    /// The last fact that is durable.
    pub(super) end: Option<Position>,
    is_closed: bool,
}

impl Waiting {
    /// What finds no room takes those in front of it along: the journal is read from the cursor anyway.
    fn add(&mut self, facts: Vec<(Position, Fact)>) {
        self.end = facts.last().map(|(last, _)| *last).or(self.end);
        let names: usize = facts.iter().map(|(_, fact)| names(fact)).sum();
        if self.batch.names + names > WAITING_NAMES_MAX {
            self.batch = Batch { after: self.end, left: self.batch.left, ..Batch::default() };
            return;
        }
        self.batch.names += names;
        self.batch.facts.extend(facts);
    }

    /// All of it; what comes next stands behind the last fact.
    fn take(&mut self) -> Batch {
        std::mem::replace(&mut self.batch, Batch { after: self.end, ..Batch::default() })
    }
}

/// One, and its recipients: what a fact weighs.
fn names(fact: &Fact) -> usize {
    1 + match fact {
        Fact::Accepted(accepted) => accepted.envelope.recipients.len(),
        Fact::Attempted(attempted) => attempted.results.len(),
        Fact::Operated(operated) => operated.recipients.len(),
        Fact::Carried(carried) => carried.recipients.len(),
        Fact::Replayed(replayed) => replayed.results.len(),
        Fact::Served(_) | Fact::Watched(_) => 0,
    }
}

/// Where facts wait, and what wakes the thread.
pub(super) struct Desk {
    waiting: Mutex<Waiting>,
    /// Something came where nothing was, or enough, or it is closed.
    changed: Condvar,
}

/// What there is to do.
pub(super) enum Next {
    Batch(Batch),
    /// Nothing came for as long as [`LOOK_EVERY`].
    Look,
    Close,
}

impl Desk {
    pub(super) fn new(end: Option<Position>) -> Self {
        let batch = Batch { after: end, ..Batch::default() };
        Self { waiting: Mutex::new(Waiting { batch, end, is_closed: false }), changed: Condvar::new() }
    }

    /// Whole at any time: nobody panics in the midst of a change.
    pub(super) fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for facts, and from then on for more of them until `ripe`.
    pub(super) fn next(&self, ripe: Instant) -> Next {
        let wait = |waiting, time, is_too_little: fn(&Batch) -> bool| {
            let waits = |waiting: &mut Waiting| !waiting.is_closed && is_too_little(&waiting.batch);
            let waited = self.changed.wait_timeout_while(waiting, time, waits);
            waited.unwrap_or_else(PoisonError::into_inner).0
        };
        let mut waiting = wait(self.waiting(), LOOK_EVERY, |batch| batch.facts.is_empty());
        if !waiting.batch.facts.is_empty() {
            let time = ripe.saturating_duration_since(Instant::now());
            waiting = wait(waiting, time, |batch| batch.names < GATHER_NAMES);
        }
        match (waiting.take(), waiting.is_closed) {
            (batch, true) if batch.facts.is_empty() => Next::Close,
            (batch, false) if batch.facts.is_empty() => Next::Look,
            (batch, _) => Next::Batch(batch),
        }
    }
}

/// The way to the thread. Never waits for it.
pub(crate) struct IndexHandle(pub(super) Arc<Desk>);

impl IndexHandle {
    /// Hands facts over, in the order of the journal. What finds no room is read from the journal later.
    pub(crate) fn take(&self, facts: Vec<(Position, Fact)>) {
        let mut waiting = self.0.waiting();
        let before = waiting.batch.names;
        waiting.add(facts);
        let after = waiting.batch.names;
        drop(waiting);
        // No wake-up for each batch: only for the first, and the one that makes it enough.
        if before == 0 || (before < GATHER_NAMES && after >= GATHER_NAMES) {
            self.0.changed.notify_one();
        }
    }
}

impl IndexHandle {
    /// What stands in the segments before `first` is gone. Said after the facts that tell what became of it.
    pub(crate) fn left(&self, first: u64) {
        self.0.waiting().batch.left = Some(first);
    }
}

impl Drop for IndexHandle {
    fn drop(&mut self) {
        self.0.waiting().is_closed = true;
        self.0.changed.notify_one();
    }
}
