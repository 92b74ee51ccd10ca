//! The JSON, metrics and log that scripts read: the shapes of the contract, field by field. More fields are welcome; these tests
//! refuse to let one go.

use crate::harness::client::Message;
use crate::harness::{Client, Daemon, Serve, Sink, cli, eventually, queued_id, restante, run, scratch};
use serde_json::Value;
use tempfile::TempDir;

/// One message waits, because the primary is closed.
fn waiting() -> (TempDir, Sink, Daemon, String) {
    let directory = scratch();
    let primary = Sink::closed();
    let daemon = Serve::new(directory.path(), primary.port).start();
    let message = Message::new("shape", 1, 1000);
    let id = queued_id(
        &Client::ehlo(daemon.smtp).send("sender@example.net", &["box@example.test"], &message.content).unwrap(),
    );
    (directory, primary, daemon, id)
}

/// `key` is a string, a number or a time, as `kind` says: `s`, `n`, `b`, `a`, `t` (RFC 3339 UTC), with `?` for "or null".
#[track_caller]
fn assert_shape(object: &Value, shape: &[(&str, &str)]) {
    for (key, kind) in shape {
        let value = object.get(key).unwrap_or_else(|| panic!("no {key:?} in {object}"));
        let fits = match kind.trim_end_matches('?') {
            "s" => value.is_string(),
            "n" => value.is_number(),
            "b" => value.is_boolean(),
            "a" => value.is_array(),
            "t" => value.as_str().is_some_and(|t| {
                t.len() >= 20 && t.as_bytes()[10] == b'T' && (t.ends_with('Z') || t.ends_with("+00:00"))
            }),
            other => panic!("no kind {other:?}"),
        };
        assert!(fits || (kind.ends_with('?') && value.is_null()), "{key:?} is not of kind {kind} in {object}");
    }
}

#[test]
fn queue_ls_is_a_transaction_a_line() {
    let (_directory, _primary, daemon, id) = waiting();
    let listed = eventually("state waiting", || {
        let listed = daemon.ask(&["queue", "ls"]);
        assert_eq!(listed.len(), 1, "{listed:?}");
        (listed[0]["state"] == "waiting").then(|| listed[0].clone())
    });
    assert_eq!(
        (&listed["type"], &listed["id"], &listed["route"]),
        (&"transaction".into(), &id.as_str().into(), &"example.test".into())
    );
    assert_eq!((&listed["from"], &listed["to"][0]["addr"]), (&"sender@example.net".into(), &"box@example.test".into()));
    assert_shape(
        &listed,
        &[("state", "s"), ("size", "n"), ("accepted_at", "t"), ("to", "a"), ("next", "s"), ("expires_at", "t?")],
    );
    assert_shape(&listed["to"][0], &[("state", "s"), ("last_reply", "s?"), ("next_at", "t?"), ("reason", "s?")]);
    assert!(!listed["next"].as_str().unwrap().is_empty(), "what happens next stands in words");
}

#[test]
fn queue_commands_read_the_directory_when_the_daemon_is_dead() {
    let (directory, _primary, mut daemon, id) = waiting();
    daemon.kill9();
    let listed = cli(directory.path(), &["queue", "ls", "--json"]).expect_code(0).json();
    assert_eq!(listed[0]["id"], id.as_str());
    cli(directory.path(), &["log", "--json"]).expect_code(0);
    // What changes something needs the daemon.
    cli(directory.path(), &["status"]).expect_code(5);
    cli(directory.path(), &["queue", "flush", "--all"]).expect_code(5);
}

