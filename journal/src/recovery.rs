//! Sets damaged and torn bytes aside: copies them to `torn/`, changes nothing else.

use crate::header::file_name;
use crate::scan::{Damage, DamageKind, Report};
use crate::storage::{SegmentFile, Storage};
use std::io;

/// Copied at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Copies every torn or damaged range of `report` to `torn/<segment>-<offset>.bin` and syncs the copies. A range that
/// was set aside before is left as it was: the first copy is the best one. Returns the names of the new files.
pub fn set_aside<S: Storage>(storage: &S, report: &Report) -> io::Result<Vec<String>> {
    let mut made = Vec::new();
    for place in report.torn.iter().chain(&report.damage) {
        if place.bytes == 0 || place.kind == DamageKind::MissingSegment {
            continue;
        }
        let name = format!("torn/{:020}-{}.bin", place.segment, place.offset);
        match storage.create(&name) {
            Ok(copy) => {
                copy_range(storage, place, copy)?;
                made.push(name);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(made)
}

fn copy_range<S: Storage>(storage: &S, place: &Damage, mut copy: S::File) -> io::Result<()> {
    let source = storage.open(&file_name(place.segment))?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut done = 0;
    while done < place.bytes {
        let want = usize::try_from(place.bytes - done).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let n = source.read_at(place.offset + done, chunk.get_mut(..want).unwrap_or_default())?;
        if n == 0 {
            break;
        }
        copy.write_at(done, chunk.get(..n).unwrap_or_default())?;
        done += n as u64;
    }
    copy.sync()
}
