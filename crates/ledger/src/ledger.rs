//! The fold: facts in, state of every unsettled transaction and the balance out.

use crate::retention::{self, Base, Tallies};
use crate::{
    Accepted, Balance, Carried, Fact, Gist, IdMap, Known, Mailbox, Position, RecipientEntry, RecipientIndex,
    RecipientState, Served, Transaction, Watch, Watched,
};
use restante_envelope::{RouteName, Timestamp, TransactionId};
use std::collections::BTreeMap;
use std::time::Duration;

/// A route, by its place in [`Ledger::routes`].
pub type RouteIndex = u16;

/// Everything the facts so far say. Holds transactions with at least one recipient that is not sent, until their segment
/// leaves; the rest lives on in the balance alone.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    transactions: IdMap<Transaction>,
    routes: Vec<RouteName>,
    balance: Balance,
    largest_id: Option<TransactionId>,
    served: Option<Served>,
    tallies: Tallies,
    known: Known,
    watches: BTreeMap<RouteName, Watch>,
    /// The latest time in a record since the daemon started that writes.
    seen_at: Timestamp,
    without_effect: u64,
}

/// What is kept of a message when it comes into being.
struct Message<R> {
    id: TransactionId,
    at: Timestamp,
    content_len: u64,
    /// One for each recipient.
    to: R,
}

fn message(accepted: &Accepted) -> Message<impl Iterator<Item = (&RouteName, Mailbox)>> {
    let (id, at, content_len) = (accepted.id, accepted.trace.received_at, accepted.content_len);
    let recipients = accepted.envelope.recipients.iter();
    let to = recipients.map(|recipient| (&recipient.route, Mailbox::from(&recipient.forward_path)));
    Message { id, at, content_len, to }
}

fn named(to: &[(RouteName, Mailbox)]) -> impl Iterator<Item = (&RouteName, Mailbox)> {
    to.iter().map(|(route, mailbox)| (route, *mailbox))
}

fn told(carried: &Carried) -> impl Iterator<Item = (u16, RecipientState)> {
    carried.recipients.iter().map(|told| (told.attempts, told.state))
}

impl Ledger {
    /// The ledger of an empty journal.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one fact, found at `position`. Facts come in the order of the journal. Returns the transaction if all of it
    /// is sent with this fact: it is not here any more.
    pub fn apply(&mut self, position: Position, fact: &Fact) -> Option<Transaction> {
        match fact {
            Fact::Accepted(accepted) => self.accept(position, message(accepted), accepted.state()),
            Fact::Attempted(attempted) => {
                let told = attempted.results.iter().map(|(index, outcome)| (*index, outcome.into()));
                return self.attempted(attempted.id, attempted.at, told);
            }
            Fact::Operated(operated) => {
                let told = operated.recipients.iter().map(|index| (*index, operated.action));
                self.change(operated.id, operated.at, 0, told, RecipientState::after_action);
            }
            Fact::Served(served) => self.begins(served),
            Fact::Watched(watched) => self.watched(watched),
            Fact::Carried(carried) => self.carried(position, message(&carried.accepted), told(carried)),
            Fact::Replayed(_) => {}
        }
        None
    }

    /// Takes what is left of a fact in a summary: as [`Ledger::apply`] takes the fact.
    pub fn recall(&mut self, position: Position, gist: &Gist) -> Option<Transaction> {
        match gist {
            Gist::Accepted { id, at, content_len, to, state } => {
                let message = Message { id: *id, at: *at, content_len: *content_len, to: named(to) };
                self.accept(position, message, *state);
            }
            Gist::Attempted { id, at, results } => return self.attempted(*id, *at, results.iter().copied()),
            Gist::Operated { id, at, action, recipients } => {
                let told = recipients.iter().map(|index| (*index, *action));
                self.change(*id, *at, 0, told, RecipientState::after_action);
            }
            Gist::Served(served) => self.begins(served),
            Gist::Watched(watched) => self.watched(watched),
            Gist::Carried { id, at, content_len, to, standings } => {
                let message = Message { id: *id, at: *at, content_len: *content_len, to: named(to) };
                self.carried(position, message, standings.iter().copied());
            }
            Gist::Other => {}
        }
        None
    }

    /// A daemon starts: the one before was there until its last record at least.
    fn begins(&mut self, served: &Served) {
        // The record of a start is written again, with its time, when the segment leaves that has it.
        if self.served.as_ref().is_none_or(|before| before.at != served.at) {
            self.watches.values_mut().for_each(|watch| watch.ended(self.seen_at));
            self.seen_at = served.at;
        }
        self.served = Some(served.clone());
    }

