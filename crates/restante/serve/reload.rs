//! The configuration read again while the daemon runs: on SIGHUP, on `restante reload`, and the recipients files alone
//! whenever they change.
//!
//! All or nothing: what is wrong is told, and what was before stays. Routes, recipients, limits and the certificate are
//! swapped at once; the other keys wait for a restart, which is told as well. Opens no port and moves no journal.

mod changes;

use super::journal::{Entry, Journal, Refused};
use super::memory::Share;
use super::metrics::Metrics;
use super::relay::Request;
use super::space::{Rules, Space};
use super::tls::Tls;
use super::{limit_connections_to_files, next_hops, route_record, route_settings, served};
use crate::config::{self, Config, Fingerprint, Flags, Invalid, Limits, Listed, Route};
use crate::routing;
use restante_courier::Settings;
use restante_journal::Prepared;
use restante_ledger::Fact;
use restante_relay::Routes;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinError;
use tokio::time::MissedTickBehavior;

/// Somebody typing `reload` twice waits for his turn; more than that is a script gone wild.
pub(crate) const ORDERS: usize = 16;
/// How often the recipients files are looked at. A file is read when it looked the same twice in a row: whoever writes it
/// in place is not overtaken in the middle.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Behind the errors of a refused reload.
pub(crate) const KEPT: &str = "nothing was changed; the daemon goes on with what it has";

/// An order to reload, and where the answer goes.
pub(crate) type Order = oneshot::Sender<Result<Reloaded, Invalid>>;

/// What a reload did, in words; nothing if all was as before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reloaded {
    pub(crate) changes: Vec<String>,
    /// Keys that have other values now, and take effect at the next start.
    pub(crate) after_restart: Vec<String>,
}

/// What was there before the daemon was.
pub(crate) struct Means {
    pub(crate) flags: Flags,
    pub(crate) hangups: Signal,
    /// How couriers connect.
    pub(crate) courier: Settings,
}

/// The parts of the daemon that go by the configuration.
pub(crate) struct Parts {
    pub(crate) routes: watch::Sender<Arc<Routes>>,
    pub(crate) limits: watch::Sender<Limits>,
    pub(crate) relay: mpsc::Sender<Request>,
    pub(crate) journal: Journal,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) space: Arc<Space>,
    pub(crate) tls: Arc<Tls>,
    pub(crate) stopping: watch::Receiver<bool>,
}

/// The one owner of the configuration in force.
pub(crate) struct Reloading {
    config: Config,
    flags: Flags,
    hangups: Signal,
    courier: Settings,
    parts: Parts,
    orders: mpsc::Receiver<Order>,
    watched: Watched,
    /// Why the journal does not know the routes of now.
    unrecorded: Option<Refused>,
}

impl Reloading {
    pub(crate) fn new(config: Config, means: Means, parts: Parts, orders: mpsc::Receiver<Order>) -> Self {
        let Means { mut flags, hangups, courier } = means;
        // A file that appears at a place looked at earlier is not the one that was asked for.
        flags.config = config.file.clone().or(flags.config);
        Self { config, flags, hangups, courier, parts, orders, watched: Watched::default(), unrecorded: None }
    }

