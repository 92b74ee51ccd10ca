//! The golden journals in `journal/fixtures`: how they were made, and what must be read from them for ever. One for each
//! lettered case of FORMAT.md section 6, in its order, and one good. Making them again is by hand alone: today's writer
//! may write other bytes, and these must still be read.

use super::*;
use crate::header::{PAGE_BYTES, file_name, parse_file_name};
use crate::storage::{SegmentFile, Storage};
use crate::{Cargo, Damage, DirStorage, Sink};
use restante_envelope::{DsnRequest, EnvelopeId, Notify, OriginalRecipient, Ret};
use restante_ledger::{
    Accepted, Action, Base, Carried, Cause, NextHop, Operated, Past, Position, RecipientState, ReplayMark, Replayed,
    RouteRecord, Served, Standing,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::path::PathBuf;

/// Segments of the good journal are short, so that it has several.
const GOOD: Options = Options { segment_bytes: 48 << 10 };
const BLOB: BlobName = BlobName::from_bits(0xb10b);

pub(super) fn directory(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Everything that a replay tells, as a digest, and who was told to be lost.
#[derive(Default)]
pub(super) struct Told {
    pub(super) ledger: Ledger,
    digest: Sha256,
    positions: Vec<Position>,
    pub(super) intact: Vec<TransactionId>,
    pub(super) lost: Vec<TransactionId>,
}

impl Told {
    fn add(&mut self, what: u8, position: Position, parts: &[&[u8]]) {
        self.digest.update([what]);
        self.digest.update(position.segment.to_le_bytes());
        self.digest.update(position.offset.to_le_bytes());
        for part in parts {
            self.digest.update((part.len() as u64).to_le_bytes());
            self.digest.update(part);
        }
    }
}

impl Sink for Told {
    fn fact(&mut self, position: Position, fact: &Fact) {
        let record = Prepared::fact(fact, Vec::new());
        let id = record.id.map_or(0, TransactionId::to_bits).to_le_bytes();
        self.add(record.kind.code(), position, &[&id, &record.meta]);
        if let Fact::Accepted(accepted) = fact {
            self.positions.push(position);
            self.intact.push(accepted.id);
        }
        self.ledger.apply(position, fact);
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        self.add(101, position, &[&accepted.id.to_bits().to_le_bytes()]);
        self.lost.push(accepted.id);
        self.ledger.apply_damaged(position, accepted);
    }
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        self.add(102, position, &[&id.to_bits().to_le_bytes(), &recipients.to_le_bytes()]);
        self.lost.push(id);
        self.ledger.apply_lost(position, id, recipients);
    }
    fn unnamed(&mut self, segment: u64, transactions: u64, recipients: u64) {
        self.digest.update([103]);
        self.digest.update(transactions.to_le_bytes());
        self.digest.update(recipients.to_le_bytes());
        self.ledger.apply_unnamed(segment, transactions, recipients);
    }
    fn damaged_carried(&mut self, position: Position, carried: &Carried) {
        self.ledger.apply_damaged_carried(position, carried);
    }
    fn begins_after(&mut self, base: &Base) {
        self.ledger.apply_base(base);
    }
}

fn place(place: &Damage) -> Value {
    let ids: Vec<_> = place.ids.iter().map(ToString::to_string).collect();
    json!({"segment": place.segment, "offset": place.offset, "bytes": place.bytes, "kind": place.kind.as_str(), "ids": ids,
           "blob": place.blob.map(BlobName::file)})
}

/// What a journal says, all of it: contents too.
fn account<S: Storage + Clone>(storage: &S) -> Value {
    let mut told = Told::default();
    let replay = replay(storage, Depth::Everything, &mut told).unwrap();
    let mut reader = Reader::new(storage.clone());
    for position in std::mem::take(&mut told.positions) {
        let content = reader.message(position).unwrap().content.read_all().unwrap();
        told.add(100, position, &[&content]);
    }
    let b = told.ledger.balance();
    assert!(b.is_even());
    let digest: String = told.digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "state": replay.report.state().as_str(), "segments": replay.segments, "bytes": replay.bytes, "blobs": replay.blobs,
        "transactions": b.transactions, "accepted": b.accepted, "pending": b.pending, "sent": b.sent,
        "quarantined": b.quarantined,
        "lost": told.lost.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "damage": replay.report.damage.iter().map(place).collect::<Vec<_>>(),
        "torn": replay.report.torn.iter().map(place).collect::<Vec<_>>(),
        "orphans": replay.orphans.iter().map(|orphan| orphan.file.clone()).collect::<Vec<_>>(),
        "facts_sha256": digest,
    })
}

