//! Postfix's queue files: records of a type, a length in groups of seven bits, and so many bytes.
//!
//! Three parts: the envelope up to `M`, the content up to `X`, what was extracted from it up to `E`. Content filters that edit
//! leave pointers (`p`) behind, which lead to bytes elsewhere in the file and back. Reads what is in a queue; what is in
//! `maildrop` Postfix itself has not accepted yet.

use super::{Letter, Listing, Unreadable, push_once, walk};
use anyhow::bail;
use restante_envelope::{DsnRequest, EnvelopeId, Notify, OriginalRecipient, RecipientDsn, Ret};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// A queue file that is complete has this; Postfix sets it with the last write.
const COMPLETE: u32 = 0o700;
/// Of a length: five groups are more than a file has.
const LENGTH_BYTES_MAX: usize = 5;
const ON_HOLD: &str = "it was on hold in the Postfix queue that it was imported from";

pub(super) fn list(path: &Path) -> anyhow::Result<Listing> {
    if !["incoming", "active", "deferred"].iter().all(|queue| path.join(queue).is_dir()) {
        bail!(
            "{} is no queue directory of Postfix: there are incoming, active and deferred in one (`postconf queue_directory`)",
            path.display()
        );
    }
    let mut listing = Listing::default();
    for (queue, hold) in [("incoming", None), ("active", None), ("deferred", None), ("hold", Some(ON_HOLD))] {
        let mut seen = Vec::new();
        walk(&path.join(queue), 0, &mut seen)?;
        for mut file in listing.plain(seen) {
            file.item.hold = hold;
            if file.mode & 0o777 == COMPLETE {
                listing.items.push(file.item);
            } else {
                let why = "its sender has no 250 for it: it is incomplete (its mode is not 0700)";
                listing.left.push((file.item.path, why));
            }
        }
    }
    let others = [
        ("maildrop", "Postfix has not picked it up yet: start Postfix once, or submit it again"),
        ("corrupt", "Postfix itself set it aside as corrupt"),
    ];
    for (queue, why) in others {
        let mut seen = Vec::new();
        walk(&path.join(queue), 0, &mut seen)?;
        listing.left.extend(seen.into_iter().map(|file| (file.item.path, why)));
    }
    Ok(listing)
}

/// The records, in the order in which Postfix would read them.
struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Of all records so far, as often as they were read.
    read_bytes: usize,
}

impl<'a> Records<'a> {
    fn malformed<T>(&self, what: &'static str) -> Result<T, Unreadable> {
        Err(Unreadable::Malformed { at: self.at, what })
    }

    fn next(&mut self) -> Result<(u8, &'a [u8]), Unreadable> {
        let mut rest = self.bytes.get(self.at..).unwrap_or_default().iter();
        let Some(kind) = rest.next() else {
            return self.malformed("the file ends before its end record: it is cut short");
        };
        let (mut len, mut is_whole) = (0_usize, false);
        for (group, byte) in rest.by_ref().take(LENGTH_BYTES_MAX).enumerate() {
            len |= usize::from(byte & 0x7f) << (7 * group);
            is_whole = byte & 0x80 == 0;
            if is_whole {
                break;
            }
        }
        match rest.as_slice().get(..len).filter(|_| is_whole) {
            None => self.malformed("a record is longer than the file: that is no queue file, or it is cut short"),
            Some(data) => {
                let end = self.bytes.len() - rest.as_slice().len() + len;
                self.read_bytes += end - self.at;
                // Pointers lead there and back, but never to the same place again.
                if self.read_bytes > self.bytes.len() {
                    return self.malformed("its pointers lead in a circle");
                }
                self.at = end;
                Ok((*kind, data))
            }
        }
    }

