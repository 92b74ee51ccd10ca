//! The journal in the data directory, for commands that need no daemon: finding it, reading every byte of it, and the one
//! way in which `recover` adds to it.
//!
//! Never makes the directory, and never changes what is there.

use super::args::Cli;
use super::output::Output;
use super::progress::{Axis, Progress, Unit};
use crate::{clock, config};
use anyhow::{Context as _, bail};
use restante_envelope::{Timestamp, TransactionId};
use restante_journal::{
    CommitError, Depth, DirStorage, DirectoryLock, LockError, Options, Prepared, Replay, ReplayError, Seed, Sink,
    Storage as _, Writer, replay,
};
use restante_ledger::{Accepted, Base, Carried, Fact, Ledger, Position};
use std::io;
use std::path::{Path, PathBuf};

/// The data directory. What is wrong with the configuration that names it is said here; then the error is the exit code.
pub(crate) fn data_dir(cli: &Cli, output: Output) -> Result<PathBuf, u8> {
    config::data_dir(&cli.flags()).map_err(|invalid| {
        output.note(invalid.render(output.color).trim_end());
        invalid.exit_code()
    })
}

/// The journal in `dir`, which must be there: to make it would hide a slip of the finger behind a clean verdict.
pub(crate) fn open(dir: &Path) -> anyhow::Result<DirStorage> {
    match DirStorage::open(dir) {
        Ok(storage) => Ok(storage),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("there is no directory {}: name the one with the journal by --data DIR", dir.display())
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => bail!("{} is not a directory", dir.display()),
        Err(error) => Err(error).with_context(|| format!("cannot open {}", dir.display())),
    }
}

/// Everything that the journal says.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) ledger: Ledger,
    pub(crate) replay: Replay,
}

/// Reads every byte of the journal in `dir`. Whoever waits longer than two seconds is told how far it is.
pub(crate) fn read(
    storage: &DirStorage,
    dir: &Path,
    output: Output,
    what: &'static str,
) -> Result<Contents, ReplayError> {
    let (ledger, replay) = read_into(storage, dir, output, what, Ledger::new())?;
    Ok(Contents { ledger, replay })
}

/// As [`read`], for whoever wants to know more than a ledger does.
pub(crate) fn read_into<K: Sink>(
    storage: &DirStorage,
    dir: &Path,
    output: Output,
    what: &'static str,
    sink: K,
) -> Result<(K, Replay), ReplayError> {
    let blob_bytes: u64 = storage.list_blobs()?.iter().map(|blob| blob.bytes).sum();
    let progress = Progress::new(output, what, Unit::Bytes, segment_bytes(dir)?.saturating_add(blob_bytes));
    let mut watched = Watched { sink, progress, axis: Axis::new("at the mail of", [None, None]), newest: None };
    let replay = replay(storage, Depth::Everything, &mut watched)?;
    Ok((watched.sink, replay))
}

/// For the progress alone.
pub(crate) fn segment_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes: u64 = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(".rj") {
            // It is for the progress alone: a file that is gone in between counts nothing.
            bytes = bytes.saturating_add(entry.metadata().map_or(0, |metadata| metadata.len()));
        }
    }
    Ok(bytes)
}

/// Somebody who is told, and how far the telling is.
struct Watched<K> {
    sink: K,
    progress: Progress,
    axis: Axis,
    /// The last mail that was accepted.
    newest: Option<Timestamp>,
}

impl<K> Watched<K> {
    fn advance(&mut self, bytes: u64) {
        let at = self.newest.map(|newest| self.axis.at(newest)).unwrap_or_default();
        self.progress.advance(bytes, &at);
    }
}

impl<K: Sink> Sink for Watched<K> {
    fn fact(&mut self, position: Position, fact: &Fact) {
        if let Fact::Accepted(accepted) = fact {
            self.newest = Some(accepted.trace.received_at);
        }
        self.sink.fact(position, fact);
    }
    fn damaged(&mut self, position: Position, accepted: &Accepted) {
        self.sink.damaged(position, accepted);
    }
    fn lost(&mut self, position: Position, id: TransactionId, recipients: u16) {
        self.sink.lost(position, id, recipients);
    }
    fn unnamed(&mut self, segment: u64, transactions: u64, recipients: u64) {
        self.sink.unnamed(segment, transactions, recipients);
    }
    fn damaged_carried(&mut self, position: Position, carried: &Carried) {
        self.sink.damaged_carried(position, carried);
    }
    fn begins_after(&mut self, base: &Base) {
        self.sink.begins_after(base);
    }
    fn segment_done(&mut self, bytes: u64) {
        self.advance(bytes);
    }
    fn blob_done(&mut self, bytes: u64) {
        self.advance(bytes);
    }
}

