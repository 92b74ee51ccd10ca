//! Group commit: one sync serves everybody who waits, and a lone message waits for nobody.
//!
//! There is one writer. Where messages come one at a time, whoever hands one over takes it and commits on the spot: no other
//! thread has to be woken. What comes meanwhile stands in line; the journal's thread takes all
//! of it for the next batch, which so fills while a sync is in flight. No timer anywhere.
//!
//! The other design was the thread alone. Two hand-overs a message, there and back, cost a third of the time from the final
//! dot to the 250 where a processor has gone to sleep in between (figures in crates/benches/README.md). The price is a worker
//! of the runtime that waits for the disk, one at most. The runtime has another one, but an idle worker does not notice that:
//! so this is done on a disk that syncs fast, and where one sync takes long all of a sudden, the thread calls the other worker.

use super::reserve::Reserve;
use crate::clock;
use restante_envelope::TransactionId;
use restante_journal::{CommitError, DirStorage, Durable, Receipt, Writer};
use restante_ledger::{Base, Fact};
use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot};

/// Records in line. A batch takes 1,024; four of them in line is a disk that does not keep up, and then senders are told to
/// come back.
const LINE_RECORDS_MAX: usize = 4_096;
/// After so many batches of one record, of which nobody waited for another's sync, the next message is taken to be alone, too.
const ALONE: u8 = 4;
/// A sync that takes longer is the thread's, until the disk is fast again: a worker that waits for it does not serve others.
/// Solid-state disks stay under it, those that turn do not.
const LEAD_SYNC_MAX: Duration = Duration::from_millis(4);
/// Of messages that are to leave an old segment, so much in one batch may be written again with the room kept for settlements:
/// the segment gives more back. More of them would take that room and still not fit.
const CARRIED_WHEN_FULL_BYTES: u64 = 1 << 20;
/// After this long without work the last batch is proven by an empty mark.
const QUIET: Duration = Duration::from_secs(1);

mod entry;

pub(crate) use entry::{Entry, Recorded, Refused, stored};

/// The way to the journal.
#[derive(Clone)]
pub(crate) struct Journal(Arc<Shared>);

struct Shared {
    line: Mutex<Line>,
    /// Calls the thread.
    call: Condvar,
    /// The line got shorter.
    room: Notify,
    failed: AtomicBool,
    full: AtomicBool,
    /// The disk is so full that not even what became of a message can be written.
    stuck: AtomicBool,
    /// Room that settlements have beyond that.
    reserve: Arc<Reserve>,
    /// It ended by a failure.
    end: Notify,
    /// Whose workers may be waiting for the disk.
    runtime: Option<Handle>,
}

/// Who waits, and the pen while nobody writes.
struct Line {
    entries: VecDeque<Entry>,
    /// Of these and of those that are being written.
    length: usize,
    pen: Option<Pen>,
    /// The thread sleeps, and has not been called yet.
    is_asleep: bool,
    /// Nobody is let in any more: it is to end, or has failed.
    is_closing: bool,
    /// No mark proves the last batch yet: the thread's clock runs.
    is_unproven: bool,
    batches: u64,
    /// Batches of one record, behind which nobody stood.
    alone_in_a_row: u8,
    /// What somebody wants of the writer between two batches.
    turn: Option<Turn>,
    /// How it ended, for the thread to return.
    end: Option<CommitError>,
}

/// What is to be done between two batches.
enum Task {
    /// Begin the next segment, whose header says this.
    Turn(Option<Base>),
    /// Look whether the segment is still where it was.
    Look,
}

struct Turn {
    task: Task,
    answer: oneshot::Sender<Result<(), Refused>>,
}

/// The right to write: there is one, and whoever holds it does.
struct Pen {
    writer: Writer<DirStorage>,
    /// With the pen the sender is gone, and the relay's task ends.
    facts: mpsc::Sender<Vec<Recorded>>,
    /// Out of the line, and not staged yet.
    taken: VecDeque<Entry>,
    batch: Vec<Entry>,
}

