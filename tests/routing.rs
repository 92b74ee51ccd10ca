//! Where a route's mail goes: by wildcards, by MX, never round in circles; and what is told of mail that has no route any more.
//!
//! The DNS is one of our own on a high port. Only what must reach a mail host on port 25 needs root.

use crate::harness::client::sha256;
use crate::harness::{Client, Daemon, Dns, Message, Serve, Sink, cli, eventually, queued_id, restante, run, scratch};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// A configuration beside a data directory, and a DNS.
struct Place {
    directory: TempDir,
    dns: Dns,
}

impl Place {
    fn new() -> Self {
        Self { directory: scratch(), dns: Dns::start() }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("restante.toml")
    }

    /// A route for each list of domains, which follows MX; or that has a primary, where a port stands behind them.
    fn configure(&self, routes: &[(&[&str], Option<u16>)]) {
        let mut text = format!(
            "hostname = \"mx2.example.test\"\n[dns]\nservers = [\"{}\"]\n[journal]\ndir = \"data\"\n[smtp]\nlisten = [\"127.0.0.1:2525\"]\n",
            self.dns.address
        );
        for (domains, primary) in routes {
            writeln!(text, "[[route]]\ndomains = {domains:?}").unwrap();
            primary.iter().for_each(|port| writeln!(text, "primary = [\"127.0.0.1:{port}\"]").unwrap());
        }
        fs::write(self.file(), text).unwrap();
    }

    fn start(&self) -> Daemon {
        Serve::by_file(&self.data(), &self.file()).start()
    }
}

/// One message; its ID, and the digest of its content.
fn offer(daemon: &Daemon, to: &str, n: u64) -> (String, String) {
    let message = Message::new("routing", n, 200);
    let reply = Client::ehlo(daemon.smtp).send("sender@example.org", &[to], &message.content).unwrap();
    assert_eq!(reply.code, 250, "{to}: {reply:?}");
    (queued_id(&reply), sha256(&message.content))
}

fn rcpt(daemon: &Daemon, to: &str) -> u16 {
    let mut client = Client::ehlo(daemon.smtp);
    client.command("MAIL FROM:<a@example.org>").unwrap();
    client.command(&format!("RCPT TO:<{to}>")).unwrap().code
}

/// Waits until the one route is not up for a reason that has these words.
#[track_caller]
fn told(daemon: &Daemon, words: &str) {
    eventually(words, || {
        let status = daemon.ask(&["status"]);
        let reason = status.iter().find_map(|line| line["reason"].as_str()).unwrap_or_default();
        reason.contains(words).then_some(())
    });
}

#[test]
fn a_wildcard_takes_what_is_below_it_and_recover_brings_it_where_it_belongs() {
    let (directory, wide, lab, mut late) = (scratch(), Sink::opened(), Sink::opened(), Sink::closed());
    let data = directory.path().join("data");
    let serve = Serve::new(&data, lab.port).route("*.wild.test", wide.port).route("lab.wild.test", lab.port);
    let mut daemon = serve.route("*.late.wild.test,late.wild.test", late.port).start();
    for stranger in ["a@wild.test", "a@xwild.test", "a@a.wild.test.org"] {
        assert_eq!(rcpt(&daemon, stranger), 550, "{stranger}");
    }
    offer(&daemon, "a@one.wild.test", 1);
    offer(&daemon, "a@two.ONE.wild.test", 2);
    offer(&daemon, "a@lab.wild.test", 3);
    assert_eq!((wide.wait_for(2).len(), lab.wait_for(1).len()), (2, 1));
    daemon.wait_until_empty();
    let (_, digest) = offer(&daemon, "a@very.late.wild.test", 4);
    daemon.kill9();
    // No configuration is left: what the journal recorded of the routes is enough.
    let plan = cli(&data, &["recover", "--deliver", "--dry-run"]).expect_code(0).out;
    assert!(plan.contains(&format!("offer 1 message of late.wild.test to 127.0.0.1:{}", late.port)), "{plan}");
    late.open();
    cli(&data, &["recover", "--deliver"]).expect_code(0);
    assert_eq!(late.wait_for(1)[0].sha256, digest);
}

