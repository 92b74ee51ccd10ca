//! A server that follows a script: a connection for each, and no mercy for a client that departs from it.

use crate::Target;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::rustls::{HandshakeKind, ServerConfig};
use tokio_rustls::{TlsAcceptor, server};

/// A client that sends less than the script expects fails the test instead of hanging it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two bytes of a server that trickles: many fit any limit, and a line that is too long does not.
const TRICKLE: Duration = Duration::from_millis(1);

enum Step {
    Send(Vec<u8>),
    Expect(String),
    /// With nothing behind it, or (true) with commands in the same write.
    Content(bool),
    /// `BDAT n`, or (true) `BDAT n LAST`, and the octets.
    Chunk(bool),
    /// Byte by byte, again and again, until the client hangs up.
    Trickle(Vec<u8>),
    /// The same again and again, until the client hangs up.
    Flood(Vec<u8>),
    /// No byte may have come yet behind what was expected.
    Silence,
    /// Anything at all, lines or not.
    Hear,
    /// The TLS handshake.
    Encrypt(Arc<ServerConfig>),
    /// New keys, announced by a record without data.
    ChangeKeys,
    /// Tells the test that the script came so far.
    Tell(oneshot::Sender<()>),
    /// Takes leave (TLS: close_notify) and closes.
    TakeLeave,
    Close,
    /// Reads and says nothing until the test is over.
    Stall,
}

#[derive(Default)]
pub(super) struct Script(Vec<Step>);

impl Script {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn then(mut self, step: Step) -> Self {
        self.0.push(step);
        self
    }

    pub(super) fn send(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Send(bytes.as_ref().to_vec()))
    }

    /// A line that starts with `prefix`.
    pub(super) fn expect(self, prefix: &str) -> Self {
        self.then(Step::Expect(prefix.into()))
    }

    /// A line, and nothing in the same write behind it.
    pub(super) fn expect_alone(self, prefix: &str) -> Self {
        self.expect(prefix).then(Step::Silence)
    }

    /// Content up to the final dot.
    pub(super) fn content(self) -> Self {
        self.then(Step::Content(false))
    }

    /// Content with what was sent ahead in the same write behind it.
    pub(super) fn content_and_more(self) -> Self {
        self.then(Step::Content(true))
    }

    /// A chunk that is not the last (RFC 3030), our header's first octet alone, and nothing in the same write behind it.
    pub(super) fn chunk(self) -> Self {
        self.then(Step::Chunk(false)).silence()
    }

    /// The last chunk, which ends a message, and nothing in the same write behind it.
    pub(super) fn last_chunk(self) -> Self {
        self.then(Step::Chunk(true)).silence()
    }

    pub(super) fn trickle(self, bytes: &str) -> Self {
        self.then(Step::Trickle(bytes.into()))
    }

    pub(super) fn flood(self, bytes: &str) -> Self {
        self.then(Step::Flood(bytes.into()))
    }

    /// Nothing has come yet behind what was read.
    pub(super) fn silence(self) -> Self {
        self.then(Step::Silence)
    }

    pub(super) fn hear(self) -> Self {
        self.then(Step::Hear)
    }

    pub(super) fn encrypt(self, config: &Arc<ServerConfig>) -> Self {
        self.then(Step::Encrypt(config.clone()))
    }

    pub(super) fn change_keys(self) -> Self {
        self.then(Step::ChangeKeys)
    }

    pub(super) fn tell(self, test: oneshot::Sender<()>) -> Self {
        self.then(Step::Tell(test))
    }

    pub(super) fn take_leave(self) -> Self {
        self.then(Step::TakeLeave)
    }

    pub(super) fn close(self) -> Self {
        self.then(Step::Close)
    }

    pub(super) fn stall(self) -> Self {
        self.then(Step::Stall)
    }

    /// The commands and replies of a pipelined transaction up to the content.
    pub(super) fn pipelined(self, recipients: usize, replies: &str) -> Self {
        let commands = (0..recipients).fold(self.expect("MAIL FROM:<s@example.test>"), |s, _| s.expect("RCPT TO:<"));
        commands.expect("DATA").send(replies)
    }

    pub(super) async fn start(self) -> Server {
        Self::start_each([self]).await
    }

    /// The first connection gets the first script, and so on.
    pub(super) async fn start_each(scripts: impl IntoIterator<Item = Self>) -> Server {
        Self::play_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), scripts)
    }

    /// On a socket that takes little before it is read.
    pub(super) async fn start_narrow(self) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        socket2::SockRef::from(&listener).set_recv_buffer_size(4_096).unwrap();
        Self::play_on(listener, [self])
    }

    fn play_on(listener: TcpListener, scripts: impl IntoIterator<Item = Self>) -> Server {
        let scripts: Vec<Self> = scripts.into_iter().collect();
        let address = listener.local_addr().unwrap();
        let target = Target::Host { host: "127.0.0.1".into(), port: address.port() };
        let task = tokio::spawn(async move {
            let mut seen = Vec::new();
            for script in scripts {
                let (stream, _) = listener.accept().await.unwrap();
                let stream = Stream::Clear(stream);
                let peer = Peer { stream, unread: Vec::new(), chunks: Vec::new(), seen: Seen::default() };
                seen.push(peer.play(script.0).await);
            }
            seen
        });
        Server { target, address, task }
    }
}

