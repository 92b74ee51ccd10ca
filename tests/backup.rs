//! Journals that become two and one again: backups made at work, a daemon on the copy, and what other journals know taken over,
//! with the daemon dead and beside live mail. Nothing settled comes back, nothing is there twice, and nothing is lost.

use crate::harness::client::sha256;
use crate::harness::load::{Load, Plan};
use crate::harness::{
    Client, Daemon, Finished, Ledger, Message, Serve, Sink, cli, eventually, queued_id, restante, run, scratch,
};
use crate::storage::segments;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What is larger than 256 KiB has a file of its own.
const LARGE_BYTES: usize = 300 << 10;

fn backup(data: &Path, copy: &Path) -> Finished {
    run(restante().args(["journal", "backup", "--json"]).arg(copy).arg("--data").arg(data).args(["--rate", "1GiB"]))
}

fn copied(data: &Path, copy: &Path) -> Value {
    backup(data, copy).expect_code(0).account()
}

fn recover(data: &Path, from: &[&Path], code: i32) -> Value {
    let mut command = restante();
    command.args(["recover", "--json", "--data"]).arg(data);
    for from in from {
        command.arg("--from").arg(from);
    }
    run(&mut command).expect_code(code).account()
}

fn verified(data: &Path) -> Value {
    cli(data, &["verify", "--json"]).expect_code(0).account()
}

fn counts(account: &Value) -> [u64; 4] {
    ["transactions", "pending", "sent", "quarantined"].map(|key| account[key].as_u64().unwrap())
}

/// What was taken over: added, mended, settled, known.
fn merged(account: &Value) -> [u64; 4] {
    ["added", "mended", "settled", "known"].map(|key| account["from"][0][key].as_u64().unwrap())
}

/// Messages `from..to`, every seventh a large one; their digests.
fn send(daemon: &Daemon, label: &str, range: std::ops::Range<u64>) -> BTreeSet<String> {
    let mut client = Client::ehlo(daemon.smtp);
    let mut digests = BTreeSet::new();
    for n in range {
        let message = Message::new(label, n, if n % 7 == 3 { LARGE_BYTES } else { 700 });
        queued_id(&client.send("a@example.net", &["box@example.test"], &message.content).unwrap());
        digests.insert(sha256(&message.content));
    }
    digests
}

fn digests(primary: &Sink) -> BTreeSet<String> {
    primary.received().into_iter().map(|received| received.sha256).collect()
}

/// A journal with `sent` messages sent and `pending` waiting, and nobody at work; the digests of the latter.
fn journal(data: &Path, label: &str, sent: u64, pending: u64) -> BTreeSet<String> {
    let primary = Sink::opened();
    let mut daemon = Serve::new(data, primary.port).start();
    send(&daemon, label, 0..sent);
    daemon.wait_until_empty();
    drop(primary);
    let waiting = send(&daemon, label, sent..sent + pending);
    daemon.kill9();
    waiting
}

