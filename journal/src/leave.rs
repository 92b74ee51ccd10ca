//! Removes what has left the journal: segments that the newest header counts no more, and the blobs that were theirs alone.
//! Decides nothing: whoever wrote that header did.
//!
//! Blobs first. A crash in between leaves the segment, which still names the others; the other way round nobody would know
//! whose they were.

use crate::blob::BlobName;
use crate::header::{file_name, parse_file_name};
use crate::replay::{Depth, Nobody, ReplayError, read_dead};
use crate::storage::Storage;
use crate::summary::remove_summary;
use std::collections::HashMap;
use std::io;

/// Blobs named by records that were written again, each with the last segment that does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CarriedBlobs(HashMap<BlobName, u64>);

impl CarriedBlobs {
    /// A record in `segment` names it again.
    pub fn note(&mut self, blob: BlobName, segment: u64) {
        let last = self.0.entry(blob).or_default();
        *last = segment.max(*last);
    }

    fn is_kept(&self, blob: BlobName, first: u64) -> bool {
        self.0.get(&blob).is_some_and(|segment| *segment >= first)
    }
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Segments.
    pub segments: u64,
    /// Blobs.
    pub blobs: u64,
}

/// Removes the segments before `first`, which must be what the newest header on stable storage says, and their blobs, but
/// for those that a record in `first` or behind it names again. The caller holds the lock. May be done again after an error.
pub fn remove_left<S: Storage>(storage: &S, first: u64, carried: &mut CarriedBlobs) -> Result<Removed, ReplayError> {
    let mut numbers: Vec<u64> = storage.list()?.iter().filter_map(|name| parse_file_name(name)).collect();
    numbers.retain(|number| *number < first);
    numbers.sort_unstable();
    let mut removed = Removed::default();
    for number in numbers {
        let blobs = read_dead(storage, number, Depth::Records, &mut Nobody)?;
        let mut gone = 0;
        for blob in blobs.into_iter().filter(|blob| !carried.is_kept(*blob, first)) {
            match storage.remove(&blob.file()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                Ok(()) => gone += 1,
                Err(_) => {}
            }
        }
        if gone > 0 {
            storage.sync_blobs()?;
        }
        remove_summary(storage, number)?;
        storage.remove(&file_name(number))?;
        removed.segments += 1;
        removed.blobs += gone;
    }
    if removed.segments > 0 {
        storage.sync_directory()?;
    }
    carried.0.retain(|_, segment| *segment >= first);
    Ok(removed)
}
