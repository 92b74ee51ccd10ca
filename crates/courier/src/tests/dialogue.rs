//! Transactions: what each reply, and each silence, means for each recipient.

use super::*;
use crate::Stage;
use std::time::Duration;

const SOON: Duration = Duration::from_millis(30);
const TWO: [&str; 2] = ["a@example.test", "b@example.test"];

/// Runs one transaction; what was told, and whether the connection can be used again.
async fn run(script: Script, recipients: &[&str]) -> (Vec<String>, bool) {
    let server = script.start().await;
    let mut connection = connected(&server).await;
    let results = deliver(&mut connection, recipients).await;
    (told(&results), connection.is_usable())
}

#[tokio::test]
async fn two_transactions_share_a_connection() {
    let go = "250 ok\r\n250 ok\r\n354 go\r\n";
    let script = pipelining()
        .pipelined(1, go)
        .content()
        .send("250 2.0.0 ok: queued as 1\r\n")
        .pipelined(1, go)
        .content()
        .send("250 2.0.0 ok: queued as 2\r\n")
        .expect("QUIT")
        .send("221 bye\r\n");
    let server = script.start().await;
    let mut connection = connected(&server).await;
    assert_eq!(told(&deliver(&mut connection, &TWO[..1]).await), ["250 2.0.0 ok: queued as 1"]);
    assert!(connection.is_usable() && !connection.peer_closed());
    assert_eq!(told(&deliver(&mut connection, &TWO[..1]).await), ["250 2.0.0 ok: queued as 2"]);
    connection.quit().await;
    let seen = server.finish().await;
    assert_eq!(seen.messages, vec![[HEADER, CONTENT].concat(); 2]);
    let size = HEADER.len() + CONTENT.len();
    assert_eq!(seen.commands[1], format!("MAIL FROM:<s@example.test> SIZE={size}\r\n"));
}

#[tokio::test]
async fn parameters_are_only_sent_where_they_were_offered() {
    let mut recipient = to("\"a b\"@example.test");
    recipient.dsn.notify = Notify::parse("SUCCESS,DELAY").ok();
    recipient.dsn.original = OriginalRecipient::parse("rfc822;x+2By@z").ok();
    let dsn = DsnRequest { ret: Some(Ret::Headers), envid: EnvelopeId::parse("QQ").ok() };
    let reverse_path = ReversePath::null();
    let plain = Mail {
        reverse_path: &reverse_path,
        recipients: &[&recipient],
        body: BodyType::SevenBit,
        smtputf8: false,
        dsn: &dsn,
        trace_header: b"",
        size_bytes: 3,
    };
    let rcpt = "RCPT TO:<\"a b\"@example.test>";
    let asked = format!("{rcpt} NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x+2By@z\r\n");
    let rcpt = format!("{rcpt}\r\n");
    let eight_bit = Mail { body: BodyType::EightBitMime, ..plain };
    let utf8 = Mail { smtputf8: true, ..eight_bit };
    for (mail, ehlo, command, rcpt) in [
        (plain, "250 x\r\n", "MAIL FROM:<>\r\n", &rcpt),
        (eight_bit, "250-x\r\n250-8bitmime\r\n250 SIZE\r\n", "MAIL FROM:<> SIZE=3 BODY=8BITMIME\r\n", &rcpt),
        (utf8, "250-x\r\n250-SMTPUTF8\r\n250 8BITMIME\r\n", "MAIL FROM:<> BODY=8BITMIME SMTPUTF8\r\n", &rcpt),
        (plain, "250-x\r\n250 DSN\r\n", "MAIL FROM:<> RET=HDRS ENVID=QQ\r\n", &asked),
    ] {
        let script = Script::new()
            .send("220 hi\r\n")
            .expect("EHLO")
            .send(ehlo)
            .expect_alone(command)
            .send("250 ok\r\n")
            .expect_alone(rcpt)
            .send("250 ok\r\n")
            .expect_alone("DATA\r\n")
            .send("354 go\r\n")
            .content()
            .send("250 ok\r\n");
        let server = script.start().await;
        let mut connection = connected(&server).await;
        assert_eq!(told(&connection.deliver(&mail, &mut InMemory(b"\xe9\r\n"), None).await.results), ["250 ok"]);
        connection.quit().await;
    }
}

