//! A transaction on one of its routes, as a listing shows it.

use super::live::Live;
use crate::cli::log_line::printable;
use crate::cli::select::Selector;
use crate::cli::words;
use crate::clock;
use restante_envelope::Timestamp;
use restante_index::{RecipientRow, Row};
use restante_ledger::{Action, RecipientState};
use serde_json::{Value, json};
use std::time::Duration;

/// Among which transactions a command chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Among {
    Pending,
    GivenUp,
}

impl Among {
    pub(super) fn query(self, selector: &Selector, now: Timestamp) -> restante_index::Selector {
        let (pending, given_up) = (self == Self::Pending, self == Self::GivenUp);
        restante_index::Selector { pending, given_up, ..selector.query(now) }
    }

    pub(super) fn takes(self, entry: &Entry<'_>) -> bool {
        match self {
            Self::Pending => entry.is_pending(),
            Self::GivenUp => entry.is_given_up(),
        }
    }
}

/// A transaction on one of its routes.
pub(crate) struct Entry<'r> {
    pub(crate) row: &'r Row,
    pub(crate) route: &'r str,
    pub(crate) state: &'static str,
    pub(crate) next: String,
    /// Whether it is being delivered now.
    pub(crate) active: bool,
    /// Why what the primary refused is not believed, where that is so.
    pub(crate) tripped: Option<String>,
    /// Those on this route.
    pub(crate) recipients: Vec<&'r RecipientRow>,
}

/// One entry for each route, in the envelope's order.
pub(crate) fn all_entries<'r>(row: &'r Row, live: &Live) -> Vec<Entry<'r>> {
    let mut entries: Vec<Entry<'r>> = Vec::new();
    for recipient in &row.recipients {
        let route = recipient.route.as_deref().unwrap_or("?");
        match entries.iter_mut().find(|entry| entry.route == route) {
            Some(entry) => entry.recipients.push(recipient),
            None => {
                let active = live.active.contains(&(row.id.to_string(), route.to_owned()));
                let recipients = vec![recipient];
                let tripped = live.tripped.get(route).cloned();
                entries.push(Entry { row, route, state: "", next: String::new(), active, tripped, recipients });
            }
        }
    }
    for entry in &mut entries {
        (entry.state, entry.next) = state_and_next(entry, live);
    }
    entries
}

impl Entry<'_> {
    pub(super) fn is_pending(&self) -> bool {
        self.recipients.iter().any(|to| !to.state.is_settled())
    }

    /// Whether `undo` would take a part of it up again.
    fn is_given_up(&self) -> bool {
        self.recipients.iter().any(|to| is_given_up(to.state))
    }

    /// Whether a part of it was removed, or bounced, as `state` says.
    pub(crate) fn was(&self, state: &str) -> bool {
        self.recipients.iter().any(|to| is_given_up(to.state) && to.word() == state)
    }

    pub(crate) fn to_json(&self) -> Value {
        let to: Vec<Value> = self.recipients.iter().map(|to| recipient_json(to, Some(self))).collect();
        json!({"type": "transaction", "id": self.row.id.to_string(), "route": self.route, "state": self.state,
            "from": from(self.row), "size": self.row.size, "accepted_at": self.row.accepted_at.to_string(), "to": to,
            "next": self.next, "expires_at": null, "subject": self.row.summary.subject})
    }

    pub(crate) fn in_words(&self) -> String {
        let age = words::seconds(clock::now().since(self.row.accepted_at).as_secs());
        let mut line = format!(
            "{}  {age:>9}  {:>10}  {:8}  <{}> -> ",
            self.row.id,
            words::bytes(self.row.size),
            self.state,
            printable(from(self.row))
        );
        let addresses: Vec<&str> = self.recipients.iter().map(|to| addr(to)).collect();
        line += &printable(&format!("{}  ({})", addresses.join(", "), self.next));
        for to in &self.recipients {
            let tripped = self.tripped.as_ref().filter(|_| to.state == RecipientState::Refused);
            if let Some(why) = to.reason.as_ref().or(to.last_reply.as_ref()) {
                let why = tripped.map_or(why.clone(), |tripped| format!("{tripped}: {why}"));
                line += &format!("\n{:28}{}", "", printable(&format!("{}: {why}", addr(to))));
            }
        }
        line
    }
}

fn is_given_up(state: RecipientState) -> bool {
    state.after_action(Action::Undo).is_some()
}

/// What could not be read has no address.
pub(super) fn from(row: &Row) -> &str {
    row.from.as_deref().unwrap_or("?")
}

pub(super) fn addr(to: &RecipientRow) -> &str {
    to.addr.as_deref().unwrap_or("?")
}

