//! Reads single records by their position, and checks them again: what rotted since the start must not be delivered.

use crate::blob::BlobRef;
use crate::carry::Cargo;
use crate::content::Content;
use crate::frame::{FLAG_BLOB, FrameHeader, HEADER_BYTES};
use crate::header::{PAGE_BYTES, Page, SegmentHeader, file_name};
use crate::record::decode_frame;
use crate::scan::find_tag;
use crate::storage::{SegmentFile, Storage};
use crate::window::read_around;
use restante_envelope::TransactionId;
use restante_ledger::{Fact, Position};
use std::io;

/// A record, read and checked.
#[derive(Debug)]
pub struct Stored<F> {
    /// What it says.
    pub fact: Fact,
    /// The message, for an `Accepted` record that was read with its content; else empty.
    pub content: Content<F>,
}

/// Why a record was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk or the file system.
    #[error("cannot read the journal: {0}")]
    Io(#[from] io::Error),
    /// The bytes are not as written.
    #[error("damaged at {position}: {what}")]
    Damaged {
        /// Where.
        position: Position,
        /// Which part.
        what: &'static str,
    },
}

/// What one read of [`Reader::head`] takes: the record header, the envelope and the headers of nearly all mail.
const HEAD_READ_BYTES: usize = 8 << 10;

/// What [`Reader::message_at_hand`] reads beside the content: the record header, and the envelope of a message for a few.
const AROUND_CONTENT_BYTES: usize = 1 << 10;

/// Opens segments as needed and keeps the last one open: neighbours in the journal are read one after the other.
#[derive(Debug)]
pub struct Reader<S: Storage> {
    storage: S,
    open: Option<(u64, u32, S::File)>,
}

impl<S: Storage> Reader<S> {
    /// A reader over the journal in `storage`.
    pub fn new(storage: S) -> Self {
        Self { storage, open: None }
    }

    /// The message accepted at `position`, envelope and content. Of a blob, every piece is checked when it is read.
    pub fn message(&mut self, position: Position) -> Result<Stored<S::File>, ReadError> {
        self.read(position, true)
    }

    /// As [`Reader::message`], with one read that never waits for a disk: for whoever must not block. None if the record is
    /// not in memory, in a segment that is not open, of another shape than `content_len` tells, or damaged.
    pub fn message_at_hand(&self, position: Position, content_len: usize) -> Option<Stored<S::File>> {
        let (_, tag, file) = self.open.as_ref().filter(|(number, ..)| *number == position.segment)?;
        let mut read = vec![0; content_len.checked_add(AROUND_CONTENT_BYTES)?];
        let n = file.read_at_hand(position.offset, &mut read)?;
        read.truncate(n);
        let header = FrameHeader::decode(&read).filter(|h| h.offset == position.offset && h.tag == *tag)?;
        let part = |from: u64, len: u32| {
            let from = usize::try_from(from.checked_sub(position.offset)?).ok()?;
            Some(from..from.checked_add(len as usize)?)
        };
        let meta = read.get(part(header.meta_offset(), header.meta_len)?)?;
        let content = part(header.content_offset(), header.content_len)?;
        if crc32c::crc32c(meta) != header.meta_crc || crc32c::crc32c(read.get(content.clone())?) != header.content_crc {
            return None;
        }
        let (Some(fact), None) = decode_frame(&header, meta).ok()? else { return None };
        let fact = as_accepted(fact);
        read.truncate(content.end);
        read.drain(..content.start);
        Some(Stored { fact, content: Content::in_record(position, read) })
    }

    /// The record at `position`, without content.
    pub fn record(&mut self, position: Position) -> Result<Stored<S::File>, ReadError> {
        self.read(position, false)
    }

    /// The message at `position`, to be written again.
    pub fn to_carry(&mut self, position: Position) -> Result<Cargo, ReadError> {
        let (fact, content, blob) = self.checked(position, true)?;
        match fact {
            Fact::Accepted(accepted) => Ok(Cargo { accepted, content, blob }),
            _ => Err(ReadError::Damaged { position, what: "another record stands there" }),
        }
    }

