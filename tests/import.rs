//! Mail that waits at another server, taken over: real queues of a real Postfix and a real Exim, and a maildir. Envelope and bytes
//! are what the other server would have delivered, nobody gets anything twice, and what was held is held.

use crate::harness::client::stuffed;
use crate::harness::{Daemon, Finished, Message, Received, Serve, Sink, restante, run, scratch};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

fn import(daemon: &Daemon, format: &str, path: &Path, more: &[&str]) -> Finished {
    run(command(daemon, format, path).args(more))
}

fn command(daemon: &Daemon, format: &str, path: &Path) -> Command {
    let mut command = restante();
    command.args(["journal", "import", "--json", format]).arg(path).arg("--data").arg(&daemon.data);
    command
}

fn counts(account: &Value) -> [u64; 6] {
    ["messages", "taken", "known", "delivered", "refused", "hold"].map(|key| account[key].as_u64().unwrap())
}

/// A message as it was handed to the other server, and who is still to get it.
struct Sent {
    from: &'static str,
    pending: Vec<&'static str>,
    content: Vec<u8>,
}

/// What servers like to break: 8-bit bytes, dots, lines of 998 bytes and far more, bounces, several recipients.
fn messages(label: &str, count: u64) -> BTreeMap<String, Sent> {
    let message = |n: u64| {
        let Message { message_id, mut content } = Message::new(label, n, 400 + usize::try_from(n % 7).unwrap() * 900);
        if n.is_multiple_of(5) {
            content.extend([vec![b'.'; 1], vec![b'x'; 5_000], b"\r\n".to_vec()].concat());
        }
        let from = if n.is_multiple_of(10) { "" } else { "sender@example.net" };
        let pending =
            if n.is_multiple_of(4) { vec!["box@example.test", "two@example.test"] } else { vec!["box@example.test"] };
        (message_id, Sent { from, pending, content })
    };
    (0..count).map(message).collect()
}

/// Without the one header that we put in front.
fn behind_our_received(received: &Received) -> Vec<u8> {
    let lines = received.trace.split_inclusive("\r\n");
    let ours: usize =
        lines.clone().take(1).chain(lines.skip(1).take_while(|l| l.starts_with('\t'))).map(str::len).sum();
    assert!(received.trace.starts_with("Received: from ") && received.trace[..ours].contains("mx2.example.test"));
    [&received.trace.as_bytes()[ours..], &received.content].concat()
}

#[track_caller]
fn assert_arrived(primary: &Sink, sent: &BTreeMap<String, Sent>) {
    let mut arrived: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for received in primary.received() {
        let sent = &sent[&received.message_id];
        assert_eq!(received.from, sent.from, "{}", received.message_id);
        assert!(received.content == sent.content, "the bytes of {}", received.message_id);
        for to in received.to {
            assert!(
                arrived.entry(received.message_id.clone()).or_default().insert(to),
                "{} twice",
                received.message_id
            );
        }
    }
    let pending = |sent: &Sent| sent.pending.iter().map(|to| (*to).to_owned()).collect();
    let expected: BTreeMap<String, BTreeSet<String>> =
        sent.iter().map(|(id, sent)| (id.clone(), pending(sent))).collect();
    assert!(arrived == expected, "{} of {} arrived", arrived.len(), expected.len());
}

