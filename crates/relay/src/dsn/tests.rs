//! Notifications: when one is owed, what it says, that nothing a stranger wrote can alter its shape, and that others can read it.
//! Asks no server.

mod outside;
mod shape;

use super::*;
use restante_envelope::{DsnRequest, EnhancedStatus, EnvelopeId, OriginalRecipient, ReversePath};

const HEAD: &[u8] = b"From: ann@client.test\r\nSubject: Thursday\r\n\r\n";

fn at(hours: u64) -> Timestamp {
    Timestamp::from_unix_ms(1_795_359_200_118 + hours * 3_600_000)
}

/// Each kind once.
fn kinds() -> [Kind; 4] {
    [Kind::Failed, Kind::Expired, Kind::Delayed { until: at(120) }, Kind::Relayed]
}

fn everything() -> Option<Notify> {
    Notify::parse("SUCCESS,FAILURE,DELAY").ok()
}

fn recipient(path: &str, notify: Option<Notify>, original: Option<&str>) -> Recipient {
    let original = original.map(|original| OriginalRecipient::parse(original).unwrap());
    let forward_path = ForwardPath::parse_utf8(path).unwrap();
    Recipient { forward_path, route: RouteName::new("office"), dsn: RecipientDsn { notify, original } }
}

fn envelope(sender: &str, recipients: Vec<Recipient>) -> Envelope {
    Envelope::new(ReversePath::parse_utf8(sender).unwrap(), recipients, BodyType::SevenBit)
}

fn report<'a>(recipient: RecipientIndex, last_word: LastWord<'a>) -> Report<'a> {
    let remote = Some("mail.example.com");
    Report { recipient, last_word, remote, last_attempt: Some(at(1)), next_hop_has_dsn: false }
}

fn notice<'a>(kind: Kind, envelope: &'a Envelope, reports: &'a [Report<'a>]) -> Notice<'a> {
    Notice {
        kind,
        hostname: "mx2.example.net",
        id: "01JD9QK3T2E8V5W6X7Y8Z9ABCD".parse().unwrap(),
        accepted_at: at(0),
        now: at(2),
        envelope,
        reports,
        head: HEAD,
        content: None,
        route: RouteName::new("reports"),
    }
}

fn text(notice: &Notice<'_>) -> String {
    String::from_utf8(compose(notice).unwrap().content).unwrap()
}

#[test]
fn a_sender_hears_what_he_asked_for_and_nothing_else() {
    // For each NOTIFY: failed, expired, delayed, relayed by a server without DSN, and by one with it.
    for (notify, expected) in [
        (None, [true, true, false, false, false]),
        (Some("NEVER"), [false; 5]),
        (Some("FAILURE"), [true, true, false, false, false]),
        (Some("DELAY"), [false, false, true, false, false]),
        (Some("SUCCESS"), [false, false, false, true, false]),
        (Some("SUCCESS,FAILURE"), [true, true, false, true, false]),
        (Some("FAILURE,DELAY"), [true, true, true, false, false]),
        (Some("SUCCESS,FAILURE,DELAY"), [true, true, true, true, false]),
    ] {
        let bob = recipient("bob@example.com", notify.map(|n| Notify::parse(n).unwrap()), None);
        let [failed, expired, delayed, relayed] = kinds();
        let cases = [(failed, false), (expired, true), (delayed, true), (relayed, false), (relayed, true)];
        for (sender, may_hear) in [("ann@client.test", true), ("", false)] {
            let envelope = envelope(sender, vec![bob.clone()]);
            let heard = cases.map(|(kind, has_dsn)| owed(kind, &envelope, &bob, has_dsn));
            assert_eq!(heard, expected.map(|is| is && may_hear), "{notify:?} from <{sender}>");
        }
    }
}

