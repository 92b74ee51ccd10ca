//! `recover --deliver`: one round over everything that is due or deferred, route by route, over one connection each.
//!
//! Every outcome is durable before the route's next message is offered. Leaves alone what is on hold, and comes back to
//! nothing: what is refused now waits for the daemon or the next round.

use super::args::Cli;
use super::journal::Book;
use super::output::Output;
use super::progress::{Progress, Unit};
use crate::clock;
use crate::config::{self, Config, HostPort, Invalid};
use crate::replay::connect_to_any;
use crate::routing;
use crate::serve::attempt::{self, Job, Message, Tried};
use crate::serve::log::{Line, LogHandle};
use restante_courier::{Connection, Settings, Target};
use restante_envelope::{RouteName, Timestamp};
use restante_journal::{CommitError, DirStorage, Reader};
use restante_ledger::{Accepted, Attempted, Fact, Ledger, Outcome, RecipientIndex, RecipientState, RouteIndex, Served};
use std::collections::BTreeMap;
use std::io;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Messages in a row under which the connection broke twice: then it is not the messages.
const BROKEN_IN_A_ROW_MAX: u32 = 3;

/// Offers of one message: the second on a new connection, where the first broke.
const TRIES: u32 = 2;

/// What is to be delivered, and whereto.
pub(crate) struct Plan {
    /// As whom we connect, and how.
    pub(crate) settings: Settings,
    pub(crate) routes: Vec<RoutePlan>,
}

/// One route's share, in order of acceptance.
pub(crate) struct RoutePlan {
    pub(crate) name: RouteName,
    /// In order of preference; empty if nobody knows any.
    pub(crate) next_hops: Vec<Target>,
    pub(crate) jobs: Vec<Job>,
    newest: Timestamp,
}

/// Why there is no plan.
pub(crate) enum NoPlan {
    /// The configuration is wrong.
    Config(Invalid),
    /// Nobody knows where any of the mail goes.
    NoPrimary(Vec<RouteName>),
}

/// What a round came to, in recipients.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Round {
    pub(crate) sent: u64,
    pub(crate) deferred: u64,
    /// Refused for good.
    pub(crate) held: u64,
    pub(crate) quarantined: u64,
    pub(crate) skipped: Vec<Skipped>,
    /// The journal takes no more.
    pub(crate) stopped: Option<String>,
    pub(crate) interrupted: bool,
}

/// Recipients of a route to which nothing happened, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub(crate) route: RouteName,
    pub(crate) recipients: u64,
    pub(crate) why: String,
}

/// Where everything pending goes: to `to`; else to the primary in the configuration, if there is one; else to that which the
/// last daemon recorded in the journal.
pub(crate) fn plan(cli: &Cli, to: Option<&HostPort>, ledger: &Ledger) -> Result<Plan, NoPlan> {
    let config = match config::resolve(&cli.flags()) {
        Ok(config) => Some(config),
        Err(Invalid::NoFile { .. }) => None,
        Err(_) if to.is_some() => None,
        Err(invalid) => return Err(NoPlan::Config(invalid)),
    };
    let served = ledger.served();
    let hostname = config.as_ref().map(|config| config.hostname.as_str());
    let us = hostname.or(served.map(|served| served.hostname.as_str())).filter(|name| !name.is_empty());
    let mut routes = Vec::new();
    for (index, (jobs, newest)) in jobs(ledger) {
        let Some(name) = ledger.route(index).cloned() else { continue };
        let next_hops = match to {
            Some(to) => vec![routing::target(to)],
            None => next_hops(&name, config.as_ref(), served),
        };
        routes.push(RoutePlan { name, next_hops, jobs, newest });
    }
    if !routes.is_empty() && routes.iter().all(|route| route.next_hops.is_empty()) {
        return Err(NoPlan::NoPrimary(routes.into_iter().map(|route| route.name).collect()));
    }
    let us = us.unwrap_or("localhost").to_owned();
    Ok(Plan { settings: routing::without_daemon(config.as_ref(), us, clock::entropy()), routes })
}

pub(crate) fn next_hops(name: &RouteName, config: Option<&Config>, served: Option<&Served>) -> Vec<Target> {
    let configured = config.and_then(|config| config.routes.iter().find(|route| route.name == name.as_str()));
    if let Some(route) = configured {
        return routing::targets(route);
    }
    let recorded = served.and_then(|served| served.routes.iter().find(|route| route.name == name.as_str()));
    recorded.map(routing::recorded).unwrap_or_default()
}

