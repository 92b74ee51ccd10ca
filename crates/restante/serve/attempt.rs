//! One attempt: reads the message, checks it, offers it over an open connection, and turns what was heard into a fact.
//!
//! Shared by the daemon and by `recover --deliver`. Writes nothing.

use crate::clock;
use restante_courier::{Connection, Mail, RecipientResult};
use restante_envelope::{Recipient, ReplyClass, Timestamp, TransactionId};
use restante_journal::{Content, DirStorage, ReadError, Reader, Storage};
use restante_ledger::{Accepted, Attempted, Cause, Fact, Outcome, Position, RecipientIndex, Timings};
use restante_relay::{ConnectionTrouble, Heard, Verdict, judge, received_header};
use std::sync::Arc;
use std::time::Duration;

/// What is tried.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) id: TransactionId,
    pub(crate) position: Position,
    /// Which recipients.
    pub(crate) recipients: Vec<RecipientIndex>,
    /// 1 for the first.
    pub(crate) attempt: u16,
}

type File = <DirStorage as Storage>::File;

/// A message from the journal.
pub(crate) struct Message {
    pub(crate) accepted: Arc<Accepted>,
    pub(crate) content: Content<File>,
    /// Ours, in front of the content.
    header: Vec<u8>,
    /// The recipients that are tried.
    tried: Vec<RecipientIndex>,
}

impl Message {
    fn new(job: &Job, us: &str, accepted: Accepted, content: Content<File>) -> Self {
        let recipients = &accepted.envelope.recipients;
        let known = |index: &RecipientIndex| usize::from(*index) < recipients.len();
        let tried: Vec<RecipientIndex> = job.recipients.iter().copied().filter(known).collect();
        let only = tried.first().and_then(|index| recipients.get(usize::from(*index)));
        let alone = only.map(|recipient| &recipient.forward_path).filter(|_| recipients.len() == 1);
        let header = received_header(&accepted.trace, job.id, us, alone);
        Self { accepted: Arc::new(accepted), content, header, tried }
    }

    /// With one more line of ours, without its end, below the Received.
    pub(crate) fn marked(mut self, line: &str) -> Self {
        self.header.extend_from_slice(line.as_bytes());
        self.header.extend_from_slice(b"\r\n");
        self
    }
}

fn recipients<'a>(accepted: &'a Accepted, tried: &[RecipientIndex]) -> Vec<&'a Recipient> {
    let recipients = &accepted.envelope.recipients;
    tried.iter().filter_map(|index| recipients.get(usize::from(*index))).collect()
}

fn mail<'a>(accepted: &'a Accepted, header: &'a [u8], recipients: &'a [&'a Recipient]) -> Mail<'a> {
    Mail {
        reverse_path: &accepted.envelope.reverse_path,
        recipients,
        body: accepted.envelope.body,
        smtputf8: accepted.envelope.smtputf8,
        dsn: &accepted.envelope.dsn,
        trace_header: header,
        size_bytes: accepted.content_len,
    }
}

/// A content on its way out, each piece checked before it leaves.
struct Outgoing<'a> {
    content: &'a mut Content<File>,
    /// Why there is no more of it.
    failed: Option<ReadError>,
}

impl restante_courier::Content for Outgoing<'_> {
    fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, String> {
        let chunk = match self.content.is_in_memory() {
            true => self.content.next_chunk(),
            false => blocking(|| self.content.next_chunk()),
        };
        chunk.map_err(|error| {
            let why = error.to_string();
            self.failed = Some(error);
            why
        })
    }
}

/// In the daemon other tasks are waiting for this thread; `recover` has but one task.
pub(crate) fn blocking<T>(read: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::MultiThread => tokio::task::block_in_place(read),
        _ => read(),
    }
}

/// What an attempt came to: one of the three.
pub(crate) struct Tried {
    /// To be made durable; that ends the attempt.
    pub(crate) fact: Option<Attempted>,
    /// The connection failed before the final dot, or the server is busy, and nothing was heard: there is nothing to record.
    pub(crate) broke: Option<ConnectionTrouble>,
    /// The connection ended before the server heard of this message, whose commands were sent ahead: as good as not tried.
    pub(crate) unheard: bool,
}