#[test]
fn a_report_is_not_answered_with_a_report() {
    let reports = [report(0, LastWord::None)];
    let bob = || vec![recipient("bob@example.com", everything(), None)];
    let (from_ann, from_nobody) = (envelope("ann@client.test", bob()), envelope("", bob()));
    for (head, is_report) in [
        ("Content-Type: multipart/report; report-type=delivery-status;\r\n boundary=x\r\n\r\n", true),
        (
            "A: b\r\nCONTENT-TYPE : Multipart/Report;\r\n\tboundary=x; Report-Type=\"disposition-notification\"\r\n",
            true,
        ),
        ("Content-Type:\r\n multipart/report; boundary=x\r\n\r\n", true),
        ("Content-Type: multipart/report; report-type=feedback-report\r\n\r\n", false),
        ("Content-Type: multipart/mixed\r\n\r\nContent-Type: multipart/report\r\n", false),
        ("Subject: x\r\n content-type: multipart/report\r\n\r\n", false),
        ("", false),
    ] {
        for kind in kinds() {
            let notice = Notice { head: head.as_bytes(), ..notice(kind, &from_ann, &reports) };
            assert_eq!(compose(&notice).is_none(), is_report, "{kind:?} {head}");
            assert_eq!(compose(&Notice { envelope: &from_nobody, ..notice }), None);
        }
    }
}

#[test]
fn the_notification_reads_as_the_rfcs_write_it() {
    let reply = Reply::new(550, Some(EnhancedStatus::new(5, 1, 1)), "No such user\nask our postmaster");
    let mut envelope = envelope(
        "ann@client.test",
        vec![
            recipient("rob@example.com", None, None),
            recipient("bob@example.com", everything(), Some("rfc822;bob+2Bwork@old.example")),
        ],
    );
    envelope.dsn = DsnRequest { ret: None, envid: Some(EnvelopeId::parse("QQ+20314").unwrap()) };
    let reports = [report(1, LastWord::Reply(&reply))];
    let expected = "\
        From: \"Mail Delivery System\" <MAILER-DAEMON@mx2.example.net>\r\n\
        To: <ann@client.test>\r\n\
        Subject: Your message could not be delivered\r\n\
        Date: Sun, 22 Nov 2026 16:53:20 +0000\r\n\
        Message-ID: <01JD9QK3T2E8V5W6X7Y8Z9ABCD.failed.1@mx2.example.net>\r\n\
        Auto-Submitted: auto-replied\r\n\
        MIME-Version: 1.0\r\n\
        Content-Type: multipart/report; report-type=\"delivery-status\";\r\n\
        \x20boundary=\"=_01JD9QK3T2E8V5W6X7Y8Z9ABCD.0_=\"\r\n\
        \r\n\
        \r\n--=_01JD9QK3T2E8V5W6X7Y8Z9ABCD.0_=\r\n\
        Content-Type: text/plain; charset=\"us-ascii\"\r\n\
        Content-Transfer-Encoding: 7bit\r\n\
        \r\n\
        This is the mail server mx2.example.net.\r\n\
        \r\n\
        On Sun, 22 Nov 2026 14:53:20 +0000 it took a message from you. It could not be\r\n\
        delivered to:\r\n\
        \r\n\
        <bob@example.com>\r\n\
        \x20   You had written to <bob+work@old.example>\r\n\
        \x20   The server mail.example.com said: 550 5.1.1 No such user ask our\r\n\
        \x20   postmaster\r\n\
        \r\n\
        It will not be tried again.\r\n\
        The header of the message is attached.\r\n\
        \r\n--=_01JD9QK3T2E8V5W6X7Y8Z9ABCD.0_=\r\n\
        Content-Type: message/delivery-status\r\n\
        Content-Transfer-Encoding: 7bit\r\n\
        \r\n\
        Original-Envelope-Id: QQ 314\r\n\
        Reporting-MTA: dns; mx2.example.net\r\n\
        Arrival-Date: Sun, 22 Nov 2026 14:53:20 +0000\r\n\
        \r\n\
        Original-Recipient: rfc822; bob+work@old.example\r\n\
        Final-Recipient: rfc822; bob@example.com\r\n\
        Action: failed\r\n\
        Status: 5.1.1\r\n\
        Remote-MTA: dns; mail.example.com\r\n\
        Diagnostic-Code: smtp; 550 5.1.1 No such user ask our postmaster\r\n\
        Last-Attempt-Date: Sun, 22 Nov 2026 15:53:20 +0000\r\n\
        \r\n--=_01JD9QK3T2E8V5W6X7Y8Z9ABCD.0_=\r\n\
        Content-Type: text/rfc822-headers\r\n\
        Content-Transfer-Encoding: 7bit\r\n\
        \r\n\
        From: ann@client.test\r\n\
        Subject: Thursday\r\n\
        \r\n--=_01JD9QK3T2E8V5W6X7Y8Z9ABCD.0_=--\r\n";
    let dsn = compose(&notice(Kind::Failed, &envelope, &reports)).unwrap();
    assert_eq!(String::from_utf8(dsn.content).unwrap(), expected);
    let to_ann =
        Recipient { route: RouteName::new("reports"), ..recipient("ann@client.test", Some(Notify::Never), None) };
    assert_eq!(dsn.envelope, Envelope::new(ReversePath::null(), vec![to_ann], BodyType::SevenBit));
}

