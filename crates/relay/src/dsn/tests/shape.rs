//! Whatever strangers wrote, a notification has the parts, the fields and the lines that it should have, and no others.

use super::*;
use mail_parser::{MessageParser, MimeHeaders};
use proptest::collection::vec;
use proptest::prelude::*;

/// What is drawn for a notification: all that comes from outside.
#[derive(Debug, Clone)]
struct Strange {
    sender: String,
    hostname: String,
    remote: Option<String>,
    envid: Option<String>,
    recipients: Vec<(String, Option<String>, Said)>,
    head: Vec<u8>,
    content: Option<Vec<u8>>,
    smtputf8: bool,
}

#[derive(Debug, Clone)]
enum Said {
    Reply(u16, String),
    Own(String),
    Nothing,
}

fn strange() -> impl Strategy<Value = Strange> {
    let text = || "(?s).{0,200}|[a-z]{990,1200}|(\r\n[A-Z][a-z]{1,5}: [a-z\u{e9}]{1,9}){1,9}|\\PC{0,60}";
    let said = prop_oneof![
        (200u16..600, text()).prop_map(|(code, text)| Said::Reply(code, text)),
        text().prop_map(Said::Own),
        Just(Said::Nothing),
    ];
    let address = "[a-z.+!#]{0,20}|\"[ -!#-\\[\\]-~]{0,40}\"|[\u{a1}-\u{7ff}]{0,31}|\"[ a\u{e9}]{1,9}\"";
    let path = (address, "x\\.test|b\u{fc}cher\\.test|[a-z]{1,60}(\\.[a-z]{1,60}){1,3}")
        .prop_map(|(local, domain)| format!("{local}@{domain}"))
        .prop_filter("no path", |path| ForwardPath::parse_utf8(path).is_ok());
    let orcpt = "(rfc822|utf-8|x400|UTF-8);\\PC{1,60}|rfc822; {1,160}|utf-8;[\u{100}-\u{7ff}]{200,247}";
    let recipients = vec((path.clone(), proptest::option::of(orcpt), said), 1..4);
    let line = "(Received|Subject|X-[a-z]{1,5}): [ -~\u{e9}]{0,60}\r\n|[ -~]{990,998}\r\n|\r\n|--[=_.0-9A-Z]{2,40}\r\n";
    let lines = || vec(line, 0..8).prop_map(|lines| lines.concat().into_bytes());
    let bytes = || {
        prop_oneof![
            lines(),
            vec(any::<u8>(), 0..300),
            vec(any::<u8>(), 0..3),
            "(?s).{0,200}".prop_map(String::into_bytes)
        ]
    };
    let host = || "[a-z]{1,60}\\.test|(?s).{0,40}|[a-z]{300}";
    (
        path,
        host(),
        proptest::option::of(host()),
        proptest::option::of("[ -~]{1,100}| {1,33}"),
        recipients,
        bytes(),
        proptest::option::of(bytes()),
        any::<bool>(),
    )
        .prop_map(|(sender, hostname, remote, envid, recipients, head, content, smtputf8)| Strange {
            sender,
            hostname,
            remote,
            envid,
            recipients,
            head,
            content,
            smtputf8,
        })
}

/// The notification of all that is strange, and of how many recipients it must tell.
fn of(strange: &Strange, kind: Kind) -> (Option<Dsn>, Envelope) {
    let original = |text: &Option<String>| text.as_ref().and_then(|text| OriginalRecipient::from_text(text).ok());
    let recipients = strange.recipients.iter().map(|(path, orcpt, _)| Recipient {
        dsn: RecipientDsn { notify: everything(), original: original(orcpt) },
        ..recipient(path, None, None)
    });
    let mut envelope = envelope(&strange.sender, recipients.collect());
    envelope.smtputf8 = strange.smtputf8;
    envelope.dsn.ret = Some(Ret::Full);
    envelope.dsn.envid = strange.envid.as_ref().and_then(|text| EnvelopeId::from_text(text).ok());
    let replies: Vec<Option<Reply>> = strange
        .recipients
        .iter()
        .map(|(_, _, said)| match said {
            Said::Reply(code, text) => {
                let (enhanced, text) = EnhancedStatus::split(text);
                Some(Reply::new(*code, enhanced, text))
            }
            _ => None,
        })
        .collect();
    let reports: Vec<Report<'_>> = (0..)
        .zip(strange.recipients.iter().zip(&replies))
        .map(|(index, ((_, _, said), reply))| {
            let word = match (said, reply) {
                (Said::Own(text), _) => LastWord::Own(text),
                (_, Some(reply)) => LastWord::Reply(reply),
                _ => LastWord::None,
            };
            Report { remote: strange.remote.as_deref(), ..report(index, word) }
        })
        .collect();
    let (hostname, head, content) = (strange.hostname.as_str(), strange.head.as_slice(), strange.content.as_deref());
    let dsn = compose(&Notice { hostname, head, content, ..notice(kind, &envelope, &reports) });
    (dsn, envelope)
}

