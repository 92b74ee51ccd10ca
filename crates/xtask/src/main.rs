//! Tasks of the people who work on Restante, as `cargo xtask TASK`. No part of the product: nothing depends on it, and
//! `cargo build` of the binary does not build it. Refuses to change anything but what a task says it writes.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to who runs it")]

mod backlog;
mod backup;
mod bench;
mod daemon;
mod hot;
mod machine;
mod peers;
mod readme;
mod sim;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
Tasks of the people who work on Restante.

Usage: cargo xtask TASK [OPTIONS]

Tasks:
  bench    Run the benches of the hot functions in release, and rewrite the tables of crates/benches/README.md
  sim      Play histories against the custody promise: `sim SEED` tells one, `sim --seeds A..B` sums up many, or tells the
           first that breaks a rule
  backlog  Fill a journal with pending messages by SMTP, kill the daemon, and tell how long it takes to say 250 again, what
           memory it needs and how fast `recover` reads: `backlog [--messages N]` [default: 1000000, which are 2.5 GB]
  backup   Take the same steady load in turns alone and beside a backup of the journal, and tell how long senders wait

Options of bench:
  --peers            Run the benchmark of the peers as well: three rounds of refjournal, Postfix and the release
                     binary. Needs root, installs Postfix in a chroot of its own, and takes more than half an hour
  --peers-dir DIR    Where that benchmark is [default: ../shared/bench, seen from the repository]

  -h, --help         This text

Exit codes: 0 done, 1 it failed, 2 the command line is wrong
";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    Help,
    /// With the directory of the peers' benchmark, if that is to run.
    Bench {
        peers: Option<PathBuf>,
    },
    /// With what the simulator is told.
    Sim(Vec<String>),
    /// With so many messages.
    Backlog(u64),
    Backup,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match parse(&arguments, &root()) {
        Ok(Task::Help) => {
            print!("{USAGE}");
            Ok(())
        }
        Ok(Task::Bench { peers }) => bench::run(&root(), peers.as_deref()),
        Ok(Task::Backlog(messages)) => backlog::run(&root(), messages),
        Ok(Task::Backup) => backup::run(&root()),
        Ok(Task::Sim(told)) => sim::run(&root(), &told),
        Err(wrong) => {
            eprintln!("xtask: {wrong}\nxtask: `cargo xtask --help` lists the tasks");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The repository: two above this package.
fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).unwrap_or(package).to_owned()
}

fn parse(arguments: &[String], root: &Path) -> Result<Task, String> {
    let mut words = arguments.iter().map(String::as_str);
    let task = words.next().unwrap_or("--help");
    let mut messages = 1_000_000;
    let (mut wants_peers, mut directory) = (false, root.join("../shared/bench"));
    let mut wants_help = matches!(task, "-h" | "--help" | "help");
    if let [sim, told @ ..] = arguments
        && sim == "sim"
    {
        return sim_told(told);
    }
    while let Some(word) = words.next() {
        match word {
            "-h" | "--help" => wants_help = true,
            "--messages" if task == "backlog" => {
                let number = words.next().and_then(|number| number.parse().ok()).filter(|number| *number > 0);
                messages = number.ok_or("--messages wants a number")?;
            }
            "--peers" if task == "bench" => wants_peers = true,
            "--peers-dir" if task == "bench" => directory = words.next().ok_or("--peers-dir wants a directory")?.into(),
            other => return Err(format!("`{other}` is no option of {task}")),
        }
    }
    match task {
        _ if wants_help => Ok(Task::Help),
        "bench" => Ok(Task::Bench { peers: wants_peers.then_some(directory) }),
        "backlog" => Ok(Task::Backlog(messages)),
        "backup" => Ok(Task::Backup),
        other => Err(format!("there is no task `{other}`")),
    }
}

fn sim_told(told: &[String]) -> Result<Task, String> {
    let words: Vec<&str> = told.iter().map(String::as_str).collect();
    match words[..] {
        [seed] if seed.parse::<u64>().is_ok() => Ok(Task::Sim(told.to_vec())),
        ["--seeds", range] if range.contains("..") => Ok(Task::Sim(told.to_vec())),
        _ if words.contains(&"-h") || words.contains(&"--help") => Ok(Task::Help),
        _ => Err("sim wants a SEED, or --seeds A..B".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Task, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&words, Path::new("/repository"))
    }

    #[test]
    fn a_misspelt_option_starts_a_run_of_half_an_hour() {
        assert_eq!(parsed("bench"), Ok(Task::Bench { peers: None }));
        assert_eq!(parsed("bench --peers"), Ok(Task::Bench { peers: Some("/repository/../shared/bench".into()) }));
        assert_eq!(parsed("bench --peers --peers-dir b"), Ok(Task::Bench { peers: Some("b".into()) }));
        assert!(parsed("bench --peer").is_err_and(|why| why.contains("`--peer`")));
        assert!(parsed("bench --peers-dir").is_err_and(|why| why.contains("wants a directory")));
        assert_eq!(parsed("backlog"), Ok(Task::Backlog(1_000_000)));
        assert_eq!(parsed("backlog --messages 7"), Ok(Task::Backlog(7)));
        assert!(parsed("backlog --messages many").is_err_and(|why| why.contains("a number")));
        assert!(parsed("backlog --peers").is_err_and(|why| why.contains("`--peers`")));
        assert_eq!(parsed("backup"), Ok(Task::Backup));
        assert!(parsed("backup --messages 7").is_err_and(|why| why.contains("no option of backup")));
        assert!(parsed("bnech").is_err_and(|why| why.contains("`bnech`")));
    }

    #[test]
    fn the_simulator_is_told_a_seed_or_a_range_and_nothing_else() {
        assert_eq!(parsed("sim 7"), Ok(Task::Sim(vec!["7".into()])));
        assert_eq!(parsed("sim --seeds 0..9"), Ok(Task::Sim(vec!["--seeds".into(), "0..9".into()])));
        for wrong in ["sim", "sim seven", "sim --seeds", "sim --seeds 7", "sim 7 8"] {
            assert!(parsed(wrong).is_err_and(|why| why.contains("--seeds A..B")), "{wrong}");
        }
    }

    #[test]
    fn help_is_to_be_had_everywhere() {
        for line in ["", "-h", "--help", "help", "bench --help", "bench --peers -h", "sim --help"] {
            assert_eq!(parsed(line), Ok(Task::Help), "{line}");
        }
    }
}
