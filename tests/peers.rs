//! The senders of the world: swaks, Python's smtplib, and a real Postfix that relays into us. They refuse nothing we say, and we
//! refuse nothing they say.

use crate::harness::{Serve, Sink, eventually, queued_id, run, scratch, tool};

#[test]
fn swaks_is_content() {
    let directory = scratch();
    let primary = Sink::opened();
    let daemon = Serve::new(&directory.path().join("data"), primary.port).start();
    let variants: &[&[&str]] =
        &[&[], &["--pipeline"], &["--protocol", "SMTP"], &["--from", "<>"], &["--to", "a@example.test,b@example.test"]];
    for (n, variant) in variants.iter().enumerate() {
        let mut swaks = tool("swaks");
        swaks.args(["--server", "127.0.0.1", "--port", &daemon.smtp.port().to_string(), "--to", "box@example.test"]);
        swaks.args(["--from", "sender@example.net", "--header", "Subject: swaks", "--body", "from swaks\n.\nend\n"]);
        // First in the message, as the recording primary expects it.
        swaks.args([
            "--data",
            &format!("Message-ID: <swaks.{n}@example.net>\\nSubject: swaks\\n\\nfrom swaks\\n.\\n..\\nend\\n"),
        ]);
        let finished = run(swaks.args(*variant)).expect_code(0);
        let complaints: Vec<&str> =
            finished.out.lines().filter(|l| l.starts_with("<**") || l.starts_with("***")).collect();
        assert!(complaints.is_empty(), "{variant:?}: {complaints:?}");
    }
    let received = primary.wait_for(variants.len());
    for n in 0..variants.len() {
        assert!(received.iter().any(|r| r.message_id == format!("<swaks.{n}@example.net>")), "message {n} of swaks");
    }
}

#[test]
fn smtplib_is_content() {
    const SCRIPT: &str = r#"
import smtplib, sys
content = b"Message-ID: <smtplib.%d@example.net>\r\nSubject: smtplib\r\n\r\n.dot\r\n\xe4\xf6\xfc\r\n" + b"x" * 900 + b"\r\n"
with smtplib.SMTP("127.0.0.1", int(sys.argv[1]), timeout=60) as client:
    client.ehlo("client.example.net")
    assert client.has_extn("size") and client.has_extn("8bitmime") and client.has_extn("pipelining"), client.esmtp_features
    assert client.has_extn("enhancedstatuscodes"), client.esmtp_features
    for n in range(5):
        refused = client.sendmail("sender@example.net", ["box@example.test"], content % n, mail_options=["BODY=8BITMIME", "SIZE=1000"])
        assert refused == {}, refused
    refused = client.sendmail("sender@example.net", ["box@example.test", "user@other.test"], content % 5)
    assert list(refused) == ["user@other.test"] and refused["user@other.test"][0] == 550, refused
    assert client.noop()[0] == 250 and client.rset()[0] == 250 and client.verify("x")[0] in (252, 502, 550)
    code, text = client.docmd("NONSENSE")
    assert code == 500 or code == 502, (code, text)
    code, text = client.quit()
    assert code == 221, (code, text)
"#;
    let directory = scratch();
    let primary = Sink::opened();
    let daemon = Serve::new(&directory.path().join("data"), primary.port).start();
    run(tool("python3").args(["-c", SCRIPT, &daemon.smtp.port().to_string()])).expect_code(0);
    primary.wait_for(6);
    daemon.wait_until_empty();
    assert_eq!(primary.count(), 6);
}

#[test]
fn pipelined_commands_are_answered_in_order() {
    let directory = scratch();
    let primary = Sink::opened();
    let daemon = Serve::new(&directory.path().join("data"), primary.port).start();
    let mut client = crate::harness::Client::ehlo(daemon.smtp);
    let message = "Message-ID: <pipe@example.net>\r\n\r\nx\r\n.\r\n";
    client
        .raw(b"MAIL FROM:<a@example.net>\r\nRCPT TO:<no@other.test>\r\nRCPT TO:<box@example.test>\r\nDATA\r\n")
        .unwrap();
    let codes: Vec<u16> = (0..4).map(|_| client.reply().unwrap().code).collect();
    assert_eq!(codes, [250, 550, 250, 354]);
    client.raw(format!("{message}MAIL FROM:<>\r\nRSET\r\nQUIT\r\n").as_bytes()).unwrap();
    queued_id(&client.reply().unwrap());
    let codes: Vec<u16> = (0..3).map(|_| client.reply().unwrap().code).collect();
    assert_eq!(codes, [250, 250, 221]);
    assert_eq!(primary.wait_for(1)[0].to, ["box@example.test"]);
}

mod needs_root {
    use super::*;
    use crate::harness::load::{Load, Plan};
    use crate::harness::postfix::{Postfix, Role};
    use crate::harness::{Client, Ledger, Message, Reply};
    use std::collections::BTreeMap;

    #[test]
    fn postfix_relays_into_us_without_complaint() {
        let directory = scratch();
        let primary = Sink::opened();
        let daemon = Serve::new(&directory.path().join("data"), primary.port).start();
        let postfix = Postfix::start(Role::Sender(daemon.smtp.port()));
        let id_of = |reply: &Reply| reply.text().rsplit(' ').next().unwrap().to_owned();
        let plan = Plan { messages: 50, sessions: 5, least_bytes: 500, most_bytes: 300_000, id_of };
        let ledger = Load::start(plan, postfix.smtp, Ledger::create(&directory.path().join("ledger"))).finish().close();
        let mut client = Client::ehlo(postfix.smtp);
        let null = Message::new("null", 1, 500);
        assert_eq!(client.send("", &["box@example.test", "two@example.test"], &null.content).unwrap().code, 250);
        eventually("all mail of Postfix at the primary", || {
            let arrived: BTreeMap<_, _> = primary.received().into_iter().map(|r| (r.message_id, r.sha256)).collect();
            let all = ledger.values().all(|e| arrived.get(&e.message_id) == Some(&e.sha256));
            (all && arrived.contains_key(&null.message_id)).then_some(())
        });
        let log = postfix.log();
        // Of the instance's own start, one warning is allowed: it is not about us.
        let complaints: Vec<&str> = log
            .lines()
            .filter(|l| l.contains("/smtp[") && !(l.contains("status=sent") || l.contains("statistics:")))
            .collect();
        assert!(complaints.is_empty(), "Postfix complained: {complaints:#?}");
        assert_eq!(log.matches("status=sent (250 2.0.0 ").count(), 52, "{log}");
    }
}
