//! The commands of the next message sent behind the content of this one: whatever is said to them, and whenever the
//! connection ends, each message keeps its own outcome.

use super::*;
use crate::Ahead;
use std::time::Duration;

const SOON: Duration = Duration::from_millis(30);
const GO: &str = "250 ok\r\n250 ok\r\n354 go\r\n";
const TWO: [&str; 2] = ["a@example.test", "b@example.test"];

/// Delivers to `recipients`, with the commands to `next` sent ahead.
pub(super) async fn deliver_before(connection: &mut Connection, recipients: &[&str], next: &[&str]) -> Delivery {
    let content = &mut InMemory(CONTENT);
    deliver_before_from(connection, recipients, next, content).await
}

async fn deliver_before_from(
    connection: &mut Connection,
    recipients: &[&str],
    next: &[&str],
    content: &mut dyn Content,
) -> Delivery {
    let parse = |paths: &[&str]| -> Vec<Recipient> { paths.iter().map(|path| to(path)).collect() };
    let (recipients, next) = (parse(recipients), parse(next));
    let (recipients, next): (Vec<_>, Vec<_>) = (recipients.iter().collect(), next.iter().collect());
    let reverse_path = ReversePath::parse("s@example.test").unwrap();
    let mail = Mail {
        reverse_path: &reverse_path,
        recipients: &recipients,
        body: BodyType::SevenBit,
        smtputf8: false,
        dsn: &PLAIN,
        trace_header: HEADER,
        size_bytes: CONTENT.len() as u64,
    };
    let next = Mail { recipients: &next, ..mail };
    connection.deliver(&mail, content, Some(&next)).await
}

/// What was told of the first message and of the second, whether that one was unheard, whether the connection is usable,
/// and what is known of sending ahead.
async fn both(script: Script, second: &[&str]) -> (Vec<String>, Vec<String>, bool, bool, Ahead) {
    let server = script.start().await;
    let mut connection = connected(&server).await;
    let first = deliver_before(&mut connection, &TWO[..1], second).await;
    assert!(!first.unheard);
    let delivery = deliver_to(&mut connection, second, CONTENT).await;
    let (usable, state) = (connection.is_usable(), connection.ahead().clone());
    drop(connection);
    let seen = server.finish().await;
    assert_eq!((seen.messages.len(), seen.rest), (1, vec![]));
    (told(&first.results), told(&delivery.results), delivery.unheard, usable, state)
}

/// A first message, and behind its final dot in the same write the commands of a second to `recipients`.
fn ahead(recipients: usize) -> Script {
    let script = pipelining().pipelined(1, GO).content_and_more().expect("MAIL FROM:<s@example.test>");
    (0..recipients).fold(script, |script, _| script.expect("RCPT TO:<")).expect("DATA")
}

#[tokio::test]
async fn each_message_takes_one_round_trip_once_the_first_is_under_way() {
    let script = ahead(1).send(format!("250 one\r\n{GO}")).content_and_more();
    let script = script.expect("MAIL").expect("RCPT").expect_alone("DATA").send(format!("250 two\r\n{GO}"));
    let script = script.content().send("250 three\r\n").expect("QUIT").send("221 bye\r\n");
    let server = script.start().await;
    let mut connection = connected(&server).await;
    assert_eq!(connection.ahead(), &Ahead::Untried);
    assert_eq!(told(&deliver_before(&mut connection, &TWO[..1], &TWO[..1]).await.results), ["250 one"]);
    assert!(connection.is_usable() && connection.is_promised() && !connection.peer_closed());
    assert_eq!(told(&deliver_before(&mut connection, &TWO[..1], &TWO[..1]).await.results), ["250 two"]);
    assert_eq!(connection.ahead(), &Ahead::Answered);
    assert_eq!(told(&deliver(&mut connection, &TWO[..1]).await), ["250 three"]);
    assert!(connection.is_usable() && !connection.is_promised());
    connection.quit().await;
    let seen = server.finish().await;
    assert_eq!(seen.messages, vec![[HEADER, CONTENT].concat(); 3]);
}

