//! Reads a file a window at a time, and around what cannot be read.

use crate::storage::SegmentFile;
use std::io;

/// Bytes read at once. Larger gains nothing on any disk; smaller costs calls.
const WINDOW_BYTES: usize = 1 << 20;
/// Read one by one where a window cannot be read: a page, which is what a kernel gives back or does not.
const BLOCK_BYTES: usize = 4096;
/// Read one by one where a block cannot be read: the smallest sector that a disk loses. A kernel that reads whole pages gives
/// none of them back; one that does not, or a disk image that was rescued to a file, does.
const SECTOR_BYTES: usize = 512;
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
    let (mut blocks, mut unreadable) = (0_usize, 0_usize);
    each_piece(offset, bytes, BLOCK_BYTES, |at, block| {
        blocks += 1;
        if file.read_at(at, block).is_err() {
            let (mut is_lost, is_dying) = (true, unreadable > BAD_BLOCKS_MAX);
            // Each read that fails may take seconds: of a disk that gives nothing back, not every sector is asked for.
            each_piece(at, block, if is_dying { BLOCK_BYTES } else { SECTOR_BYTES }, |at, piece| {
                if !is_dying && file.read_at(at, piece).is_ok() {
                    is_lost = false;
                } else {
                    piece.fill(UNREADABLE_FILL);
                }
            });
            unreadable += usize::from(is_lost);
        }
    });
    // Not one block of many could be read: that is no bad sector, that is no disk.
    if unreadable == blocks && unreadable > BAD_BLOCKS_MAX { Err(error) } else { Ok(bytes.len()) }
}

/// Cut where the disk cuts, wherever `bytes` begin: a bad sector lies in one piece, not in two.
fn each_piece(mut at: u64, mut bytes: &mut [u8], piece_bytes: usize, mut then: impl FnMut(u64, &mut [u8])) {
    while !bytes.is_empty() {
        let begun = usize::try_from(at % piece_bytes as u64).unwrap_or(0);
        let (piece, rest) = bytes.split_at_mut((piece_bytes - begun).min(bytes.len()));
        then(at, piece);
        at += piece.len() as u64;
        bytes = rest;
    }
}
