//! The dialogue in command lines: what is due when, and what follows from each command (RFC 5321 sections 3.3 and
//! 4.1.4). Each command takes the state it is given in and returns the next. Asks the host whose recipient it is.

use crate::command::{Command, CommandError};
use crate::content::Framing;
use crate::host::{Admission, Etrn, Host, RefusedCommand, Stage};
use crate::line::{Line, LineError};
use crate::receiving::{Chunk, Receiving, is_excessive};
use crate::reply::{Fault, Say};
use crate::session::{Session, State};
use crate::xclient::Xclient;
use restante_envelope::{
    DomainName, Envelope, ForwardPath, Protocol, Recipient, RecipientDsn, ReversePath, Timestamp, Trace,
};

/// A client that is wrong this often is no mail server, or one whose mail we shall not get anyway.
const PROTOCOL_ERRORS_MAX: u32 = 20;
/// Refused senders, recipients and contents. More generous: a relay that brings a large old queue is no attacker, but
/// guessing of addresses must end some time.
const MAIL_ERRORS_MAX: u32 = 100;
/// NOOP, RSET, EHLO and the like, which cost a client nothing and hold a connection.
const IDLE_COMMANDS_MAX: u32 = 100;
/// 4xx replies, mostly to RCPT. No fault of the client's, and a mailing list may well offer all its members at once to learn what
/// we take; but who goes on after ten full envelopes of them does not want to learn, and holds a connection.
const PUT_OFF_MAX: u32 = 10_000;

/// What the paths and ORCPTs of one envelope may take in memory: a thousand recipients of 128 octets. With all of them as long as may be,
/// a session would hold most of a megabyte before its content is even counted, and there are thousands of sessions.
const ENVELOPE_BYTES_MAX: usize = 131_072;
/// RFC 5321 section 4.5.3.1.8: so many are taken in any case.
const RECIPIENTS_MIN: usize = 100;

/// What a session has on its account, up to the limits above, since its last message was taken.
#[derive(Debug, Default)]
pub(crate) struct Strikes {
    protocol_errors: u32,
    mail_errors: u32,
    idle_commands: u32,
    put_off: u32,
}

impl Strikes {
    fn are_too_many(&self) -> bool {
        self.protocol_errors >= PROTOCOL_ERRORS_MAX
            || self.mail_errors >= MAIL_ERRORS_MAX
            || self.idle_commands > IDLE_COMMANDS_MAX
            || self.put_off >= PUT_OFF_MAX
    }
}

/// What the client called itself.
#[derive(Debug)]
pub(crate) struct Hello {
    name: String,
    protocol: Protocol,
}

/// An open mail transaction.
#[derive(Debug)]
pub(crate) struct Transaction {
    pub(crate) hello: Hello,
    pub(crate) envelope: Envelope,
    /// Of the content, as MAIL has it; 0 if it has not.
    declared_bytes: u64,
    /// Of the recipients' paths and ORCPTs.
    recipient_bytes: usize,
}

impl Transaction {
    fn is_full(&self, max_recipients: usize) -> bool {
        let count = self.envelope.recipients.len();
        count >= max_recipients || (count >= RECIPIENTS_MIN && self.recipient_bytes >= ENVELOPE_BYTES_MAX)
    }
}

/// The part of the session that speaks in command lines.
#[derive(Debug)]
pub(crate) enum Dialogue {
    /// No HELO or EHLO yet.
    Greeted,
    /// No sender yet.
    Ready(Hello),
    /// A sender, perhaps recipients.
    Mail(Transaction),
    /// Between two chunks.
    Chunks(Box<Receiving>),
}

impl Dialogue {
    fn hello(&self) -> Option<&Hello> {
        match self {
            Self::Greeted => None,
            Self::Ready(hello) | Self::Mail(Transaction { hello, .. }) => Some(hello),
            Self::Chunks(receiving) => Some(&receiving.hello),
        }
    }

    fn reverse_path(&self) -> Option<&str> {
        match self {
            Self::Mail(transaction) => Some(transaction.envelope.reverse_path.as_str()),
            Self::Chunks(receiving) => Some(receiving.reverse_path.as_str()),
            _ => None,
        }
    }

    /// What is left of it after RSET.
    pub(crate) fn reset(self, host: &mut impl Host) -> Self {
        match self {
            Self::Mail(transaction) => Self::Ready(transaction.hello),
            Self::Chunks(mut receiving) => {
                receiving.give_up(host);
                Self::Ready(receiving.hello)
            }
            other => other,
        }
    }
}

