//! What a start needs of a segment that nobody writes any more, in a file beside it (FORMAT.md section 9): a start reads some
//! fifty bytes of each message instead of all. It may be deleted at any time. One that is not whole, not of this segment as it
//! stands, or of one that is not as written, counts as none: then the segment itself is read.
//!
//! In the segment, as its last frame, was the other place. There the writer would have to keep it in memory and write it
//! while mail waits, and a segment that a crash ended would have none.

use crate::blob::{BlobName, BlobRef};
use crate::carry::{put_state, take_state};
use crate::codec::{Malformed, Put, Take};
use crate::record::{decode_served, encode_served, put_action, take_action};
use crate::replay::{
    Depth, Last, Opened, Replay, ReplayError, Sink, begin_segment, exists, open, read_segment, successor,
};
use crate::report::State;
use crate::scan::Totals;
use crate::shelf::{Found, Shelf};
use crate::storage::{SegmentFile, Storage};
use crate::watched;
use restante_envelope::{RouteName, Timestamp, TransactionId};
use restante_ledger::{Accepted, Base, Carried, Fact, Gist, Mailbox, Position};
use std::collections::HashMap;
use std::io;

/// Changed with every change of what stands in it.
const MAGIC: &[u8; 8] = b"RSTSUM\0\x02";
/// More than any segment's: each message in that takes more than its gist. A longer file is not ours.
const BYTES_MAX: u64 = 64 << 20;
const CRC_BYTES: usize = 4;

/// Of segment `number`.
pub(crate) fn summary_name(number: u64) -> String {
    format!("seg-{number:020}.sum")
}

/// The segment that a file with this name is a summary of.
pub(crate) fn parse_summary_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("seg-")?.strip_suffix(".sum")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
}

/// What one segment comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Of the file, and what of it counts.
    len: u64,
    ending: u64,
    sealed: bool,
    last_sequence: u64,
    totals: (u64, u64),
    blobs: Vec<(BlobRef, bool)>,
    gists: Vec<(u64, Gist)>,
}

/// Which segment it is of, as it stands.
struct Of {
    journal: u128,
    number: u64,
    tag: u32,
    /// What the segment behind it says of it.
    told: u64,
}

impl Of {
    /// None if the segment, or the one behind it, does not say all of that.
    fn new<F: SegmentFile>(segment: &Opened<F>, next: &Opened<F>) -> io::Result<Option<Self>> {
        let told = successor(segment.number, next)?.bytes;
        let header = segment.header.filter(|_| !segment.page_damaged && told != u64::MAX);
        Ok(header.map(|h| Self { journal: h.journal, number: h.number, tag: h.tag, told }))
    }

    fn encode(&self, put: &mut Put) {
        put.0.extend_from_slice(MAGIC);
        put.u128(self.journal);
        put.u64(self.number);
        put.u32(self.tag);
        put.u64(self.told);
    }
}

/// Writes the summary of a segment; false if there can be none: it is the last, or not as written. Nothing is synced: one that
/// a crash spoils is none.
pub fn summarize<S: Storage>(storage: &S, number: u64) -> Result<bool, ReplayError> {
    let Some(next) = exists(storage, number.saturating_add(1))? else { return Ok(false) };
    let segment = open(storage, number)?;
    let (Some(of), Some(summary)) = (Of::new(&segment, &next)?, summary(storage, &segment, &next)?) else {
        return Ok(false);
    };
    let bytes = summary.encode(&of);
    if bytes.len() as u64 > BYTES_MAX {
        return Ok(false);
    }
    remove_summary(storage, number)?;
    storage.create(&summary_name(number))?.write_at(0, &bytes)?;
    Ok(true)
}

