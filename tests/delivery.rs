//! What happens to each recipient: sent, deferred, hold; by hand and by the recovery command. These tests refuse to assume when the
//! daemon retries: they ask it to flush, or wait for what they can see.

use crate::harness::client::Message;
use crate::harness::{Client, Daemon, OURS, Serve, Sink, cli, eventually, queued_id, scratch};
use serde_json::Value;
use std::fs;
use tempfile::TempDir;

/// One message for `box@example.test`; its id.
fn send_one(daemon: &Daemon, message: &Message, to: &[&str]) -> String {
    queued_id(&Client::ehlo(daemon.smtp).send("sender@example.net", to, &message.content).unwrap())
}

/// The state of each recipient of the transaction that is listed with this id.
fn states(daemon: &Daemon, id: &str) -> Vec<(String, String)> {
    let listed = daemon.ask(&["queue", "ls"]).into_iter().find(|t| t["id"] == id);
    let Some(transaction) = listed else { return Vec::new() };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    transaction["to"].as_array().unwrap().iter().map(|to| (text(&to["addr"]), text(&to["state"]))).collect()
}

fn state_of(daemon: &Daemon, id: &str, address: &str) -> String {
    states(daemon, id).into_iter().find(|(addr, _)| addr == address).map_or_else(String::new, |(_, state)| state)
}

#[test]
fn recipients_of_one_message_part_ways_and_the_sent_one_is_not_sent_again() {
    let directory = scratch();
    let primary = Sink::opened();
    let [no, later, yes] = ["no@example.test", "later@example.test", "yes@example.test"];
    primary.answer(no, "550 5.1.1 No such user");
    primary.answer(later, "451 4.2.1 Mailbox busy");
    let mut daemon = Serve::new(directory.path(), primary.port).start();
    let id = send_one(&daemon, &Message::new("parts", 1, 3000), &[no, later, yes]);
    let parted = |daemon: &Daemon| {
        eventually("hold, deferred and sent", || {
            let states = [no, later, yes].map(|address| state_of(daemon, &id, address));
            (states == ["hold", "deferred", "sent"]).then_some(())
        });
    };
    parted(&daemon);
    assert_eq!(primary.deliveries_to(yes), 1);
    // After the crash the settled recipient is settled.
    daemon.kill9();
    daemon = Serve::new(directory.path(), primary.port).start();
    assert_eq!(state_of(&daemon, &id, yes), "sent");
    let account = cli(directory.path(), &["verify", "--json"]).expect_code(0).account();
    assert_eq!(
        (&account["transactions"], &account["accepted"], &account["sent"]),
        (&1.into(), &3.into(), &1.into()),
        "{account}"
    );
    // A flush moves what is deferred, and never what is on hold. But the primary took another one now: what it refuses once
    // more is bounced.
    let tried = primary.attempts(no);
    primary.answer(later, "250 2.1.5 Ok");
    eventually("the deferred recipient's delivery", || {
        daemon.ask(&["queue", "flush", "--all"]);
        (primary.deliveries_to(later) == 1).then_some(())
    });
    daemon.wait_until_empty();
    assert_eq!((primary.attempts(no), primary.deliveries_to(no)), (tried + 1, 0), "asked more than once more");
    primary.answer(no, "250 2.1.5 Ok");
    cli(directory.path(), &["queue", "undo", "--id", &id]).expect_code(2);
    cli(directory.path(), &["queue", "undo", "--id", &id, "--reason", "the user exists now"]).expect_code(0);
    eventually("the delivery to the recipient whose refusal was undone", || {
        (primary.deliveries_to(no) == 1).then_some(())
    });
    daemon.wait_until_empty();
    assert_eq!(
        (primary.deliveries_to(yes), primary.deliveries_to(later)),
        (1, 1),
        "a settled recipient was sent again"
    );
    daemon.stop();
    let account = cli(directory.path(), &["verify", "--json"]).expect_code(0).account();
    assert_eq!((&account["sent"], &account["pending"]), (&3.into(), &0.into()), "{account}");
}

