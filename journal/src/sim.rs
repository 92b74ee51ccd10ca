//! A simulated directory: what a program sees (live) and what a power cut leaves (durable). Refuses to be in the product.
//!
//! At a cut, any subset of the unsynced 512-byte sectors survives, and any suffix of unsynced directory changes is lost:
//! of the directory itself with `torn/`, and of `blob/`, each for itself.
//!
//! A sync that fails does what Linux does: some of the sectors reach the disk, and the others are taken for clean. What
//! was written stays to be read until it is dropped from memory ([`SimStorage::evict`]), and no later sync, though it
//! returns without an error, brings it to the disk; only writing it again and syncing that does.
//!
//! It is here behind the feature `sim`, not in `crates/sim` with the rest of the simulator: the unit tests of this crate,
//! which reach into its private parts, run on it too, and a test build of a crate is another crate than the one that
//! `crates/sim` would implement [`Storage`] for. Nothing but `crates/sim` turns the feature on (`tests/tidy.rs` looks).

use crate::storage::{BlobEntry, SegmentFile, Storage};
use restante_envelope::Timestamp;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::rc::Rc;

const SECTOR_BYTES: usize = 512;
/// More than any block that is read for itself.
const LONG_READ_BYTES: usize = 64 << 10;

/// A file's bytes. What is durable is told by what differs: a segment is a megabyte, and a batch of it a few sectors.
#[derive(Debug, Default, Clone)]
struct Image {
    live: Rc<Vec<u8>>,
    /// Of the sectors written since the last sync, what is durable in them; fewer bytes than a sector behind the end.
    unsynced: BTreeMap<usize, Box<[u8]>>,
    /// Of the sectors that a failed sync did not bring to the disk, what is durable in them.
    lost: BTreeMap<usize, Box<[u8]>>,
    durable_len: usize,
    /// Has no name any more; if a power cut gives it one again, its bytes are these, which were durable.
    removed: Option<Rc<Vec<u8>>>,
}

impl Image {
    /// Keeps what is durable of these bytes, which are about to change.
    fn keep(&mut self, bytes: Range<usize>) {
        for sector in bytes.start / SECTOR_BYTES..bytes.end.div_ceil(SECTOR_BYTES) {
            let start = sector * SECTOR_BYTES;
            let end = (start + SECTOR_BYTES).min(self.durable_len).min(self.live.len());
            let durable = || self.live.get(start..end).unwrap_or_default().into();
            let lost = self.lost.remove(&sector);
            self.unsynced.entry(sector).or_insert_with(|| lost.unwrap_or_else(durable));
        }
    }

    fn write(&mut self, start: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = start + bytes.len();
        // A hole is written with the bytes behind it.
        self.keep(start.min(self.live.len())..end);
        let live = Rc::make_mut(&mut self.live);
        if live.len() < end {
            live.resize(end, 0);
        }
        overwrite(live, start, bytes);
    }

    fn truncate(&mut self, len: usize) {
        self.keep(len..self.live.len().max(len));
        Rc::make_mut(&mut self.live).truncate(len);
    }

    fn sync(&mut self) {
        self.unsynced.clear();
        self.durable_len = self.live.len();
    }

    /// What did not reach the disk will not: it is taken for clean.
    fn sync_fails(&mut self, mut reaches: impl FnMut() -> bool) {
        self.lost.extend(std::mem::take(&mut self.unsynced).into_iter().filter(|_| !reaches()));
    }

    /// Clean sectors are dropped from memory: those that a failed sync left behind are read from the disk, as they were.
    fn evict(&mut self) {
        if !self.lost.is_empty() {
            let live = Rc::make_mut(&mut self.live);
            self.lost.iter().for_each(|(sector, durable)| put_back(live, *sector, durable));
            self.lost.clear();
        }
    }

    fn durable(&self) -> Rc<Vec<u8>> {
        if let Some(durable) = &self.removed {
            return durable.clone();
        }
        self.after_cut(self.durable_len, |_| false)
    }

