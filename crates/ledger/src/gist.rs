//! What the fold needs of a fact, and nothing else: no words, and of addresses 32 bits. Summaries of segments hold these, so that a start
//! need not read what it does not keep.

use crate::{Accepted, Action, Fact, Mailbox, RecipientIndex, RecipientState, Served, Watched};
use restante_envelope::{RouteName, Timestamp, TransactionId};

/// A fact, as far as [`crate::Ledger::recall`] is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gist {
    /// Of [`Fact::Accepted`].
    Accepted {
        /// The message.
        id: TransactionId,
        /// When it was accepted.
        at: Timestamp,
        /// Bytes of content.
        content_len: u64,
        /// One for each recipient.
        to: Vec<(RouteName, Mailbox)>,
        /// Due, or on hold.
        state: RecipientState,
    },
    /// Of [`Fact::Attempted`].
    Attempted {
        /// The message.
        id: TransactionId,
        /// When the outcome was known.
        at: Timestamp,
        /// What it made of each recipient that was tried.
        results: Vec<(RecipientIndex, RecipientState)>,
    },
    /// Of [`Fact::Operated`].
    Operated {
        /// The message.
        id: TransactionId,
        /// When.
        at: Timestamp,
        /// What was done.
        action: Action,
        /// To which recipients.
        recipients: Vec<RecipientIndex>,
    },
    /// Of [`Fact::Carried`].
    Carried {
        /// The message.
        id: TransactionId,
        /// When it was accepted.
        at: Timestamp,
        /// Bytes of content.
        content_len: u64,
        /// One for each recipient.
        to: Vec<(RouteName, Mailbox)>,
        /// Attempts and state of each.
        standings: Vec<(u16, RecipientState)>,
    },
    /// All of it: there are few.
    Served(Served),
    /// All of it: there are few.
    Watched(Watched),
    /// A fact that changes nothing in the ledger.
    Other,
}

impl From<&Fact> for Gist {
    fn from(fact: &Fact) -> Self {
        match fact {
            Fact::Accepted(accepted) => Self::Accepted {
                id: accepted.id,
                at: accepted.trace.received_at,
                content_len: accepted.content_len,
                to: to(accepted),
                state: accepted.state(),
            },
            Fact::Attempted(attempted) => Self::Attempted {
                id: attempted.id,
                at: attempted.at,
                results: attempted.results.iter().map(|(index, outcome)| (*index, outcome.into())).collect(),
            },
            Fact::Operated(operated) => Self::Operated {
                id: operated.id,
                at: operated.at,
                action: operated.action,
                recipients: operated.recipients.clone(),
            },
            Fact::Carried(carried) => Self::Carried {
                id: carried.accepted.id,
                at: carried.accepted.trace.received_at,
                content_len: carried.accepted.content_len,
                to: to(&carried.accepted),
                standings: carried.recipients.iter().map(|told| (told.attempts, told.state)).collect(),
            },
            Fact::Served(served) => Self::Served(served.clone()),
            Fact::Watched(watched) => Self::Watched(watched.clone()),
            Fact::Replayed(_) => Self::Other,
        }
    }
}

fn to(accepted: &Accepted) -> Vec<(RouteName, Mailbox)> {
    let recipients = accepted.envelope.recipients.iter();
    recipients.map(|recipient| (recipient.route.clone(), Mailbox::from(&recipient.forward_path))).collect()
}
