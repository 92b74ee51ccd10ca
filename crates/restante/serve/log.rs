//! The delivery log: one JSON object per event, written after the fact is durable, by a thread of its own.
//!
//! Mail never waits for the log. If its disk is full or slow, lines are dropped, counted, and the gap is said in the log
//! itself as soon as it takes lines again. From then on the cursor stays in front of the first lost fact: the next start
//! tells all from there once more. At least once, never silently missing.

use super::log_cursor::Cursor;
use super::metrics::Metrics;
use restante_envelope::{RouteName, Timestamp, TransactionId};
use restante_ledger::{Accepted, Attempted, Cause, Outcome, Position};
use restante_relay::Event;
use restante_smtp::{Counts, RefusedCommand};
use serde_json::{Map, Value, json};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Lines waiting for the disk: a second or more of a busy server. A line is a map of up to 20 strings, some 4 KiB with
/// the map's own slots, so about 64 MiB when full.
const QUEUE_LINES: usize = 16_384;
/// Lines of the past among them: few, so that telling it leaves the room to what happens now.
const PAST_LINES_MAX: usize = QUEUE_LINES / 16;
/// A file is put aside when it is larger than this, or a day old.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Files kept beside the current one: at most 2 GiB of log.
const FILES_KEPT: usize = 32;
/// Written at once.
const WRITE_BYTES: usize = 1 << 20;
/// How often the log is synced and the cursor moved: what is told twice after a crash is what was told in this time.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Recipients named in one line; the count tells how many there are.
const RECIPIENTS_NAMED_MAX: usize = 10;
/// The file that is written.
pub(crate) const CURRENT: &str = "delivery.jsonl";

/// One event, and the fact it tells of.
pub(crate) struct Line {
    fields: Map<String, Value>,
    /// Of the fact; none for what is in no journal.
    position: Option<Position>,
    /// More lines of the same fact follow: the cursor moves over it with the last one.
    continues: bool,
}

/// What the log's thread is told.
pub(crate) enum Item {
    Line(Line),
    /// A line that a crash kept from the log.
    Past(Line),
    /// All that the last crash kept from the log has been told.
    CaughtUp,
}

impl Line {
    fn new(event: &str, at: Timestamp) -> Self {
        let mut line = Map::new();
        line.insert("type".into(), "log".into());
        line.insert("ts".into(), at.to_string().into());
        line.insert("ev".into(), event.into());
        Self { fields: line, position: None, continues: false }
    }

    /// The line of a fact at this position.
    pub(crate) fn at(mut self, position: Position) -> Self {
        self.position = Some(position);
        self
    }

