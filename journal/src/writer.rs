//! The one writer of a journal: stages records into a batch, commits the batch with one write and one sync.
//!
//! Two designs were weighed for room ahead of the batches. *Appending* lets the file grow by each batch: nothing to
//! prepare, but every sync waits for a metadata commit. *Filling ahead with zeros* writes those bytes twice, and each sync
//! costs about half (figures in FORMAT.md section 1). The second, in steps of 1 MiB, so that small journals stay small.

use crate::at;
use crate::frame::{FrameHeader, HEADER_BYTES, Kind};
use crate::header::{PAGE_BYTES, SegmentHeader, file_name, is_unfinished, unfinished_name};
use crate::record::Prepared;
use crate::replay::Replay;
use crate::scan::{Totals, second_seal_offset};
use crate::segment::{FILL_BYTES, Segment, Trouble, ZEROS_BYTES, is_full, write_zeros};
use crate::storage::{SegmentFile, Storage, is_out_of_files};
use crate::structure::{Mark, Named, Seal, Succession};
use restante_envelope::{IdGenerator, Timestamp, TransactionId};
use restante_ledger::{Base, Position};
use std::io;

/// A segment made on a nearly full disk: enough for settlements.
const FILL_SMALL_BYTES: u64 = 64 << 10;
/// A mark of this many frames is 32 KiB.
const BATCH_FRAMES_MAX: usize = 1024;
/// Bounds the memory of a batch and how long the first in it waits for the sync. One message may go beyond it.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Kept between batches: fifty usual messages. What a crowd of large ones takes goes back to the system.
const SPARE_BYTES_MAX: usize = 256 << 10;
/// For each segment that could not be opened, sequence numbers are left out, more than it can hold: it may come back.
const SEQUENCES_SKIPPED: u64 = 1 << 32;
/// A stray file may have any number in its name.
const SKIPPED_MAX: u64 = 1 << 16;
/// In records that are about no transaction.
const NO_ID: TransactionId = TransactionId::from_bits(0);

/// What may be chosen.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// A segment is sealed when it is longer than this, in bytes.
    pub segment_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20 }
    }
}

/// Randomness for a writer's lifetime, drawn by the caller.
#[derive(Debug, Clone, Copy)]
pub struct Seed {
    /// Names a new journal.
    pub journal: u128,
    /// Where the low bits of identifiers are derived from. Senders see identifiers.
    pub entropy: u64,
    /// Where the tags of segments are derived from. Apart from `entropy`: nobody may guess a tag from an identifier.
    pub tags: u64,
}

/// Proof that a batch is on stable storage. Only [`Writer::commit`] makes one.
#[derive(Debug)]
pub struct Durable {
    receipts: Vec<Receipt>,
}

/// The place and name of one durable record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    id: TransactionId,
    position: Position,
}

impl Durable {
    /// One for each staged record, in order.
    pub fn receipts(&self) -> &[Receipt] {
        &self.receipts
    }
}

impl Receipt {
    /// The transaction.
    pub fn id(&self) -> TransactionId {
        self.id
    }
    /// Where its record is.
    pub fn position(&self) -> Position {
        self.position
    }
}

/// Why a batch is not durable. Nothing of it was promised to anyone.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The disk is full. The batch has been taken back; another may be tried when there is room.
    #[error("no room for the journal: {0}")]
    Full(io::Error),
    /// A write or a sync failed. This writer will never write again: what the kernel holds and what the disk holds may
    /// differ. Stop the process; the next start reads what is there.
    #[error("the journal failed: {0}")]
    Failed(io::Error),
    /// It failed before.
    #[error("the journal failed earlier and takes nothing more until a restart: {0}")]
    Poisoned(String),
}

/// Writes a journal. There is at most one in a directory; the caller holds the lock.
#[derive(Debug)]
pub struct Writer<S: Storage> {
    storage: S,
    options: Options,
    journal: u128,
    entropy: Spread,
    tags: Spread,
    ids: IdGenerator,
    segment: Option<Segment<S::File>>,
    next_number: u64,
    previous: (u64, u64),
    sequence: u64,
    totals: Totals,
    /// What the next header says of the segments that have left.
    base: Base,
    batch: Batch,
    /// The bytes of the batch before, emptied: to be filled again, not to be had from the system anew.
    spare: Vec<u8>,
    /// What the first frame of the next segment must tell.
    succession: Option<Succession>,
    failure: Option<String>,
}

