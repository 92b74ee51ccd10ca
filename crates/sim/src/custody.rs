//! The world's dealings with the process and its journal: starts, stops, crashes, commits, and the rules held against each.

use crate::history::check_same;
use crate::intake::INLINE_BYTES_MAX;
use crate::process::{Batch, Entry, LINE_RECORDS_MAX, Process, Waits, forget, read, start};
use crate::world::{Happening, World};
use crate::{Broken, Failure, Rule};
use restante_journal::{CommitError, Depth, Options, Reader, Replay, Report, Seed, State};
use restante_ledger::{Action, Fact, Ledger, Outcome, Position};
use restante_relay::Relay;
use restante_smtp::{Resolution, Trouble};
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// What a record and its part of a mark take beside the content, at most.
const RECORD_BYTES_MAX: u64 = 1_500;
/// A message that met a full disk is offered again after this.
const RETRY_MS: u64 = 1_000;

fn failure(rule: Rule, what: String) -> Failure {
    Failure { rule, what }
}

impl World {
    /// Reads the journal, holds it against what is known, and lets a process begin, if the disk lets it.
    pub(crate) fn start(&mut self) -> Result<(), Failure> {
        if self.process.is_some() {
            return Ok(());
        }
        if self.plan.chaos && !self.calm && self.draw.one_in(4) && !self.recover()? {
            return Ok(());
        }
        self.check_aside()?;
        self.summary.starts += 1;
        // It knows nothing of what failed in another one.
        self.disk.restart();
        if let Err(error) = restante_journal::sync_last_segment(&self.seam) {
            self.note(|| format!("it does not get far: {error}"));
            return self.died();
        }
        let (found, replay) = match read(&self.seam, Depth::Records) {
            Ok(read) => read,
            Err(why) => return Err(failure(Rule::Recovery, format!("the journal cannot be read: {why}"))),
        };
        self.note(|| format!("a start finds {:?} and is {:?}", found.ledger.balance(), replay.report.state()));
        self.history.check_replay(&found.facts, &found.ledger, &replay.report)?;
        self.check_summaries(&found.ledger, &replay)?;
        let (options, seed, now) = (self.options(), self.seed(), self.now());
        self.history.in_flight.push(crate::process::served(now));
        let started = match start(&self.seam, &replay, &found.ledger, options, seed, now) {
            Ok(started) if !self.disk.is_dead() => started,
            outcome => {
                self.note(|| format!("it does not get far: {:?}", outcome.err()));
                return self.died();
            }
        };
        self.history.started();
        if let (fact, Some(receipt)) = started.served {
            self.history.durable(receipt.position(), fact)?;
            self.written_bytes += RECORD_BYTES_MAX;
        }
        self.process = Some(Process {
            writer: started.writer,
            reader: Reader::new(self.seam.clone()),
            relay: Relay::new(self.relayed.clone(), found.ledger, self.draw.bits(), now),
            line: VecDeque::new(),
            conversations: BTreeMap::new(),
            refused: Vec::new(),
            commit_is_due: false,
        });
        self.sum_up();
        self.after_disk()
    }

    /// What a daemon knows that reads summaries is what the segments say. What rotted behind a summary is the scrub's to find.
    fn check_summaries(&mut self, known: &Ledger, replay: &Replay) -> Result<(), Failure> {
        let mut begun = Ledger::new();
        let summed = restante_journal::start(&self.seam, &mut begun)
            .map_err(|error| failure(Rule::Recovery, format!("the summaries cannot be read: {error}")))?;
        let is_same = summed.report.state() == replay.report.state()
            && begun.balance() == known.balance()
            && begun.largest_id() == known.largest_id()
            && begun.iter().eq(known.iter());
        if is_same || replay.report.state() == State::Damaged {
            return Ok(());
        }
        let (summaries, segments) = (begun.balance(), known.balance());
        Err(failure(Rule::Recovery, format!("by the summaries {summaries:?}, by the segments {segments:?}")))
    }

    /// As a daemon does beside its work: an error is nobody's trouble.
    fn sum_up(&mut self) {
        for number in restante_journal::unsummarized(&self.seam).unwrap_or_default() {
            let _there_is_none = restante_journal::summarize(&self.seam, number);
        }
    }

    pub(crate) fn options(&self) -> Options {
        let for_each_batch = self.plan.broken == Broken::SegmentForEachBatch;
        Options { segment_bytes: if for_each_batch { 0 } else { self.plan.segment_bytes } }
    }

    pub(crate) fn seed(&mut self) -> Seed {
        let journal = u128::from(self.draw.bits());
        Seed { journal, entropy: self.draw.bits(), tags: self.draw.bits() }
    }

