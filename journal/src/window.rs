//! Reads a file a window at a time, and around what cannot be read.

use crate::storage::SegmentFile;
use std::io;

/// Bytes read at once. Larger gains nothing on any disk; smaller costs calls.
const WINDOW_BYTES: usize = 1 << 20;
/// Read one by one where a window cannot be read.
const UNREADABLE_BYTES: usize = 4096;
/// So many neighbours may be bad on a disk that still works.
const BAD_BLOCKS_MAX: usize = 16;
/// Stands for bytes that the disk does not give back. Not zero: zeros are no damage everywhere.
const UNREADABLE_FILL: u8 = 0xEE;

/// How much of `left` is taken at once.
pub(crate) fn chunk_len(left: u64) -> usize {
    usize::try_from(left).unwrap_or(WINDOW_BYTES).min(WINDOW_BYTES)
}

/// A file, read a window at a time.
pub(crate) struct Window<'a, F> {
    pub(crate) file: &'a F,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a, F: SegmentFile> Window<'a, F> {
    pub(crate) fn new(file: &'a F) -> Self {
        Self { file, start: 0, bytes: Vec::new() }
    }

    /// `len` bytes from `offset` on, fewer at the end of the file.
    pub(crate) fn get(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let have = |start: u64, n: usize| {
            let from = usize::try_from(offset.checked_sub(start)?).ok()?;
            (from.checked_add(len)? <= n).then_some(from)
        };
        if have(self.start, self.bytes.len()).is_none() {
            let left = usize::try_from(self.file.len()?.saturating_sub(offset)).unwrap_or(usize::MAX);
            // Never more than the file holds: a rotten length must not allocate.
            self.bytes.resize(len.max(WINDOW_BYTES).min(left), 0);
            let n = read_around(self.file, offset, &mut self.bytes)?;
            self.bytes.truncate(n);
            self.start = offset;
        }
        let from = usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX).min(self.bytes.len());
        let to = from.saturating_add(len).min(self.bytes.len());
        Ok(self.bytes.get(from..to).unwrap_or_default())
    }
}

/// Reads what can be read. A sector that cannot is filled with a pattern that no checksum accepts: it costs what stands
/// in it, and not what stands around it.
pub(crate) fn read_around<F: SegmentFile>(file: &F, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let error = match file.read_at(offset, bytes) {
        Ok(n) => return Ok(n),
        Err(error) => error,
    };
    let mut unreadable = 0_usize;
    let mut at = offset;
    for block in bytes.chunks_mut(UNREADABLE_BYTES) {
        match file.read_at(at, block) {
            Ok(_) => {}
            Err(_) => {
                block.fill(UNREADABLE_FILL);
                unreadable += 1;
            }
        }
        at += block.len() as u64;
    }
    // Not one block of many could be read: that is no bad sector, that is no disk.
    if unreadable == bytes.len().div_ceil(UNREADABLE_BYTES) && unreadable > BAD_BLOCKS_MAX {
        Err(error)
    } else {
        Ok(bytes.len())
    }
}
