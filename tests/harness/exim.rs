//! A real Exim of our own: its configuration, spool and log in a temporary directory; no daemon, it takes messages on its standard
//! input and delivers when told. It refuses to touch the machine's Exim; `tests/get-exim` unpacks one for the suite.

use super::{Finished, eventually, require_root, run, scratch, tool};
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// An Exim that relays everything to one server.
pub struct Exim {
    directory: TempDir,
    binary: PathBuf,
}

/// An Exim that takes mail.
pub struct Listener {
    child: Child,
    pub smtp: SocketAddr,
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

impl Drop for Exim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- Exim said:\n{}{}---", self.log("main"), self.log("panic"));
        }
    }
}

impl Exim {
    /// Relays to this port of 127.0.0.1, when it is told to.
    pub fn new(next: u16) -> Self {
        Self::configured(next, "accept", "")
    }

    /// The same, with other words of the ACL for RCPT, and more options of the transport.
    pub fn configured(next: u16, rcpt: &str, transport: &str) -> Self {
        require_root();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        run(&mut tool(root.join("tests/get-exim").to_str().unwrap())).expect_code(0);
        let (directory, binary) = (scratch(), root.join("target/peers/exim/usr/sbin/exim4"));
        let home = directory.path().display().to_string();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["spool", "log"] {
            fs::create_dir(format!("{home}/{name}")).unwrap();
            run(tool("chown").args(["Debian-exim", &format!("{home}/{name}")])).expect_code(0);
        }
        let text = format!(
            "primary_hostname = exim.example.net\nexim_path = {}\nspool_directory = {home}/spool\nlog_file_path = {home}/log/%s\n\
             pid_file_path = {home}/exim.pid\nexim_user = Debian-exim\nexim_group = Debian-exim\nkeep_environment =\n\
             split_spool_directory = true\nhost_lookup =\nrfc1413_query_timeout = 0s\ntrusted_users = root\n\
             acl_smtp_rcpt = rcpt\nacl_not_smtp = data\ndsn_advertise_hosts = *\ntls_advertise_hosts =\n\
             begin acl\nrcpt:\n  {rcpt}\ndata:\n  accept set acl_m_note = two\\nlines\n\
             begin routers\nprimary:\n  driver = manualroute\n  route_list = * 127.0.0.1::{next}\n  self = send\n  transport = out\n\
             begin transports\nout:\n  driver = smtp\n  message_linelength_limit = 1G\n  {transport}\nbegin retry\n* * F,2h,1s\n",
            binary.display()
        );
        fs::write(format!("{home}/conf"), text).unwrap();
        Self { directory, binary }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("-C").arg(self.directory.path().join("conf")).args(args);
        command
    }

    /// `exim ARGS`, to its end.
    pub fn run(&self, args: &[&str]) -> Finished {
        run(&mut self.command(args))
    }

    /// Takes a batch of SMTP commands, and delivers nothing.
    pub fn take(&self, batch: &[u8]) {
        let path = self.directory.path().join("batch");
        fs::write(&path, batch).unwrap();
        let mut command = self.command(&["-odq", "-bS"]);
        let output = command.stdin(Stdio::from(File::open(path).unwrap())).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Takes mail by SMTP, and delivers nothing, until the value is dropped.
    pub fn listen(&self) -> Listener {
        let reserved = TcpListener::bind("127.0.0.1:0").unwrap();
        let smtp = reserved.local_addr().unwrap();
        drop(reserved);
        let address = format!("127.0.0.1.{}", smtp.port());
        let mut command = self.command(&["-bdf", "-odq", "-oX", &address]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let listener = Listener { child, smtp };
        eventually("Exim to listen", || TcpStream::connect(smtp).ok());
        listener
    }

    /// What one of its logs says: `main`, `reject`, `panic`. Nothing if there is none.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join("log").join(name)).unwrap_or_default()
    }

    /// Its spool directory.
    pub fn spool(&self) -> PathBuf {
        self.directory.path().join("spool")
    }

    /// What it names the messages it holds.
    pub fn ids(&self) -> Vec<String> {
        let listed = self.run(&["-bpr"]).expect_code(0).out;
        let ids = listed.lines().filter(|line| line.contains('<')).filter_map(|line| line.split_whitespace().nth(2));
        let mut ids: Vec<String> = ids.map(str::to_owned).collect();
        // It lists them as the directory does.
        ids.sort_unstable();
        ids
    }
}