impl Session {
    pub(crate) fn receive_line(
        &mut self,
        dialogue: Dialogue,
        input: &[u8],
        now: Timestamp,
        host: &mut impl Host,
    ) -> (usize, State) {
        let (consumed, line) = self.lines.read(input);
        let Some(line) = line else { return (consumed, State::Dialogue(dialogue)) };
        self.deadline = now + self.settings.command_timeout;
        let next = match command_of(&line) {
            Ok(command) => self.command(dialogue, command, consumed < input.len(), now, host),
            Err(say) => {
                let stage = stage_of(&line);
                let next = self.reject(dialogue, stage, say, host);
                self.unless_content_follows(next, stage == Stage::Data && consumed < input.len(), host)
            }
        };
        if let State::Dialogue(Dialogue::Chunks(receiving)) = &next {
            self.deadline = self.deadline.min(receiving.deadline);
        }
        (consumed, next)
    }

    /// `talks_ahead`: more input is there already.
    fn command(
        &mut self,
        dialogue: Dialogue,
        command: Command<'_>,
        talks_ahead: bool,
        now: Timestamp,
        host: &mut impl Host,
    ) -> State {
        match (command, dialogue) {
            // RFC 2920 section 3.1: EHLO is the last of a group. Who goes on without the reply does not know what we can do, nor
            // wants to: no mail server does that. Of the other commands that end a group only DATA is held to it, see there.
            (Command::Ehlo(_) | Command::Helo(_), any) if talks_ahead => {
                self.reject(any, Stage::Command, Say::TalksTooSoon, host)
            }
            (Command::Ehlo(name), any) => {
                let say = Say::Ehlo {
                    offers_tls: self.settings.starttls && self.tls.is_none() && !self.is_proxy,
                    offers_xclient: self.xclient_allowed,
                };
                self.hello(any, name, self.esmtp(), say, host)
            }
            (Command::Helo(name), any) => self.hello(any, name, Protocol::Smtp, Say::Helo, host),
            (Command::Mail { reverse_path, size_bytes, body, smtputf8, dsn }, Dialogue::Ready(hello)) => {
                let parsed = match smtputf8 {
                    true => ReversePath::parse_utf8(reverse_path),
                    false => ReversePath::parse(reverse_path),
                };
                let envelope = match parsed {
                    _ if self.counts.mail >= self.settings.max_messages => Err(Say::TooManyMessages),
                    Ok(_) if size_bytes > self.settings.max_message_bytes => Err(Say::SizeOverLimit),
                    Ok(sender) => Ok(Envelope { smtputf8, dsn, ..Envelope::new(sender, Vec::new(), body) }),
                    Err(error) => Err(Say::BadSender(reverse_path, error)),
                };
                self.mail(hello, reverse_path, envelope, size_bytes, host)
            }
            (Command::Rcpt { forward_path, dsn }, Dialogue::Mail(transaction)) => {
                self.rcpt(transaction, forward_path, dsn, host)
            }
            (Command::Bdat { bytes, last }, any) => self.bdat(any, bytes, last, now, host),
            (Command::Mail { .. }, Dialogue::Greeted) => {
                self.reject(Dialogue::Greeted, Stage::Mail, Say::HeloFirst, host)
            }
            (Command::Mail { .. }, chunks @ Dialogue::Chunks(_)) => {
                self.reject(chunks, Stage::Mail, Say::ChunksUnderWay, host)
            }
            (Command::Rcpt { .. }, chunks @ Dialogue::Chunks(_)) => {
                self.reject(chunks, Stage::Rcpt, Say::ChunksUnderWay, host)
            }
            (Command::Mail { .. }, open) => self.reject(open, Stage::Mail, Say::NestedMail, host),
            (Command::Rcpt { .. }, other) => {
                let say = if other.hello().is_some() { Say::MailFirst } else { Say::HeloFirst };
                self.reject(other, Stage::Rcpt, say, host)
            }
            (Command::Data, any) => self.data(any, talks_ahead, now, host),
            (Command::Rset, other) => {
                let next = other.reset(host);
                self.idle(next, Say::Ok, host)
            }
            (Command::Noop, other) => self.idle(other, Say::Ok, host),
            (Command::Vrfy, other) => self.idle(other, Say::CannotVerify, host),
            (Command::Help, other) => self.idle(other, Say::Help, host),
            (Command::Etrn(domain), other) => self.etrn(other, domain, host),
            (Command::Xclient(argument), any) => self.xclient(any, argument, host),
            (Command::StartTls, any) => self.start_tls(any, host),
            (Command::Quit, any) => {
                any.reset(host);
                self.quit = true;
                self.say(Say::Bye);
                State::Closed
            }
        }
    }

