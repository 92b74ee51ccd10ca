//! A small message in one flight: MAIL, RCPT, `BDAT n LAST` and the octets, where CHUNKING and PIPELINING are offered (RFC 3030).
//!
//! Such a message costs one round trip, so nothing of the next one is sent ahead on a connection that takes BDAT: ahead would
//! gain nothing and put two messages at the mercy of one reply. A connection is spoken to in the one way or in the other,
//! never in both; where BDAT is not offered, or turns out not to be understood, it is ahead. Messages of more than one
//! flight go with DATA: it stays one round trip among many, their pieces are checked as they leave, and a transaction whose
//! content goes wrong is broken off before its final dot. With BDAT they would be many chunks, each with a reply of its own
//! that can refuse, and dots stuffed in passing cost nothing that could be measured.
//!
//! The content is read and checked before the first octet of it goes out: half a message is never sent. When the last octet
//! may have gone out the server may have the message, and a connection that ends then leaves it in doubt, at whichever
//! reply that is.
//!
//! The first BDAT of a connection carries no octet of a stranger's. Something between that lets CHUNKING pass and does not know
//! BDAT would take what stands behind it for commands, and who wrote the message would speak SMTP to our next hop as we.
//! So a first chunk brings one octet, the first of our own header, and its reply is awaited: once in the life of a connection,
//! and no more round trips than with DATA. Whoever takes that octet for the beginning of a command finds the RSET behind it
//! unknown, and hears another. (A whole line of a header makes Postfix hang up where it expects a command, and a null chunk
//! it refuses.)

use super::{
    CODE_CLOSING, CODES_OF_SYNTAX, Command, Connection, Mail, PIPELINED_COMMANDS_MAX, RecipientResult, Stop,
    Transaction, lines, unexpected,
};
use crate::connect::Extensions;
use crate::content::{Content, InMemory, whole};
use crate::failure::{Failure, Stage};
use crate::wire::Sent;
use restante_envelope::{Recipient, Reply, ReplyClass};
use std::time::Duration;

/// Header and content in one write. Any common message; what is larger is many round trips of TCP anyway, and would have to
/// be in memory as a whole.
const FLIGHT_OCTETS_MAX: u64 = 64 * 1024;

/// The first chunk of a connection. See above.
const OPENING_OCTETS: usize = 1;

/// Whether messages go out with BDAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunking {
    /// Not offered, or refused when it came to it.
    No,
    /// Offered, and nothing more is known.
    Offered,
    /// The server took a chunk.
    Understood,
}

impl Chunking {
    pub(super) fn offered(extensions: Extensions) -> Self {
        if extensions.chunking && extensions.pipelining { Self::Offered } else { Self::No }
    }
}

/// What came of the first chunk.
enum Opened {
    /// The server waits for the rest.
    Agreed,
    /// All is decided.
    Over,
    /// The server knows no BDAT, and nothing of the message is left with it.
    NotUnderstood,
}

impl Connection {
    /// Whether all of a mail goes out at once.
    pub(super) fn is_one_flight(&self, mail: &Mail<'_>) -> bool {
        let octets = mail.size_bytes.saturating_add(mail.trace_header.len() as u64);
        // MAIL and BDAT are the other two. The replies to a group fit the smallest socket buffers, so that the server reads on.
        let fits = octets <= FLIGHT_OCTETS_MAX && mail.recipients.len() + 2 <= PIPELINED_COMMANDS_MAX;
        let may_be_asked = match self.chunking {
            Chunking::No => false,
            Chunking::Offered => !mail.trace_header.is_empty(),
            Chunking::Understood => true,
        };
        fits && may_be_asked && self.ahead.is_none()
    }

