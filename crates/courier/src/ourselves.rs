//! Which addresses lead back to us: mail sent there would go round in circles.
//!
//! Sends nothing: whether an address is this machine's own, the system's routing table tells.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Where we take mail. Empty where nobody listens, as beside a dead daemon.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ourselves {
    /// As bound; `0.0.0.0` and `[::]` are every address of this machine.
    pub listen: Vec<SocketAddr>,
}

impl Ourselves {
    /// Whether a connection to `to` would be one to ourselves.
    pub fn listens_on(&self, to: SocketAddr) -> bool {
        self.listen.iter().any(|ours| ours.port() == to.port() && is_reached_by(ours.ip(), to.ip()))
    }

    /// Whether a mail host at `address` is us. Whatever port we listen on: what comes in on port 25 may be redirected to it.
    pub fn are_at(&self, address: IpAddr) -> bool {
        self.listen.iter().any(|ours| is_reached_by(ours.ip(), address))
    }
}

fn is_reached_by(ours: IpAddr, theirs: IpAddr) -> bool {
    let (bound, theirs) = (ours.to_canonical(), reached(theirs));
    if !ours.is_unspecified() {
        return bound == theirs;
    }
    // A socket on [::] has IPv4 clients too, unless somebody turned that off.
    (ours.is_ipv6() || theirs.is_ipv4()) && is_of_this_machine(theirs)
}

/// Where a connection to `address` ends: the unspecified address leads to this machine.
fn reached(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

/// What the system sends to an address of its own, it sends from that address. A connected UDP socket tells, without a packet.
fn is_of_this_machine(address: IpAddr) -> bool {
    /// Any will do: nothing is sent to it. This one is `discard`.
    const PORT: u16 = 9;
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let sent_from = || {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((address, PORT)).ok()?;
        socket.local_addr().ok()
    };
    address.is_loopback() || sent_from().is_some_and(|from| from.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ourselves(listen: &str) -> Ourselves {
        Ourselves { listen: vec![listen.parse().unwrap()] }
    }

    #[test]
    fn a_connection_to_ourselves_is_seen_by_address_and_port() {
        for (listen, to) in [
            ("127.0.0.1:2525", "127.0.0.1:2525"),
            ("0.0.0.0:25", "127.0.0.9:25"),
            ("[::]:25", "127.0.0.1:25"),
            ("[::]:25", "[::1]:25"),
            ("127.0.0.1:25", "[::ffff:127.0.0.1]:25"),
            ("127.0.0.1:25", "0.0.0.0:25"),
        ] {
            assert!(ourselves(listen).listens_on(to.parse().unwrap()), "{listen} {to}");
        }
        for (listen, to) in [
            ("127.0.0.1:2525", "127.0.0.1:2526"),
            ("127.0.0.1:25", "127.0.0.2:25"),
            ("0.0.0.0:25", "[::1]:25"),
            // RFC 5737: nobody's.
            ("0.0.0.0:25", "192.0.2.9:25"),
        ] {
            assert!(!ourselves(listen).listens_on(to.parse().unwrap()), "{listen} {to}");
        }
    }

    #[test]
    fn a_mail_host_at_our_address_is_us_behind_a_redirected_port_too() {
        assert!(ourselves("127.0.0.1:2525").are_at("127.0.0.1".parse().unwrap()));
        assert!(ourselves("[::]:2525").are_at("127.0.0.7".parse().unwrap()));
        assert!(!ourselves("127.0.0.1:2525").are_at("127.0.0.7".parse().unwrap()));
        assert!(!Ourselves::default().are_at("127.0.0.1".parse().unwrap()));
    }
}