    /// The lines of one fact.
    fn together(mut lines: Vec<Self>) -> Vec<Self> {
        if let Some((_last, others)) = lines.split_last_mut() {
            others.iter_mut().for_each(|line| line.continues = true);
        }
        lines
    }

    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(key.into(), value.into());
        self
    }

    fn with_client(self, client: SocketAddr, session: u64) -> Self {
        self.with("sid", format!("{session:x}")).with("client_ip", client.ip().to_string())
    }

    pub(crate) fn connect(client: SocketAddr, session: u64) -> Self {
        Self::new("connect", crate::clock::now()).with_client(client, session)
    }

    pub(crate) fn disconnect(client: SocketAddr, session: u64, counts: &Counts, why: Option<String>) -> Self {
        let line = Self::new("disconnect", crate::clock::now())
            .with_client(client, session)
            .with("accepted", counts.accepted)
            .with("refused", counts.refused)
            .with("size", counts.bytes);
        why.into_iter().fold(line, |line, why| line.with("why", why))
    }

    pub(crate) fn rejected(client: SocketAddr, session: u64, refusal: &RefusedCommand) -> Self {
        let mut line = Self::new("rejected", crate::clock::now())
            .with_client(client, session)
            .with("stage", refusal.stage.as_str())
            .with_reply(&refusal.reply);
        for (key, value) in [("helo", &refusal.helo), ("from", &refusal.reverse_path), ("to", &refusal.forward_path)] {
            if let Some(value) = value {
                line = line.with(key, value.as_str());
            }
        }
        line
    }

    pub(crate) fn accepted(accepted: &Accepted) -> Self {
        let named = accepted.envelope.recipients.iter().take(RECIPIENTS_NAMED_MAX);
        let to: Vec<_> = named.map(|r| r.forward_path.as_str()).collect();
        let mut routes: Vec<_> = accepted.envelope.recipients.iter().map(|r| r.route.as_str()).collect();
        routes.sort_unstable();
        routes.dedup();
        let line = Self::new("accepted", accepted.trace.received_at)
            .with("id", accepted.id.to_string())
            .with_client(accepted.trace.client, accepted.trace.session)
            .with("helo", accepted.trace.helo.as_str())
            .with("route", routes.join(","))
            .with("from", accepted.envelope.reverse_path.as_str())
            .with("to", to.join(","))
            .with("nrcpt", accepted.envelope.recipients.len())
            .with("size", accepted.content_len)
            .with("status", "accepted");
        let line = accepted.trace.tls.iter().fold(line, |line, tls| line.with("tls", tls.as_str()));
        accepted.hold.iter().fold(line, |line, why| line.with("status", "hold").with("why", why.as_str()))
    }

    /// One line for each recipient tried.
    pub(crate) fn attempted(attempted: &Attempted, about: &Accepted) -> Vec<Self> {
        let result = |(index, outcome): &(u16, Outcome)| Self::result(attempted, about, *index, outcome);
        Self::together(attempted.results.iter().map(result).collect())
    }

    fn result(attempted: &Attempted, about: &Accepted, index: u16, outcome: &Outcome) -> Self {
        let (event, status) = match outcome {
            Outcome::Sent(_) => ("sent", "sent"),
            Outcome::Deferred { .. } => ("deferred", "deferred"),
            Outcome::Held(_) => ("held", "hold"),
            Outcome::Quarantined(_) => ("quarantined", "quarantined"),
        };
        let mut line = Self::new(event, attempted.at).with("id", attempted.id.to_string());
        if let Some(recipient) = about.envelope.recipients.get(usize::from(index)) {
            line = line.with("route", recipient.route.as_str()).with("to", recipient.forward_path.as_str());
        }
        let t = &attempted.timings;
        let seconds = |ms: u64| ms as f64 / 1000.0;
        let before = u64::from(t.before_queue_ms);
        let delays = [before, t.in_queue_ms, u64::from(t.connect_ms), u64::from(t.transfer_ms)];
        line = line
            .with("from", about.envelope.reverse_path.as_str())
            .with("size", about.content_len)
            .with("delay_s", seconds(delays.iter().sum()))
            .with("delays", Value::from_iter(delays.map(seconds)))
            .with("status", status);
        if let Some(hop) = &attempted.next_hop {
            line = line
                .with("relay_host", hop.host.as_str())
                .with("relay_ip", hop.ip.to_string())
                .with("relay_port", hop.port);
            line = hop.tls.iter().fold(line, |line, tls| line.with("tls", tls.as_str()));
        }
        match outcome {
            Outcome::Sent(reply) => line.with_reply(reply),
            Outcome::Deferred { cause, next_at } => line.with("next_at", next_at.to_string()).with_cause(cause),
            Outcome::Held(cause) | Outcome::Quarantined(cause) => line.with_cause(cause),
        }
    }

    fn with_cause(self, cause: &Cause) -> Self {
        match cause {
            Cause::Reply(reply) => self.with_reply(reply),
            other => self.with("why", other.to_string()),
        }
    }

    fn with_reply(self, reply: &restante_envelope::Reply) -> Self {
        let line = self.with("code", reply.code()).with("reply", reply.to_string());
        match reply.enhanced() {
            Some(enhanced) => line.with("dsn", enhanced.to_string()),
            None => line,
        }
    }

    /// A transaction begins to wait: its primary is down.
    pub(crate) fn waiting(id: TransactionId, route: &RouteName, why: &str) -> Self {
        Self::new("waiting", crate::clock::now())
            .with("id", id.to_string())
            .with("route", route.as_str())
            .with("status", "waiting")
            .with("why", why)
    }

    pub(crate) fn operated(operated: &restante_ledger::Operated, about: &Accepted) -> Vec<Self> {
        let (event, status) = match operated.action {
            restante_ledger::Action::Hold => ("held", "hold"),
            restante_ledger::Action::Release => ("released", "released"),
        };
        let addressed = operated.recipients.iter().filter_map(|i| about.envelope.recipients.get(usize::from(*i)));
        let line = |to: &restante_envelope::Recipient| {
            Self::new(event, operated.at)
                .with("id", operated.id.to_string())
                .with("route", to.route.as_str())
                .with("to", to.forward_path.as_str())
                .with("status", status)
                .with("actor", operated.actor.as_str())
                .with("reason", operated.reason.as_str())
        };
        Self::together(addressed.map(line).collect())
    }

    pub(crate) fn primary(event: &Event, at: Timestamp) -> Self {
        let line = Self::new(event.name(), at);
        match event {
            Event::PrimaryUp { route, down_for } => {
                let line = line.with("route", route.as_str());
                down_for.iter().fold(line, |line, down| line.with("down_s", down.as_secs()))
            }
            Event::PrimarySuspect { route, why } | Event::PrimaryDown { route, why } => {
                line.with("route", route.as_str()).with("why", why.as_str())
            }
        }
    }

    /// With the number of messages that wait.
    pub(crate) fn pending(self, messages: u64) -> Self {
        self.with("pending", messages)
    }

    pub(crate) fn recovered(at: Timestamp, state: &str, pending: u64) -> Self {
        Self::new("recovered", at).with("status", state).pending(pending)
    }
}

