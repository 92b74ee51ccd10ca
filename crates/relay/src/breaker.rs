//! Whether a primary is believed when it refuses mail for good. One that came back with empty tables refuses everybody: to
//! believe it would bounce a backlog. Knows mailboxes by 32 bits and transactions by their number; sends nothing.
//!
//! **A refusal is believed when the same message is refused twice, and the primary took another in between.** Till then it is
//! provisional. So it may be broken when it refuses, and repaired when it takes something, and nothing is bounced. The states:
//!
//! | | what may be tried | it takes a message | it refuses a mailbox that it took mail for | it refuses another |
//! |---|---|---|---|---|
//! | **proving**: it has just come up | one, and one more for each five seconds without an answer | believed | the second such mailbox: tripped | the twentieth message in a row: tripped |
//! | **believed** | all | what it refused once is tried once more | doubted; tripped if it is the second and a fifth of those it was asked for | the second time: bounced, unless twenty in a row were refused |
//! | **doubted** | as when proving | one for a mailbox it took mail for, or the third: believed | another such mailbox: tripped | doubted |
//! | **tripped** | a canary each half minute, later each five | believed: all that was refused is tried again | tripped | tripped |
//!
//! Coming up after an outage leads from *believed* and *doubted* to *proving*, and gives a tripped one its next canary at
//! once; so does the word of an operator. What is refused for a mailbox that mail was taken for is never believed by itself: it
//! stays until somebody decides, or its time is up. The last refusals of a backlog need not wait for other mail: where the primary
//! took three messages in the minute before, they are tried once more a minute later, and believed then.
//! A refusal of the content says nothing about mailboxes and counts as one of another. Without the memory of mailboxes that mail
//! was taken for (a new journal), the first twenty refusals decide.

use restante_envelope::{Timestamp, TransactionId};
use restante_ledger::{Mailbox, RecipientIndex};
use std::collections::BTreeSet;
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
/// What was taken longer ago says nothing of now.
const QUIET_SECS: u64 = 60;
/// Messages taken within that time of which a refusal is believed without another.
const TAKEN_BEFORE_QUIET: usize = 3;
/// What an unsure primary refused is tried again after this, if it is all there is.
const STALE_SECS: u64 = 300;
/// One in so many of the mailboxes it was asked for may be gone; of more, it has lost them.
const MISSING_ONE_IN: usize = 5;
/// Mailboxes that are remembered since it came up, to know that.
const ASKED_MAX: usize = 10_000;

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
    /// What it took mail for, or refused, is a mailbox that it had taken mail for.
    pub(crate) known: Option<Mailbox>,
    /// It had refused this message before, and it was tried again for that.
    pub(crate) is_retried: bool,
}

/// What is to be done because of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// These are bounced, for these words.
    Settle(Vec<(RecipientIndex, String)>),
    /// What was refused is to be tried again, but for [`Breaker::kept`].
    Retry,
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
    /// Refused since something was taken.
    provisional: BTreeSet<TransactionId>,
    /// Refused for a mailbox that mail was taken for.
    kept: BTreeSet<TransactionId>,
    /// Tried once more after a quiet minute.
    quiet: BTreeSet<TransactionId>,
    /// Messages refused since something was taken: for the first time, and again.
    in_row: u32,
    again_in_row: u32,
    /// Mailboxes that mail was taken for, and is now, and is not: since it came up.
    there: BTreeSet<Mailbox>,
    missing: BTreeSet<Mailbox>,
    /// When it took the last ones, the newest first, and when it refused something last.
    accepted_at: [Option<Timestamp>; TAKEN_BEFORE_QUIET],
    refused_at: Timestamp,
}