impl Journal {
    /// Hands over a record without waiting for room; for mail at the door. If nobody writes now, this does, and returns when
    /// the record is durable.
    pub(crate) fn offer(&self, entry: Entry) -> Result<(), Refused> {
        let mut line = self.0.line();
        line.is_open()?;
        line.enter(entry);
        match line.pen.take() {
            // Told at once: there must be room for what the relay hears of it. And the thread's clock must run.
            Some(pen) if line.alone_in_a_row >= ALONE && line.is_unproven && pen.facts.capacity() > 0 => {
                drop(line);
                self.0.hold(pen).lead();
            }
            Some(pen) => {
                line.pen = Some(pen);
                self.0.call(&mut line);
            }
            // Whoever has it looks at the line again before it is put back.
            None => {}
        }
        Ok(())
    }

    /// Hands over a record, waiting for room; for settlements, which must not be dropped, and nobody waits for. The thread
    /// writes them.
    pub(crate) async fn submit(&self, entry: Entry) -> Result<(), Refused> {
        loop {
            let mut room = pin!(self.0.room.notified());
            // From here on none is missed.
            room.as_mut().enable();
            {
                let mut line = self.0.line();
                match line.is_open() {
                    Ok(()) => {
                        line.enter(entry);
                        if line.pen.is_some() {
                            self.0.call(&mut line);
                        }
                        return Ok(());
                    }
                    Err(Refused::Busy) => {}
                    Err(refused) => return Err(refused),
                }
            }
            room.await;
        }
    }

    /// Ends the segment and begins the next, whose header says that the segments before `base.first` count no more.
    pub(crate) async fn turn(&self, base: Option<Base>) -> Result<(), Refused> {
        self.between_batches(Task::Turn(base)).await
    }

    /// Looks whether the segment is still in its directory. If not, that is the journal's end.
    pub(crate) async fn look(&self) -> Result<(), Refused> {
        self.between_batches(Task::Look).await
    }

    async fn between_batches(&self, task: Task) -> Result<(), Refused> {
        let (answer, outcome) = oneshot::channel();
        {
            let mut line = self.0.line();
            if line.is_closing {
                return Err(Refused::Failed);
            }
            line.turn = Some(Turn { task, answer });
            self.0.call(&mut line);
        }
        outcome.await.unwrap_or(Err(Refused::Failed))
    }

    /// Lets the thread end, after what is in line now.
    pub(crate) fn close(&self) {
        let mut line = self.0.line();
        line.is_closing = true;
        self.0.call(&mut line);
    }

    /// Says that the sync of a directory failed. The writer knows, and commits nothing; this ends the process at once.
    pub(crate) fn fail(&self) {
        self.0.fail();
    }

    /// Returns when it has failed.
    pub(crate) async fn failure(&self) {
        loop {
            let mut end = pin!(self.0.end.notified());
            // From here on it is not missed.
            end.as_mut().enable();
            if self.has_failed() {
                return;
            }
            end.await;
        }
    }

    /// Whether a write or a sync failed: nothing will be durable any more.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.failed.load(Ordering::Relaxed)
    }

    /// Whether the disk is so full that not even settlements find room: what is sent now would be sent again.
    pub(crate) fn is_stuck(&self) -> bool {
        self.0.stuck.load(Ordering::Relaxed)
    }

    /// A start found no room for a record.
    pub(crate) fn is_stuck_from_the_start(&self) {
        self.0.stuck.store(true, Ordering::Relaxed);
        self.0.full.store(true, Ordering::Relaxed);
    }

    /// Whether the last batch met a full disk.
    pub(crate) fn is_full(&self) -> bool {
        self.0.full.load(Ordering::Relaxed)
    }
}

/// Starts the thread. It ends when it is closed (and seals), or when the disk fails.
pub(crate) fn start(
    writer: Writer<DirStorage>,
    facts: mpsc::Sender<Vec<Recorded>>,
    reserve: Arc<Reserve>,
) -> std::io::Result<(Journal, std::thread::JoinHandle<Result<(), CommitError>>)> {
    let shared = Arc::new(Shared::new(Pen { writer, facts, taken: VecDeque::new(), batch: Vec::new() }, reserve));
    let journal = Journal(shared.clone());
    let handle = std::thread::Builder::new().name("journal".into()).spawn(move || shared.run())?;
    Ok((journal, handle))
}

