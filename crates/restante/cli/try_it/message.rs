//! The messages of the story, and the comparison of what was sent with what arrived. Does no I/O.

use restante_envelope::TransactionId;
use std::collections::BTreeMap;
use std::fmt;

/// The domain of the story's route; RFC 2606 keeps it free of real mail.
pub(super) const DOMAIN: &str = "example.test";
/// More than fits a socket's or a session's buffer, so that it travels in pieces.
const LARGE_BYTES: usize = 300_000;

/// What is about to be sent.
pub(super) struct Message {
    /// What is special about it, in a word or two.
    pub(super) what: &'static str,
    pub(super) to: Vec<String>,
    /// Lines ending with CRLF, as they are before dot-stuffing.
    pub(super) content: Vec<u8>,
}

/// What was answered with a 250.
pub(super) struct Sent {
    pub(super) id: TransactionId,
    pub(super) message: Message,
}

/// What the primary took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) to: Vec<String>,
    pub(super) content: Vec<u8>,
}

impl Message {
    fn new(what: &'static str, to: &[&str], date: &str, body: &[u8]) -> Self {
        let to: Vec<_> = to.iter().map(|local| format!("{local}@{DOMAIN}")).collect();
        let mut content = format!(
            "From: Try <try@sender.test>\r\nTo: {}\r\nSubject: {what}\r\nDate: {date}\r\nMIME-Version: 1.0\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n",
            to.join(", ")
        )
        .into_bytes();
        content.extend_from_slice(body);
        Self { what, to, content }
    }

    /// Nothing special.
    pub(super) fn plain(what: &'static str, to: &str, date: &str) -> Self {
        Self::new(what, &[to], date, b"This mail must not get lost.\r\n")
    }

    /// What a careless relay would spoil: lines of dots (RFC 5321 section 4.5.2), spaces at line ends, no text at all.
    pub(super) fn dots(date: &str) -> Self {
        let body = b".\r\n..\r\n.. two dots\r\n\r\n.hidden\r\nspaces at the end   \r\n\t\r\n\r\n.\r\n";
        Self::new("dots at line starts", &["dora"], date, body)
    }

    /// Every byte from 0x80 to 0xFF: whoever takes them for text of some encoding changes them.
    pub(super) fn eight_bit(date: &str) -> Self {
        let mut body = "Grüße aus dem Journal\r\n".as_bytes().to_vec();
        body.extend(0x80..=0xFF_u8);
        body.extend_from_slice(b"\r\n");
        Self::new("8-bit bytes", &["erik"], date, &body)
    }

    /// One transaction, two recipients.
    pub(super) fn two_recipients(date: &str) -> Self {
        Self::new("two recipients", &["fred", "gina"], date, b"For both of you.\r\n")
    }

    /// Some 300 KB, each line different, so that no piece can stand for another.
    pub(super) fn large(date: &str) -> Self {
        let line = |nth: u32| format!("{nth:08} {:08x}\r\n", nth.wrapping_mul(0x9E37_79B9)).into_bytes();
        let body: Vec<u8> = (0..).flat_map(line).take(LARGE_BYTES - 2).chain(*b"\r\n").collect();
        Self::new("300 KB", &["hans"], date, &body)
    }
}

/// What became of all that was sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) messages: usize,
    pub(super) recipients: usize,
    /// Messages of which every recipient got an exact copy.
    pub(super) arrived: usize,
    /// Exact copies beyond the first, counted for each recipient.
    pub(super) duplicates: usize,
    /// What is wrong, in words. Every message that has not arrived is in here.
    pub(super) faults: Vec<String>,
}

