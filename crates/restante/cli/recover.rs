//! `restante recover`: the whole truth after a crash, with the daemon dead. Checks every byte, sets aside what is torn or
//! damaged, exports and delivers what is pending if asked to, and gives the account.
//!
//! Never writes into an old segment; a run that finds nothing to do adds nothing to the journal.

use super::account::{Account, count};
use super::args::{Cli, Recover};
use super::deliver::{self, NoPlan, Plan, Round};
use super::exit;
use super::export;
use super::journal::{self, Book, Contents};
use super::log_line::printable;
use super::output::Output;
use super::{owner, words};
use crate::clock;
use crate::serve::log::{self, Line, LogHandle, LogLimits};
use crate::serve::metrics::Metrics;
use anyhow::Context as _;
use restante_journal::{
    DirStorage, LockError, Orphan, Report, State, remove_parts, set_aside, set_orphans_aside, sync_last_segment,
};
use restante_ledger::{Balance, Ledger, RecipientState};
use serde_json::{Value, json};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

pub(crate) mod merge;
mod online;

use merge::{Merge, Merged};

/// What a run did besides reading.
#[derive(Default)]
struct Done {
    /// Names of files in the data directory.
    set_aside: Vec<String>,
    /// Files of messages that were never finished.
    removed: Vec<Orphan>,
    /// Messages.
    exported: Option<u64>,
    /// From each of the other journals.
    merged: Vec<Merged>,
    round: Option<Round>,
    /// Steps that failed, in words. None of them hides the account.
    errors: Vec<String>,
}

impl Done {
    /// What the step gave; if it failed, that is noted.
    fn note<T, E: Into<anyhow::Error>>(&mut self, what: &'static str, step: Result<T, E>) -> Option<T> {
        step.map_err(|error| self.errors.push(words::causes(&error.into().context(what)))).ok()
    }

    fn export(&mut self, args: &Recover, storage: &DirStorage, ledger: &Ledger) {
        if let Some(out) = &args.export
            && let Some(exported) = self.note("the export failed", export::export(storage, ledger, out))
        {
            self.exported = Some(exported.messages);
            self.errors.extend(exported.unreadable);
        }
    }
}

pub(crate) fn run(cli: &Cli, args: &Recover, output: Output) -> anyhow::Result<u8> {
    let dir = match journal::data_dir(cli, output) {
        Ok(dir) => dir,
        Err(code) => return Ok(code),
    };
    let storage = journal::open(&dir)?;
    let mut read_only = false;
    let _lock = match journal::take_lock(&storage, args.dry_run) {
        Ok(lock) => lock,
        // A rescued disk is mounted so. Nobody can write there, so nobody need be kept from it.
        Err(LockError::Io(error))
            if error.kind() == io::ErrorKind::ReadOnlyFilesystem && !args.deliver && args.from.is_empty() =>
        {
            read_only = true;
            None
        }
        Err(LockError::Held) if online::is_meant(args) => return Ok(online::run(cli, args, output)),
        Err(LockError::Held) => {
            let dir = dir.display();
            output.note(&format!("restante: a daemon, or another `recover`, holds {dir}: stop it first"));
            return Ok(exit::LOCKED);
        }
        Err(error) => return Err(error).with_context(|| format!("in {}", dir.display())),
    };
    let worked = work(cli, args, &dir, storage, read_only, output);
    if args.dry_run || read_only {
        return worked;
    }
    match (worked, owner::hand_over(&dir)) {
        (worked, Ok(())) => worked,
        (worked, Err(error)) => {
            let dir = dir.display();
            output.note(&format!("restante: cannot give what was made to the owner of {dir}, run chown: {error}"));
            worked.map(|code| if code == exit::DONE { exit::FAILED } else { code })
        }
    }
}

