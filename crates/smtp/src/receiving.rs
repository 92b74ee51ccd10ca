//! The content, after the 354 or in chunks (RFC 3030): counts it, hands it to the host, and gives the verdict at its end. A content
//! that is refused is still read to its end, for most clients listen only then; so is a chunk that nobody asked for, for what is in it
//! would else be read as commands.

use crate::content::Framing;
use crate::dialogue::{Dialogue, Hello, Transaction};
use crate::header::HeaderScan;
use crate::host::{BareLineEnds, EndOfData, Host, Settings, Stage, Trouble};
use crate::reply::Say;
use crate::session::{Session, State};
use restante_envelope::{ReversePath, Timestamp, Trace};

/// Received headers at which a message is taken to loop. RFC 5321 section 6.3 asks for at least 100 "normally"; but
/// mail that has been through 50 servers has never been seen to arrive, and each round through us is stored.
const HOPS_MAX: u16 = 50;
/// Content beyond twice the limit plus this is not even read to its end. Up to there the client gets to hear the 552;
/// most do not listen before they have sent everything.
const EXCESS_BYTES_MAX: u64 = 1_048_576;
/// How much content renews the deadline. Not a single byte: a client that sends one every nine minutes would hold a
/// connection and a started transaction for years.
const PROGRESS_BYTES: u64 = 65_536;

/// Content is coming in.
#[derive(Debug)]
pub(crate) struct Receiving {
    pub(crate) hello: Hello,
    pub(crate) reverse_path: ReversePath,
    trace: Trace,
    framing: Framing,
    intake: Intake,
    /// Bare CR or LF is refused.
    is_strict: bool,
    /// Until when the next [`PROGRESS_BYTES`] must be there, and the size at which that was last renewed. The commands between two
    /// chunks do not renew it.
    pub(crate) deadline: Timestamp,
    renewed_at_bytes: u64,
    /// As they came: a run of CRs may be millions of them, and one space or nothing of the content.
    octets: u64,
}

/// What is counted and passed on of a content.
#[derive(Debug)]
struct Intake {
    header: HeaderScan,
    size_bytes: u64,
    limit_bytes: u64,
    header_limit_bytes: u64,
    trouble: Option<Trouble>,
    /// The host has begun, and has seen neither `end` nor `abort`.
    open: bool,
}

impl Intake {
    fn take(&mut self, content: &[u8], host: &mut impl Host) {
        self.size_bytes = self.size_bytes.saturating_add(u64::try_from(content.len()).unwrap_or(u64::MAX));
        self.header.read(content);
        let is_header_too_large = self.header.bytes > self.header_limit_bytes;
        if self.size_bytes > self.limit_bytes || is_header_too_large || self.header.hops > HOPS_MAX {
            self.give_up(host);
        }
        if self.open
            && let Err(trouble) = host.chunk(content)
        {
            self.trouble = Some(trouble);
            self.give_up(host);
        }
    }

    fn give_up(&mut self, host: &mut impl Host) {
        if std::mem::take(&mut self.open) {
            host.abort();
        }
    }
}

impl Receiving {
    /// The host has begun; after DATA the 354 is said.
    pub(crate) fn new(
        transaction: Transaction,
        trace: Trace,
        framing: Framing,
        settings: &Settings,
        now: Timestamp,
    ) -> Self {
        let intake = Intake {
            header: HeaderScan::new(&settings.hostname),
            size_bytes: 0,
            limit_bytes: settings.max_message_bytes,
            header_limit_bytes: settings.max_header_bytes,
            trouble: None,
            open: true,
        };
        Self {
            hello: transaction.hello,
            reverse_path: transaction.envelope.reverse_path,
            trace,
            framing,
            intake,
            is_strict: settings.bare_line_ends == BareLineEnds::Reject,
            deadline: now + settings.data_timeout,
            renewed_at_bytes: 0,
            octets: 0,
        }
    }

    /// Nothing will come of this content.
    pub(crate) fn give_up(&mut self, host: &mut impl Host) {
        self.intake.give_up(host);
    }

    /// Why this content is refused. What the sender must mend goes before what will pass.
    fn refusal(&self) -> Option<Say<'static>> {
        if self.framing.has_bare_cr_or_lf && self.is_strict {
            Some(Say::BareCrOrLf)
        } else if self.intake.size_bytes > self.intake.limit_bytes || self.is_excessive() {
            Some(Say::TooLarge)
        } else if self.intake.header.bytes > self.intake.header_limit_bytes {
            Some(Say::HeaderTooLarge)
        } else if self.intake.header.hops > HOPS_MAX {
            Some(Say::TooManyHops)
        } else {
            self.intake.trouble.map(Say::Trouble)
        }
    }

    /// So much more than the limit that its end is not waited for.
    fn is_excessive(&self) -> bool {
        is_excessive(self.intake.size_bytes.max(self.octets), self.intake.limit_bytes)
    }
}

/// So many bytes that they are not even read to be dropped.
pub(crate) fn is_excessive(bytes: u64, limit_bytes: u64) -> bool {
    bytes > limit_bytes.saturating_mul(2).saturating_add(EXCESS_BYTES_MAX)
}

