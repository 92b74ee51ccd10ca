//! The log's thread: takes lines, writes them, syncs them, moves the cursor, and has told again what was lost.
//!
//! Holds a bounded number of lines, whatever the disk does: what cannot be written is forgotten here, and remembered as
//! a range of the journal.

use super::files::{self, Open};
use super::queue::{Batch, Node, Queue};
use super::{CURRENT, LogLimits, Past, Range, compress};
use crate::clock;
use crate::serve::log_cursor::{Cursor, Told, catch_up};
use crate::serve::metrics::Metrics;
use restante_journal::DirStorage;
use restante_ledger::Position;
use serde_json::json;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// Lines of the past that wait: few, telling it is slowed down to what the disk takes.
pub(super) const PAST_LINES_MAX: usize = 1_024;
/// Of the past, written at once.
const WRITE_BYTES: usize = 1 << 20;
/// After a first line others are waited for so long: a busy server costs fifty wake-ups a second instead of thousands, and
/// to the eye of whoever follows the log each line still comes at once.
const GATHER: Duration = Duration::from_millis(20);
/// How often the log is synced and the cursor moved: what is told twice after a crash is what was told in this time.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How often lines of the past are looked for while nothing happens.
const PAST_POLL: Duration = Duration::from_millis(10);
/// Between one telling of the past and the next, whatever came of it, is a second, then twice as long each time, up to
/// this: a disk that takes lines and does not keep them must not be filled with the same ones, and a log that loses lines
/// because there are too many must not have the whole journal read again and again. After as long without a gap the pause
/// is a second again.
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(60);
/// The first of these pauses.
const AGAIN_AFTER_MIN: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    directory: PathBuf,
    node: Node,
    metrics: Arc<Metrics>,
    limits: LogLimits,
    pub(super) file: Option<Open>,
    /// Wakes the thread that compresses.
    compressor: Option<SyncSender<()>>,
    /// Lines that were not written since the last one that was.
    lost: u64,
    /// The last write failed, and that was said.
    is_failing: bool,
    pub(super) cursor: Cursor,
    /// The last fact whose lines were all written, or are in `missing`.
    written: Option<Position>,
    /// Facts written since the last sync.
    unsynced: Option<Range>,
    past: Gaps,
}

/// Facts that the log does not tell of yet. While there are any, the cursor stays in front of them.
struct Gaps {
    /// None: nobody tells them before the next start.
    journal: Option<DirStorage>,
    missing: Option<Range>,
    /// What is being told now, and its lines.
    telling: Option<Telling>,
    /// When it is tried again, and the pause after that.
    again_at: Instant,
    again_after: Duration,
    /// A gap was said in the log, and its end was not.
    is_said: bool,
}

struct Telling {
    range: Range,
    lines: Receiver<Told>,
}

impl Writer {
    pub(super) fn new(
        directory: PathBuf,
        node: Node,
        metrics: Arc<Metrics>,
        limits: LogLimits,
        cursor: Cursor,
        past: Option<Past>,
    ) -> Self {
        let untold = past.as_ref().and_then(|past| past.last).filter(|last| Some(*last) > cursor.saved());
        let past = Gaps {
            missing: untold.map(|last| Range::behind(cursor.saved(), last)),
            journal: past.map(|past| past.storage),
            telling: None,
            again_at: Instant::now(),
            again_after: AGAIN_AFTER_MIN,
            is_said: false,
        };
        let (compressor, lost, is_failing, written) = (None, 0, false, untold);
        let (file, unsynced) = (None, None);
        Self { directory, node, metrics, limits, file, compressor, lost, is_failing, cursor, written, unsynced, past }
    }

    /// Until the last handle is gone and all of the past is told, as far as it can be.
    pub(super) fn run(&mut self, lines: &Queue) {
        // Only where the log is at home: `recover` leaves no file behind that the daemon's user could not read.
        if self.past.journal.is_some() {
            self.compressor = compress::start(self.directory.clone(), self.limits.clone())
                .inspect_err(|error| tracing::warn!("the delivery log is not compressed: {error}"))
                .ok();
        }
        let mut saved_at = Instant::now();
        loop {
            self.tell_missing();
            let (mut batch, is_over) = lines.take();
            self.take_past(&mut batch, is_over);
            let idle = batch.is_empty();
            self.append(&batch);
            if is_over && idle {
                return self.save();
            }
            if saved_at.elapsed() >= SAVE_EVERY {
                self.save();
                saved_at = Instant::now();
            }
            if self.past.telling.is_none() {
                lines.wait(SAVE_EVERY);
                lines.gather(GATHER);
            } else if idle {
                lines.wait(PAST_POLL);
            }
        }
    }

