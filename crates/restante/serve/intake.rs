//! What an SMTP session asks of the daemon, and the way of its content into the journal.
//!
//! A small content waits in memory and goes into the journal with its record. A large one, one that says by SIZE that it will
//! be, and any for which there is no memory, is written to a blob while it arrives. Decides nothing about the protocol, and
//! reads no socket.

use super::journal::{Entry, NOT_YET, Refused, stored};
use super::log::Line;
use super::memory::{PIECE_BYTES, Share};
use super::relay::Request;
use super::session::Door;
use super::socket::READ_BYTES;
use crate::clock;
use restante_envelope::{DomainName, Envelope, ForwardPath, RouteName, Trace};
use restante_journal::{BlobError, BlobName, BlobWriter, DirStorage, Prepared, Receipt, is_full, remove_blob};
use restante_ledger::{Accepted, Fact};
use restante_relay::{Admit, Claim, Flush, hold_for_loop};
use restante_smtp::{Admission, EndOfData, Etrn, Host, RefusedCommand, Resolution, Trouble};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

/// A content of up to this many bytes is kept in one piece and stands in the journal; beyond, it is a blob. Writing it twice
/// (once to fill the journal ahead) and reading it at each scan costs more than a file of its own from about here on.
const INLINE_BYTES_MAX: usize = 256 << 10;
/// Blobs written and synced at the same moment, of all sessions: with more, the disk's queue is full of them, and small mail
/// waits behind it (figures in FORMAT.md section 1). With one, a disk that could take more idles between two syncs.
pub(super) const DISK_TURNS: usize = 2;
/// As often as ETRN has a route's primary looked at and its deferred mail tried.
const ETRN_EVERY: Duration = Duration::from_secs(60);

/// What a session asks of the daemon, and where its content goes.
pub(super) struct Visitor<'a> {
    door: &'a Arc<Door>,
    client: SocketAddr,
    number: u64,
    /// Of the message at hand, as MAIL has it.
    declared_bytes: u64,
    envelope: Option<Envelope>,
    /// Why the message is frozen, whatever is in it.
    hold: Option<String>,
    content: Content,
    commit: Option<Commit>,
}

/// The content at hand, as far as it has come.
#[derive(Default)]
struct Content {
    /// What is not written yet.
    buffer: Vec<u8>,
    memory: Share,
    /// All that has come.
    bytes: u64,
    /// Of the routes' room, for as much.
    claim: Option<Claim>,
    /// It goes to a blob.
    large: bool,
    blob: Option<BlobWriter<DirStorage>>,
    /// Why nothing will come of it.
    trouble: Option<Refused>,
}

/// A message that is on its way to stable storage.
enum Commit {
    /// The journal has it.
    Offered(oneshot::Receiver<Result<Receipt, Refused>>),
    /// Its content is not complete on disk yet.
    Large(Box<Ending>),
    Refused(Refused),
}

/// All that is known of a message at its end, but for the content.
struct Ending {
    envelope: Envelope,
    trace: Trace,
    hold: Option<String>,
}

impl<'a> Visitor<'a> {
    pub(super) fn new(door: &'a Arc<Door>, client: SocketAddr, number: u64) -> Self {
        Self {
            door,
            client,
            number,
            declared_bytes: 0,
            envelope: None,
            hold: None,
            content: Content::default(),
            commit: None,
        }
    }

    /// Has the next message frozen: it comes from where it was.
    pub(super) fn hold(&mut self, why: Option<String>) {
        self.hold = why;
    }

    /// Says how large the next message will be: for each recipient is asked whether its route has room for that.
    pub(super) fn declare(&mut self, bytes: u64) {
        self.declared_bytes = bytes;
    }

    pub(super) fn log(&self, line: Line) {
        self.door.log.write(line);
    }

    /// To be called between two reads: accounts for what came, and writes to disk what memory will not hold. While this waits
    /// for the disk the socket is not read, and TCP slows the sender down.
    pub(super) async fn make_room(&mut self) {
        let content = &mut self.content;
        if content.buffer.is_empty() || content.trouble.is_some() {
            return;
        }
        let covered = self.door.memory.cover(&mut content.memory, content.buffer.capacity());
        content.large |= !covered || content.buffer.len() > INLINE_BYTES_MAX;
        if content.large && (!covered || content.buffer.len() + READ_BYTES > PIECE_BYTES) {
            // Boxed, as below: what few messages need would else be part of every connection, idle ones included.
            Box::pin(self.write_out()).await;
        }
        if !covered {
            self.content.shrink();
        }
    }

