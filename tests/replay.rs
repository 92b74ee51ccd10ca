//! `restante replay`: the primary lost its mail, and gets what it had taken in a range once more: all of it, none twice by our
//! doing, whatever is killed on the way.

use crate::harness::client::sha256;
use crate::harness::{Client, Daemon, Finished, Message, Received, Serve, Sink, cli, eventually, logged, queued_id};
use crate::harness::{restante, scratch};
use crate::retention::{blobs, config, first_segment};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// Messages in the range; every third has a second recipient.
const MESSAGES: usize = 24;
const RECIPIENTS: u64 = 24 + 8;

fn offer(daemon: &Daemon, to: &[&str], n: usize) -> (String, String) {
    let message = Message::new("replay", n as u64, 700);
    let reply = Client::ehlo(daemon.smtp).send("a@example.net", to, &message.content).unwrap();
    (queued_id(&reply), sha256(&message.content))
}

/// The instant between two deliveries, which no delivery shares.
fn mark() -> String {
    let ms = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let next = |after: u128| eventually("the next millisecond", || Some(ms()).filter(|now| *now > after));
    let at = next(ms());
    next(at);
    rfc3339(at)
}

fn rfc3339(ms: u128) -> String {
    let (days, ms) = (ms / 86_400_000, ms % 86_400_000);
    // Civil from days (proleptic Gregorian), March first.
    let z = i64::try_from(days).unwrap() + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z", ms % 1_000)
}

/// A primary that took mail before, in and after a range, and then lost it.
struct Story {
    directory: tempfile::TempDir,
    primary: Sink,
    /// The range.
    words: String,
    /// Of the messages in it, in order.
    sent: Vec<(String, String)>,
    /// Messages that came before the primary lost everything.
    taken: usize,
}

impl Story {
    fn data(&self) -> &Path {
        self.directory.path()
    }

    /// The daemon that took it all.
    fn begin() -> (Self, Daemon) {
        let directory = scratch();
        let primary = Sink::opened();
        let daemon = Serve::new(directory.path(), primary.port).start();
        let mut taken = 0;
        let mut deliver = |names: &[String]| {
            let to: Vec<&str> = names.iter().map(String::as_str).collect();
            let offered = offer(&daemon, &to, taken);
            taken += 1;
            primary.wait_for(taken);
            eventually("its settlement", || (logged(directory.path(), "sent").len() >= taken).then_some(()));
            offered
        };
        deliver(&["before@example.test".to_owned()]);
        daemon.wait_until_empty();
        let since = mark();
        let sent = (0..MESSAGES)
            .map(|n| {
                let second = (n % 3 == 0).then(|| "second@example.test".to_owned());
                deliver(&[format!("box{n}@example.test")].into_iter().chain(second).collect::<Vec<_>>())
            })
            .collect();
        daemon.wait_until_empty();
        let until = mark();
        deliver(&["after@example.test".to_owned()]);
        daemon.wait_until_empty();
        let words = format!("--since {since} --until {until}");
        // One recipient that was never delivered is nobody's to replay.
        primary.answer("later@example.test", "451 4.3.0 later");
        offer(&daemon, &["later@example.test"], 1_000);
        eventually("its deferral", || (logged(directory.path(), "deferred").len() == 1).then_some(()));
        (Self { directory, primary, words, sent, taken }, daemon)
    }

