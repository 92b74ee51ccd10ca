//! A primary that comes back: found within seconds, tried with a canary, given its mail as fast as it takes it, and not believed
//! when it refuses everybody. With a real Postfix. These tests refuse to flush anything.

use crate::harness::client::Message;
use crate::harness::postfix::{Postfix, Role};
use crate::harness::{Client, Daemon, Serve, cli, eventually, logged, queued_id, scratch};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Instant;

/// A port of 127.0.0.1 that nobody listens on.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// So many messages for these mailboxes, taken in while the primary is away.
fn send_all(smtp: SocketAddr, to: impl Iterator<Item = String>) {
    let mut client = Client::ehlo(smtp);
    for (n, to) in (0..).zip(to) {
        let message = Message::new("drain", n, 1_000);
        queued_id(&client.send("sender@example.net", &[&to], &message.content).unwrap());
    }
}

fn users(messages: usize) -> impl Iterator<Item = String> {
    (0..messages).map(|n| format!("user{}@example.test", n % 50))
}

/// What its log says of refusals.
fn refusals(postfix: &Postfix) -> Vec<String> {
    let log = postfix.log();
    let is_refusal =
        |line: &&str| line.contains("reject:") || line.contains("limit exceeded") || line.contains(" 421 ");
    log.lines().filter(is_refusal).map(str::to_owned).collect()
}

fn arrived(postfix: &Postfix, messages: usize) {
    eventually(&format!("{messages} messages at Postfix"), || (postfix.mailbox().len() >= messages).then_some(()));
    assert_eq!(postfix.mailbox().len(), messages, "more came than were sent");
}

/// Seconds since 1970, of each line of this kind.
fn seconds_of(data: &Path, event: &str) -> Vec<f64> {
    let time = |line: &serde_json::Value| {
        let at: jiff::Timestamp = line["ts"].as_str().unwrap().parse().unwrap();
        at.as_duration().as_secs_f64()
    };
    logged(data, event).iter().map(time).collect()
}

/// With the primary away.
fn start(directory: &Path, port: u16) -> Daemon {
    let daemon = Serve::new(directory, port).start();
    let is_down = |daemon: &Daemon| daemon.ask(&["status"]).iter().any(|line| line["state"] == "down");
    eventually("the primary to be down", || is_down(&daemon).then_some(()));
    daemon
}

fn account(data: &Path) -> serde_json::Value {
    cli(data, &["verify", "--json"]).expect_code(0).account()
}

mod needs_root {
    use super::*;

    #[test]
    fn a_backlog_reaches_a_postfix_that_comes_back_without_one_refusal() {
        let directory = scratch();
        let data = directory.path();
        let port = free_port();
        let daemon = start(data, port);
        send_all(daemon.smtp, users(1_000));
        let postfix = Postfix::start_on(Role::Primary, port);
        let opened = Instant::now();
        eventually("the canary", || (!logged(data, "sent").is_empty()).then_some(()));
        println!("the canary was taken {:.2} s after Postfix answered", opened.elapsed().as_secs_f64());
        arrived(&postfix, 1_000);
        daemon.wait_until_empty();
        eventually("the end of the drain", || (!logged(data, "primary_up").is_empty()).then_some(()));
        assert_eq!(refusals(&postfix), [""; 0]);
        let order = ["primary_recovering", "drain_started", "drain_finished", "primary_up"];
        let order = order.map(|event| seconds_of(data, event)[0]);
        assert!(order.is_sorted(), "{order:?}");
        let sent = seconds_of(data, "sent");
        println!("1,000 messages in {:.2} s", sent[sent.len() - 1] - order[0]);
    }

    #[test]
    fn a_postfix_that_limits_connections_and_messages_gets_all_and_little_more_than_it_likes() {
        let directory = scratch();
        let data = directory.path();
        let port = free_port();
        let daemon = start(data, port);
        send_all(daemon.smtp, users(600));
        // Ten seconds in place of its minute, so that the test is over in one.
        let limits = "smtpd_client_connection_count_limit = 5\nsmtpd_client_message_rate_limit = 100\n\
                  smtpd_client_event_limit_exceptions =\nanvil_rate_time_unit = 10s\n";
        let postfix = Postfix::start_on(Role::PrimaryWith(limits.into()), port);
        arrived(&postfix, 600);
        daemon.wait_until_empty();
        let sent = seconds_of(data, "sent");
        let in_slot = |slot: u32| {
            let slot = f64::from(slot) * 10.0;
            sent.iter().filter(|at| (slot..slot + 10.0).contains(&(**at - sent[0]))).count()
        };
        let slots: Vec<usize> = (0..12).map(in_slot).collect();
        println!("taken in each ten seconds: {slots:?}; refused: {}", refusals(&postfix).len());
        let account = account(data);
        assert_eq!((&account["sent"], &account["bounced"], &account["pending"]), (&600.into(), &0.into(), &0.into()));
        assert!(logged(data, "deferred").is_empty(), "the limit was put on a message's account");
    }

