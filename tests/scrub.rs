//! Rot that comes while the daemon runs, where nobody looks: it is told, counted and shown, and mail goes on. These tests know
//! files by their names and content by its bytes alone.

use crate::damage::fill;
use crate::harness::{Client, Daemon, Message, Serve, Sink, cli, eventually, queued_id, scratch};
use crate::storage::segments;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

const PASSES: &str = "restante_journal_scrub_passes_total";
const DAMAGE: &str = "restante_journal_scrub_damage";

fn flip(path: &Path, needle: &[u8]) {
    let bytes = fs::read(path).unwrap();
    let at = bytes.windows(needle.len()).position(|w| w == needle).expect("content stands there as plain bytes");
    // In place: the daemon may be reading it.
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[bytes[at] ^ 4], at as u64).unwrap();
}

fn told(daemon: &Daemon) -> usize {
    daemon.stderr().lines().filter(|line| line.contains("the journal is damaged: ")).count()
}

#[test]
fn rot_in_content_that_a_start_does_not_read_is_told_once_and_mail_goes_on() {
    let directory = scratch();
    let data = directory.path();
    let primary = Sink::closed();
    let mut daemon = Serve::new(data, primary.port).start();
    let sent = fill(&daemon, 20);
    let large = Message::new("large", 1, 1_400_000);
    queued_id(&Client::ehlo(daemon.smtp).send("a@example.net", &["box@example.test"], &large.content).unwrap());
    daemon.stop();
    let (victim, message) = &sent[7];
    flip(&segments(data)[0], &message.content[message.content.len() - 200..]);
    let blob = fs::read_dir(data.join("blob")).unwrap().next().unwrap().unwrap().path();
    flip(&blob, &large.content[700_000..700_100]);
    for _ in 0..2 {
        let mut daemon = Serve::new(data, primary.port).start();
        eventually("a pass over the journal", || (daemon.metric(PASSES, "") == Some(1.0)).then_some(()));
        assert_eq!((told(&daemon), daemon.metric(DAMAGE, "")), (2, Some(2.0)), "{}", daemon.stderr());
        assert!(daemon.stderr().contains(victim.as_str()), "{victim} is not named: {}", daemon.stderr());
        assert_eq!(daemon.ask(&["status"])[0]["journal_damage"], 2);
        assert!(cli(data, &["status"]).expect_code(0).out.contains("JOURNAL DAMAGED in 2 places"));
        queued_id(&Client::ehlo(daemon.smtp).send("a@example.net", &["box@example.test"], b"new mail\r\n").unwrap());
        daemon.stop();
    }
}

#[test]
fn rot_that_comes_while_the_daemon_runs_is_found_and_a_stop_does_not_wait_for_the_pass() {
    let directory = scratch();
    let data = directory.path();
    let primary = Sink::closed();
    let mut daemon = Serve::new(data, primary.port).start();
    // So much that a pass takes seconds: what stands at the end of it is not read yet when it rots.
    for n in 0..5 {
        let large = Message::new("large", n, 12 << 20);
        queued_id(&Client::ehlo(daemon.smtp).send("a@example.net", &["box@example.test"], &large.content).unwrap());
    }
    let sent = fill(&daemon, 3);
    daemon.stop();
    let large = Message::new("large", 4, 12 << 20).content;
    let blobs = fs::read_dir(data.join("blob")).unwrap().map(|entry| entry.unwrap().path());
    let last = blobs.into_iter().find(|path| fs::read(path).unwrap() == large).unwrap();
    let rotten = fs::OpenOptions::new().write(true).open(last).unwrap();
    let mut daemon = Serve::new(data, primary.port).start();
    rotten.write_all_at(b"rot", (12 << 20) - 100).unwrap();
    flip(&segments(data)[0], &sent[2].1.content[sent[2].1.content.len() - 200..]);
    assert_eq!(told(&daemon), 0, "a start does not read so much");
    eventually("both places", || (daemon.metric(DAMAGE, "") == Some(2.0)).then_some(()));
    daemon.stop();
    let mut daemon = Serve::new(data, primary.port).start();
    daemon.stop();
}
