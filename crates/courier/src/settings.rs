//! Whom we talk to and how long we wait. Plain values: nothing is read or resolved here.

use std::fmt;
use std::time::Duration;

/// A server to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// A name (A and AAAA are followed, MX is not) or an IP address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Target {
    /// `host:port`; an IPv6 address in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What we call ourselves in EHLO: a domain name, or an address literal with brackets.
    pub hostname: String,
    /// Whether to encrypt.
    pub tls: TlsPolicy,
    /// Looking up the target's name.
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
    /// The standard's limits, under the name `hostname`.
    pub fn new(hostname: String) -> Self {
        const MINUTE_S: u64 = 60;
        Self {
            hostname,
            tls: TlsPolicy::Opportunistic,
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
