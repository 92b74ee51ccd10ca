//! The nouns of mail transport, as RFC 5321 names them: paths, envelopes, replies, identifiers, instants.
//!
//! Everything here is a checked value: a [`ForwardPath`] that exists is well formed, a [`Reply`] fits on the wire.
//! This crate does no I/O, reads no clock and draws no random number.
#![warn(missing_docs)]

mod dsn;
mod envelope;
mod id;
mod path;
mod reply;
pub mod text;
mod time;

pub use dsn::{DsnError, DsnRequest, EnvelopeId, Notify, OriginalRecipient, RecipientDsn, Ret};
pub use envelope::{BodyType, Envelope, Protocol, Recipient, RouteName, Trace};
pub use id::{IdGenerator, ParseIdError, TransactionId};
pub use path::{DomainName, ForwardPath, PathError, ReversePath};
pub use reply::{EnhancedStatus, Reply, ReplyClass};
pub use time::Timestamp;
