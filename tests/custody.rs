//! The custody promise under load and `kill -9`: our own ledger of 250s against what the primary has. These tests refuse to call
//! themselves proof of power-loss safety: a killed process leaves the page cache behind; `storage.rs` watches the syncs.

use crate::harness::ledger::Entry;
use crate::harness::load::{Load, Plan};
use crate::harness::postfix::{Postfix, Role};
use crate::harness::{Daemon, Ledger, Received, Serve, Sink, cli, client, eventually, queued_id, scratch, sink};
use std::collections::BTreeMap;
use std::path::Path;

/// The load: 2,000 messages of 1 to 200 KiB over 20 sessions.
const FULL: Plan =
    Plan { messages: 2000, sessions: 20, least_bytes: 1024, most_bytes: 200 * 1024, id_of: |reply| queued_id(reply) };

/// Sends the load, kills the daemon at each of `kills` acknowledged messages, recovers and restarts each time.
/// Returns the last daemon and the ledger. `primary` is closed all the while.
fn load_with_kills(data: &Path, primary: u16, plan: Plan, kills: &[usize]) -> (Daemon, BTreeMap<String, Entry>) {
    let serve = Serve::new(data, primary);
    let mut daemon = serve.start();
    let ledger = Ledger::create(&data.with_extension("ledger"));
    let load = Load::start(plan, daemon.smtp, ledger);
    for &at in kills {
        eventually(&format!("{at} acknowledged messages"), || (load.ledger.len() >= at).then_some(()));
        load.target.set(None);
        daemon.kill9();
        let promised = load.ledger.len();
        let account = cli(data, &["recover", "--json"]).expect_code(0).account();
        assert_balanced(&account);
        let pending = usize::try_from(account["pending"].as_u64().unwrap()).unwrap();
        println!(
            "killed: {promised} messages had their 250, recover found {pending} pending, state {}",
            account["state"]
        );
        assert!(pending >= promised, "{promised} acknowledged, {account}");
        daemon = serve.start();
        load.target.set(Some(daemon.smtp));
    }
    (daemon, load.finish().close())
}

/// Each accepted recipient is in exactly one state.
#[track_caller]
pub fn assert_balanced(account: &serde_json::Value) {
    let count = |key: &str| account[key].as_u64().unwrap_or_else(|| panic!("no number {key:?} in {account}"));
    let states = ["pending", "sent", "bounced", "expired", "removed", "quarantined"];
    assert_eq!(count("accepted"), states.into_iter().map(count).sum::<u64>(), "the balance: {account}");
}

/// Every acknowledged message is there, each copy of each is unaltered, and nothing stands in front but our trace headers.
/// Returns how many copies there are beyond the first of each.
#[track_caller]
fn assert_kept(ledger: &BTreeMap<String, Entry>, received: &[Received]) -> usize {
    let mut copies: BTreeMap<&str, usize> = BTreeMap::new();
    for message in received {
        *copies.entry(message.message_id.as_str()).or_default() += 1;
        // A message whose 250 was lost on the way may arrive as well: it was accepted.
        let Some(entry) = ledger.get(&message.message_id) else { continue };
        assert_eq!(message.sha256, entry.sha256, "{} was altered", message.message_id);
    }
    let lost: Vec<&Entry> = ledger.values().filter(|e| !copies.contains_key(e.message_id.as_str())).collect();
    assert!(lost.is_empty(), "{} acknowledged messages are lost, the first: {:?}", lost.len(), lost.first());
    let duplicates = received.len() - copies.len();
    println!("250s: {}  delivered: {}  duplicates: {duplicates}", ledger.len(), copies.len());
    duplicates
}

/// What stands in front of the content is whole header fields, with our Received and the transaction's id among them.
#[track_caller]
pub fn assert_trace_headers(message: &Received, id: &str) {
    let trace = &message.trace;
    assert!(trace.is_empty() || trace.ends_with("\r\n"), "{trace:?}");
    for line in trace.lines() {
        let name = line.split(':').next().unwrap();
        let field = line.contains(':') && !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic());
        assert!(field || line.starts_with([' ', '\t']), "not a header field: {line:?}");
    }
    assert!(trace.starts_with("Received: "), "the newest trace header is our Received: {trace:?}");
    assert!(trace.contains(id), "the id {id} is not in {trace:?}");
}

/// The mass of the load: less than this, and the kills hit an idle daemon.
fn assert_busy(plan: Plan, kills: usize, ledger: &BTreeMap<String, Entry>) {
    let at_risk = kills * plan.sessions;
    let least = usize::try_from(plan.messages).unwrap() - at_risk;
    assert!(ledger.len() >= least, "only {} of {} messages got their 250", ledger.len(), plan.messages);
}