#[tokio::test]
async fn each_kind_of_reply_to_what_was_sent_ahead_decides_its_own_message_alone() {
    let end = |script: Script| script.expect("QUIT").send("221 bye\r\n");
    for (replies, first, second) in [
        ("451 4.3.0 later\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n", "451 4.3.0 later", ["250 taken", "250 taken"]),
        ("554 5.6.0 no\r\n250 ok\r\n550 a\r\n250 ok\r\n354 go\r\n", "554 5.6.0 no", ["550 a", "250 taken"]),
        ("250 one\r\n250 ok\r\n250 ok\r\n452 b\r\n354 go\r\n", "250 one", ["250 taken", "452 b"]),
    ] {
        let script = ahead(2).send(replies).content().send("250 taken\r\n");
        let (one, two, unheard, connection, _) = {
            let server = end(script).start().await;
            let mut connection = connected(&server).await;
            let one = deliver_before(&mut connection, &TWO[..1], &TWO).await;
            let two = deliver_to(&mut connection, &TWO, CONTENT).await;
            let usable = connection.is_usable();
            connection.quit().await;
            (told(&one.results), told(&two.results), two.unheard, usable, server.finish().await)
        };
        assert_eq!(
            (one, two, unheard, connection),
            (vec![first.into()], second.map(str::to_owned).into(), false, true)
        );
    }
    // Nobody may get it: the server that wants a message all the same gets an empty one, one that does not gets RSET.
    let empty = ahead(2).send("250 one\r\n250 ok\r\n550 a\r\n550 b\r\n354 go\r\n").content().send("250 thanks\r\n");
    let reset = ahead(2).send("250 one\r\n250 ok\r\n550 a\r\n550 b\r\n503 no\r\n").expect("RSET").send("250 ok\r\n");
    for (script, messages) in
        [(empty, vec![[HEADER, CONTENT].concat(), vec![]]), (reset, vec![[HEADER, CONTENT].concat()])]
    {
        let server = end(script).start().await;
        let mut connection = connected(&server).await;
        deliver_before(&mut connection, &TWO[..1], &TWO).await;
        assert_eq!(told(&deliver(&mut connection, &TWO).await), ["550 a", "550 b"]);
        connection.quit().await;
        assert_eq!(server.finish().await.messages, messages);
    }
}

#[tokio::test]
async fn a_refusal_of_mail_counts_where_sending_ahead_is_known_to_work() {
    let script =
        ahead(1).send(format!("250 one\r\n{GO}")).content_and_more().expect("MAIL").expect("RCPT").expect("DATA");
    let refused = "250 two\r\n550 5.7.1 no\r\n503 x\r\n354 go\r\n";
    let server = script.send(refused).content().send("554 nobody\r\n").start().await;
    let mut connection = connected(&server).await;
    deliver_before(&mut connection, &TWO[..1], &TWO[..1]).await;
    assert_eq!(told(&deliver_before(&mut connection, &TWO[..1], &TWO[..1]).await.results), ["250 two"]);
    let delivery = deliver_to(&mut connection, &TWO[..1], CONTENT).await;
    assert_eq!((told(&delivery.results), delivery.unheard), (vec!["550 5.7.1 no".into()], false));
    assert!(connection.is_usable());
}

#[tokio::test]
async fn what_a_server_says_that_lost_its_place_or_closes_is_not_the_fate_of_the_next_message() {
    for reply in
        ["554 5.5.0 synchronization error", "503 5.5.1 nested MAIL", "421 4.7.0 enough", "451 4.3.0 later", "354 x"]
    {
        let script = ahead(1).send(format!("250 one\r\n{reply}\r\n")).close();
        let (first, second, unheard, usable, state) = both(script, &TWO[..1]).await;
        assert_eq!(first, ["250 one"]);
        assert_eq!(second, [format!("lost: the server said {reply} while waiting for the reply to MAIL")]);
        assert!(unheard && !usable);
        assert!(matches!(state, Ahead::Trouble(_)), "{reply}");
    }
    // One that is about the mail is asked again, the plain way, and the next may be sent ahead.
    let script = ahead(1).send("250 one\r\n451 4.7.1 greylisted\r\n").close();
    let (_, second, unheard, _, state) = both(script, &TWO[..1]).await;
    assert!(unheard && matches!(state, Ahead::Untried), "{second:?}");
    // Part of the group was swallowed: the place is lost later.
    let script = ahead(2).send("250 one\r\n250 ok\r\n250 ok\r\n500 what?\r\n").close();
    let (_, second, unheard, _, state) = both(script, &TWO).await;
    assert!(unheard && matches!(state, Ahead::Trouble(_)), "{second:?}");
}

#[tokio::test]
async fn a_421_to_the_dot_leaves_the_next_message_untouched() {
    let server = ahead(1).send("421 4.3.2 shutting down\r\n").close().start().await;
    let mut connection = connected(&server).await;
    let delivery = deliver_before(&mut connection, &TWO[..1], &TWO[..1]).await;
    assert_eq!(told(&delivery.results), ["421 4.3.2 shutting down"]);
    assert!(!connection.is_usable() && !connection.is_promised());
    let delivery = deliver_to(&mut connection, &TWO[..1], CONTENT).await;
    assert_eq!(
        told(&delivery.results),
        ["lost: the connection cannot be used any more while waiting for the reply to MAIL"]
    );
}

