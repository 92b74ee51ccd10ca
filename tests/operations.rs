//! What an operator does to a running daemon, and on the way to one: the configuration written, checked, shown and read again
//! under load; recipients that change; what packages ship. It refuses to lose a session or a message over any of it.

use crate::harness::client::sha256;
use crate::harness::load::{Load, Plan};
use crate::harness::{
    Client, Daemon, Finished, Ledger, Message, OURS, Serve, Sink, cli, eventually, queued_id, restante, run, scratch,
    tool,
};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// A daemon that goes by a file alone.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: scratch() }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("restante.toml")
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// One route to each primary: `a` for example.test, which goes by the list in `recipients`, then `b` for b.test.
    fn configure(&self, primaries: &[u16]) {
        let mut text = "hostname = \"mx2.example.test\"\n".to_owned();
        for (n, port) in primaries.iter().enumerate() {
            let (name, domain) = [("a", OURS), ("b", "b.test")][n];
            text +=
                &format!("[[route]]\nname = \"{name}\"\ndomains = [\"{domain}\"]\nprimary = [\"127.0.0.1:{port}\"]\n");
            text += if n == 0 { "recipients = [\"file:recipients\"]\n" } else { "" };
        }
        replace(&self.file(), &text);
    }

    fn list(&self, text: &str) {
        replace(&self.directory.path().join("recipients"), text);
    }

    fn start(&self) -> Daemon {
        Serve::by_file(&self.data(), &self.file()).start()
    }

    fn reload(&self) -> Finished {
        cli(&self.data(), &["reload"])
    }
}

/// As an editor or a script does it: whole, at once.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

fn rcpt(daemon: &Daemon, address: &str) -> u16 {
    let mut client = Client::ehlo(daemon.smtp);
    assert_eq!(client.command("MAIL FROM:<a@example.net>").unwrap().code, 250);
    client.command(&format!("RCPT TO:<{address}>")).unwrap().code
}

fn offer(daemon: &Daemon, to: &str, n: u64) -> (String, String) {
    let message = Message::new("operations", n, 400);
    let reply = Client::ehlo(daemon.smtp).send("a@example.net", &[to], &message.content).unwrap();
    (queued_id(&reply), sha256(&message.content))
}

#[test]
fn sighup_under_load_changes_the_recipients_and_loses_no_session() {
    let place = Place::new();
    let primary = Sink::opened().digests_only();
    place.list("box@example.test\n");
    place.configure(&[primary.port]);
    let mut daemon = place.start();
    // Sessions from before, in the middle of a transaction each.
    let mut guests: Vec<Client> = (0..20).map(|_| Client::ehlo(daemon.smtp)).collect();
    for guest in &mut guests {
        for command in ["MAIL FROM:<a@example.net>", "RCPT TO:<box@example.test>"] {
            assert_eq!(guest.command(command).unwrap().code, 250);
        }
    }
    let plan =
        Plan { messages: 400, sessions: 8, least_bytes: 500, most_bytes: 4_000, id_of: |reply| queued_id(reply) };
    let load = Load::start(plan, daemon.smtp, Ledger::create(&place.directory.path().join("ledger")));
    for n in 0..10 {
        place.list(&format!("box@example.test\nnew{n}@example.test\n"));
        daemon.signal(Signal::HUP);
        eventually("the new recipient", || (rcpt(&daemon, &format!("new{n}@example.test")) == 250).then_some(()));
        assert_eq!(rcpt(&daemon, "nobody@example.test"), 550);
    }
    for (n, guest) in guests.iter_mut().enumerate() {
        assert_eq!(guest.command("RCPT TO:<new9@example.test>").unwrap().code, 250, "an old session sees the new list");
        assert_eq!(guest.command("DATA").unwrap().code, 354);
        queued_id(&guest.content(&Message::new("guest", n as u64, 300).content).unwrap());
    }
    let acknowledged = load.finish().close();
    assert_eq!(acknowledged.len(), 400);
    daemon.wait_until_empty();
    assert_eq!(primary.count(), 420);
    daemon.stop();
}