/// A journal that may get more records. Its new segment is made when the first is written: a run that changes nothing
/// leaves nothing behind. The caller holds the lock, and has set aside what was torn.
pub(crate) struct Book {
    storage: DirStorage,
    replay: Replay,
    pub(crate) ledger: Ledger,
    writer: Option<Writer<DirStorage>>,
    /// In the order of the writer's batch.
    staged: Vec<Fact>,
}

impl Book {
    pub(crate) fn new(storage: DirStorage, contents: Contents) -> Self {
        Self { storage, replay: contents.replay, ledger: contents.ledger, writer: None, staged: Vec::new() }
    }

    pub(crate) fn storage(&self) -> &DirStorage {
        &self.storage
    }

    pub(crate) fn replay(&self) -> &Replay {
        &self.replay
    }

    /// Makes the new segment, in which it stands that the torn end of the last one counts no more.
    pub(crate) fn begin(&mut self) -> Result<(), CommitError> {
        if self.writer.is_none() {
            let seed = Seed { journal: clock::entropy128(), entropy: clock::entropy(), tags: clock::entropy() };
            let (storage, largest_id) = (self.storage.clone(), self.ledger.largest_id());
            let writer = Writer::open(storage, Options::default(), &self.replay, largest_id, seed, clock::now())?;
            self.writer = Some(writer);
        }
        Ok(())
    }

    /// Makes `fact` durable, and only then true.
    pub(crate) fn record(&mut self, fact: &Fact) -> Result<(), CommitError> {
        self.begin()?;
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let now = clock::now();
        writer.stage(&Prepared::fact(fact, Vec::new()), now)?;
        let durable = writer.commit(now)?;
        for receipt in durable.receipts() {
            self.ledger.apply(receipt.position(), fact);
        }
        Ok(())
    }

    /// Stages a record with what it means; what fills a batch is made durable.
    pub(crate) fn stage(&mut self, record: &Prepared, fact: Fact) -> Result<(), CommitError> {
        self.begin()?;
        let Some(writer) = &mut self.writer else { return Ok(()) };
        writer.stage(record, clock::now())?;
        self.staged.push(fact);
        if writer.has_room() { Ok(()) } else { self.flush() }
    }

    /// Makes durable what is staged, and only then true.
    pub(crate) fn flush(&mut self) -> Result<(), CommitError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let facts = std::mem::take(&mut self.staged);
        let durable = writer.commit(clock::now())?;
        for (receipt, fact) in durable.receipts().iter().zip(facts) {
            self.ledger.apply(receipt.position(), &fact);
        }
        Ok(())
    }

    /// Seals what was begun.
    pub(crate) fn close(&mut self) -> Result<(), CommitError> {
        self.writer.take().map_or(Ok(()), Writer::close)
    }
}

/// The right to write; a dry run only sees to it that nobody has it.
pub(crate) fn take_lock(storage: &DirStorage, dry_run: bool) -> Result<Option<DirectoryLock>, LockError> {
    if dry_run {
        return if storage.is_locked()? { Err(LockError::Held) } else { Ok(None) };
    }
    crate::serve::lock(storage).map(Some)
}

