//! Runs every file of `tests/dialogue` (format: its README): whole, in pieces, and cut in two at every byte.

use crate::host::{Recorder, START, session, settings};
use crate::script::{Script, Step, What, expect};
use restante_envelope::{Timestamp, TransactionId};
use restante_smtp::{BareLineEnds, Resolution, Session, Settings, Trouble};
use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Where the input is cut.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Cut {
    Nowhere,
    /// Into pieces of so many bytes.
    Pieces(usize),
    /// Once, behind so many bytes of the whole connection.
    At(usize),
}

impl Cut {
    /// How many of `bytes`, behind `before` others, come at once.
    fn next(self, before: usize, bytes: usize) -> usize {
        match self {
            Self::Pieces(size) => size.min(bytes),
            Self::At(at) if at > before => (at - before).min(bytes),
            Self::At(_) | Self::Nowhere => bytes,
        }
    }
}

/// Cuts of long inputs are spread over them.
const CUTS_MAX: usize = 1_500;

struct Stage {
    session: Session,
    host: Recorder,
    now: Timestamp,
    /// Sent by the client, not yet consumed.
    pending: Vec<u8>,
    /// Read from the session, not yet expected.
    replies: VecDeque<String>,
    cut: Cut,
    /// Sent so far.
    sent_bytes: usize,
    stored: u128,
    expects_log: bool,
    said_closed: bool,
}

impl Stage {
    fn new(settings: Settings, cut: Cut) -> Self {
        Self {
            session: session(settings),
            host: Recorder::default(),
            now: Timestamp::from_unix_ms(START),
            pending: Vec::new(),
            replies: VecDeque::new(),
            cut,
            sent_bytes: 0,
            stored: 0,
            expects_log: false,
            said_closed: false,
        }
    }

    fn pump(&mut self) {
        let (pending, mut from) = (std::mem::take(&mut self.pending), 0);
        while from < pending.len() && !self.session.wants_close() {
            let to = from + self.cut.next(self.sent_bytes, pending.len() - from);
            let consumed = self.session.receive(&pending[from..to], self.now, &mut self.host);
            from += consumed;
            self.sent_bytes += consumed;
            if consumed == 0 {
                assert!(self.session.awaits_commit(), "input is refused, but no commit is awaited");
                break;
            }
            self.read();
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

/// Returns how many bytes the client sent; none if this file is not to be cut so.
fn run(name: &str, script: &Script, cut: Cut) -> Option<usize> {
    let mut settings = settings();
    let (mut expects_log, mut is_proxy) = (false, false);
    for setting in &script.settings {
        match setting.split(' ').collect::<Vec<_>>()[..] {
            ["max_message_bytes", bytes] => settings.max_message_bytes = bytes.parse().unwrap(),
            ["max_recipients", count] => settings.max_recipients = count.parse().unwrap(),
            ["max_messages", count] => settings.max_messages = count.parse().unwrap(),
            ["max_header_bytes", bytes] => settings.max_header_bytes = bytes.parse().unwrap(),
            ["reject", "bare", "line", "ends"] => settings.bare_line_ends = BareLineEnds::Reject,
            ["starttls"] => settings.starttls = true,
            ["log"] => expects_log = true,
            ["xclient"] => is_proxy = true,
            ["whole"] if cut != Cut::Nowhere => return None,
            ["whole"] => {}
            _ => panic!("{name}: unknown setting {setting}"),
        }
    }
    let mut stage = Stage::new(settings, cut);
    stage.expects_log = expects_log;
    if is_proxy {
        stage.session.allow_xclient();
    }
    stage.read();
    let mut client_speaks = false;
    for step in &script.steps {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(&mut stage, step, client_speaks)));
        client_speaks = matches!(step.what, What::Client(_));
        assert!(outcome.is_ok(), "{name}:{} ({cut:?}): {}", step.number, step.line);
    }
    stage.nothing_is_left();
    assert_eq!(stage.said_closed, stage.session.wants_close(), "{name}: e: closed");
    Some(stage.sent_bytes)
}

fn play(stage: &mut Stage, step: &Step, client_speaks: bool) {
    let is_client = matches!(step.what, What::Client(_));
    let is_event = matches!(&step.what, What::Event(event) if event != "closed");
    if client_speaks && !is_client {
        stage.pump();
    } else if (is_client && !client_speaks) || is_event {
        stage.nothing_is_left();
    }
    match &step.what {
        What::Client(bytes) => stage.send(bytes),
        What::Server(times, said) => (0..*times).for_each(|_| expect(said, || stage.replies.pop_front())),
        What::Host(event) => assert_eq!(stage.host.events.pop_front().as_ref(), Some(event)),
        What::Log(line) => assert_eq!(stage.host.log.pop_front().as_ref(), Some(line)),
        What::Event(event) => stage.event(event),
    }
}

#[test]
fn every_dialogue_goes_as_written_wherever_it_is_cut() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/dialogue");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "smtp"));
    files.sort();
    assert!(files.len() >= 40, "the dialogues are gone");
    for file in files {
        let script = Script::parse(&fs::read_to_string(&file).unwrap());
        let name = file.file_name().unwrap().to_string_lossy();
        let bytes = run(&name, &script, Cut::Nowhere).unwrap();
        for size in [1, 2, 3, 7] {
            run(&name, &script, Cut::Pieces(size));
        }
        for at in (1..bytes).step_by(bytes.div_ceil(CUTS_MAX).max(1)) {
            run(&name, &script, Cut::At(at));
        }
    }
}
