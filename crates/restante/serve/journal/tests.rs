//! Who writes when, that nobody is forgotten in line, and what happens when the one who writes fails.

use super::super::memory::Share;
use super::*;
use crate::cli::journal::testing::{contents, message, writer};
use restante_ledger::Accepted;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicUsize;
use tempfile::TempDir;

type Answer = oneshot::Receiver<Result<Receipt, Refused>>;
type Thread = std::thread::JoinHandle<Result<(), CommitError>>;

impl Journal {
    /// One on a disk that stays full, and how many records it was offered.
    pub(crate) fn full(writer: Writer<DirStorage>) -> (Self, Arc<AtomicUsize>) {
        let shared = Arc::new(Shared::new(
            pen(writer, mpsc::channel(1).0),
            Arc::new(Reserve::in_directory(std::path::Path::new("/nowhere"))),
        ));
        let offered = Arc::<AtomicUsize>::default();
        let (journal, count) = (Self(shared.clone()), offered.clone());
        std::thread::spawn(move || {
            loop {
                let mut line = shared.line();
                line.is_asleep = true;
                let mut line = shared.call.wait_while(line, |line| line.entries.is_empty()).unwrap();
                count.fetch_add(line.entries.len(), Ordering::Relaxed);
                for entry in line.entries.drain(..) {
                    entry.answer.map(|answer| answer.send(Err(Refused::Full)));
                }
            }
        });
        (journal, offered)
    }
}

fn pen(writer: Writer<DirStorage>, facts: mpsc::Sender<Vec<Recorded>>) -> Pen {
    Pen { writer, facts, taken: VecDeque::new(), batch: Vec::new() }
}

/// A journal with its thread, and what the relay is told.
fn started() -> (TempDir, Journal, Thread, mpsc::Receiver<Vec<Recorded>>) {
    let data = tempfile::tempdir().unwrap();
    let (sender, facts) = mpsc::channel(10_000);
    let (journal, thread) = start(writer(data.path()), sender, Arc::new(Reserve::in_directory(data.path()))).unwrap();
    (data, journal, thread, facts)
}

fn entry() -> (Entry, Answer) {
    let record = message(b"x", &["a@x.test"], None);
    let data = tempfile::tempdir().unwrap();
    let mut other = writer(data.path());
    crate::cli::journal::testing::write(&mut other, std::slice::from_ref(&record));
    drop(other);
    let ledger_fact = {
        let storage = DirStorage::open(data.path()).unwrap();
        let ledger = contents(data.path()).ledger;
        let (id, transaction) = ledger.iter().next().unwrap();
        restante_journal::Reader::new(storage).accepted(transaction.position, id).unwrap()
    };
    let (answer, receiver) = oneshot::channel();
    let fact = Fact::Accepted(Accepted { id: NOT_YET, ..ledger_fact });
    (Entry { record, fact, about: None, answer: Some(answer), memory: Share::default(), claim: None }, receiver)
}

/// The same message again.
fn copy(of: &Entry) -> (Entry, Answer) {
    let (answer, receiver) = oneshot::channel();
    let (record, fact) = (of.record.clone(), of.fact.clone());
    (Entry { record, fact, about: None, answer: Some(answer), memory: Share::default(), claim: None }, receiver)
}

