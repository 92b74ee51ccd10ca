//! One route's transactions: which are due, which wait for a time, which are being delivered. Sets of identifiers and
//! nothing more; knows no clock, no recipient, and not whether the primary is up.
//!
//! A transaction stands in one set at a time, and a million may wait: a due one costs its identifier, a deferred one its
//! time and a place in the order of times besides. There is no timer for any of them, but one instant for all.

use crate::load::Load;
use crate::status::{Counts, TransactionState};
use crate::turns::Turns;
use restante_envelope::{Timestamp, TransactionId};
use restante_ledger::{IdMap, Mailbox, RecipientState};
use std::collections::{BTreeMap, BTreeSet};

/// What the ledger says of a transaction's recipients on one route; of several, the first in this order counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// One can be tried now.
    Due,
    /// The first can be tried at this time.
    Deferred(Timestamp),
    /// One was refused, and the primary is not believed yet.
    Refused,
    /// All that are not settled are frozen.
    Hold,
    /// All are settled.
    Settled,
}

impl From<RecipientState> for Place {
    fn from(state: RecipientState) -> Self {
        match state {
            RecipientState::Due => Self::Due,
            RecipientState::Deferred(at) => Self::Deferred(at),
            RecipientState::Hold => Self::Hold,
            RecipientState::Refused => Self::Refused,
            RecipientState::Sent
            | RecipientState::Bounced
            | RecipientState::Expired
            | RecipientState::Removed
            | RecipientState::Quarantined => Self::Settled,
        }
    }
}

/// Connections that broke under a transaction since its last recorded attempt.
#[derive(Debug, Clone, Copy, Default)]
struct Broken {
    times: u16,
    not_before: Timestamp,
}

#[derive(Debug, Default)]
pub(crate) struct Schedule {
    // Every transaction with an unsettled recipient is in one of these six.
    due: Turns,
    deferred: IdMap<Timestamp>,
    refused: IdMap<()>,
    hold: IdMap<()>,
    active: IdMap<Mailbox>,
    /// Its attempt is over, and [`Self::place`] comes next.
    ended: Option<TransactionId>,
    deferred_by_time: BTreeSet<(Timestamp, TransactionId)>,
    /// Due by an operator's word, whatever times the ledger holds; until the next recorded attempt.
    flushed: IdMap<()>,
    /// What the primary refused in it is tried again; until the next recorded attempt.
    retried: IdMap<()>,
    broken: BTreeMap<TransactionId, Broken>,
    load: Load,
}

impl Schedule {
    /// An empty one, that counts its bytes here.
    pub(crate) fn counted(load: Load) -> Self {
        Self { load, ..Self::default() }
    }

    /// Puts a transaction where the ledger says. What only the running daemon knows (active, flushed, a wait after
    /// broken connections) comes before that.
    pub(crate) fn place(&mut self, id: TransactionId, content_len: u64, place: Place) {
        let is_active = self.active.contains(id);
        if is_active && place == Place::Settled {
            // Given up by an operator while it is being delivered. It stays active until that has ended: taken up again
            // before, it would be delivered twice at once.
            return self.forgive(id);
        }
        let known = is_active || self.ended.take_if(|ended| *ended == id).is_some() || self.unplace(id);
        match (place, known) {
            (Place::Settled, true) => self.load.remove(content_len),
            (Place::Settled, false) | (_, true) => {}
            (_, false) => self.load.add(content_len),
        }
        let wait = self.broken.get(&id).map_or(Timestamp::default(), |broken| broken.not_before);
        match place {
            Place::Settled => self.forgive(id),
            Place::Hold => {
                self.forgive(id);
                if !is_active {
                    self.hold.insert(id, ());
                }
            }
            _ if is_active => {}
            Place::Refused if !self.retried.contains(id) => _ = self.refused.insert(id, ()),
            Place::Deferred(at) if !self.flushed.contains(id) => self.defer(id, at.max(wait)),
            Place::Due | Place::Deferred(_) | Place::Refused if wait > Timestamp::default() => self.defer(id, wait),
            Place::Due | Place::Deferred(_) | Place::Refused => self.due.insert(id),
        }
    }

    /// False if it was in none of these.
    fn unplace(&mut self, id: TransactionId) -> bool {
        if let Some(at) = self.deferred.remove(id) {
            self.deferred_by_time.remove(&(at, id));
            return true;
        }
        self.due.remove(id) || self.refused.remove(id).is_some() || self.hold.remove(id).is_some()
    }

    fn defer(&mut self, id: TransactionId, at: Timestamp) {
        self.deferred.insert(id, at);
        self.deferred_by_time.insert((at, id));
    }

    /// Makes due whose time has come.
    pub(crate) fn wake(&mut self, now: Timestamp) {
        while let Some((at, id)) = self.deferred_by_time.first().copied().filter(|(at, _)| *at <= now) {
            self.deferred_by_time.remove(&(at, id));
            self.deferred.remove(id);
            self.due.insert(id);
        }
    }

    /// When [`Self::wake`] is next of use.
    pub(crate) fn next_wake(&self) -> Option<Timestamp> {
        self.deferred_by_time.first().map(|(at, _)| *at)
    }

    pub(crate) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    pub(crate) fn is_refused(&self, id: TransactionId) -> bool {
        self.refused.contains(id)
    }

    pub(crate) fn active_ids(&self) -> impl Iterator<Item = TransactionId> {
        self.active.iter().map(|(id, _)| id)
    }

