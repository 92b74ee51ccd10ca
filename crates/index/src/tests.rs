//! The index against the ledger, and against what may happen to its file.

use crate::rows::question;
use crate::{Change, Event, Index, IndexError, Keep, Origin, Row, Selector, Summary};
use proptest::prelude::*;
use restante_envelope::{
    BodyType, Envelope, ForwardPath, Protocol, Recipient, Reply, ReversePath, RouteName, Timestamp, Trace,
    TransactionId,
};
use restante_ledger::{
    Accepted, Action, Attempted, Carried, Cause, Fact, Ledger, Operated, Outcome, Past, Position, RecipientState,
    Standing, Timings,
};
use rusqlite::params_from_iter;
use std::path::Path;

const PENDING: Selector = Selector {
    ids: Vec::new(),
    routes: Vec::new(),
    domains: Vec::new(),
    since: None,
    until: None,
    larger_bytes: None,
    pending: true,
    given_up: false,
};

fn id(n: u128) -> TransactionId {
    TransactionId::from_bits(n << 80)
}

fn at(n: u64) -> Position {
    Position { segment: 1, offset: n }
}

fn accepted(n: u128, recipients: u16, hold: Option<&str>) -> Accepted {
    let recipient = |i: u16| {
        Recipient::new(
            ForwardPath::parse(&format!("r{i}@d{i}.Test")).unwrap(),
            RouteName::new(if i.is_multiple_of(2) { "even" } else { "odd" }),
        )
    };
    Accepted {
        id: id(n),
        envelope: Envelope::new(
            ReversePath::parse("a@b.test").unwrap(),
            (0..recipients).map(recipient).collect(),
            BodyType::SevenBit,
        ),
        trace: Trace {
            client: "192.0.2.1:4000".parse().unwrap(),
            helo: "c.test".into(),
            protocol: Protocol::Esmtp,
            tls: None,
            session: 1,
            received_at: Timestamp::from_unix_ms(u64::try_from(n).unwrap()),
        },
        content_len: u64::try_from(n).unwrap() * 10,
        hold: hold.map(str::to_owned),
    }
}

fn attempted(n: u128, index: u16, outcome: Outcome) -> Event {
    let results = vec![(index, outcome)];
    let (at, timings) = (Timestamp::from_unix_ms(99), Timings::default());
    Event::Fact(Fact::Attempted(Attempted { id: id(n), at, next_hop: None, timings, results }))
}

fn operated(n: u128, index: u16, action: Action) -> Event {
    let (actor, reason, at) = ("root".to_owned(), "why".to_owned(), Timestamp::from_unix_ms(100));
    Event::Fact(Fact::Operated(Operated { id: id(n), at, action, recipients: vec![index], actor, reason }))
}

fn arrival(n: u128, recipients: u16) -> Event {
    Event::Fact(Fact::Accepted(accepted(n, recipients, None)))
}

fn deferred(text: &str) -> Outcome {
    let cause = Cause::Reply(Reply::new(451, None, text));
    Outcome::Deferred { cause, next_at: Timestamp::from_unix_ms(5_000) }
}

fn sent() -> Outcome {
    Outcome::Sent(Reply::new(250, None, "ok"))
}

/// The events, one behind the other.
fn changes(events: Vec<Event>) -> Vec<Change> {
    (1..).zip(events).map(|(n, event)| Change { position: at(n), event, summary: None }).collect()
}

fn filled(keep: Keep, events: Vec<Event>) -> Index {
    let mut index = Index::temporary(keep).unwrap();
    index.apply(&changes(events)).unwrap();
    index
}

fn all(index: &Index, selector: &Selector) -> Vec<Row> {
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let page = index.select(selector, after, 2).unwrap();
        let Some(last) = page.last() else { return rows };
        after = Some(last.id);
        rows.extend(page);
    }
}

fn ids(index: &Index, selector: &Selector) -> Vec<u128> {
    all(index, selector).iter().map(|row| row.id.to_bits() >> 80).collect()
}

fn origin() -> Origin {
    Origin { journal: 7, damage: String::new() }
}

