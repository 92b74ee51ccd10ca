//! Whom we talk to and how long we wait. Plain values: nothing is read or resolved here.

use crate::dns::Dns;
use crate::ourselves::Ourselves;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Domains that are named in a sentence; a route may have hundreds.
const DOMAINS_NAMED_MAX: usize = 3;

/// Whom to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A server that an operator named.
    Host {
        /// A name (A and AAAA are followed, `/etc/hosts` too, MX is not) or an IP address without brackets.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// The mail hosts of all these domains, which must be the same, as far as they are preferred over us (RFC 5321 section
    /// 5.1); on port 25. Domains in lower case.
    MxOf(Vec<String>),
}

impl fmt::Display for Target {
    /// `host:port`, an IPv6 address in brackets; or `MX of a.test, b.test`, of many domains `MX of a.test and 99 more`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
            Self::MxOf(domains) => match domains.as_slice() {
                [first, rest @ ..] if domains.len() > DOMAINS_NAMED_MAX => {
                    write!(f, "MX of {first} and {} more", rest.len())
                }
                some => write!(f, "MX of {}", some.join(", ")),
            },
        }
    }
}

/// Whether mail is encrypted on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsPolicy {
    /// Never.
    Off,
    /// Where the server offers STARTTLS and it works; else in clear (RFC 7435). Who the server is is not checked.
    Opportunistic,
}

/// Our name and the limits on waiting. [`Settings::new`] gives the values of RFC 5321 section 4.5.3.2.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What we call ourselves in EHLO: a domain name, or an address literal with brackets.
    pub hostname: String,
    /// Whether to encrypt.
    pub tls: TlsPolicy,
    /// What is asked for MX records.
    pub dns: Arc<Dns>,
    /// Where no connection may lead.
    pub ourselves: Ourselves,
    /// Looking up the name of a server that was named.
    pub resolve_timeout: Duration,
    /// The TCP handshake with one address.
    pub connect_timeout: Duration,
    /// The 220.
    pub greeting_timeout: Duration,
    /// The reply to EHLO, HELO and RSET.
    pub ehlo_timeout: Duration,
    /// The reply to STARTTLS, and once more the handshake behind it.
    pub tls_timeout: Duration,
    /// The reply to MAIL.
    pub mail_timeout: Duration,
    /// The reply to each RCPT.
    pub rcpt_timeout: Duration,
    /// The reply to DATA.
    pub data_timeout: Duration,
    /// The system taking more bytes of the content, at most 64 KiB at a time.
    pub block_timeout: Duration,
    /// The reply to the final dot.
    pub final_dot_timeout: Duration,
    /// The reply to QUIT.
    pub quit_timeout: Duration,
}

impl Settings {
    /// The standard's limits, under the name `hostname`; the system's DNS, and no listener.
    pub fn new(hostname: String) -> Self {
        const MINUTE_S: u64 = 60;
        Self {
            hostname,
            tls: TlsPolicy::Opportunistic,
            dns: Dns::new(Vec::new(), 0),
            ourselves: Ourselves::default(),
            // glibc's resolver gives up by itself after 2 rounds of 5 s over at most 3 name servers.
            resolve_timeout: Duration::from_secs(30),
            // SYN is repeated after 1, 3 and 7 s: whoever is silent to four of them is down, and a backup MX should
            // know soon.
            connect_timeout: Duration::from_secs(10),
            // RFC 5321 section 4.5.3.2.1. EHLO is not in the list; Postfix gives it the same five minutes.
            greeting_timeout: Duration::from_secs(5 * MINUTE_S),
            ehlo_timeout: Duration::from_secs(5 * MINUTE_S),
            // Two round trips and little work, from a server that has just answered. Whoever takes longer is broken, and
            // there must be time left to do without.
            tls_timeout: Duration::from_secs(10),
            // Sections 4.5.3.2.2 to 4.5.3.2.5.
            mail_timeout: Duration::from_secs(5 * MINUTE_S),
            rcpt_timeout: Duration::from_secs(5 * MINUTE_S),
            data_timeout: Duration::from_secs(2 * MINUTE_S),
            block_timeout: Duration::from_secs(3 * MINUTE_S),
            // Section 4.5.3.2.6: to give up early here is what makes duplicates (RFC 1047).
            final_dot_timeout: Duration::from_secs(10 * MINUTE_S),
            // Nothing depends on this reply; a shutdown waits for it.
            quit_timeout: Duration::from_secs(2),
        }
    }
}
