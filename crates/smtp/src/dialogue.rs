//! The dialogue in command lines: what is due when, and what follows from each command (RFC 5321 sections 3.3 and
//! 4.1.4). Each command takes the state it is given in and returns the next. Asks the host whose recipient it is.

use crate::command::{Command, CommandError};
use crate::host::{Admission, Host, RefusedCommand, Stage};
use crate::line::Line;
use crate::receiving::Receiving;
use crate::reply::{Fault, Say};
use crate::session::{Session, State};
use restante_envelope::{Envelope, ForwardPath, Protocol, Recipient, ReversePath, Timestamp, Trace};

/// A client that is wrong this often is no mail server, or one whose mail we shall not get anyway.
const PROTOCOL_ERRORS_MAX: u32 = 20;
/// Refused senders, recipients and contents. More generous: a relay that brings a large old queue is no attacker, but
/// guessing of addresses must end some time.
const MAIL_ERRORS_MAX: u32 = 100;
/// NOOP, RSET, EHLO and the like, which cost a client nothing and hold a connection.
const IDLE_COMMANDS_MAX: u32 = 100;

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
}

impl Dialogue {
    fn hello(&self) -> Option<&Hello> {
        match self {
            Self::Greeted => None,
            Self::Ready(hello) | Self::Mail(Transaction { hello, .. }) => Some(hello),
        }
    }

    fn reverse_path(&self) -> Option<&str> {
        match self {
            Self::Mail(transaction) => Some(transaction.envelope.reverse_path.as_str()),
            _ => None,
        }
    }

