//! Counts the Received headers of a content as it streams by, for the detection of mail loops (RFC 5321 section 6.3).
//! Understands folding and any letter case, keeps a bounded part of one header, and reads nothing after the first
//! empty line.

use memchr::memchr;

/// How much of one header is looked at. `by` comes before `for` and the date; real Received headers, folds included,
/// stay well below this.
const HEADER_BYTES_MAX: usize = 1_024;

/// What has been counted so far.
#[derive(Debug)]
pub(crate) struct HeaderScan {
    hostname: String,
    /// The beginning of the header that is being read, without its LFs. Its CRs count as white space.
    header: Vec<u8>,
    at_line_start: bool,
    over: bool,
    /// Of the header section so far.
    pub(crate) bytes: u64,
    pub(crate) hops: u16,
    pub(crate) own_hops: u16,
}

impl HeaderScan {
    /// Counts headers; those that say `by hostname` as our own.
    pub(crate) fn new(hostname: &str) -> Self {
        Self {
            hostname: hostname.to_owned(),
            header: Vec::new(),
            at_line_start: true,
            over: false,
            bytes: 0,
            hops: 0,
            own_hops: 0,
        }
    }

    /// Reads the next piece of a content whose lines end in CRLF.
    pub(crate) fn read(&mut self, mut content: &[u8]) {
        while !self.over
            && let Some(first) = content.first()
        {
            if self.at_line_start {
                match first {
                    b'\r' | b'\n' => return self.end(),
                    b' ' | b'\t' => {}
                    _ => self.count_header(),
                }
            }
            let lf = memchr(b'\n', content);
            let (line, rest) = content.split_at(lf.unwrap_or(content.len()));
            self.bytes = self.bytes.saturating_add(line.len() as u64 + u64::from(lf.is_some()));
            let room = HEADER_BYTES_MAX - self.header.len().min(HEADER_BYTES_MAX);
            self.header.extend(line.iter().take(room));
            self.at_line_start = lf.is_some();
            content = rest.get(1..).unwrap_or_default();
        }
    }

    /// The header section is over: the last header counts, too. Does nothing the second time.
    pub(crate) fn end(&mut self) {
        self.count_header();
        self.over = true;
    }

    fn count_header(&mut self) {
        if is_received(&self.header) {
            self.hops = self.hops.saturating_add(1);
            if names_by(&self.header, &self.hostname) {
                self.own_hops = self.own_hops.saturating_add(1);
            }
        }
        self.header.clear();
    }
}

/// Whether the field name is Received. White space before the colon is obsolete syntax (RFC 5322 section 4.5).
fn is_received(header: &[u8]) -> bool {
    let name = memchr(b':', header).and_then(|colon| header.get(..colon)).unwrap_or_default();
    name.trim_ascii_end().eq_ignore_ascii_case(b"received")
}

/// Whether the words `by hostname` occur, the name followed by white space, `;` or the end.
fn names_by(header: &[u8], hostname: &str) -> bool {
    let mut words = header.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let mut after_by = false;
    words.any(|word| {
        let name = word.split(|b| *b == b';').next().unwrap_or_default();
        let ours = after_by && name.eq_ignore_ascii_case(hostname.as_bytes());
        after_by = word.eq_ignore_ascii_case(b"by");
        ours
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hops(content: &str, step: usize) -> (u16, u16) {
        let mut scan = HeaderScan::new("mx2.example");
        for piece in content.as_bytes().chunks(step) {
            scan.read(piece);
            assert!(scan.header.len() <= HEADER_BYTES_MAX);
        }
        scan.end();
        (scan.hops, scan.own_hops)
    }

    /// The same with the whole header section in memory.
    fn naive(content: &str) -> (u16, u16) {
        let section = if content.starts_with("\r\n") { "" } else { content.split("\r\n\r\n").next().unwrap() };
        let unfolded = section.replace("\r\n ", " ").replace("\r\n\t", " ").to_lowercase();
        let received: Vec<&str> = unfolded
            .split("\r\n")
            .filter(|h| h.split_once(':').is_some_and(|(name, _)| name.trim_end() == "received"))
            .collect();
        let own = received.iter().filter(|header| {
            let words: Vec<&str> = header.split_whitespace().collect();
            words.windows(2).any(|w| w[0] == "by" && w[1].split(';').next() == Some("mx2.example"))
        });
        (u16::try_from(received.len()).unwrap(), u16::try_from(own.count()).unwrap())
    }

    #[test]
    fn a_loop_is_seen_through_folds_and_letter_case() {
        for (content, expected) in [
            ("Received: from a by mx2.example; Sun\r\n\r\n", (1, 1)),
            (
                "RECEIVED:from a\r\n\tBY\r\n MX2.EXAMPLE\r\n (x) id 1;\r\n Sun\r\nreceived : by b\r\n\r\nReceived: x\r\n",
                (2, 1),
            ),
            (
                "Received: by mx2.example.org id 1\r\nReceived: by xmx2.example\r\nReceived: from mx2.example by b\r\n",
                (3, 0),
            ),
            (
                "Subject: Received: by mx2.example\r\n Received: by mx2.example\r\nX-Received: by mx2.example\r\n\r\n",
                (0, 0),
            ),
            ("\r\nReceived: by mx2.example\r\n", (0, 0)),
            (" \r\nReceived: by mx2.example\r\n", (1, 1)),
            ("just a body\r\n", (0, 0)),
            ("Received:\r\n", (1, 0)),
            ("", (0, 0)),
        ] {
            for step in [1, 2, 3, 1_000] {
                assert_eq!(hops(content, step), expected, "{content:?} by {step}");
            }
        }
    }

    #[test]
    fn a_huge_header_is_not_kept() {
        let huge = format!(
            "X: {}\r\nReceived: {} by mx2.example\r\nReceived: by mx2.example\r\n",
            "x".repeat(9_999),
            "y".repeat(2_000)
        );
        assert_eq!(hops(&huge, 7), (2, 1));
    }

    proptest! {
        #[test]
        fn the_count_is_what_a_naive_reader_finds(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("Received:"), Just("received :"), Just("X:"), Just(" by"), Just("\tBy "), Just(" mx2.example"),
                    Just("MX2.example;"), Just("\r\n"), Just("\r\n "), Just("\r\n"), Just("a"), Just(" ")
                ],
                0..24,
            ),
            step in 1_usize..20,
        ) {
            let content = parts.concat() + "\r\n";
            prop_assert_eq!(hops(&content, step), naive(&content), "{:?}", content);
        }
    }
}
