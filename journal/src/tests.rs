//! The custody promise, tried on a simulated disk: every durable message is found again, whatever happened.

mod backup;
mod blob;
mod carried;
mod directory;
mod fixtures;
mod flips;
mod forged;
mod leave;
mod missing;
mod reader;
mod refusals;
mod room;
mod scrub;
mod sectors;
mod summary;
mod unopened;

use crate::header::FORMAT_2_BYTES;
use crate::record::Prepared;
use crate::sim::SimStorage;
use crate::{
    BlobError, BlobName, BlobWriter, CommitError, Depth, Options, ReadError, Reader, Replay, Seed, State, Writer,
    remove_parts, replay, set_aside, set_orphans_aside, start, sync_last_segment,
};
use restante_envelope::{
    BodyType, Envelope, ForwardPath, Protocol, Recipient, Reply, ReversePath, RouteName, Timestamp, Trace,
    TransactionId,
};
use restante_ledger::{Attempted, Fact, Ledger, Outcome, Timings};
use std::collections::BTreeMap;
use std::io::ErrorKind;

const SEED: Seed = Seed { journal: 42, entropy: 7, tags: 8 };
/// Small, so that short histories see several segments.
const SMALL: Options = Options { segment_bytes: 16 << 10 };

/// Makes the checksum of a copy of a header right again.
fn seal_header(copy: &mut [u8]) {
    let (fields, crc) = copy.split_at_mut(FORMAT_2_BYTES - 4);
    crc.copy_from_slice(&crc32c::crc32c(fields).to_le_bytes());
}

fn now() -> Timestamp {
    Timestamp::from_unix_ms(1_795_359_200_118)
}

fn message(content: &[u8], recipients: usize) -> Prepared {
    let (envelope, trace) = envelope(recipients);
    Prepared::accepted(&envelope, &trace, content.to_vec(), None)
}

/// A message in a blob of its own, on stable storage.
fn large(storage: &SimStorage, content: &[u8], recipients: usize) -> Result<Prepared, BlobError> {
    let mut blob = BlobWriter::create(storage, BlobName::from_bits(u128::from(storage.calls())))?;
    for piece in content.chunks(400) {
        blob.write(piece)?;
    }
    let (envelope, trace) = envelope(recipients);
    Ok(Prepared::accepted_in_blob(&envelope, &trace, &blob.finish()?, None))
}

fn envelope(recipients: usize) -> (Envelope, Trace) {
    let recipient =
        |n| Recipient::new(ForwardPath::parse(&format!("r{n}@example.test")).unwrap(), RouteName::new("example.test"));
    let envelope = Envelope::new(
        ReversePath::parse("a@b.test").unwrap(),
        (0..recipients).map(recipient).collect(),
        BodyType::SevenBit,
    );
    let trace = Trace {
        client: "192.0.2.1:4000".parse().unwrap(),
        helo: "c.test".into(),
        protocol: Protocol::Esmtp,
        tls: None,
        session: 1,
        received_at: now(),
    };
    (envelope, trace)
}

fn sent(id: TransactionId) -> Prepared {
    let results = vec![(0, Outcome::Sent(Reply::new(250, None, "ok")))];
    Prepared::fact(
        &Fact::Attempted(Attempted { id, at: now(), next_hop: None, timings: Timings::default(), results }),
        Vec::new(),
    )
}

fn content(n: usize) -> Vec<u8> {
    format!("Subject: {n}\r\n\r\n{}\r\n", "x".repeat(n * 37 % 900)).into_bytes()
}

fn fold(storage: &SimStorage, depth: Depth) -> (Replay, Ledger) {
    let mut ledger = Ledger::new();
    let replay = replay(storage, depth, &mut ledger).unwrap();
    assert!(ledger.balance().is_even());
    (replay, ledger)
}

/// As a daemon begins; what the summaries tell is what the segments do.
fn begin(storage: &SimStorage) -> (Replay, Ledger) {
    let mut ledger = Ledger::new();
    let mut begun = start(storage, &mut ledger).unwrap();
    let (mut whole, known) = fold(storage, Depth::Records);
    assert_eq!(begun.carried_blobs, whole.carried_blobs);
    let carried = std::mem::take(&mut begun.carried_blobs);
    whole.carried_blobs = Default::default();
    // What rotted behind a summary is the scrub's to find.
    if whole.report.state() != State::Damaged {
        assert_eq!(format!("{ledger:?}"), format!("{known:?}"));
        assert_eq!(format!("{begun:?}"), format!("{whole:?}"));
    }
    begun.carried_blobs = carried;
    (begun, ledger)
}