    /// Lines of the past, behind those of now; with `waits`, at least one, or the end of it.
    pub(super) fn take_past(&mut self, batch: &mut Batch, waits: bool) {
        let Some(telling) = &self.past.telling else { return };
        let mut next = if waits {
            telling.lines.recv().map_err(|_ended| TryRecvError::Disconnected)
        } else {
            telling.lines.try_recv()
        };
        loop {
            match next {
                Ok(Told::Line(line)) => batch.push_past(&line, &self.node),
                Ok(Told::All) => return batch.ends_past = true,
                Err(TryRecvError::Empty) => return,
                // It ended by an error, which it said.
                Err(TryRecvError::Disconnected) => return self.give_up_telling(batch.past),
            }
            if batch.text.len() >= WRITE_BYTES {
                return;
            }
            next = telling.lines.try_recv();
        }
    }

    /// Has told what is missing, as soon as the log takes lines.
    pub(super) fn tell_missing(&mut self) {
        let past = &mut self.past;
        if past.telling.is_some() || self.is_failing || self.lost > 0 || Instant::now() < past.again_at {
            return;
        }
        let (Some(storage), Some(range)) = (past.journal.clone(), past.missing) else { return };
        let (sender, lines) = sync_channel(PAST_LINES_MAX);
        let tell = move || catch_up(&storage, range, &sender);
        match std::thread::Builder::new().name("log-catch-up".into()).spawn(tell) {
            Ok(_detached) => {
                past.missing = None;
                past.telling = Some(Telling { range, lines });
            }
            Err(error) => {
                tracing::warn!("the delivery log cannot be completed yet: {error}");
                past.pause();
            }
        }
    }

    /// What was not told yet is missing again; `taken` was taken and not written.
    fn give_up_telling(&mut self, taken: Option<Range>) {
        let Some(Telling { range, .. }) = self.past.telling.take() else { return };
        let rest = Range { first: taken.map_or(range.first, |taken| taken.first.min(range.first)), ..range };
        self.past.miss(Some(rest));
        self.past.pause();
    }

    /// Writes a batch, in front of it what is to be said of a gap.
    pub(super) fn append(&mut self, batch: &Batch) {
        self.lost += batch.dropped;
        self.miss(batch.dropped_facts);
        match self.write(batch) {
            Ok(()) => {
                self.is_failing = false;
                let facts = batch.facts.map(|facts| facts.with(batch.past)).or(batch.past);
                self.unsynced = facts.map(|facts| facts.with(self.unsynced)).or(self.unsynced);
                self.told(batch);
            }
            Err(error) => {
                if !self.is_failing {
                    tracing::warn!("cannot write the delivery log, mail goes on without it: {error}");
                }
                self.is_failing = true;
                self.put_down();
                self.lost += batch.lines;
                self.metrics.log_dropped(batch.lines);
                self.miss(batch.facts);
                self.give_up_telling(batch.past);
            }
        }
        // What found no room is among what is missing, and told from there.
        self.written = self.written.max(batch.last).max(batch.dropped_facts.map(|facts| facts.last));
    }

    /// The lines of the past in this batch are written.
    fn told(&mut self, batch: &Batch) {
        let Some(telling) = &mut self.past.telling else { return };
        // Lines of the last fact may still come.
        telling.range.first = batch.past.map_or(telling.range.first, |past| past.last.max(telling.range.first));
        if batch.ends_past {
            self.past.telling = None;
            self.past.pause();
            if self.past.missing.is_none() {
                self.say_the_end();
            }
        }
    }

    /// The gap that was said is filled. If this line is not written, nothing is lost with it.
    fn say_the_end(&mut self) {
        if !std::mem::take(&mut self.past.is_said) {
            return;
        }
        let why = "the facts among the lost records have been told again";
        let line = json!({"type": "log", "ts": clock::now().to_string(), "ev": "log_gap", "status": "filled",
            "node": self.node.name(), "why": why});
        self.append(&Batch { text: format!("{line}\n").into_bytes(), at: clock::now(), ..Batch::default() });
        tracing::info!("the delivery log is complete again");
    }

    fn miss(&mut self, facts: Option<Range>) {
        let Some(facts) = facts else { return };
        if self.past.missing.is_none() {
            self.past.calm_down();
            tracing::warn!("the delivery log misses facts; they are told again from the journal when it takes them");
        }
        self.past.miss(Some(facts));
    }

    /// Has what was written on stable storage, in the file that stands at the log's path: only over that may the cursor
    /// move. False when there is no such file any more; then it is closed.
    fn settle(&mut self) -> bool {
        let Some(open) = &self.file else { return true };
        let synced = if self.unsynced.is_some() { open.file.sync_data() } else { Ok(()) };
        // In this order: what was synced before the file was found in its place was there for whoever removes it later.
        let stands = files::stands(&open.file, &self.directory.join(CURRENT));
        let unsynced = self.unsynced.take();
        if !stands {
            tracing::warn!("the delivery log goes on in a new file: its file was removed or changed by somebody else");
            self.miss(unsynced);
        } else if let Err(error) = &synced {
            // The kernel tells of bytes that it could not store once only: nothing written since the last sync can be
            // relied on.
            tracing::debug!("the log's cursor stays behind: {error}");
            self.miss(unsynced);
            self.past.pause();
        }
        if !stands || synced.is_err() {
            self.file = None;
        }
        stands
    }

