//! `restante replay`: deliver again what was delivered in a time range, for a primary that lost it. First what would be done
//! (`--dry-run`), then a few messages at a time: by the daemon if one runs, else by this command with the journal's lock.
//!
//! It lives as long as the command: whoever presses Ctrl-C wants it to end, and the same command goes on where it was. Changes
//! nothing about how recipients stand.

mod account;
mod args;
mod hand;
mod past;

pub(crate) use args::Replay;

use super::args::Cli;
use super::deliver;
use super::journal::{self, Book, Contents};
use super::log_line::printable;
use super::output::Output;
use super::progress::{Axis, Progress, Unit};
use super::queue::actor;
use super::{exit, owner};
use crate::clock;
use crate::config::{self, Config, Invalid};
use crate::replay::{Item, Order, Tally};
use crate::routing;
use account::{Account, Plan};
use anyhow::Context as _;
use hand::{Hand, Interrupts};
use past::{Choice, Past, Planned};
use restante_courier::Target;
use restante_envelope::RouteName;
use restante_journal::{Depth, DirStorage, LockError, ReplayError, set_aside, sync_last_segment};
use restante_ledger::{Ledger, Served};
use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

pub(crate) const HELP: &str = "\
Everything that matches arrives at the primary once more, with a header X-Restante-Replay: whoever still has it gets it twice.
Run it with --dry-run first. What was taken is recorded in the journal message by message: run the same command again, and it
goes on where it was. --again 2 begins anew. Beside a daemon the daemon sends; with it dead this command does.

Exit codes:
  0 done                     4 the selector matched nothing
  1 failed                   5 daemon unreachable
  2 usage                    6 configuration invalid
  3 partly done, or a part   7 not permitted
    is gone or was refused   8 another replay, or another command, is at work
 12 another replay wrote meanwhile: run it again
130 interrupted: run the same command again";

/// A segment may leave while the journal is read.
const READS_MAX: usize = 4;
/// Messages in a row of which the primary took none, and refused none for good: it takes nothing now. Many, for they may all be one
/// full mailbox's, and others come behind them.
const UNMOVED_IN_A_ROW_MAX: u64 = 500;
/// How often somebody who waits for the next second looks whether Ctrl-C was pressed.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(crate) fn run(cli: &Cli, args: &Replay, output: Output) -> anyhow::Result<u8> {
    let dir = match journal::data_dir(cli, output) {
        Ok(dir) => dir,
        Err(code) => return Ok(code),
    };
    if !args.dry_run
        && let Err(why) = args.is_fixed(clock::now())
    {
        output.note(&format!("restante: {why}"));
        return Ok(exit::USAGE);
    }
    let storage = journal::open(&dir)?;
    let lock = match args.dry_run {
        true => None,
        false => match journal::take_lock(&storage, false) {
            Ok(lock) => lock,
            Err(LockError::Held) => None,
            Err(error) => return Err(error).with_context(|| format!("in {}", dir.display())),
        },
    };
    let is_live = lock.is_none() && storage.is_locked().unwrap_or(false);
    let mut book = None;
    let past = if lock.is_some() {
        sync_last_segment(&storage).context("cannot sync the journal's last segment")?;
        let (past, replay) = read(&storage, args)?;
        set_aside(&storage, &replay.report).context("cannot set torn or damaged bytes aside")?;
        let ledger = past.1;
        book = Some(Book::new(storage.clone(), Contents { ledger, replay }));
        past.0
    } else {
        read(&storage, args)?.0.0
    };
    let worked = work(cli, args, &storage, (past, book, is_live), output);
    if lock.is_some()
        && let Err(error) = owner::hand_over(&dir)
    {
        let dir = dir.display();
        output.note(&format!("restante: cannot give what was made to the owner of {dir}, run chown: {error}"));
    }
    worked
}

type Read = ((Past, Ledger), restante_journal::Replay);

