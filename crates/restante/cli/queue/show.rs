//! `queue show` and `queue cat`: one transaction in full, and its content. Settled ones too, while the journal has them.

use super::entry::{Entry, addr, all_entries, from, recipient_json};
use super::history::Histories;
use super::live::Live;
use super::source::Source;
use crate::cli::args::{Cli, Show};
use crate::cli::asked;
use crate::cli::log_line::printable;
use crate::cli::output::{MadeSafe, Output};
use crate::cli::{exit, journal, words};
use crate::clock;
use restante_envelope::{Envelope, TransactionId};
use restante_index::{RecipientRow, Row, Selector};
use restante_journal::{Content, DirStorage, ReadError, Reader, Storage};
use restante_ledger::Fact;
use serde_json::{Value, json};
use std::io::{self, IsTerminal as _};

pub(super) fn show(cli: &Cli, which: &Show, output: Output) -> anyhow::Result<u8> {
    let data = match journal::data_dir(cli, output) {
        Ok(data) => data,
        Err(code) => return Ok(code),
    };
    let mut selector = which.selector.clone();
    selector.ids.extend(&which.ids);
    let now = clock::now();
    // Whoever names a transaction wants to see it, whatever became of it.
    let query = match selector.query(now) {
        query if selector.ids.is_empty() => query,
        query => Selector { pending: false, given_up: false, ..query },
    };
    let mut source = Source::open(&data, query, true, output)?;
    let (live, mut reader) = (Live::ask(cli), Reader::new(source.storage().clone()));
    let mut shown = 0;
    loop {
        let mut page = source.next_page()?;
        if page.is_empty() {
            break;
        }
        page.retain(|row| all_entries(row, &live).iter().any(|entry| selector.matches(entry, now)));
        let histories = Histories::read(source.storage(), &page)?;
        for row in &page {
            let entries = all_entries(row, &live);
            let envelope = asked::envelope(&mut reader, row.position);
            if output.json {
                output.object(&object(row, &entries, &histories, envelope.as_ref()));
            } else {
                if shown > 0 {
                    output.line("");
                }
                in_words(row, &entries, &histories, envelope.as_ref()).iter().for_each(|line| output.line(line));
            }
            if output.is_closed() {
                return Ok(exit::DONE);
            }
            shown += 1;
        }
    }
    if shown == 0 && !output.json {
        output.note("restante: no such transaction");
    }
    Ok(if shown == 0 && selector.narrows() { exit::NOTHING_MATCHED } else { exit::DONE })
}

pub(super) fn cat(cli: &Cli, id: TransactionId, output: Output) -> anyhow::Result<u8> {
    let data = match journal::data_dir(cli, output) {
        Ok(data) => data,
        Err(code) => return Ok(code),
    };
    let selector = Selector { ids: vec![id], ..Selector::default() };
    let mut source = Source::open(&data, selector, false, output)?;
    let Some(row) = source.next_page()?.pop() else {
        output.note(&format!("restante: the journal has no transaction {id}"));
        return Ok(exit::NOTHING_MATCHED);
    };
    let why = match Reader::new(source.storage().clone()).message(row.position) {
        Ok(stored) if matches!(&stored.fact, Fact::Accepted(accepted) if accepted.id == id) => {
            match print(stored.content, io::stdout().is_terminal(), output) {
                Ok(()) => return Ok(exit::DONE),
                Err(error) => error,
            }
        }
        Ok(_) => ReadError::Damaged { position: row.position, what: "another record stands there" },
        Err(error) => error,
    };
    if let ReadError::Io(error) = why {
        return Err(error.into());
    }
    output.note(&format!("restante: the content of {id} cannot be read: {why}"));
    Ok(exit::DAMAGED)
}

/// A large content piece by piece. Each is checked before it is printed, so what is wrong ends the output and is not in it.
/// So does a closed pipe. No terminal gets the bytes themselves: a stranger wrote them.
fn print(
    mut content: Content<<DirStorage as Storage>::File>,
    to_terminal: bool,
    output: Output,
) -> Result<(), ReadError> {
    let mut safe = MadeSafe::default();
    while let Some(piece) = content.next_chunk()? {
        if to_terminal {
            output.bytes(safe.piece(&piece).as_bytes());
        } else {
            output.bytes(&piece);
        }
        if output.is_closed() {
            return Ok(());
        }
    }
    output.bytes(safe.end().as_bytes());
    Ok(())
}

/// The entry that tells the state of all of it: the first that is not settled.
fn leading<'e, 'r>(entries: &'e [Entry<'r>]) -> Option<&'e Entry<'r>> {
    let rank = |entry: &&Entry<'_>| {
        let order = ["active", "deferred", "waiting", "hold"];
        (order.iter().position(|state| *state == entry.state).unwrap_or(order.len()), entry.state == "sent")
    };
    entries.iter().min_by_key(rank)
}