#[test]
fn a_primary_that_refuses_everything_bounces_nothing() {
    let directory = scratch();
    let primary = Sink::opened();
    let daemon = Serve::new(directory.path(), primary.port).start();
    let users: Vec<String> = (0..30).map(|n| format!("user{n}@{OURS}")).collect();
    for user in &users {
        primary.answer(user, "550 5.1.1 User unknown in virtual mailbox table");
    }
    let mut ids = Vec::new();
    for (n, user) in (0..).zip(&users) {
        ids.push(send_one(&daemon, &Message::new("refused", n, 500), &[user]));
    }
    eventually("a first refusal", || users.iter().any(|user| primary.attempts(user) > 0).then_some(()));
    for user in &users {
        primary.answer(user, "250 2.1.5 Ok");
    }
    eventually("all mail at the primary that was repaired", || {
        daemon.ask(&["queue", "release", "--all", "--reason", "the table is back"]);
        daemon.ask(&["queue", "flush", "--all"]);
        (primary.count() >= users.len()).then_some(())
    });
    daemon.wait_until_empty();
    let account = cli(directory.path(), &["verify", "--json"]).expect_code(0).account();
    assert_eq!((&account["sent"], &account["bounced"]), (&users.len().into(), &0.into()), "{account}");
}

#[test]
fn a_held_message_stays_until_it_is_released() {
    let directory = scratch();
    let mut primary = Sink::closed();
    let daemon = Serve::new(directory.path(), primary.port).start();
    let held = send_one(&daemon, &Message::new("held", 1, 500), &["held@example.test"]);
    let free = send_one(&daemon, &Message::new("held", 2, 500), &["free@example.test"]);
    assert!(held < free);
    cli(directory.path(), &["queue", "hold", "--id", &held]).expect_code(2);
    cli(directory.path(), &["queue", "hold", "--id", &held, "--reason", "asked by legal"]).expect_code(0);
    assert_eq!(state_of(&daemon, &held, "held@example.test"), "hold");
    primary.open();
    assert_eq!(primary.wait_for(1)[0].to, ["free@example.test"]);
    eventually("only the held message left", || (daemon.ask(&["queue", "ls"]).len() == 1).then_some(()));
    cli(directory.path(), &["queue", "release", "--id", &held, "--reason", "cleared"]).expect_code(0);
    assert_eq!(primary.wait_for(2)[1].to, ["held@example.test"]);
}

#[test]
fn a_hold_is_for_mail_that_waits_for_a_connection_too() {
    const CONNECTIONS: usize = 20;
    let directory = scratch();
    let primary = Sink::opened();
    let daemon = Serve::new(directory.path(), primary.port).start();
    // A primary that has taken so much is given all connections at once.
    for n in 0..100 {
        send_one(&daemon, &Message::new("warm", n, 500), &["warm@example.test"]);
    }
    primary.wait_for(100);
    daemon.wait_until_empty();
    primary.keep_waiting(Some("first@example.test"));
    // The rest is under way as far as the relay is concerned, and one of them is announced to the primary already.
    for n in 0..60 {
        let to = if n < CONNECTIONS as u64 { "first@example.test" } else { "rest@example.test" };
        send_one(&daemon, &Message::new("hold", n, 500), &[to]);
    }
    eventually("all connections busy", || (primary.waiting() == CONNECTIONS).then_some(()));
    cli(directory.path(), &["queue", "hold", "--to", "rest@example.test", "--reason", "worm"]).expect_code(0);
    primary.keep_waiting(None);
    eventually("only the held ones left", || {
        let left = daemon.ask(&["queue", "ls"]);
        (left.len() == 60 - CONNECTIONS && left.iter().all(|t| t["state"] == "hold")).then_some(())
    });
    assert_eq!((primary.count(), primary.deliveries_to("rest@example.test")), (100 + CONNECTIONS, 0));
    cli(directory.path(), &["queue", "release", "--to", "rest@example.test", "--reason", "false alarm"]).expect_code(0);
    daemon.wait_until_empty();
    assert_eq!(primary.deliveries_to("rest@example.test"), 60 - CONNECTIONS);
}

#[test]
fn mail_does_not_wait_for_a_slow_delivery_where_a_connection_takes_one_message() {
    let directory = scratch();
    let mut primary = Sink::closed().taking_one_message_a_connection();
    let daemon = Serve::new(directory.path(), primary.port).start();
    for n in 0..60 {
        let to = if n == 0 { "slow@example.test" } else { "quick@example.test" };
        send_one(&daemon, &Message::new("each", n, 500), &[to]);
    }
    primary.keep_waiting(Some("slow@example.test"));
    primary.open();
    primary.wait_for(59);
    primary.keep_waiting(None);
    daemon.wait_until_empty();
    assert_eq!(primary.count(), 60);
}

