//! What the real session makes of the input that the model is given: in the model's words. Refuses to judge.

use crate::host::{Recorder, START, session, settings};
use crate::model::{Outcome, Rules};
use restante_envelope::{Timestamp, TransactionId};
use restante_smtp::{BareLineEnds, Resolution, Trouble};
use std::collections::BTreeSet;

/// Feeds `input` in pieces that end at `ends`; each message is committed at once, and each handshake done.
pub(crate) fn play(rules: &Rules, input: &[u8], ends: &BTreeSet<usize>) -> Outcome {
    let mut settings = settings();
    settings.max_message_bytes = rules.max_message_bytes;
    settings.max_recipients = rules.max_recipients;
    settings.max_messages = rules.max_messages;
    settings.max_header_bytes = rules.max_header_bytes;
    settings.starttls = rules.starttls;
    settings.bare_line_ends = if rules.is_strict { BareLineEnds::Reject } else { BareLineEnds::Normalize };
    let (mut session, mut host) = (session(settings), Recorder::default());
    host.begins = rules.begins.iter().copied().collect();
    let mut commits = rules.commits.iter();
    if rules.xclient {
        session.allow_xclient();
    }
    let now = Timestamp::from_unix_ms(START);
    let (mut from, mut output) = (0, Vec::new());
    for to in ends.iter().copied().chain([input.len()]) {
        while from < to {
            from += session.receive(&input[from..to], now, &mut host);
            output.append(session.output());
            if session.awaits_commit() {
                session.resolve(
                    match commits.next() {
                        Some(false) => Resolution::Failed(Trouble::Storage),
                        _ => Resolution::Stored(TransactionId::from_bits(1)),
                    },
                    now,
                );
            }
            if session.awaits_tls() {
                assert_eq!(from, to, "input was kept over a handshake");
                session.tls_started("TLS".to_owned(), now);
            }
        }
    }
    output.append(session.output());
    let mut replies = replies(&String::from_utf8(output).expect("ASCII"));
    if session.wants_close() {
        replies.push("closed".to_owned());
    }
    session.disconnected(&mut host);
    assert!(!host.open, "a content was left open");
    let told = |event: String| event.split_once(" own=").map_or(event.clone(), |(event, _)| event.to_owned());
    Outcome { replies, events: host.events.into_iter().map(told).collect() }
}

/// Codes alone; of the reply to EHLO, two of the offers.
fn replies(output: &str) -> Vec<String> {
    let (mut replies, mut offers) = (Vec::new(), None::<String>);
    for line in output.split_terminator("\r\n") {
        let (code, text) = (&line[..3], &line[4..]);
        let is_last = line.as_bytes()[3] == b' ';
        let offered = ["STARTTLS", "XCLIENT"].into_iter().find(|keyword| text.starts_with(keyword));
        match &mut offers {
            Some(so_far) => *so_far += &offered.map_or(String::new(), |keyword| format!(" {keyword}")),
            None if !is_last => offers = Some(format!("{code}-")),
            None => {
                let status = text.split(' ').next().filter(|word| word.split('.').count() == 3);
                replies.push(status.map_or(code.to_owned(), |status| format!("{code} {status}")));
            }
        }
        if is_last {
            replies.extend(offers.take());
        }
    }
    replies
}
