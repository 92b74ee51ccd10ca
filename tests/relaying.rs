//! No mail to strangers: every way we know to make a relay carry mail for others gets a 550. The test refuses to be content with
//! replies: in the end the primary must have seen nothing but the one honest message.

use crate::harness::{Client, Message, Serve, Sink, client::Reply, queued_id, scratch};

/// Forward-paths that are well formed and not ours. `%`, `!` and `@` in a local part are routes in disguise: a primary that
/// trusts us might follow them, so they are refused even in front of our own domain.
const STRANGERS: &[&str] = &[
    "user@other.test",
    "USER@OTHER.TEST",
    "postmaster@other.test",
    "user@sub.example.test",
    "user@example.test.other.test",
    "user@notexample.test",
    "user@xexample.test",
    "user@test",
    "user@localhost",
    "root@localhost.localdomain",
    "user@mx2.example.test",
    "user@primary.example.test",
    "user@127.0.0.1",
    "user@[127.0.0.1]",
    "user@[192.0.2.1]",
    "user@[IPv6:::1]",
    "user@[IPv6:2001:db8::1]",
    "user%other.test@example.test",
    "user%other.test@mx2.example.test",
    "user%other.test@[127.0.0.1]",
    "user%other.test%example.test@example.test",
    "other.test!user@example.test",
    "example.test!other.test!user@other.test",
    "\"user@other.test\"@example.test",
    "\"user\\@other.test\"@example.test",
    "\"user%other.test\"@example.test",
    "\"other.test!user\"@example.test",
    "\"user@example.test\"@other.test",
    "\"<user@example.test>\"@other.test",
    "user%example.test@other.test",
    "example.test!user@other.test",
    "@example.test:user@other.test",
    "@mx2.example.test:user@other.test",
    "@example.test,@mx2.example.test:user@other.test",
    "@example.test:user%other.test@example.test",
    "user+other.test@other.test",
    "user@xn--exmple-cua.test",
];

/// Not well formed: any refusal for good will do, as long as it is one.
const MALFORMED: &[&str] = &[
    "user@other.test@example.test",
    "user@example.test@other.test",
    "user@example.test,user@other.test",
    "user@example.test user@other.test",
    "user@example.test>,<user@other.test",
    "user@example.test> ORCPT=rfc822;user@other.test <user@other.test",
    "user@example.test\0@other.test",
    "user@other.test\0@example.test",
    "user@example.test\t@other.test",
    "user@example.test%other.test",
    "other.test!user",
    "user%other.test",
    "@example.test",
    "user@@example.test",
    "user@.example.test",
    "user@example..test",
    "|/bin/cat@example.test\"",
    "user@example.test(comment)",
    "user:other.test@example.test",
    "user@[example.test]",
    "user@[x-tag:example.test]",
    "user@\u{435}xample.test",
];

fn refused(client: &mut Client, path: &str) -> Reply {
    let reply = client.command(&format!("RCPT TO:<{path}>")).unwrap();
    assert_eq!(reply.code / 100, 5, "RCPT TO:<{path}> got {}", reply.text());
    reply
}

/// A session that is past MAIL.
fn begun(daemon: std::net::SocketAddr, hello: &str, mail: &str) -> Client {
    let mut client = Client::connect(daemon).unwrap();
    let hello = client.command(hello).unwrap();
    assert_eq!(hello.code, 250, "{}", hello.text());
    let mail = client.command(mail).unwrap();
    assert_eq!(mail.code, 250, "{}", mail.text());
    client
}