fn object(row: &Row, entries: &[Entry<'_>], histories: &Histories, envelope: Option<&Envelope>) -> Value {
    let routes: Vec<&str> = entries.iter().map(|entry| entry.route).collect();
    let mut to: Vec<Value> = row.recipients.iter().map(|to| recipient(to, entries)).collect();
    for (to, asked) in to.iter_mut().zip(envelope.iter().flat_map(|envelope| &envelope.recipients)) {
        to.as_object_mut().into_iter().for_each(|to| asked::of_recipient(&asked.dsn, to));
    }
    let history: Vec<Value> = histories.of(row.id).map(|step| step.to_json(row)).collect();
    let (state, next) = leading(entries).map_or(("?", "?"), |entry| (entry.state, &*entry.next));
    let mut object = json!({
        "type": "transaction",
        "id": row.id.to_string(),
        "route": routes.join(","),
        "state": state,
        "from": from(row),
        "size": row.size,
        "accepted_at": row.accepted_at.to_string(),
        "to": to,
        "next": next,
        "expires_at": null,
        "subject": row.summary.subject,
        "header_from": row.summary.from,
        "message_id": row.summary.message_id,
        "client": row.client,
        "helo": row.helo,
        "tls": row.tls,
        "hold_reason": row.hold,
        "position": {"segment": row.position.segment, "offset": row.position.offset},
        "history": history,
    });
    if let (Some(envelope), Some(object)) = (envelope, object.as_object_mut()) {
        asked::of_message(envelope, object);
    }
    object
}

fn recipient(to: &RecipientRow, entries: &[Entry<'_>]) -> Value {
    let entry = entries.iter().find(|entry| Some(entry.route) == to.route.as_deref());
    let mut object = recipient_json(to, entry);
    if let Some(map) = object.as_object_mut() {
        map.insert("route".into(), to.route.clone().into());
        map.insert("attempts".into(), to.attempts.into());
        map.insert("changed_at".into(), to.changed_at.to_string().into());
    }
    object
}

fn in_words(row: &Row, entries: &[Entry<'_>], histories: &Histories, envelope: Option<&Envelope>) -> Vec<String> {
    let unknown = || "?".to_owned();
    let age = words::seconds(clock::now().since(row.accepted_at).as_secs());
    let through = row.tls.as_deref().map_or("in clear".to_owned(), |tls| format!("through {tls}"));
    let client = row.client.clone().unwrap_or_else(unknown);
    let helo = row.helo.clone().unwrap_or_else(unknown);
    let mut lines = vec![row.id.to_string()];
    let mut field = |name: &str, text: String| lines.push(printable(&format!("  {name:11} {text}")));
    for entry in entries {
        field("state", format!("{} on route {} ({})", entry.state, entry.route, entry.next));
    }
    field("from", format!("<{}>", from(row)));
    let summary = [
        ("subject", &row.summary.subject),
        ("header from", &row.summary.from),
        ("message-id", &row.summary.message_id),
    ];
    for (name, text) in summary {
        text.iter().for_each(|text| field(name, text.clone()));
    }
    field("size", format!("{} ({} bytes)", words::bytes(row.size), row.size));
    field("accepted", format!("{} ({age} ago)", row.accepted_at));
    field("client", format!("{client}, helo {helo}, {through}"));
    row.hold.iter().for_each(|why| field("held", format!("at the door: {why}")));
    let asked = envelope.and_then(|envelope| asked::in_words(|object| asked::of_message(envelope, object)));
    asked.into_iter().for_each(|asked| field("asked", asked));
    field("journal", format!("segment {}, offset {}", row.position.segment, row.position.offset));
    for (number, to) in row.recipients.iter().enumerate() {
        let next = to.next_at().map_or(String::new(), |at| format!(", next try at {at}"));
        field("to", format!("<{}>  {}, {} attempts{next}", addr(to), to.word(), to.attempts));
        let dsn = envelope.and_then(|envelope| envelope.recipients.get(number)).map(|to| &to.dsn);
        let asked = dsn.and_then(|dsn| asked::in_words(|object| asked::of_recipient(dsn, object)));
        asked.into_iter().for_each(|asked| field("", format!("  asked: {asked}")));
        to.last_reply.iter().for_each(|reply| field("", format!("  last reply: {reply}")));
        to.reason.iter().filter(|_| to.reason != to.last_reply).for_each(|why| field("", format!("  reason: {why}")));
    }
    for line in histories.of(row.id).flat_map(|step| step.in_words(row)) {
        field("history", line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::testing::{live, row};
    use super::*;
    use crate::cli::log_line::render;
    use crate::cli::output::escaped;
    use restante_envelope::text::is_harmless;

    #[test]
    fn no_subject_address_or_reply_steers_a_terminal_in_any_listing() {
        let directory = tempfile::tempdir().unwrap();
        let storage = DirStorage::open(directory.path()).unwrap();
        let none = Histories::read(&storage, &[]).unwrap();
        for hostile in ["\u{1b}]0;x", "\u{7}", "\u{9b}2J", "\u{202e}gpj", "\0", "\u{200b}", "\n\rforged", "\u{7f}"] {
            let text = || Some(format!("a{hostile}z"));
            let mut row = row(1, &["a@b.test"]);
            (row.from, row.helo, row.client, row.tls, row.hold) = (text(), text(), text(), text(), text());
            (row.summary.subject, row.summary.from, row.summary.message_id) = (text(), text(), text());
            let to = &mut row.recipients[0];
            (to.addr, to.route, to.last_reply, to.reason) = (text(), text(), text(), Some(hostile.to_owned()));
            let entries = all_entries(&row, &live());
            let shown = in_words(&row, &entries, &none, None);
            let listed = entries[0].in_words();
            let objects = [entries[0].to_json(), object(&row, &entries, &none, None)];
            let record =
                json!({"ev": "sent", "id": "x", "to": text(), "from": text(), "reply": text(), "node": text()});
            let logged = render(record.as_object().unwrap(), &jiff::tz::TimeZone::UTC);
            let json = objects.iter().map(|object| escaped(&object.to_string()));
            assert_eq!(listed.lines().count(), 2, "{listed:?}");
            for line in shown.into_iter().chain(listed.lines().map(str::to_owned)).chain([logged]).chain(json) {
                assert!(line.chars().all(is_harmless), "{line:?}");
            }
        }
    }
}
