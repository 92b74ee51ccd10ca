//! A deterministic simulator of the custody promise: what was acknowledged is delivered or accounted for, whatever the
//! disk, the power, the clock, clients, primaries and operators do. One seed reproduces everything.
//!
//! ```text
//!  clients ──bytes──▶ Session ──▶ line ──▶ Writer ──▶ SimStorage ◀── power cuts, errors, rot
//!     ▲                             ▲         │           │
//!     └───── 250 after a commit ────┼─────────┤           │ replay at each start
//!                                   │         ▼           ▼
//!  primaries ◀──attempts── Relay ◀──┴─ facts (Ledger) == facts found     <- History: the rules
//! ```
//!
//! - *Real*: `restante_smtp::Session`, `restante_journal` (writer, blobs, replay, reader, setting aside),
//!   `restante_ledger::Ledger`, `restante_relay::{Relay, Routes, judge, received_header}`.
//! - *Mirrored in small*, by hand, from the binary: the group commit (`serve/journal.rs`), the way of a content to it
//!   (`serve/intake.rs`), the order of a start (`serve/mod.rs`), the relay's task and an attempt (`serve/relay.rs`,
//!   `serve/attempt.rs`), settlements that a full disk refused (`serve/settlements.rs`), what `recover` does to a journal
//!   (`cli/recover.rs`). A change there belongs here too.
//! - *Simulated*: the disk (`journal/src/sim.rs`), time and two clocks, clients, primaries, an operator.
//! - *Not covered*: threads and what races between them, sockets, TLS, the courier's wire and its desks, the index, the log,
//!   what `recover` delivers and exports, the configuration; a disk that lies about a sync it says it did. The integration
//!   tests and strace are for those.
//!
//! The rules are [`Rule`]; they are checked at each start, each stop, each audit in between and at the end, where
//! everything calms down and every promise must have been kept. Refuses to be built with the product, to start a thread
//! and to read a clock.
#![warn(missing_docs)]

mod client;
mod custody;
mod draw;
mod history;
mod intake;
mod primary;
mod process;
mod recover;
mod seam;
#[cfg(test)]
mod tests;
mod world;

use std::fmt;
use std::io::ErrorKind;
use std::ops::{AddAssign, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

/// What must hold, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A client heard 250: the message is in the journal, for the recipients it was told, under the name it was told.
    Promise,
    /// What was durable of an attempt is found again.
    Settlement,
    /// The facts found are the facts that were made durable, and perhaps some of those whose commit failed.
    Facts,
    /// Nobody who is settled or frozen is tried.
    Attempt,
    /// The live ledger and the one that a replay folds say the same.
    Ledger,
    /// The account is that of a model that shares no code with it.
    Balance,
    /// Bytes out are bytes in, and only what the disk spoiled cannot be read.
    Content,
    /// Where the disk spoiled nothing, nothing is called damaged.
    Damage,
    /// The journal can be read, whatever happened to it; `recover` sets aside what is bad, and a second one changes nothing.
    Recovery,
    /// Line, attempts, bytes kept of a client, and segments stay within their limits.
    Bounds,
    /// In the end, everything promised was taken by a primary.
    Delivery,
    /// Nothing panics.
    Panic,
}

/// A defect put in on purpose, to see that a rule notices it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Broken {
    /// None.
    #[default]
    Nothing,
    /// The 250 comes before the sync.
    AnswersBeforeSync,
    /// Directories are not synced.
    NoDirectorySync,
    /// Recovery takes the first bad frame for the end of the journal.
    StopsAtFirstBadFrame,
    /// Some settlement is told to the relay and never written.
    LosesSettlements,
    /// A sync that failed is tried again, and believed.
    RetriesSync,
    /// A start reads what is in memory, whether or not it is on the disk.
    TrustsMemory,
    /// An operator's hold is recorded, and the relay does not hear of it.
    ForgetsHolds,
    /// A message is recorded, and the relay does not hear of it.
    ForgetsMail,
    /// What may have been taken counts as sent.
    TrustsDoubt,
    /// The last line's end does not go out.
    CutsContents,
    /// The relay defers to another time than the record says.
    DefersOtherwise,
    /// The same, where the disk spoiled something.
    DefersOtherwiseBesideDamage,
    /// Files are cut a little short.
    CutsShort,
    /// The first sector that cannot be read ends the reading of its file.
    GivesUpAtBadSector,
    /// `recover` adds a segment whether or not something is torn.
    RecoverAlwaysAdds,
    /// `recover` sets nothing aside.
    RecoverSetsNothingAside,
    /// The line takes any number of records.
    LineWithoutEnd,
    /// Large contents are kept in memory.
    KeepsContents,
    /// Each batch gets a segment of its own.
    SegmentForEachBatch,
    /// A settlement that was refused is kept twice.
    KeepsRefusedTwice,
    /// More connections to a primary than configured.
    ConnectsAtWill,
    /// A message that cannot be read is a reason to panic.
    PanicsOnDamage,
}

