//! Connecting, greeting, EHLO, and taking leave.

use super::*;
use crate::{ConnectError, Ourselves, Stage, Target, leads_only_to_us};
use std::time::Duration;
use tokio::net::TcpListener;

/// For the one wait that a test wants to end; nothing is asserted of its length.
const SOON: Duration = Duration::from_millis(30);

async fn refused(script: Script) -> ConnectError {
    let server = script.start().await;
    connect(server.target(), &settings()).await.unwrap_err()
}

#[tokio::test]
async fn a_primary_that_is_down_is_told_in_words() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let target = Target::Host { host: "127.0.0.1".into(), port: addr.port() };
    let error = connect(&target, &settings()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("connect to {addr}: connection refused"));
}

#[tokio::test]
async fn a_name_that_cannot_be_looked_up_is_not_a_dead_server() {
    let target = Target::Host { host: "no\0name".into(), port: 25 };
    assert!(matches!(connect(&target, &settings()).await, Err(ConnectError::Resolve { .. })));
}

#[tokio::test]
async fn a_named_primary_that_turns_out_to_be_ourselves_is_never_connected_to() {
    let server = plain().start().await;
    let ourselves = Ourselves { listen: vec![server.address] };
    let ourselves = Settings { ourselves, ..settings() };
    let target = Target::Host { host: "localhost".into(), port: server.address.port() };
    // Where localhost is ::1 too, nobody listens there.
    let error = connect(&target, &ourselves).await.unwrap_err().to_string();
    let expected = format!("localhost is ourselves: it leads to {}, where we listen", server.address);
    assert!(error == expected || error.starts_with("connect to [::1]"), "{error}");
    let target = server.target();
    assert_eq!(leads_only_to_us(target, &ourselves).await, Ok(Some(expected.replace("localhost", "127.0.0.1"))));
    assert_eq!(leads_only_to_us(target, &settings()).await, Ok(None));
}

#[tokio::test]
async fn a_name_with_a_dead_address_is_reached_by_the_other() {
    // Where localhost is ::1 first, nobody listens there.
    let server = plain().start().await;
    let port = server.address.port();
    let target = Target::Host { host: "localhost".into(), port };
    let connection = connect(&target, &settings()).await.unwrap();
    assert_eq!(connection.next_hop().to_string(), format!("localhost[127.0.0.1]:{port}"));
}

#[tokio::test]
async fn a_greeting_that_refuses_is_kept_verbatim() {
    let error = refused(Script::new().send("554-5.7.1 not\r\n554 5.7.1 you\r\n")).await;
    let ConnectError::Greeting(reply) = &error else { panic!("{error:?}") };
    assert_eq!((reply.code(), reply.text()), (554, "not\nyou"));
    assert_eq!(error.to_string(), "the server's greeting was 554 5.7.1 not you");
    let error = refused(Script::new().send("421 busy\r\n").close()).await;
    assert_eq!(error.to_string(), "the server's greeting was 421 busy");
}

#[tokio::test]
async fn a_server_without_ehlo_gets_helo_on_the_same_connection() {
    let script = Script::new()
        .send("220 old\r\n")
        .expect_alone("EHLO mx2.example.test\r\n")
        .send("502 what?\r\n")
        .expect_alone("HELO mx2.example.test\r\n")
        .send("250 old\r\n")
        .expect_alone("MAIL FROM:<s@example.test>\r\n")
        .send("250 ok\r\n")
        .expect_alone("RCPT TO:<a@example.test>\r\n")
        .send("250 ok\r\n")
        .expect_alone("DATA\r\n")
        .send("354 go\r\n")
        .content()
        .send("250 taken\r\n");
    let server = script.start().await;
    let mut connection = connected(&server).await;
    assert_eq!(told(&deliver(&mut connection, &["a@example.test"]).await), ["250 taken"]);
}

#[tokio::test]
async fn a_refused_ehlo_is_told_as_such() {
    let error = refused(Script::new().send("220 hi\r\n").expect("EHLO").send("421 4.3.2 later\r\n").close()).await;
    assert_eq!(error.to_string(), "the server refused EHLO: 421 4.3.2 later");
    let twice = Script::new().send("220 hi\r\n").expect("EHLO").send("550 no\r\n").expect("HELO").send("550 never\r\n");
    assert_eq!(refused(twice).await.to_string(), "the server refused EHLO: 550 never");
}