#[test]
fn status_is_the_node_and_its_routes() {
    let (_directory, mut primary, daemon, _) = waiting();
    let find = |kind: &str| {
        daemon.ask(&["status"]).into_iter().find(|o| o["type"] == kind).unwrap_or_else(|| panic!("no {kind}"))
    };
    let node = find("node");
    assert_shape(&node, &[("hostname", "s"), ("accepting", "b"), ("disk_free_bytes", "n"), ("connections", "n")]);
    assert_eq!(node["hostname"], "mx2.example.test");
    let down = eventually("the route to be down", || Some(find("route")).filter(|r| r["state"] == "down"));
    assert_shape(
        &down,
        &[
            ("name", "s"),
            ("since", "t"),
            ("reason", "s"),
            ("pending", "n"),
            ("bytes", "n"),
            ("oldest_s", "n"),
            ("eta_s", "n?"),
        ],
    );
    assert_eq!((&down["name"], &down["pending"]), (&"example.test".into(), &1.into()), "{down}");
    primary.open();
    primary.wait_for(1);
    let up = eventually("the route to be up and empty", || {
        Some(find("route")).filter(|r| r["state"] == "up" && r["pending"] == 0)
    });
    assert_shape(&up, &[("bytes", "n"), ("oldest_s", "n?"), ("eta_s", "n?")]);
}

#[test]
fn recover_and_verify_end_with_the_account() {
    let (directory, _primary, mut daemon, _) = waiting();
    daemon.kill9();
    for command in ["verify", "recover"] {
        let account = cli(directory.path(), &[command, "--json"]).expect_code(0).account();
        let counts = ["transactions", "accepted", "pending", "sent", "bounced", "expired", "removed", "quarantined"];
        assert_shape(&account, &counts.map(|key| (key, "n")));
        assert_shape(&account, &[("state", "s"), ("damage", "a")]);
        assert_eq!(
            (&account["type"], &account["transactions"], &account["pending"]),
            (&command.into(), &1.into(), &1.into())
        );
    }
}

#[test]
fn the_log_tells_a_message_from_accepted_to_sent() {
    let (directory, mut primary, daemon, id) = waiting();
    let events =
        || -> Vec<Value> { daemon.ask(&["log"]).into_iter().filter(|line| line["id"] == id.as_str()).collect() };
    eventually("waiting in the log", || events().iter().any(|e| e["ev"] == "waiting").then_some(()));
    primary.open();
    eventually("sent in the log", || events().iter().any(|e| e["ev"] == "sent").then_some(()));
    let all = events();
    let first = &all[0];
    assert_eq!(
        (&first["type"], &first["ev"], &first["from"]),
        (&"log".into(), &"accepted".into(), &"sender@example.net".into())
    );
    assert_shape(first, &[("ts", "t"), ("node", "s"), ("route", "s"), ("size", "n"), ("client_ip", "s")]);
    assert_eq!(all.iter().filter(|e| e["ev"] == "waiting").count(), 1, "once per change of state: {all:?}");
    let sent = all.iter().find(|e| e["ev"] == "sent").unwrap();
    assert_shape(
        sent,
        &[
            ("ts", "t"),
            ("to", "s"),
            ("relay_port", "n"),
            ("delay_s", "n"),
            ("dsn", "s"),
            ("code", "n"),
            ("reply", "s"),
            ("status", "s"),
        ],
    );
    assert_eq!(
        (&sent["to"], &sent["status"], &sent["dsn"]),
        (&"box@example.test".into(), &"sent".into(), &"2.0.0".into())
    );
    assert!(sent["reply"].as_str().unwrap().contains("queued as SINK"), "the primary's own words: {sent}");
    let human = cli(directory.path(), &["log"]).expect_code(0).out;
    let line = human
        .lines()
        .find(|l| l.contains(&id) && l.contains("status=sent"))
        .unwrap_or_else(|| panic!("not in: {human}"));
    let order = ["to=<box@example.test>, relay=", "]:", ", delay=", ", delays=", ", dsn=2.0.0, status=sent ("];
    let mut rest = line;
    for part in order {
        rest = rest.split_once(part).unwrap_or_else(|| panic!("{part:?} is not where Postfix has it: {line}")).1;
    }
}

