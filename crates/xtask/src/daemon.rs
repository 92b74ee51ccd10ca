//! The release binary with real connections to it, for tasks that measure it from outside. Its mail waits: nobody listens
//! where it would go.

use crate::bench::succeed;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Connections that fill the journal: what one relay at work opens.
const CLIENTS: u64 = 64;
/// Nobody listens there: all mail waits.
const NOBODY: &str = "example.test=127.0.0.1:1";
/// A reply that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(120);

/// Has all of them taken, of so many bytes each.
pub(crate) fn fill(smtp: SocketAddr, messages: u64, content_bytes: usize) -> Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let next = Arc::clone(&next);
            std::thread::spawn(move || -> Result<()> {
                let mut client = Client::connect(smtp)?;
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= messages {
                        return Ok(());
                    }
                    client.message(number, content_bytes)?;
                }
            })
        })
        .collect();
    clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
}

/// The sender's side of a connection, as little as it needs.
pub(crate) struct Client(BufReader<TcpStream>);

impl Client {
    pub(crate) fn connect(smtp: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(smtp)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut client = Self(BufReader::new(stream));
        client.expect("220")?;
        client.0.get_mut().write_all(b"EHLO client.test\r\n")?;
        client.expect("250")?;
        Ok(client)
    }

    pub(crate) fn message(&mut self, number: u64, content_bytes: usize) -> Result<()> {
        let envelope =
            format!("MAIL FROM:<sender{number}@client.test>\r\nRCPT TO:<box{}@example.test>\r\nDATA\r\n", number % 997);
        self.0.get_mut().write_all(envelope.as_bytes())?;
        for code in ["250", "250", "354"] {
            self.expect(code)?;
        }
        let mut content = format!(
            "From: sender{number}@client.test\r\nTo: box@example.test\r\nSubject: number {number}\r\nMessage-ID: <{number}@client.test>\r\n\r\n"
        );
        while content.len() < content_bytes {
            content.push_str("Sixty-four bytes of text that nobody needs to read: 0123456789.\r\n");
        }
        content.push_str(".\r\n");
        self.0.get_mut().write_all(content.as_bytes())?;
        self.expect("250")
    }

    /// One reply, of however many lines.
    fn expect(&mut self, code: &str) -> Result<()> {
        let mut line = String::new();
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            ensure!(line.starts_with(code), "{code} was expected, and came: {line:?}");
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }
}

pub(crate) struct Daemon {
    child: Child,
    pub(crate) smtp: SocketAddr,
}

impl Daemon {
    /// Returns when it says that it is ready.
    pub(crate) fn start(binary: &Path, data: &Path) -> Result<Self> {
        let mut child = Command::new(binary)
            .args(["serve", "--hostname", "mx2.example.test", "--listen", "127.0.0.1:0", "--route", NOBODY, "--data"])
            .arg(data)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let mut said = BufReader::new(child.stderr.take().context("it has no stderr")?);
        let mut line = String::new();
        let smtp = loop {
            line.clear();
            if said.read_line(&mut line)? == 0 {
                bail!("the daemon ended before it was ready: {}", child.wait()?);
            }
            if let Some(address) = line.strip_prefix("ready: smtp ") {
                break address.split_whitespace().next().context("no address")?.parse()?;
            }
        };
        // Read to its end, or a full pipe would stop the daemon.
        std::thread::spawn(move || said.read_to_end(&mut Vec::new()));
        Ok(Self { child, smtp })
    }

    /// In KiB, as the kernel counts it.
    pub(crate) fn memory(&self, what: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).with_context(|| format!("no {what}"))
    }

    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        succeed(Command::new("kill").arg("-TERM").arg(self.child.id().to_string()))?;
        ensure!(self.child.wait()?.success(), "the daemon did not end cleanly");
        Ok(())
    }
}
