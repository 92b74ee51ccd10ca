//! What holds whatever the peer sends.

use crate::host::{Recorder, START, session, settings};
use proptest::prelude::*;
use restante_envelope::{Timestamp, TransactionId};
use restante_smtp::{RefusedConnection, Resolution, Session};
use std::sync::Arc;

const TLS: &str = "TLSv1.3 TLS_AES_256_GCM_SHA384";

/// A session that offers STARTTLS.
fn offering_tls() -> Session {
    let mut settings = settings();
    settings.starttls = true;
    let mut session = session(settings);
    session.allow_xclient();
    session
}

/// Feeds everything, and commits what there is to commit. A client waits for the reply to EHLO and HELO. All replies stand in the
/// output then, more than a session itself would keep.
fn feed(session: &mut Session, host: &mut Recorder, input: &[u8], pieces: usize) {
    let now = Timestamp::from_unix_ms(START);
    let is_hello = |word: &[u8]| word.eq_ignore_ascii_case(b"EHLO") || word.eq_ignore_ascii_case(b"HELO");
    let waits = |line: &[u8]| line.get(..4).is_some_and(is_hello);
    let mut parts = vec![Vec::new()];
    for line in input.split_inclusive(|b| *b == b'\n') {
        parts.last_mut().unwrap().extend_from_slice(line);
        if waits(line) {
            parts.push(Vec::new());
        }
    }
    let mut said = Vec::new();
    for piece in parts.iter().flat_map(|part| part.chunks(pieces)) {
        let mut rest = piece;
        while !rest.is_empty() {
            said.append(session.output());
            let consumed = session.receive(rest, now, host);
            rest = &rest[consumed..];
            if session.awaits_commit() {
                assert_eq!(session.receive(b"QUIT\r\n", now, host), 0);
                session.resolve(Resolution::Stored(TransactionId::from_bits(1)), now);
            }
        }
    }
    said.append(session.output());
    *session.output() = said;
}

/// Feeds `clear`, does the handshake if one is due, feeds `inside`, and returns the output and the contents.
fn talk(clear: &[u8], inside: &[u8], pieces: usize) -> (String, Vec<String>, bool) {
    let (mut session, mut host) = (offering_tls(), Recorder::default());
    feed(&mut session, &mut host, clear, pieces);
    session.tls_started(TLS.to_owned(), Timestamp::from_unix_ms(START));
    feed(&mut session, &mut host, inside, pieces);
    let output = String::from_utf8(session.output().clone()).unwrap();
    let closed = session.wants_close();
    session.disconnected(&mut host);
    assert!(!host.open);
    (output, host.events.into(), closed)
}

/// RFC 2034 section 4: the greeting, the replies to HELO and EHLO, and 354.
fn is_without_status(line: &str) -> bool {
    ["220 mx2.test ", "250 mx2.test", "250-", "250 HELP", "354 "].iter().any(|begins| line.starts_with(begins))
}

fn is_well_formed(output: &str) -> bool {
    let line = |line: &str| {
        let (code, rest) = line.split_at(3);
        code.bytes().all(|b| b.is_ascii_digit())
            && matches!(code.as_bytes()[0], b'2'..=b'5')
            && rest.starts_with([' ', '-'])
            && line.len() <= 510
            && line.bytes().all(|b| (b' '..=b'~').contains(&b))
            && (is_without_status(line)
                || rest.get(1..).is_some_and(|text| text.starts_with(&format!("{}.", &code[..1]))))
    };
    output.ends_with("\r\n") && output.split_terminator("\r\n").all(line)
}

