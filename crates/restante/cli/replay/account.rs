//! What a replay says: the plan before, the account after, in words and as one line of JSON.

use super::args::Replay;
use super::past::{Choice, Planned};
use crate::cli::account::count;
use crate::cli::exit;
use crate::cli::log_line::printable;
use crate::cli::output::Output;
use crate::cli::words;
use crate::replay::Tally;
use crate::routing;
use restante_courier::Target;
use restante_journal::{DirStorage, Reader};
use serde_json::{Map, Value, json};

/// Messages that a plan shows.
const SAMPLES: usize = 5;
/// Recipients of each that it names.
const SAMPLE_RECIPIENTS: usize = 5;

/// What was found, and whereto it goes.
pub(super) struct Plan<'a> {
    pub(super) args: &'a Replay,
    pub(super) primaries: &'a [Vec<Target>],
    pub(super) choice: &'a Choice,
}

/// What became of it.
#[derive(Default)]
pub(super) struct Account {
    pub(super) tally: Tally,
    pub(super) interrupted: bool,
    /// What ended it before the end: the exit code, unless something was done, and why.
    pub(super) trouble: Option<(u8, String)>,
}

impl Plan<'_> {
    fn job(&self) -> String {
        format!("{:016x}", self.args.job())
    }

    fn object(&self) -> Map<String, Value> {
        let choice = self.choice;
        let object = json!({"type": "replay", "job": self.job(), "messages": choice.messages,
            "recipients": choice.recipients, "bytes": choice.bytes, "resumed": choice.resumed, "refused_before": choice.refused_before,
            "unreadable": choice.unreadable, "gone": choice.gone,
            "journal_begins_at": choice.begins.map(|begins| begins.to_string())});
        if let Value::Object(object) = object { object } else { Map::new() }
    }

    fn left(&self) -> u64 {
        self.choice.planned.iter().map(|planned| planned.item.recipients.len() as u64).sum()
    }

    /// Says what would be done.
    pub(super) fn tell(&self, storage: &DirStorage, output: Output) {
        let planned = &self.choice.planned;
        let seconds = (planned.len() as u64).div_ceil(self.args.rate.into());
        let samples = samples(storage, planned);
        if output.json {
            let mut object = self.object();
            let to = self
                .choice
                .routes
                .iter()
                .zip(self.primaries)
                .map(|(route, hops)| json!({"route": route.as_str(), "next_hops": routing::shown(hops)}));
            object.extend([
                ("dry_run".to_owned(), true.into()),
                ("left".to_owned(), self.left().into()),
                ("seconds".to_owned(), seconds.into()),
                ("to".to_owned(), to.collect()),
                ("samples".to_owned(), samples.into_iter().map(Value::Object).collect()),
            ]);
            return output.object(&object.into());
        }
        let bytes: u64 = planned.iter().map(|planned| planned.bytes).sum();
        let (messages, recipients) = (count(planned.len() as u64, "message"), count(self.left(), "recipient"));
        output.line(&format!("replay {}: {messages} to {recipients}, {}", self.job(), words::bytes(bytes)));
        if let (Some(first), Some(last)) = (planned.first(), planned.last()) {
            output.line(&format!("delivered from {} to {}", first.delivered_at, last.delivered_at));
        }
        for (route, hops) in self.choice.routes.iter().zip(self.primaries) {
            let hops: Vec<String> = hops.iter().map(ToString::to_string).collect();
            let hops =
                if hops.is_empty() { "nobody knows where: --to names it".to_owned() } else { hops.join(", then ") };
            output.line(&printable(&format!("{route} to {hops}")));
        }
        let pace = count(self.args.rate.into(), "message");
        output.line(&format!("at {pace} a second it takes {} or longer", words::seconds(seconds)));
        output.line("all of it was taken once: whoever still has it gets it twice");
        self.reservations().iter().for_each(|line| output.line(line));
        for sample in &samples {
            let text = |key: &str| match sample.get(key) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
                _ => "?".to_owned(),
            };
            let (at, id, from, to) = (text("delivered_at"), text("id"), text("from"), text("to"));
            output.line(&printable(&format!("  {at}  {id}  <{from}> -> {to}")));
        }
        if planned.len() > samples.len() {
            output.line(&format!("  and {} more", planned.len() - samples.len()));
        }
        output.line("dry run: nothing was sent");
        if !planned.is_empty() {
            output.line(&format!("to send it: {}", self.command()));
        }
    }

    /// What else there is to know.
    fn reservations(&self) -> Vec<String> {
        let choice = self.choice;
        let mut lines = Vec::new();
        if choice.resumed > 0 {
            lines.push(format!("{} done by this replay before, left out", count(choice.resumed, "recipient")));
        }
        if choice.refused_before > 0 {
            let refused = count(choice.refused_before, "recipient");
            lines.push(format!(
                "{refused} of them were refused for good by the primary: --retry-refused offers them again"
            ));
        }
        if choice.unreadable > 0 {
            lines.push(format!("{} not to be had: their messages are damaged", count(choice.unreadable, "recipient")));
        }
        if choice.gone > 0 {
            lines.push(format!(
                "{} not to be had: their messages have left the journal",
                count(choice.gone, "recipient")
            ));
        }
        if let Some(begins) = choice.begins {
            lines.push(format!("mail settled before {begins} may have left the journal, and is not counted here"));
        }
        lines
    }

    /// The same, with times that stay as they are.
    fn command(&self) -> String {
        let mut args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
        let mut words = vec!["restante".to_owned()];
        let mut has_until = false;
        while let Some(arg) = args.next() {
            let (key, value) = arg.split_once('=').map_or((arg.as_str(), None), |(key, value)| (key, Some(value)));
            let fixed = match key {
                "--dry-run" | "--json" | "--reason" => None,
                "--since" => self.args.since,
                "--until" => self.args.until,
                _ => {
                    words.push(quoted(&arg));
                    continue;
                }
            };
            if key != "--dry-run" && key != "--json" && value.is_none() {
                args.next();
            }
            has_until |= key == "--until";
            words.extend(fixed.map(|moment| format!("{key} {}", moment.at)));
        }
        if !has_until {
            words.push(format!("--until {}", crate::clock::now()));
        }
        words.push("--reason WHY".to_owned());
        printable(&words.join(" "))
    }

    pub(super) fn begin(&self, output: Output) {
        let messages = count(self.choice.planned.len() as u64, "message");
        let mut line = format!("replay {}: {messages} to {}", self.job(), count(self.left(), "recipient"));
        if self.choice.resumed > 0 {
            line += &format!(", {} done before", count(self.choice.resumed, "recipient"));
        }
        output.note(&line);
    }
}