fn open(storage: &SimStorage) -> Result<Writer<SimStorage>, CommitError> {
    storage.restart();
    sync_last_segment(storage).map_err(CommitError::Failed)?;
    let (replay, ledger) = begin(storage);
    set_aside(storage, &replay.report).map_err(CommitError::Failed)?;
    set_orphans_aside(storage, &replay).map_err(CommitError::Failed)?;
    remove_parts(storage, &replay).map_err(CommitError::Failed)?;
    Writer::open(storage.clone(), SMALL, &replay, ledger.largest_id(), SEED, now())
}

/// A history of batches of 1 to 4 messages, every third message in a blob, every third message sent. Stops at the first failure. Returns what was promised.
fn history(storage: &SimStorage, batches: usize) -> (BTreeMap<TransactionId, Vec<u8>>, Vec<TransactionId>) {
    let (mut promised, mut settled) = (BTreeMap::new(), Vec::new());
    let Ok(mut writer) = open(storage) else { return (promised, settled) };
    for batch in 0..batches {
        let contents: Vec<_> = (0..batch % 4 + 1).map(|n| content(batch * 5 + n)).collect();
        for (n, content) in contents.iter().enumerate() {
            let is_large = (batch + n) % 3 == 1;
            let record = if is_large { large(storage, content, 1) } else { Ok(message(content, 1)) };
            let Ok(record) = record else { return (promised, settled) };
            if writer.stage(&record, now()).is_err() {
                return (promised, settled);
            }
        }
        let done: Vec<_> = promised.keys().copied().filter(|id| !settled.contains(id)).step_by(3).take(1).collect();
        if done.iter().any(|id| writer.stage(&sent(*id), now()).is_err()) {
            return (promised, settled);
        }
        let Ok(durable) = writer.commit(now()) else { return (promised, settled) };
        for (receipt, content) in durable.receipts().iter().zip(contents) {
            promised.insert(receipt.id(), content);
        }
        settled.extend(done);
        if batch % 5 == 4 && writer.prove_last_batch().is_err() {
            return (promised, settled);
        }
    }
    let _ = writer.close();
    (promised, settled)
}

/// Every promised message is sent or can be read byte for byte.
fn assert_kept(
    storage: &SimStorage,
    ledger: &Ledger,
    promised: &BTreeMap<TransactionId, Vec<u8>>,
    settled: &[TransactionId],
) {
    let mut reader = Reader::new(storage.clone());
    for (id, content) in promised {
        match ledger.get(*id) {
            Some(t) => assert_eq!(&reader.message(t.position).unwrap().content.read_all().unwrap(), content, "{id}"),
            None => assert!(ledger.balance().sent > 0, "{id} is gone"),
        }
    }
    for (id, t) in ledger.iter() {
        let ghost = |error| panic!("{id} is counted and cannot be read: {error}");
        reader.message(t.position).and_then(|stored| stored.content.read_all()).unwrap_or_else(ghost);
    }
    for id in settled {
        assert_eq!(ledger.get(*id), None, "{id} was settled and is pending again");
    }
}

#[test]
fn what_was_committed_is_read_back_and_ids_grow_over_a_restart() {
    let storage = SimStorage::default();
    let (promised, settled) = history(&storage, 20);
    let (replay, ledger) = fold(&storage, Depth::Everything);
    assert_eq!(replay.report.state(), State::Clean);
    assert!(replay.segments > 2);
    assert_kept(&storage, &ledger, &promised, &settled);
    assert_eq!(ledger.balance().pending as usize, promised.len() - settled.len());
    let (more, _) = history(&storage, 2);
    assert!(more.keys().next() > promised.keys().last());
}

