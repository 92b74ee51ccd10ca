//! Everything the journal holds, settled mail too: listed, counted and written to files, beside a daemon and with it dead.

use crate::harness::{Client, Finished, Message, OURS, Serve, Sink, cli, queued_id, scratch};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// What is larger than 256 KiB has a file of its own.
const LARGE_BYTES: usize = 300 << 10;

fn states(data: &Path, more: &[&str]) -> Vec<(String, String)> {
    let listed = cli(data, &[&["journal", "ls", "--json"], more].concat()).expect_code(0).json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    listed.iter().map(|entry| (text(&entry["id"]), text(&entry["state"]))).collect()
}

fn export(data: &Path, out: &Path, more: &[&str]) -> Finished {
    cli(data, &[&["journal", "export", out.to_str().unwrap(), "--json"], more].concat())
}

#[test]
fn what_was_sent_removed_and_waits_is_listed_counted_and_exported_whether_or_not_a_daemon_runs() {
    let directory = scratch();
    let mut primary = Sink::opened();
    let data = directory.path().join("data");
    let mut daemon = Serve::new(&data, primary.port).start();
    let mut client = Client::ehlo(daemon.smtp);
    let mut send = |n: u64, from: &str, bytes: usize| {
        let mut message = Message::new("held", n, bytes);
        message.content.extend(b"From here\r\n>From there\r\n");
        (queued_id(&client.send(from, &["box@example.test"], &message.content).unwrap()), message.content)
    };
    let sent = send(0, "", LARGE_BYTES);
    primary.wait_for(1);
    daemon.wait_until_empty();
    primary.close();
    let waiting = send(1, "a@example.net", 700);
    let removed = send(2, "a@example.net", 700);
    let token = |planned: &[Value]| planned[0]["token"].as_str().unwrap().to_owned();
    let which = ["queue", "remove", "--id", &removed.0, "--reason", "a test"];
    let token = token(&daemon.ask(&which));
    daemon.ask(&[&which[..], &["--yes", &token]].concat());
    for is_dead in [false, true] {
        if is_dead {
            daemon.kill9();
        }
        let of = |id: &str, state: &str| (id.to_owned(), state.to_owned());
        let all = [of(&sent.0, "sent"), of(&waiting.0, "waiting"), of(&removed.0, "removed")];
        assert_eq!(states(&data, &[]), all);
        assert_eq!(states(&data, &["--state", "sent"]), all[..1]);
        assert_eq!(states(&data, &["--from", "a@example.net", "--state", "removed"]), all[2..]);
        cli(&data, &["queue", "ls", "--state", "sent"]).expect_code(4);

        let stats = cli(&data, &["journal", "stats", "--json"]).expect_code(0).account();
        let count = |key: &str| stats[key].as_u64().unwrap();
        assert_eq!(["messages", "pending", "settled", "blobs"].map(count), [3, 1, 2, 1], "{stats}");
        assert_eq!(stats["recipients"]["sent"], 1, "{stats}");
        assert_eq!((&stats["routes"][0]["name"], &stats["routes"][0]["pending"]), (&OURS.into(), &1.into()), "{stats}");
        assert_eq!(stats["routes"][0]["pending_bytes"].as_u64().unwrap(), waiting.1.len() as u64);
        assert_eq!(stats["segments"].as_u64().unwrap() - stats["sealed"].as_u64().unwrap(), 1, "{stats}");
        cli(&data, &["journal", "stats"]).expect_code(0);

        let out = directory.path().join(format!("eml-{is_dead}"));
        assert_eq!(export(&data, &out, &["--all"]).expect_code(0).account()["messages"], 3);
        for (id, content) in [&sent, &waiting, &removed] {
            assert!(fs::read(out.join(format!("{id}.eml"))).unwrap() == *content);
            let told: Value = serde_json::from_slice(&fs::read(out.join(format!("{id}.json"))).unwrap()).unwrap();
            let state = all.iter().find(|(of, _)| of == id).unwrap().1.as_str();
            assert_eq!(told["to"][0]["state"], state);
        }
        let finished = export(&data, &out, &["--all"]).expect_code(1);
        assert!(finished.err.contains("not empty"), "{}", finished.err);
        let mbox = directory.path().join(format!("mbox-{is_dead}"));
        export(&data, &mbox, &["--format", "mbox", "--state", "sent", "--state", "waiting"]).expect_code(0);
        let text = fs::read(&mbox).unwrap();
        let froms: Vec<&[u8]> = text.split(|b| *b == b'\n').filter(|line| line.starts_with(b"From ")).collect();
        assert!(froms.len() == 2 && froms[0].starts_with(b"From MAILER-DAEMON "), "{froms:?}");
        let quoted = |line: &[u8]| text.split(|b| *b == b'\n').filter(|other| *other == line).count();
        assert_eq!((quoted(b">From here"), quoted(b">>From there")), (2, 2));
        export(&data, &mbox, &["--format", "mbox", "--all"]).expect_code(1);
        export(&data, &directory.path().join("none"), &["--format", "mbox", "--to", "nobody@example.test"])
            .expect_code(4);
        assert!(!directory.path().join("none").exists());
        export(&data, &out, &[]).expect_code(2);
    }
}
