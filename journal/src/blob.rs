//! A large body in a file of its own (FORMAT.md section 1, *Blobs*): written as it arrives, on stable storage before any
//! record may name it. Reads nothing back, draws no name, and has no way into the journal's segments: an error here costs
//! one message, unless it is one of the directory, which is the journal's end.

use crate::codec::{Malformed, Put, Take};
use crate::storage::{SegmentFile, Storage, is_out_of_files};
use std::fmt;
use std::io;

/// A blob is checked and read in pieces of this: little enough to be held for each delivery under way, and a table of
/// checksums that stays a 65,536th of the blob.
pub const PIECE_BYTES: usize = 256 << 10;
/// Synced each time so much is new: so little is in the disk's queue at any time that small mail beside it does not wait
/// long for its own sync (figures in FORMAT.md section 1).
const SYNC_BYTES: u64 = 1 << 20;
/// One CRC in the table.
const CRC_BYTES: usize = 4;
/// Name and length at the end of a meta.
const REFERENCE_BYTES: usize = 24;

/// The name of a blob: 128 random bits, drawn by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobName(u128);

impl BlobName {
    /// Of these bits.
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    pub(crate) fn to_bits(self) -> u128 {
        self.0
    }

    /// Reads what `Display` writes: 32 lower-case hex digits, and nothing else.
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let bits = (text.len() == 32 && text.bytes().all(is_digit)).then(|| u128::from_str_radix(text, 16).ok());
        bits.flatten().map(Self)
    }

    /// The file's name in the journal's directory: `blob/<32 hex digits>`.
    pub fn file(self) -> String {
        format!("blob/{self}")
    }

    pub(crate) fn part_file(self) -> String {
        format!("blob/{self}.part")
    }
}

impl fmt::Display for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A blob as a record names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobRef {
    pub(crate) name: BlobName,
    pub(crate) bytes: u64,
}

impl BlobRef {
    /// Appends itself to a meta (FORMAT.md section 4.8).
    pub(crate) fn encode(self, meta: &mut Vec<u8>) {
        let mut put = Put(std::mem::take(meta));
        put.0.extend_from_slice(&self.name.0.to_be_bytes());
        put.u64(self.bytes);
        *meta = put.0;
    }

    /// What stands in front of it in a meta, and itself.
    pub(crate) fn split(meta: &[u8]) -> Result<(&[u8], Self), Malformed> {
        let at = meta.len().checked_sub(REFERENCE_BYTES).ok_or(Malformed)?;
        let (front, reference) = meta.split_at_checked(at).ok_or(Malformed)?;
        let mut take = Take(reference);
        let name = u128::from_be_bytes(take.bytes(16)?.try_into().map_err(|_| Malformed)?);
        Ok((front, Self { name: BlobName(name), bytes: take.u64()? }))
    }

    /// How long its table of checksums is.
    pub(crate) fn table_bytes(self) -> u64 {
        self.bytes.div_ceil(PIECE_BYTES as u64).saturating_mul(CRC_BYTES as u64)
    }
}

/// The checksums in a table, in the order of the pieces.
pub(crate) fn crcs(table: &[u8]) -> impl Iterator<Item = u32> {
    let (crcs, _) = table.as_chunks::<CRC_BYTES>();
    crcs.iter().map(|crc| u32::from_le_bytes(*crc))
}

/// A whole blob on stable storage. Only [`BlobWriter::finish`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    reference: BlobRef,
    table: Vec<u8>,
}

impl Blob {
    /// Its name.
    pub fn name(&self) -> BlobName {
        self.reference.name
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.reference.bytes
    }

    pub(crate) fn reference(&self) -> BlobRef {
        self.reference
    }

    pub(crate) fn table(&self) -> &[u8] {
        &self.table
    }
}

/// Why there is no blob.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The disk did not take this one. It concerns no other message.
    #[error("{0}")]
    File(#[from] io::Error),
    /// The directory could not be synced. Entries of other messages may be lost with it, though their own syncs went well:
    /// nothing may be promised any more. From now on the [`crate::Writer`] commits nothing. Stop the process.
    #[error("cannot sync blob/: {0}")]
    Directory(io::Error),
}

/// Writes one blob. Dropped before it is finished, it removes what it wrote, as well as it can.
#[derive(Debug)]
pub struct BlobWriter<S: Storage> {
    storage: S,
    name: BlobName,
    file: S::File,
    bytes: u64,
    /// Up to here it is on stable storage.
    synced: u64,
    /// A write or a sync failed, and the next one might not say so.
    broken: bool,
    table: Put,
    /// Of the bytes in the piece begun.
    crc: u32,
    /// The file to be removed when this is dropped.
    unfinished: Option<String>,
}

