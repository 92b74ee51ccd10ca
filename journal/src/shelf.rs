//! What is in `blob/`, held against the records that name it: missing, wrong, or named by none (an orphan). Listing
//! happens once; reading removes nothing.

use crate::blob::{BlobName, BlobRef, PIECE_BYTES, crcs};
use crate::leave::CarriedBlobs;
use crate::replay::Replay;
use crate::report::State;
use crate::storage::{SegmentFile, Storage};
use crate::window::read_around;
use restante_envelope::Timestamp;
use std::collections::{HashMap, HashSet};
use std::io;

/// A file in `blob/` that belongs to no message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Its name in the journal's directory.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// When it was last written to. A young one may be on its way, if a daemon is at work.
    pub modified: Timestamp,
    /// Not a part: it was complete, and its record was never written.
    pub whole: bool,
}

/// How a blob that a record names was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Intact,
    Missing,
    /// So many bytes are not as written.
    Wrong(u64),
}

/// The directory `blob/`, listed once.
#[derive(Default)]
pub(crate) struct Shelf {
    blobs: HashMap<BlobName, Entry>,
    parts: Vec<Orphan>,
    /// Those that records name.
    pub(crate) names: HashSet<BlobName>,
    /// Those that records name which were written again.
    pub(crate) carried: CarriedBlobs,
    /// Records that name a blob, and the bytes they say it has.
    pub(crate) named: u64,
    pub(crate) named_bytes: u64,
    /// All that records name, and whether such a record was written again; for whoever asks for it.
    pub(crate) listed: Option<Vec<(BlobRef, bool)>>,
}

struct Entry {
    bytes: u64,
    modified: Timestamp,
}

impl Shelf {
    /// Files with other names than ours are nobody's business.
    pub(crate) fn list<S: Storage>(storage: &S) -> io::Result<Self> {
        let mut shelf = Self::default();
        for entry in storage.list_blobs()? {
            let (bytes, modified) = (entry.bytes, entry.modified);
            if let Some(name) = BlobName::parse(&entry.name) {
                shelf.blobs.insert(name, Entry { bytes, modified });
            } else if let Some(name) = entry.name.strip_suffix(".part").and_then(BlobName::parse) {
                shelf.parts.push(Orphan { file: name.part_file(), bytes, modified, whole: false });
            }
        }
        Ok(shelf)
    }

    /// An empty one, that lists what is named.
    pub(crate) fn that_lists() -> Self {
        Self { listed: Some(Vec::new()), ..Self::default() }
    }

    /// A record in `segment` names it: it is no orphan, whatever is wrong with either.
    pub(crate) fn name(&mut self, blob: BlobRef, is_carried: bool, segment: u64) {
        self.named += 1;
        self.named_bytes += blob.bytes;
        self.names.insert(blob.name);
        if is_carried {
            self.carried.note(blob.name, segment);
        }
        self.listed.iter_mut().for_each(|listed| listed.push((blob, is_carried)));
    }

    /// Whether it is there with its length.
    pub(crate) fn look<S: Storage>(&self, storage: &S, blob: BlobRef) -> io::Result<Found> {
        let bytes = match self.blobs.get(&blob.name) {
            Some(entry) => entry.bytes,
            // Not there when we listed; a daemon at work may have finished it since.
            None => match storage.open(&blob.name.file()) {
                Ok(file) => file.len()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
                Err(error) => return Err(error),
            },
        };
        Ok(if bytes == blob.bytes { Found::Intact } else { Found::Wrong(bytes.abs_diff(blob.bytes)) })
    }

    /// Checks every byte of it against its table.
    pub(crate) fn read<S: Storage>(storage: &S, blob: BlobRef, table: &[u8]) -> io::Result<Found> {
        let file = match storage.open(&blob.name.file()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
            Err(error) => return Err(error),
        };
        // Bytes too many are wrong too; those too few fail their piece.
        let (mut at, mut wrong) = (0, file.len()?.saturating_sub(blob.bytes));
        let mut piece = vec![0; PIECE_BYTES];
        for crc in crcs(table) {
            let want = usize::try_from(blob.bytes.saturating_sub(at)).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            let bytes = piece.get_mut(..want).unwrap_or_default();
            // A piece that the disk does not give back costs its message, and does not end the reading of the journal.
            let n = read_around(&file, at, bytes).unwrap_or(0);
            if n != want || crc32c::crc32c(bytes) != crc {
                wrong += want as u64;
            }
            at += want as u64;
        }
        Ok(if wrong == 0 { Found::Intact } else { Found::Wrong(wrong) })
    }

    /// What no record named, in order of names.
    pub(crate) fn orphans(self) -> Vec<Orphan> {
        let unnamed = self.blobs.into_iter().filter(|(name, _)| !self.names.contains(name));
        let whole = unnamed.map(|(name, entry)| Orphan {
            file: name.file(),
            bytes: entry.bytes,
            modified: entry.modified,
            whole: true,
        });
        let mut orphans: Vec<Orphan> = whole.chain(self.parts).collect();
        orphans.sort_unstable_by(|a, b| a.file.cmp(&b.file));
        orphans
    }
}

/// Removes the orphans of `replay` that were never finished, and returns those. The caller holds the lock, and has held it
/// since before the replay.
pub fn remove_parts<S: Storage>(storage: &S, replay: &Replay) -> io::Result<Vec<Orphan>> {
    let mut removed = Vec::new();
    for orphan in replay.orphans.iter().filter(|orphan| !orphan.whole) {
        match storage.remove(&orphan.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => removed.push(orphan.clone()),
        }
    }
    Ok(removed)
}

/// Moves the whole orphans of `replay` to `torn/<name>.blob` and returns their new names: a disk that was rescued without
/// its last segment makes acknowledged mail look like them. The caller as above. They stay where they are, and where their
/// records may be found again, in a damaged journal and beside no segment at all.
pub fn set_orphans_aside<S: Storage>(storage: &S, replay: &Replay) -> io::Result<Vec<String>> {
    let mut moved = Vec::new();
    if replay.report.state() == State::Damaged || replay.segments == 0 {
        return Ok(moved);
    }
    for orphan in replay.orphans.iter().filter(|orphan| orphan.whole) {
        let name = orphan.file.rsplit('/').next().unwrap_or(&orphan.file);
        // What was set aside before is never written over.
        let mut to = format!("torn/{name}.blob");
        let mut n = 2_u64;
        while storage.open(&to).is_ok() {
            to = format!("torn/{name}-{n}.blob");
            n += 1;
        }
        match storage.rename(&orphan.file, &to) {
            Ok(()) => moved.push(to),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if !moved.is_empty() {
        // The new name first.
        storage.sync_directory()?;
        storage.sync_blobs()?;
    }
    Ok(moved)
}
