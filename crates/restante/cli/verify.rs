//! `restante verify`: reads every byte of the journal and proves the balance. Takes no lock and changes nothing, so it may
//! run beside a daemon at work.

use super::account::Account;
use super::args::Cli;
use super::exit;
use super::journal::{self, Contents};
use super::output::Output;
use crate::clock;
use anyhow::{Context as _, bail};
use restante_journal::{Damage, DirStorage, ReplayError, State};
use std::path::Path;
use std::time::Duration;

/// A batch written while we read can look like damage, in another place each time; real damage stays where it is.
const READS_MAX: usize = 4;
/// Beside a daemon, a file in `blob/` that was written to more recently than this may be of a message on its way in; no
/// sender is given so long between two pieces of a message, and no record waits so long to be written.
const IN_FLIGHT: Duration = Duration::from_secs(60 * 60);

pub(crate) fn run(cli: &Cli, output: Output) -> anyhow::Result<u8> {
    let dir = match journal::data_dir(cli, output) {
        Ok(dir) => dir,
        Err(code) => return Ok(code),
    };
    let contents = check(&dir, output)?;
    let account = Account { replay: &contents.replay, balance: contents.ledger.balance() };
    if output.json {
        output.object(&account.object("verify").into());
    } else {
        for line in account.lines() {
            output.line(&line);
        }
        output.line(&account.verdict());
        if !contents.replay.orphans.is_empty() && account.state() != State::Damaged {
            output.line(
                "The next start, or `restante recover`, moves whole orphans to torn/ and removes unfinished ones.",
            );
        }
        match account.state() {
            State::Clean => {}
            State::Torn => output.line("The next start of the daemon, or `restante recover`, sets them aside."),
            State::Damaged => {
                output.line("`restante recover` sets the damaged bytes aside and delivers what is intact.")
            }
        }
    }
    let sound = account.state() != State::Damaged && account.balance.is_even();
    Ok(if sound { exit::DONE } else { exit::DAMAGED })
}

fn check(dir: &Path, output: Output) -> anyhow::Result<Contents> {
    let storage = journal::open(dir)?;
    let mut steady = Steady::default();
    for reads in 1..=READS_MAX {
        // A daemon that starts or stops while we read is a daemon all the same.
        let was_live = is_live(&storage, dir)?;
        let read = journal::read(&storage, dir, output, "verify");
        let live = was_live || is_live(&storage, dir)?;
        let mut contents = match read {
            // A segment that the daemon removed between our listing and our opening it.
            Err(ReplayError::Io(_)) if live && reads < READS_MAX => continue,
            read => read?,
        };
        if !live {
            return Ok(contents);
        }
        contents.replay.report.torn.clear();
        let now = clock::now();
        contents.replay.orphans.retain(|orphan| now.since(orphan.modified) >= IN_FLIGHT);
        if steady.has_no_phantom(&contents.replay.report.damage) {
            return Ok(contents);
        }
    }
    bail!("the daemon on {} is too busy to be verified now: try again when it has less to do", dir.display())
}

/// The damage that every read so far has seen.
#[derive(Default)]
struct Steady(Option<Vec<Damage>>);

impl Steady {
    /// Whether a read that saw this saw real damage only. Its ledger counts phantoms too, so one with any is of no use.
    fn has_no_phantom(&mut self, seen: &[Damage]) -> bool {
        let was_seen = |place: &&Damage| self.0.as_ref().is_none_or(|earlier| earlier.contains(place));
        let steady: Vec<Damage> = seen.iter().filter(was_seen).cloned().collect();
        let no_phantom = seen.is_empty() || (self.0.is_some() && steady.len() == seen.len());
        self.0 = Some(steady);
        no_phantom
    }
}

