//! Two disks for the journal: one that forgets and one that remembers in memory. They know no sync, no error and no
//! directory: what is measured over them is the journal's own work.

use restante_journal::{BlobEntry, SegmentFile, Storage};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::io;
use std::rc::Rc;

type Bytes = Rc<RefCell<Vec<u8>>>;

/// Remembers what is written, or nothing of it. A clone is the same disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    remembers: bool,
    files: Rc<RefCell<BTreeMap<String, Bytes>>>,
}

impl Disk {
    /// Takes all and keeps nothing; for writing alone.
    pub(crate) fn forgetful() -> Self {
        Self::default()
    }

    /// Keeps all in memory.
    pub(crate) fn in_memory() -> Self {
        Self { remembers: true, ..Self::default() }
    }
}

/// One of its files.
#[derive(Debug)]
pub(crate) struct DiskFile {
    remembers: bool,
    bytes: Bytes,
}

impl Storage for Disk {
    type File = DiskFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.borrow().keys().cloned().collect())
    }
    fn list_blobs(&self) -> io::Result<Vec<BlobEntry>> {
        Ok(Vec::new())
    }
    fn open(&self, name: &str) -> io::Result<DiskFile> {
        let bytes = self.files.borrow().get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(DiskFile { remembers: self.remembers, bytes })
    }
    fn create(&self, name: &str) -> io::Result<DiskFile> {
        let bytes = Bytes::default();
        if self.remembers {
            self.files.borrow_mut().insert(name.to_owned(), Rc::clone(&bytes));
        }
        Ok(DiskFile { remembers: self.remembers, bytes })
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files.borrow_mut();
        let moved = files.remove(from);
        files.extend(moved.map(|bytes| (to.to_owned(), bytes)));
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.borrow_mut().remove(name);
        Ok(())
    }
    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }
    fn sync_blobs(&self) -> io::Result<()> {
        Ok(())
    }
    fn check_directories(&self) -> io::Result<()> {
        Ok(())
    }
}

impl SegmentFile for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.borrow().len() as u64)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.bytes.borrow();
        let rest = bytes.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let read = rest.len().min(buf.len());
        buf[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }
    fn write_at(&mut self, offset: u64, written: &[u8]) -> io::Result<()> {
        black_box(written);
        if self.remembers {
            let (mut bytes, from) = (self.bytes.borrow_mut(), usize::try_from(offset).unwrap());
            let end = bytes.len().max(from + written.len());
            bytes.resize(end, 0);
            bytes[from..from + written.len()].copy_from_slice(written);
        }
        Ok(())
    }
    fn truncate(&mut self, len: u64) -> io::Result<()> {
        if self.remembers {
            self.bytes.borrow_mut().truncate(usize::try_from(len).unwrap());
        }
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}
