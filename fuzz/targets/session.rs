//! Any bytes, cut anywhere, against the SMTP session: what it says is replies, each message is taken at most once, and it
//! holds no more than a line and an envelope. Some of them also against the model that the session's own tests have.
#![no_main]

#[path = "../../crates/smtp/tests/session/host.rs"]
mod host;
#[path = "../../crates/smtp/tests/session/model.rs"]
mod model;
#[path = "../../crates/smtp/tests/session/played.rs"]
mod played;
#[path = "../../crates/smtp/tests/session/spoken.rs"]
mod spoken;

use libfuzzer_sys::fuzz_target;
use restante_envelope::{Envelope, ForwardPath, RouteName, Trace, TransactionId};
use restante_fuzz::{self as fuzz, Choices};
use restante_smtp::{Admission, EndOfData, Host, RefusedCommand, Resolution, Session, Settings, Trouble};
use std::sync::Arc;
use std::time::Duration;

const RECIPIENTS_MAX: usize = 5;
const MESSAGE_BYTES_MAX: u64 = 2_000;
/// All that a session may hold between two calls, as `Debug` shows it: five characters for a byte of an unfinished line of
/// 2,048 bytes, and an envelope of five recipients with the longest paths and ORCPTs.
const HELD_CHARS_MAX: usize = 5 * 2_048 + 12 * 1_024;
/// With so many bytes of replies it says no more before they are taken.
const OUTPUT_BYTES_MAX: usize = 32 << 10;
/// The shortest lines that are answered at all have two octets, and the longest answers are some hundred.
const OUTPUT_PER_INPUT: usize = 128;

#[derive(Default)]
struct Mailbox {
    open: bool,
    content: Vec<u8>,
    ends: u32,
    fail: Option<Trouble>,
}

impl Host for Mailbox {
    fn admit(&mut self, path: &ForwardPath) -> Admission {
        match path.domain() {
            Some("o.test") | None => Admission::Accept(RouteName::new("o.test")),
            Some("u.test") => Admission::UnknownRecipient,
            Some(_) if path.has_sender_specified_route() => Admission::SenderSpecifiedRoute,
            Some(_) => Admission::NotOurs,
        }
    }
    fn begin(&mut self, envelope: &Envelope, _: &Trace, declared_bytes: u64) -> Result<(), Trouble> {
        assert!(!self.open, "begin within a content");
        assert!((1..=RECIPIENTS_MAX).contains(&envelope.recipients.len()));
        assert!(declared_bytes <= MESSAGE_BYTES_MAX);
        assert!(
            envelope.recipients.iter().all(|r| matches!(r.forward_path.domain(), Some("o.test") | None)),
            "a relay"
        );
        if let Some(trouble) = self.fail.take() {
            return Err(trouble);
        }
        self.open = true;
        self.content.clear();
        Ok(())
    }
    fn chunk(&mut self, content: &[u8]) -> Result<(), Trouble> {
        assert!(self.open && !content.is_empty());
        self.content.extend_from_slice(content);
        assert!(self.content.len() as u64 <= MESSAGE_BYTES_MAX);
        self.fail.take().map_or(Ok(()), Err)
    }
    fn end(&mut self, _: EndOfData) {
        assert!(std::mem::take(&mut self.open), "end outside of a content");
        self.ends += 1;
        assert!(self.content.is_empty() || self.content.ends_with(b"\r\n"));
        let is_line = |line: &[u8]| line.ends_with(b"\r\n") && !line[..line.len() - 2].contains(&b'\r');
        assert!(self.content.split_inclusive(|b| *b == b'\n').all(is_line), "a bare CR or LF got through");
    }
    fn abort(&mut self) {
        assert!(std::mem::take(&mut self.open), "abort outside of a content");
    }
    fn refused(&mut self, refusal: &RefusedCommand) {
        assert!(refusal.reply.code() >= 400);
    }
}

/// RFC 5321 section 4.2: what was said is whole replies of lines that fit. Returns how many messages were taken.
fn taken(output: &[u8]) -> u32 {
    let mut taken = 0;
    let (mut rest, mut is_within) = (output, None);
    while !rest.is_empty() {
        let end = rest.windows(2).position(|w| w == b"\r\n").expect("a line that does not end");
        let (line, next) = (&rest[..end], &rest[end + 2..]);
        assert!(line.len() <= 510 && line.len() >= 4, "{}", line.escape_ascii());
        assert!(line.iter().all(|b| (b' '..=b'~').contains(b)), "{}", line.escape_ascii());
        let code = &line[..3];
        assert!((b'2'..=b'5').contains(&code[0]) && code.iter().all(u8::is_ascii_digit));
        assert!(matches!(line[3], b' ' | b'-') && is_within.is_none_or(|of| of == code), "{}", line.escape_ascii());
        is_within = (line[3] == b'-').then_some(code);
        taken += u32::from(code == b"250" && line.windows(11).any(|w| w == b" queued as "));
        rest = next;
    }
    assert_eq!(is_within, None, "a reply without its last line");
    taken
}