#[test]
fn a_power_cut_at_any_call_loses_nothing_promised() {
    let whole = SimStorage::default();
    history(&whole, 12);
    let mut orphans = 0;
    for call in 1..=whole.calls() {
        let storage = SimStorage::default();
        storage.die_at(call);
        let (promised, settled) = history(&storage, 12);
        for seed in 0..8 {
            let cut = storage.power_cut(seed);
            let (first, ledger) = fold(&cut, Depth::Everything);
            assert_ne!(first.report.state(), State::Damaged, "call {call} seed {seed}: {:?}", first.report);
            assert_kept(&cut, &ledger, &promised, &settled);
            // What is torn is dealt with once: from then on the journal is clean, and says the same.
            open(&cut).unwrap().close().unwrap();
            let (second, again) = fold(&cut, Depth::Everything);
            assert_eq!(second.report.state(), State::Clean, "call {call} seed {seed}: {:?}", second.report);
            assert_eq!(second.orphans, [], "call {call} seed {seed}");
            orphans += first.orphans.len();
            assert_eq!(again.balance(), ledger.balance());
            assert_kept(&cut, &again, &promised, &settled);
        }
    }
    assert!(orphans > 100, "{orphans}");
}

#[test]
fn a_second_seal_of_which_any_part_was_written_is_torn_and_no_damage() {
    let whole = SimStorage::default();
    history(&whole, 1);
    let (name, made) = (crate::header::file_name(1), 4096 + (1 << 20));
    let end = whole.bytes(&name).len();
    for written in 0..88 {
        let cut = whole.fork();
        cut.alter(&name, |bytes| {
            bytes.truncate(end - 88 + written);
            bytes.resize(made, 0);
        });
        let (replay, ledger) = fold(&cut, Depth::Everything);
        assert_ne!(replay.report.state(), State::Damaged, "{written} bytes: {:?}", replay.report);
        open(&cut).unwrap().close().unwrap();
        let (replay, again) = fold(&cut, Depth::Everything);
        assert_eq!(replay.report.state(), State::Clean, "{written} bytes: {:?}", replay.report);
        assert_eq!(again.balance(), ledger.balance());
    }
}

#[test]
fn a_start_that_is_cut_short_is_repeated_without_loss() {
    let crashed = SimStorage::default();
    crashed.fail_call(60, ErrorKind::Other);
    let (promised, settled) = history(&crashed, 12);
    let crashed = crashed.power_cut(3);
    let before = crashed.calls();
    let calls = {
        let s = crashed.fork();
        open(&s).unwrap().close().unwrap();
        s.calls() - before
    };
    for call in 1..=calls {
        let storage = crashed.fork();
        storage.fail_call(call, ErrorKind::Other);
        let _ = open(&storage).and_then(Writer::close);
        for seed in 0..4 {
            let cut = storage.power_cut(seed);
            open(&cut).unwrap().close().unwrap();
            let (replay, ledger) = fold(&cut, Depth::Everything);
            assert_eq!(replay.report.state(), State::Clean, "call {call}: {:?}", replay.report);
            assert_kept(&cut, &ledger, &promised, &settled);
        }
    }
}

#[test]
fn a_flip_in_any_byte_is_reported_and_costs_one_message_at_most() {
    let golden = SimStorage::default();
    let (promised, _) = history(&golden, 9);
    let (_, whole) = fold(&golden, Depth::Everything);
    for name in golden.files() {
        for at in 0..golden.bytes(&name).len() {
            let storage = golden.fork();
            storage.alter(&name, |bytes| bytes[at] ^= 0x41);
            let (replay, ledger) = fold(&storage, Depth::Everything);
            assert_eq!(replay.report.state(), State::Damaged, "{name} byte {at}");
            let lost = ledger.balance().quarantined;
            assert!(lost <= 1, "{name} byte {at}: {lost} lost");
            assert_eq!(ledger.balance().accepted, whole.balance().accepted, "{name} byte {at}");
            if lost == 1 {
                let named: Vec<_> = replay.report.damage.iter().flat_map(|d| &d.ids).collect();
                assert!(named.iter().any(|id| promised.contains_key(id)), "{name} byte {at}: lost without a name");
            }
            // Damage stays reported over a restart, and the rest is served.
            if at % 97 == 0 {
                open(&storage).unwrap().close().unwrap();
                let (replay, again) = fold(&storage, Depth::Everything);
                assert_eq!(replay.report.state(), State::Damaged, "{name} byte {at} after a restart");
                assert_eq!(again.balance(), ledger.balance(), "{name} byte {at} after a restart");
            }
        }
    }
}

