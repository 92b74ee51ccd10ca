//! The files of the delivery log: their names, their order, and how the current one is opened and put aside.
//!
//! `delivery.jsonl` is written; `delivery-<day>-<nnn>.jsonl` was put aside, in the order of day and number, which is the
//! order in which they were written; `.jsonl.zst` is the same, compressed. Removes nothing.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// The file that is written.
pub(crate) const CURRENT: &str = "delivery.jsonl";
/// The end of the name of a file that is not compressed.
const PLAIN: &str = ".jsonl";
/// The end of the name of one that is.
const COMPRESSED: &str = ".jsonl.zst";
/// In the name of a compressed file: the day of its oldest line, where lines were written late.
const SINCE: &str = ".since-";

/// Which of the files that were put aside. Sorts in the order in which they were written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// `2026-11-22`: no line in the file is younger.
    pub(crate) day: String,
    pub(crate) number: u32,
}

/// A file that was put aside. After a crash it may be there twice, with the same lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Aside {
    pub(crate) plain: Option<PathBuf>,
    pub(crate) compressed: Option<PathBuf>,
    /// The day of the oldest line, where that is older than the day before the file's.
    pub(crate) since: Option<String>,
}

/// All files that were put aside, oldest first. A directory that does not exist has none.
pub(crate) fn aside(directory: &Path) -> io::Result<BTreeMap<Key, Aside>> {
    let mut found: BTreeMap<Key, Aside> = BTreeMap::new();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let Some((key, since, compressed)) = path.file_name().and_then(|name| parse(name.to_str()?)) else { continue };
        let file = found.entry(key).or_default();
        if compressed {
            file.since = since;
            file.compressed = Some(path);
        } else {
            file.plain = Some(path);
        }
    }
    Ok(found)
}

/// The key in a file's name, the day of its oldest line if it is there, and whether it is compressed.
fn parse(name: &str) -> Option<(Key, Option<String>, bool)> {
    let rest = name.strip_prefix("delivery-")?;
    let (stem, compressed) = match rest.strip_suffix(COMPRESSED) {
        Some(stem) => (stem, true),
        None => (rest.strip_suffix(PLAIN)?, false),
    };
    let (stem, since) = match stem.split_once(SINCE) {
        Some((stem, since)) => (stem, Some(since.to_owned())),
        None => (stem, None),
    };
    let (day, number) = stem.rsplit_once('-')?;
    let day = if is_day(day) { day.to_owned() } else { String::new() };
    Some((Key { day, number: number.parse().ok()? }, since, compressed))
}

/// The compressed file of a plain one.
pub(crate) fn compressed_path(directory: &Path, key: &Key, since: Option<&str>) -> PathBuf {
    let since = since.map(|day| format!("{SINCE}{day}")).unwrap_or_default();
    directory.join(format!("delivery-{}-{:03}{since}{COMPRESSED}", key.day, key.number))
}

/// Whether the text is a day as RFC 3339 writes it: such days sort in order of time.
pub(crate) fn is_day(text: &str) -> bool {
    text.len() == 10
        && text.bytes().enumerate().all(|(i, b)| if i == 4 || i == 7 { b == b'-' } else { b.is_ascii_digit() })
}

/// The day of a line. Ours begin with their time; any other is parsed.
pub(crate) fn day_of(line: &[u8]) -> Option<String> {
    let ts = match line.strip_prefix(b"{\"type\":\"log\",\"ts\":\"") {
        Some(rest) => String::from_utf8_lossy(rest.get(..10)?).into_owned(),
        None => serde_json::from_slice::<Value>(line).ok()?.get("ts")?.as_str()?.get(..10)?.to_owned(),
    };
    Some(ts).filter(|day| is_day(day))
}

/// The current file.
pub(super) struct Open {
    pub(super) file: File,
    pub(super) bytes: u64,
    /// `2026-11-22`: the last one of its lines' days.
    pub(super) day: String,
}

/// Whether this file stands at `path`. Only what is known for certain is a no.
pub(crate) fn stands(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        (_, Err(error)) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        (Err(_), Ok(_)) => true,
    }
}

