//! The journal's only I/O: a directory of files, behind a trait small enough that a simulated disk is a page of code.

use crate::at;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A directory of segments. Names are file names, or `torn/` and a file name.
pub trait Storage {
    /// An open file.
    type File: SegmentFile;

    /// The names of all files directly in the directory.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens for reading.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Makes a file that must not exist yet, for writing.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Gives a file its final name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Puts the directory's entries on stable storage, and those of `torn/` in it.
    fn sync_directory(&self) -> io::Result<()>;
}

/// A file in a [`Storage`].
pub trait SegmentFile {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buf` from `offset` on as far as the file goes; returns how many bytes there were.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `bytes`, or fails with any part of them written.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts the file.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
    /// Returns when everything written is on stable storage.
    fn sync(&mut self) -> io::Result<()>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A real directory.
#[derive(Debug, Clone)]
pub struct DirStorage {
    directory: PathBuf,
}

/// The right to write to a journal, for as long as the value lives.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

/// Why the right to write was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("another process holds the journal")]
    Held,
    /// The lock file could not be opened or locked.
    #[error("cannot lock the journal")]
    Io(#[from] io::Error),
}

impl DirStorage {
    /// The journal in `directory`, which must exist.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(directory)?;
        if !metadata.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// Makes the directory and those above it where they are missing, and each entry durable, then opens it.
    pub fn create_directory(directory: &Path) -> io::Result<Self> {
        let mut missing = directory;
        let mut made = Vec::new();
        while !missing.is_dir() {
            made.push(missing);
            missing = parent(missing);
        }
        std::fs::create_dir_all(directory)?;
        for made in made {
            File::open(parent(made))?.sync_all()?;
        }
        Self::open(directory)
    }

    /// Takes the right to write, or says that another process has it.
    pub fn lock(&self) -> Result<DirectoryLock, LockError> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(self.directory.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(DirectoryLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LockError::Held),
            Err(TryLockError::Error(error)) => Err(LockError::Io(error)),
        }
    }

    /// Whether a process holds the right to write. Takes nothing.
    pub fn is_locked(&self) -> io::Result<bool> {
        let file = match File::open(self.directory.join("lock")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// The directory that holds the entry of `path`.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Storage for DirStorage {
    type File = DiskFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<DiskFile> {
        File::open(self.path(name)).map(DiskFile).map_err(at(name))
    }

    fn create(&self, name: &str) -> io::Result<DiskFile> {
        let path = self.path(name);
        if let Some(directory) = path.parent().filter(|p| *p != self.directory && !p.exists()) {
            std::fs::create_dir(directory).map_err(at(name))?;
            self.sync_directory()?;
        }
        OpenOptions::new().read(true).write(true).create_new(true).open(path).map(DiskFile).map_err(at(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to)).map_err(at(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(name)).map_err(at(name))
    }

    fn sync_directory(&self) -> io::Result<()> {
        if let Ok(torn) = File::open(self.directory.join("torn")) {
            torn.sync_all()?;
        }
        File::open(&self.directory)?.sync_all()
    }
}

/// A file on disk.
#[derive(Debug)]
pub struct DiskFile(File);

impl SegmentFile for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, mut buf: &mut [u8]) -> io::Result<usize> {
        let wanted = buf.len();
        let mut offset = offset;
        while !buf.is_empty() {
            match self.0.read_at(buf, offset) {
                Ok(0) => break,
                Ok(n) => {
                    offset += n as u64;
                    buf = buf.get_mut(n..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(wanted - buf.len())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}
