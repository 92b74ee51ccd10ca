//! All that Restante knows of lettre: commands and content out, verbatim replies in, every wait bounded.
//!
//! lettre's `AsyncSmtpConnection` writes the commands, stuffs the dots and waits for the replies, over a stream of
//! ours, the [`Tap`]. The tap reads the socket itself, keeps each reply as it came, and shows lettre a plain `250 ok`
//! in its place: so lettre's word is only "a reply came" or "the connection failed", and what the reply was is read
//! from the tap. lettre 0.11.23 by itself
//! - panics on a blank line in the reply to EHLO, and refuses `571`, `250` without text, bytes outside UTF-8 and lines
//!   over 1,000 bytes, leaving the rest of such a reply to be read as the next one;
//! - joins the lines of a refusal, and keeps bytes that nobody asked for in a buffer it does not show;
//! - hangs up when EHLO is refused, so HELO cannot follow. That is why its own handshake is played to it by the tap
//!   ([`TapState::rehearsing`]) and the real one goes through [`Wire::reply`] and [`Wire::command`];
//! - has no limit on any wait but connect's: the tap has a deadline in every read and write;
//! - sends the final dot when its iterator ends, whatever the reason. So an iterator that cannot go on first
//!   [severs](TapState::sever) the tap, and no byte of ours goes out any more.
//!
//! This file decides nothing about mail. To replace lettre, replace the three calls on `self.smtp`.

use crate::content::{Content, Unended};
use crate::failure::Failure;
use crate::reply_reader::{ReplyReader, VerbatimReply};
use crate::stream::Stream;
use lettre::transport::smtp::client::{AsyncSmtpConnection, AsyncTokioStream};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::{Error, response::Response};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};

/// One read of replies: a pipelined group's replies fit.
const READ_BYTES: usize = 8 * 1024;
/// How long we wait for the rest of a reply that began unasked.
const EARLY_REPLY_LIMIT: Duration = Duration::from_secs(5);
/// What lettre is shown for every reply.
const SHOWN_REPLY: &[u8] = b"250 ok\r\n";

/// A connection to a server, before, between and in transactions.
pub(crate) struct Wire {
    smtp: AsyncSmtpConnection,
    tap: Tap,
}

/// Why the content got no reply to its final dot.
#[derive(Debug)]
pub(crate) enum ContentError {
    /// The server refused before it had all; it cannot have taken the message.
    Refused(VerbatimReply),
    /// No byte of the final dot went out.
    Lost(Failure),
    /// The final dot, or a part of it, went out.
    InDoubt(Failure),
}

impl Wire {
    /// Takes over a fresh connection. Nothing is read or written yet.
    pub(crate) async fn new(stream: Stream) -> Result<Self, Failure> {
        let tap = Tap::new(stream);
        tap.state().rehearsing = true;
        let smtp = AsyncSmtpConnection::connect_with_transport(Box::new(tap.clone()), &ClientId::default()).await;
        tap.state().rehearsing = false;
        let smtp = smtp.map_err(|error| Failure::Protocol(error.to_string()))?;
        Ok(Self { smtp, tap })
    }

    /// The next reply, within `limit`.
    pub(crate) async fn reply(&mut self, limit: Duration) -> Result<VerbatimReply, Failure> {
        self.tap.state().start(limit);
        let result = self.smtp.read_response().await;
        self.tap.state().outcome(result)
    }

    /// Sends `lines`, one command or a pipelined group, each ending in CRLF, and gives the reply to the first.
    pub(crate) async fn command(&mut self, lines: &str, limit: Duration) -> Result<VerbatimReply, Failure> {
        self.tap.state().start(limit);
        let result = self.smtp.command(lines).await;
        self.tap.state().outcome(result)
    }

    /// Sends `header` and `size_bytes` of `content` dot-stuffed with the final dot, and gives the reply. Each is empty or
    /// ends in CRLF. Each chunk has `block_limit` to go out, the reply `final_limit` to come.
    pub(crate) async fn content(
        &mut self,
        header: &[u8],
        content: &mut dyn Content,
        size_bytes: u64,
        block_limit: Duration,
        final_limit: Duration,
    ) -> Result<VerbatimReply, ContentError> {
        self.tap.state().start(block_limit);
        self.tap.state().content =
            Some(ContentProgress { block_limit, final_limit, at_final_dot: false, dot_sent: false });
        let is_empty = header.is_empty() && size_bytes == 0;
        let mut chunks = Chunks { unended: Unended::new(header, content, size_bytes), tap: self.tap.clone() };
        let result = if is_empty && chunks.next().is_none() {
            // lettre's own end would make an empty line of it. After an error there, the tap lets this out no more.
            self.smtp.command(".\r\n").await
        } else {
            self.smtp.message_iter(chunks).await
        };
        let (outcome, dot_sent) = {
            let mut tap = self.tap.state();
            let dot_sent = tap.content.take().is_some_and(|progress| progress.dot_sent);
            (tap.outcome(result), dot_sent)
        };
        match outcome {
            Ok(reply) => Ok(reply),
            Err(failure) if dot_sent => Err(ContentError::InDoubt(failure)),
            Err(failure @ (Failure::TimedOut(_) | Failure::Unreadable(_))) => Err(ContentError::Lost(failure)),
            Err(failure) => Err(self.early_reply(failure).await),
        }
    }

