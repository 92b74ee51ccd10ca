//! A message in one flight (RFC 3030): whatever is said to it, wherever the connection ends, and where BDAT is not what it seems.

use super::ahead::deliver_before;
use super::*;
use crate::Stage;
use crate::connect::Extensions;
use crate::stream::Stream;
use crate::wire::Wire;
use restante_ledger::NextHop;
use std::time::Duration;
use tokio::net::TcpSocket;

const SOON: Duration = Duration::from_millis(30);
const TWO: [&str; 2] = ["a@example.test", "b@example.test"];
const TAKEN: &str = "250 ok\r\n250 ok\r\n250 taken\r\n";
const BYE: &str = "421 4.3.2 shutting down";

fn envelope(script: Script, recipients: usize) -> Script {
    (0..recipients).fold(script.expect("MAIL FROM:<s@example.test> SIZE="), |script, _| script.expect("RCPT TO:<"))
}

/// MAIL, RCPT and the first chunk of a connection, and what is said to them.
fn opening(recipients: usize, replies: &str) -> Script {
    envelope(chunking(), recipients).chunk().send(replies)
}

/// A message for one, in two flights.
fn understood() -> Script {
    opening(1, "250 ok\r\n250 ok\r\n250 go on\r\n").last_chunk().send("250 one\r\n")
}

/// A message in one flight.
fn flight(script: Script, recipients: usize) -> Script {
    envelope(script, recipients).last_chunk()
}

async fn first(connection: &mut Connection) {
    assert_eq!(told(&deliver(connection, &TWO[..1]).await), ["250 one"]);
}

/// What is told of the message behind the first, and whether the connection can be used again.
async fn second(script: Script, recipients: &[&str], settings: &Settings) -> (Vec<String>, bool) {
    let server = script.start().await;
    let mut connection = connect(server.target(), settings).await.unwrap();
    first(&mut connection).await;
    let delivery = deliver_to(&mut connection, recipients, CONTENT).await;
    assert!(!delivery.unheard);
    (told(&delivery.results), connection.is_usable())
}

#[tokio::test]
async fn a_message_arrives_octet_for_octet_in_one_write_and_no_dot_is_doubled() {
    let contents: [&[u8]; 4] = [b"", b".\r\n..a\r\n", b"\x00\xff \xe9\r\n.\r\n", &b".line\r\n".repeat(9_000)];
    let script = contents.iter().fold(understood(), |script, _| flight(script, 1).send(TAKEN));
    let server = script.expect("QUIT").send("221 bye\r\n").start().await;
    let mut connection = connected(&server).await;
    first(&mut connection).await;
    for content in contents {
        assert_eq!(told(&deliver_to(&mut connection, &TWO[..1], content).await.results), ["250 taken"]);
    }
    connection.quit().await;
    let seen = server.finish().await;
    let sent = [CONTENT].into_iter().chain(contents);
    assert!(seen.messages == sent.map(|content| [HEADER, content].concat()).collect::<Vec<_>>());
    assert_eq!(seen.commands[1], format!("MAIL FROM:<s@example.test> SIZE={}\r\n", HEADER.len() + CONTENT.len()));
}

#[tokio::test]
async fn no_octet_of_a_stranger_s_stands_where_a_server_without_bdat_would_read_a_command() {
    let server = opening(1, "250 ok\r\n250 ok\r\n500 what?\r\n").start().await;
    let mut connection = connect(server.target(), &Settings { ehlo_timeout: SOON, ..settings() }).await.unwrap();
    let results = deliver_to(&mut connection, &TWO[..1], b"VRFY root\r\n").await.results;
    assert_eq!(told(&results), ["lost: timed out after 30ms while waiting for the reply to RSET"]);
    drop(connection);
    assert_eq!(server.finish().await.rest, b"RSET\r\n");
}