#[test]
fn a_maildir_needs_to_be_told_whom_it_is_for_and_what_is_no_mail_stays() {
    let directory = scratch();
    let maildir = directory.path().join("maildir");
    for part in ["new", "cur", "tmp"] {
        fs::create_dir_all(maildir.join(part)).unwrap();
    }
    let write = |name: &str, text: &str| fs::write(maildir.join(name), text).unwrap();
    write("new/1.a.host", "Message-ID: <1@x>\nTo: box@example.test\n\n.one\n");
    write("new/2.b.host", "Message-ID: <2@x>\nDelivered-To: two@example.test\nReturn-Path: <a@example.net>\n\ntwo\n");
    // So large that its refusal is known before it has gone over.
    let three = "three\n".repeat(3_000_000);
    write("cur/3.c.host:2,S", &format!("Message-ID: <3@x>\nDelivered-To: who@other.test\n\n{three}"));
    let primary = Sink::opened();
    let daemon = Serve::new(&directory.path().join("data"), primary.port).start();
    let planned = import(&daemon, "maildir", &maildir, &["--dry-run"]).expect_code(3);
    assert_eq!(counts(&planned.account()), [3, 1, 0, 0, 1, 0]);
    assert_eq!(primary.count(), 0);
    let finished = import(&daemon, "maildir", &maildir, &[]).expect_code(3);
    assert_eq!(counts(&finished.account()), [3, 1, 0, 0, 1, 0]);
    assert!(finished.out.contains("--to ADDRESS") && finished.out.contains("no route"), "{}", finished.out);
    let told = ["--to", "box@example.test"];
    // To be had by another recipient is another matter: that one has not got it yet.
    assert_eq!(counts(&import(&daemon, "maildir", &maildir, &told).expect_code(0).account()), [3, 3, 0, 0, 0, 0]);
    assert_eq!(counts(&import(&daemon, "maildir", &maildir, &told).expect_code(0).account()), [3, 0, 3, 0, 0, 0]);
    let received = primary.wait_for(4);
    let of = |id: &str, to: &str| received.iter().find(|r| r.message_id == id && r.to == [to]).unwrap();
    assert_eq!(of("<1@x>", "box@example.test").content, b"Message-ID: <1@x>\r\nTo: box@example.test\r\n\r\n.one\r\n");
    assert_eq!(of("<2@x>", "two@example.test").from, "a@example.net");
    assert_eq!(fs::read_dir(maildir.join("new")).unwrap().count(), 2, "nothing is removed");
    import(&daemon, "postfix", &maildir, &[]).expect_code(1);
    fs::create_dir_all(directory.path().join("empty/new")).unwrap();
    fs::create_dir_all(directory.path().join("empty/cur")).unwrap();
    import(&daemon, "maildir", &directory.path().join("empty"), &[]).expect_code(4);
}

#[test]
fn a_dry_run_promises_what_the_run_does_and_links_are_told() {
    for (policy, code, told) in [("normalize", 3, [2, 2, 0, 0, 0, 0]), ("reject", 3, [2, 1, 0, 0, 1, 0])] {
        let directory = scratch();
        let (maildir, file) = (directory.path().join("maildir"), directory.path().join("restante.toml"));
        fs::create_dir_all(maildir.join("new")).unwrap();
        fs::create_dir_all(maildir.join("cur")).unwrap();
        let text = "Delivered-To: box@example.test\n\nx\n";
        fs::write(maildir.join("new/1.a.host"), text).unwrap();
        fs::write(maildir.join("new/2.b.host"), text.replace("\n\nx", "\n\nbare\rCR")).unwrap();
        std::os::unix::fs::symlink(maildir.join("new/1.a.host"), maildir.join("cur/3.c.host:2,S")).unwrap();
        let data = directory.path().join("data");
        let config = format!(
            "hostname = \"mx2.example.test\"\n[journal]\ndir = {data:?}\n[smtp]\nbare_line_ends = \"{policy}\"\n\
             [[route]]\nname = \"ours\"\ndomains = [\"example.test\"]\nprimary = [\"127.0.0.1:1\"]\n"
        );
        fs::write(&file, config).unwrap();
        let daemon = Serve::by_file(&data, &file).start();
        let planned = import(&daemon, "maildir", &maildir, &["--dry-run"]).expect_code(code);
        let finished = import(&daemon, "maildir", &maildir, &[]).expect_code(code);
        assert_eq!((counts(&planned.account()), counts(&finished.account())), (told, told), "{policy}");
        let why = |finished: &Finished| -> Vec<String> {
            let refused = finished.json().into_iter().filter(|line| line["type"] == "refused");
            refused.map(|line| line["why"].to_string()).collect()
        };
        assert_eq!(why(&planned), why(&finished));
        let left: Vec<Value> = finished.json().into_iter().filter(|line| line["type"] == "left").collect();
        assert!(left.len() == 1 && left[0].to_string().contains("symbolic link"), "{left:?}");
    }
}