    /// One transaction by BDAT, or by DATA after all if the server does not know BDAT.
    pub(super) async fn converse_in_chunks(
        &mut self,
        transaction: &mut Transaction<'_>,
        content: &mut dyn Content,
        next: Option<&Mail<'_>>,
    ) -> Result<(), Stop> {
        let mail = transaction.mail;
        let message = match whole(mail.trace_header, content, mail.size_bytes) {
            Ok(message) => message,
            Err(why) => {
                // The server heard nothing of it, and may be asked for the next.
                let lost = Stop::Lost(Stage::Content, Failure::Unreadable(why)).into_result();
                transaction.decide_rest(&lost);
                return Ok(());
            }
        };
        let sent = if self.chunking == Chunking::Understood {
            let commands: Vec<Command> = Command::envelope(mail).collect();
            let flight = [lines(mail, &commands, self.extensions).as_bytes(), &last_chunk(&message)].concat();
            let sent = self.launch(Stage::Mail, &flight).await?;
            self.hear_envelope(transaction, sent.to_the_last).await?;
            sent
        } else {
            let (opening, rest) = message.split_at(message.len().min(OPENING_OCTETS));
            match self.open(transaction, opening).await? {
                Opened::Agreed => self.launch(Stage::Bdat, &last_chunk(rest)).await?,
                Opened::Over => return Ok(()),
                Opened::NotUnderstood => return self.converse_again(transaction, &message, next).await,
            }
        };
        if self.hear_last(transaction, &sent).await? {
            return Ok(());
        }
        self.reset().await?;
        self.converse_again(transaction, &message, next).await
    }

    /// Sends MAIL, RCPT and a chunk that is not the last, and hears whether the server knows such a thing.
    async fn open(&mut self, transaction: &mut Transaction<'_>, opening: &[u8]) -> Result<Opened, Stop> {
        let commands: Vec<Command> = Command::envelope(transaction.mail).collect();
        let mut flight = lines(transaction.mail, &commands, self.extensions).into_bytes();
        flight.extend_from_slice(format!("BDAT {}\r\n", opening.len()).as_bytes());
        flight.extend_from_slice(opening);
        let sent = self.launch(Stage::Mail, &flight).await?;
        // Whatever went out, a message without its last chunk is none.
        self.hear_envelope(transaction, false).await?;
        let reply = self.hear(Stage::Bdat, self.settings.data_timeout, false).await?;
        if let Some(failure) = sent.failure {
            return Err(Stop::Lost(Stage::Bdat, failure));
        }
        let is_refused = match reply.class() {
            ReplyClass::Positive => {
                self.chunking = Chunking::Understood;
                false
            }
            ReplyClass::Intermediate => return Err(Stop::Lost(Stage::Bdat, unexpected(&reply))),
            ReplyClass::Transient | ReplyClass::Permanent => true,
        };
        if !is_refused && !transaction.is_decided() {
            return Ok(Opened::Agreed);
        }
        let is_unknown = is_refused && CODES_OF_SYNTAX.contains(&reply.code()) && !transaction.is_decided();
        if is_unknown {
            self.chunking = Chunking::No;
        } else {
            // Where nobody is left it concerns nobody.
            transaction.decide_rest(&RecipientResult::Replied(reply));
        }
        self.reset_behind_opening().await?;
        Ok(if is_unknown { Opened::NotUnderstood } else { Opened::Over })
    }

    /// RSET behind a chunk that was not taken: said again to a server that read the chunk as the beginning of it.
    async fn reset_behind_opening(&mut self) -> Result<(), Stop> {
        self.heed_unasked(Stage::Rset).await?;
        let reply = self.wire.command("RSET\r\n", self.settings.ehlo_timeout).await;
        match reply.map_err(|failure| Stop::Lost(Stage::Rset, failure))?.to_reply() {
            reply if reply.class() == ReplyClass::Positive => Ok(()),
            reply if reply.class() == ReplyClass::Permanent => self.reset().await,
            reply => Err(Stop::Lost(Stage::Rset, unexpected(&reply))),
        }
    }

    /// Sends a flight. An error only where no reply can be hoped for.
    async fn launch(&mut self, stage: Stage, flight: &[u8]) -> Result<Sent, Stop> {
        self.heed_unasked(stage).await?;
        let sent = self.wire.send(flight, self.settings.block_timeout).await;
        match &sent.failure {
            None | Some(Failure::Closed(_)) => Ok(sent),
            Some(failure) => Err(broken(Stage::Content, failure.clone(), sent.to_the_last)),
        }
    }

