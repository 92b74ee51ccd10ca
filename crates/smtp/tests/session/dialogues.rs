//! Runs every file of `dialogues/` (format: its README), whole and cut into single bytes.

use crate::host::{Recorder, START, session, settings};
use restante_envelope::{Timestamp, TransactionId};
use restante_smtp::{Resolution, Session, Settings, Trouble};
use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::time::Duration;

struct Stage {
    session: Session,
    host: Recorder,
    now: Timestamp,
    /// Sent by the client, not yet consumed.
    pending: Vec<u8>,
    /// Read from the session, not yet expected.
    replies: VecDeque<String>,
    piece_bytes: usize,
    stored: u128,
    expects_log: bool,
    said_closed: bool,
}

impl Stage {
    fn new(settings: Settings, piece_bytes: usize) -> Self {
        Self {
            session: session(settings),
            host: Recorder::default(),
            now: Timestamp::from_unix_ms(START),
            pending: Vec::new(),
            replies: VecDeque::new(),
            piece_bytes,
            stored: 0,
            expects_log: false,
            said_closed: false,
        }
    }

    fn pump(&mut self) {
        let (pending, mut from) = (std::mem::take(&mut self.pending), 0);
        while from < pending.len() && !self.session.wants_close() {
            let to = pending.len().min(from.saturating_add(self.piece_bytes));
            let consumed = self.session.receive(&pending[from..to], self.now, &mut self.host);
            from += consumed;
            if consumed == 0 {
                assert!(self.session.awaits_commit(), "input is refused, but no commit is awaited");
                break;
            }
        }
        self.pending = pending[from..].to_vec();
        self.read();
    }

    fn read(&mut self) {
        let output = String::from_utf8(std::mem::take(self.session.output())).unwrap();
        assert!(output.is_empty() || output.ends_with("\r\n"));
        self.replies.extend(output.split_terminator("\r\n").map(str::to_owned));
        assert!(!self.session.wants_close() || !self.host.open, "closed without end or abort");
    }

    fn send(&mut self, bytes: &[u8]) {
        assert!(!self.session.wants_close(), "the session has closed already");
        self.pending.extend_from_slice(bytes);
    }

    fn nothing_is_left(&self) {
        assert!(self.replies.is_empty(), "unexpected: {:?}", self.replies);
        assert!(self.host.events.is_empty(), "unexpected: {:?}", self.host.events);
        assert!(self.host.log.is_empty() || !self.expects_log, "unexpected: {:?}", self.host.log);
    }

    fn event(&mut self, event: &str) {
        let words: Vec<&str> = event.split(' ').collect();
        match words[..] {
            ["closed"] => {
                assert!(self.session.wants_close(), "expected the session to close");
                assert_eq!(self.session.poll_timeout(), None);
                self.said_closed = true;
            }
            ["awaiting"] => assert!(self.session.awaits_commit() && self.session.poll_timeout().is_none()),
            ["awaiting", "tls"] => assert!(self.session.awaits_tls() && self.session.poll_timeout().is_none()),
            ["tls", "failed"] => self.session.tls_failed(),
            ["tls", version, suite] => {
                assert!(self.session.awaits_tls(), "no handshake is due");
                self.session.tls_started(format!("{version} {suite}"), self.now);
            }
            ["stored"] => {
                self.stored += 1;
                let id = TransactionId::from_bits(self.stored);
                self.session.resolve(Resolution::Stored(id), self.now);
            }
            ["failed", trouble] => self.session.resolve(Resolution::Failed(self::trouble(trouble)), self.now),
            ["mail", trouble] => self.host.mail_fails = Some(self::trouble(trouble)),
            ["begin", trouble] => self.host.begin_fails = Some(self::trouble(trouble)),
            ["chunk", trouble] => self.host.chunk_fails = Some(self::trouble(trouble)),
            ["wait", seconds] => {
                self.now = self.now + Duration::from_secs(seconds.parse().unwrap());
                self.session.handle_timeout(self.now, &mut self.host);
            }
            ["shutdown"] => self.session.shut_down(&mut self.host),
            ["disconnected"] => self.session.disconnected(&mut self.host),
            _ => panic!("unknown event"),
        }
        self.pump();
    }
}