/// Which history is played.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Decides everything that is not said below.
    pub seed: u64,
    /// A defect, if any.
    pub broken: Broken,
    /// How many clients there are.
    pub clients: u64,
    /// Messages each of them has.
    pub mails: u64,
    /// Whether trouble comes by chance; else it is what `die` and `fail` say, and nothing more.
    pub chaos: bool,
    /// See [`restante_journal::Options`].
    pub segment_bytes: u64,
    /// The first process dies at this disk call; by a power cut, or killed.
    pub die: Option<(u64, bool)>,
    /// This disk call fails.
    pub fail: Option<(u64, ErrorKind)>,
    /// Which unsynced sectors survive the power cut.
    pub sectors: Option<u64>,
}

/// Why a history is no good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rule {rule:?}: {what}")]
pub struct Failure {
    /// Which rule was broken.
    pub rule: Rule,
    /// How.
    pub what: String,
}

/// What histories held, summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Histories.
    pub seeds: u64,
    /// Processes started.
    pub starts: u64,
    /// Runs of `recover`.
    pub recoveries: u64,
    /// Power cuts and kills.
    pub crashes: u64,
    /// Replies 250 to the end of data.
    pub promises: u64,
    /// Tries to hand a message over.
    pub attempts: u64,
    /// Disk calls made to fail, and full disks.
    pub faults: u64,
    /// Bits flipped and sectors made unreadable.
    pub spoiled: u64,
    /// Times that the journal of a running process was read and compared.
    pub audits: u64,
    /// Disk calls.
    pub calls: u64,
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.starts += other.starts;
        self.recoveries += other.recoveries;
        self.crashes += other.crashes;
        self.promises += other.promises;
        self.attempts += other.attempts;
        self.faults += other.faults;
        self.spoiled += other.spoiled;
        self.audits += other.audits;
        self.calls += other.calls;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} seeds: {} starts, {} runs of recover, {} crashes, {} disk faults, {} spoiled places, {} promises (250), {} attempts, {} audits, {} disk calls",
            self.seeds,
            self.starts,
            self.recoveries,
            self.crashes,
            self.faults,
            self.spoiled,
            self.promises,
            self.attempts,
            self.audits,
            self.calls
        )
    }
}

impl Plan {
    /// A long history, in which everything may happen.
    pub fn of_seed(seed: u64) -> Self {
        let mut draw = draw::Draw::new(!seed);
        Self {
            seed,
            broken: Broken::Nothing,
            clients: 1 + draw.below(3),
            mails: 1 + draw.below(5),
            chaos: true,
            segment_bytes: [8 << 10, 16 << 10, 64 << 10].get(draw.index(3)).copied().unwrap_or(1 << 20),
            die: None,
            fail: None,
            sectors: None,
        }
    }

    /// A short history without chance trouble, to be cut at every call.
    pub fn short(seed: u64, clients: u64, mails: u64) -> Self {
        Self { clients, mails, chaos: false, segment_bytes: 5 << 10, ..Self::of_seed(seed) }
    }

    /// Plays the history.
    pub fn run(self) -> Result<Summary, Failure> {
        self.play(false).0
    }

    /// Plays the history, and tells what happened in it.
    pub fn trace(self) -> (Result<Summary, Failure>, Vec<String>) {
        self.play(true)
    }

    fn play(self, traced: bool) -> (Result<Summary, Failure>, Vec<String>) {
        let mut world = match World::new(self, traced) {
            Ok(world) => world,
            Err(failure) => return (Err(failure), Vec::new()),
        };
        let played = catch_unwind(AssertUnwindSafe(|| world.run()));
        let played = played.unwrap_or_else(|panic| {
            let what = panic.downcast_ref::<String>().cloned();
            let what = what.or_else(|| panic.downcast_ref::<&str>().map(|what| (*what).to_owned()));
            Err(Failure { rule: Rule::Panic, what: what.unwrap_or_default() })
        });
        world.summary.calls = world.disk.calls();
        (played.map(|()| world.summary), world.trace.unwrap_or_default())
    }
}

/// Plays the long histories of these seeds; ends at the first that is no good, and names it.
pub fn sweep(seeds: Range<u64>, broken: Broken) -> Result<Summary, (u64, Failure)> {
    let mut summary = Summary::default();
    for seed in seeds {
        summary += Plan { broken, ..Plan::of_seed(seed) }.run().map_err(|failure| (seed, failure))?;
    }
    Ok(summary)
}
