//! One SMTP connection: moves bytes between the socket and the sans-IO session.
//!
//! Decides nothing about the protocol. An idle connection holds no buffer: bytes are read into the stack when there are
//! some, and only what a session leaves over is kept.

use super::intake::Visitor;
use super::journal::Journal;
use super::log::{Line, LogHandle};
use super::memory::Memory;
use super::metrics::Metrics;
use super::relay::Request;
use super::socket::Socket;
use super::space::Space;
use super::tls::Tls;
use crate::clock;
use restante_envelope::{RouteName, Timestamp};
use restante_journal::DirStorage;
use restante_relay::Routes;
use restante_smtp::{Session, Settings};
use socket2::SockRef;
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, Sleep, sleep};

/// What all sessions share.
pub(crate) struct Door {
    pub(crate) settings: Arc<Settings>,
    /// The ones of now: looked at anew for each recipient.
    pub(crate) routes: watch::Receiver<Arc<Routes>>,
    pub(crate) journal: Journal,
    pub(crate) memory: Memory,
    /// Blobs that may be written at the same moment.
    pub(crate) disk_turns: Arc<Semaphore>,
    pub(crate) storage: DirStorage,
    pub(crate) space: Arc<Space>,
    pub(crate) log: LogHandle,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tls: Arc<Tls>,
    pub(crate) relay: mpsc::Sender<Request>,
    /// When ETRN last asked for the mail of a route.
    pub(crate) asked_for: Mutex<HashMap<RouteName, Timestamp>>,
    pub(crate) stopping: watch::Receiver<bool>,
}

/// The replies to a few commands.
const REPLIES_KEPT_BYTES: usize = 256;

/// Serves one connection to its end.
pub(crate) async fn serve(stream: TcpStream, client: SocketAddr, number: u64, door: Arc<Door>) {
    let mut session = Session::new(door.settings.clone(), client, number, clock::now());
    let mut visitor = Visitor::new(&door, client, number);
    visitor.log(Line::connect(client, number));
    // Who is faster than the greeting never meant to read it. A look at the socket itself, which does not wait: the runtime has not
    // heard of it yet, and its shortest wait is a millisecond.
    if let Ok(1..) = SockRef::from(&stream).peek(&mut [MaybeUninit::uninit()]) {
        session.talked_too_soon(&mut visitor);
    }
    let ended = converse(Socket::Clear(stream), &mut session, &mut visitor, &door).await;
    session.disconnected(&mut visitor);
    let counts = session.counts();
    door.metrics.session_ended(&counts);
    visitor.log(Line::disconnect(client, number, &counts, ended.err().map(|e| e.to_string())));
}

async fn converse(mut socket: Socket, session: &mut Session, visitor: &mut Visitor<'_>, door: &Door) -> io::Result<()> {
    // Made once: a timer and a place among those who wait for the stop cost a lock each time they are taken.
    let mut alarm = Alarm::new(session.poll_timeout());
    let mut stop = pin!(stop(door.stopping.clone()));
    let mut left_over = Vec::new();
    let mut told_to_stop = false;
    loop {
        if !left_over.is_empty() && !session.awaits_commit() && !session.wants_close() {
            let used = session.receive(&left_over, clock::now(), visitor);
            left_over.drain(..used);
        }
        visitor.make_room().await;
        if !session.output().is_empty() && !session.awaits_commit() {
            let mut replies = std::mem::take(session.output());
            socket.write(&replies).await?;
            // The next reply needs no other buffer; a long one is not kept.
            if replies.capacity() <= REPLIES_KEPT_BYTES {
                replies.clear();
                *session.output() = replies;
            }
        }
        if session.wants_close() {
            socket.close(session.client_quit() && left_over.is_empty()).await;
            return Ok(());
        }
        if session.awaits_tls() {
            // Said in clear behind STARTTLS, perhaps by another: it must never come before what comes out of TLS.
            left_over = Vec::new();
            // Boxed: it is large, and a session in clear would be as large.
            socket = Box::pin(handshake(socket, session, door)).await?;
            continue;
        }
        if session.awaits_commit() {
            let resolution = visitor.resolution().await;
            session.resolve(resolution, clock::now());
            continue;
        }
        let deadline = session.poll_timeout();
        tokio::select! {
            biased;
            () = stop.as_mut(), if !told_to_stop => {
                told_to_stop = true;
                session.shut_down(visitor);
            }
            () = alarm.ring(deadline) => session.handle_timeout(clock::now(), visitor),
            read = socket.read(|input| receive(input, session, visitor, &mut left_over)) => {
                if read?.is_none() {
                    return Ok(());
                }
            }
        }
    }
}

/// Gives the session what was read, and keeps what it leaves over.
fn receive(input: &[u8], session: &mut Session, visitor: &mut Visitor<'_>, left_over: &mut Vec<u8>) {
    let used = if left_over.is_empty() { session.receive(input, clock::now(), visitor) } else { 0 };
    left_over.extend_from_slice(input.get(used..).unwrap_or_default());
}

/// Does what a 220 to STARTTLS announced. A connection without its handshake ends here, and the error says why.
async fn handshake(socket: Socket, session: &mut Session, door: &Door) -> io::Result<Socket> {
    let outcome = tokio::select! {
        outcome = socket.start_tls(&door.tls) => outcome,
        () = stop(door.stopping.clone()) => return Err(io::Error::other("TLS handshake: we are shutting down")),
    };
    match outcome {
        Ok((socket, agreed)) => {
            door.metrics.tls_started(agreed.version);
            session.tls_started(agreed.to_string(), clock::now());
            Ok(socket)
        }
        Err(error) => {
            door.metrics.tls_failed();
            session.tls_failed();
            Err(error)
        }
    }
}

/// Waits until the daemon is told to stop.
pub(super) async fn stop(mut stopping: watch::Receiver<bool>) {
    // An error: whoever could tell us is gone.
    let _stop = stopping.wait_for(|stop| *stop).await;
}

/// Rings when a session's time is up. Each command moves that, nearly always to later: the timer stays where it is and is
/// set anew when it has rung too early.
struct Alarm {
    timer: Pin<Box<Sleep>>,
    set_for: Timestamp,
}

impl Alarm {
    fn new(deadline: Option<Timestamp>) -> Self {
        let set_for = deadline.unwrap_or_default();
        Self { timer: Box::pin(sleep(set_for.since(clock::now()))), set_for }
    }

    async fn ring(&mut self, deadline: Option<Timestamp>) {
        let Some(deadline) = deadline else { return std::future::pending().await };
        if deadline < self.set_for {
            self.set(deadline);
        }
        loop {
            self.timer.as_mut().await;
            if clock::now() >= deadline {
                return;
            }
            self.set(deadline);
        }
    }

    fn set(&mut self, deadline: Timestamp) {
        self.set_for = deadline;
        self.timer.as_mut().reset(Instant::now() + deadline.since(clock::now()));
    }
}

pub(super) async fn until(deadline: Option<Timestamp>) {
    match deadline {
        Some(deadline) => sleep(deadline.since(clock::now())).await,
        None => std::future::pending().await,
    }
}
