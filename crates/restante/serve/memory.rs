//! The memory for content: one budget for all that comes in and all that goes out.
//!
//! Nobody at the door waits for it and nobody is turned away for want of it: content that finds no room here goes to the
//! disk early. Attempts do wait, and a part of the budget is theirs alone, so that clients who hold theirs for hours cannot
//! keep mail from leaving.
//!
//! Content that is written to the disk in pieces is gathered in buffers that are kept and used again: given back to the allocator,
//! which keeps a heap for each thread, they would be cut up for what is small and lives long, and each crowd of large messages would
//! take new ones (some 100 KiB of each message of 50 MiB, measured).

use std::sync::{Arc, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is accounted at once: the smallest message takes no more, and the counter stays small.
const STEP_BYTES: usize = 4 << 10;
/// All content in memory together. 2,500 clients with a usual message each (some 32 KiB) fit.
const BUDGET_BYTES: usize = 96 << 20;
/// Of it, what the door leaves to attempts: 64 messages of the greatest size that is kept in one piece.
const FOR_ATTEMPTS_BYTES: usize = 16 << 20;

/// What is gathered of a large content before it is written to the disk, if there is memory for so much.
pub(crate) const PIECE_BYTES: usize = 128 << 10;
/// Buffers of that size that are kept while nobody uses them, beside the budget; 4 MiB: what thirty large messages at once take.
const PIECES_KEPT: usize = 32;

/// The budget; cloned, it is the same one.
#[derive(Clone)]
pub(crate) struct Memory {
    steps: Arc<Semaphore>,
    pieces: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A share of it, given back when dropped.
#[derive(Default)]
pub(crate) struct Share(Option<OwnedSemaphorePermit>);

impl Share {
    /// What it covers.
    pub(crate) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits).saturating_mul(STEP_BYTES)
    }
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self { steps: Arc::new(Semaphore::new(BUDGET_BYTES / STEP_BYTES)), pieces: Arc::default() }
    }

    /// Makes `share` cover `bytes`; false, with the share as it was, where there is no room.
    pub(crate) fn cover(&self, share: &mut Share, bytes: usize) -> bool {
        let more = bytes.saturating_sub(share.bytes()).div_ceil(STEP_BYTES);
        if more == 0 {
            return true;
        }
        if self.steps.available_permits() < more.saturating_add(FOR_ATTEMPTS_BYTES / STEP_BYTES) {
            return false;
        }
        let Ok(permit) = self.steps.clone().try_acquire_many_owned(steps(more)) else { return false };
        match &mut share.0 {
            Some(held) => held.merge(permit),
            None => share.0 = Some(permit),
        }
        true
    }

    /// An empty buffer of [`PIECE_BYTES`], for who has a share of as much.
    pub(crate) fn piece(&self) -> Vec<u8> {
        let kept = self.pieces.lock().ok().and_then(|mut pieces| pieces.pop());
        kept.unwrap_or_else(|| Vec::with_capacity(PIECE_BYTES))
    }

    /// Keeps `buffer` for the next who needs one, if it is a piece.
    pub(crate) fn keep(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() == PIECE_BYTES
            && let Ok(mut pieces) = self.pieces.lock()
            && pieces.len() < PIECES_KEPT
        {
            buffer.clear();
            pieces.push(buffer);
        }
    }

    /// A share for an attempt that holds another already: two that waited for one another's would wait for ever.
    pub(crate) fn for_next_attempt(&self, bytes: u64) -> Option<Share> {
        let steps = steps(usize::try_from(bytes).ok()?.div_ceil(STEP_BYTES));
        self.steps.clone().try_acquire_many_owned(steps).ok().map(|permit| Share(Some(permit)))
    }

    /// Waits for a share for an attempt. What is larger than all that attempts may count on gets that much.
    pub(crate) async fn for_attempt(&self, bytes: u64) -> Share {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(FOR_ATTEMPTS_BYTES);
        // An error would mean that the budget is closed; it never is.
        Share(self.steps.clone().acquire_many_owned(steps(bytes.div_ceil(STEP_BYTES))).await.ok())
    }
}

fn steps(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_of_large_messages_leaves_no_more_than_is_kept() {
        let memory = Memory::new();
        let pieces: Vec<Vec<u8>> = (0..2 * PIECES_KEPT).map(|_| memory.piece()).collect();
        pieces.into_iter().for_each(|mut piece| {
            piece.extend_from_slice(b"of another");
            memory.keep(piece);
        });
        memory.keep(Vec::with_capacity(2 * PIECE_BYTES));
        assert_eq!(memory.pieces.lock().unwrap().len(), PIECES_KEPT);
        let again = memory.piece();
        assert!(again.is_empty() && again.capacity() == PIECE_BYTES);
        assert_eq!(memory.pieces.lock().unwrap().len(), PIECES_KEPT - 1);
    }

    #[tokio::test]
    async fn clients_that_hold_all_they_can_keep_no_mail_from_leaving() {
        let memory = Memory::new();
        let mut shares: Vec<Share> = Vec::new();
        loop {
            let mut share = Share::default();
            if !memory.cover(&mut share, 256 << 10) {
                break;
            }
            shares.push(share);
        }
        assert_eq!(shares.len(), (BUDGET_BYTES - FOR_ATTEMPTS_BYTES) / (256 << 10));
        let attempts = [memory.for_attempt(1 << 40).await];
        // What is held covers no more than it did, and what is given back can be had again.
        assert!(!memory.cover(&mut shares[0], 512 << 10) && memory.cover(&mut shares[0], 1));
        drop((attempts, shares.pop()));
        assert!(memory.cover(&mut Share::default(), 256 << 10));
    }
}