/// Records staged and not yet committed.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) bytes: Vec<u8>,
    frames: u64,
    named: Vec<Named>,
    receipts: Vec<Receipt>,
    pub(crate) accepted: Totals,
    succession: Option<Succession>,
    pub(crate) names_blobs: bool,
}

impl<S: Storage> Writer<S> {
    /// Goes on where `replay` ended, in a new segment. `largest_id` is the ledger's; new identifiers are larger.
    /// [`crate::sync_last_segment`] came before the replay.
    /// Torn ranges must have been set aside: this records that they count no more.
    pub fn open(
        storage: S,
        options: Options,
        replay: &Replay,
        largest_id: Option<TransactionId>,
        seed: Seed,
        now: Timestamp,
    ) -> Result<Self, CommitError> {
        let last = replay.last;
        let used_up =
            || io::Error::other(format!("{} has the largest number there is: move it away", file_name(replay.highest)));
        // Beyond files that could not be opened, too: they may be read again one day.
        let next_number = replay.highest.checked_add(1).ok_or_else(used_up).map_err(CommitError::Failed)?;
        let skipped = last.map_or(0, |last| replay.highest.saturating_sub(last.number)).min(SKIPPED_MAX);
        let mut writer = Self {
            storage,
            options,
            journal: replay.journal.unwrap_or(seed.journal),
            entropy: Spread(seed.entropy),
            tags: Spread(seed.tags),
            ids: IdGenerator::after(largest_id),
            segment: None,
            next_number,
            previous: last.map_or((0, 0), |l| (l.number, l.bytes)),
            sequence: replay.last_sequence + skipped.saturating_mul(SEQUENCES_SKIPPED),
            totals: replay.totals,
            base: replay.base,
            batch: Batch::default(),
            spare: Vec::new(),
            succession: None,
            failure: None,
        };
        writer.remove_unfinished().map_err(CommitError::Failed)?;
        if let Some(last) = last.filter(|l| !l.sealed) {
            let torn = replay.report.torn.iter().filter(|t| t.segment == last.number);
            let torn = torn.map(|t| (t.offset, t.bytes)).collect();
            writer.succession = Some(Succession { number: last.number, bytes: last.bytes, torn });
        }
        match writer.begin_batch(now).and_then(|()| writer.commit(now)) {
            // The segment is made when there is room again.
            Ok(_) | Err(CommitError::Full(_)) => Ok(writer),
            Err(error) => Err(error),
        }
    }

    /// A segment to write into, and its first frame where one is owed.
    fn begin_batch(&mut self, now: Timestamp) -> Result<(), CommitError> {
        if self.batch.bytes.capacity() == 0 {
            self.batch.bytes = std::mem::take(&mut self.spare);
        }
        if self.segment.is_none() {
            self.begin_segment(now)?;
        }
        if let Some(succession) = self.succession.take() {
            let record = Prepared::new(Kind::Succession, None, 0, succession.encode(), Vec::new());
            let place = self.push(&record, NO_ID);
            self.batch.named.push(place);
            self.batch.succession = Some(succession);
        }
        Ok(())
    }

    /// Whether the batch takes another record. Memory and waiting are bounded by this.
    pub fn has_room(&self) -> bool {
        self.batch.named.len() < BATCH_FRAMES_MAX && self.batch.bytes.len() < BATCH_BYTES_MAX
    }

