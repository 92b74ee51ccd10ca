//! 250 means stable storage, seen from outside: strace on the real binary, a sync that fails, a disk that is full. These tests
//! refuse to look into the daemon: they know files by their names and content by its bytes alone.

use crate::harness::client::Message;
use crate::harness::trace::{CALLS, Trace};
use crate::harness::{Client, Daemon, Serve, Sink, cli, eventually, queued_id, scratch, tool};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// strace in the daemon's shadow (`-D`: the daemon stays our child).
fn traced(data: &Path, primary: u16, output: &Path) -> Daemon {
    let output = output.to_str().unwrap();
    Serve::new(data, primary)
        .under(&["strace", "-D", "-f", "-yy", "-s", "16000000", "-e", CALLS, "-e", "signal=none", "-o", output])
        .start()
}

/// The trace once strace has written its last line.
fn finished_trace(output: &Path, pid: u32) -> Trace {
    let ended = [format!("{pid} +++ exited with"), format!("{pid} +++ killed by")];
    Trace::parse(&eventually("strace's last line", || {
        let text = String::from_utf8_lossy(&fs::read(output).unwrap()).into_owned();
        text.lines().rev().take(5).any(|l| ended.iter().any(|e| collapsed(l).starts_with(e))).then_some(text)
    }))
}

/// strace aligns the columns: `10  +++` and `10 +++` are the same.
fn collapsed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Content with a mark at its start and at its end, in ASCII, which strace shows as it is.
fn marked(n: usize, size: usize) -> (Vec<u8>, [String; 2]) {
    let marks = [format!("first-mark-of-{n}-"), format!("last-mark-of-{n}-")];
    let mut content = format!("Message-ID: <{n}@trace>\r\n\r\n{}\r\n", marks[0]).into_bytes();
    while content.len() < size {
        content.extend_from_slice(b"0123456789012345678901234567890123456789012345678901234567890123456789\r\n");
    }
    content.extend_from_slice(format!("{}\r\n", marks[1]).as_bytes());
    (content, marks)
}

#[test]
fn no_250_leaves_before_the_sync_that_covers_it() {
    let directory = scratch();
    let data = directory.path().canonicalize().unwrap().join("data");
    let primary = Sink::closed();
    // Twice: the second start opens a new segment beside an old one.
    for round in 0..2 {
        let output = directory.path().join(format!("trace-{round}"));
        let mut daemon = traced(&data, primary.port, &output);
        let sessions: Vec<_> = (0..8)
            .map(|n| {
                let address = daemon.smtp;
                std::thread::spawn(move || {
                    let mut client = Client::ehlo(address);
                    let send = |m: usize| {
                        // Small ones share syncs; the last of each session goes to a blob, which is synced more than once.
                        let (content, marks) =
                            marked(round * 1000 + n * 10 + m, if m == 4 { 1_400_000 } else { 300 * m });
                        (queued_id(&client.send("a@example.net", &["box@example.test"], &content).unwrap()), marks)
                    };
                    (0..5).map(send).collect::<Vec<_>>()
                })
            })
            .collect();
        let acknowledged: Vec<_> = sessions.into_iter().flat_map(|s| s.join().unwrap()).collect();
        let pid = daemon.pid();
        daemon.stop();
        let trace = finished_trace(&output, pid);
        for (id, marks) in &acknowledged {
            trace
                .prove(&data, id, &[&marks[0], &marks[1]])
                .unwrap_or_else(|e| panic!("{e}; the trace has {} syncs of segments", trace.syncs_of("seg-")));
        }
        println!("{} 250s, {} syncs of segments", acknowledged.len(), trace.syncs_of("seg-"));
    }
}

/// strace attached to the daemon, making calls on one file fail; detached with the value.
struct Fault(Child);

