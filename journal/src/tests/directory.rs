//! The real directory: its lock, its syncs, and what it says when something is in the way. Refuses to simulate anything.

use super::*;
use crate::at;
use crate::storage::{DirStorage, LockError, SegmentFile, Storage};
use std::path::Path;

fn directory() -> (tempfile::TempDir, DirStorage) {
    let directory = tempfile::tempdir().unwrap();
    let storage = DirStorage::open(directory.path()).unwrap();
    (directory, storage)
}

/// A name that leads to itself: there, and not to be opened, by root either.
fn knot(path: &Path) {
    std::os::unix::fs::symlink(path.file_name().unwrap(), path).unwrap();
}

#[test]
fn two_writers_never_hold_one_journal() {
    let (directory, storage) = directory();
    assert!(!storage.is_locked().unwrap(), "nobody was ever here");
    assert!(!directory.path().join("lock").exists(), "to look makes nothing");
    let lock = storage.lock().unwrap();
    assert!(storage.is_locked().unwrap());
    assert!(matches!(storage.lock(), Err(LockError::Held)));
    drop(lock);
    assert!(!storage.is_locked().unwrap());
    drop(storage.lock().unwrap());
    // Who cannot tell does not say that nobody is there.
    std::fs::remove_file(directory.path().join("lock")).unwrap();
    knot(&directory.path().join("lock"));
    assert!(matches!(storage.lock(), Err(LockError::Io(_))));
    // The file looks stale, and somebody removes it.
    std::fs::remove_file(directory.path().join("lock")).unwrap();
    let _held = storage.lock().unwrap();
    std::fs::remove_file(directory.path().join("lock")).unwrap();
    assert!(storage.is_locked().unwrap() && matches!(storage.lock(), Err(LockError::Held)));
    std::fs::remove_dir_all(directory.path()).unwrap();
    assert!(storage.is_locked().is_err());
}

/// A writer with one message, on a directory.
fn at_work(storage: &DirStorage) -> Writer<DirStorage> {
    let replay = replay(storage, Depth::Records, &mut Ledger::new()).unwrap();
    let mut writer = Writer::open(storage.clone(), SMALL, &replay, None, SEED, now()).unwrap();
    writer.stage(&message(&content(1), 1), now()).unwrap();
    writer.commit(now()).unwrap();
    writer
}

#[test]
fn a_segment_removed_under_its_writer_ends_it_and_is_put_back_for_the_next() {
    for is_quiet in [true, false] {
        let (directory, storage) = directory();
        let mut writer = at_work(&storage);
        writer.check_segment().unwrap();
        let segment = directory.path().join(crate::header::file_name(1));
        let before = std::fs::read(&segment).unwrap();
        std::fs::remove_file(&segment).unwrap();
        let ended = if is_quiet {
            writer.check_segment().map(drop)
        } else {
            writer.stage(&message(&content(2), 1), now()).unwrap();
            writer.commit(now()).map(drop)
        };
        let ended = ended.unwrap_err();
        assert!(matches!(&ended, CommitError::Failed(error) if error.to_string().ends_with("was put back")), "{ended}");
        assert!(matches!(writer.check_segment(), Err(CommitError::Poisoned(_))));
        assert!(matches!(writer.stage(&message(b"", 1), now()), Err(CommitError::Poisoned(_))));
        drop(writer);
        assert_eq!(std::fs::read(&segment).unwrap() == before, is_quiet);
        // As a start does it.
        sync_last_segment(&storage).unwrap();
        let mut ledger = Ledger::new();
        assert_eq!(replay(&storage, Depth::Everything, &mut ledger).unwrap().report.state(), State::Clean);
        // The second was written before anybody looked, and nobody was told: it may stay.
        assert_eq!(ledger.balance().accepted, if is_quiet { 1 } else { 2 });
        at_work(&storage).close().unwrap();
    }
}

#[test]
fn a_segment_that_cannot_be_put_back_is_said_to_be_lost() {
    let (directory, storage) = directory();
    let mut writer = at_work(&storage);
    std::fs::remove_dir_all(directory.path()).unwrap();
    let ended = writer.check_segment().unwrap_err();
    assert!(ended.to_string().contains("it is lost: "), "{ended}");
    assert!(writer.failure().is_some());
}

