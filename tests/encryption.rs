//! STARTTLS on the receiving side, against those who speak it: openssl, swaks, Python, Postfix; and against those who abuse it.
//! They refuse nothing we say. TLS stays optional: all other modules speak in clear.

use crate::harness::{Client, Daemon, Message, Serve, Sink, eventually, run, scratch, stuffed, tool};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::Stdio;

/// A script's preamble: `port`, a context that takes any certificate, and `greeted()`: a socket after EHLO in clear, which
/// replies are read from a byte at a time, so that nothing of TLS is read ahead.
const PYTHON: &str = r#"
import hashlib, smtplib, socket, ssl, sys, threading
port = int(sys.argv[1])
context = ssl._create_unverified_context()

def reply(sock):
    text = b""
    while not text.endswith(b"\r\n") or text.splitlines()[-1][3:4] == b"-":
        byte = sock.recv(1)
        assert byte, (b"closed after", text)
        text += byte
    return text.decode()

def greeted():
    sock = socket.create_connection(("127.0.0.1", port), timeout=120)
    assert reply(sock).startswith("220 ")
    sock.sendall(b"EHLO client.example.net\r\n")
    assert "250-STARTTLS\r\n" in reply(sock)
    return sock
"#;

/// Runs a script behind [`PYTHON`], which must not fail.
fn python(daemon: &Daemon, script: &str) -> String {
    let script = format!("{PYTHON}{script}");
    run(tool("python3").args(["-c", &script, &daemon.smtp.port().to_string()])).expect_code(0).out
}

/// How many handshakes of clients succeeded.
fn tls_sessions(daemon: &Daemon) -> f64 {
    daemon.metric("restante_tls_sessions_total", "direction=\"in\"").unwrap()
}

/// Waits for a `disconnect` line that says why, as this.
fn wait_for_disconnect(daemon: &Daemon, why: &str) {
    eventually(&format!("a disconnect for {why}"), || {
        let lines = daemon.ask(&["log"]);
        let says_why = |line: &serde_json::Value| line["why"].as_str().is_some_and(|said| said.contains(why));
        lines.iter().any(|line| line["ev"] == "disconnect" && says_why(line)).then_some(())
    });
}