#[test]
fn records_that_lead_only_to_us_are_no_route_and_dns_trouble_is_no_reason_not_to_start() {
    let place = Place::new();
    place.configure(&[(&["a.test"], None)]);
    place.dns.mx("a.test", &[(10, "mx2.example.test"), (20, "worse.test")]);
    let refused = run(&mut Serve::by_file(&place.data(), &place.file()).command()).expect_code(6);
    assert!(refused.err.contains("route a.test: the MX of a.test leads back to us"), "{}", refused.err);
    assert!(!refused.err.contains("ready:"), "{}", refused.err);

    place.dns.breaks(true);
    let mut daemon = place.start();
    assert!(daemon.stderr().contains("route a.test: look up a.test: "), "{}", daemon.stderr());
    offer(&daemon, "x@a.test", 1);
    told(&daemon, "look up a.test: the DNS says");
    let status = daemon.ask(&["status"]);
    assert_eq!((status[1]["primary"][0].as_str(), status[1]["pending"].as_u64()), (Some("MX of a.test"), Some(1)));
    // What comes out, when the DNS is back, is a loop: at run time a reason to wait, and none to stop.
    place.dns.breaks(false);
    told(&daemon, "the MX of a.test leads back to us");
    let refused = cli(&place.data(), &["reload"]).expect_code(6).err;
    assert!(refused.contains("leads back to us") && refused.contains("nothing was changed"), "{refused}");
    daemon.kill9();
    // The records are the last that the journal knows of the route; the file may be lost.
    fs::remove_file(place.file()).unwrap();
    let plan = cli(&place.data(), &["recover", "--deliver", "--dry-run"]).expect_code(0).out;
    assert!(plan.contains("offer 1 message of a.test to MX of a.test"), "{plan}");
}

#[test]
fn mail_waits_with_a_reason_where_records_lead_nowhere_or_apart() {
    let place = Place::new();
    place.configure(&[(&["a.test", "b.test", "*.b.test"], None)]);
    place.dns.mx("a.test", &[(10, "mail.a.test"), (20, "mx2.example.test")]);
    place.dns.mx("b.test", &[(10, "mail.b.test")]);
    // RFC 5737: nobody's; nothing is sent there, for the two differ.
    place.dns.addresses("mail.a.test", &["192.0.2.1"]);
    place.dns.addresses("mail.b.test", &["192.0.2.2"]);
    let daemon = place.start();
    offer(&daemon, "x@below.b.test", 1);
    told(&daemon, "a.test goes to mail.a.test, b.test to mail.b.test: one route has one primary");
    place.dns.mx("a.test", &[(0, ".")]);
    told(&daemon, "a.test takes no mail at all: its MX record is null (RFC 7505)");
    place.dns.mx("a.test", &[(10, "gone.test")]);
    told(&daemon, "no mail host of a.test has an address: gone.test");
    assert_eq!(daemon.ask(&["queue", "ls"])[0]["state"], "waiting");
    let shown = run(restante().args(["config", "check", "--config"]).arg(place.file())).expect_code(0).out;
    assert!(shown.contains("a.test to MX of a.test, b.test (any recipient)"), "{shown}");
}

#[test]
fn mail_whose_route_left_the_configuration_is_told_of_and_goes_on_when_it_is_back() {
    let place = Place::new();
    let (a, mut b) = (Sink::opened(), Sink::closed());
    let both: [(&[&str], Option<u16>); 2] = [(&["a.test"], Some(a.port)), (&["b.test"], Some(b.port))];
    place.configure(&both);
    let mut daemon = place.start();
    let (_, first) = offer(&daemon, "x@b.test", 1);
    offer(&daemon, "x@b.test", 2);
    place.configure(&both[..1]);
    let news = "route b.test is not configured, and 2 messages wait for it";
    cli(&place.data(), &["reload"]).expect_code(0);
    eventually("the news at the reload", || daemon.stderr().contains(news).then_some(()));
    daemon.stop();
    let mut daemon = place.start();
    eventually("the news at the start", || daemon.stderr().contains(news).then_some(()));
    let status = daemon.ask(&["status"]);
    let route = status.iter().find(|line| line["name"] == "b.test").unwrap();
    assert_eq!(
        (route["reason"].as_str(), route["pending"].as_u64()),
        (Some("route b.test is not configured"), Some(2))
    );
    b.open();
    place.configure(&both);
    cli(&place.data(), &["reload"]).expect_code(0);
    assert!(b.wait_for(2).iter().any(|received| received.sha256 == first));
    daemon.wait_until_empty();
    daemon.stop();
}