#[tokio::test]
async fn a_reply_lost_behind_the_last_octet_is_in_doubt_and_not_lost() {
    let doubt = |failure: &str, reply: &str| format!("in doubt: {failure} while waiting for the reply to {reply}");
    let closed = |reply| doubt("connection closed by the server", reply);
    for (replies, expected) in [
        ("", vec![closed("MAIL"), closed("MAIL")]),
        ("250 ok\r\n250 ok\r\n", vec![closed("RCPT"), closed("RCPT")]),
        ("250 ok\r\n250 ok\r\n250 ok\r\n", vec![closed("BDAT"), closed("BDAT")]),
        ("250 ok\r\n250 ok\r\n250 ok\r\n250 half a re", vec![closed("BDAT"), closed("BDAT")]),
        // Who was refused has his answer.
        ("250 ok\r\n550 a\r\n", vec!["550 a".into(), closed("RCPT")]),
        ("250 ok\r\n550 a\r\n250 ok\r\n", vec!["550 a".into(), closed("BDAT")]),
        ("552 no\r\n503 x\r\n", vec!["552 no".into(), "552 no".into()]),
    ] {
        let script = flight(understood(), 2).send(replies).close();
        assert_eq!(second(script, &TWO, &settings()).await, (expected, false), "{replies}");
    }
    // Silence, and words that are no answer.
    let hasty = Settings { final_dot_timeout: SOON, ..settings() };
    let script = flight(understood(), 1).send("250 ok\r\n250 ok\r\n").stall();
    assert_eq!(second(script, &TWO[..1], &hasty).await, (vec![doubt("timed out after 30ms", "BDAT")], false));
    for (replies, said, reply) in [
        ("250 ok\r\n250 ok\r\n354 go\r\n", "the server said 354 go", "BDAT"),
        ("354 go\r\n", "the server said 354 go", "MAIL"),
        ("hello\r\n", "the server sent what is not an SMTP reply: \"hello\"", "MAIL"),
    ] {
        let script = flight(understood(), 1).send(replies);
        assert_eq!(second(script, &TWO[..1], &settings()).await, (vec![doubt(said, reply)], false));
    }
}

#[tokio::test]
async fn a_connection_lost_before_the_last_chunk_is_lost_and_not_in_doubt() {
    let told_of = |script: Script| async {
        let server = script.start().await;
        let mut connection = connected(&server).await;
        let results = deliver(&mut connection, &TWO).await;
        (told(&results), connection.is_usable())
    };
    let lost = |reply| format!("lost: connection closed by the server while waiting for the reply to {reply}");
    for (replies, expected) in
        [("", [lost("MAIL"), lost("MAIL")]), ("250 ok\r\n550 a\r\n250 ok\r\n", ["550 a".into(), lost("BDAT")])]
    {
        assert_eq!(told_of(opening(2, replies).close()).await, (expected.into(), false));
    }
    // The last chunk of the first message is a last one all the same.
    let script = opening(2, "250 ok\r\n250 ok\r\n250 ok\r\n250 go on\r\n").last_chunk().close();
    let doubt = "in doubt: connection closed by the server while waiting for the reply to BDAT";
    assert_eq!(told_of(script).await, (vec![doubt.into(); 2], false));
}

#[tokio::test]
async fn a_server_that_goes_while_the_last_chunk_is_still_here_cannot_have_it() {
    let content = b"line\r\n".repeat(10_000);
    for (words, expected) in [
        ("", "lost: "),
        ("552 5.3.4 too big\r\n", "552 5.3.4 too big"),
        // Nor can it say that it took it.
        ("250 taken\r\n", "lost: the server said 250 taken"),
    ] {
        // It hears some of it, and goes.
        let script = envelope(Script::new(), 1).chunk().send("250 ok\r\n250 ok\r\n250 go on\r\n");
        let server = script.hear().send(words).close();
        let server = server.start_narrow().await;
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(4_096).unwrap();
        let addr = server.address;
        let wire = Wire::new(Stream::Clear(socket.connect(addr).await.unwrap())).await.unwrap();
        let mut extensions = Extensions::default();
        (extensions.pipelining, extensions.chunking, extensions.size) = (true, true, true);
        let next_hop = NextHop { host: "x".into(), ip: [127, 0, 0, 1].into(), port: 25, tls: None };
        let mut connection = Connection::new(wire, extensions, next_hop, None, 0, settings());
        let results = deliver_to(&mut connection, &TWO[..1], &content).await.results;
        assert!(told(&results)[0].starts_with(expected), "{:?}", told(&results));
        assert!(!connection.is_usable());
    }
}

