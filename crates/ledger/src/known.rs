//! Mailboxes that a route's primary took mail for: whoever refuses one of these has lost its tables, more likely than its
//! user. Decides nothing.

use crate::ledger::RouteIndex;
use crate::{Mailbox, RecipientEntry, RecipientState};
use std::collections::HashSet;

/// Mailboxes that are remembered, of all routes together: some 16 MiB of memory when all are there. Of more than a
/// million, those that are there say enough of their server.
const MAILBOXES_MAX: usize = 1 << 20;

/// See the module's head.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known(HashSet<(RouteIndex, Mailbox)>);

impl Known {
    /// Takes in how a recipient stands from now on.
    pub(crate) fn learn(&mut self, entry: &RecipientEntry) {
        let key = (entry.route, entry.mailbox);
        match entry.state {
            RecipientState::Sent if self.0.len() < MAILBOXES_MAX => _ = self.0.insert(key),
            // Refused, and the primary is believed, or an operator says so.
            RecipientState::Bounced => _ = self.0.remove(&key),
            _ => {}
        }
    }

    pub(crate) fn contains(&self, route: RouteIndex, mailbox: Mailbox) -> bool {
        self.0.contains(&(route, mailbox))
    }
}
