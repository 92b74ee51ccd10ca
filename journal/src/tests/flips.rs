//! One byte wrong, everywhere in the golden journal of two hundred messages: it is seen, costs one message at most, and that
//! one is named. The disk serves the wrong byte and copies nothing; no read asks for more than a piece of a blob beyond the end of its file.

use super::fixtures::{Told, directory, frames};
use super::*;
use crate::header::PAGE_BYTES;
use crate::storage::{BlobEntry, SegmentFile, Storage};
use crate::{DirStorage, PIECE_BYTES};
use std::cell::Cell;
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::rc::Rc;

/// A directory in memory with one byte that is not as written.
#[derive(Clone)]
struct Flipped {
    files: Rc<BTreeMap<String, Rc<Vec<u8>>>>,
    flip: Rc<(Cell<usize>, Cell<usize>, Cell<u8>)>,
    /// Bytes asked for beyond the end of a file, at most.
    excess: Rc<Cell<usize>>,
}

struct File {
    bytes: Rc<Vec<u8>>,
    nth: usize,
    disk: Flipped,
}

impl Flipped {
    fn good() -> Self {
        let storage = DirStorage::open(&directory("good")).unwrap();
        let names = storage.list().unwrap().into_iter();
        let blobs = storage.list_blobs().unwrap().into_iter().map(|blob| format!("blob/{}", blob.name));
        let read = |name: String| (name.clone(), Rc::new(std::fs::read(directory("good").join(name)).unwrap()));
        let files = names.filter(|name| name.ends_with(".rj")).chain(blobs).map(read).collect();
        Self { files: Rc::new(files), flip: Rc::default(), excess: Rc::default() }
    }

    fn refuse<T>() -> io::Result<T> {
        Err(io::Error::other("reading never writes"))
    }
}

impl Storage for Flipped {
    type File = File;
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.keys().filter(|name| !name.contains('/')).cloned().collect())
    }
    fn list_blobs(&self) -> io::Result<Vec<BlobEntry>> {
        let blobs = self.files.iter().filter_map(|(name, bytes)| {
            let (name, bytes) = (name.strip_prefix("blob/")?.to_owned(), bytes.len() as u64);
            Some(BlobEntry { name, bytes, modified: Timestamp::default() })
        });
        Ok(blobs.collect())
    }
    fn open(&self, name: &str) -> io::Result<File> {
        let found = self.files.iter().enumerate().find(|(_, (file, _))| *file == name);
        let (nth, (_, bytes)) = found.ok_or(ErrorKind::NotFound)?;
        Ok(File { bytes: bytes.clone(), nth, disk: self.clone() })
    }
    fn create(&self, _: &str) -> io::Result<File> {
        Self::refuse()
    }
    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Self::refuse()
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        Self::refuse()
    }
    fn sync_directory(&self) -> io::Result<()> {
        Self::refuse()
    }
    fn sync_blobs(&self) -> io::Result<()> {
        Self::refuse()
    }
    fn check_directories(&self) -> io::Result<()> {
        Ok(())
    }
}

impl SegmentFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let offset = offset as usize;
        let from = self.bytes.get(offset..).unwrap_or_default();
        self.disk.excess.set(self.disk.excess.get().max(buf.len().saturating_sub(from.len())));
        let n = from.len().min(buf.len());
        buf[..n].copy_from_slice(&from[..n]);
        let (file, at, xor) = &*self.disk.flip;
        if file.get() == self.nth && (offset..offset + n).contains(&at.get()) {
            buf[at.get() - offset] ^= xor.get();
        }
        Ok(n)
    }
    fn write_at(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Flipped::refuse()
    }
    fn truncate(&mut self, _: u64) -> io::Result<()> {
        Flipped::refuse()
    }
    fn sync(&mut self) -> io::Result<()> {
        Flipped::refuse()
    }
}

/// Bytes of a file that are tried when there is no time for all: each of the page's copies, and in each segment the first
/// frame of every kind, with padding; of all else every 127th, and the last.
fn telling(name: &str, bytes: &[u8]) -> BTreeSet<usize> {
    let mut telling: BTreeSet<usize> = (0..bytes.len()).step_by(127).chain([bytes.len() - 1]).collect();
    if name.ends_with(".rj") {
        telling.extend((0..96).chain(2048..2144).chain([2047, PAGE_BYTES - 1]));
        let mut kinds: BTreeMap<u8, u8> = BTreeMap::new();
        for frame in frames(bytes) {
            let seen = kinds.entry(frame.kind.code() | u8::from(frame.has_blob()) << 7).or_default();
            *seen += 1;
            if *seen <= 1 {
                telling.extend(frame.offset as usize..frame.end() as usize);
            }
        }
    }
    telling
}

fn flip(which: impl Fn(&str, &[u8]) -> BTreeSet<usize>) -> usize {
    let disk = Flipped::good();
    let read = || {
        let mut told = Told::default();
        let replay = replay(&disk, Depth::Everything, &mut told).unwrap();
        (replay, told)
    };
    let whole: HashSet<TransactionId> = read().1.intact.into_iter().collect();
    assert_eq!(whole.len(), 200);
    let (file, byte, xor) = &*disk.flip;
    let mut flips = 0;
    for (nth, (name, bytes)) in disk.files.iter().enumerate() {
        file.set(nth);
        let next = disk.files.values().nth(nth + 1);
        for at in which(name, bytes) {
            byte.set(at);
            for by in [0x01, 0xff] {
                xor.set(by);
                let ((found, told), what) = (read(), format!("{name} byte {at} xor {by:#x}"));
                let in_flight = nth + 1 == disk.files.len() && at >= unproven(bytes);
                let expected = match next.map(|next| previous_bytes(next)) {
                    // Behind the last proof it may be a crash.
                    None if in_flight => State::Torn,
                    // What stands behind the length that the next segment records never counts (M).
                    Some(counted) if name.ends_with(".rj") && at >= counted => State::Clean,
                    // Everywhere else it is exit 9.
                    _ => State::Damaged,
                };
                assert_eq!(found.report.state(), expected, "{what}");
                let intact: HashSet<_> = told.intact.into_iter().collect();
                let lost: Vec<_> = whole.difference(&intact).collect();
                assert!(lost.len() <= 1 && intact.is_subset(&whole), "{what}: {lost:?}");
                let mut named = found.report.damage.iter().chain(&found.report.torn).flat_map(|place| &place.ids);
                assert!(lost.iter().all(|id| named.any(|named| named == *id)), "{what}: lost without a name");
                flips += 1;
            }
        }
    }
    assert!(disk.excess.get() <= PIECE_BYTES, "{}", disk.excess.get());
    flips
}

/// Where the batch of the last mark starts: from there on nothing is proven.
fn unproven(bytes: &[u8]) -> usize {
    let mut marks = frames(bytes).into_iter().filter(|frame| frame.kind == crate::Kind::Mark);
    let at = marks.next_back().unwrap().meta_offset() as usize;
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

/// How much of the segment before counts, as the header of this one says.
fn previous_bytes(next: &[u8]) -> usize {
    u64::from_le_bytes(next[64..72].try_into().unwrap()) as usize
}

#[test]
fn a_wrong_byte_in_any_structure_of_a_golden_journal_costs_one_named_message_at_most() {
    assert!(flip(telling) > 10_000);
}

#[test]
#[ignore = "every byte of the journal, twice: minutes"]
fn a_wrong_byte_anywhere_in_a_golden_journal_costs_one_named_message_at_most() {
    let flips = flip(|_, bytes| (0..bytes.len()).collect());
    assert!(flips > 400_000, "{flips}");
}
