//! Rows as the index answers them, and a daemon that does not run.

use super::live::Live;
use restante_envelope::{Timestamp, TransactionId};
use restante_index::{RecipientRow, Row, Summary};
use restante_ledger::{Position, RecipientState};

pub(crate) fn live() -> Live {
    Live::default()
}

/// A message that waits, 1,024 bytes long; each recipient's route is its domain in lower case.
pub(crate) fn row(n: u128, to: &[&str]) -> Row {
    let recipient = |addr: &&str| RecipientRow {
        addr: Some((*addr).to_owned()),
        route: addr.rsplit_once('@').map(|(_, domain)| domain.to_lowercase()),
        state: RecipientState::Due,
        last_reply: None,
        reason: None,
        attempts: 0,
        changed_at: Timestamp::from_unix_ms(1),
    };
    let some = |text: &str| Some(text.to_owned());
    Row {
        id: TransactionId::from_bits(n),
        position: Position { segment: 1, offset: 4096 },
        accepted_at: Timestamp::from_unix_ms(1),
        size: 1_024,
        from: some("a@b.test"),
        client: some("192.0.2.1:4000"),
        helo: some("c.test"),
        tls: None,
        hold: None,
        summary: Summary {
            subject: some("Hello you"),
            from: some("Ann <ann@example.net>"),
            message_id: some("1@example.net"),
        },
        recipients: to.iter().map(recipient).collect(),
    }
}
