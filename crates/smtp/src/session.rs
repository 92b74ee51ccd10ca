//! One connection's state, and what happens to it from outside: input, the commit, time, shutdown, the peer's leaving.
//! Does no I/O, reads no clock, and says 250 to a message only when it is told that the message is stored.

use crate::dialogue::{Dialogue, Hello, Strikes};
use crate::host::{Counts, Host, RefusedConnection, Resolution, Settings, Stage, Trouble};
use crate::line::LineReader;
use crate::receiving::{Chunk, Receiving};
use crate::reply::Say;
use restante_envelope::Timestamp;
use std::net::SocketAddr;
use std::sync::Arc;

/// Replies that wait to be written: those to a thousand recipients offered in one flight. A client that sends commands and reads
/// nothing is answered no further, and holds no more of our memory than this.
const OUTPUT_BYTES_MAX: usize = 32 << 10;

/// Which of its phases a session is in. Each is consumed by what ends it.
#[derive(Debug)]
pub(crate) enum State {
    /// Command lines.
    Dialogue(Dialogue),
    /// After the 354.
    Data(Box<Receiving>),
    /// After BDAT, until its octets are there.
    Chunk(Box<Receiving>, Chunk),
    /// After a BDAT that is refused: so many octets are dropped, then that is said.
    Skip(Dialogue, u64, Say<'static>),
    /// After the end of data; the reply depends on `resolve`.
    AwaitingCommit(Hello),
    /// After the 220 to STARTTLS, until `tls_started`.
    AwaitingTls,
    /// Said its last words.
    Closed,
}

/// One SMTP connection, seen from the server.
#[derive(Debug)]
pub struct Session {
    pub(crate) settings: Arc<Settings>,
    /// Whose connection it is.
    pub(crate) peer: SocketAddr,
    /// On whose behalf: the peer itself, or by its word another.
    pub(crate) client: SocketAddr,
    pub(crate) xclient_allowed: bool,
    /// The peer has said XCLIENT.
    pub(crate) is_proxy: bool,
    pub(crate) session: u64,
    state: State,
    pub(crate) lines: LineReader,
    pub(crate) output: Vec<u8>,
    pub(crate) deadline: Timestamp,
    pub(crate) strikes: Strikes,
    stops_after_commit: bool,
    pub(crate) quit: bool,
    /// Version and cipher suite, once TLS is active.
    pub(crate) tls: Option<String>,
    pub(crate) counts: Counts,
}

impl Session {
    /// A connection that was just accepted. The greeting stands in the output.
    pub fn new(settings: Arc<Settings>, client: SocketAddr, session: u64, now: Timestamp) -> Self {
        let deadline = now + settings.command_timeout;
        let state = State::Dialogue(Dialogue::Greeted);
        Self::start(settings, client, session, state, deadline, Say::Greeting)
    }

    /// A connection that is not wanted: the 421 stands in the output, and it wants to close.
    pub fn refuse(settings: Arc<Settings>, client: SocketAddr, why: RefusedConnection) -> Self {
        Self::start(settings, client, 0, State::Closed, Timestamp::default(), Say::TurnAway(why))
    }

    fn start(
        settings: Arc<Settings>,
        client: SocketAddr,
        session: u64,
        state: State,
        deadline: Timestamp,
        greeting: Say<'_>,
    ) -> Self {
        let mut started = Self {
            settings,
            peer: client,
            client,
            xclient_allowed: false,
            is_proxy: false,
            session,
            state,
            lines: LineReader::default(),
            output: Vec::new(),
            deadline,
            strikes: Strikes::default(),
            stops_after_commit: false,
            quit: false,
            tls: None,
            counts: Counts::default(),
        };
        started.say(greeting);
        started
    }

    /// The peer is a proxy that is believed what it says of its clients, by XCLIENT; to others that is refused. To be called before
    /// the first `receive`.
    pub fn allow_xclient(&mut self) {
        self.xclient_allowed = true;
    }