pub(super) struct Server {
    target: Target,
    pub(super) address: SocketAddr,
    task: JoinHandle<Vec<Seen>>,
}

impl Server {
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// What the server saw in its last connection, once the script is done and the client is gone.
    pub(super) async fn finish(self) -> Seen {
        self.finish_each().await.pop().unwrap()
    }

    /// What the server saw in each connection.
    pub(super) async fn finish_each(mut self) -> Vec<Seen> {
        (&mut self.task).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Default)]
pub(super) struct Seen {
    /// The messages, dots unstuffed (RFC 5321 section 4.5.2), without the final dot.
    pub(super) messages: Vec<Vec<u8>>,
    /// The command lines.
    pub(super) commands: Vec<String>,
    /// What came behind the script's last step.
    pub(super) rest: Vec<u8>,
    /// The name the client asked for in TLS, and whether the session was resumed.
    pub(super) handshake: Option<(Option<String>, HandshakeKind)>,
}

enum Stream {
    Clear(TcpStream),
    Encrypted(Box<server::TlsStream<TcpStream>>),
    /// Within the handshake.
    None,
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

impl Stream {
    fn io(&mut self) -> &mut dyn Io {
        match self {
            Self::Clear(tcp) => tcp,
            Self::Encrypted(tls) => tls,
            Self::None => panic!("within the handshake"),
        }
    }
}

struct Peer {
    stream: Stream,
    unread: Vec<u8>,
    /// Of the message that is growing.
    chunks: Vec<u8>,
    seen: Seen,
}

impl Peer {
    async fn play(mut self, steps: Vec<Step>) -> Seen {
        for step in steps {
            match step {
                Step::Send(bytes) => {
                    self.stream.io().write_all(&bytes).await.unwrap();
                    self.stream.io().flush().await.unwrap();
                }
                Step::Expect(prefix) => {
                    let line = String::from_utf8(self.line().await).unwrap();
                    assert!(line.starts_with(&prefix), "expected {prefix:?}, got {line:?}");
                    if line == "RSET\r\n" {
                        self.chunks.clear();
                    }
                    self.seen.commands.push(line);
                }
                Step::Content(and_more) => {
                    let message = self.message().await;
                    assert_eq!(!self.unread.is_empty(), and_more, "{:?}", String::from_utf8_lossy(&self.unread));
                    self.seen.messages.push(message);
                }
                Step::Chunk(is_last) => self.chunk(is_last).await,
                Step::Trickle(bytes) => {
                    let mut ticks = tokio::time::interval(TRICKLE);
                    for byte in bytes.iter().cycle() {
                        ticks.tick().await;
                        if self.stream.io().write_all(&[*byte]).await.is_err() {
                            break;
                        }
                    }
                }
                Step::Flood(bytes) => while self.stream.io().write_all(&bytes).await.is_ok() {},
                Step::Silence => assert_eq!(String::from_utf8_lossy(&self.unread), ""),
                Step::Hear => {
                    self.fill().await;
                    self.unread.clear();
                }
                Step::Encrypt(config) => self.encrypt(config).await,
                Step::ChangeKeys => {
                    let Stream::Encrypted(tls) = &mut self.stream else { panic!("in clear") };
                    tls.get_mut().1.refresh_traffic_keys().unwrap();
                    tls.flush().await.unwrap();
                }
                Step::Tell(test) => test.send(()).unwrap(),
                Step::TakeLeave => {
                    self.stream.io().shutdown().await.unwrap();
                    return self.seen;
                }
                Step::Close => return self.seen,
                Step::Stall => std::future::pending().await,
            }
        }
        // TLS without a farewell is an error; what came before it is not lost.
        let _ = self.stream.io().read_to_end(&mut self.unread).await;
        self.seen.rest = self.unread;
        self.seen
    }

