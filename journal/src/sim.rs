//! A simulated directory for tests: what the program sees (live) and what a power cut leaves (durable).
//!
//! At a cut, any subset of the unsynced 512-byte sectors survives, and any suffix of unsynced directory changes is lost.

use crate::storage::{SegmentFile, Storage};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

const SECTOR_BYTES: usize = 512;

#[derive(Default, Clone)]
struct Image {
    live: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Default)]
struct Disk {
    images: Vec<Image>,
    live: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    calls: u64,
    fail_at: Option<(u64, io::ErrorKind)>,
    room: Option<usize>,
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
        match self.fail_at {
            Some((at, kind)) if at == self.calls => Err(io::Error::from(kind)),
            _ => Ok(()),
        }
    }

    fn draw(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed >> 33
    }
}

impl SimStorage {
    /// Fails the `n`th call from now on.
    pub(crate) fn fail_call(&self, n: u64, kind: io::ErrorKind) {
        let mut disk = self.0.borrow_mut();
        let at = disk.calls + n;
        disk.fail_at = Some((at, kind));
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
            ..Disk::default()
        })))
    }

    /// The power goes: returns what is found afterwards.
    pub(crate) fn power_cut(&self, seed: u64) -> Self {
        let cut = self.fork();
        {
            let mut disk = cut.0.borrow_mut();
            disk.seed = seed;
            disk.live = disk.durable.clone();
            for n in 0..disk.images.len() {
                let Image { live, mut durable } = disk.images[n].clone();
                // The length may or may not have reached the disk.
                if disk.draw().is_multiple_of(2) {
                    durable.resize(live.len(), 0);
                }
                for (at, sector) in durable.chunks_mut(SECTOR_BYTES).enumerate() {
                    let start = at * SECTOR_BYTES;
                    let new = live.get(start..(start + sector.len()).min(live.len())).unwrap_or_default();
                    if disk.draw().is_multiple_of(2) {
                        sector[..new.len()].copy_from_slice(new);
                    }
                }
                disk.images[n] = Image { live: durable.clone(), durable };
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
        change(&mut disk.images[n].live);
        disk.images[n].durable = disk.images[n].live.clone();
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let disk = self.0.borrow();
        disk.images[disk.live[name]].live.clone()
    }
}

impl Storage for SimStorage {
    type File = SimFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().live.keys().cloned().collect())
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
        disk.live.insert(name.into(), n);
        Ok(SimFile(self.0.clone(), n))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.call()?;
        let n = disk.live.remove(from).ok_or(io::ErrorKind::NotFound)?;
        disk.live.insert(to.into(), n);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.call()?;
        let n = disk.live.remove(name).ok_or(io::ErrorKind::NotFound)?;
        // Its room is free again; what a power cut brings back of it is in the durable image.
        disk.images[n].live.clear();
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.call()?;
        disk.durable = disk.live.clone();
        Ok(())
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
        let live = &mut disk.images[self.1].live;
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
        if full { Err(io::ErrorKind::StorageFull.into()) } else { outcome }
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.call()?;
        disk.images[self.1].live.truncate(len as usize);
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