    /// Bytes stood in the socket before the greeting was written: whoever talks before he is greeted does not listen to what we
    /// say, and sends mail that nobody wants. Instead of the greeting, 554 stands in the output, and the session wants to close.
    pub fn talked_too_soon(&mut self, host: &mut impl Host) {
        self.output.clear();
        let next = self.reject(Dialogue::Greeted, Stage::Connect, Say::TalksTooSoon, host);
        self.state = next;
    }

    /// Takes bytes from the peer and returns how many it consumed, from the start of `input`. It stops short only
    /// where it awaits a commit: feed the rest after `resolve`; and where there are 32 KiB to be written: feed the rest when they
    /// are. Once the session wants to close, or while it awaits TLS, input is dropped.
    ///
    /// Give it everything that has been read before writing the output: that is how it tells a client that waits for
    /// the reply to DATA from one that does not.
    pub fn receive(&mut self, input: &[u8], now: Timestamp, host: &mut impl Host) -> usize {
        let mut consumed = 0;
        while let Some(rest @ [_, ..]) = input.get(consumed..) {
            if self.output.len() >= OUTPUT_BYTES_MAX {
                return consumed;
            }
            let (bytes, next) = match std::mem::replace(&mut self.state, State::Closed) {
                State::Dialogue(dialogue) => self.receive_line(dialogue, rest, now, host),
                State::Data(receiving) => self.receive_content(receiving, rest, now, host),
                State::Chunk(receiving, chunk) => self.receive_chunk(receiving, chunk, rest, now, host),
                State::Skip(dialogue, left, say) => self.skip(dialogue, left, say, rest, host),
                waiting @ State::AwaitingCommit(_) => {
                    self.state = waiting;
                    return consumed;
                }
                // What stands behind STARTTLS was said in clear, perhaps by somebody between the client and us. If it
                // were read after the handshake, it would pass for the client's own word (CVE-2011-0411).
                State::AwaitingTls => {
                    self.state = State::AwaitingTls;
                    return input.len();
                }
                State::Closed => return input.len(),
            };
            self.state = next;
            consumed += bytes;
        }
        consumed
    }

    /// Answers the host's `end`. Without one, does nothing.
    pub fn resolve(&mut self, resolution: Resolution, now: Timestamp) {
        let hello = match std::mem::replace(&mut self.state, State::Closed) {
            State::AwaitingCommit(hello) => hello,
            other => return self.state = other,
        };
        match resolution {
            Resolution::Stored(id) => {
                self.counts.accepted = self.counts.accepted.saturating_add(1);
                self.strikes = Strikes::default();
                self.say(Say::Stored(id));
            }
            // The 421 for the message is the one that closes the connection, too.
            Resolution::Failed(Trouble::ShuttingDown) => {
                self.count_refusal();
                return self.say(Say::ShuttingDown);
            }
            Resolution::Failed(trouble) => {
                self.count_refusal();
                self.say(Say::Trouble(trouble));
            }
        }
        if self.stops_after_commit {
            self.say(Say::ShuttingDown);
        } else {
            self.deadline = now + self.settings.command_timeout;
            self.state = State::Dialogue(Dialogue::Ready(hello));
        }
    }

    /// The handshake is done: what comes from now on comes out of TLS. `tls` is version and cipher suite, as
    /// `TLSv1.3 TLS_AES_256_GCM_SHA384`. The client starts anew as after the greeting, which is not said again, and
    /// nothing of what was said in clear is remembered (RFC 3207 section 4.2). Unless TLS was awaited, does nothing.
    pub fn tls_started(&mut self, tls: String, now: Timestamp) {
        if !self.awaits_tls() {
            return;
        }
        self.tls = Some(tls);
        self.lines = LineReader::default();
        // Of errors, too: who made them is not known. It is forgiven once, for there is no second handshake.
        self.strikes = Strikes::default();
        self.deadline = now + self.settings.command_timeout;
        self.state = State::Dialogue(Dialogue::Greeted);
    }

