//! A real OpenSMTPD of our own, as a sender. It has its paths compiled in; so it runs in a mount namespace in which those lead
//! into a temporary directory. It refuses to touch the machine's OpenSMTPD; `tests/get-opensmtpd` unpacks one for the suite.

use super::{eventually, require_root, run, scratch, tool};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use tempfile::TempDir;

/// What it finds of ours in place of the machine's, seen by nobody else.
const NAMESPACE: &str = "cd \"$0\" && mount --bind spool /var/spool && mount --bind lib /var/lib && mount --bind run /run && \
    exec \"$1\" -d -f \"$0/conf\"";

/// A running OpenSMTPD; stopped with the value.
pub struct OpenSmtpd {
    directory: TempDir,
    child: Child,
    pub smtp: SocketAddr,
}

impl OpenSmtpd {
    /// Relays everything to `relay` on 127.0.0.1, by this URL without the host: `smtp+notls`, `smtp+tls`.
    pub fn start(scheme: &str, next: u16) -> Self {
        require_root();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        run(&mut tool(root.join("tests/get-opensmtpd").to_str().unwrap())).expect_code(0);
        let reserved = TcpListener::bind("127.0.0.1:0").unwrap();
        let smtp = reserved.local_addr().unwrap();
        drop(reserved);
        let directory = scratch();
        let home = directory.path();
        for name in ["spool/smtpd", "lib/opensmtpd/empty", "run"] {
            fs::create_dir_all(home.join(name)).unwrap();
        }
        fs::set_permissions(home, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(home.join("spool/smtpd"), fs::Permissions::from_mode(0o711)).unwrap();
        let verify = if scheme == "smtp+tls" { "tls no-verify" } else { "" };
        let text = format!(
            "listen on 127.0.0.1 port {} hostname opensmtpd.example.net\n\
             action \"out\" relay host {scheme}://127.0.0.1:{next} {verify} helo opensmtpd.example.net\n\
             match from any for any action \"out\"\n",
            smtp.port()
        );
        fs::write(home.join("conf"), text).unwrap();
        let unpacked = root.join("target/peers/opensmtpd");
        let libraries: Vec<PathBuf> =
            fs::read_dir(unpacked.join("usr/lib")).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        let mut command = tool("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", NAMESPACE]);
        command.arg(home).arg(unpacked.join("usr/sbin/smtpd"));
        // Empty where the machine has them all.
        if !libraries.is_empty() {
            command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap());
        }
        let log = File::create(home.join("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(log)).spawn().unwrap();
        let started = Self { directory, child, smtp };
        eventually("OpenSMTPD to listen", || TcpStream::connect(smtp).ok());
        started
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }
}

impl Drop for OpenSmtpd {
    fn drop(&mut self) {
        // It became what we started: unshare and the shell each went on as the next.
        let _gone = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _gone = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- OpenSMTPD said:\n{}---", self.log());
        }
    }
}
