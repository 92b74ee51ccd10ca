//! One transaction after the other over a connection (RFC 5321 section 3.3, pipelined by RFC 2920 and in one flight by RFC 3030
//! where offered).
//!
//! Says for every recipient what happened to it, and nothing about what should happen next.

mod chunks;
mod transaction;

use crate::Settings;
use crate::connect::{Extensions, milliseconds};
use crate::content::{Content, InMemory};
use crate::failure::{Failure, Stage};
use crate::wire::{ContentError, Wire};
use chunks::Chunking;
use restante_envelope::{BodyType, DsnRequest, Recipient, Reply, ReplyClass, ReversePath};
use restante_ledger::NextHop;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};
use transaction::{Command, Transaction, lines};

/// Commands in one write: MAIL, DATA and the 100 recipients that RFC 5321 section 4.5.3.1.8 makes every server take.
/// At most 28 KiB out and as little in: either fits the smallest socket buffers, so that nobody can end up waiting for
/// the other to read (RFC 2920 section 3.1). More than one group is never sent ahead.
const PIPELINED_COMMANDS_MAX: usize = 102;

/// A message to deliver.
#[derive(Debug, Clone, Copy)]
pub struct Mail<'a> {
    /// Goes into MAIL.
    pub reverse_path: &'a ReversePath,
    /// One RCPT each.
    pub recipients: &'a [&'a Recipient],
    /// `BODY=8BITMIME` needs a server that offers it (RFC 6152 section 3): to convert the content would break signatures, and to send it
    /// all the same would have somebody change it without a word.
    pub body: BodyType,
    /// Needs a server that offers SMTPUTF8 (RFC 6531 section 3.6), though its paths and its header may be ASCII: nobody has looked.
    pub smtputf8: bool,
    /// Said where the server offers DSN (RFC 3461), as is what the recipients have of it.
    pub dsn: &'a DsnRequest,
    /// Our Received header; empty or ends in CRLF.
    pub trace_header: &'a [u8],
    /// Octets of the content, without the trace header. `SIZE=` tells the sum of both. Content of any other length is not
    /// the message that was accepted and is not delivered.
    pub size_bytes: u64,
}

/// What came of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// For each recipient, in the order of [`Mail::recipients`].
    pub results: Vec<RecipientResult>,
    /// MAIL was refused, and that reply decided for all.
    pub mail_refused: bool,
    /// Whose result is the reply to the content, in the order of the results: the server had taken these recipients.
    pub by_content: Vec<bool>,
    /// From MAIL to the last reply, in milliseconds.
    pub transfer_ms: u32,
    /// The commands were sent ahead, and no answer came that counts: the server has nothing of the message, and the
    /// connection is not usable any more. As good as not tried: another connection may be.
    pub unheard: bool,
}

/// What came of a message for one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecipientResult {
    /// The reply that decides: the refusal of MAIL, RCPT or DATA, a 421 at any time, or whatever was said to the
    /// final dot or to BDAT. The server took responsibility if, and only if, it is positive. Never intermediate (3yz).
    Replied(Reply),
    /// The connection failed, or our own copy could not be read, before the final dot or the last octet was sent: the server
    /// has nothing.
    Lost {
        /// When.
        stage: Stage,
        /// A phrase for people, the stage included.
        why: String,
    },
    /// The server does not offer what the message needs, and heard nothing of it. Another one might.
    NotOffered {
        /// A status code (RFC 3463) and a phrase for people.
        why: String,
    },
    /// The connection failed after the final dot, or the last octet of `BDAT LAST`, was sent (RFC 1047): the server may have
    /// the message.
    InDoubt {
        /// A phrase for people.
        why: String,
    },
}

/// A connection on which EHLO was said.
pub struct Connection {
    wire: Wire,
    extensions: Extensions,
    next_hop: NextHop,
    tls_failure: Option<String>,
    connect_ms: u32,
    settings: Settings,
    usable: bool,
    /// The commands that were sent behind the last content: their replies are the next to come.
    ahead: Option<String>,
    ahead_state: Ahead,
    chunking: Chunking,
}

/// How the server takes commands that come before its reply to the final dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ahead {
    /// None was sent, or not answered yet.
    Untried,
    /// It answered them.
    Answered,
    /// The connection ended, or nothing sensible came, when they were sent for the first time. For an operator.
    Trouble(String),
}

impl Connection {
    pub(crate) fn new(
        wire: Wire,
        extensions: Extensions,
        next_hop: NextHop,
        tls_failure: Option<String>,
        connect_ms: u32,
        settings: Settings,
    ) -> Self {
        Self {
            wire,
            extensions,
            next_hop,
            tls_failure,
            connect_ms,
            settings,
            usable: true,
            ahead: None,
            ahead_state: Ahead::Untried,
            chunking: Chunking::offered(extensions),
        }
    }

