//! One system call fails, or is the last: at each place in the daemon's and in `recover`'s life, by strace. These tests refuse
//! to know what a call is for; they count calls, and look at what is left.

use crate::custody::assert_balanced;
use crate::damage::fill;
use crate::harness::{Client, Message, Serve, Sink, cli, eventually, restante, run, scratch, tool};
use crate::storage::segments;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;

const SYNCS: &str = "fsync,fdatasync";
const SYNCS_AND_NAMES: &str = "fsync,fdatasync,rename,renameat,renameat2";

/// `strace` in the shadow of a command, which makes the `nth` call of `calls` in each thread end as `how` says.
fn injecting(calls: &str, how: &str, nth: u32) -> Vec<String> {
    let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:{how}:when={nth}"));
    ["strace", "-D", "-f", "-e", &trace, "-e", &inject, "-e", "signal=none", "-o", "/dev/null"]
        .map(str::to_owned)
        .to_vec()
}

/// A start, three messages, their delivery, a stop, with a fault in it somewhere. Then everything that had its 250 arrives.
fn life_with_a_fault(calls: &str, how: &str, nth: u32) {
    let what = format!("call {nth} of {calls}: {how}");
    let directory = scratch();
    let primary = Sink::opened();
    let serve = || Serve::new(directory.path(), primary.port);
    let strace = injecting(calls, how, nth);
    let strace: Vec<&str> = strace.iter().map(String::as_str).collect();
    let mut promised = Vec::new();
    if let Ok(mut daemon) = serve().under(&strace).try_start() {
        for n in 0..3 {
            let message = Message::new("fault", n, 2_000);
            let send = || {
                let mut client = Client::connect(daemon.smtp)?;
                client.hello()?;
                client.send("a@example.net", &["box@example.test"], &message.content)
            };
            if send().is_ok_and(|reply| reply.code == 250) {
                promised.push(message);
            }
        }
        eventually(&format!("the mail, or the end, after {what}"), || {
            (daemon.has_ended() || primary.count() >= promised.len()).then_some(())
        });
        if !daemon.has_ended() {
            daemon.signal(Signal::TERM);
            daemon.wait();
        }
    }
    let found = cli(directory.path(), &["verify", "--json"]).expect_code(0).account();
    assert_balanced(&found);
    assert_ne!(found["state"], "damaged", "{what}");
    let mut daemon = serve().start();
    daemon.ask(&["queue", "flush", "--all"]);
    daemon.wait_until_empty();
    daemon.stop();
    let received = primary.received();
    for message in &promised {
        assert!(received.iter().any(|r| r.content == message.content), "{} is lost: {what}", message.message_id);
    }
    assert_eq!(cli(directory.path(), &["verify", "--json"]).expect_code(0).account()["state"], "clean", "{what}");
}

#[test]
fn a_sync_or_a_rename_that_fails_or_is_the_last_loses_nothing_acknowledged() {
    for nth in 1..=3 {
        life_with_a_fault(SYNCS, "error=EIO", nth);
        life_with_a_fault(SYNCS_AND_NAMES, "signal=KILL", nth);
    }
    life_with_a_fault(SYNCS, "error=ENOSPC", 2);
    life_with_a_fault("rename,renameat,renameat2", "error=EIO", 1);
}

