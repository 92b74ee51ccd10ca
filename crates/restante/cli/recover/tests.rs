//! `recover` on small journals: what it changes, what it leaves alone, and how it ends.

use super::super::journal::testing::{
    OUTPUT, command_line, contents, first_segment, large, message, rot, sent, served, tear, write, writer,
};
use super::*;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn recover(dir: &Path, flags: &str) -> anyhow::Result<u8> {
    let cli = command_line(dir, &format!("recover {flags}"));
    let super::super::args::Command::Recover(args) = &cli.command else { panic!("not recover") };
    run(&cli, args, OUTPUT)
}

/// Every file below `dir`, with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut files(&path));
        } else {
            found.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    found
}

fn segments(dir: &Path) -> usize {
    files(dir).keys().filter(|path| path.extension().is_some_and(|ending| ending == "rj")).count()
}

/// A journal that was not closed, with one message sent and one pending.
fn crashed() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path());
    let records = [
        served("127.0.0.1:1"),
        message(&[b'x'; 900], &["a@example.test"], None),
        message(&[b'y'; 900], &["b@example.test"], None),
    ];
    let ids = write(&mut writer, &records);
    write(&mut writer, &[sent(ids[1], 0)]);
    writer.prove_last_batch().unwrap();
    directory
}

#[test]
fn a_missing_directory_is_not_made_and_an_empty_one_is_clean() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("nowhere");
    assert!(recover(&missing, "").unwrap_err().to_string().starts_with("there is no directory"));
    assert!(!missing.exists());
    assert_eq!(recover(directory.path(), "").unwrap(), 0);
    assert_eq!(recover(directory.path(), "--deliver").unwrap(), 0);
    assert_eq!(files(directory.path()).into_keys().collect::<Vec<_>>(), [directory.path().join("lock")]);
}

#[test]
fn a_torn_end_is_torn_once_and_an_old_segment_is_never_touched() {
    let directory = crashed();
    let dir = directory.path();
    tear(dir);
    std::fs::write(dir.join("index.sqlite-wal"), "old").unwrap();
    let before = std::fs::read(first_segment(dir)).unwrap();
    let balance = contents(dir).ledger.balance();
    assert_eq!((balance.pending, balance.sent), (1, 1));
    assert_eq!(recover(dir, "").unwrap(), 0);
    assert_eq!(std::fs::read(first_segment(dir)).unwrap(), before);
    assert!(!dir.join("index.sqlite-wal").exists());
    let aside: Vec<_> = files(&dir.join("torn")).into_values().collect();
    assert!(aside.concat().ends_with(&[0xA5; 333]));
    let after = contents(dir);
    assert_eq!((after.replay.report.state(), after.ledger.balance()), (State::Clean, balance));
    // From here on it changes nothing.
    let settled = segments(dir);
    assert_eq!(recover(dir, "").unwrap(), 0);
    assert_eq!((segments(dir), contents(dir).replay.report.state()), (settled, State::Clean));
    let log = std::fs::read_to_string(dir.join("log").join(log::CURRENT)).unwrap();
    assert!(log.contains("\"recovered\"") && log.contains("\"torn\""), "{log}");
}

#[test]
fn damage_stays_damage_and_costs_one_message() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let mut writer = writer(dir);
    let records = [b'x', b'y'].map(|b| message(&[b; 900], &["a@example.test"], None));
    write(&mut writer, &records);
    writer.close().unwrap();
    rot(dir, &[b'x'; 900]);
    for _ in 0..2 {
        assert_eq!(recover(dir, "").unwrap(), 9);
        let balance = contents(dir).ledger.balance();
        assert_eq!((balance.pending, balance.quarantined), (1, 1));
        assert_eq!((segments(dir), files(&dir.join("torn")).len()), (1, 1));
    }
}

#[test]
fn orphans_leave_blob_unlost_and_the_blobs_of_messages_stay() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let mut writer = writer(dir);
    write(
        &mut writer,
        &[large(dir, 1, &[b'x'; 900], &["a@example.test"]), message(b"m\r\n", &["a@example.test"], None)],
    );
    writer.close().unwrap();
    let orphan = || drop(large(dir, 2, b"no record names me", &["a@example.test"]));
    let part = dir.join("blob/00000000000000000000000000000003.part");
    let blobs = || files(&dir.join("blob")).len();
    orphan();
    std::fs::write(&part, "half").unwrap();
    assert_eq!((recover(dir, "").unwrap(), blobs()), (0, 1));
    let aside = files(&dir.join("torn"));
    assert_eq!(aside.values().collect::<Vec<_>>(), [b"no record names me"]);
    assert!(aside.keys().all(|path| path.ends_with("00000000000000000000000000000002.blob")), "{aside:?}");
    // A damaged journal may have lost the record of the whole one.
    orphan();
    std::fs::write(&part, "half").unwrap();
    rot(dir, b"m\r\n");
    assert_eq!((recover(dir, "").unwrap(), blobs()), (9, 2));
    assert!(!part.exists());
}

