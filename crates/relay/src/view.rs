//! What the ledger says, as a lane asks it: whose a message is, where it belongs, what an attempt told of its primaries. Changes nothing.

use crate::breaker::Signs;
use crate::lane::Messages;
use crate::schedule::Place;
use restante_envelope::{Timestamp, TransactionId};
use restante_ledger::{
    Attempted, Cause, Ledger, Mailbox, Outcome, RecipientEntry, RecipientIndex, RecipientState, RouteIndex, Transaction,
};
use std::collections::BTreeMap;

/// What an attempt says of the primaries that were asked, before it is applied: whom they know is the question.
pub(crate) fn signs(ledger: &Ledger, attempted: &Attempted) -> BTreeMap<RouteIndex, Signs> {
    let mut signs: BTreeMap<RouteIndex, Signs> = BTreeMap::new();
    let Some(transaction) = ledger.get(attempted.id) else { return signs };
    for (index, outcome) in &attempted.results {
        let Some(entry) = transaction.recipients.get(usize::from(*index)) else { continue };
        let is_known = ledger.knows(entry.route, entry.mailbox);
        let signs = match outcome {
            Outcome::Sent(_) | Outcome::Held(Cause::Reply(_) | Cause::Content(_)) => signs.entry(entry.route),
            Outcome::Deferred { cause: Cause::Reply(_) | Cause::Content(_), .. } => signs.entry(entry.route),
            _ => continue,
        };
        let signs = signs.or_default();
        match outcome {
            Outcome::Sent(_) => {
                signs.accepted = Some(is_known || signs.accepted == Some(true));
                signs.known = Some(entry.mailbox);
            }
            Outcome::Held(cause) => {
                signs.refused.push((*index, cause.to_string()));
                if is_known && matches!(cause, Cause::Reply(_)) {
                    signs.refused_known = Some(entry.mailbox);
                }
            }
            _ => {}
        }
    }
    signs
}

/// The ledger, as a lane is shown it.
pub(crate) struct View<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) by_ledger: &'a [usize],
    pub(crate) number: usize,
}

impl View<'_> {
    fn first_here(&self, id: TransactionId) -> Option<&RecipientEntry> {
        let here = |entry: &&RecipientEntry| self.by_ledger.get(usize::from(entry.route)) == Some(&self.number);
        self.ledger.get(id)?.recipients.iter().find(|entry| here(entry) && !entry.state.is_settled())
    }
}

impl Messages for View<'_> {
    fn mailbox(&self, id: TransactionId) -> Mailbox {
        self.first_here(id).map(|entry| entry.mailbox).unwrap_or_default()
    }

    fn is_known(&self, id: TransactionId) -> bool {
        self.first_here(id).is_some_and(|entry| self.ledger.knows(entry.route, entry.mailbox))
    }
}

/// Where a transaction belongs, on each route that has one of its recipients.
pub(crate) fn places(transaction: &Transaction) -> impl Iterator<Item = (RouteIndex, Place)> {
    let recipients = &transaction.recipients;
    // The first recipient of a route speaks for all of them.
    let speaks = |(nth, recipient): &(usize, &RecipientEntry)| {
        recipients.iter().take(*nth).all(|earlier| earlier.route != recipient.route)
    };
    recipients.iter().enumerate().filter(speaks).filter_map(move |(nth, speaker)| {
        let on_route = recipients.iter().skip(nth).filter(|recipient| recipient.route == speaker.route);
        on_route.map(|recipient| Place::from(recipient.state)).min().map(|place| (speaker.route, place))
    })
}

/// Where a transaction belongs on this lane, if it has a recipient there.
pub(crate) fn place_on(by_ledger: &[usize], transaction: &Transaction, lane: usize) -> Option<Place> {
    let here = |recipient: &&RecipientEntry| by_ledger.get(usize::from(recipient.route)) == Some(&lane);
    transaction.recipients.iter().filter(here).map(|recipient| Place::from(recipient.state)).min()
}

/// The recipients of a lane to be tried together; not empty if the transaction is due there.
pub(crate) fn due_recipients(
    by_ledger: &[usize],
    transaction: &Transaction,
    lane: usize,
    (flushed, retried): (bool, bool),
    now: Timestamp,
) -> Vec<RecipientIndex> {
    let until = match place_on(by_ledger, transaction, lane) {
        _ if flushed => Timestamp::from_unix_ms(u64::MAX),
        // It was woken at this time, wherever the clock stepped since.
        Some(Place::Deferred(at)) => at.max(now),
        _ => now,
    };
    let is_due = |recipient: &RecipientEntry| {
        by_ledger.get(usize::from(recipient.route)) == Some(&lane)
            && match recipient.state {
                RecipientState::Due => true,
                RecipientState::Deferred(at) => at <= until,
                RecipientState::Refused => retried,
                _ => false,
            }
    };
    let indexed = transaction.recipients.iter().enumerate();
    indexed.filter(|(_, r)| is_due(r)).filter_map(|(index, _)| RecipientIndex::try_from(index).ok()).collect()
}
