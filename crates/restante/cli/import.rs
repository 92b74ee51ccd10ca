//! `restante journal import`: reads another server's queue and hands each message to the daemon, which decides about it.
//!
//! Never writes where it reads. Says of each message and recipient that is not taken which it is, where it is, and why.

use super::args::Cli;
use super::client::{Client, NoAnswer};
use super::exit;
use super::log_line::printable;
use super::output::Output;
use super::progress::{Progress, Unit};
use super::words;
use crate::import::{Format, Item, Letter, Listing, key, list, read};
use clap::Args;
use restante_envelope::{EnvelopeId, OriginalRecipient, RecipientDsn, Ret};
use restante_smtp::RECIPIENTS_MAX;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// At the same time, so that they share a sync.
const WORKERS: usize = 8;
/// Of what is larger, one at a time is in memory.
const SMALL_BYTES: usize = 4 << 20;
/// The first message waits until the daemon has read its journal; each, for the disk.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Whose queue it is
    #[arg(value_name = "FORMAT")]
    pub(crate) format: Format,
    /// Where it is, such as /var/spool/postfix
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// Of a maildir: for this recipient, whatever its headers say; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) to: Vec<String>,
    /// Say what would be taken and what not, and take nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What it came to.
#[derive(Debug, Default)]
struct Account {
    /// Messages of which somebody was taken; and so on.
    taken: u64,
    bytes: u64,
    held: u64,
    recipients: u64,
    /// Messages that are here already, whole.
    known: u64,
    /// Messages that the source has delivered to all.
    delivered: u64,
    refused: u64,
    unreadable: u64,
    left: u64,
    /// Recipients taken.
    routes: BTreeMap<String, u64>,
    /// Why it ended before its end.
    stopped: Option<NoAnswer>,
}

/// An import under way.
struct Run<'a> {
    args: &'a Import,
    client: Client,
    output: Output,
    account: Mutex<Account>,
    progress: Mutex<Progress>,
    large: Mutex<()>,
}

