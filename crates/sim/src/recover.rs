//! `recover` on what a crash left, as `cli/recover.rs` has it without `--deliver`: now and then between two processes, cut
//! short itself or not. It may lose nothing, and a second one has nothing left to do.

use crate::process::{open_writer, read};
use crate::world::World;
use crate::{Broken, Failure, Rule};
use restante_journal::{Depth, Replay, Writer, remove_parts, set_aside, set_orphans_aside, sync_last_segment};
use restante_ledger::Ledger;
use std::io::ErrorKind;

/// A run on a crashed journal takes about so many disk calls.
const CALLS: u64 = 12;

fn broken(what: String) -> Failure {
    Failure { rule: Rule::Recovery, what }
}

impl World {
    /// Whether the machine is still there afterwards, so that a process may begin.
    pub(crate) fn recover(&mut self) -> Result<bool, Failure> {
        if self.draw.one_in(2) {
            let call = 1 + self.draw.below(CALLS);
            match self.draw.below(4) {
                0 => self.disk.fail_call(call, ErrorKind::Other),
                _ => self.disk.die_at(call),
            }
        }
        let done = self.recover_once()?;
        if self.disk.is_dead() {
            self.died()?;
            return Ok(false);
        }
        // What was to fail may not have come yet.
        self.disk.revive();
        // On a full disk the torn end cannot be closed: there is something left to do.
        let Some(first) = done.filter(|_| !self.is_full) else { return Ok(true) };
        self.look_aside(&first)?;
        // What it told to whoever ran it is true from now on.
        let (found, replay) = read(&self.seam, Depth::Records).map_err(broken)?;
        self.history.check_replay(&found.facts, &found.ledger, &replay.report)?;
        self.history.started();
        let calls = self.disk.calls();
        let second = self.recover_once()?.ok_or_else(|| broken("the second one failed".into()))?;
        // It syncs the last segment, and that is all.
        if self.disk.calls() > calls + 1 || !second.report.torn.is_empty() {
            return Err(broken(format!("a second one had something to do: {:?}", second.report)));
        }
        Ok(true)
    }

    /// What it read, if nothing kept it from doing all of its work.
    fn recover_once(&mut self) -> Result<Option<Replay>, Failure> {
        self.summary.recoveries += 1;
        let is_synced = sync_last_segment(&self.seam).is_ok();
        let (found, replay) = read(&self.seam, Depth::Everything).map_err(broken)?;
        self.note(|| format!("recover finds {:?} and is {:?}", found.ledger.balance(), replay.report.state()));
        self.history.check_found(&found.facts, &replay.report)?;
        if !found.ledger.balance().is_even() {
            let what = format!("recover tells {:?}", found.ledger.balance());
            return Err(Failure { rule: Rule::Balance, what });
        }
        let is_done = is_synced && self.clear(&replay, &found.ledger);
        self.note(|| if is_done { "recover is done".into() } else { "recover does not get far".into() });
        Ok(is_done.then_some(replay))
    }

    fn clear(&mut self, replay: &Replay, ledger: &Ledger) -> bool {
        if self.plan.broken != Broken::RecoverSetsNothingAside && set_aside(&self.seam, &replay.report).is_err() {
            return false;
        }
        let moved = set_orphans_aside(&self.seam, replay).is_ok();
        let removed = remove_parts(&self.seam, replay).is_ok();
        if replay.report.torn.is_empty() && self.plan.broken != Broken::RecoverAlwaysAdds {
            return moved && removed;
        }
        let options = self.options();
        let (seed, now) = (self.seed(), self.now());
        let closed = open_writer(&self.seam, options, replay, ledger, seed, now).and_then(Writer::close);
        moved && removed && closed.is_ok()
    }

    /// Every bad byte was copied, and what was copied once stays.
    fn look_aside(&mut self, done: &Replay) -> Result<(), Failure> {
        let places = done.report.torn.iter().chain(&done.report.damage).filter(|place| place.has_bytes());
        self.aside.extend(places.map(|place| format!("torn/{:020}-{}.bin", place.segment, place.offset)));
        self.check_aside()
    }

    pub(crate) fn check_aside(&self) -> Result<(), Failure> {
        let files = self.disk.files();
        match self.aside.iter().find(|name| !files.contains(name)) {
            Some(name) => Err(broken(format!("{name} is not there: it should have been set aside"))),
            None => Ok(()),
        }
    }
}
