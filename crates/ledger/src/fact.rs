//! The durable records, as values. How they look as bytes is `journal/FORMAT.md`'s business.

use crate::{Past, RecipientState, Watched};
use restante_envelope::{Envelope, Reply, Timestamp, Trace, TransactionId};
use std::fmt;
use std::net::IpAddr;

/// Where a record stands in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The segment's number, from 1.
    pub segment: u64,
    /// Bytes from the start of the segment's file to the record's frame.
    pub offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment, self.offset)
    }
}

/// A recipient, by its place in the envelope, from 0.
pub type RecipientIndex = u16;

/// Something that durably happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A message was accepted: we are responsible for it.
    Accepted(Accepted),
    /// It was offered to a next hop, with a result for each recipient tried.
    Attempted(Attempted),
    /// An operator did something to it.
    Operated(Operated),
    /// A daemon started on this journal, with these routes.
    Served(Served),
    /// A message was written again, so that the segment with its first record may leave.
    Carried(Carried),
    /// Recipients that had been sent were offered once more.
    Replayed(Replayed),
    /// A primary stands another way from now on.
    Watched(Watched),
}

impl Fact {
    /// The transaction it is about, if it is about one.
    pub fn transaction(&self) -> Option<TransactionId> {
        match self {
            Self::Accepted(accepted) => Some(accepted.id),
            Self::Attempted(attempted) => Some(attempted.id),
            Self::Operated(operated) => Some(operated.id),
            Self::Carried(carried) => Some(carried.accepted.id),
            Self::Replayed(replayed) => Some(replayed.id),
            Self::Served(_) | Self::Watched(_) => None,
        }
    }
}

/// A message was accepted. Its content follows in the same record, or is in a blob that the record names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The name of the transaction from now on.
    pub id: TransactionId,
    /// From whom, to whom.
    pub envelope: Envelope,
    /// Who handed it to us.
    pub trace: Trace,
    /// Bytes of content.
    pub content_len: u64,
    /// A safety rule froze it at the door, and why.
    pub hold: Option<String>,
}

impl Accepted {
    /// How its recipients stand from now on.
    pub fn state(&self) -> RecipientState {
        if self.hold.is_some() { RecipientState::Hold } else { RecipientState::Due }
    }
}

/// One try to hand a transaction to a next hop: attempt and settlements in one record, so that neither can be lost
/// without the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempted {
    /// The transaction.
    pub id: TransactionId,
    /// When the outcome was known.
    pub at: Timestamp,
    /// Whom we talked to; none when the outcome is our own finding.
    pub next_hop: Option<NextHop>,
    /// Where the time went.
    pub timings: Timings,
    /// What came of it, for each recipient tried.
    pub results: Vec<(RecipientIndex, Outcome)>,
}

/// The server on the other side of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextHop {
    /// As configured.
    pub host: String,
    /// The address that answered.
    pub ip: IpAddr,
    /// TCP port.
    pub port: u16,
    /// Version and cipher suite of TLS, e.g. `TLSv1.3 TLS_AES_256_GCM_SHA384`; none in clear.
    pub tls: Option<String>,
}

impl fmt::Display for NextHop {
    /// In Postfix's form: `mail.example.com[192.0.2.10]:25`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]:{}", self.host, self.ip, self.port)
    }
}

/// Where an attempt's time went, in milliseconds, as Postfix's `delays=a/b/c/d` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// From MAIL FROM at our door to the message being durable.
    pub before_queue_ms: u32,
    /// From then to the start of the attempt.
    pub in_queue_ms: u64,
    /// Connecting, greeting, EHLO; 0 on a connection used again.
    pub connect_ms: u32,
    /// From MAIL FROM to the last reply.
    pub transfer_ms: u32,
}

/// What came of an attempt, for one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The next hop took responsibility.
    Sent(Reply),
    /// Not now; the next try is at `next_at`.
    Deferred {
        /// Why.
        cause: Cause,
        /// When it is tried again.
        next_at: Timestamp,
    },
    /// Refused for good, which is not believed yet (a reply), or frozen by a safety rule until an operator decides.
    Held(Cause),
    /// Its bytes in the journal are damaged: nobody can deliver it.
    Quarantined(Cause),
}

/// Why an attempt did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The next hop said so, of the envelope: to MAIL, RCPT or DATA.
    Reply(Reply),
    /// The next hop said so, of the content: to the final dot, when it had taken the recipient.
    Content(Reply),
    /// The connection failed, before the final dot was sent.
    Connection(String),
    /// The connection failed after the final dot and before the reply: the next hop may have taken it (RFC 5321
    /// section 4.2.5, RFC 1047). The retry may be a duplicate.
    InDoubt(String),
    /// Our own finding.
    Local(String),
}

impl Cause {
    /// What the next hop said, if it is that.
    pub fn reply(&self) -> Option<&Reply> {
        match self {
            Self::Reply(reply) | Self::Content(reply) => Some(reply),
            Self::Connection(_) | Self::InDoubt(_) | Self::Local(_) => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reply(reply) | Self::Content(reply) => reply.fmt(f),
            Self::Connection(text) | Self::Local(text) => f.write_str(text),
            Self::InDoubt(text) => write!(f, "{text}; it may have arrived, so the retry may be a duplicate"),
        }
    }
}