    /// Why this writer will never write again, if so.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Gives the record its place, and a new message its identifier. Nothing of it is written before
    /// [`Writer::commit`]; only a segment may have to be made, where the disk was too full for one before.
    pub fn stage(&mut self, record: &Prepared, now: Timestamp) -> Result<(), CommitError> {
        self.check()?;
        self.begin_batch(now)?;
        let id = match (record.id, record.kind) {
            (Some(id), _) => {
                // Of another journal, whose clock may have been ahead: what comes is larger all the same.
                self.ids.pass(id);
                id
            }
            (None, Kind::Accepted) => {
                let entropy = self.entropy.draw();
                self.ids.next(now, entropy)
            }
            (None, _) => NO_ID,
        };
        if record.kind == Kind::Accepted {
            self.batch.accepted.transactions += 1;
            self.batch.accepted.recipients += u64::from(record.recipients);
        }
        self.batch.names_blobs |= record.blob.is_some();
        let place = self.push(record, id);
        self.batch.named.push(place);
        let position = Position { segment: self.segment_number(), offset: place.offset };
        self.batch.receipts.push(Receipt { id, position });
        Ok(())
    }

    /// One write, one sync. On success everything staged is on stable storage; on failure nothing of it counts.
    pub fn commit(&mut self, now: Timestamp) -> Result<Durable, CommitError> {
        self.check()?;
        if self.batch.named.is_empty() {
            return Ok(Durable { receipts: Vec::new() });
        }
        self.push_mark();
        let batch = self.write_batch()?;
        self.totals.transactions += batch.accepted.transactions;
        self.totals.recipients += batch.accepted.recipients;
        let full = self.segment.as_mut().is_some_and(|segment| {
            segment.unproven = true;
            segment.end > self.options.segment_bytes
        });
        if full {
            // This batch is durable whatever happens now, and its waiters must hear so: a failure is kept in
            // `failure`, a full disk is met again by the next batch.
            let _met_again = self.seal().and_then(|()| match self.segment {
                None => self.begin_segment(now),
                Some(_) => Ok(()),
            });
        }
        self.spare = batch.bytes;
        self.spare.clear();
        self.spare.shrink_to(SPARE_BYTES_MAX);
        Ok(Durable { receipts: batch.receipts })
    }

    /// After a quiet moment: adds an empty mark, so that the last batch is proven too. Does nothing if it is.
    pub fn prove_last_batch(&mut self) -> Result<(), CommitError> {
        self.check()?;
        if !self.batch.named.is_empty() || self.segment.as_ref().is_none_or(|s| !s.unproven) {
            return Ok(());
        }
        self.push_mark();
        self.write_batch()?;
        if let Some(segment) = &mut self.segment {
            segment.unproven = false;
        }
        Ok(())
    }

    /// Ends the segment, which may be short, and begins the next. With `base`, the segments before `base.first` count no more
    /// when this returns: remove them with [`crate::remove_left`]. Nothing may be staged. On a full disk all stays as it was.
    pub fn turn(&mut self, base: Option<Base>, now: Timestamp) -> Result<(), CommitError> {
        self.check()?;
        if !self.batch.named.is_empty() {
            return Err(CommitError::Full(io::Error::other("records are staged")));
        }
        let before = self.base;
        self.base = base.unwrap_or(before);
        let turned = self.seal().and_then(|()| match self.segment {
            None => self.begin_segment(now),
            Some(_) => Err(CommitError::Full(io::ErrorKind::StorageFull.into())),
        });
        if turned.is_err() {
            self.base = before;
        }
        turned
    }

    /// A clean end: seals the segment. Whatever is wrong in it later is damage.
    pub fn close(mut self) -> Result<(), CommitError> {
        self.check()?;
        self.seal()
    }

    /// The segment that is being written.
    pub fn segment_number(&self) -> u64 {
        self.segment.as_ref().map_or(self.next_number, |s| s.number)
    }

    fn check(&mut self) -> Result<(), CommitError> {
        match &self.failure {
            None => self.storage.check_directories().map_err(|error| {
                self.batch = Batch::default();
                self.fail(error)
            }),
            Some(why) => {
                self.batch = Batch::default();
                Err(CommitError::Poisoned(why.clone()))
            }
        }
    }

    fn fail(&mut self, error: io::Error) -> CommitError {
        self.failure = Some(error.to_string());
        CommitError::Failed(error)
    }