    fn hello(&mut self, before: Dialogue, name: &str, protocol: Protocol, say: Say<'_>, host: &mut impl Host) -> State {
        before.reset(host);
        self.idle(Dialogue::Ready(Hello { name: name.to_owned(), protocol }), say, host)
    }

    /// RFC 1985. `@` in front of a domain means those below it, too, which take the same way here.
    fn etrn(&mut self, dialogue: Dialogue, domain: &str, host: &mut impl Host) -> State {
        let say = match DomainName::parse(domain.strip_prefix('@').unwrap_or(domain)) {
            _ if dialogue.hello().is_none() => Say::HeloFirst,
            Ok(domain) => Say::Etrn(host.etrn(&domain)),
            Err(_) => Say::Command(CommandError::EtrnSyntax),
        };
        match say {
            Say::Etrn(Etrn::Started | Etrn::Nothing) => self.idle(dialogue, say, host),
            _ => self.reject(dialogue, Stage::Command, say, host),
        }
    }

    /// All is as after the greeting, which is said again; only what the proxy said is known already. TLS stays, for it is the
    /// connection's, and so do the errors: the proxy answers for its clients.
    fn xclient(&mut self, dialogue: Dialogue, argument: &str, host: &mut impl Host) -> State {
        let read = match dialogue {
            _ if !self.xclient_allowed => Err(Say::XclientDenied),
            Dialogue::Mail(_) => Err(Say::NestedMail),
            Dialogue::Chunks(_) => Err(Say::ChunksUnderWay),
            Dialogue::Greeted | Dialogue::Ready(_) => {
                Xclient::parse(argument, self.peer, self.client).map_err(Say::Command)
            }
        };
        let Xclient { client, hello } = match read {
            Ok(read) => read,
            Err(say) => return self.reject(dialogue, Stage::Command, say, host),
        };
        (self.client, self.is_proxy) = (client, true);
        host.xclient(client);
        let next = hello.map_or(Dialogue::Greeted, |(name, protocol)| {
            let protocol = if protocol == Protocol::Esmtp { self.esmtp() } else { protocol };
            Dialogue::Ready(Hello { name, protocol })
        });
        self.idle(next, Say::Greeting, host)
    }

    fn esmtp(&self) -> Protocol {
        if self.tls.is_some() { Protocol::Esmtps } else { Protocol::Esmtp }
    }

    /// RFC 3030. Whatever the answer, the octets that follow are no commands.
    fn bdat(&mut self, dialogue: Dialogue, bytes: u64, is_last: bool, now: Timestamp, host: &mut impl Host) -> State {
        let chunk = Chunk { bytes, left: bytes, is_last };
        let (dialogue, say) = match dialogue {
            Dialogue::Chunks(receiving) => return self.go_on_with_chunk(receiving, chunk, now, host),
            Dialogue::Mail(transaction) if !transaction.envelope.recipients.is_empty() => {
                let trace = self.trace(&transaction, now);
                // All of it, if this is all.
                let declared = transaction.declared_bytes.max(if is_last { bytes } else { 0 });
                let begun = match declared > self.settings.max_message_bytes {
                    true => Err(Say::TooLarge),
                    false => host.begin(&transaction.envelope, &trace, declared).map_err(Say::Trouble),
                };
                match begun {
                    Ok(()) => {
                        let framing = Framing::counted();
                        let receiving = Receiving::new(transaction, trace, framing, &self.settings, now);
                        return self.go_on_with_chunk(Box::new(receiving), chunk, now, host);
                    }
                    // Unlike after DATA: the chunks behind this one are on their way, and must not begin the message.
                    Err(say) => (Dialogue::Ready(transaction.hello), say),
                }
            }
            Dialogue::Mail(transaction) => (Dialogue::Ready(transaction.hello), Say::NoRecipients),
            Dialogue::Ready(hello) => (Dialogue::Ready(hello), Say::NoTransaction),
            Dialogue::Greeted => (Dialogue::Greeted, Say::HeloFirst),
        };
        if is_excessive(bytes, self.settings.max_message_bytes) {
            self.refuse_paths(&dialogue, Stage::Data, say, dialogue.reverse_path(), None, host);
            self.say(Say::FarTooLarge);
            return State::Closed;
        }
        self.deadline = now + self.settings.data_timeout;
        self.skip(dialogue, bytes, say, &[], host).1
    }

