//! Whether a primary is believed when it refuses mail for good. One that came back with empty tables refuses everybody: to
//! believe it would bounce a backlog. Knows mailboxes by 32 bits and transactions by their number; sends nothing.
//!
//! A refusal is provisional until the primary takes something *after* it. The states:
//!
//! | | what may be tried | it takes a message | it refuses a mailbox that it took mail for | it refuses another |
//! |---|---|---|---|---|
//! | **proving**: it has just come up | one, and one more for each five seconds without an answer | believed | the second such mailbox: tripped | the twentieth message in a row: tripped |
//! | **believed** | all | all that it refused so far is settled | doubted | believed |
//! | **doubted** | as when proving | one for a mailbox it took mail for, or the third: believed | another such mailbox: tripped | doubted |
//! | **tripped** | a canary each half minute, later each five | believed: all that was refused is tried again | tripped | tripped |
//!
//! Coming up after an outage leads from *believed* and *doubted* to *proving*, and gives a tripped one its next canary at
//! once; so does the word of an operator. What a believed primary refused within a minute of taking something is also settled
//! when a minute has passed in which nothing spoke against it: the last of a backlog need not wait for other mail. A refusal of the content says nothing about mailboxes and counts as one of another.
//! Without the memory of mailboxes that mail was taken for (a new journal), the first twenty refusals decide.

use restante_envelope::{Timestamp, TransactionId};
use restante_ledger::{Mailbox, RecipientIndex};
use std::collections::BTreeMap;
use std::time::Duration;

/// Messages that a primary may refuse after it came up, without having taken one, before nothing more is sent. Where
/// three of five recipients of a backlog never existed, a healthy one refuses twenty in a row once in 27,000 times.
const REFUSED_IN_ROW_MAX: u8 = 20;
/// Mailboxes it took mail for that it refuses without taking something between. One may have been deleted.
const KNOWN_REFUSED_MAX: u8 = 2;
/// Messages it takes that end a doubt, whoever they are for.
const ACCEPTED_ENDS_DOUBT: u8 = 3;
/// From one canary to the next of a primary that refuses all: somebody may be repairing it this minute.
const CANARY_FIRST_SECS: u64 = 30;
/// Doublings of that: at most five minutes and a bit.
const CANARY_DOUBLINGS_MAX: u32 = 3;
/// So many canaries at the first interval, and of these all are among those it refused: nothing more shall reach it.
const CANARIES_EARLY: u32 = 20;
/// Later every so many a canary is another one.
const UNTRIED_EVERY: u32 = 3;
/// A refusal so soon after something was taken is believed when as much time has passed again.
const QUIET_SECS: u64 = 60;
/// Refusals that can be settled without another try. Of more than these, the others are tried again.
const PROVISIONAL_MAX: usize = 10_000;

/// Why all stays on hold.
const REFUSES_KNOWN: &str = "primary refuses known recipients";

/// What an attempt says of the primary; of several recipients, all that came of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signs {
    /// It took the message for somebody; true if for a mailbox it took mail for before.
    pub(crate) accepted: Option<bool>,
    /// It refused the envelope for a mailbox it took mail for before.
    pub(crate) refused_known: Option<Mailbox>,
    /// It refused, for good, whatever it was.
    pub(crate) refused: Vec<(RecipientIndex, String)>,
}

/// What is to be done because of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Everything it refused so far and that is named by [`Breaker::take_provisional`] is believed.
    Believed,
    /// As above; what else was refused is to be tried again.
    BelievedAgain,
    /// Nothing more is sent.
    Tripped,
}

#[derive(Debug)]
enum State {
    Proving { refused: u8, known: Vec<Mailbox> },
    Believed,
    Doubted { about: Mailbox, accepted: u8 },
    Tripped { why: String, since: Timestamp, next_canary: Timestamp, canaries: u32 },
}

