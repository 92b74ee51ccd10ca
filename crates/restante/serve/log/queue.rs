//! The lines on their way to the disk: text under a lock that is held for an instant. Bounded in bytes; what finds no room
//! is counted, and remembered as a range of the journal.

use super::{Line, Range};
use restante_envelope::Timestamp;
use restante_ledger::Position;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The field that ends each line: which node wrote it.
#[derive(Clone)]
pub(super) struct Node {
    name: serde_json::Value,
    ending: Box<[u8]>,
}

impl Node {
    pub(super) fn new(name: &str) -> Self {
        let name = serde_json::Value::from(name);
        let ending = format!(",\"node\":{name}}}\n").into_bytes().into();
        Self { name, ending }
    }

    /// Its name, for lines that are composed otherwise.
    pub(super) fn name(&self) -> &serde_json::Value {
        &self.name
    }
}

/// Lines that go into one write.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) text: Vec<u8>,
    /// What happened now; lines of the past are not counted as lost twice.
    pub(super) lines: u64,
    /// The latest of the lines.
    pub(super) at: Timestamp,
    /// Facts of now.
    pub(super) facts: Option<Range>,
    /// The last fact of now whose lines are all here, or were in a batch before.
    pub(super) last: Option<Position>,
    /// Lines that found no room, and the facts among them.
    pub(super) dropped: u64,
    pub(super) dropped_facts: Option<Range>,
    /// Facts of the past.
    pub(super) past: Option<Range>,
    pub(super) ends_past: bool,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty() && !self.ends_past
    }

    /// A line of now.
    fn push(&mut self, line: &Line, node: &Node) {
        self.lines += 1;
        self.facts = line.range().map(|fact| fact.with(self.facts)).or(self.facts);
        self.last = self.last.max(line.position.filter(|_| !line.continues));
        self.render(line, node);
    }

    fn drop_line(&mut self, line: &Line) {
        self.dropped += 1;
        self.dropped_facts = line.range().map(|fact| fact.with(self.dropped_facts)).or(self.dropped_facts);
    }

    /// A line of the past.
    pub(super) fn push_past(&mut self, line: &Line, node: &Node) {
        self.past = line.range().map(|fact| fact.with(self.past)).or(self.past);
        self.render(line, node);
    }

    fn render(&mut self, line: &Line, node: &Node) {
        self.at = self.at.max(line.at);
        self.text.extend_from_slice(&line.text);
        self.text.extend_from_slice(&node.ending);
    }
}

pub(super) struct Queue {
    node: Node,
    room_bytes: usize,
    waiting: Mutex<Waiting>,
    call: Condvar,
}

#[derive(Default)]
struct Waiting {
    batch: Batch,
    is_over: bool,
    /// The thread sleeps, and has not been called yet.
    is_asleep: bool,
}

impl Waiting {
    fn has_news(&self) -> bool {
        !self.batch.text.is_empty() || self.batch.dropped > 0 || self.is_over
    }
}

impl Queue {
    /// One line may go beyond the room.
    pub(super) fn new(node: Node, room_bytes: usize) -> Self {
        Self { node, room_bytes, waiting: Mutex::default(), call: Condvar::new() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread once the lock is free: it would wait for that at once.
    fn call(&self, mut waiting: MutexGuard<'_, Waiting>) {
        let is_asleep = std::mem::take(&mut waiting.is_asleep);
        drop(waiting);
        if is_asleep {
            self.call.notify_one();
        }
    }

    /// Returns how many found no room.
    pub(super) fn put(&self, lines: &[Line]) -> u64 {
        let mut waiting = self.waiting();
        let before = waiting.batch.dropped;
        for line in lines {
            if waiting.batch.text.len() < self.room_bytes {
                waiting.batch.push(line, &self.node);
            } else {
                waiting.batch.drop_line(line);
            }
        }
        let dropped = waiting.batch.dropped - before;
        if waiting.has_news() {
            self.call(waiting);
        }
        dropped
    }

    /// Nothing more comes.
    pub(super) fn close(&self) {
        let mut waiting = self.waiting();
        waiting.is_over = true;
        self.call(waiting);
    }

    /// Waits until there is something to take, or so long.
    pub(super) fn wait(&self, patience: Duration) {
        let mut waiting = self.waiting();
        waiting.is_asleep = true;
        let waited = self.call.wait_timeout_while(waiting, patience, |waiting| !waiting.has_news());
        waited.unwrap_or_else(PoisonError::into_inner).0.is_asleep = false;
    }

    /// Lets more come for so long, if something came; not when nothing more will.
    pub(super) fn gather(&self, time: Duration) {
        let waiting = self.waiting();
        if waiting.has_news() {
            let _over = self.call.wait_timeout_while(waiting, time, |waiting| !waiting.is_over);
        }
    }

    /// All that waits, and whether nothing more comes.
    pub(super) fn take(&self) -> (Batch, bool) {
        let mut waiting = self.waiting();
        (std::mem::take(&mut waiting.batch), waiting.is_over)
    }

    /// As if so many lines had found no room.
    #[cfg(test)]
    pub(super) fn lose(&self, lines: u64) {
        self.waiting().batch.dropped += lines;
    }
}
