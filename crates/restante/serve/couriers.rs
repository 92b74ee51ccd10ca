//! Couriers: tasks that hold one connection to a primary each, and take one message after the other over it.
//!
//! A courier with nothing to do keeps its connection for a while; the relay's task gives it the next message. What a
//! courier hears becomes a fact in the journal, and only then does the relay learn of it.

use super::attempt::{self, Job, Tried};
use super::journal::{Entry, Journal, Refused};
use super::memory::{Memory, Share};
use restante_courier::{Connection, Settings, Target};
use restante_envelope::{RouteName, TransactionId};
use restante_journal::{DirStorage, Prepared, Reader};
use restante_ledger::{Accepted, Attempted, Fact};
use restante_relay::ConnectionTrouble;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// A probe that has no greeting and no answer to EHLO by then has its answer: such a primary takes no mail. An attempt is
/// more patient, but not so patient that a dead connection keeps the next probe from being made for minutes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// Memory for the content of one attempt: what stands in the journal is read in one piece, a blob in two, one being read while
/// one is sent.
const ATTEMPT_BYTES_MAX: u64 = 512 << 10;
/// An idle connection is kept this long. Postfix closes a client's connection after 300 s without a command, in stress
/// after 10 s.
const IDLE: Duration = Duration::from_secs(5);
/// A settlement that met a full disk is offered again after this.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// What couriers of one daemon share.
pub(crate) struct Office {
    pub(crate) settings: Settings,
    pub(crate) storage: DirStorage,
    pub(crate) journal: Journal,
    pub(crate) seed: u64,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) memory: Memory,
    pub(crate) in_clear: InClear,
}

/// Why connections to primaries are in clear though encryption was offered: what the last one of each route said, so
/// that a primary whose certificate expired is told of once, and not with every connection.
#[derive(Default)]
pub(crate) struct InClear(Mutex<HashMap<RouteName, String>>);

impl InClear {
    fn tell(&self, route: &RouteName, connection: &Connection) {
        if let Some(news) = self.news(route, &connection.next_hop().host, connection.tls_failure()) {
            tracing::info!("route {route}: {news}");
        }
    }

    fn news(&self, route: &RouteName, host: &str, failure: Option<&str>) -> Option<String> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(failure) = failure else {
            told.remove(route);
            return None;
        };
        let news = format!("mail goes to {host} in clear, though it offers STARTTLS: {failure}");
        let before = told.insert(route.clone(), news.clone());
        (before.as_ref() != Some(&news)).then_some(news)
    }
}

/// A job, and how large it is.
#[derive(Debug)]
pub(crate) struct Assignment {
    pub(crate) job: Job,
    pub(crate) content_len: u64,
}

/// Sends a report when dropped, unless something better was said. Whatever ends a task (a panic, too), the relay must
/// hear that its attempt or probe is over: it would wait for it for ever.
struct Promise {
    reports: mpsc::Sender<Report>,
    report: Option<Report>,
}

impl Promise {
    fn keep(mut self) {
        self.report = None;
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let Some(report) = self.report.take() else { return };
        let reports = self.reports.clone();
        // From a task that is being dropped nothing can be awaited.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { reports.send(report).await });
        }
    }
}

/// What a courier tells the relay's task. Settlements are not among it: they come by way of the journal.
pub(crate) enum Report {
    /// It can take another message.
    Idle { route: RouteName, next_hops: Arc<[Target]>, courier: mpsc::Sender<Assignment> },
    /// Nothing was recorded for this attempt.
    Failed { id: TransactionId, route: RouteName, next_hops: Arc<[Target]>, why: ConnectionTrouble },
    /// A probe ended.
    Probed { route: RouteName, next_hops: Arc<[Target]>, result: Result<(), String> },
}

