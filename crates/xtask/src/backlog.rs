//! `cargo xtask backlog`: a million messages wait for a primary that is not there, and the daemon is killed. How long until
//! it says 250 again, what it needs of memory, and how fast `recover` reads? Drives the release binary from outside, by SMTP
//! and its own words. Judges nothing: it prints a table.

use crate::bench::{cargo, succeed, target};
use crate::daemon::{Client, Daemon, fill};
use crate::machine;
use anyhow::{Context as _, Result, ensure};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Bytes of content of each message.
const CONTENT_BYTES: usize = 2 << 10;
/// What runs behind the first 250 (index, log, the scrub) has shown by then what memory it takes.
const SETTLE: Duration = Duration::from_secs(20);

/// What one start came to.
struct Started {
    first_250: Duration,
    peak_kib: u64,
    settled_kib: u64,
    peak_later_kib: u64,
}

/// Fills a journal in `target/backlog` with `messages`, and measures.
pub(crate) fn run(root: &Path, messages: u64) -> Result<()> {
    succeed(cargo(root).args(["build", "--release", "--locked", "--quiet"]))?;
    let (binary, data) = (target(root).join("release/restante"), target(root).join("backlog"));
    if data.exists() {
        fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))?;
    }
    eprintln!("xtask: {messages} messages of {CONTENT_BYTES} bytes come in");
    let began = Instant::now();
    let daemon = Daemon::start(&binary, &data)?;
    fill(daemon.smtp, messages, CONTENT_BYTES)?;
    let rate = messages as f64 / began.elapsed().as_secs_f64();
    daemon.kill()?;
    let mut table = format!("{}\n\n", machine::about(root)?);
    writeln!(table, "{messages} messages of {CONTENT_BYTES} bytes, taken at {rate:.0}/s, all pending.\n")?;
    table.push_str("| start | first 250 | peak until then | resident later | peak later |\n|---|---|---|---|---|\n");
    for what in ["after kill -9", "after kill -9 again", "after a clean stop"] {
        let started = measure(&binary, &data, what == "after kill -9 again")?;
        let mib = |kib: u64| kib / 1024;
        writeln!(
            table,
            "| {what} | {:.2} s | {} MiB | {} MiB | {} MiB |",
            started.first_250.as_secs_f64(),
            mib(started.peak_kib),
            mib(started.settled_kib),
            mib(started.peak_later_kib)
        )?;
    }
    recover(&binary, &data, &mut table)?;
    println!("{table}");
    fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))
}

/// Starts it, has one message taken, looks at its memory, and ends it.
fn measure(binary: &Path, data: &Path, cleanly: bool) -> Result<Started> {
    let began = Instant::now();
    let daemon = Daemon::start(binary, data)?;
    Client::connect(daemon.smtp)?.message(0, CONTENT_BYTES)?;
    let (first_250, peak_kib) = (began.elapsed(), daemon.memory("VmHWM")?);
    eprintln!("xtask: first 250 after {:.2} s", first_250.as_secs_f64());
    std::thread::sleep(SETTLE);
    let (settled_kib, peak_later_kib) = (daemon.memory("VmRSS")?, daemon.memory("VmHWM")?);
    if cleanly {
        daemon.stop()?
    } else {
        daemon.kill()?
    }
    Ok(Started { first_250, peak_kib, settled_kib, peak_later_kib })
}

fn recover(binary: &Path, data: &Path, table: &mut String) -> Result<()> {
    let mut bytes = 0;
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(".rj") {
            bytes += entry.metadata()?.len();
        }
    }
    let began = Instant::now();
    let done = Command::new(binary).args(["recover", "--json", "--data"]).arg(data).output()?;
    let took = began.elapsed().as_secs_f64();
    ensure!(done.status.success(), "recover: {}", String::from_utf8_lossy(&done.stderr));
    let rate = bytes as f64 / took / 1e6;
    writeln!(table, "\n`recover` read {:.0} MB in {took:.2} s: {rate:.0} MB/s.", bytes as f64 / 1e6)?;
    Ok(())
}