    /// A server that stops a message half-way usually says why before it hangs up.
    async fn early_reply(&mut self, failure: Failure) -> ContentError {
        match self.said_unasked().await {
            Some(reply) if reply.code >= 400 => ContentError::Refused(reply),
            Some(reply) => ContentError::Lost(Failure::Protocol(format!("the server said {} too early", reply.code))),
            None => ContentError::Lost(failure),
        }
    }

    /// The reply that is at hand without a command, if there is one.
    pub(crate) async fn said_unasked(&mut self) -> Option<VerbatimReply> {
        self.reply(EARLY_REPLY_LIMIT).await.ok()
    }

    /// What the server did while it had nothing to say: hang up, or send bytes that answer no command. Whoever reads
    /// on would take them for the next reply. Does not block.
    pub(crate) fn unasked(&self) -> Option<Failure> {
        let mut tap = self.tap.state();
        if tap.replies.has_more() {
            return Some(Failure::unasked());
        }
        tap.stream.unasked()
    }

    /// The bare connection, to be encrypted; all that was read from it and all that lettre keeps is forgotten. None if it
    /// is encrypted already.
    pub(crate) fn into_tcp(self) -> Option<TcpStream> {
        // lettre's hand on the tap goes first, so that ours is the last.
        drop(self.smtp);
        match Arc::into_inner(self.tap.0)?.into_inner().unwrap_or_else(PoisonError::into_inner).stream {
            Stream::Clear(tcp) => Some(tcp),
            Stream::Encrypted(_) => None,
        }
    }

    /// Ends the connection in good form (RFC 8446 section 6.1), as far as `limit` allows.
    pub(crate) async fn close(mut self, limit: Duration) {
        // Whatever becomes of it, the connection is dropped.
        let _ = timeout(limit, self.tap.shutdown()).await;
    }
}

/// The content as lettre's chunks. The only way to the final dot is the end of the content, without an error.
struct Chunks<'a> {
    unended: Unended<'a>,
    tap: Tap,
}

impl Iterator for Chunks<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Self::Item> {
        // Reads from disk, it may be: the tap is not held meanwhile.
        let chunk = self.unended.next_chunk();
        let mut tap = self.tap.state();
        match chunk {
            Ok(Some(chunk)) => {
                tap.at_chunk();
                return Some(chunk);
            }
            Ok(None) => tap.at_final_dot(),
            Err(why) => tap.sever(Failure::Unreadable(why)),
        }
        None
    }
}

/// The stream lettre is given, and our own hand on it. The lock is never contended: lettre's calls and ours take turns
/// within one `&mut Wire`.
#[derive(Clone)]
struct Tap(Arc<Mutex<TapState>>);

struct TapState {
    stream: Stream,
    replies: ReplyReader,
    /// The reply that lettre has been told of and we have not taken.
    reply: Option<VerbatimReply>,
    /// Why the stream told lettre of an error.
    failure: Option<Failure>,
    limit: Duration,
    deadline: Pin<Box<Sleep>>,
    content: Option<ContentProgress>,
    /// Why nothing may be sent on this connection, ever again.
    severed: Option<Failure>,
    /// While lettre's own handshake is played to it: reads say yes, writes go nowhere.
    rehearsing: bool,
}

struct ContentProgress {
    block_limit: Duration,
    final_limit: Duration,
    /// All before the final dot has been handed to the system.
    at_final_dot: bool,
    /// The system took at least a byte of the final dot.
    dot_sent: bool,
}

impl Tap {
    fn new(stream: Stream) -> Self {
        Self(Arc::new(Mutex::new(TapState {
            stream,
            replies: ReplyReader::default(),
            reply: None,
            failure: None,
            limit: Duration::ZERO,
            deadline: Box::pin(sleep(Duration::ZERO)),
            content: None,
            severed: None,
            rehearsing: false,
        })))
    }

    fn state(&self) -> MutexGuard<'_, TapState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// Required by lettre; what passes through is nobody's business.
impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tap")
    }
}

impl TapState {
    /// Begins an exchange that has `limit` to end.
    fn start(&mut self, limit: Duration) {
        self.reply = None;
        self.failure = None;
        self.content = None;
        self.allow(limit);
    }

    fn allow(&mut self, limit: Duration) {
        self.limit = limit;
        self.deadline = Box::pin(sleep(limit));
    }

