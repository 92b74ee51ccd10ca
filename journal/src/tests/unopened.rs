//! Segments that a directory lists and that cannot be opened, for ever or for now: what passes is an error, what is lost is passed
//! over and told, and neither is taken for an empty journal.

use super::*;
use crate::header::file_name;
use crate::storage::{BlobEntry, SegmentFile as _, Storage};
use crate::{BackupError, DamageKind, ReplayError, backup};
use std::cell::Cell;
use std::io;
use std::rc::Rc;

const EIO: i32 = 5;
const EACCES: i32 = 13;

/// A disk on which one file cannot be opened, so many times.
#[derive(Clone)]
struct Unopened {
    disk: SimStorage,
    name: String,
    errno: i32,
    times: Rc<Cell<u32>>,
}

impl Unopened {
    fn new(disk: &SimStorage, number: u64, errno: i32, times: u32) -> Self {
        Self { disk: disk.clone(), name: file_name(number), errno, times: Rc::new(Cell::new(times)) }
    }
}

impl Storage for Unopened {
    type File = <SimStorage as Storage>::File;
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn list_blobs(&self) -> io::Result<Vec<BlobEntry>> {
        self.disk.list_blobs()
    }
    fn open(&self, name: &str) -> io::Result<Self::File> {
        if name == self.name && self.times.get() > 0 {
            self.times.set(self.times.get() - 1);
            return Err(crate::at(name)(io::Error::from_raw_os_error(self.errno)));
        }
        self.disk.open(name)
    }
    fn create(&self, name: &str) -> io::Result<Self::File> {
        self.disk.create(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_directory(&self) -> io::Result<()> {
        self.disk.sync_directory()
    }
    fn sync_blobs(&self) -> io::Result<()> {
        self.disk.sync_blobs()
    }
    fn check_directories(&self) -> io::Result<()> {
        self.disk.check_directories()
    }
}

/// Some segments, and the number of the newest.
fn journal() -> (SimStorage, u64) {
    let storage = SimStorage::default();
    history(&storage, 20);
    let newest = storage.files().iter().filter_map(|name| crate::header::parse_file_name(name)).max().unwrap();
    assert!(newest > 2);
    (storage, newest)
}

#[test]
fn a_newest_segment_that_is_lost_is_told_and_what_is_before_it_is_read() {
    let (storage, newest) = journal();
    let lost = Unopened::new(&storage, newest, EIO, u32::MAX);
    let mut ledger = Ledger::new();
    let report = replay(&lost, Depth::Everything, &mut ledger).unwrap().report;
    let told: Vec<_> = report.damage.iter().map(|place| (place.segment, place.kind)).collect();
    assert!(told.contains(&(newest, DamageKind::MissingSegment)), "{told:?}");
    assert!(ledger.balance().accepted > 0);
    // Whoever may not open it now may later: nobody goes on without it.
    let refused = Unopened::new(&storage, newest, EACCES, u32::MAX);
    assert!(matches!(replay(&refused, Depth::Everything, &mut Ledger::new()), Err(ReplayError::Io(_))));
}

#[test]
fn the_last_segment_that_can_be_opened_is_synced_before_it_is_counted() {
    let (storage, newest) = journal();
    let name = file_name(newest - 1);
    let mut file = storage.open(&name).unwrap();
    file.write_at(0, &[7; 512]).unwrap();
    let before = storage.calls();
    let refused = sync_last_segment(&Unopened::new(&storage, newest, EACCES, u32::MAX)).unwrap_err();
    assert_eq!((refused.kind(), storage.calls()), (ErrorKind::PermissionDenied, before));
    sync_last_segment(&Unopened::new(&storage, newest, EIO, u32::MAX)).unwrap();
    assert_eq!(storage.calls(), before + 1, "one sync");
    assert!((0..64).all(|seed| storage.power_cut(seed).bytes(&name)[..512] == [7; 512]));
}

#[test]
fn nothing_is_counted_of_a_journal_whose_newest_segment_is_of_a_later_format() {
    let (storage, newest) = journal();
    storage.alter(&file_name(newest), |bytes| later_format(bytes));
    let mut ledger = Ledger::new();
    let refused = replay(&storage, Depth::Records, &mut ledger).unwrap_err();
    assert!(matches!(&refused, ReplayError::TooNew { file, .. } if *file == file_name(newest)), "{refused}");
    // Only its header says what has left.
    assert_eq!(format!("{ledger:?}"), format!("{:?}", Ledger::new()));
}

fn later_format(bytes: &mut [u8]) {
    bytes[8..12].copy_from_slice(&[3, 0, 3, 0]);
    seal_header(&mut bytes[..FORMAT_2_BYTES]);
}

#[test]
fn a_source_that_cannot_be_read_now_is_no_source_from_which_segments_left() {
    let (storage, newest) = journal();
    for (number, is_there) in [(1, true), (2, false), (newest, false)] {
        let copy = SimStorage::default();
        if is_there {
            backup(&storage, &copy, false, |_| {}).unwrap();
        }
        let before = copy.calls();
        let refused = backup(&Unopened::new(&storage, number, EACCES, 1), &copy, false, |_| {}).unwrap_err();
        assert!(matches!(&refused, BackupError::Source(ReplayError::Io(_))), "{number}: {refused}");
        assert_eq!(copy.calls() == before, is_there || number == newest, "{number}");
        assert!(backup(&Unopened::new(&storage, number, EACCES, 0), &copy, false, |_| {}).is_ok());
        assert_eq!(fold(&copy, Depth::Everything).0.report.state(), State::Clean, "{number}");
    }
}

#[test]
fn a_source_that_names_what_is_never_there_does_not_keep_a_backup_for_ever() {
    const ENOENT: i32 = 2;
    let (storage, _) = journal();
    let (copy, source) = (SimStorage::default(), Unopened::new(&storage, 2, ENOENT, 1_000_000));
    let given_up = backup(&source, &copy, false, |_| {}).unwrap_err();
    assert!(matches!(given_up, BackupError::Busy), "{given_up}");
    // What it has is a journal, and the beginning of the rest.
    assert_eq!(fold(&copy, Depth::Everything).0.report.state(), State::Clean);
    // Once is the normal case.
    backup(&Unopened::new(&storage, 2, ENOENT, 1), &copy, false, |_| {}).unwrap();
    assert_eq!(fold(&copy, Depth::Everything).1.balance(), fold(&storage, Depth::Everything).1.balance());
}

#[test]
fn a_journal_of_a_later_format_is_not_copied_beside_an_older_one() {
    let (storage, newest) = journal();
    let copy = SimStorage::default();
    backup(&storage, &copy, false, |_| {}).unwrap();
    (2..=newest).for_each(|number| copy.remove(&file_name(number)).unwrap());
    // What the copy has, the source has no more; and the first that it has cannot be read. That is said first.
    copy.remove("backup").unwrap();
    storage.remove(&file_name(1)).unwrap();
    storage.alter(&file_name(2), |bytes| later_format(bytes));
    let (before, refused) = (copy.calls(), backup(&storage, &copy, false, |_| {}).unwrap_err());
    assert!(matches!(&refused, BackupError::Source(ReplayError::TooNew { .. })), "{refused}");
    assert_eq!(copy.calls(), before);
}