fn attempt(id: TransactionId, results: Vec<(u16, Outcome)>) -> Prepared {
    let attempted = Attempted { id, at: now(), next_hop: None, timings: Timings::default(), results };
    Prepared::fact(&Fact::Attempted(attempted), Vec::new())
}

fn operated(id: TransactionId, action: Action) -> Prepared {
    let (actor, reason) = ("root".to_owned(), "looked at it".to_owned());
    Prepared::fact(&Fact::Operated(Operated { id, at: now(), action, recipients: vec![0], actor, reason }), Vec::new())
}

fn served() -> Prepared {
    let names = |name: &str| vec![name.to_owned()];
    let (domains, primary) = (names("example.test"), names("mail.example.test:25"));
    let routes = vec![RouteRecord { name: "example.test".into(), domains, primary }];
    Prepared::fact(&Fact::Served(Served { at: now(), hostname: "mx2.example.test".into(), routes }), Vec::new())
}

fn start(storage: &SimStorage, options: Options) -> Writer<SimStorage> {
    storage.restart();
    let (replay, ledger) = fold(storage, Depth::Records);
    Writer::open(storage.clone(), options, &replay, ledger.largest_id(), SEED, now()).unwrap()
}

fn commit(writer: &mut Writer<SimStorage>, records: &[Prepared]) -> Vec<TransactionId> {
    records.iter().for_each(|record| writer.stage(record, now()).unwrap());
    writer.commit(now()).unwrap().receipts().iter().map(|receipt| receipt.id()).collect()
}

fn text(n: usize) -> Vec<u8> {
    let line =
        |i: usize| format!("{:016x} {:016x} line {i}\r\n", (n * 31 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15), n ^ i);
    format!("Subject: {n}\r\n\r\n{}", (0..n * 7 % 37).map(line).collect::<String>()).into_bytes()
}

/// Two hundred messages: segments that are sealed, one that was left by a crash and is followed, and one that is in use.
fn good() -> SimStorage {
    let storage = SimStorage::default();
    let mut writer = start(&storage, GOOD);
    commit(&mut writer, &[served()]);
    for n in 0..50 {
        if n == 21 {
            // The process was killed.
            drop(writer);
            writer = start(&storage, GOOD);
            commit(&mut writer, &[served()]);
        }
        let mail = |k: usize| message(&text(n * 4 + k), 1 + (n + k) % 3);
        let mut records: Vec<_> = (0..3).map(mail).collect();
        if n % 17 == 3 {
            let mut blob = BlobWriter::create(&storage, BlobName::from_bits(0x1000 + n as u128)).unwrap();
            blob.write(&text(n + 300).repeat(3)).unwrap();
            let (envelope, trace) = envelope(2);
            records.push(Prepared::accepted_in_blob(&envelope, &trace, &blob.finish().unwrap(), None));
        } else {
            records.push(mail(3));
        }
        let ids = commit(&mut writer, &records);
        let later = Outcome::Deferred { cause: Cause::Local("later".into()), next_at: now() };
        let facts = [sent(ids[0]), attempt(ids[1], vec![(0, later)]), operated(ids[2], Action::Hold)];
        if n % 2 == 0 {
            commit(&mut writer, &facts);
        }
        if n % 5 == 0 {
            commit(&mut writer, &[operated(ids[2], Action::Release)]);
            writer.prove_last_batch().unwrap();
        }
    }
    storage
}

/// How a small journal ends.
#[derive(PartialEq)]
enum End {
    Sealed,
    Killed,
}

/// Frames of the small journal, by their order in it.
const SECOND: usize = 1;
const SENT: usize = 4;
const THIRD: usize = 3;
const LAST_MARK: usize = 5;

