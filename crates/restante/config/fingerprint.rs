//! Whether a file is still the one that was read. Opens nothing: what only looks changed is read once more, by whoever asked.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What tells that a file is another one, or has changed, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_ns: (i64, i64),
    /// Also of its permissions: a file that could not be read may be readable now.
    changed_ns: (i64, i64),
}

impl Fingerprint {
    /// None if there is no such file, or it cannot be looked at.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.size(),
            modified_ns: (meta.mtime(), meta.mtime_nsec()),
            changed_ns: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}
