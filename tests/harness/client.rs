//! A small blocking SMTP client and the messages it sends. It refuses to repair what the server says: a reply that RFC 5321
//! section 4.2 does not allow is a failure.

use super::PATIENCE;
use sha2::{Digest, Sha256};
use socket2::{Domain, Socket, Type};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

/// A connection from this address of ours.
pub fn connect_from(from: impl Into<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from.into(), 0).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// A reply, of one line or more.
#[derive(Debug, Clone)]
pub struct Reply {
    pub code: u16,
    pub lines: Vec<String>,
}

impl Reply {
    /// All lines, for failure messages and searches.
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }
}

/// The transaction id of a `250 2.0.0 <text> queued as ID`; fails on any other reply.
#[track_caller]
pub fn queued_id(reply: &Reply) -> String {
    let last = reply.lines.last().unwrap();
    assert!(last.starts_with("250 2.0.0 "), "reply to the end of data: {last}");
    let id = last.rsplit_once(" queued as ").unwrap_or_else(|| panic!("no `queued as ID`: {last}")).1;
    let ulid = id.len() == 26 && id.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
    assert!(ulid, "not a 26-character ULID: {id}");
    id.to_owned()
}

/// One SMTP connection.
pub struct Client {
    stream: BufReader<TcpStream>,
    pub extensions: Vec<String>,
}

impl Client {
    /// Connects and reads the greeting; an error for any greeting but 220.
    pub fn connect(to: SocketAddr) -> io::Result<Self> {
        Self::over(TcpStream::connect(to)?)
    }

    /// As [`Client::connect`], on a connection on which nothing was heard yet.
    pub fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut client = Self { stream: BufReader::new(stream), extensions: Vec::new() };
        let greeting = client.reply()?;
        if greeting.code != 220 {
            return Err(io::Error::other(greeting.text()));
        }
        Ok(client)
    }

    /// Connects and says EHLO; fails the test if either is refused.
    pub fn ehlo(to: SocketAddr) -> Self {
        let mut client = Self::connect(to).unwrap();
        client.hello().unwrap();
        client
    }

    /// Says EHLO and keeps the extensions.
    pub fn hello(&mut self) -> io::Result<()> {
        let reply = self.command("EHLO client.example.net")?;
        if reply.code != 250 {
            return Err(io::Error::other(reply.text()));
        }
        self.extensions = reply.lines.iter().skip(1).map(|l| l[4..].to_ascii_uppercase()).collect();
        Ok(())
    }

    /// Reads one reply. A closed connection is `UnexpectedEof`; a malformed line fails the test.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let mut lines: Vec<String> = Vec::new();
        loop {
            let mut line = Vec::new();
            self.stream.read_until(b'\n', &mut line)?;
            if !line.ends_with(b"\n") {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = String::from_utf8(line).expect("a reply in ASCII or UTF-8");
            let line = line.strip_suffix("\r\n").unwrap_or_else(|| panic!("a bare LF ends a reply: {line:?}"));
            assert!(line.len() <= 510, "a reply line longer than 512 octets (RFC 5321 4.5.3.1.5): {line}");
            let code: u16 =
                line.get(..3).and_then(|c| c.parse().ok()).unwrap_or_else(|| panic!("no reply code: {line:?}"));
            let last = match line.as_bytes().get(3) {
                None | Some(b' ') => true,
                Some(b'-') => false,
                Some(_) => panic!("neither space nor hyphen after the code: {line:?}"),
            };
            assert!(lines.first().is_none_or(|f| f[..3] == line[..3]), "one reply, two codes: {lines:?} then {line}");
            lines.push(line.to_owned());
            if last {
                return Ok(Reply { code, lines });
            }
        }
    }

    /// The connection, for who goes on in another way. Nothing may have been sent to us unasked.
    pub fn into_stream(self) -> TcpStream {
        assert!(self.stream.buffer().is_empty(), "the server said more than it was asked");
        self.stream.into_inner()
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Sends one command line and reads its reply.
    pub fn command(&mut self, line: &str) -> io::Result<Reply> {
        self.raw(format!("{line}\r\n").as_bytes())?;
        self.reply()
    }

    /// MAIL, RCPT for each, DATA, the content. Returns the reply to the end of data, or the first refusal (a refused recipient
    /// beside an accepted one is passed over). The connection is ready for the next message unless an error came.
    pub fn send(&mut self, from: &str, to: &[&str], content: &[u8]) -> io::Result<Reply> {
        let eight = if self.extensions.iter().any(|e| e == "8BITMIME") { " BODY=8BITMIME" } else { "" };
        let mail = self.command(&format!("MAIL FROM:<{from}>{eight}"))?;
        if mail.code != 250 {
            return Ok(mail);
        }
        let mut refusal = None;
        let mut accepted = 0;
        for to in to {
            let rcpt = self.command(&format!("RCPT TO:<{to}>"))?;
            if rcpt.code / 100 == 2 { accepted += 1 } else { refusal = Some(rcpt) }
        }
        if accepted == 0 {
            self.command("RSET")?;
            return Ok(refusal.expect("at least one recipient"));
        }
        let data = self.command("DATA")?;
        if data.code != 354 {
            self.command("RSET")?;
            return Ok(data);
        }
        self.content(content)
    }

    /// The content with dots stuffed (RFC 5321 section 4.5.2), the final dot, and the reply to it.
    pub fn content(&mut self, content: &[u8]) -> io::Result<Reply> {
        self.raw(&stuffed(content))?;
        self.raw(b".\r\n")?;
        self.reply()
    }
}

