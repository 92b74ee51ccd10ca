//! One SMTP connection: moves bytes between the socket and the sans-IO session.
//!
//! Decides nothing about the protocol. An idle connection holds no buffer: bytes are read into the stack when there are
//! some, and only what a session leaves over is kept.

use super::crowd::{Crowd, Place, Seat};
use super::intake::Visitor;
use super::journal::Journal;
use super::listener;
use super::log::{Line, LogHandle};
use super::memory::Memory;
use super::metrics::Metrics;
use super::proxy;
use super::relay::Request;
use super::socket::Socket;
use super::space::Space;
use super::tls::Tls;
use crate::clock;
use crate::config::Trusted;
use restante_envelope::{RouteName, Timestamp};
use restante_journal::DirStorage;
use restante_relay::Routes;
use restante_smtp::{RefusedConnection, Session, Settings};
use socket2::SockRef;
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};

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
    pub(crate) crowd: Arc<Crowd>,
    pub(crate) trusted: Trusted,
    pub(crate) stopping: watch::Receiver<bool>,
}

/// The replies to a few commands.
const REPLIES_KEPT_BYTES: usize = 256;
/// In a full house, who has not done anything for so long between two commands makes way..
const SILENT_AFTER: Duration = Duration::from_secs(1);
/// ..and in the middle of content, where a network may stall..
const STALLED_AFTER: Duration = Duration::from_secs(30);
/// ..with less than this at a time.
const CONTENT_BYTES_MIN: usize = 1 << 10;
/// A client that is turned away has this long to take its 421.
const TURN_AWAY_TIMEOUT: Duration = Duration::from_secs(5);

/// What the crowd knows of a connection.
pub(crate) struct Guest {
    /// In milliseconds since 1970; from then on it is silent. `u64::MAX` while it is at work, or has been sent off.
    silent_since: AtomicU64,
    leave: Notify,
}

impl Guest {
    pub(crate) fn new(silent_since: Timestamp) -> Self {
        Self { silent_since: AtomicU64::new(silent_since.unix_ms()), leave: Notify::new() }
    }

    fn was_heard(&self, takes_content: bool) {
        let patience = if takes_content { STALLED_AFTER } else { SILENT_AFTER };
        self.silent_since.store((clock::now() + patience).unix_ms(), Ordering::Relaxed);
    }

    pub(super) fn is_busy(&self) {
        self.silent_since.store(u64::MAX, Ordering::Relaxed);
    }

    /// Since when it keeps a place for nothing; none if it has not been silent at all.
    pub(super) fn silent_since(&self) -> Option<Timestamp> {
        let since = self.silent_since.load(Ordering::Relaxed);
        (since != u64::MAX).then(|| Timestamp::from_unix_ms(since))
    }

    /// Another takes its place.
    pub(super) fn send_off(&self) {
        self.is_busy();
        self.leave.notify_one();
    }

    #[cfg(test)]
    pub(super) fn was_sent_off(&self) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        pin!(self.leave.notified()).as_mut().poll(&mut context).is_ready().then(|| self.leave.notify_one()).is_some()
    }
}

/// Serves one connection to its end. Without a place it is a proxy's, which says first whose it is.
pub(crate) async fn serve(
    mut stream: TcpStream,
    peer: SocketAddr,
    number: u64,
    (place, _seat, guest): (Option<Place>, Seat, Arc<Guest>),
    door: Arc<Door>,
) {
    let (client, _place) = match place {
        Some(place) => (peer, place),
        None => match Box::pin(announced(&mut stream, peer, (&guest, &door))).await {
            Some(announced) => {
                door.crowd.speaks_for(number, announced.0.ip());
                announced
            }
            None => return,
        },
    };
    guest.was_heard(false);
    let mut session = Session::new(door.settings.clone(), client, number, clock::now());
    // The one behind a balancer, not the balancer: else all who come through it could say who they are.
    if door.trusted.xclient.iter().any(|network| network.contains(client.ip())) {
        session.allow_xclient();
    }
    let mut visitor = Visitor::new(&door, client, number);
    visitor.log(Line::connect(client, number));
    // Who is faster than the greeting never meant to read it. A look at the socket itself, which does not wait: the runtime has not
    // heard of it yet, and its shortest wait is a millisecond.
    if let Ok(1..) = SockRef::from(&stream).peek(&mut [MaybeUninit::uninit()]) {
        session.talked_too_soon(&mut visitor);
    }
    let ended = converse(Socket::Clear(stream), &mut session, &mut visitor, (&guest, &door)).await;
    session.disconnected(&mut visitor);
    let counts = session.counts();
    door.metrics.session_ended(&counts);
    visitor.log(Line::disconnect(client, number, &counts, ended.err().map(|e| e.to_string())));
}

