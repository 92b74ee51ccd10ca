//! The primaries, and the world's relay task: attempts and probes go out, what was heard comes back, as `serve/relay.rs`
//! and `serve/attempt.rs` have it, without connections.

use crate::process::{Entry, Waits};
use crate::world::{Happening, ROUTES, World};
use crate::{Broken, Failure};
use restante_envelope::{Reply, RouteName, TransactionId};
use restante_journal::{Prepared, ReadError};
use restante_ledger::{
    Action as Operation, Attempted, Cause, Fact, Operated, Outcome, Position, RecipientIndex, Timings,
};
use restante_relay::{Action, ConnectionTrouble, Heard, Verdict, judge, received_header};
use std::time::Duration;

/// A message that the disk did not give us is tried again after this.
const READ_RETRY: Duration = Duration::from_secs(60);

/// A virtual mail server.
#[derive(Debug, Default)]
pub(crate) struct Primary {
    there: bool,
    /// Counts its comings and goings.
    era: u32,
}

/// One try, under way.
#[derive(Debug)]
pub(crate) struct Attempt {
    id: TransactionId,
    route: usize,
    recipients: Vec<RecipientIndex>,
    attempt: u16,
    token: u32,
    era: u32,
}

impl Primary {
    pub(crate) fn come_back(&mut self) {
        if !self.there {
            (self.there, self.era) = (true, self.era + 1);
        }
    }
}

/// What the primary did with a message.
struct Taken {
    heard: Vec<(RecipientIndex, Heard)>,
    /// For whom it has it, whatever we heard.
    by: Vec<RecipientIndex>,
}

impl World {
    /// Does everything that is due now.
    pub(crate) fn act(&mut self) -> Result<(), Failure> {
        loop {
            let now = self.now();
            let Some(action) = self.process.as_mut().and_then(|p| p.relay.poll(now)) else { break };
            match action {
                Action::Probe { route } => {
                    let route = index_of(&route);
                    let ok = self.primaries.get(route).is_some_and(|p| p.there);
                    let epoch = self.epoch;
                    self.later(5, 300, Happening::ProbeEnds { epoch, route, ok });
                }
                Action::Watch(watched) => {
                    let fact = Fact::Watched(watched);
                    let record = Prepared::fact(&fact, Vec::new());
                    let _full_line = self.enter(Entry { record, fact, waits: Waits::Nobody });
                }
                // Nothing ticks here: `lifetimes` of the relay does that.
                Action::Expire { .. } => {}
                Action::Settle { id, recipients, reason, .. } => {
                    let (at, actor) = (self.now(), "restante".into());
                    self.submit_operation(Operated { id, at, action: Operation::Settle, recipients, actor, reason })?;
                }
                Action::Attempt { id, route, position, recipients, attempt, .. } => {
                    self.begin(id, index_of(&route), position, recipients, attempt)?;
                }
            }
        }
        self.process.iter_mut().for_each(|p| drop(p.relay.take_events()));
        Ok(())
    }

    fn begin(
        &mut self,
        id: TransactionId,
        route: usize,
        position: Position,
        recipients: Vec<RecipientIndex>,
        attempt: u16,
    ) -> Result<(), Failure> {
        self.summary.attempts += 1;
        self.note(|| format!("attempt {attempt} of {id} for {recipients:?}"));
        self.history.check_attempt(id, &recipients)?;
        let Some(process) = &mut self.process else { return Ok(()) };
        let read = process.reader.message(position).and_then(|stored| match stored.fact {
            Fact::Accepted(accepted) if accepted.id == id => Ok((accepted, stored.content.read_all()?)),
            _ => Err(ReadError::Damaged { position, what: "another record stands there" }),
        });
        let (accepted, content) = match read {
            Ok(read) => read,
            Err(why) => return self.unreadable(id, position, &recipients, &why),
        };
        // Over the wire, and from there to whom it is for: trace header in front, and every byte as it came.
        let mut wire = received_header(&accepted.trace, id, "mx2.test", None);
        wire.extend_from_slice(&content);
        if self.plan.broken == Broken::CutsContents {
            wire.truncate(wire.len() - 2);
        }
        let token = self.history.check_content(id, without_trace(&wire))?;
        let era = self.primaries.get(route).map_or(0, |p| p.era);
        let epoch = self.epoch;
        let attempt = Attempt { id, route, recipients, attempt, token, era };
        self.later(1, 5_000, Happening::AttemptEnds { epoch, attempt });
        Ok(())
    }

    fn unreadable(
        &mut self,
        id: TransactionId,
        position: Position,
        recipients: &[RecipientIndex],
        why: &ReadError,
    ) -> Result<(), Failure> {
        assert!(self.plan.broken != Broken::PanicsOnDamage, "{id} cannot be read: {why}");
        self.history.check_unreadable(id, position, &why.to_string())?;
        let now = self.now();
        let cause = Cause::Local(why.to_string());
        let outcome = match why {
            ReadError::Damaged { .. } => Outcome::Quarantined(cause),
            ReadError::Io(_) => Outcome::Deferred { cause, next_at: now + READ_RETRY },
        };
        let results = recipients.iter().map(|index| (*index, outcome.clone())).collect();
        self.settle(Attempted { id, at: now, next_hop: None, timings: Timings::default(), results })
    }