    #[test]
    fn a_half_restored_postfix_gets_twenty_messages_and_all_when_it_is_repaired() {
        let directory = scratch();
        let data = directory.path();
        let port = free_port();
        let daemon = start(data, port);
        send_all(daemon.smtp, users(200));
        let table = data.join("mailboxes");
        std::fs::write(&table, "").unwrap();
        let empty = format!("virtual_mailbox_maps = regexp:{}\n", table.display());
        let postfix = Postfix::start_on(Role::PrimaryWith(empty), port);
        eventually("the breaker", || (!logged(data, "breaker").is_empty()).then_some(()));
        let route = daemon.ask(&["status"]).into_iter().find(|line| line["type"] == "route").unwrap();
        assert!(route["reason"].as_str().unwrap().starts_with("primary refuses known recipients"), "{route}");
        let listed = cli(data, &["queue", "ls"]).expect_code(0).out;
        assert!(listed.contains("primary refuses known recipients"), "{listed}");
        let refused = refusals(&postfix).len();
        assert!((2..=21).contains(&refused), "{refused} refusals");
        let account_of = account(data);
        assert_eq!((&account_of["pending"], &account_of["bounced"]), (&200.into(), &0.into()), "{account_of}");
        // Somebody repairs it, and nobody tells us.
        postfix.set("virtual_mailbox_maps = static:box/");
        arrived(&postfix, 200);
        daemon.wait_until_empty();
        let account = account(data);
        assert_eq!((&account["sent"], &account["bounced"]), (&200.into(), &0.into()), "{account}");
    }

    #[test]
    fn a_backlog_that_is_mostly_spam_drains_to_the_end() {
        let directory = scratch();
        let data = directory.path();
        let port = free_port();
        let daemon = start(data, port);
        let to =
            |n: usize| if n % 5 < 2 { format!("user{}@example.test", n % 50) } else { format!("x{n}@example.test") };
        send_all(daemon.smtp, (0..500).map(to).chain(users(1)));
        let table = data.join("mailboxes");
        std::fs::write(&table, "/^user/ box/\n").unwrap();
        let some = format!("virtual_mailbox_maps = regexp:{}\n", table.display());
        let postfix = Postfix::start_on(Role::PrimaryWith(some), port);
        arrived(&postfix, 201);
        eventually("nothing pending", || (account(data)["pending"] == 0).then_some(()));
        let account = account(data);
        assert_eq!((&account["sent"], &account["bounced"]), (&201.into(), &300.into()), "{account}");
        assert_eq!(logged(data, "breaker").len(), 0);
        let bounced = logged(data, "bounced");
        assert!(
            bounced.iter().all(|line| line["reason"].as_str().unwrap().starts_with("550 5.1.1")),
            "{:?}",
            bounced[0]
        );
        // What was refused can be had back.
        let id = bounced[0]["id"].as_str().unwrap();
        cli(data, &["queue", "undo", "--id", id, "--reason", "the user exists now"]).expect_code(0);
    }

    /// Ten thousand, as after a weekend: first into a Postfix without limits, then into one that counts by the minute. Prints how many were
    /// taken in each ten seconds.
    #[test]
    #[ignore = "minutes: cargo test --release --test integration drain::needs_root::ten_thousand -- --ignored --nocapture"]
    fn ten_thousand_messages_without_limits_and_within_them() {
        let limits = "smtpd_client_connection_count_limit = 5\nsmtpd_client_message_rate_limit = 3000\n\
                  smtpd_client_event_limit_exceptions =\n";
        for limits in ["", limits] {
            let directory = scratch();
            let data = directory.path();
            let port = free_port();
            let daemon = start(data, port);
            send_all(daemon.smtp, users(10_000));
            let postfix = Postfix::start_on(Role::PrimaryWith(limits.into()), port);
            // Each step within the patience of `eventually`: what stands still for two minutes will not move.
            for thousands in 1..=10 {
                eventually("a thousand more", || (postfix.mailbox().len() >= thousands * 1_000).then_some(()));
            }
            daemon.wait_until_empty();
            let sent = seconds_of(data, "sent");
            let slot = |n: u32| sent.iter().filter(|at| ((**at - sent[0]) / 10.0).floor() == f64::from(n)).count();
            let slots: Vec<_> = (0..60).map(slot).take_while(|taken| *taken > 0).collect();
            println!(
                "limits: {}; taken in each ten seconds: {slots:?}; refused {}",
                !limits.is_empty(),
                refusals(&postfix).len()
            );
            assert_eq!((sent.len(), logged(data, "bounced").len(), postfix.mailbox().len()), (10_000, 0, 10_000));
            if limits.is_empty() {
                assert_eq!(refusals(&postfix), [""; 0]);
            }
        }
    }
}
