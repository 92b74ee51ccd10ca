//! Contents as they come: headers, then text; and two that are hard on whoever looks for line ends. Always the same bytes.

/// Ordinary mail: the headers of a message that has been through two servers, then prose in lines of some 70 characters.
pub(crate) fn text(bytes: usize) -> Vec<u8> {
    let mut content = b"Received: from mail.example.net (mail.example.net [192.0.2.1])\r\n\
        \tby mx1.example.net with ESMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n\
        \tid 01JD9QK3T2E8V5W6X7Y8Z9ABCD; Sun, 22 Nov 2026 18:00:00 +0000\r\n\
        Received: from desk.example.net (desk.example.net [192.0.2.7])\r\n\
        \tby mail.example.net with ESMTP; Sun, 22 Nov 2026 17:59:58 +0000\r\n\
        Message-ID: <20261122175958.4711@desk.example.net>\r\n\
        Date: Sun, 22 Nov 2026 17:59:58 +0000\r\n\
        From: =?utf-8?q?Zo=C3=AB?= Sender <sender@example.net>\r\n\
        To: Box <box@example.test>\r\n\
        Subject: =?utf-8?b?R3LDvMOfZQ==?= from afar, and the minutes of Friday's meeting\r\n\
        MIME-Version: 1.0\r\n\
        Content-Type: text/plain; charset=utf-8; format=flowed\r\n\
        Content-Transfer-Encoding: 8bit\r\n\r\n"
        .to_vec();
    let words = ["the", "minutes", "were", "read.", "Nobody", "had", "objections", "and", "so", "it", "went", "on"];
    let (mut word, mut column) = (0_usize, 0);
    while content.len() + 16 < bytes {
        // No period: a branch predictor must not learn it.
        word = word.wrapping_mul(25).wrapping_add(content.len()) % words.len();
        content.extend_from_slice(words[word].as_bytes());
        column += words[word].len() + 1;
        let end: &[u8] = if column > 64 { b"\r\n" } else { b" " };
        column = if column > 64 { 0 } else { column };
        content.extend_from_slice(end);
    }
    content.extend_from_slice(b"\r\n");
    content
}

/// Nothing but lines of one dot, which go over the wire as two.
pub(crate) fn dots(bytes: usize) -> Vec<u8> {
    b".\r\n".repeat(bytes / 3)
}

/// Nothing but lines of one letter: the most line ends that a content can have and still say something.
pub(crate) fn short_lines(bytes: usize) -> Vec<u8> {
    b"a\r\n".repeat(bytes / 3)
}

/// The content as it goes over the wire, with the final dot (RFC 5321 section 4.5.2).
pub(crate) fn wire(content: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(content.len() + content.len() / 2);
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b".") {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
    }
    wire.extend_from_slice(b".\r\n");
    wire
}
