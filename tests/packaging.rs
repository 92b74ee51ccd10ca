//! What a packager relies on: sockets opened by somebody else, the service manager told the truth, no privilege needed.
//! It refuses to need a service manager: a few lines of Python stand in for it, as they would for any other.

use crate::harness::{Client, Daemon, Message, PATIENCE, Serve, Sink, run, scratch};
use std::os::unix::net::UnixDatagram;

/// Opens the socket that `SOCKET` describes as descriptor 3, named `NAMES`, and becomes the rest of the command line.
const MANAGER: &str = r#"
import os, socket, sys
kind, names = sys.argv[1:3]
if kind == "unix":
    s = socket.socket(socket.AF_UNIX); s.bind(""); s.listen()
elif kind == "udp":
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("127.0.0.2", 0))
elif kind == "privileged":
    s = socket.socket()
    for port in range(1023, 600, -1):
        try: s.bind(("127.0.0.2", port))
        except OSError: continue
        break
    s.listen()
else:
    s = socket.socket(); s.bind(("127.0.0.2", 0))
    if kind == "tcp": s.listen()
if s.fileno() == 3: os.set_inheritable(3, True)
else: os.dup2(s.fileno(), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES=names)
os.execvp(sys.argv[3], sys.argv[3:])
"#;

fn assert_takes_and_delivers(daemon: &Daemon, primary: &Sink, number: u64) {
    let message = Message::new("handed-over", number, 2_000);
    let mut client = Client::ehlo(daemon.smtp);
    let reply = client.send("a@example.net", &["box@example.test"], &message.content).unwrap();
    assert_eq!(reply.code, 250, "{}", reply.text());
    primary.wait_for(1);
}

#[test]
fn an_inherited_socket_is_used_and_no_other_opened() {
    let directory = scratch();
    let primary = Sink::opened();
    let manager = ["python3", "-c", MANAGER, "tcp", "smtp"];
    let mut daemon = Serve::new(directory.path(), primary.port).under(&manager).start();
    assert_eq!(daemon.smtp.ip().to_string(), "127.0.0.2", "`ready:` names the socket that came");
    assert_eq!(daemon.stderr().matches("ready: smtp ").count(), 1, "{}", daemon.stderr());
    assert_takes_and_delivers(&daemon, &primary, 1);
    daemon.stop();
}

#[test]
fn a_socket_that_cannot_be_ours_ends_the_start_and_says_why() {
    for (kind, names, why) in [
        ("tcp", "restante.socket", "descriptor 3 is named \"restante.socket\"; only \"smtp\" is known"),
        ("tcp", "smtp:smtp", "2 names for 1 sockets"),
        ("bound", "smtp", "descriptor 3 does not listen"),
        ("udp", "smtp", "fd 3 is not a valid tcp socket"),
        ("unix", "smtp", "fd 3 is not a valid tcp socket"),
    ] {
        let directory = scratch();
        let manager = ["python3", "-c", MANAGER, kind, names];
        let ended = run(&mut Serve::new(directory.path(), 9).under(&manager).command()).expect_code(1);
        assert!(ended.err.contains(why), "{kind} {names}: {}", ended.err);
        assert!(!ended.err.contains("ready:"), "{kind} {names}: {}", ended.err);
    }
}

#[test]
fn a_count_of_sockets_that_is_none_ends_the_start() {
    for count in ["", "-1", "one", "4294967295", "18446744073709551616"] {
        let directory = scratch();
        let mut serve = Serve::new(directory.path(), 9).command();
        let ended = run(serve.env("LISTEN_FDS", count).env("LISTEN_FDNAMES", "smtp")).expect_code(1);
        assert!(ended.err.contains("LISTEN_FDS"), "{count:?}: {}", ended.err);
    }
}

#[test]
fn sockets_of_another_process_are_not_touched() {
    let directory = scratch();
    let primary = Sink::opened();
    let manager = ["env", "LISTEN_PID=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=smtp"];
    let mut daemon = Serve::new(directory.path(), primary.port).under(&manager).start();
    assert_eq!(daemon.smtp.ip().to_string(), "127.0.0.1", "it listens where it was told to");
    daemon.stop();
}

#[test]
fn the_service_manager_is_not_told_ready_before_a_250_is_possible() {
    let directory = scratch();
    let primary = Sink::opened();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut bytes = [0; 4_096];
        let length = manager.recv(&mut bytes).expect("a word from the daemon");
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    let variable = format!("NOTIFY_SOCKET={}", path.display());
    let mut daemon =
        Serve::new(&directory.path().join("data"), primary.port).under(&["env", variable.as_str()]).start();
    assert_eq!(hear(), "STATUS=reading the journal\n");
    assert_eq!(hear(), "READY=1\nSTATUS=accepting mail; 1 route\n");
    assert_takes_and_delivers(&daemon, &primary, 2);
    daemon.stop();
    assert_eq!(hear(), "STOPPING=1\nSTATUS=stopping\n");
}

#[test]
fn a_service_manager_that_does_not_listen_costs_no_mail() {
    let directory = scratch();
    let primary = Sink::opened();
    let nobody = format!("NOTIFY_SOCKET={}/nobody", directory.path().display());
    let mut daemon = Serve::new(directory.path(), primary.port).under(&["env", nobody.as_str()]).start();
    assert_takes_and_delivers(&daemon, &primary, 3);
    daemon.stop();
    assert!(daemon.stderr().contains("cannot notify the service manager"), "{}", daemon.stderr());
}

mod needs_root {
    use super::*;
    use crate::harness::{require_root, restante};
    use std::path::Path;

    /// `nobody` of Debian: a user with nothing of its own.
    const NOBODY: u32 = 65_534;

    fn status_of(pid: u32, field: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
        line.unwrap_or_else(|| panic!("no {field} in {status}")).to_owned()
    }

    #[test]
    fn a_privileged_port_is_served_without_root_and_without_capabilities() {
        require_root();
        let directory = scratch();
        let primary = Sink::opened();
        // Where the binary was built, others may not be able to look.
        let binary = directory.path().join("restante");
        std::fs::copy(Path::new(restante().get_program()), &binary).unwrap();
        std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        let shell = format!(
            "shift; exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=-all --bounding-set=-all \
             --no-new-privs '{}' \"$@\"",
            binary.display()
        );
        let manager = ["python3", "-c", MANAGER, "privileged", "smtp", "sh", "-c", shell.as_str(), "sh"];
        let data = directory.path().join("data");
        let mut daemon = Serve::new(&data, primary.port).under(&manager).start();
        assert!(daemon.smtp.port() < 1_024, "{}", daemon.smtp);
        assert_eq!(status_of(daemon.pid(), "Uid"), [NOBODY.to_string().as_str(); 4].join("\t"));
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status_of(daemon.pid(), set), "0".repeat(16), "{set}");
        }
        assert_eq!(status_of(daemon.pid(), "NoNewPrivs"), "1");
        assert_takes_and_delivers(&daemon, &primary, 4);
        daemon.stop();
    }
}