    /// RFC 3207. Only after EHLO, where it is offered (RFC 5321 section 2.2.1); an open transaction is no obstacle, for
    /// it is forgotten with all the rest.
    fn start_tls(&mut self, dialogue: Dialogue, host: &mut impl Host) -> State {
        let greeted_with_ehlo = dialogue.hello().is_some_and(|hello| hello.protocol != Protocol::Smtp);
        let refusal = match &self.tls {
            _ if !self.settings.starttls => Say::Command(CommandError::NotImplemented),
            Some(_) => Say::TlsActive,
            // A handshake makes us forget what was said in clear (section 4.2), and with it who the client is.
            None if self.is_proxy => Say::TlsTooLate,
            None if !greeted_with_ehlo => Say::HeloFirst,
            None => {
                dialogue.reset(host);
                self.say(Say::StartTls);
                return State::AwaitingTls;
            }
        };
        self.reject(dialogue, Stage::Command, refusal, host)
    }

    /// A command that brings no mail nearer.
    fn idle(&mut self, next: Dialogue, say: Say<'_>, host: &mut impl Host) -> State {
        self.say(say);
        self.strikes.idle_commands += 1;
        self.unless_too_many_errors(next, host)
    }

    fn mail(
        &mut self,
        hello: Hello,
        reverse_path: &str,
        envelope: Result<Envelope, Say<'_>>,
        declared_bytes: u64,
        host: &mut impl Host,
    ) -> State {
        match envelope.and_then(|envelope| host.mail(declared_bytes).map(|()| envelope).map_err(Say::Trouble)) {
            Ok(envelope) => {
                self.counts.mail = self.counts.mail.saturating_add(1);
                self.say(Say::SenderOk);
                State::Dialogue(Dialogue::Mail(Transaction { hello, envelope, declared_bytes, recipient_bytes: 0 }))
            }
            Err(say) => {
                let ready = Dialogue::Ready(hello);
                self.refuse_paths(&ready, Stage::Mail, say, Some(reverse_path), None, host);
                self.after_fault(ready, say, host)
            }
        }
    }

    fn rcpt(&mut self, mut transaction: Transaction, path: &str, dsn: RecipientDsn, host: &mut impl Host) -> State {
        let smtputf8 = transaction.envelope.smtputf8;
        let parsed = if smtputf8 { ForwardPath::parse_utf8(path) } else { ForwardPath::parse(path) };
        // RFC 6533 section 3: as UTF-8 only where that is asked for.
        let is_plain = dsn.original.as_ref().is_none_or(|original| original.as_str().is_ascii());
        let say = match parsed {
            _ if !is_plain && !smtputf8 => Say::OriginalNotAscii,
            _ if transaction.is_full(self.settings.max_recipients) => Say::TooManyRecipients,
            Err(error) => Say::BadRecipient(path, error),
            Ok(forward_path) => match host.admit(&forward_path) {
                Admission::Accept(route) => {
                    let original = dsn.original.as_ref().map_or(0, |original| original.as_str().len());
                    transaction.recipient_bytes += forward_path.as_str().len() + original;
                    transaction.envelope.recipients.push(Recipient { dsn, ..Recipient::new(forward_path, route) });
                    self.counts.rcpt = self.counts.rcpt.saturating_add(1);
                    self.say(Say::RecipientOk);
                    return State::Dialogue(Dialogue::Mail(transaction));
                }
                Admission::NotOurs => Say::NotOurs(path),
                Admission::UnknownRecipient => Say::UnknownRecipient(path),
                Admission::SenderSpecifiedRoute => Say::SenderSpecifiedRoute(path),
                Admission::Full => Say::RouteFull(path),
            },
        };
        let open = Dialogue::Mail(transaction);
        self.refuse_paths(&open, Stage::Rcpt, say, open.reverse_path(), Some(path), host);
        self.after_fault(open, say, host)
    }