impl Account {
    /// Compares what has a 250 with what the primary took.
    pub(super) fn of(sent: &[Sent], received: &[Received]) -> Self {
        let mut account = Self { messages: sent.len(), ..Self::default() };
        let mut copies: BTreeMap<(TransactionId, &str), usize> = BTreeMap::new();
        for (nth, copy) in received.iter().enumerate() {
            match exact(sent, copy) {
                Ok(id) => copy.to.iter().for_each(|to| *copies.entry((id, to)).or_default() += 1),
                Err(why) => account.faults.push(format!("received/{:04}.eml {why}", nth + 1)),
            }
        }
        for Sent { id, message } in sent {
            let counts: Vec<_> =
                message.to.iter().map(|to| copies.get(&(*id, to.as_str())).copied().unwrap_or(0)).collect();
            account.recipients += counts.len();
            account.duplicates += counts.iter().map(|count| count.saturating_sub(1)).sum::<usize>();
            for (to, _) in message.to.iter().zip(&counts).filter(|(_, count)| **count == 0) {
                account.faults.push(format!("{id} ({}) has not arrived at {to}", message.what));
            }
            account.arrived += usize::from(counts.iter().all(|count| *count > 0));
        }
        account
    }

    /// Every message arrived, and nothing else did.
    pub(super) fn is_whole(&self) -> bool {
        self.arrived == self.messages && self.faults.is_empty()
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} messages arrived byte for byte ({} recipients",
            self.arrived, self.messages, self.recipients
        )?;
        match self.duplicates {
            0 => f.write_str(", no duplicates)")?,
            1 => f.write_str(", 1 duplicate)")?,
            n => write!(f, ", {n} duplicates)")?,
        }
        self.faults.iter().try_for_each(|fault| write!(f, "; {fault}"))
    }
}

/// Which message this is an exact copy of: its content behind nothing but trace headers that name its ID.
fn exact(sent: &[Sent], copy: &Received) -> Result<TransactionId, String> {
    let id = trace_id(&copy.content).ok_or("has no trace header with an ID")?;
    let original = &sent.iter().find(|s| s.id == id).ok_or(format!("is {id}, which had no 250"))?.message;
    let Some(trace) = copy.content.strip_suffix(original.content.as_slice()) else {
        return Err(format!("is {id} ({}), and differs from what was sent", original.what));
    };
    if !is_trace(trace) {
        return Err(format!("is {id} ({}), with more than a trace header in front", original.what));
    }
    match copy.to.iter().find(|to| !original.to.contains(to)) {
        Some(stranger) => Err(format!("is {id} ({}), and went to {stranger}", original.what)),
        None => Ok(id),
    }
}

/// The ID that the first Received header names (RFC 5321 section 4.4, the ID clause).
fn trace_id(content: &[u8]) -> Option<TransactionId> {
    let lines = content.split_inclusive(|byte| *byte == b'\n');
    let mut header = lines.enumerate().take_while(|(nth, line)| *nth == 0 || is_folded(line)).map(|(_, line)| line);
    let first = std::str::from_utf8(header.next()?.strip_prefix(b"Received:")?).ok()?;
    let rest = header.map(|line| std::str::from_utf8(line).ok()).collect::<Option<String>>()?;
    let mut words = first.split_whitespace().chain(rest.split_whitespace());
    words.find(|word| *word == "id")?;
    words.next()?.trim_end_matches(';').parse().ok()
}

fn is_trace(front: &[u8]) -> bool {
    front.ends_with(b"\r\n")
        && front.split_inclusive(|byte| *byte == b'\n').all(|line| line.starts_with(b"Received:") || is_folded(line))
}