#[tokio::test]
async fn bdat_that_is_refused_as_unknown_falls_back_to_data_without_a_duplicate() {
    let go = "250 ok\r\n354 go\r\n";
    let again = |script: Script, name: &str| {
        let script = envelope(script, 1).expect_alone("DATA").send(format!("250 ok\r\n{go}"));
        script.content().send(format!("250 {name}\r\n"))
    };
    let refused = "250 ok\r\n550 a\r\n250 ok\r\n503 5.5.1 no\r\n";
    for (script, before) in [
        (opening(2, refused), 0),
        // A server that took our octet for the beginning of a command.
        (envelope(chunking(), 2).expect("BDAT 1\r\n").send(refused).expect_alone("RRSET").send("500 what?\r\n"), 0),
        // One that took a chunk once.
        (flight(understood(), 2).send(refused), 1),
    ] {
        let script = script.expect_alone("RSET\r\n").send("250 ok\r\n");
        // No BDAT any more, and what goes ahead may go ahead.
        let script = again(script, "two").pipelined(1, &format!("250 ok\r\n{go}")).content_and_more();
        let script =
            script.expect("MAIL").expect("RCPT").expect_alone("DATA").send(format!("250 three\r\n250 ok\r\n{go}"));
        let server = script.content().send("250 four\r\n").expect("QUIT").send("221 bye\r\n").start().await;
        let mut connection = connected(&server).await;
        if before > 0 {
            first(&mut connection).await;
        }
        assert!(!connection.takes_ahead());
        let delivery = deliver_to(&mut connection, &TWO, CONTENT).await;
        assert_eq!(told(&delivery.results), ["550 a", "250 two"]);
        assert_eq!(delivery.by_content, [false, true]);
        assert!(connection.takes_ahead() && connection.is_usable());
        assert_eq!(told(&deliver_before(&mut connection, &TWO[..1], &TWO[..1]).await.results), ["250 three"]);
        assert!(connection.is_promised());
        assert_eq!(told(&deliver(&mut connection, &TWO[..1]).await), ["250 four"]);
        connection.quit().await;
        let seen = server.finish().await;
        // The refused chunk is not a message; the scripted server kept it apart all the same.
        let whole = [HEADER, CONTENT].concat();
        assert!(seen.messages.iter().all(|message| message.ends_with(CONTENT)));
        assert_eq!(seen.messages.iter().filter(|message| **message == whole).count(), 3 + 2 * before);
    }
}

#[tokio::test]
async fn a_fallback_that_ends_badly_is_told_as_what_it_was() {
    let refused = "250 ok\r\n250 ok\r\n503 no\r\n";
    let unknown = || opening(1, refused).expect_alone("RSET");
    let data = |script: Script| envelope(script.send("250 ok\r\n"), 1).expect("DATA");
    for (script, expected, mail_refused) in [
        (unknown().send("250 ok\r\n").close(), "lost: ", false),
        (unknown().send("421 bye\r\n").close(), "lost: the server said 421 bye", false),
        (data(unknown()).send("452 full\r\n503 x\r\n503 x\r\n"), "452 full", true),
        (data(unknown()).send("250 ok\r\n250 ok\r\n354 go\r\n").content().close(), "in doubt: ", false),
    ] {
        let server = script.start().await;
        let mut connection = connected(&server).await;
        let delivery = deliver_to(&mut connection, &TWO[..1], CONTENT).await;
        let told = told(&delivery.results);
        assert!(told[0].starts_with(expected), "{told:?}");
        assert_eq!(delivery.mail_refused, mail_refused);
    }
}