#[test]
fn a_status_never_contradicts_its_action() {
    let reply = |code, status: Option<(u8, u16, u16)>| {
        Reply::new(code, status.map(|(class, subject, detail)| EnhancedStatus::new(class, subject, detail)), "")
    };
    for (said, expected) in [
        // Failed, expired, delayed, relayed.
        (None, ["5.0.0", "4.4.7", "4.0.0", "2.0.0"]),
        (Some(reply(550, Some((5, 1, 1)))), ["5.1.1", "5.1.1", "4.1.1", "2.0.0"]),
        (Some(reply(550, None)), ["5.0.0", "4.4.7", "4.0.0", "2.0.0"]),
        (Some(reply(550, Some((2, 1, 5)))), ["5.0.0", "4.4.7", "4.0.0", "2.0.0"]),
        (Some(reply(451, Some((4, 3, 0)))), ["4.3.0", "4.3.0", "4.3.0", "2.0.0"]),
        (Some(reply(451, None)), ["4.0.0", "4.4.7", "4.0.0", "2.0.0"]),
        (Some(reply(250, Some((2, 1, 5)))), ["5.0.0", "4.4.7", "4.0.0", "2.1.5"]),
    ] {
        let word = said.as_ref().map_or(LastWord::None, LastWord::Reply);
        assert_eq!(kinds().map(|kind| parts::status(kind, word).to_string()), expected, "{said:?}");
    }
}

#[test]
fn only_those_to_whom_it_happened_and_who_may_hear_are_told_of() {
    let list = vec![
        recipient("a@example.com", None, None),
        recipient("b@example.com", Some(Notify::Never), None),
        recipient("c@example.com", None, None),
    ];
    let envelope = envelope("ann@client.test", list);
    let reports = [1, 2, 77].map(|index| report(index, LastWord::Own("given up by ops")));
    let message = text(&notice(Kind::Failed, &envelope, &reports));
    assert!(message.contains("Diagnostic-Code: X-Restante; given up by ops\r\n"), "{message}");
    assert!(message.contains("c@example.com") && !message.contains("a@example.com"), "{message}");
    assert!(!message.contains("b@example.com"), "{message}");
    assert_eq!(compose(&notice(Kind::Failed, &envelope, reports.get(..1).unwrap())), None);
    assert_eq!(compose(&notice(Kind::Relayed, &envelope, &reports)), None);
    assert_eq!(compose(&notice(Kind::Failed, &envelope, &[])), None);
}

