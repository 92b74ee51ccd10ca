//! `restante serve`: puts the rooms together, says when it is ready, and takes them apart again in order.
//!
//! ```text
//! listener -> session -> journal thread -> relay task -> couriers -> journal thread -> ...
//!                              '-> log, index                  admin (socket, HTTP) -> relay task, journal thread
//! ```

mod admin;
mod ahead;
pub(crate) mod attempt;
mod choose;
mod clerk;
pub(crate) mod couriers;
mod crowd;
mod desk;
mod http;
mod import;
pub(crate) mod index;
mod intake;
mod journal;
mod listener;
pub(crate) mod log;
mod log_cursor;
mod memory;
mod merge;
pub(crate) mod metrics;
mod notify;
mod operate;
pub(crate) mod plan;
mod proxy;
mod relay;
mod reload;
mod replay;
mod reserve;
mod retention;
mod scrub;
mod session;
mod settlements;
mod shutdown;
mod socket;
mod sockets;
mod space;
pub(crate) mod tls;

#[cfg(test)]
pub(crate) use replay::listed as replay_list;

use crate::cli::account::in_words;
use crate::cli::exit;
use crate::clock;
use crate::config::{Config, Flags, Limits, Route};
use crate::routing;
use anyhow::{Context as _, bail};
use listener::Entrance;
use log_cursor::Boot;
use reserve::Reserve;
use restante_courier::{Settings, Target};
use restante_envelope::RouteName;
use restante_index::Origin;
use restante_journal::{
    CarriedBlobs, CommitError, Damage, DirStorage, DirectoryLock, LockError, Options, Prepared, Receipt, Replay, Seed,
    State, Writer,
};
use restante_ledger::{Fact, Position, RouteRecord, Served};
use restante_relay::{MAX_CONNECTIONS_DEFAULT, Relay, RouteSettings, Routes};
use sockets::{Inherited, Sockets};
use std::collections::HashSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};

/// Descriptors beside those of SMTP connections and couriers: segments, logs, admin, the runtime.
const FILES_BESIDE: u64 = 256 + listener::TURNED_AWAY_MAX as u64 + listener::LEAVING_MAX as u64;
/// A courier has a connection, an open segment, and the blobs of two messages.
const FILES_A_COURIER: u64 = 4;
const WORKERS_MIN: usize = 2;
/// Another command may look whether the journal is locked; such a look is over at once.
const LOCK_PATIENCE: Duration = Duration::from_millis(250);

/// Why the daemon did not start, where the exit code says more than "failed".
pub(crate) enum Ended {
    Stopped,
    Locked,
    /// What the configuration names cannot be used.
    Misconfigured,
}

/// Runs the daemon until it is told to stop. `flags` are what `config` was resolved from, and will be again.
pub(crate) fn run(mut config: Config, flags: Flags, stop_with_stdin: bool) -> anyhow::Result<u8> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).with_ansi(false).init();
    limit_connections_to_files(&mut config);
    let inherited = Inherited::take()?;
    // Two at least, though the machine had but one processor: one may be waiting for the disk.
    let workers = std::thread::available_parallelism().map_or(WORKERS_MIN, NonZeroUsize::get).max(WORKERS_MIN);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    let ended = runtime.block_on(start(config, flags, inherited, stop_with_stdin));
    // Whatever still lingers (a courier waiting for a slow primary) holds nothing that is not in the journal.
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(match ended? {
        Ended::Stopped => exit::DONE,
        Ended::Locked => exit::LOCKED,
        Ended::Misconfigured => exit::CONFIG_INVALID,
    })
}

/// Raises the limit of open files as far as the system allows, and takes no more connections than that leaves room for:
/// a daemon without descriptors could not even make the journal's next segment.
fn limit_connections_to_files(config: &mut Config) {
    let couriers = config.routes.len().saturating_mul(MAX_CONNECTIONS_DEFAULT) as u64;
    let beside = FILES_BESIDE + FILES_A_COURIER * couriers;
    let wanted = u64::from(config.limits.max_connections) + beside;
    let granted = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(0);
    if granted < wanted {
        // Half of a limit that small is for connections, the rest for getting mail out.
        let left = granted.saturating_sub(beside).max(granted / 2);
        let connections = u32::try_from(left).unwrap_or(u32::MAX).min(config.limits.max_connections);
        tracing::warn!(
            "the system allows {granted} open files, {wanted} are wanted: {connections} connections at once"
        );
        config.limits.max_connections = connections;
    }
}