/// The index is made from the journal, and may be older than it.
pub(crate) fn remove_index(storage: &DirStorage) -> io::Result<()> {
    for name in storage.list()?.iter().filter(|name| name.starts_with(crate::serve::index::NAME)) {
        storage.remove(name)?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod testing {
    //! Small journals on disk.

    use super::*;
    use restante_envelope::{BodyType, Envelope, ForwardPath, Protocol, Recipient, ReversePath, RouteName, Timestamp};
    use restante_envelope::{Reply, Trace};
    use restante_journal::{BlobName, BlobWriter};
    use restante_ledger::{Attempted, Outcome, RecipientIndex, RouteRecord, Served, Timings};

    pub(crate) const OUTPUT: Output = Output { json: true, plain: true, color: false };

    /// A message for `to`, on the route `example.test`.
    pub(crate) fn message(content: &[u8], to: &[&str], hold: Option<&str>) -> Prepared {
        let (envelope, trace) = envelope(to);
        Prepared::accepted(&envelope, &trace, content.to_vec(), hold)
    }

    /// The same, with its content in a blob of this name.
    pub(crate) fn large(dir: &Path, name: u128, content: &[u8], to: &[&str]) -> Prepared {
        let mut blob = BlobWriter::create(&DirStorage::open(dir).unwrap(), BlobName::from_bits(name)).unwrap();
        blob.write(content).unwrap();
        let (envelope, trace) = envelope(to);
        Prepared::accepted_in_blob(&envelope, &trace, &blob.finish().unwrap(), None)
    }

    fn envelope(to: &[&str]) -> (Envelope, Trace) {
        let recipient = |path: &&str| Recipient::new(ForwardPath::parse(path).unwrap(), RouteName::new("example.test"));
        let envelope = Envelope::new(
            ReversePath::parse("a@b.test").unwrap(),
            to.iter().map(recipient).collect(),
            BodyType::SevenBit,
        );
        let trace = Trace {
            client: "192.0.2.1:4000".parse().unwrap(),
            helo: "c.test".into(),
            protocol: Protocol::Esmtp,
            tls: None,
            session: 1,
            received_at: Timestamp::from_unix_ms(1_795_359_200_118),
        };
        (envelope, trace)
    }

    /// That the recipient with this index was taken.
    pub(crate) fn sent(id: TransactionId, index: RecipientIndex) -> Prepared {
        let results = vec![(index, Outcome::Sent(Reply::new(250, None, "ok")))];
        let (at, timings) = (Timestamp::from_unix_ms(1_795_359_260_118), Timings::default());
        Prepared::fact(&Fact::Attempted(Attempted { id, at, next_hop: None, timings, results }), Vec::new())
    }

    /// That a daemon started with the route `example.test`.
    pub(crate) fn served(primary: &str) -> Prepared {
        let (name, domains) = ("example.test".to_owned(), vec!["example.test".to_owned()]);
        let routes = vec![RouteRecord { name, domains, primary: vec![primary.to_owned()] }];
        let at = Timestamp::from_unix_ms(1_795_359_100_118);
        Prepared::fact(&Fact::Served(Served { at, hostname: "mx2.example.test".into(), routes }), Vec::new())
    }

    /// Opens the journal in `dir`, as a daemon does.
    pub(crate) fn writer(dir: &Path) -> Writer<DirStorage> {
        let storage = DirStorage::open(dir).unwrap();
        let mut ledger = Ledger::new();
        let replay = replay(&storage, Depth::Records, &mut ledger).unwrap();
        let seed = Seed { journal: 7, entropy: 7, tags: 8 };
        Writer::open(storage, Options::default(), &replay, ledger.largest_id(), seed, clock::now()).unwrap()
    }

    /// Writes the records as one batch; their identifiers.
    pub(crate) fn write(writer: &mut Writer<DirStorage>, records: &[Prepared]) -> Vec<TransactionId> {
        for record in records {
            writer.stage(record, clock::now()).unwrap();
        }
        writer.commit(clock::now()).unwrap().receipts().iter().map(|receipt| receipt.id()).collect()
    }

    /// The path of the first segment.
    pub(crate) fn first_segment(dir: &Path) -> PathBuf {
        dir.join("seg-00000000000000000001.rj")
    }

    /// Flips a bit in the middle of `content`, wherever the first segment has it.
    pub(crate) fn rot(dir: &Path, content: &[u8]) -> u64 {
        let path = first_segment(dir);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(content.len()).position(|window| window == content).unwrap() + content.len() / 2;
        bytes[at] ^= 4;
        std::fs::write(&path, bytes).unwrap();
        at as u64
    }

    /// What stands behind the last frame, where no mark proves it yet: bytes in flight at a crash.
    pub(crate) fn tear(dir: &Path) {
        let file = std::fs::OpenOptions::new().append(true).open(first_segment(dir)).unwrap();
        io::Write::write_all(&mut { file }, &[0xA5; 333]).unwrap();
    }

    /// Reads the journal in `dir` in full.
    pub(crate) fn contents(dir: &Path) -> Contents {
        read(&DirStorage::open(dir).unwrap(), dir, OUTPUT, "test").unwrap()
    }

    /// The command line `restante --data DIR ...`.
    pub(crate) fn command_line(dir: &Path, line: &str) -> Cli {
        let words = ["restante", "--plain", "--data", dir.to_str().unwrap()].into_iter();
        clap::Parser::try_parse_from(words.chain(line.split_whitespace())).unwrap()
    }
}
