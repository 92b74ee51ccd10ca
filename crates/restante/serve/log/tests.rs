//! The log's thread, driven by hand: what it writes, what it says of a gap, and where its cursor stands.

use super::queue::Batch;
use super::thread::PAST_LINES_MAX;
use super::*;
use crate::cli::journal::testing::{message, sent, served, write, writer};
use restante_envelope::{
    BodyType, Envelope, ForwardPath, Protocol, Recipient, ReversePath, RouteName, Timestamp, Trace,
};
use restante_ledger::{Accepted, Action, Attempted, Cause, Operated, Outcome, Timings};
use serde_json::Value;
use std::fs::OpenOptions;
use std::path::Path;

/// Some dozens of lines.
const ROOM_BYTES: usize = 10_000;
/// One line may go beyond the room.
const ONE_LINE: usize = 1;

fn place(offset: u64) -> Position {
    Position { segment: 1, offset }
}

fn line(offset: u64) -> Line {
    Line::recovered(crate::clock::now(), "clean", offset).at(place(offset))
}

/// With a journal in the same directory, all of which was told.
fn parts(directory: &Path, queue_bytes: usize) -> (LogHandle, Arc<Queue>, Writer) {
    parts_with(directory, queue_bytes, None)
}

fn parts_with(directory: &Path, queue_bytes: usize, last: Option<Position>) -> (LogHandle, Arc<Queue>, Writer) {
    let past = Past { storage: DirStorage::open(directory).unwrap(), last, end: last };
    assemble(directory.to_owned(), "mx".into(), Arc::default(), LogLimits::default(), Some(past), queue_bytes).unwrap()
}

/// Takes what is queued, and saves.
fn work(writer: &mut Writer, lines: &Queue) {
    take(writer, lines);
    writer.save();
}

fn take(writer: &mut Writer, lines: &Queue) {
    writer.append(&lines.take().0);
}

/// As the thread does when it takes lines again, until all of the past is told or the log cannot be written.
fn tell_missing(writer: &mut Writer) {
    writer.without_pause();
    writer.tell_missing();
    assert!(writer.is_telling(), "the past is not told");
    while writer.is_telling() {
        let mut batch = Batch::default();
        writer.take_past(&mut batch, true);
        writer.append(&batch);
    }
    writer.save();
}

/// The current file cannot be opened while this exists.
struct Blocked(PathBuf);

