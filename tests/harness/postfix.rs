//! A real Postfix of our own: its own configuration, queue and log in a temporary directory, on loopback, as the primary or as a
//! sender. It refuses to touch the machine's Postfix.

use super::{OURS, eventually, require_root, run, scratch, tool};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// Debian's own services of master.cf, less what we do not use.
const SERVICES: &str = "\
cleanup unix n - n - 0 cleanup
tlsmgr unix - - n 1000? 1 tlsmgr
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
proxymap unix - - n - - proxymap
scache unix - - n - 1 scache
tlsproxy unix - - n - 0 tlsproxy
pickup unix n - n 60 1 pickup
postlog unix-dgram n - n - 1 postlogd
";

/// Nobody: the owner of the mailbox. Postfix delivers to no uid below 100.
const NOBODY: u32 = 65_534;

/// What it is for.
pub enum Role {
    /// Delivers mail for our domain into a maildir.
    Primary,
    /// The same, with more lines of main.cf.
    PrimaryWith(String),
    /// The same, and offers STARTTLS with a certificate of its own making.
    EncryptingPrimary,
    /// Relays everything to this port of 127.0.0.1.
    Sender(u16),
    /// The same, and never in clear.
    SenderOverTls(u16),
    /// The same as a sender in clear, with more lines of main.cf.
    SenderWith(u16, String),
}

/// A running Postfix; stopped with the value.
pub struct Postfix {
    directory: TempDir,
    pub smtp: SocketAddr,
}

impl Postfix {
    /// Starts it on a port of its own.
    pub fn start(role: Role) -> Self {
        // The port may be somebody else's by the time that Postfix asks for it.
        eventually("Postfix to start", || {
            let reserved = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = reserved.local_addr().unwrap().port();
            drop(reserved);
            Self::try_start_on(&role, port)
        })
    }

    /// Starts it on `port` of 127.0.0.1, which must be free.
    pub fn start_on(role: Role, port: u16) -> Self {
        Self::try_start_on(&role, port).expect("Postfix does not start")
    }

    fn try_start_on(role: &Role, port: u16) -> Option<Self> {
        require_root();
        let directory = scratch();
        let smtp = SocketAddr::from(([127, 0, 0, 1], port));
        let home = directory.path().display().to_string();
        // Postfix's own user must be able to come in.
        fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).unwrap();
        for (name, owner) in [("etc", "root"), ("queue", "root"), ("data", "postfix"), ("mail", "nobody")] {
            let path = format!("{home}/{name}");
            fs::create_dir(&path).unwrap();
            run(tool("chown").args([owner, &path])).expect_code(0);
        }
        let mut special = match role {
            Role::Primary | Role::EncryptingPrimary | Role::PrimaryWith(_) => format!(
                "virtual_mailbox_domains = {OURS}\nvirtual_mailbox_maps = static:box/\nvirtual_mailbox_base = {home}/mail\n\
                 virtual_uid_maps = static:{NOBODY}\nvirtual_gid_maps = static:{NOBODY}\n"
            ),
            Role::Sender(next) => format!("relayhost = [127.0.0.1]:{next}\n"),
            Role::SenderWith(next, lines) => format!("relayhost = [127.0.0.1]:{next}\n{lines}"),
            Role::SenderOverTls(next) => {
                format!("relayhost = [127.0.0.1]:{next}\nsmtp_tls_security_level = encrypt\n")
            }
        };
        if let Role::PrimaryWith(lines) = role {
            special.push_str(lines);
        }
        if matches!(role, Role::EncryptingPrimary) {
            let pem = format!("{home}/etc/tls.pem");
            run(tool("openssl")
                .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other.example.net"])
                .args(["-keyout", &pem, "-out", &format!("{pem}.crt")]))
            .expect_code(0);
            special.push_str(&format!(
                "smtpd_tls_security_level = may\nsmtpd_tls_cert_file = {pem}.crt\nsmtpd_tls_key_file = {pem}\nsmtpd_tls_loglevel = 1\n"
            ));
        }
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {home}/queue\ndata_directory = {home}/data\n\
             maillog_file = {home}/maillog\nmaillog_file_prefixes = {home}\nmyhostname = postfix.example.net\n\
             inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmynetworks = 127.0.0.0/8\nmydestination =\nalias_maps =\n\
             alias_database =\nbiff = no\nappend_dot_mydomain = no\nin_flow_delay = 0\n{special}"
        );
        fs::write(format!("{home}/etc/main.cf"), main).unwrap();
        fs::write(format!("{home}/etc/master.cf"), format!("{smtp} inet n - n - - smtpd\n{SERVICES}")).unwrap();
        let postfix = Self { directory, smtp };
        if run(tool("postfix").args(["-c", &format!("{home}/etc"), "start"])).code != Some(0) {
            return None;
        }
        eventually("Postfix to listen", || TcpStream::connect(smtp).ok());
        Some(postfix)
    }

    /// Sets this in main.cf and has it read.
    pub fn set(&self, setting: &str) {
        run(self.tool("postconf").args(["-e", setting])).expect_code(0);
        run(self.tool("postfix").arg("reload")).expect_code(0);
    }

    /// The files in its maildir: one a message.
    pub fn mailbox(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.directory.path().join("mail/box/new")).into_iter().flatten();
        files.map(|file| file.unwrap().path()).collect()
    }

    /// Its queue directory.
    pub fn queue(&self) -> PathBuf {
        self.directory.path().join("queue")
    }

    /// One of its own tools, for this instance.
    pub fn tool(&self, name: &str) -> Command {
        let mut command = tool(name);
        command.arg("-c").arg(self.directory.path().join("etc"));
        command
    }

    /// `sendmail ARGS`, with a message of LF lines.
    pub fn sendmail(&self, args: &[&str], message: &[u8]) {
        let path = self.directory.path().join("message");
        fs::write(&path, message).unwrap();
        let mut command = tool("sendmail");
        command.arg("-C").arg(self.directory.path().join("etc")).args(args).stdin(fs::File::open(path).unwrap());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("maillog")).unwrap_or_default()
    }
}

impl Postfix {
    fn is_master(&self, pid: Pid) -> bool {
        let directory = fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok();
        directory.is_some_and(|directory| directory == self.queue())
    }

    /// Stops it; its queue stays until the value goes.
    pub fn stop(&self) {
        // By the id that master itself wrote: never by name, this machine may run a Postfix of its own.
        let Ok(text) = fs::read_to_string(self.directory.path().join("queue/pid/master.pid")) else { return };
        let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else { return };
        // Stopped before: the number may be another's by now.
        if super::gone(pid.as_raw_nonzero().get().unsigned_abs()) || !self.is_master(pid) {
            return;
        }
        let _ = kill_process(pid, Signal::TERM);
        if !std::thread::panicking() {
            eventually("Postfix to stop", || super::gone(pid.as_raw_nonzero().get().unsigned_abs()).then_some(()));
        }
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- Postfix said:\n{}---", self.log());
        }
    }
}