impl Fault {
    fn inject(daemon: &Daemon, file: &Path, what: &str) -> Self {
        let mut strace = tool("strace");
        strace.args(["-f", "-p", &daemon.pid().to_string(), "-P"]).arg(file).args([
            "-e",
            "trace=fsync,fdatasync",
            "-e",
            what,
            "-o",
            "/dev/null",
        ]);
        let mut child =
            strace.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("strace: apt-get install strace");
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut lines = lines.map_while(Result::ok);
        let attached = lines.by_ref().find(|l| l.contains("attached"));
        assert!(attached.is_some(), "strace did not attach");
        std::thread::spawn(move || lines.for_each(drop));
        Self(child)
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The segment the daemon writes: the newest.
fn newest_segment(data: &Path) -> PathBuf {
    segments(data).pop().expect("a segment in the journal")
}

/// All segments, oldest first.
pub fn segments(data: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(data).unwrap().map(|e| e.unwrap().path()).collect();
    found.retain(|p| p.file_name().unwrap().to_str().is_some_and(|n| n.starts_with("seg-") && n.ends_with(".rj")));
    found.sort();
    found
}

#[test]
fn a_failed_sync_is_451_and_the_end_and_loses_nothing() {
    let directory = scratch();
    let data = directory.path().canonicalize().unwrap().join("data");
    let mut primary = Sink::closed();
    let mut daemon = Serve::new(&data, primary.port).start();
    let mut clients: Vec<Client> = (0..5).map(|_| Client::ehlo(daemon.smtp)).collect();
    let mut promised = Vec::new();
    for (n, client) in (0..).zip(&mut clients) {
        let message = Message::new("kept", n, 3000);
        queued_id(&client.send("a@example.net", &["box@example.test"], &message.content).unwrap());
        promised.push(message);
    }
    let fault = Fault::inject(&daemon, &newest_segment(&data), "inject=fsync,fdatasync:error=EIO:when=1+");
    let failing: Vec<_> = (0..)
        .zip(clients)
        .map(|(n, mut client)| {
            let message = Message::new("failed", n, 3000);
            std::thread::spawn(move || {
                client.send("a@example.net", &["box@example.test"], &message.content).map(|r| r.code)
            })
        })
        .collect();
    let replies: Vec<_> = failing.into_iter().map(|f| f.join().unwrap().unwrap_or(0)).collect();
    assert!(replies.contains(&451), "who waited for the failed sync gets 451: {replies:?}");
    assert!(
        replies.iter().all(|code| [451, 421, 0].contains(code)),
        "451, 421 or a cut, and nothing else: {replies:?}"
    );
    assert_eq!(daemon.wait(), Some(1), "a failed sync is the end: {}", daemon.stderr());
    drop(fault);
    let account = cli(&data, &["recover", "--json"]).expect_code(0).account();
    assert!(account["pending"].as_u64().unwrap() >= 5, "{account}");
    let before = segments(&data);
    let daemon = Serve::new(&data, primary.port).start();
    let mut client = Client::ehlo(daemon.smtp);
    let after = Message::new("after", 1, 3000);
    queued_id(&client.send("a@example.net", &["box@example.test"], &after.content).unwrap());
    promised.push(after);
    assert!(!before.contains(&newest_segment(&data)), "a restart goes on in a new segment");
    primary.open();
    daemon.wait_until_empty();
    let received = primary.received();
    for message in promised {
        let copies = received.iter().filter(|r| r.message_id == message.message_id);
        assert_eq!(copies.filter(|r| r.content == message.content).count(), 1, "{}", message.message_id);
    }
}

#[test]
fn a_failed_directory_sync_of_the_first_segment_is_no_start() {
    let directory = scratch();
    let data = directory.path().canonicalize().unwrap().join("data");
    fs::create_dir(&data).unwrap();
    let path = data.to_str().unwrap();
    let mut serve = Serve::new(&data, Sink::closed().port)
        .under(&[
            "strace",
            "-D",
            "-f",
            "-P",
            path,
            "-e",
            "trace=fsync,fdatasync",
            "-e",
            "inject=fsync,fdatasync:error=EIO:when=1+",
            "-o",
            "/dev/null",
        ])
        .command();
    let failed = crate::harness::run(&mut serve).expect_code(1);
    assert!(!failed.err.contains("ready: smtp"), "ready without a synced directory: {}", failed.err);
}

mod needs_root {
    use super::*;
    use crate::harness::{Small, run};

    #[test]
    fn a_full_disk_is_452_and_service_resumes_with_space() {
        let directory = scratch();
        let small = Small::mount("8m", directory.path());
        let data = directory.path().join("data");
        let ballast = directory.path().join("ballast");
        fs::write(&ballast, vec![1; 3 << 20]).unwrap();
        let mut primary = Sink::closed();
        let mut daemon = Serve::new(&data, primary.port).start();
        let mut promised = Vec::new();
        let mut client = Client::ehlo(daemon.smtp);
        // More than the disk holds: a refusal must come.
        let refused = (0..100).find_map(|n| {
            let message = Message::new("full", n, 150_000);
            let reply = client.send("a@example.net", &["box@example.test"], &message.content).unwrap();
            if reply.code != 250 {
                return Some(reply);
            }
            promised.push(message);
            None
        });
        let refused = refused.expect("15 MB were accepted on a disk of 8 MB");
        assert_eq!(refused.code, 452, "{}", refused.text());
        assert!(promised.len() > 1, "nothing was accepted on an empty disk");
        fs::remove_file(&ballast).unwrap();
        let message = Message::new("space", 1, 150_000);
        eventually("a 250 after space returned", || {
            let mut client = Client::connect(daemon.smtp).ok()?;
            client.hello().ok()?;
            let reply = client.send("a@example.net", &["box@example.test"], &message.content).ok()?;
            assert!([250, 452].contains(&reply.code), "{}", reply.text());
            (reply.code == 250).then_some(())
        });
        promised.push(message);
        primary.open();
        daemon.wait_until_empty();
        let received = primary.received();
        for message in &promised {
            assert!(received.iter().any(|r| r.content == message.content), "{} is lost", message.message_id);
        }
        daemon.stop();
        cli(&data, &["verify"]).expect_code(0);
        drop(small);
    }

    #[test]
    fn a_first_start_on_a_full_disk_is_no_start() {
        let directory = scratch();
        let _small = Small::mount("8m", directory.path());
        let data = directory.path().join("data");
        fs::create_dir(&data).unwrap();
        let ballast = directory.path().join("ballast");
        // Up to the last byte: the write ends with the disk.
        let _full = fs::write(&ballast, vec![1; 16 << 20]);
        let daemon = Serve::new(&data, Sink::closed().port).start();
        let message = Message::new("first", 1, 2_000);
        let send = || {
            let mut client = Client::ehlo(daemon.smtp);
            client.send("a@example.net", &["box@example.test"], &message.content).unwrap().code
        };
        assert_eq!(send(), 452);
        fs::remove_file(&ballast).unwrap();
        eventually("a 250 when there is room", || (send() == 250).then_some(()));
    }

    #[test]
    fn on_a_disk_too_full_for_any_record_nothing_is_sent_that_would_be_sent_again() {
        let directory = scratch();
        let _small = Small::mount("8m", directory.path());
        let data = directory.path().join("data");
        let mut primary = Sink::closed();
        let mut daemon = Serve::new(&data, primary.port).start();
        for n in 0..40 {
            let message = Message::new("stuck", n, 3_000);
            queued_id(
                &Client::ehlo(daemon.smtp).send("a@example.net", &["box@example.test"], &message.content).unwrap(),
            );
        }
        daemon.kill9();
        let ballast = directory.path().join("ballast");
        let _full = fs::write(&ballast, vec![1; 16 << 20]);
        primary.open();
        for _ in 0..2 {
            let mut daemon = Serve::new(&data, primary.port).start();
            let status = cli(&data, &["status"]).expect_code(10);
            assert!(status.out.contains("NOT accepting"), "{}", status.out);
            // Were anything sent, it would be by the time that the whole of a start has been looked at.
            assert!(daemon.ask(&["queue", "ls"]).len() == 40);
            daemon.kill9();
        }
        assert_eq!(primary.count(), 0, "sent, and nobody will know");
        let mut daemon = Serve::new(&data, primary.port).start();
        fs::remove_file(&ballast).unwrap();
        daemon.wait_until_empty();
        assert_eq!(primary.count(), 40);
        daemon.stop();
        cli(&data, &["verify"]).expect_code(0);
    }

    #[test]
    fn a_rescued_disk_that_is_mounted_read_only_gives_no_mail_back() {
        let directory = scratch();
        let small = Small::mount("8m", directory.path());
        let data = directory.path().join("data");
        let mut daemon = Serve::new(&data, Sink::closed().port).start();
        let message = Message::new("rescued", 1, 2_000);
        queued_id(&Client::ehlo(daemon.smtp).send("a@example.net", &["box@example.test"], &message.content).unwrap());
        daemon.kill9();
        run(tool("mount").args(["-o", "remount,ro"]).arg(small.path())).expect_code(0);
        let out = scratch();
        let out = out.path().join("out");
        let recovered = cli(&data, &["recover", "--export", out.to_str().unwrap()]).expect_code(0);
        assert!(recovered.err.contains("is read-only"), "{}", recovered.err);
        let exported = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
        let mail: Vec<_> = exported.filter(|path| path.extension().is_some_and(|e| e == "eml")).collect();
        assert!(mail.len() == 1 && fs::read(&mail[0]).unwrap() == message.content, "{mail:?}");
    }
}
