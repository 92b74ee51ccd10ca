//! Where in the dialogue something failed, and how. Words for operators; no decision is taken from them.

use crate::reply_reader::Malformed;
use std::fmt;
use std::io;
use std::time::Duration;

/// What the client was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Looking up the name.
    Resolve,
    /// Waiting for the greeting.
    Greeting,
    /// Waiting for the reply to EHLO or HELO.
    Ehlo,
    /// Waiting for the reply to STARTTLS.
    StartTls,
    /// Waiting for the reply to MAIL.
    Mail,
    /// Waiting for the reply to RCPT.
    Rcpt,
    /// Waiting for the reply to DATA.
    Data,
    /// Sending the content.
    Content,
    /// Waiting for the reply to the final dot.
    FinalDot,
    /// Waiting for the reply to BDAT.
    Bdat,
    /// Waiting for the reply to RSET.
    Rset,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "looking up the name",
            Self::Greeting => "waiting for the greeting",
            Self::Ehlo => "waiting for the reply to EHLO",
            Self::StartTls => "waiting for the reply to STARTTLS",
            Self::Mail => "waiting for the reply to MAIL",
            Self::Rcpt => "waiting for the reply to RCPT",
            Self::Data => "waiting for the reply to DATA",
            Self::Content => "sending the content",
            Self::FinalDot => "waiting for the reply to the final dot",
            Self::Bdat => "waiting for the reply to BDAT",
            Self::Rset => "waiting for the reply to RSET",
        })
    }
}

/// How a connection ended before its time. After any of these it cannot be used again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Closed(String),
    #[error("timed out after {0:?}")]
    TimedOut(Duration),
    /// The server sent what SMTP does not allow there.
    #[error("{0}")]
    Protocol(String),
    /// Nobody's fault but ours.
    #[error("our own copy cannot be read: {0}")]
    Unreadable(String),
}

impl Failure {
    pub(crate) fn unasked() -> Self {
        Self::Protocol("the server sent something nobody asked for".into())
    }

    pub(crate) fn closed_by_server() -> Self {
        Self::Closed("connection closed by the server".into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // TLS: the end came without a farewell.
            io::ErrorKind::UnexpectedEof => Self::closed_by_server(),
            _ => Self::Closed(describe(&error)),
        }
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Self::Protocol(malformed.to_string())
    }
}

/// `connection refused` rather than `Connection refused (os error 111)`, where the kind has a name. What TLS finds wrong
/// says more than its kind.
pub(crate) fn describe(error: &io::Error) -> String {
    let kind = error.kind().to_string();
    if error.get_ref().is_some() || kind.starts_with("uncategorized") || kind.starts_with("other") {
        error.to_string()
    } else {
        kind
    }
}
