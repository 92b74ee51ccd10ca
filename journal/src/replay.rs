//! Goes through all segments of a journal in order and tells every fact: the way in for boot, `verify` and `recover`.

use crate::blob::BlobName;
use crate::header::{PAGE_BYTES, Page, SegmentHeader, file_name, parse_file_name};
use crate::leave::CarriedBlobs;
use crate::report::{Damage, DamageKind, Report};
use crate::scan::{Scan, ScanError, Successor, Totals, find_tag, succession, unnamed};
use crate::shelf::{Orphan, Shelf};
use crate::storage::{SegmentFile, Storage, is_lost};
use crate::window::{Window, read_around};
use crate::{at, os_error, summary};
use restante_envelope::TransactionId;
use restante_ledger::{Accepted, Base, Carried, Deliveries, Fact, Gist, Ledger, Position};
use std::collections::HashSet;
use std::io;
use std::ops::RangeInclusive;

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
    /// A message that was written again, whose envelope is intact and whose content is not.
    fn damaged_carried(&mut self, position: Position, carried: &Carried);
    /// Messages of this segment of which only the number is known.
    fn unnamed(&mut self, segment: u64, transactions: u64, recipients: u64);
    /// What is known of the segments that have left the journal; before everything else.
    fn begins_after(&mut self, base: &Base);
    /// A segment of this many bytes has been read.
    fn segment_done(&mut self, _bytes: u64) {}
    /// A blob of this many bytes has been read.
    fn blob_done(&mut self, _bytes: u64) {}
}

/// What a start folds: of a segment with a summary no more than that tells.
pub trait Start: Sink {
    /// What an intact record comes to.
    fn gist(&mut self, position: Position, gist: &Gist);
}

impl Start for Ledger {
    fn gist(&mut self, position: Position, gist: &Gist) {
        self.recall(position, gist);
    }
}