#[test]
fn no_acknowledged_message_is_lost_by_three_kills() {
    let directory = scratch();
    let data = directory.path().join("data");
    let mut primary = Sink::closed().digests_only();
    let (mut daemon, ledger) = load_with_kills(&data, primary.port, FULL, &[500, 1000, 1500]);
    assert_busy(FULL, 3, &ledger);
    primary.open();
    eventually("as many messages as there were 250s", || (primary.count() >= ledger.len()).then_some(()));
    daemon.wait_until_empty();
    let received = primary.received();
    let duplicates = assert_kept(&ledger, &received);
    assert_eq!(duplicates, 0, "the daemon did not crash while it delivered: nothing was in doubt");
    for message in &received {
        if let Some(entry) = ledger.get(&message.message_id) {
            assert_trace_headers(message, &entry.id);
        }
    }
    daemon.stop();
    let account = cli(&data, &["verify", "--json"]).expect_code(0).account();
    assert_balanced(&account);
    assert_eq!((&account["state"], &account["pending"]), (&"clean".into(), &0.into()), "{account}");
    assert_eq!(account["sent"], received.len(), "{account}");
}

#[test]
fn a_kill_while_it_delivers_costs_no_message() {
    let directory = scratch();
    let data = directory.path().join("data");
    let mut primary = Sink::closed().digests_only();
    let plan = Plan { messages: 300, sessions: 10, least_bytes: 1024, most_bytes: 20 * 1024, ..FULL };
    let (mut daemon, ledger) = load_with_kills(&data, primary.port, plan, &[]);
    assert_eq!(ledger.len(), 300);
    primary.open();
    for at in [50, 150] {
        eventually(&format!("{at} delivered messages"), || (primary.count() >= at).then_some(()));
        daemon.kill9();
        daemon = Serve::new(&data, primary.port).start();
    }
    daemon.wait_until_empty();
    let duplicates = assert_kept(&ledger, &primary.received());
    assert!(duplicates < 300, "{duplicates} duplicates: settled mail was sent again");
}

#[test]
fn accepted_bytes_arrive_unaltered_behind_the_trace_headers() {
    let directory = scratch();
    let primary = Sink::opened();
    let daemon = Serve::new(&directory.path().join("data"), primary.port).start();
    let mut ids = BTreeMap::new();
    // Around the sizes where buffers end: a page, the blob limit of 256 KiB, a megabyte and more.
    let sizes = [0, 4095, 4096, 4097, 65_536, 262_143, 262_144, 262_145, 300_000, 1_048_576, 5_000_000];
    let mut session = client::Client::ehlo(daemon.smtp);
    for (n, size) in (0..).zip(sizes) {
        let message = client::Message::new("bytes", n, size);
        let reply = session.send("sender@example.net", &["box@example.test"], &message.content).unwrap();
        ids.insert(message.message_id.clone(), (queued_id(&reply), message));
    }
    for received in primary.wait_for(sizes.len()) {
        let (id, sent) = &ids[&received.message_id];
        assert_trace_headers(&received, id);
        assert!(
            received.content == sent.content,
            "{} of {} bytes was altered",
            received.message_id,
            sent.content.len()
        );
    }
}

mod needs_root {
    use super::*;

    #[test]
    fn no_acknowledged_message_is_lost_by_three_kills_before_postfix() {
        let directory = scratch();
        let data = directory.path().join("data");
        // The port is Postfix's when it starts; until then nobody may have it.
        let reserved = Sink::closed();
        let port = reserved.port;
        let (daemon, ledger) = load_with_kills(&data, port, FULL, &[500, 1000, 1500]);
        assert_busy(FULL, 3, &ledger);
        drop(reserved);
        let postfix = Postfix::start_on(Role::Primary, port);
        eventually("as many mailbox files as there were 250s", || {
            (postfix.mailbox().len() >= ledger.len()).then_some(())
        });
        daemon.wait_until_empty();
        let received: Vec<Received> = postfix.mailbox().iter().map(|file| from_maildir(file)).collect();
        assert_kept(&ledger, &received);
    }

    /// A maildir has LF line ends; the wire had CRLF. Lines of ours hold neither alone.
    fn from_maildir(file: &Path) -> Received {
        let mut bytes = Vec::new();
        for byte in std::fs::read(file).unwrap() {
            if byte == b'\n' {
                bytes.push(b'\r');
            }
            bytes.push(byte);
        }
        sink::split(&bytes).unwrap_or_else(|| panic!("no Message-ID in {}", file.display()))
    }
}
