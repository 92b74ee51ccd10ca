//! What every scenario needs: the daemon, an SMTP client, a primary that records bytes, a ledger of 250s, Postfix, strace.
//! It refuses to wait without a deadline: each wait names what it waits for and fails with that name.

pub mod client;
pub mod daemon;
pub mod dns;
pub mod exim;
pub mod ledger;
pub mod load;
pub mod opensmtpd;
pub mod postfix;
pub mod sink;
#[cfg(test)]
mod small;
pub mod tls;
pub mod trace;

pub use client::{Client, Message, Reply, queued_id, stuffed};
pub use daemon::{Daemon, Serve};
pub use dns::Dns;
pub use ledger::Ledger;
pub use sink::{Received, Sink};
pub use small::Small;

use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The domain our route serves in every scenario.
pub const OURS: &str = "example.test";

/// Nothing here takes this long; a machine under load may. A test fails by what it waited for, not by how fast it came.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What installs every tool the suite uses, named by each failure for want of one.
const APT_GET: &str = "apt-get install --no-install-recommends postfix swaks libnet-ssleay-perl openssl strace python3";

/// Waits until `probe` has an answer; fails by `what` when [`PATIENCE`] is over.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A command that ended.
#[derive(Debug)]
pub struct Finished {
    /// None when a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Finished {
    /// Fails with both outputs unless the command ended with `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "exit code\n--- stdout\n{}\n--- stderr\n{}", self.out, self.err);
        self
    }

    /// Every line of stdout as the JSON object it must be, each with a `type`.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        let parse = |line: &str| {
            let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("not JSON ({e}): {line}"));
            assert!(value["type"].is_string(), "an object without \"type\": {line}");
            value
        };
        self.out.lines().map(parse).collect()
    }

    /// The last JSON line: the account that `recover` and `verify` end with.
    #[track_caller]
    pub fn account(&self) -> Value {
        self.json().pop().unwrap_or_else(|| panic!("no JSON on stdout; stderr: {}", self.err))
    }
}

/// Runs a command with no input to its end and returns what it said; kills it, and fails, when [`PATIENCE`] is over.
pub fn run(command: &mut Command) -> Finished {
    let name = format!("{command:?}");
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {program}: {e}\nit is installed by: {APT_GET}"));
    let (out, err) = (slurp(child.stdout.take().unwrap()), slurp(child.stderr.take().unwrap()));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("still running after {PATIENCE:?}: {name}\n{}\n{}", out.join().unwrap(), err.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Finished { code: status.code(), out: out.join().unwrap(), err: err.join().unwrap() }
}

fn slurp(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The binary under test, with nothing of the caller's that could change what it does.
pub fn restante() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_restante"));
    command.env("TZ", "UTC").env("NO_COLOR", "1");
    command
}

/// `restante ARGS --data DATA`, to its end.
pub fn cli(data: &Path, args: &[&str]) -> Finished {
    run(restante().args(args).arg("--data").arg(data))
}

/// The delivery log's lines of one kind. A line whose end is not there yet is one that is being written: a reader of a file that
/// grows may see its first half, as `tail -f` may.
pub fn logged(data: &Path, event: &str) -> Vec<Value> {
    let log = std::fs::read(data.join("log/delivery.jsonl")).unwrap_or_default();
    let lines = log.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let lines = lines.map(|line| serde_json::from_slice::<Value>(line).unwrap());
    lines.filter(|line| line["ev"] == event).collect()
}

/// A tool of the machine; where it is missing, [`run`] says how to install it.
pub fn tool(name: &str) -> Command {
    Command::new(name)
}

/// A temporary directory with a short path (a socket's path has 108 bytes), gone with the value.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("rst").tempdir().unwrap()
}

/// Scenarios in `needs_root` modules call this first: without root they fail, they do not pass unseen.
pub fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root (it mounts, or starts Postfix); leave such tests out with: cargo test -- --skip needs_root"
    );
}

/// Whether no process has this id, or only its unreaped remains.
pub fn gone(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    // The state follows the name, which stands in parentheses and may hold anything.
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}