/// What found no room in the queue. Set before any later line is queued, so whoever takes that one sees it.
#[derive(Default)]
struct Overflow {
    /// Since they were last told of.
    lines: AtomicU64,
    /// A line of a fact was among them, ever.
    facts: AtomicBool,
}

/// The way to the log's thread. Never waits.
#[derive(Clone)]
pub(crate) struct LogHandle {
    items: SyncSender<Item>,
    /// Holds one for each line of the past that is queued.
    past: SyncSender<()>,
    overflow: Arc<Overflow>,
    metrics: Arc<Metrics>,
}

impl LogHandle {
    /// Hands a line over, or counts it as dropped.
    pub(crate) fn write(&self, line: Line) {
        let is_fact = line.position.is_some();
        if self.items.try_send(Item::Line(line)).is_err() {
            self.overflow.lines.fetch_add(1, Ordering::Release);
            self.overflow.facts.fetch_or(is_fact, Ordering::Release);
            self.metrics.log_dropped(1);
        }
    }

    /// For lines of the past, which may wait.
    pub(crate) fn patient(&self) -> Patient {
        Patient { items: self.items.clone(), past: self.past.clone() }
    }
}

/// The way for lines of the past. Waits for the thread to have taken those before; does nothing once it has ended.
pub(crate) struct Patient {
    items: SyncSender<Item>,
    past: SyncSender<()>,
}

impl Patient {
    pub(crate) fn write(&self, line: Line) {
        if self.past.send(()).is_ok() {
            let _ended = self.items.send(Item::Past(line));
        }
    }

    /// All of the past has been handed over.
    pub(crate) fn caught_up(&self) {
        let _ended = self.items.send(Item::CaughtUp);
    }
}

/// The log, running.
pub(crate) struct Started {
    pub(crate) handle: LogHandle,
    pub(crate) thread: std::thread::JoinHandle<()>,
    /// Where the log had come to when it was last written.
    pub(crate) cursor: Option<Position>,
}

/// Starts the thread; it ends when the last handle is dropped. With `behind`, facts in front of the running daemon's
/// are still to be told, and the cursor stays where it is until they have been.
pub(crate) fn start(
    directory: PathBuf,
    node: String,
    metrics: Arc<Metrics>,
    behind: impl FnOnce(Option<Position>) -> bool,
) -> io::Result<Started> {
    let (handle, items, mut writer) = assemble(directory, node, metrics, QUEUE_LINES)?;
    let cursor = writer.cursor.saved();
    writer.behind = behind(cursor);
    let thread = std::thread::Builder::new().name("log".into()).spawn(move || writer.run(&items))?;
    Ok(Started { handle, thread, cursor })
}

