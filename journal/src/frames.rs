//! The frames of a segment, one after the other, wherever they stand. Judges nothing: what they prove is the scan's to say.

use crate::frame::{ALIGN_BYTES, FrameHeader, HEADER_BYTES, Kind};
use crate::header::PAGE_BYTES;
use crate::scan::SEAL_BYTES;
use crate::storage::SegmentFile;
use crate::window::{Window, chunk_len};
use std::io;

/// Goes through a file, around whatever is no valid frame.
pub(crate) struct Frames<'a, F> {
    window: Window<'a, F>,
    tag: u32,
    at: u64,
    len: u64,
    last_sequence: u64,
}

impl<'a, F: SegmentFile> Frames<'a, F> {
    pub(crate) fn new(file: &'a F, tag: u32) -> Self {
        let len = file.len().unwrap_or(0);
        Self { window: Window::new(file), tag, at: PAGE_BYTES as u64, len, last_sequence: 0 }
    }

    /// The next one whose header validates, if all of it is in the file.
    pub(crate) fn next(&mut self) -> io::Result<Option<FrameHeader>> {
        while self.at < self.len {
            let header = FrameHeader::decode(self.window.get(self.at, HEADER_BYTES)?);
            let header = header.filter(|h| {
                h.offset == self.at && h.tag == self.tag && h.sequence > self.last_sequence && h.end() <= self.len
            });
            match header {
                Some(header) => {
                    self.at = header.end();
                    self.last_sequence = header.sequence;
                    return Ok(Some(header));
                }
                None => self.at += ALIGN_BYTES,
            }
        }
        Ok(None)
    }

    /// Its meta, if that is as written.
    pub(crate) fn meta(&mut self, header: &FrameHeader) -> io::Result<Option<Vec<u8>>> {
        let meta = self.window.get(header.meta_offset(), header.meta_len as usize)?;
        let is_right = meta.len() == header.meta_len as usize && crc32c::crc32c(meta) == header.meta_crc;
        Ok(is_right.then(|| meta.to_vec()))
    }

    /// Whether its content is as written.
    pub(crate) fn has_content(&mut self, header: &FrameHeader) -> io::Result<bool> {
        let (mut at, end, mut crc) = (header.content_offset(), header.padding_offset(), 0);
        while at < end {
            let chunk = self.window.get(at, chunk_len(end - at))?;
            if chunk.is_empty() {
                return Ok(false);
            }
            crc = crc32c::crc32c_append(crc, chunk);
            at += chunk.len() as u64;
        }
        Ok(crc == header.content_crc)
    }
}

/// Where the last mark ends that is as written.
pub(crate) fn last_mark<F: SegmentFile>(file: &F, tag: u32) -> io::Result<Option<u64>> {
    let (mut frames, mut last) = (Frames::new(file, tag), None);
    while let Some(header) = frames.next()? {
        if header.kind == Kind::Mark && frames.meta(&header)?.is_some() {
            last = Some(header.end());
        }
    }
    Ok(last)
}

/// Whether a file of this length ends with the second seal.
pub(crate) fn is_sealed<F: SegmentFile>(file: &F, tag: u32, len: u64) -> io::Result<bool> {
    let Some(offset) = len.checked_sub(SEAL_BYTES) else { return Ok(false) };
    let header = FrameHeader::decode(Window::new(file).get(offset, HEADER_BYTES)?);
    Ok(header.is_some_and(|h| h.kind == Kind::Seal && h.tag == tag && h.offset == offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimStorage;
    use crate::storage::Storage;

    #[test]
    fn a_content_cut_while_it_is_read_is_wrong_and_does_not_keep_the_reader_for_ever() {
        let disk = SimStorage::default();
        let mut file = disk.create("seg").unwrap();
        let content = vec![7; 3 << 20];
        let header = FrameHeader {
            kind: Kind::Accepted,
            flags: 0,
            recipients: 1,
            tag: 5,
            sequence: 1,
            offset: PAGE_BYTES as u64,
            id: restante_envelope::TransactionId::from_bits(1),
            meta_len: 0,
            meta_crc: 0,
            content_len: 3 << 20,
            content_crc: crc32c::crc32c(&content),
        };
        file.write_at(header.offset, &header.encode().0).unwrap();
        file.write_at(header.content_offset(), &content).unwrap();
        file.write_at(header.padding_offset(), &[0; 8]).unwrap();
        let mut frames = Frames::new(&file, 5);
        assert_eq!(frames.next().unwrap(), Some(header));
        assert!(frames.has_content(&header).unwrap());
        let mut frames = Frames::new(&file, 5);
        disk.alter("seg", |bytes| bytes.truncate(2 << 20));
        assert!(!frames.has_content(&header).unwrap());
    }
}
