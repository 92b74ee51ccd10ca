//! `recover --from` into a running daemon: reads the other journal beside live mail, then takes over what is not known here, some
//! messages at a time, in line with everybody else. Decides nothing: what is to be taken is [`crate::merge`]'s to say.

use super::admin::Admin;
use super::journal::{Entry, Refused};
use super::memory::Share;
use super::relay::Request;
use crate::cli::recover::merge::Merged;
use crate::merge::{Messages, Past, Plan, Source, Unread, Untaken};
use anyhow::{Context as _, anyhow, bail};
use restante_envelope::TransactionId;
use restante_journal::{BlobError, Depth, DirStorage, Prepared, ReplayError, have_a_common_past, replay};
use restante_ledger::{Balance, Fact, Transaction};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Mutex, oneshot};

/// Messages compared, held in memory and handed over at once: 8 MiB of the largest that are no blobs.
const AT_ONCE: usize = 32;
/// A segment may leave while our own journal is read.
const READS_MAX: usize = 4;

/// Two at once would each take over what the other does.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// The other journal, and what we know beside the relay's ledger.
struct Read {
    source: Source,
    past: Past,
    is_common: bool,
}

/// Takes over what the journal in `dir` knows and this one does not. What was taken over stays if it ends with an error, and
/// another run goes on.
pub(super) async fn merge(admin: Arc<Admin>, dir: PathBuf) -> anyhow::Result<Value> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (storage, data) = (admin.storage.clone(), admin.data_dir.clone());
    let read = tokio::task::spawn_blocking(move || read(&dir, &data, &storage)).await??;
    let read = Arc::new(read);
    let mut merged = Merged::of(&read.source, &Plan::default());
    for ids in read.source.ids().chunks(AT_ONCE) {
        if *admin.stopping.borrow() {
            bail!("the daemon is stopping: run it again afterwards");
        }
        some(&admin, &read, ids, &mut merged).await?;
    }
    let (_, balance) = find(&admin, Vec::new()).await?;
    tracing::info!(
        "merged {}: {} messages added, {} mended, {} settled",
        merged.dir.display(),
        merged.added,
        merged.mended,
        merged.settled
    );
    Ok(account(&admin, &merged, balance))
}

fn account(admin: &Admin, merged: &Merged, balance: Balance) -> Value {
    let Balance { transactions, accepted, pending, sent, bounced, expired, removed, quarantined, generated } = balance;
    let state = if admin.metrics.damaged_places() > 0 { "damaged" } else { merged.state.as_str() };
    json!({
        "type": "recover", "state": state, "transactions": transactions, "accepted": accepted, "pending": pending,
        "sent": sent, "bounced": bounced, "expired": expired, "removed": removed, "quarantined": quarantined,
        "generated": generated, "from": [merged.object()],
    })
}

/// The other journal first: whatever it has of ours is in ours by then.
fn read(dir: &Path, data: &Path, storage: &DirStorage) -> anyhow::Result<Read> {
    let source = Source::read(dir, data)?;
    for reads in 1.. {
        let mut messages = Messages::default();
        match replay(storage, Depth::Records, &mut messages) {
            Err(ReplayError::Io(error)) if error.kind() == io::ErrorKind::NotFound && reads < READS_MAX => {}
            read => {
                let (_, past) = Past::new(messages, &read?.base);
                let is_common = have_a_common_past(storage, &source.storage)?;
                return Ok(Read { source, past, is_common });
            }
        }
    }
    bail!("the journal was not read")
}

type Here = HashMap<TransactionId, Transaction>;

async fn find(admin: &Admin, ids: Vec<TransactionId>) -> anyhow::Result<(Here, Balance)> {
    let (answer, found) = oneshot::channel();
    let stopping = || anyhow!("the daemon is stopping");
    admin.relay.send(Request::Find(ids, answer)).await.map_err(|_| stopping())?;
    found.await.map_err(|_| stopping())
}

async fn some(admin: &Arc<Admin>, read: &Arc<Read>, ids: &[TransactionId], merged: &mut Merged) -> anyhow::Result<()> {
    // Nobody else changes how they stand, and no segment leaves meanwhile.
    let _permit = admin.operating.clone().acquire_owned().await?;
    if admin.journal.is_full() {
        bail!("the disk is full: what room there is is for settlements; run it again when there is more");
    }
    let (here, _) = find(admin, ids.to_vec()).await?;
    let plan = read.source.plan(ids, |id, position| read.past.known(here.get(&id), (id, position), read.is_common));
    let told = Merged::of(&read.source, &plan);
    let (adding, settling) = (plan.add, plan.settle);
    let (work, into) = (read.clone(), admin.storage.clone());
    let taken = tokio::task::spawn_blocking(move || take(&work.source, &into, adding)).await?;
    let (records, damaged) = taken.map_err(|error| {
        if matches!(error, BlobError::Directory(_)) {
            admin.journal.fail();
        }
        anyhow!("cannot write a large message: {error}")
    })?;
    let settled = settling.into_iter().map(|fact| (Prepared::fact(&fact, Vec::new()), fact));
    let mut answers = Vec::new();
    for (record, fact) in records.into_iter().chain(settled) {
        let (answer, outcome) = oneshot::channel();
        let entry = Entry { record, fact, about: None, answer: Some(answer), memory: Share::default(), claim: None };
        admin.journal.submit(entry).await.map_err(refused)?;
        answers.push(outcome);
    }
    for answer in answers {
        answer.await.context("the journal has ended")?.map_err(refused)?;
    }
    merged.added += told.added.saturating_sub(damaged.len() as u64);
    merged.mended += told.mended;
    merged.settled += told.settled;
    merged.known += told.known;
    merged.quarantined.extend(told.quarantined.into_iter().chain(damaged));
    Ok(())
}

fn refused(why: Refused) -> anyhow::Error {
    anyhow!("the journal does not take it ({why:?}): run it again")
}

/// The records of these, and those that turn out to be damaged.
#[expect(clippy::type_complexity, reason = "named where it is taken apart")]
fn take(
    source: &Source,
    into: &DirStorage,
    adding: Vec<(TransactionId, Vec<restante_ledger::Standing>)>,
) -> Result<(Vec<(Prepared, Fact)>, Vec<TransactionId>), BlobError> {
    let (mut reader, mut records, mut damaged) = (source.reader(), Vec::new(), Vec::new());
    for one in adding {
        let id = one.0;
        match source.take(&mut reader, into, one) {
            Ok(record) => records.push(record),
            Err(Untaken::Read(why)) => {
                tracing::warn!("{id} in {} is not taken over: {why}", source.dir.display());
                damaged.push(id);
            }
            Err(Untaken::Write(error)) => return Err(error),
        }
    }
    Ok((records, damaged))
}

/// Whether the error says that a daemon runs on the other journal.
pub(super) fn is_locked(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Unread::Locked(_)))
}