#[test]
fn the_same_report_is_the_same_message_and_another_is_not() {
    let envelope = envelope(
        "ann@client.test",
        vec![recipient("a@x.test", everything(), None), recipient("b@x.test", everything(), None)],
    );
    let reports = [report(0, LastWord::None), report(1, LastWord::None)];
    let message_id = |kind, reports| {
        let message = text(&notice(kind, &envelope, reports));
        assert_eq!(message, text(&notice(kind, &envelope, reports)));
        message.lines().find(|line| line.starts_with("Message-ID: ")).unwrap().to_owned()
    };
    let (first, second) = reports.split_at(1);
    let mut ids: Vec<String> =
        kinds().iter().flat_map(|kind| [message_id(*kind, first), message_id(*kind, second)]).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 8, "{ids:?}");
}

#[test]
fn the_whole_message_comes_back_only_where_it_was_asked_for_and_fits() {
    let content = b"From: ann@client.test\r\n\r\nHello\r\n".as_slice();
    let long = [content, &vec![b'\n'; CONTENT_BYTES_MAX]].concat();
    let reports = [report(0, LastWord::None)];
    let cases: [(Option<Ret>, &[u8], bool); 8] = [
        (Some(Ret::Full), content, true),
        (Some(Ret::Headers), content, false),
        (None, content, false),
        (Some(Ret::Full), &long, false),
        (Some(Ret::Full), b"From: a\r\n\r\nbare\nline\r\n", false),
        (Some(Ret::Full), b"From: a\r\n\r\nbare\rreturn\r\n", false),
        (Some(Ret::Full), b"From: a\r\n\r\n\0\r\n", false),
        (Some(Ret::Full), b"From: a\r\n", false),
    ];
    for (ret, content, comes_back) in cases {
        let mut envelope = envelope("ann@client.test", vec![recipient("b@x.test", everything(), None)]);
        envelope.dsn.ret = ret;
        for kind in kinds() {
            let message = text(&Notice { content: Some(content), ..notice(kind, &envelope, &reports) });
            let expected = comes_back && kind.is_final_failure();
            assert_eq!(message.contains("\r\nContent-Type: message/rfc822\r\n"), expected, "{kind:?} {message}");
            assert_eq!(message.contains("\r\nContent-Type: text/rfc822-headers\r\n"), !expected, "{kind:?}");
            assert_eq!(message.contains("The message is attached."), expected);
        }
    }
    let mut full = envelope("ann@client.test", vec![]);
    full.dsn.ret = Some(Ret::Full);
    assert!(returns_content(Kind::Failed, &full, CONTENT_BYTES_MAX));
    assert!(!returns_content(Kind::Failed, &full, CONTENT_BYTES_MAX + 1));
}

#[test]
fn a_long_header_is_cut_between_lines() {
    let envelope = envelope("ann@client.test", vec![recipient("b@x.test", None, None)]);
    let reports = [report(0, LastWord::None)];
    let head = "X-Long: 0123456789\r\n".repeat(HEADER_BYTES_MAX);
    let message = text(&Notice { head: head.as_bytes(), ..notice(Kind::Failed, &envelope, &reports) });
    let lines: Vec<&str> = message.lines().filter(|line| line.starts_with("X-L")).collect();
    assert_eq!(lines.len(), HEADER_BYTES_MAX / 20);
    assert!(lines.iter().all(|line| *line == "X-Long: 0123456789"));
}

#[test]
fn a_boundary_that_the_original_has_is_not_taken() {
    let mut envelope = envelope("ann@client.test", vec![recipient("b@x.test", None, None)]);
    envelope.dsn.ret = Some(Ret::Full);
    let reports = [report(0, LastWord::None)];
    let first = text(&notice(Kind::Failed, &envelope, &reports));
    let second = text(&Notice { content: Some(first.as_bytes()), ..notice(Kind::Failed, &envelope, &reports) });
    assert!(second.contains(&first), "{second}");
    assert_eq!(second.matches("\r\n--=_01JD9QK3T2E8V5W6X7Y8Z9ABCD.1_=").count(), 4, "{second}");
}

