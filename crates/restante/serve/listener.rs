//! Accepts connections and counts all there are; where every place is taken, one who is silent makes way, or the new one is told
//! 421. What one client or network may have is the crowd's to say.

use super::session::{self, Door, Guest};
use crate::clock;
use crate::config::Limits;
use restante_smtp::RefusedConnection;
use rustix::io::Errno;
use socket2::SockRef;
use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};

/// Connections the kernel completes for us while we are busy: a burst of senders is not told to go away.
const BACKLOG: i32 = 4_096;
/// Replies that the kernel holds for a client: some thousand of them.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// After an accept that failed for want of file descriptors: the next one would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// As often as that is said.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Clients being turned away at once; beyond that a connection is closed without a word.
pub(super) const TURNED_AWAY_MAX: usize = 256;
/// Clients that were told to make way, and are not gone yet: so many are there above the limit, at most.
pub(super) const LEAVING_MAX: u32 = 256;

/// Opens a listening socket.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // On Linux `[::]` takes IPv4 as well, which is what a mail server wants of it.
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Where connections come in.
pub(crate) struct Entrance {
    listeners: Vec<TcpListener>,
    door: Arc<Door>,
    guests: Guests,
    spare: Spare,
    number: u64,
    /// When it was last said that none could be accepted.
    told: Option<Instant>,
}

impl Entrance {
    pub(crate) fn new(listeners: Vec<TcpListener>, door: Arc<Door>, limits: watch::Receiver<Limits>) -> Self {
        let guests = Guests {
            limits,
            sessions: JoinSet::new(),
            clients: HashMap::new(),
            turned_away: JoinSet::new(),
            leaving: 0,
        };
        for listener in &listeners {
            // Of each connection that it accepts; else, of who takes no reply the kernel keeps megabytes of them.
            let _best_effort = SockRef::from(listener).set_send_buffer_size(SEND_BUFFER_BYTES);
        }
        Self { listeners, door, guests, spare: Spare::new(), number: clock::now().unix_ms(), told: None }
    }

    /// Accepts on all listeners, for as long as this is polled.
    ///
    /// To be polled by one thread, and not by whichever worker is free: who accepts hands out the memory of a connection, so all of it
    /// is one thread's, and is used again for the next crowd. Accepted on the workers in turn, each comes to hold as much as the largest
    /// crowd ever took. An allocator that shares among threads was the other way: glibc's does with `MALLOC_ARENA_MAX=1`, which cannot
    /// be said from within without unsafe code; jemalloc and mimalloc were measured, and held more than glibc at its worst. What else
    /// belongs to this: large content is gathered in buffers that stay (`memory.rs`), and no task makes another thread a worker.
    pub(crate) async fn accept(&mut self) -> Infallible {
        let Self { listeners, door, guests, spare, number, told } = self;
        loop {
            tokio::select! {
                accepted = accept(listeners) => match accepted {
                    Ok((stream, client)) => {
                        // Replies are small and awaited: never held back to be joined with the next.
                        let _best_effort = stream.set_nodelay(true);
                        guests.admit(stream, canonical(client), *number, door);
                        *number += 1;
                    }
                    Err(error) => {
                        if told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
                            *told = Some(Instant::now());
                            tracing::warn!("cannot accept connections: {error} (said once a minute)");
                        }
                        let of_files = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
                        match of_files.contains(&error.raw_os_error()) {
                            true if spare.relieve(listeners).await => {
                                door.metrics.connection_refused(RefusedConnection::Crowded);
                            }
                            true => {}
                            false => tokio::time::sleep(ACCEPT_PAUSE).await,
                        }
                    }
                },
                Some(ended) = guests.sessions.join_next_with_id() => guests.gone(ended, door),
                Some(_) = guests.turned_away.join_next() => {}
            }
        }
    }

    /// Accepts no more, and waits for the sessions to end.
    pub(crate) async fn drain(self) {
        let Self { listeners, door, mut guests, .. } = self;
        drop(listeners);
        while let Some(ended) = guests.sessions.join_next_with_id().await {
            guests.gone(ended, &door);
        }
    }
}