/// A batch of messages, of two recipients and of one in a blob; a batch of one message and a settlement: the second was sent to its first recipient.
fn small(end: End) -> SimStorage {
    let storage = SimStorage::default();
    let mut writer = start(&storage, SMALL);
    let mut blob = BlobWriter::create(&storage, BLOB).unwrap();
    blob.write(b"Subject: large\r\n\r\nlarge, so to speak\r\n").unwrap();
    let (envelope, trace) = envelope(1);
    let large = Prepared::accepted_in_blob(&envelope, &trace, &blob.finish().unwrap(), None);
    let ids = commit(&mut writer, &[large, message(b"Subject: second\r\n\r\nsecond\r\n", 2)]);
    commit(&mut writer, &[message(b"Subject: third\r\n\r\nthird\r\n", 1), sent(ids[1])]);
    if end == End::Sealed {
        writer.close().unwrap();
    }
    storage
}

/// Where the frames of a segment stand, seals and marks too.
pub(super) fn frames(bytes: &[u8]) -> Vec<crate::frame::FrameHeader> {
    let mut frames = Vec::new();
    let mut at = PAGE_BYTES;
    while at < bytes.len() {
        let header = crate::frame::FrameHeader::decode(&bytes[at..]).filter(|h| h.offset == at as u64);
        at = header.map_or(at + 8, |h| h.end() as usize);
        frames.extend(header);
    }
    frames
}

/// The small journal with one thing done to frame `nth` of its only segment.
fn spoilt(end: End, nth: usize, spoil: impl Fn(&mut Vec<u8>, crate::frame::FrameHeader)) -> SimStorage {
    let storage = small(end);
    storage.alter(&file_name(1), |bytes| {
        let frame = frames(bytes)[nth];
        spoil(bytes, frame);
    });
    storage
}

fn header(bytes: &mut [u8], frame: crate::frame::FrameHeader) {
    bytes[frame.offset as usize + 20] ^= 1;
}

fn meta(bytes: &mut [u8], frame: crate::frame::FrameHeader) {
    bytes[frame.meta_offset() as usize + 3] ^= 1;
}

fn content(bytes: &mut [u8], frame: crate::frame::FrameHeader) {
    bytes[frame.content_offset() as usize + 2] ^= 1;
}

fn spoilt_bytes(places: &[usize]) -> SimStorage {
    let storage = small(End::Sealed);
    storage.alter(&file_name(1), |bytes| places.iter().for_each(|at| bytes[*at] ^= 1));
    storage
}

fn padding_page_and_behind_the_seal() -> SimStorage {
    let storage = spoilt(End::Sealed, SECOND, |bytes, frame| {
        assert!(frame.padding_offset() < frame.end(), "a frame with padding");
        bytes[frame.padding_offset() as usize] = 1;
        bytes[1000] = 1;
        bytes.extend(*b"what is this");
    });
    assert_eq!(account(&storage)["damage"].as_array().unwrap().len(), 3);
    storage
}

fn missing_segment() -> SimStorage {
    let storage = small(End::Sealed);
    for n in 0..2 {
        let mut writer = start(&storage, SMALL);
        commit(&mut writer, &[message(&text(n), 1)]);
        writer.close().unwrap();
    }
    storage.remove(&file_name(2)).unwrap();
    storage
}

fn dealt_with() -> SimStorage {
    let storage = spoilt(End::Killed, THIRD, |bytes, frame| header(bytes, frame));
    open(&storage).unwrap().close().unwrap();
    storage
}

fn without_blob() -> SimStorage {
    let storage = small(End::Sealed);
    storage.remove(&BLOB.file()).unwrap();
    storage
}

fn rotten_blob() -> SimStorage {
    let storage = small(End::Sealed);
    storage.alter(&BLOB.file(), |bytes| bytes[3] ^= 1);
    storage
}

fn without_message_and_mark() -> SimStorage {
    let storage = small(End::Sealed);
    storage.alter(&file_name(1), |bytes| {
        let frames = frames(bytes);
        [THIRD, LAST_MARK].iter().for_each(|nth| header(bytes, frames[*nth]));
    });
    storage
}

