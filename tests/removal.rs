//! `queue bounce|remove|undo`: nothing is given up but what the plan showed, and nothing of it is lost before `retain`.

use crate::harness::client::sha256;
use crate::harness::{Client, Daemon, Finished, Message, Serve, Sink, cli, eventually, logged, queued_id, scratch};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn offer(daemon: &Daemon, from: &str, to: &[&str], n: u64) -> (String, String) {
    let message = Message::new("removal", n, 700);
    let reply = Client::ehlo(daemon.smtp).send(from, to, &message.content).unwrap();
    (queued_id(&reply), sha256(&message.content))
}

fn queue(data: &Path, words: &str) -> Finished {
    let words: Vec<&str> = ["queue"].into_iter().chain(words.split_whitespace()).collect();
    cli(data, &[&words[..], &["--reason", "a worm"]].concat())
}

/// The plan of a command; its token.
#[track_caller]
fn plan(data: &Path, words: &str) -> (Value, String) {
    let plan = queue(data, &format!("{words} --json")).expect_code(0).account();
    assert_eq!(plan["type"], "plan", "{plan}");
    let token = plan["token"].as_str().unwrap_or_else(|| panic!("{plan}")).to_owned();
    (plan, token)
}

/// Plans, and carries it out.
#[track_caller]
fn act(data: &Path, words: &str) -> Value {
    let (_, token) = plan(data, words);
    queue(data, &format!("{words} --json --yes {token}")).expect_code(0).account()
}

