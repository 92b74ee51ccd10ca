//! Which servers may be sent the next message's commands before they answered the last one's final dot (RFC 2920). One
//! connection tries it; the others follow once it was answered. Remembers, and does nothing itself.

use restante_courier::{Ahead, Connection};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A server that broke a connection over it is not tried again for so long: each try may put a message in doubt. Whoever
/// repairs it sees the speed come back the same day.
const SHY: Duration = Duration::from_secs(3_600);

/// What is known of each server, by its address; there are as many as next hops have.
#[derive(Default)]
pub(crate) struct Manners(Mutex<HashMap<SocketAddr, Manner>>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// It answered.
    TakesAhead,
    /// Another connection is trying it, or it went wrong.
    NotBefore(Instant),
}

/// What one connection may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    No,
    /// It is the one to try it: what comes of it must be [told](Manners::learn).
    Try,
    Yes,
}

fn address(connection: &Connection) -> SocketAddr {
    SocketAddr::new(connection.next_hop().ip, connection.next_hop().port)
}

impl Manners {
    fn known(&self) -> MutexGuard<'_, HashMap<SocketAddr, Manner>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ask(&self, connection: &Connection) -> Leave {
        if connection.takes_ahead() { self.ask_of(address(connection), Instant::now()) } else { Leave::No }
    }

    fn ask_of(&self, server: SocketAddr, now: Instant) -> Leave {
        let mut known = self.known();
        match known.get(&server) {
            Some(Manner::TakesAhead) => return Leave::Yes,
            Some(Manner::NotBefore(at)) if *at > now => return Leave::No,
            _ => {}
        }
        known.insert(server, Manner::NotBefore(now + SHY));
        Leave::Try
    }

    /// The one that tried it ended before it was answered, for a reason of ours.
    pub(crate) fn give_up(&self, connection: &Connection) {
        self.known().remove(&address(connection));
    }

    /// What came of it on a connection, and what it may do from now on.
    pub(crate) fn learn(&self, connection: &Connection, leave: Leave) -> Leave {
        match (connection.ahead(), leave) {
            (_, Leave::No) | (Ahead::Answered, Leave::Yes) => return leave,
            (Ahead::Answered, Leave::Try) => {
                self.known().insert(address(connection), Manner::TakesAhead);
                return Leave::Yes;
            }
            (Ahead::Trouble(why), _) => {
                let host = &connection.next_hop().host;
                tracing::info!("{host} took no commands ahead of its replies, and is not sent any for an hour: {why}");
                self.known().insert(address(connection), Manner::NotBefore(Instant::now() + SHY));
            }
            (Ahead::Untried, Leave::Try) if !connection.is_promised() => {
                // It did not come to a try.
                self.known().remove(&address(connection));
            }
            (Ahead::Untried, _) => return leave,
        }
        Leave::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_connection_tries_it_and_trouble_is_remembered_for_an_hour() {
        let (manners, now) = (Manners::default(), Instant::now());
        let (one, other) = (SocketAddr::from(([192, 0, 2, 1], 25)), SocketAddr::from(([192, 0, 2, 2], 25)));
        assert_eq!(manners.ask_of(one, now), Leave::Try);
        assert_eq!(manners.ask_of(one, now), Leave::No);
        assert_eq!(manners.ask_of(other, now), Leave::Try);
        assert_eq!(manners.ask_of(one, now + SHY), Leave::Try);
        manners.known().insert(one, Manner::TakesAhead);
        assert_eq!(manners.ask_of(one, now), Leave::Yes);
    }
}
