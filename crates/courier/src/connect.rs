//! From a name to a connection that has said EHLO, encrypted where that works. Tries each host and address in turn, in clear
//! once more where encryption broke it; never tries again otherwise, and never connects to ourselves.

use crate::connection::Mail;
use crate::failure::{Failure, Stage, describe};
use crate::mx::{NextHost, NoHop};
use crate::reply_reader::VerbatimReply;
use crate::stream::Stream;
use crate::wire::Wire;
use crate::{Agreed, Connection, Settings, Target, TlsPolicy, tls};
use restante_envelope::{BodyType, Reply, ReplyClass};
use restante_ledger::NextHop;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// RFC 5321 section 5.1 wants at least two tried; more than this only adds connect timeouts when all are down.
const ADDRESSES_MAX: usize = 8;
/// SMTP's, where MX records tell the host.
const SMTP_PORT: u16 = 25;
/// Of several addresses of mail hosts, each is given so long for the TCP handshake: three SYNs. With more, a probe's twenty
/// seconds would be over before the second host of a domain whose first one is silent.
const ONE_OF_SEVERAL_TIMEOUT: Duration = Duration::from_secs(4);

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
    /// MX records lead nowhere.
    #[error(transparent)]
    NoHop(#[from] NoHop),
    /// Mail sent there would come back.
    #[error("{host} is ourselves: it leads to {addr}, where we listen")]
    Loop {
        /// As configured.
        host: String,
        /// Its address.
        addr: SocketAddr,
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
            // There is no content yet that could be unreadable.
            Failure::Protocol(why) | Failure::Unreadable(why) => Self::Protocol { why, stage },
        }
    }

    /// How far we got: the most telling of several errors is the furthest.
    fn progress(&self) -> u8 {
        match self {
            Self::Resolve { .. } | Self::NoHop(_) | Self::Loop { .. } => 0,
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
    /// RFC 6531.
    pub(crate) smtputf8: bool,
    /// RFC 3461.
    pub(crate) dsn: bool,
    /// RFC 3030.
    pub(crate) chunking: bool,
    /// RFC 3207.
    starttls: bool,
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
                "SMTPUTF8" => offered.smtputf8 = true,
                "DSN" => offered.dsn = true,
                "CHUNKING" => offered.chunking = true,
                "STARTTLS" => offered.starttls = true,
                _ => {}
            }
            offered
        })
    }

    /// What a mail needs, and this server has not.
    pub(crate) fn lacking(self, mail: &Mail<'_>) -> Option<&'static str> {
        if mail.smtputf8 && !self.smtputf8 {
            Some("5.6.7 the message was sent with SMTPUTF8, and the primary does not offer it")
        } else if mail.body == BodyType::EightBitMime && !self.eight_bit_mime {
            Some("5.6.3 the message is 8-bit, and the primary does not offer 8BITMIME")
        } else {
            None
        }
    }
}

/// A server that was greeted.
struct Greeted {
    wire: Wire,
    extensions: Extensions,
    /// What encrypts the connection.
    tls: Option<String>,
    /// Why nothing does, though it was offered.
    tls_failure: Option<String>,
}

/// Connects to `target`, says EHLO, or HELO to a server that does not know EHLO, and encrypts as [`Settings::tls`] says.
pub async fn connect(target: &Target, settings: &Settings) -> Result<Connection, ConnectError> {
    let started = Instant::now();
    let addresses = resolve(target, settings).await?;
    let several =
        Settings { connect_timeout: settings.connect_timeout.min(ONE_OF_SEVERAL_TIMEOUT), ..settings.clone() };
    let is_one_of_several = matches!(target, Target::MxOf(_)) && addresses.len() > 1;
    let mut furthest: Option<ConnectError> = None;
    for (host, addr) in addresses {
        match open(addr, &host, if is_one_of_several { &several } else { settings }).await {
            Ok(Greeted { wire, extensions, tls, tls_failure }) => {
                let next_hop = NextHop { host, ip: addr.ip(), port: addr.port(), tls };
                let connect_ms = milliseconds(started.elapsed());
                let settings = settings.clone();
                return Ok(Connection::new(wire, extensions, next_hop, tls_failure, connect_ms, settings));
            }
            Err(error) if furthest.as_ref().is_none_or(|before| error.progress() > before.progress()) => {
                furthest = Some(error);
            }
            Err(_) => {}
        }
    }
    let nowhere = || ConnectError::Resolve { host: target.to_string(), reason: "it has no address".into() };
    Err(furthest.unwrap_or_else(nowhere))
}

