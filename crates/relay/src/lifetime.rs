//! What the passing of time does: how primaries stood is written down, and mail that had its time is given up. The five-day clock of
//! a message runs only while its primary can be reached; another, of thirty days, always.
//!
//! The wall's clock is not trusted to run: [`Relay::tick`] is called each minute, and where much more or less than that has passed,
//! the clock was set, or the machine slept. Nobody could be reached in that time.

use crate::lane::Lane;
use crate::relay::{Action, Relay};
use crate::status::{Event, RouteState};
use restante_envelope::Timestamp;
use restante_ledger::{PrimaryState, RecipientEntry, RecipientIndex, RecipientState, Span, Watched};
use std::time::Duration;

/// `expire` where nothing is configured: RFC 5321 section 4.5.4.1 wants 4 to 5 days at least.
pub const EXPIRE_DEFAULT: Duration = Duration::from_secs(5 * 86_400);
/// `expire_cap` where nothing is configured: whoever has no mail server for a month has no mail server.
pub const EXPIRE_CAP_DEFAULT: Duration = Duration::from_secs(30 * 86_400);
/// Between two ticks the clock runs by a minute. More than this, and it was set, or nobody was there.
const STEP_MAX: Duration = Duration::from_secs(300);
/// Messages given up in one tick: what is wrong with the clock in spite of all shall be seen before all is gone.
const GIVEN_UP_MAX: usize = 1_000;
/// Whoever watches has two days.
const WARNED_BEFORE: Duration = Duration::from_secs(2 * 86_400);
/// And is told as often.
const WARN_EVERY: Duration = Duration::from_secs(6 * 3_600);

impl From<RouteState> for PrimaryState {
    fn from(state: RouteState) -> Self {
        match state {
            RouteState::Up => Self::Up,
            RouteState::Suspect => Self::Suspect,
            RouteState::Down => Self::Down,
            RouteState::Recovering => Self::Recovering,
        }
    }
}

impl Relay {
    /// A minute has passed, more or less.
    pub fn tick(&mut self, now: Timestamp) {
        if let Some(before) = self.ticked_at.filter(|before| now < *before || now.since(*before) > STEP_MAX) {
            for number in 0..self.lanes.len() {
                self.note_state(number, before, now);
            }
        }
        self.ticked_at = Some(now);
        self.give_up(now);
    }

    /// Each primary's state is to be written down once more: the records of it may leave the journal.
    pub fn note_states_again(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.noted = None);
        self.events_noted = usize::MAX;
    }

    /// What changed since the last call is to be written down.
    pub(crate) fn note_changes(&mut self, now: Timestamp) {
        // No state changes without an event.
        if self.events.len() == self.events_noted {
            return;
        }
        self.events_noted = self.events.len();
        for number in 0..self.lanes.len() {
            let is_news =
                |lane: &Lane| lane.noted != Some(lane.state()) && (lane.is_configured() || lane.noted.is_some());
            if self.lanes.get(number).is_some_and(is_news) {
                self.note_state(number, now, now);
            }
        }
    }

    /// It could be reached until `end` if it could be reached at all, and stands as it does from `now` on.
    fn note_state(&mut self, number: usize, end: Timestamp, now: Timestamp) {
        let Some(lane) = self.lanes.get_mut(number) else { return };
        let state = lane.state();
        lane.noted = Some(state);
        let up: Vec<Span> = self.ledger.watch(&lane.name).map(|watch| watch.spans_until(end)).unwrap_or_default();
        let (route, why) = (lane.name.clone(), lane.reason().to_owned());
        self.queued.push_back(Action::Watch(Watched { route, at: now, state: state.into(), why, up }));
    }

    /// Who was accepted on this lane at or before this time has had the time that `less` leaves of it.
    fn cutoff(&self, lane: &Lane, less: Duration, now: Timestamp) -> Option<Timestamp> {
        let limits = lane.limits?;
        let by_wall = limits.expire_cap.saturating_sub(less);
        let by_wall = u64::try_from(by_wall.as_millis()).ok().and_then(|cap| now.unix_ms().checked_sub(cap));
        let watch = self.ledger.watch(&lane.name);
        let by_reach = watch.and_then(|watch| watch.cutoff(now, limits.expire.saturating_sub(less)));
        by_wall.map(Timestamp::from_unix_ms).max(by_reach)
    }

    fn give_up(&mut self, now: Timestamp) {
        let cutoffs: Vec<_> = self.lanes.iter().map(|lane| self.cutoff(lane, Duration::ZERO, now)).collect();
        let warned: Vec<_> = self.lanes.iter().map(|lane| self.cutoff(lane, WARNED_BEFORE, now)).collect();
        let Some(last) = cutoffs.iter().chain(&warned).flatten().max().copied() else { return };
        let mut expiring = vec![0_u64; self.lanes.len()];
        let mut given_up = Vec::new();
        for (id, transaction) in self.ledger.iter().take_while(|(_, t)| t.accepted_at <= last) {
            let is_before = |cutoffs: &[Option<Timestamp>], number: usize| {
                cutoffs.get(number).copied().flatten().is_some_and(|cutoff| transaction.accepted_at <= cutoff)
            };
            for (number, recipients) in self.pending_by_lane(&transaction.recipients) {
                let is_active = self.lanes.get(number).is_some_and(|lane| lane.schedule.is_active(id));
                if is_before(&cutoffs, number) && !is_active && given_up.len() < GIVEN_UP_MAX {
                    given_up.push((id, transaction.position, transaction.accepted_at, number, recipients));
                } else if is_before(&warned, number)
                    && let Some(count) = expiring.get_mut(number)
                {
                    *count += 1;
                }
            }
        }
        for (id, position, accepted_at, number, recipients) in given_up {
            let Some(limits) = self.lanes.get(number).and_then(|lane| lane.limits) else { continue };
            let reason = match now.since(accepted_at) >= limits.expire_cap {
                true => format!("it is {} days old", limits.expire_cap.as_secs() / 86_400),
                false => {
                    format!(
                        "the primary could be reached for {} h, and did not take it",
                        limits.expire.as_secs() / 3_600
                    )
                }
            };
            self.queued.push_back(Action::Expire { id, position, recipients, reason });
        }
        for (number, messages) in expiring.into_iter().enumerate() {
            let Some(lane) = self.lanes.get_mut(number) else { continue };
            lane.expiring = messages;
            if messages > 0 && lane.warned_at.is_none_or(|at| now < at || now.since(at) >= WARN_EVERY) {
                lane.warned_at = Some(now);
                self.events.push(Event::Expiring { route: lane.name.clone(), messages });
            }
        }
    }

    /// Those that are not settled and not frozen by anybody, by the lane they are on.
    fn pending_by_lane(&self, recipients: &[RecipientEntry]) -> Vec<(usize, Vec<RecipientIndex>)> {
        let mut by_lane: Vec<(usize, Vec<RecipientIndex>)> = Vec::new();
        for (index, entry) in (0..).zip(recipients) {
            if entry.state.is_settled() || entry.state == RecipientState::Hold {
                continue;
            }
            let Some(number) = self.by_ledger.get(usize::from(entry.route)).copied() else { continue };
            match by_lane.iter_mut().find(|(known, _)| *known == number) {
                Some((_, indexes)) => indexes.push(index),
                None => by_lane.push((number, vec![index])),
            }
        }
        by_lane
    }
}
