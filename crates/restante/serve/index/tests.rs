//! The index's thread against gaps, strangers' hands and a disk that does not take it.

use super::desk::WAITING_NAMES_MAX;
use super::*;
use crate::cli::journal::testing::{message, sent, write, writer};
use restante_index::Selector;

struct Fixture {
    directory: tempfile::TempDir,
    writer: restante_journal::Writer<DirStorage>,
    end: Option<Position>,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let writer = writer(directory.path());
        Self { directory, writer, end: None }
    }

    /// Writes messages, and tells what a relay would hand on.
    fn accept(&mut self, messages: usize) -> Vec<(Position, Fact)> {
        let body = b"Subject: one\r\n\r\nx";
        let records: Vec<_> = (0..messages).map(|_| message(body, &["a@example.test"], None)).collect();
        write(&mut self.writer, &records);
        let mut facts = Facts { after: self.end, facts: Vec::new() };
        let storage = DirStorage::open(self.directory.path()).unwrap();
        replay_from(&storage, 0, Depth::Records, &mut facts).unwrap();
        self.end = facts.facts.last().map(|(last, _)| *last).or(self.end);
        facts.facts
    }

    fn keeper(&self) -> Keeper {
        let storage = DirStorage::open(self.directory.path()).unwrap();
        let desk = Arc::new(Desk::new(self.end));
        let (path, reader) = (self.directory.path().join(NAME), Reader::new(storage.clone()));
        let origin = origin(7, &Report::default());
        let boot = "boot".to_owned();
        Keeper { path, storage, origin, boot, desk, reader, open: None, quiet_until: None }
    }
}

#[derive(Default)]
struct Facts {
    after: Option<Position>,
    facts: Vec<(Position, Fact)>,
}

impl Sink for Facts {
    fn fact(&mut self, position: Position, fact: &Fact) {
        if Some(position) > self.after {
            self.facts.push((position, fact.clone()));
        }
    }
    fn damaged(&mut self, _: Position, _: &Accepted) {}
    fn lost(&mut self, _: Position, _: TransactionId, _: u16) {}
    fn unnamed(&mut self, _: u64, _: u64, _: u64) {}
    fn damaged_carried(&mut self, _: Position, _: &Carried) {}
    fn begins_after(&mut self, _: &Base) {}
}

fn batch(after: Option<Position>, facts: Vec<(Position, Fact)>) -> Batch {
    Batch { after, facts, names: 0, left: None }
}

fn rows(keeper: &mut Keeper) -> usize {
    let open = keeper.open.as_ref().unwrap();
    let rows = open.index.select(&Selector::default(), None, 100_000).unwrap();
    assert!(rows.iter().all(|row| row.summary.subject.as_deref() == Some("one")));
    rows.len()
}

#[test]
fn what_found_no_room_in_the_channel_is_read_from_the_journal() {
    let mut fixture = Fixture::new();
    let mut keeper = fixture.keeper();
    keeper.look();
    let first = fixture.accept(2);
    let after_first = fixture.end;
    let dropped = fixture.accept(3);
    let after_dropped = fixture.end;
    let last = fixture.accept(1);
    assert_eq!((first.len(), dropped.len(), last.len()), (2, 3, 1));
    keeper.desk.waiting().end = fixture.end;
    keeper.take(batch(None, first));
    assert_eq!(rows(&mut keeper), 2);
    keeper.take(batch(after_dropped, last));
    assert_eq!(rows(&mut keeper), 6);
    keeper.take(batch(after_first, dropped));
    assert_eq!(rows(&mut keeper), 6);
}

#[test]
fn a_gap_at_the_end_is_found_without_another_fact() {
    let mut fixture = Fixture::new();
    let mut keeper = fixture.keeper();
    keeper.look();
    fixture.accept(APPLY_FACTS + 3);
    keeper.desk.waiting().end = fixture.end;
    keeper.look();
    assert_eq!(rows(&mut keeper), APPLY_FACTS + 3);
    // What stands behind the last durable fact is not looked at.
    let id = write(&mut fixture.writer, &[message(b"x", &["a@example.test"], None)]).remove(0);
    write(&mut fixture.writer, &[sent(id, 0)]);
    keeper.look();
    assert_eq!(rows(&mut keeper), APPLY_FACTS + 3);
}

