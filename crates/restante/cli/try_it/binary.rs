//! This very program as a child: the daemon, which can be killed, and commands that run to their end. No child outlives
//! its owner here; and if we are killed ourselves, the daemon sees its standard input close.

use super::message::DOMAIN;
use super::{LOOK_EVERY, WAIT_MAX};
use anyhow::{Context as _, bail};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use tokio::time::{Instant, sleep};

/// A child that is killed and reaped when it is no longer owned.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// `restante serve`, running.
pub(super) struct Daemon {
    child: Owned,
    pub(super) smtp: SocketAddr,
    pub(super) admin: SocketAddr,
}

impl Daemon {
    /// Starts it on the directory's `data`, and waits until it can say 250.
    pub(super) async fn start(dir: &Path, primary: SocketAddr) -> anyhow::Result<Self> {
        // A file, not a pipe: it neither fills nor breaks, and it is there to be read when something failed.
        let log = dir.join("daemon.log");
        let mut stderr = OpenOptions::new().create(true).read(true).append(true).open(&log)?;
        let start = stderr.seek(SeekFrom::End(0))?;
        let mut command = restante(dir)?;
        command.args(["serve", "--stop-with-stdin", "--hostname", "mx2.example.test", "--data", "data"]);
        command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        command.arg("--route").arg(format!("{DOMAIN}={primary}"));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(stderr.try_clone()?);
        let mut child = Owned(command.spawn().context("cannot start `restante serve`")?);
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            // In this order: what it said before it ended is all there when we read.
            let ended = child.0.try_wait()?;
            let said = text_from(&mut stderr, start)?;
            if let (Some(smtp), Some(admin)) = (ready(&said, "smtp"), ready(&said, "admin")) {
                return Ok(Self { child, smtp, admin });
            }
            if let Some(status) = ended {
                bail!("`restante serve` ended before it was ready ({status}): {}", said.trim_end());
            }
            if Instant::now() > deadline {
                bail!("`restante serve` was not ready within {} s: {}", WAIT_MAX.as_secs(), said.trim_end());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// `kill -9`, and waits until it is dead.
    pub(super) fn kill(mut self) -> io::Result<()> {
        self.child.0.kill()?;
        self.child.0.wait()?;
        Ok(())
    }
}

/// The address of a whole line `ready: WHAT HOST:PORT`.
fn ready(said: &str, what: &str) -> Option<SocketAddr> {
    let mut lines = said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    lines.find_map(|line| line.strip_prefix("ready: ")?.strip_prefix(what)?.trim().parse().ok())
}

/// A command that ran to its end.
pub(super) struct Run {
    /// As one would type it.
    pub(super) command: String,
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Runs `restante ARGS --data DIR/data`, and waits for its end.
pub(super) async fn run(dir: &Path, args: &[&str]) -> anyhow::Result<Run> {
    let data = dir.join("data");
    let typed = format!("restante {} --data {}", args.join(" "), data.display());
    let (mut out, mut err) = (tempfile::tempfile_in(dir)?, tempfile::tempfile_in(dir)?);
    let mut command = restante(dir)?;
    command.args(args).arg("--data").arg(&data);
    // Files, not pipes: however much it says, it never waits for us to read.
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
    let mut child = Owned(command.spawn().with_context(|| format!("cannot start `{typed}`"))?);
    let deadline = Instant::now() + WAIT_MAX;
    let status = loop {
        if let Some(status) = child.0.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            bail!("`{typed}` took longer than {} s", WAIT_MAX.as_secs());
        }
        sleep(LOOK_EVERY).await;
    };
    Ok(Run { command: typed, status, stdout: text_from(&mut out, 0)?, stderr: text_from(&mut err, 0)? })
}

impl Run {
    /// Its standard output, if it ended with 0.
    pub(super) fn succeeded(self) -> anyhow::Result<Self> {
        if !self.status.success() {
            bail!("`{}` failed ({}): {}", self.command, self.status, self.stderr.trim_end());
        }
        Ok(self)
    }
}

fn text_from(file: &mut File, start: u64) -> io::Result<String> {
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// This program, run from the directory: a `restante.toml` where we were started is not part of the story. In a process
/// group of its own: Ctrl-C is for us alone, and a child that dies of it is not mistaken for one that failed.
fn restante(dir: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("where is this program?")?);
    command.current_dir(dir).process_group(0);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_is_no_address_yet() {
        assert_eq!(ready("ready: smtp 127.0.0.1:25", "smtp"), None);
        let said = "a warning\nready: smtp 127.0.0.1:2525\nready: admin 127.0.0.1:80";
        assert_eq!(ready(said, "smtp"), Some(([127, 0, 0, 1], 2525).into()));
        assert_eq!(ready(said, "admin"), None);
        assert_eq!(ready(&format!("{said}25\n"), "admin"), Some(([127, 0, 0, 1], 8025).into()));
    }
}