#[test]
fn a_missing_segment_is_counted_though_nothing_names_its_messages() {
    let storage = SimStorage::default();
    history(&storage, 20);
    let (_, whole) = fold(&storage, Depth::Everything);
    use crate::storage::Storage;
    storage.remove(&crate::header::file_name(2)).unwrap();
    let (replay, ledger) = fold(&storage, Depth::Everything);
    assert_eq!(replay.report.state(), State::Damaged);
    assert_eq!(ledger.balance().accepted, whole.balance().accepted);
    assert!(ledger.balance().quarantined > 0);
}

#[test]
fn a_failed_sync_is_never_repeated_and_nothing_follows_it() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    writer.stage(&message(b"a\r\n", 1), now()).unwrap();
    storage.fail_call(2, ErrorKind::Other);
    assert!(matches!(writer.commit(now()), Err(CommitError::Failed(_))));
    let calls = storage.calls();
    assert!(matches!(writer.stage(&message(b"b\r\n", 1), now()), Err(CommitError::Poisoned(_))));
    assert!(matches!(writer.commit(now()), Err(CommitError::Poisoned(_))));
    assert_eq!(storage.calls(), calls);
}

#[test]
fn a_full_disk_takes_the_batch_back_and_the_next_one_goes_through() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    let big = vec![b'x'; 2 << 20];
    writer.stage(&message(b"first\r\n", 1), now()).unwrap();
    let first = writer.commit(now()).unwrap().receipts()[0];
    storage.set_room(Some((1 << 20) + (64 << 10)));
    for n in 0..3 {
        writer.stage(&message(format!("small {n}\r\n").as_bytes(), 1), now()).unwrap();
        writer.stage(&message(&big, 1), now()).unwrap();
        assert!(matches!(writer.commit(now()), Err(CommitError::Full(_))));
    }
    // Nothing of the refused batches counts, now or after a crash.
    assert_eq!(fold(&storage, Depth::Everything).1.balance().accepted, 1);
    writer.stage(&sent(first.id()), now()).unwrap();
    writer.commit(now()).unwrap();
    storage.set_room(None);
    writer.stage(&message(&big, 1), now()).unwrap();
    writer.commit(now()).unwrap();
    writer.close().unwrap();
    let (replay, ledger) = fold(&storage, Depth::Everything);
    assert_eq!(replay.report.state(), State::Clean);
    assert_eq!((ledger.balance().accepted, ledger.balance().sent), (2, 1));
}

#[test]
fn a_message_that_imitates_a_frame_is_not_taken_for_one() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    writer.stage(&message(b"a\r\n", 1), now()).unwrap();
    writer.commit(now()).unwrap();
    writer.close().unwrap();
    let name = crate::header::file_name(1);
    let forged = storage.bytes(&name)[4096..].to_vec();
    let mut writer = open(&storage).unwrap();
    writer.stage(&message(&forged, 1), now()).unwrap();
    writer.commit(now()).unwrap();
    writer.close().unwrap();
    // Its own header is destroyed: the scan goes through its content, and finds nothing there.
    storage.alter(&crate::header::file_name(2), |bytes| bytes[4096] ^= 1);
    let (replay, ledger) = fold(&storage, Depth::Everything);
    assert_eq!(replay.report.damage.len(), 1);
    assert_eq!((ledger.balance().accepted, ledger.balance().quarantined), (2, 1));
}

#[test]
fn a_torn_message_that_passes_for_another_does_not_hide_one_that_is_lost() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    let mut last = None;
    for n in 0..2 {
        writer.stage(&message(&content(n + 20), 1), now()).unwrap();
        last = writer.commit(now()).unwrap().receipts().last().copied();
    }
    drop(writer);
    let torn = usize::try_from(last.unwrap().position().offset).unwrap();
    storage.alter(&crate::header::file_name(1), |bytes| bytes[torn + 300] ^= 1);
    let (replay, ledger) = fold(&storage, Depth::Records);
    assert_eq!((replay.report.state(), ledger.balance().transactions), (State::Torn, 1));
    // What says that it is torn, and a message beside it, stand in one page.
    let mut writer = open(&storage).unwrap();
    writer.stage(&message(&content(3), 1), now()).unwrap();
    writer.commit(now()).unwrap();
    writer.close().unwrap();
    storage.make_unreadable(&crate::header::file_name(2), 4096..8192);
    let (_, ledger) = fold(&storage, Depth::Records);
    assert_eq!((ledger.balance().transactions, ledger.balance().quarantined), (3, 1));
}

