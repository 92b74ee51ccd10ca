//! Python's `email` reads what we write: another reading of the RFCs than ours and than mail-parser's. Needs python3, and says so.

use super::*;
use std::process::Command;

/// Prints what it finds in each file of `argv`, one line a finding.
const SCRIPT: &str = r#"
import email, email.policy, sys
from email.parser import HeaderParser

# Of any raw UTF-8 in a header Python says so much, even where its policy is RFC 6532's.
OF_UTF8 = ("NonASCIILocalPartDefect", "UndecodableBytesDefect")

def defects(part):
    found = [repr(d) for d in part.defects]
    for name, value in part.items():
        found += [f"{name}: {d!r}" for d in getattr(value, "defects", [])
                  if value.isascii() or type(d).__name__ not in OF_UTF8]
    return found

def blocks(part):
    kind = part.get_content_type()
    if kind == "message/delivery-status":
        return [block for block in part.get_payload() if block.items()]
    # Python knows no message/global-delivery-status: it takes the first group for a header and the rest for a body.
    inner = part.get_payload(0)
    text = inner.get_payload(decode=True).decode("utf-8")
    return [inner] + [HeaderParser(policy=email.policy.SMTPUTF8).parsestr(group) for group in text.split("\r\n\r\n")]

for path in sys.argv[1:]:
    with open(path, "rb") as file:
        message = email.message_from_bytes(file.read(), policy=email.policy.SMTPUTF8)
    say = lambda *words: print(*words)
    say("file", path.rsplit("/", 1)[1])
    say("type", message.get_content_type(), message.get_param("report-type"))
    say("to", message["To"])
    parts = message.get_payload()
    say("parts", *[part.get_content_type() for part in parts])
    for block in blocks(parts[1]):
        say("group", "; ".join(f"{name}={' '.join(str(value).split())}" for name, value in block.items()
                               if name not in ("Arrival-Date", "Last-Attempt-Date", "Will-Retry-Until")))
        if block["Will-Retry-Until"]:
            say("until", email.utils.parsedate_to_datetime(str(block["Will-Retry-Until"])).isoformat())
    for part in message.walk():
        for defect in defects(part):
            say("DEFECT", part.get_content_type(), defect)
"#;

fn read_by_python(messages: &[(String, Vec<u8>)]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let mut python = Command::new("python3");
    python.args(["-B", "-X", "utf8", "-c", SCRIPT]);
    for (name, bytes) in messages {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        python.arg(path);
    }
    let output =
        python.output().unwrap_or_else(|error| panic!("this test needs python3: apt install python3 ({error})"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn another_reader_finds_the_same_fields_and_no_defect() {
    let long = "we do not take mail from here, ".repeat(5);
    let reply = Reply::new(550, Some(EnhancedStatus::new(5, 7, 1)), &long);
    let reports = [report(0, LastWord::Reply(&reply)), report(1, LastWord::Own("connection refused"))];
    let mut messages = Vec::new();
    for (who, sender) in [("ascii", "ann@client.test"), ("utf8", "\u{e5}sa@client.test")] {
        let list = vec![
            recipient("\"b b\"@example.com", everything(), Some("rfc822;old+2Bbob@example.com")),
            recipient("j\u{f6}rg@example.com", everything(), None),
        ];
        let mut envelope = envelope(sender, list);
        envelope.smtputf8 = true;
        envelope.dsn = DsnRequest { ret: Some(Ret::Full), envid: Some(EnvelopeId::parse("q+2B1").unwrap()) };
        for kind in kinds() {
            let content = Some("Subject: Gr\u{fc}\u{df}e\r\n\r\nHello\r\n".as_bytes());
            let notice = Notice { content, ..notice(kind, &envelope, &reports) };
            messages.push((format!("{who}-{}", kind.word()), compose(&notice).unwrap().content));
        }
    }
    let found = read_by_python(&messages);
    let (mut expected, code) = (String::new(), format!("smtp; 550 5.7.1 {}", long.trim_end()));
    for (who, to, jorg, status_type) in [
        ("ascii", "ann@client.test", "j\\x{F6}rg@example.com", "message/delivery-status"),
        ("utf8", "\u{e5}sa@client.test", "j\u{f6}rg@example.com", "message/global-delivery-status"),
    ] {
        for (word, action, statuses, third, until) in [
            ("failed", "failed", ["5.7.1", "5.0.0"], "message/global", ""),
            ("expired", "failed", ["5.7.1", "4.4.7"], "message/global", ""),
            ("delayed", "delayed", ["4.7.1", "4.0.0"], "text/rfc822-headers", "until 2026-11-27T14:53:20+00:00\n"),
            ("relayed", "relayed", ["2.0.0", "2.0.0"], "text/rfc822-headers", ""),
        ] {
            let [first, second] = statuses;
            expected.push_str(&format!(
                "file {who}-{word}\ntype multipart/report delivery-status\nto {to}\n\
                 parts text/plain {status_type} {third}\n\
                 group Original-Envelope-Id=q+1; Reporting-MTA=dns; mx2.example.net\n\
                 group Original-Recipient=rfc822; old+bob@example.com; Final-Recipient=rfc822; \"b b\"@example.com; \
                 Action={action}; Status={first}; Remote-MTA=dns; mail.example.com; Diagnostic-Code={code}\n{until}\
                 group Final-Recipient=utf-8; {jorg}; Action={action}; Status={second}; \
                 Remote-MTA=dns; mail.example.com; Diagnostic-Code=X-Restante; connection refused\n{until}"
            ));
        }
    }
    assert_eq!(found, expected);
}