#[test]
fn addresses_in_other_scripts_are_told_in_utf8_only_to_who_has_one() {
    let original = |text: &str| recipient("j\u{f6}rg@b\u{fc}cher.test", None, Some(text));
    let reply = Reply::new(550, None, "unbekannt: j\u{f6}rg\u{202e}");
    let reports = [report(0, LastWord::Reply(&reply))];
    for (sender, orcpt, expected) in [
        ("ann@client.test", "utf-8;j\\x{F6}rg@a.test", "utf-8; j\\x{F6}rg@a.test"),
        ("ann@client.test", "rfc822;j+C3+B6rg@a.test", "utf-8; j\\x{F6}rg@a.test"),
        ("ann@client.test", "utf-8;a\\x{2B}b@a.test", "utf-8; a\\x{2B}b@a.test"),
        ("\u{e5}sa@client.test", "utf-8;j\\x{F6}rg@a.test", "utf-8; j\u{f6}rg@a.test"),
        ("\u{e5}sa@client.test", "rfc822;bob@a.test", "rfc822; bob@a.test"),
    ] {
        let utf8 = !sender.is_ascii();
        let mut envelope = envelope(sender, vec![original(orcpt)]);
        envelope.smtputf8 = true;
        let head = "Subject: Gr\u{fc}\u{df}e\r\n\r\n".as_bytes();
        let dsn = compose(&Notice { head, ..notice(Kind::Failed, &envelope, &reports) }).unwrap();
        let message = String::from_utf8(dsn.content).unwrap();
        assert!(message.contains(&format!("\r\nOriginal-Recipient: {expected}\r\n")), "{message}");
        let (path, kind, said) = match utf8 {
            true => ("j\u{f6}rg@b\u{fc}cher.test", "message/global-delivery-status", "j\u{f6}rg?"),
            false => ("j\\x{F6}rg@b\\x{FC}cher.test", "message/delivery-status", "j?rg?"),
        };
        assert!(message.contains(&format!("\r\nFinal-Recipient: utf-8; {path}\r\n")), "{message}");
        assert!(message.contains(&format!("\r\n<{path}>\r\n")), "{message}");
        assert!(message.contains(&format!("\r\nDiagnostic-Code: smtp; 550 unbekannt: {said}\r\n")), "{message}");
        assert!(message.contains(&format!("\r\nContent-Type: {kind}\r\n")), "{message}");
        assert!(message.contains("\r\nContent-Type: message/global-headers\r\n"), "{message}");
        assert_eq!((dsn.envelope.smtputf8, dsn.envelope.body), (utf8, BodyType::EightBitMime));
    }
}

#[test]
fn an_address_with_much_to_escape_is_still_a_final_recipient() {
    let label = "\u{fc}".repeat(30);
    let path = format!("{}@{label}.{label}.{label}.de", "+".repeat(64));
    let envelope = envelope("ann@client.test", vec![recipient(&path, None, None)]);
    let reports = [report(0, LastWord::None)];
    let message = text(&notice(Kind::Failed, &envelope, &reports));
    let domain = ForwardPath::parse_utf8(&path).unwrap().domain_ascii().unwrap().into_owned();
    let folded = format!("\r\nFinal-Recipient: rfc822;\r\n {}@{domain}\r\nAction: failed\r\n", "+".repeat(64));
    assert!(message.contains(&folded), "{message}");
    assert!(message.lines().all(|line| line.len() <= 998));
}

#[test]
fn more_recipients_than_one_notification_holds_are_told_of_in_several() {
    let list = (0..=RECIPIENTS_MAX).map(|nth| recipient(&format!("r{nth}@example.com"), None, None));
    let envelope = envelope("ann@client.test", list.collect());
    let reports: Vec<Report<'_>> = (0..).take(RECIPIENTS_MAX + 1).map(|nth| report(nth, LastWord::None)).collect();
    let told = |reports| text(&notice(Kind::Failed, &envelope, reports)).matches("\r\nFinal-Recipient: ").count();
    assert_eq!(told(&reports), RECIPIENTS_MAX);
    assert_eq!(reports.chunks(RECIPIENTS_MAX).map(told).collect::<Vec<_>>(), [RECIPIENTS_MAX, 1]);
}
