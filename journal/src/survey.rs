//! The journal's files from outside: which segments there are, how large, since when, and whether they are written to no more.
//! Reads pages and ends, no records, and judges nothing.

use crate::frames::is_sealed;
use crate::header::parse_file_name;
use crate::replay::{ReplayError, open};
use crate::storage::{SegmentFile, Storage};
use restante_envelope::Timestamp;
use std::io;

/// A segment's file, as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentEntry {
    /// From 1.
    pub number: u64,
    /// The file's length; of the one that is written to, with what was filled ahead.
    pub bytes: u64,
    /// Nothing will be written to it any more, and its end says so.
    pub is_sealed: bool,
    /// When it was begun; none if its first page is damaged.
    pub created_at: Option<Timestamp>,
}

/// All segments, by number. One that leaves meanwhile is not among them.
pub fn segments<S: Storage>(storage: &S) -> Result<Vec<SegmentEntry>, ReplayError> {
    let mut numbers: Vec<u64> = storage.list()?.iter().filter_map(|name| parse_file_name(name)).collect();
    numbers.sort_unstable();
    let mut segments = Vec::with_capacity(numbers.len());
    for number in numbers {
        let opened = match open(storage, number) {
            Err(ReplayError::Io(error)) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        let bytes = opened.file.len()?;
        let is_sealed = is_sealed(&opened.file, opened.tag.unwrap_or_default(), bytes)?;
        let created_at = opened.header.map(|header| Timestamp::from_unix_ms(header.created_unix_ms));
        segments.push(SegmentEntry { number, bytes, is_sealed, created_at });
    }
    Ok(segments)
}
