//! Postfix, Exim and OpenSMTPD relay into us with every extension that they use: several messages a connection, several
//! recipients, large mail, DSN, SMTPUTF8, BDAT, STARTTLS. The logs must be clean on both sides, and all of it must arrive as it
//! was sent, at a primary that offers DSN. They refuse to pass over a line of a log that they do not know.

use crate::harness::exim::Exim;
use crate::harness::opensmtpd::OpenSmtpd;
use crate::harness::postfix::{Postfix, Role};
use crate::harness::tls::{encrypted, trusting};
use crate::harness::{Client, Daemon, Message, Serve, Sink, cli, eventually, restante, run, scratch};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;

/// Messages of no interest but for their number: so many that a connection carries several.
const PLAIN: u64 = 20;
const LARGE_BYTES: usize = 6 << 20;

/// A message, and what is asked for it.
struct Letter {
    from: &'static str,
    /// Parameters of MAIL that must arrive.
    asked: &'static [&'static str],
    /// Each with the parameters of RCPT that must arrive.
    to: Vec<(String, &'static [&'static str])>,
    smtputf8: bool,
    message: Message,
}

fn letter(label: &str, n: u64, bytes: usize) -> Letter {
    let to = vec![("box@example.test".to_owned(), &[][..])];
    Letter { from: "sender@example.net", asked: &[], to, smtputf8: false, message: Message::new(label, n, bytes) }
}

/// What any of them can send.
fn letters() -> Vec<Letter> {
    let mut letters: Vec<Letter> =
        (0..PLAIN).map(|n| letter("plain", n, 500 + usize::try_from(n).unwrap() * 700)).collect();
    letters.push(Letter {
        asked: &["RET=HDRS", "ENVID=QQ+2B314159"],
        to: vec![
            ("box@example.test".into(), &["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;Box+2Bold@example.org"]),
            ("two@example.test".into(), &["NOTIFY=NEVER", "ORCPT=rfc822;two@example.test"]),
            ("three@example.test".into(), &["NOTIFY=FAILURE,DELAY", "ORCPT=rfc822;three@example.test"]),
        ],
        ..letter("dsn", 0, 900)
    });
    letters.push(Letter { asked: &["RET=FULL"], ..letter("dsn", 1, 900) });
    letters.push(Letter { from: "", ..letter("null", 0, 700) });
    letters.push(Letter {
        to: (0..60).map(|n| (format!("box{n}@example.test"), &["NOTIFY=DELAY"][..])).collect(),
        ..letter("many", 0, 800)
    });
    letters.push(letter("large", 0, LARGE_BYTES));
    letters
}

fn quoted() -> Letter {
    let to = vec![("\"a b\"@example.test".to_owned(), &[][..]), ("\"x\\\"y>\"@example.test".to_owned(), &[][..])];
    Letter { to, ..letter("quoted", 0, 700) }
}

fn utf8() -> Letter {
    let to = vec![("j\u{f6}rg@example.test".to_owned(), &["NOTIFY=FAILURE"][..])];
    Letter { from: "\u{43f}\u{43e}\u{447}\u{442}\u{430}@example.net", to, smtputf8: true, ..letter("utf8", 0, 700) }
}

/// Gives it to the sender, all that it asks for included.
fn submit(client: &mut Client, letter: &Letter) {
    let utf8 = if letter.smtputf8 { " SMTPUTF8" } else { "" };
    let mail = format!("MAIL FROM:<{}> {}{utf8}", letter.from, letter.asked.join(" "));
    for command in
        std::iter::once(mail).chain(letter.to.iter().map(|(to, asked)| format!("RCPT TO:<{to}> {}", asked.join(" "))))
    {
        let reply = client.command(command.trim_end()).unwrap();
        assert_eq!(reply.code, 250, "{command}: {}", reply.text());
    }
    assert_eq!(client.command("DATA").unwrap().code, 354);
    let reply = client.content(&letter.message.content).unwrap();
    assert_eq!(reply.code, 250, "{}", reply.text());
}

fn submit_all(to: SocketAddr, letters: &[Letter]) {
    let mut client = Client::ehlo(to);
    letters.iter().for_each(|letter| submit(&mut client, letter));
    assert_eq!(client.command("QUIT").unwrap().code, 221);
}

fn is_of_dsn(parameter: &&String) -> bool {
    ["RET=", "ENVID=", "NOTIFY=", "ORCPT="].iter().any(|key| parameter.starts_with(key))
}

fn sorted<'a>(parameters: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut sorted: Vec<&str> = parameters.collect();
    sorted.sort_unstable();
    sorted
}

