//! The primary of the story: a real SMTP server on loopback that can be switched off and on again at the same port, and
//! keeps what it was given, byte for byte. Refuses no recipient, and times nobody out: it lives as long as the story.

use super::message::Received;
use crate::clock;
use anyhow::Context as _;
use restante_envelope::{Envelope, ForwardPath, IdGenerator, RouteName, Trace};
use restante_smtp::{Admission, EndOfData, Host, RefusedCommand, Resolution, Session, Settings, Trouble};
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

/// Far more than the story sends. Beyond it the primary says 452, as a full disk would.
const INBOX_MESSAGES_MAX: usize = 1_024;
/// The largest content taken: some hundred times the largest of the story.
const MESSAGE_BYTES_MAX: u64 = 32 << 20;
/// Connections waiting to be accepted; the daemon opens a handful.
const BACKLOG: i32 = 64;
const READ_BYTES: usize = 16 << 10;

pub(super) struct Primary {
    address: SocketAddr,
    /// Keeps the port ours while the primary is off. Bound, but not listening: a connection to it is refused.
    _port: Socket,
    settings: Arc<Settings>,
    sender: mpsc::Sender<Received>,
    inbox: mpsc::Receiver<Received>,
    acceptor: Option<JoinHandle<()>>,
}

impl Primary {
    /// A primary that has a port and is off.
    pub(super) fn new() -> anyhow::Result<Self> {
        let port = bind((Ipv4Addr::LOCALHOST, 0).into()).context("cannot reserve a port for the primary")?;
        let address = port.local_addr()?.as_socket().context("no address for the primary")?;
        let settings = Arc::new(Settings::new("primary.example.test".into(), MESSAGE_BYTES_MAX));
        let (sender, inbox) = mpsc::channel(INBOX_MESSAGES_MAX);
        Ok(Self { address, _port: port, settings, sender, inbox, acceptor: None })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn is_on(&self) -> bool {
        self.acceptor.is_some()
    }

    pub(super) fn switch_on(&mut self) -> anyhow::Result<()> {
        if self.is_on() {
            return Ok(());
        }
        let listen = || -> io::Result<TcpListener> {
            let socket = bind(self.address)?;
            socket.set_nonblocking(true)?;
            socket.listen(BACKLOG)?;
            TcpListener::from_std(socket.into())
        };
        let listener = listen().with_context(|| format!("the primary cannot listen on {}", self.address))?;
        self.acceptor = Some(tokio::spawn(accept(listener, self.settings.clone(), self.sender.clone())));
        Ok(())
    }

    /// When this returns, the listener and all connections are closed.
    pub(super) async fn switch_off(&mut self) {
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.abort();
            let _cancelled = acceptor.await;
        }
    }

    /// The next message it took, or takes.
    pub(super) async fn next(&mut self) -> Option<Received> {
        self.inbox.recv().await
    }

