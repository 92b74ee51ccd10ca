//! The commands of a transaction as they are sent, and what the replies so far mean for each recipient. No I/O.

use super::{CODE_START_MAIL_INPUT, Mail, RecipientResult, unexpected};
use crate::connect::Extensions;
use crate::failure::{Failure, Stage};
use restante_envelope::{BodyType, Reply, ReplyClass};
use std::fmt::Write;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Mail,
    /// The recipient's place.
    Rcpt(usize),
    Data,
}

impl Command {
    /// From whom and to whom.
    pub(super) fn envelope(mail: &Mail<'_>) -> impl Iterator<Item = Self> {
        let recipients = (0..mail.recipients.len()).map(Self::Rcpt);
        [Self::Mail].into_iter().chain(recipients)
    }

    /// Those of a transaction up to the content.
    pub(super) fn all(mail: &Mail<'_>) -> Vec<Self> {
        Self::envelope(mail).chain([Self::Data]).collect()
    }
}

/// A group of commands as it is sent.
pub(super) fn lines(mail: &Mail<'_>, group: &[Command], extensions: Extensions) -> String {
    let mut lines = String::new();
    for command in group {
        write_command(mail, *command, extensions, &mut lines);
    }
    lines
}

fn write_command(mail: &Mail<'_>, command: Command, extensions: Extensions, lines: &mut String) {
    // Writing to a String cannot fail.
    let _ = match command {
        Command::Mail => {
            let _ = write!(lines, "MAIL FROM:<{}>", mail.reverse_path);
            if extensions.size {
                let size_bytes = mail.size_bytes.saturating_add(mail.trace_header.len() as u64);
                let _ = write!(lines, " SIZE={size_bytes}");
            }
            if mail.body == BodyType::EightBitMime {
                let _ = write!(lines, " BODY=8BITMIME");
            }
            if mail.smtputf8 {
                let _ = write!(lines, " SMTPUTF8");
            }
            if let Some(ret) = mail.dsn.ret.filter(|_| extensions.dsn) {
                let _ = write!(lines, " RET={}", ret.as_str());
            }
            if let Some(envid) = mail.dsn.envid.as_ref().filter(|_| extensions.dsn) {
                let _ = write!(lines, " ENVID={}", envid.as_str());
            }
            lines.write_str("\r\n")
        }
        Command::Rcpt(place) => match mail.recipients.get(place) {
            Some(recipient) => {
                let _ = write!(lines, "RCPT TO:<{}>", recipient.forward_path);
                if let Some(notify) = recipient.dsn.notify.filter(|_| extensions.dsn) {
                    let _ = write!(lines, " NOTIFY={notify}");
                }
                if let Some(original) = recipient.dsn.original.as_ref().filter(|_| extensions.dsn) {
                    let _ = write!(lines, " ORCPT={}", original.as_str());
                }
                lines.write_str("\r\n")
            }
            None => Ok(()),
        },
        Command::Data => lines.write_str("DATA\r\n"),
    };
}

/// What the replies so far mean for each recipient.
pub(super) struct Transaction<'a> {
    pub(super) mail: &'a Mail<'a>,
    /// None: nothing speaks against this recipient yet.
    pub(super) results: Vec<Option<RecipientResult>>,
    pub(super) mail_refused: bool,
    pub(super) by_content: Vec<bool>,
    /// The server waits for the content.
    pub(super) data_agreed: bool,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(mail: &'a Mail<'a>) -> Self {
        let results = vec![None; mail.recipients.len()];
        let by_content = vec![false; mail.recipients.len()];
        Self { mail, results, mail_refused: false, by_content, data_agreed: false }
    }

    /// Takes in the reply to a command; an error if no server may say that there.
    pub(super) fn note(&mut self, command: Command, reply: Reply) -> Result<(), Failure> {
        match (command, reply.class()) {
            (Command::Mail, ReplyClass::Positive) | (Command::Rcpt(_), ReplyClass::Positive) => {}
            (Command::Mail, ReplyClass::Transient | ReplyClass::Permanent) => {
                self.mail_refused = true;
                self.decide_rest(&RecipientResult::Replied(reply));
            }
            (Command::Rcpt(place), ReplyClass::Transient | ReplyClass::Permanent) => {
                if let Some(result) = self.results.get_mut(place) {
                    result.get_or_insert(RecipientResult::Replied(reply));
                }
            }
            (Command::Data, ReplyClass::Transient | ReplyClass::Permanent) => {
                self.decide_rest(&RecipientResult::Replied(reply));
            }
            (Command::Data, ReplyClass::Intermediate) if reply.code() == CODE_START_MAIL_INPUT => {
                self.data_agreed = true;
            }
            (_, ReplyClass::Positive | ReplyClass::Intermediate) => return Err(unexpected(&reply)),
        }
        Ok(())
    }

    pub(super) fn is_decided(&self) -> bool {
        self.results.iter().all(Option::is_some)
    }

    pub(super) fn decide_rest(&mut self, result: &RecipientResult) {
        for open in self.results.iter_mut().filter(|r| r.is_none()) {
            *open = Some(result.clone());
        }
    }

    /// The reply to the content decides for all whom the server had taken.
    pub(super) fn decide_by_content(&mut self, reply: Reply) {
        self.by_content = self.results.iter().map(Option::is_none).collect();
        self.decide_rest(&RecipientResult::Replied(reply));
    }

    pub(super) fn into_results(self) -> Vec<RecipientResult> {
        // Every way through `deliver` decides all. Should one not, the mail is tried again rather than forgotten.
        let undecided = || RecipientResult::Lost { stage: Stage::Content, why: "no reply decided".into() };
        self.results.into_iter().map(|result| result.unwrap_or_else(undecided)).collect()
    }
}