#[test]
fn metrics_exist_from_the_start_and_count() {
    let directory = scratch();
    let mut primary = Sink::closed();
    let daemon = Serve::new(directory.path(), primary.port).start();
    let route = "route=\"example.test\"";
    assert_eq!(daemon.metric("restante_messages_accepted_total", route), Some(0.0));
    assert_eq!(daemon.metric("restante_queue_messages", route), Some(0.0));
    assert_eq!(daemon.metric("restante_deliveries_total", "status=\"sent\""), Some(0.0));
    let message = Message::new("metric", 1, 1000);
    queued_id(&Client::ehlo(daemon.smtp).send("sender@example.net", &["box@example.test"], &message.content).unwrap());
    assert_eq!(daemon.metric("restante_messages_accepted_total", route), Some(1.0));
    eventually("one message in the gauge", || {
        (daemon.metric("restante_queue_messages", route) == Some(1.0)).then_some(())
    });
    primary.open();
    primary.wait_for(1);
    eventually("an empty gauge", || (daemon.metric("restante_queue_messages", route) == Some(0.0)).then_some(()));
    assert_eq!(daemon.metric("restante_deliveries_total", "status=\"sent\""), Some(1.0));
    let (code, text) = daemon.get("/metrics");
    assert_eq!(code, 200);
    let ours =
        text.lines().filter(|l| !l.starts_with('#')).all(|l| l.starts_with("restante_") || l.starts_with("process_"));
    assert!(ours && !text.contains('@'), "prefix restante_, and no address in any label:\n{text}");
    assert_eq!((daemon.get("/").0, daemon.get("/nowhere").0), (200, 404));
}

#[test]
fn selectors_are_never_guessed() {
    let (directory, _primary, _daemon, _) = waiting();
    for command in ["hold", "release", "flush"] {
        let refused = cli(directory.path(), &["queue", command, "--reason", "x"]);
        let refused = if command == "flush" { cli(directory.path(), &["queue", command]) } else { refused };
        refused.expect_code(2);
    }
    cli(directory.path(), &["queue", "ls", "--id", "01JD9QK3T2E8V5W6X7Y8Z9ABCD"]).expect_code(4);
    let empty = scratch();
    let daemon = Serve::new(empty.path(), Sink::closed().port).start();
    assert!(daemon.ask(&["queue", "ls"]).is_empty());
    cli(empty.path(), &["queue", "flush", "--all"]).expect_code(0);
}

#[test]
fn usage_is_2_and_help_is_0() {
    assert_eq!(run(restante().arg("--help")).code, Some(0));
    run(restante().args(["help", "queue"])).expect_code(0);
    assert!(run(restante().arg("--version")).expect_code(0).out.contains("restante"));
    for wrong in [&["nonsense"][..], &["queue", "nonsense"], &["serve", "--nonsense"], &["recover", "--deliver=maybe"]]
    {
        run(restante().args(wrong)).expect_code(2);
    }
}

#[test]
fn output_that_is_lost_is_1_and_a_closed_pipe_is_not() {
    let directory = scratch();
    let verify = |json: &[&str]| {
        let mut command = restante();
        command.arg("--data").arg(directory.path()).arg("verify").args(json);
        command
    };
    for json in [&[][..], &["--json"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let ended = verify(json).stdout(full).output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains("cannot write to standard output"), "{said}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(verify(json).stdout(writer).output().unwrap().status.code(), Some(0));
    }
}

#[test]
fn what_a_crash_kept_from_the_log_is_written_at_the_next_start() {
    let (directory, primary, mut daemon, id) = waiting();
    daemon.kill9();
    // The crash took the whole log along, and the cursor with it.
    std::fs::remove_dir_all(directory.path().join("log")).unwrap();
    let logged = |daemon: &Daemon, event: &str| {
        daemon.ask(&["log"]).iter().filter(|e| e["id"] == id.as_str() && e["ev"] == event).count()
    };
    let mut daemon = Serve::new(&daemon.data, primary.port).start();
    eventually("accepted in the log", || (logged(&daemon, "accepted") == 1).then_some(()));
    daemon.stop();
    // A clean stop leaves nothing to be told again.
    let daemon = Serve::new(directory.path(), primary.port).start();
    eventually("the message to wait again", || (logged(&daemon, "waiting") >= 2).then_some(()));
    assert_eq!(logged(&daemon, "accepted"), 1);
}