impl Blocked {
    fn new(directory: &Path, writer: &mut Writer) -> Self {
        let current = directory.join(CURRENT);
        if current.exists() {
            std::fs::rename(&current, directory.join("kept")).unwrap();
        }
        std::fs::create_dir(&current).unwrap();
        writer.file = None;
        Self(directory.to_owned())
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        std::fs::remove_dir(self.0.join(CURRENT)).unwrap();
        // What was in it before.
        let _there_was_none = std::fs::rename(self.0.join("kept"), self.0.join(CURRENT));
    }
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

/// What a line says, without the node.
fn fields(line: &Line) -> Value {
    serde_json::from_str(&format!("{}}}", std::str::from_utf8(&line.text).unwrap())).unwrap()
}

fn about() -> Accepted {
    let to = |path| Recipient::new(ForwardPath::parse(path).unwrap(), RouteName::new("x"));
    let at = Timestamp::from_unix_ms(1_795_359_200_118);
    Accepted {
        id: "01JD9QK3T2E8V5W6X7Y8Z9ABCD".parse().unwrap(),
        envelope: Envelope::new(
            ReversePath::parse("a@b.test").unwrap(),
            vec![to("a@x.test"), to("b@x.test")],
            BodyType::SevenBit,
        ),
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
    let (log, lines, mut writer) = parts(directory.path(), ROOM_BYTES);
    log.write(line(1));
    work(&mut writer, &lines);
    assert_eq!(writer.cursor.saved(), Some(place(1)));
    let blocked = Blocked::new(directory.path(), &mut writer);
    log.write(line(2));
    log.write(line(3));
    work(&mut writer, &lines);
    drop(blocked);
    log.write(line(4));
    work(&mut writer, &lines);
    assert_eq!(told(directory.path()), ["recovered 1", "log_gap \"2 records could not be written\"", "recovered 4"]);
    assert_eq!(Cursor::open(directory.path()).unwrap().saved(), Some(place(1)));
    assert_eq!(writer.missing(), Some(Range { first: place(2), last: place(3) }));
}

#[test]
fn an_overflow_is_told_and_leaves_the_cursor_where_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let (log, lines, mut writer) = parts(directory.path(), ONE_LINE);
    log.write(line(1));
    // In no journal: a gap, and nothing that could be told again.
    log.write(Line::recovered(crate::clock::now(), "clean", 0));
    work(&mut writer, &lines);
    assert_eq!(told(directory.path()), ["log_gap \"1 records could not be written\"", "recovered 1"]);
    assert_eq!(writer.cursor.saved(), Some(place(1)));
    log.write(line(2));
    log.write(line(3));
    work(&mut writer, &lines);
    log.write(line(4));
    work(&mut writer, &lines);
    assert_eq!(
        told(directory.path())[2..],
        ["log_gap \"1 records could not be written\"", "recovered 2", "recovered 4"]
    );
    assert_eq!(writer.cursor.saved(), Some(place(1)));
    assert_eq!(writer.missing(), Some(Range { first: place(3), last: place(3) }));
}

/// Messages on the journal, and where each of them stands.
fn accepted(directory: &Path, count: usize) -> (restante_journal::Writer<DirStorage>, Vec<(String, Position)>) {
    let mut journal = writer(directory);
    let mut places = Vec::new();
    for _ in 0..count {
        journal.stage(&message(b"x", &["a@x.test"], None), crate::clock::now()).unwrap();
        let durable = journal.commit(crate::clock::now()).unwrap();
        places.extend(durable.receipts().iter().map(|receipt| (receipt.id().to_string(), receipt.position())));
    }
    (journal, places)
}

/// The identifiers in the log, those put aside (the test's messages are of an earlier day) before the current ones.
fn ids(directory: &Path) -> Vec<String> {
    let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> =
        names.filter(|name| name.starts_with("delivery") && name.ends_with(".jsonl")).collect();
    names.sort();
    let text: String = names.iter().map(|name| std::fs::read_to_string(directory.join(name)).unwrap()).collect();
    text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()?["id"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_gap_is_filled_while_running() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let (_journal, places) = accepted(dir, 5);
    let (log, lines, mut writer) = parts(dir, ROOM_BYTES);
    let live = |at: &(String, Position)| Line::waiting(at.0.parse().unwrap(), &RouteName::new("x"), "live").at(at.1);
    log.write(live(&places[0]));
    work(&mut writer, &lines);
    let blocked = Blocked::new(dir, &mut writer);
    log.write(live(&places[1]));
    log.write(live(&places[2]));
    log.write(live(&places[3]));
    work(&mut writer, &lines);
    // While the log cannot be written, nothing is told again; and no memory is used for it.
    writer.without_pause();
    writer.tell_missing();
    assert!(!writer.is_telling());
    drop(blocked);
    log.write(live(&places[4]));
    work(&mut writer, &lines);
    assert_eq!(writer.cursor.saved(), Some(places[0].1));
    tell_missing(&mut writer);
    assert_eq!(ids(dir), [0, 4, 1, 2, 3].map(|n| places[n].0.clone()));
    let said = told(dir);
    assert_eq!(said[1], "log_gap \"3 records could not be written\"");
    assert_eq!(said.last().unwrap(), "log_gap \"the facts among the lost records have been told again\"");
    assert_eq!((writer.missing(), writer.cursor.saved()), (None, Some(places[4].1)));
}

#[test]
fn a_gap_whose_filling_fails_is_filled_later() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let (_journal, places) = accepted(dir, 3);
    let (_log, _lines, mut writer) = parts_with(dir, ROOM_BYTES, Some(places[2].1));
    writer.tell_missing();
    let blocked = Blocked::new(dir, &mut writer);
    while writer.is_telling() {
        let mut batch = Batch::default();
        writer.take_past(&mut batch, true);
        writer.append(&batch);
    }
    assert!(writer.missing().is_some_and(|range| range.contains(places[0].1) && range.contains(places[2].1)));
    writer.save();
    assert_eq!(writer.cursor.saved(), None);
    drop(blocked);
    writer.append(&Batch::default());
    tell_missing(&mut writer);
    assert_eq!(ids(dir), [0, 1, 2].map(|n| places[n].0.clone()));
    assert_eq!(writer.cursor.saved(), Some(places[2].1));
    // Nothing was lost of what happened: no gap.
    assert!(!told(dir).iter().any(|line| line.contains("log_gap")));
}

#[test]
fn what_is_lost_while_a_gap_is_filled_is_filled_too() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let (_journal, places) = accepted(dir, 3);
    let (log, lines, mut writer) = parts_with(dir, ONE_LINE, Some(places[0].1));
    writer.tell_missing();
    let live = |at: &(String, Position)| Line::waiting(at.0.parse().unwrap(), &RouteName::new("x"), "live").at(at.1);
    log.write(live(&places[1]));
    log.write(live(&places[2]));
    take(&mut writer, &lines);
    while writer.is_telling() {
        let mut batch = Batch::default();
        writer.take_past(&mut batch, true);
        writer.append(&batch);
    }
    writer.save();
    assert_eq!(writer.cursor.saved(), None);
    tell_missing(&mut writer);
    assert_eq!(ids(dir), [1, 0, 2].map(|n| places[n].0.clone()));
    // The next start tells none of them again.
    assert_eq!(writer.cursor.saved(), Some(places[2].1));
}

