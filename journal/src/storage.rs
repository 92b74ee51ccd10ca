//! The journal's only I/O: a directory of files, behind a trait small enough that a simulated disk is a page of code.

use crate::{at, os_error};
use restante_envelope::Timestamp;
use rustix::fs::Advice;
use rustix::io::ReadWriteFlags;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::UNIX_EPOCH;

/// A directory of segments. Names are file names, or `torn/` or `blob/` and a file name.
///
/// Directories are synced one at a time, and after a sync of one that failed each later one fails too: the error concerns
/// the entries of everybody, and the kernel tells it once, perhaps not to whom it concerns.
pub trait Storage {
    /// An open file.
    type File: SegmentFile;

    /// The names of all files directly in the directory.
    fn list(&self) -> io::Result<Vec<String>>;
    /// The files in `blob/`; none if it does not exist.
    fn list_blobs(&self) -> io::Result<Vec<BlobEntry>>;
    /// Opens for reading.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Makes a file that must not exist yet, for writing. A directory that it needs is made, and not synced.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Gives a file its final name. A directory that it needs is made, and not synced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Puts the directory's entries on stable storage, and those of `torn/` in it.
    fn sync_directory(&self) -> io::Result<()>;
    /// Puts the entries of `blob/` on stable storage, and its own.
    fn sync_blobs(&self) -> io::Result<()>;
    /// An error if a sync of a directory ever failed.
    fn check_directories(&self) -> io::Result<()>;
}

/// A file in `blob/`, as the directory shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobEntry {
    /// Without the `blob/`.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// When it was last written to.
    pub modified: Timestamp,
}