    fn replay(&self, more: &str) -> Finished {
        cli(self.data(), &self.arguments(more).iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn arguments(&self, more: &str) -> Vec<String> {
        let words = ["replay", "--json", "--reason", "the disk died", "--rate", "3"].into_iter();
        words.chain(self.words.split(' ')).chain(more.split_whitespace()).map(str::to_owned).collect()
    }

    fn start(&self) -> Child {
        let mut command = restante();
        command.args(self.arguments("")).arg("--data").arg(self.data());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// A replay that has come to the message for this address; the primary holds its reply. One that was turned away, since the
    /// one before it had not quite ended, is started again.
    fn start_until(&self, address: &str) -> Child {
        self.primary.keep_waiting(Some(address));
        let mut child = self.start();
        eventually("the message at the primary", || {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(matches!(status.code(), Some(8 | 12)), "{status}");
                child = self.start();
            }
            (self.primary.waiting() == 1).then_some(())
        });
        child
    }

    /// What came since the primary lost everything.
    fn came(&self) -> Vec<Received> {
        self.primary.received().split_off(self.taken)
    }

    /// Each message of the range came once, those that were in doubt twice, byte for byte, in the original envelope.
    #[track_caller]
    fn assert_all_came(&self, in_doubt: &[usize], job: &str) {
        let mut times: BTreeMap<String, usize> = BTreeMap::new();
        for received in self.came() {
            let mark = format!("\r\nX-Restante-Replay: {job}; ");
            assert!(received.trace.contains(&mark) && received.trace.starts_with("Received: "), "{}", received.trace);
            assert_eq!(received.from, "a@example.net");
            *times.entry(received.sha256).or_default() += 1;
        }
        let expected: BTreeMap<String, usize> = self
            .sent
            .iter()
            .enumerate()
            .map(|(n, (_, digest))| (digest.clone(), 1 + usize::from(in_doubt.contains(&n))))
            .collect();
        assert_eq!(times, expected);
        let seconds = self.came().iter().filter(|received| received.to.len() == 2).count();
        assert_eq!(seconds, 8 + in_doubt.iter().filter(|n| *n % 3 == 0).count());
    }

    /// As many as the log says, recipient by recipient. After a kill it may tell of some twice.
    #[track_caller]
    fn assert_logged(&self, job: &str) {
        let lines = eventually("the log's lines", || {
            let lines = logged(self.data(), "replayed");
            let told: BTreeMap<String, Value> =
                lines.into_iter().map(|line| (format!("{} {}", line["id"], line["to"]), line)).collect();
            (told.len() as u64 >= RECIPIENTS).then_some(told)
        });
        assert_eq!(lines.len() as u64, RECIPIENTS);
        for line in lines.values() {
            assert_eq!((&line["status"], &line["job"]), (&"replayed".into(), &job.into()), "{line}");
            assert_eq!((&line["reason"], &line["code"]), (&"the disk died".into(), &250.into()), "{line}");
            assert!(line["to"].is_string() && line["route"].is_string() && line["actor"].is_string(), "{line}");
        }
        let words = cli(self.data(), &["log"]).expect_code(0).out;
        let told = words.matches("status=replayed (250 2.0.0 Ok: queued as SINK").count() as u64;
        assert!(told >= RECIPIENTS, "{words}");
    }
}

/// Two recipients pending on the balance stay so: a replay changes none of it.
fn balance(data: &Path) -> Vec<Value> {
    let account = cli(data, &["verify", "--json"]).expect_code(0).account();
    ["state", "transactions", "accepted", "pending", "sent"].map(|key| account[key].clone()).into()
}

fn numbers(account: &Value) -> [u64; 5] {
    ["messages", "recipients", "replayed", "resumed", "left"].map(|key| account[key].as_u64().unwrap_or(0))
}

#[test]
fn a_replay_killed_half_way_beside_the_daemon_and_with_it_is_gone_on_with_and_nothing_comes_twice() {
    let (story, mut daemon) = Story::begin();
    let before = balance(story.data());
    let would = story.replay("--dry-run").expect_code(0).account();
    let job = would["job"].as_str().unwrap().to_owned();
    assert_eq!(numbers(&would), [MESSAGES as u64, RECIPIENTS, 0, 0, RECIPIENTS]);
    assert_eq!((would["samples"].as_array().unwrap().len(), &would["seconds"]), (5, &8.into()));
    assert_eq!(would["to"][0]["next_hops"][0], format!("127.0.0.1:{}", story.primary.port));
    // As the log counts what was delivered in that time.
    let (since, until) = story.words.strip_prefix("--since ").unwrap().split_once(" --until ").unwrap();
    let in_range = |line: &&Value| (since..until).contains(&line["ts"].as_str().unwrap());
    assert_eq!(logged(story.data(), "sent").iter().filter(in_range).count() as u64, RECIPIENTS);
    assert!(story.came().is_empty(), "a dry run sends nothing");

    // The command is killed: the daemon ends what it was asked for, and nobody gets in between.
    let mut child = story.start_until("box4@example.test");
    child.kill().unwrap();
    child.wait().unwrap();
    let refused = story.replay("").expect_code(8);
    assert!(refused.err.contains("another replay is at work"), "{}", refused.err);
    story.primary.keep_waiting(None);
    eventually("the end of what was asked for", || (story.came().len() == 6).then_some(()));

    // The daemon is killed while the primary thinks: that one message is in doubt.
    let mut child = story.start_until("box13@example.test");
    daemon.kill9();
    let status = eventually("the command's end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(3));
    story.primary.keep_waiting(None);
    eventually("the message in doubt", || (story.came().len() == 14).then_some(()));
    let mut daemon = Serve::new(story.data(), story.primary.port).start();

    let done = story.replay("").expect_code(0).account();
    // 6 of the first run (two recipients in two of them), 7 of the second; one was in doubt.
    assert_eq!(numbers(&done), [MESSAGES as u64, RECIPIENTS, RECIPIENTS - 18, 18, 0], "{done}");
    story.assert_all_came(&[13], &job);
    story.assert_logged(&job);
    let again = story.replay("").expect_code(0).account();
    assert_eq!(numbers(&again), [MESSAGES as u64, RECIPIENTS, 0, RECIPIENTS, 0]);
    assert_eq!(story.came().len(), MESSAGES + 1);
    assert_eq!(balance(story.data()), before);
    let shown = cli(story.data(), &["queue", "show", &story.sent[0].0]).expect_code(0).out;
    assert_eq!(shown.matches("  replayed  <").count(), 2, "{shown}");
    // On purpose, another time.
    let other = story.replay("--dry-run --again 2").expect_code(0).account();
    assert_eq!((numbers(&other)[4], other["job"] == would["job"]), (RECIPIENTS, false));
    daemon.stop();
}

#[test]
fn a_replay_with_the_daemon_dead_is_gone_on_with_after_kill_9_and_the_next_start_logs_it() {
    let (story, mut daemon) = Story::begin();
    daemon.stop();
    let before = balance(story.data());
    let would = story.replay("--dry-run").expect_code(0).account();
    let job = would["job"].as_str().unwrap().to_owned();
    assert_eq!(numbers(&would), [MESSAGES as u64, RECIPIENTS, 0, 0, RECIPIENTS]);
    let mut child = story.start_until("box10@example.test");
    story.replay("").expect_code(8);
    child.kill().unwrap();
    child.wait().unwrap();
    story.primary.keep_waiting(None);
    eventually("the message in doubt", || (story.came().len() == 11).then_some(()));
    // Ctrl-C: what is under way is recorded, and the rest stays.
    let mut child = story.start_until("box16@example.test");
    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), Signal::INT).unwrap();
    eventually("the signal taken", || is_caught(child.id()).then_some(()));
    story.primary.keep_waiting(None);
    let status = eventually("the command's end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(130));

    let done = story.replay("").expect_code(0).account();
    assert_eq!((numbers(&done)[0], numbers(&done)[4]), (MESSAGES as u64, 0), "{done}");
    assert!(done["resumed"].as_u64().unwrap() >= 21, "{done}");
    story.assert_all_came(&[10], &job);
    assert_eq!(balance(story.data()), before);
    assert!(logged(story.data(), "replayed").is_empty(), "nobody was there to log it");
    let mut daemon = Serve::new(story.data(), story.primary.port).start();
    story.assert_logged(&job);
    daemon.stop();
}

/// Whether no signal waits for the process any more.
fn is_caught(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = |key: &str| {
        status.lines().find_map(|line| line.strip_prefix(key)).is_some_and(|set| set.trim() != "0000000000000000")
    };
    !pending("ShdPnd:") && !pending("SigPnd:")
}

#[test]
fn who_is_refused_is_told_and_only_what_may_still_be_taken_is_tried_again() {
    let (mut story, _daemon) = Story::begin();
    story.primary.close();
    let refused = story.replay("").expect_code(3);
    assert_eq!(numbers(&refused.account())[2..], [0, 0, RECIPIENTS]);
    assert!(
        refused.err.contains("takes nothing now") && refused.err.contains("run the same command again"),
        "{}",
        refused.err
    );
    story.primary.open();
    story.primary.answer("box1@example.test", "550 5.1.1 no such user");
    story.primary.answer("box2@example.test", "451 4.2.1 busy");
    let partly = story.replay("").expect_code(3);
    let account = partly.account();
    assert_eq!((numbers(&account)[2], &account["refused"], &account["left"]), (RECIPIENTS - 2, &1.into(), &1.into()));
    assert!(partly.err.contains("to <box1@example.test>: 550 5.1.1 no such user"), "{}", partly.err);
    assert!(partly.err.contains("to <box2@example.test>: 451 4.2.1 busy"), "{}", partly.err);
    let attempts = story.primary.attempts("box1@example.test");
    story.primary.answer("box2@example.test", "250 2.1.5 Ok");
    let rest = story.replay("").expect_code(3).account();
    assert_eq!((&numbers(&rest)[2..], &rest["refused_before"]), (&[1, RECIPIENTS - 1, 0][..], &1.into()));
    assert_eq!(story.primary.attempts("box1@example.test"), attempts, "refused for good is refused for good");
    let lines = eventually("the log's lines", || {
        let lines = logged(story.data(), "replayed");
        (lines.len() as u64 == RECIPIENTS).then_some(lines)
    });
    assert_eq!(lines.iter().filter(|line| line["status"] == "refused").count(), 1);
    // The mailbox is there again.
    story.primary.answer("box1@example.test", "250 2.1.5 Ok");
    let rest = story.replay("--retry-refused").expect_code(0).account();
    assert_eq!(numbers(&rest)[2..], [1, RECIPIENTS - 1, 0]);
    story.replay("").expect_code(0);

    // To another server, only what is asked for, and only to whom.
    let other = Sink::opened();
    let to = format!("--to 127.0.0.1:{} --recipient second@example.test", other.port);
    let done = story.replay(&to).expect_code(0).account();
    assert_eq!(numbers(&done), [8, 8, 8, 0, 0]);
    assert!(other.received().iter().all(|received| received.to == ["second@example.test"]));
    for (more, messages) in [("--domain example.test", 24), ("--from nobody", 0), ("--recipient box7@example.test", 1)]
    {
        let found = story.replay(&format!("--dry-run {more}"));
        assert_eq!(numbers(&found.account())[0], messages, "{more}");
        assert_eq!(found.code, Some(if messages == 0 { 4 } else { 0 }), "{more}");
    }
}

#[test]
fn a_slip_is_refused_and_a_range_that_moves_is_not_begun() {
    let directory = scratch();
    let data = directory.path();
    let primary = Sink::opened();
    let mut daemon = Serve::new(data, primary.port).start();
    offer(&daemon, &["a@example.test"], 1);
    primary.wait_for(1);
    eventually("its settlement", || (logged(data, "sent").len() == 1).then_some(()));
    let replay = |words: &str| cli(data, &["replay"].into_iter().chain(words.split(' ')).collect::<Vec<_>>());
    for words in [
        "--reason x",
        "--all",
        "--dry-run",
        "--since 1h --reason x",
        "--all --reason x",
        "--all --dry-run --state sent",
    ] {
        replay(words).expect_code(2);
    }
    let told = replay("--since 1h --until 0 --reason x").expect_code(2).err;
    assert!(told.contains("--since must be a fixed time") && told.contains("--since 2"), "{told}");
    // The dry run says the command.
    let out = replay("--since 1h --dry-run").expect_code(0).out;
    assert!(out.contains("gets it twice") && out.contains("1 message to 1 recipient"), "{out}");
    let command = out.lines().find_map(|line| line.strip_prefix("to send it: restante ")).unwrap();
    assert!(command.starts_with("replay --since 2") && command.contains(" --until 2"), "{command}");
    assert_eq!(primary.count(), 1);
    let words: Vec<&str> = command.split(' ').collect();
    assert!(crate::harness::run(restante().args(&words)).expect_code(0).out.contains("1 recipient taken once more"));
    primary.wait_for(2);
    daemon.stop();
    replay("--since 2030-01-01 --dry-run").expect_code(4);
    replay("--id 7ZZZZZZZZZZZZZZZZZZZZZZZZZ --reason x").expect_code(4);
}

/// Thirty messages, in front of which a segment moves what stays in it: most of it must have had its time.
fn send_what_goes(client: &mut Client) {
    for n in 0..30 {
        let message = Message::new("gone", n, if n % 10 == 0 { 400 << 10 } else { 3_000 });
        queued_id(&client.send("a@example.net", &["gone@example.test"], &message.content).unwrap());
    }
}

#[test]
fn a_message_that_moves_while_it_waits_for_its_turn_is_not_called_damaged() {
    let directory = scratch();
    let data = directory.path().join("data");
    let primary = Sink::opened();
    primary.answer("stuck@example.test", "450 4.2.1 not now");
    let mut daemon = Serve::by_file(&data, &config(directory.path(), "0", primary.port)).start();
    let mut client = Client::ehlo(daemon.smtp);
    for (n, to) in (0..).zip(["first@example.test", "second@example.test"]) {
        let message = Message::new("moves", n, 500);
        queued_id(&client.send("a@example.net", &["stuck@example.test", to], &message.content).unwrap());
        eventually("its delivery", || (logged(&data, "sent").len() > n as usize).then_some(()));
    }
    let until = mark();
    primary.keep_waiting(Some("first@example.test"));
    let mut command = restante();
    let words = ["replay", "--since", "2020-01-01", "--until", &until, "--reason", "x", "--json", "--data"];
    command.args(words).arg(&data);
    let mut replay = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the first at the primary", || (primary.waiting() == 1).then_some(()));
    let first = first_segment(&data);
    send_what_goes(&mut client);
    eventually("the first segment has left", || (first_segment(&data) != first).then_some(()));
    primary.keep_waiting(None);
    let status = eventually("the end of the replay", || replay.try_wait().unwrap());
    let mut told = String::new();
    std::io::Read::read_to_string(&mut replay.stdout.take().unwrap(), &mut told).unwrap();
    assert_eq!((status.code(), numbers(&serde_json::from_str(&told).unwrap())), (Some(0), [2, 2, 2, 0, 0]), "{told}");
    assert_eq!(["first@example.test", "second@example.test"].map(|to| primary.deliveries_to(to)), [2, 2]);
    daemon.stop();
}

#[test]
fn what_had_to_move_within_the_journal_is_replayed_from_where_it_is_once_and_what_has_left_is_said() {
    let directory = scratch();
    let data = directory.path().join("data");
    let primary = Sink::opened();
    primary.answer("stuck@example.test", "450 4.2.1 not now");
    primary.answer("box@example.test", "450 4.2.1 not now");
    let mut daemon = Serve::by_file(&data, &config(directory.path(), "0", primary.port)).start();
    let both = [Message::new("both", 1, 500), Message::new("both", 2, 400 << 10)];
    let mut client = Client::ehlo(daemon.smtp);
    for message in &both {
        let to = ["stuck@example.test", "box@example.test"];
        queued_id(&client.send("a@example.net", &to, &message.content).unwrap());
    }
    eventually("their deferral", || (logged(&data, "deferred").len() == 4).then_some(()));
    // It is by the delivery that they are in a range: this is later than when they came.
    let since = mark();
    primary.answer("box@example.test", "250 2.1.5 Ok");
    cli(&data, &["queue", "flush", "--all"]).expect_code(0);
    primary.wait_for(2);
    let mut pass = |taken: usize| {
        let first = first_segment(&data);
        send_what_goes(&mut client);
        primary.wait_for(taken + 30);
        eventually("the first segment has left", || (first_segment(&data) != first && blobs(&data) == 1).then_some(()));
    };
    pass(2);
    let replay = |more: &[&str]| cli(&data, &[&["replay", "--since", "2020-01-01", "--json"], more].concat());
    let by_delivery = cli(&data, &["replay", "--since", &since, "--dry-run", "--json"]).expect_code(0).account();
    assert_eq!(numbers(&by_delivery), [2, 2, 0, 0, 2], "{by_delivery}");
    let would = replay(&["--dry-run"]).expect_code(0).account();
    assert_eq!(numbers(&would), [2, 2, 0, 0, 2], "{would}");
    assert!(would["journal_begins_at"].is_string(), "who asks for 2020 is told that it is not all: {would}");
    let until = mark();
    let done = replay(&["--until", &until, "--reason", "x"]).expect_code(3).account();
    assert_eq!(numbers(&done), [2, 2, 2, 0, 0], "{done}");
    let came = primary.received().split_off(32);
    // They are replayed in the order of their delivery, which is nobody's to say of two that were delivered beside each other.
    let digests: BTreeSet<&str> = came.iter().map(|received| received.sha256.as_str()).collect();
    let expected = both.each_ref().map(|message| sha256(&message.content));
    assert_eq!(digests, expected.iter().map(String::as_str).collect());
    assert!(came.iter().all(|received| received.to == ["box@example.test"]), "{came:?}");
    // The record of the replay leaves, and a third time they move; what was done stays known, and when they were sent.
    (0..2).for_each(|round| pass(34 + 30 * round));
    let again = replay(&["--until", &until, "--reason", "x"]).expect_code(3).account();
    assert_eq!(numbers(&again), [2, 2, 0, 2, 0], "{again}");
    let by_delivery = cli(&data, &["replay", "--since", &since, "--until", &until, "--dry-run", "--json"]);
    assert_eq!(numbers(&by_delivery.expect_code(0).account()), [2, 2, 0, 0, 2]);
    daemon.stop();
}

#[test]
fn two_replays_that_take_turns_would_send_twice_what_both_were_asked_for() {
    let (story, mut daemon) = Story::begin();
    let id = |n: usize| story.sent[n].0.as_str();
    story.primary.answer("box1@example.test", "451 4.2.1 busy");
    // One message a second, the first of which is put off; in between comes another.
    let mut command = restante();
    command.args(["replay", "--id", id(1), "--id", id(2), "--reason", "x", "--rate", "1", "--data"]).arg(story.data());
    let mut slow = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let before = story.primary.attempts("box1@example.test");
    eventually("its first try", || (story.primary.attempts("box1@example.test") > before).then_some(()));
    let words = ["replay", "--id", id(2), "--reason", "y"];
    eventually("the turn of another", || (cli(story.data(), &words).code == Some(0)).then_some(()));
    let status = eventually("the end of the first", || slow.try_wait().unwrap());
    let mut told = String::new();
    std::io::Read::read_to_string(&mut slow.stderr.take().unwrap(), &mut told).unwrap();
    assert_eq!(status.code(), Some(12), "{told}");
    assert!(told.contains("another replay wrote") && told.contains("run the same command again"), "{told}");
    assert_eq!(story.came().len(), 1);
    daemon.stop();
}

#[test]
fn a_daemon_that_is_stopped_while_the_primary_thinks_records_the_reply() {
    let (story, mut daemon) = Story::begin();
    let job = story.replay("--dry-run").expect_code(0).account()["job"].as_str().unwrap().to_owned();
    let mut child = story.start_until("box4@example.test");
    daemon.signal(Signal::TERM);
    eventually("a daemon that stops", || TcpStream::connect(daemon.smtp).is_err().then_some(()));
    story.primary.keep_waiting(None);
    assert_eq!(daemon.wait(), Some(0));
    let status = eventually("the command's end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(3), "some of it was done");
    let mut daemon = Serve::new(story.data(), story.primary.port).start();
    let done = story.replay("").expect_code(0).account();
    assert_eq!(numbers(&done)[4], 0, "{done}");
    story.assert_all_came(&[], &job);
    daemon.stop();
}
