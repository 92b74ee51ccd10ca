//! `queue bounce|remove|undo`. The first two show a plan, and act with its token on exactly that set; `undo` acts at once.
//!
//! One request whatever was selected: half of a set is none.

use super::change::{ByRoute, chosen, direct, signed};
use super::entry::Among;
use crate::cli::args::{Cli, Daemon, Operation, Removal};
use crate::cli::client::{Client, NoAnswer};
use crate::cli::log_line::printable;
use crate::cli::output::Output;
use crate::cli::progress::{Progress, Unit};
use crate::cli::select::Selector;
use crate::cli::{exit, journal, words};
use restante_envelope::text::is_harmless;
use serde_json::Value;
use std::fmt::Write as _;

/// Carries the plan out if its token is given, else shows one.
pub(super) fn plan_or_act(cli: &Cli, order: &Removal, verb: &'static str, output: Output) -> anyhow::Result<u8> {
    let selector = &order.chosen.selector;
    let list = match selected(cli, selector, Among::Pending, output)? {
        Ok(list) => list,
        Err(code) => return Ok(code),
    };
    let yes = order.yes.map_or(String::new(), |token| format!("&yes={token}"));
    let answer = match ask(cli, &order.daemon, verb, &(signed(&order.reason) + &yes), list, output) {
        Ok(answer) => answer,
        Err(no) if no.code == exit::CHANGED => {
            output.note(&format!("restante: {}", no.why));
            output.note("restante: for a new plan run it again without --yes");
            return Ok(no.code);
        }
        Err(no) => return Ok(refused(no, output)),
    };
    let matched = number(&answer, "matched");
    if output.json {
        output.object(&answer);
    } else if order.yes.is_some() {
        output.line(&done_in_words(&answer, verb));
    } else {
        let command = confirmation(std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()), &answer);
        plan_in_words(&answer, verb, &command).iter().for_each(|line| output.line(line));
    }
    Ok(match matched {
        0 if !selector.all => exit::NOTHING_MATCHED,
        _ if number(&answer, "sent_meanwhile") > 0 => exit::PARTLY,
        _ => exit::DONE,
    })
}

pub(super) fn undo(cli: &Cli, order: &Operation, output: Output) -> anyhow::Result<u8> {
    let selector = &order.chosen.selector;
    let list = match selected(cli, selector, Among::GivenUp, output)? {
        Ok(list) => list,
        Err(code) => return Ok(code),
    };
    let answer = match ask(cli, &order.daemon, "undo", &signed(&order.reason), list, output) {
        Ok(answer) => answer,
        Err(no) => return Ok(refused(no, output)),
    };
    let matched = number(&answer, "matched");
    for passed in answer.get("passed_over").and_then(Value::as_array).into_iter().flatten() {
        output.note(&printable(&format!("restante: {}: {}", text(passed, "id"), text(passed, "why"))));
    }
    if matched == 0 {
        output.note(
            "restante: nothing that matches can be undone: what was removed, bounced or expired can be until it leaves the journal, `retain` after",
        );
    }
    if output.json {
        output.object(&answer);
    } else {
        output.line(&format!("{matched} taken up again"));
    }
    Ok(if matched == 0 && !selector.all { exit::NOTHING_MATCHED } else { exit::DONE })
}

/// How a request names what was selected.
struct List {
    query: String,
    body: String,
}

fn selected(cli: &Cli, selector: &Selector, among: Among, output: Output) -> anyhow::Result<Result<List, u8>> {
    if let Some(query) = direct(selector) {
        return Ok(Ok(List { query, body: String::new() }));
    }
    let data = match journal::data_dir(cli, output) {
        Ok(data) => data,
        Err(code) => return Ok(Err(code)),
    };
    let body = listed(&chosen(cli, &data, selector, among, output)?);
    Ok(Ok(List { query: "listed".to_owned(), body }))
}

/// In each line a route, and the messages meant on it.
fn listed(chosen: &ByRoute) -> String {
    let mut body = String::new();
    for (route, ids) in chosen {
        body += route;
        for id in ids {
            // A string into memory: nothing that could fail.
            let _infallible = write!(body, " {id}");
        }
        body.push('\n');
    }
    body
}

fn ask(
    cli: &Cli,
    daemon: &Daemon,
    verb: &'static str,
    more: &str,
    list: List,
    output: Output,
) -> Result<Value, NoAnswer> {
    let mut shown: Option<Progress> = None;
    let mut told = 0;
    let path = format!("/api/v1/queue/{verb}?{}{more}", list.query);
    Client::new(cli, daemon.admin.as_ref())?.order(&path, list.body, |done, of| {
        let progress = shown.get_or_insert_with(|| Progress::new(output, verb, Unit::Messages, of));
        progress.advance(done.saturating_sub(told), "");
        told = done.max(told);
    })
}

fn refused(no: NoAnswer, output: Output) -> u8 {
    output.note(&format!("restante: {}", no.why));
    no.code
}

fn text<'v>(object: &'v Value, key: &str) -> &'v str {
    object.get(key).and_then(Value::as_str).unwrap_or("?")
}

