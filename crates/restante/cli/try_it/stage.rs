//! What the story plays with: the primary, the daemon, and the mail that was sent and arrived. Says nothing to anybody.

use super::binary::{self, Daemon, Run};
use super::message::{Account, Message, Received, Sent};
use super::primary::Primary;
use super::{LOOK_EVERY, WAIT_MAX, client};
use crate::clock;
use anyhow::{Context as _, bail};
use restante_envelope::TransactionId;
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::time::{Instant, sleep, timeout};

pub(super) struct Stage {
    dir: PathBuf,
    pub(super) primary: Primary,
    daemon: Option<Daemon>,
    sent: Vec<Sent>,
    received: Vec<Received>,
}

impl Stage {
    /// Builds it in an empty directory. The primary is off, the daemon not started.
    pub(super) fn build(dir: &Path) -> anyhow::Result<Self> {
        for name in ["sent", "received"] {
            fs::create_dir(dir.join(name))?;
        }
        let primary = Primary::new()?;
        Ok(Self { dir: dir.to_owned(), primary, daemon: None, sent: Vec::new(), received: Vec::new() })
    }

    pub(super) async fn start_daemon(&mut self) -> anyhow::Result<&Daemon> {
        let daemon = Daemon::start(&self.dir, self.primary.address()).await?;
        Ok(self.daemon.insert(daemon))
    }

    /// `kill -9`.
    pub(super) fn kill_daemon(&mut self) -> anyhow::Result<()> {
        self.daemon.take().context("no daemon to kill")?.kill().context("cannot kill the daemon")
    }

    pub(super) fn admin(&self) -> Option<SocketAddr> {
        self.daemon.as_ref().map(|daemon| daemon.admin)
    }

    /// Sends it to the daemon. A message without a 250 is a failure of the story; with one, it is owed.
    pub(super) async fn send(&mut self, message: Message) -> anyhow::Result<TransactionId> {
        let smtp = self.daemon.as_ref().context("no daemon to send to")?.smtp;
        let id = client::send(smtp, &message).await?;
        fs::write(self.dir.join("sent").join(format!("{id}.eml")), &message.content)?;
        self.sent.push(Sent { id, message });
        Ok(id)
    }

    pub(super) fn sent(&self) -> &[Sent] {
        &self.sent
    }

    /// How many recipients have a 250.
    pub(super) fn recipients(&self) -> u64 {
        self.sent.iter().map(|sent| sent.message.to.len() as u64).sum()
    }

    fn keep(&mut self, received: Received) -> anyhow::Result<()> {
        let name = format!("{:04}.eml", self.received.len() + 1);
        fs::write(self.dir.join("received").join(name), &received.content)?;
        self.received.push(received);
        Ok(())
    }

    /// Waits until the primary takes a message.
    pub(super) async fn arrival(&mut self) -> anyhow::Result<&Received> {
        let received = self.primary.next().await.context("the primary is gone")?;
        self.keep(received)?;
        self.received.last().context("just kept")
    }

    /// What became of everything sent so far.
    pub(super) fn account(&mut self) -> anyhow::Result<Account> {
        while let Some(received) = self.primary.next_now() {
            self.keep(received)?;
        }
        Ok(Account::of(&self.sent, &self.received))
    }

    /// Waits until all that was sent has arrived.
    pub(super) async fn everything_arrived(&mut self) -> anyhow::Result<Account> {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let account = self.account()?;
            if account.arrived == account.messages {
                return Ok(account);
            }
            match timeout(deadline.saturating_duration_since(Instant::now()), self.arrival()).await {
                Ok(arrived) => drop(arrived?),
                Err(_late) => bail!("after {} s: {account}", WAIT_MAX.as_secs()),
            }
        }
    }

    /// Runs a command of the real binary on the data directory.
    pub(super) async fn run(&self, args: &[&str]) -> anyhow::Result<Run> {
        binary::run(&self.dir, args).await?.succeeded()
    }

    /// Runs a command again and again until what it printed will do. Only for what changes without telling us.
    pub(super) async fn run_until(
        &self,
        args: &[&str],
        what: &str,
        will_do: impl Fn(&str) -> bool,
    ) -> anyhow::Result<Run> {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let run = self.run(args).await?;
            if will_do(&run.stdout) {
                return Ok(run);
            }
            if Instant::now() > deadline {
                bail!("`{}` did not show {what} within {} s:\n{}", run.command, WAIT_MAX.as_secs(), run.stdout);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until `verify` counts so many recipients as pending, and the rest of them as sent.
    pub(super) async fn balance(&self, pending: u64) -> anyhow::Result<()> {
        let accepted = self.recipients();
        let sent = accepted.saturating_sub(pending);
        let what = format!("{accepted} accepted = {pending} pending + {sent} sent");
        self.run_until(&["verify", "--json"], &what, |stdout| counts(stdout) == Some([accepted, pending, sent]))
            .await?;
        Ok(())
    }
}

/// `accepted`, `pending` and `sent` of the last line of `verify --json`.
fn counts(stdout: &str) -> Option<[u64; 3]> {
    let line: Value = serde_json::from_str(stdout.lines().last()?).ok()?;
    let count = |key| line.get(key)?.as_u64();
    Some([count("accepted")?, count("pending")?, count("sent")?])
}

/// The Date of a message made now.
pub(super) fn date() -> String {
    clock::now().to_rfc5322()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_is_not_read_from_another_line() {
        let last = r#"{"type":"verify","state":"clean","transactions":2,"accepted":3,"pending":1,"sent":2}"#;
        assert_eq!(counts(&format!("{{\"accepted\":9}}\n{last}\n")), Some([3, 1, 2]));
        assert_eq!(counts(&format!("{last}\nnot json")), None);
        assert_eq!(counts(""), None);
    }
}