/// Whether segment `number`, which was read as `replay` and `gists`, has a summary that says something else. It never should.
pub(crate) fn is_wrong<S: Storage>(
    storage: &S,
    number: u64,
    replay: &Replay,
    gists: &Gists,
) -> Result<bool, ReplayError> {
    let Some(next) = exists(storage, number.saturating_add(1))? else { return Ok(false) };
    let segment = open(storage, number)?;
    let Some(of) = Of::new(&segment, &next)? else { return Ok(false) };
    let (Some(there), Some(last)) = (read(storage, &of, segment.file.len()?), replay.last) else { return Ok(false) };
    // What rotted since is not the summary's fault.
    let is_as_written = replay.report.state() == State::Clean && !gists.is_spoilt;
    let totals = (replay.totals.transactions, replay.totals.recipients);
    let blob_bytes: u64 = there.blobs.iter().map(|(blob, _)| blob.bytes).sum();
    let is_right = (there.ending, there.sealed, there.last_sequence) == (last.bytes, last.sealed, replay.last_sequence)
        && (there.totals, there.blobs.len() as u64, blob_bytes) == (totals, replay.blobs, replay.blob_bytes)
        && there.gists == gists.told;
    Ok(is_as_written && !is_right)
}

/// Segments that nobody writes any more and that have no summary; oldest first. And removes those of segments that are gone.
pub fn unsummarized<S: Storage>(storage: &S) -> io::Result<Vec<u64>> {
    let names = storage.list()?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| crate::header::parse_file_name(name)).collect();
    numbers.sort_unstable();
    let summaries: Vec<u64> = names.iter().filter_map(|name| parse_summary_name(name)).collect();
    for number in summaries.iter().filter(|number| numbers.binary_search(number).is_err()) {
        remove_summary(storage, *number)?;
    }
    numbers.pop();
    numbers.retain(|number| !summaries.contains(number));
    Ok(numbers)
}