#[test]
fn what_finds_no_room_is_read_from_the_journal_together_with_what_waited_before_it() {
    let mut fixture = Fixture::new();
    let mut keeper = fixture.keeper();
    let handle = IndexHandle(keeper.desk.clone());
    handle.take(fixture.accept(2));
    // As if thousands of recipients were waiting.
    handle.0.waiting().batch.names = WAITING_NAMES_MAX;
    handle.take(fixture.accept(1));
    let (after, facts, end) = {
        let waiting = handle.0.waiting();
        (waiting.batch.after, waiting.batch.facts.len(), waiting.end)
    };
    assert_eq!((after, facts, end), (fixture.end, 0, fixture.end));
    handle.take(fixture.accept(1));
    let Next::Batch(batch) = keeper.desk.next(Instant::now()) else { panic!("a fact waits") };
    assert_eq!(batch.facts.len(), 1);
    keeper.take(batch);
    assert_eq!(rows(&mut keeper), 4);
    // Without another fact.
    handle.take(fixture.accept(1));
    handle.0.waiting().batch.names = WAITING_NAMES_MAX;
    handle.take(fixture.accept(1));
    keeper.look();
    assert_eq!(rows(&mut keeper), 6);
    drop(handle);
    assert!(matches!(keeper.desk.next(Instant::now() + 10 * GATHER), Next::Close));
}

#[test]
fn what_waits_when_the_daemon_stops_is_applied_and_nobody_waits_for_more() {
    let mut fixture = Fixture::new();
    let keeper = fixture.keeper();
    let handle = IndexHandle(keeper.desk.clone());
    handle.take(fixture.accept(1));
    handle.take(fixture.accept(1));
    drop(handle);
    let far = Instant::now() + Duration::from_secs(3_600);
    let Next::Batch(batch) = keeper.desk.next(far) else { panic!("facts wait") };
    assert_eq!((batch.after, batch.facts.len()), (None, 2));
    assert!(matches!(keeper.desk.next(far), Next::Close));
}

#[test]
fn headers_longer_than_the_first_look_are_found() {
    let mut fixture = Fixture::new();
    let mut keeper = fixture.keeper();
    for bytes in [HEAD_BYTES - 30, HEAD_BYTES, 3 * HEAD_BYTES] {
        let body = format!("X: {}\r\nSubject: one\r\n\r\n{}", "y".repeat(bytes), "z".repeat(20_000));
        write(&mut fixture.writer, &[message(body.as_bytes(), &["a@example.test"], None)]);
    }
    write(&mut fixture.writer, &[message(b"Subject: one", &["a@example.test"], None)]);
    fixture.accept(1);
    keeper.desk.waiting().end = fixture.end;
    keeper.look();
    assert_eq!(rows(&mut keeper), 5);
}

#[test]
fn a_file_that_another_hand_touched_is_begun_anew() {
    let mut fixture = Fixture::new();
    fixture.accept(5);
    let mut keeper = fixture.keeper();
    keeper.look();
    let path = fixture.directory.path().join(NAME);
    let good = std::fs::read(&path).unwrap();
    let harm: [&dyn Fn(); 6] = [
        &|| std::fs::remove_file(&path).unwrap(),
        &|| std::fs::write(&path, [0xA5; 50_000]).unwrap(),
        &|| std::fs::write(&path, &good).unwrap(),
        &|| std::fs::write(&path, "").unwrap(),
        &|| std::fs::write(beside(&path, "-journal"), [0xA5; 50_000]).unwrap(),
        &|| BESIDE.iter().for_each(|ending| drop(std::fs::remove_file(beside(&path, ending)))),
    ];
    for (n, harm) in harm.iter().enumerate() {
        harm();
        keeper.look();
        assert_eq!(rows(&mut keeper), 5, "harm {n}");
        let reader = Index::open_read_only(&path, "boot", is_running).unwrap();
        assert_eq!((reader.cursor().unwrap(), reader.is_complete().unwrap()), (fixture.end, true), "harm {n}");
    }
}

#[test]
fn an_index_of_another_journal_is_begun_anew() {
    let mut fixture = Fixture::new();
    fixture.accept(5);
    let mut keeper = fixture.keeper();
    keeper.look();
    drop(keeper);
    // The same journal as it was before: a backup brought back.
    let mut other = Fixture::new();
    other.accept(1);
    std::fs::copy(fixture.directory.path().join(NAME), other.directory.path().join(NAME)).unwrap();
    other.accept(7);
    let mut keeper = other.keeper();
    keeper.look();
    assert_eq!(rows(&mut keeper), 8);
}

#[test]
fn a_process_of_the_same_number_is_not_taken_for_the_keeper() {
    let us = process(std::process::id()).unwrap();
    assert!(is_running(&us));
    for other in [format!("{us}0"), us.split(' ').next().unwrap().to_owned(), "1 x".into(), "0 0".into(), String::new()]
    {
        assert!(!is_running(&other), "{other:?}");
    }
}

#[test]
fn what_cannot_be_removed_only_delays_the_index() {
    let mut fixture = Fixture::new();
    fixture.accept(2);
    let path = fixture.directory.path().join(NAME);
    std::fs::create_dir(&path).unwrap();
    let mut keeper = fixture.keeper();
    keeper.look();
    assert!(keeper.open.is_none() && keeper.is_quiet());
    std::fs::remove_dir(&path).unwrap();
    keeper.quiet_until = Some(Instant::now());
    keeper.look();
    assert_eq!(rows(&mut keeper), 2);
}
