//! The socket, in clear or encrypted, and what came over it while nobody read. Knows nothing of SMTP.

use crate::failure::Failure;
use socket2::SockRef;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// Reads of up to 4 KiB in one look at an encrypted connection. The tickets of a TLS 1.3 server are one; who sends this
/// much without a byte of SMTP in it is not a mail server.
const LOOK_READS_MAX: usize = 16;

pub(crate) enum Stream {
    Clear(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Clear(tcp) => tcp,
            Self::Encrypted(tls) => tls.get_ref().0,
        }
    }

    /// What the other side did meanwhile: hang up, or send bytes that are there to be read. Does not block, and asks the
    /// system itself: tokio knows only what its driver has seen.
    pub(crate) fn unasked(&mut self) -> Option<Failure> {
        match self {
            Self::Clear(tcp) => match SockRef::from(&*tcp).peek(&mut [MaybeUninit::uninit()]) {
                Ok(0) => Some(Failure::closed_by_server()),
                Ok(_) => Some(Failure::unasked()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                Err(error) => Some(error.into()),
            },
            Self::Encrypted(tls) => unasked(tls),
        }
    }

    fn io(self: Pin<&mut Self>) -> Pin<&mut dyn Io> {
        match self.get_mut() {
            Self::Clear(tcp) => Pin::new(tcp),
            Self::Encrypted(tls) => Pin::new(tls.as_mut()),
        }
    }
}

/// Bytes on an encrypted connection need not be the server's words: tickets and new keys come unasked. So what is there is
/// given to TLS, which says what it was; the words it finds stay there for the next read.
fn unasked(tls: &mut TlsStream<TcpStream>) -> Option<Failure> {
    let (tcp, session) = tls.get_mut();
    let socket = SockRef::from(&*tcp);
    for _ in 0..LOOK_READS_MAX {
        match session.process_new_packets() {
            Ok(state) if state.plaintext_bytes_to_read() > 0 => return Some(Failure::unasked()),
            Ok(state) if state.peer_has_closed() => return Some(Failure::closed_by_server()),
            Ok(_) => {}
            Err(error) => return Some(Failure::Closed(error.to_string())),
        }
        match session.read_tls(&mut &*socket) {
            Ok(0) => return Some(Failure::closed_by_server()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => return Some(error.into()),
        }
    }
    Some(Failure::unasked())
}

trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
}
