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

use super::args::{Cli, Queue};
use super::output::Output;
use super::select::Selector;
use super::{exit, journal};
use crate::clock;
use live::Live;
use source::Source;

pub(crate) fn run(cli: &Cli, queue: &Queue, output: Output) -> anyhow::Result<u8> {
    match queue {
        Queue::Ls(selector) => list(cli, selector, output),
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

fn list(cli: &Cli, selector: &Selector, output: Output) -> anyhow::Result<u8> {
    let data = match journal::data_dir(cli, output) {
        Ok(data) => data,
        Err(code) => return Ok(code),
    };
    let summaries = output.json || selector.text.is_some();
    let now = clock::now();
    let mut source = Source::open(&data, selector.query(now), summaries, output)?;
    let live = Live::ask(cli);
    let is_listed =
        |entry: &&Entry<'_>| (entry.is_pending() || selector.wants_given_up()) && selector.matches(entry, now);
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
        let settled = if shown > pending { format!("; {} removed or bounced", shown - pending) } else { String::new() };
        output.line(&format!("{pending} pending{hold}{settled}"));
    }
    Ok(if shown == 0 && selector.narrows() { exit::NOTHING_MATCHED } else { exit::DONE })
}
