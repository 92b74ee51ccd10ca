//! Somebody removes files from under us: a stale-looking lock, the segment that is being written, a segment on a disk that
//! gives it no more.

use crate::harness::{Client, Message, Serve, Sink, cli, queued_id, restante, scratch};
use crate::storage::segments;
use std::fs;
use std::path::Path;

fn send(to: std::net::SocketAddr, n: u64) -> String {
    let message = Message::new("removed", n, 900);
    queued_id(&Client::ehlo(to).send("a@example.net", &["box@example.test"], &message.content).unwrap())
}

fn accepted(data: &Path, code: i32) -> (u64, u64) {
    let account = cli(data, &["verify", "--json"]).expect_code(code).account();
    (account["accepted"].as_u64().unwrap(), account["pending"].as_u64().unwrap())
}

#[test]
fn a_segment_removed_while_it_is_written_ends_the_daemon_and_loses_nothing() {
    let directory = scratch();
    let data = directory.path();
    let mut primary = Sink::closed();
    let mut daemon = Serve::new(data, primary.port).start();
    for n in 0..3 {
        send(daemon.smtp, n);
    }
    fs::remove_file(segments(data).pop().unwrap()).unwrap();
    // With mail or without: it is looked at in quiet moments, too.
    assert_eq!(daemon.wait(), Some(1), "{}", daemon.stderr());
    assert!(daemon.stderr().contains("was removed while it was being written; what it held was put back"));
    assert_eq!(accepted(data, 0), (3, 3));
    primary.open();
    let mut daemon = Serve::new(data, primary.port).start();
    daemon.wait_until_empty();
    assert_eq!(primary.count(), 3);
    daemon.stop();
}

#[test]
fn a_removed_lock_lets_nobody_else_write() {
    let directory = scratch();
    let data = directory.path();
    let primary = Sink::closed();
    let mut daemon = Serve::new(data, primary.port).start();
    send(daemon.smtp, 1);
    fs::remove_file(data.join("lock")).unwrap();
    let second = Serve::new(data, primary.port).command().output().unwrap();
    assert_eq!(second.status.code(), Some(8), "{}", String::from_utf8_lossy(&second.stderr));
    let recovered = restante().args(["recover", "--data"]).arg(data).output().unwrap();
    assert_eq!(recovered.status.code(), Some(8));
    send(daemon.smtp, 2);
    // Still a tail in flight to `verify`.
    assert_eq!(accepted(data, 0), (2, 2));
    daemon.stop();
    assert_eq!(accepted(data, 0), (2, 2));
}

#[test]
fn a_segment_that_cannot_be_opened_costs_what_stands_in_it_and_is_not_written_over() {
    let directory = scratch();
    let data = directory.path();
    let mut primary = Sink::closed();
    for n in 0..3 {
        let mut daemon = Serve::new(data, primary.port).start();
        send(daemon.smtp, n);
        daemon.stop();
    }
    let [first, middle, last] = &segments(data)[..] else { panic!("three starts, three segments") };
    for lost in [middle, last] {
        fs::rename(lost, lost.with_extension("away")).unwrap();
        std::os::unix::fs::symlink("/nonexistent", lost).unwrap();
    }
    let account = cli(data, &["verify", "--json"]).expect_code(9).account();
    assert_eq!(
        (&account["pending"], &account["damage"][0]["kind"]),
        (&1.into(), &"missing-segment".into()),
        "{account}"
    );
    let mut daemon = Serve::new(data, primary.port).start();
    send(daemon.smtp, 9);
    daemon.stop();
    // The disk gives them back: everything is there.
    for lost in [middle, last] {
        fs::remove_file(lost).unwrap();
        fs::rename(lost.with_extension("away"), lost).unwrap();
    }
    assert!(first.exists());
    assert_eq!(accepted(data, 0), (4, 4));
    primary.open();
    let mut daemon = Serve::new(data, primary.port).start();
    daemon.wait_until_empty();
    assert_eq!(primary.count(), 4);
    daemon.stop();
}