    fn watched(&mut self, watched: &Watched) {
        self.seen_at = self.seen_at.max(watched.at);
        self.watches.entry(watched.route.clone()).or_default().apply(watched);
    }

    /// When the primary of this route could be reached; none if that was never written down.
    pub fn watch(&self, route: &RouteName) -> Option<&Watch> {
        self.watches.get(route)
    }

    /// Takes an `Accepted` fact whose record is intact but whose content is not: all its recipients are quarantined.
    pub fn apply_damaged(&mut self, position: Position, accepted: &Accepted) {
        self.accept(position, message(accepted), RecipientState::Quarantined);
    }

    /// Takes what a mark says of a message whose record is unreadable. No effect if the message is known.
    pub fn apply_lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        let entry = RecipientEntry {
            route: RouteIndex::MAX,
            mailbox: Mailbox::default(),
            attempts: 0,
            state: RecipientState::Quarantined,
        };
        let transaction = Transaction {
            position,
            accepted_at: Timestamp::from_unix_ms(u64::try_from(id.to_bits() >> 80).unwrap_or(0)),
            content_len: 0,
            recipients: std::iter::repeat_n(entry, usize::from(recipients)).collect(),
        };
        self.insert(id, transaction);
    }

    /// Takes a `Carried` fact whose record is intact but whose content is not: what is pending is quarantined, unless the
    /// record that it repeats is there.
    pub fn apply_damaged_carried(&mut self, position: Position, carried: &Carried) {
        if !self.transactions.contains(carried.accepted.id) {
            let believed = |state: RecipientState| if state.is_settled() { state } else { RecipientState::Quarantined };
            let standings = told(carried).map(|(attempts, state)| (attempts, believed(state)));
            self.carried(position, message(&carried.accepted), standings);
        }
    }

    /// Begins with what is left of the segments that have left; before anything else is applied.
    pub fn apply_base(&mut self, base: &Base) {
        self.balance = base.left;
        self.largest_id = base.largest_id;
        self.tallies = Tallies::new(*base);
    }

    /// Takes what the marks of a segment count and nothing names: recipients quarantined without an identifier.
    pub fn apply_unnamed(&mut self, segment: u64, transactions: u64, recipients: u64) {
        self.tallies.unnamed(segment, transactions, recipients);
        self.balance.transactions += transactions;
        self.balance.accepted += recipients;
        self.balance.quarantined += recipients;
    }

    fn accept<'a>(
        &mut self,
        position: Position,
        message: Message<impl Iterator<Item = (&'a RouteName, Mailbox)>>,
        state: RecipientState,
    ) {
        let Message { id, at, content_len, to } = message;
        let entry = |(route, mailbox)| RecipientEntry { route: self.route_index(route), mailbox, attempts: 0, state };
        let recipients = to.map(entry).collect();
        self.insert(id, Transaction { position, accepted_at: at, content_len, recipients });
    }

    /// The same message written again: this record counts from now on. Where the first one is gone, it also tells how the
    /// recipients stand; where the first one is damaged, they are as they were before that was found.
    fn carried<'a>(
        &mut self,
        position: Position,
        message: Message<impl Iterator<Item = (&'a RouteName, Mailbox)>>,
        standings: impl Iterator<Item = (u16, RecipientState)>,
    ) {
        let Message { id, at, content_len, to } = message;
        let to: Vec<_> = to.map(|(route, mailbox)| (self.route_index(route), mailbox)).collect();
        if let Some(transaction) = self.transactions.get_mut(id) {
            self.tallies.moved_away(transaction);
            transaction.position = position;
            transaction.content_len = content_len;
            for ((entry, (attempts, state)), to) in transaction.recipients.iter_mut().zip(standings).zip(to) {
                // Of a record that was lost nothing was known but the name.
                (entry.route, entry.mailbox) = to;
                if entry.state == RecipientState::Quarantined {
                    *self.balance.column(entry.state) -= 1;
                    *self.balance.column(state) += 1;
                    (entry.state, entry.attempts) = (state, attempts.max(entry.attempts));
                }
            }
            return self.tallies.placed(transaction);
        }
        let recipients = to.into_iter().zip(standings);
        let recipients = recipients
            .map(|((route, mailbox), (attempts, state))| RecipientEntry { route, mailbox, attempts, state })
            .collect();
        let transaction = Transaction { position, accepted_at: at, content_len, recipients };
        self.tallies.placed(&transaction);
        self.enter(id, transaction);
    }

    /// The same identifier twice is one message: the first record counts.
    fn insert(&mut self, id: TransactionId, transaction: Transaction) {
        if self.largest_id.is_some_and(|largest| id <= largest) && self.transactions.contains(id) {
            self.without_effect += 1;
            return;
        }
        self.tallies.accepted(&transaction);
        self.enter(id, transaction);
    }

    fn enter(&mut self, id: TransactionId, transaction: Transaction) {
        self.seen_at = self.seen_at.max(transaction.accepted_at);
        self.largest_id = self.largest_id.max(Some(id));
        self.balance.transactions += 1;
        for recipient in &transaction.recipients {
            self.balance.accepted += 1;
            *self.balance.column(recipient.state) += 1;
            self.known.learn(recipient);
        }
        self.transactions.insert(id, transaction);
    }

    fn attempted(
        &mut self,
        id: TransactionId,
        at: Timestamp,
        told: impl Iterator<Item = (RecipientIndex, RecipientState)>,
    ) -> Option<Transaction> {
        let is_history = self.change(id, at, 1, told, RecipientState::after);
        let history = is_history.then(|| self.transactions.remove(id)).flatten();
        history.iter().for_each(|transaction| self.tallies.forgotten(transaction));
        history
    }

    /// Whether the transaction is history now.
    fn change<T>(
        &mut self,
        id: TransactionId,
        at: Timestamp,
        attempts: u16,
        told: impl Iterator<Item = (RecipientIndex, T)>,
        after: impl Fn(RecipientState, T) -> Option<RecipientState>,
    ) -> bool {
        self.seen_at = self.seen_at.max(at);
        let mut transaction = self.transactions.get_mut(id);
        let was_settled = transaction.as_ref().is_none_or(|t| t.is_settled());
        for (index, told) in told {
            let entry = transaction.as_mut().and_then(|t| t.recipients.get_mut(usize::from(index)));
            let Some((entry, state)) = entry.and_then(|entry| after(entry.state, told).map(|state| (entry, state)))
            else {
                self.without_effect += 1;
                continue;
            };
            *self.balance.column(entry.state) -= 1;
            *self.balance.column(state) += 1;
            entry.state = state;
            entry.attempts = entry.attempts.saturating_add(attempts);
            self.known.learn(entry);
        }
        let Some(transaction) = transaction else { return false };
        match (was_settled, transaction.is_settled()) {
            (false, true) => self.tallies.closed(transaction, at),
            (true, false) => self.tallies.reopened(transaction),
            _ => {}
        }
        transaction.is_history()
    }

    fn route_index(&mut self, name: &RouteName) -> RouteIndex {
        let known = self.routes.iter().position(|known| known == name);
        let index = known.unwrap_or_else(|| {
            self.routes.push(name.clone());
            self.routes.len() - 1
        });
        RouteIndex::try_from(index).unwrap_or(RouteIndex::MAX)
    }

    /// The transaction, unless it is unknown or all of it was sent.
    pub fn get(&self, id: TransactionId) -> Option<&Transaction> {
        self.transactions.get(id)
    }

    /// Every transaction that is not wholly sent, in order of acceptance. Quarantined ones are among them.
    pub fn iter(&self) -> impl Iterator<Item = (TransactionId, &Transaction)> {
        self.transactions.iter()
    }

    /// Whether the primary of this route took mail for this mailbox, as far as the journal goes back, and has not been
    /// believed to refuse it since.
    pub fn knows(&self, route: RouteIndex, mailbox: Mailbox) -> bool {
        self.known.contains(route, mailbox)
    }

    /// The name of a route, unless the record that named it is unreadable.
    pub fn route(&self, index: RouteIndex) -> Option<&RouteName> {
        self.routes.get(usize::from(index))
    }

    /// The number of `name`, if a recipient ever had that route.
    pub fn find_route(&self, name: &RouteName) -> Option<RouteIndex> {
        self.routes.iter().position(|known| known == name).and_then(|i| RouteIndex::try_from(i).ok())
    }

    /// The account so far.
    pub fn balance(&self) -> Balance {
        self.balance
    }

    /// The largest identifier seen: new ones must be larger.
    pub fn largest_id(&self) -> Option<TransactionId> {
        self.largest_id
    }

    /// What the last daemon on this journal recorded of itself.
    pub fn served(&self) -> Option<&Served> {
        self.served.as_ref()
    }

    /// Before which segment all may leave when settled mail is kept for `retain`, once its stragglers were written again.
    /// `newest` is the one being written, which may be among them. None if none may.
    pub fn leaving(&self, newest: u64, retain: Duration, now: Timestamp) -> Option<u64> {
        Some(self.tallies.ripe_before(newest, retain, now)).filter(|first| *first > self.tallies.base().first)
    }

    /// Messages in the segments before `first` that are to be settled: some of them, if they are many.
    pub fn stragglers(&self, first: u64) -> Vec<TransactionId> {
        if self.tallies.are_live_before(first) {
            retention::stragglers(first, self.transactions.iter())
        } else {
            Vec::new()
        }
    }

    /// What will be known of the segments before `first` when they have left; none if a message there is to be settled.
    /// Whatever else is needed of them must have been written again before.
    pub fn base_at(&self, first: u64) -> Option<Base> {
        let settled = self.transactions.iter().map(|(_, t)| t).filter(|t| t.position.segment < first);
        self.tallies.base_at(first, self.largest_id, settled)
    }

    /// The segments before `base.first` have left: a header says so that is on stable storage.
    pub fn segments_left(&mut self, base: &Base) {
        let gone: Vec<_> = self.transactions.iter().filter(|(_, t)| t.position.segment < base.first).collect();
        let gone: Vec<_> = gone.into_iter().map(|(id, _)| id).collect();
        gone.into_iter().for_each(|id| drop(self.transactions.remove(id)));
        self.tallies.left(*base);
    }

    #[cfg(test)]
    pub(crate) fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// What is known of the segments that have left.
    pub fn base(&self) -> Base {
        self.tallies.base()
    }

    /// Facts that changed nothing: about unknown messages or recipients already settled. Each is harmless; many of them
    /// say that something wrote what it should not.
    pub fn without_effect(&self) -> u64 {
        self.without_effect
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Action, Attempted, Cause, Operated, Outcome, Timings};
    use proptest::prelude::*;
    use restante_envelope::{BodyType, Envelope, ForwardPath, Protocol, Recipient, Reply, ReversePath, Trace};

    fn id(n: u128) -> TransactionId {
        TransactionId::from_bits(n)
    }

    fn at(n: u64) -> Position {
        Position { segment: 1, offset: n }
    }

    fn accepted(n: u128, recipients: usize) -> Accepted {
        let recipient = |i| {
            Recipient::new(
                ForwardPath::parse(&format!("r{i}@example.test")).unwrap(),
                RouteName::new(if i % 2 == 0 { "even" } else { "odd" }),
            )
        };
        Accepted {
            id: id(n),
            envelope: Envelope::new(ReversePath::null(), (0..recipients).map(recipient).collect(), BodyType::SevenBit),
            trace: Trace {
                client: "192.0.2.1:4000".parse().unwrap(),
                helo: "c.test".into(),
                protocol: Protocol::Esmtp,
                tls: None,
                session: 1,
                received_at: Timestamp::from_unix_ms(1),
            },
            content_len: 10,
            hold: None,
        }
    }

    fn attempted(n: u128, results: Vec<(u16, Outcome)>) -> Fact {
        let at = Timestamp::from_unix_ms(2);
        Fact::Attempted(Attempted { id: id(n), at, next_hop: None, timings: Timings::default(), results })
    }

    fn sent() -> Outcome {
        Outcome::Sent(Reply::new(250, None, "ok"))
    }

    #[test]
    fn a_sent_recipient_is_never_pending_again() {
        let mut ledger = Ledger::new();
        ledger.apply(at(1), &Fact::Accepted(accepted(1, 2)));
        ledger.apply(at(2), &attempted(1, vec![(0, sent())]));
        let later = Outcome::Deferred { cause: Cause::Local("x".into()), next_at: Timestamp::from_unix_ms(9) };
        ledger.apply(at(3), &attempted(1, vec![(0, later)]));
        let states: Vec<_> = ledger.get(id(1)).unwrap().recipients.iter().map(|r| r.state).collect();
        assert_eq!(states, [RecipientState::Sent, RecipientState::Due]);
        assert_eq!(ledger.without_effect(), 1);
        ledger.apply(at(4), &attempted(1, vec![(1, sent())]));
        assert_eq!(ledger.get(id(1)), None);
        assert!(ledger.balance().is_even());
        assert_eq!((ledger.balance().sent, ledger.balance().pending), (2, 0));
    }

    #[test]
    fn a_message_whose_record_is_unreadable_still_counts() {
        let mut ledger = Ledger::new();
        ledger.apply_lost(at(1), id(5), 3);
        ledger.apply_damaged(at(2), &accepted(6, 1));
        assert_eq!((ledger.balance().transactions, ledger.balance().quarantined), (2, 4));
        // It was sent before its bytes rotted: history, not loss.
        ledger.apply(at(3), &attempted(5, vec![(0, sent()), (1, sent()), (2, sent())]));
        assert_eq!((ledger.balance().sent, ledger.balance().quarantined), (3, 1));
        assert!(ledger.balance().is_even());
    }

    #[test]
    fn a_hold_during_an_attempt_outlives_its_deferral() {
        let mut ledger = Ledger::new();
        ledger.apply(at(1), &Fact::Accepted(accepted(1, 1)));
        let (actor, reason) = ("a".to_owned(), "r".to_owned());
        let (when, recipients) = (Timestamp::default(), vec![0]);
        let hold = Operated { id: id(1), at: when, action: Action::Hold, recipients, actor, reason };
        ledger.apply(at(2), &Fact::Operated(hold));
        let later = Outcome::Deferred { cause: Cause::Local("x".into()), next_at: Timestamp::from_unix_ms(9) };
        ledger.apply(at(3), &attempted(1, vec![(0, later)]));
        assert_eq!(ledger.get(id(1)).unwrap().recipients[0].state, RecipientState::Hold);
    }

    #[test]
    fn the_same_id_twice_is_one_message() {
        let mut ledger = Ledger::new();
        ledger.apply(at(1), &Fact::Accepted(accepted(1, 1)));
        ledger.apply_lost(at(2), id(1), 1);
        assert_eq!((ledger.balance().transactions, ledger.get(id(1)).unwrap().position), (1, at(1)));
    }

    #[test]
    fn a_message_is_settled_with_its_last_recipient_and_a_route_keeps_its_number() {
        let mut ledger = Ledger::new();
        for n in 1..3 {
            ledger.apply(at(1), &Fact::Accepted(accepted(n, 2)));
        }
        let [even, odd] = ["even", "odd"].map(RouteName::new);
        assert_eq!((ledger.find_route(&even), ledger.find_route(&odd)), (Some(0), Some(1)));
        assert_eq!((ledger.route(1), ledger.find_route(&RouteName::new("none"))), (Some(&odd), None));
        assert_eq!(ledger.route(RouteIndex::MAX), None, "unreadable, and not the last");
        ledger.apply(at(2), &attempted(1, vec![(0, sent())]));
        assert!(!ledger.get(id(1)).unwrap().is_settled());
        ledger.apply(at(3), &attempted(1, vec![(1, Outcome::Quarantined(Cause::Local("rot".into())))]));
        assert!(ledger.get(id(1)).unwrap().is_settled());
    }

    #[test]
    fn the_last_daemon_s_routes_are_those_that_a_recovery_delivers_by() {
        let mut ledger = Ledger::new();
        assert_eq!(ledger.served(), None);
        let served = |hostname: &str| Served { hostname: hostname.into(), ..Served::default() };
        for hostname in ["mx1.test", "mx2.test"] {
            ledger.apply(at(1), &Fact::Served(served(hostname)));
        }
        assert_eq!(ledger.served(), Some(&served("mx2.test")));
    }

    proptest! {
        #[test]
        fn the_balance_is_even_whatever_the_order(steps in proptest::collection::vec((0u8..7, 1u128..6, 0u16..4), 0..60)) {
            let mut ledger = Ledger::new();
            for (n, (kind, who, index)) in steps.into_iter().enumerate() {
                let place = at(n as u64);
                let local = Cause::Local("why".into());
                let operated = |action| Fact::Operated(Operated {
                    id: id(who), at: Timestamp::default(), action, recipients: vec![index], actor: "a".into(), reason: "r".into(),
                });
                match kind {
                    0 => _ = ledger.apply(place, &Fact::Accepted(accepted(who, usize::from(index) + 1))),
                    1 => ledger.apply_lost(place, id(who), index),
                    2 => _ = ledger.apply(place, &attempted(who, vec![(index, sent())])),
                    3 => _ = ledger.apply(place, &attempted(who, vec![(index, Outcome::Held(local))])),
                    4 => _ = ledger.apply(place, &attempted(who, vec![(index, Outcome::Quarantined(local))])),
                    5 => _ = ledger.apply(place, &operated(Action::Hold)),
                    _ => _ = ledger.apply(place, &operated(Action::Release)),
                }
                prop_assert!(ledger.balance().is_even());
            }
        }
    }
}