/// A file in a [`Storage`].
pub trait SegmentFile {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buf` from `offset` on as far as the file goes; returns how many bytes there were.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// As [`SegmentFile::read_at`], of what lies in memory: none if that is less, or not known. Never waits for a disk.
    fn read_at_hand(&self, _offset: u64, _buf: &mut [u8]) -> Option<usize> {
        None
    }
    /// As [`SegmentFile::read_at`], for whoever reads once and in passing: what was not in memory does not stay there.
    fn read_passing(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.read_at(offset, buf)
    }
    /// Writes all of `bytes`, or fails with any part of them written.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts the file.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
    /// Returns when everything written is on stable storage.
    fn sync(&mut self) -> io::Result<()>;
    /// Whether a directory still has an entry for it. One that was removed while it was open takes bytes and syncs as before,
    /// and all of it is gone when it is closed.
    fn is_named(&self) -> io::Result<bool> {
        Ok(true)
    }
    /// Drops from memory what needs no sync, so that it is read from the disk again. Advice: not every file system takes it.
    fn forget(&self) {}
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A real directory.
#[derive(Debug, Clone)]
pub struct DirStorage {
    directory: PathBuf,
    directories: Arc<Directories>,
}

/// What became of the syncs of directories so far.
#[derive(Debug, Default)]
struct Directories {
    /// Held while one is synced: who comes next must know how it went. True when the entry of `blob/` is on stable storage.
    turn: Mutex<bool>,
    /// Why none is synced any more. Apart from the turn: small mail asks, and must not wait for it.
    failure: OnceLock<String>,
}

impl Directories {
    fn check(&self) -> io::Result<()> {
        let failed = |why| Err(io::Error::other(format!("the sync of a directory failed earlier: {why}")));
        self.failure.get().map_or(Ok(()), failed)
    }

    fn turn(&self) -> MutexGuard<'_, bool> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called in one's turn. A directory that cannot even be opened was asked nothing: no error of it is lost.
    fn sync(&self, directory: &Path) -> io::Result<()> {
        self.check()?;
        let synced = File::open(directory)?.sync_all();
        if let Err(error) = &synced {
            self.failure.get_or_init(|| format!("{}: {error}", directory.display()));
        }
        synced
    }
}

/// The right to write to a journal, for as long as the value lives. Two locks: the file's, which a stranger may remove because
/// it looks stale, and the directory's own, which goes with the journal.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
    _directory: File,
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
        Ok(Self { directory: directory.to_owned(), directories: Arc::default() })
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
        let directory = File::open(&self.directory)?;
        for file in [&file, &directory] {
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(LockError::Held),
                Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
            }
        }
        Ok(DirectoryLock { _file: file, _directory: directory })
    }

    /// Whether a process holds the right to write. Takes nothing.
    pub fn is_locked(&self) -> io::Result<bool> {
        match File::open(&self.directory)?.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Makes `torn/` or `blob/` for what is to stand in it. Its own entry is synced with those in it.
    fn make_parent(&self, path: &Path) -> io::Result<()> {
        let Some(directory) = path.parent().filter(|p| *p != self.directory && !p.exists()) else { return Ok(()) };
        match std::fs::create_dir(directory) {
            // Several messages arrive at once, and each may be the first large one.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
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

    fn list_blobs(&self) -> io::Result<Vec<BlobEntry>> {
        let entries = match std::fs::read_dir(self.path("blob")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(at("blob")(error)),
        };
        let mut blobs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at("blob"))?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // A daemon at work removed or renamed it after it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let (Ok(name), true) = (entry.file_name().into_string(), metadata.is_file()) else { continue };
            let since = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            let modified = Timestamp::from_unix_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
            blobs.push(BlobEntry { name, bytes: metadata.len(), modified });
        }
        Ok(blobs)
    }

    fn open(&self, name: &str) -> io::Result<DiskFile> {
        File::open(self.path(name)).map(DiskFile).map_err(at(name))
    }

    fn create(&self, name: &str) -> io::Result<DiskFile> {
        let path = self.path(name);
        self.make_parent(&path).map_err(at(name))?;
        OpenOptions::new().read(true).write(true).create_new(true).open(path).map(DiskFile).map_err(at(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let path = self.path(to);
        self.make_parent(&path).and_then(|()| std::fs::rename(self.path(from), path)).map_err(at(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(name)).map_err(at(name))
    }

    fn sync_directory(&self) -> io::Result<()> {
        let _turn = self.directories.turn();
        let torn = self.path("torn");
        if torn.is_dir() {
            self.directories.sync(&torn)?;
        }
        self.directories.sync(&self.directory)
    }

    fn sync_blobs(&self) -> io::Result<()> {
        let mut has_blobs = self.directories.turn();
        self.directories.sync(&self.path("blob"))?;
        if !*has_blobs {
            // Whoever made the directory, this process or one that is dead, did not sync its entry.
            self.directories.sync(&self.directory)?;
            *has_blobs = true;
        }
        Ok(())
    }

    fn check_directories(&self) -> io::Result<()> {
        self.directories.check()
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

    fn read_at_hand(&self, offset: u64, buf: &mut [u8]) -> Option<usize> {
        rustix::io::preadv2(&self.0, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT).ok()
    }

    fn read_passing(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let at_hand = self.read_at_hand(offset, buf).unwrap_or(0) as u64;
        if at_hand == buf.len() as u64 {
            return Ok(buf.len());
        }
        // Advice, no more: where the file system takes none, what is read stays. Without reading ahead, or what was read
        // ahead would look as if somebody had wanted it.
        let _advice = rustix::fs::fadvise(&self.0, 0, None, Advice::Random);
        let read = self.read_at(offset, buf);
        let len = NonZeroU64::new((buf.len() as u64).saturating_sub(at_hand));
        let _advice = rustix::fs::fadvise(&self.0, offset.saturating_add(at_hand), len, Advice::DontNeed);
        read
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn is_named(&self) -> io::Result<bool> {
        Ok(self.0.metadata()?.nlink() > 0)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn forget(&self) {
        let _advice = rustix::fs::fadvise(&self.0, 0, None, Advice::DontNeed);
    }
}

/// EMFILE and ENFILE: as passing as a full disk.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(os_error(error), Some(ENFILE | EMFILE))
}

/// The disk does not give the file: there is no such thing behind the name, or only a device that answers no more. Not among
/// these is what passes, or what another user may do.
pub(crate) fn is_lost(error: &io::Error) -> bool {
    const ENOENT: i32 = 2;
    const EIO: i32 = 5;
    const ENXIO: i32 = 6;
    const ELOOP: i32 = 40;
    const EBADMSG: i32 = 74;
    const EUCLEAN: i32 = 117;
    matches!(os_error(error), Some(ENOENT | EIO | ENXIO | ELOOP | EBADMSG | EUCLEAN))
}