#[tokio::test]
async fn a_connection_lost_behind_the_dot_puts_one_message_in_doubt_and_not_the_next() {
    // Between the reply to the dot and those to what was sent ahead.
    let (first, second, unheard, usable, state) = both(ahead(1).send("250 one\r\n").close(), &TWO[..1]).await;
    assert_eq!(first, ["250 one"]);
    assert_eq!(second, ["lost: connection closed by the server while waiting for the reply to MAIL"]);
    assert!(unheard && !usable && matches!(state, Ahead::Trouble(_)));
    // Among those.
    let script = ahead(2).send("250 one\r\n250 ok\r\n550 a\r\n").close();
    let (first, _, unheard, ..) = both(script, &TWO).await;
    assert_eq!((first, unheard), (vec!["250 one".into()], true));
    // Before the reply to the dot: a server that closes when it is spoken to ahead.
    let (first, second, _, _, state) = both(ahead(1).close(), &TWO[..1]).await;
    assert_eq!(first, ["in doubt: connection closed by the server while waiting for the reply to the final dot"]);
    assert!(second[0].starts_with("lost: "), "{second:?}");
    assert!(matches!(state, Ahead::Trouble(_)));
}

#[tokio::test]
async fn a_server_that_forgets_what_was_sent_ahead_is_told_from_a_silent_one() {
    let server = ahead(1).send("250 one\r\n").stall().start().await;
    let mut connection = connect(server.target(), &Settings { mail_timeout: SOON, ..settings() }).await.unwrap();
    deliver_before(&mut connection, &TWO[..1], &TWO[..1]).await;
    let delivery = deliver_to(&mut connection, &TWO[..1], CONTENT).await;
    assert!(delivery.unheard && matches!(connection.ahead(), Ahead::Trouble(_)));
}

#[tokio::test]
async fn a_connection_on_which_it_went_well_is_not_held_against_the_server() {
    let script =
        ahead(1).send(format!("250 one\r\n{GO}")).content_and_more().expect("MAIL").expect("RCPT").expect("DATA");
    let server = script.send("250 two\r\n").close().start().await;
    let mut connection = connected(&server).await;
    deliver_before(&mut connection, &TWO[..1], &TWO[..1]).await;
    deliver_before(&mut connection, &TWO[..1], &TWO[..1]).await;
    assert!(deliver_to(&mut connection, &TWO[..1], CONTENT).await.unheard);
    assert_eq!(connection.ahead(), &Ahead::Answered);
}

#[tokio::test]
async fn nothing_is_sent_ahead_that_was_not_offered_or_is_more_than_a_group() {
    let many: Vec<String> = (0..101).map(|n| format!("r{n}@example.test")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let alone =
        plain().expect("MAIL").send("250 ok\r\n").expect("RCPT").send("250 ok\r\n").expect("DATA").send("354 go\r\n");
    for (script, next) in
        [(alone, &TWO[..]), (pipelining().pipelined(1, GO), &many), (pipelining().pipelined(1, GO), &[])]
    {
        let script = script.content().silence().send("250 one\r\n").expect("QUIT").send("221 bye\r\n");
        let server = script.start().await;
        let mut connection = connected(&server).await;
        assert_eq!(told(&deliver_before(&mut connection, &TWO[..1], next).await.results), ["250 one"]);
        assert!(!connection.is_promised());
        connection.quit().await;
        server.finish().await;
    }
}

#[tokio::test]
async fn nothing_is_sent_ahead_of_a_content_that_has_no_end() {
    struct Broken(bool);
    impl Content for Broken {
        fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, String> {
            if std::mem::replace(&mut self.0, true) { Err("gone".into()) } else { Ok(Some(CONTENT[..5].to_vec())) }
        }
    }
    let server = pipelining().pipelined(1, GO).start().await;
    let mut connection = connected(&server).await;
    let delivery = deliver_before_from(&mut connection, &TWO[..1], &TWO, &mut Broken(false)).await;
    assert!(matches!(delivery.results[..], [RecipientResult::Lost { .. }]));
    assert!(!connection.is_promised() && !connection.is_usable());
    drop(connection);
    let rest = server.finish().await.rest;
    assert!(!rest.windows(4).any(|w| w == b"MAIL"), "{:?}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn a_message_that_is_not_the_promised_one_is_not_sent_in_its_place() {
    for quits in [true, false] {
        let script = ahead(1).send(format!("250 one\r\n{GO}"));
        let server = script.start().await;
        let mut connection = connected(&server).await;
        deliver_before(&mut connection, &TWO[..1], &TWO[..1]).await;
        if quits {
            // Not as the first line of the message that the server waits for.
            connection.quit().await;
        } else {
            let delivery = deliver_to(&mut connection, &TWO[1..], CONTENT).await;
            assert!(delivery.unheard && !connection.is_usable());
            drop(connection);
        }
        assert_eq!(server.finish().await.rest, b"");
    }
}

#[tokio::test]
async fn a_server_that_speaks_out_of_turn_behind_the_replies_is_noticed() {
    let script = ahead(1).send(format!("250 one\r\n{GO}250 more\r\n"));
    let (first, second, unheard, usable, _) = both(script, &TWO[..1]).await;
    assert_eq!(first, ["250 one"]);
    assert_eq!(second, ["lost: the server said 250 too early while sending the content"]);
    assert!(!unheard && !usable);
}
