//! What a start or `recover` does around its replay: sees to it that what is read is on the disk, and sets damaged and torn
//! bytes aside. Copies those to `torn/`, changes nothing else.

use crate::header::{file_name, parse_file_name};
use crate::report::{Damage, Report};
use crate::storage::{SegmentFile, Storage, is_lost};
use crate::window::read_around;
use std::io;

/// Copied at once.
const CHUNK_BYTES: usize = 1 << 20;

/// To be called before the replay that a [`crate::Writer`] goes on from, by whoever holds the lock: what is folded will be
/// counted, so it must be what the disk has. A process that was killed leaves it in memory alone; one whose sync failed
/// leaves in memory what the kernel takes for clean, and no later sync writes that.
pub fn sync_last_segment<S: Storage>(storage: &S) -> io::Result<()> {
    let mut numbers: Vec<u64> = storage.list()?.iter().filter_map(|name| parse_file_name(name)).collect();
    numbers.sort_unstable();
    for number in numbers.into_iter().rev() {
        match storage.open(&file_name(number)) {
            // The replay passes it over as well.
            Err(error) if is_lost(&error) => {}
            Err(error) => return Err(error),
            Ok(mut file) => {
                file.sync()?;
                file.forget();
                break;
            }
        }
    }
    Ok(())
}

/// Copies every torn or damaged range of `report` to `torn/<segment>-<offset>.bin` and syncs the copies. A range that
/// was set aside before is left as it was: the first copy is the best one. Blobs stay where they are. Returns the names of the new files.
pub fn set_aside<S: Storage>(storage: &S, report: &Report) -> io::Result<Vec<String>> {
    let mut made = Vec::new();
    for place in report.torn.iter().chain(&report.damage) {
        if !place.has_bytes() {
            continue;
        }
        let name = format!("torn/{:020}-{}.bin", place.segment, place.offset);
        if storage.open(&name).is_ok() {
            continue;
        }
        // Under another name until it is whole: a copy cut short by a crash must not pass for one.
        let part = format!("{name}.part");
        match storage.remove(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut copy = storage.create(&part)?;
        copy_range(storage, place, &mut copy)?;
        storage.rename(&part, &name)?;
        made.push(name);
    }
    if !made.is_empty() {
        storage.sync_directory()?;
    }
    Ok(made)
}

fn copy_range<S: Storage>(storage: &S, place: &Damage, copy: &mut S::File) -> io::Result<()> {
    let source = storage.open(&file_name(place.segment))?;
    let len = source.len()?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut done = 0;
    while done < place.bytes && place.offset + done < len {
        let left = (place.bytes - done).min(len - place.offset - done);
        let want = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let n = read_around(&source, place.offset + done, chunk.get_mut(..want).unwrap_or_default())?;
        if n == 0 {
            break;
        }
        copy.write_at(done, chunk.get(..n).unwrap_or_default())?;
        done += n as u64;
    }
    copy.sync()
}
