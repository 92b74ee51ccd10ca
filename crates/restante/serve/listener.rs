//! Accepts connections and counts them: in all, and per client. Turns the surplus away with a 421.

use super::session::{self, Door};
use crate::clock;
use crate::config::Limits;
use restante_smtp::{RefusedConnection, Session};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};

/// Connections the kernel completes for us while we are busy: a burst of senders is not told to go away.
const BACKLOG: i32 = 4_096;
/// After an accept that failed for want of file descriptors: the next one would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A client that is turned away has this long to take its 421.
const TURN_AWAY_TIMEOUT: Duration = Duration::from_secs(5);
/// Clients being turned away at once; beyond that a connection is closed without a word.
const TURNED_AWAY_MAX: usize = 256;

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

/// Accepts on all listeners until told to stop, then waits for the sessions to end.
pub(crate) async fn run(listeners: Vec<TcpListener>, door: Arc<Door>, limits: watch::Receiver<Limits>) {
    let mut stop = pin!(session::stop(door.stopping.clone()));
    let mut guests = Guests {
        limits,
        per_client: HashMap::new(),
        sessions: JoinSet::new(),
        clients: HashMap::new(),
        turned_away: JoinSet::new(),
    };
    let mut number = clock::now().unix_ms();
    loop {
        tokio::select! {
            accepted = accept(&listeners) => match accepted {
                Ok((stream, client)) => {
                    // Replies are small and awaited: never held back to be joined with the next.
                    let _best_effort = stream.set_nodelay(true);
                    guests.admit(stream, canonical(client), number, &door);
                    number += 1;
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = guests.sessions.join_next_with_id() => guests.gone(ended, &door),
            Some(_) = guests.turned_away.join_next() => {}
            () = stop.as_mut() => break,
        }
    }
    drop(listeners);
    while let Some(ended) = guests.sessions.join_next_with_id().await {
        guests.gone(ended, &door);
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
fn canonical(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}

struct Guests {
    limits: watch::Receiver<Limits>,
    per_client: HashMap<IpAddr, u32>,
    sessions: JoinSet<()>,
    /// Whose session a task is: it is known even of one that panicked.
    clients: HashMap<Id, IpAddr>,
    turned_away: JoinSet<()>,
}

impl Guests {
    fn admit(&mut self, stream: TcpStream, client: SocketAddr, number: u64, door: &Arc<Door>) {
        let ip = client.ip();
        let all = u32::try_from(self.sessions.len()).unwrap_or(u32::MAX);
        let of_client = self.per_client.get(&ip).copied().unwrap_or(0);
        let surplus = {
            let limits = self.limits.borrow();
            let exempt = limits.exempt.iter().any(|network| network.contains(ip));
            all >= limits.max_connections || (!exempt && of_client >= limits.per_client_connections)
        };
        if surplus {
            door.metrics.connection_refused();
            if self.turned_away.len() < TURNED_AWAY_MAX {
                self.turned_away.spawn(turn_away(stream, client, door.clone()));
            }
            return;
        }
        *self.per_client.entry(ip).or_insert(0) += 1;
        door.metrics.connection_opened();
        let task = self.sessions.spawn(session::serve(stream, client, number, door.clone()));
        self.clients.insert(task.id(), ip);
    }

    fn gone(&mut self, ended: Result<(Id, ()), JoinError>, door: &Arc<Door>) {
        door.metrics.connection_closed();
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let Some(ip) = self.clients.remove(&id) else { return };
        if let Err(error) = ended {
            tracing::error!("a session of {ip} ended by a defect of ours, please report it: {error}");
        }
        if let Some(count) = self.per_client.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.per_client.remove(&ip);
            }
        }
    }
}

async fn turn_away(mut stream: TcpStream, client: SocketAddr, door: Arc<Door>) {
    let mut session = Session::refuse(door.settings.clone(), client, RefusedConnection::TooManyConnections);
    let greeting = std::mem::take(session.output());
    let _gone = tokio::time::timeout(TURN_AWAY_TIMEOUT, async {
        stream.write_all(&greeting).await?;
        stream.shutdown().await
    })
    .await;
}