impl Sink for Deliveries {
    fn fact(&mut self, _: Position, fact: &Fact) {
        self.apply(fact);
    }
    fn damaged(&mut self, _: Position, _: &Accepted) {}
    fn lost(&mut self, _: Position, _: TransactionId, _: u16) {}
    fn damaged_carried(&mut self, _: Position, carried: &Carried) {
        self.apply_carried(carried);
    }
    fn unnamed(&mut self, _: u64, _: u64, _: u64) {}
    fn begins_after(&mut self, _: &Base) {}
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
    fn damaged_carried(&mut self, position: Position, carried: &Carried) {
        self.apply_damaged_carried(position, carried);
    }
    fn unnamed(&mut self, segment: u64, transactions: u64, recipients: u64) {
        self.apply_unnamed(segment, transactions, recipients);
    }
    fn begins_after(&mut self, base: &Base) {
        self.apply_base(base);
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
    /// What is known of the segments that have left. Files of those may still be there: see [`crate::remove_left`].
    pub base: Base,
    /// Blobs named by records that were written again.
    pub carried_blobs: CarriedBlobs,
    pub(crate) journal: Option<u128>,
    pub(crate) last: Option<Last>,
    /// The largest number of any file, whether or not it could be opened.
    pub(crate) highest: u64,
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
pub(crate) struct Opened<F> {
    pub(crate) number: u64,
    pub(crate) file: F,
    pub(crate) header: Option<SegmentHeader>,
    pub(crate) page_damaged: bool,
    pub(crate) tag: Option<u32>,
}

/// Reads the whole journal. An empty directory is an empty journal.
pub fn replay<S: Storage, K: Sink + ?Sized>(storage: &S, depth: Depth, sink: &mut K) -> Result<Replay, ReplayError> {
    read_all(storage, depth, sink, None)
}

/// As [`replay`] with [`Depth::Records`], for a start: where a segment has a summary, that is read and not the segment. What
/// rotted in such a segment since it was summed up is not noticed: reading it again in the background does ([`crate::scrub`]).
pub fn start<S: Storage, K: Start + ?Sized>(storage: &S, sink: &mut K) -> Result<Replay, ReplayError> {
    read_all(storage, Depth::Records, sink, Some(K::gist))
}

/// Takes a gist, if gists will do.
type Recall<K> = Option<fn(&mut K, Position, &Gist)>;

fn read_all<S: Storage, K: Sink + ?Sized>(
    storage: &S,
    depth: Depth,
    sink: &mut K,
    recall: Recall<K>,
) -> Result<Replay, ReplayError> {
    let base = base(storage)?;
    sink.begins_after(&base);
    let totals = Totals::told(base.transactions, base.recipients).unwrap_or_default();
    let range = base.first..=u64::MAX;
    read_range(storage, Replay { base, totals, ..Replay::default() }, range, depth, sink, recall)
}

/// What the newest segment whose header can be read says of those that have left.
pub(crate) fn base<S: Storage>(storage: &S) -> Result<Base, ReplayError> {
    let mut numbers: Vec<u64> = storage.list()?.iter().filter_map(|name| parse_file_name(name)).collect();
    numbers.sort_unstable();
    for number in numbers.into_iter().rev() {
        match open(storage, number) {
            Ok(Opened { header: Some(header), .. }) => return Ok(header.base.unwrap_or_default()),
            Err(ReplayError::Io(error)) if !is_lost(&error) => return Err(error.into()),
            Err(
                error @ (ReplayError::TooNew { .. } | ReplayError::UnknownKind { .. } | ReplayError::Foreign { .. }),
            ) => return Err(error),
            Ok(_) | Err(ReplayError::Io(_)) => {}
        }
    }
    Ok(Base::default())
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

/// Reads the segments in front of `end`, for whoever wants to know what leaves with them. As with [`replay_from`], the counts
/// and the report are of what was read.
pub fn replay_before<S: Storage, K: Sink + ?Sized>(
    storage: &S,
    end: u64,
    depth: Depth,
    sink: &mut K,
) -> Result<Replay, ReplayError> {
    replay_range(storage, 1, end.saturating_sub(1), depth, sink)
}

/// As [`replay_from`], no further than segment `last`: what follows it only tells how it ended.
pub(crate) fn replay_range<S: Storage, K: Sink + ?Sized>(
    storage: &S,
    first: u64,
    last: u64,
    depth: Depth,
    sink: &mut K,
) -> Result<Replay, ReplayError> {
    let base = base(storage)?;
    let first = first.max(base.first);
    let mut replay = Replay { base, ..Replay::default() };
    if let Some(header) = exists(storage, first)?.and_then(|segment| segment.header) {
        replay.totals = Totals::told(header.transactions, header.recipients).unwrap_or_default();
    }
    read_range(storage, replay, first..=last, depth, sink, None)
}

pub(crate) fn exists<S: Storage>(storage: &S, number: u64) -> Result<Option<Opened<S::File>>, ReplayError> {
    match open(storage, number) {
        Err(ReplayError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

fn read_range<S: Storage, K: Sink + ?Sized>(
    storage: &S,
    mut replay: Replay,
    range: RangeInclusive<u64>,
    depth: Depth,
    sink: &mut K,
    recall: Recall<K>,
) -> Result<Replay, ReplayError> {
    let (first, last) = (*range.start(), *range.end());
    let named = |name: &String| parse_file_name(name).filter(|number| *number >= first);
    let mut numbers: Vec<u64> = storage.list()?.iter().filter_map(named).collect();
    numbers.sort_unstable();
    let mut shelf = Shelf::list(storage)?;
    let mut numbers = numbers.into_iter();
    replay.highest = numbers.as_slice().last().copied().unwrap_or_default();
    let mut current = open_next(storage, &mut numbers)?;
    let mut expected = first.max(1);
    while let Some(segment) = current.filter(|segment| segment.number <= last) {
        let next = open_next(storage, &mut numbers)?;
        if expected < segment.number {
            // One entry for a hole, however wide: a stray file may have any number in its name.
            let kind = DamageKind::MissingSegment;
            replay.report.add(Damage::new(expected, 0, 0, kind, Vec::new()), true);
        }
        expected = segment.number.saturating_add(1);
        begin_segment(&segment, &mut replay, sink)?;
        let told = match recall {
            Some(_) => summary::recall(storage, &segment, next.as_ref(), &mut replay, &mut shelf)?,
            None => None,
        };
        match recall.zip(told) {
            Some((recall, gists)) => {
                let number = segment.number;
                gists
                    .iter()
                    .for_each(|(offset, gist)| recall(sink, Position { segment: number, offset: *offset }, gist));
                sink.segment_done(segment.file.len()?);
            }
            None => read_segment(storage, &segment, next.as_ref(), depth, &mut replay, &mut shelf, sink)?,
        }
        current = next;
    }
    if last == u64::MAX && replay.last.map_or(0, |read| read.number) < replay.highest {
        replay.report.add(Damage::new(expected, 0, 0, DamageKind::MissingSegment, Vec::new()), true);
    }
    (replay.blobs, replay.blob_bytes) = (shelf.named, shelf.named_bytes);
    replay.carried_blobs = std::mem::take(&mut shelf.carried);
    replay.orphans = shelf.orphans();
    Ok(replay)
}

/// The next segment that can be opened. One that the disk does not give is as good as missing, and is told as that.
fn open_next<S: Storage>(
    storage: &S,
    numbers: &mut impl Iterator<Item = u64>,
) -> Result<Option<Opened<S::File>>, ReplayError> {
    for number in numbers {
        match open(storage, number) {
            Err(ReplayError::Io(error)) if is_lost(&error) => {}
            opened => return opened.map(Some),
        }
    }
    Ok(None)
}

/// The blobs that a segment names which counts no more.
pub(crate) fn read_dead<S: Storage, K: Sink + ?Sized>(
    storage: &S,
    number: u64,
    depth: Depth,
    sink: &mut K,
) -> Result<HashSet<BlobName>, ReplayError> {
    let (mut replay, mut shelf) = (Replay::default(), Shelf::default());
    let (segment, next) = (open(storage, number)?, exists(storage, number.saturating_add(1))?);
    begin_segment(&segment, &mut replay, sink)?;
    read_segment(storage, &segment, next.as_ref(), depth, &mut replay, &mut shelf, sink)?;
    Ok(shelf.names)
}

/// For whom the report alone matters.
pub(crate) struct Nobody;

impl Sink for Nobody {
    fn fact(&mut self, _: Position, _: &Fact) {}
    fn damaged(&mut self, _: Position, _: &Accepted) {}
    fn lost(&mut self, _: Position, _: TransactionId, _: u16) {}
    fn damaged_carried(&mut self, _: Position, _: &Carried) {}
    fn unnamed(&mut self, _: u64, _: u64, _: u64) {}
    fn begins_after(&mut self, _: &Base) {}
}

/// What its page says, of the segment and of those before it.
pub(crate) fn begin_segment<F, K: Sink + ?Sized>(
    segment: &Opened<F>,
    replay: &mut Replay,
    sink: &mut K,
) -> Result<(), ReplayError> {
    if segment.page_damaged {
        let (kind, bytes) = (DamageKind::HeaderPage, PAGE_BYTES as u64);
        replay.report.add(Damage::new(segment.number, 0, bytes, kind, Vec::new()), true);
    }
    if let Some(header) = &segment.header {
        if *replay.journal.get_or_insert(header.journal) != header.journal {
            return Err(ReplayError::Foreign { file: file_name(segment.number) });
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
    Ok(())
}

pub(crate) fn read_segment<S: Storage, K: Sink + ?Sized>(
    storage: &S,
    segment: &Opened<S::File>,
    next: Option<&Opened<S::File>>,
    depth: Depth,
    replay: &mut Replay,
    shelf: &mut Shelf,
    sink: &mut K,
) -> Result<(), ReplayError> {
    let file = || file_name(segment.number);
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
        ScanError::Io(error) if os_error(&error) == error.raw_os_error() => ReplayError::Io(at(&file())(error)),
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
pub(crate) fn successor<F: SegmentFile>(number: u64, next: &Opened<F>) -> io::Result<Successor> {
    let told = succession(&next.file, next.tag.unwrap_or_default())?.filter(|s| s.number == number);
    let bytes = next.header.filter(|h| h.previous_number == number).map(|h| h.previous_bytes);
    let told_bytes = told.as_ref().map(|s| s.bytes);
    Ok(Successor { bytes: bytes.or(told_bytes).unwrap_or(u64::MAX), torn: told.map(|s| s.torn).unwrap_or_default() })
}

pub(crate) fn open<S: Storage>(storage: &S, number: u64) -> Result<Opened<S::File>, ReplayError> {
    let file = storage.open(&file_name(number))?;
    let mut page = vec![0; PAGE_BYTES];
    let n = read_around(&file, 0, &mut page).map_err(at(&file_name(number)))?;
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