/// Whether mail to `target` would only come back: a name for ourselves, or MX records in which nobody is preferred over us.
/// In words, if so. Where the DNS does not tell, nobody knows.
///
/// # Errors
/// Whatever else keeps mail from going there, as far as names tell.
pub async fn leads_only_to_us(target: &Target, settings: &Settings) -> Result<Option<String>, ConnectError> {
    match resolve(target, settings).await {
        Ok(_) => Ok(None),
        Err(why @ (ConnectError::Loop { .. } | ConnectError::NoHop(NoHop::OnlyUs { .. }))) => Ok(Some(why.to_string())),
        Err(why) => Err(why),
    }
}

/// Where to connect to, in order, each with the name of its host. Never empty, and never ourselves.
async fn resolve(target: &Target, settings: &Settings) -> Result<Vec<(String, SocketAddr)>, ConnectError> {
    match target {
        Target::Host { host, port } => named(host, *port, settings).await,
        Target::MxOf(domains) => {
            let Settings { dns, hostname, ourselves, .. } = settings;
            let hosts = dns.next_hosts(domains, hostname, ourselves).await?;
            let all = hosts.into_iter().flat_map(|NextHost { host, addresses }| {
                addresses.into_iter().map(move |address| (host.clone(), SocketAddr::new(address, SMTP_PORT)))
            });
            Ok(all.take(ADDRESSES_MAX).collect())
        }
    }
}

/// By the system's resolver: `/etc/hosts` counts.
async fn named(host: &str, port: u16, settings: &Settings) -> Result<Vec<(String, SocketAddr)>, ConnectError> {
    let unresolved = |reason| ConnectError::Resolve { host: host.to_owned(), reason };
    let addresses: Vec<SocketAddr> = match timeout(settings.resolve_timeout, lookup_host((host, port))).await {
        Ok(Ok(addresses)) => addresses.take(ADDRESSES_MAX).collect(),
        Ok(Err(error)) => return Err(unresolved(describe(&error))),
        Err(_) => return Err(ConnectError::Timeout { stage: Stage::Resolve }),
    };
    let first = addresses.first().copied().ok_or_else(|| unresolved("it has no address".into()))?;
    let others = addresses.into_iter().filter(|addr| !settings.ourselves.listens_on(*addr));
    let others: Vec<_> = others.map(|addr| (host.to_owned(), addr)).collect();
    if others.is_empty() { Err(ConnectError::Loop { host: host.to_owned(), addr: first }) } else { Ok(others) }
}

/// Connects and greets; encrypted if the server offers that and it works.
async fn open(addr: SocketAddr, host: &str, settings: &Settings) -> Result<Greeted, ConnectError> {
    let in_clear = greet(addr, settings).await?;
    if settings.tls == TlsPolicy::Off || !in_clear.extensions.starttls {
        return Ok(in_clear);
    }
    match encrypt(in_clear, addr, host, settings).await {
        Ok(greeted) => Ok(greeted),
        Err(Unencrypted::Wrong(error)) => Err(error),
        Err(Unencrypted::Broke(why)) => Ok(Greeted { tls_failure: Some(why), ..greet(addr, settings).await? }),
    }
}