#[test]
fn a_backup_under_load_is_a_journal_that_delivers_what_is_pending_and_nothing_else() {
    let directory = scratch();
    let (data, copy) = (directory.path().join("data"), directory.path().join("copy"));
    let mut primary = Sink::opened();
    let mut daemon = Serve::new(&data, primary.port).start();
    let early = send(&daemon, "early", 0..10);
    daemon.wait_until_empty();
    primary.close();
    // Many more than come in during three backups.
    let plan =
        Plan { messages: 2_000, sessions: 8, least_bytes: 500, most_bytes: 9_000, id_of: |reply| queued_id(reply) };
    let load = Load::start(plan, daemon.smtp, Ledger::create(&directory.path().join("ledger")));
    let (mut seen, mut more) = (0, BTreeSet::new());
    while seen < 3 {
        more.extend(send(&daemon, "large", seen * 7 + 3..seen * 7 + 4));
        let before = load.ledger.len() as u64;
        assert!(before < 1_900, "the load was over before backup {seen}");
        let end = copied(&data, &copy)["end"]["offset"].as_u64().unwrap();
        let newest = segments(&data).pop().unwrap();
        assert!(end < fs::metadata(newest).unwrap().len(), "what was being written is cut, in front of the zeros");
        let account = verified(&copy);
        assert_eq!(account["state"], "clean", "{account}");
        // What had its 250 before the copying began is in the copy.
        assert!(counts(&account)[0] >= before + 11 + seen, "{account}, {before}");
        seen += 1;
    }
    let acknowledged = load.finish().close();
    eventually("a copy to which nothing is new", || (copied(&data, &copy)["bytes"] == 0).then_some(()));
    more.extend(send(&daemon, "more", 0..2));
    let last = copied(&data, &copy);
    assert!(last["segments"].as_u64().unwrap() <= 2 && last["blobs"] == 0, "{last}");
    assert_eq!(backup(&data, &data).code, Some(2), "onto itself");
    assert_eq!(verified(&copy)["transactions"], 2_012 + seen);
    assert_eq!(counts(&verified(&copy)), counts(&verified(&data)));
    daemon.kill9();

    let elsewhere = Sink::opened();
    let mut heir = Serve::new(&copy, elsewhere.port).start();
    let locked = backup(&data, &copy).expect_code(8);
    assert!(locked.err.contains("is at work in"), "{}", locked.err);
    heir.wait_until_empty();
    let expected: BTreeSet<String> = acknowledged.into_values().map(|entry| entry.sha256).chain(more).collect();
    assert_eq!((elsewhere.count() as u64, digests(&elsewhere) == expected), (2_002 + seen, true));
    assert!(digests(&elsewhere).is_disjoint(&early), "what was settled is not delivered again");
    heir.stop();
    let refused = backup(&data, &copy).expect_code(1);
    assert!(refused.err.contains("a daemon ran on that copy"), "{}", refused.err);
    assert_eq!(verified(&copy)["sent"], 2_012 + seen);
}

#[test]
fn what_two_journals_know_is_one_journal_once() {
    let directory = scratch();
    let [ours, theirs] = ["ours", "theirs"].map(|name| directory.path().join(name));
    let mut expected = journal(&ours, "ours", 3, 4);
    expected.extend(journal(&theirs, "theirs", 5, 9));
    let dry = cli(&ours, &["recover", "--dry-run", "--from", theirs.to_str().unwrap()]).expect_code(0);
    assert!(dry.out.contains("would add 14 messages, mended 0, settled 0, known already 0"), "{}", dry.out);
    assert_eq!(counts(&verified(&ours)), [7, 4, 3, 0]);
    let first = recover(&ours, &[&theirs, &theirs], 0);
    assert_eq!((counts(&first), merged(&first)), ([21, 13, 8, 0], [14, 0, 0, 0]));
    assert_eq!(first["from"][1]["known"], 14, "{first}");
    let again = recover(&ours, &[&theirs], 0);
    assert_eq!((counts(&again), merged(&again)), (counts(&first), [0, 0, 0, 14]));
    let account = verified(&ours);
    assert_eq!((counts(&account), &account["state"]), (counts(&first), &"clean".into()));
    assert_eq!(account["orphans"], Value::Array(vec![]));
    let primary = Sink::opened();
    let mut daemon = Serve::new(&ours, primary.port).start();
    daemon.wait_until_empty();
    daemon.stop();
    assert_eq!((primary.count(), digests(&primary) == expected), (13, true));
    // What was sent meanwhile is sent, whatever the other journal thinks; and it learns of it.
    assert_eq!(merged(&recover(&ours, &[&theirs], 0)), [0, 0, 0, 14]);
    let learned = recover(&theirs, &[&ours], 0);
    assert_eq!((merged(&learned), counts(&learned)), ([7, 0, 9, 5], [21, 0, 21, 0]));
    assert_eq!(counts(&verified(&theirs)), [21, 0, 21, 0]);
}

#[test]
fn a_rescued_journal_gives_a_new_one_its_mail_and_says_where_it_goes() {
    let directory = scratch();
    let [new, old] = ["new", "old"].map(|name| directory.path().join(name));
    let primary = Sink::opened();
    primary.answer("box@example.test", "450 4.2.1 not now");
    let mut daemon = Serve::new(&old, primary.port).start();
    let waiting = send(&daemon, "old", 0..5);
    eventually("all of them tried", || (primary.attempts("box@example.test") >= 5).then_some(()));
    daemon.kill9();
    fs::create_dir(&new).unwrap();
    primary.answer("box@example.test", "250 2.1.5 Ok");
    let done = run(restante().args(["recover", "--json", "--deliver", "--data"]).arg(&new).arg("--from").arg(&old));
    let account = done.expect_code(0).account();
    assert_eq!((counts(&account), merged(&account)), ([5, 0, 5, 0], [5, 0, 0, 0]));
    assert!(digests(&primary) == waiting);
}