    /// What is found after a power cut that the written bytes of some sectors survive.
    fn after_cut(&self, len: usize, mut survives: impl FnMut(usize) -> bool) -> Rc<Vec<u8>> {
        if self.unsynced.is_empty() && self.lost.is_empty() && len == self.live.len() {
            return self.live.clone();
        }
        let mut bytes = self.live.to_vec();
        bytes.resize(len.max(self.durable_len).max(self.live.len()), 0);
        for (sector, durable) in &self.unsynced {
            if sector * SECTOR_BYTES >= self.live.len() || !survives(*sector) {
                put_back(&mut bytes, *sector, durable);
            }
        }
        self.lost.iter().for_each(|(sector, durable)| put_back(&mut bytes, *sector, durable));
        bytes.truncate(len);
        Rc::new(bytes)
    }
}

/// Makes a sector what is durable of it; zeros behind that.
fn put_back(bytes: &mut [u8], sector: usize, durable: &[u8]) {
    let start = (sector * SECTOR_BYTES).min(bytes.len());
    let end = (start + SECTOR_BYTES).min(bytes.len());
    bytes.get_mut(start..end).unwrap_or_default().fill(0);
    overwrite(bytes, start, durable);
}

fn overwrite(bytes: &mut [u8], start: usize, with: &[u8]) {
    let len = bytes.len();
    let room = bytes.get_mut(start.min(len)..(start + with.len()).min(len)).unwrap_or_default();
    room.iter_mut().zip(with).for_each(|(byte, new)| *byte = *new);
}

/// A directory change: the file's new names are true.
#[derive(Debug, Clone)]
enum Change {
    Named(String, usize),
    Gone(String),
}

const BLOBS: &str = "blob/";

#[derive(Debug, Default)]
struct Disk {
    images: Vec<Image>,
    live: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    /// Not synced yet, in order; a rename is a group that is true as a whole.
    changes: Vec<Vec<Change>>,
    calls: u64,
    fail_at: Option<(u64, io::ErrorKind)>,
    /// No call works from this one on.
    dead_from: Option<u64>,
    /// The kernel writes the next write back at once.
    eager: bool,
    room: Option<usize>,
    /// A sync of a directory failed.
    directories_failed: bool,
    /// Reads that touch these bytes of these images fail.
    unreadable: Vec<(usize, Range<u64>)>,
    /// Where reads of many sectors began.
    long_reads: Vec<u64>,
    seed: u64,
}

/// The directory. A clone is the same one.
#[derive(Debug, Clone, Default)]
pub struct SimStorage(Rc<RefCell<Disk>>);

/// A file in it.
#[derive(Debug)]
pub struct SimFile(Rc<RefCell<Disk>>, usize);

impl Disk {
    /// Counts a call; fails it if it is the one to fail.
    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        if self.is_dead() {
            return Err(io::Error::other("the power is gone"));
        }
        match self.fail_at {
            Some((at, kind)) if at == self.calls => Err(io::Error::from(kind)),
            _ => Ok(()),
        }
    }

    fn is_dead(&self) -> bool {
        self.dead_from.is_some_and(|from| from <= self.calls)
    }

    fn change(&mut self, change: Vec<Change>) {
        apply(&mut self.live, &change);
        self.changes.push(change);
    }

    /// Puts the first `keep` unsynced changes of one of the two directories on stable storage, and drops the others.
    fn settle(&mut self, blobs: bool, keep: usize) {
        let of_other = |change: &Vec<Change>| is_in_blobs(change) != blobs;
        let (other, mine): (Vec<_>, Vec<_>) = std::mem::take(&mut self.changes).into_iter().partition(of_other);
        self.changes = other;
        mine.iter().take(keep).for_each(|change| apply(&mut self.durable, change));
    }

    /// Syncs one of the two directories. What a failed sync of blobs concerned never gets to the disk.
    fn sync(&mut self, blobs: bool) -> io::Result<()> {
        self.check_directories()?;
        if let Err(error) = self.call() {
            self.directories_failed = true;
            self.changes.retain(|change| !(blobs && is_in_blobs(change)));
            return Err(error);
        }
        self.settle(blobs, usize::MAX);
        Ok(())
    }

    fn check_directories(&self) -> io::Result<()> {
        if self.directories_failed { Err(io::Error::other("a directory failed earlier")) } else { Ok(()) }
    }

    fn draw(&mut self) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.seed >> 33).unwrap_or(0)
    }

    fn power_fails(&mut self, seed: u64) {
        self.seed = seed;
        for blobs in [false, true] {
            let changes = self.changes.iter().filter(|change| is_in_blobs(change) == blobs).count();
            let keep = self.draw() % (changes + 1);
            self.settle(blobs, keep);
        }
        self.live = self.durable.clone();
        let mut images = std::mem::take(&mut self.images);
        for image in &mut images {
            let found = match &image.removed {
                Some(_) => image.durable(),
                None => {
                    // The length may or may not have reached the disk.
                    let lengths = [image.durable_len, image.live.len()];
                    let len = if self.draw().is_multiple_of(2) { lengths[1] } else { lengths[0] };
                    image.after_cut(len, |_| self.draw().is_multiple_of(2))
                }
            };
            *image = Image { durable_len: found.len(), live: found, ..Image::default() };
        }
        self.images = images;
    }

    fn image(&mut self, n: usize) -> io::Result<&mut Image> {
        self.images.get_mut(n).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn named(&self, name: &str) -> Option<&Image> {
        self.images.get(*self.live.get(name)?)
    }

    fn used(&self) -> usize {
        self.images.iter().map(|image| image.live.len()).sum()
    }
}

