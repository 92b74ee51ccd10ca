//! Tests of the instruments: a harness that cannot see loss proves nothing. They refuse the binary under test: here the peers are
//! Postfix and made-up traces.

use crate::harness::client::{Message, sha256};
use crate::harness::trace::Trace;
use crate::harness::{Client, Sink, sink};
use std::path::Path;

const ID: &str = "01JD9QK3T2E8V5W6X7Y8Z9ABCD";

/// What an honest daemon does for one message; each test spoils one line of it.
const HONEST: &str = r#"
10 openat(AT_FDCWD</>, "/j/seg-1.tmp", O_RDWR|O_CREAT|O_CLOEXEC, 0600) = 3</j/seg-1.tmp>
10 rename("/j/seg-1.tmp", "/j/seg-1.rj") = 0
10 fsync(4</j>) = 0
11 pwrite64(3</j/seg-1.rj>, "marker one"..., 4096, 0) = 4096
11 fdatasync(3</j/seg-1.rj> <unfinished ...>
12 sendto(7<TCP:[127.0.0.1:25->127.0.0.1:999]>, "354 go on\r\n", 11, 0, NULL, 0) = 11
11 <... fdatasync resumed>) = 0
12 sendto(7<TCP:[127.0.0.1:25->127.0.0.1:999]>, "250 2.0.0 Ok queued as 01JD9QK3T2E8V5W6X7Y8Z9ABCD\r\n", 51, 0, NULL, 0) = 51
"#;

fn judge(trace: &str) -> Result<(), String> {
    Trace::parse(trace).prove(Path::new("/j"), ID, &["marker one"])
}

#[test]
fn an_honest_trace_passes() {
    judge(HONEST).unwrap();
}

#[test]
fn a_sync_that_returned_after_the_250_is_seen() {
    let mut lines: Vec<&str> = HONEST.lines().collect();
    let last = lines.len() - 1;
    lines.swap(last, last - 1);
    assert!(judge(&lines.join("\n")).unwrap_err().contains("before a sync of /j/seg-1.rj returned"));
}

#[test]
fn a_sync_that_failed_is_seen() {
    let failed = HONEST.replace("resumed>) = 0", "resumed>) = -1 EIO (Input/output error) (INJECTED)");
    assert!(judge(&failed).unwrap_err().contains("before a sync"));
}

#[test]
fn a_sync_that_began_before_the_write_is_seen() {
    let mut lines: Vec<&str> = HONEST.lines().collect();
    lines.swap(4, 5);
    assert!(judge(&lines.join("\n")).unwrap_err().contains("before a sync"));
}

#[test]
fn a_segment_without_a_synced_directory_is_seen() {
    assert!(judge(&HONEST.replace("10 fsync(4</j>) = 0\n", "")).unwrap_err().contains("before /j was synced"));
}

#[test]
fn content_that_is_nowhere_in_the_journal_is_seen() {
    assert!(judge(&HONEST.replace("marker one", "marker two")).unwrap_err().contains("not in the journal"));
}

#[test]
fn a_blob_whose_record_is_not_synced_is_seen() {
    let blob = r#"
10 openat(AT_FDCWD</>, "/j/seg-1.rj", O_RDWR|O_CREAT|O_CLOEXEC, 0600) = 3</j/seg-1.rj>
10 openat(5</j/blob>, "a.tmp", O_RDWR|O_CREAT|O_CLOEXEC, 0600) = 6</j/blob/a.tmp>
11 write(6</j/blob/a.tmp>, "marker one", 10) = 10
11 fdatasync(6</j/blob/a.tmp>) = 0
11 renameat(5</j/blob>, "a.tmp", 5</j/blob>, "a.blob") = 0
11 fsync(5</j/blob>) = 0
11 write(3</j/seg-1.rj>, "record", 6) = 6
11 fdatasync(3</j/seg-1.rj>) = 0
12 write(7<TCP:[127.0.0.1:25->127.0.0.1:999]>, "250 2.0.0 Ok queued as 01JD9QK3T2E8V5W6X7Y8Z9ABCD\r\n", 51) = 51
"#;
    judge(blob).unwrap();
    assert!(judge(&blob.replace("11 fdatasync(3</j/seg-1.rj>) = 0\n", "")).unwrap_err().contains("record of the blob"));
    assert!(judge(&blob.replace("11 fsync(5</j/blob>) = 0\n", "")).unwrap_err().contains("before /j/blob was synced"));
    // Any two steps in the wrong order.
    let lines: Vec<&str> = blob.trim_start().lines().collect();
    for first in 2..7 {
        let mut swapped = lines.clone();
        swapped.swap(first, first + 1);
        assert!(judge(&swapped.join("\n")).is_err(), "{} before {}", lines[first + 1], lines[first]);
    }
}