    fn jump(&mut self, data: &[u8]) -> Result<(), Unreadable> {
        let to = std::str::from_utf8(data).ok().and_then(|text| text.trim().parse::<usize>().ok());
        match to {
            // Room for a pointer that was never needed.
            Some(0) => Ok(()),
            Some(to) if to < self.bytes.len() => {
                self.at = to;
                Ok(())
            }
            _ => self.malformed("a pointer leads out of the file"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Envelope,
    Content,
    Extracted,
}

/// What the file says.
pub(crate) fn parse(bytes: &[u8]) -> Result<Letter, Unreadable> {
    let mut records = Records { bytes, at: 0, read_bytes: 0 };
    if bytes.first() != Some(&b'C') {
        return records.malformed("it does not begin with a size record: that is no queue file of Postfix");
    }
    let (mut letter, mut envelope, mut part) = (Letter::default(), Envelope::default(), Part::Envelope);
    let mut is_line_open = false;
    loop {
        let (kind, data) = records.next()?;
        match (part, kind) {
            (_, b'p') => records.jump(data)?,
            (Part::Envelope, b'M') => part = Part::Content,
            (Part::Content, b'X') => part = Part::Extracted,
            (Part::Extracted, b'E') => break,
            (Part::Content, b'N' | b'L') => {
                letter.content.extend_from_slice(data);
                is_line_open = kind == b'L';
                if !is_line_open {
                    letter.content.extend_from_slice(b"\r\n");
                }
            }
            // Text that a filter deleted.
            (Part::Content, b'w') => {}
            (Part::Content, _) => return records.malformed("a record among the content is none of content"),
            (Part::Envelope | Part::Extracted, b'M' | b'X' | b'E') => {
                return records.malformed("its parts are not in order");
            }
            (Part::Envelope | Part::Extracted, _) => envelope.record(kind, data, &records)?,
        }
    }
    if is_line_open {
        letter.content.extend_from_slice(b"\r\n");
    }
    envelope.finish(letter, &records)
}

#[derive(Default)]
struct Envelope {
    sender: Option<String>,
    arrived: String,
    recipients: Vec<String>,
    known: HashSet<String>,
    asked: HashMap<String, RecipientDsn>,
    /// Stands in front of the recipient it is about.
    next: RecipientDsn,
    dsn: DsnRequest,
    smtputf8: bool,
    delivered: usize,
    /// To whom all of it goes instead.
    redirected: Option<String>,
    is_killed: bool,
}

impl Envelope {
    fn record(&mut self, kind: u8, data: &[u8], records: &Records<'_>) -> Result<(), Unreadable> {
        let text = |what| match std::str::from_utf8(data) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(Unreadable::NoText { at: records.at, what, shown: data.escape_ascii().to_string() }),
        };
        match kind {
            b'S' => self.sender = Some(quoted(text("sender")?)),
            b'T' => self.arrived = text("time of arrival")?.trim().to_owned(),
            b'R' => {
                let (recipient, asked) = (quoted(text("recipient")?), std::mem::take(&mut self.next));
                if asked != RecipientDsn::default() {
                    self.asked.entry(recipient.clone()).or_insert(asked);
                }
                push_once(&mut self.recipients, &mut self.known, recipient);
            }
            b'D' => {
                self.next = RecipientDsn::default();
                self.delivered += 1;
            }
            b'>' => self.redirected = Some(quoted(text("address that it is redirected to")?)),
            // The sixth number: what was found that needs SMTPUTF8, or that the sender gave it.
            b'C' => {
                let number = data.split(|b| *b == b' ').filter(|word| !word.is_empty()).nth(5);
                self.smtputf8 = number.is_some_and(|number| number != b"0");
            }
            b'A' => self.attribute(data)?,
            b'K' => self.is_killed = true,
            // Original recipients, options: of use to Postfix alone.
            _ => {}
        }
        Ok(())
    }

    /// Decoded there, so that they are encoded here.
    fn attribute(&mut self, data: &[u8]) -> Result<(), Unreadable> {
        let data = String::from_utf8_lossy(data);
        let Some((name, value)) = data.split_once('=') else { return Ok(()) };
        let malformed = |what| Unreadable::Dsn { what, shown: value.escape_debug().to_string() };
        match name {
            "envelope_id" => {
                let id = EnvelopeId::from_text(value).map_err(|_| malformed("envelope_id"))?;
                self.dsn.envid = Some(id);
            }
            "ret_flags" => {
                self.dsn.ret = match value {
                    "0" => None,
                    "1" => Some(Ret::Full),
                    "2" => Some(Ret::Headers),
                    _ => return Err(malformed("ret_flags")),
                }
            }
            "notify_flags" => {
                self.next.notify = match value.parse::<u8>() {
                    Ok(0) => None,
                    Ok(bits) => Some(Notify::from_bits(bits).ok_or_else(|| malformed("notify_flags"))?),
                    Err(_) => return Err(malformed("notify_flags")),
                }
            }
            // Postfix makes one of each recipient, and without a check: one that cannot be said costs no mail.
            "dsn_orig_rcpt" => self.next.original = OriginalRecipient::from_text(value).ok(),
            _ => {}
        }
        Ok(())
    }

    fn finish(mut self, letter: Letter, records: &Records<'_>) -> Result<Letter, Unreadable> {
        let Some(reverse_path) = self.sender else {
            return records.malformed("it has no sender record");
        };
        if let Some(instead) = self.redirected.filter(|_| !self.recipients.is_empty()) {
            self.recipients = vec![instead];
            self.asked.clear();
        }
        if self.is_killed {
            self.delivered += std::mem::take(&mut self.recipients).len();
        }
        let Self { arrived, recipients, asked, dsn, smtputf8, delivered, .. } = self;
        Ok(Letter { reverse_path, recipients, asked, dsn, smtputf8, delivered, arrived, ..letter })
    }
}

/// An address as a command has it. Postfix keeps local parts without their quotes: `a b@example.test`.
fn quoted(address: String) -> String {
    let Some((local, domain)) = address.rsplit_once('@') else { return address };
    let is_atext = |c: char| c.is_ascii_alphanumeric() || !c.is_ascii() || "!#$%&'*+-/=?^_`{|}~".contains(c);
    if local.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atext)) {
        return address;
    }
    let escaped = local.chars().fold(String::new(), |text, c| match c {
        '"' | '\\' => format!("{text}\\{c}"),
        c => format!("{text}{c}"),
    });
    format!("\"{escaped}\"@{domain}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: u8, data: &[u8], out: &mut Vec<u8>) {
        out.push(kind);
        let mut len = data.len();
        while len > 0x7f {
            out.push(u8::try_from(len & 0x7f).unwrap() | 0x80);
            len >>= 7;
        }
        out.push(u8::try_from(len).unwrap());
        out.extend_from_slice(data);
    }