/// Of format 2, with what was offered once more: a message that is sent, one that is pending, a server, and none.
fn replayed() -> SimStorage {
    let storage = SimStorage::default();
    let mut writer = start(&storage, SMALL);
    let ids = commit(&mut writer, &[message(b"Subject: first\r\n\r\nfirst\r\n", 2), message(b"second\r\n", 1)]);
    commit(&mut writer, &[sent(ids[0])]);
    let hop = NextHop { host: "mail.example.test".into(), ip: "192.0.2.1".parse().unwrap(), port: 25, tls: None };
    let record = |id, next_hop, results| {
        let (actor, reason) = ("root".to_owned(), "the disk died".to_owned());
        let position = Position { segment: 1, offset: PAGE_BYTES as u64 };
        let replayed = Replayed { id, at: now(), position, job: 7, actor, reason, next_hop, results };
        Prepared::fact(&Fact::Replayed(replayed), Vec::new())
    };
    let taken = Reply::new(250, Some(restante_envelope::EnhancedStatus::new(2, 0, 0)), "Ok");
    let refused = Reply::new(550, None, "no such user");
    commit(
        &mut writer,
        &[record(ids[0], Some(hop), vec![(0, taken.clone())]), record(ids[1], None, vec![(0, refused)])],
    );
    // Of a message that nobody knows.
    commit(&mut writer, &[record(TransactionId::from_bits(7), None, vec![(0, taken)])]);
    writer.close().unwrap();
    storage
}

/// What the sender asked for, in a record, before a blob, and carried.
fn requests() -> SimStorage {
    let storage = SimStorage::default();
    let mut writer = start(&storage, SMALL);
    let (mut asked, mut trace) = envelope(3);
    let recipients = &mut asked.recipients;
    recipients[0].dsn.notify = Some(Notify::Never);
    recipients[1].dsn.notify = Some(Notify::On { success: true, failure: true, delay: false });
    recipients[1].dsn.original = Some(OriginalRecipient::parse("rfc822;R1+2Bx@Example.test").unwrap());
    asked.dsn = DsnRequest { ret: Some(Ret::Headers), envid: Some(EnvelopeId::parse("QQ+2B314159").unwrap()) };
    let mut utf8 = Envelope { smtputf8: true, ..envelope(1).0 };
    utf8.reverse_path = ReversePath::parse_utf8("j\u{f6}rg@b\u{fc}cher.test").unwrap();
    utf8.recipients[0].forward_path = ForwardPath::parse_utf8("\u{7528}\u{6237}@example.test").unwrap();
    let first = Prepared::accepted(&asked, &trace, b"first\r\n".to_vec(), None);
    trace.protocol = Protocol::Utf8Smtp;
    let mut blob = BlobWriter::create(&storage, BLOB).unwrap();
    blob.write("Subject: \u{fc}\r\n\r\n".as_bytes()).unwrap();
    let second = Prepared::accepted_in_blob(&utf8, &trace, &blob.finish().unwrap(), None);
    let ids = commit(&mut writer, &[first, second]);
    let accepted = Accepted { id: ids[0], envelope: asked, trace: envelope(1).1, content_len: 7, hold: None };
    let standing = Standing { attempts: 0, state: RecipientState::Due, why: String::new(), past: Past::default() };
    let cargo = Cargo::in_record(accepted, b"first\r\n".to_vec());
    commit(&mut writer, &[Prepared::carried(cargo, vec![standing; 3]).0]);
    writer.close().unwrap();
    storage
}

/// Written again, once with everything that a record can have: requests, a past, a blob; and the past written again.
fn carried_with_a_past() -> SimStorage {
    let storage = SimStorage::default();
    let mut writer = start(&storage, SMALL);
    let (envelope, trace) = envelope(3);
    let id = commit(&mut writer, &[Prepared::accepted(&envelope, &trace, b"as it was\r\n".to_vec(), None)])[0];
    let mut asked = Accepted { id, envelope, trace, content_len: 11, hold: None };
    asked.envelope.dsn.ret = Some(Ret::Full);
    let mark = |job, taken| ReplayMark { job, taken };
    let standing = |state, past| Standing { attempts: 1, state, why: String::new(), past };
    let recipients = vec![
        standing(RecipientState::Sent, Past { sent_at: Some(now()), replays: vec![mark(7, true), mark(8, false)] }),
        standing(RecipientState::Hold, Past::default()),
        standing(RecipientState::Sent, Past { sent_at: None, replays: vec![mark(7, false)] }),
    ];
    let mut blob = BlobWriter::create(&storage, BLOB).unwrap();
    blob.write(b"as it was\r\n").unwrap();
    let cargo = Cargo::in_blob(asked.clone(), &blob.finish().unwrap());
    commit(&mut writer, &[Prepared::carried(cargo, recipients.clone()).0]);
    asked.envelope.dsn.ret = None;
    commit(&mut writer, &[Prepared::carried(Cargo::in_record(asked, b"as it was\r\n".to_vec()), recipients).0]);
    writer.close().unwrap();
    storage
}