#[test]
fn a_row_tells_what_the_facts_told() {
    let mut index = Index::temporary(Keep::All).unwrap();
    let subject = |text: &str| Summary { subject: Some(text.into()), ..Summary::default() };
    let mut batch = changes(vec![
        arrival(1, 2),
        attempted(1, 0, deferred("later")),
        operated(1, 1, Action::Hold),
        Event::Fact(Fact::Accepted(accepted(2, 1, Some("mail loop")))),
        Event::Lost { id: id(3), recipients: 2 },
    ]);
    batch[0].summary = Some(subject("hello"));
    index.apply(&batch).unwrap();
    let rows = all(&index, &Selector::default());
    assert_eq!(rows.len(), 3);
    let first = &rows[0];
    assert_eq!((first.position, first.size, first.from.as_deref()), (at(1), 10, Some("a@b.test")));
    assert_eq!((first.client.as_deref(), first.helo.as_deref()), (Some("192.0.2.1:4000"), Some("c.test")));
    assert_eq!(first.summary, subject("hello"));
    let [deferred, held] = first.recipients.as_slice() else { panic!("{first:?}") };
    assert_eq!(deferred.state, RecipientState::Deferred(Timestamp::from_unix_ms(5_000)));
    assert_eq!((deferred.last_reply.as_deref(), deferred.reason.as_deref()), (Some("451 later"), None));
    assert_eq!((deferred.attempts, deferred.changed_at), (1, Timestamp::from_unix_ms(99)));
    assert_eq!((held.addr.as_deref(), held.route.as_deref()), (Some("r1@d1.Test"), Some("odd")));
    assert_eq!((held.state, held.reason.as_deref()), (RecipientState::Hold, Some("root: why")));
    assert_eq!(
        (rows[1].hold.as_deref(), rows[1].recipients[0].reason.as_deref()),
        (Some("mail loop"), Some("mail loop"))
    );
    let lost = &rows[2];
    assert_eq!((&lost.from, &lost.recipients[1].addr, lost.recipients.len()), (&None, &None, 2));
    assert_eq!((lost.recipients[0].state, lost.accepted_at), (RecipientState::Quarantined, Timestamp::from_unix_ms(3)));
}

#[test]
fn an_operator_s_reason_outlives_the_refusal_of_an_attempt_under_way() {
    let index = filled(Keep::All, vec![arrival(1, 1), operated(1, 0, Action::Hold), attempted(1, 0, deferred("busy"))]);
    let row = all(&index, &PENDING).remove(0);
    assert_eq!(row.recipients[0].state, RecipientState::Hold);
    assert_eq!(row.recipients[0].reason.as_deref(), Some("root: why"));
    assert_eq!(row.recipients[0].last_reply.as_deref(), Some("451 busy"));
}

#[test]
fn each_condition_narrows_and_an_empty_one_does_not() {
    let index =
        filled(Keep::All, vec![arrival(1, 1), arrival(2, 2), arrival(3, 3), arrival(4, 1), attempted(4, 0, sent())]);
    let select = |change: fn(&mut Selector)| {
        let mut selector = Selector::default();
        change(&mut selector);
        ids(&index, &selector)
    };
    assert_eq!(select(|_| {}), [1, 2, 3, 4]);
    assert_eq!(select(|s| s.pending = true), [1, 2, 3]);
    assert_eq!(select(|s| s.given_up = true), [0; 0]);
    assert_eq!(select(|s| s.ids = vec![id(4), id(9), id(2), id(4)]), [2, 4]);
    assert_eq!(select(|s| s.routes = vec!["odd".into(), "other".into()]), [2, 3]);
    assert_eq!(select(|s| s.domains = vec!["d2.test".into()]), [3]);
    assert_eq!(select(|s| s.since = Some(Timestamp::from_unix_ms(2))), [2, 3, 4]);
    assert_eq!(select(|s| s.until = Some(Timestamp::from_unix_ms(2))), [1]);
    assert_eq!(select(|s| s.larger_bytes = Some(20)), [3, 4]);
    assert_eq!(select(|s| s.larger_bytes = Some(u64::MAX)), [0; 0]);
}

#[test]
fn what_was_given_up_is_found_among_all_that_is_settled_until_it_is_undone() {
    let mut events: Vec<_> = (1..=5).map(|n| arrival(n, 1)).collect();
    events.extend([operated(1, 0, Action::Remove), operated(2, 0, Action::Bounce), operated(3, 0, Action::Remove)]);
    events.extend([operated(3, 0, Action::Undo), attempted(4, 0, sent())]);
    for keep in [Keep::All, Keep::Unsent] {
        let index = filled(keep, events.clone());
        let select = |pending, given_up| ids(&index, &Selector { pending, given_up, ..Selector::default() });
        assert_eq!(
            (select(false, true), select(true, true), select(true, false)),
            (vec![1, 2], vec![1, 2, 3, 5], vec![3, 5])
        );
    }
}

