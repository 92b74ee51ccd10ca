//! Bad bytes: torn tails, rot in a sealed segment, and the account that `recover` and `verify` give of them. These tests refuse
//! to know the format: they find a message's content in a file by searching for it.

use crate::custody::assert_balanced;
use crate::harness::{Client, Daemon, Message, Serve, Sink, cli, queued_id, scratch};
use crate::storage::segments;
use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Sends `count` small messages with nobody to deliver to; their ids, in order.
pub fn fill(daemon: &Daemon, count: u64) -> Vec<(String, Message)> {
    let mut client = Client::ehlo(daemon.smtp);
    let send = |n| {
        let message = Message::new("damage", n, 2000);
        (queued_id(&client.send("a@example.net", &["box@example.test"], &message.content).unwrap()), message)
    };
    (0..count).map(send).collect()
}

fn account(data: &Path, command: &str, code: i32) -> Value {
    let account = cli(data, &[command, "--json"]).expect_code(code).account();
    assert_eq!(account["type"], command);
    assert_balanced(&account);
    account
}

/// The account without what may differ between two runs: its type and the place of what was set aside.
fn counts(account: &Value) -> Vec<&Value> {
    ["transactions", "accepted", "pending", "sent", "bounced", "expired", "removed", "quarantined"]
        .map(|k| &account[k])
        .to_vec()
}

#[test]
fn a_missing_directory_is_1_and_an_empty_one_is_clean_zeros() {
    let directory = scratch();
    for command in ["recover", "verify"] {
        cli(&directory.path().join("nowhere"), &[command]).expect_code(1);
        assert!(!directory.path().join("nowhere").exists(), "{command} made the directory it missed");
        let empty = directory.path().join(command);
        fs::create_dir(&empty).unwrap();
        let account = account(&empty, command, 0);
        assert_eq!(account["state"], "clean", "{account}");
        assert!(counts(&account).iter().all(|count| **count == json!(0)), "{account}");
    }
}

#[test]
fn an_emptied_directory_is_as_good_as_new() {
    let directory = scratch();
    let primary = Sink::opened();
    let data = directory.path().join("data");
    for _ in 0..2 {
        let mut daemon = Serve::new(&data, primary.port).start();
        fill(&daemon, 2);
        daemon.wait_until_empty();
        daemon.stop();
        for entry in fs::read_dir(&data).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
    }
    assert_eq!(primary.count(), 4);
}

#[test]
fn files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let directory = scratch();
    let data = directory.path().join("data");
    let daemon = Serve::new(&data, Sink::closed().port).start();
    fill(&daemon, 1);
    let mut open = vec![data];
    while let Some(path) = open.pop() {
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        if path.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            open.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else {
            assert_eq!(mode, 0o600, "{}", path.display());
        }
    }
}

#[test]
fn recover_twice_gives_the_same_account() {
    let directory = scratch();
    let mut daemon = Serve::new(directory.path(), Sink::closed().port).start();
    fill(&daemon, 10);
    daemon.kill9();
    let first = account(directory.path(), "recover", 0);
    assert_eq!((&first["transactions"], &first["pending"]), (&json!(10), &json!(10)), "{first}");
    for command in ["recover", "verify", "recover"] {
        let again = account(directory.path(), command, 0);
        assert_eq!((counts(&first), &again["state"]), (counts(&again), &json!("clean")), "{command}: {again}");
    }
}

