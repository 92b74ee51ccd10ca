//! What the index answers: transactions with their recipients, in order of acceptance, a page at a time.

use crate::error::IndexError;
use crate::index::Index;
use crate::state;
use crate::summary::Summary;
use restante_envelope::{Timestamp, TransactionId};
use restante_ledger::{Position, RecipientState};
use rusqlite::types::Value;
use rusqlite::{Row as SqlRow, params, params_from_iter};

/// Values in one question. SQLite takes 32,766; identifiers beyond this are asked for in the next one, and more routes or
/// domains than this do not narrow the question, but the caller does.
const VALUES_MAX: usize = 500;

/// Narrows what [`Index::select`] answers. An empty list is no condition; more than one condition must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    /// One of these.
    pub ids: Vec<TransactionId>,
    /// With a recipient on one of these routes.
    pub routes: Vec<String>,
    /// With a recipient in one of these domains, in lower case.
    pub domains: Vec<String>,
    /// Accepted then or later.
    pub since: Option<Timestamp>,
    /// Accepted before.
    pub until: Option<Timestamp>,
    /// With more bytes of content than this.
    pub larger_bytes: Option<u64>,
    /// With a recipient that is not settled. With `given_up` too: with one of either kind.
    pub pending: bool,
    /// With a recipient that an operator bounced or removed.
    pub given_up: bool,
}

/// One message. What is missing could not be read when the index was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub id: TransactionId,
    /// Where its record is.
    pub position: Position,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// Bytes of content.
    pub size: u64,
    /// The reverse-path, empty for `<>`.
    pub from: Option<String>,
    /// The client's address and port.
    pub client: Option<String>,
    /// What the client called itself.
    pub helo: Option<String>,
    /// Version and cipher suite, if it came through TLS.
    pub tls: Option<String>,
    /// Why a safety rule froze it at the door.
    pub hold: Option<String>,
    /// What its headers say.
    pub summary: Summary,
    /// In the envelope's order.
    pub recipients: Vec<RecipientRow>,
}

/// One recipient of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipientRow {
    /// The forward-path.
    pub addr: Option<String>,
    /// The route its mail takes.
    pub route: Option<String>,
    /// Its state, as the journal knows it.
    pub state: RecipientState,
    /// The last reply of a next hop.
    pub last_reply: Option<String>,
    /// Why it is on hold, or deferred without a reply.
    pub reason: Option<String>,
    /// Attempts that reached a reply or an in-doubt end.
    pub attempts: u16,
    /// When its state last changed.
    pub changed_at: Timestamp,
}

impl RecipientRow {
    /// The state's word in every listing; what is due waits, as far as the journal knows.
    pub fn word(&self) -> &'static str {
        state::word_to_show(self.state)
    }

    /// When it is tried again, if it is deferred.
    pub fn next_at(&self) -> Option<Timestamp> {
        state::next_at(self.state)
    }
}

/// As the tables hold it: milliseconds since 1970.
pub(crate) fn instant(at: Timestamp) -> i64 {
    at.unix_ms().cast_signed()
}

pub(crate) fn timestamp(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(u64::try_from(ms).unwrap_or(0))
}

impl Index {
    /// At most `limit` messages, in the order of their identifiers, from the first behind `after` on. No more of them:
    /// an empty page.
    pub fn select(
        &self,
        selector: &Selector,
        after: Option<TransactionId>,
        limit: usize,
    ) -> Result<Vec<Row>, IndexError> {
        if selector.ids.is_empty() {
            return self.page(selector, &[], after, limit);
        }
        let mut ids: Vec<_> = selector.ids.iter().copied().filter(|id| after.is_none_or(|after| *id > after)).collect();
        ids.sort_unstable();
        ids.dedup();
        for some in ids.chunks(VALUES_MAX) {
            let page = self.page(selector, some, after, limit)?;
            if !page.is_empty() {
                return Ok(page);
            }
        }
        Ok(Vec::new())
    }

