//! A client of our door: says what the seed tells it, hears every reply, and sends again what was not taken. Knows nothing
//! of the journal: what it was promised is what it read.

use crate::draw::Draw;
use restante_envelope::TransactionId;
use std::collections::VecDeque;

/// After so many tries the mail is given up; so every history ends.
const TRIES_MAX: u32 = 12;

/// Keeps the content that a function makes of a token, and returns the token: a transmission begins.
type Transmit<'a> = dyn FnMut(&dyn Fn(u32) -> Vec<u8>) -> u32 + 'a;

/// How a client behaves with one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// One command, one reply.
    Lockstep,
    /// Envelope and DATA at once (RFC 2920), the content after the 354.
    Pipelined,
    /// The content with them, without waiting, and another command behind the final dot.
    Eager,
    /// Hangs up within the content.
    HangsUpInContent,
    /// Hangs up right behind the final dot.
    HangsUpAfterDot,
}

#[derive(Debug, Clone)]
struct Mail {
    recipients: Vec<String>,
    lines: u64,
    manner: Manner,
    tries: u32,
}

/// Whose reply is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Greeting,
    Ehlo,
    Mail,
    Rcpt(String),
    Data,
    Content(u32),
    Noop,
    Quit,
}

/// What the client does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Says {
    Bytes(Vec<u8>),
    Nothing,
    HangsUp,
    /// It wants a connection.
    Connects,
    /// It has nothing more to send, ever.
    Done,
}

/// A 250 to the end of data.
#[derive(Debug)]
pub(crate) struct Promise {
    pub(crate) id: TransactionId,
    /// Which transmission it answers.
    pub(crate) token: u32,
    /// The recipients that were taken, in order.
    pub(crate) recipients: Vec<String>,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Client {
    mails: VecDeque<Mail>,
    /// Counts its connections: what concerns an earlier one is void.
    pub(crate) connection: u32,
    connected: bool,
    unread: Vec<u8>,
    expected: VecDeque<Step>,
    to_say: VecDeque<Step>,
    pieces: VecDeque<Vec<u8>>,
    taken: Vec<String>,
}

impl Client {
    pub(crate) fn new(mails: u64, draw: &mut Draw, plain: bool) -> Self {
        let mails = (0..mails).map(|_| Mail::draw(draw, plain)).collect();
        Self {
            mails,
            connection: 0,
            connected: false,
            unread: Vec::new(),
            expected: VecDeque::new(),
            to_say: VecDeque::new(),
            pieces: VecDeque::new(),
            taken: Vec::new(),
        }
    }

    pub(crate) fn connected(&mut self) {
        self.connected = true;
        self.connection += 1;
        self.unread.clear();
        self.taken.clear();
        self.to_say.clear();
        self.pieces.clear();
        self.expected = VecDeque::from([Step::Greeting]);
    }

    /// The connection is gone, whoever ended it. What was not acknowledged is sent again.
    pub(crate) fn disconnected(&mut self) {
        self.connected = false;
        self.retry();
    }

    /// Whether all of its mail is acknowledged or given up.
    pub(crate) fn is_done(&self) -> bool {
        self.mails.is_empty()
    }

    fn retry(&mut self) {
        if let Some(mut mail) = self.mails.pop_front() {
            mail.tries += 1;
            // Impatience passes, or nothing would ever arrive.
            if matches!(mail.manner, Manner::HangsUpInContent | Manner::HangsUpAfterDot) {
                mail.manner = Manner::Lockstep;
            }
            if mail.tries < TRIES_MAX {
                self.mails.push_front(mail);
            }
        }
    }

    /// What it does now.
    pub(crate) fn says(&mut self, draw: &mut Draw, transmit: &mut Transmit<'_>) -> Says {
        if !self.connected {
            return if self.mails.is_empty() { Says::Done } else { Says::Connects };
        }
        if let Some(piece) = self.pieces.pop_front() {
            return match self.manner() {
                Some(Manner::HangsUpInContent) if self.pieces.is_empty() => Says::HangsUp,
                _ => Says::Bytes(piece),
            };
        }
        let hangs_up = self.manner() == Some(Manner::HangsUpAfterDot);
        if hangs_up && matches!(self.expected.front(), Some(Step::Content(_))) {
            return Says::HangsUp;
        }
        let ahead = matches!(self.manner(), Some(Manner::Pipelined | Manner::Eager));
        let mut wire = Vec::new();
        while self.expected.is_empty() || (ahead && !wire.is_empty()) {
            let Some(step) = self.to_say.pop_front() else { break };
            wire.extend_from_slice(&step.command());
            let is_data = step == Step::Data;
            self.expected.push_back(step);
            if is_data && self.manner() == Some(Manner::Eager) {
                wire.extend(self.content(draw, transmit).concat());
                self.to_say.push_back(Step::Noop);
            }
        }
        if wire.is_empty() { Says::Nothing } else { Says::Bytes(wire) }
    }

    fn manner(&self) -> Option<Manner> {
        self.mails.front().map(|mail| mail.manner)
    }

