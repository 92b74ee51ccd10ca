//! One message as the ledger holds it: where its bytes are and how its recipients stand, and what a record changes in that.

use crate::ledger::RouteIndex;
use crate::{Action, Outcome, Position};
use restante_envelope::Timestamp;
use std::ops::{Deref, DerefMut};

/// One accepted message: where its bytes are and how its recipients stand. No addresses, no content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Where its `Accepted` record is.
    pub position: Position,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// Bytes of content.
    pub content_len: u64,
    /// In the envelope's order.
    pub recipients: Recipients,
}

/// The recipients of a transaction: a slice of entries. Most messages have one recipient, and that one needs no
/// allocation of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipients(Entries);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entries {
    One(RecipientEntry),
    /// None, or more than one.
    Many(Box<[RecipientEntry]>),
}

impl FromIterator<RecipientEntry> for Recipients {
    fn from_iter<I: IntoIterator<Item = RecipientEntry>>(entries: I) -> Self {
        let mut entries = entries.into_iter();
        let first = entries.next();
        match (first, entries.next()) {
            (Some(only), None) => Self(Entries::One(only)),
            (first, second) => Self(Entries::Many(first.into_iter().chain(second).chain(entries).collect())),
        }
    }
}

impl Deref for Recipients {
    type Target = [RecipientEntry];
    fn deref(&self) -> &[RecipientEntry] {
        match &self.0 {
            Entries::One(entry) => std::slice::from_ref(entry),
            Entries::Many(entries) => entries,
        }
    }
}

impl DerefMut for Recipients {
    fn deref_mut(&mut self) -> &mut [RecipientEntry] {
        match &mut self.0 {
            Entries::One(entry) => std::slice::from_mut(entry),
            Entries::Many(entries) => entries,
        }
    }
}

impl<'a> IntoIterator for &'a Recipients {
    type Item = &'a RecipientEntry;
    type IntoIter = std::slice::Iter<'a, RecipientEntry>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// How one recipient stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecipientEntry {
    /// The route its mail takes; `RouteIndex::MAX` when the record that named it is unreadable.
    pub route: RouteIndex,
    /// Attempts that reached a reply or an in-doubt end.
    pub attempts: u16,
    /// Its state.
    pub state: RecipientState,
}

/// The states of a recipient that are durable. Whether a pending one is *waiting* (primary down) or *active* (being
/// delivered now) is the running daemon's knowledge, not the journal's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecipientState {
    /// To be tried as soon as the primary takes mail.
    Due,
    /// Tried, refused for now; not before this instant.
    Deferred(Timestamp),
    /// Frozen.
    Hold,
    /// Taken by the primary. Final.
    Sent,
    /// Given back by an operator. Final, unless undone.
    Bounced,
    /// Removed by an operator. Final, unless undone.
    Removed,
    /// Bytes damaged. Final, unless a later record shows it was settled before the damage.
    Quarantined,
}

impl RecipientState {
    /// Whether nothing will be done for this recipient any more.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Sent | Self::Bounced | Self::Removed | Self::Quarantined)
    }

    /// The state after a record that says `told`; none if that record changes nothing. A settled recipient stays settled;
    /// only one that is not sent may turn out to have been sent, by an attempt that was under way. One that an operator
    /// froze while an attempt was under way stays frozen: the refusal does not undo that.
    pub fn after(self, told: Self) -> Option<Self> {
        match (self, told) {
            (Self::Sent, _) => None,
            (Self::Quarantined | Self::Bounced | Self::Removed, told) if told != Self::Sent => None,
            (Self::Hold, Self::Deferred(_)) => Some(self),
            (_, told) => Some(told),
        }
    }

    /// The state after an operator's action; none if it changes nothing. What was sent cannot be taken back, and nobody
    /// has the bytes of what is quarantined.
    pub fn after_action(self, action: Action) -> Option<Self> {
        match (action, self) {
            (Action::Undo, Self::Bounced | Self::Removed) => Some(Self::Due),
            (Action::Undo, _) | (_, Self::Sent | Self::Bounced | Self::Removed | Self::Quarantined) => None,
            (Action::Hold, _) => Some(Self::Hold),
            (Action::Release, _) => Some(Self::Due),
            (Action::Bounce, _) => Some(Self::Bounced),
            (Action::Remove, _) => Some(Self::Removed),
        }
    }
}

impl From<&Outcome> for RecipientState {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Sent(_) => Self::Sent,
            Outcome::Deferred { next_at, .. } => Self::Deferred(*next_at),
            Outcome::Held(_) => Self::Hold,
            Outcome::Quarantined(_) => Self::Quarantined,
        }
    }
}

impl Transaction {
    /// Whether every recipient is settled.
    pub fn is_settled(&self) -> bool {
        self.recipients.iter().all(|r| r.state.is_settled())
    }

    pub(crate) fn is_history(&self) -> bool {
        self.recipients.iter().all(|r| r.state == RecipientState::Sent)
    }
}
