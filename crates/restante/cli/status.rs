//! `restante status`: how the daemon, its routes and their primaries stand.

use super::args::{Cli, Daemon};
use super::client::Client;
use super::exit;
use super::log_line::printable;
use super::output::Output;
use serde_json::Value;

/// What is further away is nothing to tell each time: a year.
const SAID_WITHIN_S: u64 = 365 * 86_400;

/// Servers, or domains whose MX is followed, that are named behind the first; of more, the number says more.
const TARGETS_NAMED_MAX: usize = 2;

pub(crate) fn run(cli: &Cli, daemon: &Daemon, output: Output) -> u8 {
    let asked = Client::new(cli, daemon.admin.as_ref()).and_then(|c| c.ask(hyper::Method::GET, "/api/v1/status"));
    let answer = match asked {
        Ok(answer) => answer,
        Err(no) => {
            output.note(&format!("restante: {}", no.why));
            return no.code;
        }
    };
    let node = answer.get("node").cloned().unwrap_or_default();
    let routes = answer.get("routes").and_then(Value::as_array).cloned().unwrap_or_default();
    if output.json {
        output.object(&node);
        routes.iter().for_each(|route| output.object(route));
    } else {
        output.line(&printable(&node_in_words(&node)));
        routes.iter().for_each(|route| output.line(&printable(&route_in_words(route))));
    }
    if node.get("accepting").and_then(Value::as_bool) == Some(true) { exit::DONE } else { exit::UNHEALTHY }
}

fn text<'v>(object: &'v Value, key: &str) -> &'v str {
    object.get(key).and_then(Value::as_str).unwrap_or("-")
}

fn number(object: &Value, key: &str) -> u64 {
    object.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn node_in_words(node: &Value) -> String {
    let accepting = match node.get("why_not").and_then(Value::as_str) {
        _ if node.get("accepting").and_then(Value::as_bool) == Some(true) => "accepting mail".to_owned(),
        Some(why) => format!("NOT accepting mail: {why}; senders keep it and try again"),
        None => "NOT accepting mail: senders keep it and try again".to_owned(),
    };
    let free = super::words::bytes(number(node, "disk_free_bytes"));
    let mut line =
        format!("{}: {accepting}, {} connections, {free} free", text(node, "hostname"), number(node, "connections"));
    if let Some(left) = node.get("disk_full_s").and_then(Value::as_u64).filter(|left| *left <= SAID_WITHIN_S) {
        line += &format!(", full in {} at this rate", super::words::seconds(left));
    }
    let damage = number(node, "journal_damage");
    if damage > 0 {
        let s = if damage == 1 { "" } else { "s" };
        line += &format!(", JOURNAL DAMAGED in {damage} place{s}: mail is served around it, see `restante verify`");
    }
    line
}

fn route_in_words(route: &Value) -> String {
    let (name, state) = (text(route, "name"), text(route, "state"));
    let mut line = format!("{name}: {state} since {}", text(route, "since"));
    if let Some(reason) = route.get("reason").and_then(Value::as_str) {
        line += &format!(" ({reason})");
    }
    let to: Vec<&str> =
        route.get("primary").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    match to.as_slice() {
        [] => {}
        [one] => line += &format!(", to {one}"),
        [first, rest @ ..] if rest.len() > TARGETS_NAMED_MAX => {
            line += &format!(", to {first} and {} more", rest.len())
        }
        some => line += &format!(", to {}", some.join(", ")),
    }
    let pending = number(route, "pending");
    if pending == 0 {
        return line + ", nothing pending";
    }
    line += &format!(", {pending} pending, {}", super::words::bytes(number(route, "bytes")));
    if let Some(quota) = route.get("quota_bytes").and_then(Value::as_u64) {
        let is_over = route.get("over_quota").and_then(Value::as_bool) == Some(true);
        let over = if is_over { ", NO MORE IS TAKEN" } else { "" };
        line += &format!(" of {} it may hold{over}", super::words::bytes(quota));
    }
    for state in ["active", "waiting", "deferred", "hold"] {
        let count = number(route, state);
        if count > 0 {
            line += &format!(", {count} {}", if state == "hold" { "on hold" } else { state });
        }
    }
    line += &format!(", oldest {}", super::words::seconds(number(route, "oldest_s")));
    if let Some(speed) = route.get("per_minute").and_then(Value::as_u64).filter(|speed| *speed > 0) {
        line += &format!(", {speed} a minute");
        if let Some(most) = route.get("per_minute_max").and_then(Value::as_u64) {
            line += &format!(" of {most} that it takes");
        }
    }
    if let Some(eta) = route.get("eta_s").and_then(Value::as_u64) {
        line += &format!(", gone in {}", super::words::seconds(eta));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_does_not_accept_mail_says_why() {
        let node = |accepting, why| {
            node_in_words(&json!({"hostname": "mx2", "accepting": accepting, "why_not": why,
                "disk_free_bytes": 2048, "connections": 1, "disk_full_s": 7200}))
        };
        let rest = ", 1 connections, 2.0 KiB free, full in 2 h 0 min at this rate";
        assert_eq!(node(true, None::<&str>), format!("mx2: accepting mail{rest}"));
        let why = "NOT accepting mail: the disk is full; senders keep it and try again";
        assert_eq!(node(false, Some("the disk is full")), format!("mx2: {why}{rest}"));
    }

    #[test]
    fn a_route_says_why_it_waits_and_how_much() {
        let route = json!({"name": "office", "state": "down", "since": "2026-11-22T14:53:20.118Z",
            "reason": "connect to 127.0.0.1:25: connection refused", "pending": 3, "bytes": 2048, "waiting": 2, "hold": 1, "oldest_s": 90});
        assert_eq!(
            route_in_words(&route),
            "office: down since 2026-11-22T14:53:20.118Z (connect to 127.0.0.1:25: connection refused), \
             3 pending, 2.0 KiB, 2 waiting, 1 on hold, oldest 1 min 30 s"
        );
        let followed = |n: usize| (0..n).map(|n| format!("MX of {n}.test")).collect::<Vec<_>>();
        let route = |n| json!({"name": "office", "state": "up", "since": "x", "pending": 0, "primary": followed(n)});
        assert_eq!(route_in_words(&route(1)), "office: up since x, to MX of 0.test, nothing pending");
        assert_eq!(route_in_words(&route(9)), "office: up since x, to MX of 0.test and 8 more, nothing pending");
        let quiet = json!({"name": "office", "state": "up", "since": "x", "pending": 0});
        assert_eq!(route_in_words(&quiet), "office: up since x, nothing pending");
    }
}