#[test]
fn a_lost_message_that_another_journal_gave_back_is_listed_by_its_sender_and_recipients() {
    let lost = Event::Lost { id: id(1), recipients: 2 };
    let standing =
        |n| Standing { attempts: n, state: RecipientState::Hold, why: "as it was".into(), past: Past::default() };
    let again = Carried { accepted: accepted(1, 2, None), recipients: vec![standing(1), standing(2)] };
    let batch = changes(vec![lost, Event::Fact(Fact::Carried(again))]);
    for cut in [1, 2] {
        let mut index = Index::temporary(Keep::All).unwrap();
        index.apply(&batch[..cut]).unwrap();
        index.apply(&batch).unwrap();
        let rows = all(&index, &Selector { domains: vec!["d1.test".into()], pending: true, ..Selector::default() });
        assert_eq!((rows[0].size, rows[0].from.as_deref(), rows[0].position), (10, Some("a@b.test"), at(2)), "{cut}");
        assert_eq!(rows[0].recipients[0].addr.as_deref(), Some("r0@d0.Test"), "{cut}");
    }
}

#[test]
fn more_identifiers_than_one_question_takes_are_found() {
    let mut index = Index::temporary(Keep::All).unwrap();
    index.apply(&changes((1..=1_200).map(|n| arrival(n, 1)).collect())).unwrap();
    let wanted: Vec<_> = (1..=1_500).step_by(2).map(id).collect();
    let selector = Selector { ids: wanted, ..Selector::default() };
    assert_eq!(ids(&index, &selector).len(), 600);
}

#[test]
fn a_million_settled_messages_are_not_in_the_way_of_the_pending() {
    let index = filled(Keep::All, vec![arrival(1, 1)]);
    let (sql, values) = question(&PENDING, &[], Some(id(0)), 2);
    let mut explain = index.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let lines = explain.query_map(params_from_iter(values), |row| row.get(3)).unwrap();
    let plan: Vec<String> = lines.collect::<Result<_, _>>().unwrap();
    assert!(plan.len() == 1 && plan[0].contains("INDEX unsettled"), "{plan:?}");
}

#[test]
fn facts_told_twice_count_once_and_the_cursor_outlives_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index.sqlite");
    let batch = changes(vec![arrival(1, 1), attempted(1, 0, deferred("x")), arrival(2, 1)]);
    let mut index = Index::open(&path, &origin(), "boot").unwrap();
    assert_eq!((index.cursor().unwrap(), index.is_complete().unwrap()), (None, false));
    index.apply(&batch[..2]).unwrap();
    index.set_complete().unwrap();
    drop(index);
    let mut index = Index::open(&path, &origin(), "boot").unwrap();
    assert_eq!((index.cursor().unwrap(), index.is_complete().unwrap()), (Some(at(2)), true));
    index.apply(&batch).unwrap();
    index.apply(&batch).unwrap();
    let reader = Index::open_read_only(&path, "boot", |_| false).unwrap();
    assert_eq!((reader.cursor().unwrap(), reader.origin().unwrap()), (Some(at(3)), origin()));
    let rows = all(&reader, &PENDING);
    assert_eq!((rows.len(), rows[0].recipients[0].attempts), (2, 1));
}

#[track_caller]
fn assert_unusable(path: &Path, origin: &Origin) {
    match Index::open(path, origin, "boot") {
        Err(IndexError::Unusable(_)) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_not_our_index_of_this_journal_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index.sqlite");
    drop(Index::open(&path, &origin(), "boot").unwrap());
    assert_unusable(&path, &Origin { journal: 8, ..origin() });
    assert_unusable(&path, &Origin { damage: "more".into(), ..origin() });
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch("PRAGMA user_version = 99").unwrap();
    drop(connection);
    assert_unusable(&path, &origin());
    let other = directory.path().join("other.sqlite");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert_unusable(&other, &origin());
    assert!(Index::open_read_only(&other, "boot", |_| true).is_err());
    let none = Index::open_read_only(&directory.path().join("none"), "boot", |_| true);
    assert!(matches!(none, Err(IndexError::Unavailable(_))));
}

#[test]
fn an_index_in_use_when_the_power_failed_is_refused_and_a_closed_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index.sqlite");
    let open = |boot: &str| Index::open(&path, &origin(), boot);
    drop(open("one").unwrap());
    open("one").unwrap().close().unwrap();
    open("two").unwrap().close().unwrap();
    drop(open("").unwrap());
    for boot in ["", "two", "three"] {
        assert!(matches!(open(boot), Err(IndexError::Unusable(_))), "{boot}");
    }
}

