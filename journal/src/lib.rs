//! An append-only journal of mail transactions: what was accepted, attempted and settled, on stable storage.
//!
//! ```text
//!  Prepared ──stage──▶ batch ──commit: one write, one fdatasync──▶ Durable
//!  segments ──replay──▶ facts ──apply──▶ Ledger        (+ a Report of every byte that is not as written)
//!  Position ──Reader──▶ envelope and content, checked
//! ```
//!
//! The bytes are drawn in `FORMAT.md`. This crate draws no random number, reads no clock and starts no thread; its only
//! I/O goes through [`Storage`]. It never writes into a segment that it did not make itself, never repeats a sync that
//! failed, and reading never writes.
#![warn(missing_docs)]

mod codec;
mod frame;
mod header;
mod reader;
mod record;
mod recovery;
mod replay;
mod scan;
mod storage;
mod window;
mod writer;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

pub use frame::Kind;
pub use reader::{ReadError, Reader, Stored};
pub use record::Prepared;
pub use recovery::set_aside;
pub use replay::{Depth, Replay, ReplayError, Sink, replay, replay_from};
pub use scan::{Damage, DamageKind, Report, State};
pub use storage::{DirStorage, DirectoryLock, LockError, SegmentFile, Storage};
pub use writer::{CommitError, Durable, Options, Receipt, Seed, Writer};

/// Formats an error with the file it concerns.
pub(crate) fn at(name: &str) -> impl FnOnce(std::io::Error) -> std::io::Error {
    let name = name.to_owned();
    move |error| std::io::Error::new(error.kind(), format!("{name}: {error}"))
}