/// The next connection on any of them.
async fn accept(listeners: &[TcpListener]) -> io::Result<(TcpStream, SocketAddr)> {
    poll_fn(|context| {
        let ready = listeners.iter().find_map(|listener| match listener.poll_accept(context) {
            Poll::Ready(accepted) => Some(accepted),
            Poll::Pending => None,
        });
        ready.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// An IPv4 client on an IPv6 socket is an IPv4 client.
pub(super) fn canonical(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}

struct Guests {
    limits: watch::Receiver<Limits>,
    sessions: JoinSet<()>,
    /// Whose session a task is: it is known even of one that panicked.
    clients: HashMap<Id, IpAddr>,
    turned_away: JoinSet<()>,
    /// Told to make way for another, and not gone yet, as far as anybody knows.
    leaving: u32,
}

impl Guests {
    fn admit(&mut self, stream: TcpStream, client: SocketAddr, number: u64, door: &Arc<Door>) {
        let ip = client.ip();
        let is_proxy = door.trusted.proxy.iter().any(|network| network.contains(ip));
        let place =
            match self.has_room(door).and_then(|()| if is_proxy { Ok(None) } else { door.crowd.enter(ip).map(Some) }) {
                Ok(place) => place,
                Err(why) => return self.turn_away(stream, client, why, door),
            };
        door.metrics.connection_opened();
        let guest = Arc::new(Guest::new(clock::now()));
        let seat = door.crowd.seat(number, ip, guest.clone());
        let task = self.sessions.spawn(session::serve(stream, client, number, (place, seat, guest), door.clone()));
        self.clients.insert(task.id(), ip);
    }

    /// Where all places are taken, one who is silent makes way.
    fn has_room(&mut self, door: &Door) -> Result<(), RefusedConnection> {
        let all = u32::try_from(self.sessions.len()).unwrap_or(u32::MAX);
        self.leaving = self.leaving.min(all);
        let limit = self.limits.borrow().max_connections;
        if all - self.leaving < limit {
            return Ok(());
        }
        if self.leaving >= LEAVING_MAX || !door.crowd.send_one_off(clock::now()) {
            return Err(RefusedConnection::Crowded);
        }
        door.metrics.connection_sent_off();
        self.leaving += 1;
        Ok(())
    }

    fn turn_away(&mut self, mut stream: TcpStream, client: SocketAddr, why: RefusedConnection, door: &Arc<Door>) {
        if self.turned_away.len() >= TURNED_AWAY_MAX {
            door.metrics.connection_refused(why);
            return;
        }
        let door = door.clone();
        self.turned_away.spawn(async move { session::turn_away(&mut stream, client, why, &door).await });
    }

    fn gone(&mut self, ended: Result<(Id, ()), JoinError>, door: &Arc<Door>) {
        door.metrics.connection_closed();
        // Perhaps another one: who was told goes soon, and is not counted twice for long.
        self.leaving = self.leaving.saturating_sub(1);
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let Some(ip) = self.clients.remove(&id) else { return };
        if let Err(error) = ended {
            tracing::error!("a session of {ip} ended by a defect of ours, please report it: {error}");
        }
    }
}

/// A descriptor kept for the moment when there is no other: with it a connection can be taken and closed, instead of standing
/// in the kernel's queue in front of all others.
struct Spare(Option<File>);

impl Spare {
    fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Says whether one was closed.
    async fn relieve(&mut self, listeners: &[TcpListener]) -> bool {
        drop(self.0.take());
        let closing = async { accept(listeners).await.is_ok() };
        let closed = tokio::time::timeout(ACCEPT_PAUSE, closing).await;
        *self = Self::new();
        closed.unwrap_or(false)
    }
}
