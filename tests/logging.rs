//! The delivery log from outside: what its disk could not take is in it all the same, and one message's life is found in it.
//! It refuses to look into the log's files where `restante log` can tell.

use crate::harness::{Client, Daemon, Message, Serve, Sink, cli, eventually, queued_id, scratch};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Instant;

fn send(daemon: &Daemon, n: u64) -> String {
    let message = Message::new("logged", n, 500);
    queued_id(&Client::ehlo(daemon.smtp).send("a@example.net", &["box@example.test"], &message.content).unwrap())
}

/// The events of these lines.
fn events(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["ev"].as_str().unwrap_or_else(|| line["type"].as_str().unwrap())).collect()
}

#[test]
fn the_life_of_a_message_is_told_from_its_session_to_its_delivery() {
    let directory = scratch();
    let mut primary = Sink::closed();
    let mut daemon = Serve::new(directory.path(), primary.port).start();
    let (id, other) = (send(&daemon, 1), send(&daemon, 2));
    // The primary is known to be down from the start; that the mail waits is written a moment after its 250.
    eventually("both waiting, in the log", || {
        let log = daemon.ask(&["log"]);
        (events(&log).iter().filter(|event| **event == "waiting").count() == 2).then_some(())
    });
    let waiting = cli(directory.path(), &["log", "--around", &id]).expect_code(0).out;
    assert!(waiting.lines().last().unwrap().starts_with("now: box@example.test "), "{waiting}");
    primary.open();
    daemon.wait_until_empty();
    let life = eventually("the delivery in the log", || {
        let life = daemon.ask(&["log", "--around", &id]);
        events(&life).contains(&"sent").then_some(life)
    });
    daemon.stop();
    assert!(life.iter().all(|line| line["id"] != other.as_str()), "another message: {life:?}");
    let events = events(&life);
    for expected in ["connect", "accepted", "disconnect", "waiting", "primary_recovering", "sent"] {
        assert!(events.contains(&expected), "no {expected}: {events:?}");
    }
    assert_eq!((events[0], events[events.len() - 1]), ("connect", "life"));
    let last = &life[life.len() - 1];
    assert_eq!(last["to"][0]["status"], "sent");
    assert!(last["now"].as_str().unwrap().starts_with("box@example.test was taken by "), "{last}");
}

#[test]
fn a_selector_that_matches_nothing_is_4_and_a_bad_time_is_2() {
    let directory = scratch();
    let mut primary = Sink::closed();
    primary.open();
    let mut daemon = Serve::new(directory.path(), primary.port).start();
    let id = send(&daemon, 1);
    daemon.wait_until_empty();
    eventually("the delivery in the log", || events(&daemon.ask(&["log"])).contains(&"sent").then_some(()));
    daemon.stop();
    let found = |args: &[&str]| cli(directory.path(), &[&["log", "--json"], args].concat()).expect_code(0).json().len();
    assert_eq!(found(&["--id", &id, "--text", "SENT"]), 1);
    assert_eq!(found(&["--to", "Box@Example.Test", "--from", "example.net", "--since", "1h"]), 2);
    let none = "01JD9QK3T2E8V5W6X7Y8Z9ABCD";
    for nothing in [["--around", none], ["--id", none], ["--to", "x@example.test"], ["--until", "1d"], ["--route", "x"]]
    {
        let said = cli(directory.path(), &[&["log"][..], &nothing].concat()).expect_code(4);
        assert_eq!((said.out.as_str(), said.err.is_empty()), ("", false));
    }
    cli(directory.path(), &["log", "--since", "yesterday"]).expect_code(2);
    cli(directory.path(), &["log", "--around", &id, "--follow"]).expect_code(2);
}

