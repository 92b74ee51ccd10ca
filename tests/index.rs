//! The query index from outside: whatever becomes of its file, the answers are those of the journal, and mail goes on. And the
//! selectors, `queue show` and `queue cat`, which are answered from it.

use crate::harness::client::Message;
use crate::harness::{Client, Daemon, Finished, Serve, Sink, cli, eventually, queued_id, scratch};
use serde_json::Value;
use std::fs;
use std::path::Path;

fn send(daemon: &Daemon, from: &str, to: &[&str], content: &[u8]) -> String {
    queued_id(&Client::ehlo(daemon.smtp).send(from, to, content).unwrap())
}

/// Some messages that wait, each with a subject.
fn fill(daemon: &Daemon, messages: usize) -> Vec<String> {
    let headers = "Message-ID: <x@example.net>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=";
    let content = |n| format!("{headers} {n}\r\n\r\nbody {n}\r\n").into_bytes();
    let sender = |n| format!("sender{n}@example.net");
    (0..messages).map(|n| send(daemon, &sender(n), &["box@example.test"], &content(n))).collect()
}

fn list(data: &Path) -> Finished {
    cli(data, &["queue", "ls", "--json"]).expect_code(0)
}

fn is_from_index(listed: &Finished) -> bool {
    !listed.err.contains("the journal itself was read")
}

/// Each line without what changes by itself.
fn steady(listed: &Finished) -> Vec<Value> {
    let mut lines = listed.json();
    lines.iter_mut().for_each(|line| drop(line.as_object_mut().unwrap().remove("next")));
    lines
}

fn ids(listed: &Finished) -> Vec<String> {
    listed.json().iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect()
}

