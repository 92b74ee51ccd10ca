//! When and how the daemon ends, and the small files that tell others it is there.

use super::admin::Admin;
use super::journal::Journal;
use crate::clock;
use anyhow::Context as _;
use restante_journal::CommitError;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Sessions have this long to say good-bye; the whole stop has 3 s.
pub(crate) const SESSIONS: Duration = Duration::from_millis(800);
/// Attempts under way have this long for their last reply.
const ATTEMPTS: Duration = Duration::from_millis(600);
/// The journal's last batch and the log's last lines have this long.
const THREADS: Duration = Duration::from_millis(700);
/// The relay has this long, then the log and the index together, to write what they were told.
const LAST_LINES: Duration = Duration::from_millis(200);

/// SIGTERM and SIGINT, from the moment this exists. It must exist before `ready:` is said: a script may stop us at once.
pub(crate) struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    pub(crate) fn catch() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }
}

/// SIGHUP: the configuration is to be read again. It must be caught before `ready:` is said, or it would end us.
pub(crate) fn hangups() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Returns when it is time to stop: a signal, a failed journal, or the end of standard input where that was asked for.
pub(crate) async fn wait(signals: Signals, journal: &Journal, stop_with_stdin: bool) {
    let Signals { mut term, mut int } = signals;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        () = journal.failure() => tracing::error!("the journal failed: no mail is taken any more, stopping"),
        () = stdin_closes(), if stop_with_stdin => {}
    }
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        std::process::exit(i32::from(crate::cli::exit::INTERRUPTED));
    });
}

/// A parent that dies closes our standard input, however it dies.
async fn stdin_closes() {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A thread of its own: a blocking read on the runtime would keep it from ending.
    let spawned = std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let _closed = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _stopped = sender.send(());
    });
    match spawned {
        Ok(_detached) => drop(receiver.await),
        Err(_) => std::future::pending().await,
    }
}

/// Waits until no attempt is under way, or long enough: what is not heard by then is tried again at the next start.
pub(crate) async fn attempts(admin: &Admin) {
    let over = async {
        while !admin.journal.has_failed() && admin.is_delivering().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // A replay holds it until its message is recorded.
        drop(admin.last_replayed.lock().await);
    };
    if tokio::time::timeout(ATTEMPTS, over).await.is_err() {
        tracing::info!("an attempt is still under way; it is tried again at the next start");
    }
}

/// Waits for the journal to seal and the log and the index to be written.
pub(crate) async fn finish(
    journal: std::thread::JoinHandle<Result<(), CommitError>>,
    relay: tokio::task::JoinHandle<()>,
    followers: [std::thread::JoinHandle<()>; 2],
) -> anyhow::Result<()> {
    let join = tokio::task::spawn_blocking(move || journal.join());
    let sealed = match tokio::time::timeout(THREADS, join).await {
        Ok(Ok(Ok(outcome))) => outcome.map_err(anyhow::Error::from),
        Ok(_) => Err(anyhow::anyhow!("the journal's thread ended by a defect of ours, please report it")),
        // The disk is slow beyond measure. All that was acknowledged is synced; the seal is not.
        Err(_late) => Err(anyhow::anyhow!("the disk did not finish the journal's last write in time")),
    };
    if !relay.is_finished() {
        let _late = tokio::time::timeout(LAST_LINES, relay).await;
    }
    let join = tokio::task::spawn_blocking(move || followers.map(std::thread::JoinHandle::join));
    let _late = tokio::time::timeout(LAST_LINES, join).await;
    sealed
}

/// Writes a new token for changes over TCP, readable by the owner alone. On a full disk nobody gets to know it, and the daemon
/// runs all the same: mail that is pending must get out.
pub(crate) fn write_token(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join("admin.token");
    let token = format!("{:032x}{:032x}", clock::entropy128(), clock::entropy128());
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    match writeln!(file, "{token}") {
        Err(error) if restante_journal::is_full(&error) => {
            tracing::warn!("no room for {}: changes over TCP are refused until the next start", path.display());
            Ok(token)
        }
        written => written.map(|()| token).with_context(|| format!("cannot write {}", path.display())),
    }
}

/// The socket goes with a clean stop.
pub(crate) fn remove_socket(data_dir: &Path) {
    if let Err(error) = std::fs::remove_file(data_dir.join("admin.sock"))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("cannot remove admin.sock: {error}");
    }
}