fn apply(names: &mut BTreeMap<String, usize>, change: &[Change]) {
    for change in change {
        match change {
            Change::Named(name, n) => names.insert(name.clone(), *n),
            Change::Gone(name) => names.remove(name),
        };
    }
}

fn is_in_blobs(change: &[Change]) -> bool {
    change.iter().any(|(Change::Named(name, _) | Change::Gone(name))| name.starts_with(BLOBS))
}

impl SimStorage {
    /// Fails the `n`th call from now on.
    pub fn fail_call(&self, n: u64, kind: io::ErrorKind) {
        let mut disk = self.0.borrow_mut();
        let at = disk.calls + n;
        disk.fail_at = Some((at, kind));
    }

    /// The process sees nothing but errors from the `n`th call on: it is as good as dead, and tidies up nothing.
    pub fn die_at(&self, n: u64) {
        let mut disk = self.0.borrow_mut();
        disk.dead_from = Some(disk.calls + n);
    }

    /// Whether that call has come.
    pub fn is_dead(&self) -> bool {
        self.0.borrow().is_dead()
    }

    /// A process of its own begins: it knows nothing of syncs that failed.
    pub fn restart(&self) {
        self.0.borrow_mut().directories_failed = false;
    }

    /// As [`SimStorage::restart`], and nothing that was to fail or to die does any more.
    pub fn revive(&self) {
        let mut disk = self.0.borrow_mut();
        (disk.directories_failed, disk.fail_at, disk.dead_from, disk.eager) = (false, None, None, false);
    }

    /// Memory runs short: what is clean is read from the disk from now on.
    pub fn evict(&self) {
        self.0.borrow_mut().images.iter_mut().for_each(Image::evict);
    }

    /// The next write reaches the disk, though nobody syncs it.
    pub fn write_back_next(&self) {
        self.0.borrow_mut().eager = true;
    }

    /// Calls so far. Reads are none: they change nothing.
    pub fn calls(&self) -> u64 {
        self.0.borrow().calls
    }

    /// The disk holds this many bytes.
    pub fn set_room(&self, bytes: Option<usize>) {
        self.0.borrow_mut().room = bytes;
    }

    /// Bytes that it holds now.
    pub fn used(&self) -> usize {
        self.0.borrow().used()
    }

    /// The same bytes on a disk of their own.
    pub fn fork(&self) -> Self {
        let disk = self.0.borrow();
        Self(Rc::new(RefCell::new(Disk {
            images: disk.images.clone(),
            live: disk.live.clone(),
            durable: disk.durable.clone(),
            changes: disk.changes.clone(),
            unreadable: disk.unreadable.clone(),
            ..Disk::default()
        })))
    }

    /// The power goes: returns what is found afterwards.
    pub fn power_cut(&self, seed: u64) -> Self {
        let cut = self.fork();
        cut.power_fails(seed);
        cut
    }

    /// The power goes; this is what is found afterwards.
    pub fn power_fails(&self, seed: u64) {
        self.0.borrow_mut().power_fails(seed);
    }

    /// The disk does not give these bytes back any more. Without effect if there is no such file.
    pub fn make_unreadable(&self, name: &str, bytes: Range<u64>) {
        let mut disk = self.0.borrow_mut();
        let image = disk.live.get(name).copied();
        disk.unreadable.extend(image.map(|image| (image, bytes)));
    }

    /// Where the reads of many sectors began since this was asked last, in whatever file.
    pub fn take_long_reads(&self) -> Vec<u64> {
        std::mem::take(&mut self.0.borrow_mut().long_reads)
    }

