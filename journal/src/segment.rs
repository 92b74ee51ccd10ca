//! The segment that is being written: where its end is, how far it is filled ahead, and how a full disk gets a batch taken back.

use crate::storage::SegmentFile;
use crate::writer::Batch;
use std::io;

/// Zeros are written ahead in steps of this: large enough that few syncs carry them, small enough to be quick.
pub(crate) const FILL_BYTES: u64 = 1 << 20;
/// Of these, written with one call.
pub(crate) const ZEROS_BYTES: usize = 64 << 10;
/// Room that new mail may not take: on a full disk, what is pending is still delivered, and each settlement needs its
/// record. Some thousand of them fit, which lasts until settled mail makes room or an operator does.
const RESERVE_BYTES: u64 = 512 << 10;

/// The segment being written.
#[derive(Debug)]
pub(crate) struct Segment<F> {
    pub(crate) file: F,
    pub(crate) number: u64,
    pub(crate) tag: u32,
    /// Behind the last synced frame.
    pub(crate) end: u64,
    /// Behind the last zero written ahead.
    pub(crate) filled: u64,
    pub(crate) frames: u64,
    /// Whether an empty mark would prove something that no mark proves yet.
    pub(crate) unproven: bool,
}

impl<F: SegmentFile> Segment<F> {
    /// Writes behind the end, and zeros behind that where the room runs out. On a full disk takes all of it back: whole
    /// frames of the batch may stand there, and would validate. New mail leaves the reserve alone.
    pub(crate) fn write(&mut self, batch: &Batch) -> Result<(), Trouble> {
        let (end, new_mail) = (self.end + batch.bytes.len() as u64, batch.accepted.transactions > 0);
        if let Err(error) = self.file.write_at(self.end, &batch.bytes) {
            return Err(self.take_back(end, batch, error));
        }
        let reserve = if new_mail { RESERVE_BYTES } else { 0 };
        if end + reserve <= self.filled {
            return Ok(());
        }
        let from = end.max(self.filled);
        let to = (end + RESERVE_BYTES).next_multiple_of(FILL_BYTES);
        match write_zeros(&mut self.file, from, to) {
            Ok(()) => self.filled = to,
            // A settlement that found room has it, whatever is behind it.
            Err(error) if is_full(&error) && !new_mail => {
                self.filled = from;
                self.file.truncate(from).map_err(Trouble::Failed)?;
            }
            Err(error) => return Err(self.take_back(end, batch, error)),
        }
        Ok(())
    }

    /// After a write that failed: makes the room filled ahead what it was. What else than a full disk it is, is a failure.
    fn take_back(&mut self, end: u64, batch: &Batch, error: io::Error) -> Trouble {
        if !is_full(&error) {
            return Trouble::Failed(error);
        }
        let written = end.min(self.filled).saturating_sub(self.end);
        let zeroed = write_zeros(&mut self.file, self.end, self.end + written);
        let zeroed = zeroed.and_then(|()| self.file.truncate(self.filled));
        // Its blobs may be removed as soon as the refusal is known: no power cut must bring back a frame that names one.
        match zeroed.and_then(|()| if batch.names_blobs { self.file.sync() } else { Ok(()) }) {
            Ok(()) => Trouble::Full(error),
            Err(error) => Trouble::Failed(error),
        }
    }
}

/// Piece by piece: an allocator keeps what was once a megabyte.
pub(crate) fn write_zeros(file: &mut impl SegmentFile, mut from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX).min(ZEROS_BYTES)];
    while let Some(left) = to.checked_sub(from).filter(|left| *left > 0) {
        let piece = zeros.get(..usize::try_from(left).unwrap_or(usize::MAX)).unwrap_or(&zeros);
        file.write_at(from, piece)?;
        from += piece.len() as u64;
    }
    Ok(())
}

/// What a write ran into.
pub(crate) enum Trouble {
    Full(io::Error),
    Failed(io::Error),
}

/// Whether the disk, a quota or a limit on the size of files has no room: what passes, unlike a failure.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}
