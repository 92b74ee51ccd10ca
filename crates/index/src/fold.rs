//! What a batch of events makes of the messages it names: folded in memory, then written to the tables once for each message.
//!
//! A message that arrives and is sent within one batch costs its rows and no change of them. Decides nothing: what an event
//! does to a recipient is the ledger's rule.

use crate::error::IndexError;
use crate::index::{Change, Event, Keep};
use crate::rows::{instant, timestamp};
use crate::state;
use crate::summary::Summary;
use restante_envelope::{Timestamp, TransactionId};
use restante_ledger::{
    Accepted, Action, Attempted, Carried, Cause, Fact, Operated, Outcome, Position, RecipientIndex, RecipientState,
};
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, params};
use std::borrow::Cow;
use std::collections::HashMap;

/// A batch, within a transaction of SQLite's.
pub(crate) struct Fold<'a> {
    connection: &'a Connection,
    keep: Keep,
    find: CachedStatement<'a>,
    find_recipient: CachedStatement<'a>,
    /// In the order in which the batch names them.
    messages: Vec<Message<'a>>,
    /// Where they are in there.
    places: HashMap<TransactionId, usize>,
}

/// A message as the batch leaves it.
struct Message<'a> {
    source: Source<'a>,
    /// Recipients that are not settled; of a row in the table, by how many more.
    pending: i64,
    /// By index: all of a new one, those that were looked at of a row.
    recipients: Vec<(RecipientIndex, Recipient)>,
    was_attempted: bool,
    /// Written again, here, with this envelope: of a message that was lost, nothing but the name may have been known.
    moved_to: Option<(Position, Named<'a>)>,
}

/// What an intact record tells of a message, and what its head does.
type Named<'a> = (&'a Accepted, Option<&'a Summary>);

enum Source<'a> {
    /// It stands in the table.
    Row(i64),
    New {
        id: TransactionId,
        position: Position,
        at: Timestamp,
        /// None if only the name is left of it.
        accepted: Option<Named<'a>>,
    },
}

/// What changes for a recipient.
struct Recipient {
    state: RecipientState,
    /// Of a row: whether it is another one now.
    has_changed: bool,
    /// The last reply, if there is a new one.
    reply: Option<String>,
    /// The reason, if it is another one, or none, now.
    reason: Option<Option<String>>,
    /// How many more.
    attempts: u16,
    changed_at: Timestamp,
}

/// What an event says of a recipient.
struct Told {
    what: What,
    /// What the next hop said, if it did.
    reply: Option<String>,
    /// Why it is deferred or on hold, where no reply tells.
    reason: Option<String>,
    attempts: u16,
    at: Timestamp,
}

#[derive(Clone, Copy)]
enum What {
    State(RecipientState),
    Action(Action),
    /// How it stood when its message was written again; whether that is all that is known of it.
    Carried(RecipientState, bool),
}

impl What {
    fn after(self, state: RecipientState) -> Option<RecipientState> {
        match self {
            Self::State(told) => state.after(told),
            Self::Action(action) => state.after_action(action),
            Self::Carried(told, is_all) => (is_all || state == RecipientState::Quarantined).then_some(told),
        }
    }
}

impl<'a> Fold<'a> {
    pub(crate) fn new(connection: &'a Connection, keep: Keep) -> Result<Self, IndexError> {
        Ok(Self {
            connection,
            keep,
            find: connection.prepare_cached("SELECT n FROM transactions WHERE id = ?")?,
            find_recipient: connection
                .prepare_cached("SELECT state, next_at FROM recipients WHERE n = ? AND nth = ?")?,
            messages: Vec::new(),
            places: HashMap::new(),
        })
    }

    pub(crate) fn apply(&mut self, change: &'a Change) -> Result<(), IndexError> {
        let summary = change.summary.as_ref();
        match &change.event {
            Event::Fact(Fact::Accepted(accepted)) => {
                let state = if accepted.hold.is_some() { RecipientState::Hold } else { RecipientState::Due };
                self.accept(change.position, accepted, state, summary)
            }
            Event::Fact(Fact::Attempted(attempted)) => self.attempted(attempted),
            Event::Fact(Fact::Operated(operated)) => self.operated(operated),
            Event::Fact(Fact::Served(_) | Fact::Watched(_) | Fact::Replayed(_)) => Ok(()),
            Event::Fact(Fact::Carried(carried)) => self.carried(change.position, carried, summary, false),
            Event::DamagedCarried(carried) => self.carried(change.position, carried, summary, true),
            Event::Damaged(accepted) => self.accept(change.position, accepted, RecipientState::Quarantined, summary),
            Event::Lost { id, recipients } => {
                // When it was accepted stands in its name.
                let at = Timestamp::from_unix_ms(u64::try_from(id.to_bits() >> 80).unwrap_or(0));
                let source = Source::New { id: *id, position: change.position, at, accepted: None };
                self.arrive(*id, source, *recipients, RecipientState::Quarantined, None)
            }
        }
    }