/// The first of active, deferred, waiting, hold that any unsettled recipient has; else how it ended.
fn state_and_next(entry: &Entry<'_>, live: &Live) -> (&'static str, String) {
    let name = entry.route;
    let states = || entry.recipients.iter().map(|r| r.state);
    if entry.active {
        return ("active", "being delivered now".into());
    }
    let deferred = states().filter_map(|s| if let RecipientState::Deferred(at) = s { Some(at) } else { None }).min();
    let unless_running = if live.running { "" } else { ", once the daemon runs" };
    if let Some(at) = deferred {
        return ("deferred", format!("retry at {at}{unless_running}"));
    }
    if states().any(|s| s == RecipientState::Due) {
        let next = match live.routes.get(name).map(String::as_str) {
            Some("up") => "as soon as a connection is free".into(),
            Some("recovering") => match &entry.tripped {
                Some(why) => format!("when {name} takes a canary again: {why}"),
                None => "in its turn: the backlog is on its way".into(),
            },
            Some(_) => format!("when {name} is up"),
            None if live.running => format!("never by itself: route {name} is not configured"),
            None => "when the daemon runs".into(),
        };
        return ("waiting", next);
    }
    if states().any(|s| s == RecipientState::Hold) {
        return ("hold", "never by itself: on hold; `restante queue release`".into());
    }
    if states().any(|s| s == RecipientState::Refused) {
        let next = match &entry.tripped {
            Some(why) => format!("tried again when {name} takes a canary: {why}"),
            None => format!("tried once more when {name} takes other mail, or `restante queue release` tries it now"),
        };
        return ("hold", next);
    }
    if let Some(to) = entry.recipients.iter().find(|to| is_given_up(to.state)) {
        return (to.word(), given_up(entry.row, to, live));
    }
    let unsent = entry.recipients.iter().find(|r| r.state != RecipientState::Sent);
    (unsent.map_or("sent", |r| r.word()), "nothing: settled".into())
}

/// Who removed or bounced it and why, and until when that can be undone.
fn given_up(row: &Row, to: &RecipientRow, live: &Live) -> String {
    let by = to.reason.as_ref().map_or(String::new(), |reason| format!(" by {reason}"));
    let until = match live.retain {
        Some(Duration::ZERO) => "as long as the journal has it, which is not long: `retain` is 0".to_owned(),
        Some(retain) => format!("until {} at least", to.changed_at + retain),
        None => "as long as the journal has it".to_owned(),
    };
    format!("{}{by}; `restante queue undo --id {} --reason TEXT` takes it up again {until}", to.word(), row.id)
}

pub(super) fn recipient_json(to: &RecipientRow, entry: Option<&Entry<'_>>) -> Value {
    let active = entry.is_some_and(|entry| entry.active);
    let tripped = entry.and_then(|entry| entry.tripped.clone()).filter(|_| to.state == RecipientState::Refused);
    let word = if active && to.state == RecipientState::Due { "active" } else { to.word() };
    json!({"addr": addr(to), "state": word, "last_reply": to.last_reply,
        "next_at": to.next_at().map(|at| at.to_string()), "reason": tripped.or_else(|| to.reason.clone())})
}

#[cfg(test)]
mod tests {
    use super::super::testing::{live, row};
    use super::*;

    fn entries<'r>(row: &'r Row, live: &Live) -> Vec<Entry<'r>> {
        all_entries(row, live).into_iter().filter(|entry| Among::Pending.takes(entry)).collect()
    }

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        let mut row = row(1, &["x\u{7}@y", "z@y"]);
        row.from = Some("a\u{202e}@b".into());
        row.recipients[0].reason = Some("root: \u{1b}]0;title\u{7}\nforged line".into());
        row.recipients[1].last_reply = Some("550 \r\u{9b}31m".into());
        let mut entries = entries(&row, &live());
        entries[0].next = "when \u{1b}[2J is up".into();
        let text = entries[0].in_words();
        assert_eq!(text.lines().count(), 3, "{text:?}");
        assert!(!text.lines().any(|line| printable(line) != line), "{text:?}");
    }

    #[test]
    fn what_is_not_settled_decides_the_state_and_what_is_lost_is_listed_nowhere() {
        let mut row = row(1, &["a@y", "b@y", "c@y"]);
        let states = |row: &Row| -> Vec<&'static str> { entries(row, &live()).iter().map(|e| e.state).collect() };
        let at = Timestamp::from_unix_ms(5);
        for (new, expected) in [
            ([RecipientState::Sent, RecipientState::Hold, RecipientState::Due], Some("waiting")),
            ([RecipientState::Deferred(at), RecipientState::Hold, RecipientState::Due], Some("deferred")),
            ([RecipientState::Sent, RecipientState::Hold, RecipientState::Quarantined], Some("hold")),
            ([RecipientState::Sent, RecipientState::Quarantined, RecipientState::Sent], None),
        ] {
            row.recipients.iter_mut().zip(new).for_each(|(to, state)| to.state = state);
            assert_eq!(states(&row), Vec::from_iter(expected), "{new:?}");
        }
        assert_eq!(all_entries(&row, &live())[0].state, "quarantined");
        row.recipients[2].state = RecipientState::Removed;
        row.recipients[2].reason = Some("ann: spam".into());
        let day = Live { retain: Some(Duration::from_secs(86_400)), ..live() };
        let entry = &all_entries(&row, &day)[0];
        assert!(entry.is_given_up() && !entry.is_pending() && entry.was("removed") && !entry.was("bounced"));
        assert!(entry.next.starts_with("removed by ann: spam; `restante queue undo --id 0"), "{}", entry.next);
        assert!(entry.next.ends_with("until 1970-01-02T00:00:00.001Z at least"), "{}", entry.next);
        row.recipients.iter_mut().for_each(|to| (to.addr, to.route) = (None, None));
        assert_eq!(all_entries(&row, &live())[0].to_json()["to"][0]["addr"], "?");
    }
}