pub(crate) fn run(cli: &Cli, args: &Import, output: Output) -> anyhow::Result<u8> {
    if !args.to.is_empty() && args.format != Format::Maildir {
        output.note("restante: --to is for a maildir; the others say themselves whom their mail is for");
        return Ok(exit::USAGE);
    }
    let client = match Client::new(cli, None) {
        Ok(client) => client,
        Err(no) => {
            output.note(&no.why);
            return Ok(no.code);
        }
    };
    let Listing { items, left } = list(args.format, &args.path)?;
    if !args.dry_run
        && let Some(pid) = running(args.format, &args.path)
    {
        output.note(&format!(
            "restante: {} is running (process {pid}), and would deliver what is imported once more: stop it first; nothing was taken",
            args.format.as_str()
        ));
        return Ok(exit::FAILED);
    }
    let progress = Mutex::new(Progress::new(output, "import", Unit::Messages, items.len() as u64));
    let (account, large) = (Mutex::default(), Mutex::new(()));
    let run = Run { args, client, output, account, progress, large };
    for (path, why) in left {
        run.account().left += 1;
        run.tell("left", &path, None, why);
    }
    let queue = Mutex::new(items.iter());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS.min(items.len()) {
            scope.spawn(|| {
                loop {
                    // Not in a `while let`, which would hold the queue until the message is taken.
                    let next = locked(&queue).next();
                    let Some(item) = next else { return };
                    run.one(item);
                    locked(&run.progress).advance(1, "");
                    if run.account().stopped.is_some() {
                        return;
                    }
                }
            });
        }
    });
    drop(run.progress);
    let account = run.account.into_inner().unwrap_or_else(PoisonError::into_inner);
    account.tell(args, items.len(), output);
    Ok(account.code(items.len()))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run<'_> {
    fn account(&self) -> MutexGuard<'_, Account> {
        locked(&self.account)
    }

    /// What is not taken, and why.
    fn tell(&self, kind: &str, path: &Path, recipient: Option<&str>, why: &str) {
        let file = path.display().to_string();
        if self.output.json {
            self.output.object(&json!({"type": kind, "file": file, "recipient": recipient, "why": why}));
        } else {
            let of = recipient.map(|recipient| format!("<{recipient}> of ")).unwrap_or_default();
            self.output.line(&printable(&format!("{kind}: {of}{file}: {why}")));
        }
    }

    fn one(&self, item: &Item) {
        let letter = match read(self.args.format, item, &self.args.to) {
            Ok(letter) => letter,
            Err(why) => {
                self.account().unreadable += 1;
                return self.tell("unreadable", &item.path, None, &why.to_string());
            }
        };
        if letter.recipients.is_empty() {
            self.account().delivered += 1;
            return;
        }
        let _alone = (letter.content.len() > SMALL_BYTES).then(|| locked(&self.large));
        let (mut taken, mut refused) = (0, 0);
        for recipients in letter.recipients.chunks(RECIPIENTS_MAX) {
            match self.hand_over(item, &letter, recipients) {
                Ok(counts) => {
                    taken += counts.0;
                    refused += counts.1;
                }
                Err(no) => {
                    self.tell("left", &item.path, None, &no.why);
                    self.account().stopped.get_or_insert(no);
                    break;
                }
            }
        }
        let mut account = self.account();
        account.recipients += taken;
        account.refused += refused;
        if taken > 0 {
            account.taken += 1;
            account.bytes += letter.content.len() as u64;
            account.held += u64::from(letter.hold.is_some());
        } else if refused == 0 && account.stopped.is_none() {
            account.known += 1;
        }
    }

    /// How many recipients were taken, and how many refused.
    fn hand_over(&self, item: &Item, letter: &Letter, recipients: &[String]) -> Result<(u64, u64), NoAnswer> {
        let is_eight_bit = letter.content.iter().any(|b| !b.is_ascii());
        let asked = |to: &String| letter.asked.get(to).map(dsn_json);
        let needs_utf8 = std::iter::once(&letter.reverse_path).chain(recipients).any(|path| !path.is_ascii());
        let envelope = json!({
            "key": key(self.args.format, &item.name, letter),
            "from": letter.reverse_path,
            "to": recipients,
            "hold": letter.hold,
            "bytes": letter.content.len(),
            "body": if is_eight_bit { "8BITMIME" } else { "7BIT" },
            "smtputf8": letter.smtputf8 || needs_utf8,
            "ret": letter.dsn.ret.map(Ret::as_str),
            "envid": letter.dsn.envid.as_ref().map(EnvelopeId::as_str),
            "asked": recipients.iter().map(asked).collect::<Vec<_>>(),
            "has_bare": has_bare_line_ends(&letter.content),
        });
        let mut body = envelope.to_string().into_bytes();
        body.push(b'\n');
        let path = if self.args.dry_run { "/api/v1/import?dry_run=1" } else { "/api/v1/import" };
        if !self.args.dry_run {
            body.extend_from_slice(&letter.content);
        }
        let answer = self.client.give(path, body.into(), PATIENCE)?;
        let list = |key: &str| answer.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        let (taken, refused) = (list("taken"), list("refused"));
        for one in &refused {
            let text = |key: &str| one.get(key).and_then(Value::as_str).unwrap_or("?");
            self.tell("refused", &item.path, Some(text("addr")), text("why"));
        }
        if self.output.json && !taken.is_empty() {
            self.output.object(&json!({"type": "imported", "file": item.path.display().to_string(),
                "id": answer.get("id"), "from": letter.reverse_path, "to": taken, "size": letter.content.len(),
                "hold_reason": letter.hold, "dry_run": self.args.dry_run}));
        }
        let mut account = self.account();
        for (route, recipients) in answer.get("routes").and_then(Value::as_object).into_iter().flatten() {
            *account.routes.entry(route.clone()).or_default() += recipients.as_u64().unwrap_or(0);
        }
        Ok((taken.len() as u64, refused.len() as u64))
    }
}

/// What is asked for a recipient, as a command has it.
fn dsn_json(dsn: &RecipientDsn) -> Value {
    json!({"notify": dsn.notify.map(|notify| notify.to_string()),
        "orcpt": dsn.original.as_ref().map(OriginalRecipient::as_str)})
}

