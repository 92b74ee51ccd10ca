//! Couriers: tasks that hold one connection to a primary each, and take one message after the other over it.
//!
//! A courier takes its next message from its route's desk, the commands of that one travelling behind the content of the
//! one before where the primary takes it so. With nothing to do it keeps its connection for a while. What a courier hears
//! becomes a fact in the journal, and only then does the relay learn of it.

use super::ahead::{Leave, Manners};
use super::attempt::{self, Job, Message, Tried};
use super::desk::{Assignment, Desk, Seat};
use super::memory::{Memory, Share};
use super::settlements::Settlements;
use restante_courier::{ConnectError, Connection, Settings, Stage, Target};
use restante_envelope::{RouteName, TransactionId};
use restante_journal::{DirStorage, Reader};
use restante_ledger::{Accepted, Attempted, Fact, Outcome};
use restante_relay::{ConnectionTrouble, MAX_CONNECTIONS_DEFAULT};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// Attempts under way on a route beyond those that have a connection. For each connection one that is sent ahead, and two
/// whose outcome is on its way to the disk: with fewer, connections that were all answered at once would have nothing to
/// send ahead until the next sync.
pub(crate) const ATTEMPTS_AHEAD: usize = 3 * MAX_CONNECTIONS_DEFAULT;
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
/// A usual message: sent ahead of or behind another, and read on the spot if it lies in memory, as what was written a moment
/// ago does. That costs less than the two wake-ups of a thread that may wait for the disk; more than this makes others wait.
const SMALL_BYTES_MAX: u64 = 64 << 10;

/// What couriers of one daemon share.
pub(crate) struct Office {
    pub(crate) settings: Settings,
    pub(crate) storage: DirStorage,
    pub(crate) settlements: Arc<Settlements>,
    pub(crate) seed: u64,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) memory: Memory,
    pub(crate) in_clear: InClear,
    pub(crate) manners: Manners,
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

/// Sends a report when dropped, unless something better was said. Whatever ends a task (a panic, too), the relay must
/// hear that its attempt or probe is over: it would wait for it for ever.
struct Promise {
    desk: Arc<Desk>,
    office: Arc<Office>,
    /// The attempt; none of a probe.
    id: Option<TransactionId>,
    kept: bool,
}

impl Promise {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        const DEFECT: &str = "it ended by a defect of ours";
        if self.kept {
            return;
        }
        let desk = self.desk.clone();
        send(
            &self.office,
            [match self.id {
                Some(id) => Report::Failed { desk, id, why: ConnectionTrouble::Broke(DEFECT.into()) },
                None => Report::Probed { desk, result: Err(DEFECT.into()) },
            }],
        );
    }
}

/// From where nothing can be awaited.
fn send<R: IntoIterator<Item = Report> + Send + 'static>(office: &Office, reports: R)
where
    R::IntoIter: Send,
{
    let sender = office.reports.clone();
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(async move {
            for report in reports {
                let _stopping = sender.send(report).await;
            }
        });
    }
}

/// What a courier tells the relay's task. Settlements are not among it: they come by way of the journal.
pub(crate) enum Report {
    /// Nothing was recorded for this attempt.
    Failed { desk: Arc<Desk>, id: TransactionId, why: ConnectionTrouble },
    /// This attempt was not made.
    Returned { desk: Arc<Desk>, id: TransactionId },
    /// A probe ended.
    Probed { desk: Arc<Desk>, result: Result<(), String> },
}

/// Why there is no connection.
pub(crate) struct NoConnection {
    pub(crate) why: String,
    /// A server was there, and did not want it.
    answered: bool,
}

impl NoConnection {
    fn in_trouble(self, open: usize) -> ConnectionTrouble {
        let Self { why, answered } = self;
        if answered { ConnectionTrouble::Refused { why, open } } else { ConnectionTrouble::NotMade(why) }
    }
}

/// Tries each next hop in turn.
pub(crate) async fn connect(next_hops: &[Target], settings: &Settings) -> Result<Connection, NoConnection> {
    let mut failed = NoConnection { why: "no next hop is configured".to_owned(), answered: false };
    for target in next_hops {
        match restante_courier::connect(target, settings).await {
            Ok(connection) => return Ok(connection),
            Err(error) => {
                // Postfix says 421 to a client that has too many; others just close.
                let answered = matches!(
                    error,
                    ConnectError::Greeting(_) | ConnectError::Ehlo(_) | ConnectError::Closed { stage: Stage::Greeting }
                );
                failed = NoConnection { why: error.to_string(), answered };
            }
        }
    }
    Err(failed)
}

async fn connect_within(
    limit: Duration,
    next_hops: &[Target],
    settings: &Settings,
) -> Result<Connection, NoConnection> {
    let connected = tokio::time::timeout(limit, connect(next_hops, settings)).await;
    let late = |_| Err(NoConnection { why: format!("no answer within {} s", limit.as_secs()), answered: false });
    connected.unwrap_or_else(late)
}