    /// Writes and syncs what was pushed. A failed batch gives its sequence numbers back: no reader has seen them.
    fn write_batch(&mut self) -> Result<Batch, CommitError> {
        let batch = std::mem::take(&mut self.batch);
        let written = match &mut self.segment {
            Some(segment) => {
                let name = file_name(segment.number);
                let synced =
                    |segment: &mut Segment<S::File>| segment.file.sync().map_err(at(&name)).map_err(Trouble::Failed);
                segment.write(&batch).and_then(|()| synced(segment)).and_then(
                    // A blob that it names may have lost its entry while this was written.
                    |()| self.storage.check_directories().map_err(Trouble::Failed),
                )
            }
            None => Err(Trouble::Failed(io::Error::other("no segment is open"))),
        };
        let written = written.and_then(|()| self.check_named().map_err(Trouble::Failed));
        match written {
            Ok(()) => {
                if let Some(segment) = &mut self.segment {
                    segment.end += batch.bytes.len() as u64;
                    segment.frames += batch.frames;
                }
                Ok(batch)
            }
            Err(trouble) => {
                self.sequence -= batch.frames;
                self.succession = batch.succession;
                Err(match trouble {
                    Trouble::Full(error) => CommitError::Full(error),
                    Trouble::Failed(error) => self.fail(error),
                })
            }
        }
    }

    /// Whether somebody removed the segment from under us. Then nothing written to it is safe any more; but all of it can still
    /// be read, and is put back for the next start.
    fn check_named(&self) -> io::Result<()> {
        let Some(segment) = &self.segment else { return Ok(()) };
        if segment.file.is_named()? {
            return Ok(());
        }
        let name = file_name(segment.number);
        let put_back = self.put_back(&segment.file, &name);
        let became =
            put_back.map_or_else(|error| format!("it is lost: {error}"), |()| "what it held was put back".into());
        Err(io::Error::other(format!("{name} was removed while it was being written; {became}")))
    }

    fn put_back(&self, file: &S::File, name: &str) -> io::Result<()> {
        let mut copy = self.storage.create(name)?;
        let (len, mut done, mut chunk) = (file.len()?, 0, vec![0; ZEROS_BYTES]);
        while done < len {
            let n = file.read_at(done, &mut chunk)?;
            copy.write_at(done, chunk.get(..n).unwrap_or_default())?;
            done += n.max(1) as u64;
        }
        copy.sync()?;
        self.storage.sync_directory()
    }

    /// Looks whether the segment is still in its directory; for a quiet moment, in which no commit looks.
    pub fn check_segment(&mut self) -> Result<(), CommitError> {
        self.check()?;
        self.check_named().map_err(|error| self.fail(error))
    }

    /// Appends a frame to the batch's bytes.
    fn push(&mut self, record: &Prepared, id: TransactionId) -> Named {
        self.sequence += 1;
        self.batch.frames += 1;
        let header = FrameHeader {
            kind: record.kind,
            flags: record.flags(),
            recipients: record.recipients,
            tag: self.segment.as_ref().map_or(0, |s| s.tag),
            sequence: self.sequence,
            offset: self.segment.as_ref().map_or(0, |s| s.end) + self.batch.bytes.len() as u64,
            id,
            meta_len: u32::try_from(record.meta.len()).unwrap_or(u32::MAX),
            meta_crc: record.meta_crc,
            content_len: u32::try_from(record.content.len()).unwrap_or(u32::MAX),
            content_crc: record.content_crc,
        };
        let (bytes, header_crc) = header.encode();
        let padding = usize::try_from(header.end() - header.padding_offset()).unwrap_or(0);
        self.batch.bytes.reserve(HEADER_BYTES + record.meta.len() + record.content.len() + padding);
        self.batch.bytes.extend_from_slice(&bytes);
        self.batch.bytes.extend_from_slice(&record.meta);
        self.batch.bytes.extend_from_slice(&record.content);
        self.batch.bytes.resize(self.batch.bytes.len() + padding, 0);
        Named { id, offset: header.offset, header_crc, recipients: record.recipients, kind: record.kind }
    }

    fn push_mark(&mut self) {
        let mark = Mark {
            batch_start: self.segment.as_ref().map_or(0, |s| s.end),
            transactions: self.totals.transactions + self.batch.accepted.transactions,
            recipients: self.totals.recipients + self.batch.accepted.recipients,
            named: std::mem::take(&mut self.batch.named),
        };
        self.push(&Prepared::new(Kind::Mark, None, 0, mark.encode(), Vec::new()), NO_ID);
    }

