//! Large bodies: streamed to blobs while they arrive, and from blobs while they leave. What a kill, a full disk, a failed sync and
//! a crowd of them must not do. Speed is measured elsewhere.

use crate::custody::assert_balanced;
use crate::harness::client::{sha256, stuffed};
use crate::harness::{Client, Daemon, Message, Serve, Sink, cli, eventually, queued_id, scratch, tool};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

const FROM: &str = "sender@example.net";
const TO: &str = "box@example.test";

/// A sink that can take much: it keeps digests.
fn sink() -> Sink {
    Sink::closed().digests_only()
}

/// The blobs: those that are whole, and those being written.
fn blobs(data: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(data.join("blob")) else { return Default::default() };
    entries.map(|entry| entry.unwrap().path()).partition(|path| path.extension().is_none())
}

/// MAIL, RCPT and DATA are given; the content may follow.
fn opened(daemon: &Daemon) -> Client {
    let mut client = Client::ehlo(daemon.smtp);
    for (line, code) in [(format!("MAIL FROM:<{FROM}>"), 250), (format!("RCPT TO:<{TO}>"), 250), ("DATA".into(), 354)] {
        assert_eq!(client.command(&line).unwrap().code, code, "{line}");
    }
    client
}

/// The most memory that the daemon ever had resident, in KiB.
fn peak_kib(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_kill_during_a_large_body_loses_what_was_promised_or_leaves_a_ghost() {
    let directory = scratch();
    let mut primary = sink();
    let serve = Serve::new(directory.path(), primary.port);
    let mut promised = Vec::new();
    let mut in_doubt = Vec::new();
    for point in 0..10u64 {
        let mut daemon = serve.start();
        let kept = Message::new("kept", point, 1 << 20);
        queued_id(&Client::ehlo(daemon.smtp).send(FROM, &[TO], &kept.content).unwrap());
        promised.push((kept.message_id, sha256(&kept.content)));
        // One more is on its way: a tenth of it more each time; the last is complete but for our reply.
        let cut = Message::new("cut", point, 4 << 20);
        let wire = [stuffed(&cut.content), b".\r\n".to_vec()].concat();
        let mut client = opened(&daemon);
        let sent = if point == 9 { wire.len() } else { wire.len() * usize::try_from(point).unwrap() / 9 };
        client.raw(&wire[..sent]).unwrap();
        eventually("what was sent to be on its way to the disk", || {
            let part = blobs(directory.path()).1.first().and_then(|part| part.metadata().ok());
            // Up to a buffer is in memory and some is in the sockets; the last may be whole by now.
            let written = part.map_or(0, |part| part.len());
            (point == 9 || written + (1 << 20) >= sent as u64).then_some(())
        });
        daemon.kill9();
        if point == 9 {
            in_doubt.push(cut.message_id);
        }
        let verified = cli(directory.path(), &["verify", "--json"]).expect_code(0).account();
        let listed = verified["orphans"].as_array().unwrap_or_else(|| panic!("no orphans in {verified}")).len();
        let parts = blobs(directory.path()).1.len();
        assert!(listed >= parts, "{parts} unfinished, {listed} orphans listed: {verified}");
        let account = cli(directory.path(), &["recover", "--json"]).expect_code(0).account();
        assert_balanced(&account);
        let (whole, parts) = blobs(directory.path());
        assert_eq!(parts, [] as [PathBuf; 0], "left after recovery");
        let accepted = account["transactions"].as_u64().unwrap();
        assert_eq!(whole.len() as u64, accepted, "a blob for each message accepted, and no orphan: {account}");
        assert!((point + 1..=point + 2).contains(&accepted), "a ghost was accepted: {account}");
    }
    primary.open();
    let daemon = serve.start();
    daemon.wait_until_empty();
    let received = primary.received();
    for (message_id, digest) in &promised {
        let copies: Vec<_> = received.iter().filter(|r| r.message_id == *message_id).collect();
        assert!(copies.len() == 1 && copies[0].sha256 == *digest, "{message_id}: {} copies", copies.len());
    }
    let known = |id: &String| promised.iter().any(|(promised, _)| promised == id) || in_doubt.contains(id);
    let ghosts: Vec<_> = received.iter().map(|r| &r.message_id).filter(|id| !known(id)).collect();
    assert_eq!(ghosts, [] as [&String; 0], "accepted though it never was complete");
}

#[test]
fn a_crowd_of_large_bodies_fills_the_memory() {
    const CROWD: u64 = 20;
    const EACH_BYTES: usize = 12 << 20;
    const PEAK_KIB: u64 = 200 << 10;
    let directory = scratch();
    let mut primary = sink();
    let serve = Serve::new(directory.path(), primary.port);
    let mut daemon = serve.start();
    let send = |n: u64| {
        let smtp = daemon.smtp;
        std::thread::spawn(move || {
            let message = Message::new("crowd", n, EACH_BYTES);
            queued_id(&Client::ehlo(smtp).send(FROM, &[TO], &message.content).unwrap());
            (message.message_id, sha256(&message.content))
        })
    };
    let senders: Vec<_> = (0..CROWD).map(send).collect();
    let mut promised: Vec<_> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
    let accepting = peak_kib(&daemon);
    // A new process, so that its peak is that of delivering.
    daemon.stop();
    let daemon = serve.start();
    primary.open();
    daemon.wait_until_empty();
    let delivering = peak_kib(&daemon);
    println!("peak resident: {} MiB accepting, {} MiB delivering", accepting >> 10, delivering >> 10);
    assert!(accepting < PEAK_KIB && delivering < PEAK_KIB, "{accepting} and {delivering} KiB");
    let mut received: Vec<_> = primary.received().into_iter().map(|r| (r.message_id, r.sha256)).collect();
    promised.sort();
    received.sort();
    assert_eq!(received, promised);
}

#[test]
fn clients_that_fill_the_memory_and_stall_turn_others_away() {
    let directory = scratch();
    let mut primary = sink();
    let daemon = Serve::new(directory.path(), primary.port).start();
    // Together more than the budget; not one of them is large.
    let half = Message::new("stalled", 1, 250 << 10).content;
    let stalled: Vec<Client> = (0..400)
        .map(|_| {
            let mut client = opened(&daemon);
            client.raw(&stuffed(&half)).unwrap();
            client
        })
        .collect();
    let small = Message::new("small", 1, 2_000);
    queued_id(&Client::ehlo(daemon.smtp).send(FROM, &[TO], &small.content).unwrap());
    let last = stalled.into_iter().map(|mut client| {
        client.raw(b".\r\n").unwrap();
        queued_id(&client.reply().unwrap())
    });
    assert_eq!(last.count(), 400, "those that were written to disk early are accepted as well");
    primary.open();
    daemon.wait_until_empty();
    let received = primary.received();
    assert_eq!(received.len(), 401);
    assert!(received.iter().all(|r| [sha256(&half), sha256(&small.content)].contains(&r.sha256)));
    assert!(peak_kib(&daemon) < 200 << 10, "{} KiB", peak_kib(&daemon));
}

#[test]
fn a_client_that_goes_away_leaves_its_half_on_the_disk() {
    let directory = scratch();
    let daemon = Serve::new(directory.path(), sink().port).start();
    let message = Message::new("gone", 1, 2 << 20);
    let mut client = opened(&daemon);
    client.raw(&stuffed(&message.content)).unwrap();
    eventually("an unfinished blob", || (!blobs(directory.path()).1.is_empty()).then_some(()));
    drop(client);
    eventually("nothing left of it", || (blobs(directory.path()) == Default::default()).then_some(()));
    // Too large is the same: nothing is kept of what is refused.
    let config = directory.path().join("small.toml");
    fs::write(&config, "[smtp]\nmax_message_size = \"1MiB\"\n[[route]]\nname = \"a\"\ndomains = [\"a.test\"]\nprimary = [\"127.0.0.1:1\"]\n").unwrap();
    let other = directory.path().join("other");
    let daemon = Serve::new(&other, sink().port).config(&config).start();
    let refused = Client::ehlo(daemon.smtp).send(FROM, &[TO], &message.content).unwrap();
    assert_eq!(refused.code, 552, "{}", refused.text());
    eventually("nothing left of it", || (blobs(&other) == Default::default()).then_some(()));
}

#[test]
fn a_blob_that_cannot_be_synced_takes_other_mail_along() {
    let directory = scratch();
    let data = directory.path().canonicalize().unwrap();
    let mut primary = sink();
    let daemon = Serve::new(&data, primary.port).start();
    // Every sync of a file in blob/ fails; the journal's own go on. strace knows them by the directory's entries as they come.
    let message = Message::new("broken", 1, 2 << 20);
    let mut client = opened(&daemon);
    client.raw(&stuffed(&message.content)).unwrap();
    let part = eventually("an unfinished blob", || blobs(&data).1.pop());
    let fault = fail_syncs(&daemon, &part);
    client.raw(b".\r\n").unwrap();
    let reply = client.reply().unwrap();
    assert_eq!(reply.code, 451, "{}", reply.text());
    drop(fault);
    let small = Message::new("small", 1, 2_000);
    queued_id(&client.send(FROM, &[TO], &small.content).unwrap());
    queued_id(&client.send(FROM, &[TO], &message.content).unwrap());
    primary.open();
    daemon.wait_until_empty();
    assert_eq!(primary.received().len(), 2);
    assert_eq!(blobs(&data).1, [] as [PathBuf; 0]);
}

#[test]
fn the_blob_directory_cannot_be_synced_and_a_neighbour_s_own_sync_would_succeed() {
    let directory = scratch();
    let data = directory.path().canonicalize().unwrap();
    let mut primary = sink();
    let serve = Serve::new(&data, primary.port);
    let mut daemon = serve.start();
    let kept = Message::new("kept", 1, 1 << 20);
    queued_id(&Client::ehlo(daemon.smtp).send(FROM, &[TO], &kept.content).unwrap());
    // All are being finished at the same moment, and one is small.
    let clients: Vec<Client> = (0..4).map(|_| opened(&daemon)).collect();
    let fault = fail_syncs(&daemon, &data.join("blob"));
    let send = |(n, mut client): (u64, Client)| {
        let message = Message::new("neighbour", n, if n == 0 { 2_000 } else { 700_000 });
        let wire = [stuffed(&message.content), b".\r\n".to_vec()].concat();
        std::thread::spawn(move || {
            let code = client.raw(&wire).and_then(|()| client.reply()).map_or(0, |reply| reply.code);
            (n, code, message)
        })
    };
    let sent: Vec<_> = (0..).zip(clients).map(send).collect();
    let sent: Vec<_> = sent.into_iter().map(|sender| sender.join().unwrap()).collect();
    let replies: Vec<_> = sent.iter().map(|(n, code, _)| (*n, *code)).collect();
    assert!(replies.iter().any(|(_, code)| *code == 451), "{replies:?}");
    // The small one needs no blob: if it came before the failure, it is promised.
    let allowed = |n: u64, code: u16| [451, 421, 0].contains(&code) || (n == 0 && code == 250);
    assert!(replies.iter().all(|(n, code)| allowed(*n, *code)), "451, 421 or a cut: {replies:?}");
    assert_eq!(daemon.wait(), Some(1), "a directory that cannot be synced is the end: {}", daemon.stderr());
    drop(fault);
    assert_balanced(&cli(&data, &["recover", "--json"]).expect_code(0).account());
    let daemon = serve.start();
    primary.open();
    daemon.wait_until_empty();
    let mut promised = vec![sha256(&kept.content)];
    promised.extend(sent.iter().filter(|(_, code, _)| *code == 250).map(|(_, _, message)| sha256(&message.content)));
    let received: Vec<_> = primary.received().into_iter().map(|r| r.sha256).collect();
    for digest in promised {
        assert_eq!(received.iter().filter(|r| **r == digest).count(), 1, "once each");
    }
}

/// strace on the daemon: syncs of this file fail, until the value is dropped.
fn fail_syncs(daemon: &Daemon, file: &Path) -> Fault {
    let pid = daemon.pid().to_string();
    let mut command = tool("strace");
    command.args(["-f", "-P"]).arg(file).args([
        "-e",
        "inject=fsync,fdatasync:error=EIO:when=1+",
        "-o",
        "/dev/null",
        "-p",
        &pid,
    ]);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("strace");
    let stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut lines = std::io::BufRead::lines(stderr).map_while(Result::ok);
    assert!(lines.any(|line| line.contains("attached")), "strace did not attach");
    std::thread::spawn(move || lines.for_each(drop));
    Fault(child)
}

struct Fault(Child);

impl Drop for Fault {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
/// Sends small mail, one after the other over one connection, until told to stop: how long each took from the final dot to
/// its 250, in microseconds.
fn small_mail_until(stop: &std::sync::atomic::AtomicBool, smtp: std::net::SocketAddr) -> Vec<u128> {
    let mut client = Client::ehlo(smtp);
    let mut took = Vec::new();
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        let message = Message::new("beside", took.len() as u64, 4_000);
        let began = std::time::Instant::now();
        queued_id(&client.send(FROM, &[TO], &message.content).unwrap());
        took.push(began.elapsed().as_micros());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    took
}

fn p95(mut took: Vec<u128>) -> u128 {
    took.sort_unstable();
    took[took.len() * 95 / 100]
}

/// The figures of a gigabyte: `cargo test --release --test integration gigabyte -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, of a gigabyte"]
fn a_gigabyte_at_once_in_figures() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};
    let directory = scratch();
    let mut primary = sink();
    let serve = Serve::new(directory.path(), primary.port);
    let mut daemon = serve.start();
    let smtp = daemon.smtp;
    let stop = Arc::new(AtomicBool::new(false));
    let beside = |stop: &Arc<AtomicBool>, smtp| {
        let stop = Arc::clone(stop);
        std::thread::spawn(move || small_mail_until(&stop, smtp))
    };
    let alone = beside(&stop, smtp);
    std::thread::sleep(Duration::from_secs(5));
    stop.store(true, Ordering::Relaxed);
    let alone = p95(alone.join().unwrap());
    let wire = Arc::new([stuffed(&Message::new("giga", 1, 50 << 20).content), b".\r\n".to_vec()].concat());
    stop.store(false, Ordering::Relaxed);
    let small = beside(&stop, smtp);
    let began = Instant::now();
    let clients: Vec<_> = (0..20).map(|_| opened(&daemon)).collect();
    let senders: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            let wire = Arc::clone(&wire);
            std::thread::spawn(move || {
                client.raw(&wire).unwrap();
                queued_id(&client.reply().unwrap())
            })
        })
        .collect();
    senders.into_iter().for_each(|sender| drop(sender.join().unwrap()));
    let accepted = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    let small = small.join().unwrap();
    let (n, accepting) = (small.len(), p95(small));
    println!("accepting: {accepted:?}, peak {} MiB resident", peak_kib(&daemon) >> 10);
    println!(
        "small mail: p95 {alone} us alone, {accepting} us beside ({n} of them), {:.1} times",
        accepting as f64 / alone as f64
    );
    daemon.stop();
    let daemon = serve.start();
    stop.store(false, Ordering::Relaxed);
    let small = beside(&stop, daemon.smtp);
    let began = Instant::now();
    primary.open();
    eventually("the large ones at the primary", || {
        (primary.received().iter().filter(|r| r.message_id.contains("giga")).count() == 20).then_some(())
    });
    let delivered = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    let small = small.join().unwrap();
    let (n, delivering) = (small.len(), p95(small));
    println!("delivering: {delivered:?}, peak {} MiB resident", peak_kib(&daemon) >> 10);
    println!("small mail: {delivering} us beside ({n} of them), {:.1} times", delivering as f64 / alone as f64);
}