#[test]
fn a_reader_believes_no_index_that_a_power_cut_may_have_mixed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index.sqlite");
    let read = |boot: &str| Index::open_read_only(&path, boot, |_| true).map(drop);
    let index = Index::open(&path, &origin(), "one").unwrap();
    assert!(read("one").is_ok());
    drop(index);
    assert!(read("one").is_ok(), "a process that was killed harms nothing");
    for boot in ["two", ""] {
        let why = read(boot).unwrap_err().to_string();
        assert_eq!(why, "the index is of no use: the machine went down while it was in use");
    }
    Index::open(&path, &origin(), "one").unwrap().close().unwrap();
    assert!(read("two").is_ok());
}

#[test]
fn a_reader_leaves_the_check_to_nobody_but_the_keeper_that_has_the_index_open() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index.sqlite");
    let mut index = Index::open(&path, &origin(), "boot").unwrap();
    index.apply(&changes((1..=200).map(|n| arrival(n, 3)).collect())).unwrap();
    index.set_keeper("12 34").unwrap();
    drop(index);
    // Behind the pages that every opening reads.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.iter_mut().skip(5 * 4_096).for_each(|byte| *byte = 0xA5);
    std::fs::write(&path, &bytes).unwrap();
    let read = |running: &str| Index::open_read_only(&path, "boot", |keeper| keeper == running).map(drop);
    assert!(read("12 34").is_ok());
    assert!(matches!(read("12 35"), Err(IndexError::Unusable(_))));
    // Closed: whoever runs now has not looked at it yet.
    rusqlite::Connection::open(&path).unwrap().execute_batch("UPDATE meta SET synced = 1").unwrap();
    assert!(matches!(read("12 34"), Err(IndexError::Unusable(_))));
}

#[test]
fn a_full_disk_takes_no_half_of_a_batch_and_the_index_goes_on_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let mut index = Index::open(&directory.path().join("index.sqlite"), &origin(), "boot").unwrap();
    let batch = changes((1..=500).map(|n| arrival(n, 2)).collect());
    index.apply(&batch[..1]).unwrap();
    let room = |index: &Index, pages: u32| {
        index
            .connection
            .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get::<_, i64>(0))
            .unwrap();
    };
    room(&index, 12);
    assert!(matches!(index.apply(&batch), Err(IndexError::Unavailable(_))));
    assert_eq!((index.cursor().unwrap(), all(&index, &PENDING).len()), (Some(at(1)), 1));
    room(&index, 1_000_000);
    index.apply(&batch).unwrap();
    assert_eq!((index.cursor().unwrap(), all(&index, &PENDING).len()), (Some(at(500)), 500));
}

#[test]
fn garbage_anywhere_is_refused_or_read_as_rows_and_never_panics() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index.sqlite");
    let mut index = Index::open(&path, &origin(), "boot").unwrap();
    index.apply(&changes((1..=200).map(|n| arrival(n, 3)).collect())).unwrap();
    drop(index);
    let good = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for start in (0..good.len()).step_by(1_021) {
        let mut bad = good.clone();
        for (n, byte) in bad.iter_mut().skip(start).take(300).enumerate() {
            *byte = u8::try_from((n * 131 + start) % 256).unwrap();
        }
        std::fs::write(&path, bad).unwrap();
        let read = Index::open_read_only(&path, "boot", |_| false)
            .and_then(|index| index.select(&Selector::default(), None, 1_000));
        refused += usize::from(read.is_err());
        let written =
            Index::open(&path, &origin(), "boot").and_then(|mut index| index.apply(&changes(vec![arrival(900, 1)])));
        assert!(!matches!(written, Err(IndexError::Unavailable(_))), "{written:?} at {start}");
    }
    assert!(refused > good.len() / 1_021 / 2, "{refused}");
    for bytes in [&b"garbage"[..], &[0xA5; 100_000], &good[..good.len() / 2]] {
        std::fs::write(&path, bytes).unwrap();
        assert_unusable(&path, &origin());
    }
}

/// What can be said of both, for each message that is not wholly sent.
type Digest = Vec<(TransactionId, Position, u64, Vec<(RecipientState, u16)>)>;

fn of_ledger(ledger: &Ledger) -> Digest {
    let entries = |t: &restante_ledger::Transaction| t.recipients.iter().map(|r| (r.state, r.attempts)).collect();
    ledger.iter().map(|(id, t)| (id, t.position, t.content_len, entries(t))).collect()
}

