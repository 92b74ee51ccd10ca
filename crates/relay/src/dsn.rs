//! Delivery status notifications (RFC 3461 to 3464, 6522, 6533): whether one is owed, and its bytes. Answers no message without
//! a sender and no report, sends nothing, and lets nothing that a peer said become a line of its own.

mod parts;
#[cfg(test)]
mod tests;

use mail_builder::MessageBuilder;
use mail_builder::headers::address::Address;
use mail_builder::headers::content_type::ContentType;
use mail_builder::headers::message_id::MessageId;
use mail_builder::headers::raw::Raw;
use mail_builder::mime::{BodyPart, MimePart};
use parts::Original;
use restante_envelope::{
    BodyType, Envelope, ForwardPath, Notify, Recipient, RecipientDsn, Reply, Ret, ReversePath, RouteName, Timestamp,
    TransactionId,
};
use restante_ledger::{Cause, RecipientIndex};

/// Of the original's header at most this many bytes are looked at and returned. Headers of real mail are below 20 KiB, and Postfix
/// takes 100 KiB (`header_size_limit`) of them; a report needs what tells its reader which message it was.
pub const HEADER_BYTES_MAX: usize = 65_536;
/// Content longer than this does not come back, whatever RET says: RFC 3461 section 6.2 lets us, and who forges a sender must not
/// have large attachments brought to it. Postfix returns 50,000 bytes (`bounce_size_limit`); a letter with a picture fits here.
pub const CONTENT_BYTES_MAX: usize = 262_144;
/// One notification tells of at most this many recipients: each takes 500 bytes, or 6 KiB with the longest addresses and replies.
/// A caller with more hands them over in several, `reports.chunks(RECIPIENTS_MAX)`: those beyond are left out.
pub const RECIPIENTS_MAX: usize = 1_000;

/// What happened to a message for some of its recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It was refused, or given up by an operator: `Action: failed`.
    Failed,
    /// It was tried for as long as we try: `Action: failed`, too, as RFC 3464 section 2.3.3 has no other word.
    ///
    /// Its status is the one the last reply gave, and 4.4.7 if it gave none. RFC 3463 section 3.5 wants "the code for the actual
    /// problem" instead of X.4.7 where there is one. The class is 4, not 5: section 2 keeps 5 for what would fail again if it were
    /// sent again, and says of 4 that in a failure report it means that a later message may arrive.
    Expired,
    /// Not delivered so far: `Action: delayed`.
    Delayed {
        /// It is tried until then.
        until: Timestamp,
    },
    /// Handed to a server that does not report in turn: `Action: relayed`.
    Relayed,
}

impl Kind {
    /// The value of the field Action.
    fn action(self) -> &'static str {
        match self {
            Self::Failed | Self::Expired => "failed",
            Self::Delayed { .. } => "delayed",
            Self::Relayed => "relayed",
        }
    }

    /// Part of the Message-ID: different for each kind, even where the action is the same.
    fn word(self) -> &'static str {
        if self == Self::Expired { "expired" } else { self.action() }
    }

    fn is_final_failure(self) -> bool {
        matches!(self, Self::Failed | Self::Expired)
    }
}

/// What is known of why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastWord<'a> {
    /// The other server said so.
    Reply(&'a Reply),
    /// We found so: a connection that failed, an operator's reason. Any text.
    Own(&'a str),
    /// Nothing was heard, and nothing is to be said.
    None,
}

impl<'a> From<&'a Cause> for LastWord<'a> {
    fn from(cause: &'a Cause) -> Self {
        match cause {
            Cause::Reply(reply) | Cause::Content(reply) => Self::Reply(reply),
            Cause::Connection(text) | Cause::InDoubt(text) | Cause::Local(text) => Self::Own(text),
        }
    }
}

/// One recipient to be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report<'a> {
    /// Its place in the envelope; a place that is none is passed over.
    pub recipient: RecipientIndex,
    /// Why.
    pub last_word: LastWord<'a>,
    /// The server that was asked last, as configured or an address; none if none was reached.
    pub remote: Option<&'a str>,
    /// When it was tried last; none if never.
    pub last_attempt: Option<Timestamp>,
    /// The server that took it offers DSN itself, so that reports of success are its business (RFC 3461 section 5.2.1).
    pub next_hop_has_dsn: bool,
}