/// Takes the right to write to the journal; for the daemon and for `recover`.
pub(crate) fn lock(storage: &DirStorage) -> Result<DirectoryLock, LockError> {
    let began = Instant::now();
    loop {
        match storage.lock() {
            Err(LockError::Held) if began.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
}

async fn start(config: Config, flags: Flags, inherited: Inherited, stop_with_stdin: bool) -> anyhow::Result<Ended> {
    let data = config.data_dir.display().to_string();
    let storage = DirStorage::create_directory(&config.data_dir).with_context(|| format!("data directory {data}"))?;
    let signals = shutdown::Signals::catch().context("cannot listen for signals")?;
    let hangups = shutdown::hangups().context("cannot listen for signals")?;
    match lock(&storage) {
        // Until the process is gone: its journal thread may still be writing when everything else has ended.
        Ok(lock) => std::mem::forget(lock),
        Err(LockError::Held) => {
            tracing::error!("{data} is in use by another restante process; stop it, or give this one its own --data");
            return Ok(Ended::Locked);
        }
        Err(error) => return Err(error).with_context(|| format!("data directory {data}")),
    }
    let tls = match tls::Tls::new(config.certificate.as_ref(), &config.data_dir, &config.hostname) {
        Ok(tls) => tls,
        Err(error) if config.certificate.is_some() => {
            tracing::error!("the certificate for STARTTLS: {error:#}");
            return Ok(Ended::Misconfigured);
        }
        Err(error) => return Err(error).context("cannot make a certificate for STARTTLS"),
    };
    let courier = routing::courier_settings(&config, config.listen.clone(), clock::entropy());
    if !tell_loops(&config.routes, &courier).await {
        return Ok(Ended::Misconfigured);
    }
    let sockets = Sockets::open(&config, inherited)?;
    let courier = at_our_ports(courier, &sockets)?;
    notify::starting();
    let reserve = Arc::new(Reserve::in_directory(&config.data_dir));
    let Opened { boot, origin, writer, damage, carried, unrecorded } = open_journal(&config, &storage, &reserve)?;
    let index = index::start(&config.data_dir, storage.clone(), origin, boot.end)?;
    index.0.left(boot.ledger.base().first);
    let means = reload::Means { flags, hangups, courier };
    let daemon =
        Daemon::assemble(&config, storage.clone(), boot, index, (writer, carried, unrecorded), (tls, reserve), means)?;
    let metrics = daemon.door.metrics.clone();
    let scrub = scrub::Scrub::start(storage, &damage, metrics).context("cannot start reading the journal again")?;
    daemon.run(config, sockets, signals, stop_with_stdin, scrub).await?;
    Ok(Ended::Stopped)
}

/// Says what is wrong with where mail would go; false if some of it would come back.
async fn tell_loops(routes: &[Route], courier: &Settings) -> bool {
    let checked = routing::check(routes, courier).await;
    checked.loops.iter().for_each(|why| tracing::error!("{why}"));
    checked.tell_doubts();
    checked.loops.is_empty()
}

/// Port 0 was any; now it is one.
fn at_our_ports(mut courier: Settings, sockets: &Sockets) -> anyhow::Result<Settings> {
    courier.ourselves.listen = sockets.smtp.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
    Ok(courier)
}

/// The journal, ready to be written to.
struct Opened {
    boot: Boot,
    origin: Origin,
    writer: Writer<DirStorage>,
    damage: Vec<Damage>,
    carried: CarriedBlobs,
    /// What found no room for its record.
    unrecorded: Option<Fact>,
}

/// Folds the journal, deals with what is torn, and opens a new segment.
fn open_journal(config: &Config, storage: &DirStorage, reserve: &Reserve) -> anyhow::Result<Opened> {
    let mut boot = Boot::default();
    restante_journal::sync_last_segment(storage).context("cannot sync the journal's last segment")?;
    let replay = restante_journal::start(storage, &mut boot)?;
    let aside = reserve
        .or_with_it(restante_journal::is_full, || restante_journal::set_aside(storage, &replay.report))
        .context("cannot set damaged bytes aside")?;
    match replay.report.state() {
        State::Clean => {}
        State::Torn => {
            tracing::info!("the last write before a crash was incomplete and is set aside; nothing promised is lost")
        }
        State::Damaged => {
            for damage in &replay.report.damage {
                tracing::error!("the journal is {}", in_words("damaged", damage));
            }
            tracing::error!("mail is served around the damage; run `restante verify` for the account");
        }
    }
    for name in aside {
        tracing::warn!("set aside: {name}");
    }
    let mut carried = replay.carried_blobs.clone();
    // A crash came before they were gone. Their blobs look like orphans, so they go first.
    if let Err(error) = restante_journal::remove_left(storage, replay.base.first, &mut carried) {
        tracing::warn!("cannot remove segments that have left the journal: {error}");
    }
    clear_orphans(storage, &replay);
    let seed = Seed { journal: clock::entropy128(), entropy: clock::entropy(), tags: clock::entropy() };
    let origin = index::origin(replay.journal().unwrap_or(seed.journal), &replay.report);
    let mut writer =
        Writer::open(storage.clone(), Options::default(), &replay, boot.ledger.largest_id(), seed, clock::now())?;
    let served = served(config);
    let mut unrecorded = None;
    let is_full = |error: &CommitError| matches!(error, CommitError::Full(_));
    let recorded = reserve.or_with_it(is_full, || {
        writer.stage(&Prepared::fact(&served, Vec::new()), clock::now())?;
        writer.commit(clock::now())
    });
    match recorded {
        Ok(durable) => {
            boot.end = durable.receipts().last().map(Receipt::position).or(boot.end);
            boot.end.iter().for_each(|position| _ = boot.ledger.apply(*position, &served));
        }
        Err(CommitError::Full(error)) => {
            tracing::warn!("no room for the journal, mail waits and is refused until there is: {error}");
            unrecorded = Some(served);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(Opened { boot, origin, writer, damage: replay.report.damage, carried, unrecorded })
}

/// What is in `blob/` and belongs to no message costs room and nothing else, so no error here keeps us from starting.
fn clear_orphans(storage: &DirStorage, replay: &Replay) {
    match restante_journal::set_orphans_aside(storage, replay) {
        Ok(moved) => {
            for name in moved {
                tracing::warn!(
                    "set aside: {name}, a whole large message that no record names: it was never accepted, unless a part of the journal is missing"
                );
            }
        }
        Err(error) => tracing::warn!("cannot set aside large messages that no record names: {error}"),
    }
    match restante_journal::remove_parts(storage, replay) {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => {
            let bytes: u64 = removed.iter().map(|orphan| orphan.bytes).sum();
            let (parts, s) = (removed.len(), if removed.len() == 1 { "" } else { "s" });
            tracing::info!("removed {parts} unfinished file{s} from blob/, {bytes} bytes, of messages never accepted");
        }
        Err(error) => tracing::warn!("cannot remove what was left of messages never accepted: {error}"),
    }
}

/// What `recover` goes by when the configuration is lost.
fn served(config: &Config) -> Fact {
    Fact::Served(Served {
        at: clock::now(),
        hostname: config.hostname.clone(),
        routes: config.routes.iter().map(route_record).collect(),
    })
}

fn route_record(route: &Route) -> RouteRecord {
    RouteRecord {
        name: route.name.clone(),
        domains: route.domains.iter().map(ToString::to_string).collect(),
        primary: route.primary.iter().map(ToString::to_string).collect(),
    }
}

/// Starts the delivery log, and has it told what the last crash kept from it.
fn open_log(
    config: &Config,
    storage: &DirStorage,
    metrics: &Arc<metrics::Metrics>,
    (last, end): (Option<Position>, Option<Position>),
) -> anyhow::Result<log::Started> {
    let past = log::Past { storage: storage.clone(), last, end };
    let directory = config.data_dir.join("log");
    let days = config.log.keep.as_secs() / 86_400;
    let limits = log::LogLimits {
        total_bytes_max: config.log.max_bytes,
        days_max: u16::try_from(days).unwrap_or(u16::MAX),
        ..log::LogLimits::default()
    };
    log::start(directory, config.hostname.clone(), metrics.clone(), limits, Some(past))
        .context("cannot open the delivery log")
}

fn office(
    settings: Settings,
    storage: &DirStorage,
    journal: &journal::Journal,
    reports: mpsc::Sender<couriers::Report>,
    memory: memory::Memory,
) -> Arc<couriers::Office> {
    Arc::new(couriers::Office {
        settings,
        storage: storage.clone(),
        settlements: settlements::Settlements::new(journal.clone()),
        seed: clock::entropy(),
        reports,
        memory,
        in_clear: couriers::InClear::default(),
        manners: ahead::Manners::default(),
    })
}

/// Everything that runs, before it does.
struct Daemon {
    door: Arc<session::Door>,
    admin: Arc<admin::Admin>,
    relay: relay::RelayTask,
    stop: watch::Sender<bool>,
    limits: watch::Receiver<Limits>,
    reloading: reload::Reloading,
    journal_thread: JoinHandle<Result<(), CommitError>>,
    log_thread: JoinHandle<()>,
    index_thread: JoinHandle<()>,
    settlements: Arc<settlements::Settlements>,
    retention: retention::Keeper,
}

impl Daemon {
    fn assemble(
        config: &Config,
        storage: DirStorage,
        boot: Boot,
        (index, index_thread): (index::IndexHandle, JoinHandle<()>),
        (writer, carried, unrecorded): (Writer<DirStorage>, CarriedBlobs, Option<Fact>),
        (tls, reserve): (Arc<tls::Tls>, Arc<Reserve>),
        means: reload::Means,
    ) -> anyhow::Result<Self> {
        let (stop, stopping) = watch::channel(false);
        let routes = Arc::new(Routes::new(config.routes.iter().map(route_settings).collect())?);
        let metrics = Arc::new(metrics::Metrics::new(routes.iter().map(|route| route.name.clone())));
        let log = open_log(config, &storage, &metrics, (boot.last, boot.end))?;
        let (fact_sender, facts) = mpsc::channel(relay::QUEUE);
        let (report_sender, reports) = mpsc::channel(relay::QUEUE);
        let (request_sender, requests) = mpsc::channel(relay::QUEUE);
        let (journal, journal_thread) = journal::start(writer, fact_sender, reserve.clone())?;
        if unrecorded.is_some() {
            journal.is_stuck_from_the_start();
        }
        let relay = Relay::new(routes.clone(), boot.ledger, clock::entropy(), clock::now());
        let rules = space::Rules::of(config);
        let space = Arc::new(space::Space::new(config.data_dir.clone(), relay.loads().clone(), rules, reserve));
        let (routes_now, routes_of_now) = watch::channel(routes);
        let (limits_now, limits) = watch::channel(config.limits.clone());
        let (order_sender, orders) = mpsc::channel(reload::ORDERS);
        let parts = reload::Parts {
            routes: routes_now,
            limits: limits_now,
            relay: request_sender.clone(),
            journal: journal.clone(),
            metrics: metrics.clone(),
            tls: tls.clone(),
            space: space.clone(),
            stopping: stopping.clone(),
        };
        // Whoever read the journal before we had it does not know what was replayed since.
        let end = boot.end;
        let memory = memory::Memory::new();
        let office = office(means.courier.clone(), &storage, &journal, report_sender, memory.clone());
        let settlements = office.settlements.clone();
        let (decisions, decided) = mpsc::unbounded_channel();
        let relay = relay::RelayTask {
            relay,
            office,
            desks: config.routes.iter().map(next_hops).map(relay::desk).collect(),
            facts,
            reports,
            requests,
            stopping: stopping.clone(),
            log: log.handle.clone(),
            index,
            metrics: metrics.clone(),
            newest: relay::Newest::new(boot.end),
            decisions,
            rest: None,
        };
        let operating = Arc::new(Semaphore::new(1));
        let clerk =
            clerk::Clerk { storage: storage.clone(), settlements: settlements.clone(), operating: operating.clone() };
        tokio::spawn(clerk.run(decided));
        let retention = retention::Keeper {
            storage: storage.clone(),
            journal: journal.clone(),
            relay: request_sender.clone(),
            settlements: settlements.clone(),
            operating: operating.clone(),
            space: space.clone(),
            stopping: stopping.clone(),
            retain: config.retain,
            carried,
            unsummable: HashSet::new(),
            unrecorded,
        };
        let mut settings = restante_smtp::Settings::new(config.hostname.clone(), config.max_message_bytes);
        settings.starttls = true;
        settings.bare_line_ends = config.bare_line_ends;
        let door = Arc::new(session::Door {
            settings: Arc::new(settings),
            routes: routes_of_now,
            journal: journal.clone(),
            memory,
            disk_turns: Arc::new(Semaphore::new(intake::DISK_TURNS)),
            storage: storage.clone(),
            space: space.clone(),
            log: log.handle,
            metrics: metrics.clone(),
            tls,
            relay: request_sender.clone(),
            asked_for: Mutex::default(),
            crowd: Arc::new(crowd::Crowd::new(limits.clone())),
            trusted: config.trusted.clone(),
            stopping: stopping.clone(),
        });
        let admin = Arc::new(admin::Admin {
            hostname: config.hostname.clone(),
            data_dir: config.data_dir.clone(),
            storage,
            journal,
            relay: request_sender,
            operating,
            progress: operate::Progress::default(),
            courier: means.courier.clone(),
            last_replayed: Arc::new(tokio::sync::Mutex::new(end)),
            retain: config.retain,
            reload: order_sender,
            space,
            door: Arc::downgrade(&door),
            metrics,
            token: shutdown::write_token(&config.data_dir)?,
            stopping,
        });
        let reloading = reload::Reloading::new(config.clone(), means, parts, orders);
        let log_thread = log.thread;
        Ok(Self {
            door,
            admin,
            relay,
            stop,
            limits,
            reloading,
            journal_thread,
            log_thread,
            index_thread,
            settlements,
            retention,
        })
    }

    async fn run(
        self,
        config: Config,
        sockets: Sockets,
        signals: shutdown::Signals,
        stop_with_stdin: bool,
        scrub: scrub::Scrub,
    ) -> anyhow::Result<()> {
        let Self { door, admin, relay, stop, limits, reloading, .. } = self;
        let (journal_thread, log_thread, index_thread) = (self.journal_thread, self.log_thread, self.index_thread);
        let (settlements, retention) = (self.settlements, self.retention);
        let smtp: Vec<SocketAddr> = sockets.smtp.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
        let admin_address = sockets.admin_tcp.as_ref().map(TcpListener::local_addr).transpose()?;
        let mut relay = tokio::spawn(relay.run());
        if let Some(socket) = sockets.admin_socket {
            tokio::spawn(http::on_socket(socket, admin::router(admin.clone(), false)));
        }
        if let Some(listener) = sockets.admin_tcp {
            tokio::spawn(http::on_tcp(listener, admin::router(admin.clone(), true)));
        }
        tokio::spawn(door.tls.clone().watch());
        let mut entrance = Entrance::new(sockets.smtp, door.clone(), limits);
        tokio::spawn(reloading.run());
        tokio::spawn(retention.run());
        announce(&smtp, admin_address)?;
        notify::ready(config.routes.len());

        let journal = door.journal.clone();
        let relay_died = tokio::select! {
            () = shutdown::wait(signals, &journal, stop_with_stdin) => false,
            _ = &mut relay => true,
            never = entrance.accept() => match never {},
        };
        notify::stopping();
        let _no_receiver_left = stop.send(true);
        scrub.stop();
        // Sessions end first: those that await a commit get their 250. Then nobody can hand over mail any more.
        if tokio::time::timeout(shutdown::SESSIONS, entrance.drain()).await.is_err() {
            tracing::warn!("some clients did not take their 421 in time");
        }
        // Attempts under way may still be told their outcome.
        shutdown::attempts(&admin).await;
        let failed = journal.has_failed();
        journal.close();
        drop(door);
        let result = shutdown::finish(journal_thread, relay, [log_thread, index_thread]).await;
        settlements.give_up();
        shutdown::remove_socket(&config.data_dir);
        match result {
            Err(error) => {
                Err(error).context("the journal failed; nothing acknowledged is lost, the next start recovers")
            }
            Ok(()) if relay_died => bail!("the relay ended by a defect of ours, please report it; nothing is lost"),
            Ok(()) if failed => bail!("the journal failed; nothing acknowledged is lost, the next start recovers"),
            Ok(()) => Ok(()),
        }
    }
}

/// The lines that scripts wait for.
fn announce(smtp: &[SocketAddr], admin: Option<SocketAddr>) -> anyhow::Result<()> {
    let mut stderr = std::io::stderr().lock();
    for address in smtp {
        writeln!(stderr, "ready: smtp {address}")?;
    }
    if let Some(address) = admin {
        writeln!(stderr, "ready: admin {address}")?;
    }
    Ok(())
}

fn route_settings(route: &Route) -> RouteSettings {
    RouteSettings {
        name: RouteName::new(&route.name),
        domains: route.domains.clone(),
        next_hops: routing::shown(&routing::targets(route)),
        recipients: route.recipients.clone(),
        max_connections: route.connections,
        attempts_ahead: couriers::ATTEMPTS_AHEAD,
        per_minute: route.per_minute,
        expire: route.expire,
        expire_cap: route.expire_cap,
    }
}

fn next_hops(route: &Route) -> (RouteName, Arc<[Target]>) {
    (RouteName::new(&route.name), routing::targets(route).into())
}
