//! Which transactions an operator means, and what an action would change of them. Reads the ledger; changes nothing.

use restante_envelope::{RouteName, TransactionId};
use restante_ledger::{Action, Ledger, Position, RecipientIndex, RecipientState, Transaction};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// Of those named and not chosen, so many are told why: an answer for a person.
const PASSED_OVER_MAX: usize = 20;

/// Transactions an operator chose.
pub(crate) enum Which {
    All,
    Routes(Vec<RouteName>),
    /// These; on these routes alone, if any are named.
    Transactions(BTreeSet<TransactionId>, Vec<RouteName>),
    /// These, each on its route alone.
    Listed(BTreeMap<RouteName, BTreeSet<TransactionId>>),
}

/// A transaction, and the recipients that an action would change.
pub(crate) struct Chosen {
    pub(crate) id: TransactionId,
    pub(crate) position: Position,
    pub(crate) content_len: u64,
    pub(crate) recipients: Vec<RecipientIndex>,
    /// A hash of these recipients and of how they stand.
    pub(crate) standing: u64,
}

/// What an action would change.
pub(crate) struct Choice {
    /// In order of acceptance.
    pub(crate) members: Vec<Chosen>,
    /// The newest message there is.
    pub(crate) newest: Option<TransactionId>,
    /// How many of the members are being delivered now.
    pub(crate) active: usize,
    /// Named and not chosen, and why: some of them, if they are many.
    pub(crate) passed_over: Vec<(TransactionId, &'static str)>,
}

/// What the action would change of these. `active` are being delivered.
pub(crate) fn choose(ledger: &Ledger, which: &Which, action: Action, active: &BTreeSet<TransactionId>) -> Choice {
    let members: Vec<Chosen> = match which {
        Which::All => ledger.iter().filter_map(|(id, t)| chosen(id, t, action, |_| true)).collect(),
        Which::Routes(names) => {
            let on = numbers(ledger, names);
            ledger.iter().filter_map(|(id, t)| chosen(id, t, action, |route| on.contains(&route))).collect()
        }
        Which::Transactions(ids, names) => {
            let on = numbers(ledger, names);
            let known = ids.iter().filter_map(|id| ledger.get(*id).map(|t| (*id, t)));
            let is_on = |route| names.is_empty() || on.contains(&route);
            known.filter_map(|(id, t)| chosen(id, t, action, is_on)).collect()
        }
        Which::Listed(lists) => {
            let lists: Vec<_> = lists.iter().filter_map(|(name, ids)| Some((ledger.find_route(name)?, ids))).collect();
            let ids: BTreeSet<TransactionId> = lists.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
            let known = ids.into_iter().filter_map(|id| ledger.get(id).map(|t| (id, t)));
            let is_listed = |id, route| lists.iter().any(|(listed, ids)| *listed == route && ids.contains(&id));
            known.filter_map(|(id, t)| chosen(id, t, action, |route| is_listed(id, route))).collect()
        }
    };
    Choice {
        newest: ledger.largest_id(),
        active: members.iter().filter(|member| active.contains(&member.id)).count(),
        passed_over: passed_over(ledger, which, action, &members),
        members,
    }
}

fn numbers(ledger: &Ledger, names: &[RouteName]) -> Vec<u16> {
    names.iter().filter_map(|name| ledger.find_route(name)).collect()
}

fn chosen(id: TransactionId, transaction: &Transaction, action: Action, is_on: impl Fn(u16) -> bool) -> Option<Chosen> {
    let mut hasher = DefaultHasher::new();
    let mut recipients = Vec::new();
    for (index, recipient) in (0..).zip(&transaction.recipients) {
        if would_change(recipient.state, action) && is_on(recipient.route) {
            (index, kind(recipient.state)).hash(&mut hasher);
            recipients.push(index);
        }
    }
    let Transaction { position, content_len, .. } = *transaction;
    let standing = hasher.finish();
    (!recipients.is_empty()).then_some(Chosen { id, position, content_len, recipients, standing })
}

fn would_change(state: RecipientState, action: Action) -> bool {
    match action {
        Action::Hold => {
            matches!(state, RecipientState::Due | RecipientState::Deferred(_) | RecipientState::Refused)
        }
        Action::Release => matches!(state, RecipientState::Hold | RecipientState::Refused),
        Action::Bounce | Action::Settle | Action::Expire | Action::Remove | Action::Undo => {
            state.after_action(action).is_some()
        }
    }
}

/// One that was tried again and is deferred still stands as before: a queue that is being tried could never be cleaned else.
fn kind(state: RecipientState) -> u8 {
    match state {
        RecipientState::Due => 0,
        RecipientState::Deferred(_) => 1,
        RecipientState::Hold => 2,
        RecipientState::Sent => 3,
        RecipientState::Bounced => 4,
        RecipientState::Removed => 5,
        RecipientState::Quarantined => 6,
        RecipientState::Refused => 7,
        RecipientState::Expired => 8,
    }
}

fn passed_over(
    ledger: &Ledger,
    which: &Which,
    action: Action,
    members: &[Chosen],
) -> Vec<(TransactionId, &'static str)> {
    let Which::Transactions(ids, _) = which else { return Vec::new() };
    let is_chosen = |id: &TransactionId| members.binary_search_by_key(id, |member| member.id).is_ok();
    let others = ids.iter().filter(|id| !is_chosen(id)).take(PASSED_OVER_MAX);
    others.map(|id| (*id, why_not(ledger, *id, action))).collect()
}

fn why_not(ledger: &Ledger, id: TransactionId, action: Action) -> &'static str {
    match (ledger.get(id), action) {
        (None, _) if ledger.largest_id().is_none_or(|largest| id > largest) => "no message of this journal has that ID",
        (None, Action::Undo) => {
            "was sent, or has left the journal, as settled mail does after `retain`: it is gone for good"
        }
        (None, _) => "was sent, or has left the journal",
        (Some(_), Action::Undo) => "was neither removed, bounced nor expired",
        (Some(transaction), _) if transaction.is_settled() => "is settled",
        (Some(_), _) => "stands so already, or not on these routes",
    }
}
