//! `restante try`: the whole story on loopback. A primary that can be switched off, mail that waits, a `kill -9`,
//! `recover`, mail that arrives; at the end every message is compared with what the primary got.
//!
//! Everything it makes is in one temporary directory, and the daemon is a child that ends with us. It proves with the
//! real binary and real sockets, and takes no short cut into the daemon's inside.

mod binary;
mod client;
mod message;
mod narrator;
mod primary;
mod stage;
mod story;
mod yours;

use super::exit;
use super::output::Output;
use anyhow::Context as _;
use message::Account;
use narrator::Narrator;
use serde_json::json;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};
/// No single wait of the story takes longer. On an idle machine the longest, a probe of the primary, takes 2.5 s.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// How often a condition is looked at that nobody tells us of: soon enough not to be felt.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Tells the story. 0 only if every message arrived byte for byte; what is there to look at stays if one did not.
pub(crate) fn run(output: Output) -> anyhow::Result<u8> {
    let interactive = !output.json && io::stdin().is_terminal() && io::stdout().is_terminal();
    let dir =
        tempfile::Builder::new().prefix("restante-try-").tempdir().context("cannot make a temporary directory")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(until_told_to_stop(story::tell(dir.path(), Narrator::new(output, interactive))))?;
    // The story is over, and its daemon with it: from here on nobody writes into the directory.
    drop(runtime);
    match ended {
        Some(Ok(account)) if account.is_whole() => {
            remove(dir, output);
            say_success(output, &account);
            Ok(exit::DONE)
        }
        Some(Ok(account)) => Ok(fail(output, &account.to_string(), Some(&account), &dir.keep())),
        Some(Err(error)) => Ok(fail(output, &format!("{error:#}"), None, &dir.keep())),
        None => {
            remove(dir, output);
            output.note("restante: interrupted; the daemon is stopped, and nothing is left behind");
            Ok(exit::INTERRUPTED)
        }
    }
}

/// None if a signal came first. What the future owned is dropped then: the daemon is among it.
async fn until_told_to_stop<T>(future: impl Future<Output = T>) -> io::Result<Option<T>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        done = future => Some(done),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
        _ = hangup.recv() => None,
    })
}

fn remove(dir: TempDir, output: Output) {
    let path = dir.path().to_owned();
    if let Err(error) = dir.close() {
        output.note(&format!("restante: cannot remove {}: {error}", path.display()));
    }
}

/// What to type next, for real: the program by the name by which it was just called.
fn next_command() -> String {
    let called = std::env::args().next().unwrap_or_else(|| "restante".into());
    format!("{called} serve --route example.com=mail.example.com")
}

fn say_success(output: Output, account: &Account) {
    if output.json {
        return output.object(&json!({
            "type": "try", "step": "result", "ok": true, "messages": account.messages, "arrived": account.arrived,
            "recipients": account.recipients, "duplicates": account.duplicates, "exit": exit::DONE, "next": next_command(),
        }));
    }
    output.line("");
    output.line(&account.to_string());
    output.line("");
    output.line("Your turn, with your own domain and mail server (no root needed; it listens on 127.0.0.1:2525):");
    output.line(&format!("    {}", next_command()));
    output.line(
        "README.md, \"Five minutes to a running backup MX\", tells about port 25, the service and the DNS records.",
    );
}

fn fail(output: Output, why: &str, account: Option<&Account>, evidence: &Path) -> u8 {
    if output.json {
        output.object(&json!({
            "type": "try", "step": "result", "ok": false, "error": why, "evidence": evidence,
            "messages": account.map(|a| a.messages), "arrived": account.map(|a| a.arrived),
            "duplicates": account.map(|a| a.duplicates), "exit": exit::FAILED,
        }));
    }
    output.note(&format!("restante: {why}"));
    output.note(&format!(
        "restante: kept for a look: {} (`daemon.log`, `data/` is the journal, `sent/` and `received/` are the messages)",
        evidence.display()
    ));
    exit::FAILED
}