#[test]
fn the_sink_records_the_bytes_the_client_sent() {
    let mut primary = Sink::closed();
    assert!(Client::connect(([127, 0, 0, 1], primary.port).into()).is_err(), "a reserved port refuses connections");
    primary.open();
    let message = Message::new("sink", 1, 20_000);
    for round in 1..=2 {
        let mut client = Client::ehlo(([127, 0, 0, 1], primary.port).into());
        let reply = client.send("a@example.net", &["b@example.test", "c@example.test"], &message.content).unwrap();
        assert_eq!(reply.code, 250);
        assert_eq!(primary.count(), round);
        primary.close();
        assert!(client.command("NOOP").is_err(), "closing cuts what is connected");
        assert!(Client::connect(([127, 0, 0, 1], primary.port).into()).is_err(), "a closed port refuses connections");
        primary.open();
    }
    let received = primary.received().pop().unwrap();
    assert_eq!((received.from.as_str(), received.to.len()), ("a@example.net", 2));
    assert_eq!((received.content, received.trace), (message.content, String::new()));
}

#[test]
fn the_sink_answers_each_recipient_as_told() {
    let primary = Sink::opened();
    primary.answer("no@example.test", "550 5.1.1 No such user");
    let mut client = Client::ehlo(([127, 0, 0, 1], primary.port).into());
    let message = Message::new("sink", 2, 100);
    assert_eq!(client.send("a@example.net", &["no@example.test"], &message.content).unwrap().code, 550);
    primary.answer_data(Some("452 4.3.1 Full"));
    assert_eq!(client.send("a@example.net", &["yes@example.test"], &message.content).unwrap().code, 452);
    primary.answer_data(None);
    assert_eq!(
        client.send("a@example.net", &["no@example.test", "yes@example.test"], &message.content).unwrap().code,
        250
    );
    assert_eq!(
        (primary.attempts("no@example.test"), primary.deliveries_to("yes@example.test"), primary.count()),
        (2, 1, 1)
    );
}

#[test]
fn trace_headers_are_told_from_content() {
    let split =
        sink::split(b"Received: from x\r\n\tby y\r\nMessage-ID: <1@x>\r\nSubject: y\r\n\r\nMessage-ID: <2@x>\r\n")
            .unwrap();
    assert_eq!((split.trace.as_str(), split.message_id.as_str()), ("Received: from x\r\n\tby y\r\n", "<1@x>"));
    assert_eq!(split.sha256, sha256(b"Message-ID: <1@x>\r\nSubject: y\r\n\r\nMessage-ID: <2@x>\r\n"));
    assert!(sink::split(b"Subject: none\r\n\r\nMessage-ID: <2@x>\r\n").is_none());
}

mod needs_root {
    use crate::harness::load::{Load, Plan};
    use crate::harness::postfix::{Postfix, Role};
    use crate::harness::{Ledger, Reply, Sink, eventually, scratch};
    use std::collections::BTreeMap;

    #[test]
    fn a_load_through_postfix_arrives_as_the_ledger_says() {
        let directory = scratch();
        let primary = Sink::opened().digests_only();
        let postfix = Postfix::start(Role::Sender(primary.port));
        let id_of = |reply: &Reply| reply.text().rsplit(' ').next().unwrap().to_owned();
        let plan = Plan { messages: 60, sessions: 6, least_bytes: 1024, most_bytes: 100 * 1024, id_of };
        let ledger = Ledger::create(&directory.path().join("ledger"));
        let ledger = Load::start(plan, postfix.smtp, ledger).finish().close();
        assert_eq!(ledger.len(), 60);
        eventually("every ledger entry at the sink", || {
            let arrived: BTreeMap<_, _> = primary.received().into_iter().map(|r| (r.message_id, r.sha256)).collect();
            ledger.values().all(|entry| arrived.get(&entry.message_id) == Some(&entry.sha256)).then_some(())
        });
    }
}