    /// `is_heard`: the process that began it is still there.
    pub(crate) fn attempt_ends(&mut self, is_heard: bool, attempt: Attempt) -> Result<(), Failure> {
        let outcome = self.offered(&attempt);
        let Ok(taken) = outcome else {
            if is_heard {
                self.failed(&attempt, ConnectionTrouble::NotMade("refused".into()));
            }
            return Ok(());
        };
        for index in &taken.by {
            self.history.delivered(attempt.token, attempt.id, *index);
        }
        if !is_heard {
            return Ok(());
        }
        let (now, id) = (self.now(), attempt.id);
        let (mut results, mut broke) = (Vec::new(), None);
        for (index, heard) in &taken.heard {
            let doubtful = matches!(heard, Heard::InDoubt { .. }) && self.plan.broken == Broken::TrustsDoubt;
            let taken = Heard::Replied(Reply::new(250, None, "perhaps"));
            let heard = if doubtful { &taken } else { heard };
            match judge(heard, attempt.attempt.saturating_sub(1), id, self.plan.seed, now) {
                Verdict::Record(outcome) => results.push((*index, outcome)),
                Verdict::RetryUnrecorded => broke = Some(ConnectionTrouble::Broke("it broke".to_owned())),
                Verdict::SlowDown => broke = Some(ConnectionTrouble::PushedBack("it is busy".to_owned())),
            }
        }
        if results.is_empty() {
            let why = broke.unwrap_or_else(|| ConnectionTrouble::Broke("it broke".into()));
            self.failed(&attempt, why);
            return Ok(());
        }
        if let Some(why) = broke {
            let known: Vec<RecipientIndex> = results.iter().map(|(index, _)| *index).collect();
            for index in attempt.recipients.iter().filter(|index| !known.contains(index)) {
                let cause = Cause::Connection(why.to_string());
                results.push((*index, Outcome::Deferred { cause, next_at: now }));
            }
        }
        self.settle(Attempted { id, at: now, next_hop: None, timings: Timings::default(), results })
    }

    /// What the primary did; an error if there was no connection.
    fn offered(&mut self, attempt: &Attempt) -> Result<Taken, ()> {
        let Some(primary) = self.primaries.get(attempt.route) else { return Err(()) };
        let interrupted = primary.era != attempt.era;
        if !interrupted && !primary.there {
            return Err(());
        }
        let all = |heard: Heard| attempt.recipients.iter().map(|index| (*index, heard.clone())).collect();
        let replied = |code| Heard::Replied(Reply::new(code, None, "said"));
        let lost = || Heard::Lost { why: "reset".into() };
        let in_doubt = || Heard::InDoubt { why: "reset".into() };
        let kind = self.draw.below(if interrupted { 3 } else { 16 });
        Ok(match kind {
            _ if self.calm && !interrupted => Taken { heard: all(replied(250)), by: attempt.recipients.clone() },
            0 => Taken { heard: all(lost()), by: Vec::new() },
            1 => Taken { heard: all(in_doubt()), by: attempt.recipients.clone() },
            2 => Taken { heard: all(in_doubt()), by: Vec::new() },
            3 => Taken { heard: all(replied(421)), by: Vec::new() },
            _ => {
                let at_dot = [250, 250, 250, 250, 250, 452, 554].get(self.draw.index(7)).copied().unwrap_or(250);
                let mut taken = Taken { heard: Vec::new(), by: Vec::new() };
                for index in &attempt.recipients {
                    let code = [250, 250, 250, 250, 450, 550].get(self.draw.index(6)).copied().unwrap_or(250);
                    let code = if code == 250 { at_dot } else { code };
                    taken.heard.push((*index, replied(code)));
                    taken.by.extend((code == 250).then_some(*index));
                }
                taken
            }
        })
    }

    fn failed(&mut self, attempt: &Attempt, why: ConnectionTrouble) {
        let (now, id, route) = (self.now(), attempt.id, name_of(attempt.route));
        self.note(|| format!("the attempt of {id} failed: {why}"));
        self.process.iter_mut().for_each(|p| p.relay.attempt_failed(id, &route, why.clone(), now));
    }

    fn settle(&mut self, attempted: Attempted) -> Result<(), Failure> {
        let fact = Fact::Attempted(attempted);
        let entry = Entry { record: Prepared::fact(&fact, Vec::new()), fact, waits: Waits::Settlement };
        if self.is_dropped(&entry) {
            // As if it had been committed.
            let position = Position { segment: 0, offset: self.summary.attempts };
            self.history.durable(position, entry.fact.clone())?;
            self.tell_relay(position, &entry.fact);
            return Ok(());
        }
        match self.enter(entry) {
            Some(back) => self.refuse(back),
            None => Ok(()),
        }
    }

    pub(crate) fn probe_ends(&mut self, route: usize, ok: bool) {
        let now = self.now();
        let result = if ok { Ok(()) } else { Err("refused".to_owned()) };
        self.process.iter_mut().for_each(|p| p.relay.probe_ended(&name_of(route), result.clone(), now));
    }

    pub(crate) fn switch(&mut self, route: usize) {
        if let Some(primary) = self.primaries.get_mut(route) {
            (primary.there, primary.era) = (!primary.there, primary.era + 1);
            let there = primary.there;
            self.note(|| format!("primary {route} {}", if there { "is back" } else { "goes away" }));
            self.later(1, if there { 120_000 } else { 30_000 }, Happening::Switch(route));
        }
    }
}

/// What a recipient sees below the headers that servers on the way put in front.
fn without_trace(wire: &[u8]) -> &[u8] {
    let mut rest = wire;
    loop {
        let ours = rest.starts_with(b"Received:") || rest.starts_with(b"\t");
        let Some(end) = rest.iter().position(|byte| *byte == b'\n').filter(|_| ours) else { return rest };
        rest = rest.get(end + 1..).unwrap_or_default();
    }
}

fn index_of(route: &RouteName) -> usize {
    ROUTES.iter().position(|known| *known == route.as_str()).unwrap_or(usize::MAX)
}

fn name_of(route: usize) -> RouteName {
    RouteName::new(ROUTES.get(route).unwrap_or(&""))
}
