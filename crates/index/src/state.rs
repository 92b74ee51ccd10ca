//! A recipient's state as the table holds it: a word, and the instant of the next try where there is one.

use restante_envelope::Timestamp;
use restante_ledger::RecipientState;

/// What is due waits, as far as the journal knows.
pub(crate) fn word(state: RecipientState) -> &'static str {
    match state {
        RecipientState::Due => "waiting",
        RecipientState::Deferred(_) => "deferred",
        RecipientState::Hold => "hold",
        RecipientState::Refused => "refused",
        RecipientState::Sent => "sent",
        RecipientState::Bounced => "bounced",
        RecipientState::Expired => "expired",
        RecipientState::Removed => "removed",
        RecipientState::Quarantined => "quarantined",
    }
}

/// The word of the contract. What was refused and is not believed yet is on hold, as all that needs more than time.
pub(crate) fn word_to_show(state: RecipientState) -> &'static str {
    match state {
        RecipientState::Refused => "hold",
        other => word(other),
    }
}

/// When it is tried again.
pub(crate) fn next_at(state: RecipientState) -> Option<Timestamp> {
    match state {
        RecipientState::Deferred(at) => Some(at),
        _ => None,
    }
}

/// The reverse of the two; none for a word that nobody wrote.
pub(crate) fn parse(word: &str, next_at: Option<Timestamp>) -> Option<RecipientState> {
    match (word, next_at) {
        ("waiting", None) => Some(RecipientState::Due),
        ("deferred", Some(at)) => Some(RecipientState::Deferred(at)),
        ("hold", None) => Some(RecipientState::Hold),
        ("refused", None) => Some(RecipientState::Refused),
        ("sent", None) => Some(RecipientState::Sent),
        ("bounced", None) => Some(RecipientState::Bounced),
        ("expired", None) => Some(RecipientState::Expired),
        ("removed", None) => Some(RecipientState::Removed),
        ("quarantined", None) => Some(RecipientState::Quarantined),
        _ => None,
    }
}