/// What the session says is what the model says. Limits are small: beyond 1,024 bytes of one header the model knows less.
fn compare(mut choices: Choices<'_>) {
    let (how, limits) = (choices.byte(), choices.byte());
    let flag = |bit: u8| how & 1 << bit != 0;
    let rules = model::Rules {
        max_message_bytes: [10, 40, 200, 1_000][usize::from(limits & 3)],
        max_recipients: 1 + usize::from(limits >> 2 & 1),
        max_messages: [1, 4, 100, 100][usize::from(limits >> 3 & 3)],
        max_header_bytes: [10, 30, 1_000, 1_000][usize::from(limits >> 5 & 3)],
        is_strict: flag(0),
        starttls: flag(1),
        xclient: flag(2),
        begins: vec![!flag(3), !flag(4)],
        commits: vec![!flag(5), !flag(6)],
    };
    let (mut input, mut ends) = (Vec::new(), std::collections::BTreeSet::new());
    while !choices.is_empty() {
        let length = usize::from(choices.byte()) + 1;
        input.extend_from_slice(choices.bytes(length));
        ends.insert(input.len());
    }
    let real = played::play(&rules, &input, &ends);
    assert_eq!(real, model::talk(&rules, &input, ends), "{}", input.escape_ascii());
}

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    if input.first().is_some_and(|how| how & 4 != 0) {
        choices.byte();
        return compare(choices);
    }
    let mut settings = Settings::new("mx2.test".to_owned(), MESSAGE_BYTES_MAX);
    settings.max_recipients = RECIPIENTS_MAX;
    let how = choices.byte();
    settings.starttls = how & 1 != 0;
    let (mut now, mut host) = (fuzz::now(), Mailbox::default());
    let mut session = Session::new(Arc::new(settings), "192.0.2.7:4321".parse().expect("an address"), 7, now);
    if how & 2 != 0 {
        session.allow_xclient();
    }
    let (mut stored, mut said, mut heard) = (0, 0, 0);
    while !choices.is_empty() {
        let how = choices.byte();
        match how {
            0..=0xef => {
                let piece = choices.bytes(usize::from(how) + 1);
                let mut fed = 0;
                while fed < piece.len() {
                    if session.output().len() >= OUTPUT_BYTES_MAX {
                        heard += taken(session.output());
                        said += session.output().len();
                        session.output().clear();
                    }
                    let before = session.output().len();
                    let consumed = session.receive(&piece[fed..], now, &mut host);
                    let more = session.output().len() - before;
                    assert!(more <= OUTPUT_PER_INPUT * consumed + 512, "{more} bytes for {consumed}");
                    assert!(session.output().len() <= OUTPUT_BYTES_MAX + 1024);
                    fed += consumed;
                    if fed < piece.len() && session.output().len() < OUTPUT_BYTES_MAX {
                        assert!(session.awaits_commit(), "stopped for no reason");
                        assert_eq!(session.receive(b"NOOP\r\n", now, &mut host), 0);
                        session.resolve(Resolution::Stored(TransactionId::from_bits(u128::from(host.ends))), now);
                        stored += 1;
                    }
                }
            }
            0xf0..=0xf3 if session.awaits_commit() => {
                let troubles = [Trouble::Storage, Trouble::Local, Trouble::Overloaded, Trouble::ShuttingDown];
                session.resolve(Resolution::Failed(troubles[usize::from(how & 3)]), now);
            }
            0xf0..=0xf3 => host.fail = Some(Trouble::Local),
            0xf4 | 0xf5 => {
                stored += u32::from(session.awaits_commit());
                session.resolve(Resolution::Stored(TransactionId::from_bits(u128::from(host.ends))), now);
            }
            0xf6 | 0xf7 => session.tls_started("TLSv1.3 TLS_AES_256_GCM_SHA384".to_owned(), now),
            0xf8 => session.tls_failed(),
            0xf9..=0xfc => {
                now = now + Duration::from_secs(u64::from(how - 0xf8) * 100);
                session.handle_timeout(now, &mut host);
            }
            0xfd => session.shut_down(&mut host),
            _ => {
                heard += taken(session.output());
                said += session.output().len();
                session.output().clear();
            }
        }
        assert!(stored <= host.ends, "more was stored than ended");
    }
    assert_eq!(heard + taken(session.output()), stored, "each message that was stored is told once, and no other");
    assert_eq!(session.counts().accepted, stored);
    session.output().clear();
    let held = format!("{session:?}").len();
    assert!(held <= HELD_CHARS_MAX, "holds {held} after {} bytes, said {said}", input.len());
    session.disconnected(&mut host);
    assert!(!host.open, "a content was left open");
});