#[tokio::test]
async fn what_a_server_cannot_take_unaltered_is_not_sent_and_the_connection_goes_on() {
    let script = Script::new()
        .send("220 hi\r\n")
        .expect("EHLO")
        .send("250-x\r\n250 PIPELINING\r\n")
        .pipelined(1, "250 ok\r\n250 ok\r\n354 go\r\n")
        .content()
        .send("250 taken\r\n");
    let server = script.start().await;
    let mut connection = connected(&server).await;
    let (recipient, reverse_path) = (to("a@example.test"), ReversePath::parse("s@example.test").unwrap());
    let plain = Mail {
        reverse_path: &reverse_path,
        recipients: &[&recipient],
        body: BodyType::SevenBit,
        smtputf8: false,
        dsn: &PLAIN,
        trace_header: b"",
        size_bytes: 3,
    };
    let eight_bit = Mail { body: BodyType::EightBitMime, ..plain };
    let utf8 = Mail { smtputf8: true, ..plain };
    for (mail, code) in [(eight_bit, "5.6.3 "), (utf8, "5.6.7 ")] {
        let results = connection.deliver(&mail, &mut InMemory(b"\xe9\r\n"), None).await.results;
        assert!(matches!(&results[..], [RecipientResult::NotOffered { why }] if why.starts_with(code)), "{results:?}");
        assert!(connection.is_usable());
    }
    // Nor are its commands sent ahead.
    let results = connection.deliver(&plain, &mut InMemory(b"a\r\n"), Some(&utf8)).await.results;
    assert_eq!((told(&results), connection.is_promised()), (vec!["250 taken".to_owned()], false));
    connection.quit().await;
}

#[tokio::test]
async fn one_refused_recipient_does_not_refuse_the_other() {
    let replies = "250 ok\r\n550-5.1.1 no\r\n550 5.1.1 such user\r\n251 will forward\r\n354 go\r\n";
    let (told, usable) = run(pipelining().pipelined(2, replies).content().send("250 taken\r\n"), &TWO).await;
    assert_eq!(told, ["550 5.1.1 no such user", "250 taken"]);
    assert!(usable);

    let script = plain()
        .expect_alone("MAIL")
        .send("250 ok\r\n")
        .expect_alone("RCPT TO:<a@")
        .send("250 ok\r\n")
        .expect_alone("RCPT TO:<b@")
        .send("452 4.5.3 too many\r\n")
        .expect_alone("DATA")
        .send("354 go\r\n")
        .content()
        .send("451 4.3.0 try later\r\n");
    assert_eq!(run(script, &TWO).await, (vec!["451 4.3.0 try later".into(), "452 4.5.3 too many".into()], true));
}

#[tokio::test]
async fn a_refused_mail_leaves_no_reply_behind_for_the_next_transaction() {
    for data in ["503 no mail\r\n", "354 go\r\n"] {
        let mut script = pipelining().pipelined(2, &format!("452 4.3.1 full\r\n503 x\r\n503 x\r\n{data}"));
        if data.starts_with("354") {
            script = script.content().send("554 no valid recipients\r\n");
        }
        let script = script.pipelined(1, "250 ok\r\n250 ok\r\n354 go\r\n").content().send("250 taken\r\n");
        let server = script.start().await;
        let mut connection = connected(&server).await;
        assert_eq!(told(&deliver(&mut connection, &TWO).await), ["452 4.3.1 full"; 2]);
        assert_eq!(told(&deliver(&mut connection, &TWO[..1]).await), ["250 taken"]);
    }
    let script = plain().expect_alone("MAIL").send("550 5.7.1 no\r\n").expect("MAIL").send("550 5.7.1 no\r\n");
    let server = script.start().await;
    let mut connection = connected(&server).await;
    for _ in 0..2 {
        assert_eq!(told(&deliver(&mut connection, &TWO).await), ["550 5.7.1 no"; 2]);
    }
}

