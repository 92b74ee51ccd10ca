//! The SMTP client that hands a transaction to a next hop (RFC 5321 client side, RFC 2920, 1870, 6152).
//!
//! [`connect`] gives a [`Connection`]; [`Connection::deliver`] carries one message over it and says, for every
//! recipient, which reply decided or where the connection was lost. This crate decides nothing: it knows no queue, no
//! retry, no journal, follows no MX and speaks no TLS. All it knows of lettre is in `wire.rs`.
#![warn(missing_docs)]

mod connect;
mod connection;
mod failure;
mod reply_reader;
mod settings;
#[cfg(test)]
mod tests;
mod wire;

pub use connect::{ConnectError, connect};
pub use connection::{Connection, Delivery, Mail, RecipientResult};
pub use failure::Stage;
pub use settings::{Settings, Target};