/// `cargo test --release --test integration -- --ignored --nocapture a_message_of_three_days_back`
#[test]
#[ignore = "a measurement: writes 300 MB of log, and prints how long it takes to find one message in it"]
fn a_message_of_three_days_back_in_300_mb() {
    let directory = scratch();
    let data = directory.path();
    fs::create_dir(data.join("log")).unwrap();
    let wanted = generate(&data.join("log"));
    let start = Instant::now();
    let mut daemon = Serve::new(data, Sink::closed().port).start();
    let of = |end: &str| {
        let listed = fs::read_dir(data.join("log")).unwrap().map(|entry| entry.unwrap());
        let named =
            |e: &fs::DirEntry| e.file_name().to_str().is_some_and(|n| n.starts_with("delivery-") && n.ends_with(end));
        listed.filter(named).map(|entry| entry.metadata().map_or(0, |m| m.len())).collect::<Vec<_>>()
    };
    eventually("all files compressed", || of(".jsonl").is_empty().then_some(()));
    println!("compressed to {} bytes in {:?}", of(".zst").iter().sum::<u64>(), start.elapsed());
    daemon.stop();
    for args in [&["log", "--around", &wanted][..], &["log", "--id", &wanted], &["log", "--text", &wanted]] {
        let start = Instant::now();
        let found = cli(data, args).expect_code(0);
        println!("{args:?}: {} lines in {:?}", found.out.lines().count(), start.elapsed());
        print!("{}", found.out);
    }
}

/// Five days of log as a relay writes it, in files put aside; the identifier of a message of three days back.
fn generate(log: &Path) -> String {
    const MESSAGES_A_DAY: u64 = 57_000;
    const DAY_MS: u64 = 86_400_000;
    let now = jiff::Timestamp::now().as_millisecond();
    let first_day = (u64::try_from(now).unwrap() / DAY_MS - 5) * DAY_MS;
    let (mut wanted, mut bytes, mut state) = (String::new(), 0, 88_172_645_463_325_252_u64);
    for day in 0..5 {
        let mut text = String::new();
        for n in 0..MESSAGES_A_DAY {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = first_day + day * DAY_MS + n * DAY_MS / MESSAGES_A_DAY;
            let id = ulid(at, state);
            message_lines(&mut text, at, state, &id, day * MESSAGES_A_DAY + n);
            if (day, n) == (2, MESSAGES_A_DAY / 2) {
                wanted = id;
            }
        }
        let name = format!("delivery-{}-001.jsonl", &time(first_day + day * DAY_MS)[..10]);
        fs::write(log.join(name), &text).unwrap();
        bytes += text.len();
    }
    println!("{bytes} bytes of log, {} messages", 5 * MESSAGES_A_DAY);
    wanted
}

fn time(ms: u64) -> String {
    let at = jiff::Timestamp::from_millisecond(i64::try_from(ms).unwrap()).unwrap();
    format!("{at:.3}")
}