    fn page(
        &self,
        selector: &Selector,
        ids: &[TransactionId],
        after: Option<TransactionId>,
        limit: usize,
    ) -> Result<Vec<Row>, IndexError> {
        let (sql, values) = question(selector, ids, after, limit);
        let mut select = self.connection.prepare_cached(&sql)?;
        let mut recipients = self.connection.prepare_cached(
            "SELECT addr, route, state, next_at, last_reply, reason, attempts, changed_at FROM recipients
             WHERE n = ? ORDER BY nth",
        )?;
        let mut page = Vec::new();
        let mut found = select.query(params_from_iter(values))?;
        while let Some(row) = found.next()? {
            let mut message = message(row)?;
            let mut of_message = recipients.query(params![row.get::<_, i64>(0)?])?;
            while let Some(row) = of_message.next()? {
                message.recipients.push(recipient(row)?);
            }
            page.push(message);
        }
        Ok(page)
    }
}

pub(crate) fn question(
    selector: &Selector,
    ids: &[TransactionId],
    after: Option<TransactionId>,
    limit: usize,
) -> (String, Vec<Value>) {
    let (mut conditions, mut values) = (vec!["TRUE".to_owned()], Vec::new());
    let blob = |id: &TransactionId| Value::Blob(id.to_bits().to_be_bytes().to_vec());
    let given_up = "n IN (SELECT n FROM recipients WHERE state IN ('bounced', 'removed'))";
    match (selector.pending, selector.given_up) {
        (true, true) => conditions.push(format!("(pending > 0 OR {given_up})")),
        (true, false) => conditions.push("pending > 0".into()),
        (false, true) => conditions.push(given_up.into()),
        (false, false) => {}
    }
    if let Some(after) = &after {
        conditions.push("id > ?".into());
        values.push(blob(after));
    }
    if !ids.is_empty() {
        conditions.push(format!("id IN ({})", marks(ids.len())));
        values.extend(ids.iter().map(blob));
    }
    let compared = [
        ("accepted_at >= ?", selector.since.map(instant)),
        ("accepted_at < ?", selector.until.map(instant)),
        ("size > ?", selector.larger_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX))),
    ];
    for (condition, value) in compared {
        if let Some(value) = value {
            conditions.push(condition.into());
            values.push(Value::Integer(value));
        }
    }
    for (column, wanted) in [("route", &selector.routes), ("domain", &selector.domains)] {
        if (1..=VALUES_MAX).contains(&wanted.len()) {
            conditions.push(format!(
                "EXISTS (SELECT 1 FROM recipients r WHERE r.n = t.n AND r.{column} IN ({}))",
                marks(wanted.len())
            ));
            values.extend(wanted.iter().map(|text| Value::Text(text.clone())));
        }
    }
    values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
    let sql = format!(
        "SELECT n, id, segment, offset, accepted_at, size, sender, client, helo, tls, hold, subject, header_from, message_id
         FROM transactions t WHERE {} ORDER BY id LIMIT ?",
        conditions.join(" AND ")
    );
    (sql, values)
}

fn marks(count: usize) -> String {
    vec!["?"; count].join(", ")
}

fn message(row: &SqlRow<'_>) -> Result<Row, IndexError> {
    Ok(Row {
        id: TransactionId::from_bits(u128::from_be_bytes(row.get(1)?)),
        position: Position {
            segment: row.get::<_, i64>(2)?.cast_unsigned(),
            offset: row.get::<_, i64>(3)?.cast_unsigned(),
        },
        accepted_at: timestamp(row.get(4)?),
        size: row.get::<_, i64>(5)?.cast_unsigned(),
        from: row.get(6)?,
        client: row.get(7)?,
        helo: row.get(8)?,
        tls: row.get(9)?,
        hold: row.get(10)?,
        summary: Summary { subject: row.get(11)?, from: row.get(12)?, message_id: row.get(13)? },
        recipients: Vec::new(),
    })
}

fn recipient(row: &SqlRow<'_>) -> Result<RecipientRow, IndexError> {
    let word: String = row.get(2)?;
    let state = state::parse(&word, row.get::<_, Option<i64>>(3)?.map(timestamp));
    Ok(RecipientRow {
        addr: row.get(0)?,
        route: row.get(1)?,
        state: state.ok_or_else(|| IndexError::Unusable(format!("a recipient is {word}")))?,
        last_reply: row.get(4)?,
        reason: row.get(5)?,
        attempts: row.get(6)?,
        changed_at: timestamp(row.get(7)?),
    })
}
