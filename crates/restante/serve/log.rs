//! The delivery log: one JSON object per event, written after the fact is durable, by a thread of its own.
//!
//! Mail never waits for the log. If its disk is full or slow, lines are dropped, counted, and the gap is said in the log
//! itself as soon as it takes lines again.

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
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Lines waiting for the disk: some seconds of a busy server, about 50 MiB.
const QUEUE_LINES: usize = 65_536;
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
    position: Option<Position>,
}

/// What the log's thread is told.
pub(crate) enum Item {
    Line(Line),
    /// All that the last crash kept from the log has been told.
    CaughtUp,
}

impl Line {
    fn new(event: &str, at: Timestamp) -> Self {
        let mut line = Map::new();
        line.insert("type".into(), "log".into());
        line.insert("ts".into(), at.to_string().into());
        line.insert("ev".into(), event.into());
        Self { fields: line, position: None }
    }

    /// The line of a fact at this position.
    pub(crate) fn at(mut self, position: Position) -> Self {
        self.position = Some(position);
        self
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
        accepted.hold.iter().fold(line, |line, why| line.with("status", "hold").with("why", why.as_str()))
    }

    /// One line for each recipient tried.
    pub(crate) fn attempted(attempted: &Attempted, about: &Accepted) -> Vec<Self> {
        attempted.results.iter().map(|(index, outcome)| Self::result(attempted, about, *index, outcome)).collect()
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
        let event = match operated.action {
            restante_ledger::Action::Hold => "held",
            restante_ledger::Action::Release => "released",
        };
        let addressed = operated.recipients.iter().filter_map(|i| about.envelope.recipients.get(usize::from(*i)));
        let line = |to: &restante_envelope::Recipient| {
            Self::new(event, operated.at)
                .with("id", operated.id.to_string())
                .with("route", to.route.as_str())
                .with("to", to.forward_path.as_str())
                .with("status", event)
                .with("actor", operated.actor.as_str())
                .with("reason", operated.reason.as_str())
        };
        addressed.map(line).collect()
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

    pub(crate) fn recovered(at: Timestamp, state: &str, pending: u64) -> Self {
        Self::new("recovered", at).with("status", state).with("pending", pending)
    }
}

/// The way to the log's thread. Never waits.
#[derive(Clone)]
pub(crate) struct LogHandle {
    items: SyncSender<Item>,
    metrics: Arc<Metrics>,
}

impl LogHandle {
    /// Hands a line over, or counts it as dropped.
    pub(crate) fn write(&self, line: Line) {
        if self.items.try_send(Item::Line(line)).is_err() {
            self.metrics.log_dropped(1);
        }
    }

    /// For lines that may wait.
    pub(crate) fn patient(&self) -> SyncSender<Item> {
        self.items.clone()
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
    std::fs::create_dir_all(&directory)?;
    let (items, receiver) = sync_channel(QUEUE_LINES);
    let cursor = Cursor::open(&directory)?;
    let saved = cursor.saved();
    let (behind, lost, unsaved) = (behind(saved), 0, None);
    let mut writer = Writer { directory, node, metrics: metrics.clone(), file: None, lost, cursor, behind, unsaved };
    let thread = std::thread::Builder::new().name("log".into()).spawn(move || writer.run(&receiver))?;
    Ok(Started { handle: LogHandle { items, metrics }, thread, cursor: saved })
}

struct Writer {
    directory: PathBuf,
    node: String,
    metrics: Arc<Metrics>,
    file: Option<Open>,
    /// Lines that were not written since the last one that was.
    lost: u64,
    cursor: Cursor,
    /// Older facts are still being told: what is told now must not move the cursor over them.
    behind: bool,
    /// The last fact written, if the cursor is not there yet.
    unsaved: Option<Position>,
}

struct Open {
    file: File,
    bytes: u64,
    /// `2026-11-22`, from the first line.
    day: String,
}

impl Writer {
    fn run(&mut self, items: &Receiver<Item>) {
        let mut text = Vec::new();
        let mut saved_at = Instant::now();
        loop {
            match items.recv_timeout(SAVE_EVERY) {
                Ok(first) => self.take(first, items, &mut text),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.save(),
            }
            if saved_at.elapsed() >= SAVE_EVERY {
                self.save();
                saved_at = Instant::now();
            }
        }
    }

    /// What is there goes into one write: a busy server writes hundreds of lines at a time, a quiet one each at once.
    fn take(&mut self, first: Item, items: &Receiver<Item>, text: &mut Vec<u8>) {
        let (mut next, mut count, mut day, mut last) = (Some(first), 0, String::new(), None);
        while let Some(item) = next.take() {
            match item {
                Item::Line(line) => {
                    last = last.max(line.position);
                    day = self.render(line, text);
                    count += 1;
                }
                Item::CaughtUp => self.behind = false,
            }
            if text.len() < WRITE_BYTES {
                next = items.try_recv().ok();
            }
        }
        if let Err(error) = self.write(text, &day) {
            if self.lost == 0 {
                tracing::warn!("cannot write the delivery log, mail goes on without it: {error}");
            }
            self.file = None;
            self.lost += count;
            self.metrics.log_dropped(count);
        }
        self.unsaved = self.unsaved.max(last);
        text.clear();
    }

    /// Moves the cursor behind what is on stable storage.
    fn save(&mut self) {
        let Some(place) = self.unsaved.filter(|place| !self.behind && Some(*place) > self.cursor.saved()) else {
            return;
        };
        let synced = self.file.as_ref().map_or(Ok(()), |open| open.file.sync_data());
        match synced.and_then(|()| self.cursor.save(place)) {
            Ok(()) => self.unsaved = None,
            Err(error) => tracing::debug!("the log's cursor stays behind: {error}"),
        }
    }

    fn render(&self, mut line: Line, text: &mut Vec<u8>) -> String {
        line.fields.insert("node".into(), self.node.as_str().into());
        let day =
            line.fields.get("ts").and_then(Value::as_str).and_then(|ts| ts.get(..10)).unwrap_or_default().to_owned();
        if serde_json::to_writer(&mut *text, &line.fields).is_ok() {
            text.push(b'\n');
        }
        day
    }

    fn write(&mut self, text: &[u8], day: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let due = |open: &Open| open.bytes > FILE_BYTES_MAX || open.day.as_str() < day;
        if self.file.as_ref().is_some_and(due) {
            self.file = None;
            rotate(&self.directory)?;
        }
        if self.file.is_none() {
            self.file = Some(open(&self.directory, day)?);
        }
        let Some(open) = &mut self.file else { return Ok(()) };
        if self.lost > 0 {
            let gap = json!({"type": "log", "ts": crate::clock::now().to_string(), "ev": "log_gap", "node": self.node,
                "why": format!("{} records could not be written", self.lost)});
            writeln!(open.file, "{gap}")?;
            self.lost = 0;
        }
        open.file.write_all(text)?;
        open.bytes += text.len() as u64;
        Ok(())
    }
}

fn open(directory: &Path, day: &str) -> io::Result<Open> {
    let path = directory.join(CURRENT);
    if let Some(old) = first_day(&path)?.filter(|old| old.as_str() < day) {
        tracing::debug!("the log of {old} is put aside");
        rotate(directory)?;
    }
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let bytes = file.metadata()?.len();
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