fn is_live(storage: &DirStorage, dir: &Path) -> anyhow::Result<bool> {
    storage.is_locked().with_context(|| format!("cannot see whether a daemon runs on {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::super::journal::testing::{OUTPUT, command_line, large, message, rot, sent, tear, write, writer};
    use super::*;
    use restante_journal::BlobName;

    fn exit_code(dir: &Path) -> u8 {
        run(&command_line(dir, "verify"), OUTPUT).unwrap()
    }

    #[test]
    fn a_missing_directory_is_an_error_in_plain_words() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("nowhere");
        let error = run(&command_line(&missing, "verify"), OUTPUT).unwrap_err();
        assert!(error.to_string().starts_with("there is no directory "), "{error}");
        assert!(!missing.exists());
        std::fs::write(&missing, "").unwrap();
        let error = run(&command_line(&missing, "verify"), OUTPUT).unwrap_err();
        assert!(error.to_string().ends_with(" is not a directory"), "{error}");
    }

    #[test]
    fn an_empty_directory_is_clean_and_stays_empty() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(exit_code(directory.path()), 0);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        let contents = check(directory.path(), OUTPUT).unwrap();
        assert_eq!(contents.ledger.balance(), restante_ledger::Balance::default());
    }

    #[test]
    fn one_rotten_byte_is_found_and_costs_one_message() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(directory.path());
        let ids = write(
            &mut writer,
            &[message(&[b'x'; 900], &["a@example.test"], None), message(&[b'y'; 900], &["b@example.test"], None)],
        );
        write(&mut writer, &[sent(ids[0], 0)]);
        writer.close().unwrap();
        assert_eq!(exit_code(directory.path()), 0);
        let at = rot(directory.path(), &[b'y'; 900]);
        assert_eq!(exit_code(directory.path()), 9);
        let contents = check(directory.path(), OUTPUT).unwrap();
        let place = &contents.replay.report.damage[0];
        assert_eq!(place.ids, [ids[1]]);
        assert!((place.offset..place.offset + place.bytes).contains(&at));
        let balance = contents.ledger.balance();
        assert_eq!((balance.sent, balance.quarantined, balance.pending), (1, 1, 0));
    }

    #[test]
    fn a_tail_in_flight_is_clean_while_a_daemon_runs_and_torn_without_one() {
        let directory = tempfile::tempdir().unwrap();
        write(&mut writer(directory.path()), &[message(b"m\r\n", &["a@example.test"], None)]);
        tear(directory.path());
        let state = || check(directory.path(), OUTPUT).unwrap().replay.report.state();
        assert_eq!(state(), State::Torn);
        let lock = DirStorage::open(directory.path()).unwrap().lock().unwrap();
        assert_eq!(state(), State::Clean);
        drop(lock);
        assert_eq!((state(), exit_code(directory.path())), (State::Torn, 0));
    }

    #[test]
    fn a_read_with_a_phantom_is_never_the_account() {
        let place = |offset| Damage::new(1, offset, 1, restante_journal::DamageKind::Frame, vec![]);
        let judge = |reads: &[&[u64]]| {
            let mut steady = Steady::default();
            let places = |offsets: &[u64]| offsets.iter().copied().map(place).collect::<Vec<_>>();
            reads.iter().map(|offsets| steady.has_no_phantom(&places(offsets))).collect::<Vec<_>>()
        };
        assert_eq!(judge(&[&[]]), [true]);
        assert_eq!(judge(&[&[7], &[]]), [false, true]);
        assert_eq!(judge(&[&[7], &[7]]), [false, true]);
        assert_eq!(judge(&[&[7, 9], &[7, 8], &[7]]), [false, false, true]);
        assert_eq!(judge(&[&[6], &[7], &[8], &[9]]), [false; 4]);
    }

    #[test]
    fn a_rotten_blob_is_found_and_orphans_change_no_verdict() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(directory.path());
        let ids = write(&mut writer, &[large(directory.path(), 1, &[b'x'; 900], &["a@example.test"])]);
        drop(large(directory.path(), 2, b"no record names me", &["a@example.test"]));
        writer.close().unwrap();
        let orphans = || check(directory.path(), OUTPUT).unwrap().replay.orphans;
        assert_eq!((exit_code(directory.path()), orphans().len()), (0, 1));
        {
            // On its way in, for all that we can know; after an hour it is not.
            let _daemon = DirStorage::open(directory.path()).unwrap().lock().unwrap();
            assert_eq!(orphans(), []);
            let file = std::fs::File::options().write(true).open(directory.path().join(BlobName::from_bits(2).file()));
            let earlier = std::time::SystemTime::now() - IN_FLIGHT;
            file.unwrap().set_modified(earlier).unwrap();
            assert_eq!((exit_code(directory.path()), orphans().len()), (0, 1));
        }
        std::fs::write(directory.path().join(BlobName::from_bits(1).file()), [b'y'; 900]).unwrap();
        assert_eq!(exit_code(directory.path()), 9);
        let contents = check(directory.path(), OUTPUT).unwrap();
        assert_eq!(
            (contents.replay.report.damage[0].ids.as_slice(), contents.replay.orphans.len()),
            (ids.as_slice(), 1)
        );
        assert_eq!(contents.ledger.balance().quarantined, 1);
    }

    #[test]
    fn damage_is_damage_while_a_daemon_runs_too() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(directory.path());
        write(&mut writer, &[message(&[b'x'; 900], &["a@example.test"], None)]);
        writer.close().unwrap();
        rot(directory.path(), &[b'x'; 900]);
        let _daemon = DirStorage::open(directory.path()).unwrap().lock().unwrap();
        assert_eq!(exit_code(directory.path()), 9);
    }
}