#[test]
fn a_directory_is_made_with_those_above_it_and_nothing_else_passes_for_one() {
    let (directory, _) = directory();
    let deep = directory.path().join("a/b/c");
    for _ in 0..2 {
        DirStorage::create_directory(&deep)
            .unwrap()
            .create("file")
            .and_then(|_| std::fs::remove_file(deep.join("file")))
            .unwrap();
    }
    std::fs::write(directory.path().join("file"), "").unwrap();
    assert_eq!(DirStorage::open(&directory.path().join("file")).unwrap_err().kind(), ErrorKind::NotADirectory);
    assert!(DirStorage::create_directory(&directory.path().join("file/below")).is_err());
    assert_eq!(DirStorage::open(&directory.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn after_a_directory_sync_that_failed_none_is_believed() {
    // A file system that syncs no directory.
    let storage = DirStorage::open(Path::new("/proc")).unwrap();
    storage.check_directories().unwrap();
    let first = storage.sync_directory().unwrap_err().to_string();
    for later in [storage.check_directories(), storage.sync_directory(), storage.clone().sync_directory()] {
        let later = later.unwrap_err().to_string();
        assert!(later.contains("failed earlier: /proc: ") && later.contains(&first), "{later}");
    }
}

#[test]
fn what_is_set_aside_lands_in_torn_and_the_damage_stays() {
    let (directory, storage) = directory();
    let replay = || replay(&storage, Depth::Everything, &mut Ledger::new()).unwrap();
    let mut writer = Writer::open(storage.clone(), SMALL, &replay(), None, SEED, now()).unwrap();
    for n in 0..3 {
        writer.stage(&message(&content(n), 1), now()).unwrap();
        writer.commit(now()).unwrap();
    }
    writer.close().unwrap();
    let segment = directory.path().join(crate::header::file_name(1));
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4096] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let report = replay().report;
    assert_eq!(report.state(), State::Damaged);
    let made = set_aside(&storage, &report).unwrap();
    assert_eq!(made, ["torn/00000000000000000001-4096.bin"]);
    let copy = std::fs::read(directory.path().join(&made[0])).unwrap();
    assert_eq!(copy, bytes[4096..4096 + copy.len()]);
    assert_eq!(replay().report, report);
    storage.remove(&made[0]).unwrap();
    let error = storage.remove(&made[0]).unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().starts_with(&made[0]), "{error}");
}

#[test]
fn what_is_in_the_way_of_blobs_is_an_error_and_not_an_empty_shelf() {
    let (directory, storage) = directory();
    std::fs::write(directory.path().join("blob"), "").unwrap();
    assert!(storage.list_blobs().unwrap_err().to_string().starts_with("blob: "));
    assert!(BlobWriter::create(&storage, BlobName::from_bits(1)).is_err());
    let gone = DirStorage::create_directory(&directory.path().join("gone")).unwrap();
    std::fs::remove_dir(directory.path().join("gone")).unwrap();
    assert_eq!(BlobWriter::create(&gone, BlobName::from_bits(1)).err().map(|e| e.kind()), Some(ErrorKind::NotFound));
}

#[test]
fn a_blob_that_cannot_be_opened_is_an_error_and_not_a_loss() {
    let (directory, storage) = directory();
    let replay = |depth| replay(&storage, depth, &mut Ledger::new());
    let mut blob = BlobWriter::create(&storage, BlobName::from_bits(1)).unwrap();
    blob.write(b"large\r\n").unwrap();
    let (envelope, trace) = envelope(1);
    let record = Prepared::accepted_in_blob(&envelope, &trace, &blob.finish().unwrap(), None);
    let mut writer = Writer::open(storage.clone(), SMALL, &replay(Depth::Records).unwrap(), None, SEED, now()).unwrap();
    writer.stage(&record, now()).unwrap();
    let position = writer.commit(now()).unwrap().receipts()[0].position();
    let file = directory.path().join(BlobName::from_bits(1).file());
    std::fs::remove_file(&file).unwrap();
    knot(&file);
    // To quarantine it for want of a descriptor, say, would be for ever.
    for depth in [Depth::Records, Depth::Everything] {
        assert!(matches!(replay(depth), Err(crate::ReplayError::Io(_))), "{depth:?}");
    }
    assert!(matches!(Reader::new(storage.clone()).message(position), Err(ReadError::Io(_))));
}

#[test]
fn reading_in_passing_or_at_hand_gives_what_reading_gives() {
    let (directory, storage) = directory();
    let bytes: Vec<u8> = (0..20_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(directory.path().join("file"), &bytes).unwrap();
    let file = storage.open("file").unwrap();
    for (offset, len) in [(0, 20_000), (0, 1), (4_095, 9_000), (19_000, 5_000), (20_000, 1), (90_000, 10)] {
        let want = &bytes[offset.min(20_000)..(offset + len).min(20_000)];
        let read = |how: &dyn Fn(u64, &mut [u8]) -> Option<usize>| {
            let mut buf = vec![0; len];
            how(offset as u64, &mut buf).map(|n| buf[..n].to_vec())
        };
        assert_eq!(read(&|at, buf| file.read_at(at, buf).ok()).unwrap(), want);
        assert_eq!(read(&|at, buf| file.read_passing(at, buf).ok()).unwrap(), want);
        // Not every file system can say what lies in memory.
        assert!(read(&|at, buf| file.read_at_hand(at, buf)).is_none_or(|read| want.starts_with(&read)));
    }
    std::fs::create_dir(directory.path().join("no file")).unwrap();
    let file = storage.open("no file").unwrap();
    assert_eq!(at("x")(file.read_at(0, &mut [0; 8]).unwrap_err()).kind(), ErrorKind::IsADirectory);
}