fn number(object: &Value, key: &str) -> u64 {
    object.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn plural(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn plan_in_words(plan: &Value, verb: &str, command: &str) -> Vec<String> {
    let (matched, active) = (number(plan, "matched"), number(plan, "active"));
    if matched == 0 {
        return vec![format!("nothing to {verb}")];
    }
    let (recipients, bytes) = (plural(number(plan, "recipients"), "recipient"), words::bytes(number(plan, "bytes")));
    let mut lines = vec![format!("to {verb}: {} ({recipients}, {bytes})", plural(matched, "message"))];
    let samples = plan.get("samples").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for sample in samples {
        let to: Vec<&str> =
            sample.get("to").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let others = number(sample, "recipients").saturating_sub(to.len() as u64);
        let more = if others > 0 { format!(", {others} more") } else { String::new() };
        let subject = sample.get("subject").and_then(Value::as_str).unwrap_or_default();
        let (id, from) = (text(sample, "id"), text(sample, "from"));
        lines.push(printable(&format!("  {id}  <{from}> -> {}{more}  {subject}", to.join(", "))));
    }
    let others = matched.saturating_sub(samples.len() as u64);
    lines.extend((others > 0).then(|| format!("  and {others} more")));
    lines.extend((active > 0).then(|| {
        format!(
            "{active} of them being delivered now: what the primary takes before or after is sent, and not given up"
        )
    }));
    lines.extend((verb == "bounce").then(|| "no report is sent to the senders".to_owned()));
    lines.push(
        "nothing was done yet; `restante queue undo` can take back what this does, until `retain` after".to_owned(),
    );
    lines.push("to do it, to exactly these:".to_owned());
    lines.push(format!("  {command}"));
    lines
}

fn done_in_words(answer: &Value, verb: &str) -> String {
    let (matched, sent) = (number(answer, "matched"), number(answer, "sent_meanwhile"));
    let mut line = match verb {
        "bounce" => format!("{} bounced; no report is sent", matched.saturating_sub(sent)),
        _ => format!("{} removed", matched.saturating_sub(sent)),
    };
    if sent > 0 {
        line += &format!("; {sent} delivered at that very moment, to one recipient at least");
    }
    line + "; `restante queue undo` takes back what was given up, until `retain` after"
}

/// The command that was given, and the token.
fn confirmation(args: impl Iterator<Item = String>, plan: &Value) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@=+,%".contains(c);
    let quoted = |arg: String| match &arg {
        arg if !arg.is_empty() && arg.chars().all(is_plain) => arg.clone(),
        arg => format!("'{}'", arg.replace('\'', "'\\''")),
    };
    let token = text(plan, "token");
    let args: Vec<String> = args.skip(1).collect();
    // What a terminal would not show as it is cannot be copied either.
    if !args.iter().all(|arg| arg.chars().all(is_harmless)) {
        return format!("the same command with --yes {token}");
    }
    let words = ["restante".to_owned()].into_iter().chain(args.into_iter().map(quoted));
    words.chain(["--yes".to_owned(), token.to_owned()]).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use restante_envelope::TransactionId;
    use serde_json::json;

    fn plan() -> Value {
        let sample =
            json!({"id": "01JD", "from": "a\u{1b}[2J@b", "to": ["c@d"], "recipients": 3, "subject": "hello\nforged"});
        json!({"type": "plan", "matched": 7, "recipients": 9, "bytes": 2048, "active": 1, "samples": [sample], "token": "T"})
    }

    #[test]
    fn a_plan_shows_what_would_be_lost_and_steers_no_terminal() {
        let lines = plan_in_words(&plan(), "bounce", "restante x");
        assert!(lines.iter().all(|line| line.chars().all(is_harmless)), "{lines:?}");
        let text = lines.join("\n");
        for said in [
            "to bounce: 7 messages (9 recipients, 2.0 KiB)",
            "-> c@d, 2 more",
            "and 6 more",
            "1 of them being delivered now",
            "no report is sent to the senders",
            "nothing was done yet",
            "\n  restante x",
        ] {
            assert!(text.contains(said), "{said}\n{text}");
        }
        assert!(!plan_in_words(&plan(), "remove", "").join(" ").contains("report"));
        assert_eq!(plan_in_words(&json!({"matched": 0}), "remove", ""), ["nothing to remove"]);
    }

    #[test]
    fn the_command_to_go_on_with_is_the_one_that_was_given() {
        let command = |args: &[&str]| confirmation(args.iter().map(|arg| (*arg).to_owned()), &plan());
        assert_eq!(
            command(&["/usr/bin/restante", "queue", "remove", "--from", "<>", "--reason", "it's spam", "--text="]),
            "restante queue remove --from '<>' --reason 'it'\\''s spam' --text= --yes T"
        );
        assert_eq!(command(&["restante", "--reason", "a\nb"]), "the same command with --yes T");
    }

    #[test]
    fn a_list_has_a_line_for_each_route() {
        let ids: Vec<_> = (1..3).map(TransactionId::from_bits).collect();
        let chosen = ByRoute::from([("a".to_owned(), ids.clone()), ("b.test".to_owned(), vec![ids[0]])]);
        assert_eq!(listed(&chosen), format!("a {} {}\nb.test {}\n", ids[0], ids[1], ids[0]));
    }
}