/// What happened to the file, and how.
type Harm = (&'static str, fn(&Path));

/// The file gone, or full of what is no index.
const HARM: [Harm; 5] = [
    ("removed", |index| fs::remove_file(index).unwrap()),
    ("overwritten", |index| fs::write(index, [0xA5; 30_000]).unwrap()),
    ("emptied", |index| fs::write(index, "").unwrap()),
    ("cut", |index| fs::File::options().write(true).open(index).unwrap().set_len(5_000).unwrap()),
    ("replaced", |index| {
        let other = index.with_extension("new");
        fs::write(&other, "no index").unwrap();
        fs::rename(other, index).unwrap();
    }),
];

#[test]
fn an_index_destroyed_under_a_running_daemon_changes_no_answer_and_stops_no_mail() {
    let directory = scratch();
    let mut primary = Sink::closed();
    let mut daemon = Serve::new(directory.path(), primary.port).start();
    let mut sent = fill(&daemon, 3);
    let index = directory.path().join("index.sqlite");
    eventually("an answer from the index", || is_from_index(&list(directory.path())).then_some(()));
    for (what, harm) in HARM {
        harm(&index);
        // At once, from whatever is there; then from the new index.
        assert_eq!(ids(&list(directory.path())), sent, "{what}");
        sent.extend(fill(&daemon, 1));
        let listed = eventually("an answer from the index", || Some(list(directory.path())).filter(is_from_index));
        assert_eq!(ids(&listed), sent, "{what}");
        assert!(listed.json().iter().all(|line| line["subject"].as_str().unwrap().starts_with("Grüße ")), "{what}");
    }
    primary.open();
    primary.wait_for(sent.len());
    daemon.wait_until_empty();
    daemon.stop();
}

#[test]
fn an_index_destroyed_under_a_stopped_daemon_changes_no_answer_and_is_made_anew() {
    let directory = scratch();
    let data = directory.path();
    let primary = Sink::closed();
    let index = data.join("index.sqlite");
    let mut daemon = Serve::new(data, primary.port).start();
    fill(&daemon, 4);
    daemon.ask(&["queue", "hold", "--from", "sender1", "--reason", "look at it"]);
    for (n, (what, harm)) in HARM.into_iter().enumerate() {
        eventually("an answer from the index", || is_from_index(&list(data)).then_some(()));
        if n.is_multiple_of(2) {
            daemon.stop()
        } else {
            daemon.kill9()
        }
        let before = list(data);
        assert!(is_from_index(&before) || n % 2 == 1, "{what}: {}", before.err);
        harm(&index);
        let after = list(data);
        assert!(!is_from_index(&after), "{what}");
        assert_eq!(after.out, before.out, "{what}");
        daemon = Serve::new(data, primary.port).start();
        let again = eventually("an answer from the index", || Some(list(data)).filter(is_from_index));
        assert_eq!(steady(&again), steady(&before), "{what}");
    }
}

#[test]
fn an_index_in_use_when_the_power_failed_hides_no_mail() {
    let directory = scratch();
    let data = directory.path();
    let primary = Sink::closed();
    let mut daemon = Serve::new(data, primary.port).start();
    let sent = fill(&daemon, 1);
    eventually("an answer from the index", || is_from_index(&list(data)).then_some(()));
    daemon.stop();
    let path = data.join("index.sqlite");
    let origin = restante_index::Index::open_read_only(&path, "", |_| false).unwrap().origin().unwrap();
    drop(restante_index::Index::open(&path, &origin, "another boot").unwrap());
    let listed = list(data);
    assert_eq!(ids(&listed), sent);
    assert_eq!(listed.err.lines().count(), 1, "{}", listed.err);
    assert!(
        listed.err.contains("the machine went down while it was in use; the journal itself was read"),
        "{}",
        listed.err
    );
    cli(data, &["queue", "show", &sent[0]]).expect_code(0);
}

#[test]
fn a_reader_that_has_gone_ends_the_reading() {
    let directory = scratch();
    let data = directory.path();
    let primary = Sink::closed();
    let mut daemon = Serve::new(data, primary.port).start();
    let large = Message::new("large", 1, 4 << 20);
    let id = send(&daemon, "a@example.net", &["box@example.test"], &large.content);
    daemon.stop();
    // Whoever reads to the end meets the damage; whoever has seen enough does not.
    let blob = fs::read_dir(data.join("blob")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.iter_mut().rev().nth(100).unwrap() ^= 1;
    fs::write(&blob, bytes).unwrap();
    cli(data, &["queue", "cat", &id]).expect_code(9);
    for args in [&["queue", "cat", &*id][..], &["queue", "ls"], &["queue", "show", &id]] {
        let mut command = crate::harness::restante();
        command.args(args).arg("--data").arg(data).stdout(std::process::Stdio::piped());
        let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{args:?}");
    }
}

#[test]
fn a_terminal_gets_no_control_characters_of_a_message_and_a_pipe_gets_every_byte() {
    let directory = scratch();
    let data = directory.path();
    let primary = Sink::closed();
    let mut daemon = Serve::new(data, primary.port).start();
    let content = "Subject: x\r\n\r\n\x1b]0;x\x07 \u{9b}2J \u{202e}gpj \0 Gr\u{fc}\u{df}e\r\n".as_bytes();
    let id = send(&daemon, "a@example.net", &["box@example.test"], content);
    daemon.stop();
    let command = crate::harness::restante();
    let cat = format!("{} queue cat {id} --data {}", command.get_program().display(), data.display());
    // script(1) of util-linux: what its command prints goes to a terminal.
    let shown =
        crate::harness::run(crate::harness::tool("script").args(["-qec", &cat, "/dev/null"])).expect_code(0).out;
    assert!(shown.contains("?]0;x? ?2J ?gpj ? Gr\u{fc}\u{df}e"), "{shown:?}");
    let piped = crate::harness::run(crate::harness::tool("sh").args(["-c", &cat])).expect_code(0).out;
    assert_eq!(piped.as_bytes(), content);
}

#[test]
fn every_selector_answers_alike_with_and_without_the_index() {
    let directory = scratch();
    let data = directory.path();
    let closed = Sink::closed();
    let mut daemon = Serve::new(data, closed.port).route("other.test", closed.port).start();
    let ids = fill(&daemon, 3);
    let large = Message::new("large", 1, 20_000);
    let two = send(&daemon, "Ann@Example.Org", &["a@example.test", "b@other.test"], &large.content);
    daemon.ask(&["queue", "hold", "--domain", "OTHER.test", "--reason", "a word"]);
    daemon.stop();
    let all: Vec<String> = ids.iter().chain([&two, &two]).cloned().collect();
    let expect = |args: &[&str], expected: &[String]| {
        for with_index in [true, false] {
            let (index, aside) = (data.join("index.sqlite"), data.join("aside"));
            if !with_index {
                fs::rename(&index, &aside).unwrap();
            }
            let args: Vec<&str> = ["queue", "ls", "--json"].iter().chain(args).copied().collect();
            let listed = cli(data, &args).expect_code(if expected.is_empty() { 4 } else { 0 });
            assert_eq!(is_from_index(&listed), with_index, "{args:?}: {}", listed.err);
            assert_eq!(self::ids(&listed), expected, "{args:?}");
            if !with_index {
                fs::rename(&aside, &index).unwrap();
            }
        }
    };
    let both = [two.clone(), two.clone()];
    expect(&["--client", "127.0.0.0/8", "--since", "1h"], &all);
    expect(&["--route", "other.test"], &both[..1]);
    expect(&["--domain", "other.test", "--state", "hold"], &both[..1]);
    expect(&["--domain", "other.test", "--state", "waiting"], &[]);
    expect(&["--from", "ann@example.org"], &both);
    expect(&["--from", "example.org", "--to", "b"], &both[..1]);
    expect(&["--larger", "10KB"], &both);
    expect(&["--text", "grüße 1"], &ids[1..2]);
    expect(&["--text", "A WORD"], &both[..1]);
    expect(&["--id", &ids[0], "--id", &two, "--state", "waiting"], &[ids[0].clone(), two.clone()]);
    expect(&["--older", "1d"], &[]);
    expect(&["--until", "1h"], &[]);
    cli(data, &["queue", "ls", "--state", "queued"]).expect_code(2);
}

#[test]
fn a_change_touches_what_was_selected_and_nothing_beside_it() {
    let directory = scratch();
    let closed = Sink::closed();
    let daemon = Serve::new(directory.path(), closed.port).route("other.test", closed.port).start();
    let ids = fill(&daemon, 2);
    let two = send(&daemon, "a@b.test", &["a@example.test", "b@other.test"], b"Subject: both\r\n\r\nx\r\n");
    let held = daemon.ask(&["queue", "hold", "--to", "b@other.test", "--reason", "why"]);
    assert_eq!((&held[0]["type"], &held[0]["matched"]), (&"hold".into(), &1.into()));
    let on_hold = || -> Vec<(String, String)> {
        let text = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
        let lines = daemon.ask(&["queue", "ls"]);
        lines.iter().filter(|l| l["state"] == "hold").map(|l| (text(l, "id"), text(l, "route"))).collect()
    };
    assert_eq!(on_hold(), [(two.clone(), "other.test".to_owned())]);
    daemon.ask(&["queue", "hold", "--text", "grüße 0", "--reason", "why"]);
    assert_eq!(on_hold(), [(ids[0].clone(), "example.test".to_owned()), (two, "other.test".to_owned())]);
    cli(directory.path(), &["queue", "release", "--text", "nobody wrote this", "--reason", "why"]).expect_code(4);
    daemon.ask(&["queue", "release", "--state", "hold", "--reason", "why"]);
    assert!(on_hold().is_empty());
    let flushed = daemon.ask(&["queue", "flush", "--larger", "0KB", "--id", &ids[0]]);
    assert_eq!(flushed[0]["matched"], 1);
}

#[test]
fn show_tells_all_of_a_message_and_cat_gives_its_bytes_even_when_it_is_sent() {
    let directory = scratch();
    let data = directory.path();
    let mut primary = Sink::closed();
    let mut daemon = Serve::new(data, primary.port).start();
    let content =
        b"From: Ann <ann@example.net>\r\nSubject: \x1b]0;x\x07hello\r\nMessage-ID: <1@example.net>\r\n\r\n..\xff\r\n";
    let id = send(&daemon, "sender@example.net", &["box@example.test"], content);
    let shown = daemon.ask(&["queue", "show", &id]).remove(0);
    assert_eq!(
        (&shown["type"], &shown["id"], &shown["state"]),
        (&"transaction".into(), &id.as_str().into(), &"waiting".into())
    );
    assert_eq!(
        (&shown["message_id"], &shown["header_from"]),
        (&"1@example.net".into(), &"Ann <ann@example.net>".into())
    );
    assert!(shown["position"]["segment"].is_u64() && shown["position"]["offset"].is_u64(), "{shown}");
    assert!(shown["client"].as_str().unwrap().starts_with("127.0.0.1:") && shown["helo"].is_string(), "{shown}");
    assert_eq!(shown["history"].as_array().unwrap().len(), 0);
    daemon.ask(&["queue", "hold", "--id", &id, "--reason", "look"]);
    daemon.ask(&["queue", "release", "--id", &id, "--reason", "seen"]);
    primary.open();
    primary.wait_for(1);
    daemon.wait_until_empty();
    daemon.stop();
    for with_index in [true, false] {
        if !with_index {
            fs::remove_file(data.join("index.sqlite")).unwrap();
        }
        let shown = cli(data, &["queue", "show", &id, "--json"]).expect_code(0);
        assert_eq!(is_from_index(&shown), with_index, "{}", shown.err);
        let shown = shown.json().remove(0);
        let to = &shown["to"][0];
        assert_eq!((&shown["state"], &to["state"], &to["attempts"]), (&"sent".into(), &"sent".into(), &1.into()));
        assert!(to["last_reply"].as_str().unwrap().contains("queued as SINK"), "{shown}");
        let events: Vec<&str> =
            shown["history"].as_array().unwrap().iter().map(|h| h["ev"].as_str().unwrap()).collect();
        assert_eq!(events, ["held", "released", "attempted"]);
        let human = cli(data, &["queue", "show", &id]).expect_code(0).out;
        for part in ["sent on route example.test", "<sender@example.net>", "hello", "look", "queued as SINK"] {
            assert!(human.contains(part), "{part:?} is not in {human}");
        }
        assert!(!human.chars().any(|c| c.is_control() && c != '\n'), "{human:?}");
        let mut cat = crate::harness::restante();
        let cat = cat.args(["queue", "cat", &id]).arg("--data").arg(data).output().unwrap();
        assert_eq!((cat.status.code(), cat.stdout.as_slice()), (Some(0), &content[..]));
    }
    cli(data, &["queue", "cat", "01JD9QK3T2E8V5W6X7Y8Z9ABCD"]).expect_code(4);
    cli(data, &["queue", "show", "01JD9QK3T2E8V5W6X7Y8Z9ABCD"]).expect_code(4);
    cli(data, &["queue", "show"]).expect_code(2);
}