/// What can be tried, by route.
fn jobs(ledger: &Ledger) -> BTreeMap<RouteIndex, (Vec<Job>, Timestamp)> {
    let mut routes: BTreeMap<RouteIndex, (Vec<Job>, Timestamp)> = BTreeMap::new();
    for (id, transaction) in ledger.iter() {
        let mut by_route: BTreeMap<RouteIndex, (Vec<RecipientIndex>, u16)> = BTreeMap::new();
        for (index, entry) in (0..).zip(&transaction.recipients) {
            if matches!(entry.state, RecipientState::Due | RecipientState::Deferred(_)) {
                let (recipients, attempts) = by_route.entry(entry.route).or_default();
                recipients.push(index);
                *attempts = entry.attempts.max(*attempts);
            }
        }
        for (route, (recipients, attempts)) in by_route {
            let attempt = attempts.saturating_add(1);
            let (jobs, newest) = routes.entry(route).or_default();
            jobs.push(Job { id, position: transaction.position, recipients, attempt });
            *newest = transaction.accepted_at.max(*newest);
        }
    }
    routes
}

/// Delivers by `plan`. An interrupt ends the round when the message under way is settled; a second one at once.
pub(crate) fn run(plan: Plan, book: &mut Book, log: Option<&LogHandle>, output: Output) -> io::Result<Round> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = signal(SignalKind::interrupt())?;
        let (counter, interrupts) = watch::channel(0);
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                counter.send_modify(|count| *count += 1);
            }
        });
        let messages = plan.routes.iter().map(|route| route.jobs.len() as u64).sum();
        let mut postman = Postman {
            reader: Reader::new(book.storage().clone()),
            book,
            log,
            settings: plan.settings,
            seed: clock::entropy(),
            progress: Progress::new(output, "deliver", Unit::Messages, messages),
            interrupts,
            round: Round::default(),
        };
        for route in plan.routes {
            postman.route(route).await;
        }
        Ok(postman.round)
    })
}

struct Postman<'a> {
    reader: Reader<DirStorage>,
    book: &'a mut Book,
    log: Option<&'a LogHandle>,
    settings: Settings,
    seed: u64,
    progress: Progress,
    /// How often the person has pressed Ctrl-C.
    interrupts: watch::Receiver<u32>,
    round: Round,
}

/// Why a route is left.
type Leave = String;