    /// The next message, if there is one already.
    pub(super) fn next_now(&mut self) -> Option<Received> {
        self.inbox.try_recv().ok()
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Owns the listener and the connections, so that all are gone when it is.
async fn accept(listener: TcpListener, settings: Arc<Settings>, inbox: mpsc::Sender<Received>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => {
                    connections.spawn(converse(stream, client, settings.clone(), inbox.clone()));
                }
                // Out of file descriptors, most likely: let others run, one of them may free some.
                Err(_) => tokio::task::yield_now().await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn converse(
    mut stream: TcpStream,
    client: SocketAddr,
    settings: Arc<Settings>,
    inbox: mpsc::Sender<Received>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut session = Session::new(settings, client, 0, clock::now());
    let mut mailbox = Mailbox { inbox, ids: IdGenerator::after(None), arriving: None, resolution: None };
    let mut buffer = vec![0; READ_BYTES];
    let mut input = Vec::new();
    loop {
        let replies = std::mem::take(session.output());
        stream.write_all(&replies).await?;
        if session.wants_close() {
            return stream.shutdown().await;
        }
        if input.is_empty() {
            let n = stream.read(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            input.extend_from_slice(buffer.get(..n).unwrap_or_default());
        }
        let used = session.receive(&input, clock::now(), &mut mailbox);
        input.drain(..used);
        if let Some(resolution) = mailbox.resolution.take() {
            session.resolve(resolution, clock::now());
        }
    }
}

/// Takes everything, and hands over what is complete.
struct Mailbox {
    inbox: mpsc::Sender<Received>,
    ids: IdGenerator,
    arriving: Option<Received>,
    resolution: Option<Resolution>,
}

impl Host for Mailbox {
    fn admit(&mut self, _path: &ForwardPath) -> Admission {
        Admission::Accept(RouteName::new("mailbox"))
    }

    fn begin(&mut self, envelope: &Envelope, _trace: &Trace, _declared_bytes: u64) -> Result<(), Trouble> {
        let to = envelope.recipients.iter().map(|recipient| recipient.forward_path.to_string()).collect();
        self.arriving = Some(Received { to, content: Vec::new() });
        Ok(())
    }

    fn chunk(&mut self, content: &[u8]) -> Result<(), Trouble> {
        self.arriving.as_mut().ok_or(Trouble::Local)?.content.extend_from_slice(content);
        Ok(())
    }

    fn end(&mut self, _end: EndOfData) {
        let taken = self.arriving.take().is_some_and(|received| self.inbox.try_send(received).is_ok());
        let id = self.ids.next(clock::now(), clock::entropy());
        self.resolution = Some(if taken { Resolution::Stored(id) } else { Resolution::Failed(Trouble::Storage) });
    }

    fn abort(&mut self) {
        self.arriving = None;
    }

    fn refused(&mut self, _refusal: &RefusedCommand) {}
}

#[cfg(test)]
mod tests {
    use super::super::client;
    use super::super::message::Message;
    use super::*;

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
    }

    #[test]
    fn a_primary_that_changes_bytes_would_blame_the_relay() {
        run(async {
            let mut primary = Primary::new().unwrap();
            primary.switch_on().unwrap();
            let messages = [Message::dots(""), Message::eight_bit(""), Message::two_recipients(""), Message::large("")];
            for message in messages {
                client::send(primary.address(), &message).await.unwrap();
                let received = primary.next_now().unwrap();
                assert_eq!(received.to, message.to);
                assert!(received.content == message.content, "{}", message.what);
            }
        });
    }

    #[test]
    fn a_primary_that_is_off_takes_nothing_and_comes_back_at_its_port() {
        run(async {
            let mut primary = Primary::new().unwrap();
            let message = Message::plain("plain", "carl", "");
            for _round in 0..3 {
                assert!(client::send(primary.address(), &message).await.is_err(), "off");
                primary.switch_on().unwrap();
                client::send(primary.address(), &message).await.unwrap();
                assert_eq!(primary.next_now().unwrap().content, message.content);
                primary.switch_off().await;
            }
            assert_eq!(primary.next_now(), None);
        });
    }

    #[test]
    fn a_connection_does_not_survive_the_switch() {
        run(async {
            let mut primary = Primary::new().unwrap();
            primary.switch_on().unwrap();
            let mut stream = TcpStream::connect(primary.address()).await.unwrap();
            let mut greeting = [0; 3];
            stream.read_exact(&mut greeting).await.unwrap();
            assert_eq!(&greeting, b"220");
            primary.switch_off().await;
            let mut rest = Vec::new();
            let _reset_or_end = stream.read_to_end(&mut rest).await;
            assert!(!rest.starts_with(b"421"), "a crash says no good-bye");
        });
    }

    #[test]
    fn a_message_cut_off_by_the_switch_is_not_taken() {
        run(async {
            let mut primary = Primary::new().unwrap();
            primary.switch_on().unwrap();
            let mut stream = TcpStream::connect(primary.address()).await.unwrap();
            let mut seen = Vec::new();
            for (commands, answer) in
                [("EHLO a.test\r\n", b"HELP"), ("MAIL FROM:<>\r\nRCPT TO:<a@example.test>\r\nDATA\r\n", b"354 ")]
            {
                stream.write_all(commands.as_bytes()).await.unwrap();
                while !seen.windows(4).any(|window| window == answer) {
                    assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0);
                }
            }
            stream.write_all(b"Subject: half of it\r\n").await.unwrap();
            primary.switch_off().await;
            assert_eq!(primary.next_now(), None);
        });
    }
}
