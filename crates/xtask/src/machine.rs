//! What a figure is worth nothing without: the commit, the time, the machine and how busy it was.

use crate::bench::said;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// One line of Markdown. The commit has a `+` if anything but the tables themselves differs from it.
pub(crate) fn about(root: &Path) -> Result<String> {
    let git = |arguments: &[&str]| said(Command::new("git").current_dir(root).args(arguments));
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--", ".", ":!crates/benches/README.md"])?;
    let dirty = if changes.is_empty() { "" } else { "+" };
    let now = jiff::Timestamp::now().strftime("%F %H:%M UTC");
    let cores = std::thread::available_parallelism().context("count the cores")?;
    let cpus = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .unwrap_or(("", "unknown CPU"))
        .1;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's version")?;
    let load = fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or("?");
    let rustc = said(Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("--version"))?;
    Ok(format!(
        "Commit {commit}{dirty}, {now}; {cores} cores, {model}, Linux {}, {rustc}; load before: {load}.",
        kernel.trim()
    ))
}