fn work(
    cli: &Cli,
    args: &Recover,
    dir: &Path,
    storage: DirStorage,
    read_only: bool,
    output: Output,
) -> anyhow::Result<u8> {
    let mut done = Done::default();
    let synced = args.dry_run
        || read_only
        || done.note("cannot sync the journal's last segment", sync_last_segment(&storage)).is_some();
    let mut merge = None;
    let contents = if args.from.is_empty() {
        journal::read(&storage, dir, output, "recover")?
    } else {
        let (contents, read) = Merge::read(&args.from, &storage, dir, output)?;
        merge = Some(read);
        contents
    };
    if let Some(merge) = merge.as_ref().filter(|_| args.dry_run) {
        merge.would(&contents.ledger).iter().for_each(|merged| merged.tell("would add", output));
    }
    // What is merged is delivered, too: then whereto is known later.
    let may_plan = args.deliver && (merge.is_none() || args.dry_run);
    let mut plan = match may_plan.then(|| deliver::plan(cli, args.to.as_ref(), &contents.ledger)).transpose() {
        Ok(plan) => plan,
        Err(no_plan) => return Ok(refuse(no_plan, output)),
    };
    if args.dry_run {
        return Ok(say_what_would_be_done(&contents, args, plan.as_ref(), output));
    }
    if merge.is_none() {
        done.export(args, &storage, &contents.ledger);
    }
    if read_only {
        output.note(&format!("{} is read-only: it was checked, and nothing in it was changed", dir.display()));
        let account = Account { replay: &contents.replay, balance: contents.ledger.balance() };
        tell(&account, &contents.ledger, &done, output);
        let code = exit_code(account.state(), account.balance, None);
        return Ok(if done.errors.is_empty() || code == exit::DAMAGED { code } else { exit::FAILED });
    }
    let mut kept = done.note("cannot set the bad bytes aside", set_aside(&storage, &contents.replay.report));
    if let Some(kept) = &mut kept {
        let moved = set_orphans_aside(&storage, &contents.replay);
        kept.extend(done.note("cannot set aside the orphans in blob/", moved).unwrap_or_default());
        let removed = remove_parts(&storage, &contents.replay);
        done.removed = done.note("cannot remove the unfinished files in blob/", removed).unwrap_or_default();
    }
    done.note("cannot remove the index", journal::remove_index(&storage));
    let mut book = Book::new(storage, contents);
    // A new segment says that the torn end counts no more: not before that end is set aside.
    let mut may_write = synced && kept.is_some();
    done.set_aside = kept.unwrap_or_default();
    if may_write && !book.replay().report.torn.is_empty() {
        may_write = done.note("the torn end of the journal cannot be closed", book.begin()).is_some();
    }
    if let Some(merge) = merge {
        match may_write {
            true => merge.run(&mut book, &mut done, output),
            false => done.errors.push("nothing was merged: the journal cannot be written".to_owned()),
        }
        done.export(args, &book.storage().clone(), &book.ledger);
        plan = match args.deliver.then(|| deliver::plan(cli, args.to.as_ref(), &book.ledger)).transpose() {
            Ok(plan) => plan,
            Err(no_plan) => {
                done.errors.push("nothing was delivered".to_owned());
                refuse(no_plan, output);
                None
            }
        };
    }
    let log = start_log(dir, &book, plan.as_ref(), output);
    match plan {
        Some(plan) if may_write => {
            let round = deliver::run(plan, &mut book, log.as_ref().map(|(handle, _)| handle), output);
            done.round = done.note("the delivery failed", round);
        }
        Some(_) => done.errors.push("nothing was delivered: the journal cannot be written".to_owned()),
        None => {}
    }
    let closed = book.close();
    if done.round.as_ref().is_none_or(|round| round.stopped.is_none()) {
        done.note("the journal cannot be closed", closed);
    }
    stop_log(log);
    let account = Account { replay: book.replay(), balance: book.ledger.balance() };
    tell(&account, &book.ledger, &done, output);
    let state = done.merged.iter().map(|merged| merged.state).fold(account.state(), State::max);
    let code = exit_code(state, account.balance, done.round.as_ref());
    Ok(if done.errors.is_empty() || code == exit::DAMAGED { code } else { exit::FAILED })
}

fn refuse(no_plan: NoPlan, output: Output) -> u8 {
    match no_plan {
        NoPlan::Config(invalid) => {
            output.note(invalid.render(output.color).trim_end());
            invalid.exit_code()
        }
        NoPlan::NoPrimary(routes) => {
            let routes: Vec<_> = routes.iter().map(ToString::to_string).collect();
            output.note(&format!(
                "restante: no configuration, and no record in the journal, says where the mail of {} goes: add --to HOST:PORT",
                routes.join(", ")
            ));
            exit::USAGE
        }
    }
}

type Log = (LogHandle, JoinHandle<()>);