mod needs_root {
    use super::*;
    use crate::harness::{require_root, run};

    #[test]
    fn a_large_body_fills_the_disk_and_stays_there() {
        require_root();
        let directory = scratch();
        run(tool("mount").args(["-t", "tmpfs", "-o", "size=24m,mode=0700", "restante-test"]).arg(directory.path()))
            .expect_code(0);
        let mut primary = sink();
        let mut daemon = Serve::new(&directory.path().join("data"), primary.port).start();
        let data = daemon.data.clone();
        let small = Message::new("small", 1, 2_000);
        let mut client = Client::ehlo(daemon.smtp);
        queued_id(&client.send(FROM, &[TO], &small.content).unwrap());
        let large = Message::new("large", 1, 40 << 20);
        let refused = client.send(FROM, &[TO], &large.content).unwrap();
        assert_eq!(refused.code, 452, "{}", refused.text());
        assert_eq!(blobs(&data).1, [] as [PathBuf; 0], "the room is given back");
        // Who says beforehand how much it is hears so before it has sent it.
        let mail = client.command(&format!("MAIL FROM:<{FROM}> SIZE={}", 40 << 20)).unwrap();
        assert_eq!(mail.code, 452);
        queued_id(&client.send(FROM, &[TO], &small.content).unwrap());
        // What is left is small mail's: a body that would fit, and that nobody announced, gets none of it.
        let ballast = directory.path().join("ballast");
        let fs = rustix::fs::statvfs(directory.path()).unwrap();
        let free = usize::try_from(fs.f_bavail * fs.f_frsize).unwrap();
        fs::write(&ballast, vec![1; free - (9 << 19)]).unwrap();
        let fitting = Message::new("fitting", 1, 1 << 20);
        assert_eq!(client.send(FROM, &[TO], &fitting.content).unwrap().code, 452);
        queued_id(&client.send(FROM, &[TO], &small.content).unwrap());
        fs::remove_file(&ballast).unwrap();
        queued_id(&client.send(FROM, &[TO], &fitting.content).unwrap());
        primary.open();
        daemon.wait_until_empty();
        daemon.stop();
        cli(&data, &["verify"]).expect_code(0);
        let _ = run(tool("umount").arg("--lazy").arg(directory.path()));
    }
}
