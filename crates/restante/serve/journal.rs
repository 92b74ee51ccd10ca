//! The journal's thread: takes what queued up during the last sync, one write, one `fdatasync`, answers everyone who
//! waited, passes the facts on. No timer: a lone message is synced at once, a crowd shares one sync.

use super::memory::Share;
use crate::clock;
use restante_envelope::TransactionId;
use restante_journal::{CommitError, DirStorage, Prepared, Receipt, Writer};
use restante_ledger::{Accepted, Fact, Position};
use restante_smtp::{Resolution, Trouble};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

/// Records waiting for the next batch. A batch takes 1,024; four of them in line is a disk that does not keep up, and
/// then senders are told to come back.
const QUEUE_RECORDS: usize = 4_096;
/// After this long without work the last batch is proven by an empty mark.
const QUIET: Duration = Duration::from_secs(1);

/// A record on its way to stable storage.
pub(crate) struct Entry {
    /// Encoded, checksums computed.
    pub(crate) record: Prepared,
    /// What it means; the identifier of a new message is filled in here.
    pub(crate) fact: Fact,
    /// The message it is about, for the log.
    pub(crate) about: Option<Arc<Accepted>>,
    /// Who waits. Nobody need.
    pub(crate) answer: Option<oneshot::Sender<Result<Receipt, Refused>>>,
    /// The share of the memory budget that it holds, given back when the entry is dropped.
    #[expect(dead_code, reason = "held, not read")]
    pub(crate) memory: Share,
}

/// Why a record is not durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The disk is full.
    Full,
    /// The journal failed, and the process is about to end.
    Failed,
    /// More is waiting than the journal takes.
    Busy,
    /// The disk did not take this one message.
    Broken,
    /// We are about to stop, and its turn at the disk has not come.
    Stopping,
}

impl Refused {
    /// As the SMTP session says it.
    pub(crate) fn trouble(self) -> Trouble {
        match self {
            Self::Full => Trouble::Storage,
            Self::Busy => Trouble::Overloaded,
            Self::Failed | Self::Broken => Trouble::Local,
            Self::Stopping => Trouble::ShuttingDown,
        }
    }
}

/// The only way from a durable receipt to a 250.
pub(crate) fn stored(receipt: &Receipt) -> Resolution {
    Resolution::Stored(receipt.id())
}

/// A fact that is durable.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) position: Position,
    pub(crate) fact: Fact,
    pub(crate) about: Option<Arc<Accepted>>,
}

/// What the thread is told.
enum Message {
    Entry(Box<Entry>),
    /// Make durable what is in line, then seal.
    Close,
}

/// The way to the journal's thread.
#[derive(Clone)]
pub(crate) struct Journal {
    entries: mpsc::Sender<Message>,
    failed: Arc<AtomicBool>,
    full: Arc<AtomicBool>,
}

impl Journal {
    /// Queues a record without waiting; for mail at the door.
    pub(crate) fn offer(&self, entry: Entry) -> Result<(), Refused> {
        self.entries.try_send(Message::Entry(Box::new(entry))).map_err(|error| match error {
            TrySendError::Full(_) => Refused::Busy,
            TrySendError::Closed(_) => Refused::Failed,
        })
    }

    /// Queues a record, waiting for room; for settlements, which must not be dropped.
    pub(crate) async fn submit(&self, entry: Entry) -> Result<(), Refused> {
        self.entries.send(Message::Entry(Box::new(entry))).await.map_err(|_| Refused::Failed)
    }

    /// Lets the thread end, after what is in line now.
    pub(crate) async fn close(&self) {
        // An error says that it has ended already.
        let _ended = self.entries.send(Message::Close).await;
    }

    /// Says that the sync of a directory failed. The writer knows, and commits nothing; this ends the process at once.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Whether a write or a sync failed: nothing will be durable any more.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Whether the last batch met a full disk.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }
}

/// Starts the thread. It ends when it is closed (and seals), or when the disk fails.
pub(crate) fn start(
    writer: Writer<DirStorage>,
    facts: mpsc::Sender<Vec<Recorded>>,
    runtime: tokio::runtime::Handle,
) -> std::io::Result<(Journal, std::thread::JoinHandle<Result<(), CommitError>>)> {
    let (sender, entries) = mpsc::channel(QUEUE_RECORDS);
    let journal = Journal { entries: sender, failed: Arc::default(), full: Arc::default() };
    let thread = Thread {
        writer,
        entries,
        facts,
        failed: journal.failed.clone(),
        full: journal.full.clone(),
        batch: Vec::new(),
    };
    let handle = std::thread::Builder::new().name("journal".into()).spawn(move || thread.run(&runtime))?;
    Ok((journal, handle))
}

struct Thread {
    writer: Writer<DirStorage>,
    entries: mpsc::Receiver<Message>,
    facts: mpsc::Sender<Vec<Recorded>>,
    failed: Arc<AtomicBool>,
    full: Arc<AtomicBool>,
    batch: Vec<Entry>,
}