fn is_folded(line: &[u8]) -> bool {
    line.starts_with(b" ") || line.starts_with(b"\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "Received: from try.test ([127.0.0.1])\r\n\tby mx2.example.test (Restante) with ESMTP id ";

    fn sent() -> Vec<Sent> {
        let date = "Sun, 22 Nov 2026 15:53:20 +0100";
        let messages = [
            Message::plain("plain", "carl", date),
            Message::dots(date),
            Message::eight_bit(date),
            Message::two_recipients(date),
            Message::large(date),
        ];
        (1..).zip(messages).map(|(bits, message)| Sent { id: TransactionId::from_bits(bits), message }).collect()
    }

    fn delivered(sent: &Sent) -> Received {
        let mut content = format!("{TRACE}{};\r\n\tSun, 22 Nov 2026 14:53:20 +0000\r\n", sent.id).into_bytes();
        content.extend_from_slice(&sent.message.content);
        Received { to: sent.message.to.clone(), content }
    }

    #[test]
    fn a_message_that_cannot_travel_over_smtp_is_not_made() {
        for Sent { message, .. } in sent() {
            assert!(message.content.ends_with(b"\r\n"), "{}", message.what);
            for line in message.content.split_inclusive(|byte| *byte == b'\n') {
                let text = line.strip_suffix(b"\r\n").expect(message.what);
                assert!(text.len() <= 998 && !text.contains(&b'\r'), "{}", message.what);
            }
        }
        assert!(sent().last().unwrap().message.content.len() >= LARGE_BYTES);
    }

    #[test]
    fn mail_that_arrived_is_not_reported_missing() {
        let sent = sent();
        let received: Vec<_> = sent.iter().map(delivered).collect();
        let account = Account::of(&sent, &received);
        assert!(account.is_whole(), "{account}");
        assert_eq!((account.messages, account.arrived, account.recipients, account.duplicates), (5, 5, 6, 0));
    }

    #[test]
    fn mail_for_two_that_arrives_in_two_transactions_is_no_duplicate() {
        let sent = sent();
        let mut received: Vec<_> = sent.iter().map(delivered).collect();
        let second = received[3].to.pop().unwrap();
        received.push(Received { to: vec![second], ..received[3].clone() });
        let account = Account::of(&sent, &received);
        assert!(account.is_whole() && account.duplicates == 0, "{account}");
    }

    #[test]
    fn a_duplicate_is_counted_and_is_no_loss() {
        let sent = sent();
        let mut received: Vec<_> = sent.iter().map(delivered).collect();
        received.push(received[3].clone());
        let account = Account::of(&sent, &received);
        assert!(account.is_whole(), "{account}");
        assert_eq!(account.duplicates, 2, "one for each recipient");
    }

    #[test]
    fn a_recipient_left_out_is_noticed() {
        let sent = sent();
        let mut received: Vec<_> = sent.iter().map(delivered).collect();
        received[3].to.pop();
        let account = Account::of(&sent, &received);
        assert!(!account.is_whole() && account.arrived == 4, "{account}");
        assert!(account.faults[0].contains("gina@example.test"), "{account}");
    }

    #[test]
    fn a_changed_byte_anywhere_is_noticed() {
        let sent = sent();
        let whole: Vec<_> = sent.iter().map(delivered).collect();
        for nth in 0..whole.len() {
            let front = whole[nth].content.len() - sent[nth].message.content.len();
            for at in [0, front - 1, front, whole[nth].content.len() - 1] {
                let mut received = whole.clone();
                received[nth].content[at] ^= 1;
                let account = Account::of(&sent, &received);
                assert!(!account.is_whole() && account.arrived == 4, "{nth} {at}: {account}");
            }
        }
    }

    #[test]
    fn a_header_that_somebody_added_is_noticed() {
        let sent = sent();
        let mut received: Vec<_> = sent.iter().map(delivered).collect();
        let front = received[0].content.len() - sent[0].message.content.len();
        received[0].content.splice(front..front, *b"X-Scanned: yes\r\n");
        assert!(!Account::of(&sent, &received).is_whole());
    }

    #[test]
    fn mail_that_nobody_sent_or_to_somebody_else_is_noticed() {
        let sent = sent();
        let mut received: Vec<_> = sent.iter().map(delivered).collect();
        received[0].to.push("mallory@example.test".into());
        let strange = Sent { id: TransactionId::from_bits(99), message: Message::dots("") };
        received.push(delivered(&strange));
        received.push(Received { to: vec![], content: vec![] });
        let account = Account::of(&sent, &received);
        assert_eq!(account.arrived, 4, "{account}");
        assert_eq!(account.faults.len(), 4, "{account}");
    }
}