#[test]
fn a_log_that_keeps_losing_lines_does_not_have_the_journal_read_back_to_back() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let (_journal, places) = accepted(dir, 2);
    let (log, lines, mut writer) = parts_with(dir, ONE_LINE, Some(places[0].1));
    tell_missing(&mut writer);
    let lose = |writer: &mut Writer| {
        log.write(line(0));
        log.write(Line::waiting(places[1].0.parse().unwrap(), &RouteName::new("x"), "live").at(places[1].1));
        take(writer, &lines);
    };
    let mut pauses = Vec::new();
    for _ in 0..8 {
        lose(&mut writer);
        writer.tell_missing();
        assert!(!writer.is_telling(), "told again without a pause");
        pauses.push(writer.next_pause().as_secs());
        tell_missing(&mut writer);
    }
    assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
    writer.after_a_quiet_minute();
    lose(&mut writer);
    assert_eq!(writer.next_pause().as_secs(), 1);
    tell_missing(&mut writer);
    assert_eq!(ids(dir).len(), 10);
}

#[test]
fn a_cursor_of_another_journal_does_not_lose_the_lines_of_this_one() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let (_journal, places) = accepted(dir, 2);
    let beyond = Position { offset: places[1].1.offset + 1, ..places[1].1 };
    Cursor::open(dir).unwrap().save(beyond).unwrap();
    let (log, lines, mut writer) = parts_with(dir, ROOM_BYTES, Some(places[0].1));
    tell_missing(&mut writer);
    assert_eq!((ids(dir), writer.cursor.saved()), (vec![places[0].0.clone()], Some(places[0].1)));
    log.write(Line::waiting(places[1].0.parse().unwrap(), &RouteName::new("x"), "live").at(places[1].1));
    work(&mut writer, &lines);
    assert_eq!(Cursor::open(dir).unwrap().saved(), Some(places[1].1));
    // What it has come to itself is no other journal's, and an empty journal has come to nothing.
    let (_log, _lines, writer) = parts_with(dir, ROOM_BYTES, Some(places[1].1));
    assert_eq!((writer.missing(), writer.cursor.saved()), (None, Some(places[1].1)));
    assert_eq!(parts(dir, ROOM_BYTES).2.cursor.saved(), None);
}

#[test]
fn a_log_that_cannot_be_written_keeps_no_lines() {
    let directory = tempfile::tempdir().unwrap();
    let (log, lines, mut writer) = parts(directory.path(), ROOM_BYTES);
    let _blocked = Blocked::new(directory.path(), &mut writer);
    for round in 0..50 {
        (0..200).for_each(|n| log.write(line(round * 200 + n)));
        take(&mut writer, &lines);
        assert!(lines.take().0.is_empty());
    }
    assert_eq!(writer.missing(), Some(Range { first: place(0), last: place(9_999) }));
}