    /// Changes bytes at rest. Without effect if there is no such file.
    pub fn alter(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.0.borrow_mut();
        let Some(n) = disk.live.get(name).copied() else { return };
        if let Ok(image) = disk.image(n) {
            change(Rc::make_mut(&mut image.live));
            image.sync();
        }
    }

    /// All files, those in `torn/` and `blob/` too.
    pub fn files(&self) -> Vec<String> {
        self.0.borrow().live.keys().cloned().collect()
    }

    /// What a file holds; nothing if there is none.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.0.borrow().named(name).map(|image| image.live.to_vec()).unwrap_or_default()
    }
}

impl Storage for SimStorage {
    type File = SimFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().live.keys().filter(|name| !name.contains('/')).cloned().collect())
    }

    fn list_blobs(&self) -> io::Result<Vec<BlobEntry>> {
        let disk = self.0.borrow();
        let blobs = disk.live.keys().filter_map(|file| {
            let (name, bytes) = (file.strip_prefix(BLOBS)?.to_owned(), disk.named(file)?.live.len() as u64);
            Some(BlobEntry { name, bytes, modified: Timestamp::default() })
        });
        Ok(blobs.collect())
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let n = self.0.borrow().live.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(SimFile(self.0.clone(), n))
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut disk = self.0.borrow_mut();
        disk.call()?;
        if disk.live.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        disk.images.push(Image::default());
        let n = disk.images.len() - 1;
        disk.change(vec![Change::Named(name.into(), n)]);
        Ok(SimFile(self.0.clone(), n))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.call()?;
        let n = disk.live.get(from).copied().ok_or(io::ErrorKind::NotFound)?;
        disk.change(vec![Change::Gone(from.into()), Change::Named(to.into(), n)]);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.call()?;
        let n = disk.live.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        disk.change(vec![Change::Gone(name.into())]);
        // Its room is free again; what a power cut brings back of it is what was durable.
        let image = disk.image(n)?;
        let durable = image.durable();
        *image = Image { removed: Some(durable), ..Image::default() };
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.0.borrow_mut().sync(false)
    }

    fn sync_blobs(&self) -> io::Result<()> {
        self.0.borrow_mut().sync(true)
    }

    fn check_directories(&self) -> io::Result<()> {
        self.0.borrow().check_directories()
    }
}

impl SegmentFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.borrow_mut().image(self.1)?.live.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.0.borrow_mut();
        let live = disk.image(self.1)?.live.clone();
        let from = live.get(place(offset)..).unwrap_or_default();
        let n = from.len().min(buf.len());
        if n > LONG_READ_BYTES {
            disk.long_reads.push(offset);
        }
        let bad = |(image, bytes): &(usize, Range<u64>)| {
            *image == self.1 && offset < bytes.end && bytes.start < offset + n as u64
        };
        if disk.unreadable.iter().any(bad) {
            return Err(io::Error::other("bad sector"));
        }
        overwrite(buf, 0, from);
        Ok(n)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        let outcome = disk.call();
        let room = disk.room.map(|room| room.saturating_sub(disk.used()));
        // A failing write leaves some of it, one that meets the end of the disk as much as fits.
        let mut n = bytes.len();
        if outcome.is_err() {
            n = n * (disk.draw() % 5) / 4;
        }
        let eager = std::mem::take(&mut disk.eager);
        let image = disk.image(self.1)?;
        let grows = (place(offset) + n).saturating_sub(image.live.len());
        let full = room.is_some_and(|room| grows > room);
        if full {
            n -= grows - room.unwrap_or(0);
        }
        image.write(place(offset), bytes.get(..n).unwrap_or_default());
        if eager {
            image.sync();
        }
        if full { Err(io::ErrorKind::StorageFull.into()) } else { outcome }
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.call()?;
        disk.image(self.1)?.truncate(place(len));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        if let Err(error) = disk.call() {
            // A process that is dead asked for nothing.
            if !disk.is_dead() {
                let mut image = std::mem::take(disk.image(self.1)?);
                image.sync_fails(|| disk.draw().is_multiple_of(2));
                *disk.image(self.1)? = image;
            }
            return Err(error);
        }
        disk.image(self.1)?.sync();
        Ok(())
    }

    fn forget(&self) {
        if let Ok(image) = self.0.borrow_mut().image(self.1) {
            image.evict();
        }
    }
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
