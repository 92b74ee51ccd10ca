//! Who delivers: the daemon, asked for a few messages at a time, or this command with the journal's lock.

use crate::cli::args::Cli;
use crate::cli::client::{Client, NoAnswer};
use crate::cli::exit;
use crate::cli::journal::Book;
use crate::cli::queue::percent_encoded;
use crate::replay::{Item, Order, Round, TURN, Tally};
use crate::routing;
use hyper::Method;
use restante_courier::{Settings, Target};
use restante_journal::CommitError;
use restante_ledger::{Fact, Position};
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// How often Ctrl-C was pressed. The first ends the replay when the message under way is recorded, the second at once.
pub(super) struct Interrupts(Arc<AtomicU32>);

impl Interrupts {
    pub(super) fn listen() -> io::Result<Self> {
        let pressed = Arc::new(AtomicU32::new(0));
        let (count, runtime) = (pressed.clone(), Builder::new_current_thread().enable_all().build()?);
        let mut signals = {
            let _here = runtime.enter();
            signal(SignalKind::interrupt())?
        };
        let listen = move || {
            runtime.block_on(async {
                while signals.recv().await.is_some() {
                    if count.fetch_add(1, Ordering::Relaxed) > 0 {
                        std::process::exit(exit::INTERRUPTED.into());
                    }
                }
            });
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen)?;
        Ok(Self(pressed))
    }

    pub(super) fn is_pressed(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

pub(super) struct Hand {
    kind: Kind,
    names: Vec<String>,
}

enum Kind {
    Daemon { client: Client, order: Order, primaries: Vec<Vec<Target>>, end: Option<Position> },
    Ours { runtime: Box<Runtime>, round: Option<Box<Round>>, book: Box<Book> },
}

impl Hand {
    pub(super) fn daemon(
        cli: &Cli,
        order: Order,
        end: Option<Position>,
        primaries: &[Vec<Target>],
    ) -> Result<Self, NoAnswer> {
        let client = Client::new(cli, None)?;
        // Whoever has the lock and does not answer is no daemon.
        client.ask(Method::GET, "/api/v1/active").map_err(|no| match no.code {
            exit::UNREACHABLE => {
                NoAnswer { code: exit::LOCKED, why: format!("another command holds the journal: {}", no.why) }
            }
            _ => no,
        })?;
        let kind = Kind::Daemon { client, order, primaries: primaries.to_vec(), end };
        Ok(Self { kind, names: names(primaries) })
    }

    pub(super) fn ours(order: Order, settings: Settings, book: Book, primaries: &[Vec<Target>]) -> io::Result<Self> {
        let round = Some(Box::new(Round::new(order, settings, book.storage().clone(), primaries.to_vec())));
        let runtime = Box::new(Builder::new_current_thread().enable_all().build()?);
        Ok(Self { kind: Kind::Ours { runtime, round, book: Box::new(book) }, names: names(primaries) })
    }

    /// Where the mail of a primary goes.
    pub(super) fn name(&self, primary: usize) -> &str {
        self.names.get(primary).map_or("?", String::as_str)
    }

    /// Delivers the first of these, for a second or so. What was taken is durable when it returns.
    pub(super) fn deliver(&mut self, items: &[Item], interrupts: &Interrupts) -> Result<Tally, NoAnswer> {
        match &mut self.kind {
            Kind::Daemon { client, order, primaries, end } => {
                let (actor, reason) = (percent_encoded(&order.actor), percent_encoded(&order.reason));
                let end_text = end.map(|end| end.to_string()).unwrap_or_default();
                let path =
                    format!("/api/v1/replay?job={:016x}&end={end_text}&actor={actor}&reason={reason}", order.job);
                let answer = client.order(&path, listed(items, primaries), |_, _| {})?;
                let tally = Tally::from_json(&answer);
                *end = (*end).max(tally.end);
                Ok(tally)
            }
            Kind::Ours { runtime, round: Some(round), book } => {
                Ok(runtime.block_on(by_ourselves(round, book, items, interrupts)))
            }
            Kind::Ours { .. } => Ok(Tally::default()),
        }
    }

    /// Takes leave of the primaries, and seals what was written.
    pub(super) fn close(self) -> Result<(), CommitError> {
        match self.kind {
            Kind::Daemon { .. } => Ok(()),
            Kind::Ours { runtime, round, mut book } => {
                round.into_iter().for_each(|round| runtime.block_on(round.quit()));
                book.close()
            }
        }
    }
}

async fn by_ourselves(round: &mut Round, book: &mut Book, items: &[Item], interrupts: &Interrupts) -> Tally {
    let (mut tally, began) = (Tally::default(), Instant::now());
    for item in items {
        if tally.tried > 0 && began.elapsed() >= TURN {
            break;
        }
        if interrupts.is_pressed() {
            tally.stopped = Some("interrupted".to_owned());
            break;
        }
        // A journal that takes nothing must be known before a message is handed over.
        if let Err(error) = book.begin() {
            tally.stopped = Some(error.to_string());
            break;
        }
        let offered = round.offer(item).await;
        if let Some(fact) = offered.fact
            && let Err(error) = book.record(&Fact::Replayed(fact))
        {
            tally.stopped = Some(format!("{error}; {} was taken, and would be sent again", item.id));
            break;
        }
        tally.add(offered.tally);
    }
    tally
}

fn names(primaries: &[Vec<Target>]) -> Vec<String> {
    let name = |hops: &Vec<Target>| hops.iter().map(ToString::to_string).collect::<Vec<_>>().join(", then ");
    primaries.iter().map(name).collect()
}

/// As the daemon reads it: a line for each primary, then one for each message.
fn listed(items: &[Item], primaries: &[Vec<Target>]) -> String {
    let mut list = String::new();
    // Strings into memory: nothing that could fail.
    for hops in primaries {
        let _infallible = write!(list, "to");
        for hop in hops {
            let _infallible = write!(list, " {}", routing::word(hop));
        }
        list.push('\n');
    }
    for Item { id, position, recipients, primary } in items {
        let _infallible = write!(list, "mail {primary} {id} {position}");
        for index in recipients {
            let _infallible = write!(list, " {index}");
        }
        list.push('\n');
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use restante_envelope::TransactionId;

    #[test]
    fn the_daemon_reads_the_list_as_it_was_meant() {
        let item = |n: u16, primary| Item {
            id: TransactionId::from_bits(n.into()),
            position: Position { segment: n.into(), offset: 4096 },
            recipients: vec![0, n],
            primary,
        };
        let target = |host: &str| Target::Host { host: host.into(), port: 25 };
        let primaries = vec![
            vec![target("a.test"), target("::1")],
            vec![],
            vec![Target::MxOf(vec!["b.test".into(), "c.test".into()])],
        ];
        let items = vec![item(1, 0), item(2, 2)];
        let list = listed(&items, &primaries);
        let read = crate::serve::replay_list(list.as_bytes()).unwrap();
        assert_eq!((read.1, read.0.len()), (items, 3));
        assert_eq!(read.0, primaries);
        for bad in ["mail 0", "x", "to a:b:c", "to mx=", "mail x 1 1:2 0", "mail 0 00000000000000000000000001 1 0"] {
            assert!(crate::serve::replay_list(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
