//! The PROXY protocol (haproxy's proxy-protocol.txt, versions 1 and 2): what a load balancer in front of us says of its client,
//! before anything else. Read from configured addresses alone, and there it must stand: who could leave it out would be taken
//! for the balancer.
//!
//! A header is read to its last byte and no further, so nothing of the session is lost: version 2 by its length, version 1, which
//! has none, byte by byte. Extensions (TLV) are passed over.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// A balancer sends it with its first packet; section 1 asks for three seconds at least.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
/// Section 2.1: the longest line of version 1, with its CRLF.
const LINE_BYTES_MAX: usize = 107;
/// Section 2.2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const FIXED_BYTES: usize = 16;
/// Addresses (36) and a few extensions; those of TLS carry a name or two.
const REST_BYTES_MAX: usize = 520;

/// What the header says, read from `stream`: the client behind the proxy, or none if the connection is the proxy's own (a health
/// check) or its client is not known.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut head = vec![0; 6];
    stream.read_exact(&mut head).await?;
    if head == b"PROXY " {
        while !head.ends_with(b"\r\n") {
            if head.len() >= LINE_BYTES_MAX {
                return Err(wrong("its line is too long"));
            }
            head.push(stream.read_u8().await?);
        }
        return line(&head);
    }
    if !SIGNATURE.starts_with(&head) {
        return Err(wrong("there is none"));
    }
    head.resize(FIXED_BYTES, 0);
    stream.read_exact(head.get_mut(6..).unwrap_or_default()).await?;
    let bytes = match head.get(14..) {
        Some([high, low]) if head.starts_with(SIGNATURE) => usize::from(u16::from_be_bytes([*high, *low])),
        _ => return Err(wrong("there is none")),
    };
    if bytes > REST_BYTES_MAX {
        return Err(wrong("it is too long"));
    }
    let mut rest = vec![0; bytes];
    stream.read_exact(&mut rest).await?;
    match head.get(12..14) {
        Some([command, family]) => binary(*command, *family, &rest),
        _ => Err(wrong("there is none")),
    }
}

fn wrong(why: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("a PROXY header was expected: {why}"))
}

/// `PROXY TCP4 SOURCE DESTINATION PORT PORT`, `TCP6` likewise, or `UNKNOWN` and whatever.
fn line(line: &[u8]) -> io::Result<Option<SocketAddr>> {
    let text = str::from_utf8(line)
        .ok()
        .and_then(|line| line.strip_suffix("\r\n"))
        .ok_or_else(|| wrong("its line is no text"))?;
    let words: Vec<&str> = text.split(' ').collect();
    let of = |ip: Option<IpAddr>, port: &str| {
        let port = port.parse().ok().filter(|_| port.bytes().all(|b| b.is_ascii_digit()));
        ip.zip(port).map(|(ip, port)| SocketAddr::new(ip, port))
    };
    let v4 = |text: &str| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    let v6 = |text: &str| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let ends = match words[..] {
        ["PROXY", "UNKNOWN", ..] => return Ok(None),
        ["PROXY", "TCP4", source, destination, from, to] => of(v4(source), from).zip(of(v4(destination), to)),
        ["PROXY", "TCP6", source, destination, from, to] => of(v6(source), from).zip(of(v6(destination), to)),
        _ => None,
    };
    ends.map(|(source, _)| Some(source)).ok_or_else(|| wrong("its line is not as version 1 has it"))
}

