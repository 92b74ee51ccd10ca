//! What is handed to the journal, and what it answers.

use super::super::memory::Share;
use restante_journal::{Prepared, Receipt};
use restante_ledger::{Accepted, Fact, Position};
use restante_relay::Claim;
use restante_smtp::{Resolution, Trouble};
use std::sync::Arc;
use tokio::sync::oneshot;

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
    /// Of new mail: what it takes of its routes' room, until the relay counts it.
    pub(crate) claim: Option<Claim>,
}

impl Entry {
    /// Content that stands in the record of a message that is carried.
    pub(crate) fn carried_bytes(&self) -> u64 {
        match &self.fact {
            Fact::Carried(carried) if self.record.blob().is_none() => carried.accepted.content_len,
            _ => 0,
        }
    }
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
    pub(crate) claim: Option<Claim>,
}
