//! Compresses files that were put aside, and removes the oldest: on a thread of low priority, so that neither mail nor
//! the log waits.
//!
//! A `.zst` file is a row of independent zstd frames, each of some MiB of whole lines: `zstdcat` reads it, and a search
//! can take several frames at once. At any moment each line is readable: the plain file goes only when the compressed
//! one is on stable storage under its name.

use super::LogLimits;
use super::files::{Aside, Key, aside, compressed_path, day_of};
use crate::clock;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use zstd::zstd_safe::{find_frame_compressed_size, get_frame_content_size};

/// Text in one frame: enough that compression loses nothing by the cut, little enough to be decompressed in memory.
const FRAME_TEXT_BYTES: u64 = 4 << 20;
/// The largest frame that is taken as one of ours.
pub(crate) const FRAME_TEXT_BYTES_MAX: usize = 16 << 20;
/// zstd's own default: a tenth of the text, at some 200 MB/s.
const LEVEL: i32 = 3;
/// The lowest priority there is.
const NICE: i32 = 19;

/// Starts the thread; a message makes it look, and it ends with the sender. What a crash left is finished first.
pub(super) fn start(directory: PathBuf, limits: LogLimits) -> io::Result<SyncSender<()>> {
    let (wake, woken) = sync_channel(1);
    let work = move || run(&directory, &limits, &woken);
    std::thread::Builder::new().name("log-zstd".into()).spawn(work)?;
    Ok(wake)
}

fn run(directory: &Path, limits: &LogLimits, woken: &Receiver<()>) {
    // Of this thread alone: Linux keeps it by thread.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!("the log is compressed at normal priority: {error}");
    }
    loop {
        if let Err(error) = compress_all(directory) {
            tracing::warn!("old files of the delivery log stay as they are for now: {error}");
        }
        if let Err(error) = remove_oldest(directory, limits, &clock::now().to_string()) {
            tracing::warn!("old files of the delivery log could not be removed: {error}");
        }
        if woken.recv().is_err() {
            return;
        }
    }
}

/// Compresses everything put aside, and finishes what a crash interrupted.
pub(super) fn compress_all(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "part") {
            std::fs::remove_file(path)?;
        }
    }
    // One that cannot be read must not keep the others large.
    let mut outcome = Ok(());
    for (key, file) in aside(directory)? {
        outcome = outcome.and(compress(directory, &key, &file));
    }
    outcome
}

fn compress(directory: &Path, key: &Key, file: &Aside) -> io::Result<()> {
    let Some(plain) = &file.plain else { return Ok(()) };
    let text_bytes = plain.metadata()?.len();
    // A crash came between the new name and the end of the old one; or somebody else made a file of that name.
    let is_whole = |path: &PathBuf| Ok::<_, io::Error>(text_bytes_of(&std::fs::read(path)?) == Some(text_bytes));
    if !file.compressed.as_ref().map(is_whole).transpose()?.unwrap_or(false) {
        let part = plain.with_extension("part");
        let made = make(plain, &part).and_then(|oldest| {
            let since = oldest.filter(|oldest| is_late(oldest, &key.day));
            std::fs::rename(&part, compressed_path(directory, key, since.as_deref()))
        });
        if let Err(error) = made {
            // On a full disk it would stand in its own way.
            let _gone_anyway = std::fs::remove_file(&part);
            return Err(error);
        }
    }
    File::open(directory)?.sync_all()?;
    std::fs::remove_file(plain)
}

/// Whether a line of `oldest` stands where nobody looks for it: further back than the day before the file's.
fn is_late(oldest: &str, day: &str) -> bool {
    match (oldest.parse::<jiff::civil::Date>(), day.parse::<jiff::civil::Date>()) {
        (Ok(oldest), Ok(day)) => oldest.tomorrow().is_ok_and(|next| next < day),
        _ => false,
    }
}

/// Writes all of `plain` to `part` and syncs it; the day of the oldest line.
fn make(plain: &Path, part: &Path) -> io::Result<Option<String>> {
    let mut text = BufReader::new(File::open(plain)?);
    let mut out = File::create(part)?;
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true))?;
    let mut oldest: Option<String> = None;
    loop {
        let mut frame = Vec::new();
        if text.by_ref().take(FRAME_TEXT_BYTES).read_to_end(&mut frame)? == 0 {
            out.sync_all()?;
            return Ok(oldest);
        }
        // To the end of the line; what has no end is no line of ours, and is cut.
        text.by_ref().take(FRAME_TEXT_BYTES).read_until(b'\n', &mut frame)?;
        for day in frame.split(|b| *b == b'\n').filter_map(day_of) {
            if oldest.as_ref().is_none_or(|oldest| day < *oldest) {
                oldest = Some(day);
            }
        }
        out.write_all(&compressor.compress(&frame)?)?;
    }
}

/// How many bytes of `compressed` are its first frame, if all of it is there.
pub(crate) fn frame_len(compressed: &[u8]) -> Option<usize> {
    find_frame_compressed_size(compressed).ok().filter(|len| *len > 0)
}

/// The text of one frame; of a damaged one as far as it goes, and why it goes no further.
pub(crate) fn frame_text(frame: &[u8]) -> (Vec<u8>, Option<io::Error>) {
    let known = get_frame_content_size(frame).ok().flatten().and_then(|len| usize::try_from(len).ok());
    if let Some(len) = known.filter(|len| *len <= FRAME_TEXT_BYTES_MAX)
        && let Ok(text) = zstd::bulk::decompress(frame, len)
    {
        return (text, None);
    }
    let mut text = Vec::new();
    let decoded = zstd::stream::read::Decoder::with_buffer(frame)
        .and_then(|decoder| decoder.take(FRAME_TEXT_BYTES_MAX as u64).read_to_end(&mut text));
    (text, decoded.err())
}

/// The text that a whole file of our frames holds, in bytes; None for any other.
fn text_bytes_of(mut compressed: &[u8]) -> Option<u64> {
    let mut text_bytes = 0;
    while !compressed.is_empty() {
        text_bytes += get_frame_content_size(compressed).ok().flatten()?;
        compressed = compressed.get(frame_len(compressed)?..)?;
    }
    Some(text_bytes)
}

/// Removes what is beyond a limit, oldest first. A file's age is counted up to now or to the day of the newest one,
/// whichever is earlier: a clock that is a year ahead for once must not cost a year's log.
pub(super) fn remove_oldest(directory: &Path, limits: &LogLimits, now: &str) -> io::Result<()> {
    let found = aside(directory)?;
    let newest = found.keys().next_back().map(|key| key.day.as_str());
    let today =
        [now.get(..10), newest].into_iter().flatten().filter_map(|day| day.parse::<jiff::civil::Date>().ok()).min();
    let too_old = |day: &str| match (day.parse::<jiff::civil::Date>(), today) {
        (Ok(day), Some(today)) => (today - day).get_days() > i32::from(limits.days_max),
        _ => false,
    };
    let (mut files, mut bytes) = (0, 0);
    for (key, file) in found.into_iter().rev() {
        let paths: Vec<PathBuf> = [file.plain, file.compressed].into_iter().flatten().collect();
        for path in &paths {
            bytes += path.metadata()?.len();
        }
        files += 1;
        if files > limits.files_max || bytes > limits.total_bytes_max || too_old(&key.day) {
            tracing::info!("the delivery log is at its limit: what it says of {} goes", key.day);
            paths.iter().try_for_each(std::fs::remove_file)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