impl Breaker {
    /// Nothing is known: it must prove itself.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self {
            state: State::proving(),
            provisional: BTreeSet::new(),
            kept: BTreeSet::new(),
            quiet: BTreeSet::new(),
            in_row: 0,
            again_in_row: 0,
            there: BTreeSet::new(),
            missing: BTreeSet::new(),
            accepted_at: [None; TAKEN_BEFORE_QUIET],
            refused_at: now,
        }
    }

    /// The primary is up, and was not.
    pub(crate) fn came_up(&mut self, now: Timestamp) {
        // Whatever it refused before, it is asked again.
        self.forget();
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

    fn forget(&mut self) {
        (self.provisional, self.kept, self.quiet) = Default::default();
        (self.there, self.missing, self.in_row, self.again_in_row) = Default::default();
    }

    /// Whether it refused this one since it last came up or took something.
    pub(crate) fn has_just_refused(&self, id: TransactionId) -> bool {
        self.provisional.contains(&id) || self.kept.contains(&id)
    }

    /// When what it refused since it came up is tried again though nothing else waits: it may be repaired by then.
    pub(crate) fn stale_at(&self) -> Option<Timestamp> {
        let is_unsure = matches!(self.state, State::Proving { .. } | State::Doubted { .. });
        let has_refused = !self.provisional.is_empty() || !self.kept.is_empty();
        (is_unsure && has_refused).then(|| self.refused_at + Duration::from_secs(STALE_SECS))
    }

    /// What is not tried again though something was taken.
    pub(crate) fn kept(&self) -> &BTreeSet<TransactionId> {
        &self.kept
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
        let was_tripped = self.tripped().is_some();
        let mut finding = None;
        if !signs.refused.is_empty() {
            self.refused_at = now;
            if signs.accepted.is_none() {
                let count = if signs.is_retried { &mut self.again_in_row } else { &mut self.in_row };
                *count = count.saturating_add(1);
            }
            finding = self.message_refused(id, &signs, now);
        }
        if let Some(known) = signs.accepted {
            self.kept.remove(&id);
            if let Some(mailbox) = signs.known.filter(|_| self.there.len() < ASKED_MAX) {
                self.there.insert(mailbox);
                self.missing.remove(&mailbox);
            }
            self.accepted_at.rotate_right(1);
            self.accepted_at[0] = Some(now);
            (self.in_row, self.again_in_row) = (0, 0);
            return finding.or(self.accepted(known));
        }
        finding.or((!was_tripped && self.tripped().is_some()).then_some(Finding::Tripped))
    }

    fn message_refused(&mut self, id: TransactionId, signs: &Signs, now: Timestamp) -> Option<Finding> {
        if let Some(mailbox) = signs.refused_known {
            self.kept.insert(id);
            self.refused_known(mailbox, now);
            return None;
        }
        let was_quiet = self.quiet.remove(&id);
        let is_sane = was_quiet || self.accepted_at[0].is_some_and(|at| now.since(at).as_secs() <= QUIET_SECS);
        if signs.is_retried && is_sane && self.is_believed() && self.again_in_row < u32::from(REFUSED_IN_ROW_MAX) {
            self.provisional.remove(&id);
            return Some(Finding::Settle(signs.refused.clone()));
        }
        self.provisional.insert(id);
        if signs.accepted.is_none() && !signs.is_retried {
            self.refused(now);
        }
        None
    }

    /// When what it refused is tried once more though nothing was taken since.
    pub(crate) fn settles_at(&self) -> Option<Timestamp> {
        let quiet = Duration::from_secs(QUIET_SECS);
        let is_soon = self.accepted_at.iter().all(|at| at.is_some_and(|at| self.refused_at.since(at) <= quiet));
        let is_tail = self.provisional.difference(&self.quiet).next().is_some();
        let is_few = self.in_row < u32::from(REFUSED_IN_ROW_MAX);
        (is_soon && is_few && is_tail && self.is_believed()).then(|| self.refused_at + quiet)
    }

    /// Those that are tried once more now.
    pub(crate) fn take_quiet(&mut self) -> &BTreeSet<TransactionId> {
        self.again_in_row = 0;
        self.quiet = std::mem::take(&mut self.provisional);
        &self.quiet
    }

    fn accepted(&mut self, known: bool) -> Option<Finding> {
        match &mut self.state {
            State::Believed => {}
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
            State::Tripped { .. } | State::Proving { .. } => {
                self.kept.clear();
                self.state = State::Believed;
                self.provisional.clear();
                return Some(Finding::Retry);
            }
            State::Doubted { .. } => self.state = State::Believed,
        }
        self.provisional.clear();
        Some(Finding::Retry)
    }

    fn refused_known(&mut self, mailbox: Mailbox, now: Timestamp) {
        if self.missing.len() < ASKED_MAX {
            self.missing.insert(mailbox);
            self.there.remove(&mailbox);
        }
        let asked = self.there.len() + self.missing.len();
        let are_lost =
            self.missing.len() >= usize::from(KNOWN_REFUSED_MAX) && self.missing.len() * MISSING_ONE_IN >= asked;
        match &mut self.state {
            State::Tripped { .. } => {}
            _ if are_lost => self.trip(REFUSES_KNOWN.into(), now),
            State::Believed => self.state = State::Doubted { about: mailbox, accepted: 0 },
            State::Proving { known, .. } => {
                if !known.contains(&mailbox) {
                    known.push(mailbox);
                }
                self.refused(now);
            }
            State::Doubted { about, .. } if *about != mailbox => self.trip(REFUSES_KNOWN.into(), now),
            State::Doubted { .. } => {}
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
