//! The envelope of a transaction and the trace of how it came in.

use crate::{DsnRequest, ForwardPath, RecipientDsn, ReversePath, Timestamp};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// The name of a route, e.g. `office`. Cheap to clone: every recipient carries one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteName(Arc<str>);

impl RouteName {
    /// The route with this name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The BODY parameter of MAIL (RFC 6152).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyType {
    /// `BODY=7BIT`, or no parameter.
    #[default]
    SevenBit,
    /// `BODY=8BITMIME`.
    EightBitMime,
}

/// The `with` clause of a Received header (RFC 3848).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The client said HELO.
    Smtp,
    /// The client said EHLO.
    Esmtp,
    /// EHLO, inside TLS.
    Esmtps,
    /// EHLO, with the SMTPUTF8 parameter (RFC 6531 section 4.3).
    Utf8Smtp,
    /// The same inside TLS.
    Utf8Smtps,
}

impl Protocol {
    /// The word that RFC 3848 registers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Smtp => "SMTP",
            Self::Esmtp => "ESMTP",
            Self::Esmtps => "ESMTPS",
            Self::Utf8Smtp => "UTF8SMTP",
            Self::Utf8Smtps => "UTF8SMTPS",
        }
    }
}

/// One recipient and the route its mail takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// Where the mail goes.
    pub forward_path: ForwardPath,
    /// Which primary takes it.
    pub route: RouteName,
    /// What the sender wants to hear of it.
    pub dsn: RecipientDsn,
}

impl Recipient {
    /// One of whom the sender asked nothing.
    pub fn new(forward_path: ForwardPath, route: RouteName) -> Self {
        Self { forward_path, route, dsn: RecipientDsn::default() }
    }
}

/// What RFC 5321 section 2.3.1 calls the envelope, with each recipient's route decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Where failures are reported to.
    pub reverse_path: ReversePath,
    /// In the order in which they were given; never empty in a transaction.
    pub recipients: Vec<Recipient>,
    /// What the sender said of the content.
    pub body: BodyType,
    /// The sender gave the SMTPUTF8 parameter (RFC 6531): paths, and the content's header, may be UTF-8.
    pub smtputf8: bool,
    /// What the sender wants to hear of it.
    pub dsn: DsnRequest,
}

impl Envelope {
    /// One of which nothing special is asked.
    pub fn new(reverse_path: ReversePath, recipients: Vec<Recipient>, body: BodyType) -> Self {
        Self { reverse_path, recipients, body, smtputf8: false, dsn: DsnRequest::default() }
    }
}

/// Who handed a transaction over, and when: the facts of our Received header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The client's address and port.
    pub client: SocketAddr,
    /// What it called itself in HELO or EHLO; checked to be printable ASCII without parentheses and white space.
    pub helo: String,
    /// How it talked to us.
    pub protocol: Protocol,
    /// Version and cipher suite of TLS, e.g. `TLSv1.3 TLS_AES_256_GCM_SHA384`; none in clear.
    pub tls: Option<String>,
    /// The session, for the log: the same number from connect to disconnect.
    pub session: u64,
    /// When the end of data was seen.
    pub received_at: Timestamp,
}
