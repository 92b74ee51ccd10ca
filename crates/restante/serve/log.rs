//! The delivery log: one JSON object per event, written after the fact is durable, by a thread of its own.
//!
//! Mail never waits for the log. If its disk is full or slow, lines are dropped, counted, and the gap is said in the log
//! itself as soon as it takes lines again; then the lost facts are told once more from the journal, beside what happens
//! now. A crash before that is no loss: the cursor stays in front of the first fact that is not told, and the next start
//! goes on from there. At least once, never silently missing.

pub(crate) mod compress;
pub(crate) mod files;
mod line;
mod queue;
mod thread;

use super::log_cursor::Cursor;
use super::metrics::Metrics;
pub(crate) use files::CURRENT;
pub(crate) use line::Line;
use queue::{Node, Queue};
use restante_journal::DirStorage;
use restante_ledger::Position;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use thread::Writer;

/// Text waiting for the disk: a busy server writes some 3 MB a second, so it is some seconds of one.
const QUEUE_BYTES: usize = 8 << 20;

/// When a file is put aside, and how long it is kept.
#[derive(Debug, Clone)]
pub(crate) struct LogLimits {
    /// A file is put aside when it is larger than this, or a day old.
    pub(crate) file_bytes_max: u64,
    /// Of all files put aside, as they lie on the disk; the oldest go first.
    pub(crate) total_bytes_max: u64,
    /// Files put aside.
    pub(crate) files_max: usize,
    /// Since the day in a file's name.
    pub(crate) days_max: u16,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            // A search reads it in a blink, and compressing it takes a second.
            file_bytes_max: 64 << 20,
            // Some 20 GiB of text: compressed it is a tenth.
            total_bytes_max: 2 << 30,
            // A directory of this size is still listed at once; days that are quiet make one small file each.
            files_max: 4_096,
            // Whoever asks about a message later than a year after it has no use for an answer.
            days_max: 366,
        }
    }
}

/// Facts of the journal, from the first to the last of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: Position,
    pub(crate) last: Position,
}

impl Range {
    /// All facts behind `after`, up to `last`.
    fn behind(after: Option<Position>, last: Position) -> Self {
        let beginning = Position { segment: 0, offset: 0 };
        let first = after.map_or(beginning, |after| Position { offset: after.offset.saturating_add(1), ..after });
        Self { first, last }
    }

    /// The smallest range with both in it.
    fn with(self, other: Option<Self>) -> Self {
        other.map_or(self, |other| Self { first: self.first.min(other.first), last: self.last.max(other.last) })
    }

    pub(crate) fn contains(&self, position: Position) -> bool {
        self.first <= position && position <= self.last
    }
}

/// Where facts are told again from.
pub(crate) struct Past {
    pub(crate) storage: DirStorage,
    /// The last fact in the journal now that the log tells of: what comes behind it is told by whoever has the handle.
    pub(crate) last: Option<Position>,
    /// The last fact of all: what is yet to happen stands behind it.
    pub(crate) end: Option<Position>,
}

/// The way to the log's thread. Never waits.
#[derive(Clone)]
pub(crate) struct LogHandle {
    sender: Arc<Sender>,
    metrics: Arc<Metrics>,
}

/// With the last handle this goes, and tells the thread.
struct Sender(Arc<Queue>);

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl LogHandle {
    /// Hands a line over, or counts it as dropped.
    pub(crate) fn write(&self, line: Line) {
        self.write_all(vec![line]);
    }

    /// Hands lines over, in one go.
    pub(crate) fn write_all(&self, lines: Vec<Line>) {
        let dropped = self.sender.0.put(&lines);
        if dropped > 0 {
            self.metrics.log_dropped(dropped);
        }
    }
}

/// The log, running. Its thread ends when the last handle is dropped.
pub(crate) struct Started {
    pub(crate) handle: LogHandle,
    pub(crate) thread: std::thread::JoinHandle<()>,
}

/// Starts the thread. With `past`, facts of the journal that the log does not tell of yet are told beside what happens
/// now, and whatever is lost later is told again. Without it the cursor stays where it is, for a later start.
pub(crate) fn start(
    directory: PathBuf,
    node: String,
    metrics: Arc<Metrics>,
    limits: LogLimits,
    past: Option<Past>,
) -> io::Result<Started> {
    let (handle, lines, mut writer) = assemble(directory, node, metrics, limits, past, QUEUE_BYTES)?;
    let thread = std::thread::Builder::new().name("log".into()).spawn(move || writer.run(&lines))?;
    Ok(Started { handle, thread })
}

fn assemble(
    directory: PathBuf,
    node: String,
    metrics: Arc<Metrics>,
    limits: LogLimits,
    past: Option<Past>,
    queue_bytes: usize,
) -> io::Result<(LogHandle, Arc<Queue>, Writer)> {
    std::fs::create_dir_all(&directory)?;
    let mut cursor = Cursor::open(&directory)?;
    if let Some(past) = &past {
        cursor.forget_beyond(past.end);
    }
    let node = Node::new(&node);
    let queue = Arc::new(Queue::new(node.clone(), queue_bytes));
    let handle = LogHandle { sender: Arc::new(Sender(queue.clone())), metrics: metrics.clone() };
    let writer = Writer::new(directory, node, metrics, limits, cursor, past);
    Ok((handle, queue, writer))
}

#[cfg(test)]
mod tests;