/// As if there had never been one.
pub fn remove_summary<S: Storage>(storage: &S, number: u64) -> io::Result<()> {
    match storage.remove(&summary_name(number)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Reads the segment's records; none if anything in it is not as written.
fn summary<S: Storage>(
    storage: &S,
    segment: &Opened<S::File>,
    next: &Opened<S::File>,
) -> Result<Option<Summary>, ReplayError> {
    let (mut replay, mut gists) = (Replay::default(), Gists::default());
    let mut shelf = Shelf::that_lists();
    let header = segment.header;
    replay.totals = header.and_then(|h| Totals::told(h.transactions, h.recipients)).unwrap_or_default();
    begin_segment(segment, &mut replay, &mut gists)?;
    read_segment(storage, segment, Some(next), Depth::Records, &mut replay, &mut shelf, &mut gists)?;
    let Some(last) = replay.last.filter(|_| replay.report.state() == State::Clean && !gists.is_spoilt) else {
        return Ok(None);
    };
    Ok(Some(Summary {
        len: segment.file.len()?,
        ending: last.bytes,
        sealed: last.sealed,
        last_sequence: replay.last_sequence,
        totals: (replay.totals.transactions, replay.totals.recipients),
        blobs: shelf.listed.unwrap_or_default(),
        gists: gists.told,
    }))
}

/// What the summary of `segment` tells, if there is one that can be trusted. Nothing has been changed if there is none.
pub(crate) fn recall<S: Storage>(
    storage: &S,
    segment: &Opened<S::File>,
    next: Option<&Opened<S::File>>,
    replay: &mut Replay,
    shelf: &mut Shelf,
) -> Result<Option<Vec<(u64, Gist)>>, ReplayError> {
    let (Some(next), Some(header)) = (next, segment.header) else { return Ok(None) };
    let Some(of) = Of::new(segment, next)? else { return Ok(None) };
    let is_next = replay.totals == Totals { transactions: header.transactions, recipients: header.recipients }
        && replay.last_sequence < header.first_sequence;
    let len = segment.file.len()?;
    let Some(summary) = read(storage, &of, len).filter(|_| is_next) else { return Ok(None) };
    for (blob, _) in &summary.blobs {
        if shelf.look(storage, *blob)? != Found::Intact {
            return Ok(None);
        }
    }
    for (blob, is_carried) in &summary.blobs {
        shelf.name(*blob, *is_carried, of.number);
    }
    let (transactions, recipients) = summary.totals;
    replay.totals = Totals { transactions, recipients };
    replay.segments += 1;
    replay.bytes += len;
    replay.last_sequence = summary.last_sequence;
    replay.last = Some(Last { number: of.number, bytes: summary.ending, sealed: summary.sealed });
    Ok(Some(summary.gists))
}

fn read<S: Storage>(storage: &S, of: &Of, len: u64) -> Option<Summary> {
    let file = storage.open(&summary_name(of.number)).ok()?;
    let bytes = usize::try_from(file.len().ok().filter(|bytes| *bytes <= BYTES_MAX)?).ok()?;
    let mut bytes = vec![0; bytes];
    let n = file.read_at(0, &mut bytes).ok()?;
    bytes.truncate(n);
    let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(CRC_BYTES)?)?;
    if crc != crc32c::crc32c(body).to_le_bytes() {
        return None;
    }
    let mut head = Put::default();
    of.encode(&mut head);
    Summary::decode(body.strip_prefix(&head.0[..])?).ok().filter(|summary| summary.len == len)
}

impl Summary {
    fn encode(&self, of: &Of) -> Vec<u8> {
        let mut put = Put::default();
        of.encode(&mut put);
        for number in [self.len, self.ending, self.last_sequence, self.totals.0, self.totals.1] {
            put.u64(number);
        }
        put.u8(u8::from(self.sealed));
        put.u32(u32::try_from(self.blobs.len()).unwrap_or(u32::MAX));
        for (blob, is_carried) in &self.blobs {
            put.u128(blob.name.to_bits());
            put.u64(blob.bytes);
            put.u8(u8::from(*is_carried));
        }
        let mut routes = Routes::default();
        let mut body = Put::default();
        for (offset, gist) in &self.gists {
            body.u64(*offset);
            put_gist(&mut body, gist, &mut routes);
        }
        put.count(routes.names.len());
        routes.names.iter().for_each(|name| put.text16(name.as_str()));
        put.u32(u32::try_from(self.gists.len()).unwrap_or(u32::MAX));
        put.0.extend(body.0);
        put.u32(crc32c::crc32c(&put.0));
        put.0
    }

    fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take(body);
        let [len, ending, last_sequence, transactions, recipients] =
            [take.u64()?, take.u64()?, take.u64()?, take.u64()?, take.u64()?];
        let sealed = take.u8()? != 0;
        let mut blobs = Vec::new();
        for _ in 0..take.u32()? {
            let blob = BlobRef { name: BlobName::from_bits(take.u128()?), bytes: take.u64()? };
            blobs.push((blob, take.u8()? != 0));
        }
        let routes: Vec<RouteName> = take.list16(|t| t.text16().map(RouteName::new))?;
        let mut gists = Vec::new();
        for _ in 0..take.u32()? {
            gists.push((take.u64()?, take_gist(&mut take, &routes)?));
        }
        let totals = (transactions, recipients);
        Ok(Self { len, ending, sealed, last_sequence, totals, blobs, gists })
    }
}

/// The names, each once.
#[derive(Default)]
struct Routes {
    names: Vec<RouteName>,
    places: HashMap<RouteName, u16>,
}

impl Routes {
    fn place(&mut self, name: &RouteName) -> u16 {
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        let place = u16::try_from(self.names.len()).unwrap_or(u16::MAX);
        self.names.push(name.clone());
        self.places.insert(name.clone(), place);
        place
    }
}

const ACCEPTED: u8 = 1;
const ATTEMPTED: u8 = 2;
const OPERATED: u8 = 3;
const SERVED: u8 = 4;
const CARRIED: u8 = 5;
const OTHER: u8 = 6;
const WATCHED: u8 = 7;