struct Case {
    name: &'static str,
    make: fn() -> SimStorage,
    state: &'static str,
    /// Kinds of damage, then of what is torn.
    kinds: &'static [&'static str],
    /// Recipients quarantined.
    quarantined: u64,
    /// Recipients accepted: what is torn counts nowhere.
    accepted: u64,
}

const fn case(
    name: &'static str,
    make: fn() -> SimStorage,
    state: &'static str,
    kinds: &'static [&'static str],
    quarantined: u64,
    accepted: u64,
) -> Case {
    Case { name, make, state, kinds, quarantined, accepted }
}

/// In the order of FORMAT.md section 6, by letter.
const CASES: &[Case] = &[
    // No header, only zeros to the end: clean, nothing is done.
    case("A", || small(End::Killed), "clean", &[], 0, 4),
    // No valid header, unproven: torn, set aside, counts nowhere.
    case("B", || spoilt(End::Killed, THIRD, |bytes, frame| header(bytes, frame)), "torn", &["frame"], 0, 3),
    // No valid header, proven: its message is named by the mark and quarantined.
    case("C", || spoilt(End::Sealed, THIRD, |bytes, frame| header(bytes, frame)), "damaged", &["frame"], 1, 4),
    // Header valid, content wrong, unproven: torn.
    case("D", || spoilt(End::Killed, THIRD, |bytes, frame| content(bytes, frame)), "torn", &["content"], 0, 3),
    // Header valid, content wrong, proven: that message is quarantined, but for a recipient that is recorded as sent.
    case("E", || spoilt(End::Sealed, SECOND, |bytes, frame| content(bytes, frame)), "damaged", &["content"], 1, 4),
    // Meta of a message wrong, proven: quarantined by id and number of recipients.
    case("F", || spoilt(End::Sealed, SECOND, |bytes, frame| meta(bytes, frame)), "damaged", &["envelope"], 1, 4),
    // Meta of another kind wrong, proven: that record has no effect.
    case("G", || spoilt(End::Sealed, SENT, |bytes, frame| meta(bytes, frame)), "damaged", &["envelope"], 0, 4),
    // One copy of the header page wrong: read by the other.
    case("H", || spoilt_bytes(&[20]), "damaged", &["header-page"], 0, 4),
    // Both wrong: number from the file name, tag from the frames.
    case("I", || spoilt_bytes(&[20, 2048 + 20]), "damaged", &["header-page"], 0, 4),
    // Padding, page or bytes behind a seal not zero: nothing is lost.
    case("J", padding_page_and_behind_the_seal, "damaged", &["header-page", "padding", "frame"], 0, 4),
    // A number is missing between two: the next header counts what is missing.
    case("K", missing_segment, "damaged", &["missing-segment", "unnamed"], 1, 6),
    // More is counted than frames and names show: quarantined without a name.
    case("L", without_message_and_mark, "damaged", &["frame", "frame", "unnamed"], 1, 4),
    // A range listed in a succession: was torn, and is ignored.
    case("M", dealt_with, "clean", &[], 0, 3),
    // The file is shorter than its made bytes: damaged.
    case("N", || spoilt(End::Killed, 0, |bytes, _| bytes.truncate(PAGE_BYTES + 3000)), "damaged", &["frame"], 0, 4),
    // The blob that a valid frame names is missing: its message is quarantined.
    case("O", without_blob, "damaged", &["blob-missing"], 1, 4),
    // It fails its checksums: the same.
    case("P", rotten_blob, "damaged", &["blob"], 1, 4),
    // The table of a blob wrong, proven: as E, and the blob is no orphan.
    case("Q", || spoilt(End::Sealed, 0, |bytes, frame| content(bytes, frame)), "damaged", &["content"], 1, 4),
];