impl Postman<'_> {
    async fn route(&mut self, route: RoutePlan) {
        let mut connection = None;
        let mut jobs = route.jobs.into_iter();
        let mut broken_in_a_row = 0;
        while let Some(mut job) = jobs.next() {
            match self.job(&mut connection, &route.next_hops, &mut job).await {
                Ok(accepted_at) => {
                    broken_in_a_row = 0;
                    self.progress.advance(1, &format!("accepted {accepted_at}, the last {}", route.newest));
                }
                Err(Failed::Message(why)) if broken_in_a_row + 1 < BROKEN_IN_A_ROW_MAX => {
                    broken_in_a_row += 1;
                    self.skip(&route.name, &why, [&job]);
                    self.progress.advance(1, &why);
                }
                Err(Failed::Message(why) | Failed::Route(why)) => {
                    self.skip(&route.name, &why, [&job].into_iter().chain(jobs.as_slice()));
                    break;
                }
            }
        }
        if let Some(connection) = connection {
            connection.quit().await;
        }
    }

    fn skip<'j>(&mut self, route: &RouteName, why: &str, jobs: impl IntoIterator<Item = &'j Job>) {
        let recipients = jobs.into_iter().map(|job| job.recipients.len() as u64).sum();
        match self.round.skipped.last_mut().filter(|last| last.route == *route && last.why == why) {
            Some(last) => last.recipients += recipients,
            None => self.round.skipped.push(Skipped { route: route.clone(), recipients, why: why.to_owned() }),
        }
    }

    /// Offers one message; once more where the connection breaks. What is left in `job` then was not settled. Returns
    /// when the message was accepted.
    async fn job(
        &mut self,
        connection: &mut Option<Connection>,
        next_hops: &[Target],
        job: &mut Job,
    ) -> Result<Timestamp, Failed> {
        let mut why = String::new();
        for _ in 0..TRIES {
            // Each time anew: a content that went out is gone from memory.
            let mut message = match attempt::read(&mut self.reader, job, &self.settings.hostname) {
                Ok(message) => message,
                Err(unread) => {
                    let at = unread.fact.at;
                    return self.record(*unread.fact, unread.about.as_deref()).map(|()| at).map_err(Failed::Route);
                }
            };
            let open = self.connect(connection, next_hops).await.map_err(Failed::Route)?;
            let tried = self.offer(open, job, &mut message).await.map_err(Failed::Route)?;
            if let Some(fact) = tried.fact {
                job.recipients.retain(|index| fact.results.iter().all(|(done, _)| done != index));
                self.record(fact, Some(&message.accepted)).map_err(Failed::Route)?;
            }
            match tried.broke {
                None => return Ok(message.accepted.trace.received_at),
                Some(broke) => why = broke.to_string(),
            }
            *connection = None;
        }
        Err(Failed::Message(why))
    }

    /// The connection, a new one if there is none that can be used.
    async fn connect<'c>(
        &mut self,
        connection: &'c mut Option<Connection>,
        next_hops: &[Target],
    ) -> Result<&'c mut Connection, Leave> {
        if let Some(why) = &self.round.stopped {
            return Err(why.clone());
        }
        if *self.interrupts.borrow() > 0 {
            return Err(self.interrupted());
        }
        let usable = connection.take().filter(Connection::is_usable);
        let usable = usable.and_then(|mut open| if open.peer_closed() { None } else { Some(open) });
        let open = match usable {
            Some(open) => open,
            None => {
                let mut interrupts = self.interrupts.clone();
                let made = tokio::select! {
                    biased;
                    _ = interrupts.wait_for(|count| *count > 0) => None,
                    made = connect_to_any(next_hops, &self.settings) => Some(made?),
                };
                made.ok_or_else(|| self.interrupted())?
            }
        };
        // A journal that takes nothing must be known before a message is handed over.
        self.book.begin().map_err(|error| self.stop(&error))?;
        Ok(connection.insert(open))
    }

    fn interrupted(&mut self) -> Leave {
        self.round.interrupted = true;
        "interrupted".to_owned()
    }

    async fn offer(&mut self, connection: &mut Connection, job: &Job, message: &mut Message) -> Result<Tried, Leave> {
        let mut interrupts = self.interrupts.clone();
        tokio::select! {
            biased;
            _ = interrupts.wait_for(|count| *count > 1) => {
                self.round.interrupted = true;
                Err(format!("interrupted; {} may have arrived, so the next try may be a duplicate", job.id))
            }
            tried = attempt::attempt(connection, job, message, None, self.seed) => Ok(tried),
        }
    }

    /// Makes the outcome durable, then counts and logs it.
    fn record(&mut self, fact: Attempted, about: Option<&Accepted>) -> Result<(), Leave> {
        let fact = Fact::Attempted(fact);
        self.book.record(&fact).map_err(|error| self.stop(&error))?;
        let Fact::Attempted(attempted) = fact else { return Ok(()) };
        for (_, outcome) in &attempted.results {
            *match outcome {
                Outcome::Sent(_) => &mut self.round.sent,
                Outcome::Deferred { .. } => &mut self.round.deferred,
                Outcome::Held(_) => &mut self.round.held,
                Outcome::Quarantined(_) => &mut self.round.quarantined,
            } += 1;
        }
        if let Some(log) = self.log {
            Line::attempted(&attempted, about).into_iter().for_each(|line| log.write(line));
        }
        Ok(())
    }

    fn stop(&mut self, error: &CommitError) -> Leave {
        let why = format!("{error}; what was sent last may be sent again");
        self.round.stopped.get_or_insert(why).clone()
    }
}

/// What a job ran into.
enum Failed {
    /// The connection broke under this message, twice; others may fare better.
    Message(String),
    /// Nothing more can be done for this route now.
    Route(Leave),
}

#[cfg(test)]
mod tests {
    use super::super::args::Command;
    use super::super::journal::testing::{OUTPUT, command_line, contents, large, message, served, write, writer};
    use super::super::recover;
    use super::*;
    use crate::serve::log::CURRENT;
    use restante_journal::State;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    /// Answers a command or the final dot (`.`); empty hangs up.
    type Answer = fn(&str) -> &'static str;

