//! One message as the ledger holds it: where its bytes are and how its recipients stand, and what a record changes in that.

use crate::ledger::RouteIndex;
use crate::{Action, Cause, Outcome, Position};
use restante_envelope::{ForwardPath, Timestamp};
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

/// A mailbox, as far as it must be told from others: 32 bits of its address, which nobody can turn back into it. Two
/// that look like one share their turns, and the memory of whether the primary took mail for them; nothing is decided
/// by it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mailbox(pub u32);

impl From<&ForwardPath> for Mailbox {
    /// FNV-1a (draft-eastlake-fnv) of the canonical address, the upper half folded into the lower.
    fn from(path: &ForwardPath) -> Self {
        const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(PRIME);
        let hash = path.canonical().bytes().fold(OFFSET, step);
        #[expect(clippy::cast_possible_truncation, reason = "both halves are in it")]
        Self((hash ^ (hash >> 32)) as u32)
    }
}

/// How one recipient stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecipientEntry {
    /// The route its mail takes; `RouteIndex::MAX` when the record that named it is unreadable.
    pub route: RouteIndex,
    /// Whose it is; the default where the record that named it is unreadable.
    pub mailbox: Mailbox,
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
    /// Frozen, by an operator or by a safety rule.
    Hold,
    /// The primary refused it for good, and that is not believed yet: a server whose tables are missing refuses all.
    Refused,
    /// Taken by the primary. Final.
    Sent,
    /// Refused for good, or given back by an operator. Final, unless undone.
    Bounced,
    /// Given up after its time. Final, unless undone.
    Expired,
    /// Removed by an operator. Final, unless undone.
    Removed,
    /// Bytes damaged. Final, unless a later record shows it was settled before the damage.
    Quarantined,
}

impl RecipientState {
    /// Whether nothing will be done for this recipient any more.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Sent | Self::Bounced | Self::Expired | Self::Removed | Self::Quarantined)
    }

    /// The state after a record that says `told`; none if that record changes nothing. A settled recipient stays settled;
    /// only one that is not sent may turn out to have been sent, by an attempt that was under way. One that an operator
    /// froze while an attempt was under way stays frozen: the refusal does not undo that.
    pub fn after(self, told: Self) -> Option<Self> {
        match (self, told) {
            (Self::Sent, _) => None,
            (Self::Quarantined | Self::Bounced | Self::Expired | Self::Removed, told) if told != Self::Sent => None,
            (Self::Hold, Self::Deferred(_) | Self::Refused) => Some(self),
            (_, told) => Some(told),
        }
    }

    /// The state after an operator's action; none if it changes nothing. What was sent cannot be taken back, and nobody
    /// has the bytes of what is quarantined.
    pub fn after_action(self, action: Action) -> Option<Self> {
        match (action, self) {
            (Action::Undo, Self::Bounced | Self::Expired | Self::Removed) => Some(Self::Due),
            (Action::Undo, _) => None,
            (_, settled) if settled.is_settled() => None,
            (Action::Hold, _) => Some(Self::Hold),
            (Action::Release, _) => Some(Self::Due),
            (Action::Bounce, _) => Some(Self::Bounced),
            (Action::Settle, Self::Refused) => Some(Self::Bounced),
            (Action::Expire, Self::Due | Self::Deferred(_) | Self::Refused) => Some(Self::Expired),
            (Action::Settle | Action::Expire, _) => None,
            (Action::Remove, _) => Some(Self::Removed),
        }
    }
}

impl From<&Outcome> for RecipientState {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Sent(_) => Self::Sent,
            Outcome::Deferred { next_at, .. } => Self::Deferred(*next_at),
            Outcome::Held(Cause::Reply(_) | Cause::Content(_)) => Self::Refused,
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