impl Thread {
    fn run(mut self, runtime: &tokio::runtime::Handle) -> Result<(), CommitError> {
        // However this thread ends, whoever hands over mail must learn of it.
        let _on_panic = FailedOnPanic(self.failed.clone());
        loop {
            match runtime.block_on(async { tokio::time::timeout(QUIET, self.entries.recv()).await }) {
                Ok(Some(Message::Entry(entry))) => self.one_batch(*entry)?,
                Ok(Some(Message::Close)) => self.entries.close(),
                Ok(None) => return self.writer.close(),
                Err(_quiet) => match self.writer.prove_last_batch() {
                    Ok(()) | Err(CommitError::Full(_)) => {}
                    Err(error) => return Err(self.stop(error)),
                },
            }
        }
    }

    /// Everything that is waiting now, as far as one batch takes it.
    fn one_batch(&mut self, first: Entry) -> Result<(), CommitError> {
        let now = clock::now();
        let mut outcome = self.writer.stage(&first.record, now);
        self.batch.push(first);
        while outcome.is_ok() && self.writer.has_room() {
            match self.entries.try_recv() {
                Ok(Message::Entry(entry)) => {
                    outcome = self.writer.stage(&entry.record, now);
                    self.batch.push(*entry);
                }
                Ok(Message::Close) => self.entries.close(),
                Err(_) => break,
            }
        }
        match outcome.and_then(|()| self.writer.commit(now)) {
            Ok(durable) => {
                self.is_full(None);
                self.tell(durable.receipts());
                self.check()
            }
            Err(CommitError::Full(error)) => {
                self.is_full(Some(&error));
                self.without_new_mail()
            }
            Err(error) => Err(self.stop(error)),
        }
    }

    /// On a full disk: new mail is refused, and what settles pending mail is tried again by itself. Room is kept for it.
    fn without_new_mail(&mut self) -> Result<(), CommitError> {
        let (mail, rest): (Vec<Entry>, Vec<Entry>) =
            self.batch.drain(..).partition(|entry| matches!(entry.fact, Fact::Accepted(_)));
        let mixed = !mail.is_empty();
        self.batch = mail;
        self.refuse(Refused::Full);
        self.batch = rest;
        if self.batch.is_empty() || !mixed {
            self.refuse(Refused::Full);
            return Ok(());
        }
        let now = clock::now();
        let staged = self.batch.iter().try_for_each(|entry| self.writer.stage(&entry.record, now));
        match staged.and_then(|()| self.writer.commit(now)) {
            Ok(durable) => {
                self.tell(durable.receipts());
                self.check()
            }
            Err(CommitError::Full(_)) => {
                self.refuse(Refused::Full);
                Ok(())
            }
            Err(error) => Err(self.stop(error)),
        }
    }

    /// The batch is durable; the writer may have met its end in making the next segment.
    fn check(&mut self) -> Result<(), CommitError> {
        match self.writer.failure() {
            None => Ok(()),
            Some(why) => Err(self.stop(CommitError::Poisoned(why.to_owned()))),
        }
    }

    /// Said once when it begins, and once when it ends.
    fn is_full(&self, error: Option<&std::io::Error>) {
        let was = self.full.swap(error.is_some(), Ordering::Relaxed);
        match (was, error) {
            (false, Some(error)) => tracing::warn!("no room for the journal, senders are told to come back: {error}"),
            (true, None) => tracing::info!("there is room for the journal again"),
            _ => {}
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
            recorded.push(Recorded { position: receipt.position(), fact: entry.fact, about: entry.about });
        }
        // The relay is gone only when the process ends; the facts are on disk.
        let _ended = self.facts.blocking_send(recorded);
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

    /// Fail-stop: whoever waits is told, and nothing is ever written again.
    fn stop(&mut self, error: CommitError) -> CommitError {
        self.failed.store(true, Ordering::Relaxed);
        self.refuse(Refused::Failed);
        self.entries.close();
        while let Ok(message) = self.entries.try_recv() {
            if let Message::Entry(entry) = message {
                self.batch.push(*entry);
            }
        }
        self.refuse(Refused::Failed);
        error
    }
}

/// Says that the journal has failed when the thread ends by a panic.
struct FailedOnPanic(Arc<AtomicBool>);

impl Drop for FailedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// The identifier of a message that has none yet; the writer gives it one.
pub(crate) const NOT_YET: TransactionId = TransactionId::from_bits(0);

#[cfg(test)]
impl Journal {
    /// One on a disk that stays full, and how many records it was offered.
    pub(crate) fn full() -> (Self, Arc<std::sync::atomic::AtomicUsize>) {
        let (sender, mut entries) = mpsc::channel(QUEUE_RECORDS);
        let offered = Arc::<std::sync::atomic::AtomicUsize>::default();
        let count = offered.clone();
        tokio::spawn(async move {
            while let Some(Message::Entry(entry)) = entries.recv().await {
                count.fetch_add(1, Ordering::Relaxed);
                entry.answer.map(|answer| answer.send(Err(Refused::Full)));
            }
        });
        (Self { entries: sender, failed: Arc::default(), full: Arc::default() }, offered)
    }
}
