//! `cargo xtask backup`: how much later does a sender hear its 250 while the journal is backed up? The same steady load, in
//! turns with and without a backup of all that is there, from outside. Judges nothing: it prints a table.

use crate::bench::{cargo, succeed, target};
use crate::daemon::{Client, Daemon, fill};
use crate::machine;
use anyhow::{Context as _, Result, anyhow, ensure};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What is there to be copied when the first backup begins.
const HELD_MESSAGES: u64 = 25_000;
const HELD_BYTES: usize = 16 << 10;
/// Of each message of the load: a quarter of what the backup copies in a second, or each would take much longer than the last.
const CONTENT_BYTES: usize = 4 << 10;
/// Messages in a second, of all connections together.
const RATE: u32 = 1_000;
const CONNECTIONS: u32 = 32;
/// Without a backup; with one it goes on until that is done.
const ALONE: Duration = Duration::from_secs(30);
const ROUNDS: usize = 3;

/// How long the 250s of one turn took, from the moment when each message was due: one that waited for the one before it on
/// its connection waited, too.
struct Turn {
    sorted: Vec<Duration>,
    took: Duration,
}

impl Turn {
    /// In milliseconds.
    fn percentile(&self, per_mille: usize) -> f64 {
        let at = (self.sorted.len().saturating_sub(1)) * per_mille / 1000;
        self.sorted.get(at).map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e3)
    }
}

/// Fills a journal in `target/backup`, and measures.
pub(crate) fn run(root: &Path) -> Result<()> {
    succeed(cargo(root).args(["build", "--release", "--locked", "--quiet"]))?;
    let (binary, place) = (target(root).join("release/restante"), target(root).join("backup"));
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    fs::create_dir_all(&place)?;
    let data = place.join("data");
    let mut table = format!("{}\n\n", machine::about(root)?);
    let daemon = Daemon::start(&binary, &data)?;
    eprintln!("xtask: {HELD_MESSAGES} messages of {HELD_BYTES} bytes come in");
    fill(daemon.smtp, HELD_MESSAGES, HELD_BYTES)?;
    writeln!(table, "{RATE} messages/s of {CONTENT_BYTES} bytes on {CONNECTIONS} connections; ms to the 250.\n")?;
    table.push_str(
        "| round | beside | s | p50 | p95 | p99 | p99.9 | p99 / p99 alone |\n|---|---|---|---|---|---|---|---|\n",
    );
    for round in 1..=ROUNDS {
        let alone = steady(daemon.smtp, &mut until(ALONE))?;
        let copy = place.join(format!("copy-{round}"));
        let mut backup = backup(&binary, &data, &copy)?;
        let beside = steady(daemon.smtp, &mut || Ok(backup.try_wait()?.is_some()))?;
        ensure!(backup.wait()?.success(), "the backup failed");
        succeed(Command::new(&binary).args(["verify", "--data"]).arg(&copy).stdout(Stdio::null()))?;
        fs::remove_dir_all(&copy)?;
        for (what, turn) in [("nothing", &alone), ("a backup", &beside)] {
            write!(table, "| {round} | {what} | {:.0} |", turn.took.as_secs_f64())?;
            for per_mille in [500, 950, 990, 999] {
                write!(table, " {:.2} |", turn.percentile(per_mille))?;
            }
            writeln!(table, " {:.2} |", turn.percentile(990) / alone.percentile(990))?;
        }
    }
    daemon.stop()?;
    println!("{table}");
    fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))
}

fn backup(binary: &Path, data: &Path, copy: &Path) -> Result<Child> {
    let mut command = Command::new(binary);
    command.args(["journal", "backup", "--data"]).arg(data).arg(copy).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("cannot start the backup")
}

fn until(length: Duration) -> impl FnMut() -> Result<bool> {
    let began = Instant::now();
    move || Ok(began.elapsed() >= length)
}

/// The load, until `done` says so.
fn steady(smtp: SocketAddr, done: &mut dyn FnMut() -> Result<bool>) -> Result<Turn> {
    let (stop, began) = (Arc::new(AtomicBool::default()), Instant::now());
    let interval = Duration::from_secs(1) * CONNECTIONS / RATE;
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|index| {
            let (stop, mut due) = (Arc::clone(&stop), began + interval * index / CONNECTIONS);
            std::thread::spawn(move || -> Result<Vec<Duration>> {
                let (mut client, mut took) = (Client::connect(smtp)?, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    client.message(u64::from(index), CONTENT_BYTES)?;
                    took.push(due.elapsed());
                    due += interval;
                }
                Ok(took)
            })
        })
        .collect();
    while !done()? {
        std::thread::sleep(Duration::from_millis(50));
    }
    stop.store(true, Ordering::Relaxed);
    let mut sorted = Vec::new();
    for client in clients {
        sorted.extend(client.join().map_err(|_| anyhow!("a client panicked"))??);
    }
    sorted.sort_unstable();
    Ok(Turn { sorted, took: began.elapsed() })
}
