//! Outcomes on their way into the journal. The courier does not wait for them: it takes its next message. What a full disk
//! refused is offered again. Decides nothing; the relay hears of an outcome by the fact, once that is durable.

use super::journal::{Entry, Journal, Refused};
use super::memory::Share;
use restante_journal::{Prepared, Receipt};
use restante_ledger::{Accepted, Fact};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

/// A settlement that met a full disk is offered again after this.
const FULL_RETRY: Duration = Duration::from_secs(1);

pub(crate) struct Settlements {
    journal: Journal,
    retry: Duration,
    /// The lock is never held across a wait.
    open: Mutex<Open>,
}

/// At most one settlement for each active attempt.
#[derive(Default)]
struct Open {
    /// In the order in which the journal answers.
    waiting: VecDeque<Settlement>,
    refused: Vec<Settlement>,
    /// A task looks after them.
    watched: bool,
}

struct Settlement {
    fact: Fact,
    about: Option<Arc<Accepted>>,
    outcome: oneshot::Receiver<Result<Receipt, Refused>>,
}

/// What became of a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// Durable, or the journal has ended: the next start knows nothing of it then, and tries again.
    Over,
    Refused,
}

impl Settlement {
    fn stage(&mut self) -> Stage {
        match self.outcome.try_recv() {
            Ok(Err(Refused::Full | Refused::Busy | Refused::Broken)) => Stage::Refused,
            Ok(Ok(_) | Err(Refused::Failed | Refused::Stopping)) | Err(TryRecvError::Closed) => Stage::Over,
            Err(TryRecvError::Empty) => Stage::Waiting,
        }
    }
}

impl Open {
    /// Takes out what was answered.
    fn sweep(&mut self) {
        while let Some(mut first) = self.waiting.pop_front() {
            match first.stage() {
                Stage::Waiting => {
                    self.waiting.push_front(first);
                    return;
                }
                Stage::Refused => self.refused.push(first),
                Stage::Over => {}
            }
        }
    }
}

impl Settlements {
    pub(crate) fn new(journal: Journal) -> Arc<Self> {
        Arc::new(Self { journal, retry: FULL_RETRY, open: Mutex::default() })
    }

    /// Whether what becomes of a message can not be recorded now.
    pub(crate) fn are_stuck(&self) -> bool {
        self.journal.is_stuck()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an outcome to the journal. Waits for room in its line alone.
    pub(crate) async fn record(self: &Arc<Self>, fact: Fact, about: Option<Arc<Accepted>>) {
        self.submit(fact, about).await;
        // Nobody is woken for an answer: one task sees to all, once a second while there are any. It outlives the courier.
        if !std::mem::replace(&mut self.open().watched, true) {
            tokio::spawn(self.clone().watch());
        }
    }

    /// Says what a full disk kept from the journal until now: the next start does not know of it.
    pub(crate) fn give_up(&self) {
        let mut open = self.open();
        open.sweep();
        let ids = open.refused.iter().filter_map(|settlement| settlement.fact.transaction());
        let ids: Vec<String> = ids.map(|id| id.to_string()).collect();
        if !ids.is_empty() {
            tracing::error!(
                "the disk is full: what became of {} message(s) was not recorded, they may be sent again after the next start: {}",
                ids.len(),
                ids.join(" ")
            );
        }
    }

    async fn submit(&self, fact: Fact, about: Option<Arc<Accepted>>) {
        let record = Prepared::fact(&fact, Vec::new());
        let (answer, outcome) = oneshot::channel();
        let (kept, told) = (fact.clone(), about.clone());
        let entry = Entry { record, fact, about, answer: Some(answer), memory: Share::default(), claim: None };
        if self.journal.submit(entry).await.is_ok() {
            let mut open = self.open();
            open.sweep();
            open.waiting.push_back(Settlement { fact: kept, about: told, outcome });
        }
    }

    async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.retry).await;
            let refused = {
                let mut open = self.open();
                open.sweep();
                if open.waiting.is_empty() && open.refused.is_empty() {
                    open.watched = false;
                    return;
                }
                std::mem::take(&mut open.refused)
            };
            for Settlement { fact, about, .. } in refused {
                self.submit(fact, about).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use restante_envelope::TransactionId;
    use restante_ledger::{Attempted, Timings};
    use std::sync::atomic::Ordering;

    #[tokio::test]
    async fn what_a_full_disk_refused_is_offered_until_it_is_durable() {
        let data = tempfile::tempdir().unwrap();
        let (journal, offered) = Journal::full(crate::cli::journal::testing::writer(data.path()));
        let retry = Duration::from_millis(1);
        let settlements = Arc::new(Settlements { journal, retry, open: Mutex::default() });
        for n in 0..2 {
            let id = TransactionId::from_bits(n);
            let fact =
                Attempted { id, at: clock::now(), next_hop: None, timings: Timings::default(), results: Vec::new() };
            settlements.record(Fact::Attempted(fact), None).await;
        }
        while offered.load(Ordering::Relaxed) < 6 {
            tokio::task::yield_now().await;
        }
        let open = settlements.open();
        assert!(open.watched && open.waiting.len() + open.refused.len() <= 2);
    }
}
