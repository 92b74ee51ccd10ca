//! Once after the start, and once a week, all that the journal holds is read again, at leisure: what rotted is told while there
//! may still be a backup to take it from. Writes nothing, decides nothing: mail is checked again before it is delivered.

use super::metrics::Metrics;
use crate::cli::account::in_words;
use restante_journal::{Damage, DirStorage, scrub};
use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// A tenth of what a disk that turns reads, so mail hardly waits for it; 64 GiB take two hours and a half.
const BYTES_PER_SECOND: u64 = 8 << 20;
/// Disks rot slowly; each pass over a large journal costs hours of reading.
const BETWEEN_PASSES: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Places remembered as told. A disk with more wants replacing, and its further damage is in no log line, but counted.
const PLACES_MAX: usize = 10_000;

/// The thread at work.
pub(crate) struct Scrub {
    alive: Sender<()>,
}

impl Scrub {
    /// Starts the thread. `known` was told at the start.
    pub(crate) fn start(storage: DirStorage, known: &[Damage], metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let (alive, stopping) = channel();
        let told = known.iter().take(PLACES_MAX).map(place).collect();
        let keeper = Keeper { storage, metrics, told, clock: Clock { stopping, due: Cell::new(Instant::now()) } };
        keeper.metrics.scrub_damage(keeper.told.len());
        std::thread::Builder::new().name("scrub".into()).spawn(move || keeper.run())?;
        Ok(Self { alive })
    }

    /// Nobody waits for it: it holds nothing, and on a bad sector one read may take a minute.
    pub(crate) fn stop(self) {
        drop(self.alive);
    }
}

/// Where damage stands, and of what kind: the same place is told once.
type Place = (u64, u64, &'static str);

fn place(damage: &Damage) -> Place {
    (damage.segment, damage.offset, damage.kind.as_str())
}

struct Keeper {
    storage: DirStorage,
    metrics: Arc<Metrics>,
    told: HashSet<Place>,
    clock: Clock,
}

/// When the next byte may be read.
struct Clock {
    stopping: Receiver<()>,
    due: Cell<Instant>,
}

impl Clock {
    /// Waits; false if it is time to stop.
    fn wait_until(&self, due: Instant) -> bool {
        let left = due.saturating_duration_since(Instant::now());
        matches!(self.stopping.recv_timeout(left), Err(RecvTimeoutError::Timeout))
    }

    /// Waits until what was read before is paid for. What was not read meanwhile is not caught up with.
    fn may_read(&self, bytes: u64) -> bool {
        let due = self.due.get().max(Instant::now());
        let cost = Duration::from_micros(bytes.saturating_mul(1_000_000) / BYTES_PER_SECOND);
        self.due.set(due + cost);
        self.wait_until(due)
    }
}

impl Keeper {
    fn run(mut self) {
        while self.pass() && self.clock.wait_until(Instant::now() + BETWEEN_PASSES) {}
    }

    /// False if it was stopped.
    fn pass(&mut self) -> bool {
        let Self { storage, metrics, told, clock } = self;
        let may_read = |bytes| {
            let may = clock.may_read(bytes);
            if may {
                metrics.scrub_read(bytes);
            }
            may
        };
        let found = |damage: &Damage| {
            if told.len() < PLACES_MAX && told.insert(place(damage)) {
                tracing::error!("the journal is {}; run `restante verify`", in_words("damaged", damage));
                metrics.scrub_damage(told.len());
            }
        };
        match scrub(storage, may_read, found) {
            Ok(scrubbed) if scrubbed.stopped => return false,
            Ok(scrubbed) => {
                for error in &scrubbed.unreadable {
                    tracing::error!("{error}; run `restante verify`");
                }
                for number in scrubbed.wrong_summaries {
                    tracing::error!(
                        "the summary of segment {number} is wrong, by a defect of ours, please report it: it is removed; restart, and the segment is read itself"
                    );
                    if let Err(error) = restante_journal::remove_summary(storage, number) {
                        tracing::error!("cannot remove the summary of segment {number}: {error}");
                    }
                }
                metrics.scrub_passed();
            }
            Err(error) => tracing::error!("cannot read the journal again: {error}"),
        }
        true
    }
}