impl Line {
    /// Whether it takes one more.
    fn is_open(&self) -> Result<(), Refused> {
        match self {
            _ if self.is_closing => Err(Refused::Failed),
            _ if self.length >= LINE_RECORDS_MAX => Err(Refused::Busy),
            _ => Ok(()),
        }
    }

    fn enter(&mut self, entry: Entry) {
        self.entries.push_back(entry);
        self.length += 1;
    }
}

impl Shared {
    fn new(pen: Pen, reserve: Arc<Reserve>) -> Self {
        let line = Line {
            entries: VecDeque::new(),
            length: 0,
            pen: Some(pen),
            is_asleep: false,
            is_closing: false,
            is_unproven: true,
            batches: 0,
            alone_in_a_row: 0,
            turn: None,
            end: None,
        };
        Self {
            line: Mutex::new(line),
            call: Condvar::new(),
            room: Notify::new(),
            failed: AtomicBool::default(),
            full: AtomicBool::default(),
            stuck: AtomicBool::default(),
            reserve,
            end: Notify::new(),
            runtime: Handle::try_current().ok(),
        }
    }

    fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
        self.end.notify_waiters();
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Nothing that is done under this lock can panic half-way.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread, unless it is awake.
    fn call(&self, line: &mut Line) {
        if std::mem::take(&mut line.is_asleep) {
            self.call.notify_one();
        }
    }

    fn hold(&self, pen: Pen) -> Held<'_> {
        Held { shared: self, pen: Some(pen) }
    }

    /// The thread.
    fn run(&self) -> Result<(), CommitError> {
        let mut line = self.line();
        loop {
            if let Some(error) = line.end.take() {
                return Err(error);
            }
            match line.pen.take() {
                Some(pen) if line.turn.is_some() => {
                    let turn = line.turn.take();
                    drop(line);
                    self.hold(pen).turn(turn);
                    line = self.line();
                }
                Some(pen) if !line.entries.is_empty() || !pen.taken.is_empty() => {
                    drop(line);
                    self.hold(pen).lead();
                    line = self.line();
                }
                Some(pen) if line.is_closing => {
                    drop(line);
                    return pen.writer.close();
                }
                // At home, or with somebody who calls if there is more to do.
                pen => {
                    line.pen = pen;
                    line = self.rest(line);
                }
            }
        }
    }

    /// Sleeps until called. After a quiet moment the last batch is proven by an empty mark.
    fn rest<'a>(&'a self, mut line: MutexGuard<'a, Line>) -> MutexGuard<'a, Line> {
        line.is_asleep = true;
        if !line.is_unproven {
            return self.call.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
        let before = line.batches;
        let (mut line, wait) = self.call.wait_timeout(line, QUIET).unwrap_or_else(PoisonError::into_inner);
        line.is_asleep = false;
        if wait.timed_out() && line.batches == before {
            match line.pen.take() {
                Some(pen) => {
                    drop(line);
                    self.hold(pen).prove();
                    line = self.line();
                }
                None => self.call_a_worker(),
            }
        }
        line
    }

    /// A worker has been waiting for the disk for a while, perhaps the one that all sockets and timers are with: a task of no
    /// content makes another one get up, and take those over.
    fn call_a_worker(&self) {
        if let Some(runtime) = &self.runtime {
            drop(runtime.spawn(std::future::ready(())));
        }
    }
}

/// The pen, in somebody's hand. It is put back, or the journal has failed.
struct Held<'a> {
    shared: &'a Shared,
    pen: Option<Pen>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Only a panic leaves it here: whoever hands over mail must learn of it.
        if self.pen.is_some() {
            self.end(CommitError::Poisoned("the writer ended by a defect of ours, please report it".into()));
        }
    }
}