    /// The next chunk is there; how long that took is not the server's fault.
    fn at_chunk(&mut self) {
        if let Some(limit) = self.content.as_ref().map(|progress| progress.block_limit) {
            self.allow(limit);
        }
    }

    fn sever(&mut self, why: Failure) {
        self.severed = Some(why);
    }

    fn at_final_dot(&mut self) {
        self.at_chunk();
        if let Some(progress) = &mut self.content {
            progress.at_final_dot = true;
        }
    }

    /// What really came of a call to lettre.
    fn outcome(&mut self, result: Result<Response, Error>) -> Result<VerbatimReply, Failure> {
        match (self.reply.take(), self.failure.take(), result) {
            (Some(reply), _, Ok(_)) => Ok(reply),
            (_, Some(failure), _) => Err(failure),
            (_, None, Err(error)) => Err(Failure::Protocol(error.to_string())),
            (None, None, Ok(_)) => Err(Failure::Protocol("no reply was read".into())),
        }
    }

    fn fail(&mut self, failure: Failure) -> io::Error {
        let error = io::Error::other(failure.to_string());
        self.failure = Some(failure);
        error
    }

    /// Ready with a failure once the time is up.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Failure::TimedOut(self.limit))
    }

    /// Reads what the socket has.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let mut bytes = [0; READ_BYTES];
        let mut bytes = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut bytes))?;
        if bytes.filled().is_empty() {
            return Poll::Ready(Err(Failure::closed_by_server()));
        }
        self.replies.feed(bytes.filled());
        Poll::Ready(Ok(()))
    }

    fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<Result<VerbatimReply, Failure>> {
        loop {
            if let Some(reply) = self.replies.next_reply()? {
                return Poll::Ready(Ok(reply));
            }
            match self.poll_fill(cx) {
                Poll::Ready(filled) => filled?,
                Poll::Pending => return self.poll_deadline(cx).map(Err),
            }
        }
    }

    /// Whether bytes of ours may still go out; an error if not.
    ///
    /// Content is the one place where the server has nothing to say while we talk: if it speaks or hangs up, the message
    /// is refused, and the rest of 100 MiB, the final dot above all, stays here.
    fn poll_may_send(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        if let Some(why) = &self.severed {
            return Err(why.clone());
        }
        if self.content.is_none() {
            return Ok(());
        }
        let heard = if self.replies.has_more() { Poll::Ready(Ok(())) } else { self.poll_fill(cx) };
        match heard {
            Poll::Ready(heard) => heard.and(Err(Failure::Protocol("the server spoke too early".into()))),
            Poll::Pending => Ok(()),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Failure>> {
        self.poll_may_send(cx)?;
        match Pin::new(&mut self.stream).poll_write(cx, bytes) {
            Poll::Ready(written) => {
                let written = written?;
                self.note_progress();
                Poll::Ready(Ok(written))
            }
            Poll::Pending => self.poll_deadline(cx).map(Err),
        }
    }

    /// Sends what TLS holds back. A reply that comes while the final dot is on its way is no longer too early.
    fn poll_send_held(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Ready(flushed) => Poll::Ready(flushed.map_err(Failure::from)),
            Poll::Pending => {
                if !self.content.as_ref().is_some_and(|progress| progress.dot_sent) {
                    self.poll_may_send(cx)?;
                }
                self.poll_deadline(cx).map(Err)
            }
        }
    }

    fn note_progress(&mut self) {
        let Some(progress) = &mut self.content else { return };
        progress.dot_sent = progress.at_final_dot;
        let limit = if progress.dot_sent { progress.final_limit } else { progress.block_limit };
        self.allow(limit);
    }
}

impl AsyncRead for Tap {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut tap = self.state();
        if buf.remaining() < SHOWN_REPLY.len() {
            return Poll::Ready(Err(tap.fail(Failure::Protocol("lettre reads in too small pieces".into()))));
        }
        if !tap.rehearsing {
            match ready!(tap.poll_reply(cx)) {
                Ok(reply) => tap.reply = Some(reply),
                Err(failure) => return Poll::Ready(Err(tap.fail(failure))),
            }
        }
        buf.put_slice(SHOWN_REPLY);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tap {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut tap = self.state();
        if tap.rehearsing {
            return Poll::Ready(Ok(bytes.len()));
        }
        match ready!(tap.poll_send(cx, bytes)) {
            Ok(written) => Poll::Ready(Ok(written)),
            Err(failure) => Poll::Ready(Err(tap.fail(failure))),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut tap = self.state();
        if tap.rehearsing {
            return Poll::Ready(Ok(()));
        }
        ready!(tap.poll_send_held(cx)).map_err(|failure| tap.fail(failure)).into()
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.state().stream).poll_shutdown(cx)
    }
}

impl AsyncTokioStream for Tap {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.state().stream.tcp().peer_addr()
    }
}