impl<S: Storage + Clone> BlobWriter<S> {
    /// Begins a blob. A name that is taken is an error, and what has it is left alone.
    pub fn create(storage: &S, name: BlobName) -> io::Result<Self> {
        let part = name.part_file();
        if storage.open(&name.file()).is_ok() {
            // To give the part this name in the end would write over a message.
            return Err(crate::at(&name.file())(io::ErrorKind::AlreadyExists.into()));
        }
        let file = storage.create(&part)?;
        Ok(Self {
            storage: storage.clone(),
            name,
            file,
            bytes: 0,
            synced: 0,
            broken: false,
            table: Put::default(),
            crc: 0,
            unfinished: Some(part),
        })
    }
}

impl<S: Storage> BlobWriter<S> {
    /// Appends `content`, of any length, and may wait for the disk. After an error the blob is of no use: drop it.
    pub fn write(&mut self, content: &[u8]) -> io::Result<()> {
        self.check()?;
        self.broken = true;
        self.file.write_at(self.bytes, content).map_err(crate::at(&self.name.part_file()))?;
        let mut rest = content;
        while !rest.is_empty() {
            let begun = usize::try_from(self.bytes % PIECE_BYTES as u64).unwrap_or(0);
            let (head, tail) = rest.split_at(rest.len().min(PIECE_BYTES - begun));
            self.crc = crc32c::crc32c_append(self.crc, head);
            self.bytes += head.len() as u64;
            if begun + head.len() == PIECE_BYTES {
                self.table.u32(std::mem::take(&mut self.crc));
            }
            rest = tail;
        }
        if self.bytes - self.synced >= SYNC_BYTES {
            self.file.sync().map_err(crate::at(&self.name.part_file()))?;
            self.synced = self.bytes;
        }
        self.broken = false;
        Ok(())
    }

    fn check(&self) -> io::Result<()> {
        let broken = || io::Error::other(format!("{}: a write or a sync failed earlier", self.name.part_file()));
        if self.broken { Err(broken()) } else { Ok(()) }
    }

    /// Makes the blob durable: syncs it, gives it its name, syncs `blob/`. Only then may a record name it. After an
    /// error nothing of it is left, or an orphan that the next start clears away.
    pub fn finish(mut self) -> Result<Blob, BlobError> {
        self.check()?;
        if !self.bytes.is_multiple_of(PIECE_BYTES as u64) {
            self.table.u32(self.crc);
        }
        let (part, file) = (self.name.part_file(), self.name.file());
        self.file.sync().map_err(crate::at(&part))?;
        self.storage.rename(&part, &file)?;
        self.unfinished = Some(file);
        self.storage.sync_blobs().map_err(|error| {
            // Out of descriptors, nothing was asked of the directory.
            if is_out_of_files(&error) { BlobError::File(error) } else { BlobError::Directory(error) }
        })?;
        self.unfinished = None;
        let reference = BlobRef { name: self.name, bytes: self.bytes };
        Ok(Blob { reference, table: std::mem::take(&mut self.table.0) })
    }
}

impl<S: Storage> Drop for BlobWriter<S> {
    fn drop(&mut self) {
        if let Some(file) = self.unfinished.take() {
            // What stays is an orphan: the next start clears it away.
            let _left_to_the_next_start = self.storage.remove(&file);
        }
    }
}

/// Removes a blob whose record was surely never written: refused before it was staged, or its batch taken back with
/// [`crate::CommitError::Full`]. Not after any other error of a commit: the record may be on disk then, and the next
/// start needs what it names.
pub fn remove_blob<S: Storage>(storage: &S, name: BlobName) -> io::Result<()> {
    storage.remove(&name.file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_name_is_read_back_and_nothing_else_is_a_name(bits in any::<u128>(), text in "[0-9a-fA-F+]{0,34}") {
            let name = BlobName::from_bits(bits);
            prop_assert_eq!(BlobName::parse(&name.to_string()), Some(name));
            prop_assert_eq!(BlobName::parse(&text).map(|name| name.to_string()).unwrap_or(text.clone()), text);
            prop_assert_eq!(BlobName::parse(&name.part_file()), None);
        }

        #[test]
        fn any_meta_splits_without_panic(meta in proptest::collection::vec(any::<u8>(), 0..60), bits in any::<u128>(), bytes in any::<u64>()) {
            prop_assert_eq!(BlobRef::split(&meta).is_ok(), meta.len() >= REFERENCE_BYTES);
            let reference = BlobRef { name: BlobName::from_bits(bits), bytes };
            let mut with = meta.clone();
            reference.encode(&mut with);
            prop_assert_eq!(BlobRef::split(&with), Ok((meta.as_slice(), reference)));
            let _ = reference.table_bytes();
        }
    }
}