/// Content ready for the wire, without the final dot.
pub fn stuffed(content: &[u8]) -> Vec<u8> {
    assert!(content.is_empty() || content.ends_with(b"\r\n"), "content must end with CRLF");
    let mut wire = Vec::with_capacity(content.len() + 64);
    for line in content.split_inclusive(|b| *b == b'\n') {
        if line.starts_with(b".") {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
    }
    wire
}

/// Lower-case hexadecimal SHA-256.
pub fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// A message nobody else sends: its content begins with its Message-ID, and follows from `n` and `size` alone.
pub struct Message {
    /// With its angle brackets.
    pub message_id: String,
    pub content: Vec<u8>,
}

impl Message {
    /// At least `size` bytes (and at least its headers), with what transport likes to break: dot lines, empty lines, 8-bit
    /// bytes, tabs and trailing spaces, lines of the greatest length (998 octets, RFC 5322 section 2.1.1).
    pub fn new(label: &str, n: u64, size: usize) -> Self {
        let message_id = format!("<{label}.{n}@load.example.net>");
        let mut content = format!(
            "Message-ID: {message_id}\r\nDate: Sun, 22 Nov 2026 18:00:00 +0000\r\nFrom: Sender <sender@example.net>\r\n\
             To: box@example.test\r\nSubject: message {n}\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=iso-8859-1\r\n\
             Content-Transfer-Encoding: 8bit\r\n\r\n.\r\n..\r\n.leading dot\r\n\r\ntrailing space \t \r\nFrom the start of a line\r\n"
        )
        .into_bytes();
        let mut random = Random(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        while content.len() < size {
            let room = size - content.len();
            let length = if random.below(16) == 0 { 998 } else { random.below(120) }.min(room.saturating_sub(2));
            for _ in 0..length {
                // Printable ASCII and the upper half of ISO 8859-1: no CR, LF or NUL, which RFC 5321 does not let through.
                let byte = u8::try_from(random.below(190)).unwrap();
                content.push(if byte < 95 { 32 + byte } else { 66 + byte });
            }
            content.extend_from_slice(b"\r\n");
        }
        Self { message_id, content }
    }
}

/// Xorshift: seeded, so that a failure can be run again.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound).unwrap()).unwrap()
    }
}