fn session_bytes() -> impl Strategy<Value = Vec<u8>> {
    let words = proptest::sample::select(vec![
        &b"EHLO c.test\r\n"[..],
        b"HELO c.test\r\n",
        b"MAIL FROM:<a@b.test>\r\n",
        b"MAIL FROM:<> SIZE=2000\r\n",
        b"RCPT TO:<u@ours.test>\r\n",
        b"RCPT TO:<u@foreign.test>\r\n",
        b"RCPT TO:<",
        b"DATA\r\n",
        b"DATA x\r\n",
        b"BDAT\t6\r\n",
        b"BDAT 6\r\n",
        b"BDAT 9 LAST\r\n",
        b"BDAT 0 LAST\r\n",
        b"BDAT 4000\r\n",
        b"ETRN ours.test\r\n",
        b"RCPT TO:<u@second.test> NOTIFY=NEVER ORCPT=rfc822;x@y\r\n",
        b"MAIL FROM:<j\xc3\xb6rg@b.test> SMTPUTF8 RET=HDRS ENVID=x\r\n",
        b"RSET\r\n",
        b"NOOP x\r\n",
        b"STARTTLS\r\n",
        b"XCLIENT ADDR=203.0.113.7 PORT=5\r\n",
        b"XCLIENT PROTO=ESMTP HELO=c.test\r\n",
        b"text\r\n",
        b"..\r\n",
        b".\r\n",
        b"\r\n.\r\n",
        b"\r",
        b" ",
        b"Received: by mx2.test\r\n",
    ]);
    let noise = proptest::collection::vec(any::<u8>(), 0..8);
    let part = prop_oneof![20 => words.prop_map(<[u8]>::to_vec), 1 => noise];
    // Sessions that get as far as DATA in most cases.
    let start = proptest::sample::select(vec![
        &b""[..],
        b"EHLO c.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<u@ours.test>\r\n",
        b"EHLO c.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<u@ours.test>\r\nDATA\r\n",
        b"EHLO c.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<u@ours.test>\r\nBDAT 20\r\n",
    ]);
    (start, proptest::collection::vec(part, 0..30)).prop_map(|(start, parts)| [start, &parts.concat()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn replies_are_well_formed_whatever_comes(
        clear in session_bytes(),
        inside in session_bytes(),
        pieces in 1_usize..50,
    ) {
        let (output, _, _) = talk(&clear, &inside, pieces);
        prop_assert!(is_well_formed(&output), "{:?}", output);
    }

    #[test]
    fn where_the_input_is_cut_does_not_matter(
        clear in session_bytes(),
        inside in session_bytes(),
        pieces in 1_usize..50,
    ) {
        let (bytewise, bytewise_events, _) = talk(&clear, &inside, 1);
        let (output, events, closed) = talk(&clear, &inside, pieces);
        if output.contains("421 4.5.0") || output.contains("554 5.5.0") {
            // A client that does not wait for a reply can only be told from one that does by its timing.
            prop_assert!(closed);
        } else {
            prop_assert_eq!(output, bytewise);
            prop_assert_eq!(events, bytewise_events);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(input in proptest::collection::vec(any::<u8>(), 0..3_000), pieces in 1_usize..3_000) {
        let (output, _, _) = talk(&input, b"", pieces);
        prop_assert!(is_well_formed(&output), "{:?}", output);
    }

    #[test]
    fn nothing_said_behind_starttls_in_clear_has_any_effect(
        before in session_bytes(),
        injected in session_bytes(),
        inside in session_bytes(),
        pieces in 1_usize..50,
    ) {
        let clear = [&before, &b"\r\n.\r\nEHLO c.test\r\nSTARTTLS\r\n"[..]].concat();
        let (mut session, mut host) = (offering_tls(), Recorder::default());
        feed(&mut session, &mut host, &clear, pieces);
        // About half of them get as far as a handshake.
        if !session.awaits_tls() {
            return Ok(());
        }
        let (said, told) = (session.output().clone(), host.events.clone());
        feed(&mut session, &mut host, &injected, pieces);
        prop_assert!(session.awaits_tls() && *session.output() == said && host.events == told);

        let (without, without_events, _) = talk(&clear, &inside, pieces);
        let (with, with_events, _) = talk(&[clear, injected].concat(), &inside, pieces);
        let waits = |output: &str| !output.contains("421 4.5.0") && !output.contains("554 5.5.0");
        if waits(&with) && waits(&without) {
            prop_assert_eq!(with, without);
            prop_assert_eq!(with_events, without_events);
        }
    }

    #[test]
    fn nothing_said_before_the_handshake_is_remembered(before in session_bytes(), inside in session_bytes()) {
        let clear = [&before, &b"\r\n.\r\nEHLO c.test\r\nSTARTTLS\r\n"[..]].concat();
        let mut heard = Vec::new();
        for clear in [&clear[..], b"EHLO other.test\r\nSTARTTLS\r\n"] {
            let (mut session, mut host) = (offering_tls(), Recorder::default());
            feed(&mut session, &mut host, clear, usize::MAX);
            if !session.awaits_tls() {
                return Ok(());
            }
            session.tls_started(TLS.to_owned(), Timestamp::from_unix_ms(START));
            session.output().clear();
            host.events.clear();
            feed(&mut session, &mut host, &inside, usize::MAX);
            heard.push((session.output().clone(), host.events));
        }
        prop_assert_eq!(&heard[0], &heard[1]);
    }
}

#[test]
fn a_connection_turned_away_says_why_and_closes() {
    for (why, code) in
        [(RefusedConnection::ShuttingDown, "421 4.3.2 "), (RefusedConnection::TooManyConnections, "421 4.7.0 ")]
    {
        let mut session = Session::refuse(Arc::new(settings()), "192.0.2.7:1".parse().unwrap(), why);
        assert!(session.wants_close() && session.poll_timeout().is_none());
        assert_eq!(session.receive(b"QUIT\r\n", Timestamp::from_unix_ms(START), &mut Recorder::default()), 6);
        let output = String::from_utf8(session.output().clone()).unwrap();
        assert!(output.starts_with(code) && is_well_formed(&output), "{output}");
    }
}

#[test]
fn who_talks_before_the_greeting_gets_none() {
    let (mut session, mut host) = (session(settings()), Recorder::default());
    session.talked_too_soon(&mut host);
    assert!(session.wants_close() && session.poll_timeout().is_none());
    let said = String::from_utf8(std::mem::take(session.output())).unwrap();
    assert!(said.starts_with("554 5.5.0 ") && is_well_formed(&said), "{said}");
    assert_eq!(host.log, ["refused connect 554 -"]);
}

#[test]
fn a_drip_of_bytes_does_not_hold_a_connection() {
    let (mut session, mut host) = (session(settings()), Recorder::default());
    let started = session.poll_timeout().unwrap();
    for second in 1..300 {
        session.receive(b"N", Timestamp::from_unix_ms(START + second * 1_000), &mut host);
    }
    assert_eq!(session.poll_timeout(), Some(started));
    session.handle_timeout(started, &mut host);
    assert!(session.wants_close());
    assert!(session.output().ends_with(b"421 4.4.2 mx2.test timeout, closing connection\r\n"));
}

#[test]
fn content_renews_the_deadline_by_volume_not_by_bytes() {
    let mut large = settings();
    large.max_message_bytes = 1_000_000;
    let (mut session, mut host) = (session(large), Recorder::default());
    let at = |seconds: u64| Timestamp::from_unix_ms(START + seconds * 1_000);
    session.receive(b"EHLO c\r\n", at(0), &mut host);
    session.receive(b"MAIL FROM:<>\r\nRCPT TO:<u@ours.test>\r\nDATA\r\n", at(0), &mut host);
    assert_eq!(session.poll_timeout(), Some(at(600)));
    session.receive(&[b'x'; 65_535], at(100), &mut host);
    assert_eq!(session.poll_timeout(), Some(at(600)));
    session.receive(b"x", at(200), &mut host);
    assert_eq!(session.poll_timeout(), Some(at(800)));
}

#[test]
fn the_counts_tell_what_happened() {
    let (mut session, mut host) = (session(settings()), Recorder::default());
    let now = Timestamp::from_unix_ms(START);
    session.receive(b"EHLO c\r\n", now, &mut host);
    let input = b"MAIL FROM:<>\r\nRCPT TO:<u@ours.test>\r\nRCPT TO:<u@foreign.test>\r\nDATA\r\nabc\r\n.\r\n";
    assert_eq!(session.receive(input, now, &mut host), input.len());
    session.resolve(Resolution::Stored(TransactionId::from_bits(1)), now);
    let counts = session.counts();
    assert_eq!((counts.mail, counts.rcpt, counts.accepted, counts.refused, counts.bytes), (1, 1, 1, 1, 5));
}

#[test]
fn the_host_never_gets_more_than_the_limit() {
    for piece_bytes in [1, 999, 1_001, 4_000] {
        let (mut session, mut host) = (session(settings()), Recorder::default());
        let now = Timestamp::from_unix_ms(START);
        session.receive(b"EHLO c\r\n", now, &mut host);
        session.receive(b"MAIL FROM:<>\r\nRCPT TO:<u@ours.test>\r\nDATA\r\n", now, &mut host);
        for piece in [b'x'; 1_001].chunks(piece_bytes) {
            session.receive(piece, now, &mut host);
        }
        assert!(!host.open, "aborted before the end of data, which may never come");
        assert!(host.content.len() <= 1_000);
    }
}

/// The replies to each line of a session that offers STARTTLS; each waits for the one before.
fn asked(lines: &[&str]) -> Vec<String> {
    let (mut session, mut host) = (offering_tls(), Recorder::default());
    let ask = |line: &&str| {
        session.output().clear();
        session.receive(format!("{line}\r\n").as_bytes(), Timestamp::from_unix_ms(START), &mut host);
        String::from_utf8(session.output().clone()).unwrap()
    };
    lines.iter().map(ask).collect()
}

/// RFC 5321 sections 4.1.1.1 and 4.2.4.
#[test]
fn what_ehlo_offers_is_there() {
    let offers = asked(&["EHLO c.test"]).remove(0);
    for (keyword, command) in [
        ("SIZE", "MAIL FROM:<> SIZE=1"),
        ("8BITMIME", "MAIL FROM:<> BODY=8BITMIME"),
        ("SMTPUTF8", "MAIL FROM:<> SMTPUTF8"),
        ("DSN", "MAIL FROM:<> RET=FULL ENVID=x"),
        ("CHUNKING", "BDAT 0 LAST"),
        ("ETRN", "ETRN ours.test"),
        ("STARTTLS", "STARTTLS"),
        ("XCLIENT", "XCLIENT PORT=5"),
        ("VRFY", "VRFY u"),
        ("HELP", "HELP"),
        ("EXPN", "EXPN list"),
        ("AUTH", "AUTH PLAIN"),
        ("ATRN", "ATRN"),
        ("TURN", "TURN"),
        ("BURL", "BURL x LAST"),
        ("SEND", "SEND FROM:<>"),
        ("SOML", "SOML FROM:<>"),
        ("SAML", "SAML FROM:<>"),
        ("BINARYMIME", "MAIL FROM:<> BODY=BINARYMIME"),
        ("FUTURERELEASE", "MAIL FROM:<> HOLDFOR=1"),
        ("DELIVERBY", "MAIL FROM:<> BY=1;R"),
        ("MT-PRIORITY", "MAIL FROM:<> MT-PRIORITY=1"),
        ("REQUIRETLS", "MAIL FROM:<> REQUIRETLS"),
    ] {
        let is_offered = offers.contains(&format!("-{keyword}")) || offers.contains(&format!(" {keyword}\r\n"));
        let said = asked(&["EHLO c.test", command]).remove(1);
        let is_there = !["500 ", "502 ", "555 "].iter().any(|code| said.starts_with(code));
        assert_eq!(is_offered, is_there, "{keyword}: {said}");
    }
}

/// RFC 3461 section 5.1.
#[test]
fn notifications_asked_for_change_no_reply() {
    for sender in ["<>", "<a@b.test>", "<a@[192.0.2.1]>", "<a b@c>", "<j\u{f6}rg@b.test>", "<a@b.test> SIZE=2000"] {
        let plain = asked(&["EHLO c.test", &format!("MAIL FROM:{sender}")]).remove(1);
        let with = asked(&["EHLO c.test", &format!("MAIL FROM:{sender} RET=HDRS ENVID=+2B")]).remove(1);
        assert_eq!(plain, with, "{sender}");
    }
    for recipient in ["<u@ours.test>", "<nobody@ours.test>", "<u@foreign.test>", "<>", "<a%b@ours.test>"] {
        for asked_for in
            ["NOTIFY=NEVER", "NOTIFY=SUCCESS,FAILURE,DELAY", "ORCPT=rfc822;x@y", "ORCPT=x400;+3D NOTIFY=DELAY"]
        {
            let rcpt =
                |with: &str| asked(&["EHLO c.test", "MAIL FROM:<>", &format!("RCPT TO:{recipient} {with}")]).remove(2);
            assert_eq!(rcpt(""), rcpt(asked_for), "{recipient} {asked_for}");
        }
    }
}

/// Of recipients as long as they may be a hundred are taken, as RFC 5321 section 4.5.3.1.8 has it, and not many more.
#[test]
fn an_envelope_does_not_grow_with_all_that_a_peer_may_say_of_its_recipients() {
    let recipients = |path: &str, original: usize| {
        let line = format!("RCPT TO:<{path}@ours.test> ORCPT=rfc822;{}", "o".repeat(original));
        let lines = [&["EHLO c.test", "MAIL FROM:<>"][..], &vec![line.as_str(); 999]].concat();
        let said = asked(&lines);
        let taken = said.iter().filter(|reply| reply.starts_with("250 2.1.5 ")).count();
        assert_eq!(said.iter().filter(|reply| reply.starts_with("452 4.5.3 ")).count(), 999 - taken);
        taken
    };
    assert_eq!(recipients("u", 100), 999);
    let longest = recipients(&"u".repeat(64), 493);
    assert!((100..300).contains(&longest), "{longest} recipients of 570 octets");
}

/// Content at `bytes` in each 600 s, a piece a second, for half an hour; whether it was listened to until then.
fn trickle(bytes: usize) -> bool {
    let mut settings = settings();
    settings.max_message_bytes = 1 << 20;
    let (mut session, mut host) = (session(settings), Recorder::default());
    for group in ["EHLO c\r\n", "MAIL FROM:<a@sender.test>\r\nRCPT TO:<b@ours.test>\r\nDATA\r\n"] {
        session.receive(group.as_bytes(), Timestamp::from_unix_ms(START), &mut host);
    }
    let mut sent = 0;
    for second in 1..=1_800 {
        let now = Timestamp::from_unix_ms(START + second * 1_000 - 1);
        let due = bytes * second as usize / 600;
        // Lines of 1,000 bytes: where one ends, its CRLF counts with what follows it.
        let piece: Vec<u8> = (sent..due).map(|n| [b'x', b'\r', b'\n'][(n % 1_000).saturating_sub(997)]).collect();
        session.receive(&piece, now, &mut host);
        sent = due;
        session.handle_timeout(now, &mut host);
        if session.wants_close() {
            return false;
        }
    }
    session.receive(b"\r\n.\r\n", Timestamp::from_unix_ms(START + 1_800_000), &mut host);
    session.awaits_commit()
}

#[test]
fn a_sender_exactly_at_the_floor_of_the_byte_rate_is_heard_to_the_end_and_one_below_is_not() {
    assert!(trickle(64 << 10), "64 KiB in 600 s is what the README promises");
    assert!(!trickle((64 << 10) - 600), "a byte a second less");
}

#[test]
fn a_content_of_nothing_but_crs_is_not_read_for_ever() {
    let mut settings = settings();
    settings.max_message_bytes = 1 << 20;
    let (mut session, mut host, now) = (session(settings), Recorder::default(), Timestamp::from_unix_ms(START));
    for group in ["EHLO c\r\n", "MAIL FROM:<a@sender.test>\r\nRCPT TO:<b@ours.test>\r\nDATA\r\n"] {
        session.receive(group.as_bytes(), now, &mut host);
    }
    session.output().clear();
    let kept = (0..).take_while(|_| {
        session.receive(&[b'\r'; 1 << 10], now, &mut host);
        !session.wants_close()
    });
    assert_eq!(kept.count(), 3 << 10, "twice the limit, and 1 MiB");
    let replies = String::from_utf8(session.output().clone()).unwrap();
    assert!(replies.starts_with("552 5.3.4 ") && replies.lines().nth(1).unwrap().starts_with("421 "), "{replies}");
    assert!(!host.open);
}

#[test]
fn who_takes_no_reply_is_answered_no_further_and_from_there_on_when_he_does() {
    let (mut session, mut host, now) = (session(settings()), Recorder::default(), Timestamp::from_unix_ms(START));
    session.receive(b"EHLO c.test\r\n", now, &mut host);
    session.receive(b"MAIL FROM:<a@sender.test>\r\n", now, &mut host);
    session.output().clear();
    let rcpt = b"RCPT TO:<b@ours.test>\r\n";
    let flight = rcpt.repeat(5_000);
    let (mut fed, mut turns, mut said) = (0, 0, Vec::new());
    while fed < flight.len() {
        let used = session.receive(&flight[fed..], now, &mut host);
        assert!(used > 0 && used.is_multiple_of(rcpt.len()) && session.output().len() < (32 << 10) + 512);
        assert_eq!(session.receive(b"NOOP\r\n", now, &mut host) > 0, session.output().len() < 32 << 10);
        (fed, turns) = (fed + used, turns + 1);
        said.append(session.output());
    }
    let said = String::from_utf8(said).unwrap();
    assert!(turns > 5 && said.lines().filter(|line| line.len() > 3).count() > 5_000, "{turns}");
}

#[test]
fn who_is_put_off_without_end_is_no_mailing_list() {
    let mut settings = settings();
    settings.max_recipients = 1;
    let (mut session, mut host) = (session(settings), Recorder::default());
    let rcpt = "RCPT TO:<b@ours.test>\r\n";
    let mut say = |lines: &str| {
        feed(&mut session, &mut host, lines.as_bytes(), usize::MAX);
        let said = String::from_utf8(std::mem::take(session.output())).unwrap();
        (said.lines().last().unwrap()[..3].to_owned(), session.wants_close())
    };
    say(&format!("EHLO c.test\r\nMAIL FROM:<a@sender.test>\r\n{rcpt}"));
    assert_eq!(say(&rcpt.repeat(9_999)), ("452".to_owned(), false));
    // A message that is taken shows that it has learned.
    assert_eq!(say("DATA\r\n.\r\n"), ("250".to_owned(), false));
    say(&format!("MAIL FROM:<a@sender.test>\r\n{rcpt}"));
    assert_eq!(say(&rcpt.repeat(9_999)), ("452".to_owned(), false));
    assert_eq!(say(rcpt), ("421".to_owned(), true));
}
