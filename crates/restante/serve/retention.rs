//! Lets segments go that have had their time: settled mail is kept for `retain`, what is left of a segment then is written
//! again at the end, the next header says that it counts no more, and it is removed. Also ends segments by age, so that a
//! quiet journal lets go, too. What may leave is the ledger's to say. And sums up segments that nobody writes any more, for the
//! next start.
//!
//! While a message is written again with its state, that state must not change: no attempt begins and no operator acts until
//! it is durable. To have each fact wait for its message was the other way; this one holds mail for the time of a sync or two,
//! once in an eighth of `retain`.

use super::journal::{Entry, Journal, Refused};
use super::memory::Share;
use super::relay::{Request, Straggler};
use super::settlements::Settlements;
use super::space::Space;
use anyhow::{Context as _, anyhow, bail};
use restante_journal::{CarriedBlobs, Depth, DirStorage, Prepared, ReadError, Reader, remove_left};
use restante_ledger::{Base, Cause, Deliveries, Fact, Outcome, RecipientIndex, RecipientState};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// A segment is ended when it is so old, and holds something: settled mail outlives `retain` by as much at most.
const PART_OF_RETAIN: u32 = 8;
/// Each end costs a few syncs and a megabyte of zeros.
const AGE_MIN: Duration = Duration::from_secs(2);
/// What rots in a sealed segment is told from what was torn.
const AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How often it is looked.
const LOOK_MIN: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(10);
/// Held in memory to be written again, at once.
const CARRIED_BYTES_MAX: u64 = 4 << 20;

/// What it is made of.
pub(crate) struct Keeper {
    pub(crate) storage: DirStorage,
    pub(crate) journal: Journal,
    pub(crate) relay: mpsc::Sender<Request>,
    pub(crate) settlements: Arc<Settlements>,
    /// Whoever changes how recipients stand, other than by an attempt, has the permit.
    pub(crate) operating: Arc<Semaphore>,
    pub(crate) space: Arc<Space>,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) retain: Duration,
    pub(crate) carried: CarriedBlobs,
    /// Segments that are not as written: each start reads them whole, to tell.
    pub(crate) unsummable: HashSet<u64>,
    /// What a start on a full disk could not record.
    pub(crate) unrecorded: Option<Fact>,
}

fn refused(why: Refused) -> anyhow::Error {
    anyhow!("the journal does not take it: {why:?}")
}

/// How old a segment gets.
fn age(retain: Duration) -> Duration {
    (retain / PART_OF_RETAIN).clamp(AGE_MIN, AGE_MAX)
}

impl Keeper {
    /// Until the daemon stops.
    pub(crate) async fn run(mut self) {
        let mut stopping = self.stopping.clone();
        loop {
            let is_pressing = self.journal.is_full() || self.unrecorded.is_some();
            let every = if is_pressing { LOOK_MIN } else { (self.retain / 64).clamp(LOOK_MIN, LOOK_MAX) };
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(every) => {}
            }
            self.space.look();
            // A full disk, a message that is being delivered: there is a next time.
            if let Err(error) = self.look().await {
                tracing::debug!("no segment leaves now: {error:#}");
            }
            if let Err(error) = self.sum_up().await {
                tracing::debug!("no segment is summed up now: {error:#}");
            }
        }
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> anyhow::Result<T> {
        let (sender, answer) = oneshot::channel();
        self.relay.send(request(sender)).await.map_err(|_| anyhow!("the relay has ended"))?;
        answer.await.context("the relay has ended")
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        self.journal.look().await.map_err(refused)?;
        if let Some(served) = self.unrecorded.take() {
            // Nobody else tries the disk: without mail there is nothing to settle.
            let recorded = self.record(served.clone()).await;
            self.unrecorded = Some(served).filter(|_| recorded.is_err());
            return recorded;
        }
        // On a full disk each segment that goes is room.
        let (retain, age) = (self.retain, if self.journal.is_full() { Duration::ZERO } else { age(self.retain) });
        let leaving = self.ask(|answer| Request::Leaving { retain, age, answer }).await?;
        match leaving.first {
            Some(first) => {
                let base = self.let_go(first).await?;
                let (storage, mut carried) = (self.storage.clone(), std::mem::take(&mut self.carried));
                let removing = move || (remove_left(&storage, base.first, &mut carried), carried);
                let (removed, carried) = tokio::task::spawn_blocking(removing).await?;
                self.carried = carried;
                let removed = removed.context("cannot remove segments that have left")?;
                tracing::debug!("segments before {} have left: {removed:?}", base.first);
                Ok(())
            }
            None if leaving.is_old => {
                self.journal.turn(None).await.map_err(refused)?;
                self.record_served().await
            }
            None => Ok(()),
        }
    }

    /// Writes the summaries that are missing. Here, where segments are removed, so that none is written for one that is gone.
    async fn sum_up(&mut self) -> anyhow::Result<()> {
        if self.journal.is_full() {
            return Ok(());
        }
        let (storage, mut unsummable) = (self.storage.clone(), std::mem::take(&mut self.unsummable));
        let stopping = self.stopping.clone();
        let summing = move || {
            let mut sum = || -> anyhow::Result<()> {
                for number in restante_journal::unsummarized(&storage)? {
                    if *stopping.borrow() {
                        break;
                    }
                    if !unsummable.contains(&number) && !restante_journal::summarize(&storage, number)? {
                        unsummable.insert(number);
                    }
                }
                Ok(())
            };
            let done = sum();
            (done, unsummable)
        };
        let (done, unsummable) = tokio::task::spawn_blocking(summing).await?;
        self.unsummable = unsummable;
        done
    }