/// A new key and certificate for our name, of OpenSSL's making, as one PEM text each.
fn certificate(directory: &Path) -> (String, String) {
    let (key, chain) = (directory.join("key.pem"), directory.join("chain.pem"));
    let mut openssl = tool("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]);
    openssl.args(["-subj", "/CN=mx2.example.test", "-addext", "subjectAltName=DNS:mx2.example.test"]);
    run(openssl.arg("-keyout").arg(&key).arg("-out").arg(&chain)).expect_code(0);
    (std::fs::read_to_string(key).unwrap(), std::fs::read_to_string(chain).unwrap())
}

#[test]
fn openssl_hands_mail_over_in_both_versions() {
    let directory = scratch();
    let primary = Sink::opened();
    let daemon = Serve::new(&directory.path().join("data"), primary.port).start();
    let words = [
        ("-tls1_2", "(TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384)"),
        ("-tls1_3", "(TLSv1.3 TLS_AES_256_GCM_SHA384)"),
    ];
    for (n, (version, tls)) in words.into_iter().enumerate() {
        let message = Message::new("openssl", n as u64, 40_000);
        let mut openssl = tool("openssl");
        openssl.args(["s_client", "-quiet", "-starttls", "smtp", "-connect", &daemon.smtp.to_string(), version]);
        let mut child = openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        input.write_all(b"EHLO client.example.net\r\n").unwrap();
        let mut said = String::new();
        while !said.ends_with("250 HELP\r\n") {
            assert!(output.read_line(&mut said).unwrap() > 0, "{said}");
        }
        let mut bytes = b"MAIL FROM:<a@example.net>\r\nRCPT TO:<box@example.test>\r\nDATA\r\n".to_vec();
        bytes.extend(stuffed(&message.content));
        bytes.extend_from_slice(b".\r\nQUIT\r\n");
        input.write_all(&bytes).unwrap();
        output.read_to_string(&mut said).unwrap();
        child.wait().unwrap();
        assert!(said.contains("\n250-PIPELINING\r\n"), "EHLO inside TLS: {said}");
        assert!(!said.contains("STARTTLS"), "TLS is active already: {said}");
        assert!(said.contains("queued as"), "{said}");
        let received = primary.wait_for(n + 1).pop().unwrap();
        assert_eq!(received.sha256, crate::harness::client::sha256(&message.content));
        let trace = received.trace.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(trace.contains(&format!("with ESMTPS {tls} id ")), "{trace}");
        let logged = eventually("the message in the log", || {
            daemon.ask(&["log"]).into_iter().filter(|line| line["ev"] == "accepted").nth(n)
        });
        assert_eq!(format!("({})", logged["tls"].as_str().unwrap()), tls);
    }
    for version in ["TLSv1.2", "TLSv1.3"] {
        assert_eq!(daemon.metric("restante_tls_sessions_total", &format!("version=\"{version}\"")), Some(1.0));
    }
}

#[test]
fn swaks_is_content_with_tls() {
    let directory = scratch();
    let primary = Sink::opened();
    let daemon = Serve::new(&directory.path().join("data"), primary.port).start();
    for (n, variant) in ["--tls", "--tls-optional"].into_iter().enumerate() {
        let mut swaks = tool("swaks");
        swaks.args([
            "--server",
            "127.0.0.1",
            "--port",
            &daemon.smtp.port().to_string(),
            "--to",
            "box@example.test",
            variant,
        ]);
        let message = format!("Message-ID: <tls.{n}@example.net>\\nSubject: swaks\\n\\nfrom swaks\\n");
        let finished = run(swaks.args(["--from", "sender@example.net", "--data", &message])).expect_code(0);
        assert!(!finished.out.lines().any(|l| l.starts_with("<**") || l.starts_with("***")), "{}", finished.out);
        assert!(primary.wait_for(n + 1)[n].trace.contains("with ESMTPS (TLSv1."), "in clear: {}", finished.out);
    }
}

#[test]
fn commands_injected_behind_starttls_are_neither_executed_nor_answered() {
    let directory = scratch();
    let primary = Sink::closed();
    let daemon = Serve::new(&directory.path().join("data"), primary.port).start();
    python(
        &daemon,
        r#"
clear = greeted()
clear.sendall(b"STARTTLS\r\nEHLO injected.test\r\nMAIL FROM:<evil@example.net>\r\nRCPT TO:<box@example.test>\r\nDATA\r\n")
assert reply(clear).startswith("220 2.0.0 ")
tls = context.wrap_socket(clear)
tls.sendall(b"NOOP\r\nRCPT TO:<box@example.test>\r\nMAIL FROM:<a@example.net>\r\nQUIT\r\n")
assert reply(tls) == "250 2.0.0 Ok\r\n"
assert reply(tls).startswith("503 5.5.1 send EHLO first")
assert reply(tls).startswith("503 5.5.1 send EHLO first")
assert reply(tls).startswith("221 ")
assert tls.recv(1) == b""
"#,
    );
    assert!(daemon.ask(&["queue", "ls"]).is_empty());
}

#[test]
fn what_is_no_handshake_is_closed_quietly_and_logged() {
    let directory = scratch();
    let primary = Sink::closed();
    let mut daemon = Serve::new(&directory.path().join("data"), primary.port).start();
    python(
        &daemon,
        r#"
clear = greeted()
clear.sendall(b"STARTTLS\r\n")
assert reply(clear).startswith("220 2.0.0 ")
clear.sendall(b"EHLO client.example.net\r\nMAIL FROM:<a@example.net>\r\nRCPT TO:<box@example.test>\r\n")
rest = b""
while piece := clear.recv(4096):
    rest += piece
assert len(rest) < 16 and b"250" not in rest, rest
"#,
    );
    wait_for_disconnect(&daemon, "TLS handshake: ");
    assert_eq!(daemon.metric("restante_tls_failures_total", "direction=\"in\""), Some(1.0));
    // Whoever leaves instead of a ClientHello, or within TLS without a word, holds nothing.
    python(
        &daemon,
        r#"
clear = greeted()
clear.sendall(b"STARTTLS\r\n")
assert reply(clear).startswith("220 2.0.0 ")
clear.close()
clear = greeted()
clear.sendall(b"STARTTLS\r\n")
assert reply(clear).startswith("220 2.0.0 ")
tls = context.wrap_socket(clear)
tls.sendall(b"EHLO client.example.net\r\n")
assert "250 HELP" in reply(tls)
tls.sendall(b"MAIL FROM:<a@example.net>\r\nRCPT TO:<box@example.test>\r\nDATA\r\n")
while not reply(tls).startswith("354 "):
    pass
tls.sendall(b"Subject: cut off\r\n\r\nhalf a li")
tls.close()
"#,
    );
    eventually("no connection", || (daemon.metric("restante_smtp_connections", "") == Some(0.0)).then_some(()));
    assert!(daemon.ask(&["queue", "ls"]).is_empty());
    daemon.stop();
}

#[test]
fn shutdown_is_said_inside_tls_and_does_not_wait_for_a_handshake() {
    let directory = scratch();
    let primary = Sink::closed();
    let mut daemon = Serve::new(&directory.path().join("data"), primary.port).start();
    let mut half_way = Client::ehlo(daemon.smtp);
    assert_eq!(half_way.command("STARTTLS").unwrap().code, 220);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            python(
                &daemon,
                r#"
clear = greeted()
clear.sendall(b"STARTTLS\r\n")
assert reply(clear).startswith("220 2.0.0 ")
tls = context.wrap_socket(clear)
assert reply(tls).startswith("421 4.3.2 ")
assert tls.recv(1) == b""
"#,
            )
        });
        eventually("a session in TLS", || (tls_sessions(&daemon) == 1.0).then_some(()));
        daemon.signal(rustix::process::Signal::TERM);
        client.join().unwrap();
    });
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.stderr());
    assert!(half_way.reply().is_err(), "nothing is said in clear where TLS was announced");
}