/// Who is behind a proxy, and a place for him.
async fn announced(
    stream: &mut TcpStream,
    peer: SocketAddr,
    (guest, door): (&Guest, &Arc<Door>),
) -> Option<(SocketAddr, Place)> {
    let read = tokio::select! {
        read = timeout(proxy::TIMEOUT, proxy::read(stream)) => read.map_err(|_| "no PROXY header came".to_owned()),
        () = guest.leave.notified() => return None,
        () = stop(door.stopping.clone()) => return None,
    };
    let client = match read.and_then(|read| read.map_err(|error| error.to_string())) {
        Ok(client) => client.unwrap_or(peer),
        // A balancer that only looks whether we are there does so every other second.
        Err(why) if door.crowd.is_to_be_told(peer.ip(), clock::now()) => {
            tracing::warn!(
                "a connection of {peer}, a proxy by the configuration, is closed: {why} (said once a minute)"
            );
            return None;
        }
        Err(_) => return None,
    };
    let client = listener::canonical(client);
    match door.crowd.enter(client.ip()) {
        Ok(place) => Some((client, place)),
        Err(why) => {
            turn_away(stream, client, why, door).await;
            None
        }
    }
}

/// Says why not, to who takes it.
pub(super) async fn turn_away(stream: &mut TcpStream, client: SocketAddr, why: RefusedConnection, door: &Door) {
    door.metrics.connection_refused(why);
    if door.crowd.is_to_be_told(client.ip(), clock::now()) {
        door.log.write(Line::turned_away(client, &why.reply(&door.settings)));
    }
    let mut session = Session::refuse(door.settings.clone(), client, why);
    let greeting = std::mem::take(session.output());
    let _gone = timeout(TURN_AWAY_TIMEOUT, async {
        stream.write_all(&greeting).await?;
        stream.shutdown().await
    })
    .await;
}

async fn converse(
    mut socket: Socket,
    session: &mut Session,
    visitor: &mut Visitor<'_>,
    (guest, door): (&Guest, &Door),
) -> io::Result<()> {
    // Made once: a timer and a place among those who wait for the stop cost a lock each time they are taken.
    let mut alarm = Alarm::new(session.poll_timeout());
    let mut stop = pin!(stop(door.stopping.clone()));
    let mut leave = pin!(guest.leave.notified());
    let mut left_over = Vec::new();
    let (mut told_to_stop, mut told_to_leave) = (false, false);
    loop {
        if !left_over.is_empty() && !session.awaits_commit() && !session.wants_close() {
            let used = session.receive(&left_over, clock::now(), visitor);
            left_over.drain(..used);
        }
        visitor.make_room().await;
        if !session.output().is_empty() && !session.awaits_commit() {
            let mut replies = std::mem::take(session.output());
            tokio::select! {
                biased;
                written = socket.write(&replies) => written?,
                // Nobody would read the 421.
                () = leave.as_mut(), if !told_to_leave => {
                    return Err(io::Error::other("it did not take our replies, and the house is full"));
                }
            }
            guest.was_heard(session.takes_content());
            // The next reply needs no other buffer; a long one is not kept.
            if replies.capacity() <= REPLIES_KEPT_BYTES {
                replies.clear();
                *session.output() = replies;
            }
            // It had more to say than is kept at once.
            if !left_over.is_empty() && !session.awaits_tls() && !session.wants_close() {
                continue;
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
            socket = Box::pin(handshake(socket, session, (guest, door))).await?;
            guest.was_heard(false);
            continue;
        }
        if session.awaits_commit() {
            guest.is_busy();
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
            () = leave.as_mut(), if !told_to_leave => {
                told_to_leave = true;
                session.make_way(visitor);
            }
            () = alarm.ring(deadline) => session.handle_timeout(clock::now(), visitor),
            read = socket.read(|input| receive(input, session, (visitor, guest), &mut left_over)) => {
                if read?.is_none() {
                    // Gone without QUIT. Inside TLS it still hears that we go, too.
                    socket.close(true).await;
                    return Ok(());
                }
            }
        }
    }
}

/// Gives the session what was read, and keeps what it leaves over.
fn receive(input: &[u8], session: &mut Session, (visitor, guest): (&mut Visitor<'_>, &Guest), left_over: &mut Vec<u8>) {
    if input.len() >= CONTENT_BYTES_MIN && session.takes_content() {
        guest.was_heard(true);
    }
    let used = if left_over.is_empty() { session.receive(input, clock::now(), visitor) } else { 0 };
    left_over.extend_from_slice(input.get(used..).unwrap_or_default());
}

/// Does what a 220 to STARTTLS announced. A connection without its handshake ends here, and the error says why.
async fn handshake(socket: Socket, session: &mut Session, (guest, door): (&Guest, &Door)) -> io::Result<Socket> {
    let outcome = tokio::select! {
        () = guest.leave.notified() => return Err(io::Error::other("TLS handshake: too slow in a full house")),
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