    /// Returns when a header on stable storage says that the segments before `first` count no more.
    async fn let_go(&mut self, first: u64) -> anyhow::Result<Base> {
        // Most of the reading is done while mail is still delivered: what leaves is not written any more.
        let stragglers = self.ask(|answer| Request::Stragglers { first, answer }).await?;
        let mut pasts = self.pasts(first, &stragglers).await?;
        let _permit = self.operating.clone().acquire_owned().await?;
        // The relay rests until this is dropped.
        let (_rest, rests) = oneshot::channel();
        self.relay.send(Request::Rest(rests)).await.map_err(|_| anyhow!("the relay has ended"))?;
        loop {
            let stragglers = self.ask(|answer| Request::Stragglers { first, answer }).await?;
            if stragglers.is_empty() {
                break;
            }
            let mut idle: Vec<Straggler> = stragglers.into_iter().filter(|straggler| !straggler.is_active).collect();
            if idle.is_empty() {
                bail!("what is left there is being delivered");
            }
            if !idle.iter().all(|straggler| pasts.wants(straggler.id)) {
                pasts = self.pasts(first, &idle).await?;
            }
            for Straggler { id, recipients, .. } in &mut idle {
                let sent = (0..).zip(recipients).filter(|(_, standing)| standing.state == RecipientState::Sent);
                sent.for_each(|(index, standing)| standing.past = pasts.past(*id, index));
            }
            self.carry(idle).await?;
        }
        let base =
            self.ask(|answer| Request::BaseAt { first, answer }).await?.context("something is still pending there")?;
        self.journal.turn(Some(base)).await.map_err(refused)?;
        self.ask(|answer| Request::Left { base, answer }).await?;
        self.record_served().await?;
        Ok(base)
    }

    /// What the segments before `first` tell of recipients that were sent. Most stragglers have none: then nothing is read.
    async fn pasts(&self, first: u64, stragglers: &[Straggler]) -> anyhow::Result<Deliveries> {
        let mut pasts = Deliveries::of(stragglers.iter().map(|straggler| straggler.id));
        if !stragglers.iter().flat_map(|straggler| &straggler.recipients).any(|r| r.state == RecipientState::Sent) {
            return Ok(pasts);
        }
        let storage = self.storage.clone();
        let reading =
            move || restante_journal::replay_before(&storage, first, Depth::Records, &mut pasts).map(|_| pasts);
        tokio::task::spawn_blocking(reading).await?.context("cannot read the segments that are to leave")
    }

    /// Writes these again. What cannot be read any more is quarantined, as a courier would.
    async fn carry(&mut self, stragglers: Vec<Straggler>) -> anyhow::Result<()> {
        let mut reader = Some(Reader::new(self.storage.clone()));
        let (mut waiting, mut bytes) = (Vec::new(), 0);
        for Straggler { id, position, recipients, content_len, .. } in stragglers {
            let Some(mut open) = reader.take() else { break };
            let read = move || (open.to_carry(position), open);
            let (cargo, open) = tokio::task::spawn_blocking(read).await?;
            reader = Some(open);
            let cargo = match cargo {
                Ok(cargo) => cargo,
                Err(why @ ReadError::Damaged { .. }) => {
                    tracing::error!("{id}: {why}");
                    let pending = recipients.iter().enumerate().filter(|(_, r)| !r.state.is_settled());
                    let damaged = |(n, _): (usize, _)| {
                        let cause = Cause::Local(why.to_string());
                        RecipientIndex::try_from(n).ok().map(|n| (n, Outcome::Quarantined(cause)))
                    };
                    let results = pending.filter_map(damaged).collect();
                    let found = Fact::Attempted(super::attempt::found(id, results));
                    self.settlements.record(found, None).await;
                    continue;
                }
                Err(ReadError::Io(error)) => return Err(error).context("cannot read what is to be carried"),
            };
            let (record, carried) = Prepared::carried(cargo, recipients);
            let blob = record.blob();
            let (answer, outcome) = oneshot::channel();
            let fact = Fact::Carried(carried);
            let entry =
                Entry { record, fact, about: None, answer: Some(answer), memory: Share::default(), claim: None };
            self.journal.submit(entry).await.map_err(refused)?;
            waiting.push((outcome, blob));
            bytes += content_len;
            if bytes > CARRIED_BYTES_MAX {
                break;
            }
        }
        for (outcome, blob) in waiting {
            let receipt = outcome.await?.map_err(refused)?;
            blob.into_iter().for_each(|blob| self.carried.note(blob, receipt.position().segment));
        }
        Ok(())
    }

    /// Each segment tells where mail goes, for those before it may leave. The log and the index come to it, too.
    async fn record_served(&self) -> anyhow::Result<()> {
        let Some(served) = self.ask(Request::Served).await? else { return Ok(()) };
        self.record(Fact::Served(served)).await
    }

    async fn record(&self, fact: Fact) -> anyhow::Result<()> {
        let record = Prepared::fact(&fact, Vec::new());
        let (answer, outcome) = oneshot::channel();
        let entry = Entry { record, fact, about: None, answer: Some(answer), memory: Share::default(), claim: None };
        self.journal.submit(entry).await.map_err(refused)?;
        outcome.await?.map(drop).map_err(refused)
    }
}