    fn accept(
        &mut self,
        position: Position,
        accepted: &'a Accepted,
        state: RecipientState,
        summary: Option<&'a Summary>,
    ) -> Result<(), IndexError> {
        let (id, at) = (accepted.id, accepted.trace.received_at);
        let recipients = RecipientIndex::try_from(accepted.envelope.recipients.len()).unwrap_or(RecipientIndex::MAX);
        let reason = accepted.hold.as_ref().filter(|_| state == RecipientState::Hold);
        let source = Source::New { id, position, at, accepted: Some((accepted, summary)) };
        self.arrive(id, source, recipients, state, reason)
    }

    /// The same identifier twice is one message: the first record counts.
    fn arrive(
        &mut self,
        id: TransactionId,
        source: Source<'a>,
        recipients: u16,
        state: RecipientState,
        reason: Option<&String>,
    ) -> Result<(), IndexError> {
        if self.message(id)?.is_some() {
            return Ok(());
        }
        let Source::New { at, .. } = source else { return Ok(()) };
        let recipient = || Recipient {
            state,
            has_changed: true,
            reply: None,
            reason: Some(reason.cloned()),
            attempts: 0,
            changed_at: at,
        };
        let pending = if state.is_settled() { 0 } else { recipients.into() };
        let recipients = (0..recipients).map(|nth| (nth, recipient())).collect();
        self.places.insert(id, self.messages.len());
        self.messages.push(Message { source, pending, recipients, was_attempted: false, moved_to: None });
        Ok(())
    }

    fn attempted(&mut self, attempted: &Attempted) -> Result<(), IndexError> {
        let Some(place) = self.message(attempted.id)? else { return Ok(()) };
        for (nth, outcome) in &attempted.results {
            let (reply, reason) = match outcome {
                Outcome::Sent(reply) => (Some(reply.to_string()), None),
                Outcome::Deferred { cause, .. } | Outcome::Held(cause) | Outcome::Quarantined(cause) => match cause {
                    Cause::Reply(reply) | Cause::Content(reply) => {
                        let reply = reply.to_string();
                        let reason = matches!(outcome, Outcome::Held(_)).then(|| reply.clone());
                        (Some(reply), reason)
                    }
                    other => (None, Some(other.to_string())),
                },
            };
            let what = What::State(outcome.into());
            self.change(place, *nth, Told { what, reply, reason, attempts: 1, at: attempted.at })?;
        }
        if let Some(message) = self.messages.get_mut(place) {
            message.was_attempted = true;
        }
        Ok(())
    }

    fn operated(&mut self, operated: &Operated) -> Result<(), IndexError> {
        let Some(place) = self.message(operated.id)? else { return Ok(()) };
        let is_final = !matches!(operated.action, Action::Release | Action::Undo);
        let reason = is_final.then(|| format!("{}: {}", operated.actor, operated.reason));
        for nth in &operated.recipients {
            let (reason, at) = (reason.clone(), operated.at);
            let what = What::Action(operated.action);
            self.change(place, *nth, Told { what, reply: None, reason, attempts: 0, at })?;
        }
        Ok(())
    }

    /// Written again: its record is here now, and what was damaged where it stood first is not. Nothing is known of it where
    /// that place has left.
    fn carried(
        &mut self,
        position: Position,
        carried: &'a Carried,
        summary: Option<&'a Summary>,
        is_damaged: bool,
    ) -> Result<(), IndexError> {
        let accepted = &carried.accepted;
        let known = self.message(accepted.id)?;
        if is_damaged && known.is_some() {
            return Ok(());
        }
        let place = match known {
            Some(place) => place,
            None => {
                self.accept(position, accepted, RecipientState::Due, summary)?;
                self.messages.len().saturating_sub(1)
            }
        };
        for (nth, standing) in (0..).zip(&carried.recipients) {
            let state =
                if is_damaged && !standing.state.is_settled() { RecipientState::Quarantined } else { standing.state };
            let why = Some(standing.why.clone()).filter(|why| !why.is_empty());
            let is_on_hold = matches!(state, RecipientState::Hold | RecipientState::Refused);
            let (reply, reason) = if is_on_hold { (None, why) } else { (why, None) };
            let what = What::Carried(state, known.is_none());
            let at = accepted.trace.received_at;
            let attempts = if known.is_none() { standing.attempts } else { 0 };
            self.change(place, nth, Told { what, reply, reason, attempts, at })?;
        }
        if let Some(message) = self.messages.get_mut(place) {
            message.moved_to = Some((position, (accepted, summary)));
        }
        Ok(())
    }