    /// Whom we talk to.
    pub fn next_hop(&self) -> &NextHop {
        &self.next_hop
    }

    /// Why a connection is not encrypted though the server offered it, for an operator; none otherwise.
    pub fn tls_failure(&self) -> Option<&str> {
        self.tls_failure.as_deref()
    }

    /// From looking up the name to the reply to EHLO, in milliseconds.
    pub fn connect_ms(&self) -> u32 {
        self.connect_ms
    }

    /// Whether another transaction can follow. Never true again after a failure, a 421, a protocol error of the
    /// server, or a [`deliver`](Self::deliver) that was dropped half-way.
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    /// Whether the next message's commands may go out behind this one's content: the server takes commands in groups
    /// (RFC 2920), and a small message is not one flight anyway (RFC 3030).
    pub fn takes_ahead(&self) -> bool {
        self.extensions.pipelining && self.chunking == Chunking::No
    }

    /// What came of sending ahead on this connection.
    pub fn ahead(&self) -> &Ahead {
        &self.ahead_state
    }

    /// Whether the commands of the next message are out already. Then nothing else can be sent.
    pub fn is_promised(&self) -> bool {
        self.ahead.is_some()
    }

    /// Whether the server hung up or sent something (a 421, say) while nothing was asked. Does not block. Such a
    /// connection is not usable any more. Never true while replies are due.
    pub fn peer_closed(&mut self) -> bool {
        if self.ahead.is_some() {
            return false;
        }
        let closed = self.wire.unasked().is_some();
        self.usable &= !closed;
        closed
    }

    /// Delivers one message, of which `content` is read once: before the server hears of it where all of it is one flight
    /// (RFC 3030), else only if a server wants it. Each wait for the server is bounded by [`Settings`].
    ///
    /// With `next`, its commands go out right behind the final dot (RFC 2920 section 3.1), one round trip earlier, where
    /// the server [takes that](Self::takes_ahead) and this is one group; [`is_promised`](Self::is_promised) tells. The next
    /// call must then be for that mail. What comes of `next` never
    /// changes what came of `mail`.
    pub async fn deliver(&mut self, mail: &Mail<'_>, content: &mut dyn Content, next: Option<&Mail<'_>>) -> Delivery {
        let started = Instant::now();
        let mut transaction = Transaction::new(mail);
        let mut unheard = false;
        if !mail.recipients.is_empty() {
            let conversed = if self.usable {
                self.usable = false;
                self.converse(&mut transaction, content, next).await
            } else {
                Err(Stop::Lost(Stage::Mail, Failure::Closed("the connection cannot be used any more".into())))
            };
            match conversed {
                Ok(()) => self.usable = self.ahead.is_some() || self.wire.unasked().is_none(),
                Err(stop) => {
                    unheard = matches!(stop, Stop::Unheard(_));
                    transaction.decide_rest(&stop.into_result());
                }
            }
        }
        let (mail_refused, by_content) = (transaction.mail_refused, std::mem::take(&mut transaction.by_content));
        let transfer_ms = milliseconds(started.elapsed());
        Delivery { results: transaction.into_results(), mail_refused, by_content, transfer_ms, unheard }
    }

    /// Takes leave with QUIT if the server still listens, and closes the connection. Where it waits for a message that was
    /// promised, QUIT would be its first line.
    pub async fn quit(mut self) {
        if self.usable && self.ahead.is_none() {
            // Whatever it says, we leave.
            let _ = self.wire.command("QUIT\r\n", self.settings.quit_timeout).await;
            self.wire.close(self.settings.quit_timeout).await;
        }
    }

    async fn converse(
        &mut self,
        transaction: &mut Transaction<'_>,
        content: &mut dyn Content,
        next: Option<&Mail<'_>>,
    ) -> Result<(), Stop> {
        if let Some(why) = self.extensions.lacking(transaction.mail) {
            transaction.decide_rest(&RecipientResult::NotOffered { why: why.to_owned() });
            return Ok(());
        }
        if self.is_one_flight(transaction.mail) {
            self.converse_in_chunks(transaction, content, next).await
        } else {
            self.converse_with_data(transaction, content, next).await
        }
    }