/// Makes the log's directory if it is gone, and no other: what stands above it is not ours, and may be unmounted.
pub(crate) fn make_directory(directory: &Path) -> io::Result<()> {
    match std::fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Opens the current file for lines of `day`; one that is older is put aside first, and then `rotated` is true.
pub(super) fn open(directory: &Path, day: &str) -> io::Result<(Open, bool)> {
    make_directory(directory)?;
    let path = directory.join(CURRENT);
    let last = last_day(&path)?.unwrap_or_default();
    let is_old = !last.is_empty() && last.as_str() < day;
    if is_old {
        rotate(directory, &last)?;
    }
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    // The name too must outlast a crash before the cursor moves.
    File::open(directory)?.sync_all()?;
    let bytes = file.metadata()?.len();
    let mut end = [b'\n'];
    if let Some(last) = bytes.checked_sub(1) {
        file.read_exact_at(&mut end, last)?;
    }
    // A write that failed, or a crash, has left the beginning of a line: ours is not its end.
    if end != [b'\n'] {
        io::Write::write_all(&mut file, b"\n")?;
    }
    // What is written first may be told late: the file is as young as its youngest line.
    Ok((Open { file, bytes, day: last.as_str().max(day).to_owned() }, is_old))
}

/// The later one of the days of a file's first and last line: lines told late may stand at either end.
fn last_day(path: &Path) -> io::Result<Option<String>> {
    /// No line of ours is longer.
    const LINE_BYTES_MAX: u64 = 64 << 10;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let bytes = file.metadata()?.len();
    let mut days = Vec::new();
    for offset in [0, bytes.saturating_sub(LINE_BYTES_MAX)] {
        let mut text = vec![0; usize::try_from(LINE_BYTES_MAX.min(bytes)).unwrap_or_default()];
        file.read_exact_at(&mut text, offset)?;
        let lines = || text.split(|b| *b == b'\n');
        days.push(if offset == 0 { lines().find_map(day_of) } else { None });
        days.push(lines().rev().find_map(day_of));
    }
    Ok(days.into_iter().flatten().max())
}

/// `delivery.jsonl` becomes `delivery-<day>-<nnn>.jsonl`, behind all that were put aside before: a clock that stepped
/// back does not change their order.
pub(super) fn rotate(directory: &Path, day: &str) -> io::Result<Key> {
    let last = aside(directory)?.into_keys().next_back();
    let key = match last {
        Some(last) if last.day.as_str() >= day => Key { number: last.number.saturating_add(1), day: last.day },
        _ => Key { day: day.to_owned(), number: 1 },
    };
    let plain = directory.join(format!("delivery-{}-{:03}{PLAIN}", key.day, key.number));
    std::fs::rename(directory.join(CURRENT), plain)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_not_ours_is_no_file_of_the_log() {
        for name in
            ["delivery.jsonl", "delivery-2026-11-22-001.jsonl.zst.part", "delivery-x.jsonl", "cursor", "a.jsonl"]
        {
            assert_eq!(parse(name), None, "{name}");
        }
        let key = |day: &str, number| Key { day: day.into(), number };
        assert_eq!(parse("delivery-2026-11-22-1000.jsonl"), Some((key("2026-11-22", 1000), None, false)));
        let since = Some("2026-11-20".to_owned());
        assert_eq!(
            parse("delivery-2026-11-22-002.since-2026-11-20.jsonl.zst"),
            Some((key("2026-11-22", 2), since, true))
        );
        assert!(key("2026-11-22", 999) < key("2026-11-22", 1000));
    }

    #[test]
    fn a_number_is_never_used_twice_and_a_clock_that_steps_back_keeps_the_order() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        let aside_on = |day: &str| {
            std::fs::write(dir.join(CURRENT), "x\n").unwrap();
            let key = rotate(dir, day).unwrap();
            format!("{}-{}", key.day, key.number)
        };
        assert_eq!(aside_on("2026-11-22"), "2026-11-22-1");
        // The first is gone, and the second is compressed: neither number is free.
        assert_eq!(aside_on("2026-11-22"), "2026-11-22-2");
        std::fs::remove_file(dir.join("delivery-2026-11-22-001.jsonl")).unwrap();
        std::fs::rename(dir.join("delivery-2026-11-22-002.jsonl"), dir.join("delivery-2026-11-22-002.jsonl.zst"))
            .unwrap();
        assert_eq!(aside_on("2026-11-22"), "2026-11-22-3");
        assert_eq!(aside_on("2026-11-21"), "2026-11-22-4");
        assert_eq!(aside_on("2026-11-23"), "2026-11-23-1");
    }
}