#[test]
fn a_broken_file_keeps_the_old_one_and_says_why() {
    let place = Place::new();
    let primary = Sink::opened();
    place.list("box@example.test\n");
    place.configure(&[primary.port]);
    let daemon = place.start();
    let whole = fs::read_to_string(place.file()).unwrap();
    replace(&place.file(), &format!("{}\nx = 1\n[smtp]\nlisten = [\"x\"]\n", whole.replace("domains", "domain")));
    let refused = place.reload().expect_code(6);
    for said in ["did you mean `domains`?", "bad address in `listen`", "the daemon goes on with what it has"] {
        assert!(refused.err.contains(said), "{said}\n{}", refused.err);
    }
    eventually("the log's word", || daemon.stderr().contains("the configuration is not taken").then_some(()));
    assert_eq!((rcpt(&daemon, "box@example.test"), rcpt(&daemon, "x@example.test")), (250, 550));
    // By the file alone, without `--data`: it says where the daemon is, and cannot.
    let refused = run(restante().args(["reload", "--config"]).arg(place.file())).expect_code(6);
    assert!(refused.err.contains("the daemon was not asked"), "{}", refused.err);
    replace(&place.file(), &whole);
    let same = place.reload().expect_code(0);
    assert_eq!(same.out, "nothing has changed\n");
    // The mended list is one error more; the list of before stays.
    place.list("box@example.test\nnonsense\n");
    eventually("a refusal of the list", || daemon.stderr().contains("the recipients stay as they were").then_some(()));
    assert_eq!((rcpt(&daemon, "box@example.test"), rcpt(&daemon, "x@example.test")), (250, 550));
    assert!(place.reload().expect_code(6).err.contains("nonsense"));
}

#[test]
fn a_changed_recipients_file_needs_no_reload_and_an_emptied_one_refuses_nobody() {
    let place = Place::new();
    let primary = Sink::opened();
    place.list("box@example.test\n");
    place.configure(&[primary.port]);
    let daemon = place.start();
    assert_eq!((rcpt(&daemon, "box@example.test"), rcpt(&daemon, "new@example.test")), (250, 550));
    place.list("new@example.test\nbox@example.test\n");
    eventually("the new recipient", || (rcpt(&daemon, "new@example.test") == 250).then_some(()));
    place.list("");
    eventually("a refusal of the list", || daemon.stderr().contains("has no address any more").then_some(()));
    assert_eq!((rcpt(&daemon, "box@example.test"), rcpt(&daemon, "new@example.test")), (250, 250));
}

#[test]
fn after_a_reload_waiting_mail_goes_to_the_new_primary_and_recover_knows_it() {
    let place = Place::new();
    let (gone, new) = (Sink::closed(), Sink::opened());
    place.list("box@example.test\n");
    place.configure(&[gone.port]);
    let mut daemon = place.start();
    let (_, digest) = offer(&daemon, "box@example.test", 1);
    place.configure(&[new.port]);
    let said = place.reload().expect_code(0).out;
    assert_eq!(said, format!("route a: primary 127.0.0.1:{} -> 127.0.0.1:{}\n", gone.port, new.port));
    assert_eq!(new.wait_for(1)[0].sha256, digest);
    daemon.wait_until_empty();
    // What the journal recorded at the reload is what recover goes by when the file is lost.
    new.answer_data(Some("451 4.3.0 later"));
    let (_, digest) = offer(&daemon, "box@example.test", 2);
    eventually("its refusal", || (daemon.ask(&["queue", "ls"])[0]["state"] == "deferred").then_some(()));
    daemon.kill9();
    new.answer_data(None);
    fs::remove_file(place.file()).unwrap();
    cli(&place.data(), &["recover", "--deliver"]).expect_code(0);
    assert_eq!(new.wait_for(2)[1].sha256, digest);
}

#[test]
fn connections_that_are_open_to_the_old_primary_get_no_more_mail() {
    let place = Place::new();
    let (old, new) = (Sink::opened(), Sink::opened());
    place.list("box@example.test\n");
    place.configure(&[old.port]);
    let daemon = place.start();
    // Its courier keeps the connection for a while.
    offer(&daemon, "box@example.test", 1);
    old.wait_for(1);
    daemon.wait_until_empty();
    place.configure(&[new.port]);
    place.reload().expect_code(0);
    offer(&daemon, "box@example.test", 2);
    new.wait_for(1);
    assert_eq!(old.count(), 1);
}

