//! A journal made by the real writer, then altered as the input says. However it is altered: every message that was
//! promised is sent, or is there byte for byte, or is counted as quarantined; and a start on top of it takes new mail.
#![no_main]

use libfuzzer_sys::fuzz_target;
use restante_envelope::{
    BodyType, Envelope, ForwardPath, Protocol, Recipient, Reply, ReversePath, RouteName, Trace, TransactionId,
};
use restante_fuzz::{ALIGN_BYTES, Choices, Memory, OPTIONS, now, read, restart};
use restante_journal::{BlobName, BlobWriter, Depth, Prepared, Reader, State, Writer};
use restante_ledger::{Attempted, Fact, Outcome, Timings};
use std::collections::BTreeMap;

/// What was promised: the content, and whether it was sent since.
type Promised = BTreeMap<TransactionId, (Vec<u8>, bool)>;

fn envelope(recipients: usize) -> (Envelope, Trace) {
    let recipient = |n| {
        Recipient::new(
            ForwardPath::parse(&format!("r{n}@example.test")).expect("a path"),
            RouteName::new("example.test"),
        )
    };
    let envelope = Envelope::new(
        ReversePath::parse("a@b.test").expect("a path"),
        (0..recipients).map(recipient).collect(),
        BodyType::SevenBit,
    );
    let client = "192.0.2.1:4000".parse().expect("an address");
    let (helo, protocol) = ("c.test".into(), Protocol::Esmtp);
    (envelope, Trace { client, helo, protocol, tls: None, session: 1, received_at: now() })
}

fn sent(id: TransactionId, recipients: usize) -> Prepared {
    let results = (0..recipients).map(|n| (n as u16, Outcome::Sent(Reply::new(250, None, "ok")))).collect();
    let fact = Attempted { id, at: now(), next_hop: None, timings: Timings::default(), results };
    Prepared::fact(&Fact::Attempted(fact), Vec::new())
}

/// One batch of up to four records, and what comes behind it.
fn batch(writer: &mut Writer<Memory>, storage: &Memory, choices: &mut Choices<'_>, promised: &mut Promised) {
    let shape = choices.byte();
    let mut contents = Vec::new();
    for n in 0..=shape & 3 {
        let of = choices.byte();
        let content = vec![of | 0x20; usize::from(of) * 5 + usize::from(n)];
        let (envelope, trace) = envelope(1);
        let record = if of & 7 == 7 {
            let name = BlobName::from_bits(promised.len() as u128 * 8 + u128::from(n) + 1);
            let mut blob = BlobWriter::create(storage, name).expect("memory does not fail");
            blob.write(&content).expect("memory does not fail");
            Prepared::accepted_in_blob(&envelope, &trace, &blob.finish().expect("memory does not fail"), None)
        } else {
            Prepared::accepted(&envelope, &trace, content.clone(), None)
        };
        writer.stage(&record, now()).expect("memory does not fail");
        contents.push(content);
    }
    let done = promised.iter().filter(|_| shape & 4 != 0).find(|(_, (_, sent))| !sent).map(|(id, _)| *id);
    if let Some(id) = done {
        writer.stage(&sent(id, 1), now()).expect("memory does not fail");
    }
    let durable = writer.commit(now()).expect("memory does not fail");
    for (receipt, content) in durable.receipts().iter().zip(contents) {
        promised.insert(receipt.id(), (content, false));
    }
    if let Some((_, sent)) = done.and_then(|id| promised.get_mut(&id)) {
        *sent = true;
    }
    if shape & 8 != 0 {
        writer.prove_last_batch().expect("memory does not fail");
    }
}

/// Up to eight batches, with clean stops and crashes between them. The last stop is clean.
fn history(choices: &mut Choices<'_>) -> (Memory, Promised) {
    let (storage, mut promised) = (Memory::default(), Promised::new());
    let mut writer = restart(&storage, OPTIONS).expect("an empty directory");
    for _ in 0..=choices.byte() & 7 {
        batch(&mut writer, &storage, choices, &mut promised);
        match choices.byte() & 3 {
            0 => {
                writer.close().expect("memory does not fail");
                writer = restart(&storage, OPTIONS).expect("we wrote it");
            }
            1 => {
                drop(writer);
                writer = restart(&storage, OPTIONS).expect("we wrote it");
            }
            _ => {}
        }
    }
    writer.close().expect("memory does not fail");
    // Its header counts everything, so that whatever goes missing in front of it can be told.
    restart(&storage, OPTIONS)
        .and_then(|writer| Ok(writer.close().expect("memory does not fail")))
        .expect("we wrote it");
    (storage, promised)
}