    /// The process is gone. Who was connected is not any more, and another process begins.
    fn gone(&mut self) {
        self.process = None;
        self.epoch += 1;
        for client in &mut self.clients {
            client.disconnected();
        }
        self.later(500, 4_000, Happening::Start);
        if self.plan.chaos && self.draw.one_in(2) {
            self.disk.evict();
        }
    }

    /// After what may have been the process's last call.
    pub(crate) fn after_disk(&mut self) -> Result<(), Failure> {
        if self.disk.is_dead() { self.died() } else { Ok(()) }
    }

    /// It met the call that was to be its last, or ends by itself in starting.
    pub(crate) fn died(&mut self) -> Result<(), Failure> {
        let cut = match self.plan.die {
            Some((_, cut)) => cut,
            None => self.disk.is_dead() && self.draw.one_in(2),
        };
        self.crash(cut)
    }

    /// The power goes, or the process is killed and the kernel keeps what it wrote.
    pub(crate) fn crash(&mut self, cut: bool) -> Result<(), Failure> {
        self.note(|| if cut { "the power goes".into() } else { "the process is killed".into() });
        self.summary.crashes += 1;
        self.disk.revive();
        self.gone();
        if cut {
            let seed = self.plan.sectors.unwrap_or_else(|| self.draw.bits());
            self.disk.power_fails(seed);
        }
        Ok(())
    }

    /// Told to stop, and given the time for it.
    pub(crate) fn stop(&mut self) -> Result<(), Failure> {
        let Some(process) = &mut self.process else { return Ok(()) };
        if self.calm {
            return Ok(());
        }
        process.conversations.values_mut().for_each(|c| c.shut_down());
        let clients: Vec<usize> = process.conversations.keys().copied().collect();
        clients.into_iter().try_for_each(|client| self.converse(client))?;
        self.close()
    }

    fn close(&mut self) -> Result<(), Failure> {
        while self.process.as_ref().is_some_and(|p| !p.line.is_empty()) {
            self.commit()?;
        }
        let Some(process) = self.process.take() else { return Ok(()) };
        self.note(|| "the process stops".into());
        let closed = process.writer.close();
        if self.disk.is_dead() {
            return self.died();
        }
        if closed.is_ok() {
            let (found, replay) = read(&self.seam, Depth::Everything).map_err(|why| failure(Rule::Recovery, why))?;
            self.hold_against(process.relay.ledger(), &found, &replay.report)?;
        }
        self.disk.revive();
        self.gone();
        Ok(())
    }

    /// The journal of the running process, read as `verify` would, against what the process knows.
    pub(crate) fn audit(&mut self) -> Result<(), Failure> {
        let copy = crate::seam::Seam { disk: self.disk.fork(), broken: self.plan.broken };
        let Some(process) = &self.process else { return Ok(()) };
        let (found, replay) = read(&copy, Depth::Everything).map_err(|why| failure(Rule::Recovery, why))?;
        self.summary.audits += 1;
        self.hold_against(process.relay.ledger(), &found, &replay.report)
    }

    fn hold_against(&self, live: &Ledger, found: &crate::process::Found, report: &Report) -> Result<(), Failure> {
        self.history.check_balance(live)?;
        let differ = self.history.check_found(&found.facts, report)?;
        if self.history.is_whole() {
            check_same(live, &found.ledger)
        } else {
            self.history.check_beside_damage(live, &found.ledger, &differ)
        }
    }

    /// Lets a record into the line, and calls whoever commits. Gives it back if the line is full.
    pub(crate) fn enter(&mut self, entry: Entry) -> Option<Entry> {
        let Some(process) = &mut self.process else { return Some(entry) };
        let without_end = self.plan.broken == Broken::LineWithoutEnd;
        let back = process.offer(entry, if without_end { usize::MAX } else { LINE_RECORDS_MAX });
        if !std::mem::replace(&mut process.commit_is_due, true) {
            let epoch = self.epoch;
            // Some join it meanwhile.
            self.later(0, 40, Happening::Commit { epoch });
        }
        back
    }