#[test]
fn a_lost_reply_after_the_final_dot_costs_a_duplicate_and_no_message() {
    let directory = scratch();
    let primary = Sink::opened();
    primary.answer_data(Some(""));
    let daemon = Serve::new(directory.path(), primary.port).start();
    let message = Message::new("doubt", 1, 500);
    send_one(&daemon, &message, &["box@example.test"]);
    eventually("an attempt", || (primary.attempts("box@example.test") > 0).then_some(()));
    primary.answer_data(None);
    eventually("the delivery", || {
        daemon.ask(&["queue", "flush", "--all"]);
        (primary.count() > 0).then_some(())
    });
    daemon.wait_until_empty();
    assert!(primary.received().iter().all(|r| r.content == message.content));
}

/// A backlog of `count` messages for a primary that is away until now.
fn backlog(primary: &mut Sink, count: u64) -> (TempDir, Daemon) {
    let directory = scratch();
    let daemon = Serve::new(directory.path(), primary.port).start();
    let mut client = Client::ehlo(daemon.smtp);
    for n in 0..count {
        queued_id(
            &client.send("s@example.net", &["box@example.test"], &Message::new("backlog", n, 500).content).unwrap(),
        );
    }
    primary.open();
    (directory, daemon)
}

#[test]
fn a_backlog_goes_out_over_no_more_connections_than_a_route_may_have() {
    let mut primary = Sink::closed();
    let (_directory, daemon) = backlog(&mut primary, 300);
    daemon.wait_until_empty();
    assert_eq!(primary.count(), 300);
    // The probe's connection among them, and the commands of one message behind the dot of another.
    assert!(primary.connections_at_once() <= 20, "{}", primary.connections_at_once());
    assert!(primary.spoken_to_ahead() > 0);
}

#[test]
fn a_primary_that_hangs_up_when_spoken_to_ahead_costs_one_message_in_doubt() {
    let mut primary = Sink::closed().hating_commands_ahead();
    let (_directory, daemon) = backlog(&mut primary, 100);
    eventually("all but the one in doubt", || (primary.count() >= 99).then_some(()));
    eventually("the one in doubt", || {
        daemon.ask(&["queue", "flush", "--all"]);
        (primary.count() == 100).then_some(())
    });
    daemon.wait_until_empty();
    assert_eq!(primary.spoken_to_ahead(), 1);
    assert!(daemon.stderr().contains("took no commands ahead of its replies"), "{}", daemon.stderr());
}

#[test]
fn two_routes_have_two_primaries_and_share_no_fate() {
    let directory = scratch();
    let (mut first, second) = (Sink::closed(), Sink::opened());
    let daemon = Serve::new(directory.path(), first.port).route("second.test", second.port).start();
    let id = send_one(&daemon, &Message::new("two", 1, 500), &["box@example.test", "box@second.test"]);
    assert_eq!(second.wait_for(1)[0].to, ["box@second.test"]);
    let left = eventually("one route left", || {
        let listed = daemon.ask(&["queue", "ls"]);
        (listed.len() == 1).then(|| listed[0].clone())
    });
    assert_eq!((&left["id"], &left["route"]), (&id.as_str().into(), &"example.test".into()), "{left}");
    first.open();
    assert_eq!(first.wait_for(1)[0].to, ["box@example.test"]);
    daemon.wait_until_empty();
    assert_eq!((first.count(), second.count()), (1, 1));
}

