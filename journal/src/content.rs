//! The content of a message, read piece by piece. Gives away no byte that was not checked first.

use crate::blob::{BlobRef, PIECE_BYTES, crcs};
use crate::reader::ReadError;
use crate::storage::SegmentFile;
use restante_ledger::Position;

/// What a message says, from its first byte to its last.
#[derive(Debug)]
pub struct Content<F> {
    position: Position,
    /// Of the whole.
    len: u64,
    /// Given away so far.
    done: u64,
    source: Source<F>,
}

#[derive(Debug)]
enum Source<F> {
    /// From the record itself, checked as a whole.
    Record(Vec<u8>),
    /// One checksum for each piece.
    Blob { file: F, crcs: Vec<u32> },
}

impl<F: SegmentFile> Content<F> {
    pub(crate) fn in_record(position: Position, bytes: Vec<u8>) -> Self {
        Self { position, len: bytes.len() as u64, done: 0, source: Source::Record(bytes) }
    }

    /// `table` must have been checked. Fails if the file has not the length that the record says.
    pub(crate) fn in_blob(position: Position, file: F, blob: BlobRef, table: &[u8]) -> Result<Self, ReadError> {
        if file.len()? != blob.bytes {
            return Err(ReadError::Damaged { position, what: "the blob of the content has another length" });
        }
        let crcs = crcs(table).collect();
        Ok(Self { position, len: blob.bytes, done: 0, source: Source::Blob { file, crcs } })
    }

    /// Bytes in all, however many were read already.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the message has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether [`Content::next_chunk`] reads no file.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.source, Source::Record(_))
    }

    /// The next bytes, checked, at most [`PIECE_BYTES`]; none at the end. After an error the same bytes are read again.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        let want = usize::try_from(self.len.saturating_sub(self.done)).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        if want == 0 {
            return Ok(None);
        }
        let piece = match &mut self.source {
            // Nearly all mail is one piece, and needs no copy.
            Source::Record(bytes) if bytes.len() == want => std::mem::take(bytes),
            Source::Record(bytes) => {
                let start = usize::try_from(self.done).unwrap_or(usize::MAX);
                bytes.get(start..start.saturating_add(want)).unwrap_or_default().to_vec()
            }
            Source::Blob { file, crcs } => {
                let mut piece = vec![0; want];
                let n = file.read_at(self.done, &mut piece)?;
                let nth = usize::try_from(self.done / PIECE_BYTES as u64).unwrap_or(usize::MAX);
                if n != want || crcs.get(nth) != Some(&crc32c::crc32c(&piece)) {
                    return Err(ReadError::Damaged { position: self.position, what: "content, in its blob" });
                }
                piece
            }
        };
        self.done += piece.len() as u64;
        Ok(Some(piece))
    }

    /// All that was not read yet, at once: only for what is known to be small, or where memory does not matter.
    pub fn read_all(mut self) -> Result<Vec<u8>, ReadError> {
        if let (Source::Record(bytes), 0) = (&mut self.source, self.done) {
            return Ok(std::mem::take(bytes));
        }
        let mut all = Vec::with_capacity(usize::try_from(self.len - self.done).unwrap_or(0));
        while let Some(piece) = self.next_chunk()? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }
}
