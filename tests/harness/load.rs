//! The load: many sessions send numbered messages and write each 250 into the ledger. When the server dies they wait for the
//! next one and go on with the next unsent message; one whose 250 did not arrive is not sent again and not in the ledger.

use super::client::{Client, Message, Random, Reply, sha256};
use super::ledger::{Entry, Ledger};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// Where the server is now, if anywhere.
#[derive(Default)]
pub struct Target {
    address: Mutex<Option<SocketAddr>>,
    changed: Condvar,
}

impl Target {
    /// Announces the server, or (before it is killed) its absence.
    pub fn set(&self, address: Option<SocketAddr>) {
        *self.address.lock().unwrap() = address;
        self.changed.notify_all();
    }

    fn wait(&self) -> SocketAddr {
        let mut address = self.address.lock().unwrap();
        loop {
            if let Some(found) = *address {
                return found;
            }
            address = self.changed.wait(address).unwrap();
        }
    }
}

/// What to send.
#[derive(Clone, Copy)]
pub struct Plan {
    pub messages: u64,
    pub sessions: usize,
    /// Sizes are spread evenly between these.
    pub least_bytes: usize,
    pub most_bytes: usize,
    /// Reads the transaction id out of the reply to the end of data.
    pub id_of: fn(&Reply) -> String,
}

/// A load that runs.
pub struct Load {
    workers: Vec<JoinHandle<()>>,
    pub target: Arc<Target>,
    pub ledger: Arc<Ledger>,
}

impl Load {
    /// Starts the sessions against `server`.
    pub fn start(plan: Plan, server: SocketAddr, ledger: Ledger) -> Self {
        let target = Arc::new(Target::default());
        target.set(Some(server));
        let (ledger, next) = (Arc::new(ledger), Arc::new(AtomicU64::new(0)));
        let worker = |_| {
            let (target, ledger, next) = (Arc::clone(&target), Arc::clone(&ledger), Arc::clone(&next));
            std::thread::spawn(move || session(plan, &target, &ledger, &next))
        };
        Self { workers: (0..plan.sessions).map(worker).collect(), target, ledger }
    }

    /// Waits for the last message and returns the ledger.
    pub fn finish(self) -> Ledger {
        for worker in self.workers {
            worker.join().expect("a session of the load failed");
        }
        Arc::into_inner(self.ledger).expect("all sessions ended")
    }
}

/// Messages per connection: more than one, so that a session's second message is tested too.
const PER_CONNECTION: u32 = 7;

fn session(plan: Plan, target: &Target, ledger: &Ledger, next: &AtomicU64) {
    let mut connection: Option<(Client, u32)> = None;
    loop {
        let (mut client, sent) = match connection.take() {
            Some(open) => open,
            None => match Client::connect(target.wait()).and_then(|mut c| c.hello().map(|()| c)) {
                Ok(client) => (client, 0),
                // Dead already, or it dies now: nothing was sent.
                Err(_) => {
                    std::thread::yield_now();
                    continue;
                }
            },
        };
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= plan.messages {
            let _ = client.command("QUIT");
            return;
        }
        let mut random = Random((n + 1).wrapping_mul(0xD1B5_4A32_D192_ED03) | 1);
        let message = Message::new("load", n, plan.least_bytes + random.below(plan.most_bytes - plan.least_bytes));
        match client.send("sender@example.net", &["box@example.test"], &message.content) {
            Ok(reply) if reply.code == 250 => {
                let id = (plan.id_of)(&reply);
                ledger.acknowledged(Entry { id, sha256: sha256(&message.content), message_id: message.message_id });
                if sent < PER_CONNECTION {
                    connection = Some((client, sent + 1));
                } else {
                    let _ = client.command("QUIT");
                }
            }
            Ok(reply) if reply.code / 100 == 4 => eprintln!("message {n} refused for now: {}", reply.text()),
            Ok(reply) => panic!("message {n} refused for good: {}", reply.text()),
            Err(_) => {}
        }
    }
}
