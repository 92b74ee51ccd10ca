//! An append-only journal of mail transactions: what was accepted, attempted and settled, on stable storage.
//!
//! ```text
//!  Prepared ──stage──▶ batch ──commit: one write, one fdatasync──▶ Durable
//!  segments ──replay──▶ facts ──apply──▶ Ledger        (+ a Report of every byte that is not as written)
//!  BlobWriter ──finish: fdatasync, rename, fsync──▶ Blob ──▶ Prepared      (a large body, in a file of its own)
//!  Position ──Reader──▶ envelope and content, checked piece by piece
//! ```
//!
//! The bytes are drawn in `FORMAT.md`. This crate draws no random number, reads no clock and starts no thread; its only
//! I/O goes through [`Storage`]. It never writes into a segment that it did not make itself, never repeats a sync that
//! failed, and reading never writes.
#![warn(missing_docs)]

mod backup;
mod blob;
mod carry;
mod codec;
mod content;
mod frame;
mod frames;
mod header;
mod leave;
mod reader;
mod record;
mod recovery;
mod replay;
mod replayed;
mod report;
mod requests;
mod scan;
mod scrub;
mod segment;
mod shelf;
mod storage;
mod structure;
mod summary;
mod survey;
mod watched;
mod window;
mod writer;

#[cfg(any(test, feature = "sim"))]
pub mod sim;
#[cfg(test)]
mod tests;

pub use backup::{BackupError, Copied, backup, have_a_common_past};
pub use blob::{Blob, BlobError, BlobName, BlobWriter, PIECE_BYTES, remove_blob};
pub use carry::Cargo;
pub use content::Content;
pub use frame::Kind;
pub use leave::{CarriedBlobs, Removed, remove_left};
pub use reader::{ReadError, Reader, Stored};
pub use record::Prepared;
pub use recovery::{set_aside, sync_last_segment};
pub use replay::{Depth, Replay, ReplayError, Sink, Start, replay, replay_before, replay_from, start};
pub use report::{Damage, DamageKind, Report, State};
pub use scrub::{Scrubbed, scrub};
pub use segment::is_full;
pub use shelf::{Orphan, remove_parts, set_orphans_aside};
pub use storage::{BlobEntry, DirStorage, DirectoryLock, LockError, SegmentFile, Storage};
pub use summary::{remove_summary, summarize, unsummarized};
pub use survey::{SegmentEntry, segments};
pub use writer::{CommitError, Durable, Options, Receipt, Seed, Writer};

/// An error, and the file it concerns.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {source}")]
struct At {
    name: String,
    source: std::io::Error,
}

pub(crate) fn at(name: &str) -> impl FnOnce(std::io::Error) -> std::io::Error {
    let name = name.to_owned();
    move |source| std::io::Error::new(source.kind(), At { name, source })
}

/// The system's number of an error, whether or not it names a file.
pub(crate) fn os_error(error: &std::io::Error) -> Option<i32> {
    let named = || error.get_ref()?.downcast_ref::<At>()?.source.raw_os_error();
    error.raw_os_error().or_else(named)
}