fn listed(daemon: &Daemon, words: &[&str]) -> BTreeSet<String> {
    let lines = daemon.ask(&[&["queue", "ls"], words].concat());
    lines.iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn assert_balance(data: &Path, expected: [u64; 4]) {
    let account = cli(data, &["verify", "--json"]).expect_code(0).account();
    let counts = ["pending", "sent", "bounced", "removed"].map(|key| account[key].as_u64().unwrap());
    assert_eq!(counts, expected, "{account}");
    assert_eq!(account["accepted"].as_u64(), Some(expected.iter().sum()), "{account}");
}

#[test]
fn a_plan_changes_nothing_its_token_does_exactly_that_and_undo_delivers_it() {
    let directory = scratch();
    let data = directory.path();
    let mut primary = Sink::closed();
    let daemon = Serve::new(data, primary.port).start();
    let spam: Vec<_> = (0..7).map(|n| offer(&daemon, "spam@example.net", &["a@example.test"], n)).collect();
    let mail = offer(&daemon, "friend@example.net", &["a@example.test", "b@example.test"], 7);
    let (planned, token) = plan(data, "remove --from spam@example.net");
    let numbers = ["matched", "recipients", "bytes", "active"].map(|key| planned[key].as_u64().unwrap());
    assert_eq!((numbers[0], numbers[1], numbers[3]), (7, 7, 0));
    assert!(numbers[2] >= 7 * 700 && planned["samples"].as_array().unwrap().len() < 7, "{planned}");
    let sample = &planned["samples"][0];
    assert_eq!((&sample["id"], &sample["to"][0]), (&spam[0].0.as_str().into(), &"a@example.test".into()));
    assert_eq!((&sample["from"], &sample["subject"]), (&"spam@example.net".into(), &"message 0".into()));
    let words = queue(data, "remove --from spam@example.net").expect_code(0).out;
    assert!(words.contains("--from spam@example.net --reason 'a worm' --data"), "{words}");
    assert!(words.trim_end().ends_with(&format!("--yes {token}")) && words.contains("nothing was done yet"), "{words}");
    assert_eq!(listed(&daemon, &[]).len(), 8, "a plan is a plan");

    queue(data, &format!("bounce --from spam@example.net --yes {token}")).expect_code(2);
    let done = queue(data, &format!("remove --from spam@example.net --json --yes {token}")).expect_code(0).account();
    assert_eq!((&done["type"], &done["matched"], &done["sent_meanwhile"]), (&"remove".into(), &7.into(), &0.into()));
    assert_eq!(listed(&daemon, &[]), BTreeSet::from([mail.0.clone()]));
    assert_eq!(listed(&daemon, &["--state", "removed"]).len(), 7);
    // Done once: the same token is for nothing any more.
    queue(data, &format!("remove --from spam@example.net --yes {token}")).expect_code(12);
    assert_balance(data, [2, 0, 0, 7]);

    let (_, token) = plan(data, "bounce --to b@example.test");
    let said = queue(data, &format!("bounce --to b@example.test --yes {token}")).expect_code(0).out;
    assert!(said.starts_with("1 bounced; no report is sent"), "{said}");
    assert_balance(data, [0, 0, 2, 7]);
    eventually("the log's lines", || (logged(data, "bounced").len() == 2).then_some(()));
    let removed = logged(data, "removed");
    assert!(removed.len() == 7 && removed.iter().all(|line| line["reason"] == "a worm" && line["actor"].is_string()));
    let shown = cli(data, &["queue", "show", &spam[0].0]).expect_code(0).out;
    assert!(
        shown.contains(": a worm; `restante queue undo --id") && shown.contains("takes it up again until 2"),
        "{shown}"
    );

    primary.open();
    let undone = daemon.ask(&["queue", "undo", "--state", "removed", "--reason", "it was the newsletter"]);
    assert_eq!((&undone[0]["type"], &undone[0]["matched"]), (&"undo".into(), &7.into()));
    daemon.ask(&["queue", "undo", "--id", &mail.0, "--reason", "it was a friend"]);
    let received: BTreeSet<String> = primary.wait_for(8).into_iter().map(|message| message.sha256).collect();
    assert_eq!(received, spam.iter().chain([&mail]).map(|(_, digest)| digest.clone()).collect());
    daemon.wait_until_empty();
    assert_eq!(primary.count(), 8);
    assert_balance(data, [0, 9, 0, 0]);
    let undone = logged(data, "undone");
    assert!(undone.len() == 9 && undone[8]["reason"] == "it was a friend", "{undone:?}");
    for (action, count) in [("remove", 7.0), ("bounce", 1.0), ("undo", 8.0), ("hold", 0.0)] {
        let counted = daemon.metric("restante_operations_total", &format!("action=\"{action}\""));
        assert_eq!(counted, Some(count), "{action}");
    }
    let refused = queue(data, &format!("undo --id {}", mail.0)).expect_code(4);
    assert!(refused.err.contains("was sent, or has left the journal"), "{}", refused.err);
}

/// Each way in which a set changes between the plan and its token.
#[test]
fn nothing_is_done_if_the_set_changed_since_the_plan() {
    let directory = scratch();
    let data = directory.path();
    let mut primary = Sink::closed();
    let daemon = Serve::new(data, primary.port).start();
    let ids: Vec<_> = (0..3)
        .map(|n| offer(&daemon, "spam@example.net", &[["a@example.test", "b@example.test"][n % 2]], n as u64).0)
        .collect();
    let refused = |words: &str, token: &str, why: &str| {
        let refused = queue(data, &format!("{words} --yes {token}")).expect_code(12);
        assert!(refused.err.contains("nothing was done") && refused.err.contains(why), "{why}\n{}", refused.err);
        cli(data, &["queue", "ls", "--state", "removed", "--state", "bounced"]).expect_code(4);
    };
    // By what the daemon selects by itself, and by what the command does.
    for words in ["remove --all", "bounce --route example.test", "remove --from spam", "bounce --text spam@"] {
        let (_, token) = plan(data, words);
        let (new, _) = offer(&daemon, "spam@example.net", &["a@example.test"], 10);
        refused(words, &token, &format!("1 arrived since ({new})"));
    }
    let words = "remove --to b@example.test";
    let (_, token) = plan(data, words);
    daemon.ask(&["queue", "hold", "--id", &ids[1], "--reason", "look"]);
    refused(words, &token, "stand otherwise now");
    let words = format!("remove --id {} --id {}", ids[1], ids[0]);
    let (_, token) = plan(data, &words);
    primary.open();
    primary.wait_for(6);
    refused(&words, &token, "1 of 2 would not be changed any more");
    // What is on hold is all there is; released, it is delivered.
    let (_, token) = plan(data, "remove --all");
    daemon.ask(&["queue", "release", "--all", "--reason", "looked at"]);
    daemon.wait_until_empty();
    refused("remove --all", &token, "1 of 1 would not be changed any more");
    assert_balance(data, [0, 7, 0, 0]);
}

#[test]
fn a_slip_is_refused_and_who_may_not_or_cannot_is_told() {
    let directory = scratch();
    let data = directory.path();
    let primary = Sink::closed();
    let mut daemon = Serve::new(data, primary.port).start();
    for verb in ["bounce", "remove", "undo"] {
        queue(data, verb).expect_code(2);
        cli(data, &["queue", verb, "--all"]).expect_code(2);
        queue(data, &format!("{verb} --all")).expect_code(0);
        queue(data, &format!("{verb} --from nobody@example.net")).expect_code(4);
        queue(data, &format!("{verb} --route example.test")).expect_code(4);
    }
    queue(data, "remove --all --yes remove-1-x").expect_code(2);
    let (id, _) = offer(&daemon, "a@example.net", &["a@example.test"], 1);
    let refused = queue(data, &format!("undo --id {id} --id 7ZZZZZZZZZZZZZZZZZZZZZZZZZ")).expect_code(4).err;
    assert!(refused.contains(&format!("{id}: was neither removed, bounced nor expired")), "{refused}");
    assert!(refused.contains("no message of this journal has that ID"), "{refused}");
    let stranger = scratch();
    let admin = daemon.admin.to_string();
    for verb in ["bounce", "remove", "undo"] {
        queue(stranger.path(), &format!("{verb} --all --admin {admin}")).expect_code(7);
    }
    // Over TCP with the token, as by the socket.
    let (_, token) = plan(data, &format!("remove --to a@example.test --admin {admin}"));
    queue(data, &format!("remove --to a@example.test --admin {admin} --yes {token}")).expect_code(0);
    daemon.stop();
    for verb in ["bounce", "remove", "undo"] {
        queue(data, &format!("{verb} --all")).expect_code(5);
        queue(data, &format!("{verb} --from nobody@example.net")).expect_code(5);
    }
    assert_balance(data, [0, 0, 0, 1]);
}

#[test]
fn what_was_removed_stays_removed_over_a_crash_and_can_be_undone_after_it() {
    let directory = scratch();
    let data = directory.path();
    let primary = Sink::opened();
    primary.answer("a@example.test", "451 4.3.0 later");
    let mut daemon = Serve::new(data, primary.port).start();
    let sent: Vec<_> = (0..3).map(|n| offer(&daemon, "a@example.net", &["a@example.test"], n)).collect();
    eventually("all deferred", || {
        daemon.ask(&["queue", "ls"]).iter().all(|line| line["state"] == "deferred").then_some(())
    });
    let done = act(data, &format!("remove --id {} --id {}", sent[0].0, sent[1].0));
    assert_eq!(done["matched"], 2);
    daemon.kill9();
    assert_balance(data, [1, 0, 0, 2]);
    cli(data, &["recover", "--json"]).expect_code(0);
    primary.answer("a@example.test", "250 2.1.5 Ok");
    let daemon = Serve::new(data, primary.port).start();
    daemon.ask(&["queue", "flush", "--all"]);
    daemon.wait_until_empty();
    assert_eq!(primary.received().iter().map(|m| &m.sha256).collect::<Vec<_>>(), [&sent[2].1]);
    let undone = daemon.ask(&["queue", "undo", "--to", "a@example.test", "--reason", "not so"]);
    assert_eq!(undone[0]["matched"], 2);
    let received: BTreeSet<String> = primary.wait_for(3).into_iter().map(|message| message.sha256).collect();
    assert_eq!(received, sent.into_iter().map(|(_, digest)| digest).collect());
    daemon.wait_until_empty();
    assert_balance(data, [0, 3, 0, 0]);
}

#[test]
fn what_is_being_delivered_while_it_is_removed_is_sent_once_or_removed() {
    let directory = scratch();
    let data = directory.path();
    let primary = Sink::opened();
    let daemon = Serve::new(data, primary.port).start();
    let at_the_primary = || {
        offer(&daemon, "a@example.net", &["a@example.test"], 1);
        eventually("the message at the primary", || (primary.waiting() == 1).then_some(()));
    };
    // Removed, and undone, while the primary thinks about it: that is no second attempt.
    primary.keep_waiting(Some("a@example.test"));
    at_the_primary();
    let (planned, token) = plan(data, "remove --all");
    assert_eq!(planned["active"], 1);
    queue(data, &format!("remove --all --yes {token}")).expect_code(0);
    assert_balance(data, [0, 0, 0, 1]);
    daemon.ask(&["queue", "undo", "--all", "--reason", "not so"]);
    act(data, "bounce --all");
    daemon.ask(&["queue", "undo", "--all", "--reason", "not so"]);
    primary.keep_waiting(None);
    daemon.wait_until_empty();
    assert_eq!(primary.count(), 1);
    // Taken all the same: it is sent, and the books say so.
    primary.keep_waiting(Some("a@example.test"));
    at_the_primary();
    act(data, "remove --all");
    primary.keep_waiting(None);
    primary.wait_for(2);
    eventually("the outcome", || (logged(data, "sent").len() == 2).then_some(()));
    assert_balance(data, [0, 2, 0, 0]);
    // Refused for now: it is removed, and not tried again.
    primary.keep_waiting(Some("a@example.test"));
    at_the_primary();
    act(data, "remove --all");
    primary.answer_data(Some("451 4.3.0 later"));
    primary.keep_waiting(None);
    eventually("the outcome", || (logged(data, "deferred").len() == 1).then_some(()));
    assert_balance(data, [0, 2, 0, 1]);
    assert!(listed(&daemon, &[]).is_empty());
}

#[test]
fn what_has_left_the_journal_is_said_to_be_gone() {
    let directory = scratch();
    let data = directory.path().join("data");
    let primary = Sink::closed();
    let file = directory.path().join("restante.toml");
    let text = format!(
        "hostname = \"mx2.example.test\"\n[journal]\ndir = {data:?}\nretain = \"0\"\n[[route]]\nname = \"a\"\n\
         domains = [\"example.test\"]\nprimary = [\"127.0.0.1:{}\"]\n",
        primary.port
    );
    fs::write(&file, text).unwrap();
    let mut daemon = Serve::by_file(&data, &file).start();
    let (id, _) = offer(&daemon, "a@example.net", &["a@example.test"], 1);
    act(&data, "remove --all");
    eventually("its end", || (cli(&data, &["queue", "cat", &id]).code == Some(4)).then_some(()));
    let refused = queue(&data, &format!("undo --id {id}")).expect_code(4).err;
    assert!(refused.contains(&format!("{id}: was sent, or has left the journal")), "{refused}");
    assert!(refused.contains("nothing that matches can be undone"), "{refused}");
    queue(&data, "undo --to a@example.test").expect_code(4);
    queue(&data, "undo --all").expect_code(0);
    daemon.stop();
    assert_balance(&data, [0, 0, 0, 1]);
}

#[test]
fn more_messages_than_a_request_line_takes_are_one_set() {
    const MESSAGES: u64 = 1_200;
    let directory = scratch();
    let data = directory.path();
    let primary = Sink::closed();
    let daemon = Serve::new(data, primary.port).start();
    let mut client = Client::ehlo(daemon.smtp);
    for n in 0..MESSAGES {
        let to: &[&str] = if n % 2 == 0 { &["a@example.test"] } else { &["a@example.test", "b@example.test"] };
        queued_id(&client.send("spam@example.net", to, &Message::new("many", n, 200).content).unwrap());
    }
    let (planned, token) = plan(data, "remove --from spam");
    assert_eq!((&planned["matched"], &planned["recipients"]), (&MESSAGES.into(), &(MESSAGES * 3 / 2).into()));
    offer(&daemon, "spam@example.net", &["a@example.test"], 1);
    queue(data, &format!("remove --from spam --yes {token}")).expect_code(12);
    assert_balance(data, [MESSAGES * 3 / 2 + 1, 0, 0, 0]);
    assert_eq!(act(data, "remove --from spam")["matched"], MESSAGES + 1);
    assert_balance(data, [0, 0, 0, MESSAGES * 3 / 2 + 1]);
    let undone = daemon.ask(&["queue", "undo", "--from", "spam", "--reason", "not so"]);
    assert_eq!(undone[0]["matched"], MESSAGES + 1);
    assert_balance(data, [MESSAGES * 3 / 2 + 1, 0, 0, 0]);
}
