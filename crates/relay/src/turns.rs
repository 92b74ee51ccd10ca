//! Who is next of those that are due: the oldest, but no mailbox has more than its share of what is under way while others
//! wait. So a flood for one mailbox does not hold up the mail of the others. Sets of identifiers and nothing more.

use restante_envelope::TransactionId;
use restante_ledger::{IdMap, Mailbox};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(crate) struct Turns {
    ready: IdMap<()>,
    /// Passed over, for their mailbox had its share; a few mailboxes at most, as many as shares fit into what is under way.
    parked: BTreeMap<Mailbox, IdMap<()>>,
    under_way: BTreeMap<Mailbox, usize>,
    len: usize,
}

impl Turns {
    pub(crate) fn insert(&mut self, id: TransactionId) {
        if !self.contains(id) {
            self.ready.insert(id, ());
            self.len += 1;
        }
    }

    /// False if it was not there.
    pub(crate) fn remove(&mut self, id: TransactionId) -> bool {
        let was_parked = |ids: &mut IdMap<()>| ids.remove(id).is_some();
        let was_here = self.ready.remove(id).is_some() || self.parked.values_mut().any(was_parked);
        self.parked.retain(|_, ids| !ids.is_empty());
        self.len -= usize::from(was_here);
        was_here
    }

    pub(crate) fn contains(&self, id: TransactionId) -> bool {
        self.ready.contains(id) || self.parked.values().any(|ids| ids.contains(id))
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn first(&self) -> Option<TransactionId> {
        let firsts = self.parked.values().chain([&self.ready]).filter_map(|ids| ids.first().map(|(id, _)| id));
        firsts.min()
    }

    /// The oldest ones, this many at most, in order.
    pub(crate) fn oldest(&self, most: usize) -> Vec<TransactionId> {
        let heads = self.parked.values().chain([&self.ready]).flat_map(|ids| ids.iter().take(most).map(|(id, _)| id));
        let mut oldest: Vec<_> = heads.collect();
        oldest.sort_unstable();
        oldest.truncate(most);
        oldest
    }

    /// Takes the one whose turn it is; it is under way until [`Self::ended`].
    pub(crate) fn take(
        &mut self,
        share: usize,
        mailbox: impl Fn(TransactionId) -> Mailbox,
    ) -> Option<(TransactionId, Mailbox)> {
        loop {
            let has_share = |of: &Mailbox| self.under_way.get(of).copied().unwrap_or(0) >= share;
            let heads = self.parked.iter().filter(|(of, _)| !has_share(of));
            let head = heads.filter_map(|(of, ids)| Some((ids.first()?.0, *of))).min();
            let ready = self.ready.first().map(|(id, ())| id);
            let taken = match (head, ready) {
                (Some((id, of)), ready) if ready.is_none_or(|ready| id < ready) => (id, of),
                (_, Some(id)) => {
                    let of = mailbox(id);
                    if has_share(&of) {
                        self.ready.remove(id);
                        self.parked.entry(of).or_default().insert(id, ());
                        continue;
                    }
                    (id, of)
                }
                // There is room, and nobody else who wants it.
                (_, None) => self.parked.iter().filter_map(|(of, ids)| Some((ids.first()?.0, *of))).min()?,
            };
            self.begins(taken.0, taken.1);
            return Some(taken);
        }
    }

    /// Takes this one out of turn.
    pub(crate) fn take_this(&mut self, id: TransactionId, mailbox: Mailbox) {
        self.begins(id, mailbox);
    }

    fn begins(&mut self, id: TransactionId, mailbox: Mailbox) {
        self.remove(id);
        *self.under_way.entry(mailbox).or_default() += 1;
    }

    /// One for this mailbox is not under way any more.
    pub(crate) fn ended(&mut self, mailbox: Mailbox) {
        if let Some(count) = self.under_way.get_mut(&mailbox) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(&mailbox);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages 1 to 100 are a flood for mailbox 0; from 101 on each has a mailbox of its own.
    fn mailbox(id: TransactionId) -> Mailbox {
        Mailbox(u32::try_from(id.to_bits()).map_or(0, |n| n.saturating_sub(100)))
    }

    fn flooded(others: u128) -> Turns {
        let mut turns = Turns::default();
        (1..=100 + others).for_each(|n| turns.insert(TransactionId::from_bits(n)));
        turns
    }

    fn take(turns: &mut Turns, share: usize) -> Option<u128> {
        turns.take(share, mailbox).map(|(id, _)| id.to_bits())
    }

    #[test]
    fn a_flood_for_one_mailbox_does_not_hold_up_the_others() {
        let mut turns = flooded(3);
        let taken: Vec<_> = (0..5).map(|_| take(&mut turns, 2).unwrap()).collect();
        assert_eq!(taken, [1, 2, 101, 102, 103], "the oldest first, and each mailbox its share");
        // Nobody else wants the room that is left.
        assert_eq!(take(&mut turns, 2), Some(3));
        // Who comes later has his turn before the flood's rest.
        turns.insert(TransactionId::from_bits(150));
        assert_eq!(take(&mut turns, 2), Some(150));
        (0..3).for_each(|_| turns.ended(Mailbox(0)));
        turns.insert(TransactionId::from_bits(151));
        assert_eq!(
            [take(&mut turns, 2), take(&mut turns, 2)],
            [Some(4), Some(5)],
            "its share is free again, and it is older"
        );
        assert_eq!((take(&mut turns, 2), turns.len()), (Some(151), 95));
    }

    #[test]
    fn none_is_lost_and_none_comes_twice() {
        let mut turns = flooded(50);
        assert!(turns.remove(TransactionId::from_bits(7)) && !turns.remove(TransactionId::from_bits(7)));
        assert_eq!(take(&mut turns, 1), Some(1));
        assert!(turns.remove(TransactionId::from_bits(3)) && turns.contains(TransactionId::from_bits(4)));
        let mut taken: Vec<_> = std::iter::from_fn(|| take(&mut turns, 1)).collect();
        taken.sort_unstable();
        assert_eq!(taken.len(), 147);
        taken.dedup();
        assert!(taken.len() == 147 && turns.is_empty() && turns.first().is_none());
    }
}
