//! A copy of a journal, made while a daemon writes it (FORMAT.md section 8): a valid journal at every moment, and so after a
//! crash of the copying. What is there already is not copied again. Writes nothing into the source and judges nothing in it:
//! what is damaged there is damaged in the copy.
//!
//! A blob comes before the segment that names it, a segment before the next one. Each is whole and on stable storage before
//! it gets its name. So the copy holds at any time what the source held at some time, with the end of it cut off.

use crate::at;
use crate::blob::{BlobName, BlobRef};
use crate::frame::{FrameHeader, HEADER_BYTES, Kind};
use crate::frames::{Frames, is_sealed, last_mark};
use crate::header::{PAGE_BYTES, SegmentHeader, file_name, is_unfinished, parse_file_name, unfinished_name};
use crate::leave::Removed;
use crate::record::decode_frame;
use crate::replay::{Depth, Nobody, Opened, ReplayError, base, open, replay};
use crate::report::State;
use crate::segment::write_zeros;
use crate::storage::{SegmentFile, Storage};
use crate::structure::Mark;
use crate::window::read_around;
use restante_ledger::Position;
use std::collections::{HashMap, HashSet};
use std::io;

/// Read, written and synced at once: little is in the disk's queue at any time, so that mail beside it does not wait long.
const PIECE_BYTES: usize = 256 << 10;
/// Segments leave a source at most every few seconds, and what was copied stays: this often is a defect, not a busy day.
const ROUNDS_MAX: usize = 100;
/// A batch that is taken back is gone at the next look.
const DOUBTS_MAX: u32 = 2;
/// Tells the highest number that was ever copied: a segment beyond it was written by a daemon on the copy.
const NOTE: &str = "backup";

/// What a backup came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Segments copied.
    pub segments: u64,
    /// Bytes in them.
    pub segment_bytes: u64,
    /// Blobs copied.
    pub blobs: u64,
    /// Bytes in those.
    pub blob_bytes: u64,
    /// Segments that were there already.
    pub segments_there: u64,
    /// Blobs that a record names, and that the source does not have: damage in the source.
    pub blobs_missing: u64,
    /// What has left the source, and now the copy.
    pub removed: Removed,
    /// Up to where the copy goes; none if the source is empty.
    pub end: Option<Position>,
}

/// Why there is no copy, or none of now. What was copied is good and stays.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The source cannot be read.
    #[error("{0}")]
    Source(ReplayError),
    /// The copy cannot be written.
    #[error("cannot write the copy: {0}")]
    Copy(#[from] io::Error),
    /// What is there already cannot be read.
    #[error("in the copy: {0}")]
    There(ReplayError),
    /// The directory holds another journal.
    #[error("it holds another journal: name an empty directory, or the one with the last backup of this journal")]
    Foreign,
    /// A daemon, or `recover`, wrote there.
    #[error(
        "{file} there is not of this journal's past: a daemon ran on that copy, and it is a journal of its own since; name an empty directory"
    )]
    Diverged {
        /// The segment.
        file: String,
    },
    /// Segments left the source faster than they could be copied.
    #[error("segments leave the journal faster than they can be copied: try again, and without a limit to the rate")]
    Busy,
}

/// Copies what is new in `source` to `copy`, whose lock the caller holds. `is_live`: somebody writes `source` now. `wait` is called
/// before each piece with its bytes, and takes the time it likes.
pub fn backup<S: Storage, C: Storage>(
    source: &S,
    copy: &C,
    is_live: bool,
    wait: impl Fn(u64),
) -> Result<Copied, BackupError> {
    let blobs = copy.list_blobs()?.into_iter().map(|blob| (blob.name, blob.bytes)).collect();
    let (fresh, done) = (HashSet::new(), Copied::default());
    let mut copier = Copier { source, copy, is_live, wait, blobs, highest_there: 0, fresh, doubts: 0, done };
    copier.check()?;
    for _ in 0..ROUNDS_MAX {
        match copier.round() {
            Ok(()) => {
                copier.remove_left()?;
                return Ok(copier.done);
            }
            Err(Trouble::Left) => {}
            Err(Trouble::Error(error)) => return Err(error),
        }
    }
    Err(BackupError::Busy)
}