#[test]
fn a_header_page_that_cannot_be_read_costs_no_message() {
    let storage = SimStorage::default();
    history(&storage, 3);
    let (_, ledger) = fold(&storage, Depth::Records);
    storage.make_unreadable(&crate::header::file_name(1), 0..4096);
    let mut reader = Reader::new(storage);
    for (id, transaction) in ledger.iter().filter(|(_, t)| t.position.segment == 1) {
        let stored = reader.message(transaction.position).unwrap();
        assert!(matches!(stored.fact, Fact::Accepted(accepted) if accepted.id == id));
    }
    assert!(ledger.iter().any(|(_, t)| t.position.segment == 1));
}

#[test]
fn content_that_rots_after_the_start_is_not_delivered() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    writer.stage(&message(b"precious\r\n", 1), now()).unwrap();
    let position = writer.commit(now()).unwrap().receipts()[0].position();
    let mut reader = Reader::new(storage.clone());
    assert_eq!(reader.message(position).unwrap().content.read_all().unwrap(), b"precious\r\n");
    storage.alter(&crate::header::file_name(1), |bytes| {
        let at = bytes.windows(8).position(|w| w == b"precious").unwrap();
        bytes[at] = b'P';
    });
    assert!(matches!(reader.message(position), Err(ReadError::Damaged { what: "content", .. })));
    assert!(reader.record(position).is_ok());
}

/// Every sector of a journal that was stopped cleanly, one after the other, is spoilt by `spoil`.
fn spoil_each_sector(sector: usize, spoil: impl Fn(&SimStorage, &str, usize)) {
    let golden = SimStorage::default();
    history(&golden, 14);
    let (_, whole) = fold(&golden, Depth::Everything);
    for name in golden.files() {
        let bytes = golden.bytes(&name);
        for at in (0..bytes.len()).step_by(sector) {
            if bytes[at..(at + sector).min(bytes.len())].iter().all(|b| *b == 0) {
                continue;
            }
            let storage = golden.fork();
            spoil(&storage, &name, at);
            let (replay, ledger) = fold(&storage, Depth::Everything);
            assert_eq!(replay.report.state(), State::Damaged, "{name} sector at {at}");
            assert_eq!(ledger.balance().accepted, whole.balance().accepted, "{name} sector at {at}");
        }
    }
}

#[test]
fn a_zeroed_sector_never_passes_for_room_filled_ahead() {
    for sector in [512, 4096] {
        spoil_each_sector(sector, |storage, name, at| {
            storage.alter(name, |bytes| {
                let end = (at + sector).min(bytes.len());
                bytes[at..end].fill(0);
            });
        });
    }
}

#[test]
fn a_sector_that_cannot_be_read_costs_what_stands_in_it_and_not_the_journal() {
    spoil_each_sector(4096, |storage, name, at| {
        storage.make_unreadable(name, at as u64..at as u64 + 4096);
        let (replay, _) = fold(storage, Depth::Everything);
        set_aside(storage, &replay.report).unwrap();
    });
}

#[test]
fn what_a_start_folds_from_the_page_cache_is_safe_before_it_is_counted() {
    for call in 1..40 {
        let storage = SimStorage::default();
        storage.fail_call(call, ErrorKind::Other);
        let (promised, settled) = history(&storage, 6);
        // The process is gone, the machine is not: the next start sees all that was written.
        let Ok(writer) = open(&storage) else { continue };
        drop(writer);
        storage.evict();
        for seed in 0..8 {
            let cut = storage.power_cut(seed);
            let (replay, ledger) = fold(&cut, Depth::Everything);
            assert_ne!(replay.report.state(), State::Damaged, "call {call} seed {seed}: {:?}", replay.report);
            assert_kept(&cut, &ledger, &promised, &settled);
        }
    }
}