#[test]
fn without_a_daemon_nothing_is_taken_and_it_says_so() {
    let directory = scratch();
    let maildir = directory.path().join("maildir");
    fs::create_dir_all(maildir.join("new")).unwrap();
    fs::create_dir_all(maildir.join("cur")).unwrap();
    fs::write(maildir.join("new/1.a.host"), "Delivered-To: box@example.test\n\nx\n").unwrap();
    let mut daemon = Serve::new(&directory.path().join("data"), 1).start();
    daemon.stop();
    let finished = import(&daemon, "maildir", &maildir, &[]).expect_code(5);
    assert_eq!(finished.account()["complete"], false);
}

mod needs_root {
    use super::*;
    use crate::harness::exim::Exim;
    use crate::harness::postfix::{Postfix, Role};
    use crate::harness::{Client, eventually};
    use std::path::PathBuf;

    const LATER: &str = "451 4.2.1 later";

    fn files(directory: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
    }

    /// Five hundred that wait at Postfix: forty were delivered to one of two recipients.
    fn fill(postfix: &Postfix, primary: &mut Sink, sent: &mut BTreeMap<String, Sent>) {
        let waiting = || files(&postfix.queue().join("deferred"));
        primary.answer("later@example.test", LATER);
        primary.open();
        let mut client = Client::ehlo(postfix.smtp);
        for (id, one) in messages("half", 40) {
            let reply = client.send(one.from, &["box@example.test", "later@example.test"], &one.content).unwrap();
            assert_eq!(reply.code, 250, "{}", reply.text());
            sent.insert(id, Sent { pending: vec!["later@example.test"], ..one });
        }
        eventually("half of each message at the primary", || {
            (primary.count() == 40 && waiting().len() == 40).then_some(())
        });
        primary.close();
        let rest = messages("whole", 460);
        std::thread::scope(|scope| {
            let rest: Vec<&Sent> = rest.values().collect();
            for some in rest.chunks(115) {
                let some = some.to_vec();
                scope.spawn(move || {
                    let mut client = Client::ehlo(postfix.smtp);
                    for one in some {
                        assert_eq!(client.send(one.from, &one.pending, &one.content).unwrap().code, 250);
                    }
                });
            }
        });
        sent.extend(rest);
        eventually("five hundred deferred messages", || (waiting().len() == 500).then_some(()));
    }

    #[test]
    fn postfixs_deferred_mail_arrives_with_envelope_and_bytes_and_once() {
        let directory = scratch();
        let (mut before, mut primary) = (Sink::closed(), Sink::closed());
        let postfix = Postfix::start(Role::Sender(before.port));
        let mut sent = BTreeMap::new();
        fill(&postfix, &mut before, &mut sent);
        let data = directory.path().join("data");
        let mut daemon = Serve::new(&data, primary.port).start();
        let refused = import(&daemon, "postfix", &postfix.queue(), &[]).expect_code(1);
        assert!(refused.err.contains("stop it first"), "{}", refused.err);
        let some: Vec<PathBuf> = files(&postfix.queue().join("deferred")).into_iter().take(3).collect();
        for path in &some {
            run(postfix.tool("postsuper").args(["-h", path.file_name().unwrap().to_str().unwrap()])).expect_code(0);
        }
        postfix.stop();
        let planned = import(&daemon, "postfix", &postfix.queue(), &["--dry-run"]).expect_code(0).account();
        assert_eq!(counts(&planned), [500, 500, 0, 0, 0, 3]);
        // Cut off half way, then the daemon too.
        let mut cut =
            command(&daemon, "postfix", &postfix.queue()).stdout(std::process::Stdio::null()).spawn().unwrap();
        eventually("the first imported messages", || {
            (daemon.metric("restante_messages_accepted_total", "").unwrap_or(0.0) > 20.0).then_some(())
        });
        cut.kill().unwrap();
        cut.wait().unwrap();
        daemon.kill9();
        daemon = Serve::new(&data, primary.port).start();
        let finished = import(&daemon, "postfix", &postfix.queue(), &[]).expect_code(0).account();
        let [all, taken, known, ..] = counts(&finished);
        assert!(all == 500 && taken + known == 500 && known > 20, "{finished}");
        assert_eq!(counts(&import(&daemon, "postfix", &postfix.queue(), &[]).expect_code(0).account())[1..3], [0, 500]);

        primary.open();
        primary.wait_for(497);
        assert_eq!(daemon.ask(&["queue", "ls", "--state", "hold"]).len(), 3);
        daemon.ask(&["queue", "release", "--all", "--reason", "imported"]);
        primary.wait_for(500);
        daemon.wait_until_empty();
        assert_arrived(&primary, &sent);
        let held = files(&postfix.queue().join("hold"));
        let files: Vec<PathBuf> = files(&postfix.queue().join("deferred")).into_iter().chain(held).collect();
        assert_eq!(files.len(), 500, "the source is as it was");
        let printed = postfix.tool("postcat").arg("-bh").args(&files[..40]).output().unwrap();
        let mut printed = printed.stdout.as_slice();
        let received = primary.received();
        for file in &files[..40] {
            // As Postfix's own tool shows it, its Received header included.
            let is_it = |r: &&Received| {
                let text: Vec<u8> = behind_our_received(r).into_iter().filter(|b| *b != b'\r').collect();
                printed.starts_with(&text)
            };
            let it = received.iter().find(is_it).unwrap_or_else(|| panic!("{} as postcat shows it", file.display()));
            printed = &printed[behind_our_received(it).iter().filter(|b| **b != b'\r').count()..];
        }
        assert!(printed.is_empty());
    }