fn put_gist(put: &mut Put, gist: &Gist, routes: &mut Routes) {
    let head = |put: &mut Put, kind: u8, id: &TransactionId, at: &Timestamp| {
        put.u8(kind);
        put.u128(id.to_bits());
        put.u64(at.unix_ms());
    };
    match gist {
        Gist::Accepted { id, at, content_len, to, state } => {
            head(put, ACCEPTED, id, at);
            put.u64(*content_len);
            put_state(put, *state);
            put.count(to.len());
            for (route, mailbox) in to {
                put.u16(routes.place(route));
                put.u32(mailbox.0);
            }
        }
        Gist::Attempted { id, at, results } => {
            head(put, ATTEMPTED, id, at);
            put.count(results.len());
            for (index, state) in results {
                put.u16(*index);
                put_state(put, *state);
            }
        }
        Gist::Operated { id, at, action, recipients } => {
            head(put, OPERATED, id, at);
            put_action(put, *action);
            put.count(recipients.len());
            recipients.iter().for_each(|index| put.u16(*index));
        }
        Gist::Carried { id, at, content_len, to, standings } => {
            head(put, CARRIED, id, at);
            put.u64(*content_len);
            put.count(to.len());
            for ((route, mailbox), (attempts, state)) in to.iter().zip(standings) {
                put.u16(routes.place(route));
                put.u32(mailbox.0);
                put.u16(*attempts);
                put_state(put, *state);
            }
        }
        Gist::Served(served) => {
            put.u8(SERVED);
            put.0.extend(encode_served(served));
        }
        Gist::Watched(watched) => {
            put.u8(WATCHED);
            put.0.extend(watched::encode(watched));
        }
        Gist::Other => put.u8(OTHER),
    }
}

fn take_gist(take: &mut Take<'_>, routes: &[RouteName]) -> Result<Gist, Malformed> {
    let to = |t: &mut Take<'_>| {
        let route = routes.get(usize::from(t.u16()?)).cloned().ok_or(Malformed)?;
        Ok((route, Mailbox(t.u32()?)))
    };
    let kind = take.u8()?;
    match kind {
        SERVED => return decode_served(take).map(Gist::Served),
        WATCHED => return watched::decode(take).map(Gist::Watched),
        OTHER => return Ok(Gist::Other),
        _ => {}
    }
    let (id, at) = (TransactionId::from_bits(take.u128()?), Timestamp::from_unix_ms(take.u64()?));
    Ok(match kind {
        ACCEPTED => {
            let (content_len, state) = (take.u64()?, take_state(take)?);
            Gist::Accepted { id, at, content_len, to: take.list16(to)?, state }
        }
        ATTEMPTED => Gist::Attempted { id, at, results: take.list16(|t| Ok((t.u16()?, take_state(t)?)))? },
        OPERATED => {
            let action = take_action(take)?;
            Gist::Operated { id, at, action, recipients: take.list16(Take::u16)? }
        }
        CARRIED => {
            let content_len = take.u64()?;
            let told = take.list16(|t| Ok((to(t)?, (t.u16()?, take_state(t)?))))?;
            let (to, standings) = told.into_iter().unzip();
            Gist::Carried { id, at, content_len, to, standings }
        }
        _ => return Err(Malformed),
    })
}

/// Gathers the gists of a segment, as long as nothing in it is wrong.
#[derive(Default)]
pub(crate) struct Gists {
    told: Vec<(u64, Gist)>,
    is_spoilt: bool,
}

impl Sink for Gists {
    fn fact(&mut self, position: Position, fact: &Fact) {
        self.told.push((position.offset, fact.into()));
    }
    fn damaged(&mut self, _: Position, _: &Accepted) {
        self.is_spoilt = true;
    }
    fn lost(&mut self, _: Position, _: TransactionId, _: u16) {
        self.is_spoilt = true;
    }
    fn damaged_carried(&mut self, _: Position, _: &Carried) {
        self.is_spoilt = true;
    }
    fn unnamed(&mut self, _: u64, _: u64, _: u64) {
        self.is_spoilt = true;
    }
    fn begins_after(&mut self, _: &Base) {}
}

