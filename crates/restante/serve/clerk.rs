//! Writes down what the relay decided by itself about messages that nobody is delivering, and how primaries stand: one task, one at a time, as an
//! operator would. Decides nothing.

use super::settlements::Settlements;
use crate::clock;
use restante_envelope::TransactionId;
use restante_journal::{DirStorage, Reader};
use restante_ledger::{Action, Fact, Operated, Position, RecipientIndex, Watched};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};

/// Who did it, where an operator's name would stand.
const ACTOR: &str = "restante";

/// What is to be written down.
pub(crate) enum Decision {
    /// About a message.
    Operate { id: TransactionId, position: Position, action: Action, recipients: Vec<RecipientIndex>, reason: String },
    /// About a primary.
    Watch(Watched),
}

/// The end that the relay's task has: it never waits. The line is as long as what the relay has in memory of it anyway.
pub(crate) type Decisions = mpsc::UnboundedSender<Decision>;

pub(crate) struct Clerk {
    pub(crate) storage: DirStorage,
    pub(crate) settlements: Arc<Settlements>,
    /// Held by whoever changes how recipients stand.
    pub(crate) operating: Arc<Semaphore>,
}

impl Clerk {
    /// Runs until the relay's task has ended.
    pub(crate) async fn run(self, mut decisions: mpsc::UnboundedReceiver<Decision>) {
        let mut reader = Reader::new(self.storage);
        while let Some(decision) = decisions.recv().await {
            let (id, position, action, recipients, reason) = match decision {
                Decision::Operate { id, position, action, recipients, reason } => {
                    (id, position, action, recipients, reason)
                }
                Decision::Watch(watched) => {
                    self.settlements.record(Fact::Watched(watched), None).await;
                    continue;
                }
            };
            // For the log alone: it is done all the same where the envelope cannot be read.
            let read = move || (reader.accepted(position, id).ok(), reader);
            let Ok((about, back)) = tokio::task::spawn_blocking(read).await else { return };
            reader = back;
            let Ok(_permit) = self.operating.clone().acquire_owned().await else { return };
            let operated = Operated { id, at: clock::now(), action, recipients, actor: ACTOR.into(), reason };
            self.settlements.record(Fact::Operated(operated), about.map(Arc::new)).await;
        }
    }
}