#[tokio::test]
async fn a_message_that_nobody_may_get_is_not_delivered_to_anybody() {
    // RFC 2920 section 3.1: the server agreed to DATA without a recipient. It gets an empty message.
    let replies = "250 ok\r\n550 a\r\n550 b\r\n354 go\r\n";
    let server = pipelining().pipelined(2, replies).content().send("250 thanks for nothing\r\n").start().await;
    let mut connection = connected(&server).await;
    assert_eq!(told(&deliver(&mut connection, &TWO).await), ["550 a", "550 b"]);
    assert!(connection.is_usable());
    drop(connection);
    let seen = server.finish().await;
    assert_eq!((seen.messages, seen.rest), (vec![vec![]], vec![]));

    let script = plain().expect("MAIL").send("250 ok\r\n").expect("RCPT").send("550 a\r\n").expect("RCPT");
    let script = script.send("550 b\r\n").expect_alone("RSET\r\n").send("250 ok\r\n");
    assert_eq!(run(script, &TWO).await, (vec!["550 a".into(), "550 b".into()], true));
}

#[tokio::test]
async fn a_refused_data_is_the_answer_of_the_accepted_recipients_only() {
    for code in ["451", "554"] {
        let script = pipelining().pipelined(2, &format!("250 ok\r\n250 ok\r\n550 b\r\n{code} no data\r\n"));
        let (told, usable) = run(script.expect_alone("RSET\r\n").send("250 ok\r\n"), &TWO).await;
        assert_eq!(told, [format!("{code} no data"), "550 b".into()]);
        assert!(usable);
    }
    let script = pipelining().pipelined(1, "250 ok\r\n250 ok\r\n554 no\r\n").expect("RSET").send("500 what?\r\n");
    assert_eq!(run(script, &TWO[..1]).await, (vec!["554 no".into()], false));
}