#[test]
fn a_certificate_replaced_under_load_fails_no_session() {
    let directory = scratch();
    let data = directory.path().join("data");
    let primary = Sink::opened();
    let daemon = Serve::new(&data, primary.port).start();
    let file = data.join("tls-self-signed.pem");
    let replace = |text: String| {
        std::fs::write(directory.path().join("next.pem"), text).unwrap();
        std::fs::rename(directory.path().join("next.pem"), &file).unwrap();
    };
    let (key, chain) = certificate(directory.path());
    std::thread::scope(|scope| {
        // Four clients at a time, until each has been served the new certificate five times.
        let clients = scope.spawn(|| {
            python(
                &daemon,
                r#"
first, lock, counts = [], threading.Lock(), {}
def session(n):
    with smtplib.SMTP("127.0.0.1", port, timeout=120) as client:
        client.starttls(context=context)
        served = hashlib.sha256(client.sock.getpeercert(True)).hexdigest()
        content = b"Message-ID: <%d.%d@tls.example.net>\r\n\r\nx\r\n" % (n, counts.get(n, 0))
        assert client.sendmail("a@example.net", ["box@example.test"], content) == {}
    with lock:
        first.append(served)
        counts[n] = counts.get(n, 0) + 1
        return served != first[0]
def work(n):
    after = 0
    while after < 5:
        after += session(n)
    done.append(n)
done = []
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(done) == 4 and len(set(first)) == 2, (done, set(first))
print(len(first))
"#,
            )
        });
        let began = eventually("sessions in TLS", || Some(tls_sessions(&daemon)).filter(|sessions| *sessions >= 8.0));
        // A certificate whose key is not there replaces nothing, and the reason is said.
        replace(format!("{chain}{}", certificate(directory.path()).0));
        eventually("the warning", || daemon.stderr().contains("the one before stays: ").then_some(()));
        eventually("sessions meanwhile", || (tls_sessions(&daemon) >= began + 8.0).then_some(()));
        assert!(!clients.is_finished(), "the certificate without its key was served, or a session failed");
        replace(format!("{chain}{key}"));
        let sent: usize = clients.join().unwrap().trim().parse().unwrap();
        assert_eq!(primary.wait_for(sent).len(), sent);
    });
    assert_eq!(daemon.metric("restante_tls_failures_total", ""), Some(0.0));
    assert_eq!(daemon.stderr().matches("the one before stays: ").count(), 1, "said once: {}", daemon.stderr());
}

#[test]
fn a_restart_shows_the_same_certificate() {
    let directory = scratch();
    let primary = Sink::closed();
    let served = || {
        let mut daemon = Serve::new(&directory.path().join("data"), primary.port).start();
        let fingerprint = python(
            &daemon,
            "with smtplib.SMTP('127.0.0.1', port) as c: c.starttls(context=context); print(c.sock.getpeercert(True).hex())",
        );
        daemon.stop();
        fingerprint
    };
    assert_eq!(served(), served());
}

mod needs_root {
    use super::*;
    use crate::harness::postfix::{Postfix, Role};

    #[test]
    fn postfix_that_insists_on_tls_relays_into_us() {
        let directory = scratch();
        let primary = Sink::opened();
        let daemon = Serve::new(&directory.path().join("data"), primary.port).start();
        let postfix = Postfix::start(Role::SenderOverTls(daemon.smtp.port()));
        let mut client = Client::ehlo(postfix.smtp);
        for n in 0..20 {
            let message = Message::new("over-tls", n, 20_000);
            assert_eq!(client.send("a@example.net", &["box@example.test"], &message.content).unwrap().code, 250);
        }
        for received in primary.wait_for(20) {
            assert!(received.trace.contains("with ESMTPS (TLSv1.3 "), "{}", received.trace);
        }
        eventually("Postfix to log", || (postfix.log().matches("status=sent (250 2.0.0 ").count() == 20).then_some(()));
    }
}
