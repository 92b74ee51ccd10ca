//! Encryption: used where it works, and never a reason to lose mail or to take the word of somebody between.

use super::*;
use crate::stream::Stream;
use crate::{ConnectError, Stage, Target, TlsPolicy};
use socket2::SockRef;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{HandshakeKind, ServerConfig, SupportedProtocolVersion};

const ONE: [&str; 1] = ["a@example.test"];
const GO: &str = "250 ok\r\n250 ok\r\n354 go\r\n";

/// A server with a certificate of its own making, for another name.
fn server_config(version: &'static SupportedProtocolVersion) -> Arc<ServerConfig> {
    let own = rcgen::generate_simple_self_signed(["other.example.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_protocol_versions(&[version]).unwrap().with_no_client_auth();
    Arc::new(config.with_single_cert(vec![own.cert.der().clone()], key).unwrap())
}

/// Offers STARTTLS, and has been asked for it.
fn asked() -> Script {
    offering().expect_alone("STARTTLS\r\n")
}

fn offering() -> Script {
    Script::new().send("220 ready\r\n").expect("EHLO").send("250-server\r\n250-SIZE\r\n250 STARTTLS\r\n")
}

/// Encrypted, and EHLO said again: what is offered now is offered for the first time.
fn encrypted(config: &Arc<ServerConfig>) -> Script {
    let script = asked().send("220 go ahead\r\n").encrypt(config).expect_alone("EHLO mx2.example.test\r\n");
    script.send("250-server\r\n250 PIPELINING\r\n")
}

fn tls(connection: &Connection) -> Option<&str> {
    connection.next_hop().tls.as_deref()
}

#[tokio::test]
async fn two_messages_go_over_one_encrypted_connection() {
    let config = server_config(&TLS13);
    let script = encrypted(&config).pipelined(1, GO).content().send("250 one\r\n");
    let script = script.pipelined(1, GO).content().send("250 two\r\n").expect("QUIT").send("221 bye\r\n");
    let server = script.start().await;
    let mut connection = connected(&server).await;
    assert_eq!(tls(&connection), Some("TLSv1.3 TLS_AES_256_GCM_SHA384"));
    assert_eq!(connection.tls_failure(), None);
    assert_eq!(told(&deliver(&mut connection, &ONE).await), ["250 one"]);
    assert!(connection.is_usable() && !connection.peer_closed());
    assert_eq!(told(&deliver(&mut connection, &ONE).await), ["250 two"]);
    connection.quit().await;
    let seen = server.finish().await;
    assert_eq!(seen.messages, vec![[HEADER, CONTENT].concat(); 2]);
    // SIZE was offered in clear alone.
    assert_eq!(seen.commands[3], "MAIL FROM:<s@example.test>\r\n");
    // 127.0.0.1 is no name to ask for.
    assert_eq!(seen.handshake.unwrap().0, None);
}

#[tokio::test]
async fn a_flight_through_tls_arrives_whole_and_is_in_doubt_when_its_reply_is_lost() {
    let config = server_config(&TLS13);
    let script = asked().send("220 go ahead\r\n").encrypt(&config).expect_alone("EHLO");
    let script = script.send("250-server\r\n250-PIPELINING\r\n250 CHUNKING\r\n").expect("MAIL").expect("RCPT").chunk();
    let script = script.send("250 ok\r\n250 ok\r\n250 go on\r\n").last_chunk().send("250 one\r\n");
    let flight = |script: Script| script.expect("MAIL").expect("RCPT").last_chunk();
    let server = flight(flight(script).send("250 ok\r\n250 ok\r\n250 two\r\n")).take_leave().start().await;
    let mut connection = connected(&server).await;
    assert_eq!(told(&deliver(&mut connection, &ONE).await), ["250 one"]);
    // More than one record of TLS.
    let content = b".line\r\n".repeat(9_000);
    assert_eq!(told(&deliver_to(&mut connection, &ONE, &content).await.results), ["250 two"]);
    let doubt = "in doubt: connection closed by the server while waiting for the reply to MAIL";
    assert_eq!(told(&deliver(&mut connection, &ONE).await), [doubt]);
    let messages = [[HEADER, CONTENT].concat(), [HEADER, &content].concat(), [HEADER, CONTENT].concat()];
    assert!(server.finish().await.messages == messages);
}

#[tokio::test]
async fn the_second_connection_to_a_server_resumes_the_session() {
    let config = server_config(&TLS13);
    let scripts = [encrypted(&config), encrypted(&config)].map(|s| s.expect("QUIT").send("221 bye\r\n"));
    let server = Script::start_each(scripts).await;
    // No other test asks for this name: tickets are kept by name.
    let target = Target::Host { host: "localhost".into(), port: server.address.port() };
    for _ in 0..2 {
        connect(&target, &settings()).await.unwrap().quit().await;
    }
    let name = Some("localhost".to_owned());
    let seen: Vec<_> = server.finish_each().await.into_iter().map(|seen| seen.handshake.unwrap()).collect();
    assert_eq!(seen, [(name.clone(), HandshakeKind::Full), (name, HandshakeKind::Resumed)]);
}

#[tokio::test]
async fn a_server_without_tls_1_3_is_encrypted_all_the_same() {
    let config = server_config(&TLS12);
    let server = encrypted(&config).pipelined(1, GO).content().send("250 taken\r\n").start().await;
    let mut connection = connected(&server).await;
    assert_eq!(tls(&connection), Some("TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"));
    assert_eq!(told(&deliver(&mut connection, &ONE).await), ["250 taken"]);
}

#[tokio::test]
async fn a_server_that_refuses_starttls_gets_the_mail_in_clear() {
    for refusal in ["454 4.7.0 not now", "502 5.5.1 what?"] {
        let script = asked().send(format!("{refusal}\r\n")).expect("MAIL FROM:<s@example.test> SIZE=");
        let script = script.send("250 ok\r\n").expect("RCPT").send("250 ok\r\n").expect("DATA").send("354 go\r\n");
        let server = script.content().send("250 taken\r\n").start().await;
        let mut connection = connected(&server).await;
        assert_eq!(tls(&connection), None);
        assert_eq!(connection.tls_failure(), Some(format!("the server refused STARTTLS: {refusal}").as_str()));
        assert_eq!(told(&deliver(&mut connection, &ONE).await), ["250 taken"]);
    }
}

#[tokio::test]
async fn a_handshake_that_breaks_is_followed_by_a_connection_in_clear() {
    let config = server_config(&TLS13);
    let hasty = Settings { tls_timeout: Duration::from_millis(100), ..settings() };
    for (broken, settings, expected) in [
        (asked().send("220 go\r\n").hear().close(), settings(), "the TLS handshake failed: "),
        (
            asked().send("220 go\r\n").hear().send("250 what?\r\n"),
            settings(),
            "the TLS handshake failed: received corrupt",
        ),
        (asked().close(), settings(), "connection closed by the server while waiting for the reply to STARTTLS"),
        (asked().send("421 4.3.2 bye\r\n").close(), settings(), "the server refused STARTTLS: 421 4.3.2 bye"),
        // It does encrypt, and then does not like it.
        (
            asked().send("220 go\r\n").encrypt(&config).expect("EHLO").take_leave(),
            settings(),
            "connection closed by the server while waiting for the reply to EHLO, encrypted",
        ),
        // Silence; the client hangs up.
        (asked().send("220 go\r\n"), hasty, "the TLS handshake failed: timed out after 100ms"),
    ] {
        let clear = offering().expect("MAIL").send("250 ok\r\n").expect("RCPT").send("250 ok\r\n");
        let clear = clear.expect("DATA").send("354 go\r\n").content().send("250 taken\r\n");
        let server = Script::start_each([broken, clear]).await;
        let mut connection = connect(server.target(), &settings).await.unwrap();
        assert_eq!(tls(&connection), None);
        let why = connection.tls_failure().unwrap();
        assert!(why.starts_with(expected), "{why}");
        assert_eq!(told(&deliver(&mut connection, &ONE).await), ["250 taken"]);
    }
}

#[tokio::test]
async fn words_put_behind_the_220_in_clear_are_not_taken_for_the_encrypted_server_s() {
    // No second script: a retry would find nobody, and fail otherwise.
    let server = asked().send("220 go\r\n250-server\r\n250 PIPELINING\r\n").start().await;
    let error = connect(server.target(), &settings()).await.unwrap_err();
    let why = "the server sent something nobody asked for".to_owned();
    assert_eq!(error, ConnectError::Protocol { why, stage: Stage::StartTls });
    let nonsense = asked().send("250 fine\r\n").start().await;
    let error = connect(nonsense.target(), &settings()).await.unwrap_err();
    assert_eq!(error.to_string(), "the server said 250 fine while waiting for the reply to STARTTLS");
}

#[tokio::test]
async fn encryption_that_is_switched_off_is_not_asked_for() {
    let server = offering().expect_alone("QUIT").send("221 bye\r\n").start().await;
    let off = Settings { tls: TlsPolicy::Off, ..settings() };
    let connection = connect(server.target(), &off).await.unwrap();
    assert_eq!((tls(&connection), connection.tls_failure()), (None, None));
    connection.quit().await;
    server.finish().await;
}

#[tokio::test]
async fn what_is_sent_ahead_through_tls_is_sent_behind_the_whole_dot() {
    for version in [&TLS12, &TLS13] {
        let config = server_config(version);
        let script = encrypted(&config).pipelined(1, GO).content_and_more().pipelined(1, &format!("250 one\r\n{GO}"));
        let server = script.content().send("250 two\r\n").expect("QUIT").send("221 bye\r\n").start().await;
        let mut connection = connected(&server).await;
        assert_eq!(told(&ahead::deliver_before(&mut connection, &ONE, &ONE).await.results), ["250 one"]);
        assert!(connection.is_promised() && !connection.peer_closed());
        assert_eq!(told(&deliver(&mut connection, &ONE).await), ["250 two"]);
        connection.quit().await;
        assert_eq!(server.finish().await.messages, vec![[HEADER, CONTENT].concat(); 2]);
    }
}

#[tokio::test]
async fn large_messages_arrive_whole_through_tls() {
    // TLS records hold 16 KiB, rustls and the chunks 64.
    let border = 64 * 1024 - HEADER.len();
    for size in [16 * 1024 - HEADER.len(), border - 1, border, border + 1, 4 * 1024 * 1024] {
        let mut content = b".line\r\n".repeat(size / 7);
        content.splice(..0, vec![b'x'; size % 7]);
        let config = server_config(&TLS13);
        let server = encrypted(&config).pipelined(1, GO).content().send("250 taken\r\n").start().await;
        let mut connection = connected(&server).await;
        assert_eq!(told(&deliver_to(&mut connection, &ONE, &content).await.results), ["250 taken"]);
        drop(connection);
        assert!(server.finish().await.messages == [[HEADER, &content].concat()], "{size}");
    }
}

#[tokio::test]
async fn a_refusal_within_encrypted_content_is_heard_instead_of_pushing_on() {
    let huge = b"line\r\n".repeat(32 * 1024 * 1024 / 6);
    for (stop, expected) in [
        (Script::stall as fn(Script) -> Script, "552 5.3.4 too big"),
        (Script::take_leave, "552 5.3.4 too big"),
        (Script::close, "552 5.3.4 too big"),
    ] {
        let config = server_config(&TLS13);
        let server = stop(encrypted(&config).pipelined(1, GO).send("552 5.3.4 too big\r\n")).start().await;
        let mut connection = connected(&server).await;
        assert_eq!(told(&deliver_to(&mut connection, &ONE, &huge).await.results), [expected]);
        assert!(!connection.is_usable());
    }
}

#[tokio::test]
async fn a_server_that_stops_reading_encrypted_content_does_not_hold_us_for_ever() {
    let config = server_config(&TLS13);
    let server = encrypted(&config).pipelined(1, GO).stall().start().await;
    let hasty = Settings { block_timeout: Duration::from_millis(200), ..settings() };
    let mut connection = connect(server.target(), &hasty).await.unwrap();
    let huge = b"line\r\n".repeat(32 * 1024 * 1024 / 6);
    let results = deliver_to(&mut connection, &ONE, &huge).await.results;
    assert_eq!(told(&results), ["lost: timed out after 200ms while sending the content"]);
}

#[tokio::test]
async fn a_server_that_hangs_up_behind_the_encrypted_dot_may_have_the_message() {
    let config = server_config(&TLS13);
    let server = encrypted(&config).pipelined(1, GO).content().close().start().await;
    let mut connection = connected(&server).await;
    let why = "in doubt: connection closed by the server while waiting for the reply to the final dot";
    assert_eq!(told(&deliver(&mut connection, &ONE).await), [why]);
}

#[tokio::test]
async fn a_source_that_fails_yields_no_dot_through_tls() {
    struct Fails(u8);
    impl Content for Fails {
        fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, String> {
            self.0 = self.0.checked_sub(1).ok_or("gone")?;
            // More than is held back for the dot.
            Ok(Some(b"line\r\n".repeat(8_000)))
        }
    }
    let config = server_config(&TLS13);
    let server = encrypted(&config).pipelined(1, GO).start().await;
    let mut connection = connected(&server).await;
    let results = deliver_from(&mut connection, &ONE, &mut Fails(2), 100_000).await.results;
    assert_eq!(told(&results), ["lost: our own copy cannot be read: gone while sending the content"]);
    assert!(!connection.is_usable());
    drop(connection);
    let sent = [HEADER, &b"line\r\n".repeat(16_000)].concat();
    assert_eq!(Some(&server.finish().await.rest[..]), sent.strip_suffix(b"\r\n"));
}

#[tokio::test]
async fn an_encrypted_server_that_ended_while_idle_is_not_taken_from_the_pool() {
    for version in [&TLS12, &TLS13] {
        let config = server_config(version);
        for last in [
            encrypted(&config).take_leave(),
            encrypted(&config).close(),
            encrypted(&config).send("421 idle too long\r\n"),
            encrypted(&config).send("421 bye\r\n").take_leave(),
        ] {
            let server = last.start().await;
            let mut connection = connected(&server).await;
            while !connection.peer_closed() {
                tokio::task::yield_now().await;
            }
            assert!(!connection.is_usable());
        }
        // A 421 that came while idle is the answer to the message that follows.
        let (sender, sent) = oneshot::channel();
        let server = encrypted(&config).send("421 4.3.2 idle too long\r\n").tell(sender).start().await;
        let mut connection = connected(&server).await;
        sent.await.unwrap();
        assert_eq!(told(&deliver(&mut connection, &ONE).await), ["421 4.3.2 idle too long"]);
    }
}

#[tokio::test]
async fn new_keys_while_idle_are_no_words_of_the_server() {
    let config = server_config(&TLS13);
    let (sender, changed) = oneshot::channel();
    let script = encrypted(&config).change_keys().tell(sender).pipelined(1, GO).content().send("250 taken\r\n");
    let server = script.start().await;
    let mut connection = connected(&server).await;
    changed.await.unwrap();
    assert!(!connection.peer_closed());
    assert_eq!(told(&deliver(&mut connection, &ONE).await), ["250 taken"]);
}

#[tokio::test]
async fn tickets_while_idle_are_no_words_of_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (client, (server, from)) = (client.unwrap(), server.unwrap());
    let acceptor = TlsAcceptor::from(server_config(&TLS13));
    let (client, server) =
        tokio::join!(crate::tls::handshake(client, "tickets.example.test", from.ip()), acceptor.accept(server));
    let (mut client, mut server) = (Stream::Encrypted(Box::new(client.unwrap())), server.unwrap());
    // The tickets stand behind the handshake, and nobody has read since.
    server.flush().await.unwrap();
    assert!(SockRef::from(client.tcp()).peek(&mut [MaybeUninit::uninit()]).unwrap() > 0);
    assert_eq!(client.unasked(), None);
    server.write_all(b"421 bye\r\n").await.unwrap();
    server.flush().await.unwrap();
    let words = loop {
        match client.unasked() {
            Some(words) => break words,
            None => tokio::task::yield_now().await,
        }
    };
    assert_eq!(words.to_string(), "the server sent something nobody asked for");
}