fn ulid(ms: u64, entropy: u64) -> String {
    let bits = (u128::from(ms) << 80) | (u128::from(entropy) << 12);
    (0..26).rev().map(|i| char::from(b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"[(bits >> (5 * i)) as usize & 31])).collect()
}

fn message_lines(text: &mut String, at: u64, state: u64, id: &str, n: u64) {
    let (sid, size) = (format!("{:x}", 1_795_359_200_000 + n), 900 + state % 90_000);
    let (ip, box_, port) =
        (format!("203.0.{}.{}", state % 113, state >> 8 & 255), state >> 16 & 4095, state >> 32 & 0xffff);
    let from = format!("sender{}@list{}.example.net", state >> 20 & 0xffff, state >> 40 & 63);
    let start = |ms: u64, ev: &str| format!(r#"{{"type":"log","ts":"{}","ev":"{ev}""#, time(at + ms));
    let client = format!(r#""sid":"{sid}","client_ip":"{ip}""#);
    let node = r#""node":"mx2.example.net""#;
    let _ = writeln!(text, r#"{},{client},{node}}}"#, start(0, "connect"));
    let _ = writeln!(
        text,
        r#"{},"id":"{id}",{client},"helo":"mail{port}.example.net","route":"office","from":"{from}","to":"box{box_}@example.com","nrcpt":1,"size":{size},"status":"accepted",{node}}}"#,
        start(40, "accepted")
    );
    let _ = writeln!(text, r#"{},{client},"accepted":1,"refused":0,"size":{size},{node}}}"#, start(60, "disconnect"));
    let _ = writeln!(
        text,
        r#"{},"id":"{id}","route":"office","to":"box{box_}@example.com","from":"{from}","size":{size},"delay_s":0.{port},"delays":[0.04,0.002,0.01,0.0{port}],"status":"sent","relay_host":"mail.example.com","relay_ip":"192.0.2.10","relay_port":25,"code":250,"reply":"250 2.0.0 Ok: queued as 4{port:X}{box_:X}","dsn":"2.0.0",{node}}}"#,
        start(900, "sent")
    );
    if n.is_multiple_of(9_000) {
        let _ = writeln!(
            text,
            r#"{},"route":"office","why":"connection refused","pending":3,{node}}}"#,
            start(950, "primary_down")
        );
        let _ = writeln!(text, r#"{},"route":"office","down_s":2,{node}}}"#, start(990, "primary_up"));
    }
}

mod needs_root {
    use super::*;
    use crate::harness::{require_root, run, tool};
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    /// A small file system of its own; unmounted with the value.
    struct Small(PathBuf);

    impl Small {
        fn mount(at: &Path) -> Self {
            require_root();
            fs::create_dir_all(at).unwrap();
            run(tool("mount").args(["-t", "tmpfs", "-o", "size=256k,mode=0700", "restante-test"]).arg(at))
                .expect_code(0);
            Self(at.to_owned())
        }
    }

    impl Drop for Small {
        fn drop(&mut self) {
            let _ = run(tool("umount").arg("--lazy").arg(&self.0));
        }
    }

    #[test]
    fn a_full_disk_of_the_log_costs_no_line_of_a_fact() {
        let directory = scratch();
        let data = directory.path().join("data");
        let small = Small::mount(&data.join("log"));
        let mut primary = Sink::closed();
        primary.open();
        let mut daemon = Serve::new(&data, primary.port).start();
        let mut ids = BTreeSet::from([send(&daemon, 0)]);
        let logged = |event: &str| -> BTreeSet<String> {
            let lines = daemon.ask(&["log"]);
            let of_event = lines.iter().filter(|line| line["ev"] == event && line["id"].is_string());
            of_event.map(|line| line["id"].as_str().unwrap().to_owned()).collect()
        };
        eventually("the first delivery in the log", || (logged("sent") == ids).then_some(()));
        let ballast = data.join("log").join("ballast");
        let full = fs::write(&ballast, vec![1; 1 << 20]);
        assert!(full.is_err(), "1 MiB fits in 256 KiB");
        // Mail goes on, while line after line is lost.
        let dropped = || daemon.metric("restante_log_dropped_total", "").unwrap();
        for round in 1.. {
            ids.extend((0..10).map(|n| send(&daemon, round * 10 + n)));
            if dropped() > 20.0 {
                break;
            }
        }
        daemon.wait_until_empty();
        assert!(logged("accepted").len() < ids.len(), "the log's disk was not full");
        fs::remove_file(&ballast).unwrap();
        eventually("every fact in the log, without a restart", || {
            (logged("accepted") == ids && logged("sent") == ids).then_some(())
        });
        let gaps = eventually("the end of the gap in the log", || {
            let gaps: Vec<_> = daemon.ask(&["log"]).into_iter().filter(|line| line["ev"] == "log_gap").collect();
            gaps.iter().any(|gap| gap["status"] == "filled").then_some(gaps)
        });
        assert!(gaps[0]["why"].as_str().unwrap().ends_with("records could not be written"), "{gaps:?}");
        daemon.stop();
        // The next start has nothing left to tell.
        let lines = cli(&data, &["log", "--json"]).expect_code(0).json().len();
        let mut again = Serve::new(&data, primary.port).start();
        again.stop();
        let more = cli(&data, &["log", "--json"]).expect_code(0).json();
        assert!(!more[lines..].iter().any(|line| line["ev"] == "accepted"), "{:?}", &more[lines..]);
        drop(small);
    }
}