    pub(crate) fn is_active(&self, id: TransactionId) -> bool {
        self.active.contains(id)
    }

    pub(crate) fn active(&self) -> usize {
        self.active.len()
    }

    pub(crate) fn is_flushed(&self, id: TransactionId) -> bool {
        self.flushed.contains(id)
    }

    pub(crate) fn is_retried(&self, id: TransactionId) -> bool {
        self.retried.contains(id)
    }

    /// The one whose turn it is of the due ones becomes active; a mailbox has no more than `share` while others wait.
    pub(crate) fn begin(&mut self, share: usize, mailbox: impl Fn(TransactionId) -> Mailbox) -> Option<TransactionId> {
        let (id, mailbox) = self.due.take(share, mailbox)?;
        self.active.insert(id, mailbox);
        Some(id)
    }

    /// This one becomes active, due or refused.
    pub(crate) fn begin_this(&mut self, id: TransactionId, mailbox: Mailbox) {
        if self.refused.remove(id).is_some() {
            self.retried.insert(id, ());
        }
        self.due.take_this(id, mailbox);
        self.active.insert(id, mailbox);
    }

    /// The oldest of the due ones, this many at most, in order.
    pub(crate) fn oldest_due(&self, most: usize) -> Vec<TransactionId> {
        self.due.oldest(most)
    }

    /// Those that were refused, oldest first.
    pub(crate) fn refused(&self) -> impl Iterator<Item = TransactionId> {
        self.refused.iter().map(|(id, ())| id)
    }

    /// What was refused is due once more, of these.
    pub(crate) fn retry_refused(&mut self, these: impl Fn(TransactionId) -> bool) {
        for (id, ()) in std::mem::take(&mut self.refused).iter() {
            if these(id) {
                self.due.insert(id);
                self.retried.insert(id, ());
            } else {
                self.refused.insert(id, ());
            }
        }
    }

    /// Its attempt is over and recorded; [`Self::place`] comes next.
    pub(crate) fn recorded(&mut self, id: TransactionId) {
        self.unrecorded(id);
        self.forgive(id);
    }

    /// Its attempt is over and nothing was recorded; [`Self::place`] comes next. False if there was no such attempt.
    pub(crate) fn unrecorded(&mut self, id: TransactionId) -> bool {
        let Some(mailbox) = self.active.remove(id) else { return false };
        self.due.ended(mailbox);
        self.ended = Some(id);
        true
    }

    /// Counts a connection that broke under it; returns how many did.
    pub(crate) fn broke(&mut self, id: TransactionId) -> u16 {
        let broken = self.broken.entry(id).or_default();
        broken.times = broken.times.saturating_add(1);
        broken.times
    }

    /// It must wait, for the connections that broke under it.
    pub(crate) fn wait_until(&mut self, id: TransactionId, not_before: Timestamp) {
        if let Some(broken) = self.broken.get_mut(&id) {
            broken.not_before = not_before;
        }
    }

    /// Forgets flushes and broken connections.
    pub(crate) fn forgive(&mut self, id: TransactionId) {
        self.flushed.remove(id);
        self.retried.remove(id);
        self.broken.remove(&id);
    }

    /// Forgets all flushes and broken connections.
    pub(crate) fn forgive_all(&mut self) {
        (self.flushed, self.retried) = (IdMap::default(), IdMap::default());
        self.broken.clear();
    }

    /// Makes all deferred ones due; returns how many are pending and not on hold.
    pub(crate) fn flush_all(&mut self) -> usize {
        self.broken.clear();
        self.deferred_by_time.clear();
        for (id, _) in std::mem::take(&mut self.deferred).iter() {
            self.due.insert(id);
            self.flushed.insert(id, ());
        }
        self.due.len() + self.active.len()
    }

    /// Makes one due; false if it is on hold or unknown.
    pub(crate) fn flush(&mut self, id: TransactionId) -> bool {
        if self.active.contains(id) {
            return true;
        }
        self.broken.remove(&id);
        let moves = !self.hold.contains(id) && !self.refused.contains(id) && self.unplace(id);
        if moves {
            self.due.insert(id);
            self.flushed.insert(id, ());
        }
        moves
    }

    pub(crate) fn state(&self, id: TransactionId) -> Option<TransactionState> {
        match id {
            _ if self.active.contains(id) => Some(TransactionState::Active),
            _ if self.deferred.contains(id) => Some(TransactionState::Deferred),
            _ if self.due.contains(id) => Some(TransactionState::Waiting),
            _ if self.hold.contains(id) || self.refused.contains(id) => Some(TransactionState::Hold),
            _ => None,
        }
    }

    /// When a deferred one becomes due.
    pub(crate) fn due_at(&self, id: TransactionId) -> Option<Timestamp> {
        self.deferred.get(id).copied()
    }

    pub(crate) fn counts(&self) -> Counts {
        let frozen = self.hold.len() + self.refused.len();
        let lens = [self.active.len(), self.deferred.len(), self.due.len(), frozen];
        let [active, deferred, waiting, hold] = lens.map(|n| n as u64);
        Counts { active, deferred, waiting, hold }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.load.bytes()
    }

    pub(crate) fn oldest(&self) -> Option<TransactionId> {
        let frozen = [&self.hold, &self.refused].map(|ids| ids.first().map(|(id, ())| id));
        let others = [self.active.first().map(|(id, _)| id), self.deferred.first().map(|(id, _)| id), self.due.first()];
        frozen.into_iter().chain(others).flatten().min()
    }
}
