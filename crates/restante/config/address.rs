//! Where we listen, where a primary is, and which clients are exempt: addresses as people write them.
//!
//! Asks no DNS: a host name stays a name until the courier needs it.

use restante_envelope::DomainName;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// RFC 5321 section 4.5.4.2: SMTP is spoken on port 25.
const SMTP_PORT: u16 = 25;

/// A next hop as configured: a host name (A and AAAA, not MX) or an IP address, and a TCP port.
///
/// `Display` always writes the port, an IPv6 address in brackets; what it writes parses back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct HostPort {
    /// A host name in lower case, or an IP address without brackets.
    pub(crate) host: String,
    /// TCP port, never 0.
    pub(crate) port: u16,
}

/// Why a text is no next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostPortError {
    Empty,
    Port,
    Brackets,
    Host,
}

impl std::error::Error for HostPortError {}

impl fmt::Display for HostPortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "a host is missing: HOST or HOST:PORT, such as mail.example.com:25",
            Self::Port => "a port is a number from 1 to 65535",
            Self::Brackets => "an IPv6 address stands in brackets, such as [2001:db8::1]:25",
            Self::Host => "a host is a name such as mail.example.com, or an IP address",
        })
    }
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        let (host, port) = if let Some(inner) = text.strip_prefix('[') {
            let (host, rest) = inner.split_once(']').ok_or(HostPortError::Brackets)?;
            let host: Ipv6Addr = host.parse().map_err(|_| HostPortError::Brackets)?;
            let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or(HostPortError::Port)?) };
            (host.to_string(), port)
        } else {
            let (host, port) = match text.split_once(':') {
                Some((_, port)) if port.contains(':') => return Err(HostPortError::Brackets),
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            (host_name(host)?, port)
        };
        Ok(Self { host, port: port.map_or(Ok(SMTP_PORT), port_number)? })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

fn host_name(text: &str) -> Result<String, HostPortError> {
    if text.is_empty() {
        return Err(HostPortError::Empty);
    }
    let name = DomainName::parse(text).map_err(|_| HostPortError::Host)?;
    if looks_like_ipv4(&name) && text.parse::<Ipv4Addr>().is_err() {
        return Err(HostPortError::Host);
    }
    Ok(name.as_str().to_owned())
}

/// Whether the last label is a number: no top-level domain is, and resolvers take `127.1` for an address.
pub(super) fn looks_like_ipv4(name: &DomainName) -> bool {
    name.as_str().rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()))
}

fn port_number(text: &str) -> Result<u16, HostPortError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0).ok_or(HostPortError::Port)
}

impl HostPort {
    /// The listen address that this next hop would lead back to: mail would go round in circles.
    ///
    /// Sees literal addresses, `localhost` and our own name; what other names resolve to is seen at delivery.
    pub(super) fn leads_back_to(&self, hostname: &str, listen: &[SocketAddr]) -> Option<SocketAddr> {
        let same_port = || listen.iter().copied().filter(|ours| ours.port() == self.port);
        if self.host.eq_ignore_ascii_case(hostname) {
            return same_port().next();
        }
        let named = match self.host.parse::<IpAddr>() {
            Ok(address) => vec![reached(address)],
            Err(_) if self.host == "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            Err(_) => return None,
        };
        same_port().find(|ours| {
            let ours = ours.ip();
            // Everything of a family is ours; only loopback is sure to be this machine.
            let any =
                |theirs: &IpAddr| ours.is_unspecified() && theirs.is_loopback() && (ours.is_ipv6() || theirs.is_ipv4());
            named.iter().any(|theirs| *theirs == ours.to_canonical() || any(theirs))
        })
    }
}

/// Where a connection to `address` ends: the unspecified address leads to this machine.
fn reached(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

/// An address and port to listen on. Port 0 asks the system for a free one.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let form = "an address to listen on is IP:PORT, such as \"0.0.0.0:25\" or \"[::]:25\"";
    text.parse().map_err(|_| form.to_owned())
}

/// A DNS server: an IP address, and a port if it is not 53 (RFC 1035 section 4.2).
pub(super) fn dns_server(text: &str) -> Result<SocketAddr, String> {
    const DNS_PORT: u16 = 53;
    let form = "a DNS server is IP or IP:PORT, such as \"127.0.0.1\" or \"[::1]:5353\"";
    let address = text.parse().or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, DNS_PORT)));
    address.ok().filter(|address| address.port() != 0).ok_or_else(|| form.to_owned())
}

/// A block of IP addresses, e.g. `127.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    address: IpAddr,
    prefix_bits: u8,
}

