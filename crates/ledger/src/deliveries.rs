//! When recipients were sent, and which replays have offered them again. A message that is written again keeps that of the
//! records that leave the journal (FORMAT.md section 4.12). Decides nothing.

use crate::{Carried, Fact, Outcome, RecipientIndex, RecipientState};
use restante_envelope::{ReplyClass, Timestamp, TransactionId};
use std::collections::{HashMap, HashSet};

/// Replays that a recipient remembers, the newest: more of the same mail nobody orders, and a record stays short.
const REPLAYS_MAX: usize = 16;

/// What became of a recipient that was sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Past {
    /// When it was sent; none if nobody knows any more.
    pub sent_at: Option<Timestamp>,
    /// The replays that have settled it, oldest first: each once.
    pub replays: Vec<ReplayMark>,
}

/// That a replay has settled a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayMark {
    /// Which replay.
    pub job: u64,
    /// The primary took it once more; else it refused for good.
    pub taken: bool,
}

impl Past {
    /// Whether there is anything to be kept.
    pub fn is_empty(&self) -> bool {
        self.sent_at.is_none() && self.replays.is_empty()
    }

    /// The first time counts: what is sent stays so.
    fn sent(&mut self, at: Option<Timestamp>) {
        self.sent_at = self.sent_at.or(at);
    }

    /// The last word of a replay counts.
    fn replayed(&mut self, mark: ReplayMark) {
        match self.replays.iter_mut().find(|known| known.job == mark.job) {
            Some(known) => known.taken = mark.taken,
            None => self.replays.push(mark),
        }
        if self.replays.len() > REPLAYS_MAX {
            self.replays.remove(0);
        }
    }
}

/// Gathers it from facts, in the order in which they happened.
#[derive(Debug, Clone, Default)]
pub struct Deliveries {
    /// None: all.
    wanted: Option<HashSet<TransactionId>>,
    messages: HashMap<TransactionId, Vec<(RecipientIndex, Past)>>,
}

impl Deliveries {
    /// Of these messages alone.
    pub fn of(wanted: impl IntoIterator<Item = TransactionId>) -> Self {
        Self { wanted: Some(wanted.into_iter().collect()), messages: HashMap::new() }
    }

    /// Whether facts about this message are looked at.
    pub fn wants(&self, id: TransactionId) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted.contains(&id))
    }

    /// Takes what the fact tells.
    pub fn apply(&mut self, fact: &Fact) {
        match fact {
            Fact::Attempted(attempted) => {
                for (index, outcome) in &attempted.results {
                    if matches!(outcome, Outcome::Sent(_)) {
                        self.note(attempted.id, *index, |past| past.sent(Some(attempted.at)));
                    }
                }
            }
            Fact::Carried(carried) => self.apply_carried(carried),
            Fact::Replayed(replayed) => {
                for (index, reply) in &replayed.results {
                    let mark = ReplayMark { job: replayed.job, taken: reply.class() == ReplyClass::Positive };
                    self.note(replayed.id, *index, |past| past.replayed(mark));
                }
            }
            Fact::Accepted(_) | Fact::Operated(_) | Fact::Served(_) | Fact::Watched(_) => {}
        }
    }

    /// The record of a message that was written again, whether or not its content is whole.
    pub fn apply_carried(&mut self, carried: &Carried) {
        for (index, standing) in (0..).zip(&carried.recipients) {
            if standing.state == RecipientState::Sent && !standing.past.is_empty() {
                self.note(carried.accepted.id, index, |past| {
                    past.sent(standing.past.sent_at);
                    standing.past.replays.iter().for_each(|mark| past.replayed(*mark));
                });
            }
        }
    }

    /// What was told of this recipient.
    pub fn past(&self, id: TransactionId, index: RecipientIndex) -> Past {
        let told = self.messages.get(&id).and_then(|told| told.iter().find(|(known, _)| *known == index));
        told.map(|(_, past)| past.clone()).unwrap_or_default()
    }

    fn note(&mut self, id: TransactionId, index: RecipientIndex, change: impl FnOnce(&mut Past)) {
        if !self.wants(id) {
            return;
        }
        let told = self.messages.entry(id).or_default();
        match told.binary_search_by_key(&index, |(known, _)| *known) {
            Ok(place) => {
                if let Some((_, past)) = told.get_mut(place) {
                    change(past);
                }
            }
            Err(place) => {
                let mut past = Past::default();
                change(&mut past);
                told.insert(place, (index, past));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attempted, Position, Replayed, Timings};
    use restante_envelope::Reply;

    fn id(n: u128) -> TransactionId {
        TransactionId::from_bits(n)
    }

    fn sent(n: u128, at: u64, recipients: &[RecipientIndex]) -> Fact {
        let results = recipients.iter().map(|index| (*index, Outcome::Sent(Reply::new(250, None, "Ok")))).collect();
        let at = Timestamp::from_unix_ms(at);
        Fact::Attempted(Attempted { id: id(n), at, next_hop: None, timings: Timings::default(), results })
    }

    fn replayed(n: u128, job: u64, results: &[(RecipientIndex, u16)]) -> Fact {
        let (actor, reason) = (String::new(), String::new());
        let results = results.iter().map(|(index, code)| (*index, Reply::new(*code, None, ""))).collect();
        let (at, position) = (Timestamp::default(), Position { segment: 1, offset: 0 });
        Fact::Replayed(Replayed { id: id(n), at, position, job, actor, reason, next_hop: None, results })
    }

    #[test]
    fn what_is_sent_was_sent_the_first_time_and_a_replay_counts_by_its_last_word() {
        let mut told = Deliveries::default();
        let facts = [
            sent(1, 10, &[3, 0]),
            sent(1, 20, &[0]),
            replayed(1, 7, &[(0, 550), (3, 250)]),
            replayed(1, 7, &[(0, 250)]),
        ];
        facts.iter().for_each(|fact| told.apply(fact));
        let at = |ms| Some(Timestamp::from_unix_ms(ms));
        let taken = vec![ReplayMark { job: 7, taken: true }];
        assert_eq!(told.past(id(1), 0), Past { sent_at: at(10), replays: taken.clone() });
        assert_eq!(told.past(id(1), 3), Past { sent_at: at(10), replays: taken });
        assert!(told.past(id(1), 1).is_empty() && told.past(id(2), 0).is_empty());
    }

    #[test]
    fn of_more_replays_than_fit_the_newest_stay_and_of_other_messages_nothing() {
        let mut told = Deliveries::of([id(1)]);
        for job in 0..100 {
            told.apply(&replayed(1, job, &[(0, 250)]));
            told.apply(&replayed(2, job, &[(0, 250)]));
        }
        let jobs: Vec<u64> = told.past(id(1), 0).replays.iter().map(|mark| mark.job).collect();
        assert_eq!(jobs, (84..100).collect::<Vec<_>>());
        assert!(told.past(id(2), 0).is_empty() && told.wants(id(1)) && !told.wants(id(2)));
    }
}
