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
    /// of it may be carried: what that writes is no more than what leaves. Counted over all of them together: a segment of
    /// stragglers that were carried before must not keep those behind it.
    pub(crate) fn ripe_before(&self, newest: u64, retain: Duration, now: Timestamp) -> u64 {
        if self.segments.is_empty() {
            return self.base.first;
        }
        let (mut ripe, mut live, mut live_bytes, mut bytes) = (self.base.first, 0_u64, 0_u64, 0_u64);
        for segment in self.base.first..=newest {
            let known = self.segments.get(&segment);
            let tally = known.copied().unwrap_or_default();
            let is_of_no_use = segment == newest && known.is_none();
            if is_of_no_use || tally.settled_at + retain > now {
                break;
            }
            live += tally.live;
            live_bytes = live_bytes.saturating_add(tally.live_bytes);
            bytes = bytes.saturating_add(tally.bytes);
            // Where something must be carried, it is carried to the newest, which so stays.
            let may_leave =
                (live == 0 && known.is_some()) || (live_bytes.saturating_mul(2) <= bytes && segment < newest);
            if may_leave {
                ripe = segment + 1;
            }
        }
        ripe
    }

    /// Whether a message in the segments before `first` is to be settled.
    pub(crate) fn are_live_before(&self, first: u64) -> bool {
        self.segments.range(..first).any(|(_, tally)| tally.live > 0)
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
            RecipientState::Due | RecipientState::Deferred(_) | RecipientState::Hold | RecipientState::Refused => {
                &mut self.pending
            }
            RecipientState::Sent => &mut self.sent,
            RecipientState::Bounced => &mut self.bounced,
            RecipientState::Expired => &mut self.expired,
            RecipientState::Removed => &mut self.removed,
            RecipientState::Quarantined => &mut self.quarantined,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Accepted, Action, Attempted, Carried, Cause, Fact, Ledger, Operated, Outcome, Past, Position, Standing, Timings,
    };
    use proptest::prelude::*;
    use restante_envelope::{
        BodyType, Envelope, ForwardPath, Protocol, Recipient, Reply, ReversePath, RouteName, Trace,
    };

    const HOUR: Duration = Duration::from_secs(3_600);

    fn accepted(n: u128, recipients: u16, at: Timestamp) -> Accepted {
        let recipient = |i| {
            Recipient::new(ForwardPath::parse(&format!("r{i}@example.test")).unwrap(), RouteName::new("example.test"))
        };
        let recipients = (0..recipients).map(recipient).collect();
        let (client, helo) = ("192.0.2.1:4000".parse().unwrap(), "c.test".to_owned());
        Accepted {
            id: TransactionId::from_bits(n),
            envelope: Envelope::new(ReversePath::null(), recipients, BodyType::SevenBit),
            trace: Trace { client, helo, protocol: Protocol::Esmtp, tls: None, session: 1, received_at: at },
            content_len: 100,
            hold: None,
        }
    }

    /// A journal as a list, and the ledger of the daemon that writes it.
    #[derive(Default)]
    struct Journal {
        facts: Vec<(Position, Told)>,
        live: Ledger,
        segment: u64,
        given: u128,
        hours: u64,
    }

    #[derive(Clone)]
    enum Told {
        Fact(Fact),
        Damaged(Accepted),
        Lost(TransactionId, u16),
        Unnamed(u64, u64),
    }

    fn apply(ledger: &mut Ledger, position: Position, told: &Told) {
        match told {
            Told::Fact(fact) => _ = ledger.apply(position, fact),
            Told::Damaged(accepted) => ledger.apply_damaged(position, accepted),
            Told::Lost(id, recipients) => ledger.apply_lost(position, *id, *recipients),
            Told::Unnamed(transactions, recipients) => {
                ledger.apply_unnamed(position.segment, *transactions, *recipients);
            }
        }
    }

    impl Journal {
        fn now(&self) -> Timestamp {
            Timestamp::from_unix_ms(0) + HOUR * u32::try_from(self.hours).unwrap()
        }

        fn write(&mut self, told: Told) {
            let position = Position { segment: self.segment, offset: self.facts.len() as u64 };
            apply(&mut self.live, position, &told);
            self.facts.push((position, told));
        }

        fn step(&mut self, kind: u8, who: u128, index: u16) {
            let (id, at, now) = (TransactionId::from_bits(who), self.now(), self.now());
            let attempted = |outcome| {
                let (timings, results) = (Timings::default(), vec![(index, outcome)]);
                Told::Fact(Fact::Attempted(Attempted { id, at, next_hop: None, timings, results }))
            };
            let operated = |action| {
                let (actor, reason) = ("a".to_owned(), "r".to_owned());
                Told::Fact(Fact::Operated(Operated { id, at, action, recipients: vec![index], actor, reason }))
            };
            self.given += u128::from(kind < 5);
            let new = accepted(self.given, index + 1, now);
            self.write(match kind {
                0..=2 => Told::Fact(Fact::Accepted(new)),
                3 => Told::Damaged(new),
                4 => Told::Lost(new.id, index),
                5..=8 => attempted(Outcome::Sent(Reply::new(250, None, "ok"))),
                9 => attempted(Outcome::Deferred { cause: Cause::Local("x".into()), next_at: at }),
                10 => attempted(Outcome::Quarantined(Cause::Local("x".into()))),
                11 => operated(Action::Hold),
                12 => operated(Action::Remove),
                13 => operated(Action::Bounce),
                14 => operated(Action::Undo),
                15 => Told::Unnamed(1, u64::from(index)),
                16 => {
                    self.hours += 1;
                    return;
                }
                17 => {
                    self.segment += 1;
                    return;
                }
                _ => return self.let_go(),
            });
        }

        fn let_go(&mut self) {
            let Some(first) = self.live.leaving(self.segment, HOUR, self.now()) else { return };
            for id in self.live.stragglers(first) {
                let transaction = self.live.get(id).unwrap();
                let standing = |r: &crate::RecipientEntry| Standing {
                    attempts: r.attempts,
                    state: r.state,
                    why: String::new(),
                    past: Past::default(),
                };
                let recipients: Vec<_> = transaction.recipients.iter().map(standing).collect();
                let accepted = accepted(id.to_bits(), recipients.len() as u16, transaction.accepted_at);
                self.write(Told::Fact(Fact::Carried(Carried { accepted, recipients })));
            }
            let base = self.live.base_at(first).unwrap();
            self.segment += 1;
            self.live.segments_left(&base);
            self.facts.retain(|(position, _)| position.segment >= base.first);
        }

        fn replayed(&self) -> Ledger {
            let mut ledger = Ledger::new();
            ledger.apply_base(&self.live.base());
            self.facts.iter().for_each(|(position, told)| apply(&mut ledger, *position, told));
            ledger
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn what_is_left_of_a_journal_says_what_the_whole_said(
            steps in proptest::collection::vec((0u8..24, 1u128..12, 0u16..3), 0..160),
        ) {
            let mut journal = Journal { segment: 1, ..Journal::default() };
            let mut whole = Balance::default();
            for (kind, who, index) in steps {
                let before = journal.live.balance();
                journal.step(kind, who, index);
                let after = journal.live.balance();
                prop_assert!(after.is_even());
                // Counters are cumulative: nothing that leaves shrinks them.
                prop_assert!(after.accepted >= before.accepted && after.sent >= before.sent);
                whole = after;
            }
            let replayed = journal.replayed();
            prop_assert_eq!(replayed.balance(), whole);
            prop_assert_eq!(replayed.largest_id(), journal.live.largest_id());
            prop_assert_eq!(replayed.tallies(), journal.live.tallies());
            let entries = |ledger: &Ledger| ledger.iter().map(|(id, t)| (id, t.clone())).collect::<Vec<_>>();
            prop_assert_eq!(entries(&replayed), entries(&journal.live));
        }
    }

    #[test]
    fn a_segment_with_a_message_to_be_settled_is_never_said_to_have_left() {
        let mut journal = Journal { segment: 1, ..Journal::default() };
        journal.step(0, 0, 0);
        journal.step(0, 0, 1);
        journal.segment = 2;
        journal.step(0, 0, 0);
        assert_eq!(
            (journal.live.base_at(2), journal.live.base_at(1).map(|base| base.left)),
            (None, Some(Balance::default()))
        );
        journal.step(5, 1, 0);
        journal.step(10, 2, 0);
        assert_eq!(journal.live.base_at(2), None, "the second recipient of the second");
        journal.step(12, 2, 1);
        let left = journal.live.base_at(2).unwrap().left;
        assert_eq!((left.transactions, left.accepted, left.sent, left.quarantined, left.removed), (2, 3, 1, 1, 1));
        assert_eq!(journal.live.base_at(3), None);
    }

    #[test]
    fn one_message_that_stays_for_ever_does_not_keep_what_is_behind_it() {
        let mut journal = Journal { segment: 1, ..Journal::default() };
        for segment in 1..200 {
            journal.step(0, 0, 0);
            journal.step(0, 0, 0);
            if segment > 1 {
                journal.step(5, journal.given - 1, 0);
            }
            journal.step(5, journal.given, 0);
            journal.hours += 1;
            journal.segment += 1;
            journal.let_go();
        }
        let segments: std::collections::BTreeSet<_> = journal.facts.iter().map(|(at, _)| at.segment).collect();
        assert!(segments.len() <= 6, "{segments:?}");
        assert_eq!(journal.live.iter().count(), 1);
        assert_eq!((journal.live.balance().pending, journal.live.balance().transactions), (1, 398));
    }

    #[test]
    fn a_backlog_is_not_carried_about_and_keeps_its_segments() {
        let mut journal = Journal { segment: 1, ..Journal::default() };
        (0..10).for_each(|_| journal.step(0, 0, 0));
        (1..5).for_each(|who| journal.step(5, who, 0));
        (journal.hours, journal.segment) = (100, 2);
        assert_eq!(journal.live.leaving(2, HOUR, journal.now()), None);
        // Half of it: the other half may be written again.
        journal.hours = 0;
        journal.step(5, 5, 0);
        journal.hours = 100;
        assert_eq!(journal.live.leaving(2, HOUR, journal.now()), Some(2));
        assert_eq!(journal.live.stragglers(2).len(), 5);
        // Not before its time.
        assert_eq!(journal.live.leaving(2, HOUR * 101, journal.now()), None);
    }
}