    /// There was no handshake. Closes without a word: in clear it would be none that the client can read.
    pub fn tls_failed(&mut self) {
        if self.awaits_tls() {
            self.state = State::Closed;
        }
    }

    /// What is to be written to the peer; the caller takes it out. No larger than some ten times the input of the
    /// last `receive`.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// A content is complete and `resolve` is due; until then nothing is consumed.
    pub fn awaits_commit(&self) -> bool {
        matches!(self.state, State::AwaitingCommit(_))
    }

    /// The 220 to STARTTLS is in the output: write it, drop whatever else was read, do the handshake, and call
    /// `tls_started` or `tls_failed`.
    pub fn awaits_tls(&self) -> bool {
        matches!(self.state, State::AwaitingTls)
    }

    /// Close the connection as soon as the output is written.
    pub fn wants_close(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// The client said QUIT: it waits for nothing but the 221, and sends nothing more.
    pub fn client_quit(&self) -> bool {
        self.quit
    }

    /// When to call `handle_timeout`, if nothing happens before. Ask again after every other call.
    /// None while a commit is awaited (that is the journal's time, not the peer's), during the handshake (whoever does
    /// it limits it) and once it wants to close.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        match self.state {
            State::Dialogue(_) | State::Data(_) | State::Chunk(..) | State::Skip(..) => Some(self.deadline),
            State::AwaitingCommit(_) | State::AwaitingTls | State::Closed => None,
        }
    }

    /// Closes with 421 4.4.2 if the deadline has passed.
    pub fn handle_timeout(&mut self, now: Timestamp, host: &mut impl Host) {
        if self.poll_timeout().is_some_and(|deadline| now >= deadline) {
            self.close(Say::Timeout, host);
        }
    }

    /// Closes with 421 4.3.2; where a commit is awaited, after its 250, and where TLS is, without a word.
    pub fn shut_down(&mut self, host: &mut impl Host) {
        match self.state {
            State::AwaitingCommit(_) => self.stops_after_commit = true,
            State::AwaitingTls => self.tls_failed(),
            State::Closed => {}
            State::Dialogue(_) | State::Data(_) | State::Chunk(..) | State::Skip(..) => {
                self.close(Say::ShuttingDown, host);
            }
        }
    }

    /// The house is full, and this one has been silent: closes with 421 4.3.2, to make way for another. Not where a commit is
    /// awaited: that is nobody who is silent.
    pub fn make_way(&mut self, host: &mut impl Host) {
        match self.state {
            State::AwaitingCommit(_) | State::Closed => {}
            State::AwaitingTls => self.tls_failed(),
            State::Dialogue(_) | State::Data(_) | State::Chunk(..) | State::Skip(..) => self.close(Say::Crowded, host),
        }
    }

    /// Content is coming, and no command is expected.
    pub fn takes_content(&self) -> bool {
        matches!(self.state, State::Data(_) | State::Chunk(..) | State::Skip(..))
    }

    /// The peer is gone. A content that is complete stays the host's: its commit may be under way, and the message
    /// may come to us a second time.
    pub fn disconnected(&mut self, host: &mut impl Host) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Data(mut receiving) | State::Chunk(mut receiving, _) => receiving.give_up(host),
            State::Dialogue(dialogue) | State::Skip(dialogue, ..) => drop(dialogue.reset(host)),
            State::AwaitingCommit(_) | State::AwaitingTls | State::Closed => {}
        }
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn close(&mut self, last_words: Say<'_>, host: &mut impl Host) {
        self.disconnected(host);
        self.say(last_words);
    }

    pub(crate) fn say(&mut self, say: Say<'_>) {
        say.reply(&self.settings).write_to(&mut self.output);
    }

    pub(crate) fn count_refusal(&mut self) {
        self.counts.refused = self.counts.refused.saturating_add(1);
    }
}