/// Sees whether the primary takes mail; if so, the connection becomes a courier's.
pub(crate) async fn probe(desk: Arc<Desk>, office: Arc<Office>) {
    let promise = Promise { desk: desk.clone(), office: office.clone(), id: None, kept: false };
    let Some(seat) = desk.seat(PROBE_TIMEOUT).await else {
        promise.keep();
        let (n, limit) = (desk.seats_max, PROBE_TIMEOUT.as_secs());
        let result = Err(format!("all {n} connections to it are busy, and none ended within {limit} s"));
        let _stopping = office.reports.send(Report::Probed { desk, result }).await;
        return;
    };
    let mut courier = Courier::new(desk.clone(), office.clone(), seat);
    let connected = connect_within(PROBE_TIMEOUT, &desk.next_hops, &office.settings).await;
    let result = connected.map(|connection| {
        office.in_clear.tell(&desk.route, &connection);
        courier.connection = Some(connection);
    });
    let result = result.map_err(|failed| failed.why);
    promise.keep();
    let _stopping = office.reports.send(Report::Probed { desk, result }).await;
    courier.work(None).await;
}

/// A new courier, with its first job.
pub(crate) async fn run(desk: Arc<Desk>, office: Arc<Office>, seat: Seat, first: Assignment) {
    let courier = Courier::new(desk, office, seat);
    let first = courier.task(first);
    courier.work(Some(first)).await;
}

struct Courier {
    desk: Arc<Desk>,
    office: Arc<Office>,
    /// None once it has left.
    seat: Option<Seat>,
    connection: Option<Connection>,
    /// Whether the next message's commands may be sent ahead on this connection.
    leave: Leave,
    reader: Option<Reader<DirStorage>>,
    /// Taken from the desk and read while another was under way.
    next: Option<Task>,
}

/// An attempt in a courier's hands.
struct Task {
    promise: Promise,
    job: Job,
    content_len: u64,
    message: Option<(Message, Share)>,
}

/// What came of a task.
enum Ended {
    Recorded(Attempted, Option<Arc<Accepted>>),
    Trouble(ConnectionTrouble),
    /// The server did not hear of it.
    Unheard,
}

impl Courier {
    fn new(desk: Arc<Desk>, office: Arc<Office>, seat: Seat) -> Self {
        Self { desk, office, seat: Some(seat), connection: None, leave: Leave::No, reader: None, next: None }
    }

    fn task(&self, Assignment { job, content_len }: Assignment) -> Task {
        let (desk, office) = (self.desk.clone(), self.office.clone());
        let promise = Promise { desk, office, id: Some(job.id), kept: false };
        Task { promise, job, content_len, message: None }
    }

    /// Until there is nothing to do for a while, or a connection fails: whether another makes sense, the relay decides.
    async fn work(mut self, mut task: Option<Task>) {
        loop {
            let in_trouble = match task.take() {
                Some(task) => self.take(task).await,
                None => self.connection.is_none(),
            };
            if in_trouble || self.desk.is_closed() {
                break;
            }
            task = match self.take_next() {
                Some(next) => Some(next),
                // It ended though nothing went wrong: some servers take a few messages a connection.
                None if self.connection.is_none() => self.desk.next_now().map(|assignment| self.task(assignment)),
                None => self.desk.next(IDLE).await.map(|assignment| self.task(assignment)),
            };
            if task.is_none() {
                break;
            }
        }
        if let Some(connection) = self.let_go() {
            connection.quit().await;
        }
    }

    fn let_go(&mut self) -> Option<Connection> {
        let connection = self.connection.take()?;
        if std::mem::replace(&mut self.leave, Leave::No) == Leave::Try {
            self.office.manners.give_up(&connection);
        }
        Some(connection)
    }

    /// What was taken ahead, unless it was taken back.
    fn take_next(&mut self) -> Option<Task> {
        let next = self.next.take()?;
        if self.desk.begin(next.job.id) {
            return Some(next);
        }
        next.promise.keep();
        if self.connection.as_ref().is_some_and(Connection::is_promised) {
            // The server waits for its content, and must not get another's.
            drop(self.let_go());
        }
        None
    }

    /// Whether the connection failed.
    async fn take(&mut self, mut task: Task) -> bool {
        let ended = loop {
            match self.attempt(&mut task).await {
                // On a connection that was not spoken to ahead it is heard, or in trouble.
                Ended::Unheard => {}
                ended => break ended,
            }
        };
        task.promise.keep();
        match ended {
            Ended::Recorded(fact, about) => {
                let all_sent = fact.results.iter().all(|(_, outcome)| matches!(outcome, Outcome::Sent(_)));
                self.office.settlements.record(Fact::Attempted(fact), about).await;
                self.connection.is_none() && !all_sent
            }
            Ended::Trouble(why) => {
                let failed = Report::Failed { desk: self.desk.clone(), id: task.job.id, why };
                let _stopping = self.office.reports.send(failed).await;
                // One that is only busy may be asked for the next message.
                self.connection.is_none()
            }
            Ended::Unheard => false,
        }
    }