#[tokio::test]
async fn one_recipient_of_two_refused_in_the_same_flight_does_not_refuse_the_other() {
    for (last, to_b) in [("250 taken", "250 taken"), ("554 5.6.0 spam", "554 5.6.0 spam"), ("452 later", "452 later")] {
        let script =
            flight(understood(), 2).send(format!("250 ok\r\n550-5.1.1 no\r\n550 5.1.1 a\r\n250 ok\r\n{last}\r\n"));
        // What a refusal leaves behind is cleared.
        let script = if last.starts_with("250") { script } else { script.expect_alone("RSET").send("250 ok\r\n") };
        let server = flight(script, 1).send(TAKEN).start().await;
        let mut connection = connected(&server).await;
        first(&mut connection).await;
        let delivery = deliver_to(&mut connection, &TWO, CONTENT).await;
        assert_eq!(told(&delivery.results), ["550 5.1.1 no a", to_b]);
        assert_eq!((delivery.by_content, delivery.mail_refused), (vec![false, true], false));
        assert_eq!(told(&deliver(&mut connection, &TWO[..1]).await), ["250 taken"]);
    }
}

#[tokio::test]
async fn where_all_are_refused_nothing_of_the_reply_to_bdat_is_taken_for_the_next_message() {
    for (replies, expected, mail_refused) in [
        ("250 ok\r\n550 a\r\n550 b\r\n", ["550 a", "550 b"], false),
        ("452 full\r\n503 x\r\n503 x\r\n", ["452 full", "452 full"], true),
    ] {
        for last in ["250 thanks for nothing", "554 5.5.1 no valid recipients", "503 5.5.1 no"] {
            let reset = |script: Script| script.expect_alone("RSET").send("250 ok\r\n");
            let replies = format!("{replies}{last}\r\n");
            let to_last = flight(understood(), 2).send(&replies);
            let to_last = if last.starts_with("250") { to_last } else { reset(to_last) };
            let to_last = flight(to_last, 1).send(TAKEN);
            // At the first chunk the message is not ended: it is reset in any case.
            let to_first = reset(opening(2, &replies));
            let to_first = if last.starts_with("250") {
                flight(to_first, 1).send(TAKEN)
            } else {
                envelope(to_first, 1).chunk().send("250 ok\r\n250 ok\r\n250 ok\r\n").last_chunk().send("250 taken\r\n")
            };
            for (script, before) in [(to_last, 1), (to_first, 0)] {
                let server = script.expect("QUIT").send("221 bye\r\n").start().await;
                let mut connection = connected(&server).await;
                if before > 0 {
                    first(&mut connection).await;
                }
                let delivery = deliver_to(&mut connection, &TWO, CONTENT).await;
                assert_eq!(told(&delivery.results), expected);
                assert_eq!((delivery.by_content, delivery.mail_refused), (vec![false; 2], mail_refused));
                assert_eq!(told(&deliver(&mut connection, &TWO[..1]).await), ["250 taken"], "{last} {before}");
                connection.quit().await;
                server.finish().await;
            }
        }
    }
}

#[tokio::test]
async fn a_421_in_place_of_any_reply_is_the_answer_of_all_that_are_open() {
    for (replies, expected) in [
        ("", [BYE, BYE]),
        ("250 ok\r\n", [BYE, BYE]),
        ("250 ok\r\n550 a\r\n", ["550 a", BYE]),
        ("250 ok\r\n250 ok\r\n550 b\r\n", [BYE, "550 b"]),
    ] {
        let replies = format!("{replies}{BYE}\r\n");
        let expected = (expected.map(str::to_owned).to_vec(), false);
        let script = flight(understood(), 2).send(&replies).close();
        assert_eq!(second(script, &TWO, &settings()).await, expected, "{replies}");
        let server = opening(2, &replies).close().start().await;
        let mut connection = connected(&server).await;
        let results = deliver(&mut connection, &TWO).await;
        assert_eq!((told(&results), connection.is_usable()), expected);
    }
}