    /// `talks_ahead`: the client has sent more than the DATA line without waiting for the reply. RFC 2920 section 3.1
    /// forbids that. If the 354 comes, what follows is the content, with or without waiting, and nobody is harmed. If
    /// not, it would be read as commands, though it was written as content, perhaps by somebody else: then we close.
    fn data(&mut self, dialogue: Dialogue, talks_ahead: bool, now: Timestamp, host: &mut impl Host) -> State {
        let refusal = match dialogue {
            Dialogue::Mail(transaction) if !transaction.envelope.recipients.is_empty() => {
                let trace = self.trace(&transaction, now);
                match host.begin(&transaction.envelope, &trace, transaction.declared_bytes) {
                    Ok(()) => {
                        self.deadline = now + self.settings.data_timeout;
                        self.say(Say::StartContent);
                        let framing = Framing::dotted();
                        let receiving = Receiving::new(transaction, trace, framing, &self.settings, now);
                        return State::Data(Box::new(receiving));
                    }
                    // The transaction stays open: the client may try DATA again, or RSET.
                    Err(trouble) => (Dialogue::Mail(transaction), Say::Trouble(trouble)),
                }
            }
            Dialogue::Mail(transaction) => (Dialogue::Mail(transaction), Say::NoRecipients),
            Dialogue::Chunks(receiving) => (Dialogue::Chunks(receiving), Say::ChunksUnderWay),
            Dialogue::Ready(hello) => (Dialogue::Ready(hello), Say::MailFirst),
            Dialogue::Greeted => (Dialogue::Greeted, Say::HeloFirst),
        };
        let next = self.reject(refusal.0, Stage::Data, refusal.1, host);
        self.unless_content_follows(next, talks_ahead, host)
    }

    /// `follows`: behind a DATA that was refused, malformed ones included.
    fn unless_content_follows(&mut self, next: State, follows: bool, host: &mut impl Host) -> State {
        match next {
            State::Dialogue(dialogue) if follows => {
                dialogue.reset(host);
                self.say(Say::TalksAhead);
                State::Closed
            }
            next => next,
        }
    }

    fn trace(&self, transaction: &Transaction, now: Timestamp) -> Trace {
        let hello = &transaction.hello;
        let protocol = match hello.protocol {
            Protocol::Esmtp if transaction.envelope.smtputf8 => Protocol::Utf8Smtp,
            Protocol::Esmtps if transaction.envelope.smtputf8 => Protocol::Utf8Smtps,
            other => other,
        };
        Trace {
            client: self.client,
            helo: hello.name.clone(),
            protocol,
            tls: self.tls.clone(),
            session: self.session,
            received_at: now,
        }
    }

    /// Refuses, and goes on in `dialogue` if the peer is still worth it.
    pub(crate) fn reject(&mut self, dialogue: Dialogue, stage: Stage, say: Say<'_>, host: &mut impl Host) -> State {
        self.refuse_paths(&dialogue, stage, say, dialogue.reverse_path(), None, host);
        self.after_fault(dialogue, say, host)
    }

    pub(crate) fn refuse_paths(
        &mut self,
        dialogue: &Dialogue,
        stage: Stage,
        say: Say<'_>,
        reverse_path: Option<&str>,
        forward_path: Option<&str>,
        host: &mut impl Host,
    ) {
        let reply = say.reply(&self.settings);
        reply.write_to(&mut self.output);
        self.count_refusal();
        host.refused(&RefusedCommand {
            stage,
            reply,
            helo: dialogue.hello().map(|hello| hello.name.clone()),
            reverse_path: reverse_path.map(str::to_owned),
            forward_path: forward_path.map(str::to_owned),
        });
    }

    pub(crate) fn after_fault(&mut self, dialogue: Dialogue, say: Say<'_>, host: &mut impl Host) -> State {
        match say.fault() {
            Fault::None => self.strikes.put_off += 1,
            Fault::Mail => self.strikes.mail_errors += 1,
            Fault::Protocol => self.strikes.protocol_errors += 1,
            Fault::Fatal => {
                dialogue.reset(host);
                return State::Closed;
            }
        }
        self.unless_too_many_errors(dialogue, host)
    }

    fn unless_too_many_errors(&mut self, dialogue: Dialogue, host: &mut impl Host) -> State {
        if !self.strikes.are_too_many() {
            return State::Dialogue(dialogue);
        }
        dialogue.reset(host);
        self.say(Say::TooManyErrors);
        State::Closed
    }
}

fn command_of<'l>(line: &'l Line<'_>) -> Result<Command<'l>, Say<'l>> {
    match line {
        Ok(line) => Command::parse(line).map_err(Say::Command),
        Err(error) => Err(Say::Line(*error)),
    }
}

/// Where a line belongs that is no well-formed command.
fn stage_of(line: &Line<'_>) -> Stage {
    let verb = match line {
        Ok(line) => line.get(..4).unwrap_or_default(),
        Err(LineError::TooLong { verb }) => verb,
        Err(_) => &[],
    };
    match verb.to_ascii_uppercase().as_slice() {
        b"MAIL" => Stage::Mail,
        b"RCPT" => Stage::Rcpt,
        b"DATA" => Stage::Data,
        _ => Stage::Command,
    }
}