    /// Runs until the daemon stops.
    pub(crate) async fn run(mut self) {
        let mut stopping = self.parts.stopping.clone();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(order) = self.orders.recv() => {
                    let outcome = self.reload().await;
                    // Whoever asked may have left.
                    let _gone = order.send(outcome);
                }
                Some(()) = self.hangups.recv() => drop(self.reload().await),
                _ = looks.tick() => self.look().await,
                () = told(&mut stopping) => return,
            }
        }
    }

    /// Everything anew, by the flags of the start.
    async fn reload(&mut self) -> Result<Reloaded, Invalid> {
        let flags = self.flags.clone();
        let outcome = match beside_the_workers(move || config::resolve(&flags)).await {
            Ok(config) => self.swap(config).await,
            Err(invalid) => Err(invalid),
        };
        match &outcome {
            Ok(Reloaded { changes, after_restart }) => {
                if changes.is_empty() {
                    tracing::info!("configuration read again: nothing has changed");
                }
                changes.iter().for_each(|change| tracing::info!("configuration read again: {change}"));
                for key in after_restart {
                    tracing::warn!("configuration read again: {key} takes effect at the next start");
                }
            }
            Err(invalid) => tracing::error!("the configuration is not taken:\n{}", invalid.render_with(false, KEPT)),
        }
        outcome
    }

    async fn swap(&mut self, mut new: Config) -> Result<Reloaded, Invalid> {
        limit_connections_to_files(&mut new);
        let routes = table(&new.routes).map_err(|why| Invalid::Flags(vec![why]))?;
        let checked = routing::check(&new.routes, &self.courier).await;
        if !checked.loops.is_empty() {
            return Err(Invalid::Flags(checked.loops));
        }
        checked.tell_doubts();
        let (tls, files) = (self.parts.tls.clone(), new.certificate.clone());
        // Nothing else is taken with a certificate that cannot be served.
        let certificate = beside_the_workers(move || tls.reload(files.as_ref()))
            .await
            .map_err(|why| Invalid::Flags(vec![format!("the certificate for STARTTLS: {why:#}")]))?;
        let done = Reloaded {
            changes: changes::in_words(&self.config, &new).into_iter().chain(certificate).collect(),
            after_restart: changes::after_restart(&self.config, &new),
        };
        let elsewhere = !self.config.routes.iter().map(route_record).eq(new.routes.iter().map(route_record));
        // What waits for a restart is compared with what runs, the next time too.
        let Config { routes: list, limits, certificate, .. } = new;
        self.config = Config { routes: list, limits, certificate, ..self.config.clone() };
        self.watched = Watched::default();
        self.parts.metrics.add_routes(routes.iter().map(|route| route.name.clone()));
        // The relay first: what the door takes for a new route finds it there.
        let (sender, answer) = oneshot::channel();
        let hops = self.config.routes.iter().map(next_hops).collect();
        if self.parts.relay.send(Request::SetRoutes(routes.clone(), hops, sender)).await.is_ok() {
            let _stopping = answer.await;
        }
        self.parts.routes.send_replace(routes);
        self.parts.limits.send_replace(self.config.limits.clone());
        self.parts.space.set_rules(Rules::of(&self.config));
        if elsewhere {
            self.unrecorded = None;
            self.record().await;
        }
        Ok(done)
    }

    /// `recover` goes by the last of these where the configuration is lost. What is refused is offered again at the next
    /// look at the recipients files: a full disk, say, has room again some day.
    async fn record(&mut self) {
        let refused = record(&self.parts.journal, served(&self.config)).await.err();
        let before = std::mem::replace(&mut self.unrecorded, refused);
        match (before, refused) {
            (None, Some(why)) => tracing::warn!(
                "the journal does not know the new routes yet ({why:?}): `recover` would need the configuration"
            ),
            (Some(_), None) => tracing::info!("the journal knows the new routes"),
            _ => {}
        }
    }

    /// Looks at the recipients files; what has changed is taken, and nothing else is.
    async fn look(&mut self) {
        if self.unrecorded.is_some() {
            self.record().await;
        }
        if !self.config.routes.iter().flat_map(|route| &route.listed).any(|listed| matches!(listed, Listed::File(..))) {
            return;
        }
        let (mut watched, mut routes) = (std::mem::take(&mut self.watched), std::mem::take(&mut self.config.routes));
        let news;
        (self.watched, self.config.routes, news) = beside_the_workers(move || {
            let news = watched.look(&mut routes);
            (watched, routes, news)
        })
        .await;
        let mut swapped = false;
        for news in news {
            match news {
                Ok(change) => {
                    swapped = true;
                    tracing::info!("{change}");
                }
                Err(why) => tracing::warn!("{why}"),
            }
        }
        if swapped {
            match table(&self.config.routes) {
                Ok(routes) => drop(self.parts.routes.send_replace(routes)),
                Err(why) => tracing::error!("the recipients stay as they were: {why}"),
            }
        }
    }
}

async fn record(journal: &Journal, fact: Fact) -> Result<(), Refused> {
    let record = Prepared::fact(&fact, Vec::new());
    let (answer, outcome) = oneshot::channel();
    journal
        .submit(Entry { record, fact, about: None, answer: Some(answer), memory: Share::default(), claim: None })
        .await?;
    outcome.await.unwrap_or(Err(Refused::Failed)).map(drop)
}

/// Does what may wait for a disk. Not `block_in_place`: that makes another thread the worker each time, and what the workers allocate is
/// spread over the heaps of ever more threads.
async fn beside_the_workers<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await.map_err(JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // Never begun: the daemon is at its end.
        Err(Err(_)) => std::future::pending().await,
    }
}

async fn told(stopping: &mut watch::Receiver<bool>) {
    let _or_gone = stopping.wait_for(|stop| *stop).await;
}

fn table(routes: &[Route]) -> Result<Arc<Routes>, String> {
    Routes::new(routes.iter().map(route_settings).collect()).map(Arc::new).map_err(|why| why.to_string())
}

/// What the recipients files looked like, when nobody has read them since.
#[derive(Default)]
struct Watched {
    /// At the last look.
    last: HashMap<PathBuf, Option<Fingerprint>>,
    /// When they were read and refused: said once, until they change again.
    refused: HashMap<PathBuf, Option<Fingerprint>>,
}

impl Watched {
    /// Reads again what has changed and is at rest; in words what came of it, route by route.
    fn look(&mut self, routes: &mut [Route]) -> Vec<Result<String, String>> {
        let last = std::mem::take(&mut self.last);
        let mut news = Vec::new();
        for route in routes {
            let mut changed = Vec::new();
            for listed in &route.listed {
                let Listed::File(path, read) = listed else { continue };
                let is = Fingerprint::of(path);
                let known = is == *read || self.refused.get(path) == Some(&is);
                if !known && last.get(path) == Some(&is) {
                    changed.push(path.clone());
                }
                self.last.insert(path.clone(), is);
            }
            if changed.is_empty() {
                continue;
            }
            match config::read_recipients(route, &changed) {
                Ok(new) => {
                    news.extend(changes::recipients(route, &new).map(Ok));
                    *route = new;
                    self.refused.retain(|path, _| !changed.contains(path));
                }
                Err(why) => {
                    let had = changes::count(route);
                    news.push(Err(format!("route {}: the recipients stay as they were, {had}: {why}", route.name)));
                    let looks = changed.into_iter().map(|path| (path.clone(), self.last.get(&path).copied().flatten()));
                    self.refused.extend(looks);
                }
            }
        }
        news
    }
}

#[cfg(test)]
mod tests;