#[tokio::test]
async fn content_that_is_damaged_on_our_side_sends_nothing() {
    struct Broken(bool);
    impl Content for Broken {
        fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, String> {
            if std::mem::replace(&mut self.0, true) { Err("gone".into()) } else { Ok(Some(CONTENT[..5].to_vec())) }
        }
    }
    // At the first message and at the second: the server hears of neither, and takes the next.
    let script = flight(understood(), 1).send(TAKEN).expect("QUIT").send("221 bye\r\n");
    let server = script.start().await;
    let mut connection = connected(&server).await;
    for _ in 0..2 {
        let announced = CONTENT.len() as u64;
        for (content, size_bytes, why) in [
            (&mut Broken(false) as &mut dyn Content, announced, "gone"),
            (&mut InMemory(CONTENT), announced - 1, "it is longer than it was when accepted"),
            (&mut InMemory(CONTENT), announced + 2, "it ends 2 bytes too early"),
        ] {
            let delivery = deliver_from(&mut connection, &TWO, content, size_bytes).await;
            assert!(matches!(&delivery.results[0], RecipientResult::Lost { stage: Stage::Content, .. }));
            let lost = format!("lost: our own copy cannot be read: {why} while sending the content");
            assert_eq!(told(&delivery.results), [lost.clone(), lost]);
            assert!(connection.is_usable());
        }
        let results = deliver(&mut connection, &TWO[..1]).await;
        assert!(matches!(results[..], [RecipientResult::Replied(_)]));
    }
    connection.quit().await;
    assert_eq!(server.finish().await.messages, vec![[HEADER, CONTENT].concat(); 2]);
}

#[tokio::test]
async fn nothing_is_sent_ahead_where_each_message_is_one_flight_and_large_ones_go_with_data() {
    let go = "250 ok\r\n250 ok\r\n354 go\r\n";
    let large = b"line\r\n".repeat(11_000);
    let script = understood().pipelined(1, go).content().silence().send("250 large\r\n");
    let server = flight(script, 1).send(TAKEN).expect("QUIT").send("221 bye\r\n").start().await;
    let mut connection = connected(&server).await;
    assert_eq!(told(&deliver_before(&mut connection, &TWO[..1], &TWO[..1]).await.results), ["250 one"]);
    assert!(!connection.is_promised() && !connection.takes_ahead());
    assert_eq!(told(&deliver_to(&mut connection, &TWO[..1], &large).await.results), ["250 large"]);
    assert_eq!(told(&deliver_before(&mut connection, &TWO[..1], &TWO[..1]).await.results), ["250 taken"]);
    assert!(!connection.is_promised() && connection.is_usable());
    connection.quit().await;
    assert!(
        server.finish().await.messages
            == [[HEADER, CONTENT].concat(), [HEADER, &large].concat(), [HEADER, CONTENT].concat()]
    );
}

#[tokio::test]
async fn more_recipients_than_a_group_and_a_server_without_groups_get_data() {
    let many: Vec<String> = (0..101).map(|n| format!("r{n}@example.test")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let script = envelope(chunking(), 101).send("250 ok\r\n".repeat(102)).expect_alone("DATA").send("354 go\r\n");
    let server = script.content().send("250 taken\r\n").start().await;
    let mut connection = connected(&server).await;
    assert_eq!(told(&deliver(&mut connection, &many).await), vec!["250 taken"; 101]);

    let script = Script::new().send("220 hi\r\n").expect("EHLO").send("250-x\r\n250 CHUNKING\r\n");
    let script = script.expect_alone("MAIL").send("250 ok\r\n").expect_alone("RCPT").send("250 ok\r\n");
    let server = script.expect_alone("DATA").send("354 go\r\n").content().send("250 taken\r\n").start().await;
    let mut connection = connected(&server).await;
    assert_eq!(told(&deliver(&mut connection, &TWO[..1]).await), ["250 taken"]);
}

#[tokio::test]
async fn replies_that_nobody_asked_for_are_not_taken_for_those_to_a_flight() {
    let unasked = "lost: the server sent something nobody asked for while waiting for the reply to BDAT";
    let server = opening(1, "250 ok\r\n250 ok\r\n250 go on\r\n250 more\r\n").start().await;
    let mut connection = connected(&server).await;
    assert_eq!(told(&deliver(&mut connection, &TWO[..1]).await), [unasked]);
    // Behind the last reply: that one stands, though it is not UTF-8, and is the last.
    let script = flight(understood(), 1).send(b"250 ok\r\n250 ok\r\n250 caf\xe9\r\n250 more\r\n");
    assert_eq!(second(script, &TWO[..1], &settings()).await, (vec!["250 caf\u{fffd}".into()], false));
}