impl Network {
    /// RFC 1122 section 3.2.1.3 and RFC 4291 section 2.5.3.
    pub(super) const LOOPBACK: [Self; 2] = [
        Self { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), prefix_bits: 8 },
        Self { address: IpAddr::V6(Ipv6Addr::LOCALHOST), prefix_bits: 128 },
    ];

    /// Whether `client` is in the block. An IPv4 client of an IPv6 socket counts as IPv4.
    pub(crate) fn contains(self, client: IpAddr) -> bool {
        let same = |ours: u128, theirs: u128, width: u32| {
            let free_bits = width.saturating_sub(u32::from(self.prefix_bits));
            (ours ^ theirs).checked_shr(free_bits).unwrap_or(0) == 0
        };
        match (self.address, client.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => same(ours.to_bits().into(), theirs.to_bits().into(), 32),
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => same(ours.to_bits(), theirs.to_bits(), 128),
            _ => false,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "an IP address or a block of them, such as \"192.0.2.10\" or \"2001:db8::/32\"";
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| form.to_owned())?;
        let width: u8 = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = prefix.map_or(Ok(width), str::parse).map_err(|_| form.to_owned())?;
        if prefix_bits > width {
            return Err(format!("a prefix of at most /{width}"));
        }
        Ok(Self { address, prefix_bits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_next_hop_is_written_back_as_it_is_meant() {
        for (text, shown) in [
            ("mail.example.com:25", "mail.example.com:25"),
            ("Mail.Example.COM", "mail.example.com:25"),
            ("localhost:2526", "localhost:2526"),
            ("[::1]:2526", "[::1]:2526"),
            ("[2001:DB8::1]", "[2001:db8::1]:25"),
            ("192.0.2.1", "192.0.2.1:25"),
        ] {
            let next_hop: HostPort = text.parse().unwrap();
            assert_eq!(next_hop.to_string(), shown);
            assert_eq!(shown.parse(), Ok(next_hop));
        }
    }

    #[test]
    fn what_is_no_next_hop_is_told_why() {
        for (text, error) in [
            ("", HostPortError::Empty),
            (":25", HostPortError::Empty),
            ("host:", HostPortError::Port),
            ("host:0", HostPortError::Port),
            ("host:+25", HostPortError::Port),
            ("host:65536", HostPortError::Port),
            ("[::1]25", HostPortError::Port),
            ("::1", HostPortError::Brackets),
            ("[::1", HostPortError::Brackets),
            ("[mail.example.com]:25", HostPortError::Brackets),
            ("mail example.com", HostPortError::Host),
            ("mail.example.com.", HostPortError::Host),
            ("300.1.1.1", HostPortError::Host),
            ("127.1", HostPortError::Host),
        ] {
            assert_eq!(text.parse::<HostPort>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_primary_that_is_ourselves_is_seen() {
        let back = |primary: &str, listen: &str| {
            let primary: HostPort = primary.parse().unwrap();
            primary.leads_back_to("mx2.example.net", &[listen.parse().unwrap()]).is_some()
        };
        for (primary, listen) in [
            ("127.0.0.1:2525", "127.0.0.1:2525"),
            ("127.0.0.9:25", "0.0.0.0:25"),
            ("127.0.0.1:25", "[::]:25"),
            ("[::1]:25", "[::]:25"),
            ("[::ffff:127.0.0.1]:25", "127.0.0.1:25"),
            ("0.0.0.0:25", "127.0.0.1:25"),
            ("localhost:25", "[::1]:25"),
            ("MX2.example.net", "192.0.2.1:25"),
            ("192.0.2.1", "192.0.2.1:25"),
        ] {
            assert!(back(primary, listen), "{primary} {listen}");
        }
        for (primary, listen) in [
            ("127.0.0.1:2526", "127.0.0.1:2525"),
            ("127.0.0.2:25", "127.0.0.1:25"),
            ("[::1]:25", "0.0.0.0:25"),
            ("192.0.2.9:25", "0.0.0.0:25"),
            ("mail.example.com:25", "[::]:25"),
        ] {
            assert!(!back(primary, listen), "{primary} {listen}");
        }
    }

    #[test]
    fn a_dns_server_is_an_address_and_never_a_name() {
        for (text, server) in [("127.0.0.1", "127.0.0.1:53"), ("::1", "[::1]:53"), ("[::1]:5353", "[::1]:5353")] {
            assert_eq!(dns_server(text), Ok(server.parse().unwrap()));
        }
        for bad in ["", "localhost", "127.0.0.1:0", "127.0.0.1:x", "1.1"] {
            assert!(dns_server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_block_holds_its_addresses_and_no_other() {
        let inside = |block: &str, client: &str| block.parse::<Network>().unwrap().contains(client.parse().unwrap());
        assert!(inside("127.0.0.0/8", "127.9.9.9") && inside("127.0.0.0/8", "::ffff:127.0.0.1"));
        assert!(inside("192.0.2.10", "192.0.2.10") && inside("0.0.0.0/0", "8.8.8.8") && inside("::/0", "2001:db8::1"));
        assert!(
            !inside("127.0.0.0/8", "128.0.0.1") && !inside("192.0.2.10", "192.0.2.11") && !inside("::/0", "1.2.3.4")
        );
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0/8", "10.0.0.0/-1", "localhost"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_parses_round_trips(text in "\\PC{0,30}|\\[?[0-9a-f:.]{0,20}\\]?(:[0-9]{0,6})?") {
            if let Ok(next_hop) = text.parse::<HostPort>() {
                prop_assert_eq!(next_hop.to_string().parse(), Ok(next_hop));
            }
            let _ = (text.parse::<Network>(), listen_address(&text));
        }
    }
}