#[test]
fn a_gap_at_the_end_is_told_when_all_is_quiet() {
    let directory = tempfile::tempdir().unwrap();
    let (log, lines, mut writer) = parts(directory.path(), ONE_LINE);
    log.write(line(1));
    work(&mut writer, &lines);
    lines.lose(7);
    drop(log);
    writer.run(&lines);
    assert_eq!(told(directory.path()), ["recovered 1", "log_gap \"7 records could not be written\""]);
}

#[test]
fn a_fact_that_is_told_in_part_is_not_passed() {
    let directory = tempfile::tempdir().unwrap();
    let (log, lines, mut writer) = parts(directory.path(), ROOM_BYTES);
    let cause = Cause::Connection("refused".into());
    let results = vec![(0, Outcome::Held(cause.clone())), (1, Outcome::Held(cause))];
    let (about, at) = (about(), Timestamp::from_unix_ms(1_795_359_200_118));
    let attempted = Attempted { id: about.id, at, next_hop: None, timings: Timings::default(), results };
    let mut told = Line::attempted(&attempted, Some(&about)).into_iter();
    log.write(told.next().unwrap().at(place(5)));
    work(&mut writer, &lines);
    assert_eq!(writer.cursor.saved(), None);
    log.write(told.next().unwrap().at(place(5)));
    work(&mut writer, &lines);
    assert_eq!(writer.cursor.saved(), Some(place(5)));
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
    let last = Some(place(u64::MAX));
    let past = Past { storage: DirStorage::open(directory.path()).unwrap(), last, end: last };
    let log = start(at.clone(), "mx".into(), Arc::default(), LogLimits::default(), Some(past)).unwrap();
    drop(log.handle);
    log.thread.join().unwrap();
    assert_eq!(told(&at).len(), 2 * PAST_LINES_MAX + 1);
    assert!(Cursor::open(&at).unwrap().saved().is_some());
}

#[test]
fn a_file_put_aside_unsynced_holds_the_cursor() {
    let directory = tempfile::tempdir().unwrap();
    let (log, lines, mut writer) = parts(directory.path(), ROOM_BYTES);
    log.write(line(1));
    work(&mut writer, &lines);
    // Full, takes lines, and cannot be synced.
    std::fs::remove_file(directory.path().join(CURRENT)).unwrap();
    std::os::unix::fs::symlink("/dev/null", directory.path().join(CURRENT)).unwrap();
    let file = OpenOptions::new().write(true).open("/dev/null").unwrap();
    writer.file = Some(files::Open { file, bytes: 0, day: crate::clock::now().to_string()[..10].into() });
    log.write(line(2));
    take(&mut writer, &lines);
    writer.file.as_mut().unwrap().bytes = LogLimits::default().file_bytes_max + 1;
    log.write(line(3));
    work(&mut writer, &lines);
    assert_eq!(told(directory.path()), ["recovered 3"]);
    assert_eq!(writer.cursor.saved(), Some(place(1)));
    assert_eq!(writer.missing(), Some(Range { first: place(2), last: place(2) }));
}

#[test]
fn a_broken_line_does_not_swallow_the_next() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(CURRENT), "{\"ts\":\"20").unwrap();
    let (log, lines, mut writer) = parts(directory.path(), ROOM_BYTES);
    log.write(line(1));
    work(&mut writer, &lines);
    writer.file = None;
    log.write(line(2));
    work(&mut writer, &lines);
    assert_eq!(told(directory.path()), ["{\"ts\":\"20", "recovered 1", "recovered 2"]);
}

#[test]
fn an_operators_hold_has_the_status_of_the_contract() {
    let about = about();
    for (action, event, status) in [(Action::Hold, "held", "hold"), (Action::Release, "released", "released")] {
        let (actor, reason) = ("root".into(), "virus".into());
        let at = about.trace.received_at;
        let operated = Operated { id: about.id, at, action, recipients: vec![0, 1], actor, reason };
        let lines = Line::operated(&operated, Some(&about));
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().map(fields).all(|line| line["ev"] == event && line["status"] == status));
    }
}