fn read(storage: &DirStorage, args: &Replay) -> Result<Read, ReplayError> {
    for _ in 1..READS_MAX {
        match read_once(storage, args) {
            Err(ReplayError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            read => return read,
        }
    }
    read_once(storage, args)
}

fn read_once(storage: &DirStorage, args: &Replay) -> Result<Read, ReplayError> {
    let mut both = past::Both { past: Past::new(args), ledger: Ledger::new() };
    let replay = restante_journal::replay(storage, Depth::Records, &mut both)?;
    Ok(((both.past, both.ledger), replay))
}

fn work(
    cli: &Cli,
    args: &Replay,
    storage: &DirStorage,
    (past, book, is_live): (Past, Option<Book>, bool),
    output: Output,
) -> anyhow::Result<u8> {
    let config = match config::resolve(&cli.flags()) {
        Ok(config) => Some(config),
        Err(Invalid::NoFile { .. }) => None,
        Err(_) if args.to.is_some() || is_live => None,
        Err(invalid) => {
            output.note(invalid.render(output.color).trim_end());
            return Ok(invalid.exit_code());
        }
    };
    let (served, end) = (past.served.clone(), past.end);
    let choice = past.choose(storage, args, &args.selector(), clock::now());
    let primaries = primaries(args, &choice.routes, config.as_ref(), served.as_ref(), is_live);
    if choice.recipients == 0 && choice.gone == 0 {
        output.note("restante: nothing that matches was delivered in that time, as far as the journal goes back");
        if let Some(begins) = choice.begins {
            output.note(&format!("restante: what was settled before {begins} may have left the journal"));
        }
    }
    if !primaries.is_empty() && primaries.iter().all(Vec::is_empty) {
        let routes: Vec<_> = choice.routes.iter().map(ToString::to_string).collect();
        let routes = routes.join(", ");
        output.note(&format!(
            "restante: no configuration, and no record in the journal, says where the mail of {routes} goes: add --to HOST:PORT"
        ));
        return Ok(exit::USAGE);
    }
    let plan = Plan { args, primaries: &primaries, choice: &choice };
    if args.dry_run {
        plan.tell(storage, output);
        return Ok(nothing_matched(args, &choice).unwrap_or(exit::DONE));
    }
    let order = Order { job: args.job(), actor: actor(), reason: args.reason.clone().unwrap_or_default() };
    let us = config.as_ref().map(|config| config.hostname.clone()).or(served.map(|served| served.hostname));
    let us = us.filter(|us| !us.is_empty()).unwrap_or_else(|| "localhost".to_owned());
    let interrupts = Interrupts::listen().context("cannot listen for signals")?;
    let mut hand = match book {
        Some(book) => {
            Hand::ours(order, routing::without_daemon(config.as_ref(), us, clock::entropy()), book, &primaries)?
        }
        None => match Hand::daemon(cli, order, end, &primaries) {
            Ok(hand) => hand,
            Err(no) => {
                output.note(&format!("restante: {}", no.why));
                return Ok(no.code);
            }
        },
    };
    plan.begin(output);
    let mut account = Account::default();
    deliver_all(&mut hand, &choice.planned, args, &mut account, &interrupts, output);
    if let Err(error) = hand.close() {
        account.trouble.get_or_insert((exit::FAILED, error.to_string()));
    }
    account.tell(&plan, output);
    Ok(nothing_matched(args, &choice).unwrap_or_else(|| account.exit_code(&choice)))
}

fn nothing_matched(args: &Replay, choice: &Choice) -> Option<u8> {
    (choice.recipients == 0 && choice.gone == 0).then_some(if args.all { exit::DONE } else { exit::NOTHING_MATCHED })
}

/// Of each route. Where a daemon runs, it is asked to send where it sends.
fn primaries(
    args: &Replay,
    routes: &[RouteName],
    config: Option<&Config>,
    served: Option<&Served>,
    is_live: bool,
) -> Vec<Vec<Target>> {
    let of = |route: &RouteName| match &args.to {
        Some(to) => vec![routing::target(to)],
        None => {
            let running = if is_live { deliver::next_hops(route, None, served) } else { Vec::new() };
            if running.is_empty() { deliver::next_hops(route, config, served) } else { running }
        }
    };
    routes.iter().map(of).collect()
}

/// A second's worth at a time.
fn deliver_all(
    hand: &mut Hand,
    planned: &[Planned],
    args: &Replay,
    account: &mut Account,
    interrupts: &Interrupts,
    output: Output,
) {
    let mut progress = Progress::new(output, "replay", Unit::Messages, planned.len() as u64);
    let ends = [planned.first(), planned.last()].map(|planned| planned.map(|planned| planned.delivered_at));
    let axis = Axis::new("replaying", ends);
    let mut left = BTreeSet::new();
    let (mut unmoved, mut named) = (0, 0);
    let mut rest = planned;
    while let Some(some) = rest.get(..rest.len().min(args.rate.into())).filter(|some| !some.is_empty()) {
        let began = Instant::now();
        if interrupts.is_pressed() {
            account.interrupted = true;
            return;
        }
        let is_offered = |(_, one): &(usize, &Planned)| !left.contains(&one.item.primary);
        let offered = some.iter().enumerate().filter(is_offered);
        let (places, items): (Vec<usize>, Vec<Item>) = offered.map(|(nth, one)| (nth, one.item.clone())).unzip();
        let tally = match items.is_empty() {
            true => Tally::default(),
            false => match hand.deliver(&items, interrupts) {
                Ok(tally) => tally,
                Err(no) => {
                    account.trouble = Some((no.code, no.why));
                    return;
                }
            },
        };
        left.extend(tally.left.iter().map(|(primary, _)| *primary));
        for (primary, why) in &tally.left {
            output.note(&printable(&format!("restante: {} takes nothing now: {why}", hand.name(*primary))));
        }
        unmoved = match tally.later + tally.in_doubt {
            _ if tally.moved > 0 => 0,
            0 => unmoved,
            _ => unmoved + tally.tried,
        };
        // Those behind the last that had its turn are next.
        let done = usize::try_from(tally.tried).ok().and_then(|tried| places.get(tried)).copied().unwrap_or(some.len());
        let (some, tried) = (some.get(..done).unwrap_or(some), tally.tried);
        rest = rest.get(done..).unwrap_or_default();
        account.tally.add(tally);
        for name in account.tally.named.iter().skip(named) {
            output.note(&printable(&format!("restante: {name}")));
        }
        named = account.tally.named.len();
        if let Some(why) = account.tally.stopped.take() {
            account.interrupted = interrupts.is_pressed();
            account.trouble = Some((exit::PARTLY, why)).filter(|_| !account.interrupted);
            return;
        }
        let last = some.last().map(|last| axis.at(last.delivered_at)).unwrap_or_default();
        progress.advance(some.len() as u64, &last);
        if unmoved >= UNMOVED_IN_A_ROW_MAX {
            account.trouble = Some((exit::PARTLY, format!("{unmoved} messages in a row were not taken for now")));
            return;
        }
        // As long as these may take at this pace.
        let second = Duration::from_secs(1).mul_f64(tried as f64 / f64::from(args.rate));
        while !rest.is_empty() && began.elapsed() < second && !interrupts.is_pressed() {
            std::thread::sleep(LOOK_EVERY.min(second));
        }
    }
}