#[test]
fn a_dry_run_changes_nothing() {
    let directory = crashed();
    let dir = directory.path();
    tear(dir);
    drop(large(dir, 2, b"no record names me", &["a@example.test"]));
    let before = files(dir);
    let out = dir.join("out");
    let flags = format!("--dry-run --deliver --export {}", out.display());
    assert_eq!(recover(dir, &flags).unwrap(), 0);
    assert_eq!(files(dir), before);
    assert!(!out.exists());
    let cli = command_line(dir, &format!("recover {flags}"));
    let super::super::args::Command::Recover(args) = &cli.command else { panic!("not recover") };
    let contents = contents(dir);
    let plan = deliver::plan(&cli, None, &contents.ledger).ok();
    let said = intentions(&contents, args, plan.as_ref());
    assert!(said[0].starts_with("set aside 1 range of ") && said[2].starts_with("export 1 message to "), "{said:?}");
    assert_eq!(said[1], "set aside 1 file of no message in torn/, 18 bytes");
    assert_eq!(said[3], "offer 1 message of example.test to 127.0.0.1:1");
}

#[test]
fn a_journal_in_use_is_left_alone() {
    let directory = crashed();
    let _daemon = DirStorage::open(directory.path()).unwrap().lock().unwrap();
    let before = files(directory.path());
    assert_eq!(recover(directory.path(), "").unwrap(), 8);
    assert_eq!(recover(directory.path(), "--dry-run").unwrap(), 8);
    assert_eq!(files(directory.path()), before);
}

#[test]
fn an_export_over_an_existing_file_writes_none_and_the_account_is_told() {
    let directory = crashed();
    let dir = directory.path();
    let out = dir.join("out");
    let flags = format!("--export {}", out.display());
    assert_eq!(recover(dir, &flags).unwrap(), 0);
    let before = files(&out);
    assert_eq!(recover(dir, &flags).unwrap(), 1);
    assert_eq!(files(&out), before);
}

#[test]
fn a_step_that_fails_hides_neither_the_account_nor_what_comes_after() {
    let directory = crashed();
    let dir = directory.path();
    tear(dir);
    std::fs::write(dir.join("index.sqlite"), "old").unwrap();
    std::fs::write(dir.join("torn"), "no directory").unwrap();
    let segments_before = segments(dir);
    assert_eq!(recover(dir, "--deliver").unwrap(), 1);
    assert!(!dir.join("index.sqlite").exists(), "the steps behind it were done");
    assert_eq!(segments(dir), segments_before, "nothing says that the torn end is dealt with");
    std::fs::remove_file(dir.join("torn")).unwrap();
    assert_eq!(recover(dir, "").unwrap(), 0);
    assert_eq!(files(&dir.join("torn")).len(), 1);
}

#[test]
fn the_exit_code_of_a_delivery_counts_what_is_still_pending() {
    let balance =
        |pending, sent| Balance { transactions: 1, accepted: pending + sent, pending, sent, ..Balance::default() };
    let round = |sent| Some(Round { sent, ..Round::default() });
    let stopped = Some(Round { interrupted: true, ..Round::default() });
    for (state, balance, round, expected) in [
        (State::Clean, balance(5, 0), None, 0),
        (State::Clean, balance(0, 5), round(5), 0),
        (State::Torn, balance(0, 5), round(0), 0),
        (State::Torn, balance(2, 3), round(3), 3),
        (State::Clean, balance(5, 0), round(0), 1),
        (State::Damaged, balance(0, 5), round(5), 9),
        (State::Clean, balance(5, 0), stopped, 130),
        (State::Clean, Balance { accepted: 1, ..Balance::default() }, None, 9),
    ] {
        assert_eq!(exit_code(state, balance, round.as_ref()), expected, "{state:?} {balance:?} {round:?}");
    }
}

#[test]
fn the_last_words_say_what_to_do() {
    assert_eq!(next_steps(0, 0, true), ["next: nothing to do, nothing is pending"]);
    let only = |steps: Vec<String>| {
        assert_eq!(steps.len(), 1, "{steps:?}");
        steps.concat()
    };
    assert!(only(next_steps(3, 0, false)).starts_with("next: 3 recipients waiting: start the daemon, or run"));
    assert!(only(next_steps(1, 0, true)).starts_with("next: 1 recipient still waiting"));
    assert!(only(next_steps(2, 2, false)).contains("queue release"));
    assert_eq!(next_steps(3, 2, false).len(), 2);
}