impl Held<'_> {
    /// Commits what is in line, as far as one batch takes it, and puts the pen back.
    fn lead(mut self) {
        let Some(pen) = &mut self.pen else { return };
        if pen.taken.is_empty() {
            std::mem::swap(&mut pen.taken, &mut self.shared.line().entries);
        }
        let (before, began) = (pen.taken.len(), Instant::now());
        match pen.one_batch(self.shared) {
            Ok(()) => {
                let done = before.saturating_sub(pen.taken.len());
                self.put_back(done, began.elapsed() <= LEAD_SYNC_MAX, true);
            }
            Err(error) => self.end(error),
        }
    }

    /// Between two batches.
    fn turn(mut self, turn: Option<Turn>) {
        let (Some(pen), Some(Turn { task, answer })) = (&mut self.pen, turn) else { return };
        let is_unproven = matches!(task, Task::Turn(_));
        let turned = match task {
            // When it is done, segments go: what it costs comes back many times.
            Task::Turn(Some(base)) => {
                self.shared.reserve.or_with_it(is_full, || pen.writer.turn(Some(base), clock::now()))
            }
            Task::Turn(None) => pen.writer.turn(None, clock::now()),
            Task::Look => pen.writer.check_segment(),
        };
        let told = match &turned {
            Ok(()) => Ok(()),
            Err(CommitError::Full(_)) => Err(Refused::Full),
            Err(CommitError::Failed(_) | CommitError::Poisoned(_)) => Err(Refused::Failed),
        };
        match turned {
            Ok(()) | Err(CommitError::Full(_)) => {
                let is_unproven = is_unproven || self.shared.line().is_unproven;
                self.put_back(0, true, is_unproven);
            }
            Err(error) => self.end(error),
        }
        let _gone = answer.send(told);
    }

    fn prove(mut self) {
        match self.pen.as_mut().map(|pen| pen.writer.prove_last_batch()) {
            None | Some(Ok(())) => self.put_back(0, true, false),
            // Later, when there is room.
            Some(Err(CommitError::Full(_))) => self.put_back(0, true, true),
            Some(Err(error)) => self.end(error),
        }
    }

    fn put_back(&mut self, done: usize, was_fast: bool, is_unproven: bool) {
        let mut line = self.shared.line();
        line.length = line.length.saturating_sub(done);
        line.batches = line.batches.wrapping_add(1);
        let waits = !line.entries.is_empty() || self.pen.as_ref().is_some_and(|pen| !pen.taken.is_empty());
        line.alone_in_a_row = match done {
            1 if !waits && was_fast => line.alone_in_a_row.saturating_add(1),
            0 => line.alone_in_a_row,
            _ => 0,
        };
        line.is_unproven = is_unproven;
        line.pen = self.pen.take();
        if waits || line.is_closing || line.turn.is_some() {
            self.shared.call(&mut line);
        }
        drop(line);
        self.shared.room.notify_waiters();
    }

    /// Fail-stop: whoever waits is told, and nothing is ever written again.
    fn end(&mut self, error: CommitError) {
        self.shared.fail();
        let Some(mut pen) = self.pen.take() else { return };
        let mut line = self.shared.line();
        // For ever: the thread takes the error along.
        line.is_closing = true;
        line.turn = None;
        line.end = Some(error);
        pen.batch.extend(pen.taken.drain(..).chain(line.entries.drain(..)));
        self.shared.call(&mut line);
        drop(line);
        pen.refuse(Refused::Failed);
        self.shared.room.notify_waiters();
    }
}

fn is_full(error: &CommitError) -> bool {
    matches!(error, CommitError::Full(_))
}

impl Pen {
    /// Everything that was taken, as far as one batch takes it.
    fn one_batch(&mut self, shared: &Shared) -> Result<(), CommitError> {
        let now = clock::now();
        let mut outcome = Ok(());
        while outcome.is_ok() && self.writer.has_room() {
            let Some(entry) = self.taken.pop_front() else { break };
            outcome = self.writer.stage(&entry.record, now);
            self.batch.push(entry);
        }
        match outcome.and_then(|()| self.writer.commit(now)) {
            Ok(durable) => {
                shared.is_full(None);
                shared.stuck.store(false, Ordering::Relaxed);
                self.tell(durable.receipts());
                self.check()
            }
            Err(CommitError::Full(error)) => {
                shared.is_full(Some(&error));
                self.without_new_mail(shared)
            }
            Err(error) => Err(error),
        }
    }