/// Waits until every message is at the primary, for everybody it is for, and looks at each.
fn assert_arrived(primary: &Sink, letters: &[Letter]) {
    let wanted: usize = letters.iter().map(|letter| letter.to.len()).sum();
    eventually("every message for everybody at the primary", || {
        (primary.received().iter().map(|received| received.to.len()).sum::<usize>() >= wanted).then_some(())
    });
    let received = primary.received();
    let mut arrived = BTreeMap::new();
    for one in &received {
        for (to, asked) in one.to.iter().zip(&one.parameters.1) {
            assert!(arrived.insert((one.message_id.as_str(), to.as_str()), (one, asked)).is_none(), "twice for {to}");
        }
    }
    assert_eq!(arrived.len(), wanted);
    for letter in letters {
        for (to, asked) in &letter.to {
            let key = (letter.message.message_id.as_str(), to.as_str());
            let (one, parameters) = arrived.get(&key).unwrap_or_else(|| panic!("{key:?} is missing"));
            assert!(one.content == letter.message.content, "the bytes of {key:?}");
            assert_eq!(one.from, letter.from, "{key:?}");
            let of_mail = one.parameters.0.iter().filter(is_of_dsn).map(String::as_str);
            assert_eq!(sorted(of_mail), sorted(letter.asked.iter().copied()), "{key:?}");
            assert_eq!(one.parameters.0.iter().any(|p| p == "SMTPUTF8"), letter.smtputf8, "{key:?}");
            // Some name the original recipient by themselves.
            let is_told = |p: &&String| is_of_dsn(p) && (!is_itself(p, to) || asked.contains(&p.as_str()));
            let of_rcpt = parameters.iter().filter(is_told).map(String::as_str);
            assert_eq!(sorted(of_rcpt), sorted(asked.iter().copied()), "{key:?}");
        }
    }
}

/// Whether this ORCPT says what RCPT says.
fn is_itself(parameter: &str, to: &str) -> bool {
    let xtext = to.replace(' ', "+20").replace('\u{f6}', "+C3+B6");
    parameter == format!("ORCPT=rfc822;{xtext}")
}

/// Nothing but mail that came and went, in the delivery log and on standard error; all of it inside TLS, or none. Returns how
/// many connections there were.
#[track_caller]
fn assert_clean(daemon: &Daemon, is_tls: bool) -> usize {
    daemon.wait_until_empty();
    let log = run(restante().args(["log", "--json", "--data"]).arg(&daemon.data)).expect_code(0).json();
    let known = ["connect", "accepted", "waiting", "sent", "disconnect", "primary_up"];
    for line in &log {
        let event = line["ev"].as_str().unwrap();
        let is_good = line["why"].is_null() && line["refused"].as_u64().unwrap_or(0) == 0;
        assert!(known.contains(&event) && is_good, "{line}");
        assert!(event != "accepted" || line["tls"].is_string() == is_tls, "{line}");
    }
    let said = daemon.stderr();
    let complaints: Vec<&str> = said.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    log.iter().filter(|line| line["ev"] == "connect").count()
}