/// Cuts the zeros ahead of an unsealed segment to what ends at a page, and says so in its header: megabytes of nothing
/// need not be kept for ever.
fn shorten(bytes: &mut Vec<u8>) {
    let crate::header::Page::Intact(mut header) = crate::header::SegmentHeader::decode(&bytes[..PAGE_BYTES]) else {
        return;
    };
    if bytes.len() < header.made_bytes as usize || header.made_bytes < 1 << 20 || bytes.last() != Some(&0) {
        return;
    }
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes.truncate((used + 1).next_multiple_of(PAGE_BYTES));
    bytes.resize(bytes.len() + PAGE_BYTES, 0);
    header.made_bytes = bytes.len() as u32;
    bytes.splice(..PAGE_BYTES, header.encode());
}

fn all() -> impl Iterator<Item = (&'static str, SimStorage)> {
    CASES.iter().map(|case| (case.name, (case.make)())).chain([("good", good())])
}

#[test]
#[ignore = "golden journals are kept for ever; to add one, run this and commit nothing but the new one"]
fn make_fixtures() {
    let others = [("replayed", replayed()), ("requests", requests()), ("carried", carried_with_a_past())];
    for (name, storage) in all().chain(leave::fixtures()).chain(others) {
        let directory = directory(name);
        std::fs::create_dir_all(directory.join("blob")).unwrap();
        for file in storage.files().iter().filter(|file| !file.starts_with("torn/")) {
            if parse_file_name(file).is_some() {
                storage.alter(file, shorten);
            }
            std::fs::write(directory.join(file), storage.bytes(file)).unwrap();
        }
        let account = serde_json::to_string_pretty(&account(&DirStorage::open(&directory).unwrap())).unwrap();
        std::fs::write(directory.join("expected.json"), account + "\n").unwrap();
    }
}

#[test]
fn golden_journals_are_read_as_they_always_were() {
    let others = ["good", "left", "left-dead", "left-rot", "replayed", "requests", "carried"];
    for name in CASES.iter().map(|case| case.name).chain(others) {
        let directory = directory(name);
        let expected: Value = serde_json::from_slice(&std::fs::read(directory.join("expected.json")).unwrap()).unwrap();
        assert_eq!(account(&DirStorage::open(&directory).unwrap()), expected, "{name}");
    }
}

#[test]
fn each_lettered_case_is_dealt_with_as_the_format_says() {
    assert_eq!(CASES.iter().map(|case| case.name).collect::<String>(), "ABCDEFGHIJKLMNOPQ");
    for case in CASES {
        let storage = DirStorage::open(&directory(case.name)).unwrap();
        let found = account(&storage);
        let kinds: Vec<_> = ["damage", "torn"].iter().flat_map(|list| found[list].as_array().unwrap()).collect();
        let kinds: Vec<_> = kinds.iter().map(|place| place["kind"].as_str().unwrap()).collect();
        assert_eq!((found["state"].as_str().unwrap(), &kinds[..]), (case.state, case.kinds), "case {}", case.name);
        assert_eq!(found["quarantined"], case.quarantined, "case {}", case.name);
        assert_eq!(found["accepted"], case.accepted, "case {}", case.name);
        assert_eq!(found["orphans"], json!([]), "case {}", case.name);
        // What is not as written is set aside byte for byte, and named by where it stood.
        let disk = SimStorage::default();
        let copy = |name: &str| {
            let bytes = std::fs::read(directory(case.name).join(name)).unwrap();
            disk.create(name).unwrap().write_at(0, &bytes).unwrap();
            bytes
        };
        let segments = storage.list().unwrap();
        let segments: BTreeMap<_, _> =
            segments.iter().filter_map(|name| Some((parse_file_name(name)?, copy(name)))).collect();
        storage.list_blobs().unwrap().iter().for_each(|blob| drop(copy(&format!("blob/{}", blob.name))));
        let report = fold(&disk, Depth::Everything).0.report;
        set_aside(&disk, &report).unwrap();
        for place in report.damage.iter().chain(&report.torn).filter(|place| place.has_bytes()) {
            let (from, to) = (place.offset as usize, (place.offset + place.bytes) as usize);
            let whole = &segments[&place.segment];
            let aside = disk.bytes(&format!("torn/{:020}-{}.bin", place.segment, place.offset));
            assert_eq!(aside, whole[from.min(whole.len())..to.min(whole.len())], "case {}", case.name);
        }
    }
}