    async fn chunk(&mut self, is_last: bool) {
        let line = String::from_utf8(self.line().await).unwrap();
        let count = line.strip_prefix("BDAT ").and_then(|rest| rest.trim_end().split(' ').next());
        let octets: usize = count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("got {line:?}"));
        assert_eq!(line.ends_with(" LAST\r\n"), is_last, "{line:?}");
        while self.unread.len() < octets {
            self.fill().await;
        }
        let rest = self.unread.split_off(octets);
        self.chunks.append(&mut self.unread);
        self.unread = rest;
        if !is_last {
            assert_eq!(String::from_utf8_lossy(&self.chunks), "R");
        } else {
            self.seen.messages.push(std::mem::take(&mut self.chunks));
        }
    }

    async fn encrypt(&mut self, config: Arc<ServerConfig>) {
        assert_eq!(self.unread, b"", "the client did not wait for the 220");
        let Stream::Clear(tcp) = std::mem::replace(&mut self.stream, Stream::None) else { panic!("encrypted twice") };
        let tls = TlsAcceptor::from(config).accept(tcp).await.unwrap();
        let session = tls.get_ref().1;
        self.seen.handshake = Some((session.server_name().map(str::to_owned), session.handshake_kind().unwrap()));
        self.stream = Stream::Encrypted(Box::new(tls));
    }

    /// The next line, CRLF included.
    async fn line(&mut self) -> Vec<u8> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|w| w == b"\r\n") {
                let rest = self.unread.split_off(end + 2);
                return std::mem::replace(&mut self.unread, rest);
            }
            self.fill().await;
        }
    }

    async fn fill(&mut self) {
        let mut bytes = vec![0; 256 * 1024];
        let read = timeout(PATIENCE, self.stream.io().read(&mut bytes)).await.expect("the client is silent").unwrap();
        assert_ne!(read, 0, "the client hung up; unread: {:?}", String::from_utf8_lossy(&self.unread));
        self.unread.extend_from_slice(&bytes[..read]);
    }

    async fn message(&mut self) -> Vec<u8> {
        let mut seen = 0;
        let end = loop {
            if self.unread.starts_with(b".\r\n") {
                break 0;
            }
            if let Some(at) = self.unread[seen..].windows(5).position(|w| w == b"\r\n.\r\n") {
                break seen + at + 2;
            }
            seen = self.unread.len().saturating_sub(4);
            self.fill().await;
        };
        let rest = self.unread.split_off(end + 3);
        let mut stuffed = std::mem::replace(&mut self.unread, rest);
        stuffed.truncate(end);
        unstuffed(&stuffed)
    }
}

/// Takes the first dot from each line that has one.
fn unstuffed(lines: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(lines.len());
    let mut at_line_start = true;
    for (at, byte) in lines.iter().enumerate() {
        if !(at_line_start && *byte == b'.') {
            message.push(*byte);
        }
        at_line_start = *byte == b'\n' && at > 0 && lines[at - 1] == b'\r';
    }
    message
}