#[tokio::test]
async fn more_recipients_than_a_group_holds_are_all_asked() {
    let recipients: Vec<String> = (0..250).map(|n| format!("r{n}@example.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let rcpt = |script: Script, n| (0..n).fold(script, |script, _| script.expect("RCPT TO:<r"));
    let script = rcpt(pipelining().expect("MAIL"), 101).send("250 ok\r\n".repeat(102));
    let script = rcpt(script, 102).send("250 ok\r\n".repeat(101)).send("452 4.5.3 enough\r\n");
    let script = rcpt(script, 47).expect("DATA").send("452 4.5.3 enough\r\n".repeat(47)).send("354 go\r\n");
    let (told, usable) = run(script.content().send("250 taken\r\n"), &recipients).await;
    assert!(told[..202].iter().all(|t| t == "250 taken"));
    assert!(told[202..].iter().all(|t| t == "452 4.5.3 enough"));
    assert_eq!((told.len(), usable), (250, true));
}

#[tokio::test]
async fn a_421_answers_all_that_is_open_and_ends_the_connection() {
    let bye = "421 4.3.2 shutting down";
    let at_mail = plain().expect("MAIL").send(format!("{bye}\r\n")).close();
    assert_eq!(run(at_mail, &TWO).await, (vec![bye.into(); 2], false));
    let idle = plain().send(format!("{bye}\r\n")).close();
    assert_eq!(run(idle, &TWO).await, (vec![bye.into(); 2], false));
    let at_rcpt = pipelining().pipelined(2, &format!("250 ok\r\n550 a\r\n{bye}\r\n")).close();
    assert_eq!(run(at_rcpt, &TWO).await, (vec!["550 a".into(), bye.into()], false));
    let at_data = pipelining().pipelined(2, &format!("250 ok\r\n250 ok\r\n550 b\r\n{bye}\r\n")).close();
    assert_eq!(run(at_data, &TWO).await, (vec![bye.into(), "550 b".into()], false));
    let script = pipelining().pipelined(2, "250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n");
    assert_eq!(run(script.content().send(format!("{bye}\r\n")), &TWO).await, (vec![bye.into(); 2], false));
}

#[tokio::test]
async fn a_connection_lost_before_the_content_is_lost_and_not_in_doubt() {
    let server = pipelining().pipelined(2, "250 ok\r\n550 a\r\n").close().start().await;
    let mut connection = connected(&server).await;
    let results = deliver(&mut connection, &TWO).await;
    assert!(matches!(&results[1], RecipientResult::Lost { stage: Stage::Rcpt, .. }));
    let lost = "lost: connection closed by the server while waiting for the reply to RCPT";
    assert_eq!(told(&results), ["550 a", lost]);
    assert!(!connection.is_usable());
    let results = deliver(&mut connection, &TWO).await;
    assert!(matches!(&results[..], [RecipientResult::Lost { .. }, RecipientResult::Lost { .. }]));
}

#[tokio::test]
async fn silence_in_a_transaction_ends_at_each_stage() {
    let hasty =
        Settings { mail_timeout: SOON, rcpt_timeout: SOON, data_timeout: SOON, final_dot_timeout: SOON, ..settings() };
    let at_mail = plain().expect("MAIL");
    let at_rcpt = plain().expect("MAIL").send("250 ok\r\n").expect("RCPT");
    let at_data = pipelining().pipelined(1, "250 ok\r\n250 ok\r\n");
    let at_dot = pipelining().pipelined(1, "250 ok\r\n250 ok\r\n354 go\r\n").content();
    for (script, expected) in [
        (at_mail, "lost: timed out after 30ms while waiting for the reply to MAIL"),
        (at_rcpt, "lost: timed out after 30ms while waiting for the reply to RCPT"),
        (at_data, "lost: timed out after 30ms while waiting for the reply to DATA"),
        (at_dot, "in doubt: timed out after 30ms while waiting for the reply to the final dot"),
    ] {
        let server = script.stall().start().await;
        let mut connection = connect(server.target(), &hasty).await.unwrap();
        assert_eq!(told(&deliver(&mut connection, &TWO[..1]).await), [expected]);
        assert!(!connection.is_usable());
    }
}

#[tokio::test]
async fn a_delivery_that_was_dropped_half_way_cannot_be_mistaken_for_a_clean_connection() {
    let server = plain().expect("MAIL").stall().start().await;
    let mut connection = connected(&server).await;
    assert!(tokio::time::timeout(SOON, deliver(&mut connection, &TWO)).await.is_err());
    assert!(!connection.is_usable());
}

#[tokio::test]
async fn replies_that_nobody_asked_for_are_not_taken_for_the_next_ones() {
    // Before the content: nothing is sent.
    let script = pipelining().pipelined(1, "250 ok\r\n250 ok\r\n354 go\r\n250 taken\r\n");
    let (told, usable) = run(script, &TWO[..1]).await;
    assert_eq!(told, ["lost: the server said 250 too early while sending the content"]);
    assert!(!usable);
    // Between two commands: the second is not sent.
    let (told, usable) = run(plain().expect("MAIL").send("250 ok\r\n250 ok\r\n"), &TWO[..1]).await;
    let why = "lost: the server sent something nobody asked for while waiting for the reply to RCPT";
    assert_eq!((told, usable), (vec![why.into()], false));
    // Behind the reply to the final dot: that one stands, and is the last.
    let script = pipelining().pipelined(1, "250 ok\r\n250 ok\r\n354 go\r\n").content();
    let (told, usable) = run(script.send("250 taken\r\n250 ok\r\n"), &TWO[..1]).await;
    assert_eq!((told, usable), (vec!["250 taken".into()], false));
}

#[tokio::test]
async fn a_reply_that_makes_no_sense_there_is_never_taken_for_success() {
    for replies in
        ["354 go\r\n250 ok\r\n250 ok\r\n", "250 ok\r\n354 go\r\n250 ok\r\n", "250 ok\r\n250 ok\r\n250 ok\r\n"]
    {
        let (told, usable) = run(pipelining().pipelined(1, replies), &TWO[..1]).await;
        assert!(told[0].starts_with("lost: the server said "), "{told:?}");
        assert!(!usable);
    }
    let script = pipelining().pipelined(1, "250 ok\r\n250 ok\r\n354 go\r\n").content().send("354 more\r\n");
    let (told, usable) = run(script, &TWO[..1]).await;
    assert_eq!(told, ["in doubt: the server said 354 more while waiting for the reply to the final dot"]);
    assert!(!usable);
}

#[tokio::test]
async fn replies_that_lettre_cannot_read_still_decide() {
    let long = format!("550 {}", "x".repeat(1_500));
    for (raw, expected) in [
        (&b"571 5.7.1 go away"[..], "571 5.7.1 go away"),
        (b"550 caf\xe9", "550 caf\u{fffd}"),
        (b"550", "550"),
        (long.as_bytes(), &long),
    ] {
        let script = plain().expect("MAIL").send([raw, b"\r\n"].concat());
        assert_eq!(run(script, &TWO[..1]).await, (vec![expected.into()], true));
    }
}

#[tokio::test]
async fn endless_replies_do_not_fill_the_memory() {
    for endless in ["550-x\r\n".repeat(200), "5".repeat(5_000), format!("550 {}\r\n", "x".repeat(4_096))] {
        let (told, usable) = run(plain().expect("MAIL").send(endless), &TWO[..1]).await;
        assert!(told[0].starts_with("lost: the server sent a reply "), "{told:?}");
        assert!(!usable);
    }
}

#[tokio::test]
async fn a_flood_of_reply_lines_ends_with_a_reason_at_every_stage() {
    let lines = "the server sent a reply of more than 100 lines";
    for (bytes, why) in
        [("250-x\r\n", lines), ("250-\r\n", lines), ("x", "the server sent a reply line of more than 4096 bytes")]
    {
        let go = "250 ok\r\n250 ok\r\n354 go\r\n";
        for (script, expected) in [
            (
                plain().expect("MAIL").flood(&bytes.repeat(10_000)),
                format!("lost: {why} while waiting for the reply to MAIL"),
            ),
            (
                pipelining().pipelined(1, go).content().flood(bytes),
                format!("in doubt: {why} while waiting for the reply to the final dot"),
            ),
        ] {
            let server = script.start().await;
            let mut connection = connected(&server).await;
            assert_eq!(told(&deliver(&mut connection, &TWO[..1]).await), [expected]);
            assert!(!connection.is_usable());
            // What did not fit the sockets was never taken: the server notices that we are gone.
            drop(connection);
            server.finish().await;
        }
    }
}

#[tokio::test]
async fn a_server_that_trickles_does_not_put_off_the_end_of_the_wait_byte_by_byte() {
    let hasty = Settings { mail_timeout: SOON, final_dot_timeout: SOON, ..settings() };
    for (script, expected) in [
        (
            plain().expect("MAIL").send("250 o").trickle("k"),
            "lost: timed out after 30ms while waiting for the reply to MAIL",
        ),
        (
            plain().expect("MAIL").send("250-o").trickle("k"),
            "lost: timed out after 30ms while waiting for the reply to MAIL",
        ),
        (
            pipelining().pipelined(1, "250 ok\r\n250 ok\r\n354 go\r\n").content().send("250").trickle(" "),
            "in doubt: timed out after 30ms while waiting for the reply to the final dot",
        ),
    ] {
        let server = script.start().await;
        let mut connection = connect(server.target(), &hasty).await.unwrap();
        assert_eq!(told(&deliver(&mut connection, &TWO[..1]).await), [expected]);
        assert!(!connection.is_usable());
    }
}

#[tokio::test]
async fn replies_outside_utf_8_are_read_at_every_stage() {
    let odd = |code: &str| [code.as_bytes(), b" \xff\xc3\x28 caf\xe9\r\n"].concat();
    let script = Script::new().send(odd("220")).expect("EHLO").send(b"250-\xe9\r\n250-\xfe\xff\r\n250 PIPELINING\r\n");
    let replies = [odd("250"), odd("550"), odd("250"), odd("354")].concat();
    let script = script.pipelined(2, "").send(replies).content().send(odd("250"));
    let (told, usable) = run(script, &TWO).await;
    let text = "\u{fffd}\u{fffd}( caf\u{fffd}";
    assert_eq!((told, usable), (vec![format!("550 {text}"), format!("250 {text}")], true));
}

#[tokio::test]
async fn a_message_to_nobody_does_not_touch_the_connection() {
    let (told, usable) = run(plain(), &[]).await;
    assert!(told.is_empty() && usable);
}
