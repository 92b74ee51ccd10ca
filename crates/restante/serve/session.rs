//! One SMTP connection: moves bytes between the socket and the sans-IO session, and content into the journal.
//!
//! Decides nothing about the protocol. An idle connection holds no buffer: bytes are read into the stack when there are
//! some, and only what a session leaves over is kept.

use super::journal::{Entry, Journal, NOT_YET, Refused, stored};
use super::log::{Line, LogHandle};
use super::metrics::Metrics;
use crate::clock;
use restante_envelope::{Envelope, ForwardPath, Timestamp, Trace};
use restante_journal::{Prepared, Receipt};
use restante_ledger::{Accepted, Fact};
use restante_relay::{Admit, Routes, hold_for_loop};
use restante_smtp::{Admission, EndOfData, Host, RefusedCommand, Resolution, Session, Settings, Trouble};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

/// Read at once. Four TCP windows of a fast sender on loopback; on the stack, so it costs an idle session nothing.
const READ_BYTES: usize = 16 << 10;
/// A client that does not take our replies for this long is gone (RFC 5321 section 4.5.3.2.7 allows it five minutes).
const WRITE_TIMEOUT: Duration = Duration::from_secs(300);
/// Content in memory is accounted for in steps of this.
const MEMORY_STEP_BYTES: usize = 64 << 10;
/// Content of all sessions together, waiting for its dot or its sync: beyond it senders are told to come back. Two
/// messages of the largest default size fit, and a thousand of usual size.
const MEMORY_BYTES_MAX: usize = 256 << 20;

/// What all sessions share.
pub(crate) struct Door {
    pub(crate) settings: Arc<Settings>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) journal: Journal,
    pub(crate) memory: Arc<Semaphore>,
    pub(crate) log: LogHandle,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stopping: watch::Receiver<bool>,
}

/// The budget for content in memory.
pub(crate) fn memory_budget(max_message_bytes: u64) -> Arc<Semaphore> {
    // The largest message must fit, whatever was configured.
    let largest = usize::try_from(max_message_bytes).unwrap_or(usize::MAX).saturating_add(2 * MEMORY_STEP_BYTES);
    Arc::new(Semaphore::new((MEMORY_BYTES_MAX.max(largest) / MEMORY_STEP_BYTES).min(Semaphore::MAX_PERMITS)))
}

/// Serves one connection to its end.
pub(crate) async fn serve(mut stream: TcpStream, client: SocketAddr, number: u64, door: Arc<Door>) {
    let mut stopping = door.stopping.clone();
    let mut session = Session::new(door.settings.clone(), client, number, clock::now());
    let mut visitor = Visitor::new(&door, client, number);
    visitor.log(Line::connect(client, number));
    let ended = converse(&mut stream, &mut session, &mut visitor, &mut stopping).await;
    session.disconnected(&mut visitor);
    let counts = session.counts();
    door.metrics.session_ended(&counts);
    visitor.log(Line::disconnect(client, number, &counts, ended.err().map(|e| e.to_string())));
}

async fn converse(
    stream: &mut TcpStream,
    session: &mut Session,
    visitor: &mut Visitor<'_>,
    stopping: &mut watch::Receiver<bool>,
) -> io::Result<()> {
    let mut left_over = Vec::new();
    let mut told_to_stop = false;
    loop {
        if !left_over.is_empty() && !session.awaits_commit() && !session.wants_close() {
            let used = session.receive(&left_over, clock::now(), visitor);
            left_over.drain(..used);
        }
        write_replies(stream, session).await?;
        if session.wants_close() {
            return close(stream).await;
        }
        if session.awaits_commit() {
            let resolution = visitor.resolution().await;
            session.resolve(resolution, clock::now());
            continue;
        }
        let deadline = session.poll_timeout();
        tokio::select! {
            ready = stream.readable() => {
                ready?;
                if !read_some(stream, session, visitor, &mut left_over)? {
                    return Ok(());
                }
            }
            () = until(deadline) => session.handle_timeout(clock::now(), visitor),
            _ = stopping.wait_for(|stop| *stop), if !told_to_stop => {
                told_to_stop = true;
                session.shut_down(visitor);
            }
        }
    }
}

/// Reads what is there and gives it to the session. False at the end of the stream.
fn read_some(
    stream: &TcpStream,
    session: &mut Session,
    visitor: &mut Visitor<'_>,
    left_over: &mut Vec<u8>,
) -> io::Result<bool> {
    let mut buffer = [0; READ_BYTES];
    let n = match stream.try_read(&mut buffer) {
        Ok(0) => return Ok(false),
        Ok(n) => n,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
        Err(error) => return Err(error),
    };
    let input = buffer.get(..n).unwrap_or_default();
    if left_over.is_empty() {
        let used = session.receive(input, clock::now(), visitor);
        left_over.extend_from_slice(input.get(used..).unwrap_or_default());
    } else {
        left_over.extend_from_slice(input);
    }
    Ok(true)
}

async fn write_replies(stream: &mut TcpStream, session: &mut Session) -> io::Result<()> {
    if session.output().is_empty() {
        return Ok(());
    }
    let replies = std::mem::take(session.output());
    match tokio::time::timeout(WRITE_TIMEOUT, stream.write_all(&replies)).await {
        Ok(written) => written,
        Err(_late) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not take our replies")),
    }
}

/// Says good-bye so that the last reply arrives: a socket closed with unread bytes is reset, and the reset may overtake
/// the reply.
async fn close(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let drain = async {
        let mut scratch = [0; 1024];
        while stream.readable().await.is_ok() {
            match stream.try_read(&mut scratch) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    };
    let _whoever_lingers = tokio::time::timeout(Duration::from_millis(500), drain).await;
    Ok(())
}

pub(super) async fn until(deadline: Option<Timestamp>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(clock::now())).await,
        None => std::future::pending().await,
    }
}

/// What a session asks of the daemon, and where its content goes.
struct Visitor<'a> {
    door: &'a Arc<Door>,
    client: SocketAddr,
    number: u64,
    envelope: Option<Envelope>,
    content: Vec<u8>,
    memory: Option<OwnedSemaphorePermit>,
    commit: Option<Result<oneshot::Receiver<Result<Receipt, Refused>>, Refused>>,
}

impl<'a> Visitor<'a> {
    fn new(door: &'a Arc<Door>, client: SocketAddr, number: u64) -> Self {
        Self { door, client, number, envelope: None, content: Vec::new(), memory: None, commit: None }
    }

    fn log(&self, line: Line) {
        self.door.log.write(line);
    }

    /// Waits for the journal's word on the message that was handed over.
    async fn resolution(&mut self) -> Resolution {
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
        match self.door.routes.admit(path) {
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
