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
//! - writes the content and the final dot apart: the tap holds small content until its dot comes, so that both, and what
//!   is said ahead behind them (RFC 2920), are one write;
//! - knows no BDAT (RFC 3030): [`Wire::send`] goes past it;
//! - sends the final dot when its iterator ends, whatever the reason. So an iterator that cannot go on first
//!   [severs](TapState::sever) the tap, and no byte of ours goes out any more.
//!
//! This file decides nothing about mail. To replace lettre, replace the calls on `self.smtp`.

use crate::content::{Content, Unended};
use crate::failure::Failure;
use crate::reply_reader::{ReplyReader, VerbatimReply};
use crate::stream::Stream;
use lettre::transport::smtp::client::{AsyncSmtpConnection, AsyncTokioStream};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::{Error, response::Response};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, timeout};

/// One read of replies: a pipelined group's replies fit.
const READ_BYTES: usize = 8 * 1024;
/// Content that is held until its final dot goes out with it. Any common message; what is larger is many writes anyway.
const HELD_BYTES_MAX: usize = 64 * 1024;
/// `CRLF . CRLF`.
const FINAL_DOT_BYTES: usize = 5;
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

/// What became of octets that were sent as they are.
#[derive(Debug)]
pub(crate) struct Sent {
    /// The last of them may have gone out.
    pub(crate) to_the_last: bool,
    /// Why they did not all go out, as far as we know. What the server said before may still be read.
    pub(crate) failure: Option<Failure>,
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

    /// Sends `octets` in one go, past lettre, which knows commands alone: commands, and content that BDAT counted (RFC 3030). All
    /// must be gone within `limit`. The replies are still to come by [`Wire::reply`].
    pub(crate) async fn send(&mut self, octets: &[u8], limit: Duration) -> Sent {
        self.tap.state().start(limit);
        let mut rest = octets;
        let sent = poll_fn(|cx| {
            let mut tap = self.tap.state();
            while !rest.is_empty() {
                let written = ready!(tap.poll_write(cx, rest))?;
                rest = rest.get(written..).unwrap_or_default();
            }
            tap.poll_flush(cx)
        });
        let failure = sent.await.err();
        // Of what TLS did not take it may have sent a part.
        let is_encrypted = matches!(self.tap.state().stream, Stream::Encrypted(_));
        Sent { to_the_last: rest.is_empty() || (is_encrypted && matches!(failure, Some(Failure::Closed(_)))), failure }
    }

    /// Sends `header` and `size_bytes` of `content` dot-stuffed with the final dot, and gives the reply. Each is empty or
    /// ends in CRLF. Each chunk has `block_limit` to go out, the reply `final_limit` to come.
    ///
    /// `ahead` goes out right behind the final dot, and so never if there is none. After a reply the answers to it are
    /// still to come by [`Wire::reply`], if it went out: what became of it is told there alone.
    pub(crate) async fn content(
        &mut self,
        header: &[u8],
        content: &mut dyn Content,
        size_bytes: u64,
        ahead: &str,
        (block_limit, final_limit): (Duration, Duration),
    ) -> Result<VerbatimReply, ContentError> {
        self.tap.state().start(block_limit);
        self.tap.state().content = Some(ContentProgress {
            block_limit,
            final_limit,
            ahead: ahead.to_owned(),
            held: Vec::new(),
            held_sent: 0,
            at_final_dot: false,
            dot: None,
            may_be_out: false,
        });
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
            let dot_sent = tap.content.take().is_some_and(|progress| progress.dot_is_out());
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
    deadline: Instant,
    /// Rings at the deadline or before, and is put off then: most waits are over long before, and cost no timer.
    alarm: Pin<Box<Sleep>>,
    content: Option<ContentProgress>,
    /// Why nothing may be sent on this connection, ever again.
    severed: Option<Failure>,
    /// While lettre's own handshake is played to it: reads say yes, writes go nowhere.
    rehearsing: bool,
}

struct ContentProgress {
    block_limit: Duration,
    final_limit: Duration,
    /// What goes out behind the final dot.
    ahead: String,
    /// What lettre has written and the system has not taken, from `held_sent` on.
    held: Vec<u8>,
    held_sent: usize,
    /// There is no more content: the next that lettre writes is the final dot.
    at_final_dot: bool,
    /// Where in `held` the final dot stands.
    dot: Option<Range<usize>>,
    /// TLS failed in a write of it: of what TLS did not take it may have sent a part.
    may_be_out: bool,
}

impl ContentProgress {
    /// Whether the system took at least a byte of the final dot, as far as we know.
    fn dot_is_out(&self) -> bool {
        self.dot.as_ref().is_some_and(|dot| self.held_sent > dot.start || self.may_be_out)
    }

    /// Whether it took all of it, as far as we know.
    fn dot_is_all_out(&self) -> bool {
        self.dot.as_ref().is_some_and(|dot| self.held_sent >= dot.end || self.may_be_out)
    }

