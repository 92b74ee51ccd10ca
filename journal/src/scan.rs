//! Reads one segment frame by frame and tells proven damage from a torn tail (FORMAT.md section 6). Writes nothing.

use crate::blob::BlobRef;
use crate::frame::{ALIGN_BYTES, FrameHeader, HEADER_BYTES, Kind};
use crate::header::PAGE_BYTES;
use crate::record::decode_frame;
use crate::replay::{Depth, Sink};
use crate::report::{Damage, DamageKind, Report};
use crate::shelf::{Found, Shelf};
use crate::storage::{SegmentFile, Storage};
use crate::structure::{Mark, Named, Seal, Succession};
use crate::window::{Window, chunk_len};
use restante_envelope::TransactionId;
use restante_ledger::{Fact, Position};
use std::collections::{HashSet, VecDeque};
use std::io;

/// A seal's frame: header and three numbers.
pub(crate) const SEAL_BYTES: u64 = HEADER_BYTES as u64 + 24;
/// The second seal stands in another block than the first: one bad sector or page must not take both.
const SEAL_BLOCK_BYTES: u64 = 4096;

/// Where the second seal stands when the first ends at `first_end`.
pub(crate) fn second_seal_offset(first_end: u64) -> u64 {
    first_end.checked_next_multiple_of(SEAL_BLOCK_BYTES).unwrap_or(u64::MAX)
}

/// Messages and recipients ever accepted, as counted along the way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) transactions: u64,
    pub(crate) recipients: u64,
}

/// No journal gets so far in a thousand years. Larger numbers were forged: they are not believed, so that ours, which go on
/// from them, never overflow.
pub(crate) const NUMBER_MAX: u64 = 1 << 60;

impl Totals {
    /// As a header page, a mark or a seal tells them; none if they cannot be true.
    pub(crate) fn told(transactions: u64, recipients: u64) -> Option<Self> {
        (transactions.max(recipients) < NUMBER_MAX).then_some(Self { transactions, recipients })
    }
}

/// What the next segment says of this one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Successor {
    /// Bytes that count; nothing behind them ever will.
    pub(crate) bytes: u64,
    /// Ranges that were torn and are dealt with.
    pub(crate) torn: Vec<(u64, u64)>,
}

/// How a segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    /// Behind the last valid frame.
    pub(crate) bytes: u64,
    pub(crate) sealed: bool,
    pub(crate) last_sequence: u64,
}

/// A frame whose kind this reader does not know and must not skip.
#[derive(Debug)]
pub(crate) enum ScanError {
    Io(io::Error),
    UnknownKind { offset: u64, kind: u8 },
}

impl From<io::Error> for ScanError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A place in the segment whose fate (proven or not) is still open.
enum Item {
    Frame { header: FrameHeader, meta: Vec<u8>, meta_ok: bool, content: Content, padding_ok: bool },
    Gap { offset: u64, bytes: u64, named: Vec<Named> },
    Totals(Totals),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Intact,
    Wrong,
    /// Not read: the caller wants records only, and it can be checked later if it turns out to matter.
    Unread,
}

/// The scan of one segment.
pub(crate) struct Scan<'a, S: Storage, K: ?Sized> {
    pub(crate) storage: &'a S,
    pub(crate) shelf: &'a mut Shelf,
    pub(crate) window: Window<'a, S::File>,
    pub(crate) number: u64,
    pub(crate) tag: u32,
    /// The file was at least so long when it came into use.
    pub(crate) made_bytes: u64,
    pub(crate) successor: Option<Successor>,
    pub(crate) depth: Depth,
    pub(crate) totals: &'a mut Totals,
    pub(crate) report: &'a mut Report,
    pub(crate) sink: &'a mut K,
    pub(crate) last_sequence: u64,
    pub(crate) open: Open,
}

/// What a scan has seen and not yet told.
#[derive(Default)]
pub(crate) struct Open {
    items: VecDeque<Item>,
    /// Offsets of the valid frames since the last mark.
    seen: HashSet<u64>,
    /// Messages that a mark names inside ranges already dealt with as torn: they count nowhere.
    forgiven: Totals,
    /// Behind the first seal.
    sealed_at: Option<u64>,
    seals: u32,
}

