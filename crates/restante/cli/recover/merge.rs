//! `recover --from`, with the daemon dead: takes over what other journals know and this one does not, and gives the account of it.

use super::super::account::count;
use super::super::journal::{self, Book, Contents};
use super::super::log_line::printable;
use super::super::output::Output;
use super::super::progress::{Progress, Unit};
use super::Done;
use crate::merge::{Messages, Past, Plan, Source, Untaken};
use anyhow::Context as _;
use restante_envelope::TransactionId;
use restante_journal::{DirStorage, State, have_a_common_past};
use restante_ledger::{Fact, Ledger};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Messages named; `--json` names all.
const IDS_SHOWN_MAX: usize = 20;

/// What another journal gave.
#[derive(Debug)]
pub(crate) struct Merged {
    pub(crate) dir: PathBuf,
    pub(crate) state: State,
    /// Messages.
    pub(crate) added: u64,
    /// Messages that were damaged here, and are whole again.
    pub(crate) mended: u64,
    /// Messages that were settled there, and not here.
    pub(crate) settled: u64,
    pub(crate) known: u64,
    /// Damaged there, and not whole here.
    pub(crate) quarantined: Vec<TransactionId>,
}

impl Merged {
    /// What `plan` would come to.
    pub(crate) fn of(source: &Source, plan: &Plan) -> Self {
        Self {
            dir: source.dir.clone(),
            state: source.state(),
            added: (plan.add.len() as u64).saturating_sub(plan.mended),
            mended: plan.mended,
            settled: plan.settle.len() as u64,
            known: plan.known,
            quarantined: plan.quarantined.clone(),
        }
    }

    pub(crate) fn object(&self) -> Value {
        let ids: Vec<_> = self.quarantined.iter().map(ToString::to_string).collect();
        json!({
            "dir": self.dir.display().to_string(), "state": self.state.as_str(), "added": self.added, "mended": self.mended,
            "settled": self.settled, "known": self.known, "quarantined": ids,
        })
    }

    pub(super) fn tell(&self, verb: &str, output: Output) {
        if output.json {
            return;
        }
        let dir = printable(&self.dir.display().to_string());
        output.line(&format!(
            "from {dir}, which is {}: {verb} {}, mended {}, settled {}, known already {}",
            self.state.as_str(),
            count(self.added, "message"),
            self.mended,
            self.settled,
            self.known
        ));
        for id in self.quarantined.iter().take(IDS_SHOWN_MAX) {
            output.line(&format!("from {dir}: {id} is damaged there, and not taken over"));
        }
        if let Some(more) = self.quarantined.len().checked_sub(IDS_SHOWN_MAX).filter(|more| *more > 0) {
            output.line(&format!("and {}; --json names all", count(more as u64, "more message")));
        }
    }
}

/// The other journals, read, and what this one knows beside its ledger.
pub(super) struct Merge {
    sources: Vec<(Source, bool)>,
    past: Past,
}

impl Merge {
    pub(super) fn read(
        from: &[PathBuf],
        storage: &DirStorage,
        dir: &Path,
        output: Output,
    ) -> anyhow::Result<(Contents, Self)> {
        let mut sources = Vec::new();
        for other in from {
            let opened = Source::open(other, dir)?;
            let (messages, replay) = journal::read_into(&opened, other, output, "recover --from", Messages::default())
                .with_context(|| format!("in {}", other.display()))?;
            let is_common = have_a_common_past(storage, &opened)?;
            sources.push((Source { dir: other.clone(), storage: opened, messages, replay }, is_common));
        }
        let (messages, replay) = journal::read_into(storage, dir, output, "recover", Messages::default())?;
        let (ledger, past) = Past::new(messages, &replay.base);
        Ok((Contents { ledger, replay }, Self { sources, past }))
    }

    fn plan(&self, source: &Source, is_common: bool, ledger: &Ledger) -> Plan {
        source.plan(&source.ids(), |id, position| self.past.known(ledger.get(id), (id, position), is_common))
    }

    /// What a dry run tells: of each by itself, whatever the others have, too.
    pub(super) fn would(&self, ledger: &Ledger) -> Vec<Merged> {
        self.sources
            .iter()
            .map(|(source, is_common)| Merged::of(source, &self.plan(source, *is_common, ledger)))
            .collect()
    }

    /// Takes it over. What fails is noted, and the next run goes on with it.
    pub(super) fn run(mut self, book: &mut Book, done: &mut Done, output: Output) {
        for (source, is_common) in std::mem::take(&mut self.sources) {
            let plan = self.plan(&source, is_common, &book.ledger);
            let mut merged = Merged::of(&source, &plan);
            let took = self.take(&source, plan, book, &mut merged, output);
            let stopped = done.note("the merge stopped, run it again", took).is_none();
            done.merged.push(merged);
            if stopped {
                break;
            }
        }
    }

    fn take(
        &mut self,
        source: &Source,
        plan: Plan,
        book: &mut Book,
        merged: &mut Merged,
        output: Output,
    ) -> anyhow::Result<()> {
        if book.ledger.served().is_none()
            && let Some(served) = source.messages.ledger.served().filter(|_| !plan.add.is_empty())
        {
            // A new directory knows no primary; the rescued journal does.
            book.record(&Fact::Served(served.clone()))?;
        }
        let mut progress = Progress::new(output, "merge", Unit::Messages, plan.add.len() as u64);
        let (mut reader, into) = (source.reader(), book.storage().clone());
        for one in plan.add {
            let id = one.0;
            match source.take(&mut reader, &into, one) {
                Ok((record, fact)) => book.stage(&record, fact)?,
                Err(Untaken::Read(why)) => {
                    output.note(&format!("restante: {id} in {}: {why}", source.dir.display()));
                    merged.added = merged.added.saturating_sub(1);
                    merged.quarantined.push(id);
                }
                Err(Untaken::Write(error)) => return Err(error).context("cannot write a large message"),
            }
            progress.advance(1, "");
        }
        let settled: Vec<TransactionId> = plan.settle.iter().filter_map(about).collect();
        for fact in plan.settle {
            let record = restante_journal::Prepared::fact(&fact, Vec::new());
            book.stage(&record, fact)?;
        }
        book.flush()?;
        // The next journal must not bring back what this one settled.
        settled.into_iter().filter(|id| book.ledger.get(*id).is_none()).for_each(|id| self.past.is_sent(id));
        Ok(())
    }
}

fn about(fact: &Fact) -> Option<TransactionId> {
    match fact {
        Fact::Attempted(attempted) => Some(attempted.id),
        Fact::Operated(operated) => Some(operated.id),
        Fact::Accepted(_) | Fact::Served(_) | Fact::Watched(_) | Fact::Carried(_) | Fact::Replayed(_) => None,
    }
}
