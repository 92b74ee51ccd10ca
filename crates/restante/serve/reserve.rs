//! Room kept on the disk for what becomes of mail that is here already: a file of nothing, given back when a settlement finds the disk
//! full. The floor (see [`super::space`]) keeps our own mail from filling the disk; this is for disks that others fill. Without it a
//! start on such a disk could not even begin a segment. Holds nothing and proves nothing: it may be removed at any time.

use restante_relay::Disk;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

const NAME: &str = "reserve";
/// Some forty thousand settlements: enough for an operator to make room, or for settled mail to leave.
const BYTES: u64 = 16 << 20;
/// Of a small disk no more than this part.
const PART: u64 = 64;
/// Less is not worth a file: the segment's own reserve is as large.
const BYTES_MIN: u64 = 512 << 10;

/// The file, whether or not it is there.
#[derive(Debug)]
pub(crate) struct Reserve(PathBuf);

impl Reserve {
    /// In the journal's directory.
    pub(crate) fn in_directory(directory: &Path) -> Self {
        Self(directory.join(NAME))
    }

    /// Makes it, if it is not there and there is room for it above `floor_bytes`. That it cannot be made is no error: a file
    /// system that does not allocate ahead has no use for it.
    pub(crate) fn keep(&self, disk: Disk, floor_bytes: u64) {
        let bytes = BYTES.min(disk.bytes / PART);
        let has_room = disk.free_bytes >= floor_bytes.saturating_add(bytes);
        if bytes < BYTES_MIN || !has_room || self.0.exists() {
            return;
        }
        if let Err(error) = self.make(bytes) {
            tracing::debug!("no room is kept for settlements: {error}");
            let _nothing_of_it_stays = fs::remove_file(&self.0);
        }
    }

    fn make(&self, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.0)?;
        Ok(fallocate(&file, FallocateFlags::empty(), 0, bytes)?)
    }

    /// Makes its room free; false if there is none to be had.
    pub(crate) fn give_back(&self) -> bool {
        let given = fs::remove_file(&self.0).is_ok();
        if given {
            tracing::warn!("the disk is full: the room kept for settlements is used now");
        }
        given
    }

    /// Does it again with the reserve given back, if it met a full disk.
    pub(crate) fn or_with_it<T, E>(
        &self,
        is_full: impl Fn(&E) -> bool,
        mut work: impl FnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        match work() {
            Err(error) if is_full(&error) && self.give_back() => work(),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn it_takes_room_that_mail_does_not_need_and_gives_it_back_once() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = Reserve::in_directory(directory.path());
        let disk = |bytes, free_bytes| Disk { bytes, free_bytes };
        for (small, free) in [(1 << 20, 1 << 20), (1 << 40, (1 << 30) - 1)] {
            reserve.keep(disk(small, free), (1 << 30) - BYTES + 1);
            assert!(!reserve.0.exists());
        }
        reserve.keep(disk(1 << 28, 1 << 27), 0);
        let made = fs::metadata(directory.path().join("reserve")).unwrap();
        assert_eq!((made.len(), made.blocks() * 512 >= 4 << 20), (4 << 20, true), "not only a length");
        let mut tries = 0;
        let mut work = || {
            tries += 1;
            if tries < 2 { Err("full") } else { Ok(tries) }
        };
        assert_eq!(reserve.or_with_it(|why| *why == "full", &mut work), Ok(2));
        assert!(!reserve.give_back());
        assert_eq!(reserve.or_with_it(|_| true, || Err::<(), _>("full")), Err("full"));
    }
}
