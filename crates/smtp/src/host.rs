//! What surrounds a session: its settings, what it asks, what it hands over, what it is told. Decides nothing.

use crate::reply::Say;
use restante_envelope::{DomainName, Envelope, ForwardPath, Reply, RouteName, Trace, TransactionId};
use std::net::SocketAddr;
use std::time::Duration;

/// Recipients taken in one transaction. RFC 5321 section 4.5.3.1.8 demands at least 100; common clients send 50 to
/// 1000 at a time and come back with the rest after a 452.
pub const RECIPIENTS_MAX: usize = 1_000;
/// Mail transactions of one session (RFC 9422 section 4.1). One that goes on for ever is asked to come again, so that a change of
/// limits or certificates reaches everybody some time; no queue that is being emptied is cut short by it.
const MESSAGES_MAX: u32 = 100_000;
/// Bytes of a message's header: what Exim takes, and ten times what Postfix does.
const HEADER_BYTES_MAX: u64 = 1 << 20;
/// RFC 5321 section 4.5.3.2.7: at least five minutes for the next command. It is not renewed by single bytes: a whole
/// command line must arrive within it.
const COMMAND_TIMEOUT_S: u64 = 300;
/// Twice and more what a sender waits for one block to go out (three minutes, RFC 5321 section 4.5.3.2.5), so we never
/// give up first, and as long as it waits for our 250 (section 4.5.3.2.6). Filters that let content trickle while they
/// scan it are the reason not to be stricter.
const DATA_TIMEOUT_S: u64 = 600;

/// What a session must know of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Our own name, as in the greeting and in our Received header. Printable ASCII; checked by the configuration.
    pub hostname: String,
    /// The largest content taken, in bytes after dot-unstuffing; announced as SIZE (RFC 1870).
    pub max_message_bytes: u64,
    /// The most recipients taken in one transaction.
    pub max_recipients: usize,
    /// The most mail transactions of one session; announced as MAILMAX (RFC 9422).
    pub max_messages: u32,
    /// The largest header section taken, in bytes.
    pub max_header_bytes: u64,
    /// What becomes of content with a CR without LF, or an LF without CR.
    pub bare_line_ends: BareLineEnds,
    /// STARTTLS is offered (RFC 3207): whoever drives the session can do the handshake.
    pub starttls: bool,
    /// How long a command may take to arrive.
    pub command_timeout: Duration,
    /// How long each 64 KiB of content, or the last piece of it, may take to arrive.
    pub data_timeout: Duration,
}

impl Settings {
    /// The defaults for a server of this name and limit; without STARTTLS.
    pub fn new(hostname: String, max_message_bytes: u64) -> Self {
        Self {
            hostname,
            max_message_bytes,
            max_recipients: RECIPIENTS_MAX,
            max_messages: MESSAGES_MAX,
            max_header_bytes: HEADER_BYTES_MAX,
            bare_line_ends: BareLineEnds::default(),
            starttls: false,
            command_timeout: Duration::from_secs(COMMAND_TIMEOUT_S),
            data_timeout: Duration::from_secs(DATA_TIMEOUT_S),
        }
    }
}

/// Content whose lines end otherwise than in CRLF (RFC 5321 section 2.3.8) can be read in more than one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BareLineEnds {
    /// It is mended, see the crate's `content.rs`: what is stored and goes on has CRLF alone.
    #[default]
    Normalize,
    /// It is refused: 554 5.6.0.
    Reject,
}

impl BareLineEnds {
    /// As the configuration has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normalize => "normalize",
            Self::Reject => "reject",
        }
    }
}

/// What the session asks of, and hands to, its surroundings. Called synchronously from within `receive` and the like.
///
/// A `begin` that returned `Ok` is followed by chunks and then by exactly one `end` or one `abort`.
pub trait Host {
    /// MAIL was given, and is well-formed. An `Err` is said instead of its 250: who learns early that there is no room sends
    /// nothing in vain. `declared_bytes` as in `begin`; it is for the recipients that follow, too.
    fn mail(&mut self, _declared_bytes: u64) -> Result<(), Trouble> {
        Ok(())
    }
    /// Is this recipient ours? A pure decision. Address literals and the bare `postmaster` are asked about as well.
    fn admit(&mut self, path: &ForwardPath) -> Admission;
    /// Whoever is behind this domain says that it takes mail again (RFC 1985).
    fn etrn(&mut self, _domain: &DomainName) -> Etrn {
        Etrn::Refused
    }
    /// A proxy says who its client is (XCLIENT): what follows, refusals included, is this one's. The session starts over.
    fn xclient(&mut self, _client: SocketAddr) {}
    /// DATA was given, the 354 is not out yet; or the first BDAT. An `Err` is said instead of an answer, and no `abort` follows.
    ///
    /// `declared_bytes` is what the client said of the content's size (RFC 1870), 0 if it said nothing: within the
    /// limit, but otherwise no more than a hint.
    fn begin(&mut self, envelope: &Envelope, trace: &Trace, declared_bytes: u64) -> Result<(), Trouble>;
    /// The next piece of the content, dots unstuffed, in order, as large as the input allows. After an `Err` follows
    /// `abort`; the rest is read and dropped, and the trouble is said at its end.
    fn chunk(&mut self, content: &[u8]) -> Result<(), Trouble>;
    /// The content is complete and acceptable: it is empty or ends with CRLF, and has no other CR or LF but in CRLF. The
    /// session now awaits `resolve`.
    fn end(&mut self, end: EndOfData);
    /// Nothing will come of what began: the content is refused, or the connection ends. Called as soon as that is
    /// known, which may be long before the peer hears of it.
    fn abort(&mut self);
    /// Something was refused: for the log.
    fn refused(&mut self, refusal: &RefusedCommand);
}