/// Our own finding about a message, without a next hop.
pub(crate) fn found(id: TransactionId, results: Vec<(RecipientIndex, Outcome)>) -> Attempted {
    Attempted { id, at: clock::now(), next_hop: None, timings: Timings::default(), results }
}

/// A message that the disk did not give us is tried again after this.
const READ_RETRY: Duration = Duration::from_secs(60);

/// A message that could not be read.
pub(crate) struct Unread {
    /// What is to be recorded of it: damaged bytes are quarantined, a disk that does not answer is tried again later.
    pub(crate) fact: Box<Attempted>,
    /// For the log: damaged content mostly leaves the envelope to tell of.
    pub(crate) about: Option<Arc<Accepted>>,
}

/// The message of `job`, if it can be had without waiting for a disk.
pub(crate) fn at_hand(reader: &Reader<DirStorage>, job: &Job, content_len: u64, us: &str) -> Option<Message> {
    let stored = reader.message_at_hand(job.position, usize::try_from(content_len).ok()?)?;
    let Fact::Accepted(accepted) = stored.fact else { return None };
    (accepted.id == job.id).then(|| Message::new(job, us, accepted, stored.content))
}

/// Reads the message of `job`, to be sent by `us`.
pub(crate) fn read(reader: &mut Reader<DirStorage>, job: &Job, us: &str) -> Result<Message, Unread> {
    let why = match reader.message(job.position) {
        Ok(stored) => match stored.fact {
            Fact::Accepted(accepted) if accepted.id == job.id => {
                return Ok(Message::new(job, us, accepted, stored.content));
            }
            _ => ReadError::Damaged { position: job.position, what: "another record stands there" },
        },
        Err(error) => error,
    };
    let about = reader.accepted(job.position, job.id).ok().map(Arc::new);
    Err(Unread { fact: unreadable(job, &why), about })
}

/// What is to be recorded of a message that could not be read.
fn unreadable(job: &Job, why: &ReadError) -> Box<Attempted> {
    match why {
        ReadError::Damaged { .. } => {
            tracing::error!("{}: {why}", job.id);
            for_all(job, clock::now(), &Outcome::Quarantined(Cause::Local(why.to_string())))
        }
        ReadError::Io(_) => unread(job, &why.to_string()),
    }
}

/// A message that could not be read for now.
pub(crate) fn unread(job: &Job, why: &str) -> Box<Attempted> {
    tracing::error!("{}: {why}", job.id);
    let now = clock::now();
    for_all(job, now, &Outcome::Deferred { cause: Cause::Local(why.to_owned()), next_at: now + READ_RETRY })
}

fn for_all(job: &Job, at: Timestamp, outcome: &Outcome) -> Box<Attempted> {
    let results = job.recipients.iter().map(|recipient| (*recipient, outcome.clone())).collect();
    Box::new(Attempted { id: job.id, at, next_hop: None, timings: Timings::default(), results })
}

