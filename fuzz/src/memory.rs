//! A journal's directory in memory. Loses nothing and fails never: what a disk may do is the simulator's subject.

use restante_envelope::Timestamp;
use restante_journal::{BlobEntry, SegmentFile, Storage};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

type Bytes = Rc<RefCell<Vec<u8>>>;

#[derive(Clone, Default)]
pub struct Memory(Rc<RefCell<BTreeMap<String, Bytes>>>);

pub struct File(Bytes);

impl Memory {
    /// The same files in a directory of their own.
    pub fn fork(&self) -> Self {
        let copy = |(name, bytes): (&String, &Bytes)| (name.clone(), Rc::new(RefCell::new(bytes.borrow().clone())));
        Self(Rc::new(RefCell::new(self.0.borrow().iter().map(copy).collect())))
    }

    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        self.0.borrow_mut().insert(name.to_owned(), Rc::new(RefCell::new(bytes)));
    }

    pub fn names(&self) -> Vec<String> {
        self.0.borrow().keys().cloned().collect()
    }

    pub fn alter(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.0.borrow()[name].borrow_mut());
    }

    fn find(&self, name: &str) -> io::Result<Bytes> {
        self.0.borrow().get(name).cloned().ok_or(io::ErrorKind::NotFound.into())
    }
}

impl Storage for Memory {
    type File = File;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names().into_iter().filter(|name| !name.contains('/')).collect())
    }
    fn list_blobs(&self) -> io::Result<Vec<BlobEntry>> {
        let entry = |(name, bytes): (&String, &Bytes)| {
            let (name, bytes) = (name.strip_prefix("blob/")?.to_owned(), bytes.borrow().len() as u64);
            Some(BlobEntry { name, bytes, modified: Timestamp::default() })
        };
        Ok(self.0.borrow().iter().filter_map(entry).collect())
    }
    fn open(&self, name: &str) -> io::Result<File> {
        self.find(name).map(File)
    }
    fn create(&self, name: &str) -> io::Result<File> {
        if self.find(name).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.put(name, Vec::new());
        self.open(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let bytes = self.find(from)?;
        self.remove(from)?;
        self.0.borrow_mut().insert(to.to_owned(), bytes);
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.borrow_mut().remove(name).map(drop).ok_or(io::ErrorKind::NotFound.into())
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

impl SegmentFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.borrow().len() as u64)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.0.borrow();
        let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
        let n = from.len().min(buf.len());
        buf[..n].copy_from_slice(&from[..n]);
        Ok(n)
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (mut file, start) = (self.0.borrow_mut(), offset as usize);
        let end = start + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[start..end].copy_from_slice(bytes);
        Ok(())
    }
    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.borrow_mut().truncate(len as usize);
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}