    fn file(records: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        records.iter().for_each(|(kind, data)| record(*kind, data, &mut out));
        out
    }

    const SIZE: (u8, &[u8]) =
        (b'C', b"            600             600               1               0             600");

    #[test]
    fn who_has_it_already_does_not_get_it_again() {
        let bytes = file(&[
            SIZE,
            (b'T', b"1795425834 914788"),
            (b'A', b"client_address=192.0.2.7"),
            (b'S', b""),
            (b'D', b"had@example.test"),
            (b'O', b"alias@example.test"),
            (b'R', b"box@example.test"),
            (b'R', b"box@example.test"),
            (b'M', b""),
            (b'N', b"Subject: x"),
            (b'N', b""),
            (b'L', &[b'y'; 300]),
            (b'w', b"deleted"),
            (b'L', b"z"),
            (b'X', b""),
            (b'R', b"extracted@example.test"),
            (b'E', b""),
        ]);
        let letter = parse(&bytes).unwrap();
        assert_eq!(letter.recipients, ["box@example.test", "extracted@example.test"]);
        assert_eq!((letter.delivered, &*letter.reverse_path, &*letter.arrived), (1, "", "1795425834 914788"));
        let body = [b"Subject: x\r\n\r\n".as_slice(), &[b'y'; 300], b"z\r\n"].concat();
        assert_eq!(letter.content, body);
        for len in 0..bytes.len() {
            assert!(parse(&bytes[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn what_the_sender_wants_to_hear_is_read_and_stays_with_its_recipient() {
        let bytes = file(&[
            (b'C', b"            300             944               4              22             300               5"),
            (b'A', b"envelope_id=q+1 z"),
            (b'A', b"ret_flags=2"),
            (b'S', b"a b@example.net"),
            (b'A', b"notify_flags=10"),
            (b'A', b"dsn_orig_rcpt=rfc822;q+r=s@x"),
            (b'D', b"had@example.test"),
            (b'R', b"none@example.test"),
            (b'A', b"notify_flags=1"),
            (b'A', b"dsn_orig_rcpt=rfc822;\"x\\\"y\"@example.test"),
            (b'R', b"x\"y@example.test"),
            (b'M', b""),
            (b'X', b""),
            (b'E', b""),
        ]);
        let letter = parse(&bytes).unwrap();
        assert!(letter.smtputf8 && letter.dsn.ret == Some(Ret::Headers));
        assert_eq!((letter.dsn.envid.unwrap().as_str(), &*letter.reverse_path), ("q+2B1+20z", "\"a b\"@example.net"));
        assert_eq!(letter.recipients, ["none@example.test", "\"x\\\"y\"@example.test"]);
        assert_eq!(letter.asked.len(), 1);
        let asked = &letter.asked["\"x\\\"y\"@example.test"];
        assert_eq!(asked.notify, Some(Notify::Never));
        assert_eq!(asked.original.as_ref().unwrap().as_str(), "rfc822;\"x\\\"y\"@example.test");
    }

    #[test]
    fn what_cannot_be_said_to_another_server_is_named() {
        let of = |more: (u8, &[u8])| {
            let rest = [(b'R', b"c@example.test".as_slice()), (b'M', b""), (b'X', b""), (b'E', b"")];
            parse(&file(&[&[SIZE, (b'S', b"a@b.test"), more][..], &rest].concat())).unwrap_err().to_string()
        };
        let recipient = of((b'R', b"j\xf6rg@example.test"));
        assert!(recipient.contains("the recipient j\\xf6rg@example.test is no UTF-8"), "{recipient}");
        assert!(of((b'A', b"envelope_id=a\nb")).contains("envelope_id is none"), "{}", of((b'A', b"envelope_id=a\nb")));
        assert!(
            of((b'A', b"notify_flags=3")).contains("notify_flags") && of((b'A', b"ret_flags=7")).contains("ret_flags")
        );
    }

    #[test]
    fn what_a_filter_wrote_elsewhere_is_read_and_a_circle_ends() {
        let pointer = |to: usize| format!("{to:15}").into_bytes();
        let head = [SIZE, (b'S', b"a@b.test"), (b'R', b"c@example.test"), (b'M', b"")];
        let before = file(&head).len();
        let build = |there: usize, back: usize, kind: u8| {
            let mut bytes = file(&head);
            for (kind, data) in [(b'p', pointer(there)), (b'X', vec![]), (b'p', pointer(0)), (kind, vec![])] {
                record(kind, &data, &mut bytes);
            }
            for (kind, data) in [(b'N', b"From elsewhere".to_vec()), (b'p', pointer(back))] {
                record(kind, &data, &mut bytes);
            }
            bytes
        };
        let (there, back) = (before + 17 + 2 + 17 + 2, before + 17);
        assert_eq!(parse(&build(there, back, b'E')).unwrap().content, b"From elsewhere\r\n");
        let circle = parse(&build(there, before, b'E')).unwrap_err().to_string();
        assert!(circle.contains("circle"), "{circle}");
        let out = parse(&build(1 << 30, back, b'E')).unwrap_err().to_string();
        assert!(out.contains("out of the file"), "{out}");
    }

    #[test]
    fn mail_that_was_redirected_or_discarded_goes_where_postfix_would_send_it() {
        let of = |more: (u8, &[u8])| {
            let rest = [(b'R', b"c@example.test".as_slice()), (b'M', b""), (b'X', b""), (b'E', b"")];
            parse(&file(&[&[SIZE, (b'S', b"a@b.test"), more][..], &rest].concat())).unwrap()
        };
        assert_eq!(of((b'>', b"d@example.test")).recipients, ["d@example.test"]);
        assert_eq!((of((b'K', b"")).recipients.len(), of((b'K', b"")).delivered), (0, 1));
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes: Vec<u8>, kinds in proptest::collection::vec(0usize..13, 0..40)) {
            let _any = parse(&bytes);
            let _begun = parse(&[b"C".as_slice(), &bytes].concat());
            let mut records = vec![SIZE];
            records.extend(kinds.iter().enumerate().map(|(n, kind)| (b"SRDTMNLXEpwKO"[*kind], &bytes[..bytes.len().min(n)])));
            let built = file(&records);
            if let Ok(letter) = parse(&built) {
                prop_assert!(letter.content.len() <= built.len() * 2);
            }
        }

        #[test]
        fn every_line_comes_out_as_it_went_in(
            lines in proptest::collection::vec(proptest::collection::vec(any::<u8>().prop_filter("a line", |b| *b != b'\n'), 0..300), 0..20),
            piece_bytes in 1usize..200,
        ) {
            let mut bytes = file(&[SIZE, (b'S', b"a@b.test"), (b'M', b"")]);
            for line in &lines {
                let mut rest = line.as_slice();
                while rest.len() > piece_bytes {
                    record(b'L', &rest[..piece_bytes], &mut bytes);
                    rest = &rest[piece_bytes..];
                }
                record(b'N', rest, &mut bytes);
            }
            bytes.extend(file(&[(b'X', b""), (b'E', b"")]));
            let expected: Vec<u8> = lines.iter().flat_map(|line| [line.as_slice(), b"\r\n"].concat()).collect();
            prop_assert_eq!(parse(&bytes).unwrap().content, expected);
        }
    }
}