/// Names and values of a group of fields, unfolded.
fn fields(group: &str) -> Vec<(String, String)> {
    let lines = group.replace("\r\n ", " ");
    lines
        .split_terminator("\r\n")
        .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("no field: {line:?}")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// RFC 3464 section 2.3, in the order of its grammar.
const OF_A_RECIPIENT: [&str; 8] = [
    "Original-Recipient",
    "Final-Recipient",
    "Action",
    "Status",
    "Remote-MTA",
    "Diagnostic-Code",
    "Last-Attempt-Date",
    "Will-Retry-Until",
];

/// Checks the fields for machines; returns nothing, fails like an assertion.
fn check_fields(status: &str, strange: &Strange, kind: Kind, envelope: &Envelope) {
    let mut groups = status.split("\r\n\r\n");
    let message = fields(&format!("{}\r\n", groups.next().unwrap()));
    // Encoded it may have been too long.
    let envid = strange.envid.as_ref().filter(|_| envelope.dsn.envid.is_some());
    let envid = envid.map(|text| ("Original-Envelope-Id".to_owned(), text.clone()));
    let names: Vec<&str> = message.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.ends_with(&["Reporting-MTA", "Arrival-Date"]) && names.len() == 2 + usize::from(envid.is_some()));
    assert_eq!(message.first().filter(|(name, _)| name == "Original-Envelope-Id"), envid.as_ref());
    let groups: Vec<Vec<(String, String)>> =
        groups.map(|group| fields(&format!("{}\r\n", group.trim_end_matches("\r\n")))).collect();
    assert_eq!(groups.len(), strange.recipients.len(), "{status}");
    for (group, recipient) in groups.iter().zip(&envelope.recipients) {
        let has = |name: &str| group.iter().filter(|(known, _)| known == name).count();
        let mut order = OF_A_RECIPIENT.iter();
        assert!(group.iter().all(|(name, _)| order.any(|known| known == name)), "{status}");
        assert_eq!((has("Final-Recipient"), has("Action"), has("Status")), (1, 1, 1), "{status}");
        assert_eq!(has("Remote-MTA"), usize::from(strange.remote.is_some()));
        assert_eq!(has("Will-Retry-Until"), usize::from(matches!(kind, Kind::Delayed { .. })));
        let value = |name: &str| group.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let path = recipient.forward_path.as_str();
        if path.is_ascii() {
            assert_eq!(value("Final-Recipient"), Some(format!("rfc822; {path}").as_str()));
        }
        assert_eq!(value("Action"), Some(kind.action()));
        let class = value("Status").and_then(|status| status.chars().next()).unwrap();
        let expected = match kind {
            Kind::Failed | Kind::Expired => "45",
            Kind::Delayed { .. } => "4",
            Kind::Relayed => "2",
        };
        assert!(expected.contains(class), "{status}");
    }
}

proptest! {
    #[test]
    fn nothing_a_stranger_wrote_alters_the_shape(strange in strange(), nth in 0usize..4) {
        let kind = kinds()[nth];
        let (dsn, envelope) = of(&strange, kind);
        let dsn = match dsn {
            Some(dsn) => dsn,
            None => {
                prop_assert!(parts::is_report(&strange.head));
                return Ok(());
            }
        };
        let content = dsn.content.as_slice();
        // Lines.
        prop_assert!(content.ends_with(b"\r\n") && parts::is_in_lines(content));
        prop_assert_eq!(content.is_ascii(), dsn.envelope.body == BodyType::SevenBit);
        prop_assert_eq!(dsn.envelope.smtputf8, !strange.sender.is_ascii());
        prop_assert!(dsn.envelope.reverse_path.is_null() && dsn.envelope.recipients.len() == 1);
        // The header.
        let message = MessageParser::new().parse(content).unwrap();
        let names: Vec<&str> = message.headers_raw().map(|(name, _)| name).collect();
        let known = ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"];
        prop_assert_eq!(names, known);
        let header = content.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        prop_assert!(dsn.envelope.smtputf8 || content[..header].is_ascii());
// Quotes inside <> are beyond mail-parser.
        if !strange.sender.contains('"') {
            let to = message.to().unwrap().first().unwrap();
            prop_assert_eq!(to.address(), Some(strange.sender.as_str()));
        }
        let content_type = message.content_type().unwrap();
        prop_assert_eq!(content_type.attribute("report-type"), Some("delivery-status"));
        // The parts.
        let outer = message.parts.first().unwrap().sub_parts().unwrap();
        prop_assert_eq!(outer.len(), 3);
        let part = |nth: usize| &message.parts[usize::try_from(outer[nth]).unwrap()];
        let raw = |nth: usize| {
            let part = part(nth);
            &content[usize::try_from(part.raw_body_offset()).unwrap()..usize::try_from(part.raw_end_offset()).unwrap()]
        };
        let kind_of = |nth: usize| {
            let kind = part(nth).content_type().unwrap();
            format!("{}/{}", kind.ctype(), kind.subtype().unwrap())
        };
        let utf8 = dsn.envelope.smtputf8;
        prop_assert_eq!(kind_of(0), "text/plain");
        prop_assert_eq!(kind_of(1), if utf8 { "message/global-delivery-status" } else { "message/delivery-status" });
        let text = std::str::from_utf8(raw(0)).unwrap();
        let status = std::str::from_utf8(raw(1)).unwrap();
        for words in [text, status] {
            prop_assert!(utf8 || words.is_ascii());
            prop_assert!(words.chars().all(|c| matches!(c, '\r' | '\n') || restante_envelope::text::is_harmless(c)));
        }
        for path in envelope.recipients.iter().map(|recipient| recipient.forward_path.as_str()) {
            let shown = format!("\r\n<{path}>\r\n");
            prop_assert!(text.contains(&shown) || !(utf8 || path.is_ascii()), "{}", text);
        }
        check_fields(status, &strange, kind, &envelope);
        let whole = strange.content.as_ref().filter(|content| kind.is_final_failure() && parts::is_message(content));
        match whole {
            Some(whole) => {
                prop_assert_eq!(raw(2), whole.as_slice());
                prop_assert!(matches!(kind_of(2).as_str(), "message/rfc822" | "message/global"));
            }
            None => prop_assert!(matches!(kind_of(2).as_str(), "text/rfc822-headers" | "message/global-headers")),
        }
    }
}
