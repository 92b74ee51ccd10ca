//! Couriers: tasks that hold one connection to a primary each, and take one message after the other over it.
//!
//! A courier with nothing to do keeps its connection for a while; the relay's task gives it the next message. What a
//! courier hears becomes a fact in the journal, and only then does the relay learn of it.

use super::attempt::{self, Job, Tried};
use super::journal::{Entry, Journal, Refused};
use restante_courier::{Connection, Settings, Target};
use restante_envelope::{RouteName, TransactionId};
use restante_journal::{DirStorage, Prepared, Reader};
use restante_ledger::{Accepted, Attempted, Fact};
use restante_relay::ConnectionTrouble;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

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
}

/// What a courier tells the relay's task. Settlements are not among it: they come by way of the journal.
pub(crate) enum Report {
    /// It can take another message.
    Idle { route: RouteName, courier: mpsc::Sender<Job> },
    /// Nothing was recorded for this attempt.
    Failed { id: TransactionId, route: RouteName, why: ConnectionTrouble },
    /// A probe ended.
    Probed { route: RouteName, result: Result<(), String> },
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

/// Sees whether the primary takes mail; if so, the connection becomes a courier's.
pub(crate) async fn probe(route: RouteName, next_hops: Arc<[Target]>, office: Arc<Office>) {
    match connect(&next_hops, &office.settings).await {
        Ok(connection) => {
            let _stopping = office.reports.send(Report::Probed { route: route.clone(), result: Ok(()) }).await;
            Courier { route, next_hops, office, connection: Some(connection), reader: None }.wait_for_jobs().await;
        }
        Err(why) => {
            let _stopping = office.reports.send(Report::Probed { route, result: Err(why) }).await;
        }
    }
}

/// A new courier, with its first job.
pub(crate) async fn run(route: RouteName, next_hops: Arc<[Target]>, office: Arc<Office>, first: Job) {
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
            let idle = Report::Idle { route: self.route.clone(), courier: sender };
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

    async fn take(&mut self, job: Job) {
        if self.connection.as_mut().is_some_and(|c| !c.is_usable() || c.peer_closed()) {
            self.connection = None;
        }
        if self.connection.is_none() {
            match connect(&self.next_hops, &self.office.settings).await {
                Ok(connection) => self.connection = Some(connection),
                Err(why) => return self.report_failure(job.id, ConnectionTrouble::NotMade(why)).await,
            }
        }
        let message = match self.read(&job).await {
            Ok(message) => message,
            Err(Some(fact)) => return record(self.office.journal.clone(), *fact, None),
            Err(None) => return,
        };
        let Some(connection) = &mut self.connection else { return };
        let Tried { fact, broke } =
            attempt::attempt(connection, &job, &message, &self.office.settings.hostname, self.office.seed).await;
        if !connection.is_usable() {
            self.connection = None;
        }
        if let Some(why) = broke {
            self.report_failure(job.id, ConnectionTrouble::Broke(why)).await;
        }
        if let Some(fact) = fact {
            record(self.office.journal.clone(), fact, Some(message.accepted));
        }
    }

    /// Reads on a thread that may block.
    async fn read(&mut self, job: &Job) -> Result<attempt::Message, Option<Box<Attempted>>> {
        let mut reader = self.reader.take().unwrap_or_else(|| Reader::new(self.office.storage.clone()));
        let wanted = job.clone();
        let read = tokio::task::spawn_blocking(move || {
            let message = attempt::read(&mut reader, &wanted);
            (reader, message)
        });
        // The only way to fail is the runtime shutting down.
        let (reader, message) = read.await.map_err(|_| None)?;
        self.reader = Some(reader);
        message.map_err(Some)
    }

    async fn report_failure(&self, id: TransactionId, why: ConnectionTrouble) {
        let _stopping = self.office.reports.send(Report::Failed { id, route: self.route.clone(), why }).await;
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
            let entry = Entry { record, fact: fact.clone(), about: about.clone(), answer: Some(answer), memory: None };
            if journal.submit(entry).await.is_err() {
                return;
            }
            match outcome.await {
                Ok(Err(Refused::Full | Refused::Busy)) => tokio::time::sleep(FULL_RETRY).await,
                Ok(Ok(_) | Err(Refused::Failed)) | Err(_) => return,
            }
        }
    });
}