/// Offers the message to the server behind `connection`, and tells it of the `next` one ahead if there is one.
pub(crate) async fn attempt(
    connection: &mut Connection,
    job: &Job,
    message: &mut Message,
    next: Option<&Message>,
    seed: u64,
) -> Tried {
    let started = clock::now();
    let next_to = next.map(|next| recipients(&next.accepted, &next.tried)).unwrap_or_default();
    let next = next.map(|next| mail(&next.accepted, &next.header, &next_to));
    let to = recipients(&message.accepted, &message.tried);
    let mail = mail(&message.accepted, &message.header, &to);
    let mut outgoing = Outgoing { content: &mut message.content, failed: None };
    let delivery = connection.deliver(&mail, &mut outgoing, next.as_ref()).await;
    if delivery.unheard {
        return Tried { fact: None, broke: None, unheard: true };
    }
    if let Some(why) = outgoing.failed {
        // The transaction was broken off: the server has nothing.
        return Tried { fact: Some(*unreadable(job, &why)), broke: None, unheard: false };
    }
    let now = clock::now();
    let mut broke = None;
    let mut results = Vec::with_capacity(message.tried.len());
    for ((index, result), by_content) in message.tried.iter().zip(delivery.results).zip(delivery.by_content) {
        let heard = match result {
            RecipientResult::Replied(reply) if reply.class() == ReplyClass::Positive => Heard::Replied(reply),
            RecipientResult::Replied(reply) if delivery.mail_refused => Heard::ToMail(reply),
            RecipientResult::Replied(reply) if by_content => Heard::ToContent(reply),
            RecipientResult::Replied(reply) => Heard::Replied(reply),
            RecipientResult::Lost { why, .. } => Heard::Lost { why },
            RecipientResult::InDoubt { why } => Heard::InDoubt { why },
            RecipientResult::NotOffered { why } => {
                results.push((*index, Outcome::Held(Cause::Local(why))));
                continue;
            }
        };
        match judge(&heard, job.attempt.saturating_sub(1), job.id, seed, now) {
            Verdict::Record(outcome) => results.push((*index, outcome)),
            Verdict::RetryUnrecorded => broke = Some(ConnectionTrouble::Broke(in_words(&heard))),
            Verdict::SlowDown => broke = Some(ConnectionTrouble::PushedBack(in_words(&heard))),
        }
    }
    if !results.is_empty()
        && let Some(why) = broke.take()
    {
        // Something was heard for others: one record ends the attempt for all, and these are due again at once.
        let known: Vec<RecipientIndex> = results.iter().map(|(index, _)| *index).collect();
        let cause = Cause::Connection(why.to_string());
        for index in message.tried.iter().filter(|index| !known.contains(index)) {
            results.push((*index, Outcome::Deferred { cause: cause.clone(), next_at: now }));
        }
    }
    let timings = timings(&message.accepted, started, connection.connect_ms(), delivery.transfer_ms);
    let next_hop = Some(connection.next_hop().clone());
    let fact = Attempted { id: job.id, at: now, next_hop, timings, results };
    Tried { fact: Some(fact).filter(|fact| !fact.results.is_empty()), broke, unheard: false }
}

fn in_words(heard: &Heard) -> String {
    match heard {
        Heard::Replied(reply) | Heard::ToMail(reply) | Heard::ToContent(reply) => reply.to_string(),
        Heard::Lost { why } | Heard::InDoubt { why } => why.clone(),
    }
}

fn timings(accepted: &Accepted, started: Timestamp, connect_ms: u32, transfer_ms: u32) -> Timings {
    let in_queue = started.since(accepted.trace.received_at);
    Timings {
        before_queue_ms: 0,
        in_queue_ms: u64::try_from(in_queue.as_millis()).unwrap_or(u64::MAX),
        connect_ms,
        transfer_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::journal::testing::{contents, large, write, writer};

    #[test]
    fn a_message_whose_blob_is_gone_or_cut_off_keeps_its_envelope_for_the_log() {
        for cut in [None, Some("x")] {
            let directory = tempfile::tempdir().unwrap();
            let dir = directory.path();
            let prepared = large(dir, 7, &[b'x'; 4096], &["a@x.test"]);
            let blob = dir.join(prepared.blob().unwrap().file());
            let id = write(&mut writer(dir), &[prepared])[0];
            let position = contents(dir).ledger.get(id).unwrap().position;
            match cut {
                None => std::fs::remove_file(blob).unwrap(),
                Some(rest) => std::fs::write(blob, rest).unwrap(),
            }
            let job = Job { id, position, recipients: vec![0], attempt: 1 };
            let mut reader = Reader::new(DirStorage::open(dir).unwrap());
            let unread = read(&mut reader, &job, "mx2.test").err().unwrap();
            assert!(matches!(unread.fact.results[..], [(0, Outcome::Quarantined(_))]), "{:?}", unread.fact);
            let about = unread.about.unwrap();
            assert_eq!(about.envelope.recipients[0].forward_path.as_str(), "a@x.test");
        }
    }
}