#[test]
fn a_torn_tail_is_torn_once_and_costs_nothing() {
    let directory = scratch();
    let data = directory.path();
    let mut primary = Sink::closed();
    let mut daemon = Serve::new(data, primary.port).start();
    let sent = fill(&daemon, 10);
    daemon.kill9();
    let segment = segments(data).pop().unwrap();
    OpenOptions::new().append(true).open(&segment).unwrap().write_all(&[0xA5; 333]).unwrap();
    let torn_bytes = fs::read(&segment).unwrap();
    let seen = account(data, "verify", 0);
    assert_eq!((&seen["state"], &seen["pending"]), (&json!("torn"), &json!(10)), "{seen}");
    assert_eq!(fs::read(&segment).unwrap(), torn_bytes, "verify only reads");
    let recovered = account(data, "recover", 0);
    assert_eq!((&recovered["state"], counts(&recovered)), (&json!("torn"), counts(&seen)), "{recovered}");
    let aside: u64 = fs::read_dir(data.join("torn")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(aside >= 333, "torn bytes are set aside, not dropped: {aside} bytes in torn/");
    for command in ["verify", "recover"] {
        assert_eq!(account(data, command, 0)["state"], "clean", "{command} after the first recover");
    }
    let mut daemon = Serve::new(data, primary.port).start();
    primary.open();
    assert_eq!(primary.wait_for(10).len(), sent.len());
    daemon.wait_until_empty();
    daemon.stop();
    assert_eq!(account(data, "verify", 0)["state"], "clean");
}

#[test]
fn a_daemon_started_on_a_torn_tail_needs_no_recover() {
    let directory = scratch();
    let primary = Sink::opened();
    primary.answer("box@example.test", "451 4.2.1 later");
    let mut daemon = Serve::new(directory.path(), primary.port).start();
    fill(&daemon, 5);
    daemon.kill9();
    let segment = segments(directory.path()).pop().unwrap();
    OpenOptions::new().append(true).open(&segment).unwrap().write_all(&[0x5A; 77]).unwrap();
    primary.answer("box@example.test", "250 2.1.5 Ok");
    let daemon = Serve::new(directory.path(), primary.port).start();
    daemon.ask(&["queue", "flush", "--all"]);
    assert_eq!(primary.wait_for(5).len(), 5);
}

/// Where `needle` stands, in which segment.
fn find(data: &Path, needle: &[u8]) -> (std::path::PathBuf, usize) {
    let in_segment = |path: std::path::PathBuf| {
        let bytes = fs::read(&path).unwrap();
        bytes.windows(needle.len()).position(|w| w == needle).map(|at| (path, at))
    };
    segments(data).into_iter().find_map(in_segment).expect("content stands in segments as plain bytes")
}

#[test]
fn a_flipped_byte_in_a_sealed_segment_costs_one_message_and_names_it() {
    let directory = scratch();
    let data = directory.path();
    let mut primary = Sink::closed();
    let mut daemon = Serve::new(data, primary.port).start();
    let sent = fill(&daemon, 20);
    daemon.stop();
    let (victim, message) = &sent[7];
    // In the body, past the headers, where no field of the envelope can stand.
    let (segment, at) = find(data, &message.content[message.content.len() - 200..]);
    let mut bytes = fs::read(&segment).unwrap();
    bytes[at + 100] ^= 0x04;
    fs::write(&segment, &bytes).unwrap();
    let seen = account(data, "verify", 9);
    let name = segment.file_name().unwrap().to_str().unwrap();
    let damage = &seen["damage"][0];
    assert_eq!(
        (&seen["state"], damage["ids"].as_array().unwrap().as_slice()),
        (&json!("damaged"), &[json!(victim)][..]),
        "{seen}"
    );
    assert!(damage["segment"].as_str().is_some_and(|s| s.contains(name)), "{name} is not named: {seen}");
    let (offset, length) = (damage["offset"].as_u64().unwrap(), damage["bytes"].as_u64().unwrap());
    let flipped = u64::try_from(at + 100).unwrap();
    assert!((offset..offset + length).contains(&flipped), "byte {flipped} is not in the damage: {damage}");
    let human = cli(data, &["verify"]).expect_code(9);
    assert!((human.out + &human.err).contains(victim.as_str()), "the human account does not name {victim}");
    let recovered = account(data, "recover", 9);
    assert_eq!((&recovered["quarantined"], &recovered["pending"]), (&json!(1), &json!(19)), "{recovered}");
    let again = account(data, "recover", 9);
    assert_eq!(
        (&again["state"], counts(&again)),
        (&json!("damaged"), counts(&recovered)),
        "damage stays damage: {again}"
    );
    let daemon = Serve::new(data, primary.port).start();
    primary.open();
    let received = primary.wait_for(19);
    daemon.wait_until_empty();
    for (id, message) in &sent {
        let copies = received.iter().filter(|r| r.message_id == message.message_id).count();
        assert_eq!(copies, usize::from(id != victim), "{id}");
    }
}

#[test]
fn verify_beside_a_daemon_at_work_is_clean() {
    let directory = scratch();
    let primary = Sink::opened();
    let daemon = Serve::new(directory.path(), primary.port).start();
    let address = daemon.smtp;
    let load = std::thread::spawn(move || {
        let mut client = Client::ehlo(address);
        for n in 0..150 {
            queued_id(
                &client.send("a@example.net", &["box@example.test"], &Message::new("live", n, 5000).content).unwrap(),
            );
        }
    });
    let mut runs = 0;
    while runs < 3 || !load.is_finished() {
        assert_eq!(account(directory.path(), "verify", 0)["state"], "clean");
        runs += 1;
    }
    load.join().unwrap();
}

#[test]
fn a_stray_file_of_any_number_is_damage_and_stops_nothing() {
    let directory = scratch();
    let mut daemon = Serve::new(directory.path(), Sink::closed().port).start();
    fill(&daemon, 3);
    daemon.stop();
    fs::write(directory.path().join(format!("seg-{}.rj", u64::MAX)), "").unwrap();
    let told = account(directory.path(), "verify", 9);
    assert_eq!((&told["pending"], &told["quarantined"]), (&3.into(), &0.into()), "{told}");
    assert!(told["damage"].as_array().unwrap().len() <= 2, "one entry for a hole, however wide: {told}");
}

#[test]
fn a_start_clears_away_what_a_crash_left_of_large_messages_and_touches_nothing_else() {
    let directory = scratch();
    let primary = Sink::closed();
    let mut daemon = Serve::new(directory.path(), primary.port).start();
    fill(&daemon, 3);
    daemon.kill9();
    let blobs = directory.path().join("blob");
    fs::create_dir_all(&blobs).unwrap();
    let part = "0123456789abcdef0123456789abcdef.part";
    for name in [part, "00000000000000000000000000000001", "notes.txt"] {
        fs::write(blobs.join(name), "left over").unwrap();
    }
    let before = account(directory.path(), "verify", 0);
    let orphan = |name: &str| json!({"file": format!("blob/{name}"), "bytes": 9});
    assert_eq!(before["orphans"], json!([orphan("00000000000000000000000000000001"), orphan(part)]));
    let mut daemon = Serve::new(directory.path(), primary.port).start();
    let left: Vec<_> = fs::read_dir(&blobs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["notes.txt"]);
    let aside = "torn/00000000000000000000000000000001.blob";
    for said in [format!("set aside: {aside}"), "removed 1 unfinished file from blob/, 9 bytes".to_owned()] {
        assert!(daemon.stderr().contains(&said), "{}", daemon.stderr());
    }
    assert_eq!(fs::read_to_string(directory.path().join(aside)).unwrap(), "left over");
    daemon.stop();
    let after = account(directory.path(), "verify", 0);
    assert_eq!((&after["orphans"], counts(&after)), (&json!([]), counts(&before)));
}
