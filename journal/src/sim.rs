//! A simulated directory for tests: what the program sees (live) and what a power cut leaves (durable).
//!
//! At a cut, any subset of the unsynced 512-byte sectors survives, and any suffix of unsynced directory changes is lost:
//! of the directory itself with `torn/`, and of `blob/`, each for itself.

use crate::storage::{BlobEntry, SegmentFile, Storage};
use restante_envelope::Timestamp;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

const SECTOR_BYTES: usize = 512;

#[derive(Default, Clone)]
struct Image {
    live: Rc<Vec<u8>>,
    durable: Rc<Vec<u8>>,
    /// Has no name any more; if a power cut gives it one again, its bytes are what was durable.
    removed: bool,
}

/// A directory change: the file's new names are true.
#[derive(Clone)]
enum Change {
    Named(String, usize),
    Gone(String),
}

const BLOBS: &str = "blob/";

#[derive(Default)]
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
    /// Reads that touch these bytes of this image fail.
    unreadable: Option<(usize, std::ops::Range<u64>)>,
    seed: u64,
}

#[derive(Clone, Default)]
pub(crate) struct SimStorage(Rc<RefCell<Disk>>);

pub(crate) struct SimFile(Rc<RefCell<Disk>>, usize);

impl Disk {
    /// Counts a call; fails it if it is the one to fail.
    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        if self.dead_from.is_some_and(|from| from <= self.calls) {
            return Err(io::Error::other("the power is gone"));
        }
        match self.fail_at {
            Some((at, kind)) if at == self.calls => Err(io::Error::from(kind)),
            _ => Ok(()),
        }
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

    fn draw(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed >> 33
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
    pub(crate) fn fail_call(&self, n: u64, kind: io::ErrorKind) {
        let mut disk = self.0.borrow_mut();
        let at = disk.calls + n;
        disk.fail_at = Some((at, kind));
    }

    /// The process sees nothing but errors from the `n`th call on: it is as good as dead, and tidies up nothing.
    pub(crate) fn die_at(&self, n: u64) {
        let mut disk = self.0.borrow_mut();
        disk.dead_from = Some(disk.calls + n);
    }

    /// A process of its own begins: it knows nothing of syncs that failed.
    pub(crate) fn restart(&self) {
        self.0.borrow_mut().directories_failed = false;
    }

    /// The next write reaches the disk, though nobody syncs it.
    pub(crate) fn write_back_next(&self) {
        self.0.borrow_mut().eager = true;
    }

    pub(crate) fn calls(&self) -> u64 {
        self.0.borrow().calls
    }

    /// The disk holds this many bytes.
    pub(crate) fn set_room(&self, bytes: Option<usize>) {
        self.0.borrow_mut().room = bytes;
    }

    /// The same bytes on a disk of their own.
    pub(crate) fn fork(&self) -> Self {
        let disk = self.0.borrow();
        Self(Rc::new(RefCell::new(Disk {
            images: disk.images.clone(),
            live: disk.live.clone(),
            durable: disk.durable.clone(),
            changes: disk.changes.clone(),
            ..Disk::default()
        })))
    }

    /// The power goes: returns what is found afterwards.
    pub(crate) fn power_cut(&self, seed: u64) -> Self {
        let cut = self.fork();
        {
            let mut disk = cut.0.borrow_mut();
            disk.seed = seed;
            for blobs in [false, true] {
                let changes = disk.changes.iter().filter(|change| is_in_blobs(change) == blobs).count();
                let keep = disk.draw() as usize % (changes + 1);
                disk.settle(blobs, keep);
            }
            disk.live = disk.durable.clone();
            for n in 0..disk.images.len() {
                let Image { live, mut durable, removed } = disk.images[n].clone();
                if removed || live == durable {
                    disk.images[n] = Image { live: durable.clone(), durable, removed: false };
                    continue;
                }
                let bytes = Rc::make_mut(&mut durable);
                // The length may or may not have reached the disk.
                if disk.draw().is_multiple_of(2) {
                    bytes.resize(live.len(), 0);
                }
                for (at, sector) in bytes.chunks_mut(SECTOR_BYTES).enumerate() {
                    let start = at * SECTOR_BYTES;
                    let new = live.get(start..(start + sector.len()).min(live.len())).unwrap_or_default();
                    if disk.draw().is_multiple_of(2) {
                        sector[..new.len()].copy_from_slice(new);
                    }
                }
                disk.images[n] = Image { live: durable.clone(), durable, removed: false };
            }
        }
        cut
    }

    /// The disk does not give these bytes back any more.
    pub(crate) fn make_unreadable(&self, name: &str, bytes: std::ops::Range<u64>) {
        let mut disk = self.0.borrow_mut();
        let n = disk.live[name];
        disk.unreadable = Some((n, bytes));
    }

    /// Changes bytes at rest.
    pub(crate) fn alter(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.0.borrow_mut();
        let n = disk.live[name];
        change(Rc::make_mut(&mut disk.images[n].live));
        disk.images[n].durable = disk.images[n].live.clone();
    }

    /// All files, those in `torn/` and `blob/` too.
    pub(crate) fn files(&self) -> Vec<String> {
        self.0.borrow().live.keys().cloned().collect()
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let disk = self.0.borrow();
        disk.images[disk.live[name]].live.to_vec()
    }
}

impl Storage for SimStorage {
    type File = SimFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().live.keys().filter(|name| !name.contains('/')).cloned().collect())
    }

    fn list_blobs(&self) -> io::Result<Vec<BlobEntry>> {
        let disk = self.0.borrow();
        let blobs = disk.live.iter().filter_map(|(name, n)| {
            let (name, bytes) = (name.strip_prefix(BLOBS)?.to_owned(), disk.images[*n].live.len() as u64);
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
        // Its room is free again; what a power cut brings back of it is in the durable image.
        disk.images[n].live = Rc::default();
        disk.images[n].removed = true;
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
        Ok(self.0.borrow().images[self.1].live.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let disk = self.0.borrow();
        let from = disk.images[self.1].live.get(offset as usize..).unwrap_or_default();
        let n = from.len().min(buf.len());
        let bad = |(image, bytes): &(usize, std::ops::Range<u64>)| {
            *image == self.1 && offset < bytes.end && bytes.start < offset + n as u64
        };
        if disk.unreadable.as_ref().is_some_and(bad) {
            return Err(io::Error::other("bad sector"));
        }
        buf[..n].copy_from_slice(&from[..n]);
        Ok(n)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        let outcome = disk.call();
        let used: usize = disk.images.iter().map(|i| i.live.len()).sum();
        let room = disk.room.map(|room| room.saturating_sub(used));
        let live = Rc::make_mut(&mut disk.images[self.1].live);
        let (start, mut n) = (offset as usize, bytes.len());
        // A failing write leaves half of it, one that meets the end of the disk as much as fits.
        if outcome.is_err() {
            n /= 2;
        }
        let grows = (start + n).saturating_sub(live.len());
        let full = room.is_some_and(|room| grows > room);
        if full {
            n -= grows - room.unwrap_or(0);
        }
        if live.len() < start + n {
            live.resize(start + n, 0);
        }
        live[start..start + n].copy_from_slice(&bytes[..n]);
        if std::mem::take(&mut disk.eager) {
            disk.images[self.1].durable = disk.images[self.1].live.clone();
        }
        if full { Err(io::ErrorKind::StorageFull.into()) } else { outcome }
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.call()?;
        Rc::make_mut(&mut disk.images[self.1].live).truncate(len as usize);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.call()?;
        let image = &mut disk.images[self.1];
        image.durable = image.live.clone();
        Ok(())
    }
}
