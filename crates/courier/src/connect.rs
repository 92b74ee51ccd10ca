//! From a name to a connection that has said EHLO. Tries each address in turn; follows no MX and never tries again.

use crate::failure::{Failure, Stage, describe};
use crate::reply_reader::VerbatimReply;
use crate::wire::Wire;
use crate::{Connection, Settings, Target};
use restante_envelope::{Reply, ReplyClass};
use restante_ledger::NextHop;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// RFC 5321 section 5.1 wants at least two tried; more than this only adds connect timeouts when all are down.
const ADDRESSES_MAX: usize = 8;

/// Why there is no connection. With several addresses: of the one where we got furthest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address, or nobody could tell.
    #[error("look up {host}: {reason}")]
    Resolve {
        /// As configured.
        host: String,
        /// The resolver's words.
        reason: String,
    },
    /// The TCP handshake failed.
    #[error("connect to {addr}: {reason}")]
    Connect {
        /// Where to.
        addr: SocketAddr,
        /// In the operating system's words, e.g. `connection refused`.
        reason: String,
    },
    /// The server is silent.
    #[error("timed out while {stage}")]
    Timeout {
        /// What for.
        stage: Stage,
    },
    /// The server does not want us: anything but 220.
    #[error("the server's greeting was {0}")]
    Greeting(Reply),
    /// The server refused EHLO, and where that was for good, HELO as well.
    #[error("the server refused EHLO: {0}")]
    Ehlo(Reply),
    /// The server hung up.
    #[error("connection closed by the server while {stage}")]
    Closed {
        /// When.
        stage: Stage,
    },
    /// The server does not speak SMTP.
    #[error("{why} while {stage}")]
    Protocol {
        /// What it did.
        why: String,
        /// When.
        stage: Stage,
    },
}

impl ConnectError {
    fn failed(stage: Stage, failure: Failure) -> Self {
        match failure {
            Failure::Closed(_) => Self::Closed { stage },
            Failure::TimedOut(_) => Self::Timeout { stage },
            Failure::Protocol(why) => Self::Protocol { why, stage },
        }
    }

    /// How far we got: the most telling of several errors is the furthest.
    fn progress(&self) -> u8 {
        match self {
            Self::Resolve { .. } => 0,
            Self::Connect { .. } => 1,
            Self::Timeout { .. } | Self::Closed { .. } | Self::Protocol { .. } => 2,
            Self::Greeting(_) => 3,
            Self::Ehlo(_) => 4,
        }
    }
}

/// What the server offers, from its reply to EHLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Extensions {
    /// RFC 2920.
    pub(crate) pipelining: bool,
    /// RFC 1870. The limit it may name is not looked at: the server's own 552 says it better.
    pub(crate) size: bool,
    /// RFC 6152.
    pub(crate) eight_bit_mime: bool,
}

impl Extensions {
    fn from_ehlo(reply: &VerbatimReply) -> Self {
        // The first line is the server's name and greeting.
        let keywords = reply.lines.iter().skip(1).filter_map(|line| line.split_ascii_whitespace().next());
        keywords.fold(Self::default(), |mut offered, keyword| {
            match keyword.to_ascii_uppercase().as_str() {
                "PIPELINING" => offered.pipelining = true,
                "SIZE" => offered.size = true,
                "8BITMIME" => offered.eight_bit_mime = true,
                _ => {}
            }
            offered
        })
    }
}

/// Connects to `target` and says EHLO, or HELO to a server that does not know EHLO.
pub async fn connect(target: &Target, settings: &Settings) -> Result<Connection, ConnectError> {
    let started = Instant::now();
    let unresolved = |reason| ConnectError::Resolve { host: target.host.clone(), reason };
    let lookup = timeout(settings.resolve_timeout, lookup_host((target.host.as_str(), target.port)));
    let addresses = match lookup.await {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(error)) => return Err(unresolved(describe(&error))),
        Err(_) => return Err(ConnectError::Timeout { stage: Stage::Resolve }),
    };
    let mut furthest = unresolved("it has no address".into());
    for addr in addresses.take(ADDRESSES_MAX) {
        match open(addr, settings).await {
            Ok((wire, extensions)) => {
                let next_hop = NextHop { host: target.host.clone(), ip: addr.ip(), port: addr.port(), tls: None };
                let connect_ms = milliseconds(started.elapsed());
                return Ok(Connection::new(wire, extensions, next_hop, connect_ms, settings.clone()));
            }
            Err(error) if error.progress() > furthest.progress() => furthest = error,
            Err(_) => {}
        }
    }
    Err(furthest)
}

async fn open(addr: SocketAddr, settings: &Settings) -> Result<(Wire, Extensions), ConnectError> {
    let unreachable = |reason| ConnectError::Connect { addr, reason };
    let stream = match timeout(settings.connect_timeout, TcpStream::connect(addr)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unreachable(describe(&error))),
        Err(_) => return Err(unreachable("timed out".into())),
    };
    // Every write of ours is one whole turn of the dialogue: waiting to fill a segment only delays it.
    stream.set_nodelay(true).map_err(|error| unreachable(describe(&error)))?;

    let mut wire = Wire::new(stream).await.map_err(|f| ConnectError::failed(Stage::Greeting, f))?;
    let greeting = wire.reply(settings.greeting_timeout).await;
    let greeting = greeting.map_err(|f| ConnectError::failed(Stage::Greeting, f))?;
    if greeting.code != 220 {
        return Err(ConnectError::Greeting(greeting.to_reply()));
    }
    let extensions = say_hello(&mut wire, settings).await?;
    Ok((wire, extensions))
}

/// RFC 5321 section 3.2: EHLO first; HELO where that is refused.
async fn say_hello(wire: &mut Wire, settings: &Settings) -> Result<Extensions, ConnectError> {
    for verb in ["EHLO", "HELO"] {
        // Nothing may stand behind the reply before: it would be taken for the next one.
        if let Some(failure) = wire.unasked() {
            return Err(ConnectError::failed(Stage::Ehlo, failure));
        }
        let reply = wire.command(&format!("{verb} {}\r\n", settings.hostname), settings.ehlo_timeout).await;
        let verbatim = reply.map_err(|f| ConnectError::failed(Stage::Ehlo, f))?;
        let reply = verbatim.to_reply();
        match reply.class() {
            ReplyClass::Positive if verb == "EHLO" => return Ok(Extensions::from_ehlo(&verbatim)),
            ReplyClass::Positive => return Ok(Extensions::default()),
            ReplyClass::Permanent if verb == "EHLO" => {}
            _ => return Err(ConnectError::Ehlo(reply)),
        }
    }
    Ok(Extensions::default())
}

/// Milliseconds as the ledger keeps them; 49 days is as good as for ever.
pub(crate) fn milliseconds(elapsed: Duration) -> u32 {
    u32::try_from(elapsed.as_millis()).unwrap_or(u32::MAX)
}