#[test]
fn a_fact_whose_message_cannot_be_read_is_told_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = writer(directory.path());
    let at = Timestamp::from_unix_ms(1_795_359_200_118);
    let lost = Outcome::Quarantined(Cause::Local("the blob is missing".into()));
    let results = vec![(0, lost.clone()), (1, lost)];
    let attempted = Attempted { id: about().id, at, next_hop: None, timings: Timings::default(), results };
    let quarantined = restante_ledger::Fact::Attempted(attempted);
    let lines = Line::of(&quarantined, None);
    assert_eq!(lines.iter().map(|line| line.continues).collect::<Vec<_>>(), [true, false]);
    let known = |line: &Value| ["id", "ev", "status", "why"].map(|key| line[key].as_str().unwrap().to_owned());
    let expected = [&about().id.to_string(), "quarantined", "quarantined", "the blob is missing"];
    assert!(lines.iter().map(fields).all(|line| known(&line) == expected && line.get("to").is_none()));
    // Nor does a later telling pass it: the journal has lost the message that it is about.
    write(&mut journal, &[restante_journal::Prepared::fact(&quarantined, Vec::new())]);
    let (_log, _lines, mut log_writer) = parts_with(directory.path(), ROOM_BYTES, Some(place(u64::MAX)));
    tell_missing(&mut log_writer);
    assert_eq!(told(directory.path()), ["quarantined \"the blob is missing\""; 2]);
}

/// A log in a directory of its own, whose first line is saved and whose second line is not, when `removal` comes.
fn removed_while_running(removal: impl FnOnce(&Path)) -> (tempfile::TempDir, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    let (_journal, places) = accepted(directory.path(), 3);
    let at = directory.path().join("log");
    let past = Past { storage: DirStorage::open(directory.path()).unwrap(), last: None, end: Some(place(u64::MAX)) };
    let (log, lines, mut writer) =
        assemble(at.clone(), "mx".into(), Arc::default(), LogLimits::default(), Some(past), ROOM_BYTES).unwrap();
    let live = |at: &(String, Position)| Line::waiting(at.0.parse().unwrap(), &RouteName::new("x"), "live").at(at.1);
    log.write(live(&places[0]));
    work(&mut writer, &lines);
    removal(&at);
    log.write(live(&places[1]));
    work(&mut writer, &lines);
    assert!(at.join(CURRENT).is_file(), "a new file waits for a line");
    // It has not passed what nobody can read any more, and it is on the disk again.
    assert_eq!(Cursor::open(&at).unwrap().saved(), Some(places[0].1));
    tell_missing(&mut writer);
    log.write(live(&places[2]));
    work(&mut writer, &lines);
    assert_eq!(ids(&at), [1, 2].map(|n| places[n].0.clone()));
    assert_eq!(Cursor::open(&at).unwrap().saved(), Some(places[2].1));
    (directory, places.into_iter().map(|(id, _)| id).collect())
}

#[test]
fn a_log_file_removed_while_running_loses_no_later_line() {
    removed_while_running(|log| std::fs::remove_file(log.join(CURRENT)).unwrap());
}

#[test]
fn a_log_directory_removed_while_running_loses_no_later_line() {
    removed_while_running(|log| std::fs::remove_dir_all(log).unwrap());
}

#[test]
fn a_log_file_renamed_while_running_keeps_its_lines_and_gets_no_more() {
    let (directory, ids) = removed_while_running(|log| {
        std::fs::rename(log.join(CURRENT), log.join("delivery.jsonl.1")).unwrap();
        std::fs::write(log.join(CURRENT), "").unwrap();
    });
    let kept = std::fs::read_to_string(directory.path().join("log/delivery.jsonl.1")).unwrap();
    assert!(kept.contains(&ids[0]) && !kept.contains(&ids[2]));
}

#[test]
fn a_file_removed_before_it_is_put_aside_loses_no_line() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let (_journal, places) = accepted(dir, 2);
    let (log, lines, mut writer) = parts(dir, ROOM_BYTES);
    let live = |at: &(String, Position)| Line::waiting(at.0.parse().unwrap(), &RouteName::new("x"), "live").at(at.1);
    log.write(live(&places[0]));
    take(&mut writer, &lines);
    std::fs::remove_file(dir.join(CURRENT)).unwrap();
    writer.file.as_mut().unwrap().bytes = LogLimits::default().file_bytes_max + 1;
    log.write(live(&places[1]));
    work(&mut writer, &lines);
    assert_eq!(writer.cursor.saved(), None);
    tell_missing(&mut writer);
    assert_eq!(ids(dir), [1, 0].map(|n| places[n].0.clone()));
    assert_eq!(writer.cursor.saved(), Some(places[1].1));
}