#[test]
fn an_attempt_that_hangs_on_the_old_primary_does_not_blame_the_new_one() {
    let place = Place::new();
    // Takes probes, and answers no MAIL.
    let old = TcpListener::bind("127.0.0.1:0").unwrap();
    place.list("box@example.test\n");
    place.configure(&[old.local_addr().unwrap().port()]);
    let hangs = std::thread::spawn(move || {
        let (stream, _) = old.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        (&stream).write_all(b"220 old.test\r\n").unwrap();
        assert!(lines.next().unwrap().unwrap().starts_with("EHLO"));
        (&stream).write_all(b"250-old.test\r\n250 8BITMIME\r\n").unwrap();
        assert!(lines.next().unwrap().unwrap().starts_with("MAIL"));
        stream
    });
    let mut daemon = place.start();
    let (_, digest) = offer(&daemon, "box@example.test", 1);
    let hanging = hangs.join().unwrap();
    let new = Sink::opened();
    place.configure(&[new.port]);
    place.reload().expect_code(0);
    offer(&daemon, "box@example.test", 2);
    new.wait_for(1);
    drop(hanging);
    assert_eq!(new.wait_for(2)[1].sha256, digest);
    daemon.stop();
    let log = fs::read_to_string(place.data().join("log/delivery.jsonl")).unwrap();
    let events: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let since_reload = events.iter().rposition(|line| line["ev"] == "primary_up").unwrap();
    assert_eq!(events.iter().filter(|line| line["ev"] == "primary_up").count(), 2, "{log}");
    assert!(events[since_reload..].iter().all(|line| line["ev"] != "primary_suspect"), "{log}");
}

#[test]
fn a_route_that_is_removed_keeps_its_mail_and_sends_it_when_it_returns() {
    let place = Place::new();
    let (a, mut b) = (Sink::opened(), Sink::closed());
    place.list("box@example.test\n");
    place.configure(&[a.port, b.port]);
    let daemon = place.start();
    let (id, digest) = offer(&daemon, "box@b.test", 1);
    place.configure(&[a.port]);
    let said = place.reload().expect_code(0).out;
    assert_eq!(said, "route b: removed; what is pending for it waits until it is back\n");
    assert_eq!(rcpt(&daemon, "box@b.test"), 550);
    let listed = daemon.ask(&["queue", "ls"]);
    assert_eq!((listed[0]["id"].as_str(), listed[0]["state"].as_str()), (Some(id.as_str()), Some("waiting")));
    b.open();
    place.configure(&[a.port, b.port]);
    place.reload().expect_code(0);
    assert_eq!(b.wait_for(1)[0].sha256, digest);
    assert!(daemon.metric("restante_messages_accepted_total", "route=\"b\"").is_some());
}

#[test]
fn keys_that_wait_for_a_restart_are_named_and_the_rest_is_taken() {
    let place = Place::new();
    let (a, c) = (Sink::opened(), Sink::opened());
    place.list("box@example.test\n");
    place.configure(&[a.port]);
    let daemon = place.start();
    place.configure(&[a.port, c.port]);
    let text = fs::read_to_string(place.file()).unwrap().replace("mx2.example.test", "mx3.example.test");
    replace(&place.file(), &text);
    for _ in 0..2 {
        let answer = cli(&place.data(), &["reload", "--json"]).expect_code(0).account();
        assert_eq!(answer["type"], "reload");
        assert_eq!(answer["after_restart"][0], "hostname (mx2.example.test -> mx3.example.test)", "{answer}");
    }
    assert_eq!(rcpt(&daemon, "anybody@b.test"), 250);
    assert!(daemon.metric("restante_deliveries_total", "route=\"b\",status=\"sent\"").is_some());
}

#[test]
fn a_reload_over_tcp_needs_the_token_and_no_daemon_is_5() {
    let place = Place::new();
    let primary = Sink::opened();
    place.list("box@example.test\n");
    place.configure(&[primary.port]);
    let mut daemon = place.start();
    let admin = daemon.admin.to_string();
    cli(&place.data(), &["reload", "--admin", &admin]).expect_code(0);
    let stranger = place.directory.path().join("elsewhere");
    fs::create_dir(&stranger).unwrap();
    cli(&stranger, &["reload", "--admin", &admin]).expect_code(7);
    daemon.stop();
    place.reload().expect_code(5);
}

