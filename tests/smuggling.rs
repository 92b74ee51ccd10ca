//! SMTP smuggling (CVE-2023-51764 to -51766): whatever some server takes for an end of data, one message in is one message out, at a
//! recording sink, a real Postfix and a real Exim behind us. Over DATA in one piece and byte by byte, over BDAT, and inside TLS.

use crate::harness::tls::{Wire, encrypted, trusting};
use crate::harness::{Client, Daemon, Serve, Sink, eventually, scratch};
use rustls::ClientConfig;
use std::io::{BufRead as _, BufReader};
use std::sync::Arc;

/// None of them is CRLF.CRLF.
const NO_ENDS: [&[u8]; 28] = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\n.\r",
    b"\r.\n",
    b"\n\r.\n\r",
    b"\n\n.\r\n",
    b"\r\n.\n\n",
    b"\r\n.\r\r\n",
    b"\r\r.\r\r\n",
    b"\r\n\r.\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\r\n.\r\0\n",
    b"\r\0\n.\r\n",
    b"\r\n .\r\n",
    b"\r\n. \r\n",
    b"\r\n.\t\r\n",
    b"\r\n..\r\n",
    b"\r\n.\x0b\r\n",
    b"\x0c.\x0c\r\n",
    b"\x85.\x85",
    b"\xe2\x80\xa8.\xe2\x80\xa8",
    b"\r\n\xef\xbb\xbf.\r\n",
    b"\r\n=2E\r\n",
];
/// What would be a second message, if the text in front of it ended the first.
const SMUGGLED: &str = "MAIL FROM:<evil@example.net>\r\nRCPT TO:<box@example.test>\r\nDATA\r\nMessage-ID: <smuggled@example.net>\r\nSubject: smuggled\r\n\r\nevil\r\n";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Data,
    DataByBytes,
    Bdat,
    BdatByBytes,
    /// Each byte in a TLS record of its own.
    Tls,
}

const WAYS: [Way; 5] = [Way::Data, Way::DataByBytes, Way::Bdat, Way::BdatByBytes, Way::Tls];

fn content(n: usize, no_end: &[u8]) -> Vec<u8> {
    let head = format!("Message-ID: <whole.{n}@example.net>\r\nSubject: whole\r\n\r\nbody");
    [head.as_bytes(), no_end, SMUGGLED.as_bytes()].concat()
}

fn reply(wire: &mut BufReader<Box<dyn Wire>>) -> String {
    loop {
        let mut line = String::new();
        assert!(wire.read_line(&mut line).unwrap() > 0, "closed instead of a reply");
        if line.as_bytes()[3] == b' ' {
            return line;
        }
    }
}

fn say(wire: &mut BufReader<Box<dyn Wire>>, bytes: &[u8], piece: usize) {
    for piece in bytes.chunks(piece) {
        wire.get_mut().write_all(piece).unwrap();
        wire.get_mut().flush().unwrap();
    }
}

/// Sends one content, and sees that one 250 comes for it and nothing else.
fn send(daemon: &Daemon, tls: &Arc<ClientConfig>, way: Way, content: &[u8]) {
    let wire: Box<dyn Wire> = if way == Way::Tls {
        Box::new(encrypted(daemon, "mx2.example.test", tls))
    } else {
        let stream = Client::ehlo(daemon.smtp).into_stream();
        stream.set_nodelay(true).unwrap();
        Box::new(stream)
    };
    let mut wire = BufReader::new(wire);
    if way == Way::Tls {
        say(&mut wire, b"EHLO client.example.net\r\n", usize::MAX);
        assert!(reply(&mut wire).starts_with("250 "));
    }
    say(&mut wire, b"MAIL FROM:<a@example.net>\r\nRCPT TO:<box@example.test>\r\n", usize::MAX);
    assert!((0..2).all(|_| reply(&mut wire).starts_with("250 ")));
    let piece = if matches!(way, Way::Data | Way::Bdat) { usize::MAX } else { 1 };
    if matches!(way, Way::Bdat | Way::BdatByBytes) {
        // Cut where the trick is.
        let (head, tail) = content.split_at(content.windows(4).position(|four| four == b"body").unwrap() + 5);
        say(&mut wire, &[format!("BDAT {}\r\n", head.len()).as_bytes(), head].concat(), piece);
        assert!(reply(&mut wire).starts_with("250 "));
        say(&mut wire, &[format!("BDAT {} LAST\r\n", tail.len()).as_bytes(), tail].concat(), piece);
    } else {
        say(&mut wire, b"DATA\r\n", usize::MAX);
        assert!(reply(&mut wire).starts_with("354 "));
        say(&mut wire, &[content, b"\r\n.\r\n"].concat(), piece);
    }
    let stored = reply(&mut wire);
    assert!(stored.starts_with("250 2.0.0 "), "{way:?}: {stored}");
    say(&mut wire, b"QUIT\r\n", usize::MAX);
    let bye = reply(&mut wire);
    assert!(bye.starts_with("221 "), "{way:?} {}: {bye}", content.escape_ascii());
}