fn assemble(
    directory: PathBuf,
    node: String,
    metrics: Arc<Metrics>,
    queue_lines: usize,
) -> io::Result<(LogHandle, Receiver<Item>, Writer)> {
    std::fs::create_dir_all(&directory)?;
    let (items, receiver) = sync_channel(queue_lines);
    let (past, past_queued) = sync_channel(PAST_LINES_MAX);
    let overflow = Arc::new(Overflow::default());
    let writer = Writer {
        cursor: Cursor::open(&directory)?,
        directory,
        node,
        metrics: metrics.clone(),
        overflow: overflow.clone(),
        past_queued,
        file: None,
        lost: 0,
        is_failing: false,
        behind: false,
        frozen: false,
        unsaved: None,
    };
    Ok((LogHandle { items, past, overflow, metrics }, receiver, writer))
}

struct Writer {
    directory: PathBuf,
    node: String,
    metrics: Arc<Metrics>,
    overflow: Arc<Overflow>,
    past_queued: Receiver<()>,
    file: Option<Open>,
    /// Lines that were not written since the last one that was.
    lost: u64,
    /// The last write failed, and that was said.
    is_failing: bool,
    cursor: Cursor,
    /// Older facts are still being told: what is told now must not move the cursor over them.
    behind: bool,
    /// Lines of a fact were lost: the cursor stays in front of it, for the next start to tell it.
    frozen: bool,
    /// The last fact written, if the cursor is not there yet.
    unsaved: Option<Position>,
}

struct Open {
    file: File,
    bytes: u64,
    /// `2026-11-22`, from the first line.
    day: String,
}

/// Lines that go into one write.
#[derive(Default)]
struct Batch {
    text: Vec<u8>,
    lines: u64,
    /// The last one of the lines' days.
    day: String,
    has_facts: bool,
    ends_past: bool,
    /// The last fact whose lines are all here, or were in a batch before.
    last: Option<Position>,
}

impl Writer {
    fn run(&mut self, items: &Receiver<Item>) {
        let mut saved_at = Instant::now();
        loop {
            match items.recv_timeout(SAVE_EVERY) {
                Ok(first) => self.take(first, items),
                Err(RecvTimeoutError::Timeout) => self.append(&Batch::default()),
                Err(RecvTimeoutError::Disconnected) => {
                    self.append(&Batch::default());
                    return self.save();
                }
            }
            if saved_at.elapsed() >= SAVE_EVERY {
                self.save();
                saved_at = Instant::now();
            }
        }
    }

    /// What is there goes into one write: a busy server writes hundreds of lines at a time, a quiet one each at once.
    fn take(&mut self, first: Item, items: &Receiver<Item>) {
        let (mut next, mut batch) = (Some(first), Batch::default());
        while let Some(item) = next.take() {
            match item {
                Item::Line(line) => self.render(line, &mut batch),
                Item::Past(line) => {
                    let _makes_room = self.past_queued.try_recv();
                    self.render(line, &mut batch);
                }
                Item::CaughtUp => batch.ends_past = true,
            }
            if batch.text.len() < WRITE_BYTES {
                next = items.try_recv().ok();
            }
        }
        self.append(&batch);
    }

    /// Writes a batch, in front of it what is to be said of a gap.
    fn append(&mut self, batch: &Batch) {
        self.lost += self.overflow.lines.swap(0, Ordering::Acquire);
        if self.overflow.facts.load(Ordering::Acquire) {
            self.freeze();
        }
        match self.write(batch) {
            Ok(()) => self.is_failing = false,
            Err(error) => {
                if !self.is_failing {
                    tracing::warn!("cannot write the delivery log, mail goes on without it: {error}");
                }
                self.is_failing = true;
                self.put_down();
                self.lost += batch.lines;
                self.metrics.log_dropped(batch.lines);
                if batch.has_facts {
                    self.freeze();
                }
            }
        }
        if !self.frozen {
            self.unsaved = self.unsaved.max(batch.last);
        }
        self.behind &= !batch.ends_past;
    }

    /// The cursor goes no further than what was written in front of the first lost fact; nowhere if that may be old.
    fn freeze(&mut self) {
        if !self.frozen {
            tracing::warn!("lines of the delivery log were lost; the next start tells it again from there");
        }
        self.frozen = true;
        self.unsaved = self.unsaved.filter(|_| !self.behind);
    }

    /// Lets go of the file. What is in it must be on stable storage before the cursor moves over it.
    fn put_down(&mut self) {
        let Some(open) = self.file.take() else { return };
        if let Err(error) = open.file.sync_data() {
            self.not_synced(&error);
        }
    }