/// What a notification is made of. Two that are equal make the same bytes.
#[derive(Debug, Clone)]
pub struct Notice<'a> {
    /// What happened.
    pub kind: Kind,
    /// Our name, as in the greeting.
    pub hostname: &'a str,
    /// The original message.
    pub id: TransactionId,
    /// When we took it.
    pub accepted_at: Timestamp,
    /// The date of the notification.
    pub now: Timestamp,
    /// Of the original.
    pub envelope: &'a Envelope,
    /// To whom it happened; those to whom none is owed are left out, as are those beyond [`RECIPIENTS_MAX`].
    pub reports: &'a [Report<'a>],
    /// The original's first bytes, at least its header, if it is not longer than [`HEADER_BYTES_MAX`]; no more than that is read.
    pub head: &'a [u8],
    /// All of the original, where [`returns_content`] says so; otherwise it is not looked at.
    pub content: Option<&'a [u8]>,
    /// The way the notification leaves.
    pub route: RouteName,
}

/// A notification, to be accepted into the journal like any message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dsn {
    /// From `<>` to the original's sender, NOTIFY=NEVER, without RET (RFC 3461 section 6.1).
    pub envelope: Envelope,
    /// RFC 5322, with CRLF, no line over 998 octets. ASCII, unless `envelope.body` says otherwise.
    pub content: Vec<u8>,
}

/// Whether the sender is to hear that `kind` happened to `recipient` of `envelope`. `next_hop_has_dsn` matters for
/// [`Kind::Relayed`] alone.
///
/// Never if there is no sender, which is so for every report (RFC 5321 section 4.5.5), and never where NOTIFY=NEVER. Without
/// NOTIFY only failures are told. RFC 3461 section 4.1 leaves us to read its absence as FAILURE or as FAILURE,DELAY: a backup MX
/// delays mail by the thousand when its primary is down, much of it with forged senders, and who wants to know has DELAY to ask.
pub fn owed(kind: Kind, envelope: &Envelope, recipient: &Recipient, next_hop_has_dsn: bool) -> bool {
    if envelope.reverse_path.is_null() {
        return false;
    }
    let (success, failure, delay) = match recipient.dsn.notify {
        None => (false, true, false),
        Some(Notify::Never) => return false,
        Some(Notify::On { success, failure, delay }) => (success, failure, delay),
    };
    match kind {
        Kind::Failed | Kind::Expired => failure,
        Kind::Delayed { .. } => delay,
        // RFC 3461 section 5.2.2: who asked for success hears at least where the trace ends.
        Kind::Relayed => success && !next_hop_has_dsn,
    }
}

/// Whether a notification returns all of a content of `content_bytes`: RET=FULL was given, it failed, and it is not too long. Without
/// RET the header comes back (RFC 3461 section 4.3 leaves it to us): who needs more asks for more.
pub fn returns_content(kind: Kind, envelope: &Envelope, content_bytes: usize) -> bool {
    kind.is_final_failure() && envelope.dsn.ret == Some(Ret::Full) && content_bytes <= CONTENT_BYTES_MAX
}

/// The notification, or none if it is owed for no recipient, or if the original is itself a report by its Content-Type: a report
/// must have no sender, but some have, and two servers that report to one another never end.
pub fn compose(notice: &Notice<'_>) -> Option<Dsn> {
    let told: Vec<(&Recipient, &Report<'_>)> = notice
        .reports
        .iter()
        .filter_map(|report| Some((notice.envelope.recipients.get(usize::from(report.recipient))?, report)))
        .filter(|(recipient, report)| owed(notice.kind, notice.envelope, recipient, report.next_hop_has_dsn))
        .take(RECIPIENTS_MAX)
        .collect();
    let first = told.first()?.1.recipient;
    if parts::is_report(head(notice)) {
        return None;
    }
    let sender = notice.envelope.reverse_path.as_str();
    let forward_path = ForwardPath::parse_utf8(sender).ok()?;
    // Who has an address in UTF-8 can be reached by SMTPUTF8 alone, so may be told in UTF-8. All others are told in ASCII.
    let utf8 = !sender.is_ascii();
    let original = original(notice);
    let text = parts::for_people(notice, &told, original.is_whole, utf8);
    let fields = parts::for_machines(notice, &told, utf8);
    let content = assemble(notice, first, utf8, &text, &fields, &original);
    let body = if content.is_ascii() { BodyType::SevenBit } else { BodyType::EightBitMime };
    let dsn = RecipientDsn { notify: Some(Notify::Never), original: None };
    let recipient = Recipient { forward_path, route: notice.route.clone(), dsn };
    Some(Dsn {
        envelope: Envelope { smtputf8: utf8, ..Envelope::new(ReversePath::null(), vec![recipient], body) },
        content,
    })
}

fn head<'a>(notice: &Notice<'a>) -> &'a [u8] {
    notice.head.get(..HEADER_BYTES_MAX).unwrap_or(notice.head)
}