/// The answer to "is this recipient ours?"
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Yes, and its mail takes this route.
    Accept(RouteName),
    /// Its domain is no route's: 550 5.7.1.
    NotOurs,
    /// Its domain is ours, but no such mailbox is known: 550 5.1.1.
    UnknownRecipient,
    /// Its local part asks the primary to relay elsewhere: 550 5.7.1.
    SenderSpecifiedRoute,
    /// Yes, but too much mail waits for its route already, or would with this message: 452 4.3.1.
    Full,
}

/// The answer to ETRN (RFC 1985 section 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Etrn {
    /// Its mail is on its way: 250.
    Started,
    /// There is none: 251.
    Nothing,
    /// No route takes its mail: 459.
    NotOurs,
    /// Not now: 458.
    Refused,
}

/// What is known of a content at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndOfData {
    /// How many Received headers it has.
    pub hops: u16,
    /// How many of them say `by <our hostname>`.
    pub own_hops: u16,
    /// The trace given to `begin`, with the instant of the end of data.
    pub trace: Trace,
}

/// Why we cannot take mail just now; our fault, so the sender shall come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// No space on the disk: 452 4.3.1.
    Storage,
    /// A failure on our side: 451 4.3.0.
    Local,
    /// More mail in flight than our memory or journal takes: 452 4.3.1, for that, too, is space.
    Overloaded,
    /// The client's network sends more than is taken from one: 450 4.7.1.
    TooFast,
    /// We are about to stop: 421 4.3.2, and the connection closes.
    ShuttingDown,
}

/// What became of a complete content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// It is on stable storage under this identifier.
    Stored(TransactionId),
    /// It is not, and the sender keeps it.
    Failed(Trouble),
}

/// Why a connection is turned away by its greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedConnection {
    /// 421 4.3.2
    ShuttingDown,
    /// All places are taken: 421 4.3.2
    Crowded,
    /// The client has as many as one address may: 421 4.7.0
    TooManyConnections,
    /// So has its network: 421 4.7.0
    TooManyOfNetwork,
    /// Its network connects more often than one may: 421 4.7.0
    TooOften,
}

impl RefusedConnection {
    /// All there are.
    pub const ALL: [Self; 5] =
        [Self::ShuttingDown, Self::Crowded, Self::TooManyConnections, Self::TooManyOfNetwork, Self::TooOften];

    /// What it is for, in a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ShuttingDown => "shutdown",
            Self::Crowded => "total",
            Self::TooManyConnections => "client",
            Self::TooManyOfNetwork => "network",
            Self::TooOften => "rate",
        }
    }

    /// What the client is told.
    pub fn reply(self, settings: &Settings) -> Reply {
        Say::TurnAway(self).reply(settings)
    }
}

/// Where in the dialogue something was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The connection itself. The session never reports it: it is for whoever calls `Session::refuse`.
    Connect,
    /// The MAIL command.
    Mail,
    /// The RCPT command.
    Rcpt,
    /// The DATA command.
    Data,
    /// The content, at its end.
    Content,
    /// Any other command, or what is none.
    Command,
}

impl Stage {
    /// The word for the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Mail => "mail",
            Self::Rcpt => "rcpt",
            Self::Data => "data",
            Self::Content => "content",
            Self::Command => "command",
        }
    }
}

/// A refusal, as the log tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedCommand {
    /// Where.
    pub stage: Stage,
    /// What the peer was told.
    pub reply: Reply,
    /// What the peer called itself, once it did.
    pub helo: Option<String>,
    /// The sender, if one was given; without ASCII control characters, but well-formed only if it is not the sender that was refused.
    pub reverse_path: Option<String>,
    /// The recipient, if it is one that was refused; without ASCII control characters, not always well-formed.
    pub forward_path: Option<String>,
}

/// What a session did, for its last line in the log. Counters stick at their maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// MAIL commands taken.
    pub mail: u32,
    /// Recipients taken.
    pub rcpt: u32,
    /// Messages answered with 250.
    pub accepted: u32,
    /// Commands and contents refused, for whatever reason.
    pub refused: u32,
    /// Bytes of content received, refused content included.
    pub bytes: u64,
}