#[test]
fn a_start_on_a_full_disk_waits_for_room() {
    let storage = SimStorage::default();
    storage.fail_call(30, ErrorKind::Other);
    let (promised, settled) = history(&storage, 12);
    let crashed = storage.power_cut(5);
    crashed.set_room(Some(0));
    let (replay, ledger) = fold(&crashed, Depth::Records);
    let mut writer = Writer::open(crashed.clone(), SMALL, &replay, ledger.largest_id(), SEED, now()).unwrap();
    assert!(matches!(writer.stage(&message(b"a\r\n", 1), now()), Err(CommitError::Full(_))));
    crashed.set_room(None);
    set_aside(&crashed, &replay.report).unwrap();
    writer.stage(&message(b"a\r\n", 1), now()).unwrap();
    writer.commit(now()).unwrap();
    writer.close().unwrap();
    let (replay, again) = fold(&crashed, Depth::Everything);
    assert_eq!(replay.report.state(), State::Clean, "{:?}", replay.report);
    assert_eq!(again.balance().accepted, ledger.balance().accepted + 1);
    assert_kept(&crashed, &again, &promised, &settled);
}

#[test]
fn on_a_full_disk_settlements_are_written_and_new_mail_is_not() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    let mut promised = Vec::new();
    // The disk ends a little behind what is filled ahead.
    storage.set_room(Some(storage.bytes(&crate::header::file_name(1)).len() + 4096));
    loop {
        writer.stage(&message(&content(promised.len()), 1), now()).unwrap();
        match writer.commit(now()) {
            Ok(durable) => promised.push(durable.receipts()[0].id()),
            Err(CommitError::Full(_)) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(promised.len() > 10, "{}", promised.len());
    for id in &promised {
        writer.stage(&sent(*id), now()).unwrap();
        writer.commit(now()).unwrap();
    }
    writer.close().unwrap();
    let (replay, ledger) = fold(&storage, Depth::Everything);
    assert_eq!(replay.report.state(), State::Clean, "{:?}", replay.report);
    assert_eq!((ledger.balance().pending, ledger.balance().sent), (0, promised.len() as u64));
}

#[test]
fn an_unsealed_segment_that_was_cut_short_is_damaged() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    writer.stage(&message(b"a\r\n", 1), now()).unwrap();
    writer.commit(now()).unwrap();
    for len in [4096, 6000, 1 << 20] {
        let cut = storage.fork();
        cut.alter(&crate::header::file_name(1), |bytes| bytes.truncate(len));
        for start in 0..3 {
            let state = fold(&cut, Depth::Everything).0.report.state();
            assert_eq!(state, State::Damaged, "{len} after {start} starts: it was forgotten");
            open(&cut).unwrap().close().unwrap();
        }
    }
}

#[test]
fn numbers_that_no_journal_can_reach_are_not_believed() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    for _ in 0..2 {
        writer.stage(&message(b"a\r\n", 1), now()).unwrap();
        writer.commit(now()).unwrap();
    }
    drop(writer);
    let right = |bytes: &mut [u8], crc_at: usize, fields: std::ops::Range<usize>| {
        let crc = crc32c::crc32c(&bytes[fields]).to_le_bytes();
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc);
    };
    for (crc_at, fields, number_at) in [(4100, 4104..4160, 4112), (92, 0..92, 80), (92, 0..92, 72)] {
        let forged = storage.fork();
        forged.alter(&crate::header::file_name(1), |bytes| {
            bytes[number_at..number_at + 8].fill(0xFF);
            right(bytes, crc_at, fields);
        });
        let mut writer = open(&forged).unwrap();
        writer.stage(&message(b"b\r\n", 1), now()).unwrap();
        let new = writer.commit(now()).unwrap().receipts()[0].id();
        writer.close().unwrap();
        let (replay, ledger) = fold(&forged, Depth::Everything);
        assert_eq!(replay.report.state(), State::Damaged);
        assert!(ledger.get(new).is_some() && ledger.balance().accepted == 3, "{:?}", ledger.balance());
    }
}

#[test]
fn a_frame_with_a_flag_of_a_later_version_is_refused_and_not_guessed_at() {
    let storage = SimStorage::default();
    let mut writer = open(&storage).unwrap();
    writer.stage(&message(b"a\r\n", 1), now()).unwrap();
    writer.commit(now()).unwrap();
    storage.alter(&crate::header::file_name(1), |bytes| {
        bytes[4096 + 9] |= 8;
        let crc = crc32c::crc32c(&bytes[4096 + 8..4096 + 64]).to_le_bytes();
        bytes[4096 + 4..4096 + 8].copy_from_slice(&crc);
    });
    let refused = replay(&storage, Depth::Records, &mut Ledger::new());
    assert!(matches!(refused, Err(crate::ReplayError::UnknownKind { offset: 4096, kind: 1, .. })));
}