async fn greet(addr: SocketAddr, settings: &Settings) -> Result<Greeted, ConnectError> {
    let unreachable = |reason| ConnectError::Connect { addr, reason };
    let stream = match timeout(settings.connect_timeout, TcpStream::connect(addr)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unreachable(describe(&error))),
        Err(_) => return Err(unreachable("timed out".into())),
    };
    // Every write of ours is one whole turn of the dialogue: waiting to fill a segment only delays it.
    stream.set_nodelay(true).map_err(|error| unreachable(describe(&error)))?;

    let wire = Wire::new(Stream::Clear(stream)).await;
    let mut wire = wire.map_err(|f| ConnectError::failed(Stage::Greeting, f))?;
    let greeting = wire.reply(settings.greeting_timeout).await;
    let greeting = greeting.map_err(|f| ConnectError::failed(Stage::Greeting, f))?;
    if greeting.code != 220 {
        return Err(ConnectError::Greeting(greeting.to_reply()));
    }
    let extensions = say_hello(&mut wire, settings).await?;
    Ok(Greeted { wire, extensions, tls: None, tls_failure: None })
}

/// Why a connection that was to be encrypted cannot be used.
enum Unencrypted {
    /// It ended. Another one, in clear, may do.
    Broke(String),
    /// The server, or somebody between, does what it must not: no mail goes there.
    Wrong(ConnectError),
}

impl From<Failure> for Unencrypted {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Protocol(_) => Self::Wrong(ConnectError::failed(Stage::StartTls, failure)),
            _ => Self::Broke(format!("{failure} while {}", Stage::StartTls)),
        }
    }
}

/// STARTTLS (RFC 3207). A server that refuses it is left in clear.
async fn encrypt(greeted: Greeted, addr: SocketAddr, host: &str, settings: &Settings) -> Result<Greeted, Unencrypted> {
    let Greeted { mut wire, .. } = greeted;
    let refuse_unasked = |wire: &Wire| wire.unasked().map_or(Ok(()), |failure| Err(Unencrypted::from(failure)));
    refuse_unasked(&wire)?;
    let reply = wire.command("STARTTLS\r\n", settings.tls_timeout).await?.to_reply();
    match (reply.code(), reply.class()) {
        (220, _) => {}
        // The server hangs up now.
        (421, _) => return Err(Unencrypted::Broke(format!("the server refused STARTTLS: {reply}"))),
        (_, ReplyClass::Transient | ReplyClass::Permanent) => {
            let tls_failure = Some(format!("the server refused STARTTLS: {reply}"));
            return Ok(Greeted { wire, tls_failure, ..greeted });
        }
        _ => return Err(Failure::Protocol(format!("the server said {reply}")).into()),
    }
    // What stands behind the reply in clear was put there by whoever wants it read as if it came encrypted.
    refuse_unasked(&wire)?;
    let not_clear = || Failure::Protocol("the connection is encrypted already".into());
    let tcp = wire.into_tcp().ok_or_else(not_clear)?;

    let handshake = timeout(settings.tls_timeout, tls::handshake(tcp, host, addr.ip())).await;
    let failed = |why: Failure| Unencrypted::Broke(format!("the TLS handshake failed: {why}"));
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failed(error.into())),
        Err(_) => return Err(failed(Failure::TimedOut(settings.tls_timeout))),
    };
    let tls = Some(Agreed::of(stream.get_ref().1).to_string());
    // A new wire: nothing that was said in clear is known to it (RFC 3207 section 4.2).
    let mut wire = Wire::new(Stream::Encrypted(Box::new(stream))).await?;
    match say_hello(&mut wire, settings).await {
        Ok(extensions) => Ok(Greeted { wire, extensions, tls, tls_failure: None }),
        // A server that does not like our handshake says so behind it (RFC 8446 section 4.4).
        Err(error @ (ConnectError::Closed { .. } | ConnectError::Timeout { .. })) => {
            Err(Unencrypted::Broke(format!("{error}, encrypted")))
        }
        Err(error) => Err(Unencrypted::Wrong(error)),
    }
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