    async fn converse_with_data(
        &mut self,
        transaction: &mut Transaction<'_>,
        content: &mut dyn Content,
        next: Option<&Mail<'_>>,
    ) -> Result<(), Stop> {
        let commands = Command::all(transaction.mail);
        let mut ahead = self.ahead.take();
        let group_len = if self.extensions.pipelining { PIPELINED_COMMANDS_MAX } else { 1 };
        for group in commands.chunks(group_len) {
            if group == [Command::Data] && transaction.is_decided() {
                break;
            }
            let lines = lines(transaction.mail, group, self.extensions);
            match ahead.take() {
                None => self.exchange(group, Some(&lines), transaction).await?,
                Some(ahead) if ahead == lines => self.exchange(group, None, transaction).await?,
                Some(_) => return Err(Stop::Unheard(Failure::Closed("it was promised to another message".into()))),
            }
            if transaction.mail_refused {
                break;
            }
        }
        if transaction.data_agreed {
            self.send_content(transaction, content, next).await
        } else if transaction.mail_refused {
            Ok(())
        } else {
            self.reset().await
        }
    }

    /// Sends a group of commands in one write, unless it was sent ahead, and reads a reply for each.
    async fn exchange(
        &mut self,
        group: &[Command],
        lines: Option<&str>,
        transaction: &mut Transaction<'_>,
    ) -> Result<(), Stop> {
        for (place, command) in group.iter().enumerate() {
            let (stage, limit) = self.stage_of(*command);
            let reply = match lines {
                Some(lines) if place == 0 => {
                    self.heed_unasked(stage).await?;
                    self.wire.command(lines, limit).await
                }
                _ => self.wire.reply(limit).await,
            };
            let reply = match reply {
                Ok(reply) => reply.to_reply(),
                Err(failure) if lines.is_none() => return Err(self.unheard(failure)),
                Err(failure @ Failure::Closed(_)) => return Err(self.interrupted(stage, failure).await),
                Err(failure) => return Err(Stop::Lost(stage, failure)),
            };
            if lines.is_none() && !self.counts(*command, &reply, transaction) {
                return Err(match is_about_the_mail(&reply) {
                    // That says nothing of the way in which it was sent.
                    true => Stop::Unheard(unexpected(&reply)),
                    false => self.unheard(unexpected(&reply)),
                });
            }
            if reply.code() == CODE_CLOSING {
                return Err(Stop::Replied(reply));
            }
            transaction.note(*command, reply).map_err(|failure| Stop::Lost(stage, failure))?;
        }
        if lines.is_none() {
            self.ahead_state = Ahead::Answered;
        }
        Ok(())
    }

    /// Whether the reply to a command that was sent ahead is taken for what it says. Not where it may mean that the server
    /// was about to close, or lost its place among the commands: it is then asked again, the plain way.
    fn counts(&self, command: Command, reply: &Reply, transaction: &Transaction<'_>) -> bool {
        let first = command == Command::Mail && self.ahead_state != Ahead::Answered;
        match reply.class() {
            ReplyClass::Positive => true,
            ReplyClass::Intermediate => command == Command::Data,
            ReplyClass::Transient | ReplyClass::Permanent => {
                let lost_its_place = CODES_OF_SYNTAX.contains(&reply.code()) && !transaction.is_decided();
                reply.code() != CODE_CLOSING && !lost_its_place && !first
            }
        }
    }

    fn unheard(&mut self, failure: Failure) -> Stop {
        self.note_ahead_trouble(&failure);
        Stop::Unheard(failure)
    }

    /// A connection on which it went well before broke for another reason.
    fn note_ahead_trouble(&mut self, failure: &Failure) {
        if self.ahead_state == Ahead::Untried {
            self.ahead_state = Ahead::Trouble(failure.to_string());
        }
    }

    /// Stops if the server said anything since the last reply: the replies to come would be taken for the wrong
    /// commands.
    async fn heed_unasked(&mut self, stage: Stage) -> Result<(), Stop> {
        match self.wire.unasked() {
            Some(failure) => Err(self.interrupted(stage, failure).await),
            None => Ok(()),
        }
    }

    /// A server may say 421 unasked before it hangs up; that is then the answer.
    async fn interrupted(&mut self, stage: Stage, failure: Failure) -> Stop {
        match self.wire.said_unasked().await {
            Some(reply) if reply.code == CODE_CLOSING => Stop::Replied(reply.to_reply()),
            _ => Stop::Lost(stage, failure),
        }
    }

