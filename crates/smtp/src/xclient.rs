//! Reads the argument of XCLIENT (Postfix's XCLIENT_README): what a proxy says of the client behind it. Whether this proxy may, the
//! session decides. The client's host name is checked and dropped: we look none up, and put none into our Received header.

use crate::command::{CommandError, helo_argument, once, words};
use restante_envelope::{DomainName, Protocol};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What the EHLO keyword names; any other is an error.
pub(crate) const ATTRIBUTES: &str = "NAME ADDR PORT PROTO HELO";
/// XCLIENT_README: names of hosts, the longest values, have up to 255 characters.
const VALUE_BYTES_MAX: usize = 255;

/// Who the client is from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Xclient {
    pub(crate) client: SocketAddr,
    /// What it called itself, and how, if the proxy has heard that already: it need not be said again.
    pub(crate) hello: Option<(String, Protocol)>,
}

impl Xclient {
    /// `proxy` is whose connection it is, and `client` who it was taken for so far: what is not given stays, but a name in HELO.
    pub(crate) fn parse(argument: &str, proxy: SocketAddr, client: SocketAddr) -> Result<Self, CommandError> {
        let (mut name, mut addr, mut port, mut proto, mut helo) = (None, None, None, None, None);
        for attribute in words(argument) {
            let (keyword, value) = attribute.split_once('=').ok_or(CommandError::XclientSyntax)?;
            let value = known(value)?;
            match keyword.to_ascii_uppercase().as_str() {
                "NAME" => once(&mut name, value.map(|name| domain(&name)).transpose()?)?,
                "ADDR" => once(&mut addr, value.map(|addr| address(&addr)).transpose()?)?,
                "PORT" => once(&mut port, value.map(|port| number(&port)).transpose()?)?,
                "PROTO" => once(&mut proto, value.map(|proto| protocol(&proto)).transpose()?)?,
                "HELO" => once(&mut helo, value.map(|helo| helo_argument(&helo).map(str::to_owned)).transpose()?)?,
                _ => return Err(CommandError::XclientSyntax),
            }
        }
        if words(argument).next().is_none() {
            return Err(CommandError::XclientSyntax);
        }
        // Without its port the address has none: the proxy's own would be a lie.
        let client = match (addr, port.flatten()) {
            (None, port) => SocketAddr::new(client.ip(), port.unwrap_or(client.port())),
            (Some(None), _) => proxy,
            (Some(Some(addr)), port) => SocketAddr::new(addr, port.unwrap_or(0)),
        };
        let protocol = proto.flatten().unwrap_or(Protocol::Smtp);
        Ok(Self { client, hello: helo.flatten().map(|helo| (helo, protocol)) })
    }
}

/// The value out of its xtext (RFC 3461 section 4); none if the proxy does not know it, either.
fn known(xtext: &str) -> Result<Option<String>, CommandError> {
    let (mut value, mut bytes) = (String::new(), xtext.bytes());
    while let Some(b) = bytes.next() {
        let decoded = match b {
            b'+' => hex(bytes.next()).zip(hex(bytes.next())).map(|(high, low)| high << 4 | low),
            b'=' => None,
            other => Some(other),
        };
        // Printable: it goes into logs and headers.
        value.push(decoded.filter(u8::is_ascii_graphic).map(char::from).ok_or(CommandError::XclientSyntax)?);
    }
    match value.to_ascii_uppercase().as_str() {
        "[UNAVAILABLE]" | "[TEMPUNAVAIL]" => Ok(None),
        _ if (1..=VALUE_BYTES_MAX).contains(&value.len()) => Ok(Some(value)),
        _ => Err(CommandError::XclientSyntax),
    }
}

fn hex(digit: Option<u8>) -> Option<u8> {
    match digit? {
        b @ b'0'..=b'9' => Some(b - b'0'),
        b @ b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    }
}

fn domain(name: &str) -> Result<DomainName, CommandError> {
    DomainName::parse(name).map_err(|_| CommandError::XclientSyntax)
}

/// An IPv4 client behind an IPv6 socket of the proxy is an IPv4 client.
fn address(text: &str) -> Result<IpAddr, CommandError> {
    let address = match text.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => {
            text.get(5..).and_then(|text| text.parse::<Ipv6Addr>().ok()).map(|v6| IpAddr::V6(v6).to_canonical())
        }
        _ => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    };
    address.ok_or(CommandError::XclientSyntax)
}