    /// Waits for the journal's word on the message that was handed over.
    pub(super) async fn resolution(&mut self) -> Resolution {
        let outcome = match self.commit.take() {
            Some(Commit::Offered(receiver)) => receiver.await.unwrap_or(Err(Refused::Failed)),
            Some(Commit::Large(ending)) => Box::pin(self.commit_large(*ending)).await,
            Some(Commit::Refused(refused)) => Err(refused),
            None => Err(Refused::Failed),
        };
        match outcome {
            Ok(receipt) => stored(&receipt),
            Err(refused) => {
                self.door.metrics.refused_for_trouble();
                Resolution::Failed(refused.trouble())
            }
        }
    }

    /// The blob first, whole and synced; then the record that names it.
    async fn commit_large(&mut self, ending: Ending) -> Result<Receipt, Refused> {
        self.write_out().await;
        let content = std::mem::take(&mut self.content);
        if let Some(refused) = content.trouble {
            return Err(refused);
        }
        let claim = content.claim;
        let Some(writer) = content.blob else { return Err(Refused::Failed) };
        let blob = self.on_disk(move || writer.finish()).await?;
        let name = blob.name();
        let Ending { envelope, trace, hold } = ending;
        let record = Prepared::accepted_in_blob(&envelope, &trace, &blob, hold.as_deref());
        let outcome = match self.offer(record, envelope, trace, blob.bytes(), hold, (Share::default(), claim)) {
            Ok(receiver) => receiver.await.unwrap_or(Err(Refused::Failed)),
            Err(refused) => Err(refused),
        };
        // After a failed write or sync the record may stand in the journal all the same: then the next start decides.
        if let Err(Refused::Full | Refused::Busy) = outcome {
            let storage = self.door.storage.clone();
            let removed = self.on_disk(move || Ok(remove_blob(&storage, name)?)).await;
            let _an_orphan_is_set_aside_at_the_next_start = removed;
        }
        outcome
    }

    fn offer(
        &self,
        record: Prepared,
        envelope: Envelope,
        trace: Trace,
        content_len: u64,
        hold: Option<String>,
        (memory, claim): (Share, Option<Claim>),
    ) -> Result<oneshot::Receiver<Result<Receipt, Refused>>, Refused> {
        let accepted = Accepted { id: NOT_YET, envelope, trace, content_len, hold };
        let (answer, receiver) = oneshot::channel();
        let entry = Entry { record, fact: Fact::Accepted(accepted), about: None, answer: Some(answer), memory, claim };
        self.door.journal.offer(entry).map(|()| receiver)
    }

    /// Appends what is buffered to the blob, which is made if there is none yet.
    async fn write_out(&mut self) {
        if self.content.trouble.is_none() && self.overruns() {
            self.content.trouble = Some(Refused::Full);
        }
        let Content { buffer, blob, trouble, .. } = &mut self.content;
        if trouble.is_some() {
            return;
        }
        let (bytes, open, door) = (std::mem::take(buffer), blob.take(), self.door.clone());
        let written = self.on_disk(move || {
            // Before each piece, not once: many grow at the same time, and not all of them said how large they would be.
            if !door.space.takes_large(bytes.len() as u64) {
                return Err(io::Error::from(io::ErrorKind::StorageFull).into());
            }
            let name = || BlobName::from_bits(clock::entropy128());
            let mut writer = open.map_or_else(|| BlobWriter::create(&door.storage, name()), Ok)?;
            writer.write(&bytes)?;
            Ok((writer, bytes))
        });
        match written.await {
            Ok((writer, emptied)) => {
                self.content.blob = Some(writer);
                self.content.memory = Share::default();
                self.door.memory.keep(emptied);
            }
            Err(refused) => self.content.trouble = Some(refused),
        }
    }

    /// Whether the disk has room for what is to come.
    fn has_room(&self) -> bool {
        let (space, bytes) = (&self.door.space, self.declared_bytes);
        if bytes > INLINE_BYTES_MAX as u64 { space.takes_large(bytes) } else { space.takes(bytes) }
    }

    /// Claims what has come, and says whether that is too much. A message that one of its routes has room for is taken: at this
    /// point one answer goes for all recipients, and the mail of one route must not be refused for another's. How much more
    /// than its quota a route so gets, the quota of the other one bounds.
    fn overruns(&mut self) -> bool {
        let (Some(envelope), content) = (&self.envelope, &mut self.content) else { return false };
        let routes = routes_of(envelope);
        content.claim.get_or_insert_with(|| self.door.space.claim(routes.iter().copied())).cover(content.bytes);
        routes.into_iter().all(|route| self.door.space.has_overrun(route))
    }