#[tokio::test]
async fn ehlo_replies_that_break_lettre_do_not_break_us() {
    // lettre 0.11.23 panics on the blank line and refuses a last line without a space.
    let script = Script::new().send("220\r\n").expect("EHLO").send("250-x\r\n250- \r\n250-pipelining\r\n250\r\n");
    let server = script.pipelined(1, "250 ok\r\n250 ok\r\n354\r\n").content().send("250\r\n").start().await;
    let mut connection = connected(&server).await;
    assert_eq!(told(&deliver(&mut connection, &["a@example.test"]).await), ["250"]);
}

#[tokio::test]
async fn a_server_that_hangs_up_or_stays_silent_is_told_with_the_stage() {
    assert_eq!(refused(Script::new().close()).await, ConnectError::Closed { stage: Stage::Greeting });
    let closing = Script::new().send("220 hi\r\n").expect("EHLO").close();
    assert_eq!(refused(closing).await, ConnectError::Closed { stage: Stage::Ehlo });

    let silent = Script::new().stall().start().await;
    let hasty = Settings { greeting_timeout: SOON, ..settings() };
    let error = connect(silent.target(), &hasty).await.unwrap_err();
    assert_eq!(error.to_string(), "timed out while waiting for the greeting");

    let silent = Script::new().send("220 hi\r\n").expect("EHLO").stall().start().await;
    let hasty = Settings { ehlo_timeout: SOON, ..settings() };
    let error = connect(silent.target(), &hasty).await.unwrap_err();
    assert_eq!(error, ConnectError::Timeout { stage: Stage::Ehlo });
}

#[tokio::test]
async fn what_is_not_smtp_is_not_talked_to() {
    let error = refused(Script::new().send("SSH-2.0-x\r\n")).await;
    assert!(matches!(error, ConnectError::Protocol { stage: Stage::Greeting, .. }), "{error:?}");
    // A reply to EHLO before EHLO: whoever reads on is one reply behind from then on.
    let error = refused(Script::new().send("220 hi\r\n250 injected\r\n")).await;
    assert!(matches!(error, ConnectError::Protocol { stage: Stage::Ehlo, .. }), "{error:?}");
    let error = refused(Script::new().send("220 ".to_owned() + &"x".repeat(5_000) + "\r\n")).await;
    assert!(matches!(error, ConnectError::Protocol { stage: Stage::Greeting, .. }), "{error:?}");
}

#[tokio::test]
async fn a_connection_is_left_with_quit_and_a_server_that_ignores_it_is_left_all_the_same() {
    let server = plain().expect_alone("QUIT\r\n").send("221 bye\r\n").start().await;
    connected(&server).await.quit().await;
    assert_eq!(server.finish().await.rest, b"");

    let server = plain().expect("QUIT").start().await;
    let hasty = Settings { quit_timeout: SOON, ..settings() };
    connect(server.target(), &hasty).await.unwrap().quit().await;
    server.finish().await;
}

#[tokio::test]
async fn an_idle_connection_that_ended_is_not_taken_from_the_pool() {
    for last in [plain().close(), plain().send("421 idle too long\r\n"), plain().send("421 bye\r\n").close()] {
        let server = last.start().await;
        let mut connection = connected(&server).await;
        while !connection.peer_closed() {
            tokio::task::yield_now().await;
        }
        assert!(!connection.is_usable());
        let results = deliver(&mut connection, &["a@example.test"]).await;
        assert!(matches!(results[..], [RecipientResult::Lost { stage: Stage::Mail, .. }]), "{results:?}");
    }
    let server = plain().stall().start().await;
    let mut connection = connected(&server).await;
    assert!(!connection.peer_closed());
    assert!(connection.is_usable());
}

#[test]
fn an_ipv6_target_does_not_run_into_its_port() {
    assert_eq!(Target::Host { host: "::1".into(), port: 25 }.to_string(), "[::1]:25");
    assert_eq!(Target::Host { host: "mail.example.test".into(), port: 25 }.to_string(), "mail.example.test:25");
    let mx_of = |n: usize| Target::MxOf((0..n).map(|n| format!("{n}.test")).collect()).to_string();
    assert_eq!((mx_of(2).as_str(), mx_of(300).as_str()), ("MX of 0.test, 1.test", "MX of 0.test and 299 more"));
}

#[test]
fn a_delivery_can_run_on_any_thread_of_the_runtime() {
    fn is_send<T: Send>(_: &T) {}
    async fn whole(target: Target) {
        let mut connection = connect(&target, &settings()).await.unwrap();
        deliver(&mut connection, &["a@example.test"]).await;
        connection.quit().await;
    }
    is_send(&whole(Target::Host { host: "127.0.0.1".into(), port: 25 }));
}
