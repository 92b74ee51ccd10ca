//! `restante log --around ID`: the life of one message, from the session that brought it to where it is now.
//!
//! Says what the log says; what the log has forgotten is in the journal.

use super::scan::scan;
use super::select::{earliest_day, finder, lines_with};
use super::{Days, Look, Tail, exit, printable};
use crate::cli::log_line::{addresses, local_time, reason};
use restante_envelope::TransactionId;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;

/// Recipients that the last sentence names; the rest are counted.
const RECIPIENTS_NAMED_MAX: usize = 10;

/// A line of the log: as it stands there, and parsed.
struct Entry {
    text: String,
    record: Map<String, Value>,
}

impl Entry {
    fn parse(line: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(line).into_owned();
        let record = serde_json::from_str(&text).ok()?;
        Some(Self { text, record })
    }

    fn get(&self, key: &str) -> &str {
        self.record.get(key).and_then(Value::as_str).unwrap_or_default()
    }
}

/// Prints it; exit 4 if the log has nothing of this message.
pub(super) fn print(
    directory: &Path,
    id: TransactionId,
    look: &Look,
    out: &mut impl Write,
    note: impl Fn(&str),
) -> io::Result<u8> {
    let days = Days { since: Some(earliest_day(id)), until: None };
    let mut life = Life::find(directory, id, &days, &note)?;
    if life.entries.is_empty() {
        // A clock that was set back far writes files of days before the identifier's.
        life = Life::find(directory, id, &Days::default(), &note)?;
    }
    if life.entries.is_empty() {
        note(&format!("the delivery log has nothing of {id} (any more); the journal may: restante queue show {id}"));
        return Ok(exit::NOTHING_MATCHED);
    }
    if life.accepted().is_none() {
        note(&format!("the delivery log no longer tells how {id} came; the journal may: restante queue show {id}"));
    }
    life.add_circumstances(directory, &days, &note)?;
    let mut text = String::new();
    for entry in &life.entries {
        look.record(&entry.text, &entry.record, &mut text);
    }
    out.write_all(text.as_bytes())?;
    let recipients = life.recipients();
    let now = life.sentence(&recipients, look);
    if look.json {
        let to: Vec<_> = recipients.iter().map(Recipient::object).collect();
        writeln!(out, "{}", json!({"type": "life", "id": id.to_string(), "to": to, "now": now}))?;
    } else {
        writeln!(out, "{}", printable(&format!("now: {now}")))?;
    }
    out.flush()?;
    Ok(exit::DONE)
}

struct Life {
    id: String,
    /// In order of time.
    entries: Vec<Entry>,
}

/// One recipient, and what was last said of it.
struct Recipient<'a> {
    address: String,
    last: Option<&'a Entry>,
}