fn of_rows(rows: Vec<Row>) -> Digest {
    let entries = |row: &Row| row.recipients.iter().map(|r| (r.state, r.attempts)).collect::<Vec<_>>();
    let is_sent = |row: &Row| row.recipients.iter().all(|r| r.state == RecipientState::Sent);
    rows.iter().filter(|row| !is_sent(row)).map(|row| (row.id, row.position, row.size, entries(row))).collect()
}

fn take(ledger: &mut Ledger, position: Position, event: &Event) {
    match event {
        Event::Fact(fact) => _ = ledger.apply(position, fact),
        Event::Damaged(accepted) => ledger.apply_damaged(position, accepted),
        Event::DamagedCarried(carried) => ledger.apply_damaged_carried(position, carried),
        Event::Lost { id, recipients } => ledger.apply_lost(position, *id, *recipients),
    }
}

/// `who` again as it stands, or one whose first record has left.
fn carried(ledger: &Ledger, who: u128, arrived: &mut u128, index: u16, is_damaged: bool) -> Event {
    let known = ledger.get(id(who)).map(|t| t.recipients.iter().map(|r| (r.attempts, r.state)).collect::<Vec<_>>());
    let (who, states) = known.map_or_else(
        || {
            *arrived += 1;
            (*arrived, vec![(2, RecipientState::Hold); usize::from(index) + 1])
        },
        |states| (who, states),
    );
    let standing = |(attempts, state)| Standing { attempts, state, why: "as it was".into(), past: Past::default() };
    let recipients: Vec<_> = states.into_iter().map(standing).collect();
    let accepted = accepted(who, u16::try_from(recipients.len()).unwrap(), None);
    let carried = Carried { accepted, recipients };
    if is_damaged { Event::DamagedCarried(carried) } else { Event::Fact(Fact::Carried(carried)) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_index_says_what_the_ledger_says(
        steps in proptest::collection::vec((0u8..14, 1u128..6, 0u16..4), 0..60),
        cut in 0usize..60,
    ) {
        let (mut ledger, mut arrived, mut events) = (Ledger::new(), 0, Vec::new());
        for (kind, who, index) in steps {
            let (who, cause) = (who.min(arrived.max(1)), Cause::Local("why".into()));
            let arrives = |arrived: &mut u128| { *arrived += 1; accepted(*arrived, index + 1, (index == 2).then_some("loop")) };
            events.push(match kind {
                0 | 1 => Event::Fact(Fact::Accepted(arrives(&mut arrived))),
                2 => Event::Damaged(arrives(&mut arrived)),
                3 => { arrived += 1; Event::Lost { id: id(arrived), recipients: index + 1 } }
                4 => attempted(who, index, sent()),
                5 => attempted(who, index, deferred("x")),
                6 => attempted(who, index, if index == 0 { Outcome::Quarantined(cause) } else { Outcome::Held(cause) }),
                7 => operated(who, index, Action::Hold),
                8 => operated(who, index, Action::Release),
                9 => operated(who, index, Action::Bounce),
                10 => operated(who, index, Action::Remove),
                11 => operated(who, index, Action::Undo),
                _ => carried(&ledger, who, &mut arrived, index, kind == 13),
            });
            let change = changes(vec![events[events.len() - 1].clone()]).remove(0);
            let position = Position { offset: events.len() as u64, ..change.position };
            take(&mut ledger, position, &change.event);
        }
        let batch = changes(events);
        let mut ledger = Ledger::new();
        for Change { position, event, .. } in &batch {
            take(&mut ledger, *position, event);
        }
        for keep in [Keep::All, Keep::Unsent] {
            let mut index = Index::temporary(keep).unwrap();
            // In two batches, and with what stands in front of the cursor told again.
            let (first, _) = batch.split_at(cut.min(batch.len()));
            index.apply(first).unwrap();
            index.apply(&batch).unwrap();
            let everything = all(&index, &Selector::default());
            let pending: Vec<_> = all(&index, &PENDING);
            let unsettled: Vec<_> = everything.iter().filter(|row| !row.recipients.iter().all(|r| r.state.is_settled())).cloned().collect();
            prop_assert_eq!(&pending, &unsettled);
            if keep == Keep::Unsent {
                prop_assert_eq!(everything.len(), of_ledger(&ledger).len());
            }
            prop_assert_eq!(of_rows(everything), of_ledger(&ledger));
        }
    }
}
