//! Starting and stopping: exit codes, the lock, the socket, a busy port. It refuses to assert a time but one: three seconds for a
//! clean stop are part of the contract.

use crate::harness::{Client, Message, PATIENCE, Serve, Sink, cli, eventually, queued_id, restante, run, scratch};
use rustix::process::Signal;
use std::net::TcpListener;
use std::time::{Duration, Instant};

#[test]
fn sigterm_ends_it_with_0_within_three_seconds_and_takes_the_socket_along() {
    let directory = scratch();
    let primary = Sink::closed();
    let mut daemon = Serve::new(directory.path(), primary.port).start();
    let mut idle = Client::ehlo(daemon.smtp);
    let mut halfway = Client::ehlo(daemon.smtp);
    for command in ["MAIL FROM:<a@example.net>", "RCPT TO:<box@example.test>", "DATA"] {
        assert!(halfway.command(command).unwrap().code < 400);
    }
    halfway.raw(b"Subject: never ended\r\n").unwrap();
    let socket = directory.path().join("admin.sock");
    assert!(socket.exists(), "no admin.sock beside a running daemon");
    let start = Instant::now();
    daemon.stop();
    assert!(start.elapsed() < Duration::from_secs(3), "a clean stop took {:?}", start.elapsed());
    assert!(!socket.exists(), "admin.sock survived a clean stop");
    assert_eq!(idle.reply().unwrap().code, 421, "an idle session is told");
    assert_eq!(halfway.reply().unwrap().code, 421, "a session in DATA is told");
    let account = cli(directory.path(), &["verify", "--json"]).expect_code(0).account();
    assert_eq!((&account["state"], &account["accepted"]), (&"clean".into(), &0.into()), "{account}");
}

#[test]
fn a_session_that_awaits_its_commit_is_not_cut_by_sigterm() {
    let directory = scratch();
    let primary = Sink::closed();
    let mut daemon = Serve::new(directory.path(), primary.port).start();
    let message = Message::new("term", 1, 200_000);
    let mut client = Client::ehlo(daemon.smtp);
    for command in ["MAIL FROM:<a@example.net>", "RCPT TO:<box@example.test>", "DATA"] {
        assert!(client.command(command).unwrap().code < 400);
    }
    client.raw(&crate::harness::client::stuffed(&message.content)).unwrap();
    client.raw(b".\r\n").unwrap();
    daemon.signal(Signal::TERM);
    let answered = client.reply();
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.stderr());
    let account = cli(directory.path(), &["verify", "--json"]).expect_code(0).account();
    // The signal may win the race: then it is a 421, or a cut, and nothing was promised.
    if answered.is_ok_and(|reply| reply.code == 250) {
        assert_eq!(account["pending"], 1, "its 250 was not kept: {account}");
    }
}

#[test]
fn sigint_is_a_clean_stop_too() {
    let directory = scratch();
    let mut daemon = Serve::new(directory.path(), Sink::closed().port).start();
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.stderr());
}

#[test]
fn a_second_daemon_on_the_same_journal_exits_8() {
    let directory = scratch();
    let primary = Sink::closed();
    let daemon = Serve::new(directory.path(), primary.port).start();
    let second = run(&mut Serve::new(directory.path(), primary.port).command()).expect_code(8);
    assert!(!second.err.contains("ready:"), "{}", second.err);
    Client::ehlo(daemon.smtp);
}

#[test]
fn recover_beside_a_daemon_exits_8_and_changes_nothing() {
    let directory = scratch();
    let daemon = Serve::new(directory.path(), Sink::closed().port).start();
    let mut client = Client::ehlo(daemon.smtp);
    queued_id(&client.send("a@example.net", &["box@example.test"], &Message::new("lock", 1, 100).content).unwrap());
    cli(directory.path(), &["recover"]).expect_code(8);
    queued_id(&client.send("a@example.net", &["box@example.test"], &Message::new("lock", 2, 100).content).unwrap());
    assert_eq!(daemon.ask(&["queue", "ls"]).len(), 2);
}

#[test]
fn a_busy_port_exits_1_and_names_it() {
    let directory = scratch();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let taken = TcpListener::bind(busy).unwrap();
    let data = directory.path().join("data");
    let mut serve = restante();
    serve.args(["serve", "--route", "example.test=127.0.0.1:2526", "--listen", &busy.to_string(), "--data"]).arg(&data);
    let failed = run(&mut serve).expect_code(1);
    assert!(failed.err.contains(&busy.to_string()), "the port is not named: {}", failed.err);
    drop(taken);
    // What failed to start left nothing behind that would stop the next start.
    Serve::new(&data, Sink::closed().port).start();
}

#[test]
fn a_killed_daemon_leaves_nothing_that_stops_the_next() {
    let directory = scratch();
    let primary = Sink::closed();
    let mut daemon = Serve::new(directory.path(), primary.port).start();
    let mut client = Client::ehlo(daemon.smtp);
    queued_id(&client.send("a@example.net", &["box@example.test"], &Message::new("again", 1, 100).content).unwrap());
    for _ in 0..3 {
        daemon.kill9();
        daemon = Serve::new(directory.path(), primary.port).start();
        assert_eq!(daemon.ask(&["queue", "ls"]).len(), 1);
        assert_eq!(daemon.ask(&["status"]).iter().filter(|o| o["type"] == "node").count(), 1, "the socket is answered");
    }
}

#[test]
fn ids_grow_over_restarts_and_are_never_used_twice() {
    let directory = scratch();
    let primary = Sink::closed();
    let mut ids = Vec::new();
    for n in 0..4 {
        let mut daemon = Serve::new(directory.path(), primary.port).start();
        let mut client = Client::ehlo(daemon.smtp);
        for m in 0..3 {
            let message = Message::new("id", n * 10 + m, 100);
            ids.push(queued_id(&client.send("a@example.net", &["box@example.test"], &message.content).unwrap()));
        }
        if n % 2 == 0 { daemon.kill9() } else { daemon.stop() }
    }
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
}

#[test]
fn two_thousand_connections_at_once_are_served() {
    let directory = scratch();
    let daemon = Serve::new(directory.path(), Sink::closed().port).start();
    // Both ends of each connection are in two processes: this one needs the descriptors as well.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: limit.maximum, ..limit },
    )
    .unwrap();
    let mut clients: Vec<Client> =
        (0..2000).map(|n| Client::connect(daemon.smtp).unwrap_or_else(|e| panic!("connection {n}: {e}"))).collect();
    for client in [0, 999, 1999] {
        clients[client].hello().unwrap();
    }
}

#[test]
fn an_outage_ends_without_a_flush() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/outage");
    let limit = PATIENCE.as_secs().to_string();
    let mut outage = crate::harness::tool("python3");
    outage.args([script, "--binary", env!("CARGO_BIN_EXE_restante"), "--outage", "3", "--limit", &limit]);
    println!("{}", run(&mut outage).expect_code(0).out);
}

#[test]
fn health_says_whether_mail_can_be_accepted() {
    let directory = scratch();
    let daemon = Serve::new(directory.path(), Sink::closed().port).start();
    eventually("a healthy daemon", || (daemon.get("/healthz").0 == 200).then_some(()));
    // A primary that is down does not make us unhealthy.
    assert_eq!(daemon.ask(&["status"]).iter().find(|o| o["type"] == "node").unwrap()["accepting"], true);
}