    /// Does what may block, in its turn. Trouble with a blob concerns its message alone, trouble with the directory all.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
    ) -> Result<T, Refused> {
        let turn = turn(&self.door.disk_turns, self.door.stopping.clone()).await?;
        let journal = self.door.journal.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let done = work();
            // Said here: the session may be gone.
            if matches!(done, Err(BlobError::Directory(_))) {
                journal.fail();
            }
            done
        });
        let done = done.await.unwrap_or_else(|defect| Err(io::Error::other(defect).into()));
        done.map_err(|error| match error {
            BlobError::Directory(error) => {
                tracing::error!("the directory of large messages cannot be synced: {error}");
                Refused::Failed
            }
            BlobError::File(error) => {
                tracing::warn!("a large message is refused for now: {error}");
                if is_full(&error) { Refused::Full } else { Refused::Broken }
            }
        })
    }

    /// Lets go of the content; a blob that was begun is removed.
    fn discard(&mut self) {
        let content = std::mem::take(&mut self.content);
        self.door.memory.keep(content.buffer);
        let Some(writer) = content.blob else { return };
        // Removing a large file may take its time. At the very end there is no runtime to do it on.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(writer));
        }
    }
}

impl Content {
    /// Makes the buffer no larger than the memory that it has a share of.
    fn shrink(&mut self) {
        self.buffer.shrink_to(self.memory.bytes());
    }
}

/// Waits for a turn at the disk; not once we are told to stop, for a stop must not wait for a crowd.
async fn turn(turns: &Arc<Semaphore>, mut stopping: watch::Receiver<bool>) -> Result<OwnedSemaphorePermit, Refused> {
    tokio::select! {
        biased;
        // The semaphore is never closed.
        turn = turns.clone().acquire_owned() => turn.map_err(|_| Refused::Stopping),
        _ = stopping.wait_for(|stop| *stop) => Err(Refused::Stopping),
    }
}

fn routes_of(envelope: &Envelope) -> Vec<&RouteName> {
    let mut routes: Vec<&RouteName> = envelope.recipients.iter().map(|recipient| &recipient.route).collect();
    routes.sort();
    routes.dedup();
    routes
}