impl<S: Storage, K: Sink + ?Sized> Scan<'_, S, K> {
    /// Goes through the segment and tells the sink every fact in it.
    pub(crate) fn run(mut self) -> Result<Ending, ScanError> {
        let len = self.window.file.len()?;
        let limit = self.successor.as_ref().map_or(len, |s| s.bytes.min(len));
        let mut at = PAGE_BYTES as u64;
        let mut end = at;
        while at < limit {
            if let Some(past) = self.dealt_with(at) {
                self.open.items.push_back(Item::Gap { offset: at, bytes: past - at, named: Vec::new() });
                at = past;
            } else if let Some(header) = self.frame_at(at)? {
                self.take_frame(header, len)?;
                at = header.end();
                end = at;
            } else {
                let next = self.resync(at, limit)?;
                let gap_end = if next == limit { self.tail_end(at, limit)? } else { next };
                // Between the seals, and nowhere else, there are zeros in front of a frame.
                let between_seals = next < limit && self.open.seals == 1 && self.tail_end(at, next)? == at;
                if gap_end > at && !between_seals {
                    self.open.items.push_back(Item::Gap { offset: at, bytes: gap_end - at, named: Vec::new() });
                }
                at = next;
            }
        }
        self.missing_end(len);
        let sealed = self.judge_seals(len)?;
        self.judge_length(len);
        let proven = sealed || self.successor.is_some();
        self.tell(u64::MAX, proven)?;
        Ok(Ending { bytes: end.min(len), sealed, last_sequence: self.last_sequence })
    }

    /// A crash does not cut files: one that is shorter than it ever was, somebody or something else cut. The segment behind
    /// it says how much of it was left when it was found, which mends nothing.
    fn judge_length(&mut self, len: u64) {
        let told_longer = self.successor.as_ref().is_some_and(|s| s.bytes != u64::MAX && s.bytes > len);
        if told_longer || len >= self.made_bytes {
            return;
        }
        let least = match self.open.sealed_at {
            None => self.made_bytes,
            // We cut it behind the second seal; in front of that, where the disk was too full for it.
            Some(first_end) if self.open.seals == 1 && len != second_seal_offset(first_end) => {
                second_seal_offset(first_end).saturating_add(SEAL_BYTES)
            }
            Some(_) => 0,
        };
        if len < least {
            self.report_at(len, least - len, DamageKind::Frame, Vec::new(), true);
        }
    }

    /// A file shorter than the next segment says it was has lost its end.
    fn missing_end(&mut self, len: u64) {
        let told = self.successor.as_ref().map(|s| s.bytes).filter(|bytes| *bytes != u64::MAX);
        if let Some(missing) = told.and_then(|told| told.checked_sub(len)).filter(|missing| *missing > 0) {
            self.open.items.push_back(Item::Gap { offset: len, bytes: missing, named: Vec::new() });
        }
    }

    /// Whether the segment was ended cleanly, as far as its seals and its length tell.
    fn judge_seals(&mut self, len: u64) -> Result<bool, ScanError> {
        let Some(first_end) = self.open.sealed_at else { return Ok(false) };
        if self.open.seals > 1 {
            return Ok(true);
        }
        // All in front of the first seal was synced before it was written.
        self.tell(first_end, true)?;
        let second = second_seal_offset(first_end);
        let told = self.successor.as_ref().map(|s| s.bytes).filter(|bytes| *bytes != u64::MAX);
        let in_gap = |at: u64| move |item: &Item| matches!(item, Item::Gap { offset, bytes, .. } if *offset <= at && at < *offset + *bytes);
        if told.unwrap_or(len) == second.saturating_add(SEAL_BYTES) {
            // The file was cut behind the second seal, so that was safe once, and is not there.
            if !self.open.items.iter().any(in_gap(second)) {
                self.open.items.push_back(Item::Gap { offset: second, bytes: SEAL_BYTES, named: Vec::new() });
            }
            return Ok(true);
        }
        // A crash came between the seals: what stands behind the first was in flight.
        let followed = self.successor.is_some();
        let is_torn = |item: &Item| match item {
            Item::Gap { .. } => true,
            Item::Frame { header, meta, meta_ok, .. } => !meta_ok || decode_frame(header, meta).is_err(),
            Item::Totals(_) => false,
        };
        Ok(followed || !self.open.items.iter().any(is_torn))
    }

    /// Where something else than zeros ends. Zeros count for nothing only where the file was filled ahead: behind a seal,
    /// or where nobody recorded how far the segment reaches.
    fn tail_end(&mut self, from: u64, limit: u64) -> Result<u64, ScanError> {
        let told = self.successor.as_ref().is_some_and(|s| s.bytes != u64::MAX);
        if told && self.open.sealed_at.is_none() { Ok(limit) } else { self.trim_zeros(from, limit) }
    }

    /// The end of the torn range that starts at or around `at`.
    fn dealt_with(&self, at: u64) -> Option<u64> {
        let ranges = &self.successor.as_ref()?.torn;
        ranges
            .iter()
            .find(|(offset, bytes)| (*offset..offset.saturating_add(*bytes)).contains(&at))
            .map(|(o, b)| o.saturating_add(*b))
    }

    fn frame_at(&mut self, at: u64) -> Result<Option<FrameHeader>, ScanError> {
        let header = FrameHeader::decode(self.window.get(at, HEADER_BYTES)?);
        let sequences = self.last_sequence.saturating_add(1)..NUMBER_MAX;
        Ok(header.filter(|h| h.offset == at && h.tag == self.tag && sequences.contains(&h.sequence)))
    }

    /// The next place at or before `limit` where a valid frame stands.
    fn resync(&mut self, from: u64, limit: u64) -> Result<u64, ScanError> {
        let mut at = from.saturating_add(ALIGN_BYTES) / ALIGN_BYTES * ALIGN_BYTES;
        while at < limit {
            if self.dealt_with(at).is_some() || self.frame_at(at)?.is_some() {
                return Ok(at);
            }
            at += ALIGN_BYTES;
        }
        Ok(limit)
    }

    /// Where the zeros begin that reach up to `limit`; `from` at the least.
    fn trim_zeros(&mut self, from: u64, limit: u64) -> Result<u64, ScanError> {
        let (mut at, mut end) = (from, from);
        while at < limit {
            let chunk = self.window.get(at, chunk_len(limit - at))?;
            if chunk.is_empty() {
                break;
            }
            if let Some(last) = chunk.iter().rposition(|b| *b != 0) {
                end = at + last as u64 + 1;
            }
            at += chunk.len() as u64;
        }
        Ok(end)
    }

    fn take_frame(&mut self, header: FrameHeader, len: u64) -> Result<(), ScanError> {
        let meta = self.window.get(header.meta_offset(), header.meta_len as usize)?.to_vec();
        let meta_ok = meta.len() == header.meta_len as usize && crc32c::crc32c(&meta) == header.meta_crc;
        let content = match self.depth {
            _ if header.padding_offset() > len => Content::Wrong,
            Depth::Everything => self.check_content(&header)?,
            Depth::Records => Content::Unread,
        };
        let padding = self.window.get(header.padding_offset(), (header.end() - header.padding_offset()) as usize)?;
        let padding_ok = padding.iter().all(|b| *b == 0);
        self.last_sequence = header.sequence;
        self.open.seen.insert(header.offset);
        if header.is_beyond_us() {
            return Err(ScanError::UnknownKind { offset: header.offset, kind: header.kind.code() });
        }
        match header.kind {
            Kind::Mark if meta_ok => self.take_mark(&meta, header.offset)?,
            Kind::Seal if meta_ok => self.take_seal(&meta, header.end())?,
            _ => {}
        }
        self.open.items.push_back(Item::Frame { header, meta, meta_ok, content, padding_ok });
        Ok(())
    }

    fn check_content(&mut self, header: &FrameHeader) -> Result<Content, ScanError> {
        let (mut at, end, mut crc) = (header.content_offset(), header.padding_offset(), 0);
        while at < end {
            let chunk = self.window.get(at, chunk_len(end - at))?;
            if chunk.is_empty() {
                return Ok(Content::Wrong);
            }
            crc = crc32c::crc32c_append(crc, chunk);
            at += chunk.len() as u64;
        }
        Ok(if crc == header.content_crc { Content::Intact } else { Content::Wrong })
    }

    /// Everything in front of the batch is proven; what the mark names and we have not seen stands in a gap.
    fn take_mark(&mut self, meta: &[u8], at: u64) -> Result<(), ScanError> {
        let Ok(mark) = Mark::decode(meta) else { return Ok(()) };
        self.split_gap(mark.batch_start);
        // Before the names: what this mark says of torn messages makes up for nothing that the one before counts.
        self.tell(mark.batch_start, true)?;
        // It names frames of its own batch; of what stands elsewhere other marks tell.
        for named in mark.named.into_iter().filter(|named| (mark.batch_start..at).contains(&named.offset)) {
            if self.dealt_with(named.offset).is_some() {
                if named.kind == Kind::Accepted {
                    self.open.forgiven.transactions += 1;
                    self.open.forgiven.recipients += u64::from(named.recipients);
                }
            } else if !self.open.seen.contains(&named.offset) {
                let gap = self.open.items.iter_mut().find_map(|item| match item {
                    Item::Gap { offset, bytes, named: names } => {
                        (*offset..*offset + *bytes).contains(&named.offset).then_some(names)
                    }
                    _ => None,
                });
                if let Some(names) = gap {
                    names.push(named);
                }
            }
        }
        self.open.seen.clear();
        self.open.items.extend(Totals::told(mark.transactions, mark.recipients).map(Item::Totals));
        Ok(())
    }

    /// A gap over the border of a batch is two: what is in front of it is proven, what is behind it is not yet.
    fn split_gap(&mut self, border: u64) {
        let inside = |item: &Item| matches!(item, Item::Gap { offset, bytes, .. } if *offset < border && border < *offset + *bytes);
        let Some(place) = self.open.items.iter().position(inside) else { return };
        if let Some(Item::Gap { offset, bytes, .. }) = self.open.items.get_mut(place) {
            let behind = *offset + *bytes - border;
            *bytes = border - *offset;
            self.open.items.insert(place + 1, Item::Gap { offset: border, bytes: behind, named: Vec::new() });
        }
    }

    fn take_seal(&mut self, meta: &[u8], end: u64) -> Result<(), ScanError> {
        let Ok(seal) = Seal::decode(meta) else { return Ok(()) };
        self.open.sealed_at = self.open.sealed_at.or(Some(end));
        self.open.seals += 1;
        self.open.items.extend(Totals::told(seal.transactions, seal.recipients).map(Item::Totals));
        Ok(())
    }

    /// Tells the sink what stands in front of `until`, now that it is known whether it was `proven`.
    fn tell(&mut self, until: u64, proven: bool) -> Result<(), ScanError> {
        while let Some(item) = self.open.items.front() {
            let offset = match item {
                Item::Frame { header, .. } => header.offset,
                Item::Gap { offset, .. } => *offset,
                Item::Totals(_) => 0,
            };
            if offset >= until {
                break;
            }
            match self.open.items.pop_front() {
                Some(Item::Frame { header, meta, meta_ok, content, padding_ok }) => {
                    let content = match content {
                        Content::Unread if !proven => self.check_content(&header)?,
                        known => known,
                    };
                    self.tell_frame(&header, &meta, meta_ok, content, proven)?;
                    if !padding_ok {
                        let bytes = header.end() - header.padding_offset();
                        self.report_at(header.padding_offset(), bytes, DamageKind::Padding, Vec::new(), proven);
                    }
                }
                Some(Item::Gap { offset, bytes, named }) => self.tell_gap(offset, bytes, &named, proven),
                Some(Item::Totals(totals)) if proven => self.tell_totals(totals),
                Some(Item::Totals(_)) | None => {}
            }
        }
        Ok(())
    }

    fn tell_frame(
        &mut self,
        header: &FrameHeader,
        meta: &[u8],
        meta_ok: bool,
        content: Content,
        proven: bool,
    ) -> Result<(), ScanError> {
        let position = self.position(header.offset);
        let bytes = header.end() - header.offset;
        let ids = if header.id.to_bits() == 0 { Vec::new() } else { vec![header.id] };
        let decoded = if meta_ok { decode_frame(header, meta).ok() } else { None };
        if !proven && (decoded.is_none() || content == Content::Wrong) {
            self.report_at(header.offset, bytes, DamageKind::Content, ids, false);
            return Ok(());
        }
        if header.kind == Kind::Accepted {
            self.totals.transactions += 1;
            self.totals.recipients += u64::from(header.recipients);
        }
        let (fact, blob) = match decoded {
            Some(decoded) => decoded,
            None => {
                self.report_at(header.offset, bytes, DamageKind::Meta, ids, proven);
                if header.kind.is_message() {
                    self.sink.lost(position, header.id, header.recipients);
                }
                return Ok(());
            }
        };
        if let Some(blob) = blob {
            self.shelf.name(blob, header.kind == Kind::Carried, self.number);
        }
        if content == Content::Wrong {
            let bytes = u64::from(header.content_len);
            self.report_at(header.content_offset(), bytes, DamageKind::Content, ids, proven);
        }
        match (fact, blob) {
            (Some(fact), _) if content == Content::Wrong && header.kind.is_message() => {
                self.tell_damaged(position, &fact);
            }
            (Some(fact), Some(blob)) => self.tell_in_blob(header, fact, blob)?,
            (Some(fact), _) => self.sink.fact(position, &fact),
            (None, _) => {}
        }
        Ok(())
    }

    /// A message in a blob. That was on stable storage before the frame was written, so what is wrong with it is damage
    /// even where the frame itself is not proven.
    fn tell_in_blob(&mut self, header: &FrameHeader, fact: Fact, blob: BlobRef) -> Result<(), ScanError> {
        let found = match self.depth {
            Depth::Records => self.shelf.look(self.storage, blob)?,
            Depth::Everything => {
                let table = self.window.get(header.content_offset(), header.content_len as usize)?;
                let found = Shelf::read(self.storage, blob, table)?;
                self.sink.blob_done(blob.bytes);
                found
            }
        };
        let position = self.position(header.offset);
        let (kind, bytes) = match found {
            Found::Intact => {
                self.sink.fact(position, &fact);
                return Ok(());
            }
            Found::Missing => (DamageKind::BlobMissing, blob.bytes),
            Found::Wrong(bytes) => (DamageKind::Blob, bytes),
        };
        let damage = Damage::new(self.number, header.offset, bytes, kind, vec![header.id]);
        self.report.add(Damage { blob: Some(blob.name), ..damage }, true);
        self.tell_damaged(position, &fact);
        Ok(())
    }

    fn tell_damaged(&mut self, position: Position, fact: &Fact) {
        match fact {
            Fact::Accepted(accepted) => self.sink.damaged(position, accepted),
            Fact::Carried(carried) => self.sink.damaged_carried(position, carried),
            _ => {}
        }
    }

    fn tell_gap(&mut self, offset: u64, bytes: u64, named: &[Named], proven: bool) {
        if self.dealt_with(offset).is_some() {
            return;
        }
        let ids = named.iter().filter(|n| n.id.to_bits() != 0).map(|n| n.id).collect();
        self.report_at(offset, bytes, DamageKind::Frame, ids, proven);
        if !proven {
            return;
        }
        for named in named.iter().filter(|n| n.kind.is_message()) {
            if named.kind == Kind::Accepted {
                self.totals.transactions += 1;
                self.totals.recipients += u64::from(named.recipients);
            }
            self.sink.lost(self.position(named.offset), named.id, named.recipients);
        }
    }

    /// Compares what a mark counts with what was seen; the rest is missing without a name.
    fn tell_totals(&mut self, claimed: Totals) {
        let known = Totals {
            transactions: self.totals.transactions + self.open.forgiven.transactions,
            recipients: self.totals.recipients + self.open.forgiven.recipients,
        };
        unnamed(self.totals, known, claimed, self.number, self.report, self.sink);
    }

    fn report_at(&mut self, offset: u64, bytes: u64, kind: DamageKind, ids: Vec<TransactionId>, proven: bool) {
        self.report.add(Damage::new(self.number, offset, bytes, kind, ids), proven);
    }

    fn position(&self, offset: u64) -> Position {
        Position { segment: self.number, offset }
    }
}