/// Something an operator did, or the daemon by a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operated {
    /// The transaction.
    pub id: TransactionId,
    /// When.
    pub at: Timestamp,
    /// What.
    pub action: Action,
    /// To which recipients.
    pub recipients: Vec<RecipientIndex>,
    /// Who: the operating system's name for the user where we know it.
    pub actor: String,
    /// Why, in the operator's words.
    pub reason: String,
}

/// What an operator can do to a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Freeze it.
    Hold,
    /// Let it go on: due at once.
    Release,
    /// Give it up, as refused.
    Bounce,
    /// Believe the primary that refused it: bounced. Of what was refused.
    Settle,
    /// Give it up, as too old. Of what is not on hold.
    Expire,
    /// Give it up without a word to anybody.
    Remove,
    /// Take it up again: due at once. Of what was bounced, expired or removed.
    Undo,
}

/// A message written again, with its content, and how its recipients stood then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// As it was accepted.
    pub accepted: Accepted,
    /// One for each recipient, in the envelope's order.
    pub recipients: Vec<Standing>,
}

/// How a recipient of a carried message stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Attempts so far.
    pub attempts: u16,
    /// Its state.
    pub state: RecipientState,
    /// The last reply, or why it is on hold, in words; empty if nobody knew.
    pub why: String,
    /// Of one that was sent, what the records tell that leave the journal; the newer ones follow in it still.
    pub past: Past,
}

/// Recipients that had been sent, offered once more by an operator's order. How they stand is not changed by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// The transaction.
    pub id: TransactionId,
    /// When the replies were there.
    pub at: Timestamp,
    /// Where its message was read.
    pub position: Position,
    /// Which replay: the same order has the same number, so that it can be gone on with.
    pub job: u64,
    /// Who ordered it.
    pub actor: String,
    /// Why, in the operator's words.
    pub reason: String,
    /// Whom we talked to.
    pub next_hop: Option<NextHop>,
    /// The final reply to each recipient: taken once more, or refused for good.
    pub results: Vec<(RecipientIndex, Reply)>,
}

/// A daemon started. Lets `recover --deliver` find the primary when the configuration is gone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Served {
    /// When.
    pub at: Timestamp,
    /// The name it greeted with.
    pub hostname: String,
    /// Its routes.
    pub routes: Vec<RouteRecord>,
}

/// A route as it was configured when a daemon started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRecord {
    /// Its name.
    pub name: String,
    /// The domains it takes mail for: names, or `*.` and a name for all below it.
    pub domains: Vec<String>,
    /// Next hops in order of preference, each `host:port`; none: the MX of the domains were followed.
    pub primary: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use restante_envelope::{BodyType, Protocol, ReversePath};

    #[test]
    fn what_may_have_arrived_says_so_and_nothing_else_does() {
        let text = || "the connection broke".to_owned();
        let warned = |cause: &Cause| cause.to_string().contains("may be a duplicate");
        assert!(warned(&Cause::InDoubt(text())));
        for (cause, shown) in [
            (Cause::Connection(text()), text()),
            (Cause::Local(text()), text()),
            (Cause::Reply(Reply::new(451, None, "later")), "451 later".to_owned()),
        ] {
            assert!(!warned(&cause) && cause.to_string() == shown, "{cause}");
        }
    }

    #[test]
    fn no_kind_of_fact_is_missing_in_the_history_of_its_message() {
        let id = TransactionId::from_bits;
        let at = Timestamp::default();
        let accepted = |n| Accepted {
            id: id(n),
            envelope: Envelope::new(ReversePath::null(), Vec::new(), BodyType::SevenBit),
            trace: Trace {
                client: "192.0.2.1:4000".parse().unwrap(),
                helo: "c.test".into(),
                protocol: Protocol::Esmtp,
                tls: None,
                session: 1,
                received_at: at,
            },
            content_len: 0,
            hold: None,
        };
        let (timings, actor, reason) = (Timings::default(), String::new(), String::new());
        let (by, why, position) = (String::new(), String::new(), Position { segment: 1, offset: 4096 });
        let replayed =
            Replayed { id: id(5), at, position, job: 1, actor: by, reason: why, next_hop: None, results: Vec::new() };
        let facts = [
            Fact::Accepted(accepted(1)),
            Fact::Attempted(Attempted { id: id(2), at, next_hop: None, timings, results: Vec::new() }),
            Fact::Operated(Operated { id: id(3), at, action: Action::Undo, recipients: Vec::new(), actor, reason }),
            Fact::Carried(Carried { accepted: accepted(4), recipients: Vec::new() }),
            Fact::Replayed(replayed),
            Fact::Served(Served::default()),
        ];
        assert_eq!(
            facts.map(|fact| fact.transaction().map(TransactionId::to_bits)),
            [Some(1), Some(2), Some(3), Some(4), Some(5), None]
        );
    }

    #[test]
    fn a_server_and_a_place_are_written_as_those_who_parse_logs_know_them() {
        let (host, ip) = ("mail.example.test".to_owned(), "192.0.2.10".parse().unwrap());
        let hop = NextHop { host, ip, port: 25, tls: None };
        assert_eq!(hop.to_string(), "mail.example.test[192.0.2.10]:25");
        assert_eq!(Position { segment: 3, offset: 4096 }.to_string(), "3:4096");
    }
}