    async fn attempt(&mut self, task: &mut Task) -> Ended {
        let mut connection = match self.connected().await {
            Ok(connection) => connection,
            Err(failed) => return Ended::Trouble(failed.in_trouble(self.desk.others())),
        };
        let (message, _share) = match &mut task.message {
            Some(read) => read,
            None => {
                let share = self.office.memory.for_attempt(task.content_len.min(ATTEMPT_BYTES_MAX)).await;
                match self.read(&task.job, task.content_len).await {
                    Ok(message) => task.message.insert((message, share)),
                    Err(unread) => {
                        self.connection = Some(connection);
                        return Ended::Recorded(*unread.fact, unread.about);
                    }
                }
            }
        };
        self.look_ahead(&connection, task.content_len).await;
        let next = self.next.as_ref().and_then(|next| next.message.as_ref()).map(|(message, _)| message);
        let next = next.filter(|_| self.leave != Leave::No);
        let tried = attempt::attempt(&mut connection, &task.job, message, next, self.office.seed).await;
        self.leave = self.office.manners.learn(&connection, self.leave);
        if connection.is_usable() {
            self.connection = Some(connection);
        }
        match tried {
            Tried { unheard: true, .. } => Ended::Unheard,
            Tried { fact: Some(fact), .. } => Ended::Recorded(fact, Some(message.accepted.clone())),
            Tried { broke, .. } => {
                Ended::Trouble(broke.unwrap_or_else(|| ConnectionTrouble::Broke("nothing was heard".into())))
            }
        }
    }

    /// The connection, or a new one where there is none or it ended while it was idle.
    async fn connected(&mut self) -> Result<Connection, NoConnection> {
        if let Some(mut connection) = self.connection.take()
            && connection.is_usable()
            && !connection.peer_closed()
        {
            return Ok(connection);
        }
        self.leave = Leave::No;
        let connection = connect_within(CONNECT_TIMEOUT, &self.desk.next_hops, &self.office.settings).await?;
        self.office.in_clear.tell(&self.desk.route, &connection);
        Ok(connection)
    }

    /// Takes and reads the next message, if its commands can go out behind the content of one of `content_len`.
    async fn look_ahead(&mut self, connection: &Connection, content_len: u64) {
        // It would wait behind a large one while others are free.
        if self.next.is_some() || content_len > SMALL_BYTES_MAX {
            return;
        }
        if self.leave == Leave::No {
            self.leave = self.office.manners.ask(connection);
        }
        if self.leave == Leave::No {
            return;
        }
        let Some(assignment) = self.desk.next_ahead(SMALL_BYTES_MAX) else { return };
        let mut task = self.task(assignment);
        if let Some(share) = self.office.memory.for_next_attempt(task.content_len) {
            match self.read(&task.job, task.content_len).await {
                Ok(message) => task.message = Some((message, share)),
                Err(unread) => {
                    self.desk.begin(task.job.id);
                    task.promise.keep();
                    return self.office.settlements.record(Fact::Attempted(*unread.fact), unread.about).await;
                }
            }
        }
        self.next = Some(task);
    }

    /// Reads, what is large or not in memory on a thread that may block.
    async fn read(&mut self, job: &Job, content_len: u64) -> Result<Message, attempt::Unread> {
        let mut reader = self.reader.take().unwrap_or_else(|| Reader::new(self.office.storage.clone()));
        if content_len <= SMALL_BYTES_MAX
            && let Some(message) = attempt::at_hand(&reader, job, content_len, &self.office.settings.hostname)
        {
            self.reader = Some(reader);
            return Ok(message);
        }
        let (wanted, office) = (job.clone(), self.office.clone());
        let read = tokio::task::spawn_blocking(move || {
            let message = attempt::read(&mut reader, &wanted, &office.settings.hostname);
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

impl Drop for Courier {
    /// However it ends, what it took and did not try goes back, and what waits at the desk if nobody else is there for it.
    fn drop(&mut self) {
        let taken = self.next.take().and_then(|next| {
            next.promise.keep();
            self.desk.begin(next.job.id).then_some(next.job.id)
        });
        let left = self.seat.take().map(|seat| self.desk.leave(seat)).unwrap_or_default();
        let ids = taken.into_iter().chain(left.into_iter().map(|assignment| assignment.job.id));
        let returned: Vec<_> = ids.map(|id| Report::Returned { desk: self.desk.clone(), id }).collect();
        if !returned.is_empty() {
            send(&self.office, returned);
        }
    }
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