    async fn send_content(
        &mut self,
        transaction: &mut Transaction<'_>,
        content: &mut dyn Content,
        next: Option<&Mail<'_>>,
    ) -> Result<(), Stop> {
        // RFC 2920 section 3.1: a pipelined DATA was accepted though nobody is left to get the message. The server
        // now waits for one, so it gets an empty one, and what it says to that concerns nobody.
        let mut nothing = InMemory(b"");
        let (header, content, size_bytes): (&[u8], &mut dyn Content, u64) = match transaction.is_decided() {
            true => (b"", &mut nothing, 0),
            false => (transaction.mail.trace_header, content, transaction.mail.size_bytes),
        };
        let limits = (self.settings.block_timeout, self.settings.final_dot_timeout);
        let ahead = next.and_then(|next| self.group_ahead(next));
        let said = ahead.as_deref().unwrap_or_default();
        let reply = match self.wire.content(header, content, size_bytes, said, limits).await {
            Ok(reply) => reply.to_reply(),
            Err(ContentError::Refused(reply)) => return Err(Stop::Replied(reply.to_reply())),
            Err(ContentError::Lost(failure)) => return Err(Stop::Lost(Stage::Content, failure)),
            Err(ContentError::InDoubt(failure)) => {
                ahead.iter().for_each(|_| self.note_ahead_trouble(&failure));
                return Err(Stop::InDoubt(Stage::FinalDot, failure));
            }
        };
        if reply.class() == ReplyClass::Intermediate {
            return Err(Stop::InDoubt(Stage::FinalDot, unexpected(&reply)));
        }
        if reply.code() == CODE_CLOSING {
            return Err(Stop::Replied(reply));
        }
        self.ahead = ahead;
        transaction.decide_by_content(reply);
        Ok(())
    }

    /// All the commands of a mail, if they are one group.
    fn group_ahead(&self, mail: &Mail<'_>) -> Option<String> {
        let is_understood = self.extensions.lacking(mail).is_none();
        let sendable = self.takes_ahead() && is_understood && !mail.recipients.is_empty();
        let commands = Command::all(mail);
        (sendable && commands.len() <= PIPELINED_COMMANDS_MAX).then(|| lines(mail, &commands, self.extensions))
    }

    /// Ends a transaction that got no message.
    async fn reset(&mut self) -> Result<(), Stop> {
        self.heed_unasked(Stage::Rset).await?;
        let reply = self.wire.command("RSET\r\n", self.settings.ehlo_timeout).await;
        let reply = reply.map_err(|failure| Stop::Lost(Stage::Rset, failure))?.to_reply();
        match reply.class() {
            ReplyClass::Positive => Ok(()),
            _ => Err(Stop::Lost(Stage::Rset, unexpected(&reply))),
        }
    }

    fn stage_of(&self, command: Command) -> (Stage, Duration) {
        match command {
            Command::Mail => (Stage::Mail, self.settings.mail_timeout),
            Command::Rcpt(_) => (Stage::Rcpt, self.settings.rcpt_timeout),
            Command::Data => (Stage::Data, self.settings.data_timeout),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("next_hop", &self.next_hop).field("usable", &self.usable).finish()
    }
}

/// RFC 5321 section 3.8: the server says this to any command when it must close the connection. It may say no more,
/// so it is the answer to everything that is open.
const CODE_CLOSING: u16 = 421;
/// RFC 5321 section 4.2.2: the command, or its place, is not understood.
const CODES_OF_SYNTAX: RangeInclusive<u16> = 500..=504;

/// A refusal for an address or by policy (RFC 3463 section 3): greylisting, a sender that is not welcome.
fn is_about_the_mail(reply: &Reply) -> bool {
    let is_refusal = matches!(reply.class(), ReplyClass::Transient | ReplyClass::Permanent);
    let is_of_session = reply.code() == CODE_CLOSING || CODES_OF_SYNTAX.contains(&reply.code());
    is_refusal && !is_of_session && reply.enhanced().is_some_and(|status| matches!(status.subject, 1 | 7))
}

/// RFC 5321 section 4.3.2: the only reply that lets the content begin.
const CODE_START_MAIL_INPUT: u16 = 354;

/// Why a dialogue stops before its end; decides all who are undecided.
enum Stop {
    Replied(Reply),
    Lost(Stage, Failure),
    /// What was sent ahead got no answer that counts.
    Unheard(Failure),
    InDoubt(Stage, Failure),
}

impl Stop {
    fn into_result(self) -> RecipientResult {
        match self {
            Self::Replied(reply) => RecipientResult::Replied(reply),
            Self::Lost(stage, failure) => RecipientResult::Lost { stage, why: format!("{failure} while {stage}") },
            Self::Unheard(failure) => Self::Lost(Stage::Mail, failure).into_result(),
            Self::InDoubt(stage, failure) => RecipientResult::InDoubt { why: format!("{failure} while {stage}") },
        }
    }
}

fn unexpected(reply: &Reply) -> Failure {
    Failure::Protocol(format!("the server said {reply}"))
}