/// The delivery log, with the line that says that we were here. A log that cannot be written stops nothing.
fn start_log(dir: &Path, book: &Book, plan: Option<&Plan>, output: Output) -> Option<Log> {
    if book.replay().segments == 0 {
        return None;
    }
    let served = book.ledger.served().map(|served| served.hostname.as_str());
    let node = plan.map(|plan| plan.settings.hostname.as_str()).or(served).unwrap_or("localhost");
    // The cursor stays: what the crash kept from the log is for the next start to tell, before what is told now.
    match log::start(dir.join("log"), node.to_owned(), Arc::new(Metrics::default()), LogLimits::default(), None) {
        Ok(log) => {
            let state = book.replay().report.state();
            let log = (log.handle, log.thread);
            log.0.write(Line::recovered(clock::now(), state.as_str(), book.ledger.balance().pending));
            Some(log)
        }
        Err(error) => {
            output.note(&format!("restante: cannot write the delivery log, going on without it: {error}"));
            None
        }
    }
}

fn stop_log(log: Option<Log>) {
    if let Some((handle, thread)) = log {
        drop(handle);
        // A log that panicked has lost lines, not mail.
        let _lines_lost = thread.join();
    }
}

/// Damage beats all; then 0 if nothing is pending, 3 if some was sent, 1 if none was.
fn exit_code(state: State, balance: Balance, round: Option<&Round>) -> u8 {
    match round {
        _ if state == State::Damaged || !balance.is_even() => exit::DAMAGED,
        None => exit::DONE,
        Some(round) if round.interrupted => exit::INTERRUPTED,
        Some(_) if balance.pending == 0 => exit::DONE,
        Some(round) if round.sent > 0 => exit::PARTLY,
        Some(_) => exit::FAILED,
    }
}

fn say_what_would_be_done(contents: &Contents, args: &Recover, plan: Option<&Plan>, output: Output) -> u8 {
    let account = Account { replay: &contents.replay, balance: contents.ledger.balance() };
    if output.json {
        let mut object = account.object("recover");
        object.insert("dry_run".into(), true.into());
        output.object(&object.into());
        return exit_code(account.state(), account.balance, None);
    }
    account.lines().iter().for_each(|line| output.line(line));
    for line in intentions(contents, args, plan) {
        output.line(&printable(&format!("would {line}")));
    }
    output.line(&account.verdict());
    output.line("dry run: nothing was changed");
    exit_code(account.state(), account.balance, None)
}

fn intentions(contents: &Contents, args: &Recover, plan: Option<&Plan>) -> Vec<String> {
    let mut lines = Vec::new();
    let (ranges, bytes) = bad_ranges(&contents.replay.report);
    if ranges > 0 {
        let ranges = count(ranges, "range");
        lines.push(format!("set aside {ranges} of {} in torn/, where that is not done yet", count(bytes, "byte")));
    }
    let (whole, parts): (Vec<&Orphan>, Vec<&Orphan>) = contents.replay.orphans.iter().partition(|orphan| orphan.whole);
    if !whole.is_empty() {
        let (files, bytes) = orphan_counts(whole);
        lines.push(match contents.replay.report.state() {
            State::Damaged => {
                format!("leave {files} of no message in blob/, {bytes}: what is damaged may be the record")
            }
            State::Clean | State::Torn => format!("set aside {files} of no message in torn/, {bytes}"),
        });
    }
    if !parts.is_empty() {
        let (files, bytes) = orphan_counts(parts);
        lines.push(format!("remove {files} of unfinished messages from blob/, {bytes}"));
    }
    if let Some(out) = &args.export {
        let messages = export::pending(&contents.ledger).count() as u64;
        lines.push(format!("export {} to {}", count(messages, "message"), out.display()));
    }
    for route in plan.map(|plan| plan.routes.as_slice()).unwrap_or_default() {
        let hops: Vec<_> = route.next_hops.iter().map(ToString::to_string).collect();
        let hops = if hops.is_empty() {
            "nobody: its primary is not known, --to names it".into()
        } else {
            hops.join(", then ")
        };
        lines.push(format!("offer {} of {} to {hops}", count(route.jobs.len() as u64, "message"), route.name));
    }
    lines
}

fn orphan_counts<'a>(orphans: impl IntoIterator<Item = &'a Orphan>) -> (String, String) {
    let (files, bytes) = orphans.into_iter().fold((0, 0), |(files, bytes), orphan| (files + 1, bytes + orphan.bytes));
    (count(files, "file"), count(bytes, "byte"))
}