/// `rest`: the addresses, and what follows them.
fn binary(command: u8, family: u8, rest: &[u8]) -> io::Result<Option<SocketAddr>> {
    let short = || wrong("its addresses are cut short");
    match (command, family) {
        // LOCAL: whatever else is said of it.
        (0x20, _) => Ok(None),
        (0x21, 0x11) => {
            let [a, b, c, d, _, _, _, _, high, low, _, _] = rest.first_chunk::<12>().ok_or_else(short)?;
            let ip = Ipv4Addr::new(*a, *b, *c, *d);
            Ok(Some(SocketAddr::new(ip.into(), u16::from_be_bytes([*high, *low]))))
        }
        (0x21, 0x21) => {
            let addresses = rest.first_chunk::<36>().ok_or_else(short)?;
            let (source, ports) = (addresses.first_chunk::<16>().ok_or_else(short)?, addresses.last_chunk::<4>());
            let [high, low, _, _] = ports.ok_or_else(short)?;
            Ok(Some(SocketAddr::new(Ipv6Addr::from(*source).into(), u16::from_be_bytes([*high, *low]))))
        }
        // A datagram or a local socket: no address that a mail server could use.
        (0x21, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => Ok(None),
        (0x21, _) => Err(wrong("its family of addresses is unknown")),
        _ => Err(wrong("its version or command is unknown")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What was said, and what is left for the session.
    fn heard(bytes: &[u8]) -> (Result<Option<String>, ErrorKind>, Vec<u8>) {
        let mut rest = bytes;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let said = runtime.block_on(read(&mut rest));
        (said.map(|client| client.map(|client| client.to_string())).map_err(|error| error.kind()), rest.to_vec())
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    #[test]
    fn a_header_says_who_the_client_is_and_nothing_behind_it_is_lost() {
        let v4 = [203, 0, 113, 7, 192, 0, 2, 1, 0x10, 0xe1, 0, 25];
        let v6 =
            [&Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).octets()[..], &[0; 16], &[0x10, 0xe1, 0, 25]].concat();
        let tlv = [&v4[..], &[4, 0, 3, 1, 2, 3]].concat();
        for (header, client) in [
            (b"PROXY TCP4 203.0.113.7 192.0.2.1 4321 25\r\n".to_vec(), Some("203.0.113.7:4321")),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 4321 25\r\n".to_vec(), Some("[2001:db8::7]:4321")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff:f...f:ffff 65535\r\n".to_vec(), None),
            (v2(0x21, 0x11, &v4), Some("203.0.113.7:4321")),
            (v2(0x21, 0x11, &tlv), Some("203.0.113.7:4321")),
            (v2(0x21, 0x21, &v6), Some("[2001:db8::7]:4321")),
            (v2(0x20, 0x11, &v4), None),
            (v2(0x20, 0, &[]), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            let expected = (Ok(client.map(str::to_owned)), b"EHLO c\r\n".to_vec());
            assert_eq!(heard(&[&header[..], b"EHLO c\r\n"].concat()), expected, "{}", header.escape_ascii());
        }
    }

    #[test]
    fn what_is_not_a_whole_header_makes_nobody_a_client() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        for wrong in [
            &b"EHLO client.test\r\n"[..],
            b"PROXY TCP4 203.0.113.7 192.0.2.1 4321\r\n",
            b"PROXY TCP4 203.0.113.7 192.0.2.1 4321 25 6\r\n",
            b"PROXY TCP4 2001:db8::7 192.0.2.1 4321 25\r\n",
            b"PROXY TCP4 203.0.113.7 192.0.2.1 +4321 25\r\n",
            b"PROXY TCP4 203.0.113.7 192.0.2.1 65536 25\r\n",
            b"PROXY  TCP4 203.0.113.7 192.0.2.1 1 25\r\n",
            b"PROXY TCP4 203.0.113.7 192.0.2.1 4321 25\n.....................................................................",
            b"proxy TCP4 203.0.113.7 192.0.2.1 4321 25\r\n",
            long.as_bytes(),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x21, &[0; 35]),
            &v2(0x22, 0x11, &[0; 12]),
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x21, 0x41, &[0; 12]),
            &v2(0x21, 0x11, &[0; 521]),
            b"\r\n\r\n\0\r\nQUIX\n\x21\x11\0\0",
        ] {
            assert_eq!(heard(wrong).0, Err(ErrorKind::InvalidData), "{}", wrong.escape_ascii());
        }
        let whole = v2(0x21, 0x11, &[1; 12]);
        for cut in 0..whole.len() {
            assert_eq!(heard(&whole[..cut]).0, Err(ErrorKind::UnexpectedEof), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_no_further_than_a_header_goes(
            start in prop_oneof![Just(&b""[..]), Just(&b"PROXY "[..]), Just(&b"PROXY TCP4 "[..]), Just(&SIGNATURE[..])],
            bytes in proptest::collection::vec(any::<u8>(), 0..900),
        ) {
            let input = [start, &bytes].concat();
            let (_, rest) = heard(&input);
            prop_assert!(input.len() - rest.len() <= FIXED_BYTES + REST_BYTES_MAX && input.ends_with(&rest));
        }
    }
}
