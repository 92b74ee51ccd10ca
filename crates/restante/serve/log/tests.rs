//! The log's thread, driven by hand: what it writes, what it says of a gap, and where its cursor stands.

use super::*;
use crate::cli::journal::testing::{message, sent, served, write, writer};
use crate::serve::log_cursor::catch_up;
use restante_envelope::{BodyType, Envelope, ForwardPath, Protocol, Recipient, ReversePath, Trace};
use restante_journal::DirStorage;
use restante_ledger::{Action, Attempted, Operated, Timings};

fn place(offset: u64) -> Position {
    Position { segment: 1, offset }
}

fn line(offset: u64) -> Line {
    Line::recovered(Timestamp::from_unix_ms(1_795_359_200_118), "clean", offset).at(place(offset))
}

fn parts(directory: &Path, queue_lines: usize) -> (LogHandle, Receiver<Item>, Writer) {
    assemble(directory.to_owned(), "mx".into(), Arc::default(), queue_lines).unwrap()
}

/// Takes what is queued, and saves.
fn work(writer: &mut Writer, items: &Receiver<Item>) {
    while let Ok(first) = items.try_recv() {
        writer.take(first, items);
    }
    writer.save();
}

/// The current file's lines: the event, and what it was given to tell it apart.
fn told(directory: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(directory.join(CURRENT)).unwrap();
    let short = |line: &str| {
        let Ok(line) = serde_json::from_str::<Value>(line) else { return line.to_owned() };
        let what = if line["pending"].is_null() { &line["why"] } else { &line["pending"] };
        format!("{} {what}", line["ev"].as_str().unwrap())
    };
    text.lines().map(short).collect()
}

fn about() -> Accepted {
    let to = |path| Recipient { forward_path: ForwardPath::parse(path).unwrap(), route: RouteName::new("x") };
    let at = Timestamp::from_unix_ms(1_795_359_200_118);
    Accepted {
        id: "01JD9QK3T2E8V5W6X7Y8Z9ABCD".parse().unwrap(),
        envelope: Envelope {
            reverse_path: ReversePath::parse("a@b.test").unwrap(),
            recipients: vec![to("a@x.test"), to("b@x.test")],
            body: BodyType::SevenBit,
        },
        trace: Trace {
            client: "192.0.2.1:4000".parse().unwrap(),
            helo: "c.test".into(),
            protocol: Protocol::Esmtp,
            tls: None,
            session: 1,
            received_at: at,
        },
        hold: None,
        content_len: 1,
    }
}

#[test]
fn a_failed_write_leaves_the_cursor_in_front_of_the_first_lost_fact() {
    let directory = tempfile::tempdir().unwrap();
    let (log, items, mut writer) = parts(directory.path(), 10);
    log.write(line(1));
    work(&mut writer, &items);
    assert_eq!(writer.cursor.saved(), Some(place(1)));
    // The file cannot be opened again.
    let current = directory.path().join(CURRENT);
    std::fs::remove_file(&current).unwrap();
    std::fs::create_dir(&current).unwrap();
    writer.file = None;
    log.write(line(2));
    log.write(line(3));
    work(&mut writer, &items);
    std::fs::remove_dir(&current).unwrap();
    log.write(line(4));
    work(&mut writer, &items);
    assert_eq!(told(directory.path()), ["log_gap \"2 records could not be written\"", "recovered 4"]);
    assert_eq!(Cursor::open(directory.path()).unwrap().saved(), Some(place(1)));
}

#[test]
fn an_overflow_is_told_and_leaves_the_cursor_where_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let (log, items, mut writer) = parts(directory.path(), 1);
    log.write(line(1));
    // In no journal: a gap, and nothing that another start could tell.
    log.write(Line::recovered(crate::clock::now(), "clean", 0));
    work(&mut writer, &items);
    assert_eq!(told(directory.path()), ["log_gap \"1 records could not be written\"", "recovered 1"]);
    assert_eq!(writer.cursor.saved(), Some(place(1)));
    log.write(line(2));
    log.write(line(3));
    work(&mut writer, &items);
    log.write(line(4));
    work(&mut writer, &items);
    assert_eq!(
        told(directory.path())[2..],
        ["log_gap \"1 records could not be written\"", "recovered 2", "recovered 4"]
    );
    assert_eq!(writer.cursor.saved(), Some(place(1)));
}

#[test]
fn a_gap_at_the_end_is_told_when_all_is_quiet() {
    let directory = tempfile::tempdir().unwrap();
    let (log, items, mut writer) = parts(directory.path(), 1);
    log.write(line(1));
    work(&mut writer, &items);
    log.overflow.lines.store(7, Ordering::Release);
    drop(log);
    writer.run(&items);
    assert_eq!(told(directory.path()), ["recovered 1", "log_gap \"7 records could not be written\""]);
}

