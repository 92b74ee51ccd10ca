//! `sim SEED`, `sim --seeds A..B`: plays histories, and tells of them. Decides nothing; `cargo xtask sim` starts it.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to who runs it")]

use restante_sim::{Broken, Failure, Plan, Summary, sweep};
use std::ops::Range;
use std::process::ExitCode;

const USAGE: &str = "\
Usage: sim SEED            plays one history and prints what happened in it
       sim --seeds A..B    plays those from A up to, not including, B; prints a summary, or the first that fails
";

/// Seeds that one thread takes at a time.
const SHARE: u64 = 25;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [seed] if let Ok(seed) = seed.parse() => one(seed),
        ["--seeds", range] if let Some(range) = parse(range) => many(range),
        _ => {
            eprint!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(range: &str) -> Option<Range<u64>> {
    let (from, to) = range.split_once("..")?;
    let range = from.parse().ok()?..to.parse().ok()?;
    (!range.is_empty()).then_some(range)
}

fn one(seed: u64) -> ExitCode {
    let (played, trace) = Plan::of_seed(seed).trace();
    println!("{}", trace.join("\n"));
    match played {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(failure) => failed(seed, &failure),
    }
}

fn failed(seed: u64, failure: &Failure) -> ExitCode {
    eprintln!("seed {seed}: {failure}");
    ExitCode::FAILURE
}

fn many(seeds: Range<u64>) -> ExitCode {
    let played = in_threads(&seeds);
    match played {
        Ok(summary) => {
            println!("{summary}; no rule was broken");
            ExitCode::SUCCESS
        }
        Err((seed, failure)) => {
            let (_, trace) = Plan::of_seed(seed).trace();
            println!("{}", trace.join("\n"));
            failed(seed, &failure)
        }
    }
}

/// On all processors: histories share nothing.
fn in_threads(seeds: &Range<u64>) -> Result<Summary, (u64, Failure)> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    std::thread::scope(|scope| {
        let share = |n: u64| {
            scope.spawn(move || {
                let mut summary = Summary::default();
                let mut from = seeds.start + n * SHARE;
                while from < seeds.end {
                    summary += sweep(from..seeds.end.min(from + SHARE), Broken::Nothing)?;
                    from += threads * SHARE;
                }
                Ok(summary)
            })
        };
        let running: Vec<_> = (0..threads).map(share).collect();
        let mut summary = Summary::default();
        let mut first = Ok(());
        for thread in running {
            match thread.join() {
                Ok(Ok(part)) => summary += part,
                Ok(Err((seed, failure))) => match &first {
                    Err((known, _)) if *known <= seed => {}
                    _ => first = Err((seed, failure)),
                },
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        first.map(|()| summary)
    })
}
