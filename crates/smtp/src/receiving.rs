//! The content after the 354: counts it, hands it to the host, and gives the verdict at its end. A content that is
//! refused is still read to its end, for most clients listen only then.

use crate::content::Framing;
use crate::dialogue::{Dialogue, Hello, Transaction};
use crate::header::HeaderScan;
use crate::host::{EndOfData, Host, Settings, Stage, Trouble};
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
    hello: Hello,
    reverse_path: ReversePath,
    trace: Trace,
    framing: Framing,
    intake: Intake,
    /// The size at which the deadline was last renewed.
    renewed_at_bytes: u64,
}

/// What is counted and passed on of a content.
#[derive(Debug)]
struct Intake {
    header: HeaderScan,
    size_bytes: u64,
    limit_bytes: u64,
    trouble: Option<Trouble>,
    /// The host has begun, and has seen neither `end` nor `abort`.
    open: bool,
}

impl Intake {
    fn take(&mut self, content: &[u8], host: &mut impl Host) {
        self.size_bytes = self.size_bytes.saturating_add(u64::try_from(content.len()).unwrap_or(u64::MAX));
        self.header.read(content);
        if self.size_bytes > self.limit_bytes || self.header.hops > HOPS_MAX {
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
    /// The host has begun and the 354 is said.
    pub(crate) fn new(transaction: Transaction, trace: Trace, settings: &Settings) -> Self {
        let intake = Intake {
            header: HeaderScan::new(&settings.hostname),
            size_bytes: 0,
            limit_bytes: settings.max_message_bytes,
            trouble: None,
            open: true,
        };
        Self {
            hello: transaction.hello,
            reverse_path: transaction.envelope.reverse_path,
            trace,
            framing: Framing::new(),
            intake,
            renewed_at_bytes: 0,
        }
    }

    /// Nothing will come of this content.
    pub(crate) fn give_up(&mut self, host: &mut impl Host) {
        self.intake.give_up(host);
    }

    /// Why this content is refused. What the sender must mend goes before what will pass.
    fn refusal(&self) -> Option<Say<'static>> {
        if self.framing.has_bare_cr_or_lf {
            Some(Say::BareCrOrLf)
        } else if self.intake.size_bytes > self.intake.limit_bytes {
            Some(Say::TooLarge)
        } else if self.intake.header.hops > HOPS_MAX {
            Some(Say::TooManyHops)
        } else {
            self.intake.trouble.map(Say::Trouble)
        }
    }

    /// So much more than the limit that its end is not waited for.
    fn is_excessive(&self) -> bool {
        self.intake.size_bytes > self.intake.limit_bytes.saturating_mul(2).saturating_add(EXCESS_BYTES_MAX)
    }
}

impl Session {
    pub(crate) fn receive_content(
        &mut self,
        mut receiving: Box<Receiving>,
        input: &[u8],
        now: Timestamp,
        host: &mut impl Host,
    ) -> (usize, State) {
        let Receiving { framing, intake, .. } = &mut *receiving;
        let before = intake.size_bytes;
        let (consumed, ended) = framing.receive(input, |content| intake.take(content, host));
        if framing.has_bare_cr_or_lf {
            intake.give_up(host);
        }
        let size_bytes = intake.size_bytes;
        self.counts.bytes = self.counts.bytes.saturating_add(size_bytes - before);
        if ended {
            return (consumed, self.end_content(receiving, now, host));
        }
        if receiving.is_excessive() {
            if !matches!(self.end_content(receiving, now, host), State::Closed) {
                self.say(Say::FarTooLarge);
            }
            return (consumed, State::Closed);
        }
        if size_bytes - receiving.renewed_at_bytes >= PROGRESS_BYTES {
            receiving.renewed_at_bytes = size_bytes;
            self.deadline = now + self.settings.data_timeout;
        }
        (consumed, State::Data(receiving))
    }

    fn end_content(&mut self, mut receiving: Box<Receiving>, now: Timestamp, host: &mut impl Host) -> State {
        receiving.intake.header.end();
        self.deadline = now + self.settings.command_timeout;
        let Some(say) = receiving.refusal() else {
            let Receiving { hello, mut trace, intake, .. } = *receiving;
            trace.received_at = now;
            host.end(EndOfData { hops: intake.header.hops, own_hops: intake.header.own_hops, trace });
            return State::AwaitingCommit(hello);
        };
        receiving.give_up(host);
        let ready = Dialogue::Ready(receiving.hello);
        self.refuse_paths(&ready, Stage::Content, say, Some(receiving.reverse_path.as_str()), None, host);
        self.after_fault(ready, say)
    }
}
