//! `restante queue`: lists and shows transactions; changes go through the daemon.

mod change;
mod entry;
mod history;
mod live;
mod remove;
mod show;
mod source;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use change::{actor, percent_encoded};
pub(crate) use entry::{Entry, all_entries};
pub(crate) use live::Live;
pub(crate) use source::Source;

use super::args::{Cli, Queue};
use super::output::Output;
use super::select::Selector;
use super::{exit, journal};
use crate::clock;

pub(crate) fn run(cli: &Cli, queue: &Queue, output: Output) -> anyhow::Result<u8> {
    match queue {
        Queue::Ls(selector) => list(cli, selector, Held::Pending, output),
        Queue::Show(which) => show::show(cli, which, output),
        Queue::Cat(which) => show::cat(cli, which.id, output),
        Queue::Flush(order) => change::flush(cli, order, output),
        Queue::Hold(order) => change::operate(cli, order, "hold", output, |n| format!("{n} on hold")),
        Queue::Release(order) => change::operate(cli, order, "release", output, |n| format!("{n} released")),
        Queue::Bounce(order) => remove::plan_or_act(cli, order, "bounce", output),
        Queue::Remove(order) => remove::plan_or_act(cli, order, "remove", output),
        Queue::Undo(order) => remove::undo(cli, order, output),
    }
}

/// What a listing is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// What is to be settled, and what was given up if the selector asks for it.
    Pending,
    /// Whatever the journal has.
    Everything,
}

pub(crate) fn list(cli: &Cli, selector: &Selector, held: Held, output: Output) -> anyhow::Result<u8> {
    let data = match journal::data_dir(cli, output) {
        Ok(data) => data,
        Err(code) => return Ok(code),
    };
    let summaries = output.json || selector.text.is_some();
    let now = clock::now();
    let everything = held == Held::Everything;
    let query = match selector.query(now) {
        query if everything => restante_index::Selector { pending: false, given_up: false, ..query },
        query => query,
    };
    let mut source = Source::open(&data, query, summaries, output)?;
    let live = Live::ask(cli);
    let is_listed = |entry: &&Entry<'_>| {
        (everything || entry.is_pending() || selector.wants_given_up()) && selector.matches(entry, now)
    };
    let (mut shown, mut on_hold, mut pending) = (0, 0, 0);
    loop {
        let page = source.next_page()?;
        if page.is_empty() {
            break;
        }
        for row in &page {
            for entry in all_entries(row, &live).iter().filter(is_listed) {
                if shown == 0 && !output.json {
                    output
                        .line(&format!("{:26}  {:>9}  {:>10}  {:8}  FROM -> TO  (next)", "ID", "AGE", "SIZE", "STATE"));
                }
                shown += 1;
                on_hold += u64::from(entry.state == "hold");
                pending += u64::from(entry.is_pending());
                if output.json {
                    output.object(&entry.to_json())
                } else {
                    output.line(&entry.in_words())
                }
                if output.is_closed() {
                    return Ok(exit::DONE);
                }
            }
        }
    }
    if !output.json {
        let hold = if on_hold > 0 { format!("; {on_hold} on hold will not move by themselves") } else { String::new() };
        let what = if everything { "settled" } else { "removed or bounced" };
        let settled = if shown > pending { format!("; {} {what}", shown - pending) } else { String::new() };
        output.line(&format!("{pending} pending{hold}{settled}"));
    }
    Ok(if shown == 0 && selector.narrows() { exit::NOTHING_MATCHED } else { exit::DONE })
}