#[test]
fn no_trick_makes_it_an_open_relay() {
    let directory = scratch();
    let primary = Sink::opened();
    let daemon = Serve::new(&directory.path().join("data"), primary.port).start();
    // A connection each: a server may cut a client that is refused too often, and that must not save a trick.
    let senders = [
        "MAIL FROM:<spammer@example.net>",
        "MAIL FROM:<>",
        "MAIL FROM:<user@example.test>",
        "MAIL FROM:<postmaster@mx2.example.test>",
    ];
    for (n, path) in STRANGERS.iter().enumerate() {
        let hello = if n % 2 == 0 { "EHLO example.test" } else { "HELO localhost" };
        let reply = refused(&mut begun(daemon.smtp, hello, senders[n % senders.len()]), path);
        assert_eq!(reply.code, 550, "RCPT TO:<{path}> got {}", reply.text());
    }
    for path in MALFORMED {
        refused(&mut begun(daemon.smtp, "EHLO example.test", senders[0]), path);
    }
    // A stranger behind an accepted recipient, and commands that ask for trust.
    let mut client = begun(daemon.smtp, "EHLO example.test", senders[0]);
    for ask in [
        "XCLIENT ADDR=127.0.0.1 NAME=localhost",
        "XFORWARD ADDR=127.0.0.1",
        "AUTH PLAIN AGEAYgBj",
        "AUTH LOGIN",
        "TURN",
        "VRFY user",
        "EXPN all",
    ] {
        let reply = client.command(ask).unwrap();
        assert!(reply.code / 100 == 5 || reply.code == 252, "{ask} got {}", reply.text());
    }
    assert_eq!(client.command("RCPT TO:<box@example.test>").unwrap().code, 250);
    assert_eq!(refused(&mut client, "user@other.test").code, 550);
    assert_eq!(client.command("DATA").unwrap().code, 354);
    let honest = Message::new("relay", 1, 200);
    queued_id(&client.content(&honest.content).unwrap());
    let received = primary.wait_for(1);
    assert_eq!(received[0].to, ["box@example.test"]);
    daemon.wait_until_empty();
    assert_eq!(primary.count(), 1, "mail for strangers reached the primary: {:?}", primary.received());
}

#[test]
fn commands_smuggled_behind_bare_line_ends_are_not_obeyed() {
    let directory = scratch();
    let primary = Sink::opened();
    let daemon = Serve::new(&directory.path().join("data"), primary.port).start();
    let envelope = "MAIL FROM:<smuggled@example.net>\r\nRCPT TO:<victim@example.test>\r\nDATA\r\n";
    let second = "Message-ID: <smuggled@example.net>\r\n\r\nsmuggled\r\n.\r\n";
    for end in ["\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r\n.\r", "\r.\r\n", "\n.\r", "\r\n\0.\r\n", "\r\n.\0\r\n"] {
        let mut client = Client::ehlo(daemon.smtp);
        for (command, code) in [("MAIL FROM:<a@example.net>", 250), ("RCPT TO:<box@example.test>", 250), ("DATA", 354)]
        {
            assert_eq!(client.command(command).unwrap().code, code);
        }
        let content = format!("Message-ID: <outer@example.net>\r\n\r\nouter{end}{envelope}{second}");
        // Refusing it and closing, or taking it as content: both are right. Obeying it is not.
        let _ = client.raw(content.as_bytes());
        let _ = client.reply();
        let _ = client.raw(b"QUIT\r\n");
        while client.reply().is_ok() {}
    }
    daemon.wait_until_empty();
    for received in primary.received() {
        assert_ne!(received.from, "smuggled@example.net", "a smuggled envelope was obeyed");
        assert_eq!(received.to, ["box@example.test"], "a smuggled recipient was obeyed");
    }
}

#[test]
fn a_source_route_to_us_delivers_to_us_alone() {
    let directory = scratch();
    let primary = Sink::opened();
    let daemon = Serve::new(&directory.path().join("data"), primary.port).start();
    let mut client = begun(daemon.smtp, "EHLO example.test", "MAIL FROM:<a@example.net>");
    let reply = client.command("RCPT TO:<@other.test,@third.test:box@example.test>").unwrap();
    // RFC 5321 section 4.1.1.3 lets us ignore the route or refuse it.
    if reply.code / 100 == 2 {
        assert_eq!(client.command("DATA").unwrap().code, 354);
        queued_id(&client.content(&Message::new("route", 1, 100).content).unwrap());
        assert_eq!(primary.wait_for(1)[0].to, ["box@example.test"]);
    }
    assert_eq!(primary.attempts("@other.test,@third.test:box@example.test"), 0);
}