#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    provisional: BTreeMap<(TransactionId, RecipientIndex), String>,
    /// When it took something last, and when it refused something last.
    accepted_at: Option<Timestamp>,
    refused_at: Timestamp,
}

impl Breaker {
    /// Nothing is known: it must prove itself.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self { state: State::proving(), provisional: BTreeMap::new(), accepted_at: None, refused_at: now }
    }

    /// The primary is up, and was not.
    pub(crate) fn came_up(&mut self, now: Timestamp) {
        // Whatever it refused before, it is asked again.
        self.provisional.clear();
        match &mut self.state {
            State::Tripped { next_canary, .. } => *next_canary = now,
            state => *state = State::proving(),
        }
    }

    /// An operator wants it tried again.
    pub(crate) fn release(&mut self, now: Timestamp) {
        if let State::Tripped { next_canary, canaries, .. } = &mut self.state {
            (*next_canary, *canaries) = (now, 0);
        }
    }

    /// Why nothing is sent, and since when.
    pub(crate) fn tripped(&self) -> Option<(&str, Timestamp)> {
        match &self.state {
            State::Tripped { why, since, .. } => Some((why, *since)),
            _ => None,
        }
    }

    pub(crate) fn is_believed(&self) -> bool {
        matches!(self.state, State::Believed)
    }

    /// Which canary comes next; none if all may be tried.
    pub(crate) fn canary(&self) -> Option<Canary> {
        match &self.state {
            State::Believed => None,
            State::Proving { .. } | State::Doubted { .. } => Some(Canary::Next),
            State::Tripped { canaries, .. } if *canaries >= CANARIES_EARLY && canaries % UNTRIED_EVERY == 0 => {
                Some(Canary::Untried)
            }
            State::Tripped { canaries, .. } => Some(Canary::Refused(*canaries)),
        }
    }

    /// Whether one more may be tried while `active` are that do not seem to hang.
    pub(crate) fn may_begin(&self, active: usize, now: Timestamp) -> bool {
        match &self.state {
            State::Believed => true,
            State::Tripped { next_canary, .. } => active == 0 && *next_canary <= now,
            State::Proving { .. } | State::Doubted { .. } => active == 0,
        }
    }

    /// When [`Self::may_begin`] says something else, if nothing is heard before.
    pub(crate) fn next_wake(&self, active: usize) -> Option<Timestamp> {
        match &self.state {
            State::Tripped { next_canary, .. } => (active == 0).then_some(*next_canary),
            State::Believed | State::Proving { .. } | State::Doubted { .. } => None,
        }
    }

    /// Whether it refused this one, in this process and since it last came up or was believed.
    pub(crate) fn has_just_refused(&self, id: TransactionId) -> bool {
        self.provisional.range((id, 0)..=(id, RecipientIndex::MAX)).next().is_some()
    }

    /// An attempt begins.
    pub(crate) fn begins(&mut self, now: Timestamp) {
        if let State::Tripped { next_canary, canaries, .. } = &mut self.state {
            *canaries += 1;
            let doublings = canaries.saturating_sub(CANARIES_EARLY).min(CANARY_DOUBLINGS_MAX);
            *next_canary = now + Duration::from_secs(CANARY_FIRST_SECS << doublings);
        }
    }

    /// An attempt ended before the primary heard of it: that was no canary.
    pub(crate) fn untold(&mut self, now: Timestamp) {
        if let State::Tripped { next_canary, .. } = &mut self.state {
            *next_canary = now;
        }
    }

    /// An attempt was answered, and that is durable.
    pub(crate) fn heard(&mut self, id: TransactionId, signs: Signs, now: Timestamp) -> Option<Finding> {
        let (is_refused, was_tripped) = (!signs.refused.is_empty(), self.tripped().is_some());
        if is_refused {
            self.refused_at = now;
        }
        if signs.accepted.is_some() {
            self.accepted_at = Some(now);
        }
        for (index, why) in signs.refused {
            if self.provisional.len() < PROVISIONAL_MAX {
                self.provisional.insert((id, index), why);
            }
        }
        if let Some(mailbox) = signs.refused_known {
            self.refused_known(mailbox, now);
        } else if is_refused && signs.accepted.is_none() {
            self.refused(now);
        }
        match signs.accepted {
            Some(known) => self.accepted(known),
            None => (!was_tripped && self.tripped().is_some()).then_some(Finding::Tripped),
        }
    }

    /// When what it refused is believed though nothing was taken since.
    pub(crate) fn settles_at(&self) -> Option<Timestamp> {
        let quiet = Duration::from_secs(QUIET_SECS);
        let is_soon = self.accepted_at.is_some_and(|at| self.refused_at.since(at) <= quiet);
        (is_soon && self.is_believed() && !self.provisional.is_empty()).then(|| self.refused_at + quiet)
    }

    /// Refusals to be settled: after [`Finding::Believed`] those of this process, and else none. Whoever takes them settles them.
    pub(crate) fn take_provisional(&mut self) -> Vec<(TransactionId, RecipientIndex, String)> {
        let taken = std::mem::take(&mut self.provisional);
        taken.into_iter().map(|((id, index), why)| (id, index, why)).collect()
    }

    fn accepted(&mut self, known: bool) -> Option<Finding> {
        match &mut self.state {
            State::Believed => return (!self.provisional.is_empty()).then_some(Finding::Believed),
            State::Doubted { accepted, .. } if !known && *accepted + 1 < ACCEPTED_ENDS_DOUBT => {
                *accepted += 1;
                return None;
            }
            State::Proving { known: refused, .. } if !refused.is_empty() && !known => {
                let about = refused.last().copied().unwrap_or_default();
                self.state = State::Doubted { about, accepted: 1 };
                return None;
            }
            // What it refused then may be repaired by now: each is tried again.
            State::Tripped { .. } => self.provisional.clear(),
            State::Proving { .. } | State::Doubted { .. } => {}
        }
        self.state = State::Believed;
        Some(Finding::BelievedAgain)
    }

    fn refused_known(&mut self, mailbox: Mailbox, now: Timestamp) {
        match &mut self.state {
            State::Believed => self.state = State::Doubted { about: mailbox, accepted: 0 },
            State::Proving { known, .. } => {
                if !known.contains(&mailbox) {
                    known.push(mailbox);
                }
                if known.len() >= usize::from(KNOWN_REFUSED_MAX) {
                    self.trip(REFUSES_KNOWN.into(), now);
                } else {
                    self.refused(now);
                }
            }
            State::Doubted { about, .. } if *about != mailbox => self.trip(REFUSES_KNOWN.into(), now),
            State::Doubted { .. } | State::Tripped { .. } => {}
        }
    }

    fn refused(&mut self, now: Timestamp) {
        if let State::Proving { refused, .. } = &mut self.state {
            *refused += 1;
            if *refused >= REFUSED_IN_ROW_MAX {
                let count = format!("{REFUSED_IN_ROW_MAX} messages refused since it came up, and none taken");
                self.trip(format!("{REFUSES_KNOWN} ({count})"), now);
            }
        }
    }

    fn trip(&mut self, why: String, now: Timestamp) {
        let next_canary = now + Duration::from_secs(CANARY_FIRST_SECS);
        self.state = State::Tripped { why, since: now, next_canary, canaries: 0 };
    }
}

impl State {
    fn proving() -> Self {
        Self::Proving { refused: 0, known: Vec::new() }
    }
}

/// Which message is tried to see what the primary does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Canary {
    /// One for a mailbox it took mail for, if there is one near the head; else the oldest.
    Next,
    /// One of those it refused; this many were tried since it tripped.
    Refused(u32),
    /// One that it has not refused: it may be that all it refused never existed.
    Untried,
}
