//! What an SMTP session asks of the daemon, and the way of its content into the journal.
//!
//! Decides nothing about the protocol, and reads no socket.

use super::journal::{Entry, NOT_YET, Refused, stored};
use super::log::Line;
use super::session::Door;
use restante_envelope::{Envelope, ForwardPath, Trace};
use restante_journal::{Prepared, Receipt};
use restante_ledger::{Accepted, Fact};
use restante_relay::{Admit, hold_for_loop};
use restante_smtp::{Admission, EndOfData, Host, RefusedCommand, Resolution, Trouble};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Content in memory is accounted for in steps of this.
const MEMORY_STEP_BYTES: usize = 64 << 10;
/// Content of all sessions together, waiting for its dot or its sync: beyond it senders are told to come back. Two
/// messages of the largest default size fit, and a thousand of usual size.
const MEMORY_BYTES_MAX: usize = 256 << 20;

/// The budget for content in memory.
pub(crate) fn memory_budget(max_message_bytes: u64) -> Arc<Semaphore> {
    // The largest message must fit, whatever was configured.
    let largest = usize::try_from(max_message_bytes).unwrap_or(usize::MAX).saturating_add(2 * MEMORY_STEP_BYTES);
    Arc::new(Semaphore::new((MEMORY_BYTES_MAX.max(largest) / MEMORY_STEP_BYTES).min(Semaphore::MAX_PERMITS)))
}

/// What a session asks of the daemon, and where its content goes.
pub(super) struct Visitor<'a> {
    door: &'a Arc<Door>,
    client: SocketAddr,
    number: u64,
    envelope: Option<Envelope>,
    content: Vec<u8>,
    memory: Option<OwnedSemaphorePermit>,
    commit: Option<Result<oneshot::Receiver<Result<Receipt, Refused>>, Refused>>,
}

impl<'a> Visitor<'a> {
    pub(super) fn new(door: &'a Arc<Door>, client: SocketAddr, number: u64) -> Self {
        Self { door, client, number, envelope: None, content: Vec::new(), memory: None, commit: None }
    }

    pub(super) fn log(&self, line: Line) {
        self.door.log.write(line);
    }

    /// Waits for the journal's word on the message that was handed over.
    pub(super) async fn resolution(&mut self) -> Resolution {
        let outcome = match self.commit.take() {
            Some(Ok(receiver)) => receiver.await.unwrap_or(Err(Refused::Failed)),
            Some(Err(refused)) => Err(refused),
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
}

impl Host for Visitor<'_> {
    fn admit(&mut self, path: &ForwardPath) -> Admission {
        let admit = self.door.routes.borrow().admit(path);
        match admit {
            Admit::Accept(route) => Admission::Accept(route),
            Admit::NotOurs => Admission::NotOurs,
            Admit::UnknownRecipient => Admission::UnknownRecipient,
            Admit::SenderSpecifiedRoute => Admission::SenderSpecifiedRoute,
        }
    }

    fn begin(&mut self, envelope: &Envelope, _trace: &Trace) -> Result<(), Trouble> {
        if self.door.journal.has_failed() {
            return Err(Trouble::Local);
        }
        self.envelope = Some(envelope.clone());
        self.content.clear();
        Ok(())
    }

    fn chunk(&mut self, content: &[u8]) -> Result<(), Trouble> {
        let needed = (self.content.len() + content.len()).div_ceil(MEMORY_STEP_BYTES);
        let have = self.memory.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if needed > have {
            let more = u32::try_from(needed - have).unwrap_or(u32::MAX);
            let permit = self.door.memory.clone().try_acquire_many_owned(more).map_err(|_| Trouble::Overloaded)?;
            match &mut self.memory {
                Some(held) => held.merge(permit),
                None => self.memory = Some(permit),
            }
        }
        self.content.extend_from_slice(content);
        Ok(())
    }

    fn end(&mut self, end: EndOfData) {
        let Some(envelope) = self.envelope.take() else { return };
        let hold = hold_for_loop(end.own_hops);
        let content = std::mem::take(&mut self.content);
        let content_len = content.len() as u64;
        let record = Prepared::accepted(&envelope, &end.trace, content, hold.as_deref());
        let accepted = Accepted { id: NOT_YET, envelope, trace: end.trace, content_len, hold };
        let (answer, receiver) = oneshot::channel();
        let entry = Entry {
            record,
            fact: Fact::Accepted(accepted),
            about: None,
            answer: Some(answer),
            memory: self.memory.take(),
        };
        self.commit = Some(self.door.journal.offer(entry).map(|()| receiver));
    }

    fn abort(&mut self) {
        self.envelope = None;
        self.content = Vec::new();
        self.memory = None;
    }

    fn refused(&mut self, refusal: &RefusedCommand) {
        self.door.metrics.rejected(refusal);
        self.log(Line::rejected(self.client, self.number, refusal));
    }
}