/// A CR or an LF alone: a dry run sends no content by which the daemon could know.
fn has_bare_line_ends(content: &[u8]) -> bool {
    let is_bare = |at: usize| match content.get(at) {
        Some(b'\r') => content.get(at + 1) != Some(&b'\n'),
        _ => at.checked_sub(1).and_then(|before| content.get(before)) != Some(&b'\r'),
    };
    memchr::memchr2_iter(b'\r', b'\n', content).any(is_bare)
}

impl Account {
    fn code(&self, found: usize) -> u8 {
        let is_whole = self.refused + self.unreadable + self.left == 0;
        match &self.stopped {
            Some(no) if self.taken == 0 => no.code,
            Some(_) => exit::PARTLY,
            None if is_whole && found == 0 => exit::NOTHING_MATCHED,
            None if is_whole => exit::DONE,
            None if self.taken + self.known + self.delivered == 0 => exit::FAILED,
            None => exit::PARTLY,
        }
    }

    fn tell(&self, args: &Import, found: usize, output: Output) {
        if let Some(no) = &self.stopped {
            output.note(&format!("restante: {}; run it again to go on", no.why));
        }
        if output.json {
            output.object(&json!({"type": "import", "format": args.format.as_str(),
                "path": args.path.display().to_string(), "dry_run": args.dry_run, "messages": found, "taken": self.taken,
                "recipients": self.recipients, "bytes": self.bytes, "hold": self.held, "known": self.known,
                "delivered": self.delivered, "refused": self.refused, "unreadable": self.unreadable, "left": self.left,
                "routes": self.routes, "complete": self.stopped.is_none()}));
            return;
        }
        let verb = if args.dry_run { "would be taken" } else { "taken" };
        output.line(&format!(
            "{found} message(s) in {}: {verb}: {}, {}, for {} recipient(s); {} on hold",
            printable(&args.path.display().to_string()),
            self.taken,
            words::bytes(self.bytes),
            self.recipients,
            self.held
        ));
        for (route, recipients) in &self.routes {
            output.line(&printable(&format!("  route {route}: {recipients} recipient(s)")));
        }
        for (count, what) in [
            (self.known, "message(s) were here already"),
            (self.delivered, "message(s) had nobody left to deliver to"),
            (self.refused, "recipient(s) were refused, and are left where they are"),
            (self.unreadable, "file(s) could not be read as a message, and are left where they are"),
            (self.left, "file(s) are no complete message, and are left where they are"),
        ] {
            if count > 0 {
                output.line(&format!("  {count} {what}"));
            }
        }
    }
}

/// The process that still works on this queue.
fn running(format: Format, path: &Path) -> Option<u32> {
    let (files, program) = match format {
        Format::Postfix => (vec![path.join("pid/master.pid")], "master"),
        // Its own default, and where Debian has it: for the machine's own spool alone.
        Format::Exim => {
            let debian = path.starts_with("/var/spool/exim4").then(|| PathBuf::from("/run/exim4/exim.pid"));
            (std::iter::once(path.join("exim-daemon.pid")).chain(debian).collect(), "exim")
        }
        Format::Maildir => return None,
    };
    files.iter().find_map(|file| process(file, program))
}

/// The process whose number is in this file, if it is there and of that name.
fn process(file: &Path, program: &str) -> Option<u32> {
    let pid: u32 = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
    // `12 (master) S ...`; a Z is one that ended, and that nobody asked about yet.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, state) = stat.split_once('(')?.1.rsplit_once(") ")?;
    (name.starts_with(program) && !state.starts_with('Z')).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_end_that_is_none_is_seen_wherever_it_stands() {
        for bare in ["\r", "\n", "a\rb\r\n", "a\r\r\n", "\na\r\n", "a\r\n\n", "a\r\nb\r"] {
            assert!(has_bare_line_ends(bare.as_bytes()), "{bare:?}");
        }
        assert!(["", "a", "\r\n", "a\r\n\r\nb"].iter().all(|whole| !has_bare_line_ends(whole.as_bytes())));
    }

    #[test]
    fn a_process_that_is_another_does_not_stop_an_import() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("exim-daemon.pid");
        std::fs::write(&file, format!("{}\n", std::process::id())).unwrap();
        let name = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(process(&file, name.trim()), Some(std::process::id()));
        assert_eq!(running(Format::Exim, directory.path()), None, "no Exim");
    }
}