    /// What is left of it after RSET.
    fn reset(self) -> Self {
        match self {
            Self::Mail(transaction) => Self::Ready(transaction.hello),
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
            Err(say) => self.reject(dialogue, stage_of(&line), say, host),
        };
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
            (Command::Ehlo(name), _) => {
                let protocol = if self.tls.is_some() { Protocol::Esmtps } else { Protocol::Esmtp };
                self.hello(name, protocol, Say::Ehlo { offers_tls: self.settings.starttls && self.tls.is_none() })
            }
            (Command::Helo(name), _) => self.hello(name, Protocol::Smtp, Say::Helo),
            (Command::Mail { reverse_path, size_bytes, body }, Dialogue::Ready(hello)) => {
                let envelope = match ReversePath::parse(reverse_path) {
                    Ok(_) if size_bytes > self.settings.max_message_bytes => Err(Say::SizeOverLimit),
                    Ok(sender) => Ok(Envelope::new(sender, Vec::new(), body)),
                    Err(error) => Err(Say::BadSender(reverse_path, error)),
                };
                self.mail(hello, reverse_path, envelope, size_bytes, host)
            }
            (Command::Rcpt { forward_path }, Dialogue::Mail(transaction)) => self.rcpt(transaction, forward_path, host),
            (Command::Mail { .. }, Dialogue::Greeted) => {
                self.reject(Dialogue::Greeted, Stage::Mail, Say::HeloFirst, host)
            }
            (Command::Mail { .. }, open) => self.reject(open, Stage::Mail, Say::NestedMail, host),
            (Command::Rcpt { .. }, other) => {
                let say = if other.hello().is_some() { Say::MailFirst } else { Say::HeloFirst };
                self.reject(other, Stage::Rcpt, say, host)
            }
            (Command::Data, any) => self.data(any, talks_ahead, now, host),
            (Command::Rset, other) => self.idle(other.reset(), Say::Ok),
            (Command::Noop, other) => self.idle(other, Say::Ok),
            (Command::Vrfy, other) => self.idle(other, Say::CannotVerify),
            (Command::Help, other) => self.idle(other, Say::Help),
            (Command::StartTls, any) => self.start_tls(any, host),
            (Command::Quit, _) => {
                self.quit = true;
                self.say(Say::Bye);
                State::Closed
            }
        }
    }

    fn hello(&mut self, name: &str, protocol: Protocol, say: Say<'_>) -> State {
        self.idle(Dialogue::Ready(Hello { name: name.to_owned(), protocol }), say)
    }

    /// RFC 3207. Only after EHLO, where it is offered (RFC 5321 section 2.2.1); an open transaction is no obstacle, for
    /// it is forgotten with all the rest.
    fn start_tls(&mut self, dialogue: Dialogue, host: &mut impl Host) -> State {
        let greeted_with_ehlo = dialogue.hello().is_some_and(|hello| hello.protocol != Protocol::Smtp);
        let refusal = match &self.tls {
            _ if !self.settings.starttls => Say::Command(CommandError::NotImplemented),
            Some(_) => Say::TlsActive,
            None if !greeted_with_ehlo => Say::HeloFirst,
            None => {
                self.say(Say::StartTls);
                return State::AwaitingTls;
            }
        };
        self.reject(dialogue, Stage::Command, refusal, host)
    }

    /// A command that brings no mail nearer.
    fn idle(&mut self, next: Dialogue, say: Say<'_>) -> State {
        self.say(say);
        self.idle_commands += 1;
        self.unless_too_many_errors(next)
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
                State::Dialogue(Dialogue::Mail(Transaction { hello, envelope, declared_bytes }))
            }
            Err(say) => {
                let ready = Dialogue::Ready(hello);
                self.refuse_paths(&ready, Stage::Mail, say, Some(reverse_path), None, host);
                self.after_fault(ready, say)
            }
        }
    }

    fn rcpt(&mut self, mut transaction: Transaction, path: &str, host: &mut impl Host) -> State {
        let say = match ForwardPath::parse(path) {
            _ if transaction.envelope.recipients.len() >= self.settings.max_recipients => Say::TooManyRecipients,
            Err(error) => Say::BadRecipient(path, error),
            Ok(forward_path) => match host.admit(&forward_path) {
                Admission::Accept(route) => {
                    transaction.envelope.recipients.push(Recipient::new(forward_path, route));
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
        self.after_fault(open, say)
    }

    /// `talks_ahead`: the client has sent more than the DATA line without waiting for the reply. RFC 2920 section 3.1
    /// forbids that. If the 354 comes, what follows is the content, with or without waiting, and nobody is harmed. If
    /// not, it would be read as commands, though it was written as content, perhaps by somebody else: then we close.
    fn data(&mut self, dialogue: Dialogue, talks_ahead: bool, now: Timestamp, host: &mut impl Host) -> State {
        let refusal = match dialogue {
            Dialogue::Mail(transaction) if !transaction.envelope.recipients.is_empty() => {
                let trace = self.trace(&transaction.hello, now);
                match host.begin(&transaction.envelope, &trace, transaction.declared_bytes) {
                    Ok(()) => {
                        self.deadline = now + self.settings.data_timeout;
                        self.say(Say::StartContent);
                        return State::Data(Box::new(Receiving::new(transaction, trace, &self.settings)));
                    }
                    // The transaction stays open: the client may try DATA again, or RSET.
                    Err(trouble) => (Dialogue::Mail(transaction), Say::Trouble(trouble)),
                }
            }
            Dialogue::Mail(transaction) => (Dialogue::Mail(transaction), Say::NoRecipients),
            Dialogue::Ready(hello) => (Dialogue::Ready(hello), Say::MailFirst),
            Dialogue::Greeted => (Dialogue::Greeted, Say::HeloFirst),
        };
        let next = self.reject(refusal.0, Stage::Data, refusal.1, host);
        if talks_ahead && !matches!(next, State::Closed) {
            self.say(Say::TalksAhead);
            return State::Closed;
        }
        next
    }

    fn trace(&self, hello: &Hello, now: Timestamp) -> Trace {
        Trace {
            client: self.client,
            helo: hello.name.clone(),
            protocol: hello.protocol,
            tls: self.tls.clone(),
            session: self.session,
            received_at: now,
        }
    }

    /// Refuses, and goes on in `dialogue` if the peer is still worth it.
    fn reject(&mut self, dialogue: Dialogue, stage: Stage, say: Say<'_>, host: &mut impl Host) -> State {
        self.refuse_paths(&dialogue, stage, say, dialogue.reverse_path(), None, host);
        self.after_fault(dialogue, say)
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

    pub(crate) fn after_fault(&mut self, dialogue: Dialogue, say: Say<'_>) -> State {
        match say.fault() {
            Fault::None => {}
            Fault::Mail => self.mail_errors += 1,
            Fault::Protocol => self.protocol_errors += 1,
            Fault::Fatal => return State::Closed,
        }
        self.unless_too_many_errors(dialogue)
    }

    fn unless_too_many_errors(&mut self, dialogue: Dialogue) -> State {
        if self.protocol_errors < PROTOCOL_ERRORS_MAX
            && self.mail_errors < MAIL_ERRORS_MAX
            && self.idle_commands <= IDLE_COMMANDS_MAX
        {
            return State::Dialogue(dialogue);
        }
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
    let verb = line.as_ref().ok().and_then(|line| line.get(..4)).unwrap_or_default();
    match verb.to_ascii_uppercase().as_slice() {
        b"MAIL" => Stage::Mail,
        b"RCPT" => Stage::Rcpt,
        b"DATA" => Stage::Data,
        _ => Stage::Command,
    }
}