#[test]
fn what_init_writes_is_checked_shown_and_served() {
    let directory = scratch();
    let mut primary = Sink::closed();
    fs::write(directory.path().join("list"), "box@example.test\n").unwrap();
    let to = format!("127.0.0.1:{}", primary.port);
    let init = |args: &[&str]| {
        let mut command = restante();
        command.current_dir(directory.path()).arg("init").args(args);
        run(&mut command)
    };
    let all = ["mx2.example.test", "--domain", "example.test,example.org", "--primary", &to, "--recipients", "list"];
    assert!(init(&all[..3]).expect_code(2).err.contains("--primary"));
    let said = init(&all).expect_code(0).out;
    for line in
        ["example.org.  MX  20  mx2.example.test.", "smtpd_client_event_limit_exceptions", "external_relay", "hostlist"]
    {
        assert!(said.contains(line), "{line}\n{said}");
    }
    assert!(init(&all).expect_code(1).err.contains("is there already"));
    let json = [&all[..], &["--output", "other.toml", "--json"]].concat();
    assert_eq!(init(&json).expect_code(0).account()["dns"].as_array().map(Vec::len), Some(5));

    let file = directory.path().join("restante.toml");
    let config = |what: &str, args: &[&str]| run(restante().args(["config", what, "--config"]).arg(&file).args(args));
    let said = config("check", &[]).expect_code(0).out;
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains(&format!("take mail for 2 domains on 1 route: example.test to {to} (1 recipient)")),
        "{said}"
    );
    let settings: Vec<Value> = config("show", &["--json"]).expect_code(0).json();
    let hostname = settings.iter().find(|setting| setting["key"] == "hostname").unwrap();
    assert_eq!(
        (&hostname["value"], hostname["origin"].as_str().unwrap().ends_with(".toml:4")),
        (&"mx2.example.test".into(), true)
    );

    let daemon = Serve::by_file(&directory.path().join("data"), &file).start();
    assert_eq!(rcpt(&daemon, "nobody@example.test"), 550);
    offer(&daemon, "box@example.test", 1);
    primary.open();
    primary.wait_for(1);
}

#[test]
fn config_check_tells_every_error_with_6() {
    let directory = scratch();
    let file = directory.path().join("restante.toml");
    fs::write(&file, "hostnme = \"x.test\"\n[[route]]\ndomain = [\"a.test\"]\nprimary = [\"h\"]\n").unwrap();
    let checked = run(restante().args(["config", "check", "--json", "--config"]).arg(&file)).expect_code(6);
    let errors = checked.account()["errors"].as_array().unwrap().clone();
    assert_eq!((errors.len(), &errors[0]["line"], &errors[1]["column"]), (2, &1.into(), &1.into()), "{errors:?}");
    assert!(checked.err.contains("2 errors; `restante serve` would not start"), "{}", checked.err);
    run(restante().args(["config", "show", "--config"]).arg(&file)).expect_code(6);
}

#[test]
fn completions_and_manual_pages_are_taken_by_those_who_read_them() {
    let directory = scratch();
    let script = directory.path().join("completions.bash");
    fs::write(&script, run(restante().args(["completions", "bash"])).expect_code(0).out).unwrap();
    run(tool("bash").arg("-n").arg(&script)).expect_code(0);
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(run(restante().args(["completions", shell])).expect_code(0).out.contains("reload"), "{shell}");
    }
    let pages = directory.path().join("deep/man1");
    for _ in 0..2 {
        run(restante().arg("man").arg(&pages)).expect_code(0);
    }
    for entry in fs::read_dir(&pages).unwrap() {
        let path = entry.unwrap().path();
        let page = fs::read_to_string(&path).unwrap();
        // What man(7) asks of a page: its title, and its name with a line for `apropos`.
        assert!(page.contains("\n.TH ") || page.starts_with(".TH "), "{}", path.display());
        assert!(page.contains(".SH NAME\n"), "{}", path.display());
        let known = [".", "'", "\\"].iter().any(|odd| page.lines().any(|line| line == *odd));
        assert!(!known, "an empty request in {}", path.display());
    }
    let queue = fs::read_to_string(pages.join("restante-queue-hold.1")).unwrap();
    assert!(queue.contains("EXIT STATUS") && queue.contains("7 not permitted"), "{queue}");
}