/// Every line has one of `known` in it.
#[track_caller]
fn assert_only(log: &str, known: &[&str]) {
    let unknown: Vec<&str> = log.lines().filter(|line| !known.iter().any(|known| line.contains(known))).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn what_was_asked_is_shown_and_exported_and_nothing_where_nothing_was() {
    let directory = scratch();
    let daemon = Serve::new(&directory.path().join("data"), 1).start();
    let mut client = Client::ehlo(daemon.smtp);
    let asking = letters().into_iter().find(|letter| letter.asked.len() == 2).unwrap();
    [asking, utf8(), letter("plain", 0, 300)].iter().for_each(|letter| submit(&mut client, letter));
    let out = directory.path().join("out");
    let arguments = ["journal", "export", "--all", out.to_str().unwrap()];
    cli(&daemon.data, &arguments).expect_code(0);
    let parse = |path: &Path| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
    for shown in daemon.ask(&["queue", "show", "--all"]) {
        let exported = parse(&out.join(format!("{}.json", shown["id"].as_str().unwrap())));
        for object in [&shown, &exported] {
            let asked = ["ret", "envid", "smtputf8"].map(|key| object.get(key).cloned());
            let of = |n: usize| ["notify", "orcpt"].map(|key| object["to"][n].get(key).cloned());
            if object["from"] == utf8().from {
                assert_eq!((asked, of(0)), ([None, None, Some(true.into())], [Some("FAILURE".into()), None]));
            } else if object["to"][1].is_object() {
                assert_eq!(asked, [Some("HDRS".into()), Some("QQ+2B314159".into()), None]);
                assert_eq!(of(0), [Some("SUCCESS,FAILURE".into()), Some("rfc822;Box+2Bold@example.org".into())]);
            } else {
                assert_eq!((asked, of(0)), ([None, None, None], [None, None]));
            }
        }
    }
    let words = cli(&daemon.data, &["queue", "show", "--all"]).expect_code(0).out;
    assert_eq!(words.matches("asked").count(), 2 + 3 + 1, "{words}");
    assert!(words.contains("ENVID=QQ+2B314159") && words.contains("asked       SMTPUTF8\n"), "{words}");
    assert!(words.contains("asked: NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Box+2Bold@example.org\n"), "{words}");
}

#[test]
fn who_leaves_tls_without_quit_hears_good_bye() {
    let directory = scratch();
    let daemon = Serve::new(&directory.path().join("data"), 1).start();
    let mut tls = encrypted(&daemon, "mx2.example.test", &trusting(&daemon));
    tls.write_all(b"NOOP\r\n").unwrap();
    assert!(tls.read(&mut [0; 100]).unwrap() > 0);
    tls.conn.send_close_notify();
    tls.flush().unwrap();
    // Cut off without close_notify, this is an error (RFC 8446 section 6.1): Exim logs one for each connection.
    assert_eq!(tls.read(&mut [0; 100]).unwrap(), 0);
}

mod needs_root {
    use super::*;

    /// Of its log; what is not here is a complaint. The one connection that was lost is the harness's, to see whether it listens.
    const POSTFIX: [&str; 16] = [
        "postfix/postfix-script[",
        "postfix/master[",
        "]: statistics: ",
        "status=sent (250 2.0.0 ",
        "]: connect from ",
        "]: lost connection after CONNECT from localhost[127.0.0.1]",
        "]: disconnect from ",
        ": client=",
        ": message-id=",
        " (queue active)",
        ": removed",
        ": uid=0 from=",
        "]: Verified TLS connection established to 127.0.0.1",
        "]: Verified TLS connection reused to 127.0.0.1",
        // Of Postfix's own, about itself.
        "]: CONNECT to [127.0.0.1]:",
        "]: warning: TLS server role is disabled with tlsproxy_tls_security_level",
    ];
    /// The last one is about the harness, which has its configuration where Exim expects none.
    const EXIM: [&str; 7] = [
        " <= ",
        " => ",
        " -> ",
        " Completed",
        " queue run: ",
        " daemon started: ",
        " lost privilege for using -C option",
    ];
    const OPENSMTPD: [&str; 12] = [
        "info: OpenSMTPD ",
        // Of its spool, in which there is nothing yet.
        "warn: purge_task: opendir: No such file",
        " smtp connected ",
        " smtp message ",
        " smtp envelope ",
        " smtp disconnected ",
        " mta connecting ",
        " mta connected",
        " mta tls ciphers=",
        // It was told not to mind: it knows no authority but the system's.
        " mta server-cert-check result=\"failure\"",
        " mta delivery ",
        " mta disconnected reason=quit",
    ];

    /// A primary that offers DSN, and the daemon.
    fn chain(directory: &Path) -> (Sink, Daemon) {
        let primary = Sink::opened().offering_dsn();
        let daemon = Serve::new(&directory.join("data"), primary.port).start();
        (primary, daemon)
    }

    fn of_postfix_and_exim() -> Vec<Letter> {
        letters().into_iter().chain([quoted(), utf8()]).collect()
    }

    #[test]
    fn postfix_says_and_hears_nothing_but_mail_in_clear_and_the_order_of_sendmail_arrives() {
        let directory = scratch();
        let (primary, daemon) = chain(directory.path());
        let lines = "smtp_tls_security_level = none\nsmtp_connection_cache_destinations = 127.0.0.1\n".to_owned();
        let postfix = Postfix::start(Role::SenderWith(daemon.smtp.port(), lines));
        let mut letters = of_postfix_and_exim();
        submit_all(postfix.smtp, &letters);
        let by_hand = Letter {
            asked: &["RET=HDRS", "ENVID=order+20+2B1"],
            to: vec![("hand@example.test".into(), &["NOTIFY=SUCCESS,FAILURE"])],
            ..letter("hand", 0, 600)
        };
        let text: Vec<u8> = by_hand.message.content.iter().copied().filter(|b| *b != b'\r').collect();
        let options =
            ["-i", "-f", by_hand.from, "-N", "success,failure", "-V", "order +1", "-R", "hdrs", "hand@example.test"];
        postfix.sendmail(&options, &text);
        letters.push(by_hand);
        assert_arrived(&primary, &letters);
        let connections = assert_clean(&daemon, false);
        let log = postfix.log();
        assert_only(&log, &POSTFIX);
        assert!(log.contains(" conn_use=2,") && connections < letters.len(), "{connections} connections");
    }

    #[test]
    fn postfix_verifies_our_certificate_and_sends_several_messages_inside_one_tls_connection() {
        let directory = scratch();
        let (primary, daemon) = chain(directory.path());
        let lines = format!(
            "smtp_tls_security_level = secure\nsmtp_tls_CAfile = {}\nsmtp_tls_secure_cert_match = mx2.example.test\n\
             smtp_tls_loglevel = 1\nsmtp_tls_connection_reuse = yes\nsmtp_connection_cache_destinations = 127.0.0.1\n",
            daemon.data.join("tls-self-signed.pem").display()
        );
        let postfix = Postfix::start(Role::SenderWith(daemon.smtp.port(), lines));
        let letters = of_postfix_and_exim();
        submit_all(postfix.smtp, &letters);
        assert_arrived(&primary, &letters);
        assert_clean(&daemon, true);
        let log = postfix.log();
        assert_only(&log, &POSTFIX);
        assert!(log.contains(" conn_use=2,") && log.contains("Verified TLS connection"), "{log}");
    }

    /// Whatever comes at its end: Exim hands it on in chunks.
    fn submit_without_line_end(listener: SocketAddr) -> Letter {
        let mut last = letter("unended", 0, 600);
        last.message.content.extend_from_slice(b"no line end");
        let mut client = Client::ehlo(listener);
        assert!(client.extensions.iter().any(|e| e == "CHUNKING"));
        assert_eq!(client.command("MAIL FROM:<sender@example.net>").unwrap().code, 250);
        assert_eq!(client.command("RCPT TO:<box@example.test>").unwrap().code, 250);
        client.raw(format!("BDAT {} LAST\r\n", last.message.content.len()).as_bytes()).unwrap();
        client.raw(&last.message.content).unwrap();
        assert_eq!(client.reply().unwrap().code, 250);
        assert_eq!(client.command("QUIT").unwrap().code, 221);
        last.message.content.extend_from_slice(b"\r\n");
        last
    }

    fn exim(transport: impl Fn(&Daemon) -> String, is_tls: bool) {
        let directory = scratch();
        let (primary, daemon) = chain(directory.path());
        let exim = Exim::configured(daemon.smtp.port(), "accept", &transport(&daemon));
        let (mut letters, utf8) = (letters(), utf8());
        letters.push(quoted());
        let listener = exim.listen();
        submit_all(listener.smtp, &letters);
        letters.push(submit_without_line_end(listener.smtp));
        exim.run(&["-qqff"]).expect_code(0);
        // Not with the others: behind another message in a connection, Exim forgets that SMTPUTF8 was offered.
        submit_all(listener.smtp, std::slice::from_ref(&utf8));
        exim.run(&["-qff"]).expect_code(0);
        letters.push(utf8);
        drop(listener);
        assert_arrived(&primary, &letters);
        let connections = assert_clean(&daemon, is_tls);
        assert!(connections < letters.len(), "{connections} connections");
        let log = exim.log("main");
        assert_only(&log, &EXIM);
        let sent = |line: &&str| line.contains(" => ") || line.contains(" -> ");
        let is_good = |line: &str| line.contains(" K C=\"250 2.0.0 ") && line.contains(" X=TLS1.3:") == is_tls;
        assert!(log.lines().filter(sent).all(is_good) && log.contains(" CV=yes ") == is_tls, "by BDAT: {log}");
        assert_only(&exim.log("panic"), &EXIM[6..]);
        assert_eq!((exim.log("reject"), exim.ids().len()), (String::new(), 0));
    }

    #[test]
    fn exim_says_and_hears_nothing_but_mail_in_chunks() {
        exim(|_| "hosts_avoid_tls = *".to_owned(), false);
    }

    #[test]
    fn exim_verifies_our_certificate_and_sends_in_chunks_inside_tls() {
        let transport = |daemon: &Daemon| {
            let certificate = daemon.data.join("tls-self-signed.pem");
            format!(
                "hosts_require_tls = *\n  tls_verify_hosts = *\n  tls_verify_cert_hostnames =\n  tls_verify_certificates = {}",
                certificate.display()
            )
        };
        exim(transport, true);
    }

    #[test]
    fn exims_callout_is_told_who_is_known_and_leaves_no_complaint() {
        let directory = scratch();
        let (primary, file) = (Sink::opened(), directory.path().join("restante.toml"));
        let text = format!(
            "hostname = \"mx2.example.test\"\n[journal]\ndir = {:?}\n[[route]]\nname = \"ours\"\ndomains = [\"example.test\"]\n\
             primary = [\"127.0.0.1:{}\"]\nrecipients = [\"box@example.test\"]\n",
            directory.path().join("data"),
            primary.port
        );
        std::fs::write(&file, text).unwrap();
        let daemon = Serve::by_file(&directory.path().join("data"), &file).start();
        let exim = Exim::configured(
            daemon.smtp.port(),
            "accept verify = recipient/callout=30s,no_cache",
            "hosts_avoid_tls = *",
        );
        let listener = exim.listen();
        let mut client = Client::ehlo(listener.smtp);
        assert_eq!(client.command("MAIL FROM:<sender@example.net>").unwrap().code, 250);
        assert_eq!(client.command("RCPT TO:<box@example.test>").unwrap().code, 250);
        assert_clean(&daemon, false);
        let unknown = client.command("RCPT TO:<nobody@example.test>").unwrap();
        assert_eq!(unknown.code, 550, "{}", unknown.text());
        let rejected = exim.log("reject");
        assert!(rejected.lines().count() == 1 && rejected.contains("550 5.1.1"), "{rejected}");
        assert_eq!(exim.log("panic"), "");
    }

    fn opensmtpd(scheme: &str, is_tls: bool) {
        let directory = scratch();
        let (primary, daemon) = chain(directory.path());
        let sender = OpenSmtpd::start(scheme, daemon.smtp.port());
        let mut letters = letters();
        // What is asked for one recipient it asks for all behind, too: and NEVER, which stands alone, it refuses there.
        for (to, asked) in letters.iter_mut().flat_map(|letter| &mut letter.to).filter(|(_, asked)| asked.len() > 1) {
            *asked = match to.as_str() {
                "three@example.test" => &["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;Box+2Bold@example.org"],
                _ => &["NOTIFY=SUCCESS,FAILURE"],
            };
        }
        submit_all(sender.smtp, &letters);
        assert_arrived(&primary, &letters);
        let connections = assert_clean(&daemon, is_tls);
        assert!(connections < letters.len(), "{connections} connections");
        let log = eventually("OpenSMTPD to hang up", || {
            Some(sender.log()).filter(|log| log.contains(" mta disconnected reason=quit"))
        });
        assert_only(&log, &OPENSMTPD);
        let delivered: Vec<&str> = log.lines().filter(|line| line.contains(" mta delivery ")).collect();
        assert!(delivered.iter().all(|line| line.contains("result=\"Ok\" stat=\"250 2.0.0 ")), "{delivered:#?}");
        assert_eq!(log.contains(" mta tls ciphers="), is_tls);
    }

    #[test]
    fn opensmtpd_says_and_hears_nothing_but_mail() {
        opensmtpd("smtp+notls", false);
    }

    #[test]
    fn opensmtpd_sends_inside_tls() {
        opensmtpd("smtp+tls", true);
    }

    fn import(daemon: &Daemon, format: &str, path: &Path, count: usize) {
        let mut command = restante();
        command.args(["journal", "import", "--json", format]).arg(path).arg("--data").arg(&daemon.data);
        let account = run(&mut command).expect_code(0).account();
        assert_eq!(account["taken"].as_u64(), Some(count as u64), "{account}");
    }

    #[test]
    fn what_was_asked_of_postfix_is_asked_after_an_import() {
        let directory = scratch();
        let (primary, daemon) = chain(directory.path());
        let nowhere = Sink::closed();
        let postfix = Postfix::start(Role::Sender(nowhere.port));
        let letters = of_postfix_and_exim();
        submit_all(postfix.smtp, &letters);
        let deferred = || postfix.log().lines().filter(|line| line.contains("status=deferred")).count();
        eventually("all mail to wait at Postfix", || {
            (deferred() >= letters.iter().map(|letter| letter.to.len()).sum()).then_some(())
        });
        postfix.stop();
        import(&daemon, "postfix", &postfix.queue(), letters.len());
        assert_arrived(&primary, &letters);
    }

    #[test]
    fn what_was_asked_of_exim_is_asked_after_an_import() {
        let directory = scratch();
        let (primary, daemon) = chain(directory.path());
        let exim = Exim::new(1);
        let listener = exim.listen();
        let letters = of_postfix_and_exim();
        submit_all(listener.smtp, &letters);
        drop(listener);
        import(&daemon, "exim", &exim.spool(), letters.len());
        assert_arrived(&primary, &letters);
    }
}