    /// On a full disk: new mail is refused, and what settles pending mail is tried again by itself. Room is kept for it.
    fn without_new_mail(&mut self, shared: &Shared) -> Result<(), CommitError> {
        let carried: u64 = self.batch.iter().map(Entry::carried_bytes).sum();
        let is_like_mail = |entry: &Entry| match entry.fact {
            Fact::Accepted(_) => true,
            Fact::Carried(_) => carried > CARRIED_WHEN_FULL_BYTES,
            _ => false,
        };
        let (mail, rest): (Vec<Entry>, Vec<Entry>) = self.batch.drain(..).partition(is_like_mail);
        self.batch = mail;
        self.refuse(Refused::Full);
        self.batch = rest;
        if self.batch.is_empty() {
            return Ok(());
        }
        // What mail took with it gets another chance without it, and then with all the room there is.
        match shared.reserve.or_with_it(is_full, || self.again()) {
            Ok(durable) => {
                shared.stuck.store(false, Ordering::Relaxed);
                self.tell(durable.receipts());
                self.check()
            }
            Err(CommitError::Full(_)) => {
                shared.stuck.store(true, Ordering::Relaxed);
                self.refuse(Refused::Full);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn again(&mut self) -> Result<Durable, CommitError> {
        let now = clock::now();
        self.batch.iter().try_for_each(|entry| self.writer.stage(&entry.record, now))?;
        self.writer.commit(now)
    }

    /// The batch is durable; the writer may have met its end in making the next segment.
    fn check(&mut self) -> Result<(), CommitError> {
        match self.writer.failure() {
            None => Ok(()),
            Some(why) => Err(CommitError::Poisoned(why.to_owned())),
        }
    }

    /// The relay first: whoever has a 250 finds the message in every listing and count.
    fn tell(&mut self, receipts: &[Receipt]) {
        let mut recorded = Vec::with_capacity(receipts.len());
        let mut answers = Vec::with_capacity(receipts.len());
        for (mut entry, receipt) in self.batch.drain(..).zip(receipts) {
            if let Fact::Accepted(accepted) = &mut entry.fact {
                accepted.id = receipt.id();
            }
            answers.extend(entry.answer.map(|answer| (answer, *receipt)));
            recorded.push(Recorded {
                position: receipt.position(),
                fact: entry.fact,
                about: entry.about,
                claim: entry.claim,
            });
        }
        // The relay is gone only when the process ends; the facts are on disk. A worker of the runtime, which must not
        // block, writes only if there is room.
        if let Err(TrySendError::Full(recorded)) = self.facts.try_send(recorded) {
            let _ended = self.facts.blocking_send(recorded);
        }
        for (answer, receipt) in answers {
            // Nobody there any more: the client left after its dot. The message is ours all the same.
            let _gone = answer.send(Ok(receipt));
        }
    }

    fn refuse(&mut self, why: Refused) {
        for entry in self.batch.drain(..) {
            if let Some(answer) = entry.answer {
                let _gone = answer.send(Err(why));
            }
        }
    }
}

impl Shared {
    /// Said once when it begins, and once when it ends.
    fn is_full(&self, error: Option<&std::io::Error>) {
        let was = self.full.swap(error.is_some(), Ordering::Relaxed);
        match (was, error) {
            (false, Some(error)) => tracing::warn!("no room for the journal, senders are told to come back: {error}"),
            (true, None) => tracing::info!("there is room for the journal again"),
            _ => {}
        }
    }
}

/// The identifier of a message that has none yet; the writer gives it one.
pub(crate) const NOT_YET: TransactionId = TransactionId::from_bits(0);

#[cfg(test)]
mod tests;
