//! Goes through all segments of a journal in order and tells every fact: the way in for boot, `verify` and `recover`.

use crate::header::{PAGE_BYTES, Page, SegmentHeader, file_name, parse_file_name};
use crate::report::{Damage, DamageKind, Report};
use crate::scan::{Scan, ScanError, Successor, Totals, find_tag, succession, unnamed};
use crate::shelf::{Orphan, Shelf};
use crate::storage::{SegmentFile, Storage};
use crate::window::{Window, read_around};
use restante_envelope::TransactionId;
use restante_ledger::{Accepted, Fact, Ledger, Position};
use std::io;

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All records; contents only where they may be torn; of blobs, that they are there with their length. For a start:
    /// contents are checked again before delivery.
    Records,
    /// Every byte, those of blobs too.
    Everything,
}

/// Takes what a replay finds, in the order of the journal.
pub trait Sink {
    /// An intact record.
    fn fact(&mut self, position: Position, fact: &Fact);
    /// A message whose envelope is intact and whose content is not.
    fn damaged(&mut self, position: Position, accepted: &Accepted);
    /// A message of which only the name and the number of recipients are known.
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16);
    /// Messages of which only the number is known.
    fn unnamed(&mut self, transactions: u64, recipients: u64);
    /// A segment of this many bytes has been read.
    fn segment_done(&mut self, _bytes: u64) {}
    /// A blob of this many bytes has been read.
    fn blob_done(&mut self, _bytes: u64) {}
}

impl Sink for Ledger {
    fn fact(&mut self, position: Position, fact: &Fact) {
        self.apply(position, fact);
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        self.apply_damaged(position, accepted);
    }
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        self.apply_lost(position, id, recipients);
    }
    fn unnamed(&mut self, transactions: u64, recipients: u64) {
        self.apply_unnamed(transactions, recipients);
    }
}

/// What a replay found besides the facts.
#[derive(Debug, Clone, Default)]
pub struct Replay {
    /// Everything that is not as written.
    pub report: Report,
    /// Segments read.
    pub segments: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Records with their content in a blob.
    pub blobs: u64,
    /// Bytes in those, as the records say.
    pub blob_bytes: u64,
    /// Files in `blob/` that belong to no message. No damage. Beside a daemon at work, some may be on their way.
    pub orphans: Vec<Orphan>,
    pub(crate) journal: Option<u128>,
    pub(crate) last: Option<Last>,
    pub(crate) last_sequence: u64,
    pub(crate) totals: Totals,
}

impl Replay {
    /// Which journal it is; none if no segment tells.
    pub fn journal(&self) -> Option<u128> {
        self.journal
    }
}

/// The segment that the next one follows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Last {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    pub(crate) sealed: bool,
}

/// Why a journal could not be read at all.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The disk or the file system.
    #[error("cannot read the journal: {0}")]
    Io(#[from] io::Error),
    /// Written by a later version.
    #[error("{file} has format {format}, which this version cannot read; use the version that wrote it")]
    TooNew {
        /// The segment.
        file: String,
        /// Its format.
        format: u16,
    },
    /// A record of a later version that must not be skipped.
    #[error(
        "{file} has a record of kind {kind} at {offset}, which this version cannot read; use the version that wrote it"
    )]
    UnknownKind {
        /// The segment.
        file: String,
        /// Where.
        offset: u64,
        /// Its kind.
        kind: u8,
    },
    /// Segments of two journals in one directory.
    #[error("{file} belongs to another journal than the segments before it; two journals were mixed in one directory")]
    Foreign {
        /// The segment.
        file: String,
    },
}

/// One segment, opened.
struct Opened<F> {
    number: u64,
    file: F,
    header: Option<SegmentHeader>,
    page_damaged: bool,
    tag: Option<u32>,
}

/// Reads the whole journal. An empty directory is an empty journal.
pub fn replay<S: Storage, K: Sink + ?Sized>(storage: &S, depth: Depth, sink: &mut K) -> Result<Replay, ReplayError> {
    replay_from(storage, 0, depth, sink)
}

/// Reads from segment `first` on, for whoever knows already what stands in front of it. The counts and the report are of
/// what was read: this is no way to a writer, nor to an account.
pub fn replay_from<S: Storage, K: Sink + ?Sized>(
    storage: &S,
    first: u64,
    depth: Depth,
    sink: &mut K,
) -> Result<Replay, ReplayError> {
    replay_range(storage, first, u64::MAX, depth, sink)
}

