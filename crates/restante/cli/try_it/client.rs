//! The sender of the story: one message over one SMTP connection (RFC 5321), and the ID of the 250. Retries nothing: a
//! sender that got no 250 still has its mail, and the story must be told of it.

use super::WAIT_MAX;
use super::message::Message;
use anyhow::{Context as _, bail, ensure};
use restante_envelope::TransactionId;
use std::net::SocketAddr;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// RFC 5321 section 4.5.3.1.5 says 512 for a reply line; more is no SMTP server.
const REPLY_LINE_BYTES_MAX: u64 = 4_096;
/// An EHLO reply has a dozen lines.
const REPLY_LINES_MAX: usize = 100;

/// Sends it, and returns the ID that the 250 names.
pub(super) async fn send(server: SocketAddr, message: &Message) -> anyhow::Result<TransactionId> {
    let sending = timeout(WAIT_MAX, transaction(server, message)).await;
    let reply = sending.unwrap_or_else(|_| bail!("no answer for {} s", WAIT_MAX.as_secs()));
    let reply = reply.with_context(|| format!("sending \"{}\" to {server}", message.what))?;
    let id = reply.rsplit_once("queued as ").and_then(|(_, id)| id.trim_end().parse().ok());
    id.with_context(|| format!("the 250 names no ID: {reply}"))
}

async fn transaction(server: SocketAddr, message: &Message) -> anyhow::Result<String> {
    let mut stream = BufReader::new(TcpStream::connect(server).await.context("cannot connect")?);
    stream.get_ref().set_nodelay(true)?;
    reply(&mut stream, "220").await?;
    command(&mut stream, "EHLO try.test", "250").await?;
    command(&mut stream, "MAIL FROM:<try@sender.test> BODY=8BITMIME", "250").await?;
    for to in &message.to {
        command(&mut stream, &format!("RCPT TO:<{to}>"), "250").await?;
    }
    command(&mut stream, "DATA", "354").await?;
    stream.write_all(&stuffed(&message.content)).await?;
    let stored = reply(&mut stream, "250").await?;
    // The message is theirs now, whatever becomes of the connection.
    let _good_bye = command(&mut stream, "QUIT", "221").await;
    Ok(stored)
}

async fn command(stream: &mut BufReader<TcpStream>, line: &str, expected: &str) -> anyhow::Result<()> {
    stream.write_all(format!("{line}\r\n").as_bytes()).await?;
    reply(stream, expected).await.with_context(|| format!("after {line}"))?;
    Ok(())
}

/// Reads one reply, and returns its last line.
async fn reply(stream: &mut BufReader<TcpStream>, expected: &str) -> anyhow::Result<String> {
    for _line in 0..REPLY_LINES_MAX {
        let mut line = String::new();
        stream.take(REPLY_LINE_BYTES_MAX).read_line(&mut line).await?;
        ensure!(line.ends_with('\n'), "the connection ended instead of a reply");
        ensure!(line.starts_with(expected), "the server said: {}", line.trim_end().escape_debug());
        if !line.get(3..).is_some_and(|rest| rest.starts_with('-')) {
            return Ok(line);
        }
    }
    bail!("a reply without end")
}

/// The content as it goes over the wire: dots doubled, and the final one (RFC 5321 section 4.5.2).
fn stuffed(content: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(content.len() + content.len() / 64);
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b".") {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
    }
    wire.extend_from_slice(b".\r\n");
    wire
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_one_dot_does_not_end_the_message() {
        assert_eq!(stuffed(b".\r\n..\r\na.\r\n\r\n"), b"..\r\n...\r\na.\r\n\r\n.\r\n");
        assert_eq!(stuffed(b""), b".\r\n");
    }
}