impl Life {
    /// All lines of the transaction.
    fn find(directory: &Path, id: TransactionId, days: &Days, note: impl Fn(&str)) -> io::Result<Self> {
        let (id, needle) = finder(&id.to_string());
        let mut life = Self { id: id.clone(), entries: Vec::new() };
        let is_mine = |entry: &Entry| entry.get("id") == id;
        let work = |text: &[u8]| {
            let lines = lines_with(text, [&needle].into_iter()).into_iter().filter_map(Entry::parse);
            (time_of(text), lines.filter(is_mine).collect::<Vec<_>>())
        };
        let each = |(time, found): (String, Vec<Entry>)| {
            life.entries.extend(found);
            Ok(if life.is_over_by(&time) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        scan(&mut Tail::all(directory, days.clone()), work, each, note)?;
        life.sort();
        Ok(life)
    }

    /// The lines of the session by which it came, and of its primaries while it was here.
    fn add_circumstances(&mut self, directory: &Path, days: &Days, note: impl Fn(&str)) -> io::Result<()> {
        let Some(accepted) = self.accepted() else { return Ok(()) };
        let (sid, since) = (accepted.get("sid").to_owned(), accepted.get("ts").to_owned());
        let until = self.entries.last().filter(|_| self.is_settled()).map(|last| last.get("ts").to_owned());
        let routes: BTreeSet<String> =
            self.entries.iter().flat_map(|e| e.get("route").split(',')).map(str::to_owned).collect();
        let needles = [finder(&format!("\"sid\":\"{sid}\"")).1, finder("\"ev\":\"primary_").1];
        let is_wanted = |entry: &Entry| match entry.get("ev") {
            "connect" | "rejected" | "disconnect" => entry.get("sid") == sid,
            "primary_up" | "primary_recovering" | "primary_down" => {
                let ts = entry.get("ts");
                routes.contains(entry.get("route"))
                    && ts >= since.as_str()
                    && until.as_ref().is_none_or(|until| ts <= until.as_str())
            }
            _ => false,
        };
        let work = |text: &[u8]| {
            let lines = lines_with(text, needles.iter()).into_iter().filter_map(Entry::parse);
            (time_of(text), lines.filter(is_wanted).collect::<Vec<_>>())
        };
        let mut found = Vec::new();
        let each = |(time, more): (String, Vec<Entry>)| {
            found.extend(more);
            let is_over = self.is_over_by(&time);
            Ok(if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        scan(&mut Tail::all(directory, days.clone()), work, each, note)?;
        self.entries.extend(found);
        self.sort();
        Ok(())
    }

    /// In order of time; what was told twice is shown once.
    fn sort(&mut self) {
        let mut seen = BTreeSet::new();
        self.entries.retain(|entry| seen.insert(entry.text.clone()));
        // The session's time of acceptance may be taken an instant before the line of its beginning.
        let begins = |entry: &Entry| entry.get("ev") != "connect";
        let has_come = |entry: &Entry| entry.get("ev") != "accepted";
        let key = |entry: &Entry| (begins(entry), entry.get("ts").to_owned(), has_come(entry));
        self.entries.sort_by_cached_key(key);
    }

    fn accepted(&self) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.get("ev") == "accepted")
    }

    /// Whether a piece of the log that begins with this time can have nothing more: all is settled, a day and more before.
    fn is_over_by(&self, time: &str) -> bool {
        let day_after = |ts: &str| {
            let day: Option<jiff::civil::Date> = ts.get(..10).and_then(|day| day.parse().ok());
            day.and_then(|day| day.tomorrow().ok()).map(|day| day.to_string())
        };
        let last = self.entries.iter().map(|entry| entry.get("ts")).max();
        last.and_then(day_after).is_some_and(|after| time.get(..10).is_some_and(|day| day > after.as_str()))
            && self.is_settled()
    }

    /// Whether nothing more will happen to it, unless somebody wants it to.
    fn is_settled(&self) -> bool {
        let recipients = self.recipients();
        !recipients.is_empty()
            && recipients.len() as u64 >= self.expected()
            && recipients.iter().all(Recipient::is_sent)
    }

    /// How many recipients there are, as far as is known.
    fn expected(&self) -> u64 {
        self.accepted().and_then(|accepted| accepted.record.get("nrcpt")?.as_u64()).unwrap_or_default()
    }

    fn recipients(&self) -> Vec<Recipient<'_>> {
        let mut found: Vec<Recipient<'_>> = Vec::new();
        if let Some(accepted) = self.accepted() {
            let to = accepted.get("to");
            let addresses: Vec<_> = if self.expected() == 1 { vec![to] } else { addresses(to) };
            found.extend(addresses.into_iter().map(|to| Recipient { address: to.to_owned(), last: None }));
        }
        for entry in &self.entries {
            let to = entry.get("to");
            if to.is_empty() || entry.get("id") != self.id || entry.get("ev") == "accepted" {
                continue;
            }
            match found.iter_mut().find(|recipient| recipient.address == to) {
                // Once it is sent, no older line that was told late takes that back.
                Some(known) if known.is_sent() && entry.get("ev") != "replayed" => {}
                Some(known) => known.last = Some(entry),
                None => found.push(Recipient { address: to.to_owned(), last: Some(entry) }),
            }
        }
        let waiting =
            self.entries.iter().rev().find(|entry| entry.get("ev") == "waiting" && entry.get("id") == self.id);
        for recipient in found.iter_mut().filter(|recipient| recipient.is_due()) {
            let is_later = |waiting: &&Entry| {
                recipient
                    .last
                    .is_none_or(|last| last.get("ts") <= waiting.get("ts") && last.get("route") == waiting.get("route"))
            };
            recipient.last = waiting.filter(is_later).or(recipient.last);
        }
        found
    }

    /// Where it stands now.
    fn sentence(&self, recipients: &[Recipient<'_>], look: &Look) -> String {
        let mut words: Vec<_> = recipients.iter().take(RECIPIENTS_NAMED_MAX).map(|one| one.words(look)).collect();
        let known = recipients.len().min(RECIPIENTS_NAMED_MAX) as u64;
        let others = self.expected().max(recipients.len() as u64).saturating_sub(known);
        if others > 0 {
            words.push(format!("and {others} more recipients, see: restante queue show {}", self.id));
        }
        if words.is_empty() {
            words.push("the log says nothing of its recipients".to_owned());
        }
        words.join("; ")
    }
}

impl Recipient<'_> {
    fn event(&self) -> &str {
        self.last.map_or("accepted", |last| last.get("ev"))
    }

    fn is_sent(&self) -> bool {
        self.event() == "sent"
    }

    /// To be tried when its time and its primary allow.
    fn is_due(&self) -> bool {
        matches!(self.event(), "accepted" | "deferred" | "released" | "undone")
    }

    fn object(&self) -> Value {
        json!({"addr": self.address, "status": self.event(), "at": self.last.map(|last| last.get("ts"))})
    }

    fn words(&self, look: &Look) -> String {
        let Some(last) = self.last else { return format!("{} is accepted and was not tried yet", self.address) };
        let at = local_time(last.get("ts"), &look.zone);
        let why = match reason(&last.record) {
            why if why.is_empty() => String::new(),
            why => format!(" ({why})"),
        };
        let next_at = local_time(last.get("next_at"), &look.zone);
        let what = match last.get("ev") {
            "sent" => format!("was taken by {} at {at}", last.get("relay_host")),
            "deferred" => format!("was put off at {at} and is tried again at {next_at}"),
            "waiting" => format!("waits since {at} for the primary of {}", last.get("route")),
            "held" => format!("is on hold since {at}, until somebody releases it"),
            "released" | "undone" => format!("may be tried again since {at}"),
            other => format!("is {other} since {at}"),
        };
        format!("{} {what}{why}", self.address)
    }
}

/// The time of the first line that has one of ours.
fn time_of(text: &[u8]) -> String {
    text.split(|b| *b == b'\n').find_map(crate::serve::log::files::day_of).unwrap_or_default()
}

#[cfg(test)]
mod tests;
