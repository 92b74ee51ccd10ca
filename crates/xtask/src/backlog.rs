//! `cargo xtask backlog`: a million messages wait for a primary that is not there, and the daemon is killed. How long until
//! it says 250 again, what it needs of memory, and how fast `recover` reads? Drives the release binary from outside, by SMTP
//! and its own words. Judges nothing: it prints a table.

use crate::bench::{cargo, succeed, target};
use crate::machine;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Connections that fill the journal: what one relay at work opens.
const CLIENTS: u64 = 64;
/// Bytes of content of each message.
const CONTENT_BYTES: usize = 2 << 10;
/// Nobody listens there: all mail waits.
const NOBODY: &str = "example.test=127.0.0.1:1";
/// What runs behind the first 250 (index, log, the scrub) has shown by then what memory it takes.
const SETTLE: Duration = Duration::from_secs(20);
/// A reply that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(120);

/// What one start came to.
struct Started {
    first_250: Duration,
    peak_kib: u64,
    settled_kib: u64,
    peak_later_kib: u64,
}

/// Fills a journal in `target/backlog` with `messages`, and measures.
pub(crate) fn run(root: &Path, messages: u64) -> Result<()> {
    succeed(cargo(root).args(["build", "--release", "--locked", "--quiet"]))?;
    let (binary, data) = (target(root).join("release/restante"), target(root).join("backlog"));
    if data.exists() {
        fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))?;
    }
    eprintln!("xtask: {messages} messages of {CONTENT_BYTES} bytes come in");
    let began = Instant::now();
    let daemon = Daemon::start(&binary, &data)?;
    fill(daemon.smtp, messages)?;
    let rate = messages as f64 / began.elapsed().as_secs_f64();
    daemon.kill()?;
    let mut table = format!("{}\n\n", machine::about(root)?);
    writeln!(table, "{messages} messages of {CONTENT_BYTES} bytes, taken at {rate:.0}/s, all pending.\n")?;
    table.push_str("| start | first 250 | peak until then | resident later | peak later |\n|---|---|---|---|---|\n");
    for what in ["after kill -9", "after kill -9 again", "after a clean stop"] {
        let started = measure(&binary, &data, what == "after kill -9 again")?;
        let mib = |kib: u64| kib / 1024;
        writeln!(
            table,
            "| {what} | {:.2} s | {} MiB | {} MiB | {} MiB |",
            started.first_250.as_secs_f64(),
            mib(started.peak_kib),
            mib(started.settled_kib),
            mib(started.peak_later_kib)
        )?;
    }
    recover(&binary, &data, &mut table)?;
    println!("{table}");
    fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))
}

/// Starts it, has one message taken, looks at its memory, and ends it.
fn measure(binary: &Path, data: &Path, cleanly: bool) -> Result<Started> {
    let began = Instant::now();
    let daemon = Daemon::start(binary, data)?;
    Client::connect(daemon.smtp)?.message(0)?;
    let (first_250, peak_kib) = (began.elapsed(), daemon.memory("VmHWM")?);
    eprintln!("xtask: first 250 after {:.2} s", first_250.as_secs_f64());
    std::thread::sleep(SETTLE);
    let (settled_kib, peak_later_kib) = (daemon.memory("VmRSS")?, daemon.memory("VmHWM")?);
    if cleanly {
        daemon.stop()?
    } else {
        daemon.kill()?
    }
    Ok(Started { first_250, peak_kib, settled_kib, peak_later_kib })
}

fn recover(binary: &Path, data: &Path, table: &mut String) -> Result<()> {
    let mut bytes = 0;
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(".rj") {
            bytes += entry.metadata()?.len();
        }
    }
    let began = Instant::now();
    let done = Command::new(binary).args(["recover", "--json", "--data"]).arg(data).output()?;
    let took = began.elapsed().as_secs_f64();
    ensure!(done.status.success(), "recover: {}", String::from_utf8_lossy(&done.stderr));
    let rate = bytes as f64 / took / 1e6;
    writeln!(table, "\n`recover` read {:.0} MB in {took:.2} s: {rate:.0} MB/s.", bytes as f64 / 1e6)?;
    Ok(())
}

/// Has all of them taken.
fn fill(smtp: SocketAddr, messages: u64) -> Result<()> {
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
                    client.message(number)?;
                }
            })
        })
        .collect();
    clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
}

/// The sender's side of a connection, as little as it needs.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(smtp: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(smtp)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut client = Self(BufReader::new(stream));
        client.expect("220")?;
        client.0.get_mut().write_all(b"EHLO client.test\r\n")?;
        client.expect("250")?;
        Ok(client)
    }

    fn message(&mut self, number: u64) -> Result<()> {
        let envelope =
            format!("MAIL FROM:<sender{number}@client.test>\r\nRCPT TO:<box{}@example.test>\r\nDATA\r\n", number % 997);
        self.0.get_mut().write_all(envelope.as_bytes())?;
        for code in ["250", "250", "354"] {
            self.expect(code)?;
        }
        let mut content = format!(
            "From: sender{number}@client.test\r\nTo: box@example.test\r\nSubject: number {number}\r\nMessage-ID: <{number}@client.test>\r\n\r\n"
        );
        while content.len() < CONTENT_BYTES {
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

struct Daemon {
    child: Child,
    smtp: SocketAddr,
}

impl Daemon {
    /// Returns when it says that it is ready.
    fn start(binary: &Path, data: &Path) -> Result<Self> {
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
    fn memory(&self, what: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).with_context(|| format!("no {what}"))
    }

    fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn stop(mut self) -> Result<()> {
        succeed(Command::new("kill").arg("-TERM").arg(self.child.id().to_string()))?;
        ensure!(self.child.wait()?.success(), "the daemon did not end cleanly");
        Ok(())
    }
}