fn trouble(name: &str) -> Trouble {
    match name {
        "storage" => Trouble::Storage,
        "local" => Trouble::Local,
        "overloaded" => Trouble::Overloaded,
        "shutdown" => Trouble::ShuttingDown,
        _ => panic!("unknown trouble"),
    }
}

/// Undoes `\r \n \0 \\ \xNN`.
fn unescape(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(b) = rest.next() {
        bytes.push(match (b, if b == b'\\' { rest.next() } else { None }) {
            (b, None) => b,
            (_, Some(b'r')) => b'\r',
            (_, Some(b'n')) => b'\n',
            (_, Some(b'0')) => 0,
            (_, Some(b'x')) => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            (_, Some(other)) => other,
        });
    }
    bytes
}

/// `3 text` is text three times; `text` is text once.
fn repeated(text: &str) -> (usize, &str) {
    let (count, what) = text.split_once(' ').expect("COUNT TEXT");
    (count.parse().expect("COUNT"), what)
}

fn step(stage: &mut Stage, kind: &str, text: &str) {
    match kind {
        "C:" => stage.send(format!("{text}\r\n").as_bytes()),
        "C*" => {
            let (count, line) = repeated(text);
            stage.send(format!("{line}\r\n").repeat(count).as_bytes());
        }
        "C-" => stage.send(&unescape(text)),
        "C#" => {
            let (count, raw) = repeated(text);
            stage.send(&unescape(raw).repeat(count));
        }
        "S:" => assert_eq!(stage.replies.pop_front().as_deref(), Some(text)),
        "S~" => {
            let reply = stage.replies.pop_front().unwrap_or_else(|| panic!("expected {text}, got nothing"));
            assert!(reply.starts_with(text), "expected {text}, got {reply}");
        }
        "S*" => {
            let (count, prefix) = repeated(text);
            for n in 0..count {
                let reply = stage.replies.pop_front().unwrap_or_else(|| panic!("expected {prefix}, got {n} of them"));
                assert!(reply.starts_with(prefix), "expected {prefix}, got {reply}");
            }
        }
        "H:" => assert_eq!(stage.host.events.pop_front().as_deref(), Some(text)),
        "L:" => assert_eq!(stage.host.log.pop_front().as_deref(), Some(text)),
        "E:" => stage.event(text),
        _ => panic!("unknown kind of line"),
    }
}

fn run(name: &str, script: &str, piece_bytes: usize) {
    let mut settings = settings();
    let mut lines = script.lines().enumerate().filter(|(_, l)| !l.is_empty() && !l.starts_with('#')).peekable();
    let mut expects_log = false;
    while let Some((_, line)) = lines.next_if(|(_, line)| line.starts_with("! ")) {
        match line.split(' ').collect::<Vec<_>>()[1..] {
            ["max_message_bytes", bytes] => settings.max_message_bytes = bytes.parse().unwrap(),
            ["max_recipients", count] => settings.max_recipients = count.parse().unwrap(),
            ["starttls"] => settings.starttls = true,
            ["log"] => expects_log = true,
            ["whole"] if piece_bytes < usize::MAX => return,
            ["whole"] => {}
            _ => panic!("{name}: unknown setting {line}"),
        }
    }
    let mut stage = Stage::new(settings, piece_bytes);
    stage.expects_log = expects_log;
    stage.read();
    let mut client_speaks = false;
    for (number, line) in lines {
        let (kind, text) = line.split_at_checked(2).unwrap_or((line, ""));
        let text = text.strip_prefix(' ').unwrap_or(text);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            if client_speaks && !kind.starts_with('C') {
                stage.pump();
            } else if (kind.starts_with('C') && !client_speaks) || (kind == "E:" && text != "closed") {
                stage.nothing_is_left();
            }
            step(&mut stage, kind, text);
        }));
        client_speaks = kind.starts_with('C');
        assert!(outcome.is_ok(), "{name}:{} (pieces of {piece_bytes}): {line}", number + 1);
    }
    stage.nothing_is_left();
    assert_eq!(stage.said_closed, stage.session.wants_close(), "{name}: E: closed");
}

#[test]
fn every_dialogue_goes_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dialogues");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "txt"));
    files.sort();
    assert!(files.len() > 10, "the dialogues are gone");
    for file in files {
        let script = fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy();
        for piece_bytes in [usize::MAX, 1, 7] {
            run(&name, &script, piece_bytes);
        }
    }
}