/// Takes the pen as soon as the thread has put it back.
fn take_pen(journal: &Journal) -> Pen {
    loop {
        if let Some(pen) = journal.0.line().pen.take() {
            return pen;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_message_that_comes_alone_waits_for_no_thread() {
    let (_data, journal, thread, _facts) = started();
    let (model, _) = entry();
    // As many as it takes: a disk that is busy with others syncs slowly for a while.
    while journal.0.line().alone_in_a_row < ALONE {
        let (entry, answer) = copy(&model);
        journal.offer(entry).unwrap();
        answer.blocking_recv().unwrap().unwrap();
        // The answer comes before the pen is back; the next message is to find it there.
        let pen = take_pen(&journal);
        journal.0.line().pen = Some(pen);
    }
    let (entry, mut answer) = copy(&model);
    journal.offer(entry).unwrap();
    assert!(answer.try_recv().unwrap().is_ok(), "it is durable when it has been handed over");
    journal.close();
    thread.join().unwrap().unwrap();
}

#[test]
fn who_comes_while_somebody_writes_shares_the_next_batch() {
    let (data, journal, thread, mut facts) = started();
    let (model, _) = entry();
    let pen = take_pen(&journal);
    let mut answers = Vec::new();
    for _ in 0..100 {
        let (entry, answer) = copy(&model);
        journal.offer(entry).unwrap();
        answers.push(answer);
    }
    assert!(answers.iter_mut().all(|answer| answer.try_recv().is_err()), "nobody has written yet");
    journal.0.hold(pen).lead();
    assert_eq!(facts.try_recv().unwrap().len(), 100, "one batch");
    let ids: Vec<_> = answers.into_iter().map(|answer| answer.blocking_recv().unwrap().unwrap().id()).collect();
    assert!(ids.is_sorted());
    journal.close();
    thread.join().unwrap().unwrap();
    assert_eq!(contents(data.path()).ledger.iter().count(), 100);
}

#[test]
fn nobody_is_forgotten_in_line() {
    const EACH: usize = 300;
    let (data, journal, thread, mut facts) = started();
    let (model, _) = entry();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    std::thread::scope(|scope| {
        for settles in [false, false, true] {
            let (journal, model, handle) = (journal.clone(), &model, runtime.handle().clone());
            scope.spawn(move || {
                for _ in 0..EACH {
                    let (entry, answer) = copy(model);
                    match settles {
                        true => handle.block_on(journal.submit(entry)).unwrap(),
                        false => journal.offer(entry).unwrap(),
                    }
                    answer.blocking_recv().unwrap().unwrap();
                }
            });
        }
    });
    journal.close();
    thread.join().unwrap().unwrap();
    let mut told = 0;
    while let Some(batch) = facts.blocking_recv() {
        told += batch.len();
    }
    assert_eq!((told, contents(data.path()).ledger.iter().count()), (3 * EACH, 3 * EACH));
    assert_eq!(journal.0.line().length, 0);
}

#[test]
fn a_full_line_turns_mail_away_and_lets_settlements_wait() {
    let (_data, journal, thread, _facts) = started();
    let (model, _) = entry();
    let pen = take_pen(&journal);
    for _ in 0..LINE_RECORDS_MAX {
        journal.offer(copy(&model).0).unwrap();
    }
    assert_eq!(journal.offer(copy(&model).0), Err(Refused::Busy));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (entry, answer) = copy(&model);
    runtime.block_on(async {
        let mut waits = pin!(journal.submit(entry));
        assert!(futures_are_pending(waits.as_mut()).await);
        journal.0.hold(pen).lead();
        waits.await.unwrap();
    });
    answer.blocking_recv().unwrap().unwrap();
    journal.close();
    thread.join().unwrap().unwrap();
}

/// Whether it waits when it is looked at once.
async fn futures_are_pending<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
    std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_pending())).await
}

#[test]
fn a_panic_of_whoever_writes_is_a_failed_journal_and_no_silence() {
    let (_data, journal, thread, _facts) = started();
    let (model, _) = entry();
    let pen = take_pen(&journal);
    let (entry, answer) = copy(&model);
    journal.offer(entry).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _held = journal.0.hold(pen);
        panic!("a defect");
    }));
    assert!(panicked.is_err() && journal.has_failed());
    assert_eq!(answer.blocking_recv().unwrap(), Err(Refused::Failed));
    assert_eq!(journal.offer(copy(&model).0), Err(Refused::Failed));
    assert!(thread.join().unwrap().is_err());
}
