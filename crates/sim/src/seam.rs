//! The storage that the simulated process writes to: the simulated disk, or one that breaks a promise of [`Storage`] on
//! purpose, for the mutation tests. Changes nothing else.

use crate::Broken;
use restante_journal::sim::{SimFile, SimStorage};
use restante_journal::{BlobEntry, SegmentFile, Storage};
use std::cell::Cell;
use std::io;

/// The disk, seen through what is broken.
#[derive(Debug, Clone)]
pub(crate) struct Seam {
    pub(crate) disk: SimStorage,
    pub(crate) broken: Broken,
}

/// A file, seen through what is broken.
#[derive(Debug)]
pub(crate) struct SeamFile {
    file: SimFile,
    broken: Broken,
    /// Not made by us.
    is_old: bool,
    owes_sync: bool,
    gave_up: Cell<bool>,
}

impl Seam {
    fn file(&self, file: SimFile, is_old: bool) -> SeamFile {
        SeamFile { file, broken: self.broken, is_old, owes_sync: false, gave_up: Cell::new(false) }
    }
}

impl Storage for Seam {
    type File = SeamFile;

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn list_blobs(&self) -> io::Result<Vec<BlobEntry>> {
        self.disk.list_blobs()
    }
    fn open(&self, name: &str) -> io::Result<SeamFile> {
        self.disk.open(name).map(|file| self.file(file, true))
    }
    fn create(&self, name: &str) -> io::Result<SeamFile> {
        self.disk.create(name).map(|file| self.file(file, false))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_directory(&self) -> io::Result<()> {
        if self.broken == Broken::NoDirectorySync { Ok(()) } else { self.disk.sync_directory() }
    }
    fn sync_blobs(&self) -> io::Result<()> {
        if self.broken == Broken::NoDirectorySync { Ok(()) } else { self.disk.sync_blobs() }
    }
    fn check_directories(&self) -> io::Result<()> {
        self.disk.check_directories()
    }
}

impl SegmentFile for SeamFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if self.gave_up.get() {
            return Err(io::Error::other("not after an error"));
        }
        let read = self.file.read_at(offset, buf);
        self.gave_up.set(read.is_err() && self.broken == Broken::GivesUpAtBadSector);
        read
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // A driver that answers first and syncs then cannot be written: what an answer is made of comes out of a commit.
        // So the sync itself is late, by as much as such a driver would be.
        if std::mem::take(&mut self.owes_sync) {
            self.file.sync()?;
        }
        self.file.write_at(offset, bytes)
    }
    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.file.truncate(if self.broken == Broken::CutsShort { len - 8 } else { len })
    }
    fn forget(&self) {
        if self.broken != Broken::TrustsMemory {
            self.file.forget();
        }
    }
    fn sync(&mut self) -> io::Result<()> {
        match self.broken {
            Broken::AnswersBeforeSync => {
                self.owes_sync = true;
                Ok(())
            }
            Broken::TrustsMemory if self.is_old => Ok(()),
            Broken::RetriesSync => self.file.sync().or_else(|_| self.file.sync()),
            _ => self.file.sync(),
        }
    }
}
