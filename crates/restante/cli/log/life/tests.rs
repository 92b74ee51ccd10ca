//! The lives of messages, as a log tells them.

use super::*;
use jiff::tz::TimeZone;

const ID: &str = "01M7YRRW6GE8V5W6X7Y8Z9ABCD";

fn look(json: bool) -> Look {
    Look { json, to_terminal: false, zone: TimeZone::UTC }
}

fn line(time: &str, ev: &str, rest: Value) -> String {
    let mut record = json!({"type": "log", "ts": format!("2026-11-{time}.000Z"), "ev": ev});
    record.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    format!("{record}\n")
}

fn mine(time: &str, ev: &str, mut rest: Value) -> String {
    rest["id"] = ID.into();
    line(time, ev, rest)
}

/// What is printed, its exit code, and what is said beside it.
fn told(files: &[(&str, &str)], json: bool) -> (String, u8, String) {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let (mut out, notes) = (Vec::new(), std::cell::RefCell::new(String::new()));
    let note = |text: &str| notes.borrow_mut().push_str(text);
    let code = print(directory.path(), ID.parse().unwrap(), &look(json), &mut out, note).unwrap();
    (String::from_utf8(out).unwrap(), code, notes.into_inner())
}

fn accepted(nrcpt: u32, to: &str) -> String {
    mine(
        "21T10:00:02",
        "accepted",
        json!({"sid": "a1", "client_ip": "192.0.2.1", "route": "office", "from": "s@x.test",
        "to": to, "nrcpt": nrcpt, "status": "accepted"}),
    )
}

fn sent(time: &str, to: &str) -> String {
    mine(time, "sent", json!({"to": to, "route": "office", "relay_host": "mail.example.com", "reply": "250 ok"}))
}

#[test]
fn a_life_has_its_session_and_the_ups_and_downs_of_its_primary() {
    let other = |time, ev| line(time, ev, json!({"sid": "a11", "route": "home"}));
    let route = |time, ev| line(time, ev, json!({"route": "office", "why": "refused"}));
    let session = |time, ev| line(time, ev, json!({"sid": "a1", "client_ip": "192.0.2.1"}));
    let first = [
        route("21T09:00:00", "primary_up"),
        other("21T09:59:59", "connect"),
        session("21T10:00:00", "connect"),
        session("21T10:00:01", "rejected"),
        route("21T10:00:03", "primary_down"),
        accepted(1, "a@example.com"),
        mine("21T10:00:03", "waiting", json!({"route": "office", "why": "refused"})),
        other("21T10:00:03", "primary_down"),
        session("21T10:00:04", "disconnect"),
    ];
    let second = [
        route("22T08:00:00", "primary_up"),
        sent("22T08:00:01", "a@example.com"),
        // Told twice, after a crash.
        sent("22T08:00:01", "a@example.com"),
        route("22T09:00:00", "primary_down"),
    ];
    let files = [("delivery-2026-11-21-001.jsonl", first.concat()), ("delivery.jsonl", second.concat())];
    let files = [(files[0].0, files[0].1.as_str()), (files[1].0, files[1].1.as_str())];
    let (json, code, notes) = told(&files, true);
    let records: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<_> =
        records.iter().map(|r| r["ev"].as_str().unwrap_or_else(|| r["type"].as_str().unwrap())).collect();
    assert_eq!(
        events,
        ["connect", "rejected", "accepted", "waiting", "primary_down", "disconnect", "primary_up", "sent", "life"]
    );
    assert_eq!((code, notes.as_str()), (0, ""));
    assert!(json.contains(&sent("22T08:00:01", "a@example.com")), "records are printed untouched");
    let last = records.last().unwrap();
    assert_eq!((&last["to"][0]["status"], &last["id"]), (&"sent".into(), &ID.into()));
    let (text, ..) = told(&files, false);
    let now = "now: a@example.com was taken by mail.example.com at 2026-11-22T08:00:01.000+00:00 (250 ok)";
    assert_eq!(text.lines().last().unwrap(), now);
}

#[test]
fn a_life_ends_with_where_it_stands() {
    let deferred = || {
        mine(
            "21T11:00:00",
            "deferred",
            json!({"to": "b@x.test", "route": "office", "reply": "450 later",
        "next_at": "2026-11-21T12:00:00.000Z"}),
        )
    };
    let held = || mine("21T11:00:00", "held", json!({"to": "b@x.test", "reply": "550 no"}));
    let waiting = |time| mine(time, "waiting", json!({"route": "office", "why": "refused"}));
    let released = || mine("21T11:30:00", "released", json!({"to": "b@x.test", "reason": "good"}));
    let at = |time: &str| format!("2026-11-21T{time}.000+00:00");
    for (lines, now) in [
        (vec![], "b@x.test is accepted and was not tried yet".to_owned()),
        (
            vec![deferred()],
            format!("b@x.test was put off at {} and is tried again at {} (450 later)", at("11:00:00"), at("12:00:00")),
        ),
        (
            vec![waiting("21T10:00:03")],
            format!("b@x.test waits since {} for the primary of office (refused)", at("10:00:03")),
        ),
        (
            vec![deferred(), waiting("21T11:00:01")],
            format!("b@x.test waits since {} for the primary of office (refused)", at("11:00:01")),
        ),
        (vec![held()], format!("b@x.test is on hold since {}, until somebody releases it (550 no)", at("11:00:00"))),
        (vec![held(), released()], format!("b@x.test may be tried again since {} (good)", at("11:30:00"))),
        (
            vec![sent("21T12:00:00", "b@x.test"), deferred()],
            format!("b@x.test was taken by mail.example.com at {} (250 ok)", at("12:00:00")),
        ),
        (
            vec![mine("21T13:00:00", "expired", json!({"to": "b@x.test"}))],
            format!("b@x.test is expired since {}", at("13:00:00")),
        ),
    ] {
        let text = accepted(1, "b@x.test") + &lines.concat();
        let (text, code, _) = told(&[("delivery.jsonl", &text)], false);
        assert_eq!((text.lines().last().unwrap(), code), (format!("now: {now}").as_str(), 0));
    }
    let (text, ..) =
        told(&[("delivery.jsonl", &(accepted(12, "a@x.test,b@x.test") + &sent("21T12:00:00", "a@x.test")))], false);
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("now: a@x.test was taken") && last.contains("; b@x.test is accepted and"), "{last}");
    assert!(last.ends_with(&format!("and 10 more recipients, see: restante queue show {ID}")), "{last}");
}

#[test]
fn a_life_that_the_log_has_forgotten_is_in_the_journal() {
    let (out, code, note) = told(&[], false);
    assert_eq!((out.as_str(), code), ("", 4));
    assert!(note.contains(&format!("restante queue show {ID}")), "{note}");
    let (out, code, note) = told(&[("delivery.jsonl", &sent("22T08:00:01", "a@example.com"))], false);
    assert!(code == 0 && out.contains("now: a@example.com was taken"), "{out}");
    assert!(note.contains("no longer tells how") && note.contains(&format!("restante queue show {ID}")), "{note}");
    // Written when the clock was years behind.
    let old = sent("22T08:00:01", "a@example.com").replace("2026", "2019");
    assert_eq!(told(&[("delivery-2019-11-22-001.jsonl", &old)], false).1, 0);
}