    pub(crate) fn commit(&mut self) -> Result<(), Failure> {
        let now = self.now();
        let Some(process) = &mut self.process else { return Ok(()) };
        process.commit_is_due = false;
        let Batch { recorded, full, failed, is_over } = process.commit(now);
        let is_unfinished = !process.line.is_empty();
        self.written_bytes += RECORD_BYTES_MAX;
        self.history.in_flight.extend(failed.iter().map(|entry| entry.fact.clone()));
        let mut told = Vec::new();
        for (receipt, mut entry) in recorded {
            if let Fact::Accepted(accepted) = &mut entry.fact {
                accepted.id = receipt.id();
                self.written_bytes += accepted.content_len;
            }
            self.written_bytes += RECORD_BYTES_MAX;
            if let Some(blob) = entry.record.blob() {
                self.blobs.insert(blob.file(), receipt.position());
            }
            self.note(|| format!("durable at {}: {:?}", receipt.position(), entry.fact));
            self.history.durable(receipt.position(), entry.fact.clone())?;
            told.push((receipt, entry));
        }
        if self.disk.is_dead() {
            return self.died();
        }
        // The relay first: whoever has a 250 finds the message in every listing and count.
        for (receipt, entry) in &told {
            self.tell_relay(receipt.position(), &entry.fact);
        }
        for (receipt, entry) in told {
            self.answer_later(entry.waits, Resolution::Stored(receipt.id()));
        }
        for entry in full {
            self.refuse(entry)?;
        }
        if is_over {
            for entry in failed {
                if let Waits::Client(client, connection) = entry.waits {
                    self.answer(client, connection, Resolution::Failed(Trouble::Local))?;
                }
            }
            return self.fail_stop();
        }
        let epoch = self.epoch;
        if is_unfinished {
            self.happens_in(1, Happening::Commit { epoch });
        }
        self.happens_in(1_000, Happening::Prove { epoch });
        Ok(())
    }

    pub(crate) fn tell_relay(&mut self, position: Position, fact: &Fact) {
        let now = self.now();
        let Some(process) = &mut self.process else { return };
        if let Some(fact) = heard(self.plan.broken, self.history.is_whole(), fact) {
            process.relay.apply(position, &fact, now);
        }
    }

    /// Between the commit and the answer anything may happen.
    fn answer_later(&mut self, waits: Waits, resolution: Resolution) {
        if let Waits::Client(client, connection) = waits {
            let epoch = self.epoch;
            self.later(0, 20, Happening::Answer { epoch, client, connection, resolution });
        }
    }

    /// The disk is full: who waits is told, what settles is kept.
    pub(crate) fn refuse(&mut self, entry: Entry) -> Result<(), Failure> {
        match entry.waits {
            Waits::Client(..) => {
                forget(&entry, &self.seam);
                self.answer_later(entry.waits, Resolution::Failed(Trouble::Storage));
            }
            Waits::Settlement => {
                let epoch = self.epoch;
                let times = if self.plan.broken == Broken::KeepsRefusedTwice { 2 } else { 1 };
                self.process.iter_mut().for_each(|p| p.refused.extend((0..times).map(|_| clone(&entry))));
                self.happens_in(RETRY_MS, Happening::Retry { epoch });
            }
            Waits::Nobody => {}
        }
        self.after_disk()
    }

    pub(crate) fn retry(&mut self) -> Result<(), Failure> {
        let refused = self.process.as_mut().map(|p| std::mem::take(&mut p.refused)).unwrap_or_default();
        refused.into_iter().try_for_each(|entry| match self.enter(entry) {
            Some(back) => self.refuse(back),
            None => Ok(()),
        })
    }

    pub(crate) fn prove(&mut self) -> Result<(), Failure> {
        let Some(process) = self.process.as_mut().filter(|p| p.line.is_empty()) else { return Ok(()) };
        let proven = process.writer.prove_last_batch();
        self.written_bytes += RECORD_BYTES_MAX;
        if self.disk.is_dead() {
            return self.died();
        }
        match proven {
            Ok(()) | Err(CommitError::Full(_)) => Ok(()),
            Err(_) => self.fail_stop(),
        }
    }

    /// The journal failed: the process ends, and nobody is told anything but that.
    pub(crate) fn fail_stop(&mut self) -> Result<(), Failure> {
        self.note(|| "the journal failed: the process ends".into());
        if let Some(process) = &mut self.process {
            process.conversations.values_mut().for_each(|c| c.shut_down());
            self.history.in_flight.extend(process.line.drain(..).map(|entry| entry.fact));
        }
        self.disk.revive();
        self.gone();
        Ok(())
    }