    fn batch<'a>(messages: impl IntoIterator<Item = (&'a Sent, &'a [&'a str])>) -> Vec<u8> {
        let mut batch = Vec::new();
        for (sent, to) in messages {
            batch.extend(format!("MAIL FROM:<{}>\r\n", sent.from).into_bytes());
            to.iter().for_each(|to| batch.extend(format!("RCPT TO:<{to}>\r\n").into_bytes()));
            batch.extend([b"DATA\r\n".as_slice(), &stuffed(&sent.content), b".\r\n"].concat());
        }
        batch
    }

    #[test]
    fn exims_spool_arrives_with_envelope_and_bytes_and_what_was_frozen_stays_so() {
        let directory = scratch();
        let (mut before, mut primary) = (Sink::closed(), Sink::closed());
        let exim = Exim::new(before.port);
        before.answer("later@example.test", LATER);
        before.open();
        let mut sent = messages("half", 20);
        let both = ["box@example.test", "later@example.test"];
        exim.take(&batch(sent.values().map(|one| (one, &both[..]))));
        exim.run(&["-qff"]).expect_code(0);
        before.wait_for(sent.len());
        before.close();
        sent.values_mut().for_each(|one| one.pending = vec!["later@example.test"]);
        let rest = messages("whole", 480);
        exim.take(&batch(rest.values().map(|one| (one, &one.pending[..]))));
        sent.extend(rest);
        let ids = exim.ids();
        assert_eq!(ids.len(), 500);
        exim.run(&[&["-Mf"], &ids.iter().step_by(250).map(String::as_str).collect::<Vec<_>>()[..]].concat());

        let daemon = Serve::new(&directory.path().join("data"), primary.port).start();
        let finished = import(&daemon, "exim", &exim.spool(), &[]).expect_code(0);
        assert_eq!(counts(&finished.account()), [500, 500, 0, 0, 0, 2], "{}", finished.err);
        assert_eq!(counts(&import(&daemon, "exim", &exim.spool(), &[]).expect_code(0).account())[1..3], [0, 500]);
        primary.open();
        primary.wait_for(498);
        let held = daemon.ask(&["queue", "ls", "--state", "hold"]);
        assert!(held.len() == 2 && held[0].to_string().contains("frozen in the Exim spool"), "{held:?}");
        daemon.ask(&["queue", "release", "--all", "--reason", "imported"]);
        primary.wait_for(500);
        daemon.wait_until_empty();
        assert_arrived(&primary, &sent);
        assert_eq!(exim.ids(), ids, "the source is as it was");
        for id in ids.iter().step_by(25) {
            // As Exim's own tool shows it, its Received header included.
            let shown = exim.run(&["-Mvc", id]).expect_code(0).out;
            let message_id = shown.lines().find_map(|line| line.strip_prefix("Message-ID: ")).unwrap();
            let it = primary.received().into_iter().find(|r| r.message_id == message_id).unwrap();
            assert_eq!(String::from_utf8_lossy(&behind_our_received(&it)).replace('\r', ""), shown.replace('\r', ""));
        }
    }
}