/// What is left of a chunk.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) bytes: u64,
    pub(crate) left: u64,
    pub(crate) is_last: bool,
}

impl Session {
    pub(crate) fn receive_content(
        &mut self,
        mut receiving: Box<Receiving>,
        input: &[u8],
        now: Timestamp,
        host: &mut impl Host,
    ) -> (usize, State) {
        let (consumed, ended) = self.take_content(&mut receiving, input, now, host);
        let next = match ended {
            true => self.end_content(receiving, now, host),
            false => self.unless_excessive(receiving, now, host, State::Data),
        };
        (consumed, next)
    }

    /// The octets of a chunk.
    pub(crate) fn receive_chunk(
        &mut self,
        mut receiving: Box<Receiving>,
        mut chunk: Chunk,
        input: &[u8],
        now: Timestamp,
        host: &mut impl Host,
    ) -> (usize, State) {
        let bytes = usize::try_from(chunk.left).unwrap_or(usize::MAX).min(input.len());
        chunk.left -= bytes as u64;
        self.take_content(&mut receiving, input.get(..bytes).unwrap_or_default(), now, host);
        (bytes, self.go_on_with_chunk(receiving, chunk, now, host))
    }

    pub(crate) fn go_on_with_chunk(
        &mut self,
        mut receiving: Box<Receiving>,
        chunk: Chunk,
        now: Timestamp,
        host: &mut impl Host,
    ) -> State {
        self.deadline = receiving.deadline;
        if chunk.left > 0 {
            return self.unless_excessive(receiving, now, host, |receiving| State::Chunk(receiving, chunk));
        }
        if chunk.is_last {
            let Receiving { framing, intake, .. } = &mut *receiving;
            framing.finish(|content| intake.take(content, host));
            return self.end_content(receiving, now, host);
        }
        match receiving.refusal() {
            // Now, and not at the end: the client can save the rest.
            Some(say) => self.refuse_content(receiving, say, host),
            None => {
                self.say(Say::ChunkOk(chunk.bytes));
                State::Dialogue(Dialogue::Chunks(receiving))
            }
        }
    }

    /// The octets of a chunk that nobody wants; the refusal follows them.
    pub(crate) fn skip(
        &mut self,
        dialogue: Dialogue,
        mut left: u64,
        say: Say<'static>,
        input: &[u8],
        host: &mut impl Host,
    ) -> (usize, State) {
        let bytes = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        left -= bytes as u64;
        let next = match left {
            0 => self.reject(dialogue, Stage::Data, say, host),
            _ => State::Skip(dialogue, left, say),
        };
        (bytes, next)
    }

    fn take_content(
        &mut self,
        receiving: &mut Receiving,
        input: &[u8],
        now: Timestamp,
        host: &mut impl Host,
    ) -> (usize, bool) {
        let Receiving { framing, intake, .. } = receiving;
        let before = intake.size_bytes;
        let (consumed, ended) = framing.receive(input, |content| intake.take(content, host));
        receiving.octets = receiving.octets.saturating_add(consumed as u64);
        if framing.has_bare_cr_or_lf && receiving.is_strict {
            intake.give_up(host);
        }
        let size_bytes = intake.size_bytes;
        self.counts.bytes = self.counts.bytes.saturating_add(size_bytes - before);
        if size_bytes - receiving.renewed_at_bytes >= PROGRESS_BYTES {
            receiving.renewed_at_bytes = size_bytes;
            receiving.deadline = now + self.settings.data_timeout;
            self.deadline = receiving.deadline;
        }
        (consumed, ended)
    }

    fn unless_excessive(
        &mut self,
        receiving: Box<Receiving>,
        now: Timestamp,
        host: &mut impl Host,
        go_on: impl FnOnce(Box<Receiving>) -> State,
    ) -> State {
        if !receiving.is_excessive() {
            return go_on(receiving);
        }
        if !matches!(self.end_content(receiving, now, host), State::Closed) {
            self.say(Say::FarTooLarge);
        }
        State::Closed
    }

    fn end_content(&mut self, mut receiving: Box<Receiving>, now: Timestamp, host: &mut impl Host) -> State {
        receiving.intake.header.end();
        self.deadline = now + self.settings.command_timeout;
        if let Some(say) = receiving.refusal() {
            return self.refuse_content(receiving, say, host);
        }
        let Receiving { hello, mut trace, intake, .. } = *receiving;
        trace.received_at = now;
        host.end(EndOfData { hops: intake.header.hops, own_hops: intake.header.own_hops, trace });
        State::AwaitingCommit(hello)
    }

    fn refuse_content(&mut self, mut receiving: Box<Receiving>, say: Say<'static>, host: &mut impl Host) -> State {
        receiving.give_up(host);
        let ready = Dialogue::Ready(receiving.hello);
        self.refuse_paths(&ready, Stage::Content, say, Some(receiving.reverse_path.as_str()), None, host);
        self.after_fault(ready, say, host)
    }
}