#[test]
fn a_fact_that_is_told_in_part_is_not_passed() {
    let directory = tempfile::tempdir().unwrap();
    let (log, items, mut writer) = parts(directory.path(), 10);
    let cause = Cause::Connection("refused".into());
    let results = vec![(0, Outcome::Held(cause.clone())), (1, Outcome::Held(cause))];
    let (about, at) = (about(), Timestamp::from_unix_ms(1_795_359_200_118));
    let attempted = Attempted { id: about.id, at, next_hop: None, timings: Timings::default(), results };
    let mut lines = Line::attempted(&attempted, &about).into_iter();
    log.write(lines.next().unwrap().at(place(5)));
    work(&mut writer, &items);
    assert_eq!(writer.cursor.saved(), None);
    log.write(lines.next().unwrap().at(place(5)));
    work(&mut writer, &items);
    assert_eq!(writer.cursor.saved(), Some(place(5)));
}

#[test]
fn the_past_leaves_room_for_what_happens_now() {
    let directory = tempfile::tempdir().unwrap();
    let (log, items, mut writer) = parts(directory.path(), QUEUE_LINES);
    let past = log.patient();
    for offset in 0..PAST_LINES_MAX {
        past.write(line(offset as u64));
    }
    // One more would wait.
    assert!(log.past.try_send(()).is_err());
    for offset in PAST_LINES_MAX..QUEUE_LINES {
        log.write(line(offset as u64));
    }
    work(&mut writer, &items);
    assert_eq!(told(directory.path()).len(), QUEUE_LINES);
    assert!(log.past.try_send(()).is_ok());
}

#[test]
fn a_catch_up_tells_all_and_then_moves_the_cursor() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = writer(directory.path());
    write(&mut journal, &[served("192.0.2.10:25")]);
    let messages: Vec<_> = (0..2 * PAST_LINES_MAX).map(|_| message(b"x", &["a@x.test"], None)).collect();
    let ids = write(&mut journal, &messages);
    write(&mut journal, &[sent(ids[0], 0)]);
    let at = directory.path().join("log");
    let log = start(at.clone(), "mx".into(), Arc::default(), |saved| saved.is_none()).unwrap();
    catch_up(&DirStorage::open(directory.path()).unwrap(), log.cursor, u64::MAX, &log.handle.patient());
    drop(log.handle);
    log.thread.join().unwrap();
    assert_eq!(told(&at).len(), 2 * PAST_LINES_MAX + 1);
    assert!(Cursor::open(&at).unwrap().saved().is_some());
}

#[test]
fn a_past_that_was_not_written_is_not_passed_by_what_was_told_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let (log, items, mut writer) = parts(directory.path(), 10);
    writer.behind = true;
    log.write(line(9));
    work(&mut writer, &items);
    let current = directory.path().join(CURRENT);
    std::fs::remove_file(&current).unwrap();
    std::fs::create_dir(&current).unwrap();
    writer.file = None;
    log.patient().write(line(1));
    log.patient().caught_up();
    work(&mut writer, &items);
    std::fs::remove_dir(&current).unwrap();
    log.write(line(10));
    work(&mut writer, &items);
    assert!(!writer.behind);
    assert_eq!(writer.cursor.saved(), None);
}

#[test]
fn a_file_put_aside_unsynced_holds_the_cursor() {
    let directory = tempfile::tempdir().unwrap();
    let (log, items, mut writer) = parts(directory.path(), 10);
    log.write(line(1));
    work(&mut writer, &items);
    // Full, takes lines, and cannot be synced.
    let file = OpenOptions::new().write(true).open("/dev/null").unwrap();
    writer.file = Some(Open { file, bytes: 0, day: "2026-11-22".into() });
    log.write(line(2));
    writer.take(items.recv().unwrap(), &items);
    writer.file.as_mut().unwrap().bytes = FILE_BYTES_MAX + 1;
    log.write(line(3));
    work(&mut writer, &items);
    assert_eq!(told(directory.path()), ["recovered 3"]);
    assert_eq!(writer.cursor.saved(), Some(place(1)));
}

#[test]
fn a_broken_line_does_not_swallow_the_next() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(CURRENT), "{\"ts\":\"20").unwrap();
    let (log, items, mut writer) = parts(directory.path(), 10);
    log.write(line(1));
    work(&mut writer, &items);
    writer.file = None;
    log.write(line(2));
    work(&mut writer, &items);
    assert_eq!(told(directory.path()), ["{\"ts\":\"20", "recovered 1", "recovered 2"]);
}

#[test]
fn an_operators_hold_has_the_status_of_the_contract() {
    let about = about();
    for (action, event, status) in [(Action::Hold, "held", "hold"), (Action::Release, "released", "released")] {
        let (actor, reason) = ("root".into(), "virus".into());
        let at = about.trace.received_at;
        let operated = Operated { id: about.id, at, action, recipients: vec![0, 1], actor, reason };
        let lines = Line::operated(&operated, &about);
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.fields["ev"] == event && line.fields["status"] == status));
    }
}
