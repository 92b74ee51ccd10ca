//! The benchmark of the peers, which is not in this repository: found, run, and its results told as ratios of one run.

use crate::bench::{cargo, succeed, target};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An odd number, so that there is one in the middle.
const ROUNDS: &str = "3";
const PEERS: &str = "refjournal postfix restante";
const MEASURES: &str = "M1 M2 M3 M45 M6";

/// The script in `directory`, ready to be run; an error that says what is missing.
pub(crate) fn script(directory: &Path) -> Result<PathBuf> {
    let script = directory.join("run.sh");
    let Ok(script) = script.canonicalize() else {
        bail!("no benchmark of the peers: looked for {}; --peers-dir says where it is", script.display());
    };
    let us = fs::metadata("/proc/self").context("see who runs this")?.uid();
    ensure!(
        us == 0,
        "--peers needs root: {} puts each peer into a control group and a chroot of its own",
        script.display()
    );
    Ok(script)
}

/// Runs it over a release binary made now, and returns its results.
pub(crate) fn run(root: &Path, script: &Path) -> Result<String> {
    succeed(cargo(root).args(["build", "--release", "--locked", "--package", "restante"]))?;
    let binary = target(root).join("release/restante");
    let binary = binary.canonicalize().with_context(|| format!("find {}", binary.display()))?;
    let results = target(root).join("bench/results.tsv");
    fs::create_dir_all(target(root).join("bench")).context("make a place for the results")?;
    // The script adds to it, and rows of another run would change the medians.
    fs::write(&results, "").with_context(|| format!("empty {}", results.display()))?;
    let results = results.canonicalize()?;
    let mut command = Command::new("bash");
    command.arg(script).args(["-r", ROUNDS, "-p", PEERS, "-m", MEASURES]);
    command.env("RESTANTE_BIN", &binary).env("RESULTS", &results);
    succeed(&mut command).with_context(|| format!("what there is stands in {}", results.display()))?;
    fs::read_to_string(&results).with_context(|| format!("read {}", results.display()))
}

/// Of each measure that Restante has a number for: the medians of the rounds, and its ratios to refjournal and to Postfix.
pub(crate) fn table(results: &str) -> Result<String> {
    let mut order: Vec<(String, String)> = Vec::new();
    let mut values: BTreeMap<(&str, String, String), (Vec<f64>, &str)> = BTreeMap::new();
    for (n, line) in results.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let [peer, metric, params, value, unit] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!("line {} of the results has not five fields: {line}", n + 1);
        };
        let key = (metric.to_owned(), what(metric, params));
        if peer == "restante" && !order.contains(&key) {
            order.push(key.clone());
        }
        let (numbers, last_unit) = values.entry((peer, key.0, key.1)).or_default();
        // What is no number is a remark, such as why a peer could not take part.
        numbers.extend(value.parse::<f64>().ok());
        *last_unit = unit;
    }
    let mut table = "| measure | what | restante | refjournal | Postfix | : refjournal | : Postfix | unit |\n\
        |---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for (metric, what) in order {
        let of = |peer| values.get(&(peer, metric.clone(), what.clone()));
        let [ours, refjournal, postfix] =
            ["restante", "refjournal", "postfix"].map(|peer| of(peer).and_then(|(numbers, _)| median(numbers)));
        let Some(ours) = ours else { continue };
        // A unit may have remarks behind it.
        let unit = of("restante").map_or("", |(_, unit)| unit.split(':').next().unwrap_or_default());
        let value = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value}"));
        let ratio =
            |to: Option<f64>| to.filter(|to| *to > 0.0).map_or_else(String::new, |to| format!("{:.2}", ours / to));
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "| {metric} | {what} | {ours} | {} | {} | {} | {} | {unit} |",
            value(refjournal),
            value(postfix),
            ratio(refjournal),
            ratio(postfix)
        );
    }
    Ok(table)
}

/// What is measured, in the same words for every peer and round: of some, the numbers in the words are results themselves,
/// such as how many messages were in the queue.
fn what(metric: &str, params: &str) -> String {
    let params = params.trim();
    if !["M4idle", "M4conn", "M4queue", "M5"].iter().any(|counted| metric.starts_with(counted)) {
        return params.to_owned();
    }
    let mut words = String::new();
    for letter in params.chars() {
        match letter {
            '0'..='9' if words.ends_with('N') => {}
            '0'..='9' => words.push('N'),
            other => words.push(other),
        }
    }
    words
}

/// The one in the middle; of two, the smaller.
fn median(numbers: &[f64]) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULTS: &str = "\
machine\tinfo\t2 cores\t2026-11-22T18:00:00Z\tload 0.10
refjournal\tM1\ts=10 l=4096 \t1000\tmsgs/s
postfix\tM1\ts=10 l=4096 \t200\tmsgs/s
restante\tM1\ts=10 l=4096 \t5000\tmsgs/s
restante\tM1\ts=10 l=4096 \t800\tmsgs/s
restante\tM1\ts=10 l=4096 \t700\tmsgs/s
postfix\tM4idle\t5 processes\t40000\tkB RSS sum
restante\tM4idle\t1 processes\t10000\tkB RSS sum
postfix\tM3\tqueue of 4 KB messages, flush\t100\tmsgs/s: 5000 of 5000 in 5.0 s
restante\tM3\tqueue of 4 KB messages, flush\t300\tmsgs/s: 5000 of 5000 in 1.7 s
restante\tM2\ts=50 l=4096\t-\trefused: limit 20
";

    #[test]
    fn one_bad_round_moves_the_table() {
        let table = table(RESULTS).unwrap();
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| M1 | s=10 l=4096 | 800 | 1000 | 200 | 0.80 | 4.00 | msgs/s |",
                "| M4idle | N processes | 10000 |  | 40000 |  | 0.25 | kB RSS sum |",
                "| M3 | queue of 4 KB messages, flush | 300 |  | 100 |  | 3.00 | msgs/s |",
            ]
        );
    }

    #[test]
    fn a_cut_results_file_gives_half_a_table() {
        assert!(table("restante\tM1\ts=1").unwrap_err().to_string().starts_with("line 1 of the results"));
    }

    #[test]
    fn a_missing_benchmark_is_found_after_the_first_run() {
        let why = script(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(why.contains("looked for /nowhere/run.sh; --peers-dir says"), "{why}");
    }
}
