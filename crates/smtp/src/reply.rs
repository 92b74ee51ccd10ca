//! Everything the server can say, in one table, and how much patience each refusal costs. Decides nothing.

use crate::command::CommandError;
use crate::host::{Etrn, RefusedConnection, Settings, Trouble};
use crate::line::LineError;
use crate::xclient::ATTRIBUTES;
use restante_envelope::{EnhancedStatus, PathError, Reply, TransactionId};

/// How much of the peer's own text goes back to it: a whole path (RFC 5321 section 4.5.3.1.3), and well below the
/// 512 octets of a reply line (section 4.5.3.1.5).
const ECHO_BYTES_MAX: usize = 256;

/// Something the server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Say<'p> {
    Greeting,
    TurnAway(RefusedConnection),
    Ehlo { offers_tls: bool, offers_xclient: bool },
    Helo,
    Ok,
    SenderOk,
    RecipientOk,
    StartContent,
    ChunkOk(u64),
    Etrn(Etrn),
    Stored(TransactionId),
    CannotVerify,
    Help,
    Bye,
    StartTls,

    Line(LineError),
    Command(CommandError),
    HeloFirst,
    MailFirst,
    NestedMail,
    ChunksUnderWay,
    NoTransaction,
    TlsActive,
    TlsTooLate,
    XclientDenied,
    OriginalNotAscii,
    TooManyMessages,
    BadSender(&'p str, PathError),
    SizeOverLimit,
    BadRecipient(&'p str, PathError),
    NotOurs(&'p str),
    UnknownRecipient(&'p str),
    SenderSpecifiedRoute(&'p str),
    RouteFull(&'p str),
    TooManyRecipients,
    NoRecipients,
    BareCrOrLf,
    TooLarge,
    HeaderTooLarge,
    TooManyHops,
    Trouble(Trouble),

    TalksAhead,
    TalksTooSoon,
    FarTooLarge,
    TooManyErrors,
    Timeout,
    ShuttingDown,
    Crowded,
}

/// What a refusal says about the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: it may be our trouble, or its way to learn our limits.
    None,
    /// Mail that is not wanted here.
    Mail,
    /// It does not speak SMTP well.
    Protocol,
    /// It does not speak SMTP at all, or its bytes can be read in more than one way. The connection closes.
    Fatal,
}

impl Say<'_> {
    /// The reply as it goes out.
    pub(crate) fn reply(&self, settings: &Settings) -> Reply {
        let host = &settings.hostname;
        match self {
            // These three have no enhanced code (RFC 2034 section 3).
            Self::Greeting => Reply::new(220, None, &format!("{host} ESMTP Restante")),
            Self::Helo => Reply::new(250, None, host),
            Self::Ehlo { offers_tls, offers_xclient } => ehlo(settings, *offers_tls, *offers_xclient),
            Self::Ok => say(250, 0, 0, "Ok"),
            Self::SenderOk => say(250, 1, 0, "sender Ok"),
            Self::RecipientOk => say(250, 1, 5, "recipient Ok"),
            // RFC 3463 has no class 3.
            Self::StartContent => Reply::new(354, None, "end data with <CR><LF>.<CR><LF>"),
            Self::ChunkOk(bytes) => say(250, 0, 0, &format!("{bytes} octets received")),
            Self::Etrn(Etrn::Started) => say(250, 0, 0, "delivery of what waits for this domain has begun"),
            Self::Etrn(Etrn::Nothing) => say(251, 0, 0, "no mail waits for this domain"),
            Self::Stored(id) => say(250, 0, 0, &format!("Ok: queued as {id}")),
            Self::CannotVerify => say(252, 0, 0, "cannot verify here; send the mail, and RCPT will tell"),
            Self::Help => say(
                214,
                0,
                0,
                "commands: EHLO HELO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY ETRN STARTTLS HELP; mail for this server's own domains alone",
            ),
            Self::StartTls => say(220, 0, 0, "Ready to start TLS"),
            Self::Bye => say(221, 0, 0, &format!("{host} closing connection")),

            Self::ShuttingDown | Self::Trouble(Trouble::ShuttingDown) => {
                say(421, 3, 2, &format!("{host} is shutting down, closing connection"))
            }
            Self::TurnAway(why) => self.turned_away(*why, host),
            Self::Crowded => {
                say(421, 3, 2, &format!("{host} is full, and you were silent: others come first, try again later"))
            }
            Self::TalksAhead => {
                say(421, 5, 0, &format!("{host} you sent more before the reply to DATA, closing connection"))
            }
            Self::TalksTooSoon => say(554, 5, 0, "you did not wait for our reply; this is no way to talk SMTP"),
            Self::TooManyMessages => {
                say(421, 5, 3, &format!("{host} enough messages for one session, please connect again"))
            }
            Self::FarTooLarge => {
                say(421, 7, 0, &format!("{host} message goes on far beyond the limit, closing connection"))
            }
            Self::TooManyErrors => say(421, 7, 0, &format!("{host} too many errors, closing connection")),
            Self::Timeout => say(421, 4, 2, &format!("{host} timeout, closing connection")),

            Self::Line(error) => say(500, 5, 2, &error.to_string()),
            Self::Command(error) => command_error(*error),
            Self::HeloFirst => say(503, 5, 1, "send EHLO first"),
            Self::MailFirst => say(503, 5, 1, "send MAIL first"),
            Self::NestedMail => say(503, 5, 1, "a sender is given already"),
            Self::ChunksUnderWay => say(503, 5, 1, "a message comes in by BDAT: end it by BDAT LAST, or RSET"),
            Self::NoTransaction => say(503, 5, 1, "no transaction for this BDAT; its octets were dropped"),
            Self::OriginalNotAscii => say(501, 5, 4, "ORCPT is not ASCII, and SMTPUTF8 was not asked for"),
            Self::Etrn(Etrn::NotOurs) => say(459, 7, 1, "no mail for this domain is kept here"),
            Self::Etrn(Etrn::Refused) => say(458, 3, 0, "cannot do that now, try again later"),
            Self::TlsActive => say(503, 5, 1, "TLS is active already"),
            Self::TlsTooLate => say(503, 5, 1, "STARTTLS comes before XCLIENT"),
            Self::XclientDenied => say(550, 7, 0, "XCLIENT is not for clients at your address"),
            Self::NoRecipients => say(554, 5, 1, "no valid recipients"),
            other => other.mail_refusal(),
        }
    }

    /// The replies that concern this mail, not the dialogue.
    fn mail_refusal(&self) -> Reply {
        match self {
            // RFC 6531 section 3.5 wants 550 for a sender and 553 for a recipient.
            Self::BadSender(path, PathError::NotAscii) => {
                say(550, 6, 7, &format!("<{}>: {}", shown(path), PathError::NotAscii))
            }
            Self::BadRecipient(path, PathError::NotAscii) => {
                say(553, 6, 7, &format!("<{}>: {}", shown(path), PathError::NotAscii))
            }
            Self::BadSender(path, error) => say(501, 1, 7, &format!("<{}>: {error}", shown(path))),
            Self::BadRecipient(path, PathError::TooLong) => {
                say(501, 1, 3, &format!("<{}>: {}", shown(path), PathError::TooLong))
            }
            // Not 501: that is about the command, and invites to word it anew. Every way to hide a foreign address in
            // a malformed one ends here, and the answer to those is that this recipient will never do.
            Self::BadRecipient(path, error) => say(550, 1, 3, &format!("<{}>: {error}", shown(path))),
            Self::NotOurs(path) => say(550, 7, 1, &format!("<{}>: relay access denied", shown(path))),
            Self::UnknownRecipient(path) => {
                say(550, 1, 1, &format!("<{}>: recipient address rejected: user unknown", shown(path)))
            }
            Self::SenderSpecifiedRoute(path) => {
                say(550, 7, 1, &format!("<{}>: relay access denied: routing in the local part", shown(path)))
            }
            // Not X.2.2: it is our room that is taken, not the mailbox'.
            Self::RouteFull(path) => {
                let what = "too much mail waits for this domain already, try again later";
                say(452, 3, 1, &format!("<{}>: {what}", shown(path)))
            }
            Self::TooManyRecipients => say(452, 5, 3, "too many recipients, send the rest in another transaction"),
            Self::SizeOverLimit | Self::TooLarge => say(552, 3, 4, "message is larger than the limit given in EHLO"),
            Self::BareCrOrLf => say(554, 6, 0, "message contains bare <CR> or <LF>; lines must end in <CR><LF>"),
            Self::HeaderTooLarge => say(552, 3, 4, "message header is too large"),
            Self::TooManyHops => say(554, 4, 6, "too many hops, this looks like a mail loop"),
            Self::Trouble(Trouble::Storage) => say(452, 3, 1, "insufficient storage, try again later"),
            Self::Trouble(Trouble::TooFast) => say(
                450,
                7,
                1,
                "your network sends more messages a minute than are taken from one, try again in a minute",
            ),
            Self::Trouble(Trouble::Overloaded) => say(452, 3, 1, "too much mail in flight, try again later"),
            _ => say(451, 3, 0, "local error, try again later"),
        }
    }

    fn turned_away(&self, why: RefusedConnection, host: &str) -> Reply {
        let (subject, detail, what) = match why {
            RefusedConnection::ShuttingDown => (3, 2, "is shutting down, closing connection"),
            RefusedConnection::Crowded => (3, 2, "is full, try again later"),
            RefusedConnection::TooManyConnections => (7, 0, "too many connections from your address, try again later"),
            RefusedConnection::TooManyOfNetwork => (7, 0, "too many connections from your network, try again later"),
            RefusedConnection::TooOften => {
                (7, 0, "too many connections a minute from your network, try again in a minute")
            }
        };
        say(421, subject, detail, &format!("{host} {what}"))
    }

    /// What this refusal, if it is one, says about the peer.
    pub(crate) fn fault(&self) -> Fault {
        match self {
            // Where such a peer's lines end is a guess, and what it sends next may be content that is not its own,
            // made to look like commands. It is not listened to any further.
            Self::Line(LineError::BareLf | LineError::BareCr | LineError::Endless)
            | Self::Command(CommandError::Http | CommandError::BdatSyntax)
            | Self::TalksTooSoon
            | Self::TooManyMessages => Fault::Fatal,
            Self::Line(LineError::TooLong { verb: [b'B', b'D', b'A', b'T'] }) => Fault::Fatal,
            Self::Command(CommandError::AddressNotText) => Fault::Mail,
            Self::Line(LineError::TooLong { .. }) | Self::Command(_) => Fault::Protocol,
            Self::HeloFirst | Self::MailFirst | Self::NestedMail | Self::ChunksUnderWay | Self::TlsActive => {
                Fault::Protocol
            }
            Self::TlsTooLate | Self::XclientDenied => Fault::Protocol,
            Self::TooManyRecipients | Self::RouteFull(_) => Fault::None,
            Self::Trouble(Trouble::ShuttingDown) => Fault::Fatal,
            Self::Trouble(_) => Fault::None,
            _ => Fault::Mail,
        }
    }
}

fn command_error(error: CommandError) -> Reply {
    let text = error.to_string();
    match error {
        CommandError::Unknown => say(500, 5, 1, &text),
        CommandError::NotImplemented => say(502, 5, 1, &text),
        CommandError::Http => say(554, 5, 1, &text),
        CommandError::NotText => say(500, 5, 2, &text),
        CommandError::AddressNotText => say(553, 6, 7, &text),
        CommandError::ParameterUnknown => say(555, 5, 4, &text),
        CommandError::HeloSyntax
        | CommandError::NeedlessArgument
        | CommandError::NoArgument
        | CommandError::MailSyntax
        | CommandError::RcptSyntax
        | CommandError::BdatSyntax
        | CommandError::EtrnSyntax
        | CommandError::XclientSyntax
        | CommandError::ParameterTwice
        | CommandError::Dsn(_)
        | CommandError::ParameterSyntax => say(501, 5, 4, &text),
    }
}

/// A reply whose enhanced class is the code's first digit, as RFC 2034 section 4 demands.
fn say(code: u16, subject: u16, detail: u16, text: &str) -> Reply {
    let class = match code {
        200..300 => 2,
        400..500 => 4,
        _ => 5,
    };
    Reply::new(code, Some(EnhancedStatus::new(class, subject, detail)), text)
}

/// The beginning of a peer's text. Without what is not ASCII: who did not ask for SMTPUTF8 cannot read it, and who did knows what
/// the answer is to.
fn shown(text: &str) -> String {
    text.chars().take(ECHO_BYTES_MAX).map(|c| if c.is_ascii() { c } else { '?' }).collect()
}

fn ehlo(settings: &Settings, offers_tls: bool, offers_xclient: bool) -> Reply {
    let (host, size) = (&settings.hostname, settings.max_message_bytes);
    let limits = format!("LIMITS MAILMAX={} RCPTMAX={}", settings.max_messages, settings.max_recipients);
    let size = format!("SIZE {size}");
    let xclient = format!("XCLIENT {ATTRIBUTES}");
    let mut lines = vec![host.as_str(), "PIPELINING", &size, "8BITMIME", "SMTPUTF8", "CHUNKING", "DSN"];
    lines.extend(offers_tls.then_some("STARTTLS"));
    lines.extend(offers_xclient.then_some(&*xclient));
    lines.extend(["ENHANCEDSTATUSCODES", "ETRN", &limits, "VRFY", "HELP"]);
    Reply::new(250, None, &lines.join("\n"))
}