fn number(digits: &str) -> Result<u16, CommandError> {
    let is_number = digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number).ok_or(CommandError::XclientSyntax)
}

fn protocol(word: &str) -> Result<Protocol, CommandError> {
    match word.to_ascii_uppercase().as_str() {
        "SMTP" => Ok(Protocol::Smtp),
        "ESMTP" => Ok(Protocol::Esmtp),
        _ => Err(CommandError::XclientSyntax),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PROXY: &str = "192.0.2.1:1111";
    const BEFORE: &str = "198.51.100.2:2222";

    fn parse(argument: &str) -> Result<(String, Option<(String, Protocol)>), CommandError> {
        let read = Xclient::parse(argument, PROXY.parse().unwrap(), BEFORE.parse().unwrap())?;
        Ok((read.client.to_string(), read.hello))
    }

    #[test]
    fn a_client_is_never_given_an_address_that_nobody_named() {
        for (argument, client) in [
            ("ADDR=203.0.113.7", "203.0.113.7:0"),
            ("ADDR=203.0.113.7 PORT=4321", "203.0.113.7:4321"),
            ("port=4321 addr=203.0.113.7", "203.0.113.7:4321"),
            ("ADDR=IPV6:2001:db8::7 PORT=1", "[2001:db8::7]:1"),
            ("ADDR=ipv6:::ffff:203.0.113.7", "203.0.113.7:0"),
            ("ADDR=203.0.113.7 PORT=[UNAVAILABLE]", "203.0.113.7:0"),
            ("ADDR=[UNAVAILABLE] PORT=5", PROXY),
            ("NAME=[TEMPUNAVAIL]", BEFORE),
            ("NAME=client.test", BEFORE),
            ("PORT=5", "198.51.100.2:5"),
            ("ADDR=203+2E0+2E113+2E7", "203.0.113.7:0"),
        ] {
            assert_eq!(parse(argument), Ok((client.to_owned(), None)), "{argument}");
        }
    }

    #[test]
    fn a_name_is_taken_from_the_proxy_as_from_the_client() {
        let hello = |argument: &str| parse(argument).map(|(_, hello)| hello);
        assert_eq!(hello("HELO=c.test"), Ok(Some(("c.test".to_owned(), Protocol::Smtp))));
        assert_eq!(hello("PROTO=ESMTP HELO=c.test"), Ok(Some(("c.test".to_owned(), Protocol::Esmtp))));
        assert_eq!(hello("PROTO=esmtp"), Ok(None));
        assert_eq!(hello("HELO=[unavailable] PROTO=SMTP"), Ok(None));
        // It goes into our Received header.
        for bad in ["HELO=a+20b", "HELO=a+0Ab", "HELO=a(b", "HELO=a+29"] {
            assert!(hello(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_proxy_says_is_read_whole_or_refused() {
        let long = format!("NAME={}", "a.".repeat(128));
        for bad in [
            "",
            " ",
            "ADDR",
            "ADDR=",
            "ADDR=2001:db8::7",
            "ADDR=IPV6:203.0.113.7",
            "ADDR=203.0.113",
            "ADDR=localhost",
            "PORT=65536",
            "PORT=+5",
            "PORT=+2B5",
            "PORT=-1",
            "PROTO=ESMTPS",
            "NAME=-.test",
            "NAME=a+2",
            "NAME=a+2e",
            "NAME=a=b",
            "LOGIN=x",
            "DESTADDR=203.0.113.7",
            &long,
        ] {
            assert_eq!(parse(bad), Err(CommandError::XclientSyntax), "{bad}");
        }
        assert_eq!(parse("PORT=1 PORT=[UNAVAILABLE]"), Err(CommandError::ParameterTwice));
        assert_eq!(parse("ADDR=192.0.2.1 ADDR=192.0.2.1"), Err(CommandError::ParameterTwice));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_name_that_could_forge_a_header(
            argument in "((HELO|ADDR|PORT|NAME|PROTO)=([ -~]{0,12}|(\\+[0-9A-F]{2}){0,6}) ?){0,3}",
        ) {
            if let Ok((_, Some((name, _)))) = parse(&argument) {
                prop_assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b'(' && b != b')'));
            }
        }
    }
}
