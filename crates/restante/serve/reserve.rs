//! Room kept on the disk for what becomes of mail that is here already: a file of nothing, given back step by step when a settlement
//! finds the disk full. Not all at once: what is free, the delivery log, the index and whoever filled the disk would have in no time. The floor (see [`super::space`]) keeps our own mail from filling the disk; this is for disks that others fill. Without it a
//! start on such a disk could not even begin a segment. Holds nothing and proves nothing: it may be removed at any time.

use crate::config::size_text;
use restante_relay::Disk;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

const NAME: &str = "reserve";
/// Some forty thousand settlements: enough for an operator to make room, or for settled mail to leave.
const BYTES: u64 = 16 << 20;
/// Of a small disk no more than this part.
const PART: u64 = 64;
/// Less is not worth a file: the segment's own reserve is as large.
const BYTES_MIN: u64 = 512 << 10;

/// Given back at once: what a batch takes, and the room that the journal fills ahead behind it in the same moment (see
/// `journal/src/segment.rs`), which holds some thousand settlements.
const STEP_BYTES: u64 = 2 << 20;

/// The file, whether or not it is there.
#[derive(Debug)]
pub(crate) struct Reserve {
    file: PathBuf,
    is_missed: AtomicBool,
}

impl Reserve {
    /// In the journal's directory.
    pub(crate) fn in_directory(directory: &Path) -> Self {
        Self { file: directory.join(NAME), is_missed: AtomicBool::default() }
    }

    fn bytes(&self) -> u64 {
        fs::metadata(&self.file).map_or(0, |file| file.len())
    }

    /// Makes it, or what is missing of it, if there is room for that above `floor_bytes`. That it cannot be made is no error, and
    /// said once: not all file systems allocate ahead.
    pub(crate) fn keep(&self, disk: Disk, floor_bytes: u64) {
        let (bytes, has) = (BYTES.min(disk.bytes / PART), self.bytes());
        let missing = bytes.saturating_sub(has);
        if bytes < BYTES_MIN || missing == 0 || disk.free_bytes < floor_bytes.saturating_add(missing) {
            return;
        }
        match self.make(bytes) {
            Ok(()) => self.is_missed.store(false, Ordering::Relaxed),
            Err(error) => {
                if !self.is_missed.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "no room can be kept for settlements, a disk that others fill will keep mail from leaving: {error}"
                    );
                }
                let _nothing_new_stays = self.shorten(has);
            }
        }
    }

    fn make(&self, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.file)?;
        Ok(fallocate(&file, FallocateFlags::empty(), 0, bytes)?)
    }

    fn shorten(&self, bytes: u64) -> io::Result<()> {
        match bytes {
            0 => fs::remove_file(&self.file),
            _ => OpenOptions::new().write(true).open(&self.file)?.set_len(bytes),
        }
    }

    /// Makes a step of its room free; false if there is none to be had.
    fn give_back(&self) -> bool {
        let left = self.bytes().saturating_sub(STEP_BYTES);
        let given = self.shorten(left).is_ok();
        if given {
            let left = size_text(left);
            tracing::warn!("the disk is full: room kept for settlements is used now, {left} of it are left");
        }
        given
    }

    /// Does it again with more and more of the reserve given back, as long as it meets a full disk.
    pub(crate) fn or_with_it<T, E>(
        &self,
        is_full: impl Fn(&E) -> bool,
        mut work: impl FnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        loop {
            match work() {
                Err(error) if is_full(&error) && self.give_back() => {}
                done => return done,
            }
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
        let disk = |bytes, free_bytes| Disk { bytes, free_bytes, free_files: None };
        for (small, free) in [(1 << 20, 1 << 20), (1 << 40, (1 << 30) - 1)] {
            reserve.keep(disk(small, free), (1 << 30) - BYTES + 1);
            assert!(!reserve.file.exists());
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
        assert_eq!(reserve.bytes(), 2 << 20, "a step, not all of it");
        assert_eq!(reserve.or_with_it(|_| true, || Err::<(), _>("full")), Err("full"));
        assert!(!reserve.file.exists() && !reserve.give_back());
        // Some of it was used.
        reserve.make(1 << 20).unwrap();
        reserve.keep(disk(1 << 28, 1 << 27), 0);
        assert_eq!(reserve.bytes(), 4 << 20);
    }

    #[test]
    fn a_file_that_cannot_be_had_is_no_trouble() {
        let reserve = Reserve::in_directory(Path::new("/nowhere/at/all"));
        reserve.keep(Disk { bytes: 1 << 40, free_bytes: 1 << 39, free_files: Some(0) }, 0);
        assert!(reserve.is_missed.load(Ordering::Relaxed) && !reserve.give_back());
        assert_eq!(reserve.or_with_it(|_| true, || Err::<(), _>("full")), Err("full"));
    }
}