/// As [`replay_from`], no further than segment `last`: what follows it only tells how it ended.
pub(crate) fn replay_range<S: Storage, K: Sink + ?Sized>(
    storage: &S,
    first: u64,
    last: u64,
    depth: Depth,
    sink: &mut K,
) -> Result<Replay, ReplayError> {
    let named = |name: &String| parse_file_name(name).filter(|number| *number >= first);
    let mut numbers: Vec<u64> = storage.list()?.iter().filter_map(named).collect();
    numbers.sort_unstable();
    let mut replay = Replay::default();
    let mut shelf = Shelf::list(storage)?;
    let mut numbers = numbers.into_iter();
    let mut current = numbers.next().map(|n| open(storage, n)).transpose()?;
    let mut expected = first.max(1);
    if let Some(header) = current.as_ref().and_then(|segment| segment.header).filter(|_| first > 1) {
        replay.totals = Totals::told(header.transactions, header.recipients).unwrap_or_default();
    }
    while let Some(segment) = current.filter(|segment| segment.number <= last) {
        let next = numbers.next().map(|n| open(storage, n)).transpose()?;
        if expected < segment.number {
            // One entry for a hole, however wide: a stray file may have any number in its name.
            let kind = DamageKind::MissingSegment;
            replay.report.add(Damage::new(expected, 0, 0, kind, Vec::new()), true);
        }
        expected = segment.number.saturating_add(1);
        read_segment(storage, &segment, next.as_ref(), depth, &mut replay, &mut shelf, sink)?;
        current = next;
    }
    (replay.blobs, replay.blob_bytes) = (shelf.named, shelf.named_bytes);
    replay.orphans = shelf.orphans();
    Ok(replay)
}

fn read_segment<S: Storage, K: Sink + ?Sized>(
    storage: &S,
    segment: &Opened<S::File>,
    next: Option<&Opened<S::File>>,
    depth: Depth,
    replay: &mut Replay,
    shelf: &mut Shelf,
    sink: &mut K,
) -> Result<(), ReplayError> {
    let file = || file_name(segment.number);
    if segment.page_damaged {
        let (kind, bytes) = (DamageKind::HeaderPage, PAGE_BYTES as u64);
        replay.report.add(Damage::new(segment.number, 0, bytes, kind, Vec::new()), true);
    }
    if let Some(header) = &segment.header {
        if *replay.journal.get_or_insert(header.journal) != header.journal {
            return Err(ReplayError::Foreign { file: file() });
        }
        if let Some(claimed) = Totals::told(header.transactions, header.recipients) {
            let known = replay.totals;
            unnamed(&mut replay.totals, known, claimed, segment.number, &mut replay.report, sink);
            if !segment.page_damaged {
                // More than it claims were found: torn messages that passed for others, because the record that says they
                // are torn is unreadable. They must not make up for messages that are missing further on.
                replay.totals = claimed;
            }
        }
    }
    let scan = Scan {
        storage,
        shelf,
        window: Window::new(&segment.file),
        number: segment.number,
        tag: segment.tag.unwrap_or_default(),
        made_bytes: segment.header.map_or(0, |h| u64::from(h.made_bytes)),
        successor: next.map(|n| successor(segment.number, n)).transpose()?,
        depth,
        totals: &mut replay.totals,
        report: &mut replay.report,
        sink,
        last_sequence: replay.last_sequence,
        open: crate::scan::Open::default(),
    };
    let ending = scan.run().map_err(|error| match error {
        ScanError::Io(error) => ReplayError::Io(error),
        ScanError::UnknownKind { offset, kind } => ReplayError::UnknownKind { file: file(), offset, kind },
    })?;
    let len = segment.file.len()?;
    sink.segment_done(len);
    replay.segments += 1;
    replay.bytes += len;
    replay.last_sequence = ending.last_sequence;
    // All of a sealed segment counts: bytes that appear behind its seal later are damage, and stay reported.
    let bytes = if ending.sealed { len } else { ending.bytes };
    replay.last = Some(Last { number: segment.number, bytes, sealed: ending.sealed });
    Ok(())
}

/// What `next` records of segment `number`; if it does not tell, all of the segment counts.
fn successor<F: SegmentFile>(number: u64, next: &Opened<F>) -> io::Result<Successor> {
    let told = succession(&next.file, next.tag.unwrap_or_default())?.filter(|s| s.number == number);
    let bytes = next.header.filter(|h| h.previous_number == number).map(|h| h.previous_bytes);
    let told_bytes = told.as_ref().map(|s| s.bytes);
    Ok(Successor { bytes: bytes.or(told_bytes).unwrap_or(u64::MAX), torn: told.map(|s| s.torn).unwrap_or_default() })
}

fn open<S: Storage>(storage: &S, number: u64) -> Result<Opened<S::File>, ReplayError> {
    let file = storage.open(&file_name(number))?;
    let mut page = vec![0; PAGE_BYTES];
    let n = read_around(&file, 0, &mut page)?;
    page.truncate(n);
    let (header, page_damaged) = match SegmentHeader::decode(&page) {
        Page::Intact(header) => (Some(header), header.number != number),
        Page::Damaged(header) => (Some(header), true),
        Page::Lost => (None, true),
        Page::TooNew { format } => return Err(ReplayError::TooNew { file: file_name(number), format }),
    };
    let tag = match header {
        Some(header) => Some(header.tag),
        None => find_tag(&file)?,
    };
    Ok(Opened { number, file, header, page_damaged, tag })
}