    /// The content of the message at hand as it goes over the wire, in pieces.
    fn content(&mut self, draw: &mut Draw, transmit: &mut Transmit<'_>) -> Vec<Vec<u8>> {
        let lines = self.mails.front().map_or(0, |mail| mail.lines);
        let salt = draw.bits();
        let mut wire = Vec::new();
        let token = transmit(&|token| body(token, lines, salt));
        for line in body(token, lines, salt).split_inclusive(|byte| *byte == b'\n') {
            if line.starts_with(b".") {
                wire.push(b'.');
            }
            wire.extend_from_slice(line);
        }
        wire.extend_from_slice(b".\r\n");
        self.expected.push_back(Step::Content(token));
        let piece = 1 + draw.index(wire.len());
        wire.chunks(piece.max(200)).map(<[u8]>::to_vec).collect()
    }

    /// Takes bytes from the server.
    pub(crate) fn hears(&mut self, bytes: &[u8], draw: &mut Draw, transmit: &mut Transmit<'_>) -> Vec<Promise> {
        let mut promises = Vec::new();
        self.unread.extend_from_slice(bytes);
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            let is_last = line.as_bytes().get(3) != Some(&b'-');
            let code = line.get(..3).and_then(|code| code.parse().ok()).unwrap_or(0);
            if is_last && let Some(step) = self.expected.pop_front() {
                promises.extend(self.heard(step, code, &line, draw, transmit));
            }
        }
        promises
    }

    fn heard(
        &mut self,
        step: Step,
        code: u16,
        line: &str,
        draw: &mut Draw,
        transmit: &mut Transmit<'_>,
    ) -> Option<Promise> {
        match (step, code) {
            (Step::Greeting, 220) => self.to_say.push_back(Step::Ehlo),
            (Step::Ehlo, 250) => self.next_mail(),
            (Step::Mail, 250) => self.taken.clear(),
            (Step::Rcpt(path), 250) => self.taken.push(path),
            // It has sent it already.
            (Step::Data, 354) if self.manner() == Some(Manner::Eager) => {}
            (Step::Data, 354) => self.pieces = self.content(draw, transmit).into(),
            (Step::Content(token), 250) => {
                self.mails.pop_front();
                self.next_mail();
                let id = line.rsplit(' ').next().and_then(|id| id.parse().ok())?;
                return Some(Promise { id, token, recipients: std::mem::take(&mut self.taken) });
            }
            (Step::Content(_) | Step::Data, _) => {
                // An eager one whose DATA is refused is hung up on; another may go on.
                self.retry();
                self.next_mail();
            }
            _ => {}
        }
        None
    }

    fn next_mail(&mut self) {
        let Some(mail) = self.mails.front() else { return self.to_say.push_back(Step::Quit) };
        self.to_say.push_back(Step::Mail);
        self.to_say.extend(mail.recipients.iter().cloned().map(Step::Rcpt));
        self.to_say.push_back(Step::Data);
    }
}

impl Mail {
    fn draw(draw: &mut Draw, plain: bool) -> Self {
        let path = |draw: &mut Draw| {
            // The last one is not ours.
            let domain = ["a.test", "a.test", "b.test", "b.test", "strangers.test"];
            format!("r{}@{}", draw.below(3), domain.get(draw.index(domain.len())).unwrap_or(&"a.test"))
        };
        let mut recipients = vec![format!("first@{}", if draw.one_in(3) { "b.test" } else { "a.test" })];
        let more = if draw.one_in(3) { 1 + draw.below(3) } else { 0 };
        recipients.extend((0..more).map(|_| path(draw)));
        let manner = match draw.below(10) {
            _ if plain => Manner::Lockstep,
            0..3 => Manner::Lockstep,
            3..6 => Manner::Pipelined,
            6..8 => Manner::Eager,
            8 => Manner::HangsUpInContent,
            _ => Manner::HangsUpAfterDot,
        };
        let lines = if draw.one_in(4) { 80 + draw.below(100) } else { draw.below(20) };
        Self { recipients, lines, manner, tries: 0 }
    }
}

impl Step {
    fn command(&self) -> Vec<u8> {
        match self {
            Self::Ehlo => b"EHLO client.test\r\n".to_vec(),
            Self::Mail => b"MAIL FROM:<sender@far.test>\r\n".to_vec(),
            Self::Rcpt(path) => format!("RCPT TO:<{path}>\r\n").into_bytes(),
            Self::Data => b"DATA\r\n".to_vec(),
            Self::Noop => b"NOOP\r\n".to_vec(),
            Self::Quit => b"QUIT\r\n".to_vec(),
            Self::Greeting | Self::Content(_) => Vec::new(),
        }
    }
}

/// A content that tells which transmission it is; some of its lines begin with a dot.
fn body(token: u32, lines: u64, salt: u64) -> Vec<u8> {
    let mut draw = Draw::new(salt);
    let mut body = format!("Subject: {token}\r\n\r\n");
    for _ in 0..lines {
        let line = ["", ".", "..two", "a line", "another line, somewhat longer than the one in front of it"];
        body.push_str(line.get(draw.index(line.len())).unwrap_or(&""));
        body.push_str(&format!(" {}\r\n", draw.bits()));
    }
    body.into_bytes()
}

/// Which transmission a content is.
pub(crate) fn token(content: &[u8]) -> Option<u32> {
    let line = content.split(|byte| *byte == b'\r').next()?;
    std::str::from_utf8(line.strip_prefix(b"Subject: ")?).ok()?.parse().ok()
}