fn quoted(arg: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@=+,%".contains(c);
    match !arg.is_empty() && arg.chars().all(is_plain) {
        true => arg.to_owned(),
        false => format!("'{}'", arg.replace('\'', "'\\''")),
    }
}

fn samples(storage: &DirStorage, planned: &[Planned]) -> Vec<Map<String, Value>> {
    let mut reader = Reader::new(storage.clone());
    let sample = |planned: &Planned| {
        let item = &planned.item;
        let envelope = reader.accepted(item.position, item.id).ok().map(|accepted| accepted.envelope);
        let path = |index: &u16| Some(envelope.as_ref()?.recipients.get(usize::from(*index))?.forward_path.as_str());
        let to: Vec<&str> = item.recipients.iter().take(SAMPLE_RECIPIENTS).filter_map(path).collect();
        let from = envelope.as_ref().map(|envelope| envelope.reverse_path.as_str());
        let sample = json!({"id": item.id.to_string(), "delivered_at": planned.delivered_at.to_string(), "from": from,
            "to": to, "recipients": item.recipients.len(), "size": planned.bytes});
        if let Value::Object(sample) = sample { sample } else { Map::new() }
    };
    planned.iter().take(SAMPLES).map(sample).collect()
}

impl Account {
    fn left(&self, plan: &Plan<'_>) -> u64 {
        plan.left().saturating_sub(self.tally.taken + self.tally.refused + self.tally.unreadable)
    }

    /// 0 if all of the range was delivered again; a trouble's own code if nothing was.
    pub(super) fn exit_code(&self, choice: &Choice) -> u8 {
        let Tally { taken, refused, later, in_doubt, unreadable, .. } = &self.tally;
        match &self.trouble {
            _ if self.interrupted => exit::INTERRUPTED,
            Some((code, _)) if *taken == 0 => *code,
            Some(_) => exit::PARTLY,
            None if refused + later + in_doubt + unreadable + choice.unreadable + choice.gone > 0 => exit::PARTLY,
            // Not all of the range is there.
            None if choice.refused_before > 0 || choice.begins.is_some() => exit::PARTLY,
            None => exit::DONE,
        }
    }

    pub(super) fn tell(&self, plan: &Plan<'_>, output: Output) {
        let left = self.left(plan);
        let Tally { taken, refused, in_doubt, unreadable, .. } = &self.tally;
        if let Some((_, why)) = &self.trouble {
            output.note(&printable(&format!("restante: {why}")));
        }
        if output.json {
            let mut object = plan.object();
            let unreadable = unreadable + plan.choice.unreadable;
            object.extend([
                ("unreadable".to_owned(), unreadable.into()),
                ("replayed".to_owned(), (*taken).into()),
                ("refused".to_owned(), (*refused).into()),
                ("in_doubt".to_owned(), (*in_doubt).into()),
                ("left".to_owned(), left.into()),
            ]);
            output.object(&object.into());
        } else {
            output.line(&format!(
                "replay {}: {} taken once more, {refused} refused for good, {left} left",
                plan.job(),
                count(*taken, "recipient")
            ));
            if *in_doubt > 0 {
                output.line(&format!(
                    "{in_doubt} of those left may have arrived: the connection broke behind the final dot"
                ));
            }
            plan.reservations().iter().for_each(|line| output.line(line));
        }
        if left > 0 {
            let word = if self.interrupted { "interrupted: to" } else { "to" };
            output.note(&format!("restante: {word} go on, run the same command again"));
        }
    }
}