    /// Lets go of the file; whether it still stood in its place.
    fn put_down(&mut self) -> bool {
        let stands = self.settle();
        self.file = None;
        stands
    }

    /// Makes again what somebody removed, at once: whoever follows the log waits for it.
    fn open_anew(&mut self) {
        // A failure is told by the next write.
        let now = clock::now().to_string();
        if let Ok((opened, rotated)) = files::open(&self.directory, now.get(..10).unwrap_or_default()) {
            self.file = Some(opened);
            if rotated {
                self.wake_compressor();
            }
        }
    }

    /// Moves the cursor behind what is on stable storage.
    pub(super) fn save(&mut self) {
        if !self.settle() {
            self.open_anew();
        }
        if self.past.journal.is_some()
            && let Err(error) = self.cursor.restore()
        {
            return tracing::debug!("the log's cursor is not written: {error}");
        }
        let is_complete = self.past.missing.is_none() && self.past.telling.is_none();
        let Some(place) = self.written.filter(|place| is_complete && Some(*place) > self.cursor.saved()) else {
            return;
        };
        if self.past.journal.is_some()
            && let Err(error) = self.cursor.save(place)
        {
            tracing::debug!("the log's cursor stays behind: {error}");
        }
    }

    fn write(&mut self, batch: &Batch) -> io::Result<()> {
        if batch.text.is_empty() && self.lost == 0 {
            return Ok(());
        }
        let now = clock::now();
        let at = if batch.text.is_empty() { now } else { batch.at }.to_string();
        let day = at.get(..10).unwrap_or_default();
        let limit = self.limits.file_bytes_max;
        let is_due = |open: &Open| open.bytes > limit || open.day.as_str() < day;
        if let Some(old) = self.file.as_ref().filter(|open| is_due(open)).map(|open| open.day.clone()) {
            // Else what stands there, if anything, is not ours to name.
            if self.put_down() {
                files::rotate(&self.directory, &old)?;
                self.wake_compressor();
            }
        }
        if self.file.is_none() {
            let (opened, rotated) = files::open(&self.directory, day)?;
            self.file = Some(opened);
            if rotated {
                self.wake_compressor();
            }
        }
        let Some(open) = &mut self.file else { return Ok(()) };
        if self.lost > 0 {
            let gap = json!({"type": "log", "ts": now.to_string(), "ev": "log_gap", "node": self.node.name(),
                "why": format!("{} records could not be written", self.lost)});
            open.file.write_all(format!("{gap}\n").as_bytes())?;
            self.lost = 0;
            self.past.is_said |= self.past.missing.is_some();
        }
        open.file.write_all(&batch.text)?;
        open.bytes += batch.text.len() as u64;
        Ok(())
    }

    fn wake_compressor(&self) {
        // One that is busy looks again before it sleeps if this waits for it.
        let _already_told = self.compressor.as_ref().map(|wake| wake.try_send(()));
    }

    #[cfg(test)]
    pub(super) fn missing(&self) -> Option<Range> {
        self.past.missing
    }

    /// As if the pause were over.
    #[cfg(test)]
    pub(super) fn without_pause(&mut self) {
        self.past.again_at = Instant::now();
    }

    /// The pause that the next telling is followed by.
    #[cfg(test)]
    pub(super) fn next_pause(&self) -> Duration {
        self.past.again_after
    }

    /// As if nothing had been missing for a minute.
    #[cfg(test)]
    pub(super) fn after_a_quiet_minute(&mut self) {
        self.past.again_at = Instant::now().checked_sub(AGAIN_AFTER_MAX).unwrap();
    }

    #[cfg(test)]
    pub(super) fn is_telling(&self) -> bool {
        self.past.telling.is_some()
    }
}

impl Gaps {
    fn miss(&mut self, facts: Option<Range>) {
        self.missing = facts.map(|facts| facts.with(self.missing)).or(self.missing);
    }

    /// Before something is missing that was not: if the last pause is long over, nothing has been told since.
    fn calm_down(&mut self) {
        if self.telling.is_none() && self.again_at.elapsed() >= AGAIN_AFTER_MAX {
            self.again_after = AGAIN_AFTER_MIN;
        }
    }

    fn pause(&mut self) {
        self.again_at = Instant::now() + self.again_after;
        self.again_after = (self.again_after * 2).min(AGAIN_AFTER_MAX);
    }
}