    /// Spoils a byte, a sector or a blob at rest, of what was proven to be safe: in a segment that another one follows.
    pub(crate) fn spoil(&mut self) {
        let last = self.history.facts.last_key_value().map_or(0, |(at, _)| at.segment);
        let places: Vec<Position> = self.history.facts.keys().copied().filter(|at| at.segment < last).collect();
        let Some(place) = places.get(self.draw.index(places.len())).copied() else { return };
        let blobs: Vec<String> = self
            .disk
            .files()
            .into_iter()
            .filter(|file| self.blobs.get(file).is_some_and(|at| at.segment < last))
            .collect();
        self.summary.spoiled += 1;
        if self.draw.one_in(4)
            && let Some(blob) = blobs.get(self.draw.index(blobs.len()))
        {
            let (at, bit) = (self.draw.index(INLINE_BYTES_MAX), self.draw.below(8));
            self.disk.alter(blob, |bytes| bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << bit));
            self.history.spoiled_blobs.extend(self.blobs.get(blob));
            self.note(|| format!("a bit of {blob} flips"));
            return;
        }
        let file = format!("seg-{:020}.rj", place.segment);
        let reach = if self.draw.one_in(2) { 64 } else { 400 };
        let within = self.draw.below(reach);
        let at = if self.draw.one_in(6) { self.draw.below(4096) } else { place.offset + within };
        if self.draw.one_in(3) {
            // What a scan reads one by one around a bad sector, and what disks of today call a sector.
            let sector = at / 4096 * 4096..at / 4096 * 4096 + 4096;
            self.disk.make_unreadable(&file, sector.clone());
            self.history.spoiled.extend(sector.map(|at| (place.segment, at)));
            self.note(|| format!("the sector at {at} of {file} cannot be read any more"));
            return;
        }
        let bit = self.draw.below(8);
        let place_in = usize::try_from(at).unwrap_or(0);
        self.disk.alter(&file, |bytes| bytes.get_mut(place_in).into_iter().for_each(|byte| *byte ^= 1 << bit));
        self.history.spoiled.insert((place.segment, at));
        self.note(|| format!("a bit at {at} of {file} flips"));
    }

    /// Nothing grows beyond its limit.
    pub(crate) fn check_bounds(&self) -> Result<(), Failure> {
        let Some(process) = &self.process else { return Ok(()) };
        let too_many = |what: &str, n: usize| Err(failure(Rule::Bounds, format!("{n} {what}")));
        if process.line.len() > LINE_RECORDS_MAX {
            return too_many("records in line", process.line.len());
        }
        let active = process.relay.active().len();
        if active > self.routes.iter().map(|route| route.max_active()).sum() {
            return too_many("attempts at once", active);
        }
        if process.refused.len() > active {
            return too_many("settlements kept for later", process.refused.len());
        }
        if let Some(kept) = process.conversations.values().map(|c| c.kept_bytes()).find(|kept| *kept > INLINE_BYTES_MAX)
        {
            return too_many("bytes kept of one client", kept);
        }
        let full = self.written_bytes / self.plan.segment_bytes;
        let runs = self.summary.starts + self.summary.recoveries;
        if process.writer.segment_number() > runs + full + 1 {
            return too_many("segments", usize::try_from(process.writer.segment_number()).unwrap_or(0));
        }
        Ok(())
    }

    /// The history is over: it stops, is read once more, and every promise was kept.
    pub(crate) fn end(&mut self) -> Result<(), Failure> {
        self.calm = false;
        self.close()?;
        self.calm = true;
        self.start()?;
        self.audit()?;
        self.summary.promises += self.history.promises();
        self.history.check_delivery()
    }

    /// Whether the process only pretends to have recorded this one.
    pub(crate) fn is_dropped(&mut self, entry: &Entry) -> bool {
        self.plan.broken == Broken::LosesSettlements && entry.waits == Waits::Settlement && self.draw.one_in(4)
    }
}

/// What the relay hears of a fact, which a defect may change; nothing at all, perhaps.
fn heard(broken: Broken, is_whole: bool, fact: &Fact) -> Option<Cow<'_, Fact>> {
    match (broken, fact) {
        (Broken::ForgetsHolds, Fact::Operated(operated)) if operated.action == Action::Hold => None,
        (Broken::DefersOtherwiseBesideDamage, _) if is_whole => Some(Cow::Borrowed(fact)),
        (Broken::DefersOtherwise | Broken::DefersOtherwiseBesideDamage, Fact::Attempted(attempted)) => {
            let mut attempted = attempted.clone();
            for (_, outcome) in &mut attempted.results {
                if let Outcome::Deferred { next_at, .. } = outcome {
                    *next_at = *next_at + Duration::from_millis(1);
                }
            }
            Some(Cow::Owned(Fact::Attempted(attempted)))
        }
        (Broken::ForgetsMail, Fact::Accepted(accepted)) if accepted.content_len % 4 == 0 => None,
        _ => Some(Cow::Borrowed(fact)),
    }
}

fn clone(entry: &Entry) -> Entry {
    Entry { record: entry.record.clone(), fact: entry.fact.clone(), waits: entry.waits }
}