enum Trouble {
    /// It was there when the source was listed: the next listing tells what is now.
    Left,
    Error(BackupError),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Error(BackupError::Copy(error))
    }
}

/// An error of the source: what is gone has left.
fn gone(error: impl Into<ReplayError>) -> Trouble {
    match error.into() {
        ReplayError::Io(error) if error.kind() == io::ErrorKind::NotFound => Trouble::Left,
        error => Trouble::Error(BackupError::Source(error)),
    }
}

struct Copier<'a, S, C, W> {
    source: &'a S,
    copy: &'a C,
    is_live: bool,
    wait: W,
    /// Those in the copy, by name and length.
    blobs: HashMap<String, u64>,
    /// The highest number of a segment in the copy.
    highest_there: u64,
    /// Segments copied now.
    fresh: HashSet<u64>,
    /// How often the last batch was not whole.
    doubts: u32,
    done: Copied,
}

/// How much of a segment counts now.
struct Extent {
    /// Up to here it is copied.
    end: u64,
    /// From there to here the copy has zeros.
    bytes: u64,
    /// It is being written: the last record of what counts is a mark.
    is_cut: bool,
}

impl<S: Storage, C: Storage, W: Fn(u64)> Copier<'_, S, C, W> {
    /// Whether the copy is one of this journal, and of nothing else.
    fn check(&self) -> Result<(), BackupError> {
        let (source, noted) = (numbers(self.source).map_err(|e| BackupError::Source(e.into()))?, self.noted()?);
        let mut journal = None;
        for number in numbers(self.copy)? {
            let there = open(self.copy, number).map_err(BackupError::There)?;
            let Some(theirs) = there.header else { continue };
            let ours = match open(self.source, number) {
                Ok(ours) => ours.header,
                Err(ReplayError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(BackupError::Source(error)),
            };
            if journal.is_none() {
                journal = self.journal(&source)?;
            }
            if journal.is_some_and(|journal| journal != theirs.journal) {
                return Err(BackupError::Foreign);
            }
            let is_ours = ours.map_or(number <= noted, |ours| ours.tag == theirs.tag);
            if !is_ours {
                return Err(BackupError::Diverged { file: file_name(number) });
            }
        }
        Ok(())
    }

    fn journal(&self, numbers: &[u64]) -> Result<Option<u128>, BackupError> {
        for number in numbers {
            match open(self.source, *number) {
                Ok(Opened { header: Some(header), .. }) => return Ok(Some(header.journal)),
                Ok(_) | Err(ReplayError::Io(_)) => {}
                Err(error) => return Err(BackupError::Source(error)),
            }
        }
        Ok(None)
    }

    fn noted(&self) -> io::Result<u64> {
        let file = match self.copy.open(NOTE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            opened => opened?,
        };
        let mut text = [0; 20];
        let n = file.read_at(0, &mut text)?;
        let number = text.get(..n).and_then(|text| std::str::from_utf8(text).ok()).and_then(|text| text.parse().ok());
        Ok(number.unwrap_or(0))
    }

    /// Before the first of them has its name.
    fn note(&self, highest: u64) -> io::Result<()> {
        if self.noted()? >= highest {
            return Ok(());
        }
        let part = format!("{NOTE}.part");
        remove_if_there(self.copy, &part)?;
        let mut file = self.copy.create(&part)?;
        file.write_at(0, format!("{highest:020}\n").as_bytes())?;
        file.sync()?;
        self.copy.rename(&part, NOTE)?;
        self.copy.sync_directory()
    }

    /// Copies all that the source holds now.
    fn round(&mut self) -> Result<(), Trouble> {
        let first = base(self.source).map_err(gone)?.first;
        let mut numbers = numbers(self.source).map_err(gone)?;
        numbers.retain(|number| *number >= first);
        let (Some(lowest), Some(highest)) = (numbers.first().copied(), numbers.last().copied()) else { return Ok(()) };
        self.note(highest)?;
        (self.done.segments_there, self.done.blobs_missing) = (0, 0);
        self.highest_there = crate::backup::numbers(self.copy)?.last().copied().unwrap_or(0);
        // Where the copy lacks what stood before, only all of them together are a journal: they get their names at the end.
        let is_apart = self.is_apart(lowest)?;
        for number in &numbers {
            self.segment(*number, *number == highest, is_apart)?;
        }
        if is_apart {
            let names = self.copy.list()?;
            for number in numbers.iter().filter(|number| names.contains(&unfinished_name(**number))) {
                self.copy.rename(&unfinished_name(*number), &file_name(*number))?;
            }
            self.copy.sync_directory()?;
        }
        Ok(())
    }

    /// Whether a segment is missing in the copy between what it has and what comes, or the end of one that has left since.
    fn is_apart(&self, lowest: u64) -> Result<bool, Trouble> {
        let there: HashSet<u64> = numbers(self.copy)?.into_iter().collect();
        let header = open(self.source, lowest).map_err(gone)?.header;
        let first = header.and_then(|header| header.base).map_or(1, |base| base.first);
        if (first..lowest).any(|number| !there.contains(&number)) {
            return Ok(true);
        }
        if first == lowest || self.highest_there >= lowest {
            return Ok(false);
        }
        let before = open(self.copy, self.highest_there).map_err(BackupError::There).map_err(Trouble::Error)?;
        Ok(!is_sealed(&before.file, before.tag.unwrap_or_default(), before.file.len()?)?)
    }

    fn segment(&mut self, number: u64, is_last: bool, is_apart: bool) -> Result<(), Trouble> {
        let Opened { file, header, tag, .. } = open(self.source, number).map_err(gone)?;
        let tag = tag.unwrap_or_default();
        let extent = if is_last && self.is_live {
            let end = last_mark(&file, tag).map_err(gone)?.unwrap_or(PAGE_BYTES as u64);
            let made = header.map_or(0, |header| u64::from(header.made_bytes));
            Extent { end, bytes: end.max(made), is_cut: true }
        } else {
            let end = file.len().map_err(gone)?;
            Extent { end, bytes: end, is_cut: false }
        };
        self.done.end = Some(Position { segment: number, offset: extent.end });
        let unfinished = unfinished_name(number);
        if self.is_there(number, &file, header, tag, &extent)? {
            self.done.segments_there += u64::from(!self.fresh.contains(&number));
            // Of a run that was cut short; it must not be given the name.
            return Ok(remove_if_there(self.copy, &unfinished)?);
        }
        let copy = match self.staged(&file, &unfinished, &extent)? {
            Some(copy) => copy,
            None => {
                remove_if_there(self.copy, &unfinished)?;
                let mut copy = self.copy.create(&unfinished)?;
                self.copy_bytes(&file, extent.end, &mut copy, &unfinished)?;
                write_zeros(&mut copy, extent.end, extent.bytes)?;
                copy.sync()?;
                copy
            }
        };
        // What the copy has is looked at, not what the source has: a full disk may just have had a batch taken back.
        let blobs = self.look(&copy, tag, &extent)?;
        self.copy_blobs(number, tag, blobs)?;
        if !is_apart {
            self.copy.rename(&unfinished, &file_name(number))?;
            self.copy.sync_directory()?;
        }
        self.done.segments += u64::from(self.fresh.insert(number));
        self.done.segment_bytes += extent.bytes;
        Ok(())
    }

    /// Whether the copy has it. One that another follows there was whole before that came: what rots in the source since is
    /// not copied over it. Of the last there, a sealed one is known by its page and its seal.
    fn is_there(
        &self,
        number: u64,
        source: &S::File,
        header: Option<SegmentHeader>,
        tag: u32,
        extent: &Extent,
    ) -> Result<bool, Trouble> {
        let copy = match open(self.copy, number) {
            Err(ReplayError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened.map_err(BackupError::There).map_err(Trouble::Error)?,
        };
        if copy.file.len()? != extent.bytes || !ends_with_zeros(&copy.file, extent)? {
            return Ok(false);
        }
        if number < self.highest_there && (copy.header == header || header.is_none()) {
            return Ok(true);
        }
        let (page, tail) = (PAGE_BYTES as u64, extent.end.saturating_sub(PAGE_BYTES as u64));
        if !self.is_same(source, &copy.file, 0, page)? || !self.is_same(source, &copy.file, tail, extent.end)? {
            return Ok(false);
        }
        let is_sealed = !extent.is_cut && is_sealed(source, tag, extent.bytes).map_err(gone)?;
        Ok(is_sealed || self.is_same(source, &copy.file, page, extent.end)?)
    }

    /// What a run that was cut short has copied, if that is whole.
    fn staged(&self, source: &S::File, name: &str, extent: &Extent) -> Result<Option<C::File>, Trouble> {
        let mut copy = match self.copy.open(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        if copy.len()? != extent.bytes
            || !ends_with_zeros(&copy, extent)?
            || !self.is_same(source, &copy, 0, extent.end)?
        {
            return Ok(None);
        }
        copy.sync()?;
        Ok(Some(copy))
    }

    fn is_same(&self, source: &S::File, copy: &C::File, mut from: u64, to: u64) -> Result<bool, Trouble> {
        let (mut ours, mut theirs) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
        while from < to {
            let want = usize::try_from(to - from).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            let ours = ours.get_mut(..want).unwrap_or_default();
            let theirs = theirs.get_mut(..want).unwrap_or_default();
            let n = self.read(source, from, ours)?;
            // What the copy does not give back is not there.
            if n != want || copy.read_passing(from, theirs).unwrap_or(0) != want || ours != theirs {
                return Ok(false);
            }
            from += want as u64;
        }
        Ok(true)
    }

    /// Reads the source without keeping in memory what was not there, and around its bad sectors.
    fn read(&self, file: &S::File, offset: u64, bytes: &mut [u8]) -> Result<usize, Trouble> {
        (self.wait)(bytes.len() as u64);
        file.read_passing(offset, bytes).or_else(|_| read_around(file, offset, bytes)).map_err(gone)
    }

    fn copy_bytes(&self, source: &S::File, end: u64, copy: &mut C::File, name: &str) -> Result<(), Trouble> {
        let (mut done, mut piece) = (0, vec![0; PIECE_BYTES]);
        while done < end {
            let want = usize::try_from(end - done).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            let n = self.read(source, done, piece.get_mut(..want).unwrap_or_default())?;
            if n == 0 {
                // It was longer a moment ago: sealed, and cut.
                return Err(Trouble::Left);
            }
            copy.write_at(done, piece.get(..n).unwrap_or_default()).map_err(at(name))?;
            copy.sync().map_err(at(name))?;
            done += n as u64;
        }
        Ok(())
    }

    /// The blobs that a segment names, with the places where it does. One that is being written must end with a whole batch.
    fn look(&mut self, copy: &C::File, tag: u32, extent: &Extent) -> Result<Vec<(BlobRef, FrameHeader)>, Trouble> {
        let (mut frames, mut blobs, mut seen) = (Frames::new(copy, tag), Vec::new(), HashMap::new());
        let mut last = None;
        while let Some(header) = frames.next()? {
            if header.has_blob()
                && let Some(meta) = frames.meta(&header)?
                && let Ok((_, Some(blob))) = decode_frame(&header, &meta)
            {
                blobs.push((blob, header));
            }
            if header.kind != Kind::Mark {
                seen.insert(header.offset, header);
            } else if header.end() < extent.end {
                seen.clear();
            } else {
                last = Some(header);
            }
        }
        if !extent.is_cut || extent.end == PAGE_BYTES as u64 {
            return Ok(blobs);
        }
        let last = last.ok_or(Trouble::Left)?;
        let meta = frames.meta(&last)?.ok_or(Trouble::Left)?;
        for named in Mark::decode(&meta).map_err(|_| Trouble::Left)?.named {
            let header = seen.get(&named.offset).filter(|header| header.encode().1 == named.header_crc);
            let is_whole = match header {
                Some(header) => frames.meta(header)?.is_some() && frames.has_content(header)?,
                None => false,
            };
            if !is_whole && self.doubts < DOUBTS_MAX {
                // A full disk has the batch taken back. If it stays so, it has rotted.
                self.doubts += 1;
                return Err(Trouble::Left);
            }
        }
        Ok(blobs)
    }

    fn copy_blobs(&mut self, number: u64, tag: u32, blobs: Vec<(BlobRef, FrameHeader)>) -> Result<(), Trouble> {
        let mut copied = false;
        for (blob, header) in blobs {
            if self.blobs.get(&blob.name.to_string()) == Some(&blob.bytes) {
                continue;
            }
            let file = match self.source.open(&blob.name.file()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.is_damage(number, tag, &header)?;
                    self.done.blobs_missing += 1;
                    continue;
                }
                opened => opened.map_err(gone)?,
            };
            self.copy_blob(blob.name, &file)?;
            copied = true;
        }
        if copied { Ok(self.copy.sync_blobs()?) } else { Ok(()) }
    }

    fn copy_blob(&mut self, name: BlobName, source: &S::File) -> Result<(), Trouble> {
        let (part, bytes) = (name.part_file(), source.len().map_err(gone)?);
        remove_if_there(self.copy, &part)?;
        let mut copy = self.copy.create(&part)?;
        self.copy_bytes(source, bytes, &mut copy, &part)?;
        copy.sync()?;
        self.copy.rename(&part, &name.file())?;
        self.blobs.insert(name.to_string(), bytes);
        self.done.blobs += 1;
        self.done.blob_bytes += bytes;
        Ok(())
    }

    /// A blob that is not there though its record still counts. Else the record has left, or was taken back.
    fn is_damage(&self, number: u64, tag: u32, header: &FrameHeader) -> Result<(), Trouble> {
        let segment = open(self.source, number).map_err(gone)?;
        let mut now = vec![0; HEADER_BYTES];
        read_around(&segment.file, header.offset, &mut now).map_err(gone)?;
        let still_there = segment.tag == Some(tag) && FrameHeader::decode(&now).as_ref() == Some(header);
        if !still_there || base(self.source).map_err(gone)?.first > number {
            return Err(Trouble::Left);
        }
        Ok(())
    }

    /// What has left the source leaves the copy, by the copy's own newest header. As [`crate::remove_left`]: blobs first.
    fn remove_left(&mut self) -> Result<(), BackupError> {
        for name in self.copy.list()?.iter().filter(|name| is_unfinished(name)) {
            self.copy.remove(name)?;
        }
        let first = base(self.copy).map_err(BackupError::There)?.first;
        let dead: Vec<u64> = numbers(self.copy)?.into_iter().filter(|number| *number < first).collect();
        if dead.is_empty() {
            return Ok(());
        }
        if !self.blobs.is_empty() {
            let replay = replay(self.copy, Depth::Records, &mut Nobody).map_err(BackupError::There)?;
            if replay.report.state() == State::Damaged {
                // The record that names one of them may be what is damaged. They do no harm.
                return Ok(());
            }
            for orphan in &replay.orphans {
                self.copy.remove(&orphan.file)?;
                self.done.removed.blobs += u64::from(orphan.whole);
            }
            if !replay.orphans.is_empty() {
                self.copy.sync_blobs()?;
            }
        }
        for number in dead {
            self.copy.remove(&file_name(number))?;
            self.done.removed.segments += 1;
        }
        Ok(self.copy.sync_directory()?)
    }
}

/// Whether the two have a segment in common: then all that came before it is the same in both, though it may have left one of them.
pub fn have_a_common_past<S: Storage, T: Storage>(one: &S, other: &T) -> Result<bool, ReplayError> {
    let theirs: HashSet<u64> = numbers(other)?.into_iter().collect();
    for number in numbers(one)?.into_iter().filter(|number| theirs.contains(number)) {
        let [one, other] = [open(one, number)?.header, open(other, number)?.header];
        let same = one.zip(other).is_some_and(|(one, other)| (one.journal, one.tag) == (other.journal, other.tag));
        if same {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the copy has nothing behind what counts. There may stand a batch that the source took back since: its disk was full.
fn ends_with_zeros<F: SegmentFile>(copy: &F, extent: &Extent) -> io::Result<bool> {
    let (mut at, mut piece) = (extent.end, vec![0; PIECE_BYTES]);
    while at < extent.bytes {
        let n = copy.read_passing(at, &mut piece)?;
        let (read, rest) = (piece.get(..n).unwrap_or_default(), extent.bytes - at);
        if n == 0 || read.iter().take(usize::try_from(rest).unwrap_or(usize::MAX)).any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += n as u64;
    }
    Ok(true)
}

fn numbers<S: Storage>(storage: &S) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = storage.list()?.iter().filter_map(|name| parse_file_name(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn remove_if_there<S: Storage>(storage: &S, name: &str) -> io::Result<()> {
    match storage.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
