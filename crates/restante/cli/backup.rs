//! `restante journal backup`: a copy of the journal that is a journal itself, beside a daemon at work or with it dead. What is in
//! the copy already is not copied again. Changes nothing in the data directory, and takes no lock there.

use super::account::count;
use super::args::Cli;
use super::exit;
use super::journal;
use super::log_line::printable;
use super::output::Output;
use super::progress::{Progress, Unit};
use crate::config::size;
use anyhow::Context as _;
use clap::Args;
use restante_journal::{BackupError, Copied, DirStorage, LockError, Storage as _, backup};
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Beside a daemon: a fraction of what a disk that turns writes, so that mail hardly waits for it. 64 GiB take an hour.
const RATE_BESIDE_A_DAEMON: u64 = 16 << 20;
/// What `nice` itself adds by default.
const NICE: i32 = 10;

#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// Where to; made if it is missing. It must hold nothing, or the last backup of this journal
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Read no more than this in a second, such as 50MiB [default: 16MiB beside a daemon, else as fast as it goes]
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    pub(crate) rate: Option<u64>,
}

fn rate(text: &str) -> Result<u64, String> {
    size(text).map_err(|why| why.to_string()).and_then(|bytes| match bytes {
        0 => Err("nothing a second takes for ever".to_owned()),
        bytes => Ok(bytes),
    })
}

pub(crate) fn run(cli: &Cli, args: &Backup, output: Output) -> anyhow::Result<u8> {
    let dir = match journal::data_dir(cli, output) {
        Ok(dir) => dir,
        Err(code) => return Ok(code),
    };
    let source = journal::open(&dir)?;
    let target = &args.dir;
    if is_within(&dir, target)? {
        let target = target.display();
        output.note(&format!("restante: {target} is in the journal itself: name a directory elsewhere"));
        return Ok(exit::USAGE);
    }
    let copy = DirStorage::create_directory(target).with_context(|| format!("cannot make {}", target.display()))?;
    let _lock = match crate::serve::lock(&copy) {
        Ok(lock) => lock,
        Err(LockError::Held) => {
            let target = target.display();
            output.note(&format!(
                "restante: a daemon, or another backup, is at work in {target}: name another directory"
            ));
            return Ok(exit::LOCKED);
        }
        Err(error) => return Err(error).with_context(|| format!("in {}", target.display())),
    };
    let is_live =
        source.is_locked().with_context(|| format!("cannot see whether a daemon runs on {}", dir.display()))?;
    let rate = args.rate.or(is_live.then_some(RATE_BESIDE_A_DAEMON));
    if is_live {
        // Mail goes first, on the processor as on the disk.
        let _best_effort = rustix::process::nice(NICE);
    }
    let pace = Pace { rate, due: Cell::new(Instant::now()) };
    let total = journal::segment_bytes(&dir)?.saturating_add(source.list_blobs()?.iter().map(|blob| blob.bytes).sum());
    let progress = RefCell::new(Progress::new(output, "backup", Unit::Bytes, total));
    let copied = backup(&source, &copy, is_live, |bytes| {
        pace.wait(bytes);
        progress.borrow_mut().advance(bytes, "");
    });
    drop(progress);
    match copied {
        Ok(copied) => tell(&copied, target, output),
        Err(refused @ (BackupError::Foreign | BackupError::Diverged { .. })) => {
            output.note(&format!("restante: {}: {refused}", target.display()));
            return Ok(exit::FAILED);
        }
        Err(error) => return Err(error).with_context(|| format!("the backup to {} is not complete", target.display())),
    }
    Ok(exit::DONE)
}

/// Whether the copy would be in the journal's own directory, or is it.
fn is_within(dir: &Path, target: &Path) -> anyhow::Result<bool> {
    let dir = dir.canonicalize().with_context(|| format!("cannot open {}", dir.display()))?;
    let target = std::path::absolute(target).with_context(|| format!("{} is no path", target.display()))?;
    // It may not be there yet.
    Ok(target.ancestors().find_map(|there| there.canonicalize().ok()).is_some_and(|there| there.starts_with(dir)))
}

/// So many bytes a second, and no catching up.
struct Pace {
    rate: Option<u64>,
    due: Cell<Instant>,
}

impl Pace {
    fn wait(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let due = self.due.get().max(Instant::now());
        self.due.set(due + Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1)));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn tell(copied: &Copied, target: &Path, output: Output) {
    let Copied { segments, segment_bytes, blobs, blob_bytes, segments_there, blobs_missing, removed, end } = *copied;
    if output.json {
        output.object(&json!({
            "type": "backup", "dir": target.display().to_string(), "segments": segments, "blobs": blobs,
            "bytes": segment_bytes + blob_bytes, "segments_there": segments_there, "blobs_missing": blobs_missing,
            "segments_removed": removed.segments, "blobs_removed": removed.blobs,
            "end": end.map(|end| json!({"segment": end.segment, "offset": end.offset})),
        }));
        return;
    }
    let (of_segments, of_blobs) = (count(segments, "segment"), count(blobs, "large message"));
    output.line(&format!("copied: {of_segments} and {of_blobs}, {}", count(segment_bytes + blob_bytes, "byte")));
    output.line(&format!("there already: {}", count(segments_there, "segment")));
    if removed.segments > 0 || removed.blobs > 0 {
        let (segments, blobs) = (count(removed.segments, "segment"), count(removed.blobs, "large message"));
        output.line(&format!("removed, as they have left the journal: {segments} and {blobs}"));
    }
    if blobs_missing > 0 {
        let missing = count(blobs_missing, "large message");
        output.line(&format!("missing in the journal: the content of {missing}; see `restante verify`"));
    }
    match end {
        Some(end) => output.line(&printable(&format!(
            "{} holds the journal up to segment {}, byte {}: `restante verify --data` proves it",
            target.display(),
            end.segment,
            end.offset
        ))),
        None => output.line("the journal is empty: there is nothing to copy"),
    }
}