    /// The replies to MAIL and RCPT. `is_out`: the server may have the whole message.
    async fn hear_envelope(&mut self, transaction: &mut Transaction<'_>, is_out: bool) -> Result<(), Stop> {
        for command in Command::envelope(transaction.mail) {
            let (stage, limit) = self.stage_of(command);
            let reply = self.hear(stage, limit, is_out).await?;
            transaction.note(command, reply).map_err(|failure| broken(stage, failure, is_out))?;
        }
        Ok(())
    }

    async fn hear(&mut self, stage: Stage, limit: Duration, is_out: bool) -> Result<Reply, Stop> {
        match self.wire.reply(limit).await {
            Ok(reply) if reply.code == CODE_CLOSING => Err(Stop::Replied(reply.to_reply())),
            Ok(reply) => Ok(reply.to_reply()),
            Err(failure) => Err(broken(stage, failure, is_out)),
        }
    }

    /// The reply to the last chunk; false if the server does not know BDAT, whatever it said to the one before.
    async fn hear_last(&mut self, transaction: &mut Transaction<'_>, sent: &Sent) -> Result<bool, Stop> {
        let is_out = sent.to_the_last;
        let reply = self.hear(Stage::Bdat, self.settings.final_dot_timeout, is_out).await?;
        let is_taken = match reply.class() {
            ReplyClass::Positive if is_out => true,
            // It cannot have taken what it has not got.
            ReplyClass::Positive | ReplyClass::Intermediate => {
                return Err(broken(Stage::Bdat, unexpected(&reply), is_out));
            }
            ReplyClass::Transient | ReplyClass::Permanent => false,
        };
        let is_unknown = !is_taken && CODES_OF_SYNTAX.contains(&reply.code()) && !transaction.is_decided();
        if !is_unknown {
            transaction.decide_by_content(reply);
        }
        if let Some(failure) = &sent.failure {
            return Err(Stop::Lost(Stage::Content, failure.clone()));
        }
        if !is_taken && !is_unknown {
            // RFC 3030 section 2: what state the server is in is not told by a refusal.
            self.reset().await?;
        }
        Ok(!is_unknown)
    }

    /// DATA for those who were not refused, behind an RSET: the server has nothing of the message. BDAT is over here.
    async fn converse_again(
        &mut self,
        transaction: &mut Transaction<'_>,
        message: &[u8],
        next: Option<&Mail<'_>>,
    ) -> Result<(), Stop> {
        self.chunking = Chunking::No;
        let all = transaction.mail;
        let open = |at: &usize| transaction.results.get(*at).is_some_and(Option::is_none);
        let places: Vec<usize> = (0..all.recipients.len()).filter(open).collect();
        let recipients: Vec<&Recipient> = places.iter().filter_map(|at| all.recipients.get(*at).copied()).collect();
        let mail = Mail { recipients: &recipients, trace_header: b"", size_bytes: message.len() as u64, ..*all };
        let mut again = Transaction::new(&mail);
        let ended = self.converse_with_data(&mut again, &mut InMemory(message), next).await;
        // A refusal of MAIL is the answer to all only if it was asked for all.
        transaction.mail_refused = again.mail_refused && places.len() == all.recipients.len();
        for ((at, result), by_content) in places.into_iter().zip(again.results).zip(again.by_content) {
            if let (Some(told), Some(by)) = (transaction.results.get_mut(at), transaction.by_content.get_mut(at)) {
                (*told, *by) = (result, by_content);
            }
        }
        ended
    }
}

/// What an end of the connection means at `stage`.
fn broken(stage: Stage, failure: Failure, is_out: bool) -> Stop {
    if is_out { Stop::InDoubt(stage, failure) } else { Stop::Lost(stage, failure) }
}

fn last_chunk(octets: &[u8]) -> Vec<u8> {
    [format!("BDAT {} LAST\r\n", octets.len()).as_bytes(), octets].concat()
}