    /// Keeps what lettre writes for a later write of ours; false if it is too much.
    fn hold(&mut self, bytes: &[u8]) -> bool {
        let fits = self.held.len() + bytes.len() <= HELD_BYTES_MAX;
        if fits {
            // One allocation: a common message is one chunk, and its dot comes next.
            self.held.reserve(bytes.len() + FINAL_DOT_BYTES + self.ahead.len());
            self.held.extend_from_slice(bytes);
        }
        fits
    }

    /// Appends the final dot and what stands behind it. Called again with the same dot while it cannot go out.
    fn hold_dot(&mut self, dot: &[u8]) {
        if self.dot.is_none() {
            let start = self.held.len();
            self.held.extend_from_slice(dot);
            self.dot = Some(start..self.held.len());
            self.held.extend_from_slice(self.ahead.as_bytes());
        }
    }
}

impl Tap {
    fn new(stream: Stream) -> Self {
        Self(Arc::new(Mutex::new(TapState {
            stream,
            replies: ReplyReader::default(),
            reply: None,
            failure: None,
            limit: Duration::ZERO,
            deadline: Instant::now(),
            alarm: Box::pin(sleep(Duration::ZERO)),
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
        self.deadline = Instant::now() + limit;
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
        if self.alarm.deadline() > self.deadline {
            self.alarm.as_mut().reset(self.deadline);
        }
        loop {
            ready!(self.alarm.as_mut().poll(cx));
            if self.alarm.deadline() >= self.deadline {
                return Poll::Ready(Failure::TimedOut(self.limit));
            }
            self.alarm.as_mut().reset(self.deadline);
        }
    }

    /// Reads what the socket has.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let mut bytes = [MaybeUninit::uninit(); READ_BYTES];
        let mut bytes = ReadBuf::uninit(&mut bytes);
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
        if self.content.as_ref().is_none_or(ContentProgress::dot_is_out) {
            return Ok(());
        }
        let heard = if self.replies.has_more() { Poll::Ready(Ok(())) } else { self.poll_fill(cx) };
        match heard {
            Poll::Ready(heard) => heard.and(Err(Failure::Protocol("the server spoke too early".into()))),
            Poll::Pending => Ok(()),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Failure>> {
        if let Some(why) = &self.severed {
            return Poll::Ready(Err(why.clone()));
        }
        if let Some(progress) = &mut self.content {
            if progress.at_final_dot {
                progress.hold_dot(bytes);
                return self.poll_send_held(cx).map_ok(|()| bytes.len());
            }
            if progress.hold(bytes) {
                return Poll::Ready(Ok(bytes.len()));
            }
            ready!(self.poll_send_held(cx))?;
        }
        self.poll_write(cx, bytes)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Failure>> {
        self.poll_may_send(cx)?;
        let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, bytes) else {
            return self.poll_deadline(cx).map(Err);
        };
        if let Some(progress) = &mut self.content {
            progress.may_be_out = written.is_err() && matches!(self.stream, Stream::Encrypted(_));
            let limit = progress.block_limit;
            self.allow(limit);
        }
        match written? {
            0 => Poll::Ready(Err(Failure::Closed("the connection takes nothing more".into()))),
            written => Poll::Ready(Ok(written)),
        }
    }

    /// Whether the server may have the message. What it said to that may be here, even where it hears us no more: then
    /// the error of a write is no answer, and the read tells.
    fn dot_is_all_out(&self) -> bool {
        self.content.as_ref().is_some_and(ContentProgress::dot_is_all_out)
    }

    /// Sends what was held of the content, and the final dot with what stands behind it if it is there.
    fn poll_send_held(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        while let Some(progress) = self.content.as_mut() {
            if progress.held_sent == progress.held.len() {
                if progress.dot.is_none() {
                    (progress.held, progress.held_sent) = (Vec::new(), 0);
                }
                break;
            }
            let held = std::mem::take(&mut progress.held);
            let held_sent = progress.held_sent;
            let written = self.poll_write(cx, held.get(held_sent..).unwrap_or_default());
            let Some(progress) = self.content.as_mut() else { break };
            progress.held = held;
            match written {
                Poll::Ready(Ok(written)) => {
                    progress.held_sent += written;
                    let limit = progress.final_limit;
                    if progress.dot_is_out() {
                        self.allow(limit);
                    }
                }
                Poll::Ready(Err(Failure::Closed(_))) if progress.dot_is_all_out() => break,
                Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what TLS holds back. A reply that comes while the final dot is on its way is no longer too early.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match Pin::new(&mut self.stream).poll_flush(cx).map_err(Failure::from) {
            Poll::Ready(Err(Failure::Closed(_))) if self.dot_is_all_out() => Poll::Ready(Ok(())),
            Poll::Ready(flushed) => Poll::Ready(flushed),
            Poll::Pending => {
                self.poll_may_send(cx)?;
                self.poll_deadline(cx).map(Err)
            }
        }
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
        ready!(tap.poll_flush(cx)).map_err(|failure| tap.fail(failure)).into()
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
