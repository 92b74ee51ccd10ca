//! The SMTP client that hands a transaction to a next hop (RFC 5321 client side, RFC 2920, 3030, 1870, 6152, 3207).
//!
//! [`connect`] gives a [`Connection`]; [`Connection::deliver`] carries one message over it and says, for every
//! recipient, which reply decided or where the connection was lost. A small message is one round trip: in one flight with
//! BDAT where CHUNKING is offered, else with the next one's commands sent ahead, where PIPELINING is. This crate decides
//! nothing: it knows no queue, no retry, no journal, and trusts no certificate: encryption is opportunistic (RFC 7435). All it
//! knows of lettre is in `wire.rs`, of rustls in `tls.rs` and `stream.rs`, of hickory in `dns.rs`.
#![warn(missing_docs)]

mod connect;
mod connection;
mod content;
mod dns;
mod failure;
mod mx;
mod ourselves;
mod reply_reader;
mod settings;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

pub use connect::{ConnectError, connect, leads_only_to_us};
pub use connection::{Ahead, Connection, Delivery, Mail, RecipientResult};
pub use content::{Content, InMemory};
pub use dns::Dns;
pub use failure::Stage;
pub use mx::NoHop;
pub use ourselves::Ourselves;
pub use settings::{Settings, Target, TlsPolicy};
pub use tls::Agreed;
