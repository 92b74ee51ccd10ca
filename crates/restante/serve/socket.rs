//! A client's stream, in clear or in TLS: read, write, handshake, close. Knows no SMTP.
//!
//! Idle connections are many, so they are kept small: nothing of ours is held between reads. In TLS rustls holds its
//! state and a 4 KiB record buffer, some 10 KiB a connection.

use super::tls::Tls;
use restante_courier::Agreed;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

/// Read at once: what a fast sender gets into the socket while we are busy. On the stack, and only while there is something
/// to read.
pub(super) const READ_BYTES: usize = 64 << 10;
/// A client that does not take our replies for this long is gone (RFC 5321 section 4.5.3.2.7 allows it five minutes).
const WRITE_TIMEOUT: Duration = Duration::from_secs(300);
/// A handshake is two round trips and a few milliseconds of arithmetic. This leaves room for a slow line that loses
/// packets, and is far below what a command gets: who needs longer has nothing to show but a held connection.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to see that we have closed.
const LINGER: Duration = Duration::from_millis(500);
/// ..or as long as it sends no more than this: who goes on for ever does not read our reply.
const LINGER_BYTES_MAX: usize = 1 << 20;

/// A connection.
pub(super) enum Socket {
    Clear(TcpStream),
    /// Boxed: it would make every connection in clear as large.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Waits for bytes and hands them to `take`. None at the end of the stream.
    ///
    /// An end of TLS without close_notify is an end like any other: SMTP itself tells a complete content from one that
    /// was cut off. May be dropped at any time; nothing is lost then, and `take` was not called.
    pub(super) async fn read<T>(&mut self, mut take: impl FnMut(&[u8]) -> T) -> io::Result<Option<T>> {
        poll_fn(|context| {
            let mut storage = [MaybeUninit::uninit(); READ_BYTES];
            let mut buffer = ReadBuf::uninit(&mut storage);
            let read = match self {
                Self::Clear(stream) => Pin::new(stream).poll_read(context, &mut buffer),
                Self::Tls(stream) => Pin::new(stream).poll_read(context, &mut buffer),
            };
            Poll::Ready(match ready!(read) {
                Ok(()) if buffer.filled().is_empty() => Ok(None),
                Ok(()) => Ok(Some(take(buffer.filled()))),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                Err(error) => Err(error),
            })
        })
        .await
    }

    /// Writes all of it to the network, or fails when the client has not taken it in five minutes.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let write = async {
            match self {
                Self::Clear(stream) => stream.write_all(bytes).await,
                Self::Tls(stream) => {
                    stream.write_all(bytes).await?;
                    stream.flush().await
                }
            }
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the client does not take our replies");
        timeout(WRITE_TIMEOUT, write).await.map_err(late)?
    }

    /// Does the server's side of the handshake. If it fails, the connection is closed; no word is said in clear.
    pub(super) async fn start_tls(self, tls: &Tls) -> io::Result<(Self, Agreed)> {
        let Self::Clear(stream) = self else { return Err(io::Error::other("TLS is active already")) };
        let handshake = tls.acceptor().accept(stream).into_fallible();
        match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => {
                let agreed = Agreed::of(stream.get_ref().1);
                Ok((Self::Tls(Box::new(stream)), agreed))
            }
            Ok(Err((error, stream))) => {
                // So that the alert, which says why, arrives.
                Self::Clear(stream).close(false).await;
                Err(io::Error::new(error.kind(), format!("TLS handshake: {error}")))
            }
            Err(_late) => Err(io::Error::new(io::ErrorKind::TimedOut, "TLS handshake: timeout")),
        }
    }

    /// Closes so that the last reply arrives: a socket closed with unread bytes is reset, and the reset may overtake the
    /// reply. In TLS the good-bye is close_notify. A client that asked for the end sends nothing more, so it is not waited
    /// for.
    pub(super) async fn close(mut self, client_quit: bool) {
        let farewell = async {
            match &mut self {
                Self::Clear(_) if client_quit => return Ok(()),
                Self::Clear(stream) => stream.shutdown().await?,
                Self::Tls(stream) => stream.shutdown().await?,
            }
            let mut passed_over = 0;
            while !client_quit && passed_over < LINGER_BYTES_MAX {
                match self.read(|input| passed_over += input.len()).await? {
                    Some(()) => {}
                    None => break,
                }
            }
            io::Result::Ok(())
        };
        let _whoever_lingers = timeout(LINGER, farewell).await;
    }
}
