//! One SMTP connection: moves bytes between the socket and the sans-IO session.
//!
//! Decides nothing about the protocol. An idle connection holds no buffer: bytes are read into the stack when there are
//! some, and only what a session leaves over is kept.

use super::intake::Visitor;
use super::journal::Journal;
use super::log::{Line, LogHandle};
use super::metrics::Metrics;
use crate::clock;
use restante_envelope::Timestamp;
use restante_relay::Routes;
use restante_smtp::{Session, Settings};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

/// Read at once. Four TCP windows of a fast sender on loopback; on the stack, so it costs an idle session nothing.
const READ_BYTES: usize = 16 << 10;
/// A client that does not take our replies for this long is gone (RFC 5321 section 4.5.3.2.7 allows it five minutes).
const WRITE_TIMEOUT: Duration = Duration::from_secs(300);
/// What all sessions share.
pub(crate) struct Door {
    pub(crate) settings: Arc<Settings>,
    /// The ones of now: looked at anew for each recipient.
    pub(crate) routes: watch::Receiver<Arc<Routes>>,
    pub(crate) journal: Journal,
    pub(crate) memory: Arc<Semaphore>,
    pub(crate) log: LogHandle,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stopping: watch::Receiver<bool>,
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
