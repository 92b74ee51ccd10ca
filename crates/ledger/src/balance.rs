//! The account of the custody promise: every recipient ever accepted is in exactly one column.

/// Recipients by state, and the two sums they must add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Balance {
    /// Messages accepted.
    pub transactions: u64,
    /// Recipients of those messages.
    pub accepted: u64,
    /// Recipients not settled: waiting, active, deferred or on hold.
    pub pending: u64,
    /// Recipients the primary took.
    pub sent: u64,
    /// Recipients reported back to the sender.
    pub bounced: u64,
    /// Recipients given up for age.
    pub expired: u64,
    /// Recipients removed by an operator.
    pub removed: u64,
    /// Recipients whose bytes are damaged.
    pub quarantined: u64,
    /// Messages of our own making (delivery status notifications); counted apart.
    pub generated: u64,
}

impl Balance {
    /// Whether accepted = pending + every final state.
    pub fn is_even(&self) -> bool {
        let rest = [self.pending, self.sent, self.bounced, self.expired, self.removed, self.quarantined];
        rest.iter().sum::<u64>() == self.accepted
    }
}
