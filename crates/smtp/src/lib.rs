//! The SMTP server's side of one connection (RFC 5321), without the connection.
//!
//! [`Session`] takes bytes and the time, and gives bytes and the next deadline. It opens no socket, reads no clock,
//! stores nothing and knows no domain: what it must ask or hand over goes through [`Host`].
//!
//! ```text
//!   bytes from the peer --> receive --> lines ---> command ---> session --> output --> bytes to the peer
//!                                    \-> content -> header scan /   |
//!                                                                   v
//!                          Host: admit, begin, chunk.., end | abort, refused
//!                          the answer to `end`: resolve(Stored | Failed)
//! ```
//!
//! After `end` nothing is said and nothing is read until [`Session::resolve`]: the 250 moves the responsibility for
//! the mail to us (RFC 5321 section 6.1), so whoever calls it with [`Resolution::Stored`] must have made it durable.
//!
//! After the 220 to STARTTLS (RFC 3207) nothing is read either until [`Session::tls_started`]: what was sent in clear
//! behind it is dropped. The handshake is the driver's; the session has no TLS in it.
//!
//! How to drive it: read bytes, call [`Session::receive`], keep what it did not consume, write [`Session::output`],
//! stop if [`Session::wants_close`], sleep no longer than [`Session::poll_timeout`].
#![warn(missing_docs)]

mod command;
mod content;
mod dialogue;
mod header;
mod host;
mod line;
mod receiving;
mod reply;
mod session;
mod xclient;

pub use host::{
    Admission, BareLineEnds, Counts, EndOfData, Etrn, Host, RECIPIENTS_MAX, RefusedCommand, RefusedConnection,
    Resolution, Settings, Stage, Trouble,
};
pub use session::Session;