#[test]
fn damage_in_either_journal_costs_no_message_that_the_other_has() {
    let directory = scratch();
    let [ours, copy, lost] = ["ours", "copy", "lost"].map(|name| directory.path().join(name));
    journal(&ours, "ours", 0, 3);
    copied(&ours, &copy);
    let rot = |data: &Path, text: &str| {
        let path = &segments(data)[0];
        let mut bytes = fs::read(path).unwrap();
        let at = bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
        bytes[at] ^= 4;
        fs::write(path, bytes).unwrap();
    };
    // A start follows, so that what is there is proven.
    let primary = Sink::closed();
    for data in [&ours, &copy] {
        Serve::new(data, primary.port).start().stop();
    }
    rot(&ours, "<ours.1@load");
    rot(&copy, "<ours.2@load");
    fs::create_dir(&lost).unwrap();
    let taken = recover(&lost, &[&copy], 9);
    assert_eq!((merged(&taken), taken["from"][0]["quarantined"].as_array().unwrap().len()), ([2, 0, 0, 0], 1));
    assert_eq!(counts(&recover(&ours, &[], 9)), [3, 2, 0, 1]);
    let healed = recover(&ours, &[&copy], 9);
    assert_eq!((counts(&healed), merged(&healed)), ([3, 3, 0, 0], [0, 1, 0, 2]));
    assert_eq!(merged(&recover(&ours, &[&copy], 9)), [0, 0, 0, 3]);
    let open = Sink::opened();
    let daemon = Serve::new(&ours, open.port).start();
    daemon.wait_until_empty();
    assert_eq!((open.count(), digests(&open).len()), (3, 3));
}

#[test]
fn a_running_daemon_takes_over_what_another_journal_knows_beside_live_mail() {
    let directory = scratch();
    let [ours, theirs] = ["ours", "theirs"].map(|name| directory.path().join(name));
    let mut expected = journal(&theirs, "theirs", 6, 120);
    let primary = Sink::opened().digests_only();
    let mut daemon = Serve::new(&ours, primary.port).start();
    assert_eq!(cli(&ours, &["recover"]).code, Some(8));
    let plan =
        Plan { messages: 300, sessions: 4, least_bytes: 500, most_bytes: 4_000, id_of: |reply| queued_id(reply) };
    let load = Load::start(plan, daemon.smtp, Ledger::create(&directory.path().join("ledger")));
    let first = recover(&ours, &[&theirs], 0);
    assert_eq!(merged(&first), [126, 0, 0, 0], "{first}");
    let acknowledged = load.finish().close();
    daemon.wait_until_empty();
    let again = recover(&ours, &[&theirs], 0);
    assert_eq!((merged(&again), counts(&again)), ([0, 0, 0, 126], [426, 0, 426, 0]));
    let busy = Serve::new(&theirs, primary.port).start();
    let locked = run(restante().args(["recover", "--data"]).arg(&ours).arg("--from").arg(&theirs)).expect_code(8);
    assert!(locked.err.contains("a daemon runs on"), "{}", locked.err);
    drop(busy);
    expected.extend(acknowledged.into_values().map(|entry| entry.sha256));
    daemon.stop();
    let account = verified(&ours);
    assert_eq!((counts(&account), &account["state"]), ([426, 0, 426, 0], &"clean".into()));
    assert!(digests(&primary) == expected);
}

#[test]
fn a_backup_within_the_journal_would_be_lost_with_it() {
    let directory = scratch();
    let data = directory.path().join("data");
    journal(&data, "within", 0, 1);
    for within in ["", "copy", "blob/deep/copy"] {
        let refused = backup(&data, &data.join(within)).expect_code(2);
        assert!(refused.err.contains("name a directory elsewhere"), "{}", refused.err);
    }
    assert!(!data.join("copy").exists() && !data.join("blob/deep").exists());
}