    /// Where it is among the messages; none if there is no such message.
    fn message(&mut self, id: TransactionId) -> Result<Option<usize>, IndexError> {
        if let Some(place) = self.places.get(&id) {
            return Ok(Some(*place));
        }
        let found = self.find.query_row(params![id.to_bits().to_be_bytes()], |row| row.get(0)).optional()?;
        Ok(found.map(|n| {
            let message = Message {
                source: Source::Row(n),
                pending: 0,
                recipients: Vec::new(),
                was_attempted: false,
                moved_to: None,
            };
            self.messages.push(message);
            *self.places.entry(id).or_insert(self.messages.len() - 1)
        }))
    }

    fn change(&mut self, place: usize, nth: RecipientIndex, told: Told) -> Result<(), IndexError> {
        let Some(message) = self.messages.get_mut(place) else { return Ok(()) };
        let found = message.recipients.binary_search_by_key(&nth, |(nth, _)| *nth);
        let recipient = match (found, &message.source) {
            (Ok(at), _) => message.recipients.get_mut(at),
            (Err(_), Source::New { .. }) => None,
            (Err(at), Source::Row(n)) => {
                let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, Option<i64>>(1)?));
                let Some((word, next_at)) = self.find_recipient.query_row(params![n, nth], read).optional()? else {
                    return Ok(());
                };
                let state = state::parse(&word, next_at.map(timestamp));
                let state = state.ok_or_else(|| IndexError::Unusable(format!("a recipient is {word}")))?;
                let changed_at = told.at;
                let row = Recipient { state, has_changed: false, reply: None, reason: None, attempts: 0, changed_at };
                message.recipients.insert(at, (nth, row));
                message.recipients.get_mut(at)
            }
        };
        let Some((_, recipient)) = recipient else { return Ok(()) };
        let was_settled = recipient.state.is_settled();
        recipient.take(told);
        message.pending += i64::from(was_settled) - i64::from(recipient.state.is_settled());
        Ok(())
    }

    /// Writes what has changed.
    pub(crate) fn store(self) -> Result<(), IndexError> {
        let connection = self.connection;
        let mut tables = Tables {
            insert: connection.prepare_cached(
                "INSERT INTO transactions (id, segment, offset, accepted_at, size, sender, client, helo, tls, hold,
                     subject, header_from, message_id, pending)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?,
            insert_recipient: connection.prepare_cached(
                "INSERT INTO recipients (n, nth, addr, domain, route, state, next_at, last_reply, reason, attempts, changed_at)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?,
            update: connection.prepare_cached("UPDATE transactions SET pending = pending + ? WHERE n = ?")?,
            update_recipient: connection.prepare_cached(
                "UPDATE recipients SET state = ?3, next_at = ?4, last_reply = coalesce(?5, last_reply),
                     reason = CASE WHEN ?6 THEN ?7 ELSE reason END, attempts = attempts + ?8, changed_at = ?9
                 WHERE n = ?1 AND nth = ?2",
            )?,
            connection,
        };
        for message in &self.messages {
            let is_checked = self.keep == Keep::Unsent && message.was_attempted;
            match &message.source {
                Source::New { .. } if is_checked && message.is_sent() => {}
                Source::New { id, position, at, accepted } => {
                    let (position, named) = match message.moved_to {
                        Some((position, named)) => (position, accepted.or(Some(named))),
                        None => (*position, *accepted),
                    };
                    tables.insert(message, *id, position, *at, named)?;
                }
                Source::Row(n) => {
                    tables.update(*n, message)?;
                    if is_checked {
                        tables.forget_if_sent(*n)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Message<'_> {
    fn is_sent(&self) -> bool {
        self.recipients.iter().all(|(_, recipient)| recipient.state == RecipientState::Sent)
    }
}

impl Recipient {
    fn take(&mut self, told: Told) {
        let Some(state) = told.what.after(self.state) else { return };
        // Frozen by an operator while the attempt was under way: his reason stands.
        let is_frozen = matches!((self.state, told.what), (RecipientState::Hold, What::State(told)) if state != told);
        if !is_frozen {
            self.reason = Some(told.reason);
        }
        self.reply = told.reply.or(self.reply.take());
        (self.state, self.has_changed, self.changed_at) = (state, true, told.at);
        self.attempts = self.attempts.saturating_add(told.attempts);
    }
}

/// The statements that write, made once for a batch.
struct Tables<'a> {
    insert: CachedStatement<'a>,
    insert_recipient: CachedStatement<'a>,
    update: CachedStatement<'a>,
    update_recipient: CachedStatement<'a>,
    connection: &'a Connection,
}

impl Tables<'_> {
    fn insert(
        &mut self,
        message: &Message<'_>,
        id: TransactionId,
        position: Position,
        at: Timestamp,
        accepted: Option<Named<'_>>,
    ) -> Result<(), IndexError> {
        let (accepted, summary) = accepted.map_or((None, None), |(accepted, summary)| (Some(accepted), summary));
        self.insert.execute(params![
            id.to_bits().to_be_bytes(),
            position.segment.cast_signed(),
            position.offset.cast_signed(),
            instant(at),
            accepted.map_or(0, |a| a.content_len).cast_signed(),
            accepted.map(|a| a.envelope.reverse_path.as_str()),
            accepted.map(|a| a.trace.client.to_string()),
            accepted.map(|a| &a.trace.helo),
            accepted.and_then(|a| a.trace.tls.as_ref()),
            accepted.and_then(|a| a.hold.as_ref()),
            summary.and_then(|s| s.subject.as_ref()),
            summary.and_then(|s| s.from.as_ref()),
            summary.and_then(|s| s.message_id.as_ref()),
            message.pending,
        ])?;
        let n = self.connection.last_insert_rowid();
        for (nth, recipient) in &message.recipients {
            let named = accepted.and_then(|a| a.envelope.recipients.get(usize::from(*nth)));
            self.insert_recipient.execute(params![
                n,
                nth,
                named.map(|r| r.forward_path.as_str()),
                named.and_then(|r| r.forward_path.domain_ascii()).map(Cow::into_owned),
                named.map(|r| r.route.as_str()),
                state::word(recipient.state),
                state::next_at(recipient.state).map(instant),
                recipient.reply,
                recipient.reason.as_ref().and_then(Option::as_ref),
                recipient.attempts,
                instant(recipient.changed_at),
            ])?;
        }
        Ok(())
    }

    fn update(&mut self, n: i64, message: &Message<'_>) -> Result<(), IndexError> {
        for (nth, recipient) in message.recipients.iter().filter(|(_, recipient)| recipient.has_changed) {
            self.update_recipient.execute(params![
                n,
                nth,
                state::word(recipient.state),
                state::next_at(recipient.state).map(instant),
                recipient.reply,
                recipient.reason.is_some(),
                recipient.reason.as_ref().and_then(Option::as_ref),
                recipient.attempts,
                instant(recipient.changed_at),
            ])?;
        }
        if let Some((position, named)) = message.moved_to {
            self.moved(n, position, named)?;
        }
        if message.pending != 0 {
            self.update.execute(params![message.pending, n])?;
        }
        Ok(())
    }

    /// Where it stands now; and what was not known of it, because its first record was lost.
    fn moved(&self, n: i64, position: Position, (accepted, summary): Named<'_>) -> Result<(), IndexError> {
        self.connection
            .prepare_cached(
                "UPDATE transactions SET segment = ?2, offset = ?3, size = ?4, sender = ?5, client = ?6, helo = ?7, tls = ?8,
                     hold = ?9, subject = coalesce(subject, ?10), header_from = coalesce(header_from, ?11),
                     message_id = coalesce(message_id, ?12)
                 WHERE n = ?1",
            )?
            .execute(params![
                n,
                position.segment.cast_signed(),
                position.offset.cast_signed(),
                accepted.content_len.cast_signed(),
                accepted.envelope.reverse_path.as_str(),
                accepted.trace.client.to_string(),
                accepted.trace.helo,
                accepted.trace.tls,
                accepted.hold,
                summary.and_then(|s| s.subject.as_ref()),
                summary.and_then(|s| s.from.as_ref()),
                summary.and_then(|s| s.message_id.as_ref()),
            ])?;
        let mut name = self.connection.prepare_cached(
            "UPDATE recipients SET addr = ?3, domain = ?4, route = ?5 WHERE n = ?1 AND nth = ?2 AND addr IS NULL",
        )?;
        for (nth, recipient) in (0..).zip(&accepted.envelope.recipients) {
            let nth: RecipientIndex = nth;
            let domain = recipient.forward_path.domain_ascii().map(Cow::into_owned);
            name.execute(params![n, nth, recipient.forward_path.as_str(), domain, recipient.route.as_str()])?;
        }
        Ok(())
    }

    fn forget_if_sent(&self, n: i64) -> Result<(), IndexError> {
        let unsent = self
            .connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM recipients WHERE n = ? AND state <> ?)")?
            .query_row(params![n, state::word(RecipientState::Sent)], |row| row.get::<_, bool>(0))?;
        if !unsent {
            for table in ["recipients", "transactions"] {
                self.connection.prepare_cached(&format!("DELETE FROM {table} WHERE n = ?"))?.execute(params![n])?;
            }
        }
        Ok(())
    }
}
