//! Which segments have had their time: settled mail is kept for a while, then its segment leaves, oldest first. Decides
//! and counts; removes nothing.
//!
//! A segment that is the journal's first and holds a few messages that will not settle would keep all behind it on the
//! disk. Two ways out were weighed: to let segments leave in any order, with a list of those that are gone; or to write such
//! messages again, at the end. The second: a journal stays one run of numbers, so that a missing one is still seen.

use crate::{Balance, RecipientState, Transaction};
use restante_envelope::{Timestamp, TransactionId};
use std::collections::BTreeMap;
use std::time::Duration;

/// Stragglers looked for at once: what is held in memory for them, and how long mail may wait while they are written.
const STRAGGLERS_MAX: usize = 1_024;

/// What the journal still knows of the segments that have left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// The first segment that counts. Files with lower numbers are dead.
    pub first: u64,
    /// Messages accepted in the segments before it.
    pub transactions: u64,
    /// Recipients of those messages.
    pub recipients: u64,
    /// Those of them that left with their segments, all settled. Those carried forward are not among them.
    pub left: Balance,
    /// The largest identifier given away before.
    pub largest_id: Option<TransactionId>,
}

impl Default for Base {
    fn default() -> Self {
        Self { first: 1, transactions: 0, recipients: 0, left: Balance::default(), largest_id: None }
    }
}

/// What one segment holds, as far as its leaving is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Tally {
    /// Messages whose first record is here, and their recipients; lost ones too.
    transactions: u64,
    recipients: u64,
    /// Of messages that were found missing here, without a name.
    unnamed: (u64, u64),
    /// Of messages here that are wholly sent, and so in nobody's memory.
    sent: (u64, u64),
    /// Messages here, with a recipient to be settled.
    live: u64,
    live_bytes: u64,
    /// Of all messages written here.
    bytes: u64,
    /// When the last of them was settled.
    settled_at: Timestamp,
}

/// All segments, and those before them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tallies {
    base: Base,
    segments: BTreeMap<u64, Tally>,
}

/// What may be done now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leaving {
    /// Segments before this one may leave, once no straggler is left in them.
    pub first: u64,
    /// Messages in those that are not settled, to be carried forward: the first of them.
    pub stragglers: Vec<TransactionId>,
}

impl Tallies {
    pub(crate) fn new(base: Base) -> Self {
        Self { base, segments: BTreeMap::new() }
    }

    pub(crate) fn base(&self) -> Base {
        self.base
    }

    fn of(&mut self, segment: u64) -> &mut Tally {
        self.segments.entry(segment).or_default()
    }

    /// A message came into being in its segment.
    pub(crate) fn accepted(&mut self, transaction: &Transaction) {
        let tally = self.of(transaction.position.segment);
        tally.transactions += 1;
        tally.recipients += transaction.recipients.len() as u64;
        self.placed(transaction);
    }

    /// Its record stands in this segment now.
    pub(crate) fn placed(&mut self, transaction: &Transaction) {
        let tally = self.of(transaction.position.segment);
        tally.bytes = tally.bytes.saturating_add(transaction.content_len);
        if transaction.is_settled() {
            tally.settled_at = tally.settled_at.max(transaction.accepted_at);
        } else {
            self.reopened(transaction);
        }
    }

    /// Its record counts here no more: another one does.
    pub(crate) fn moved_away(&mut self, transaction: &Transaction) {
        if !transaction.is_settled() {
            self.closed(transaction, Timestamp::default());
        }
    }

    /// Its last recipient was settled.
    pub(crate) fn closed(&mut self, transaction: &Transaction, at: Timestamp) {
        let tally = self.of(transaction.position.segment);
        tally.live = tally.live.saturating_sub(1);
        tally.live_bytes = tally.live_bytes.saturating_sub(transaction.content_len);
        tally.settled_at = tally.settled_at.max(at);
    }