/// What comes back of the original. Content that is no message cannot stand inside one, which may not encode it (RFC 2046 section
/// 5.2.1): then its header comes back.
fn original(notice: &Notice<'_>) -> Original {
    let whole = notice.content.filter(|content| returns_content(notice.kind, notice.envelope, content.len()));
    let utf8 = notice.envelope.smtputf8;
    whole
        .filter(|content| parts::is_message(content))
        .map_or_else(|| Original::header(head(notice), utf8), |content| Original::whole(content, utf8))
}

/// The message itself. Date, Message-ID and boundary are given: the builder would take them from the clock and from chance.
fn assemble(
    notice: &Notice<'_>,
    first: RecipientIndex,
    utf8: bool,
    text: &str,
    fields: &str,
    original: &Original,
) -> Vec<u8> {
    let host = crate::trace::name(notice.hostname);
    let (status_type, charset) = match utf8 {
        true => ("message/global-delivery-status", "utf-8"),
        false => ("message/delivery-status", "us-ascii"),
    };
    let report = ContentType::new("multipart/report")
        .attribute("report-type", "delivery-status")
        .attribute("boundary", boundary(notice.id, &[text.as_bytes(), fields.as_bytes(), &original.bytes]));
    let parts = vec![
        part(ContentType::new("text/plain").attribute("charset", charset), text.as_bytes()),
        part(ContentType::new(status_type), fields.as_bytes()),
        part(ContentType::new(original.content_type), &original.bytes),
    ];
    let mut content = Vec::new();
    MessageBuilder::new()
        .from(Address::new_address(Some("Mail Delivery System"), format!("MAILER-DAEMON@{host}")))
        .to(Address::new_address(None::<&str>, notice.envelope.reverse_path.as_str()))
        .header("Subject", Raw::new(parts::subject(notice.kind)))
        .header("Date", Raw::new(notice.now.to_rfc5322()))
        // A recipient fails once, but those of one message may fail on different days: their reports must not look like one.
        .header("Message-ID", MessageId::new(format!("{}.{}.{first}@{host}", notice.id, notice.kind.word())))
        // RFC 3834 section 5.
        .header("Auto-Submitted", Raw::new("auto-replied"))
        .header("MIME-Version", Raw::new("1.0"))
        .body(MimePart::new(report, BodyPart::Multipart(parts)))
        .serialize(&mut content);
    content
}

/// As bytes and with its encoding named, so that the builder neither encodes it nor adds a charset.
fn part<'a>(content_type: ContentType<'a>, bytes: &'a [u8]) -> MimePart<'a> {
    let encoding = if bytes.is_ascii() { "7bit" } else { "8bit" };
    MimePart::new(content_type, BodyPart::Binary(bytes.into())).transfer_encoding(encoding)
}

/// A boundary that is in none of the parts. Who wrote them did not know the id, so the first will do unless this server's own report
/// comes back inside; each one that is there takes its own bytes, so the search ends.
fn boundary(id: TransactionId, parts: &[&[u8]]) -> String {
    let is_free = |boundary: &String| {
        let inside = |part: &&[u8]| part.windows(boundary.len()).any(|bytes| bytes == boundary.as_bytes());
        !parts.iter().any(inside)
    };
    // `=_` is in no text in quoted-printable or base64 (RFC 2045 section 6.7).
    let nth = |number: u32| format!("=_{id}.{number}_=");
    (0..=u32::MAX).map(nth).find(is_free).unwrap_or_else(|| nth(0))
}