#[test]
#[ignore = "minutes: cargo test --test integration faults -- --ignored"]
fn each_sync_rename_and_write_that_fails_or_is_the_last_loses_nothing_acknowledged() {
    for nth in 1..=12 {
        for how in ["error=EIO", "error=ENOSPC", "signal=KILL"] {
            for calls in [SYNCS_AND_NAMES, "pwrite64"] {
                life_with_a_fault(calls, how, nth);
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    run(tool("cp").arg("-a").arg(from).arg(to)).expect_code(0);
}

fn recover(data: &Path) -> Command {
    let mut command = restante();
    command.args(["recover", "--json", "--data"]).arg(data);
    command
}

/// All that changes a file, call by call, as often as one thread of an undisturbed run makes it.
fn steps(data: &Path, trace: &Path) -> Vec<(String, u32)> {
    const CHANGES: &str =
        "trace=pwrite64,pwritev,ftruncate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat";
    let mut traced = tool("strace");
    traced.args(["-f", "-e", CHANGES, "-e", "signal=none", "-o"]).arg(trace);
    let ours = recover(data);
    traced.arg(ours.get_program()).args(ours.get_args());
    run(&mut traced);
    let mut counts: BTreeMap<(String, String), u32> = BTreeMap::new();
    for line in fs::read_to_string(trace).unwrap().lines() {
        let Some((pid, (name, _))) =
            line.split_once(' ').and_then(|(pid, call)| Some((pid, call.trim_start().split_once('(')?)))
        else {
            continue;
        };
        *counts.entry((name.to_owned(), pid.to_owned())).or_default() += 1;
    }
    let mut steps: BTreeMap<String, u32> = BTreeMap::new();
    for ((name, _), count) in counts {
        let most = steps.entry(name).or_default();
        *most = count.max(*most);
    }
    steps.into_iter().filter(|(name, _)| name.bytes().all(|b| b.is_ascii_alphanumeric())).collect()
}

/// What an account says of mail, and what was set aside: name and bytes.
fn digest(data: &Path, account: &Value) -> Value {
    let keys =
        ["transactions", "accepted", "pending", "sent", "bounced", "expired", "removed", "quarantined", "damage"];
    let mut aside: Vec<(String, Vec<u8>)> = fs::read_dir(data.join("torn"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    aside.sort();
    json!([keys.map(|key| account[key].clone()), aside])
}

/// Kills `recover` at each of its steps over a copy of `source`, and lets it run again.
fn killed_at_each_step(source: &Path, code: i32) {
    let room = scratch();
    let whole = room.path().join("whole");
    copy(source, &whole);
    let steps = steps(&whole, &room.path().join("trace"));
    let count: u32 = steps.iter().map(|(_, count)| count).sum();
    println!("{count} steps: {steps:?}");
    assert!(count >= 8 && steps.iter().any(|(name, _)| name.starts_with("rename")), "not a recovery: {steps:?}");
    let expected = digest(&whole, &run(&mut recover(&whole)).expect_code(code).account());
    for (name, count) in steps {
        for nth in 1..=count {
            let data = room.path().join("copy");
            copy(source, &data);
            let strace = injecting(&name, "signal=KILL", nth);
            let ours = recover(&data);
            let mut killed = tool(&strace[0]);
            killed.args(&strace[1..]).arg(ours.get_program()).args(ours.get_args());
            assert_eq!(run(&mut killed).code, None, "{name} {nth} was not reached");
            let first = run(&mut recover(&data)).expect_code(code).account();
            assert_eq!(digest(&data, &first), expected, "killed at {name} {nth}");
            let verified = cli(&data, &["verify", "--json"]).expect_code(code).account();
            assert_eq!(digest(&data, &verified), expected, "killed at {name} {nth}, then verified");
            fs::remove_dir_all(&data).unwrap();
        }
    }
}

/// A sealed segment, and one with a torn tail behind it; an orphan of each kind.
fn crashed(data: &Path) {
    let primary = Sink::closed();
    let mut daemon = Serve::new(data, primary.port).start();
    fill(&daemon, 3);
    daemon.stop();
    let mut daemon = Serve::new(data, primary.port).start();
    fill(&daemon, 3);
    daemon.kill9();
    let torn = segments(data).pop().unwrap();
    OpenOptions::new().append(true).open(torn).unwrap().write_all(&[0xA5; 333]).unwrap();
    fs::create_dir_all(data.join("blob")).unwrap();
    for name in ["00000000000000000000000000000001", "00000000000000000000000000000002.part"] {
        fs::write(data.join("blob").join(name), "left over").unwrap();
    }
}

#[test]
fn recover_killed_at_each_step_and_run_again_gives_the_account_of_one_run() {
    let room = scratch();
    let data = room.path().join("source");
    crashed(&data);
    killed_at_each_step(&data, 0);
    let (segment, message) = (segments(&data).remove(0), Message::new("damage", 1, 2000));
    let mut bytes = fs::read(&segment).unwrap();
    let tail = &message.content[message.content.len() - 200..];
    let at = bytes.windows(tail.len()).position(|w| w == tail).unwrap();
    bytes[at] ^= 4;
    fs::write(&segment, bytes).unwrap();
    killed_at_each_step(&data, 9);
}