/// Tries each next hop in turn.
pub(crate) async fn connect(next_hops: &[Target], settings: &Settings) -> Result<Connection, String> {
    let mut why = "no next hop is configured".to_owned();
    for target in next_hops {
        match restante_courier::connect(target, settings).await {
            Ok(connection) => return Ok(connection),
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

async fn connect_within(limit: Duration, next_hops: &[Target], settings: &Settings) -> Result<Connection, String> {
    let connected = tokio::time::timeout(limit, connect(next_hops, settings)).await;
    connected.unwrap_or_else(|_late| Err(format!("no answer within {} s", limit.as_secs())))
}

/// Sees whether the primary takes mail; if so, the connection becomes a courier's.
pub(crate) async fn probe(route: RouteName, next_hops: Arc<[Target]>, office: Arc<Office>) {
    let probed = |result| Report::Probed { route: route.clone(), next_hops: next_hops.clone(), result };
    let died = probed(Err("the probe ended by a defect of ours".into()));
    let promise = Promise { reports: office.reports.clone(), report: Some(died) };
    let connected = connect_within(PROBE_TIMEOUT, &next_hops, &office.settings).await;
    let (result, connection) = match connected {
        Ok(connection) => {
            office.in_clear.tell(&route, &connection);
            (Ok(()), Some(connection))
        }
        Err(why) => (Err(why), None),
    };
    promise.keep();
    let _stopping = office.reports.send(probed(result)).await;
    Courier { route, next_hops, office, connection, reader: None }.wait_for_jobs().await;
}

/// A new courier, with its first job.
pub(crate) async fn run(route: RouteName, next_hops: Arc<[Target]>, office: Arc<Office>, first: Assignment) {
    let mut courier = Courier { route, next_hops, office, connection: None, reader: None };
    courier.take(first).await;
    courier.wait_for_jobs().await;
}

struct Courier {
    route: RouteName,
    next_hops: Arc<[Target]>,
    office: Arc<Office>,
    connection: Option<Connection>,
    reader: Option<Reader<DirStorage>>,
}

impl Courier {
    async fn wait_for_jobs(mut self) {
        while self.connection.is_some() {
            let (sender, mut jobs) = mpsc::channel(1);
            let (route, next_hops) = (self.route.clone(), self.next_hops.clone());
            let idle = Report::Idle { route, next_hops, courier: sender };
            if self.office.reports.send(idle).await.is_err() {
                break;
            }
            let job = match tokio::time::timeout(IDLE, jobs.recv()).await {
                Ok(job) => job,
                Err(_idle) => {
                    // One may have been handed over this very moment.
                    jobs.close();
                    jobs.recv().await
                }
            };
            match job {
                Some(job) => self.take(job).await,
                None => break,
            }
        }
        if let Some(connection) = self.connection.take() {
            connection.quit().await;
        }
    }

    async fn take(&mut self, assignment: Assignment) {
        let Assignment { job, content_len } = assignment;
        let died = ConnectionTrouble::Broke("the attempt ended by a defect of ours".into());
        let promise = Promise { reports: self.office.reports.clone(), report: Some(self.failed(job.id, died)) };
        let ended = self.attempt(&job, content_len).await;
        promise.keep();
        match ended {
            Ok((fact, about)) => record(self.office.journal.clone(), fact, about),
            Err(why) => {
                let _stopping = self.office.reports.send(self.failed(job.id, why)).await;
            }
        }
    }

    fn failed(&self, id: TransactionId, why: ConnectionTrouble) -> Report {
        Report::Failed { id, route: self.route.clone(), next_hops: self.next_hops.clone(), why }
    }

    /// A fact to record, with the message it is about, or what was wrong with the connection.
    async fn attempt(
        &mut self,
        job: &Job,
        content_len: u64,
    ) -> Result<(Attempted, Option<Arc<Accepted>>), ConnectionTrouble> {
        if self.connection.as_mut().is_some_and(|c| !c.is_usable() || c.peer_closed()) {
            self.connection = None;
        }
        let office = self.office.clone();
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let made = connect_within(CONNECT_TIMEOUT, &self.next_hops, &office.settings).await;
                let connection = made.map_err(ConnectionTrouble::NotMade)?;
                office.in_clear.tell(&self.route, &connection);
                connection
            }
        };
        let _share = office.memory.for_attempt(content_len.min(ATTEMPT_BYTES_MAX)).await;
        let mut message = match self.read(job).await {
            Ok(message) => message,
            Err(unread) => {
                self.connection = Some(connection);
                return Ok((*unread.fact, unread.about));
            }
        };
        let tried = attempt::attempt(&mut connection, job, &mut message, &office.settings.hostname, office.seed).await;
        if connection.is_usable() {
            self.connection = Some(connection);
        }
        match tried {
            Tried { fact: Some(fact), .. } => Ok((fact, Some(message.accepted))),
            Tried { broke, .. } => Err(ConnectionTrouble::Broke(broke.unwrap_or_default())),
        }
    }

    /// Reads on a thread that may block.
    async fn read(&mut self, job: &Job) -> Result<attempt::Message, attempt::Unread> {
        let mut reader = self.reader.take().unwrap_or_else(|| Reader::new(self.office.storage.clone()));
        let wanted = job.clone();
        let read = tokio::task::spawn_blocking(move || {
            let message = attempt::read(&mut reader, &wanted);
            (reader, message)
        });
        match read.await {
            Ok((reader, message)) => {
                self.reader = Some(reader);
                message
            }
            Err(error) => {
                let fact = attempt::unread(job, &format!("the read ended by a defect of ours: {error}"));
                Err(attempt::Unread { fact, about: None })
            }
        }
    }
}

/// Makes the outcome durable, beside the courier: the connection is free for the next message meanwhile. A full disk is
/// waited out; there is one of these for each active attempt at most, so the wait is bounded in number.
fn record(journal: Journal, fact: Attempted, about: Option<Arc<Accepted>>) {
    tokio::spawn(async move {
        let fact = Fact::Attempted(fact);
        loop {
            let record = Prepared::fact(&fact, Vec::new());
            let (answer, outcome) = oneshot::channel();
            let entry = Entry {
                record,
                fact: fact.clone(),
                about: about.clone(),
                answer: Some(answer),
                memory: Share::default(),
            };
            if journal.submit(entry).await.is_err() {
                return;
            }
            match outcome.await {
                Ok(Err(Refused::Full | Refused::Busy | Refused::Broken)) => tokio::time::sleep(FULL_RETRY).await,
                Ok(Ok(_) | Err(Refused::Failed | Refused::Stopping)) | Err(_) => return,
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_in_clear_is_told_of_once_and_not_with_every_connection() {
        let (in_clear, office, lab) = (InClear::default(), RouteName::new("office"), RouteName::new("lab"));
        let news = |route: &RouteName, failure| in_clear.news(route, "mx.test", failure);
        let said = "mail goes to mx.test in clear, though it offers STARTTLS: no common version";
        assert_eq!(news(&office, Some("no common version")).as_deref(), Some(said));
        assert_eq!(news(&office, Some("no common version")), None);
        assert!(news(&lab, Some("no common version")).is_some() && news(&office, Some("timeout")).is_some());
        // It was mended, and broke again.
        assert_eq!(news(&office, None), None);
        assert!(news(&office, Some("timeout")).is_some());
    }
}
