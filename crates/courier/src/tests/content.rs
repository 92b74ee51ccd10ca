//! Content arrives byte for byte, or is told to be lost or in doubt as the case is.

use super::*;
use crate::Stage;
use proptest::prelude::*;
use std::time::Duration;

const GO: &str = "250 ok\r\n250 ok\r\n354 go\r\n";
/// More than the sockets of both sides buffer: a server that does not read stops us.
const HUGE_BYTES: usize = 32 * 1024 * 1024;

/// What arrives when `header` and `content` are sent.
async fn arrived(header: &[u8], content: &[u8]) -> Vec<u8> {
    let server = pipelining().pipelined(1, GO).content().send("250 taken\r\n").start().await;
    let mut connection = connected(&server).await;
    let recipient = to("a@example.test");
    let mail = Mail {
        reverse_path: &ReversePath::parse("s@example.test").unwrap(),
        recipients: &[&recipient],
        body: BodyType::SevenBit,
        smtputf8: false,
        dsn: &PLAIN,
        trace_header: header,
        size_bytes: content.len() as u64,
    };
    assert_eq!(told(&connection.deliver(&mail, &mut InMemory(content), None).await.results), ["250 taken"]);
    drop(connection);
    let seen = server.finish().await;
    assert_eq!(seen.rest, b"");
    seen.messages.concat()
}

#[tokio::test]
async fn dots_empty_lines_and_odd_bytes_arrive_unaltered() {
    for content in [
        &b""[..],
        b".\r\n",
        b"..\r\n.\r\n..a\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b".\r\n\r\n",
        b"a\r\n.\r\n\r\n.\r\n",
        b"\x00\x80\xff \xe9\r\n",
        b"no end of line but before it\r\n.",
    ] {
        // An end of line is ours to add where there is none: without it there is no final dot.
        let mut expected = content.to_vec();
        if !content.is_empty() && !content.ends_with(b"\r\n") {
            expected.extend_from_slice(b"\r\n");
        }
        assert_eq!(arrived(HEADER, content).await, [HEADER, &expected].concat(), "{content:?}");
        assert_eq!(arrived(b"", content).await, expected, "{content:?}");
    }
}

#[tokio::test]
async fn dots_at_the_border_of_two_chunks_are_stuffed() {
    for offset in 0..6 {
        for border in [64 * 1024, 128 * 1024] {
            let filler = "x".repeat(border - offset - 2) + "\r\n.\r\n..y\r\n.\r\nend\r\n";
            assert!(arrived(HEADER, filler.as_bytes()).await == [HEADER, filler.as_bytes()].concat(), "{offset}");
        }
    }
}

#[tokio::test]
async fn a_large_message_arrives_whole() {
    let content = b".line\r\n".repeat(400_000);
    assert!(arrived(HEADER, &content).await == [HEADER, &content].concat());
}

#[tokio::test]
async fn a_server_that_hangs_up_within_the_content_has_nothing() {
    let server = pipelining().pipelined(1, GO).close().start().await;
    let mut connection = connected(&server).await;
    let results = deliver_to(&mut connection, &["a@example.test"], &b"line\r\n".repeat(HUGE_BYTES / 6)).await.results;
    assert!(matches!(results[..], [RecipientResult::Lost { stage: Stage::Content, .. }]), "{results:?}");
    assert!(!connection.is_usable());
}

#[tokio::test]
async fn a_server_that_hangs_up_behind_the_final_dot_may_have_it() {
    let server = pipelining().pipelined(1, GO).content().close().start().await;
    let mut connection = connected(&server).await;
    let results = deliver(&mut connection, &["a@example.test"]).await;
    let why = "in doubt: connection closed by the server while waiting for the reply to the final dot";
    assert_eq!(told(&results), [why]);
    assert!(!connection.is_usable());
}

#[tokio::test]
async fn a_refusal_within_the_content_is_heard_instead_of_pushing_on() {
    // The server has stopped reading: who does not listen here hangs until the block times out.
    for words in ["552 5.3.4 too big", "421 4.3.2 shutting down"] {
        for has_begun in [false, true] {
            let script = pipelining().pipelined(1, GO);
            let script = if has_begun { script.hear() } else { script };
            let server = script.send(format!("{words}\r\n")).stall().start().await;
            let mut connection = connected(&server).await;
            let huge = b"line\r\n".repeat(HUGE_BYTES / 6);
            let results = deliver_to(&mut connection, &["a@example.test"], &huge).await.results;
            assert_eq!(told(&results), [words]);
            assert!(!connection.is_usable());
        }
    }
}

#[tokio::test]
async fn the_last_words_of_a_server_that_hung_up_are_heard() {
    let server = pipelining().pipelined(1, GO).send("451 4.3.1 disk full\r\n").close().start().await;
    let mut connection = connected(&server).await;
    let huge = b"line\r\n".repeat(HUGE_BYTES / 6);
    let results = deliver_to(&mut connection, &["a@example.test"], &huge).await.results;
    assert_eq!(told(&results), ["451 4.3.1 disk full"]);
    assert!(!connection.is_usable());
}

#[tokio::test]
async fn a_server_that_stops_reading_does_not_hold_us_for_ever() {
    let server = pipelining().pipelined(1, GO).stall().start().await;
    let hasty = Settings { block_timeout: Duration::from_millis(200), ..settings() };
    let mut connection = connect(server.target(), &hasty).await.unwrap();
    let huge = b"line\r\n".repeat(HUGE_BYTES / 6);
    let results = deliver_to(&mut connection, &["a@example.test"], &huge).await.results;
    assert_eq!(told(&results), ["lost: timed out after 200ms while sending the content"]);
    assert!(!connection.is_usable());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_lines_arrive_unaltered(
        lines in prop::collection::vec(
            prop_oneof![
                Just(Vec::new()),
                "\\.{1,3}[a-z]{0,2}".prop_map(String::into_bytes),
                prop::collection::vec(any::<u8>().prop_filter("line end", |b| !matches!(b, b'\r' | b'\n')), 0..40),
            ],
            0..30,
        ),
        filler in prop_oneof![Just(0), 65_500..65_560_usize],
    ) {
        let mut content = vec![b'x'; filler];
        for line in &lines {
            content.extend_from_slice(line);
            content.extend_from_slice(b"\r\n");
        }
        if lines.is_empty() {
            content.clear();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let got = runtime.block_on(arrived(HEADER, &content));
        prop_assert!(got == [HEADER, &content].concat());
    }
}
