//! How often the client waits for the server: a message that costs a round trip more than it must is slow where they are long.

use super::ahead::deliver_before;
use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const MESSAGES: usize = 200;
/// More than any flight here: one read takes all that has come.
const READ_BYTES: usize = 64 * 1024;
const ONE: [&str; 1] = ["a@example.test"];

/// Takes all there is to take of `unread`, and gives the replies; what is not whole stays.
fn answer(unread: &mut Vec<u8>, in_content: &mut bool, taken: &mut usize) -> Vec<u8> {
    let mut replies = Vec::new();
    while let Some(end) = unread.windows(2).position(|w| w == b"\r\n").map(|at| at + 2) {
        let line = String::from_utf8(unread[..end].to_vec()).unwrap();
        let mut octets = 0;
        let reply = match line.split_whitespace().next().unwrap_or_default() {
            "." if *in_content => {
                (*in_content, *taken) = (false, *taken + 1);
                "250 taken\r\n"
            }
            _ if *in_content => "",
            "DATA" => {
                *in_content = true;
                "354 go\r\n"
            }
            "BDAT" => {
                octets = line.split_whitespace().nth(1).unwrap().parse().unwrap();
                if unread.len() < end + octets {
                    break;
                }
                *taken += usize::from(line.ends_with(" LAST\r\n"));
                "250 taken\r\n"
            }
            "MAIL" | "RCPT" => "250 ok\r\n",
            "QUIT" => "221 bye\r\n",
            other => panic!("{other}"),
        };
        unread.drain(..end + octets);
        replies.extend_from_slice(reply.as_bytes());
    }
    replies
}

/// The client's waits for `MESSAGES` messages, one after the other on one connection. The server says nothing before it has
/// read all that has come, and so once for each wait.
async fn flights(offers: &str, tells_next: bool) -> usize {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = crate::Target::Host { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
    let offers: String = offers.split(' ').map(|keyword| format!("250-{keyword}\r\n")).collect();
    let ehlo = format!("250-x\r\n{offers}250 HELP\r\n");
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"220 hi\r\n").await.unwrap();
        let (mut unread, mut in_content, mut taken, mut waits) = (Vec::with_capacity(READ_BYTES), false, 0, 0);
        while !unread.ends_with(b"\r\n") {
            assert_ne!(stream.read_buf(&mut unread).await.unwrap(), 0);
        }
        unread.clear();
        stream.write_all(ehlo.as_bytes()).await.unwrap();
        loop {
            unread.reserve(READ_BYTES);
            assert_ne!(stream.read_buf(&mut unread).await.unwrap(), 0);
            let said = answer(&mut unread, &mut in_content, &mut taken);
            if said.starts_with(b"221") {
                break;
            }
            waits += usize::from(!said.is_empty());
            stream.write_all(&said).await.unwrap();
        }
        (taken, waits)
    });
    let mut connection = connect(&target, &settings()).await.unwrap();
    for n in 1..=MESSAGES {
        // As the daemon does: the last has none behind it.
        let told_of = if tells_next && n < MESSAGES && connection.takes_ahead() {
            told(&deliver_before(&mut connection, &ONE, &ONE).await.results)
        } else {
            told(&deliver(&mut connection, &ONE).await)
        };
        assert_eq!(told_of, ["250 taken"]);
    }
    connection.quit().await;
    let (taken, waits) = server.await.unwrap();
    assert_eq!(taken, MESSAGES);
    waits
}

#[tokio::test]
async fn a_message_that_costs_more_round_trips_than_it_must_is_noticed() {
    let mut told = Vec::new();
    for (what, offers, tells_next, tenths_max) in [
        ("PIPELINING, nothing ahead", "PIPELINING", false, 22),
        ("PIPELINING, the next ahead", "PIPELINING", true, 22),
        ("PIPELINING and CHUNKING", "PIPELINING CHUNKING", true, 12),
        ("nothing offered", "8BITMIME", true, 40),
    ] {
        let waits = flights(offers, tells_next).await;
        told.push(format!("{what}: {waits} waits for {MESSAGES} messages"));
        assert!(waits * 10 <= MESSAGES * tenths_max, "{told:?}");
    }
    println!("{}", told.join("\n"));
}