/// As `set_aside` sees them.
fn bad_ranges(report: &Report) -> (u64, u64) {
    let places = report.torn.iter().chain(&report.damage);
    let with_bytes = places.filter(|place| place.has_bytes());
    with_bytes.fold((0, 0), |(ranges, bytes), place| (ranges + 1, bytes + place.bytes))
}

fn tell(account: &Account<'_>, ledger: &Ledger, done: &Done, output: Output) {
    let on_hold = on_hold(ledger);
    if output.json {
        let mut object = account.object("recover");
        object.insert("set_aside".into(), done.set_aside.clone().into());
        object.insert("removed_orphans".into(), done.removed.iter().map(|orphan| orphan.file.clone()).collect());
        object.insert("on_hold".into(), on_hold.into());
        object.insert("errors".into(), done.errors.clone().into());
        if let Some(exported) = done.exported {
            object.insert("exported".into(), exported.into());
        }
        if !done.merged.is_empty() {
            object.insert("from".into(), done.merged.iter().map(Merged::object).collect());
        }
        if let Some(round) = &done.round {
            object.append(&mut round_object(round));
        }
        output.object(&object.into());
        return;
    }
    account.lines().iter().for_each(|line| output.line(line));
    done.merged.iter().for_each(|merged| merged.tell("added", output));
    for name in &done.set_aside {
        output.line(&format!("set aside: {name}"));
    }
    if !done.removed.is_empty() {
        let (files, bytes) = orphan_counts(&done.removed);
        output.line(&format!("removed: {files} of unfinished messages from blob/, {bytes}"));
    }
    if let Some(exported) = done.exported {
        output.line(&format!("exported: {}", count(exported, "message")));
    }
    if let Some(round) = &done.round {
        round_lines(round).iter().for_each(|line| output.line(line));
    }
    done.errors.iter().for_each(|error| output.line(&format!("failed: {}", printable(error))));
    output.line(&account.verdict());
    next_steps(account.balance.pending, on_hold, done.round.is_some()).iter().for_each(|line| output.line(line));
}

/// Recipients that nothing moves but an operator.
fn on_hold(ledger: &Ledger) -> u64 {
    let recipients = ledger.iter().flat_map(|(_, transaction)| transaction.recipients.iter());
    recipients.filter(|entry| matches!(entry.state, RecipientState::Hold | RecipientState::Refused)).count() as u64
}

fn round_object(round: &Round) -> serde_json::Map<String, Value> {
    let skipped = |skipped: &deliver::Skipped| json!({"route": skipped.route.as_str(), "recipients": skipped.recipients, "why": skipped.why});
    let mut object = serde_json::Map::new();
    for (key, recipients) in [
        ("delivered", round.sent),
        ("deferred", round.deferred),
        ("held", round.held),
        ("unreadable", round.quarantined),
    ] {
        object.insert(key.into(), recipients.into());
    }
    object.insert("skipped".into(), round.skipped.iter().map(skipped).collect());
    object.insert("interrupted".into(), round.interrupted.into());
    object
}

fn round_lines(round: &Round) -> Vec<String> {
    let mut lines = vec![format!("delivery: {} sent, {} deferred", count(round.sent, "recipient"), round.deferred)];
    for (recipients, what) in
        [(round.held, "refused for good and put on hold"), (round.quarantined, "not readable any more and quarantined")]
    {
        if recipients > 0 {
            lines.push(format!("delivery: {} {what}", count(recipients, "recipient")));
        }
    }
    for skipped in &round.skipped {
        let recipients = count(skipped.recipients, "recipient");
        lines.push(format!("delivery: {recipients} of {} not tried: {}", skipped.route, printable(&skipped.why)));
    }
    lines
}

fn next_steps(pending: u64, on_hold: u64, delivered: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let waiting = pending.saturating_sub(on_hold);
    match (waiting, delivered) {
        (0, _) if on_hold == 0 => lines.push("next: nothing to do, nothing is pending".to_owned()),
        (0, _) => {}
        (_, false) => lines.push(format!(
            "next: {} waiting: start the daemon, or run `restante recover --deliver`",
            count(waiting, "recipient")
        )),
        (_, true) => lines.push(format!(
            "next: {} still waiting: start the daemon, which goes on trying, or run `restante recover --deliver` again",
            count(waiting, "recipient")
        )),
    }
    if on_hold > 0 {
        lines.push(format!(
            "next: {} on hold, which only a person ends: start the daemon, then `restante queue release --all --reason TEXT`",
            count(on_hold, "recipient")
        ));
    }
    lines
}

#[cfg(test)]
mod tests;