    /// Two seals, each synced: the second says that the first is safe. A disk too full for the second leaves one.
    fn seal(&mut self) -> Result<(), CommitError> {
        let Some(segment) = &self.segment else { return Ok(()) };
        let totals = self.totals;
        let seal = Seal { frames: segment.frames, transactions: totals.transactions, recipients: totals.recipients };
        let record = Prepared::new(Kind::Seal, None, 0, seal.encode(), Vec::new());
        self.push(&record, NO_ID);
        match self.write_batch() {
            Ok(_) => {}
            // It stays unsealed, which is how a crash would have left it: nothing is lost.
            Err(CommitError::Full(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
        if let Some(segment) = &mut self.segment {
            segment.end = second_seal_offset(segment.end);
        }
        self.push(&record, NO_ID);
        match self.write_batch() {
            Ok(_) | Err(CommitError::Full(_)) => {}
            Err(error) => return Err(error),
        }
        if let Some(mut segment) = self.segment.take() {
            self.previous = (segment.number, segment.end);
            let cut = segment.file.truncate(segment.end).and_then(|()| segment.file.sync());
            cut.map_err(|error| self.fail(error))?;
        }
        Ok(())
    }

    /// Makes the next segment and its directory entry durable.
    fn begin_segment(&mut self, now: Timestamp) -> Result<(), CommitError> {
        let number = self.next_number;
        let mut header = SegmentHeader {
            tag: self.tags.draw() as u32,
            journal: self.journal,
            number,
            first_sequence: self.sequence + 1,
            created_unix_ms: now.unix_ms(),
            previous_number: self.previous.0,
            previous_bytes: self.previous.1,
            transactions: self.totals.transactions,
            recipients: self.totals.recipients,
            made_bytes: 0,
            base: Some(self.base),
        };
        let fills = [FILL_BYTES, FILL_SMALL_BYTES];
        let mut made = Err(io::Error::from(io::ErrorKind::StorageFull));
        for fill in fills {
            header.made_bytes = u32::try_from(PAGE_BYTES as u64 + fill).unwrap_or(0);
            made = self.make_file(number, &header).map(|file| (file, PAGE_BYTES as u64 + fill));
            if !made.as_ref().is_err_and(is_full) {
                break;
            }
        }
        let (file, filled) = made.map_err(|error| {
            // Nothing stands in it yet, so nothing is in doubt: it can be tried again when there is room, or a descriptor.
            if is_full(&error) || is_out_of_files(&error) { CommitError::Full(error) } else { self.fail(error) }
        })?;
        self.next_number += 1;
        let end = PAGE_BYTES as u64;
        self.segment = Some(Segment { file, number, tag: header.tag, end, filled, frames: 0, unproven: false });
        Ok(())
    }

    fn make_file(&self, number: u64, header: &SegmentHeader) -> io::Result<S::File> {
        let unfinished = unfinished_name(number);
        if self.storage.list()?.contains(&unfinished) {
            self.storage.remove(&unfinished)?;
        }
        let mut file = self.storage.create(&unfinished)?;
        let page = header.encode();
        let written = file.write_at(0, &page);
        let made_bytes = u64::from(header.made_bytes);
        if let Err(error) = written.and_then(|()| write_zeros(&mut file, page.len() as u64, made_bytes)) {
            // On a full disk this is what keeps it full.
            self.storage.remove(&unfinished)?;
            return Err(error);
        }
        file.sync()?;
        self.storage.rename(&unfinished, &file_name(number))?;
        self.storage.sync_directory()?;
        Ok(file)
    }

    fn remove_unfinished(&self) -> io::Result<()> {
        for name in self.storage.list()?.iter().filter(|name| is_unfinished(name)) {
            self.storage.remove(name)?;
        }
        Ok(())
    }
}

/// A splitmix64 sequence: spreads a seed, which is all that tags and identifiers need.
#[derive(Debug)]
struct Spread(u64);

impl Spread {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
