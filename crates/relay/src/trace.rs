//! The trace header we put in front of a message (RFC 5321 section 4.4), and what too many of them mean. Writes bytes
//! that are safe to stand in a header whatever the peer called itself.

use restante_envelope::{ForwardPath, Trace, TransactionId};
use std::net::IpAddr;

/// RFC 5322 section 2.1.1: lines should be no longer than this, without CRLF.
const LINE_BYTES_MAX: usize = 78;
/// RFC 5321 section 4.5.3.1.2: the longest domain name; longer words in a header are cut here.
const NAME_BYTES_MAX: usize = 255;
/// A message may lawfully pass us twice (an alias at the primary that leads to another of our domains). The third
/// time it is going round.
const OWN_HOPS_MAX: u16 = 3;

/// The Received header of a message, from `Received:` to the last CRLF. `recipient` is given only if there is exactly
/// one: more would tell each of them about the others (RFC 5321 section 7.6).
pub fn received_header(trace: &Trace, id: TransactionId, hostname: &str, recipient: Option<&ForwardPath>) -> Vec<u8> {
    let mut lines = vec![
        vec![format!("Received: from {}", name(&trace.helo)), format!("([{}])", literal(trace.client.ip()))],
        vec![format!("by {}", name(hostname)), "(Restante)".into(), format!("with {}", trace.protocol.as_str())],
    ];
    if let Some(line) = lines.last_mut() {
        line.extend(trace.tls.iter().map(|tls| format!("({})", words(tls))));
        line.push(format!("id {id}"));
    }
    lines.extend(recipient.map(|path| vec![format!("for <{path}>")]));
    if let Some(last) = lines.last_mut().and_then(|line| line.last_mut()) {
        last.push(';');
    }
    lines.push(vec![trace.received_at.to_rfc5322()]);
    fold(&lines).into_bytes()
}

/// One line for each element, and more where its words do not fit into one.
fn fold(lines: &[Vec<String>]) -> String {
    let mut header = String::new();
    for words in lines {
        let mut column = 0;
        for (nth, word) in words.iter().enumerate() {
            // A separator and the word: the tab of a continuation counts as one column, as it is one octet.
            if nth > 0 && column + 1 + word.len() <= LINE_BYTES_MAX {
                header.push(' ');
                column += 1;
            } else if !header.is_empty() {
                header.push_str("\r\n\t");
                column = 1;
            }
            header.push_str(word);
            column += word.len();
        }
    }
    header.push_str("\r\n");
    header
}

/// What stands in a comment: letters, digits and what cipher suites are spelled with.
fn words(text: &str) -> String {
    text.chars()
        .take(NAME_BYTES_MAX)
        .map(|c| if c.is_ascii_alphanumeric() || " ._-".contains(c) { c } else { '?' })
        .collect()
}

/// A host's name as a peer or the configuration gave it: what could end a word, a comment or the line becomes `?`.
pub(crate) fn name(text: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "-._:[]".contains(c) { c } else { '?' };
    if text.is_empty() { "unknown".into() } else { text.chars().take(NAME_BYTES_MAX).map(safe).collect() }
}

/// RFC 5321 section 4.1.3, without the brackets. A dual-stack socket's `::ffff:192.0.2.1` is the IPv4 address it is.
fn literal(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("IPv6:{v6}"),
    }
}

/// Why a message with `own_hops` Received headers of ours must be frozen, if it must.
pub fn hold_for_loop(own_hops: u16) -> Option<String> {
    (own_hops >= OWN_HOPS_MAX).then(|| {
        format!("mail loop: it has come through this server {own_hops} times before; the primary seems to send it back to us")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use restante_envelope::{Protocol, Timestamp};

    fn header(helo: &str, client: &str, hostname: &str, recipient: Option<&str>) -> String {
        let trace = Trace {
            client: client.parse().unwrap(),
            helo: helo.into(),
            protocol: Protocol::Esmtp,
            tls: None,
            session: 1,
            received_at: Timestamp::from_unix_ms(1_795_359_200_118),
        };
        let path = recipient.map(|r| ForwardPath::parse(r).unwrap());
        let id = "01JD9QK3T2E8V5W6X7Y8Z9ABCD".parse().unwrap();
        String::from_utf8(received_header(&trace, id, hostname, path.as_ref())).unwrap()
    }

    #[test]
    fn the_header_reads_as_rfc_5321_writes_it() {
        assert_eq!(
            header("client.test", "192.0.2.1:4000", "mx2.test", Some("info@example.com")),
            "Received: from client.test ([192.0.2.1])\r\n\
             \tby mx2.test (Restante) with ESMTP id 01JD9QK3T2E8V5W6X7Y8Z9ABCD\r\n\
             \tfor <info@example.com>;\r\n\
             \tSun, 22 Nov 2026 14:53:20 +0000\r\n"
        );
    }

    #[test]
    fn recipients_are_not_told_of_one_another() {
        assert_eq!(
            header("[IPv6:2001:db8::1]", "[2001:db8::1]:4000", "mx2.test", None),
            "Received: from [IPv6:2001:db8::1] ([IPv6:2001:db8::1])\r\n\
             \tby mx2.test (Restante) with ESMTP id 01JD9QK3T2E8V5W6X7Y8Z9ABCD;\r\n\
             \tSun, 22 Nov 2026 14:53:20 +0000\r\n"
        );
    }

    #[test]
    fn an_ipv4_client_of_a_dual_stack_socket_is_shown_as_ipv4() {
        assert!(header("c.test", "[::ffff:192.0.2.1]:4000", "mx2.test", None).contains("([192.0.2.1])"));
    }

    #[test]
    fn a_long_host_name_does_not_make_a_long_line() {
        let text = header("c.test", "192.0.2.1:1", "backup-mail-exchanger-two.department.example.com", None);
        assert!(text.lines().all(|line| line.len() <= LINE_BYTES_MAX), "{text}");
        assert!(text.contains("\r\n\tid 01JD9QK3T2E8V5W6X7Y8Z9ABCD;\r\n"), "{text}");
    }

    #[test]
    fn mail_that_goes_round_is_frozen_with_a_reason() {
        assert_eq!((hold_for_loop(0), hold_for_loop(2)), (None, None));
        assert!(hold_for_loop(3).unwrap().contains("3 times"));
        assert!(hold_for_loop(u16::MAX).is_some());
    }

    proptest! {
        #[test]
        fn no_peer_can_inject_a_header(helo in "(?s).{0,300}", hostname in "(?s).{0,40}", local in "[ -~]{1,20}") {
            let quoted = format!("\"{local}\"@example.com");
            let recipient = ForwardPath::parse(&quoted).ok().map(|_| quoted.as_str());
            let text = header(&helo, "[2001:db8::1]:25", &hostname, recipient);
            let inner = text.strip_suffix("\r\n").expect("ends with CRLF");
            for (nth, line) in inner.split("\r\n").enumerate() {
                prop_assert!(line.bytes().skip(1).all(|b| (b' '..=b'~').contains(&b)), "{line:?}");
                prop_assert_eq!(line.starts_with("Received: from "), nth == 0);
                prop_assert_eq!(line.starts_with('\t'), nth > 0);
                prop_assert!(!line.trim().is_empty() && line.len() < 998);
            }
        }
    }
}