#[test]
fn each_event_is_told_in_the_words_that_others_read() {
    let text = |line: &Line| String::from_utf8(line.text.clone()).unwrap() + "}";
    let (mut about, at) = (about(), Timestamp::from_unix_ms(1_795_359_200_118));
    about.trace.helo = "c\"\\\u{1}.test".into();
    assert_eq!(
        text(&Line::accepted(&about)),
        concat!(
            r#"{"type":"log","ts":"2026-11-22T14:53:20.118Z","ev":"accepted","id":"01JD9QK3T2E8V5W6X7Y8Z9ABCD","sid":"1","#,
            r#""client_ip":"192.0.2.1","helo":"c\"\\\u0001.test","route":"x","from":"a@b.test","to":"a@x.test,b@x.test","#,
            r#""nrcpt":2,"size":1,"status":"accepted"}"#
        )
    );
    about.hold = Some("mail loop".into());
    assert!(text(&Line::accepted(&about)).ends_with(r#""size":1,"status":"hold","why":"mail loop"}"#));
    let reply = restante_envelope::Reply::new(250, Some(restante_envelope::EnhancedStatus::new(2, 0, 0)), "ok");
    let timings = Timings { before_queue_ms: 1, in_queue_ms: 2_500, connect_ms: 0, transfer_ms: 30 };
    let hop = restante_ledger::NextHop { host: "mx".into(), ip: "192.0.2.9".parse().unwrap(), port: 25, tls: None };
    let results = vec![(1, Outcome::Sent(reply))];
    let attempted = Attempted { id: about.id, at, next_hop: Some(hop), timings, results };
    assert_eq!(
        text(&Line::attempted(&attempted, Some(&about))[0]),
        concat!(
            r#"{"type":"log","ts":"2026-11-22T14:53:20.118Z","ev":"sent","id":"01JD9QK3T2E8V5W6X7Y8Z9ABCD","route":"x","#,
            r#""to":"b@x.test","from":"a@b.test","size":1,"delay_s":2.531,"delays":[0.001,2.5,0.0,0.03],"status":"sent","#,
            r#""relay_host":"mx","relay_ip":"192.0.2.9","relay_port":25,"code":250,"reply":"250 2.0.0 ok","dsn":"2.0.0"}"#
        )
    );
    let counts = restante_smtp::Counts { accepted: 1, bytes: 7, ..restante_smtp::Counts::default() };
    let gone = Line::disconnect("[2001:db8::1]:9".parse().unwrap(), 255, &counts, Some("reset".into()));
    let gone = text(&gone);
    assert_eq!(
        gone.split_once(r#""ev""#).unwrap().1,
        r#":"disconnect","sid":"ff","client_ip":"2001:db8::1","accepted":1,"refused":0,"size":7,"why":"reset"}"#
    );
}

#[test]
fn whoever_writes_a_line_last_is_still_heard() {
    let directory = tempfile::tempdir().unwrap();
    let log = start(directory.path().into(), "m\"x".into(), Arc::default(), LogLimits::default(), None).unwrap();
    log.handle.write_all((0..3).map(line).collect());
    drop(log.handle);
    log.thread.join().unwrap();
    assert_eq!(told(directory.path()), ["recovered 0", "recovered 1", "recovered 2"]);
    assert!(std::fs::read_to_string(directory.path().join(CURRENT)).unwrap().ends_with(",\"node\":\"m\\\"x\"}\n"));
}

#[test]
fn what_steers_a_terminal_stands_escaped_in_the_file_too() {
    let hostile = "a\u{9b}31m\u{202e}\u{7f}\u{1b}[2J\n\u{fc}@x.test";
    let id = "01JD9QK3T2E8V5W6X7Y8Z9ABCD".parse().unwrap();
    let text = String::from_utf8(Line::waiting(id, &RouteName::new("r"), hostile).text).unwrap();
    assert!(text.ends_with(r#""why":"a\u009b31m\u202e\u007f\u001b[2J\nü@x.test""#), "{text}");
}
