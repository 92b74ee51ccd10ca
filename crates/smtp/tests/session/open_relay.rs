//! The ways to make a server relay that testers and spammers know. None may come through, and each gets a 550: a
//! refusal of this recipient for good, not a remark on syntax.

use crate::host::{Recorder, START, session, settings};
use restante_envelope::Timestamp;

const TRICKS: &[&str] = &[
    // Plainly foreign, and what looks like ours.
    "<u@foreign.test>",
    "<u@ours.test.foreign.test>",
    "<u@sub.ours.test>",
    "<u@xours.test>",
    "<u@ours>",
    "<u@OURS.TEST.>",
    "<u@foreign.test.>",
    "<u@.ours.test>",
    "<u@ours.test,foreign.test>",
    "<u@ours.test;foreign.test>",
    "<u@ours.test:25>",
    "<u@ours.test/foreign.test>",
    // No domain, no mailbox, nothing.
    "<>",
    "< >",
    "<u>",
    "<@>",
    "<@ours.test>",
    "<u@>",
    "<root>",
    "<\"\">",
    // The percent hack.
    "<u%foreign.test>",
    "<u%foreign.test@ours.test>",
    "<u%foreign.test%other.test@ours.test>",
    "<\"u%foreign.test\">",
    "<\"u%foreign.test\"@ours.test>",
    "<u%foreign.test@[192.0.2.1]>",
    "<u%foreign.test@>",
    // Bang paths.
    "<foreign.test!u>",
    "<foreign.test!u@ours.test>",
    "<ours.test!foreign.test!u@ours.test>",
    "<foreign.test!u@[192.0.2.1]>",
    "<ours.test!u@foreign.test>",
    // More than one @.
    "<u@foreign.test@ours.test>",
    "<u@ours.test@foreign.test>",
    "<\"u@foreign.test\">",
    "<\"u@foreign.test\"@ours.test>",
    "<\"u@foreign.test\"@[192.0.2.1]>",
    "<u@foreign.test@[192.0.2.1]>",
    "<\"u\\@foreign.test\"@ours.test>",
    "<\"<u@foreign.test>\"@ours.test>",
    "<u\\@foreign.test@ours.test>",
    // Source routes.
    "<@ours.test:u@foreign.test>",
    "<@ours.test,@second.test:u@foreign.test>",
    "<@ours.test,u@foreign.test>",
    "<@[192.0.2.1]:u@foreign.test>",
    "<@ours.test:u%foreign.test@ours.test>",
    "<@ours.test:@second.test:u@foreign.test>",
    "<@foreign.test:u>",
    "<ours.test:u@foreign.test>",
    // Address literals, ours or not, and hosts given as numbers.
    "<u@[192.0.2.1]>",
    "<u@[127.0.0.1]>",
    "<u@[IPv6:::1]>",
    "<u@[ours.test]>",
    "<u@[0x7f.1]>",
    "<u@127.0.0.1>",
    "<u@2130706433>",
    "<postmaster@[192.0.2.1]>",
    "<postmaster@foreign.test>",
    // Gateways, comments, lists.
    "<IMCEASMTP-u+40foreign+2Etest>",
    "<u@ours.test (foreign.test)>",
    "<u(@foreign.test)@ours.test>",
    "<u@ours.test,v@foreign.test>",
    "<u v@ours.test>",
    "<User:u@foreign.test;@ours.test>",
];

/// The replies to each line in turn.
fn replies(lines: &[String]) -> Vec<String> {
    let (mut session, mut host) = (session(settings()), Recorder::default());
    let mut heard = Vec::new();
    for line in lines {
        session.output().clear();
        session.receive(line.as_bytes(), Timestamp::from_unix_ms(START), &mut host);
        heard.push(String::from_utf8(session.output().clone()).unwrap());
    }
    heard
}

fn reply_to_rcpt(path: &str) -> String {
    let lines = ["EHLO c.test\r\n", "MAIL FROM:<u@ours.test>\r\n", &format!("RCPT TO:{path}\r\n"), "DATA\r\n"];
    let heard = replies(&lines.map(str::to_owned));
    if !heard[2].starts_with("250 ") {
        assert!(heard[3].starts_with("554 5.5.1 "), "{path}: no recipient, yet DATA gets {}", heard[3]);
    }
    heard[2].clone()
}

#[test]
fn no_trick_makes_us_relay() {
    for path in TRICKS {
        let reply = reply_to_rcpt(path);
        assert!(reply.starts_with("550 5."), "{path}: {reply}");
    }
}

#[test]
fn a_recipient_without_brackets_is_no_way_in() {
    for path in [
        "u@foreign.test",
        "\"u@foreign.test\"",
        "u@foreign.test <u@ours.test>",
        "<u@ours.test>u@foreign.test",
        "<u@ours.test> <u@foreign.test>",
        "<u@ours.test>,<u@foreign.test>",
        "<<u@foreign.test>@ours.test>",
        "<\"u@foreign.test>@ours.test",
        "<u@ours.test",
    ] {
        let reply = reply_to_rcpt(path);
        assert!(reply.starts_with("501 5.5.4 ") || reply.starts_with("555 5.5.4 "), "{path}: {reply}");
    }
}

#[test]
fn mail_for_us_is_not_taken_for_a_trick() {
    for path in
        ["<u@ours.test>", "<U.v+w@OURS.test>", "<\"a> b\"@second.test>", "<postmaster>", "<@foreign.test:u@ours.test>"]
    {
        let reply = reply_to_rcpt(path);
        assert!(reply.starts_with("250 2.1.5 "), "{path}: {reply}");
    }
}