/// Books messages that a count claims and nothing names.
pub(crate) fn unnamed<K: Sink + ?Sized>(
    totals: &mut Totals,
    known: Totals,
    claimed: Totals,
    segment: u64,
    report: &mut Report,
    sink: &mut K,
) {
    let transactions = claimed.transactions.saturating_sub(known.transactions);
    let recipients = claimed.recipients.saturating_sub(known.recipients);
    if transactions == 0 && recipients == 0 {
        return;
    }
    totals.transactions += transactions;
    totals.recipients += recipients;
    report.add(Damage::new(segment, 0, 0, DamageKind::Unnamed, Vec::new()), true);
    sink.unnamed(segment, transactions, recipients);
}

/// The ranges torn in the segment before this one, if this one's first frame tells them.
pub(crate) fn succession<F: SegmentFile>(file: &F, tag: u32) -> io::Result<Option<Succession>> {
    let mut window = Window::new(file);
    let at = PAGE_BYTES as u64;
    let header = FrameHeader::decode(window.get(at, HEADER_BYTES)?);
    let Some(header) = header.filter(|h| h.kind == Kind::Succession && h.tag == tag && h.offset == at) else {
        return Ok(None);
    };
    let meta = window.get(header.meta_offset(), header.meta_len as usize)?;
    Ok(Some(meta).filter(|m| crc32c::crc32c(m) == header.meta_crc).and_then(|m| Succession::decode(m).ok()))
}

/// The tag of the first frame that validates in a segment whose header page is lost.
pub(crate) fn find_tag<F: SegmentFile>(file: &F) -> io::Result<Option<u32>> {
    let (mut window, len, mut at) = (Window::new(file), file.len()?, PAGE_BYTES as u64);
    while at < len {
        if let Some(header) = FrameHeader::decode(window.get(at, HEADER_BYTES)?).filter(|h| h.offset == at) {
            return Ok(Some(header.tag));
        }
        at += ALIGN_BYTES;
    }
    Ok(None)
}
