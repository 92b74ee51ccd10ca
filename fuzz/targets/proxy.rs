//! Any bytes as the PROXY header of a balancer: read by whole words here, byte by byte there, the client is the same, nothing behind
//! the header is lost, and no more is read than a header may have.
#![no_main]

#[path = "../../crates/restante/serve/proxy.rs"]
#[expect(dead_code, reason = "how long a header may take is the session's")]
mod proxy;

use libfuzzer_sys::fuzz_target;
use restante_fuzz::Choices;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, ReadBuf};

/// Fixed part and the longest rest that is read.
const HEADER_BYTES_MAX: usize = 16 + 520;

/// Bytes that are all there, given out a few at a time.
struct Pieces<'a> {
    rest: &'a [u8],
    at_once: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let (head, rest) = self.rest.split_at(self.at_once.min(self.rest.len()).min(buffer.remaining()));
        buffer.put_slice(head);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

/// What was said, and how much of it was read.
fn heard(bytes: &[u8], at_once: usize) -> (Result<Option<SocketAddr>, ErrorKind>, usize) {
    let mut pieces = Pieces { rest: bytes, at_once };
    let said = {
        let reading = pin!(proxy::read(&mut pieces));
        match reading.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(said) => said.map_err(|error| error.kind()),
            Poll::Pending => panic!("all bytes were there"),
        }
    };
    (said, bytes.len() - pieces.rest.len())
}

/// Version 2 as section 2.2 of its text has it, from a whole buffer; none: not this version, or not whole.
fn second_version(bytes: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    let rest = bytes.strip_prefix(b"\r\n\r\n\0\r\nQUIT\n")?;
    let (&[command, family, high, low], rest) = rest.split_first_chunk()?;
    let length = usize::from(high) << 8 | usize::from(low);
    let addresses = rest.get(..length)?;
    let port = |at: usize| Some(u16::from(*addresses.get(at)?) << 8 | u16::from(*addresses.get(at + 1)?));
    let client = match (command, family) {
        (0x20, _) | (0x21, 0 | 0x12 | 0x22 | 0x31 | 0x32) => None,
        (0x21, 0x11) if length >= 12 => {
            let source: [u8; 4] = addresses.get(..4)?.try_into().ok()?;
            Some((Ipv4Addr::from(source), port(8)?).into())
        }
        (0x21, 0x21) if length >= 36 => {
            let source: [u8; 16] = addresses.get(..16)?.try_into().ok()?;
            Some((Ipv6Addr::from(source), port(32)?).into())
        }
        _ => return None,
    };
    (length <= 520).then_some((client, 16 + length))
}

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let at_once = usize::from(choices.byte()).max(1);
    let starts: [&[u8]; 4] = [b"", b"PROXY ", b"PROXY TCP4 1.2.3.4 ", b"\r\n\r\n\0\r\nQUIT\n"];
    let bytes = [starts[usize::from(choices.byte()) % 4], choices.0].concat();
    let whole = heard(&bytes, usize::MAX);
    assert_eq!(heard(&bytes, at_once), whole);
    assert!(whole.1 <= HEADER_BYTES_MAX);
    match (&whole.0, second_version(&bytes)) {
        (Ok(client), Some(expected)) => assert_eq!((*client, whole.1), expected),
        (Ok(client), None) => {
            let line = bytes
                .get(..whole.1)
                .and_then(|line| line.strip_suffix(b"\r\n"))
                .expect("the first version ends with its line");
            let line = str::from_utf8(line).expect("it is text");
            let words: Vec<&str> = line.split(' ').collect();
            match client {
                None => assert!(line.starts_with("PROXY UNKNOWN"), "{line}"),
                Some(client) => {
                    assert_eq!(
                        (words.len(), words[2].parse(), words[4].parse()),
                        (6, Ok(client.ip()), Ok(client.port())),
                        "{line}"
                    );
                    assert_eq!(words[1], if client.is_ipv4() { "TCP4" } else { "TCP6" });
                }
            }
        }
        (Err(ErrorKind::UnexpectedEof), expected) => assert!(expected.is_none() && whole.1 == bytes.len()),
        (Err(kind), expected) => assert!(*kind == ErrorKind::InvalidData && expected.is_none(), "{kind}"),
    }
});