#[test]
fn recover_delivers_without_a_daemon() {
    let directory = scratch();
    let mut primary = Sink::closed();
    let mut daemon = Serve::new(directory.path(), primary.port).start();
    let messages: Vec<Message> = (0..8).map(|n| Message::new("deliver", n, 4000)).collect();
    for message in &messages {
        send_one(&daemon, message, &["box@example.test"]);
    }
    daemon.kill9();
    let deliver = |code: i32| cli(directory.path(), &["recover", "--deliver", "--json"]).expect_code(code).account();
    assert_eq!(deliver(1)["pending"], 8, "a primary that is down: none was sent");
    primary.open();
    // Some: what the first try refuses for now stays pending.
    primary.answer_data(Some("451 4.3.0 not yet"));
    assert_eq!(deliver(1)["pending"], 8);
    primary.answer_data(None);
    let account = deliver(0);
    assert_eq!((&account["sent"], &account["pending"]), (&8.into(), &0.into()), "{account}");
    let received = primary.received();
    assert_eq!(received.len(), 8);
    assert!(messages.iter().all(|m| received.iter().any(|r| r.content == m.content)));
    assert_eq!(deliver(0)["sent"], 8, "nothing pending is 0");
    // What recover settled, the daemon knows.
    let daemon = Serve::new(directory.path(), primary.port).start();
    daemon.wait_until_empty();
    assert_eq!(primary.count(), 8);
}

#[test]
fn recover_delivers_some_and_says_3() {
    let directory = scratch();
    let mut primary = Sink::closed();
    let mut daemon = Serve::new(directory.path(), primary.port).start();
    send_one(&daemon, &Message::new("some", 1, 500), &["yes@example.test"]);
    send_one(&daemon, &Message::new("some", 2, 500), &["later@example.test"]);
    daemon.kill9();
    primary.answer("later@example.test", "451 4.2.1 Mailbox busy");
    primary.open();
    let account = cli(directory.path(), &["recover", "--deliver", "--json"]).expect_code(3).account();
    assert_eq!((&account["sent"], &account["pending"]), (&1.into(), &1.into()), "{account}");
}

#[test]
fn recover_exports_exactly_what_was_accepted() {
    let directory = scratch();
    let data = directory.path().join("data");
    let out = directory.path().join("out");
    let out_arg = out.to_str().unwrap();
    let mut daemon = Serve::new(&data, Sink::closed().port).start();
    // Small in a segment, large in a blob.
    let messages = [Message::new("export", 1, 3000), Message::new("export", 2, 600_000)];
    let ids = [0, 1].map(|n| send_one(&daemon, &messages[n], &["a@example.test", "b@example.test"]));
    daemon.kill9();
    cli(&data, &["recover", "--export", out_arg]).expect_code(0);
    for (id, message) in ids.iter().zip(&messages) {
        assert!(
            fs::read(out.join(format!("{id}.eml"))).unwrap() == message.content,
            "{id}.eml is not what was accepted"
        );
        let envelope: Value = serde_json::from_slice(&fs::read(out.join(format!("{id}.json"))).unwrap()).unwrap();
        let text = envelope.to_string();
        for part in [id.as_str(), "sender@example.net", "a@example.test", "b@example.test"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
    let again = cli(&data, &["recover", "--export", out_arg]);
    assert!(![Some(0), None].contains(&again.code), "an existing file is an error: {again:?}");
    let account = cli(&data, &["verify", "--json"]).expect_code(0).account();
    assert_eq!(account["pending"], 4, "an export settles nothing: {account}");
}

#[test]
fn mail_that_goes_round_in_circles_is_stopped() {
    let directory = scratch();
    let primary = Sink::opened();
    let daemon = Serve::new(directory.path(), primary.port).start();
    let send = |hops: usize, by: &str| {
        let trace = format!("Received: from a.example\r\n\tby {by} with ESMTP; Sun, 22 Nov 2026 14:53:20 +0000\r\n");
        let content = format!("{}Message-ID: <loop@example.net>\r\n\r\nround\r\n", trace.repeat(hops));
        Client::ehlo(daemon.smtp).send("a@example.net", &["box@example.test"], content.as_bytes()).unwrap()
    };
    assert_eq!(send(51, "other.example").code, 554, "more than 50 hops end at the door");
    queued_id(&send(50, "other.example"));
    queued_id(&send(2, "mx2.example.test"));
    primary.wait_for(2);
    let held = queued_id(&send(3, "mx2.example.test"));
    let listed = eventually("the third time round on hold", || {
        daemon.ask(&["queue", "ls"]).into_iter().find(|t| t["id"] == held.as_str() && t["state"] == "hold")
    });
    assert!(listed["to"][0]["reason"].as_str().unwrap().contains("mail loop"), "{listed}");
    assert_eq!(primary.count(), 2);
}
