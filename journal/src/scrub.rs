//! Reads what a start does not: every byte of every segment that nobody writes any more, and of the blobs named there. For a
//! daemon at work, beside it: it writes nothing, holds no lock, reads no faster than it is let, and ends when it is told to.

use crate::header::parse_file_name;
use crate::replay::{Depth, ReplayError, replay_range};
use crate::report::Damage;
use crate::storage::{BlobEntry, SegmentFile, Storage};
use crate::summary::{Gists, is_wrong};
use std::cell::Cell;
use std::io;

/// What a pass came to.
#[derive(Debug, Default)]
pub struct Scrubbed {
    /// Segments read to their end.
    pub segments: u64,
    /// It was told to stop before the last of them.
    pub stopped: bool,
    /// Segments that could not be read at all, and why. The others were read.
    pub unreadable: Vec<ReplayError>,
    /// Segments whose summary says something else than they do: a defect of ours.
    pub wrong_summaries: Vec<u64>,
}

/// One pass, segment by segment; the newest is left out, for it may be being written. `may_read` is called before each read
/// with its bytes: it waits as long as it likes, and false ends the pass. `found` gets each place that is not as written, when
/// its segment is done.
///
/// Fails only if the directory cannot be listed.
pub fn scrub<S: Storage>(
    storage: &S,
    may_read: impl Fn(u64) -> bool,
    mut found: impl FnMut(&Damage),
) -> io::Result<Scrubbed> {
    let mut numbers: Vec<u64> = storage.list()?.iter().filter_map(|name| parse_file_name(name)).collect();
    numbers.sort_unstable();
    numbers.pop();
    let paced = Paced { storage, may_read: &may_read, stopped: &Cell::new(false) };
    let mut scrubbed = Scrubbed::default();
    for number in numbers {
        let mut gists = Gists::default();
        let read = replay_range(&paced, number, number, Depth::Everything, &mut gists);
        if paced.stopped.get() {
            // Reads that were cut short look like bad sectors.
            scrubbed.stopped = true;
            break;
        }
        match read {
            Ok(replay) => {
                scrubbed.segments += 1;
                replay.report.damage.iter().for_each(&mut found);
                if is_wrong(storage, number, &replay, &gists).unwrap_or(false) {
                    scrubbed.wrong_summaries.push(number);
                }
            }
            Err(error) => scrubbed.unreadable.push(error),
        }
    }
    Ok(scrubbed)
}

/// A directory that is read at a pace, and not written.
struct Paced<'a, S, P> {
    storage: &'a S,
    may_read: &'a P,
    stopped: &'a Cell<bool>,
}

struct PacedFile<'a, F, P> {
    file: F,
    may_read: &'a P,
    stopped: &'a Cell<bool>,
}

fn read_only<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl<'a, S: Storage, P: Fn(u64) -> bool> Storage for Paced<'a, S, P> {
    type File = PacedFile<'a, S::File, P>;

    fn list(&self) -> io::Result<Vec<String>> {
        self.storage.list()
    }
    fn list_blobs(&self) -> io::Result<Vec<BlobEntry>> {
        self.storage.list_blobs()
    }
    fn open(&self, name: &str) -> io::Result<Self::File> {
        Ok(PacedFile { file: self.storage.open(name)?, may_read: self.may_read, stopped: self.stopped })
    }
    fn create(&self, _: &str) -> io::Result<Self::File> {
        read_only()
    }
    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        read_only()
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        read_only()
    }
    fn sync_directory(&self) -> io::Result<()> {
        read_only()
    }
    fn sync_blobs(&self) -> io::Result<()> {
        read_only()
    }
    fn check_directories(&self) -> io::Result<()> {
        read_only()
    }
}

impl<F: SegmentFile, P: Fn(u64) -> bool> SegmentFile for PacedFile<'_, F, P> {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if self.stopped.get() || !(self.may_read)(buf.len() as u64) {
            self.stopped.set(true);
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.file.read_passing(offset, buf)
    }
    fn write_at(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        read_only()
    }
    fn truncate(&mut self, _: u64) -> io::Result<()> {
        read_only()
    }
    fn sync(&mut self) -> io::Result<()> {
        read_only()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimStorage;

    #[test]
    fn a_scrub_drops_nothing_from_memory_that_a_writer_may_have_lost_on_the_disk() {
        let disk = SimStorage::default();
        let mut writer = disk.create("seg").unwrap();
        writer.write_at(0, &[7; 4096]).unwrap();
        disk.fail_call(1, io::ErrorKind::Other);
        writer.sync().unwrap_err();
        let paced = Paced { storage: &disk, may_read: &|_| true, stopped: &Cell::new(false) };
        paced.open("seg").unwrap().forget();
        assert_eq!(disk.bytes("seg"), [7; 4096]);
    }

    #[test]
    fn a_scrub_that_would_write_is_refused() {
        let disk = SimStorage::default();
        disk.create("seg").unwrap();
        let paced = Paced { storage: &disk, may_read: &|_| true, stopped: &Cell::new(false) };
        let (calls, mut file) = (disk.calls(), paced.open("seg").unwrap());
        let refused = [
            paced.create("other").map(drop),
            paced.rename("seg", "other"),
            paced.remove("seg"),
            paced.sync_directory(),
            paced.sync_blobs(),
            paced.check_directories(),
            file.write_at(0, b"x"),
            file.truncate(0),
            file.sync(),
        ];
        assert!(refused.into_iter().all(|done| done.is_err_and(|e| e.kind() == io::ErrorKind::ReadOnlyFilesystem)));
        assert_eq!(disk.calls(), calls);
        assert!(file.is_empty().unwrap() && file.read_at_hand(0, &mut []).is_none());
    }
}