    /// A primary that takes one connection after the other, until its listener goes.
    struct Primary {
        address: SocketAddr,
        contents: Arc<Mutex<Vec<String>>>,
        connections: Arc<Mutex<u32>>,
    }

    impl Primary {
        fn start(answer: Answer) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let (contents, connections) = (Arc::default(), Arc::default());
            let primary = Self { address, contents, connections };
            let (contents, connections) = (primary.contents.clone(), primary.connections.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    *connections.lock().unwrap() += 1;
                    // A client that hangs up is as good as one that says QUIT; one that says nothing stops the primary.
                    if !converse(stream.unwrap(), answer, &contents).unwrap_or(true) {
                        break;
                    }
                }
            });
            primary
        }

        fn contents(&self) -> Vec<String> {
            self.contents.lock().unwrap().clone()
        }
    }

    impl Drop for Primary {
        fn drop(&mut self) {
            drop(TcpStream::connect(self.address));
        }
    }

    fn converse(stream: TcpStream, answer: Answer, contents: &Mutex<Vec<String>>) -> io::Result<bool> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let say = |text: &str| write!(&stream, "{text}\r\n");
        say("220 primary.test ESMTP")?;
        let mut heard_any = false;
        while let Some(line) = lines.next().transpose()? {
            heard_any = true;
            let reply = answer(&line);
            if reply.is_empty() {
                break;
            }
            say(reply)?;
            if reply.starts_with("354") {
                let mut content = String::new();
                for line in lines.by_ref() {
                    match line?.as_str() {
                        "." => break,
                        line => content += &format!("{}\r\n", line.strip_prefix('.').unwrap_or(line)),
                    }
                }
                let reply = answer(".");
                if reply.is_empty() {
                    break;
                }
                contents.lock().unwrap().push(content);
                say(reply)?;
            }
        }
        Ok(heard_any)
    }

    fn kind(line: &str) -> &'static str {
        match line.get(..4).unwrap_or(line) {
            "DATA" => "354 go on",
            "QUIT" => "221 bye",
            "." => "250 2.0.0 Ok: queued as X",
            _ => "250 ok",
        }
    }

    fn moody(line: &str) -> &'static str {
        match line {
            "RCPT TO:<later@example.test>" => "451 4.2.1 mailbox busy",
            "RCPT TO:<never@example.test>" => "550 5.1.1 no such user",
            "RCPT TO:<crash@example.test>" => "",
            other => kind(other),
        }
    }

    fn journal(primary: &str, messages: &[(&str, &[&str], Option<&str>)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(directory.path());
        write(&mut writer, &[served(primary)]);
        for (content, to, hold) in messages {
            write(&mut writer, &[message(content.as_bytes(), to, *hold)]);
        }
        writer.close().unwrap();
        directory
    }

    fn deliver(dir: &Path, flags: &str) -> u8 {
        let cli = command_line(dir, &format!("recover --deliver {flags}"));
        let Command::Recover(args) = &cli.command else { panic!("not recover") };
        recover::run(&cli, args, OUTPUT).unwrap()
    }

    /// pending, sent
    fn account(dir: &Path) -> (u64, u64) {
        let contents = contents(dir);
        assert_eq!(contents.replay.report.state(), State::Clean);
        (contents.ledger.balance().pending, contents.ledger.balance().sent)
    }

    #[test]
    fn everything_due_goes_out_in_order_over_one_connection() {
        let primary = Primary::start(kind);
        let directory = journal(
            &primary.address.to_string(),
            &[
                ("one\r\n", &["a@example.test", "b@example.test"], None),
                ("..two\r\n", &["a@example.test"], None),
                ("frozen\r\n", &["c@example.test"], Some("mail loop")),
            ],
        );
        let dir = directory.path();
        assert_eq!(deliver(dir, ""), 3, "what is on hold is still pending");
        assert_eq!(account(dir), (1, 3));
        let received = primary.contents();
        assert_eq!((received.len(), *primary.connections.lock().unwrap()), (2, 1));
        assert!(
            received[0].starts_with("Received: from c.test") && received[0].ends_with("\r\none\r\n"),
            "{received:?}"
        );
        assert!(received[1].contains("by mx2.example.test") && received[1].ends_with("\r\n..two\r\n"), "{received:?}");
        let log = std::fs::read_to_string(dir.join("log").join(CURRENT)).unwrap();
        let events: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let events: Vec<_> = events.iter().map(|event| event["ev"].as_str().unwrap()).collect();
        assert_eq!(events, ["recovered", "sent", "sent", "sent"]);
        // Nothing is sent twice.
        assert_eq!(deliver(dir, ""), 1);
        assert_eq!((account(dir), primary.contents().len()), ((1, 3), 2));
    }

    #[test]
    fn each_recipient_has_its_own_outcome_and_the_deferred_are_tried_again() {
        let primary = Primary::start(moody);
        let to: &[&str] = &["later@example.test", "a@example.test", "never@example.test"];
        let directory = journal(&primary.address.to_string(), &[("one\r\n", to, None)]);
        let dir = directory.path();
        assert_eq!(deliver(dir, ""), 3);
        let states: Vec<_> =
            contents(dir).ledger.iter().flat_map(|(_, t)| t.recipients.to_vec()).map(|r| r.state).collect();
        assert!(
            matches!(states[..], [RecipientState::Deferred(_), RecipientState::Sent, RecipientState::Refused]),
            "{states:?}"
        );
        let kinder = Primary::start(kind);
        assert_eq!(deliver(dir, &format!("--to {}", kinder.address)), 3);
        assert_eq!((account(dir), kinder.contents().len()), ((1, 2), 1));
    }

    #[test]
    fn a_message_in_a_blob_arrives_whole_and_a_rotten_one_is_quarantined() {
        let primary = Primary::start(kind);
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        let body = "a line of a large message\r\n".repeat(40_000);
        let mut writer = writer(dir);
        let records = [1, 2].map(|name| large(dir, name, body.as_bytes(), &["a@example.test"]));
        write(&mut writer, &[served(&primary.address.to_string())]);
        write(&mut writer, &records);
        writer.close().unwrap();
        std::fs::remove_file(dir.join(records[1].blob().unwrap().file())).unwrap();
        assert_eq!(deliver(dir, ""), 9, "damage beats all");
        let balance = contents(dir).ledger.balance();
        assert_eq!((balance.sent, balance.quarantined, balance.pending), (1, 1, 0));
        assert_eq!(primary.contents().len(), 1);
        assert!(primary.contents()[0].ends_with(&body));
    }

    #[test]
    fn a_primary_that_is_down_costs_no_segment() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let directory = journal(&gone.to_string(), &[("one\r\n", &["a@example.test"], None)]);
        let before = contents(directory.path()).replay.segments;
        assert_eq!(deliver(directory.path(), ""), 1);
        assert_eq!(contents(directory.path()).replay.segments, before);
        assert_eq!(account(directory.path()), (1, 0));
    }

    #[test]
    fn a_message_that_breaks_the_connection_does_not_keep_the_others_back() {
        let primary = Primary::start(moody);
        let directory = journal(
            &primary.address.to_string(),
            &[("bad\r\n", &["crash@example.test"], None), ("good\r\n", &["a@example.test"], None)],
        );
        assert_eq!(deliver(directory.path(), ""), 3);
        assert_eq!((account(directory.path()), *primary.connections.lock().unwrap()), ((1, 1), 3));
    }

    #[test]
    fn a_primary_that_breaks_every_connection_is_left() {
        let primary = Primary::start(|line| if line.starts_with("MAIL") { "" } else { kind(line) });
        let messages: Vec<(&str, &[&str], Option<&str>)> = vec![("x\r\n", &["a@example.test"], None); 9];
        let directory = journal(&primary.address.to_string(), &messages);
        assert_eq!(deliver(directory.path(), ""), 1);
        assert_eq!(*primary.connections.lock().unwrap(), TRIES * BROKEN_IN_A_ROW_MAX);
        assert_eq!(account(directory.path()), (9, 0));
    }

    #[test]
    fn mail_that_nobody_knows_the_way_of_is_a_usage_error() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(directory.path());
        write(&mut writer, &[message(b"x\r\n", &["a@example.test"], None)]);
        writer.close().unwrap();
        assert_eq!(deliver(directory.path(), ""), 2);
        let primary = Primary::start(kind);
        assert_eq!(deliver(directory.path(), &format!("--to {}", primary.address)), 0);
        assert_eq!(account(directory.path()), (0, 1));
    }
}