impl Host for Visitor<'_> {
    fn mail(&mut self, declared_bytes: u64) -> Result<(), Trouble> {
        self.declare(declared_bytes);
        match self.has_room() {
            false => Err(Trouble::Storage),
            true if !self.door.crowd.takes_message(self.client.ip()) => Err(Trouble::TooFast),
            true => Ok(()),
        }
    }

    /// Here, where each recipient has an answer of its own, and not at the end, is who is full told from who is not.
    fn admit(&mut self, path: &ForwardPath) -> Admission {
        let admit = self.door.routes.borrow().admit(path);
        match admit {
            Admit::Accept(route) if self.door.space.is_over(&route, self.declared_bytes) => Admission::Full,
            Admit::Accept(route) => Admission::Accept(route),
            Admit::NotOurs => Admission::NotOurs,
            Admit::UnknownRecipient => Admission::UnknownRecipient,
            Admit::SenderSpecifiedRoute => Admission::SenderSpecifiedRoute,
        }
    }

    fn etrn(&mut self, domain: &DomainName) -> Etrn {
        let Some(route) = self.door.routes.borrow().of_domain(domain).cloned() else { return Etrn::NotOurs };
        if self.door.space.waiting_bytes(&route) == 0 {
            return Etrn::Nothing;
        }
        let Ok(mut asked_for) = self.door.asked_for.lock() else { return Etrn::Refused };
        let now = clock::now();
        // Anybody may ask: not more often than we would look by ourselves.
        if asked_for.get(&route).is_none_or(|before| now.since(*before) >= ETRN_EVERY) {
            let (answer, _nobody_waits) = oneshot::channel();
            if self.door.relay.try_send(Request::Flush(Flush::Route(route.clone()), answer)).is_err() {
                return Etrn::Refused;
            }
            asked_for.insert(route, now);
        }
        Etrn::Started
    }

    fn xclient(&mut self, client: SocketAddr) {
        self.client = client;
        self.door.crowd.speaks_for(self.number, client.ip());
    }

    fn begin(&mut self, envelope: &Envelope, _trace: &Trace, declared_bytes: u64) -> Result<(), Trouble> {
        if self.door.journal.has_failed() {
            return Err(Trouble::Local);
        }
        // Again, for it may have been a while since MAIL.
        if !self.has_room() {
            return Err(Trouble::Storage);
        }
        let large = declared_bytes > INLINE_BYTES_MAX as u64;
        self.envelope = Some(envelope.clone());
        // Not touched before it is filled, and accounted for as soon as something is in it.
        let expected = if large { 0 } else { usize::try_from(declared_bytes).unwrap_or(0) };
        self.content = Content { buffer: Vec::with_capacity(expected), large, ..Content::default() };
        Ok(())
    }

    fn chunk(&mut self, content: &[u8]) -> Result<(), Trouble> {
        match self.content.trouble {
            Some(refused) => Err(refused.trouble()),
            None => {
                let Content { buffer, memory, large, .. } = &mut self.content;
                if *large && buffer.capacity() == 0 && self.door.memory.cover(memory, PIECE_BYTES) {
                    *buffer = self.door.memory.piece();
                }
                self.content.buffer.extend_from_slice(content);
                self.content.bytes += content.len() as u64;
                Ok(())
            }
        }
    }

    fn end(&mut self, end: EndOfData) {
        let overruns = self.overruns();
        let Some(envelope) = self.envelope.take() else { return };
        let hold = hold_for_loop(end.own_hops).or(self.hold.take());
        let content = &mut self.content;
        self.commit = Some(match content.trouble {
            Some(refused) => Commit::Refused(refused),
            None if overruns => Commit::Refused(Refused::Full),
            // What is large has asked for its room piece by piece.
            None if !content.large && !self.door.space.takes_beside_others(content.bytes) => {
                Commit::Refused(Refused::Full)
            }
            // The very last piece may make it large, too.
            None if content.large || content.buffer.len() > INLINE_BYTES_MAX => {
                Commit::Large(Box::new(Ending { envelope, trace: end.trace, hold }))
            }
            None => {
                let Content { buffer, memory, mut claim, .. } = std::mem::take(content);
                claim.iter_mut().for_each(Claim::is_unwritten);
                let content_len = buffer.len() as u64;
                let record = Prepared::accepted(&envelope, &end.trace, buffer, hold.as_deref());
                match self.offer(record, envelope, end.trace, content_len, hold, (memory, claim)) {
                    Ok(receiver) => Commit::Offered(receiver),
                    Err(refused) => Commit::Refused(refused),
                }
            }
        });
    }

    fn abort(&mut self) {
        self.envelope = None;
        self.discard();
    }

    fn refused(&mut self, refusal: &RefusedCommand) {
        self.door.metrics.rejected(refusal);
        if self.door.crowd.is_refusal_to_be_told(self.client.ip()) {
            self.log(Line::rejected(self.client, self.number, refusal));
        }
    }
}

impl Drop for Visitor<'_> {
    fn drop(&mut self) {
        self.discard();
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::*;

    #[tokio::test]
    async fn a_stop_does_not_wait_behind_a_crowd_at_the_disk() {
        let (stop, stopping) = watch::channel(false);
        let turns = Arc::new(Semaphore::new(1));
        let first = turn(&turns, stopping.clone()).await.unwrap();
        let second = tokio::spawn({
            let (turns, stopping) = (turns.clone(), stopping.clone());
            async move { turn(&turns, stopping).await.map(drop) }
        });
        stop.send(true).unwrap();
        assert_eq!(second.await.unwrap(), Err(Refused::Stopping));
        assert_eq!(Refused::Stopping.trouble(), Trouble::ShuttingDown);
        // Who need not wait is let through even then: its 250 can still be said.
        drop(first);
        assert!(turn(&turns, stopping).await.is_ok());
    }

    #[test]
    fn a_buffer_that_found_no_memory_is_held_all_the_same() {
        let memory = Memory::new();
        let mut content = Content::default();
        assert!(memory.cover(&mut content.memory, 10_000));
        let mut others = Vec::new();
        while let mut share = Share::default()
            && memory.cover(&mut share, 64 << 10)
        {
            others.push(share);
        }
        content.buffer = Vec::with_capacity(128 << 10);
        assert!(!memory.cover(&mut content.memory, content.buffer.capacity()));
        content.shrink();
        assert!(content.buffer.capacity() <= content.memory.bytes(), "{}", content.buffer.capacity());
    }
}