    /// The kernel tells of bytes that it could not store once only: nothing written since the last save can be relied on.
    fn not_synced(&mut self, error: &io::Error) {
        tracing::debug!("the log's cursor stays behind: {error}");
        self.unsaved = None;
        self.freeze();
    }

    /// Moves the cursor behind what is on stable storage.
    fn save(&mut self) {
        let Some(place) = self.unsaved.filter(|place| !self.behind && Some(*place) > self.cursor.saved()) else {
            return;
        };
        if let Err(error) = self.file.as_ref().map_or(Ok(()), |open| open.file.sync_data()) {
            return self.not_synced(&error);
        }
        match self.cursor.save(place) {
            Ok(()) => self.unsaved = None,
            Err(error) => tracing::debug!("the log's cursor stays behind: {error}"),
        }
    }

    fn render(&self, mut line: Line, batch: &mut Batch) {
        line.fields.insert("node".into(), self.node.as_str().into());
        let day = line.fields.get("ts").and_then(Value::as_str).and_then(|ts| ts.get(..10)).unwrap_or_default();
        if batch.day.as_str() < day {
            day.clone_into(&mut batch.day);
        }
        if serde_json::to_writer(&mut batch.text, &line.fields).is_ok() {
            batch.text.push(b'\n');
        }
        batch.lines += 1;
        batch.has_facts |= line.position.is_some();
        batch.last = batch.last.max(line.position.filter(|_| !line.continues));
    }

    fn write(&mut self, batch: &Batch) -> io::Result<()> {
        if batch.text.is_empty() && self.lost == 0 {
            return Ok(());
        }
        let now = crate::clock::now().to_string();
        let day = if batch.day.is_empty() { now.get(..10).unwrap_or_default() } else { batch.day.as_str() };
        let due = |open: &Open| open.bytes > FILE_BYTES_MAX || open.day.as_str() < day;
        if self.file.as_ref().is_some_and(due) {
            self.put_down();
            rotate(&self.directory)?;
        }
        if self.file.is_none() {
            self.file = Some(open(&self.directory, day)?);
        }
        let Some(open) = &mut self.file else { return Ok(()) };
        if self.lost > 0 {
            let gap = json!({"type": "log", "ts": now, "ev": "log_gap", "node": self.node,
                "why": format!("{} records could not be written", self.lost)});
            open.file.write_all(format!("{gap}\n").as_bytes())?;
            self.lost = 0;
        }
        open.file.write_all(&batch.text)?;
        open.bytes += batch.text.len() as u64;
        Ok(())
    }
}

fn open(directory: &Path, day: &str) -> io::Result<Open> {
    let path = directory.join(CURRENT);
    if let Some(old) = first_day(&path)?.filter(|old| old.as_str() < day) {
        tracing::debug!("the log of {old} is put aside");
        rotate(directory)?;
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
        file.write_all(b"\n")?;
    }
    Ok(Open { file, bytes, day: day.to_owned() })
}

/// The day of a file's first line.
fn first_day(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut line = String::new();
    io::BufRead::read_line(&mut io::BufReader::new(file), &mut line)?;
    let parsed: Option<Value> = serde_json::from_str(&line).ok();
    Ok(parsed.and_then(|v| v.get("ts")?.as_str()?.get(..10).map(str::to_owned)))
}

/// `delivery.jsonl` becomes `delivery-<day>-<nnn>.jsonl`; the oldest files beyond the limit go.
fn rotate(directory: &Path) -> io::Result<()> {
    let current = directory.join(CURRENT);
    let day = first_day(&current)?.unwrap_or_else(|| "undated".into());
    let free = (1..).map(|n| directory.join(format!("delivery-{day}-{n:03}.jsonl"))).find(|path| !path.exists());
    if let Some(aside) = free {
        std::fs::rename(current, aside)?;
    }
    let mut old = files(directory)?;
    old.retain(|path| !path.ends_with(CURRENT));
    for path in old.iter().take(old.len().saturating_sub(FILES_KEPT)) {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// All files of the log, oldest first.
pub(crate) fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.starts_with("delivery") && name.ends_with(".jsonl") {
            found.push(path);
        }
    }
    // `delivery-2026-...` sorts before `delivery.jsonl`: `-` is smaller than `.`.
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests;
