//! The benches of the hot functions: started by cargo, read back from the files that criterion leaves, told as a table.

use crate::bench::{cargo, succeed, target};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What one bench measured.
#[derive(Debug)]
pub(crate) struct Measured {
    /// `journal: scan`.
    function: String,
    /// `verify, 4,000 x 4 KiB`.
    input: String,
    /// Nanoseconds for the whole of the input: the median, and the interval that holds it with 95 %.
    ns: [f64; 3],
    amount: Amount,
    /// When it was written: the order of the run.
    written: SystemTime,
}

/// How much the input is.
#[derive(Debug, Clone, Copy)]
enum Amount {
    Bytes(u64),
    Elements(u64),
}

/// Runs all of them in release and returns what they measured, in the order in which they ran.
pub(crate) fn run(root: &Path) -> Result<Vec<Measured>> {
    let home = target(root).join("bench/criterion");
    if home.exists() {
        // Of a bench that was renamed, the old name would stay in the table.
        fs::remove_dir_all(&home).with_context(|| format!("remove {}", home.display()))?;
    }
    let arguments = ["bench", "--locked", "--package", "restante-benches", "--bench", "hot"];
    succeed(cargo(root).args(arguments).env("CRITERION_HOME", &home))?;
    let mut measured = Vec::new();
    for directory in results(&home)? {
        measured.push(read(&directory).with_context(|| format!("what criterion left in {}", directory.display()))?);
    }
    ensure!(!measured.is_empty(), "criterion left no results in {}", home.display());
    measured.sort_by_key(|one| one.written);
    Ok(measured)
}

/// The directories called `new` that hold estimates; `base` beside each is for criterion itself.
fn results(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let path = entry.with_context(|| format!("read {}", directory.display()))?.path();
        if path.is_dir() && path.ends_with("new") && path.join("estimates.json").exists() {
            found.push(path);
        } else if path.is_dir() {
            found.extend(results(&path)?);
        }
    }
    Ok(found)
}

fn read(directory: &Path) -> Result<Measured> {
    let file = directory.join("benchmark.json");
    let json = |file: &Path| -> Result<Value> { Ok(serde_json::from_str(&fs::read_to_string(file)?)?) };
    let (benchmark, estimates) = (json(&file)?, json(&directory.join("estimates.json"))?);
    let written = fs::metadata(&file)?.modified()?;
    measured(&benchmark, &estimates, written).context("a format that this task does not know")
}

fn measured(benchmark: &Value, estimates: &Value, written: SystemTime) -> Option<Measured> {
    let [name, value] = ["function_id", "value_str"].map(|key| benchmark.get(key).and_then(Value::as_str));
    let input: Vec<&str> = [name, value].into_iter().flatten().collect();
    let median = estimates.get("median")?;
    let interval = median.get("confidence_interval")?;
    let ns = [median.get("point_estimate"), interval.get("lower_bound"), interval.get("upper_bound")];
    let [Some(middle), Some(low), Some(high)] = ns.map(|ns| ns.and_then(Value::as_f64)) else { return None };
    let (unit, amount) = benchmark.get("throughput")?.as_object()?.iter().next()?;
    let amount = match unit.as_str() {
        "Bytes" => Amount::Bytes(amount.as_u64()?),
        "Elements" => Amount::Elements(amount.as_u64()?),
        _ => return None,
    };
    let function = benchmark.get("group_id")?.as_str()?.to_owned();
    Some(Measured { function, input: input.join(", "), ns: [middle, low, high], amount, written })
}

/// One row each.
pub(crate) fn table(results: &[Measured]) -> String {
    let mut table = "| function | input | time (median; 95 % interval) | throughput |\n|---|---|---|---|\n".to_owned();
    for Measured { function, input, ns: [ns, low, high], amount, .. } in results {
        let throughput = match *amount {
            Amount::Bytes(bytes) => format!("{:.0} MB/s", bytes as f64 / ns * 1e3),
            Amount::Elements(1) => format!("{}/s", thousands(1e9 / ns)),
            Amount::Elements(n) => format!("{}/s; {} each", thousands(n as f64 * 1e9 / ns), time(ns / n as f64)),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "| {function} | {input} | {} ({} to {}) | {throughput} |",
            time(*ns),
            time(*low),
            time(*high)
        );
    }
    table
}

/// Three digits, and the unit they need.
fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {unit}")
}

/// Three digits and then zeros, in groups: `4,280,000`.
fn thousands(number: f64) -> String {
    let step = 10_f64.powf((number.max(1.0).log10().floor() - 2.0).max(0.0));
    let digits = format!("{:.0}", (number / step).round() * step);
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(throughput: &str, median: f64) -> String {
        let benchmark = format!(r#"{{"group_id":"g: f","function_id":"a","value_str":"b","throughput":{throughput}}}"#);
        let estimates = format!(
            r#"{{"median":{{"confidence_interval":{{"lower_bound":{},"upper_bound":{}}},"point_estimate":{median}}}}}"#,
            median * 0.9,
            median * 1.1
        );
        let json = |text: &str| serde_json::from_str(text).unwrap();
        let one = measured(&json(&benchmark), &json(&estimates), SystemTime::UNIX_EPOCH).unwrap();
        table(&[one]).lines().nth(2).unwrap().to_owned()
    }

    #[test]
    fn a_time_of_a_batch_passes_for_that_of_one_message() {
        assert_eq!(
            of(r#"{"Elements":100}"#, 2e6),
            "| g: f | a, b | 2.00 ms (1.80 ms to 2.20 ms) | 50,000/s; 20.0 µs each |"
        );
        assert_eq!(of(r#"{"Elements":1}"#, 234.5), "| g: f | a, b | 234 ns (211 ns to 258 ns) | 4,260,000/s |");
        assert_eq!(of(r#"{"Bytes":4096}"#, 4096.0), "| g: f | a, b | 4.10 µs (3.69 µs to 4.51 µs) | 1000 MB/s |");
    }

    #[test]
    fn a_unit_is_dropped() {
        assert_eq!(
            [0.5, 99.96, 1e3, 12_345.0, 1.5e9].map(time),
            ["0.50 ns", "100.0 ns", "1.00 µs", "12.3 µs", "1.50 s"]
        );
        assert_eq!([1.0, 999.0, 1e3, 1_234_567.0].map(thousands), ["1", "999", "1,000", "1,230,000"]);
    }
}