    /// One of its recipients is to be settled again.
    pub(crate) fn reopened(&mut self, transaction: &Transaction) {
        let tally = self.of(transaction.position.segment);
        tally.live += 1;
        tally.live_bytes = tally.live_bytes.saturating_add(transaction.content_len);
    }

    /// It is wholly sent, and nobody's memory holds it from now on.
    pub(crate) fn forgotten(&mut self, transaction: &Transaction) {
        let sent = &mut self.of(transaction.position.segment).sent;
        sent.0 += 1;
        sent.1 += transaction.recipients.len() as u64;
    }

    pub(crate) fn unnamed(&mut self, segment: u64, transactions: u64, recipients: u64) {
        let tally = self.of(segment);
        tally.transactions += transactions;
        tally.recipients += recipients;
        tally.unnamed.0 += transactions;
        tally.unnamed.1 += recipients;
    }

    /// Up to which segment, the one being written included, all is settled since `retain` ago, or so nearly that the rest
    /// of it may be carried: what that writes is no more than what leaves.
    pub(crate) fn ripe_before(&self, newest: u64, retain: Duration, now: Timestamp) -> u64 {
        let mut first = self.base.first;
        while first <= newest {
            let tally = self.segments.get(&first).copied().unwrap_or_default();
            // In the newest, stragglers would be carried to where they stand; and where there is nothing, nothing is won.
            if first == newest && (tally.live > 0 || !self.segments.contains_key(&first)) {
                break;
            }
            let is_few = tally.live == 0 || tally.live_bytes.saturating_mul(2) <= tally.bytes;
            if !is_few || tally.settled_at + retain > now {
                break;
            }
            first += 1;
        }
        first
    }

    /// Messages to be settled in the segments before `first`.
    pub(crate) fn live_before(&self, first: u64) -> u64 {
        self.segments.range(..first).map(|(_, tally)| tally.live).sum()
    }

    /// What is known of the segments before `first`, once they are gone; `settled` are those of their messages that are in
    /// memory. None if one is to be settled.
    pub(crate) fn base_at<'a>(
        &self,
        first: u64,
        largest_id: Option<TransactionId>,
        settled: impl Iterator<Item = &'a Transaction>,
    ) -> Option<Base> {
        let mut base = Base { first, largest_id, ..self.base };
        for (_, tally) in self.segments.range(..first) {
            base.transactions += tally.transactions;
            base.recipients += tally.recipients;
            base.left.transactions += tally.unnamed.0 + tally.sent.0;
            base.left.accepted += tally.unnamed.1 + tally.sent.1;
            base.left.quarantined += tally.unnamed.1;
            base.left.sent += tally.sent.1;
            if tally.live > 0 {
                return None;
            }
        }
        for transaction in settled {
            base.left.transactions += 1;
            for recipient in &transaction.recipients {
                base.left.accepted += 1;
                *base.left.column(recipient.state) += 1;
            }
        }
        (base.left.pending == 0).then_some(base)
    }

    /// They are gone.
    pub(crate) fn left(&mut self, base: Base) {
        self.segments = self.segments.split_off(&base.first);
        self.base = base;
    }
}

/// As many as may be carried at once, in order of acceptance.
pub(crate) fn stragglers<'a>(
    first: u64,
    transactions: impl Iterator<Item = (TransactionId, &'a Transaction)>,
) -> Vec<TransactionId> {
    let live = transactions.filter(|(_, t)| t.position.segment < first && !t.is_settled());
    live.map(|(id, _)| id).take(STRAGGLERS_MAX).collect()
}

impl Balance {
    pub(crate) fn column(&mut self, state: RecipientState) -> &mut u64 {
        match state {
            RecipientState::Due | RecipientState::Deferred(_) | RecipientState::Hold => &mut self.pending,
            RecipientState::Sent => &mut self.sent,
            RecipientState::Bounced => &mut self.bounced,
            RecipientState::Removed => &mut self.removed,
            RecipientState::Quarantined => &mut self.quarantined,
        }
    }
}