/// Mail hosts are on port 25.
mod needs_root {
    use super::*;
    use crate::harness::require_root;

    #[test]
    fn mail_goes_to_the_best_host_that_is_there_and_never_to_one_behind_us() {
        require_root();
        let place = Place::new();
        let (mut best, second, behind) =
            (Sink::closed_at("127.44.1.1"), opened_at("127.44.1.2"), opened_at("127.44.1.3"));
        let records = [(30, "behind.test"), (20, "mx2.example.test"), (10, "second.test"), (5, "best.test")];
        place.dns.mx("a.test", &records);
        place.dns.mx("b.test", &[(10, "alias.test"), (15, "second.test"), (20, "mx2.example.test")]);
        place.dns.alias("alias.test", "best.test");
        for (host, address) in [("best", "127.44.1.1"), ("second", "127.44.1.2"), ("behind", "127.44.1.3")] {
            place.dns.addresses(&format!("{host}.test"), &[address]);
        }
        place.configure(&[(&["a.test", "b.test", "*.b.test"], None)]);
        let mut daemon = place.start();
        let (id, digest) = offer(&daemon, "x@a.test", 1);
        assert_eq!(second.wait_for(1)[0].sha256, digest);
        daemon.wait_until_empty();
        // The daemon is told by the command to follow MX, too.
        cli(&place.data(), &["replay", "--id", &id, "--reason", "its disk died"]).expect_code(0);
        second.wait_for(2);
        let line = cli(&place.data(), &["log"]).expect_code(0).out;
        assert!(line.contains("relay=second.test[127.44.1.2]:25"), "{line}");
        // The courier's connection ends after a while; a stop ends it now.
        best.open();
        daemon.stop();
        let mut daemon = place.start();
        let (_, digest) = offer(&daemon, "x@below.b.test", 2);
        assert_eq!(best.wait_for(1)[0].sha256, digest);
        daemon.wait_until_empty();
        // Nobody before us is there: it waits.
        best.close();
        let mut second = second;
        second.close();
        offer(&daemon, "x@b.test", 3);
        told(&daemon, "connection refused");
        daemon.kill9();
        best.open();
        let file = place.file();
        let recover = ["recover", "--deliver", "--config", file.to_str().unwrap()];
        cli(&place.data(), &recover).expect_code(0);
        assert_eq!((best.wait_for(2).len(), behind.count()), (2, 0));
    }

    #[test]
    fn records_that_change_while_the_primary_is_down_lead_mail_to_the_new_one() {
        require_root();
        let place = Place::new();
        let (_old, new) = (Sink::closed_at("127.44.2.1"), opened_at("127.44.2.2"));
        place.dns.mx("a.test", &[(10, "old.test"), (20, "mx2.example.test")]);
        place.dns.addresses("old.test", &["127.44.2.1"]);
        place.dns.addresses("new.test", &["127.44.2.2"]);
        place.configure(&[(&["a.test"], None)]);
        let daemon = place.start();
        let (_, digest) = offer(&daemon, "x@a.test", 1);
        told(&daemon, "connect to 127.44.2.1:25: connection refused");
        place.dns.mx("a.test", &[(10, "new.test"), (20, "mx2.example.test")]);
        assert_eq!(new.wait_for(1)[0].sha256, digest);
    }

    #[test]
    fn a_dns_that_fails_together_with_the_primary_keeps_no_mail_from_it_afterwards() {
        require_root();
        let place = Place::new();
        let mut primary = opened_at("127.44.3.1");
        // No MX: the domain is its own host.
        place.dns.addresses("a.test", &["127.44.3.1"]);
        place.configure(&[(&["a.test"], None)]);
        let daemon = place.start();
        offer(&daemon, "x@a.test", 1);
        primary.wait_for(1);
        place.dns.breaks(true);
        primary.close();
        let (_, digest) = offer(&daemon, "x@a.test", 2);
        told(&daemon, "connection refused");
        let asked = place.dns.asked("a.test");
        eventually("a question that gets no answer", || (place.dns.asked("a.test") > asked).then_some(()));
        primary.open();
        assert_eq!(primary.wait_for(2)[1].sha256, digest);
    }

    fn opened_at(ip: &str) -> Sink {
        let mut sink = Sink::closed_at(ip);
        sink.open();
        sink
    }
}
