//! What the daemon needs of memory and disk, in figures: idle, for each idle connection, for each pending message. A measurement:
//! it asserts nothing of the figures, for they are the machine's and the allocator's as well.

use crate::harness::tls::{self, trusting};
use crate::harness::{Client, Daemon, Message, Serve, Sink, eventually, scratch};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Connections that are opened and say EHLO, and no more.
const CONNECTIONS: u64 = 1_000;
/// Messages pending at the first look and at the second. The slope between them leaves out what is there anyway.
const PENDING: [u64; 2] = [20_000, 200_000];
/// Bytes of content of each.
const CONTENT_BYTES: usize = 1_024;
/// Sessions that send them: enough to share syncs.
const SENDERS: usize = 50;

/// Resident memory, in bytes.
fn resident(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Bytes of the files in the data directory whose names begin so; of all below it, if that is empty.
fn on_disk(directory: &Path, begins: &str) -> u64 {
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() && begins.is_empty() => on_disk(&entry.path(), ""),
        Ok(found) if found.is_file() && entry.file_name().to_string_lossy().starts_with(begins) => found.len(),
        // SQLite removed its journal after it was listed.
        _ => 0,
    };
    fs::read_dir(directory).unwrap().map(|entry| bytes(entry.unwrap())).sum()
}

/// Resident memory once nothing is written any more: the log and the index follow behind the mail.
fn resident_at_rest(daemon: &Daemon) -> u64 {
    let mut before = (0, 0);
    eventually("the daemon to be at rest", || {
        std::thread::sleep(Duration::from_millis(500));
        let now = (resident(daemon), on_disk(&daemon.data, ""));
        (std::mem::replace(&mut before, now) == now).then_some(now.0)
    })
}

/// A connection that did STARTTLS and said EHLO inside.
fn encrypted(daemon: &Daemon, config: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let mut stream = BufReader::new(tls::encrypted(daemon, "mx2.example.test", config));
    stream.get_mut().write_all(b"EHLO client.example.net\r\n").unwrap();
    let mut line = String::new();
    while !line.starts_with("250 ") {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0, "closed instead of a reply to EHLO");
    }
    stream.into_inner()
}

/// Sends messages until so many were ever sent; returns the bytes of their contents.
fn fill(daemon: &Daemon, next: &AtomicU64, until: u64) -> u64 {
    let sender = || {
        let (mut client, mut bytes) = (Client::ehlo(daemon.smtp), 0);
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= until {
                return bytes;
            }
            let message = Message::new("pending", n, CONTENT_BYTES);
            // In one write: it is not the dialogue that is measured.
            client
                .raw(b"MAIL FROM:<sender@example.net> BODY=8BITMIME\r\nRCPT TO:<box@example.test>\r\nDATA\r\n")
                .unwrap();
            let codes = [(); 3].map(|()| client.reply().unwrap().code);
            assert_eq!(codes, [250, 250, 354]);
            assert_eq!(client.content(&message.content).unwrap().code, 250);
            bytes += message.content.len() as u64;
        }
    };
    let bytes = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS).map(|_| scope.spawn(sender)).collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).sum()
    });
    next.store(until, Ordering::Relaxed);
    bytes
}

fn start(directory: &Path) -> Daemon {
    let daemon = Serve::new(directory, Sink::closed().port).start();
    eventually("the primary to be known as down", || {
        (daemon.metric("restante_primary_up", "") == Some(0.0)).then_some(())
    });
    daemon
}

fn wait_for_connections(daemon: &Daemon, connections: u64) {
    eventually("all connections to be served", || {
        (daemon.metric("restante_smtp_connections", "") == Some(connections as f64)).then_some(())
    });
}

/// `cargo test --release --test integration footprint -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, of a thousand connections"]
fn idle_and_idle_connections_in_figures() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let directory = scratch();
    let per_connection =
        |daemon: &Daemon, idle| (resident_at_rest(daemon) as f64 - idle as f64) / CONNECTIONS as f64 / 1024.0;
    let daemon = start(&directory.path().join("clear"));
    let idle = resident_at_rest(&daemon);
    println!("idle: {:.1} MiB resident", idle as f64 / 1_048_576.0);
    let clients: Vec<_> = (0..CONNECTIONS).map(|_| Client::ehlo(daemon.smtp)).collect();
    wait_for_connections(&daemon, CONNECTIONS);
    println!("an idle connection in clear: {:.1} KiB resident, of {CONNECTIONS}", per_connection(&daemon, idle));
    drop((clients, daemon));
    // A new process: what the first connections left in the allocator would be used again.
    let daemon = start(&directory.path().join("tls"));
    let (idle, config) = (resident_at_rest(&daemon), trusting(&daemon));
    let clients: Vec<_> = (0..CONNECTIONS).map(|_| encrypted(&daemon, &config)).collect();
    wait_for_connections(&daemon, CONNECTIONS);
    println!("an idle connection under TLS: {:.1} KiB resident, of {CONNECTIONS}", per_connection(&daemon, idle));
    drop(clients);
}

/// `cargo test --release --test integration footprint -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, of 200,000 messages"]
fn a_pending_message_in_figures() {
    let directory = scratch();
    let daemon = start(&directory.path().join("data"));
    let next = AtomicU64::new(0);
    let looks = PENDING.map(|pending| {
        let sent = fill(&daemon, &next, pending);
        assert_eq!(daemon.metric("restante_queue_messages", "state=\"waiting\""), Some(pending as f64));
        let resident = resident_at_rest(&daemon);
        let [all, journal] = ["", "seg-"].map(|begins| on_disk(&daemon.data, begins));
        println!(
            "{pending} pending: {:.1} MiB resident, {:.1} MiB journal",
            resident as f64 / 1_048_576.0,
            journal as f64 / 1_048_576.0
        );
        [resident, journal, all - journal, sent]
    });
    let slope = |which: usize| (looks[1][which] as f64 - looks[0][which] as f64) / (PENDING[1] - PENDING[0]) as f64;
    let content = looks[1][3] as f64 / (PENDING[1] - PENDING[0]) as f64;
    println!("a pending message: {:.0} bytes resident", slope(0));
    println!(
        "a message of {content:.0} bytes: {:.0} bytes of journal, {:.2} times its size",
        slope(1),
        slope(1) / content
    );
    println!("a message in index and log: {:.0} bytes", slope(2));
}