    fn read(&mut self, position: Position, with_content: bool) -> Result<Stored<S::File>, ReadError> {
        let damaged = |what| ReadError::Damaged { position, what };
        let (fact, content, blob) = self.checked(position, with_content)?;
        let content = match blob.filter(|_| with_content) {
            None => Content::in_record(position, content),
            Some(blob) => match self.storage.open(&blob.name.file()) {
                Ok(file) => Content::in_blob(position, file, blob, &content)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(damaged("the blob of the content is missing"));
                }
                Err(error) => return Err(error.into()),
            },
        };
        Ok(Stored { fact, content })
    }

    /// The record, its content if that is wanted, and the blob it names.
    fn checked(
        &mut self,
        position: Position,
        with_content: bool,
    ) -> Result<(Fact, Vec<u8>, Option<BlobRef>), ReadError> {
        let damaged = |what| ReadError::Damaged { position, what };
        let (tag, file) = self.segment(position.segment)?;
        let header = read_exactly(file, position.offset, HEADER_BYTES)?.ok_or(damaged("record header"))?;
        let header = FrameHeader::decode(&header)
            .filter(|h| h.offset == position.offset && h.tag == tag)
            .ok_or(damaged("record header"))?;
        let meta = read_exactly(file, header.meta_offset(), header.meta_len as usize)?.ok_or(damaged("envelope"))?;
        if crc32c::crc32c(&meta) != header.meta_crc {
            return Err(damaged("envelope"));
        }
        let (fact, blob) = decode_frame(&header, &meta).map_err(|_| damaged("envelope"))?;
        let fact = as_accepted(fact.ok_or(damaged("envelope"))?);
        if !with_content {
            return Ok((fact, Vec::new(), blob));
        }
        let content = read_exactly(file, header.content_offset(), header.content_len as usize)?;
        let content = content.filter(|c| crc32c::crc32c(c) == header.content_crc).ok_or(damaged("content"))?;
        Ok((fact, content, blob))
    }

    /// The first `bytes` of the content of message `id`, accepted at `position`, if its record header says that it is: a look
    /// at its headers. The content is not checked, so nobody may deliver or decide by this. A blob's first piece, which may be
    /// longer, is checked.
    pub fn head(&mut self, position: Position, id: TransactionId, bytes: usize) -> Result<Vec<u8>, ReadError> {
        let damaged = |what| ReadError::Damaged { position, what };
        let (tag, file) = self.segment(position.segment)?;
        let mut read = vec![0; HEAD_READ_BYTES];
        // A bad sector further on is another message's: then what is needed is read for itself.
        let n = file.read_at(position.offset, &mut read).or_else(|_| {
            read.truncate(HEADER_BYTES);
            file.read_at(position.offset, &mut read)
        })?;
        read.truncate(n);
        let header = FrameHeader::decode(&read)
            .filter(|h| h.offset == position.offset && h.tag == tag && h.kind.is_message() && h.id == id)
            .ok_or(damaged("record header"))?;
        if header.flags & FLAG_BLOB != 0 {
            return Ok(self.message(position)?.content.next_chunk()?.unwrap_or_default());
        }
        let want = bytes.min(header.content_len as usize);
        let start = usize::try_from(header.content_offset() - position.offset).unwrap_or(usize::MAX);
        if let Some(head) = read.get(start..start.saturating_add(want)) {
            return Ok(head.to_vec());
        }
        read_exactly(file, header.content_offset(), want)?.ok_or(damaged("content"))
    }

    /// The envelope of the message accepted at `position`, if the record is that of `id`.
    pub fn accepted(&mut self, position: Position, id: TransactionId) -> Result<restante_ledger::Accepted, ReadError> {
        match self.record(position)?.fact {
            Fact::Accepted(accepted) if accepted.id == id => Ok(accepted),
            _ => Err(ReadError::Damaged { position, what: "another record stands there" }),
        }
    }

    fn segment(&mut self, number: u64) -> Result<(u32, &S::File), ReadError> {
        if self.open.as_ref().is_none_or(|(open, ..)| *open != number) {
            let file = self.storage.open(&file_name(number))?;
            let mut page = vec![0; PAGE_BYTES];
            // As the scan does: a page that the disk does not give back must not cost every message behind it.
            let n = read_around(&file, 0, &mut page)?;
            page.truncate(n);
            let tag = match SegmentHeader::decode(&page) {
                Page::Intact(header) | Page::Damaged(header) => Some(header.tag),
                Page::Lost => find_tag(&file)?,
                Page::TooNew { .. } => None,
            };
            let position = Position { segment: number, offset: 0 };
            let tag = tag.ok_or(ReadError::Damaged { position, what: "segment header" })?;
            self.open = Some((number, tag, file));
        }
        let position = Position { segment: number, offset: 0 };
        let (_, tag, file) = self.open.as_ref().ok_or(ReadError::Damaged { position, what: "segment header" })?;
        Ok((*tag, file))
    }
}

/// A message is a message, however often it was written.
fn as_accepted(fact: Fact) -> Fact {
    match fact {
        Fact::Carried(carried) => Fact::Accepted(carried.accepted),
        fact => fact,
    }
}

/// None if the file ends before `len` bytes: such a length is never allocated.
fn read_exactly<F: SegmentFile>(file: &F, offset: u64, len: usize) -> io::Result<Option<Vec<u8>>> {
    if file.len()?.saturating_sub(offset) < len as u64 {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    let n = file.read_at(offset, &mut bytes)?;
    Ok((n == len).then_some(bytes))
}