/// Returns how many were sent.
fn send_all(daemon: &Daemon) -> usize {
    let tls = trusting(daemon);
    let mut n = 0;
    for way in WAYS {
        for no_end in NO_ENDS {
            send(daemon, &tls, way, &content(n, no_end));
            n += 1;
        }
        // Within a chunk the true end of data is none, either.
        if matches!(way, Way::Bdat | Way::BdatByBytes) {
            send(daemon, &tls, way, &content(n, b"\r\n.\r\n"));
            n += 1;
        }
    }
    n
}

#[test]
fn one_message_in_is_one_message_at_the_sink_with_lines_that_can_be_read_in_one_way() {
    let directory = scratch();
    let primary = Sink::opened();
    let daemon = Serve::new(&directory.path().join("data"), primary.port).start();
    let sent = send_all(&daemon);
    daemon.wait_until_empty();
    let received = primary.received();
    assert_eq!(received.len(), sent);
    for message in &received {
        assert!(message.message_id.starts_with("<whole.") && message.from == "a@example.net", "{}", message.message_id);
        let is_line = |line: &[u8]| line.ends_with(b"\r\n") && !line[..line.len() - 2].contains(&b'\r');
        assert!(message.content.split_inclusive(|b| *b == b'\n').all(is_line), "{}", message.content.escape_ascii());
    }
    let ids: std::collections::BTreeSet<&str> = received.iter().map(|message| message.message_id.as_str()).collect();
    assert_eq!(ids.len(), sent, "each once");
}

mod needs_root {
    use super::*;
    use crate::harness::exim::Exim;
    use crate::harness::postfix::{Postfix, Role};

    #[test]
    fn one_message_in_is_one_message_in_postfixs_mailbox() {
        let directory = scratch();
        let postfix = Postfix::start(Role::Primary);
        let daemon = Serve::new(&directory.path().join("data"), postfix.smtp.port()).start();
        let sent = send_all(&daemon);
        daemon.wait_until_empty();
        let mailbox = eventually("all of them", || Some(postfix.mailbox()).filter(|mailbox| mailbox.len() >= sent));
        assert_eq!(mailbox.len(), sent);
        for file in mailbox {
            let text = std::fs::read(file).unwrap();
            let first = text.split(|b| *b == b'\n').find(|line| line.starts_with(b"Message-ID: ")).unwrap();
            assert!(first.starts_with(b"Message-ID: <whole."), "{}", first.escape_ascii());
        }
    }

    #[test]
    fn one_message_in_is_one_message_in_exims_spool() {
        let directory = scratch();
        let exim = Exim::new(1);
        let listener = exim.listen();
        let daemon = Serve::new(&directory.path().join("data"), listener.smtp.port()).start();
        let sent = send_all(&daemon);
        daemon.wait_until_empty();
        let ids = exim.ids();
        assert_eq!(ids.len(), sent);
        for id in ids {
            let header = exim.run(&["-Mvh", &id]).expect_code(0).out;
            assert!(header.contains("Message-ID: <whole.") && !header.contains("smuggled"), "{header}");
        }
    }
}