/// Makes a right summary a wrong one, that looks right.
#[cfg(test)]
pub(crate) fn forget_last(bytes: &mut Vec<u8>) {
    const HEAD: usize = 8 + 16 + 8 + 4 + 8;
    let head = bytes[..HEAD].to_vec();
    let mut summary = Summary::decode(&bytes[HEAD..bytes.len() - CRC_BYTES]).unwrap();
    summary.gists.pop();
    let number = u64::from_le_bytes(head[24..32].try_into().unwrap());
    let of = Of {
        journal: u128::from_le_bytes(head[8..24].try_into().unwrap()),
        number,
        tag: u32::from_le_bytes(head[32..36].try_into().unwrap()),
        told: u64::from_le_bytes(head[36..44].try_into().unwrap()),
    };
    *bytes = summary.encode(&of);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use restante_ledger::{Action, RecipientState};

    fn gists() -> impl Strategy<Value = Vec<(u64, Gist)>> {
        let state = prop_oneof![
            Just(RecipientState::Due),
            any::<u64>().prop_map(|ms| RecipientState::Deferred(Timestamp::from_unix_ms(ms))),
            Just(RecipientState::Hold),
            Just(RecipientState::Sent),
            Just(RecipientState::Refused),
            Just(RecipientState::Bounced),
            Just(RecipientState::Expired),
            Just(RecipientState::Removed),
            Just(RecipientState::Quarantined),
        ];
        let parts = (0u8..6, any::<u128>(), any::<u64>(), proptest::collection::vec((state, 0u16..5), 1..5));
        let gist = parts.prop_map(|(kind, id, number, told)| {
            let (id, at) = (TransactionId::from_bits(id), Timestamp::from_unix_ms(number));
            let named = |n: &u16| (RouteName::new(&format!("route{n}")), Mailbox(u32::from(*n) << 16));
            let to = told.iter().map(|(_, n)| named(n)).collect();
            let recipients = told.iter().map(|(_, n)| *n).collect();
            let results = told.iter().map(|(state, n)| (*n, *state)).collect();
            let gist = match kind {
                0 => Gist::Accepted { id, at, content_len: number, to, state: told[0].0 },
                1 => Gist::Attempted { id, at, results },
                2 => Gist::Operated { id, at, action: Action::Undo, recipients },
                3 => Gist::Carried { id, at, content_len: number, to, standings: results },
                4 => Gist::Served(restante_ledger::Served { at, ..Default::default() }),
                _ => Gist::Other,
            };
            (number, gist)
        });
        proptest::collection::vec(gist, 0..40)
    }

    #[test]
    fn a_gist_of_an_unknown_kind_is_malformed_and_not_guessed() {
        for (kind, is_known) in [(0, false), (OPERATED, true), (OTHER + 1, false), (u8::MAX, false)] {
            let (mut put, mut routes) = (Put::default(), Routes::default());
            let (id, at) = (TransactionId::from_bits(1), Timestamp::from_unix_ms(2));
            put_gist(&mut put, &Gist::Operated { id, at, action: Action::Hold, recipients: vec![0] }, &mut routes);
            put.0[0] = kind;
            assert_eq!(take_gist(&mut Take(&put.0), &[]).is_ok(), is_known, "{kind}");
        }
    }

    const OF: Of = Of { journal: 1, number: 2, tag: 3, told: 4 };

    proptest! {
        #[test]
        fn what_is_written_is_read(gists in gists(), len in any::<u64>(), carried in any::<bool>()) {
            let blob = BlobRef { name: BlobName::from_bits(7), bytes: len };
            let summary = Summary { len, sealed: carried, blobs: vec![(blob, carried)], gists, ..Summary::default() };
            let bytes = summary.encode(&OF);
            let body = &bytes[44..bytes.len() - CRC_BYTES];
            prop_assert_eq!(Summary::decode(body), Ok(summary));
            for cut in 0..body.len() {
                prop_assert!(Summary::decode(&body[..cut]).is_err());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _read = Summary::decode(&bytes);
        }
    }
}