/// How an alteration came out.
#[derive(Default)]
struct Altered {
    /// Something is not as it was.
    at_all: bool,
    /// The last segment is concerned: nothing counts what it has lost.
    last: bool,
    /// Another file's bytes stand there now: a message may be there twice, and another one not at all.
    exchanged: bool,
}

/// Alters one file.
fn alter(storage: &Memory, choices: &mut Choices<'_>, altered: &mut Altered) {
    let names = storage.names();
    let how = choices.byte();
    let name = &names[usize::from(choices.byte()) % names.len()];
    let (at, len, value) = (choices.number(), choices.number() % 600, choices.byte());
    let before = storage.fork();
    if how % 8 == 7 {
        let other = &names[usize::from(value) % names.len()];
        let mut taken = Vec::new();
        storage.alter(other, |bytes| taken = bytes.clone());
        storage.put(name, taken);
        altered.at_all |= other != name;
        altered.exchanged |= other != name;
        return;
    }
    storage.alter(name, |bytes| {
        let at = if bytes.is_empty() { 0 } else { at % bytes.len() };
        let end = (at + len).min(bytes.len());
        match how % 8 {
            0 | 1 => bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= value),
            2 => bytes[at..end].fill(0),
            3 => bytes[at..end].fill(value),
            4 => bytes.truncate(at),
            5 => bytes.extend(std::iter::repeat_n(value, len)),
            // One place's bytes at another: what a misdirected write does.
            _ => {
                let from = at / ALIGN_BYTES * ALIGN_BYTES;
                let to = (usize::from(value) * 64).min(bytes.len());
                let n = (end - at).min(bytes.len() - to).min(bytes.len() - from);
                bytes.copy_within(from..from + n, to);
            }
        }
    });
    let mut same = false;
    storage.alter(name, |now| before.alter(name, |then| same = now == then));
    altered.at_all |= !same;
    altered.last |= !same && Some(name) == names.last();
}

/// Nothing that was promised is gone without an account, and nothing is read that was not written.
fn check(storage: &Memory, promised: &Promised, told: &restante_fuzz::Account, is_altered: bool) {
    let (pending, balance) = (told.pending(), told.ledger.balance());
    let mut reader = Reader::new(storage.clone());
    let mut gone = 0;
    for (id, (content, was_sent)) in promised {
        match pending.get(id) {
            None => gone += u64::from(!was_sent),
            Some(position) => match reader.message(*position).and_then(|stored| stored.content.read_all()) {
                Ok(read) => assert!(&read == content, "{id}: other bytes than were accepted"),
                Err(error) => assert!(is_altered, "{id}: {error}"),
            },
        }
    }
    assert!(gone <= balance.quarantined, "{gone} messages are gone, {balance:?}");
    assert!(balance.accepted >= promised.len() as u64, "{} promised, {balance:?}", promised.len());
}

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let (storage, promised) = history(&mut choices);
    let mut altered = Altered::default();
    for _ in 0..4 {
        if choices.is_empty() {
            break;
        }
        alter(&storage, &mut choices, &mut altered);
    }
    let (before, account) = match read(&storage, Depth::Everything) {
        Ok(read) => read,
        Err(error) => panic!("ours, of our version and of one journal, and refused: {error}"),
    };
    if !altered.at_all {
        assert_eq!(before.report.state(), State::Clean, "{:?}", before.report);
    }
    if !altered.last {
        assert_ne!(before.report.state(), State::Torn, "all of it was proven: {:?}", before.report);
    }
    if !altered.last && !altered.exchanged {
        check(&storage, &promised, &account, altered.at_all);
    }
    let mut writer = restart(&storage, OPTIONS).expect("it was read");
    let (envelope, trace) = envelope(2);
    writer
        .stage(&Prepared::accepted(&envelope, &trace, b"new mail\r\n".to_vec(), None), now())
        .expect("memory does not fail");
    let new = writer.commit(now()).expect("memory does not fail").receipts()[0];
    assert!(Some(new.id()) > account.ledger.largest_id(), "an identifier was used again");
    writer.close().expect("memory does not fail");
    let (after, again) = read(&storage, Depth::Everything).expect("it was read, and ours stands behind it");
    // What was torn is dealt with once; what was damaged stays so.
    let expected = if before.report.state() == State::Torn { State::Clean } else { before.report.state() };
    assert_eq!(after.report.state(), expected, "{:?}\n{:?}", before.report, after.report);
    let (then, now) = (account.ledger.balance(), again.ledger.balance());
    assert_eq!((now.accepted, now.quarantined), (then.accepted + 2, then.quarantined));
    let mut kept = again.pending();
    assert_eq!(kept.remove(&new.id()), Some(new.position()));
    assert_eq!(kept, account.pending());
});
